package supervise

import (
	"fmt"
	"syscall"
	"time"
)

// Type tells a unit that is to keep running from one that runs to its end.
type Type int

const (
	Daemon Type = iota
	Oneshot
)

func (t Type) String() string {
	switch t {
	case Daemon:
		return "daemon"
	case Oneshot:
		return "oneshot"
	}
	return fmt.Sprintf("Type(%d)", int(t))
}

// Readiness is how a unit shows that it is ready.
type Readiness int

const (
	ReadyExec   Readiness = iota // once executed
	ReadyNotify                  // READY=1, sd_notify(3)
	ReadyExit                    // ended with code 0; what oneshots do, whatever Spec.Ready says
)

func (r Readiness) String() string {
	switch r {
	case ReadyExec:
		return "exec"
	case ReadyNotify:
		return "notify"
	case ReadyExit:
		return "exit"
	}
	return fmt.Sprintf("Readiness(%d)", int(r))
}

// Restart says after which end a unit is started again.
type Restart int

const (
	RestartNever Restart = iota
	RestartAlways
	RestartOnFailure // not after code 0
)

func (r Restart) String() string {
	switch r {
	case RestartNever:
		return "never"
	case RestartAlways:
		return "always"
	case RestartOnFailure:
		return "on-failure"
	}
	return fmt.Sprintf("Restart(%d)", int(r))
}

// Respawn is when and how fast a unit is started again; the package comment has
// the rule.
type Respawn struct {
	On        Restart
	Threshold time.Duration // a run at least this long sets the crash count to zero
	Delay     time.Duration // before each of the first Retry new starts
	Retry     int           // 0: Delay never grows
	Ceiling   time.Duration // the longest delay; 0 means DefaultCeiling
}

// Defaults: the first three are procd's.
const (
	DefaultThreshold   = 3600 * time.Second
	DefaultDelay       = 5 * time.Second
	DefaultRetry       = 5
	DefaultCeiling     = 5 * time.Minute
	DefaultTermTimeout = 5 * time.Second
)

// delay is the time before the start that follows the given crash (1 is the
// first), and whether procd would have given up here.
func (r Respawn) delay(crashes int) (d time.Duration, beyond bool) {
	d = r.Delay
	if r.Retry <= 0 || crashes <= r.Retry {
		return d, false
	}
	ceiling := r.Ceiling
	if ceiling <= 0 {
		ceiling = DefaultCeiling
	}
	if d < time.Second {
		d = time.Second
	}
	for range crashes - r.Retry {
		if d *= 2; d >= ceiling {
			return max(ceiling, r.Delay), true
		}
	}
	return d, true
}

// Spec is the definition of a unit.
type Spec struct {
	ID       string
	Service  string // the name on the bus
	Instance string // the instance's name on the bus
	Native   bool   // from a unit file of the firmware, not set over the bus

	Type         Type
	Ready        Readiness
	Needs, After []string // IDs
	StopLast     bool     // in a shutdown, stops when all units without it have stopped
	ReadyTimeout time.Duration
	Watchdog     time.Duration // 0: health is not asked for
	Respawn      Respawn
	TermTimeout  time.Duration
	ReloadSignal syscall.Signal // 0: reload is a restart
	Critical     bool           // the hardware watchdog is fed only while this unit is well
	KeepChildren bool           // a stop leaves processes other than the first alone

	// Invalid is why the unit cannot be started, empty if it can.
	Invalid string

	Process Process
}

// Process is what a unit executes. The machine only carries it.
type Process struct {
	Command []string // Command[0] starting with '@' names a function of PID 1
	Env     []string // KEY=VALUE, added to the basic environment
	Dir     string   // working folder; empty is /

	User, Group  string
	Capabilities []string // names without cap_; nil: all
	Bounded      bool     // Capabilities holds even if empty
	NoNewPrivs   bool
	Nice         int
	Limits       []Limit

	MemoryMax, MemoryHigh int64 // bytes, 0: none
	PidsMax               int64 // 0: none

	StateDir string // made before the start, owned by the user
	Pidfile  string

	Stdout, Stderr bool   // forward to the log; else discarded
	Facility       string // of forwarded lines; empty: daemon
	Tag            string // of forwarded lines; empty: base name of the command
}

// Limit is one resource limit, setrlimit(2). Unlimited is math.MaxUint64.
type Limit struct {
	Name       string // "nofile"
	Soft, Hard uint64
}

// Exit is how a process ended.
type Exit struct {
	Code   int            // exit code, or 128 + Signal
	Signal syscall.Signal // 0 if it exited by itself
	OOM    bool           // killed because the memory limit was reached
	Err    string         // it could not be started
}

func (e Exit) String() string {
	switch {
	case e.Err != "":
		return "not started: " + e.Err
	case e.OOM:
		return "killed: out of memory"
	case e.Signal != 0:
		return fmt.Sprintf("killed by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		return fmt.Sprintf("exit code %d", e.Code)
	}
}

func (e Exit) ok() bool { return e.Code == 0 && e.Signal == 0 && e.Err == "" }
