package vi

import (
	"fmt"
	"slices"
	"unicode"
)

type mode int

const (
	normal mode = iota
	insert
	replace
	cmdline // : / ?
)

type position struct{ row, col int }

type snapshot struct {
	lines  [][]rune
	cursor position
}

// editor is the state between two keys. It knows no terminal: keys go in by
// key, and view tells what the screen shows.
type editor struct {
	path string
	text
	cur      position
	want     int // the column that j and k try to keep; -1: end of line
	top      int // first row on the screen
	left     int // first column on the screen
	rows     int // of the screen, status line included
	cols     int
	mode     mode
	line     []rune // of the command line, its first rune is : / or ?
	message  string
	number   bool
	dirty    bool
	quit     bool
	undo     []snapshot
	redo     []snapshot
	register [][]rune
	linewise bool
	search   searchState
	find     findState

	pending []rune // keys of a command that is not complete
	record  []rune // keys of the command under way, for .
	last    []rune // keys of the last change
	replay  bool

	resolvePath func(string) string
}

func newEditor(path string, t text, rows, cols int) *editor {
	return &editor{path: path, text: t, rows: rows, cols: cols}
}

// key takes one key.
func (e *editor) key(k rune) {
	e.message = ""
	before := e.mode
	if !e.replay && (before == normal || before == insert || before == replace) {
		e.record = append(e.record, k)
	}
	n := len(e.undo)
	switch e.mode {
	case insert, replace:
		e.insertKey(k)
	case cmdline:
		e.cmdlineKey(k)
	default:
		e.pending = append(e.pending, k)
		if e.command(e.pending) {
			e.pending = e.pending[:0]
		}
	}
	e.clamp()
	if e.mode == normal && len(e.pending) == 0 && !e.replay {
		if changed := len(e.undo) > n || before == insert || before == replace; changed && before != cmdline && len(e.record) > 0 && !isUndo(e.record[0]) {
			e.last = slices.Clone(e.record)
		}
		e.record = e.record[:0]
	}
}

func isUndo(k rune) bool { return k == 'u' || k == ctrl('r') || k == '.' }

// clamp keeps the cursor on the text and the text on the screen.
func (e *editor) clamp() {
	if len(e.lines) == 0 {
		e.lines = [][]rune{nil}
	}
	e.cur.row = min(max(e.cur.row, 0), len(e.lines)-1)
	last := len(e.lines[e.cur.row])
	if e.mode == normal || e.mode == cmdline {
		last--
	}
	e.cur.col = max(min(e.cur.col, last), 0)
	height := max(e.rows-1, 1)
	if e.cur.row < e.top {
		e.top = e.cur.row
	}
	if e.cur.row >= e.top+height {
		e.top = e.cur.row - height + 1
	}
}

// checkpoint remembers the text before a change.
func (e *editor) checkpoint() {
	e.undo = append(e.undo, snapshot{slices.Clone(e.lines), e.cur})
	if len(e.undo) > 500 {
		e.undo = slices.Delete(e.undo, 0, 1)
	}
	e.redo = nil
	e.dirty = true
}

func (e *editor) restore(from, to *[]snapshot) {
	if len(*from) == 0 {
		e.message = "nothing to undo"
		if from == &e.redo {
			e.message = "nothing to redo"
		}
		return
	}
	s := (*from)[len(*from)-1]
	*from = (*from)[:len(*from)-1]
	*to = append(*to, snapshot{slices.Clone(e.lines), e.cur})
	e.lines, e.cur = s.lines, s.cursor
	e.dirty = true
}

func (e *editor) current() []rune { return e.lines[e.cur.row] }

// splice returns line with the runes from a to b replaced, in new memory.
func splice(line []rune, a, b int, with ...rune) []rune {
	a, b = min(a, len(line)), min(b, len(line))
	out := make([]rune, 0, len(line)-(b-a)+len(with))
	return append(append(append(out, line[:a]...), with...), line[b:]...)
}

func (e *editor) insertLines(at int, lines ...[]rune) { e.lines = slices.Insert(e.lines, at, lines...) }

func (e *editor) deleteLines(from, to int) {
	e.lines = slices.Delete(slices.Clone(e.lines), from, min(to, len(e.lines)))
	if len(e.lines) == 0 {
		e.lines = [][]rune{nil}
	}
}

func (e *editor) insertKey(k rune) {
	l := e.current()
	switch k {
	case keyEscape, ctrl('c'):
		e.mode = normal
		e.cur.col--
		e.want = max(e.cur.col, 0)
	case '\r', '\n':
		rest := slices.Clone(l[e.cur.col:])
		var indent []rune
		for _, r := range l[:e.cur.col] {
			if r != ' ' && r != '\t' {
				break
			}
			indent = append(indent, r)
		}
		e.lines[e.cur.row] = splice(l, e.cur.col, len(l))
		e.insertLines(e.cur.row+1, append(slices.Clone(indent), rest...))
		e.cur = position{e.cur.row + 1, len(indent)}
	case 8, 127:
		switch {
		case e.cur.col > 0:
			e.cur.col--
			e.lines[e.cur.row] = splice(l, e.cur.col, e.cur.col+1)
		case e.cur.row > 0:
			prev := e.lines[e.cur.row-1]
			e.cur = position{e.cur.row - 1, len(prev)}
			e.lines[e.cur.row] = splice(prev, len(prev), len(prev), l...)
			e.deleteLines(e.cur.row+1, e.cur.row+2)
		}
	case keyDelete:
		e.lines[e.cur.row] = splice(l, e.cur.col, e.cur.col+1)
	case keyUp, keyDown, keyLeft, keyRight, keyHome, keyEnd, keyPageUp, keyPageDown:
		e.arrow(k)
	case keyUnknown:
	default:
		if k < 32 && k != '\t' {
			return
		}
		end := e.cur.col
		if e.mode == replace && end < len(l) {
			end++
		}
		e.lines[e.cur.row] = splice(l, e.cur.col, end, k)
		e.cur.col++
	}
}

func (e *editor) arrow(k rune) {
	switch k {
	case keyLeft:
		e.cur.col--
	case keyRight:
		e.cur.col++
	case keyUp:
		e.cur.row--
	case keyDown:
		e.cur.row++
	case keyHome:
		e.cur.col = 0
	case keyEnd:
		e.cur.col = len(e.current())
	case keyPageUp:
		e.page(-1, 1)
	case keyPageDown:
		e.page(1, 1)
	}
}

// page moves by parts of a screen.
func (e *editor) page(dir, part int) {
	n := max((e.rows-3)/part, 1)
	e.top = min(max(e.top+dir*n, 0), len(e.lines)-1)
	e.cur.row = min(max(e.cur.row+dir*n, 0), len(e.lines)-1)
}

// class sorts runes into blanks, words and punctuation for w, b and e.
func class(r rune, big bool) int {
	switch {
	case unicode.IsSpace(r):
		return 0
	case big, r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
		return 1
	}
	return 2
}

// statusLine is the last line of the screen.
func (e *editor) statusLine() string {
	if e.mode == cmdline {
		return string(e.line)
	}
	if e.message != "" {
		return e.message
	}
	changed := ""
	if e.dirty {
		changed = " [modified]"
	}
	switch e.mode {
	case insert:
		return "-- INSERT --"
	case replace:
		return "-- REPLACE --"
	}
	return fmt.Sprintf("%s%s %d/%d", e.path, changed, e.cur.row+1, len(e.lines))
}

// view is the screen: one string a row, and where the cursor stands.
func (e *editor) view() (screen []string, row, col int) {
	gutter := 0
	if e.number {
		gutter = len(fmt.Sprint(len(e.lines))) + 1
	}
	wide := max(e.cols-gutter, 1)
	at := 0
	for i, r := range e.current() {
		if i == e.cur.col {
			break
		}
		at += width(show(r, at))
	}
	if at < e.left {
		e.left = max(at-wide/4, 0)
	}
	if at >= e.left+wide {
		e.left = at - wide + 1 + wide/4
	}
	for i := 0; i < e.rows-1; i++ {
		n := e.top + i
		if n >= len(e.lines) {
			screen = append(screen, "~")
			continue
		}
		s := clip(e.lines[n], e.left, wide)
		if e.number {
			s = fmt.Sprintf("%*d %s", gutter-1, n+1, s)
		}
		screen = append(screen, s)
	}
	status := clip(runes([]byte(e.statusLine())), 0, e.cols-1)
	screen = append(screen, status)
	if e.mode == cmdline {
		return screen, e.rows - 1, width(status)
	}
	return screen, e.cur.row - e.top, gutter + at - e.left
}

// clip is the part of a line that lies between two screen columns.
func clip(line []rune, left, wide int) string {
	var out []byte
	at := 0
	for _, r := range line {
		for _, c := range show(r, at) {
			w := runeWidth(c)
			if at >= left && at+w <= left+wide {
				out = append(out, string(c)...)
			}
			at += w
		}
		if at >= left+wide {
			break
		}
	}
	return string(out)
}

// resolve makes a name typed on the command line absolute.
func (e *editor) resolve(name string) string {
	if e.resolvePath == nil {
		return name
	}
	return e.resolvePath(name)
}
