package datagram

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Session is one carrier of datagrams to one peer. Its methods may be called
// from any goroutine.
type Session struct {
	e        *Endpoint
	peer     string
	crypt    *crypt
	previous atomic.Pointer[Session]
	next     atomic.Pointer[Session] // has replaced this one
	up       atomic.Bool             // a path is alive

	deliver sync.Mutex // held while payloads are handed out; taken before mu
	byClass [8][][]byte

	mu     sync.Mutex
	core   *core
	dirty  []*conn // with packets to send
	wakeAt time.Duration
	begun  bool

	wakeup chan struct{}
	done   context.Context
	cancel context.CancelFunc
}

// Peer returns the name of the peer.
func (s *Session) Peer() string { return s.peer }

// Near tells whether this end knows the paths.
func (s *Session) Near() bool { return s.core.near }

// emit takes a packet of the core; s.mu is held.
func (s *Session) emit(p *path, k packet) {
	c, _ := p.sock.(*conn)
	if c == nil {
		giveBuffer(k.buf)
		return
	}
	if len(c.pending) == 0 {
		s.dirty = append(s.dirty, c)
	}
	c.pending = append(c.pending, k)
}

// unlock ends a section under s.mu in which packets may have been emitted, and
// sends them.
func (s *Session) unlock() {
	dirty := s.dirty
	s.dirty = nil
	s.mu.Unlock()
	for _, c := range dirty {
		s.flush(c)
	}
}

// start begins the session's own goroutine; e.mu is held.
func (s *Session) start() {
	if s.begun {
		return
	}
	s.e.work.Add(1)
	go func() {
		defer s.e.work.Done()
		s.loop()
	}()
	s.mu.Lock()
	s.begun = true
	for _, p := range s.core.paths {
		if c, _ := p.sock.(*conn); c != nil && !c.served {
			c.served = true
			s.e.serve(c)
		}
	}
	s.mu.Unlock()
}

// loop calls the core when something is due.
func (s *Session) loop() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-s.done.Done():
			s.finish()
			return
		case <-t.C:
		case <-s.wakeup:
		}
		s.deliver.Lock()
		s.mu.Lock()
		now := s.e.now()
		for _, p := range s.core.paths {
			if p.gone != nil && s.core.near && now >= p.reopen {
				s.openPath(now, p)
			}
		}
		s.wakeAt = s.core.run(now)
		t.Reset(max(0, s.wakeAt-now))
		events := s.takeEvents()
		out := s.takeOut()
		s.unlock()
		s.handOut(out)
		s.deliver.Unlock()
		s.report(events)
	}
}

// poke wakes the loop if the core is due earlier than it knows; s.mu is held.
func (s *Session) poke(now time.Duration) { s.wake(s.core.wake(now)) }

// wake wakes the loop if it is due at a time earlier than it knows.
func (s *Session) wake(at time.Duration) {
	if len(s.core.events) > 0 || at < s.wakeAt {
		s.wakeAt = 0 // once is enough
		select {
		case s.wakeup <- struct{}{}:
		default:
		}
	}
}

// takeEvents takes what is to be reported; s.mu is held.
func (s *Session) takeEvents() []event {
	ev := s.core.events
	s.core.events = nil
	s.up.Store(s.core.anyAlive())
	return ev
}

func (s *Session) report(events []event) {
	for _, ev := range events {
		if s.e.o.OnPath != nil {
			s.e.o.OnPath(s.peer, ev.name, ev.alive, ev.rtt)
		}
		if ev.alive {
			s.e.log.Info("datagram path alive", "peer", s.peer, "path", ev.name, "rtt", ev.rtt)
			if old := s.previous.Swap(nil); old != nil {
				old.retire(time.Second)
			}
		} else {
			s.e.log.Warn("datagram path dead", "peer", s.peer, "path", ev.name)
		}
	}
}

// takeOut takes the payloads to hand out; s.mu and s.deliver are held.
func (s *Session) takeOut() []delivery {
	out := s.core.in.out
	s.core.in.out = out[len(out):]
	s.core.delivered += uint64(len(out))
	if cap(s.core.in.out) == 0 {
		s.core.in.out = nil
	}
	return out
}

// handOut gives payloads to their users; s.deliver is held, s.mu is not.
func (s *Session) handOut(out []delivery) {
	if len(out) == 0 {
		return
	}
	for i := range out {
		c := out[i].class & 7
		s.byClass[c] = append(s.byClass[c], out[i].data)
	}
	for c := range s.byClass {
		if b := s.byClass[c]; len(b) > 0 {
			if f := s.e.handlers[c]; f != nil {
				f(s, b)
			}
			clear(b)
			s.byClass[c] = b[:0]
		}
	}
	for i := range out {
		if out[i].buf != nil {
			giveBuffer(out[i].buf)
		}
	}
}

// receive takes authentic packets that came in on c.
func (s *Session) receive(now time.Duration, c *conn, batch []datagram) {
	s.deliver.Lock()
	s.mu.Lock()
	if s.done.Err() != nil {
		s.mu.Unlock()
		s.deliver.Unlock()
		return
	}
	for i := range batch {
		d := &batch[i]
		p := s.core.path(d.h.path)
		if p == nil {
			// The near end knows its paths, the far end learns them.
			if s.core.near || len(s.core.paths) >= maxPaths {
				continue
			}
			p = s.core.addPath(d.h.path, now)
			if old := s.previous.Load(); old != nil {
				old.mu.Lock()
				if o := old.core.path(p.id); o != nil {
					p.inherit(o)
				}
				old.mu.Unlock()
			}
		}
		_, latest := s.core.receive(now, d.arrival, p, &d.h, d.body, d.n)
		if latest && !s.core.near && (p.sock == nil || p.remote != d.from || p.local.Addr() != d.local) {
			s.learn(now, p, d.from, d.local)
		}
	}
	// What is sent now carries this time: not that before a wait for the locks.
	s.wake(s.core.run(s.e.now()))
	out := s.takeOut()
	s.unlock()
	s.handOut(out)
	s.deliver.Unlock()
}

// learn makes the socket of a far session's path; s.mu is held.
func (s *Session) learn(now time.Duration, p *path, from netip.AddrPort, local netip.Addr) {
	if now < p.reopen && p.gone != nil {
		return
	}
	c, err := s.e.open(netip.AddrPortFrom(local, s.e.o.Port), from, "")
	if err != nil {
		p.reopen = now + time.Second
		s.core.fail(now, p, err)
		s.e.log.Warn("datagram path cannot be answered", "peer", s.peer, "path", p.name, "error", err)
		return
	}
	c.s = s
	if old, _ := p.sock.(*conn); old != nil {
		s.drop(old)
	}
	p.setAddrs(c.local, from)
	if f := s.e.o.NamePath; f != nil {
		p.alias = f(s.peer, local, from)
	}
	s.attach(now, p, c)
}

// openPath makes the socket of a near session's path; s.mu is held.
func (s *Session) openPath(now time.Duration, p *path) {
	if old, _ := p.sock.(*conn); old != nil {
		s.drop(old)
		p.sock = nil
	}
	c, err := s.e.open(netip.AddrPortFrom(p.conf.Local, 0), p.conf.Remote, p.conf.Device)
	if err != nil {
		if p.gone == nil {
			s.e.log.Warn("datagram path cannot be opened", "peer", s.peer, "path", p.name, "error", err)
		}
		p.reopen = now + time.Second
		s.core.fail(now, p, err)
		return
	}
	c.s = s
	p.setAddrs(c.local, p.conf.Remote)
	p.gone = nil
	s.attach(now, p, c)
}

func (s *Session) attach(now time.Duration, p *path, c *conn) {
	c.p = p
	p.sock = c
	p.gone = nil
	s.core.setGoal(p, c.payloadMTU())
	p.nextProbe = now
	if s.begun {
		c.served = true
		s.e.serve(c)
	}
}

// drop closes a socket that is no longer that of a path; s.mu is held.
func (s *Session) drop(c *conn) {
	for _, k := range c.pending {
		giveBuffer(k.buf)
	}
	c.pending = nil
	c.close()
}

// SetPaths replaces the paths of a near session; a path that stays the same
// keeps its state.
func (s *Session) SetPaths(conf []Path) {
	if !s.core.near {
		return
	}
	if n := s.next.Load(); n != nil {
		n.SetPaths(conf)
	}
	s.mu.Lock()
	now := s.e.now()
	if s.done.Err() == nil {
		fresh, gone := s.core.setPaths(now, conf)
		for _, p := range gone {
			if c, _ := p.sock.(*conn); c != nil {
				s.drop(c)
				p.sock = nil
			}
		}
		old := s.previous.Load()
		for _, p := range fresh {
			if old != nil {
				old.mu.Lock()
				if o := old.core.path(p.id); o != nil && o.conf.Remote == p.conf.Remote && o.conf.Local == p.conf.Local {
					p.inherit(o)
				}
				old.mu.Unlock()
			}
			s.openPath(now, p)
		}
		s.poke(now)
	}
	s.unlock()
}

// Send queues one payload, given in pieces, and sends what may go now. flow is
// any hash of the flow that the payload belongs to: payloads of the same flow
// stay in order. The payload is copied. It fails with ErrNoPath while no path
// is alive; a payload that is dropped later is only counted.
func (s *Session) Send(flow uint32, c Class, payload ...[]byte) error {
	err := s.Queue(flow, c, payload...)
	s.Flush()
	return err
}

// Queue is Send without sending: follow a batch of them by one Flush.
func (s *Session) Queue(flow uint32, c Class, payload ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done.Err() != nil {
		return ErrClosed
	}
	return s.core.enqueue(s.e.now(), flow, c&7, payload)
}

// Flush sends what was queued and may go now.
func (s *Session) Flush() {
	s.mu.Lock()
	if s.done.Err() == nil {
		now := s.e.now()
		s.core.pump(now)
		s.poke(now)
	}
	s.unlock()
}

// flush seals and sends the packets that wait for c.
func (s *Session) flush(c *conn) {
	c.txMu.Lock()
	s.mu.Lock()
	c.batch, c.pending = c.pending, c.batch[:0]
	s.mu.Unlock()
	err := c.send(s.crypt)
	gone := c.gone
	c.gone = err != nil && !errors.Is(err, unix.EMSGSIZE)
	c.txMu.Unlock()
	if err == nil && !gone {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.p == nil || c.p.sock != c || s.done.Err() != nil {
		return
	}
	now := s.e.now()
	switch {
	case err == nil:
		s.core.fail(now, c.p, nil)
	case errors.Is(err, unix.EMSGSIZE):
		s.core.tooLarge(c.p, c.payloadMTU())
	default:
		if c.p.gone == nil {
			s.e.log.Warn("datagram path cannot send", "peer", s.peer, "path", c.p.name, "error", err)
		}
		c.p.reopen = now + time.Second
		s.core.fail(now, c.p, err)
	}
	s.poke(now)
}

// SetActive asks for fast liveness probes, for instance while TCP is busy on
// the same paths. A session that carries datagrams is active by itself.
func (s *Session) SetActive(active bool) {
	if n := s.next.Load(); n != nil {
		n.SetActive(active)
	}
	s.mu.Lock()
	if s.core.told != active {
		s.core.told = active
		now := s.e.now()
		for _, p := range s.core.paths {
			p.nextProbe = min(p.nextProbe, now)
		}
		s.poke(now)
	}
	s.unlock()
}

// SetOtherRate tells what other traffic between the two gateways (TCP)
// delivers on a path, in bytes/s, so that both get a fair share of it.
func (s *Session) SetOtherRate(path string, rate float64) {
	if n := s.next.Load(); n != nil {
		n.SetOtherRate(path, rate)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.core.paths {
		if p.name == path || p.alias == path {
			p.other = rate
		}
	}
}

// Alive tells whether any path of the session is alive.
func (s *Session) Alive() bool { return s.up.Load() }

// Stats returns the figures of the session and of its paths.
func (s *Session) Stats() SessionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.core.stats(s.e.now())
	st.Peer = s.peer
	return st
}

// Close ends the session.
func (s *Session) Close() {
	s.e.mu.Lock()
	s.e.replaceSessions(func(m map[uint64]*Session) {
		if m[s.core.id] == s {
			delete(m, s.core.id)
		}
	})
	if k := (peerSide{s.peer, s.core.near}); s.e.current[k] == s {
		delete(s.e.current, k)
	}
	s.mu.Lock()
	begun := s.begun
	s.begun = true // not to be started any more
	s.mu.Unlock()
	s.e.mu.Unlock()
	s.cancel()
	if !begun {
		s.finish()
	}
}

// retire closes the session after d, unless the endpoint ends before.
func (s *Session) retire(d time.Duration) {
	t := time.AfterFunc(d, s.Close)
	context.AfterFunc(s.done, func() { t.Stop() })
}

// finish frees what the session holds, once it is cancelled.
func (s *Session) finish() {
	s.mu.Lock()
	s.core.close()
	for _, p := range s.core.paths {
		if c, _ := p.sock.(*conn); c != nil {
			s.drop(c)
			p.sock = nil
		}
	}
	s.dirty = nil
	ev := s.takeEvents()
	s.up.Store(false)
	s.mu.Unlock()
	// A session that another one has replaced tells nothing about the path.
	s.e.mu.Lock()
	cur := s.e.current[peerSide{s.peer, s.core.near}]
	s.e.mu.Unlock()
	if cur == nil {
		s.report(ev)
	}
}
