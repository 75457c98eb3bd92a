package sysupgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Source is an image file.
type Source interface {
	// Name is how messages call it.
	Name() string
	// Size is the length of the file in bytes.
	Size() int64
	// ReadAt is for small pieces, the trailers at the end.
	io.ReaderAt
	// Stream reads from the start to the end.
	Stream(ctx context.Context) io.ReadCloser
	// Twice says that reading everything a second time costs little.
	Twice() bool
	Close() error
}

// File is a Source on this device.
type File struct {
	*os.File
	size int64
	temp bool
}

// OpenFile opens an image file. It must be a regular one.
func OpenFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the image: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open the image: %w", err)
	}
	return &File{File: f, size: st.Size()}, nil
}

// Size implements Source.
func (f *File) Size() int64 { return f.size }

// Twice implements Source.
func (f *File) Twice() bool { return true }

// Stream implements Source.
func (f *File) Stream(ctx context.Context) io.ReadCloser {
	return io.NopCloser(&ctxReader{ctx, io.NewSectionReader(f.File, 0, f.size)})
}

// Close implements Source; a spooled file is removed.
func (f *File) Close() error {
	if f.temp {
		os.Remove(f.Name())
	}
	return f.File.Close()
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// spoolReserve is what a spooled image leaves free of the data file system.
const spoolReserve = 16 << 20

// Spool keeps what can be read only once, standard input or a server that knows
// no ranges, as a file in a folder on a disk. It stops before the file system is
// full.
func Spool(ctx context.Context, r io.Reader, dir string, p *Progress) (*File, error) {
	fail := func(err error) (*File, error) {
		return nil, fmt.Errorf("keep the image on the data partition: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	path := filepath.Join(dir, "image")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	out := &File{File: f, temp: true}
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			out.Close()
			return fail(err)
		}
		n, err := r.Read(buf)
		if n > 0 {
			if free, ferr := freeBytes(dir); ferr == nil && free < spoolReserve+int64(n) {
				out.Close()
				return fail(fmt.Errorf("%s has %d MiB left and the image has not ended after %d MiB: give sysupgrade a file on another disk, or a URL of a server that answers ranges", dir, free>>20, out.size>>20))
			}
			if _, werr := f.Write(buf[:n]); werr != nil {
				out.Close()
				return fail(werr)
			}
			out.size += int64(n)
			p.fetched(int64(n), 0)
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			out.Close()
			return fail(err)
		}
	}
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// ErrNoRanges says that a server does not answer range requests.
var ErrNoRanges = errors.New("the server answers no range requests")

// ErrNotThere says that the server has no such file.
var ErrNotThere = errors.New("the server has no such file")

// Remote is a Source on a web server.
type Remote struct {
	client *http.Client
	url    string
	size   int64
	tag    string // ETag or Last-Modified: the file must not change under us
	retry  Retry
	p      *Progress

	tail []byte // the end of the file, fetched once
}

// Retry says how long a broken connection is taken up again.
type Retry struct {
	Idle  time.Duration // without a byte for so long: broken; default 60 s
	Pause time.Duration // before the first new try, doubled up to 30 s; default 1 s
	Tries int           // in a row without a byte; default 10
}

func (r Retry) defaults() Retry {
	if r.Idle == 0 {
		r.Idle = time.Minute
	}
	if r.Pause == 0 {
		r.Pause = time.Second
	}
	if r.Tries == 0 {
		r.Tries = 10
	}
	return r
}

// tailSize is read of a file's end: room for all trailers.
const tailSize = 280 << 10

// IsURL says whether a sysupgrade argument is fetched.
func IsURL(s string) bool { return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") }

// OpenURL asks the server for the file's length and its end. The error wraps
// ErrNoRanges or ErrNotThere where that is the trouble.
func OpenURL(ctx context.Context, client *http.Client, url string, retry Retry, p *Progress) (*Remote, error) {
	r := &Remote{client: client, url: url, retry: retry.defaults(), p: p}
	// The end is asked for by its distance: one request for length and trailers.
	body, err := r.request(ctx, fmt.Sprintf("bytes=-%d", tailSize))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if r.tail, err = io.ReadAll(io.LimitReader(body, tailSize+1)); err != nil {
		return nil, fmt.Errorf("fetch the end of %s: %w", url, err)
	}
	p.fetched(int64(len(r.tail)), 0)
	if int64(len(r.tail)) != min(r.size, tailSize) {
		return nil, fmt.Errorf("fetch the end of %s: %d bytes came of a file of %d: %w", url, len(r.tail), r.size, ErrNoRanges)
	}
	return r, nil
}

// request asks for a range and checks that the answer is that range of the same
// file.
func (r *Remote) request(ctx context.Context, ranges string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	idle := time.AfterFunc(r.retry.Idle, func() {
		cancel(fmt.Errorf("nothing came for %s", r.retry.Idle))
	})
	fail := func(err error) (io.ReadCloser, error) {
		idle.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, fmt.Errorf("fetch %s: %w", r.url, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("User-Agent", "weft-sysupgrade")
	req.Header.Set("Range", ranges)
	resp, err := r.client.Do(req)
	if err != nil {
		return fail(err)
	}
	bad := func(err error) (io.ReadCloser, error) {
		resp.Body.Close()
		return fail(err)
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
	case http.StatusOK:
		return bad(ErrNoRanges)
	case http.StatusNotFound, http.StatusGone:
		return bad(fmt.Errorf("%w (%s)", ErrNotThere, resp.Status))
	case http.StatusRequestedRangeNotSatisfiable:
		return bad(errors.New("the file on the server is empty or became shorter"))
	default:
		return bad(fmt.Errorf("the server answers %s", resp.Status))
	}
	first, last, size, err := contentRange(resp.Header.Get("Content-Range"))
	if err != nil {
		return bad(err)
	}
	tag := resp.Header.Get("ETag")
	if tag == "" || strings.HasPrefix(tag, "W/") {
		tag = resp.Header.Get("Last-Modified")
	}
	switch want, ok := strings.CutPrefix(ranges, "bytes="); {
	case r.size == 0:
		r.size, r.tag = size, tag
	case size != r.size || tag != r.tag:
		return bad(errChanged)
	case ok && !strings.HasPrefix(want, strconv.FormatInt(first, 10)+"-"):
		return bad(fmt.Errorf("the server sent the bytes from %d on, asked was for %s", first, want))
	}
	return &body{ReadCloser: resp.Body, idle: idle, wait: r.retry.Idle, left: last - first + 1, ctx: ctx, cancel: cancel}, nil
}

var errChanged = errors.New("the file on the server has changed meanwhile: start again")

func contentRange(s string) (first, last, size int64, err error) {
	if n, serr := fmt.Sscanf(s, "bytes %d-%d/%d", &first, &last, &size); serr != nil || n != 3 || first < 0 || last < first || size <= last {
		return 0, 0, 0, fmt.Errorf("the server answers the range %q: want bytes first-last/length", s)
	}
	return first, last, size, nil
}

// body is an answer that breaks when nothing comes, and that may not end early.
type body struct {
	io.ReadCloser
	idle   *time.Timer
	wait   time.Duration
	left   int64
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.left)]
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	b.idle.Reset(b.wait)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *body) Close() error {
	b.idle.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// Name implements Source.
func (r *Remote) Name() string { return r.url }

// Size implements Source.
func (r *Remote) Size() int64 { return r.size }

// Twice implements Source.
func (r *Remote) Twice() bool { return false }

// Close implements Source.
func (r *Remote) Close() error { return nil }

// ReadAt implements Source: from the end that is here, else by a request.
func (r *Remote) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= r.size {
		return 0, io.EOF
	}
	if start := r.size - int64(len(r.tail)); off >= start {
		n := copy(b, r.tail[off-start:])
		if n < len(b) {
			return n, io.EOF
		}
		return n, nil
	}
	in, err := r.request(context.Background(), fmt.Sprintf("bytes=%d-%d", off, min(off+int64(len(b)), r.size)-1))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	n, err := io.ReadFull(in, b[:min(int64(len(b)), r.size-off)])
	r.p.fetched(int64(n), 0)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// Stream implements Source. A connection that breaks is taken up again where it
// broke.
func (r *Remote) Stream(ctx context.Context) io.ReadCloser {
	return r.Range(ctx, 0, r.size)
}

// Range reads n bytes from off on, like Stream.
func (r *Remote) Range(ctx context.Context, off, n int64) io.ReadCloser {
	return &resumer{ctx: ctx, r: r, pos: off, end: off + n}
}

type resumer struct {
	ctx      context.Context
	r        *Remote
	pos, end int64
	in       io.ReadCloser
	failures int
}

func (s *resumer) Read(b []byte) (int, error) {
	for {
		if s.pos >= s.end {
			return 0, io.EOF
		}
		var err error
		if s.in == nil {
			s.in, err = s.r.request(s.ctx, fmt.Sprintf("bytes=%d-%d", s.pos, s.end-1))
		}
		if err == nil {
			var n int
			n, err = s.in.Read(b)
			if n > 0 {
				s.pos += int64(n)
				s.failures = 0
				s.r.p.fetched(int64(n), s.r.size)
				return n, nil
			}
			if err == nil {
				continue
			}
			s.in.Close()
			s.in = nil
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
		}
		if cause := context.Cause(s.ctx); cause != nil {
			return 0, cause
		}
		s.failures++
		if s.failures > s.r.retry.Tries || errors.Is(err, ErrNotThere) || errors.Is(err, ErrNoRanges) || errors.Is(err, errChanged) {
			return 0, fmt.Errorf("at byte %d of %d: %w", s.pos, s.r.size, err)
		}
		s.r.p.note("the connection broke at byte %d of %d (%v): trying again", s.pos, s.r.size, err)
		pause := min(s.r.retry.Pause<<(s.failures-1), 30*time.Second)
		t := time.NewTimer(pause)
		select {
		case <-s.ctx.Done():
			t.Stop()
			return 0, context.Cause(s.ctx)
		case <-t.C:
		}
	}
}

func (s *resumer) Close() error {
	if s.in != nil {
		return s.in.Close()
	}
	return nil
}
