package intercept

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routing tables and the rules that lead to them.
const (
	LocalTable   = 6240 // everything is local
	TunnelTable  = 6241 // everything into the tunnel device
	rulePriority = 40   // and the three behind it
	// protocol marks our rules and routes (rtm_protocol), so that they are told
	// from others: not one of those that linux/rtnetlink.h names.
	protocol = 162
)

type routing struct{ h *netlink.Handle }

func openRouting() (*routing, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	return &routing{h}, nil
}

func (r *routing) close() { r.h.Close() }

var families = []int{unix.AF_INET, unix.AF_INET6}

func familyName(f int) string {
	if f == unix.AF_INET6 {
		return "IPv6"
	}
	return "IPv4"
}

// hasIPv6 is false on a kernel without it or booted with ipv6.disable=1.
func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// rules are the policy rules of one family.
func rules(fam int) []*netlink.Rule {
	icmp := unix.IPPROTO_ICMP
	if fam == unix.AF_INET6 {
		icmp = unix.IPPROTO_ICMPV6
	}
	rule := func(at int, mark uint32, table int) *netlink.Rule {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Protocol = fam, rulePriority+at, protocol
		r.Mark, r.Mask, r.Table = mark, &mark, table
		return r
	}
	icmpBack := rule(0, MarkConnect, LocalTable)
	icmpBack.IPProto = icmp
	// Only what arrives: what this machine sends for a packet with the mark (a reset,
	// an ACK of TIME_WAIT) carries it too where marks are reflected, and the check of
	// a source address looks with it where src_valid_mark is on.
	skip := rule(1, MarkLocal, 0)
	skip.IifName, skip.Goto = "lo", rulePriority+3
	return []*netlink.Rule{icmpBack, skip, rule(2, MarkLocal, LocalTable), rule(3, MarkTunnel, TunnelTable)}
}

func everything(fam int) *net.IPNet {
	if fam == unix.AF_INET6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}

// set installs rules and routes, and takes away those that o no longer wants.
func (r *routing) set(o Options) error {
	lo, err := r.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback device: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := r.h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bringing the loopback device up: %w", err)
		}
	}
	for _, fam := range families {
		if fam == unix.AF_INET6 && !hasIPv6() {
			continue
		}
		for _, rule := range rules(fam) {
			if err := r.h.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("adding the %s policy rule %v: %w", familyName(fam), rule, err)
			}
		}
		err := r.h.RouteReplace(&netlink.Route{
			Family: fam, Table: LocalTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
			LinkIndex: lo.Attrs().Index, Dst: everything(fam), Protocol: protocol,
		})
		if err != nil && (fam == unix.AF_INET || !errors.Is(err, unix.EACCES)) {
			// EACCES: IPv6 is switched off by disable_ipv6, so nobody needs the route.
			return fmt.Errorf("adding the %s route that delivers locally (table %d): %w", familyName(fam), LocalTable, err)
		}
		if err := r.setTunnel(o, fam); err != nil {
			return err
		}
	}
	return nil
}

func (r *routing) setTunnel(o Options, fam int) error {
	if o.TunnelDevice == "" {
		return r.flush(fam, TunnelTable)
	}
	dev, err := r.h.LinkByName(o.TunnelDevice)
	if err != nil {
		return fmt.Errorf("finding the tunnel device %s (it must be there before interception is set up): %w", o.TunnelDevice, err)
	}
	if fam == unix.AF_INET {
		// Source addresses of other devices pass the loose check (rp_filter 2) only on
		// a device that has an address itself. This one is for that: RFC 7600 section
		// 4.8. It goes with the device.
		addrs, err := r.h.AddrList(dev, fam)
		if err == nil && len(addrs) == 0 {
			err = r.h.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8).To4(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_LINK})
		}
		if err != nil {
			return fmt.Errorf("giving the tunnel device %s an address: %w", o.TunnelDevice, err)
		}
	}
	err = r.h.RouteReplace(&netlink.Route{
		Family: fam, Table: TunnelTable, LinkIndex: dev.Attrs().Index, Dst: everything(fam),
		Scope: unix.RT_SCOPE_UNIVERSE, Protocol: protocol, Priority: 1024,
	})
	if err != nil && (fam == unix.AF_INET || !errors.Is(err, unix.EACCES)) {
		return fmt.Errorf("adding the %s route into the tunnel device %s (is it up?): %w", familyName(fam), o.TunnelDevice, err)
	}
	closed := &netlink.Route{Family: fam, Table: TunnelTable, Type: unix.RTN_UNREACHABLE, Dst: everything(fam), Protocol: protocol, Priority: 2048}
	if o.Fail == FailClosed {
		err = r.h.RouteReplace(closed)
	} else if err = r.h.RouteDel(closed); errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("setting what happens in table %d without the tunnel device: %w", TunnelTable, err)
	}
	return nil
}

// flush deletes the routes of a table.
func (r *routing) flush(fam, table int) error {
	routes, err := r.h.RouteListFiltered(fam, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("listing the %s routes of table %d: %w", familyName(fam), table, err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			route.Dst = everything(fam)
		}
		if err := r.h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("deleting %v from table %d: %w", route, table, err)
		}
	}
	return nil
}

// remove deletes rules and routes, as far as they are there.
func (r *routing) remove() error {
	var errs error
	for _, fam := range families {
		if fam == unix.AF_INET6 && !hasIPv6() {
			continue
		}
		for _, rule := range rules(fam) {
			for {
				err := r.h.RuleDel(rule)
				if err != nil {
					if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
						errs = errors.Join(errs, fmt.Errorf("deleting the %s policy rule %v: %w", familyName(fam), rule, err))
					}
					break
				}
			}
		}
		errs = errors.Join(errs, r.flush(fam, LocalTable), r.flush(fam, TunnelTable))
	}
	return errs
}
