package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/init/applet/internal/fullscreen"
	"weft/init/applet/options"
	"weft/init/applet/posixre"
	"weft/init/unit"
)

const lessUsage = `[-EFINRS] [FILE]...
Show a file or the input, a screen at a time.
  -N  line numbers     -S  cut long lines     -I  search in any case     -R  drop colours
  -F  only print what fits on a screen        -E  end at the end
Keys: blank PgDn f / PgUp b   a screen    d / u     half of one     arrows j k Enter   a line
      g / G                   start, end  /WORD ?WORD n N   search   :n :p   next, previous file
      q                       end
Example: logread | less`

// maxText bounds what less keeps of its input: a device has little memory, and an
// input may have no end.
const maxText = 16 << 20

// Less shows files a screen at a time; as more it ends at the end.
func Less(ctx context.Context, c *unit.Call) int {
	more := filepath.Base(c.Args[0]) == "more"
	o, code := options.Parse(c, "EFIiMmNRSX~ LINE-NUMBERS=N", lessUsage)
	if code >= 0 {
		return code
	}
	p := &pager{numbers: o.Has('N'), chop: o.Has('S'), anyCase: o.Has('I') || o.Has('i'), plain: o.Has('R'), endAtEnd: o.Has('E') || more, printShort: o.Has('F') || more}
	in, out := file(c.Stdin), file(c.Stdout)
	if len(o.Args) == 0 && in != nil && term.IsTerminal(int(in.Fd())) {
		return o.Fail("name a file, or pipe something in")
	}
	if out == nil || !term.IsTerminal(int(out.Fd())) {
		return copyAll(ctx, c, o.Args)
	}
	if len(o.Args) == 0 {
		o.Args = []string{"-"}
	}
	keys, err := keyboard(in, c.Stderr)
	if err != nil {
		return fail(c, err)
	}
	if keys != in {
		defer keys.Close()
	}
	code = 0
	var readable []string
	for _, name := range o.Args {
		f, err := openInput(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		f.close()
		readable = append(readable, name)
	}
	if len(readable) == 0 {
		return code
	}
	p.names = readable
	p.open = func(name string) (*input, error) { return openInput(c, name) }
	if err := p.load(0); err != nil {
		return fail(c, err)
	}
	defer func() { p.in.close() }()
	if p.printShort && len(p.names) == 1 {
		rows, cols := 24, 80
		if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 1 && h > 1 {
			rows, cols = h, w
		}
		p.cols = cols
		for !p.in.ended && p.rowsUpTo(rows) < rows {
			p.fill(readWait(ctx, p.in))
		}
		if ctx.Err() != nil {
			return 1
		}
		if p.in.ended && p.rowsUpTo(rows) < rows {
			for i := range p.lines {
				fmt.Fprintln(out, p.text(i))
			}
			return code
		}
	}
	if err := p.run(ctx, keys, out); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
		return fail(c, err)
	}
	return code
}

// keyboard is where keys come from: the input itself unless it is what is shown.
func keyboard(in *os.File, stderr io.Writer) (*os.File, error) {
	if in != nil && term.IsTerminal(int(in.Fd())) {
		return in, nil
	}
	if f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		return f, nil
	}
	// No controlling terminal, as on a console without job control.
	if f := file(stderr); f != nil && term.IsTerminal(int(f.Fd())) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			return os.NewFile(uintptr(fd), f.Name()), nil
		}
	}
	return nil, errors.New("there is no terminal to read keys from")
}

// copyAll is what less does where nobody can press keys.
func copyAll(ctx context.Context, c *unit.Call, names []string) int {
	if len(names) == 0 {
		names = []string{"-"}
	}
	code := 0
	buf := make([]byte, 64<<10)
	for _, name := range names {
		f, err := openInput(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		for err == nil && ctx.Err() == nil {
			var n int
			n, err = f.read(buf)
			if n > 0 {
				if _, werr := c.Stdout.Write(buf[:n]); werr != nil {
					f.close()
					return fail(c, werr)
				}
			}
		}
		f.close()
		if err != nil && err != io.EOF {
			code = fail(c, err)
		}
	}
	return code
}

// input is what is shown.
type input struct {
	fd    int // -1: read never blocks
	read  func([]byte) (int, error)
	close func()
	ended bool
}

func openInput(c *unit.Call, name string) (*input, error) {
	if name == "-" {
		f := file(c.Stdin)
		if f == nil {
			return &input{fd: -1, read: c.Stdin.Read, close: func() {}}, nil
		}
		return &input{fd: int(f.Fd()), read: f.Read, close: func() {}}, nil
	}
	f, err := os.Open(c.Path(name))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = &os.PathError{Op: "read", Path: name, Err: unix.EISDIR}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &input{fd: int(f.Fd()), read: f.Read, close: func() { f.Close() }}, nil
}

// readWait reads what is there, waiting for it until ctx ends.
func readWait(ctx context.Context, in *input) ([]byte, error) {
	for in.fd >= 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(in.fd), Events: unix.POLLIN}}, 500)
		if n > 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	buf := make([]byte, 64<<10)
	n, err := in.read(buf)
	return buf[:n], err
}

// pager is less without its terminal.
type pager struct {
	numbers, chop, anyCase, plain, endAtEnd, printShort bool

	names []string
	index int
	open  func(name string) (*input, error)

	in      *input
	lines   [][]byte
	half    bool // the last line is not complete
	size    int
	fault   error
	stopped bool // more than maxText

	rows, cols int
	top        int // the line at the top
	sub        int // and how many of its rows lie above
	want       int // lines to be read before anything else; MaxInt: all
	owed       int // rows still to go down, once they have been read

	message string
	prompt  string // what is being typed after : / or ?
	find    *search
	last    *search
	done    bool
}

// search is what is looked for, from where.
type search struct {
	re   *regexp.Regexp
	back bool
	at   int // the next line to look at
}

func (p *pager) load(i int) error {
	in, err := p.open(p.names[i])
	if err != nil {
		return err
	}
	if p.in != nil {
		p.in.close()
	}
	p.index, p.in = i, in
	p.lines, p.half, p.size, p.fault, p.stopped = nil, false, 0, nil, false
	p.top, p.sub, p.want, p.owed, p.find, p.message = 0, 0, 0, 0, nil, p.names[i]
	if p.message == "-" {
		p.message = ""
	}
	return nil
}

// fill takes in what was read.
func (p *pager) fill(b []byte, err error) {
	p.size += len(b)
	for len(b) > 0 {
		line, rest, complete := bytes.Cut(b, []byte{'\n'})
		if p.half {
			p.lines[len(p.lines)-1] = append(p.lines[len(p.lines)-1], line...)
		} else {
			p.lines = append(p.lines, bytes.Clone(line))
		}
		p.half = !complete
		b = rest
	}
	if err != nil {
		p.in.ended = true
		if err != io.EOF {
			p.fault = err
		}
	}
	if p.size >= maxText && !p.in.ended {
		p.in.ended, p.stopped = true, true
	}
}

// text is a line as it is shown: tabs as blanks, other control characters as ^X,
// bytes that are no UTF-8 as <XX>.
func (p *pager) text(i int) string {
	line := p.lines[i]
	var b strings.Builder
	col := 0
	put := func(s string) {
		b.WriteString(s)
		col += utf8.RuneCountInString(s)
	}
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && n == 1:
			put(fmt.Sprintf("<%02X>", line[0]))
		case r == '\t':
			put(strings.Repeat(" ", 8-col%8))
		case r == '\r' && n == len(line): // a line of DOS
		case r == 27 && p.plain && colour(line) > 0:
			n = colour(line)
		case r < ' ':
			put("^" + string(r+64))
		case r == 127:
			put("^?")
		case r >= 0x80 && r < 0xa0:
			put(fmt.Sprintf("<%02X>", r))
		default:
			b.WriteRune(r)
			col++
		}
		line = line[n:]
	}
	return b.String()
}

// colour is the length of a sequence ESC [ … m at the start of b.
func colour(b []byte) int {
	if len(b) < 3 || b[1] != '[' {
		return 0
	}
	for i := 2; i < len(b); i++ {
		switch c := b[i]; {
		case c == 'm':
			return i + 1
		case c != ';' && (c < '0' || c > '9'):
			return 0
		}
	}
	return 0
}

// rowsOf are the rows that a line takes.
func (p *pager) rowsOf(i int) []string {
	s := p.text(i)
	prefix := ""
	if p.numbers {
		prefix = fmt.Sprintf("%7d ", i+1)
	}
	width := max(p.cols-len(prefix), 1)
	var rows []string
	for {
		end, n := len(s), 0
		for at := range s {
			if n == width {
				end = at
				break
			}
			n++
		}
		rows = append(rows, prefix+s[:end])
		s = s[end:]
		if s == "" || p.chop {
			return rows
		}
		prefix = strings.Repeat(" ", len(prefix))
	}
}

// rowsUpTo counts rows from the start, no further than limit.
func (p *pager) rowsUpTo(limit int) int {
	n := 0
	for i := 0; i < len(p.lines) && n < limit; i++ {
		n += len(p.rowsOf(i))
	}
	return n
}

// below counts the rows from the top of the screen on, no further than limit.
func (p *pager) below(limit int) int {
	n := -p.sub
	for i := p.top; i < len(p.lines) && n < limit; i++ {
		n += len(p.rowsOf(i))
	}
	return n
}

// page is the number of rows for text.
func (p *pager) page() int { return p.rows - 1 }

// needs says whether more must be read before the screen can be shown, or before
// what was asked for is known.
func (p *pager) needs() bool {
	return !p.in.ended && (len(p.lines) < p.want || p.find != nil && !p.find.back || p.below(p.page()+1) <= p.page())
}

// down moves by rows, but not past the end. Rows that have not been read yet are
// owed until they are.
func (p *pager) down(n int) {
	for p.owed += n; p.owed > 0 && p.below(p.page()+1) > p.page(); p.owed-- {
		if p.sub+1 < len(p.rowsOf(p.top)) {
			p.sub++
		} else {
			p.top, p.sub = p.top+1, 0
		}
	}
	if p.in.ended {
		p.owed = 0
	}
}

func (p *pager) up(n int) {
	p.owed = 0
	for ; n > 0; n-- {
		switch {
		case p.sub > 0:
			p.sub--
		case p.top > 0:
			p.top--
			p.sub = len(p.rowsOf(p.top)) - 1
		default:
			return
		}
	}
}

// bottom shows the last rows of what has been read.
func (p *pager) bottom() {
	p.top, p.sub = max(len(p.lines)-1, 0), 0
	if len(p.lines) > 0 {
		p.sub = len(p.rowsOf(p.top)) - 1
	}
	p.up(p.page() - 1)
}

// atEnd says that the last row is on the screen and nothing comes after it.
func (p *pager) atEnd() bool { return p.in.ended && p.below(p.page()+1) <= p.page() }

// proceed does what waited for text: it is called after reading.
func (p *pager) proceed() {
	p.down(0)
	if s := p.find; s != nil {
		step := 1
		if s.back {
			step = -1
		}
		for ; s.at >= 0 && s.at < len(p.lines); s.at += step {
			// A line of which only half is there may still become one that fits.
			if s.at == len(p.lines)-1 && p.half && !p.in.ended {
				return
			}
			if s.re.MatchString(p.text(s.at)) {
				p.top, p.sub, p.owed, p.find = s.at, 0, 0, nil
				return
			}
		}
		if s.back || p.in.ended {
			p.find, p.message = nil, "not found"
		}
		return
	}
	if p.want == math.MaxInt && p.in.ended {
		p.want = 0
		p.bottom()
	}
}

// look starts a search; the pattern is an extended regular expression.
func (p *pager) look(pattern string, back bool) {
	if pattern != "" {
		re, err := posixre.Compile(pattern, posixre.Options{Extended: true, IgnoreCase: p.anyCase})
		if err != nil {
			p.message = err.Error()
			return
		}
		p.last = &search{re: re, back: back}
	}
	if p.last == nil {
		p.message = "nothing was looked for yet"
		return
	}
	p.last.back = back
	p.again(back)
}

func (p *pager) again(back bool) {
	if p.last == nil {
		p.message = "nothing was looked for yet"
		return
	}
	p.find = &search{re: p.last.re, back: back, at: p.top + 1}
	if back {
		p.find.at = p.top - 1
	}
	p.proceed()
}

// command does what was typed after a colon.
func (p *pager) command(text string) {
	to := p.index
	switch text {
	case "":
		return
	case "q":
		p.done = true
		return
	case "n":
		to++
	case "p":
		to--
	default:
		p.message = fmt.Sprintf("there is no command :%s", text)
		return
	}
	if to < 0 || to >= len(p.names) {
		p.message = "there is no further file"
		return
	}
	if err := p.load(to); err != nil {
		p.message = err.Error()
	}
}

// key does what a key asks for.
func (p *pager) key(k fullscreen.Key) {
	p.message = ""
	if p.prompt != "" {
		switch k {
		case '\r', '\n':
			kind, text := p.prompt[0], p.prompt[1:]
			p.prompt = ""
			if kind == ':' {
				p.command(text)
			} else {
				p.look(text, kind == '?')
			}
		case 8, 127:
			_, n := utf8.DecodeLastRuneInString(p.prompt)
			p.prompt = p.prompt[:len(p.prompt)-n]
		case fullscreen.Escape, fullscreen.Ctrl('c'):
			p.prompt = ""
		case fullscreen.Ctrl('u'):
			p.prompt = p.prompt[:1]
		default:
			if k >= ' ' {
				p.prompt += string(rune(k))
			}
			if p.prompt == ":n" || p.prompt == ":p" || p.prompt == ":q" {
				text := p.prompt[1:]
				p.prompt = ""
				p.command(text)
			}
		}
		return
	}
	if p.find != nil || p.want == math.MaxInt {
		if k == fullscreen.Ctrl('c') || k == fullscreen.Escape {
			p.find, p.want, p.message = nil, 0, "stopped"
			return
		}
	}
	if p.endAtEnd && p.atEnd() {
		switch k {
		case ' ', 'f', fullscreen.PageDown, '\r', '\n', 'j', fullscreen.Down, 'd', fullscreen.Ctrl('f'), fullscreen.Ctrl('d'):
			if p.index+1 < len(p.names) {
				p.command("n")
			} else {
				p.done = true
			}
			return
		}
	}
	switch k {
	case 'q', 'Q', fullscreen.Ctrl('c'):
		p.done = true
	case ' ', 'f', fullscreen.PageDown, fullscreen.Ctrl('f'), fullscreen.Ctrl('v'):
		p.down(p.page())
	case 'b', fullscreen.PageUp, fullscreen.Ctrl('b'):
		p.up(p.page())
	case 'd', fullscreen.Ctrl('d'):
		p.down(p.page() / 2)
	case 'u', fullscreen.Ctrl('u'):
		p.up(p.page() / 2)
	case 'j', '\r', '\n', fullscreen.Down, fullscreen.Ctrl('n'):
		p.down(1)
	case 'k', 'y', fullscreen.Up, fullscreen.Ctrl('p'):
		p.up(1)
	case 'g', '<', fullscreen.Home:
		p.top, p.sub, p.owed = 0, 0, 0
	case 'G', '>', fullscreen.End:
		p.want = math.MaxInt
		p.proceed()
	case '/', '?', ':':
		p.prompt = string(rune(k))
	case 'n':
		p.again(p.last != nil && p.last.back)
	case 'N':
		p.again(p.last == nil || !p.last.back)
	}
}

// status is the last row.
func (p *pager) status() string {
	switch {
	case p.prompt != "":
		return p.prompt
	case p.message != "":
		return p.message
	case p.find != nil && p.needs():
		return "searching... (Ctrl-C stops)"
	case p.want == math.MaxInt:
		return "reading... (Ctrl-C stops)"
	case p.fault != nil:
		return "read: " + p.fault.Error()
	case !p.atEnd():
		return ":"
	case p.stopped:
		return fmt.Sprintf("(the input goes on, but only %d MiB are kept)", maxText>>20)
	case p.index+1 < len(p.names):
		return "(END; :n shows " + p.names[p.index+1] + ")"
	}
	return "(END)"
}

// screen is all rows.
func (p *pager) screen() []string {
	rows := make([]string, 0, p.rows)
	for i, skip := p.top, p.sub; i < len(p.lines) && len(rows) < p.page(); i, skip = i+1, 0 {
		r := p.rowsOf(i)
		rows = append(rows, r[min(skip, len(r)-1):]...)
	}
	rows = rows[:min(len(rows), p.page())]
	for len(rows) < p.page() {
		rows = append(rows, "~")
	}
	return append(rows, p.status())
}

// run is the loop between keys, input and screen.
func (p *pager) run(ctx context.Context, keys, out *os.File) (err error) {
	screen, ctx, err := fullscreen.Open(ctx, keys, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, screen.Close()) }()
	buf := make([]byte, 64<<10)
	shown := false // what is on the screen is of use while more is read
	for !p.done {
		p.rows, p.cols = screen.Rows, screen.Cols
		if p.sub > 0 && p.top < len(p.lines) {
			p.sub = min(p.sub, len(p.rowsOf(p.top))-1)
		}
		needs := p.needs()
		if !needs || !shown {
			inverse := p.page()
			if p.prompt != "" {
				inverse = -1
			}
			if err := screen.Paint(p.screen(), inverse); err != nil {
				return err
			}
			shown = true
		}
		fd := -1
		if needs && p.in.fd < 0 {
			n, err := p.in.read(buf)
			p.fill(buf[:n], err)
			p.proceed()
			continue
		}
		if needs {
			fd = p.in.fd
		}
		// What came in is shown at once while the screen is not full, else when
		// nothing more comes or it is complete.
		wait := time.Hour
		if needs {
			wait = 200 * time.Millisecond
		}
		k, ready, err := screen.KeyOr(ctx, wait, fd)
		switch {
		case err != nil:
			return err
		case ready:
			n, err := p.in.read(buf)
			p.fill(buf[:n], err)
			p.proceed()
		case k == fullscreen.None:
			shown = false
		case k == fullscreen.Ctrl('l'):
			screen.Redraw()
			shown = false
		case k == fullscreen.Resize:
			shown = false
		default:
			p.key(k)
			shown = false
		}
	}
	return nil
}
