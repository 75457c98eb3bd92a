package supervise

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// world is a machine with an invented clock and invented processes. Processes
// start at once, obey SIGTERM only where told, and die of Kill.
type world struct {
	t       *testing.T
	m       *Machine
	now     time.Duration
	nextPID int
	procs   map[string]*proc // by unit ID
	refuse  map[string]string
	slow    map[string]bool // Spawn is not answered until the test does
	log     []string        // notices and signals, in order
	spawned []string
	down    *Down
}

type proc struct {
	pid, run int
	deaf     bool // ignores SIGTERM
	immortal bool // ignores SIGKILL
}

func newWorld(t *testing.T, specs ...Spec) *world {
	w := &world{t: t, m: NewMachine(), nextPID: 100, procs: map[string]*proc{}, refuse: map[string]string{}, slow: map[string]bool{}}
	for _, s := range specs {
		w.do(w.m.Define(w.now, s, false))
	}
	return w
}

func daemon(id string, mod ...func(*Spec)) Spec {
	s := Spec{ID: id, Service: id, Instance: "instance1", Type: Daemon, Ready: ReadyNotify,
		Respawn: Respawn{On: RestartAlways, Threshold: DefaultThreshold, Delay: DefaultDelay, Retry: DefaultRetry}}
	for _, f := range mod {
		f(&s)
	}
	return s
}

func oneshot(id string, mod ...func(*Spec)) Spec {
	s := Spec{ID: id, Service: id, Instance: "instance1", Type: Oneshot, Ready: ReadyExit}
	for _, f := range mod {
		f(&s)
	}
	return s
}

func needs(ids ...string) func(*Spec) { return func(s *Spec) { s.Needs = ids } }
func after(ids ...string) func(*Spec) { return func(s *Spec) { s.After = ids } }

func (w *world) do(actions []Action) {
	w.t.Helper()
	for _, a := range actions {
		switch a := a.(type) {
		case Spawn:
			id := a.Spec.ID
			if p := w.procs[id]; p != nil {
				w.t.Fatalf("%v: second process of %s while %d runs", w.now, id, p.pid)
			}
			w.spawned = append(w.spawned, id)
			if why := w.refuse[id]; why != "" {
				w.do(w.m.Exited(w.now, id, a.Run, Exit{Code: 127, Err: why}))
				continue
			}
			w.nextPID++
			w.procs[id] = &proc{pid: w.nextPID, run: a.Run}
			if !w.slow[id] {
				w.do(w.m.Started(w.now, id, a.Run, w.nextPID))
			}
		case Signal:
			w.log = append(w.log, fmt.Sprintf("%s %s", a.ID, a.Sig))
			p := w.procs[a.ID]
			if p == nil || p.pid != a.PID {
				w.t.Fatalf("%v: signal %v to %s pid %d, which does not run", w.now, a.Sig, a.ID, a.PID)
			}
			if a.Sig == syscall.SIGTERM && !p.deaf {
				w.exit(a.ID, Exit{Code: 143, Signal: syscall.SIGTERM})
			}
		case Kill:
			w.log = append(w.log, a.ID+" kill")
			if p := w.procs[a.ID]; p != nil && !p.immortal {
				w.exit(a.ID, Exit{Code: 137, Signal: syscall.SIGKILL})
			}
		case Sweep:
		case Notice:
			if a.At != w.now {
				w.t.Errorf("notice %+v carries a wrong time", a)
			}
			w.log = append(w.log, fmt.Sprintf("%s %s", a.ID, a.Kind))
		case Down:
			if w.down != nil {
				w.t.Fatal("Down twice")
			}
			w.down = &a
		default:
			w.t.Fatalf("unknown action %T", a)
		}
	}
}

func (w *world) start(ids ...string) {
	w.t.Helper()
	w.do(w.m.Start(w.now, ids...))
}

func (w *world) ready(id string) {
	w.t.Helper()
	w.do(w.m.Ready(w.now, id, w.pid(id)))
}

func (w *world) exit(id string, x Exit) {
	w.t.Helper()
	p := w.procs[id]
	if p == nil {
		w.t.Fatalf("%s does not run", id)
	}
	delete(w.procs, id)
	w.do(w.m.Exited(w.now, id, p.run, x))
}

func (w *world) pid(id string) int {
	w.t.Helper()
	p := w.procs[id]
	if p == nil {
		w.t.Fatalf("%s does not run", id)
	}
	return p.pid
}

// pass lets time pass, stopping at each timer as the driver does.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	end := w.now + d
	for {
		at, ok := w.m.Next()
		if !ok || at > end {
			break
		}
		w.now = max(w.now, at)
		w.do(w.m.Tick(w.now))
	}
	w.now = end
	w.do(w.m.Tick(w.now))
}

func (w *world) status(id string) Status {
	w.t.Helper()
	s, ok := w.m.Status(id)
	if !ok {
		w.t.Fatalf("no unit %s", id)
	}
	return s
}

func (w *world) is(id string, want State) {
	w.t.Helper()
	if s := w.status(id); s.State != want {
		w.t.Fatalf("%v: %s is %s (%s), want %s\nlog: %s", w.now, id, s.State, s.Reason, want, strings.Join(w.log, "; "))
	}
}

func (w *world) reason(id, part string) {
	w.t.Helper()
	if s := w.status(id); !strings.Contains(s.Reason, part) {
		w.t.Errorf("%s: reason %q, want %q in it", id, s.Reason, part)
	}
}

func (w *world) runs(ids ...string) {
	w.t.Helper()
	var got []string
	for id := range w.procs {
		got = append(got, id)
	}
	slices.Sort(got)
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		w.t.Fatalf("%v: running %v, want %v", w.now, got, ids)
	}
}

func (w *world) logged(want ...string) {
	w.t.Helper()
	if got := strings.Join(w.log, "\n"); got != strings.Join(want, "\n") {
		w.t.Errorf("log:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	w.log = nil
}

func TestStartInOrderAndParallel(t *testing.T) {
	w := newWorld(t,
		daemon("rpcd", needs("ubusd"), after("boot")),
		daemon("network", needs("ubusd"), after("boot")),
		daemon("ubusd"), daemon("logd"), oneshot("boot"))
	w.start("rpcd", "network", "logd", "ubusd", "boot")
	w.runs("boot", "logd", "ubusd") // all that nothing holds back, at once
	w.reason("network", "needs ubusd")
	w.ready("ubusd")
	w.runs("boot", "logd", "ubusd")
	w.reason("network", "after boot")
	w.exit("boot", Exit{})
	w.is("boot", Done)
	w.runs("logd", "ubusd", "network", "rpcd")
	w.ready("network")
	w.is("network", Running)
	if s := w.status("network"); !s.Ready || !s.Well() {
		t.Errorf("status %+v", s)
	}
}

func TestStartPullsNeeds(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("b", needs("a")), daemon("c", needs("b")), daemon("d", after("a")))
	w.start("c")
	w.runs("a")
	w.ready("a")
	w.ready("b")
	w.runs("a", "b", "c")
	w.is("d", Inactive)
}

func TestAfterDoesNotPullOrBlock(t *testing.T) {
	for _, tc := range []struct {
		name string
		prep func(w *world)
	}{
		{"absent", func(w *world) { w.do(w.m.Remove(w.now, "boot")) }},
		{"not wanted", func(w *world) {}},
		{"failed", func(w *world) { w.start("boot"); w.exit("boot", Exit{Code: 1}); w.is("boot", Failed) }},
		{"done", func(w *world) { w.start("boot"); w.exit("boot", Exit{}); w.is("boot", Done) }},
		{"blocked for good", func(w *world) {
			s := oneshot("boot", needs("nothing"))
			w.do(w.m.Define(w.now, s, false))
			w.start("boot")
			w.is("boot", Failed)
		}},
		{"waiting for a need that failed", func(w *world) {
			w.do(w.m.Define(w.now, oneshot("disk"), false))
			w.do(w.m.Define(w.now, oneshot("boot", needs("disk")), false))
			w.start("boot")
			w.exit("disk", Exit{Code: 1})
			w.is("boot", Waiting)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, oneshot("boot"), daemon("network", after("boot")))
			tc.prep(w)
			w.start("network")
			w.runs("network")
		})
	}
}

func TestAfterCrashedOnce(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("b", after("a")))
	w.start("a", "b")
	w.runs("a")
	w.exit("a", Exit{Code: 1})
	w.is("a", Backoff)
	w.runs("b") // a had its chance
}

func TestMissingNeedIsThatUnitsErrorOnly(t *testing.T) {
	w := newWorld(t, daemon("a", needs("ghost")), daemon("b"))
	w.start("a", "b")
	w.is("a", Failed)
	w.reason("a", "needs ghost, which does not exist")
	w.runs("b")
	w.logged("a instance.fail", "b instance.start")
	w.do(w.m.Define(w.now, daemon("ghost", func(s *Spec) { s.Ready = ReadyExec }), false))
	w.is("a", Waiting)
	w.start("a")
	w.runs("a", "b", "ghost")
}

func TestCycle(t *testing.T) {
	w := newWorld(t, daemon("a", needs("b")), daemon("b", after("c")), daemon("c", needs("a")),
		daemon("d", after("a")), daemon("e", needs("e")))
	w.start("a", "b", "c", "d", "e")
	for id, want := range map[string]string{
		"a": "a after b after c after a",
		"b": "b after c after a after b",
		"c": "c after a after b after c",
		"e": "e after e",
	} {
		w.is(id, Failed)
		w.reason(id, want)
	}
	w.runs("d")
	w.do(w.m.Define(w.now, daemon("c"), false)) // the circle is broken
	w.runs("c", "d")
	w.ready("c")
	w.ready("b")
	w.runs("a", "b", "c", "d")
}

func TestInvalid(t *testing.T) {
	bad := daemon("a")
	bad.Invalid = "a.toml:3: unknown key"
	w := newWorld(t, bad)
	w.start("a")
	w.is("a", Failed)
	w.reason("a", "a.toml:3")
	w.do(w.m.Define(w.now, daemon("a"), false))
	w.runs("a")
}

func TestReadiness(t *testing.T) {
	exec := daemon("exec", func(s *Spec) { s.Ready = ReadyExec })
	notify := daemon("notify")
	w := newWorld(t, exec, notify)
	w.start("exec", "notify")
	w.is("exec", Running)
	w.is("notify", Starting)
	w.do(w.m.Ready(w.now, "notify", 1)) // some other process
	w.is("notify", Starting)
	w.ready("notify")
	w.is("notify", Running)
	w.do(w.m.Reloading(w.now, "notify", w.pid("notify")))
	w.do(w.m.SetStatus(w.now, "notify", w.pid("notify"), "loading"))
	if s := w.status("notify"); !s.Reload || s.Text != "loading" {
		t.Errorf("status %+v", s)
	}
	w.ready("notify")
	if s := w.status("notify"); s.Reload {
		t.Errorf("READY=1 did not end the reload: %+v", s)
	}
}

func TestReadyTimeout(t *testing.T) {
	w := newWorld(t, daemon("a", func(s *Spec) { s.ReadyTimeout = 10 * time.Second }))
	w.start("a")
	w.pass(9 * time.Second)
	w.is("a", Starting)
	w.pass(time.Second)
	w.is("a", Backoff)
	w.reason("a", "not ready within 10s")
	if s := w.status("a"); s.Crashes != 1 || s.NextTry != 15*time.Second {
		t.Errorf("crashes %d, next try %v; want 1 and 15s", s.Crashes, s.NextTry)
	}
	w.pass(5 * time.Second)
	w.ready("a")
	w.pass(time.Hour)
	w.is("a", Running)
}

func TestOneshotFails(t *testing.T) {
	w := newWorld(t, oneshot("a"), oneshot("b", func(s *Spec) { s.Respawn = Respawn{On: RestartOnFailure, Delay: time.Second} }))
	w.start("a", "b")
	w.exit("a", Exit{Code: 3})
	w.exit("b", Exit{Code: 3})
	w.is("a", Failed)
	w.is("b", Backoff)
	w.pass(time.Second)
	w.exit("b", Exit{})
	w.is("b", Done)
	w.pass(time.Hour)
	w.start("a")
	w.exit("a", Exit{})
	w.is("a", Done)
	w.do(w.m.Reload(w.now, "a")) // done again
	w.is("a", Starting)
}

func TestExecFails(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.refuse["a"] = "no such file"
	w.start("a")
	w.is("a", Backoff)
	w.reason("a", "not started: no such file")
	delete(w.refuse, "a")
	w.pass(DefaultDelay)
	w.ready("a")
	w.is("a", Running)
}

// TestRespawn follows procd up to where it gives up, and then our back-off.
func TestRespawn(t *testing.T) {
	w := newWorld(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec }))
	w.start("a")
	w.log = nil
	var delays []time.Duration
	var kinds []string
	for range 14 {
		w.exit("a", Exit{Code: 1})
		s := w.status("a")
		delays = append(delays, s.NextTry-w.now)
		kinds = append(kinds, strings.TrimPrefix(w.log[len(w.log)-1], "a instance."))
		w.pass(s.NextTry - w.now)
		w.is("a", Running)
	}
	const s = time.Second
	want := []time.Duration{5 * s, 5 * s, 5 * s, 5 * s, 5 * s, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 300 * s, 300 * s, 300 * s, 300 * s}
	if !slices.Equal(delays, want) {
		t.Errorf("delays %v\nwant   %v", delays, want)
	}
	if got := strings.Join(kinds, " "); got != strings.Repeat("respawn ", 5)+"fail"+strings.Repeat(" respawn", 8) {
		t.Errorf("notices %s", got)
	}
	if got := w.status("a"); got.Restarts != 14 || got.Crashes != 14 {
		t.Errorf("restarts %d, crashes %d", got.Restarts, got.Crashes)
	}

	// A long quiet run forgets it all.
	w.pass(DefaultThreshold)
	w.exit("a", Exit{Code: 1})
	if got := w.status("a"); got.Crashes != 0 || got.NextTry-w.now != 5*s {
		t.Errorf("after a quiet hour: crashes %d, delay %v", got.Crashes, got.NextTry-w.now)
	}
}

func TestRespawnEdges(t *testing.T) {
	for _, tc := range []struct {
		name    string
		r       Respawn
		x       Exit
		crashes int
		state   State
		delay   time.Duration
	}{
		{"never", Respawn{}, Exit{Code: 1}, 1, Failed, 0},
		{"never, ended well", Respawn{}, Exit{}, 1, Inactive, 0},
		{"on failure, ended well", Respawn{On: RestartOnFailure, Threshold: time.Hour}, Exit{}, 1, Inactive, 0},
		{"on failure, killed", Respawn{On: RestartOnFailure, Threshold: time.Hour, Delay: time.Second}, Exit{Code: 139, Signal: syscall.SIGSEGV}, 1, Backoff, time.Second},
		{"retry 0 is for ever", Respawn{On: RestartAlways, Threshold: time.Hour, Delay: time.Second}, Exit{Code: 1}, 50, Backoff, time.Second},
		{"delay 0 backs off from 1 s", Respawn{On: RestartAlways, Threshold: time.Hour, Retry: 1}, Exit{Code: 1}, 2, Backoff, 2 * time.Second},
		{"own ceiling", Respawn{On: RestartAlways, Threshold: time.Hour, Delay: time.Second, Retry: 1, Ceiling: 3 * time.Second}, Exit{Code: 1}, 9, Backoff, 3 * time.Second},
		{"delay above the ceiling", Respawn{On: RestartAlways, Threshold: time.Hour, Delay: 9 * time.Second, Retry: 1, Ceiling: 3 * time.Second}, Exit{Code: 1}, 9, Backoff, 9 * time.Second},
		{"no overflow", Respawn{On: RestartAlways, Threshold: 1 << 62, Delay: time.Second, Retry: 1}, Exit{Code: 1}, 200, Backoff, DefaultCeiling},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec; s.Respawn = tc.r }))
			w.start("a")
			for i := range tc.crashes {
				if i > 0 {
					w.pass(w.status("a").NextTry - w.now)
				}
				w.exit("a", tc.x)
			}
			w.is("a", tc.state)
			if s := w.status("a"); tc.state == Backoff && s.NextTry-w.now != tc.delay {
				t.Errorf("delay %v, want %v", s.NextTry-w.now, tc.delay)
			}
		})
	}
}

func TestStartEndsBackoff(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.start("a")
	w.exit("a", Exit{Code: 1})
	w.is("a", Backoff)
	w.start("a")
	w.is("a", Starting)
	if s := w.status("a"); s.Crashes != 0 {
		t.Errorf("crashes %d after a start by hand", s.Crashes)
	}
}

func TestStop(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("deaf"), daemon("hung"))
	w.start("a", "deaf", "hung")
	w.procs["deaf"].deaf = true
	w.procs["hung"].deaf, w.procs["hung"].immortal = true, true
	w.log = nil
	w.do(w.m.Stop(w.now, "a"))
	w.is("a", Inactive)
	w.logged("a terminated", "a instance.stop")

	w.do(w.m.Stop(w.now, "deaf"))
	w.pass(DefaultTermTimeout - 1)
	w.is("deaf", Stopping)
	w.pass(1)
	w.is("deaf", Inactive)
	w.logged("deaf terminated", "deaf instance.kill", "deaf kill", "deaf instance.stop")
	if s := w.status("deaf"); s.Exit == nil || s.Exit.Code != 137 {
		t.Errorf("exit %v, want 137 = 128 + SIGKILL", s.Exit)
	}

	w.do(w.m.Stop(w.now, "hung"))
	w.pass(time.Minute)
	w.is("hung", Stopping)
	w.logged("hung terminated", "hung instance.kill", "hung kill", "hung instance.kill")
	w.exit("hung", Exit{Code: 137, Signal: syscall.SIGKILL})
	w.is("hung", Inactive)
	w.pass(time.Hour)
	w.runs()
}

func TestStopDuringSpawn(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.slow["a"] = true
	w.start("a")
	w.do(w.m.Stop(w.now, "a"))
	w.is("a", Stopping)
	p := w.procs["a"]
	w.do(w.m.Started(w.now, "a", p.run, p.pid))
	w.is("a", Inactive)
	w.runs()
}

func TestStopWhileWaitingAndBackoff(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("b", needs("a")))
	w.start("b")
	w.is("b", Waiting)
	w.do(w.m.Stop(w.now, "b"))
	w.is("b", Inactive)
	w.exit("a", Exit{Code: 1})
	w.is("a", Backoff)
	w.do(w.m.Stop(w.now, "a"))
	w.is("a", Inactive)
	w.pass(time.Hour)
	w.runs()
}

func TestStartWhileStopping(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.start("a")
	w.procs["a"].deaf = true
	w.do(w.m.Stop(w.now, "a"))
	w.start("a")
	w.is("a", Stopping)
	w.exit("a", Exit{})
	w.is("a", Starting)
	w.runs("a")
}

func TestRestartAndReload(t *testing.T) {
	w := newWorld(t, daemon("hup", func(s *Spec) { s.ReloadSignal = syscall.SIGHUP }), daemon("plain"))
	w.start("hup", "plain")
	w.ready("hup")
	w.ready("plain")
	hup, plain := w.pid("hup"), w.pid("plain")
	w.log = nil
	w.do(w.m.Reload(w.now, "hup"))
	w.do(w.m.Reload(w.now, "plain"))
	w.logged("hup hangup", "hup instance.reload", "plain terminated", "plain instance.stop", "plain instance.start")
	if w.pid("hup") != hup || w.pid("plain") == plain {
		t.Error("reload by signal must keep the process, reload without must not")
	}
	w.do(w.m.Restart(w.now, "hup"))
	if w.pid("hup") == hup {
		t.Error("restart kept the process")
	}
	if s := w.status("hup"); s.Restarts != 1 || s.Crashes != 0 {
		t.Errorf("restarts %d, crashes %d", s.Restarts, s.Crashes)
	}
	w.do(w.m.Stop(w.now, "plain"))
	w.do(w.m.Reload(w.now, "plain"))
	w.is("plain", Inactive)
	w.do(w.m.Restart(w.now, "plain"))
	w.is("plain", Starting)
}

func TestRestartBeatsFaultAndStop(t *testing.T) {
	w := newWorld(t, daemon("a", func(s *Spec) { s.ReadyTimeout = time.Second }))
	w.start("a")
	w.procs["a"].deaf = true
	w.pass(time.Second)
	w.is("a", Stopping)
	w.do(w.m.Restart(w.now, "a"))
	w.exit("a", Exit{})
	w.is("a", Starting) // at once, not after the back-off of a crash

	w.procs["a"].deaf = true
	w.do(w.m.Stop(w.now, "a"))
	w.do(w.m.Restart(w.now, "a"))
	w.exit("a", Exit{})
	w.is("a", Starting)
}

func TestDependantsOutliveACrash(t *testing.T) {
	w := newWorld(t, daemon("ubusd"), daemon("rpcd", needs("ubusd")))
	w.start("rpcd")
	w.ready("ubusd")
	w.ready("rpcd")
	w.exit("ubusd", Exit{Code: 2})
	w.is("rpcd", Running)
	w.exit("rpcd", Exit{Code: 2}) // but it does not start before its need is back
	w.pass(DefaultDelay)
	w.is("ubusd", Starting)
	w.is("rpcd", Waiting)
	w.ready("ubusd")
	w.is("rpcd", Starting)
}

func TestWatchdog(t *testing.T) {
	w := newWorld(t, daemon("a", func(s *Spec) { s.Watchdog = 10 * time.Second; s.Critical = true }))
	w.start("a")
	w.pass(time.Minute) // before ready no ping is due
	w.is("a", Starting)
	w.ready("a")
	if s := w.status("a"); s.Health != HealthUnknown {
		t.Errorf("health %q", s.Health)
	}
	for range 5 {
		w.pass(9 * time.Second)
		w.do(w.m.Ping(w.now, "a", w.pid("a")))
	}
	w.is("a", Running)
	if s := w.status("a"); s.Health != HealthOK || !s.Well() {
		t.Errorf("health %q", s.Health)
	}
	w.procs["a"].deaf = true
	w.log = nil
	w.pass(10 * time.Second)
	w.is("a", Stopping)
	if s := w.status("a"); s.Health != HealthFailed || s.Well() {
		t.Errorf("health %q", s.Health)
	}
	w.pass(DefaultTermTimeout)
	w.is("a", Backoff)
	w.reason("a", "watchdog")
	w.logged("a instance.health", "a aborted", "a instance.kill", "a kill", "a instance.respawn")
	w.pass(DefaultDelay)
	w.ready("a")
	w.do(w.m.Ping(w.now, "a", w.pid("a")))
	if s := w.status("a"); s.Health != HealthOK || s.Crashes != 1 {
		t.Errorf("health %q, crashes %d", s.Health, s.Crashes)
	}
}

func TestSetWatchdog(t *testing.T) {
	w := newWorld(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec; s.Respawn = Respawn{} }))
	w.start("a")
	w.pass(time.Hour)
	w.do(w.m.SetWatchdog(w.now, "a", time.Minute))
	w.pass(59 * time.Second)
	w.do(w.m.SetWatchdog(w.now, "a", 0))
	w.pass(time.Hour)
	w.is("a", Running)
	w.do(w.m.SetWatchdog(w.now, "a", time.Minute))
	w.procs["a"].deaf = true
	w.pass(time.Minute)
	w.is("a", Stopping)
	w.pass(time.Minute)
	w.is("a", Failed) // it has no respawn
}

func TestDefineChanged(t *testing.T) {
	cmd := func(c string) func(*Spec) {
		return func(s *Spec) { s.Process.Command = []string{c}; s.Ready = ReadyExec }
	}
	w := newWorld(t, daemon("a", cmd("one")))
	w.start("a")
	first := w.pid("a")
	w.do(w.m.Define(w.now, daemon("a", cmd("two")), true)) // no reload signal: restart
	if w.pid("a") == first || w.status("a").Spec.Process.Command[0] != "two" {
		t.Error("not restarted with the new definition")
	}
	hup := daemon("a", cmd("three"), func(s *Spec) { s.ReloadSignal = syscall.SIGHUP })
	second := w.pid("a")
	w.log = nil
	w.do(w.m.Define(w.now, hup, true))
	w.logged("a hangup", "a instance.reload")
	if w.pid("a") != second || w.status("a").Spec.Process.Command[0] != "three" {
		t.Error("not reloaded in place")
	}
	w.procs["a"].deaf = true
	w.do(w.m.Define(w.now, daemon("a", cmd("four")), false))
	w.do(w.m.Define(w.now, daemon("a", cmd("five")), false)) // while it stops: the last one counts
	w.is("a", Stopping)
	w.exit("a", Exit{})
	w.is("a", Running)
	if got := w.status("a").Spec.Process.Command[0]; got != "five" {
		t.Errorf("runs %s", got)
	}
	w.do(w.m.Stop(w.now, "a"))
	w.do(w.m.Define(w.now, daemon("a", cmd("six")), false))
	w.runs()
}

func TestRemove(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("b"))
	w.start("a")
	w.procs["a"].deaf = true
	w.do(w.m.Remove(w.now, "a"))
	w.do(w.m.Remove(w.now, "b"))
	w.do(w.m.Remove(w.now, "nobody"))
	w.is("a", Stopping)
	w.exit("a", Exit{})
	if ids := w.m.IDs(); len(ids) != 0 {
		t.Errorf("left: %v", ids)
	}
	// Removed and defined again while it stops: it stays, stopped.
	w.do(w.m.Define(w.now, daemon("a"), false))
	w.start("a")
	w.procs["a"].deaf = true
	w.do(w.m.Remove(w.now, "a"))
	w.do(w.m.Define(w.now, daemon("a"), false))
	w.start("a")
	w.exit("a", Exit{})
	w.runs("a")
}

func TestStaleEvents(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.start("a")
	old := *w.procs["a"]
	w.do(w.m.Restart(w.now, "a"))
	w.log = nil
	w.do(w.m.Started(w.now, "a", old.run, old.pid))
	w.do(w.m.Exited(w.now, "a", old.run, Exit{Code: 9}))
	w.do(w.m.Ping(w.now, "a", old.pid))
	w.do(w.m.Ready(w.now, "a", old.pid))
	w.is("a", Starting)
	w.logged()
	w.start("nobody")
	for _, f := range []func(time.Duration, string) []Action{w.m.Stop, w.m.Restart, w.m.Reload} {
		if got := f(w.now, "nobody"); len(got) != 0 {
			t.Errorf("actions for an unknown unit: %v", got)
		}
	}
}

func TestShutdownOrder(t *testing.T) {
	last := func(s *Spec) { s.StopLast = true }
	w := newWorld(t, daemon("logd", last), daemon("ubusd", last), daemon("network", needs("ubusd")), oneshot("boot"),
		daemon("proxy", needs("network"), after("boot")), daemon("waits", needs("off")), daemon("off"), daemon("crashed"))
	w.start("logd", "proxy", "crashed", "boot")
	w.exit("boot", Exit{})
	w.ready("ubusd")
	w.ready("network")
	w.ready("proxy")
	w.exit("crashed", Exit{Code: 1})
	w.start("waits")
	w.do(w.m.Stop(w.now, "off"))
	w.procs["network"].deaf = true
	w.log = nil
	w.do(w.m.Shutdown(w.now))
	w.runs("logd", "ubusd", "network")
	w.pass(DefaultTermTimeout)
	w.logged("proxy terminated", "proxy instance.stop", "network terminated", "network instance.kill", "network kill", "network instance.stop",
		"logd terminated", "logd instance.stop", "ubusd terminated", "ubusd instance.stop")
	if w.down == nil || len(w.down.Stuck) != 0 {
		t.Fatalf("down = %+v", w.down)
	}
	w.start("logd")
	w.do(w.m.Restart(w.now, "logd"))
	w.pass(time.Hour)
	w.runs()
}

func TestShutdownDoesNotWaitForTheStuck(t *testing.T) {
	w := newWorld(t, daemon("a"), daemon("b", needs("a")))
	w.start("b")
	w.ready("a")
	w.procs["b"].deaf, w.procs["b"].immortal = true, true
	w.do(w.m.Shutdown(w.now))
	w.pass(DefaultTermTimeout + killGrace - 1)
	w.runs("a", "b")
	w.pass(1)
	w.runs("b")
	if w.down == nil || !slices.Equal(w.down.Stuck, []string{"b"}) {
		t.Errorf("down = %+v, want b stuck", w.down)
	}
}

func TestShutdownOfACycleAndOfNothing(t *testing.T) {
	w := newWorld(t)
	w.do(w.m.Shutdown(w.now))
	if w.down == nil {
		t.Error("an empty house does not shut down")
	}
	w = newWorld(t, daemon("a", needs("b")), daemon("b"))
	w.start("a")
	w.ready("b")
	w.ready("a")
	w.do(w.m.Define(w.now, daemon("b", needs("a"), func(s *Spec) { s.ReloadSignal = syscall.SIGHUP }), true))
	w.do(w.m.Shutdown(w.now))
	w.pass(time.Minute)
	if w.down == nil {
		t.Error("a cycle defined while running hinders the shutdown")
	}
}

func TestShutdownDuringSpawn(t *testing.T) {
	w := newWorld(t, daemon("a"))
	w.slow["a"] = true
	w.start("a")
	w.do(w.m.Shutdown(w.now))
	if w.down != nil {
		t.Fatal("down before the process under way is accounted for")
	}
	p := w.procs["a"]
	w.do(w.m.Started(w.now, "a", p.run, p.pid))
	if w.down == nil {
		t.Fatal("not down")
	}
}

// TestRandom drives a machine with random events and checks what must always
// hold; the world checks more on the way (no second process, no signal to a
// process that is gone, Down once).
func TestRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		ids := []string{"a", "b", "c", "d", "e"}
		for i, id := range ids {
			s := daemon(id, func(s *Spec) {
				s.ReadyTimeout = time.Duration(r.IntN(20)) * time.Second
				s.Watchdog = time.Duration(r.IntN(2)*15) * time.Second
				s.Respawn.On = Restart(r.IntN(3))
				s.Ready = Readiness(r.IntN(2))
				if r.IntN(4) == 0 {
					s.Type = Oneshot
				}
				if r.IntN(2) == 0 {
					s.ReloadSignal = syscall.SIGHUP
				}
				if i > 0 && r.IntN(2) == 0 {
					s.Needs = []string{ids[r.IntN(i)]}
				}
				if r.IntN(3) == 0 {
					s.After = []string{ids[r.IntN(len(ids))]}
				}
			})
			w.do(w.m.Define(w.now, s, false))
		}
		for range 150 {
			id := ids[r.IntN(len(ids))]
			p := w.procs[id]
			switch op := r.IntN(12); {
			case op == 0:
				w.do(w.m.Stop(w.now, id))
			case op == 1:
				w.do(w.m.Restart(w.now, id))
			case op == 2:
				w.do(w.m.Reload(w.now, id))
			case op <= 4:
				w.start(id)
			case op == 5 && p != nil:
				p.deaf = !p.deaf
			case op == 6 && p != nil:
				w.exit(id, Exit{Code: r.IntN(2)})
			case op <= 8 && p != nil:
				w.ready(id)
			case op == 9 && p != nil:
				w.do(w.m.Ping(w.now, id, p.pid))
			case op == 10:
				if s, ok := w.m.Status(id); ok {
					spec := s.Spec
					spec.Process.Command = append(spec.Process.Command, "x")
					w.do(w.m.Define(w.now, spec, r.IntN(2) == 0))
				}
			default:
				w.pass(time.Duration(r.IntN(8000)) * time.Millisecond)
			}
			for _, id := range ids {
				s := w.status(id)
				if (w.procs[id] != nil) != (s.State == Starting || s.State == Running || s.State == Stopping) {
					t.Fatalf("seed %d: %s is %s, process %v", seed, id, s.State, w.procs[id])
				}
				if s.State == Backoff && s.NextTry <= 0 {
					t.Fatalf("seed %d: %s backs off without end", seed, id)
				}
				if s.State == Waiting && s.Reason == "" {
					t.Fatalf("seed %d: %s waits for nothing", seed, id)
				}
			}
		}
		w.do(w.m.Shutdown(w.now))
		w.pass(5 * (DefaultTermTimeout + killGrace))
		if w.down == nil || len(w.procs) != 0 {
			t.Fatalf("seed %d: shutdown does not end: %v left\nlog: %s", seed, w.procs, strings.Join(w.log, "; "))
		}
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"daemon": Daemon, "oneshot": Oneshot, "Type(9)": Type(9),
		"exec": ReadyExec, "notify": ReadyNotify, "exit": ReadyExit, "Readiness(9)": Readiness(9),
		"never": RestartNever, "always": RestartAlways, "on-failure": RestartOnFailure, "Restart(9)": Restart(9),
		"backoff": Backoff, "State(9)": State(9),
		"exit code 1": Exit{Code: 1}, "killed: out of memory": Exit{Code: 137, Signal: syscall.SIGKILL, OOM: true},
		"killed by signal 11 (segmentation fault)": Exit{Code: 139, Signal: syscall.SIGSEGV},
		"not started: gone":                        Exit{Err: "gone"},
	} {
		if got.String() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
