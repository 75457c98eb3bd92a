package disk

import (
	"encoding/binary"
	"hash/crc32"

	"weft/boards"
)

const (
	entryCount = 128
	entrySize  = 128

	typeLinux      = 0x83 // MBR type of every partition, the FAT one included: LEDE's
	typeProtective = 0xee

	// attrLegacyBoot is GPT attribute bit 2: BIOS boot code may start it.
	attrLegacyBoot = 1 << 2
)

// The partition type GUIDs. The boot partition is not typed as an EFI system
// partition on x86, as on LEDE: firmware looks into every FAT partition.
var (
	guidLinux    = mustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
	guidBIOSBoot = mustGUID("21686148-6449-6e6f-744e-656564454649")
)

func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return g
}

// bootSector returns sector 0: the boot code (at most 440 bytes are used), the
// disk signature and the partition entries, protective ones on GPT.
func bootSector(l Layout, id IDs, code []byte) []byte {
	s := make([]byte, SectorSize)
	copy(s[:440], code)
	binary.LittleEndian.PutUint32(s[440:], id.Signature)
	s[510], s[511] = 0x55, 0xaa
	if l.Table == boards.GPT {
		putEntry(s[446:], 0, typeProtective, 1, l.Sectors-1, 254)
		return s
	}
	for i, p := range l.Partitions {
		active := byte(0)
		if p.Number == Boot {
			active = 0x80
		}
		putEntry(s[446+16*i:], active, typeLinux, p.Start, p.Sectors, 16)
	}
	return s
}

// putEntry writes an MBR entry; CHS by a disk of that many heads and 63
// sectors a track.
func putEntry(b []byte, active, typ byte, start, sectors, heads int64) {
	b[0], b[4] = active, typ
	putCHS(b[1:4], start, heads)
	putCHS(b[5:8], start+sectors-1, heads)
	binary.LittleEndian.PutUint32(b[8:], uint32(start))
	binary.LittleEndian.PutUint32(b[12:], uint32(sectors))
}

func putCHS(b []byte, lba, heads int64) {
	const perTrack = 63
	s := lba%perTrack + 1
	h := lba / perTrack % heads
	c := lba / perTrack / heads
	if c > 1023 { // beyond what the form can say: the agreed highest value
		c, h, s = 1023, heads-1, perTrack
	}
	b[0] = byte(h)
	b[1] = byte(s | c>>2&0xc0)
	b[2] = byte(c)
}

// gpt returns the primary header and entries (sectors 1 to 33) and the backup
// (entries, then header; the image's last 33 sectors). LEDE writes no backup
// but names the place where it would be, the last usable sector + 33; ours is
// there.
func gpt(l Layout, id IDs) (primary, backup []byte) {
	entries := make([]byte, entryCount*entrySize)
	put := func(p Partition, typ GUID, attrs uint64) {
		e := entries[(p.Number-1)*entrySize:]
		t, u := typ.disk(), id.Partition(p.Number).disk()
		copy(e, t[:])
		copy(e[16:], u[:])
		binary.LittleEndian.PutUint64(e[32:], uint64(p.Start))
		binary.LittleEndian.PutUint64(e[40:], uint64(p.Start+p.Sectors-1))
		binary.LittleEndian.PutUint64(e[48:], attrs)
	}
	for _, p := range l.Partitions {
		attrs := uint64(0)
		if p.Number == Boot {
			attrs = attrLegacyBoot
		}
		put(p, guidLinux, attrs)
	}
	put(l.BIOSBoot, guidBIOSBoot, 0)

	last := l.Sectors - 1
	header := func(self, other, table int64) []byte {
		h := make([]byte, SectorSize)
		copy(h, "EFI PART")
		binary.LittleEndian.PutUint32(h[8:], 0x00010000)
		binary.LittleEndian.PutUint32(h[12:], 92)
		binary.LittleEndian.PutUint64(h[24:], uint64(self))
		binary.LittleEndian.PutUint64(h[32:], uint64(other))
		binary.LittleEndian.PutUint64(h[40:], gptFirstUsable)
		binary.LittleEndian.PutUint64(h[48:], uint64(last-gptBackup))
		g := id.GUID.disk()
		copy(h[56:], g[:])
		binary.LittleEndian.PutUint64(h[72:], uint64(table))
		binary.LittleEndian.PutUint32(h[80:], entryCount)
		binary.LittleEndian.PutUint32(h[84:], entrySize)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}
	primary = append(header(1, last, 2), entries...)
	backup = append(append([]byte(nil), entries...), header(last, 1, last-gptBackup+1)...)
	return primary, backup
}
