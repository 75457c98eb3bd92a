package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/uci"
)

// manager owns the state of all interfaces; only its loop touches it.
type manager struct {
	log      *slog.Logger
	tree     uci.Tree
	resolver string // folder of resolv.conf
	// boardJSON is set on a device: there a rescue address is worth having.
	boardJSON string
	kernel    *kernel
	bus       publisher
	status    func(string) // for the supervisor

	cfg      *Config
	states   map[string]*state
	order    []string          // names of the interfaces, sorted as netifd lists them
	faults   []string          // of the configuration, as last logged
	failures map[string]string // of links, as last logged
	said     string            // last status text

	assigner assigner
	parts    map[string][]assignment
	expiry   *time.Timer // the next end of a lifetime

	dirty chan struct{} // links changed
	calls chan func()
	retry *time.Timer // set while something could not be done
}

// publisher is what the loop tells the bus. No method blocks.
type publisher interface {
	// interfaces replaces the set of interfaces that have an object.
	interfaces(names []string)
	// changed reports what happened to an interface.
	changed(name, device string, what change, status bus.Table)
}

// change is what happened to an interface.
type change int

const (
	wentDown change = iota
	cameUp
	updated   // other addresses, routes or resolvers
	prolonged // the same for longer, or shorter
)

// state is an interface at work.
type state struct {
	cfg       *Interface
	autostart bool // wanted up: as configured, until a call says otherwise
	available bool // its link is there, with a carrier if it needs one
	pending   bool // coming up
	up        bool
	since     time.Time
	device    string // resolved name
	faults    []fault
	shown     content // as last reported

	client *client
	lease  *Lease
	last   netip.Addr // what DHCP gave before, to be asked for again
	six    *six       // of proto dhcpv6
	tunnel *tunnel    // of proto wireguard

	table int // for its default routes while there are several uplinks
	parts []assignment
}

// fault is an entry of `errors` in the status, as netifd has them.
type fault struct {
	subsystem, code string
	data            []string
}

// client is a DHCP client at work.
type client struct {
	index int // of the link it runs on
	wire  *wire
	stop  context.CancelFunc
	done  chan struct{}
	kick  chan struct{}
	lease *Lease // held at the end; valid after done
}

func newManager(log *slog.Logger, k *kernel) *manager {
	return &manager{
		log: log, kernel: k,
		cfg:    &Config{},
		states: map[string]*state{},
		dirty:  make(chan struct{}, 1),
		calls:  make(chan func()),
		status: func(string) {},
	}
}

// linksChanged asks the loop to look at the links; it does not block.
func (m *manager) linksChanged() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// do runs f in the loop and waits for it.
func (m *manager) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case m.calls <- func() { defer close(done); f() }:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}

// settle is how long static interfaces may wait for their devices, and objects
// for the bus, before the service counts as ready without them: drivers load
// while the system starts.
const settle = 2 * time.Second

// retryAfter is the time until what failed is tried again, failPause the time
// for which changes of links are no reason to do so sooner.
const (
	retryAfter = 5 * time.Second
	failPause  = 2 * time.Second
)

// loop runs until ctx ends, then takes the interfaces down.
// announced is closed when the interfaces are on the bus.
func (m *manager) loop(ctx context.Context, reload, announced <-chan struct{}, reloading, ready func()) {
	m.retry = time.NewTimer(time.Hour)
	m.retry.Stop()
	m.expiry = time.NewTimer(time.Hour)
	defer m.expiry.Stop()
	grace := time.NewTimer(settle)
	defer grace.Stop()
	started := false
	start := func() {
		if !started {
			started = true
			grace.Stop()
			ready()
		}
	}
	m.load()
	for {
		m.reconcile(ctx)
		if announced == nil && m.settled() {
			start()
		}
		dirty, calm := (<-chan struct{})(m.dirty), (<-chan time.Time)(nil)
		if len(m.failures) > 0 {
			// What fails may be news of links itself, and go on for ever.
			dirty, calm = nil, time.After(failPause)
		}
		for waiting := true; waiting; {
			waiting = false
			select {
			case <-ctx.Done():
				m.shutdown()
				return
			case <-calm:
				dirty, waiting = m.dirty, true
			case <-dirty:
			case <-m.retry.C:
			case <-m.expiry.C:
			case <-announced:
				announced = nil
			case <-grace.C:
				start()
			case f := <-m.calls:
				f()
			case <-reload:
				reloading()
				m.load()
				m.reconcile(ctx)
				if started {
					ready()
				}
			}
		}
	}
}

// settled tells whether all that can be up without anybody's answer is up.
func (m *manager) settled() bool {
	for _, s := range m.states {
		if s.autostart && !s.up && s.cfg.Proto == "static" && s.cfg.ForceLink && len(s.cfg.Problems) == 0 {
			return false
		}
	}
	return true
}

// tablesFile has the names of routing tables.
const tablesFile = "/etc/iproute2/rt_tables"

// load reads the configuration. If that is not possible the one in use stays.
func (m *manager) load() {
	p, err := m.tree.LoadCommitted("network")
	if p == nil {
		m.log.Error("configuration cannot be read, the last good one stays in force", "error", err)
		m.rescue()
		return
	}
	// What DHCP sends for lack of `option hostname`; without a name, none.
	hostname, _ := os.Hostname()
	cfg := parseConfig(p, hostname, readTables(tablesFile))
	var faults []string
	note := func(level slog.Level, msg, what string) {
		faults = append(faults, what)
		if !slices.Contains(m.faults, what) { // say it once, not at each reload
			m.log.Log(context.Background(), level, msg, "fault", what)
		}
	}
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			note(slog.LevelWarn, "bad line in the configuration", line)
		}
	}
	all := slices.Clone(cfg.Problems)
	for _, i := range cfg.Interfaces {
		all = append(all, i.Problems...)
	}
	for _, p := range all {
		if p.Later {
			note(slog.LevelInfo, "part of the configuration has no effect", p.Error())
		} else {
			note(slog.LevelWarn, "fault in the configuration, its section is left out", p.Error())
		}
	}
	m.faults = faults
	if err != nil && !cfg.usable() {
		m.log.Error("nothing usable is left of the configuration, the last good one stays in force; repair /etc/config/network, or firstboot resets it")
		m.rescue()
		return
	}
	m.use(cfg)
}

// rescue keeps a device within reach that has had no usable configuration since
// its start. Elsewhere than on a device nothing is touched without being told to.
func (m *manager) rescue() {
	if m.boardJSON == "" || m.cfg.usable() {
		return
	}
	m.log.Error("no usable configuration: the first LAN port has the rescue address", "address", rescueAddress)
	m.use(rescueConfig(m.boardJSON))
}

// use makes cfg the configuration to follow.
func (m *manager) use(cfg *Config) {
	m.cfg = cfg
	names := make([]string, 0, len(cfg.Interfaces))
	for _, i := range cfg.Interfaces {
		names = append(names, i.Name)
		s := m.states[i.Name]
		switch {
		case s == nil:
			m.states[i.Name] = &state{cfg: i, autostart: i.Auto}
			continue
		case !sameClient(s.cfg, i):
			m.stopClients(s, true)
		}
		if s.cfg.Auto != i.Auto {
			s.autostart = i.Auto
		}
		s.cfg = i
	}
	for name, s := range m.states {
		if !slices.Contains(names, name) {
			m.stopClients(s, true)
			m.down(name, s)
			delete(m.states, name)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, m.order) {
		m.order = names
		m.bus.interfaces(slices.Clone(names))
	}
}

// reconcile makes the kernel what the configuration asks for and finds out
// what is up. It is run after every event and does nothing if nothing is to do.
func (m *manager) reconcile(ctx context.Context) {
	m.retry.Stop()
	var ls links
	var plans map[string]*plan
	var errs map[string]error
	m.divide(ls)
	for range 5 { // bridges first, then their ports, then what they carry
		var err error
		if ls, err = m.kernel.links(); err != nil {
			m.log.Error("cannot see the links", "error", err)
			m.retry.Reset(retryAfter)
			return
		}
		plans = m.plans(ls)
		changed, failed := m.kernel.shape(ls, plans)
		if errs = failed; !changed {
			break
		}
	}
	m.look(ctx, ls)
	m.divide(ls)
	m.uplinks()
	plans = m.plans(ls) // with what is available now, and leases
	for _, name := range sortedKeys(plans) {
		l, there := ls[name]
		if !there || errs[name] != nil {
			continue
		}
		if _, err := m.kernel.address(l, plans[name]); err != nil {
			errs[name] = err
		}
	}
	if err := errors.Join(m.tunnels(ls), m.kernel.deadEnds(m.deadEnds()), m.kernel.rules(m.rules(ls))); err != nil {
		errs[""] = err
	}
	m.report(ls, errs)
	if m.expiry != nil {
		m.expiry.Reset(m.nextExpiry())
	}
	if len(errs) > 0 {
		m.retry.Reset(retryAfter)
	}
	m.resolve()
}

// wanted tells whether an interface shall be up if it can.
func (s *state) wanted() bool { return s.autostart && len(s.cfg.Problems) == 0 }

// plans works out what each link shall be, from the configuration, what is
// available and the leases. ls is only asked for MAC addresses of ports.
func (m *manager) plans(ls links) map[string]*plan {
	plans := map[string]*plan{"lo": {}} // loopback is up whatever happens
	var of func(name string) *plan
	of = func(name string) *plan {
		p := plans[name]
		if p == nil {
			p = &plan{}
			plans[name] = p
			if p.dev = m.cfg.deviceOf(name); p.dev == nil {
				p.dev = implicit(name)
			}
			p.mac, p.mtu = p.dev.MAC, p.dev.MTU
			if p.dev.Parent != "" {
				of(p.dev.Parent)
			}
		}
		return p
	}
	for _, name := range m.order {
		s := m.states[name]
		s.device = m.cfg.resolve(s.cfg)
		if !s.wanted() || s.device == "" {
			continue
		}
		p := of(s.device)
		if s.cfg.Proto == "wireguard" {
			p.dev = &Device{Name: s.device, Kind: "wireguard"}
		}
		if s.cfg.Proto == "dhcpv6" {
			p.sysctls = append(p.sysctls, s.six.sysctls(p.mtu)...)
		}
		if s.cfg.MAC != nil {
			p.mac = s.cfg.MAC
		}
		if s.cfg.MTU != 0 {
			p.mtu = s.cfg.MTU
		}
		if !s.available {
			continue
		}
		c := s.content(time.Now())
		for _, a := range c.own() {
			if slices.Contains(p.addrs, a.Prefix) {
				continue
			}
			p.addrs = append(p.addrs, a.Prefix)
			if over(a.Preferred, time.Now()) {
				if p.deprecated == nil {
					p.deprecated = map[netip.Prefix]bool{}
				}
				p.deprecated[a.Prefix] = true
			}
		}
		p.routes = append(p.routes, c.routes...)
		p.routes = append(p.routes, s.tableRoutes(c)...)
	}
	m.hostRoutes(plans)
	for _, name := range sortedKeys(plans) {
		p := plans[name]
		if p.kind() != "bridge" {
			continue
		}
		for _, port := range p.dev.Ports {
			q := of(port)
			if q.kind() == "bridge" || q.master != "" {
				continue // a bridge in a bridge, or in two: the first one keeps it
			}
			q.master = name
			if l, ok := ls[port]; ok && p.mac == nil {
				// That of the first port, as netifd has it; left to itself
				// the kernel takes the lowest one.
				p.mac = l.Attrs().HardwareAddr
				if q.mac != nil {
					p.mac = q.mac
				}
			}
		}
	}
	return plans
}

// look finds out which interfaces have their link, and runs DHCP on those that
// want it.
func (m *manager) look(ctx context.Context, ls links) {
	for _, name := range m.order {
		s := m.states[name]
		l, there := ls[s.device]
		s.available = there && (s.cfg.ForceLink || ls.carrier(s.device)) || s.device == "" && s.cfg.Proto == "none"
		run := s.cfg.Proto == "dhcp" && s.wanted() && s.available && ctx.Err() == nil
		if s.client != nil && (!run || s.client.index != l.Attrs().Index) {
			m.stopClient(s, s.available && s.client.index == l.Attrs().Index)
		}
		if run && s.client == nil {
			m.startClient(ctx, name, s, l.Attrs().Index, &wire{link: s.device, mac: l.Attrs().HardwareAddr, opts: s.cfg.DHCP, last: s.last})
		}
		m.lookSix(ctx, name, s, ls)
		m.lookTunnel(ctx, name, s)
	}
}

// stopClients ends what talks to servers and routers for an interface.
func (m *manager) stopClients(s *state, release bool) {
	m.stopClient(s, release)
	m.stopSix(s, release)
	s.tunnel.end()
	s.tunnel = nil
}

func (m *manager) startClient(ctx context.Context, name string, s *state, index int, w *wire) {
	ctx, stop := context.WithCancel(ctx)
	c := &client{index: index, stop: stop, done: make(chan struct{}), kick: make(chan struct{}, 1), wire: w}
	s.client = c
	log := m.log.With("interface", name, "device", w.link)
	d := &dhcpClient{ex: w, log: log, kick: c.kick, lease: func(l *Lease) {
		_ = m.do(ctx, func() {
			if s.client != c {
				return // stopped meanwhile
			}
			if l != nil && (s.lease == nil || s.lease.Addr != l.Addr) {
				log.Info("got a lease", "address", l.Addr, "server", l.Server, "seconds", int(l.Duration.Seconds()))
			}
			if s.lease = l; l != nil {
				s.last = l.Addr.Addr()
			}
		})
	}}
	go func() {
		defer close(c.done)
		c.lease = d.run(ctx)
	}()
}

// stopClient ends DHCP on an interface. With release the address is given back
// to the server, which makes sense only while the link works.
func (m *manager) stopClient(s *state, release bool) {
	c := s.client
	if c == nil {
		return
	}
	c.stop()
	<-c.done // it does not wait for the loop once it is stopped
	s.client, s.lease = nil, nil
	if c.lease != nil && release && s.cfg.DHCP.Release {
		if err := c.wire.release(c.lease); err != nil {
			m.log.Debug("lease was not given back", "device", c.wire.link, "error", err)
		}
	}
}

// report finds out what is up, and tells the bus and the log what changed.
func (m *manager) report(ls links, errs map[string]error) {
	failures := map[string]string{}
	for name, err := range errs {
		failures[name] = err.Error()
		if m.failures[name] != err.Error() { // say it once, not at each try
			m.log.Error("not everything is as configured, trying again", "device", name, "error", err)
		}
	}
	m.failures = failures
	var waiting []string
	for _, name := range m.order {
		s := m.states[name]
		_, there := ls[s.device]
		err := errs[s.device]
		s.faults = nil
		for _, p := range s.cfg.Problems {
			code := "INVALID_OPTION"
			if p.Later {
				code = "NOT_AVAILABLE"
			}
			s.faults = append(s.faults, fault{"config", code, []string{p.Option, p.Value, p.Expected}})
		}
		if err != nil && s.wanted() {
			s.faults = append(s.faults, fault{"interface", "SETUP_FAILED", []string{err.Error()}})
		}
		if s.wanted() && s.device != "" && !there {
			s.faults = append(s.faults, fault{"interface", "NO_DEVICE", nil})
		}
		up := s.wanted() && s.available && err == nil && s.ready()
		s.pending = s.wanted() && s.available && !up
		if !up {
			if s.wanted() {
				waiting = append(waiting, name)
			}
			m.down(name, s)
			continue
		}
		now := s.content(time.Now())
		first := !s.up
		if first {
			s.up, s.since = true, time.Now()
			m.log.Info("interface is up", "interface", name, "device", s.device)
		}
		what := prolonged
		switch {
		case first:
			what = cameUp
		case !reflect.DeepEqual(now.timeless(), s.shown.timeless()):
			what = updated
		case reflect.DeepEqual(now.assigned, s.shown.assigned) && reflect.DeepEqual(now.prefixes, s.shown.prefixes):
			s.shown = now // lifetimes of its own, which nobody follows
			continue
		}
		s.shown = now
		m.bus.changed(name, s.device, what, m.interfaceStatus(s))
	}
	text := fmt.Sprintf("%d of %d interfaces up", len(m.order)-len(waiting), len(m.order))
	if len(waiting) > 0 {
		text += ", waiting for " + strings.Join(waiting, " ")
	}
	if text != m.said {
		m.said = text
		m.status(text)
	}
}

// down notes that an interface is not up.
func (m *manager) down(name string, s *state) {
	if !s.up {
		return
	}
	s.up, s.shown = false, content{}
	m.log.Info("interface is down", "interface", name, "device", s.device)
	m.bus.changed(name, s.device, wentDown, m.interfaceStatus(s))
}

// resolve writes the resolver file.
func (m *manager) resolve() {
	var all []nameservers
	for _, name := range m.order {
		if s := m.states[name]; s.up {
			all = append(all, nameservers{name, s.cfg.DNSMetric, s.shown.servers, s.shown.search})
		}
	}
	if err := writeResolver(m.resolver, resolverText(all)); err != nil {
		m.log.Error("resolver file was not written", "error", err)
	}
}

// restart takes everything down, then reads the configuration; the next
// reconcile brings it up.
func (m *manager) restart() {
	m.clear()
	m.load()
	for _, s := range m.states {
		s.autostart = s.cfg.Auto
	}
}

// shutdown ends the service.
func (m *manager) shutdown() {
	m.clear()
	m.resolve()
}

// clear takes down all interfaces and gives their links back.
func (m *manager) clear() {
	for _, name := range m.order {
		s := m.states[name]
		m.stopClients(s, s.available)
		m.down(name, s)
		s.available = false
	}
	ls, err := m.kernel.links()
	if err != nil {
		m.log.Error("cannot see the links", "error", err)
		return
	}
	lo := &plan{addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}}
	_, errs := m.kernel.shape(ls, map[string]*plan{"lo": lo})
	if l, ok := ls["lo"]; ok {
		if _, err := m.kernel.address(l, lo); err != nil {
			errs["lo"] = err
		}
	}
	if err := errors.Join(m.kernel.deadEnds(nil), m.kernel.rules(nil)); err != nil {
		m.log.Warn("routes and rules were not taken back", "error", err)
	}
	for name, err := range errs {
		m.log.Warn("link was not given back", "device", name, "error", err)
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
