package sysupgrade

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Volume is a partition, a disk or a file that is written.
type Volume interface {
	io.ReaderAt
	io.WriterAt
	// Sync brings everything to the medium.
	Sync() error
}

// Node is a Volume of the running system.
type Node struct{ *os.File }

// OpenNode opens a block device for writing; exclusively, so that a mounted one
// is refused.
func OpenNode(path string) (*Node, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open %s: it is in use (mounted?): %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	return &Node{f}, nil
}

// Forget drops what the kernel has of the volume in memory, so that what is read
// next comes from the medium.
func (n *Node) Forget() error {
	if _, err := unix.IoctlRetInt(int(n.Fd()), unix.BLKFLSBUF); err == nil {
		return nil
	}
	return unix.Fadvise(int(n.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// forget drops cached pages of a volume that can.
func forget(v Volume) {
	if f, ok := v.(interface{ Forget() error }); ok {
		_ = f.Forget() // without it the check reads memory, which catches less
	}
}

// blockSize is what is compared and written at a time.
const blockSize = 64 << 10

// sameWriter writes to a volume from an offset on, leaving out blocks that are
// there already: it spares the flash, and a repeated upgrade costs no writes.
type sameWriter struct {
	v    Volume
	pos  int64
	end  int64 // nothing is written from here on
	what string
	p    *Progress
	sum  hash.Hash // over everything, if set
	old  []byte
	buf  []byte
}

func newSameWriter(v Volume, what string, start, end int64, sum hash.Hash, p *Progress) *sameWriter {
	return &sameWriter{v: v, pos: start, end: end, what: what, p: p, sum: sum, old: make([]byte, blockSize), buf: make([]byte, 0, blockSize)}
}

func (w *sameWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		n := min(len(b), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return total - len(b), err
			}
		}
	}
	return total, nil
}

// flush writes what is held back.
func (w *sameWriter) flush() error {
	n := len(w.buf)
	if n == 0 {
		return nil
	}
	if w.pos+int64(n) > w.end {
		return fmt.Errorf("write %s: it does not fit, %d bytes are there", w.what, w.end)
	}
	if w.sum != nil {
		w.sum.Write(w.buf)
	}
	m, err := w.v.ReadAt(w.old[:n], w.pos)
	if m == n && (err == nil || err == io.EOF) && bytes.Equal(w.old[:n], w.buf) {
		w.p.wrote(0, int64(n))
	} else {
		if _, err := w.v.WriteAt(w.buf, w.pos); err != nil {
			return fmt.Errorf("write %s at byte %d: %w", w.what, w.pos, err)
		}
		w.p.wrote(int64(n), 0)
	}
	w.pos += int64(n)
	w.buf = w.buf[:0]
	return nil
}

// readBack hashes n bytes from start on as they are on the medium.
func readBack(v Volume, start, n int64, sum hash.Hash) error {
	forget(v)
	if _, err := io.CopyBuffer(onlyWriter{sum}, io.NewSectionReader(v, start, n), make([]byte, blockSize)); err != nil {
		return err
	}
	return nil
}

// onlyWriter hides what would make io.CopyBuffer ignore the buffer.
type onlyWriter struct{ io.Writer }
