package supervise

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

// State of a unit; the package comment explains each.
type State int

const (
	Inactive State = iota
	Waiting
	Starting
	Running
	Stopping
	Backoff
	Failed
	Done
)

var stateNames = [...]string{"inactive", "waiting", "starting", "running", "stopping", "backoff", "failed", "done"}

func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return stateNames[s]
}

// Health of a unit.
type Health string

const (
	HealthNone    Health = ""          // nobody asked
	HealthUnknown Health = "unknown"   // asked, no sign of life yet
	HealthOK      Health = "ok"        // pings in time
	HealthFailed  Health = "unhealthy" // missed its deadline
)

// killGrace is how long a process may take to vanish after SIGKILL before it is
// called stuck. The kernel needs milliseconds unless the process hangs in it.
const killGrace = 2 * time.Second

// Action is what the machine wants done: Spawn, Signal, Kill, Sweep, Notice or
// Down.
type Action interface{ action() }

// Spawn starts the unit's process. The answer is one Started event with the
// same Run, followed by one Exited, or one Exited with Exit.Err set.
type Spawn struct {
	Spec *Spec
	Run  int
}

// Signal sends Sig to the unit's process PID.
type Signal struct {
	ID  string
	PID int
	Sig syscall.Signal
}

// Kill sends SIGKILL to the process and, unless the unit keeps its children, to
// all that it started.
type Kill struct {
	ID  string
	PID int
}

// Sweep follows the end of a process: what it left behind is killed unless the
// unit keeps its children.
type Sweep struct{ ID string }

// Down says that the shutdown has ended. Stuck are the units whose process
// outlived SIGKILL.
type Down struct{ Stuck []string }

func (Spawn) action()  {}
func (Signal) action() {}
func (Kill) action()   {}
func (Sweep) action()  {}
func (Down) action()   {}
func (Notice) action() {}

// NoticeKind names what happened. The kinds procd has keep its names.
type NoticeKind string

const (
	InstanceStart   NoticeKind = "instance.start"
	InstanceReady   NoticeKind = "instance.ready" // ours
	InstanceStop    NoticeKind = "instance.stop"
	InstanceRespawn NoticeKind = "instance.respawn"
	InstanceFail    NoticeKind = "instance.fail"
	InstanceReload  NoticeKind = "instance.reload" // ours
	InstanceHealth  NoticeKind = "instance.health" // ours
	InstanceKill    NoticeKind = "instance.kill"   // ours: did not stop in time
	ServiceStart    NoticeKind = "service.start"
	ServiceStop     NoticeKind = "service.stop"
)

// Notice tells the bus and the log what happened to a unit.
type Notice struct {
	Kind     NoticeKind
	At       time.Duration // machine time
	ID       string
	Service  string
	Instance string
	Native   bool
	PID      int
	Exit     *Exit         // InstanceStop, InstanceRespawn, InstanceFail after a process ended
	Crashes  int           // procd's respawn_count
	Delay    time.Duration // InstanceRespawn, InstanceFail: until the next start; 0 none
	Health   Health        // InstanceHealth
	Reason   string
	Command  []string
}

type timerKind int

const (
	timerNone     timerKind = iota
	timerReady              // starting: ReadyTimeout
	timerWatchdog           // running
	timerTerm               // stopping: SIGKILL is due
	timerKill               // stopping: SIGKILL was sent
	timerRespawn            // backoff
)

// why a unit is stopping.
type stopCause int

const (
	stopWanted  stopCause = iota
	stopRestart           // start again when it has ended
	stopFault             // its end counts as a crash
)

type entry struct {
	spec    Spec
	want    bool
	state   State
	since   time.Duration
	reason  string
	run     int
	pid     int
	started time.Duration // of the newest run
	readyAt time.Duration // when the newest run became ready
	ready   bool          // the newest run became ready

	timer    timerKind
	deadline time.Duration

	cause    stopCause
	killed   bool
	stuck    bool
	failed   bool // instance.fail was sent for this row of crashes
	remove   bool // forget the unit once it has ended
	next     *Spec
	crashes  int
	restarts int
	exit     *Exit
	health   Health
	status   string
	reload   bool // RELOADING=1 was said
}

// Machine is the state of all units. It is not safe for concurrent use.
// Times are since an arbitrary start and must not go back.
type Machine struct {
	units map[string]*entry
	ids   []string // sorted
	now   time.Duration
	out   []Action
	down  bool
	ended bool
}

// NewMachine returns a machine without units.
func NewMachine() *Machine { return &Machine{units: map[string]*entry{}} }

// Define adds a unit or changes one. A changed definition of a unit with a
// process makes it restart; with bySignal and a ReloadSignal the process gets
// that signal instead and the definition holds from its next start on.
// Define does not start a unit that is not wanted.
func (m *Machine) Define(now time.Duration, s Spec, bySignal bool) []Action {
	m.now = now
	e := m.units[s.ID]
	switch {
	case e == nil:
		e = &entry{spec: s, since: now}
		m.units[s.ID] = e
		m.ids = append(m.ids, s.ID)
		sort.Strings(m.ids)
	case !e.active():
		e.spec = s
		e.remove = false
	case bySignal && s.ReloadSignal != 0 && e.state != Stopping && e.pid != 0:
		e.spec = s
		e.remove = false
		m.signalReload(e)
	default:
		e.next = &s
		e.remove = false
		if e.state != Stopping {
			m.stop(e, stopRestart, "definition changed")
		} else if e.want {
			e.cause = stopRestart
		}
	}
	return m.settle()
}

// Remove stops a unit and forgets it. Unknown IDs are ignored.
func (m *Machine) Remove(now time.Duration, id string) []Action {
	m.now = now
	if e := m.units[id]; e != nil {
		e.want = false
		e.next = nil
		if e.active() {
			e.remove = true
			m.stop(e, stopWanted, "removed")
		} else {
			m.forget(e)
		}
	}
	return m.settle()
}

// Start wants units and all they need up. It clears a failed state and the
// crash count, and ends a back-off. Units that are to keep an After order among
// each other must be started in one call.
func (m *Machine) Start(now time.Duration, ids ...string) []Action {
	m.now = now
	seen := map[string]bool{}
	for _, id := range ids {
		m.start(id, seen)
	}
	return m.settle()
}

func (m *Machine) start(id string, seen map[string]bool) {
	e := m.units[id]
	if e == nil || seen[id] || m.down {
		return
	}
	seen[id] = true
	e.want = true
	for _, n := range e.spec.Needs {
		if d := m.units[n]; d != nil && !d.up() {
			m.start(n, seen)
		}
	}
	switch e.state {
	case Inactive, Failed, Backoff, Done:
		e.crashes, e.failed = 0, false
		m.enter(e, Waiting, "")
	case Stopping:
		if e.cause == stopWanted {
			e.cause = stopRestart
		}
	}
}

// Stop wants a unit down.
func (m *Machine) Stop(now time.Duration, id string) []Action {
	m.now = now
	if e := m.units[id]; e != nil {
		e.want = false
		m.stop(e, stopWanted, "")
	}
	return m.settle()
}

// Restart ends a unit's process and starts it again, or starts a unit that is
// not up.
func (m *Machine) Restart(now time.Duration, id string) []Action {
	m.now = now
	e := m.units[id]
	if e == nil || m.down {
		return m.settle()
	}
	if !e.active() {
		m.start(id, map[string]bool{})
		return m.settle()
	}
	e.want = true
	e.crashes, e.failed = 0, false
	m.stop(e, stopRestart, "restart")
	return m.settle()
}

// Reload makes a running unit take in its configuration: by its reload signal
// if it has one, else by a restart. A unit that is not up is left alone.
func (m *Machine) Reload(now time.Duration, id string) []Action {
	m.now = now
	e := m.units[id]
	switch {
	case e == nil || m.down:
	case e.state == Done || e.state == Failed && e.want && e.spec.Type == Oneshot:
		m.enter(e, Waiting, "")
	case e.state != Running && e.state != Starting || e.pid == 0:
	case e.spec.ReloadSignal != 0:
		m.signalReload(e)
	default:
		m.stop(e, stopRestart, "reload")
	}
	return m.settle()
}

func (m *Machine) signalReload(e *entry) {
	m.emit(Signal{e.spec.ID, e.pid, e.spec.ReloadSignal})
	m.notice(e, Notice{Kind: InstanceReload, PID: e.pid})
}

// Shutdown wants all units down, dependants first. The last action of all is
// Down.
func (m *Machine) Shutdown(now time.Duration) []Action {
	m.now = now
	m.down = true
	for _, e := range m.units {
		e.want = false
		if !e.active() && (e.state == Waiting || e.state == Backoff) {
			m.enter(e, Inactive, "shutdown")
		}
		if e.state == Stopping {
			e.cause, e.next = stopWanted, nil
		}
	}
	return m.settle()
}

// Started tells that the process of the given run exists.
func (m *Machine) Started(now time.Duration, id string, run, pid int) []Action {
	m.now = now
	e := m.units[id]
	if e == nil || e.run != run || !e.active() {
		return m.settle()
	}
	e.pid = pid
	m.notice(e, Notice{Kind: InstanceStart, PID: pid, Command: e.spec.Process.Command})
	switch e.state {
	case Starting:
		if e.spec.Type == Daemon && e.spec.Ready == ReadyExec {
			m.becameReady(e)
		}
	case Stopping: // stopped while the start was under way
		m.term(e)
	}
	return m.settle()
}

// Exited tells that the process of the given run has ended, or with Exit.Err
// that it could not be started.
func (m *Machine) Exited(now time.Duration, id string, run int, x Exit) []Action {
	m.now = now
	e := m.units[id]
	if e == nil || e.run != run || !e.active() {
		return m.settle()
	}
	m.exited(e, x)
	return m.settle()
}

// Ready is READY=1 of the unit's process.
func (m *Machine) Ready(now time.Duration, id string, pid int) []Action {
	m.now = now
	if e := m.speaker(id, pid); e != nil {
		e.reload = false
		if e.state == Starting && e.spec.Type == Daemon && e.spec.Ready == ReadyNotify {
			m.becameReady(e)
		}
	}
	return m.settle()
}

// Reloading is RELOADING=1 of the unit's process; Ready ends it.
func (m *Machine) Reloading(now time.Duration, id string, pid int) []Action {
	m.now = now
	if e := m.speaker(id, pid); e != nil && e.state == Running {
		e.reload = true
	}
	return m.settle()
}

// SetStatus is STATUS= of the unit's process.
func (m *Machine) SetStatus(now time.Duration, id string, pid int, text string) []Action {
	m.now = now
	if e := m.speaker(id, pid); e != nil {
		e.status = text
	}
	return m.settle()
}

// Ping is WATCHDOG=1 of the unit's process.
func (m *Machine) Ping(now time.Duration, id string, pid int) []Action {
	m.now = now
	e := m.speaker(id, pid)
	if e == nil || e.spec.Watchdog == 0 || e.state == Stopping {
		return m.settle()
	}
	m.setHealth(e, HealthOK, "")
	if e.state == Running {
		m.arm(e, timerWatchdog, e.spec.Watchdog)
	}
	return m.settle()
}

// SetWatchdog changes a unit's watchdog interval while it runs; 0 turns it off.
// It counts as a ping.
func (m *Machine) SetWatchdog(now time.Duration, id string, d time.Duration) []Action {
	m.now = now
	e := m.units[id]
	if e == nil {
		return m.settle()
	}
	e.spec.Watchdog = d
	if e.state == Running {
		if d == 0 {
			e.timer, e.health = timerNone, HealthNone
		} else {
			m.setHealth(e, HealthOK, "")
			m.arm(e, timerWatchdog, d)
		}
	}
	return m.settle()
}

// speaker is the unit if the process pid is its present one.
func (m *Machine) speaker(id string, pid int) *entry {
	e := m.units[id]
	if e == nil || e.pid == 0 || e.pid != pid {
		return nil
	}
	return e
}

// Next is the time of the earliest timer; ok is false if none runs.
func (m *Machine) Next() (at time.Duration, ok bool) {
	for _, e := range m.units {
		if e.timer != timerNone && (!ok || e.deadline < at) {
			at, ok = e.deadline, true
		}
	}
	return at, ok
}

// Tick fires the timers that are due.
func (m *Machine) Tick(now time.Duration) []Action {
	m.now = now
	for _, id := range m.ids {
		e := m.units[id]
		if e.timer == timerNone || e.deadline > now {
			continue
		}
		kind := e.timer
		e.timer = timerNone
		switch kind {
		case timerReady:
			m.stop(e, stopFault, fmt.Sprintf("not ready within %v", e.spec.ReadyTimeout))
		case timerWatchdog:
			m.setHealth(e, HealthFailed, fmt.Sprintf("no sign of life within %v", e.spec.Watchdog))
			m.enter(e, Stopping, "watchdog")
			e.cause = stopFault
			m.emit(Signal{e.spec.ID, e.pid, syscall.SIGABRT})
			m.arm(e, timerTerm, e.termTimeout())
		case timerTerm:
			e.killed = true
			m.notice(e, Notice{Kind: InstanceKill, PID: e.pid, Reason: fmt.Sprintf("did not stop within %v, killed", e.termTimeout())})
			m.emit(Kill{e.spec.ID, e.pid})
			m.arm(e, timerKill, killGrace)
		case timerKill:
			e.stuck = true
			m.notice(e, Notice{Kind: InstanceKill, PID: e.pid, Reason: "outlived SIGKILL: its process hangs in the kernel"})
		case timerRespawn:
			m.enter(e, Waiting, "")
		}
	}
	return m.settle()
}

// active tells whether the unit has a process, or will have one from a Spawn
// that is under way.
func (e *entry) active() bool {
	return e.state == Starting || e.state == Running || e.state == Stopping
}

// up tells whether units that need this one may start.
func (e *entry) up() bool { return e.state == Running || e.state == Done }

func (e *entry) termTimeout() time.Duration {
	if e.spec.TermTimeout > 0 {
		return e.spec.TermTimeout
	}
	return DefaultTermTimeout
}

func (m *Machine) emit(a Action) { m.out = append(m.out, a) }

func (m *Machine) notice(e *entry, n Notice) {
	n.At, n.ID, n.Service, n.Instance, n.Native = m.now, e.spec.ID, e.spec.Service, e.spec.Instance, e.spec.Native
	n.Crashes = e.crashes
	m.emit(n)
}

func (m *Machine) enter(e *entry, s State, reason string) {
	if e.state != s {
		e.since = m.now
	}
	e.state, e.reason, e.timer = s, reason, timerNone
}

func (m *Machine) arm(e *entry, k timerKind, d time.Duration) {
	e.timer, e.deadline = k, m.now+d
}

func (m *Machine) setHealth(e *entry, h Health, reason string) {
	if e.health == h {
		return
	}
	first := e.health == HealthUnknown || e.health == HealthNone
	e.health = h
	if h == HealthOK && first {
		return // the first sign of life is no change that anybody waits for
	}
	m.notice(e, Notice{Kind: InstanceHealth, PID: e.pid, Health: h, Reason: reason})
}

func (m *Machine) forget(e *entry) {
	delete(m.units, e.spec.ID)
	if i, ok := slices.BinarySearch(m.ids, e.spec.ID); ok {
		m.ids = slices.Delete(m.ids, i, i+1)
	}
}

func (m *Machine) becameReady(e *entry) {
	e.ready, e.readyAt = true, m.now
	if e.spec.Type == Oneshot {
		m.enter(e, Done, "")
	} else {
		m.enter(e, Running, "")
		if e.spec.Watchdog > 0 {
			m.arm(e, timerWatchdog, e.spec.Watchdog)
		}
	}
	m.notice(e, Notice{Kind: InstanceReady, PID: e.pid})
}

// stop moves a unit towards its end, whatever its state.
func (m *Machine) stop(e *entry, cause stopCause, reason string) {
	switch e.state {
	case Starting, Running:
		m.enter(e, Stopping, reason)
		e.cause = cause
		if e.pid != 0 {
			m.term(e)
		}
	case Stopping:
		if cause != stopFault {
			e.cause = cause
		}
	case Waiting, Backoff, Failed, Done:
		if cause == stopWanted {
			m.enter(e, Inactive, reason)
			e.crashes, e.failed = 0, false
		}
	}
}

func (m *Machine) term(e *entry) {
	m.emit(Signal{e.spec.ID, e.pid, syscall.SIGTERM})
	m.arm(e, timerTerm, e.termTimeout())
}

func (m *Machine) exited(e *entry, x Exit) {
	id, pid, ran := e.spec.ID, e.pid, m.now-e.started
	wasStopping, cause, reason := e.state == Stopping, e.cause, e.reason
	e.pid, e.exit, e.killed, e.stuck, e.reload = 0, &x, false, false, false
	e.status = ""
	if e.health != HealthNone {
		e.health = HealthUnknown
	}
	if x.Err == "" {
		m.emit(Sweep{id})
	}

	switch {
	case wasStopping && cause != stopFault:
		m.enter(e, Inactive, reason)
		m.notice(e, Notice{Kind: InstanceStop, PID: pid, Exit: &x, Reason: reason})
		if e.remove {
			m.forget(e)
			return
		}
		if e.next != nil {
			e.spec, e.next = *e.next, nil
		}
		if cause == stopRestart && e.want && !m.down {
			e.restarts++
			m.enter(e, Waiting, "")
		}
		return
	case !wasStopping && e.spec.Type == Oneshot && x.ok():
		m.becameReady(e)
		m.notice(e, Notice{Kind: InstanceStop, PID: pid, Exit: &x})
		return
	}

	// It ended by itself, or by a fault that we found.
	if !wasStopping {
		reason = x.String()
	}
	again := e.want && !m.down && e.spec.Invalid == "" &&
		(e.spec.Respawn.On == RestartAlways || e.spec.Respawn.On == RestartOnFailure && (wasStopping || !x.ok()))
	if e.remove {
		m.notice(e, Notice{Kind: InstanceStop, PID: pid, Exit: &x, Reason: reason})
		m.forget(e)
		return
	}
	if e.next != nil {
		e.spec, e.next = *e.next, nil
	}
	if !again {
		if x.ok() && !wasStopping {
			m.enter(e, Inactive, "ended by itself")
		} else {
			m.enter(e, Failed, reason)
		}
		m.notice(e, Notice{Kind: InstanceStop, PID: pid, Exit: &x, Reason: reason})
		return
	}
	if ran >= e.spec.Respawn.Threshold {
		e.crashes, e.failed = 0, false
	} else {
		e.crashes++
	}
	e.restarts++
	delay, beyond := e.spec.Respawn.delay(e.crashes)
	m.enter(e, Backoff, reason)
	m.arm(e, timerRespawn, delay)
	kind := InstanceRespawn
	if beyond && !e.failed {
		e.failed = true
		kind = InstanceFail
	}
	m.notice(e, Notice{Kind: kind, PID: pid, Exit: &x, Delay: delay, Reason: reason, Command: e.spec.Process.Command})
}

// settle starts what can start, stops what a shutdown has reached, and returns
// the actions gathered.
func (m *Machine) settle() []Action {
	if m.down {
		m.settleDown()
	} else {
		// All definitions are judged before anything starts: what a unit
		// waits for depends on its neighbours' state.
		for changed := true; changed; {
			changed = false
			for _, id := range m.ids {
				m.judge(m.units[id])
			}
			for _, id := range m.ids {
				if m.launch(m.units[id]) {
					changed = true
				}
			}
		}
	}
	out := m.out
	m.out = nil
	return out
}

// judge fails a unit that is defined wrongly, and sets one that was on its way
// again once its definition is right.
func (m *Machine) judge(e *entry) {
	undefined := e.state == Failed && e.exit == nil
	if !e.want || e.state != Waiting && !undefined {
		return
	}
	bad := m.misdefined(e)
	switch {
	case bad == "" && undefined:
		m.enter(e, Waiting, "")
	case bad != "" && undefined:
		e.reason = bad
	case bad != "":
		e.exit = nil
		m.enter(e, Failed, bad)
		m.notice(e, Notice{Kind: InstanceFail, Reason: bad})
	}
}

// launch starts a waiting unit whose conditions hold; it reports whether it did.
func (m *Machine) launch(e *entry) bool {
	if !e.want || e.state != Waiting {
		return false
	}
	if wait := m.waitsFor(e); wait != "" {
		e.reason = wait
		return false
	}
	e.run++
	e.ready, e.exit, e.started = false, nil, m.now
	if e.spec.Watchdog > 0 {
		e.health = HealthUnknown
	} else {
		e.health = HealthNone
	}
	m.enter(e, Starting, "")
	if e.spec.ReadyTimeout > 0 {
		m.arm(e, timerReady, e.spec.ReadyTimeout)
	}
	spec := e.spec
	m.emit(Spawn{&spec, e.run})
	return true
}

// misdefined is why a unit can never start as it is defined; empty if it can.
func (m *Machine) misdefined(e *entry) string {
	if e.spec.Invalid != "" {
		return e.spec.Invalid
	}
	for _, n := range e.spec.Needs {
		if m.units[n] == nil {
			return fmt.Sprintf("needs %s, which does not exist", n)
		}
	}
	if c := m.cycle(e.spec.ID); c != nil {
		return "its order is a cycle: " + strings.Join(c, " after ")
	}
	return ""
}

// cycle is the way from id back to id along needs and after, or nil.
func (m *Machine) cycle(id string) []string {
	seen := map[string]bool{}
	var walk func(at string, path []string) []string
	walk = func(at string, path []string) []string {
		e := m.units[at]
		if e == nil {
			return nil
		}
		for _, edges := range [][]string{e.spec.Needs, e.spec.After} {
			for _, n := range edges {
				if n == id {
					return append(path, at, id)
				}
				if seen[n] {
					continue
				}
				seen[n] = true
				if c := walk(n, append(path[:len(path):len(path)], at)); c != nil {
					return c
				}
			}
		}
		return nil
	}
	return walk(id, nil)
}

// waitsFor says in words what a unit still waits for; empty if nothing.
func (m *Machine) waitsFor(e *entry) string {
	for _, n := range e.spec.Needs {
		if d := m.units[n]; !d.up() {
			return fmt.Sprintf("needs %s, which is %s", n, d.state)
		}
	}
	for _, n := range e.spec.After {
		d := m.units[n]
		if d == nil || !d.want {
			continue
		}
		if (d.state == Waiting && !m.blocked(d, 0)) || d.state == Starting || d.state == Stopping {
			return fmt.Sprintf("after %s, which is %s", n, d.state)
		}
	}
	return ""
}

// blocked tells whether a waiting unit waits for a needed unit that somebody
// would have to start first.
func (m *Machine) blocked(e *entry, depth int) bool {
	if depth > len(m.units) { // a cycle
		return true
	}
	for _, n := range e.spec.Needs {
		d := m.units[n]
		if d == nil || d.state == Failed || d.state == Inactive || d.state == Waiting && m.blocked(d, depth+1) {
			return true
		}
	}
	return false
}

func (m *Machine) settleDown() {
	if m.ended {
		return
	}
	gone := func(e *entry) bool { return !e.active() || e.stuck }
	// last: some unit that is not StopLast is still there.
	others := false
	for _, e := range m.units {
		if !gone(e) && !e.spec.StopLast {
			others = true
		}
	}
	all := true
	for _, id := range m.ids {
		e := m.units[id]
		if gone(e) {
			continue
		}
		all = false
		if e.state == Stopping || e.spec.StopLast && others {
			continue
		}
		hold := false
		for _, d := range m.units {
			if d == e || gone(d) || e.spec.StopLast != d.spec.StopLast {
				continue
			}
			if (slices.Contains(d.spec.Needs, id) || slices.Contains(d.spec.After, id)) && m.cycle(id) == nil {
				hold = true
			}
		}
		if !hold {
			m.stop(e, stopWanted, "shutdown")
		}
	}
	if all {
		m.ended = true
		var stuck []string
		for _, id := range m.ids {
			if m.units[id].stuck {
				stuck = append(stuck, id)
			}
		}
		m.emit(Down{stuck})
	}
}
