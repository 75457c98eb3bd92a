package mptcpproxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/init/unit"
	"weft/services/internal/mptcpnl"
	"weft/services/mptcpproxy/internal/status"
)

// serviceArgs makes the test binary be the service: its arguments, joined.
const serviceArgs = "WEFT_TEST_MPTCPPROXY"

func TestMain(m *testing.M) {
	if args := os.Getenv(serviceArgs); args != "" {
		c := unit.OSCall()
		c.Args = append([]string{"mptcpproxy"}, strings.Split(args, "\n")...)
		os.Exit(unit.Main(Run)(context.Background(), c))
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come; what passes does not
// wait for it.
const patience = 30 * time.Second

// space is a network namespace of the bed.
type space struct {
	name string
	ns   netns.NsHandle
	*netlink.Handle
}

// bed is client - near = two paths = far - sink, each a namespace of its own.
type bed struct {
	*testing.T
	client, near, far, sink *space
	dir                     string
}

// Addresses of the bed, in the order of the two families.
var (
	clientAddr = []string{"192.168.1.2", "fd01::2"}
	sinkAddr   = []string{"192.168.2.2", "fd02::2"}
)

const testKey = "gQ2kXrTqVb0n8yJm4dH7sLw1zFpUcE5a"

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if _, err := os.Stat("/proc/sys/net/mptcp/enabled"); err != nil {
		t.Skip("this kernel has no MPTCP")
	}
	b := &bed{T: t, dir: t.TempDir()}
	b.client, b.near, b.far, b.sink = b.space("client"), b.space("near"), b.space("far"), b.space("sink")
	b.link(b.client, "lan", b.near, "lan", "192.168.1.2/24", "192.168.1.1/24", "fd01::2/64", "fd01::1/64")
	b.link(b.near, "p1", b.far, "p1", "10.1.0.1/24", "10.1.0.2/24", "fd11::1/64", "fd11::2/64")
	b.link(b.near, "p2", b.far, "p2", "10.2.0.1/24", "10.2.0.2/24", "fd12::1/64", "fd12::2/64")
	b.link(b.far, "lan", b.sink, "lan", "192.168.2.1/24", "192.168.2.2/24", "fd02::1/64", "fd02::2/64")
	b.route(b.client, "lan", "0.0.0.0/0", "192.168.1.1")
	b.route(b.client, "lan", "::/0", "fd01::1")
	b.route(b.sink, "lan", "0.0.0.0/0", "192.168.2.1")
	b.route(b.sink, "lan", "::/0", "fd02::1")
	b.route(b.near, "p1", "192.168.2.0/24", "10.1.0.2")
	b.route(b.near, "p1", "fd02::/64", "fd11::2")
	b.route(b.far, "p1", "192.168.1.0/24", "10.1.0.1")
	b.route(b.far, "p1", "fd01::/64", "fd11::1")
	for _, s := range []*space{b.near, b.far} {
		b.sysctl(s, "net/ipv4/ip_forward", "1")
		b.sysctl(s, "net/ipv6/conf/all/forwarding", "1")
	}
	for _, s := range []*space{b.client, b.sink} {
		b.sysctl(s, "net/mptcp/enabled", "0")
	}
	return b
}

// in runs f in a namespace.
func (b *bed) in(s *space, f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(s.ns); err != nil {
			errc <- err
			return
		}
		errc <- f()
	}()
	return <-errc
}

func (b *bed) must(what string, err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%s: %v", what, err)
	}
}

func (b *bed) space(name string) *space {
	b.Helper()
	s := &space{name: name}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		s.ns, err = netns.New()
		errc <- err
	}()
	b.must("make a namespace", <-errc)
	b.Cleanup(func() { s.ns.Close() })
	h, err := netlink.NewHandleAt(s.ns)
	b.must("netlink", err)
	b.Cleanup(h.Close)
	s.Handle = h
	lo, err := h.LinkByName("lo")
	b.must("lo", err)
	b.must("lo", h.LinkSetUp(lo))
	return s
}

func (b *bed) sysctl(s *space, name, value string) {
	b.Helper()
	b.must(name, b.in(s, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) }))
}

func (b *bed) link(x *space, xname string, y *space, yname, x4, y4, x6, y6 string) {
	b.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Namespace = xname, netlink.NsFd(x.ns)
	b.must("veth", x.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: yname, PeerNamespace: netlink.NsFd(y.ns)}))
	for _, e := range []struct {
		s        *space
		name     string
		addr, v6 string
	}{{x, xname, x4, x6}, {y, yname, y4, y6}} {
		b.sysctl(e.s, "net/ipv6/conf/"+e.name+"/accept_dad", "0")
		l, err := e.s.LinkByName(e.name)
		b.must(e.name, err)
		for _, a := range []string{e.addr, e.v6} {
			addr, err := netlink.ParseAddr(a)
			b.must(a, err)
			addr.Flags = unix.IFA_F_NODAD
			b.must(a, e.s.AddrAdd(l, addr))
		}
		b.must(e.name, e.s.LinkSetUp(l))
	}
}

func (b *bed) route(s *space, dev, dst, via string) {
	b.Helper()
	l, err := s.LinkByName(dev)
	b.must(dev, err)
	_, n, err := net.ParseCIDR(dst)
	b.must(dst, err)
	b.must("route", s.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: n, Gw: net.ParseIP(via)}))
}

// set switches a link.
func (b *bed) set(s *space, dev string, up bool) {
	b.Helper()
	l, err := s.LinkByName(dev)
	b.must(dev, err)
	if up {
		b.must(dev, s.LinkSetUp(l))
	} else {
		b.must(dev, s.LinkSetDown(l))
	}
}

// gateway is the service at one end.
type gateway struct {
	b     *bed
	s     *space
	dir   string
	cmd   *exec.Cmd
	log   lockedBuffer
	last  status.Report
	ended chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// gateway prepares the service in a namespace.
func (b *bed) gateway(s *space, config string) *gateway {
	b.Helper()
	g := &gateway{b: b, s: s, dir: filepath.Join(b.dir, s.name)}
	b.must("folder", os.MkdirAll(filepath.Join(g.dir, "config"), 0o755))
	g.config(config)
	b.Cleanup(func() {
		if g.cmd != nil && g.running() {
			if b.Failed() {
				_ = g.ask("status", &g.last)
			}
			g.cmd.Process.Kill()
			<-g.ended
		}
		if b.Failed() {
			b.Logf("log of %s:\n%s", s.name, g.log.String())
			_ = b.in(s, func() error {
				m, err := mptcpnl.Counters()
				for k, v := range m {
					if v == 0 {
						delete(m, k)
					}
				}
				b.Logf("MPTCP counters of %s: %v %v", s.name, m, err)
				return nil
			})
			if r, err := json.Marshal(g.last); err == nil {
				b.Logf("last status of %s: %s", s.name, r)
			}
		}
	})
	return g
}

func (g *gateway) running() bool {
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

func (g *gateway) config(text string) {
	g.b.Helper()
	g.b.must("configuration", os.WriteFile(filepath.Join(g.dir, "config", "mptcpproxy"), []byte(text), 0o600))
}

func (g *gateway) state() string { return filepath.Join(g.dir, "state") }

// start starts the service; it is ready when start returns.
func (g *gateway) start() {
	g.b.Helper()
	notify := filepath.Join(g.dir, "notify")
	os.Remove(notify)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	g.b.must("notify socket", err)
	g.cmd = exec.Command("/proc/self/exe")
	args := []string{"--debug", "--config-dir", filepath.Join(g.dir, "config"), "--state-dir", g.state(), "--bus", filepath.Join(g.dir, "bus")}
	g.cmd.Env = append(os.Environ(), serviceArgs+"="+strings.Join(args, "\n"), "NOTIFY_SOCKET="+notify)
	g.cmd.Stderr = &g.log
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: 0}
	g.b.must("start the service", g.b.in(g.s, g.cmd.Start))
	g.ended = make(chan struct{})
	cmd, ended := g.cmd, g.ended
	go func() { cmd.Wait(); close(ended) }()
	ready.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := ready.Read(buf)
		if err != nil {
			g.b.Fatalf("%s is not ready: %v", g.s.name, err)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			break
		}
	}
	ready.SetReadDeadline(time.Time{})
	go func() { // what it says from now on is not looked at
		defer ready.Close()
		go func() { <-ended; ready.SetReadDeadline(time.Unix(1, 0)) }()
		for {
			if _, err := ready.Read(buf); err != nil {
				return
			}
		}
	}()
}

// signal sends a signal; one that ends the service is waited for.
func (g *gateway) signal(s os.Signal) {
	g.b.Helper()
	g.b.must("signal", g.cmd.Process.Signal(s))
	if s == syscall.SIGHUP {
		return
	}
	select {
	case <-g.ended:
	case <-time.After(patience):
		g.b.Fatalf("%s does not end", g.s.name)
	}
}

// ask asks the status socket.
func (g *gateway) ask(method string, v any) error {
	c, err := net.Dial("unix", filepath.Join(g.state(), status.Socket))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, `{"method":%q}`+"\n", method)
	line, err := bufio.NewReader(c).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return json.Unmarshal(line, v)
}

func (g *gateway) report() status.Report {
	g.b.Helper()
	var r status.Report
	g.b.must("status of "+g.s.name, g.ask("status", &r))
	g.last = r
	return r
}

// until waits until cond holds.
func (b *bed) until(what string, cond func() bool) {
	b.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			b.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(20 * time.Millisecond) // between looks; it does not decide anything
	}
}

// peerUp waits until near has its peer, with trunks to use.
func (g *gateway) peerUp(up bool) {
	g.b.Helper()
	g.b.until(fmt.Sprintf("the peer is up: %t", up), func() bool {
		r := g.report()
		return r.State == "running" && len(r.Peers) == 1 && r.Peers[0].Up == up && r.Bypass == !up && (!up || r.Peers[0].Idle > 0)
	})
}

// listen opens a TCP listener in a namespace.
func (b *bed) listen(s *space, addr string) *net.TCPListener {
	b.Helper()
	var l net.Listener
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	b.must("listen on "+addr, b.in(s, func() (err error) { l, err = lc.Listen(context.Background(), "tcp", addr); return }))
	b.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// dial connects from the client.
func (b *bed) dial(addr string, timeout time.Duration) (*net.TCPConn, error) {
	var c net.Conn
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	err := b.in(b.client, func() (err error) { c, err = d.Dial("tcp", addr); return })
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// accept takes one connection.
func (b *bed) accept(l *net.TCPListener) *net.TCPConn {
	b.Helper()
	l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptTCP()
	b.must("accept", err)
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// pair makes a connection from the client to the sink.
func (b *bed) pair(l *net.TCPListener) (client, sink *net.TCPConn) {
	b.Helper()
	client, err := b.dial(l.Addr().String(), patience)
	b.must("connect", err)
	sink = b.accept(l)
	b.Cleanup(func() { client.Close(); sink.Close() })
	return client, sink
}

// exchange sends text both ways.
func (b *bed) exchange(x, y net.Conn) {
	b.Helper()
	for _, p := range [][2]net.Conn{{x, y}, {y, x}} {
		_, err := io.WriteString(p[0], "hello")
		b.must("send", err)
		buf := make([]byte, 5)
		_, err = io.ReadFull(p[1], buf)
		b.must("receive", err)
		if string(buf) != "hello" {
			b.Fatalf("got %q", buf)
		}
	}
}

// snapshot lists what a proxy may leave behind in a namespace.
func (b *bed) snapshot(s *space) string {
	b.Helper()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := s.LinkList()
	b.must("links", err)
	for _, l := range links {
		add("link %s", l.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := s.RuleList(family)
		b.must("rules", err)
		for _, r := range rules {
			add("rule %v", r)
		}
		routes, err := s.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		b.must("routes", err)
		for _, r := range routes {
			if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN || r.Type == unix.RTN_UNREACHABLE {
				add("route %d %v via %v type %d", r.Table, r.Dst, r.Gw, r.Type)
			}
		}
	}
	nft, err := nftables.New(nftables.WithNetNSFd(int(s.ns)))
	b.must("nftables", err)
	tables, err := nft.ListTables()
	b.must("tables", err)
	for _, t := range tables {
		add("table %s", t.Name)
	}
	b.must("sysctls", b.in(s, func() error {
		var files []string
		for _, pattern := range []string{"/proc/sys/net/mptcp/*", "/proc/sys/net/ipv4/conf/*/rp_filter", "/proc/sys/net/ipv4/conf/*/route_localnet", "/proc/sys/net/ipv4/tcp_*", "/proc/sys/net/ipv4/ip_*", "/proc/sys/net/ipv4/fib_*"} {
			m, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			files = append(files, m...)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue // write-only, or gone
			}
			add("%s %s", strings.TrimPrefix(f, "/proc/sys/"), strings.TrimSpace(string(text)))
		}
		return nil
	}))
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// sameSnapshot compares two and names what differs.
func (b *bed) sameSnapshot(what, before, after string) {
	b.Helper()
	x, y := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range x {
		if !slices.Contains(y, l) {
			b.Errorf("%s: gone: %s", what, l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			b.Errorf("%s: left behind: %s", what, l)
		}
	}
}

// watch looks at every packet on a host's link until stop, and counts those that
// carry an MPTCP option (kind 30, RFC 8684).
func (b *bed) watch(s *space) (stop func() (packets, mptcp int)) {
	b.Helper()
	var fd int
	b.must("packet socket", b.in(s, func() (err error) {
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		return err
	}))
	b.must("buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	b.must("timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}))
	var packets, mptcp int
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 256)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				select {
				case <-end:
					return
				default:
					continue
				}
			}
			if opts, ok := tcpOptions(buf[:n]); ok {
				packets++
				if hasOption(opts, 30) {
					mptcp++
				}
			}
		}
	}()
	return func() (int, int) {
		close(end)
		<-done
		unix.Close(fd)
		return packets, mptcp
	}
}

// tcpOptions finds the options of a TCP segment in an IP packet.
func tcpOptions(p []byte) ([]byte, bool) {
	if len(p) < 20 {
		return nil, false
	}
	at := int(p[0]&15) * 4
	switch {
	case p[0]>>4 == 4 && p[9] == 6:
	case p[0]>>4 == 6 && len(p) > 40 && p[6] == 6:
		at = 40
	default:
		return nil, false
	}
	if len(p) < at+20 {
		return nil, false
	}
	end := at + int(p[at+12]>>4)*4
	if end > len(p) || end < at+20 {
		return nil, false
	}
	return p[at+20 : end], true
}

func hasOption(o []byte, kind byte) bool {
	for len(o) > 0 {
		switch {
		case o[0] == kind:
			return true
		case o[0] == 0:
			return false
		case o[0] == 1:
			o = o[1:]
		case len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o):
			return false
		default:
			o = o[o[1]:]
		}
	}
	return false
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// in6 gives an IPv6 address back to a link that has lost it by going down.
func (b *bed) in6(s *space, dev, a string) {
	b.Helper()
	l, err := s.LinkByName(dev)
	b.must(dev, err)
	addr, err := netlink.ParseAddr(a)
	b.must(a, err)
	addr.Flags = unix.IFA_F_NODAD
	b.must(a, s.AddrReplace(l, addr))
}
