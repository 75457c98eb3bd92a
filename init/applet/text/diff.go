package text

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Diff shows how files differ, always in the unified form. Exit code 0 same, 1
// different, 2 trouble.
func Diff(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "uU:qrNsiwbaB unified=U brief=q recursive=r new-file=N report-identical-files=s ignore-case=i ignore-all-space=w ignore-space-change=b text=a", `[-u] [-U LINES] [-qrNsiwba] FILE1 FILE2
  -U  lines around (3)   -q  only whether   -r  folders   -N  missing files are empty
  -s  say what is the same   -i  ignore case   -w, -b  ignore blanks, their number
Example: diff -u /rom/etc/config/network /etc/config/network`)
	if code >= 0 {
		return code
	}
	if o.Has('B') {
		return o.Fail("-B is not supported")
	}
	if code := o.Operands(2, 2); code >= 0 {
		return code
	}
	around, code := o.Int('U', 3)
	if code >= 0 {
		return code
	}
	d := &differ{ctx: ctx, c: c, o: o, around: max(around, 0), out: newOutput(c)}
	d.compare(o.Args[0], o.Args[1], true)
	if d.out.Flush() != nil {
		return 2
	}
	return d.code
}

type differ struct {
	ctx    context.Context
	c      *unit.Call
	o      *options.Set
	around int
	out    output
	code   int
}

func (d *differ) trouble(err error) {
	fail(d.c, err)
	d.code = 2
}

func (d *differ) stat(name string) (fs.FileInfo, error) {
	if name == "-" {
		return nil, nil
	}
	return os.Stat(d.c.Path(name))
}

func (d *differ) compare(a, b string, top bool) {
	sa, ea := d.stat(a)
	sb, eb := d.stat(b)
	isDir := func(s fs.FileInfo) bool { return s != nil && s.IsDir() }
	if top && ea == nil && eb == nil && isDir(sa) != isDir(sb) {
		// diff FILE FOLDER means the file of the same name in it
		if isDir(sa) {
			a = filepath.Join(a, filepath.Base(b))
			_, ea = d.stat(a)
		} else {
			b = filepath.Join(b, filepath.Base(a))
			_, eb = d.stat(b)
		}
	} else if isDir(sa) && isDir(sb) {
		d.folders(a, b, top)
		return
	}
	for _, e := range []error{ea, eb} {
		if e != nil && !(d.o.Has('N') && errors.Is(e, fs.ErrNotExist)) {
			d.trouble(e)
			return
		}
	}
	d.files(a, b, ea == nil, eb == nil)
}

func (d *differ) folders(a, b string, top bool) {
	if !top && !d.o.Has('r') {
		fmt.Fprintf(d.out, "Common subdirectories: %s and %s\n", a, b)
		return
	}
	names := make(map[string]int)
	for i, dir := range []string{a, b} {
		entries, err := os.ReadDir(d.c.Path(dir))
		if err != nil {
			d.trouble(err)
			return
		}
		for _, e := range entries {
			names[e.Name()] |= 1 << i
		}
	}
	var list []string
	for n := range names {
		list = append(list, n)
	}
	slices.Sort(list)
	for _, n := range list {
		if d.ctx.Err() != nil {
			return
		}
		switch {
		case names[n] == 3 || d.o.Has('N'):
			d.compare(filepath.Join(a, n), filepath.Join(b, n), false)
		case names[n] == 1:
			fmt.Fprintf(d.out, "Only in %s: %s\n", a, n)
			d.code = max(d.code, 1)
		default:
			fmt.Fprintf(d.out, "Only in %s: %s\n", b, n)
			d.code = max(d.code, 1)
		}
	}
}

func (d *differ) read(name string, there bool) (string, bool) {
	if !there {
		return "", true
	}
	in, err := open(d.c, name)
	if err == nil {
		defer in.Close()
		const most = 64 << 20
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(in, most+1)); err == nil {
			if len(b) <= most {
				return string(b), true
			}
			err = fmt.Errorf("%s: larger than %d MiB; cmp tells whether files are the same", name, most>>20)
		}
	}
	d.trouble(err)
	return "", false
}

func (d *differ) files(a, b string, hasA, hasB bool) {
	ta, ok := d.read(a, hasA)
	if !ok {
		return
	}
	tb, ok := d.read(b, hasB)
	if !ok {
		return
	}
	la, lb := splitLines(ta), splitLines(tb)
	var edits []edit
	same := ta == tb
	if !same {
		binary := !d.o.Has('a') && (strings.IndexByte(ta, 0) >= 0 || strings.IndexByte(tb, 0) >= 0)
		if binary || d.o.Has('q') && d.key("  A a") == "  A a" {
			d.code = max(d.code, 1)
			if binary {
				fmt.Fprintf(d.out, "Binary files %s and %s differ\n", a, b)
			} else {
				fmt.Fprintf(d.out, "Files %s and %s differ\n", a, b)
			}
			return
		}
		edits = d.edits(la, lb)
		same = len(edits) == 0
	}
	if same {
		if d.o.Has('s') {
			fmt.Fprintf(d.out, "Files %s and %s are identical\n", a, b)
		}
		return
	}
	d.code = max(d.code, 1)
	if d.o.Has('q') {
		fmt.Fprintf(d.out, "Files %s and %s differ\n", a, b)
		return
	}
	fmt.Fprintf(d.out, "--- %s\n+++ %s\n", a, b)
	d.print(la, lb, edits)
}

func splitLines(t string) []string {
	l := strings.SplitAfter(t, "\n")
	if l[len(l)-1] == "" {
		l = l[:len(l)-1]
	}
	return l
}

// key is a line as it is compared.
func (d *differ) key(l string) string {
	if d.o.Has('w') {
		l = strings.Join(strings.Fields(l), "")
	} else if d.o.Has('b') {
		end := strings.HasSuffix(l, "\n")
		lead := ""
		if l != "" && (l[0] == ' ' || l[0] == '\t') {
			lead = " "
		}
		l = lead + strings.Join(strings.Fields(l), " ")
		if end {
			l += "\n"
		}
	}
	if d.o.Has('i') {
		l = strings.ToLower(l)
	}
	return l
}

// edit replaces the lines a0..a1 of the old file by b0..b1 of the new one.
type edit struct{ a0, a1, b0, b1 int }

// edits finds a shortest list of edits (Myers 1986, "An O(ND) Difference
// Algorithm", in the linear-space form with a middle snake).
func (d *differ) edits(la, lb []string) []edit {
	number := make(map[string]int)
	ids := func(lines []string) []int {
		out := make([]int, len(lines))
		for i, l := range lines {
			k := d.key(l)
			n, ok := number[k]
			if !ok {
				n = len(number)
				number[k] = n
			}
			out[i] = n
		}
		return out
	}
	a, b := ids(la), ids(lb)
	m := &myers{a: a, b: b, drop: make([]bool, len(a)), add: make([]bool, len(b)), ctx: d.ctx}
	size := 2*(len(a)+len(b)) + 4
	m.fwd, m.back = make([]int, size), make([]int, size)
	m.run(0, len(a), 0, len(b))
	var out []edit
	for i, j := 0, 0; i < len(a) || j < len(b); {
		if i < len(a) && !m.drop[i] && j < len(b) && !m.add[j] {
			i, j = i+1, j+1
			continue
		}
		e := edit{i, i, j, j}
		for e.a1 < len(a) && m.drop[e.a1] {
			e.a1++
		}
		for e.b1 < len(b) && m.add[e.b1] {
			e.b1++
		}
		if e.a1 == i && e.b1 == j {
			break // only if the context ended the search
		}
		out = append(out, e)
		i, j = e.a1, e.b1
	}
	return out
}

type myers struct {
	a, b      []int
	drop, add []bool
	fwd, back []int
	ctx       context.Context
}

func (m *myers) run(a0, a1, b0, b1 int) {
	for a0 < a1 && b0 < b1 && m.a[a0] == m.b[b0] {
		a0, b0 = a0+1, b0+1
	}
	for a0 < a1 && b0 < b1 && m.a[a1-1] == m.b[b1-1] {
		a1, b1 = a1-1, b1-1
	}
	switch {
	case a0 == a1 || b0 == b1 || m.ctx.Err() != nil:
		for i := a0; i < a1; i++ {
			m.drop[i] = true
		}
		for j := b0; j < b1; j++ {
			m.add[j] = true
		}
	default:
		x, y := m.middle(a0, a1, b0, b1)
		m.run(a0, x, b0, y)
		m.run(x, a1, y, b1)
	}
}

// middle returns a point on a shortest path, inside the box.
func (m *myers) middle(a0, a1, b0, b1 int) (x, y int) {
	n, k := a1-a0, b1-b0
	delta := n - k
	odd := delta&1 != 0
	off := len(m.a) + len(m.b) + 1
	m.fwd[off+1], m.back[off+1] = 0, 0
	for dist := 0; dist <= (n+k+1)/2; dist++ {
		for kk := -dist; kk <= dist; kk += 2 {
			var px int
			if kk == -dist || kk != dist && m.fwd[off+kk-1] < m.fwd[off+kk+1] {
				px = m.fwd[off+kk+1]
			} else {
				px = m.fwd[off+kk-1] + 1
			}
			py := px - kk
			sx, sy := px, py
			for px < n && py < k && m.a[a0+px] == m.b[b0+py] {
				px, py = px+1, py+1
			}
			m.fwd[off+kk] = px
			if odd && kk-delta >= -(dist-1) && kk-delta <= dist-1 && px+m.back[off+delta-kk] >= n {
				return inside(a0+sx, b0+sy, a0+px, b0+py, a0, a1, b0, b1)
			}
		}
		for kk := -dist; kk <= dist; kk += 2 {
			var px int
			if kk == -dist || kk != dist && m.back[off+kk-1] < m.back[off+kk+1] {
				px = m.back[off+kk+1]
			} else {
				px = m.back[off+kk-1] + 1
			}
			py := px - kk
			sx, sy := px, py
			for px < n && py < k && m.a[a1-1-px] == m.b[b1-1-py] {
				px, py = px+1, py+1
			}
			m.back[off+kk] = px
			if !odd && delta-kk >= -dist && delta-kk <= dist && px+m.fwd[off+delta-kk] >= n {
				return inside(a1-px, b1-py, a1-sx, b1-sy, a0, a1, b0, b1)
			}
		}
	}
	return a1, b0 // never reached: the loops meet; dropping and adding all is right anyway
}

// inside picks the end of the snake that makes both halves smaller.
func inside(x0, y0, x1, y1, a0, a1, b0, b1 int) (int, int) {
	if (x1 != a1 || y1 != b1) && (x1 != a0 || y1 != b0) {
		return x1, y1
	}
	if (x0 != a0 || y0 != b0) && (x0 != a1 || y0 != b1) {
		return x0, y0
	}
	return a1, b0
}

// print writes hunks.
func (d *differ) print(la, lb []string, edits []edit) {
	line := func(mark byte, l string) {
		d.out.WriteByte(mark)
		d.out.WriteString(l)
		if !strings.HasSuffix(l, "\n") {
			d.out.WriteString("\n\\ No newline at end of file\n")
		}
	}
	for i := 0; i < len(edits); {
		j := i + 1
		for j < len(edits) && edits[j].a0-edits[j-1].a1 <= 2*d.around {
			j++
		}
		hunk := edits[i:j]
		a0 := max(hunk[0].a0-d.around, 0)
		b0 := hunk[0].b0 - (hunk[0].a0 - a0)
		last := hunk[len(hunk)-1]
		a1 := min(last.a1+d.around, len(la))
		b1 := last.b1 + (a1 - last.a1)
		fmt.Fprintf(d.out, "@@ -%s +%s @@\n", span(a0, a1), span(b0, b1))
		at := a0
		for _, e := range hunk {
			for ; at < e.a0; at++ {
				line(' ', la[at])
			}
			for ; at < e.a1; at++ {
				line('-', la[at])
			}
			for k := e.b0; k < e.b1; k++ {
				line('+', lb[k])
			}
		}
		for ; at < a1; at++ {
			line(' ', la[at])
		}
		i = j
	}
}

// span is the start and length of a hunk as diff writes it.
func span(from, to int) string {
	switch n := to - from; n {
	case 0:
		return fmt.Sprintf("%d,0", from)
	case 1:
		return fmt.Sprint(from + 1)
	default:
		return fmt.Sprintf("%d,%d", from+1, n)
	}
}
