// Package kmod picks kernel modules out of an unpacked kernel package: those
// that are named and those that they need, decompressed, with the index files
// that module loaders read (modules.dep, modules.alias, modules.builtin).
//
// Dependencies come from the modules themselves (the .modinfo section's
// depends and softdep), since Debian's packages leave modules.dep to be made
// on the machine. The formats are depmod's, kmod's documentation modules.dep(5).
package kmod

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// Module is one loadable module.
type Module struct {
	Name     string   `json:"name"` // with _ for -
	Path     string   `json:"path"` // below /lib/modules/<release>: kernel/fs/ext4/ext4.ko
	Size     int64    `json:"size"` // decompressed, bytes
	Depends  []string `json:"depends,omitempty"`
	Pre      []string `json:"pre,omitempty"`     // softdep: loaded before, if there
	Softdep  []string `json:"softdep,omitempty"` // as the module says it
	Aliases  []string `json:"aliases,omitempty"`
	Firmware []string `json:"firmware,omitempty"` // files that it asks for under /lib/firmware
	License  string   `json:"license,omitempty"`
}

// Set is a closed set of modules of one kernel: all that a module of it
// depends on is in it or built into the kernel.
type Set struct {
	Release string   `json:"release"`
	Modules []Module `json:"modules"` // sorted by path
	Builtin []string `json:"builtin"` // paths, as in modules.builtin
}

// ErrMissing is wrapped when the kernel package lacks a module.
var ErrMissing = errors.New("not in the kernel package")

// Release finds the kernel release in an unpacked package: the one folder
// below usr/lib/modules (or lib/modules), returned with that folder's path.
func Release(tree string) (release, dir string, err error) {
	for _, d := range []string{"usr/lib/modules", "lib/modules"} {
		entries, err := os.ReadDir(filepath.Join(tree, d))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("find the kernel's release: %w", err)
		}
		if len(entries) != 1 {
			return "", "", fmt.Errorf("find the kernel's release: %s has %d folders, want one", filepath.Join(tree, d), len(entries))
		}
		return entries[0].Name(), filepath.Join(tree, d, entries[0].Name()), nil
	}
	return "", "", fmt.Errorf("find the kernel's release: no modules below %s", tree)
}

// Commander runs one program; *pins.Tool is one.
type Commander interface {
	Command(ctx context.Context, args ...string) *exec.Cmd
}

// Select decompresses the named modules and all that they need from dir (the
// folder of one release) into out, which keeps their paths. A name in optional
// may be missing. Modules that are built into the kernel need no file. xz is the
// program of that name: ten times as fast as one in Go.
func Select(ctx context.Context, xz Commander, release, dir string, names, optional []string, out string) (*Set, error) {
	files, err := index(dir)
	if err != nil {
		return nil, err
	}
	s := &Set{Release: release}
	if s.Builtin, err = builtin(filepath.Join(dir, "modules.builtin")); err != nil {
		return nil, err
	}
	inKernel := map[string]bool{}
	for _, p := range s.Builtin {
		inKernel[name(p)] = true
	}
	var missing []string
	seen := map[string]bool{}
	var next []string
	want := func(n string, must bool) {
		n = canonical(n)
		switch {
		case seen[n] || inKernel[n]:
		case files[n] != "":
			seen[n] = true
			next = append(next, n)
		case must:
			seen[n] = true
			missing = append(missing, n)
		}
	}
	for _, n := range names {
		want(n, !slices.Contains(optional, n))
	}
	for len(next) > 0 { // one round a level of dependency
		round := next
		next = nil
		mods := make([]Module, len(round))
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(runtime.GOMAXPROCS(0))
		for i, n := range round {
			g.Go(func() error {
				m, err := unpack(ctx, xz, dir, files[n], out)
				if err != nil {
					return fmt.Errorf("module %s: %w", n, err)
				}
				mods[i] = *m
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, m := range mods {
			for _, d := range m.Depends {
				want(d, true)
			}
			for _, d := range m.Pre {
				want(d, false)
			}
		}
		s.Modules = append(s.Modules, mods...)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("modules %s: %w of %s: correct the names, or list them as optional", strings.Join(missing, ", "), ErrMissing, release)
	}
	slices.SortFunc(s.Modules, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	return s, nil
}

// index maps module names to paths below dir.
func index(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path.Base(p), ".ko") {
			files[name(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel modules: %w", err)
	}
	return files, nil
}

func builtin(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("list the modules built into the kernel: %w", err)
	}
	return strings.Fields(string(text)), nil
}

// name returns a module's name from its path.
func name(p string) string {
	base, _, _ := strings.Cut(path.Base(p), ".ko")
	return canonical(base)
}

func canonical(n string) string { return strings.ReplaceAll(n, "-", "_") }

// maxModule bounds a decompressed module, in bytes; the largest in a
// distribution's kernel are graphics drivers of some 40 MB.
const maxModule = 256 << 20

// unpack decompresses the module at dir/p into out and reads its .modinfo.
func unpack(ctx context.Context, xz Commander, dir, p, out string) (*Module, error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(p)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, ext := p[:strings.LastIndex(p, ".ko")+len(".ko")], path.Ext(p)
	var buf limited
	switch ext {
	case ".ko":
		_, err = io.Copy(&buf, f)
	case ".xz":
		cmd := xz.Command(ctx, "--decompress", "--stdout")
		cmd.Stdin, cmd.Stdout = f, &buf
		err = cmd.Run()
	case ".gz":
		var r *gzip.Reader
		if r, err = gzip.NewReader(f); err == nil {
			_, err = io.Copy(&buf, r)
		}
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			_, err = io.Copy(&buf, d)
		}
	default:
		err = fmt.Errorf("compression %s is not known; xz, gz and zst are", ext)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", p, err)
	}
	data := buf.Bytes()
	m, err := ParseModinfo(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	m.Name, m.Path, m.Size = name(p), plain, int64(len(data))
	dst := filepath.Join(out, filepath.FromSlash(plain))
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return nil, err
	}
	return m, os.WriteFile(dst, data, 0o644)
}

// limited is a buffer that refuses to grow beyond maxModule.
type limited struct{ bytes.Buffer }

// Write appends p, or fails.
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxModule {
		return 0, fmt.Errorf("more than %d bytes", maxModule)
	}
	return l.Buffer.Write(p)
}

// ReadFrom is not the buffer's, which knows no limit.
func (l *limited) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{l}, r)
}

// ParseModinfo reads what a module says of itself from its ELF file. Name, Path
// and Size are left to the caller.
func ParseModinfo(data []byte) (*Module, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read the module: %w", err)
	}
	defer f.Close()
	sec := f.Section(".modinfo")
	if sec == nil {
		return nil, errors.New("read the module: no .modinfo section")
	}
	info, err := sec.Data()
	if err != nil {
		return nil, fmt.Errorf("read the module: .modinfo: %w", err)
	}
	m := &Module{}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, ok := strings.Cut(string(entry), "=")
		if !ok {
			continue
		}
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.Depends = append(m.Depends, canonical(d))
				}
			}
		case "softdep":
			m.Softdep = append(m.Softdep, value)
			pre := false
			for w := range strings.FieldsSeq(value) {
				switch w {
				case "pre:":
					pre = true
				case "post:":
					pre = false
				default:
					if pre {
						m.Pre = append(m.Pre, canonical(w))
					}
				}
			}
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "firmware":
			m.Firmware = append(m.Firmware, value)
		case "license":
			m.License = value
		}
	}
	return m, nil
}

// Subset returns the set of the named modules and what they need, out of s.
// Names that s lacks are left out: Select has reported those that matter.
func (s *Set) Subset(names []string) *Set {
	out := &Set{Release: s.Release, Builtin: s.Builtin}
	in := map[string]bool{}
	for _, n := range s.Order(names) {
		in[n] = true
	}
	for _, m := range s.Modules {
		if in[m.Name] {
			out.Modules = append(out.Modules, m)
		}
	}
	return out
}

func (s *Set) byName() map[string]*Module {
	m := map[string]*Module{}
	for i := range s.Modules {
		m[s.Modules[i].Name] = &s.Modules[i]
	}
	return m
}

// Order returns the named modules and what they need, each after all that it
// needs: the order in which to load them.
func (s *Set) Order(names []string) []string {
	mods := s.byName()
	var order []string
	seen := map[string]bool{}
	var visit func(n string)
	visit = func(n string) {
		n = canonical(n)
		m := mods[n]
		if m == nil || seen[n] {
			return
		}
		seen[n] = true
		for _, d := range m.Pre {
			visit(d)
		}
		for _, d := range m.Depends {
			visit(d)
		}
		order = append(order, n)
	}
	for _, n := range names {
		visit(n)
	}
	return order
}

// Dep returns modules.dep: each module's path, a colon, and the paths of all
// that it needs, the nearest first, so that loading from the end works.
func (s *Set) Dep() []byte {
	mods := s.byName()
	var b bytes.Buffer
	for _, m := range s.Modules {
		b.WriteString(m.Path + ":")
		order := s.Order([]string{m.Name})
		for _, d := range slices.Backward(order[:len(order)-1]) {
			b.WriteString(" " + mods[d].Path)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Alias returns modules.alias.
func (s *Set) Alias() []byte {
	var b bytes.Buffer
	b.WriteString("# Aliases that the modules themselves name.\n")
	for _, m := range s.Modules {
		for _, a := range m.Aliases {
			fmt.Fprintf(&b, "alias %s %s\n", a, m.Name)
		}
	}
	return b.Bytes()
}

// Softdep returns modules.softdep.
func (s *Set) Softdep() []byte {
	var b bytes.Buffer
	b.WriteString("# Soft dependencies that the modules themselves name.\n")
	for _, m := range s.Modules {
		for _, d := range m.Softdep {
			fmt.Fprintf(&b, "softdep %s %s\n", m.Name, d)
		}
	}
	return b.Bytes()
}

// BuiltinText returns modules.builtin.
func (s *Set) BuiltinText() []byte {
	return []byte(strings.Join(s.Builtin, "\n") + "\n")
}
