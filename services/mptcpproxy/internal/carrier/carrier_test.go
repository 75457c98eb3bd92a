package carrier

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/stream"
)

// engine is a data plane that only keeps what it is given.
type engine struct {
	mu     sync.Mutex
	idle   map[string][]stream.Trunk
	got    chan stream.Trunk
	probed chan string
}

func newEngine() *engine {
	return &engine{idle: make(map[string][]stream.Trunk), got: make(chan stream.Trunk, 1000), probed: make(chan string, 100)}
}

func (e *engine) AddTrunk(t stream.Trunk) {
	e.mu.Lock()
	e.idle[t.Peer] = append(e.idle[t.Peer], t)
	e.mu.Unlock()
	e.got <- t
}

func (e *engine) Idle(peer string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.idle[peer])
}

func (e *engine) Probe(peer string) {
	select {
	case e.probed <- peer:
	default:
	}
}

// take removes an idle trunk, as a flow does.
func (e *engine) take(t testing.TB, peer string) stream.Trunk {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.idle[peer]
	if len(l) == 0 {
		t.Fatalf("no idle trunk to %s", peer)
	}
	e.idle[peer] = l[1:]
	return l[0]
}

func (e *engine) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.idle {
		for _, t := range l {
			unix.Close(t.FD)
		}
	}
	e.idle = map[string][]stream.Trunk{}
}

func secret(t testing.TB, s string) Keys {
	t.Helper()
	k, err := SharedKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

const goodSecret = "a secret of two gateways"

// listen starts a Listener on loopback with one rule "near1".
func listen(t testing.TB, change func(o *ListenerOptions)) (*Listener, *engine, netip.AddrPort) {
	t.Helper()
	e := newEngine()
	o := ListenerOptions{Engine: e, Accept: []Accept{{Name: "near1", Keys: secret(t, goodSecret), AllowClient: everything, AllowDest: everything}},
		SourceRate: 1e6, SourceBurst: 1e6}
	if change != nil {
		change(&o)
	}
	l, err := NewListener(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l.Run)
	t.Cleanup(e.close)
	return l, e, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Addr().Port())
}

// run runs f until the test ends, and waits for it.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func peer(t testing.TB, to netip.AddrPort) Peer {
	return Peer{Name: "exit1", Addrs: []netip.Addr{to.Addr()}, Port: to.Port(), Framed: true, Keys: secret(t, goodSecret), Pool: 1}
}

func dialer(t testing.TB, o DialerOptions) (*Dialer, *engine) {
	t.Helper()
	e := newEngine()
	o.Engine = e
	d, err := NewDialer(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, d.Run)
	t.Cleanup(e.close)
	return d, e
}

// patience is how long a test waits for what must come; it only ends a test
// that has failed.
const patience = 20 * time.Second

func next[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
	}
	panic("not reached")
}

// blocking makes fd usable by the plain reads and writes of a test.
func blocking(t testing.TB, fd int) net.Conn {
	t.Helper()
	f := fdFile(fd)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Both ends leave TLS at the same byte: what each writes first afterwards
// arrives as it was written, also when it was sent at once.
func TestTrunk(t *testing.T) {
	for _, seal := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "sealed"}[seal], func(t *testing.T) {
			conns := make(chan Conn, 100)
			_, far, addr := listen(t, func(o *ListenerOptions) { o.OnConn = func(c Conn) { conns <- c } })
			p := peer(t, addr)
			p.Encrypt = seal
			_, near := dialer(t, DialerOptions{Peers: []Peer{p}})
			a, b := next(t, "near trunk", near.got), next(t, "far trunk", far.got)
			if a.Peer != "exit1" || !a.Near || b.Peer != "near1" || b.Near {
				t.Errorf("trunks %+v and %+v", a, b)
			}
			ca, cb := blocking(t, near.take(t, "exit1").FD), blocking(t, far.take(t, "near1").FD)
			for i, w := range []net.Conn{ca, cb} {
				r := []net.Conn{cb, ca}[i]
				if _, err := w.Write([]byte("first bytes")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 11)
				if _, err := readFull(r, buf); err != nil || string(buf) != "first bytes" {
					t.Errorf("got %q, %v", buf, err)
				}
			}
			if !seal {
				if a.Seal != nil || b.Open != nil {
					t.Error("keys although not asked for")
				}
				return
			}
			for i := range 2 {
				s, o := a, b
				if i == 1 {
					s, o = b, a
				}
				sealed := s.Seal.Seal(nil, s.SaltSeal[:], []byte("frame"), nil)
				got, err := o.Open.Open(nil, o.SaltOpen[:], sealed, nil)
				if err != nil || string(got) != "frame" {
					t.Errorf("direction %d: %q, %v", i, got, err)
				}
				if _, err := s.Open.Open(nil, s.SaltOpen[:], sealed, nil); err == nil {
					t.Error("both directions have the same key")
				}
			}
		})
	}
}

func TestControl(t *testing.T) {
	type event struct {
		peer string
		up   bool
		h    Hello
	}
	type session struct {
		peer string
		near bool
		id   uint64
		key  [32]byte
	}
	nearPeer, farPeer := make(chan event, 10), make(chan event, 10)
	sessions := make(chan session, 10)
	onSession := func(peer string, near bool, id uint64, key [32]byte, _ Hello) {
		sessions <- session{peer, near, id, key}
	}
	farEngine := newEngine()
	t.Cleanup(farEngine.close)
	o := ListenerOptions{Engine: farEngine, Accept: []Accept{{Name: "near1", Keys: secret(t, goodSecret)}},
		Hello:     func() Hello { return Hello{Node: "far", Paths: []netip.Addr{netip.MustParseAddr("10.2.0.2")}} },
		OnPeer:    func(p string, up bool, h Hello) { farPeer <- event{p, up, h} },
		OnSession: onSession}
	l, err := NewListener(o)
	if err != nil {
		t.Fatal(err)
	}
	stopFar := run(t, l.Run)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Addr().Port())
	d, near := dialer(t, DialerOptions{Peers: []Peer{peer(t, addr)},
		Hello:     func() Hello { return Hello{Node: "near"} },
		OnPeer:    func(p string, up bool, h Hello) { nearPeer <- event{p, up, h} },
		OnSession: onSession})

	a, b := next(t, "hello at near", nearPeer), next(t, "hello at far", farPeer)
	if a.peer != "exit1" || !a.up || a.h.Node != "far" || len(a.h.Paths) != 1 || a.h.Instance == 0 {
		t.Errorf("near was told %+v", a)
	}
	if b.peer != "near1" || !b.up || b.h.Node != "near" {
		t.Errorf("far was told %+v", b)
	}
	s1, s2 := next(t, "session", sessions), next(t, "session", sessions)
	if s1.id != s2.id || s1.key != s2.key || s1.near == s2.near || s1.key == [32]byte{} {
		t.Errorf("sessions %+v and %+v", s1, s2)
	}
	if st := d.Status(); len(st) != 1 || !st[0].Up || st[0].Hello.Node != "far" {
		t.Errorf("status %+v", st)
	}
	if st := l.Status(); len(st) != 1 || !st[0].Up || st[0].Hello.Node != "near" {
		t.Errorf("status %+v", st)
	}
	stopFar()
	if a := next(t, "loss of the peer", nearPeer); a.up {
		t.Errorf("near was told %+v", a)
	}
	if p := next(t, "probe", near.probed); p != "exit1" {
		t.Errorf("probed %s", p)
	}

	// The far gateway comes back at the same port: another session.
	o.Port = l.Addr().Port()
	l2, err := NewListener(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l2.Run)
	d.Kick("")
	if a := next(t, "return of the peer", nearPeer); !a.up {
		t.Errorf("near was told %+v", a)
	}
	if s := next(t, "session", sessions); s.id == s1.id || s.key == s1.key {
		t.Error("the old session key came again")
	}
}

func TestPoolGrowsOnNeed(t *testing.T) {
	_, _, addr := listen(t, nil)
	p := peer(t, addr)
	p.Pool = 3
	d, near := dialer(t, DialerOptions{Peers: []Peer{p}})
	for range 3 {
		next(t, "trunk", near.got)
	}
	for range 3 {
		tr := near.take(t, "exit1")
		d.SetBusy(tr, true)
		t.Cleanup(func() { unix.Close(tr.FD) })
	}
	d.Need("exit1")
	for range 6 { // the target has doubled
		next(t, "trunk", near.got)
	}
	if s := d.Status()[0]; s.Target != 6 || s.Trunks != 9 || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
}

func TestTrunkClosedIsToldOnce(t *testing.T) {
	closed := make(chan Conn, 10)
	l, far, addr := listen(t, func(o *ListenerOptions) { o.OnClose = func(c Conn) { closed <- c } })
	dialer(t, DialerOptions{Peers: []Peer{peer(t, addr)}})
	tr := next(t, "trunk", far.got)
	l.TrunkClosed(tr, nil)
	l.TrunkClosed(tr, nil)
	if c := next(t, "close", closed); c.FD != tr.FD || c.Peer != "near1" {
		t.Errorf("closed %+v", c)
	}
	if len(closed) != 0 {
		t.Error("told twice")
	}
}

func TestAllow(t *testing.T) {
	l, _, _ := listen(t, func(o *ListenerOptions) {
		o.Accept[0].AllowClient = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd01::/64")}
		o.Accept[0].AllowDest = []netip.Prefix{netip.MustParsePrefix("192.168.2.0/24"), netip.MustParsePrefix("fd02::/64")}
		o.Accept = append(o.Accept, Accept{Name: "bare", Kind: None, AllowClient: everything[:1], AllowDest: o.Accept[0].AllowDest})
	})
	for _, c := range []struct {
		peer, src, dst string
		ok             bool
	}{
		{"near1", "192.168.1.2:1", "192.168.2.2:80", true},
		{"near1", "[::ffff:192.168.1.2]:1", "192.168.2.2:80", true},
		{"near1", "[fd01::2]:1", "[fd02::2]:80", true},
		{"near1", "192.168.3.2:1", "192.168.2.2:80", false},
		{"near1", "192.168.1.2:1", "127.0.0.1:80", false},
		{"near1", "[fd01::2]:1", "[::1]:80", false},
		{"gone", "192.168.1.2:1", "192.168.2.2:80", false},
	} {
		err := l.Allow(c.peer, netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if s := l.Stats().Denied; s != 4 {
		t.Errorf("%d denied", s)
	}
	if p, err := l.AllowNone(netip.MustParseAddrPort("8.8.8.8:1"), netip.MustParseAddrPort("192.168.2.2:80")); p != "bare" || err != nil {
		t.Errorf("none: %s, %v", p, err)
	}
	if _, err := l.AllowNone(netip.MustParseAddrPort("8.8.8.8:1"), netip.MustParseAddrPort("9.9.9.9:80")); !errors.Is(err, ErrDenied) {
		t.Errorf("none: %v", err)
	}
	if err := l.Update(nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Allow("near1", netip.MustParseAddrPort("192.168.1.2:1"), netip.MustParseAddrPort("192.168.2.2:80")); !errors.Is(err, ErrDenied) {
		t.Errorf("after the rule was taken away: %v", err)
	}
}
