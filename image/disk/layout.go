// Package disk lays out and writes LEDE-compatible disk images: an MBR or GPT,
// the boot loader's first stages, the FAT boot partition and the root file
// system, byte for byte by LEDE's rules (lede-compat section 1.1), so that a
// stock system's sysupgrade reads our table and writes our image.
//
// The tables are written by hand and not with go-diskfs: its GPT writer takes
// neither LEDE's protective entry nor a first usable sector or header apart
// from the disk's size, and its MBR writer no CHS of 16 heads. It reads our
// tables in the tests.
//
// Nothing here needs root, a loop device or the clock. Sectors are 512 bytes.
package disk

import (
	"crypto/md5" // #nosec: LEDE's derivation of disk ids, not a protection
	"encoding/hex"
	"fmt"
	"strconv"

	"weft/boards"
)

// SectorSize is the size of a sector in bytes.
const SectorSize = 512

const (
	gptFirstUsable = 34  // MBR, header, 32 sectors of entries
	gptBackup      = 33  // sectors behind the last usable one: entries and header
	biosBootEntry  = 128 // GPT entry of the BIOS boot partition
)

// Partition is one entry of a layout.
type Partition struct {
	Number  int
	Start   int64 // sector
	Sectors int64
}

// Size returns the partition's length in bytes.
func (p Partition) Size() int64 { return p.Sectors * SectorSize }

// The partitions of every layout, by number.
const (
	Boot    = 1
	Rootfs  = 2
	Rootfs2 = 3 // reserved for the A/B upgrade
	Data    = 4
)

// Layout is where each partition lies.
type Layout struct {
	Table      boards.Table
	Partitions []Partition // Boot, Rootfs, Rootfs2, Data
	BIOSBoot   Partition   // GPT only: where GRUB's core goes; number 128
	Sectors    int64       // of the whole image
}

// NewLayout places the four partitions by LEDE's rule (firmware-utils ptgen.c):
// each starts at the next multiple of the alignment, behind a gap of at least
// 63 sectors on MBR disks, where GRUB's core lies before the first.
func NewLayout(table boards.Table, p boards.Partitions) Layout {
	const mib = 1 << 20 / SectorSize
	align := int64(p.AlignKiB) * 1024 / SectorSize
	l := Layout{Table: table}
	end, gap := int64(0), int64(63)
	if table == boards.GPT {
		end, gap = gptFirstUsable, 0
	}
	for i, size := range []int{p.Boot, p.Rootfs, p.Rootfs, p.Data} {
		start := (end + gap + align - 1) / align * align
		l.Partitions = append(l.Partitions, Partition{Number: i + 1, Start: start, Sectors: int64(size) * mib})
		end = start + int64(size)*mib
	}
	l.Sectors = end
	if table == boards.GPT {
		l.Sectors = end + gptBackup
		l.BIOSBoot = Partition{Number: biosBootEntry, Start: gptFirstUsable, Sectors: l.Partitions[0].Start - gptFirstUsable}
	}
	return l
}

// Partition returns the partition of that number; it panics for a number that
// no layout has.
func (l Layout) Partition(number int) Partition { return l.Partitions[number-1] }

// CoreStart returns the sector at which GRUB's core.img lies, and how many
// sectors there are for it.
func (l Layout) CoreStart() (start, sectors int64) {
	if l.Table == boards.GPT {
		return l.BIOSBoot.Start, l.BIOSBoot.Sectors
	}
	return 1, l.Partitions[0].Start - 1
}

// GUID is a GUID in the byte order in which it is written as text.
type GUID [16]byte

// ParseGUID reads the usual text form.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("GUID %q: want 8-4-4-4-12 hexadecimal digits", s)
	}
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return g, fmt.Errorf("GUID %q: %w", s, err)
	}
	return GUID(b), nil
}

// String returns the text form in lower case, as PARTUUID= takes it.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// disk returns the bytes as GPT stores them: the first three groups little-endian.
func (g GUID) disk() [16]byte {
	return [16]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}

// IDs identify the disk. Partitions' ids follow from them.
type IDs struct {
	Signature uint32 // MBR disk signature, on GPT disks too
	GUID      GUID   // GPT disk GUID, last byte 0
}

// DeriveIDs returns LEDE's IMG_PART_SIGNATURE and GUID: cut from the MD5 of
// the epoch (seconds) and the kernel's vermagic, followed by a newline.
func DeriveIDs(epoch int64, vermagic string) IDs {
	sum := md5.Sum([]byte(strconv.FormatInt(epoch, 10) + vermagic + "\n"))
	id := IDs{GUID: GUID(sum)}
	id.GUID[15] = 0
	// The text's first eight digits are the number, stored little-endian.
	id.Signature = uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	return id
}

// Partition returns the unique GUID of GPT entry n: the disk's with n as the
// last byte.
func (id IDs) Partition(n int) GUID {
	g := id.GUID
	g[15] += byte(n)
	return g
}

// PartUUID returns what root=PARTUUID= takes for partition n.
func (id IDs) PartUUID(table boards.Table, n int) string {
	if table == boards.GPT {
		return id.Partition(n).String()
	}
	return fmt.Sprintf("%08x-%02x", id.Signature, n)
}
