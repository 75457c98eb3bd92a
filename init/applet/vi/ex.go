package vi

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

type searchState struct {
	re   *regexp.Regexp
	back bool
}

func itoa(n int) string { return strconv.Itoa(n) }

// cmdlineKey edits the line below the text.
func (e *editor) cmdlineKey(k rune) {
	switch k {
	case keyEscape, ctrl('c'):
		e.mode = normal
	case 8, 127:
		e.line = e.line[:len(e.line)-1]
		if len(e.line) == 0 {
			e.mode = normal
		}
	case ctrl('u'):
		e.line = e.line[:1]
	case '\r', '\n':
		e.mode = normal
		kind, text := e.line[0], string(e.line[1:])
		if kind == ':' {
			e.ex(text)
			return
		}
		e.startSearch(text, kind == '?')
	default:
		if k >= 32 {
			e.line = append(e.line, k)
		}
	}
}

// setPattern takes a new pattern; an empty one keeps the last.
func (e *editor) setPattern(pattern string, back bool) bool {
	if pattern != "" {
		re, err := regexp.Compile(pattern)
		if err != nil {
			e.message = "bad pattern: " + err.Error()
			return false
		}
		e.search.re = re
	}
	e.search.back = back
	return true
}

func (e *editor) startSearch(pattern string, back bool) {
	if !e.setPattern(pattern, back) {
		return
	}
	if p, ok := e.searchNext(false); ok {
		e.cur = p
		e.want = p.col
	}
}

// matches returns the starts of what re matches in a line, in runes.
func matches(re *regexp.Regexp, line []rune) []int {
	b := encodeLine(line)
	var out []int
	for _, m := range re.FindAllIndex(b, -1) {
		out = append(out, utf8.RuneCount(b[:m[0]]))
	}
	return out
}

// searchNext finds the next match, around the end of the text where needed.
func (e *editor) searchNext(reverse bool) (position, bool) {
	if e.search.re == nil {
		e.message = "no search yet: use /PATTERN"
		return e.cur, false
	}
	back := e.search.back != reverse
	n := len(e.lines)
	for i := 0; i <= n; i++ {
		row := (e.cur.row + i) % n
		if back {
			row = (e.cur.row - i + n) % n
		}
		cols := matches(e.search.re, e.lines[row])
		if back {
			slices.Reverse(cols)
		}
		for _, c := range cols {
			ahead := c > e.cur.col
			if back {
				ahead = c < e.cur.col
			}
			if i > 0 || ahead {
				return position{row, c}, true
			}
		}
	}
	e.message = "not found: " + e.search.re.String()
	return e.cur, false
}

// ex runs a command of the command line.
func (e *editor) ex(s string) {
	s = strings.TrimSpace(s)
	from, to, given, rest, err := e.lineRange(s)
	if err != nil {
		e.message = err.Error()
		return
	}
	if rest == "" {
		if given {
			e.cur = position{to, firstNonBlank(e.lines[to])}
		}
		return
	}
	if rest[0] == 's' && len(rest) > 1 && strings.ContainsRune("/|#,!", rune(rest[1])) {
		e.substitute(from, to, rest[1:])
		return
	}
	name, arg, _ := strings.Cut(rest, " ")
	arg = strings.TrimSpace(arg)
	force := strings.HasSuffix(name, "!")
	name = strings.TrimSuffix(name, "!")
	switch name {
	case "w", "write":
		e.write(arg, from, to, given, force)
	case "q", "quit":
		if e.dirty && !force {
			e.message = "not written: :w writes, :q! leaves without"
			return
		}
		e.quit = true
	case "wq", "x", "exit":
		if name == "wq" || e.dirty || arg != "" {
			if !e.write(arg, 0, len(e.lines)-1, false, force) {
				return
			}
		}
		e.quit = true
	case "e", "edit":
		e.edit(arg, force)
	case "r", "read":
		e.readFile(arg, to)
	case "d", "delete":
		e.apply('d', position{from, 0}, position{to, 0}, true)
	case "y", "yank":
		e.apply('y', position{from, 0}, position{to, 0}, true)
	case "set", "se":
		switch arg {
		case "nu", "number":
			e.number = true
		case "nonu", "nonumber":
			e.number = false
		default:
			e.message = "known settings: nu, nonu"
		}
	case "f", "file":
	default:
		e.message = fmt.Sprintf("not a command: %s", rest)
	}
}

// lineRange takes the addresses in front of a command; rows count from 0.
func (e *editor) lineRange(s string) (from, to int, given bool, rest string, err error) {
	from, to = e.cur.row, e.cur.row
	if strings.HasPrefix(s, "%") {
		return 0, len(e.lines) - 1, true, strings.TrimSpace(s[1:]), nil
	}
	one := func() (int, bool) {
		row, ok := e.cur.row, false
		switch {
		case s == "":
			return row, false
		case s[0] == '.':
			ok, s = true, s[1:]
		case s[0] == '$':
			row, ok, s = len(e.lines)-1, true, s[1:]
		case s[0] >= '0' && s[0] <= '9':
			i := 0
			for i < len(s) && i < 9 && s[i] >= '0' && s[i] <= '9' {
				i++
			}
			n, _ := strconv.Atoi(s[:i])
			row, ok, s = n-1, true, s[i:]
		}
		for s != "" && (s[0] == '+' || s[0] == '-') {
			sign := 1
			if s[0] == '-' {
				sign = -1
			}
			i := 1
			for i < len(s) && i < 9 && s[i] >= '0' && s[i] <= '9' {
				i++
			}
			n := 1
			if i > 1 {
				n, _ = strconv.Atoi(s[1:i])
			}
			row, ok, s = row+sign*n, true, s[i:]
		}
		return row, ok
	}
	if row, ok := one(); ok {
		from, to, given = row, row, true
	}
	if strings.HasPrefix(s, ",") {
		s = s[1:]
		row, _ := one()
		to, given = row, true
	}
	last := len(e.lines) - 1
	from, to = min(max(from, 0), last), min(max(to, 0), last)
	if from > to {
		return 0, 0, false, "", fmt.Errorf("the range runs backwards: line %d to %d", from+1, to+1)
	}
	return from, to, given, strings.TrimSpace(s), nil
}

func (e *editor) write(arg string, from, to int, part, force bool) bool {
	path := e.path
	if arg != "" {
		path = e.resolve(arg)
	}
	if path == "" {
		e.message = "no file name: use :w NAME"
		return false
	}
	if _, err := os.Stat(path); err == nil && path != e.path && !force {
		e.message = path + " exists: :w! NAME overwrites it"
		return false
	}
	t := e.text
	whole := !part || from == 0 && to == len(e.lines)-1
	if !whole {
		t = text{lines: e.lines[from : to+1]}
	}
	data := t.encode()
	if err := save(path, data); err != nil {
		e.message = err.Error()
		return false
	}
	if e.path == "" {
		e.path = path
	}
	if whole && path == e.path {
		e.dirty = false
	}
	e.message = fmt.Sprintf("%s: %d lines, %d bytes written", path, len(t.lines), len(data))
	return true
}

func (e *editor) edit(arg string, force bool) {
	if e.dirty && !force {
		e.message = "not written: :w writes, :e! throws the changes away"
		return
	}
	path := e.path
	if arg != "" {
		path = e.resolve(arg)
	}
	t, isNew, err := load(path)
	if err != nil {
		e.message = err.Error()
		return
	}
	e.path, e.text, e.dirty = path, t, false
	e.cur, e.top, e.left, e.undo, e.redo = position{}, 0, 0, nil, nil
	e.message = opened(path, t, isNew)
}

func opened(path string, t text, isNew bool) string {
	if isNew {
		return path + " (new file)"
	}
	return fmt.Sprintf("%s: %d lines", path, len(t.lines))
}

func (e *editor) readFile(arg string, after int) {
	if arg == "" {
		e.message = "which file? use :r NAME"
		return
	}
	t, isNew, err := load(e.resolve(arg))
	if err != nil || isNew {
		e.message = fmt.Sprintf("cannot read %s: no such file", arg)
		if err != nil {
			e.message = err.Error()
		}
		return
	}
	e.checkpoint()
	e.insertLines(after+1, t.lines...)
	e.cur = position{after + 1, 0}
}

// substitute runs s/RE/TEXT/flags over rows; s starts at the delimiter.
func (e *editor) substitute(from, to int, s string) {
	parts := splitUnescaped(s[1:], s[0])
	if len(parts) < 2 || len(parts) > 3 {
		e.message = "expected s/PATTERN/TEXT/ with g for every match of a line"
		return
	}
	flags := ""
	if len(parts) == 3 {
		flags = parts[2]
	}
	if strings.Trim(flags, "gi") != "" {
		e.message = fmt.Sprintf("flags known: g and i, not %q", flags)
		return
	}
	pattern := parts[0]
	if strings.Contains(flags, "i") {
		pattern = "(?i)" + pattern
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		e.message = "bad pattern: " + err.Error()
		return
	}
	e.search.re = re
	count, last := 0, 0
	for row := from; row <= to; row++ {
		b := encodeLine(e.lines[row])
		var out []byte
		end := 0
		limit := 1
		if strings.Contains(flags, "g") {
			limit = -1
		}
		found := re.FindAllSubmatchIndex(b, limit)
		for _, m := range found {
			out = append(append(out, b[end:m[0]]...), expand(parts[1], b, m)...)
			end = m[1]
		}
		if len(found) == 0 {
			continue
		}
		if count == 0 {
			e.checkpoint()
		}
		count, last = count+len(found), row
		e.lines[row] = runes(append(out, b[end:]...))
	}
	if count == 0 {
		e.message = "not found: " + parts[0]
		return
	}
	e.cur = position{last, 0}
	e.message = fmt.Sprintf("%d replaced", count)
}

// expand puts what matched into the new text: & and \1 to \9; \X is X.
func expand(template string, b []byte, m []int) []byte {
	var out []byte
	group := func(n int) {
		if 2*n+1 < len(m) && m[2*n] >= 0 {
			out = append(out, b[m[2*n]:m[2*n+1]]...)
		}
	}
	for i := 0; i < len(template); i++ {
		c := template[i]
		switch {
		case c == '&':
			group(0)
		case c == '\\' && i+1 < len(template):
			i++
			if d := template[i]; d >= '0' && d <= '9' {
				group(int(d - '0'))
			} else {
				out = append(out, d)
			}
		default:
			out = append(out, c)
		}
	}
	return out
}

// splitUnescaped cuts at each sep that has no backslash before it; an escaped
// separator loses the backslash.
func splitUnescaped(s string, sep byte) []string {
	var out []string
	var cur []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			if s[i+1] != sep {
				cur = append(cur, s[i])
			}
			i++
			cur = append(cur, s[i])
		case s[i] == sep:
			out = append(out, string(cur))
			cur = nil
		default:
			cur = append(cur, s[i])
		}
	}
	return append(out, string(cur))
}
