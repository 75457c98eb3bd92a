package bus

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MarshalJSON writes the table as one line of JSON, attributes in their order.
func (t Table) MarshalJSON() ([]byte, error) { return t.AppendJSON(nil, false), nil }

// MarshalJSON writes the array as one line of JSON.
func (a Array) MarshalJSON() ([]byte, error) {
	w := jsonWriter{}
	w.array(a)
	return w.b, nil
}

// UnmarshalJSON reads a JSON object (RFC 8259) and keeps its order. Whole
// numbers become int32 or int64, others float64.
func (t *Table) UnmarshalJSON(b []byte) error {
	v, err := parseJSON(string(b), true)
	if err != nil {
		return err
	}
	*t = v
	return nil
}

// ParseJSON reads a JSON object as leniently as json-c does for the ubus
// command: single quotes, comments, commas before a closing bracket, and
// literals in any case are accepted. Anything after the object is an error.
func ParseJSON(s string) (Table, error) { return parseJSON(s, false) }

// AppendJSON appends the table as JSON in the form of blobmsg_format_json: with
// indent over several lines with tabs, else compact. "/" is escaped, an empty
// table spans three lines, fractions have six decimals: scripts compare this
// output.
func (t Table) AppendJSON(dst []byte, indent bool) []byte {
	w := jsonWriter{b: dst, indent: indent}
	w.table(t)
	return w.b
}

type jsonWriter struct {
	b      []byte
	indent bool
	level  int
}

// maxIndent is the deepest indentation written (blobmsg_json.c).
const maxIndent = 16

func (w *jsonWriter) line() {
	if !w.indent {
		return
	}
	w.b = append(w.b, '\n')
	for range min(w.level, maxIndent) {
		w.b = append(w.b, '\t')
	}
}

func (w *jsonWriter) open(c byte) {
	w.b = append(w.b, c)
	w.level++
	w.line()
}

func (w *jsonWriter) close(c byte) {
	w.level--
	w.line()
	w.b = append(w.b, c)
}

func (w *jsonWriter) comma(i int) {
	if i > 0 {
		w.b = append(w.b, ',')
		w.line()
	}
}

func (w *jsonWriter) table(t Table) {
	w.open('{')
	for i := range t {
		w.comma(i)
		w.b = appendJSONString(w.b, t[i].Name)
		w.b = append(w.b, ':')
		if w.indent {
			w.b = append(w.b, ' ')
		}
		w.value(t[i].Value)
	}
	w.close('}')
}

func (w *jsonWriter) array(a Array) {
	w.open('[')
	for i, v := range a {
		w.comma(i)
		w.value(v)
	}
	w.close(']')
}

func (w *jsonWriter) value(v any) {
	switch v := v.(type) {
	case nil:
		w.b = append(w.b, "null"...)
	case bool:
		w.b = strconv.AppendBool(w.b, v)
	case int16:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case int32:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case int64:
		w.b = strconv.AppendInt(w.b, v, 10)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			w.b = append(w.b, "null"...) // JSON has no such numbers
			return
		}
		w.b = strconv.AppendFloat(w.b, v, 'f', 6, 64)
	case string:
		w.b = appendJSONString(w.b, v)
	case Table:
		w.table(v)
	case Array:
		w.array(v)
	default:
		n, err := normalize(v, 0)
		if err != nil {
			n = nil
		}
		w.value(n)
	}
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\' || c == '/':
			b = append(b, '\\', c)
		case c == '\b':
			b = append(b, '\\', 'b')
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

type jsonParser struct {
	s      string
	i      int
	strict bool
}

func parseJSON(s string, strict bool) (Table, error) {
	p := jsonParser{s: s, strict: strict}
	v, err := p.value(0)
	if err == nil {
		p.space()
		if p.i < len(p.s) {
			err = errors.New("unexpected text after the value")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("parse JSON at byte %d: %w", p.i+1, err)
	}
	t, ok := v.(Table)
	if !ok {
		return nil, errors.New("parse JSON: expected an object")
	}
	return t, nil
}

func (p *jsonParser) space() {
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.i++
		case !p.strict && strings.HasPrefix(p.s[p.i:], "/*"):
			n := strings.Index(p.s[p.i+2:], "*/")
			if n < 0 {
				return
			}
			p.i += n + 4
		case !p.strict && strings.HasPrefix(p.s[p.i:], "//"):
			n := strings.IndexByte(p.s[p.i:], '\n')
			if n < 0 {
				n = len(p.s) - p.i
			}
			p.i += n
		default:
			return
		}
	}
}

// peek skips blanks and returns the next byte, 0 at the end.
func (p *jsonParser) peek() byte {
	p.space()
	if p.i >= len(p.s) {
		return 0
	}
	return p.s[p.i]
}

func (p *jsonParser) unexpected(want string) error {
	if p.i >= len(p.s) {
		return fmt.Errorf("unexpected end, expected %s", want)
	}
	return fmt.Errorf("unexpected %q, expected %s", p.s[p.i], want)
}

func (p *jsonParser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	switch c := p.peek(); {
	case c == '{':
		p.i++
		t := Table{}
		for {
			if c := p.peek(); c == '}' {
				p.i++
				return t, nil
			}
			name, err := p.str()
			if err != nil {
				return nil, err
			}
			if p.peek() != ':' {
				return nil, p.unexpected(`":"`)
			}
			p.i++
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			t = append(t, Attr{name, v})
			switch p.peek() {
			case ',':
				p.i++
				if p.strict && p.peek() == '}' {
					return nil, p.unexpected("a name")
				}
			case '}':
			default:
				return nil, p.unexpected(`"," or "}"`)
			}
		}
	case c == '[':
		p.i++
		a := Array{}
		for {
			if c := p.peek(); c == ']' {
				p.i++
				return a, nil
			}
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
			switch p.peek() {
			case ',':
				p.i++
				if p.strict && p.peek() == ']' {
					return nil, p.unexpected("a value")
				}
			case ']':
			default:
				return nil, p.unexpected(`"," or "]"`)
			}
		}
	case c == '"' || c == '\'' && !p.strict:
		return p.str()
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	for _, l := range [...]struct {
		text string
		v    any
	}{{"true", true}, {"false", false}, {"null", nil}} {
		if n := len(l.text); len(p.s)-p.i >= n {
			if got := p.s[p.i : p.i+n]; got == l.text || !p.strict && strings.EqualFold(got, l.text) {
				p.i += n
				return l.v, nil
			}
		}
	}
	return nil, p.unexpected("a value")
}

func (p *jsonParser) digits() int {
	n := 0
	for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
		n++
	}
	return n
}

func (p *jsonParser) number() (any, error) {
	start := p.i
	if p.s[p.i] == '-' {
		p.i++
	}
	first := p.i
	n := p.digits()
	if n == 0 || p.strict && n > 1 && p.s[first] == '0' {
		return nil, p.unexpected("a number")
	}
	whole := true
	if p.i < len(p.s) && p.s[p.i] == '.' {
		whole = false
		p.i++
		if p.digits() == 0 {
			return nil, p.unexpected("a digit")
		}
	}
	if p.i < len(p.s) && (p.s[p.i] == 'e' || p.s[p.i] == 'E') {
		whole = false
		p.i++
		if p.i < len(p.s) && (p.s[p.i] == '+' || p.s[p.i] == '-') {
			p.i++
		}
		if p.digits() == 0 {
			return nil, p.unexpected("a digit")
		}
	}
	text := p.s[start:p.i]
	if whole {
		if v, err := strconv.ParseInt(text, 10, 64); err == nil {
			return shrink(v), nil
		}
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, fmt.Errorf("number %s: out of range", text)
	}
	return f, nil
}

// str reads a quoted string.
func (p *jsonParser) str() (string, error) {
	q := p.peek()
	if q != '"' && (q != '\'' || p.strict) {
		return "", p.unexpected("a string")
	}
	p.i++
	start := p.i
	var b []byte // nil while the text so far needs no change
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case c == q:
			s := p.s[start:p.i]
			p.i++
			if b == nil {
				return s, nil
			}
			return string(append(b, s...)), nil
		case c == 0 || p.strict && c < ' ':
			return "", p.unexpected("an escaped control character")
		case c == '\\':
			b = append(b, p.s[start:p.i]...)
			p.i++
			var err error
			if b, err = p.escape(b); err != nil {
				return "", err
			}
			start = p.i
		default:
			p.i++
		}
	}
	return "", p.unexpected("the end of a string")
}

// escape reads what follows a backslash.
func (p *jsonParser) escape(b []byte) ([]byte, error) {
	if p.i >= len(p.s) {
		return nil, p.unexpected("an escape")
	}
	c := p.s[p.i]
	p.i++
	switch c {
	case '"', '\\', '/':
		return append(b, c), nil
	case 'b':
		return append(b, '\b'), nil
	case 'f':
		return append(b, '\f'), nil
	case 'n':
		return append(b, '\n'), nil
	case 'r':
		return append(b, '\r'), nil
	case 't':
		return append(b, '\t'), nil
	case 'u':
		r, ok := p.hex4()
		if !ok {
			return nil, p.unexpected("four hexadecimal digits")
		}
		if utf16.IsSurrogate(r) {
			at := p.i
			low := rune(utf8.RuneError)
			if strings.HasPrefix(p.s[p.i:], `\u`) {
				p.i += 2
				if low, ok = p.hex4(); !ok {
					return nil, p.unexpected("four hexadecimal digits")
				}
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				p.i = at // not a pair: the second stands for itself
			}
		}
		if r == 0 {
			return nil, errors.New("a string cannot carry a NUL byte")
		}
		return utf8.AppendRune(b, r), nil
	}
	if c == '\'' && !p.strict {
		return append(b, c), nil
	}
	p.i--
	return nil, p.unexpected("an escape")
}

func (p *jsonParser) hex4() (rune, bool) {
	if len(p.s)-p.i < 4 {
		return 0, false
	}
	v, err := strconv.ParseUint(p.s[p.i:p.i+4], 16, 16)
	if err != nil {
		return 0, false
	}
	p.i += 4
	return rune(v), true
}
