package sysupgrade

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"weft/init/rootdisk"
)

// StockTarget is the disk that a stock image is written to.
type StockTarget struct {
	Disk           Volume // whole
	Table          *rootdisk.Table
	SavePartitions bool // not sysupgrade -p
}

// Whole says whether a stock image replaces the whole disk, partition table and
// all, rather than the partitions that it has.
func (t *StockTarget) Whole(h *Head) bool {
	return !t.SavePartitions || missingLines(h.Table, t.Table) != ""
}

// span of the image that is written to the same place of the disk.
type piece struct {
	what       string
	start, end int64 // bytes
	from, to   []byte
}

// pieces lists what stock's platform_do_upgrade writes (compatibility facts,
// section 1.4), in the order of the image.
func (t *StockTarget) pieces(h *Head) ([]piece, error) {
	if t.Whole(h) {
		return []piece{{what: "the disk", end: -1}}, nil
	}
	var out []piece
	first := uint64(1 << 62)
	for _, p := range h.Table.Partitions {
		if h.Table.Scheme == rootdisk.GPT && p.Number > 15 {
			continue
		}
		one := piece{what: fmt.Sprintf("partition %d", p.Number), start: int64(p.Start) * sector, end: int64(p.End()) * sector}
		if p.Number == 1 && h.Table.Scheme == rootdisk.GPT {
			// The table stays, so p1's grub.cfg must name the disk's partition.
			of, ok1 := h.Table.Partition(2)
			is, ok2 := t.Table.Partition(2)
			if ok1 && ok2 {
				one.from, one.to = []byte(of.GUID.String()), []byte(is.GUID.String())
			}
		}
		out = append(out, one)
		first = min(first, p.Start)
	}
	// GRUB: what grub-bios-setup would embed from p1 is embedded in the image, in
	// the gap behind the MBR or in a partition of its own.
	if h.Table.Scheme == rootdisk.MBR {
		out = append(out, piece{what: "the boot loader", start: sector, end: int64(first) * sector})
	} else if core, ok := h.Table.Partition(128); ok {
		if is, ok := t.Table.Partition(128); ok && is.Start == core.Start && is.Sectors == core.Sectors {
			out = append(out, piece{what: "the boot loader", start: int64(core.Start) * sector, end: int64(core.End()) * sector})
		}
	}
	slices.SortFunc(out, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	for i := range out[1:] {
		if out[i].end > out[i+1].start {
			return nil, badImage("%s and %s overlap", out[i].what, out[i+1].what)
		}
	}
	return out, nil
}

// WriteStock writes a stock image the stock way. The image must have been
// validated, and must not lie on that disk: this is not undone by anything.
func WriteStock(ctx context.Context, src Source, h *Head, t *StockTarget, p *Progress) error {
	pieces, err := t.pieces(h)
	if err != nil {
		return err
	}
	pass, err := h.begin(ctx, src, nil, time.Time{}) // signatures were checked before
	if err != nil {
		return err
	}
	defer pass.close()
	p.step(StepWrite)
	type written struct {
		start, n int64
		sum      hash.Hash
		what     string
	}
	var done []written
	// The sector with boot code and table comes last: until then the old loader
	// is in charge.
	head := make([]byte, sector)
	if err := pass.copy(&fill{head}, sector); err != nil {
		return err
	}
	for _, one := range pieces {
		sum := sha256.New()
		start := max(one.start, sector)
		end := int64(1) << 62
		if one.end >= 0 {
			end = one.end
		}
		w := newSameWriter(t.Disk, one.what, start, end, sum, p)
		if err := pass.skipTo(start); err != nil {
			return err
		}
		if one.end < 0 {
			if _, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(pass.plain, maxSpan), make([]byte, blockSize)); err != nil {
				return fmt.Errorf("write the disk: %w", err)
			}
		} else {
			to := io.Writer(w)
			var r *replacer
			if len(one.from) > 0 {
				r = &replacer{w: w, from: one.from, to: one.to}
				to = r
			}
			if err := pass.copy(to, one.end-start); err != nil {
				return err
			}
			if r != nil {
				if err := r.flush(); err != nil {
					return err
				}
			}
		}
		if err := w.flush(); err != nil {
			return err
		}
		done = append(done, written{start, w.pos - start, sum, one.what})
	}
	first := head
	if !t.Whole(h) {
		// Boot code and the disk's id of the image, the table of the disk.
		first = make([]byte, sector)
		if _, err := t.Disk.ReadAt(first, 0); err != nil {
			return fmt.Errorf("read the first sector: %w", err)
		}
		copy(first[:444], head[:444])
	}
	if err := t.Disk.Sync(); err != nil {
		return fmt.Errorf("write the disk: %w", err)
	}
	if _, err := t.Disk.WriteAt(first, 0); err != nil {
		return fmt.Errorf("write the first sector: %w", err)
	}
	if err := t.Disk.Sync(); err != nil {
		return fmt.Errorf("write the disk: %w", err)
	}
	p.step(StepVerify)
	for _, d := range done {
		sum := sha256.New()
		if err := readBack(t.Disk, d.start, d.n, sum); err != nil {
			return fmt.Errorf("read %s back: %w", d.what, err)
		}
		if !bytes.Equal(sum.Sum(nil), d.sum.Sum(nil)) {
			return fmt.Errorf("%s: %w", d.what, ErrReadBack)
		}
	}
	return nil
}

// replacer replaces a text by one of the same length in what passes through.
type replacer struct {
	w        io.Writer
	from, to []byte
	held     []byte
}

func (r *replacer) Write(b []byte) (int, error) {
	buf := append(r.held, b...)
	buf = bytes.ReplaceAll(buf, r.from, r.to)
	keep := min(len(buf), len(r.from)-1)
	if _, err := r.w.Write(buf[:len(buf)-keep]); err != nil {
		return 0, err
	}
	r.held = append([]byte(nil), buf[len(buf)-keep:]...)
	return len(b), nil
}

func (r *replacer) flush() error {
	_, err := r.w.Write(r.held)
	r.held = nil
	return err
}

// ErrSettings says that the settings could not be handed over though the image
// was written.
var ErrSettings = errors.New("the image is written, but the settings could not be handed over")

// roomForSettings says whether p1 of the image can be mounted while the
// partitions of the running system are in use: the kernel refuses one that
// overlaps them.
func roomForSettings(h *Head, disk *rootdisk.Table) error {
	p1, _ := h.Table.Partition(1)
	for _, q := range disk.Partitions {
		if q.Number != 1 && p1.Start < q.End() && q.Start < p1.End() {
			return fmt.Errorf("the boot partition of the image (sectors %d to %d) reaches into partition %d of this disk, so that settings cannot be put there: save them with -b, write the image with -n, restore them afterwards",
				p1.Start, p1.End()-1, q.Number)
		}
	}
	return nil
}

// EndOfSlots is what a person must know before a stock image is written.
func EndOfSlots(h *Head, t *StockTarget) string {
	var s strings.Builder
	s.WriteString("this is no Weft image: the two slots end here; it takes the place of both systems, there is no trial and no fallback")
	if t.Whole(h) {
		s.WriteString("; the partition table is replaced, and with it the data partition and all that was added")
	}
	return s.String()
}
