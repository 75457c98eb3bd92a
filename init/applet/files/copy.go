package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Cp copies files and folders.
func Cp(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "aRrpfivdPLHnTut: recursive=R archive=a preserve=p force=f interactive=i verbose=v no-dereference=P dereference=L no-clobber=n update=u target-directory=t no-target-directory=T", `[-aRpfivPLnuT] SOURCE... TARGET
  -a  all: -R -p -P   -R, -r  folders with what is in them   -p  keep mode, owner, times
  -P, -d  links as links   -L  what links point to   -f  replace what cannot be opened
  -i  ask   -n  never overwrite   -u  only newer   -v  say what   -T  TARGET is no folder
Example: cp -a /etc/config /tmp/backup`)
	if code >= 0 {
		return code
	}
	cp := copier{c: c, ctx: ctx, recursive: o.Has('R') || o.Has('r') || o.Has('a'), preserve: o.Has('p') || o.Has('a'),
		links: (o.Has('P') || o.Has('d') || o.Has('a') || o.Has('R') || o.Has('r')) && !o.Has('L'),
		force: o.Has('f'), ask: o.Has('i') && !o.Has('f'), never: o.Has('n'), newer: o.Has('u'), verbose: o.Has('v')}
	return eachTarget(c, o, func(src, dst, shown string) error { return cp.copy(src, dst, shown) })
}

// Mv moves files and folders, across file systems too.
func Mv(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "finvuTt: force=f interactive=i no-clobber=n verbose=v update=u target-directory=t no-target-directory=T", `[-finvuT] SOURCE... TARGET
  -f  do not ask (default)   -i  ask   -n  never overwrite   -u  only newer   -v  say what
Example: mv -f /tmp/new.conf /etc/config/network`)
	if code >= 0 {
		return code
	}
	cp := copier{c: c, ctx: ctx, recursive: true, preserve: true, links: true, force: true, ask: o.Has('i'), never: o.Has('n'), newer: o.Has('u')}
	return eachTarget(c, o, func(src, dst, shown string) error {
		from, err := os.Lstat(src)
		if err != nil {
			return err
		}
		if to, err := os.Lstat(dst); err == nil {
			if os.SameFile(from, to) && src == dst {
				return fmt.Errorf("%s and %s are the same file", src, dst)
			}
			if skip := cp.skips(from, to, dst); skip {
				return nil
			}
			if to.IsDir() && !from.IsDir() {
				return &fs.PathError{Op: "move", Path: dst, Err: unix.EISDIR}
			}
		}
		if o.Has('v') {
			fmt.Fprintf(c.Stdout, "'%s' -> '%s'\n", shown, dst)
		}
		err = os.Rename(src, dst)
		if !errors.Is(err, unix.EXDEV) {
			return err
		}
		ask := cp.ask
		cp.ask, cp.never, cp.newer = false, false, false
		err = cp.copy(src, dst, shown)
		cp.ask = ask
		if err != nil {
			return err
		}
		return os.RemoveAll(src)
	})
}

// eachTarget works out where each source goes and calls f for it.
func eachTarget(c *unit.Call, o *options.Set, f func(src, dst, shown string) error) int {
	sources := o.Args
	target := o.Value('t', "")
	if !o.Has('t') {
		if code := o.Operands(2, -1); code >= 0 {
			return code
		}
		target, sources = sources[len(sources)-1], sources[:len(sources)-1]
	}
	st, err := os.Stat(c.Path(target))
	into := err == nil && st.IsDir() && !o.Has('T')
	if len(sources) > 1 && !into || o.Has('t') && !into {
		return failf(c, "%s: not a folder", target)
	}
	if !into && strings.HasSuffix(target, "/") && err != nil {
		if st, err := os.Stat(c.Path(sources[0])); err == nil && !st.IsDir() {
			return failf(c, "%s: there is no such folder", target)
		}
	}
	code := 0
	for _, s := range sources {
		dst := c.Path(target)
		if into {
			dst = filepath.Join(dst, filepath.Base(c.Path(s)))
		}
		if err := f(c.Path(s), dst, s); err != nil {
			code = fail(c, err)
		}
	}
	return code
}

type copier struct {
	c                                                             *unit.Call
	ctx                                                           context.Context
	recursive, preserve, links, force, ask, never, newer, verbose bool
	made                                                          []fs.FileInfo // folders made: copying one into itself must end
}

// skips says whether an existing target stays.
func (cp *copier) skips(from, to fs.FileInfo, dst string) bool {
	switch {
	case cp.never, cp.newer && !from.ModTime().After(to.ModTime()):
		return true
	case cp.ask && !to.IsDir():
		return !confirm(cp.c, "overwrite '"+dst+"'")
	}
	return false
}

func (cp *copier) copy(src, dst, shown string) error {
	if err := cp.ctx.Err(); err != nil {
		return err
	}
	stat := os.Stat
	if cp.links {
		stat = os.Lstat
	}
	from, err := stat(src)
	if err != nil {
		return err
	}
	to, err := os.Lstat(dst)
	if err == nil {
		if to.Mode()&fs.ModeSymlink != 0 && from.Mode()&fs.ModeSymlink == 0 {
			if t, err := os.Stat(dst); err == nil {
				to = t
			}
		}
		if os.SameFile(from, to) {
			return fmt.Errorf("%s and %s are the same file", src, dst)
		}
		if cp.skips(from, to, dst) {
			return nil
		}
	} else {
		to = nil
	}
	if cp.verbose {
		fmt.Fprintf(cp.c.Stdout, "'%s' -> '%s'\n", shown, dst)
	}
	mode := from.Mode()
	switch {
	case mode.IsDir():
		return cp.folder(src, dst, shown, from, to)
	case mode.IsRegular():
		err = cp.regular(src, dst, from)
	case mode&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(src); err == nil {
			if to != nil {
				err = os.Remove(dst)
			}
			err = errors.Join(err, os.Symlink(target, dst))
		}
	case cp.recursive:
		st := from.Sys().(*syscall.Stat_t)
		if to != nil {
			err = os.Remove(dst)
		}
		err = errors.Join(err, wrapPath("make", dst, unix.Mknod(dst, st.Mode, int(st.Rdev))))
	default:
		err = cp.regular(src, dst, from) // a device or pipe is read, as cp does without -R
	}
	if err == nil && cp.preserve {
		err = keep(dst, from)
	}
	return err
}

func wrapPath(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

func (cp *copier) folder(src, dst, shown string, from, to fs.FileInfo) error {
	if !cp.recursive {
		return fmt.Errorf("%s is a folder (-r copies it)", shown)
	}
	for _, m := range cp.made {
		if os.SameFile(m, from) {
			return fmt.Errorf("%s: cannot be copied into itself", shown)
		}
	}
	if to == nil {
		// Writable while it is being filled; the right mode comes after.
		if err := os.Mkdir(dst, from.Mode().Perm()|0o700); err != nil {
			return err
		}
	} else if !to.IsDir() {
		return &fs.PathError{Op: "copy", Path: dst, Err: unix.ENOTDIR}
	}
	if st, err := os.Lstat(dst); err == nil {
		cp.made = append(cp.made, st)
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		if err := cp.copy(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name()), shown+"/"+e.Name()); err != nil {
			faults = append(faults, err)
		}
	}
	if to == nil && from.Mode().Perm()&0o700 != 0o700 {
		faults = append(faults, os.Chmod(dst, from.Mode().Perm()))
	}
	if cp.preserve {
		faults = append(faults, keep(dst, from))
	}
	return errors.Join(faults...)
}

func (cp *copier) regular(src, dst string, from fs.FileInfo) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, from.Mode().Perm())
	if err != nil && cp.force {
		if os.Remove(dst) == nil {
			out, err = os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, from.Mode().Perm())
		}
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr // a full disk may show only here
	}
	return err
}

// keep gives dst the owner, mode and times of the source.
func keep(dst string, from fs.FileInfo) error {
	st := from.Sys().(*syscall.Stat_t)
	err := os.Lchown(dst, int(st.Uid), int(st.Gid))
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		err = nil // only root may give files away
	}
	if from.Mode()&fs.ModeSymlink == 0 {
		err = errors.Join(err, wrapPath("chmod", dst, unix.Chmod(dst, st.Mode&0o7777)))
	}
	times := []unix.Timespec{unix.NsecToTimespec(st.Atim.Nano()), unix.NsecToTimespec(st.Mtim.Nano())}
	return errors.Join(err, wrapPath("set the times of", dst, unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW)))
}

// Rm removes files, with -r folders.
func Rm(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "rRfiv recursive=r force=f interactive=i verbose=v", `[-rfiv] FILE...
  -r, -R  folders with what is in them   -f  no word about what is not there   -i  ask
Example: rm -rf /tmp/build`)
	if code >= 0 {
		return code
	}
	if len(o.Args) == 0 && !o.Has('f') {
		return o.Fail("what is to be removed?")
	}
	recursive := o.Has('r') || o.Has('R')
	for _, name := range o.Args {
		if ctx.Err() != nil {
			return 1
		}
		path := c.Path(name)
		if base := filepath.Base(name); path == "/" || base == "." || base == ".." {
			code = failf(c, "%s: this is not removed", name)
			continue
		}
		st, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && o.Has('f'):
			continue
		case err != nil:
			code = fail(c, &fs.PathError{Op: "remove", Path: name, Err: unwrap(err)})
			continue
		case st.IsDir() && !recursive:
			code = failf(c, "%s: is a folder (-r removes it)", name)
			continue
		case o.Has('i') && !confirm(c, "remove '"+name+"'"):
			continue
		}
		if recursive {
			err = os.RemoveAll(path)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			code = fail(c, err)
		} else if o.Has('v') {
			fmt.Fprintf(c.Stdout, "removed '%s'\n", name)
		}
	}
	return max(code, 0)
}

// Rmdir removes empty folders, with -p their parents too.
func Rmdir(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "p parents=p", "[-p] FOLDER...\n  -p  its parents too, as far as they are empty")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		for {
			err := unix.Rmdir(c.Path(name))
			if err != nil {
				code = fail(c, &fs.PathError{Op: "remove", Path: name, Err: err})
			}
			name = filepath.Dir(strings.TrimRight(name, "/"))
			if err != nil || !o.Has('p') || name == "." || name == "/" {
				break
			}
		}
	}
	return code
}

// Ln makes links.
func Ln(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "sfnvrT symbolic=s force=f no-dereference=n verbose=v relative=r no-target-directory=T", `[-sfnvrT] TARGET... LINK|FOLDER
  -s  symbolic   -f  replace LINK   -n  a LINK that points to a folder is replaced   -r  relative to LINK
Example: ln -sfn ../init.d/log /etc/rc.d/S12log`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	targets, dest := o.Args, "."
	if len(targets) > 1 {
		targets, dest = o.Args[:len(o.Args)-1], o.Args[len(o.Args)-1]
	}
	into := false
	if st, err := os.Stat(c.Path(dest)); err == nil && st.IsDir() && !o.Has('T') {
		into = true
		if l, err := os.Lstat(c.Path(dest)); err == nil && l.Mode()&fs.ModeSymlink != 0 && o.Has('n') {
			into = false
		}
	}
	if len(targets) > 1 && !into {
		return failf(c, "%s: not a folder", dest)
	}
	code = 0
	for _, t := range targets {
		link := c.Path(dest)
		if into {
			link = filepath.Join(link, filepath.Base(t))
		}
		to := t
		if !o.Has('s') {
			to = c.Path(t)
		} else if o.Has('r') {
			if rel, err := filepath.Rel(filepath.Dir(link), c.Path(t)); err == nil {
				to = rel
			}
		}
		make := os.Link
		if o.Has('s') {
			make = os.Symlink
		}
		err := make(to, link)
		if errors.Is(err, fs.ErrExist) && o.Has('f') {
			// Under another name first, then over the old one: there is no
			// moment without a link.
			temp := link + fmt.Sprintf(".%d.tmp", os.Getpid())
			if err = make(to, temp); err == nil {
				if err = os.Rename(temp, link); err != nil {
					os.Remove(temp)
				}
			}
		}
		if err != nil {
			code = fail(c, err)
		} else if o.Has('v') {
			fmt.Fprintf(c.Stdout, "'%s' -> '%s'\n", link, to)
		}
	}
	return code
}
