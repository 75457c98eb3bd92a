package mptcpnl

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bed is two network namespaces joined by two links:
// 10.1.0.1 - 10.1.0.2 and 10.2.0.1 - 10.2.0.2.
type bed struct{ near, far netns.NsHandle }

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	b := &bed{near: newNS(t), far: newNS(t)}
	in(t, b.near, func() error {
		for i := 1; i <= 2; i++ {
			name := fmt.Sprintf("p%d", i)
			l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: 1000}, PeerName: name, PeerNamespace: netlink.NsFd(b.far)}
			if err := netlink.LinkAdd(l); err != nil {
				return fmt.Errorf("add veth: %w", err)
			}
		}
		return nil
	})
	for side, ns := range []netns.NsHandle{b.near, b.far} {
		in(t, ns, func() error {
			for i := 1; i <= 2; i++ {
				l, err := netlink.LinkByName(fmt.Sprintf("p%d", i))
				if err != nil {
					return err
				}
				a, _ := netlink.ParseAddr(fmt.Sprintf("10.%d.0.%d/24", i, side+1))
				if err := netlink.AddrAdd(l, a); err != nil {
					return err
				}
				if err := netlink.LinkSetUp(l); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return b
}

// newNS makes a network namespace with loopback up.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	type result struct {
		h   netns.NsHandle
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		h, err := netns.New()
		if err == nil {
			var l netlink.Link
			if l, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(l)
			}
		}
		c <- result{h, err}
	}()
	r := <-c
	if r.err != nil {
		t.Fatalf("make network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.h.Close() })
	return r.h
}

// in runs f on a thread in the namespace.
func in(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	c := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			c <- err
			return
		}
		c <- f()
	}()
	if err := <-c; err != nil {
		t.Fatal(err)
	}
}

// socket makes an MPTCP socket in the namespace.
func socket(t *testing.T, ns netns.NsHandle, family int) int {
	t.Helper()
	fd := -1
	in(t, ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, ProtoMPTCP)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func sockaddr(s string) unix.Sockaddr {
	a := netip.MustParseAddrPort(s)
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// pair connects two MPTCP sockets over the first link.
func (b *bed) pair(t *testing.T, family int, bind, to string) (near, far int) {
	t.Helper()
	l := socket(t, b.far, family)
	must(t, unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	must(t, unix.Bind(l, &unix.SockaddrInet6{Port: int(netip.MustParseAddrPort(to).Port())}))
	must(t, unix.Listen(l, 8))
	near = socket(t, b.near, family)
	must(t, unix.Bind(near, sockaddr(bind)))
	must(t, unix.Connect(near, sockaddr(to)))
	far, _, err := unix.Accept(l)
	must(t, err)
	t.Cleanup(func() { unix.Close(far) })
	return near, far
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exchange sends a byte each way, after which both ends are fully established.
func exchange(t *testing.T, a, b int) {
	t.Helper()
	var buf [1]byte
	for _, p := range [][2]int{{a, b}, {b, a}} {
		if _, err := unix.Write(p[0], []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Read(p[1], buf[:]); err != nil {
			t.Fatal(err)
		}
	}
}
