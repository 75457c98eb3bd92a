package scriptcmd

import (
	"context"
	"io"
	"strings"

	"weft/init/unit"
)

// Echo prints its arguments. -n leaves out the newline, -e interprets
// backslash escapes (\c ends the output), -E does not (default).
func Echo(_ context.Context, c *unit.Call) int {
	args := c.Args[1:]
	newline, escapes := true, false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "neE") == "" {
		for _, o := range args[0][1:] {
			switch o {
			case 'n':
				newline = false
			case 'e':
				escapes = true
			case 'E':
				escapes = false
			}
		}
		args = args[1:]
	}
	out := strings.Join(args, " ")
	if escapes {
		var b strings.Builder
		if Unescape(&b, out, true) {
			newline = false
		}
		out = b.String()
	}
	if newline {
		out += "\n"
	}
	if _, err := io.WriteString(c.Stdout, out); err != nil {
		return 1
	}
	return 0
}

// Unescape writes s to b with backslash escapes interpreted as echo -e and
// printf do. leadingZero selects echo's octal form (\0nnn, though \nnn is read
// too); without it printf's (\nnn). It reports whether \c ended the output.
func Unescape(b *strings.Builder, s string, leadingZero bool) (stop bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 'a':
			b.WriteByte('\a')
		case 'b':
			b.WriteByte('\b')
		case 'c':
			return true
		case 'e', 'E':
			b.WriteByte(0x1b)
		case 'f':
			b.WriteByte('\f')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case 'v':
			b.WriteByte('\v')
		case '\\':
			b.WriteByte('\\')
		case 'x':
			n, used := digits(s[i+1:], 16, 2)
			if used == 0 {
				b.WriteString(`\x`)
				break
			}
			b.WriteByte(byte(n))
			i += used
		case '0', '1', '2', '3', '4', '5', '6', '7':
			limit, from := 3, i
			if leadingZero && s[i] == '0' {
				limit, from = 3, i+1
			}
			n, used := digits(s[from:], 8, limit)
			b.WriteByte(byte(n))
			i = from + used - 1
		default:
			b.WriteByte('\\')
			b.WriteByte(s[i])
		}
	}
	return false
}

// digits reads up to limit digits of the base from the start of s.
func digits(s string, base, limit int) (n, used int) {
	for used < limit && used < len(s) {
		d := 0
		switch c := s[used]; {
		case c >= '0' && c <= '9':
			d = int(c - '0')
		case c >= 'a' && c <= 'f':
			d = int(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = int(c-'A') + 10
		default:
			return n, used
		}
		if d >= base {
			return n, used
		}
		n = n*base + d
		used++
	}
	return n, used
}
