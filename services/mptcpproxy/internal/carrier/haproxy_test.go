package carrier

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"weft/services/mptcpproxy/internal/proxyproto"
)

// freePort is one that nobody listens on, for a moment at least.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return addrPortOf(l.Addr()).Port()
}

// haproxy runs one that takes our PROXY header and writes its own, with all
// the elements it has and a checksum, to the listener.
func haproxy(t *testing.T, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("HAProxy is not installed (apt install haproxy)")
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	cfg := fmt.Sprintf(`defaults
    mode tcp
    timeout connect 20s
    timeout client 60s
    timeout server 60s
frontend in
    bind %v accept-proxy
    unique-id-format %%{+X}o%%ci
    default_backend out
backend out
    server weft %v send-proxy-v2 proxy-v2-options crc32c,unique-id
`, at, to)
	if err := os.WriteFile(file, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
			return at
		}
		if time.Now().After(deadline) {
			t.Fatalf("HAProxy does not listen: %v", err)
		}
	}
}

// HAProxy reads the header that we write, and we read the one it makes of it.
func TestHAProxy(t *testing.T) {
	type flow struct {
		fd       int
		src, dst netip.AddrPort
		early    []byte
	}
	flows := make(chan flow, 10)
	l, _, addr := listen(t, func(o *ListenerOptions) {
		o.Accept = []Accept{{Name: "haproxy", Kind: Proxy2, From: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			AllowClient: everything, AllowDest: []netip.Prefix{netip.MustParsePrefix("192.168.2.0/24"), netip.MustParsePrefix("fd02::/64")}}}
		o.OnRaw = func(fd int, peer string, src, dst netip.AddrPort, early []byte) { flows <- flow{fd, src, dst, early} }
	})
	at := haproxy(t, addr)
	d, _ := dialer(t, DialerOptions{Peers: []Peer{{Name: "far", Kind: Proxy2, Addrs: []netip.Addr{at.Addr()}, Port: at.Port()}}})
	for _, c := range []struct{ src, dst string }{
		{"192.168.1.2:40000", "192.168.2.2:5201"},
		{"[fd01::2]:40000", "[fd02::2]:80"},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		fd, early, err := d.DialRaw(ctx, "far", src, dst)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		var h proxyproto.Header
		if _, err := proxyproto.Parse(early, &h); err != nil || h.Src != src || h.Dst != dst {
			t.Errorf("we send %+v, %v", h, err)
		}
		d.CloseRaw(fd)
		near := blocking(t, fd)
		if _, err := near.Write(append(early, "hello"...)); err != nil {
			t.Fatal(err)
		}
		f := next(t, "flow through HAProxy", flows)
		if f.src != src || f.dst != dst {
			t.Errorf("flow of %v to %v, want %v to %v", f.src, f.dst, src, dst)
		}
		l.CloseRaw(f.fd)
		far := blocking(t, f.fd)
		buf := make([]byte, 5)
		k := copy(buf, f.early)
		if _, err := readFull(far, buf[k:]); err != nil || string(buf) != "hello" {
			t.Errorf("got %q, %v", buf, err)
		}
		if _, err := far.Write([]byte("world")); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(near, buf); err != nil || string(buf) != "world" {
			t.Errorf("got %q, %v", buf, err)
		}
	}
	if s := l.Stats(); s.Authenticated != 2 {
		t.Errorf("stats %+v", s)
	}

	// A destination that the rule does not name: nothing comes, and it is counted.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	fd, early, err := d.DialRaw(ctx, "far", netip.MustParseAddrPort("192.168.1.2:1"), netip.MustParseAddrPort("10.9.9.9:80"))
	if err != nil {
		t.Fatal(err)
	}
	d.CloseRaw(fd)
	near := blocking(t, fd)
	if _, err := near.Write(early); err != nil {
		t.Fatal(err)
	}
	closed(t, near)
	settle(t, l, "denial", func(s ListenerStats) bool { return s.Denied == 1 })
	if len(flows) != 0 {
		t.Error("a flow came of it")
	}
}
