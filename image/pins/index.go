package pins

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/sync/errgroup"
	"pault.ag/go/debian/version"
)

//go:embed keys/*.asc
var keyFiles embed.FS

// archiveFingerprints are Debian's archive keys that a suite's index may be
// signed by, as published at https://ftp-master.debian.org/keys.html and in the
// package debian-archive-keyring: the automatic key and the security archive's
// automatic key of Debian 13, and its stable release key.
var archiveFingerprints = map[string]string{
	"keys/trixie-automatic.asc":          "04B54C3CDCA79751B16BC6B5225629DF75B188BD",
	"keys/trixie-security-automatic.asc": "5E04A1E3223A19A20706E20F9904613D4CCE68C6",
	"keys/trixie-stable.asc":             "41587F7DB8C774BCCF131416762F67A0B2C39DE4",
}

// archiveKeys reads the pinned keys; each file must hold exactly the key that
// its fingerprint names.
var archiveKeys = sync.OnceValues(func() (openpgp.EntityList, error) {
	var all openpgp.EntityList
	for name, want := range archiveFingerprints {
		text, err := keyFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read the pinned archive keys: %w", err)
		}
		list, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("read the pinned archive key %s: %w", name, err)
		}
		if len(list) != 1 || !strings.EqualFold(hex.EncodeToString(list[0].PrimaryKey.Fingerprint), want) {
			return nil, fmt.Errorf("read the pinned archive key %s: it does not hold the one key %s", name, want)
		}
		all = append(all, list[0])
	}
	return all, nil
})

// Bounds on an archive's index, in bytes.
const (
	maxInRelease = 4 << 20
	maxPackages  = 512 << 20 // uncompressed
	maxPackagesZ = 128 << 20
)

// maxSkew is how far ahead of the machine's clock an index may be.
const maxSkew = 24 * time.Hour

// release is what a suite's signed InRelease file says.
type release struct {
	codename string
	date     time.Time
	until    time.Time // Valid-Until, zero if the suite has none
	byHash   bool
	archs    []string
	sums     map[string]fileSum // path below the suite -> its SHA-256
}

type fileSum struct {
	sha256 string
	size   int64
}

// verifyInRelease checks the signature of a suite's InRelease file and reads
// it. The signature must be by one of keys and cover the whole file.
func verifyInRelease(text []byte, keys openpgp.EntityList, now time.Time) (*release, error) {
	if len(text) > maxInRelease {
		return nil, fmt.Errorf("more than %d bytes", maxInRelease)
	}
	if !bytes.HasPrefix(text, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, fmt.Errorf("%w: it is not a clear-signed message (a portal or a proxy may have answered in the mirror's place)", ErrSignature)
	}
	block, rest := clearsign.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: the clear-signed message is damaged", ErrSignature)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: there is text after the signed message", ErrSignature)
	}
	sig, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxInRelease))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	// Signatures by several keys follow each other, and one that we know and
	// that holds is enough. Key by key, since the check itself ends at the
	// first signature by any key of its ring.
	config := &packet.Config{Time: func() time.Time { return now }}
	err = errors.New("there are no keys")
	for _, key := range keys {
		_, _, err = openpgp.VerifyDetachedSignature(openpgp.EntityList{key}, bytes.NewReader(block.Bytes), bytes.NewReader(sig), config)
		if err == nil {
			return parseRelease(block.Plaintext)
		}
	}
	return nil, fmt.Errorf("%w: %w: if Debian has new keys, they must come into the repository (%s) from its keyring package", ErrSignature, err, filepath.Dir(LockPath)+"/keys")
}

// parseRelease reads a Release file (Debian's repository format).
func parseRelease(text []byte) (*release, error) {
	r := &release{sums: map[string]fileSum{}}
	for p, err := range paragraphs(bytes.NewReader(text), nil) {
		if err != nil {
			return nil, fmt.Errorf("read the Release file: %w", err)
		}
		if r.codename != "" {
			return nil, errors.New("read the Release file: more than one paragraph")
		}
		r.codename = p["codename"]
		if r.codename == "" {
			return nil, errors.New("read the Release file: no Codename")
		}
		if r.date, err = releaseTime(p["date"]); err != nil {
			return nil, fmt.Errorf("read the Release file: Date: %w", err)
		}
		if v := p["valid-until"]; v != "" {
			if r.until, err = releaseTime(v); err != nil {
				return nil, fmt.Errorf("read the Release file: Valid-Until: %w", err)
			}
		}
		r.byHash = strings.EqualFold(p["acquire-by-hash"], "yes")
		r.archs = strings.Fields(p["architectures"])
		for line := range strings.Lines(p["sha256"]) {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			if len(f) != 3 || !hashRE().MatchString(f[0]) || !localPath(f[2]) {
				return nil, fmt.Errorf("read the Release file: SHA256: expected sum, size and path in %q", strings.TrimSpace(line))
			}
			size, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil || size < 0 {
				return nil, fmt.Errorf("read the Release file: SHA256: size %q of %s", f[1], f[2])
			}
			r.sums[f[2]] = fileSum{f[0], size}
		}
	}
	if r.codename == "" {
		return nil, errors.New("read the Release file: it is empty")
	}
	return r, nil
}

// releaseTime reads a date as Release files write it: RFC 2822 style, in UTC.
func releaseTime(s string) (time.Time, error) {
	t, err := time.Parse("Mon, _2 Jan 2006 15:04:05 MST", s)
	if err != nil {
		return time.Time{}, err
	}
	return t.UTC(), nil
}

// checkDate tells whether a suite's index is current: not out of date, not from
// the future, not older than what the lock was made from.
func (r *release) checkDate(now time.Time, locked string) error {
	if !r.until.IsZero() && now.After(r.until) {
		return fmt.Errorf("%w: valid until %s, and now it is %s: the mirror is not updated any more, or this machine's clock is wrong",
			ErrStale, r.until.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if r.date.After(now.Add(maxSkew)) {
		return fmt.Errorf("%w: made at %s, and now it is %s: this machine's clock is wrong",
			ErrStale, r.date.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if t, err := time.Parse(time.RFC3339, locked); err == nil && r.date.Before(t) {
		return fmt.Errorf("%w: made at %s, but the lock was made from that of %s: the mirror is behind",
			ErrStale, r.date.Format(time.RFC3339), locked)
	}
	return nil
}

// entry is a package in an index.
type entry struct {
	Package
	depends string // Pre-Depends and Depends, as they stand
	version version.Version
}

// index is the newest packages of a release for one architecture, by name.
type index struct {
	arch     string
	packages map[string]entry
}

// add takes a package in if it is newer than what is there.
func (x *index) add(e entry) {
	if old, ok := x.packages[e.Name]; ok && version.Compare(e.version, old.version) <= 0 {
		return
	}
	x.packages[e.Name] = e
}

// readPackages reads a Packages file of a suite into the index.
func (x *index) readPackages(r io.Reader, suite string) error {
	keep := func(f string) bool {
		switch f {
		case "package", "version", "architecture", "source", "depends", "pre-depends", "filename", "size", "sha256":
			return true
		}
		return false
	}
	lr := &io.LimitedReader{R: r, N: maxPackages}
	for p, err := range paragraphs(lr, keep) {
		if err != nil {
			return fmt.Errorf("read the package index of %s: %w", suite, err)
		}
		e, err := newEntry(p, suite)
		if err != nil {
			return fmt.Errorf("read the package index of %s: %w", suite, err)
		}
		if e.Arch == x.arch || e.Arch == "all" {
			x.add(e)
		}
	}
	if lr.N == 0 {
		return fmt.Errorf("read the package index of %s: more than %d bytes", suite, maxPackages)
	}
	return nil
}

// newEntry makes a package of its paragraph.
func newEntry(p paragraph, suite string) (entry, error) {
	size, err := strconv.ParseInt(p["size"], 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("package %q: size: %w", p["package"], err)
	}
	e := entry{Package: Package{
		Name: p["package"], Version: p["version"], Arch: p["architecture"], Suite: suite,
		Source: p["source"], Pool: p["filename"], SHA256: p["sha256"], Size: size,
	}}
	e.Source, _, _ = strings.Cut(e.Source, " ") // "linux-signed-amd64 (6.12.1+1)"
	if e.Source == "" {
		e.Source = e.Name
	}
	if err := e.check(); err != nil {
		return entry{}, err
	}
	if e.version, err = version.Parse(e.Version); err != nil {
		return entry{}, fmt.Errorf("package %s: version %q: %w", e.Name, e.Version, err)
	}
	for _, d := range []string{p["pre-depends"], p["depends"]} {
		if d != "" && e.depends != "" {
			e.depends += ", "
		}
		e.depends += d
	}
	return e, nil
}

// archiveIndex is the release's state on the mirrors.
type archiveIndex struct {
	suites []lockedSuite
	arch   map[string]*index
}

// loadIndex reads the signed index of all suites of a release, for the
// architectures named. locked is what the lock was made from.
func (s *Store) loadIndex(ctx context.Context, req *request, archs []string, locked []lockedSuite) (*archiveIndex, error) {
	out := &archiveIndex{arch: map[string]*index{}}
	for _, a := range archs {
		out.arch[a] = &index{arch: a, packages: map[string]entry{}}
	}
	type part struct {
		suite, arch string
		data        []byte
		name        string
	}
	var mu sync.Mutex
	var parts []part
	releases := map[string]*release{}
	g, gctx := errgroup.WithContext(ctx)
	for _, suite := range req.suites() {
		g.Go(func() error {
			date := ""
			for _, l := range locked {
				if l.Name == suite {
					date = l.Date
				}
			}
			rel, base, err := s.inRelease(gctx, suite, date)
			if err != nil {
				return err
			}
			mu.Lock()
			releases[suite] = rel
			mu.Unlock()
			for _, arch := range archs {
				if !slices.Contains(rel.archs, arch) {
					return fmt.Errorf("suite %s has no architecture %s: it has %s", suite, arch, strings.Join(rel.archs, ", "))
				}
				for _, comp := range req.Components {
					name, data, err := s.packagesFile(gctx, rel, base, suite, comp, arch)
					if err != nil {
						return err
					}
					mu.Lock()
					parts = append(parts, part{suite, arch, data, name})
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// In the order of the suites: of equal versions the first one's is taken.
	slices.SortStableFunc(parts, func(a, b part) int {
		return slices.Index(req.suites(), a.suite) - slices.Index(req.suites(), b.suite)
	})
	for _, suite := range req.suites() {
		out.suites = append(out.suites, lockedSuite{Name: suite, Date: releases[suite].date.Format(time.RFC3339)})
	}
	for _, p := range parts {
		r, closeData, err := decompress(ctx, p.name, bytes.NewReader(p.data), nil)
		if err != nil {
			return nil, fmt.Errorf("read the package index of %s: %w", p.suite, err)
		}
		err = out.arch[p.arch].readPackages(r, p.suite)
		if cerr := closeData(err == nil); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// inRelease fetches a suite's InRelease file from the first mirror that has a
// good and current one, and names that mirror's suite folder.
func (s *Store) inRelease(ctx context.Context, suite, locked string) (*release, string, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, "", err
	}
	var errs []error
	for _, mirror := range s.mirrors()[archiveOf(suite)] {
		base, err := url.JoinPath(mirror, "dists", suite)
		if err != nil {
			return nil, "", fmt.Errorf("mirror %s: %w", mirror, err)
		}
		rel, err := s.inReleaseFrom(ctx, base, suite, locked, keys)
		if err == nil {
			return rel, base, nil
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("read the signed index of suite %s: no mirror has a usable one: %w", suite, errors.Join(errs...))
}

func (s *Store) inReleaseFrom(ctx context.Context, base, suite, locked string, keys openpgp.EntityList) (*release, error) {
	text, err := s.small(ctx, base+"/InRelease", maxInRelease)
	if err != nil {
		return nil, err
	}
	rel, err := verifyInRelease(text, keys, s.now())
	if err != nil {
		return nil, fmt.Errorf("%s/InRelease: %w", base, err)
	}
	if rel.codename != suite {
		return nil, fmt.Errorf("%s/InRelease: it is that of suite %s", base, rel.codename)
	}
	if err := rel.checkDate(s.now(), locked); err != nil {
		return nil, fmt.Errorf("%s/InRelease: %w", base, err)
	}
	return rel, nil
}

// packagesFile fetches a Packages file and checks it against the signed sums.
// base is the suite's folder on the mirror that the sums are from; where that
// mirror does not have the file, the others may: its name there is its hash.
func (s *Store) packagesFile(ctx context.Context, rel *release, base, suite, comp, arch string) (name string, data []byte, err error) {
	bases := []string{base}
	for _, mirror := range s.mirrors()[archiveOf(suite)] {
		u, err := url.JoinPath(mirror, "dists", suite)
		if err == nil && !slices.Contains(bases, u) {
			bases = append(bases, u)
		}
	}
	dir := comp + "/binary-" + arch + "/"
	var errs []error
	for _, name := range []string{dir + "Packages.xz", dir + "Packages.gz", dir + "Packages"} {
		sum, ok := rel.sums[name]
		if !ok {
			continue
		}
		if sum.size > maxPackagesZ {
			return "", nil, fmt.Errorf("suite %s: %s of %d bytes is larger than the %d that are read", suite, name, sum.size, maxPackagesZ)
		}
		for _, base := range bases {
			urls := []string{base + "/" + name}
			if rel.byHash {
				urls = slices.Insert(urls, 0, base+"/"+dir+"by-hash/SHA256/"+sum.sha256)
			}
			for _, u := range urls {
				data, err := s.small(ctx, u, sum.size)
				if err == nil {
					if got := sha256.Sum256(data); hex.EncodeToString(got[:]) == sum.sha256 {
						return name, data, nil
					}
					err = fmt.Errorf("%s: %w: the signed index says %s", u, ErrHash, sum.sha256)
				}
				if ctx.Err() != nil {
					return "", nil, ctx.Err()
				}
				errs = append(errs, err)
			}
		}
	}
	if len(errs) == 0 {
		return "", nil, fmt.Errorf("suite %s has no component %s for %s", suite, comp, arch)
	}
	return "", nil, fmt.Errorf("read the package index of suite %s: no mirror has what the signed InRelease names: it is being updated: try again in some minutes, or set WEFT_MIRROR to another one: %w", suite, errors.Join(errs...))
}

// readFileIfThere reads a file, nothing if it does not exist.
func readFileIfThere(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
