// Package posixre reads POSIX regular expressions, basic (grep, sed) and extended
// (grep -E, sed -E), with the GNU additions that busybox has: \| \+ \? in basic
// ones, \< \> \b \B \w \W \s \S \n \t in both. It turns them into Go's form, which
// matches in time linear to the text, whatever the pattern.
//
// Not possible in that form, and refused: back-references in a pattern (\1).
// Matching is leftmost-longest and by characters; a byte that is no UTF-8 is
// matched by a dot. Word characters are those of ASCII.
package posixre

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Options of a pattern.
type Options struct {
	Extended   bool // extended rather than basic
	IgnoreCase bool
	Literal    bool // no regular expression at all (grep -F)
	WholeLine  bool // must match all of the text
	WholeWord  bool // must not have word characters beside it
}

// Compile makes a matcher. The error says what is wrong with the pattern.
func Compile(pattern string, o Options) (*regexp.Regexp, error) {
	text := regexp.QuoteMeta(pattern)
	if !o.Literal {
		var err error
		if text, err = translate(pattern, o.Extended); err != nil {
			return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
		}
	}
	if o.WholeWord {
		text = `\b(?:` + text + `)\b`
	}
	if o.WholeLine {
		text = `^(?:` + text + `)$`
	}
	flags := "(?s)"
	if o.IgnoreCase {
		flags = "(?si)"
	}
	re, err := regexp.Compile(flags + text)
	if err != nil {
		reason := err.Error()
		if i := strings.LastIndex(reason, ": `"); i > 0 {
			reason = strings.TrimPrefix(reason[:i], "error parsing regexp: ")
		}
		return nil, fmt.Errorf("regular expression %q: %s", pattern, reason)
	}
	re.Longest()
	return re, nil
}

// translate writes the pattern in Go's syntax.
func translate(p string, extended bool) (string, error) {
	var b strings.Builder
	depth := 0
	start := true // where an anchor anchors and a star is a star
	for i := 0; i < len(p); {
		c := p[i]
		atStart := start
		start = false
		if c == '\\' {
			if i+1 == len(p) {
				return "", errors.New("a backslash at the end quotes nothing")
			}
			n := p[i+1]
			i += 2
			switch {
			case n >= '1' && n <= '9':
				return "", fmt.Errorf("back-references (\\%c) are not supported", n)
			case strings.IndexByte("wWsSbB", n) >= 0:
				b.WriteByte('\\')
				b.WriteByte(n)
			case n == '<' || n == '>':
				b.WriteString(`\b`)
			case n == 'n':
				b.WriteByte('\n')
			case n == 't':
				b.WriteByte('\t')
			case n == '`':
				b.WriteString(`\A`)
			case n == '\'':
				b.WriteString(`\z`)
			case !extended && strings.IndexByte("(){}|+?", n) >= 0:
				used, again, err := operator(&b, p[i-1:], n, &depth, atStart, false)
				if err != nil {
					return "", err
				}
				i += used - 1
				start = again
			case n >= 0x80:
				b.WriteByte(n) // a character of several bytes: it needs no quoting
			default:
				b.WriteString(regexp.QuoteMeta(string(rune(n))))
			}
			continue
		}
		switch {
		case c == '[':
			used, err := bracket(&b, p[i:])
			if err != nil {
				return "", err
			}
			i += used
		case c == '*':
			switch {
			case !atStart:
				b.WriteByte('*')
			default:
				b.WriteString(`\*`) // with nothing before it to repeat, a star stands for itself
			}
			i++
			for i < len(p) && p[i] == '*' { // a** is a*
				i++
			}
		case c == '.':
			b.WriteByte('.')
			i++
		case c == '^':
			if extended || atStart {
				b.WriteByte('^')
				start = true
			} else {
				b.WriteString(`\^`)
			}
			i++
		case c == '$':
			end := i+1 == len(p) || extended
			if !extended && !end {
				end = strings.HasPrefix(p[i+1:], `\)`) || strings.HasPrefix(p[i+1:], `\|`)
			}
			if end {
				b.WriteByte('$')
			} else {
				b.WriteString(`\$`)
			}
			i++
		case extended && strings.IndexByte("(){}|+?", c) >= 0:
			used, again, err := operator(&b, p[i:], c, &depth, atStart, true)
			if err != nil {
				return "", err
			}
			i += used
			start = again
		default:
			if c < 0x80 {
				b.WriteString(regexp.QuoteMeta(p[i : i+1]))
			} else {
				b.WriteByte(c)
			}
			i++
		}
	}
	if depth > 0 {
		return "", errors.New("a group is not closed")
	}
	return b.String(), nil
}

// operator writes ( ) { } | + ? and returns how much of p, which starts at the
// operator, it used, and whether what follows stands at a start.
func operator(b *strings.Builder, p string, c byte, depth *int, atStart, extended bool) (used int, start bool, err error) {
	switch c {
	case '(':
		*depth++
		b.WriteByte('(')
		return 1, true, nil
	case ')':
		if *depth == 0 {
			if extended { // as GNU: a lone ) stands for itself
				b.WriteString(`\)`)
				return 1, false, nil
			}
			return 0, false, errors.New("a group is closed that was not opened")
		}
		*depth--
		b.WriteByte(')')
		return 1, false, nil
	case '|':
		b.WriteByte('|')
		return 1, true, nil
	case '{':
		closing := "}"
		if !extended {
			closing = `\}`
		}
		spec, _, ok := strings.Cut(p[1:], closing)
		if atStart || !ok || !interval(spec) {
			if extended {
				b.WriteString(`\{`)
				return 1, false, nil
			}
			return 0, false, errors.New(`\{ needs numbers and \} after it, and something to repeat before it`)
		}
		used = 1 + len(spec) + len(closing)
		if spec[0] == ',' {
			spec = "0" + spec
		}
		b.WriteString("{" + spec + "}")
		return used, false, nil
	case '}':
		b.WriteString(`\}`)
		return 1, false, nil
	}
	if atStart {
		b.WriteString(`\` + string(rune(c)))
	} else {
		b.WriteByte(c)
	}
	return 1, false, nil
}

// interval reports whether s is n, n, or n,m of at most three digits each.
func interval(s string) bool {
	lo, hi, comma := strings.Cut(s, ",")
	digits := func(d string) bool { return len(d) <= 3 && strings.Trim(d, "0123456789") == "" }
	return digits(lo) && digits(hi) && (lo != "" || comma && hi != "")
}

// bracket writes the bracket expression at the start of p and returns its length.
func bracket(b *strings.Builder, p string) (int, error) {
	i := 1
	b.WriteByte('[')
	if i < len(p) && p[i] == '^' {
		b.WriteByte('^')
		i++
	}
	for first := true; i < len(p); first = false {
		c := p[i]
		switch {
		case c == ']' && !first:
			b.WriteByte(']')
			return i + 1, nil
		case c == '[' && i+1 < len(p) && p[i+1] == ':':
			n := strings.Index(p[i+2:], ":]")
			if n < 0 {
				return 0, errors.New("a character class is not closed by :]")
			}
			b.WriteString(p[i : i+n+4])
			i += n + 4
			continue
		case c == '[' && i+1 < len(p) && (p[i+1] == '.' || p[i+1] == '='):
			return 0, fmt.Errorf("[%c is not supported", p[i+1])
		case c == '\\' && i+1 < len(p) && (p[i+1] == 'n' || p[i+1] == 't' || p[i+1] == ']' || p[i+1] == '\\'):
			// GNU reads these two-byte forms; for POSIX each backslash is one.
			switch p[i+1] {
			case 'n':
				b.WriteString(`\n`)
			case 't':
				b.WriteString(`\t`)
			case ']': // the backslash is one of the set, the bracket ends it
				b.WriteString(`\\`)
				i++
				continue
			default:
				b.WriteString(`\\`)
			}
			i += 2
			continue
		case c == '\\' || c == '[' || c == ']' || c == '&' || c == '~':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '-':
			// A range's dash, or at either end itself.
			if first || i+1 < len(p) && p[i+1] == ']' {
				b.WriteString(`\-`)
			} else {
				b.WriteByte('-')
			}
		default:
			b.WriteByte(c)
		}
		i++
	}
	return 0, errors.New("a bracket expression is not closed by ]")
}
