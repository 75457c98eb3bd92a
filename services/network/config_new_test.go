package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// comparePlain compares addresses by value.
var comparePlain = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestParseVLANs(t *testing.T) {
	c := parse(t, `
config device
	option name br-lan
	option type bridge
	list ports lan1
	option igmp_snooping 1
	option stp 1
	option forward_delay 4
config bridge-vlan
	option device br-lan
	option vlan 10
	list ports 'lan1:u*'
	list ports lan2
	list ports 'lan3:t'
config bridge-vlan
	option device br-lan
	option vlan 20
	option local 0
	list ports 'lan2:u*'
	list ports 'lan3:t*'
config device
	option type 8021ad
	option ifname eth0
	option vid 100
	option name outer
config device
	option type 8021q
	option ifname eth1
	option vid 7
config device
	option type macvlan
	option ifname eth2
	option name mv0
	option mode private
config device
	option name eth3
	option txqueuelen 500
	option ipv6 0
	option rpfilter 1
	option promisc 1
	option isolate 1
`)
	yes := true
	want := []*Device{
		{Name: "br-lan", Kind: "bridge", Ports: []string{"lan1", "lan2", "lan3"},
			Settings: map[rtnl.BridgeOption]uint64{rtnl.BridgeSnooping: 1, rtnl.BridgeSTP: 1, rtnl.BridgeForwardDelay: 400},
			VLANs: []BridgeVLAN{
				{10, true, []VLANPort{{"lan1", true, true}, {"lan2", true, true}, {"lan3", false, false}}},
				{20, false, []VLANPort{{"lan2", true, true}, {"lan3", false, true}}},
			}},
		{Name: "outer", Kind: "8021ad", Parent: "eth0", VID: 100},
		{Name: "eth1.7", Kind: "8021q", Parent: "eth1", VID: 7},
		{Name: "mv0", Kind: "macvlan", Parent: "eth2", Mode: "private"},
		{Name: "eth3", TxQueueLen: 500, Promisc: &yes, Isolate: &yes, Sysctls: []sysctl{{"ipv6", "conf", "disable_ipv6", "1"}, {"ipv4", "conf", "rp_filter", "1"}}},
	}
	opts := cmp.Options{cmpopts.IgnoreUnexported(Device{}), cmp.AllowUnexported(sysctl{})}
	if d := cmp.Diff(want, c.Devices, opts); d != "" || len(c.Problems) > 0 {
		t.Errorf("problems %v, -want +got\n%s", c.Problems, d)
	}
	br := c.deviceOf("br-lan")
	for _, tt := range []struct{ port, want string }{
		{"", "map[10:{ false false}]"},
		{"lan1", "map[10:{lan1 true true}]"},
		{"lan2", "map[10:{lan2 true false} 20:{lan2 true true}]"}, // one VLAN for what comes untagged
		{"lan3", "map[10:{lan3 false false} 20:{lan3 false true}]"},
		{"lan9", "map[]"},
	} {
		if got := fmt.Sprint(br.vlanMembers(tt.port)); got != tt.want {
			t.Errorf("port %q: %s, want %s", tt.port, got, tt.want)
		}
	}
	for name, want := range map[string]string{"eth0.5": "8021q eth0 5", "br-lan.4094": "8021q br-lan 4094", "eth0.5.6": "8021q eth0.5 6", "eth0": "  0", "eth0.0": "  0", "eth0.4095": "  0", "eth0.05": "  0", ".5": "  0", "wlan0.sta1": "  0"} {
		d := implicit(name)
		if got := fmt.Sprintf("%s %s %d", d.Kind, d.Parent, d.VID); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestParseRules(t *testing.T) {
	c := parse(t, `
config interface lan
	option device eth0
config interface wan
	option device eth1
config rule
	option in lan
	option src 192.168.1.0/24
	option dest 10.0.0.0/8
	option mark 0x10/0xf0
	option tos 8
	option ipproto tcp
	option dport 80-90
	option lookup 100
config rule
	option priority 500
	option invert 1
	option out wan
	option uidrange 1000-2000
	option lookup main
	option suppress_prefixlength 0
config rule6
	option src fd00::/8
	option action prohibit
config rule6
	option goto 5000
config rule
	option disabled 1
	option lookup nowhere
`)
	base := rtnl.Rule{Family: rtnl.V4, Action: rtnl.ActTable, Suppress: -1, Protocol: unix.RTPROT_STATIC}
	a, b, d, e := base, base, base, base
	a.Priority, a.From, a.To = 1, netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("10.0.0.0/8")
	a.Mark, a.Mask, a.TOS, a.IPProto, a.Dport, a.Table = 0x10, 0xf0, 8, 6, rtnl.Range{First: 80, Last: 90}, 100
	b.Priority, b.Invert, b.UID, b.HasUID, b.Table, b.Suppress = 500, true, rtnl.Range{First: 1000, Last: 2000}, true, 254, 0
	d.Family, d.Priority, d.From, d.Action = rtnl.V6, 1, netip.MustParsePrefix("fd00::/8"), rtnl.ActProhibit
	e.Family, e.Priority, e.Action, e.Goto = rtnl.V6, 2, rtnl.ActGoto, 5000
	want := []Rule{{a, "lan", ""}, {b, "", "wan"}, {d, "", ""}, {e, "", ""}}
	if df := cmp.Diff(want, c.Rules, comparePlain, cmp.AllowUnexported(Rule{})); df != "" || len(c.Problems) > 0 {
		t.Errorf("problems %v, -want +got\n%s", c.Problems, df)
	}
	for options, want := range map[string]string{
		"":                                                "network.x: option lookup '': expected one of the options lookup, goto or action",
		"option in nobody\n\toption lookup 1":             "network.x: option in 'nobody': expected the name of an interface section",
		"option lookup local":                             "network.x: option lookup 'local': expected main, default, the number",
		"option lookup 1\n\toption mark x":                "network.x: option mark 'x': expected a number",
		"option lookup 1\n\toption dport 9-8":             "network.x: option dport '9-8': expected a number or a range",
		"option lookup 1\n\toption ipproto 256":           "network.x: option ipproto '256': expected the number of a protocol",
		"option lookup 1\n\toption src fd00::/8":          "network.x: option src 'fd00::/8': expected an IPv4 network",
		"option action x":                                 "network.x: option action 'x': expected one of prohibit",
		"option goto 5\n\toption suppress_prefixlength 1": "network.x: option suppress_prefixlength '1': expected option lookup beside it",
	} {
		c := parse(t, "config rule x\n\t"+options+"\n")
		if len(c.Problems) != 1 || !strings.HasPrefix(c.Problems[0].Error(), want) || len(c.Rules) > 0 {
			t.Errorf("%q: %v\nwant %s", options, c.Problems, want)
		}
	}
}

func TestParseRouteTypes(t *testing.T) {
	c := parse(t, `
config interface lan
	option device eth0
	option ip4table 100
config route
	option type unreachable
	option target 10.0.0.0/8
config route
	option interface lan
	option type blackhole
	option target 10.1.0.0/16
	option metric 5
config route6
	option interface lan
	option target ::/0
	option gateway fe80::1
	option source 2001:db8::/56
	option mtu 1400
`)
	pfx := netip.MustParsePrefix
	want := []Route{{Dest: pfx("10.1.0.0/16"), Type: unix.RTN_BLACKHOLE, Metric: 5}, {Dest: pfx("::/0"), Via: netip.MustParseAddr("fe80::1"), From: pfx("2001:db8::/56"), MTU: 1400}}
	if d := cmp.Diff(want, c.Interfaces[0].Routes, comparePlain); d != "" || len(c.Problems) > 0 {
		t.Errorf("problems %v, -want +got\n%s", c.Problems, d)
	}
	if d := cmp.Diff([]Route{{Dest: pfx("10.0.0.0/8"), Type: unix.RTN_UNREACHABLE}}, c.DeadEnds, comparePlain); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if c.Interfaces[0].Table4 != 100 || c.Interfaces[0].Table6 != 0 {
		t.Errorf("tables %d, %d", c.Interfaces[0].Table4, c.Interfaces[0].Table6)
	}
	path := filepath.Join(t.TempDir(), "rt_tables")
	if err := os.WriteFile(path, []byte("255\tlocal\n# 1 no\n200 isp # mine\n0x10 hex\nx y\n-1 neg\n3 a b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]int{"local": 255, "isp": 200, "hex": 16}, readTables(path)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestParseDHCPv6(t *testing.T) {
	c := parse(t, `
config globals globals
	option ula_prefix fd12:3456:789a::/48
	option dhcp_default_duid 00040102030405060708090a0b0c0d0e0f10
config interface wan6
	option device @wan
	option proto dhcpv6
	option reqaddress force
	option reqprefix 56
	option forceprefix 1
	option reqopts '21 82'
	option ifaceid ::7
	list ip6prefix 2001:db8:5::/56
config interface wan
	option device eth1
	option proto dhcp
config interface lan
	option device br-lan
	option proto static
	option ip6assign 60
	option ip6hint a0
	option ip6ifaceid eui64
	list ip6class wan6
	list ip6class local
`)
	if len(c.Problems) > 0 {
		t.Fatal(c.Problems)
	}
	want := DHCPv6Options{Address: "force", Prefix: true, PrefixHint: 56, ForcePrefix: true, ReqOpts: []uint16{21, 82}, IfaceID: netip.MustParseAddr("::7"),
		DefaultRoute: true, PeerDNS: true, SourceFilter: true, Release: true, SLAACOnly: true}
	w := c.find("wan6")
	if d := cmp.Diff(want, w.DHCPv6, comparePlain); d != "" || len(w.Problems) > 0 || len(w.Prefixes) != 1 {
		t.Errorf("problems %v, prefixes %v, -want +got\n%s", w.Problems, w.Prefixes, d)
	}
	if d := cmp.Diff(Assign{Length: 60, Hint: 0xa0, Classes: []string{"wan6", "local"}, IfaceID: "eui64"}, c.find("lan").Assign); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if c.ULA.String() != "fd12:3456:789a::/48" || len(c.DUID) != 18 {
		t.Errorf("ULA %s, DUID %x", c.ULA, c.DUID)
	}
	if c := parse(t, "config globals\n\toption ula_prefix auto\n\toption dhcp_default_duid auto\n"); c.ULA.IsValid() || c.DUID != nil || len(c.Problems) > 0 {
		t.Errorf("auto: %v %v %v", c.ULA, c.DUID, c.Problems)
	}
	if d := parse(t, "config interface wan6\n\toption device e\n\toption proto dhcpv6\n\toption reqaddress none\n\toption reqprefix no\n").Interfaces[0].DHCPv6; d.Prefix || d.Address != "none" {
		t.Errorf("%+v", d)
	}
	for options, want := range map[string]string{
		"option reqprefix 65":                      "network.x: option reqprefix '65': expected auto, no, or the length",
		"option reqaddress maybe":                  "network.x: option reqaddress 'maybe': expected one of try, force, none",
		"option ifaceid fd00::1":                   "network.x: option ifaceid 'fd00::1': expected the last half of an address",
		"option clientid 00":                       "network.x: option clientid '00': expected hexadecimal digits",
		"option ip6prefix fd00::/65":               "network.x: option ip6prefix 'fd00::/65': expected an IPv6 prefix",
		"option ip6assign 65":                      "network.x: option ip6assign '65': expected a number from 0 to 64",
		"option ip6assign 64\n\toption ip6hint zz": "network.x: option ip6hint 'zz': expected the hexadecimal number",
	} {
		c := parse(t, "config interface x\n\toption device e\n\toption proto dhcpv6\n\t"+options+"\n")
		if p := c.Interfaces[0].Problems; len(p) != 1 || !strings.HasPrefix(p[0].Error(), want) {
			t.Errorf("%q: %v\nwant %s", options, p, want)
		}
	}
}

func TestParseWireGuard(t *testing.T) {
	const key = "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	const pub = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	c := parse(t, `
config wireguard_wg0
	option public_key `+pub+`
	option endpoint_host vpn.example.org
	option persistent_keepalive 25
	list allowed_ips 10.5.0.0/16
	list allowed_ips ::/0
	option route_allowed_ips 1
config interface wg0
	option proto wireguard
	option private_key `+key+`
	option listen_port 51820
	list addresses 10.5.0.2/24
	list addresses fd05::2/64
config wireguard_wg0 bad
	option public_key short
config wireguard_none lost
	option public_key `+pub+`
`)
	i := c.find("wg0")
	w := i.WireGuard
	if len(i.Problems) > 0 || i.Device != "wg0" || i.MTU != 1420 || w.Port != 51820 || w.Key.String() != key || len(w.Peers) != 1 {
		t.Fatalf("%+v, %+v, problems %v", i, w, i.Problems)
	}
	p := w.Peers[0]
	if p.Key.String() != pub || p.Host != "vpn.example.org" || p.Port != 51820 || p.Keepalive.Seconds() != 25 || !p.Routes || fmt.Sprint(p.Allowed) != "[10.5.0.0/16 ::/0]" {
		t.Errorf("%+v", p)
	}
	if fmt.Sprint(i.Addrs) != "[10.5.0.2/24 fd05::2/64]" {
		t.Errorf("addresses %v", i.Addrs)
	}
	if len(c.Problems) != 2 || !strings.Contains(c.Problems[0].Error(), "network.bad: option public_key 'short'") || !strings.Contains(c.Problems[1].Error(), "network.lost: ") {
		t.Errorf("problems %v", c.Problems)
	}
	// A key is not told.
	c = parse(t, "config interface wg0\n\toption proto wireguard\n\toption private_key secret\n")
	if p := c.Interfaces[0].Problems; len(p) != 1 || strings.Contains(p[0].Error(), "secret") {
		t.Errorf("%v", p)
	}
}
