package sysupgrade

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
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

	"weft/init/overlay"
)

// Backup says what of the settings goes into an archive. The zero value takes
// what the keep lists name, from the running system.
type Backup struct {
	Root string // default /; tests put a folder there
	Rom  string // the image below, default /rom; relative to Root

	ChangedEtc bool     // -c: changed files under /etc
	ChangedAll bool     // -o: everything changed, from the overlay
	SkipSame   bool     // -u: not what is the same in /rom
	Packages   bool     // -k: the list of installed packages
	Exclude    []string // -x, beside /etc/sysupgrade.exclude
}

// Bounds of an archive: what stage 1 would refuse to restore must not be made.
const (
	maxBackup      = 128 << 20
	maxBackupFiles = 20000
)

// Files of the lists.
const (
	keepConf    = "etc/sysupgrade.conf"
	keepFolder  = "lib/upgrade/keep.d"
	excludeConf = "etc/sysupgrade.exclude"
	packageList = "etc/backup/installed_packages.txt"
	disableFile = "etc/uci-defaults/10_disable_services"
)

// neverKept are what the overlay modes leave out (compatibility facts, section 5):
// made by the device itself, or of the package manager.
var neverKept = []string{
	"etc/board.json", "etc/urandom.seed", "etc/*-opkg", "etc/**/*-opkg", "etc/*.apk-new", "etc/**/*.apk-new",
	"etc/apk/world", "etc/apk/repositories.d/distfeeds.list", "etc/opkg/distfeeds.conf",
	"usr/lib/opkg/**", "lib/apk/**", packageList, "**/.wh.*",
}

func (b *Backup) root() string { return or(b.Root, "/") }
func (b *Backup) rom() string  { return filepath.Join(b.root(), or(b.Rom, "rom")) }

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (b *Backup) path(name string) string { return filepath.Join(b.root(), name) }

// List names what the archive holds, without a leading slash, sorted.
func (b *Backup) List() ([]string, error) {
	have := map[string]bool{}
	add := func(name string) { have[name] = true }
	lists := []string{b.path(keepConf)}
	more, err := filepath.Glob(filepath.Join(b.path(keepFolder), "*"))
	if err != nil {
		return nil, err
	}
	for _, file := range append(lists, more...) {
		lines, err := configLines(file)
		if err != nil {
			return nil, fmt.Errorf("read the keep list: %w", err)
		}
		for _, line := range lines {
			if err := b.expand(line, add); err != nil {
				return nil, fmt.Errorf("keep list %s: %w", file, err)
			}
		}
	}
	owned, err := b.owned()
	if err != nil {
		return nil, err
	}
	for name, sum := range owned {
		if sum == "" {
			continue
		}
		if now, err := hashFile(b.path(name), sum); err == nil && now != sum {
			add(name)
		}
	}
	if b.ChangedEtc || b.ChangedAll {
		if err := b.changed(owned, add); err != nil {
			return nil, err
		}
	}
	exclude, err := configLines(b.path(excludeConf))
	if err != nil {
		return nil, fmt.Errorf("read the exclude list: %w", err)
	}
	exclude = append(exclude, b.Exclude...)
	var out []string
	for name := range have {
		if matchAny(exclude, name) || b.SkipSame && sameAsRom(b.path(name), filepath.Join(b.rom(), name)) {
			continue
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

// configLines are the lines of a list that are neither empty nor comments; none
// if the file is not there.
func configLines(file string) ([]string, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, s.Err()
}

// expand adds the files and links that a line of a keep list means: a file, a
// folder with all below it, or a pattern.
func (b *Backup) expand(line string, add func(string)) error {
	matches, err := filepath.Glob(b.path(line))
	if err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	for _, m := range matches {
		// A line that ends in a slash, or names a link to a folder, means the
		// folder's content.
		if st, err := os.Stat(m); err == nil && st.IsDir() && strings.HasSuffix(line, "/") {
			if to, err := filepath.EvalSymlinks(m); err == nil && b.inside(to) {
				m = to
			}
		}
		err := filepath.WalkDir(m, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if d.Type().IsRegular() || d.Type()&fs.ModeSymlink != 0 {
				add(b.rel(p))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Backup) rel(p string) string {
	return strings.TrimPrefix(strings.TrimPrefix(p, strings.TrimSuffix(b.root(), "/")), "/")
}

func (b *Backup) inside(p string) bool {
	return b.root() == "/" || strings.HasPrefix(p, strings.TrimSuffix(b.root(), "/")+"/")
}

// owned lists the files of packages, with the sum that their settings had when
// they were installed ("" for files that are no settings).
func (b *Backup) owned() (map[string]string, error) {
	out := map[string]string{}
	// opkg: one database with the settings, a list of files for each package.
	if f, err := os.Open(b.path("usr/lib/opkg/status")); err == nil {
		s, in := bufio.NewScanner(f), false
		for s.Scan() {
			line := s.Text()
			switch {
			case strings.HasPrefix(line, "Conffiles:"):
				in = true
			case in && strings.HasPrefix(line, " "):
				if w := strings.Fields(line); len(w) == 2 && strings.HasPrefix(w[0], "/") {
					out[w[0][1:]] = strings.ToLower(w[1])
				}
			default:
				in = false
			}
		}
		err := errors.Join(s.Err(), f.Close())
		if err != nil {
			return nil, fmt.Errorf("read the package database: %w", err)
		}
	}
	for _, g := range []struct {
		pattern string
		sums    bool
	}{{"lib/apk/packages/*.conffiles_static", true}, {"usr/lib/opkg/info/*.list", false}, {"lib/apk/packages/*.list", false}} {
		files, err := filepath.Glob(b.path(g.pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			lines, err := configLines(file)
			if err != nil {
				return nil, fmt.Errorf("read the package database: %w", err)
			}
			for _, line := range lines {
				w := strings.Fields(line)
				name := strings.TrimPrefix(w[0], "/")
				switch {
				case g.sums && len(w) == 2:
					out[name] = strings.ToLower(w[1])
				case !g.sums:
					if _, ok := out[name]; !ok {
						out[name] = ""
					}
				}
			}
		}
	}
	return out, nil
}

// changed adds what the overlay holds, without files of packages; changed
// settings of packages are in the list already.
func (b *Backup) changed(owned map[string]string, add func(string)) error {
	upper := b.path("overlay/upper")
	if _, err := os.Stat(upper); err != nil {
		return fmt.Errorf("list the changed files: %w (there is no overlay: options -c and -o need one)", err)
	}
	from := upper
	if !b.ChangedAll {
		from = filepath.Join(upper, "etc")
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the changed files: %w", err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, upper), "/")
		if !d.Type().IsRegular() && d.Type()&fs.ModeSymlink == 0 {
			return nil // folders, and the character devices that stand for removed files
		}
		if _, ok := owned[name]; ok || matchAny(neverKept, name) {
			return nil
		}
		if _, err := os.Lstat(b.path(name)); err == nil {
			add(name)
		}
		return nil
	})
}

// matchAny says whether one of the patterns is the name, a folder above it, or
// matches it; "**" stands for any number of path elements.
func matchAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if match(strings.Split(strings.Trim(p, "/"), "/"), strings.Split(name, "/")) {
			return true
		}
	}
	return false
}

func match(pattern, name []string) bool {
	for i, p := range pattern {
		if p == "**" {
			for n := i; n <= len(name); n++ {
				if match(pattern[i+1:], name[n:]) {
					return len(pattern) > i+1 || len(name) > i
				}
			}
			return false
		}
		if i >= len(name) {
			return false
		}
		if ok, err := path.Match(p, name[i]); err != nil || !ok {
			return false
		}
	}
	return true // a folder's pattern takes what is below
}

func hashFile(p, like string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if len(like) != 2*sha256.Size {
		return like, nil // an older, shorter sum: taken as unchanged
	}
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sameAsRom compares kind, content and permissions.
func sameAsRom(p, rom string) bool {
	a, err1 := os.Lstat(p)
	b, err2 := os.Lstat(rom)
	if err1 != nil || err2 != nil || a.Mode() != b.Mode() {
		return false
	}
	if a.Mode()&fs.ModeSymlink != 0 {
		x, err1 := os.Readlink(p)
		y, err2 := os.Readlink(rom)
		return err1 == nil && err2 == nil && x == y
	}
	if a.Size() != b.Size() {
		return false
	}
	f, err := os.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	g, err := os.Open(rom)
	if err != nil {
		return false
	}
	defer g.Close()
	x, y := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err1 := io.ReadFull(f, x)
		m, err2 := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if err1 != nil || err2 != nil {
			return (err1 == io.EOF || err1 == io.ErrUnexpectedEOF) && (err2 == io.EOF || err2 == io.ErrUnexpectedEOF)
		}
	}
}

// Write writes the archive: gzip of a tar with names relative to the root. The
// first member is a script that disables, at the next boot, the services that are
// disabled now.
func (b *Backup) Write(w io.Writer) (files int, err error) {
	names, err := b.List()
	if err != nil {
		return 0, err
	}
	if len(names) > maxBackupFiles-2 {
		return 0, fmt.Errorf("write the backup: %d files, %d can be restored: narrow the keep list", len(names), maxBackupFiles-2)
	}
	z := gzip.NewWriter(w)
	tw := tar.NewWriter(z)
	total := int64(0)
	now := time.Now().Truncate(time.Second)
	text, err := b.disabled()
	if err != nil {
		return 0, err
	}
	extra := []struct {
		name, text string
		mode       int64
	}{{disableFile, text, 0o755}}
	if b.Packages {
		text, err := b.packages()
		if err != nil {
			return 0, err
		}
		extra = append(extra, struct {
			name, text string
			mode       int64
		}{packageList, text, 0o644})
	}
	for _, e := range extra {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Size: int64(len(e.text)), ModTime: now, Format: tar.FormatGNU}
		if err := tw.WriteHeader(h); err != nil {
			return files, fmt.Errorf("write the backup: %w", err)
		}
		if _, err := io.WriteString(tw, e.text); err != nil {
			return files, fmt.Errorf("write the backup: %w", err)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == e.name })
		files++
	}
	for _, name := range names {
		n, err := b.member(tw, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return files, fmt.Errorf("write the backup: %w", err)
		}
		files++
		if total += n + 1024; total > maxBackup-1<<20 {
			return files, fmt.Errorf("write the backup: more than %d MiB cannot be restored: narrow the keep list", maxBackup>>20)
		}
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		return files, fmt.Errorf("write the backup: %w", err)
	}
	return files, nil
}

func (b *Backup) member(tw *tar.Writer, name string) (int64, error) {
	p := b.path(name)
	st, err := os.Lstat(p)
	if err != nil {
		return 0, err
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return 0, err
		}
	} else if !st.Mode().IsRegular() {
		return 0, nil
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return 0, err
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatGNU
	h.ModTime, h.AccessTime, h.ChangeTime = h.ModTime.Truncate(time.Second), time.Time{}, time.Time{}
	if link != "" {
		return 0, tw.WriteHeader(h)
	}
	f, err := os.Open(p)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := tw.WriteHeader(h); err != nil {
		return 0, err
	}
	// A file that shrinks meanwhile is filled up: the archive stays whole.
	n, err := io.Copy(tw, io.LimitReader(f, h.Size))
	if err != nil {
		return n, fmt.Errorf("%s: %w", name, err)
	}
	if n < h.Size {
		_, err = io.CopyN(tw, zeros{}, h.Size-n)
	}
	return h.Size, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// disabled is the script with the services that are not started now.
func (b *Backup) disabled() (string, error) {
	scripts, err := os.ReadDir(b.path("etc/init.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("list the services: %w", err)
	}
	links, err := filepath.Glob(filepath.Join(b.path("etc/rc.d"), "S??*"))
	if err != nil {
		return "", err
	}
	enabled := map[string]bool{}
	for _, l := range links {
		enabled[filepath.Base(l)[3:]] = true
	}
	var text strings.Builder
	for _, s := range scripts {
		name := s.Name()
		if enabled[name] || strings.ContainsAny(name, " '\"$`\\;&|<>()\n\t*?#~") {
			continue
		}
		st, err := os.Stat(filepath.Join(b.path("etc/init.d"), name))
		if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			continue
		}
		fmt.Fprintf(&text, "[ -x /etc/init.d/%s ] && /etc/init.d/%s disable\n", name, name)
	}
	return text.String() + "exit 0\n", nil
}

// packages is the list of installed packages: name, tab, where it is.
func (b *Backup) packages() (string, error) {
	where := map[string]string{}
	for _, pattern := range []string{"usr/lib/opkg/info/*.control", "lib/apk/packages/*.list"} {
		files, err := filepath.Glob(b.path(pattern))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			name := strings.TrimSuffix(filepath.Base(f), filepath.Ext(f))
			rel := b.rel(f)
			switch {
			case exists(filepath.Join(b.path("overlay/upper"), rel)):
				where[name] = "overlay"
			case exists(filepath.Join(b.rom(), rel)):
				where[name] = "rom"
			default:
				where[name] = "unknown"
			}
		}
	}
	var names []string
	for n := range where {
		names = append(names, n)
	}
	slices.Sort(names)
	var text strings.Builder
	for _, n := range names {
		fmt.Fprintf(&text, "%s\t%s\n", n, where[n])
	}
	return text.String(), nil
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// CheckBackup says whether an archive can be restored; the error wraps
// overlay.ErrArchive if not.
func CheckBackup(r io.Reader) error { return overlay.Check(r) }

// Restore unpacks an archive onto the running system.
func (b *Backup) Restore(r io.ReadSeeker) (files int, err error) {
	return overlay.Restore(r, b.root(), b.rom())
}
