package uci

import (
	"fmt"
	"strconv"
	"strings"
)

// ValidName tells whether s can name a section or an option: [A-Za-z0-9_]+.
func ValidName(s string) bool { return validName(s, "") }

// ValidPackage tells whether s can name a package file: [A-Za-z0-9_-]+.
func ValidPackage(s string) bool { return validName(s, "-") }

func validName(s, more string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' {
			continue
		}
		if strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return s != ""
}

// ValidType tells whether s can be the type of a section: printable ASCII
// without the blank.
func ValidType(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 33 || s[i] > 126 {
			return false
		}
	}
	return s != ""
}

// ValidValue tells whether s can be set as a value: no control characters but
// tab, line feed and carriage return. Bytes from 0x80 on are fine.
func ValidValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 32 && c != '\t' && c != '\n' && c != '\r' {
			return false
		}
	}
	return true
}

// Address is a parsed `package[.section[.option]][=value]`.
type Address struct {
	// Package is the name of a package, or the path of a file.
	Package string
	// Section is a name or `@type[n]`; empty if not given.
	Section string
	// Option is empty if not given.
	Option string
	// Value is what follows the first `=`; HasValue tells "" from none.
	Value    string
	HasValue bool
}

// ParseAddress splits what the uci command takes as its argument. The first
// `=` ends the address, so a value may hold further ones. The error is an
// ErrParse.
func ParseAddress(s string) (Address, error) {
	var a Address
	addr := s
	if i := strings.IndexByte(s, '='); i >= 0 {
		addr, a.Value, a.HasValue = s[:i], s[i+1:], true
	}
	parts := strings.Split(addr, ".")
	bad := func(what string) (Address, error) {
		return Address{}, fmt.Errorf("address %q: %s, expected package[.section[.option]][=value]: %w", s, what, ErrParse)
	}
	if len(parts) > 3 {
		return bad("too many dots")
	}
	a.Package = parts[0]
	if !ValidType(a.Package) {
		return bad("bad package name")
	}
	if len(parts) > 1 {
		a.Section = parts[1]
		if a.Section == "" {
			return bad("empty section name")
		}
	}
	if len(parts) > 2 {
		a.Option = parts[2]
		if !ValidName(a.Option) {
			return bad("bad option name")
		}
	}
	if !ValidValue(a.Value) {
		return bad("control character in the value")
	}
	return a, nil
}

// parseIndex splits `@type[n]`; typ is empty for `@[n]`.
func parseIndex(s string) (typ string, n int, err error) {
	bad := fmt.Errorf("section %q: expected a name or @type[index]: %w", s, ErrInvalid)
	rest, ok := strings.CutPrefix(s, "@")
	if !ok {
		return "", 0, bad
	}
	typ, rest, ok = strings.Cut(rest, "[")
	if !ok || typ != "" && !ValidType(typ) {
		return "", 0, bad
	}
	num, rest, ok := strings.Cut(rest, "]")
	if !ok || rest != "" {
		return "", 0, bad
	}
	if num == "" { // upstream takes @type[] for the first one
		return typ, 0, nil
	}
	if n, err = strconv.Atoi(num); err != nil {
		return "", 0, bad
	}
	return typ, n, nil
}

// leadingInt reads a number as C's strtol does: leading blanks and a sign are
// fine, what follows the digits is ignored; ok is false without a digit.
func leadingInt(s string) (n int, ok bool) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	end := 0
	if end < len(s) && (s[end] == '-' || s[end] == '+') {
		end++
	}
	digits := end
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == digits {
		return 0, false
	}
	n64, err := strconv.ParseInt(s[:end], 10, 32)
	if err != nil {
		if s[0] == '-' {
			return -1 << 31, true
		}
		return 1<<31 - 1, true
	}
	return int(n64), true
}
