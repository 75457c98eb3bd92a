package sshd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// maxSigned bounds what a host key signs: the exchange hash of a key exchange
	// has 20 to 64 bytes (RFC 4253, section 8).
	minSigned, maxSigned = 20, 64
	// maxStarts bounds the sessions that one connection may have started at the
	// same time; maxQueries the keys it may ask about.
	maxStarts, maxQueries = maxSessions, 64
)

// monitor is the service's side of one connection: it does what the process that
// speaks the protocol asks for, as far as the login allows.
type monitor struct {
	log   *slog.Logger
	b     *local
	keys  []ssh.Signer
	p     *pipe
	from  netip.AddrPort
	to    netip.AddrPort
	force string               // command that runs instead of any other
	fail  func() time.Duration // counts a failed login and says how long to wait
	good  func()
	login func() // told once, when somebody has logged in
	max   int    // passwords and keys that may fail

	permit  *Permit // who has logged in, nil: nobody yet
	offered map[string]*Permit
	queries int
	failed  int
	next    uint32
	running map[uint32]*started
	ended   chan ended
}

type ended struct {
	id   uint32
	exit Exit
}

// serve answers requests until the process is gone or ctx ends. What ran for a
// client that is gone is hung up on.
func (m *monitor) serve(ctx context.Context) {
	defer func() {
		if ctx.Err() == nil {
			for _, s := range m.running {
				_ = s.signal("HUP") // it may have ended
			}
		}
	}()
	m.offered = map[string]*Permit{}
	m.running = map[uint32]*started{}
	m.ended = make(chan ended)
	stop := make(chan struct{})
	defer close(stop)
	requests := make(chan *message)
	go func() { // ends with the pipe, or when serve returns
		defer close(requests)
		for {
			r, err := m.p.receive()
			if err != nil {
				return
			}
			r.closeFiles() // none are expected
			select {
			case requests <- r:
			case <-stop:
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-m.ended:
			delete(m.running, e.id)
			if m.p.send(&message{Op: "exit", Session: e.id, Exit: &e.exit}) != nil {
				return
			}
		case r, ok := <-requests:
			if !ok {
				return
			}
			a, wait, err := m.answer(r, stop)
			if err != nil {
				a = &message{Err: err.Error()}
			}
			a.ID = r.ID
			if wait > 0 {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
			}
			if m.p.send(a) != nil {
				return
			}
		}
	}
}

// answer does what one request asks for. wait delays the answer.
func (m *monitor) answer(r *message, stop <-chan struct{}) (a *message, wait time.Duration, err error) {
	a = &message{}
	switch r.Op {
	case "sign":
		err = m.sign(r, a)
		return a, 0, err
	case "blank", "password", "publickey", "verified":
		if m.permit != nil {
			return nil, 0, errors.New("already logged in")
		}
		wait, err = m.authenticate(r, a)
		return a, wait, err
	}
	if m.permit == nil {
		return nil, 0, fmt.Errorf("%q before a login: %w", r.Op, errDenied)
	}
	switch r.Op {
	case "start":
		err = m.start(r, a, stop)
	case "signal":
		if s := m.running[r.Session]; s != nil {
			err = s.signal(r.Name)
		} else {
			err = errors.New("no such session")
		}
	case "listen":
		err = m.listen(r, a)
	default:
		err = fmt.Errorf("request %q is not known", r.Op)
	}
	return a, 0, err
}

// sign signs the hash of a key exchange, nothing else.
func (m *monitor) sign(r, a *message) error {
	if r.Host < 0 || r.Host >= len(m.keys) || len(r.Data) < minSigned || len(r.Data) > maxSigned {
		return errors.New("sign: not the hash of a key exchange")
	}
	var sig *ssh.Signature
	var err error
	if k, ok := m.keys[r.Host].(ssh.AlgorithmSigner); ok && r.Algo != "" {
		sig, err = k.SignWithAlgorithm(nil, r.Data, r.Algo)
	} else {
		sig, err = m.keys[r.Host].Sign(nil, r.Data)
	}
	if err != nil {
		return err
	}
	a.Format, a.Blob = sig.Format, sig.Blob
	return nil
}

// authenticate handles the requests of a login. The process may not try more
// than the protocol would let a client try.
func (m *monitor) authenticate(r, a *message) (wait time.Duration, err error) {
	if m.failed >= m.max {
		return 0, errDenied
	}
	var p *Permit
	switch r.Op {
	case "blank":
		p, err = m.b.Blank(r.User)
		if err != nil {
			return 0, err // every client tries that first
		}
	case "password":
		p, err = m.b.Password(r.User, r.Password)
		if err != nil {
			m.failed++
			return m.fail(), err
		}
	case "publickey", "verified":
		key, kerr := ssh.ParsePublicKey(r.Key)
		if kerr != nil {
			return 0, kerr
		}
		id := r.User + "\x00" + string(r.Key)
		if r.Op == "publickey" {
			if m.queries++; m.queries > maxQueries {
				return 0, errDenied
			}
			p, err = m.b.PublicKey(r.User, key)
			if err != nil {
				return 0, err
			}
			m.offered[id] = p
			a.Permit = p
			return 0, nil // a login only with the signature
		}
		if p = m.offered[id]; p == nil {
			return 0, errDenied
		}
		if err := m.b.Verified(r.User, key); err != nil {
			return 0, err
		}
	}
	if m.force != "" {
		p.Command = m.force
	}
	a.Permit, m.permit = p, p
	m.good()
	m.login()
	return 0, nil
}

func (m *monitor) start(r, a *message, stop <-chan struct{}) error {
	if r.Request == nil || len(m.running) >= maxStarts {
		return errors.New("start: too many sessions, or none asked for")
	}
	req := *r.Request
	req.Remote, req.Local = m.from, m.to
	for _, e := range req.Env {
		if name, value, ok := strings.Cut(e, "="); !ok || !goodEnv(name, value) {
			return fmt.Errorf("variable %q: %w", e, errDenied)
		}
	}
	s, err := m.b.start(m.permit, &req)
	if err != nil {
		return err
	}
	m.next++
	id := m.next
	m.running[id] = s
	a.Session, a.files = id, s.files()
	go func() { // ends with the process, or when serve returns
		select {
		case e := <-s.done:
			select {
			case m.ended <- ended{id, e}:
			case <-stop:
			}
		case <-stop:
		}
	}()
	return nil
}

func (m *monitor) listen(r, a *message) error {
	if m.permit.NoForward {
		return errDenied
	}
	ln, err := m.b.Listen(m.permit, r.Name)
	if err != nil {
		return err
	}
	defer ln.Close()
	t, ok := ln.(*net.TCPListener)
	if !ok {
		return errors.New("listen: not TCP")
	}
	f, err := t.File()
	if err != nil {
		return err
	}
	a.files = []*os.File{f}
	return nil
}

// spawn starts the process of a connection as user id uid, gid; root alone can
// give it another user than its own.
func spawn(exe string, client *os.File, uid, gid uint32, stderr *os.File) (*exec.Cmd, *pipe, error) {
	p, theirs, err := newPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(exe)
	cmd.Args = []string{connectionName}
	cmd.Dir = "/"
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{theirs, client}
	cmd.Env = []string{"GOGC=50", "GOMEMLIMIT=24MiB", "GOMAXPROCS=2", "PATH=" + userPath}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		cmd.Env = append(cmd.Env, "WEFT_LOG_PREFIX=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	if err := cmd.Start(); err != nil {
		p.close()
		return nil, nil, fmt.Errorf("start the process of a connection: %w", err)
	}
	return cmd, p, nil
}
