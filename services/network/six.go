package network

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// six is proto dhcpv6 at work: what routers say and what a DHCPv6 server gives.
type six struct {
	index int // of the link it runs on
	mac   net.HardwareAddr
	stop  context.CancelFunc
	done  chan struct{}
	kick  chan struct{}
	dhcp  *client6
	held  *lease6 // at the end; valid after done

	view  routerView
	lease *lease6
}

// lookSix starts and stops the talk to routers and DHCPv6 servers as needed.
func (m *manager) lookSix(ctx context.Context, name string, s *state, ls links) {
	l, there := ls[s.device]
	run := s.cfg.Proto == "dhcpv6" && s.wanted() && s.available && there && ctx.Err() == nil
	if s.six != nil && (!run || s.six.index != l.Attrs().Index) {
		m.stopSix(s, s.available && there && s.six.index == l.Attrs().Index)
	}
	if !run || s.six != nil {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	x := &six{index: l.Attrs().Index, mac: l.Attrs().HardwareAddr, stop: stop, done: make(chan struct{}), kick: make(chan struct{}, 1)}
	s.six = x
	link := s.device
	log := m.log.With("interface", name, "device", link)
	duid := s.cfg.DHCPv6.DUID
	if duid == nil {
		duid = m.cfg.DUID
	}
	if duid == nil {
		d := dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: x.mac}
		duid = d.ToBytes()
	}
	x.dhcp = &client6{
		open: func(ctx context.Context) (transport6, error) { return openUDP6(ctx, link) },
		mac:  x.mac, duid: duid, iaid: iaidOf(name), opts: s.cfg.DHCPv6, log: log, kick: x.kick,
		lease: func(l *lease6) {
			_ = m.do(ctx, func() {
				if s.six != x {
					return // stopped meanwhile
				}
				if l != nil && (x.lease == nil || !slices.EqualFunc(l.prefixes, x.lease.prefixes, func(a, b timedPrefix) bool { return a.Prefix == b.Prefix })) {
					log.Info("got a DHCPv6 lease", "prefixes", names(l.prefixes), "addresses", names(l.addrs))
				}
				x.lease = l
			})
		},
	}
	var wg sync.WaitGroup
	wg.Go(func() { x.held = x.dhcp.run(ctx) })
	wg.Go(func() {
		listenRouters(ctx, link, log, func(a *advert) {
			_ = m.do(ctx, func() {
				if s.six != x {
					return
				}
				news := len(x.view.routers) == 0 && a.lifetime > 0
				x.view.add(a, time.Now())
				if news {
					log.Info("heard a router", "router", a.router)
					if x.lease == nil {
						poke(x.kick) // where a router is a server may be
					}
				}
			})
		})
	})
	go func() { wg.Wait(); close(x.done) }()
}

// stopSix ends it; with release what was given is given back.
func (m *manager) stopSix(s *state, release bool) {
	x := s.six
	if x == nil {
		return
	}
	x.stop()
	<-x.done // it does not wait for the loop once it is stopped
	s.six = nil
	if x.held != nil && release && s.cfg.DHCPv6.Release {
		if err := x.dhcp.release(x.held); err != nil {
			m.log.Debug("DHCPv6 lease was not given back", "device", s.device, "error", err)
		}
	}
}

func names(ps []timedPrefix) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

// ready tells whether there is enough to be up.
func (x *six) ready(o DHCPv6Options, now time.Time) bool {
	if x == nil {
		return false
	}
	alive := func(ps []timedPrefix) bool {
		return slices.ContainsFunc(ps, func(p timedPrefix) bool { return !over(p.Valid, now) })
	}
	addr := x.lease != nil && alive(x.lease.addrs)
	prefix := x.lease != nil && alive(x.lease.prefixes)
	if o.Address == "force" && !addr || o.ForcePrefix && !prefix {
		return false
	}
	if addr || prefix {
		return true
	}
	if !o.SLAACOnly {
		return false
	}
	for _, e := range x.view.prefixes {
		if e.auto && !over(e.Valid, now) {
			return true
		}
	}
	return false
}

// sysctls are the settings of the link that go with it. The kernel's own
// handling of advertisements is off: it knows nothing of several uplinks.
func (x *six) sysctls(mtu int) []sysctl {
	out := []sysctl{{"ipv6", "conf", "accept_ra", "0"}}
	if x == nil {
		return out
	}
	if n := x.view.mtu; n >= 1280 && (mtu == 0 && n <= 1500 || n <= mtu) {
		out = append(out, sysctl{"ipv6", "conf", "mtu", strconv.Itoa(n)})
	}
	if n := x.view.hopLimit; n >= 32 { // less would cut us off (RFC 8504, 5.4 names the attack)
		out = append(out, sysctl{"ipv6", "conf", "hop_limit", strconv.Itoa(n)})
	}
	return out
}

// ends are the times at which the view of the routers changes by itself.
func (x *six) ends() []time.Time {
	var out []time.Time
	for _, e := range x.view.routers {
		out = append(out, e.until)
	}
	for _, t := range x.view.dns {
		out = append(out, t)
	}
	for _, t := range x.view.search {
		out = append(out, t)
	}
	return out
}

// metricRA is that of default routes from advertisements, as netifd has it;
// routers of high preference have less, of low preference more.
const metricRA = 512

func metricOf(i *Interface, pref int8) int {
	if i.Metric != 0 {
		return i.Metric
	}
	return metricRA - int(pref)*128
}

// content adds what routers and the server gave.
func (x *six) content(c *content, i *Interface, now time.Time) {
	o := i.DHCPv6
	x.view.expire(now)
	var sources []timedPrefix // what packets may come from that leave here
	var leased []timedPrefix
	if x.lease != nil {
		leased = slices.DeleteFunc(slices.Clone(x.lease.addrs), func(p timedPrefix) bool { return over(p.Valid, now) })
		for _, p := range x.lease.prefixes {
			if !over(p.Valid, now) && !slices.ContainsFunc(c.prefixes, func(q timedPrefix) bool { return q.Prefix == p.Prefix }) {
				c.prefixes = append(c.prefixes, p)
			}
		}
	}
	for _, p := range sortedBy(x.view.prefixes, comparePrefix) {
		e := x.view.prefixes[p]
		if e.auto {
			if a, ok := ownAddress(p, o.IfaceID, x.mac); ok {
				bits := 128
				if e.onLink {
					bits = p.Bits()
				}
				c.addrs = append(c.addrs, timedPrefix{netip.PrefixFrom(a, bits), e.lifetime})
				sources = append(sources, timedPrefix{p, e.lifetime})
				continue
			}
		}
		if e.onLink {
			c.routes = append(c.routes, Route{Dest: p, Metric: 256, Valid: e.Valid}) // the kernel's own metric for links
		}
	}
	for _, p := range leased {
		c.addrs = append(c.addrs, p)
		if !slices.ContainsFunc(sources, func(q timedPrefix) bool { return q.Contains(p.Addr()) }) {
			sources = append(sources, p)
		}
	}
	sources = append(sources, c.prefixes...)
	byRoute := func(a, b routeKey) int { return cmp.Or(comparePrefix(a.dest, b.dest), a.via.Compare(b.via)) }
	for _, k := range sortedBy(x.view.routes, byRoute) {
		e := x.view.routes[k]
		if k.dest.Bits() > 0 {
			c.routes = append(c.routes, Route{Dest: k.dest, Via: k.via, Metric: metricOf(i, e.pref), Valid: e.until})
		}
	}
	if o.DefaultRoute {
		for _, via := range sortedBy(x.view.routers, netip.Addr.Compare) {
			e := x.view.routers[via]
			r := Route{Dest: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: via, Metric: metricOf(i, e.pref), Valid: e.until}
			if !o.SourceFilter {
				c.routes = append(c.routes, r)
				continue
			}
			for _, from := range sources {
				r.From = from.Masked()
				c.routes = append(c.routes, r)
			}
		}
	}
	if !o.PeerDNS {
		return
	}
	add := func(a netip.Addr) {
		if !slices.Contains(c.servers, a) && !a.IsLinkLocalUnicast() { // the resolver file knows no links
			c.servers = append(c.servers, a)
		}
	}
	name := func(n string) {
		if !slices.Contains(c.search, n) {
			c.search = append(c.search, n)
		}
	}
	if x.lease != nil {
		for _, a := range x.lease.dns {
			add(a)
		}
		for _, n := range x.lease.search {
			name(n)
		}
	}
	for _, a := range x.view.order {
		add(a)
	}
	for _, n := range x.view.names {
		name(n)
	}
}
