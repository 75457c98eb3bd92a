package uhttpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

const patience = 90 * time.Second

// TestMain lets the test program be the service.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "uhttpd" {
		os.Exit(unit.Main(Run)(context.Background(), unit.OSCall()))
	}
	os.Exit(m.Run())
}

const (
	alice = "a11ce000000000000000000000000000" // a session that may do all on echo
	idle  = "1d1e0000000000000000000000000000" // one that may do nothing
)

// fixture is a server in front of a real broker, with objects of the test's on it.
type fixture struct {
	*server
	t      *testing.T
	i      *instance
	home   string
	addr   string
	logins atomic.Int32
	notify *bus.Published
}

func newFixture(t *testing.T, change func(*instance)) *fixture {
	t.Helper()
	f := &fixture{t: t, home: t.TempDir()}
	dir := t.TempDir()
	socket := startBus(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	f.server = &server{log: slog.New(slog.DiscardHandler), ctx: ctx, streams: make(chan struct{}, maxStreams), bus: bus.Connect(ctx, socket, nil)}
	objects(t, f, socket)
	p, err := uci.Parse("uhttpd", strings.NewReader("config uhttpd main\n\toption ubus_prefix '/ubus'\n"), true)
	if err != nil {
		t.Fatal(err)
	}
	list, _, _ := settings(p)
	f.i = list[0]
	f.i.home = f.home
	if change != nil {
		change(f.i)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	v := &serving{i: f.i, http: f.httpServer(f.i, []uint16{8443}), listeners: []net.Listener{&gated{ln, newGate(f.i)}}}
	done := make(chan error, 1)
	go func() { done <- f.serve(ctx, []*serving{v}, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.bus.Close()
	})
	return f
}

func startBus(t *testing.T, dir string) string {
	t.Helper()
	socket := filepath.Join(dir, "u.sock")
	broker, err := bus.Listen(socket, bus.BrokerOptions{ACLDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { broker.Serve(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return socket
}

// objects publishes session, as far as it is asked, and echo.
func objects(t *testing.T, f *fixture, socket string) {
	t.Helper()
	client, err := bus.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	access := func(_ context.Context, r *bus.Request) error {
		sid, object, function := r.Args.String(sidArg), r.Args.String("object"), r.Args.String("function")
		switch sid {
		case anonymous, idle:
			return r.Reply(bus.Table{{Name: "access", Value: sid == anonymous && object == "session" && function == "login"}})
		case alice:
			return r.Reply(bus.Table{{Name: "access", Value: object == "echo" && function != "forbidden"}})
		}
		return bus.StatusNotFound
	}
	login := func(_ context.Context, r *bus.Request) error {
		f.logins.Add(1)
		if from := r.Args.String(fromArg); from != "127.0.0.1" {
			return fmt.Errorf("login from %q", from)
		}
		if r.Args.String("password") != "right" {
			return bus.StatusPermissionDenied
		}
		return r.Reply(bus.Table{{Name: sidArg, Value: alice}, {Name: "timeout", Value: 300}})
	}
	if _, err := client.Publish(&bus.Object{Name: "session", Methods: []bus.Method{{Name: "access", Handle: access}, {Name: "login", Handle: login}}}); err != nil {
		t.Fatal(err)
	}
	f.notify, err = client.Publish(&bus.Object{Name: "echo", Methods: []bus.Method{
		{Name: "say", Args: []bus.Arg{{Name: "text", Type: bus.TypeString}, {Name: "n", Type: bus.TypeInt32}, {Name: "on", Type: bus.TypeBool}, {Name: "list", Type: bus.TypeArray}, {Name: "deep", Type: bus.TypeTable}},
			Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(r.Args) }},
		{Name: "none", Handle: func(context.Context, *bus.Request) error { return nil }},
		{Name: "fail", Handle: func(context.Context, *bus.Request) error { return bus.StatusNoData }},
		{Name: "slow", Handle: func(ctx context.Context, _ *bus.Request) error { <-ctx.Done(); return ctx.Err() }},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// do makes a request on a connection of its own.
func (f *fixture) do(method, path, body string, header ...string) (*http.Response, string) {
	f.t.Helper()
	r, err := http.NewRequest(method, "http://"+f.addr+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, strings.ReplaceAll(string(b), `\/`, `/`)
}

// rpc posts a request to the bus and returns the reply.
func (f *fixture) rpc(body string) string {
	f.t.Helper()
	resp, got := f.do("POST", "/ubus", body)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		f.t.Errorf("%s: status %s, type %s", body, resp.Status, resp.Header.Get("Content-Type"))
	}
	return got
}

// TestRPC holds replies against lede-compat, section 9.1.
func TestRPC(t *testing.T) {
	f := newFixture(t, func(i *instance) { i.script = 20 * time.Second })
	for body, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"method":"call","params":["` + alice + `","echo","say",{"text":"a/b","n":5,"on":true,"list":[1,"x"],"deep":{"k":null}}]}`: `{"jsonrpc":"2.0","id":1,"result":[0,{"ubus_rpc_session":"` + alice + `","text":"a/b","n":5,"on":true,"list":[1,"x"],"deep":{"k":null}}]}`,
		`{"jsonrpc":"2.0","id":"x","method":"call","params":["` + alice + `","echo","none",{}]}`:                                                           `{"jsonrpc":"2.0","id":"x","result":[0]}`,
		`{"jsonrpc":"2.0","id":2,"method":"call","params":["` + alice + `","echo","fail",{}]}`:                                                             `{"jsonrpc":"2.0","id":2,"result":[5]}`,
		`{"jsonrpc":"2.0","id":2,"method":"call","params":["` + alice + `","echo","unknown",{}]}`:                                                          `{"jsonrpc":"2.0","id":2,"result":[3]}`,
		`{"jsonrpc":"2.0","id":3,"method":"call","params":["` + anonymous + `","echo","say",{}]}`:                                                          `{"jsonrpc":"2.0","id":3,"error":{"code":-32002,"message":"Access denied"}}`,
		`{"jsonrpc":"2.0","id":3,"method":"call","params":["` + idle + `","echo","say",{}]}`:                                                               `{"jsonrpc":"2.0","id":3,"error":{"code":-32002,"message":"Access denied"}}`,
		`{"jsonrpc":"2.0","id":3,"method":"call","params":["dead","echo","say",{}]}`:                                                                       `{"jsonrpc":"2.0","id":3,"error":{"code":-32002,"message":"Access denied"}}`,
		`{"jsonrpc":"2.0","id":3,"method":"call","params":["` + alice + `","echo","forbidden",{}]}`:                                                        `{"jsonrpc":"2.0","id":3,"error":{"code":-32002,"message":"Access denied"}}`,
		`{"jsonrpc":"2.0","id":4,"method":"call","params":["` + alice + `","nothing","say",{}]}`:                                                           `{"jsonrpc":"2.0","id":4,"error":{"code":-32000,"message":"Object not found"}}`,
		`{"jsonrpc":"2.0","id":4,"method":"call","params":["` + alice + `","ec*","say",{}]}`:                                                               `{"jsonrpc":"2.0","id":4,"error":{"code":-32000,"message":"Object not found"}}`,
		`{"jsonrpc":"2.0","id":5,"method":"call","params":["` + alice + `","echo","say",{"ubus_rpc_session":"x"}]}`:                                        `{"jsonrpc":"2.0","id":5,"error":{"code":-32602,"message":"Invalid parameters"}}`,
		`{"jsonrpc":"2.0","id":6,"method":"call","params":["` + alice + `","echo","say"]}`:                                                                 `{"jsonrpc":"2.0","id":6,"error":{"code":-32700,"message":"Parse error"}}`,
		`{"jsonrpc":"1.0","id":6,"method":"list"}`:                                                                                                         `{"jsonrpc":"2.0","id":6,"error":{"code":-32700,"message":"Parse error"}}`,
		`{"jsonrpc":"2.0","id":7,"method":"foo"}`:                                                                                                          `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Method not found"}}`,
		`{`:                            `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`,
		``:                             `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`,
		`"text"`:                       `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`,
		`{"jsonrpc":"2.0"},"v":{"a":1`: `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`,
		`{"jsonrpc":"2.0","id":8,"method":"list"}`:                                                                                         `{"jsonrpc":"2.0","id":8,"result":["echo","session"]}`,
		`{"jsonrpc":"2.0","id":8,"method":"list","params":["ec*","nothing"]}`:                                                              `{"jsonrpc":"2.0","id":8,"result":{"echo":{"say":{"text":"string","n":"number","on":"boolean","list":"array","deep":"object"},"none":{},"fail":{},"slow":{}}}}`,
		`[{"jsonrpc":"2.0","id":1,"method":"call","params":["` + alice + `","echo","none",{}]},7,{"jsonrpc":"2.0","id":2,"method":"foo"}]`: `[{"jsonrpc":"2.0","id":1,"result":[0]},{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}},{"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"Method not found"}}]`,
	} {
		if got := f.rpc(body); got != want {
			t.Errorf("%s\n got %s\nwant %s", body, got, want)
		}
	}
	// The newer forms.
	for _, c := range []struct{ method, path, body, sid, want string }{
		{"POST", "/ubus/call/echo", `{"jsonrpc":"2.0","id":1,"method":"none","params":{}}`, alice, `{"jsonrpc":"2.0","id":1,"result":{}}`},
		{"POST", "/ubus/call/echo", `{"jsonrpc":"2.0","id":1,"method":"fail"}`, alice, `{"jsonrpc":"2.0","id":1,"error":{"code":5,"message":"No response"}}`},
		{"POST", "/ubus/call/echo", `{"jsonrpc":"2.0","id":1,"method":"none","params":{}}`, "", `{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"Access denied"}}`},
		{"GET", "/ubus/list/session", "", "", `{"access":{},"login":{}}`},
		{"GET", "/ubus/list/s*", "", "", `{"session":{"access":{},"login":{}}}`},
	} {
		header := []string{}
		if c.sid != "" {
			header = []string{"Authorization", "Bearer " + c.sid}
		}
		if resp, got := f.do(c.method, c.path, c.body, header...); got != c.want || resp.StatusCode != 200 {
			t.Errorf("%s %s %s: %s\n got %s\nwant %s", c.method, c.path, c.body, resp.Status, got, c.want)
		}
	}
	for path, want := range map[string]int{"/ubus/list/nothing": 404, "/ubus/subscribe/nothing": 404, "/ubus/subscribe/echo": 403, "/ubus": 400, "/ubus/other": 400} {
		if resp, _ := f.do("GET", path, ""); resp.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, resp.Status, want)
		}
	}
	if resp, _ := f.do("PUT", "/ubus", ""); resp.StatusCode != 405 {
		t.Errorf("PUT: %s", resp.Status)
	}
}

func TestRPCTimeout(t *testing.T) {
	f := newFixture(t, func(i *instance) { i.script = 300 * time.Millisecond })
	f.bus.Ping(t.Context())
	var got string
	// The first calls of a loaded machine may not even get to the slow method.
	want := `{"jsonrpc":"2.0","id":1,"error":{"code":-32003,"message":"ubus request timed out"}}`
	if got = f.rpc(`{"jsonrpc":"2.0","id":1,"method":"call","params":["` + alice + `","echo","slow",{}]}`); got != want {
		t.Error(got)
	}
}

// TestHeaders looks at the reply as bytes.
func TestHeaders(t *testing.T) {
	f := newFixture(t, func(i *instance) { i.cors = true })
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	for range 2 { // the connection is kept
		fmt.Fprintf(c, "POST /ubus HTTP/1.1\r\nHost: x\r\nOrigin: http://other\r\nContent-Length: 40\r\n\r\n%s", `{"jsonrpc":"2.0","id":1,"method":"list"}`)
		text := ""
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			text += line
			if line == "\r\n" {
				break
			}
		}
		for _, want := range []string{"HTTP/1.1 200 OK\r\n", "Connection: Keep-Alive\r\n", "Transfer-Encoding: chunked\r\n", "Keep-Alive: timeout=20\r\n", "Content-Type: application/json\r\n", "Access-Control-Allow-Origin: http://other\r\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		for line := ""; line != "0\r\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		r.ReadString('\n')
	}
	resp, _ := f.do("OPTIONS", "/ubus", "", "Origin", "http://other", "Access-Control-Request-Method", "POST")
	if resp.StatusCode != 200 || !strings.Contains(resp.Header.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("OPTIONS: %s %v", resp.Status, resp.Header)
	}
}

// TestSubscribe follows the notifications of an object.
func TestSubscribe(t *testing.T) {
	f := newFixture(t, nil)
	r, _ := http.NewRequest("GET", "http://"+f.addr+"/ubus/subscribe/echo", nil)
	r.Header.Set("Authorization", "Bearer "+alice)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := http.DefaultClient.Do(r.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	for n := range 3 {
		// The owner learns of its subscriber a moment later than we.
		if err := f.notify.Notify(ctx, "changed", bus.Table{{Name: "n", Value: n}}); err != nil {
			t.Fatal(err)
		}
	}
	lines := bufio.NewReader(resp.Body)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				f.notify.Notify(ctx, "changed", bus.Table{{Name: "n", Value: 9}})
			}
		}
	}()
	a, err1 := lines.ReadString('\n')
	b, err2 := lines.ReadString('\n')
	if err1 != nil || err2 != nil || a != "event: changed\n" || !strings.HasPrefix(b, `data: {"n":`) {
		t.Errorf("%q %q %v %v", a, b, err1, err2)
	}
	cancel()
}

// TestBruteForce guesses a password: the bus sees a few guesses only.
func TestBruteForce(t *testing.T) {
	f := newFixture(t, nil)
	login := func(password string) string {
		return f.rpc(`{"jsonrpc":"2.0","id":1,"method":"call","params":["` + anonymous + `","session","login",{"from":"10.0.0.1","username":"root","password":"` + password + `"}]}`)
	}
	if got := login("right"); !strings.Contains(got, alice) {
		t.Fatalf("login: %s", got)
	}
	const denied = `{"jsonrpc":"2.0","id":1,"result":[6]}`
	for n := range 200 {
		if got := login(fmt.Sprint("guess", n)); got != denied {
			t.Fatalf("guess %d: %s", n, got)
		}
	}
	if n := f.logins.Load(); n > 20 {
		t.Errorf("%d of 200 guesses reached the bus", n)
	}
	f.failures.Good(netip.MustParseAddr("127.0.0.1"))
	if got := login("right"); !strings.Contains(got, alice) {
		t.Errorf("login after the wait: %s", got)
	}
}

// TestAbuse: bodies, headers and connections that are too large, too slow, too many.
func TestAbuse(t *testing.T) {
	f := newFixture(t, func(i *instance) { i.network, i.maxConns = 2*time.Second, 30 })
	if resp, _ := f.do("POST", "/ubus", `{"jsonrpc":"2.0","id":1,"method":"list","x":"`+strings.Repeat("x", 200<<10)+`"}`); resp.StatusCode != 413 {
		t.Errorf("body of 200 KiB: %s", resp.Status)
	}
	if got := f.rpc(strings.Repeat("[", 30000)); !strings.Contains(got, "-32700") {
		t.Errorf("30,000 arrays in each other: %.100s", got)
	}
	dial := func(text string) net.Conn {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(text))
		return c
	}
	large := dial("GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n")
	status := make([]byte, 12)
	if _, err := io.ReadFull(large, status); err == nil && string(status) != "HTTP/1.1 431" { // or it was reset
		t.Errorf("a header twice as large as allowed: %q, %v", status, err)
	}
	// A client that goes on sending is cut off.
	if c := dial("POST /ubus HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"); c != nil {
		block, sent := make([]byte, 64<<10), 0
		for sent < 1<<30 {
			n, err := c.Write(block)
			if sent += n; err != nil {
				break
			}
		}
		if sent > 64<<20 {
			t.Errorf("%d bytes of a body of 1 GiB were taken", sent)
		}
	}
	// Slow ones end, whether in the header or in the body.
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\nX-A", "POST /ubus HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", ""} {
		c := dial(text)
		b, err := io.ReadAll(c)
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%q: %v after %q", text, err, b)
		}
	}
	// One address gets a third of the places.
	var held []net.Conn
	for range 60 {
		held = append(held, dial("GET / HTTP/1.1\r\nHost: x\r\n"))
	}
	var open, refused atomic.Int32
	var wg sync.WaitGroup
	for _, c := range held {
		wg.Go(func() {
			switch b, _ := io.ReadAll(c); {
			case bytes.HasPrefix(b, []byte("HTTP/1.1 ")):
				open.Add(1)
			case len(b) == 0:
				refused.Add(1)
			}
		})
	}
	// Those that hold a place go on only when all the others were turned away, or they would make room for them.
	for deadline := time.Now().Add(time.Minute); refused.Load() < 50 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for _, c := range held {
		fmt.Fprint(c, "Connection: close\r\n\r\n")
	}
	wg.Wait()
	if n := open.Load(); n > 10 {
		t.Errorf("%d connections of one address were served at the same time, of 30 places", n)
	}
	if resp, _ := f.do("GET", "/ubus/list", ""); resp.StatusCode != 200 {
		t.Errorf("afterwards: %s", resp.Status)
	}
}

func TestStatic(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(outside, []byte("secret"), 0o644)
	f := newFixture(t, func(i *instance) { i.noLinks, i.errorPage = true, "/oops.html" })
	for name, text := range map[string]string{"index.html": "<h1>home</h1>", "a/b.txt": "text", "a b&c/x": "x", "oops.html": "oops", "empty/.hidden": ""} {
		path := filepath.Join(f.home, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink(outside, filepath.Join(f.home, "link"))
	os.Symlink("a/b.txt", filepath.Join(f.home, "inside"))
	exec.Command("mkfifo", filepath.Join(f.home, "pipe")).Run()
	for path, want := range map[string]string{
		"/": "200 <h1>home</h1>", "/index.html": "200 <h1>home</h1>", "/a/b.txt": "200 text", "/inside": "200 text", "/a%20b&c/x": "200 x",
		"/none": "404 oops", "/a/b.txt/": "404 oops", "/link": "404 oops", "/%2e%2e/%2e%2e/etc/passwd": "404 oops", "/a/../../../etc/passwd": "404 oops",
		"/pipe": "403 oops", "/x%00y": "400 Bad Request\n",
	} {
		if resp, body := f.do("GET", path, ""); fmt.Sprintf("%d %s", resp.StatusCode, body) != want {
			t.Errorf("%s: %d %q, want %s", path, resp.StatusCode, body, want)
		}
	}
	resp, body := f.do("GET", "/a/", "")
	if resp.StatusCode != 200 || !strings.Contains(body, `<a href="./b.txt">b.txt</a>`) {
		t.Errorf("listing: %s %s", resp.Status, body)
	}
	if resp, _ := f.do("GET", "//other/..//a?q", ""); resp.StatusCode != 302 || resp.Header.Get("Location") != "/a/?q" {
		t.Errorf("folder without a slash: %s %q", resp.Status, resp.Header.Get("Location"))
	}
	resp, _ = f.do("GET", "/a/b.txt", "")
	if resp2, body := f.do("GET", "/a/b.txt", "", "If-None-Match", resp.Header.Get("ETag")); resp2.StatusCode != 304 || body != "" {
		t.Errorf("ETag %q: %s", resp.Header.Get("ETag"), resp2.Status)
	}
	if resp, body := f.do("GET", "/a/b.txt", "", "Range", "bytes=1-2"); resp.StatusCode != 206 || body != "ex" {
		t.Errorf("range: %s %q", resp.Status, body)
	}
	if resp, _ := f.do("POST", "/", ""); resp.StatusCode != 405 {
		t.Errorf("POST: %s", resp.Status)
	}
	f.i.noDirs = true
	if resp, _ := f.do("GET", "/a/", ""); resp.StatusCode != 403 {
		t.Errorf("no_dirlists: %s", resp.Status)
	}
}

func TestRedirect(t *testing.T) {
	f := newFixture(t, func(i *instance) { i.redirect = true })
	for host, want := range map[string]string{"device": "https://device:8443/a%20b?c=d", "device:80": "https://device:8443/a%20b?c=d", "[::1]:80": "https://[::1]:8443/a%20b?c=d"} {
		r, _ := http.NewRequest("GET", "http://"+f.addr+"/a%20b?c=d", nil)
		r.Host = host
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != 307 || got != want {
			t.Errorf("%s: %s to %s, want %s", host, resp.Status, got, want)
		}
	}
	if resp, _ := f.do("GET", "/", ""); resp.StatusCode != 307 {
		t.Errorf("%s", resp.Status)
	}
}

func TestRebound(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{{"192.168.1.7:5", "203.0.113.1:80", true}, {"192.168.1.7:5", "192.168.1.1:80", false}, {"198.51.100.1:5", "203.0.113.1:80", false}, {"[fd00::1]:5", "203.0.113.1:80", false}} {
		to, _ := net.ResolveTCPAddr("tcp", c.to)
		r := (&http.Request{RemoteAddr: c.from}).WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(to)))
		if got := rebound(r); got != c.want {
			t.Errorf("%s to %s: %v", c.from, c.to, got)
		}
	}
}

// TestCertificate: made once and kept; DER of LEDE's is read; openssl agrees.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	c := certificate{days: 397, kind: "ec", curve: "P-256", country: "ZZ", commonName: "Weft"}
	first, made, err := keyPair(cert, key, c, time.Now())
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if _, ok := first.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Errorf("key of type %T", first.PrivateKey)
	}
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v %v", fi.Mode(), err)
	}
	second, made, err := keyPair(cert, key, c, time.Now())
	if err != nil || made || !bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Errorf("another certificate: %v %v", made, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(first.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsePair(first.Certificate[0], der); err != nil {
		t.Errorf("DER: %v", err)
	}
	if err := os.WriteFile(key, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, made, err := keyPair(cert, key, c, time.Now()); err == nil || made {
		t.Error("a damaged key was replaced, or used")
	}
	if openssl, err := exec.LookPath("openssl"); err == nil {
		out, err := exec.Command(openssl, "x509", "-in", cert, "-noout", "-text").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "prime256v1") || !strings.Contains(string(out), "CN = Weft") {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestDevice runs the service as a process, started by root as on the device, and
// lets curl judge.
func TestDevice(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed (make judges)")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "uhttpd") // t.TempDir is closed to others than root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	f := &fixture{t: t}
	acl := `{"user":"nobody","access":{"*":{"methods":["*"]}},"subscribe":["*"]}`
	for name, text := range map[string]string{"acl.json": acl, "www/index.html": "hello", "config/uhttpd": ""} {
		os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	socket := startBus(t, dir)
	objects(t, f, socket)
	// Ports of loopback that are free now; another program may be quicker.
	var http, https int
	var cmd *exec.Cmd
	var lines *bufio.Reader
	for try := 0; ; try++ {
		http, https = freePort(t), freePort(t)
		config := fmt.Sprintf("config uhttpd main\n\tlist listen_http '127.0.0.1:%d'\n\tlist listen_https '127.0.0.1:%d'\n\toption home '%s/www'\n\toption cert '%[3]s/c'\n\toption key '%[3]s/k'\n\toption ubus_prefix '/ubus'\n",
			http, https, dir)
		if err := os.WriteFile(filepath.Join(dir, "config/uhttpd"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(exe)
		cmd.Args = []string{"uhttpd", "--config-dir", filepath.Join(dir, "config"), "--bus", socket}
		pr, pw := io.Pipe()
		cmd.Stderr = pw
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		lines = bufio.NewReader(pr)
		up := 0
		for up < 2 {
			l, err := lines.ReadString('\n')
			if err != nil || strings.Contains(l, "cannot listen") {
				break
			}
			if strings.Contains(l, "listening") {
				up++
			}
		}
		if up == 2 {
			break
		}
		if try == 5 {
			t.Fatal("no free ports")
		}
		cmd.Process.Kill()
	}
	go io.Copy(io.Discard, lines)
	get := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(curl, append([]string{"-sS", "--max-time", "60", "--retry", "20", "--retry-all-errors", "--retry-delay", "1"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("curl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	plain, safe := fmt.Sprintf("http://127.0.0.1:%d", http), fmt.Sprintf("https://127.0.0.1:%d", https)
	if got := get(plain + "/"); got != "hello" {
		t.Errorf("%q", got)
	}
	if got := get("--cacert", filepath.Join(dir, "c"), safe+"/"); got != "hello" {
		t.Errorf("HTTPS with the certificate as its own authority: %q", got)
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"call","params":["` + alice + `","echo","none",{}]}`
	if got := get("-k", safe+"/ubus", "-d", body); got != `{"jsonrpc":"2.0","id":1,"result":[0]}` {
		t.Errorf("%q", got)
	}
	if tc, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", https), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		tc.Close()
		t.Error("TLS 1.1 was accepted")
	}
	if os.Getuid() != 0 {
		return
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"Uid:\t0", "Gid:\t0"} {
		if strings.Contains(string(status), bad) {
			t.Errorf("the server is still root:\n%s", status)
		}
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Groups:\t \n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	for _, name := range tasks {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "Uid:\t0") {
			t.Errorf("a thread is still root: %s", name)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func TestSettings(t *testing.T) {
	p, err := uci.Parse("uhttpd", strings.NewReader(`
config uhttpd 'main'
	list listen_http '0.0.0.0:80'
	list listen_http '[::]:80'
	list listen_https '443'
	option redirect_https '1'
	option max_requests 'many'
	option http_keepalive '0'
	option ubus_prefix 'ubus/'
	list index_page 'cgi-bin/luci'

config uhttpd 'other'

config cert 'defaults'
	option days '730'
	option key_type 'rsa'
	option commonname 'OpenWrt'
`), true)
	if err != nil {
		t.Fatal(err)
	}
	list, cert, faults := settings(p)
	if len(list) != 2 || len(faults) != 1 || cert.days != 730 || cert.kind != "rsa" || cert.commonName != "OpenWrt" || cert.curve != "P-256" {
		t.Fatalf("%d instances, %v, %+v", len(list), faults, cert)
	}
	if i := list[0]; len(i.http) != 2 || !i.redirect || i.maxRequests != 3 || i.keepAlive != 0 || i.prefix != "/ubus" || i.maxConns != 100 || i.network != 30*time.Second {
		t.Errorf("%+v", i)
	}
	for text, want := range map[string]string{
		"80": "[{tcp4 0.0.0.0:80} {tcp6 [::]:80}]", "[::]:80": "[{tcp6 [::]:80}]", "192.168.1.1:8080": "[{tcp4 192.168.1.1:8080}]",
		"name:80": "error", "0": "error", "1.2.3.4:99999": "error", "": "error",
	} {
		a, err := addresses(text)
		got := fmt.Sprint(a)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if _, err := loadPair("/none", "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// FuzzRPC posts anything: each answer is JSON, and nothing is called without a
// session that may.
func FuzzRPC(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"list"}`, `{"jsonrpc":"2.0","id":1,"method":"call","params":["` + anonymous + `","session","login",{"username":"x","password":"y"}]}`,
		`[{"jsonrpc":"2.0","id":null,"method":"call","params":[]}]`, `{"jsonrpc":"2.0","id":{"a":[1.5e300,"\u0000"]},"method":"list","params":["*"]}`, `[[[[`, "\xff\xfe", `{"jsonrpc":"2.0","method":"call","params":["a","b","c",{}]}`,
	} {
		f.Add(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no bus: what gets that far ends at once
	h := &rpc{s: &server{log: slog.New(slog.DiscardHandler), bus: bus.Connect(ctx, "/nowhere", nil)}, i: &instance{script: time.Second}}
	f.Cleanup(func() { h.s.bus.Close() })
	f.Fuzz(func(t *testing.T, body string) {
		c := &call{rpc: h, header: http.Header{}}
		v, _ := parseBody([]byte(body))
		list, ok := v.(bus.Array)
		if !ok {
			list = bus.Array{v}
		}
		for _, e := range list {
			for _, object := range []string{"", "echo"} {
				out := c.answer(ctx, e, object, anonymous)
				reply, err := bus.ParseJSON(string(out))
				if err != nil || reply.String("jsonrpc") != "2.0" {
					t.Fatalf("%q: %q, %v", body, out, err)
				}
				if reply.Has("result") {
					t.Fatalf("%q: %q without a bus", body, out)
				}
			}
		}
	})
}
