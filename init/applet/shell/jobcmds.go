package shell

import (
	"fmt"
	"math"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/scriptcmd"
	"weft/init/unit"
)

// trap sets what runs when a signal comes in or the shell exits.
func (s *shell) trap(args []string) int {
	words := args[1:]
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 || words[0] == "-p" {
		var sigs []int
		for sig := range s.traps {
			sigs = append(sigs, int(sig))
		}
		sort.Ints(sigs)
		for _, sig := range sigs {
			fmt.Fprintf(s.out(), "trap -- %s %s\n", forceQuote(s.traps[unix.Signal(sig)]), scriptcmd.SignalName(unix.Signal(sig)))
		}
		return 0
	}
	if words[0] == "-l" {
		return s.small(scriptcmd.Kill, []string{"kill", "-l"})
	}
	action, sigs := "-", words
	if _, isNumber := parseInt(words[0]); len(words) > 1 && !isNumber {
		action, sigs = words[0], words[1:]
	}
	status := 0
	for _, name := range sigs {
		sig, ok := scriptcmd.SignalNumber(name)
		if !ok {
			s.errorf("trap: %s: no such signal (kill -l lists them)", name)
			status = 1
			continue
		}
		s.setTrap(sig, action)
	}
	return status
}

func (s *shell) setTrap(sig unix.Signal, action string) {
	if s.traps == nil {
		s.traps = make(map[unix.Signal]string)
	}
	if action == "-" {
		delete(s.traps, sig)
	} else {
		s.traps[sig] = action
	}
	if s.sub || sig == 0 || sig == unix.SIGKILL || sig == unix.SIGSTOP {
		return // a subshell shares the process; it only notes what its children get
	}
	p := s.proc
	p.fork.Lock()
	defer p.fork.Unlock()
	p.jobs.traps[sig].Store(action != "-" && action != "")
	switch {
	case action == "" && !p.interactive:
		signal.Ignore(sig)
	case action == "-":
		signal.Reset(sig)
		if sig == unix.SIGINT || p.interactive && (sig == unix.SIGQUIT || sig == unix.SIGTERM || sig == unix.SIGTSTP) {
			signal.Notify(p.signals, sig)
		}
	default:
		signal.Notify(p.signals, sig)
	}
}

// ignoreForExec leaves to a program that replaces the shell exactly the signals
// that trap "" ignores.
func (s *shell) ignoreForExec() {
	for sig, action := range s.traps {
		if action == "" && sig != 0 {
			signal.Ignore(sig)
		}
	}
}

// kill is the command with %job added.
func (s *shell) kill(args []string) int {
	call := &unit.Call{Args: args, Stdout: s.out(), Stderr: s.err(), Dir: s.dir, Getenv: s.getenv}
	sig, pids, code := scriptcmd.ParseKill(call)
	if code >= 0 {
		return code
	}
	status, toSelf := 0, false
	before := s.proc.arrived[sig].Load()
	for _, spec := range pids {
		var targets []int
		if strings.HasPrefix(spec, "%") {
			j := s.proc.jobs.find(spec)
			if j == nil {
				s.errorf("kill: %s: no such job", spec)
				status = 1
				continue
			}
			if targets = j.pids; j.pgid != 0 {
				targets = []int{-j.pgid}
			}
		} else {
			pid, err := strconv.Atoi(spec)
			if err != nil {
				s.errorf("kill: %s: neither a process id nor a job", spec)
				status = 2
				continue
			}
			targets = []int{pid}
		}
		for _, pid := range targets {
			if err := unix.Kill(pid, sig); err != nil {
				s.errorf("kill: send %s to %d: %v", scriptcmd.SignalName(sig), pid, err)
				status = 1
				continue
			}
			toSelf = toSelf || pid == os.Getpid() || pid == 0 || pid == -unix.Getpgrp()
			if strings.HasPrefix(spec, "%") && (sig == unix.SIGTERM || sig == unix.SIGHUP) {
				unix.Kill(pid, unix.SIGCONT) // a stopped job could not act on it
			}
		}
	}
	if toSelf && s.proc.jobs.trapped(sig) {
		s.settle(sig, before)
	}
	return status
}

// settle waits until a trapped signal that the script sent to its own process
// has arrived, so that the trap runs before the next command as it does in a
// shell with one thread: kill(2) returns with the signal delivered, but the Go
// runtime hands it on from a thread of its own. before is the count of received
// signals of this kind from before it was sent; the wait is bounded because the
// signal may be blocked.
func (s *shell) settle(sig unix.Signal, before uint32) {
	for end := time.Now().Add(2 * time.Second); s.proc.arrived[sig].Load() == before && time.Now().Before(end); {
		unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
	}
}

// waitCmd waits for background jobs.
func (s *shell) waitCmd(args []string) int {
	t := &s.proc.jobs
	if s.sub {
		return s.waitInSubshell(args)
	}
	collect := func(j *job) int {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.remove(j)
		return j.status
	}
	if len(args) == 1 {
		for {
			t.mu.Lock()
			var j *job
			for _, o := range t.list {
				if o.state != stoppedJob {
					j = o
					break
				}
			}
			t.mu.Unlock()
			if j == nil {
				return 0
			}
			if !s.await(j, true) {
				return s.waitInterrupted()
			}
			if j.state == done {
				collect(j)
			}
		}
	}
	status := 0
	for _, spec := range args[1:] {
		j := t.find(spec)
		if j == nil {
			if _, err := strconv.Atoi(spec); err != nil && !strings.HasPrefix(spec, "%") {
				return s.complain(args, "%s: neither a process id nor a job", spec)
			}
			status = 127
			continue
		}
		if !s.await(j, true) {
			return s.waitInterrupted()
		}
		status = j.status
		if j.state == done {
			status = collect(j)
		}
	}
	return status
}

// waitInSubshell: the children are the process's, so the table is shared; but a
// plain wait must not collect jobs of the shell around it.
func (s *shell) waitInSubshell(args []string) int {
	status := 0
	t := &s.proc.jobs
	t.mu.Lock()
	var list []*job
	for _, j := range t.list {
		if j.owner == s {
			list = append(list, j)
		}
	}
	t.mu.Unlock()
	if len(args) > 1 {
		list = nil
		for _, spec := range args[1:] {
			j := t.find(spec)
			if j == nil {
				status = 127
				continue
			}
			list = append(list, j)
		}
	}
	for _, j := range list {
		if !s.await(j, true) {
			return s.waitInterrupted()
		}
		if len(args) > 1 {
			status = j.status
		}
		t.mu.Lock()
		if j.state == done {
			t.remove(j)
		}
		t.mu.Unlock()
	}
	return status
}

// waitInterrupted runs the trap that cut wait short.
func (s *shell) waitInterrupted() int {
	status := 128
	for n := range s.proc.pending {
		if s.proc.pending[n].Load() {
			status = 128 + n
			break
		}
	}
	s.checkSignals()
	return status
}

func (s *shell) jobsCmd(args []string) int {
	for _, a := range args[1:] {
		switch a {
		case "-p":
			s.proc.jobs.mu.Lock()
			for _, j := range s.proc.jobs.list {
				fmt.Fprintln(s.out(), j.pids[0])
			}
			s.proc.jobs.mu.Unlock()
			return 0
		case "-l":
		default:
			return s.complain(args, "%s: there is no such option", a)
		}
	}
	s.report(true)
	return 0
}

// jobArg finds the job that fg and bg mean.
func (s *shell) jobArg(args []string) *job {
	if s.proc.tty == nil {
		s.errorf("%s: there is no job control here", args[0])
		return nil
	}
	spec := "%+"
	if len(args) > 1 {
		if spec = args[1]; !strings.HasPrefix(spec, "%") {
			spec = "%" + spec
		}
	}
	j := s.proc.jobs.find(spec)
	if j == nil {
		s.errorf("%s: %s: no such job", args[0], spec)
	}
	return j
}

func (s *shell) fg(args []string) int {
	j := s.jobArg(args)
	if j == nil {
		return 1
	}
	t := &s.proc.jobs
	fmt.Fprintln(s.out(), j.text)
	t.mu.Lock()
	j.told = true
	if j.state == stoppedJob {
		j.state = running
	}
	t.mu.Unlock()
	if j.modes != nil {
		withoutTTOU(func() { unix.IoctlSetTermios(s.proc.tty.fd, unix.TCSETSW, j.modes) })
	}
	s.proc.tty.setForeground(j.pgid)
	unix.Kill(-j.pgid, unix.SIGCONT)
	for !s.await(j, true) {
		s.proc.interrupt.Store(false) // Ctrl-C is for the job
		if s.ctx.Err() != nil {
			break
		}
	}
	t.mu.Lock()
	status, state := j.status, j.state
	if state == done {
		t.remove(j)
	}
	t.mu.Unlock()
	if state == stoppedJob {
		j.modes = s.proc.tty.modes()
	}
	s.proc.tty.take(status > 128)
	if state == stoppedJob {
		fmt.Fprintf(s.err(), "\n[%d]+  Stopped  %s\n", j.id, j.text)
		j.told = true
	} else if status == 128+int(unix.SIGINT) {
		fmt.Fprintln(s.err())
	} else if status > 128 {
		s.died(unix.Signal(status-128), false)
	}
	return status
}

func (s *shell) bg(args []string) int {
	j := s.jobArg(args)
	if j == nil {
		return 1
	}
	t := &s.proc.jobs
	t.mu.Lock()
	j.state, j.told = running, true
	t.mu.Unlock()
	fmt.Fprintf(s.out(), "[%d] %s\n", j.id, j.text)
	if err := unix.Kill(-j.pgid, unix.SIGCONT); err != nil {
		return s.complain(args, "continue job %d: %v", j.id, err)
	}
	return 0
}

// warnJobs tells once that stopped jobs would be lost with the shell.
func (s *shell) warnJobs() bool {
	t := &s.proc.jobs
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.list {
		if j.state == stoppedJob && !t.warned {
			t.warned = true
			fmt.Fprintln(s.err(), "You have stopped jobs (exit again to leave them).")
			return true
		}
	}
	return false
}

// limit is a row of ulimit's table.
type limit struct {
	letter   byte
	resource int
	unit     uint64 // bytes per unit shown
	text     string
}

func limits() []limit {
	return []limit{
		{'c', unix.RLIMIT_CORE, 512, "core file size (blocks)"},
		{'d', unix.RLIMIT_DATA, 1024, "data seg size (kb)"},
		{'e', unix.RLIMIT_NICE, 1, "scheduling priority"},
		{'f', unix.RLIMIT_FSIZE, 512, "file size (blocks)"},
		{'i', unix.RLIMIT_SIGPENDING, 1, "pending signals"},
		{'l', unix.RLIMIT_MEMLOCK, 1024, "max locked memory (kb)"},
		{'m', unix.RLIMIT_RSS, 1024, "max memory size (kb)"},
		{'n', unix.RLIMIT_NOFILE, 1, "open files"},
		{'q', unix.RLIMIT_MSGQUEUE, 1, "POSIX message queues (bytes)"},
		{'r', unix.RLIMIT_RTPRIO, 1, "real-time priority"},
		{'s', unix.RLIMIT_STACK, 1024, "stack size (kb)"},
		{'t', unix.RLIMIT_CPU, 1, "cpu time (seconds)"},
		{'u', unix.RLIMIT_NPROC, 1, "max user processes"},
		{'v', unix.RLIMIT_AS, 1024, "virtual memory (kb)"},
	}
}

func (s *shell) ulimit(args []string) int {
	soft, hard, all := false, false, false
	which := byte('f')
	words := args[1:]
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' && words[0] != "-1" {
		for _, l := range []byte(words[0][1:]) {
			switch l {
			case 'S':
				soft = true
			case 'H':
				hard = true
			case 'a':
				all = true
			default:
				which = l
			}
		}
		words = words[1:]
	}
	show := func(l limit) (string, error) {
		var r unix.Rlimit
		// Of the shell's parent environment: Go raises the soft limit of open
		// files for itself and lowers it again for each program it starts.
		if err := unix.Prlimit(0, l.resource, nil, &r); err != nil {
			return "", err
		}
		v := r.Cur
		if hard && !soft {
			v = r.Max
		}
		if v == math.MaxUint64 {
			return "unlimited", nil
		}
		return strconv.FormatUint(v/l.unit, 10), nil
	}
	if all {
		for _, l := range limits() {
			v, err := show(l)
			if err != nil {
				v = err.Error()
			}
			fmt.Fprintf(s.out(), "-%c: %-30s %s\n", l.letter, l.text, v)
		}
		return 0
	}
	for _, l := range limits() {
		if l.letter != which {
			continue
		}
		if len(words) == 0 {
			v, err := show(l)
			if err != nil {
				return s.complain(args, "read the limit: %v", err)
			}
			fmt.Fprintln(s.out(), v)
			return 0
		}
		value := uint64(math.MaxUint64)
		if words[0] != "unlimited" {
			n, err := strconv.ParseUint(words[0], 10, 64)
			if err != nil || n > math.MaxUint64/l.unit {
				return s.complain(args, "%s: not a limit", words[0])
			}
			value = n * l.unit
		}
		var r unix.Rlimit
		if err := unix.Getrlimit(l.resource, &r); err != nil {
			return s.complain(args, "read the limit: %v", err)
		}
		if soft || !hard {
			r.Cur = value
		}
		if hard || !soft {
			r.Max = value
		}
		if err := unix.Setrlimit(l.resource, &r); err != nil {
			s.errorf("ulimit: set -%c to %s: %v", which, words[0], err)
			return 1
		}
		return 0
	}
	return s.complain(args, "-%c: there is no such limit", which)
}
