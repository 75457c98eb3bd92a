package rpcd

import "strings"

// match is fnmatch(3) without flags, except that a backslash has no meaning
// (FNM_NOESCAPE), as rpcd calls it: "*" and "?" match "/" too.
func match(pattern, s string) bool {
	// The last "*" and where in s it was met: on a mismatch it takes one byte
	// more. Linear in len(pattern)·len(s) at worst.
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p, i
				p++
				continue
			}
			if n, ok := matchOne(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne matches one byte against the first element of a pattern and returns
// the element's length.
func matchOne(pattern string, c byte) (n int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		if n, ok, valid := matchClass(pattern, c); valid {
			return n, ok
		}
	}
	return 1, pattern[0] == c
}

// matchClass matches "[a-z]" or "[!a-z]"; valid is false without the closing
// bracket, and "[" then stands for itself.
func matchClass(pattern string, c byte) (n int, ok, valid bool) {
	i := 1
	negate := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negate {
		i++
	}
	for first := true; i < len(pattern); first = false {
		lo := pattern[i]
		if lo == ']' && !first {
			return i + 1, ok != negate, true
		}
		hi := lo
		i++
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			hi = pattern[i+1]
			i += 2
		}
		ok = ok || lo <= c && c <= hi
	}
	return 0, false, false
}
