package sysupgrade

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"weft/image/firmware"
	"weft/image/firmware/trust"
	"weft/init/rootdisk"
)

// Kind is what an image is.
type Kind string

// The kinds.
const (
	KindWeft  Kind = "weft"  // two slots and a data partition: A/B
	KindStock Kind = "stock" // a disk image of LEDE/OpenWrt: replaces everything
)

// Bounds of what an image may claim.
const (
	headSize = 17 << 10 // the partition table: 34 sectors
	maxSpan  = 8 << 30  // where its last partition that we read may end
)

// Head is what the first bytes of an image and its trailers say.
type Head struct {
	Kind    Kind
	Table   *rootdisk.Table // of the image
	Trailer *firmware.File
	Info    *firmware.Info // nil: no metadata
	Gzip    bool

	first []byte // the first headSize bytes of the disk image
}

// ReadHead looks at both ends of an image. The error wraps ErrImage,
// firmware.ErrDamaged or what reading gave.
func ReadHead(ctx context.Context, src Source) (*Head, error) {
	h := &Head{}
	var err error
	if h.Trailer, err = firmware.Scan(src, src.Size()); err != nil {
		return nil, err
	}
	switch h.Info, err = h.Trailer.Info(); {
	case errors.Is(err, firmware.ErrNotFound):
		h.Info = nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrImage, err)
	}
	in := src.Stream(ctx)
	defer in.Close()
	plain, isGzip, err := h.plain(in)
	if err != nil {
		return nil, err
	}
	h.Gzip = isGzip
	h.first = make([]byte, headSize)
	if _, err := io.ReadFull(plain, h.first); err != nil {
		return nil, badImage("it ends within the partition table: %v", err)
	}
	if m := binary.BigEndian.Uint16(h.first); m != 0xeb48 && m != 0xeb63 {
		return nil, badImage("invalid image type: it begins with %04X, want EB48 or EB63 (a disk image for x86, gzipped or not)", m)
	}
	// As large as any disk: the image says nothing about where the disk ends.
	if h.Table, err = rootdisk.ReadTable(bytes.NewReader(h.first), 1<<40, sector); err != nil {
		return nil, fmt.Errorf("%w: its partition table: %w", ErrImage, err)
	}
	h.Kind = KindStock
	if _, ok := h.Table.Data(); ok {
		h.Kind = KindWeft
	}
	last := uint64(0)
	for _, n := range []int{1, 2} {
		p, ok := h.Table.Partition(n)
		if !ok {
			return nil, badImage("it has no partition %d", n)
		}
		if p.Start < last || p.Start == 0 || p.End() < p.Start || p.End() > maxSpan/sector {
			return nil, badImage("its partition %d lies at sector %d to %d", n, p.Start, p.End())
		}
		last = p.End()
	}
	return h, nil
}

// plain is the image without trailers and gzip.
func (h *Head) plain(in io.Reader) (io.Reader, bool, error) {
	buffered := bufio.NewReaderSize(io.LimitReader(in, h.Trailer.ImageSize), blockSize)
	magic, err := buffered.Peek(2)
	if err != nil {
		return nil, false, badImage("it is empty: %v", err)
	}
	if magic[0] != 0x1f || magic[1] != 0x8b {
		return buffered, false, nil
	}
	z, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, false, badImage("gzip: %v", err)
	}
	z.Multistream(false)
	return &gunzip{z}, true, nil
}

// gunzip names its errors.
type gunzip struct{ r *gzip.Reader }

func (g *gunzip) Read(b []byte) (int, error) {
	n, err := g.r.Read(b)
	if err != nil && err != io.EOF {
		if errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || isCorrupt(err) {
			err = fmt.Errorf("%w: gzip: %w", ErrImage, err)
		}
	}
	return n, err
}

// pass is one reading of an image from start to end. What is read is checked on
// the way: checksums of the trailers, signatures.
type pass struct {
	head    *Head
	src     Source
	in      io.ReadCloser
	plain   io.Reader
	pos     int64 // in the plain image
	file    *countingTee
	trailer *firmware.Checker
	sign    *trust.Checker
}

// countingTee hands what it reads to others.
type countingTee struct {
	r  io.Reader
	to []io.Writer
	n  int64
}

func (t *countingTee) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	for _, w := range t.to {
		_, _ = w.Write(b[:n]) // hashes never fail
	}
	t.n += int64(n)
	return n, err
}

func (h *Head) begin(ctx context.Context, src Source, keys *trust.Keyring, now time.Time) (*pass, error) {
	p := &pass{head: h, src: src, in: src.Stream(ctx), trailer: h.Trailer.Begin()}
	p.file = &countingTee{r: p.in, to: []io.Writer{p.trailer}}
	if keys != nil {
		p.sign = keys.Begin(h.Trailer, now)
		p.file.to = append(p.file.to, p.sign)
	}
	var err error
	if p.plain, _, err = h.plain(p.file); err != nil {
		p.in.Close()
		return nil, err
	}
	return p, nil
}

// skipTo passes over the image up to the byte off.
func (p *pass) skipTo(off int64) error {
	if off < p.pos {
		return badImage("its partitions overlap")
	}
	return p.copy(io.Discard, off-p.pos)
}

// copy hands the next n bytes of the image to w.
func (p *pass) copy(w io.Writer, n int64) error {
	buf := make([]byte, min(n, blockSize))
	for n > 0 {
		m, err := io.ReadFull(p.plain, buf[:min(n, int64(len(buf)))])
		p.pos += int64(m)
		n -= int64(m)
		if m > 0 {
			if _, werr := w.Write(buf[:m]); werr != nil {
				return werr
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return badImage("it ends at byte %d of its disk, within a partition", p.pos)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finish reads the rest of the file and gives the verdict on it. required is
// whether a signature must be there; signers are for reports.
func (p *pass) finish() (signers []trust.Signer, signed, err error) {
	if len(p.head.Trailer.Chunks) == 0 && p.head.Gzip {
		// Nothing but gzip's own checksum protects the bytes.
		if n, err := io.Copy(io.Discard, io.LimitReader(p.plain, maxSpan)); err != nil {
			return nil, nil, err
		} else if n == maxSpan {
			return nil, nil, badImage("it unpacks to more than %d GiB", maxSpan>>30)
		}
	}
	if _, err := io.CopyBuffer(onlyWriter{io.Discard}, p.file, make([]byte, blockSize)); err != nil {
		return nil, nil, err
	}
	if p.file.n != p.src.Size() {
		return nil, nil, badImage("%d bytes of %d came", p.file.n, p.src.Size())
	}
	if err := p.trailer.Finish(); err != nil {
		return nil, nil, err
	}
	if p.sign != nil {
		signers, signed = p.sign.Finish()
	}
	return signers, signed, nil
}

func (p *pass) close() { p.in.Close() }

// isCorrupt says whether gzip's data are at fault rather than what they came from.
func isCorrupt(err error) bool {
	var c flate.CorruptInputError
	return errors.As(err, &c)
}
