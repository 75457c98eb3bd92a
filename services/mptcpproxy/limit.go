package mptcpproxy

import (
	"net/netip"
	"sync"
	"time"
)

// flowKey names a TCP flow by its ends.
type flowKey struct{ src, dst netip.AddrPort }

// limits bounds what one client address may open.
type limits struct {
	now func() time.Time

	mu       sync.Mutex
	maxFlows int // at once; 0: no limit
	rate     int // new ones per second; 0: no limit
	clients  map[netip.Addr]*clientUse
	live     map[flowKey]struct{}
	limited  uint64
}

// clientUse is what a client has open, and how many flows it may open now.
type clientUse struct {
	flows  int
	tokens float64
	last   time.Time
}

// sweepAt is the number of clients at which those without flows are forgotten.
const sweepAt = 4096

func newLimits() *limits {
	return &limits{now: time.Now, clients: map[netip.Addr]*clientUse{}, live: map[flowKey]struct{}{}}
}

// set changes the limits; flows that are open stay.
func (l *limits) set(maxFlows, rate int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.maxFlows, l.rate = maxFlows, rate
	if maxFlows == 0 && rate == 0 {
		clear(l.clients)
		clear(l.live)
	}
}

// admit counts a new flow, or says that its client has had enough. A burst of
// two seconds' worth is let through.
func (l *limits) admit(k flowKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxFlows == 0 && l.rate == 0 {
		return true
	}
	now := l.now()
	burst := float64(2 * l.rate)
	c := l.clients[k.src.Addr()]
	if c == nil {
		if len(l.clients) >= sweepAt {
			l.sweep(now)
		}
		c = &clientUse{tokens: burst, last: now}
		l.clients[k.src.Addr()] = c
	}
	if l.rate > 0 {
		c.tokens = min(burst, c.tokens+now.Sub(c.last).Seconds()*float64(l.rate))
	}
	c.last = now
	if l.maxFlows > 0 && c.flows >= l.maxFlows || l.rate > 0 && c.tokens < 1 {
		l.limited++
		return false
	}
	if l.rate > 0 {
		c.tokens--
	}
	if _, again := l.live[k]; !again {
		l.live[k] = struct{}{}
		c.flows++
	}
	return true
}

// done forgets a flow; one that was not counted, or twice, does no harm.
func (l *limits) done(k flowKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.live[k]; !ok {
		return
	}
	delete(l.live, k)
	if c := l.clients[k.src.Addr()]; c != nil {
		c.flows--
	}
}

// sweep forgets clients without flows that may open as many as a new one.
func (l *limits) sweep(now time.Time) {
	for a, c := range l.clients {
		if c.flows == 0 && now.Sub(c.last) > 2*time.Second {
			delete(l.clients, a)
		}
	}
}

// refusals is the number of flows that were not admitted.
func (l *limits) refusals() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limited
}
