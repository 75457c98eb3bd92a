package network

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// advertisement makes an advertisement out of options.
func advertisement(flags byte, lifetime uint16, options ...[]byte) []byte {
	b := make([]byte, 16)
	b[0], b[4], b[5] = icmpRouterAdvert, 64, flags
	binary.BigEndian.PutUint16(b[6:], lifetime)
	for _, o := range options {
		b = append(b, o...)
	}
	return b
}

func prefixOption(flags byte, prefix string, preferred, valid uint32) []byte {
	p := netip.MustParsePrefix(prefix)
	o := []byte{ndPrefix, 4, byte(p.Bits()), flags}
	o = binary.BigEndian.AppendUint32(o, valid)
	o = binary.BigEndian.AppendUint32(o, preferred)
	a := p.Addr().As16()
	return append(append(o, 0, 0, 0, 0), a[:]...)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

var routerAddr = netip.MustParseAddr("fe80::1")

func TestParseAdvert(t *testing.T) {
	b := advertisement(0xc8, 1800,
		unhex("0101 020000000001"),
		unhex("0501 0000 000005d4"),
		prefixOption(0xc0, "2001:db8:1::/64", 600, 1200),
		unhex("1802 30 08 00000e10 20010db800ff0000"),
		unhex("1903 0000 00000258 20010db8000000000000000000000053"),
		unhex("1f03 0000 00000258 03 6c616e 07 6578616d706c65 00 000000"),
		unhex("fe01 000000000000"), // unknown
	)
	a, err := parseAdvert(b, routerAddr)
	if err != nil {
		t.Fatal(err)
	}
	want := &advert{
		router: routerAddr, hopLimit: 64, managed: true, other: true, pref: 1, lifetime: 30 * time.Minute, mtu: 1492,
		prefixes: []advertPrefix{{netip.MustParsePrefix("2001:db8:1::/64"), true, true, 10 * time.Minute, 20 * time.Minute}},
		routes:   []advertRoute{{netip.MustParsePrefix("2001:db8:ff::/48"), 1, time.Hour}},
		dns:      []advertDNS{{addr: netip.MustParseAddr("2001:db8::53"), lifetime: 10 * time.Minute}},
		search:   []advertDNS{{name: "lan.example", lifetime: 10 * time.Minute}},
	}
	if !reflect.DeepEqual(a, want) {
		t.Errorf("%+v\nwant %+v", a, want)
	}

	// What RFC 4861 forbids is no advertisement; what makes no sense is left out.
	for name, bad := range map[string]struct {
		b    []byte
		from string
	}{
		"not link-local":    {b, "2001:db8::1"},
		"too short":         {b[:15], "fe80::1"},
		"another type":      {append([]byte{icmpRouterSolicit}, b[1:]...), "fe80::1"},
		"another code":      {append([]byte{icmpRouterAdvert, 1}, b[2:]...), "fe80::1"},
		"an endless option": {advertisement(0, 1, []byte{1, 0, 0, 0, 0, 0, 0, 0}), "fe80::1"},
		"a cut option":      {advertisement(0, 1, []byte{1, 2, 0, 0, 0, 0, 0, 0}), "fe80::1"},
		"a single byte":     {advertisement(0, 1, []byte{1}), "fe80::1"},
	} {
		if a, err := parseAdvert(bad.b, netip.MustParseAddr(bad.from)); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
	a, err = parseAdvert(advertisement(0x10, 0,
		unhex("0501 0000 00000100"), // an MTU that IPv6 does not know
		prefixOption(0xc0, "fe80::/64", 600, 1200), prefixOption(0xc0, "ff02::/64", 600, 1200), prefixOption(0xc0, "2001:db8::/64", 2, 1),
		unhex("1803 40 10 00000e10 20010db8000000000000000000000000"), // a reserved preference
		unhex("1903 0000 00000258 00000000000000000000000000000001"),
		unhex("1f02 0000 00000258 06 610a62206300 00"), // a line break in a name
	), routerAddr)
	if err != nil || a.pref != 0 || a.mtu != 0 || len(a.prefixes)+len(a.routes)+len(a.dns)+len(a.search) != 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestRouterView(t *testing.T) {
	now := time.Unix(1000000, 0)
	var v routerView
	add := func(b []byte, from string) {
		t.Helper()
		a, err := parseAdvert(b, netip.MustParseAddr(from))
		if err != nil {
			t.Fatal(err)
		}
		v.add(a, now)
	}
	i := &Interface{DHCPv6: DHCPv6Options{Address: "try", DefaultRoute: true, PeerDNS: true, SourceFilter: true, SLAACOnly: true}}
	x := &six{mac: net.HardwareAddr{2, 0, 0x5e, 0x10, 0, 1}}
	show := func() string {
		x.view = v
		var c content
		x.content(&c, i, now)
		var out []string
		for _, a := range c.addrs {
			out = append(out, a.String())
		}
		for _, r := range c.routes {
			s := fmt.Sprintf("%s via %s metric %d", r.Dest, r.Via, r.Metric)
			if r.From.IsValid() {
				s += " from " + r.From.String()
			}
			out = append(out, s)
		}
		for _, s := range c.servers {
			out = append(out, "dns "+s.String())
		}
		return strings.Join(out, ", ")
	}
	equal := func(what, want string) {
		t.Helper()
		if got := show(); got != want {
			t.Errorf("%s: %s\nwant %s", what, got, want)
		}
	}
	add(advertisement(0, 1800, prefixOption(0xc0, "2001:db8:1::/64", 600, 10000), unhex("1903 0000 00000258 20010db8000000000000000000000053")), "fe80::1")
	equal("one router", "2001:db8:1::5eff:fe10:1/64, ::/0 via fe80::1 metric 512 from 2001:db8:1::/64, dns 2001:db8::53")
	add(advertisement(0x08, 1800, prefixOption(0x40, "2001:db8:2::/64", 600, 10000), prefixOption(0x80, "2001:db8:3::/64", 600, 600)), "fe80::2")
	equal("another one of high preference, not on the link, and a link without addresses",
		"2001:db8:1::5eff:fe10:1/64, 2001:db8:2::5eff:fe10:1/128, 2001:db8:3::/64 via invalid IP metric 256, "+
			"::/0 via fe80::1 metric 512 from 2001:db8:1::/64, ::/0 via fe80::1 metric 512 from 2001:db8:2::/64, "+
			"::/0 via fe80::2 metric 384 from 2001:db8:1::/64, ::/0 via fe80::2 metric 384 from 2001:db8:2::/64, dns 2001:db8::53")
	if !x.ready(i.DHCPv6, now) {
		t.Error("not ready with addresses")
	}
	if o := (DHCPv6Options{Address: "force", SLAACOnly: true}); x.ready(o, now) {
		t.Error("ready without the address that was asked for")
	}
	if o := (DHCPv6Options{Address: "try"}); x.ready(o, now) {
		t.Error("ready although stateless addresses are not enough")
	}

	// The first one goes; an address cannot be shortened below two hours.
	add(advertisement(0, 0, prefixOption(0xc0, "2001:db8:1::/64", 0, 1)), "fe80::1")
	if e := v.prefixes[netip.MustParsePrefix("2001:db8:1::/64")]; e.Valid.Sub(now) != 2*time.Hour || e.Preferred != now {
		t.Errorf("shortened: %v %v", e.Preferred.Sub(now), e.Valid.Sub(now))
	}
	now = now.Add(601 * time.Second)
	equal("later", "2001:db8:1::5eff:fe10:1/64, 2001:db8:2::5eff:fe10:1/128, ::/0 via fe80::2 metric 384 from 2001:db8:1::/64, ::/0 via fe80::2 metric 384 from 2001:db8:2::/64")
	now = now.Add(3 * time.Hour)
	equal("all over", "")
	if x.ready(i.DHCPv6, now) {
		t.Error("ready with nothing")
	}
}

// TestRouterFlood: no matter what is advertised, little is kept.
func TestRouterFlood(t *testing.T) {
	var v routerView
	now := time.Unix(0, 0)
	for n := range 5000 {
		a := netip.MustParseAddr(fmt.Sprintf("fe80::%x", n+1))
		d := fmt.Sprintf("1903 0000 ffffffff 20010db8%024x", n)
		b := advertisement(0, 9000, prefixOption(0xc0, fmt.Sprintf("2001:db8:%x::/64", n), 1<<32-1, 1<<32-1), unhex(d))
		ad, err := parseAdvert(b, a)
		if err != nil {
			t.Fatal(err)
		}
		v.add(ad, now)
	}
	if len(v.routers) != maxEntries || len(v.prefixes) != maxEntries || len(v.dns) != maxEntries || len(v.order) != maxEntries {
		t.Errorf("%d routers, %d prefixes, %d servers in an order of %d", len(v.routers), len(v.prefixes), len(v.dns), len(v.order))
	}
}

func FuzzAdvert(f *testing.F) {
	f.Add(advertisement(0xc8, 1800, prefixOption(0xc0, "2001:db8:1::/64", 600, 1200), unhex("1802 30 08 00000e10 20010db800ff0000"), unhex("1903 0000 00000258 20010db8000000000000000000000053"), unhex("1f03 0000 00000258 03 6c616e 07 6578616d706c65 00 000000")))
	f.Add(advertisement(0, 0, unhex("1f02 0000 00000258 06 610a62206300 00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAdvert(b, routerAddr)
		if err != nil {
			return
		}
		var v routerView
		now := time.Unix(1000, 0)
		v.add(a, now)
		var c content
		x := &six{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, view: v}
		x.content(&c, &Interface{DHCPv6: DHCPv6Options{DefaultRoute: true, PeerDNS: true}}, now)
		for _, r := range c.routes {
			if !r.Dest.IsValid() || r.Dest != r.Dest.Masked() {
				t.Fatalf("route %+v", r)
			}
		}
		for _, p := range c.addrs {
			if p.Addr().IsMulticast() || p.Addr().IsUnspecified() {
				t.Fatalf("address %s", p.Prefix)
			}
		}
		for _, s := range c.search {
			if !validDomain(s) {
				t.Fatalf("name %q", s)
			}
		}
	})
}
