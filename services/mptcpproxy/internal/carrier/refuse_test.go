package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"weft/services/mptcpproxy/internal/proxyproto"
)

// dialBare connects to the listener like any stranger.
func dialBare(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// closed waits until the other end has closed, and gives what it said before.
func closed(t testing.TB, c net.Conn) []byte {
	t.Helper()
	b, err := io.ReadAll(c)
	if isTimeout(err) {
		t.Fatal("the connection was not closed")
	}
	return b
}

// settle waits until the listener has counted what it refused.
func settle(t testing.TB, l *Listener, what string, done func(ListenerStats) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(l.Stats()); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v", what, l.Stats())
		}
	}
}

// Whatever a stranger sends, no trunk comes of it.
func TestStrangersAreRefused(t *testing.T) {
	clientHello := func() []byte { // that of a browser, say
		a, b := net.Pipe()
		go func() {
			c := tls.Client(a, &tls.Config{ServerName: "example.org", InsecureSkipVerify: true})
			_ = c.Handshake()
		}()
		buf := make([]byte, 16<<10)
		n, err := b.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		b.Close()
		return buf[:n]
	}()
	for _, c := range []struct {
		name  string
		send  []byte
		close bool // our half, after sending
		count func(ListenerStats) uint64
		reply bool // a TLS alert is the only answer a stranger may get
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), false, func(s ListenerStats) uint64 { return s.Garbage }, false},
		{"zeros", make([]byte, 4096), false, func(s ListenerStats) uint64 { return s.Garbage }, false},
		{"nothing, then end", nil, true, func(s ListenerStats) uint64 { return s.Refused }, false},
		{"nothing at all", nil, false, func(s ListenerStats) uint64 { return s.TimedOut }, false},
		{"one byte of TLS", []byte{0x16}, false, func(s ListenerStats) uint64 { return s.TimedOut }, false},
		{"record of wrong version", []byte{0x16, 9, 9, 0, 1, 0}, false, func(s ListenerStats) uint64 { return s.TimedOut }, false},
		{"half a client hello", clientHello[:len(clientHello)/2], false, func(s ListenerStats) uint64 { return s.TimedOut }, false},
		{"half a client hello, then end", clientHello[:len(clientHello)/2], true, func(s ListenerStats) uint64 { return s.Refused }, false},
		{"client hello for another server", clientHello, false, func(s ListenerStats) uint64 { return s.Refused }, true},
		{"PROXY without a rule", proxyproto.AppendV2(nil, netip.MustParseAddrPort("1.2.3.4:1"), netip.MustParseAddrPort("5.6.7.8:2")), false,
			func(s ListenerStats) uint64 { return s.Refused }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, e, addr := listen(t, func(o *ListenerOptions) { o.HandshakeTimeout = 200 * time.Millisecond })
			conn := dialBare(t, addr)
			if _, err := conn.Write(c.send); err != nil {
				t.Fatal(err)
			}
			if c.close {
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			answer := closed(t, conn)
			if len(answer) > 0 && (!c.reply || answer[0] != 0x15 || len(answer) > 7) {
				t.Errorf("answered %x", answer)
			}
			settle(t, l, "count", func(s ListenerStats) bool { return c.count(s) == 1 && s.Pending == 0 })
			if s := l.Stats(); s.Authenticated != 0 || len(e.got) != 0 {
				t.Errorf("stats %+v, %d trunks", s, len(e.got))
			}
		})
	}
}

// The keys decide, whoever holds what.
func TestKeys(t *testing.T) {
	type own struct{ private, public string }
	gen := func() own {
		a, b, err := GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return own{a, b}
	}
	near, far, other := gen(), gen(), gen()
	mk := func(private, peer own) Keys {
		k, err := OwnKey(private.private, peer.public)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, c := range []struct {
		name      string
		near, far Keys
		ok        bool
	}{
		{"own keys", mk(near, far), mk(far, near), true},
		{"near expects another far gateway", mk(near, other), mk(far, near), false},
		{"far expects another near gateway", mk(near, far), mk(far, other), false},
		{"another shared key", secret(t, "another secret of two"), secret(t, goodSecret), false},
		{"shared key against own keys", secret(t, goodSecret), mk(far, near), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, e, addr := listen(t, func(o *ListenerOptions) { o.Accept[0].Keys = c.far })
			cfg, err := c.near.clientConfig()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err = clientHandshake(ctx, dialBare(t, addr), cfg, protoTrunk)
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				next(t, "trunk", e.got)
				return
			}
			if !errors.Is(err, ErrWrongKey) {
				t.Errorf("%v, want ErrWrongKey", err)
			}
			settle(t, l, "refusal", func(s ListenerStats) bool { return s.Refused == 1 })
			if len(e.got) != 0 {
				t.Error("a trunk came of it")
			}
		})
	}
}

// The bytes of a good handshake, sent once more, are of no use.
func TestReplay(t *testing.T) {
	l, e, addr := listen(t, nil)
	cfg, err := secret(t, goodSecret).clientConfig()
	if err != nil {
		t.Fatal(err)
	}
	tap := &tapConn{Conn: dialBare(t, addr)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := clientHandshake(ctx, tap, cfg, protoTrunk); err != nil {
		t.Fatal(err)
	}
	next(t, "trunk", e.got)
	again := dialBare(t, addr)
	if _, err := again.Write(tap.sent); err != nil {
		t.Fatal(err)
	}
	closed(t, again)
	settle(t, l, "refusal", func(s ListenerStats) bool { return s.Refused == 1 })
	if s := l.Stats(); s.Authenticated != 1 || len(e.got) != 0 {
		t.Errorf("stats %+v, %d more trunks", s, len(e.got))
	}
}

// tapConn keeps what is written.
type tapConn struct {
	net.Conn
	sent []byte
}

func (c *tapConn) Write(b []byte) (int, error) {
	c.sent = append(c.sent, b...)
	return c.Conn.Write(b)
}

// A peer whose source address no rule names is refused after it authenticated.
func TestSourceOfTrunks(t *testing.T) {
	l, e, addr := listen(t, func(o *ListenerOptions) { o.Accept[0].From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	cfg, err := secret(t, goodSecret).clientConfig()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := clientHandshake(ctx, dialBare(t, addr), cfg, protoTrunk); err == nil {
		t.Error("admitted")
	}
	settle(t, l, "refusal", func(s ListenerStats) bool { return s.Refused == 1 })
	if len(e.got) != 0 {
		t.Error("a trunk came of it")
	}
}

// Ten thousand strangers cost neither memory nor the place of a real peer.
func TestManyStrangers(t *testing.T) {
	l, e, addr := listen(t, func(o *ListenerOptions) {
		o.MaxPending = 64
		o.HandshakeTimeout = patience
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const all = 10000
	var silent []*net.TCPConn
	for i := range all {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 { // a slow one, which stays
			silent = append(silent, c.(*net.TCPConn))
			continue
		}
		_, _ = c.Write([]byte("garbage\r\n"))
		reset(c.(*net.TCPConn))
	}
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	cfg, err := secret(t, goodSecret).clientConfig()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := clientHandshake(ctx, dialBare(t, addr), cfg, protoTrunk); err != nil {
		t.Errorf("a real peer among strangers: %v", err)
	}
	next(t, "trunk", e.got)
	settle(t, l, "strangers", func(s ListenerStats) bool {
		return s.Accepted == all+1 && s.Pending <= 64 && s.Garbage+s.Refused+s.TimedOut+uint64(s.Pending)+1 == all+1
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestRateOfOneSource(t *testing.T) {
	l, _, addr := listen(t, func(o *ListenerOptions) { o.SourceRate, o.SourceBurst = 1e-6, 3 })
	for range 5 {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			continue // reset so soon that connect saw it
		}
		_, _ = c.Write([]byte("x"))
		closed(t, c)
		c.Close()
	}
	settle(t, l, "limit", func(s ListenerStats) bool { return s.RateLimited == 2 && s.Garbage == 3 })
}

func TestLimiter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(2, 4)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	count := func(a netip.Addr, n int) (ok int) {
		for range n {
			if l.take(a, now) {
				ok++
			}
		}
		return ok
	}
	if n := count(a, 10); n != 4 {
		t.Errorf("burst of %d", n)
	}
	if n := count(b, 3); n != 3 {
		t.Errorf("another source: %d", n)
	}
	if n := count(netip.MustParseAddr("2001:db8::2"), 10); n != 1 {
		t.Errorf("the same /64: %d", n)
	}
	if n := count(netip.MustParseAddr("::ffff:10.0.0.1"), 1); n != 0 {
		t.Error("a mapped address is another source")
	}
	l.refund(a)
	now = now.Add(time.Second)
	if n := count(a, 10); n != 3 {
		t.Errorf("after a second and a refund: %d", n)
	}
	now = now.Add(time.Minute)
	for i := range 2 * maxSources {
		l.take(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(l.buckets) > maxSources {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

func TestPoolPace(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := pool{base: 4}
	want := func(what string, idle, dialling, n int) {
		t.Helper()
		got, again := p.want(now, idle, dialling)
		if got != n || again <= 0 || again > poolInterval {
			t.Errorf("%s: %d (again in %v), want %d", what, got, again, n)
		}
	}
	want("empty", 0, 0, 4)
	want("under way", 0, 4, 0)
	want("one taken", 3, 0, 1)
	p.need(now)
	want("needed", 0, 1, 7)
	for range 10 {
		p.need(now)
	}
	want("needed much", 0, 0, maxDialling)
	want("not more at once", 0, maxDialling, 0)
	now = now.Add(shrinkAfter)
	p.want(now, 60, 0)
	if p.target != maxTarget/2 {
		t.Errorf("target %d", p.target)
	}
	for range 10 {
		now = now.Add(shrinkAfter)
		p.want(now, 60, 0)
	}
	if p.target != 4 {
		t.Errorf("target %d in the end", p.target)
	}
	// The peer is away: single attempts, further and further apart.
	last := time.Duration(0)
	for range 12 {
		p.failed(now, 0.5)
		if p.backOff < last || p.backOff > maxBackOff {
			t.Fatalf("back-off %v after %v", p.backOff, last)
		}
		last = p.backOff
		want("too early", 0, 0, 0)
		now = now.Add(p.backOff)
		want("attempt", 0, 0, 1)
		want("only one", 0, 1, 0)
	}
	if last != maxBackOff {
		t.Errorf("back-off %v in the end", last)
	}
	p.succeeded()
	want("peer is back", 0, 0, 4)
}

// What a person reads says what to do.
func TestErrorsSayWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := addrPortOf(l.Addr())
	l.Close()
	text, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	go func() {
		for {
			c, err := text.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail.example.org ESMTP\r\n"))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	_, _, good := listen(t, nil)
	for _, c := range []struct {
		name string
		to   netip.AddrPort
		key  string
		say  string
	}{
		{"nobody listens", nobody, goodSecret, "nothing listens there"},
		{"a mail server", addrPortOf(text.Addr()), goodSecret, "not a Weft gateway"},
		{"wrong key", good, "not the same secret", "`key` must be the same on both gateways"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := peer(t, c.to)
			p.Keys = secret(t, c.key)
			d, _ := dialer(t, DialerOptions{Peers: []Peer{p}})
			for deadline := time.Now().Add(patience); ; runtime.Gosched() {
				s := d.Status()[0]
				if s.Failed > 0 && strings.Contains(s.LastError, c.say) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("status %+v, want an error with %q", s, c.say)
				}
			}
		})
	}
}

func TestKeyText(t *testing.T) {
	private, public, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if p, err := PublicKey(private + "\n"); err != nil || p != public || len(p) != 44 {
		t.Errorf("%q, %v", p, err)
	}
	for name, err := range map[string]error{
		"short secret":       func() error { _, err := SharedKey("short"); return err }(),
		"private not base64": func() error { _, err := OwnKey("###", public); return err }(),
		"peer of 3 bytes":    func() error { _, err := OwnKey(private, "AAAA"); return err }(),
		"own public key":     func() error { _, err := OwnKey(private, public); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	a, b := secret(t, goodSecret), secret(t, " "+goodSecret+"\n")
	if !a.private.Equal(b.private) {
		t.Error("white space around a secret counts")
	}
}

func TestAcceptSectionsAreChecked(t *testing.T) {
	for name, list := range map[string][]Accept{
		"no key":       {{Name: "a"}},
		"same key":     {{Name: "a", Keys: secret(t, goodSecret)}, {Name: "b", Keys: secret(t, goodSecret)}},
		"not for none": nil,
	} {
		if _, err := identities(list); (err != nil) != (list != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzControlMessage(f *testing.F) {
	f.Add([]byte(`{"hello":{"version":1,"node":"far","paths":["10.2.0.2"]}}`))
	f.Add([]byte(`{"ping":7}`))
	f.Add([]byte(`{"hello":null,"pong":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMessage(b); err != nil && m.Hello != nil {
			t.Error("a message although it is broken")
		}
	})
}
