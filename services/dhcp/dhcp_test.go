package dhcp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// udhcpcScript prints what BusyBox' client got.
const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] && echo "$ip/$mask $router $dns $domain $lease" >"$OUT" && ip addr add $ip/$mask dev $interface
exit 0
`

func (l *lab) leases() string {
	b, err := os.ReadFile(filepath.Join(l.dir, "state", "dhcp.leases"))
	if err != nil && !os.IsNotExist(err) {
		l.Fatal(err)
	}
	return string(b)
}

func TestUdhcpc(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	udhcpc := l.judge("udhcpc", "udhcpc")
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, "", "list dhcp_option '42,0.0.0.0'"))
	l.start()
	script, out := l.file("script", udhcpcScript), filepath.Join(l.dir, "out")
	l.must(os.Chmod(script, 0o755))
	ask := func(args ...string) string {
		t.Helper()
		os.Remove(out)
		cmd := l.clientCmd(udhcpc, append([]string{"-f", "-q", "-n", "-t", "20", "-T", "3", "-i", "cli0", "-s", script, "-x", "hostname:laptop", "-O", "ntpsrv"}, args...)...)
		cmd.Env = append(os.Environ(), "OUT="+out)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("udhcpc: %v\n%s", err, b)
		}
		b, err := os.ReadFile(out)
		l.must(err)
		return strings.TrimSpace(string(b))
	}
	got := ask()
	addr, _, _ := strings.Cut(got, "/")
	if want := addr + "/24 192.168.1.1 192.168.1.1 lan 43200"; got != want {
		t.Errorf("the client got %q, want %q", got, want)
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Less(netip.MustParseAddr("192.168.1.100")) || netip.MustParseAddr("192.168.1.249").Less(a) {
		t.Errorf("address %s is not of the pool", addr)
	}
	l.eventually("the lease in the file", func() bool { return strings.Contains(l.leases(), " "+addr+" laptop ") })

	// Its name is known now, both ways.
	if got := l.dig("@192.168.1.1", "laptop.lan"); got != addr {
		t.Errorf("laptop.lan is %q, want %s", got, addr)
	}
	if got := l.dig("@192.168.1.1", "-x", addr); got != "laptop.lan." {
		t.Errorf("the name of %s is %q", addr, got)
	}

	// A restart knows the lease; the same client gets the same address.
	l.shutdown()
	l.start()
	if again := ask(); again != got2(addr) {
		t.Errorf("after a restart the client got %q, want %q", again, got2(addr))
	}

	// A static lease is given after a reload, and the old one goes.
	_, hw, _ := strings.Cut(l.inClient("ip", "-o", "link", "show", "cli0"), "link/ether ")
	hw, _, _ = strings.Cut(hw, " ")
	l.config("dhcp", fmt.Sprintf(lanConfig, "", "")+fmt.Sprintf("\nconfig host\n\toption name 'fixed'\n\toption mac '%s'\n\toption ip '192.168.1.7'\n\toption leasetime '1h'\n", strings.ToUpper(hw)))
	l.reload()
	if got := ask("-r", addr); got != "192.168.1.7/24 192.168.1.1 192.168.1.1 lan 3600" {
		t.Errorf("with a static lease the client got %q", got)
	}
	if got := l.dig("@192.168.1.1", "fixed.lan"); got != "192.168.1.7" {
		t.Errorf("fixed.lan is %q", got)
	}
	if s := l.leases(); strings.Contains(s, addr+" ") {
		t.Errorf("the old lease is still in the file:\n%s", s)
	}
}

func got2(addr string) string { return addr + "/24 192.168.1.1 192.168.1.1 lan 43200" }

func TestDhclient(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	dhclient := l.judge("dhclient", "isc-dhcp-client")
	l.config("network", networkConfig)
	l.config("dhcp", fmt.Sprintf(lanConfig, "", ""))
	l.start()
	script := l.file("script", "#!/bin/sh\nexit 0\n")
	l.must(os.Chmod(script, 0o755))
	conf := l.file("conf", "timeout 80;\nrequest subnet-mask, broadcast-address, routers, domain-name, domain-name-servers;\n")
	run := func(name string, args ...string) string {
		t.Helper()
		lf := filepath.Join(l.dir, name)
		// Its last lease stays in the file, which makes it ask for the address
		// again at the next start (INIT-REBOOT).
		if b, err := l.clientCmd(dhclient, append(args, "-1", "-v", "-cf", conf, "-lf", lf, "-pf", lf+".pid", "-sf", script, "cli0")...).CombinedOutput(); err != nil {
			t.Fatalf("dhclient: %v\n%s", err, b)
		}
		defer func() {
			if b, err := os.ReadFile(lf + ".pid"); err == nil {
				l.inClient("kill", strings.TrimSpace(string(b)))
			}
		}()
		b, err := os.ReadFile(lf)
		l.must(err)
		return string(b)
	}
	for range 2 {
		s := run("four", "-4")
		for _, want := range []string{"fixed-address 192.168.1.", "option routers 192.168.1.1", "option domain-name \"lan\"", "option dhcp-server-identifier 192.168.1.1", "option broadcast-address 192.168.1.255"} {
			if !strings.Contains(s, want) {
				t.Errorf("%q is missing in dhclient's lease:\n%s", want, s)
			}
		}
	}
	if n := strings.Count(l.leases(), "\n"); n != 1 {
		t.Errorf("%d leases in the file, want 1:\n%s", n, l.leases())
	}
	// Stateful DHCPv6 and a delegated prefix.
	s := run("six", "-6")
	for _, want := range []string{"iaaddr fd00:1::", "option dhcp6.name-servers fd00:1::1"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q is missing in dhclient's DHCPv6 lease:\n%s", want, s)
		}
	}
	s = run("pd", "-6", "-P")
	if !strings.Contains(s, "iaprefix fd00:1:0:") || !strings.Contains(s, "/62 {") {
		t.Errorf("no delegated prefix of length 62 in dhclient's lease:\n%s", s)
	}
}

func TestCrowd(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := newLab(t)
	l.config("network", networkConfig)
	l.config("dhcp", strings.NewReplacer("'100'", "'2'", "'150'", "'252'").Replace(fmt.Sprintf(lanConfig, "", "")))
	l.start()
	const count = 250
	lines := strings.Split(strings.TrimSpace(l.clientHelper("crowd", fmt.Sprint(count), "1")), "\n")
	seen := map[string]bool{}
	for _, line := range lines {
		_, addr, _ := strings.Cut(line, " ")
		if seen[addr] || !strings.HasPrefix(addr, "192.168.1.") {
			t.Errorf("address %s was given twice, or is none of the pool", addr)
		}
		seen[addr] = true
	}
	if len(seen) != count {
		t.Errorf("%d addresses for %d clients", len(seen), count)
	}
	// No ACK was sent before its lease was in the file.
	file := l.leases()
	for addr := range seen {
		if !strings.Contains(file, " "+addr+" crowd-1-") {
			t.Errorf("the lease of %s is not in the file", addr)
		}
	}
}
