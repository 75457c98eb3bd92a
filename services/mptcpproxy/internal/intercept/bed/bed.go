// Package bed makes a small network for tests: a client and a sink, each in a
// network namespace, and between them a gateway in a third. IPv4 and IPv6.
package bed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses of the bed.
const (
	Client4, Client6   = "192.168.1.2", "fd01::2"
	LAN4, LAN6         = "192.168.1.1", "fd01::1" // the gateway, on device lan0
	Far4, Far6         = "192.168.2.1", "fd02::1" // the gateway, on device far0
	Sink4, Sink6       = "192.168.2.2", "fd02::2"
	LANDevice, FarSide = "lan0", "far0"
)

// Bed is such a network.
type Bed struct {
	t      testing.TB
	prefix string
}

var count atomic.Int32

// New makes one; it is taken away when the test ends. Without root, the test is
// skipped.
func New(t testing.TB) *Bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2 for network namespaces")
	}
	b := &Bed{t: t, prefix: fmt.Sprintf("weft%d-%d-", os.Getpid(), count.Add(1))}
	t.Cleanup(func() {
		for _, n := range []string{"client", "gw", "sink"} {
			exec.Command("ip", "netns", "del", b.prefix+n).Run()
		}
	})
	for _, n := range []string{"client", "gw", "sink"} {
		b.must("ip", "netns", "add", b.prefix+n)
		b.Run(n, "ip", "link", "set", "lo", "up")
		b.Run(n, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad")
	}
	link := func(ns, dev, ns2, dev2 string) {
		b.must("ip", "link", "add", dev, "netns", b.prefix+ns, "type", "veth", "peer", "name", dev2, "netns", b.prefix+ns2)
	}
	link("client", "eth0", "gw", LANDevice)
	link("sink", "eth0", "gw", FarSide)
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
	b.Run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	return b
}

func (b *Bed) must(args ...string) string {
	b.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Command prepares a command in a namespace: client, gw or sink.
func (b *Bed) Command(ns string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", b.prefix + ns}, args...)...)
}

// Run runs a command in a namespace and returns what it prints; the test ends if
// it fails.
func (b *Bed) Run(ns string, args ...string) string {
	b.t.Helper()
	cmd := b.Command(ns, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%s: %s: %v\n%s%s", ns, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String()
}

// In calls f on a thread that is in a namespace. Sockets that f opens stay there.
func (b *Bed) In(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			file, err := os.Open("/run/netns/" + b.prefix + ns)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering %s: %w", ns, err)
			}
			return f()
		}()
	}()
	return <-done
}
