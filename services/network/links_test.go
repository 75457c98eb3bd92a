package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/services/internal/rtnl"
)

// need skips the test on a kernel that cannot make such a link; test-vm/routertest
// runs it in a guest whose kernel can.
func (l *lab) need(link netlink.Link) {
	l.Helper()
	if err := netlink.LinkAdd(link); errors.Is(err, unix.EOPNOTSUPP) {
		l.Skipf("this kernel has no %s devices", link.Type())
	} else if err != nil {
		l.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		l.Fatal(err)
	}
}

// named are the attributes of a link to be.
func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// vlan makes a VLAN device on a link of the test.
func (l *lab) vlan(on string, vid int, proto netlink.VlanProtocol) string {
	l.Helper()
	a := named(fmt.Sprintf("%s.%d", on, vid))
	a.ParentIndex = l.link(on).Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: vid, VlanProtocol: proto}); err != nil {
		l.Fatal(err)
	}
	if err := netlink.LinkSetUp(l.link(a.Name)); err != nil {
		l.Fatal(err)
	}
	return a.Name
}

// asks sends ARP requests for an address on a link until an answer comes.
func (l *lab) asks(link, addr string) {
	l.Helper()
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		l.Fatal(err)
	}
	c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	ip := netip.MustParseAddr(addr).As4()
	from := ip
	from[3] = 77
	req := binary.BigEndian.AppendUint16(nil, 1)
	req = append(req, 8, 0, 6, 4, 0, 1)
	req = append(append(req, ifi.HardwareAddr...), from[:]...)
	req = append(append(req, 0, 0, 0, 0, 0, 0), ip[:]...)
	deadline := time.Now().Add(patience)
	b := make([]byte, 256)
	for time.Now().Before(deadline) {
		if _, err := c.WriteTo(req, &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}); err != nil {
			l.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			l.Fatal(err)
		}
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			if n >= 28 && b[7] == 2 && bytes.Equal(b[14:18], ip[:]) {
				return
			}
		}
	}
	l.Errorf("nobody answers for %s on %s", addr, link)
}

// members lists the VLANs of a link as `bridge vlan` would.
func (l *lab) members(link string) string {
	l.Helper()
	all, err := netlink.BridgeVlanList()
	if err != nil {
		l.Fatal(err)
	}
	var out []string
	for _, v := range all[int32(l.link(link).Attrs().Index)] {
		s := fmt.Sprint(v.Vid)
		if v.EngressUntag() {
			s += "u"
		}
		if v.PortVID() {
			s += "*"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// TestVLANs: bridges with VLAN filtering, VLANs on ports, and VLANs in VLANs.
func TestVLANs(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.veth("eth0", "far0")
	probe := named("probe")
	probe.ParentIndex = l.link("eth0").Attrs().Index
	l.need(&netlink.Vlan{LinkAttrs: probe, VlanId: 9, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD})
	on := true
	l.need(&netlink.Bridge{LinkAttrs: named("probe"), VlanFiltering: &on})
	l.startBus()
	l.veth("eth1", "far1")
	l.veth("eth2", "far2")
	static := func(name, device, addr string) string {
		return fmt.Sprintf("config interface %s\n\toption device %s\n\toption proto static\n\tlist ipaddr %s\n", name, device, addr)
	}
	const bridge = `
config device
	option name br-lan
	option type bridge
	list ports eth0
	list ports eth1
	option igmp_snooping 1
`
	const vlans = `
config bridge-vlan
	option device br-lan
	option vlan 10
	list ports eth0:u*
	list ports eth1:t
config bridge-vlan
	option device br-lan
	option vlan 20
	list ports eth1:t
config device
	option type 8021ad
	option ifname eth2
	option vid 100
	option name outer
`
	interfaces := loopbackConfig + static("lan", "br-lan.10", "192.168.10.1/24") + static("guest", "br-lan.20", "192.168.20.1/24") +
		static("port", "eth2.5", "192.168.5.1/24") + static("inner", "outer.7", "192.168.7.1/24")
	l.config(interfaces + bridge + vlans)
	l.start()
	tagged10, tagged20 := l.vlan("far1", 10, netlink.VLAN_PROTOCOL_8021Q), l.vlan("far1", 20, netlink.VLAN_PROTOCOL_8021Q)
	inner := l.vlan(l.vlan("far2", 100, netlink.VLAN_PROTOCOL_8021AD), 7, netlink.VLAN_PROTOCOL_8021Q)
	for link, addr := range map[string]string{"far0": "192.168.10.1", tagged10: "192.168.10.1", tagged20: "192.168.20.1", l.vlan("far2", 5, netlink.VLAN_PROTOCOL_8021Q): "192.168.5.1", inner: "192.168.7.1"} {
		l.asks(link, addr)
	}
	l.want("eth0", l.members("eth0"), "10u*")
	l.want("eth1", l.members("eth1"), "10 20")
	l.want("br-lan", l.members("br-lan"), "10 20")
	rt, err := rtnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	settings := func() string {
		t.Helper()
		o, err := rt.BridgeOptions(l.link("br-lan").Attrs().Index)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("filtering %d, default %d, snooping %d, STP %d", o[rtnl.BridgeVLANFiltering], o[rtnl.BridgeDefaultPVID], o[rtnl.BridgeSnooping], o[rtnl.BridgeSTP])
	}
	l.want("settings", settings(), "filtering 1, default 0, snooping 1, STP 0")
	if v, ok := l.link("outer").(*netlink.Vlan); !ok || v.VlanProtocol != netlink.VLAN_PROTOCOL_8021AD || v.VlanId != 100 {
		t.Errorf("outer is %+v", l.link("outer"))
	}

	l.settled("far0")
	l.reload()
	if news := l.settled("far0"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}

	// A port changes its VLAN, another VLAN comes; the first one is untouched.
	index := l.link("br-lan.10").Attrs().Index
	l.config(interfaces + static("iot", "br-lan.30", "192.168.30.1/24") + bridge + strings.Replace(vlans, "\toption vlan 20\n", "\toption vlan 30\n\tlist ports eth0:t\n", 1))
	l.reload()
	l.want("eth0", l.members("eth0"), "10u* 30")
	l.want("eth1", l.members("eth1"), "10 30")
	l.asks("far0", "192.168.10.1")
	if l.link("br-lan.10").Attrs().Index != index {
		t.Error("the VLAN device of lan was made anew")
	}
	if g := gone(l.settled("far0")); len(g) > 0 {
		t.Errorf("it took away: %v", g)
	}

	// Another number is another device; without filtering all is as before.
	l.config(loopbackConfig + static("lan", "br-lan", "192.168.10.1/24") + static("inner", "outer", "192.168.7.1/24") + bridge + "config device\n\toption type 8021q\n\toption ifname eth2\n\toption vid 101\n\toption name outer\n")
	l.reload()
	l.want("settings", settings(), "filtering 0, default 1, snooping 1, STP 0")
	if v := l.link("outer").(*netlink.Vlan); v.VlanProtocol != netlink.VLAN_PROTOCOL_8021Q || v.VlanId != 101 {
		t.Errorf("outer is %+v", v)
	}
	l.asks("far0", "192.168.10.1")
	for _, name := range []string{"br-lan.10", "br-lan.20", "br-lan.30", "eth2.5", "outer.7"} {
		if _, err := netlink.LinkByName(name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	l.end()
	if _, err := netlink.LinkByName("outer"); err == nil {
		t.Error("outer is still there after the end")
	}
}

// TestDeviceOptions: what device sections say beside MAC and MTU.
func TestDeviceOptions(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.startBus()
	l.veth("eth0", "far0")
	l.veth("eth1", "far1")
	l.config(loopbackConfig + `
config device
	option name br-lan
	option type bridge
	list ports eth0
	option stp 1
	option forward_delay 2
	option priority 1000
config device
	option name eth1
	option txqueuelen 777
	option ipv6 0
	option promisc 1
	option rpfilter 2
	option sendredirects 0
	option neighgcstaletime 33
config device
	option name mv0
	option type macvlan
	option ifname eth1
	option mode bridge
config device
	option name eth0
	option isolate 1
config interface lan
	option device br-lan
	option proto static
	list ipaddr 192.168.1.1/24
config interface one
	option device eth1
config interface mv
	option device mv0
	option proto static
	list ipaddr 192.168.2.1/24
`)
	l.start()
	rt, err := rtnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	o, err := rt.BridgeOptions(l.link("br-lan").Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	if o[rtnl.BridgeSTP] != 1 || o[rtnl.BridgeForwardDelay] != 200 || o[rtnl.BridgePriority] != 1000 {
		t.Errorf("bridge %v", o)
	}
	a := l.link("eth1").Attrs()
	if a.TxQLen != 777 || a.RawFlags&unix.IFF_PROMISC == 0 {
		t.Errorf("eth1: queue of %d, flags %#x", a.TxQLen, a.RawFlags)
	}
	for path, want := range map[string]string{
		"ipv6/conf/eth1/disable_ipv6": "1", "ipv4/conf/eth1/rp_filter": "2", "ipv4/conf/eth1/send_redirects": "0", "ipv4/neigh/eth1/gc_stale_time": "33", "ipv6/conf/eth0/disable_ipv6": "1",
	} {
		l.want(path, readSetting(t, path), want)
	}
	if p, err := netlink.LinkGetProtinfo(l.link("eth0")); err != nil || !p.Isolated {
		t.Errorf("eth0: %+v, %v", p, err)
	}
	if m, ok := l.link("mv0").(*netlink.Macvlan); !ok || m.Mode != netlink.MACVLAN_MODE_BRIDGE {
		t.Errorf("mv0 is %+v", l.link("mv0"))
	}
	l.want("mv0", l.addresses("mv0"), "192.168.2.1/24")
	if s := l.call("network.device", "status", map[string]any{"name": "mv0"}); !strings.Contains(s, `"type":"MAC VLAN"`) {
		t.Errorf("status of mv0: %s", s)
	}
	l.settled("far0")
	l.reload()
	if news := l.settled("far0"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}
}

// TestWireGuard: a tunnel that comes up, and keeps its sessions when something
// else changes.
func TestWireGuard(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.need(&netlink.Wireguard{LinkAttrs: named("probe")})
	l.startBus()
	l.veth("eth0", "far0")
	wg, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer wg.Close()
	key := func() wgtypes.Key {
		k, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	mine, other, third := key(), key(), key()
	// The far end, in the same namespace.
	if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: named("far")}); err != nil {
		t.Fatal(err)
	}
	port := 40000
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	if err := wg.ConfigureDevice("far", wgtypes.Config{PrivateKey: &other, ListenPort: &port, Peers: []wgtypes.PeerConfig{{PublicKey: mine.PublicKey(), AllowedIPs: []net.IPNet{*all}}}}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l.link("far")); err != nil {
		t.Fatal(err)
	}
	config := loopbackConfig + `
config interface wan
	option device eth0
	option proto static
	list ipaddr 192.0.2.2/24
	option gateway 192.0.2.1
config interface vpn
	option proto wireguard
	option private_key ` + mine.String() + `
	list addresses 10.5.0.2/24
	list addresses fd05::2/64
config wireguard_vpn
	option public_key ` + other.PublicKey().String() + `
	option endpoint_host 127.0.0.1
	option endpoint_port 40000
	option persistent_keepalive 1
	option route_allowed_ips 1
	list allowed_ips 10.5.0.0/16
`
	l.config(config)
	l.start()
	peer := func() wgtypes.Peer {
		t.Helper()
		d, err := wg.Device("vpn")
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Peers) == 0 {
			return wgtypes.Peer{}
		}
		return d.Peers[slices.IndexFunc(d.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == other.PublicKey() })]
	}
	l.want("addresses", l.addresses("vpn"), "10.5.0.2/24 fd05::2/64")
	l.want("routes", l.routes("vpn"), "10.5.0.0/16")
	l.poll("the tunnel is up", func() bool { return !peer().LastHandshakeTime.IsZero() })
	if mtu := l.link("vpn").Attrs().MTU; mtu != 1420 {
		t.Errorf("MTU %d", mtu)
	}
	l.settled("far0")
	l.reload()
	if news := l.settled("far0"); len(news) > 0 {
		t.Errorf("reload without a change did: %v", news)
	}
	// A second peer behind the gateway: the session with the first goes on.
	before := peer()
	l.config(config + "config wireguard_vpn\n\toption public_key " + third.PublicKey().String() + "\n\toption endpoint_host 198.51.100.9\n\tlist allowed_ips 10.6.0.0/16\n")
	l.reload()
	if now := peer(); now.LastHandshakeTime.Before(before.LastHandshakeTime) || now.TransmitBytes < before.TransmitBytes {
		t.Errorf("the session was lost: %+v", now)
	}
	if !strings.Contains(l.routes("eth0"), "198.51.100.9/32 via 192.0.2.1") {
		t.Errorf("no route to the far end: %s", l.routes("eth0"))
	}
	// It goes again, the first one gets another port.
	l.config(strings.Replace(config, "endpoint_port 40000", "endpoint_port 40001", 1))
	l.reload()
	d, err := wg.Device("vpn")
	if err != nil || len(d.Peers) != 1 || d.Peers[0].Endpoint.Port != 40001 {
		t.Errorf("%+v, %v", d, err)
	}
	if strings.Contains(l.log.String(), mine.String()) {
		t.Error("the log has the private key")
	}
	l.end()
	if _, err := netlink.LinkByName("vpn"); err == nil {
		t.Error("the device is still there after the end")
	}
}

// poll waits for a condition that no event announces.
func (l *lab) poll(what string, cond func() bool) {
	l.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			l.Fatalf("waited in vain until %s", what)
		}
	}
}

// TestFailureIsNoLoop: what cannot be done is tried again now and then, also if
// the try itself makes news of links.
func TestFailureIsNoLoop(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.veth("eth0", "far0")
	on := true
	switch err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: named("probe"), VlanFiltering: &on}); {
	case err == nil:
		t.Skip("this kernel can do all that is asked for")
	case !errors.Is(err, unix.EOPNOTSUPP):
		t.Fatal(err)
	}
	l.config(loopbackConfig + "config device\n\toption name br-lan\n\toption type bridge\n\tlist ports eth0\nconfig bridge-vlan\n\toption device br-lan\n\toption vlan 10\n\tlist ports eth0\n" +
		"config interface lan\n\toption device br-lan\n\toption proto static\n\tlist ipaddr 192.168.1.1/24\n")
	l.start()
	l.poll("the log names the fault", func() bool { return strings.Contains(l.log.String(), "not everything is as configured") })
	// A machine of any speed makes far more than this of a loop.
	const few = 300
	n := 0
	for over := time.After(failPause + time.Second); ; {
		select {
		case <-l.news:
			n++
			continue
		case <-over:
		}
		break
	}
	if n > few {
		t.Errorf("%d changes in the kernel while nothing happened", n)
	}
}
