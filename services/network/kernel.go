package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ownAlias marks the bridges that this service made (the link's alias, as in
// `ip link`), so that they are still known after a crash.
const ownAlias = "weft network"

// plan is what one link shall be.
type plan struct {
	bridge bool
	ports  []string         // of a bridge
	master string           // the bridge this link is a port of
	mac    net.HardwareAddr // nil: leave
	mtu    int              // 0: leave
	addrs  []netip.Prefix
	routes []Route
}

// kernel is the network namespace this process runs in.
type kernel struct {
	h   *netlink.Handle
	log *slog.Logger

	// claimed are the links under management, by name.
	claimed map[string]claim
	// tables are the routing tables that are ours to look after.
	tables map[int]bool
	// ours are the addresses given to a link by this process.
	ours map[int][]netip.Prefix
}

// claim is a link under management. A link of the same name with another index
// is another one.
type claim struct {
	index int
	port  bool // of a bridge
}

func newKernel(log *slog.Logger) (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel about links: %w", err)
	}
	return &kernel{h: h, log: log, claimed: map[string]claim{}, ours: map[int][]netip.Prefix{}, tables: map[int]bool{unix.RT_TABLE_MAIN: true}}, nil
}

func (k *kernel) close() { k.h.Close() }

// links are all links by name.
type links map[string]netlink.Link

func (k *kernel) links() (links, error) {
	list, err := again(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make(links, len(list))
	for _, l := range list {
		out[l.Attrs().Name] = l
	}
	return out, nil
}

// again repeats a dump that a change in the kernel made inconsistent.
func again[T any](dump func() (T, error)) (T, error) {
	for {
		v, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
}

func (ls links) carrier(name string) bool {
	l, ok := ls[name]
	return ok && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

// shape makes the links themselves as planned: bridges, ports, MAC, MTU, up.
// Links that are no longer planned are let go. changed tells that links have
// to be listed again. errs has the failures by link.
func (k *kernel) shape(ls links, plans map[string]*plan) (changed bool, errs map[string]error) {
	errs = map[string]error{}
	try := func(name, what string, err error) bool {
		changed = true
		if err != nil {
			errs[name] = errors.Join(errs[name], fmt.Errorf("%s %s: %w", what, name, err))
		}
		return err == nil
	}
	for name, c := range k.claimed {
		l, there := ls[name]
		if there && l.Attrs().Index == c.index {
			if p, wanted := plans[name]; wanted && (!p.bridge || l.Type() == "bridge") {
				continue
			}
			if l.Attrs().Alias != ownAlias {
				k.release(l)
			}
		}
		delete(k.claimed, name)
		delete(k.ours, c.index)
	}
	for name, l := range ls {
		if p := plans[name]; l.Attrs().Alias == ownAlias && (p == nil || !p.bridge) {
			try(name, "remove bridge", k.h.LinkDel(l))
			delete(ls, name)
		}
	}
	for _, name := range sortedKeys(plans) {
		p := plans[name]
		l, there := ls[name]
		switch {
		case p.bridge && !there:
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			if try(name, "make bridge", k.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})) {
				if l, err := k.h.LinkByName(name); try(name, "find bridge", err) {
					try(name, "mark bridge", k.h.LinkSetAlias(l, ownAlias))
				}
			}
			continue // the next round has it
		case p.bridge && l.Type() != "bridge":
			try(name, "make bridge", fmt.Errorf("there is a device of type %s with that name", l.Type()))
			continue
		case !there:
			continue
		}
		a := l.Attrs()
		if now := (claim{a.Index, p.master != ""}); k.claimed[name] != now {
			k.prepare(name, k.claimed[name], now)
			k.claimed[name] = now
		}
		if p.mac != nil && !slices.Equal(a.HardwareAddr, p.mac) {
			try(name, "set MAC address of", k.setMAC(l, p.mac))
		}
		if p.mtu != 0 && a.MTU != p.mtu {
			try(name, fmt.Sprintf("set MTU %d of", p.mtu), k.h.LinkSetMTU(l, p.mtu))
		}
		if p.master != "" {
			if m, ok := ls[p.master]; ok && a.MasterIndex != m.Attrs().Index {
				try(name, "add to bridge "+p.master+" port", k.h.LinkSetMasterByIndex(l, m.Attrs().Index))
			}
		} else if a.MasterIndex != 0 && k.isOwnBridge(ls, a.MasterIndex) {
			try(name, "take out of its bridge", k.h.LinkSetNoMaster(l))
		}
		if a.RawFlags&unix.IFF_UP == 0 {
			try(name, "bring up", k.h.LinkSetUp(l))
		}
	}
	// Ports that the configuration no longer has, and that are in no plan.
	for name, l := range ls {
		if plans[name] == nil && l.Attrs().MasterIndex != 0 && k.isOwnBridge(ls, l.Attrs().MasterIndex) {
			try(name, "take out of its bridge", k.h.LinkSetNoMaster(l))
		}
	}
	return changed, errs
}

func (k *kernel) isOwnBridge(ls links, index int) bool {
	for name, c := range k.claimed {
		if l, ok := ls[name]; c.index == index && ok {
			return l.Type() == "bridge"
		}
	}
	return false
}

// setMAC sets the address; some drivers want the link down for that.
func (k *kernel) setMAC(l netlink.Link, mac net.HardwareAddr) error {
	err := k.h.LinkSetHardwareAddr(l, mac)
	if err != nil && l.Attrs().RawFlags&unix.IFF_UP != 0 {
		if derr := k.h.LinkSetDown(l); derr != nil {
			return errors.Join(err, derr)
		}
		err = errors.Join(k.h.LinkSetHardwareAddr(l, mac), k.h.LinkSetUp(l))
	}
	return err
}

// prepare makes settings of a link that comes under management or becomes or
// is no longer a port.
func (k *kernel) prepare(name string, before, now claim) {
	// Without it the kernel drops the other addresses of a subnet together
	// with the first one.
	k.sysctl("ipv4", name, "promote_secondaries", "1")
	// A port is a wire; addresses belong to its bridge.
	switch {
	case now.port:
		k.sysctl("ipv6", name, "disable_ipv6", "1")
	case before.index == now.index && before.port:
		k.sysctl("ipv6", name, "disable_ipv6", "0")
	}
}

// release gives a link back as netifd does: no addresses, no routes, down.
func (k *kernel) release(l netlink.Link) {
	a := l.Attrs()
	var errs []error
	if k.claimed[a.Name].port {
		errs = append(errs, k.h.LinkSetNoMaster(l))
	}
	if _, err := k.address(l, &plan{}); err != nil {
		errs = append(errs, err)
	}
	if a.Flags&net.FlagLoopback == 0 {
		errs = append(errs, k.h.LinkSetDown(l))
	}
	if k.claimed[a.Name].port {
		k.sysctl("ipv6", a.Name, "disable_ipv6", "0")
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, syscall.ENODEV) {
		k.log.Warn("link was not given back completely", "device", a.Name, "error", err)
	}
}

func (k *kernel) sysctl(proto, name, key, value string) {
	path := filepath.Join("/proc/sys/net", proto, "conf", name, key)
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
		return
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.log.Debug("kernel setting was not made", "path", path, "error", err)
	}
}

// address gives a link the addresses and routes of its plan and takes others
// away: addresses that this process gave it, all but link-local ones at the
// first time, and routes with our protocols. New ones come before old ones go.
func (k *kernel) address(l netlink.Link, p *plan) (changed bool, err error) {
	a := l.Attrs()
	mine, known := k.ours[a.Index]
	have, err := k.addrs(l)
	if err != nil {
		return false, err
	}
	var errs []error
	add := func(have []netip.Prefix) {
		for _, want := range p.addrs {
			if slices.Contains(have, want) {
				continue
			}
			changed = true
			if err := k.h.AddrReplace(l, nlAddr(want)); err != nil {
				errs = append(errs, fmt.Errorf("add address %s to %s: %w", want, a.Name, err))
			}
		}
	}
	add(have)
	removed := false
	for _, old := range have {
		if slices.Contains(p.addrs, old) || known && !slices.Contains(mine, old) || !known && !sweepable(old) {
			continue
		}
		changed, removed = true, true
		if err := k.h.AddrDel(l, nlAddr(old)); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", old, a.Name, err))
		}
	}
	if removed { // a kernel without promote_secondaries may have taken more
		if now, err := k.addrs(l); err == nil {
			add(now)
		}
	}
	k.ours[a.Index] = p.addrs
	more, err := k.route(l, p.routes)
	return changed || more, errors.Join(append(errs, err)...)
}

// sweepable tells whether an address found on a link that was not ours may be
// an old one of ours: not what the kernel gives by itself.
func sweepable(p netip.Prefix) bool {
	return !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsLoopback()
}

// addrs are the lasting addresses of a link.
func (k *kernel) addrs(l netlink.Link) ([]netip.Prefix, error) {
	list, err := again(func() ([]netlink.Addr, error) { return k.h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			continue // from router advertisements; the kernel's affair
		}
		if p, ok := toPrefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), bits), true
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func nlAddr(p netip.Prefix) *netlink.Addr { return &netlink.Addr{IPNet: toIPNet(p)} }

// protocolStatic marks the routes of this service, as netifd does. It is the
// kernel's number for routes set by an administrator's program
// (linux/rtnetlink.h).
const protocolStatic = unix.RTPROT_STATIC

// route gives a link the wanted routes and takes other routes with our
// protocol away.
func (k *kernel) route(l netlink.Link, want []Route) (changed bool, err error) {
	a := l.Attrs()
	have, err := k.routes(l)
	if err != nil {
		return false, err
	}
	var errs []error
	replaced := map[Route]bool{}
	for _, w := range want {
		k.tables[tableOf(w)] = true
		r := normal(w)
		if slices.Contains(have, r) {
			continue
		}
		r.OnLink = w.OnLink
		changed = true
		if err := k.h.RouteReplace(nlRoute(l, r)); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s via %s on %s: %w", r.Dest, r.Via, a.Name, err))
			continue
		}
		replaced[Route{Dest: r.Dest, Metric: r.Metric, Table: r.Table}] = true
	}
	for _, r := range have {
		if slices.ContainsFunc(want, func(w Route) bool { return normal(w) == r }) {
			continue
		}
		if replaced[Route{Dest: r.Dest, Metric: r.Metric, Table: r.Table}] && r.Dest.Addr().Is4() {
			continue // the new one took its place
		}
		changed = true
		if err := k.h.RouteDel(nlRoute(l, r)); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s via %s on %s: %w", r.Dest, r.Via, a.Name, err))
		}
	}
	return changed, errors.Join(errs...)
}

// tableOf is the number of a route's table.
func tableOf(r Route) int {
	if r.Table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return r.Table
}

// normal is how the kernel reports a route: metric 0 of IPv6 is 1024
// (IP6_RT_PRIO_USER). How the gateway was checked does not matter afterwards.
func normal(r Route) Route {
	r.OnLink = false
	if r.Dest.Addr().Is6() && r.Metric == 0 {
		r.Metric = 1024
	}
	return r
}

// routes are the routes of a link that have our protocol, in the tables that are
// ours: the main one, and those that the configuration has named.
func (k *kernel) routes(l netlink.Link) ([]Route, error) {
	var out []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{LinkIndex: l.Attrs().Index, Protocol: protocolStatic, Table: unix.RT_TABLE_UNSPEC}
		list, err := again(func() ([]netlink.Route, error) {
			return k.h.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", l.Attrs().Name, err)
		}
		for _, nr := range list {
			if !k.tables[nr.Table] {
				continue
			}
			r := Route{Metric: nr.Priority}
			if nr.Table != unix.RT_TABLE_MAIN {
				r.Table = nr.Table
			}
			dest, ok := toPrefix(nr.Dst)
			if !ok {
				zero := netip.IPv4Unspecified()
				if family == netlink.FAMILY_V6 {
					zero = netip.IPv6Unspecified()
				}
				dest = netip.PrefixFrom(zero, 0)
			}
			r.Dest = dest
			if via, ok := netip.AddrFromSlice(nr.Gw); ok && !via.IsUnspecified() {
				r.Via = via.Unmap()
			}
			if src, ok := netip.AddrFromSlice(nr.Src); ok {
				r.Src = src.Unmap()
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func nlRoute(l netlink.Link, r Route) *netlink.Route {
	n := &netlink.Route{
		LinkIndex: l.Attrs().Index,
		Dst:       toIPNet(r.Dest),
		Priority:  r.Metric,
		Protocol:  protocolStatic,
		Table:     tableOf(r),
	}
	if r.Via.IsValid() {
		n.Gw = r.Via.AsSlice()
		if r.OnLink { // some providers hand out /32
			n.Flags = int(netlink.FLAG_ONLINK)
		}
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	if r.Dest.Addr().Is6() {
		n.Family = nl.FAMILY_V6
		n.Scope = netlink.SCOPE_UNIVERSE
	}
	return n
}

// watch calls changed whenever a link comes, goes or changes, and after each
// gap in the news, until ctx ends.
func watch(ctx context.Context, log *slog.Logger, changed func()) {
	for ctx.Err() == nil {
		updates := make(chan netlink.LinkUpdate, 64)
		done := make(chan struct{})
		err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
			ErrorCallback: func(err error) {
				if ctx.Err() == nil {
					log.Debug("news of links were lost", "error", err)
				}
			},
		})
		if err != nil {
			log.Error("no news of links, trying again", "error", err)
			sleep(ctx, time.Second, nil)
			changed()
			continue
		}
		changed() // what happened before the subscription
		end := ctx.Done()
		for open := true; open; {
			select {
			case _, open = <-updates:
				changed()
			case <-end:
				close(done)
				end = nil
				for range updates {
				}
				return
			}
		}
		close(done)
	}
}
