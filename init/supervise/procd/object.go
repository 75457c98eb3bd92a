package procd

import (
	"context"
	"sort"
	"syscall"
	"time"

	"weft/init/bus"
	"weft/init/supervise"
)

// methods of the object, in procd's order; ours follow.
func (m *Manager) methods() []bus.Method {
	arg := func(name string, t bus.Type) bus.Arg { return bus.Arg{Name: name, Type: t} }
	set := []bus.Arg{
		arg("name", bus.TypeString), arg("script", bus.TypeString), arg("instances", bus.TypeTable), arg("triggers", bus.TypeArray),
		arg("validate", bus.TypeArray), arg("autostart", bus.TypeBool), arg("data", bus.TypeTable),
	}
	name, inst := arg("name", bus.TypeString), arg("instance", bus.TypeString)
	return []bus.Method{
		{Name: "set", Args: set, Handle: func(ctx context.Context, r *bus.Request) error { return m.set(ctx, r.Args, false) }},
		{Name: "add", Args: set, Handle: func(ctx context.Context, r *bus.Request) error { return m.set(ctx, r.Args, true) }},
		{Name: "list", Args: []bus.Arg{name, arg("verbose", bus.TypeBool)}, Handle: m.handleList},
		{Name: "delete", Args: []bus.Arg{name, inst}, Handle: m.handle(func(ctx context.Context, r *request) error { return m.remove(ctx, r.Name, r.Instance) })},
		{Name: "signal", Args: []bus.Arg{name, inst, arg("signal", bus.TypeInt32)}, Handle: m.handle(func(ctx context.Context, r *request) error {
			if r.Signal == 0 {
				r.Signal = int(syscall.SIGHUP)
			}
			if r.Signal < 0 || r.Signal > 64 {
				return bus.StatusInvalidArgument
			}
			return m.signal(ctx, r.Name, r.Instance, syscall.Signal(r.Signal))
		})},
		{Name: "event", Args: []bus.Arg{arg("type", bus.TypeString), arg("data", bus.TypeTable)}, Handle: func(_ context.Context, r *bus.Request) error {
			var req struct {
				Type string    `json:"type"`
				Data bus.Table `json:"data"`
			}
			if err := r.Decode(&req); err != nil {
				return err
			}
			if req.Type == "" {
				return bus.StatusInvalidArgument
			}
			m.Event(req.Type, req.Data)
			return nil
		}},
		{Name: "state", Args: []bus.Arg{name, arg("spawn", bus.TypeBool)}, Handle: m.handle(func(ctx context.Context, r *request) error {
			if r.Spawn == nil {
				return bus.StatusInvalidArgument
			}
			return m.spawn(ctx, r.Name, *r.Spawn)
		})},
		{Name: "get_data", Args: []bus.Arg{name, inst, arg("type", bus.TypeString)}, Handle: m.handleGetData},
		{Name: "set_data", Args: []bus.Arg{name, inst, arg("data", bus.TypeTable)}, Handle: func(_ context.Context, r *bus.Request) error {
			var req struct {
				Name     string    `json:"name"`
				Instance string    `json:"instance"`
				Data     bus.Table `json:"data"`
			}
			if err := r.Decode(&req); err != nil {
				return err
			}
			return m.setData(req.Name, req.Instance, req.Data)
		}},
		{Name: "watchdog", Args: []bus.Arg{arg("mode", bus.TypeInt32), arg("timeout", bus.TypeInt32), name, inst}, Handle: m.handleWatchdog},
		{Name: "restart", Args: []bus.Arg{name, inst}, Handle: m.handle(func(ctx context.Context, r *request) error {
			return m.each(ctx, r.Name, r.Instance, func(mc *supervise.Machine, now time.Duration, id string) []supervise.Action {
				return mc.Restart(now, id)
			})
		})},
		{Name: "reload", Args: []bus.Arg{name, inst}, Handle: m.handle(func(ctx context.Context, r *request) error {
			return m.each(ctx, r.Name, r.Instance, func(mc *supervise.Machine, now time.Duration, id string) []supervise.Action {
				return mc.Reload(now, id)
			})
		})},
		{Name: "timeline", Handle: func(_ context.Context, r *bus.Request) error {
			if m.o.Timeline == nil {
				return bus.StatusNoData
			}
			return r.Reply(m.o.Timeline())
		}},
	}
}

// request is what most methods take.
type request struct {
	Name     string `json:"name"`
	Instance string `json:"instance"`
	Signal   int    `json:"signal"`
	Spawn    *bool  `json:"spawn"`
}

func (m *Manager) handle(f func(ctx context.Context, r *request) error) func(context.Context, *bus.Request) error {
	return func(ctx context.Context, r *bus.Request) error {
		var req request
		if err := r.Decode(&req); err != nil {
			return err
		}
		if req.Name == "" {
			return bus.StatusInvalidArgument
		}
		return f(ctx, &req)
	}
}

func (m *Manager) handleWatchdog(ctx context.Context, r *bus.Request) error {
	var req struct {
		request
		Mode    *int `json:"mode"`
		Timeout *int `json:"timeout"`
	}
	if err := r.Decode(&req); err != nil {
		return err
	}
	if req.Name == "" || req.Mode != nil && (*req.Mode < 0 || *req.Mode > 2) || req.Timeout != nil && *req.Timeout <= 0 {
		return bus.StatusInvalidArgument
	}
	m.mu.Lock()
	ids := m.ids(req.Name, req.Instance)
	if len(ids) == 0 {
		m.mu.Unlock()
		return bus.StatusNotFound
	}
	id := ids[0]
	native := m.natives[req.Name] != nil
	var in *instance
	if s := m.services[req.Name]; s != nil {
		for _, i := range s.instances {
			if i.spec.ID == id {
				in = i
			}
		}
	}
	m.mu.Unlock()
	if native {
		return bus.StatusNotSupported // native services ping through sd_notify
	}
	mode, timeout := in.watchdog, 30*time.Second
	err := m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, now time.Duration) []supervise.Action {
		st, ok := mc.Status(id)
		if !ok {
			return nil
		}
		if st.Spec.Watchdog > 0 {
			timeout = st.Spec.Watchdog
			mode = max(mode, 1)
		}
		if req.Mode != nil {
			mode = *req.Mode
		}
		if req.Timeout != nil {
			timeout = time.Duration(*req.Timeout) * time.Second
		}
		d := timeout
		if mode == 0 {
			d = 0
		}
		return mc.SetWatchdog(now, id, d)
	})
	if err != nil {
		return err
	}
	return r.Reply(bus.Table{{Name: "name", Value: req.Name}, {Name: "mode", Value: int32(mode)}, {Name: "timeout", Value: int32(timeout / time.Second)}})
}

func (m *Manager) handleGetData(_ context.Context, r *bus.Request) error {
	var req struct {
		Name     string `json:"name"`
		Instance string `json:"instance"`
		Type     string `json:"type"`
	}
	if err := r.Decode(&req); err != nil {
		return err
	}
	pick := func(t bus.Table) bus.Table {
		var out bus.Table
		for _, a := range t {
			if req.Type == "" || a.Name == req.Type {
				out = append(out, a)
			}
		}
		return out
	}
	m.mu.Lock()
	var out bus.Table
	for _, n := range m.names(req.Name) {
		s := m.services[n]
		if s == nil {
			continue
		}
		own := pick(s.data)
		for _, in := range sortedInstances(s) {
			if req.Instance != "" && in.spec.Instance != req.Instance {
				continue
			}
			if d := pick(in.data); len(d) > 0 {
				own = append(own, bus.Attr{Name: in.spec.Instance, Value: d})
			}
		}
		if len(own) > 0 {
			out = append(out, bus.Attr{Name: n, Value: own})
		}
	}
	m.mu.Unlock()
	return r.Reply(out)
}

func (m *Manager) handleList(ctx context.Context, r *bus.Request) error {
	var req struct {
		Name    string `json:"name"`
		Verbose bool   `json:"verbose"`
	}
	if err := r.Decode(&req); err != nil {
		return err
	}
	status := map[string]supervise.Status{}
	err := m.o.Supervisor.Do(ctx, func(mc *supervise.Machine, _ time.Duration) []supervise.Action {
		for _, id := range mc.IDs() {
			status[id], _ = mc.Status(id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	now := m.o.Clock()
	m.mu.Lock()
	out := bus.Table{}
	for _, n := range m.names(req.Name) {
		var svc bus.Table
		if u := m.natives[n]; u != nil {
			svc = m.nativeTable(u.Spec.Instance, status[u.Spec.ID], now)
			svc = append(svc, bus.Attr{Name: "native", Value: true}, bus.Attr{Name: "description", Value: u.Description},
				bus.Attr{Name: "enabled", Value: Enabled(m.o.RCDir, n)})
			if req.Verbose && len(u.Follows) > 0 {
				svc = append(svc, bus.Attr{Name: "follows", Value: u.Follows})
			}
		} else {
			svc = m.serviceTable(m.services[n], status, now, req.Verbose)
		}
		out = append(out, bus.Attr{Name: n, Value: svc})
	}
	m.mu.Unlock()
	return r.Reply(out)
}

func (m *Manager) nativeTable(inst string, st supervise.Status, now time.Duration) bus.Table {
	return bus.Table{{Name: "instances", Value: bus.Table{{Name: inst, Value: m.instanceTable(nil, st, now)}}}}
}

func sortedInstances(s *service) []*instance {
	var names []string
	for n := range s.instances {
		names = append(names, n)
	}
	sort.Strings(names)
	out := make([]*instance, 0, len(names))
	for _, n := range names {
		out = append(out, s.instances[n])
	}
	return out
}

func (m *Manager) serviceTable(s *service, status map[string]supervise.Status, now time.Duration, verbose bool) bus.Table {
	var svc bus.Table
	if !s.autostart {
		svc = append(svc, bus.Attr{Name: "autostart", Value: false})
	}
	if verbose {
		if s.script != "" {
			svc = append(svc, bus.Attr{Name: "script", Value: s.script})
		}
		if len(s.rawTriggers) > 0 {
			svc = append(svc, bus.Attr{Name: "triggers", Value: s.rawTriggers})
		}
		if len(s.validate) > 0 {
			svc = append(svc, bus.Attr{Name: "validate", Value: s.validate})
		}
		if len(s.data) > 0 {
			svc = append(svc, bus.Attr{Name: "data", Value: s.data})
		}
	}
	if len(s.instances) == 0 {
		return svc
	}
	var ins bus.Table
	for _, in := range sortedInstances(s) {
		ins = append(ins, bus.Attr{Name: in.spec.Instance, Value: m.instanceTable(in, status[in.spec.ID], now)})
	}
	return append(svc, bus.Attr{Name: "instances", Value: ins})
}

// instanceTable has procd's fields first, as its instance_dump writes them,
// and ours behind. in is nil for native services.
func (m *Manager) instanceTable(in *instance, st supervise.Status, now time.Duration) bus.Table {
	running := st.PID != 0
	t := bus.Table{{Name: "running", Value: running}}
	add := func(name string, v any) { t = append(t, bus.Attr{Name: name, Value: v}) }
	s := st.Spec
	if in != nil {
		s = in.spec
	}
	p := s.Process
	if running && st.PID > 0 {
		add("pid", int32(st.PID))
	}
	if len(p.Command) > 0 {
		add("command", p.Command)
	}
	add("term_timeout", int32(s.TermTimeout/time.Second))
	if st.Exit != nil && !running {
		add("exit_code", int32(st.Exit.Code))
	}
	if in != nil {
		if len(in.errors) > 0 {
			add("errors", in.errors)
		}
		if len(in.data) > 0 {
			add("data", in.data)
		}
		if len(in.env) > 0 {
			add("env", in.env)
		}
		if len(in.netdev) > 0 {
			add("netdev", in.netdev)
		}
		if len(in.files) > 0 {
			add("file", in.files)
		}
		if len(in.limits) > 0 {
			add("limits", in.limits)
		}
	}
	if s.ReloadSignal != 0 {
		add("reload_signal", int32(s.ReloadSignal))
	}
	if s.Respawn.On != supervise.RestartNever {
		add("respawn", bus.Table{
			{Name: "threshold", Value: int32(s.Respawn.Threshold / time.Second)},
			{Name: "timeout", Value: int32(s.Respawn.Delay / time.Second)},
			{Name: "retry", Value: int32(s.Respawn.Retry)},
		})
	}
	if p.Nice != 0 {
		add("nice", int32(p.Nice))
	}
	if p.User != "" {
		add("user", p.User)
	}
	if p.Group != "" {
		add("group", p.Group)
	}
	if p.Pidfile != "" {
		add("pidfile", p.Pidfile)
	}
	if st.Spec.Watchdog > 0 {
		mode := 1
		if in != nil {
			mode = max(mode, in.watchdog)
		}
		add("watchdog", bus.Table{{Name: "mode", Value: int32(mode)}, {Name: "timeout", Value: int32(st.Spec.Watchdog / time.Second)}})
	}

	add("state", st.State.String())
	add("type", s.Type.String())
	add("since_ms", max(0, now-st.Since).Milliseconds())
	add("restarts", int32(st.Restarts))
	if st.Health != supervise.HealthNone {
		add("health", string(st.Health))
	}
	if st.Reload {
		add("reloading", true)
	}
	if st.Text != "" {
		add("status", st.Text)
	}
	if st.Reason != "" {
		add("reason", st.Reason)
	}
	if st.Exit != nil {
		add("last_exit", st.Exit.String())
	}
	if st.NextTry > 0 {
		add("next_try_ms", max(0, st.NextTry-now).Milliseconds())
	}
	if s.Critical {
		add("critical", true)
	}
	if running && m.o.Memory != nil {
		if n := m.o.Memory(s.ID); n > 0 {
			add("memory", n)
		}
		if n := m.o.MemoryPeak(s.ID); n > 0 {
			add("memory_peak", n)
		}
	}
	if p.MemoryMax > 0 {
		add("memory_max", p.MemoryMax)
	}
	return t
}
