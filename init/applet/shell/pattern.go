package shell

import (
	"os"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// match reports whether the whole of s matches the shell pattern: * ? [..],
// backslash quotes the next character. It is written out rather than turned
// into a regular expression because case and ${x#pattern} run it all the time.
func match(pattern, s string) bool {
	// star and retry remember the last * and where its match could be extended.
	star, retry := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) {
			switch pattern[p] {
			case '*':
				star, retry = p, i
				p++
				continue
			case '?':
				_, n := utf8.DecodeRuneInString(s[i:])
				p, i = p+1, i+n
				continue
			case '[':
				r, n := utf8.DecodeRuneInString(s[i:])
				ok, end := bracket(pattern[p:], r)
				if end > 0 {
					if ok {
						p, i = p+end, i+n
						continue
					}
					break
				}
				if s[i] == '[' { // never closed: an ordinary character
					p, i = p+1, i+1
					continue
				}
			case '\\':
				c := p
				if p+1 < len(pattern) {
					c = p + 1
				}
				if s[i] == pattern[c] {
					p, i = c+1, i+1
					continue
				}
			default:
				if s[i] == pattern[p] {
					p, i = p+1, i+1
					continue
				}
			}
		}
		if star < 0 {
			return false
		}
		_, n := utf8.DecodeRuneInString(s[retry:])
		retry += n
		p, i = star+1, retry
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// bracket matches r against the bracket expression at the start of pattern.
// end is the index after its ], or 0 if it is never closed.
func bracket(pattern string, r rune) (ok bool, end int) {
	i := 1
	negate := false
	if i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^') {
		negate = true
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return ok != negate, i + 1
		}
		if strings.HasPrefix(pattern[i:], "[:") {
			if n := strings.Index(pattern[i+2:], ":]"); n >= 0 {
				ok = ok || inClass(pattern[i+2:i+2+n], r)
				i += n + 4
				continue
			}
		}
		lo, n := bracketRune(pattern[i:])
		i += n
		hi := lo
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			hi, n = bracketRune(pattern[i+1:])
			i += 1 + n
		}
		if lo <= r && r <= hi {
			ok = true
		}
	}
	return false, 0
}

func bracketRune(s string) (rune, int) {
	if s[0] == '\\' && len(s) > 1 {
		r, n := utf8.DecodeRuneInString(s[1:])
		return r, n + 1
	}
	return utf8.DecodeRuneInString(s)
}

func inClass(name string, r rune) bool {
	switch name {
	case "alpha":
		return unicode.IsLetter(r)
	case "digit":
		return r >= '0' && r <= '9'
	case "alnum":
		return unicode.IsLetter(r) || unicode.IsDigit(r)
	case "upper":
		return unicode.IsUpper(r)
	case "lower":
		return unicode.IsLower(r)
	case "space":
		return unicode.IsSpace(r)
	case "blank":
		return r == ' ' || r == '\t'
	case "punct":
		return r < 128 && unicode.IsGraphic(r) && r != ' ' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	case "print":
		return unicode.IsPrint(r)
	case "graph":
		return unicode.IsGraphic(r) && r != ' '
	case "cntrl":
		return unicode.IsControl(r)
	case "xdigit":
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F'
	}
	return false
}

// quotePattern returns the pattern that matches exactly s.
func quotePattern(s string) string {
	if !strings.ContainsAny(s, `*?[]\-!^`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(`*?[]\-!^`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unquotePattern removes the backslashes of quotePattern.
func unquotePattern(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// hasMeta reports whether the pattern has an unquoted *, ? or bracket expression.
// A lone [, the command, is none: it must not cost a look at the folder.
func hasMeta(pattern string) bool {
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '*', '?':
			return true
		case '[':
			if _, end := bracket(pattern[i:], 0); end > 0 {
				return true
			}
		}
	}
	return false
}

// glob returns the sorted paths that match, as written (relative ones stay
// relative to dir); nil when there is none.
func glob(dir, pattern string) []string {
	found := []string{""}
	rest := pattern
	for strings.HasPrefix(rest, "/") {
		found[0] += "/"
		rest = rest[1:]
	}
	for rest != "" && len(found) > 0 {
		part, tail := rest, ""
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			part, tail = rest[:i], rest[i:]
		}
		slashes := len(tail) - len(strings.TrimLeft(tail, "/"))
		rest = tail[slashes:]
		onlyDirs := slashes > 0
		var next []string
		for _, base := range found {
			if !hasMeta(part) {
				path := base + unquotePattern(part)
				if _, err := os.Lstat(abs(dir, path)); err == nil {
					next = append(next, path+tail[:slashes])
				}
				continue
			}
			at := base
			if at == "" {
				at = "."
			}
			f, err := os.Open(abs(dir, at))
			if err != nil {
				continue
			}
			names, _ := f.Readdirnames(-1) // what could be read is what can match
			f.Close()
			sort.Strings(names)
			for _, name := range names {
				if name[0] == '.' && part[0] != '.' && !strings.HasPrefix(part, `\.`) {
					continue
				}
				if !match(part, name) {
					continue
				}
				if onlyDirs {
					if st, err := os.Stat(abs(dir, base+name)); err != nil || !st.IsDir() {
						continue
					}
				}
				next = append(next, base+name+tail[:slashes])
			}
		}
		found = next
	}
	return found
}

// abs makes p absolute without cleaning: a trailing slash and .. behind a link
// keep their meaning for the kernel.
func abs(dir, p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	if dir == "/" {
		return "/" + p
	}
	return dir + "/" + p
}
