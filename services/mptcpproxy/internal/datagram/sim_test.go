package datagram

import (
	"container/heap"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A simulated network: two cores joined by paths, each direction a token
// bucket with a queue in front and a delay behind. Time is that of a heap of
// events; timers fire up to a millisecond late, as real ones do.
type sim struct {
	t      *testing.T
	now    time.Duration
	events eventHeap
	n      int
	rnd    *rand.Rand
	ends   [2]*simEnd // near, far
	links  [2][]*simLink
}

type simEvent struct {
	at time.Duration
	n  int
	f  func()
}

type eventHeap []simEvent

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].n < h[j].n
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(simEvent)) }
func (h *eventHeap) Pop() any {
	o := *h
	e := o[len(o)-1]
	*h = o[:len(o)-1]
	return e
}

type simEnd struct {
	s       *sim
	side    int
	c       *core
	offset  time.Duration // of its clock
	wake    time.Duration
	paused  time.Duration // does nothing until then
	got     []simGot
	events  []event
	eventAt []time.Duration
	backlog []func()
}

type simGot struct {
	flow, n uint32
	delay   time.Duration
	at      time.Duration
	size    int
}

// linkConf is one direction of a path.
type linkConf struct {
	rate  float64 // Mbit/s, counted with 14 bytes of Ethernet and 28 of headers; 0 = no limit
	burst int     // bytes
	queue time.Duration
	delay time.Duration
	loss  float64
	mtu   int // of IP packets, 0 = 1500
}

type simLink struct {
	linkConf
	s      *sim
	to     *simEnd
	id     uint8
	tokens float64
	at     time.Duration // of tokens
	free   time.Duration // when the queue is empty
	cut    bool
	drops  int
	bytes  int
}

// send puts a packet of ours on the link.
func (l *simLink) send(b []byte) {
	mtu := l.mtu
	if mtu == 0 {
		mtu = 1500
	}
	if l.loss > 0 && l.s.rnd.Float64() < l.loss || len(b)+28 > mtu {
		l.drops++
		return
	}
	n := len(b) + 42
	out, ok := l.transit(n)
	if !ok {
		l.drops++
		return
	}
	l.bytes += n
	l.s.after(out+l.delay-l.s.now, func() { l.to.arrive(l.id, b) })
}

// transit passes n bytes through the token bucket and tells when they leave it.
func (l *simLink) transit(n int) (out time.Duration, ok bool) {
	if l.cut {
		return 0, false
	}
	if l.rate == 0 {
		return l.s.now, true
	}
	// The queue drains at the rate; a bucket of tokens lets a burst pass at once.
	rate := l.rate * 1e6 / 8
	start := max(l.free, l.s.now)
	if start-l.s.now > l.queue {
		return 0, false
	}
	saved := min(float64(l.burst), l.tokens+(start-l.at).Seconds()*rate)
	l.at, out = start, start
	if saved >= float64(n) {
		l.tokens = saved - float64(n)
	} else {
		l.tokens = 0
		out = start + time.Duration((float64(n)-saved)/rate*1e9)
		l.at = out
	}
	l.free = out
	return out, true
}

func (s *sim) after(d time.Duration, f func()) {
	s.n++
	heap.Push(&s.events, simEvent{s.now + d, s.n, f})
}

func newSim(t *testing.T, paths ...linkConf) *sim {
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(1, 2))}
	for side := range 2 {
		e := &simEnd{s: s, side: side, offset: time.Duration(side)*4000*time.Second + 3*time.Second}
		s.ends[side] = e
		e.c = newCore(side == 0, 77, 0, DuplicateOff, e.clock(), e.emit)
	}
	var conf []Path
	for i, lc := range paths {
		for side := range 2 {
			s.links[side] = append(s.links[side], &simLink{linkConf: lc, s: s, to: s.ends[1-side], id: uint8(i), tokens: float64(lc.burst)})
		}
		conf = append(conf, Path{ID: uint8(i), Name: string(rune('a' + i))})
	}
	fresh, _ := s.ends[0].c.setPaths(s.ends[0].clock(), conf)
	for _, p := range fresh {
		s.ends[0].c.setGoal(p, 1500-28)
	}
	for _, e := range s.ends {
		e.run()
	}
	return s
}

func (e *simEnd) clock() time.Duration { return e.s.now + e.offset }

func (e *simEnd) emit(p *path, k packet) {
	b := append(slices.Clone(k.buf[k.lo:k.hi]), make([]byte, tagLen)...)
	giveBuffer(k.buf)
	e.s.links[e.side][p.id].send(b)
}

func (e *simEnd) arrive(id uint8, b []byte) {
	if e.s.now < e.paused {
		at := e.s.now // the kernel stamps what waits in the socket
		e.backlog = append(e.backlog, func() { e.arriveAt(id, b, at) })
		return
	}
	e.arriveAt(id, b, e.s.now)
}

func (e *simEnd) arriveAt(id uint8, b []byte, at time.Duration) {
	h, err := parseHeader(b)
	if err != nil {
		e.s.t.Fatalf("own packet: %v", err)
	}
	p := e.c.path(h.path)
	if p == nil {
		p = e.c.addPath(h.path, e.clock())
		e.c.setGoal(p, 1500-28)
	}
	e.c.receive(e.clock(), at+e.offset, p, &h, b[h.size():len(b)-tagLen], len(b))
	e.run()
}

func (e *simEnd) run() {
	if e.s.now < e.paused {
		return
	}
	next := e.c.run(e.clock())
	for _, d := range e.c.in.out {
		g := simGot{
			flow: binary.BigEndian.Uint32(d.data), n: binary.BigEndian.Uint32(d.data[4:]), at: e.s.now, size: len(d.data),
			delay: e.s.now - time.Duration(binary.BigEndian.Uint64(d.data[8:])),
		}
		e.got = append(e.got, g)
		giveBuffer(d.buf)
	}
	e.c.in.out = e.c.in.out[:0]
	for _, ev := range e.c.events {
		e.events = append(e.events, ev)
		e.eventAt = append(e.eventAt, e.s.now)
	}
	e.c.events = nil
	at := max(next, e.clock()) - e.offset
	if e.wake <= e.s.now || at < e.wake {
		e.wake = at
		late := time.Duration(e.s.rnd.Int64N(int64(time.Millisecond)))
		e.s.after(at-e.s.now+late, func() {
			if e.wake == at {
				e.wake = 0
				e.run()
			}
		})
	}
}

// pause stops an end for d, as a busy machine does.
func (e *simEnd) pause(d time.Duration) {
	e.paused = e.s.now + d
	e.s.after(d, func() {
		b := e.backlog
		e.backlog = nil
		for _, f := range b {
			f()
		}
		e.wake = 0
		e.run()
	})
}

func (s *sim) run(d time.Duration) {
	end := s.now + d
	for len(s.events) > 0 && s.events[0].at <= end {
		ev := heap.Pop(&s.events).(simEvent)
		s.now = ev.at
		ev.f()
	}
	s.now = end
}

// load sends payloads of size bytes at mbit Mbit/s from a side for d.
func (s *sim) load(side int, flow uint32, mbit float64, size int, d time.Duration) *int {
	sent := new(int)
	gap := time.Duration(float64(size*8) / mbit * 1e3)
	end := s.now + d
	var one func()
	one = func() {
		b := make([]byte, size)
		binary.BigEndian.PutUint32(b, flow)
		binary.BigEndian.PutUint32(b[4:], uint32(*sent))
		binary.BigEndian.PutUint64(b[8:], uint64(s.now))
		*sent++
		e := s.ends[side]
		put := func() {
			_ = e.c.enqueue(e.clock(), flow, ClassUDP, [][]byte{b})
			e.run()
		}
		if s.now < e.paused {
			e.backlog = append(e.backlog, put)
		} else {
			put()
		}
		if s.now+gap < end {
			s.after(gap, one)
		}
	}
	s.after(0, one)
	return sent
}

// judge is what a receiver saw of one flow.
type judged struct {
	got, disorder, twice int
	p50, p99, max        time.Duration
}

func (e *simEnd) judge(flow uint32) judged {
	var j judged
	var delays []time.Duration
	last := -1
	seen := map[uint32]bool{}
	for _, g := range e.got {
		if g.flow != flow {
			continue
		}
		if seen[g.n] {
			j.twice++
			continue
		}
		seen[g.n] = true
		j.got++
		if int(g.n) < last {
			j.disorder++
		}
		last = max(last, int(g.n))
		delays = append(delays, g.delay)
	}
	slices.Sort(delays)
	if len(delays) > 0 {
		j.p50, j.p99, j.max = delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1]
	}
	return j
}

func mbit10(delay time.Duration) linkConf {
	return linkConf{rate: 10, burst: 16000, queue: 50 * time.Millisecond, delay: delay}
}

// fill makes the link's queue full of others' packets.
func (l *simLink) fill() { l.free = max(l.free, l.s.now) + l.queue }

// renoFlow is a TCP flow (Reno, one packet acknowledged at a time) of others on
// one direction of a path.
type renoFlow struct {
	s        *sim
	l        *simLink
	cwnd     float64
	thresh   float64
	flight   int
	acked    int
	recovery time.Duration // losses until then are one event
	limit    float64       // of cwnd, 0 = none
	end      time.Duration
}

func (s *sim) reno(side, path int, d time.Duration) *renoFlow {
	r := &renoFlow{s: s, l: s.links[side][path], cwnd: 10, thresh: 1e9, end: s.now + d}
	s.after(0, r.send)
	return r
}

func (r *renoFlow) send() {
	for r.flight < int(r.cwnd) && r.s.now < r.end {
		r.flight++
		l := r.l
		sentAt := r.s.now
		out, ok := l.transit(1514)
		back := 2*l.delay + 5*time.Millisecond
		if !ok {
			r.s.after(l.queue+back, func() {
				r.flight--
				if sentAt > r.recovery {
					r.recovery = r.s.now
					r.thresh = max(2, r.cwnd/2)
					r.cwnd = r.thresh
				}
				r.send()
			})
			continue
		}
		r.s.after(out-r.s.now+back, func() {
			r.flight--
			r.acked++
			if r.cwnd < r.thresh {
				r.cwnd++
			} else {
				r.cwnd += 1 / r.cwnd
			}
			if r.limit > 0 {
				r.cwnd = min(r.cwnd, r.limit)
			}
			r.send()
		})
	}
}
