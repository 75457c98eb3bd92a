package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weft/init/uci"
)

func parse(t testing.TB, text string) *Config {
	t.Helper()
	p, err := uci.Parse("network", strings.NewReader(text), true)
	if err != nil {
		t.Fatal(err)
	}
	return parseConfig(p, "router", nil)
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// dhcpDefaults are the DHCP options of a section that sets none.
var dhcpDefaults = DHCPOptions{Hostname: "router", DefaultRoute: true, PeerDNS: true, Release: true}

func TestParseConfig(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       Interface
	}{
		{"CIDR list (25.12)", "config interface lan\n\toption device br-lan\n\toption proto static\n\tlist ipaddr 192.168.1.1/24\n\tlist ipaddr 10.0.0.1/8\n\tlist ip6addr fd00::1/64\n\toption gateway 192.168.1.254\n\toption ip6gw fe80::1\n\tlist dns 1.1.1.1\n\tlist dns 2001:db8::53\n\tlist dns_search lan\n\toption metric 5\n\toption dns_metric 7\n",
			Interface{Proto: "static", Device: "br-lan", Addrs: prefixes("192.168.1.1/24", "10.0.0.1/8", "fd00::1/64"), Gateways: addrs("192.168.1.254", "fe80::1"), DNS: addrs("1.1.1.1", "2001:db8::53"), DNSSearch: []string{"lan"}, Metric: 5, DNSMetric: 7, ForceLink: true}},
		{"address and netmask (24.10)", "config interface lan\n\toption device eth0\n\toption proto static\n\toption ipaddr 192.168.1.1\n\toption netmask 255.255.255.0\n",
			Interface{Proto: "static", Device: "eth0", Addrs: prefixes("192.168.1.1/24"), ForceLink: true}},
		{"several addresses share the netmask", "config interface lan\n\toption device eth0\n\toption proto static\n\toption ipaddr '10.0.0.1 10.1.0.1/24'\n\toption netmask 255.255.0.0\n",
			Interface{Proto: "static", Device: "eth0", Addrs: prefixes("10.0.0.1/16", "10.1.0.1/24"), ForceLink: true}},
		{"no netmask", "config interface lan\n\toption device eth0\n\toption proto static\n\toption ipaddr 10.0.0.1\n\toption ip6addr fd00::1\n",
			Interface{Proto: "static", Device: "eth0", Addrs: prefixes("10.0.0.1/32", "fd00::1/128"), ForceLink: true}},
		{"address with a netmask behind the slash", "config interface lan\n\toption device eth0\n\toption proto static\n\toption ipaddr 10.0.0.1/255.255.255.128\n",
			Interface{Proto: "static", Device: "eth0", Addrs: prefixes("10.0.0.1/25"), ForceLink: true}},
		{"routes", "config route\n\toption interface lan\n\toption target 10.9.9.9\n\toption netmask 255.255.0.0\n\toption gateway 10.0.0.2\n\toption metric 3\n\toption table main\nconfig interface lan\n\toption device eth0\n\toption multipath backup\nconfig route6\n\toption interface lan\n\toption target fd00:2::1\n\toption gateway fe80::1\n\toption onlink 1\n\toption table 100\n",
			Interface{Proto: "none", Device: "eth0", Multipath: "backup", Routes: []Route{
				{Dest: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.2"), Metric: 3},
				{Dest: netip.MustParsePrefix("fd00:2::1/128"), Via: netip.MustParseAddr("fe80::1"), OnLink: true, Table: 100},
			}}},
		{"names of 19.07", "config interface lan\n\toption ifname eth0\n\toption proto none\n\toption disabled 1\n",
			Interface{Proto: "none", Device: "eth0"}},
		{"no protocol", "config interface lan\n\toption device eth0\n\toption auto 0\n\toption delegate 0\n",
			Interface{Proto: "none", Device: "eth0"}},
		{"dhcp", "config interface lan\n\toption device eth1\n\toption proto dhcp\n\toption hostname box\n\toption vendorid weft\n\toption clientid 01:02:0a\n\toption reqopts '43 66'\n\toption broadcast 1\n\toption peerdns 0\n\toption defaultroute 0\n\toption norelease 1\n\toption macaddr 02:00:00:00:00:01\n\toption mtu 1400\n",
			Interface{Proto: "dhcp", Device: "eth1", MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1400, DHCP: DHCPOptions{Hostname: "box", VendorID: "weft", ClientID: []byte{1, 2, 10}, ReqOpts: []uint8{43, 66}, Broadcast: true}}},
		{"dhcp by default, no hostname", "config interface lan\n\toption device eth1\n\toption proto dhcp\n\toption hostname '*'\n",
			Interface{Proto: "dhcp", Device: "eth1", DHCP: DHCPOptions{DefaultRoute: true, PeerDNS: true, Release: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.text)
			if len(c.Interfaces) != 1 || len(c.Problems) != 0 {
				t.Fatalf("%d interfaces, problems %v", len(c.Interfaces), c.Problems)
			}
			tt.want.Name = "lan"
			tt.want.Auto = !strings.Contains(tt.text, "disabled") && !strings.Contains(tt.text, "auto 0")
			tt.want.Delegation = !strings.Contains(tt.text, "delegate")
			opt := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			opt2 := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if d := cmp.Diff(&tt.want, c.Interfaces[0], opt, opt2); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
	if got := parse(t, "config interface wan\n\toption device eth1\n\toption proto dhcp\n").Interfaces[0].DHCP; !cmp.Equal(got, dhcpDefaults) {
		t.Errorf("defaults: %+v", got)
	}
}

func TestParseDevices(t *testing.T) {
	c := parse(t, "config device\n\toption name br-lan\n\toption type bridge\n\tlist ports eth0\n\tlist ports eth1\n\tlist ports eth0\n\toption macaddr 02:00:00:00:00:01\n\toption mtu 1400\n"+
		"config device\n\toption name eth2\n\toption mtu 9000\n"+
		"config interface guest\n\toption type bridge\n\toption ifname 'eth3 eth4'\n\toption proto static\n\toption ipaddr 10.9.0.1\n\toption netmask 255.255.255.0\n")
	want := []*Device{
		{Name: "br-lan", Kind: "bridge", Ports: []string{"eth0", "eth1"}, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1400},
		{Name: "eth2", MTU: 9000},
		{Name: "br-guest", Kind: "bridge", Ports: []string{"eth3", "eth4"}},
	}
	if d := cmp.Diff(want, c.Devices, cmpopts.IgnoreUnexported(Device{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if i := c.Interfaces[0]; i.Device != "br-guest" || len(i.Problems) > 0 || len(c.Problems) > 0 {
		t.Errorf("interface %+v, problems %v", i, c.Problems)
	}
}

// TestProblems: each fault is named with section, option and what would do,
// and concerns no other section.
func TestProblems(t *testing.T) {
	const good = "config interface good\n\toption device eth9\n\toption proto static\n\toption ipaddr 10.0.0.1/24\n"
	for _, tt := range []struct{ options, want string }{
		{"option device eth0\n\toption proto static\n\toption ipaddr 300.1.1.1", "network.bad: option ipaddr '300.1.1.1': expected an IPv4 address, with or without a length, such as 192.168.1.1/24"},
		{"option device eth0\n\toption proto static\n\toption ipaddr 10.0.0.1/33", "network.bad: option ipaddr '10.0.0.1/33': expected an IPv4 address"},
		{"option device eth0\n\toption proto static\n\toption ipaddr fd00::1/64", "network.bad: option ipaddr 'fd00::1/64': expected an IPv4 address"},
		{"option device eth0\n\toption proto static\n\toption ip6addr fe80::1%eth0/64", "network.bad: option ip6addr 'fe80::1%eth0/64': expected an IPv6 address"},
		{"option device eth0\n\toption proto static\n\toption ipaddr 10.0.0.1\n\toption netmask 255.0.255.0", "network.bad: option netmask '255.0.255.0': expected a netmask such as 255.255.255.0"},
		{"option device eth0\n\toption proto static\n\toption gateway nowhere", "network.bad: option gateway 'nowhere': expected an IPv4 address"},
		{"option device eth0\n\toption proto pppoe", "network.bad: option proto 'pppoe': expected one of none, static, dhcp, dhcpv6, wireguard; others are not available in this version"},
		{"option proto static\n\toption ipaddr 10.0.0.1", "network.bad: option device '': expected the device of the interface"},
		{"option device 'eth0 eth1'\n\toption proto static", "network.bad: option device 'eth0 eth1': expected one device; for several make a device section of type bridge"},
		{"option device a/b\n\toption proto static", "network.bad: option device 'a/b': expected the name of a network device, at most 15 characters"},
		{"option device eth0\n\toption metric -1", "network.bad: option metric '-1': expected a number from 0 to 2147483647"},
		{"option device eth0\n\toption mtu 9", "network.bad: option mtu '9': expected a number from 68 to 65535"},
		{"option device eth0\n\toption auto maybe", "network.bad: option auto 'maybe': expected 0 or 1"},
		{"option device eth0\n\toption macaddr 01:00:00:00:00:01", "network.bad: option macaddr '01:00:00:00:00:01': expected a MAC address of one device"},
		{"option device eth0\n\toption dns 1.1.1", "network.bad: option dns '1.1.1': expected an IP address"},
		{"option device eth0\n\toption dns_search 'a b;c'", "network.bad: option dns_search 'b;c': expected a domain name"},
		{"option device eth0\n\toption proto dhcp\n\toption clientid xyz", "network.bad: option clientid 'xyz': expected hexadecimal digits"},
		{"option device eth0\n\toption proto dhcp\n\toption reqopts '6 300'", "network.bad: option reqopts '300': expected numbers of DHCP options, 1 to 254"},
		{"option device eth0\n\toption proto dhcp\n\toption hostname 'a b'", "network.bad: option hostname 'a b': expected a host name, or * to send none"},
	} {
		c := parse(t, "config interface bad\n\t"+tt.options+"\n"+good)
		bad, ok := c.find("bad"), c.find("good")
		if len(bad.Problems) != 1 || !strings.HasPrefix(bad.Problems[0].Error(), tt.want) {
			t.Errorf("%q: %v\nwant %s", tt.options, bad.Problems, tt.want)
		}
		if len(ok.Problems) > 0 || len(ok.Addrs) != 1 {
			t.Errorf("%q: the other section suffers: %+v", tt.options, ok)
		}
	}
	for text, want := range map[string]string{
		"config device x\n\toption type bridge\n":                                                                                                 "network.x: option name '': expected the name of the device",
		"config device x\n\toption name v\n\toption type bonding\n":                                                                               "network.x: option type 'bonding': expected one of bridge, 8021q, 8021ad, macvlan; others are not available in this version",
		"config device y\n\toption name v\nconfig device x\n\toption name v\n":                                                                    "network.x: option name 'v': expected a name that no other device section has",
		"config route x\n\toption target 10.0.0.0/8\n":                                                                                            "network.x: option interface '': expected the name of an interface section",
		"config interface lan\n\toption device a\n\toption multipath maybe\n":                                                                     "network.lan: option multipath 'maybe': expected one of on, off, backup, master, handover",
		"config interface lan\n\toption device a\nconfig route x\n\toption interface lan\n\toption target fd00::/8\n":                             "network.x: option target 'fd00::/8': expected an IPv4 network or host",
		"config interface lan\n\toption device a\nconfig route x\n\toption interface lan\n\toption target 10.0.0.0/8\n\toption table 255\n":       "network.x: option table '255': expected main, default, the number of a routing table, or a name from /etc/iproute2/rt_tables",
		"config interface lan\n\toption device a\nconfig route6 x\n\toption interface lan\n\toption target fd00::/8\n\toption gateway 10.0.0.1\n": "network.x: option gateway '10.0.0.1': expected an IPv6 address",
		"config device x\n\toption name b\n\toption type bridge\n\tlist ports 'much-too-long-name'":                                               "network.x: option ports 'much-too-long-name': expected the name of a network device",
	} {
		c := parse(t, text)
		if len(c.Problems) != 1 || !strings.HasPrefix(c.Problems[0].Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, c.Problems, want)
		}
	}
}

func TestResolveAlias(t *testing.T) {
	c := parse(t, "config interface wan\n\toption device eth1\nconfig interface wan6\n\toption device @wan\nconfig interface a\n\toption device @b\nconfig interface b\n\toption device @a\nconfig interface c\n\toption device @none\n")
	for name, want := range map[string]string{"wan": "eth1", "wan6": "eth1", "a": "", "c": ""} {
		if got := c.resolve(c.find(name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestSameClient(t *testing.T) {
	base := "config interface wan\n\toption device eth1\n\toption proto dhcp\n"
	for more, want := range map[string]bool{
		"": true, "\toption metric 7\n": true, "\toption peerdns 0\n": true, "\toption dns 1.1.1.1\n": true,
		"\toption hostname x\n": false, "\toption vendorid x\n": false, "\toption macaddr 02:00:00:00:00:09\n": false,
	} {
		if got := sameClient(parse(t, base).Interfaces[0], parse(t, base+more).Interfaces[0]); got != want {
			t.Errorf("%q: %v", more, got)
		}
	}
	if sameClient(parse(t, base).Interfaces[0], parse(t, strings.Replace(base, "eth1", "eth2", 1)).Interfaces[0]) {
		t.Error("another device, the same client")
	}
}

func TestResolverText(t *testing.T) {
	got := string(resolverText([]nameservers{
		{"wan", 0, addrs("192.0.2.1", "2001:db8::1"), []string{"example.org"}},
		{"lan", 0, nil, []string{"lan"}},
		{"backup", 10, addrs("192.0.2.9"), nil},
		{"loopback", 0, nil, nil},
		{"first", -1, addrs("192.0.2.7"), nil},
	}))
	want := "# Interface first\nnameserver 192.0.2.7\n# Interface lan\nsearch lan\n# Interface wan\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch example.org\n# Interface backup\nnameserver 192.0.2.9\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

// TestPlans: a bridge in a bridge, a port of two, and the MAC address.
func TestPlans(t *testing.T) {
	m := newManager(nil, nil)
	m.bus = silent{}
	m.use(parse(t, "config device\n\toption name br-a\n\toption type bridge\n\tlist ports eth0\n\tlist ports br-b\nconfig device\n\toption name br-b\n\toption type bridge\n\tlist ports eth0\n\tlist ports eth1\n"+
		"config interface a\n\toption device br-a\nconfig interface b\n\toption device br-b\nconfig interface off\n\toption device eth5\n\toption auto 0\n"))
	got := ""
	plans := m.plans(nil)
	for _, name := range sortedKeys(plans) {
		got += fmt.Sprintf("%s %s master=%s\n", name, plans[name].kind(), plans[name].master)
	}
	want := "br-a bridge master=\nbr-b bridge master=\neth0  master=br-a\neth1  master=br-b\nlo  master=\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// FuzzConfig: nothing that stands in a file may make the service fall over, or
// get out of it unchecked into the resolver file.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"config interface lan\n\toption device br-lan\n\toption proto static\n\tlist ipaddr 192.168.1.1/24\n\toption dns_search lan\n",
		"config interface wan\n\toption proto dhcp\n\toption ifname '@lan'\n\toption clientid 0102\nconfig device\n\toption name br-lan\n\toption type bridge\n\tlist ports eth0\n",
		sixConfig,
		"config interface a\n\toption device eth0.5\n\toption ip6prefix 2001:db8::/56\n\toption ip6assign 60\n\toption ip6hint ff\n\toption proto static\n\toption ip4table 5\nconfig rule\n\toption in a\n\toption mark 1/2\n\toption lookup 7\n" +
			"config route\n\toption type throw\n\toption target 10.0.0.0/8\nconfig device\n\toption type 8021ad\n\toption ifname v\n\toption vid 1\n\toption name v\n",
		"config device\n\toption name b\n\toption type bridge\nconfig bridge-vlan\n\toption device b\n\toption vlan 3\n\tlist ports x:t*\nconfig interface w\n\toption proto wireguard\nconfig wireguard_w\n\toption public_key x\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, _ := uci.Parse("network", strings.NewReader(text), false)
		if p == nil {
			return
		}
		m := newManager(nil, nil)
		m.bus = silent{}
		m.use(parseConfig(p, "router", nil))
		for _, s := range m.states {
			s.available = true
		}
		m.divide(nil)
		m.uplinks()
		for _, r := range m.rules(nil) {
			if r.Protocol != protocolStatic {
				t.Fatalf("rule %+v", r)
			}
		}
		for _, r := range m.deadEnds() {
			if !r.Dest.IsValid() || !r.deadEnd() {
				t.Fatalf("dead end %+v", r)
			}
		}
		_ = byDepth(m.plans(nil))
		for name, q := range m.plans(nil) {
			if len(name) > maxIfName || strings.Contains(name, "/") {
				t.Fatalf("link %q", name)
			}
			for _, r := range q.routes {
				if !r.Dest.IsValid() {
					t.Fatalf("route %+v", r)
				}
			}
		}
		var all []nameservers
		for _, name := range m.order {
			c := m.states[name].content(time.Now())
			all = append(all, nameservers{name, 0, c.servers, c.search})
			_ = m.interfaceStatus(m.states[name])
		}
		for line := range strings.Lines(string(resolverText(all))) {
			if !strings.HasPrefix(line, "# Interface ") && !strings.HasPrefix(line, "nameserver ") && !strings.HasPrefix(line, "search ") {
				t.Fatalf("resolver line %q", line)
			}
		}
	})
}
