package supervise

import (
	"time"
)

// Status is what can be known of a unit at one moment. Times are machine times.
type Status struct {
	Spec     Spec
	State    State
	Want     bool
	Reason   string // why it is in this state, where that is not plain
	PID      int
	Since    time.Duration // of State
	Started  time.Duration // of the newest run
	ReadyAt  time.Duration // of the newest run, if Ready
	Ready    bool
	Reload   bool // it is taking in a new configuration
	Restarts int
	Crashes  int
	Health   Health
	Text     string        // STATUS= of the process
	Exit     *Exit         // of the last run, nil while the first or a new one runs
	NextTry  time.Duration // machine time of the next start, in Backoff
}

// Settled tells whether the unit has come to a first result: it is up, has
// ended, or has failed at least once.
func (s Status) Settled() bool {
	switch s.State {
	case Running, Done, Failed, Backoff, Inactive:
		return true
	}
	return false
}

// Well tells whether the unit is as it should be: running or done, and not
// unhealthy.
func (s Status) Well() bool {
	return (s.State == Running || s.State == Done) && s.Health != HealthFailed
}

// Status of a unit; ok is false if there is none of that ID.
func (m *Machine) Status(id string) (s Status, ok bool) {
	e := m.units[id]
	if e == nil {
		return Status{}, false
	}
	s = Status{
		Spec: e.spec, State: e.state, Want: e.want, Reason: e.reason, PID: e.pid,
		Since: e.since, Started: e.started, ReadyAt: e.readyAt, Ready: e.ready, Reload: e.reload,
		Restarts: e.restarts, Crashes: e.crashes, Health: e.health, Text: e.status, Exit: e.exit,
	}
	if e.timer == timerRespawn {
		s.NextTry = e.deadline
	}
	return s, true
}

// IDs are the units, sorted.
func (m *Machine) IDs() []string { return append([]string(nil), m.ids...) }
