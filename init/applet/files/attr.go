package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// ParseMode applies a mode as chmod takes it (0644, u+x,go-w, a=rX) to old.
// umask counts for clauses without u, g, o or a; isDir for X.
func ParseMode(spec string, old, umask uint32, isDir bool) (uint32, error) {
	if n, err := strconv.ParseUint(spec, 8, 32); err == nil {
		if n > 0o7777 {
			return 0, fmt.Errorf("%q is not a mode", spec)
		}
		return uint32(n), nil
	}
	mode := old & 0o7777
	for clause := range strings.SplitSeq(spec, ",") {
		i := strings.IndexAny(clause, "+-=")
		if i < 0 {
			return 0, fmt.Errorf("%q is not a mode (examples: 644, u+x, a=rX)", spec)
		}
		var who uint32
		for _, l := range clause[:i] {
			switch l {
			case 'u':
				who |= 0o4700
			case 'g':
				who |= 0o2070
			case 'o':
				who |= 0o1007
			case 'a':
				who |= 0o7777
			default:
				return 0, fmt.Errorf("%q is not a mode: %c is none of u g o a", spec, l)
			}
		}
		masked := who == 0
		if masked {
			who = 0o7777
		}
		for rest := clause[i:]; rest != ""; {
			op := rest[0]
			rest = rest[1:]
			end := strings.IndexAny(rest, "+-=")
			if end < 0 {
				end = len(rest)
			}
			var bits uint32
			for _, l := range rest[:end] {
				switch l {
				case 'r':
					bits |= 0o444
				case 'w':
					bits |= 0o222
				case 'x':
					bits |= 0o111
				case 'X':
					if isDir || old&0o111 != 0 {
						bits |= 0o111
					}
				case 's':
					bits |= 0o6000
				case 't':
					bits |= 0o1000
				case 'u':
					bits |= (mode >> 6 & 7) * 0o111
				case 'g':
					bits |= (mode >> 3 & 7) * 0o111
				case 'o':
					bits |= (mode & 7) * 0o111
				default:
					return 0, fmt.Errorf("%q is not a mode: %c is none of r w x X s t u g o", spec, l)
				}
			}
			rest = rest[end:]
			bits &= who
			if masked {
				bits &^= umask
			}
			switch op {
			case '+':
				mode |= bits
			case '-':
				mode &^= bits
			case '=':
				mode = mode&^(who&0o777) | bits
			}
		}
	}
	return mode, nil
}

// umask is the process's mask. It is read where the kernel shows it (since 4.7):
// the system call can only tell by changing it, under the feet of other threads.
func umask() uint32 {
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "\nUmask:"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			if n, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	m := unix.Umask(0)
	unix.Umask(m)
	return uint32(m)
}

// eachBelow calls f for a file and, if recursive, for all below it; links are
// not followed below.
func eachBelow(c *unit.Call, name string, recursive bool, f func(path string, info fs.FileInfo) error) (code int) {
	path := c.Path(name)
	if !recursive {
		info, err := os.Lstat(path)
		if err == nil {
			err = f(path, info)
		}
		if err != nil {
			return fail(c, err)
		}
		return 0
	}
	err := filepath.Walk(path, func(p string, info fs.FileInfo, err error) error {
		if err == nil && info.Mode()&fs.ModeSymlink != 0 && p != path {
			return nil
		}
		if err == nil {
			err = f(p, info)
		}
		if err != nil {
			code = fail(c, err)
		}
		return nil
	})
	if err != nil {
		code = fail(c, err)
	}
	return code
}

// Chmod changes permissions.
func Chmod(_ context.Context, c *unit.Call) int {
	// A mode may start with a dash: chmod -x file.
	args := append([]string(nil), c.Args...)
	for i := 1; i < len(args); i++ {
		if len(args[i]) > 1 && args[i][0] == '-' && strings.Trim(args[i][1:], "rwxXst,+=ugoa-") == "" && args[i] != "--" && !strings.Contains(args[i], "R") {
			args = append(args[:i], append([]string{"--", args[i]}, args[i+1:]...)...)
			break
		}
	}
	call := *c
	call.Args = args
	o, code := options.Parse(&call, "Rvfc recursive=R verbose=v", `[-R] MODE FILE...
Example: chmod -R u=rwX,go=rX /www`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(2, -1); code >= 0 {
		return code
	}
	spec := o.Args[0]
	mask := umask()
	if _, err := ParseMode(spec, 0, mask, false); err != nil {
		return o.Fail("%v", err)
	}
	code = 0
	for _, name := range o.Args[1:] {
		code = max(code, eachBelow(c, name, o.Has('R'), func(path string, info fs.FileInfo) error {
			if info.Mode()&fs.ModeSymlink != 0 {
				t, err := os.Stat(path)
				if err != nil {
					return err
				}
				info = t
			}
			st := info.Sys().(*syscall.Stat_t)
			mode, err := ParseMode(spec, st.Mode, mask, info.IsDir())
			if err != nil {
				return err
			}
			return wrapPath("chmod", path, unix.Chmod(path, mode))
		}))
	}
	return code
}

// Chown changes owner and group; under the name chgrp the group.
func Chown(_ context.Context, c *unit.Call) int {
	group := filepath.Base(c.Args[0]) == "chgrp"
	usage := "[-Rh] [USER][:[GROUP]] FILE...\n  -R  all below too   -h  links themselves\nExample: chown -R root:www-data /www"
	if group {
		usage = "[-Rh] GROUP FILE..."
	}
	o, code := options.Parse(c, "Rhfv recursive=R no-dereference=h", usage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(2, -1); code >= 0 {
		return code
	}
	uid, gid := -1, -1
	user, grp, hasGroup := strings.Cut(o.Args[0], ":")
	if !hasGroup {
		if u, g, ok := strings.Cut(o.Args[0], "."); ok {
			user, grp, hasGroup = u, g, true
		}
	}
	if group {
		user, grp = "", o.Args[0]
	}
	var err error
	if user != "" {
		if uid, err = idOf("/etc/passwd", user); err != nil {
			return fail(c, err)
		}
	}
	if grp != "" {
		if gid, err = idOf("/etc/group", grp); err != nil {
			return fail(c, err)
		}
	}
	code = 0
	for _, name := range o.Args[1:] {
		code = max(code, eachBelow(c, name, o.Has('R'), func(path string, info fs.FileInfo) error {
			if o.Has('h') {
				return os.Lchown(path, uid, gid)
			}
			return os.Chown(path, uid, gid)
		}))
	}
	return code
}

// Stat shows what the file system knows about files; -c FORMAT as GNU's.
func Stat(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "c:Lft format=c dereference=L", `[-L] [-c FORMAT] FILE...
  -L  follow links
FORMAT: %a mode %A as ls %b blocks %d device %f hex mode %F kind %g %G group %h links
  %i inode %n name %N with link %s size %u %U owner %x %X atime %y %Y mtime %z %Z ctime
Example: stat -c '%a %n' /etc/shadow`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	if o.Has('f') || o.Has('t') {
		return o.Fail("-f and -t are not supported; df tells about file systems")
	}
	code = 0
	for _, name := range o.Args {
		var st unix.Stat_t
		call := unix.Lstat
		if o.Has('L') {
			call = unix.Stat
		}
		if err := call(c.Path(name), &st); err != nil {
			code = fail(c, &fs.PathError{Op: "stat", Path: name, Err: err})
			continue
		}
		format := "  File: %N\n  Size: %-15s Blocks: %-10b IO Block: %-6o %F\nDevice: %Dh/%dd\tInode: %-10i  Links: %h\nAccess: (%04a/%A)  Uid: (%5u/%8U)   Gid: (%5g/%8G)\nAccess: %x\nModify: %y\nChange: %z"
		if o.Has('c') {
			format = o.Value('c', "")
		}
		fmt.Fprintln(c.Stdout, statText(format, name, c.Path(name), &st))
	}
	return code
}

// statText expands % sequences, with printf's width.
func statText(format, name, path string, st *unix.Stat_t) string {
	var b strings.Builder
	stamp := func(t unix.Timespec) string {
		return time.Unix(t.Unix()).Format("2006-01-02 15:04:05.000000000 -0700")
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		j := i + 1
		for j < len(format)-1 && strings.IndexByte("-0123456789", format[j]) >= 0 {
			j++
		}
		flags := format[i+1 : j]
		var v any
		switch format[j] {
		case 'a':
			v = strconv.FormatUint(uint64(st.Mode&0o7777), 8)
			if strings.HasPrefix(flags, "0") { // zeros for a number in text form
				w, _ := strconv.Atoi(flags)
				v, flags = fmt.Sprintf("%0*s", w, v), ""
			}
		case 'A':
			v = modeText(st.Mode)
		case 'b':
			v = st.Blocks
		case 'B':
			v = 512
		case 'd':
			v = st.Dev
		case 'D':
			v = strconv.FormatUint(uint64(st.Dev), 16)
		case 'f':
			v = strconv.FormatUint(uint64(st.Mode), 16)
		case 'F':
			v = kindText(st)
		case 'g':
			v = st.Gid
		case 'G':
			v = nameOr(names("/etc/group"), st.Gid)
		case 'h':
			v = st.Nlink
		case 'i':
			v = st.Ino
		case 'n':
			v = name
		case 'N':
			v = name
			if target, err := os.Readlink(path); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
				v = name + " -> " + target
			}
		case 'o':
			v = st.Blksize
		case 's':
			v = st.Size
		case 't':
			v = strconv.FormatUint(uint64(unix.Major(uint64(st.Rdev))), 16)
		case 'T':
			v = strconv.FormatUint(uint64(unix.Minor(uint64(st.Rdev))), 16)
		case 'u':
			v = st.Uid
		case 'U':
			v = nameOr(names("/etc/passwd"), st.Uid)
		case 'x':
			v = stamp(st.Atim)
		case 'X':
			v = st.Atim.Sec
		case 'y':
			v = stamp(st.Mtim)
		case 'Y':
			v = st.Mtim.Sec
		case 'z':
			v = stamp(st.Ctim)
		case 'Z':
			v = st.Ctim.Sec
		case '%':
			v = "%"
		default:
			v = format[i : j+1]
			flags = ""
		}
		fmt.Fprintf(&b, "%"+flags+"v", v)
		i = j
	}
	return b.String()
}

func kindText(st *unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 {
			return "regular empty file"
		}
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character special file"
	case unix.S_IFBLK:
		return "block special file"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

// Readlink prints where links point to; -f the path without any links.
func Readlink(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "fenm canonicalize=f", "[-fn] FILE...\n  -f  the absolute path without links   -n  no newline")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		var out string
		var err error
		if o.Has('f') || o.Has('e') || o.Has('m') {
			out, err = canonical(c.Path(name), !o.Has('e'))
		} else {
			out, err = os.Readlink(c.Path(name))
		}
		if err != nil {
			code = 1 // silent, as everywhere: scripts ask with it
			continue
		}
		fmt.Fprint(c.Stdout, out)
		if !o.Has('n') {
			fmt.Fprintln(c.Stdout)
		}
	}
	return code
}

// Realpath prints absolute paths without links.
func Realpath(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "esm", "[-e] FILE...\n  -e  all of it must be there")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		p, err := canonical(c.Path(name), !o.Has('e'))
		if err != nil {
			code = fail(c, &fs.PathError{Op: "resolve", Path: name, Err: unwrap(err)})
			continue
		}
		fmt.Fprintln(c.Stdout, p)
	}
	return code
}

// canonical resolves links; lastMissing allows the last part not to be there.
func canonical(path string, lastMissing bool) (string, error) {
	p, err := filepath.EvalSymlinks(path)
	if err == nil || !lastMissing || !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	// A link that points nowhere is followed to where it would point.
	if target, lerr := os.Readlink(path); lerr == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		if target != path {
			return canonical(target, true)
		}
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// Dirname prints paths without their last part.
func Dirname(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "PATH...")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	for _, p := range o.Args {
		t := strings.TrimRight(p, "/")
		i := strings.LastIndexByte(t, '/')
		switch {
		case t == "" && p != "":
			fmt.Fprintln(c.Stdout, "/")
		case i < 0:
			fmt.Fprintln(c.Stdout, ".")
		default:
			if t = strings.TrimRight(t[:i], "/"); t == "" {
				t = "/"
			}
			fmt.Fprintln(c.Stdout, t)
		}
	}
	return 0
}

// Basename prints the last part of a path, without a suffix if one is given.
func Basename(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "as: multiple=a suffix=s", "PATH [SUFFIX] | -a [-s SUFFIX] PATH...")
	if code >= 0 {
		return code
	}
	most := 2
	if o.Has('a') || o.Has('s') {
		most = -1
	}
	if code := o.Operands(1, most); code >= 0 {
		return code
	}
	paths, suffix := o.Args, o.Value('s', "")
	if most == 2 && len(paths) == 2 {
		paths, suffix = paths[:1], paths[1]
	}
	for _, p := range paths {
		t := strings.TrimRight(p, "/")
		if t == "" && p != "" {
			t = "/"
		} else {
			t = t[strings.LastIndexByte(t, '/')+1:]
		}
		if t != suffix {
			t = strings.TrimSuffix(t, suffix)
		}
		fmt.Fprintln(c.Stdout, t)
	}
	return 0
}

// Mkfifo makes named pipes.
func Mkfifo(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "m: mode=m", "[-m MODE] NAME...")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	mode, err := ParseMode(o.Value('m', "666"), 0o666, 0, false)
	if err != nil {
		return o.Fail("-m: %v", err)
	}
	code = 0
	for _, name := range o.Args {
		err := unix.Mkfifo(c.Path(name), mode)
		if err == nil && o.Has('m') {
			err = unix.Chmod(c.Path(name), mode)
		}
		if err != nil {
			code = fail(c, &fs.PathError{Op: "make", Path: name, Err: err})
		}
	}
	return code
}

// Mknod makes device files.
func Mknod(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "m: mode=m", "[-m MODE] NAME p | NAME b|c MAJOR MINOR\nExample: mknod -m 600 /dev/console c 5 1")
	if code >= 0 {
		return code
	}
	if code := o.Operands(2, 4); code >= 0 {
		return code
	}
	mode, err := ParseMode(o.Value('m', "666"), 0o666, 0, false)
	if err != nil {
		return o.Fail("-m: %v", err)
	}
	kinds := map[string]uint32{"p": unix.S_IFIFO, "b": unix.S_IFBLK, "c": unix.S_IFCHR, "u": unix.S_IFCHR}
	kind, ok := kinds[o.Args[1]]
	if !ok || kind != unix.S_IFIFO && len(o.Args) != 4 {
		return o.Fail("p, or b or c with MAJOR and MINOR are expected")
	}
	dev := 0
	if kind != unix.S_IFIFO {
		major, err1 := strconv.ParseUint(o.Args[2], 0, 12)
		minor, err2 := strconv.ParseUint(o.Args[3], 0, 20)
		if err1 != nil || err2 != nil {
			return o.Fail("%s %s are not device numbers", o.Args[2], o.Args[3])
		}
		dev = int(unix.Mkdev(uint32(major), uint32(minor)))
	}
	path := c.Path(o.Args[0])
	err = unix.Mknod(path, kind|mode, dev)
	if err == nil && o.Has('m') {
		err = unix.Chmod(path, mode)
	}
	if err != nil {
		return fail(c, &fs.PathError{Op: "make", Path: o.Args[0], Err: err})
	}
	return 0
}
