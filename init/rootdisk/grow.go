package rootdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// alignment is the step that new ends of partitions are rounded down to, in
// bytes: what partition tools use today.
const alignment = 1 << 20

// Writer is a disk that can be written durably; *os.File is one.
type Writer interface {
	io.WriterAt
	Sync() error
}

// Growth is the outcome of planning: what to write so that a partition reaches
// the end of the disk.
type Growth struct {
	Partition Partition // as it will be
	From      uint64    // sectors before
	steps     [][]write // each step is on the medium before the next begins
}

type write struct {
	what string
	off  int64
	data []byte
}

// ErrNoGrowth says why a partition stays as it is; it is wrapped with the reason.
var ErrNoGrowth = errors.New("partition not grown")

// Grow plans the growth of a partition to the end of the disk. It never makes a
// partition smaller and touches no other one. The error wraps ErrNoGrowth when
// nothing is to be done: the partition ends at the end already, or another one
// lies behind it.
func (t *Table) Grow(number int) (*Growth, error) {
	p, ok := t.Partition(number)
	if !ok {
		return nil, fmt.Errorf("%w: the table has no partition %d", ErrNoGrowth, number)
	}
	for _, q := range t.Partitions {
		if q.Number != number && q.End() > p.Start {
			return nil, fmt.Errorf("%w: partition %d lies behind partition %d", ErrNoGrowth, q.Number, number)
		}
	}
	if err := t.roomForGPT(); err != nil {
		return nil, err
	}
	step := uint64(alignment / t.SectorSize)
	limit := t.Sectors
	if t.Scheme == GPT {
		limit -= 1 + t.entrySectors()
	} else {
		limit = min(limit, 1<<32-1) // start and length have 32 bits each
	}
	end := limit / step * step
	if end <= p.End() {
		return nil, fmt.Errorf("%w: partition %d ends at sector %d of %d already", ErrNoGrowth, number, p.End(), t.Sectors)
	}
	g := &Growth{Partition: p, From: p.Sectors}
	g.Partition.Sectors = end - p.Start
	if t.Scheme == MBR {
		mbr := append([]byte(nil), t.mbr...)
		e := mbr[446+16*(number-1):]
		putCHS(e[5:8], end-1)
		binary.LittleEndian.PutUint32(e[12:], uint32(g.Partition.Sectors))
		g.steps = [][]write{{{"MBR", 0, mbr[:t.SectorSize]}}}
		return g, nil
	}
	entries := append([]byte(nil), t.entries...)
	size := int(binary.LittleEndian.Uint32(t.header[84:]))
	binary.LittleEndian.PutUint64(entries[(number-1)*size+40:], end-1)
	g.steps = t.gptWrites(entries)
	return g, nil
}

// roomForGPT says why a GPT cannot be written in the usual place: something
// lies where its entries go. Some boards put their boot loader there.
func (t *Table) roomForGPT() error {
	if t.Scheme != GPT {
		return nil
	}
	n := t.entrySectors()
	if t.Sectors < 2*(n+2) {
		return fmt.Errorf("%w: a disk of %d sectors has no room for two tables", ErrNoGrowth, t.Sectors)
	}
	if array := binary.LittleEndian.Uint64(t.header[72:]); !t.FromBackup && array != 2 {
		return fmt.Errorf("%w: the entries of the GPT lie in sector %d instead of 2", ErrNoGrowth, array)
	}
	for _, p := range t.Partitions {
		if p.Start < 2+n {
			return fmt.Errorf("%w: partition %d begins in sector %d, inside the table", ErrNoGrowth, p.Number, p.Start)
		}
	}
	return nil
}

// RestorePrimary plans putting the table at the start of the disk back from the
// copy at the end. Nothing is planned for a table that was read from the start.
func (t *Table) RestorePrimary() (*Growth, error) {
	if !t.FromBackup {
		return &Growth{}, nil
	}
	if err := t.roomForGPT(); err != nil {
		return nil, err
	}
	return &Growth{steps: t.gptWrites(t.entries)[1:]}, nil
}

// entrySectors is the length of the array of entries, rounded up to sectors.
func (t *Table) entrySectors() uint64 {
	return (uint64(len(t.entries)) + uint64(t.SectorSize) - 1) / uint64(t.SectorSize)
}

// gptWrites lays a GPT with these entries over the whole disk: the copy at the
// end in the first step, sector 0, header and entries at the start in the
// second and as one write, so that a torn write is as unlikely as it can be.
func (t *Table) gptWrites(entries []byte) [][]write {
	ss, n := uint64(t.SectorSize), t.entrySectors()
	last := t.Sectors - 1
	header := func(own, alternate, array uint64) []byte {
		h := append([]byte(nil), t.header...)
		binary.LittleEndian.PutUint64(h[24:], own)
		binary.LittleEndian.PutUint64(h[32:], alternate)
		binary.LittleEndian.PutUint64(h[48:], last-n-1) // last usable
		binary.LittleEndian.PutUint64(h[72:], array)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
		return h
	}
	padded := make([]byte, n*ss)
	copy(padded, entries)

	mbr := append([]byte(nil), t.mbr...)
	for i := range 4 {
		if e := mbr[446+16*i:]; e[4] == mbrTypeGPT {
			start := uint64(binary.LittleEndian.Uint32(e[8:]))
			if start < t.Sectors {
				binary.LittleEndian.PutUint32(e[12:], uint32(min(t.Sectors-start, 0xffffffff)))
			}
		}
	}
	first := append(append(mbr, header(1, last, 2)...), padded...)
	return [][]write{
		{
			{"entries of the GPT copy", int64((last - n) * ss), padded},
			{"header of the GPT copy", int64(last * ss), header(last, 1, last-n)},
		},
		{{"GPT", 0, first}},
	}
}

// putCHS writes the old address of a sector with 16 heads of 63 sectors, as
// LEDE's ptgen does, or the mark for "beyond" (1023/254/63).
func putCHS(b []byte, lba uint64) {
	c, h, s := lba/(16*63), lba/63%16, lba%63+1
	if c > 1023 {
		c, h, s = 1023, 254, 63
	}
	b[0], b[1], b[2] = byte(h), byte(s)|byte(c>>2&0xc0), byte(c)
}

// Apply writes the plan in its order; each step is on the medium before the
// next one begins. It may be repeated.
func (g *Growth) Apply(w Writer) error {
	for _, step := range g.steps {
		for _, wr := range step {
			if _, err := w.WriteAt(wr.data, wr.off); err != nil {
				return fmt.Errorf("write %s at byte %d: %w", wr.what, wr.off, err)
			}
		}
		if err := w.Sync(); err != nil {
			return fmt.Errorf("bring %s to the medium: %w", step[0].what, err)
		}
	}
	return nil
}
