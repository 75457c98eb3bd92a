package process

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper starts processes and collects every child of this program.
type Reaper struct {
	mu      sync.Mutex
	procs   map[int]func(pid int, ws syscall.WaitStatus)
	orphans int
	sigchld chan os.Signal
}

// NewReaper returns a Reaper; children are collected while Run runs.
func NewReaper() *Reaper {
	r := &Reaper{
		procs:   map[int]func(int, syscall.WaitStatus){},
		sigchld: make(chan os.Signal, 1),
	}
	// From here on no SIGCHLD is lost, whenever Run begins.
	signal.Notify(r.sigchld, syscall.SIGCHLD)
	return r
}

// Start forks and executes path. started, if not nil, is called before the
// process can be collected, ended after it was; neither may block or call the
// Reaper. On an error neither is called.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr, started func(pid int), ended func(pid int, ws syscall.WaitStatus)) (int, error) {
	// ForkExec waits for a child whose exec failed; holding the lock keeps
	// collect from snatching it, and keeps a process that dies at once from
	// being collected before it is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, err
	}
	r.procs[pid] = ended
	if started != nil {
		started(pid)
	}
	return pid, nil
}

// Signal sends sig to a process that Start started and that was not collected
// yet; to any other it does nothing and returns ESRCH. It cannot hit a stranger
// that got the same number.
func (r *Reaper) Signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.procs[pid] == nil {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, sig)
}

// SignalGroup is Signal for the process group that a started process leads.
func (r *Reaper) SignalGroup(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.procs[pid] == nil {
		return syscall.ESRCH
	}
	return syscall.Kill(-pid, sig)
}

// Run collects children until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	signal.Notify(r.sigchld, syscall.SIGCHLD) // again, if Run is called again after a panic
	defer signal.Stop(r.sigchld)
	for {
		for r.collect() {
		}
		select {
		case <-ctx.Done():
			return
		case <-r.sigchld:
		}
	}
}

// collect takes one dead child; false if there is none.
func (r *Reaper) collect() bool {
	r.mu.Lock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
	if err == syscall.EINTR {
		r.mu.Unlock()
		return true
	}
	if err != nil || pid <= 0 {
		r.mu.Unlock()
		return false
	}
	ended := r.procs[pid]
	if ended == nil {
		r.orphans++
	}
	delete(r.procs, pid)
	r.mu.Unlock()
	if ended != nil {
		ended(pid, ws)
	}
	return true
}

// Orphans is the number of children collected that Start did not start.
func (r *Reaper) Orphans() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans
}
