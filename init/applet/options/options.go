// Package options reads the command lines of applets: single letters that can be
// joined (-la), values joined or apart (-n5, -n 5), long names, -- as the end.
// An option that is not known is an error with the usage text, never skipped.
package options

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"weft/init/unit"
)

// Set is a command line taken apart.
type Set struct {
	Args   []string // the operands
	Order  []Option // all options as they came
	values map[byte][]string
	call   *unit.Call
	usage  string
}

// Option is one option of the command line.
type Option struct {
	Letter byte
	Value  string
}

// Parse takes c.Args apart. spec lists the letters, a colon after those with a
// value; "+" at its start ends the options at the first operand, as commands that
// run other commands need it. Long names follow after blanks: "all=a width=w".
// usage is the text after "Usage: NAME ", its first line the synopsis.
//
// A code of 0 or more means: return it, what had to be said was.
func Parse(c *unit.Call, spec, usage string) (s *Set, code int) {
	letters, longs, _ := strings.Cut(spec, " ")
	inOrder := strings.HasPrefix(letters, "+")
	letters = strings.TrimPrefix(letters, "+")
	s = &Set{values: make(map[byte][]string), call: c, usage: usage}
	takes := func(l byte) (known, value bool) {
		i := strings.IndexByte(letters, l)
		if i < 0 || l == ':' {
			return false, false
		}
		return true, i+1 < len(letters) && letters[i+1] == ':'
	}
	add := func(l byte, v string) {
		s.values[l] = append(s.values[l], v)
		s.Order = append(s.Order, Option{l, v})
	}
	args := c.Args[1:]
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			s.Args = append(s.Args, args...)
			return s, -1
		case strings.HasPrefix(a, "--"):
			name, value, joined := strings.Cut(a[2:], "=")
			l := byte(0)
			for long := range strings.FieldsSeq(longs) {
				if n, letter, _ := strings.Cut(long, "="); n == name {
					l = letter[0]
				}
			}
			if l == 0 {
				if name == "help" {
					fmt.Fprintf(c.Stdout, "Usage: %s %s\n", s.name(), usage)
					return nil, 0
				}
				return nil, s.Fail("there is no option %s", a)
			}
			switch _, takesValue := takes(l); {
			case takesValue && !joined:
				if len(args) == 0 {
					return nil, s.Fail("--%s needs a value", name)
				}
				value, args = args[0], args[1:]
			case !takesValue && joined:
				return nil, s.Fail("--%s takes no value", name)
			}
			add(l, value)
		case len(a) > 1 && a[0] == '-':
			for i := 1; i < len(a); i++ {
				known, takesValue := takes(a[i])
				if !known {
					return nil, s.Fail("there is no option -%c", a[i])
				}
				if !takesValue {
					add(a[i], "")
					continue
				}
				value := a[i+1:]
				if value == "" {
					if len(args) == 0 {
						return nil, s.Fail("-%c needs a value", a[i])
					}
					value, args = args[0], args[1:]
				}
				add(a[i], value)
				break
			}
		default:
			s.Args = append(s.Args, a)
			if inOrder {
				s.Args = append(s.Args, args...)
				return s, -1
			}
		}
	}
	return s, -1
}

func (s *Set) name() string { return filepath.Base(s.call.Args[0]) }

// Fail reports a command line that cannot be used and returns exit code 2.
func (s *Set) Fail(format string, args ...any) int {
	fmt.Fprintf(s.call.Stderr, "%s: %s\nUsage: %s %s\n", s.name(), fmt.Sprintf(format, args...), s.name(), s.usage)
	return 2
}

// Has says whether the option was given.
func (s *Set) Has(l byte) bool { return len(s.values[l]) > 0 }

// Count says how often the option was given.
func (s *Set) Count(l byte) int { return len(s.values[l]) }

// Value is the last value of the option, or def.
func (s *Set) Value(l byte, def string) string {
	if v := s.values[l]; len(v) > 0 {
		return v[len(v)-1]
	}
	return def
}

// Values are all values of the option.
func (s *Set) Values(l byte) []string { return s.values[l] }

// Int is the last value of the option as a number, or def. A code of 0 or more
// means: return it.
func (s *Set) Int(l byte, def int) (n, code int) {
	v := s.Value(l, "")
	if !s.Has(l) {
		return def, -1
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, s.Fail("-%c: %q is not a number", l, v)
	}
	return n, -1
}

// Operands checks the number of operands; most < 0 is no bound.
func (s *Set) Operands(least, most int) (code int) {
	switch {
	case len(s.Args) < least:
		return s.Fail("an argument is missing")
	case most >= 0 && len(s.Args) > most:
		return s.Fail("%q is one argument too many", s.Args[most])
	}
	return -1
}
