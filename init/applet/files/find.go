package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

const findUsage = `[-HLP] [PATH]... [EXPRESSION]
Tests: -name -iname -path -regex-free patterns; -type fdlbcps; -size N[ckM]; -mtime -mmin
  -newer FILE; -perm [-/]MODE; -user -group -uid -gid; -links N; -empty; -inum N
Bounds: -maxdepth N -mindepth N -xdev -depth -prune
Actions: -print -print0 -delete -exec CMD {} ';' -exec CMD {} + -quit
Operators: ! -not -a -and -o -or ( )
Example: find /etc -name '*.conf' -mtime -1 -exec ls -l {} +`

// Find walks folders and acts on what fits an expression.
func Find(ctx context.Context, c *unit.Call) int {
	f := &finder{ctx: ctx, c: c, maxDepth: -1, now: time.Now()}
	args := c.Args[1:]
	var roots []string
	for len(args) > 0 {
		a := args[0]
		if a == "-L" || a == "-H" || a == "-P" {
			f.follow = a == "-L"
			args = args[1:]
			continue
		}
		if a == "--help" {
			fmt.Fprintf(c.Stdout, "Usage: find %s\n", findUsage)
			return 0
		}
		if a != "" && (a[0] == '-' || a == "!" || a == "(") {
			break
		}
		roots = append(roots, a)
		args = args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	f.args = args
	test, err := f.or()
	if err == nil && len(f.args) > 0 {
		err = fmt.Errorf("%s: not expected here", f.args[0])
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "find: %v\nUsage: find %s\n", err, findUsage)
		return 2
	}
	if !f.acts {
		inner := test
		test = func(e *found) bool { return inner(e) && f.print(e, "\n") }
	}
	f.test = test
	for _, r := range roots {
		if f.over || ctx.Err() != nil {
			break
		}
		f.root(r)
	}
	for _, b := range f.batches {
		b.run(f)
	}
	return f.code
}

// found is a file being looked at.
type found struct {
	shown, path string
	depth       int
	info        fs.FileInfo
	st          *syscall.Stat_t
	prune       bool
}

type finder struct {
	ctx                context.Context
	c                  *unit.Call
	args               []string
	test               func(*found) bool
	follow, xdev, post bool
	minDepth, maxDepth int
	acts, over         bool
	dev                uint64
	code               int
	now                time.Time
	batches            []*batch
}

func (f *finder) root(name string) {
	e, err := f.look(name, f.c.Path(name), 0)
	if err != nil {
		f.code = fail(f.c, &fs.PathError{Op: "stat", Path: name, Err: unwrap(err)})
		return
	}
	f.dev = uint64(e.st.Dev)
	f.walk(e)
}

func (f *finder) look(shown, path string, depth int) (*found, error) {
	info, err := os.Lstat(path)
	if err == nil && f.follow && info.Mode()&fs.ModeSymlink != 0 {
		if t, terr := os.Stat(path); terr == nil {
			info = t
		}
	}
	if err != nil {
		return nil, err
	}
	return &found{shown: shown, path: path, depth: depth, info: info, st: info.Sys().(*syscall.Stat_t)}, nil
}

// deepest bounds the recursion: no real tree is deeper, and links that are
// followed in a circle are.
const deepest = 1000

func (f *finder) walk(e *found) {
	if f.over || f.ctx.Err() != nil {
		return
	}
	try := func() {
		if e.depth >= f.minDepth && !f.over {
			f.test(e)
		}
	}
	if !f.post {
		try()
	}
	if e.info.IsDir() && !e.prune && (f.maxDepth < 0 || e.depth < f.maxDepth) && (!f.xdev || uint64(e.st.Dev) == f.dev) && e.depth < deepest {
		entries, err := os.ReadDir(e.path)
		if err != nil {
			f.code = fail(f.c, &fs.PathError{Op: "open", Path: e.shown, Err: unwrap(err)})
		}
		for _, d := range entries {
			shown := e.shown + "/" + d.Name()
			if strings.HasSuffix(e.shown, "/") {
				shown = e.shown + d.Name()
			}
			sub, err := f.look(shown, filepath.Join(e.path, d.Name()), e.depth+1)
			if errors.Is(err, fs.ErrNotExist) {
				continue // gone meanwhile
			}
			if err != nil {
				f.code = fail(f.c, err)
				continue
			}
			f.walk(sub)
		}
	}
	if f.post {
		try()
	}
}

func (f *finder) print(e *found, end string) bool {
	if _, err := fmt.Fprint(f.c.Stdout, e.shown, end); err != nil {
		f.over, f.code = true, 1
	}
	return true
}

func (f *finder) or() (func(*found) bool, error) {
	t, err := f.and()
	for err == nil && len(f.args) > 0 && (f.args[0] == "-o" || f.args[0] == "-or") {
		f.args = f.args[1:]
		a := t
		var b func(*found) bool
		b, err = f.and()
		t = func(e *found) bool { return a(e) || b(e) }
	}
	return t, err
}

func (f *finder) and() (func(*found) bool, error) {
	t := func(*found) bool { return true }
	for n := 0; len(f.args) > 0; n++ {
		switch f.args[0] {
		case "-o", "-or", ")":
			if n == 0 && f.args[0] != ")" {
				return nil, fmt.Errorf("%s: something must stand before it", f.args[0])
			}
			return t, nil
		case "-a", "-and":
			f.args = f.args[1:]
			continue
		}
		a := t
		b, err := f.primary()
		if err != nil {
			return nil, err
		}
		t = func(e *found) bool { return a(e) && b(e) }
	}
	return t, nil
}

func (f *finder) primary() (func(*found) bool, error) {
	op := f.args[0]
	f.args = f.args[1:]
	switch op {
	case "!", "-not":
		if len(f.args) == 0 {
			return nil, fmt.Errorf("%s: something must follow", op)
		}
		t, err := f.primary()
		return func(e *found) bool { return !t(e) }, err
	case "(":
		t, err := f.or()
		if err != nil {
			return nil, err
		}
		if len(f.args) == 0 || f.args[0] != ")" {
			return nil, errors.New("( is not closed")
		}
		f.args = f.args[1:]
		return t, nil
	case "-print":
		f.acts = true
		return func(e *found) bool { return f.print(e, "\n") }, nil
	case "-print0":
		f.acts = true
		return func(e *found) bool { return f.print(e, "\x00") }, nil
	case "-quit":
		f.acts = true
		return func(*found) bool { f.over = true; return true }, nil
	case "-prune":
		return func(e *found) bool { e.prune = true; return true }, nil
	case "-depth":
		f.post = true
		return always, nil
	case "-xdev", "-mount":
		f.xdev = true
		return always, nil
	case "-true":
		return always, nil
	case "-false":
		return func(*found) bool { return false }, nil
	case "-delete":
		f.acts, f.post = true, true
		return f.remove, nil
	case "-empty":
		return func(e *found) bool {
			if e.info.IsDir() {
				d, err := os.ReadDir(e.path)
				return err == nil && len(d) == 0
			}
			return e.info.Mode().IsRegular() && e.info.Size() == 0
		}, nil
	case "-exec", "-execdir", "-ok":
		if op != "-exec" {
			return nil, fmt.Errorf("%s is not supported; use -exec", op)
		}
		return f.exec()
	}
	if !strings.HasPrefix(op, "-") {
		return nil, fmt.Errorf("%s: not expected here", op)
	}
	if len(f.args) == 0 {
		return nil, fmt.Errorf("%s: unknown, or a value must follow", op)
	}
	v := f.args[0]
	f.args = f.args[1:]
	return f.valued(op, v)
}

func always(*found) bool { return true }

// valued makes the test of an operator with a value.
func (f *finder) valued(op, v string) (func(*found) bool, error) {
	count := func() (int64, func(n int64) bool, error) {
		sign := byte(0)
		digits := v
		if v != "" && (v[0] == '+' || v[0] == '-') {
			sign, digits = v[0], v[1:]
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return 0, nil, fmt.Errorf("%s: %q is not a number", op, v)
		}
		return n, func(x int64) bool {
			switch sign {
			case '+':
				return x > n
			case '-':
				return x < n
			}
			return x == n
		}, nil
	}
	pattern := func(fold bool, text func(*found) string) (func(*found) bool, error) {
		p := v
		if fold {
			p = strings.ToLower(p)
		}
		// "/" is nothing special in find's patterns, as it is for path.Match.
		p = strings.ReplaceAll(p, "/", "\x00")
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("%s: %q is not a pattern", op, v)
		}
		return func(e *found) bool {
			s := text(e)
			if fold {
				s = strings.ToLower(s)
			}
			ok, _ := path.Match(p, strings.ReplaceAll(s, "/", "\x00")) // checked above
			return ok
		}, nil
	}
	switch op {
	case "-name", "-iname":
		return pattern(op == "-iname", func(e *found) string { return path.Base(e.shown) })
	case "-path", "-wholename", "-ipath":
		return pattern(op == "-ipath", func(e *found) string { return e.shown })
	case "-type":
		kinds := map[byte]uint32{'f': unix.S_IFREG, 'd': unix.S_IFDIR, 'l': unix.S_IFLNK, 'b': unix.S_IFBLK, 'c': unix.S_IFCHR, 'p': unix.S_IFIFO, 's': unix.S_IFSOCK}
		var want []uint32
		for _, k := range strings.Split(v, ",") {
			bit, ok := kinds[(k + " ")[0]]
			if !ok || len(k) != 1 {
				return nil, fmt.Errorf("-type: %q is not a kind (f d l b c p s)", v)
			}
			want = append(want, bit)
		}
		return func(e *found) bool {
			for _, w := range want {
				if e.st.Mode&unix.S_IFMT == w {
					return true
				}
			}
			return false
		}, nil
	case "-maxdepth", "-mindepth":
		n, _, err := count()
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s: %q is not a depth", op, v)
		}
		if op == "-maxdepth" {
			f.maxDepth = int(n)
		} else {
			f.minDepth = int(n)
		}
		return always, nil
	case "-mtime", "-atime", "-ctime", "-mmin", "-amin", "-cmin":
		_, fits, err := count()
		unitOf := 24 * time.Hour
		if strings.HasSuffix(op, "min") {
			unitOf = time.Minute
		}
		return func(e *found) bool {
			t := e.st.Mtim
			switch op[1] {
			case 'a':
				t = e.st.Atim
			case 'c':
				t = e.st.Ctim
			}
			age := f.now.Sub(time.Unix(t.Unix()))
			return fits(int64(age / unitOf))
		}, err
	case "-newer":
		ref, err := os.Stat(f.c.Path(v))
		if err != nil {
			return nil, err
		}
		return func(e *found) bool { return e.info.ModTime().After(ref.ModTime()) }, nil
	case "-size":
		blk := int64(512)
		switch {
		case strings.HasSuffix(v, "c"):
			blk = 1
		case strings.HasSuffix(v, "k"):
			blk = 1 << 10
		case strings.HasSuffix(v, "M"):
			blk = 1 << 20
		case strings.HasSuffix(v, "G"):
			blk = 1 << 30
		}
		v = strings.TrimRight(v, "ckbMG")
		_, fits, err := count()
		return func(e *found) bool { return fits((e.info.Size() + blk - 1) / blk) }, err
	case "-links", "-inum", "-uid", "-gid":
		_, fits, err := count()
		return func(e *found) bool {
			switch op {
			case "-links":
				return fits(int64(e.st.Nlink))
			case "-inum":
				return fits(int64(e.st.Ino))
			case "-uid":
				return fits(int64(e.st.Uid))
			}
			return fits(int64(e.st.Gid))
		}, err
	case "-user":
		id, err := idOf("/etc/passwd", v)
		return func(e *found) bool { return int(e.st.Uid) == id }, err
	case "-group":
		id, err := idOf("/etc/group", v)
		return func(e *found) bool { return int(e.st.Gid) == id }, err
	case "-perm":
		kind := byte(0)
		if v != "" && (v[0] == '-' || v[0] == '/') {
			kind, v = v[0], v[1:]
		}
		mode, err := ParseMode(v, 0, 0, false)
		if err != nil {
			return nil, fmt.Errorf("-perm: %w", err)
		}
		return func(e *found) bool {
			has := e.st.Mode & 0o7777
			switch kind {
			case '-':
				return has&mode == mode
			case '/':
				return mode == 0 || has&mode != 0
			}
			return has == mode
		}, nil
	}
	return nil, fmt.Errorf("%s: there is no such test", op)
}

func (f *finder) remove(e *found) bool {
	if e.shown == "." || e.shown == "/" {
		return true
	}
	if err := os.Remove(e.path); err != nil {
		f.code = fail(f.c, err)
		return false
	}
	return true
}

// exec parses -exec CMD {} ; and -exec CMD {} +.
func (f *finder) exec() (func(*found) bool, error) {
	f.acts = true
	var words []string
	for {
		if len(f.args) == 0 {
			return nil, errors.New("-exec: the command must end in ';' or +")
		}
		w := f.args[0]
		f.args = f.args[1:]
		if w == ";" || w == "+" && len(words) > 0 && words[len(words)-1] == "{}" {
			if len(words) == 0 {
				return nil, errors.New("-exec: which command?")
			}
			if w == "+" {
				b := &batch{words: words[:len(words)-1]}
				f.batches = append(f.batches, b)
				return func(e *found) bool { b.add(f, e.shown); return true }, nil
			}
			return func(e *found) bool {
				args := make([]string, len(words))
				for i, w := range words {
					args[i] = strings.ReplaceAll(w, "{}", e.shown)
				}
				return f.command(args) == nil
			}, nil
		}
		words = append(words, w)
	}
}

// command runs a program; the error is only whether it succeeded.
func (f *finder) command(args []string) error {
	cmd := exec.CommandContext(f.ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = f.c.Dir, f.c.Stdin, f.c.Stdout, f.c.Stderr
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		f.code = failf(f.c, "run %s: %v", args[0], err)
	}
	return err
}

// batch collects the files of -exec ... +.
type batch struct {
	words, files []string
	size         int
}

const batchBytes = 64 * 1024 // far below what the kernel takes

func (b *batch) add(f *finder, file string) {
	if b.size+len(file) > batchBytes {
		b.run(f)
	}
	b.files = append(b.files, file)
	b.size += len(file) + 1
}

func (b *batch) run(f *finder) {
	if len(b.files) > 0 && f.command(append(append([]string(nil), b.words...), b.files...)) != nil {
		f.code = 1
	}
	b.files, b.size = nil, 0
}
