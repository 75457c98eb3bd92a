package firewall

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weft/init/unit"
)

// patient bounds each wait of these tests; it is no measurement.
const patient = 60 * time.Second

var netCount atomic.Int32

// bed is three machines in a row: a host in the LAN, the router, a host outside.
// The router's firewall is that of the command fw4, as its user runs it.
type bed struct {
	t      *testing.T
	prefix string
	config string
}

const (
	bedNetwork = `
config interface lan
	option device lan0
	option proto static
	list ipaddr 192.168.1.1/24
	list ip6addr fd01::1/64

config interface wan
	option device wan0
	option proto static
	list ipaddr 203.0.113.1/24
	list ip6addr 2001:db8:1::1/64

config interface wan6
	option device @wan
	option proto none
`
	bedForward = `
config redirect
	option name Web
	option src wan
	option dest lan
	option proto tcp
	option src_dport 8080
	option dest_ip 192.168.1.2
	option dest_port 80
`
	bedForward6 = `
config rule
	option name Web6
	option src wan
	option dest lan
	option proto tcp
	option dest_ip '::2/::ffff'
	option dest_port 80
	option family ipv6
	option target ACCEPT
`
)

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian: iproute2)")
	}
	b := &bed{t: t, prefix: fmt.Sprintf("weftfw%d-%d-", os.Getpid(), netCount.Add(1)), config: t.TempDir()}
	t.Cleanup(func() {
		for _, n := range []string{"host", "router", "outside"} {
			_ = exec.Command("ip", "netns", "del", b.prefix+n).Run()
		}
	})
	for _, n := range []string{"host", "router", "outside"} {
		if out, err := exec.Command("ip", "netns", "add", b.prefix+n).CombinedOutput(); err != nil {
			t.Skipf("network namespaces cannot be made here: %v: %s", err, out)
		}
		b.sh(n, "ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
	}
	b.must("ip", "link", "add", "lan0", "netns", b.prefix+"router", "type", "veth", "peer", "name", "eth0", "netns", b.prefix+"host")
	b.must("ip", "link", "add", "wan0", "netns", b.prefix+"router", "type", "veth", "peer", "name", "eth0", "netns", b.prefix+"outside")
	b.sh("router", `ip addr add 192.168.1.1/24 dev lan0; ip addr add fd01::1/64 dev lan0 nodad
		ip addr add 203.0.113.1/24 dev wan0; ip addr add 2001:db8:1::1/64 dev wan0 nodad
		ip link set lan0 up; ip link set wan0 up
		echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`)
	b.sh("host", `ip addr add 192.168.1.2/24 dev eth0; ip addr add fd01::2/64 dev eth0 nodad; ip link set eth0 up
		ip route add default via 192.168.1.1; ip route add default via fd01::1`)
	b.sh("outside", `ip addr add 203.0.113.2/24 dev eth0; ip addr add 2001:db8:1::2/64 dev eth0 nodad; ip link set eth0 up
		ip route add fd01::/64 via 2001:db8:1::1; ip route add 192.168.1.0/24 via 203.0.113.1`)
	image, err := os.ReadFile("../../buildroot-overlay/rootfs/etc/config/firewall")
	if err != nil {
		t.Fatal(err)
	}
	b.write("network", bedNetwork)
	b.write("firewall", string(image))
	return b
}

func (b *bed) must(args ...string) {
	b.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (b *bed) sh(ns, script string) {
	b.t.Helper()
	b.must("ip", "netns", "exec", b.prefix+ns, "sh", "-ec", script)
}

func (b *bed) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.config, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// add appends sections to the firewall's configuration.
func (b *bed) add(text string) {
	b.t.Helper()
	old, err := os.ReadFile(filepath.Join(b.config, "firewall"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("firewall", string(old)+text)
}

// child runs this binary in a namespace: see insideDo.
func (b *bed) child(ns string, words ...string) *exec.Cmd {
	cmd := exec.Command("ip", "netns", "exec", b.prefix+ns, "/proc/self/exe")
	cmd.Args[len(cmd.Args)-1] = self(b.t)
	cmd.Env = append(os.Environ(), "WEFT_TEST_INSIDE="+strings.Join(words, "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func self(t *testing.T) string {
	t.Helper()
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fw4 runs the command in the router.
func (b *bed) fw4(args ...string) string {
	b.t.Helper()
	out, err := b.child("router", append([]string{"fw4", "--config-dir", b.config, "--bus", "/nonexistent"}, args...)...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("fw4 %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// serve answers each line of a TCP connection and each UDP packet to addresses with
// the address that it came from, until the test ends.
func (b *bed) serve(ns, network, addr string) {
	b.t.Helper()
	cmd := b.child(ns, "serve", network, addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.t.Fatalf("server %s in %s: %q, %v", addr, ns, line, err)
	}
}

// ask connects to addresses and returns the answers: an address, "echo",
// "refused", "reset", "unreachable" or "silence".
func (b *bed) ask(ns, network, addr string) string {
	b.t.Helper()
	out, err := b.child(ns, "ask", network, addr).CombinedOutput()
	if err != nil {
		b.t.Fatalf("ask %s in %s: %v\n%s", addr, ns, err, out)
	}
	return strings.TrimSpace(string(out))
}

// want checks an answer; of an address the part before the port.
func (b *bed) want(ns, network, addr, want string) {
	b.t.Helper()
	got := b.ask(ns, network, addr)
	if host, _, err := net.SplitHostPort(got); err == nil {
		got = host
	}
	if got != want {
		b.t.Errorf("%s %s from the %s: got %q, want %q", network, addr, ns, got, want)
	}
}

func answer(err error) string {
	var e net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return "unreachable"
	case errors.As(err, &e) && e.Timeout():
		return "silence"
	}
	return err.Error()
}

// ping sends one echo request.
func ping(c net.Conn, v6 bool) string {
	request := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // with its checksum; of IPv6 the kernel makes it
	reply := byte(0)
	if v6 {
		request, reply = []byte{128, 0, 0, 0, 0, 0, 0, 0}, 129
	}
	if _, err := c.Write(request); err != nil {
		return answer(err)
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.(*net.IPConn).ReadFromIP(buf) // Read would give the header as well
		if err != nil {
			return answer(err)
		}
		if n > 0 && buf[0] == reply {
			return "echo"
		}
	}
}

func askOnce(network, addr string) string {
	c, err := net.DialTimeout(network, addr, patient)
	if err != nil {
		return answer(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patient))
	if strings.HasPrefix(network, "ip") {
		return ping(c, strings.HasPrefix(network, "ip6"))
	}
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return answer(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return answer(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

func serveForever(network string, addrs []string) error {
	for _, addr := range addrs {
		if err := serve(network, addr); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func serve(network, addr string) error {
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(from.String()), from)
			}
		}()
		return nil
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					if _, err := r.ReadString('\n'); err != nil {
						return
					}
					if _, err := io.WriteString(c, c.RemoteAddr().String()+"\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// talk keeps one connection and asks once for each line on standard input.
func talk(network, addr string) error {
	c, err := net.DialTimeout(network, addr, patient)
	if err != nil {
		return err
	}
	defer c.Close()
	from := bufio.NewReader(c)
	in := bufio.NewScanner(os.Stdin)
	for {
		if _, err := io.WriteString(c, "who?\n"); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patient))
		line, err := from.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Print(line)
		if !in.Scan() {
			return in.Err()
		}
	}
}

func runFW4(args []string) error {
	if code := CLI(context.Background(), &unit.Call{Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", Getenv: os.Getenv}); code != 0 {
		return fmt.Errorf("exit code %d", code)
	}
	return nil
}

// TestDefaultPolicy sends traffic through LEDE's default rules.
func TestDefaultPolicy(t *testing.T) {
	b := newBed(t)
	if out := b.fw4("reload"); out != "" {
		t.Errorf("the default configuration has problems: %s", out)
	}
	b.serve("outside", "tcp", ":80")
	b.serve("outside", "udp4", ":53")
	b.serve("host", "tcp", ":80")
	b.serve("router", "tcp", ":22")
	b.serve("router", "udp4", ":53")
	b.serve("router", "udp4", ":68")
	b.serve("router", "udp6", ":546")

	b.want("host", "tcp", "203.0.113.2:80", "203.0.113.1") // masqueraded
	b.want("host", "udp4", "203.0.113.2:53", "203.0.113.1")
	b.want("host", "tcp", "[2001:db8:1::2]:80", "fd01::2") // routed
	b.want("host", "tcp", "192.168.1.1:22", "192.168.1.2")
	b.want("router", "tcp", "203.0.113.2:80", "203.0.113.1")
	b.want("router", "tcp", "192.168.1.2:80", "192.168.1.1")

	b.want("outside", "tcp", "203.0.113.1:22", "refused")
	b.want("outside", "tcp", "[2001:db8:1::1]:22", "refused")
	b.want("outside", "udp4", "203.0.113.1:53", "refused")
	b.want("outside", "tcp", "192.168.1.2:80", "refused")
	b.want("outside", "tcp", "[fd01::2]:80", "refused")
	b.want("outside", "udp4", "203.0.113.1:68", "203.0.113.2")
	b.want("outside", "udp6", "[2001:db8:1::1]:546", "2001:db8:1::2")
	b.want("outside", "ip4:icmp", "203.0.113.1", "echo")
	b.want("outside", "ip6:ipv6-icmp", "2001:db8:1::1", "echo")

	// As a scan from outside sees it: whatever listens, of TCP no port is open.
	ports := []string{"21", "23", "53", "80", "123", "443", "547", "6240", "8080"}
	b.serve("router", "tcp", ":"+strings.Join(ports, " :"))
	var targets []string
	for _, p := range append(ports, "22") {
		targets = append(targets, "203.0.113.1:"+p, "[2001:db8:1::1]:"+p)
	}
	for line := range strings.Lines(b.ask("outside", "tcp", strings.Join(targets, " "))) {
		if strings.TrimSpace(line) != "refused" {
			t.Errorf("a port is open to the outside: %q", line)
		}
	}
	// Fully open again, the same scan finds them: it can fail.
	b.fw4("stop")
	b.want("outside", "tcp", "203.0.113.1:22", "203.0.113.2")
}

// TestPortForward checks redirects: from outside, from inside by the outer
// address, and that a flow goes on while they come and go.
func TestPortForward(t *testing.T) {
	b := newBed(t)
	b.fw4("reload")
	b.serve("host", "tcp", ":80")
	b.serve("outside", "tcp", ":80")
	b.want("outside", "tcp", "203.0.113.1:8080", "refused")

	flow := b.child("host", "talk", "tcp", "203.0.113.2:80")
	in, err := flow.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	outPipe, err := flow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := flow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(outPipe)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal("the flow does not start:", err)
	}
	again := func(when string) {
		t.Helper()
		fmt.Fprintln(in)
		if line, err := lines.ReadString('\n'); err != nil || line != first {
			t.Fatalf("%s the flow is not what it was: %q, %v; before %q", when, line, err, first)
		}
	}

	b.add(bedForward + bedForward6)
	b.fw4("reload")
	again("after a port forward came")
	b.want("outside", "tcp", "203.0.113.1:8080", "203.0.113.2")
	b.want("outside", "tcp", "[fd01::2]:80", "2001:db8:1::2")
	b.want("host", "tcp", "203.0.113.1:8080", "192.168.1.1") // NAT loopback

	// A configuration that cannot be read leaves the rules.
	if err := os.Rename(filepath.Join(b.config, "firewall"), filepath.Join(b.config, "away")); err != nil {
		t.Fatal(err)
	}
	if out, err := b.child("router", "fw4", "--config-dir", b.config, "--bus", "/nonexistent", "reload").CombinedOutput(); err == nil || !strings.Contains(string(out), "firewall") {
		t.Errorf("reload without a configuration: %v, %q; want an error that names it", err, out)
	}
	b.want("outside", "tcp", "203.0.113.1:8080", "203.0.113.2")
	image, err := os.ReadFile("../../buildroot-overlay/rootfs/etc/config/firewall")
	if err != nil {
		t.Fatal(err)
	}
	b.write("firewall", string(image))
	b.fw4("reload")
	again("after it went")
	b.want("outside", "tcp", "203.0.113.1:8080", "refused")
	in.Close()
	if err := flow.Wait(); err != nil {
		t.Errorf("the flow ended badly: %v", err)
	}
}

// TestSetsKeepTheirElements reloads with a set that somebody else has filled.
func TestSetsKeepTheirElements(t *testing.T) {
	needNft(t)
	b := newBed(t)
	b.add(`
config ipset
	option name friends
	list match src_ip
	list entry 203.0.113.77

config rule
	option src wan
	option proto tcp
	option ipset friends
	option target ACCEPT
`)
	b.fw4("reload")
	b.serve("router", "tcp", ":22")
	b.want("outside", "tcp", "203.0.113.1:22", "refused")
	b.sh("router", "nft add element inet fw4 friends { 203.0.113.2 }")
	b.want("outside", "tcp", "203.0.113.1:22", "203.0.113.2")
	b.add(bedForward)
	b.fw4("reload")
	b.want("outside", "tcp", "203.0.113.1:22", "203.0.113.2")
}

// TestZones asks fw4 which zone something is in.
func TestZones(t *testing.T) {
	dir := t.TempDir()
	image, err := os.ReadFile("../../buildroot-overlay/rootfs/etc/config/firewall")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"network": bedNetwork, "firewall": string(image)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args, out string
		code      int
	}{
		{"network wan6", "wan\n", 0}, {"device lan0", "lan\n", 0}, {"zone wan", "wan0\n", 0}, {"device eth9", "", 1}, {"network", "", 2}, {"nonsense", "", 2}, {"check", "", 0},
	} {
		var out, errs strings.Builder
		code := CLI(t.Context(), &unit.Call{Args: append([]string{"fw4", "--config-dir", dir, "--bus", "/nonexistent"}, strings.Fields(c.args)...), Stdout: &out, Stderr: &errs, Dir: "/", Getenv: os.Getenv})
		if code != c.code || out.String() != c.out {
			t.Errorf("fw4 %s: exit code %d, %q, %q; want %d, %q", c.args, code, out.String(), errs.String(), c.code, c.out)
		}
	}
}
