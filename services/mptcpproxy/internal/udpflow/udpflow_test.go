package udpflow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/datagram/mmsg"
	"weft/services/mptcpproxy/internal/datagram/netbed"
	"weft/services/mptcpproxy/internal/transparent"
)

const patience = 30 * time.Second

// rules catch the client's UDP at near and give answers for foreign addresses
// to their sockets at far, as package intercept does.
const (
	nearRules = `add table inet t; add chain inet t pre { type filter hook prerouting priority mangle; };
		add rule inet t pre fib daddr type local accept;
		add rule inet t pre iifname lan meta nfproto ipv4 meta l4proto udp tproxy ip to :5000 meta mark set 1 accept;
		add rule inet t pre iifname lan meta nfproto ipv6 meta l4proto udp tproxy ip6 to :5000 meta mark set 1 accept`
	// The tproxy rules match nothing: they make the kernel put fragments together
	// before these rules, without which only the first would find its socket.
	farRules = `add table inet t; add chain inet t pre { type filter hook prerouting priority mangle; };
		add rule inet t pre iifname nowhere meta nfproto ipv4 meta l4proto udp tproxy ip to :5000;
		add rule inet t pre iifname nowhere meta nfproto ipv6 meta l4proto udp tproxy ip6 to :5000;
		add rule inet t pre socket transparent 1 socket wildcard 0 meta mark set 1 accept`
)

// bed is a pair of gateways with Flows on both.
type testBed struct {
	*netbed.Bed
	nearEnd, farEnd *datagram.Endpoint
	near, far       *Flows
	allowed         atomic.Pointer[func(src, dst netip.AddrPort) error]
}

func newBed(t testing.TB, change func(near, far *Options)) *testBed {
	b := &testBed{Bed: netbed.New(t, 2)}
	for _, ns := range []string{netbed.Near, netbed.Far} {
		for _, f := range []string{"-4", "-6"} {
			b.Run(ns, "ip", f, "rule", "add", "fwmark", "1", "lookup", "100")
			b.Run(ns, "ip", f, "route", "add", "local", "default", "dev", "lo", "table", "100")
		}
	}
	b.Run(netbed.Near, "nft", nearRules)
	b.Run(netbed.Far, "nft", farRules)
	up := make(chan struct{}, 64)
	listen := func(ns string, port uint16) *datagram.Endpoint {
		e, err := datagram.Listen(datagram.Options{Port: port, Socket: b.Socket(ns), OnPath: func(string, string, bool, time.Duration) { up <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	b.nearEnd, b.farEnd = listen(netbed.Near, 0), listen(netbed.Far, 6240)
	key := [32]byte{9}
	b.farEnd.AddSession("near", false, 1, key, false)
	s := b.nearEnd.AddSession("far", true, 1, key, false)
	var conf []datagram.Path
	for i := 1; i <= 2; i++ {
		local, remote := netbed.Path(i, false)
		dev := fmt.Sprintf("p%d", i)
		conf = append(conf, datagram.Path{ID: uint8(i), Name: dev, Device: dev, Local: local, Remote: netip.AddrPortFrom(remote, 6240)})
	}
	s.SetPaths(conf)
	var fds []int
	if err := b.In(netbed.Near, func() (err error) { fds, err = transparent.ListenUDP(5000, 1); return err }); err != nil {
		t.Fatal(err)
	}
	no := Options{
		Endpoint: b.nearEnd, Socket: b.Socket(netbed.Near), Listeners: fds,
		Peer: func(netip.Addr) (string, bool) { return "far", true },
	}
	fo := Options{Endpoint: b.farEnd, Socket: b.Socket(netbed.Far), Mark: 2, Allow: func(peer string, src, dst netip.AddrPort) error {
		if f := b.allowed.Load(); f != nil {
			return (*f)(src, dst)
		}
		return nil
	}}
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
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{b.nearEnd.Run, b.farEnd.Run, b.near.Run, b.far.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	end := time.After(patience)
	for range 4 { // two paths at two ends
		select {
		case <-up:
		case <-end:
			t.Fatalf("paths do not come up: %+v", s.Stats())
		}
	}
	return b
}

// host is a UDP socket in a namespace.
type host struct {
	t    testing.TB
	conn *net.UDPConn
}

func (b *testBed) host(t testing.TB, ns string, local, remote netip.AddrPort) *host {
	t.Helper()
	var c *net.UDPConn
	if err := b.In(ns, func() (err error) {
		if remote.IsValid() {
			c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(remote))
		} else {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &host{t, c}
}

func (h *host) read() ([]byte, netip.AddrPort) {
	h.t.Helper()
	b := make([]byte, 65536)
	n, from, err := h.conn.ReadFromUDPAddrPort(b)
	if err != nil {
		h.t.Fatalf("read: %v", err)
	}
	return b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (h *host) write(b []byte, to netip.AddrPort) {
	h.t.Helper()
	var err error
	if to.IsValid() {
		_, err = h.conn.WriteToUDPAddrPort(b, to)
	} else {
		_, err = h.conn.Write(b)
	}
	if err != nil {
		h.t.Fatalf("write: %v", err)
	}
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func TestHostsSeeEachOther(t *testing.T) {
	b := newBed(t, nil)
	for _, tt := range []struct {
		name         string
		client, sink netip.Addr
	}{{"IPv4", netbed.Client4, netbed.Sink4}, {"IPv6", netbed.Client6, netbed.Sink6}} {
		t.Run(tt.name, func(t *testing.T) {
			sink := b.host(t, netbed.Sink, port(tt.sink, 7000), netip.AddrPort{})
			client := b.host(t, netbed.Client, port(tt.client, 6000), port(tt.sink, 7000))
			for _, n := range []int{0, 1, 100, 1400, 1472, 5000, 40000} {
				out := make([]byte, n)
				for i := range out {
					out[i] = byte(i * n)
				}
				client.write(out, netip.AddrPort{})
				in, from := sink.read()
				if from != port(tt.client, 6000) {
					t.Fatalf("the sink sees %v, want the client's own %v", from, port(tt.client, 6000))
				}
				if !slices.Equal(in, out) {
					t.Fatalf("%d bytes arrived as %d bytes, or changed", len(out), len(in))
				}
				sink.write(in, from)
				// A connected socket only takes answers from the address it asked.
				if back, _ := client.read(); !slices.Equal(back, out) {
					t.Fatalf("%d bytes came back as %d bytes, or changed", len(out), len(back))
				}
			}
		})
	}
	if st := b.near.Stats(); st.NearFlows != 2 || st.Up != 14 || st.Down != 14 {
		t.Errorf("near counts %+v, want 2 flows and 14 datagrams each way", st)
	}
	if st := b.far.Stats(); st.FarFlows != 2 || st.SocketErrors != 0 {
		t.Errorf("far counts %+v, want 2 flows", st)
	}
}

func TestSinkSeesPortUnreachableAndHopLimit(t *testing.T) {
	b := newBed(t, nil)
	for _, tt := range []struct {
		name                string
		client, sink        netip.Addr
		level, recverr, ttl int
		errSize             int
		nearAddr, farAddr   netip.Addr
	}{
		{"IPv4", netbed.Client4, netbed.Sink4, unix.SOL_IP, unix.IP_RECVERR, unix.IP_TTL, 0, netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.2.1")},
		{"IPv6", netbed.Client6, netbed.Sink6, unix.SOL_IPV6, unix.IPV6_RECVERR, unix.IPV6_UNICAST_HOPS, 0, netip.MustParseAddr("fd01:1::1"), netip.MustParseAddr("fd01:2::1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// A closed port: the sink's own answer reaches the client.
			client := b.host(t, netbed.Client, port(tt.client, 0), port(tt.sink, 9))
			raw, err := client.conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			set := func(opt, v int) {
				var err error
				if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), tt.level, opt, v) }); cerr != nil || err != nil {
					t.Fatalf("set option %d: %v %v", opt, cerr, err)
				}
			}
			set(tt.recverr, 1)
			expect := func(what string, offender netip.Addr, typ, code uint8) {
				t.Helper()
				client.write([]byte("hello"), netip.AddrPort{})
				var got *mmsg.Error
				err := raw.Read(func(fd uintptr) bool {
					oob := make([]byte, 512)
					n, oobn, _, _, err := unix.Recvmsg(int(fd), make([]byte, 100), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
					if err == nil {
						_ = n
						got = mmsg.ParseControl(oob[:oobn]).Err
					}
					return err == nil
				})
				if err != nil || got == nil {
					t.Fatalf("%s: no error came: %v; near %+v far %+v", what, err, b.near.Stats(), b.far.Stats())
				}
				if got.Offender != offender || got.Type != typ || got.Code != code {
					t.Errorf("%s: got type %d code %d from %v, want %d %d from %v", what, got.Type, got.Code, got.Offender, typ, code, offender)
				}
				// The error of the socket itself, so that the next write does not fail.
				_ = raw.Control(func(fd uintptr) { _, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
			}
			un, exc := [2]uint8{3, 3}, uint8(11)
			if tt.client.Is6() {
				un, exc = [2]uint8{1, 4}, 3
			}
			expect("port unreachable", tt.sink, un[0], un[1])
			set(tt.ttl, 1)
			expect("hop limit 1", tt.nearAddr, exc, 0)
			set(tt.ttl, 2)
			expect("hop limit 2", tt.farAddr, exc, 0)
			set(tt.ttl, 3)
			expect("hop limit 3", tt.sink, un[0], un[1])

			// What does arrive shows the hops and DSCP.
			sink := b.host(t, netbed.Sink, port(tt.sink, 7000), netip.AddrPort{})
			sraw, err := sink.conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := sraw.Control(func(fd uintptr) { err = wantControl(int(fd), tt.client.Is6()) }); err != nil {
				t.Fatal(err)
			}
			c := b.host(t, netbed.Client, port(tt.client, 0), port(tt.sink, 7000))
			craw, _ := c.conn.SyscallConn()
			_ = craw.Control(func(fd uintptr) {
				if tt.client.Is6() {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TCLASS, 0xb8), unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, 50))
				} else {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS, 0xb8), unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TTL, 50))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			c.write([]byte("x"), netip.AddrPort{})
			r := mmsg.NewReader(1, 100)
			var m mmsg.Message
			if err := sraw.Read(func(fd uintptr) bool {
				n, err := r.Read(int(fd))
				if err != nil {
					return false
				}
				_ = n
				m = r.Message(0)
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if m.TOS != 0xb8 || m.TTL != 48 {
				t.Errorf("the sink sees DSCP %#x and %d hops left, want 0xb8 and 48", m.TOS, m.TTL)
			}
		})
	}
}

func TestRefusedFlowsReachNoSink(t *testing.T) {
	b := newBed(t, nil)
	deny := func(src, dst netip.AddrPort) error {
		if dst.Port() == 7001 {
			return errNotAllowed
		}
		return nil
	}
	b.allowed.Store(&deny)
	no := b.host(t, netbed.Sink, port(netbed.Sink4, 7001), netip.AddrPort{})
	yes := b.host(t, netbed.Sink, port(netbed.Sink4, 7002), netip.AddrPort{})
	client := b.host(t, netbed.Client, port(netbed.Client4, 6000), netip.AddrPort{})
	client.write([]byte("no"), port(netbed.Sink4, 7001))
	client.write([]byte("yes"), port(netbed.Sink4, 7002))
	yes.read()
	for end := time.Now().Add(patience); b.far.Stats().Refused == 0; {
		if time.Now().After(end) {
			t.Fatalf("the refused flow is not counted: %+v", b.far.Stats())
		}
		client.write([]byte("no"), port(netbed.Sink4, 7001))
		client.write([]byte("yes"), port(netbed.Sink4, 7002))
		yes.read()
	}
	if err := no.conn.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := no.conn.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a refused flow reached the sink: %d bytes, %v", n, err)
	}
}

// A flood of random flows costs a bounded amount of memory and does not hurt
// another client's flow.
func TestFloodLeavesOthersAlone(t *testing.T) {
	const limit = 300
	b := newBed(t, func(near, far *Options) {
		near.MaxFlows, near.ClientFlows = 2*limit, limit
		far.MaxFlows, far.ClientFlows = 2*limit, limit
	})
	b.Run(netbed.Client, "ip", "addr", "add", "192.168.1.3/24", "dev", "eth0")
	sink := b.host(t, netbed.Sink, port(netbed.Sink4, 7000), netip.AddrPort{})
	good := b.host(t, netbed.Client, port(netip.MustParseAddr("192.168.1.3"), 6000), port(netbed.Sink4, 7000))
	ask := func(i int) {
		t.Helper()
		good.write(binary.BigEndian.AppendUint32(nil, uint32(i)), netip.AddrPort{})
		b, from := sink.read()
		sink.write(b, from)
		if b, _ := good.read(); binary.BigEndian.Uint32(b) != uint32(i) {
			t.Fatalf("answer %x to question %d", b, i)
		}
	}
	ask(0)
	bad := b.host(t, netbed.Client, port(netbed.Client4, 6000), netip.AddrPort{})
	n := 50000
	if testing.Short() {
		n = 5000
	}
	for i := range n {
		// Nobody listens there: refusals come back as well.
		_, err := bad.conn.WriteToUDPAddrPort([]byte("flood"), port(netbed.Sink4, uint16(10000+i%40000)))
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			ask(i)
		}
	}
	for name, f := range map[string]*Flows{"near": b.near, "far": b.far} {
		st := f.Stats()
		if st.NearFlows+st.FarFlows > limit+1 {
			t.Errorf("%s holds %d flows, want at most %d", name, st.NearFlows+st.FarFlows, limit+1)
		}
		if st.Evicted == 0 {
			t.Errorf("%s has evicted nothing: %+v", name, st)
		}
	}
	ask(n)
}
