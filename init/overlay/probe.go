package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind is what lies at the start of a data volume.
type Kind int

// Kinds; the first four are LEDE's (fstools libfstools/rootdisk.c).
const (
	Unknown     Kind = iota // no signature known here
	Blank                   // nothing but zeros: a fresh image
	Unformatted             // the mark DE AD C0 DE: to be formatted
	Tarball                 // a gzip stream: a config archive left by sysupgrade
	Ext4                    // ext2, 3 or 4
	F2FS
	Foreign // somebody else's file system or container
)

func (k Kind) String() string {
	switch k {
	case Unknown:
		return "unknown content"
	case Blank:
		return "blank"
	case Unformatted:
		return "marked as unformatted"
	case Tarball:
		return "config archive"
	case Ext4:
		return "ext4"
	case F2FS:
		return "f2fs"
	case Foreign:
		return "foreign"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Content is the answer of Probe.
type Content struct {
	Kind Kind
	Name string // of a foreign format: "XFS"

	// Ext4 only.
	Label  string
	Errors bool  // the kernel noted errors: check before use
	Bytes  int64 // size of the file system

	// TarballAt is the byte at which a config archive begins (LEDE looks in
	// the first 512 sectors of an unformatted volume too); -1: none seen.
	TarballAt int64
}

// Mark is written to the start of a volume to say "format at next boot"; LEDE's
// end-of-file-system marker.
var Mark = []byte{0xde, 0xad, 0xc0, 0xde}

// gzipMagic is the start of a gzip stream. LEDE asks for 1F 8B 08 00; a fourth
// byte that says that a file name follows is good as well.
var gzipMagic = []byte{0x1f, 0x8b, 0x08}

// probeSize covers LEDE's search for a config archive: 512 sectors.
const probeSize = 512 * 512

// foreign signatures of what a person may keep on a disk. What is listed here
// is never formatted without being asked.
var foreign = []struct {
	name  string
	off   int
	magic string
}{
	{"LUKS", 0, "LUKS\xba\xbe"},
	{"XFS", 0, "XFSB"},
	{"squashfs", 0, "hsqs"},
	{"NTFS", 3, "NTFS    "},
	{"exFAT", 3, "EXFAT   "},
	{"FAT", 54, "FAT"},
	{"FAT", 82, "FAT32"},
	{"LVM", 512, "LABELONE"},
	{"swap", 4086, "SWAPSPACE2"},
	{"RAID", 4096, "\xfc\x4e\x2b\xa9"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"ZFS", 0x20000, "\x0c\xb1\xba\x00"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"UBI", 0, "UBI#"},
}

// Probe looks at the start of a data volume. The order of the tests is LEDE's:
// archive, mark, f2fs, ext4; then what LEDE does not know.
func Probe(r io.ReaderAt) (Content, error) {
	buf := make([]byte, probeSize)
	n, err := r.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Content{}, fmt.Errorf("read the start of the data volume: %w", err)
	}
	buf = buf[:n]
	c := Content{TarballAt: -1}
	at := func(off int, magic []byte) bool {
		return off+len(magic) <= len(buf) && bytes.Equal(buf[off:off+len(magic)], magic)
	}
	switch {
	case at(0, gzipMagic):
		c.Kind, c.TarballAt = Tarball, 0
		return c, nil
	case at(0, Mark):
		c.Kind = Unformatted
	case at(0x400, []byte{0x10, 0x20, 0xf5, 0xf2}):
		c.Kind = F2FS
		return c, nil
	case len(buf) >= 2048 && at(0x438, []byte{0x53, 0xef}):
		c.ext4(buf[1024:])
		return c, nil
	case len(bytes.Trim(buf, "\x00")) == 0:
		c.Kind = Blank
		return c, nil
	default:
		for _, f := range foreign {
			if at(f.off, []byte(f.magic)) {
				c.Kind, c.Name = Foreign, f.name
				return c, nil
			}
		}
	}
	for off := 512; off+len(gzipMagic) <= len(buf); off += 512 {
		if at(off, gzipMagic) {
			c.TarballAt = int64(off)
			break
		}
	}
	return c, nil
}

// ext4 reads the fields of a superblock (Documentation/filesystems/ext4/super.rst).
func (c *Content) ext4(sb []byte) {
	c.Kind = Ext4
	name, _, _ := bytes.Cut(sb[0x78:0x88], []byte{0})
	c.Label = string(name)
	c.Errors = binary.LittleEndian.Uint16(sb[0x3a:])&2 != 0
	blocks := uint64(binary.LittleEndian.Uint32(sb[4:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&0x80 != 0 { // 64bit
		blocks |= uint64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	if shift := binary.LittleEndian.Uint32(sb[0x18:]); shift <= 6 && blocks < 1<<44 {
		c.Bytes = int64(blocks << (10 + shift))
	}
}

// backupSuperblock reports whether block group 1 begins with a copy of an ext4
// superblock made by Format: e2fsck can then rebuild what was overwritten at
// the start. Volumes up to 128 MiB have no copy.
func backupSuperblock(r io.ReaderAt) bool {
	sb := make([]byte, 0x88)
	if _, err := r.ReadAt(sb, 32768*4096); err != nil {
		return false
	}
	return sb[0x38] == 0x53 && sb[0x39] == 0xef && bytes.HasPrefix(sb[0x78:], []byte(Label+"\x00"))
}

// SquashfsEnd returns the number of bytes that a squashfs fills, from its
// superblock (bytes_used at 40; Documentation/filesystems/squashfs.rst).
func SquashfsEnd(r io.ReaderAt) (int64, error) {
	sb := make([]byte, 96)
	if _, err := r.ReadAt(sb, 0); err != nil {
		return 0, fmt.Errorf("read squashfs superblock: %w", err)
	}
	if string(sb[:4]) != "hsqs" {
		return 0, fmt.Errorf("no squashfs: it begins with % x, expected 68 73 71 73", sb[:4])
	}
	n := binary.LittleEndian.Uint64(sb[40:])
	if n < 96 || n > 1<<40 {
		return 0, fmt.Errorf("squashfs superblock says %d bytes used", n)
	}
	return int64(n), nil
}

// IsFAT reports whether a partition holds a FAT file system, by the test of
// LEDE's part_magic_fat: the text FAT at 54 or FAT32 at 82.
func IsFAT(r io.ReaderAt) bool {
	b := make([]byte, 96)
	if _, err := r.ReadAt(b, 0); err != nil {
		return false
	}
	return string(b[54:57]) == "FAT" || string(b[82:85]) == "FAT"
}
