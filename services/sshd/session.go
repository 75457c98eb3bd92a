package sshd

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	// maxEnv bounds the variables that a client may set, and each of them in bytes.
	maxEnv, maxEnvSize = 64, 1024
	// ptyGrace is how long the last output of a terminal may take once the
	// program has ended: others may still hold it open.
	ptyGrace = 300 * time.Millisecond
)

// Process is what a session runs.
type Process struct {
	Stdin  io.WriteCloser
	Stdout io.Reader
	Stderr io.Reader // nil with a terminal
	PTY    *os.File  // the terminal's other end, also Stdin and Stdout; nil: pipes
	// Signal sends a signal by its name without SIG (RFC 4254, section 6.10).
	Signal func(name string) error
	// Done delivers how it ended, once.
	Done <-chan Exit
}

// Exit is how a process ended: by itself or by a signal.
type Exit struct {
	Code   int
	Signal string `json:",omitempty"` // without SIG
	Core   bool   `json:",omitempty"`
}

// close ends the use of a process's streams.
func (p *Process) close() {
	for _, c := range []any{p.Stdin, p.Stdout, p.Stderr, p.PTY} {
		if c, ok := c.(io.Closer); ok {
			c.Close()
		}
	}
}

// signalNamed is a signal that a client may send (RFC 4254, section 6.10).
func signalNamed(name string) (unix.Signal, bool) {
	sig, ok := map[string]unix.Signal{
		"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP, "ILL": unix.SIGILL,
		"INT": unix.SIGINT, "KILL": unix.SIGKILL, "PIPE": unix.SIGPIPE, "QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV,
		"TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "STOP": unix.SIGSTOP, "CONT": unix.SIGCONT,
	}[name]
	return sig, ok
}

// session is one channel of type session.
type session struct {
	s    *conn
	ch   ssh.Channel
	req  Request
	proc *Process
	over chan struct{} // closed when the channel's requests have ended
}

func (s *conn) serveSession(nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	x := &session{s: s, ch: ch, over: make(chan struct{}), req: Request{Remote: s.remote, Local: s.local}}
	started := make(chan struct{})
	s.work.Go(func() {
		defer close(x.over)
		for r := range requests {
			was := x.proc
			ok := x.request(r)
			if r.WantReply {
				r.Reply(ok, nil)
			}
			if was == nil && x.proc != nil {
				close(started)
			}
		}
	})
	select {
	case <-started:
		x.run()
	case <-x.over:
	}
}

// request handles one request of the client and says whether it was granted.
func (x *session) request(r *ssh.Request) bool {
	switch r.Type {
	case "pty-req":
		var m struct {
			Term                         string
			Columns, Rows, Width, Height uint32
			Modes                        string
		}
		if x.proc != nil || x.s.permit.NoPTY || ssh.Unmarshal(r.Payload, &m) != nil || len(m.Term) > maxEnvSize || strings.IndexByte(m.Term, 0) >= 0 {
			return false
		}
		x.req.PTY = &PTY{m.Term, m.Columns, m.Rows, m.Width, m.Height, []byte(m.Modes)}
		return true
	case "env":
		var m struct{ Name, Value string }
		if ssh.Unmarshal(r.Payload, &m) != nil || x.proc != nil || len(x.req.Env) >= maxEnv || !goodEnv(m.Name, m.Value) {
			return false
		}
		x.req.Env = append(x.req.Env, m.Name+"="+m.Value)
		return true
	case "shell", "exec", "subsystem":
		var m struct{ Text string }
		if x.proc != nil || r.Type != "shell" && ssh.Unmarshal(r.Payload, &m) != nil || strings.IndexByte(m.Text, 0) >= 0 {
			return false
		}
		x.req.Kind, x.req.Command = r.Type, m.Text
		p, err := x.s.b.Start(x.s.permit, &x.req)
		if err != nil {
			x.s.c.log().Warn("session not started", "user", x.s.permit.User, "from", x.s.remote, "error", err)
			return false
		}
		x.proc = p
		return true
	case "window-change":
		var m struct{ Columns, Rows, Width, Height uint32 }
		if ssh.Unmarshal(r.Payload, &m) != nil || x.req.PTY == nil {
			return false
		}
		x.req.PTY.Columns, x.req.PTY.Rows, x.req.PTY.Width, x.req.PTY.Height = m.Columns, m.Rows, m.Width, m.Height
		return x.proc == nil || x.proc.PTY == nil || setSize(x.proc.PTY, x.req.PTY) == nil
	case "signal":
		var m struct{ Name string }
		return x.proc != nil && ssh.Unmarshal(r.Payload, &m) == nil && x.proc.Signal(m.Name) == nil
	}
	return false
}

// goodEnv says whether a client may set a variable: what programs take as
// language and terminal (OpenSSH's usual AcceptEnv), nothing that changes which
// code runs.
func goodEnv(name, value string) bool {
	if len(name)+len(value) > maxEnvSize || strings.IndexByte(value, 0) >= 0 {
		return false
	}
	switch name {
	case "LANG", "LANGUAGE", "TZ", "COLORTERM", "NO_COLOR", "TERM_PROGRAM", "TERM_PROGRAM_VERSION":
		return true
	}
	rest, ok := strings.CutPrefix(name, "LC_")
	return ok && rest != "" && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == ""
}

// setSize tells a terminal its size.
func setSize(f *os.File, p *PTY) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ws := unix.Winsize{Row: uint16(min(p.Rows, 0xffff)), Col: uint16(min(p.Columns, 0xffff)), Xpixel: uint16(min(p.Width, 0xffff)), Ypixel: uint16(min(p.Height, 0xffff))}
	cerr := raw.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &ws) })
	return errors.Join(cerr, err)
}

// run carries data between the channel and the process until both are done.
func (x *session) run() {
	p := x.proc
	defer p.close()
	x.s.touch()
	var out sync.WaitGroup
	out.Go(func() {
		x.copy(x.ch, p.Stdout)
		if p.PTY == nil && p.Stderr == nil {
			x.ch.CloseWrite()
		}
	})
	if p.Stderr != nil {
		out.Go(func() { x.copy(x.ch.Stderr(), p.Stderr) })
	}
	x.s.work.Go(func() {
		x.copy(p.Stdin, x.ch)
		if p.PTY == nil {
			p.Stdin.Close()
		}
	})
	var end Exit
	select {
	case end = <-p.Done:
	case <-x.over:
		// The client has closed the channel, or is gone: a terminal hangs up when
		// its other end closes, the others are told.
		_ = p.Signal("HUP") // it may have ended
		p.close()
		out.Wait()
		return
	}
	if p.PTY != nil {
		p.PTY.SetReadDeadline(time.Now().Add(ptyGrace))
	}
	drained := make(chan struct{})
	x.s.work.Go(func() {
		out.Wait()
		close(drained)
	})
	select {
	case <-drained:
	case <-x.over:
		p.close()
		<-drained
		return
	}
	x.ch.CloseWrite()
	if end.Signal != "" {
		x.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Signal    string
			Core      bool
			Msg, Lang string
		}{Signal: end.Signal, Core: end.Core}))
		return
	}
	x.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(end.Code)}))
}

// copy carries data and notes that it passes.
func (x *session) copy(w io.Writer, r io.Reader) { x.s.copy(w, r) }

func (s *conn) copy(w io.Writer, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.touch()
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
