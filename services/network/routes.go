package network

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// protocolStatic marks the routes and rules of this service, as netifd does. It
// is the kernel's number for routes set by an administrator's program
// (linux/rtnetlink.h).
const protocolStatic = unix.RTPROT_STATIC

// tableOf is the number of a route's table.
func tableOf(r Route) int {
	if r.Table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return r.Table
}

// inKernel is a route as the kernel reports it: metric 0 of IPv6 is 1024
// (IP6_RT_PRIO_USER). How the gateway was checked does not matter afterwards.
func (r Route) inKernel(link int) rtnl.Route {
	n := rtnl.Route{
		Dest: r.Dest, From: r.From, Via: r.Via, Src: r.Src, Link: link,
		Table: uint32(tableOf(r)), Metric: uint32(r.Metric), MTU: uint32(r.MTU), Type: unix.RTN_UNICAST, Protocol: protocolStatic,
	}
	if r.Type != 0 {
		n.Type = r.Type
	}
	switch {
	case r.Dest.Addr().Is6():
		if n.Metric == 0 {
			n.Metric = 1024
		}
	case n.Type == unix.RTN_LOCAL:
		n.Scope = unix.RT_SCOPE_HOST
	case n.Type == unix.RTN_UNICAST && !r.Via.IsValid():
		n.Scope = unix.RT_SCOPE_LINK
	}
	return n
}

// minTable and maxTable bound the routing tables that this service chooses
// itself, one for each of several uplinks. The MPTCP proxy has 6240, 6241 and
// 62400 to 62527; people and other programs stay below 1000 as a rule.
const (
	minTable = 63000
	maxTable = 63099
)

// ourTable tells whether routes with our protocol in a table are ours.
func (k *kernel) ourTable(table uint32) bool {
	return k.tables[int(table)] || table >= minTable && table <= maxTable
}

// route gives a link the wanted routes and takes other routes with our
// protocol away. New ones come before old ones go.
func (k *kernel) route(l netlink.Link, want []Route) (changed bool, err error) {
	a := l.Attrs()
	have, err := k.routes(a.Index)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.Name, err)
	}
	var wanted, on []rtnl.Route
	for _, r := range want {
		k.tables[tableOf(r)] = true
		n := r.inKernel(a.Index)
		if !slices.Contains(wanted, n) {
			wanted = append(wanted, n)
			n.OnLink = r.OnLink
			on = append(on, n)
		}
	}
	return k.exchange(have, wanted, on, a.Name)
}

// exchange makes have to want; add are the wanted ones as they are to be added.
func (k *kernel) exchange(have, want, add []rtnl.Route, where string) (changed bool, err error) {
	var errs []error
	for i, r := range want {
		if slices.Contains(have, r) {
			continue
		}
		changed = true
		if err := k.rt.AddRoute(add[i]); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s via %s on %s: %w", r.Dest, r.Via, where, err))
		}
	}
	for _, r := range have {
		if slices.Contains(want, r) {
			continue
		}
		changed = true
		if err := k.rt.DeleteRoute(r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s via %s on %s: %w", r.Dest, r.Via, where, err))
		}
	}
	return changed, errors.Join(errs...)
}

// routes are the routes of a link that have our protocol, in the tables that are
// ours: the main one, and those that the configuration has named.
func (k *kernel) routes(link int) ([]rtnl.Route, error) {
	var out []rtnl.Route
	for _, family := range []int{rtnl.V4, rtnl.V6} {
		list, err := k.rt.Routes(family, protocolStatic, link)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if k.ourTable(r.Table) && !(Route{Type: r.Type}).deadEnd() {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// deadEnds makes the routes that lead nowhere; they are on no link.
func (k *kernel) deadEnds(want []Route) error {
	var have, wanted []rtnl.Route
	for _, family := range []int{rtnl.V4, rtnl.V6} {
		list, err := k.rt.Routes(family, protocolStatic, 0)
		if err != nil {
			return err
		}
		for _, r := range list {
			if k.ourTable(r.Table) && (Route{Type: r.Type}).deadEnd() {
				r.Link = 0 // IPv6 has them on the loopback
				have = append(have, r)
			}
		}
	}
	for _, r := range want {
		k.tables[tableOf(r)] = true
		if n := r.inKernel(0); !slices.Contains(wanted, n) {
			wanted = append(wanted, n)
		}
	}
	_, err := k.exchange(have, wanted, wanted, "no link")
	return err
}

// rules makes the policy rules of this service what is wanted.
func (k *kernel) rules(want []rtnl.Rule) error {
	var errs []error
	for _, family := range []int{rtnl.V4, rtnl.V6} {
		have, err := k.rt.Rules(family, protocolStatic)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6, or without rules for it
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, r := range want {
			if int(r.Family) != family || slices.Contains(have, r) {
				continue
			}
			if err := k.rt.AddRule(r); err != nil {
				errs = append(errs, fmt.Errorf("add rule %d (IPv%d): %w", r.Priority, version(family), err))
			}
		}
		for _, r := range have {
			if slices.Contains(want, r) {
				continue
			}
			if err := k.rt.DeleteRule(r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove rule %d (IPv%d): %w", r.Priority, version(family), err))
			}
		}
	}
	return errors.Join(errs...)
}

func version(family int) int {
	if family == rtnl.V6 {
		return 6
	}
	return 4
}
