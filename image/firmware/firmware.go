// Package firmware writes and reads the trailers that LEDE's fwtool puts behind
// a firmware image, and the metadata inside. It is used by the builder and on
// the device, and stands on the standard library alone.
//
// A trailer is the last 16 bytes of a chunk, big-endian: magic "FWx0", CRC-32
// without the final inversion over every byte of the file before the trailer,
// type, three zero bytes, size of the chunk. A metadata chunk starts with a
// header of 8 zero bytes. Chunks stack up behind the image: first the metadata,
// then the signature. (openwrt/fwtool fwimage.h, fwtool.c.)
//
// The package does not decide whether an image fits a device and does not
// check signatures; it says what is there and that it is undamaged.
package firmware

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

const (
	trailerSize = 16
	headerSize  = 8          // before a metadata payload: version 0, flags 0
	magic       = 0x46577830 // "FWx0"

	// MaxMetadata and MaxSignature are fwtool's limits of a payload, in bytes.
	MaxMetadata  = 30 << 10
	MaxSignature = 1 << 10

	// maxChunks bounds what a scan walks through. Two is what builds write.
	maxChunks = 8
	// tailSize is what Split holds back: room for every chunk that may be there.
	tailSize = maxChunks * (MaxMetadata + headerSize + trailerSize)
)

// Kind is what a chunk holds.
type Kind uint8

// The kinds of chunk, with the type byte of the trailer.
const (
	Signature Kind = 0
	Metadata  Kind = 1
)

// String returns the kind as messages name it.
func (k Kind) String() string {
	switch k {
	case Signature:
		return "signature"
	case Metadata:
		return "metadata"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (k Kind) limit() int {
	if k == Metadata {
		return MaxMetadata
	}
	return MaxSignature
}

func (k Kind) header() int {
	if k == Metadata {
		return headerSize
	}
	return 0
}

// Errors that callers tell apart. ErrDamaged is a trailer that cannot be, or a
// CRC that does not match; ErrTooLarge a payload beyond fwtool's limit;
// ErrNotFound a chunk that is not there.
var (
	ErrDamaged  = errors.New("damaged firmware trailer")
	ErrTooLarge = errors.New("too large for a firmware trailer")
	ErrNotFound = errors.New("not found in the image")
)

// Chunk is one trailer with what it covers.
type Chunk struct {
	Kind    Kind
	Offset  int64  // of the chunk's first byte in the file
	Size    int64  // of the whole chunk: header, payload, trailer
	CRC     uint32 // as stored
	Payload []byte
}

// File describes an image file by its trailers.
type File struct {
	ImageSize int64   // bytes before the first chunk
	Chunks    []Chunk // in the order of the file
}

// Payload returns the payload of the last chunk of that kind, or ErrNotFound.
func (f *File) Payload(k Kind) ([]byte, error) {
	for i := len(f.Chunks) - 1; i >= 0; i-- {
		if f.Chunks[i].Kind == k {
			return f.Chunks[i].Payload, nil
		}
	}
	return nil, fmt.Errorf("%s %w", k, ErrNotFound)
}

// Signed returns how many bytes of the file the signature covers: everything
// before its chunk. Without a signature it is the whole file.
func (f *File) Signed() int64 {
	end := f.ImageSize
	for _, c := range f.Chunks {
		if c.Kind == Signature {
			return c.Offset
		}
		end = c.Offset + c.Size
	}
	return end
}

// Scan finds the trailers at the end of a file of the given size. It reads
// only them and checks no CRC (see Verify). A file without trailers is no
// error: its File has no chunks.
func Scan(r io.ReaderAt, size int64) (*File, error) {
	f := &File{ImageSize: size}
	for len(f.Chunks) < maxChunks {
		c, err := scanOne(r, f.ImageSize)
		if err != nil {
			return nil, err
		}
		if c == nil {
			break
		}
		f.Chunks = append([]Chunk{*c}, f.Chunks...)
		f.ImageSize = c.Offset
	}
	return f, nil
}

// scanOne reads the chunk that ends at the offset end; nil if there is none.
func scanOne(r io.ReaderAt, end int64) (*Chunk, error) {
	if end < trailerSize {
		return nil, nil
	}
	var t [trailerSize]byte
	if _, err := r.ReadAt(t[:], end-trailerSize); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the firmware trailer at byte %d: %w", end-trailerSize, err)
	}
	if binary.BigEndian.Uint32(t[0:]) != magic {
		return nil, nil
	}
	k := Kind(t[8])
	size := int64(binary.BigEndian.Uint32(t[12:]))
	payload := size - trailerSize - int64(k.header())
	if t[9]|t[10]|t[11] != 0 {
		return nil, fmt.Errorf("trailer at byte %d: bytes 9 to 11 are %x, want zeros: %w", end-trailerSize, t[9:12], ErrDamaged)
	}
	if k > Metadata || payload < 0 || size > end || payload > int64(k.limit()) {
		return nil, fmt.Errorf("trailer at byte %d: %s of %d bytes in a file of %d: %w", end-trailerSize, k, size, end, ErrDamaged)
	}
	c := &Chunk{Kind: k, Offset: end - size, Size: size, CRC: binary.BigEndian.Uint32(t[4:]), Payload: make([]byte, payload)}
	if _, err := r.ReadAt(c.Payload, c.Offset+int64(k.header())); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the %s at byte %d: %w", k, c.Offset, err)
	}
	return c, nil
}

// Verify reads the file once from start to end and checks the CRC of every
// chunk. The error of a mismatch wraps ErrDamaged.
func (f *File) Verify(r io.Reader) error {
	c := f.Begin()
	if n, err := io.CopyN(c, r, c.end()); err != nil {
		return fmt.Errorf("check the trailers of the image: read byte %d: %w", n, err)
	}
	return c.Finish()
}

// Checker is a Verify that is given the file piece by piece.
type Checker struct {
	file *File
	crc  crcWriter
	pos  int64
	next int // chunk whose CRC is due next
	err  error
}

// Begin starts a Checker for a file that Scan has described.
func (f *File) Begin() *Checker { return &Checker{file: f} }

// end is the last byte that counts.
func (c *Checker) end() int64 {
	if n := len(c.file.Chunks); n > 0 {
		return c.due(n - 1)
	}
	return 0
}

// due is where the CRC of a chunk is taken: before its trailer.
func (c *Checker) due(n int) int64 {
	k := c.file.Chunks[n]
	return k.Offset + k.Size - trailerSize
}

// Write takes the next piece of the file. It never fails.
func (c *Checker) Write(b []byte) (int, error) {
	total := len(b)
	for c.next < len(c.file.Chunks) && c.err == nil && c.due(c.next)-c.pos <= int64(len(b)) {
		n := c.due(c.next) - c.pos
		_, _ = c.crc.Write(b[:n])
		c.pos += n
		b = b[n:]
		k := c.file.Chunks[c.next]
		c.err = k.check(c.crc.crc)
		c.next++
	}
	if c.next < len(c.file.Chunks) {
		_, _ = c.crc.Write(b)
	}
	c.pos += int64(len(b))
	return total, nil
}

// Finish says whether every CRC fits; its error wraps ErrDamaged.
func (c *Checker) Finish() error {
	_, _ = c.Write(nil) // a CRC that is due here may be of nothing
	if c.err == nil && c.next < len(c.file.Chunks) {
		k := c.file.Chunks[c.next]
		return fmt.Errorf("%s at byte %d: the file ends before it: %w", k.Kind, k.Offset, ErrDamaged)
	}
	return c.err
}

func (c *Chunk) check(crc uint32) error {
	if got := ^crc; got != c.CRC {
		return fmt.Errorf("%s at byte %d: CRC %08x, the file before it gives %08x: %w", c.Kind, c.Offset, c.CRC, got, ErrDamaged)
	}
	return nil
}

// crcWriter keeps zlib's CRC-32; fwtool's is its complement.
type crcWriter struct{ crc uint32 }

func (w *crcWriter) Write(p []byte) (int, error) {
	w.crc = crc32.Update(w.crc, crc32.IEEETable, p)
	return len(p), nil
}

// Writer passes an image through and appends chunks to it.
type Writer struct {
	w    io.Writer
	crc  crcWriter
	size int64
}

// NewWriter returns a Writer on w, which must be at the start of the file.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes bytes of the image.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	_, _ = w.crc.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// Append writes a chunk. The error of a payload beyond the limit wraps ErrTooLarge.
func (w *Writer) Append(k Kind, payload []byte) error {
	if k > Metadata {
		return fmt.Errorf("append %s: fwtool knows signature and metadata only", k)
	}
	if len(payload) > k.limit() {
		return fmt.Errorf("append %s of %d bytes: %w (limit %d)", k, len(payload), ErrTooLarge, k.limit())
	}
	body := append(make([]byte, k.header()), payload...)
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("append %s: %w", k, err)
	}
	var t [trailerSize]byte
	binary.BigEndian.PutUint32(t[0:], magic)
	binary.BigEndian.PutUint32(t[4:], ^w.crc.crc)
	t[8] = byte(k)
	binary.BigEndian.PutUint32(t[12:], uint32(len(body)+trailerSize))
	if _, err := w.Write(t[:]); err != nil {
		return fmt.Errorf("append %s: %w", k, err)
	}
	return nil
}

// AppendFile appends a chunk to an existing file.
func AppendFile(path string, k Kind, payload []byte) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("append %s: %w", k, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("append %s to %s: %w", k, path, cerr)
		}
	}()
	w := NewWriter(f)
	if _, err := io.Copy(&w.crc, f); err != nil { // leaves f at its end
		return fmt.Errorf("append %s: read %s: %w", k, path, err)
	}
	return w.Append(k, payload)
}

// Split copies the image from src to dst without its trailers, and returns what
// the trailers hold, their CRCs checked. It needs no seeking: the last
// quarter MiB is held back until the end shows what is image and what is not.
// dst has received the whole image even when the error wraps ErrDamaged, as
// fwtool -T does.
func Split(dst io.Writer, src io.Reader) (*File, error) {
	var (
		crc     crcWriter // over what went to dst
		written int64
		tail    []byte // held back
		buf     = make([]byte, 64<<10)
	)
	out := func(p []byte) error {
		_, _ = crc.Write(p)
		n, err := dst.Write(p)
		written += int64(n)
		if err != nil {
			return fmt.Errorf("write the image at byte %d: %w", written, err)
		}
		return nil
	}
	for {
		n, err := src.Read(buf)
		tail = append(tail, buf[:n]...)
		if len(tail) >= 2*tailSize {
			if err := out(tail[:len(tail)-tailSize]); err != nil {
				return nil, err
			}
			tail = append(tail[:0], tail[len(tail)-tailSize:]...)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the image at byte %d: %w", written+int64(len(tail)), err)
		}
	}
	f, scanErr := Scan(bytes.NewReader(tail), int64(len(tail)))
	if scanErr != nil {
		f = &File{ImageSize: int64(len(tail))}
	}
	held := f.ImageSize
	if err := out(tail[:held]); err != nil {
		return nil, err
	}
	f.ImageSize = written
	for i := range f.Chunks {
		c := &f.Chunks[i]
		body := tail[c.Offset : c.Offset+c.Size]
		_, _ = crc.Write(body[:len(body)-trailerSize])
		if scanErr == nil {
			scanErr = c.check(crc.crc)
		}
		_, _ = crc.Write(body[len(body)-trailerSize:])
		c.Offset += written - held
	}
	if scanErr != nil {
		return nil, scanErr
	}
	return f, nil
}
