package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/convert"
	"weft/services/mptcpproxy/internal/proxyproto"
	"weft/services/mptcpproxy/internal/stream"
	"weft/services/mptcpproxy/internal/transparent"
)

// Bounds of the pool and its pace.
const (
	defaultPool  = 4
	maxTarget    = 64              // idle trunks wanted at most
	maxDialling  = 16              // handshakes at once and peer
	dialTimeout  = 8 * time.Second // connect and handshake
	minBackOff   = 200 * time.Millisecond
	maxBackOff   = 10 * time.Second // a peer that comes back is found within this
	shrinkAfter  = 10 * time.Second // without a need the target halves
	freshFor     = 100 * time.Millisecond
	maxIdleAge   = time.Hour // older idle trunks are replaced one by one
	poolInterval = time.Second
	// restBeforeEnd is how long a trunk has been idle before it is retired.
	restBeforeEnd = 5 * time.Second
)

// DialerOptions sets a Dialer up.
type DialerOptions struct {
	Peers  []Peer
	Paths  Picker // nil: Peer.Addrs in turn
	Engine Engine
	Hello  func() Hello // what we tell of ourselves, asked at each connect
	Log    *slog.Logger

	// OnPeer tells when the control connection of a peer stands or is lost.
	OnPeer func(peer string, up bool, hello Hello)
	// OnSession gives a fresh datagram session when the control connection
	// stands; both ends get the same id and key.
	OnSession func(peer string, near bool, id uint64, key [32]byte, hello Hello)
	// OnConn is told each connection before it is used, OnClose when it ends:
	// to register its descriptor with the path manager and the governor.
	OnConn  func(c Conn)
	OnClose func(c Conn)
}

// Dialer keeps the connections to all peers that we dial.
type Dialer struct {
	o        DialerOptions
	trunks   trunks
	instance uint64

	mu    sync.Mutex
	ctx   context.Context // of Run; nil before
	peers map[string]*dialPeer
	work  sync.WaitGroup
}

// dialPeer is the running state of one Peer. Its fields below mu are guarded
// by Dialer.mu.
type dialPeer struct {
	Peer
	tls    *tls.Config // nil: not a framed peer
	wake   chan struct{}
	kick   chan struct{} // ends the back-off of the control connection
	stop   context.CancelFunc
	status PeerStatus
	pool   pool
	turn   int // next of Addrs
}

// pool decides how many trunks to dial. It is plain data, without clock or
// sockets of its own.
type pool struct {
	base     int // of the settings
	target   int
	backOff  time.Duration
	retryAt  time.Time
	neededAt time.Time
}

// need raises the target: flows come faster than trunks.
func (p *pool) need(now time.Time) {
	p.neededAt = now
	p.target = min(max(2*p.target, 2*p.base), maxTarget)
}

// failed sets back-off after a dial, succeeded ends it. jitter is in [0, 1).
func (p *pool) failed(now time.Time, jitter float64) {
	p.backOff = min(max(2*p.backOff, minBackOff), maxBackOff)
	p.retryAt = now.Add(time.Duration(float64(p.backOff) * (0.75 + jitter/2)))
}

func (p *pool) succeeded() { p.backOff, p.retryAt = 0, time.Time{} }

// want says how many to dial now, given how many are idle and under way, and
// after what time to ask again at the latest.
func (p *pool) want(now time.Time, idle, dialling int) (n int, again time.Duration) {
	if p.target > p.base && now.Sub(p.neededAt) >= shrinkAfter {
		p.target = max(p.base, p.target/2)
		p.neededAt = now
	}
	p.target = max(p.target, p.base)
	n = min(p.target-idle-dialling, maxDialling-dialling)
	if n <= 0 {
		return 0, poolInterval
	}
	if p.backOff > 0 { // the peer is away: one attempt at a time
		if wait := p.retryAt.Sub(now); wait > 0 {
			return 0, min(wait, poolInterval)
		}
		if dialling > 0 {
			return 0, poolInterval
		}
		n = 1
	}
	return n, poolInterval
}

// NewDialer checks the options. Nothing is dialled before Run.
func NewDialer(o DialerOptions) (*Dialer, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Engine == nil {
		return nil, errors.New("BUG: dialer without engine")
	}
	d := &Dialer{o: o, instance: rand.Uint64() | 1, peers: make(map[string]*dialPeer)}
	return d, d.Update(o.Peers)
}

// Update replaces the peers; connections of those that stayed the same live on.
// On an error nothing is changed.
func (d *Dialer) Update(peers []Peer) error {
	next := make(map[string]*dialPeer)
	for _, p := range peers {
		if p.Pool <= 0 {
			p.Pool = defaultPool
		}
		if next[p.Name] != nil {
			return fmt.Errorf("peer %s: stands twice in the settings", p.Name)
		}
		dp := &dialPeer{Peer: p, wake: make(chan struct{}, 1), kick: make(chan struct{}, 1),
			pool: pool{base: p.Pool}, status: PeerStatus{Name: p.Name, Near: true}}
		if p.Kind == Convert && p.Framed {
			if !p.Keys.Valid() {
				return fmt.Errorf("peer %s: no key; the carrier convert needs `key`, or `private_key` and `peer_key` (mptcp genkey makes one)", p.Name)
			}
			var err error
			if dp.tls, err = p.Keys.clientConfig(); err != nil {
				return fmt.Errorf("peer %s: %w", p.Name, err)
			}
		}
		next[p.Name] = dp
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, old := range d.peers {
		if n := next[name]; n != nil && reflect.DeepEqual(n.Peer, old.Peer) {
			next[name] = old
			continue
		}
		if old.stop != nil {
			old.stop()
		}
		d.trunks.retireIdle(func(t *trunk) bool { return t.conn.Peer == name })
	}
	d.peers = next
	if d.ctx != nil {
		for _, p := range next {
			d.start(p)
		}
	}
	return nil
}

// Run keeps the pools and control connections until ctx ends.
func (d *Dialer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	d.mu.Lock()
	d.ctx = ctx
	for _, p := range d.peers {
		d.start(p)
	}
	d.mu.Unlock()
	<-ctx.Done()
	d.mu.Lock()
	cancel()
	d.ctx = nil
	d.mu.Unlock()
	d.work.Wait()
	return nil
}

// start runs a peer that does not run yet; d.mu is held.
func (d *Dialer) start(p *dialPeer) {
	if p.stop != nil || p.tls == nil {
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	p.stop = cancel
	d.work.Go(func() { d.keepPool(ctx, p) })
	d.work.Go(func() { d.keepControl(ctx, p) })
}

// Need says that a flow waits for a trunk (stream.Options.NeedTrunk).
func (d *Dialer) Need(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[peer]; p != nil {
		p.pool.need(time.Now())
		wake(p.wake)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SetBusy says whether a trunk carries a flow (stream.Options.TrunkBusy); those
// that carry none are retired when the pool shrinks or they age. As long as it
// is never called, none is.
func (d *Dialer) SetBusy(t stream.Trunk, busy bool) { d.trunks.setBusy(t.ID, busy) }

// TrunkClosed says that the engine closes a trunk (stream.Options.TrunkClosed).
func (d *Dialer) TrunkClosed(t stream.Trunk, err error) {
	c, ok := d.trunks.closed(t.ID)
	if !ok {
		return
	}
	if d.o.OnClose != nil {
		d.o.OnClose(c)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[t.Peer]; p != nil {
		wake(p.wake)
	}
}

// Kick ends back-off: a path has come up, a dial may succeed now. The empty
// name means all peers.
func (d *Dialer) Kick(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, p := range d.peers {
		if peer == "" || peer == name {
			p.pool.succeeded()
			wake(p.wake)
			wake(p.kick)
		}
	}
}

// PathDown replaces the idle trunks that are plain TCP and start at an address
// whose path has failed: unlike MPTCP they cannot go another way.
func (d *Dialer) PathDown(local netip.Addr) {
	d.trunks.retireIdle(func(t *trunk) bool { return t.conn.Fallback && t.conn.Local.Addr() == local })
}

// keepPool keeps trunks of one peer ready.
func (d *Dialer) keepPool(ctx context.Context, p *dialPeer) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-p.wake:
		}
		now := time.Now()
		_, fresh := d.trunks.count(p.Name, now.Add(-freshFor))
		idle := d.o.Engine.Idle(p.Name)
		d.mu.Lock()
		// A trunk just handed over may not be idle in the engine's books yet.
		n, again := p.pool.want(now, max(idle, fresh), p.status.Dialling)
		excess := idle - p.pool.target
		p.status.Dialling += n
		d.mu.Unlock()
		for range n {
			d.work.Go(func() { d.dialTrunk(ctx, p) })
		}
		d.trim(p.Name, excess, now)
		t.Reset(again)
	}
}

// trim retires idle trunks: the oldest ones of excess, and one that is too old.
func (d *Dialer) trim(peer string, excess int, now time.Time) {
	var oldest []time.Time
	d.trunks.mu.Lock()
	for _, t := range d.trunks.byID {
		if t.conn.Peer == peer && t.idleFor(restBeforeEnd, now) {
			oldest = append(oldest, t.since)
		}
	}
	d.trunks.mu.Unlock()
	if len(oldest) == 0 {
		return
	}
	slices.SortFunc(oldest, time.Time.Compare)
	left := max(excess, 0)
	if left == 0 && now.Sub(oldest[0]) > maxIdleAge {
		left = 1
	}
	if left == 0 {
		return
	}
	limit := oldest[min(left, len(oldest))-1]
	d.trunks.retireIdle(func(t *trunk) bool {
		if left == 0 || t.conn.Peer != peer || t.since.After(limit) {
			return false
		}
		left--
		return true
	})
}

// dialTrunk makes one trunk and hands it to the engine.
func (d *Dialer) dialTrunk(ctx context.Context, p *dialPeer) {
	proto := protoTrunk
	if p.Encrypt {
		proto = protoSealed
	}
	c, raw, conn, err := d.connect(ctx, p, proto)
	if err == nil {
		_, err = d.trunks.add(d.o.Engine, d.o.OnConn, d.o.OnClose, c, raw, conn, p.Encrypt)
	}
	d.mu.Lock()
	p.status.Dialling--
	d.mu.Unlock()
	d.result(ctx, p, conn, err)
	wake(p.wake)
}

// result counts what came out of a dial.
func (d *Dialer) result(ctx context.Context, p *dialPeer, conn Conn, err error) {
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		p.pool.succeeded()
		p.status.Dialled++
		p.status.LastError = ""
		if conn.Fallback {
			p.status.Fallbacks++
			if p.status.Fallbacks == 1 {
				d.o.Log.Warn("connection without MPTCP: something on the way takes the options out, or the far gateway has MPTCP off", "peer", p.Name, "local", conn.Local, "remote", conn.Remote)
			}
		}
		return
	}
	p.pool.failed(time.Now(), rand.Float64())
	p.status.Failed++
	if s := err.Error(); s != p.status.LastError {
		p.status.LastError = s
		d.o.Log.Warn("no connection to peer", "peer", p.Name, "err", err)
	}
}

// connect dials and authenticates.
func (d *Dialer) connect(ctx context.Context, p *dialPeer, proto string) (*tls.Conn, *net.TCPConn, Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	local, device, remote, err := d.pick(p)
	if err != nil {
		return nil, nil, Conn{}, err
	}
	raw, fallback, err := dialTCP(ctx, local, remote)
	if err != nil {
		return nil, nil, Conn{}, err
	}
	conn := Conn{Peer: p.Name, Near: true, Control: proto == protoControl, Fallback: fallback,
		Local: addrPortOf(raw.LocalAddr()), Remote: addrPortOf(raw.RemoteAddr()), Device: device}
	c, err := clientHandshake(ctx, raw, p.tls, proto)
	if err != nil {
		reset(raw)
		return nil, nil, conn, fmt.Errorf("handshake with %v: %w", remote, err)
	}
	return c, raw, conn, nil
}

// pick chooses the addresses for the next connection.
func (d *Dialer) pick(p *dialPeer) (local netip.Addr, device string, remote netip.AddrPort, err error) {
	if d.o.Paths != nil {
		if local, device, remote, err = d.o.Paths.Pick(p.Name); err == nil {
			return local, device, remote, nil
		}
	}
	if len(p.Addrs) == 0 {
		if err == nil {
			err = errors.New("no address; add `list address` to the peer section")
		}
		return local, "", remote, fmt.Errorf("peer %s: %w", p.Name, err)
	}
	if d.o.Paths != nil {
		return local, "", remote, fmt.Errorf("peer %s: %w", p.Name, err)
	}
	d.mu.Lock()
	a := p.Addrs[p.turn%len(p.Addrs)]
	p.turn++
	d.mu.Unlock()
	return netip.Addr{}, "", netip.AddrPortFrom(a, p.Port), nil
}

// keepControl keeps the control connection of one peer.
func (d *Dialer) keepControl(ctx context.Context, p *dialPeer) {
	var back pool
	for ctx.Err() == nil {
		c, raw, conn, err := d.connect(ctx, p, protoControl)
		d.result(ctx, p, conn, err)
		if err == nil {
			if ok := d.control(ctx, p, c, raw, conn); ok {
				back.succeeded()
			}
		}
		if ctx.Err() != nil {
			return
		}
		back.failed(time.Now(), rand.Float64())
		t := time.NewTimer(time.Until(back.retryAt))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-p.kick:
			back.succeeded()
		}
		t.Stop()
	}
}

// control serves one control connection; true if the other end said hello.
func (d *Dialer) control(ctx context.Context, p *dialPeer, c *tls.Conn, raw *net.TCPConn, conn Conn) (ok bool) {
	conn.FD = number(raw)
	if d.o.OnConn != nil {
		d.o.OnConn(conn)
	}
	defer func() {
		if d.o.OnClose != nil {
			d.o.OnClose(conn)
		}
		reset(raw)
	}()
	own := d.own()
	own.Encrypt = p.Encrypt
	up := func(h Hello) {
		ok = true
		d.mu.Lock()
		p.status.Up, p.status.Since, p.status.Hello = true, time.Now(), h
		p.pool.succeeded()
		d.mu.Unlock()
		wake(p.wake)
		if d.o.OnPeer != nil {
			d.o.OnPeer(p.Name, true, h)
		}
		if id, key, err := sessionKey(c.ConnectionState()); err != nil {
			d.o.Log.Error("no datagram session", "peer", p.Name, "err", err)
		} else if d.o.OnSession != nil {
			d.o.OnSession(p.Name, true, id, key, h)
		}
	}
	err := serveControl(ctx, c, own, up, func(rtt time.Duration) {
		d.mu.Lock()
		p.status.RTT = rtt
		d.mu.Unlock()
	})
	if !ok {
		d.result(ctx, p, conn, err)
		return false
	}
	d.mu.Lock()
	p.status.Up, p.status.Since = false, time.Now()
	if ctx.Err() == nil && err != nil {
		p.status.LastError = "control connection: " + err.Error()
	}
	d.mu.Unlock()
	if ctx.Err() == nil {
		d.o.Engine.Probe(p.Name)
	}
	if d.o.OnPeer != nil {
		d.o.OnPeer(p.Name, false, Hello{})
	}
	return true
}

func (d *Dialer) own() Hello {
	h := Hello{}
	if d.o.Hello != nil {
		h = d.o.Hello()
	}
	if h.Version == 0 {
		h.Version = 1
	}
	if h.Instance == 0 {
		h.Instance = d.instance
	}
	return h
}

// DialRaw connects for one flow of a peer of kind Proxy2, None or unframed
// Convert. early is to be sent before anything else. The caller owns fd, which
// is non-blocking, and calls CloseRaw just before it is closed. Where the peer
// reports it, a connection that could not be made to dst ends in a
// *transparent.ConnectError.
func (d *Dialer) DialRaw(ctx context.Context, peer string, src, dst netip.AddrPort) (fd int, early []byte, err error) {
	d.mu.Lock()
	p := d.peers[peer]
	d.mu.Unlock()
	if p == nil {
		return -1, nil, fmt.Errorf("peer %s: not in the settings", peer)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn := Conn{Peer: peer, Near: true}
	if p.Kind == None {
		fd, err = connectTransparent(ctx, src, dst)
		if err != nil {
			return -1, nil, err
		}
		conn.Local, conn.Remote = src, dst
	} else {
		if p.tls != nil {
			return -1, nil, fmt.Errorf("peer %s: its flows go through trunks", peer)
		}
		local, device, remote, err := d.pick(p)
		if err != nil {
			return -1, nil, err
		}
		c, fallback, err := dialTCP(ctx, local, remote)
		if err != nil {
			d.result(ctx, p, conn, err)
			return -1, nil, err
		}
		conn.Local, conn.Remote, conn.Device, conn.Fallback = addrPortOf(c.LocalAddr()), addrPortOf(c.RemoteAddr()), device, fallback
		if p.Kind == Proxy2 {
			early = proxyproto.AppendV2(nil, src, dst)
		} else if err := askConverter(ctx, c, dst); err != nil {
			reset(c)
			return -1, nil, err
		}
		if fd, err = takeFD(c); err != nil {
			return -1, nil, err
		}
		d.result(ctx, p, conn, nil)
	}
	conn.FD = fd
	d.trunks.addRaw(conn)
	if d.o.OnConn != nil {
		d.o.OnConn(conn)
	}
	return fd, early, nil
}

// CloseRaw says that a descriptor given by DialRaw is about to be closed. Other
// descriptors are ignored.
func (d *Dialer) CloseRaw(fd int) {
	if c, ok := d.trunks.closeRaw(fd); ok && d.o.OnClose != nil {
		d.o.OnClose(c)
	}
}

// connectTransparent connects over MPTCP from a foreign address and waits for
// the outcome.
func connectTransparent(ctx context.Context, src, dst netip.AddrPort) (int, error) {
	fd, err := transparent.ConnectMPTCP(src, dst, 0)
	if err != nil {
		return -1, err
	}
	deadline, _ := ctx.Deadline()
	for {
		wait := 100 * time.Millisecond // between looks whether the client has gone
		if left := time.Until(deadline); left < wait {
			wait = left
		}
		if ctx.Err() != nil || wait <= 0 {
			resetFD(fd)
			return -1, fmt.Errorf("connect to %v for %v: %w", dst, src, context.Cause(ctx))
		}
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(pfd, int(wait.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			resetFD(fd)
			return -1, fmt.Errorf("wait for the connection to %v: %w", dst, err)
		}
		if n <= 0 {
			continue
		}
		if err := transparent.Finish(fd); err != nil {
			resetFD(fd)
			return -1, err
		}
		return fd, nil
	}
}

// askConverter has a foreign converter connect to dst and reads its answer,
// which stands before the bytes of dst (RFC 8803, section 4.2). The read goes
// to the byte, since all behind it belongs to the flow.
func askConverter(ctx context.Context, c *net.TCPConn, dst netip.AddrPort) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	m := convert.Message{Has: convert.HasConnect, Connect: dst}
	b, err := m.Append(nil)
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("ask converter %v: %w", c.RemoteAddr(), err)
	}
	buf := make([]byte, 0, convert.MaxLen)
	for {
		n, err := convert.Parse(buf, &m)
		if err == nil {
			break
		}
		if !errors.Is(err, convert.ErrShort) {
			if errors.Is(err, convert.ErrUnsupported) {
				break // what we do not know does not matter, errors we do
			}
			return fmt.Errorf("answer of converter %v: %w", c.RemoteAddr(), err)
		}
		k, err := c.Read(buf[len(buf):n])
		buf = buf[:len(buf)+k]
		if err != nil {
			return fmt.Errorf("wait for the answer of converter %v: %w", c.RemoteAddr(), err)
		}
	}
	if m.Has&convert.HasError != 0 {
		return converterError(&m)
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// converterError turns the codes about the destination into what the client
// shall see.
func converterError(m *convert.Message) error {
	switch m.Code {
	case convert.CodeReset:
		return &transparent.ConnectError{Errno: unix.ECONNREFUSED}
	case convert.CodeNetwork:
		return &transparent.ConnectError{Errno: unix.ETIMEDOUT}
	case convert.CodeUnreachable:
		e := &transparent.ConnectError{Errno: unix.EHOSTUNREACH, ICMP: true, ICMPType: 3}
		if len(m.Value) > 0 {
			e.ICMPCode = m.Value[0]
		}
		if e.ICMPCode == 0 {
			e.Errno = unix.ENETUNREACH
		}
		return e
	}
	return m.Code
}

// Status describes all peers, sorted by name.
func (d *Dialer) Status() []PeerStatus {
	d.mu.Lock()
	var out []PeerStatus
	for _, p := range d.peers {
		s := p.status
		s.Target = p.pool.target
		out = append(out, s)
	}
	d.mu.Unlock()
	for i := range out {
		out[i].Trunks, _ = d.trunks.count(out[i].Name, time.Time{})
		out[i].Idle = d.o.Engine.Idle(out[i].Name)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}
