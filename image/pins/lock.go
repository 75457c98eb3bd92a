package pins

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/BurntSushi/toml"
)

//go:embed pins.toml
var embedded []byte

// LockPath is where pins.toml lies, seen from the top of the source tree.
const LockPath = "image/pins/pins.toml"

// maxLock bounds the size of pins.toml in bytes.
const maxLock = 4 << 20

// lockMarker starts the part of pins.toml that Update writes.
const lockMarker = "# ---- Locked. Written by \"go run ./image pins update\"; do not edit below. ----"

// updateHint is the command that refreshes the lock.
const updateHint = "go run ./image pins update"

// request is the hand-written part of pins.toml.
type request struct {
	// Release is the Debian release's code name; its -updates and -security
	// suites are used too.
	Release    string   `toml:"release"`
	Components []string `toml:"components"`
	// Meta holds packages that are followed through a meta package to the
	// versioned one behind it.
	Meta  map[string]metaWant  `toml:"meta"`
	Tool  map[string]toolWant  `toml:"tool"`
	Image map[string]imageWant `toml:"image"`
	Data  map[string]dataWant  `toml:"data"`
}

// metaWant asks for the package that a meta package depends on.
type metaWant struct {
	Why     string            `toml:"why"`
	Prefix  string            `toml:"prefix"`  // the dependency's name starts so
	Package map[string]string `toml:"package"` // meta package by architecture
}

// toolWant asks for a program to be run on the build machine.
type toolWant struct {
	Why     string   `toml:"why"`
	Package string   `toml:"package"`
	Program string   `toml:"program"` // path in the package
	Names   []string `toml:"names"`   // further names that the program goes by
	// Files are merged into the tool's tree, folders with all below them:
	// "path" in the program's package or "package:path".
	Files []string `toml:"files"`
	// Env and Args are given at each run; {dir} stands for the tree's root
	// and {lib} for the architecture's library folder.
	Env map[string]string `toml:"env"`
	// Replace changes strings that are compiled into the program, paths of the
	// machine mostly, to others that are not longer.
	Replace       map[string]string `toml:"replace"`
	Args          []string          `toml:"args"`
	Architectures []string          `toml:"architectures"` // all if empty
}

// imageWant asks for files of a package that go into images.
type imageWant struct {
	Why           string   `toml:"why"`
	Files         []string `toml:"files"`
	Architectures []string `toml:"architectures"`
}

// dataWant asks for a package as a whole, without the libraries it may need.
type dataWant struct {
	Why           string   `toml:"why"`
	Architectures []string `toml:"architectures"`
}

// locked is the part of pins.toml that Update writes.
type locked struct {
	Architectures []string        `toml:"architectures"`
	Suites        []lockedSuite   `toml:"suite"`
	Closures      []lockedClosure `toml:"closure"`
	Packages      []Package       `toml:"package"`
}

// lockedSuite is a suite's state at the time of the update.
type lockedSuite struct {
	Name string `toml:"name"`
	Date string `toml:"date"` // the Release file's Date, RFC 3339
}

// lockedClosure names the packages that an entry of the request needs.
type lockedClosure struct {
	Arch     string   `toml:"arch"`
	Want     string   `toml:"want"` // "tool.NAME", "image.NAME", "data.NAME", "meta.NAME"
	Packages []string `toml:"packages"`
}

// Package is one locked Debian package.
type Package struct {
	Name    string `toml:"name" json:"name"`
	Version string `toml:"version" json:"version"`
	Arch    string `toml:"arch" json:"arch"` // amd64, arm64, …, or all
	Suite   string `toml:"suite" json:"suite"`
	Source  string `toml:"source" json:"source"`   // source package
	Licence string `toml:"licence" json:"licence"` // short names of its copyright file, empty if that is not machine-readable
	Pool    string `toml:"pool" json:"pool"`       // path in the archive
	SHA256  string `toml:"sha256" json:"sha256"`
	Size    int64  `toml:"size" json:"size"` // of the .deb, in bytes
	// Libs are the shared libraries it holds: file names in the folders that
	// the loader searches, paths elsewhere.
	Libs []string `toml:"libs,omitempty" json:"libs,omitempty"`
	// Drifted tells that this is not the locked version, which has left the
	// mirrors, but the newest of the same release.
	Drifted bool `toml:"-" json:"drifted,omitempty"`
}

// ID names a package as Fetch and Unpack take it: name:architecture.
func (p Package) ID() string { return p.Name + ":" + p.Arch }

func (p Package) String() string { return p.Name + " " + p.Version + " (" + p.Arch + ")" }

// lockFile is a parsed pins.toml.
type lockFile struct {
	request
	Lock locked `toml:"lock"`
	head []byte // the hand-written part as it stands in the file
}

// The shapes that names of the outside world may have: they become paths,
// addresses and arguments.
var (
	nameRE    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{0,127}$`) })
	keyRE     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$`) })
	versionRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9][A-Za-z0-9.+~:-]{0,127}$`) })
	hashRE    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })
	poolRE    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^pool/[A-Za-z0-9_.+~/-]{1,400}\.deb$`) })
)

// maxPackage bounds a package's size in bytes.
const maxPackage = 4 << 30

// check tells what is wrong with a package's entry.
func (p Package) check() error {
	switch {
	case !nameRE().MatchString(p.Name):
		return fmt.Errorf("package name %q is not a Debian package name", p.Name)
	case !versionRE().MatchString(p.Version):
		return fmt.Errorf("package %s: version %q is not a Debian version", p.Name, p.Version)
	case !nameRE().MatchString(p.Arch):
		return fmt.Errorf("package %s: architecture %q is not a Debian architecture", p.Name, p.Arch)
	case !nameRE().MatchString(p.Suite):
		return fmt.Errorf("package %s: suite %q is not a suite name", p.Name, p.Suite)
	case !poolRE().MatchString(p.Pool) || !localPath(p.Pool):
		return fmt.Errorf("package %s: pool path %q is not of the form pool/….deb", p.Name, p.Pool)
	case !hashRE().MatchString(p.SHA256):
		return fmt.Errorf("package %s: sha256 %q is not 64 hexadecimal digits", p.Name, p.SHA256)
	case p.Size <= 0 || p.Size > maxPackage:
		return fmt.Errorf("package %s: size %d is not between 1 and %d", p.Name, p.Size, int64(maxPackage))
	}
	for _, l := range p.Libs {
		if !localPath(l) {
			return fmt.Errorf("package %s: library %q is not a path within the package", p.Name, l)
		}
	}
	return nil
}

// localPath tells whether p is a clean path that stays below where it starts.
func localPath(p string) bool {
	return p != "" && p != "." && path.Clean(p) == p && !path.IsAbs(p) &&
		p != ".." && !strings.HasPrefix(p, "../") && !strings.ContainsAny(p, "\x00\n")
}

// parseLock reads pins.toml; name is used in errors.
func parseLock(name string, text []byte) (*lockFile, error) {
	if len(text) > maxLock {
		return nil, fmt.Errorf("read %s: %d bytes is more than the %d that a lock may have", name, len(text), maxLock)
	}
	l := &lockFile{head: text}
	if i := bytes.Index(text, []byte(lockMarker)); i >= 0 {
		l.head = text[:i]
	}
	meta, err := toml.Decode(string(text), l)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return nil, fmt.Errorf("read %s:%d: %s", name, pe.Position.Line, pe.Message)
		}
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if u := meta.Undecoded(); len(u) > 0 {
		return nil, fmt.Errorf("read %s: unknown key %q: remove it, or see the comments at the top of the file for the keys that there are", name, u[0].String())
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return l, nil
}

// check tells what is wrong with a lock that is well-formed TOML.
func (l *lockFile) check() error {
	if !nameRE().MatchString(l.Release) {
		return fmt.Errorf("release %q is not a suite name such as trixie", l.Release)
	}
	if len(l.Components) == 0 {
		return errors.New(`components is empty: name at least "main"`)
	}
	for _, c := range l.Components {
		if !nameRE().MatchString(c) {
			return fmt.Errorf("component %q is not a component name", c)
		}
	}
	for key, m := range l.Meta {
		if !keyRE().MatchString(key) {
			return fmt.Errorf("meta %q: not a plain name", key)
		}
		for _, arch := range slices.Sorted(maps.Keys(m.Package)) {
			if !nameRE().MatchString(arch) || !nameRE().MatchString(m.Package[arch]) {
				return fmt.Errorf("meta %s: %s = %q is not an architecture and a package", key, arch, m.Package[arch])
			}
		}
	}
	names := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(l.Tool)) {
		t := l.Tool[key]
		if !nameRE().MatchString(t.Package) {
			return fmt.Errorf("tool %s: package %q is not a package name", key, t.Package)
		}
		if !localPath(t.Program) {
			return fmt.Errorf("tool %s: program %q is not a path within the package", key, t.Program)
		}
		for _, n := range append([]string{key}, t.Names...) {
			if !keyRE().MatchString(n) {
				return fmt.Errorf("tool %s: %q is not a plain name", key, n)
			}
			if other, ok := names[n]; ok {
				return fmt.Errorf("tool %s: the name %s is tool %s's already", key, n, other)
			}
			names[n] = key
		}
		for old, repl := range t.Replace {
			if len(old) < 4 || strings.ContainsRune(old+repl, 0) {
				return fmt.Errorf("tool %s: replace %q = %q: expected strings without NUL, the old one of at least 4 bytes", key, old, repl)
			}
		}
		for _, f := range t.Files {
			if pkg, p := splitFile(t.Package, f); !nameRE().MatchString(pkg) || !localPath(p) {
				return fmt.Errorf("tool %s: file %q is not package:path", key, f)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(l.Image)) {
		if !nameRE().MatchString(key) {
			return fmt.Errorf("image.%s is not a package name", key)
		}
		for _, f := range l.Image[key].Files {
			if !localPath(f) {
				return fmt.Errorf("image.%s: file %q is not a path within the package", key, f)
			}
		}
	}
	for key := range l.Data {
		if !nameRE().MatchString(key) {
			return fmt.Errorf("data.%s is not a package name", key)
		}
	}
	for _, a := range l.Lock.Architectures {
		if !nameRE().MatchString(a) {
			return fmt.Errorf("architecture %q is not a Debian architecture", a)
		}
	}
	for _, s := range l.Lock.Suites {
		if !nameRE().MatchString(s.Name) {
			return fmt.Errorf("suite %q is not a suite name", s.Name)
		}
	}
	seen := map[string]bool{}
	for _, p := range l.Lock.Packages {
		if err := p.check(); err != nil {
			return err
		}
		if seen[p.ID()] {
			return fmt.Errorf("package %s is locked twice", p.ID())
		}
		seen[p.ID()] = true
	}
	for _, c := range l.Lock.Closures {
		for _, p := range c.Packages {
			if !seen[p+":"+c.Arch] && !seen[p+":all"] {
				return fmt.Errorf("%s needs package %s, which is not locked for %s: run %q", c.Want, p, c.Arch, updateHint)
			}
		}
	}
	return nil
}

// splitFile splits "package:path"; a plain path is of package own.
func splitFile(own, f string) (pkg, p string) {
	if a, b, ok := strings.Cut(f, ":"); ok {
		return a, b
	}
	return own, f
}

// suites lists the suites that a release is made of, the first preferred where
// two have the same version.
func (r *request) suites() []string {
	return []string{r.Release, r.Release + "-updates", r.Release + "-security"}
}

// render writes the lock's file: the hand-written part as it was, then the
// locked part, one value a line and sorted, so that an update changes only the
// lines of what changed.
func (l *lockFile) render() []byte {
	var b bytes.Buffer
	b.Write(bytes.TrimRight(l.head, "\n"))
	b.WriteString("\n\n" + lockMarker + "\n\n[lock]\n")
	fmt.Fprintf(&b, "architectures = %s\n", quoteList(l.Lock.Architectures))
	for _, s := range l.Lock.Suites {
		fmt.Fprintf(&b, "\n[[lock.suite]]\nname = %s\ndate = %s\n", quote(s.Name), quote(s.Date))
	}
	for _, c := range l.Lock.Closures {
		fmt.Fprintf(&b, "\n[[lock.closure]]\narch = %s\nwant = %s\npackages = %s\n", quote(c.Arch), quote(c.Want), quoteList(c.Packages))
	}
	for _, p := range l.Lock.Packages {
		fmt.Fprintf(&b, "\n[[lock.package]]\nname = %s\nversion = %s\narch = %s\nsuite = %s\nsource = %s\nlicence = %s\npool = %s\nsha256 = %s\nsize = %d\n",
			quote(p.Name), quote(p.Version), quote(p.Arch), quote(p.Suite), quote(p.Source), quote(p.Licence), quote(p.Pool), quote(p.SHA256), p.Size)
		if len(p.Libs) > 0 {
			fmt.Fprintf(&b, "libs = %s\n", quoteList(p.Libs))
		}
	}
	return b.Bytes()
}

// quote writes s as a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// quoteList writes a TOML array of strings.
func quoteList(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quote(s)
	}
	return "[" + strings.Join(q, ", ") + "]"
}
