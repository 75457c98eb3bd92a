package shell

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"weft/init/unit"
)

// options are the flags of set and of the command line.
type options struct {
	allexport, errexit, noglob, monitor, noexec, nounset, verbose, xtrace, noclobber, pipefail, ignoreeof bool
	interactive, stdin, command                                                                           bool
}

// option is a row of the table of set -o.
type option struct {
	letter byte // 0: has only a name
	name   string
	field  func(*options) *bool
}

func optionTable() []option {
	return []option{
		{'a', "allexport", func(o *options) *bool { return &o.allexport }},
		{'e', "errexit", func(o *options) *bool { return &o.errexit }},
		{'f', "noglob", func(o *options) *bool { return &o.noglob }},
		{0, "ignoreeof", func(o *options) *bool { return &o.ignoreeof }},
		{'m', "monitor", func(o *options) *bool { return &o.monitor }},
		{'C', "noclobber", func(o *options) *bool { return &o.noclobber }},
		{'n', "noexec", func(o *options) *bool { return &o.noexec }},
		{'u', "nounset", func(o *options) *bool { return &o.nounset }},
		{0, "pipefail", func(o *options) *bool { return &o.pipefail }},
		{'v', "verbose", func(o *options) *bool { return &o.verbose }},
		{'x', "xtrace", func(o *options) *bool { return &o.xtrace }},
	}
}

// flags is the value of $-.
func (o *options) flags() string {
	var b []byte
	for _, e := range optionTable() {
		if e.letter != 0 && *e.field(o) {
			b = append(b, e.letter)
		}
	}
	if o.interactive {
		b = append(b, 'i')
	}
	if o.stdin {
		b = append(b, 's')
	}
	if o.command {
		b = append(b, 'c')
	}
	return string(b)
}

// A jump says which loop, function or file is being left.
type jump uint8

const (
	noJump jump = iota
	breakLoop
	continueLoop
	returnFrom
)

// shell is one execution environment: the main one, or a subshell's.
type shell struct {
	ctx  context.Context
	proc *process // what all environments of this process share

	vars   *scope
	funcs  map[string]*syntax.Stmt
	shared bool // funcs belongs to the parent: copy before writing
	alias  map[string]string
	params []string
	name0  string
	dir    string
	fds    fdTable
	opt    options
	traps  map[unix.Signal]string // "" ignores
	sub    bool                   // a subshell: traps of the parent do not run here

	status         int // $?
	substStatus    int // of the last command substitution; -1: none
	lastBackground int
	jump           jump
	jumps          int // loops still to leave
	loops          int
	calls          int // depth of functions and sourced files
	noErr          int // > 0: a failure is being tested, set -e must not act
	locals         *[]saved
	optAt          int // position of getopts inside an argument
	line           int
	job            *job // what started processes belong to; nil: the shell's own group
	inTrap         bool
}

// failure ends the current command: a special builtin, an expansion or an
// assignment that went wrong. A script ends with it, a prompt comes back.
type failure struct{ status int }

// exitNow ends the shell environment.
type exitNow struct{ status int }

// interrupted is Ctrl-C at an interactive shell: back to the prompt.
type interrupted struct{}

// fail reports a mistake that ends the command; the caller panics with it.
func (s *shell) fail(status int, format string, args ...any) failure {
	s.errorf(format, args...)
	s.status = status
	return failure{status}
}

func (s *shell) errorf(format string, args ...any) {
	where := filepath.Base(s.name0)
	if s.line > 0 && !s.opt.interactive {
		where = fmt.Sprintf("%s: line %d", where, s.line)
	}
	fmt.Fprintf(s.err(), "%s: %s\n", where, fmt.Sprintf(format, args...))
}

// clone makes the environment of a subshell. The parent must not run until the
// subshell is done, or only read.
func (s *shell) clone() *shell {
	c := *s
	c.vars = &scope{vars: make(map[string]variable), outer: s.vars}
	s.shared, c.shared = true, true
	c.fds = s.fds.clone()
	c.sub = true
	c.locals = nil
	c.traps = nil
	for sig, action := range s.traps {
		if action == "" { // ignored signals stay ignored
			if c.traps == nil {
				c.traps = make(map[unix.Signal]string)
			}
			c.traps[sig] = ""
		}
	}
	c.loops, c.jump, c.jumps = 0, noJump, 0
	return &c
}

// runSubshell runs body as a subshell: its exit, failures and EXIT trap end
// there. It returns the exit status and closes the environment's files.
func (s *shell) runSubshell(body func()) (status int) {
	umask := s.proc.umask.Load()
	defer func() {
		s.fds.close()
		if umask != s.proc.umask.Load() {
			s.setUmask(int(umask))
		}
	}()
	s.guard(body)
	s.exitTrap()
	return s.status
}

// guard runs body and turns the ends that unwind the stack into a status.
// It reports whether the environment must end.
func (s *shell) guard(body func()) (ended bool) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case exitNow:
			s.status, ended = e.status, true
		case failure:
			s.status, ended = e.status, true
		case interrupted:
			s.status, ended = 128+int(unix.SIGINT), true
		default:
			panic(e)
		}
	}()
	body()
	return false
}

// Sh is the applet sh (and ash). See the package comment for what it accepts.
func Sh(ctx context.Context, c *unit.Call) int {
	s, start, code := newShell(ctx, c)
	if s == nil {
		return code
	}
	defer s.proc.close()
	finish := s.attach(c)
	defer finish()
	return s.main(start)
}

// start says where the shell's commands come from.
type start struct {
	command string // -c
	isC     bool
	script  string // file name; "" with isC false: standard input
	login   bool
	resume  int // descriptor with the state of a background subshell; -1: none
}

func usage(w io.Writer, name string) {
	fmt.Fprintf(w, `Usage: %s [-aefilmnsuvxC] [-o OPTION] [-c COMMAND [NAME]] [SCRIPT] [ARGUMENT]...
  -c  run COMMAND     -s  read standard input     -i  interactive     -l  login shell
  -e  end at the first failure     -u  unset variables are errors     -x  show commands
Example: %[1]s -c 'for i in "$@"; do echo "$i"; done' sh one two
`, name)
}

// newShell parses the command line. A nil shell means: stop with the code.
func newShell(ctx context.Context, c *unit.Call) (*shell, start, int) {
	st := start{resume: -1}
	name := filepath.Base(c.Args[0])
	st.login = strings.HasPrefix(c.Args[0], "-")
	s := &shell{
		ctx:    ctx,
		proc:   newProcess(),
		vars:   &scope{vars: make(map[string]variable, 64)},
		funcs:  make(map[string]*syntax.Stmt),
		traps:  make(map[unix.Signal]string),
		dir:    c.Dir,
		fds:    newTable(),
		name0:  strings.TrimPrefix(c.Args[0], "-"),
		params: nil,
	}
	s.substStatus = -1
	args := c.Args[1:]
	bad := func(format string, a ...any) (*shell, start, int) {
		s.proc.close()
		fmt.Fprintf(c.Stderr, "%s: %s\n", name, fmt.Sprintf(format, a...))
		usage(c.Stderr, strings.TrimPrefix(name, "-"))
		return nil, st, 2
	}
	readStdin := false
options:
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			break options
		case a == "--help":
			s.proc.close()
			usage(c.Stdout, strings.TrimPrefix(name, "-"))
			return nil, st, 0
		case a == "--login":
			st.login = true
			continue
		case strings.HasPrefix(a, resumeFlag):
			if _, err := fmt.Sscanf(a[len(resumeFlag):], "%d", &st.resume); err != nil {
				return bad("%s: not a descriptor", a)
			}
			continue
		}
		on := a[0] == '-'
		for _, l := range []byte(a[1:]) {
			switch l {
			case 'c':
				st.isC = on
			case 'i':
				s.opt.interactive = on
			case 'l':
				st.login = on
			case 's':
				readStdin = on
			case 'o':
				if len(args) == 0 {
					return bad("-o: the name of an option must follow")
				}
				f := s.optionByName(args[0])
				if f == nil {
					return bad("-o %s: there is no such option", args[0])
				}
				*f = on
				args = args[1:]
			default:
				f := s.optionByLetter(l)
				if f == nil {
					return bad("-%c: there is no such option", l)
				}
				*f = on
			}
		}
	}
	switch {
	case st.isC:
		if len(args) == 0 {
			return bad("-c: a command must follow")
		}
		st.command, args = args[0], args[1:]
		s.opt.command = true
		if len(args) > 0 {
			s.name0, args = args[0], args[1:]
		}
	case len(args) > 0 && !readStdin:
		st.script, args = args[0], args[1:]
		s.name0 = st.script
	default:
		s.opt.stdin = true
	}
	s.params = args
	return s, st, 0
}

func (s *shell) optionByName(name string) *bool {
	for _, o := range optionTable() {
		if o.name == name {
			return o.field(&s.opt)
		}
	}
	return nil
}

func (s *shell) optionByLetter(l byte) *bool {
	for _, o := range optionTable() {
		if o.letter == l {
			return o.field(&s.opt)
		}
	}
	return nil
}

// attach connects the standard streams. Streams that are no files are bridged
// by pipes; finish waits until what was written has arrived.
func (s *shell) attach(c *unit.Call) (finish func()) {
	var closers []func()
	isNil := func(v any) bool { f, ok := v.(*os.File); return v == nil || ok && f == nil }
	if f, ok := c.Stdin.(*os.File); ok && f != nil {
		s.fds.put(0, &desc{file: f, keep: true})
	} else if !isNil(c.Stdin) {
		r, w := s.pipe()
		s.fds.put(0, &desc{file: r})
		go func() {
			io.Copy(w, c.Stdin) // ends with the reader's end, or when nobody reads any more
			w.Close()
		}()
	}
	out := func(n int, to io.Writer) {
		if f, ok := to.(*os.File); ok && f != nil {
			s.fds.put(n, &desc{file: f, keep: true})
			return
		}
		if isNil(to) {
			return
		}
		r, w := s.pipe()
		s.fds.put(n, &desc{file: w})
		done := make(chan struct{})
		go func() {
			defer close(done)
			io.Copy(to, r)
			r.Close()
		}()
		closers = append(closers, func() { <-done })
	}
	out(1, c.Stdout)
	if c.Stderr != nil && c.Stderr == c.Stdout && s.fds.m[1] != nil {
		s.fds.put(2, s.fds.m[1])
	} else {
		out(2, c.Stderr)
	}
	return func() {
		s.fds.close()
		for _, f := range closers {
			f()
		}
	}
}

// main runs the shell from start to exit.
func (s *shell) main(st start) int {
	if st.resume >= 0 {
		return s.resume(st.resume)
	}
	s.importEnv(os.Environ())
	if s.opt.stdin && !s.opt.interactive {
		s.opt.interactive = s.isTerminal(0) && s.isTerminal(2)
	}
	s.proc.interactive = s.opt.interactive
	s.proc.watch(s)
	if s.opt.interactive {
		s.startInteractive()
		defer s.stopInteractive()
	}
	if st.login {
		s.profile("/etc/profile")
		if home, ok := s.get("HOME"); ok {
			s.profile(home + "/.profile")
		}
	}
	if s.opt.interactive {
		if env, ok := s.get("ENV"); ok {
			s.profile(env)
		}
	}
	if s.proc.exiting == nil {
		switch {
		case st.isC:
			s.runText(st.command)
		case st.script != "":
			s.runScript(st.script)
		case s.opt.interactive:
			s.converse()
		default:
			s.guard(func() { s.runReader(&oneByte{f: s.fds.lookup(0)}) })
		}
	} else {
		s.status = *s.proc.exiting
	}
	s.guard(s.checkSignals)
	s.exitTrap()
	return s.status & 0xff
}

// profile sources a start-up file if it is there.
func (s *shell) profile(path string) {
	if s.proc.exiting != nil {
		return
	}
	b, err := os.ReadFile(abs(s.dir, path))
	if err != nil {
		return
	}
	ended := s.guard(func() { s.runReader(bytes.NewReader(b)) })
	s.jump = noJump
	if ended && !s.opt.interactive {
		n := s.status
		s.proc.exiting = &n
	}
}

func (s *shell) runText(text string) {
	s.guard(func() { s.runReader(strings.NewReader(text)) })
}

func (s *shell) runScript(path string) {
	f, err := os.Open(abs(s.dir, path))
	if err != nil {
		s.errorf("cannot open %s: %s", path, cause(err))
		s.status = 127
		return
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 4096)
	head, _ := r.Peek(256)
	if line, _, _ := bytes.Cut(head, []byte("\n")); bytes.IndexByte(line, 0) >= 0 || bytes.HasPrefix(head, []byte("\x7fELF")) {
		s.errorf("%s: is a program, not a script; run it without sh", path)
		s.status = 126
		return
	}
	s.guard(func() { s.runReader(r) })
}

// runReader parses and runs statement by statement, so that what stands after
// an exit is never looked at. It returns how many it ran.
func (s *shell) runReader(r io.Reader) (ran int) {
	if s.opt.verbose {
		r = io.TeeReader(r, s.err())
	}
	p := syntax.NewParser()
	for stmt, err := range p.StmtsSeq(r) {
		if err != nil {
			s.syntaxError(err)
		}
		if s.opt.noexec && !s.opt.interactive {
			continue
		}
		s.stmt(stmt)
		ran++
		if s.jump != noJump {
			break
		}
	}
	return ran
}

// syntaxError reports a parse error and ends the command with status 2.
func (s *shell) syntaxError(err error) {
	var pe syntax.ParseError
	var le syntax.LangError
	switch {
	case errors.As(err, &pe):
		s.line = int(pe.Pos.Line())
		panic(s.fail(2, "syntax error: %s", pe.Text))
	case errors.As(err, &le):
		s.line = int(le.Pos.Line())
		panic(s.fail(2, "syntax error: %s is not supported", le.Feature))
	}
	panic(s.fail(2, "read the script: %v", err))
}

// exitTrap runs the EXIT trap once.
func (s *shell) exitTrap() {
	action, ok := s.traps[0]
	if !ok || action == "" {
		return
	}
	delete(s.traps, 0)
	status := s.status
	s.jump = noJump
	if !s.guard(func() { s.runReader(strings.NewReader(action)) }) {
		s.status = status
	}
}

// oneByte reads a descriptor a byte at a time: what the script's commands read
// from the same input must not be taken from them.
type oneByte struct{ f *desc }

func (o *oneByte) Read(p []byte) (int, error) {
	if o.f == nil {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	return o.f.file.Read(p[:1])
}

// isTerminal reports whether descriptor n is a terminal.
func (s *shell) isTerminal(n int) bool {
	d := s.fds.lookup(n)
	if d == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(d.file.Fd()), unix.TCGETS)
	return err == nil
}

// setUmask changes the mask of the process, which all environments share.
func (s *shell) setUmask(m int) {
	unix.Umask(m)
	s.proc.umask.Store(int32(m))
}

// applets is the table the binary's main wires in.
var applets atomic.Pointer[func(name string) (unit.Func, bool)]

// SetApplets tells the shell which commands live in this binary. lookup returns
// the applet and whether it may run inside the shell's process (see the README
// of init/applet); nil for a name that is no applet. Call it before any shell
// runs.
func SetApplets(lookup func(name string) (f unit.Func, inline bool)) {
	applets.Store(&lookup)
}

func lookupApplet(name string) (unit.Func, bool) {
	f := applets.Load()
	if f == nil {
		return nil, false
	}
	return (*f)(name)
}

// printable cuts a command to a line for messages.
func printable(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 60 {
		cut := 57
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "..."
	}
	return text
}
