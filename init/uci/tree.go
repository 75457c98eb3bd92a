package uci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Default folders, as on LEDE.
const (
	DefaultConfDir     = "/etc/config"
	DefaultSaveDir     = "/tmp/.uci"
	DefaultOverrideDir = "/var/run/uci"
)

// Tree is a set of configuration folders. The zero value is that of a device.
// A Tree keeps no state between calls; any number of goroutines and processes
// may work on the same folders.
//
// Where a method takes the name of a package, an absolute path names a file
// outside ConfDir. Such a file has no staged changes: Stage writes it.
type Tree struct {
	// ConfDir holds the package files; empty means DefaultConfDir.
	ConfDir string
	// OverrideDir: a file here replaces that of ConfDir, for reading and for
	// writing. Empty means DefaultOverrideDir.
	OverrideDir string
	// SaveDir holds the delta files; empty means DefaultSaveDir.
	SaveDir string
	// DeltaDirs hold further deltas, applied before those of SaveDir and never
	// changed.
	DeltaDirs []string
	// NonStrict reads files in spite of bad lines.
	NonStrict bool
	// NameUnnamed makes commits write the ids of unnamed sections as names.
	NameUnnamed bool
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (t *Tree) confDir() string { return or(t.ConfDir, DefaultConfDir) }
func (t *Tree) saveDir() string { return or(t.SaveDir, DefaultSaveDir) }

// path is where the file of a package is; staged tells whether it has deltas.
func (t *Tree) path(pkg string) (path string, staged bool, err error) {
	if filepath.IsAbs(pkg) || strings.HasPrefix(pkg, "./") {
		if !ValidType(filepath.Base(pkg)) || strings.HasSuffix(pkg, "/") {
			return "", false, fmt.Errorf("configuration file %q: bad name: %w", pkg, ErrInvalid)
		}
		return pkg, false, nil
	}
	if !ValidType(pkg) || strings.Contains(pkg, "/") {
		return "", false, fmt.Errorf("package %q: bad name, expected letters, digits, _ and -: %w", pkg, ErrInvalid)
	}
	if strings.HasPrefix(pkg, ".") {
		return "", false, fmt.Errorf("package %q: hidden files are not packages: %w", pkg, ErrNotFound)
	}
	over := filepath.Join(or(t.OverrideDir, DefaultOverrideDir), pkg)
	if _, err := os.Stat(over); err == nil {
		return over, true, nil
	}
	return filepath.Join(t.confDir(), pkg), true, nil
}

// List returns the names of all packages, sorted: the files of ConfDir and
// OverrideDir whose names have no dot. The error is ErrNotFound if ConfDir
// cannot be listed.
func (t *Tree) List() ([]string, error) {
	var names []string
	for i, dir := range []string{t.confDir(), or(t.OverrideDir, DefaultOverrideDir)} {
		entries, err := os.ReadDir(dir)
		if err != nil && i == 0 {
			return nil, fmt.Errorf("list packages: %w: %w", ErrNotFound, err)
		}
		for _, e := range entries {
			if !ValidPackage(e.Name()) {
				continue
			}
			if fi, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && !fi.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Load reads a package with its staged changes applied. The error is
// ErrNotFound if there is no such file and ErrParse for a bad line. With
// NonStrict bad lines give an error and a package.
func (t *Tree) Load(pkg string) (*Package, error) {
	path, staged, err := t.path(pkg)
	if err != nil {
		return nil, err
	}
	p, err := t.read(path)
	if p == nil || !staged {
		return p, err
	}
	changes, derr := t.Changes(pkg)
	if derr != nil {
		return nil, derr
	}
	for _, c := range changes {
		_ = p.Apply(c) // as upstream: what does not fit the file any more has no effect
	}
	return p, err
}

// LoadCommitted is [Tree.Load] without the staged changes: what a service acts
// on.
func (t *Tree) LoadCommitted(pkg string) (*Package, error) {
	path, _, err := t.path(pkg)
	if err != nil {
		return nil, err
	}
	return t.read(path)
}

// read parses a package file.
func (t *Tree) read(path string) (*Package, error) {
	fi, err := os.Stat(path)
	if err != nil || !fi.Mode().IsRegular() {
		if err == nil {
			err = errors.New("not a regular file")
		}
		return nil, fmt.Errorf("load %s: %w: %w", path, ErrNotFound, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load configuration: %w", err)
	}
	defer f.Close()
	return t.parse(path, f)
}

func (t *Tree) parse(path string, r io.Reader) (*Package, error) {
	pkgs, err := parse(r, parser{name: filepath.Base(path), single: true, strict: !t.NonStrict, file: path})
	if len(pkgs) == 0 {
		return nil, err
	}
	return pkgs[0], err
}

// deltas are the folders of deltas that come before those of SaveDir.
func (t *Tree) deltas() []string {
	save := t.saveDir()
	return slices.DeleteFunc(slices.Clone(t.DeltaDirs), func(d string) bool { return d == save })
}

// Changes returns what is staged for a package in all delta folders.
func (t *Tree) Changes(pkg string) ([]Change, error) {
	if _, staged, err := t.path(pkg); err != nil || !staged {
		return nil, err
	}
	return readDeltas(pkg, append(t.deltas(), t.saveDir()))
}

func readDeltas(pkg string, dirs []string) ([]Change, error) {
	var out []Change
	for _, dir := range dirs {
		f, err := os.Open(filepath.Join(dir, pkg))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read staged changes of %s: %w", pkg, err)
		}
		text, err := readLocked(f, syscall.LOCK_SH)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read staged changes of %s: %w", pkg, err)
		}
		out = append(out, ParseDelta(pkg, text)...)
	}
	return out, nil
}

// readLocked reads a delta file under a lock that ends when f is closed.
func readLocked(f *os.File, how int) ([]byte, error) {
	if err := flock(f, how); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = fmt.Errorf("%s is larger than %d bytes, commit or revert: %w", f.Name(), MaxSize, ErrInvalid)
	}
	return text, err
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.ENOSYS {
			return nil
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return nil
	}
}

// Stage applies changes to the package, in order, and appends them to its
// delta file; a change without effect leaves no trace. If one is refused
// (ErrInvalid, ErrNotFound) none is staged. In each of ops Section is replaced
// by the name it stood for, so that the id of an added section can be read
// from the slice passed as ops.
func (t *Tree) Stage(pkg string, ops ...Change) error {
	path, staged, err := t.path(pkg)
	if err != nil {
		return err
	}
	if !staged {
		return t.edit(path, func(p *Package) (bool, error) {
			changes, err := applyAll(p, ops)
			return len(changes) > 0, err
		})
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("stage changes of %s: %w: %w", pkg, ErrNotFound, err)
	}
	f, err := t.openDelta(pkg)
	if err != nil {
		return fmt.Errorf("stage changes of %s: %w", pkg, err)
	}
	defer f.Close()
	own, err := readLocked(f, syscall.LOCK_EX)
	if err != nil {
		return fmt.Errorf("stage changes of %s: %w", pkg, err)
	}
	p, err := t.read(path)
	if p == nil {
		return err
	}
	before, err := readDeltas(pkg, t.deltas())
	if err != nil {
		return err
	}
	for _, c := range append(before, ParseDelta(pkg, own)...) {
		_ = p.Apply(c)
	}
	changes, err := applyAll(p, ops)
	if err != nil || len(changes) == 0 {
		return err
	}
	var add strings.Builder
	if len(own) > 0 && own[len(own)-1] != '\n' {
		add.WriteByte('\n')
	}
	for _, c := range changes {
		add.WriteString(deltaLine(pkg, c))
	}
	if _, err := f.WriteAt([]byte(add.String()), int64(len(own))); err != nil {
		err = fmt.Errorf("stage changes of %s: %w", pkg, err)
		return errors.Join(err, f.Truncate(int64(len(own)))) // no half lines
	}
	return nil
}

// applyAll applies ops to p and returns those that had an effect.
func applyAll(p *Package, ops []Change) ([]Change, error) {
	var changes []Change
	for i := range ops {
		c, changed, err := p.apply(ops[i])
		if err != nil {
			return nil, err
		}
		ops[i].Section = c.Section
		if changed {
			changes = append(changes, c)
		}
	}
	return changes, nil
}

// openDelta opens the delta file for writing. The folder gets the mode of
// ConfDir, the file that of the package file, as staged values may be secret.
func (t *Tree) openDelta(pkg string) (*os.File, error) {
	dir := t.saveDir()
	if _, err := os.Stat(dir); err != nil {
		mode := fs.FileMode(0o700)
		if fi, err := os.Stat(t.confDir()); err == nil {
			mode = fi.Mode().Perm()
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(filepath.Join(dir, pkg), os.O_RDWR|os.O_CREATE, t.newMode(pkg))
}

// newMode is the mode of files made for a package.
func (t *Tree) newMode(pkg string) fs.FileMode {
	if fi, err := os.Stat(filepath.Join(t.confDir(), pkg)); err == nil {
		return fi.Mode().Perm()
	}
	return 0o600
}

// Commit writes the staged changes of a package to its file and empties the
// delta file of SaveDir. Without staged changes it does nothing. A commit that
// fails or is cut off leaves the old file or the new one, never a mixture; the
// staged changes are kept until the new one is on the disk.
func (t *Tree) Commit(pkg string) error {
	path, staged, err := t.path(pkg)
	if err != nil || !staged {
		return err
	}
	var delta *os.File
	defer func() {
		if delta != nil {
			delta.Close()
		}
	}()
	err = t.edit(path, func(p *Package) (bool, error) {
		f, err := os.OpenFile(filepath.Join(t.saveDir(), pkg), os.O_RDWR, 0)
		var own []byte
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, err
		default:
			delta = f
			if own, err = readLocked(f, syscall.LOCK_EX); err != nil {
				return false, err
			}
		}
		changes, err := readDeltas(pkg, t.deltas())
		if err != nil {
			return false, err
		}
		applied := 0
		for _, c := range append(changes, ParseDelta(pkg, own)...) {
			if p.Apply(c) == nil {
				applied++
			}
		}
		return applied > 0, nil
	})
	if err != nil {
		return fmt.Errorf("commit %s: %w", pkg, err)
	}
	if delta != nil {
		if err := delta.Truncate(0); err != nil {
			return fmt.Errorf("commit %s: drop staged changes: %w", pkg, err)
		}
	}
	return nil
}

// edit reads a package file under its lock, lets change work on it, and
// writes it if that tells so.
func (t *Tree) edit(path string, change func(*Package) (bool, error)) error {
	f, err := lockFile(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := t.parse(path, f)
	if p == nil {
		return err
	}
	write, err := change(p)
	if err != nil || !write {
		return err
	}
	return replaceFile(path, p.Name, p.text(form{comments: true, names: t.NameUnnamed}))
}

// lockFile opens and locks the file that is at path once the lock is held:
// while waiting, another commit may have put a new file there.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		if err != nil {
			return nil, err
		}
		if err := flock(f, syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		have, err := f.Stat()
		if err == nil {
			var now fs.FileInfo
			if now, err = os.Stat(path); err == nil && os.SameFile(have, now) {
				if !have.Mode().IsRegular() {
					f.Close()
					return nil, fmt.Errorf("%s is not a regular file: %w", path, ErrNotFound)
				}
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// replaceFile puts text at path, through symbolic links, keeping the mode.
func replaceFile(path, name string, text []byte) (err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	fi, err := os.Stat(real)
	if err != nil {
		return err
	}
	dir := filepath.Dir(real)
	tmp, err := os.CreateTemp(dir, "."+name+".uci-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(text); err != nil {
		return err
	}
	if err = tmp.Chmod(fi.Mode().Perm()); err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		_ = tmp.Chown(int(st.Uid), int(st.Gid)) // root keeps the owner; others cannot
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), real); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes durable what was renamed, made or removed in dir. A file system that
// knows no such call is no error.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// Write replaces the file of package p.Name, or makes it with mode 0600.
// Staged changes stay staged.
func (t *Tree) Write(p *Package) error {
	path, _, err := t.path(p.Name)
	if err != nil {
		return err
	}
	return t.write(path, p)
}

func (t *Tree) write(path string, p *Package) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write package %s: %w", p.Name, err)
	}
	f.Close()
	if f, err = lockFile(path); err == nil {
		err = replaceFile(path, filepath.Base(path), p.text(form{comments: true, names: t.NameUnnamed}))
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("write package %s: %w", p.Name, err)
	}
	return nil
}

// Import reads packages from r and writes their files: the one called pkg, or,
// if pkg is empty, one for each `package` line. Nothing is written if the text
// has a fault; with NonStrict bad lines are left out and reported in the error.
func (t *Tree) Import(pkg string, r io.Reader) error {
	if pkg == "" {
		pkgs, err := ParseAll(r, !t.NonStrict)
		for _, p := range pkgs {
			if werr := t.Write(p); werr != nil {
				return errors.Join(err, werr)
			}
		}
		return err
	}
	path, _, err := t.path(pkg)
	if err != nil {
		return err
	}
	p, err := Parse(filepath.Base(pkg), r, !t.NonStrict)
	if p == nil {
		return err
	}
	return errors.Join(err, t.write(path, p))
}

// Merge reads text as Import does and stages it as changes of an existing
// package: options replace, lists grow, unnamed sections are added.
func (t *Tree) Merge(pkg string, r io.Reader) error {
	p, err := t.Load(pkg)
	if p == nil {
		return err
	}
	var ops []Change
	_, bad := parse(r, parser{name: p.Name, single: true, strict: !t.NonStrict, pkg: p, record: func(c Change) { ops = append(ops, c) }})
	var pe *ParseError
	if bad != nil && (!t.NonStrict || !errors.As(bad, &pe)) {
		return bad
	}
	return errors.Join(bad, t.Stage(pkg, ops...))
}

// Revert drops staged changes of SaveDir: all of the package, or those of a
// section or an option. Section may be `@type[n]`.
func (t *Tree) Revert(pkg, section, option string) error {
	_, staged, err := t.path(pkg)
	if err != nil {
		return err
	}
	if !staged {
		return fmt.Errorf("revert %s: a file outside %s has no staged changes: %w", pkg, t.confDir(), ErrInvalid)
	}
	if section != "" && !ValidName(section) {
		p, err := t.Load(pkg)
		if p == nil {
			return err
		}
		s, err := p.Lookup(section)
		if err != nil {
			return fmt.Errorf("revert: %w", err)
		}
		section = s.Name
	}
	f, err := os.OpenFile(filepath.Join(t.saveDir(), pkg), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("revert %s: %w", pkg, err)
	}
	defer f.Close()
	text, err := readLocked(f, syscall.LOCK_EX)
	if err != nil {
		return fmt.Errorf("revert %s: %w", pkg, err)
	}
	var keep bytes.Buffer
	for _, c := range ParseDelta(pkg, text) {
		if section != "" && c.Section != section || option != "" && c.Option != option {
			keep.WriteString(deltaLine(pkg, c))
		}
	}
	if _, err = f.WriteAt(keep.Bytes(), 0); err == nil {
		err = f.Truncate(int64(keep.Len()))
	}
	if err != nil {
		return fmt.Errorf("revert %s: %w", pkg, err)
	}
	return nil
}
