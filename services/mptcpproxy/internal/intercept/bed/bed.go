// Package bed makes a small network for tests: a client and a sink, each in a
// network namespace, and between them a gateway in a third. IPv4 and IPv6.
package bed

import (
	"testing"

	"weft/services/mptcpproxy/internal/nstest"
)

// Addresses of the bed.
const (
	Client4, Client6   = "192.168.1.2", "fd01::2"
	LAN4, LAN6         = "192.168.1.1", "fd01::1" // the gateway, on device lan0
	Far4, Far6         = "192.168.2.1", "fd02::1" // the gateway, on device far0
	Sink4, Sink6       = "192.168.2.2", "fd02::2"
	LANDevice, FarSide = "lan0", "far0"
)

// Bed is such a network; its namespaces are client, gw and sink.
type Bed struct{ *nstest.Set }

// New makes one; it is taken away when the test ends. Without root, the test is
// skipped.
func New(t testing.TB) *Bed {
	t.Helper()
	b := &Bed{nstest.New(t, []string{"client", "gw", "sink"})}
	b.Link("client", "eth0", "gw", LANDevice)
	b.Link("sink", "eth0", "gw", FarSide)
	addr := func(ns, dev, a4, a6 string) {
		b.Run(ns, "ip", "addr", "add", a4+"/24", "dev", dev)
		b.Run(ns, "ip", "link", "set", dev, "up")
		b.Run(ns, "ip", "addr", "add", a6+"/64", "dev", dev, "nodad")
	}
	addr("client", "eth0", Client4, Client6)
	addr("sink", "eth0", Sink4, Sink6)
	addr("gw", LANDevice, LAN4, LAN6)
	addr("gw", FarSide, Far4, Far6)
	for ns, via := range map[string][2]string{"client": {LAN4, LAN6}, "sink": {Far4, Far6}} {
		b.Run(ns, "ip", "route", "add", "default", "via", via[0])
		b.Run(ns, "ip", "-6", "route", "add", "default", "via", via[1])
	}
	b.Sysctl("gw", "net/ipv4/ip_forward", "1")
	b.Sysctl("gw", "net/ipv6/conf/all/forwarding", "1")
	return b
}
