// Package kmod loads kernel modules: by name with what they depend on, and the
// drivers of the devices that the kernel has found, by their modalias.
//
// Only files of a module folder as depmod(8) writes them are read: modules.dep
// must be there, modules.alias, modules.softdep and modules.builtin may be.
// u-root's kmodule is not used: it links decompressors whose tables cost every
// process of the device binary 30 ms at its start under emulation, and it does
// not find files whose names mix dashes and underscores.
package kmod

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Set is the modules below one root folder.
type Set struct {
	load    func(name, params string) error // of one module, without dependencies
	names   map[string]bool                 // with underscores; of built-in ones too
	files   map[string]string               // module → its file
	deps    map[string][]string             // module → what it depends on, the first to load last
	users   map[string][]string             // module → those that depend on it
	aliases []alias
	soft    map[string][]string // module → what to load before

	mu   sync.Mutex
	done map[string]*sync.Once
	errs map[string]error
}

// alias says that devices or requests with the pattern want the module.
type alias struct{ pattern, module string }

// Open reads the module folder of the running kernel below root, "/" for the
// running system.
func Open(root string) (*Set, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	dir := filepath.Join(root, "lib/modules", release)
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err != nil {
		return nil, fmt.Errorf("read the modules of kernel %s: %w", release, err)
	}
	s, err := read(dir)
	if err != nil {
		return nil, err
	}
	s.load = s.insert
	return s, nil
}

// insert loads one module whose dependencies are there. A built-in one has no
// file.
func (s *Set) insert(name, params string) error {
	file := s.files[name]
	if file == "" {
		return nil
	}
	if err := Insert(file, params); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// Insert gives one file to the kernel, finit_module(2). A file that is not
// named .ko is compressed, which the kernel unpacks itself where it can. The
// error is EEXIST for a module that is loaded, ENOENT where one that it needs is
// not.
func Insert(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), params, flags); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func read(dir string) (*Set, error) {
	s := &Set{names: map[string]bool{}, files: map[string]string{}, deps: map[string][]string{}, users: map[string][]string{}, soft: map[string][]string{}, done: map[string]*sync.Once{}, errs: map[string]error{}}
	for _, f := range []struct {
		name  string
		parse func(line string)
	}{
		{"modules.dep", func(line string) {
			file, deps, ok := strings.Cut(line, ":")
			if !ok {
				return
			}
			name := moduleName(file)
			s.names[name] = true
			s.files[name] = filepath.Join(dir, file)
			for _, d := range strings.Fields(deps) {
				d = moduleName(d)
				s.deps[name] = append(s.deps[name], d)
				s.users[d] = append(s.users[d], name)
			}
		}},
		{"modules.builtin", func(line string) { s.names[moduleName(line)] = true }},
		{"modules.alias", func(line string) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
				s.aliases = append(s.aliases, alias{f[1], underscored(f[2])})
			}
		}},
		{"modules.softdep", func(line string) {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != "softdep" {
				return
			}
			pre := false
			for _, w := range f[2:] {
				switch {
				case strings.HasSuffix(w, ":"):
					pre = w == "pre:"
				case pre:
					m := underscored(f[1])
					s.soft[m] = append(s.soft[m], w)
				}
			}
		}},
	} {
		r, err := os.Open(filepath.Join(dir, f.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read modules: %w", err)
		}
		err = eachLine(r, f.parse)
		r.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, f.name), err)
		}
	}
	return s, nil
}

// eachLine calls f for each line that is neither empty nor a comment.
func eachLine(r io.Reader, f func(line string)) error {
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		if line := strings.TrimSpace(scan.Text()); line != "" && line[0] != '#' {
			f(line)
		}
	}
	return scan.Err()
}

// moduleName is the name of a module from the path of its file: the kernel
// uses underscores only.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return underscored(name)
}

func underscored(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Has reports whether the set knows a module of the name, built in or not.
func (s *Set) Has(name string) bool { return s.names[underscored(name)] }

// Load loads a module, or what an alias stands for, with its dependencies.
// A module that is loaded or built in already is no error. It may be called
// from several goroutines; each module is loaded once.
func (s *Set) Load(name, params string) error {
	name = underscored(name)
	if !s.names[name] {
		mods := s.matching(name)
		if len(mods) == 0 {
			return fmt.Errorf("load module %s: %w", name, fs.ErrNotExist)
		}
		var errs []error
		for _, m := range mods {
			errs = append(errs, s.Load(m, params))
		}
		return errors.Join(errs...)
	}
	s.mu.Lock()
	once := s.done[name]
	if once == nil {
		once = new(sync.Once)
		s.done[name] = once
	}
	s.mu.Unlock()
	once.Do(func() {
		for _, before := range s.soft[name] {
			// A soft dependency is a wish: it may be absent, or built in
			// under another name.
			if underscored(before) != name {
				s.Load(before, "")
			}
		}
		if err := s.loadBehind(name, params); err != nil {
			s.mu.Lock()
			s.errs[name] = fmt.Errorf("load module %s: %w", name, err)
			s.mu.Unlock()
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs[name]
}

// loadBehind loads a module behind what it depends on; depmod refuses cycles.
func (s *Set) loadBehind(name, params string) error {
	for _, d := range slices.Backward(s.deps[name]) {
		if err := s.Load(d, ""); err != nil {
			return err
		}
	}
	return s.load(name, params)
}

// LoadAll loads the lines of a list in LEDE's form ("name parameters"), several
// at once, and returns what went wrong with each.
func (s *Set) LoadAll(lines []string) error {
	var g errgroup.Group
	g.SetLimit(2 * runtime.NumCPU()) // some drivers sleep while they probe
	errs := make([]error, len(lines))
	for i, line := range lines {
		g.Go(func() error {
			name, params, _ := strings.Cut(line, " ")
			errs[i] = s.Load(name, strings.TrimSpace(params))
			return nil
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

// List reads the lists of modules in files or folders of files (sorted by
// name), in LEDE's form: one module a line, parameters behind it, # comments.
// What does not exist is passed over.
func List(paths ...string) ([]string, error) {
	var lines []string
	for _, path := range paths {
		files := []string{path}
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil {
				return nil, fmt.Errorf("read list of modules: %w", err)
			}
			files = nil
			for _, e := range entries {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
		for _, name := range files {
			f, err := os.Open(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read list of modules: %w", err)
			}
			err = eachLine(f, func(line string) { lines = append(lines, line) })
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("read list of modules %s: %w", name, err)
			}
		}
	}
	return lines, nil
}

// Needed returns the lines of a list that this machine has a use for: all but
// drivers none of whose devices is present, and what other modules of the list
// depend on, which comes along with them. Without modules.alias no driver is
// left out.
func (s *Set) Needed(lines, devices []string) []string {
	drivers := map[string]bool{}
	for _, a := range s.aliases {
		if isDevice(a.pattern) {
			drivers[a.module] = true
		}
	}
	wanted := map[string]bool{}
	for _, m := range s.Drivers(devices) {
		wanted[m] = true
	}
	listed := map[string]bool{}
	for _, line := range lines {
		listed[nameIn(line)] = true
	}
	var out []string
	for _, line := range lines {
		name := nameIn(line)
		switch {
		case drivers[name]:
			if wanted[name] {
				out = append(out, line)
			}
		case strings.Contains(line, " ") || !slices.ContainsFunc(s.users[name], func(user string) bool { return listed[user] }):
			// Somebody who gives parameters means the module itself.
			out = append(out, line)
		}
	}
	return out
}

// nameIn returns the module that a line of a list names.
func nameIn(line string) string {
	name, _, _ := strings.Cut(line, " ")
	return underscored(name)
}

// isDevice tells the pattern of a bus ("pci:v00008086d…") from that of a
// request ("fs-ext4", "crypto-crc32c"). What only names a device node that the
// module itself makes ("devname:net/tun") is no device to wait for.
func isDevice(pattern string) bool {
	return strings.Contains(pattern, ":") && !strings.HasPrefix(pattern, "devname:")
}

// Drivers returns the modules for the modaliases, in their order, each once.
func (s *Set) Drivers(devices []string) []string {
	// Patterns by bus: most of them are for buses a device is not on.
	byBus := map[string][]alias{}
	for _, a := range s.aliases {
		if bus, _, ok := strings.Cut(a.pattern, ":"); ok {
			byBus[bus] = append(byBus[bus], a)
		}
	}
	var out []string
	for _, d := range devices {
		bus, _, _ := strings.Cut(d, ":")
		for _, a := range byBus[bus] {
			if glob(a.pattern, d) && !slices.Contains(out, a.module) {
				out = append(out, a.module)
			}
		}
	}
	return out
}

// matching returns the modules of the aliases that fit a request.
func (s *Set) matching(name string) []string {
	var out []string
	for _, a := range s.aliases {
		if glob(underscored(a.pattern), name) && a.module != name && s.names[a.module] && !slices.Contains(out, a.module) {
			out = append(out, a.module)
		}
	}
	return out
}

// Devices lists the modaliases of the devices below sys ("/sys"), sorted by
// where the devices hang, so that network interfaces are named in the order of
// their slots at every boot.
func Devices(sys string) ([]string, error) {
	buses, err := os.ReadDir(filepath.Join(sys, "bus"))
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	type device struct{ path, alias string }
	var found []device
	for _, bus := range buses {
		dir := filepath.Join(sys, "bus", bus.Name(), "devices")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // a bus without devices
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			text, err := os.ReadFile(filepath.Join(path, "modalias"))
			if err != nil {
				continue // no modalias, or gone since
			}
			if real, err := filepath.EvalSymlinks(path); err == nil {
				path = real
			}
			if a := strings.TrimSpace(string(text)); a != "" {
				found = append(found, device{path, a})
			}
		}
	}
	slices.SortFunc(found, func(a, b device) int { return strings.Compare(a.path, b.path) })
	var out []string
	for _, d := range found {
		if !slices.Contains(out, d.alias) {
			out = append(out, d.alias)
		}
	}
	return out, nil
}

// glob matches fnmatch(3) patterns with * ? and [a-z]; slashes are plain
// characters, unlike in path.Match, and a modalias may hold any byte.
func glob(pattern, s string) bool {
	for len(pattern) > 0 {
		switch pattern[0] {
		case '*':
			for pattern != "" && pattern[0] == '*' {
				pattern = pattern[1:]
			}
			// The rest up to the next star must match somewhere; trying the
			// first place is enough for the parts between stars.
			part, _, more := cutStar(pattern)
			if !more {
				return len(part) == 0 || matchTail(part, s)
			}
			at := -1
			for i := 0; i <= len(s); i++ {
				if n, ok := matchPart(part, s[i:]); ok {
					at = i + n
					break
				}
			}
			if at < 0 {
				return false
			}
			s, pattern = s[at:], pattern[len(part):]
		default:
			part, _, more := cutStar(pattern)
			n, ok := matchPart(part, s)
			if !ok {
				return false
			}
			s, pattern = s[n:], pattern[len(part):]
			if !more {
				return s == ""
			}
		}
	}
	return s == ""
}

func cutStar(pattern string) (before, after string, found bool) {
	return strings.Cut(pattern, "*")
}

// matchTail matches a pattern without stars against the end of s.
func matchTail(part, s string) bool {
	for i := 0; i <= len(s); i++ {
		if n, ok := matchPart(part, s[i:]); ok && i+n == len(s) {
			return true
		}
	}
	return false
}

// matchPart matches a pattern without stars at the start of s and returns the
// number of bytes it took.
func matchPart(part, s string) (int, bool) {
	n := 0
	for part != "" {
		if n >= len(s) {
			return 0, false
		}
		c := s[n]
		switch part[0] {
		case '?':
			part = part[1:]
		case '[':
			set, rest, ok := strings.Cut(part[1:], "]")
			if !ok || !inSet(set, c) {
				return 0, false
			}
			part = rest
		default:
			if part[0] != c {
				return 0, false
			}
			part = part[1:]
		}
		n++
	}
	return n, true
}

func inSet(set string, c byte) bool {
	not := strings.HasPrefix(set, "!") || strings.HasPrefix(set, "^")
	if not {
		set = set[1:]
	}
	in := false
	for i := 0; i < len(set); i++ {
		if i+2 < len(set) && set[i+1] == '-' {
			in = in || set[i] <= c && c <= set[i+2]
			i += 2
			continue
		}
		in = in || set[i] == c
	}
	return in != not
}
