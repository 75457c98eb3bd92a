package lab

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// copyChunk is the grain at which zeros become holes.
const copyChunk = 64 << 10

// CopyDisk writes the raw disk image src (.img, or .img.gz, with anything after the gzip stream ignored) to dst as a
// sparse file and grows it to size bytes; size 0 leaves it as long as the image.
func CopyDisk(ctx context.Context, dst, src string, size int64) (err error) {
	fail := func(err error) error { return fmt.Errorf("copy disk image %s: %w", src, err) }
	in, err := os.Open(src)
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = fail(cerr)
		}
	}()
	var n int64
	if strings.HasSuffix(src, ".gz") {
		z, err := gzip.NewReader(bufio.NewReaderSize(in, 1<<20))
		if err != nil {
			return fail(err)
		}
		z.Multistream(false) // the metadata trailer follows
		n, err = copySparse(ctx, out, z)
		if err != nil {
			return fail(err)
		}
	} else if n, err = copyData(ctx, out, in); err != nil {
		return fail(err)
	}
	if size != 0 && size < n {
		return fail(fmt.Errorf("it is %d bytes long, the disk was to have %d", n, size))
	}
	if err := out.Truncate(max(n, size)); err != nil {
		return fail(err)
	}
	return nil
}

// copySparse copies r to w, leaving holes where r has zeros, and returns the length.
func copySparse(ctx context.Context, w io.WriterAt, r io.Reader) (int64, error) {
	buf, zero := make([]byte, copyChunk), make([]byte, copyChunk)
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return off, context.Cause(ctx)
		}
		n, err := fill(r, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := w.WriteAt(buf[:n], off); err != nil {
				return off, err
			}
		}
		off += int64(n)
		if err == io.EOF {
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
}

// fill reads until buf is full or r ends; unlike io.ReadFull it keeps a short end (io.EOF) apart from a truncated
// gzip stream (io.ErrUnexpectedEOF).
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// copyData copies the parts of in that are not holes.
func copyData(ctx context.Context, out, in *os.File) (int64, error) {
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	for off := int64(0); off < info.Size(); {
		start, err := in.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // holes up to the end
		}
		if err != nil {
			return 0, err
		}
		end, err := in.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		if _, err := copySparse(ctx, io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, end-start)); err != nil {
			return 0, err
		}
		off = end
	}
	return info.Size(), nil
}

// Partition is one entry of a disk's partition table.
type Partition struct {
	Number        int
	Start, Length int64  // bytes
	Name          string // GPT only
	UUID          string // PARTUUID as the kernel spells it: "xxxxxxxx-nn" (MBR) or the unique GUID in lower case
}

const sector = 512

// Partitions reads the partition table of a raw disk: GPT if its header is there, else MBR. It trusts the table no
// further than it must: entries outside the disk are an error.
func Partitions(path string) ([]Partition, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	parts, err := readPartitions(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("read partition table of %s: %w", path, err)
	}
	return parts, nil
}

// readPartitions reads the table of a disk of size bytes. Source: UEFI specification 2.10, chapter 5.
func readPartitions(r io.ReaderAt, size int64) ([]Partition, error) {
	head := make([]byte, 2*sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return nil, errors.New("no boot signature 55 AA at byte 510")
	}
	var parts []Partition
	add := func(p Partition) error {
		if p.Start < 0 || p.Length <= 0 || p.Start > size || p.Length > size-p.Start {
			return fmt.Errorf("partition %d (bytes %d to %d) does not lie within the disk of %d bytes", p.Number, p.Start, p.Start+p.Length, size)
		}
		parts = append(parts, p)
		return nil
	}
	if string(head[sector:sector+8]) != "EFI PART" {
		for i := range 4 {
			e := head[446+16*i:][:16]
			if e[4] == 0 {
				continue
			}
			err := add(Partition{
				Number: i + 1,
				Start:  int64(binary.LittleEndian.Uint32(e[8:])) * sector,
				Length: int64(binary.LittleEndian.Uint32(e[12:])) * sector,
				UUID:   fmt.Sprintf("%08x-%02d", binary.LittleEndian.Uint32(head[440:]), i+1),
			})
			if err != nil {
				return nil, err
			}
		}
		return parts, nil
	}
	h := head[sector:]
	table, count, entry := binary.LittleEndian.Uint64(h[72:]), binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:])
	if entry < 128 || entry > 4096 || count > 1024 || table > uint64(size/sector) {
		return nil, fmt.Errorf("GPT header names %d entries of %d bytes at sector %d", count, entry, table)
	}
	for i := range int(count) {
		e := make([]byte, entry)
		if _, err := r.ReadAt(e, int64(table)*sector+int64(i)*int64(entry)); err != nil {
			return nil, fmt.Errorf("GPT entry %d: %w", i+1, err)
		}
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if limit := uint64(size / sector); first > limit || last >= limit || last < first {
			return nil, fmt.Errorf("partition %d (sectors %d to %d) does not lie within the disk of %d sectors", i+1, first, last, limit)
		}
		var name strings.Builder
		for j := 56; j < 128; j += 2 {
			c := binary.LittleEndian.Uint16(e[j:])
			if c == 0 {
				break
			}
			name.WriteRune(rune(c))
		}
		g := e[16:32]
		err := add(Partition{
			Number: i + 1,
			Start:  int64(first) * sector,
			Length: int64(last-first+1) * sector,
			Name:   name.String(),
			UUID: fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g), binary.LittleEndian.Uint16(g[4:]),
				binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:16]),
		})
		if err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// WriteDisk writes data at byte off of a raw disk that no machine is using.
func WriteDisk(path string, off int64, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write to disk: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write to disk %s: %w", filepath.Base(path), cerr)
		}
	}()
	if _, err := f.WriteAt(data, off); err != nil {
		return fmt.Errorf("write to disk %s at %d: %w", filepath.Base(path), off, err)
	}
	return nil
}

// EnsureDisk makes path a copy of image, grown to size, unless the file exists already.
func EnsureDisk(ctx context.Context, path, image string, size int64) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	part := path + ".part" // so that a copy that was broken off is not taken for a disk
	if err := CopyDisk(ctx, part, image, size); err != nil {
		os.Remove(part)
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return nil
}
