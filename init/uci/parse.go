package uci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds of what is read, so that a hostile file can take neither the memory
// of a small device nor minutes of its time. The largest files seen in the
// field (DHCP leases and firewall rules of a campus) stay a factor ten below.
const (
	// MaxSize is the largest file in bytes.
	MaxSize = 4 << 20
	// MaxEntries is the largest number of sections, options, list values,
	// comment lines and reported faults of a file together.
	MaxEntries = 1 << 17
)

// Parse reads one package. `package` lines are checked and have no effect, as
// upstream does with files in /etc/config.
//
// With strict the first fault ends it: no package, and a *ParseError. Without
// it the package holds all that could be read, and the error joins one
// *ParseError for each bad line. A read error or an exceeded bound is an error
// either way, without a package.
func Parse(name string, r io.Reader, strict bool) (*Package, error) {
	pkgs, err := parse(r, parser{name: name, single: true, strict: strict})
	if len(pkgs) == 0 {
		return nil, err
	}
	return pkgs[0], err
}

// ParseAll reads text with any number of `package` blocks, as `uci import`
// does without a name. Strictness is that of [Parse]; a package that occurs
// twice is an ErrDuplicate.
func ParseAll(r io.Reader, strict bool) ([]*Package, error) {
	return parse(r, parser{strict: strict})
}

// parser turns lines into packages.
type parser struct {
	lexer
	name   string // package to use if no `package` line gave one
	file   string // path for messages
	single bool   // ignore `package` lines
	strict bool

	pkgs    []*Package
	pkg     *Package
	section *Section
	// record is told of each change where the text is merged into pkg.
	record func(Change)

	entries int
	byName  map[string]*Section
	byOpt   map[*Section]map[string]*Option

	pending []comment // lines seen since the last statement
	last    func(trail string)
}

// comment is a comment line or, with no text, a blank line.
type comment struct {
	text     string
	indented bool
}

// maxResume bounds how often a file with unterminated quotes is read again
// from the line after the quote.
const maxResume = 16

func parse(r io.Reader, p parser) ([]*Package, error) {
	src, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", p.name, err)
	}
	if len(src) > MaxSize {
		return nil, fmt.Errorf("configuration %s is larger than %d bytes: %w", p.name, MaxSize, ErrInvalid)
	}
	p.src = src
	if p.pkg != nil {
		p.pkgs = []*Package{p.pkg}
	}
	p.byOpt = map[*Section]map[string]*Option{}
	p.reindex()
	var errs []error
	resumed := 0
	for p.next() {
		if p.entries > MaxEntries {
			return nil, p.tooMany()
		}
		from := p.rest
		p.comment = ""
		p.last = nil
		err := p.statement()
		if err == nil {
			continue
		}
		var pe *ParseError
		if !errors.As(err, &pe) || p.strict {
			return nil, err
		}
		p.entries++
		errs = append(errs, err)
		if p.eof && resumed < maxResume {
			resumed++
			p.line -= bytes.Count(p.src[from:p.rest], []byte{'\n'})
			if p.rest > from && p.src[p.rest-1] != '\n' {
				p.line--
			}
			p.rest = from
		}
	}
	if p.entries > MaxEntries {
		return nil, p.tooMany()
	}
	if p.pkg == nil && p.name != "" && len(p.pkgs) == 0 {
		p.open(p.name)
	}
	p.finish()
	return p.pkgs, errors.Join(errs...)
}

func (p *parser) tooMany() error {
	return fmt.Errorf("configuration %s has more than %d entries: %w", p.name, MaxEntries, ErrInvalid)
}

// open starts a package.
func (p *parser) open(name string) {
	p.finish()
	p.pkg = &Package{Name: name}
	p.pkgs = append(p.pkgs, p.pkg)
	p.section = nil
	p.reindex()
}

func (p *parser) reindex() {
	p.byName = map[string]*Section{}
	if p.pkg == nil {
		return
	}
	for _, s := range p.pkg.Sections {
		if p.byName[s.Name] == nil {
			p.byName[s.Name] = s
		}
	}
}

// finish gives the comments at the end of a package their place.
func (p *parser) finish() {
	if p.pkg == nil || p.record != nil {
		return
	}
	lines := p.pending
	p.pending = nil
	if p.section != nil {
		end := slices.IndexFunc(lines, func(c comment) bool { return c.text == "" })
		if end < 0 {
			end = len(lines)
		}
		p.section.tail = append(p.section.tail, texts(lines[:end])...)
		lines = lines[end:]
	}
	p.pkg.tail = joinBlocks(p.pkg.tail, blocks(lines))
}

// texts drops the blank lines.
func texts(lines []comment) []string {
	var out []string
	for _, c := range lines {
		if c.text != "" {
			out = append(out, c.text)
		}
	}
	return out
}

// blocks keeps one blank line between blocks and none around them.
func blocks(lines []comment) []string {
	var out []string
	for _, c := range lines {
		if c.text != "" || len(out) > 0 && out[len(out)-1] != "" {
			out = append(out, c.text)
		}
	}
	if n := len(out); n > 0 && out[n-1] == "" {
		out = out[:n-1]
	}
	return out
}

// statement reads one line, with the further lines its quotes run over, and
// does what it says. Several commands can stand on it, split by ` ; `.
func (p *parser) statement() error {
	indent := p.cur() == ' ' || p.cur() == '\t'
	p.skipSpace()
	if p.cur() == 0 && p.err == nil {
		p.pending = append(p.pending, comment{})
		p.entries++
		return nil
	}
	for {
		at, word := p.word()
		if p.err == nil && word == "" {
			break
		}
		if p.err == nil && word[0] == '#' {
			if p.last == nil {
				p.pending = append(p.pending, comment{trim(p.buf[at:]), indent})
				p.entries++
				return nil
			}
			p.comment = trim(p.buf[at:])
			break
		}
		if p.err == nil {
			p.command(word)
		}
		if p.err != nil {
			p.err.File = p.source()
			err := p.err
			p.err = nil
			return err
		}
		if p.fatal != nil {
			return p.fatal
		}
	}
	if p.comment != "" {
		p.entries++
		if p.last != nil {
			p.last(p.comment)
		} else {
			p.pending = append(p.pending, comment{p.comment, true})
		}
	}
	return nil
}

// source is what messages call the text.
func (p *parser) source() string {
	switch {
	case p.file != "":
		return p.file
	case p.pkg != nil:
		return p.pkg.Name
	case p.name != "":
		return p.name
	}
	return "import"
}

func (p *parser) command(word string) {
	switch word {
	case "p", "package":
		p.cmdPackage()
	case "c", "config":
		p.cmdConfig()
	case "o", "option":
		p.cmdOption(false)
	case "l", "list":
		p.cmdOption(true)
	default:
		p.fail("invalid command")
	}
}

func (p *parser) cmdPackage() {
	if !p.skipWord() {
		p.fail("package without name")
		return
	}
	name := p.arg(true, "-")
	p.endOfCommand()
	if p.err != nil || p.single {
		return
	}
	for _, pkg := range p.pkgs {
		if pkg.Name == name {
			p.fatal = fmt.Errorf("package %s occurs twice in one import: %w", name, ErrDuplicate)
			return
		}
	}
	p.open(name)
}

func (p *parser) cmdConfig() {
	if p.pkg == nil {
		if p.name == "" {
			p.fail("attempting to import a file without a package name")
			return
		}
		p.open(p.name)
	}
	if !p.skipWord() {
		p.fail("config without name")
		return
	}
	typ := p.arg(true, anyText)
	if p.err == nil && !ValidType(typ) {
		p.fail("invalid character in type field")
	}
	name := p.arg(false, "")
	p.endOfCommand()
	if p.err != nil {
		return
	}
	var s *Section
	if name != "" {
		s = p.byName[name]
	}
	if s != nil && s.Type != typ && p.strict {
		p.fail("section of different type overwrites prior section with same name")
		return
	}
	c := Change{Op: Set, Section: name, Value: typ}
	switch {
	case name == "":
		s = p.pkg.add(typ, "", true)
		c = Change{Op: AddSection, Section: s.Name, Value: typ}
	case s == nil:
		s = p.pkg.add(typ, name, false)
	default:
		s.Type = typ
	}
	if p.byName[s.Name] == nil {
		p.byName[s.Name] = s
	}
	p.entries++
	if p.record != nil {
		p.record(c)
	} else {
		p.placeAbove(s)
	}
	p.section = s
	p.last = func(trail string) {
		if p.record != nil {
			return
		}
		if s.trail != "" {
			s.lead = append(s.lead, s.trail)
		}
		s.trail = trail
	}
}

// placeAbove shares the comment lines above a header out: those that follow
// the options before it, those set off by blank lines, those directly above.
func (p *parser) placeAbove(s *Section) {
	lines := p.pending
	p.pending = nil
	first := slices.IndexFunc(lines, func(c comment) bool { return c.text == "" })
	if p.section != nil {
		end := first
		if end < 0 { // no blank line at all: the indented ones belong to what is before
			end = 0
			for end < len(lines) && lines[end].indented {
				end++
			}
		}
		p.section.tail = append(p.section.tail, texts(lines[:end])...)
		lines = lines[end:]
	}
	lead := len(lines)
	for lead > 0 && lines[lead-1].text != "" {
		lead--
	}
	s.lead = append(s.lead, texts(lines[lead:])...)
	s.before = joinBlocks(s.before, blocks(lines[:lead]))
}

func (p *parser) cmdOption(list bool) {
	if p.section == nil {
		p.fail("option/list command found before the first section")
		return
	}
	if !p.skipWord() {
		p.fail("option without name")
		return
	}
	name := p.arg(true, "")
	value := p.arg(false, anyText)
	p.endOfCommand()
	if p.err != nil {
		return
	}
	if value == "" && !list {
		return // no effect, not even on an earlier value
	}
	p.entries++
	s := p.section
	o := p.option(s, name)
	c := Change{Op: Set, Section: s.Name, Option: name, Value: value}
	if list {
		c.Op = ListAdd
		o.IsList = true
		o.Values = append(o.Values, value)
	} else {
		if !o.IsList && len(o.Values) == 1 && o.Values[0] == value {
			c.Op = -1
		}
		o.assign(value)
	}
	if p.record != nil {
		if c.Op >= 0 {
			p.record(c)
		}
		p.pending = nil
		p.last = func(string) {}
		return
	}
	at := len(o.Values) - 1
	o.annotate(at, note{lead: texts(p.pending)})
	p.pending = nil
	p.last = func(trail string) { o.annotate(at, note{trail: trail}) }
}

// option finds or makes an option; sections with many of them get an index,
// so that a long file is read in linear time.
func (p *parser) option(s *Section, name string) *Option {
	const many = 16
	index := p.byOpt[s]
	if index == nil && len(s.Options) >= many {
		index = make(map[string]*Option, 2*many)
		for _, o := range s.Options {
			index[o.Name] = o
		}
		p.byOpt[s] = index
	}
	o := index[name]
	if index == nil {
		o = s.Option(name)
	}
	if o == nil {
		o = &Option{Name: name}
		s.Options = append(s.Options, o)
		if index != nil {
			index[name] = o
		}
	}
	return o
}

// endOfCommand takes what may follow the last argument: nothing, or `;`.
func (p *parser) endOfCommand() {
	if p.arg(false, anyText) != "" && p.strict {
		p.fail("too many arguments")
	}
}

// lexer cuts lines into words. It works in place on a copy of the line, as
// upstream does, because that decides corner cases: where a `;` counts, and
// the offsets in messages.
type lexer struct {
	src   []byte        // whole input, or the line that feed gave last
	feed  func() []byte // gives the next line, nil at the end; nil: src is all
	rest  int           // start of what is not read yet
	line  int           // lines read
	start int           // line on which buf begins
	eof   bool          // the last statement ran into the end of the input

	buf     []byte // the line, continuation lines joined
	pos     int
	comment string // comment that ended the line
	err     *ParseError
	fatal   error // an error that is not a matter of grammar
}

// next starts a new line; false at the end.
func (l *lexer) next() bool {
	l.pos, l.eof, l.fatal = 0, false, nil
	l.start = l.line + 1
	return l.more(0)
}

// more puts the next line of input into buf at offset at.
func (l *lexer) more(at int) bool {
	l.buf = l.buf[:at]
	if l.rest >= len(l.src) && l.feed != nil {
		l.src, l.rest = l.feed(), 0
	}
	if l.rest >= len(l.src) {
		l.eof = true
		return false
	}
	end := len(l.src)
	if i := bytes.IndexByte(l.src[l.rest:], '\n'); i >= 0 {
		end = l.rest + i + 1
	}
	l.line++
	text := l.src[l.rest:end]
	l.rest = end
	if bytes.IndexByte(text, 0) >= 0 {
		l.fail("invalid character: NUL")
		return true
	}
	l.buf = append(l.buf, text...)
	return true
}

// fail notes the first fault of a statement at the current position.
func (l *lexer) fail(msg string) {
	if l.err == nil {
		l.err = &ParseError{Line: l.line, Byte: l.pos, Msg: msg, Start: l.start}
	}
}

func (l *lexer) at(i int) byte {
	if i < len(l.buf) {
		return l.buf[i]
	}
	return 0
}

func (l *lexer) cur() byte { return l.at(l.pos) }

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func trim(b []byte) string { return strings.Trim(string(b), " \t\n\v\f\r") }

func (l *lexer) skipSpace() {
	for isSpace(l.cur()) {
		l.pos++
	}
}

// word is the next word up to a blank or tab, without moving on, and where it
// starts.
func (l *lexer) word() (at int, w string) {
	at = l.pos
	for c := l.at(at); c == ' ' || c == '\t'; c = l.at(at) {
		at++
	}
	end := at
	for c := l.at(end); c != 0 && c != ' ' && c != '\t'; c = l.at(end) {
		end++
	}
	return at, string(l.buf[min(at, len(l.buf)):min(end, len(l.buf))])
}

// skipWord moves behind the word and the blank after it; false if the line
// ends with the word.
func (l *lexer) skipWord() bool {
	at, w := l.word()
	if at+len(w)+1 > len(l.buf) {
		return false
	}
	l.pos = at + len(w) + 1
	return true
}

// anyText as the kind of an argument means that all characters are fine.
const anyText = "any"

// arg reads the next argument, "" if there is none. more are the characters a
// name may hold besides letters, digits and _, or anyText.
func (l *lexer) arg(required bool, more string) string {
	if l.err != nil {
		return ""
	}
	l.skipSpace()
	var s string
	if l.cur() == ';' {
		l.buf[l.pos] = 0
		l.pos++
	} else {
		s = l.text()
	}
	switch {
	case l.err != nil:
		return ""
	case s == "" && required:
		l.fail("insufficient arguments")
	case s != "" && more != anyText && !validName(s, more):
		l.fail("invalid character in name field")
	}
	return s
}

// text reads a word of bare and quoted parts.
func (l *lexer) text() string {
	val, to := l.pos, l.pos
	put := func() {
		l.buf[to] = l.buf[l.pos]
		to++
		l.pos++
	}
	glued := false
word:
	for {
		switch c := l.cur(); c {
		case '\'', '"':
			l.quoted(c, &to)
			if l.err != nil {
				return ""
			}
		case '#':
			l.comment = trim(l.buf[l.pos:])
			l.buf[l.pos] = 0
			break word
		case 0:
			break word
		case ';':
			glued = true
			break word
		case '\\':
			if l.escape() {
				put()
			}
		default:
			put()
		}
		if l.err != nil {
			return ""
		}
		if c := l.cur(); c == 0 || isSpace(c) {
			break
		}
	}
	s := string(l.buf[val:min(to, len(l.buf))])
	if l.cur() != 0 && !glued {
		l.pos++ // the blank
	}
	if to < len(l.buf) {
		// Upstream ends the word here. For a bare word this is the place of
		// the `;` that follows, and the rest of the line is lost with it.
		l.buf[to] = 0
	}
	return s
}

// quoted reads to the closing quote, over line ends.
func (l *lexer) quoted(quote byte, to *int) {
	l.pos++
	for {
		switch c := l.cur(); {
		case c == quote:
			l.pos++
			return
		case c == 0:
			if !l.more(l.pos) {
				l.fail("EOF with unterminated " + string(quote))
			}
			if l.err != nil {
				return
			}
			continue
		case c == '\\' && quote == '"':
			if !l.escape() {
				if l.err != nil {
					return
				}
				continue
			}
		}
		l.buf[*to] = l.buf[l.pos]
		*to++
		l.pos++
	}
}

// escape moves behind a backslash; false if it joined the next line.
func (l *lexer) escape() bool {
	l.pos++
	c := l.cur()
	if c == 0 || c == '\n' || c == '\r' && l.at(l.pos+1) == '\n' && l.at(l.pos+2) == 0 {
		l.more(l.pos)
		return false
	}
	return true
}
