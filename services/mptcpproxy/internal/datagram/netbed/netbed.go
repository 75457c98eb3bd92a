// Package netbed makes networks for tests: a client behind a near gateway, a
// sink behind a far one, and paths between the gateways, each host in a
// network namespace. Near and far own 10.N.0.1 and 10.N.0.2 (fd0N:: for IPv6)
// on device pN of path N; the client is 192.168.1.2 and fd01:1::2, the sink
// 192.168.2.2 and fd01:2::2.
package netbed

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
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
	t       testing.TB
	prefix  string
	workers map[string]chan func()
	paths   int
}

var count atomic.Int32

// New makes a network with paths paths. It is taken away when the test ends.
// Without root, iproute2 or nft the test is skipped.
func New(t testing.TB, paths int) *Bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	for _, tool := range []string{"ip", "tc", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("making networks needs the tool %s", tool)
		}
	}
	b := &Bed{t: t, prefix: fmt.Sprintf("weftd%d-%d-", os.Getpid(), count.Add(1)), workers: map[string]chan func(){}, paths: paths}
	t.Cleanup(b.remove)
	for _, n := range []string{Client, Near, Far, Sink} {
		if out, err := exec.Command("ip", "netns", "add", b.prefix+n).CombinedOutput(); err != nil {
			t.Skipf("network namespaces cannot be made here: %v: %s", err, out)
		}
		b.Sysctl(n, "net/ipv6/conf/default/accept_dad", "0")
		b.Sysctl(n, "net/ipv6/conf/all/accept_dad", "0")
		b.Run(n, "ip", "link", "set", "lo", "up")
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
	b.t.Helper()
	b.must("ip", "link", "add", dev1, "netns", b.prefix+ns1, "type", "veth", "peer", "name", dev2, "netns", b.prefix+ns2)
	for i, e := range [][2]string{{ns1, dev1}, {ns2, dev2}} {
		b.Run(e[0], "ip", "addr", "add", fmt.Sprintf("%s.%d/24", net4, i+1), "dev", e[1])
		b.Run(e[0], "ip", "addr", "add", fmt.Sprintf("%s:%d/64", net6, i+1), "dev", e[1], "nodad")
		b.Run(e[0], "ip", "link", "set", e[1], "up")
	}
}

func (b *Bed) remove() {
	for _, w := range b.workers {
		close(w)
	}
	for _, n := range []string{Client, Near, Far, Sink} {
		_ = exec.Command("ip", "netns", "del", b.prefix+n).Run()
	}
}

func (b *Bed) must(args ...string) {
	b.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Command prepares a command in a namespace.
func (b *Bed) Command(ns string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", b.prefix + ns}, args...)...)
}

// Run runs a command in a namespace; the test ends if it fails.
func (b *Bed) Run(ns string, args ...string) string {
	b.t.Helper()
	cmd := b.Command(ns, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%s: %s: %v\n%s%s", ns, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// Try runs a command in a namespace and forgets how it ends.
func (b *Bed) Try(ns string, args ...string) { _ = b.Command(ns, args...).Run() }

// Sysctl writes a setting below /proc/sys.
func (b *Bed) Sysctl(ns, name, value string) {
	b.t.Helper()
	if err := b.In(ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }); err != nil {
		b.t.Fatalf("%s: set %s to %s: %v", ns, name, value, err)
	}
}

// In calls f on a thread that is in the namespace. Sockets that f opens stay
// there. Calls for one namespace come one after another.
func (b *Bed) In(ns string, f func() error) error {
	w := b.workers[ns]
	if w == nil {
		w = make(chan func())
		b.workers[ns] = w
		ready := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			file, err := os.Open("/run/netns/" + b.prefix + ns)
			if err == nil {
				err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
				file.Close()
			}
			ready <- err
			for f := range w {
				f()
			}
		}()
		if err := <-ready; err != nil {
			b.t.Fatalf("enter namespace %s: %v", ns, err)
		}
	}
	done := make(chan error)
	w <- func() { done <- f() }
	return <-done
}

// Socket is unix.Socket in a namespace.
func (b *Bed) Socket(ns string) func(domain, typ, proto int) (int, error) {
	_ = b.In(ns, func() error { return nil }) // the worker is there before others need it
	return func(domain, typ, proto int) (fd int, err error) {
		err = b.In(ns, func() (err error) { fd, err = unix.Socket(domain, typ, proto); return err })
		return fd, err
	}
}

// Shape limits both directions of a path to mbit Mbit/s, with 50 ms of queue.
func (b *Bed) Shape(path int, mbit float64) {
	b.t.Helper()
	for _, ns := range []string{Near, Far} {
		b.Run(ns, "tc", "qdisc", "replace", "dev", fmt.Sprintf("p%d", path), "root", "tbf",
			"rate", fmt.Sprintf("%.0fkbit", mbit*1000), "burst", "16kb", "latency", "50ms")
	}
}

// Cut makes a path swallow everything in silence, or pass it again.
func (b *Bed) Cut(path int, cut bool) {
	b.t.Helper()
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
