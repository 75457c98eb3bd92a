package transparent

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept/bed"
)

func wait(t *testing.T, fd int, events int16) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 20000); n != 1 {
		t.Fatalf("poll: %d, %v: nothing in 20 s", n, err)
	}
}

// TestPort keeps the client's port where it is free, and takes another where not.
func TestPort(t *testing.T) {
	b := bed.New(t)
	for _, c := range []struct{ src, dst, own, occupied string }{
		{"192.168.9.9:40000", "192.168.2.2:80", "192.168.2.1:80", "192.168.9.9:40001"},
		{"[fd09::9]:40000", "[fd02::2]:80", "[fd02::1]:80", "[fd09::9]:40001"},
	} {
		src, dst, occupied := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst), netip.MustParseAddrPort(c.occupied)
		var first, second, none, busy int
		local := func(fd int) netip.AddrPort {
			sa, err := unix.Getsockname(fd)
			if err != nil {
				t.Fatal(err)
			}
			return AddrPort(sa)
		}
		err := b.In("gw", func() (err error) {
			if _, err := Connect(src, netip.MustParseAddrPort(c.own), 0); !errors.Is(err, ErrLocal) {
				t.Errorf("%s: the gateway itself: %v, expected %v", c.own, err, ErrLocal)
			}
			if first, err = Connect(src, dst, 0x02000000); err != nil {
				return err
			}
			// The very same four numbers are taken now.
			if second, err = Connect(src, dst, 0); err != nil {
				return err
			}
			if none, err = Connect(netip.AddrPortFrom(src.Addr(), 0), dst, 0); err != nil {
				return err
			}
			// Somebody listens on the port.
			hog, err := unix.Socket(family(src.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(hog)
			if err := errors.Join(setTransparent(hog, src.Addr().Is6()), unix.Bind(hog, sockaddr(occupied)), unix.Listen(hog, 1)); err != nil {
				return err
			}
			busy, err = Connect(occupied, dst, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range []int{first, second, none, busy} {
			defer unix.Close(fd)
			if got := local(fd); got.Addr() != src.Addr() || got.Port() == 0 {
				t.Errorf("%s: connects from %v", c.src, got)
			}
		}
		if got := local(first); got != src {
			t.Errorf("%s: connects from %v although the port is free", c.src, got)
		}
		if m, err := unix.GetsockoptInt(first, unix.SOL_SOCKET, unix.SO_MARK); err != nil || m != 0x02000000 {
			t.Errorf("mark %#x, %v", m, err)
		}
		if local(second) == src || local(busy) == occupied {
			t.Errorf("%s: a port was used twice: %v, %v", c.src, local(second), local(busy))
		}
	}
}

// TestFinish also checks that an established connection survives ICMP.
func TestFinish(t *testing.T) {
	b := bed.New(t)
	var l net.Listener
	if err := b.In("sink", func() (err error) { l, err = net.Listen("tcp", "[::]:80"); return }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func(src, dst string) int {
		t.Helper()
		var fd int
		err := b.In("client", func() (err error) {
			fd, err = Connect(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), 0)
			return
		})
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for _, c := range [][2]string{{"192.168.1.2:0", "192.168.2.2:80"}, {"[fd01::2]:0", "[fd02::2]:80"}} {
		fd := connect(c[0], c[1])
		defer unix.Close(fd)
		wait(t, fd, unix.POLLOUT)
		if err := Finish(fd); err != nil {
			t.Fatalf("%s: %v", c[1], err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The gateway rejects it from now on: hosts carry on regardless.
		b.Run("gw", "sh", "-c", "nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; }'; nft add rule inet f c tcp dport 80 counter reject with icmpx host-unreachable")
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		for strings.Contains(b.Run("gw", "nft", "list", "chain", "inet", "f", "c"), "packets 0 ") {
		}
		b.Run("gw", "nft", "delete", "table", "inet", "f")
		var got [5]byte
		if _, err := conn.Read(got[:]); err != nil || string(got[:]) != "hello" {
			t.Errorf("%s: %q arrived, %v", c[1], got, err)
		}
		if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); e != 0 || err != nil {
			t.Errorf("%s: ICMP has ended the connection: %v, %v", c[1], unix.Errno(e), err)
		}
	}
	fd := connect("192.168.1.2:0", "192.168.2.2:81")
	defer unix.Close(fd)
	wait(t, fd, unix.POLLOUT)
	var ce *ConnectError
	if err := Finish(fd); !errors.As(err, &ce) || ce.Errno != unix.ECONNREFUSED || ce.ICMP || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	b.Run("gw", "sh", "-c", "nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; }'; nft add rule inet f c tcp dport 82 drop")
	fd = connect("192.168.1.2:0", "192.168.2.2:82")
	defer unix.Close(fd)
	if err := Finish(fd); !errors.Is(err, unix.EINPROGRESS) {
		t.Errorf("under way: %v", err)
	}
	if _, err := Connect(netip.MustParseAddrPort("192.168.1.2:0"), netip.MustParseAddrPort("[fd02::2]:80"), 0); err == nil {
		t.Error("two families were taken")
	}
}

func TestListen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for IP_TRANSPARENT")
	}
	fds, err := ListenTCP(0, 3, false)
	if err != nil {
		t.Fatal(err)
	}
	port, err := Port(fds[0])
	if err != nil || port == 0 || len(fds) != 3 {
		t.Fatal(port, err, fds)
	}
	for _, fd := range fds {
		defer unix.Close(fd)
		if p, err := Port(fd); p != port || err != nil {
			t.Errorf("port %d, %v, expected %d", p, err, port)
		}
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); p != unix.IPPROTO_TCP || err != nil {
			t.Errorf("protocol %d, %v: an intercepting listener must not speak MPTCP", p, err)
		}
	}
	if _, err := ListenUDP(0, 0); err == nil {
		t.Error("no sockets at all were made")
	}
}

func recvErr(level, kind int32, body []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(body)))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(body))))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	copy(b[unix.CmsgLen(0):], body)
	return b
}

func extended(origin, kind, code byte, offender []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.EHOSTUNREACH))
	b = append(b, origin, kind, code, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, offender...)
}

func FuzzControlMessages(f *testing.F) {
	v4 := []byte{unix.AF_INET, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	f.Add(recvErr(unix.SOL_IP, unix.IP_RECVERR, extended(originICMP, 3, 1, v4)))
	f.Add(recvErr(unix.SOL_IPV6, unix.IPV6_RECVERR, extended(originICMP6, 1, 3, nil)))
	f.Add(recvErr(unix.SOL_IP, unix.IP_RECVORIGDSTADDR, v4))
	f.Add(append(recvErr(1, 1, nil), recvErr(unix.SOL_IP, unix.IP_RECVORIGDSTADDR, v4)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e := parseErrorQueue(b); e != nil && !e.ICMP {
			t.Errorf("%+v", e)
		}
		if a, ok := OriginalDst(b); ok && !a.IsValid() {
			t.Errorf("%v", a)
		}
	})
}

func TestControlMessages(t *testing.T) {
	v4 := []byte{unix.AF_INET, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	e := parseErrorQueue(recvErr(unix.SOL_IP, unix.IP_RECVERR, extended(originICMP, 3, 13, v4)))
	if e == nil || e.ICMPType != 3 || e.ICMPCode != 13 || e.Offender.String() != "10.0.0.1" || e.Errno != unix.EHOSTUNREACH {
		t.Errorf("%+v", e)
	}
	if e := parseErrorQueue(recvErr(unix.SOL_IP, unix.IP_RECVERR, extended(1, 3, 13, v4))); e != nil {
		t.Errorf("a local error was taken for ICMP: %+v", e)
	}
	a, ok := OriginalDst(append(recvErr(1, 1, nil), recvErr(unix.SOL_IP, unix.IP_RECVORIGDSTADDR, v4)...))
	if !ok || a.String() != "10.0.0.1:80" {
		t.Errorf("%v, %v", a, ok)
	}
}
