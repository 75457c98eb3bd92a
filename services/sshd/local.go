package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"weft/init/crypt"
)

// SFTPServer is the program of the subsystem sftp, another name of this binary.
const SFTPServer = "/usr/libexec/sftp-server"

// userPath is where users' programs are found.
const userPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// blankHash is checked where there is no account, so that the time tells nothing.
const blankHash = "$6$saltstringsaltst$aBt5hFIyMxIZt5mGvjRgRDuFBvEzR5ScYuI0AOcYTZ0KQXNnhkdpQ0FpcYGfvCm30LTuLTf3HjnZ0IuuYrS3T."

var errDenied = errors.New("permission denied")

// Local decides by the files of accounts and keys, and starts what users run. It
// needs root, or the rights of the only user who logs in.
type Local struct {
	Etc  string   // folder of passwd, shadow, group and shells; "": /etc
	Keys []string // authorized keys of root, besides ~/.ssh/authorized_keys of each user

	Passwords     bool // logins by password at all
	RootPasswords bool // of root by password
	RootLogin     bool // of root at all
	// Blank lets an account that has no password in without one. It is asked for
	// clients in private address ranges alone.
	Blank bool

	Shell string // instead of the shells of the accounts
	Log   *slog.Logger
}

// verifying lets one password be checked at a time: it is meant to be slow.
var verifying sync.Mutex

func verify(hash, password string) bool {
	verifying.Lock()
	defer verifying.Unlock()
	return crypt.Verify(hash, password)
}

// For returns the backend of one connection.
func (l *Local) For(nc net.Conn) Backend { return l.forPeer(addrPort(nc.RemoteAddr())) }

func (l *Local) forPeer(from netip.AddrPort) *local { return &local{Local: l, from: from} }

type local struct {
	*Local
	from netip.AddrPort
}

func (l *local) etc() string {
	if l.Etc == "" {
		return "/etc"
	}
	return l.Etc
}

func (l *local) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}

// account returns a user that may log in. The texts of the log lines are those
// of Dropbear, which tools that ban addresses look for.
func (l *local) account(user string) (*account, error) {
	a, err := lookup(l.etc(), user)
	switch {
	case errors.Is(err, errNoUser):
		l.log().Warn(fmt.Sprintf("Login attempt for nonexistent user from %v", l.from))
		return nil, err
	case err != nil:
		l.log().Error("account not usable", "user", user, "error", err)
		return nil, err
	case a.uid == 0 && !l.RootLogin:
		return nil, fmt.Errorf("root login rejected: %w", errDenied)
	case l.Shell == "" && !validShell(l.etc(), a.shell):
		l.log().Warn("User has invalid shell, rejected", "user", user, "shell", a.shell, "from", l.from)
		return nil, fmt.Errorf("shell %s is not in shells: %w", a.shell, errDenied)
	}
	return a, nil
}

func (l *local) mayPassword(a *account) bool {
	return l.Passwords && (a.uid != 0 || l.RootPasswords)
}

// private says whether a client is in an address range of local networks (RFC
// 1918, 4193, 3927, 4291). There a device without a password takes logins as
// LEDE's does; from the internet never.
func private(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast()
}

// Blank lets in who needs no password.
func (l *local) Blank(user string) (*Permit, error) {
	if !l.Local.Blank || !private(l.from.Addr()) {
		return nil, errDenied
	}
	a, err := lookup(l.etc(), user)
	if err != nil || a.hash != "" || !l.mayPassword(a) || a.uid == 0 && !l.RootLogin || l.Shell == "" && !validShell(l.etc(), a.shell) {
		return nil, errDenied
	}
	l.log().Warn(fmt.Sprintf("Auth succeeded with blank password for '%s' from %v", a.name, l.from))
	return &Permit{User: a.name}, nil
}

// Password checks a password.
func (l *local) Password(user, password string) (*Permit, error) {
	a, err := l.account(user)
	if err != nil || !l.mayPassword(a) {
		verify(blankHash, password)
		return nil, errDenied
	}
	ok := false
	if a.hash == "" {
		ok = password == "" && l.Local.Blank && private(l.from.Addr())
		verify(blankHash, password)
	} else {
		ok = verify(a.hash, password)
	}
	if !ok {
		l.log().Warn(fmt.Sprintf("Bad password attempt for '%s' from %v", a.name, l.from))
		return nil, errDenied
	}
	l.log().Info(fmt.Sprintf("Password auth succeeded for '%s' from %v", a.name, l.from))
	return &Permit{User: a.name}, nil
}

// keyFiles are where the keys of a user may be.
func (l *local) keyFiles(a *account) []string {
	var files []string
	if a.uid == 0 {
		files = slices.Clone(l.Keys)
	}
	return append(files, filepath.Join(a.home, ".ssh", "authorized_keys"))
}

// PublicKey looks for a key among the authorized ones.
func (l *local) PublicKey(user string, key ssh.PublicKey) (*Permit, error) {
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, fmt.Errorf("certificates are not supported: %w", errDenied)
	}
	a, err := l.account(user)
	if err != nil {
		return nil, err
	}
	for _, f := range l.keyFiles(a) {
		text, err := readKeys(f, a.uid)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			l.log().Warn("authorized keys not used", "error", err)
			continue
		}
		p, err := authorized(text, a.name, key, l.from.Addr(), time.Now())
		if err == nil {
			return p, nil
		}
		if err != errNotAuthorized { // the key is there, but not for this client
			l.log().Warn("key refused", "user", a.name, "from", l.from, "error", err)
		}
	}
	return nil, errNotAuthorized
}

// Verified notes a login by key.
func (l *local) Verified(user string, key ssh.PublicKey) error {
	l.log().Info(fmt.Sprintf("Pubkey auth succeeded for '%s' with %s key %s from %v", user, key.Type(), ssh.FingerprintSHA256(key), l.from))
	return nil
}

// Listen listens for a forwarding; ports below 1024 are root's.
func (l *local) Listen(p *Permit, addr string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	a, err := lookup(l.etc(), p.User)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.Atoi(port); err != nil || n != 0 && n < 1024 && a.uid != 0 {
		return nil, fmt.Errorf("listen on port %s: only root may: %w", port, errDenied)
	}
	return net.Listen("tcp", addr)
}

// Start starts what a session asks for, with local pipes or a terminal.
func (l *local) Start(p *Permit, r *Request) (*Process, error) {
	ends, err := l.start(p, r)
	if err != nil {
		return nil, err
	}
	return ends.process()
}

// started is a running process and our ends of its streams.
type started struct {
	pty                   *os.File // or
	stdin, stdout, stderr *os.File
	signal                func(name string) error
	done                  chan Exit
}

func (s *started) files() []*os.File {
	if s.pty != nil {
		return []*os.File{s.pty}
	}
	return []*os.File{s.stdin, s.stdout, s.stderr}
}

func (s *started) close() {
	for _, f := range s.files() {
		if f != nil {
			f.Close()
		}
	}
}

func (s *started) process() (*Process, error) {
	p := &Process{Signal: s.signal, Done: s.done}
	if s.pty != nil {
		p.PTY, p.Stdin, p.Stdout = s.pty, nopCloser{s.pty}, s.pty
		return p, nil
	}
	p.Stdin, p.Stdout, p.Stderr = s.stdin, s.stdout, s.stderr
	return p, nil
}

// nopCloser keeps the end of input from closing a terminal.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// start starts what r asks for as the user of p.
func (l *local) start(p *Permit, r *Request) (*started, error) {
	a, err := lookup(l.etc(), p.User)
	if err != nil {
		return nil, err
	}
	cmd, err := l.command(a, p, r)
	if err != nil {
		return nil, err
	}
	s := &started{done: make(chan Exit, 1)}
	var theirs []*os.File
	closeAll := func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	if r.PTY != nil && !p.NoPTY {
		master, slave, err := openPTY(r.PTY, a)
		if err != nil {
			return nil, err
		}
		s.pty, theirs = master, []*os.File{slave}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setctty = true
		cmd.Env = append(cmd.Env, "SSH_TTY="+slave.Name(), "TERM="+r.PTY.Term)
	} else {
		for _, pipe := range []struct {
			mine **os.File
			to   any
			in   bool
		}{{&s.stdin, &cmd.Stdin, true}, {&s.stdout, &cmd.Stdout, false}, {&s.stderr, &cmd.Stderr, false}} {
			pr, pw, err := os.Pipe()
			if err != nil {
				closeAll()
				s.close()
				return nil, fmt.Errorf("make a pipe: %w", err)
			}
			if pipe.in {
				*pipe.mine, cmd.Stdin = pw, pr
				theirs = append(theirs, pr)
				continue
			}
			*pipe.mine = pr
			*pipe.to.(*io.Writer) = pw
			theirs = append(theirs, pw)
		}
	}
	err = cmd.Start()
	closeAll()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("start %s for %s: %w", cmd.Path, a.name, err)
	}
	s.signal = func(name string) error {
		sig, ok := signalNamed(name)
		if !ok {
			return fmt.Errorf("signal %q: %w", name, errors.ErrUnsupported)
		}
		return unix.Kill(-cmd.Process.Pid, sig)
	}
	go func() { // ends with the process
		cmd.Wait()
		s.done <- exitOf(cmd.ProcessState)
	}()
	return s, nil
}

// exitOf is how a process has ended.
func exitOf(ps *os.ProcessState) Exit {
	ws, ok := ps.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return Exit{Code: ps.ExitCode()}
	}
	e := Exit{Code: 128 + int(ws.Signal()), Core: ws.CoreDump(), Signal: strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG")}
	if e.Signal == "" {
		e.Signal = "KILL"
	}
	return e
}

// command is what r runs as user a.
func (l *local) command(a *account, p *Permit, r *Request) (*exec.Cmd, error) {
	shell := a.shell
	if l.Shell != "" {
		shell = l.Shell
	}
	kind, text := r.Kind, r.Command
	env := []string{
		"USER=" + a.name, "LOGNAME=" + a.name, "HOME=" + a.home, "SHELL=" + shell, "PATH=" + userPath,
	}
	if r.Remote.IsValid() {
		env = append(env, fmt.Sprintf("SSH_CLIENT=%s %d %d", r.Remote.Addr(), r.Remote.Port(), r.Local.Port()),
			fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", r.Remote.Addr(), r.Remote.Port(), r.Local.Addr(), r.Local.Port()))
	}
	env = append(env, r.Env...)
	if p.Command != "" {
		if kind != "shell" {
			env = append(env, "SSH_ORIGINAL_COMMAND="+text)
		}
		kind, text = "exec", p.Command
	}
	var cmd *exec.Cmd
	base := filepath.Base(shell)
	switch kind {
	case "shell":
		cmd = exec.CommandContext(context.Background(), shell)
		cmd.Args = []string{"-" + base} // a login shell
	case "exec":
		cmd = exec.CommandContext(context.Background(), shell)
		cmd.Args = []string{base, "-c", text}
	case "subsystem":
		if text != "sftp" {
			return nil, fmt.Errorf("subsystem %q: only sftp is offered: %w", text, errors.ErrUnsupported)
		}
		cmd = exec.CommandContext(context.Background(), SFTPServer)
		if _, err := os.Stat(SFTPServer); err != nil {
			cmd.Path, cmd.Args, cmd.Err = "/proc/self/exe", []string{filepath.Base(SFTPServer)}, nil
		}
	default:
		return nil, fmt.Errorf("session of kind %q: %w", kind, errors.ErrUnsupported)
	}
	cmd.Env = env
	cmd.Dir = a.home
	if fi, err := os.Stat(a.home); err != nil || !fi.IsDir() {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
	} else if int(a.uid) != os.Getuid() {
		return nil, fmt.Errorf("start a session of %s without root: %w", a.name, errDenied)
	}
	return cmd, nil
}
