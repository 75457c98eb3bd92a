package shell

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"unicode/utf8"
)

// key completes commands and paths on Tab. A second Tab lists what fits.
func (l *lines) key(line string, pos int, key rune) (string, int, bool) {
	if key != '\t' {
		l.lastTab = ""
		return "", 0, false
	}
	head := line[:pos]
	start, command := wordStart(head)
	word := head[start:]
	found := l.s.candidates(unquoteWord(word), command)
	if len(found) == 0 {
		return line, pos, true
	}
	common := found[0]
	for _, f := range found[1:] {
		for !strings.HasPrefix(f, common) {
			_, n := utf8.DecodeLastRuneInString(common)
			common = common[:len(common)-n]
		}
	}
	insert := quoteWord(common)
	if len(found) == 1 && !strings.HasSuffix(common, "/") {
		insert += " "
	}
	if len(insert) <= len(word) && len(found) > 1 {
		if l.lastTab == head {
			l.list(found)
		}
		l.lastTab = head
		return line, pos, true
	}
	l.lastTab = ""
	return line[:start] + insert + line[pos:], start + len(insert), true
}

// wordStart finds where the word before the cursor starts, and whether it is
// where a command stands.
func wordStart(head string) (start int, command bool) {
	command = true
	inWord := false
	var quote byte
	for i := 0; i < len(head); i++ {
		c := head[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\\':
			if !inWord {
				start, inWord = i, true
			}
			i++
		case c == '\'' || c == '"':
			if !inWord {
				start, inWord = i, true
			}
			quote = c
		case strings.IndexByte(";|&(`", c) >= 0:
			command, inWord, start = true, false, i+1
		case strings.IndexByte("<>", c) >= 0:
			command, inWord, start = false, false, i+1
		case c == ' ' || c == '\t':
			if inWord {
				switch w := head[start:i]; {
				case isKeyword(w) && w != "for" && w != "case" && w != "in", w == "exec", w == "command", w == "time":
				case strings.Contains(w, "="):
				default:
					command = false
				}
			}
			inWord, start = false, i+1
		default:
			if !inWord {
				start, inWord = i, true
			}
		}
	}
	return start, command
}

func unquoteWord(w string) string {
	var b strings.Builder
	for i := 0; i < len(w); i++ {
		switch c := w[i]; c {
		case '\'', '"':
		case '\\':
			if i+1 < len(w) {
				i++
				b.WriteByte(w[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func quoteWord(w string) string {
	var b strings.Builder
	for i := 0; i < len(w); i++ {
		if strings.IndexByte(" \t\\'\"`$&;|<>()*?[]#!{}", w[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(w[i])
	}
	return b.String()
}

// candidates lists what the word could become, sorted, folders with a slash.
func (s *shell) candidates(word string, command bool) []string {
	seen := make(map[string]bool)
	if command && !strings.Contains(word, "/") {
		add := func(name string) {
			if strings.HasPrefix(name, word) {
				seen[name] = true
			}
		}
		for _, n := range builtinNames() {
			add(n)
		}
		for n := range s.funcs {
			add(n)
		}
		for n := range s.alias {
			add(n)
		}
		path, _ := s.get("PATH")
		for dir := range strings.SplitSeq(path, ":") {
			entries, err := os.ReadDir(abs(s.dir, dir))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), word) && runnable(abs(s.dir, dir)+"/"+e.Name()) == nil {
					seen[e.Name()] = true
				}
			}
		}
	} else {
		dir, prefix := "", word
		if i := strings.LastIndexByte(word, '/'); i >= 0 {
			dir, prefix = word[:i+1], word[i+1:]
		}
		at := abs(s.dir, dir)
		if home, ok := s.get("HOME"); ok && strings.HasPrefix(dir, "~/") {
			at = home + dir[1:]
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			return nil
		}
		for _, e := range entries {
			name := e.Name()
			if !strings.HasPrefix(name, prefix) || name[0] == '.' && prefix == "" {
				continue
			}
			full := dir + name
			if st, err := os.Stat(at + "/" + name); err == nil && st.IsDir() {
				full += "/"
			} else if command && runnable(at+"/"+name) != nil {
				continue
			}
			seen[full] = true
		}
	}
	out := make([]string, 0, len(seen))
	for n := range seen {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// list shows the candidates in columns above the prompt.
func (l *lines) list(found []string) {
	k := l.keys
	width := 0
	names := make([]string, len(found))
	for i, f := range found {
		n := strings.TrimSuffix(f, "/")
		n = f[strings.LastIndexByte(n, '/')+1:]
		names[i] = n
		width = max(width, utf8.RuneCountInString(n)+2)
	}
	cols := max(k.width/width, 1)
	rows := (len(names) + cols - 1) / cols
	const most = 200
	var b strings.Builder
	if rows > most {
		fmt.Fprintf(&b, "%d possibilities\n", len(names))
		rows = 0
	}
	for r := range rows {
		for i := r; i < len(names); i += rows {
			b.WriteString(names[i])
			if i+rows < len(names) {
				b.WriteString(strings.Repeat(" ", width-utf8.RuneCountInString(names[i])))
			}
		}
		b.WriteByte('\n')
	}
	k.ed.Write([]byte(b.String()))
}
