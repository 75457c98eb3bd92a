package carrier

import (
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/services/mptcpproxy/internal/proxyproto"
	"weft/services/mptcpproxy/internal/stream"
)

// Accept is one rule of who may dial us and what it may reach.
type Accept struct {
	Name        string
	Kind        Kind
	Keys        Keys           // Convert: who it is
	From        []netip.Prefix // sources of connections; empty = all for Convert, none for others
	AllowClient []netip.Prefix // client addresses it may speak for; empty = none
	AllowDest   []netip.Prefix // destinations; empty = none
}

// ListenerOptions sets a Listener up. Zero numbers take the defaults named.
type ListenerOptions struct {
	Port   uint16 // on all local addresses, IPv4 and IPv6
	Accept []Accept
	Engine Engine
	Hello  func() Hello
	Log    *slog.Logger

	HandshakeTimeout time.Duration // 5 s
	MaxPending       int           // unauthenticated connections at once, 256
	SourceRate       float64       // new connections per second and source (IPv6: /64), 50
	SourceBurst      int           // 200

	OnPeer    func(peer string, up bool, hello Hello)
	OnSession func(peer string, near bool, id uint64, key [32]byte, hello Hello)
	OnConn    func(c Conn)
	OnClose   func(c Conn)
	// OnRaw gets each connection of kind Proxy2 after its header: the flow is
	// src to dst, early was read behind the header. The callee owns fd and
	// calls CloseRaw just before it is closed. A dst of the listener itself
	// never comes here.
	OnRaw func(fd int, peer string, src, dst netip.AddrPort, early []byte)
}

// Listener accepts connections of peers. A connection is given nothing before
// it has authenticated (Convert) or comes from a source that a rule names
// (Proxy2): not more than HandshakeTimeout, not more than its share of
// MaxPending places, of which the oldest is given up when all are taken.
type Listener struct {
	o      ListenerOptions
	l      *net.TCPListener
	trunks trunks
	limit  *limiter
	id     uint64 // Instance of our Hello

	stats struct {
		accepted, authenticated, refused, garbage, timedOut, limited, overflowed, denied atomic.Uint64
	}

	mu       sync.Mutex
	rules    []Accept
	ids      map[string]*identity
	pending  *list.List // of *net.TCPConn, oldest first
	controls map[string]*far
	lastWarn time.Time
	work     sync.WaitGroup
}

// far is a peer that dialled us, with its control connection.
type far struct {
	status PeerStatus
	cancel context.CancelFunc
	serial uint64
}

// NewListener opens the listening socket.
func NewListener(o ListenerOptions) (*Listener, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Engine == nil {
		return nil, errors.New("BUG: listener without engine")
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.MaxPending <= 0 {
		o.MaxPending = 256
	}
	if o.SourceRate <= 0 {
		o.SourceRate = 50
	}
	if o.SourceBurst <= 0 {
		o.SourceBurst = 200
	}
	l := &Listener{o: o, id: rand.Uint64() | 1, pending: list.New(), controls: make(map[string]*far),
		limit: newLimiter(o.SourceRate, o.SourceBurst)}
	if err := l.Update(o.Accept); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{KeepAliveConfig: keepIdle}
	lc.SetMultipathTCP(true)
	nl, err := lc.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", o.Port))
	if err != nil {
		return nil, fmt.Errorf("listen for gateways on TCP port %d: is another mptcpproxy running, or option listen_port taken? %w", o.Port, err)
	}
	l.l = nl.(*net.TCPListener)
	return l, nil
}

// Addr is the address listened on.
func (l *Listener) Addr() netip.AddrPort { return addrPortOf(l.l.Addr()) }

// Update replaces the rules; on an error the old ones stay. Trunks and control
// connections of rules that are gone or have other keys are closed.
func (l *Listener) Update(accept []Accept) error {
	rules := slices.Clone(accept)
	ids, err := identities(rules)
	if err != nil {
		return err
	}
	same := make(map[string]bool)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range rules {
		for _, b := range l.rules {
			if a.Name == b.Name && a.Kind == b.Kind && a.Keys.private.Equal(b.Keys.private) && a.Keys.peer.Equal(b.Keys.peer) {
				same[a.Name] = true
			}
		}
	}
	l.rules, l.ids = rules, ids
	for name, f := range l.controls {
		if !same[name] && f.cancel != nil {
			f.cancel()
		}
	}
	l.trunks.retire(func(t *trunk) bool { return !same[t.conn.Peer] })
	return nil
}

// Run accepts until ctx ends.
func (l *Listener) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.work.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.l.Close() })
	defer stop()
	var back time.Duration
	for {
		c, err := l.l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept from gateways: %w", err)
			}
			// Out of descriptors, or a connection that ended in the queue.
			back = min(max(2*back, 5*time.Millisecond), time.Second)
			l.warn("cannot accept connections of gateways", err)
			t := time.NewTimer(back)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			continue
		}
		back = 0
		l.stats.accepted.Add(1)
		source := addrPortOf(c.RemoteAddr()).Addr()
		if !l.limit.take(source, time.Now()) {
			l.stats.limited.Add(1)
			reset(c)
			continue
		}
		place := l.enter(c)
		l.work.Go(func() { l.handle(ctx, c, place, source) })
	}
}

// warn logs at most once a minute: strangers must not fill the log.
func (l *Listener) warn(msg string, err error, args ...any) {
	now := time.Now()
	l.mu.Lock()
	quiet := now.Sub(l.lastWarn) < time.Minute && !l.lastWarn.IsZero()
	if !quiet {
		l.lastWarn = now
	}
	l.mu.Unlock()
	if quiet {
		l.o.Log.Debug(msg, append(args, "err", err)...)
		return
	}
	l.o.Log.Warn(msg, append(args, "err", err)...)
}

// enter gives a connection a place among those not authenticated, the one of
// the oldest if none is free.
func (l *Listener) enter(c *net.TCPConn) *list.Element {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending.Len() >= l.o.MaxPending {
		old := l.pending.Front()
		oldest := l.pending.Remove(old).(*net.TCPConn)
		old.Value = nil // says so to a goroutine that has not set its deadline yet
		l.stats.overflowed.Add(1)
		_ = oldest.SetDeadline(time.Unix(1, 0)) // its goroutine closes it
	}
	return l.pending.PushBack(c)
}

func (l *Listener) leave(place *list.Element) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Remove(place) // does nothing when it has been removed
}

// handle takes one connection as far as the engine, its control loop, or OnRaw.
func (l *Listener) handle(ctx context.Context, c *net.TCPConn, place *list.Element, source netip.Addr) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := l.admit(ctx, c, place, source, stop)
	stop()
	l.leave(place)
	if err == nil || ctx.Err() != nil {
		if err != nil {
			reset(c)
		}
		return
	}
	reset(c)
	switch {
	case isTimeout(err):
		l.stats.timedOut.Add(1)
	case errors.Is(err, errGarbage):
		l.stats.garbage.Add(1)
	default:
		l.stats.refused.Add(1)
	}
	l.warn("connection refused", err, "source", source)
}

// errGarbage: the first bytes are of none of our protocols.
var errGarbage = errors.New("not a gateway: neither TLS nor PROXY protocol")

// admit decides on a connection; with an error the caller closes it.
func (l *Listener) admit(ctx context.Context, c *net.TCPConn, place *list.Element, source netip.Addr, stop func() bool) error {
	deadline := time.Now().Add(l.o.HandshakeTimeout)
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	l.mu.Lock()
	evicted := place.Value == nil
	l.mu.Unlock()
	if evicted {
		return os.ErrDeadlineExceeded
	}
	ctx2, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return err
	}
	switch first[0] {
	case 0x16: // TLS handshake record
		return l.admitTLS(ctx, ctx2, c, first[:], place, source, stop)
	case proxyproto.SignatureV2[0]:
		return l.admitProxy(c, first[:], source, stop)
	}
	return errGarbage
}

// prefixConn gives bytes back that were read to see what comes.
type prefixConn struct {
	net.Conn
	prefix []byte
}

func (c *prefixConn) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (l *Listener) admitTLS(run, ctx context.Context, raw *net.TCPConn, first []byte, place *list.Element, source netip.Addr, stop func() bool) error {
	l.mu.Lock()
	ids := l.ids
	l.mu.Unlock()
	c, rule, proto, err := serverHandshake(ctx, raw, &prefixConn{Conn: raw, prefix: bytes.Clone(first)}, ids)
	if err != nil {
		return err
	}
	l.stats.authenticated.Add(1)
	l.limit.refund(source)
	l.leave(place)
	if !stop() {
		return run.Err()
	}
	mp, err := raw.MultipathTCP()
	if err != nil {
		return err
	}
	conn := Conn{Peer: rule.Name, Control: proto == protoControl, Fallback: !mp,
		Local: addrPortOf(raw.LocalAddr()), Remote: addrPortOf(raw.RemoteAddr())}
	if conn.Control {
		l.control(run, rule.Name, c, raw, conn)
		return nil
	}
	l.far(rule.Name, func(s *PeerStatus) {
		s.Dialled++
		if conn.Fallback {
			s.Fallbacks++
		}
	})
	if _, err := l.trunks.add(l.o.Engine, l.o.OnConn, l.o.OnClose, c, raw, conn, proto == protoSealed); err != nil {
		l.warn("cannot take a trunk over", err, "peer", rule.Name)
	}
	return nil
}

// far changes the status of a peer.
func (l *Listener) far(name string, f func(*PeerStatus)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.farOf(name).status)
}

func (l *Listener) farOf(name string) *far {
	p := l.controls[name]
	if p == nil {
		p = &far{status: PeerStatus{Name: name}}
		l.controls[name] = p
	}
	return p
}

// control serves a control connection. A newer one of the same peer replaces
// it: the peer has restarted, or its network changed.
func (l *Listener) control(ctx context.Context, peer string, c net.Conn, raw *net.TCPConn, conn Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.FD = number(raw)
	if l.o.OnConn != nil {
		l.o.OnConn(conn)
	}
	l.mu.Lock()
	p := l.farOf(peer)
	if p.cancel != nil {
		p.cancel()
	}
	p.serial++
	serial := p.serial
	p.cancel = cancel
	l.mu.Unlock()

	own := Hello{}
	if l.o.Hello != nil {
		own = l.o.Hello()
	}
	if own.Version == 0 {
		own.Version = 1
	}
	if own.Instance == 0 {
		own.Instance = l.id
	}
	said := false
	err := serveControl(ctx, c, own, func(h Hello) {
		said = true
		l.far(peer, func(s *PeerStatus) { s.Up, s.Since, s.Hello, s.LastError = true, time.Now(), h, "" })
		if l.o.OnPeer != nil {
			l.o.OnPeer(peer, true, h)
		}
		state, ok := c.(interface{ ConnectionState() tls.ConnectionState })
		if !ok || l.o.OnSession == nil {
			return
		}
		id, key, err := sessionKey(state.ConnectionState())
		if err != nil {
			l.o.Log.Error("no datagram session", "peer", peer, "err", err)
			return
		}
		l.o.OnSession(peer, false, id, key, h)
	}, func(rtt time.Duration) { l.far(peer, func(s *PeerStatus) { s.RTT = rtt }) })
	if l.o.OnClose != nil {
		l.o.OnClose(conn)
	}
	reset(raw)
	l.mu.Lock()
	last := p.serial == serial
	if last {
		p.cancel = nil
		p.status.Up, p.status.Since = false, time.Now()
		if err != nil {
			p.status.LastError = "control connection: " + err.Error()
		}
	}
	l.mu.Unlock()
	if last && said {
		l.o.Engine.Probe(peer)
		if l.o.OnPeer != nil {
			l.o.OnPeer(peer, false, Hello{})
		}
	}
}

// maxProxyHeader bounds a PROXY header with all its TLVs. The protocol allows
// 64 KiB; what proxies send fits easily.
const maxProxyHeader = 4096

// admitProxy reads a PROXY header and hands the flow to OnRaw.
func (l *Listener) admitProxy(c *net.TCPConn, first []byte, source netip.Addr, stop func() bool) error {
	l.mu.Lock()
	var rule *Accept
	for i := range l.rules {
		if a := &l.rules[i]; a.Kind == Proxy2 && len(a.From) > 0 && from(a.From, source) {
			rule = a
			break
		}
	}
	l.mu.Unlock()
	if rule == nil || l.o.OnRaw == nil {
		return fmt.Errorf("PROXY protocol from %v, which no accept section of carrier proxy2 names in `list from`", source)
	}
	buf := make([]byte, maxProxyHeader)
	have := copy(buf, first)
	var h proxyproto.Header
	var used int
	for {
		n, err := proxyproto.Parse(buf[:have], &h)
		if err == nil {
			used = n
			break
		}
		if !errors.Is(err, proxyproto.ErrShort) {
			return fmt.Errorf("%w: %w", errGarbage, err)
		}
		if have == len(buf) {
			return fmt.Errorf("%w: PROXY header longer than %d bytes", errGarbage, maxProxyHeader)
		}
		k, err := c.Read(buf[have:])
		have += k
		if err != nil {
			return err
		}
	}
	if h.Local {
		return errLocal
	}
	if !h.Src.IsValid() || !h.Dst.IsValid() {
		return fmt.Errorf("PROXY header of %v without addresses", source)
	}
	if err := l.Allow(rule.Name, h.Src, h.Dst); err != nil {
		return err
	}
	l.stats.authenticated.Add(1)
	l.limit.refund(source)
	if !stop() {
		return context.Canceled
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	mp, err := c.MultipathTCP()
	if err != nil {
		return err
	}
	conn := Conn{Peer: rule.Name, Fallback: !mp, Local: addrPortOf(c.LocalAddr()), Remote: addrPortOf(c.RemoteAddr())}
	if conn.FD, err = takeFD(c); err != nil {
		l.warn("cannot take a connection over", err, "peer", rule.Name)
		return nil
	}
	l.trunks.addRaw(conn)
	if l.o.OnConn != nil {
		l.o.OnConn(conn)
	}
	l.far(rule.Name, func(s *PeerStatus) { s.Dialled++ })
	l.o.OnRaw(conn.FD, rule.Name, h.Src, h.Dst, bytes.Clone(buf[used:have]))
	return nil
}

// errLocal: the proxy only looked whether we are there.
var errLocal = errors.New("health check of a proxy")

// AllowNone decides on a flow that came over carrier None: the far side
// intercepted it, so the client's own address is all there is to check. peer
// is the name of the rule.
func (l *Listener) AllowNone(src, dst netip.AddrPort) (peer string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.rules {
		if a.Kind == None && contains(a.AllowClient, src.Addr()) && contains(a.AllowDest, dst.Addr()) {
			return a.Name, nil
		}
	}
	l.stats.denied.Add(1)
	return "", fmt.Errorf("%w: %v to %v is in no section of carrier none (list allow_client, list allow_dest)", ErrDenied, src, dst)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ErrDenied: a peer asked for what its rule does not allow.
var ErrDenied = errors.New("not allowed by the accept section")

// Allow decides on one flow (stream.Options.Allow): is the peer still there,
// may it speak for the client, and reach the destination?
func (l *Listener) Allow(peer string, src, dst netip.AddrPort) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.rules {
		if a.Name != peer {
			continue
		}
		switch {
		case !contains(a.AllowClient, src.Addr()):
			l.stats.denied.Add(1)
			return fmt.Errorf("%w: %s speaks for %v, which is not in its `list allow_client`", ErrDenied, peer, src.Addr())
		case !contains(a.AllowDest, dst.Addr()):
			l.stats.denied.Add(1)
			return fmt.Errorf("%w: %s asks for %v, which is not in its `list allow_dest`", ErrDenied, peer, dst.Addr())
		}
		return nil
	}
	l.stats.denied.Add(1)
	return fmt.Errorf("%w: no accept section %s any more", ErrDenied, peer)
}

// SetBusy says whether a trunk carries a flow (stream.Options.TrunkBusy).
func (l *Listener) SetBusy(t stream.Trunk, busy bool) { l.trunks.setBusy(t.ID, busy) }

// TrunkClosed says that the engine closes a trunk (stream.Options.TrunkClosed).
func (l *Listener) TrunkClosed(t stream.Trunk, err error) {
	if c, ok := l.trunks.closed(t.ID); ok && l.o.OnClose != nil {
		l.o.OnClose(c)
	}
}

// CloseRaw says that a descriptor given to OnRaw is about to be closed. Other
// descriptors are ignored.
func (l *Listener) CloseRaw(fd int) {
	if c, ok := l.trunks.closeRaw(fd); ok && l.o.OnClose != nil {
		l.o.OnClose(c)
	}
}

// Status describes all peers that dialled us, sorted by name.
func (l *Listener) Status() []PeerStatus {
	l.mu.Lock()
	out := make([]PeerStatus, 0, len(l.controls))
	for _, p := range l.controls {
		out = append(out, p.status)
	}
	l.mu.Unlock()
	for i := range out {
		out[i].Trunks, _ = l.trunks.count(out[i].Name, time.Time{})
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ListenerStats counts what came in.
type ListenerStats struct {
	Accepted      uint64 // connections, in all
	Authenticated uint64
	Refused       uint64 // wrong key or no rule
	Garbage       uint64 // did not speak the protocol
	TimedOut      uint64
	RateLimited   uint64
	Overflowed    uint64 // MaxPending reached
	Denied        uint64 // flows refused by Allow
	Pending       int    // now
}

// Stats gives the counters.
func (l *Listener) Stats() ListenerStats {
	l.mu.Lock()
	pending := l.pending.Len()
	l.mu.Unlock()
	return ListenerStats{
		Accepted: l.stats.accepted.Load(), Authenticated: l.stats.authenticated.Load(), Refused: l.stats.refused.Load(),
		Garbage: l.stats.garbage.Load(), TimedOut: l.stats.timedOut.Load(), RateLimited: l.stats.limited.Load(),
		Overflowed: l.stats.overflowed.Load(), Denied: l.stats.denied.Load(), Pending: pending,
	}
}
