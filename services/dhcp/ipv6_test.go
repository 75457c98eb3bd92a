package dhcp

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/init/bus"
)

// network is what the network service would say.
type network struct {
	mu       sync.Mutex
	prefixes []string // of the LAN, as address/length preferred valid; 0 for ever
	uplink   bool
}

func (n *network) dump() bus.Table {
	n.mu.Lock()
	defer n.mu.Unlock()
	assigned := bus.Array{}
	for _, p := range n.prefixes {
		var text string
		var preferred, valid int32
		fmt.Sscan(p, &text, &preferred, &valid)
		q := netip.MustParsePrefix(text)
		local := bus.Table{{Name: "address", Value: q.Addr().Next().String()}, {Name: "mask", Value: int32(q.Bits())}}
		e := bus.Table{{Name: "address", Value: q.Addr().String()}, {Name: "mask", Value: int32(q.Bits())}, {Name: "local-address", Value: local}}
		if valid > 0 {
			e = append(e, bus.Attr{Name: "preferred", Value: preferred}, bus.Attr{Name: "valid", Value: valid})
		}
		assigned = append(assigned, e)
	}
	all := bus.Array{bus.Table{
		{Name: "interface", Value: "lan"}, {Name: "up", Value: true}, {Name: "l3_device", Value: "br-lan"}, {Name: "proto", Value: "static"},
		{Name: "ipv4-address", Value: bus.Array{bus.Table{{Name: "address", Value: "192.168.1.1"}, {Name: "mask", Value: int32(24)}}}},
		{Name: "ipv6-address", Value: bus.Array{}}, {Name: "ipv6-prefix-assignment", Value: assigned}, {Name: "route", Value: bus.Array{}},
	}}
	if n.uplink {
		all = append(all, bus.Table{
			{Name: "interface", Value: "wan6"}, {Name: "up", Value: true}, {Name: "l3_device", Value: "lo"}, {Name: "proto", Value: "dhcpv6"},
			{Name: "route", Value: bus.Array{bus.Table{{Name: "target", Value: "::"}, {Name: "mask", Value: int32(0)}, {Name: "nexthop", Value: "fe80::1"}}}},
		})
	}
	return bus.Table{{Name: "interface", Value: all}}
}

func (n *network) set(uplink bool, prefixes ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.uplink, n.prefixes = uplink, prefixes
}

// advert is a router advertisement as rdisc6 or a host would read it.
type advert struct {
	flags    byte
	lifetime int
	prefixes map[string][2]uint32 // valid, preferred
	options  map[byte][]byte
}

func (l *lab) solicit() advert {
	l.Helper()
	b, err := hex.DecodeString(strings.TrimSpace(l.clientHelper("router")))
	l.must(err)
	a := advert{flags: b[5], lifetime: int(b[6])<<8 | int(b[7]), prefixes: map[string][2]uint32{}, options: map[byte][]byte{}}
	u32 := func(b []byte) uint32 { return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) }
	for o := b[16:]; len(o) >= 8; o = o[8*int(o[1]):] {
		if o[0] == 3 {
			p := netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:32])), int(o[2]))
			a.prefixes[p.String()] = [2]uint32{u32(o[4:]), u32(o[8:])}
		}
		a.options[o[0]] = o[:8*int(o[1])]
	}
	return a
}

func TestIPv6(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	n := &network{}
	n.set(true, "fd00:1::/60 0 0", "2001:db8:1::/60 1000 2000")
	changed := l.broker(n.dump)
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, "", ""))
	l.start()

	var a advert
	l.eventually("the delegated prefix", func() bool {
		a = l.solicit()
		_, ok := a.prefixes["2001:db8:1::/64"]
		return ok
	})
	if a.flags != 0xc0 {
		t.Errorf("flags %#x, want managed and other", a.flags)
	}
	if a.lifetime != 1800 {
		t.Errorf("router lifetime %d, want 1800", a.lifetime)
	}
	if p, ok := a.prefixes["fd00:1::/64"]; !ok || p != [2]uint32{5400, 2700} {
		t.Errorf("local prefix: %v in %v", p, a.prefixes)
	}
	if p := a.prefixes["2001:db8:1::/64"]; p[0] > 2000 || p[0] == 0 || p[1] > 1000 || p[1] == 0 {
		t.Errorf("delegated prefix has lives %v, want at most 2000 and 1000", p)
	}
	if o := a.options[25]; len(o) != 24 || netip.AddrFrom16([16]byte(o[8:])) != netip.MustParseAddr("fd00:1::1") {
		t.Errorf("RDNSS %x", o)
	}
	if o := a.options[31]; !strings.Contains(string(o), "\x03lan\x00") {
		t.Errorf("DNSSL %q", o)
	}
	first := a.prefixes["2001:db8:1::/64"][0]
	l.eventually("lifetimes to go down", func() bool { return l.solicit().prefixes["2001:db8:1::/64"][0] < first })

	// The uplink has gone, and the prefix with it.
	n.set(false, "fd00:1::/60 0 0")
	changed()
	l.eventually("the prefix to be given up", func() bool {
		a = l.solicit()
		p, ok := a.prefixes["2001:db8:1::/64"]
		return ok && p == [2]uint32{}
	})
	if a.lifetime != 0 {
		t.Errorf("router lifetime %d without a default route", a.lifetime)
	}
	if p := a.prefixes["fd00:1::/64"]; p != [2]uint32{5400, 2700} {
		t.Errorf("local prefix: %v", p)
	}

	// The foreign judge, if there is one.
	if rdisc6, err := exec.LookPath("rdisc6"); err == nil {
		out, err := l.clientCmd(rdisc6, "-1", "-r", "40", "-w", "2000", "cli0").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "fd00:1::/64") {
			t.Errorf("rdisc6: %v\n%s", err, out)
		}
	} else {
		t.Log("rdisc6 (ndisc6) is not installed: one judge less")
	}

	// Addresses and prefixes by DHCPv6, out of a new prefix, with a route.
	n.set(true, "2001:db8:2::/56 1000 2000")
	changed()
	l.eventually("the new prefix", func() bool { _, ok := l.solicit().prefixes["2001:db8:2::/64"]; return ok })
	dhclient := l.judge("dhclient", "isc-dhcp-client")
	script := l.file("script", "#!/bin/sh\nexit 0\n")
	l.must(os.Chmod(script, 0o755))
	lf := filepath.Join(l.dir, "leases6")
	out, err := l.clientCmd(dhclient, "-6", "-P", "-N", "-1", "-v", "-lf", lf, "-pf", lf+".pid", "-sf", script, "cli0").CombinedOutput()
	if err != nil {
		t.Fatalf("dhclient: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(lf + ".pid"); err == nil {
		defer l.inClient("kill", strings.TrimSpace(string(b)))
	}
	b, err := os.ReadFile(lf)
	l.must(err)
	if s := string(b); !strings.Contains(s, "iaaddr 2001:db8:2::") || !strings.Contains(s, "iaprefix 2001:db8:2:") || !strings.Contains(s, "/62") {
		t.Errorf("dhclient's lease:\n%s", s)
	}
	l.eventually("a route to the delegated prefix", func() bool {
		out, err := exec.Command("ip", "-6", "route", "show", "dev", "br-lan").CombinedOutput()
		return err == nil && strings.Contains(string(out), "/62 via fe80::")
	})

	// On the bus as odhcpd tells it.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := l.bus.Call(ctx, "dhcp", "ipv6leases", nil)
	l.must(err)
	var got struct {
		Device map[string]struct {
			Leases []struct {
				DUID   string `json:"duid"`
				Valid  int    `json:"valid"`
				Addrs  []any  `json:"ipv6-addr"`
				Prefix []struct {
					Address string `json:"address"`
					Length  int    `json:"prefix-length"`
				} `json:"ipv6-prefix"`
			} `json:"leases"`
		} `json:"device"`
	}
	l.must(r.Decode(&got))
	na, pd := 0, 0
	for _, e := range got.Device["br-lan"].Leases {
		na += len(e.Addrs)
		for _, p := range e.Prefix {
			if p.Length == 62 && strings.HasPrefix(p.Address, "2001:db8:2:") {
				pd++
			}
		}
	}
	if na != 1 || pd != 1 {
		t.Errorf("ipv6leases: %v", r)
	}
}

func TestBus(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	n := &network{}
	n.set(false)
	l.broker(n.dump)
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, "", ""))
	l.start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := make(chan bus.Table, 100)
	l.eventually("the object dnsmasq", func() bool {
		infos, err := l.bus.Lookup(ctx, "d*")
		return err == nil && len(infos) == 2
	})
	stop, err := l.bus.Subscribe("dnsmasq", func(method string, data bus.Table) {
		events <- append(bus.Table{{Name: "event", Value: method}}, data...)
	})
	l.must(err)
	defer stop()
	scripts := make(chan bus.Table, 100)
	_, err = l.bus.Publish(&bus.Object{Name: "hotplug.dhcp", Methods: []bus.Method{{Name: "call", Handle: func(_ context.Context, r *bus.Request) error {
		scripts <- r.Args
		return nil
	}}}})
	l.must(err)
	// A lease that is wished for on the bus, then asked for by its client.
	_, err = l.bus.Call(ctx, "dhcp", "add_lease", bus.Table{{Name: "mac", Value: "02:01:00:00:00:00"}, {Name: "ip", Value: "192.168.1.77"}, {Name: "name", Value: "wished"}})
	l.must(err)
	if got := l.clientHelper("crowd", "1", "1"); strings.TrimSpace(got) != "02:01:00:00:00:00 192.168.1.77" {
		t.Errorf("the client got %q", got)
	}
	wait := func(what string, c chan bus.Table) bus.Table {
		t.Helper()
		select {
		case e := <-c:
			return e
		case <-time.After(patience):
			t.Fatalf("no %s", what)
			return nil
		}
	}
	e := wait("event", events)
	if e.String("event") != "dhcp.ack" || e.String("mac") != "02:01:00:00:00:00" || e.String("ip") != "192.168.1.77" || e.String("name") != "wished" || e.String("interface") != "br-lan" {
		t.Errorf("event %v", e)
	}
	if env := fmt.Sprint(wait("hotplug call", scripts).Get("env")); !strings.Contains(env, "ACTION=add") || !strings.Contains(env, "MACADDR=02:01:00:00:00:00 IPADDR=192.168.1.77 HOSTNAME=wished") {
		t.Errorf("hotplug environment %s", env)
	}
	r, err := l.bus.Call(ctx, "dhcp", "ipv4leases", nil)
	l.must(err)
	if s := fmt.Sprint(r); !strings.Contains(s, "br-lan") || !strings.Contains(s, "020100000000") || !strings.Contains(s, "192.168.1.77") || !strings.Contains(s, "wished") {
		t.Errorf("ipv4leases %s", s)
	}
	r, err = l.bus.Call(ctx, "dnsmasq", "metrics", nil)
	l.must(err)
	if r.Get("dhcp_ack") != int32(1) || r.Get("leases_allocated_4") != int32(1) || !r.Has("dns_cache_inserted") {
		t.Errorf("metrics %v", r)
	}
	if _, err := l.bus.Call(ctx, "dhcp", "add_lease", bus.Table{{Name: "mac", Value: "nonsense"}}); err == nil {
		t.Error("a lease for nonsense was accepted")
	}
}
