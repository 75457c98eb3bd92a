package pins

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// List writes the packages in use to w, as a table or as JSON.
func (s *Store) List(w io.Writer, asJSON bool) error {
	list := s.Packages()
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Release       string    `json:"release"`
			Architectures []string  `json:"architectures"`
			Packages      []Package `json:"packages"`
		}{s.lock.Release, s.lock.Lock.Architectures, list})
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PACKAGE\tVERSION\tARCH\tSUITE\tSIZE\tCACHE\tLICENCE")
	for _, p := range list {
		state := "-"
		switch {
		case exists(s.treePath(p)):
			state = "unpacked"
		case s.haveDeb(p):
			state = "fetched"
		}
		if p.Drifted {
			state += ", drifted"
		}
		licence := p.Licence
		if r := []rune(licence); len(r) > 40 {
			licence = string(r[:39]) + "…"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, p.Version, p.Arch, p.Suite, mebibytes(p.Size), state, licence)
	}
	return tw.Flush()
}

// expand turns what a user names into packages: packages as Package takes them,
// entries of the lock as Closure takes them, tools by their name; nothing
// stands for all that is locked.
func (s *Store) expand(names []string) ([]string, error) {
	if len(names) == 0 {
		for _, p := range s.Packages() {
			names = append(names, p.ID())
		}
		return names, nil
	}
	var out []string
	for _, name := range names {
		if kind, _, ok := strings.Cut(name, "."); ok && slices.Contains([]string{"tool", "image", "data", "meta"}, kind) {
			want, arch, _ := strings.Cut(name, ":")
			packages, err := s.Closure(want, arch)
			if err != nil {
				return nil, err
			}
			out = append(out, packages...)
			continue
		}
		if _, ok := s.Package(name); !ok {
			if packages, err := s.Closure("tool."+name, ""); err == nil {
				out = append(out, packages...)
				continue
			}
		}
		out = append(out, name)
	}
	return out, nil
}

// FetchNamed downloads and unpacks what names stand for: packages ("cpio",
// "kernel:amd64"), entries of the lock ("tool.mksquashfs", "image.e2fsprogs"),
// tools ("mcopy"), or everything if there are none. It writes a closing line to w.
func (s *Store) FetchNamed(ctx context.Context, w io.Writer, names ...string) error {
	list, err := s.expand(names)
	if err != nil {
		return err
	}
	if err := s.Prefetch(ctx, list...); err != nil {
		return err
	}
	packages, err := s.lookupAll(list)
	if err != nil {
		return err
	}
	var size int64
	for _, p := range packages {
		size += p.Size
	}
	_, err = fmt.Fprintf(w, "%d packages, %s, are in %s\n", len(packages), mebibytes(size), s.dir)
	return err
}

// Path writes where something is to w: a tool's program, or a package's
// unpacked files. It fetches what is missing.
func (s *Store) Path(ctx context.Context, w io.Writer, name string) error {
	if _, _, err := s.toolWant(name); err == nil {
		t, err := s.Tool(ctx, name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, t.Path())
		return err
	}
	if _, ok := s.Package(name); !ok {
		return fmt.Errorf("%s: %w: it is neither a tool (%s) nor a package of %s", name, ErrUnknown, strings.Join(s.ToolNames(), ", "), s.lockName)
	}
	dir, err := s.Unpack(ctx, name)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, dir)
	return err
}

// Run runs a tool with args and gives its exit code; err tells only that it
// could not be run.
func (s *Store) Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, name string, args ...string) (code int, err error) {
	t, err := s.Tool(ctx, name)
	if err != nil {
		return 1, err
	}
	cmd := t.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("run %s: %w", name, err)
	}
	return 0, nil
}

// Verify reads all that the cache has of the locked packages again: each
// package's hash, and each file of each tree against its package. What is wrong
// is told on w and, with repair, removed, so that the next use fetches or
// unpacks it anew. It tells how many things were wrong.
func (s *Store) Verify(ctx context.Context, w io.Writer, repair bool) (bad int, err error) {
	packages, trees := 0, 0
	for _, p := range s.Packages() {
		if err := ctx.Err(); err != nil {
			return bad, err
		}
		file, dir := s.debPath(p), s.treePath(p)
		good := false
		if exists(file) {
			packages++
			if err := verifyDeb(file, p); err != nil {
				bad++
				fmt.Fprintf(w, "%s: %s: %v\n", p, file, err)
				if repair {
					if err := os.Remove(file); err != nil {
						return bad, fmt.Errorf("remove the bad package: %w", err)
					}
				}
			} else {
				good = true
			}
		}
		if !exists(dir) {
			continue
		}
		trees++
		if !good {
			if !exists(file) {
				fmt.Fprintf(w, "%s: its package is not in the cache, so that its files cannot be checked: %q fetches it\n", p, "pins fetch "+p.ID())
			}
			continue
		}
		xz, err := s.xzTool(ctx, p)
		if err != nil {
			return bad, err
		}
		if err := verifyTree(ctx, file, dir, xz); err != nil {
			bad++
			fmt.Fprintf(w, "%s: %s: %v\n", p, dir, err)
			if repair {
				if err := os.RemoveAll(dir); err != nil {
					return bad, fmt.Errorf("remove the bad files: %w", err)
				}
				// Programs were put together from them.
				if err := os.RemoveAll(filepath.Join(s.dir, "tool")); err != nil {
					return bad, fmt.Errorf("remove the tools made of bad files: %w", err)
				}
			}
		}
	}
	_, err = fmt.Fprintf(w, "%d packages and %d trees checked, %d bad\n", packages, trees, bad)
	return bad, err
}

// verifyDeb reads a package file's hash again.
func verifyDeb(file string, p Package) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	if n != p.Size {
		return fmt.Errorf("%w: it has %d bytes, expected %d", ErrHash, n, p.Size)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 {
		return fmt.Errorf("%w: it has %s", ErrHash, got)
	}
	return nil
}

// verifyTree compares a tree with the package that it was unpacked from.
func verifyTree(ctx context.Context, debFile, dir string, xz *Tool) error {
	return withData(ctx, debFile, xz, func(r io.Reader) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		expected := map[string]bool{}
		tr := tar.NewReader(r)
		for {
			e, err := readEntry(tr)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			expected[e.path] = true
			if err := verifyEntry(root, e, tr); err != nil {
				return err
			}
		}
		return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !expected[name] {
				err = fmt.Errorf("%s is not of the package", name)
			}
			return err
		})
	})
}

// verifyEntry compares one file of a tree with what the package has, read from r.
func verifyEntry(root *os.Root, e treeEntry, r io.Reader) error {
	st, err := root.Lstat(e.path)
	if err != nil {
		return fmt.Errorf("%s: %w", e.path, err)
	}
	switch e.kind {
	case tar.TypeDir:
		if !st.IsDir() && st.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("%s is no folder", e.path)
		}
		return nil
	case tar.TypeSymlink:
		if link, err := root.Readlink(e.path); err != nil || link != e.link {
			return fmt.Errorf("%s leads to %q, expected %q", e.path, link, e.link)
		}
		return nil
	case tar.TypeLink:
		other, err := root.Lstat(e.link)
		if err != nil {
			return fmt.Errorf("%s: %w", e.path, err)
		}
		if !os.SameFile(st, other) {
			return fmt.Errorf("%s is not the same file as %s", e.path, e.link)
		}
		return nil
	}
	if !st.Mode().IsRegular() || st.Size() != e.size || st.Mode().Perm() != e.mode {
		return fmt.Errorf("%s: it is %s with %d bytes, expected %s with %d", e.path, st.Mode(), st.Size(), e.mode, e.size)
	}
	f, err := root.Open(e.path)
	if err != nil {
		return err
	}
	defer f.Close()
	same, err := equal(f, r)
	if err == nil && !same {
		err = fmt.Errorf("%s: its content is not the package's", e.path)
	}
	return err
}

// equal compares two streams.
func equal(a, b io.Reader) (bool, error) {
	ha, hb := sha256.New(), sha256.New()
	if _, err := io.Copy(ha, a); err != nil {
		return false, err
	}
	if _, err := io.Copy(hb, b); err != nil {
		return false, err
	}
	return string(ha.Sum(nil)) == string(hb.Sum(nil)), nil
}

// Prune removes from the cache what the lock in force does not use: packages,
// trees, tools and records of other locks, and what killed runs left. It writes
// what it freed to w.
func (s *Store) Prune(w io.Writer) error {
	keep := map[string]bool{filepath.Base(s.driftPath()): true}
	for _, p := range s.Packages() {
		keep[p.SHA256] = true
		keep[p.SHA256+".deb"] = true
	}
	for key, want := range s.lock.Tool {
		packages, err := s.Closure("tool."+key, s.host)
		if err != nil {
			continue
		}
		dir, err := s.toolDir(key, want, packages)
		if err != nil {
			return err
		}
		keep[filepath.Base(dir)] = true
	}
	n := 0
	for _, sub := range []string{"deb", "tree", "tool", "drift"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("prune the cache: %w", err)
		}
		for _, e := range entries {
			name := e.Name()
			if keep[name] || strings.HasSuffix(name, ".lock") || (strings.HasSuffix(name, ".part") && keep[strings.TrimSuffix(name, ".part")]) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(s.dir, sub, name)); err != nil {
				return fmt.Errorf("prune the cache: %w", err)
			}
			n++
		}
	}
	_, err := fmt.Fprintf(w, "removed %d things that the lock does not use from %s\n", n, s.dir)
	return err
}
