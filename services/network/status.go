package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
)

// The shapes below are those of netifd's bus objects, in its order, so that
// LuCI and its scripts find what they look for.

// interfaceStatus is what `status` of an interface replies.
func (m *manager) interfaceStatus(s *state) bus.Table {
	i := s.cfg
	t := bus.Table{
		{Name: "up", Value: s.up},
		{Name: "pending", Value: s.pending},
		{Name: "available", Value: s.available},
		{Name: "autostart", Value: s.autostart},
		{Name: "dynamic", Value: false},
	}
	if s.up {
		t = append(t,
			bus.Attr{Name: "uptime", Value: int32(time.Since(s.since) / time.Second)},
			bus.Attr{Name: "l3_device", Value: s.device})
	}
	t = append(t, bus.Attr{Name: "proto", Value: i.Proto})
	if s.device != "" {
		t = append(t, bus.Attr{Name: "device", Value: s.device})
	}
	if i.Multipath != "" {
		t = append(t, bus.Attr{Name: "multipath", Value: i.Multipath})
	}
	if s.up {
		t = append(t,
			bus.Attr{Name: "metric", Value: int32(i.Metric)},
			bus.Attr{Name: "dns_metric", Value: int32(i.DNSMetric)},
			bus.Attr{Name: "delegation", Value: i.Delegation})
		t = append(t, s.shown.table(true, m.assigned(i.Name))...)
		inactive := content{}.table(false, nil)
		t = append(t, bus.Attr{Name: "inactive", Value: inactive})
	}
	data := bus.Table{}
	if l := s.lease; l != nil && s.up {
		if l.Server.IsValid() {
			data = append(data, bus.Attr{Name: "dhcpserver", Value: l.Server.String()})
		}
		if l.Hostname != "" {
			data = append(data, bus.Attr{Name: "hostname", Value: l.Hostname})
		}
		if len(l.NTP) > 0 {
			data = append(data, bus.Attr{Name: "ntpserver", Value: joinAddrs(l.NTP)})
		}
		data = append(data, bus.Attr{Name: "leasetime", Value: int32(l.Duration / time.Second)})
	}
	if x := s.six; x != nil && s.up && x.lease != nil && len(x.lease.ntp) > 0 {
		data = append(data, bus.Attr{Name: "ntpserver", Value: joinAddrs(x.lease.ntp)})
	}
	t = append(t, bus.Attr{Name: "data", Value: data})
	if len(s.faults) > 0 {
		errs := bus.Array{}
		for _, f := range s.faults {
			e := bus.Table{{Name: "subsystem", Value: f.subsystem}, {Name: "code", Value: f.code}}
			if len(f.data) > 0 {
				e = append(e, bus.Attr{Name: "data", Value: stringArray(f.data)})
			}
			errs = append(errs, e)
		}
		t = append(t, bus.Attr{Name: "errors", Value: errs})
	}
	return t
}

// table lists addresses, routes and resolvers. prefixes adds the lists that
// only the active part has; assigned tells who has a part of a prefix.
func (c content) table(prefixes bool, assigned func(netip.Prefix) bus.Table) bus.Table {
	now := time.Now()
	v4, v6, routes := bus.Array{}, bus.Array{}, bus.Array{}
	for _, a := range c.addrs {
		e := bus.Table{{Name: "address", Value: a.Addr().String()}, {Name: "mask", Value: int32(a.Bits())}}
		if a.Addr().Is4() {
			v4 = append(v4, e)
		} else {
			v6 = append(v6, a.lifetime.table(e, now))
		}
	}
	for _, r := range c.routes {
		routes = append(routes, r.table(now))
	}
	servers := bus.Array{}
	for _, a := range c.servers {
		servers = append(servers, a.String())
	}
	t := bus.Table{{Name: "ipv4-address", Value: v4}, {Name: "ipv6-address", Value: v6}}
	if prefixes {
		own, parts := bus.Array{}, bus.Array{}
		for _, p := range c.prefixes {
			e := bus.Table{{Name: "address", Value: p.Addr().String()}, {Name: "mask", Value: int32(p.Bits())}}
			e = p.lifetime.table(e, now)
			if assigned != nil {
				e = append(e, assigned(p.Prefix)...)
			}
			own = append(own, e)
		}
		for _, p := range c.assigned {
			e := bus.Table{{Name: "address", Value: p.Addr().String()}, {Name: "mask", Value: int32(p.Bits())}}
			e = p.lifetime.table(e, now)
			parts = append(parts, append(e, bus.Attr{Name: "local-address", Value: bus.Table{
				{Name: "address", Value: p.addr.String()}, {Name: "mask", Value: int32(p.Bits())},
			}}))
		}
		t = append(t, bus.Attr{Name: "ipv6-prefix", Value: own}, bus.Attr{Name: "ipv6-prefix-assignment", Value: parts})
	}
	return append(t,
		bus.Attr{Name: "route", Value: routes},
		bus.Attr{Name: "dns-server", Value: servers},
		bus.Attr{Name: "dns-search", Value: stringArray(c.search)},
		bus.Attr{Name: "neighbors", Value: bus.Array{}})
}

// table adds how long something lives, in seconds, to its entry.
func (l lifetime) table(e bus.Table, now time.Time) bus.Table {
	if l.Valid.IsZero() {
		return e
	}
	if !l.Preferred.IsZero() {
		e = append(e, bus.Attr{Name: "preferred", Value: left(l.Preferred, now)})
	}
	return append(e, bus.Attr{Name: "valid", Value: left(l.Valid, now)})
}

// left is the time until t in whole seconds, never negative.
func left(t, now time.Time) int32 {
	return int32(min(max(0, t.Sub(now)/time.Second), 1<<31-1))
}

func (r Route) table(now time.Time) bus.Table {
	none := netip.IPv4Unspecified()
	if r.Dest.Addr().Is6() {
		none = netip.IPv6Unspecified()
	}
	via, source := none, netip.PrefixFrom(none, 0)
	if r.Via.IsValid() {
		via = r.Via
	}
	if r.Src.IsValid() {
		source = netip.PrefixFrom(r.Src, r.Src.BitLen())
	}
	if r.From.IsValid() {
		source = r.From
	}
	e := bus.Table{
		{Name: "target", Value: r.Dest.Addr().String()},
		{Name: "mask", Value: int32(r.Dest.Bits())},
		{Name: "nexthop", Value: via.String()},
	}
	if name := r.typeName(); name != "" {
		e = append(e, bus.Attr{Name: "type", Value: name})
	}
	if r.MTU != 0 {
		e = append(e, bus.Attr{Name: "mtu", Value: int32(r.MTU)})
	}
	if r.Metric != 0 {
		e = append(e, bus.Attr{Name: "metric", Value: int32(r.Metric)})
	}
	if r.Table != 0 {
		e = append(e, bus.Attr{Name: "table", Value: int32(r.Table)})
	}
	if !r.Valid.IsZero() {
		e = append(e, bus.Attr{Name: "valid", Value: left(r.Valid, now)})
	}
	return append(e, bus.Attr{Name: "source", Value: source.String()})
}

// assigned tells who has which part of a prefix, in netifd's shape.
func (m *manager) assigned(class string) func(netip.Prefix) bus.Table {
	return func(p netip.Prefix) bus.Table {
		parts := bus.Table{}
		for _, name := range m.order {
			for _, a := range m.parts[name] {
				if a.pool == p && a.class == class {
					parts = append(parts, bus.Attr{Name: name, Value: bus.Table{
						{Name: "address", Value: a.Addr().String()}, {Name: "mask", Value: int32(a.Bits())},
					}})
				}
			}
		}
		return bus.Table{{Name: "class", Value: class}, {Name: "assigned", Value: parts}}
	}
}

func joinAddrs(as []netip.Addr) string {
	var s []string
	for _, a := range as {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func stringArray(ss []string) bus.Array {
	out := bus.Array{}
	for _, s := range ss {
		out = append(out, s)
	}
	return out
}

// dump is what `network.interface dump` replies.
func (m *manager) dump() bus.Table {
	all := bus.Array{}
	for _, name := range m.order {
		all = append(all, append(bus.Table{{Name: "interface", Value: name}}, m.interfaceStatus(m.states[name])...))
	}
	return bus.Table{{Name: "interface", Value: all}}
}

// deviceStatus is what `network.device status` replies about one link.
func deviceStatus(ls links, l netlink.Link, managed bool) bus.Table {
	a := l.Attrs()
	kind := "Network device"
	switch l.Type() {
	case "bridge":
		kind = "bridge"
	case "vlan":
		kind = "VLAN"
	case "macvlan":
		kind = "MAC VLAN"
	case "wireguard":
		kind = "Tunnel"
	}
	t := bus.Table{
		{Name: "external", Value: !managed},
		{Name: "present", Value: true},
		{Name: "type", Value: kind},
		{Name: "up", Value: a.RawFlags&unix.IFF_UP != 0},
		{Name: "carrier", Value: a.RawFlags&unix.IFF_LOWER_UP != 0},
	}
	if kind == "bridge" {
		members := bus.Array{}
		for _, name := range sortedKeys(ls) {
			if ls[name].Attrs().MasterIndex == a.Index {
				members = append(members, name)
			}
		}
		t = append(t, bus.Attr{Name: "bridge-members", Value: members})
	} else if s := linkSpeed(a.Name); s != "" {
		t = append(t, bus.Attr{Name: "speed", Value: s})
	}
	t = append(t, bus.Attr{Name: "mtu", Value: int32(a.MTU)})
	if len(a.HardwareAddr) == 6 {
		t = append(t, bus.Attr{Name: "macaddr", Value: a.HardwareAddr.String()})
	}
	t = append(t,
		bus.Attr{Name: "txqueuelen", Value: int32(a.TxQLen)},
		bus.Attr{Name: "ipv6", Value: !ipv6Disabled(a.Name)})
	if s := a.Statistics; s != nil {
		t = append(t, bus.Attr{Name: "statistics", Value: bus.Table{
			{Name: "collisions", Value: int64(s.Collisions)},
			{Name: "rx_frame_errors", Value: int64(s.RxFrameErrors)},
			{Name: "tx_compressed", Value: int64(s.TxCompressed)},
			{Name: "multicast", Value: int64(s.Multicast)},
			{Name: "rx_length_errors", Value: int64(s.RxLengthErrors)},
			{Name: "tx_dropped", Value: int64(s.TxDropped)},
			{Name: "rx_bytes", Value: int64(s.RxBytes)},
			{Name: "rx_missed_errors", Value: int64(s.RxMissedErrors)},
			{Name: "tx_errors", Value: int64(s.TxErrors)},
			{Name: "rx_compressed", Value: int64(s.RxCompressed)},
			{Name: "rx_over_errors", Value: int64(s.RxOverErrors)},
			{Name: "tx_fifo_errors", Value: int64(s.TxFifoErrors)},
			{Name: "rx_crc_errors", Value: int64(s.RxCrcErrors)},
			{Name: "rx_packets", Value: int64(s.RxPackets)},
			{Name: "tx_heartbeat_errors", Value: int64(s.TxHeartbeatErrors)},
			{Name: "rx_dropped", Value: int64(s.RxDropped)},
			{Name: "tx_aborted_errors", Value: int64(s.TxAbortedErrors)},
			{Name: "tx_packets", Value: int64(s.TxPackets)},
			{Name: "rx_errors", Value: int64(s.RxErrors)},
			{Name: "tx_bytes", Value: int64(s.TxBytes)},
			{Name: "tx_window_errors", Value: int64(s.TxWindowErrors)},
			{Name: "rx_fifo_errors", Value: int64(s.RxFifoErrors)},
			{Name: "tx_carrier_errors", Value: int64(s.TxCarrierErrors)},
		}})
	}
	return t
}

// linkSpeed is netifd's way to write it, such as 1000F; empty if unknown.
func linkSpeed(name string) string {
	read := func(key string) string {
		b, err := os.ReadFile(filepath.Join("/sys/class/net", name, key))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	speed, duplex := read("speed"), read("duplex")
	if speed == "" || strings.HasPrefix(speed, "-") || duplex != "full" && duplex != "half" {
		return ""
	}
	return fmt.Sprintf("%s%s", speed, strings.ToUpper(duplex[:1]))
}

func ipv6Disabled(name string) bool {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"))
	return err != nil || strings.TrimSpace(string(b)) == "1"
}

// devices is what `network.device status` replies about all links, or about
// one.
func (m *manager) devices(name string) (bus.Table, error) {
	ls, err := m.kernel.links()
	if err != nil {
		return nil, err
	}
	managed := func(name string) bool { _, ok := m.kernel.claimed[name]; return ok }
	if name != "" {
		l, ok := ls[name]
		if !ok {
			return nil, fmt.Errorf("device %s does not exist: %w", name, bus.StatusInvalidArgument)
		}
		return deviceStatus(ls, l, managed(name)), nil
	}
	t := bus.Table{}
	for _, n := range sortedKeys(ls) {
		t = append(t, bus.Attr{Name: n, Value: deviceStatus(ls, ls[n], managed(n))})
	}
	return t, nil
}
