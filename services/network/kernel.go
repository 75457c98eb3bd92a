package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// kernel is the network namespace this process runs in.
type kernel struct {
	h   *netlink.Handle
	rt  *rtnl.Conn
	log *slog.Logger

	// claimed are the links under management, by name.
	claimed map[string]claim
	// tables are the routing tables that are ours to look after.
	tables map[int]bool
	// ours are the addresses given to a link by this process.
	ours map[int][]netip.Prefix
	// asked are the settings that bridges were given.
	asked map[int]map[rtnl.BridgeOption]uint64
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
	rt, err := rtnl.Dial()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &kernel{h: h, rt: rt, log: log, claimed: map[string]claim{}, ours: map[int][]netip.Prefix{}, asked: map[int]map[rtnl.BridgeOption]uint64{}, tables: map[int]bool{unix.RT_TABLE_MAIN: true}}, nil
}

func (k *kernel) close() {
	k.h.Close()
	if err := k.rt.Close(); err != nil {
		k.log.Debug("connection to the kernel was not closed", "error", err)
	}
}

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
	k.sysctl("ipv4", "conf", name, "promote_secondaries", "1")
	// A port is a wire; addresses belong to its bridge.
	switch {
	case now.port:
		k.sysctl("ipv6", "conf", name, "disable_ipv6", "1")
	case before.index == now.index && before.port:
		k.sysctl("ipv6", "conf", name, "disable_ipv6", "0")
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
		k.sysctl("ipv6", "conf", a.Name, "disable_ipv6", "0")
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, syscall.ENODEV) {
		k.log.Warn("link was not given back completely", "device", a.Name, "error", err)
	}
}

func (k *kernel) sysctl(proto, group, name, key, value string) {
	path := filepath.Join("/proc/sys/net", proto, group, name, key)
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
	have, old, err := k.addrs(l)
	if err != nil {
		return false, err
	}
	var errs []error
	add := func(have []netip.Prefix) {
		for _, want := range p.addrs {
			if slices.Contains(have, want) && old[want] == p.deprecated[want] {
				continue
			}
			changed = true
			if err := k.h.AddrReplace(l, nlAddr(want, p.deprecated[want])); err != nil {
				errs = append(errs, fmt.Errorf("add address %s to %s: %w", want, a.Name, err))
			}
		}
	}
	add(have)
	removed := false
	for _, gone := range have {
		if slices.Contains(p.addrs, gone) || known && !slices.Contains(mine, gone) || !known && !sweepable(gone) {
			continue
		}
		changed, removed = true, true
		if err := k.h.AddrDel(l, nlAddr(gone, false)); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", gone, a.Name, err))
		}
	}
	if removed { // a kernel without promote_secondaries may have taken more
		var now []netip.Prefix
		if now, old, err = k.addrs(l); err == nil {
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

// addrs are the lasting addresses of a link, and which of them are deprecated.
func (k *kernel) addrs(l netlink.Link) (out []netip.Prefix, deprecated map[netip.Prefix]bool, err error) {
	list, err := again(func() ([]netlink.Addr, error) { return k.h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	deprecated = map[netip.Prefix]bool{}
	for _, a := range list {
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			continue // from router advertisements; the kernel's affair
		}
		if p, ok := toPrefix(a.IPNet); ok {
			out = append(out, p)
			if a.Flags&unix.IFA_F_DEPRECATED != 0 {
				deprecated[p] = true
			}
		}
	}
	return out, deprecated, nil
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

// nlAddr is an address that stays until it is removed: the service itself
// looks at the lifetimes, so that all of them end by the same clock.
func nlAddr(p netip.Prefix, deprecated bool) *netlink.Addr {
	a := &netlink.Addr{IPNet: toIPNet(p)}
	if deprecated {
		forever := uint32(math.MaxUint32) // not a constant: int has 32 bits on some boards
		a.ValidLft = int(forever)
	}
	return a
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
