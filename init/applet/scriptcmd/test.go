package scriptcmd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// Test is test(1) and, under the name [, demands a closing ]. Exit code 0 is
// true, 1 false, 2 an expression that cannot be understood.
func Test(_ context.Context, c *unit.Call) int {
	args := c.Args[1:]
	if name := c.Args[0]; name == "[" || strings.HasSuffix(name, "/[") {
		if len(args) == 0 || args[len(args)-1] != "]" {
			return usage(c, "missing ]")
		}
		args = args[:len(args)-1]
	}
	ok, err := Eval(args, Files{Path: c.Path, FD: func(fd int) (int, bool) { return fd, true }})
	switch {
	case err != nil:
		return usage(c, "%v", err)
	case ok:
		return 0
	}
	return 1
}

// Files tells Eval where the files of an expression are.
type Files struct {
	Path func(string) string      // makes a path absolute
	FD   func(fd int) (int, bool) // the real descriptor behind fd, for -t
}

// Eval evaluates the words of a test expression.
func Eval(args []string, files Files) (bool, error) {
	p := tester{args: args, files: files}
	// POSIX fixes the meaning by the number of arguments up to four, so that
	// [ "$x" = ")" ] and [ "$x" ] hold for any value of x.
	switch len(args) {
	case 0:
		return false, nil
	case 1:
		return args[0] != "", nil
	case 2:
		if args[0] == "!" {
			return args[1] == "", nil
		}
		if isUnary(args[0]) {
			return p.unary(args[0], args[1])
		}
	case 3:
		if isBinary(args[1]) {
			return p.binary(args[0], args[1], args[2])
		}
		if args[1] == "-a" {
			return args[0] != "" && args[2] != "", nil
		}
		if args[1] == "-o" {
			return args[0] != "" || args[2] != "", nil
		}
		if args[0] == "!" {
			ok, err := Eval(args[1:], files)
			return !ok, err
		}
		if args[0] == "(" && args[2] == ")" {
			return args[1] != "", nil
		}
	case 4:
		if args[0] == "!" {
			ok, err := Eval(args[1:], files)
			return !ok, err
		}
		if args[0] == "(" && args[3] == ")" {
			return Eval(args[1:3], files)
		}
	}
	ok, err := p.or()
	if err == nil && p.i < len(args) {
		err = fmt.Errorf("%s: unexpected after a complete expression", args[p.i])
	}
	return ok, err
}

type tester struct {
	args  []string
	i     int
	files Files
}

func (p *tester) peek(n int) string {
	if p.i+n < len(p.args) {
		return p.args[p.i+n]
	}
	return ""
}

func (p *tester) or() (bool, error) {
	v, err := p.and()
	for err == nil && p.i < len(p.args) && p.args[p.i] == "-o" {
		p.i++
		var w bool
		w, err = p.and()
		v = v || w
	}
	return v, err
}

func (p *tester) and() (bool, error) {
	v, err := p.primary()
	for err == nil && p.i < len(p.args) && p.args[p.i] == "-a" {
		p.i++
		var w bool
		w, err = p.primary()
		v = v && w
	}
	return v, err
}

func (p *tester) primary() (bool, error) {
	left := len(p.args) - p.i
	if left == 0 {
		return false, fmt.Errorf("argument expected")
	}
	a := p.args[p.i]
	switch {
	case left >= 3 && isBinary(p.peek(1)):
		p.i += 3
		return p.binary(a, p.args[p.i-2], p.args[p.i-1])
	case a == "!":
		p.i++
		v, err := p.primary()
		return !v, err
	case a == "(":
		p.i++
		v, err := p.or()
		if err != nil {
			return false, err
		}
		if p.peek(0) != ")" {
			return false, fmt.Errorf("closing ) expected")
		}
		p.i++
		return v, nil
	case left >= 2 && isUnary(a):
		p.i += 2
		return p.unary(a, p.args[p.i-1])
	}
	p.i++
	return a != "", nil
}

func isUnary(op string) bool {
	return len(op) == 2 && op[0] == '-' && strings.IndexByte("bcdefghknprstuwxzGLOS", op[1]) >= 0
}

func isBinary(op string) bool {
	switch op {
	case "=", "==", "!=", "<", ">", "-eq", "-ne", "-gt", "-ge", "-lt", "-le", "-nt", "-ot", "-ef":
		return true
	}
	return false
}

func (p *tester) unary(op, arg string) (bool, error) {
	switch op[1] {
	case 'n':
		return arg != "", nil
	case 'z':
		return arg == "", nil
	case 't':
		n, err := strconv.Atoi(arg)
		if err != nil {
			return false, fmt.Errorf("%s: not a file descriptor", arg)
		}
		fd, ok := p.files.FD(n)
		if !ok {
			return false, nil
		}
		_, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err == nil, nil
	}
	if arg == "" {
		return false, nil
	}
	path := p.files.Path(arg)
	// A trailing slash asks for a folder; cleaning the path must not lose that.
	if strings.HasSuffix(arg, "/") && path != "/" {
		path += "/"
	}
	switch op[1] {
	case 'r':
		return unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS) == nil, nil
	case 'w':
		return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) == nil, nil
	case 'x':
		return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS) == nil, nil
	}
	var st unix.Stat_t
	if op[1] == 'h' || op[1] == 'L' {
		return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK, nil
	}
	if unix.Stat(path, &st) != nil {
		return false, nil
	}
	is := func(kind uint32) (bool, error) { return st.Mode&unix.S_IFMT == kind, nil }
	switch op[1] {
	case 'e':
		return true, nil
	case 'f':
		return is(unix.S_IFREG)
	case 'd':
		return is(unix.S_IFDIR)
	case 'b':
		return is(unix.S_IFBLK)
	case 'c':
		return is(unix.S_IFCHR)
	case 'p':
		return is(unix.S_IFIFO)
	case 'S':
		return is(unix.S_IFSOCK)
	case 's':
		return st.Size > 0, nil
	case 'g':
		return st.Mode&unix.S_ISGID != 0, nil
	case 'u':
		return st.Mode&unix.S_ISUID != 0, nil
	case 'k':
		return st.Mode&unix.S_ISVTX != 0, nil
	case 'O':
		return int(st.Uid) == unix.Geteuid(), nil
	case 'G':
		return int(st.Gid) == unix.Getegid(), nil
	}
	return false, fmt.Errorf("%s: unknown operator", op)
}

func (p *tester) binary(a, op, b string) (bool, error) {
	switch op {
	case "=", "==":
		return a == b, nil
	case "!=":
		return a != b, nil
	case "<":
		return a < b, nil
	case ">":
		return a > b, nil
	case "-nt", "-ot", "-ef":
		var sa, sb unix.Stat_t
		ea, eb := unix.Stat(p.files.Path(a), &sa), unix.Stat(p.files.Path(b), &sb)
		newer := func(x, y *unix.Stat_t) bool { return x.Mtim.Nano() > y.Mtim.Nano() }
		switch op {
		case "-nt":
			return ea == nil && (eb != nil || newer(&sa, &sb)), nil
		case "-ot":
			return eb == nil && (ea != nil || newer(&sb, &sa)), nil
		}
		return ea == nil && eb == nil && sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
	}
	x, err := strconv.ParseInt(strings.TrimSpace(a), 10, 64)
	if err != nil {
		return false, fmt.Errorf("%s: not an integer", a)
	}
	y, err := strconv.ParseInt(strings.TrimSpace(b), 10, 64)
	if err != nil {
		return false, fmt.Errorf("%s: not an integer", b)
	}
	switch op {
	case "-eq":
		return x == y, nil
	case "-ne":
		return x != y, nil
	case "-gt":
		return x > y, nil
	case "-ge":
		return x >= y, nil
	case "-lt":
		return x < y, nil
	}
	return x <= y, nil
}
