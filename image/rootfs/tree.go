// Package rootfs puts together the device's root file system: the overlay
// skeleton, the role, the user's FILES, the device program with its applets,
// kernel modules and foreign programs, the release files and the start links.
//
// The tree is a list in memory, not a folder: owners, modes and times come
// from rules (see the table in rules.go), so that neither the umask nor the
// modes of a checkout nor root's powers have a say, and special files need no
// privileges. It leaves as a tar stream for mksquashfs.
package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Entry is one file, folder, link or device of the tree.
type Entry struct {
	Path         string      // relative to the root, "" for the root itself
	Mode         fs.FileMode // type and permissions, setuid and sticky included
	UID, GID     int
	Link         string // of a symbolic link
	Major, Minor int64  // of a device
	Source       string // file that holds the content, or
	Data         []byte // the content itself
	Size         int64
	// Origin says who brought it in: "overlay", "role router", "files",
	// "init", "module virtio_net", "package e2fsprogs", "release".
	Origin string
}

// Tree is a root file system in the making. The zero value is empty.
type Tree struct {
	entries map[string]*Entry
}

// ErrConflict is wrapped when two sources want one path for different kinds
// of things.
var ErrConflict = errors.New("conflict in the root file system")

// maxLinks bounds how many symbolic links one path may lead through.
const maxLinks = 16

// resolve follows symbolic links in all but the last part of the path, so that
// a file placed in a linked folder lands where the link leads.
func (t *Tree) resolve(p string) (string, error) {
	for range maxLinks {
		done := true
		dir := ""
		parts := strings.Split(p, "/")
		for i, part := range parts[:len(parts)-1] {
			dir = path.Join(dir, part)
			e := t.entries[dir]
			if e == nil || e.Mode&fs.ModeSymlink == 0 {
				continue
			}
			to := e.Link
			if !path.IsAbs(to) {
				to = path.Join(path.Dir(dir), to)
			}
			p = strings.TrimPrefix(path.Join("/", to, path.Join(parts[i+1:]...)), "/")
			done = false
			break
		}
		if done {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s leads through more than %d symbolic links: %w", p, maxLinks, ErrConflict)
}

// Add puts an entry into the tree, with the folders above it, replacing what
// is there. A folder over a link to a folder is the link; other changes of
// kind between folder and non-folder are errors.
func (t *Tree) Add(e Entry) error {
	if t.entries == nil {
		t.entries = map[string]*Entry{}
	}
	clean := strings.TrimPrefix(path.Clean("/"+e.Path), "/")
	p, err := t.resolve(clean)
	if err != nil {
		return err
	}
	e.Path = p
	old := t.entries[p]
	switch {
	case old == nil:
	case e.Mode.IsDir() && old.Mode&fs.ModeSymlink != 0:
		target, err := t.resolve(path.Join(p, "x"))
		if err != nil {
			return err
		}
		return t.folders(target, e.Origin)
	case e.Mode.IsDir() != old.Mode.IsDir():
		return fmt.Errorf("/%s is a %s in %s and a %s in %s: %w", p, kindOf(old.Mode), old.Origin, kindOf(e.Mode), e.Origin, ErrConflict)
	}
	if err := t.folders(p, e.Origin); err != nil {
		return err
	}
	if e.Data != nil {
		e.Size = int64(len(e.Data))
	}
	applyRules(&e)
	t.entries[p] = &e
	return nil
}

// folders makes the folders above p.
func (t *Tree) folders(p, origin string) error {
	for d := path.Dir(p); d != "." && d != "/"; d = path.Dir(d) {
		if e := t.entries[d]; e != nil {
			if !e.Mode.IsDir() {
				return fmt.Errorf("/%s is a %s in %s, and %s has something below it: %w", d, kindOf(e.Mode), e.Origin, origin, ErrConflict)
			}
			continue
		}
		e := &Entry{Path: d, Mode: fs.ModeDir | 0o755, Origin: origin}
		applyRules(e)
		t.entries[d] = e
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeSymlink != 0:
		return "link"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "file"
}

// Dir adds a folder.
func (t *Tree) Dir(p, origin string) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeDir | 0o755, Origin: origin})
}

// Text adds a file with the given content.
func (t *Tree) Text(p, text, origin string) error {
	return t.Add(Entry{Path: p, Mode: 0o644, Data: []byte(text), Origin: origin})
}

// Link adds a symbolic link.
func (t *Tree) Link(p, to, origin string) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: to, Origin: origin})
}

// File adds a file by its path on the build machine. Executable permission is
// by rule: scripts (#!) and ELF programs are executable, and so is what the
// caller says is.
func (t *Tree) File(p, source string, executable bool, origin string) error {
	st, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("add /%s: %w", p, err)
	}
	mode := fs.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	return t.Add(Entry{Path: p, Mode: mode, Source: source, Size: st.Size(), Origin: origin})
}

// Overlay copies a folder over the tree. Modes of the checkout do not count
// but for one: where keepExec is set, a file that its owner may execute stays
// so (the user's FILES). Version control's folders and files, editors' back-up
// files and .gitkeep stay out.
func (t *Tree) Overlay(dir string, keepExec bool, origin string) error {
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if rel == "." {
			return nil
		}
		if Ignored(d.Name()) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		switch {
		case d.IsDir():
			return t.Dir(rel, origin)
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(file)
			if err != nil {
				return err
			}
			return t.Link(rel, to, origin)
		case d.Type().IsRegular():
			exec := false
			if keepExec {
				st, err := d.Info()
				if err != nil {
					return err
				}
				exec = st.Mode()&0o100 != 0
			}
			if !exec {
				if exec, err = isScript(file); err != nil {
					return err
				}
			}
			return t.File(rel, file, exec, origin)
		}
		return fmt.Errorf("%s is a %s: only files, folders and links are copied", file, d.Type())
	})
	if err != nil {
		return fmt.Errorf("copy %s into the root file system: %w", dir, err)
	}
	return nil
}

// Ignored tells whether a file or folder of that name stays out of overlays.
func Ignored(name string) bool {
	switch name {
	case ".git", ".svn", ".hg", "CVS", ".gitkeep", ".gitignore", ".gitattributes", ".DS_Store":
		return true
	}
	return strings.HasSuffix(name, "~") || strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, ".orig") && strings.HasPrefix(name, ".")
}

// isScript tells whether a file starts as a script or a program does.
func isScript(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var b [4]byte
	n, err := io.ReadFull(f, b[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	return strings.HasPrefix(string(b[:n]), "#!") || string(b[:n]) == "\x7fELF", nil
}

// Lookup returns the entry at a path; symbolic links in its folders are followed.
func (t *Tree) Lookup(p string) (Entry, bool) {
	p, err := t.resolve(strings.TrimPrefix(path.Clean("/"+p), "/"))
	if err != nil || t.entries[p] == nil {
		return Entry{}, false
	}
	return *t.entries[p], true
}

// Remove takes a path and all below it out of the tree.
func (t *Tree) Remove(p string) {
	for k := range t.entries {
		if k == p || strings.HasPrefix(k, p+"/") {
			delete(t.entries, k)
		}
	}
}

// Read returns the content of a file of the tree.
func (t *Tree) Read(p string) ([]byte, error) {
	e, ok := t.Lookup(p)
	if !ok {
		return nil, fmt.Errorf("/%s: %w", p, fs.ErrNotExist)
	}
	if e.Source != "" {
		return os.ReadFile(e.Source)
	}
	return e.Data, nil
}

// List returns the entries below a folder ("" for all), sorted by path.
func (t *Tree) List(dir string) []Entry {
	var out []Entry
	for k, e := range t.entries {
		if dir == "" || strings.HasPrefix(k, dir+"/") {
			out = append(out, *e)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// WriteTar writes the tree as a tar archive, sorted, every time the epoch's.
func (t *Tree) WriteTar(w io.Writer, epoch int64) error {
	tw := tar.NewWriter(w)
	when := time.Unix(epoch, 0).UTC()
	for _, e := range t.List("") {
		h := &tar.Header{Name: e.Path, Uid: e.UID, Gid: e.GID, ModTime: when, Mode: unixMode(e.Mode), Format: tar.FormatPAX}
		switch {
		case e.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		case e.Mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		case e.Mode&fs.ModeCharDevice != 0:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, e.Major, e.Minor
		default:
			h.Typeflag, h.Size = tar.TypeReg, e.Size
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write /%s: %w", e.Path, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := e.copyTo(tw); err != nil {
			return fmt.Errorf("write /%s: %w", e.Path, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("write the root file system: %w", err)
	}
	return nil
}

func (e *Entry) copyTo(w io.Writer) error {
	if e.Source == "" {
		_, err := w.Write(e.Data)
		return err
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func unixMode(m fs.FileMode) int64 {
	out := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		out |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		out |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		out |= 0o1000
	}
	return out
}
