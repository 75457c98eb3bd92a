package stream

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// peer is one gateway at the other end of trunks, in one role: those that we
// dialled and those that it dialled are apart.
type peer struct {
	e    *Engine
	name string
	near bool

	heard atomic.Int64 // when something came on any trunk, to a tenth of a second

	mu     sync.Mutex
	trunks int
	idle   []idleList // per loop
	wait   [][]*Flow  // per loop, first come first served
	flows  map[uint64]*Flow
}

// idleList holds idle trunks, the one used last at the head: its congestion
// window is warm and its paths were just seen to work.
type idleList struct {
	head, tail *trunk
	n          int
}

func (p *peer) list(t *trunk) {
	q := &p.idle[t.l.id]
	t.listed, t.prev, t.next = true, nil, q.head
	if q.head != nil {
		q.head.prev = t
	} else {
		q.tail = t
	}
	q.head = t
	q.n++
}

func (p *peer) unlist(t *trunk) {
	q := &p.idle[t.l.id]
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		q.head = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		q.tail = t.prev
	}
	t.listed, t.prev, t.next = false, nil, nil
	q.n--
}

// take unlists an idle trunk, best one of loop l; p.mu is held.
func (p *peer) take(l *loop) *trunk {
	t := p.idle[l.id].head
	if t == nil {
		for i := range p.idle {
			if t = p.idle[i].head; t != nil {
				break
			}
		}
	}
	if t != nil {
		p.unlist(t)
	}
	return t
}

// offer gives an idle trunk to the flow that has waited longest, first of its
// own loop, or lists it. It runs on the trunk's loop.
func (p *peer) offer(t *trunk) {
	for {
		p.mu.Lock()
		f := p.waiter(t.l.id)
		own := f != nil
		for i := range p.wait {
			if f == nil {
				f = p.waiter(i)
			}
		}
		if f == nil {
			p.list(t)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		if !own {
			t.move(f.l, f)
			return
		}
		if f.waiting && !f.done && f.t == nil {
			f.granted(t)
			return
		}
	}
}

func (p *peer) waiter(loop int) *Flow {
	q := p.wait[loop]
	if len(q) == 0 {
		return nil
	}
	f := q[0]
	q[0] = nil
	p.wait[loop] = q[1:]
	if len(q) == 1 {
		p.wait[loop] = nil
	}
	return f
}

// hear notes a sign of life. It is called for each read: the loops must not
// fight over the word.
func (p *peer) hear(now int64) {
	if now-p.heard.Load() > int64(100*time.Millisecond) {
		p.heard.Store(now)
	}
}

// need tells the dialler that trunks get short.
func (p *peer) need() {
	if cb := p.e.o.NeedTrunk; p.near && cb != nil {
		cb(p.name)
	}
}

// short tells whether flows wait for trunks.
func (p *peer) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wait {
		if len(w) > 0 {
			return true
		}
	}
	return false
}

// choose picks the loop of a new flow: one that has an idle trunk.
func (p *peer) choose() *loop {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.e.loops)
	from := int(p.e.turn.Add(1)) % n
	for i := range n {
		if k := (from + i) % n; p.idle[k].n > 0 {
			return p.e.loops[k]
		}
	}
	return p.e.loops[from]
}

// tick looks after the idle trunks of a loop and the flows that wait there.
func (p *peer) tick(l *loop) {
	var ping, stale []*trunk
	p.mu.Lock()
	q := &p.idle[l.id]
	for t := q.tail; t != nil; t = t.prev {
		switch since := l.now - max(t.last, t.idleSince); {
		case t.pinged != 0 && l.now-t.pinged > int64(pingTime):
			stale = append(stale, t)
		case t.pinged == 0 && since > int64(pingIdle):
			ping = append(ping, t)
		case p.near && since < int64(pingIdle) && q.n-len(stale) > p.e.o.IdleMax && t.pinged == 0 && l.now-t.idleSince > int64(p.e.o.IdleTime):
			t.surplus = true
			stale = append(stale, t)
		}
	}
	var late []*Flow
	for len(p.wait[l.id]) > 0 {
		f := p.wait[l.id][0]
		if f.waiting && !f.done && f.t == nil && (f.begun || l.now-f.parkedAt < int64(p.e.o.OpenTimeout)) {
			break
		}
		late = append(late, p.waiter(l.id))
	}
	p.mu.Unlock()
	for _, t := range ping {
		t.ping()
	}
	for _, t := range stale {
		if t.surplus {
			t.kill(nil)
		} else {
			t.kill(ErrStale)
		}
	}
	for _, f := range late {
		if f.waiting && !f.done && f.t == nil {
			f.waiting = false
			f.drop(fmt.Errorf("%w %s within %v: %w", ErrNoTrunk, p.name, time.Duration(p.e.o.OpenTimeout), unix.ETIMEDOUT))
		}
	}
	l.flush()
}
