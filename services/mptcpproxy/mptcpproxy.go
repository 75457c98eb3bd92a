package mptcpproxy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"weft/init/bus"
	"weft/init/unit"
	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/settings"
	"weft/services/mptcpproxy/internal/status"
)

// service is the process: it holds a core while there is a configuration for
// one, and answers whoever asks at any time.
type service struct {
	env     *unit.Env
	started time.Time
	events  status.Events
	reload  chan chan error // from the bus and the socket
	ping    chan struct{}   // health: the loop takes one
	helpers sync.WaitGroup

	mu       sync.Mutex
	core     *core // nil: not at work
	state    string
	reason   string
	faults   []string
	warnings []string
	said     string
}

// retryAfter is how long a core that failed is left alone.
const retryAfter = 5 * time.Second

// Run is the service. It needs neither bus nor supervisor.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("argument %q: this service takes none but flags, see --help", env.Args[0])
	}
	if err := os.MkdirAll(env.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	s := &service{env: env, started: time.Now(), reload: make(chan chan error), ping: make(chan struct{}), state: "waiting"}
	helpers, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer s.helpers.Wait()
	defer stop()
	l, err := status.Listen(env.StateDir)
	if err != nil {
		return err
	}
	s.helpers.Go(func() { status.Serve(helpers, l, s, &s.events, env.Log) })
	client := bus.Connect(helpers, env.BusPath, env.Log)
	defer client.Close()
	if err := s.publish(helpers, client); err != nil {
		return err
	}
	env.Health(s.healthy)
	return s.loop(ctx)
}

// loop makes the core follow the configuration until ctx ends.
func (s *service) loop(ctx context.Context) error {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	var m metricsServer
	defer m.stop()
	cfg := s.configure(ctx, nil)
	m.follow(s, cfg)
	s.env.Ready()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var retry <-chan time.Time // runs while there should be a core and is none
	for {
		switch missing := s.working() == nil && cfg != nil && cfg.Enabled; {
		case !missing:
			retry = nil
		case retry == nil:
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			return s.shutdown()
		case <-s.env.Reload():
			s.env.Reloading()
			cfg = s.configure(ctx, cfg)
			m.follow(s, cfg)
			s.env.Ready()
		case reply := <-s.reload:
			cfg = s.configure(ctx, cfg)
			m.follow(s, cfg)
			reply <- s.lastFaults()
		case err := <-s.failure():
			s.env.Log.Error("the proxy failed, starting it again", "error", err)
			s.end()
			s.say("failed", err.Error())
		case <-retry:
			retry = nil
			s.begin(ctx, cfg)
		case <-s.ping:
		case <-tick.C:
			s.tellSupervisor()
		}
	}
}

// working is the core at work, nil if there is none.
func (s *service) working() *core {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core
}

// failure is where the core tells that a part of it has failed.
func (s *service) failure() <-chan error {
	if c := s.working(); c != nil {
		return c.failed
	}
	return nil
}

// configure reads the configuration and follows it. One that cannot be used
// leaves everything as it is; the one in force is returned.
func (s *service) configure(ctx context.Context, old *settings.Config) *settings.Config {
	cfg, err := settings.Load(s.env.ConfigDir)
	var faults []string
	if err != nil {
		faults = strings.Split(err.Error(), "\n")
		for _, f := range faults {
			s.env.Log.Error("fault in the configuration", "fault", f)
		}
		s.events.Add(status.Event{Kind: "fault", Name: settings.Package, Reason: faults[0]})
	} else {
		for _, w := range cfg.Warnings {
			s.env.Log.Warn("part of the configuration has no effect", "fault", w.Error())
		}
	}
	s.mu.Lock()
	s.faults = faults
	if err == nil {
		s.warnings = nil
		for _, w := range cfg.Warnings {
			s.warnings = append(s.warnings, w.Error())
		}
	}
	s.mu.Unlock()
	if err != nil {
		if s.working() == nil {
			s.say("waiting", fmt.Sprintf("the configuration cannot be used (%d faults, the first: %s); repair it and reload", len(faults), faults[0]))
		} else {
			s.env.Log.Warn("the last good configuration stays in force")
		}
		return old
	}
	c := s.working()
	switch {
	case !cfg.Configured || !cfg.Enabled:
		s.end()
		if err := intercept.Cleanup(s.env.StateDir); err != nil {
			s.env.Log.Warn("a predecessor's rules were not taken away", "error", err)
		}
		if !cfg.Configured {
			s.say("off", "there is no /etc/config/mptcpproxy")
		} else {
			s.say("off", "option enabled is 0 in section main of /etc/config/mptcpproxy")
		}
	case c != nil && c.fixed == fixedOf(cfg):
		if err := c.apply(cfg); err != nil {
			s.env.Log.Error("the new configuration was not taken over completely", "error", err)
		}
		s.events.Add(status.Event{Kind: "reload", Name: settings.Package})
	default:
		if c != nil {
			s.env.Log.Warn("settings changed that cannot change under way: flows are reset")
		}
		s.end()
		s.begin(ctx, cfg)
	}
	return cfg
}

// baseMemory is what the process needs besides the buffers of flows; 20,000
// idle flows are in it.
const baseMemory = 96 << 20

// begin starts a core.
func (s *service) begin(ctx context.Context, cfg *settings.Config) {
	debug.SetMemoryLimit(int64(cfg.MemoryMax) + baseMemory)
	c, err := newCore(ctx, s.env.Log, s.env.StateDir, &s.events, cfg)
	if err != nil {
		s.env.Log.Error("the proxy does not start, trying again", "error", err)
		s.say("failed", err.Error())
		return
	}
	s.mu.Lock()
	s.core = c
	s.mu.Unlock()
	s.env.Log.Info("the proxy works", "lan", cfg.LAN, "peers", len(cfg.Peers), "accepts", len(cfg.Accepts), "paths", len(cfg.Paths))
	s.say("running", c.summary())
}

// end stops the core, if there is one.
func (s *service) end() error {
	s.mu.Lock()
	c := s.core
	s.core = nil
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	err := c.stop()
	if err != nil {
		s.env.Log.Error("not everything was taken away; the next start tries again", "error", err)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	return err
}

func (s *service) shutdown() error {
	err := s.end()
	s.say("off", "stopped")
	return err
}

// say sets the state and tells the supervisor.
func (s *service) say(state, reason string) {
	s.mu.Lock()
	s.state, s.reason = state, reason
	text := state + ": " + reason
	if state == "running" {
		text = reason
	}
	if len(s.faults) > 0 && state == "running" {
		text += fmt.Sprintf("; the new configuration has %d faults, the last good one is in force", len(s.faults))
	}
	same := text == s.said
	s.said = text
	s.mu.Unlock()
	if !same {
		s.env.Status(text)
	}
}

// tellSupervisor keeps the status line right.
func (s *service) tellSupervisor() {
	if c := s.working(); c != nil {
		s.say("running", c.summary())
	}
}

func summaryText(up, peers, good, paths int, far bool) string {
	var parts []string
	if peers > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d peers up", up, peers))
	}
	if far {
		parts = append(parts, "accepting")
	}
	return strings.Join(append(parts, fmt.Sprintf("%d of %d paths up", good, paths)), ", ")
}

// healthy asks whether the loop and the data plane answer.
func (s *service) healthy(ctx context.Context) error {
	select {
	case s.ping <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("the main loop does not answer: %w", ctx.Err())
	}
	done := make(chan struct{})
	go func() { // a data plane that hangs leaves one goroutine until the restart
		defer close(done)
		if c := s.working(); c != nil {
			c.engine.Stats()
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the data plane does not answer: %w", ctx.Err())
	}
}

// lastFaults is the outcome of the last look at the configuration.
func (s *service) lastFaults() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(s.faults, "\n"))
}

// Report implements status.Source.
func (s *service) Report() status.Report {
	c := s.working()
	r := status.Report{Peers: []status.Peer{}, Paths: []status.Path{}, LAN: []string{}}
	if c != nil {
		r = c.report()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.State, r.Reason, r.Uptime = s.state, s.reason, int64(time.Since(s.started).Seconds())
	r.Faults, r.Warnings = append([]string{}, s.faults...), append([]string{}, s.warnings...)
	return r
}

// Flows implements status.Source.
func (s *service) Flows() []status.Flow {
	if c := s.working(); c != nil {
		return c.flows()
	}
	return []status.Flow{}
}

// Reload implements status.Source: it reads the configuration again and says
// what is wrong with it.
func (s *service) Reload() error {
	reply := make(chan error, 1)
	select {
	case s.reload <- reply:
	case <-time.After(10 * time.Second):
		return errors.New("the service is busy; try again")
	}
	return <-reply
}
