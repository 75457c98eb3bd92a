package paths

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/services/internal/mptcpnl"
)

const port = 6240

// bed is two gateways in namespaces, joined by links p1, p2, ...:
// 10.N.0.1 - 10.N.0.2 and fd00:N::1 - fd00:N::2.
type bed struct {
	t         testing.TB
	near, far netns.NsHandle
	n         int
}

func newBed(t testing.TB, n int) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	b := &bed{t: t, near: newNS(t), far: newNS(t), n: n}
	for i := 1; i <= n; i++ {
		name := fmt.Sprintf("p%d", i)
		b.in(b.near, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: 1000}, PeerName: name, PeerNamespace: netlink.NsFd(b.far)})
		})
		for side, ns := range []netns.NsHandle{b.near, b.far} {
			b.in(ns, func() error {
				// No waiting for duplicate address detection.
				for _, c := range []string{"accept_dad", "dad_transmits"} {
					if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+c, []byte("0"), 0o644); err != nil {
						return err
					}
				}
				return nil
			})
			b.addr(ns, name, fmt.Sprintf("10.%d.0.%d/24", i, side+1), true)
			b.up(ns, name, true)
			b.addr(ns, name, fmt.Sprintf("fd00:%d::%d/64", i, side+1), true)
		}
	}
	return b
}

func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	var h netns.NsHandle
	err := onThread(func() (err error) {
		if h, err = netns.New(); err != nil {
			return err
		}
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	c := make(chan error)
	go func() {
		runtime.LockOSThread()
		c <- f()
	}()
	return <-c
}

func (b *bed) in(ns netns.NsHandle, f func() error) {
	b.t.Helper()
	err := onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) up(ns netns.NsHandle, dev string, up bool) {
	b.t.Helper()
	b.in(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	})
}

func (b *bed) addr(ns netns.NsHandle, dev, cidr string, add bool) {
	b.t.Helper()
	b.in(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if add {
			return netlink.AddrAdd(l, a)
		}
		return netlink.AddrDel(l, a)
	})
}

// run runs a program in the namespace; it skips the test when it is missing.
func (b *bed) run(ns netns.NsHandle, args ...string) string {
	b.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		b.t.Skipf("needs %s: %v", args[0], err)
	}
	var out []byte
	b.in(ns, func() (err error) {
		if out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	})
	return string(out)
}

// manager starts a manager in the namespace, which ends with the test.
func (b *bed) manager(ns netns.NsHandle, o Options) *Manager {
	b.t.Helper()
	m, stop := b.start(ns, o)
	b.t.Cleanup(stop)
	return m
}

func (b *bed) start(ns netns.NsHandle, o Options) (*Manager, func()) {
	b.t.Helper()
	if testing.Verbose() {
		name := "near"
		if ns == b.far {
			name = "far"
		}
		o.Log = slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name)
	}
	var m *Manager
	b.in(ns, func() (err error) { m, err = New(o); return err })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	return m, func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}
}

func (b *bed) wanted() (w []Wanted) {
	for i := 1; i <= b.n; i++ {
		w = append(w, Wanted{Name: fmt.Sprintf("wan%d", i), Device: fmt.Sprintf("p%d", i), Probe: true})
	}
	return w
}

func (b *bed) nearOptions() Options {
	p := Peer{Name: "exit", Port: port}
	for i := 1; i <= b.n; i++ {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", i)))
	}
	return Options{Peers: []Peer{p}, Wanted: b.wanted()}
}

func (b *bed) farOptions() Options { return Options{Wanted: b.wanted(), Port: port} }

// listen opens the far gateway's listener.
func (b *bed) listen() int {
	b.t.Helper()
	fd := -1
	b.in(b.far, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcpnl.ProtoMPTCP); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
			return err
		}
		return unix.Listen(fd, 1024)
	})
	b.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// trunk is one connection, both ends.
type trunk struct{ near, far int }

// dial makes a trunk as the carrier does and exchanges a byte each way.
func (b *bed) dial(l int, m *Manager) trunk {
	b.t.Helper()
	local, _, remote, err := m.Pick("exit")
	if err != nil {
		b.t.Fatal(err)
	}
	return b.dialFrom(l, local, remote)
}

func (b *bed) dialFrom(l int, local netip.Addr, remote netip.AddrPort) trunk {
	b.t.Helper()
	t := trunk{-1, -1}
	b.in(b.near, func() (err error) {
		t.near, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcpnl.ProtoMPTCP)
		return err
	})
	b.t.Cleanup(func() { unix.Close(t.near) })
	b.ok(unix.Bind(t.near, &unix.SockaddrInet6{Addr: local.As16()}))
	b.ok(unix.Connect(t.near, &unix.SockaddrInet6{Addr: remote.Addr().As16(), Port: int(remote.Port())}))
	var err error
	t.far, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC)
	b.ok(err)
	b.t.Cleanup(func() { unix.Close(t.far) })
	t.exchange(b)
	return t
}

func (b *bed) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (t trunk) exchange(b *bed) {
	b.t.Helper()
	var buf [1]byte
	for _, p := range [][2]int{{t.near, t.far}, {t.far, t.near}} {
		if _, err := unix.Write(p[0], []byte("x")); err != nil {
			b.t.Fatal(err)
		}
		if n, err := unix.Read(p[1], buf[:]); err != nil || n != 1 {
			b.t.Fatalf("read %d: %v", n, err)
		}
	}
}

// subflows lists a connection's live subflows as local addresses, sorted.
func subflows(t testing.TB, fd int) map[string]int {
	t.Helper()
	_, subs, err := mptcpnl.GetFullInfo(fd, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, s := range subs {
		if s.TCP.State == tcpEstablished {
			out[s.Local.Addr().Unmap().String()]++
		}
	}
	return out
}

// until polls for a condition; it fails the test when it does not come true.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("did not come true: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func has(t testing.TB, fd int, addrs ...string) bool {
	t.Helper()
	s := subflows(t, fd)
	if len(s) != len(addrs) {
		return false
	}
	for _, a := range addrs {
		if s[a] != 1 {
			return false
		}
	}
	return true
}
