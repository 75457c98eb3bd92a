package udpflow

import (
	"net/netip"
	"time"

	"weft/services/mptcpproxy/internal/datagram"
)

const (
	defaultTimeout  = 60 * time.Second
	settledFactor   = 3 // flows that have seen both directions live longer
	dnsTimeout      = 10 * time.Second
	defaultMaxFlows = 16384
)

// tuple names a flow by its hosts.
type tuple struct{ client, dst netip.AddrPort }

// number names a flow by what the near side calls it; peer is empty there.
type number struct {
	peer string
	id   uint32
}

// flow is one flow on one side.
type flow struct {
	tuple
	number
	owner   *client
	all, my link // in table.oneWay or table.bothWays; in owner.flows
	last    time.Duration
	both    bool

	// Near.
	to       string // peer
	packets  uint32
	named    time.Duration // when the addresses were last sent
	nameNext bool

	// Far.
	fd       int
	session  *datagram.Session
	tos, ttl int // set on fd
}

// link and list are a doubly linked list, newest first.
type link struct {
	prev, next *link
	flow       *flow
	in         *list
}

type list struct{ head, tail *link }

func (l *list) push(k *link) {
	k.in, k.prev, k.next = l, nil, l.head
	if l.head != nil {
		l.head.prev = k
	} else {
		l.tail = k
	}
	l.head = k
}

func (k *link) remove() {
	if k.prev != nil {
		k.prev.next = k.next
	} else {
		k.in.head = k.next
	}
	if k.next != nil {
		k.next.prev = k.prev
	} else {
		k.in.tail = k.prev
	}
	k.prev, k.next, k.in = nil, nil, nil
}

// client counts what one client address has.
type client struct {
	addr   netip.Addr
	flows  list
	count  int
	tokens float64 // new flows allowed now
	at     time.Duration
}

// limits bound a table.
type limits struct {
	timeout           time.Duration
	max, perClient    int
	ratePerClient     int
	closed            func(*flow) // a flow has left the table
	expired, evicted  *uint64
	opened, overLimit *uint64
}

// table is the flows of one side. It knows no clock and no lock.
type table struct {
	limits
	tuples           map[tuple]*flow
	numbers          map[number]*flow
	clients          map[netip.Addr]*client
	oneWay, bothWays list
}

func newTable(l limits) *table {
	return &table{limits: l, tuples: map[tuple]*flow{}, numbers: map[number]*flow{}, clients: map[netip.Addr]*client{}}
}

// add makes a flow, at the cost of others if need be; nil if the client opens
// flows too fast.
func (t *table) add(now time.Duration, tu tuple, n number) *flow {
	c := t.clients[tu.client.Addr()]
	if c == nil {
		c = &client{addr: tu.client.Addr(), tokens: float64(t.ratePerClient), at: now}
		t.clients[c.addr] = c
	}
	if r := float64(t.ratePerClient); r > 0 {
		// A second's worth may come at once.
		c.tokens = min(r, c.tokens+(now-c.at).Seconds()*r)
		c.at = now
		if c.tokens < 1 {
			*t.overLimit++
			return nil
		}
		c.tokens--
	}
	if c.count >= t.perClient {
		t.evict(c.flows.tail.flow)
	}
	for len(t.tuples) >= t.max {
		l := &t.oneWay
		if l.tail == nil {
			l = &t.bothWays
		}
		t.evict(l.tail.flow)
	}
	f := &flow{tuple: tu, number: n, owner: c, last: now, fd: -1, tos: -1, ttl: -1}
	f.all.flow, f.my.flow = f, f
	t.tuples[tu], t.numbers[n] = f, f
	t.clients[c.addr] = c // an eviction may have removed it
	t.oneWay.push(&f.all)
	c.flows.push(&f.my)
	c.count++
	*t.opened++
	return f
}

func (t *table) evict(f *flow) {
	*t.evicted++
	t.remove(f)
}

// remove takes f out.
func (t *table) remove(f *flow) {
	delete(t.tuples, f.tuple)
	delete(t.numbers, f.number)
	f.all.remove()
	f.my.remove()
	if f.owner.count--; f.owner.count == 0 && (t.ratePerClient == 0 || f.owner.tokens >= float64(t.ratePerClient)-1) {
		delete(t.clients, f.owner.addr)
	}
	t.closed(f)
}

// renumber gives f the number n.
func (t *table) renumber(f *flow, n number) {
	delete(t.numbers, f.number)
	f.number = n
	t.numbers[n] = f
}

// touch notes a packet of f; answer tells that it came from the sink.
func (t *table) touch(now time.Duration, f *flow, answer bool) {
	f.last = now
	f.both = f.both || answer
	l := &t.oneWay
	if f.both {
		l = &t.bothWays
	}
	if l.head != &f.all {
		f.all.remove()
		l.push(&f.all)
	}
	if f.owner.flows.head != &f.my {
		f.my.remove()
		f.owner.flows.push(&f.my)
	}
}

// life is how long f lives without packets.
func (t *table) life(f *flow) time.Duration {
	switch {
	case f.dst.Port() == 53:
		return min(dnsTimeout, t.timeout)
	case f.both:
		return settledFactor * t.timeout
	}
	return t.timeout
}

// expire removes what has been idle for too long.
func (t *table) expire(now time.Duration) {
	for _, l := range []*list{&t.oneWay, &t.bothWays} {
		for k := l.tail; k != nil; {
			f := k.flow
			k = k.prev
			idle := now - f.last
			if idle < min(dnsTimeout, t.timeout) {
				break // all that follow are younger
			}
			if idle >= t.life(f) {
				*t.expired++
				t.remove(f)
			}
		}
	}
	for a, c := range t.clients {
		if c.count == 0 && now-c.at >= time.Second {
			delete(t.clients, a)
		}
	}
}

// clear removes everything.
func (t *table) clear() {
	for _, f := range t.tuples {
		t.remove(f)
	}
}
