package uci

import (
	"bytes"
	"strings"
)

// A delta file holds one change a line: a sign for the kind of change, the
// address, and the value in single quotes, which may run over lines.
var opSigns = [...]string{Set: "", AddSection: "+", Delete: "-", Rename: "@", Reorder: "^", ListAdd: "|", ListDel: "~"}

// deltaLine writes a change as upstream does.
func deltaLine(pkg string, c Change) string {
	var b strings.Builder
	b.WriteString(opSigns[c.Op] + pkg + "." + c.Section)
	if c.Option != "" {
		b.WriteString("." + c.Option)
	}
	if c.Op != Delete || c.Value != "" {
		b.WriteString("=" + Quote(c.Value))
	}
	b.WriteByte('\n')
	return b.String()
}

// ParseDelta reads the delta file of package pkg. As upstream does it skips
// lines that it does not understand or that are about another package: as
// much as possible of what was staged has to survive.
func ParseDelta(pkg string, text []byte) []Change {
	var out []Change
	l := lexer{src: text}
	for l.next() {
		c, name, ok := l.change()
		l.err = nil
		if ok && name == pkg {
			out = append(out, c)
		}
	}
	return out
}

// change reads one line of a delta file.
func (l *lexer) change() (c Change, pkg string, ok bool) {
	word := l.arg(true, anyText)
	if l.err != nil || len(bytes.TrimLeft(l.buf[min(l.pos, len(l.buf)):], "\x00")) > 0 {
		return c, "", false
	}
	for op, sign := range opSigns {
		if rest, cut := strings.CutPrefix(word, sign); cut && sign != "" {
			c.Op, word = Op(op), rest
			break
		}
	}
	a, err := ParseAddress(word)
	if err != nil || !ValidName(a.Section) || !a.HasValue && c.Op != Delete {
		return c, "", false
	}
	c.Section, c.Option, c.Value = a.Section, a.Option, a.Value
	switch c.Op {
	case Reorder:
		ok = c.Option == "" && c.Value != ""
	case Rename:
		ok = ValidName(c.Value)
	case ListAdd, ListDel:
		ok = c.Option != ""
	default:
		ok = true
	}
	return c, a.Package, ok
}
