package pins

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Want asks for files of a package. Without Paths it is what the entry
// [image.<Package>] of pins.toml asks for.
type Want struct {
	Package string
	Paths   []string // relative to the root; a folder stands for all below it
}

// File is one file or symbolic link that goes into an image.
type File struct {
	Path    string      // relative to the image's root
	Source  string      // the file in the cache; empty for a link
	Link    string      // where the link leads; empty for a file
	Mode    fs.FileMode // 0644 or 0755; a link has fs.ModeSymlink too
	Package string      // whose it is, as Package takes it
}

// Files gives the files wanted and all shared libraries that they need, with
// the links to them and the loader at the path where the programs look for it,
// sorted by path. All are from locked packages of arch, a Debian architecture.
func (s *Store) Files(ctx context.Context, arch string, want []Want) ([]File, error) {
	if _, ok := machines[arch]; !ok {
		return nil, fmt.Errorf("files for images: architecture %q is not one of Debian's", arch)
	}
	c := s.lockedClosure(arch, true)
	var first []string
	for _, w := range want {
		if closure, err := s.Closure("image."+w.Package, arch); err == nil {
			first = append(first, closure...) // all at once is faster than one by one
		} else if _, err := s.lookup(w.Package + ":" + arch); err != nil {
			return nil, fmt.Errorf("files for images: %w", err)
		} else {
			first = append(first, w.Package+":"+arch)
		}
	}
	if err := s.Prefetch(ctx, first...); err != nil {
		return nil, fmt.Errorf("files for images: %w", err)
	}
	for _, w := range want {
		paths := w.Paths
		if len(paths) == 0 {
			if paths = s.lock.Image[w.Package].Files; len(paths) == 0 {
				return nil, fmt.Errorf("files for images: package %s: no paths are given, and %s has no [image.%s]", w.Package, s.lockName, w.Package)
			}
		}
		p, err := s.lookup(w.Package + ":" + arch)
		if err != nil {
			return nil, fmt.Errorf("files for images: %w", err)
		}
		for _, name := range paths {
			name = strings.TrimPrefix(path.Clean(name), "/")
			if !localPath(name) {
				return nil, fmt.Errorf("files for images: %q of package %s is not a path below the root", name, w.Package)
			}
			if err := c.add(ctx, p, name); err != nil {
				return nil, fmt.Errorf("files for images: %w", err)
			}
		}
	}
	if err := c.linkLoaders(); err != nil {
		return nil, fmt.Errorf("files for images: %w", err)
	}
	var out []File
	for _, p := range c.sorted() {
		out = append(out, File{Path: p.path, Source: p.source, Link: p.link, Mode: p.mode, Package: p.pkg.ID()})
	}
	return out, nil
}

// linkLoaders puts a link to the loader where the closure's programs look for
// it, which with Debian's packages is not where it lies.
func (c *closure) linkLoaders() error {
	for _, p := range c.sorted() {
		if p.facts.interp == "" || p.facts.machine != machines[c.arch].elf {
			continue
		}
		at := strings.TrimPrefix(path.Clean(p.facts.interp), "/")
		if !localPath(at) {
			return fmt.Errorf("%s of %s asks for a loader at %q", p.path, p.pkg, p.facts.interp)
		}
		if c.picks[at].path != "" {
			continue
		}
		loader, err := c.loader(p)
		if err != nil {
			return err
		}
		up := strings.Repeat("../", strings.Count(at, "/"))
		c.picks[at] = pick{path: at, link: up + loader.path, mode: fs.ModeSymlink | 0o777, pkg: loader.pkg}
	}
	return nil
}

// ImageWants lists the packages that [image.…] entries of the lock name for
// arch, sorted.
func (s *Store) ImageWants(arch string) []string {
	var out []string
	for name, w := range s.lock.Image {
		if len(w.Architectures) == 0 || slices.Contains(w.Architectures, arch) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
