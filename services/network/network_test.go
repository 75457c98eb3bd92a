package network

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
)

const loopbackConfig = "config interface loopback\n\toption device lo\n\toption proto static\n\tlist ipaddr 127.0.0.1/8\n"

const lanConfig = loopbackConfig + `
config device
	option name br-lan
	option type bridge
	list ports eth0
	list ports eth1
config interface lan
	option device br-lan
	option proto static
	option ipaddr 192.168.1.1
	option netmask 255.255.255.0
	option ip6addr fd00:1::1/64
	option gateway 192.168.1.254
	option metric 5
	list dns 192.168.1.254
	list dns_search lan
`

// withoutNumbers makes a status comparable.
func withoutNumbers(t *testing.T, status string, keys ...string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(status), &m); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if _, ok := m[k]; !ok {
			t.Errorf("no %s in %s", k, status)
		}
		delete(m, k)
	}
	return m
}

func TestStatic(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	l.config(lanConfig)
	l.start()
	l.staticRoutes()

	l.want("lo", l.addresses("lo"), "127.0.0.1/8 ::1/128")
	l.want("br-lan", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	l.want("routes", l.routes("br-lan"), "0.0.0.0/0 via 192.168.1.254 metric 5")
	br := l.link("br-lan").Attrs()
	for _, port := range []string{"eth0", "eth1"} {
		a := l.link(port).Attrs()
		if a.MasterIndex != br.Index || a.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("port %s: %+v", port, a)
		}
	}
	l.want("MAC of the bridge", br.HardwareAddr.String(), l.link("eth0").Attrs().HardwareAddr.String())
	resolver, err := os.ReadFile(filepath.Join(l.dir, "state/resolv.conf"))
	if err != nil {
		t.Fatal(err)
	}
	l.want("resolver", string(resolver), "# Interface lan\nnameserver 192.168.1.254\nsearch lan\n")

	// The shapes of the bus; being ready includes the objects.
	status := l.call("network.interface.lan", "status", nil)
	want := `{"up":true,"pending":false,"available":true,"autostart":true,"dynamic":false,"uptime":0,"l3_device":"br-lan","proto":"static","device":"br-lan","metric":5,"dns_metric":0,"delegation":true,` +
		`"ipv4-address":[{"address":"192.168.1.1","mask":24}],"ipv6-address":[{"address":"fd00:1::1","mask":64}],"ipv6-prefix":[],"ipv6-prefix-assignment":[],` +
		`"route":[{"target":"0.0.0.0","mask":0,"nexthop":"192.168.1.254","metric":5,"source":"0.0.0.0/0"}],"dns-server":["192.168.1.254"],"dns-search":["lan"],"neighbors":[],` +
		`"inactive":{"ipv4-address":[],"ipv6-address":[],"route":[],"dns-server":[],"dns-search":[],"neighbors":[]},"data":{}}`
	if d := cmp.Diff(withoutNumbers(t, want, "uptime"), withoutNumbers(t, status, "uptime")); d != "" {
		t.Errorf("status, -want +got\n%s", d)
	}
	order := []string{`"up"`, `"pending"`, `"available"`, `"l3_device"`, `"proto"`, `"device"`, `"ipv4-address"`, `"route"`, `"inactive"`, `"data"`}
	at := -1
	for _, key := range order {
		if i := strings.Index(status, key); i < at {
			t.Errorf("%s comes too early in %s", key, status)
		} else {
			at = i
		}
	}
	dump := l.call("network.interface", "dump", nil)
	if !strings.HasPrefix(dump, `{"interface":[{"interface":"lan","up":true,`) || !strings.Contains(dump, `{"interface":"loopback","up":true,`) {
		t.Errorf("dump: %s", dump)
	}
	l.want("status by name", l.call("network.interface", "status", map[string]any{"interface": "lan"})[:10], status[:10])
	dev := withoutNumbers(t, l.call("network.device", "status", map[string]any{"name": "br-lan"}), "macaddr", "statistics", "txqueuelen", "mtu")
	wantDev := map[string]any{"external": false, "present": true, "type": "bridge", "up": true, "carrier": true, "bridge-members": []any{"eth0", "eth1"}, "ipv6": true}
	if d := cmp.Diff(wantDev, dev); d != "" {
		t.Errorf("device status, -want +got\n%s", d)
	}
	if all := l.call("network.device", "status", nil); !strings.Contains(all, `"eth0":{`) || !strings.Contains(all, `"lo":{`) {
		t.Errorf("status of all devices: %s", all)
	}
	if h := l.call("network", "get_proto_handlers", nil); !strings.Contains(h, `"dhcp":{"no_device":false}`) {
		t.Errorf("protocols: %s", h)
	}

	// Stop: nothing of it is left.
	l.end()
	if _, err := netlink.LinkByName("br-lan"); err == nil {
		t.Error("the bridge is still there")
	}
	l.want("lo after the end", l.addresses("lo"), "127.0.0.1/8 ::1/128")
	if l.link("eth0").Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Error("eth0 is still up")
	}
}

// gone are the news of things that were taken away, but for the routes that the
// kernel makes and removes with addresses by itself.
func gone(news []string) []string {
	return slices.DeleteFunc(news, func(n string) bool {
		own := strings.HasPrefix(n, "gone route ") && strings.HasSuffix(n, " via <nil>")
		return !strings.HasPrefix(n, "gone ") || own
	})
}

// TestReloadTouchesOnlyWhatDiffers watches the kernel while the configuration
// changes around things that stay.
func TestReloadTouchesOnlyWhatDiffers(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	l.veth("eth2", "far2")
	l.config(lanConfig)
	l.start()
	l.until("IPv6 duplicate detection is over", func() bool {
		list, err := netlink.AddrList(l.link("br-lan"), netlink.FAMILY_V6)
		return err == nil && !slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	})

	l.settled("far2")

	// The same again: nothing happens at all.
	l.reload()
	if news := l.settled("far2"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}

	// More addresses, one port more, another order, the newer way to write it.
	l.config(strings.NewReplacer(
		"\toption ipaddr 192.168.1.1\n\toption netmask 255.255.255.0\n", "\tlist ipaddr 10.9.0.1/16\n\tlist ipaddr 192.168.1.1/24\n\tlist ipaddr 192.168.1.2/24\n",
		"\tlist ports eth0\n\tlist ports eth1\n", "\tlist ports eth0\n\tlist ports eth2\n\tlist ports eth1\n").Replace(lanConfig))
	l.reload()
	l.want("addresses", l.addresses("br-lan"), "10.9.0.1/16 192.168.1.1/24 192.168.1.2/24 fd00:1::1/64")
	if l.link("eth2").Attrs().MasterIndex != l.link("br-lan").Attrs().Index {
		t.Error("eth2 is no port")
	}
	if g := gone(l.settled("far2")); len(g) > 0 {
		t.Errorf("adding took away: %v", g)
	}

	// The first address of the subnet goes; the second one must not go with it.
	l.config(strings.Replace(lanConfig, "\toption ipaddr 192.168.1.1\n\toption netmask 255.255.255.0\n", "\tlist ipaddr 192.168.1.2/24\n", 1))
	l.reload()
	l.want("addresses", l.addresses("br-lan"), "192.168.1.2/24 fd00:1::1/64")
	l.want("routes", l.routes("br-lan"), "0.0.0.0/0 via 192.168.1.254 metric 5")
	if l.link("eth2").Attrs().MasterIndex != 0 {
		t.Error("eth2 is still a port")
	}
	for _, n := range gone(l.settled("far2")) {
		if n != "gone address 192.168.1.1/24" && n != "gone address 10.9.0.1/16" && !strings.HasPrefix(n, "gone link eth2 ") {
			t.Errorf("removing also took away: %s", n)
		}
	}

	// Another gateway and metric; MAC and MTU of the bridge.
	l.config(strings.NewReplacer("192.168.1.254\n\toption metric 5", "192.168.1.253\n\toption metric 6", "\toption type bridge\n", "\toption type bridge\n\toption macaddr 02:00:00:00:00:42\n\toption mtu 1400\n").Replace(lanConfig))
	l.reload()
	l.want("routes", l.routes("br-lan"), "0.0.0.0/0 via 192.168.1.253 metric 6")
	if a := l.link("br-lan").Attrs(); a.HardwareAddr.String() != "02:00:00:00:00:42" || a.MTU != 1400 {
		t.Errorf("MAC %s, MTU %d", a.HardwareAddr, a.MTU)
	}
	for _, n := range gone(l.settled("far2")) {
		if n != "gone address 192.168.1.2/24" && n != "gone route 0.0.0.0/0 via 192.168.1.254" {
			t.Errorf("another gateway took away: %s", n)
		}
	}

	// Everything gone but loopback.
	l.config(loopbackConfig)
	l.reload()
	if _, err := netlink.LinkByName("br-lan"); err == nil {
		t.Error("the bridge is still there")
	}
	l.want("port", l.addresses("eth0"), "")
}

// TestTakesOverAfterCrash starts on what a killed service left.
func TestTakesOverAfterCrash(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	log := newManager(quiet, nil).log
	k, err := newKernel(log)
	if err != nil {
		t.Fatal(err)
	}
	// What the service does, without its end.
	m := newManager(quiet, k)
	m.bus, m.resolver = silent{}, l.dir
	m.use(parse(t, lanConfig+"config interface old\n\toption device br-old\nconfig device\n\toption name br-old\n\toption type bridge\n"))
	m.loopOnce(t)
	k.close()
	stale := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 66, 6, 6), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(l.link("br-lan"), stale); err != nil {
		t.Fatal(err)
	}
	l.until("the stale address is there", func() bool { return strings.Contains(l.addresses("br-lan"), "10.66.6.6/24") })
	index := l.link("br-lan").Attrs().Index
	l.drain()

	l.config(lanConfig)
	l.start()
	l.want("addresses", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	if l.link("br-lan").Attrs().Index != index {
		t.Error("the bridge was made anew")
	}
	if _, err := netlink.LinkByName("br-old"); err == nil {
		t.Error("the bridge of the former configuration is still there")
	}
	for _, n := range l.drain() {
		if strings.HasPrefix(n, "gone address") && !strings.Contains(n, "10.66.6.6") && !strings.Contains(n, "fe80") {
			t.Errorf("taken away: %s", n)
		}
	}
}

// loopOnce does what the loop does after an event.
func (m *manager) loopOnce(t *testing.T) {
	t.Helper()
	m.retry = time.NewTimer(time.Hour)
	m.reconcile(t.Context())
	for _, name := range m.order {
		if s := m.states[name]; s.cfg.Proto == "static" && !s.up {
			t.Fatalf("%s is not up: %+v", name, s.faults)
		}
	}
}

func TestBadSectionHurtsNoOther(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	bad := "config interface bad\n\toption device eth1\n\toption proto static\n\toption ipaddr 300.1.1.1\n"
	l.config(lanConfig + bad + "\toption proto\n\tbroken line\n")
	l.start()
	l.want("lan", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	for _, want := range []string{
		"network.bad: option ipaddr '300.1.1.1': expected an IPv4 address, with or without a length",
		"config/network:" + strconv.Itoa(strings.Count(lanConfig+bad, "\n")+2) + ": invalid command",
	} {
		if !strings.Contains(l.log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	l.published("network.interface.bad")
	status := l.call("network.interface.bad", "status", nil)
	if !strings.Contains(status, `"up":false`) || !strings.Contains(status, `"errors":[{"subsystem":"config","code":"INVALID_OPTION","data":["ipaddr","300.1.1.1"`) {
		t.Errorf("status: %s", status)
	}

	// A file that cannot be read leaves all as it is.
	path := filepath.Join(l.dir, "config/network")
	for _, breakIt := range []func() error{
		func() error { return os.Remove(path) },
		func() error { return os.Mkdir(path, 0o755) },
	} {
		if err := breakIt(); err != nil {
			t.Fatal(err)
		}
		l.reload()
		l.want("lan", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	}
	if !strings.Contains(l.log.String(), "the last good one stays in force") {
		t.Error("the log says nothing of it")
	}
	// And a repaired section comes up.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.config(lanConfig + strings.Replace(bad, "300.1.1.1", "10.3.0.1/24", 1))
	l.reload()
	// eth1 is a port of br-lan, too; a port can have an address all the same.
	l.want("bad", l.addresses("eth1"), "10.3.0.1/24")
}

func TestLinksComeAndGo(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.config(lanConfig + "config interface dmz\n\toption device eth5\n\toption proto static\n\toption ipaddr 10.5.0.1/24\n" +
		"config interface wire\n\toption device eth6\n\toption proto static\n\toption force_link 0\n\toption ipaddr 10.6.0.1/24\n")
	l.start() // ready, though there is no device for dmz
	l.want("lan without ports", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	l.published("network.interface.dmz")
	status := l.call("network.interface.dmz", "status", nil)
	if !strings.Contains(status, `"up":false`) || !strings.Contains(status, `"available":false`) || !strings.Contains(status, `"code":"NO_DEVICE"`) {
		t.Errorf("status without a device: %s", status)
	}
	event := l.event

	l.veth("eth5", "far5")
	event("ifup", "dmz")
	l.want("dmz", l.addresses("eth5"), "10.5.0.1/24")

	// A port that comes later joins the bridge.
	l.veth("eth0", "far0")
	l.until("eth0 is a port", func() bool { return l.link("eth0").Attrs().MasterIndex == l.link("br-lan").Attrs().Index })

	if err := netlink.LinkDel(l.link("eth5")); err != nil {
		t.Fatal(err)
	}
	event("ifdown", "dmz")
	l.veth("eth5", "far5")
	event("ifup", "dmz")
	l.want("dmz again", l.addresses("eth5"), "10.5.0.1/24")

	// An interface that wants a carrier follows it.
	l.veth("eth6", "far6")
	event("ifup", "wire")
	if err := netlink.LinkSetDown(l.link("far6")); err != nil {
		t.Fatal(err)
	}
	event("ifdown", "wire")
	l.until("the address is gone", func() bool { return l.addresses("eth6") == "" })
	if err := netlink.LinkSetUp(l.link("far6")); err != nil {
		t.Fatal(err)
	}
	event("ifup", "wire")
	l.want("wire", l.addresses("eth6"), "10.6.0.1/24")
}

func TestUpAndDown(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.config(lanConfig + "config interface later\n\toption device eth0\n\toption proto none\n\toption auto 0\n")
	l.start()
	l.published("network.interface.lan")
	l.published("network.interface.later")
	if s := l.call("network.interface.later", "status", nil); !strings.Contains(s, `"up":false`) || !strings.Contains(s, `"autostart":false`) {
		t.Errorf("later: %s", s)
	}
	l.call("network.interface.lan", "down", nil)
	l.until("the bridge is gone", func() bool { _, err := netlink.LinkByName("br-lan"); return err != nil })
	if s := l.call("network.interface.lan", "status", nil); !strings.Contains(s, `"up":false`) {
		t.Errorf("after down: %s", s)
	}
	l.reload() // does not bring it up: somebody took it down on purpose
	if _, err := netlink.LinkByName("br-lan"); err == nil {
		t.Error("a reload brought it up")
	}
	l.call("network.interface", "up", map[string]any{"interface": "lan"})
	l.until("the bridge is back", func() bool {
		_, err := netlink.LinkByName("br-lan")
		return err == nil && l.addresses("br-lan") == "192.168.1.1/24 fd00:1::1/64"
	})
	l.drain()
	l.call("network", "restart", nil)
	l.until("all is back after the restart", func() bool {
		_, err := netlink.LinkByName("br-lan")
		return err == nil && l.addresses("br-lan") == "192.168.1.1/24 fd00:1::1/64"
	})
	for object, want := range map[string]string{"network.interface.none": "not found", "network.device": ""} {
		_, err := l.client.Call(t.Context(), object, "status", map[string]any{"name": "none"})
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), want) {
			t.Errorf("%s: %v", object, err)
		}
	}
}

// TestWithoutBus: the service does its work and keeps trying.
func TestWithoutBus(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.veth("eth0", "far0")
	l.config(lanConfig)
	l.start()
	l.want("lan", l.addresses("br-lan"), "192.168.1.1/24 fd00:1::1/64")
	l.startBus()
	if _, err := l.client.OnEvent("ubus.object.add", func(string, bus.Table) { l.news <- "object" }); err != nil {
		t.Fatal(err)
	}
	l.published("network.interface.lan")
	if s := l.call("network.interface.lan", "status", nil); !strings.Contains(s, `"up":true`) {
		t.Errorf("status: %s", s)
	}
}

const wanConfig = loopbackConfig + "config interface wan\n\toption device eth0\n\toption proto dhcp\n\toption hostname box\n\toption vendorid weft\n\toption clientid 00aabb\n\toption reqopts 66\n\toption metric 10\n"

func TestDHCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	s := l.dhcpServer("eth0", serverConfig{Client: "10.77.0.50"})
	l.config(wanConfig)
	l.start()
	line := s.expect("DISCOVER")
	l.want("discover", line, `DISCOVER broadcast host="box" vendor="weft" id=00aabb opts=true`)
	up := func(addr string) {
		t.Helper()
		l.until("wan has "+addr, func() bool { return l.addresses("eth0") == addr })
	}
	up("10.77.0.50/24")
	l.until("the route is there", func() bool {
		return l.routes("eth0") == "0.0.0.0/0 via 10.77.0.1 src 10.77.0.50 metric 10"
	})
	l.published("network.interface.wan")
	l.until("the status says so", func() bool {
		st := l.call("network.interface.wan", "status", nil)
		return strings.Contains(st, `"up":true`) &&
			strings.Contains(st, `"route":[{"target":"0.0.0.0","mask":0,"nexthop":"10.77.0.1","metric":10,"source":"10.77.0.50\/32"}]`) &&
			strings.Contains(st, `"dns-server":["10.77.0.1"],"dns-search":["example.org"]`) &&
			strings.Contains(st, `"data":{"dhcpserver":"10.77.0.1","leasetime":3600}`)
	})
	resolver := func() string {
		b, _ := os.ReadFile(filepath.Join(l.dir, "state/resolv.conf.d/resolv.conf.auto"))
		return string(b)
	}
	l.until("the resolver is known", func() bool { return resolver() == "# Interface wan\nnameserver 10.77.0.1\nsearch example.org\n" })

	// Renewal goes to the server alone and takes nothing away.
	l.drain()
	s.forget()
	l.call("network.interface.wan", "renew", nil)
	l.want("renewal", s.expect("REQUEST"), `REQUEST unicast host="box" vendor="weft" id=00aabb opts=true`)
	l.reload()
	if g := gone(l.drain()); len(g) > 0 {
		t.Errorf("the renewal took away: %v", g)
	}

	// Options that only tell how to use the lease ask for none.
	s.forget()
	l.config(strings.Replace(wanConfig, "metric 10", "metric 20\n\toption peerdns 0\n\tlist dns 9.9.9.9", 1))
	l.reload()
	l.want("routes", l.routes("eth0"), "0.0.0.0/0 via 10.77.0.1 src 10.77.0.50 metric 20")
	l.want("resolver", resolver(), "# Interface wan\nnameserver 9.9.9.9\n")
	select {
	case line := <-s.out:
		t.Errorf("the server heard %s", line)
	default:
	}

	// A refused renewal: another address.
	s.set(serverConfig{Client: "10.77.0.60", Mode: "nak"})
	l.call("network.interface.wan", "renew", nil)
	s.expect("REQUEST unicast")
	l.until("the refused address is gone", func() bool { return l.addresses("eth0") == "" && l.routes("eth0") == "" })
	s.set(serverConfig{Client: "10.77.0.60", Routes: true})
	up("10.77.0.60/24")
	l.until("classless routes replace the router", func() bool {
		return l.routes("eth0") == "0.0.0.0/0 via 10.77.0.1 src 10.77.0.60 metric 20, 192.168.0.0/16 via 10.77.0.9 src 10.77.0.60 metric 20"
	})

	// The end gives the address back.
	s.forget()
	l.end()
	l.want("release", s.expect("RELEASE"), `RELEASE unicast host="box" vendor="weft" id=00aabb opts=false`)
	l.want("address after the end", l.addresses("eth0"), "")
	l.want("resolver after the end", resolver(), "")
}

// TestReadyWithoutAnswer: a silent uplink keeps nobody waiting.
func TestReadyWithoutAnswer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	s := l.dhcpServer("eth0", serverConfig{Mode: "silent"})
	l.config(wanConfig + "config interface lan\n\toption device lo\n\toption proto static\n\toption ipaddr 10.5.0.1/24\n")
	l.start()
	l.want("static address", l.addresses("lo"), "10.5.0.1/24 127.0.0.1/8 ::1/128")
	s.expect("DISCOVER")
	l.published("network.interface.wan")
	if st := l.call("network.interface.wan", "status", nil); !strings.Contains(st, `"up":false,"pending":true,"available":true`) {
		t.Errorf("status: %s", st)
	}
	// Then the server wakes up.
	s.set(serverConfig{Client: "10.77.0.50"})
	l.until("wan is up", func() bool { return l.addresses("eth0") == "10.77.0.50/24" })
	// The cable is pulled: the address goes, and comes back with the cable.
	s.set(serverConfig{Down: true})
	l.event("ifdown", "wan")
	l.until("the address is gone", func() bool { return l.addresses("eth0") == "" })
	s.forget()
	s.set(serverConfig{Client: "10.77.0.51"})
	l.event("ifup", "wan")
	l.want("address", l.addresses("eth0"), "10.77.0.51/24")

	// Somebody sets the link down, and the kernel drops its routes: all of it
	// comes back.
	route := l.routes("eth0")
	if err := netlink.LinkSetDown(l.link("eth0")); err != nil {
		t.Fatal(err)
	}
	l.until("the link is up with its route", func() bool {
		return l.link("eth0").Attrs().RawFlags&unix.IFF_UP != 0 && l.routes("eth0") == route && route != ""
	})
	l.want("address", l.addresses("eth0"), "10.77.0.51/24")
}

// staticRoutes changes the route sections and looks at what the kernel has; in
// the end the configuration is as before.
func (l *lab) staticRoutes() {
	l.Helper()
	const def = "0.0.0.0/0 via 192.168.1.254 metric 5"
	l.config(lanConfig + `
config route
	option interface lan
	option target 10.9.0.0/16
	option gateway 192.168.1.9
config route
	option interface lan
	option target 10.7.0.1
	option gateway 172.16.0.1
	option onlink 1
	option table 100
config route6
	option interface lan
	option target fd00:9::/64
	option gateway fd00:1::9
	option metric 7
`)
	l.reload()
	l.until("the routes are there", func() bool {
		return l.routes("br-lan") == def+", 10.7.0.1/32 via 172.16.0.1 table 100, 10.9.0.0/16 via 192.168.1.9, fd00:9::/64 via fd00:1::9 metric 7"
	})
	l.config(lanConfig)
	l.reload()
	l.until("the routes are gone", func() bool { return l.routes("br-lan") == def })
}
