package network

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// content is what an interface has when it is up, as others want to know it.
type content struct {
	device   string
	addrs    []timedPrefix
	assigned []assignment // parts of the prefixes of others
	prefixes []timedPrefix
	routes   []Route
	servers  []netip.Addr
	search   []string
}

// own are all addresses of the interface.
func (c content) own() []timedPrefix {
	out := slices.Clone(c.addrs)
	for _, a := range c.assigned {
		out = append(out, timedPrefix{a.local(), a.lifetime})
	}
	return out
}

// timeless is the same without all lifetimes.
func (c content) timeless() content {
	c.addrs, c.prefixes, c.assigned, c.routes = slices.Clone(c.addrs), slices.Clone(c.prefixes), slices.Clone(c.assigned), slices.Clone(c.routes)
	for i := range c.addrs {
		c.addrs[i].lifetime = lifetime{}
	}
	for i := range c.prefixes {
		c.prefixes[i].lifetime = lifetime{}
	}
	for i := range c.assigned {
		c.assigned[i].lifetime = lifetime{}
	}
	for i := range c.routes {
		c.routes[i].Valid = time.Time{}
	}
	return c
}

// ends are the times at which something of it changes by itself.
func (c content) ends() []time.Time {
	var out []time.Time
	for _, p := range slices.Concat(c.own(), c.prefixes) {
		out = append(out, p.Preferred, p.Valid)
	}
	for _, r := range c.routes {
		out = append(out, r.Valid)
	}
	return out
}

// ready tells whether an interface has got from others what it needs to be up.
func (s *state) ready() bool {
	switch s.cfg.Proto {
	case "dhcp":
		return s.lease != nil
	case "dhcpv6":
		return s.six.ready(s.cfg.DHCPv6, time.Now())
	}
	return true
}

// content is what an interface has when it is up.
func (s *state) content(now time.Time) content {
	i := s.cfg
	c := content{device: s.device, servers: slices.Clone(i.DNS), search: slices.Clone(i.DNSSearch), assigned: s.parts}
	for _, a := range i.Addrs {
		c.addrs = append(c.addrs, timedPrefix{Prefix: a})
	}
	for _, p := range i.Prefixes {
		c.prefixes = append(c.prefixes, timedPrefix{Prefix: p})
	}
	switch {
	case i.Proto == "static":
		for _, gw := range i.Gateways {
			all := netip.IPv4Unspecified()
			if gw.Is6() {
				all = netip.IPv6Unspecified()
			}
			c.routes = append(c.routes, Route{Dest: netip.PrefixFrom(all, 0), Via: gw, Metric: i.Metric, OnLink: true})
		}
	case i.Proto == "dhcp" && s.lease != nil:
		c.addrs = []timedPrefix{{Prefix: s.lease.Addr}}
		c.routes = s.lease.routes(i.DHCP, i.Metric)
		if i.DHCP.PeerDNS {
			c.servers = append(c.servers, s.lease.DNS...)
			if s.lease.Domain != "" {
				c.search = append(c.search, s.lease.Domain)
			}
		}
	case i.Proto == "dhcpv6" && s.six != nil:
		s.six.content(&c, i, now)
	case i.Proto == "wireguard":
		for _, p := range i.WireGuard.Peers {
			for _, n := range p.Allowed {
				if p.Routes {
					c.routes = append(c.routes, Route{Dest: n, Metric: i.Metric})
				}
			}
		}
	}
	for _, r := range i.Routes {
		if !r.deadEnd() && !slices.Contains(c.routes, r) {
			c.routes = append(c.routes, r)
		}
	}
	for n := range c.routes {
		r := &c.routes[n]
		if r.Table != 0 {
			continue
		}
		if r.Dest.Addr().Is4() {
			r.Table = i.Table4
		} else {
			r.Table = i.Table6
		}
	}
	return c
}

// divide gives interfaces their parts of the prefixes that there are.
func (m *manager) divide(ls links) {
	var pools []pool
	if m.cfg.ULA.IsValid() {
		pools = append(pools, pool{timedPrefix{Prefix: m.cfg.ULA}, classLocal})
	}
	var consumers []consumer
	now := time.Now()
	for _, name := range m.order {
		s := m.states[name]
		if !s.wanted() {
			continue
		}
		if s.cfg.Assign.Length > 0 {
			c := consumer{name: name, Assign: s.cfg.Assign}
			if l, ok := ls[s.device]; ok {
				c.mac = l.Attrs().HardwareAddr
			}
			consumers = append(consumers, c)
		}
		if s.available && s.ready() && s.cfg.Delegation {
			for _, p := range s.content(now).prefixes {
				pools = append(pools, pool{p, name})
			}
		}
	}
	m.parts = m.assigner.assign(pools, consumers)
	for _, name := range m.order {
		m.states[name].parts = m.parts[name]
	}
}

// deadEnds are the routes that lead nowhere: those of the configuration, and
// one for each prefix that is divided.
func (m *manager) deadEnds() []Route {
	out := slices.Clone(m.cfg.DeadEnds)
	if m.cfg.ULA.IsValid() {
		out = append(out, unreachable(m.cfg.ULA))
	}
	now := time.Now()
	for _, name := range m.order {
		s := m.states[name]
		if !s.wanted() || !s.available || !s.ready() {
			continue
		}
		for _, p := range s.content(now).prefixes {
			out = append(out, unreachable(p.Prefix))
		}
		for _, r := range s.cfg.Routes {
			if r.deadEnd() {
				out = append(out, r)
			}
		}
	}
	return out
}

// nextExpiry is the time until something changes by itself.
func (m *manager) nextExpiry() time.Duration {
	now := time.Now()
	next := now.Add(time.Hour)
	for _, name := range m.order {
		s := m.states[name]
		ends := s.content(now).ends()
		if s.six != nil {
			ends = append(ends, s.six.ends()...)
		}
		for _, t := range ends {
			if t.After(now) && t.Before(next) {
				next = t
			}
		}
	}
	return next.Sub(now)
}

// Priorities of policy rules. The MPTCP proxy has 40 to 43 and 6240 to 6242, the
// rules of the configuration count from 1; netifd has 10000 for the same.
const (
	prioLinks  = 10000 // from an uplink's address: the main table without default routes
	prioUplink = 10001 // then the uplink's own table
)

// defaults are the default routes of an interface in the main table.
func (c content) defaults(six bool) []Route {
	var out []Route
	for _, r := range c.routes {
		if r.Dest.Bits() == 0 && r.Table == 0 && r.Dest.Addr().Is6() == six {
			out = append(out, r)
		}
	}
	return out
}

// uplinks finds out which interfaces need a table of their own: all that have
// a default route for a family that several have.
func (m *manager) uplinks() {
	now := time.Now()
	var four, six []*state
	for _, name := range m.order {
		s := m.states[name]
		if !s.wanted() || !s.available || !s.ready() {
			continue
		}
		c := s.content(now)
		if len(c.defaults(false)) > 0 {
			four = append(four, s)
		}
		if len(c.defaults(true)) > 0 {
			six = append(six, s)
		}
	}
	need := map[*state]bool{}
	for _, list := range [][]*state{four, six} {
		for _, s := range list {
			need[s] = need[s] || len(list) > 1
		}
	}
	used := map[int]bool{}
	for _, s := range m.states {
		if !need[s] {
			s.table = 0
		}
		used[s.table] = true
	}
	for _, name := range m.order {
		s := m.states[name]
		if !need[s] || s.table != 0 {
			continue
		}
		for t := minTable; t <= maxTable; t++ {
			if !used[t] {
				s.table, used[t] = t, true
				break
			}
		}
	}
}

// tableRoutes are the routes of an interface in tables of its own: the default
// routes of an uplink, and what is on the link for ip4table and ip6table.
func (s *state) tableRoutes(c content) []Route {
	var out []Route
	if s.table != 0 {
		for _, r := range slices.Concat(c.defaults(false), c.defaults(true)) {
			r.Table = s.table
			r.From = netip.Prefix{} // the rule says it already
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	for _, a := range c.own() {
		t := s.cfg.Table6
		if a.Addr().Is4() {
			t = s.cfg.Table4
		}
		if t != 0 && a.Bits() < a.Addr().BitLen() {
			out = append(out, Route{Dest: a.Masked(), Table: t})
		}
	}
	return out
}

// rules are the policy rules that the configuration, the uplinks and the
// interfaces with tables of their own ask for.
func (m *manager) rules(ls links) []rtnl.Rule {
	var out []rtnl.Rule
	for _, r := range m.cfg.Rules {
		ok := true
		for _, name := range []struct {
			iface string
			link  *string
		}{{r.in, &r.In}, {r.out, &r.Out}} {
			if name.iface == "" {
				continue
			}
			// Without the link the rule would be for all links.
			s := m.states[name.iface]
			if s == nil || !s.wanted() || s.device == "" || ls[s.device] == nil {
				ok = false
				continue
			}
			*name.link = s.device
		}
		if ok && !slices.Contains(out, r.Rule) {
			out = append(out, r.Rule)
		}
	}
	now := time.Now()
	for _, name := range m.order {
		s := m.states[name]
		if !s.wanted() || !s.available || !s.ready() {
			continue
		}
		c := s.content(now)
		for _, p := range slices.Concat(c.own(), c.prefixes) {
			from := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
			if slices.Contains(c.prefixes, p) {
				from = p.Masked()
			}
			family, table := uint8(rtnl.V6), s.cfg.Table6
			if from.Addr().Is4() {
				family, table = rtnl.V4, s.cfg.Table4
			}
			if table == 0 && len(c.defaults(family == rtnl.V6)) > 0 {
				table = s.table
			}
			if table == 0 {
				continue
			}
			base := rtnl.Rule{Family: family, From: from, Action: rtnl.ActTable, Suppress: -1, Protocol: protocolStatic}
			local, up := base, base
			local.Priority, local.Table, local.Suppress = prioLinks, unix.RT_TABLE_MAIN, 0
			up.Priority, up.Table = prioUplink, uint32(table)
			for _, r := range []rtnl.Rule{local, up} {
				if !slices.Contains(out, r) {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// hostRoutes adds the routes to the far ends of tunnels, by the way that they
// have without the tunnels.
func (m *manager) hostRoutes(plans map[string]*plan) {
	type hop struct {
		device string
		via    netip.Addr
		bits   int
		metric int
	}
	now := time.Now()
	for _, name := range m.order {
		s := m.states[name]
		if s.tunnel == nil || s.cfg.WireGuard == nil || s.cfg.WireGuard.NoHost {
			continue
		}
		for _, end := range s.tunnel.addrs() {
			var best *hop
			for _, other := range m.order {
				o := m.states[other]
				if o.cfg.Proto == "wireguard" || !o.wanted() || !o.available || !o.ready() {
					continue
				}
				c := o.content(now)
				try := func(n netip.Prefix, via netip.Addr, metric int) {
					if n.Contains(end) && (best == nil || n.Bits() > best.bits || n.Bits() == best.bits && metric < best.metric) {
						best = &hop{o.device, via, n.Bits(), metric}
					}
				}
				for _, a := range c.own() {
					try(a.Masked(), netip.Addr{}, 0)
				}
				for _, r := range c.routes {
					if r.Table == 0 && r.Type == 0 {
						try(r.Dest, r.Via, r.Metric)
					}
				}
			}
			if best == nil || !best.via.IsValid() || plans[best.device] == nil {
				continue // on the link: there is a route already
			}
			r := Route{Dest: netip.PrefixFrom(end, end.BitLen()), Via: best.via, Metric: best.metric, OnLink: true}
			if p := plans[best.device]; !slices.Contains(p.routes, r) {
				p.routes = append(p.routes, r)
			}
		}
	}
}

// poke sends on a channel that holds one message unless one is there.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sortedBy are the keys of a map in an order of their own.
func sortedBy[K comparable, V any](m map[K]V, by func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), by)
}

// ownAddress is an address in a prefix with the given last half, or with that of
// the MAC address.
func ownAddress(p netip.Prefix, id netip.Addr, mac net.HardwareAddr) (netip.Addr, bool) {
	b := p.Masked().Addr().As16()
	if id.IsValid() {
		d := id.As16()
		copy(b[8:], d[8:])
		return netip.AddrFrom16(b), true
	}
	d, ok := eui64(mac)
	copy(b[8:], d[:])
	return netip.AddrFrom16(b), ok
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
