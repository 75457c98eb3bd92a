package build

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"weft/boards"
	"weft/image/rootfs"
)

// BoardInfo is what `image info` says of one board.
type BoardInfo struct {
	Name             string   `json:"name"`
	Title            string   `json:"title"`
	Target           string   `json:"target"`
	Arch             string   `json:"arch_packages"`
	Profile          string   `json:"profile"`
	Packages         []string `json:"default_packages"`
	SupportedDevices []string `json:"supported_devices"`
	HasMetadata      bool     `json:"has_image_metadata"`
}

// List is what `image info` prints.
type List struct {
	Revision string           `json:"revision"`
	Boards   []BoardInfo      `json:"boards"`
	Roles    []rootfs.Role    `json:"roles"`
	Packages []rootfs.Feature `json:"packages"`
}

// Overview reads all boards, roles and feature sets of a source tree.
func Overview(source string) (*List, error) {
	var l List
	var err error
	if _, l.Revision, err = SourceVersion(source); err != nil {
		return nil, err
	}
	for _, n := range boards.List() {
		b, err := boards.Load(n)
		if err != nil {
			return nil, err
		}
		l.Boards = append(l.Boards, BoardInfo{Name: n, Title: b.Title, Target: b.Target, Arch: b.Arch.LEDE, Profile: b.Profile,
			Packages: b.Packages.Default, SupportedDevices: b.SupportedDevices, HasMetadata: true})
	}
	dir := filepath.Join(source, rolesDir)
	names, err := rootfs.Roles(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		r, err := rootfs.LoadRole(dir, n)
		if err != nil {
			return nil, err
		}
		l.Roles = append(l.Roles, *r)
	}
	all, err := rootfs.Features()
	if err != nil {
		return nil, err
	}
	for _, n := range sortedKeys(all) {
		l.Packages = append(l.Packages, all[n])
	}
	return &l, nil
}

// Write prints the list in the form of LEDE's `make info`, a block a board,
// then the roles and packages.
func (l *List) Write(w io.Writer) error {
	var b strings.Builder
	for _, x := range l.Boards {
		fmt.Fprintf(&b, "Current Target: %q\nCurrent Architecture: %q\nCurrent Revision: %q\nDefault Packages: %s\nAvailable Profiles:\n\n", x.Target, x.Arch, l.Revision, strings.Join(x.Packages, " "))
		meta := 0
		if x.HasMetadata {
			meta = 1
		}
		fmt.Fprintf(&b, "%s:\n    %s (BOARD=%s)\n    Packages: \n    hasImageMetadata: %d\n    SupportedDevices: %s\n\n", x.Profile, x.Title, x.Name, meta, strings.Join(x.SupportedDevices, " "))
	}
	b.WriteString("Roles (ROLE=):\n")
	for _, r := range l.Roles {
		fmt.Fprintf(&b, "    %-16s %s\n", r.Name, r.Description)
	}
	b.WriteString("\nPackages (PACKAGES=):\n")
	for _, f := range l.Packages {
		fmt.Fprintf(&b, "    %-16s %s\n", f.Name, f.Description)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
