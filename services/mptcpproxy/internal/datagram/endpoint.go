package datagram

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

// overlap is how long a session goes on beside the one that replaces it.
const overlap = 3 * time.Second

// Endpoint owns the sockets and the sessions of one gateway.
type Endpoint struct {
	o         Options
	log       *slog.Logger
	epoch     time.Time
	listeners []*conn
	handlers  [8]func(*Session, [][]byte)

	ctx    context.Context // ends with Run
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	running  bool
	closed   bool
	sessions atomic.Pointer[map[uint64]*Session] // copied on write, under mu
	current  map[peerSide]*Session

	unknown, forged, malformed atomic.Uint64

	clock clock
}

// clock turns the kernel's stamps, which are of the wall clock, into the time
// of the endpoint. Of the differences between the two clocks the smallest
// counts: one that was taken while this thread had to wait between reading one
// and the other is too large.
type clock struct {
	mu        sync.Mutex
	cur, prev time.Duration
	until     time.Duration
}

// note takes a reading of both clocks.
func (c *clock) note(now time.Duration, t time.Time) {
	d := now - time.Duration(t.UnixNano())
	c.mu.Lock()
	switch {
	case c.until == 0:
		c.cur, c.prev, c.until = d, d, now+time.Second
	case now >= c.until: // follow a clock that was set back within two seconds
		c.prev, c.cur, c.until = c.cur, d, now+time.Second
	default:
		c.cur = min(c.cur, d)
	}
	c.mu.Unlock()
}

// arrival is the time of a stamp, now if it makes no sense.
func (c *clock) arrival(now time.Duration, stamp time.Time) time.Duration {
	c.mu.Lock()
	at := time.Duration(stamp.UnixNano()) + min(c.cur, c.prev)
	c.mu.Unlock()
	if at > now || now-at > time.Second {
		return now
	}
	return at
}

type peerSide struct {
	peer string
	near bool
}

// Listen opens the listening socket of o.Port. Nothing is sent or received
// before Run.
func Listen(o Options) (*Endpoint, error) {
	if o.Socket == nil {
		o.Socket = unix.Socket
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Endpoint{o: o, log: o.Log, epoch: time.Now(), current: map[peerSide]*Session{}}
	e.sessions.Store(&map[uint64]*Session{})
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if o.Port != 0 {
		c, err := e.open(netip.AddrPort{}, netip.AddrPort{}, "")
		if err != nil {
			return nil, fmt.Errorf("listen on UDP port %d: %w", o.Port, err)
		}
		e.listeners = append(e.listeners, c)
	}
	return e, nil
}

// now is the time since the start of the endpoint.
func (e *Endpoint) now() time.Duration { return time.Since(e.epoch) }

// Run serves all sessions until ctx ends, then closes every socket.
func (e *Endpoint) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.running || e.closed {
		e.mu.Unlock()
		return errors.New("datagram endpoint: Run may be called once")
	}
	e.running = true
	for _, c := range e.listeners {
		e.serve(c)
	}
	for _, s := range *e.sessions.Load() {
		s.start()
	}
	e.mu.Unlock()
	<-ctx.Done()

	e.mu.Lock()
	e.closed = true
	all := *e.sessions.Load()
	e.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
	e.cancel()
	for _, c := range e.listeners {
		c.close()
	}
	e.work.Wait()
	return nil
}

// Handle sets the function that takes the payloads of one class, in order for
// each flow of a session. It is called by one goroutine a session at a time;
// the slices are valid until it returns. Set it before Run.
func (e *Endpoint) Handle(c Class, f func(s *Session, payloads [][]byte)) { e.handlers[c&7] = f }

// AddSession adds a session with the identity and key that both gateways
// agreed on; near is true on the gateway that knows the paths. A session of
// the same peer and side is replaced: the old one goes on until the new one
// has heard the peer, at most for 3 s, and its paths go over to the new one.
func (e *Endpoint) AddSession(peer string, near bool, id uint64, key [32]byte, encrypt bool) *Session {
	cr, err := newCrypt(key, id, near, encrypt)
	if err != nil {
		// Only a Go that refuses AES-GCM altogether (FIPS settings) comes here.
		e.log.Error("datagram session without cipher", "peer", peer, "error", err)
	}
	s := &Session{e: e, peer: peer, crypt: cr, wakeup: make(chan struct{}, 1)}
	s.core = newCore(near, id, e.o.Reorder, e.o.Duplicate, e.now(), s.emit)
	s.done, s.cancel = context.WithCancel(e.ctx)

	e.mu.Lock()
	old := e.current[peerSide{peer, near}]
	if old != nil && old.core.id == id {
		e.mu.Unlock()
		s.cancel()
		return old
	}
	s.previous.Store(old)
	e.current[peerSide{peer, near}] = s
	e.replaceSessions(func(m map[uint64]*Session) { m[id] = s })
	if e.closed || cr == nil {
		s.cancel()
	} else if e.running {
		s.start()
	}
	e.mu.Unlock()
	if old != nil {
		old.mu.Lock()
		var conf []Path
		for _, p := range old.core.paths {
			conf = append(conf, p.conf)
		}
		told := old.core.told
		old.mu.Unlock()
		s.SetActive(told)
		if near {
			s.SetPaths(conf)
		}
		old.next.Store(s)
		old.retire(overlap)
	}
	return s
}

// replaceSessions changes a copy of the table of sessions; e.mu is held.
func (e *Endpoint) replaceSessions(change func(map[uint64]*Session)) {
	m := map[uint64]*Session{}
	for id, s := range *e.sessions.Load() {
		m[id] = s
	}
	change(m)
	e.sessions.Store(&m)
}

// Session returns the session with a peer that packets should be sent on, or
// nil if there is none: of the side that near tells, the newest one that has
// a living path.
func (e *Endpoint) Session(peer string, near bool) *Session {
	e.mu.Lock()
	s := e.current[peerSide{peer, near}]
	e.mu.Unlock()
	if s == nil || s.up.Load() {
		return s
	}
	if old := s.previous.Load(); old != nil && old.up.Load() {
		return old
	}
	return s
}

// Update changes reorder window and duplicate mode of all sessions.
func (e *Endpoint) Update(reorder time.Duration, d Duplicate) {
	e.mu.Lock()
	e.o.Reorder, e.o.Duplicate = reorder, d
	all := *e.sessions.Load()
	e.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		s.core.setWindow(reorder)
		s.core.duplicate = d
		s.mu.Unlock()
	}
}

// Stats returns what belongs to no session.
func (e *Endpoint) Stats() EndpointStats {
	return EndpointStats{Unknown: e.unknown.Load(), Forged: e.forged.Load(), Malformed: e.malformed.Load()}
}

// Sessions returns the figures of all sessions.
func (e *Endpoint) Sessions() []SessionStats {
	var all []SessionStats
	for _, s := range *e.sessions.Load() {
		all = append(all, s.Stats())
	}
	return all
}

// datagram is one authentic packet out of a batch.
type datagram struct {
	h       header
	body    []byte
	n       int
	arrival time.Duration
	from    netip.AddrPort
	local   netip.Addr
	index   int
}

// serve reads from c until it is closed. It must be called with e.mu held or
// by a goroutine that e.work counts.
func (e *Endpoint) serve(c *conn) {
	e.work.Add(1)
	go func() {
		defer e.work.Done()
		r := mmsg.NewReader(receiveBatch, receiveSize)
		var batch []datagram
		for {
			n, err := c.read(r)
			if err != nil {
				return
			}
			batch = e.handleBatch(c, r, n, batch[:0])
		}
	}()
}

// handleBatch authenticates what was read and hands it to the sessions.
func (e *Endpoint) handleBatch(c *conn, r *mmsg.Reader, n int, batch []datagram) []datagram {
	t := time.Now()
	now := t.Sub(e.epoch)
	e.clock.note(now, t)
	table := *e.sessions.Load()
	var s *Session
	var non [12]byte
	for i := range n {
		m := r.Message(i)
		arrival := now
		if !m.Stamp.IsZero() {
			arrival = e.clock.arrival(now, m.Stamp)
		}
		from, local := m.From, m.Local
		if c.remote.IsValid() {
			from, local = c.remote, c.local.Addr()
		}
		for b := m.Data; len(b) > 0; {
			d := b
			if m.Segment > 0 && m.Segment < len(b) {
				d = b[:m.Segment]
			}
			b = b[len(d):]
			h, err := parseHeader(d)
			if err != nil {
				e.malformed.Add(1)
				continue
			}
			t := table[h.session]
			if t == nil {
				e.unknown.Add(1)
				continue
			}
			if t != s {
				if len(batch) > 0 {
					s.receive(now, c, batch)
					batch = batch[:0]
				}
				s = t
			}
			body, err := s.crypt.openPacket(&h, d, &non)
			if err != nil {
				e.forged.Add(1)
				continue
			}
			batch = append(batch, datagram{h: h, body: body, n: len(d), arrival: arrival, from: from, local: local, index: m.Index})
		}
	}
	if len(batch) > 0 {
		s.receive(now, c, batch)
	}
	return batch
}
