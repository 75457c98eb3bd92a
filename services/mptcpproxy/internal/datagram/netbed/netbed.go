// Package netbed makes networks for tests: a client behind a near gateway, a
// sink behind a far one, and paths between the gateways, each host in a
// network namespace. Near and far own 10.N.0.1 and 10.N.0.2 (fd0N:: for IPv6)
// on device pN of path N; the client is 192.168.1.2 and fd01:1::2, the sink
// 192.168.2.2 and fd01:2::2.
package netbed

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/nstest"
)

// Namespaces of a bed.
const (
	Client = "client"
	Near   = "near"
	Far    = "far"
	Sink   = "sink"
)

// Addresses of the hosts.
var (
	Client4 = netip.MustParseAddr("192.168.1.2")
	Sink4   = netip.MustParseAddr("192.168.2.2")
	Client6 = netip.MustParseAddr("fd01:1::2")
	Sink6   = netip.MustParseAddr("fd01:2::2")
)

// Bed is one network.
type Bed struct {
	*nstest.Set
	workers map[string]chan func() // by namespace; only read once New is done
}

// New makes a network with paths paths. It is taken away when the test ends.
// Without root, iproute2 or nft the test is skipped.
func New(t testing.TB, paths int) *Bed {
	t.Helper()
	names := []string{Client, Near, Far, Sink}
	b := &Bed{nstest.New(t, names, "tc", "nft"), map[string]chan func(){}}
	for _, n := range names {
		w, ready := make(chan func()), make(chan error)
		b.workers[n] = w
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			ready <- b.Enter(n)
			for f := range w {
				f()
			}
		}()
		t.Cleanup(func() { close(w) }) // before the namespaces go
		if err := <-ready; err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= paths; i++ {
		b.link(Near, fmt.Sprintf("p%d", i), Far, fmt.Sprintf("p%d", i), fmt.Sprintf("10.%d.0", i), fmt.Sprintf("fd02:%d:", i))
	}
	b.link(Near, "lan", Client, "eth0", "192.168.1", "fd01:1:")
	b.link(Far, "lan", Sink, "eth0", "192.168.2", "fd01:2:")
	for _, n := range []string{Near, Far} {
		for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			b.Sysctl(n, "net/"+s, "1")
		}
		for _, s := range []string{"all", "default"} {
			b.Sysctl(n, "net/ipv4/conf/"+s+"/rp_filter", "0")
		}
	}
	b.Run(Client, "ip", "route", "add", "default", "via", "192.168.1.1")
	b.Run(Client, "ip", "-6", "route", "add", "default", "via", "fd01:1::1")
	b.Run(Sink, "ip", "route", "add", "default", "via", "192.168.2.1")
	b.Run(Sink, "ip", "-6", "route", "add", "default", "via", "fd01:2::1")
	b.Run(Near, "ip", "route", "add", "192.168.2.0/24", "via", "10.1.0.2")
	b.Run(Near, "ip", "-6", "route", "add", "fd01:2::/64", "via", "fd02:1::2")
	b.Run(Far, "ip", "route", "add", "192.168.1.0/24", "via", "10.1.0.1")
	b.Run(Far, "ip", "-6", "route", "add", "fd01:1::/64", "via", "fd02:1::1")
	return b
}

func (b *Bed) link(ns1, dev1, ns2, dev2, net4, net6 string) {
	b.Link(ns1, dev1, ns2, dev2)
	for i, e := range [][2]string{{ns1, dev1}, {ns2, dev2}} {
		b.Run(e[0], "ip", "addr", "add", fmt.Sprintf("%s.%d/24", net4, i+1), "dev", e[1])
		b.Run(e[0], "ip", "addr", "add", fmt.Sprintf("%s:%d/64", net6, i+1), "dev", e[1], "nodad")
		b.Run(e[0], "ip", "link", "set", e[1], "up")
	}
}

// In calls f on a thread that is in the namespace. Sockets that f opens stay
// there. Calls for one namespace come one after another.
func (b *Bed) In(ns string, f func() error) error {
	done := make(chan error)
	b.workers[ns] <- func() { done <- f() }
	return <-done
}

// Socket is unix.Socket in a namespace.
func (b *Bed) Socket(ns string) func(domain, typ, proto int) (int, error) {
	return func(domain, typ, proto int) (fd int, err error) {
		err = b.In(ns, func() (err error) { fd, err = unix.Socket(domain, typ, proto); return err })
		return fd, err
	}
}

// Shape limits both directions of a path to mbit Mbit/s, with 50 ms of queue.
func (b *Bed) Shape(path int, mbit float64) {
	for _, ns := range []string{Near, Far} {
		b.Run(ns, "tc", "qdisc", "replace", "dev", fmt.Sprintf("p%d", path), "root", "tbf",
			"rate", fmt.Sprintf("%.0fkbit", mbit*1000), "burst", "16kb", "latency", "50ms")
	}
}

// Cut makes a path swallow everything in silence, or pass it again.
func (b *Bed) Cut(path int, cut bool) {
	for _, ns := range []string{Near, Far} {
		table := fmt.Sprintf("cut%d", path)
		if !cut {
			b.Run(ns, "nft", "delete", "table", "inet", table)
			continue
		}
		b.Run(ns, "nft", fmt.Sprintf(
			"add table inet %[1]s; add chain inet %[1]s in { type filter hook prerouting priority -400; }; add rule inet %[1]s in iifname p%[2]d drop", table, path))
	}
}

// Path returns the addresses of a path: local and remote as near sees it.
func Path(i int, v6 bool) (local, remote netip.Addr) {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd02:%d::1", i)), netip.MustParseAddr(fmt.Sprintf("fd02:%d::2", i))
	}
	return netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), netip.AddrFrom4([4]byte{10, byte(i), 0, 2})
}
