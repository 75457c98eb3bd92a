package network

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/unit"
	"weft/services/internal/nstest"
	"weft/services/internal/rtnl"
)

// Tests of the service run in a network namespace of their own: this binary
// again, as a child that is started there. The DHCP server is a further child
// in a namespace of its own.
const (
	envServer = "WEFT_TEST_DHCP_SERVER"
)

func TestMain(m *testing.M) {
	if os.Getenv(envServer) != "" {
		if err := serveDHCP(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "DHCP server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience bounds every wait for an event; it is no measurement.
const patience = 30 * time.Second

// inNamespace runs the test that calls it in a new network namespace and
// reports whether this is the run inside.
func inNamespace(t *testing.T) bool {
	t.Helper()
	return nstest.Inside(t, 2*time.Minute, 0)
}

// lab is a namespace with the service in it.
type lab struct {
	*testing.T
	dir    string
	log    *safeBuffer
	broker context.CancelFunc
	client *bus.Client // of the test, while there is a broker
	stop   context.CancelFunc
	exit   chan int

	notices chan string // from the service to its supervisor
	marks   int
	news    chan string // everything else that happened: links, addresses, events on the bus
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, dir: t.TempDir(), log: &safeBuffer{}, notices: make(chan string, 1000), news: make(chan string, 10000)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the service:\n%s", l.log)
		}
	})
	if err := os.Mkdir(filepath.Join(l.dir, "config"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(l.dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(l.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := sock.Read(b)
			if err != nil {
				return
			}
			l.notices <- string(b[:n])
		}
	}()
	l.monitor()
	return l
}

// monitor writes everything that changes in the kernel to l.news, one line a
// change, as `ip monitor` would.
func (l *lab) monitor() {
	done := make(chan struct{})
	l.Cleanup(func() { close(done) })
	lu, au, ru := make(chan netlink.LinkUpdate, 1000), make(chan netlink.AddrUpdate, 1000), make(chan netlink.RouteUpdate, 1000)
	for _, err := range []error{netlink.LinkSubscribe(lu, done), netlink.AddrSubscribe(au, done), netlink.RouteSubscribe(ru, done)} {
		if err != nil {
			l.Fatal(err)
		}
	}
	go func() {
		for u := range lu {
			what := "link"
			if u.Header.Type == unix.RTM_DELLINK {
				what = "gone link"
			}
			l.news <- fmt.Sprintf("%s %s master %d alias %q", what, u.Attrs().Name, u.Attrs().MasterIndex, u.Attrs().Alias)
		}
	}()
	go func() {
		for u := range au {
			what := "gone address"
			if u.NewAddr {
				what = "address"
			}
			l.news <- fmt.Sprintf("%s %s", what, u.LinkAddress.String())
		}
	}()
	go func() {
		for u := range ru {
			what := "route"
			if u.Type == unix.RTM_DELROUTE {
				what = "gone route"
			}
			l.news <- fmt.Sprintf("%s %v via %v", what, u.Dst, u.Gw)
		}
	}()
}

// settled makes a change of its own on a link that the service does not know,
// of each kind, and returns all news from before it: then nothing that the
// service did is missing.
func (l *lab) settled(link string) []string {
	l.Helper()
	l.marks++
	ip := net.IPv4(203, 0, 113, byte(l.marks))
	alias := fmt.Sprintf("mark %d", l.marks)
	if err := netlink.AddrAdd(l.link(link), &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)}}); err != nil {
		l.Fatal(err)
	}
	if err := netlink.LinkSetAlias(l.link(link), alias); err != nil {
		l.Fatal(err)
	}
	waiting := map[string]bool{"address " + ip.String(): true, "route " + ip.String(): true, "link " + link: true}
	var news []string
	deadline := time.After(patience)
	for len(waiting) > 0 {
		select {
		case n := <-l.news:
			news = append(news, n)
			for w := range waiting {
				if strings.HasPrefix(n, w) && (!strings.HasPrefix(w, "link ") || strings.Contains(n, alias)) {
					delete(waiting, w)
				}
			}
		case <-deadline:
			l.Fatalf("waited in vain for the news of %v", waiting)
		}
	}
	return slices.DeleteFunc(news, func(n string) bool {
		kernels := strings.Contains(n, " fe80:") || strings.Contains(n, " ff00::/8 ") // link-local, in its own time
		return kernels || strings.Contains(n, " 203.0.113.") || strings.Contains(n, "link "+link+" ")
	})
}

// drain forgets the news so far and returns them.
func (l *lab) drain() []string {
	var out []string
	for {
		select {
		case n := <-l.news:
			out = append(out, n)
		default:
			return out
		}
	}
}

// until waits for a condition, looking again whenever something happens.
func (l *lab) until(what string, cond func() bool) {
	l.Helper()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-l.news:
		case <-deadline:
			l.Fatalf("waited in vain until %s", what)
		}
	}
}

// event waits for the event of an interface.
func (l *lab) event(action, iface string) {
	l.Helper()
	want := `event network.interface {"action":"` + action + `","interface":"` + iface + `"}`
	deadline := time.After(patience)
	for {
		select {
		case n := <-l.news:
			if n == want {
				return
			}
		case <-deadline:
			l.Fatalf("waited in vain for %s", want)
		}
	}
}

func (l *lab) config(text string) {
	l.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, "config", "network"), []byte(text), 0o644); err != nil {
		l.Fatal(err)
	}
}

// startBus starts a broker and listens to all events.
func (l *lab) startBus() {
	l.Helper()
	path := filepath.Join(l.dir, "bus")
	b, err := bus.Listen(path, bus.BrokerOptions{ACLDir: l.dir})
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Serve(ctx) }()
	l.broker = func() { cancel(); <-done }
	l.Cleanup(l.broker)
	c, err := bus.Dial(ctx, path)
	if err != nil {
		l.Fatal(err)
	}
	l.client = c
	l.Cleanup(func() { c.Close() })
	if _, err := c.OnEvent("*", func(id string, data bus.Table) {
		b, _ := data.MarshalJSON()
		l.news <- "event " + id + " " + string(b)
	}); err != nil {
		l.Fatal(err)
	}
}

// start starts the service and waits until it is ready.
func (l *lab) start() {
	l.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l.stop, l.exit = cancel, make(chan int, 1)
	go func() {
		l.exit <- unit.Main(Run)(ctx, &unit.Call{
			Args: []string{"network", "--config-dir", filepath.Join(l.dir, "config"), "--bus", filepath.Join(l.dir, "bus"),
				"--state-dir", filepath.Join(l.dir, "state"), "--debug"},
			Stdin: strings.NewReader(""), Stdout: l.log, Stderr: l.log, Dir: l.dir,
			Getenv: func(key string) string {
				if key == "NOTIFY_SOCKET" {
					return filepath.Join(l.dir, "notify")
				}
				return ""
			},
		})
	}()
	l.Cleanup(l.end)
	l.notice("READY=1")
}

// end stops the service if it runs.
func (l *lab) end() {
	l.Helper()
	if l.stop == nil {
		return
	}
	l.stop()
	l.stop = nil
	select {
	case code := <-l.exit:
		if code != 0 {
			l.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		l.Fatal("the service does not end")
	}
}

// notice waits for a message to the supervisor.
func (l *lab) notice(want string) {
	l.Helper()
	deadline := time.After(patience)
	for {
		select {
		case n := <-l.notices:
			if slices.Contains(strings.Split(n, "\n"), want) {
				return
			}
		case <-deadline:
			l.Fatalf("waited in vain for %s", want)
		}
	}
}

// reload announces a new configuration and waits until it is in force.
func (l *lab) reload() {
	l.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		l.Fatal(err)
	}
	l.notice("RELOADING=1")
	l.notice("READY=1")
}

func (l *lab) call(object, method string, args any) string {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t, err := l.client.Call(ctx, object, method, args)
	if err != nil {
		l.Fatalf("call %s %s: %v", object, method, err)
	}
	b, err := t.MarshalJSON()
	if err != nil {
		l.Fatal(err)
	}
	return string(b)
}

// published waits until an object is on the bus.
func (l *lab) published(object string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := l.client.Lookup(ctx, object); err == nil {
		return
	}
	l.until(object+" is on the bus", func() bool {
		_, err := l.client.Lookup(ctx, object)
		return err == nil
	})
}

func (l *lab) link(name string) netlink.Link {
	l.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		l.Fatalf("link %s: %v", name, err)
	}
	return link
}

// veth makes a pair of links and brings the far end up.
func (l *lab) veth(near, far string) {
	l.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = near
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far}); err != nil {
		l.Skipf("veth links are not available: %v", err)
	}
	if err := netlink.LinkSetUp(l.link(far)); err != nil {
		l.Fatal(err)
	}
}

// addresses lists the addresses of a link that are not link-local.
func (l *lab) addresses(name string) string {
	l.Helper()
	var out []string
	list, err := netlink.AddrList(l.link(name), netlink.FAMILY_ALL)
	if err != nil {
		l.Fatal(err)
	}
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			out = append(out, a.IPNet.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// routes lists the routes of a link that the service made.
func (l *lab) routes(name string) string {
	l.Helper()
	rt, err := rtnl.Dial()
	if err != nil {
		l.Fatal(err)
	}
	defer rt.Close()
	k := &kernel{rt: rt, tables: map[int]bool{unix.RT_TABLE_MAIN: true, 100: true}}
	rs, err := k.routes(l.link(name).Attrs().Index)
	if err != nil {
		l.Fatal(err)
	}
	var out []string
	for _, r := range rs {
		s := r.Dest.String()
		if r.Via.IsValid() {
			s += " via " + r.Via.String()
		}
		if r.From.IsValid() {
			s += " from " + r.From.String()
		}
		if r.Src.IsValid() {
			s += " src " + r.Src.String()
		}
		if r.Metric != 0 {
			s += fmt.Sprint(" metric ", r.Metric)
		}
		if r.Table != unix.RT_TABLE_MAIN {
			s += fmt.Sprint(" table ", r.Table)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (l *lab) want(what, got, want string) {
	l.Helper()
	if got != want {
		l.Errorf("%s: %q, want %q", what, got, want)
	}
}

// server is a DHCP server in a namespace of its own.
type server struct {
	l   *lab
	in  io.WriteCloser
	out chan string
}

// serverConfig is what a line on the standard input of the server says.
type serverConfig struct {
	Link   string // name in the server's namespace; first line only
	Mode   string // normal, silent, nak
	Client string // address to give
	Routes bool   // give classless routes as well as a router
	Down   bool   // the cable is pulled
	Server string // own address; serverIP if empty; first line only
	Prefix string // delegate it by DHCPv6
	Advert string // announce it by router advertisements
	Life   uint32 // lifetime of both in seconds
}

func (c serverConfig) ip() net.IP {
	if c.Server != "" {
		return net.ParseIP(c.Server)
	}
	return serverIP
}

// dhcpServer starts a server at the far end of a new link.
func (l *lab) dhcpServer(near string, c serverConfig) *server {
	l.Helper()
	far := near + "-srv"
	l.veth(near, far)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envServer+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	s := &server{l: l, in: in, out: make(chan string, 1000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			s.out <- lines.Text()
		}
	}()
	l.Cleanup(func() {
		in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			l.Errorf("DHCP server: %v", err)
		}
	})
	s.expect("started")
	if err := netlink.LinkSetNsPid(l.link(far), cmd.Process.Pid); err != nil {
		l.Fatal(err)
	}
	c.Link = far
	s.set(c)
	return s
}

// set changes what the server does, and waits until it has.
func (s *server) set(c serverConfig) {
	s.l.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		s.l.Fatal(err)
	}
	if _, err := s.in.Write(append(b, '\n')); err != nil {
		s.l.Fatal(err)
	}
	s.expect("set")
}

// expect waits for a line that begins with prefix and returns it.
func (s *server) expect(prefix string) string {
	s.l.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line := <-s.out:
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-deadline:
			s.l.Fatalf("waited in vain for %q from the DHCP server", prefix)
		}
	}
}

// forget drops the lines so far.
func (s *server) forget() {
	for {
		select {
		case <-s.out:
		default:
			return
		}
	}
}

var serverIP = net.IPv4(10, 77, 0, 1)

// serveDHCP is the program of the server. It writes one line for each message
// and ends with its input.
func serveDHCP(in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	var conf serverConfig
	var sayMu sync.Mutex
	say := func(format string, args ...any) {
		sayMu.Lock()
		defer sayMu.Unlock()
		fmt.Fprintf(out, format+"\n", args...)
	}
	say("started")
	lines := bufio.NewScanner(in)
	var srv *server4.Server
	for lines.Scan() {
		var c serverConfig
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		mu.Lock()
		first := conf.Link == ""
		if !first {
			c.Link = conf.Link
		}
		if c.Server == "" {
			c.Server = conf.Server
		}
		conf = c
		mu.Unlock()
		if first {
			link, err := netlink.LinkByName(c.Link)
			if err != nil {
				return err
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: c.ip(), Mask: net.CIDRMask(24, 32)}}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
			srv, err = server4.NewServer(c.Link, &net.UDPAddr{Port: 67}, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
				mu.Lock()
				defer mu.Unlock()
				how := "broadcast"
				if a, ok := peer.(*net.UDPAddr); ok && !a.IP.Equal(net.IPv4bcast) {
					how = "unicast"
				}
				say("%s %s host=%q vendor=%q id=%s opts=%v", m.MessageType(), how, m.HostName(), m.ClassIdentifier(),
					hex.EncodeToString(m.Options.Get(dhcpv4.OptionClientIdentifier)), m.ParameterRequestList().Has(dhcpv4.OptionTFTPServerName))
				if r := answer(conf, m); r != nil {
					if _, err := conn.WriteTo(r.ToBytes(), peer); err != nil {
						say("error %v", err)
					}
				}
			})
			if err != nil {
				return err
			}
			go srv.Serve()
			defer srv.Close()
		}
		link, err := netlink.LinkByName(c.Link)
		if err != nil {
			return err
		}
		set := netlink.LinkSetUp
		if c.Down {
			set = netlink.LinkSetDown
		}
		if first && (c.Prefix != "" || c.Advert != "") {
			// No waiting for duplicate address detection.
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+c.Link+"/accept_dad", []byte("0"), 0o644); err != nil {
				return err
			}
		}
		if err := set(link); err != nil {
			return err
		}
		if first && (c.Prefix != "" || c.Advert != "") {
			six, err := serve6(c.Link, func() serverConfig { mu.Lock(); defer mu.Unlock(); return conf }, say)
			if err != nil {
				return err
			}
			defer six()
		}
		if !c.Down && c.Advert != "" {
			if err := sendAdvert(c); err != nil {
				say("error %v", err)
			}
		}
		say("set")
	}
	return lines.Err()
}

func answer(c serverConfig, m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	if c.Mode == "silent" {
		return nil
	}
	kind := dhcpv4.MessageTypeAck
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
	default:
		return nil
	}
	if c.Mode == "nak" && kind == dhcpv4.MessageTypeAck {
		kind = dhcpv4.MessageTypeNak
	}
	mods := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(c.ip())),
	}
	if kind != dhcpv4.MessageTypeNak {
		mods = append(mods,
			dhcpv4.WithYourIP(net.ParseIP(c.Client)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithDNS(c.ip()), dhcpv4.WithOption(dhcpv4.OptDomainName("example.org")))
		if c.Routes {
			_, dest, _ := net.ParseCIDR("192.168.0.0/16")
			_, all, _ := net.ParseCIDR("0.0.0.0/0")
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
				&dhcpv4.Route{Dest: dest, Router: net.IPv4(10, 77, 0, 9)}, &dhcpv4.Route{Dest: all, Router: serverIP})))
		}
		mods = append(mods, dhcpv4.WithRouter(c.ip()))
	}
	r, err := dhcpv4.NewReplyFromRequest(m, mods...)
	if err != nil {
		return nil
	}
	return r
}
