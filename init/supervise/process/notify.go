package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// NotifyListener receives the sd_notify messages of services.
type NotifyListener struct {
	conn *net.UnixConn
	path string
}

// ListenNotify makes the socket at path, which everybody may write to: what
// counts is the sender's process, and the kernel vouches for that
// (SCM_CREDENTIALS).
func ListenNotify(path string) (*NotifyListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make notify socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old notify socket: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	fail := func(err error) (*NotifyListener, error) {
		conn.Close()
		return nil, fmt.Errorf("set up notify socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return fail(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fail(err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	}); err != nil {
		return fail(err)
	}
	if serr != nil {
		return fail(serr)
	}
	return &NotifyListener{conn: conn, path: path}, nil
}

// Path of the socket, for NOTIFY_SOCKET.
func (l *NotifyListener) Path() string { return l.path }

// Message is one notification.
type Message struct {
	PID       int // of the sender
	Ready     bool
	Reloading bool
	Stopping  bool
	Watchdog  bool
	HasStatus bool
	Status    string
}

// Run hands messages to f until ctx ends.
func (l *NotifyListener) Run(ctx context.Context, f func(Message)) error {
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	defer l.conn.Close()
	buf := make([]byte, 4096)
	oob := make([]byte, 256)
	for {
		n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("receive notifications: %w", err)
			}
			continue // one bad datagram (a truncated control message) must not deafen us
		}
		pid := senderPID(oob[:oobn])
		if pid <= 0 {
			continue
		}
		m := ParseNotify(string(buf[:n]))
		m.PID = pid
		f(m)
	}
}

// senderPID is the process that the kernel names as sender. Descriptors that
// somebody attached (FDSTORE=1) are closed: PID 1 stores none.
func senderPID(oob []byte) int {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	pid := 0
	for i := range msgs {
		if fds, err := syscall.ParseUnixRights(&msgs[i]); err == nil {
			for _, fd := range fds {
				syscall.Close(fd)
			}
			continue
		}
		if cred, err := syscall.ParseUnixCredentials(&msgs[i]); err == nil {
			pid = int(cred.Pid)
		}
	}
	return pid
}

// ParseNotify reads the lines of one datagram, sd_notify(3). Unknown ones are
// ignored, as the protocol wants.
func ParseNotify(text string) Message {
	var m Message
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case line == "READY=1":
			m.Ready = true
		case line == "RELOADING=1":
			m.Reloading = true
		case line == "STOPPING=1":
			m.Stopping = true
		case line == "WATCHDOG=1":
			m.Watchdog = true
		case strings.HasPrefix(line, "STATUS="):
			m.HasStatus = true
			m.Status = printable(line[len("STATUS="):], 256)
		}
	}
	return m
}

// printable makes text fit to be shown: no control characters, valid UTF-8, at
// most max bytes.
func printable(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > max {
		s = strings.ToValidUTF8(s[:max], "")
	}
	return s
}
