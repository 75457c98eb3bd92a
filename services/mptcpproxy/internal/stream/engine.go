package stream

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options sets an engine up. The zero value of a number takes the default
// named beside it.
type Options struct {
	// Loops is the number of epoll loops, each a goroutine
	// (default: the number of CPUs, at most 4).
	Loops int
	// FlowBuffer bounds what is held back for one direction of one flow, in
	// bytes (default 1 MiB). At the bound the source is not read any more.
	FlowBuffer int
	// MemoryMax bounds what all flows together hold back, in bytes
	// (default 64 MiB).
	MemoryMax int
	// ParkIdle is how long a flow has been idle both ways before it gives its
	// trunk back (default 10 s; negative: never).
	ParkIdle time.Duration
	// AskIdle is how long a flow sleeps before it asks whether the peer still
	// knows it (default 10 min; negative: never). A gateway that died, or lost
	// its memory of the flow in any other way, has its hosts' connections
	// reset after that time at the latest.
	AskIdle time.Duration
	// NotSentLowat is TCP_NOTSENT_LOWAT of trunks, in bytes (0: left alone).
	NotSentLowat int
	// KeepAlive is the idle time before TCP keepalive probes a host, so that
	// a vanished one is noticed (default 2 h, as RFC 1122 asks; negative: off).
	KeepAlive time.Duration
	// MaxFlows bounds the flows at once (default 50,000). Above it a new one
	// is refused.
	MaxFlows int
	// OpenTimeout is how long a new flow waits for a trunk (default 10 s).
	OpenTimeout time.Duration
	// IdleMax and IdleTime: idle trunks above that number (for each loop and
	// peer that we dial) are closed once unused for that long (default 16, 60 s).
	IdleMax  int
	IdleTime time.Duration
	Log      *slog.Logger

	// Connect (far side) starts a non-blocking connection to dst, from src
	// where that is possible, and returns its socket. An error is sent back
	// in OPEN-FAILED. It is called from a loop and must not block.
	Connect func(src, dst netip.AddrPort, peer string) (fd int, err error)
	// Finish (far side) tells how a connection ended, once its socket is
	// writable or failed: nil or an error, best a *transparent.ConnectError.
	Finish func(fd int) error
	// Allow (far side) may refuse a flow before anything is connected.
	Allow func(peer string, src, dst netip.AddrPort) error
	// Closed is called from a loop when a flow has ended. It must not block.
	Closed func(FlowStat)
	// NeedTrunk (near side) is called from any goroutine when a flow to peer
	// waits for a trunk or the last idle one was taken. It must not block.
	NeedTrunk func(peer string)
	// TrunkClosed is called just before the socket of a trunk is closed, with
	// the reason (nil: in the ordinary way). It must not block.
	TrunkClosed func(t Trunk, err error)
	// TrunkBusy is called when a trunk begins (true) or ends (false) to carry
	// a flow. It must not block.
	TrunkBusy func(t Trunk, busy bool)
	// RawClosed is called once for each Raw, when the engine is about to close
	// the carrier's socket. It must not block.
	RawClosed func(fd int, peer string)
}

// Trunk is one authenticated connection between two gateways, handed to the
// engine, which owns the socket from then on.
type Trunk struct {
	FD   int    // connected socket, TCP or MPTCP
	Peer string // name of the gateway at the other end
	Near bool   // we dialled it: we may open flows on it
	// Seal and Open protect every frame when both are set (AES-GCM or
	// ChaCha20-Poly1305, 12 byte nonces); nil: frames go in the clear. The
	// nonce is the salt, its last 8 bytes XORed with the frame's number.
	Seal, Open         cipher.AEAD
	SaltSeal, SaltOpen [12]byte
	ID                 uint64 // chosen by the caller, for logs and callbacks
}

// FlowStat describes one flow.
type FlowStat struct {
	ID       uint64
	Peer     string
	Near     bool // the client is on our side
	Raw      bool // relayed byte for byte, not framed
	Src, Dst netip.AddrPort
	State    string // connecting, open, half-closed, parked, closed
	Opened   time.Time
	Ended    time.Time // zero while it lives
	// ToPeer and FromPeer count payload bytes: host to trunk, trunk to host.
	ToPeer, FromPeer uint64
	Buffered         int    // bytes held back now, both directions
	Trunk            uint64 // Trunk.ID of the one in use
	Err              error  // why it ended; nil: both sides closed
}

// Stats counts what the engine did since it was made.
type Stats struct {
	Flows, Parked       int    // now
	Trunks, Idle        int    // now
	Buffered            int    // bytes held back now
	Opened, Failed      uint64 // flows: established, not established
	Reset, Ended        uint64 // flows: ended by a reset, ended in all
	Retried             uint64 // OPEN sent again on another trunk
	Parks, Resumes      uint64
	Collisions          uint64 // both sides took the same trunk
	TrunksAdded         uint64
	TrunksLost          uint64 // trunks that ended with an error
	TrunkReuses         uint64 // flows begun on a trunk used before
	ToPeer, FromPeer    uint64 // payload bytes
	Stalled             uint64 // times a source was not read for want of room
	AuthFailed, Refused uint64 // frames that did not verify; flows refused by Allow or a limit
}

// Engine carries flows between hosts and trunks. Make one with New, then
// call Run; the other methods may be called from any goroutine.
type Engine struct {
	o     Options
	loops []*loop

	flows    atomic.Int64
	buffered atomic.Int64
	turn     atomic.Uint32
	nextID   atomic.Uint64
	draining atomic.Bool
	waiting  atomic.Int64  // Drain's callers
	empty    chan struct{} // a token when the last flow has ended
	quit     atomic.Bool
	files    int           // that the process may have open
	tickBusy time.Duration // set before Run
	tickIdle time.Duration
	ran      atomic.Bool

	mu    sync.Mutex
	peers map[peerKey]*peer
	list  []*peer
}

type peerKey struct {
	name string
	near bool
}

// counters are those of one loop.
type counters struct {
	opened, failed, reset, ended, retried, parks, resumes, collisions atomic.Uint64
	added, lost, reuses, toPeer, fromPeer, stalled, authFailed        atomic.Uint64
	refused                                                           atomic.Uint64
	parked                                                            atomic.Int64
}

// New checks the options and makes an engine. Nothing runs before Run.
func New(o Options) (*Engine, error) {
	number := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	span := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	number(&o.Loops, min(runtime.NumCPU(), 4))
	number(&o.FlowBuffer, 1<<20)
	number(&o.MemoryMax, 64<<20)
	number(&o.MaxFlows, 50000)
	number(&o.IdleMax, 16)
	span(&o.ParkIdle, 10*time.Second)
	span(&o.AskIdle, 10*time.Minute)
	span(&o.KeepAlive, 2*time.Hour)
	span(&o.OpenTimeout, 10*time.Second)
	span(&o.IdleTime, time.Minute)
	if o.FlowBuffer < readPressed {
		return nil, fmt.Errorf("flow buffer of %d bytes: at least %d are needed", o.FlowBuffer, readPressed)
	}
	if o.Connect != nil && o.Finish == nil {
		return nil, errors.New("stream: Options.Connect without Options.Finish")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{o: o, files: fileLimit(), peers: map[peerKey]*peer{}, tickBusy: tickBusy, tickIdle: tickIdle, empty: make(chan struct{}, 1)}
	var seed [8]byte
	rand.Read(seed[:])
	e.nextID.Store(binary.BigEndian.Uint64(seed[:]))
	for i := range o.Loops {
		l := &loop{e: e, id: i, ep: -1, wake: -1, raws: map[*rawFlow]struct{}{}, flows: map[*Flow]struct{}{}, trunk: map[*trunk]struct{}{}}
		l.parks.n = &l.count.parked
		e.loops = append(e.loops, l)
	}
	return e, nil
}

// Run serves until ctx ends, then resets the flows that are left, closes
// every socket and returns. It can be called once.
func (e *Engine) Run(ctx context.Context) error {
	if e.ran.Swap(true) {
		return errors.New("stream: the engine has run already")
	}
	for i, l := range e.loops {
		if err := l.open(); err != nil {
			for _, l := range e.loops[:i] {
				unix.Close(l.ep)
				unix.Close(l.wake)
			}
			return fmt.Errorf("starting a loop: %w", err)
		}
	}
	// A loop that works without a pause keeps a processor of the Go scheduler
	// for up to 10 ms; the probes and timers of others must not wait for it.
	if n := runtime.NumCPU() + len(e.loops); runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	failed := make(chan error, len(e.loops))
	for _, l := range e.loops {
		go func() {
			failed <- l.run()
		}()
	}
	var first error
	left := len(e.loops)
	select {
	case <-ctx.Done():
	case first = <-failed:
		left--
	}
	e.quit.Store(true)
	for _, l := range e.loops {
		l.post(func() {})
	}
	for ; left > 0; left-- {
		if err := <-failed; first == nil {
			first = err
		}
	}
	return first
}

func (e *Engine) peer(name string, near bool) *peer {
	k := peerKey{name, near}
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peers[k]
	if p == nil {
		p = &peer{e: e, name: name, near: near, idle: make([]idleList, len(e.loops)), wait: make([][]*Flow, len(e.loops)), flows: map[uint64]*Flow{}}
		e.peers[k] = p
		e.list = append(e.list, p)
	}
	return p
}

// all returns the peers known now; the slice is only ever appended to.
func (e *Engine) all() []*peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.list
}

func (e *Engine) next() *loop { return e.loops[int(e.turn.Add(1))%len(e.loops)] }

// AddTrunk hands a trunk over, together with its socket.
func (e *Engine) AddTrunk(tr Trunk) {
	p := e.peer(tr.Peer, tr.Near)
	t := &trunk{Trunk: tr, p: p, busyAt: -1, sealer: newSeal(tr.Seal, tr.SaltSeal), opener: newSeal(tr.Open, tr.SaltOpen)}
	t.end = end{fd: tr.FD, owner: t, readable: true, writable: true}
	t.l = e.next()
	p.mu.Lock()
	p.trunks++
	for i, w := range p.wait { // a flow that waits saves the way to its loop
		if len(w) > 0 {
			t.l = e.loops[i]
			break
		}
	}
	p.mu.Unlock()
	if !t.l.post(t.begun) {
		p.mu.Lock()
		p.trunks--
		p.mu.Unlock()
		e.trunkClosed(t, ErrClosed)
		resetFD(t.fd)
	}
}

// begun is AddTrunk on the trunk's loop.
func (t *trunk) begun() {
	l := t.l
	l.trunk[t] = struct{}{}
	l.count.added.Add(1)
	t.last = l.now
	setInt(t.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if n := l.e.o.NotSentLowat; n > 0 {
		setInt(t.fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
	}
	err := ErrClosed
	if !l.dead {
		err = l.watch(&t.end)
	}
	if err != nil {
		t.kill(err)
		return
	}
	t.release()
	l.requeue(&t.end)
}

// Idle tells how many trunks that we dialled to peer wait for a flow.
func (e *Engine) Idle(peer string) int {
	p := e.peer(peer, true)
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for i := range p.idle {
		n += p.idle[i].n
	}
	return n
}

// Probe asks every idle trunk to and from peer for a sign of life, and closes
// those that give none in time. Call it when a path has failed.
func (e *Engine) Probe(peer string) {
	for _, p := range e.all() {
		if p.name != peer {
			continue
		}
		for _, l := range e.loops {
			l.post(func() {
				if l.dead {
					return
				}
				for t := range l.trunk {
					if t.p == p && t.idle && t.pinged == 0 {
						t.ping()
					}
				}
			})
		}
	}
}

// DropPeer resets the flows that we opened to peer and that sleep or wait
// without a trunk: it has restarted and does not know them any more. Those of
// gateways that dialled us, of which several may have one name, ask after
// Options.AskIdle.
func (e *Engine) DropPeer(peer string) {
	for _, p := range e.all() {
		if p.name != peer || !p.near {
			continue
		}
		p.mu.Lock()
		left := make([]*Flow, 0, len(p.flows))
		for _, f := range p.flows {
			left = append(left, f)
		}
		p.mu.Unlock()
		for _, f := range left {
			f.l.post(func() {
				if f.t == nil && f.begun && !f.done {
					f.drop(fmt.Errorf("%w: the peer has restarted", ErrAborted))
				}
			})
		}
	}
}

// Open asks the far side to connect to dst for src, on an idle trunk to peer
// or on the first one that comes. result is called once from a loop: nil when
// the far side has connected, otherwise the reason, a
// *transparent.ConnectError where the sink or the network refused. It must not
// block. The flow waits for Attach.
func (e *Engine) Open(peer string, src, dst netip.AddrPort, result func(err error)) *Flow {
	p := e.peer(peer, true)
	f := &Flow{e: e, p: p, l: p.choose(), id: e.nextID.Add(1), src: src, dst: dst, near: true, result: result}
	f.host.fd, f.host.owner = -1, f
	p.mu.Lock()
	p.flows[f.id] = f
	p.mu.Unlock()
	if !f.l.post(f.begin) {
		f.over, f.done = true, true
		f.tell(ErrClosed)
	}
	return f
}

// Raw relays byte for byte between two connected sockets, a the host's and b
// the carrier's, after early has been written to b (that we have dialled b is
// told from early not being nil). Half-close and reset are kept. The engine
// owns both sockets from then on.
func (e *Engine) Raw(a, b int, peer string, early []byte) {
	l := e.next()
	f := &rawFlow{e: e, l: l, peer: peer, dial: early != nil}
	f.stats = FlowStat{ID: e.nextID.Add(1), Peer: peer, Near: f.dial, Raw: true, Src: peerAddr(a), Dst: localAddr(a), Opened: time.Now()}
	if !f.dial {
		f.stats.Src, f.stats.Dst = f.stats.Dst, f.stats.Src
	}
	if !l.post(func() { f.begin(a, b, early) }) {
		f.closing(b)
		resetFD(a)
		resetFD(b)
	}
}

// Listen takes a listening socket over and calls accepted from a loop for each
// connection, with its peer's and its own address (under TPROXY the original
// destination). accepted owns fd and must not block; it may call Open and Attach.
func (e *Engine) Listen(fd int, accepted func(fd int, src, dst netip.AddrPort)) {
	l := e.next()
	li := &listener{l: l, accepted: accepted}
	li.end = end{fd: fd, owner: li, readable: true}
	ok := l.post(func() {
		err := ErrClosed
		if !l.dead {
			unix.SetNonblock(fd, true)
			err = l.watch(&li.end)
		}
		if err != nil {
			e.o.Log.Error("listening", "err", err)
			closeFD(fd)
			return
		}
		l.lis = append(l.lis, li)
		l.requeue(&li.end)
	})
	if !ok {
		closeFD(fd)
	}
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	var s Stats
	for _, l := range e.loops {
		c := &l.count
		s.Opened += c.opened.Load()
		s.Failed += c.failed.Load()
		s.Reset += c.reset.Load()
		s.Ended += c.ended.Load()
		s.Retried += c.retried.Load()
		s.Parks += c.parks.Load()
		s.Resumes += c.resumes.Load()
		s.Collisions += c.collisions.Load()
		s.TrunksAdded += c.added.Load()
		s.TrunksLost += c.lost.Load()
		s.TrunkReuses += c.reuses.Load()
		s.ToPeer += c.toPeer.Load()
		s.FromPeer += c.fromPeer.Load()
		s.Stalled += c.stalled.Load()
		s.AuthFailed += c.authFailed.Load()
		s.Refused += c.refused.Load()
		s.Parked += int(c.parked.Load())
	}
	s.Flows = int(e.flows.Load())
	s.Buffered = int(e.buffered.Load())
	for _, p := range e.all() {
		p.mu.Lock()
		s.Trunks += p.trunks
		for i := range p.idle {
			s.Idle += p.idle[i].n
		}
		p.mu.Unlock()
	}
	return s
}

// Flows lists the flows that live. It is empty before and after Run.
func (e *Engine) Flows() []FlowStat {
	if !e.ran.Load() {
		return nil
	}
	var all []FlowStat
	for _, l := range e.loops {
		got := make(chan []FlowStat, 1)
		ok := l.post(func() {
			s := make([]FlowStat, 0, len(l.flows)+len(l.raws))
			for f := range l.flows {
				s = append(s, f.stat())
			}
			for f := range l.raws {
				s = append(s, f.stat())
			}
			got <- s
		})
		if ok {
			all = append(all, <-got...)
		}
	}
	return all
}

// Drain stops accepting and opening and returns when no flow is left, or
// ctx.Err once ctx ends.
func (e *Engine) Drain(ctx context.Context) error {
	e.draining.Store(true)
	e.waiting.Add(1)
	defer e.waiting.Add(-1)
	for e.flows.Load() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d flows left: %w", e.flows.Load(), ctx.Err())
		case <-e.empty:
		}
	}
	select { // wake the next of several callers
	case e.empty <- struct{}{}:
	default:
	}
	return nil
}

const (
	// filesElse is how many descriptors others need: listeners, logs, the
	// datagram sockets, connections that are being dialled.
	filesElse = 128
	// trunksFew is how many trunks are no burden however few descriptors there are.
	trunksFew = 64
)

// fileLimit is how many descriptors the process may have open.
func fileLimit() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<30))
}

// admit counts a new flow, and refuses it above the limit; the flow then ends
// as any other.
func (e *Engine) admit() error {
	n := e.flows.Add(1)
	if e.draining.Load() {
		return fmt.Errorf("%w: the proxy is about to stop: %w", ErrLimit, unix.EMFILE)
	}
	if n > int64(e.o.MaxFlows) {
		return fmt.Errorf("%w: there are %d: %w", ErrLimit, e.o.MaxFlows, unix.EMFILE)
	}
	return nil
}

// ended is the end of a flow that admit has counted.
func (e *Engine) ended(s FlowStat) {
	if e.flows.Add(-1) == 0 && e.waiting.Load() > 0 {
		select {
		case e.empty <- struct{}{}:
		default:
		}
	}
	if e.o.Closed != nil {
		e.o.Closed(s)
	}
}

func (e *Engine) trunkClosed(t *trunk, err error) {
	if err != nil && !t.l.dead && !(t.idle && !errors.Is(err, ErrProtocol)) {
		t.l.count.lost.Add(1)
		e.o.Log.Debug("trunk lost", "peer", t.Peer, "trunk", t.ID, "near", t.Near, "err", err)
	}
	if cb := e.o.TrunkClosed; cb != nil {
		cb(t.Trunk, err)
	}
}

// parkAfter is how long a flow to p may sit idle on its trunk: less, the more
// trunks there are, and next to nothing while others wait or descriptors run
// out. Negative: for ever.
func (e *Engine) parkAfter(p *peer) time.Duration {
	d := e.o.ParkIdle
	if d < 0 {
		return d
	}
	p.mu.Lock()
	n := p.trunks
	p.mu.Unlock()
	switch {
	case p.short() || e.pressed():
		return min(d, e.tickBusy)
	case n > 2048:
		return min(d, max(d/32, e.tickBusy))
	case n > 512:
		return d / 8
	}
	return d
}

// pressed tells that flows sleeping sooner is all that leaves descriptors for
// new ones: what the trunks hold is more than half of what is left.
func (e *Engine) pressed() bool {
	trunks := 0
	for _, p := range e.all() {
		p.mu.Lock()
		trunks += p.trunks
		p.mu.Unlock()
	}
	left := e.files - filesElse - trunks - int(e.flows.Load())
	return trunks > trunksFew && trunks > left/2
}

func (e *Engine) anyWaiting() bool {
	for _, p := range e.all() {
		if p.short() {
			return true
		}
	}
	return false
}

func (e *Engine) tick(l *loop) {
	for _, p := range e.all() {
		p.tick(l)
	}
}
