package intercept_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/intercept/bed"
	"weft/services/mptcpproxy/internal/transparent"
)

// helperEnv makes the test binary a process that sets the interception up and
// waits to be killed. Its value is the options in JSON.
const helperEnv = "INTERCEPT_TEST_HELPER"

func TestMain(m *testing.M) {
	if s := os.Getenv(helperEnv); s != "" {
		var o intercept.Options
		err := json.Unmarshal([]byte(s), &o)
		if err == nil {
			_, err = intercept.Setup(o)
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		select {}
	}
	os.Exit(m.Run())
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func everywhere() []netip.Prefix { return prefixes("0.0.0.0/0", "::/0") }

// gateway is the bed with listeners that say who took a connection: P the proxy,
// S the sink, G the gateway's own service.
type gateway struct {
	*bed.Bed
	t   testing.TB
	o   intercept.Options
	fds []int
}

func newGateway(t testing.TB) *gateway {
	t.Helper()
	g := &gateway{Bed: bed.New(t), t: t}
	g.o = intercept.Options{LAN: []string{bed.LANDevice}, Syn: intercept.Immediate, Destinations: everywhere(), StateDir: t.TempDir()}
	err := g.In("gw", func() error {
		tcp, err := transparent.ListenTCP(0, 1, false)
		if err != nil {
			return err
		}
		udp, err := transparent.ListenUDP(0, 1)
		if err != nil {
			return err
		}
		mptcp, err := transparent.ListenTCP(0, 1, true)
		if err != nil {
			return err
		}
		g.fds = []int{tcp[0], udp[0], mptcp[0]}
		for i, port := range []*int{&g.o.PortTCP, &g.o.PortUDP, &g.o.NonePort} {
			if *port, err = transparent.Port(g.fds[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	ended := make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-ended
		for _, fd := range g.fds {
			unix.Close(fd)
		}
	})
	go func() { defer close(ended); g.proxy(stop) }()
	g.o.NonePort = 0 // asked for where it is tested
	g.answer("gw", "[::]:90", "G")
	for _, p := range []string{"80", "443", "8080"} {
		g.answer("sink", "[::]:"+p, "S")
	}
	return g
}

// nonePort is the MPTCP listener's port.
func (g *gateway) nonePort() int {
	p, err := transparent.Port(g.fds[2])
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// proxy answers P to all that is intercepted.
func (g *gateway) proxy(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		poll := []unix.PollFd{}
		for _, fd := range g.fds {
			poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
		if n, _ := unix.Poll(poll, 50); n <= 0 {
			continue
		}
		for i, p := range poll {
			if p.Revents == 0 {
				continue
			}
			if i == 1 {
				var b, oob [256]byte
				_, oobn, _, from, err := unix.Recvmsg(g.fds[1], b[:], oob[:], 0)
				dst, ok := transparent.OriginalDst(oob[:oobn])
				if err != nil || !ok {
					g.t.Errorf("UDP without original destination: %v", err)
					continue
				}
				err = g.In("gw", func() error {
					fd, err := transparent.DialUDP(dst, transparent.AddrPort(from), 0)
					if err == nil {
						_, err = unix.Write(fd, []byte("P"))
						unix.Close(fd)
					}
					return err
				})
				if err != nil {
					g.t.Error(err)
				}
				continue
			}
			fd, _, err := unix.Accept4(g.fds[i], unix.SOCK_CLOEXEC)
			if err != nil {
				continue
			}
			unix.Write(fd, []byte("P"))
			unix.Close(fd)
		}
	}
}

// answer runs a TCP and UDP service that says word.
func (g *gateway) answer(ns, addr, word string) {
	g.t.Helper()
	var l net.Listener
	var u net.PacketConn
	err := g.In(ns, func() (err error) {
		if l, err = net.Listen("tcp", addr); err == nil {
			u, err = net.ListenPacket("udp", addr)
		}
		return
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(word))
			c.Close()
		}
	}()
	go func() {
		var b [64]byte
		for {
			_, from, err := u.ReadFrom(b[:])
			if err != nil {
				return
			}
			u.WriteTo([]byte(word), from)
		}
	}()
}

// patience bounds the wait for an answer that should come; what must not come is
// never waited for.
const patience = 20 * time.Second

// who connects from a namespace and returns the word, or the error.
func (g *gateway) who(ns, network, dst string) string {
	g.t.Helper()
	var word string
	err := g.In(ns, func() error {
		var d net.Dialer
		if network == "mptcp" {
			network = "tcp"
			d.SetMultipathTCP(true)
		} else {
			d.SetMultipathTCP(false)
		}
		d.Timeout = patience
		// Also an error that is not fatal, such as a missing route, is told.
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
			})
		}
		c, err := d.Dial(network, dst)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			c.Write([]byte("?"))
		}
		var b [1]byte
		n, err := c.Read(b[:])
		word = string(b[:n])
		if err == io.EOF {
			err = nil
		}
		return err
	})
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	if err != nil {
		return err.Error()
	}
	return word
}

func (g *gateway) setup(o intercept.Options) *intercept.Intercept {
	g.t.Helper()
	var i *intercept.Intercept
	if err := g.In("gw", func() (err error) { i, err = intercept.Setup(o); return }); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { g.In("gw", i.Close) })
	return i
}

func (g *gateway) update(i *intercept.Intercept, o intercept.Options) {
	g.t.Helper()
	if err := g.In("gw", func() error { return i.Update(o) }); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) expect(ns, network, dst, want string) {
	g.t.Helper()
	if got := g.who(ns, network, dst); got != want {
		g.t.Errorf("%s, %s to %s: %q answered, expected %q", ns, network, dst, got, want)
	}
}

// state is everything that interception touches in the gateway.
func (g *gateway) state() string {
	g.t.Helper()
	return g.Run("gw", "sh", "-c", `nft list ruleset
ip rule; ip -6 rule
ip route show table all; ip -6 route show table all | sed 's/expires [0-9]*sec//'
ip link | sed 's/ qlen.*//'
grep -r . /proc/sys/net/ipv4 /proc/sys/net/ipv6 2>/dev/null | sort`)
}

// foreign loads a table of somebody else and returns how it is listed.
func (g *gateway) foreign() string {
	g.t.Helper()
	file := filepath.Join(g.t.TempDir(), "foreign")
	rules := `table inet fw4 {
	set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 }; }
	chain mangle_prerouting { type filter hook prerouting priority mangle; ip saddr @s meta mark set mark and 0xffff00ff or 0x100; }
	chain forward { type filter hook forward priority filter; policy accept; ct state established,related accept; }
}
table ip6 other {
	chain c { ip6 saddr ::1 accept; }
}
`
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.Run("gw", "nft", "-f", file)
	return g.listForeign()
}

func (g *gateway) listForeign() string {
	return g.Run("gw", "nft", "list", "table", "inet", "fw4") + g.Run("gw", "nft", "list", "table", "ip6", "other")
}

// full is options that use everything.
func (g *gateway) full() intercept.Options {
	o := g.o
	o.Syn = intercept.Adaptive
	o.Away = prefixes("10.0.0.0/8")
	o.PeerAddrs = []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd09::2")}
	o.Protocols = []uint8{132, 253}
	o.NonePort, o.NoneFrom, o.ListenPort = g.nonePort(), everywhere(), 6240
	o.Exclude = []intercept.Exclude{
		{Src: prefixes("192.168.1.77/32", "fd01::77/128")},
		{Dest: prefixes("203.0.113.0/24", "fd05::/16"), DestPort: []intercept.PortRange{{From: 22, To: 22}, {From: 8000, To: 8999}}},
		{Proto: []uint8{unix.IPPROTO_UDP}, Mark: 0x10, MarkMask: 0xff},
		{Set: "stream", DestPort: []intercept.PortRange{{From: 443, To: 443}}},
	}
	return o
}

func TestTakenAwayByClose(t *testing.T) {
	g := newGateway(t)
	foreign := g.foreign()
	g.Run("gw", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv6/conf/far0/accept_ra")
	before := g.state()
	i := g.setup(g.full())
	if with := g.state(); with == before {
		t.Fatal("nothing was set up")
	}
	if got := g.listForeign(); got != foreign {
		t.Errorf("the tables of others have changed:\n%s\nwere:\n%s", got, foreign)
	}
	if got := g.Run("gw", "cat", "/proc/sys/net/ipv6/conf/far0/accept_ra"); got != "2\n" {
		t.Errorf("accept_ra of a device that lives on router advertisements: %q, expected 2, because forwarding is on", got)
	}
	if out, err := g.Command("gw", "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("flush ruleset: %v %s", err, out)
	}
	g.Run("gw", "nft", "list", "table", "inet", intercept.Table) // survives
	g.foreign()
	if err := g.In("gw", i.Close); err != nil {
		t.Fatal(err)
	}
	if after := g.state(); after != before {
		t.Errorf("left behind:\n%s", difference(before, after))
	}
	if left, _ := os.ReadDir(g.o.StateDir); len(left) != 0 {
		t.Errorf("the state folder holds %v, expected nothing", left)
	}
	if err := i.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func difference(a, b string) string {
	var out strings.Builder
	in := map[string]int{}
	for _, l := range strings.Split(a, "\n") {
		in[l]++
	}
	for _, l := range strings.Split(b, "\n") {
		if in[l]--; in[l] < 0 {
			fmt.Fprintln(&out, "+", l)
		}
	}
	for l, n := range in {
		for ; n > 0; n-- {
			fmt.Fprintln(&out, "-", l)
		}
	}
	return out.String()
}

// child runs the interception in a process of its own. The function kills it.
func (g *gateway) child(o intercept.Options) (kill func()) {
	g.t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := g.Command("gw", os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	kill = func() { cmd.Process.Kill(); cmd.Wait() }
	g.t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		g.t.Fatalf("the process says %q, %v", line, err)
	}
	return kill
}

func TestKilledFailOpen(t *testing.T) {
	g := newGateway(t)
	foreign := g.foreign()
	g.Run("gw", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")
	before := g.state()
	o := g.full()
	o.Syn = intercept.Adaptive // nobody reads the NFLOG group: connections hang as long as it lives
	kill := g.child(o)
	g.Run("gw", "nft", "list", "table", "inet", intercept.Table)
	if err := g.In("gw", func() error { _, err := intercept.Setup(g.o); return err }); err == nil {
		t.Error("a second process could set up interception as well")
	}
	if err := g.In("gw", func() error { return intercept.Cleanup(g.o.StateDir) }); err == nil {
		t.Error("Cleanup took a living process's interception away")
	}
	kill()
	tables := g.Run("gw", "nft", "list", "tables")
	if strings.Contains(tables, "table inet "+intercept.Table+"\n") {
		t.Errorf("after kill -9 the table is still there: %s", tables)
	}
	for _, dst := range []string{"192.168.2.2:80", "[fd02::2]:80"} {
		g.expect("client", "tcp", dst, "S")
		g.expect("client", "udp", dst, "S")
	}
	for range 2 {
		if err := g.In("gw", func() error { return intercept.Cleanup(g.o.StateDir) }); err != nil {
			t.Fatal(err)
		}
		if after := g.state(); after != before {
			t.Errorf("left behind:\n%s", difference(before, after))
		}
	}
	if got := g.listForeign(); got != foreign {
		t.Errorf("the tables of others have changed:\n%s\nwere:\n%s", got, foreign)
	}
}

func TestKilledFailClosed(t *testing.T) {
	g := newGateway(t)
	before := g.state()
	o := g.o
	o.Fail = intercept.FailClosed
	o.PortTCP, o.PortUDP = 1, 2 // no listener: as after the end of the process
	kill := g.child(o)
	kill()
	g.expect("client", "tcp", "192.168.2.2:80", unix.ENETUNREACH.Error())
	g.expect("client", "udp", "[fd02::2]:80", unix.ENETUNREACH.Error())
	// The next one takes over, and is fail-open.
	i := g.setup(g.o)
	g.expect("client", "tcp", "192.168.2.2:80", "P")
	if err := g.In("gw", i.Close); err != nil {
		t.Fatal(err)
	}
	g.expect("client", "tcp", "192.168.2.2:80", "S")
	if after := g.state(); after != before {
		t.Errorf("left behind:\n%s", difference(before, after))
	}
}

func TestWhatIsTaken(t *testing.T) {
	g := newGateway(t)
	i := g.setup(g.o)
	for _, network := range []string{"tcp", "udp", "mptcp"} {
		g.expect("client", network, "192.168.2.2:80", "P")
		g.expect("client", network, "[fd02::2]:80", "P")
		g.expect("client", network, "192.168.1.1:90", "G")
		g.expect("client", network, "[fd01::1]:90", "G")
		g.expect("gw", network, "192.168.2.2:80", "S") // the gateway's own traffic
	}
	one := func(e intercept.Exclude) func(*intercept.Options) {
		return func(o *intercept.Options) { o.Exclude = []intercept.Exclude{e} }
	}
	port := func(from, to uint16) []intercept.PortRange { return []intercept.PortRange{{From: from, To: to}} }
	cases := []struct {
		name       string
		change     func(*intercept.Options)
		tcp, udp   string // to port 80, IPv4
		tcp6, udp6 string
		tcp443     string
	}{
		{"source", one(intercept.Exclude{Src: prefixes("192.168.1.0/24")}), "S", "S", "P", "P", "S"},
		{"other source", one(intercept.Exclude{Src: prefixes("192.168.1.3/32")}), "P", "P", "P", "P", "P"},
		{"destination", one(intercept.Exclude{Dest: prefixes("fd02::2/128", "10.0.0.0/8")}), "P", "P", "S", "S", "P"},
		{"port", one(intercept.Exclude{DestPort: port(80, 81)}), "S", "S", "S", "S", "P"},
		{"protocol", one(intercept.Exclude{Proto: []uint8{unix.IPPROTO_UDP}}), "P", "S", "P", "S", "P"},
		{"port and protocol", one(intercept.Exclude{Proto: []uint8{unix.IPPROTO_TCP}, DestPort: port(443, 443)}), "P", "P", "P", "P", "S"},
		{"all kinds", one(intercept.Exclude{Src: prefixes("192.168.1.2/32"), Dest: prefixes("192.168.2.0/24"), DestPort: port(80, 80), Proto: []uint8{6}}), "S", "P", "P", "P", "P"},
		{"mark", one(intercept.Exclude{Mark: 0x5, MarkMask: 0xf}), "S", "P", "P", "P", "P"},
		{"destinations", func(o *intercept.Options) { o.Destinations = prefixes("192.168.0.0/16") }, "P", "P", "S", "S", "P"},
		{"peer", func(o *intercept.Options) { o.PeerAddrs = []netip.Addr{netip.MustParseAddr("192.168.2.2")} }, "S", "S", "P", "P", "S"},
		{"away", func(o *intercept.Options) { o.Away = prefixes("fd02::/64") }, "P", "P", "S", "S", "P"},
		{"away, closed", func(o *intercept.Options) {
			o.Away, o.Fail = prefixes("fd02::/64"), intercept.FailClosed
		}, "P", "P", unix.ENETUNREACH.Error(), unix.ENETUNREACH.Error(), "P"},
		{"longest prefix", func(o *intercept.Options) {
			o.Away, o.Destinations = prefixes("0.0.0.0/0", "::/0"), prefixes("192.168.2.2/32")
		}, "P", "P", "S", "S", "P"},
		{"from LAN to LAN", func(o *intercept.Options) { o.LAN = []string{bed.LANDevice, bed.FarSide} }, "S", "S", "S", "S", "S"},
		{"no UDP", func(o *intercept.Options) { o.PortUDP = 0 }, "P", "S", "P", "S", "P"},
		{"no listener", func(o *intercept.Options) { o.PortTCP = 1 }, "S", "P", "S", "P", "S"},
	}
	// Somebody else's mark, for one case.
	g.Run("gw", "sh", "-c", "nft add table ip m; nft 'add chain ip m c { type filter hook prerouting priority -200; }'; nft add rule ip m c tcp dport 80 meta mark set 0x75")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			defer func(was testing.TB) { g.t = was }(g.t)
			g.t = t
			o := g.o
			c.change(&o)
			g.update(i, o)
			g.expect("client", "tcp", "192.168.2.2:80", c.tcp)
			g.expect("client", "udp", "192.168.2.2:80", c.udp)
			g.expect("client", "tcp", "[fd02::2]:80", c.tcp6)
			g.expect("client", "udp", "[fd02::2]:80", c.udp6)
			g.expect("client", "tcp", "192.168.2.2:443", c.tcp443)
		})
	}
}

func TestUserSet(t *testing.T) {
	g := newGateway(t)
	o := g.o
	o.Exclude = []intercept.Exclude{{Set: "stream", DestPort: []intercept.PortRange{{From: 443, To: 443}}}}
	i := g.setup(o)
	g.expect("client", "tcp", "192.168.2.2:443", "P")
	g.Run("gw", "nft", "add", "element", "inet", intercept.SetsTable, "stream", "{ 192.168.2.0/24 timeout 1h }")
	g.Run("gw", "nft", "add", "element", "inet", intercept.SetsTable, "stream6", "{ fd02::2 }")
	check := func() {
		t.Helper()
		g.expect("client", "tcp", "192.168.2.2:443", "S")
		g.expect("client", "udp", "[fd02::2]:443", "S")
		g.expect("client", "tcp", "192.168.2.2:80", "P")
	}
	check()
	o.Exclude = append(o.Exclude, intercept.Exclude{Src: prefixes("192.168.1.9/32")})
	g.update(i, o) // the set keeps its content
	check()
	o.Exclude = nil
	g.update(i, o)
	g.expect("client", "tcp", "192.168.2.2:443", "P")
	o.Exclude = []intercept.Exclude{{}}
	if err := g.In("gw", func() error { return i.Update(o) }); err == nil {
		t.Error("an exclude section that names nothing was taken")
	}
	g.expect("client", "tcp", "192.168.2.2:443", "P")
}

// TestUpdateKeepsFlows changes everything under an open connection.
func TestUpdateKeepsFlows(t *testing.T) {
	g := newGateway(t)
	i := g.setup(g.o)
	var echo net.Listener
	if err := g.In("gw", func() error {
		// A listener of its own behind the same kind of rules.
		fds, err := transparent.ListenTCP(0, 1, false)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fds[0]), "listener")
		defer f.Close()
		echo, err = net.FileListener(f)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	o := g.o
	o.PortTCP = echo.Addr().(*net.TCPAddr).Port
	g.update(i, o)
	var c net.Conn
	if err := g.In("client", func() (err error) { c, err = net.Dial("tcp", "192.168.2.2:80"); return }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	round := func(what string) {
		t.Helper()
		var b [5]byte
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	round("at first")
	o.Exclude = []intercept.Exclude{{Src: prefixes("192.168.1.0/24")}}
	g.update(i, o)
	round("the client is excluded")
	o.Fail = intercept.FailClosed
	g.update(i, o)
	round("fail-closed")
	g.In("gw", func() error { i.SetPeersUp(false); return nil })
	round("peers away")
	o.Fail, o.LAN, o.Destinations = intercept.FailOpen, []string{"none0"}, nil
	g.update(i, o)
	round("no LAN")
}

func TestPeersUp(t *testing.T) {
	g := newGateway(t)
	i := g.setup(g.o)
	up := func(yes bool) { g.In("gw", func() error { i.SetPeersUp(yes); return nil }) }
	g.expect("client", "tcp", "192.168.2.2:80", "P")
	up(false)
	g.expect("client", "tcp", "192.168.2.2:80", "S")
	g.expect("client", "udp", "[fd02::2]:80", "S")
	o := g.o
	o.Fail = intercept.FailClosed
	g.update(i, o)
	g.expect("client", "tcp", "192.168.2.2:80", unix.ENETUNREACH.Error())
	g.expect("client", "udp", "192.168.2.2:80", unix.ENETUNREACH.Error())
	up(true)
	g.expect("client", "udp", "[fd02::2]:80", "P")
}

// TestKnown fills the set by which SYNs are let in at once.
func TestKnown(t *testing.T) {
	g := newGateway(t)
	o := g.o
	o.Syn = intercept.Adaptive
	i := g.setup(o)
	known := func(set string) string { return g.Run("gw", "nft", "list", "set", "inet", intercept.Table, set) }
	wait := func(set, text string, there bool) {
		t.Helper()
		for end := time.Now().Add(patience); strings.Contains(known(set), text) != there; {
			if time.Now().After(end) {
				t.Fatalf("%s: %q there: expected %v in %s", set, text, there, known(set))
			}
		}
	}
	a4, a6 := netip.MustParseAddrPort("192.168.2.2:80"), netip.MustParseAddrPort("[fd02::2]:80")
	i.Known(a4, true)
	i.Known(a6, true)
	wait("known4", "192.168.2.2 . 80 timeout 1m", true)
	wait("known6", "fd02::2 . 80 timeout 1m", true)
	g.expect("client", "tcp", "192.168.2.2:80", "P")
	g.expect("client", "tcp", "[fd02::2]:80", "P")
	i.Known(a4, false)
	i.Known(netip.MustParseAddrPort("192.168.2.9:80"), false) // was never there
	wait("known4", "192.168.2.2", false)
	o.Exclude = []intercept.Exclude{{Src: prefixes("192.168.1.9/32")}}
	g.update(i, o)
	wait("known6", "fd02::2 . 80", true) // an update keeps the set
}

// TestNone takes MPTCP connections of others on their way.
func TestNone(t *testing.T) {
	g := newGateway(t)
	o := g.o
	o.LAN, o.PortTCP, o.PortUDP = nil, 0, 0
	o.NonePort, o.NoneFrom = g.nonePort(), prefixes("192.168.1.0/24", "fd01::/64")
	i := g.setup(o)
	for _, dst := range []string{"192.168.2.2:80", "[fd02::2]:80"} {
		g.expect("client", "tcp", dst, "S")
		g.expect("client", "mptcp", dst, "P")
		g.expect("client", "udp", dst, "S")
	}
	o.NoneFrom = prefixes("192.168.7.0/24")
	g.update(i, o)
	g.expect("client", "mptcp", "192.168.2.2:80", "S")
}

// TestTunnel marks other protocols into a TUN device, and the way back.
func TestTunnel(t *testing.T) {
	g := newGateway(t)
	var tun *os.File
	err := g.In("gw", func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq("tunnel0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		tun = os.NewFile(uintptr(fd), "tun")
		return nil
	})
	if err != nil {
		t.Skipf("needs TUN devices: %v", err)
	}
	defer tun.Close()
	g.Run("gw", "ip", "link", "set", "tunnel0", "up")
	g.Run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter") // the strictest there is
	o := g.o
	o.TunnelDevice, o.Protocols = "tunnel0", []uint8{253}
	i := g.setup(o)
	send := func(ns, dst string, proto int) {
		t.Helper()
		err := g.In(ns, func() error {
			a := netip.MustParseAddr(dst)
			if a.Is4() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Addr: a.As4()})
			}
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet6{Addr: a.As16()})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// next is the next packet of a protocol that comes out of the tunnel.
	next := func(proto byte) (src, dst string) {
		t.Helper()
		b := make([]byte, 2048)
		tun.SetReadDeadline(time.Now().Add(patience))
		for {
			n, err := tun.Read(b)
			if err != nil {
				t.Fatalf("nothing of protocol %d in the tunnel: %v", proto, err)
			}
			switch {
			case n >= 20 && b[0]>>4 == 4 && b[9] == proto:
				return netip.AddrFrom4([4]byte(b[12:])).String(), netip.AddrFrom4([4]byte(b[16:])).String()
			case n >= 40 && b[0]>>4 == 6 && b[6] == proto:
				return netip.AddrFrom16([16]byte(b[8:])).String(), netip.AddrFrom16([16]byte(b[24:])).String()
			}
		}
	}
	way := func(proto byte, src, dst string) {
		t.Helper()
		if s, d := next(proto); s != src || d != dst {
			t.Errorf("in the tunnel: %s to %s, expected %s to %s", s, d, src, dst)
		}
	}
	// listen tells what arrives in a namespace.
	arrives := func(ns string, proto int, send func()) string {
		t.Helper()
		var fd int
		if err := g.In(ns, func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
			return
		}); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		send()
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
			t.Fatalf("nothing of protocol %d has arrived at the %s", proto, ns)
		}
		b := make([]byte, 100)
		if _, err := unix.Read(fd, b); err != nil {
			t.Fatal(err)
		}
		return netip.AddrFrom4([4]byte(b[12:])).String()
	}
	send("client", bed.Sink4, 253)
	way(253, bed.Client4, bed.Sink4)
	send("client", bed.Sink6, 253)
	way(253, bed.Client6, bed.Sink6)
	// 254 is not asked for.
	arrives("sink", 254, func() { send("client", bed.Sink4, 254) })
	// An answer out of the tunnel reaches the client although the route to its source
	// is another device.
	packet := func(src, dst string, proto byte) []byte {
		b := make([]byte, 25)
		b[0], b[3], b[8], b[9] = 0x45, 25, 64, proto
		copy(b[12:], netip.MustParseAddr(src).AsSlice())
		copy(b[16:], netip.MustParseAddr(dst).AsSlice())
		var s uint32
		for n := 0; n < 20; n += 2 {
			s += uint32(b[n])<<8 | uint32(b[n+1])
		}
		s = s&0xffff + s>>16
		b[10], b[11] = ^byte(s>>8), ^byte(s)
		return b
	}
	inject := func(b []byte) {
		if _, err := tun.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if from := arrives("client", 253, func() { inject(packet(bed.Sink4, bed.Client4, 253)) }); from != bed.Sink4 {
		t.Errorf("the client has an answer from %s", from)
	}
	// As the far side, without a LAN: what comes for a client that has sent through
	// the tunnel goes back there.
	o.LAN, o.Destinations, o.Protocols = nil, nil, nil
	g.update(i, o)
	g.Run("gw", "ip", "route", "add", "172.16.0.0/16", "dev", "lan0")
	if from := arrives("sink", 253, func() { inject(packet("172.16.0.5", bed.Sink4, 253)) }); from != "172.16.0.5" {
		t.Errorf("the sink has a packet from %s", from)
	}
	send("sink", "172.16.0.5", 253)
	way(253, bed.Sink4, "172.16.0.5")
	send("sink", "172.16.0.5", unix.IPPROTO_ICMP)
	way(unix.IPPROTO_ICMP, bed.Sink4, "172.16.0.5")
	// Strict filtering takes a device's own route away from nobody else.
	o.TunnelDevice = ""
	g.update(i, o)
	if got := g.Run("gw", "ip", "route", "show", "table", "all"); strings.Contains(got, "6241") {
		t.Errorf("the tunnel's route is still there: %s", got)
	}
}

// TestForeignJudge lets nft read the table, in JSON as well.
func TestForeignJudge(t *testing.T) {
	g := newGateway(t)
	g.setup(g.full())
	var doc struct {
		Nftables []map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(g.Run("gw", "nft", "-j", "list", "ruleset")), &doc); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, o := range doc.Nftables {
		for k := range o {
			count[k]++
		}
	}
	if count["table"] != 2 || count["chain"] < 10 || count["set"] < 13 || count["rule"] < 40 {
		t.Errorf("nft -j sees %v", count)
	}
	text := g.Run("gw", "nft", "list", "table", "inet", intercept.Table)
	for _, want := range []string{
		"flags owner", "type filter hook prerouting priority mangle; policy accept;", `elements = { "lan0" }`,
		"socket transparent 1 goto ours", "meta mark set meta mark & 0xf1ffffff | 0x01000000 accept",
		"log group 6240", "0.0.0.0-9.255.255.255, 11.0.0.0-255.255.255.255", "update @known4 { ip daddr . ",
		"tcp option mptcp subtype 1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("nft does not list %q in:\n%s", want, text)
		}
	}
}
