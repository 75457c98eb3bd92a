package sshd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds one message between the service and the process of a
	// connection, in bytes.
	maxMessage = 128 << 10
	// maxFiles bounds the files that travel with a message.
	maxFiles = 3
)

// message is what the process of a connection asks (ID counts up, Op names it),
// what the service answers (same ID), or that a session has ended (Op "exit").
type message struct {
	ID uint32
	Op string `json:",omitempty"`

	// Of requests.
	User     string   `json:",omitempty"`
	Password string   `json:",omitempty"`
	Key      []byte   `json:",omitempty"` // a public key as on the wire
	Host     int      `json:",omitempty"` // number of the host key that signs
	Algo     string   `json:",omitempty"`
	Data     []byte   `json:",omitempty"` // to be signed
	Request  *Request `json:",omitempty"`
	Session  uint32   `json:",omitempty"`
	Name     string   `json:",omitempty"` // a signal; an address

	// Of answers.
	Err    string  `json:",omitempty"`
	Permit *Permit `json:",omitempty"`
	Format string  `json:",omitempty"` // of a signature
	Blob   []byte  `json:",omitempty"`
	Hello  *hello  `json:",omitempty"`
	Exit   *Exit   `json:",omitempty"`
	files  []*os.File
	done   chan Exit // of a session that was started, at the one who asked
}

// hello tells a new process what it serves.
type hello struct {
	HostKeys     [][]byte // public halves
	Passwords    bool
	GatewayPorts bool
	Banner       string
	MaxAuthTries int
	IdleTimeout  int64 // nanoseconds, as the next ones
	KeepAlive    int64
	Grace        int64
}

// pipe is one end of the socket pair. Messages keep their bounds.
type pipe struct {
	c  *net.UnixConn
	mu sync.Mutex // one writer at a time
}

// newPair makes a socket pair: our end, and a file for the other process.
func newPair() (*pipe, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "connection")
	ours, err := newPipe(os.NewFile(uintptr(fds[0]), "service"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// newPipe takes over f.
func newPipe(f *os.File) (*pipe, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket to the service: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("socket to the service: not a unix socket")
	}
	return &pipe{c: u}, nil
}

func (p *pipe) close() { p.c.Close() }

// send sends a message and closes the files that travel with it.
func (p *pipe) send(m *message) error {
	defer m.closeFiles()
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes, at most %d were expected", len(b), maxMessage)
	}
	var oob []byte
	if len(m.files) > 0 {
		fds := make([]int, len(m.files))
		for i, f := range m.files {
			raw, err := f.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds[i] = int(fd) }) // m holds it open
			}
			if err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _, err = p.c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive waits for a message. Its files are the caller's.
func (p *pipe) receive() (*message, error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := p.c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	m := &message{}
	if oobn > 0 {
		if m.files, err = files(oob[:oobn]); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		m.closeFiles()
		return nil, errors.New("closed")
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.closeFiles()
		return nil, errors.New("message cut short")
	}
	if err := json.Unmarshal(b[:n], m); err != nil {
		m.closeFiles()
		return nil, fmt.Errorf("message: %w", err)
	}
	return m, nil
}

// files takes the descriptors out of a control message.
func files(oob []byte) ([]*os.File, error) {
	cmsgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var list []*os.File
	for _, c := range cmsgs {
		fds, err := syscall.ParseUnixRights(&c)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			syscall.SetNonblock(fd, true) // so that reads can be given up
			list = append(list, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return list, nil
}

func (m *message) closeFiles() {
	for _, f := range m.files {
		f.Close()
	}
	m.files = nil
}
