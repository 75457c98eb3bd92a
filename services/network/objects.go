package network

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"weft/init/bus"
)

// objects is the service's face on the bus. What the loop wants published or
// told goes through a queue, so that a slow broker holds nothing up.
type objects struct {
	client  *bus.Client
	log     *slog.Logger
	manager *manager
	hotplug string // program to run for hotplug scripts, empty for none

	queue chan func(context.Context)
	ifs   map[string]*bus.Published
	all   *bus.Published // network.interface
	// announced is closed once the first interfaces have their objects.
	announced chan struct{}
	first     sync.Once
}

// backlog is how much may wait for the broker and for hotplug scripts. More
// than that only comes up when both are stuck, and then it is dropped.
const backlog = 256

func newObjects(client *bus.Client, m *manager, log *slog.Logger, hotplug string) *objects {
	return &objects{
		client: client, manager: m, log: log, hotplug: hotplug,
		queue:     make(chan func(context.Context), backlog),
		ifs:       map[string]*bus.Published{},
		announced: make(chan struct{}),
	}
}

// run publishes the fixed objects, then works the queue until it is closed or
// ctx ends.
func (o *objects) run(ctx context.Context) {
	// With a connection publishing is done when Publish returns, and ready can
	// mean that the objects are there; without, it is done whenever there is one.
	select {
	case <-o.client.Connected():
	case <-time.After(settle):
	case <-ctx.Done():
		return
	}
	o.publish(o.network())
	o.publish(o.device())
	o.all = o.publish(o.interfaceAll())
	for {
		select {
		case <-ctx.Done():
			return
		case f, open := <-o.queue:
			if !open {
				return
			}
			f(ctx)
		}
	}
}

func (o *objects) enqueue(f func(context.Context)) {
	select {
	case o.queue <- f:
	default:
		o.log.Warn("the bus or a hotplug script is stuck, a message was dropped")
	}
}

func (o *objects) publish(obj *bus.Object) *bus.Published {
	p, err := o.client.Publish(obj)
	if err != nil {
		o.log.Error("object was not published", "object", obj.Name, "error", err)
	}
	return p
}

// interfaces implements publisher.
func (o *objects) interfaces(names []string) {
	o.enqueue(func(context.Context) {
		wanted := map[string]bool{}
		for _, n := range names {
			wanted[n] = true
			if o.ifs[n] == nil {
				o.ifs[n] = o.publish(o.interfaceOne(n))
			}
		}
		for n, p := range o.ifs {
			if !wanted[n] {
				if p != nil {
					if err := p.Close(); err != nil {
						o.log.Debug("object was not taken back", "interface", n, "error", err)
					}
				}
				delete(o.ifs, n)
			}
		}
		o.first.Do(func() { close(o.announced) })
	})
}

// changed implements publisher: netifd's event, its notifications, and the
// scripts in /etc/hotplug.d/iface.
func (o *objects) changed(name, device string, what change, status bus.Table) {
	action, notice := "ifdown", "interface.down"
	if what != wentDown {
		action, notice = "ifup", "interface.update"
	}
	data := append(bus.Table{{Name: "interface", Value: name}}, status...)
	o.enqueue(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		event := bus.Table{{Name: "action", Value: action}, {Name: "interface", Value: name}}
		if err := o.client.SendEvent(ctx, "network.interface", event); err != nil {
			o.log.Debug("event was not sent", "interface", name, "error", err)
		}
		for _, p := range []*bus.Published{o.all, o.ifs[name]} {
			if p == nil {
				continue
			}
			if err := p.Notify(ctx, notice, data); err != nil {
				o.log.Debug("subscribers were not told", "interface", name, "error", err)
			}
		}
	})
	if o.hotplug == "" || what == prolonged {
		return
	}
	if what == updated {
		action = "ifupdate"
	}
	o.enqueue(func(ctx context.Context) { o.runHotplug(ctx, action, name, device) })
}

// hotplugTime is how long the scripts of one event may take, as netifd has it.
const hotplugTime = 60 * time.Second

func (o *objects) runHotplug(ctx context.Context, action, name, device string) {
	if _, err := os.Stat(o.hotplug); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hotplugTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.hotplug, "iface")
	cmd.Env = append(os.Environ(), "ACTION="+action, "INTERFACE="+name, "DEVICE="+device)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		o.log.Warn("hotplug scripts failed", "action", action, "interface", name, "error", err, "output", string(out))
	}
}

// loop makes a method that runs in the loop of the manager and replies what f
// returns, unless that is nil.
func (o *objects) loop(f func(r *bus.Request) (bus.Table, error)) func(context.Context, *bus.Request) error {
	return func(ctx context.Context, r *bus.Request) error {
		var reply bus.Table
		var err error
		if derr := o.manager.do(ctx, func() { reply, err = f(r) }); derr != nil {
			return derr
		}
		if err != nil || reply == nil {
			return err
		}
		return r.Reply(reply)
	}
}

func (o *objects) network() *bus.Object {
	m := o.manager
	return &bus.Object{Name: "network", Methods: []bus.Method{
		{Name: "restart", Handle: o.loop(func(*bus.Request) (bus.Table, error) { m.restart(); return nil, nil })},
		{Name: "reload", Handle: o.loop(func(*bus.Request) (bus.Table, error) { m.load(); return nil, nil })},
		{Name: "get_proto_handlers", Handle: o.loop(func(*bus.Request) (bus.Table, error) {
			t := bus.Table{}
			for _, p := range protocols {
				t = append(t, bus.Attr{Name: p, Value: bus.Table{{Name: "no_device", Value: p == "none"}}})
			}
			return t, nil
		})},
	}}
}

func (o *objects) device() *bus.Object {
	return &bus.Object{Name: "network.device", Methods: []bus.Method{{
		Name: "status", Args: []bus.Arg{{Name: "name", Type: bus.TypeString}},
		Handle: o.loop(func(r *bus.Request) (bus.Table, error) {
			name, _ := r.Args.Get("name").(string)
			return o.manager.devices(name)
		}),
	}}}
}

// interfaceAll is network.interface: methods on all or on a named one.
func (o *objects) interfaceAll() *bus.Object {
	m := o.manager
	methods := o.methods(func(r *bus.Request) (*state, error) {
		name, ok := r.Args.Get("interface").(string)
		if !ok {
			return nil, bus.StatusInvalidArgument
		}
		s := m.states[name]
		if s == nil {
			return nil, bus.StatusNotFound
		}
		return s, nil
	}, []bus.Arg{{Name: "interface", Type: bus.TypeString}})
	return &bus.Object{Name: "network.interface", Methods: append(methods, bus.Method{
		Name: "dump", Handle: o.loop(func(*bus.Request) (bus.Table, error) { return m.dump(), nil }),
	})}
}

func (o *objects) interfaceOne(name string) *bus.Object {
	return &bus.Object{Name: "network.interface." + name, Methods: o.methods(func(*bus.Request) (*state, error) {
		s := o.manager.states[name]
		if s == nil {
			return nil, bus.StatusNotFound
		}
		return s, nil
	}, nil)}
}

// methods are those of one interface, which find gives.
func (o *objects) methods(find func(*bus.Request) (*state, error), args []bus.Arg) []bus.Method {
	m := o.manager
	on := func(f func(*state) (bus.Table, error)) func(context.Context, *bus.Request) error {
		return o.loop(func(r *bus.Request) (bus.Table, error) {
			s, err := find(r)
			if err != nil {
				return nil, err
			}
			return f(s)
		})
	}
	return []bus.Method{
		{Name: "up", Args: args, Handle: on(func(s *state) (bus.Table, error) { s.autostart = true; return nil, nil })},
		{Name: "down", Args: args, Handle: on(func(s *state) (bus.Table, error) { s.autostart = false; return nil, nil })},
		{Name: "renew", Args: args, Handle: on(func(s *state) (bus.Table, error) {
			if s.client == nil && s.six == nil {
				return nil, bus.StatusNotSupported
			}
			if s.client != nil {
				poke(s.client.kick)
			}
			if s.six != nil {
				poke(s.six.kick)
			}
			return nil, nil
		})},
		{Name: "status", Args: args, Handle: on(func(s *state) (bus.Table, error) { return m.interfaceStatus(s), nil })},
	}
}
