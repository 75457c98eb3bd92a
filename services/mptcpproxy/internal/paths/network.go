package paths

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routing of the paths. Each path has two tables of its own: one with a route
// to every peer, one with the default route, if the device has one. What comes
// from a path's address looks at
//
//	prioPeers  the first table: a peer is reached over this path, whatever main says
//	prioMain   the main table without its default route: LANs and other links
//	prioRest   the second table: answers to far away leave by the path they came on
const (
	prioPeers = 6240
	prioMain  = 6241
	prioRest  = 6242
	tableBase = 62400
	maxPaths  = 64
)

func (p *path) peersTable() int { return tableBase + 2*p.slot }
func (p *path) restTable() int  { return tableBase + 2*p.slot + 1 }

func ourTable(t int) bool { return t >= tableBase && t < tableBase+2*maxPaths }

// hop is how a device reaches what is not on its link.
type hop struct {
	ok bool
	gw netip.Addr // invalid: everything is on the link
}

// observe reads links, addresses and routes, and brings the paths' addresses,
// states, routes and rules up to date. It is called with the lock held.
func (m *Manager) observe(now time.Time) error {
	var first error
	note := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for _, p := range m.paths {
		note(m.observePath(p, now))
	}
	// Two devices with one address cannot be told apart by it: the first wins.
	seen := map[netip.Addr]*path{}
	for _, p := range m.paths {
		for _, a := range []*netip.Addr{&p.local4, &p.local6} {
			if !a.IsValid() {
				continue
			}
			if q := seen[*a]; q != nil {
				p.clash = q.w.Name
				*a = netip.Addr{}
				continue
			}
			seen[*a] = p
			m.owner[*a] = p
		}
	}
	for _, p := range m.paths {
		m.choose(p)
		m.judge(p, now)
		note(m.route(p))
	}
	return first
}

// observePath reads what the kernel knows of the path's device.
func (m *Manager) observePath(p *path, now time.Time) error {
	p.clash = ""
	wasUp := p.link
	old4, old6 := p.local4, p.local6
	p.link, p.ifindex = false, 0
	p.local4, p.local6 = netip.Addr{}, netip.Addr{}
	p.prefixes, p.specific = p.prefixes[:0], p.specific[:0]
	p.hop4, p.hop6 = hop{}, hop{}
	l, err := m.nl.LinkByName(p.w.Device)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return nil
		}
		return fmt.Errorf("read device %s: %w", p.w.Device, err)
	}
	at := l.Attrs()
	p.ifindex = at.Index
	p.link = at.RawFlags&unix.IFF_UP != 0 && at.RawFlags&unix.IFF_RUNNING != 0
	p.account(at.Statistics)
	addrs, err := m.nl.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", p.w.Device, err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Scope != int(netlink.SCOPE_UNIVERSE) || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) != 0 {
			continue
		}
		ip = ip.Unmap()
		ones, _ := a.Mask.Size()
		if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
			if peer, ok := netip.AddrFromSlice(a.Peer.IP); ok {
				n, _ := a.Peer.Mask.Size()
				p.prefixes = append(p.prefixes, netip.PrefixFrom(peer.Unmap(), n).Masked())
			}
		} else {
			p.prefixes = append(p.prefixes, netip.PrefixFrom(ip, ones).Masked())
		}
		mine, old := &p.local4, old4
		if ip.Is6() {
			mine, old = &p.local6, old6
			// Temporary addresses change by themselves; unique local ones
			// are second to global ones only for want of anything better.
			if a.Flags&unix.IFA_F_TEMPORARY != 0 {
				continue
			}
		}
		// The address in use stays in use while it is there.
		if !mine.IsValid() && a.Flags&unix.IFA_F_SECONDARY == 0 || ip == old {
			*mine = ip
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := m.nl.RouteListFiltered(family, &netlink.Route{LinkIndex: at.Index, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes of %s: %w", p.w.Device, err)
		}
		h := &p.hop4
		if family == netlink.FAMILY_V6 {
			h = &p.hop6
		}
		metric := 0
		for _, r := range routes {
			gw, _ := netip.AddrFromSlice(r.Gw)
			gw = gw.Unmap()
			if dst, ok := prefixOf(r.Dst); ok && dst.Bits() > 0 {
				p.specific = append(p.specific, specific{dst, gw})
				continue
			}
			if !h.ok || r.Priority < metric {
				*h, metric = hop{ok: true, gw: gw}, r.Priority
			}
		}
	}
	if p.w.Gateway4.IsValid() {
		p.hop4 = hop{true, p.w.Gateway4}
	}
	if p.w.Gateway6.IsValid() {
		p.hop6 = hop{true, p.w.Gateway6}
	}
	if p.link && !wasUp || p.local4 != old4 || p.local6 != old6 {
		m.fresh(p, now)
	}
	return nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

// specific is a route of the device that is neither its link nor the default.
type specific struct {
	dst netip.Prefix
	gw  netip.Addr
}

// reach tells how the path reaches addr: rank 0 on its link, 1 by a route of
// its own, 2 by its default route; ok is false when it does not.
func (p *path) reach(addr netip.Addr) (gw netip.Addr, rank int, ok bool) {
	local, h := p.local4, p.hop4
	if addr.Is6() {
		local, h = p.local6, p.hop6
	}
	if !local.IsValid() || addr == local {
		return gw, 0, false
	}
	for _, n := range p.prefixes {
		if n.Contains(addr) {
			return gw, 0, true
		}
	}
	bits := -1
	for _, s := range p.specific {
		if s.dst.Contains(addr) && s.dst.Bits() > bits {
			gw, bits = s.gw, s.dst.Bits()
		}
	}
	if bits >= 0 {
		return gw, 1, true
	}
	return h.gw, 2, h.ok
}

// local is the path's address for talking to addr.
func (p *path) local(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		return p.local6
	}
	return p.local4
}

// choose picks for each peer the address to which this path connects: one on
// its own link first, then one that it has a route for, in the order known.
// The one in use stays while it is possible.
func (m *Manager) choose(p *path) {
	for _, peer := range m.o.Peers {
		l := m.leg(peer.Name, p)
		type cand struct {
			a    netip.Addr
			rank int
		}
		var cs []cand
		for _, a := range peer.Addrs {
			a = a.Unmap()
			if _, rank, ok := p.reach(a); ok {
				cs = append(cs, cand{a, rank})
			}
		}
		slices.SortStableFunc(cs, func(a, b cand) int { return a.rank - b.rank })
		l.remotes = l.remotes[:0]
		for _, c := range cs {
			if !slices.Contains(l.remotes, c.a) {
				l.remotes = append(l.remotes, c.a)
			}
		}
		l.port = peer.Port
		// An address that never worked gives way to a better one.
		if !slices.Contains(l.remotes, l.remote) || !l.proven && !l.heard && !l.rotated {
			l.remote = netip.Addr{}
			if len(l.remotes) > 0 {
				l.remote = l.remotes[0]
			}
		}
	}
}

// route brings the path's tables and rules up to date.
func (m *Manager) route(p *path) error {
	want := map[string]netlink.Route{}
	add := func(r netlink.Route) {
		r.LinkIndex, r.Protocol = p.ifindex, unix.RTPROT_STATIC
		r.Congctl = p.congestion
		want[fmt.Sprintf("%d %v", r.Table, r.Dst)] = r
	}
	ip := func(a netip.Addr) net.IP {
		if !a.IsValid() {
			return nil
		}
		return a.AsSlice()
	}
	flags := func(gw netip.Addr) int {
		if gw.IsValid() {
			return int(netlink.FLAG_ONLINK)
		}
		return 0
	}
	scope := func(gw, dst netip.Addr) netlink.Scope {
		if gw.IsValid() || dst.Is6() {
			return netlink.SCOPE_UNIVERSE
		}
		return netlink.SCOPE_LINK
	}
	var rules []ruleKey
	if p.link {
		for _, peer := range m.o.Peers {
			for _, a := range peer.Addrs {
				a = a.Unmap()
				gw, _, ok := p.reach(a)
				if !ok {
					continue
				}
				add(netlink.Route{Table: p.peersTable(), Dst: &net.IPNet{IP: ip(a), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
					Gw: ip(gw), Src: ip(p.local(a)), Flags: flags(gw), Scope: scope(gw, a)})
			}
		}
		for _, f := range []struct {
			local, zero netip.Addr
			h           hop
		}{{p.local4, netip.IPv4Unspecified(), p.hop4}, {p.local6, netip.IPv6Unspecified(), p.hop6}} {
			if !f.local.IsValid() {
				continue
			}
			rules = append(rules, ruleKey{f.local, prioPeers, p.peersTable()}, ruleKey{f.local, prioMain, unix.RT_TABLE_MAIN},
				ruleKey{f.local, prioRest, p.restTable()})
			if f.h.ok {
				add(netlink.Route{Table: p.restTable(), Dst: &net.IPNet{IP: ip(f.zero), Mask: net.CIDRMask(0, f.zero.BitLen())},
					Gw: ip(f.h.gw), Src: ip(f.local), Flags: flags(f.h.gw), Scope: scope(f.h.gw, f.zero)})
			}
		}
	}
	var first error
	note := func(what string, err error) {
		if err != nil && first == nil {
			first = fmt.Errorf("%s for path %s: %w", what, p.w.Name, err)
		}
	}
	// Routes are written each time: the kernel takes them away with the link.
	for k, r := range want {
		err := m.nl.RouteReplace(&r)
		if err == nil {
			p.routes[k] = r
		} else if !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
			// Those: link, address or device are gone, the next event is on its way.
			note("set route", err)
		}
	}
	for k, r := range p.routes {
		if _, ok := want[k]; ok {
			continue
		}
		delete(p.routes, k)
		if err := m.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			note("remove route", err)
		}
	}
	for _, k := range rules {
		if slices.Contains(p.rules, k) {
			continue
		}
		if err := m.nl.RuleAdd(k.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
			note("add rule", err)
			continue
		}
		p.rules = append(p.rules, k)
	}
	p.rules = slices.DeleteFunc(p.rules, func(k ruleKey) bool {
		if slices.Contains(rules, k) {
			return false
		}
		if err := m.nl.RuleDel(k.rule()); err != nil && !errors.Is(err, unix.ENOENT) {
			note("remove rule", err)
		}
		return true
	})
	return first
}

// ruleKey is one policy rule of a path.
type ruleKey struct {
	from  netip.Addr
	prio  int
	table int
}

func (k ruleKey) rule() *netlink.Rule {
	r := netlink.NewRule()
	r.Family = netlink.FAMILY_V4
	if k.from.Is6() {
		r.Family = netlink.FAMILY_V6
	}
	r.Src = &net.IPNet{IP: k.from.AsSlice(), Mask: net.CIDRMask(k.from.BitLen(), k.from.BitLen())}
	r.Priority, r.Table = k.prio, k.table
	if k.prio == prioMain {
		r.SuppressPrefixlen = 0
	}
	return r
}

// clear takes away all rules and routes of this package, also those that a
// killed predecessor left behind.
func clearRouting(nl *netlink.Handle) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := nl.RuleList(family)
		if err != nil {
			errs = append(errs, fmt.Errorf("list policy rules: %w", err))
			continue
		}
		for _, r := range rules {
			if r.Priority != prioMain && !ourTable(r.Table) || r.Priority < prioPeers || r.Priority > prioRest {
				continue
			}
			r.Family = family
			if err := nl.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove policy rule %d: %w", r.Priority, err))
			}
		}
		routes, err := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routes: %w", err))
			continue
		}
		for _, r := range routes {
			if !ourTable(r.Table) {
				continue
			}
			if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route of table %d: %w", r.Table, err))
			}
		}
	}
	return errors.Join(errs...)
}
