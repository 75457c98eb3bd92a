package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/uci"
	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/dhcp4"
	"weft/services/dhcp/internal/dhcp6"
	"weft/services/dhcp/internal/dnsd"
	"weft/services/dhcp/internal/lease"
	"weft/services/dhcp/internal/mdns"
	"weft/services/dhcp/internal/netif"
	"weft/services/dhcp/internal/ra"
)

// manager owns what is open where; only its loop touches it.
type manager struct {
	log    *slog.Logger
	source *source
	client *bus.Client
	status func(string)
	// tell is called for each lease of IPv4 that comes, is renewed or goes.
	tell func(dhcp4.Action, *lease.V4)

	leaseFile string // instead of the configured one
	etcHosts  string
	hostsDir  string
	ethers    string

	cfg     *config.Config
	network *uci.Package
	extra   []*config.Host // by add_lease
	state   *netif.State
	faults  []string
	said    map[string]string // failures, as last logged
	text    string

	store  *lease.Store
	d4     *dhcp4.Server
	d6     *dhcp6.Server
	dns    *dnsd.Resolver
	ra     *ra.Sender
	ports4 map[string]*dhcp4.Port
	ports6 map[string]port6
	dnsOn  map[string]*dnsd.Listener
	dnsAt  int // the port they are on
	mdnsOn map[string]responder

	calls chan func()
	news  chan struct{}
}

type port6 struct {
	*dhcp6.Port
	index int
}

type responder struct {
	*mdns.Responder
	index int
}

func newManager(log *slog.Logger, src *source, client *bus.Client) *manager {
	return &manager{
		log: log, source: src, client: client, status: func(string) {}, tell: func(dhcp4.Action, *lease.V4) {},
		said: map[string]string{}, ports4: map[string]*dhcp4.Port{}, ports6: map[string]port6{},
		dnsOn: map[string]*dnsd.Listener{}, mdnsOn: map[string]responder{},
		calls: make(chan func()), news: make(chan struct{}, 1),
	}
}

// look asks the loop to look at the interfaces; it does not block.
func (m *manager) look() {
	select {
	case m.news <- struct{}{}:
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

const (
	// busGrace is the time for the bus to answer at the start.
	busGrace = 500 * time.Millisecond
	// settle is how long news is collected before it is acted on.
	settle = 100 * time.Millisecond
	// lookEvery is when to look at the interfaces without news: soon while
	// something is missing, else for leases that have run out.
	lookSoon  = 2 * time.Second
	lookEvery = 20 * time.Second
)

// loop runs until ctx ends.
func (m *manager) loop(ctx context.Context, reload <-chan struct{}, reloading, ready func()) error {
	if err := m.load(ctx); err != nil {
		return err
	}
	path := m.cfg.DNS.LeaseFile
	if m.leaseFile != "" {
		path = m.leaseFile
	}
	var err error
	if m.store, err = lease.Open(path, time.Now()); err != nil {
		m.log.Warn("some leases are not known any more", "error", err)
	}
	stopStore, stored := make(chan struct{}), make(chan struct{})
	go func() { defer close(stored); m.store.Run(stopStore) }()
	m.d4 = &dhcp4.Server{Log: m.log, Store: m.store, Changed: func(a dhcp4.Action, l *lease.V4) { m.tell(a, l) }}
	m.d6 = &dhcp6.Server{Log: m.log, Store: m.store, Route: m.route}
	m.dns = dnsd.New(m.log)
	defer func() {
		m.close()
		close(stopStore)
		<-stored
	}()
	cancel, serr := m.client.Subscribe("network.interface", func(string, bus.Table) { m.look() })
	if serr != nil {
		m.log.Debug("changes of interfaces are learnt from the kernel alone", "error", serr)
	} else {
		defer cancel()
	}
	// The bus is there already on a device; do not start with half the truth.
	select {
	case <-m.client.Connected():
	case <-time.After(busGrace):
	case <-ctx.Done():
		return nil
	}
	m.refresh(ctx)
	m.apply()
	m.report()
	ready()
	tick := time.NewTimer(m.next())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-m.calls:
			f()
			continue
		case <-reload:
			reloading()
			if err := m.load(ctx); err != nil {
				m.log.Error("the configuration cannot be read, the last good one stays in force", "error", err)
			}
			m.refresh(ctx)
			m.apply()
			ready()
		case <-m.news:
			if !pause(ctx, settle) {
				return nil
			}
			select {
			case <-m.news:
			default:
			}
			if m.refresh(ctx) {
				m.apply()
			}
		case <-tick.C:
			m.expire()
			if m.refresh(ctx) || len(m.said) > 0 {
				m.apply()
			}
		}
		m.report()
		tick.Reset(m.next())
	}
}

func (m *manager) next() time.Duration {
	if m.state == nil || !m.state.Bus || len(m.said) > 0 {
		return lookSoon
	}
	return lookEvery
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// load reads the configuration. What is faulty is told once and left out.
func (m *manager) load(ctx context.Context) error {
	p, err := m.source.load(ctx, "dhcp")
	if errors.Is(err, uci.ErrNotFound) && p == nil && !errors.Is(err, unix.EACCES) {
		p = &uci.Package{Name: "dhcp"} // nothing to serve, but names to resolve
		err = nil
	}
	if p == nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	network, nerr := m.source.load(ctx, "network")
	if nerr != nil && network == nil {
		m.log.Debug("the network's configuration is not known", "error", nerr)
	}
	cfg := config.New(p, network)
	var faults []string
	if err != nil {
		faults = append(faults, strings.Split(err.Error(), "\n")...)
	}
	for _, pr := range cfg.Problems {
		faults = append(faults, pr.Error())
	}
	for _, f := range faults {
		if !slices.Contains(m.faults, f) {
			m.log.Warn("fault in the configuration, it is left out", "fault", f)
		}
	}
	m.faults, m.cfg, m.network = faults, cfg, network
	if m.store != nil && m.leaseFile == "" {
		m.store.Move(cfg.DNS.LeaseFile)
	}
	return nil
}

// refresh looks at the interfaces and tells whether they differ from before.
func (m *manager) refresh(ctx context.Context) bool {
	now := time.Now()
	state := &netif.State{}
	select {
	case <-m.client.Connected():
		ctx, cancel := context.WithTimeout(ctx, busWait)
		t, err := m.client.Call(ctx, "network.interface", "dump", nil)
		cancel()
		if err == nil {
			state = netif.FromDump(t, now)
		} else if m.state != nil && m.state.Bus && !errors.Is(err, bus.StatusNotFound) {
			return false // it will answer again; what it said last holds
		}
	default:
	}
	var more []netif.Interface
	if !state.Bus {
		more = fallback(m.network, m.cfg.Pools)
	}
	if err := state.Complete(more, now); err != nil {
		m.fail("interfaces", err)
		return false
	}
	m.fail("interfaces", nil)
	if state.Equal(m.state) {
		return false
	}
	m.state = state
	return true
}

// fail notes that something does not work, or works again (nil), and says so
// once.
func (m *manager) fail(what string, err error) {
	if err == nil {
		if _, was := m.said[what]; was {
			delete(m.said, what)
			m.log.Info("works again", "what", what)
		}
		return
	}
	if m.said[what] != err.Error() {
		m.said[what] = err.Error()
		m.log.Error("cannot serve, trying again", "what", what, "error", err)
	}
}

// isLAN tells whether names are answered on an interface.
func (m *manager) isLAN(i *netif.Interface) bool {
	d := &m.cfg.DNS
	named := func(list []string) bool { return slices.Contains(list, i.Name) || slices.Contains(list, i.Device) }
	switch {
	case i.Device == "lo", named(d.NotInterfaces):
		return false
	case len(d.Interfaces) > 0:
		return named(d.Interfaces)
	case !d.LocalService:
		return true
	}
	for _, p := range m.cfg.Pools {
		if p.Interface == i.Name && p.Ignore {
			return false
		}
	}
	return !i.Uplink
}

// apply makes everything what configuration and interfaces ask for.
func (m *manager) apply() {
	cfg, st := m.cfg, m.state
	if st == nil {
		return
	}
	var pools []dhcp4.Pool
	var links []dhcp6.Link
	adverts, names := map[int]ra.Settings{}, map[int]string{}
	want4, want6 := map[string]*netif.Interface{}, map[string]*netif.Interface{}
	for _, p := range cfg.Pools {
		i := st.Get(p.Interface)
		if p.Ignore || i == nil {
			continue
		}
		if p.V4.Serves() && i.MAC != nil {
			for _, a := range i.V4 {
				if pool, ok := dhcp4.NewPool(p, i.Device, a); ok {
					pool.NoSelf = cfg.DNS.Port != config.DefaultPort
					pool.Domain = p.Domain
					if pool.Domain == "" {
						pool.Domain = cfg.DNS.Domain
					}
					pools = append(pools, pool)
					want4[i.Device] = i
				}
			}
		}
		if !i.LinkLocal.IsValid() {
			continue
		}
		dns, search := m.dns6(p, i), p.Domains
		if len(search) == 0 && cfg.DNS.Domain != "" {
			search = []string{cfg.DNS.Domain}
		}
		if p.RA.Serves() {
			adverts[i.Index] = ra.Settings{Pool: p, MAC: i.MAC, MTU: i.MTU, Source: i.LinkLocal, Prefixes: i.Prefixes(), DNS: dns, Search: search, Default6: st.Default6}
			names[i.Index] = i.Device
		}
		if p.V6.Serves() {
			duid := cfg.ServerDUID
			if duid == nil {
				duid = append([]byte{0, 3, 0, 1}, i.MAC...) // DUID-LL, as odhcpd
			}
			links = append(links, dhcp6.Link{Device: i.Device, Index: i.Index, Pool: p, Prefixes: i.Prefixes(), DNS: dns, Search: search, DUID: duid})
			m.store.SetServerDUID(duid)
			want6[i.Device] = i
		}
	}
	var ethers []dhcp4.Ether
	if cfg.DNS.ReadEthers && m.ethers != "" {
		var err error
		ethers, err = readEthersFile(m.ethers)
		m.fail("ethers", err)
	}
	hosts := append(slices.Clip(cfg.Hosts), m.extra...)
	m.d4.Apply(&dhcp4.Settings{
		Pools: pools, Hosts: hosts, Ethers: ethers, Tags: cfg.Tags, Matches: cfg.Matches, Boots: cfg.Boots,
		Authoritative: cfg.DNS.Authoritative, Sequential: cfg.DNS.SequentialIP, NoProbe: cfg.DNS.NoPing, LeaseMax: cfg.DNS.LeaseMax,
		Quiet: cfg.DNS.QuietDHCP, BootFile: cfg.DNS.BootFile, BootServer: cfg.DNS.TFTPServer,
	})
	m.d6.Apply(dhcp6.Settings{Links: links, Hosts: hosts, LeaseMax: cfg.DNS.LeaseMax})
	m.applyPorts(want4, want6)
	m.applyRA(names, adverts)
	m.applyDNS()
}

// dns6 are the resolvers for hosts that speak IPv6: configured, or this host by
// the address that lasts longest.
func (m *manager) dns6(p *config.Pool, i *netif.Interface) []netip.Addr {
	if len(p.DNS6) > 0 {
		return p.DNS6
	}
	if m.cfg.DNS.Port != config.DefaultPort || !m.isLAN(i) {
		return nil
	}
	var global netip.Addr
	for _, q := range i.Prefixes() {
		if !q.Local.IsValid() || !q.Preferred.IsZero() && !q.Preferred.After(time.Now()) {
			continue
		}
		if q.Local.IsPrivate() {
			return []netip.Addr{q.Local}
		}
		if !global.IsValid() {
			global = q.Local
		}
	}
	if global.IsValid() {
		return []netip.Addr{global}
	}
	return []netip.Addr{i.LinkLocal}
}

func (m *manager) applyPorts(want4, want6 map[string]*netif.Interface) {
	for dev, p := range m.ports4 {
		if i := want4[dev]; i == nil || i.Index != p.Index || !bytes.Equal(i.MAC, p.MAC) {
			p.Close()
			delete(m.ports4, dev)
			m.d4.SetPort(dev, nil)
		}
	}
	for dev, i := range want4 {
		if m.ports4[dev] != nil {
			continue
		}
		p, err := dhcp4.Open(m.log, m.d4, dev, i.Index, i.MAC)
		if err == nil {
			m.ports4[dev] = p
			m.d4.SetPort(dev, p)
		}
		m.fail("DHCP on "+dev, err)
	}
	for dev, p := range m.ports6 {
		if i := want6[dev]; i == nil || i.Index != p.index {
			p.Close()
			delete(m.ports6, dev)
		}
	}
	for dev, i := range want6 {
		if _, open := m.ports6[dev]; open {
			continue
		}
		p, err := dhcp6.Open(m.log, m.d6, dev, i.Index)
		if err == nil {
			m.ports6[dev] = port6{p, i.Index}
		}
		m.fail("DHCPv6 on "+dev, err)
	}
	m.forget("DHCP on ", want4)
	m.forget("DHCPv6 on ", want6)
}

// forget drops failures about devices that are not wanted any more.
func (m *manager) forget(prefix string, want map[string]*netif.Interface) {
	for k := range m.said {
		if dev, ok := strings.CutPrefix(k, prefix); ok && want[dev] == nil {
			delete(m.said, k)
		}
	}
}

func (m *manager) applyRA(names map[int]string, adverts map[int]ra.Settings) {
	if m.ra == nil && len(adverts) > 0 {
		s, err := ra.Open(m.log)
		m.fail("router advertisements", err)
		m.ra = s
		if err != nil {
			m.ra = nil
			return
		}
	}
	if m.ra != nil {
		m.ra.Apply(names, adverts)
	}
}

func (m *manager) applyDNS() {
	d := m.cfg.DNS
	src := dnsd.Sources{
		Dynamic: m.names, Generation: m.store.Generation, OwnName: dnsd.OwnName(),
		HostsDir: m.hostsDir, EtcHosts: m.etcHosts, Nets: map[string][]netip.Prefix{},
	}
	want := map[string]*netif.Interface{}
	access := map[string]dnsd.Access{"lo": {Any: true}}
	mnames := map[string][]netip.Addr{}
	for _, i := range m.state.Interfaces {
		if !m.isLAN(i) {
			continue
		}
		want[i.Device] = i
		a := access[i.Device]
		a.Any = !d.LocalService
		a.Nets = append(a.Nets, i.V4...)
		for _, p := range i.Prefixes() {
			a.Nets = append(a.Nets, p.Masked())
		}
		access[i.Device] = a
		src.Nets[i.Device] = append(src.Nets[i.Device], i.V4...)
		for _, addr := range i.Addrs() {
			if !slices.Contains(src.OwnAddrs, addr) {
				src.OwnAddrs = append(src.OwnAddrs, addr)
			}
			mnames[i.Device] = append(mnames[i.Device], addr)
		}
		if i.LinkLocal.IsValid() {
			mnames[i.Device] = append(mnames[i.Device], i.LinkLocal)
		}
	}
	m.fail("hosts files", m.dns.Apply(d, m.cfg.Records, src))
	if d.Port == 0 {
		access = nil
	}
	for dev, l := range m.dnsOn {
		if _, ok := access[dev]; !ok || m.dnsAt != d.Port {
			l.Close()
			delete(m.dnsOn, dev)
		}
	}
	m.dnsAt = d.Port
	for dev, a := range access {
		if l := m.dnsOn[dev]; l != nil {
			l.SetAccess(a)
			continue
		}
		l, err := m.dns.Listen(dev, d.Port, a)
		if err == nil {
			m.dnsOn[dev] = l
		}
		m.fail("DNS on "+dev, err)
	}
	for k := range m.said {
		if dev, ok := strings.CutPrefix(k, "DNS on "); ok {
			if _, wanted := access[dev]; !wanted {
				delete(m.said, k)
			}
		}
	}
	m.applyMDNS(want, mnames, src.OwnName)
}

func (m *manager) applyMDNS(want map[string]*netif.Interface, addrs map[string][]netip.Addr, name string) {
	for dev, r := range m.mdnsOn {
		if i := want[dev]; i == nil || i.Index != r.index {
			r.Close()
			delete(m.mdnsOn, dev)
		}
	}
	if !config.ValidName(name) || strings.Contains(name, ".") {
		return
	}
	for dev, i := range want {
		if r, ok := m.mdnsOn[dev]; ok {
			r.Set(name, addrs[dev])
			continue
		}
		r, err := mdns.Open(m.log, dev, i.Index, name, addrs[dev])
		if err == nil {
			m.mdnsOn[dev] = responder{r, i.Index}
		}
		m.fail("mDNS on "+dev, err)
	}
	m.forget("mDNS on ", want)
}

// names are those of leases.
func (m *manager) names() []dnsd.Host {
	var out []dnsd.Host
	now := time.Now()
	for _, l := range m.store.All4() {
		if l.Name != "" && (l.Expires.IsZero() || l.Expires.After(now)) {
			out = append(out, dnsd.Host{Name: l.Name, Addr: l.Addr})
		}
	}
	for _, l := range m.store.All6() {
		if l.Name == "" || l.PD || !l.Expires.IsZero() && !l.Expires.After(now) {
			continue
		}
		for _, a := range l.Addrs {
			out = append(out, dnsd.Host{Name: l.Name, Addr: a.Addr()})
		}
	}
	return out
}

// expire drops leases that ran out.
func (m *manager) expire() {
	v4, v6 := m.store.Prune(time.Now())
	for _, l := range v4 {
		m.tell(dhcp4.Removed, l)
	}
	m.d6.Expired(v6)
	if len(v4)+len(v6) > 0 {
		m.store.Commit(func(err error) {
			if err != nil {
				m.log.Error("the lease file was not written", "error", err)
			}
		})
	}
}

// routeProto marks the routes of delegated prefixes. The number is one of those
// that rtnetlink(7) leaves to users.
const routeProto = 158

// route lets a delegated prefix lead to its router, or no longer.
func (m *manager) route(p netip.Prefix, via netip.Addr, device string) {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return // gone, and its routes with it
	}
	r := &netlink.Route{
		LinkIndex: l.Attrs().Index, Protocol: routeProto, Priority: 1024,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)},
	}
	if !via.IsValid() {
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			m.log.Warn("the route of a delegated prefix was not removed", "prefix", p, "device", device, "error", err)
		}
		return
	}
	r.Gw = via.AsSlice()
	if err := netlink.RouteReplace(r); err != nil {
		m.log.Warn("a delegated prefix has no route", "prefix", p, "via", via, "device", device, "error", err)
	}
}

// report sets the line that `service status` shows.
func (m *manager) report() {
	text := fmt.Sprintf("DHCP on %d, DNS on %d devices, %d leases", len(m.ports4), len(m.dnsOn), m.store.Len4()+m.store.Len6())
	if n := len(m.said) + len(m.faults); n > 0 {
		text += fmt.Sprintf(", %d faults (see the log)", n)
	}
	if text != m.text {
		m.text = text
		m.status(text)
	}
}

// close ends everything.
func (m *manager) close() {
	if m.ra != nil {
		m.ra.Close()
	}
	for _, r := range m.mdnsOn {
		r.Close()
	}
	for dev, p := range m.ports4 {
		m.d4.SetPort(dev, nil)
		p.Close()
	}
	for _, p := range m.ports6 {
		p.Close()
	}
	for _, l := range m.dnsOn {
		l.Close()
	}
	m.dns.Close()
}
