package rootfs

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

//go:embed features.toml
var featuresText string

// Feature is a named set of foreign programs and kernel modules.
type Feature struct {
	Name        string            `toml:"-" json:"name"`
	Description string            `toml:"description" json:"description"`
	Pins        []string          `toml:"pins" json:"pins,omitempty"`
	Moves       map[string]string `toml:"moves" json:"moves,omitempty"`
	Links       map[string]string `toml:"links" json:"links,omitempty"`
	Modules     []string          `toml:"modules" json:"modules,omitempty"`
}

// Features returns the table, by name.
func Features() (map[string]Feature, error) {
	all := map[string]Feature{}
	md, err := toml.Decode(featuresText, &all)
	if err != nil {
		return nil, fmt.Errorf("image/rootfs/features.toml: %w", err)
	}
	if u := md.Undecoded(); len(u) > 0 {
		return nil, fmt.Errorf("image/rootfs/features.toml: unknown key %q", u[0])
	}
	for name, f := range all {
		f.Name = name
		all[name] = f
	}
	return all, nil
}

// ErrUnknown is wrapped when a name stands for no package, role or service.
var ErrUnknown = errors.New("unknown")

// Choose resolves lists of names into feature sets, sorted by name. Lists are
// taken in order; "-name" removes what came before it (LEDE's PACKAGES).
// images are the packages that the lock holds for images: each is a feature
// set even if the table does not know it.
func Choose(images []string, lists ...[]string) ([]Feature, error) {
	all, err := Features()
	if err != nil {
		return nil, err
	}
	for _, p := range images {
		if _, ok := all[p]; !ok {
			all[p] = Feature{Name: p, Pins: []string{p}}
		}
	}
	chosen := map[string]bool{}
	var unknown []string
	for _, list := range lists {
		for _, n := range list {
			name, remove := strings.CutPrefix(n, "-")
			if _, ok := all[name]; !ok {
				unknown = append(unknown, name)
			}
			if remove {
				delete(chosen, name)
			} else {
				chosen[name] = true
			}
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%w packages %s: there are %s; more come in through [image.NAME] in image/pins/pins.toml",
			ErrUnknown, strings.Join(unknown, ", "), strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	var out []Feature
	for _, n := range slices.Sorted(maps.Keys(chosen)) {
		out = append(out, all[n])
	}
	return out, nil
}

// Role is a role overlay: buildroot-overlay/roles/<name> with role.toml and
// the folder rootfs.
type Role struct {
	Name             string   `toml:"-" json:"name"`
	Dir              string   `toml:"-" json:"-"`
	Description      string   `toml:"description" json:"description"`
	Packages         []string `toml:"packages" json:"packages"` // feature sets; -name removes one of the board's
	Modules          []string `toml:"modules" json:"modules"`   // kernel modules beyond those of board and packages
	ServicesEnabled  []string `toml:"services_enabled" json:"services_enabled"`
	ServicesDisabled []string `toml:"services_disabled" json:"services_disabled"`
}

// Roles lists the names of the roles below a folder, sorted.
func Roles(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "role.toml"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(filepath.Dir(f)))
	}
	slices.Sort(names)
	return names, nil
}

// LoadRole reads a role's role.toml, strictly.
func LoadRole(dir, name string) (*Role, error) {
	file := filepath.Join(dir, name, "role.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		names, _ := Roles(dir)
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("%w role %q: there are %s below %s", ErrUnknown, name, strings.Join(names, ", "), dir)
		}
		return nil, fmt.Errorf("read role %s: %w", name, err)
	}
	return ParseRole(name, file, text)
}

// ParseRole reads the text of a role.toml; file is used in errors and as the
// place of the role's overlay.
func ParseRole(name, file string, text []byte) (*Role, error) {
	r := &Role{Name: name, Dir: filepath.Dir(file)}
	md, err := toml.Decode(string(text), r)
	if err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, fmt.Errorf("%s:%d: %s", file, pe.Position.Line, pe.Message)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var errs []error
	for _, k := range md.Undecoded() {
		errs = append(errs, fmt.Errorf("%s: unknown key %q; there are description, packages, modules, services_enabled, services_disabled", file, k))
	}
	if r.Description == "" {
		errs = append(errs, fmt.Errorf("%s: description is missing", file))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}
