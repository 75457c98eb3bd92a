package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"weft/init/unit"
)

// process is what all environments of one shell process share.
type process struct {
	pid         int // $$: the main shell's, in background subshells too
	interactive bool
	exiting     *int // a start-up file asked to exit with this status
	umask       atomic.Int32

	fork sync.Mutex // while signals are ignored for a child, no other may start

	signals          chan os.Signal
	pending          [65]atomic.Bool // trapped signals that came in
	anyPending       atomic.Bool
	arrived          [65]atomic.Uint32 // how often each trapped signal came in
	wake             chan struct{}     // a value when a signal came in
	stop             chan struct{}
	interrupt        atomic.Bool // SIGINT came to an interactive shell
	interruptSeen    atomic.Bool // SIGINT came to a script while a program ran
	childInterrupted atomic.Bool // a foreground program died of SIGINT
	foreground       atomic.Int32

	jobs    jobTable
	history *history           // of an interactive shell
	tty     *terminal          // of an interactive shell with job control
	paths   sync.Map           // "PATH\0name" -> string; what hash remembers
	self    func() os.FileInfo // this binary; nil if it cannot be told
}

func newProcess() *process {
	m := unix.Umask(0)
	unix.Umask(m)
	p := &process{
		pid:     os.Getpid(),
		signals: make(chan os.Signal, 16),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	p.umask.Store(int32(m))
	p.self = sync.OnceValue(func() os.FileInfo {
		st, err := os.Stat(selfPath)
		if err != nil {
			return nil
		}
		return st
	})
	return p
}

func (p *process) random() int { return rand.IntN(32768) }

// watch receives the signals a shell must not die of at once.
func (p *process) watch(s *shell) {
	list := []os.Signal{unix.SIGINT}
	if p.interactive {
		// Caught, not ignored: programs started from here get the default back.
		list = append(list, unix.SIGQUIT, unix.SIGTERM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGWINCH)
	}
	if !signal.Ignored(unix.SIGINT) || p.interactive {
		signal.Notify(p.signals, list...)
	}
	go func() {
		for {
			select {
			case <-p.stop:
				return
			case sig := <-p.signals:
				p.received(sig.(unix.Signal))
			}
		}
	}()
}

func (p *process) close() {
	signal.Stop(p.signals)
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
}

// received handles one signal on the signal goroutine.
func (p *process) received(sig unix.Signal) {
	switch {
	case p.jobs.trapped(sig):
		p.pending[sig].Store(true)
		p.anyPending.Store(true)
		p.arrived[sig].Add(1)
	case sig == unix.SIGINT && p.interactive:
		p.interrupt.Store(true)
	case sig == unix.SIGINT && p.foreground.Load() > 0:
		// The program in front decides: if it dies of the signal, so does the
		// script; if it handles it (vi, ping), the script goes on.
		p.interruptSeen.Store(true)
	case sig == unix.SIGINT:
		p.dieOf(sig)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// dieOf ends this process by the signal, as if it had not been caught.
func (p *process) dieOf(sig unix.Signal) {
	signal.Reset(sig)
	unix.Kill(os.Getpid(), sig)
	select {} // the signal is on its way
}

// checkSignals runs traps that are due and ends the command after Ctrl-C or when
// the context is over.
func (s *shell) checkSignals() {
	p := s.proc
	if p.interactive && p.interrupt.Load() {
		if !s.sub {
			p.interrupt.Store(false)
		}
		panic(interrupted{})
	}
	if s.ctx.Err() != nil {
		panic(exitNow{128 + int(unix.SIGTERM)})
	}
	if s.sub || s.inTrap || !p.anyPending.Swap(false) {
		return
	}
	for n := range p.pending {
		if !p.pending[n].Swap(false) {
			continue
		}
		action := s.traps[unix.Signal(n)]
		if action == "" {
			continue
		}
		status := s.status
		s.inTrap = true
		func() {
			defer func() { s.inTrap = false }()
			s.runReader(strings.NewReader(action))
		}()
		s.status = status
	}
}

// external runs a program or an applet and waits for it.
func (s *shell) external(args, extra []string) {
	name := args[0]
	f, inline := lookupApplet(name)
	path, self, err := s.find(name)
	if err != nil && (f == nil || strings.Contains(name, "/")) {
		s.status = s.notFound(name, err)
		s.trace(args)
		return
	}
	s.trace(args)
	if f != nil && inline && (self || path == "") && !s.proc.interactive {
		s.status = s.inline(f, args, extra)
		return
	}
	if path == "" {
		path = selfPath
	}
	s.run(path, args, extra)
}

// selfPath is this binary, whatever name it was started by.
const selfPath = "/proc/self/exe"

// notFound reports a command that cannot be run: 127 not there, 126 not allowed.
func (s *shell) notFound(name string, err error) int {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		s.errorf("%s: not found", name)
		return 127
	}
	s.errorf("%s: %s", name, cause(err))
	return 126
}

// find looks a command up in PATH. self says that it is a link to this binary.
func (s *shell) find(name string) (path string, self bool, err error) {
	if name == "" {
		return "", false, unix.ENOENT
	}
	if strings.Contains(name, "/") {
		path = abs(s.dir, name)
		return path, false, runnable(path)
	}
	list, _ := s.get("PATH")
	key := list + "\x00" + name
	if v, ok := s.proc.paths.Load(key); ok {
		h := v.(hashed)
		if runnable(h.path) == nil {
			return h.path, h.self, nil
		}
		s.proc.paths.Delete(key)
	}
	err = unix.ENOENT
	for dir := range strings.SplitSeq(list, ":") {
		relative := !strings.HasPrefix(dir, "/")
		p := abs(s.dir, dir)
		if dir == "" {
			p = s.dir
		}
		p += "/" + name
		switch e := runnable(p); {
		case e == nil:
			h := hashed{name: name, path: p, self: s.proc.isSelf(p)}
			if !relative {
				s.proc.paths.Store(key, h)
			}
			return h.path, h.self, nil
		case errors.Is(e, unix.EACCES):
			err = e // found, but not allowed: said if nothing better comes
		}
	}
	return "", false, err
}

// hashed is a remembered place of a command.
type hashed struct {
	name, path string
	self       bool
}

// isSelf reports whether the file is this binary.
func (p *process) isSelf(path string) bool {
	if applets.Load() == nil {
		return false
	}
	self := p.self()
	if self == nil {
		return false
	}
	st, err := os.Stat(path)
	return err == nil && os.SameFile(st, self)
}

// runnable says why a file cannot be executed, or nil.
func runnable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS) != nil {
		return unix.EACCES
	}
	return nil
}

// inline runs an applet in this process: no new process, which on a slow CPU
// costs more than most applets' work.
func (s *shell) inline(f unit.Func, args, extra []string) int {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	out := &pipeWriter{w: s.out(), broken: cancel}
	getenv := func(name string) string {
		for _, e := range extra {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return s.getenv(name)
	}
	call := &unit.Call{
		Args:   args,
		Stdin:  s.in(),
		Stdout: out,
		Stderr: &quietWriter{w: s.err(), after: &out.gone},
		Dir:    s.dir,
		Getenv: getenv,
	}
	status := f(ctx, call)
	if out.gone.Load() {
		return 128 + int(unix.SIGPIPE) // what a process of its own would have died of
	}
	return status & 0xff
}

// pipeWriter notices that the reader of a pipe has gone and ends the applet.
type pipeWriter struct {
	w      io.Writer
	gone   atomic.Bool
	broken func()
}

func (p *pipeWriter) Write(b []byte) (int, error) {
	if p.gone.Load() {
		return 0, unix.EPIPE
	}
	n, err := p.w.Write(b)
	if err != nil && errors.Is(err, unix.EPIPE) {
		p.gone.Store(true)
		p.broken()
	}
	return n, err
}

// quietWriter drops messages about a pipe that was closed early: a process of
// its own would have been killed before it could complain.
type quietWriter struct {
	w     io.Writer
	after *atomic.Bool
}

func (q *quietWriter) Write(b []byte) (int, error) {
	if q.after.Load() {
		return len(b), nil
	}
	return q.w.Write(b)
}

// run starts a program in the foreground and waits for it.
func (s *shell) run(path string, args, extra []string) {
	j := s.job
	own := false
	if j == nil && s.opt.monitor && !s.sub {
		j, own = newJobText(strings.Join(args, " ")), true
	}
	s.proc.foreground.Add(1)
	defer s.proc.foreground.Add(-1)
	pid, err := s.start(path, args, s.environ(extra), j, false)
	if errors.Is(err, unix.ENOEXEC) {
		// A script without #!: as every shell does, run it with this one.
		pid, err = s.start(selfPath, append([]string{"sh", path}, args[1:]...), s.environ(extra), j, false)
	}
	if err != nil {
		if errors.Is(err, unix.ENOENT) && runnable(path) == nil {
			s.errorf("%s: the interpreter or loader it names is missing", args[0])
			s.status = 127
			return
		}
		s.status = s.notFound(args[0], err)
		return
	}
	s.status = s.wait(pid, j)
	if own {
		s.finishForeground(j)
	}
}

// start makes a child process. In a shell with job control it joins the job's
// process group and, unless background, gets the terminal.
func (s *shell) start(path string, args, env []string, j *job, background bool) (int, error) {
	attr := &syscall.ProcAttr{
		Dir:   s.dir,
		Env:   env,
		Files: s.fds.forChild(),
		Sys:   &syscall.SysProcAttr{},
	}
	p := s.proc
	if j != nil {
		attr.Sys.Setpgid = true
		if p.tty != nil && !background {
			attr.Sys.Foreground = true
			attr.Sys.Ctty = p.tty.fd
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		attr.Sys.Pgid = j.pgid
	}
	p.fork.Lock()
	defer p.fork.Unlock()
	ignored := s.ignoredSignals(background && j == nil)
	if len(ignored) > 0 {
		signal.Ignore(ignored...)
		defer p.listen(s, ignored)
	}
	pid, err := syscall.ForkExec(path, args, attr)
	if err == unix.EPERM && j != nil && j.pgid != 0 {
		// The first program of the pipeline is gone already, and its group with it.
		attr.Sys.Pgid = 0
		pid, err = syscall.ForkExec(path, args, attr)
		if err == nil {
			j.pgid = pid
		}
	}
	runtime.KeepAlive(s.fds)
	if err != nil {
		return 0, err
	}
	if j != nil {
		if j.pgid == 0 {
			j.pgid = pid
		}
		j.pids = append(j.pids, pid)
	}
	return pid, nil
}

// ignoredSignals are those a child must be started with ignored: the ones that
// trap "" ignores, and for background programs without job control SIGINT and
// SIGQUIT, which are meant for what is in front.
func (s *shell) ignoredSignals(background bool) []os.Signal {
	var list []os.Signal
	for sig, action := range s.traps {
		if action == "" && sig != 0 {
			list = append(list, sig)
		}
	}
	if background && !s.proc.interactive {
		list = append(list, unix.SIGINT, unix.SIGQUIT)
	}
	return list
}

// listen restores the handling of signals that were ignored for a child.
func (p *process) listen(s *shell, list []os.Signal) {
	for _, o := range list {
		sig := o.(unix.Signal)
		if action, ok := s.traps[sig]; ok && action == "" {
			continue // stays ignored
		}
		signal.Reset(sig)
		if sig == unix.SIGINT {
			signal.Notify(p.signals, sig)
		}
	}
}

// wait waits for a foreground child and returns its exit status.
func (s *shell) wait(pid int, j *job) int {
	if s.ctx.Done() != nil {
		stop := context.AfterFunc(s.ctx, func() { unix.Kill(pid, unix.SIGTERM) })
		defer stop()
	}
	flags := 0
	if s.proc.tty != nil {
		flags = unix.WUNTRACED
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, flags, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 127
		}
		if ws.Stopped() && j == nil {
			// In a subshell there is nobody to continue it later.
			unix.Kill(pid, unix.SIGCONT)
			continue
		}
		break
	}
	switch {
	case ws.Stopped():
		s.proc.jobs.stopped(j, pid)
		return 128 + int(ws.StopSignal())
	case ws.Signaled():
		sig := ws.Signal()
		if sig == unix.SIGINT {
			s.proc.childInterrupted.Store(true)
			if s.proc.interactive {
				s.proc.interrupt.Store(true) // ends loops around the program too
			}
		}
		s.died(sig, ws.CoreDump())
		return 128 + int(sig)
	}
	return ws.ExitStatus()
}

// died says what killed a program, as a person at the terminal wants to know.
func (s *shell) died(sig unix.Signal, core bool) {
	if !s.proc.interactive || sig == unix.SIGPIPE || sig == unix.SIGINT {
		return
	}
	text := signalText(sig)
	if core {
		text += " (core dumped)"
	}
	fmt.Fprintln(s.err(), text)
}

func signalText(sig unix.Signal) string {
	t := sig.String()
	return strings.ToUpper(t[:1]) + t[1:]
}

// background starts a statement with & and remembers it.
func (s *shell) background(st *syntax.Stmt) {
	run := *st
	run.Background, run.Disown, run.Coprocess = false, false, false
	j := newJob(&run)
	var group *job
	if s.opt.monitor {
		group = j
	}
	sub := s.clone()
	defer sub.fds.close()
	if group == nil && sub.fds.m[0] != nil {
		// Without job control nothing in the background may eat the input.
		if d, err := s.openPath("/dev/null", os.O_RDONLY); err == nil {
			sub.fds.put(0, d)
		}
	}
	pid := 0
	if sub.guard(func() { pid = sub.startBackground(&run, group) }) || pid == 0 {
		s.status = max(sub.status, 1)
		return
	}
	if group == nil {
		j.pids = append(j.pids, pid)
	}
	s.lastBackground = pid
	s.proc.jobs.add(s, j)
	s.proc.jobs.forgetDone(pid)
	if s.proc.interactive && s.opt.monitor {
		fmt.Fprintf(s.err(), "[%d] %d\n", j.id, pid)
	}
	s.status = 0
}

// startBackground starts a plain program directly and everything else as a
// copy of this shell.
func (s *shell) startBackground(st *syntax.Stmt, j *job) int {
	c, ok := st.Cmd.(*syntax.CallExpr)
	plain := ok && len(c.Args) > 0 && !st.Negated
	if plain {
		name := c.Args[0].Lit()
		_, isFunc := s.funcs[name]
		_, isAlias := s.alias[name]
		plain = name != "" && !isFunc && !isAlias && builtin(name).run == nil && !strings.ContainsAny(name, `\*?[~`)
	}
	if !plain {
		return s.startCopy(st, j)
	}
	if _, ok := s.redirect(st.Redirs); !ok {
		return 0
	}
	args := s.fields(c.Args)
	extra := s.prefixEnv(c.Assigns)
	s.trace(args)
	path, _, err := s.find(args[0])
	if err != nil {
		if f, _ := lookupApplet(args[0]); f == nil || strings.Contains(args[0], "/") {
			s.status = s.notFound(args[0], err)
			return 0
		}
		path = selfPath
	}
	pid, err := s.start(path, args, s.environ(extra), j, true)
	if errors.Is(err, unix.ENOEXEC) {
		pid, err = s.start(selfPath, append([]string{"sh", path}, args[1:]...), s.environ(extra), j, true)
	}
	if err != nil {
		s.status = s.notFound(args[0], err)
		return 0
	}
	return pid
}
