package carrier

import (
	"net/netip"
	"sync"
	"time"
)

// maxSources bounds the memory of the limiter. Sources beyond it share one
// bucket until others have refilled and are forgotten.
const maxSources = 4096

// limiter is a token bucket per source: an IPv4 address or an IPv6 /64.
type limiter struct {
	rate, burst float64
	mu          sync.Mutex
	buckets     map[netip.Addr]*bucket
	shared      bucket
	swept       time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(rate float64, burst int) *limiter {
	return &limiter{rate: rate, burst: float64(burst), buckets: make(map[netip.Addr]*bucket)}
}

func sourceKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// take says whether one more connection of a source is within the rate.
func (l *limiter) take(source netip.Addr, now time.Time) bool {
	key := sourceKey(source)
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= maxSources && now.Sub(l.swept) >= time.Second {
			l.sweep(now)
		}
		if len(l.buckets) < maxSources {
			b = &bucket{tokens: l.burst, at: now}
			l.buckets[key] = b
		} else {
			b = &l.shared
		}
	}
	l.fill(b, now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (l *limiter) fill(b *bucket, now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(l.burst, b.tokens+d.Seconds()*l.rate)
	}
	b.at = now
}

// sweep forgets the sources that have all their tokens.
func (l *limiter) sweep(now time.Time) {
	l.swept = now
	for k, b := range l.buckets {
		if l.fill(b, now); b.tokens >= l.burst {
			delete(l.buckets, k)
		}
	}
}

// refund gives a token back: the connection has authenticated, so the rate,
// which is against strangers, does not apply to it.
func (l *limiter) refund(source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[sourceKey(source)]; b != nil {
		b.tokens = min(l.burst, b.tokens+1)
	}
}
