package network

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// rules lists the policy rules of the service.
func (l *lab) rules() string {
	l.Helper()
	c, err := rtnl.Dial()
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	var out []string
	for _, family := range []int{rtnl.V4, rtnl.V6} {
		rs, err := c.Rules(family, protocolStatic)
		if err != nil {
			l.Fatal(err)
		}
		for _, r := range rs {
			s := fmt.Sprintf("%d: from %s table %d", r.Priority, r.From, r.Table)
			if r.Suppress >= 0 {
				s += fmt.Sprint(" suppress ", r.Suppress)
			}
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// deadEnds lists the routes that lead nowhere.
func (l *lab) deadEnds() string {
	l.Helper()
	c, err := rtnl.Dial()
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	var out []string
	for _, family := range []int{rtnl.V4, rtnl.V6} {
		rs, err := c.Routes(family, protocolStatic, 0)
		if err != nil {
			l.Fatal(err)
		}
		for _, r := range rs {
			if x := (Route{Type: r.Type}); x.deadEnd() {
				out = append(out, fmt.Sprintf("%s %s metric %d", x.typeName(), r.Dest, r.Metric))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// way tells over which link packets from an address go to another.
func (l *lab) way(from, to string) string {
	l.Helper()
	rs, err := netlink.RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(from)})
	if err != nil {
		return err.Error()
	}
	link, err := netlink.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		l.Fatal(err)
	}
	return link.Attrs().Name
}

const sixConfig = loopbackConfig + `
config globals globals
	option ula_prefix fd12:3456:789a::/48
	option dhcp_default_duid 00040102030405060708090a0b0c0d0e0f10
config device
	option name br-lan
	option type bridge
	list ports eth0
config interface lan
	option device br-lan
	option proto static
	list ipaddr 192.168.1.1/24
	option ip6assign 60
config interface wan
	option device eth1
	option proto dhcp
config interface wan6
	option device eth1
	option proto dhcpv6
`

// TestDelegation is the default configuration of a router whose provider
// delegates a prefix.
func TestDelegation(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	given := serverConfig{Client: "10.77.0.50", Prefix: "2001:db8:ff00::/56", Advert: "2001:db8:1::/64", Life: 3600}
	s := l.dhcpServer("eth1", given)
	l.config(sixConfig)
	l.start()
	const ula = "fd12:3456:789a::1/60"
	lan := func(prefix string) {
		t.Helper()
		l.until("lan has its part of "+prefix, func() bool {
			return slices.Equal(strings.Fields(l.addresses("br-lan")), strings.Fields("192.168.1.1/24 "+prefix+" "+ula))
		})
	}
	lan("2001:db8:ff00::1/60")
	l.until("wan has its addresses", func() bool {
		return strings.HasPrefix(l.addresses("eth1"), "10.77.0.50/24 2001:db8:1::") || strings.Contains(l.addresses("eth1"), "2001:db8:1:0:")
	})
	l.until("the default routes are there", func() bool {
		r := l.routes("eth1")
		return strings.Contains(r, "::/0 via fe80::") && strings.Contains(r, " from 2001:db8:ff00::/56 metric 512") && strings.Contains(r, " from 2001:db8:1::/64 metric 512") &&
			strings.Contains(r, "0.0.0.0/0 via 10.77.0.1")
	})
	l.until("there are dead ends", func() bool {
		return l.deadEnds() == "unreachable 2001:db8:ff00::/56 metric 2147483647, unreachable fd12:3456:789a::/48 metric 2147483647"
	})
	l.want("rules with one uplink for each family", l.rules(), "")
	l.want("way of a client of the LAN", l.way("2001:db8:ff00::1", "2001:db8:77::1"), "eth1")

	// The shapes of the bus.
	l.published("network.interface.wan6")
	l.until("the bus knows the lease", func() bool {
		return strings.Contains(l.call("network.interface.wan6", "status", nil), `"class":"wan6"`)
	})
	type entry map[string]any
	seconds := func(e entry) {
		t.Helper()
		for _, k := range []string{"preferred", "valid"} {
			if n, ok := e[k].(float64); !ok || n < 1 || n > 3600 {
				t.Errorf("%s of %v", k, e)
			}
			delete(e, k)
		}
	}
	var wan6, lanStatus struct {
		Up          bool    `json:"up"`
		Device      string  `json:"l3_device"`
		Addresses   []entry `json:"ipv6-address"`
		Prefixes    []entry `json:"ipv6-prefix"`
		Assignments []entry `json:"ipv6-prefix-assignment"`
		Servers     []any   `json:"dns-server"`
	}
	if err := json.Unmarshal([]byte(l.call("network.interface.wan6", "status", nil)), &wan6); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(l.call("network.interface.lan", "status", nil)), &lanStatus); err != nil {
		t.Fatal(err)
	}
	if !wan6.Up || wan6.Device != "eth1" || len(wan6.Prefixes) != 1 || len(wan6.Addresses) != 1 || len(lanStatus.Assignments) != 2 || len(lanStatus.Addresses) != 0 {
		t.Fatalf("wan6 %+v\nlan %+v", wan6, lanStatus)
	}
	seconds(wan6.Prefixes[0])
	seconds(wan6.Addresses[0])
	seconds(lanStatus.Assignments[1])
	part := map[string]any{"address": "2001:db8:ff00::", "mask": 60.0}
	if d := cmp.Diff(entry{"address": "2001:db8:ff00::", "mask": 56.0, "class": "wan6", "assigned": map[string]any{"lan": part}}, wan6.Prefixes[0]); d != "" {
		t.Errorf("prefix, -want +got\n%s", d)
	}
	if d := cmp.Diff([]entry{
		{"address": "fd12:3456:789a::", "mask": 60.0, "local-address": map[string]any{"address": "fd12:3456:789a::1", "mask": 60.0}},
		{"address": "2001:db8:ff00::", "mask": 60.0, "local-address": map[string]any{"address": "2001:db8:ff00::1", "mask": 60.0}},
	}, lanStatus.Assignments); d != "" {
		t.Errorf("assignments, -want +got\n%s", d)
	}
	if d := cmp.Diff([]any{"2001:db8:53::53"}, wan6.Servers); d != "" {
		t.Errorf("servers, -want +got\n%s", d)
	}

	// The same again: nothing happens at all, nobody is asked.
	l.settled("far0")
	s.forget()
	l.reload()
	if news := gone(l.settled("far0")); len(news) > 0 {
		t.Errorf("reload without a change took away: %v", news)
	}

	// Another prefix at the renewal.
	given.Prefix = "2001:db8:ee00::/56"
	s.set(given)
	l.call("network.interface.wan6", "renew", nil)
	s.expect("six RENEW")
	// The old one lives on for its time, as the server did not take it back.
	l.until("lan has parts of both", func() bool {
		a := l.addresses("br-lan")
		return strings.Contains(a, "2001:db8:ee00::1/60") && strings.Contains(a, "2001:db8:ff00::1/60")
	})

	// The cable is pulled, and put back.
	l.drain()
	given.Down = true
	s.set(given)
	l.event("ifdown", "wan6")
	lan("")
	l.until("the dead end of the uplink is gone", func() bool { return l.deadEnds() == "unreachable fd12:3456:789a::/48 metric 2147483647" })
	given.Down = false
	s.set(given)
	lan("2001:db8:ee00::1/60")

	// What was given is given back at the end.
	l.end()
	if line := s.expect("six RELEASE"); line != `six RELEASE holds "2001:db8:ee00::/56"` {
		t.Error(line)
	}
	l.want("dead ends after the end", l.deadEnds(), "")
}

// TestSLAACOnly: without DHCPv6 the addresses of advertisements are enough, and
// they end when their time is over.
func TestSLAACOnly(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	given := serverConfig{Client: "10.77.0.50", Advert: "2001:db8:1::/64", Life: 3600}
	s := l.dhcpServer("eth1", given)
	l.config(sixConfig)
	l.start()
	own := func() string {
		for _, a := range strings.Fields(l.addresses("eth1")) {
			if strings.HasPrefix(a, "2001:db8:1:") && strings.HasSuffix(a, "/64") {
				return a
			}
		}
		return ""
	}
	l.until("wan6 has an address", func() bool { return own() != "" })
	l.published("network.interface.wan6")
	l.until("wan6 is up", func() bool {
		return strings.Contains(l.call("network.interface.wan6", "status", nil), `"up":true`)
	})
	l.until("the LAN has no part of it", func() bool { return l.addresses("br-lan") == "192.168.1.1/24 fd12:3456:789a::1/60" })
	deprecated := func() bool {
		list, err := netlink.AddrList(l.link("eth1"), netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(a netlink.Addr) bool {
			p, _ := toPrefix(a.IPNet)
			return p.String() == own() && a.Flags&unix.IFA_F_DEPRECATED != 0
		})
	}
	if deprecated() {
		t.Error("the address is not for use from the start")
	}
	// The router takes the prefix back: not to be used for anything new.
	given.Life = 0
	s.set(given)
	l.until("the address is deprecated", deprecated)
	if own() == "" {
		t.Error("one packet took the address away")
	}
	if accept := readSetting(t, "ipv6/conf/eth1/accept_ra"); accept != "0" {
		t.Errorf("the kernel handles advertisements as well: accept_ra is %s", accept)
	}
}

// TestUplinks: with several uplinks each has its table, and answers leave by the
// uplink whose address they have.
func TestUplinks(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	one := serverConfig{Client: "10.77.0.50"}
	two := serverConfig{Client: "10.88.0.50", Server: "10.88.0.1"}
	first := l.dhcpServer("eth1", one)
	l.dhcpServer("eth2", two)
	config := strings.Replace(lanConfig[:strings.Index(lanConfig, "\toption gateway")], "\tlist ports eth1\n", "", 1) +
		"config interface wan\n\toption device eth1\n\toption proto dhcp\n\toption metric 1\n" +
		"config interface wanb\n\toption device eth2\n\toption proto dhcp\n\toption metric 2\n"
	l.config(config)
	l.start()
	const both = "10000: from 10.77.0.50/32 table 254 suppress 0, 10000: from 10.88.0.50/32 table 254 suppress 0, " +
		"10001: from 10.77.0.50/32 table 63000, 10001: from 10.88.0.50/32 table 63001"
	l.until("both uplinks have their rules", func() bool {
		return l.addresses("eth1") == "10.77.0.50/24" && l.addresses("eth2") == "10.88.0.50/24" && strings.Count(l.rules(), ",") == 3
	})
	a, b := "63000", "63001"
	if l.rules() != both { // by which was first
		a, b = b, a
	}
	l.want("rules", l.rules(), strings.NewReplacer("table 63000", "table "+a, "table 63001", "table "+b).Replace(both))
	l.until("the routes are there", func() bool {
		return l.routes("eth1") == "0.0.0.0/0 via 10.77.0.1 src 10.77.0.50 metric 1, 0.0.0.0/0 via 10.77.0.1 src 10.77.0.50 metric 1 table "+a &&
			l.routes("eth2") == "0.0.0.0/0 via 10.88.0.1 src 10.88.0.50 metric 2, 0.0.0.0/0 via 10.88.0.1 src 10.88.0.50 metric 2 table "+b
	})
	for _, w := range [][3]string{
		{"10.77.0.50", "198.51.100.1", "eth1"}, {"10.88.0.50", "198.51.100.1", "eth2"}, {"", "198.51.100.1", "eth1"},
		{"10.88.0.50", "192.168.1.7", "br-lan"}, // the LAN is a neighbour for all
		{"10.77.0.50", "10.88.0.7", "eth2"},
	} {
		l.want("way from "+w[0]+" to "+w[1], l.way(w[0], w[1]), w[2])
	}
	l.settled("far0")
	l.reload()
	if news := l.settled("far0"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}

	// One uplink is lost: the other one is all there is.
	one.Down = true
	first.set(one)
	l.until("one uplink is left", func() bool {
		return l.rules() == "" && l.routes("eth2") == "0.0.0.0/0 via 10.88.0.1 src 10.88.0.50 metric 2" && l.addresses("eth1") == ""
	})
	l.want("way with one uplink", l.way("", "198.51.100.1"), "eth2")
	one.Down = false
	first.set(one)
	l.until("both are back", func() bool { return strings.Count(l.rules(), ",") == 3 && l.addresses("eth1") == "10.77.0.50/24" })
	l.until("the first is preferred", func() bool { return l.way("", "198.51.100.1") == "eth1" })
	l.end()
	l.want("rules after the end", l.rules(), "")
}

// TestRulesAndTables: the sections rule, and the options of interfaces and
// routes that choose tables.
func TestRulesAndTables(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	config := loopbackConfig + `
config interface lan
	option device eth0
	option proto static
	option ipaddr 192.168.1.1/24
config interface vpn
	option device eth1
	option proto static
	option ipaddr 10.5.0.2/24
	option gateway 10.5.0.1
	option ip4table 100
config route
	option type unreachable
	option target 10.0.0.0/8
config route6
	option type blackhole
	option target 2001:db8:dead::/48
	option metric 7
config rule
	option in lan
	option src 192.168.1.128/25
	option lookup 100
config rule6
	option src fd00:5::/64
	option ipproto udp
	option dport 53
	option lookup 100
`
	l.config(config)
	l.start()
	l.want("routes of vpn", l.routes("eth1"), "0.0.0.0/0 via 10.5.0.1 table 100, 10.5.0.0/24 table 100")
	l.want("dead ends", l.deadEnds(), "blackhole 2001:db8:dead::/48 metric 7, unreachable 10.0.0.0/8 metric 0")
	const rules = "10000: from 10.5.0.2/32 table 254 suppress 0, 10001: from 10.5.0.2/32 table 100, 1: from 192.168.1.128/25 table 100, 1: from fd00:5::/64 table 100"
	l.want("rules", l.rules(), rules)
	l.want("way from vpn", l.way("10.5.0.2", "198.51.100.1"), "eth1")
	l.settled("far0")
	l.reload()
	if news := l.settled("far0"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}
	// A rule of somebody else stays, one of ours goes with its section.
	mine := netlink.NewRule()
	mine.Family, mine.Priority, mine.Table = netlink.FAMILY_V4, 77, 100
	if err := netlink.RuleAdd(mine); err != nil {
		t.Fatal(err)
	}
	l.config(config[:strings.Index(config, "config route\n")])
	l.reload()
	l.want("rules without sections", l.rules(), "10000: from 10.5.0.2/32 table 254 suppress 0, 10001: from 10.5.0.2/32 table 100")
	l.want("dead ends without sections", l.deadEnds(), "")
	all, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil || !slices.ContainsFunc(all, func(r netlink.Rule) bool { return r.Priority == 77 }) {
		t.Errorf("somebody else's rule: %v, %v", all, err)
	}
}

// TestSameRouteTwice: two uplinks without metrics do not take each other's
// routes away.
func TestSameRouteTwice(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.veth("eth1", "far1")
	l.veth("eth2", "far2")
	text := loopbackConfig
	for n := 1; n <= 2; n++ {
		text += fmt.Sprintf("config interface wan%d\n\toption device eth%d\n\toption proto static\n\toption ipaddr 10.%d.0.2/24\n\toption gateway 10.%d.0.1\n\toption ip6addr fd00:%d::2/64\n\toption ip6gw fd00:%d::1\n", n, n, n, n, n, n)
	}
	l.config(text)
	l.start()
	check := func() {
		t.Helper()
		for n := 1; n <= 2; n++ {
			table := 62999 + n
			l.want("routes", l.routes(fmt.Sprintf("eth%d", n)), fmt.Sprintf("0.0.0.0/0 via 10.%d.0.1, 0.0.0.0/0 via 10.%d.0.1 table %d, ::/0 via fd00:%d::1 metric 1024, ::/0 via fd00:%d::1 metric 1024 table %d", n, n, table, n, n, table))
			l.want("way", l.way(fmt.Sprintf("10.%d.0.2", n), "198.51.100.1"), fmt.Sprintf("eth%d", n))
		}
	}
	check()
	l.reload()
	check()
}

// readSetting reads a file below /proc/sys/net.
func readSetting(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestEUI64(t *testing.T) {
	mac, _ := net.ParseMAC("34:56:78:9a:bc:de")
	a, ok := ownAddress(netip.MustParsePrefix("2001:db8::/64"), netip.Addr{}, mac)
	if !ok || a.String() != "2001:db8::3656:78ff:fe9a:bcde" { // RFC 4291, appendix A
		t.Errorf("%s, %v", a, ok)
	}
}
