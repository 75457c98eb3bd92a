package rootdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// Scheme is the kind of a partition table.
type Scheme int

// The schemes of LEDE's combined images.
const (
	MBR Scheme = iota + 1
	GPT
)

func (s Scheme) String() string {
	switch s {
	case MBR:
		return "MBR"
	case GPT:
		return "GPT"
	}
	return fmt.Sprintf("Scheme(%d)", int(s))
}

// ErrNoTable says that the disk carries neither a valid MBR nor a valid GPT.
var ErrNoTable = errors.New("no valid partition table")

// Table is a partition table. All positions are in logical sectors of
// SectorSize bytes.
type Table struct {
	Scheme     Scheme
	SectorSize int
	Sectors    uint64 // of the disk
	Signature  uint32 // bytes 440..443, present in both schemes
	DiskGUID   GUID   // GPT only
	Partitions []Partition

	// FromBackup says that the table at the start of the disk is damaged and
	// the copy at the end was used: the kernel sees no partitions until
	// RestorePrimary has run.
	FromBackup bool

	mbr     []byte // sector 0 as read
	header  []byte // the header sector the table was read from
	entries []byte // the array of entries as read
}

// Partition is one used entry of a table.
type Partition struct {
	Number   int // 1 is the first
	Start    uint64
	Sectors  uint64
	MBRType  byte   // MBR only
	TypeGUID GUID   // GPT only
	GUID     GUID   // GPT only
	Name     string // GPT only
}

// End returns the first sector behind the partition.
func (p Partition) End() uint64 { return p.Start + p.Sectors }

// Bounds for what is read from a disk, far above what partition tools write
// (128 entries of 128 bytes).
const (
	maxEntries   = 1024
	maxEntrySize = 1024
	mbrTypeGPT   = 0xee
)

// ReadTable reads the table of a disk of the given number of logical sectors.
// sectorSize is 512 or 4096. The error wraps ErrNoTable when the disk could be
// read but carries no table.
func ReadTable(r io.ReaderAt, sectors uint64, sectorSize int) (*Table, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("read partition table: logical sectors of %d bytes: expected 512 or 4096", sectorSize)
	}
	if sectors < 2 {
		return nil, fmt.Errorf("%w: the disk has %d sectors", ErrNoTable, sectors)
	}
	t := &Table{SectorSize: sectorSize, Sectors: sectors}
	t.mbr = make([]byte, sectorSize)
	if _, err := r.ReadAt(t.mbr, 0); err != nil {
		return nil, fmt.Errorf("read sector 0: %w", err)
	}
	if t.mbr[510] != 0x55 || t.mbr[511] != 0xaa {
		return nil, fmt.Errorf("%w: sector 0 does not end in 55 AA", ErrNoTable)
	}
	t.Signature = binary.LittleEndian.Uint32(t.mbr[440:])
	protective := false
	for i := range 4 {
		e := t.mbr[446+16*i:]
		if e[0]&0x7f != 0 { // the kernel's test too: block/partitions/msdos.c
			return nil, fmt.Errorf("%w: entry %d of sector 0 has boot flag %#x", ErrNoTable, i+1, e[0])
		}
		if e[4] == mbrTypeGPT {
			protective = true
		}
	}
	if protective {
		if err := t.readGPT(r); err != nil {
			return nil, err
		}
		return t, nil
	}
	t.Scheme = MBR
	for i := range 4 {
		e := t.mbr[446+16*i:]
		p := Partition{
			Number:  i + 1,
			MBRType: e[4],
			Start:   uint64(binary.LittleEndian.Uint32(e[8:])),
			Sectors: uint64(binary.LittleEndian.Uint32(e[12:])),
		}
		if p.MBRType == 0 || p.Sectors == 0 {
			continue
		}
		t.Partitions = append(t.Partitions, p)
	}
	if len(t.Partitions) == 0 {
		return nil, fmt.Errorf("%w: sector 0 has no used entry", ErrNoTable)
	}
	return t, nil
}

// readGPT takes the table at the start, else the copy in the last sector.
func (t *Table) readGPT(r io.ReaderAt) error {
	t.Scheme = GPT
	first := t.readHeader(r, 1)
	if first == nil {
		return nil
	}
	if second := t.readHeader(r, t.Sectors-1); second != nil {
		return fmt.Errorf("%w: sector 0 announces a GPT, but both copies are damaged: at the start: %w; at the end: %w", ErrNoTable, first, second)
	}
	t.FromBackup = true
	return nil
}

func (t *Table) readHeader(r io.ReaderAt, lba uint64) error {
	ss := uint64(t.SectorSize)
	h := make([]byte, ss)
	if _, err := r.ReadAt(h, int64(lba*ss)); err != nil {
		return fmt.Errorf("read GPT header in sector %d: %w", lba, err)
	}
	if string(h[:8]) != "EFI PART" {
		return fmt.Errorf("sector %d is no GPT header", lba)
	}
	size := binary.LittleEndian.Uint32(h[12:])
	if size < 92 || uint64(size) > ss {
		return fmt.Errorf("GPT header in sector %d has size %d: expected 92 to %d", lba, size, ss)
	}
	sum := binary.LittleEndian.Uint32(h[16:])
	if headerCRC(h) != sum {
		return fmt.Errorf("GPT header in sector %d has a wrong checksum", lba)
	}
	if at := binary.LittleEndian.Uint64(h[24:]); at != lba {
		return fmt.Errorf("GPT header in sector %d says it belongs into sector %d", lba, at)
	}
	array := binary.LittleEndian.Uint64(h[72:])
	count := binary.LittleEndian.Uint32(h[80:])
	entrySize := binary.LittleEndian.Uint32(h[84:])
	if count == 0 || count > maxEntries || entrySize < 128 || entrySize > maxEntrySize || entrySize%128 != 0 {
		return fmt.Errorf("GPT header in sector %d announces %d entries of %d bytes: expected at most %d of 128 to %d", lba, count, entrySize, maxEntries, maxEntrySize)
	}
	if array < 2 || array >= t.Sectors {
		return fmt.Errorf("GPT header in sector %d puts the entries into sector %d of %d", lba, array, t.Sectors)
	}
	entries := make([]byte, count*entrySize)
	if _, err := r.ReadAt(entries, int64(array*ss)); err != nil {
		return fmt.Errorf("read GPT entries from sector %d: %w", array, err)
	}
	if crc32.ChecksumIEEE(entries) != binary.LittleEndian.Uint32(h[88:]) {
		return fmt.Errorf("GPT entries in sector %d have a wrong checksum", array)
	}
	parts := []Partition{}
	for i := range int(count) {
		e := entries[i*int(entrySize):][:entrySize]
		p := Partition{Number: i + 1, TypeGUID: GUID(e[0:16]), GUID: GUID(e[16:32])}
		if p.TypeGUID.IsZero() {
			continue
		}
		start, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if last < start || last >= t.Sectors {
			// The kernel leaves such an entry out and takes the rest.
			continue
		}
		p.Start, p.Sectors = start, last-start+1
		p.Name = utf16Name(e[56:128])
		parts = append(parts, p)
	}
	t.DiskGUID = GUID(h[56:72])
	t.header, t.entries, t.Partitions = h, entries, parts
	return nil
}

func utf16Name(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// headerCRC is the checksum over the header with its own field taken as zero.
// The size field must have been checked.
func headerCRC(h []byte) uint32 {
	size := binary.LittleEndian.Uint32(h[12:])
	c := append([]byte(nil), h[:size]...)
	clear(c[16:20])
	return crc32.ChecksumIEEE(c)
}

// Partition returns the entry with the number, false when it is not in use.
func (t *Table) Partition(number int) (Partition, bool) {
	for _, p := range t.Partitions {
		if p.Number == number {
			return p, true
		}
	}
	return Partition{}, false
}

// Data returns the partition that holds the data file system: one named
// rootfs_data in a GPT (LEDE's name), else number 4 if the table has Weft's
// shape: a second root partition 3 as long as partition 2, and 4 right behind
// it. The shape keeps partitions that a user added to a stock layout from being
// taken for ours. False means the stock form: data lie behind the squashfs.
func (t *Table) Data() (Partition, bool) {
	for _, p := range t.Partitions {
		if p.Name == "rootfs_data" {
			return p, true
		}
	}
	p2, ok2 := t.Partition(2)
	p3, ok3 := t.Partition(3)
	p4, ok4 := t.Partition(4)
	// LEDE's alignment of 256 KiB and the MBR rule of 63 sectors allow small
	// gaps (facts, section 1.1); 4 MiB leaves room for other alignments.
	maxGap := uint64(4<<20) / uint64(t.SectorSize)
	if !ok2 || !ok3 || !ok4 || p2.Sectors != p3.Sectors || p4.Start < p3.End() || p4.Start-p3.End() > maxGap {
		return Partition{}, false
	}
	if t.Scheme == MBR && p4.MBRType != 0x83 {
		return Partition{}, false
	}
	return p4, true
}
