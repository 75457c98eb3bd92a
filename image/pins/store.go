package pins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Errors that callers may ask for with errors.Is.
var (
	// ErrUnknown: the lock has no such package or tool.
	ErrUnknown = errors.New("not in the lock")
	// ErrGone: a pinned file has left the mirrors, and Options.Strict forbids
	// a newer one.
	ErrGone = errors.New("pinned file has left the mirrors")
	// ErrHash: a downloaded file is not the one that was pinned.
	ErrHash = errors.New("content differs from its pinned sha256")
	// ErrUnreachable: no mirror answered.
	ErrUnreachable = errors.New("no mirror could be reached")
	// ErrSignature: a suite's index is not signed by a pinned key.
	ErrSignature = errors.New("no valid signature by a pinned archive key")
	// ErrStale: a suite's index is out of date, older than the lock's, or from
	// the future.
	ErrStale = errors.New("archive index has an unacceptable date")
)

// Options says where a Store keeps its files and what it may do.
type Options struct {
	// CacheDir defaults to the environment's WEFT_CACHE, else to the folder
	// weft in os.UserCacheDir.
	CacheDir string
	// Lock is the path of pins.toml; the built-in one if empty.
	Lock string
	// Strict refuses newer versions in place of pinned ones that have left the
	// mirrors. The environment's PINS=strict sets it too.
	Strict bool
	// Progress gets bars (a terminal) or plain lines (anything else, or CI is
	// set); nil for none.
	Progress io.Writer
	// Log gets warnings; slog.Default if nil.
	Log *slog.Logger

	testMirrors map[string][]string // archive -> base addresses, in place of the machine's
	testKeys    openpgp.EntityList  // in place of Debian's
	testNow     func() time.Time
	testRetry   time.Duration // pause before a retry; negative for none
}

// Store is the locked packages and the cache that holds them. Its methods may
// be called at the same time, also from several processes.
type Store struct {
	dir      string
	lock     *lockFile
	lockName string
	lockSum  string
	host     string // the build machine's Debian architecture
	strict   bool
	progress io.Writer
	log      *slog.Logger
	keys     func() (openpgp.EntityList, error)
	now      func() time.Time
	retry    time.Duration
	mirrors  func() map[string][]string
	client   *http.Client
	hosts    deadHosts
	fetching keyedLock // by the package's hash
	trees    keyedLock // by the package's hash
	busy     keyedLock // by the tool's folder
	drifting keyedLock

	mu      sync.Mutex
	byID    map[string]Package // what is used: the locked package or the one in its place
	meta    map[string]string  // "kernel:amd64" -> package name
	drifted []Package
	libs    map[string]map[string]string // arch -> library -> package name
}

// Open reads the lock. It touches no network and makes no folder.
func Open(o Options) (*Store, error) {
	name, text := LockPath, embedded
	if o.Lock != "" {
		name = o.Lock
		f, err := os.Open(o.Lock)
		if err != nil {
			return nil, fmt.Errorf("open the lock of pinned inputs: %w", err)
		}
		defer f.Close()
		if text, err = io.ReadAll(io.LimitReader(f, maxLock+1)); err != nil {
			return nil, fmt.Errorf("read %s: %w", o.Lock, err)
		}
	}
	lock, err := parseLock(name, text)
	if err != nil {
		return nil, err
	}
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	s.lockName, s.lockSum = name, hex.EncodeToString(sum[:])
	s.use(lock)
	if !s.strict {
		if err := s.loadDrift(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// newStore makes a Store without a lock.
func newStore(o Options) (*Store, error) {
	dir := o.CacheDir
	if dir == "" {
		dir = os.Getenv("WEFT_CACHE")
	}
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a folder for the cache: %w: set WEFT_CACHE to one", err)
		}
		dir = filepath.Join(base, "weft")
	}
	for _, base := range strings.Fields(os.Getenv("WEFT_MIRROR")) {
		if _, ok := mirrorURL(base); !ok {
			return nil, fmt.Errorf("WEFT_MIRROR: %q is not the address of a Debian archive, such as https://deb.debian.org/debian", base)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w", err)
	}
	if strings.ContainsAny(dir, ":;") {
		return nil, fmt.Errorf("the cache folder %s: a loader's library path cannot hold %q: set WEFT_CACHE to another folder", dir, ":;")
	}
	s := &Store{
		dir:      dir,
		host:     hostArch(),
		strict:   o.Strict || os.Getenv("PINS") == "strict",
		progress: o.Progress,
		log:      o.Log,
		keys:     archiveKeys,
		now:      time.Now,
		retry:    time.Second,
		mirrors:  sync.OnceValue(machineMirrors),
	}
	s.client = newClient()
	if s.log == nil {
		s.log = slog.Default()
	}
	if o.testKeys != nil {
		s.keys = func() (openpgp.EntityList, error) { return o.testKeys, nil }
	}
	if o.testMirrors != nil {
		s.mirrors = func() map[string][]string { return o.testMirrors }
	}
	if o.testNow != nil {
		s.now = o.testNow
	}
	if o.testRetry != 0 {
		s.retry = o.testRetry
	}
	return s, nil
}

// use makes lock the one in force.
func (s *Store) use(lock *lockFile) {
	s.lock = lock
	s.byID = map[string]Package{}
	s.meta = map[string]string{}
	s.libs = nil
	for _, p := range lock.Lock.Packages {
		s.byID[p.ID()] = p
	}
	for _, c := range lock.Lock.Closures {
		if key, ok := strings.CutPrefix(c.Want, "meta."); ok && len(c.Packages) > 0 {
			s.meta[key+":"+c.Arch] = c.Packages[0]
		}
	}
}

// hostArch is the build machine's architecture in Debian's words.
func hostArch() string {
	switch runtime.GOARCH {
	case "arm":
		return "armhf"
	case "386":
		return "i386"
	case "ppc64le":
		return "ppc64el"
	}
	return runtime.GOARCH
}

// Host is the build machine's architecture in Debian's words: tools are of it.
func (s *Store) Host() string { return s.host }

// Dir is the cache folder.
func (s *Store) Dir() string { return s.dir }

// Architectures lists the architectures that the lock covers.
func (s *Store) Architectures() []string { return slices.Clone(s.lock.Lock.Architectures) }

// Package looks a package up: "name" (of the build machine's architecture or
// of all), "name:arch", or a key of the lock such as "kernel:amd64". Before
// Fetch it is the locked version; after Fetch, or in a cache that once had to,
// possibly the newer one in its place.
func (s *Store) Package(pkg string) (Package, bool) {
	name, arch, ok := strings.Cut(pkg, ":")
	if !ok {
		arch = s.host
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if real, ok := s.meta[name+":"+arch]; ok {
		name = real
	}
	if p, ok := s.byID[name+":"+arch]; ok {
		return p, true
	}
	p, found := s.byID[name+":all"]
	return p, found
}

// lookup is Package with an error that says what to do.
func (s *Store) lookup(pkg string) (Package, error) {
	if p, ok := s.Package(pkg); ok {
		return p, nil
	}
	name, arch, ok := strings.Cut(pkg, ":")
	if !ok {
		arch = s.host
	}
	if !slices.Contains(s.lock.Lock.Architectures, arch) && arch != "all" {
		return Package{}, fmt.Errorf("package %s: %w: %s does not cover architecture %s (it has %s): run %q",
			pkg, ErrUnknown, s.lockName, arch, strings.Join(s.lock.Lock.Architectures, ", "), updateHint+" --arch "+arch)
	}
	return Package{}, fmt.Errorf("package %s: %w: ask for it in the first part of %s (%q, %q or %q), then run %q",
		pkg, ErrUnknown, s.lockName, "[image."+name+"]", "[data."+name+"]", "[tool.…]", updateHint)
}

// Packages lists all packages in use, sorted by name and architecture.
func (s *Store) Packages() []Package {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Package
	for id, p := range s.byID {
		if id == p.ID() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePackages)
	return out
}

func comparePackages(a, b Package) int {
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return strings.Compare(a.Arch, b.Arch)
}

// Drifted lists the packages that are newer than locked because the locked
// version has left the mirrors, sorted by name. A build that used any is not
// the one that the lock describes.
func (s *Store) Drifted() []Package {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.drifted)
}

// Closure lists the packages that an entry of the lock needs, as Fetch takes
// them: "tool.mksquashfs" (or any name that Tool knows), "image.e2fsprogs",
// "data.grub-pc-bin", "meta.kernel". arch is a Debian architecture, the build
// machine's if empty.
func (s *Store) Closure(want, arch string) ([]string, error) {
	if arch == "" {
		arch = s.host
	}
	if name, ok := strings.CutPrefix(want, "tool."); ok {
		key, _, err := s.toolWant(name)
		if err != nil {
			return nil, err
		}
		want = "tool." + key
	}
	for _, c := range s.lock.Lock.Closures {
		if c.Want == want && c.Arch == arch {
			out := make([]string, len(c.Packages))
			for i, p := range c.Packages {
				out[i] = p + ":" + arch
			}
			return out, nil
		}
	}
	if !slices.Contains(s.lock.Lock.Architectures, arch) {
		return nil, fmt.Errorf("%s: %w: %s does not cover architecture %s (it has %s): run %q",
			want, ErrUnknown, s.lockName, arch, strings.Join(s.lock.Lock.Architectures, ", "), updateHint+" --arch "+arch)
	}
	return nil, fmt.Errorf("%s for %s: %w: ask for it in the first part of %s, then run %q", want, arch, ErrUnknown, s.lockName, updateHint)
}

// libraryPackage names the locked package of architecture arch that has a
// library: its file name, or its path where the loader does not search.
func (s *Store) libraryPackage(arch, lib string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.libs == nil {
		s.libs = map[string]map[string]string{}
	}
	m, ok := s.libs[arch]
	if !ok {
		m = map[string]string{}
		for _, p := range s.lock.Lock.Packages { // sorted: the first wins
			if p.Arch != arch {
				continue
			}
			for _, l := range p.Libs {
				if _, dup := m[l]; !dup {
					m[l] = p.Name
				}
			}
		}
		s.libs[arch] = m
	}
	name, ok := m[lib]
	return name, ok
}

// driftRecord is what is written when newer packages took the place of pinned
// ones, so that the next run needs no network.
type driftRecord struct {
	Meta     map[string]string  `json:"meta,omitempty"`
	Packages map[string]Package `json:"packages"` // by the locked ID
}

func (s *Store) driftPath() string { return filepath.Join(s.dir, "drift", s.lockSum+".json") }

// loadDrift takes over what an earlier run with the same lock had to replace.
func (s *Store) loadDrift() error {
	path := s.driftPath()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the record of replaced packages: %w", err)
	}
	defer f.Close()
	var r driftRecord
	err = json.NewDecoder(io.LimitReader(f, maxLock)).Decode(&r)
	for _, p := range r.Packages {
		if err == nil {
			err = p.check()
		}
	}
	if err != nil {
		return fmt.Errorf("read the record of replaced packages %s: %w: remove that file", path, err)
	}
	s.applyDrift(r)
	s.warnDrift()
	return nil
}

// applyDrift puts newer packages in the place of locked ones.
func (s *Store) applyDrift(r driftRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range r.Meta {
		s.meta[k] = v
	}
	for id, p := range r.Packages {
		p.Drifted = true
		delete(s.byID, id)
		s.byID[id] = p // still found by its locked name
		s.byID[p.ID()] = p
	}
	s.drifted = nil
	for id, p := range s.byID {
		if p.Drifted && id == p.ID() {
			s.drifted = append(s.drifted, p)
		}
	}
	slices.SortFunc(s.drifted, comparePackages)
}

// warnDrift says once, loudly, that the build is not the locked one.
func (s *Store) warnDrift() {
	d := s.Drifted()
	if len(d) == 0 {
		return
	}
	names := make([]string, len(d))
	for i, p := range d {
		names[i] = p.String()
	}
	s.log.Warn("PINNED INPUTS HAVE LEFT THE MIRRORS: newer versions of the same release take their place, and the result is not the one that the lock describes",
		"packages", strings.Join(names, ", "), "refresh the lock with", updateHint, "refuse with", "PINS=strict")
}

// noMirrorHas is the error for what a current index lists and no mirror serves.
func noMirrorHas(p Package) error {
	return fmt.Errorf("fetch %s: the archive's index lists it, yet no mirror has it: the mirrors are being updated: try again in some minutes, or set WEFT_MIRROR to another one", p)
}

// Prefetch downloads and unpacks packages side by side, so that later calls of
// Unpack, Tool and Files find them there.
func (s *Store) Prefetch(ctx context.Context, packages ...string) error {
	if err := s.Fetch(ctx, packages...); err != nil {
		return err
	}
	return s.unpackAll(ctx, packages)
}
