package healthgate

import (
	"fmt"
	"strings"
	"time"
)

// Names of checks, as they stand in slot.Result.
const (
	checkServices = "services"
	checkUplink   = "uplink"
	checkHost     = "host"
	checkManage   = "management"
)

// problem is one check that does not hold.
type problem struct {
	check, detail string
}

func (p problem) String() string { return p.check + ": " + p.detail }

// service is what the supervisor says of a critical service that is wanted.
type service struct {
	name     string
	state    string // of init/supervise: running, done, starting, backoff …
	healthy  bool   // false if its health reports failed
	restarts int
	why      string // status, reason or last exit, for people; may be empty
}

func (s service) up() bool { return s.healthy && (s.state == "running" || s.state == "done") }

// observation is what was seen at one moment.
type observation struct {
	services    []service
	servicesErr error     // nothing is known of the services
	others      []problem // of the network, in the order in which they are to be told
}

// verdict is what the gate has come to.
type verdict int

const (
	undecided verdict = iota
	confirm
	giveUp
)

// gate is the state machine. Times are of any clock that only goes forward.
type gate struct {
	hold     time.Duration // all must be well for so long
	deadline time.Time     // what is wrong from then on decides

	wellSince time.Time // zero: not all is well
	restarts  map[string]int
	problems  []problem // of the newest observation
}

func newGate(now time.Time, hold, deadline time.Duration) *gate {
	return &gate{hold: hold, deadline: now.Add(deadline)}
}

// observe takes in what was seen now. A hold may end after the deadline; when
// something is wrong after the deadline, that is the end. After anything but
// undecided it must not be called again.
func (g *gate) observe(now time.Time, o observation) verdict {
	g.problems = append(g.judge(o), o.others...)
	if len(g.problems) > 0 {
		g.wellSince = time.Time{}
		if now.Before(g.deadline) {
			return undecided
		}
		return giveUp
	}
	if g.wellSince.IsZero() {
		g.wellSince = now
	}
	if now.Sub(g.wellSince) < g.hold {
		return undecided
	}
	return confirm
}

// judge looks at the services. One that was started anew since the last
// observation breaks the hold even if it is up again.
func (g *gate) judge(o observation) []problem {
	if o.servicesErr != nil {
		return []problem{{checkServices, fmt.Sprintf("nothing is known of the services: %v", o.servicesErr)}}
	}
	if len(o.services) == 0 {
		return []problem{{checkServices, "no critical service is there"}}
	}
	var out []problem
	seen := make(map[string]int, len(o.services))
	for _, s := range o.services {
		seen[s.name] = s.restarts
		before, known := g.restarts[s.name]
		why := ""
		if s.why != "" {
			why = " (" + s.why + ")"
		}
		switch {
		case !s.up() && !s.healthy:
			out = append(out, problem{checkServices, fmt.Sprintf("%s is unhealthy%s", s.name, why)})
		case !s.up():
			out = append(out, problem{checkServices, fmt.Sprintf("%s is %s%s", s.name, stateWords(s.state), why)})
		case known && s.restarts != before:
			out = append(out, problem{checkServices, fmt.Sprintf("%s was started anew%s", s.name, why)})
		}
	}
	for name := range g.restarts {
		if _, there := seen[name]; !there {
			out = append(out, problem{checkServices, name + " is gone"})
		}
	}
	g.restarts = seen
	return out
}

// stateWords says a state of the supervisor to somebody who does not know them.
func stateWords(state string) string {
	switch state {
	case "backoff":
		return "crashing"
	case "failed":
		return "failed"
	case "starting", "waiting":
		return "not up yet"
	}
	return strings.TrimSpace("not running: " + state)
}

// left is how long the gate waits at most from now on: until the end of the hold
// while all is well, else until the deadline.
func (g *gate) left(now time.Time) time.Duration {
	if !g.wellSince.IsZero() {
		return max(0, g.hold-now.Sub(g.wellSince))
	}
	return max(0, g.deadline.Sub(now))
}

// maxTold is how many problems are told in one line.
const maxTold = 3

// reason is what is told when the slot is given up.
func (g *gate) reason() problem {
	if len(g.problems) == 0 {
		return problem{}
	}
	p := g.problems[0]
	for i, more := range g.problems[1:] {
		if i == maxTold-1 {
			p.detail += fmt.Sprintf("; and %d more", len(g.problems)-maxTold)
			break
		}
		if more.check == p.check {
			p.detail += "; " + more.detail
		} else {
			p.detail += "; " + more.String()
		}
	}
	return p
}
