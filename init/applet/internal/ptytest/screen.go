package ptytest

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// screen is a terminal's grid of characters.
type screen struct {
	cols, rows   int
	x, y         int
	cells        [][]rune
	main         [][]rune // kept while the alternate screen is shown
	mainX, mainY int
	pending      []byte // an incomplete sequence or character
	wrap         bool   // the cursor stands after the last column
}

func newScreen(cols, rows int) *screen {
	s := &screen{cols: cols, rows: rows}
	s.cells = blank(cols, rows)
	return s
}

func blank(cols, rows int) [][]rune {
	g := make([][]rune, rows)
	for i := range g {
		g[i] = blankLine(cols)
	}
	return g
}

func blankLine(cols int) []rune {
	l := make([]rune, cols)
	for i := range l {
		l[i] = ' '
	}
	return l
}

func (s *screen) resize(cols, rows int) {
	g := blank(cols, rows)
	for y := range min(rows, s.rows) {
		copy(g[y], s.cells[y])
	}
	s.cells, s.cols, s.rows = g, cols, rows
	s.x, s.y = min(s.x, cols-1), min(s.y, rows-1)
}

func (s *screen) String() string {
	var b strings.Builder
	for _, line := range s.cells {
		b.WriteString(strings.TrimRight(string(line), " \x00"))
		b.WriteByte('\n')
	}
	return strings.TrimRight(strings.ReplaceAll(b.String(), "\x00", ""), "\n")
}

func (s *screen) write(p []byte) {
	b := append(s.pending, p...)
	for len(b) > 0 {
		n := s.one(b)
		if n == 0 {
			break
		}
		b = b[n:]
	}
	s.pending = append([]byte(nil), b...)
}

// one handles what stands at the start of b and returns its length; 0: more is needed.
func (s *screen) one(b []byte) int {
	switch c := b[0]; c {
	case '\r':
		s.x, s.wrap = 0, false
		return 1
	case '\n':
		s.wrap = false
		s.down()
		return 1
	case '\b':
		s.x, s.wrap = max(s.x-1, 0), false
		return 1
	case '\t':
		s.x = min((s.x/8+1)*8, s.cols-1)
		return 1
	case 7, 0, 14, 15:
		return 1
	case 0x1b:
		return s.escape(b)
	}
	if !utf8.FullRune(b) {
		return 0
	}
	r, n := utf8.DecodeRune(b)
	if s.wrap {
		s.x, s.wrap = 0, false
		s.down()
	}
	s.cells[s.y][s.x] = r
	if s.x++; wide(r) && s.x < s.cols {
		s.cells[s.y][s.x] = 0
		s.x++
	}
	if s.x >= s.cols {
		s.x, s.wrap = s.cols-1, true
	}
	return n
}

func wide(r rune) bool {
	return r >= 0x1100 && r <= 0x115f || r >= 0x2e80 && r <= 0xa4cf || r >= 0xac00 && r <= 0xd7a3 || r >= 0xf900 && r <= 0xfaff || r >= 0xff00 && r <= 0xff60 || r >= 0x1f300 && r <= 0x1faff
}

func (s *screen) down() {
	if s.y+1 < s.rows {
		s.y++
		return
	}
	copy(s.cells, s.cells[1:])
	s.cells[s.rows-1] = blankLine(s.cols)
}

func (s *screen) escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] != '[' {
		switch b[1] {
		case '(', ')':
			if len(b) < 3 {
				return 0
			}
			return 3
		}
		return 2
	}
	i := 2
	for i < len(b) && (b[i] < 0x40 || b[i] > 0x7e) {
		i++
	}
	if i == len(b) {
		return 0
	}
	s.control(string(b[2:i]), b[i])
	return i + 1
}

func (s *screen) control(params string, final byte) {
	var args []int
	for p := range strings.SplitSeq(strings.TrimLeft(params, "?"), ";") {
		n, err := strconv.Atoi(p)
		if err != nil {
			n = 0
		}
		args = append(args, n)
	}
	arg := func(i, def int) int {
		if i < len(args) && args[i] > 0 {
			return args[i]
		}
		return def
	}
	s.wrap = false
	switch final {
	case 'H', 'f':
		s.y, s.x = min(arg(0, 1), s.rows)-1, min(arg(1, 1), s.cols)-1
	case 'A':
		s.y = max(s.y-arg(0, 1), 0)
	case 'B':
		s.y = min(s.y+arg(0, 1), s.rows-1)
	case 'C':
		s.x = min(s.x+arg(0, 1), s.cols-1)
	case 'D':
		s.x = max(s.x-arg(0, 1), 0)
	case 'G':
		s.x = min(arg(0, 1), s.cols) - 1
	case 'K':
		from, to := s.x, s.cols
		switch arg(0, 0) {
		case 1:
			from, to = 0, s.x+1
		case 2:
			from = 0
		}
		copy(s.cells[s.y][from:to], blankLine(to-from))
	case 'J':
		switch arg(0, 0) {
		case 0:
			copy(s.cells[s.y][s.x:], blankLine(s.cols-s.x))
			for y := s.y + 1; y < s.rows; y++ {
				s.cells[y] = blankLine(s.cols)
			}
		case 2, 3:
			s.cells = blank(s.cols, s.rows)
		}
	case 'h', 'l':
		if params != "?1049" {
			return
		}
		if final == 'h' {
			s.main, s.mainX, s.mainY = s.cells, s.x, s.y
			s.cells = blank(s.cols, s.rows)
		} else if s.main != nil {
			s.cells, s.x, s.y = s.main, s.mainX, s.mainY
			s.main = nil
		}
	}
}
