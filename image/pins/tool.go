package pins

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// toolFormat changes when trees made before must not be used any more.
const toolFormat = "1"

// loaderName is the loader beside a program in its tree. There, because
// programs that look for their data from where /proc/self/exe lies find it so.
const loaderName = ".ld.so"

// glibcAlso are libraries that glibc loads by itself when a thread ends early:
// no file names them as needed.
var glibcAlso = []string{"libgcc_s.so.1"}

// Tool is a program that runs from the cache, with its own loader and
// libraries: the same on every machine.
type Tool struct {
	name string // the name it is run by, argv[0]
	dir  string // root of its tree
	spec toolSpec
}

// toolSpec is kept beside a tool's tree.
type toolSpec struct {
	Program string            `json:"program"`          // path in the tree
	Loader  string            `json:"loader,omitempty"` // path in the tree; none for a static program
	Libs    []string          `json:"libs,omitempty"`   // folders of the tree
	Env     map[string]string `json:"env,omitempty"`
	Args    []string          `json:"args,omitempty"`
	Arch    string            `json:"arch"`
}

// toolWant finds the entry of the lock that has a program of that name.
func (s *Store) toolWant(name string) (key string, w toolWant, err error) {
	if w, ok := s.lock.Tool[name]; ok {
		return name, w, nil
	}
	for key, w := range s.lock.Tool {
		if slices.Contains(w.Names, name) {
			return key, w, nil
		}
	}
	return "", toolWant{}, fmt.Errorf("tool %s: %w: tools are %s", name, ErrUnknown, strings.Join(s.ToolNames(), ", "))
}

// ToolNames lists the names that Tool knows, sorted.
func (s *Store) ToolNames() []string {
	var out []string
	for key, w := range s.lock.Tool {
		out = append(append(out, key), w.Names...)
	}
	slices.Sort(out)
	return out
}

// Tool gives the program name for the build machine's architecture, fetching
// and unpacking what it needs if the cache does not have it.
func (s *Store) Tool(ctx context.Context, name string) (*Tool, error) {
	return s.tool(ctx, name, true)
}

// tool is Tool; useTool as in unpack.
func (s *Store) tool(ctx context.Context, name string, useTool bool) (*Tool, error) {
	key, want, err := s.toolWant(name)
	if err != nil {
		return nil, err
	}
	packages, err := s.Closure("tool."+key, s.host)
	if err != nil {
		return nil, err
	}
	dir, err := s.toolDir(key, want, packages)
	if err != nil {
		return nil, err
	}
	if t, err := openTool(name, dir); !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	if err := s.Fetch(ctx, packages...); err != nil {
		return nil, fmt.Errorf("tool %s: %w", name, err)
	}
	if useTool {
		if err := s.unpackAll(ctx, packages); err != nil {
			return nil, fmt.Errorf("tool %s: %w", name, err)
		}
	}
	if dir, err = s.toolDir(key, want, packages); err != nil { // newer packages may have come
		return nil, err
	}
	unlock, err := s.busy.lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	unlockFile, err := lockPath(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlockFile()
	if t, err := openTool(name, dir); !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	c := s.lockedClosure(s.host, useTool)
	if err := s.addTool(ctx, c, want); err != nil {
		return nil, fmt.Errorf("tool %s: %w", name, err)
	}
	if err := makeTool(c, want, s.host, dir); err != nil {
		return nil, fmt.Errorf("put tool %s together: %w", name, explainDisk(dir, err))
	}
	return openTool(name, dir)
}

// toolDir names the folder of a tool: it changes with all that goes into it.
func (s *Store) toolDir(key string, want toolWant, packages []string) (string, error) {
	list, err := s.lookupAll(packages)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", key, err)
	}
	h := sha256.New()
	def, err := json.Marshal(want)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", key, err)
	}
	fmt.Fprintf(h, "%s %s\n%s\n", toolFormat, s.host, def)
	for _, p := range list {
		fmt.Fprintln(h, p.SHA256)
	}
	return filepath.Join(s.dir, "tool", key+"-"+hex.EncodeToString(h.Sum(nil)[:8])), nil
}

// lockedClosure is a closure over the locked packages of an architecture.
func (s *Store) lockedClosure(arch string, useTool bool) *closure {
	return &closure{
		arch: arch,
		tree: func(ctx context.Context, p Package) (string, error) {
			if dir := s.treePath(p); exists(dir) {
				return dir, nil
			}
			if !s.haveDeb(p) {
				if err := s.Fetch(ctx, p.ID()); err != nil {
					return "", err
				}
				if q, ok := s.Package(p.ID()); ok {
					p = q
				}
			}
			return s.unpack(ctx, p, useTool)
		},
		find: func(_ context.Context, _ Package, lib string) (Package, error) {
			name, ok := s.libraryPackage(arch, lib)
			if !ok {
				return Package{}, ErrUnknown
			}
			return s.lookup(name + ":" + arch)
		},
	}
}

// addTool puts a tool's files into a closure.
func (s *Store) addTool(ctx context.Context, c *closure, want toolWant) error {
	p, err := s.lookup(want.Package + ":" + c.arch)
	if err != nil {
		return err
	}
	return addToolFiles(ctx, c, want, p, func(name string) (Package, error) { return s.lookup(name + ":" + c.arch) })
}

// addToolFiles puts the program of package p, its files and what glibc loads by
// itself into a closure.
func addToolFiles(ctx context.Context, c *closure, want toolWant, p Package, lookup func(name string) (Package, error)) error {
	if err := c.add(ctx, p, want.Program); err != nil {
		return err
	}
	for _, f := range want.Files {
		name, file := splitFile(want.Package, f)
		q, err := lookup(name)
		if err != nil {
			return err
		}
		if err := c.add(ctx, q, strings.ReplaceAll(file, "{lib}", libraryDirs(c.arch)[0])); err != nil {
			return err
		}
	}
	for _, libc := range c.sorted() {
		if path.Base(libc.path) == "libc.so.6" {
			for _, lib := range glibcAlso {
				if err := c.addLibrary(ctx, libc.pkg, libc.path, lib, nil); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// makeTool makes a tool's folder: the tree, and the file that says how to run
// it.
func makeTool(c *closure, want toolWant, arch, dir string) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil { // of a run that was killed
		return err
	}
	defer os.RemoveAll(part)
	tree := filepath.Join(part, "root")
	if err := makeDir(tree); err != nil {
		return err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	program, err := c.follow(want.Program)
	if err != nil {
		return err
	}
	for _, p := range c.sorted() {
		if parent := path.Dir(p.path); parent != "." {
			if err := rootMkdirAll(root, parent); err != nil {
				return err
			}
		}
		if p.link != "" {
			link := p.link
			if path.IsAbs(link) { // the tree is not at the root
				if link, err = filepath.Rel("/"+path.Dir(p.path), link); err != nil {
					return err
				}
			}
			err = root.Symlink(link, p.path)
		} else if p.path == program.path && len(want.Replace) > 0 {
			err = patchProgram(p.source, filepath.Join(tree, filepath.FromSlash(p.path)), want.Replace, arch)
		} else {
			err = linkOrCopy(p.source, filepath.Join(tree, filepath.FromSlash(p.path)))
		}
		if err != nil {
			return err
		}
	}
	spec := toolSpec{Program: program.path, Env: want.Env, Args: want.Args, Arch: arch}
	if program.facts.interp != "" {
		loader, err := c.loader(program)
		if err != nil {
			return err
		}
		spec.Loader = path.Join(path.Dir(program.path), loaderName)
		if err := linkOrCopy(loader.source, filepath.Join(tree, filepath.FromSlash(spec.Loader))); err != nil {
			return err
		}
		spec.Libs = slices.Sorted(maps.Keys(c.dirs))
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(part, "tool.json"), append(text, '\n'), 0o444); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// maxLinks bounds how many links in a row are followed.
const maxLinks = 16

// follow gives the file that a path of the closure leads to.
func (c *closure) follow(name string) (pick, error) {
	at := name
	for range maxLinks {
		p, ok := c.picks[at]
		switch {
		case !ok:
			return pick{}, fmt.Errorf("%s leads to %s, which is not there", name, at)
		case p.link == "":
			return p, nil
		case path.IsAbs(p.link):
			at = strings.TrimPrefix(path.Clean(p.link), "/")
		default:
			at = path.Join(path.Dir(at), p.link)
		}
	}
	return pick{}, fmt.Errorf("%s leads through more than %d links", name, maxLinks)
}

// loader gives the loader of a program of the closure.
func (c *closure) loader(program pick) (pick, error) {
	for _, dir := range libraryDirs(c.arch) {
		name := dir + "/" + path.Base(program.facts.interp)
		if c.picks[name].path != "" {
			return c.follow(name)
		}
	}
	return pick{}, fmt.Errorf("the loader %s of %s is not among its files", program.facts.interp, program.path)
}

// linkOrCopy puts the file at from also at to.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	in, err := os.Open(from) // a file system without hard links
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(st.Mode().Perm()), out.Close())
}

// patchProgram copies a program with strings in it replaced. Each must be there
// as a whole, between two NUL bytes; what is left of it is filled with NUL.
func patchProgram(from, to string, replace map[string]string, arch string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	for _, old := range slices.Sorted(maps.Keys(replace)) {
		find := []byte("\x00" + strings.ReplaceAll(old, "{lib}", libraryDirs(arch)[0]) + "\x00")
		put := make([]byte, len(find))
		if len(replace[old])+2 > len(put) {
			return fmt.Errorf("replace %q in %s: %q is longer", old, from, replace[old])
		}
		copy(put[1:], replace[old])
		if !bytes.Contains(data, find) {
			return fmt.Errorf("replace %q in %s: it is not there: correct the request in pins.toml", old, from)
		}
		data = bytes.ReplaceAll(data, find, put)
	}
	return writeAtomic(to, data, 0o555)
}

// openTool opens a tool's folder; fs.ErrNotExist if it was not made yet.
func openTool(name, dir string) (*Tool, error) {
	file := filepath.Join(dir, "tool.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("tool %s: %w", name, err)
	}
	t := &Tool{name: name, dir: filepath.Join(dir, "root")}
	if err := json.Unmarshal(text, &t.spec); err != nil {
		return nil, fmt.Errorf("tool %s: read %s: %w: remove the folder that it lies in", name, file, err)
	}
	return t, nil
}

// Dir is the root of the tool's tree: usr/share/qemu, usr/lib/grub and the like
// are found below it.
func (t *Tool) Dir() string { return t.dir }

// Name is the name that the tool is run by.
func (t *Tool) Name() string { return t.name }

// Path is the program's file. It runs by itself only where the machine has a
// loader and libraries that fit: use Command.
func (t *Tool) Path() string { return filepath.Join(t.dir, filepath.FromSlash(t.spec.Program)) }

// Command makes the command that runs the tool with args: through the tool's
// own loader, with its own libraries, and in an environment of which nothing
// but TMPDIR comes from the machine. The caller may add to its Env.
func (t *Tool) Command(ctx context.Context, args ...string) *exec.Cmd {
	all := t.argv()
	for _, a := range t.spec.Args {
		all = append(all, t.expand(a))
	}
	cmd := exec.CommandContext(ctx, all[0], append(all[1:], args...)...)
	cmd.Env = t.env()
	return cmd
}

// argv is the command line up to the program's own arguments.
func (t *Tool) argv() []string {
	if t.spec.Loader == "" {
		return []string{t.Path()}
	}
	libs := make([]string, len(t.spec.Libs))
	for i, l := range t.spec.Libs {
		libs[i] = filepath.Join(t.dir, filepath.FromSlash(l))
	}
	return []string{
		filepath.Join(t.dir, filepath.FromSlash(t.spec.Loader)),
		"--inhibit-cache", // the machine's ld.so.cache names other libraries
		"--library-path", strings.Join(libs, ":"),
		"--argv0", t.name,
		t.Path(),
	}
}

func (t *Tool) env() []string {
	env := []string{"LC_ALL=C", "TZ=UTC", "HOME=/nonexistent", "PATH=" + filepath.Join(t.dir, "usr/bin") + ":" + filepath.Join(t.dir, "usr/sbin")}
	if v, ok := os.LookupEnv("TMPDIR"); ok {
		env = append(env, "TMPDIR="+v)
	}
	for _, k := range slices.Sorted(maps.Keys(t.spec.Env)) {
		env = append(env, k+"="+t.expand(t.spec.Env[k]))
	}
	return env
}

// expand fills in the places of the tree.
func (t *Tool) expand(s string) string {
	return strings.NewReplacer("{dir}", t.dir, "{lib}", libraryDirs(t.spec.Arch)[0]).Replace(s)
}

// xzTool gives the pinned xz, or nothing where it cannot be had or package p is
// part of it.
func (s *Store) xzTool(ctx context.Context, p Package) (*Tool, error) {
	if s.lock == nil {
		return nil, nil
	}
	packages, err := s.Closure("tool.xz", s.host)
	if err != nil {
		return nil, nil
	}
	list, err := s.lookupAll(packages)
	if err != nil {
		return nil, nil
	}
	for _, q := range list {
		if q.SHA256 == p.SHA256 {
			return nil, nil
		}
	}
	t, err := s.tool(ctx, "xz", false)
	if err != nil && ctx.Err() == nil {
		s.log.Debug("the pinned xz cannot be used: unpack without it", "error", err)
		return nil, nil
	}
	return t, err
}
