package paths

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/services/internal/mptcpnl"
)

// sysctls are what trunks need of net.mptcp, where the kernel has it.
var sysctls = []struct{ name, value, why string }{
	{"enabled", "1", "MPTCP sockets"},
	{"allow_join_initial_addr_port", "1", "joins go to the listener's port"},
	{"blackhole_timeout", "0", "a bad path must not switch MPTCP off for all"},
	{"syn_retrans_before_tcp_fallback", "128", "never turn into plain TCP for lost packets"},
}

// Manager keeps the subflows of all registered connections as the wanted
// paths and their state demand. Its methods may be used from any goroutine.
type Manager struct {
	log    *slog.Logger
	ns     netns.NsHandle
	nl     *netlink.Handle
	pm     *mptcpnl.Conn
	events <-chan mptcpnl.Event
	stop   context.CancelFunc // of events
	wake   chan struct{}
	boot   string

	mu       sync.Mutex
	o        Options
	paths    []*path
	owner    map[netip.Addr]*path // who has or had a local address
	legs     map[legKey]*leg
	conns    map[uint32]*conn
	fds      map[int]*conn
	state    kept // as last saved
	onChange []func(Path)
	onPairs  []func()
	pairs    string // what Pairs last answered, to notice changes
	look     bool   // links, addresses, routes or options have changed
	turn     int    // of Pick
	lastTick time.Time
	lastSave time.Time
	lastPoll time.Time
	scratch  []mptcpnl.SubflowInfo
}

// path is the live one of a Wanted.
type path struct {
	w    Wanted
	slot int // of its routing tables

	ifindex        int
	link           bool // device is there, up, with carrier
	clash          string
	local4, local6 netip.Addr
	prefixes       []netip.Prefix
	specific       []specific
	hop4, hop6     hop
	routes         map[string]netlink.Route
	rules          []ruleKey
	congestion     string

	state  State
	reason string
	since  time.Time

	stripped bool
	strips   int // connections in a row that came without MPTCP
	rtt      time.Duration
	minRTT   time.Duration
	sent     uint64
	received uint64
	retrans  uint64
	joins    uint64
	failed   uint64
	lost     uint64

	counted    bool
	countIndex int
	rx, tx     uint64
	used       uint64
	period     time.Time

	told Path // as last told to OnChange
}

type legKey struct{ peer, path string }

// leg is one path to one peer.
type leg struct {
	peer    string
	p       *path
	remotes []netip.Addr // what the path reaches of the peer, best first
	remote  netip.Addr   // the one in use
	rotated bool         // another than the first was chosen for lack of answers
	port    uint16

	proven  bool // a subflow joined since the path came up
	heard   bool // probes were answered since the path came up
	told    bool // what probes said last: they tell changes only
	dead    bool
	deadBy  string
	doubt   bool // probes say dead, TCP does not agree
	rtt     time.Duration
	pending int // joins under way, counted anew in each round
	fails   int // joins that failed in a row
	scout   time.Time
	slack   time.Duration // added to the time-out after false alarms
	died    time.Time
}

// New checks the options and takes over the path management of the calling
// thread's network namespace: net.mptcp sysctls, routing tables and rules.
// What a killed predecessor left is cleaned up first.
func New(o Options) (m *Manager, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m = &Manager{
		log: o.Log, wake: make(chan struct{}, 1), boot: bootID(),
		owner: map[netip.Addr]*path{}, legs: map[legKey]*leg{},
		conns: map[uint32]*conn{}, fds: map[int]*conn{},
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.ns, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	if m.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if m.pm, err = mptcpnl.Dial(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	if m.events, err = m.pm.Events(ctx); err != nil {
		return nil, err
	}
	if err = clearRouting(m.nl); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	before, lerr := load(o.StateDir)
	if lerr != nil {
		m.log.Warn("path state is lost", "error", lerr)
	}
	m.state = kept{Sysctl: map[string]string{}, Quota: before.Quota}
	set := func(name, value string, f func(string) (string, error)) error {
		old, err := f(value)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // this kernel has no such setting
		}
		if err != nil {
			return err
		}
		// A killed predecessor has changed it already: what it found counts.
		if v, ok := before.Sysctl[name]; ok {
			old = v
		}
		if old != value {
			m.state.Sysctl[name] = old
		}
		return nil
	}
	for _, s := range sysctls {
		if err = set(s.name, s.value, func(v string) (string, error) { return mptcpnl.SetSysctl(s.name, v) }); err != nil {
			return nil, fmt.Errorf("%w (needed for %s)", err, s.why)
		}
	}
	if err = set("path_manager", mptcpnl.UserspacePM, mptcpnl.SetPathManager); err != nil {
		return nil, fmt.Errorf("%w (needed to create and destroy subflows)", err)
	}
	if err = save(o.StateDir, m.state); err != nil {
		return nil, err
	}
	now := time.Now()
	m.lastSave, m.lastTick = now, now
	m.apply(o, now)
	if err := m.observe(now); err != nil {
		m.log.Warn("paths are not complete", "error", err)
	}
	m.pairs = m.pairsKey()
	for _, p := range m.paths {
		p.told = p.snapshot(m)
	}
	return m, nil
}

func (o *Options) check() error {
	names, devices := map[string]bool{}, map[string]string{}
	for _, w := range o.Wanted {
		if w.Name == "" || w.Device == "" {
			return fmt.Errorf("path %q on device %q: expected a name and a device", w.Name, w.Device)
		}
		if names[w.Name] {
			return fmt.Errorf("path %s: there are two of that name", w.Name)
		}
		names[w.Name] = true
		if other := devices[w.Device]; other != "" {
			return fmt.Errorf("path %s: its device %s belongs to path %s already", w.Name, w.Device, other)
		}
		devices[w.Device] = w.Name
		if w.Weight < 0 {
			return fmt.Errorf("path %s: weight %d, expected 1 or more", w.Name, w.Weight)
		}
		if err := checkPeriod(w.Period); err != nil {
			return fmt.Errorf("path %s: %w", w.Name, err)
		}
	}
	if len(o.Wanted) > maxPaths {
		return fmt.Errorf("%d paths, expected at most %d", len(o.Wanted), maxPaths)
	}
	return nil
}

// apply takes new options over. The lock is held, or there is no other user yet.
func (m *Manager) apply(o Options, now time.Time) {
	old := map[string]*path{}
	for _, p := range m.paths {
		old[p.w.Name] = p
	}
	var next []*path
	for _, w := range o.Wanted {
		if w.Weight == 0 {
			w.Weight = 1
		}
		p := old[w.Name]
		if p == nil || p.w.Device != w.Device {
			p = &path{slot: m.freeSlot(next), routes: map[string]netlink.Route{}, since: now, reason: "not looked at yet"}
			if k, ok := m.state.Quota[w.Name]; ok {
				p.used, p.period = k.Used, k.Period
				if k.Boot == m.boot {
					p.counted, p.countIndex, p.rx, p.tx = true, k.Index, k.Rx, k.Tx
				}
			}
		}
		if old[w.Name] == p {
			delete(old, w.Name)
		}
		p.w = w
		next = append(next, p)
	}
	for _, p := range old {
		m.keepQuota(p)
		p.link = false
		p.w.Mode = Off
		if err := m.route(p); err != nil {
			m.log.Warn("routes of a path remain", "path", p.w.Name, "error", err)
		}
	}
	m.paths = next
	m.o = o
	m.o.Log = m.log
	known := map[legKey]bool{}
	for _, peer := range o.Peers {
		for _, p := range next {
			known[legKey{peer.Name, p.w.Name}] = true
		}
	}
	for k, l := range m.legs {
		if !slices.Contains(next, l.p) || l.port != 0 && !known[k] {
			delete(m.legs, k)
		}
	}
	for a, p := range m.owner {
		if !slices.Contains(next, p) && old[p.w.Name] != p {
			delete(m.owner, a)
		}
	}
	m.look = true
}

// freeSlot finds routing tables that neither a path of now nor one of next uses.
func (m *Manager) freeSlot(next []*path) int {
	for s := 0; ; s++ {
		used := func(p *path) bool { return p.slot == s }
		if !slices.ContainsFunc(m.paths, used) && !slices.ContainsFunc(next, used) {
			return s
		}
	}
}

// leg finds or makes the leg of a path to a peer.
func (m *Manager) leg(peer string, p *path) *leg {
	k := legKey{peer, p.w.Name}
	l := m.legs[k]
	if l == nil || l.p != p {
		l = &leg{peer: peer, p: p}
		m.legs[k] = l
	}
	return l
}

// fresh forgets what was known of the way from a path, since it has come up or
// its address has changed.
func (m *Manager) fresh(p *path, now time.Time) {
	for _, l := range m.legs {
		if l.p == p {
			*l = leg{peer: l.peer, p: p, remotes: l.remotes, remote: l.remote, port: l.port, slack: l.slack, scout: now, heard: l.told, told: l.told}
		}
	}
	for _, c := range m.conns {
		if s := c.slots[p]; s != nil {
			s.tries, s.next = 0, now
		}
	}
}

// judge decides the path's state.
func (m *Manager) judge(p *path, now time.Time) {
	state, reason := Up, ""
	switch {
	case p.ifindex == 0:
		state, reason = Down, "no device "+p.w.Device
	case !p.link:
		state, reason = Down, "no carrier on "+p.w.Device
	case !p.local4.IsValid() && !p.local6.IsValid() && p.clash != "":
		state, reason = Down, "its address is that of path "+p.clash
	case !p.local4.IsValid() && !p.local6.IsValid():
		state, reason = Down, "no address on "+p.w.Device
	case p.w.Mode == Off:
		state, reason = Down, "switched off"
	case p.spent(now):
		state, reason = Spent, "quota used up"
	default:
		n, dead, unreached := 0, 0, 0
		for _, l := range m.legs {
			if l.p != p || l.peer == "" {
				continue
			}
			n++
			if l.dead {
				dead++
				reason = l.deadBy
			}
			if l.port != 0 && !l.remote.IsValid() {
				unreached++
			}
		}
		if n > 0 && dead == n {
			state = Dead
		} else if n > 0 && unreached == n {
			reason = "no route to any address of the peers"
		} else {
			reason = ""
		}
	}
	if p.stripped && state == Up {
		reason = "MPTCP is stripped on the way"
	}
	if state != p.state {
		p.since = now
	}
	p.state, p.reason = state, reason
}

// usable tells whether subflows to a peer should exist on the path.
func (m *Manager) usable(c *conn, p *path) bool {
	if p.state == Down || p.state == Spent || p.w.Mode == Off {
		return false
	}
	if l := m.legs[legKey{c.peer, p.w.Name}]; l != nil && l.dead {
		return false
	}
	return true
}

// Run follows links and events until ctx ends, then takes away all that New
// and Run set up.
func (m *Manager) Run(ctx context.Context) error {
	// Sockets and /proc/sys belong to the thread's namespace. The thread is
	// not given back, so that it ends with us.
	runtime.LockOSThread()
	if err := enter(m.ns); err != nil {
		m.close()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer m.close()
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	watchers, err := m.watch(changed, done)
	defer watchers.Wait()
	defer close(done)
	if err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	m.mu.Lock()
	m.look = true
	m.mu.Unlock()
	for {
		var ev mptcpnl.Event
		got := false
		select {
		case <-ctx.Done():
			m.mu.Lock()
			m.keep(true, time.Now())
			m.mu.Unlock()
			return nil
		case <-changed:
			m.mu.Lock()
			m.look = true
			m.mu.Unlock()
		case <-m.wake:
		case <-timer.C:
		case e, ok := <-m.events:
			if !ok {
				return errors.New("the kernel's MPTCP events have ended: restart the service")
			}
			ev, got = e, true
		}
		now := time.Now()
		m.mu.Lock()
		for n := 0; got && n < 4096; n++ {
			m.event(ev, now)
			select {
			case ev, got = <-m.events:
			default:
				got = false
			}
		}
		wait := m.round(now)
		told, pairs := m.news()
		fs, gs := m.onChange, m.onPairs
		m.mu.Unlock()
		for _, t := range told {
			for _, f := range fs {
				f(t)
			}
		}
		if pairs {
			for _, g := range gs {
				g()
			}
		}
		timer.Reset(wait)
	}
}

// watch subscribes to links, addresses and routes. Changes of our own tables
// are not news.
func (m *Manager) watch(changed chan<- struct{}, done <-chan struct{}) (*sync.WaitGroup, error) {
	var wg sync.WaitGroup
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	lost := func(error) { poke() }
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 256)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: lost}); err != nil {
		return &wg, fmt.Errorf("follow links: %w", err)
	}
	wg.Go(func() {
		for range links {
			poke()
		}
	})
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: lost}); err != nil {
		return &wg, fmt.Errorf("follow addresses: %w", err)
	}
	wg.Go(func() {
		for range addrs {
			poke()
		}
	})
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: lost}); err != nil {
		return &wg, fmt.Errorf("follow routes: %w", err)
	}
	wg.Go(func() {
		for r := range routes {
			if !ourTable(r.Table) {
				poke()
			}
		}
	})
	return &wg, nil
}

// close takes away what New set up.
func (m *Manager) close() {
	if m.nl != nil {
		if err := clearRouting(m.nl); err != nil {
			m.log.Warn("rules and routes of paths remain", "error", err)
		}
		m.nl.Close()
	}
	if m.stop != nil {
		m.stop()
		for range m.events { // until it is closed: its goroutine has ended
		}
	}
	if m.pm != nil {
		m.pm.Close()
	}
	for name, v := range m.state.Sysctl {
		var err error
		switch name {
		case "path_manager":
			_, err = mptcpnl.SetPathManager(v)
		default:
			_, err = mptcpnl.SetSysctl(name, v)
		}
		if err != nil {
			m.log.Warn("setting not restored", "error", err)
		}
	}
	if len(m.state.Sysctl) > 0 {
		m.state.Sysctl = nil
		if err := save(m.o.StateDir, m.state); err != nil {
			m.log.Warn("path state not saved", "error", err)
		}
	}
	if m.ns > 0 {
		m.ns.Close()
	}
}

// kick makes Run look at everything again.
func (m *Manager) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// keepQuota notes the path's counters for saving.
func (m *Manager) keepQuota(p *path) {
	if m.state.Quota == nil {
		m.state.Quota = map[string]keptQuota{}
	}
	m.state.Quota[p.w.Name] = keptQuota{Used: p.used, Period: p.period, Boot: m.boot, Index: p.countIndex, Rx: p.rx, Tx: p.tx}
}

// keep saves the counters now and then, or at once when forced.
func (m *Manager) keep(force bool, now time.Time) {
	if !force && now.Sub(m.lastSave) < time.Minute {
		return
	}
	m.lastSave = now
	before := maps.Clone(m.state.Quota)
	for _, p := range m.paths {
		m.keepQuota(p)
	}
	if maps.Equal(before, m.state.Quota) {
		return
	}
	if err := save(m.o.StateDir, m.state); err != nil {
		m.log.Warn("path counters not saved", "error", err)
	}
}

// news lists the paths whose state is another than last told, and tells
// whether Pairs would answer otherwise than last time.
func (m *Manager) news() (told []Path, pairs bool) {
	for _, p := range m.paths {
		if p.state != p.told.State || p.stripped != p.told.Stripped || p.w.Mode != p.told.Mode || p.local4 != p.told.Local4 || p.local6 != p.told.Local6 {
			p.told = p.snapshot(m)
			told = append(told, p.told)
			m.log.Info("path", "path", p.w.Name, "state", p.state.String(), "reason", p.reason, "local4", p.local4.String(), "local6", p.local6.String())
		}
	}
	if k := m.pairsKey(); k != m.pairs {
		m.pairs, pairs = k, true
	}
	return told, pairs
}

func (m *Manager) pairsKey() string {
	var s []byte
	for _, peer := range m.o.Peers {
		s = fmt.Append(s, peer.Name, m.pairsOf(peer.Name), "\n")
	}
	return string(s)
}

// Update changes the wanted paths, the peers and their addresses. Log and
// StateDir stay as they were; options that New would refuse change nothing
// but the log.
func (m *Manager) Update(o Options) {
	if err := o.check(); err != nil {
		m.log.Error("paths stay as they were", "error", err)
		return
	}
	m.mu.Lock()
	o.StateDir = m.o.StateDir
	m.apply(o, time.Now())
	m.mu.Unlock()
	m.kick()
}

// Paths lists the wanted paths and their state, in the order wanted.
func (m *Manager) Paths() []Path {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Path
	for _, p := range m.paths {
		out = append(out, p.snapshot(m))
	}
	return out
}

func (p *path) snapshot(m *Manager) Path {
	n := 0
	for _, c := range m.conns {
		for _, s := range c.subs {
			if s.path == p && s.live() {
				n++
			}
		}
	}
	return Path{
		Name: p.w.Name, Device: p.w.Device, IfIndex: p.ifindex, Local4: p.local4, Local6: p.local6,
		Mode: p.w.Mode, Weight: p.w.Weight, Quota: p.w.Quota, Used: p.used, State: p.state, Reason: p.reason, Since: p.since,
		Stripped: p.stripped, RTT: p.rtt, MinRTT: p.minRTT, TxBytes: p.tx, RxBytes: p.rx, Subflows: n,
		SentBytes: p.sent, ReceivedBytes: p.received, RetransBytes: p.retrans, Joins: p.joins, Failed: p.failed, Lost: p.lost,
	}
}

// OnChange calls f whenever a path goes up or down, dies or comes back, gets
// another address or mode, is found stripped or clean, or its quota is spent
// or renewed. f must not block. Set it before Run.
func (m *Manager) OnChange(f func(Path)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onChange = append(m.onChange, f)
}

// OnPairs calls f whenever Pairs gives another answer. f must not block. Set
// it before Run.
func (m *Manager) OnPairs(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onPairs = append(m.onPairs, f)
}

// SetCongestion makes subflows that are connected over the path from now on
// use a congestion control of the kernel, by the congctl metric of the path's
// routes; "" = the namespace's default. Subflows that the other end has
// connected follow it only where our answers go by the path's default route.
func (m *Manager) SetCongestion(pathName, algorithm string) {
	m.mu.Lock()
	for _, p := range m.paths {
		if p.w.Name == pathName && p.congestion != algorithm {
			p.congestion, m.look = algorithm, true
		}
	}
	m.mu.Unlock()
	m.kick()
}

// Name is the name of the path that has a local address, or "".
func (m *Manager) Name(local netip.Addr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.owner[local.Unmap()]; p != nil {
		return p.w.Name
	}
	return ""
}

// Addrs lists the paths' own addresses, in the order wanted: what the other
// end should know to connect to all paths.
func (m *Manager) Addrs() []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.Addr
	for _, p := range m.paths {
		if p.w.Mode == Off {
			continue
		}
		for _, a := range []netip.Addr{p.local4, p.local6} {
			if a.IsValid() {
				out = append(out, a)
			}
		}
	}
	return out
}

// rank orders paths for a new trunk: lower is better.
func (m *Manager) rank(l *leg) int {
	r := 0
	switch l.p.w.Mode {
	case Master:
	case On:
		r = 1
	case Backup:
		r = 2
	case Handover:
		r = 3
	}
	if l.p.stripped {
		r += 4
	}
	if l.dead {
		r += 8
	}
	return r
}

// Pick chooses the path for the first subflow of a new trunk: a master that is
// up, else one of those that are on, in turn by weight, leaving out the ones
// that are far slower than the fastest. Paths that are backup, handover,
// stripped or dead come last, in that order. Without any path wanted the
// peer's first address alone is returned: the kernel's routes decide.
//
// Dial it as an AF_INET6 socket that is not V6ONLY (IPv4 as ::ffff:a.b.c.d),
// bound to local: the kernel joins subflows of the other address family only
// to such a connection. Binding to the device is not needed.
func (m *Manager) Pick(peer string) (local netip.Addr, device string, remote netip.AddrPort, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.o.Peers, func(p Peer) bool { return p.Name == peer })
	if i < 0 {
		return local, "", remote, fmt.Errorf("pick a path to peer %s: there is no such peer", peer)
	}
	if len(m.paths) == 0 {
		if len(m.o.Peers[i].Addrs) == 0 {
			return local, "", remote, fmt.Errorf("pick a path to peer %s: it has no address", peer)
		}
		return local, "", netip.AddrPortFrom(m.o.Peers[i].Addrs[0], m.o.Peers[i].Port), nil
	}
	best := 1 << 30
	var ls []*leg
	for _, p := range m.paths {
		l := m.legs[legKey{peer, p.w.Name}]
		if l == nil || !l.remote.IsValid() || p.state == Down || p.state == Spent {
			continue
		}
		r := m.rank(l)
		if r < best {
			best, ls = r, nil
		}
		if r == best {
			ls = append(ls, l)
		}
	}
	if len(ls) == 0 {
		return local, "", remote, fmt.Errorf("pick a path to peer %s: no path is up that reaches it; see `mptcp status`", peer)
	}
	fast := time.Duration(1 << 62)
	for _, l := range ls {
		if r := l.roundTrip(); r > 0 {
			fast = min(fast, r)
		}
	}
	total := 0
	fit := func(l *leg) bool { return fast == 1<<62 || l.roundTrip() <= 2*fast+20*time.Millisecond }
	for _, l := range ls {
		if fit(l) {
			total += l.p.w.Weight
		}
	}
	m.turn++
	k := m.turn % total
	for _, l := range ls {
		if !fit(l) {
			continue
		}
		if k -= l.p.w.Weight; k < 0 {
			return l.p.local(l.remote), l.p.w.Device, netip.AddrPortFrom(l.remote, l.port), nil
		}
	}
	return local, "", remote, fmt.Errorf("pick a path to peer %s: BUG: weights do not add up", peer)
}

// roundTrip is what is known of the leg's round-trip time; 0 = nothing.
func (l *leg) roundTrip() time.Duration {
	if l.rtt > 0 {
		return l.rtt
	}
	return l.p.minRTT
}

// Pairs lists the ways to reach peer, one for each path that has one, paths
// that are down or spent left out: what datagram sessions use (also to find
// out whether a dead path works again).
func (m *Manager) Pairs(peer string) []Pair {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pairsOf(peer)
}

func (m *Manager) pairsOf(peer string) []Pair {
	var out []Pair
	for _, p := range m.paths {
		l := m.legs[legKey{peer, p.w.Name}]
		if l == nil || !l.remote.IsValid() || p.state == Down || p.state == Spent {
			continue
		}
		st := p.state
		if l.dead {
			st = Dead
		}
		out = append(out, Pair{Path: p.w.Name, Device: p.w.Device, Local: p.local(l.remote), Remote: netip.AddrPortFrom(l.remote, l.port),
			Mode: p.w.Mode, Weight: p.w.Weight, Backup: p.w.Mode == Backup || p.w.Mode == Handover, State: st})
	}
	return out
}
