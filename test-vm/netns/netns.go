// Package netns makes network namespaces for the lab: each is a thread of this program that functions and processes are
// started from. Nothing has a name in the file system, and everything goes with the program, however it ends: processes
// started here are killed with it, and a namespace without processes is removed by the kernel.
//
// It takes root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRoot is returned where namespaces cannot be made for want of privileges.
var ErrNotRoot = errors.New("network namespaces need root: run with sudo, or in QEMU with --backend qemu")

// Space is one network namespace.
type Space struct {
	Name string

	calls chan func()
	stop  chan struct{}
	gone  chan struct{}
	file  *os.File // of the namespace, for others to enter it

	mu     sync.Mutex
	closed bool
	procs  map[*Process]struct{}
}

// New makes a namespace whose loopback device is up.
func New(name string) (*Space, error) {
	s := &Space{Name: name, calls: make(chan func()), stop: make(chan struct{}), gone: make(chan struct{}), procs: map[*Process]struct{}{}}
	made := make(chan error)
	go func() {
		defer close(s.gone)
		// Never unlocked: the thread ends with the goroutine, and with it the namespace.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		made <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-s.calls:
				f()
			case <-s.stop:
				return
			}
		}
	}()
	if err := <-made; err != nil {
		if errors.Is(err, unix.EPERM) {
			err = ErrNotRoot
		}
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if err := s.Do(loopbackUp); err != nil {
		s.Close()
		return nil, fmt.Errorf("network namespace %s: loopback: %w", name, err)
	}
	return s, nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// Do runs f on the namespace's thread: sockets that f opens, and what it reads below /proc/sys/net, are the
// namespace's. f must not start a goroutine for such work.
func (s *Space) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.calls <- func() { result <- f() }:
		return <-result
	case <-s.gone:
		return fmt.Errorf("network namespace %s is closed", s.Name)
	}
}

// Path is the namespace as a file that setns(2) takes, for as long as this program runs.
func (s *Space) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// Fd is the namespace's descriptor, valid until Close.
func (s *Space) Fd() int { return int(s.file.Fd()) }

// Sysctl sets a value by its dotted name, below net.
func (s *Space) Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	err := s.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("namespace %s: set %s to %s: %w", s.Name, name, value, err)
	}
	return nil
}

// Process is a program that runs in a namespace, in a process group of its own.
type Process struct {
	space *Space
	cmd   *exec.Cmd
	done  chan struct{}
	err   error
}

// Start starts cmd in the namespace. It and its children are killed by [Process.Kill], [Space.Kill] or [Space.Close], or
// when this program ends.
func (s *Space) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{space: s, cmd: cmd, done: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if !cmd.SysProcAttr.Setsid {
		cmd.SysProcAttr.Setpgid = true
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // of the thread, which lives as long as the namespace
	cmd.WaitDelay = 2 * time.Second             // a grandchild may hold the pipes
	if err := s.Do(func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		err := cmd.Start()
		if err == nil {
			s.procs[p] = struct{}{}
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("namespace %s: start %s: %w", s.Name, cmd.Path, err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
		s.mu.Lock()
		delete(s.procs, p)
		s.mu.Unlock()
	}()
	return p, nil
}

// Pid is the number of the process, and of its group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended, as [exec.Cmd.Wait] does.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Kill kills the process group and waits for its end.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end, and kills it after patience.
func (p *Process) Stop(patience time.Duration) {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
	}
}

// signal reaches the group only while its leader has not been reaped, so that the number is surely ours.
func (p *Process) signal(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		syscall.Kill(-p.cmd.Process.Pid, sig) // an error means that it has gone just now
	}
}

// Kill kills all processes of the namespace at once, as a power cut does.
func (s *Space) Kill() {
	for _, p := range s.processes() {
		p.Kill()
	}
}

func (s *Space) processes() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Process
	for p := range s.procs {
		all = append(all, p)
	}
	return all
}

// Close asks the processes of the namespace to end, kills what has not after a second, and removes the namespace.
func (s *Space) Close() error {
	var wait sync.WaitGroup
	for _, p := range s.processes() {
		wait.Go(func() { p.Stop(time.Second) })
	}
	wait.Wait()
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	close(s.stop)
	<-s.gone
	return s.file.Close()
}
