package pins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"pault.ag/go/debian/dependency"
)

// UpdateOptions says how Update works.
type UpdateOptions struct {
	Options           // Lock is the pins.toml that is rewritten; LockPath if empty
	Arch    []string  // Debian architectures to cover beside those that the lock covers
	DryRun  bool      // tell what would change, and change nothing
	Stdout  io.Writer // gets a line for each change; nil for none
}

// Update resolves the newest versions of all that pins.toml asks for, through
// the signed index of the release, and rewrites the locked part of the file. It
// tells whether that changed anything. It downloads what is new, since only the
// files themselves say what libraries they need.
func Update(ctx context.Context, o UpdateOptions) (changed bool, err error) {
	name := o.Lock
	if name == "" {
		name = LockPath
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return false, fmt.Errorf("update the pinned inputs: %w: run this at the top of the source tree", err)
	}
	old, err := parseLock(name, text)
	if err != nil {
		// The request must be right; a damaged locked part is what an update mends.
		old, err = parseLock(name, requestOf(text))
		if err != nil {
			return false, fmt.Errorf("update the pinned inputs: %w", err)
		}
	}
	s, err := newStore(o.Options)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(text)
	s.lockName, s.lockSum = name, hex.EncodeToString(sum[:])
	s.use(old)
	next, err := s.resolve(ctx, o.Arch)
	if err != nil {
		return false, fmt.Errorf("update the pinned inputs: %w", err)
	}
	if o.Stdout != nil {
		tellChanges(o.Stdout, old, next)
	}
	out := next.render()
	if string(out) == string(text) {
		return false, nil
	}
	if _, err := parseLock(name, out); err != nil {
		return false, fmt.Errorf("update the pinned inputs: the new lock is not valid: %w", err)
	}
	if o.DryRun {
		return true, nil
	}
	if err := writeAtomic(name, out, 0o644); err != nil {
		return false, fmt.Errorf("update the pinned inputs: %w", err)
	}
	return true, nil
}

// requestOf is the hand-written part of pins.toml.
func requestOf(text []byte) []byte {
	head, _, _ := strings.Cut(string(text), lockMarker)
	return []byte(head)
}

// tellChanges writes one line for each package that differs.
func tellChanges(w io.Writer, old, next *lockFile) {
	was, now := map[string]Package{}, map[string]Package{}
	for _, p := range old.Lock.Packages {
		was[p.ID()] = p
	}
	for _, p := range next.Lock.Packages {
		now[p.ID()] = p
	}
	ids := slices.Sorted(maps.Keys(was))
	for id := range now {
		if _, ok := was[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	n := 0
	for _, id := range ids {
		a, hadIt := was[id]
		b, hasIt := now[id]
		switch {
		case !hadIt:
			fmt.Fprintf(w, "+ %s %s (%s)\n", id, b.Version, b.Suite)
		case !hasIt:
			fmt.Fprintf(w, "- %s %s\n", id, a.Version)
		case a.SHA256 != b.SHA256:
			fmt.Fprintf(w, "  %s %s -> %s (%s)\n", id, a.Version, b.Version, b.Suite)
		default:
			continue
		}
		n++
	}
	fmt.Fprintf(w, "%d packages, %d changed\n", len(next.Lock.Packages), n)
}

// follow gives the package that a meta package leads to.
func (x *archiveIndex) follow(m metaWant, arch string) (entry, error) {
	name := m.Package[arch]
	idx := x.arch[arch].packages
	e, ok := idx[name]
	if !ok {
		return entry{}, fmt.Errorf("the archive has no package %s for %s", name, arch)
	}
	for _, dep := range dependsOn(e.depends) {
		if !strings.HasPrefix(dep, m.Prefix) {
			continue
		}
		real, ok := idx[dep]
		if !ok {
			return entry{}, fmt.Errorf("%s depends on %s, which the archive does not have for %s", e.Package, dep, arch)
		}
		return real, nil
	}
	return entry{}, fmt.Errorf("%s depends on no package that starts with %q", e.Package, m.Prefix)
}

// dependsOn lists the package names in a Depends field, alternatives too, in
// their order.
func dependsOn(field string) []string {
	d, err := dependency.Parse(field)
	if err != nil {
		return nil
	}
	var out []string
	for _, p := range d.GetAllPossibilities() {
		if !slices.Contains(out, p.Name) {
			out = append(out, p.Name)
		}
	}
	return out
}

// resolver makes a new lock.
type resolver struct {
	s    *Store
	x    *archiveIndex
	used map[string]entry // by ID: what the new lock will have
	libs map[string][]string
	// extra are libraries in folders that the loader does not search, by ID.
	extra map[string][]string
}

// resolve makes the newest lock for the request of the lock in force.
func (s *Store) resolve(ctx context.Context, more []string) (*lockFile, error) {
	archs := slices.Clone(s.lock.Lock.Architectures)
	if len(archs) == 0 && len(more) == 0 {
		archs = []string{s.host}
	}
	archs = append(archs, more...)
	slices.Sort(archs)
	archs = slices.Compact(archs)
	for _, a := range archs {
		if _, ok := machines[a]; !ok {
			return nil, fmt.Errorf("architecture %q is not one that is known: %s", a, strings.Join(slices.Sorted(maps.Keys(machines)), ", "))
		}
	}
	x, err := s.loadIndex(ctx, &s.lock.request, archs, s.lock.Lock.Suites)
	if err != nil {
		return nil, err
	}
	r := &resolver{s: s, x: x, used: map[string]entry{}, libs: map[string][]string{}, extra: map[string][]string{}}
	next := &lockFile{request: s.lock.request, head: s.lock.head}
	next.Lock.Architectures = archs
	next.Lock.Suites = x.suites
	for _, arch := range archs {
		if err := r.prefetch(ctx, arch); err != nil {
			return nil, err
		}
		closures, err := r.closures(ctx, arch)
		if err != nil {
			return nil, err
		}
		next.Lock.Closures = append(next.Lock.Closures, closures...)
	}
	for _, id := range slices.Sorted(maps.Keys(r.used)) {
		p, err := r.describe(ctx, r.used[id])
		if err != nil {
			return nil, err
		}
		next.Lock.Packages = append(next.Lock.Packages, p)
	}
	slices.SortFunc(next.Lock.Packages, comparePackages)
	return next, nil
}

// prefetch gets, several at a time, what will be needed: what is asked for, and
// what the last lock needed beside.
func (r *resolver) prefetch(ctx context.Context, arch string) error {
	idx := r.x.arch[arch].packages
	names := map[string]bool{}
	req := &r.s.lock.request
	for _, t := range req.Tool {
		if covers(t.Architectures, arch) {
			names[t.Package] = true
			for _, f := range t.Files {
				pkg, _ := splitFile(t.Package, f)
				names[pkg] = true
			}
		}
	}
	for name, w := range req.Image {
		names[name] = names[name] || covers(w.Architectures, arch)
	}
	for name, w := range req.Data {
		names[name] = names[name] || covers(w.Architectures, arch)
	}
	for _, m := range req.Meta {
		if m.Package[arch] != "" {
			e, err := r.x.follow(m, arch)
			if err != nil {
				return err
			}
			names[e.Name] = true
		}
	}
	for _, c := range r.s.lock.Lock.Closures {
		if c.Arch == arch {
			for _, p := range c.Packages {
				names[p] = true
			}
		}
	}
	var list []Package
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if e, ok := idx[name]; ok && names[name] {
			list = append(list, e.Package)
		}
	}
	if err := r.fetch(ctx, list...); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, p := range list {
		g.Go(func() error {
			_, err := r.s.unpack(gctx, p, true)
			return err
		})
	}
	return g.Wait()
}

// covers tells whether an entry for those architectures (all if none) is one
// for arch.
func covers(archs []string, arch string) bool {
	return len(archs) == 0 || slices.Contains(archs, arch)
}

// fetch downloads packages of the index.
func (r *resolver) fetch(ctx context.Context, list ...Package) error {
	gone, err := r.s.fetchAll(ctx, list)
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		return noMirrorHas(gone[0].pkg)
	}
	return nil
}

// tree fetches and unpacks a package of the index.
func (r *resolver) tree(ctx context.Context, p Package) (string, error) {
	if dir := r.s.treePath(p); exists(dir) {
		return dir, nil
	}
	if err := r.fetch(ctx, p); err != nil {
		return "", err
	}
	return r.s.unpack(ctx, p, true)
}

// closures works out, for one architecture, what each entry of the request
// needs.
func (r *resolver) closures(ctx context.Context, arch string) ([]lockedClosure, error) {
	req := &r.s.lock.request
	lookup := func(name string) (Package, error) {
		e, ok := r.x.arch[arch].packages[name]
		if !ok {
			return Package{}, fmt.Errorf("the archive has no package %s for %s: correct the name, or limit the entry with architectures = […]", name, arch)
		}
		return e.Package, nil
	}
	var out []lockedClosure
	lock := func(want string, c *closure, more ...Package) error {
		names := map[string]bool{}
		for _, p := range more {
			names[p.Name] = true
			if err := r.use(ctx, arch, p); err != nil {
				return err
			}
		}
		if c != nil {
			for _, k := range c.picks {
				names[k.pkg.Name] = true
				if err := r.use(ctx, arch, k.pkg); err != nil {
					return err
				}
			}
		}
		out = append(out, lockedClosure{Arch: arch, Want: want, Packages: slices.Sorted(maps.Keys(names))})
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(req.Data)) {
		if !covers(req.Data[key].Architectures, arch) {
			continue
		}
		p, err := lookup(key)
		if err == nil {
			err = lock("data."+key, nil, p)
		}
		if err != nil {
			return nil, fmt.Errorf("data.%s: %w", key, err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(req.Image)) {
		if !covers(req.Image[key].Architectures, arch) {
			continue
		}
		p, err := lookup(key)
		if err != nil {
			return nil, fmt.Errorf("image.%s: %w", key, err)
		}
		c := r.closure(arch)
		for _, f := range req.Image[key].Files {
			if err := c.add(ctx, p, f); err != nil {
				return nil, fmt.Errorf("image.%s: %w", key, err)
			}
		}
		if err := lock("image."+key, c, p); err != nil {
			return nil, fmt.Errorf("image.%s: %w", key, err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(req.Meta)) {
		if req.Meta[key].Package[arch] == "" {
			continue
		}
		e, err := r.x.follow(req.Meta[key], arch)
		if err == nil {
			err = lock("meta."+key, nil, e.Package)
		}
		if err != nil {
			return nil, fmt.Errorf("meta.%s: %w", key, err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(req.Tool)) {
		want := req.Tool[key]
		if !covers(want.Architectures, arch) {
			continue
		}
		p, err := lookup(want.Package)
		if err != nil {
			return nil, fmt.Errorf("tool.%s: %w", key, err)
		}
		c := r.closure(arch)
		if err := addToolFiles(ctx, c, want, p, lookup); err != nil {
			return nil, fmt.Errorf("tool.%s: %w", key, err)
		}
		if err := lock("tool."+key, c, p); err != nil {
			return nil, fmt.Errorf("tool.%s: %w", key, err)
		}
	}
	return out, nil
}

// use takes a package into the new lock.
func (r *resolver) use(ctx context.Context, arch string, p Package) error {
	if e, ok := r.used[p.ID()]; ok {
		if e.SHA256 == p.SHA256 {
			return nil
		}
		// An "all" package of which one architecture's index is behind.
		if e2 := r.x.arch[arch].packages[p.Name]; e2.Version == e.Version {
			return nil
		}
	}
	r.used[p.ID()] = r.x.arch[arch].packages[p.Name]
	return nil
}

// closure is a closure over the index's packages: libraries are looked for in
// the packages that their user depends on.
func (r *resolver) closure(arch string) *closure {
	c := &closure{arch: arch, tree: r.tree}
	c.find = func(ctx context.Context, owner Package, lib string) (Package, error) {
		for _, p := range r.candidates(arch, owner, lib, c) {
			has, err := r.has(ctx, arch, p, lib)
			if err != nil {
				return Package{}, err
			}
			if has {
				return p, nil
			}
		}
		return Package{}, ErrUnknown
	}
	return c
}

// has tells whether a package has a library.
func (r *resolver) has(ctx context.Context, arch string, p Package, lib string) (bool, error) {
	dir, err := r.tree(ctx, p)
	if err != nil {
		return false, err
	}
	if strings.Contains(lib, "/") {
		if !exists(filepath.Join(dir, filepath.FromSlash(lib))) {
			return false, nil
		}
		if !slices.Contains(r.extra[p.ID()], lib) {
			r.extra[p.ID()] = append(r.extra[p.ID()], lib)
		}
		return true, nil
	}
	libs, err := r.libraries(ctx, arch, p)
	return slices.Contains(libs, lib), err
}

// libraries lists the shared libraries of a package.
func (r *resolver) libraries(ctx context.Context, arch string, p Package) ([]string, error) {
	if libs, ok := r.libs[p.ID()]; ok {
		return libs, nil
	}
	dir, err := r.tree(ctx, p)
	if err != nil {
		return nil, err
	}
	libs, err := libraryList(dir, arch)
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", p, err)
	}
	r.libs[p.ID()] = libs
	return libs, nil
}

// Bounds on the search for the package of a library.
const (
	maxDependsDepth  = 4
	maxDependsReach  = 400
	maxCandidateSize = 64 << 20 // bytes: no library package is larger
)

// candidates lists the packages that a library may be in, the likeliest first:
// those that owner depends on, directly or not, by name (Policy 8.1 ties it to
// the library's), then those that the closure has already, then the smaller
// ones. Most are never looked at.
func (r *resolver) candidates(arch string, owner Package, lib string, c *closure) []Package {
	idx := r.x.arch[arch].packages
	inUse := map[string]bool{}
	for _, k := range c.picks {
		inUse[k.pkg.Name] = true
	}
	base := path.Base(lib)
	guess := squeeze(guessPackage(base))
	stem, _, _ := strings.Cut(base, ".so")
	stem = squeeze(strings.ToLower(stem))
	last, known := r.s.libraryPackage(arch, lib)
	score := func(name string) int {
		plain := squeeze(strings.TrimSuffix(name, "t64"))
		switch {
		case known && name == last:
			return 0
		case plain == guess, name == oddNames[base], name == "libc6" && strings.HasPrefix(base, "ld"):
			return 1
		case inUse[name]:
			return 2
		case strings.HasPrefix(plain, stem):
			return 3
		}
		return 4
	}
	// A library may leave it to the program to depend on another one: what the
	// closure has so far is searched like owner.
	seen := map[string]bool{}
	var list []Package
	var level []string
	for _, name := range append([]string{owner.Name}, slices.Sorted(maps.Keys(inUse))...) {
		if !seen[name] {
			seen[name] = true
			level = append(level, name)
			list = append(list, idx[name].Package)
		}
	}
	for depth := 0; depth < maxDependsDepth && len(level) > 0; depth++ {
		var next []string
		for _, name := range level {
			for _, dep := range dependsOn(idx[name].depends) {
				if e, ok := idx[dep]; ok && !seen[dep] && len(list) < maxDependsReach {
					seen[dep] = true
					next = append(next, dep)
					if e.Size <= maxCandidateSize && e.Arch == arch {
						list = append(list, e.Package)
					}
				}
			}
		}
		level = next
	}
	slices.SortStableFunc(list, func(a, b Package) int {
		if d := score(a.Name) - score(b.Name); d != 0 {
			return d
		}
		if a.Size != b.Size {
			return int(min(max(a.Size-b.Size, -1), 1))
		}
		return comparePackages(a, b)
	})
	return list
}

// oddNames are libraries of packages that are not named after them.
var oddNames = map[string]string{"libz.so.1": "zlib1g", "libm.so.6": "libc6"}

// squeeze drops what Debian's package names add to library names or leave out.
func squeeze(s string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(s)
}

// describe completes a package's entry with what only its files tell.
func (r *resolver) describe(ctx context.Context, e entry) (Package, error) {
	p := e.Package
	if p.Arch != "all" {
		libs, err := r.libraries(ctx, p.Arch, p)
		if err != nil {
			return Package{}, err
		}
		p.Libs = append(slices.Clone(libs), r.extra[p.ID()]...)
		slices.Sort(p.Libs)
	}
	dir, err := r.tree(ctx, p)
	if err != nil {
		return Package{}, err
	}
	p.Licence, err = r.licence(ctx, e, dir)
	return p, err
}

// licence reads a package's copyright file, which may lie in another package
// that its folder is a link to (Policy 12.5).
func (r *resolver) licence(ctx context.Context, e entry, dir string) (string, error) {
	doc := "usr/share/doc/" + e.Name
	if link, err := os.Readlink(filepath.Join(dir, filepath.FromSlash(doc))); err == nil {
		other := path.Base(link)
		for arch, idx := range r.x.arch {
			q, ok := idx.packages[other]
			if !ok || (e.Arch != "all" && e.Arch != arch) || q.Size > maxCandidateSize {
				continue
			}
			if dir, err = r.tree(ctx, q.Package); err != nil {
				return "", err
			}
			doc = "usr/share/doc/" + other
			break
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("read the licence of %s: %w", e.Package, err)
	}
	defer root.Close()
	f, err := root.Open(doc + "/copyright")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the licence of %s: %w", e.Package, err)
	}
	defer f.Close()
	return licences(io.LimitReader(f, maxLock)), nil
}
