package nettools

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"weft/init/unit"
)

var testTime = time.Unix(1700000000, 0)

type result struct {
	code     int
	out, err string
}

func call(t *testing.T, f unit.Func, dir string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	c := &unit.Call{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Dir: dir, Getenv: func(string) string { return "" }}
	code := f(context.Background(), c)
	return result{code, out.String(), errs.String()}
}

// namespace puts the rest of the test into a network namespace of its own.
func namespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
}

func TestIP(t *testing.T) {
	namespace(t)
	ip := func(want int, args ...string) string {
		t.Helper()
		r := call(t, IP, "/", append([]string{"ip"}, args...)...)
		if r.code != want {
			t.Fatalf("ip %s: exit %d, want %d: %s", strings.Join(args, " "), r.code, want, r.err)
		}
		return r.out + r.err
	}
	ip(0, "link", "set", "lo", "up")
	ip(0, "link", "add", "br-lan", "type", "bridge")
	ip(0, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
	ip(0, "link", "set", "dev", "veth0", "mtu", "1400", "master", "br-lan", "up")
	ip(0, "link", "set", "br-lan", "address", "02:00:00:00:00:01", "up")
	ip(0, "link", "set", "veth1", "up")
	ip(0, "addr", "add", "192.168.1.1/24", "brd", "192.168.1.255", "dev", "br-lan")
	ip(0, "a", "add", "fd00::1/64", "dev", "br-lan")
	if s := ip(1, "addr", "add", "192.168.1.1/24", "dev", "br-lan"); !strings.Contains(s, "192.168.1.1/24") {
		t.Errorf("a second add says %q", s)
	}
	if s := ip(0, "addr", "show", "br-lan"); !strings.Contains(s, "inet 192.168.1.1/24 brd 192.168.1.255 scope global") ||
		!strings.Contains(s, "link/ether 02:00:00:00:00:01") || !strings.Contains(s, "inet6 fd00::1/64 scope global") {
		t.Errorf("addr show:\n%s", s)
	}
	if s := ip(0, "-4", "a", "s", "br-lan"); strings.Contains(s, "inet6") {
		t.Errorf("-4 shows IPv6:\n%s", s)
	}
	var links []struct {
		Name   string `json:"ifname"`
		Master string `json:"master"`
		MTU    int    `json:"mtu"`
	}
	if err := json.Unmarshal([]byte(ip(0, "-j", "link", "show", "veth0")), &links); err != nil || len(links) != 1 || links[0].Master != "br-lan" || links[0].MTU != 1400 {
		t.Errorf("JSON: %v %+v", err, links)
	}
	ip(0, "route", "add", "default", "via", "192.168.1.254", "metric", "10")
	ip(0, "route", "add", "10.0.0.0/8", "dev", "br-lan", "table", "100")
	ip(0, "-6", "route", "add", "default", "via", "fd00::2")
	if s := ip(0, "route"); !strings.Contains(s, "default via 192.168.1.254 dev br-lan") || !strings.Contains(s, "metric 10") || strings.Contains(s, "10.0.0.0") {
		t.Errorf("route:\n%s", s)
	}
	if s := ip(0, "r", "s", "table", "100"); s != "10.0.0.0/8 dev br-lan proto boot scope link\n" {
		t.Errorf("table 100: %q", s)
	}
	if s := ip(0, "-6", "route"); !strings.Contains(s, "default via fd00::2 dev br-lan") {
		t.Errorf("IPv6 routes:\n%s", s)
	}
	if s := ip(0, "route", "get", "8.8.8.8"); !strings.Contains(s, "via 192.168.1.254 dev br-lan") {
		t.Errorf("route get: %q", s)
	}
	ip(0, "rule", "add", "from", "192.168.1.0/24", "priority", "77", "table", "100")
	if s := ip(0, "rule"); !strings.Contains(s, "77:\tfrom 192.168.1.0/24 lookup 100") {
		t.Errorf("rules:\n%s", s)
	}
	ip(0, "rule", "del", "from", "192.168.1.0/24", "priority", "77", "table", "100")
	ip(0, "route", "replace", "default", "via", "192.168.1.253", "metric", "10")
	ip(0, "route", "del", "default", "metric", "10")
	if s := ip(0, "route"); strings.Contains(s, "default") {
		t.Errorf("the default route is still there:\n%s", s)
	}
	ip(0, "addr", "flush", "dev", "br-lan")
	ip(0, "link", "del", "veth0")
	if s := ip(1, "link", "show", "veth0"); !strings.Contains(s, "no device veth0") {
		t.Errorf("a device that is gone: %q", s)
	}
	for _, bad := range [][]string{{}, {"bogus"}, {"-x"}, {"addr", "add", "1.2.3/4", "dev", "lo"}, {"addr", "add", "1.2.3.4/24"}, {"route", "add", "default", "via"},
		{"link", "set", "lo", "mtu", "big"}, {"route", "add", "10.0.0.0/8", "table", "x"}, {"link", "set", "lo", "colour"}} {
		if s := ip(2, bad...); !strings.Contains(s, "Usage") {
			t.Errorf("ip %v: %q", bad, s)
		}
	}
}

func TestPing(t *testing.T) {
	namespace(t)
	call(t, IP, "/", "ip", "link", "set", "lo", "up")
	r := call(t, Ping, "/", "ping", "-c", "2", "-i", "0.01", "-s", "100", "127.0.0.1")
	if r.code != 0 || !strings.Contains(r.out, "108 bytes from 127.0.0.1: seq=1") || !strings.Contains(r.out, "2 packets transmitted, 2 packets received, 0% packet loss") {
		t.Errorf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	r = call(t, Ping, "/", "ping6", "-c", "1", "-I", "lo", "::1")
	if r.code != 0 || !strings.Contains(r.out, "1 packets received") {
		t.Errorf("IPv6: exit %d\n%s%s", r.code, r.out, r.err)
	}
	r = call(t, Ping, "/", "ping", "-c", "1", "192.0.2.1")
	if r.code == 0 || !strings.Contains(r.err, "unreachable") {
		t.Errorf("no route: exit %d\n%s%s", r.code, r.out, r.err)
	}
	for _, args := range [][]string{{"ping"}, {"ping", "-c", "x", "h"}, {"ping", "-s", "99999", "h"}, {"ping", "-Z", "h"}} {
		if r := call(t, Ping, "/", args...); r.code != 2 {
			t.Errorf("%v: exit %d", args, r.code)
		}
	}
}

func TestWget(t *testing.T) {
	content := strings.Repeat("0123456789", 1000)
	var cut bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
		case r.Method == http.MethodPost:
			fmt.Fprintf(w, "%s %s", r.Header.Get("X-A"), r.FormValue("k"))
		case cut:
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write([]byte(content[:4000]))
			panic(http.ErrAbortHandler)
		default:
			http.ServeContent(w, r, "", testTime, strings.NewReader(content))
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	if r := call(t, Wget, dir, "wget", "-q", srv.URL+"/a.img"); r.code != 0 || r.err != "" {
		t.Fatalf("exit %d %s", r.code, r.err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "a.img")); string(b) != content {
		t.Errorf("got %d bytes", len(b))
	}
	cut = true
	r := call(t, Wget, dir, "wget", srv.URL+"/b.img")
	if r.code != wgetNetwork || !strings.Contains(r.err, "4000 of 10000") || !strings.Contains(r.err, "-c") {
		t.Errorf("cut: exit %d %q", r.code, r.err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b.img")); err == nil {
		t.Error("half a file has the full name")
	}
	cut = false
	if r := call(t, Wget, dir, "wget", "-c", srv.URL+"/b.img"); r.code != 0 {
		t.Fatalf("resume: exit %d %s", r.code, r.err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "b.img")); string(b) != content {
		t.Errorf("resumed to %d bytes", len(b))
	}
	if r := call(t, Wget, dir, "wget", "-q", "-O", "-", "--header", "X-A: b", "--post-data", "k=v", srv.URL); r.out != "b v" {
		t.Errorf("post: %q %s", r.out, r.err)
	}
	if r := call(t, Wget, dir, "wget", srv.URL+"/missing"); r.code != wgetServer || !strings.Contains(r.err, "404") {
		t.Errorf("missing: exit %d %q", r.code, r.err)
	}
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	defer tls.Close()
	if r := call(t, Wget, dir, "wget", tls.URL); r.code != wgetTLS {
		t.Errorf("unknown authority: exit %d %q", r.code, r.err)
	}
	if r := call(t, Wget, dir, "wget", "--no-check-certificate", tls.URL); r.code != wgetServer {
		t.Errorf("without the check: exit %d %q", r.code, r.err)
	}
}

func TestNslookup(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch n := q.Question[0]; {
		case n.Name == "none.example.":
			m.Rcode = dns.RcodeNameError
		case n.Qtype == dns.TypeA:
			rr, _ := dns.NewRR(n.Name + " 60 A 192.0.2.7")
			m.Answer = append(m.Answer, rr)
		case n.Qtype == dns.TypePTR:
			rr, _ := dns.NewRR(n.Name + " 60 PTR host.example.")
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go srv.ActivateAndServe()
	<-started
	defer srv.Shutdown()
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"host.example"}, 0, "Name:\thost.example\nAddress: 192.0.2.7\n"},
		{[]string{"192.0.2.7"}, 0, "7.2.0.192.in-addr.arpa\tPTR = host.example.\n"},
		{[]string{"none.example"}, 1, "no such records"},
		{[]string{"-type=mx", "host.example"}, 1, "no such records"},
		{[]string{"-type=nonsense", "host.example"}, 2, "not a record type"},
		{[]string{"-what", "host.example"}, 2, "Usage"},
	} {
		args := append(append([]string{"nslookup", "-port=" + port}, tc.args...), "127.0.0.1")
		r := call(t, Nslookup, "/", args...)
		if r.code != tc.code || !strings.Contains(r.out+r.err, tc.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s%s", tc.args, r.code, tc.code, tc.want, r.out, r.err)
		}
	}
}
