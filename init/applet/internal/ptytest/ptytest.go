// Package ptytest runs a full-screen or interactive program under a pseudo
// terminal in a test and shows what a person would see: a small VT100 keeps the
// screen. It knows the sequences that this module's own programs send, no more.
package ptytest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; it is generous because machines can be slow, and
// is reached only by a test that fails.
const patience = 20 * time.Second

// Session is a program and its terminal.
type Session struct {
	t    testing.TB
	cmd  *exec.Cmd
	ptmx *os.File

	mu      sync.Mutex
	screen  *screen
	raw     strings.Builder
	changed chan struct{} // closed and replaced at each change
	over    bool          // the program's side is closed
}

// Start runs cmd as the leader of a session on a new terminal of the size. The
// program is killed when the test ends.
func Start(t testing.TB, cols, rows int, cmd *exec.Cmd) *Session {
	t.Helper()
	ptmx, pts, err := open()
	if err != nil {
		t.Skipf("no pseudo terminal here: %v", err)
	}
	s := &Session{t: t, cmd: cmd, ptmx: ptmx, screen: newScreen(cols, rows), changed: make(chan struct{})}
	s.size(cols, rows)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pts, pts, pts
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	pts.Close()
	if err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	done := make(chan struct{})
	go s.follow(done)
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		ptmx.Close()
		<-done
		if t.Failed() {
			t.Logf("screen at the end:\n%s", s.Screen())
		}
	})
	return s
}

func open() (ptmx, pts *os.File, err error) {
	ptmx, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	conn, err := ptmx.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var n int
	var ioErr error
	err = conn.Control(func(fd uintptr) {
		if ioErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioErr == nil {
			n, ioErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err = errors.Join(err, ioErr); err == nil {
		pts, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		ptmx.Close()
		return nil, nil, err
	}
	return ptmx, pts, nil
}

func (s *Session) size(cols, rows int) {
	conn, err := s.ptmx.SyscallConn()
	if err == nil {
		cerr := conn.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		s.t.Fatalf("set the terminal's size: %v", err)
	}
}

func (s *Session) follow(done chan struct{}) {
	defer close(done)
	buf := make([]byte, 4096)
	for {
		n, err := s.ptmx.Read(buf)
		s.mu.Lock()
		s.screen.write(buf[:n])
		s.raw.Write(buf[:n])
		s.over = err != nil
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Resize changes the terminal's size, which sends SIGWINCH.
func (s *Session) Resize(cols, rows int) {
	s.t.Helper()
	s.mu.Lock()
	s.screen.resize(cols, rows)
	s.mu.Unlock()
	s.size(cols, rows)
}

// Send types text.
func (s *Session) Send(text string) {
	s.t.Helper()
	if _, err := s.ptmx.WriteString(text); err != nil {
		s.t.Fatalf("type %q: %v", text, err)
	}
}

// Screen is what is visible, without blanks at the ends of lines and without
// empty lines at the end.
func (s *Session) Screen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.String()
}

// Cursor is the position of the cursor, from 0.
func (s *Session) Cursor() (row, col int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.y, s.screen.x
}

// Raw is everything the program sent.
func (s *Session) Raw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

// Until waits until the condition holds for the screen.
func (s *Session) Until(what string, ok func(screen string) bool) {
	s.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		text, changed, over := s.screen.String(), s.changed, s.over
		s.mu.Unlock()
		if ok(text) {
			return
		}
		if over {
			s.t.Fatalf("the program ended while waiting for %s; screen:\n%s", what, text)
		}
		select {
		case <-changed:
		case <-deadline.C:
			s.t.Fatalf("%s did not appear in %v; screen:\n%s\nraw: %q", what, patience, text, s.Raw())
		}
	}
}

// WaitFor waits until the text is on the screen.
func (s *Session) WaitFor(text string) {
	s.t.Helper()
	s.Until(fmt.Sprintf("%q", text), func(screen string) bool { return strings.Contains(screen, text) })
}

// Exit waits for the program to end and returns its exit code (-1: killed).
func (s *Session) Exit() int {
	s.t.Helper()
	done := make(chan struct{})
	go func() {
		s.cmd.Wait() // the state tells how it ended
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		s.cmd.Process.Kill()
		<-done
		s.t.Fatalf("the program did not end in %v; screen:\n%s", patience, s.Screen())
	}
	return s.cmd.ProcessState.ExitCode()
}

// Foreground waits until a program of the name (as in /proc/PID/comm) leads the
// terminal's foreground process group.
func (s *Session) Foreground(name string) {
	s.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		group := 0
		conn, err := s.ptmx.SyscallConn()
		if err != nil {
			s.t.Fatal(err)
		}
		if cerr := conn.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) }); cerr != nil {
			s.t.Fatal(cerr)
		}
		comm := "nobody"
		if err == nil {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", group)) // gone already: look again
			comm = strings.TrimSpace(string(b))
		}
		if comm == name {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			s.t.Fatalf("%s has the terminal, not %s; screen:\n%s", comm, name, s.Screen())
		}
	}
}
