package pid1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/hotplug"
	"weft/init/stage1/handover"
	"weft/init/supervise"
	"weft/init/supervise/procd"
	"weft/init/supervise/process"
	"weft/init/supervise/unitfile"
	"weft/init/uci"
	"weft/init/unit"
)

// Names of units that this package knows of.
const (
	busUnit = "ubusd"
	logUnit = "logd"
	rcUnit  = "rcS"
)

const (
	logSocket    = "/dev/log"
	notifySocket = "/tmp/run/weft/notify"
	// logBuffer is what is kept until the log daemon listens: some 500 lines.
	logBuffer = 64 << 10
)

// consoleLimit is the longest that consoles wait for the services. A login in
// front of a half-started system beats none.
const consoleLimit = 10 * time.Second

// scriptsLimit is how long the ready line waits for start scripts once all
// native services have settled.
const scriptsLimit = 30 * time.Second

// pid1 is the running init.
type pid1 struct {
	con     *consoles
	log     *slog.Logger
	fw      *process.Forwarder
	reaper  *process.Reaper
	runner  *process.Runner
	cgroups *process.Cgroups
	sup     *supervise.Supervisor
	mgr     *procd.Manager
	hot     *hotplug.Hotplug
	wd      *watchdog
	tl      *timeline
	natives map[string]*unitfile.Unit
	hand    *handover.Handover
	shell   []string // path and arguments of a root shell

	early   earlyMessages // of the supervisor's loop
	power   chan powerRequest
	down    chan supervise.Down
	drivers chan struct{} // drivers were loaded

	mu       sync.Mutex
	change   chan struct{} // closed at the next notice
	quiet    bool          // the console shows no more log lines
	ending   bool
	stopTTYs context.CancelFunc
	ttys     sync.WaitGroup
}

// bootTime is the time since the kernel started, CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Run is /sbin/init. table is what this binary can be called as; a root shell
// is taken from it where the file system has none. As PID 1 Run does not
// return; as any other process it does at once, with an exit code.
func Run(table map[string]unit.Func) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: it is running already, as PID 1: use reboot, poweroff or service")
		return 1
	}
	start := bootTime()
	debug.SetGCPercent(50) // the heap is small and lives long
	// A write to a console that went away must not be the end. The signals are
	// caught and dropped, not ignored: children would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGTTOU, syscall.SIGTTIN)
	signals := make(chan os.Signal, 8)
	for s := range powerSignals {
		signal.Notify(signals, s)
	}
	unix.Umask(0o022)
	os.Setenv("PATH", process.Path)

	p := newPID1()
	p.tl.mark("start", start)
	p.guard("start", func() { p.boot(table) })
	p.loop(signals)
	return 0
}

// newPID1 mounts what is missing and opens the consoles.
func newPID1() *pid1 {
	p := &pid1{
		tl: newTimeline(), natives: map[string]*unitfile.Unit{}, change: make(chan struct{}),
		power: make(chan powerRequest, 8), down: make(chan supervise.Down, 1), drivers: make(chan struct{}, 1),
		fw: process.NewForwarder(logSocket, logBuffer), hand: &handover.Handover{},
	}
	p.log = unit.NewLog(&logWriter{p}, true, slog.LevelInfo)
	err := mountAll()
	p.con = openConsoles()
	if err != nil {
		p.log.Error("file systems are missing", "error", err)
	}
	return p
}

// loop waits for the end of the device's day. It survives what it does.
func (p *pid1) loop(signals <-chan os.Signal) {
	for {
		var r powerRequest
		select {
		case s := <-signals:
			how, ok := powerSignals[s]
			if !ok {
				continue
			}
			r = powerRequest{how, "signal " + strings.ToUpper(signalName(s))}
		case r = <-p.power:
		}
		p.mu.Lock()
		p.ending, p.quiet = true, true
		p.mu.Unlock()
		p.guard("shutdown", func() { p.shutDown(r) })
		if err := finish(r.how); err != nil {
			// Nothing is left that could be asked for help; the watchdog, if
			// there is one, is not fed from here on.
			p.con.print("%s: %v", r.how, err)
		}
	}
}

func signalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		return unix.SignalName(n)
	}
	return s.String()
}

// guard runs f; a panic is logged and not more.
func (p *pid1) guard(what string, f func()) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("panic in PID 1; it goes on", "where", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	f()
}

// forever runs f in a goroutine, and again a second after it returned or
// panicked, until ctx ends.
func (p *pid1) forever(ctx context.Context, what string, f func(ctx context.Context)) {
	go func() {
		for ctx.Err() == nil {
			p.guard(what, func() { f(ctx) })
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
}

// boot starts everything.
func (p *pid1) boot(table map[string]unit.Func) {
	ctx := context.Background() // PID 1 has no end but reboot(2)
	p.shell = []string{"/bin/sh", "/bin/sh", "--login"}
	if _, err := os.Stat("/bin/sh"); err != nil && table["sh"] != nil {
		p.shell = []string{"/proc/self/exe", "sh", "--login"}
	}
	p.hot = hotplug.New(hotplug.Options{Log: p.log, Call: p.run})
	go p.guard("modules", p.hot.Prepare)
	// The files are read while the rest is set up: decoding them is the longest
	// single step.
	type loaded struct {
		units []*unitfile.Unit
		err   error
	}
	load := make(chan loaded, 1)
	if p.takeOver(); !p.hand.Failsafe {
		go func() {
			l := loaded{err: errors.New("reading them failed")}
			defer func() { load <- l }()
			p.guard("unit files", func() { l.units, l.err = unitfile.Load(unitfile.Dir) })
		}()
	}
	// ctrl-alt-del becomes a signal for us in place of an immediate reboot.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		p.log.Warn("ctrl-alt-del stays with the kernel", "error", err)
	}
	p.reaper = process.NewReaper()
	p.forever(ctx, "reaper", p.reaper.Run)
	p.forever(ctx, "log", p.fw.Run)

	p.sup = supervise.New(supervise.Options{
		Clock: bootTime, Log: p.log,
		Notice: func(n supervise.Notice) { p.guard("notice", func() { p.notice(n) }) },
		Down: func(d supervise.Down) {
			select {
			case p.down <- d:
			default:
			}
		},
	})
	if err := p.startRunner(ctx); err != nil {
		// Without /dev/null there is no service; a shell may be of help.
		p.log.Error("services cannot be started", "error", err)
		p.startTerminals(ctx, true)
		return
	}
	p.forever(ctx, "supervisor", p.sup.Run)
	p.startWatchdog(ctx)
	p.startHotplug(ctx)

	if p.hand.Failsafe {
		p.startTerminals(ctx, true)
		go p.guard("modules", func() {
			if err := p.hot.Essential(ctx); err != nil {
				p.log.Error("network drivers", "error", err)
			}
			if err := p.coldplug(ctx); err != nil {
				p.log.Error("drivers", "error", err)
			}
		})
		at := bootTime()
		p.tl.setReady(at)
		p.con.print("failsafe in %.2f s", at.Seconds())
		p.setQuiet()
		return
	}

	l := <-load
	units := l.units
	if l.err != nil {
		p.log.Error("there are no services", "error", l.err)
	}
	for _, u := range units {
		p.natives[u.Name] = u
		if u.Err != nil {
			p.log.Error("service disabled: its unit file is wrong", "unit", u.Name, "error", u.Err)
		}
	}
	p.mgr = procd.NewManager(procd.Options{
		Supervisor: p.sup, Clock: bootTime, Log: p.log, RCDir: rcDir,
		Exec:    func(ctx context.Context, argv []string) int { return p.run(ctx, argv, nil) },
		Respawn: func() procd.RespawnDefaults { return respawnDefaults(&uci.Tree{}) },
		Memory:  p.memory, MemoryPeak: p.memoryPeak,
		Timeline: func() any { return p.tl.get() },
	}, units)
	p.startServices(units)
	p.forever(ctx, "bus", p.serveBus)
	go p.guard("ready", func() { p.watchReady(ctx) })
	go p.guard("consoles", func() {
		limit, cancel := context.WithTimeout(ctx, consoleLimit)
		defer cancel()
		p.waitSettled(limit, ids(units))
		p.startTerminals(ctx, false)
	})
}

// takeOver reads what stage 1 left behind.
func (p *pid1) takeOver() {
	h, err := handover.Read(handover.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.log.Info("started without stage 1")
		return
	case err != nil:
		p.log.Error("report of stage 1 lost", "error", err)
		return
	}
	p.hand = h
	p.tl.stage1(h.Marks)
	for _, m := range h.Messages {
		sev := process.SevInfo
		switch m.Level {
		case handover.Error:
			sev = process.SevErr
		case handover.Warn:
			sev = process.SevWarning
		}
		// The console has seen them.
		p.fw.Log(facilityDaemon, sev, "stage1", 0, fmt.Sprintf("[%d.%03d] %s", m.MS/1000, m.MS%1000, m.Text))
	}
}

func (p *pid1) startRunner(ctx context.Context) error {
	if cg, err := process.OpenCgroups("/sys/fs/cgroup"); err != nil {
		p.log.Error("services run without limits", "error", err)
	} else {
		p.cgroups = cg
		if missing := cg.Missing(); len(missing) > 0 {
			p.log.Warn("the kernel lacks cgroup controllers: their limits do not hold", "controllers", strings.Join(missing, " "))
		}
	}
	p.listenNotify(ctx)
	r, err := process.NewRunner(ctx, process.Options{
		Reaper: p.reaper, Cgroups: p.cgroups, Forward: p.fw, Log: p.log, Notify: notifySocket,
		Functions: map[string]func(context.Context) error{
			"modules": p.hot.Essential,
			"devices": p.coldplug,
			"sysctl": func(context.Context) error {
				return sysctls("", func(key string) { p.log.Debug("no such kernel setting", "key", key) })
			},
			"system": p.applySystem,
			"rcS":    p.startScripts,
			"done":   markDone,
		},
	}, p.sup)
	if err != nil {
		return err
	}
	p.runner = r
	p.sup.SetRunner(r)
	return nil
}

// listenNotify hears what services say, from before the first of them starts.
func (p *pid1) listenNotify(ctx context.Context) {
	first, err := process.ListenNotify(notifySocket)
	if err != nil {
		p.log.Error("services cannot report readiness and health", "error", err)
	}
	p.forever(ctx, "notifications", func(ctx context.Context) {
		l := first
		if first = nil; l == nil {
			if l, err = process.ListenNotify(notifySocket); err != nil {
				p.log.Error("services cannot report readiness and health", "error", err)
				return
			}
		}
		if err := l.Run(ctx, p.notified); err != nil {
			p.log.Error("services were not heard for a moment", "error", err)
		}
	})
}

// notified passes a service's word on. Only its main process is listened to.
func (p *pid1) notified(n process.Message) {
	p.sup.Post(func(m *supervise.Machine, now time.Duration) []supervise.Action {
		for _, id := range m.IDs() {
			if s, _ := m.Status(id); s.PID == n.PID {
				return hear(m, now, id, n)
			}
		}
		p.early.add(now, n)
		return nil
	})
}

// hear takes in a message of a unit's process.
func hear(m *supervise.Machine, now time.Duration, id string, n process.Message) []supervise.Action {
	var out []supervise.Action
	if n.HasStatus {
		out = append(out, m.SetStatus(now, id, n.PID, n.Status)...)
	}
	if n.Reloading {
		out = append(out, m.Reloading(now, id, n.PID)...)
	}
	if n.Ready {
		out = append(out, m.Ready(now, id, n.PID)...)
	}
	if n.Watchdog {
		out = append(out, m.Ping(now, id, n.PID)...)
	}
	return out
}

// earlyMessages are those of processes that spoke before fork(2) had returned
// here with their number: a quick service on another processor does. They are
// kept for a moment. Only the supervisor's loop uses it.
type earlyMessages []earlyMessage

type earlyMessage struct {
	at time.Duration
	process.Message
}

// How many are kept, and how long: strangers may write to the socket as well.
const (
	earlyMax  = 64
	earlyLife = 10 * time.Second
)

func (e *earlyMessages) add(now time.Duration, n process.Message) {
	*e = slices.DeleteFunc(*e, func(m earlyMessage) bool { return now-m.at > earlyLife })
	if len(*e) < earlyMax {
		*e = append(*e, earlyMessage{now, n})
	}
}

// take removes and returns the messages of a process.
func (e *earlyMessages) take(pid int) []process.Message {
	var out []process.Message
	*e = slices.DeleteFunc(*e, func(m earlyMessage) bool {
		if m.PID == pid {
			out = append(out, m.Message)
		}
		return m.PID == pid
	})
	return out
}

func ids(units []*unitfile.Unit) []string {
	var out []string
	for _, u := range units {
		out = append(out, u.Spec.ID)
	}
	return out
}

// startServices starts the units that have a start link.
func (p *pid1) startServices(units []*unitfile.Unit) {
	var start []string
	for _, l := range rcLinks(rcDir, 'S') {
		if u := p.natives[l.name]; u != nil && !slices.Contains(start, u.Spec.ID) {
			start = append(start, u.Spec.ID)
		}
	}
	p.sup.Post(func(m *supervise.Machine, now time.Duration) []supervise.Action {
		var out []supervise.Action
		for _, u := range units {
			out = append(out, m.Define(now, u.Spec, false)...)
		}
		return append(out, m.Start(now, start...)...)
	})
}

// changed is closed at the next notice.
func (p *pid1) changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.change
}

// notice is told by the supervisor, on its loop.
func (p *pid1) notice(n supervise.Notice) {
	p.tl.notice(n)
	if n.ID == logUnit && n.Kind == supervise.InstanceReady {
		p.fw.Retry()
	}
	if n.Kind == supervise.InstanceStart {
		for _, msg := range p.early.take(n.PID) {
			p.sup.Post(func(m *supervise.Machine, now time.Duration) []supervise.Action { return hear(m, now, n.ID, msg) })
		}
	}
	p.logNotice(n)
	if p.mgr != nil {
		p.mgr.Notice(n)
	}
	p.mu.Lock()
	close(p.change)
	p.change = make(chan struct{})
	p.mu.Unlock()
}

func (p *pid1) logNotice(n supervise.Notice) {
	attrs := []any{"unit", n.ID}
	if n.PID > 0 {
		attrs = append(attrs, "pid", n.PID)
	}
	if n.Exit != nil {
		attrs = append(attrs, "exit", n.Exit.String())
	}
	if n.Reason != "" && (n.Exit == nil || n.Reason != n.Exit.String()) {
		attrs = append(attrs, "reason", n.Reason)
	}
	switch n.Kind {
	case supervise.InstanceStart:
		p.log.Info("service started", attrs...)
	case supervise.InstanceReady:
		p.log.Info("service ready", attrs...)
	case supervise.InstanceReload:
		p.log.Info("service reloads", attrs...)
	case supervise.InstanceStop:
		s := p.natives[n.ID]
		if n.Exit != nil && n.Exit.Code != 0 && n.Exit.Signal == 0 && s != nil && s.Spec.Type == supervise.Oneshot {
			p.log.Error("service failed", attrs...)
		} else {
			p.log.Info("service stopped", attrs...)
		}
	case supervise.InstanceRespawn:
		p.log.Warn("service ended, it will be started again", append(attrs, "delay", n.Delay.String(), "crashes", n.Crashes)...)
	case supervise.InstanceFail:
		if n.Exit == nil { // its definition is wrong
			if u := p.natives[n.ID]; u == nil || u.Err == nil { // a wrong unit file was named already
				p.log.Error("service cannot start", attrs...)
			}
			return
		}
		p.log.Error("service is in a crash loop", append(attrs, "delay", n.Delay.String(), "crashes", n.Crashes)...)
	case supervise.InstanceHealth:
		p.log.Error("service health changed", append(attrs, "health", string(n.Health))...)
	case supervise.InstanceKill:
		p.log.Warn("service did not stop", attrs...)
		p.mu.Lock()
		ending := p.ending
		p.mu.Unlock()
		if ending {
			p.con.print("%s %s", n.ID, n.Reason)
		}
	}
}

// watchReady writes the ready line once all that was started has settled and
// what is critical is well.
func (p *pid1) watchReady(ctx context.Context) {
	var grace <-chan time.Time
	patient := true
	for {
		changed := p.changed()
		settled, scripts := true, true
		err := p.sup.Do(ctx, func(m *supervise.Machine, _ time.Duration) []supervise.Action {
			for _, id := range m.IDs() {
				s, _ := m.Status(id)
				if !s.Want || !s.Spec.Native {
					continue
				}
				switch {
				case s.Settled() && (!s.Spec.Critical || s.Well()):
				case id == rcUnit || slices.Contains(s.Spec.After, rcUnit):
					scripts = false
				default:
					settled = false
				}
			}
			return nil
		})
		if err != nil {
			return
		}
		if settled && (scripts || !patient) {
			break
		}
		if settled && grace == nil {
			grace = time.After(scriptsLimit)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-grace:
			patient = false
			p.log.Warn("start scripts take long: the system is ready without them", "limit", scriptsLimit.String())
		}
	}
	at := bootTime()
	p.tl.setReady(at)
	p.setQuiet()
	p.con.print("ready in %.2f s", at.Seconds())
	p.log.Info("ready", "seconds", fmt.Sprintf("%.2f", at.Seconds()))
}

func (p *pid1) setQuiet() {
	p.mu.Lock()
	p.quiet = true
	p.mu.Unlock()
}

// logWriter takes PID 1's own log lines, each with its priority in front, to
// the log, and warnings before ready to the console as well.
type logWriter struct{ p *pid1 }

const facilityDaemon = 3

// consoleWidth cuts log lines on the console: a stack trace is for the log.
const consoleWidth = 240

func (w *logWriter) Write(b []byte) (int, error) {
	sev, text := process.SevInfo, strings.TrimSuffix(string(b), "\n")
	if len(text) > 3 && text[0] == '<' && text[2] == '>' {
		sev, text = int(text[1]-'0'), text[3:]
	}
	w.p.fw.Log(facilityDaemon, sev, "weft", 1, text)
	w.p.mu.Lock()
	show := !w.p.quiet && sev <= process.SevWarning && w.p.con != nil
	w.p.mu.Unlock()
	if show {
		word := "warning"
		if sev <= process.SevErr {
			word = "error"
		}
		if len(text) > consoleWidth {
			text = text[:consoleWidth] + "..."
		}
		w.p.con.print("%s: %s", word, text)
	}
	return len(b), nil
}

func (p *pid1) memory(id string) int64 {
	if p.cgroups == nil {
		return 0
	}
	return p.cgroups.Memory(id)
}

func (p *pid1) memoryPeak(id string) int64 {
	if p.cgroups == nil {
		return 0
	}
	return p.cgroups.MemoryPeak(id)
}

// run executes a command that is no unit and returns its exit code.
func (p *pid1) run(ctx context.Context, argv, env []string) int {
	x := p.runner.Run(ctx, argv, env, filepath.Base(argv[0]))
	if x.Err != "" {
		p.log.Warn("command not run", "command", strings.Join(argv, " "), "error", x.Err)
	}
	return x.Code
}

func (p *pid1) startHotplug(ctx context.Context) {
	// Listening begins before the modules load, so that no device is missed.
	first, err := hotplug.Listen()
	if err != nil {
		p.log.Error("devices that come later are not noticed", "error", err)
		return
	}
	p.forever(ctx, "hotplug", func(ctx context.Context) {
		conn := first
		if first = nil; conn == nil {
			if conn, err = hotplug.Listen(); err != nil {
				p.log.Error("devices that come later are not noticed", "error", err)
				return
			}
		}
		if err := p.hot.Run(ctx, conn); err != nil {
			p.log.Error("devices were not noticed for a moment", "error", err)
		}
	})
}

// coldplug is the unit devices.
func (p *pid1) coldplug(ctx context.Context) error {
	err := p.hot.Coldplug(ctx)
	select {
	case p.drivers <- struct{}{}:
	default:
	}
	p.hot.Replay()
	return err
}

func (p *pid1) startWatchdog(ctx context.Context) {
	p.wd = newWatchdog(openWatchdog, p.unwell, p.log)
	p.forever(ctx, "watchdog", func(ctx context.Context) {
		for {
			next := p.wd.step()
			select {
			case <-ctx.Done():
				return
			case <-p.drivers: // perhaps its own is among them
			case <-time.After(next):
			}
		}
	})
}

// loopLimit is how long the supervisor's loop may take to answer.
const loopLimit = 4 * time.Second

// unwell is why the watchdog must not be fed; empty if it may.
func (p *pid1) unwell() string {
	ctx, cancel := context.WithTimeout(context.Background(), loopLimit)
	defer cancel()
	p.mu.Lock()
	ending := p.ending
	p.mu.Unlock()
	why := ""
	err := p.sup.Do(ctx, func(m *supervise.Machine, now time.Duration) []supervise.Action {
		if now < bootGrace || ending {
			return nil
		}
		var bad []string
		for _, id := range m.IDs() {
			if s, _ := m.Status(id); s.Spec.Critical && s.Want && !s.Well() {
				bad = append(bad, fmt.Sprintf("%s is %s", id, s.State))
			}
		}
		why = strings.Join(bad, ", ")
		return nil
	})
	if err != nil {
		return "the supervisor does not answer"
	}
	return why
}

// serveBus offers `service` and `system` once the broker is there.
func (p *pid1) serveBus(ctx context.Context) {
	for {
		changed := p.changed()
		up := false
		if err := p.sup.Do(ctx, func(m *supervise.Machine, _ time.Duration) []supervise.Action {
			s, ok := m.Status(busUnit)
			up = ok && s.State == supervise.Running
			return nil
		}); err != nil {
			return
		}
		if up {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
	client := bus.Connect(ctx, bus.DefaultSocket, p.log)
	defer client.Close()
	sys, err := client.Publish(&bus.Object{Name: "system", Methods: p.systemMethods()})
	if err != nil {
		p.log.Error("object system is not on the bus", "error", err)
		return
	}
	defer sys.Close()
	if err := p.mgr.Run(ctx, client); err != nil {
		p.log.Error("object service is not on the bus", "error", err)
	}
}

// startTerminals runs the terminals of /etc/inittab; direct gives all of them a
// root shell without asking, for failsafe mode.
func (p *pid1) startTerminals(ctx context.Context, direct bool) {
	ctx, cancel := context.WithCancel(ctx)
	p.mu.Lock()
	if p.ending || p.stopTTYs != nil {
		p.mu.Unlock()
		cancel()
		return
	}
	p.stopTTYs = cancel
	p.mu.Unlock()
	var entries []inittabEntry
	f, err := os.Open("/etc/inittab")
	if err == nil {
		var errs []error
		entries, errs = parseInittab(f)
		f.Close()
		for _, err := range errs {
			p.log.Error("line of inittab ignored", "error", err)
		}
	} else {
		p.log.Warn("no inittab", "error", err)
	}
	entries = slices.DeleteFunc(entries, func(e inittabEntry) bool { return !e.onTerminal() })
	if len(entries) == 0 {
		entries = []inittabEntry{{action: "askconsole"}}
	}
	env := []string{"PATH=" + process.Path, "HOME=/root", "TERM=vt102"}
	if p.hand.Failsafe {
		env = append(env, "FAILSAFE=true")
	}
	seen := map[string]bool{}
	for _, e := range entries {
		t := &terminal{tty: e.tty, ask: e.asks(), command: e.command, env: env, reaper: p.reaper, log: p.log}
		if t.tty == "" {
			t.tty = p.con.last()
		}
		if len(t.command) > 0 {
			t.command = append([]string{t.command[0]}, t.command...)
		}
		if direct || len(t.command) == 0 {
			t.command = p.shell
		}
		if direct {
			t.ask = false
		}
		if seen[t.tty] {
			continue
		}
		seen[t.tty] = true
		p.ttys.Go(func() { p.guard("terminal "+t.tty, func() { t.run(ctx) }) })
	}
}

// stopTerminals ends the processes on all terminals.
func (p *pid1) stopTerminals() {
	p.mu.Lock()
	stop := p.stopTTYs
	p.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	p.ttys.Wait()
}
