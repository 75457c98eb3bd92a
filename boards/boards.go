// Package boards holds the boards that Weft builds for, as data: one folder a
// board with a board.toml, embedded into the program.
//
// The loader is strict: an unknown key, a value out of range or a name that
// contradicts another one is an error, and Load reports all of them at once
// with file and line. Nothing outside this package may assume what a board is
// (processor, boot loader, partition sizes): ask the Board.
package boards

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

//go:embed */board.toml
var files embed.FS

// Board is one board's settings, checked.
type Board struct {
	Name             string     `toml:"-" json:"name"` // folder name; BOARD= and PROFILE= of the build
	Title            string     `toml:"title" json:"title"`
	Target           string     `toml:"target" json:"target"`   // LEDE's target/subtarget, "x86/64"
	Profile          string     `toml:"profile" json:"profile"` // LEDE's profile id
	Titles           []Title    `toml:"titles" json:"titles"`
	SupportedDevices []string   `toml:"supported_devices" json:"supported_devices"` // board names that may flash the image
	CompatVersion    string     `toml:"compat_version" json:"compat_version"`       // LEDE's "major.minor"
	Arch             Arch       `toml:"arch" json:"arch"`
	Kernel           Kernel     `toml:"kernel" json:"kernel"`
	Partitions       Partitions `toml:"partitions" json:"partitions"`
	GRUB             GRUB       `toml:"grub" json:"grub"`
	Loaders          []Loader   `toml:"loaders" json:"loaders"`
	Images           []Image    `toml:"images" json:"images"`
	Packages         Packages   `toml:"packages" json:"packages"`
	Modules          Modules    `toml:"modules" json:"modules"`
}

// Title is how profiles.json names the device.
type Title struct {
	Vendor  string `toml:"vendor" json:"vendor,omitempty"`
	Model   string `toml:"model" json:"model,omitempty"`
	Variant string `toml:"variant" json:"variant,omitempty"`
	Title   string `toml:"title" json:"title,omitempty"` // instead of the other three
}

// Arch is what each world calls the processor.
type Arch struct {
	Debian string            `toml:"debian" json:"debian"`
	LEDE   string            `toml:"lede" json:"lede"` // arch_packages in profiles.json, DISTRIB_ARCH
	Go     map[string]string `toml:"go" json:"go"`     // environment of the Go compiler: GOARCH and its variants
}

// Kernel says where the kernel comes from and how it is started.
type Kernel struct {
	Pin     string `toml:"pin" json:"pin"`         // entry of image/pins.toml
	Image   string `toml:"image" json:"image"`     // file in the package, a path.Match pattern
	Cmdline string `toml:"cmdline" json:"cmdline"` // follows root=… rootwait
}

// Partitions are the sizes of the disk's parts, in MiB except AlignKiB.
type Partitions struct {
	AlignKiB int `toml:"align_kib" json:"align_kib"` // partitions start at multiples of this many KiB
	Boot     int `toml:"boot" json:"boot"`
	Rootfs   int `toml:"rootfs" json:"rootfs"` // each of two
	Data     int `toml:"data" json:"data"`
}

// GRUB sets the boot menu.
type GRUB struct {
	Timeout     int `toml:"timeout" json:"timeout"` // seconds
	SerialUnit  int `toml:"serial_unit" json:"serial_unit"`
	SerialSpeed int `toml:"serial_speed" json:"serial_speed"` // baud
}

// LoaderKind is a way to start the machine.
type LoaderKind string

// The loader kinds. GRUBPC needs boot.img in sector 0 and core.img in the gap
// behind the MBR or in a BIOS boot partition; GRUBEFI is a file in the boot
// partition.
const (
	GRUBPC  LoaderKind = "grub-pc"
	GRUBEFI LoaderKind = "grub-efi"
)

// Loader is a boot loader that images can carry.
type Loader struct {
	Name     string     `toml:"name" json:"name"`
	Kind     LoaderKind `toml:"kind" json:"kind"`
	Package  string     `toml:"package" json:"package"`     // pinned package with the platform's files, without architecture
	Platform string     `toml:"platform" json:"platform"`   // GRUB's name: i386-pc, arm64-efi …
	File     string     `toml:"file" json:"file,omitempty"` // GRUBEFI: path in the boot partition
	Modules  []string   `toml:"modules" json:"modules"`
}

// Table is a partition table format.
type Table string

// The partition tables.
const (
	MBR Table = "mbr"
	GPT Table = "gpt"
)

// Image is a disk image that the build makes.
type Image struct {
	Type    string   `toml:"type" json:"type"` // part of the file name: combined, combined-efi
	Table   Table    `toml:"table" json:"table"`
	Loaders []string `toml:"loaders" json:"loaders"`
}

// Packages are the feature sets in every image of the board.
type Packages struct {
	Default []string `toml:"default" json:"default"`
}

// Modules name kernel modules; their dependencies follow by themselves.
type Modules struct {
	Initramfs []string `toml:"initramfs" json:"initramfs"` // also in the rootfs
	Rootfs    []string `toml:"rootfs" json:"rootfs"`
	Optional  []string `toml:"optional" json:"optional"` // may be missing from the kernel package
}

// Loader returns the loader of that name; Load has made sure that every name
// an image uses exists.
func (b *Board) Loader(name string) (Loader, bool) {
	i := slices.IndexFunc(b.Loaders, func(l Loader) bool { return l.Name == name })
	if i < 0 {
		return Loader{}, false
	}
	return b.Loaders[i], true
}

// ErrUnknown is wrapped by Load's error for a board that does not exist.
var ErrUnknown = errors.New("unknown board")

// List returns the boards' names, sorted.
func List() []string {
	var names []string
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic("BUG: embedded boards: " + err.Error())
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Load returns a board by its folder name, or by its profile id where only one
// board has it (LEDE's PROFILE=). The error of an unknown board wraps
// ErrUnknown; that of a faulty board.toml joins one error per fault, each with
// file and line.
func Load(name string) (*Board, error) {
	if !slices.Contains(List(), name) {
		var found []string
		for _, n := range List() {
			if b, err := load(n); err == nil && b.Profile == name {
				found = append(found, n)
			}
		}
		if len(found) != 1 {
			return nil, fmt.Errorf("%w %q: `make info` lists the boards (%s)", ErrUnknown, name, strings.Join(List(), ", "))
		}
		name = found[0]
	}
	return load(name)
}

func load(name string) (*Board, error) {
	file := path.Join(name, "board.toml")
	text, err := files.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read board %s: %w", name, err)
	}
	return Parse(name, "boards/"+file, text)
}
