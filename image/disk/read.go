package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"weft/boards"
)

// ErrNoTable is wrapped when a disk has neither a GPT nor an MBR, or a damaged one.
var ErrNoTable = errors.New("no partition table")

// Read reads a disk image's partition table: the GPT if the MBR is a protective
// one, the MBR's four entries otherwise. Empty entries are left out; so is the
// BIOS boot partition, which is returned in its place.
func Read(r io.ReaderAt) (*Layout, error) {
	head := make([]byte, gptFirstUsable*SectorSize)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	if n < SectorSize || head[510] != 0x55 || head[511] != 0xaa {
		return nil, fmt.Errorf("read the partition table: %w", ErrNoTable)
	}
	if head[446+4] != typeProtective {
		l := &Layout{Table: boards.MBR}
		for i := range 4 {
			e := head[446+16*i:]
			p := Partition{i + 1, int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))}
			if p.Sectors > 0 {
				l.Partitions = append(l.Partitions, p)
				l.Sectors = max(l.Sectors, p.Start+p.Sectors)
			}
		}
		return l, nil
	}
	h := head[SectorSize:]
	if n < len(head) || string(h[:8]) != "EFI PART" {
		return nil, fmt.Errorf("read the GPT: %w", ErrNoTable)
	}
	entries := head[2*SectorSize:]
	if lba, count, size := binary.LittleEndian.Uint64(h[72:]), binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:]); lba != 2 || count != entryCount || size != entrySize {
		return nil, fmt.Errorf("read the GPT: %d entries of %d bytes at sector %d, want %d of %d at 2: %w", count, size, lba, entryCount, entrySize, ErrNoTable)
	}
	if got, want := crc32.ChecksumIEEE(entries), binary.LittleEndian.Uint32(h[88:]); got != want {
		return nil, fmt.Errorf("read the GPT: the entries' CRC is %08x, the header says %08x: %w", got, want, ErrNoTable)
	}
	l := &Layout{Table: boards.GPT, Sectors: int64(binary.LittleEndian.Uint64(h[32:])) + 1}
	for i := range entryCount {
		e := entries[entrySize*i:]
		first, last := int64(binary.LittleEndian.Uint64(e[32:])), int64(binary.LittleEndian.Uint64(e[40:]))
		if first <= 0 || last < first {
			continue
		}
		p := Partition{i + 1, first, last - first + 1}
		if p.Number == biosBootEntry {
			l.BIOSBoot = p
		} else {
			l.Partitions = append(l.Partitions, p)
		}
	}
	return l, nil
}
