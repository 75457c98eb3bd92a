package power

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"

	"golang.org/x/sys/unix"
)

// Sector is the number of bytes that a disk writes whole or not at all.
const Sector = 512

// ErrRange is returned for an access that does not lie within the disk, or not on bytes that its sectors allow.
var ErrRange = errors.New("outside of the disk")

// extent is a run of bytes that differ from the base.
type extent struct {
	from, to int64 // bytes of the disk
	data     int64 // where they are in the log's data; zeros if negative
}

// extents are sorted and do not overlap.
type extents []extent

// find is the index of the first extent that ends after off.
func (x extents) find(off int64) int {
	return sort.Search(len(x), func(i int) bool { return x[i].to > off })
}

// put lays e over what is there.
func (x *extents) put(e extent) {
	if e.from >= e.to {
		return
	}
	list := *x
	i := list.find(e.from)
	j := i
	var keep [3]extent
	n := 0
	if i < len(list) && list[i].from < e.from {
		head := list[i]
		head.to = e.from
		keep[n] = head
		n++
	}
	keep[n] = e
	n++
	for j < len(list) && list[j].to <= e.to {
		j++
	}
	if j < len(list) && list[j].from < e.to {
		tail := list[j]
		if tail.data >= 0 {
			tail.data += e.to - tail.from
		}
		tail.from = e.to
		keep[n] = tail
		n++
		j++
	}
	if grow := n - (j - i); grow > 0 {
		list = append(list, keep[:grow]...) // room; the content is moved over below
		copy(list[j+grow:], list[j:len(list)-grow])
	} else if grow < 0 {
		copy(list[j+grow:], list[j:])
		list = list[:len(list)+grow]
	}
	copy(list[i:], keep[:n])
	*x = list
}

// Disk is a raw disk whose writes go to a log. It may be used by any number of goroutines.
type Disk struct {
	base io.ReaderAt
	size int64
	log  *Log

	mu      sync.Mutex
	written extents
}

// NewDisk is a view of size bytes of base, zeros behind its end, whose writes are kept in log.
func NewDisk(base io.ReaderAt, size int64, log *Log) (*Disk, error) {
	if size <= 0 || size%Sector != 0 {
		return nil, fmt.Errorf("disk of %d bytes: a positive multiple of %d is expected", size, Sector)
	}
	return &Disk{base: base, size: size, log: log}, nil
}

// Size is the disk's, in bytes.
func (d *Disk) Size() int64 { return d.size }

func (d *Disk) check(off, length int64) error {
	if off < 0 || length < 0 || off > d.size || length > d.size-off {
		return fmt.Errorf("%d bytes at %d of %d: %w", length, off, d.size, ErrRange)
	}
	return nil
}

// ReadAt reads what was written last; unlike a file it has no end to run into: reads beyond the size fail with [ErrRange].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	end := off + int64(len(p))
	for i, at := d.written.find(off), off; at < end; {
		next := end
		if i < len(d.written) {
			next = min(end, d.written[i].from)
		}
		if at < next { // before the extent: the base
			n, err := d.base.ReadAt(p[at-off:next-off], at)
			if err != nil && err != io.EOF {
				return 0, fmt.Errorf("read the base image at %d: %w", at, err)
			}
			clear(p[at-off+int64(n) : next-off])
			at = next
			continue
		}
		e := d.written[i]
		next = min(end, e.to)
		part := p[at-off : next-off]
		if e.data < 0 {
			clear(part)
		} else if err := d.log.read(part, e.data+at-e.from); err != nil {
			return 0, err
		}
		at = next
		i++
	}
	return len(p), nil
}

// WriteAt writes to the disk's cache; fua (force unit access) makes this write durable at once.
func (d *Disk) writeAt(p []byte, off int64, fua bool) error {
	if err := d.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	data, err := d.log.add(Op{Kind: Write, Off: off, Len: int64(len(p)), FUA: fua}, p)
	if err != nil {
		return err
	}
	d.written.put(extent{off, off + int64(len(p)), data})
	return nil
}

// WriteAt writes to the disk's cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.writeAt(p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// zero makes bytes zero: kind is Zero or Trim. What is trimmed reads as zeros, the least that anybody may rely on.
func (d *Disk) zero(kind Kind, off, length int64, fua bool) error {
	if err := d.check(off, length); err != nil || length == 0 {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.log.add(Op{Kind: kind, Off: off, Len: length, FUA: fua}, nil); err != nil {
		return err
	}
	d.written.put(extent{off, off + length, -1})
	return nil
}

// Flush makes durable what was written.
func (d *Disk) Flush() error {
	_, err := d.log.add(Op{Kind: Flush}, nil)
	return err
}

// Save writes the disk to a raw sparse file: for foreign programs, and for machines that are to boot it fast. A base that
// is a file is copied by the kernel, holes left out.
func (d *Disk) Save(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the disk: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("save the disk to %s: %w", path, err)
		}
	}()
	if err := f.Truncate(d.size); err != nil {
		return err
	}
	return d.save(f)
}

func (d *Disk) save(f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	switch base := d.base.(type) {
	case *Disk:
		err = base.save(f)
	case *os.File:
		err = copyFile(f, base, d.size)
	default:
		_, err = io.Copy(io.NewOffsetWriter(f, 0), io.NewSectionReader(base, 0, d.size))
	}
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for _, e := range d.written {
		if e.data < 0 {
			const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
			if unix.Fallocate(int(f.Fd()), punch, e.from, e.to-e.from) == nil {
				continue
			}
		}
		for at := e.from; at < e.to; {
			part := buf[:min(int64(len(buf)), e.to-at)]
			clear(part)
			if e.data >= 0 {
				if err := d.log.read(part, e.data+at-e.from); err != nil {
					return err
				}
			}
			if _, err := f.WriteAt(part, at); err != nil {
				return err
			}
			at += int64(len(part))
		}
	}
	return nil
}

// copyFile copies the parts of a file that are no holes, up to size.
func copyFile(to, from *os.File, size int64) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	end := min(size, info.Size())
	for off := int64(0); off < end; {
		start, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && start >= end {
			return nil // holes up to the end
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, min(hole, end)-start)); err != nil {
			return err
		}
		off = hole
	}
	return nil
}
