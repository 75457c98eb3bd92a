package shell

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"weft/init/applet/scriptcmd"
)

// A word expands to pieces first; fields, patterns and texts are made of them.
type pieceKind uint8

const (
	literal  pieceKind = iota // as written, unquoted: may glob, is never split
	quoted                    // neither split nor globbed; makes a field even when empty
	expanded                  // result of an unquoted expansion: split, then globbed
	fieldEnd                  // between two parameters of $@
)

type piece struct {
	text string
	kind pieceKind
}

// fields expands the words of a command to its arguments.
func (s *shell) fields(words []*syntax.Word) []string {
	out := make([]string, 0, len(words))
	var buf [8]piece
	for _, w := range words {
		if len(w.Parts) == 1 { // by far the most common: a plain word
			switch p := w.Parts[0].(type) {
			case *syntax.Lit:
				if !strings.ContainsAny(p.Value, `\*?[~`) || p.Value == "[" {
					out = append(out, p.Value)
					continue
				}
			case *syntax.SglQuoted:
				if !p.Dollar {
					out = append(out, p.Value)
					continue
				}
			}
		}
		ps := s.expandWord(buf[:0], w, false)
		out = s.appendFields(out, ps)
	}
	return out
}

// text expands a word to one string: no splitting, no globbing.
func (s *shell) text(w *syntax.Word) string {
	if w == nil {
		return ""
	}
	var buf [8]piece
	return joinPieces(s.expandWord(buf[:0], w, false))
}

// assignText is text with ~ expanded after each colon too, as in PATH=~/a:~/b.
func (s *shell) assignText(w *syntax.Word) string {
	if w == nil {
		return ""
	}
	var buf [8]piece
	return joinPieces(s.expandWord(buf[:0], w, true))
}

// pattern expands a word to a pattern in which quoted parts stand for themselves.
func (s *shell) pattern(w *syntax.Word) string {
	if w == nil {
		return ""
	}
	var buf [8]piece
	return patternOf(s.expandWord(buf[:0], w, false))
}

// document expands the body of a here-document.
func (s *shell) document(w *syntax.Word) string {
	if w == nil {
		return ""
	}
	var out []piece
	for _, p := range w.Parts {
		if lit, ok := p.(*syntax.Lit); ok {
			out = append(out, piece{unescape(lit.Value, "$`\\\n"), quoted})
			continue
		}
		out = s.expandPart(out, p, true)
	}
	return joinPieces(out)
}

func joinPieces(ps []piece) string {
	if len(ps) == 1 && ps[0].kind != fieldEnd {
		return ps[0].text
	}
	var b strings.Builder
	for _, p := range ps {
		if p.kind == fieldEnd {
			b.WriteByte(' ')
			continue
		}
		b.WriteString(p.text)
	}
	return b.String()
}

func patternOf(ps []piece) string {
	var b strings.Builder
	for _, p := range ps {
		switch p.kind {
		case fieldEnd:
			b.WriteByte(' ')
		case quoted:
			b.WriteString(quotePattern(p.text))
		default:
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// appendFields splits pieces at IFS, expands globs and appends the fields.
func (s *shell) appendFields(out []string, ps []piece) []string {
	ifs, ok := s.get("IFS")
	if !ok {
		ifs = " \t\n"
	}
	var field []piece
	started := false    // the field has something in it, be it an empty quoted string
	afterBlank := false // a blank ended the last field: one separator may follow it
	flush := func() {
		out = s.appendField(out, field)
		field, started = field[:0], false
	}
	for _, p := range ps {
		switch p.kind {
		case quoted:
			field, started, afterBlank = append(field, p), true, false
		case literal:
			if p.text != "" {
				field, started, afterBlank = append(field, p), true, false
			}
		case fieldEnd:
			if started {
				flush()
			}
			afterBlank = false
		case expanded:
			if ifs == "" {
				if p.text != "" {
					field, started = append(field, p), true
				}
				continue
			}
			start := 0
			take := func(end int) {
				if end > start {
					field = append(field, piece{p.text[start:end], expanded})
					started, afterBlank = true, false
				}
			}
			for i := 0; i < len(p.text); {
				r, n := utf8.DecodeRuneInString(p.text[i:])
				if r < utf8.RuneSelf && strings.IndexByte(ifs, byte(r)) < 0 || r >= utf8.RuneSelf && !strings.ContainsRune(ifs, r) {
					i += n
					continue
				}
				take(i)
				i += n
				start = i
				if r == ' ' || r == '\t' || r == '\n' {
					if started {
						flush()
						afterBlank = true
					}
					continue
				}
				if afterBlank { // "a :" is one separator
					afterBlank = false
					continue
				}
				flush()
			}
			take(len(p.text))
		}
	}
	if started {
		flush()
	}
	return out
}

// appendField turns the pieces of one field into text, or into the files it names.
func (s *shell) appendField(out []string, field []piece) []string {
	if !s.opt.noglob {
		meta := false
		for _, p := range field {
			meta = meta || p.kind != quoted && strings.ContainsAny(p.text, "*?[")
		}
		if meta {
			if pat := patternOf(field); hasMeta(pat) {
				if files := glob(s.dir, pat); len(files) > 0 {
					return append(out, files...)
				}
			}
		}
	}
	return append(out, joinPieces(field))
}

func (s *shell) expandWord(out []piece, w *syntax.Word, assign bool) []piece {
	for i, part := range w.Parts {
		if lit, ok := part.(*syntax.Lit); ok {
			out = s.expandLit(out, lit.Value, i == 0, i == len(w.Parts)-1, assign)
			continue
		}
		out = s.expandPart(out, part, false)
	}
	return out
}

// expandLit handles unquoted text: tildes and backslashes.
func (s *shell) expandLit(out []piece, v string, first, last, assign bool) []piece {
	if first && v != "" && v[0] == '~' {
		out, v = s.tilde(out, v, last, assign)
	}
	if assign {
		for {
			i := strings.Index(v, ":~")
			if i < 0 {
				break
			}
			out = appendUnescaped(out, v[:i+1])
			out, v = s.tilde(out, v[i+1:], last, true)
			if strings.HasPrefix(v, "~") {
				out, v = append(out, piece{"~", literal}), v[1:]
			}
		}
	}
	return appendUnescaped(out, v)
}

func appendUnescaped(out []piece, v string) []piece {
	for {
		i := strings.IndexByte(v, '\\')
		if i < 0 || i+1 == len(v) {
			break
		}
		_, n := utf8.DecodeRuneInString(v[i+1:])
		if i > 0 {
			out = append(out, piece{v[:i], literal})
		}
		if v[i+1] != '\n' {
			out = append(out, piece{v[i+1 : i+1+n], quoted})
		}
		v = v[i+1+n:]
	}
	if v != "" {
		out = append(out, piece{v, literal})
	}
	return out
}

// tilde expands ~ and ~user at the start of v.
func (s *shell) tilde(out []piece, v string, last, assign bool) ([]piece, string) {
	ends := "/"
	if assign {
		ends = "/:"
	}
	end := strings.IndexAny(v, ends)
	if end < 0 {
		if !last {
			return out, v // ~"x": the name goes on in quotes
		}
		end = len(v)
	}
	name := v[1:end]
	home, ok := "", false
	if name == "" {
		home, ok = s.get("HOME")
	} else if !strings.ContainsAny(name, `\`) {
		home, ok = homeOf(name)
	}
	if !ok {
		return out, v
	}
	return append(out, piece{home, quoted}), v[end:]
}

// homeOf reads a user's home from /etc/passwd.
func homeOf(user string) (string, bool) {
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) >= 6 && f[0] == user {
			return f[5], true
		}
	}
	return "", false
}

// unescape removes the backslash before each of the given characters; one
// before a newline takes the newline with it.
func unescape(v, chars string) string {
	if strings.IndexByte(v, '\\') < 0 {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) && strings.IndexByte(chars, v[i+1]) >= 0 {
			i++
			if v[i] == '\n' {
				continue
			}
		}
		b.WriteByte(v[i])
	}
	return b.String()
}

// expandPart expands a part that is not unquoted text; inQuotes inside "..." or
// a here-document.
func (s *shell) expandPart(out []piece, part syntax.WordPart, inQuotes bool) []piece {
	kind := expanded
	if inQuotes {
		kind = quoted
	}
	switch p := part.(type) {
	case *syntax.Lit:
		if inQuotes {
			return append(out, piece{unescape(p.Value, "$`\"\\\n"), quoted})
		}
		return appendUnescaped(out, p.Value)
	case *syntax.SglQuoted:
		v := p.Value
		if p.Dollar {
			var b strings.Builder
			scriptcmd.Unescape(&b, strings.ReplaceAll(v, `\'`, `'`), false)
			v = b.String()
		}
		return append(out, piece{v, quoted})
	case *syntax.DblQuoted:
		before := len(out)
		for _, q := range p.Parts {
			out = s.expandPart(out, q, true)
		}
		if len(out) == before && !(len(s.params) == 0 && onlyAllParams(p.Parts)) {
			out = append(out, piece{"", quoted})
		}
		return out
	case *syntax.ParamExp:
		return s.expandParam(out, p, inQuotes)
	case *syntax.CmdSubst:
		return append(out, piece{s.substitute(p), kind})
	case *syntax.ArithmExp:
		return append(out, piece{strconv.FormatInt(s.arith(p.X), 10), kind})
	case *syntax.ExtGlob:
		return append(out, piece{p.Op.String() + p.Pattern.Value + ")", literal})
	}
	panic(s.fail(2, "%s: process substitution is not supported; use a pipe or a file", part.Pos()))
}

// onlyAllParams reports whether a quoted string is nothing but $@, which without
// parameters makes no field at all.
func onlyAllParams(parts []syntax.WordPart) bool {
	for _, p := range parts {
		if e, ok := p.(*syntax.ParamExp); !ok || e.Param == nil || e.Param.Value != "@" {
			return false
		}
	}
	return len(parts) > 0
}

// substitute runs a command substitution and returns its output without the
// newlines at the end.
func (s *shell) substitute(cs *syntax.CmdSubst) string {
	if len(cs.Stmts) == 0 {
		s.substStatus = 0
		return ""
	}
	if st := cs.Stmts[0]; len(cs.Stmts) == 1 && st.Cmd == nil && len(st.Redirs) == 1 && st.Redirs[0].Op == syntax.RdrIn {
		return s.fileText(s.text(st.Redirs[0].Word)) // $(<file)
	}
	r, w := s.pipe()
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r) // a read error leaves what came before it
		got <- b
	}()
	c := s.clone()
	c.fds.put(1, &desc{file: w})
	s.substStatus = c.runSubshell(func() { c.stmts(cs.Stmts) })
	b := <-got
	r.Close()
	if strings.IndexByte(string(b), 0) >= 0 {
		b = []byte(strings.ReplaceAll(string(b), "\x00", ""))
	}
	return strings.TrimRight(string(b), "\n")
}

func (s *shell) fileText(path string) string {
	b, err := os.ReadFile(abs(s.dir, path))
	s.substStatus = 0
	if err != nil {
		s.errorf("%s: %v", path, cause(err))
		s.substStatus = 1
	}
	return strings.TrimRight(string(b), "\n")
}

// pipe makes a pipe of blocking files, which children can use as they are.
func (s *shell) pipe() (r, w *os.File) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		panic(s.fail(2, "make a pipe: %v", err))
	}
	return os.NewFile(uintptr(fd[0]), "pipe"), os.NewFile(uintptr(fd[1]), "pipe")
}
