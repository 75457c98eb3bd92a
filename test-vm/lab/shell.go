package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Result is what a command in the guest left.
type Result struct {
	Code   int    // exit status
	Output string // stdout and stderr as they came, byte for byte
}

// ErrNoShell is returned when no shell answers on a console.
var ErrNoShell = errors.New("no shell answers")

// Shell runs commands on a console. It types them, so it sees what a person would see, but it never mistakes its own
// echo for output: the markers around the output hold the byte 0x1e, which the typed text has only as \036.
//
// It asks of the guest a POSIX shell whose printf knows octal escapes, on a terminal that turns CR into NL on input and
// NL into CR NL on output, as every Linux terminal does that nobody has changed.
type Shell struct {
	c *Console
	// kernel is set for a console that kernel messages go to: they would land in the middle of a command's output, so
	// the first command sets the console's log level to errors of the worst kind.
	kernel bool

	mu       sync.Mutex // held over one command
	n        int        // number of the last command
	attached int        // life of the console in which a shell answered; 0 = none
}

const mark = 0x1e // ASCII record separator

// maxLine is how much is typed on one line: the kernel's line buffer (N_TTY_BUF_SIZE) holds 4096 bytes.
const maxLine = 2048

// Run runs cmd in a subshell with empty stdin and returns its output and exit code; a code other than 0 is no error.
// cmd may span lines. When ctx ends first, the command gets ^C.
func (s *Shell) Run(ctx context.Context, cmd string) (Result, error) {
	if i := strings.IndexFunc(cmd, func(r rune) bool { return r != '\n' && r != '\t' && r < ' ' || r == 0x7f }); i >= 0 {
		return Result{}, fmt.Errorf("run %q: byte %d is a control character, which a terminal would act on: push a script instead", cmd, i)
	}
	if longest(cmd) > maxLine {
		const script = "/tmp/.lab-command"
		if err := s.Push(ctx, script, []byte(cmd)); err != nil {
			return Result{}, err
		}
		cmd = ". " + script
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run(ctx, cmd)
}

func longest(cmd string) int {
	n := 0
	for line := range strings.SplitSeq(cmd, "\n") {
		n = max(n, len(line))
	}
	return n
}

func (s *Shell) run(ctx context.Context, cmd string) (Result, error) {
	if err := s.attach(ctx); err != nil {
		return Result{}, fmt.Errorf("run %q: %w", cmd, err)
	}
	s.n++
	from, _ := s.c.position()
	// A tab would be completion to a line editor; in the plain terminal that attach asked for it is a tab.
	typed := fmt.Sprintf(`printf '\036b%d\036'; (eval %s) </dev/null 2>&1; printf '\036e%d:%%s\036' $?`+"\n", s.n, quote(cmd), s.n)
	if _, err := s.c.Write([]byte(strings.ReplaceAll(typed, "\n", "\r"))); err != nil {
		s.attached = 0
		return Result{}, fmt.Errorf("run %q: %w", cmd, err)
	}
	out, code, err := s.c.between(ctx, from, s.n, s.attached)
	if err == nil {
		return Result{Code: code, Output: out}, nil
	}
	err = fmt.Errorf("run %q on console %s: %w; its last lines:\n%s", cmd, s.c.name, err, s.c.Tail(20))
	s.attached = 0
	if ctx.Err() != nil {
		s.c.Write([]byte{3}) // ^C; whether the shell is still there, the next attach finds out
	}
	return Result{Output: out}, err
}

// Send types a command at the shell and does not wait for anything: for what ends the shell, as reboot does.
func (s *Shell) Send(ctx context.Context, cmd string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.attach(ctx); err != nil {
		return fmt.Errorf("send %q: %w", cmd, err)
	}
	s.attached = 0
	if _, err := s.c.Write([]byte(cmd + "\r")); err != nil {
		return fmt.Errorf("send %q: %w", cmd, err)
	}
	return nil
}

// attach makes sure that a plain shell answers, waking the console where it asks for Enter.
func (s *Shell) attach(ctx context.Context) error {
	for try := 0; ; try++ {
		s.n++
		from, life := s.c.position()
		if s.attached == life {
			return nil
		}
		// Ctrl-C leaves a half-typed line; Enter activates a sleeping console and is harmless on a live one.
		wake := "\r"
		if try > 0 {
			wake = "\x03\r"
		}
		for _, line := range []string{wake, "TERM=dumb exec sh\r", fmt.Sprintf(`printf '\036b%d\036\036e%d:0\036'`+"\r", s.n, s.n)} {
			if _, err := s.c.Write([]byte(line)); err != nil {
				return err
			}
		}
		short, cancel := context.WithTimeout(ctx, Timeout(min(time.Duration(try+1)*2*time.Second, 10*time.Second)))
		_, _, err := s.c.between(short, from, s.n, life)
		cancel()
		switch {
		case err == nil:
			s.attached = life
			if s.kernel {
				if _, err := s.run(ctx, "echo 1 >/proc/sys/kernel/printk"); err != nil {
					return err
				}
			}
		case ctx.Err() != nil:
			return fmt.Errorf("%w on console %s after %d tries (%w); its last lines:\n%s", ErrNoShell, s.c.name, try+1, context.Cause(ctx), s.c.Tail(20))
		case errors.Is(err, ErrConsoleClosed):
			return err
		}
	}
}

// Push writes data to the file path in the guest. It is meant for small files: it types them. Large ones go on a disk.
func (s *Shell) Push(ctx context.Context, path string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	file, redirect := quote(path), ">"
	for first := true; first || len(data) > 0; first = false {
		var text string
		text, data = octal(data, maxLine-len(file)-200)
		r, err := s.run(ctx, fmt.Sprintf("printf '%s' %s %s", text, redirect, file))
		if err != nil {
			return fmt.Errorf("push %s: %w", path, err)
		}
		if r.Code != 0 {
			return fmt.Errorf("push %s: exit %d: %s", path, r.Code, r.Output)
		}
		redirect = ">>"
	}
	return nil
}

// Pull reads the file path of the guest.
func (s *Shell) Pull(ctx context.Context, path string) ([]byte, error) {
	r, err := s.Run(ctx, "cat "+quote(path))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", path, err)
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("pull %s: exit %d: %s", path, r.Code, r.Output)
	}
	return []byte(r.Output), nil
}

// octal turns as much of data as fits into room into the format of printf, and returns the rest.
func octal(data []byte, room int) (text string, rest []byte) {
	var b strings.Builder
	for i, c := range data {
		if b.Len()+5 > room {
			return b.String(), data[i:]
		}
		switch {
		case c == '%':
			b.WriteString("%%")
		case c == '\\', c == '\'', c < ' ', c > '~':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// quote is s as one word of a POSIX shell. A quote in it becomes '"'"', since mvdan.cc/sh v3.14.1 keeps the backslash of
// \' in the file name of a redirection.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }

// position is the length of what was sent so far, and the console's present life.
func (c *Console) position() (raw, life int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.raw), c.life
}

// between waits for the markers of command n after offset from and returns what stands between them, with the
// terminal's CR NL turned back into NL, and the exit code. On an error it returns the output so far.
func (c *Console) between(ctx context.Context, from, n, life int) (string, int, error) {
	for {
		c.mu.Lock()
		out, code, done := output(c.raw[from:], n)
		changed, alive, again := c.changed, c.conn != nil, c.life != life
		c.mu.Unlock()
		if done {
			return out, code, nil
		}
		if again {
			return out, 0, ErrReset
		}
		if !alive {
			return out, 0, ErrConsoleClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return out, 0, fmt.Errorf("not done in time: %w", context.Cause(ctx))
		}
	}
}

// output finds the output of command n in what the console printed.
func output(raw []byte, n int) (out string, code int, done bool) {
	begin := fmt.Appendf(nil, "%cb%d%c", mark, n, mark)
	i := bytes.Index(raw, begin)
	if i < 0 {
		return "", 0, false
	}
	body := raw[i+len(begin):]
	end := fmt.Appendf(nil, "%ce%d:", mark, n)
	j := bytes.Index(body, end)
	if j < 0 {
		return plain(body), 0, false
	}
	tail := body[j+len(end):]
	k := bytes.IndexByte(tail, mark)
	if k < 0 {
		return plain(body[:j]), 0, false
	}
	code, err := strconv.Atoi(string(tail[:k]))
	if err != nil {
		return plain(body[:j]), 0, false
	}
	return plain(body[:j]), code, true
}

// plain undoes the terminal's ONLCR: it put one CR before each NL.
func plain(b []byte) string { return strings.ReplaceAll(string(b), "\r\n", "\n") }
