package procd

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft/init/bus"
	"weft/init/supervise"
	"weft/init/supervise/unitfile"
)

// NativeReloadDelay gathers the changes that one reload_config announces, so
// that a service which follows several packages reloads once.
const NativeReloadDelay = 200 * time.Millisecond

// ScriptReloadDelay is procd's delay for `procd_add_reload_trigger`; a trigger
// that carries its own uses that.
const ScriptReloadDelay = time.Second

// Options of a Manager. All but Memory, MemoryPeak and Timeline are required.
type Options struct {
	Supervisor *supervise.Supervisor
	Clock      func() time.Duration
	// Exec runs a command of a trigger to its end and returns its exit code.
	Exec func(ctx context.Context, argv []string) int
	// Respawn gives the defaults for respawn parameters without numbers.
	Respawn func() RespawnDefaults
	// Memory and MemoryPeak of a unit, in bytes.
	Memory, MemoryPeak func(id string) int64
	// Timeline is what the method timeline replies.
	Timeline func() any
	RCDir    string // links of enabled services, /etc/rc.d
	Log      *slog.Logger
}

// Manager is the object `service`.
type Manager struct {
	o      Options
	events chan bus.Attr // notifications to send: name, data

	mu       sync.Mutex
	natives  map[string]*unitfile.Unit
	services map[string]*service
	jobs     map[string]*job
	ctx      context.Context // of Run
	work     sync.WaitGroup
	lost     int
}

// service is one that was set over the bus.
type service struct {
	name, script string
	instances    map[string]*instance
	triggers     []trigger
	rawTriggers  bus.Array
	validate     bus.Array
	data         bus.Table
	autostart    bool
}

type trigger struct {
	event string // may end in '*'
	code  any
	delay time.Duration
}

// job is a reload that waits for its delay, or runs.
type job struct {
	running bool
	again   time.Duration // delay of the next run once this one ends; 0 none
	timer   *time.Timer
}

// queueLength bounds the notifications that wait for the bus.
const queueLength = 256

// NewManager returns a Manager for the given native units, which it does not
// start.
func NewManager(o Options, units []*unitfile.Unit) *Manager {
	m := &Manager{
		o: o, events: make(chan bus.Attr, queueLength),
		natives: map[string]*unitfile.Unit{}, services: map[string]*service{}, jobs: map[string]*job{},
	}
	for _, u := range units {
		m.natives[u.Name] = u
	}
	return m
}

// Run publishes the object, sends notifications and listens to the network
// until ctx ends.
func (m *Manager) Run(ctx context.Context, c *bus.Client) error {
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	defer m.work.Wait()
	p, err := c.Publish(&bus.Object{Name: "service", Methods: m.methods()})
	if err != nil {
		return fmt.Errorf("publish service: %w", err)
	}
	defer p.Close()
	cancel, err := c.Subscribe("network.interface", func(method string, data bus.Table) {
		m.Event(method, data)
	})
	if err != nil {
		return fmt.Errorf("subscribe to network.interface: %w", err)
	}
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			m.mu.Lock()
			for _, j := range m.jobs {
				j.timer.Stop()
			}
			m.mu.Unlock()
			return nil
		case e := <-m.events:
			if err := p.Notify(ctx, e.Name, e.Value); err != nil && ctx.Err() == nil {
				m.o.Log.Debug("notification not sent", "kind", e.Name, "error", err)
			}
		}
	}
}

// notify queues a notification; when the queue is full it is lost, since the
// supervisor does not wait for the bus.
func (m *Manager) notify(kind string, data any) {
	select {
	case m.events <- bus.Attr{Name: kind, Value: data}:
	default:
		m.mu.Lock()
		m.lost++
		m.mu.Unlock()
	}
}

// Notice passes what the supervisor reports on to the bus.
func (m *Manager) Notice(n supervise.Notice) {
	t := bus.Table{{Name: "service", Value: n.Service}, {Name: "instance", Value: n.Instance}}
	if n.PID > 0 {
		t = append(t, bus.Attr{Name: "pid", Value: int32(n.PID)})
	}
	if n.Exit != nil {
		t = append(t, bus.Attr{Name: "exit_code", Value: int32(n.Exit.Code)})
		if n.Exit.Signal != 0 {
			t = append(t, bus.Attr{Name: "signal", Value: int32(n.Exit.Signal)})
		}
		if n.Exit.OOM {
			t = append(t, bus.Attr{Name: "oom", Value: true})
		}
	}
	switch n.Kind {
	case supervise.InstanceRespawn, supervise.InstanceFail:
		t = append(t, bus.Attr{Name: "respawn_count", Value: int32(n.Crashes)},
			bus.Attr{Name: "delay_ms", Value: n.Delay.Milliseconds()})
	case supervise.InstanceHealth:
		t = append(t, bus.Attr{Name: "health", Value: string(n.Health)})
	}
	if n.Reason != "" {
		t = append(t, bus.Attr{Name: "reason", Value: n.Reason})
	}
	if len(n.Command) > 0 {
		t = append(t, bus.Attr{Name: "command", Value: n.Command})
	}
	m.notify(string(n.Kind), t)
}

// names are the services whose name is given, or all, sorted.
func (m *Manager) names(only string) []string {
	var out []string
	for n := range m.natives {
		out = append(out, n)
	}
	for n := range m.services {
		out = append(out, n)
	}
	sort.Strings(out)
	if only != "" {
		if !slices.Contains(out, only) {
			return nil
		}
		return []string{only}
	}
	return out
}

// ids of a service's units; instance may be empty for all. m.mu is held.
func (m *Manager) ids(name, inst string) []string {
	if u := m.natives[name]; u != nil {
		if inst == "" || inst == u.Spec.Instance {
			return []string{u.Spec.ID}
		}
		return nil
	}
	s := m.services[name]
	if s == nil {
		return nil
	}
	var out []string
	for n, i := range s.instances {
		if inst == "" || n == inst {
			out = append(out, i.spec.ID)
		}
	}
	sort.Strings(out)
	return out
}

// Event runs the triggers that wait for an event, and tells subscribers. It is
// what the method event does.
func (m *Manager) Event(event string, data bus.Table) {
	m.notify(event, data)
	m.mu.Lock()
	defer m.mu.Unlock()
	if event == "config.change" {
		pkg := data.String("package")
		for _, u := range m.natives {
			if pkg != "" && slices.Contains(u.Follows, pkg) {
				m.schedule("native "+u.Name, NativeReloadDelay, m.reloadNative(u.Spec.ID))
			}
		}
	}
	for _, s := range m.services {
		for _, t := range s.triggers {
			if !matches(t.event, event) {
				continue
			}
			cmds, err := script(t.code, data)
			if err != nil {
				m.o.Log.Warn("trigger not run", "service", s.name, "event", event, "error", err)
				continue
			}
			for _, c := range cmds {
				m.schedule(s.name+" "+strings.Join(c, " "), t.delay, func(ctx context.Context) {
					if code := m.o.Exec(ctx, c); code != 0 {
						m.o.Log.Warn("trigger failed", "command", strings.Join(c, " "), "code", code)
					}
				})
			}
		}
	}
}

func (m *Manager) reloadNative(id string) func(context.Context) {
	return func(ctx context.Context) {
		m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, now time.Duration) []supervise.Action { return mc.Reload(now, id) })
	}
}

// matches tells whether a trigger's event name, perhaps a prefix with '*',
// covers an event.
func matches(pattern, event string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(event, prefix)
	}
	return pattern == event
}

// schedule runs f after delay, once for all calls in between, and never at the
// same time as another f of the same key: it is then run again after it. m.mu
// is held.
func (m *Manager) schedule(key string, delay time.Duration, f func(context.Context)) {
	if m.ctx == nil || m.ctx.Err() != nil {
		return
	}
	j := m.jobs[key]
	switch {
	case j == nil:
		j = &job{}
		m.jobs[key] = j
		j.timer = time.AfterFunc(delay, func() { m.fire(key, j, f) })
	case j.running:
		j.again = max(delay, time.Millisecond)
	}
}

func (m *Manager) fire(key string, j *job, f func(context.Context)) {
	m.mu.Lock()
	if m.ctx.Err() != nil {
		m.mu.Unlock()
		return
	}
	j.running = true
	m.work.Add(1)
	ctx := m.ctx
	m.mu.Unlock()
	defer m.work.Done()
	defer func() {
		// A timer's goroutine is nobody's: a panic here would end PID 1.
		if v := recover(); v != nil {
			m.o.Log.Error("panic in a reload; PID 1 goes on", "job", key, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.jobs, key)
		if j.again > 0 {
			m.schedule(key, j.again, f)
		}
	}()
	f(ctx)
}

// Enabled tells whether a service has its start link.
func Enabled(rcDir, name string) bool {
	links, err := filepath.Glob(filepath.Join(rcDir, "S??"+name))
	return err == nil && len(links) > 0
}

// set is the methods set and add.
func (m *Manager) set(ctx context.Context, args bus.Table, keep bool) error {
	var req struct {
		Name      string    `json:"name"`
		Script    string    `json:"script"`
		Instances bus.Table `json:"instances"`
		Triggers  bus.Array `json:"triggers"`
		Validate  bus.Array `json:"validate"`
		Data      bus.Table `json:"data"`
	}
	if err := args.Decode(&req); err != nil {
		return err
	}
	if req.Name == "" || strings.ContainsAny(req.Name, "/\x00\n") {
		return badArgument("service name %q", req.Name)
	}
	autostart := true
	if v := args.Get("autostart"); v != nil {
		var err error
		if autostart, err = boolean(v); err != nil {
			return badArgument("autostart: %v", err)
		}
	}
	triggers, err := parseTriggers(req.Triggers)
	if err != nil {
		return badArgument("triggers: %v", err)
	}
	def := m.o.Respawn()
	wanted := map[string]*instance{}
	for _, a := range req.Instances {
		t, err := table(a.Value)
		if err != nil || a.Name == "" {
			return badArgument("instance %q is not a table", a.Name)
		}
		in, err := parseInstance(req.Name, a.Name, t, def)
		if err != nil {
			return err
		}
		if len(in.ignored) > 0 {
			m.o.Log.Warn("instance parameters not supported, ignored", "service", req.Name, "instance", a.Name, "parameters", strings.Join(in.ignored, " "))
		}
		wanted[a.Name] = in
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.natives[req.Name] != nil {
		return fmt.Errorf("service %s belongs to the firmware: %w", req.Name, bus.StatusPermissionDenied)
	}
	s := m.services[req.Name]
	fresh := s == nil
	if fresh {
		s = &service{name: req.Name, instances: map[string]*instance{}}
	}
	if !keep || fresh || req.Script != "" {
		s.script = req.Script
	}
	if !keep || len(req.Triggers) > 0 {
		s.triggers, s.rawTriggers = triggers, req.Triggers
	}
	if !keep || len(req.Validate) > 0 {
		s.validate = req.Validate
	}
	if !keep || len(req.Data) > 0 {
		s.data = req.Data
	}
	s.autostart = autostart

	old := s.instances
	now := map[string]*instance{}
	if keep {
		for n, in := range old {
			now[n] = in
		}
	}
	for n, in := range wanted {
		now[n] = in
	}
	err = m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, t time.Duration) []supervise.Action {
		var out []supervise.Action
		var start []string
		for n, in := range old {
			if now[n] == nil {
				out = append(out, mc.Remove(t, in.spec.ID)...)
			}
		}
		for n, in := range wanted {
			if was := old[n]; was == nil || !was.same(in) {
				out = append(out, mc.Define(t, in.spec, in.spec.ReloadSignal != 0)...)
			}
			start = append(start, in.spec.ID)
		}
		if autostart {
			sort.Strings(start)
			out = append(out, mc.Start(t, start...)...)
		}
		return out
	})
	if err != nil {
		return err
	}
	s.instances = now
	m.services[req.Name] = s
	if fresh && autostart {
		m.notify(string(supervise.ServiceStart), bus.Table{{Name: "service", Value: req.Name}})
	}
	return nil
}

func parseTriggers(raw bus.Array) ([]trigger, error) {
	var out []trigger
	for _, r := range raw {
		a, ok := r.(bus.Array)
		if !ok || len(a) < 2 {
			return nil, fmt.Errorf("want [event, script, delay], got %v", r)
		}
		event, err := text(a[0])
		if err != nil {
			return nil, err
		}
		t := trigger{event: event, code: a[1]}
		if len(a) > 2 {
			ms, err := number(a[2])
			if err != nil || ms < 0 || ms > 3600_000 {
				return nil, fmt.Errorf("delay %v is not a number of milliseconds", a[2])
			}
			t.delay = time.Duration(ms) * time.Millisecond
		}
		out = append(out, t)
	}
	return out, nil
}

// remove is the method delete. Without instance it removes the service.
func (m *Manager) remove(ctx context.Context, name, inst string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.natives[name] != nil {
		return fmt.Errorf("service %s belongs to the firmware: %w", name, bus.StatusPermissionDenied)
	}
	s := m.services[name]
	ids := m.ids(name, inst)
	if s == nil || inst != "" && len(ids) == 0 {
		return bus.StatusNotFound
	}
	err := m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, t time.Duration) []supervise.Action {
		var out []supervise.Action
		for _, id := range ids {
			out = append(out, mc.Remove(t, id)...)
		}
		return out
	})
	if err != nil {
		return err
	}
	if inst != "" {
		delete(s.instances, inst)
		if len(s.instances) > 0 {
			return nil
		}
	}
	delete(m.services, name)
	m.notify(string(supervise.ServiceStop), bus.Table{{Name: "service", Value: name}})
	return nil
}

// each runs f for the units of a service.
func (m *Manager) each(ctx context.Context, name, inst string, f func(mc *supervise.Machine, now time.Duration, id string) []supervise.Action) error {
	m.mu.Lock()
	ids := m.ids(name, inst)
	m.mu.Unlock()
	if len(ids) == 0 {
		return bus.StatusNotFound
	}
	return m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, now time.Duration) []supervise.Action {
		var out []supervise.Action
		for _, id := range ids {
			out = append(out, f(mc, now, id)...)
		}
		return out
	})
}

// Start starts a service that is known, as the method state does it.
func (m *Manager) Start(ctx context.Context, name string) error { return m.spawn(ctx, name, true) }

// spawn starts or stops a service without forgetting it.
func (m *Manager) spawn(ctx context.Context, name string, up bool) error {
	err := m.each(ctx, name, "", func(mc *supervise.Machine, now time.Duration, id string) []supervise.Action {
		if up {
			return mc.Start(now, id)
		}
		return mc.Stop(now, id)
	})
	if err != nil {
		return err
	}
	kind := supervise.ServiceStop
	if up {
		kind = supervise.ServiceStart
	}
	m.notify(string(kind), bus.Table{{Name: "service", Value: name}})
	return nil
}

func (m *Manager) signal(ctx context.Context, name, inst string, sig syscall.Signal) error {
	hit := false
	err := m.each(ctx, name, inst, func(mc *supervise.Machine, _ time.Duration, id string) []supervise.Action {
		st, ok := mc.Status(id)
		if !ok || st.PID <= 0 {
			return nil
		}
		hit = true
		return []supervise.Action{supervise.Signal{ID: id, PID: st.PID, Sig: sig}}
	})
	if err == nil && !hit {
		return bus.StatusNotFound
	}
	return err
}

// setData replaces the data of a service or an instance and tells who waits.
func (m *Manager) setData(name, inst string, data bus.Table) error {
	m.mu.Lock()
	s := m.services[name]
	if s == nil {
		m.mu.Unlock()
		return bus.StatusNotFound
	}
	if inst == "" {
		s.data = data
	} else {
		i := s.instances[inst]
		if i == nil {
			m.mu.Unlock()
			return bus.StatusNotFound
		}
		n := *i
		n.data = data
		s.instances[inst] = &n
	}
	m.mu.Unlock()
	m.Event("service.data.update", bus.Table{{Name: "name", Value: name}})
	return nil
}
