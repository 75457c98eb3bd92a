package dhcp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weft/init/bus"
	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/dhcp4"
	"weft/services/dhcp/internal/lease"
)

// objects is the service's face on the bus: the object dhcp as odhcpd has it,
// and the object dnsmasq, both telling dhcp.ack and dhcp.release to who
// subscribes. Hotplug scripts are run by whoever offers hotplug.dhcp.
type objects struct {
	client  *bus.Client
	manager *manager
	log     *slog.Logger
	queue   chan leaseEvent
	dhcp    *bus.Published
	dnsmasq *bus.Published
}

type leaseEvent struct {
	action dhcp4.Action
	lease  *lease.V4
}

// backlog is how many events may wait for the bus. What does not fit is dropped:
// a flood of clients must not become memory.
const backlog = 256

func newObjects(client *bus.Client, m *manager, log *slog.Logger) *objects {
	return &objects{client: client, manager: m, log: log, queue: make(chan leaseEvent, backlog)}
}

// lease takes an event; it does not block.
func (o *objects) lease(a dhcp4.Action, l *lease.V4) {
	select {
	case o.queue <- leaseEvent{a, l}:
	default:
		o.log.Debug("an event was dropped, the bus is behind", "action", a, "address", l.Addr)
	}
}

// run publishes the objects and tells events until ctx ends.
func (o *objects) run(ctx context.Context) {
	o.dhcp = o.publish(&bus.Object{Name: "dhcp", Methods: []bus.Method{
		{Name: "ipv4leases", Handle: o.loop(func(*bus.Request) (bus.Table, error) { return o.manager.leases4(), nil })},
		{Name: "ipv6leases", Handle: o.loop(func(*bus.Request) (bus.Table, error) { return o.manager.leases6(), nil })},
		{Name: "add_lease", Args: []bus.Arg{
			{Name: "ip", Type: bus.TypeString}, {Name: "mac", Type: bus.TypeString}, {Name: "duid", Type: bus.TypeString},
			{Name: "hostid", Type: bus.TypeString}, {Name: "leasetime", Type: bus.TypeString}, {Name: "name", Type: bus.TypeString},
		}, Handle: o.loop(func(r *bus.Request) (bus.Table, error) { return nil, o.manager.addLease(r.Args) })},
	}})
	o.dnsmasq = o.publish(&bus.Object{Name: "dnsmasq", Methods: []bus.Method{
		{Name: "metrics", Handle: o.loop(func(*bus.Request) (bus.Table, error) { return o.manager.metrics(), nil })},
	}})
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-o.queue:
			o.announce(ctx, e)
		}
	}
}

func (o *objects) publish(obj *bus.Object) *bus.Published {
	p, err := o.client.Publish(obj)
	if err != nil {
		o.log.Error("object was not published", "object", obj.Name, "error", err)
	}
	return p
}

// loop makes a method that runs in the loop of the manager.
func (o *objects) loop(f func(r *bus.Request) (bus.Table, error)) func(context.Context, *bus.Request) error {
	return func(ctx context.Context, r *bus.Request) error {
		var reply bus.Table
		var err error
		if derr := o.manager.do(ctx, func() { reply, err = f(r) }); derr != nil {
			return derr
		}
		if err != nil || reply == nil {
			return err
		}
		return r.Reply(reply)
	}
}

// announce tells subscribers, and has the scripts in /etc/hotplug.d/dhcp run, as
// LEDE's dnsmasq does.
func (o *objects) announce(ctx context.Context, e leaseEvent) {
	ctx, cancel := context.WithTimeout(ctx, busWait)
	defer cancel()
	select {
	case <-o.client.Connected():
	default:
		return
	}
	l := e.lease
	kind := "dhcp.ack"
	if e.action == dhcp4.Removed {
		kind = "dhcp.release"
	}
	data := bus.Table{
		{Name: "mac", Value: l.MAC.String()}, {Name: "ip", Value: l.Addr.String()},
		{Name: "name", Value: l.Name}, {Name: "interface", Value: l.Device},
	}
	for _, p := range []*bus.Published{o.dnsmasq, o.dhcp} {
		if p == nil {
			continue
		}
		if err := p.Notify(ctx, kind, data); err != nil {
			o.log.Debug("subscribers were not told", "event", kind, "error", err)
		}
	}
	env := bus.Array{"ACTION=" + string(e.action), "MACADDR=" + l.MAC.String(), "IPADDR=" + l.Addr.String(), "HOSTNAME=" + l.Name, "INTERFACE=" + l.Device}
	if _, err := o.client.Call(ctx, "hotplug.dhcp", "call", bus.Table{{Name: "env", Value: env}}); err != nil && !errors.Is(err, bus.StatusNotFound) {
		o.log.Debug("hotplug scripts were not run", "error", err)
	}
}

// left are the seconds to an end, -1 for ever, as odhcpd tells it.
func left(t, now time.Time) int32 {
	if t.IsZero() {
		return -1
	}
	return int32(max(t.Sub(now)/time.Second, 0))
}

// byDevice groups entries in the form of odhcpd.
func byDevice(order []string, entries map[string]bus.Array) bus.Table {
	devices := bus.Table{}
	for _, d := range order {
		devices = append(devices, bus.Attr{Name: d, Value: bus.Table{{Name: "leases", Value: entries[d]}}})
	}
	return bus.Table{{Name: "device", Value: devices}}
}

// deviceOf finds the device of a lease from before a restart by its address.
func (m *manager) deviceOf(device string, a netip.Addr) string {
	if device != "" || m.state == nil {
		return device
	}
	for _, i := range m.state.Interfaces {
		if i.Index != 0 && i.Device != "lo" && i.OnLink(a) {
			return i.Device
		}
	}
	return ""
}

// maxListed bounds the leases of one reply: a bus message has at most 1 MiB.
const maxListed = 4000

func (m *manager) leases4() bus.Table {
	now := time.Now()
	var order []string
	entries := map[string]bus.Array{}
	for dev := range m.ports4 {
		order = appendOnce(order, dev)
	}
	all := m.store.All4()
	for _, l := range all[:min(len(all), maxListed)] {
		dev := m.deviceOf(l.Device, l.Addr)
		if dev == "" || !l.Expires.IsZero() && !l.Expires.After(now) {
			continue
		}
		order = appendOnce(order, dev)
		entries[dev] = append(entries[dev], bus.Table{
			{Name: "mac", Value: hex.EncodeToString(l.MAC)},
			{Name: "hostname", Value: l.Name},
			{Name: "accept-reconf-nonce", Value: false},
			{Name: "flags", Value: bus.Array{"bound"}},
			{Name: "address", Value: l.Addr.String()},
			{Name: "valid", Value: left(l.Expires, now)},
		})
	}
	return byDevice(order, entries)
}

func appendOnce(list []string, s string) []string {
	for i, v := range list {
		if v == s {
			return list
		}
		if v > s {
			return append(list[:i:i], append([]string{s}, list[i:]...)...)
		}
	}
	return append(list, s)
}

func (m *manager) leases6() bus.Table {
	now := time.Now()
	var order []string
	entries := map[string]bus.Array{}
	for dev := range m.ports6 {
		order = appendOnce(order, dev)
	}
	all := m.store.All6()
	for _, l := range all[:min(len(all), maxListed)] {
		if len(l.Addrs) == 0 || !l.Expires.IsZero() && !l.Expires.After(now) {
			continue
		}
		dev := m.deviceOf(l.Device, l.Addrs[0].Addr())
		if dev == "" {
			continue
		}
		order = appendOnce(order, dev)
		list, key := bus.Array{}, "ipv6-addr"
		for _, a := range l.Addrs {
			e := bus.Table{{Name: "address", Value: a.Addr().String()}, {Name: "preferred-lifetime", Value: left(l.Expires, now)}, {Name: "valid-lifetime", Value: left(l.Expires, now)}}
			if l.PD {
				key = "ipv6-prefix"
				e = append(e, bus.Attr{Name: "prefix-length", Value: int32(a.Bits())})
			}
			list = append(list, e)
		}
		entries[dev] = append(entries[dev], bus.Table{
			{Name: "duid", Value: hex.EncodeToString(l.DUID)},
			{Name: "iaid", Value: int32(l.IAID)},
			{Name: "hostname", Value: l.Name},
			{Name: "accept-reconf", Value: false},
			{Name: "assigned", Value: int32(uint32(l.Part))},
			{Name: "flags", Value: bus.Array{"bound"}},
			{Name: key, Value: list},
			{Name: "valid", Value: left(l.Expires, now)},
		})
	}
	return byDevice(order, entries)
}

// maxExtra bounds what add_lease adds.
const maxExtra = 1024

// addLease is a `host` section until the next restart.
func (m *manager) addLease(t bus.Table) error {
	bad := func(name string) error {
		return fmt.Errorf("argument %s %q: %w", name, t.String(name), bus.StatusInvalidArgument)
	}
	h := &config.Host{Name: t.String("name")}
	if h.Name != "" && !config.ValidName(h.Name) {
		return bad("name")
	}
	for v := range strings.FieldsSeq(t.String("mac")) {
		mac, ok := config.ParseMAC(v)
		if !ok {
			return bad("mac")
		}
		h.MACs = append(h.MACs, mac)
	}
	if v := t.String("duid"); v != "" {
		d, err := hex.DecodeString(strings.ReplaceAll(v, ":", ""))
		if err != nil || len(d) == 0 || len(d) > 130 {
			return bad("duid")
		}
		h.DUIDs, h.IAIDs = [][]byte{d}, []uint32{0}
	}
	if v := t.String("ip"); v != "" {
		a, err := netip.ParseAddr(v)
		if err != nil || !a.Is4() {
			return bad("ip")
		}
		h.IP = a
	}
	if v := t.String("hostid"); v != "" {
		n, err := strconv.ParseUint(v, 16, 64)
		if err != nil {
			return bad("hostid")
		}
		h.HostID = n
	}
	if v := t.String("leasetime"); v != "" {
		d, ok := config.ParseDuration(v)
		if !ok {
			return bad("leasetime")
		}
		h.Lease, h.HasLease = d, true
	}
	if len(h.MACs) == 0 && len(h.DUIDs) == 0 {
		return fmt.Errorf("neither mac nor duid is given: %w", bus.StatusInvalidArgument)
	}
	if len(m.extra) >= maxExtra {
		return fmt.Errorf("%d leases were added already: %w", len(m.extra), bus.StatusNoMemory)
	}
	m.extra = append(m.extra, h)
	m.apply()
	return nil
}

// metrics are those of LEDE's dnsmasq, in its order.
func (m *manager) metrics() bus.Table {
	d, v := &m.dns.Counters, m.d4.Counters()
	_, _, inserted, evicted := m.dns.CacheStats()
	pruned4, pruned6 := m.store.Pruned()
	t := bus.Table{}
	for _, e := range []struct {
		name string
		n    uint64
	}{
		{"dns_cache_inserted", inserted}, {"dns_cache_live_freed", evicted},
		{"dns_queries_forwarded", d.Forwarded.Load()}, {"dns_auth_answered", 0},
		{"dns_local_answered", d.Local.Load() + d.CacheHits.Load()}, {"dns_stale_answered", d.Stale.Load()},
		{"dns_unanswered", d.Unanswered.Load() + d.Refused.Load()},
		{"bootp", 0}, {"pxe", 0}, {"dhcp_ack", v.Ack}, {"dhcp_decline", v.Decline}, {"dhcp_discover", v.Discover},
		{"dhcp_inform", v.Inform}, {"dhcp_nak", v.Nak}, {"dhcp_offer", v.Offer}, {"dhcp_release", v.Release}, {"dhcp_request", v.Request},
		{"noanswer", v.NoAnswer}, {"leases_allocated_4", v.Allocated}, {"leases_pruned_4", pruned4},
		{"leases_allocated_6", m.d6.Allocated()}, {"leases_pruned_6", pruned6}, {"tcp_connections", d.TCP.Load()},
	} {
		t = append(t, bus.Attr{Name: e.name, Value: int32(uint32(e.n))})
	}
	return t
}
