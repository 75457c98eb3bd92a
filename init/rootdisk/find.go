package rootdisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// System is where the kernel shows its block devices. The zero value is the
// running system.
type System struct {
	Sys string // default /sys
	Dev string // default /dev
}

func (s System) sys(elem ...string) string {
	return filepath.Join(append([]string{or(s.Sys, "/sys")}, elem...)...)
}

func (s System) dev(name string) string {
	// Slashes in device names are exclamation marks in sysfs.
	return filepath.Join(or(s.Dev, "/dev"), strings.ReplaceAll(name, "!", "/"))
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Disk is a whole disk.
type Disk struct {
	Name       string // kernel name: vda, nvme0n1
	Path       string // device node
	Bytes      uint64
	SectorSize int // logical, bytes
	Model      string
	Serial     string
	Removable  bool
}

// String names the disk so that a person can tell it from another one.
func (d Disk) String() string {
	s := d.Path + ", " + Size(d.Bytes)
	if d.Model != "" {
		s += ", model " + d.Model
	}
	if d.Serial != "" {
		s += ", serial " + d.Serial
	}
	if d.Removable {
		s += ", removable"
	}
	return s
}

// Size writes a number of bytes with a binary unit: 104.0 MiB.
func Size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

// Node is a block device that the kernel has made: a partition, or a whole disk
// (number 0).
type Node struct {
	Name   string
	Path   string
	Number int
	Bytes  uint64
}

// Boot is the disk that the system was booted from.
type Boot struct {
	Disk  Disk
	Table *Table // nil when the root file system fills the whole disk
	Root  Node
}

// DuplicateError says that several disks carry the id in root=.
type DuplicateError struct {
	Root  string
	Disks []Disk
}

func (e *DuplicateError) Error() string {
	var names []string
	for _, d := range e.Disks {
		names = append(names, d.String())
	}
	return fmt.Sprintf("%d disks carry the id root=%s, and it is not known which one was booted: %s", len(e.Disks), e.Root, strings.Join(names, "; "))
}

// NotFoundError says that no disk carries the id in root= (yet).
type NotFoundError struct {
	Root   string
	Disks  []Disk
	Reason string // set when the disk is there but the partition is not
}

func (e *NotFoundError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("root=%s: %s", e.Root, e.Reason)
	}
	if len(e.Disks) == 0 {
		return fmt.Sprintf("root=%s: the kernel shows no disk at all", e.Root)
	}
	var names []string
	for _, d := range e.Disks {
		names = append(names, d.String())
	}
	return fmt.Sprintf("root=%s: no disk carries this id; disks present: %s", e.Root, strings.Join(names, "; "))
}

// Disks lists the disks that can be booted from, sorted by name. Memory, loop,
// floppy and optical devices are left out.
func (s System) Disks() ([]Disk, error) {
	entries, err := os.ReadDir(s.sys("block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no block driver has registered anything yet
	}
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var disks []Disk
	for _, e := range entries {
		name := e.Name()
		if hasAnyPrefix(name, "loop", "ram", "zram", "fd", "sr", "mtdblock", "dm-") {
			continue
		}
		sectors := s.number(name, "size") // of 512 bytes, whatever the disk has
		if sectors == 0 {
			continue // no medium
		}
		d := Disk{
			Name:       name,
			Path:       s.dev(name),
			Bytes:      sectors * 512,
			SectorSize: 512,
			Model:      s.text(name, "device/model"),
			Serial:     or(s.text(name, "serial"), s.text(name, "device/serial")),
			Removable:  s.text(name, "removable") == "1",
		}
		if vendor := s.text(name, "device/vendor"); vendor != "" && !strings.HasPrefix(vendor, "0x") {
			d.Model = strings.TrimSpace(vendor + " " + d.Model)
		}
		if d.Model == "" {
			d.Model = s.text(name, "device/name") // MMC
		}
		if n := s.number(name, "queue/logical_block_size"); n == 4096 {
			d.SectorSize = 4096
		}
		disks = append(disks, d)
	}
	sort.Slice(disks, func(i, j int) bool { return disks[i].Name < disks[j].Name })
	return disks, nil
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

func (s System) text(name, attr string) string {
	b, err := os.ReadFile(s.sys("block", name, attr))
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func (s System) number(name, attr string) uint64 {
	n, err := strconv.ParseUint(s.text(name, attr), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// ReadTable reads the partition table of a disk from its node.
func (s System) ReadTable(d Disk) (*Table, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	defer f.Close()
	t, err := ReadTable(f, d.Bytes/uint64(d.SectorSize), d.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path, err)
	}
	return t, nil
}

// Nodes lists the partitions of a disk that the kernel knows, by number.
func (s System) Nodes(d Disk) ([]Node, error) {
	entries, err := os.ReadDir(s.sys("block", d.Name))
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", d.Path, err)
	}
	var nodes []Node
	for _, e := range entries {
		n := s.number(d.Name, filepath.Join(e.Name(), "partition"))
		if n == 0 {
			continue
		}
		nodes = append(nodes, Node{
			Name:   e.Name(),
			Path:   s.dev(e.Name()),
			Number: int(n),
			Bytes:  512 * s.number(d.Name, filepath.Join(e.Name(), "size")),
		})
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Number < nodes[j].Number })
	return nodes, nil
}

// Node returns the kernel's device for a partition; the error is a
// *NotFoundError when the kernel does not know it.
func (s System) Node(d Disk, number int) (Node, error) {
	nodes, err := s.Nodes(d)
	if err != nil {
		return Node{}, err
	}
	for _, n := range nodes {
		if n.Number == number {
			return n, nil
		}
	}
	return Node{}, &NotFoundError{Reason: fmt.Sprintf("%s has no partition %d", d.Path, number)}
}

// Find looks for the boot disk among the disks present now. Errors: a
// *DuplicateError when several disks carry the id, a *NotFoundError when none
// does. A disk whose table cannot be read is passed over, as LEDE does.
func (s System) Find(spec Spec) (*Boot, error) {
	disks, err := s.Disks()
	if err != nil {
		return nil, err
	}
	if spec.dev != "" || spec.hasNumber {
		return s.findNode(spec, disks)
	}
	var found []Boot
	var number int
	var unreadable []error
	for _, d := range disks {
		t, err := s.ReadTable(d)
		if err != nil {
			if !errors.Is(err, ErrNoTable) {
				unreadable = append(unreadable, err)
			}
			continue
		}
		if n, ok := spec.match(t); ok {
			found = append(found, Boot{Disk: d, Table: t})
			number = n
		}
	}
	switch {
	case len(found) == 0 && len(unreadable) > 0:
		return nil, &NotFoundError{Root: spec.text, Disks: disks, Reason: fmt.Sprintf("no readable disk carries this id: %v", errors.Join(unreadable...))}
	case len(found) == 0:
		return nil, &NotFoundError{Root: spec.text, Disks: disks}
	case len(found) > 1:
		e := &DuplicateError{Root: spec.text}
		for _, b := range found {
			e.Disks = append(e.Disks, b.Disk)
		}
		return nil, e
	}
	b := &found[0]
	if b.Table.FromBackup {
		return b, nil // the kernel has no nodes yet: RestorePrimary comes first
	}
	b.Root, err = s.Node(b.Disk, number)
	if err != nil {
		return nil, notFound(err, spec)
	}
	return b, nil
}

func notFound(err error, spec Spec) error {
	var nf *NotFoundError
	if errors.As(err, &nf) {
		nf.Root = spec.text
		return nf
	}
	return err
}

// findNode resolves the forms that name a device node.
func (s System) findNode(spec Spec, disks []Disk) (*Boot, error) {
	want := fmt.Sprintf("%d:%d", spec.major, spec.minor)
	is := func(name string, attr string) bool {
		if spec.hasNumber {
			return s.text(attr, "dev") == want
		}
		return strings.ReplaceAll(name, "!", "/") == spec.dev
	}
	for _, d := range disks {
		if is(d.Name, d.Name) {
			return &Boot{Disk: d, Root: Node{Name: d.Name, Path: d.Path, Bytes: d.Bytes}}, nil
		}
		nodes, err := s.Nodes(d)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			if !is(n.Name, filepath.Join(d.Name, n.Name)) {
				continue
			}
			t, err := s.ReadTable(d)
			if err != nil {
				return nil, err
			}
			return &Boot{Disk: d, Table: t, Root: n}, nil
		}
	}
	return nil, &NotFoundError{Root: spec.text, Disks: disks}
}
