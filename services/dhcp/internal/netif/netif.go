// Package netif says what the service needs to know about the interfaces of
// this host: which device is behind a UCI interface, its addresses and the IPv6
// prefixes that are assigned to it, and which way the world is.
//
// The network service on the bus is asked first (network.interface dump, in
// netifd's shapes); the kernel tells the rest, and all of it where there is no
// such service.
package netif

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
)

// Interface is a UCI interface and the device below it.
type Interface struct {
	Name   string // of UCI
	Device string
	Index  int
	MAC    net.HardwareAddr
	MTU    int
	Proto  string // "" if not known
	// Uplink tells that the world is reached through it.
	Uplink bool

	V4        []netip.Prefix // addresses with the length of their networks
	V6        []Prefix       // global and unique local addresses
	LinkLocal netip.Addr     // fe80::…, usable; invalid if none
	// Assigned are the prefixes that hosts on this interface may use.
	Assigned []Prefix

	told bool // by the network service, which knows its IPv6 addresses better than the kernel
}

// Prefix is an IPv6 prefix or address with its life. Zero times are for ever.
type Prefix struct {
	netip.Prefix
	// Local is the address of this host in it; of an address, itself.
	Local            netip.Addr
	Preferred, Valid time.Time
}

// State is a look at all interfaces.
type State struct {
	Interfaces []*Interface // sorted by name
	Default6   bool         // there is an IPv6 default route
	Bus        bool         // the network service has answered
}

// Get finds an interface by its UCI name, or by its device.
func (s *State) Get(name string) *Interface {
	for _, i := range s.Interfaces {
		if i.Name == name {
			return i
		}
	}
	for _, i := range s.Interfaces {
		if i.Device == name {
			return i
		}
	}
	return nil
}

// Equal tells whether two looks show the same. Times may differ by a little,
// since they are computed from what is left.
func (s *State) Equal(o *State) bool {
	if s == nil || o == nil {
		return s == o
	}
	if s.Default6 != o.Default6 || len(s.Interfaces) != len(o.Interfaces) {
		return false
	}
	for i, a := range s.Interfaces {
		b := o.Interfaces[i]
		x, y := *a, *b
		x.V6, y.V6, x.Assigned, y.Assigned = nil, nil, nil, nil
		if !reflect.DeepEqual(x, y) || !samePrefixes(a.V6, b.V6) || !samePrefixes(a.Assigned, b.Assigned) {
			return false
		}
	}
	return true
}

const slack = 5 * time.Second

func samePrefixes(a, b []Prefix) bool {
	near := func(x, y time.Time) bool {
		if x.IsZero() || y.IsZero() {
			return x.IsZero() == y.IsZero()
		}
		return x.Sub(y).Abs() <= slack
	}
	return slices.EqualFunc(a, b, func(x, y Prefix) bool {
		return x.Prefix == y.Prefix && x.Local == y.Local && near(x.Preferred, y.Preferred) && near(x.Valid, y.Valid)
	})
}

// uplinkProtos are those of the world's side.
var uplinkProtos = [...]string{"dhcp", "dhcpv6", "pppoe", "pppoa", "ppp", "3g", "qmi", "ncm", "mbim", "modemmanager", "6in4", "6to4", "6rd", "dslite", "map", "464xlat", "pptp", "l2tp"}

// maxList bounds what is taken over of a list on the bus.
const maxList = 256

// FromDump reads the reply of network.interface dump. Interfaces that are down
// or have no device are left out; entries that make no sense as well.
func FromDump(t bus.Table, now time.Time) *State {
	s := &State{Bus: true}
	list, _ := t.Get("interface").(bus.Array)
	for _, e := range list[:min(len(list), maxList)] {
		d, ok := e.(bus.Table)
		if !ok {
			continue
		}
		name, dev := d.String("interface"), d.String("l3_device")
		if up, _ := d.Get("up").(bool); !up || name == "" || dev == "" {
			continue
		}
		i := &Interface{Name: name, Device: dev, Proto: d.String("proto"), told: true}
		for _, a := range tables(d.Get("ipv4-address")) {
			if p, ok := prefixOf(a); ok && p.Addr().Is4() {
				i.V4 = append(i.V4, p)
			}
		}
		for _, a := range tables(d.Get("ipv6-address")) {
			if p, ok := prefixOf(a); ok && p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() {
				i.V6 = append(i.V6, Prefix{Prefix: p, Local: p.Addr(), Preferred: life(a, "preferred", now), Valid: life(a, "valid", now)})
			}
		}
		for _, a := range tables(d.Get("ipv6-prefix-assignment")) {
			p, ok := prefixOf(a)
			if !ok || !p.Addr().Is6() {
				continue
			}
			q := Prefix{Prefix: p.Masked(), Preferred: life(a, "preferred", now), Valid: life(a, "valid", now)}
			if la, ok := a.Get("local-address").(bus.Table); ok {
				if l, err := netip.ParseAddr(la.String("address")); err == nil && p.Contains(l) {
					q.Local = l
				}
			}
			i.Assigned = append(i.Assigned, q)
		}
		for _, r := range tables(d.Get("route")) {
			if n, _ := r.Get("mask").(int32); n == 0 && r.Has("target") {
				switch r.String("target") {
				case "0.0.0.0":
					i.Uplink = true
				case "::":
					i.Uplink, s.Default6 = true, true
				}
			}
		}
		i.Uplink = i.Uplink || slices.Contains(uplinkProtos[:], i.Proto)
		s.Interfaces = append(s.Interfaces, i)
	}
	return s
}

func tables(v any) []bus.Table {
	a, _ := v.(bus.Array)
	var out []bus.Table
	for _, e := range a[:min(len(a), maxList)] {
		if t, ok := e.(bus.Table); ok {
			out = append(out, t)
		}
	}
	return out
}

func prefixOf(t bus.Table) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(t.String("address"))
	if err != nil {
		return netip.Prefix{}, false
	}
	n, ok := t.Get("mask").(int32)
	if !ok { // netifd of some age writes it as text
		var m int
		if _, err := fmt.Sscanf(t.String("mask"), "%d", &m); err != nil {
			return netip.Prefix{}, false
		}
		n = int32(m)
	}
	p := netip.PrefixFrom(a.WithZone(""), int(n))
	return p, p.IsValid()
}

// life turns seconds that are left into a time; absent or all ones: for ever.
func life(t bus.Table, key string, now time.Time) time.Time {
	var n int64
	switch v := t.Get(key).(type) {
	case int32:
		n = int64(uint32(v))
	case int64:
		n = v
	default:
		return time.Time{}
	}
	if n >= 1<<32-1 || n < 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(n) * time.Second)
}

// Complete adds what the kernel knows: index, MAC address, MTU, link-local
// address, and addresses that the bus did not tell. Interfaces whose device
// does not exist are dropped. more are further interfaces to look for, with name,
// device and protocol, which the bus does not know.
func (s *State) Complete(more []Interface, now time.Time) error {
	for _, m := range more {
		if !slices.ContainsFunc(s.Interfaces, func(i *Interface) bool { return i.Name == m.Name }) {
			s.Interfaces = append(s.Interfaces, &Interface{Name: m.Name, Device: m.Device, Proto: m.Proto, Uplink: slices.Contains(uplinkProtos[:], m.Proto)})
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses: %w", err)
	}
	s.Interfaces = slices.DeleteFunc(s.Interfaces, func(i *Interface) bool {
		l, ok := byName[i.Device]
		if !ok || l.Attrs().RawFlags&unix.IFF_UP == 0 {
			return true
		}
		a := l.Attrs()
		i.Index, i.MTU = a.Index, a.MTU
		if len(a.HardwareAddr) == 6 {
			i.MAC = a.HardwareAddr
		}
		i.kernelAddrs(addrs, now)
		return false
	})
	if !s.Default6 {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() && maskLen(r.Dst) == 0 {
				s.Default6 = s.Default6 || r.Type != unix.RTN_UNREACHABLE && r.Type != unix.RTN_BLACKHOLE
			}
		}
	}
	slices.SortFunc(s.Interfaces, func(a, b *Interface) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func maskLen(n *net.IPNet) int { ones, _ := n.Mask.Size(); return ones }

func (i *Interface) kernelAddrs(addrs []netlink.Addr, now time.Time) {
	for _, a := range addrs {
		if a.LinkIndex != i.Index || a.IPNet == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		p := netip.PrefixFrom(ip, maskLen(a.IPNet))
		if !ok || !p.IsValid() {
			continue
		}
		switch {
		case ip.Is4():
			if !slices.ContainsFunc(i.V4, func(q netip.Prefix) bool { return q.Addr() == ip }) {
				i.V4 = append(i.V4, p)
			}
		case a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0:
			// Not ours to use yet; the kernel tells when it is.
		case ip.IsLinkLocalUnicast():
			i.LinkLocal = ip
		case ip.IsLoopback(), i.told:
		default:
			q := Prefix{Prefix: p, Local: ip, Preferred: left(a.PreferedLft, now), Valid: left(a.ValidLft, now)}
			if a.Flags&unix.IFA_F_DEPRECATED != 0 {
				q.Preferred = now
			}
			if !slices.ContainsFunc(i.V6, func(q Prefix) bool { return q.Local == ip }) {
				i.V6 = append(i.V6, q)
			}
		}
	}
	slices.SortFunc(i.V4, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	slices.SortFunc(i.V6, func(a, b Prefix) int { return a.Local.Compare(b.Local) })
	slices.SortFunc(i.Assigned, func(a, b Prefix) int { return a.Addr().Compare(b.Addr()) })
}

// left is the life of an address as the kernel tells it: seconds, 0 or all
// ones for ever.
func left(seconds int, now time.Time) time.Time {
	if n := uint32(seconds); n != 0 && n != 1<<32-1 {
		return now.Add(time.Duration(n) * time.Second)
	}
	return time.Time{}
}

// Prefixes are those that hosts may use: the assigned ones, and the networks
// of the addresses where nothing is assigned.
func (i *Interface) Prefixes() []Prefix {
	out := slices.Clone(i.Assigned)
	for _, a := range i.V6 {
		m := a
		m.Prefix = a.Masked()
		if a.Bits() <= 64 && !slices.ContainsFunc(out, func(q Prefix) bool { return q.Overlaps(m.Prefix) }) {
			out = append(out, m)
		}
	}
	return out
}

// Addrs are all addresses of this host on the interface.
func (i *Interface) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range i.V4 {
		out = append(out, p.Addr())
	}
	for _, p := range i.Assigned {
		if p.Local.IsValid() {
			out = append(out, p.Local)
		}
	}
	for _, p := range i.V6 {
		out = append(out, p.Local)
	}
	return out
}

// OnLink tells whether a is the address of a neighbour.
func (i *Interface) OnLink(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() {
		return slices.ContainsFunc(i.V4, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if a.WithZone("").IsLinkLocalUnicast() {
		return true
	}
	in := func(p Prefix) bool { return p.Contains(a.WithZone("")) }
	return slices.ContainsFunc(i.Assigned, in) || slices.ContainsFunc(i.V6, in)
}
