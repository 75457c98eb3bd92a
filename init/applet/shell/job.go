package shell

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"
)

// job is a pipeline that job control can name.
type job struct {
	mu   sync.Mutex // pgid and pids while the pipeline is being started
	pgid int
	pids []int
	text string

	id      int
	owner   *shell // the environment that started it
	left    int    // processes that have not ended
	last    int    // the process whose status is the job's
	status  int
	state   jobState
	told    bool          // the person was told about the state
	changed chan struct{} // closed and replaced at each change
	modes   *unix.Termios // of the terminal when it was stopped
}

type jobState uint8

const (
	running jobState = iota
	stoppedJob
	done
)

func newJob(n syntax.Node) *job {
	var b strings.Builder
	if err := syntax.NewPrinter(syntax.SingleLine(true)).Print(&b, n); err != nil {
		b.WriteString("(command)")
	}
	return newJobText(b.String())
}

func newJobText(text string) *job {
	return &job{text: printable(text), changed: make(chan struct{})}
}

// jobTable holds the background and stopped jobs of the process.
type jobTable struct {
	mu     sync.Mutex
	list   []*job
	traps  [65]atomic.Bool // signals with a trap
	warned bool            // about stopped jobs
}

func (t *jobTable) trapped(sig unix.Signal) bool { return t.traps[sig].Load() }

// add numbers a background job and starts reaping its processes.
func (t *jobTable) add(s *shell, j *job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.insert(j)
	j.owner = s
	j.left = len(j.pids)
	j.last = j.pids[len(j.pids)-1]
	for _, pid := range j.pids {
		go t.reap(s.proc, j, pid)
	}
}

func (t *jobTable) insert(j *job) {
	j.id = 1
	for _, o := range t.list {
		j.id = max(j.id, o.id+1)
	}
	t.list = append(t.list, j)
}

// reap follows one process of a background job until it ends.
func (t *jobTable) reap(p *process, j *job, pid int) {
	flags := 0
	if p.tty != nil {
		flags = unix.WUNTRACED | unix.WCONTINUED
	}
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, flags, nil)
		if err == unix.EINTR {
			continue
		}
		t.mu.Lock()
		switch {
		case err != nil || ws.Exited() || ws.Signaled():
			if pid == j.last || j.last == 0 {
				switch {
				case err != nil:
					j.status = 127
				case ws.Signaled():
					j.status = 128 + int(ws.Signal())
				default:
					j.status = ws.ExitStatus()
				}
			}
			j.left--
			if j.left <= 0 {
				j.state, j.told = done, false
			}
		case ws.Stopped():
			j.state, j.told = stoppedJob, false
			j.status = 128 + int(ws.StopSignal())
		case ws.Continued():
			j.state = running
		}
		over := err != nil || ws.Exited() || ws.Signaled()
		close(j.changed)
		j.changed = make(chan struct{})
		t.mu.Unlock()
		if over {
			return
		}
	}
}

// stopped notes that a process of a foreground job was stopped.
func (t *jobTable) stopped(j *job, pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j.state = stoppedJob
	j.left++
}

// finishForeground takes the terminal back after a foreground job. A stopped one
// goes to the table and the rest of the line is dropped.
func (s *shell) finishForeground(j *job) {
	p := s.proc
	if p.tty == nil {
		return
	}
	p.jobs.mu.Lock()
	isStopped := j.state == stoppedJob
	p.jobs.mu.Unlock()
	if isStopped {
		j.modes = p.tty.modes()
	}
	p.tty.take(s.status > 128)
	if !isStopped {
		return
	}
	p.jobs.mu.Lock()
	j.last = j.pids[len(j.pids)-1]
	if j.id == 0 {
		p.jobs.insert(j)
	}
	var alive []int
	for _, pid := range j.pids {
		if unix.Kill(pid, 0) == nil {
			alive = append(alive, pid)
		}
	}
	j.pids, j.left, j.told = alive, len(alive), true
	p.jobs.mu.Unlock()
	for _, pid := range alive {
		go p.jobs.reap(p, j, pid)
	}
	fmt.Fprintf(s.err(), "\n[%d]+  Stopped  %s\n", j.id, j.text)
	panic(interrupted{})
}

// find resolves %1, %%, %+, %-, %name or a process id.
func (t *jobTable) find(spec string) *job {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) == 0 {
		return nil
	}
	switch spec {
	case "", "%", "%%", "%+":
		return t.list[len(t.list)-1]
	case "%-":
		return t.list[max(len(t.list)-2, 0)]
	}
	name, isJob := strings.CutPrefix(spec, "%")
	n, err := strconv.Atoi(name)
	for _, j := range slices.Backward(t.list) {
		switch {
		case isJob && err == nil:
			if j.id == n {
				return j
			}
		case isJob:
			if strings.HasPrefix(j.text, name) {
				return j
			}
		case err == nil && slices.Contains(j.pids, n):
			return j
		}
	}
	return nil
}

func (t *jobTable) remove(j *job) {
	t.list = slices.DeleteFunc(t.list, func(o *job) bool { return o == j })
}

// await waits for a job to end (or to stop, if asked). It returns false when a
// trapped signal or Ctrl-C came first.
func (s *shell) await(j *job, orStopped bool) bool {
	t := &s.proc.jobs
	for {
		t.mu.Lock()
		state, changed := j.state, j.changed
		t.mu.Unlock()
		if state == done || orStopped && state == stoppedJob {
			return true
		}
		select {
		case <-changed:
		case <-s.proc.wake:
			if s.proc.anyPending.Load() || s.proc.interrupt.Load() {
				return false
			}
		case <-s.ctx.Done():
			return false
		}
	}
}

// report tells a person about jobs that ended or stopped, before a prompt.
func (s *shell) report(all bool) {
	t := &s.proc.jobs
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, j := range slices.Clone(t.list) {
		if j.told && !all {
			continue
		}
		if !all && j.state == running {
			continue
		}
		mark := " "
		if i == len(t.list)-1 {
			mark = "+"
		}
		fmt.Fprintf(s.out(), "[%d]%s  %s  %s\n", j.id, mark, j.stateText(), j.text)
		j.told = true
		if j.state == done {
			t.remove(j)
		}
	}
}

// forgetDone drops finished jobs nobody waits for, so that a script that starts
// many does not collect them.
func (t *jobTable) forgetDone(keep int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const enough = 64
	if len(t.list) > enough {
		t.list = slices.DeleteFunc(t.list, func(j *job) bool { return j.state == done && !slices.Contains(j.pids, keep) })
	}
}

func (j *job) stateText() string {
	switch {
	case j.state == running:
		return "Running"
	case j.state == stoppedJob:
		return "Stopped"
	case j.status > 128:
		return signalText(unix.Signal(j.status - 128))
	case j.status != 0:
		return fmt.Sprintf("Done(%d)", j.status)
	}
	return "Done"
}

// terminal is the controlling terminal of an interactive shell.
type terminal struct {
	fd    int
	file  *os.File
	group int          // the shell's process group
	saved unix.Termios // modes to return to after a program that left others behind
}

// setForeground hands the terminal to a process group. SIGTTOU is blocked in
// this thread: without that a shell in the background would be stopped by the
// very call that brings it to the front.
func (t *terminal) setForeground(pgid int) {
	withoutTTOU(func() { unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, pgid) })
}

func (t *terminal) modes() *unix.Termios {
	m, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return nil
	}
	return m
}

// take brings the terminal back to the shell; restore also its modes, which a
// program that was killed or stopped may have left in any state.
func (t *terminal) take(restore bool) {
	t.setForeground(t.group)
	if restore {
		withoutTTOU(func() { unix.IoctlSetTermios(t.fd, unix.TCSETSW, &t.saved) })
	} else if m := t.modes(); m != nil && m.Lflag&unix.ICANON != 0 {
		t.saved = *m // stty changes are meant to last
	}
}
