package pins

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// machine is what the loader of an architecture goes by.
type machine struct {
	triplet string // Debian's multiarch folder
	elf     elf.Machine
	class   elf.Class
}

var machines = map[string]machine{
	"amd64":   {"x86_64-linux-gnu", elf.EM_X86_64, elf.ELFCLASS64},
	"arm64":   {"aarch64-linux-gnu", elf.EM_AARCH64, elf.ELFCLASS64},
	"armhf":   {"arm-linux-gnueabihf", elf.EM_ARM, elf.ELFCLASS32},
	"i386":    {"i386-linux-gnu", elf.EM_386, elf.ELFCLASS32},
	"ppc64el": {"powerpc64le-linux-gnu", elf.EM_PPC64, elf.ELFCLASS64},
	"riscv64": {"riscv64-linux-gnu", elf.EM_RISCV, elf.ELFCLASS64},
	"s390x":   {"s390x-linux-gnu", elf.EM_S390, elf.ELFCLASS64},
}

// libraryDirs are the folders where Debian's loader searches (glibc's
// slibdir and libdir with multiarch, then those without).
func libraryDirs(arch string) []string {
	t := machines[arch].triplet
	return []string{"usr/lib/" + t, "lib/" + t, "usr/lib", "lib", "usr/lib64", "lib64"}
}

// maxElfList bounds how many libraries one file may need.
const maxElfList = 1024

// elfFacts is what a program or library says about what it needs.
type elfFacts struct {
	needed   []string // DT_NEEDED
	runpath  []string // DT_RUNPATH, else DT_RPATH
	soname   string   // DT_SONAME
	interp   string   // PT_INTERP
	machine  elf.Machine
	class    elf.Class
	isObject bool // it is ELF at all
	unwinds  bool // it ends threads early, for which glibc loads a library by itself
}

// readELF reads the facts of a file; one that is not ELF has none.
func readELF(r io.ReaderAt) (facts elfFacts, err error) {
	var magic [4]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil || string(magic[:]) != elf.ELFMAG {
		return elfFacts{}, nil
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return elfFacts{}, err
	}
	facts = elfFacts{machine: f.Machine, class: f.Class, isObject: true}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return facts, nil
	}
	dynamic := false
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_DYNAMIC:
			dynamic = true
		case elf.PT_INTERP:
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return elfFacts{}, fmt.Errorf("read its interpreter: %w", err)
			}
			facts.interp = strings.TrimRight(string(b), "\x00")
		}
	}
	if !dynamic {
		return facts, nil
	}
	one := func(tag elf.DynTag) []string {
		var v []string
		if err == nil {
			v, err = f.DynString(tag)
		}
		if len(v) > maxElfList {
			err = fmt.Errorf("%d entries of %s", len(v), tag)
		}
		return v
	}
	facts.needed = one(elf.DT_NEEDED)
	facts.runpath = one(elf.DT_RUNPATH)
	if len(facts.runpath) == 0 {
		facts.runpath = one(elf.DT_RPATH)
	}
	if v := one(elf.DT_SONAME); len(v) > 0 {
		facts.soname = v[0]
	}
	if err != nil {
		return elfFacts{}, fmt.Errorf("read its dynamic section: %w", err)
	}
	// An object without symbols is no fault: it then ends no threads.
	if symbols, err := f.ImportedSymbols(); err == nil {
		facts.unwinds = slices.ContainsFunc(symbols, func(s elf.ImportedSymbol) bool { return s.Name == "pthread_cancel" || s.Name == "pthread_exit" })
	}
	for _, n := range facts.needed {
		if !localPath(n) || strings.Contains(n, "/") {
			return elfFacts{}, fmt.Errorf("it needs a library called %q", n)
		}
	}
	return facts, nil
}

// pick is one file or link that a closure holds.
type pick struct {
	path   string // where it belongs, below the root
	source string // the file in the cache, empty for a link
	link   string // where the link leads, as it is stored
	mode   fs.FileMode
	pkg    Package
	facts  elfFacts
}

// closure collects files of packages and the shared libraries that they need.
type closure struct {
	arch string
	// tree gives the unpacked files of a package.
	tree func(ctx context.Context, p Package) (string, error)
	// find names the package that has a library which a file of owner needs:
	// lib is its file name, or its path where the loader does not search.
	// Not found is ErrUnknown.
	find func(ctx context.Context, owner Package, lib string) (Package, error)

	picks map[string]pick // by path
	dirs  map[string]bool // that libraries were found in
}

// add puts a file of a package into the closure; of a folder, all below it.
func (c *closure) add(ctx context.Context, p Package, name string) error {
	dir, err := c.tree(ctx, p)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the files of %s: %w", p, err)
	}
	defer root.Close()
	return c.addFrom(ctx, p, root, name, true)
}

// addFrom is add with the package's tree open. must tells whether a link that
// leads nowhere is an error.
func (c *closure) addFrom(ctx context.Context, p Package, root *os.Root, name string, must bool) error {
	if old, ok := c.picks[name]; ok {
		if old.pkg.ID() != p.ID() {
			return fmt.Errorf("file %s is in %s and in %s: take it from one", name, old.pkg, p)
		}
		return nil
	}
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("package %s has no file %s: correct the path in the request", p, name)
	}
	if err != nil {
		return fmt.Errorf("look at %s of %s: %w", name, p, err)
	}
	if c.picks == nil {
		c.picks = map[string]pick{}
		c.dirs = map[string]bool{}
	}
	switch {
	case st.IsDir():
		entries, err := fs.ReadDir(root.FS(), name)
		if err != nil {
			return fmt.Errorf("look at %s of %s: %w", name, p, err)
		}
		for _, e := range entries {
			if err := c.addFrom(ctx, p, root, path.Join(name, e.Name()), false); err != nil {
				return err
			}
		}
		return nil
	case st.Mode()&fs.ModeSymlink != 0:
		link, err := root.Readlink(name)
		if err != nil {
			return fmt.Errorf("look at %s of %s: %w", name, p, err)
		}
		target := strings.TrimPrefix(link, "/")
		if !path.IsAbs(link) {
			target = path.Join(path.Dir(name), link)
		}
		c.picks[name] = pick{path: name, link: link, mode: fs.ModeSymlink | 0o777, pkg: p}
		if !localPath(target) {
			return fmt.Errorf("link %s of %s leads out of the tree, to %s", name, p, link)
		}
		if _, err := root.Lstat(target); errors.Is(err, fs.ErrNotExist) && !must {
			return nil
		}
		return c.addFrom(ctx, p, root, target, must)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s of %s is neither file nor link", name, p)
	}
	f, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("open %s of %s: %w", name, p, err)
	}
	facts, err := readELF(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("read the program %s of %s: %w", name, p, err)
	}
	mode := fs.FileMode(0o644)
	if st.Mode()&0o111 != 0 {
		mode = 0o755
	}
	c.picks[name] = pick{path: name, source: filepath.Join(root.Name(), filepath.FromSlash(name)), mode: mode, pkg: p, facts: facts}
	m := machines[c.arch]
	if !facts.isObject || facts.machine != m.elf || facts.class != m.class {
		return nil // data, or firmware for another processor
	}
	if facts.interp != "" {
		if err := c.addLibrary(ctx, p, name, path.Base(facts.interp), nil); err != nil {
			return err
		}
	}
	for _, lib := range facts.needed {
		if err := c.addLibrary(ctx, p, name, lib, facts.runpath); err != nil {
			return err
		}
	}
	if facts.unwinds {
		for _, lib := range glibcAlso {
			if err := c.addLibrary(ctx, p, name, lib, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// addLibrary finds the library lib that the file user of owner needs, where
// the loader would: the file's run path, then the standard folders.
func (c *closure) addLibrary(ctx context.Context, owner Package, user, lib string, runpath []string) error {
	for _, list := range runpath {
		for _, dir := range strings.Split(list, ":") {
			dir = strings.NewReplacer("$ORIGIN", "/"+path.Dir(user), "${ORIGIN}", "/"+path.Dir(user)).Replace(dir)
			full := strings.TrimPrefix(path.Clean(dir), "/") + "/" + lib
			if dir == "" || !localPath(full) || slices.Contains(libraryDirs(c.arch), path.Dir(full)) {
				continue
			}
			found, err := c.addIfThere(ctx, owner, full)
			if err != nil || found {
				return err
			}
			p, err := c.find(ctx, owner, full)
			if errors.Is(err, ErrUnknown) {
				continue
			}
			if err != nil {
				return err
			}
			if found, err = c.addIfThere(ctx, p, full); err != nil || found {
				return err
			}
		}
	}
	for _, dir := range libraryDirs(c.arch) { // found before?
		if c.picks[dir+"/"+lib].path != "" {
			return nil
		}
	}
	p, err := c.find(ctx, owner, lib)
	if errors.Is(err, ErrUnknown) {
		return fmt.Errorf("library %s, which %s of %s needs: %w: Debian would have it in package %s; ask for what needs it in pins.toml and run %q",
			lib, user, owner, ErrUnknown, guessPackage(lib), updateHint)
	}
	if err != nil {
		return fmt.Errorf("library %s, which %s of %s needs: %w", lib, user, owner, err)
	}
	for _, dir := range libraryDirs(c.arch) {
		found, err := c.addIfThere(ctx, p, dir+"/"+lib)
		if err != nil || found {
			return err
		}
	}
	return fmt.Errorf("library %s, which %s of %s needs: package %s should have it, but does not: run %q", lib, user, owner, p, updateHint)
}

// addIfThere adds a library if the package has it.
func (c *closure) addIfThere(ctx context.Context, p Package, name string) (bool, error) {
	if c.picks[name].path != "" {
		return true, nil
	}
	dir, err := c.tree(ctx, p)
	if err != nil {
		return false, err
	}
	if !exists(filepath.Join(dir, filepath.FromSlash(name))) {
		return false, nil
	}
	if err := c.add(ctx, p, name); err != nil {
		return false, err
	}
	c.dirs[path.Dir(name)] = true
	return true, nil
}

// sorted gives the closure's files by path.
func (c *closure) sorted() []pick {
	out := slices.Collect(maps.Values(c.picks))
	slices.SortFunc(out, func(a, b pick) int { return strings.Compare(a.path, b.path) })
	return out
}

// guessPackage is the name that Debian's rules (Policy 8.1) give the package of
// a library: libssl.so.3 is in libssl3, libnl-3.so.200 in libnl-3-200.
func guessPackage(lib string) string {
	base, version, ok := strings.Cut(lib, ".so")
	if !ok {
		return strings.ToLower(lib)
	}
	version = strings.TrimPrefix(version, ".")
	if version != "" && base != "" && base[len(base)-1] >= '0' && base[len(base)-1] <= '9' {
		version = "-" + version
	}
	return strings.ToLower(strings.ReplaceAll(base+version, "_", "-"))
}

// libraryList names the shared libraries in a package's tree where the loader
// searches, sorted.
func libraryList(dir, arch string) ([]string, error) {
	var out []string
	for _, d := range libraryDirs(arch) {
		entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(d)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		for _, e := range entries {
			name := e.Name()
			if !strings.Contains(name, ".so") || e.IsDir() || slices.Contains(out, name) {
				continue
			}
			f, err := root.Open(d + "/" + name)
			if err != nil {
				continue // a link that leads out of the package
			}
			facts, err := readELF(f)
			f.Close()
			if err == nil && facts.isObject && (facts.soname == name || facts.soname == "") {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
