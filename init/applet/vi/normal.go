package vi

import (
	"slices"
	"unicode"
)

type findState struct {
	cmd  rune // f F t T
	char rune
}

// command runs the keys of normal mode that have come in. False: more are needed.
func (e *editor) command(keys []rune) bool {
	count, keys := takeCount(keys)
	if len(keys) == 0 {
		return false
	}
	n := max(count, 1)
	k := keys[0]
	switch k {
	case keyEscape, ctrl('c'), keyUnknown:
		return true
	case 'd', 'c', 'y', '>', '<':
		return e.operator(k, count, keys[1:])
	case 'r':
		if len(keys) < 2 {
			return false
		}
		e.replaceChars(keys[1], n)
		return true
	case 'Z':
		if len(keys) < 2 {
			return false
		}
		switch keys[1] {
		case 'Z':
			e.ex("x")
		case 'Q':
			e.ex("q!")
		}
		return true
	case 'i':
		e.startInsert(e.cur.col)
	case 'a':
		e.startInsert(min(e.cur.col+1, len(e.current())))
	case 'I':
		e.startInsert(firstNonBlank(e.current()))
	case 'A':
		e.startInsert(len(e.current()))
	case 'o', 'O':
		e.checkpoint()
		at := e.cur.row
		if k == 'o' {
			at++
		}
		indent := slices.Clone(e.current()[:firstNonBlank(e.current())])
		e.insertLines(at, indent)
		e.cur = position{at, len(indent)}
		e.mode = insert
	case 'R':
		e.checkpoint()
		e.mode = replace
	case 'x', keyDelete:
		e.apply('d', e.cur, position{e.cur.row, min(e.cur.col+n, len(e.current()))}, false)
	case 'X':
		e.apply('d', position{e.cur.row, max(e.cur.col-n, 0)}, e.cur, false)
	case 'D':
		e.apply('d', e.cur, position{e.cur.row, len(e.current())}, false)
	case 'C':
		e.apply('c', e.cur, position{e.cur.row, len(e.current())}, false)
	case 's':
		e.apply('c', e.cur, position{e.cur.row, min(e.cur.col+n, len(e.current()))}, false)
	case 'S':
		e.apply('c', e.cur, position{e.cur.row + n - 1, 0}, true)
	case 'Y':
		e.apply('y', e.cur, position{e.cur.row + n - 1, 0}, true)
	case 'J':
		e.join(max(n-1, 1))
	case '~':
		e.toggleCase(n)
	case 'p', 'P':
		e.put(k == 'p', n)
	case 'u':
		e.restore(&e.undo, &e.redo)
	case ctrl('r'):
		e.restore(&e.redo, &e.undo)
	case '.':
		e.repeat(count)
	case ':', '/', '?':
		e.mode = cmdline
		e.line = []rune{k}
	case ctrl('f'), keyPageDown:
		e.page(1, 1)
	case ctrl('b'), keyPageUp:
		e.page(-1, 1)
	case ctrl('d'):
		e.page(1, 2)
	case ctrl('u'):
		e.page(-1, 2)
	case ctrl('l'):
	case ctrl('g'):
		e.message = "" // the status line tells name and place
	default:
		to, _, _, state := e.motion(keys, count)
		switch state {
		case moreKeys:
			return false
		case moved:
			e.cur = to
		default:
			e.message = "no such command here"
		}
	}
	return true
}

func takeCount(keys []rune) (int, []rune) {
	n := 0
	for len(keys) > 0 && (keys[0] >= '1' && keys[0] <= '9' || n > 0 && keys[0] == '0') {
		n = min(n*10+int(keys[0]-'0'), 1<<20)
		keys = keys[1:]
	}
	return n, keys
}

func firstNonBlank(l []rune) int {
	i := slices.IndexFunc(l, func(r rune) bool { return !unicode.IsSpace(r) })
	if i < 0 {
		return len(l)
	}
	return i
}

func (e *editor) startInsert(col int) {
	e.checkpoint()
	e.cur.col = col
	e.mode = insert
}

type motionState int

const (
	noMotion motionState = iota
	moreKeys
	moved
)

// motion says where the keys lead. inclusive: an operator takes the rune at the
// target too; linewise: it takes whole lines.
func (e *editor) motion(keys []rune, count int) (to position, inclusive, linewise bool, state motionState) {
	n := max(count, 1)
	to = e.cur
	l := e.current()
	keepWant := false
	switch k := keys[0]; k {
	case 'h', keyLeft, 8, 127:
		to.col = max(to.col-n, 0)
	case 'l', ' ', keyRight:
		to.col = min(to.col+n, len(l))
	case 'j', keyDown, ctrl('n'), '+', '\r', '\n':
		if to.row+n >= len(e.lines) && to.row == len(e.lines)-1 {
			return to, false, true, noMotion
		}
		to, linewise, keepWant = position{min(to.row+n, len(e.lines)-1), e.want}, true, true
	case 'k', keyUp, ctrl('p'), '-':
		if to.row == 0 {
			return to, false, true, noMotion
		}
		to, linewise, keepWant = position{max(to.row-n, 0), e.want}, true, true
	case '0', keyHome:
		to.col = 0
	case '^':
		to.col = firstNonBlank(l)
	case '$', keyEnd:
		to.row = min(to.row+n-1, len(e.lines)-1)
		to.col, inclusive = max(len(e.lines[to.row])-1, 0), true
		e.want, keepWant = 1<<30, true
	case 'G':
		row := len(e.lines) - 1
		if count > 0 {
			row = min(count, len(e.lines)) - 1
		}
		to, linewise = position{row, firstNonBlank(e.lines[row])}, true
	case 'g':
		if len(keys) < 2 {
			return to, false, false, moreKeys
		}
		if keys[1] != 'g' {
			return to, false, false, noMotion
		}
		row := min(n, len(e.lines)) - 1
		to, linewise = position{row, firstNonBlank(e.lines[row])}, true
	case 'H':
		to, linewise = position{e.top, 0}, true
	case 'M':
		to, linewise = position{min(e.top+(e.rows-1)/2, len(e.lines)-1), 0}, true
	case 'L':
		to, linewise = position{min(e.top+e.rows-2, len(e.lines)-1), 0}, true
	case 'w', 'W':
		for range n {
			to = e.wordForward(to, k == 'W')
		}
	case 'b', 'B':
		for range n {
			to = e.wordBack(to, k == 'B')
		}
	case 'e', 'E':
		for range n {
			to = e.wordEnd(to, k == 'E')
		}
		inclusive = true
	case 'f', 'F', 't', 'T':
		if len(keys) < 2 {
			return to, false, false, moreKeys
		}
		e.find = findState{k, keys[1]}
		return e.findChar(e.find, n)
	case ';', ',':
		f := e.find
		if f.cmd == 0 {
			return to, false, false, noMotion
		}
		if k == ',' {
			f.cmd ^= 'a' ^ 'A'
		}
		return e.findChar(f, n)
	case '%':
		p, ok := e.matchBracket()
		if !ok {
			return to, false, false, noMotion
		}
		to, inclusive = p, true
	case '/', '?': // behind an operator: the pattern is still being typed
		end := slices.IndexFunc(keys, func(r rune) bool { return r == '\r' || r == '\n' || r == keyEscape })
		if end < 0 {
			e.message = string(keys)
			return to, false, false, moreKeys
		}
		if keys[end] == keyEscape || !e.setPattern(string(keys[1:end]), k == '?') {
			return to, false, false, noMotion
		}
		p, ok := e.searchNext(false)
		if !ok {
			return to, false, false, noMotion
		}
		to = p
	case 'n', 'N':
		p, ok := e.searchNext(k == 'N')
		if !ok {
			return to, false, false, moved // the message says why; stay
		}
		to = p
	default:
		return to, false, false, noMotion
	}
	if !keepWant {
		e.want = to.col
	}
	return to, inclusive, linewise, moved
}

func (e *editor) findChar(f findState, n int) (to position, inclusive, linewise bool, state motionState) {
	l, at := e.current(), e.cur.col
	step := 1
	if f.cmd == 'F' || f.cmd == 'T' {
		step = -1
	}
	for n > 0 {
		at += step
		if at < 0 || at >= len(l) {
			return e.cur, false, false, noMotion
		}
		if l[at] == f.char {
			n--
		}
	}
	if f.cmd == 't' || f.cmd == 'T' {
		at -= step
	}
	e.want = at
	return position{e.cur.row, at}, step > 0, false, moved
}

func (e *editor) wordForward(p position, big bool) position {
	l := e.lines[p.row]
	if p.col < len(l) {
		c := class(l[p.col], big)
		for p.col < len(l) && class(l[p.col], big) == c && c != 0 {
			p.col++
		}
	}
	for {
		for p.col < len(e.lines[p.row]) && class(e.lines[p.row][p.col], big) == 0 {
			p.col++
		}
		if p.col < len(e.lines[p.row]) || p.row == len(e.lines)-1 {
			return p
		}
		p = position{p.row + 1, 0}
		if len(e.lines[p.row]) == 0 {
			return p
		}
	}
}

func (e *editor) wordBack(p position, big bool) position {
	for {
		p.col--
		if p.col < 0 {
			if p.row == 0 {
				return position{}
			}
			p = position{p.row - 1, len(e.lines[p.row-1])}
			if p.col == 0 {
				return p
			}
			continue
		}
		if class(e.lines[p.row][p.col], big) != 0 {
			break
		}
	}
	l := e.lines[p.row]
	c := class(l[p.col], big)
	for p.col > 0 && class(l[p.col-1], big) == c {
		p.col--
	}
	return p
}

func (e *editor) wordEnd(p position, big bool) position {
	p.col++
	for {
		l := e.lines[p.row]
		for p.col < len(l) && class(l[p.col], big) == 0 {
			p.col++
		}
		if p.col < len(l) {
			c := class(l[p.col], big)
			for p.col+1 < len(l) && class(l[p.col+1], big) == c {
				p.col++
			}
			return p
		}
		if p.row == len(e.lines)-1 {
			return position{p.row, max(len(l)-1, 0)}
		}
		p = position{p.row + 1, 0}
	}
}

func (e *editor) matchBracket() (position, bool) {
	const pairs = "()[]{}"
	p := e.cur
	l := e.current()
	for p.col < len(l) && !slices.Contains([]rune(pairs), l[p.col]) {
		p.col++
	}
	if p.col >= len(l) {
		return p, false
	}
	open := l[p.col]
	i := slices.Index([]rune(pairs), open)
	shut := []rune(pairs)[i^1]
	step := 1 - 2*(i%2)
	for depth := 0; ; {
		if p.col >= 0 && p.col < len(e.lines[p.row]) {
			switch e.lines[p.row][p.col] {
			case open:
				depth++
			case shut:
				depth--
			}
			if depth == 0 {
				return p, true
			}
		}
		p.col += step
		if p.col < 0 || p.col >= len(e.lines[p.row]) {
			p.row += step
			if p.row < 0 || p.row >= len(e.lines) {
				return p, false
			}
			p.col = 0
			if step < 0 {
				p.col = len(e.lines[p.row]) - 1
			}
		}
	}
}

// operator runs d, c, y, > or < over a motion or, doubled, over lines.
func (e *editor) operator(op rune, count int, keys []rune) bool {
	inner, keys := takeCount(keys)
	if len(keys) == 0 {
		return false
	}
	if inner > 0 {
		count = max(count, 1) * inner
	}
	if keys[0] == op {
		last := min(e.cur.row+max(count, 1)-1, len(e.lines)-1)
		e.apply(op, e.cur, position{last, 0}, true)
		return true
	}
	start := e.cur
	k := keys[0]
	// cw on a word changes the word alone, not the blank behind it (POSIX vi).
	if op == 'c' && (k == 'w' || k == 'W') && start.col < len(e.current()) && class(e.current()[start.col], false) != 0 {
		p := position{start.row, start.col - 1}
		for range max(count, 1) {
			p = e.wordEnd(p, k == 'W')
		}
		e.apply(op, start, position{p.row, p.col + 1}, false)
		return true
	}
	to, inclusive, linewise, state := e.motion(keys, count)
	switch state {
	case moreKeys:
		return false
	case noMotion:
		return true
	}
	// dw on the last word of a line stops at its end.
	if (k == 'w' || k == 'W') && to.row > start.row {
		to = position{start.row, len(e.lines[start.row])}
	}
	if to.row < start.row || to.row == start.row && to.col < start.col {
		start, to = to, start
	}
	if inclusive {
		to.col++
	}
	e.apply(op, start, to, linewise)
	return true
}

// apply does what an operator says to the text from a up to, not with, b; or to
// the lines of both.
func (e *editor) apply(op rune, a, b position, linewise bool) {
	b.row = min(b.row, len(e.lines)-1)
	if linewise && a.row > b.row {
		a, b = b, a
	}
	if op == '>' || op == '<' {
		e.shift(a.row, b.row, op == '>')
		return
	}
	if !linewise && a == b {
		if op == 'c' {
			e.startInsert(a.col)
		}
		return
	}
	e.register, e.linewise = e.cut(a, b, linewise), linewise
	if op == 'y' {
		e.cur = position{a.row, min(a.col, e.cur.col)}
		return
	}
	e.checkpoint()
	switch {
	case linewise && op == 'c':
		indent := slices.Clone(e.lines[a.row][:firstNonBlank(e.lines[a.row])])
		e.deleteLines(a.row, b.row+1)
		if len(e.lines) == 1 && len(e.lines[0]) == 0 && a.row == 0 && b.row+1 > 0 && len(e.undo[len(e.undo)-1].lines) == b.row+1 {
			e.lines[0] = indent
		} else {
			e.insertLines(a.row, indent)
		}
		e.cur = position{a.row, len(indent)}
		e.mode = insert
		return
	case linewise:
		e.deleteLines(a.row, b.row+1)
		row := min(a.row, len(e.lines)-1)
		e.cur = position{row, firstNonBlank(e.lines[row])}
	default:
		tail := e.lines[b.row][min(b.col, len(e.lines[b.row])):]
		joined := append(slices.Clone(e.lines[a.row][:min(a.col, len(e.lines[a.row]))]), tail...)
		e.deleteLines(a.row+1, b.row+1)
		e.lines[a.row] = joined
		e.cur = a
	}
	e.want = e.cur.col
	if op == 'c' {
		e.mode = insert
	}
}

func (e *editor) cut(a, b position, linewise bool) [][]rune {
	if linewise {
		return slices.Clone(e.lines[a.row : b.row+1])
	}
	if a.row == b.row {
		l := e.lines[a.row]
		return [][]rune{slices.Clone(l[min(a.col, len(l)):min(b.col, len(l))])}
	}
	out := [][]rune{slices.Clone(e.lines[a.row][a.col:])}
	out = append(out, e.lines[a.row+1:b.row]...)
	return append(out, slices.Clone(e.lines[b.row][:min(b.col, len(e.lines[b.row]))]))
}

func (e *editor) shift(from, to int, right bool) {
	e.checkpoint()
	for i := from; i <= to; i++ {
		l := e.lines[i]
		switch {
		case right && len(l) > 0:
			e.lines[i] = splice(l, 0, 0, '\t')
		case !right && len(l) > 0 && l[0] == '\t':
			e.lines[i] = splice(l, 0, 1)
		case !right:
			n := 0
			for n < len(l) && n < 8 && l[n] == ' ' {
				n++
			}
			e.lines[i] = splice(l, 0, n)
		}
	}
	e.cur = position{from, firstNonBlank(e.lines[from])}
}

func (e *editor) replaceChars(r rune, n int) {
	l := e.current()
	if r == keyEscape || r < 0 || e.cur.col+n > len(l) {
		return
	}
	e.checkpoint()
	if r == '\r' || r == '\n' {
		e.lines[e.cur.row] = splice(l, e.cur.col, len(l))
		e.insertLines(e.cur.row+1, slices.Clone(l[e.cur.col+n:]))
		e.cur = position{e.cur.row + 1, 0}
		return
	}
	e.lines[e.cur.row] = splice(l, e.cur.col, e.cur.col+n, slices.Repeat([]rune{r}, n)...)
	e.cur.col += n - 1
}

func (e *editor) toggleCase(n int) {
	l := e.current()
	end := min(e.cur.col+n, len(l))
	if e.cur.col >= end {
		return
	}
	e.checkpoint()
	part := slices.Clone(l[e.cur.col:end])
	for i, r := range part {
		if unicode.IsUpper(r) {
			part[i] = unicode.ToLower(r)
		} else {
			part[i] = unicode.ToUpper(r)
		}
	}
	e.lines[e.cur.row] = splice(l, e.cur.col, end, part...)
	e.cur.col = end
}

func (e *editor) join(n int) {
	if e.cur.row == len(e.lines)-1 {
		return
	}
	e.checkpoint()
	for range n {
		if e.cur.row == len(e.lines)-1 {
			return
		}
		l, next := e.current(), e.lines[e.cur.row+1]
		next = next[firstNonBlank(next):]
		col := len(l)
		if len(l) > 0 && len(next) > 0 && !unicode.IsSpace(l[len(l)-1]) && next[0] != ')' {
			l = splice(l, len(l), len(l), ' ')
		}
		e.lines[e.cur.row] = splice(l, len(l), len(l), next...)
		e.deleteLines(e.cur.row+1, e.cur.row+2)
		e.cur.col = col
	}
}

func (e *editor) put(after bool, n int) {
	if len(e.register) == 0 {
		e.message = "nothing to put: delete or yank first"
		return
	}
	size := 0
	for _, l := range e.register {
		size += len(l) + 1
	}
	if size*n > maxFile {
		e.message = "that would be more text than is edited here"
		return
	}
	e.checkpoint()
	if e.linewise {
		at := e.cur.row
		if after {
			at++
		}
		for range n {
			e.insertLines(at, e.register...)
		}
		e.cur = position{at, firstNonBlank(e.lines[at])}
		return
	}
	l := e.current()
	col := e.cur.col
	if after && len(l) > 0 {
		col++
	}
	if len(e.register) == 1 {
		part := slices.Repeat(e.register[0], n)
		e.lines[e.cur.row] = splice(l, col, col, part...)
		e.cur.col = col + len(part) - 1
		return
	}
	for range n {
		l = e.current()
		last := len(e.register) - 1
		lines := slices.Clone(e.register)
		lines[0] = append(slices.Clone(l[:col]), lines[0]...)
		lines[last] = append(slices.Clone(lines[last]), l[col:]...)
		e.lines[e.cur.row] = lines[0]
		e.insertLines(e.cur.row+1, lines[1:]...)
		e.cur.col = col
	}
}

// repeat runs the last change again; a count replaces the one it had.
func (e *editor) repeat(count int) {
	if len(e.last) == 0 {
		e.message = "nothing to repeat"
		return
	}
	keys := e.last
	n, rest := takeCount(keys)
	if count == 0 {
		count = n
	}
	e.replay = true
	defer func() { e.replay = false }()
	e.pending = e.pending[:0]
	if count > 0 {
		for _, d := range itoa(count) {
			e.key(d)
		}
	}
	for _, k := range rest {
		e.key(k)
	}
	e.pending = e.pending[:0]
}
