package healthgate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/init/bus"
	"weft/init/slot"
)

// How often things are looked at.
const (
	lookEvery  = 2 * time.Second  // services and interfaces
	lookLimit  = 5 * time.Second  // for an answer of the bus
	askEvery   = 5 * time.Second  // hosts
	askLimit   = 5 * time.Second  // for an answer of a host
	goodFor    = 20 * time.Second // a host's answer: a lost packet breaks no hold
	notAskedOf = "has not answered yet"
)

// caller is the part of the bus that the observer needs.
type caller interface {
	Call(ctx context.Context, object, method string, args any) (bus.Table, error)
}

// observer looks at services, interfaces and hosts.
type observer struct {
	bus    caller
	before *slot.Before // nil: the uplink is not compared
	hosts  []*hostState
}

func newObserver(c caller, before *slot.Before, targets []target) *observer {
	o := &observer{bus: c, before: before}
	for _, t := range targets {
		o.hosts = append(o.hosts, &hostState{target: t, why: notAskedOf})
	}
	return o
}

// look sees how things are now.
func (o *observer) look(ctx context.Context, now time.Time) observation {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var seen observation
	var list map[string]serviceEntry
	if seen.servicesErr = o.call(ctx, "service", "list", &list); seen.servicesErr == nil {
		seen.services = critical(list)
	}
	if o.before != nil {
		var dump interfaceDump
		if err := o.call(ctx, "network.interface", "dump", &dump); err != nil {
			seen.others = append(seen.others, problem{checkUplink, fmt.Sprintf("nothing is known of the interfaces: %v", err)})
		} else {
			seen.others = append(seen.others, compare(*o.before, dump)...)
		}
	}
	for _, h := range o.hosts {
		if p, ok := h.problem(now); ok {
			seen.others = append(seen.others, p)
		}
	}
	return seen
}

// call makes a bus call and reads its reply as JSON is read.
func (o *observer) call(ctx context.Context, object, method string, out any) error {
	t, err := o.bus.Call(ctx, object, method, nil)
	if err != nil {
		return fmt.Errorf("%s %s: %w", object, method, err)
	}
	text, err := json.Marshal(t)
	if err == nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", object, method, err)
	}
	return nil
}

// serviceEntry is one service in the reply of service.list.
type serviceEntry struct {
	Enabled   *bool `json:"enabled"`
	Instances map[string]struct {
		State    string `json:"state"`
		Critical bool   `json:"critical"`
		Health   string `json:"health"`
		Restarts int    `json:"restarts"`
		Status   string `json:"status"`
		Reason   string `json:"reason"`
		LastExit string `json:"last_exit"`
	} `json:"instances"`
}

// critical picks the critical services that are wanted: one that is disabled and
// does not run is as its owner wants it.
func critical(list map[string]serviceEntry) []service {
	var out []service
	for name, e := range list {
		for _, i := range e.Instances {
			if !i.Critical || i.State == "inactive" && e.Enabled != nil && !*e.Enabled {
				continue
			}
			s := service{name: name, state: i.State, healthy: i.Health != "failed", restarts: i.Restarts}
			for _, why := range []string{i.Reason, i.LastExit, i.Status} {
				if why != "" {
					s.why = why
					break
				}
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b service) int { return strings.Compare(a.name, b.name) })
	return out
}

// interfaceDump is the reply of network.interface.dump.
type interfaceDump struct {
	Interface []struct {
		Name  string `json:"interface"`
		Up    bool   `json:"up"`
		Proto string `json:"proto"`
		Route []struct {
			Target string `json:"target"`
			Mask   int    `json:"mask"`
		} `json:"route"`
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	} `json:"interface"`
}

// compare holds the interfaces against what they were before the upgrade.
func compare(before slot.Before, now interfaceDump) []problem {
	var out []problem
	up, routes := map[string]bool{}, map[string]bool{}
	why := map[string]string{}
	for _, i := range now.Interface {
		up[i.Name] = i.Up
		why[i.Name] = "it is there but down"
		if strings.HasPrefix(i.Proto, "dhcp") {
			why[i.Name] = "no DHCP server has answered"
		}
		if len(i.Errors) > 0 {
			why[i.Name] = strings.ToLower(i.Errors[0].Code)
		}
		if !i.Up {
			continue
		}
		for _, r := range i.Route {
			if r.Mask == 0 && (r.Target == "0.0.0.0" || r.Target == "::") {
				routes[r.Target] = true
			}
		}
	}
	for _, name := range before.Interfaces {
		isUp, there := up[name]
		switch {
		case !there:
			out = append(out, problem{checkUplink, fmt.Sprintf("interface %s was up before the upgrade and does not exist now", name)})
		case !isUp:
			out = append(out, problem{checkUplink, fmt.Sprintf("interface %s was up before the upgrade and is not now: %s", name, why[name])})
		}
	}
	if before.DefaultRoute4 && !routes["0.0.0.0"] {
		out = append(out, problem{checkUplink, "there was a default route for IPv4 before the upgrade and is none now"})
	}
	if before.DefaultRoute6 && !routes["::"] {
		out = append(out, problem{checkUplink, "there was a default route for IPv6 before the upgrade and is none now"})
	}
	return out
}

// hostState is what is known of a host.
type hostState struct {
	target target

	mu       sync.Mutex
	answered time.Time // the last time
	why      string    // it has not answered since
}

func (h *hostState) problem(now time.Time) (problem, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.answered.IsZero() && now.Sub(h.answered) < goodFor {
		return problem{}, false
	}
	return problem{h.target.check, fmt.Sprintf("%s: %s", h.target.text, h.why)}, true
}

func (h *hostState) note(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.answered = now
		return
	}
	h.why = err.Error()
}

// ask asks the host again and again until ctx ends.
func (h *hostState) ask(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		step, cancel := context.WithTimeout(ctx, askLimit)
		err := reach(step, h.target)
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.note(time.Now(), err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
