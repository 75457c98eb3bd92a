package synhold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/intercept/bed"

	"weft/services/mptcpproxy/internal/transparent"
)

func everywhere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

// proxy is near and far side in one: what a held flow needs, without MPTCP.
type proxy struct {
	b    *bed.Bed
	i    *intercept.Intercept
	hold *Hold

	mu      sync.Mutex
	far     map[[2]netip.AddrPort]int // connected to the sink
	asked   map[netip.AddrPort]int
	cancels int
	open    func(src, dst netip.AddrPort, result func(error)) func() // instead of connect
}

// instead replaces the far side.
func (p *proxy) instead(open func(src, dst netip.AddrPort, result func(error)) func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = open
}

func (p *proxy) connect(src, dst netip.AddrPort, result func(error)) func() {
	p.mu.Lock()
	p.asked[dst]++
	instead := p.open
	p.mu.Unlock()
	if instead != nil {
		return instead(src, dst, result)
	}
	stop := make(chan struct{})
	go func() {
		var fd int
		err := p.b.In("gw", func() (err error) { fd, err = transparent.Connect(src, dst, intercept.MarkConnect); return })
		for err == nil {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, _ := unix.Poll(poll, 20)
			select {
			case <-stop:
				unix.Close(fd)
				return
			default:
			}
			if n > 0 {
				if err = p.b.In("gw", func() error { return transparent.Finish(fd) }); err == nil {
					break
				}
				unix.Close(fd)
			}
		}
		if err == nil {
			p.mu.Lock()
			p.far[[2]netip.AddrPort{src, dst}] = fd
			p.mu.Unlock()
		}
		result(err)
	}()
	return func() {
		p.mu.Lock()
		p.cancels++
		p.mu.Unlock()
		close(stop)
	}
}

// serve joins what the listener accepts with the far side's connection.
func (p *proxy) serve(ctx context.Context, listener int) {
	for ctx.Err() == nil {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}, 50); n <= 0 {
			continue
		}
		fd, peer, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			continue
		}
		local, _ := unix.Getsockname(fd)
		src, dst := transparent.AddrPort(peer), transparent.AddrPort(local)
		p.hold.Accepted(src, dst)
		p.mu.Lock()
		far, ok := p.far[[2]netip.AddrPort{src, dst}]
		delete(p.far, [2]netip.AddrPort{src, dst})
		p.mu.Unlock()
		if !ok {
			unix.Close(fd)
			continue
		}
		a, b := os.NewFile(uintptr(fd), "client"), os.NewFile(uintptr(far), "sink")
		go func() {
			defer a.Close()
			defer b.Close()
			done := make(chan bool, 2)
			for _, d := range [][2]*os.File{{a, b}, {b, a}} {
				go func() {
					io.Copy(d[0], d[1])
					if c, err := d[0].SyscallConn(); err == nil {
						c.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
					}
					done <- true
				}()
			}
			<-done
			<-done
		}()
	}
}

// start makes a proxy in the gateway; stop ends it, and runs at the latest with
// the test.
func start(t testing.TB, b *bed.Bed, o intercept.Options, ho Options) (*proxy, func()) {
	t.Helper()
	p := &proxy{b: b, far: map[[2]netip.AddrPort]int{}, asked: map[netip.AddrPort]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	err := b.In("gw", func() error {
		fds, err := transparent.ListenTCP(0, 1, false)
		if err != nil {
			return err
		}
		if o.PortTCP, err = transparent.Port(fds[0]); err != nil {
			return err
		}
		ho.Open = p.connect
		ho.Known = func(dst netip.AddrPort, good bool) {
			p.mu.Lock()
			i := p.i
			p.mu.Unlock()
			if i != nil {
				i.Known(dst, good)
			}
		}
		if p.hold, err = New(ho); err != nil {
			return err
		}
		wg.Add(2)
		go func() { defer wg.Done(); p.serve(ctx, fds[0]); unix.Close(fds[0]) }()
		go func() {
			defer wg.Done()
			if err := p.hold.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		if o.LAN == nil {
			o.LAN = []string{bed.LANDevice}
		}
		if o.Destinations == nil {
			o.Destinations = everywhere()
		}
		o.StateDir = t.TempDir()
		i, err := intercept.Setup(o)
		p.mu.Lock()
		p.i = i
		p.mu.Unlock()
		return err
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			if err := b.In("gw", p.i.Close); err != nil {
				t.Errorf("Close: %v", err)
			}
			cancel()
			wg.Wait()
		})
	}
	t.Cleanup(stop)
	return p, stop
}

// outcome is what a client sees of a connect.
type outcome struct {
	Silent bool
	Err    unix.Errno
	ICMP   string // type, code, offender
}

// try connects from the client, without any help of a proxy, and waits for
// patience.
func try(b *bed.Bed, dst netip.AddrPort, patience time.Duration) (o outcome, fd int, err error) {
	src := netip.MustParseAddr(bed.Client4)
	if dst.Addr().Is6() {
		src = netip.MustParseAddr(bed.Client6)
	}
	err = b.In("client", func() (err error) {
		fd, err = transparent.Connect(netip.AddrPortFrom(src, 0), dst, 0)
		return
	})
	if err != nil {
		return o, -1, err
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds()))
	if err != nil || n == 0 {
		unix.Close(fd)
		return outcome{Silent: true}, -1, err
	}
	err = transparent.Finish(fd)
	if err == nil {
		return o, fd, nil
	}
	unix.Close(fd)
	var ce *transparent.ConnectError
	if !errors.As(err, &ce) {
		return o, -1, err
	}
	o.Err = ce.Errno
	if ce.ICMP {
		o.ICMP = fmt.Sprintf("type %d code %d from %v", ce.ICMPType, ce.ICMPCode, ce.Offender)
	}
	return o, -1, nil
}

// sinkRules makes the sink answer in many ways, by port.
const sinkRules = `
table inet sink {
	chain input {
		type filter hook input priority 0;
		tcp dport 2001 meta nfproto ipv4 reject with icmp host-unreachable
		tcp dport 2002 meta nfproto ipv4 reject with icmp net-unreachable
		tcp dport 2003 reject with icmpx admin-prohibited
		tcp dport 2004 reject with icmpx port-unreachable
		tcp dport 2005 drop
		tcp dport 2006 reject with tcp reset
		tcp dport 2007 meta nfproto ipv4 reject with icmp net-prohibited
		tcp dport 2008 meta nfproto ipv4 reject with icmp host-prohibited
		tcp dport 2009 meta nfproto ipv4 reject with icmp prot-unreachable
		tcp dport 2001 meta nfproto ipv6 reject with icmpv6 addr-unreachable
		tcp dport 2002 meta nfproto ipv6 reject with icmpv6 no-route
		tcp dport 2010 meta nfproto ipv6 reject with icmpv6 policy-fail
		tcp dport 2011 meta nfproto ipv6 reject with icmpv6 reject-route
	}
}
`

func sinkAnswers(t testing.TB, b *bed.Bed) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(sinkRules), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Run("sink", "nft", "-f", file)
	// All ICMP errors at once are within what is being tested.
	for _, ns := range []string{"sink", "gw"} {
		b.Run(ns, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
	}
	// What others may have set, and makes it harder: strict source checks, marks that
	// count in them and that connections inherit.
	b.Run("gw", "sh", "-c", "cd /proc/sys/net/ipv4; echo 1 >conf/all/rp_filter; echo 1 >conf/lan0/rp_filter; echo 1 >conf/far0/rp_filter; echo 1 >conf/all/src_valid_mark; echo 1 >tcp_fwmark_accept")
	// A neighbour that does not exist is found out in less time than by default.
	b.Run("gw", "sh", "-c", "for f in 4 6; do echo 1 >/proc/sys/net/ipv$f/neigh/far0/mcast_solicit; echo 200 >/proc/sys/net/ipv$f/neigh/far0/retrans_time_ms; done")
	for _, r := range []string{
		"unreachable 10.1.0.0/16", "prohibit 10.2.0.0/16", "blackhole 10.3.0.0/16", "10.5.0.0/16 via 192.168.2.2",
		"unreachable fd11::/32", "prohibit fd12::/32", "blackhole fd13::/32", "fd15::/32 via fd02::2",
	} {
		args := append([]string{"ip"}, strings.Fields("route add "+r)...)
		if strings.Contains(r, "fd1") {
			args = append([]string{"ip", "-6"}, args[1:]...)
		}
		b.Run("gw", args...)
	}
	// The sink is a router for 10.5 and fd15, with no route for some of it.
	b.Run("sink", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	b.Run("sink", "ip", "route", "replace", "192.168.1.0/24", "via", bed.Far4)
	b.Run("sink", "ip", "-6", "route", "replace", "fd01::/64", "via", bed.Far6)
	b.Run("sink", "ip", "route", "del", "default")
	b.Run("sink", "ip", "-6", "route", "del", "default")
	b.Run("sink", "ip", "route", "add", "prohibit", "10.5.2.0/24")
	b.Run("sink", "ip", "-6", "route", "add", "prohibit", "fd15:0:2::/48")
}

func listen(t testing.TB, b *bed.Bed, ns, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	err := b.In(ns, func() (err error) { l, err = net.Listen("tcp", addr); return })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestFaithful compares what a client sees of all kinds of sinks with and
// without the proxy.
func TestFaithful(t *testing.T) {
	b := bed.New(t)
	sinkAnswers(t, b)
	seen := make(chan net.Conn, 16)
	l := listen(t, b, "sink", "[::]:80")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				seen <- c
			}()
		}
	}()

	cases := []struct {
		name, dst string
		want      outcome // errno and silence; the ICMP details only have to be the same
	}{
		{"open", "192.168.2.2:80", outcome{}},
		{"closed port", "192.168.2.2:81", outcome{Err: unix.ECONNREFUSED}},
		{"host unreachable", "192.168.2.2:2001", outcome{Err: unix.EHOSTUNREACH}},
		{"net unreachable", "192.168.2.2:2002", outcome{Err: unix.ENETUNREACH}},
		{"prohibited", "192.168.2.2:2003", outcome{Err: unix.EHOSTUNREACH}},
		{"port unreachable", "192.168.2.2:2004", outcome{Err: unix.ECONNREFUSED}},
		{"dropped", "192.168.2.2:2005", outcome{Silent: true}},
		{"reset by a filter", "192.168.2.2:2006", outcome{Err: unix.ECONNREFUSED}},
		{"net prohibited", "192.168.2.2:2007", outcome{Err: unix.ENETUNREACH}},
		{"host prohibited", "192.168.2.2:2008", outcome{Err: unix.EHOSTUNREACH}},
		{"protocol unreachable", "192.168.2.2:2009", outcome{Err: unix.ENOPROTOOPT}},
		{"no such neighbour", "192.168.2.99:80", outcome{Err: unix.EHOSTUNREACH}},
		{"gateway: unreachable route", "10.1.0.1:80", outcome{Err: unix.EHOSTUNREACH}},
		{"gateway: prohibited route", "10.2.0.1:80", outcome{Err: unix.EHOSTUNREACH}},
		{"gateway: black hole", "10.3.0.1:80", outcome{Silent: true}},
		{"gateway: no route", "10.4.0.1:80", outcome{Err: unix.ENETUNREACH}},
		{"router behind: no route", "10.5.1.1:80", outcome{Err: unix.ENETUNREACH}},
		{"router behind: prohibited route", "10.5.2.1:80", outcome{Err: unix.EHOSTUNREACH}},

		{"open", "[fd02::2]:80", outcome{}},
		{"closed port", "[fd02::2]:81", outcome{Err: unix.ECONNREFUSED}},
		{"address unreachable", "[fd02::2]:2001", outcome{Err: unix.EHOSTUNREACH}},
		{"no route", "[fd02::2]:2002", outcome{Err: unix.ENETUNREACH}},
		{"prohibited", "[fd02::2]:2003", outcome{Err: unix.EACCES}},
		{"port unreachable", "[fd02::2]:2004", outcome{Err: unix.ECONNREFUSED}},
		{"dropped", "[fd02::2]:2005", outcome{Silent: true}},
		{"reset by a filter", "[fd02::2]:2006", outcome{Err: unix.ECONNREFUSED}},
		{"policy", "[fd02::2]:2010", outcome{Err: unix.EACCES}},
		{"reject route", "[fd02::2]:2011", outcome{Err: unix.EACCES}},
		{"no such neighbour", "[fd02::99]:80", outcome{Err: unix.EHOSTUNREACH}},
		{"gateway: unreachable route", "[fd11::1]:80", outcome{Err: unix.ENETUNREACH}},
		{"gateway: prohibited route", "[fd12::1]:80", outcome{Err: unix.EACCES}},
		{"gateway: black hole", "[fd13::1]:80", outcome{Silent: true}},
		{"gateway: no route", "[fd14::1]:80", outcome{Err: unix.ENETUNREACH}},
		{"router behind: no route", "[fd15:0:1::1]:80", outcome{Err: unix.ENETUNREACH}},
		{"router behind: prohibited route", "[fd15:0:2::1]:80", outcome{Err: unix.EACCES}},
	}
	run := func() (out []outcome, from []netip.AddrPort) {
		out, from = make([]outcome, len(cases)), make([]netip.AddrPort, len(cases))
		var wg sync.WaitGroup
		for n, c := range cases {
			wg.Add(1)
			go func() {
				defer wg.Done()
				o, fd, err := try(b, netip.MustParseAddrPort(c.dst), 4*time.Second)
				if err != nil {
					t.Errorf("%s %s: %v", c.name, c.dst, err)
				}
				if fd >= 0 {
					sa, _ := unix.Getsockname(fd)
					from[n] = transparent.AddrPort(sa)
					f := os.NewFile(uintptr(fd), "client")
					f.SetDeadline(time.Now().Add(20 * time.Second))
					back := make([]byte, 5)
					if _, err := f.Write([]byte("hello")); err != nil {
						t.Errorf("%s %s: %v", c.name, c.dst, err)
					} else if _, err := io.ReadFull(f, back); err != nil || string(back) != "hello" {
						t.Errorf("%s %s: %q came back, %v", c.name, c.dst, back, err)
					}
					f.Close()
				}
				out[n] = o
			}()
		}
		wg.Wait()
		return out, from
	}
	accepted := func(from []netip.AddrPort) {
		t.Helper()
		want := map[netip.AddrPort]bool{}
		for _, a := range from {
			if a.IsValid() {
				want[a] = true
			}
		}
		for n := len(want); n > 0; n-- {
			c := <-seen
			a := netip.MustParseAddrPort(c.RemoteAddr().String())
			a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			if !want[a] {
				t.Errorf("the sink sees a client at %v, expected one of %v", a, want)
			}
			delete(want, a)
			c.Close()
		}
	}
	direct, from := run()
	accepted(from)
	p, stop := start(t, b, intercept.Options{Syn: intercept.HoldAll}, Options{})
	through, from := run()
	accepted(from)
	p.mu.Lock()
	for n, c := range cases {
		// Retransmissions are not asked for again.
		if asked := p.asked[netip.MustParseAddrPort(c.dst)]; asked < 1 || through[n].Silent && asked > 1 {
			t.Errorf("%s %s: the far side was asked %d times, expected once", c.name, c.dst, asked)
		}
	}
	p.mu.Unlock()
	stop()
	for n, c := range cases {
		t.Run(c.name+" "+c.dst, func(t *testing.T) {
			if d := direct[n]; d.Silent != c.want.Silent || d.Err != c.want.Err {
				t.Errorf("without proxy: %+v, expected %+v", d, c.want)
			}
			if through[n] != direct[n] {
				t.Errorf("through the proxy: %+v, without: %+v", through[n], direct[n])
			}
		})
	}
}
