package text

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/applet/posixre"
	"weft/init/unit"
)

// Sed edits a stream. All commands of POSIX sed are there (a b c d D g G h H i l n
// N p P q Q r s t T w x y = : { } #), with GNU's one-line forms of a, c, i, -i and
// the flags g p i N w of s. Back-references in a pattern are not (see posixre); in
// the replacement & and \1 to \9 are, and \n, \t, \U \L \E \u \l.
func Sed(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(inPlaceSuffix(c), "ne:f:iErsS: quiet=n silent=n expression=e file=f in-place=i regexp-extended=E separate=s suffix=S", `[-nErs] [-i[SUFFIX]] [-e SCRIPT]... [-f FILE]... [SCRIPT] [FILE]...
  -n  print only what p prints   -i  edit files in place (with SUFFIX: keep the old one)
  -E, -r  extended regular expressions   -s  each file by itself
Example: sed -i 's/^#*Port .*/Port 2222/' /etc/ssh/sshd_config`)
	if code >= 0 {
		return code
	}
	var script strings.Builder
	args := o.Args
	given := false
	for _, e := range o.Order {
		switch e.Letter {
		case 'e':
			script.WriteString(e.Value + "\n")
			given = true
		case 'f':
			in, err := open(c, e.Value)
			if err != nil {
				return fail(c, err)
			}
			b, err := io.ReadAll(in)
			in.Close()
			if err != nil {
				return fail(c, err)
			}
			script.Write(b)
			script.WriteByte('\n')
			given = true
		}
	}
	if !given {
		if len(args) == 0 {
			return o.Fail("which script?")
		}
		script.WriteString(args[0])
		args = args[1:]
	}
	prog, err := parseSed(script.String(), o.Has('E') || o.Has('r'))
	if err != nil {
		fmt.Fprintf(c.Stderr, "sed: %v\n", err)
		return 1
	}
	quiet := o.Has('n') || prog.quiet
	if !o.Has('i') {
		s := newStream(ctx, c, prog, quiet, c.Stdout)
		code := s.run(orInput(args), o.Has('s'))
		return s.finish(code)
	}
	code = 0
	for _, name := range args {
		n, err := sedInPlace(ctx, c, prog, quiet, name, o.Value('S', ""))
		if err != nil {
			n = fail(c, err)
		}
		code = max(code, n)
	}
	return code
}

// inPlaceSuffix turns -iSUFFIX into -i -S SUFFIX: unlike other options, -i takes
// a value only when it is joined.
func inPlaceSuffix(c *unit.Call) *unit.Call {
	call := *c
	call.Args = call.Args[:1:1]
	for i, a := range c.Args[1:] {
		switch {
		case a == "--":
			call.Args = append(call.Args, c.Args[1+i:]...)
			return &call
		case strings.HasPrefix(a, "--in-place="):
			call.Args = append(call.Args, "-i", "-S", a[len("--in-place="):])
		case len(a) > 1 && a[0] == '-' && a[1] != '-':
			n := strings.IndexByte(a, 'i')
			if v := strings.IndexAny(a, "ef"); n > 0 && (v < 0 || n < v) && n+1 < len(a) && strings.Trim(a[n+1:], "nErse") != "" {
				call.Args = append(call.Args, a[:n+1], "-S", a[n+1:])
				continue
			}
			call.Args = append(call.Args, a)
		default:
			call.Args = append(call.Args, a)
		}
	}
	return &call
}

// sedInPlace edits a file so that at any moment the old or the new one is there.
func sedInPlace(ctx context.Context, c *unit.Call, prog *sedProgram, quiet bool, name, suffix string) (int, error) {
	path, err := filepath.EvalSymlinks(c.Path(name))
	if err != nil {
		return 1, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return 1, err
	}
	if !st.Mode().IsRegular() {
		return 1, fmt.Errorf("%s: is no regular file and cannot be edited in place", name)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return 1, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	call := *c
	s := newStream(ctx, &call, prog, quiet, tmp)
	code := s.finish(s.run([]string{name}, false))
	if ctx.Err() != nil {
		return 1, ctx.Err()
	}
	var own unix.Stat_t
	if err := unix.Stat(path, &own); err != nil {
		return 1, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if err := tmp.Chown(int(own.Uid), int(own.Gid)); err != nil && os.Geteuid() == 0 {
		return 1, err
	}
	err = unix.Fchmod(int(tmp.Fd()), own.Mode&0o7777)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return 1, err
	}
	if suffix != "" {
		backup := path + suffix
		if strings.Contains(suffix, "*") {
			backup = filepath.Join(filepath.Dir(path), strings.ReplaceAll(suffix, "*", filepath.Base(path)))
		}
		os.Remove(backup)
		if err := os.Link(path, backup); err != nil {
			return 1, err
		}
	}
	return code, os.Rename(tmp.Name(), path)
}

// sedProgram is a parsed script.
type sedProgram struct {
	cmds   []*sedCmd
	labels map[string]int
	quiet  bool // #n in the first line
}

type sedAddr struct {
	kind    byte // n line, $ last, / pattern, s step, + count, ~ multiple, 0
	n, step int
	re      *regexp.Regexp // nil with kind '/': the last one used
}

type sedCmd struct {
	a, b   *sedAddr
	negate bool
	name   byte
	text   string // label, file name, or the text of a, c, i
	jump   int    // of { : the command after its }
	n      int    // exit code of q, width of l

	re     *regexp.Regexp
	repl   []sedPart
	global bool
	nth    int
	print  bool
	y      map[rune]rune
	on     bool // inside a range
	end    int  // line that ends it
}

// sedPart is a piece of a replacement: text, a group, or a change of case.
type sedPart struct {
	text  string
	group int // -1: text
	fold  byte
}

type sedParser struct {
	s        string
	i        int
	extended bool
	depth    []*sedCmd
	prog     *sedProgram
}

// parseSed parses a script.
func parseSed(script string, extended bool) (*sedProgram, error) {
	p := &sedParser{s: script, extended: extended, prog: &sedProgram{labels: make(map[string]int)}}
	if strings.HasPrefix(script, "#n\n") || script == "#n" {
		p.prog.quiet = true
	}
	for {
		p.skip(" \t\n;")
		if p.i >= len(p.s) {
			break
		}
		if err := p.command(); err != nil {
			line := strings.Count(p.s[:min(p.i, len(p.s))], "\n") + 1
			return nil, fmt.Errorf("script, line %d, character %d: %w", line, p.i-strings.LastIndexByte(p.s[:min(p.i, len(p.s))], '\n'), err)
		}
	}
	if len(p.depth) > 0 {
		return nil, errors.New("script: a { is not closed")
	}
	for _, c := range p.prog.cmds {
		if strings.IndexByte("btT", c.name) >= 0 && c.text != "" {
			if _, ok := p.prog.labels[c.text]; !ok {
				return nil, fmt.Errorf("script: there is no label %q", c.text)
			}
		}
	}
	return p.prog, nil
}

func (p *sedParser) skip(chars string) {
	for p.i < len(p.s) && strings.IndexByte(chars, p.s[p.i]) >= 0 {
		p.i++
	}
}

func (p *sedParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *sedParser) command() error {
	c := &sedCmd{nth: 1}
	var err error
	if c.a, err = p.address(); err != nil {
		return err
	}
	if c.a != nil {
		p.skip(" \t")
		if p.peek() == ',' {
			p.i++
			p.skip(" \t")
			if c.b, err = p.address2(); err != nil {
				return err
			}
		}
	}
	p.skip(" \t")
	for p.peek() == '!' {
		c.negate = true
		p.i++
		p.skip(" \t")
	}
	if p.i >= len(p.s) {
		return errors.New("a command is missing after the address")
	}
	c.name = p.s[p.i]
	p.i++
	if c.a != nil && c.a.kind == '0' && (c.b == nil || c.b.kind != '/') {
		return errors.New("line 0 is only possible before a pattern: 0,/x/")
	}
	switch c.name {
	case '#':
		if c.a != nil {
			return errors.New("a comment takes no address")
		}
		for p.i < len(p.s) && p.s[p.i] != '\n' {
			p.i++
		}
		return nil
	case ':':
		if c.a != nil {
			return errors.New("a label takes no address")
		}
		label := p.word("\n;")
		if label == "" {
			return errors.New("a label needs a name")
		}
		p.prog.labels[label] = len(p.prog.cmds)
		return nil
	case '{':
		p.depth = append(p.depth, c)
		p.prog.cmds = append(p.prog.cmds, c)
		return nil
	case '}':
		if c.a != nil {
			return errors.New("} takes no address")
		}
		if len(p.depth) == 0 {
			return errors.New("} without {")
		}
		p.depth[len(p.depth)-1].jump = len(p.prog.cmds)
		p.depth = p.depth[:len(p.depth)-1]
		return p.endOfCommand()
	case 'b', 't', 'T':
		c.text = p.word("\n;}")
	case 'r', 'R', 'w', 'W':
		if c.name == 'R' || c.name == 'W' {
			return fmt.Errorf("command %c is not supported", c.name)
		}
		if c.text = p.word("\n"); c.text == "" {
			return fmt.Errorf("%c needs the name of a file", c.name)
		}
	case 'a', 'i', 'c':
		if c.text, err = p.textBlock(); err != nil {
			return err
		}
	case 's':
		if err := p.substitute(c); err != nil {
			return err
		}
	case 'y':
		if err := p.translate(c); err != nil {
			return err
		}
	case 'q', 'Q', 'l', 'L':
		p.skip(" \t")
		start := p.i
		for p.peek() >= '0' && p.peek() <= '9' {
			p.i++
		}
		c.n, _ = strconv.Atoi(p.s[start:p.i]) // digits only; none is 0
		if c.name == 'q' || c.name == 'Q' {
			if c.b != nil {
				return fmt.Errorf("%c takes at most one address", c.name)
			}
		}
	case 'd', 'D', 'g', 'G', 'h', 'H', 'n', 'N', 'p', 'P', 'x', '=':
	default:
		return fmt.Errorf("there is no command %q", string(rune(c.name)))
	}
	p.prog.cmds = append(p.prog.cmds, c)
	return p.endOfCommand()
}

// endOfCommand checks that nothing follows that does not belong there.
func (p *sedParser) endOfCommand() error {
	p.skip(" \t")
	switch p.peek() {
	case 0, '\n', ';', '}', '#':
		return nil
	}
	return fmt.Errorf("unexpected %q after a command", p.s[p.i:min(p.i+10, len(p.s))])
}

func (p *sedParser) word(ends string) string {
	p.skip(" \t")
	start := p.i
	for p.i < len(p.s) && strings.IndexByte(ends, p.s[p.i]) < 0 {
		p.i++
	}
	return strings.TrimRight(p.s[start:p.i], " \t")
}

func (p *sedParser) number() int {
	start := p.i
	for p.peek() >= '0' && p.peek() <= '9' {
		p.i++
	}
	n, _ := strconv.Atoi(p.s[start:p.i])
	return n
}

func (p *sedParser) address() (*sedAddr, error) {
	ch := p.peek()
	switch {
	case ch >= '0' && ch <= '9':
		n := p.number()
		if p.peek() == '~' {
			p.i++
			return &sedAddr{kind: 's', n: n, step: p.number()}, nil
		}
		if n == 0 {
			return &sedAddr{kind: '0'}, nil
		}
		return &sedAddr{kind: 'n', n: n}, nil
	case ch == '$':
		p.i++
		return &sedAddr{kind: '$'}, nil
	case ch == '/' || ch == '\\':
		if ch == '\\' {
			p.i++
		}
		if p.i >= len(p.s) {
			return nil, errors.New("a delimiter must follow the backslash")
		}
		delim := p.s[p.i]
		p.i++
		pattern, err := p.until(delim, true)
		if err != nil {
			return nil, err
		}
		o := posixre.Options{Extended: p.extended}
		for p.peek() == 'I' || p.peek() == 'M' {
			if p.s[p.i] == 'M' {
				return nil, errors.New("flag M is not supported")
			}
			o.IgnoreCase = true
			p.i++
		}
		if pattern == "" {
			return &sedAddr{kind: '/'}, nil
		}
		re, err := posixre.Compile(pattern, o)
		return &sedAddr{kind: '/', re: re}, err
	}
	return nil, nil
}

func (p *sedParser) address2() (*sedAddr, error) {
	switch p.peek() {
	case '+', '~':
		kind := p.s[p.i]
		p.i++
		return &sedAddr{kind: kind, n: p.number()}, nil
	}
	a, err := p.address()
	if err == nil && a == nil {
		err = errors.New("an address must follow the comma")
	}
	return a, err
}

// until reads up to an unquoted delimiter. In a pattern a quoted delimiter loses
// its backslash, brackets protect it, and \n is left for the pattern to read.
func (p *sedParser) until(delim byte, pattern bool) (string, error) {
	var b strings.Builder
	bracket := false
	start := 0
	for p.i < len(p.s) {
		ch := p.s[p.i]
		switch {
		case bracket:
			if ch == ']' && p.i > start {
				bracket = false
			}
			if ch == '[' && p.i+1 < len(p.s) && p.s[p.i+1] == ':' {
				if n := strings.Index(p.s[p.i:], ":]"); n > 0 {
					b.WriteString(p.s[p.i : p.i+n+2])
					p.i += n + 2
					continue
				}
			}
		case ch == delim:
			p.i++
			return b.String(), nil
		case ch == '\\' && p.i+1 < len(p.s):
			next := p.s[p.i+1]
			p.i += 2
			if next == delim && pattern {
				if strings.IndexByte(`.*[]^$+?(){}|`, delim) >= 0 {
					b.WriteByte('\\')
				}
				b.WriteByte(delim)
				continue
			}
			if next == delim && !pattern && next != '&' && !(next >= '1' && next <= '9') && next != 'n' {
				b.WriteByte(delim)
				continue
			}
			b.WriteByte('\\')
			b.WriteByte(next)
			continue
		case ch == '[' && pattern:
			bracket = true
			start = p.i + 1
			if start < len(p.s) && p.s[start] == '^' {
				start++
			}
		case ch == '\n' && pattern:
			return "", errors.New("a pattern ends with its line (\\n stands for a newline)")
		}
		b.WriteByte(ch)
		p.i++
	}
	return "", fmt.Errorf("%q is missing at the end", string(rune(delim)))
}

// textBlock reads the text of a, c, i: in one line, or in POSIX's form with
// backslash-newline.
func (p *sedParser) textBlock() (string, error) {
	p.skip(" \t")
	if p.peek() == '\\' {
		p.i++
		p.skip(" \t")
		if p.peek() == '\n' {
			p.i++
		}
	}
	if p.i >= len(p.s) {
		return "", errors.New("a text is missing")
	}
	var b strings.Builder
	for p.i < len(p.s) && p.s[p.i] != '\n' {
		if p.s[p.i] == '\\' && p.i+1 < len(p.s) {
			p.i++
			if p.s[p.i] == 't' {
				b.WriteByte('\t')
				p.i++
				continue
			}
		}
		b.WriteByte(p.s[p.i])
		p.i++
	}
	return b.String() + "\n", nil
}

func (p *sedParser) substitute(c *sedCmd) error {
	if p.i >= len(p.s) || p.s[p.i] == '\n' || p.s[p.i] == '\\' {
		return errors.New("s needs a delimiter")
	}
	delim := p.s[p.i]
	p.i++
	pattern, err := p.until(delim, true)
	if err != nil {
		return err
	}
	repl, err := p.until(delim, false)
	if err != nil {
		return err
	}
	o := posixre.Options{Extended: p.extended}
	for {
		switch ch := p.peek(); {
		case ch == 'g':
			c.global = true
		case ch == 'p':
			c.print = true
		case ch == 'i' || ch == 'I':
			o.IgnoreCase = true
		case ch >= '1' && ch <= '9':
			c.nth = p.number()
			continue
		case ch == 'w':
			p.i++
			if c.text = p.word("\n"); c.text == "" {
				return errors.New("flag w needs the name of a file")
			}
			continue
		case ch == 'e' || ch == 'm' || ch == 'M':
			return fmt.Errorf("flag %c of s is not supported", ch)
		default:
			groups := 9
			if pattern != "" {
				if c.re, err = posixre.Compile(pattern, o); err != nil {
					return err
				}
				groups = c.re.NumSubexp()
			}
			c.repl, err = parseReplacement(repl, groups)
			return err
		}
		p.i++
	}
}

func parseReplacement(s string, groups int) ([]sedPart, error) {
	var out []sedPart
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			out = append(out, sedPart{text: b.String(), group: -1})
			b.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '&':
			flush()
			out = append(out, sedPart{group: 0})
		case s[i] == '\\' && i+1 < len(s):
			i++
			switch n := s[i]; {
			case n >= '0' && n <= '9':
				if int(n-'0') > groups {
					return nil, fmt.Errorf(`\%c: the pattern has %d groups`, n, groups)
				}
				flush()
				out = append(out, sedPart{group: int(n - '0')})
			case n == 'n':
				b.WriteByte('\n')
			case n == 't':
				b.WriteByte('\t')
			case n == 'r':
				b.WriteByte('\r')
			case strings.IndexByte("ULEul", n) >= 0:
				flush()
				out = append(out, sedPart{group: -1, fold: n})
			default:
				b.WriteByte(n)
			}
		default:
			b.WriteByte(s[i])
		}
	}
	flush()
	return out, nil
}

func (p *sedParser) translate(c *sedCmd) error {
	if p.i >= len(p.s) {
		return errors.New("y needs a delimiter")
	}
	delim := p.s[p.i]
	p.i++
	from, err := p.until(delim, false)
	if err != nil {
		return err
	}
	to, err := p.until(delim, false)
	if err != nil {
		return err
	}
	plain := func(s string) []rune {
		return []rune(strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t").Replace(s))
	}
	a, b := plain(from), plain(to)
	if len(a) != len(b) {
		return errors.New("the two sides of y differ in length")
	}
	c.y = make(map[rune]rune, len(a))
	for i := range a {
		if _, ok := c.y[a[i]]; !ok {
			c.y[a[i]] = b[i]
		}
	}
	return nil
}

// sedStream is a run of a program.
type sedStream struct {
	ctx   context.Context
	c     *unit.Call
	prog  *sedProgram
	quiet bool
	out   *bufio.Writer
	files map[string]*os.File // of w

	names   []string
	in      io.ReadCloser
	lr      *lineReader
	next    *string // read ahead, to know the last line
	nextEnd bool    // it had a newline
	line    int

	space, hold string
	newline     bool // the current line had one
	appended    []func() error
	changed     bool // for t
	last        *regexp.Regexp
	code        int
}

func newStream(ctx context.Context, c *unit.Call, prog *sedProgram, quiet bool, out io.Writer) *sedStream {
	for _, cmd := range prog.cmds {
		cmd.on = false
	}
	return &sedStream{ctx: ctx, c: c, prog: prog, quiet: quiet, out: bufio.NewWriterSize(out, 16*1024)}
}

func (s *sedStream) finish(code int) int {
	if s.in != nil {
		s.in.Close()
	}
	for _, f := range s.files {
		if err := f.Close(); err != nil {
			code = fail(s.c, err)
		}
	}
	if s.out.Flush() != nil {
		return max(code, 1)
	}
	return max(code, s.code)
}

// fetch reads a line ahead; next stays nil at the end.
func (s *sedStream) fetch() {
	for {
		if s.lr == nil {
			if len(s.names) == 0 {
				s.next = nil
				return
			}
			in, err := open(s.c, s.names[0])
			s.names = s.names[1:]
			if err != nil {
				s.code = fail(s.c, err)
				continue
			}
			s.in, s.lr = in, newLineReader(s.ctx, in)
		}
		line, complete, err := s.lr.next()
		if err == nil {
			s.next, s.nextEnd = &line, complete
			return
		}
		if err != io.EOF {
			s.code = fail(s.c, err)
		}
		s.in.Close()
		s.in, s.lr = nil, nil
	}
}

func (s *sedStream) run(names []string, separate bool) int {
	if separate && len(names) > 1 {
		code := 0
		for _, n := range names {
			s.line = 0
			code = max(code, s.run([]string{n}, false))
		}
		return code
	}
	s.names = names
	s.fetch()
	for s.advance() {
		quit, code := s.cycle()
		if quit {
			return code
		}
		if s.ctx.Err() != nil {
			return 1
		}
	}
	return 0
}

// advance makes the next line the pattern space.
func (s *sedStream) advance() bool {
	if s.next == nil {
		return false
	}
	s.space, s.newline = *s.next, s.nextEnd
	s.line++
	if s.lr != nil && s.lr.r.Buffered() == 0 {
		s.out.Flush() // what is waited for is shown
	}
	s.fetch()
	return true
}

func (s *sedStream) print(text string) {
	s.out.WriteString(text)
	if s.newline || s.next != nil {
		s.out.WriteByte('\n')
	}
}

// flushAppended writes what a and r left for the end of the cycle.
func (s *sedStream) flushAppended() {
	for _, f := range s.appended {
		if err := f(); err != nil {
			s.code = fail(s.c, err)
		}
	}
	s.appended = s.appended[:0]
}

func (s *sedStream) endCycle() {
	if !s.quiet {
		s.print(s.space)
	}
	s.flushAppended()
}

// maxJumps bounds the branches of one cycle: a script that never ends is told so.
const maxJumps = 10_000_000

// cycle runs the program on the pattern space.
func (s *sedStream) cycle() (quit bool, code int) {
	s.changed = false
	jumps := 0
restart:
	for i := 0; i < len(s.prog.cmds); i++ {
		c := s.prog.cmds[i]
		if s.selects(c) == c.negate {
			if c.name == '{' {
				i = c.jump - 1
			}
			continue
		}
		switch c.name {
		case '{':
		case 'a':
			s.appended = append(s.appended, func() error { _, err := s.out.WriteString(c.text); return err })
		case 'i':
			s.out.WriteString(c.text)
		case 'c':
			if c.b == nil || !c.on || c.negate {
				s.out.WriteString(c.text)
			}
			s.flushAppended()
			return false, 0
		case 'b', 't', 'T':
			if c.name == 't' && !s.changed || c.name == 'T' && s.changed {
				s.changed = false
				continue
			}
			if c.name != 'b' {
				s.changed = false
			}
			if jumps++; jumps > maxJumps || s.ctx.Err() != nil {
				return true, failf(s.c, "line %d: the script goes round without end", s.line)
			}
			if c.text == "" {
				s.endCycle()
				return false, 0
			}
			i = s.prog.labels[c.text] - 1
		case 'd':
			s.flushAppended()
			return false, 0
		case 'D':
			_, rest, ok := strings.Cut(s.space, "\n")
			s.flushAppended()
			if !ok {
				return false, 0
			}
			s.space = rest
			if jumps++; jumps > maxJumps {
				return true, failf(s.c, "line %d: the script goes round without end", s.line)
			}
			goto restart
		case 'g':
			s.space = s.hold
		case 'G':
			s.space += "\n" + s.hold
		case 'h':
			s.hold = s.space
		case 'H':
			s.hold += "\n" + s.space
		case 'x':
			s.space, s.hold = s.hold, s.space
		case 'l':
			s.out.WriteString(visible(s.space))
		case 'n':
			if s.next == nil {
				s.endCycle()
				return true, 0
			}
			s.endCycle()
			s.advance()
		case 'N':
			if s.next == nil {
				s.endCycle() // GNU: what is there is printed
				return true, 0
			}
			before := s.space
			s.flushAppended()
			s.advance()
			s.space = before + "\n" + s.space
		case 'p':
			s.print(s.space)
		case 'P':
			first, _, _ := strings.Cut(s.space, "\n")
			s.out.WriteString(first + "\n")
		case 'q':
			s.endCycle()
			return true, c.n
		case 'Q':
			return true, c.n
		case 'r':
			s.appended = append(s.appended, func() error {
				f, err := open(s.c, c.text)
				if err != nil {
					return nil // POSIX: as if it were empty
				}
				defer f.Close()
				_, err = io.Copy(s.out, f)
				return err
			})
		case 's':
			if s.substitute(c) {
				s.changed = true
				if c.print {
					s.print(s.space)
				}
				if c.text != "" {
					if err := s.write(c.text, s.space); err != nil {
						return true, fail(s.c, err)
					}
				}
			}
		case 'w':
			if err := s.write(c.text, s.space); err != nil {
				return true, fail(s.c, err)
			}
		case 'y':
			s.space = strings.Map(func(r rune) rune {
				if t, ok := c.y[r]; ok {
					return t
				}
				return r
			}, s.space)
		case '=':
			fmt.Fprintf(s.out, "%d\n", s.line)
		}
	}
	s.endCycle()
	return false, 0
}

func (s *sedStream) selects(c *sedCmd) bool {
	if c.a == nil {
		return true
	}
	if c.b == nil {
		return s.hits(c.a)
	}
	if !c.on {
		if c.a.kind == '0' {
			if s.line > 1 {
				return false
			}
		} else if !s.hits(c.a) {
			return false
		}
		c.on = true
		switch c.b.kind {
		case 'n':
			if c.b.n <= s.line {
				c.on = false
			}
			c.end = c.b.n
		case '+':
			c.end = s.line + c.b.n
			c.on = c.b.n > 0
		case '~':
			c.end = s.line
			if c.b.n > 0 {
				c.end = (s.line + c.b.n - 1) / c.b.n * c.b.n
			}
			c.on = c.end > s.line
		case '$':
			c.on = s.next != nil
		case '/':
			if c.a.kind == '0' && s.hits(c.b) {
				c.on = false
			}
		}
		return true
	}
	switch c.b.kind {
	case 'n', '+', '~':
		if s.line >= c.end {
			c.on = false
			return s.line == c.end || c.b.kind != 'n'
		}
	default:
		if s.hits(c.b) {
			c.on = false
		}
	}
	return true
}

func (s *sedStream) hits(a *sedAddr) bool {
	switch a.kind {
	case 'n':
		return s.line == a.n
	case '$':
		return s.next == nil
	case 's':
		if a.step == 0 {
			return s.line == a.n
		}
		return s.line >= a.n && (s.line-a.n)%a.step == 0
	case '/':
		re := a.re
		if re == nil {
			re = s.last
		}
		if re == nil {
			return false
		}
		s.last = re
		return re.MatchString(s.space)
	}
	return false
}

// substitute is s///; it reports whether something was replaced.
func (s *sedStream) substitute(c *sedCmd) bool {
	re := c.re
	if re == nil {
		re = s.last
	}
	if re == nil {
		return false
	}
	s.last = re
	// All matches at once, so that ^ and \b see the whole line.
	limit := c.nth
	if c.global {
		limit = -1
	}
	var b strings.Builder
	at, n := 0, 0
	for _, m := range re.FindAllStringSubmatchIndex(s.space, limit) {
		if n++; n < c.nth {
			continue
		}
		b.WriteString(s.space[at:m[0]])
		expand(&b, c.repl, s.space, m)
		at = m[1]
	}
	if n < c.nth {
		return false
	}
	b.WriteString(s.space[at:])
	s.space = b.String()
	return true
}

// expand writes the replacement of a match.
func expand(b *strings.Builder, parts []sedPart, s string, m []int) {
	var mode, once byte
	for _, p := range parts {
		if p.fold != 0 {
			switch p.fold {
			case 'u', 'l':
				once = p.fold
			case 'E':
				mode = 0
			default:
				mode = p.fold
			}
			continue
		}
		text := p.text
		if p.group >= 0 {
			text = ""
			if 2*p.group+1 < len(m) && m[2*p.group] >= 0 {
				text = s[m[2*p.group]:m[2*p.group+1]]
			}
		}
		switch mode {
		case 'U':
			text = strings.ToUpper(text)
		case 'L':
			text = strings.ToLower(text)
		}
		if once != 0 && text != "" {
			r := []rune(text)
			first := strings.ToUpper(string(r[:1]))
			if once == 'l' {
				first = strings.ToLower(string(r[:1]))
			}
			text, once = first+string(r[1:]), 0
		}
		b.WriteString(text)
	}
}

// write appends a line to a file of w; /dev/stdout and /dev/stderr are the applet's.
func (s *sedStream) write(name, line string) error {
	switch name {
	case "/dev/stdout":
		_, err := s.out.WriteString(line + "\n")
		return err
	case "/dev/stderr":
		_, err := fmt.Fprintln(s.c.Stderr, line)
		return err
	}
	f := s.files[name]
	if f == nil {
		var err error
		if f, err = os.Create(s.c.Path(name)); err != nil {
			return err
		}
		if s.files == nil {
			s.files = make(map[string]*os.File)
		}
		s.files[name] = f
	}
	_, err := f.WriteString(line + "\n")
	return err
}

// visible is the form of l: escapes, a $ at the end, lines of at most 70 characters.
func visible(s string) string {
	var b strings.Builder
	width := 0
	put := func(t string) {
		if width+len(t) > 69 {
			b.WriteString("\\\n")
			width = 0
		}
		b.WriteString(t)
		width += len(t)
	}
	for i := 0; i < len(s); i++ {
		switch ch := s[i]; {
		case ch == '\\':
			put(`\\`)
		case strings.IndexByte("\a\b\f\n\r\t\v", ch) >= 0:
			put(`\` + "abfnrtv"[strings.IndexByte("\a\b\f\n\r\t\v", ch):][:1])
		case ch < ' ' || ch >= 0x7f:
			put(fmt.Sprintf(`\%03o`, ch))
		default:
			put(string(rune(ch)))
		}
	}
	b.WriteString("$\n")
	return b.String()
}
