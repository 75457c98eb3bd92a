package rootfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"weft/image/rootfs/kmod"
)

// Spec is what a root file system is made from. Paths are of the build machine.
type Spec struct {
	Overlay string // the skeleton: buildroot-overlay/rootfs
	Role    *Role
	Files   string // the user's FILES, "" for none
	Init    string // the device program
	Applets string // init/applets.txt: links to it

	Modules    *kmod.Set
	ModulesDir string // where the modules' files lie, by their Path

	Foreign  []Foreign
	Features []Feature

	Release          Release
	DisabledServices []string
	SBOM             []byte
}

// Foreign is a file or link out of a Debian package.
type Foreign struct {
	Path    string // in the package's tree
	Source  string // of a file
	Link    string // of a link
	Exec    bool
	Package string // name
}

// Release is what the release files say (lede-compat section 7).
type Release struct {
	Dist     string // "Weft"
	Version  string
	Revision string
	Target   string
	Arch     string // LEDE's
	Vendor   string
	Product  string
	Epoch    int64
	URL      string
}

// Where the device program and the SBOM lie in the root file system.
const (
	InitPath = "sbin/init"
	SBOMPath = "usr/lib/weft/sbom.cdx.json"
)

// Build puts the tree together, in this order, later ones over earlier ones:
// standard folders, kernel modules, foreign files, device program and applets,
// skeleton, role, release files, FILES. Start links come last, from what is
// there.
func Build(s Spec) (*Tree, error) {
	t := &Tree{}
	for _, step := range []func(*Tree) error{s.standard, s.modules, s.foreign, s.program, s.overlays, s.release, s.files, s.clean, s.services} {
		if err := step(t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// standard makes what every root file system has.
func (s Spec) standard(t *Tree) error {
	const origin = "standard"
	if err := t.Add(Entry{Path: "", Mode: fs.ModeDir | 0o755, Origin: origin}); err != nil {
		return err
	}
	for _, d := range []string{"bin", "dev", "etc", "etc/rc.d", "lib", "mnt", "overlay", "proc", "rom", "root", "sbin", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin"} {
		if err := t.Dir(d, origin); err != nil {
			return err
		}
	}
	if err := t.Link("var", "tmp", origin); err != nil {
		return err
	}
	if err := t.Link("run", "tmp/run", origin); err != nil {
		return err
	}
	return t.Add(Entry{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1, Origin: origin})
}

func (s Spec) modules(t *Tree) error {
	if s.Modules == nil {
		return nil
	}
	dir := path.Join("lib/modules", s.Modules.Release)
	for _, m := range s.Modules.Modules {
		if err := t.File(path.Join(dir, m.Path), filepath.Join(s.ModulesDir, filepath.FromSlash(m.Path)), false, "module "+m.Name); err != nil {
			return err
		}
	}
	for name, text := range map[string][]byte{
		"modules.dep": s.Modules.Dep(), "modules.alias": s.Modules.Alias(), "modules.softdep": s.Modules.Softdep(), "modules.builtin": s.Modules.BuiltinText(),
	} {
		if err := t.Text(path.Join(dir, name), string(text), "module index"); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) foreign(t *Tree) error {
	moves := map[string]string{}
	for _, f := range s.Features {
		maps.Copy(moves, f.Moves)
	}
	for _, f := range s.Foreign {
		p := strings.TrimPrefix(f.Path, "/")
		if to, ok := moves[p]; ok {
			p = to
		}
		origin := "package " + f.Package
		var err error
		if f.Link != "" {
			err = t.Link(p, f.Link, origin)
		} else {
			err = t.File(p, f.Source, f.Exec, origin)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range s.Features {
		for p, to := range f.Links {
			if err := t.Link(p, to, "package "+f.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// program installs the device program and a link to it for each applet.
func (s Spec) program(t *Tree) error {
	if err := t.File(InitPath, s.Init, true, "init"); err != nil {
		return err
	}
	if s.SBOM != nil {
		if err := t.Text(SBOMPath, string(s.SBOM), "sbom"); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(s.Applets)
	if err != nil {
		return fmt.Errorf("read the applets' paths: %w", err)
	}
	applets, err := ParseApplets(text)
	if err != nil {
		return fmt.Errorf("%s%w", s.Applets, err)
	}
	for _, a := range applets {
		if a == InitPath {
			continue
		}
		if err := t.Link(a, relative(a, InitPath), "applets"); err != nil {
			return err
		}
	}
	return nil
}

// relative returns the link at the path from that leads to the path to.
func relative(from, to string) string {
	up := strings.Repeat("../", strings.Count(from, "/"))
	if path.Dir(from) == path.Dir(to) {
		return path.Base(to)
	}
	return up + to
}

// ParseApplets reads init/applets.txt: an absolute path a line, further words
// and # comments ignored. Paths come back relative to the root.
func ParseApplets(text []byte) ([]string, error) {
	var out []string
	sc := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		p := words[0]
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return nil, fmt.Errorf(":%d: %q is not an absolute path", n, p)
		}
		out = append(out, p[1:])
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf(": %w", err)
	}
	return out, nil
}

func (s Spec) overlays(t *Tree) error {
	if err := t.Overlay(s.Overlay, false, "overlay"); err != nil {
		return err
	}
	if s.Role == nil {
		return nil
	}
	dir := filepath.Join(s.Role.Dir, "rootfs")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return t.Overlay(dir, false, "role "+s.Role.Name)
}

func (s Spec) files(t *Tree) error {
	if s.Files == "" {
		return nil
	}
	if st, err := os.Stat(s.Files); err != nil || !st.IsDir() {
		return fmt.Errorf("FILES=%s: want a folder that is copied over the root file system", s.Files)
	}
	return t.Overlay(s.Files, true, "files")
}

// clean drops what LEDE's image build drops: everything below /tmp and /boot.
func (s Spec) clean(t *Tree) error {
	for _, e := range append(t.List("tmp"), t.List("boot")...) {
		t.Remove(e.Path)
	}
	t.Remove("boot")
	return nil
}

func (s Spec) release(t *Tree) error {
	r := s.Release
	const origin = "release"
	full := r.Dist + " " + r.Version + " " + r.Revision
	id := strings.ToLower(r.Dist)
	for p, text := range map[string]string{
		"etc/openwrt_version": r.Revision + "\n",
		"etc/openwrt_release": shell([][2]string{
			{"DISTRIB_ID", r.Dist}, {"DISTRIB_RELEASE", r.Version}, {"DISTRIB_REVISION", r.Revision}, {"DISTRIB_TARGET", r.Target},
			{"DISTRIB_ARCH", r.Arch}, {"DISTRIB_DESCRIPTION", full}, {"DISTRIB_TAINTS", ""}}, "'"),
		"usr/lib/os-release": shell([][2]string{
			{"NAME", r.Dist}, {"VERSION", r.Version}, {"ID", id}, {"ID_LIKE", "lede openwrt"}, {"PRETTY_NAME", r.Dist + " " + r.Version},
			{"VERSION_ID", r.Version}, {"HOME_URL", r.URL}, {"BUILD_ID", r.Revision}, {"OPENWRT_BOARD", r.Target}, {"OPENWRT_ARCH", r.Arch},
			{"OPENWRT_TAINTS", ""}, {"OPENWRT_DEVICE_MANUFACTURER", r.Vendor}, {"OPENWRT_DEVICE_PRODUCT", r.Product}, {"OPENWRT_DEVICE_REVISION", "v0"},
			{"OPENWRT_RELEASE", full}, {"OPENWRT_BUILD_DATE", strconv.FormatInt(r.Epoch, 10)}}, `"`),
		"etc/device_info": shell([][2]string{
			{"DEVICE_MANUFACTURER", r.Vendor}, {"DEVICE_MANUFACTURER_URL", r.URL}, {"DEVICE_PRODUCT", r.Product}, {"DEVICE_REVISION", "v0"}}, "'"),
	} {
		if err := t.Text(p, text, origin); err != nil {
			return err
		}
	}
	return t.Link("etc/os-release", "../usr/lib/os-release", origin)
}

func shell(vars [][2]string, quote string) string {
	var b strings.Builder
	for _, v := range vars {
		if v[0] == "HOME_URL" && v[1] == "" {
			continue
		}
		fmt.Fprintf(&b, "%s=%s%s%s\n", v[0], quote, strings.NewReplacer("'", "", `"`, "", "$", "", "`", "", `\`, "").Replace(v[1]), quote)
	}
	return b.String()
}

// Service is what the start links need to know of a service.
type Service struct {
	Name        string
	Start, Stop int // numbers of the S and K links, 0 for none
}

const (
	initDir  = "etc/init.d"
	unitDir  = "usr/lib/weft/services"
	defStart = 50 // of a unit without the key start, as rc.common
)

// Services lists what the tree can start: native units and init scripts with a
// START line, sorted by name.
func Services(t *Tree) ([]Service, error) {
	byName := map[string]Service{}
	for _, e := range t.List(initDir) {
		text, err := t.Read(e.Path)
		if err != nil {
			return nil, err
		}
		name := path.Base(e.Path)
		start, stop := scriptNumbers(text)
		byName[name] = Service{Name: name, Start: start, Stop: stop}
	}
	for _, e := range t.List(unitDir) {
		name, ok := strings.CutSuffix(path.Base(e.Path), ".toml")
		if !ok || path.Dir(e.Path) != unitDir {
			continue
		}
		text, err := t.Read(e.Path)
		if err != nil {
			return nil, err
		}
		var u struct {
			Start *int `toml:"start"`
			Stop  int  `toml:"stop"`
		}
		if _, err := toml.Decode(string(text), &u); err != nil {
			return nil, fmt.Errorf("unit /%s: %w", e.Path, err)
		}
		if u.Start != nil && *u.Start == 0 && u.Stop == 0 {
			continue // started by other services alone: nobody enables or calls it
		}
		if _, ok := byName[name]; !ok {
			return nil, fmt.Errorf("unit /%s has no script /%s/%s: add the two lines that call service", e.Path, initDir, name)
		}
		start := defStart
		if u.Start != nil {
			start = *u.Start
		}
		byName[name] = Service{Name: name, Start: start, Stop: u.Stop}
	}
	var out []Service
	for _, s := range byName {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

var scriptNumber = regexp.MustCompile(`(?m)^(START|STOP)=['"]?([0-9]{1,2})['"]?\s*(#.*)?$`)

// scriptNumbers reads START= and STOP= of an init script.
func scriptNumbers(text []byte) (start, stop int) {
	for _, m := range scriptNumber.FindAllSubmatch(text, -1) {
		n, _ := strconv.Atoi(string(m[2]))
		if string(m[1]) == "START" {
			start = n
		} else {
			stop = n
		}
	}
	return start, stop
}

// services makes the start links of all services but the disabled ones.
func (s Spec) services(t *Tree) error {
	list, err := Services(t)
	if err != nil {
		return err
	}
	var names []string
	for _, sv := range list {
		names = append(names, sv.Name)
	}
	off := map[string]bool{}
	set := func(where string, list []string, disabled bool) error {
		for _, n := range list {
			if !slices.Contains(names, n) {
				return fmt.Errorf("%s: %w service %q: there are %s", where, ErrUnknown, n, strings.Join(names, ", "))
			}
			off[n] = disabled
		}
		return nil
	}
	if s.Role != nil {
		if err := set("role "+s.Role.Name+": services_disabled", s.Role.ServicesDisabled, true); err != nil {
			return err
		}
		if err := set("role "+s.Role.Name+": services_enabled", s.Role.ServicesEnabled, false); err != nil {
			return err
		}
	}
	if err := set("DISABLED_SERVICES", s.DisabledServices, true); err != nil {
		return err
	}
	for _, sv := range list {
		if off[sv.Name] {
			continue
		}
		for letter, n := range map[string]int{"S": sv.Start, "K": sv.Stop} {
			if n == 0 {
				continue
			}
			if err := t.Link(fmt.Sprintf("etc/rc.d/%s%02d%s", letter, n, sv.Name), "../init.d/"+sv.Name, "start links"); err != nil {
				return err
			}
		}
	}
	return nil
}
