package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft/init/supervise"
)

// Path is where commands are looked for, as on LEDE.
const Path = "/usr/sbin:/sbin:/usr/bin:/bin"

// Events is told what became of a Spawn; supervise.Supervisor is one. The
// methods must not block.
type Events interface {
	Started(id string, run, pid int)
	Exited(id string, run int, x supervise.Exit)
}

// Options of a Runner. Reaper, Forward and Log are required.
type Options struct {
	Reaper  *Reaper
	Cgroups *Cgroups // nil: no groups; a stop then reaches the process group
	Forward *Forwarder
	Log     *slog.Logger
	Notify  string // NOTIFY_SOCKET for services
	Self    string // executable of this program, for Confine; empty: /proc/self/exe
	// Env is the basic environment; nil: PATH and HOME.
	Env []string
	// Functions are what commands "@name" run. Their context ends when the
	// unit is stopped.
	Functions map[string]func(ctx context.Context) error
}

// Runner executes units.
type Runner struct {
	o      Options
	events Events
	ctx    context.Context
	null   *os.File

	mu   sync.Mutex
	live map[string]*running
	work sync.WaitGroup
}

// running is the newest process of a unit.
type running struct {
	spec   *supervise.Spec
	cancel context.CancelFunc // of a function
	ooms   int64
}

// functionPID stands for the process of a function of PID 1. No process has it.
const functionPID = -1

// NewRunner returns a Runner that reports to events. Functions and the readers
// of output end with ctx.
func NewRunner(ctx context.Context, o Options, events Events) (*Runner, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the standard input of services: %w", err)
	}
	if o.Self == "" {
		o.Self = "/proc/self/exe"
	}
	if o.Env == nil {
		o.Env = []string{"PATH=" + Path, "HOME=/root"}
	}
	return &Runner{o: o, events: events, ctx: ctx, null: null, live: map[string]*running{}}, nil
}

// goSafe runs f in a goroutine that Wait waits for. A panic is logged: it would
// end the whole program, which is PID 1.
func (r *Runner) goSafe(what string, f func()) {
	r.work.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				r.o.Log.Error("panic in PID 1; it goes on", "where", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
		}()
		f()
	})
}

// Wait returns when all functions and readers of output have ended.
func (r *Runner) Wait() { r.work.Wait() }

// Do runs one action of a supervise.Machine that concerns processes; it returns
// false for one that does not.
func (r *Runner) Do(a supervise.Action) bool {
	switch a := a.(type) {
	case supervise.Spawn:
		// Not here: forking waits for the child's exec, and the caller's loop
		// must not.
		r.goSafe("start of "+a.Spec.ID, func() { r.spawn(a.Spec, a.Run) })
	case supervise.Signal:
		r.signal(a.ID, a.PID, a.Sig)
	case supervise.Kill:
		r.kill(a.ID, a.PID)
	case supervise.Sweep:
		r.sweep(a.ID)
	default:
		return false
	}
	return true
}

func (r *Runner) spawn(spec *supervise.Spec, run int) {
	p := &spec.Process
	run1 := &running{spec: spec}
	r.mu.Lock()
	r.live[spec.ID] = run1
	r.mu.Unlock()
	var err error
	if name, ok := strings.CutPrefix(p.Command[0], "@"); ok {
		err = r.function(spec, run, run1, name)
	} else {
		err = r.execute(spec, run, run1)
	}
	if err != nil {
		r.events.Exited(spec.ID, run, supervise.Exit{Code: 127, Err: err.Error()})
	}
}

// function runs a function of this program as if it were a process.
func (r *Runner) function(spec *supervise.Spec, run int, live *running, name string) error {
	f := r.o.Functions[name]
	if f == nil {
		return fmt.Errorf("this program has no function %q", name)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	r.mu.Lock()
	live.cancel = cancel
	r.mu.Unlock()
	r.events.Started(spec.ID, run, functionPID)
	r.goSafe(spec.ID, func() {
		defer cancel()
		r.events.Exited(spec.ID, run, r.call(ctx, spec, f))
	})
	return nil
}

func (r *Runner) call(ctx context.Context, spec *supervise.Spec, f func(context.Context) error) (x supervise.Exit) {
	defer func() {
		if v := recover(); v != nil {
			r.o.Log.Error("panic in a function of PID 1", "unit", spec.ID, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			x = supervise.Exit{Code: 2}
		}
	}()
	if err := f(ctx); err != nil {
		r.o.Log.Error("failed", "unit", spec.ID, "error", err)
		return supervise.Exit{Code: 1}
	}
	return supervise.Exit{}
}

func (r *Runner) execute(spec *supervise.Spec, run int, live *running) error {
	p := &spec.Process
	path, err := lookPath(p.Command[0], Path)
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: r.environment(spec), Sys: &syscall.SysProcAttr{Setsid: true}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	uid, gid, err := r.credential(p, attr)
	if err != nil {
		return err
	}
	if p.StateDir != "" {
		if err := stateDir(p.StateDir, uid, gid); err != nil {
			return err
		}
	}

	files := []uintptr{r.null.Fd(), r.null.Fd(), r.null.Fd()}
	var ours, theirs []*os.File
	closeAll := func(fs []*os.File) {
		for _, f := range fs {
			f.Close()
		}
	}
	defer func() { closeAll(theirs) }()
	type stream struct {
		r        *os.File
		severity int
	}
	var streams []stream
	for i, want := range []bool{p.Stdout, p.Stderr} {
		if !want {
			continue
		}
		pr, pw, err := os.Pipe()
		if err != nil {
			closeAll(ours)
			return fmt.Errorf("make pipe for output: %w", err)
		}
		ours, theirs = append(ours, pr), append(theirs, pw)
		files[1+i] = pw.Fd()
		streams = append(streams, stream{pr, []int{SevInfo, SevErr}[i]})
	}
	argv := p.Command
	var gate *os.File
	if len(p.Limits) > 0 {
		g, gw, err := os.Pipe()
		if err != nil {
			closeAll(ours)
			return fmt.Errorf("make gate: %w", err)
		}
		theirs = append(theirs, g)
		gate = gw
		defer gate.Close()
		files = append(files, g.Fd())
		argv = append([]string{ConfineName, path}, argv...)
		path = r.o.Self
	}
	attr.Files = files

	pid := 0
	fork := func() error {
		start := func() error {
			_, err := r.o.Reaper.Start(path, argv, attr,
				func(n int) {
					pid = n
					r.writePidfile(p.Pidfile, pid)
					r.events.Started(spec.ID, run, pid)
				},
				func(_ int, ws syscall.WaitStatus) {
					if p.Pidfile != "" {
						os.Remove(p.Pidfile)
					}
					r.events.Exited(spec.ID, run, r.exit(spec.ID, live, ws))
				})
			if err != nil {
				return fmt.Errorf("execute %s: %w", path, err)
			}
			return nil
		}
		if !p.Bounded && !p.NoNewPrivs && p.Nice == 0 {
			return start()
		}
		return onOwnThread(func() error {
			if err := confineThread(p); err != nil {
				return err
			}
			return start()
		})
	}
	if r.o.Cgroups != nil {
		live.ooms = r.o.Cgroups.oomKills(spec.ID)
		err = r.o.Cgroups.enter(spec.ID, Limits{p.MemoryMax, p.MemoryHigh, p.PidsMax}, func(fd int) error {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
			return fork()
		})
	} else {
		err = fork()
	}
	if err != nil {
		closeAll(ours)
		return err
	}
	for _, s := range streams {
		r.forward(spec, pid, s.r, s.severity)
	}
	if gate != nil {
		if err := setLimits(pid, p.Limits); err != nil {
			// It waits at the gate still, and must not pass it unlimited.
			r.o.Log.Error("not started", "unit", spec.ID, "error", err)
			r.signal(spec.ID, pid, syscall.SIGKILL)
		}
	}
	return nil
}

func (r *Runner) environment(spec *supervise.Spec) []string {
	env := append([]string(nil), r.o.Env...)
	if spec.Native && r.o.Notify != "" {
		env = append(env, "NOTIFY_SOCKET="+r.o.Notify)
		if spec.Watchdog > 0 {
			env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(spec.Watchdog.Microseconds(), 10))
		}
	}
	return append(env, spec.Process.Env...)
}

// credential fills in user and groups; it returns them as numbers, -1 if the
// process stays root's.
func (r *Runner) credential(p *supervise.Process, attr *syscall.ProcAttr) (uid, gid int, err error) {
	if p.User == "" && p.Group == "" {
		return -1, -1, nil
	}
	cred := &syscall.Credential{}
	if p.User != "" {
		u, err := user.Lookup(p.User)
		if err != nil {
			if u, err = user.LookupId(p.User); err != nil {
				return 0, 0, fmt.Errorf("user %q is not in /etc/passwd", p.User)
			}
		}
		if cred.Uid, err = parseID(u.Uid); err != nil {
			return 0, 0, fmt.Errorf("user %q: %w", p.User, err)
		}
		if cred.Gid, err = parseID(u.Gid); err != nil {
			return 0, 0, fmt.Errorf("group of user %q: %w", p.User, err)
		}
		ids, err := u.GroupIds()
		if err != nil {
			return 0, 0, fmt.Errorf("groups of user %q: %w", p.User, err)
		}
		for _, id := range ids {
			g, err := parseID(id)
			if err != nil {
				return 0, 0, fmt.Errorf("groups of user %q: %w", p.User, err)
			}
			cred.Groups = append(cred.Groups, g)
		}
	}
	if p.Group != "" {
		g, err := user.LookupGroup(p.Group)
		if err != nil {
			if g, err = user.LookupGroupId(p.Group); err != nil {
				return 0, 0, fmt.Errorf("group %q is not in /etc/group", p.Group)
			}
		}
		if cred.Gid, err = parseID(g.Gid); err != nil {
			return 0, 0, fmt.Errorf("group %q: %w", p.Group, err)
		}
	}
	attr.Sys.Credential = cred
	if cred.Uid != 0 {
		if attr.Sys.AmbientCaps, err = ambient(p); err != nil {
			return 0, 0, err
		}
	}
	return int(cred.Uid), int(cred.Gid), nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

func stateDir(dir string, uid, gid int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make state folder: %w", err)
	}
	if uid >= 0 {
		if err := os.Chown(dir, uid, gid); err != nil {
			return fmt.Errorf("give state folder away: %w", err)
		}
	}
	return nil
}

func (r *Runner) writePidfile(path string, pid int) {
	if path == "" {
		return
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(strconv.Itoa(pid)+"\n"), 0o644)
	}
	if err != nil {
		r.o.Log.Warn("pid file not written", "error", err)
	}
}

// exitOf is what a wait status means.
func exitOf(ws syscall.WaitStatus) supervise.Exit {
	if !ws.Signaled() {
		return supervise.Exit{Code: ws.ExitStatus()}
	}
	return supervise.Exit{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
}

// exit is what the wait status of a unit's process means.
func (r *Runner) exit(id string, live *running, ws syscall.WaitStatus) supervise.Exit {
	x := exitOf(ws)
	if r.o.Cgroups != nil && x.Signal == syscall.SIGKILL {
		x.OOM = r.o.Cgroups.oomKills(id) > live.ooms
	}
	return x
}

// forward sends what a unit's process writes to the log.
func (r *Runner) forward(spec *supervise.Spec, pid int, f *os.File, severity int) {
	p := &spec.Process
	facility, err := supervise.ParseFacility(p.Facility)
	if err != nil {
		facility = facilityDaemon
	}
	tag := p.Tag
	if tag == "" {
		tag = filepath.Base(p.Command[0])
	}
	r.forwardLines(f, facility, severity, tag, pid)
}

const facilityDaemon = 3

// forwardLines sends what comes out of f to the log until the pipe is closed on
// the other side or the Runner ends.
func (r *Runner) forwardLines(f *os.File, facility, severity int, tag string, pid int) {
	r.goSafe("output of "+tag, func() {
		stop := context.AfterFunc(r.ctx, func() { f.Close() })
		defer stop()
		defer f.Close()
		Lines(f, MaxLine, func(line string) {
			if line == "" {
				return
			}
			sev, text := cutPriority(line, severity)
			r.o.Forward.Log(facility, sev, tag, pid, text)
		})
	})
}

// scriptGroup is the control group of commands that are not units. It has no
// limits and is not killed: an init script may leave a daemon behind.
const scriptGroup = "scripts"

// Run executes a command that is no unit, such as an init script, to its end.
// Its output goes to the log. env is added to the basic environment. When ctx
// ends it gets SIGTERM, and SIGKILL after DefaultTermTimeout; what it has
// started lives on.
func (r *Runner) Run(ctx context.Context, argv, env []string, tag string) supervise.Exit {
	fail := func(err error) supervise.Exit { return supervise.Exit{Code: 127, Err: err.Error()} }
	path, err := lookPath(argv[0], Path)
	if err != nil {
		return fail(err)
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: append(append([]string(nil), r.o.Env...), env...), Sys: &syscall.SysProcAttr{Setsid: true}}
	files := []uintptr{r.null.Fd(), 0, 0}
	var ours [2]*os.File
	for i := range ours {
		pr, pw, err := os.Pipe()
		if err != nil {
			if i > 0 {
				ours[0].Close()
			}
			return fail(fmt.Errorf("make pipe for output: %w", err))
		}
		defer pw.Close()
		ours[i], files[1+i] = pr, pw.Fd()
	}
	attr.Files = files
	ended := make(chan supervise.Exit, 1)
	pid := 0
	start := func() error {
		n, err := r.o.Reaper.Start(path, argv, attr, nil, func(_ int, ws syscall.WaitStatus) { ended <- exitOf(ws) })
		pid = n
		return err
	}
	if r.o.Cgroups != nil {
		err = r.o.Cgroups.enter(scriptGroup, Limits{}, func(fd int) error {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
			return start()
		})
	} else {
		err = start()
	}
	if err != nil {
		ours[0].Close()
		ours[1].Close()
		return fail(fmt.Errorf("execute %s: %w", path, err))
	}
	r.forwardLines(ours[0], facilityDaemon, SevInfo, tag, pid)
	r.forwardLines(ours[1], facilityDaemon, SevErr, tag, pid)
	select {
	case x := <-ended:
		return x
	case <-ctx.Done():
	}
	r.o.Reaper.Signal(pid, syscall.SIGTERM)
	timer := time.NewTimer(supervise.DefaultTermTimeout)
	defer timer.Stop()
	select {
	case x := <-ended:
		return x
	case <-timer.C:
	}
	r.o.Reaper.Signal(pid, syscall.SIGKILL)
	timer.Reset(supervise.DefaultTermTimeout)
	select {
	case x := <-ended:
		return x
	case <-timer.C:
		return fail(fmt.Errorf("process %d outlived SIGKILL: it hangs in the kernel", pid))
	}
}

func (r *Runner) signal(id string, pid int, sig syscall.Signal) {
	if pid == functionPID {
		r.mu.Lock()
		live := r.live[id]
		r.mu.Unlock()
		if live != nil && live.cancel != nil && (sig == syscall.SIGTERM || sig == syscall.SIGKILL || sig == syscall.SIGABRT) {
			live.cancel()
		}
		return
	}
	if err := r.o.Reaper.Signal(pid, sig); err != nil && err != syscall.ESRCH {
		r.o.Log.Error("signal not sent", "unit", id, "pid", pid, "signal", sig.String(), "error", err)
	}
}

func (r *Runner) keepsChildren(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	live := r.live[id]
	return live == nil || live.spec.KeepChildren
}

func (r *Runner) kill(id string, pid int) {
	r.signal(id, pid, syscall.SIGKILL)
	if pid == functionPID || r.keepsChildren(id) {
		return
	}
	if r.o.Cgroups == nil {
		r.o.Reaper.SignalGroup(pid, syscall.SIGKILL)
		return
	}
	if err := r.o.Cgroups.Kill(id); err != nil {
		r.o.Log.Error("service not killed", "unit", id, "error", err)
	}
}

func (r *Runner) sweep(id string) {
	if r.o.Cgroups == nil {
		return
	}
	if !r.keepsChildren(id) {
		if err := r.o.Cgroups.Kill(id); err != nil {
			r.o.Log.Error("left-over processes not killed", "unit", id, "error", err)
		}
	}
	r.goSafe("control group of "+id, func() { r.o.Cgroups.RemoveSoon(r.ctx, id) })
}
