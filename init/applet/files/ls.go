package files

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// listed is a file as ls shows it.
type listed struct {
	name, path string
	info       fs.FileInfo
	st         *syscall.Stat_t
}

// Ls lists folders.
func Ls(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "1aAlhdrRtSFinpCskL all=a almost-all=A human-readable=h directory=d reverse=r recursive=R classify=F inode=i size=s", `[-1aAlhdrRtSFinpsL] [FILE]...
  -l  long form   -h  sizes with units   -n  numbers for owners   -i  inode numbers
  -a, -A  dot files too (-A without . and ..)   -d  folders themselves   -R  all below
  -t, -S  newest or largest first   -r  reversed   -F, -p  mark kinds   -1  one a line
Example: ls -lat /etc/config`)
	if code >= 0 {
		return code
	}
	l := lister{c: c, o: o, width: 80, now: time.Now()}
	l.long = o.Has('l') || o.Has('n')
	l.columns = o.Has('C')
	if f, ok := c.Stdout.(*os.File); ok && !o.Has('1') {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			l.columns = true
			if ws.Col > 0 {
				l.width = int(ws.Col)
			}
		}
	}
	names := o.Args
	if len(names) == 0 {
		names = []string{"."}
	}
	var files []listed
	var folders []listed
	for _, name := range names {
		e, err := l.look(name, c.Path(name), o.Has('L') || !l.long && !o.Has('d'))
		if err != nil {
			l.code = fail(c, &fs.PathError{Op: "stat", Path: name, Err: unwrap(err)})
			continue
		}
		if e.info.IsDir() && !o.Has('d') {
			folders = append(folders, e)
		} else {
			files = append(files, e)
		}
	}
	l.sort(files)
	l.sort(folders)
	l.print(files, false)
	many := len(files)+len(folders) > 1 || len(names) > 1 || o.Has('R')
	for i, d := range folders {
		if ctx.Err() != nil {
			return 1
		}
		l.folder(ctx, d, many, i > 0 || len(files) > 0)
	}
	return l.code
}

type lister struct {
	c       *unit.Call
	o       *options.Set
	long    bool
	columns bool
	width   int
	now     time.Time
	code    int
	users   map[uint32]string
	groups  map[uint32]string
}

func unwrap(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

func (l *lister) look(name, path string, follow bool) (listed, error) {
	info, err := os.Lstat(path)
	if err == nil && follow && info.Mode()&fs.ModeSymlink != 0 {
		if target, terr := os.Stat(path); terr == nil {
			info = target
		}
	}
	if err != nil {
		return listed{}, err
	}
	st, _ := info.Sys().(*syscall.Stat_t)
	return listed{name, path, info, st}, nil
}

func (l *lister) folder(ctx context.Context, d listed, title, gap bool) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		l.code = fail(l.c, &fs.PathError{Op: "open", Path: d.name, Err: unwrap(err)})
		return
	}
	if gap {
		fmt.Fprintln(l.c.Stdout)
	}
	if title {
		fmt.Fprintf(l.c.Stdout, "%s:\n", d.name)
	}
	var list []listed
	if l.o.Has('a') {
		for _, n := range []string{".", ".."} {
			if e, err := l.look(n, d.path+"/"+n, false); err == nil {
				list = append(list, e)
			}
		}
	}
	for _, e := range entries {
		if e.Name()[0] == '.' && !l.o.Has('a') && !l.o.Has('A') {
			continue
		}
		f, err := l.look(e.Name(), filepath.Join(d.path, e.Name()), l.o.Has('L'))
		if err != nil {
			continue // gone between reading the folder and now
		}
		list = append(list, f)
	}
	l.sort(list)
	l.print(list, true)
	if !l.o.Has('R') {
		return
	}
	for _, f := range list {
		if f.info.IsDir() && f.name != "." && f.name != ".." && ctx.Err() == nil {
			f.name = strings.TrimSuffix(d.name, "/") + "/" + f.name
			l.folder(ctx, f, true, true)
		}
	}
}

func (l *lister) sort(list []listed) {
	slices.SortStableFunc(list, func(a, b listed) int {
		n := 0
		switch {
		case l.o.Has('t'):
			n = b.info.ModTime().Compare(a.info.ModTime())
		case l.o.Has('S'):
			n = cmp.Compare(b.info.Size(), a.info.Size())
		}
		if n == 0 {
			n = strings.Compare(a.name, b.name)
		}
		if l.o.Has('r') {
			n = -n
		}
		return n
	})
}

// mark is the character that -F and -p add.
func (l *lister) mark(f listed) string {
	m := f.info.Mode()
	switch {
	case m.IsDir():
		return "/"
	case !l.o.Has('F'):
		return ""
	case m&fs.ModeSymlink != 0:
		return "@"
	case m&fs.ModeNamedPipe != 0:
		return "|"
	case m&fs.ModeSocket != 0:
		return "="
	case m.IsRegular() && m&0o111 != 0:
		return "*"
	}
	return ""
}

func (l *lister) print(list []listed, inFolder bool) {
	if len(list) == 0 {
		if inFolder && l.long {
			fmt.Fprintln(l.c.Stdout, "total 0")
		}
		return
	}
	var blocks int64
	names := make([]string, len(list))
	for i, f := range list {
		blocks += f.st.Blocks
		names[i] = safeName(f.name, l.columns || l.long && l.columns)
		if l.o.Has('F') || l.o.Has('p') {
			names[i] += l.mark(f)
		}
		if !l.long {
			if l.o.Has('s') {
				names[i] = strconv.FormatInt(f.st.Blocks/2, 10) + " " + names[i]
			}
			if l.o.Has('i') {
				names[i] = strconv.FormatUint(f.st.Ino, 10) + " " + names[i]
			}
		}
	}
	if l.long {
		if inFolder {
			fmt.Fprintf(l.c.Stdout, "total %d\n", blocks/2)
		}
		l.table(list, names)
		return
	}
	if !l.columns || l.o.Has('1') {
		fmt.Fprintln(l.c.Stdout, strings.Join(names, "\n"))
		return
	}
	wide := 0
	for _, n := range names {
		wide = max(wide, utf8.RuneCountInString(n)+2)
	}
	cols := max(l.width/wide, 1)
	rows := (len(names) + cols - 1) / cols
	for r := range rows {
		var b strings.Builder
		for i := r; i < len(names); i += rows {
			b.WriteString(names[i])
			if i+rows < len(names) {
				b.WriteString(strings.Repeat(" ", wide-utf8.RuneCountInString(names[i])))
			}
		}
		fmt.Fprintln(l.c.Stdout, b.String())
	}
}

// safeName keeps a file's name from acting on the terminal.
func safeName(n string, terminal bool) string {
	if !terminal {
		return n
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, n)
}

// table prints the long form with its columns aligned.
func (l *lister) table(list []listed, names []string) {
	rows := make([][]string, len(list))
	for i, f := range list {
		size := strconv.FormatInt(f.info.Size(), 10)
		switch {
		case f.info.Mode()&fs.ModeDevice != 0:
			size = fmt.Sprintf("%d, %3d", unix.Major(uint64(f.st.Rdev)), unix.Minor(uint64(f.st.Rdev)))
		case l.o.Has('h'):
			size = Human(uint64(f.info.Size()))
		}
		t := f.info.ModTime()
		when := t.Format("Jan _2 15:04")
		if l.now.Sub(t) > 182*24*time.Hour || t.Sub(l.now) > time.Hour {
			when = t.Format("Jan _2  2006")
		}
		name := names[i]
		if f.info.Mode()&fs.ModeSymlink != 0 {
			if target, err := os.Readlink(f.path); err == nil {
				name += " -> " + safeName(target, l.columns)
			}
		}
		row := []string{modeText(f.st.Mode), strconv.FormatUint(uint64(f.st.Nlink), 10), l.user(f.st.Uid), l.group(f.st.Gid), size, when, name}
		if l.o.Has('s') {
			row = append([]string{strconv.FormatInt(f.st.Blocks/2, 10)}, row...)
		}
		if l.o.Has('i') {
			row = append([]string{strconv.FormatUint(f.st.Ino, 10)}, row...)
		}
		rows[i] = row
	}
	n := len(rows[0])
	width := make([]int, n)
	for _, r := range rows {
		for i, v := range r {
			width[i] = max(width[i], utf8.RuneCountInString(v))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, v := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(v))
			switch {
			case i == n-1:
				b.WriteString(v)
			case i == n-5 || i == n-4: // owners stand left
				b.WriteString(v + pad + " ")
			default:
				b.WriteString(pad + v + " ")
			}
		}
		fmt.Fprintln(l.c.Stdout, b.String())
	}
}

func (l *lister) user(id uint32) string {
	if l.o.Has('n') {
		return strconv.FormatUint(uint64(id), 10)
	}
	if l.users == nil {
		l.users = names("/etc/passwd")
	}
	return nameOr(l.users, id)
}

func (l *lister) group(id uint32) string {
	if l.o.Has('n') {
		return strconv.FormatUint(uint64(id), 10)
	}
	if l.groups == nil {
		l.groups = names("/etc/group")
	}
	return nameOr(l.groups, id)
}

func nameOr(m map[uint32]string, id uint32) string {
	if n, ok := m[id]; ok {
		return n
	}
	return strconv.FormatUint(uint64(id), 10)
}

// names reads the numbers of passwd(5) or group(5).
func names(file string) map[uint32]string {
	m := make(map[uint32]string)
	b, err := os.ReadFile(file)
	if err != nil {
		return m // numbers will do
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 {
			continue
		}
		if id, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			if _, ok := m[uint32(id)]; !ok {
				m[uint32(id)] = f[0]
			}
		}
	}
	return m
}

// idOf finds the number of a user or group by name or takes it as a number.
func idOf(file, name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	for id, n := range names(file) {
		if n == name {
			return int(id), nil
		}
	}
	return 0, fmt.Errorf("%s: not in %s", name, file)
}

// modeText is the ten characters of ls -l.
func modeText(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		b[0] = '-'
	case unix.S_IFDIR:
		b[0] = 'd'
	case unix.S_IFLNK:
		b[0] = 'l'
	case unix.S_IFCHR:
		b[0] = 'c'
	case unix.S_IFBLK:
		b[0] = 'b'
	case unix.S_IFIFO:
		b[0] = 'p'
	case unix.S_IFSOCK:
		b[0] = 's'
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	special := func(i int, bit uint32, with, without byte) {
		if mode&bit == 0 {
			return
		}
		if b[i] == 'x' {
			b[i] = with
		} else {
			b[i] = without
		}
	}
	special(3, unix.S_ISUID, 's', 'S')
	special(6, unix.S_ISGID, 's', 'S')
	special(9, unix.S_ISVTX, 't', 'T')
	return string(b)
}

// Human is a number of bytes with one digit after the point and a unit, as
// busybox prints it: 512, 1.5K, 20.0M.
func Human(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10)
	}
	v := float64(n)
	for _, u := range "KMGTPE" {
		v /= 1024
		if v < 1023.95 || u == 'E' {
			return strconv.FormatFloat(v, 'f', 1, 64) + string(u)
		}
	}
	return ""
}
