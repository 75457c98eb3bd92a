package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// connectionName is the applet that speaks the protocol on one connection.
const connectionName = "sshd-connection"

// The descriptors that the service hands to the process of a connection.
const (
	serviceFD = 3 + iota
	clientFD
)

// maxOpenFiles bounds the descriptors of the process of a connection.
const maxOpenFiles = 512

// Connection serves the client on descriptor 4 and asks the service on
// descriptor 3. The service starts it; it is of no use by hand.
func Connection(ctx context.Context, c *unit.Call) int {
	log := unit.NewLog(c.Stderr, c.Getenv("NOTIFY_SOCKET") != "" || c.Getenv("WEFT_LOG_PREFIX") != "", slog.LevelInfo)
	if err := connection(ctx, log); err != nil {
		log.Info(err.Error())
		return 1
	}
	return 0
}

func connection(ctx context.Context, log *slog.Logger) error {
	if err := confine(); err != nil {
		return err
	}
	p, err := newPipe(os.NewFile(serviceFD, "service"))
	if err != nil {
		return fmt.Errorf("serve a connection: %w; the service sshd starts this program", err)
	}
	defer p.close()
	f := os.NewFile(clientFD, "client")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("serve a connection: %w; the service sshd starts this program", err)
	}
	defer nc.Close()
	m, err := p.receive()
	if err != nil || m.Hello == nil {
		return fmt.Errorf("serve a connection: no word from the service: %w", err)
	}
	r := &remote{p: p, waiting: map[uint32]chan *message{}, exits: map[uint32]chan Exit{}}
	keys, err := r.hostKeys(m.Hello.HostKeys)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reading sync.WaitGroup
	defer reading.Wait()
	defer p.close()
	reading.Go(func() {
		r.read()
		if !r.loggedIn() {
			cancel() // nobody can log in any more
		}
	})
	return ServeConn(ctx, nc, &Config{
		HostKeys: keys, Backend: func(net.Conn) Backend { return r }, Passwords: m.Hello.Passwords,
		GatewayPorts: m.Hello.GatewayPorts, Banner: m.Hello.Banner, MaxAuthTries: m.Hello.MaxAuthTries,
		IdleTimeout: time.Duration(m.Hello.IdleTimeout), KeepAlive: time.Duration(m.Hello.KeepAlive), LoginGrace: time.Duration(m.Hello.Grace), Log: log,
	})
}

// confine gives up what the process of a connection has no use for: new rights
// by execve, more descriptors, being looked into.
func confine() error {
	if err := noNewPrivs(); err != nil {
		return fmt.Errorf("give up rights: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("give up rights: %w", err)
	}
	for which, n := range map[int]uint64{unix.RLIMIT_NOFILE: maxOpenFiles, unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0} {
		if err := syscall.Setrlimit(which, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("give up rights: %w", err)
		}
	}
	return nil
}

// noNewPrivs keeps this process, all its threads, from gaining rights by execve
// (prctl(2), PR_SET_NO_NEW_PRIVS).
func noNewPrivs() error {
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && n == 1 {
		return nil
	}
	_, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if e == 0 {
		return nil
	}
	if e != syscall.ENOTSUP {
		return e
	}
	// A program with cgo cannot do that for all threads: the one that has done it
	// starts the program anew.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// remote is the backend that asks the service.
type remote struct {
	p *pipe

	mu      sync.Mutex
	last    uint32
	in      bool // somebody has logged in
	gone    bool // the service is
	waiting map[uint32]chan *message
	exits   map[uint32]chan Exit
}

var errServiceGone = errors.New("the service is gone")

func (r *remote) loggedIn() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.in
}

// read hands answers to those who wait for them, until the service is gone.
func (r *remote) read() {
	for {
		m, err := r.p.receive()
		if err != nil {
			break
		}
		r.mu.Lock()
		if m.Op == "exit" && m.Exit != nil {
			if ch := r.exits[m.Session]; ch != nil {
				ch <- *m.Exit
				delete(r.exits, m.Session)
			}
			m.closeFiles()
		} else if ch := r.waiting[m.ID]; ch != nil {
			delete(r.waiting, m.ID)
			if m.Session != 0 && m.Err == "" {
				m.done = make(chan Exit, 1)
				r.exits[m.Session] = m.done
			}
			ch <- m
		} else {
			m.closeFiles()
		}
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	for _, ch := range r.waiting {
		close(ch)
	}
	clear(r.waiting)
}

// ask sends a request and waits for its answer.
func (r *remote) ask(m *message) (*message, error) {
	ch := make(chan *message, 1)
	r.mu.Lock()
	if r.gone {
		r.mu.Unlock()
		return nil, errServiceGone
	}
	r.last++
	m.ID = r.last
	r.waiting[m.ID] = ch
	r.mu.Unlock()
	if err := r.p.send(m); err != nil {
		r.mu.Lock()
		delete(r.waiting, m.ID)
		r.mu.Unlock()
		return nil, fmt.Errorf("ask the service: %w", err)
	}
	a := <-ch
	if a == nil {
		return nil, errServiceGone
	}
	if a.Err != "" {
		a.closeFiles()
		return nil, errors.New(a.Err)
	}
	return a, nil
}

func (r *remote) permit(m *message) (*Permit, error) {
	a, err := r.ask(m)
	if err != nil {
		return nil, err
	}
	defer a.closeFiles()
	if a.Permit == nil {
		return nil, errDenied
	}
	if m.Op != "publickey" {
		r.enter()
	}
	return a.Permit, nil
}

func (r *remote) enter() {
	r.mu.Lock()
	r.in = true
	r.mu.Unlock()
}

func (r *remote) Blank(user string) (*Permit, error) {
	return r.permit(&message{Op: "blank", User: user})
}

func (r *remote) Password(user, password string) (*Permit, error) {
	return r.permit(&message{Op: "password", User: user, Password: password})
}

func (r *remote) PublicKey(user string, key ssh.PublicKey) (*Permit, error) {
	return r.permit(&message{Op: "publickey", User: user, Key: key.Marshal()})
}

func (r *remote) Verified(user string, key ssh.PublicKey) error {
	_, err := r.ask(&message{Op: "verified", User: user, Key: key.Marshal()})
	if err == nil {
		r.enter()
	}
	return err
}

func (r *remote) Start(_ *Permit, req *Request) (*Process, error) {
	a, err := r.ask(&message{Op: "start", Request: req})
	if err != nil {
		return nil, err
	}
	s := &started{done: a.done, signal: func(name string) error {
		_, err := r.ask(&message{Op: "signal", Session: a.Session, Name: name})
		return err
	}}
	switch len(a.files) {
	case 1:
		s.pty = a.files[0]
	case 3:
		s.stdin, s.stdout, s.stderr = a.files[0], a.files[1], a.files[2]
	default:
		a.closeFiles()
		return nil, errors.New("start a session: the service sent no streams")
	}
	return s.process()
}

func (r *remote) Listen(_ *Permit, addr string) (net.Listener, error) {
	a, err := r.ask(&message{Op: "listen", Name: addr})
	if err != nil {
		return nil, err
	}
	defer a.closeFiles()
	if len(a.files) != 1 {
		return nil, errors.New("listen: the service sent no socket")
	}
	return net.FileListener(a.files[0])
}

// hostKeys are signers whose private halves the service has.
func (r *remote) hostKeys(blobs [][]byte) ([]ssh.Signer, error) {
	var keys []ssh.Signer
	for i, b := range blobs {
		pub, err := ssh.ParsePublicKey(b)
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		keys = append(keys, &remoteKey{r, i, pub})
	}
	return keys, nil
}

// remoteKey is a host key of the service.
type remoteKey struct {
	r   *remote
	i   int
	pub ssh.PublicKey
}

func (k *remoteKey) PublicKey() ssh.PublicKey { return k.pub }

func (k *remoteKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, "")
}

// SignWithAlgorithm lets RSA keys sign with SHA-2 (RFC 8332).
func (k *remoteKey) SignWithAlgorithm(_ io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	a, err := k.r.ask(&message{Op: "sign", Host: k.i, Algo: algorithm, Data: data})
	if err != nil {
		return nil, err
	}
	a.closeFiles()
	return &ssh.Signature{Format: a.Format, Blob: a.Blob}, nil
}
