package govern

import (
	"math"
	"net/netip"
	"time"
)

// Numbers of the decisions. They were found in namespaces with paths of 2 to
// 40 Mbit/s shaped by tbf and by a wire in user space, 0 to 50 ms long.
const (
	bucket     = 250 * time.Millisecond // of the rate estimate
	buckets    = 8                      // kept: the largest of them is the rate
	minWindow  = time.Minute            // the smallest round trip is forgotten after one to two of these
	standing   = 8                      // samples: the queue is the smallest delay among them
	lossWindow = 3 * time.Second
	lossEvents = 3                     // separate ones within lossWindow
	lossQueue  = 10 * time.Millisecond // below, a loss is not of a full queue
	bbrFirst   = time.Minute           // before a path is tried with cubic again
	bbrMax     = 30 * time.Minute
	mathis     = 1.22 // Mathis et al. 1997: window in segments = 1.22 / sqrt(loss)
	// What is handed to a subflow cannot go another way. Where one path is much
	// slower than another no more than a few milliseconds' worth is handed out
	// at once (20+5 Mbit/s: 0.99 of the sum instead of 0.75 to 0.9); equal paths
	// do better with more, because this machine's hiccups then cost nothing.
	notsentTime  = 5 * time.Millisecond
	unequal      = 1.3         // rates that differ more are unequal
	equalFor     = time.Second // before paths count as equal
	unsentFirst  = 16 << 10    // while nothing is known
	notsentLeast = 4096
	minShare     = 9216 // bytes of send buffer for one bounded connection
	// The kernel lets the buffer of an MPTCP connection grow with the windows of
	// its subflows, which stay small where the queue is in this machine; then the
	// slowest path takes what the others need. So it gets room from the start.
	roomSlow     = 512 << 10
	roomFast     = 6 << 20
	slowRate     = 6e6                    // bytes per second in all, up to which roomSlow does
	fastest      = 50e6                   // bytes per second; a faster path has its queue in this machine's CPUs, leave it
	leastQueue   = 10                     // segments that a path needs to be busy: TCP's own share in this machine
	standsFor    = time.Second            // a queue must have stood before it is bounded
	boundFor     = 5 * time.Second        // then the bound is tried for need
	freeFor      = 400 * time.Millisecond // without it
	alike        = 20 * time.Millisecond  // round trips that differ more: the scheduler fills by delay, a bound for all would starve the longest path
	grace        = 1500 * time.Millisecond
	bulkUnacked  = 16 << 10
	bulkFor      = 500 * time.Millisecond
	reviewPeriod = 100 * time.Millisecond
	forgetAfter  = 20 * time.Minute // a path that nothing used
)

// pathKey names a path by its ends.
type pathKey struct {
	peer          string
	local, remote netip.Addr
}

// sample is what one subflow showed since the last look.
type sample struct {
	now     time.Time
	acked   uint64        // bytes acknowledged
	sent    uint32        // data segments, with repeated ones
	retrans uint32        // repeated ones, less those that the receiver had already
	rtt     time.Duration // smoothed
	minRTT  time.Duration // smallest the kernel remembers
	flight  int           // segments not acknowledged
	mss     int
}

// path is what is known of one path; it decides without clock or sockets.
type path struct {
	key pathKey

	min    [2]time.Duration // of this and of the last window, 0 = none
	minAt  time.Time
	rtt    time.Duration
	delay  [standing]time.Duration
	nDelay int
	peak   time.Duration // largest queueing delay seen, fading

	rates    [buckets]float64
	rateAt   time.Time
	bytes    uint64
	inFlight int // bytes, summed over the connections of one round
	nextFly  int
	mss      int
	subflows int
	nextSubs int
	seen     time.Time

	loss      float64 // share of segments repeated, smoothed
	events    []time.Time
	lossSent  uint32
	lossCount uint32
	lossAt    time.Time
	bbrUntil  time.Time
	bbrFor    time.Duration
	bbr       bool
}

// begin starts a round of samples.
func (p *path) begin(now time.Time) {
	p.nextFly, p.nextSubs = 0, 0
	if p.minAt.IsZero() {
		p.minAt, p.rateAt, p.lossAt = now, now, now
	}
	if now.Sub(p.minAt) >= minWindow {
		p.min[1], p.min[0], p.minAt = p.min[0], 0, now
	}
	for now.Sub(p.rateAt) >= bucket {
		if now.Sub(p.rateAt) >= bucket*buckets {
			p.rates, p.rateAt, p.bytes = [buckets]float64{}, now, 0
			break
		}
		copy(p.rates[1:], p.rates[:])
		p.rates[0] = float64(p.bytes) / bucket.Seconds()
		p.bytes = 0
		p.rateAt = p.rateAt.Add(bucket)
	}
	if now.Sub(p.lossAt) >= lossWindow {
		p.lossSent, p.lossCount, p.lossAt = p.lossSent/2, p.lossCount/2, now
	}
	if p.bbr && now.After(p.bbrUntil) {
		p.bbr = false // try again; the next losses double the time
		p.events = p.events[:0]
		p.lossSent, p.lossCount = 0, 0
	}
}

// end finishes it.
func (p *path) end() { p.inFlight, p.subflows = p.nextFly, p.nextSubs }

// observe takes one sample in.
func (p *path) observe(s sample) {
	p.nextSubs++
	p.seen = s.now
	if s.minRTT > 0 && (p.min[0] == 0 || s.minRTT < p.min[0]) {
		p.min[0] = s.minRTT
	}
	p.bytes += s.acked
	p.nextFly += s.flight * s.mss
	if s.mss > 0 {
		p.mss = s.mss
	}
	if s.flight > 0 && s.rtt > 0 && s.acked > 0 {
		p.rtt = s.rtt
		q := max(s.rtt-p.minRTT(), 0)
		p.delay[p.nDelay%standing] = q
		p.nDelay++
		p.peak = max(q, p.peak-p.peak/512)
	}
	if s.sent == 0 {
		return
	}
	p.loss += (float64(s.retrans)/float64(s.sent) - p.loss) * min(1, float64(s.sent)/1000)
	p.lossSent += s.sent
	if s.retrans == 0 {
		return
	}
	// A burst of losses is one event, and so is what it takes to mend it.
	if q := s.rtt - p.minRTT(); q >= max(lossQueue, p.peak/2) {
		return
	}
	p.lossCount += s.retrans
	if n := len(p.events); n > 0 && s.now.Sub(p.events[n-1]) < max(50*time.Millisecond, s.rtt) {
		return
	}
	for len(p.events) > 0 && s.now.Sub(p.events[0]) > lossWindow {
		p.events = p.events[1:]
	}
	p.events = append(p.events, s.now)
	if len(p.events) < lossEvents || p.bbr {
		return
	}
	// Loss by itself does not hurt: short paths mend it in no time. It does
	// where the window that it allows is too small for the path.
	share := float64(p.lossCount) / float64(max(p.lossSent, 1))
	allowed := mathis * float64(p.mss) / math.Sqrt(share) / p.minRTT().Seconds()
	if rate := p.rate(); rate > 0 && allowed < 2*rate {
		p.bbr = true
		p.bbrFor = min(max(2*p.bbrFor, bbrFirst), bbrMax)
		p.bbrUntil = s.now.Add(p.bbrFor)
	}
}

// minRTT is the round trip of the empty path.
func (p *path) minRTT() time.Duration {
	switch {
	case p.min[0] == 0:
		return p.min[1]
	case p.min[1] == 0:
		return p.min[0]
	}
	return min(p.min[0], p.min[1])
}

// rate is the most delivered of late, in bytes per second.
func (p *path) rate() float64 {
	r := 0.0
	for _, x := range p.rates {
		r = max(r, x)
	}
	return r
}

// queue is the delay that does not go away; false while too little is known.
func (p *path) queue() (time.Duration, bool) {
	if p.nDelay < standing {
		return 0, false
	}
	q := p.delay[0]
	for _, d := range p.delay {
		q = min(q, d)
	}
	return q, true
}

// group is the sum of all paths to one peer; it bounds what is in flight.
type group struct {
	target    time.Duration
	active    bool
	quietTill time.Time // paths have changed: let TCP find its way
	before    float64   // rate when the bound was set
	slack     float64   // factor on the bound
	reviewed  time.Time
	calm      time.Time // when no queue stood last
	since     time.Time // when the bound was set
	limit     int       // bytes for all bulk connections, 0 = no bound
	differ    time.Time // when the paths were unequal last
	rate      float64   // of all paths, bytes per second
	unsent    int       // bytes a bulk connection may hold unsent, 0 = as the settings say
}

// review decides anew. paths are those that carry something now.
func (g *group) review(now time.Time, paths []*path) {
	if now.Sub(g.reviewed) < reviewPeriod {
		return
	}
	g.reviewed = now
	var rate, fast, slowest float64
	var longest, shortest, target time.Duration
	worst := 0.0 // queue in parts of what is aimed at
	for _, p := range paths {
		r := p.rate()
		if r == 0 {
			continue
		}
		rate += r
		fast = max(fast, r)
		if slowest == 0 || r < slowest {
			slowest = r
		}
		if rtt := p.minRTT(); shortest == 0 || rtt < shortest {
			shortest = rtt
		}
		longest = max(longest, p.minRTT())
		want := max(g.target, time.Duration(leastQueue*float64(p.mss)/r*float64(time.Second)))
		target = max(target, want)
		if q, ok := p.queue(); ok {
			worst = max(worst, float64(q)/float64(want))
		}
	}
	g.rate = rate
	switch {
	case rate == 0:
		g.unsent, g.differ = unsentFirst, now
	case fast > unequal*slowest:
		g.differ = now
		fallthrough
	case now.Sub(g.differ) < equalFor:
		// Data is acknowledged in order: as long as the longest path is behind,
		// nothing asks for more.
		g.unsent = max(int(rate*(notsentTime+longest-shortest).Seconds()), notsentLeast)
	default:
		g.unsent = 0
	}
	if rate == 0 || rate > fastest || now.Before(g.quietTill) || longest-shortest > alike {
		g.release()
		return
	}
	if !g.active {
		if worst < 1.5 {
			g.calm = now
			return
		}
		if now.Sub(g.calm) < standsFor {
			return
		}
		g.active, g.before, g.slack, g.since = true, rate, 1, now
	}
	switch {
	case now.Sub(g.since) >= boundFor:
		// Perhaps the bound is all that keeps the rate where it is.
		g.quietTill = now.Add(freeFor)
		g.release()
		return
	case rate < 0.93*g.before:
		g.slack = min(g.slack*1.1, 8)
		g.before *= 0.98
	case worst < 0.5:
		g.slack = min(g.slack*1.03, 8)
	case worst > 1.25:
		g.slack = max(g.slack/1.03, 0.7)
	}
	g.before = max(g.before, rate)
	g.limit = int(rate * (longest + target).Seconds() * g.slack)
}

// disturb forgets the bound for a while, because paths came or went.
func (g *group) disturb(now time.Time) {
	g.quietTill, g.calm = now.Add(grace), now.Add(grace)
	g.release()
}

func (g *group) release() { g.active, g.limit, g.slack = false, 0, 1 }

// room is the send buffer of a connection that is not bounded.
func (g *group) room() int {
	if g.rate > slowRate {
		return roomFast
	}
	return roomSlow
}

// share is the send buffer for each of n bulk connections.
func (g *group) share(n int) int {
	if !g.active || n == 0 {
		return 0
	}
	return max(g.limit/n, minShare)
}
