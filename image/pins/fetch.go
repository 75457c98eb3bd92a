package pins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	maxDownloads = 6                // at one time
	attempts     = 3                // for each address, when the connection breaks
	stallTimeout = 60 * time.Second // without a byte
	userAgent    = "weft-pins"
)

// Fetch downloads the named packages that are not in the cache yet, several at
// a time, and checks them against the lock. Names are as Package takes them;
// Closure gives those that a tool or an image entry needs.
func (s *Store) Fetch(ctx context.Context, packages ...string) error {
	list, err := s.lookupAll(packages)
	if err != nil {
		return err
	}
	gone, err := s.fetchAll(ctx, list)
	if err != nil || len(gone) == 0 {
		return err
	}
	if err := s.drift(ctx, gone); err != nil {
		return err
	}
	if list, err = s.lookupAll(packages); err != nil {
		return err
	}
	if gone, err = s.fetchAll(ctx, list); err != nil {
		return err
	}
	if len(gone) > 0 {
		return noMirrorHas(gone[0].pkg)
	}
	return nil
}

// goneError is a package that has left the mirrors, and what they said.
type goneError struct {
	pkg Package
	err error
}

// lookupAll looks names up, each package once.
func (s *Store) lookupAll(names []string) ([]Package, error) {
	var list []Package
	seen := map[string]bool{}
	for _, name := range names {
		p, err := s.lookup(name)
		if err != nil {
			return nil, err
		}
		if !seen[p.SHA256] {
			seen[p.SHA256] = true
			list = append(list, p)
		}
	}
	return list, nil
}

// fetchAll downloads what is missing of list; gone are those that no mirror has
// any more.
func (s *Store) fetchAll(ctx context.Context, list []Package) (gone []goneError, err error) {
	var missing []Package
	for _, p := range list {
		if !s.haveDeb(p) && !exists(s.treePath(p)) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	// The largest first: the others then fit beside it.
	slices.SortFunc(missing, func(a, b Package) int {
		if a.Size != b.Size {
			return int(min(max(b.Size-a.Size, -1), 1))
		}
		return comparePackages(a, b)
	})
	bars := newProgress(s.progress, missing)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxDownloads)
	for _, p := range missing {
		g.Go(func() error {
			bar := bars.start(p)
			err := s.fetchDeb(gctx, p, bar)
			bar.finish(err)
			if errors.Is(err, ErrGone) {
				mu.Lock()
				gone = append(gone, goneError{p, err})
				mu.Unlock()
				return nil
			}
			return err
		})
	}
	err = g.Wait()
	bars.wait()
	return gone, err
}

func (s *Store) debPath(p Package) string  { return filepath.Join(s.dir, "deb", p.SHA256+".deb") }
func (s *Store) treePath(p Package) string { return filepath.Join(s.dir, "tree", p.SHA256) }

// haveDeb tells whether the cache has the package's file. Only a verified file
// gets its name, so name and size are proof enough; Verify reads it again.
func (s *Store) haveDeb(p Package) bool {
	st, err := os.Stat(s.debPath(p))
	return err == nil && st.Mode().IsRegular() && st.Size() == p.Size
}

// fetchDeb puts one package into the cache.
func (s *Store) fetchDeb(ctx context.Context, p Package, bar *bar) error {
	unlock, err := s.fetching.lock(ctx, p.SHA256)
	if err != nil {
		return err
	}
	defer unlock()
	unlockFile, err := lockPath(ctx, s.debPath(p)+".lock")
	if err != nil {
		return err
	}
	defer unlockFile()
	if s.haveDeb(p) {
		return nil // another one was faster
	}
	var urls []string
	archive := archiveOf(p.Suite)
	for _, base := range s.mirrors()[archive] {
		u, err := url.JoinPath(base, p.Pool)
		if err != nil {
			return fmt.Errorf("fetch %s from mirror %s: %w", p, base, err)
		}
		urls = append(urls, u)
	}
	if err := s.download(ctx, urls, s.snapshotURL(archive, p), s.debPath(p), p.Size, p.SHA256, bar); err != nil {
		return fmt.Errorf("fetch %s: %w", p, err)
	}
	return nil
}

// snapshotURL is where the snapshot archive has a package: as of a day after
// the suite's Release file, when it has surely taken the file in.
func (s *Store) snapshotURL(archive string, p Package) string {
	if s.lock == nil || p.Drifted {
		return ""
	}
	for _, base := range s.mirrors()["snapshot"] {
		for _, suite := range s.lock.Lock.Suites {
			if t, err := time.Parse(time.RFC3339, suite.Date); err == nil && suite.Name == p.Suite {
				u, err := url.JoinPath(base, archive, t.Add(24*time.Hour).UTC().Format("20060102T150405Z"), p.Pool)
				if err == nil {
					return u
				}
			}
		}
	}
	return ""
}

// statusError is an answer of a mirror other than the file.
type statusError struct {
	url  string
	code int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: the mirror answers %d %s", e.url, e.code, http.StatusText(e.code))
}

// gone tells whether the answer means that the file is not there any more.
func (e *statusError) gone() bool {
	return e.code == http.StatusNotFound || e.code == http.StatusGone
}

// download tries addresses in turn, the snapshot archive's (if any) last, until
// one gives the file of that size and hash, then puts it at path. If none does
// and one of the mirrors says that it has no such file, the error is ErrGone;
// if none can be reached, ErrUnreachable.
func (s *Store) download(ctx context.Context, mirrors []string, snapshot, path string, size int64, sum string, bar *bar) error {
	part := path + ".part"
	var errs []error
	gone := false
	urls := mirrors
	if snapshot != "" {
		urls = append(slices.Clone(mirrors), snapshot)
	}
	for _, u := range urls {
		err := s.downloadFrom(ctx, u, part, size, sum, bar)
		if err == nil {
			if err := os.Rename(part, path); err != nil {
				return fmt.Errorf("keep the download: %w", explainDisk(path, err))
			}
			return nil
		}
		var pathErr *fs.PathError
		if ctx.Err() != nil || (errors.As(err, &pathErr) && !strings.HasPrefix(u, "file:")) {
			return err // ours, not the mirror's: no other mirror will help
		}
		var status *statusError
		if errors.As(err, &status) && status.gone() && u != snapshot {
			gone = true
		}
		errs = append(errs, err)
	}
	all := errors.Join(errs...)
	switch {
	case errors.Is(all, ErrHash), len(urls) == 0:
		return fmt.Errorf("no mirror has the pinned file: %w", all)
	case gone:
		return fmt.Errorf("%w: %w", ErrGone, all)
	}
	return fmt.Errorf("%w: check the network, or set WEFT_MIRROR to the address of a Debian archive: %w", ErrUnreachable, all)
}

// downloadFrom fetches one address into part, going on where an earlier try
// stopped. part is complete, right and read-only when it returns nil.
func (s *Store) downloadFrom(ctx context.Context, u, part string, size int64, sum string, bar *bar) error {
	if err := s.hosts.check(u); err != nil {
		return err
	}
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("write the download: %w", explainDisk(part, err))
	}
	defer f.Close()
	h := sha256.New()
	have, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("read the unfinished download: %w", err)
	}
	restart := func() error {
		have = 0
		h.Reset()
		bar.set(0)
		if err := f.Truncate(0); err != nil {
			return err
		}
		_, err := f.Seek(0, io.SeekStart)
		return err
	}
	if have > size {
		if err := restart(); err != nil {
			return err
		}
	}
	bar.set(have)
	resumed := have > 0
	for try := 1; ; try++ {
		if have < size {
			err = s.request(ctx, u, f, h, &have, size, restart, bar)
		}
		if err == nil && have == size {
			got := hex.EncodeToString(h.Sum(nil))
			if got == sum {
				break
			}
			err = fmt.Errorf("%s: %w: expected %s, got %s", u, ErrHash, sum, got)
			if rerr := restart(); rerr != nil {
				return rerr
			}
			if resumed { // what was there may have been the wrong part: once from the start
				resumed, try = false, 0
				continue
			}
			os.Remove(part)
			return err
		}
		if try == attempts || ctx.Err() != nil || !transient(err) {
			if have == 0 {
				os.Remove(part)
			}
			if ctx.Err() == nil {
				s.hosts.note(u, err)
			}
			return err
		}
		if s.retry > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(s.retry << (try - 1)):
			}
		}
	}
	if err := errors.Join(f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("keep the download: %w", explainDisk(part, err))
	}
	return nil
}

// transient tells whether the same request may succeed a little later.
func transient(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.code >= 500 || status.code == http.StatusTooManyRequests
	}
	var pathErr *fs.PathError
	var dial *net.OpError
	return !errors.As(err, &pathErr) && !errors.Is(err, ErrHash) && !(errors.As(err, &dial) && dial.Op == "dial")
}

// deadHosts remembers the hosts that could not be reached, so that each costs
// its time-out only once.
type deadHosts struct {
	mu  sync.Mutex
	err map[string]error
}

func (d *deadHosts) check(u string) error {
	host := hostOf(u)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.err[host]; err != nil {
		return fmt.Errorf("%s: %s could not be reached before: %w", u, host, err)
	}
	return nil
}

// note remembers a host if err came before any answer of it.
func (d *deadHosts) note(u string, err error) {
	var before *url.Error
	if host := hostOf(u); host != "" && errors.As(err, &before) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.err == nil {
			d.err = map[string]error{}
		}
		d.err[host] = before.Err
	}
}

func hostOf(u string) string {
	parsed, err := url.Parse(u)
	if err != nil {
		return ""
	}
	return parsed.Host
}

// request makes one request for what is missing after have, and appends it to
// f and h.
func (s *Store) request(ctx context.Context, u string, f *os.File, h hash.Hash, have *int64, size int64, restart func() error, bar *bar) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", u, err)
	}
	req.Header.Set("User-Agent", userAgent)
	if *have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", *have))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err // names method and address
	}
	defer resp.Body.Close()
	switch {
	case *have > 0 && resp.StatusCode == http.StatusPartialContent && rangeFrom(resp.Header.Get("Content-Range")) == *have:
	case *have > 0 && (resp.StatusCode == http.StatusPartialContent || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		if err := restart(); err != nil {
			return err
		}
		return fmt.Errorf("%s: the mirror cannot go on at the byte asked for", u)
	case resp.StatusCode == http.StatusOK:
		if *have > 0 {
			if err := restart(); err != nil {
				return err
			}
		}
		if n := resp.ContentLength; n >= 0 && n != size {
			return fmt.Errorf("%s: %w: expected %d bytes, the mirror has %d", u, ErrHash, size, n)
		}
	default:
		return &statusError{u, resp.StatusCode}
	}
	stall := time.AfterFunc(stallTimeout, func() {
		cancel(fmt.Errorf("no data for %s", stallTimeout))
	})
	defer stall.Stop()
	buf := make([]byte, 256<<10)
	for {
		n, rerr := resp.Body.Read(buf)
		if n > 0 {
			stall.Reset(stallTimeout)
			if int64(n) > size-*have {
				if err := restart(); err != nil {
					return err
				}
				return fmt.Errorf("%s: %w: the mirror sends more than the %d bytes expected", u, ErrHash, size)
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return fmt.Errorf("write the download: %w", explainDisk(f.Name(), err))
			}
			h.Write(buf[:n])
			*have += int64(n)
			bar.set(*have)
		}
		switch {
		case rerr == io.EOF && *have == size:
			return nil
		case rerr == io.EOF:
			return fmt.Errorf("%s: %w after %d of %d bytes", u, io.ErrUnexpectedEOF, *have, size)
		case rerr != nil:
			if cause := context.Cause(ctx); cause != nil {
				rerr = cause
			}
			return fmt.Errorf("%s: after %d of %d bytes: %w", u, *have, size, rerr)
		}
	}
}

// rangeFrom is the first byte of a Content-Range "bytes 5-9/10" (RFC 9110,
// 14.4), -1 if there is none.
func rangeFrom(header string) int64 {
	var from int64
	if _, err := fmt.Sscanf(header, "bytes %d-", &from); err != nil {
		return -1
	}
	return from
}

// small downloads a file of at most limit bytes into memory, from the first
// address that has it.
func (s *Store) small(ctx context.Context, u string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Cache-Control", "max-age=0")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{u, resp.StatusCode}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than the %d bytes expected", u, limit)
	}
	return data, nil
}
