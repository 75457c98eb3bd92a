package shell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"mvdan.cc/sh/v3/syntax"
)

// startInteractive takes hold of the terminal for job control. Without a
// controlling terminal the shell works, but Ctrl-C cannot reach its programs.
func (s *shell) startInteractive() {
	if !s.isTerminal(0) {
		return
	}
	from := int(s.fds.lookup(0).file.Fd())
	fd, err := unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return
	}
	t := &terminal{fd: fd, file: os.NewFile(uintptr(fd), "terminal")}
	if _, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
		// Started without a controlling terminal, as from an inittab: make this
		// one ours, if no other session has it.
		unix.Setsid() // fails for a group leader, which may lead a session already
		if unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0) != nil {
			t.file.Close()
			return
		}
	}
	if unix.Getpgrp() != os.Getpid() {
		unix.Setpgid(0, 0) // fails for a session leader, which has its own group
	}
	t.group = unix.Getpgrp()
	if m := t.modes(); m != nil {
		t.saved = *m
	}
	t.setForeground(t.group)
	s.proc.tty = t
	s.opt.monitor = true
}

func (s *shell) stopInteractive() {
	if t := s.proc.tty; t != nil {
		s.proc.jobs.mu.Lock()
		for _, j := range s.proc.jobs.list {
			if j.state == stoppedJob && j.pgid != 0 {
				unix.Kill(-j.pgid, unix.SIGHUP)
				unix.Kill(-j.pgid, unix.SIGCONT)
			}
		}
		s.proc.jobs.mu.Unlock()
		t.take(true)
		s.proc.tty = nil
		t.file.Close()
	}
}

// errInterrupted is Ctrl-C at the prompt.
var errInterrupted = errors.New("interrupted")

// converse is the prompt loop.
func (s *shell) converse() {
	s.fallback("PS1", `\u@\h:\w\$ `)
	s.fallback("PS2", "> ")
	in := s.newLines()
	for {
		s.report(false)
		s.proc.interrupt.Store(false) // what was under way has ended by it
		text, err := s.readCommand(in)
		if errors.Is(err, errInterrupted) {
			s.status = 128 + int(unix.SIGINT)
			continue
		}
		if err != nil {
			if s.opt.ignoreeof && in.editing() {
				fmt.Fprintln(s.err(), `Use "exit" to leave the shell.`)
				continue
			}
			if !s.warnJobs() {
				return
			}
			continue
		}
		if s.runLine(text) {
			return
		}
	}
}

func (s *shell) fallback(name, value string) {
	if _, ok := s.get(name); !ok {
		s.set(name, value)
	}
}

// runLine runs what was typed and reports whether the shell ends.
func (s *shell) runLine(text string) (ended bool) {
	s.proc.interrupt.Store(false)
	s.proc.childInterrupted.Store(false)
	defer func() {
		s.jump = noJump
		switch e := recover().(type) {
		case nil:
		case exitNow:
			s.status, ended = e.status, true
		case failure:
			s.status = e.status
		case interrupted:
			if s.status < 128 {
				s.status = 128 + int(unix.SIGINT)
			}
			if s.status == 128+int(unix.SIGINT) {
				fmt.Fprintln(s.err()) // the terminal showed ^C
			}
		default:
			panic(e)
		}
	}()
	s.runReader(strings.NewReader(text))
	return false
}

// readCommand reads lines until they make a complete command.
func (s *shell) readCommand(in *lines) (string, error) {
	var text strings.Builder
	prompt := "PS1"
	for {
		p, _ := s.get(prompt)
		line, err := in.read(s.prompt(p))
		if err != nil {
			if text.Len() > 0 && !errors.Is(err, errInterrupted) {
				return text.String(), nil // the parser says what is missing
			}
			return "", err
		}
		text.WriteString(line)
		text.WriteByte('\n')
		_, err = syntax.NewParser().Parse(strings.NewReader(text.String()), "")
		if !strings.HasSuffix(line, `\`) && !syntax.IsIncomplete(err) {
			return text.String(), nil
		}
		prompt = "PS2"
	}
}

// prompt expands PS1's backslash sequences (the ones busybox knows) and variables.
func (s *shell) prompt(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] != '\\' || i+1 == len(p) {
			b.WriteByte(p[i])
			continue
		}
		i++
		switch p[i] {
		case 'u':
			user, ok := s.get("USER")
			if !ok || user == "" {
				user = "root"
				if uid := os.Geteuid(); uid != 0 {
					user = strconv.Itoa(uid)
				}
			}
			b.WriteString(quoteDollar(user))
		case 'h', 'H':
			host, _ := os.Hostname() // an unnamed host has an empty prompt
			if p[i] == 'h' {
				host, _, _ = strings.Cut(host, ".")
			}
			b.WriteString(quoteDollar(host))
		case 'w', 'W':
			dir := s.dir
			if home, ok := s.get("HOME"); ok && home != "/" && home != "" && (dir == home || strings.HasPrefix(dir, home+"/")) {
				dir = "~" + dir[len(home):]
			}
			if p[i] == 'W' && dir != "/" {
				dir = dir[strings.LastIndexByte(dir, '/')+1:]
			}
			b.WriteString(quoteDollar(dir))
		case '$':
			if os.Geteuid() == 0 {
				b.WriteByte('#')
			} else {
				b.WriteString(`\$`)
			}
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteString(time.Now().Format("15:04:05"))
		case 'e':
			b.WriteByte(0x1b)
		case '0':
			if strings.HasPrefix(p[i:], "033") {
				b.WriteByte(0x1b)
				i += 2
			}
		case '[', ']': // bounds of what takes no room; the editor knows escapes itself
		case '\\':
			b.WriteByte('\\')
		default:
			b.WriteByte('\\')
			b.WriteByte(p[i])
		}
	}
	text := b.String()
	if !strings.ContainsAny(text, "$`\\") {
		return text
	}
	w, err := syntax.NewParser().Document(strings.NewReader(text))
	if err != nil {
		return text
	}
	out := text
	status := s.status
	s.guard(func() { out = s.document(w) })
	s.status = status
	return out
}

func quoteDollar(v string) string {
	return strings.NewReplacer("$", `\$`, "`", "\\`", `\`, `\\`).Replace(v)
}

// lines reads what a person types: with an editor on a terminal that can, plain
// lines otherwise.
type lines struct {
	s       *shell
	tty     int // descriptor; -1: no editing
	history *history
	keys    *keys  // while a line is read
	lastTab string // the line as it was when Tab was pressed last
}

func (s *shell) newLines() *lines {
	l := &lines{s: s, tty: -1}
	name, _ := s.get("TERM")
	if t := s.proc.tty; t != nil && name != "dumb" && name != "" {
		l.tty = t.fd
	} else if s.isTerminal(0) && name != "dumb" && name != "" {
		l.tty = int(s.fds.lookup(0).file.Fd())
	}
	if l.tty >= 0 {
		file, ok := s.get("HISTFILE")
		if !ok {
			// Not in the home folder: that is flash, and every line would be a write.
			file = fmt.Sprintf("/tmp/.sh_history.%d", os.Geteuid())
		}
		l.history = openHistory(file)
		s.proc.history = l.history
	}
	return l
}

func (l *lines) editing() bool { return l.tty >= 0 }

func (l *lines) read(prompt string) (string, error) {
	if l.tty < 0 {
		return l.readPlain(prompt)
	}
	old, err := term.MakeRaw(l.tty)
	if err != nil {
		return l.readPlain(prompt)
	}
	defer term.Restore(l.tty, old)
	rw := &keys{l: l}
	l.keys = rw
	// Only the last line of a prompt belongs to the editor.
	if i := strings.LastIndexByte(prompt, '\n'); i >= 0 {
		io.WriteString(rw, strings.ReplaceAll(prompt[:i+1], "\n", "\r\n"))
		prompt = prompt[i+1:]
	}
	ed := term.NewTerminal(rw, prompt)
	rw.ed = ed
	ed.History = l.history
	ed.AutoCompleteCallback = l.key
	rw.resize()
	line, err := ed.ReadLine()
	switch {
	case errors.Is(err, term.ErrPasteIndicator):
		err = nil
	case errors.Is(err, errInterrupted):
		io.WriteString(rw, "^C\r\n")
	case err != nil:
		io.WriteString(rw, "\r\n")
	}
	return line, err
}

// readPlain reads a line without editing and without escape codes.
func (l *lines) readPlain(prompt string) (string, error) {
	s := l.s
	io.WriteString(s.err(), prompt)
	var line []byte
	b := make([]byte, 1)
	d := s.fds.lookup(0)
	if d == nil {
		return "", io.EOF
	}
	for {
		fd := int(d.file.Fd())
		if !l.waitKey(fd) {
			if s.ctx.Err() != nil {
				return "", io.EOF
			}
			io.WriteString(s.err(), "\n")
			return "", errInterrupted
		}
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case n <= 0:
			if len(line) > 0 {
				return string(line), nil
			}
			return "", io.EOF
		case b[0] == '\n':
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// waitKey waits for input; false on Ctrl-C (as a signal) and at the context's end.
func (l *lines) waitKey(fd int) bool {
	p := l.s.proc
	for {
		if p.interrupt.Swap(false) || l.s.ctx.Err() != nil {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 200)
		if n > 0 || err != nil && err != unix.EINTR {
			return true
		}
	}
}

// keys is the terminal as the editor reads it: a key at a time, so that what is
// typed ahead for the next program stays in the terminal's queue.
type keys struct {
	l             *lines
	ed            *term.Terminal
	width, height int
}

func (k *keys) resize() {
	w, h, err := term.GetSize(k.l.tty)
	if err != nil || w <= 0 || h <= 0 {
		w, h = 80, 24 // a serial console does not say
	}
	if w != k.width || h != k.height {
		k.width, k.height = w, h
		k.ed.SetSize(w, h)
	}
}

func (k *keys) Read(p []byte) (int, error) {
	if !k.l.waitKey(k.l.tty) {
		if k.l.s.ctx.Err() != nil {
			return 0, io.EOF
		}
		return 0, errInterrupted
	}
	for {
		n, err := unix.Read(k.l.tty, p[:1])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 || err != nil {
			return 0, io.EOF
		}
		if p[0] == 3 {
			return 0, errInterrupted
		}
		return n, nil
	}
}

func (k *keys) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Write(k.l.tty, p[done:])
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return done, err
		}
		done += max(n, 0)
	}
	return len(p), nil
}

// history keeps the lines typed, newest last, and their file.
type history struct {
	file  string
	lines []string
}

const historyLines = 500

func openHistory(file string) *history {
	h := &history{file: file}
	f, err := h.open(os.O_RDONLY)
	if err != nil {
		return h
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return h
	}
	h.lines = slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool { return l == "" })
	if n := len(h.lines); n > historyLines {
		h.lines = h.lines[n-historyLines:]
		h.rewrite()
	}
	return h
}

// open opens the file only if it is the user's own and no link: /tmp is
// everybody's.
func (h *history) open(flag int) (*os.File, error) {
	f, err := os.OpenFile(h.file, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || int(st.Uid) != os.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, fmt.Errorf("history file %s is not a file of this user", h.file)
	}
	return f, nil
}

// rewrite and Add lose at worst lines of history: no error is worth a word.
func (h *history) rewrite() {
	if f, err := h.open(os.O_WRONLY | os.O_TRUNC); err == nil {
		io.WriteString(f, strings.Join(h.lines, "\n")+"\n")
		f.Close()
	}
}

func (h *history) Add(line string) {
	if strings.TrimSpace(line) == "" || line[0] == ' ' || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines, line)
	if len(h.lines) > 2*historyLines {
		h.lines = slices.Clone(h.lines[len(h.lines)-historyLines:])
	}
	if h.file == "" {
		return
	}
	if f, err := h.open(os.O_WRONLY | os.O_CREATE | os.O_APPEND); err == nil {
		io.WriteString(f, line+"\n")
		f.Close()
	}
}

func (h *history) Len() int { return len(h.lines) }

func (h *history) At(i int) string { return h.lines[len(h.lines)-1-i] }

func (s *shell) historyCmd(args []string) int {
	h := s.proc.history
	if h == nil {
		return 0
	}
	if len(args) > 1 && args[1] == "-c" {
		h.lines = nil
		h.rewrite()
		return 0
	}
	for i, line := range h.lines {
		fmt.Fprintf(s.out(), "%5d  %s\n", i+1, line)
	}
	return 0
}
