package routertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/test-vm/netns"
)

// patience bounds every wait; it is no measurement.
const patience = 3 * time.Minute

// device is a machine in a namespace: the services of the device binary with a
// configuration of its own.
type device struct {
	t      *testing.T
	space  *netns.Space
	binary string
	dir    string
	procs  map[string]*netns.Process
}

func newDevice(t *testing.T, binary, name string, config map[string]string) *device {
	t.Helper()
	space, err := netns.New(name)
	if errors.Is(err, netns.ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = space.Close() })
	d := &device{t: t, space: space, binary: binary, dir: t.TempDir(), procs: map[string]*netns.Process{}}
	for file, text := range config {
		d.write(file, text)
	}
	return d
}

// write puts a file into the configuration.
func (d *device) write(file, text string) {
	d.t.Helper()
	path := filepath.Join(d.dir, "config", file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// log is what a service writes.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// start starts a service, which ends with the test; its log is shown if the test
// fails.
func (d *device) start(name string) {
	d.t.Helper()
	args := []string{name, "--bus", filepath.Join(d.dir, "bus")}
	if name != "ubusd" {
		state := filepath.Join(d.dir, name)
		if err := os.MkdirAll(state, 0o755); err != nil {
			d.t.Fatal(err)
		}
		args = append(args, "--config-dir", filepath.Join(d.dir, "config"), "--state-dir", state)
	}
	l := &log{}
	cmd := exec.Command(d.binary, args...)
	cmd.Stdout, cmd.Stderr = l, l
	p, err := d.space.Start(cmd)
	if err != nil {
		d.t.Fatal(err)
	}
	d.procs[name] = p
	d.t.Cleanup(func() {
		p.Stop(20 * time.Second)
		if d.t.Failed() {
			l.mu.Lock()
			defer l.mu.Unlock()
			d.t.Logf("log of %s in %s:\n%s", name, d.space.Name, l.b.String())
		}
	})
}

func (d *device) stop(name string) { d.procs[name].Stop(20 * time.Second) }

func (d *device) reload(name string) {
	d.t.Helper()
	if err := syscall.Kill(d.procs[name].Pid(), syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// addresses are those of a device that are not link-local.
func (d *device) addresses(link string, six bool) []netip.Addr {
	var out []netip.Addr
	family := netlink.FAMILY_V4
	if six {
		family = netlink.FAMILY_V6
	}
	_ = d.space.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(l, family)
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); !ip.IsLinkLocalUnicast() && a.Flags&syscall.IFA_F_TENTATIVE == 0 {
				out = append(out, ip)
			}
		}
		return err
	})
	return out
}

// in returns the first address of the device that lies in a network.
func (d *device) in(link, network string) (netip.Addr, bool) {
	n := netip.MustParsePrefix(network)
	for _, a := range d.addresses(link, n.Addr().Is6()) {
		if n.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// until waits for a condition that no event announces.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// cable joins two devices.
func cable(t *testing.T, a *device, nameA string, b *device, nameB string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	err := a.space.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.space.Fd())})
	})
	if err != nil {
		t.Skipf("veth links are not available: %v", err)
	}
}

// join makes a bridge of links.
func (d *device) join(name string, ports ...string) {
	d.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := d.space.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, p := range ports {
			l, err := netlink.LinkByName(p)
			if err == nil {
				err = netlink.LinkSetMaster(l, bridge)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, l := range append(ports, name) {
		d.pull(l, false)
	}
}

// pull takes the plug out at the device's side, or puts it back.
func (d *device) pull(link string, out bool) {
	d.t.Helper()
	err := d.space.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		if out {
			return netlink.LinkSetDown(l)
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// serve answers each line of a TCP connection with the address that it came
// from, until the test ends.
func (d *device) serve(address string) {
	d.t.Helper()
	var l net.Listener
	if err := d.space.Do(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
		d.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s %s\n", lines.Text(), c.RemoteAddr())
				}
			})
		}
	})
	d.t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// dial connects from a device; nil while that does not work.
func (d *device) dial(to string) net.Conn {
	var c net.Conn
	_ = d.space.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		// One attempt on this thread: its namespace is what counts.
		fd, err := dialTCP(ctx, to)
		c = fd
		return err
	})
	return c
}

// dialTCP connects without leaving the thread for a goroutine of its own.
func dialTCP(ctx context.Context, to string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{FallbackDelay: -1}
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, ap)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ask sends a line over a connection and returns the answer.
func ask(c net.Conn, line string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// reach connects until it works and returns whom the server saw.
func (d *device) reach(to string) string {
	d.t.Helper()
	var seen string
	until(d.t, d.space.Name+" reaches "+to, func() bool {
		c := d.dial(to)
		if c == nil {
			return false
		}
		defer c.Close()
		answer, err := ask(c, "hello")
		seen = strings.TrimPrefix(answer, "hello ")
		return err == nil
	})
	host, _, err := net.SplitHostPort(seen)
	if err != nil {
		d.t.Fatal(err)
	}
	return host
}

const loopback = "config interface loopback\n\toption device lo\n\toption proto static\n\tlist ipaddr 127.0.0.1/8\n"

// The provider: it gives addresses and delegates prefixes, and has a server
// behind it.
var provider = map[string]string{
	"network": loopback + `
config interface access
	option device access0
	option proto static
	list ipaddr 10.77.0.1/24
	option ip6assign 56
	option ip6class backbone
config interface backbone
	option device backbone0
	option proto static
	option force_link 1
	list ipaddr 198.51.100.1/24
	list ip6addr 2001:db8:ffff::1/64
	list ip6prefix 2001:db8:1000::/48
`,
	"dhcp": `
config dnsmasq
	option domain example
	option authoritative 1
	option leasefile LEASES
config dhcp access
	option interface access
	option start 50
	option limit 50
	option leasetime 1h
	option dhcpv4 server
	option dhcpv6 server
	option ra server
	option ra_default 2
`,
	"system": "config system\n\toption hostname provider\n",
}

// The router has the default configuration, and a port forward.
var router = map[string]string{
	"network": loopback + `
config globals globals
	option ula_prefix fd12:3456:789a::/48
	option dhcp_default_duid 00040102030405060708090a0b0c0d0e0f10
config device
	option name br-lan
	option type bridge
	list ports lan0
config interface lan
	option device br-lan
	option proto static
	list ipaddr 192.168.1.1/24
	option ip6assign 60
config interface wan
	option device wan0
	option proto dhcp
config interface wan6
	option device wan0
	option proto dhcpv6
`,
	"dhcp": `
config dnsmasq
	option domain lan
	option local /lan/
	option authoritative 1
	option leasefile LEASES
config dhcp lan
	option interface lan
	option start 100
	option limit 150
	option leasetime 12h
	option dhcpv4 server
	option dhcpv6 server
	option ra server
	list ra_flags managed-config
	list ra_flags other-config
config dhcp wan
	option interface wan
	option ignore 1
`,
	"firewall": firewall,
	"system":   "config system\n\toption hostname router\n",
}

const firewall = `
config defaults
	option input REJECT
	option output ACCEPT
	option forward REJECT
config zone
	option name lan
	list network lan
	option input ACCEPT
	option output ACCEPT
	option forward ACCEPT
config zone
	option name wan
	list network wan
	list network wan6
	option input REJECT
	option output ACCEPT
	option forward REJECT
	option masq 1
	option mtu_fix 1
config forwarding
	option src lan
	option dest wan
config rule
	option name Allow-DHCPv6
	option src wan
	option proto udp
	option dest_port 546
	option family ipv6
	option target ACCEPT
config rule
	option name Allow-ICMPv6-Input
	option src wan
	option proto icmp
	list icmp_type router-advertisement
	list icmp_type neighbour-solicitation
	list icmp_type neighbour-advertisement
	list icmp_type echo-request
	option family ipv6
	option target ACCEPT
`

const forward = `
config redirect
	option name web
	option src wan
	option src_dport 8080
	option proto tcp
	option dest lan
	option dest_ip CLIENT
	option dest_port 80
	option target DNAT
`

// The client asks for everything.
var client = map[string]string{
	"network": loopback + `
config interface net
	option device eth0
	option proto dhcp
config interface net6
	option device eth0
	option proto dhcpv6
	option reqprefix no
`,
	"system": "config system\n\toption hostname client\n",
}

// TestRouter is a home network in namespaces: provider, router, client. Every
// machine runs the device's own programs.
func TestRouter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	binary := filepath.Join(t.TempDir(), "weft")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "weft/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the device binary: %v: %s", err, out)
	}
	isp, gw, pc := newDevice(t, binary, "provider", provider), newDevice(t, binary, "router", router), newDevice(t, binary, "client", client)
	for _, d := range []*device{isp, gw} {
		d.write("dhcp", strings.Replace(map[*device]map[string]string{isp: provider, gw: router}[d]["dhcp"], "LEASES", filepath.Join(d.dir, "leases"), 1))
	}
	// The cable to the provider goes through a box in the street, where it can be
	// pulled: a service puts up again what is down at its own end.
	street := newDevice(t, binary, "street", nil)
	cable(t, isp, "access0", street, "upper")
	cable(t, gw, "wan0", street, "lower")
	street.join("box", "upper", "lower")
	cable(t, gw, "lan0", pc, "eth0")
	stub := newDevice(t, binary, "backbone", nil)
	cable(t, isp, "backbone0", stub, "stub0")
	stub.pull("stub0", false)
	for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := isp.space.Sysctl(s, "1"); err != nil {
			t.Fatal(err)
		}
	}
	for d, services := range map[*device][]string{isp: {"network", "dhcp"}, gw: {"firewall", "network", "dhcp"}, pc: {"network"}} {
		d.start("ubusd")
		for _, s := range services {
			d.start(s)
		}
	}

	// Addresses all the way down.
	var wan4, wan6, pc4, pc6 netip.Addr
	got := func(to *netip.Addr, d *device, link, network string) {
		t.Helper()
		until(t, d.space.Name+" has an address in "+network, func() bool {
			a, ok := d.in(link, network)
			*to = a
			return ok
		})
	}
	got(&wan4, gw, "wan0", "10.77.0.0/24")
	got(&wan6, gw, "wan0", "2001:db8:1000::/56")
	got(&pc4, pc, "eth0", "192.168.1.0/24")
	got(&pc6, pc, "eth0", "2001:db8:1000::/48")
	t.Logf("router %s, %s; client %s, %s", wan4, wan6, pc4, pc6)

	// Through the router, with its address and with the client's own.
	isp.serve("198.51.100.1:80")
	until(t, "the server's IPv6 address is there", func() bool { _, ok := isp.in("backbone0", "2001:db8:ffff::/64"); return ok })
	isp.serve("[2001:db8:ffff::1]:80")
	if seen := pc.reach("198.51.100.1:80"); seen != wan4.String() {
		t.Errorf("over IPv4 the server saw %s, want %s", seen, wan4)
	}
	if seen := pc.reach("[2001:db8:ffff::1]:80"); !slices.Contains(pc.addresses("eth0", true), netip.MustParseAddr(seen)) {
		t.Errorf("over IPv6 the server saw %s, want an address of the client", seen)
	}

	// A configuration that changes under a connection; then the new port forward.
	pc.serve("0.0.0.0:80")
	c := pc.dial("198.51.100.1:80")
	if c == nil {
		t.Fatal("no connection")
	}
	defer c.Close()
	gw.write("firewall", firewall+strings.Replace(forward, "CLIENT", pc4.String(), 1))
	gw.reload("firewall")
	gw.write("network", strings.Replace(router["network"], "\tlist ipaddr 192.168.1.1/24\n", "\tlist ipaddr 192.168.1.1/24\n\tlist ipaddr 192.168.7.1/24\n", 1))
	gw.reload("network")
	got(new(netip.Addr), gw, "br-lan", "192.168.7.0/24")
	if seen := isp.reach(wan4.String() + ":8080"); seen != "10.77.0.1" && seen != "198.51.100.1" {
		t.Errorf("through the port forward the client saw %s", seen)
	}
	if answer, err := ask(c, "still"); err != nil || !strings.HasPrefix(answer, "still "+wan4.String()+":") {
		t.Errorf("the connection over the change: %q, %v", answer, err)
	}

	// The cable is pulled, and put back.
	street.pull("lower", true)
	until(t, "the router's uplink is down", func() bool {
		_, four := gw.in("wan0", "10.77.0.0/24")
		_, six := gw.in("br-lan", "2001:db8:1000::/48")
		return !four && !six
	})
	street.pull("lower", false)
	again := netip.Addr{}
	got(&again, gw, "wan0", "10.77.0.0/24")
	if again != wan4 {
		t.Errorf("the router has %s after the cable was back, before %s", again, wan4)
	}
	got(&again, gw, "br-lan", "2001:db8:1000::/48")
	pc.reach("198.51.100.1:80")
	pc.reach("[2001:db8:ffff::1]:80")

	// The router starts again; the client keeps its address.
	for _, s := range []string{"dhcp", "network", "firewall"} {
		gw.stop(s)
	}
	for _, s := range []string{"firewall", "network", "dhcp"} {
		gw.start(s)
	}
	got(&again, gw, "wan0", "10.77.0.0/24")
	pc.stop("network")
	pc.start("network")
	got(&again, pc, "eth0", "192.168.1.0/24")
	if again != pc4 {
		t.Errorf("the client has %s after the router was started again, before %s", again, pc4)
	}
	pc.reach("198.51.100.1:80")
	if seen := isp.reach(wan4.String() + ":8080"); seen == "" {
		t.Error("the port forward is gone")
	}
	got(&again, gw, "br-lan", "2001:db8:1000::/48")
	pc.reach("[2001:db8:ffff::1]:80")
}
