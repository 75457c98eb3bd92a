package scriptcmd

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"weft/init/unit"
)

// Printf formats its arguments as POSIX printf(1): escapes in the format, the
// conversions b c d i o q s u x X e E f F g G, width and precision also as *, and
// the format is used again until the arguments are used up. A number that is none
// is reported, taken as what could be read of it, and makes the exit code 1.
func Printf(_ context.Context, c *unit.Call) int {
	args := c.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return usage(c, "usage: printf FORMAT [ARGUMENT]...")
	}
	out, complaints, err := Format(args[0], args[1:])
	if _, werr := io.WriteString(c.Stdout, out); werr != nil {
		return 1
	}
	for _, m := range complaints {
		fmt.Fprintf(c.Stderr, "printf: %s\n", m)
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "printf: %v\n", err)
	}
	if err != nil || len(complaints) > 0 {
		return 1
	}
	return 0
}

// Format is printf(1) on strings. complaints are the arguments that were no
// numbers; err is a format that cannot be understood, with out up to there.
func Format(format string, args []string) (out string, complaints []string, err error) {
	p := printer{args: args}
	for {
		before := len(p.args)
		stop, err := p.pass(format)
		if err != nil || stop || len(p.args) == 0 || len(p.args) == before {
			return p.b.String(), p.complaints, err
		}
	}
}

type printer struct {
	b          strings.Builder
	args       []string
	complaints []string
}

func (p *printer) next() (string, bool) {
	if len(p.args) == 0 {
		return "", false
	}
	a := p.args[0]
	p.args = p.args[1:]
	return a, true
}

func (p *printer) pass(format string) (stop bool, err error) {
	for i := 0; i < len(format); i++ {
		switch format[i] {
		case '\\':
			j := escapeEnd(format, i)
			if Unescape(&p.b, format[i:j], false) {
				return true, nil
			}
			i = j - 1
		case '%':
			used, stop, err := p.convert(format[i:])
			if err != nil || stop {
				return stop, err
			}
			i += used - 1
		default:
			p.b.WriteByte(format[i])
		}
	}
	return false, nil
}

// escapeEnd returns the index after the escape sequence at format[i].
func escapeEnd(format string, i int) int {
	if i+1 >= len(format) {
		return len(format)
	}
	switch c := format[i+1]; {
	case c == 'x':
		_, used := digits(format[i+2:], 16, 2)
		return i + 2 + used
	case c >= '0' && c <= '7':
		_, used := digits(format[i+1:], 8, 3)
		return i + 1 + used
	}
	return i + 2
}

// convert handles the conversion at the start of f.
func (p *printer) convert(f string) (used int, stop bool, err error) {
	i := 1
	var flags string
	for i < len(f) && strings.IndexByte("-+ #0", f[i]) >= 0 {
		i++
	}
	flags = f[1:i]
	number := func() (int, bool) {
		if i < len(f) && f[i] == '*' {
			i++
			a, _ := p.next()
			return int(p.integer(a)), true
		}
		start := i
		for i < len(f) && f[i] >= '0' && f[i] <= '9' {
			i++
		}
		n, _ := strconv.Atoi(f[start:i])
		return n, i > start
	}
	width, _ := number()
	if width < 0 {
		flags, width = flags+"-", -width
	}
	const widest = 1 << 16 // a larger field is a mistake and would only fill memory
	width = min(width, widest)
	prec, hasPrec := 0, false
	if i < len(f) && f[i] == '.' {
		i++
		prec, _ = number()
		prec, hasPrec = min(prec, widest), prec >= 0
	}
	for i < len(f) && strings.IndexByte("hlLqjzt", f[i]) >= 0 && i+1 < len(f) && strings.IndexByte("hldiouxXeEfFgG", f[i+1]) >= 0 {
		i++ // length modifiers of C mean nothing here
	}
	if i >= len(f) {
		return 0, false, fmt.Errorf("%%%s: a conversion is missing at the end of the format", f[1:])
	}
	verb := f[i]
	used = i + 1
	pad := func(s string) {
		n := width - utf8.RuneCountInString(s)
		switch {
		case n <= 0:
			p.b.WriteString(s)
		case strings.Contains(flags, "-"):
			p.b.WriteString(s + strings.Repeat(" ", n))
		default:
			p.b.WriteString(strings.Repeat(" ", n) + s)
		}
	}
	gofmt := "%" + flags
	if width > 0 {
		gofmt += strconv.Itoa(width)
	}
	if hasPrec {
		gofmt += "." + strconv.Itoa(prec)
	}
	switch verb {
	case '%':
		p.b.WriteByte('%')
	case 's', 'b', 'q':
		s, ok := p.next()
		if verb == 'b' {
			var b strings.Builder
			stop = Unescape(&b, s, true)
			s = b.String()
		}
		if verb == 'q' && ok {
			s = Quote(s)
		}
		if r := []rune(s); hasPrec && len(r) > prec {
			s = string(r[:prec])
		}
		pad(s)
	case 'c':
		s, _ := p.next()
		_, n := utf8.DecodeRuneInString(s)
		pad(s[:n])
	case 'd', 'i':
		a, _ := p.next()
		fmt.Fprintf(&p.b, gofmt+"d", p.integer(a))
	case 'u':
		a, _ := p.next()
		fmt.Fprintf(&p.b, gofmt+"d", uint64(p.integer(a)))
	case 'o', 'x', 'X':
		a, _ := p.next()
		fmt.Fprintf(&p.b, gofmt+string(verb), uint64(p.integer(a)))
	case 'e', 'E', 'f', 'F', 'g', 'G':
		a, _ := p.next()
		fmt.Fprintf(&p.b, gofmt+string(verb), p.float(a))
	default:
		return 0, false, fmt.Errorf("%%%c: there is no such conversion", verb)
	}
	return used, stop, nil
}

// integer reads a C integer: decimal, 0 octal, 0x hex, or 'c for a character's code.
func (p *printer) integer(s string) int64 {
	if s == "" {
		return 0
	}
	if s[0] == '\'' || s[0] == '"' {
		r, _ := utf8.DecodeRuneInString(s[1:])
		if s[1:] == "" {
			return 0
		}
		return int64(r)
	}
	t := strings.TrimLeft(s, " \t\n")
	end := 0
	if end < len(t) && (t[end] == '-' || t[end] == '+') {
		end++
	}
	base := 10
	if rest := t[end:]; len(rest) > 2 && rest[0] == '0' && (rest[1] == 'x' || rest[1] == 'X') {
		base, end = 16, end+2
	} else if len(rest) > 1 && rest[0] == '0' {
		base = 8
	}
	_, n := digits(t[end:], base, len(t))
	text := t[:end+n]
	if base == 16 {
		text = strings.Replace(strings.Replace(text, "0x", "", 1), "0X", "", 1)
	}
	v, err := strconv.ParseInt(strings.TrimPrefix(text, "+"), base, 64)
	if err != nil {
		if u, uerr := strconv.ParseUint(strings.TrimPrefix(text, "+"), base, 64); uerr == nil {
			v, err = int64(u), nil
		}
	}
	if err != nil || n == 0 || end+n != len(t) {
		p.complaints = append(p.complaints, fmt.Sprintf("%s: not an integer", s))
	}
	return v
}

func (p *printer) float(s string) float64 {
	if s == "" {
		return 0
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil {
		p.complaints = append(p.complaints, fmt.Sprintf("%s: not a number", s))
	}
	return v
}

// Quote returns s so that a shell reads it back as one word with the same value.
func Quote(s string) string {
	if s == "" {
		return "''"
	}
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		c := s[i]
		plain = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_-./:=,+@%^", c) >= 0
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
