package network

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestTunnelChange: a device gets what differs, and nothing else.
func TestTunnelChange(t *testing.T) {
	key := func(b byte) (k wgtypes.Key) { k[0] = b; return k }
	end := netip.MustParseAddrPort("192.0.2.1:51820")
	tun := func(set netip.AddrPort) *tunnel {
		return &tunnel{found: map[string]netip.Addr{"far": end.Addr()}, set: map[wgtypes.Key]netip.AddrPort{key(2): set}}
	}
	shared := key(9)
	want := &WireGuard{Key: key(1), Port: 51820, Mark: 7, Peers: []Peer{{Key: key(2), Shared: &shared, Host: "far", Port: 51820, Keepalive: 25 * time.Second, Allowed: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}
	device := func(change func(*wgtypes.Device)) *wgtypes.Device {
		d := &wgtypes.Device{PrivateKey: key(1), ListenPort: 51820, FirewallMark: 7, Peers: []wgtypes.Peer{{
			PublicKey: key(2), PresharedKey: shared, Endpoint: net.UDPAddrFromAddrPort(end), PersistentKeepaliveInterval: 25 * time.Second,
			AllowedIPs: []net.IPNet{*toIPNet(netip.MustParsePrefix("10.0.0.0/8"))},
		}}}
		if change != nil {
			change(d)
		}
		return d
	}
	if c, differs := tun(end).change(device(nil), want); differs {
		t.Errorf("nothing differs: %+v", c)
	}
	// A peer that roams keeps the address that it has now.
	roamed := device(func(d *wgtypes.Device) { d.Peers[0].Endpoint = &net.UDPAddr{IP: net.IPv4(198, 51, 100, 7), Port: 9} })
	if c, differs := tun(end).change(roamed, want); differs {
		t.Errorf("a peer that roams: %+v", c)
	}
	if c, _ := tun(netip.AddrPort{}).change(roamed, want); len(c.Peers) != 1 || c.Peers[0].Endpoint.AddrPort() != end {
		t.Errorf("another far end in the configuration: %+v", c)
	}
	c, _ := tun(end).change(device(func(d *wgtypes.Device) { d.PrivateKey, d.FirewallMark, d.ListenPort = key(8), 0, 1 }), want)
	if len(c.Peers) != 0 || *c.PrivateKey != key(1) || *c.FirewallMark != 7 || *c.ListenPort != 51820 {
		t.Errorf("the device itself: %+v", c)
	}
	c, _ = tun(end).change(device(func(d *wgtypes.Device) { d.Peers = nil }), want)
	if len(c.Peers) != 1 || c.Peers[0].Endpoint.AddrPort() != end || *c.Peers[0].PresharedKey != shared || *c.Peers[0].PersistentKeepaliveInterval != 25*time.Second || len(c.Peers[0].AllowedIPs) != 1 {
		t.Errorf("a new peer: %+v", c.Peers)
	}
	c, _ = tun(end).change(device(func(d *wgtypes.Device) {
		d.Peers[0].AllowedIPs = append(d.Peers[0].AllowedIPs, *toIPNet(netip.MustParsePrefix("0.0.0.0/0")))
	}), want)
	if len(c.Peers) != 1 || !c.Peers[0].ReplaceAllowedIPs || len(c.Peers[0].AllowedIPs) != 1 || c.Peers[0].Endpoint != nil {
		t.Errorf("too much allowed: %+v", c.Peers)
	}
	c, _ = tun(end).change(device(func(d *wgtypes.Device) { d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: key(3)}) }), want)
	if len(c.Peers) != 1 || !c.Peers[0].Remove || c.Peers[0].PublicKey != key(3) {
		t.Errorf("a peer too much: %+v", c.Peers)
	}
}
