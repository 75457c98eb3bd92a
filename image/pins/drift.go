package pins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pault.ag/go/debian/version"
)

// drift puts the newest versions of the same release in the place of packages
// that have left the mirrors, together with the others of the same source
// package, which must be of one version. The signed index vouches for them.
func (s *Store) drift(ctx context.Context, gone []goneError) error {
	unlock, err := s.drifting.lock(ctx, "")
	if err != nil {
		return err
	}
	defer unlock()
	gone = slices.DeleteFunc(gone, func(g goneError) bool { // another goroutine may have been here
		now, ok := s.Package(g.pkg.ID())
		return ok && now.SHA256 != g.pkg.SHA256
	})
	if len(gone) == 0 {
		return nil
	}
	names := make([]string, len(gone))
	var errs []error
	for i, g := range gone {
		names[i] = g.pkg.String()
		errs = append(errs, g.err)
	}
	if s.strict {
		return fmt.Errorf("%w\nStrict pins forbid a newer version in the place of %s: run %q, or build without PINS=strict",
			errors.Join(errs...), strings.Join(names, ", "), updateHint)
	}
	x, err := s.loadIndex(ctx, &s.lock.request, s.lock.Lock.Architectures, s.lock.Lock.Suites)
	if err != nil {
		return fmt.Errorf("fetch %s: %w; find the newest version instead: %w", strings.Join(names, ", "), ErrGone, err)
	}
	record := driftRecord{Meta: map[string]string{}, Packages: map[string]Package{}}
	if text, err := readFileIfThere(s.driftPath()); err == nil && text != nil {
		_ = json.Unmarshal(text, &record) // an unreadable record is written anew
	}
	for _, was := range s.lock.Lock.Packages {
		affected := slices.ContainsFunc(gone, func(g goneError) bool { return g.pkg.Source == was.Source })
		if !affected {
			continue
		}
		now, err := s.newest(x, was, record.Meta)
		if err != nil {
			return fmt.Errorf("fetch %s: %w: %w: run %q", was, ErrGone, err, updateHint)
		}
		if now.SHA256 == was.SHA256 {
			if slices.ContainsFunc(gone, func(g goneError) bool { return g.pkg.SHA256 == was.SHA256 }) {
				return noMirrorHas(was)
			}
			continue
		}
		now.Libs, now.Licence, now.Drifted = was.Libs, was.Licence, true
		record.Packages[was.ID()] = now
	}
	if len(record.Packages) == 0 {
		return fmt.Errorf("fetch %s: %w: run %q", strings.Join(names, ", "), ErrGone, updateHint)
	}
	text, err := json.MarshalIndent(record, "", "\t")
	if err != nil {
		return fmt.Errorf("record the replaced packages: %w", err)
	}
	if err := writeAtomic(s.driftPath(), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("record the replaced packages: %w", err)
	}
	s.applyDrift(record)
	s.warnDrift()
	return nil
}

// newest finds what takes a locked package's place: the same name in a newer
// version or, for one behind a meta package, what that now leads to.
func (s *Store) newest(x *archiveIndex, was Package, meta map[string]string) (Package, error) {
	for _, c := range s.lock.Lock.Closures {
		key, ok := strings.CutPrefix(c.Want, "meta.")
		if !ok || c.Arch != was.Arch || len(c.Packages) == 0 || c.Packages[0] != was.Name {
			continue
		}
		e, err := x.follow(s.lock.Meta[key], c.Arch)
		if err != nil {
			return Package{}, err
		}
		if e.Name != was.Name {
			meta[key+":"+c.Arch] = e.Name
		}
		return e.Package, nil
	}
	for _, arch := range s.lock.Lock.Architectures {
		if was.Arch != arch && was.Arch != "all" {
			continue
		}
		if e, ok := x.arch[arch].packages[was.Name]; ok {
			old, err := version.Parse(was.Version)
			if err == nil && version.Compare(e.version, old) < 0 {
				return Package{}, fmt.Errorf("the archive only has the older %s", e.Package)
			}
			return e.Package, nil
		}
	}
	return Package{}, errors.New("the archive has no package of that name any more")
}
