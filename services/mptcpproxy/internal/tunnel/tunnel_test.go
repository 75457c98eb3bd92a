package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/datagram/mmsg"
	"weft/services/mptcpproxy/internal/datagram/netbed"
)

const patience = 30 * time.Second

// Packets of other protocols go into the tunnel on both sides, as package
// intercept sees to.
const rules = `add table inet t; add chain inet t pre { type filter hook prerouting priority mangle; };
	add rule inet t pre iifname lan meta l4proto != { tcp, udp } fib daddr type != local meta mark set 4`

type testBed struct {
	*netbed.Bed
	near, far *Tunnel
	ns        *datagram.Session
}

func newBed(t testing.TB, shape float64, change func(near, far *Options)) *testBed {
	b := &testBed{Bed: netbed.New(t, 2)}
	if shape > 0 {
		b.Shape(1, shape)
		b.Shape(2, shape)
	}
	up := make(chan struct{}, 64)
	listen := func(ns string, port uint16) *datagram.Endpoint {
		e, err := datagram.Listen(datagram.Options{Port: port, Socket: b.Socket(ns), OnPath: func(string, string, bool, time.Duration) { up <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	nearEnd, farEnd := listen(netbed.Near, 0), listen(netbed.Far, 6240)
	key := [32]byte{7}
	farEnd.AddSession("near", false, 1, key, false)
	b.ns = nearEnd.AddSession("far", true, 1, key, false)
	var conf []datagram.Path
	for i := 1; i <= 2; i++ {
		local, remote := netbed.Path(i, false)
		dev := fmt.Sprintf("p%d", i)
		conf = append(conf, datagram.Path{ID: uint8(i), Name: dev, Device: dev, Local: local, Remote: netip.AddrPortFrom(remote, 6240)})
	}
	b.ns.SetPaths(conf)
	in := func(ns string) func(func() error) error { return func(f func() error) error { return b.In(ns, f) } }
	no := Options{Endpoint: nearEnd, InNamespace: in(netbed.Near), Peer: func(netip.Addr) (string, bool) { return "far", true }}
	fo := Options{Endpoint: farEnd, InNamespace: in(netbed.Far), Allow: func(string, netip.Addr, netip.Addr) error { return nil }}
	if change != nil {
		change(&no, &fo)
	}
	var err error
	if b.near, err = New(no); err != nil {
		t.Fatal(err)
	}
	if b.far, err = New(fo); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{netbed.Near, netbed.Far} {
		for _, f := range []string{"-4", "-6"} {
			b.Run(ns, "ip", f, "rule", "add", "fwmark", "4", "lookup", "100")
			b.Run(ns, "ip", f, "route", "add", "default", "dev", "mptcp0", "table", "100")
		}
		b.Run(ns, "nft", rules)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{nearEnd.Run, farEnd.Run, b.near.Run, b.far.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	end := time.After(patience)
	for range 4 {
		select {
		case <-up:
		case <-end:
			t.Fatalf("paths do not come up: %+v", b.ns.Stats())
		}
	}
	return b
}

// raw is a raw socket of one protocol in a namespace.
type raw struct {
	t  testing.TB
	fd int
	v6 bool
}

func (b *testBed) raw(t testing.TB, ns string, proto int, v6 bool) *raw {
	t.Helper()
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := b.Socket(ns)(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	return &raw{t, fd, v6}
}

func (r *raw) send(b []byte, to netip.Addr) error {
	return unix.Sendto(r.fd, b, 0, mmsg.Sockaddr(netip.AddrPortFrom(to, 0), r.v6))
}

// read returns the payload of the next packet and its source.
func (r *raw) read() ([]byte, netip.Addr) {
	r.t.Helper()
	b := make([]byte, 65536)
	n, from, err := unix.Recvfrom(r.fd, b, 0)
	if err != nil {
		r.t.Fatalf("read from a raw socket: %v", err)
	}
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		return b[int(b[0]&0xf)*4 : n], netip.AddrFrom4(from.Addr)
	case *unix.SockaddrInet6:
		return b[:n], netip.AddrFrom16(from.Addr)
	}
	r.t.Fatalf("packet from %v", from)
	return nil, netip.Addr{}
}

func TestProtocolsCrossBothWays(t *testing.T) {
	b := newBed(t, 0, nil)
	for _, proto := range []int{unix.IPPROTO_GRE, unix.IPPROTO_ESP, 253, 254} {
		for _, v6 := range []bool{false, true} {
			client, sink := netbed.Client4, netbed.Sink4
			if v6 {
				client, sink = netbed.Client6, netbed.Sink6
			}
			t.Run(fmt.Sprintf("%d v6 %v", proto, v6), func(t *testing.T) {
				c, s := b.raw(t, netbed.Client, proto, v6), b.raw(t, netbed.Sink, proto, v6)
				for _, n := range []int{8, 100, 1400, 1460, 4000} {
					out := bytes.Repeat([]byte{byte(n), byte(proto), 3}, n/3+1)[:n]
					if err := c.send(out, sink); err != nil {
						t.Fatal(err)
					}
					in, from := s.read()
					if from != client || !bytes.Equal(in, out) {
						t.Fatalf("%d bytes from %v arrived as %d from %v", n, client, len(in), from)
					}
					if err := s.send(in, from); err != nil {
						t.Fatal(err)
					}
					if back, from := c.read(); from != sink || !bytes.Equal(back, out) {
						t.Fatalf("%d bytes from %v came back as %d from %v", n, sink, len(back), from)
					}
				}
			})
		}
	}
	if st := b.near.Stats(); st.Sent == 0 || st.Received == 0 || st.Refused != 0 || st.Malformed != 0 || st.WriteErrors != 0 {
		t.Errorf("near counts %+v", st)
	}
}

// The kernels of client and sink play ping.
func TestPing(t *testing.T) {
	b := newBed(t, 0, nil)
	for _, v6 := range []bool{false, true} {
		proto, sink, request, reply := unix.IPPROTO_ICMP, netbed.Sink4, byte(8), byte(0)
		if v6 {
			proto, sink, request, reply = unix.IPPROTO_ICMPV6, netbed.Sink6, 128, 129
		}
		c := b.raw(t, netbed.Client, proto, v6)
		for _, n := range []int{16, 1400, 1472} {
			echo := make([]byte, n)
			echo[0], echo[4], echo[5], echo[7] = request, 0x12, 0x34, byte(n)
			if !v6 { // the kernel fills in that of ICMPv6
				var sum uint32
				for i := 0; i < n; i += 2 {
					sum += uint32(echo[i])<<8 | uint32(echo[i+1])
				}
				sum = sum>>16 + sum&0xffff
				binary.BigEndian.PutUint16(echo[2:], ^uint16(sum+sum>>16))
			}
			if err := c.send(echo, sink); err != nil {
				t.Fatal(err)
			}
			for {
				// Other ICMP messages, such as neighbour discovery, come here as well.
				p, from := c.read()
				if len(p) == n && p[0] == reply && bytes.Equal(p[4:], echo[4:]) && from == sink {
					break
				}
			}
		}
	}
	if st := b.near.Stats(); st.Sent < 6 || st.Received < 6 {
		t.Errorf("the echoes did not go through the tunnel: %+v", st)
	}
}

func TestTooBigIsTold(t *testing.T) {
	b := newBed(t, 0, func(near, far *Options) { near.MTU, far.MTU = 1400, 1400 })
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			sink, level, opt, rerr, probe := netbed.Sink4, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR, unix.IP_PMTUDISC_DO
			typ, code := uint8(3), uint8(4)
			if v6 {
				sink, level, opt, rerr, probe = netbed.Sink6, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR, unix.IPV6_PMTUDISC_DO
				typ, code = 2, 0
			}
			c := b.raw(t, netbed.Client, 253, v6)
			if err := unix.SetsockoptInt(c.fd, level, opt, probe); err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptInt(c.fd, level, rerr, 1); err != nil {
				t.Fatal(err)
			}
			if err := c.send(make([]byte, 1430), sink); err != nil {
				t.Fatal(err)
			}
			p := []unix.PollFd{{Fd: int32(c.fd)}} // POLLERR comes unasked
			if n, err := unix.Poll(p, int(patience/time.Millisecond)); n != 1 || err != nil {
				t.Fatalf("no error came: %d %v", n, err)
			}
			oob := make([]byte, 512)
			_, n, _, _, err := unix.Recvmsg(c.fd, make([]byte, 2000), oob, unix.MSG_ERRQUEUE)
			if err != nil {
				t.Fatal(err)
			}
			e := mmsg.ParseControl(oob[:n]).Err
			if e == nil || e.Type != typ || e.Code != code || e.Info != 1400 {
				t.Errorf("got %+v, want type %d code %d MTU 1400", e, typ, code)
			}
		})
	}
}

func TestPolicyAtTheFarSide(t *testing.T) {
	b := newBed(t, 0, func(near, far *Options) {
		far.Protocols = []uint8{253, 254}
		far.Allow = func(peer string, src, dst netip.Addr) error {
			if peer != "near" || src != netbed.Client4 {
				return errNotAllowed
			}
			return nil
		}
	})
	// In order: the last one is let through, so by then the others were judged.
	sink := b.raw(t, netbed.Sink, 253, false)
	b.Run(netbed.Client, "ip", "addr", "add", "192.168.1.77/32", "dev", "lo")
	foreign := b.raw(t, netbed.Client, 253, false)
	if err := unix.Bind(foreign.fd, &unix.SockaddrInet4{Addr: [4]byte{192, 168, 1, 77}}); err != nil {
		t.Fatal(err)
	}
	c, gre := b.raw(t, netbed.Client, 253, false), b.raw(t, netbed.Client, unix.IPPROTO_GRE, false)
	for end := time.Now().Add(patience); ; {
		for _, s := range []*raw{foreign, gre, c} {
			if err := s.send([]byte("12345678"), netbed.Sink4); err != nil {
				t.Fatal(err)
			}
		}
		if _, from := sink.read(); from != netbed.Client4 {
			t.Fatalf("a packet of %v passed", from)
		}
		if st := b.far.Stats(); st.Refused >= 2 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("refused packets are not counted: %+v", b.far.Stats())
		}
	}
}

func TestDeviceGoesWithItsOwner(t *testing.T) {
	bed := netbed.New(t, 1)
	e, err := datagram.Listen(datagram.Options{Socket: bed.Socket(netbed.Near)})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Endpoint: e, Device: "weft9", InNamespace: func(f func() error) error { return bed.In(netbed.Near, f) }}
	tun, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if name, index := tun.Device(); name != "weft9" || index == 0 {
		t.Errorf("device is %q %d", name, index)
	}
	if out := bed.Run(netbed.Near, "ip", "-o", "addr", "show", "dev", "weft9"); bytes.Contains([]byte(out), []byte("inet6")) {
		t.Errorf("the device speaks for itself: %s", out)
	}
	if _, err := New(o); err == nil {
		t.Error("a device that is in use was taken")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- tun.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := bed.Command(netbed.Near, "ip", "link", "show", "weft9").Run(); err == nil {
		t.Error("the device is still there after Run")
	}
}

// BenchmarkProtocol253 is the table's row: 14.4 Mbit/s each way over two paths
// of 10 Mbit/s.
func BenchmarkProtocol253(b *testing.B) {
	bed := newBed(b, 10, nil)
	const d, size = 10 * time.Second, 1400
	var wg sync.WaitGroup
	run := func(name, from, to string, dst netip.Addr, mbit float64) {
		var sent, got int
		var mu sync.Mutex
		out, in := bed.raw(b, from, 253, false), bed.raw(b, to, 253, false)
		tv := unix.NsecToTimeval(int64(500 * time.Millisecond))
		_ = unix.SetsockoptTimeval(in.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		var reader sync.WaitGroup
		reader.Go(func() {
			buf := make([]byte, 2000)
			for {
				_, _, err := unix.Recvfrom(in.fd, buf, 0)
				if err != nil {
					return
				}
				mu.Lock()
				got++
				mu.Unlock()
			}
		})
		payload := make([]byte, size)
		gap := time.Duration(float64(size*8) / mbit * 1e3)
		begin := time.Now()
		for next := begin; time.Since(begin) < d; next = next.Add(gap) {
			time.Sleep(time.Until(next))
			binary.BigEndian.PutUint64(payload, uint64(sent))
			if out.send(payload, dst) == nil {
				sent++
			}
		}
		reader.Wait()
		b.Logf("%s delivered %.4f of %d", name, float64(got)/float64(sent), sent)
	}
	wg.Go(func() { run("up", netbed.Client, netbed.Sink, netbed.Sink4, 14.4) })
	wg.Go(func() { run("down", netbed.Sink, netbed.Client, netbed.Client4, 14.4) })
	wg.Wait()
	b.Logf("near %+v, %+v", bed.near.Stats(), bed.ns.Stats())
	if os.Getenv("WEFT_VERBOSE") != "" {
		b.Logf("far %+v", bed.far.Stats())
	}
}

func FuzzParsePacket(f *testing.F) {
	v4 := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0}
	v6 := make([]byte, 56)
	v6[0], v6[5], v6[6] = 0x60, 16, unix.IPPROTO_DSTOPTS
	v6[40] = 253
	f.Add(v4)
	f.Add(v6)
	f.Add([]byte{})
	f.Add(append([]byte{0x4f}, v4[1:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		if !p.src.IsValid() || !p.dst.IsValid() || p.src.Is4() != p.dst.Is4() {
			t.Errorf("addresses %v and %v", p.src, p.dst)
		}
		// The flow depends on what stays the same within it.
		again := bytes.Clone(b)
		if p.src.Is4() {
			again[4] ^= 1 // identification
		} else {
			again[3] ^= 1 // flow label
		}
		q, err := parsePacket(again)
		if err != nil || q != p {
			t.Errorf("another identification gives %+v, %v instead of %+v", q, err, p)
		}
	})
}

func TestParsePacketProtocols(t *testing.T) {
	v6 := make([]byte, 40+8+8+8)
	v6[0], v6[5], v6[6] = 0x60, 24, unix.IPPROTO_HOPOPTS
	v6[40], v6[48], v6[56] = unix.IPPROTO_FRAGMENT, unix.IPPROTO_SCTP, 1
	v6[23], v6[39] = 1, 2
	p, err := parsePacket(v6)
	if err != nil || p.proto != unix.IPPROTO_SCTP {
		t.Errorf("IPv6 with extension headers: %+v, %v, want protocol 132", p, err)
	}
	for name, b := range map[string][]byte{
		"short":            v6[:39],
		"longer than told": append(bytes.Clone(v6), 0),
		"version 5":        append([]byte{0x50}, v6[1:]...),
	} {
		if p, err := parsePacket(b); err == nil {
			t.Errorf("%s: taken as %+v", name, p)
		}
	}
}
