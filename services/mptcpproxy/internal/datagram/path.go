package datagram

import (
	"net/netip"
	"time"
)

const (
	// overhead is what a shaper counts of a packet beyond its UDP payload:
	// UDP, IPv4 and Ethernet headers. IPv6 has 20 more.
	overhead4 = 8 + 20 + 14
	overhead6 = 8 + 40 + 14

	ackDelay     = 5 * time.Millisecond // between acknowledgements of data
	initialRate  = 10e6 / 8             // bytes/s, before anything is known
	lowestRate   = 64e3 / 8             // bytes/s
	highestRate  = 50e9 / 8             // bytes/s
	targetQueue  = 3 * time.Millisecond // of our own in the path
	drainTime    = 40 * time.Millisecond
	burstTime    = 5 * time.Millisecond  // of credit a path may save: a late timer must not cost rate
	rateWindow   = 40 * time.Millisecond // over which the delivery rate is measured
	baseWindow   = 15 * time.Second      // the smallest delay is kept for one to two of these
	yieldAfter   = 200 * time.Millisecond
	hungerTime   = 100 * time.Millisecond // of keeping packets back, before a rate that was enough is doubted
	testEvery    = 10 * time.Second
	floorShare   = 0.5 // of the path's capacity, which other traffic cannot take from us
	nearlyEqual  = 2 * time.Millisecond
	silentExtra  = 60 * time.Millisecond // what a queue may add to a gap between packets
	fastProbe    = 25 * time.Millisecond // between probes while datagrams flow
	activeProbe  = 40 * time.Millisecond // between probes while told to be active
	idleProbe    = time.Second
	longestRTT   = 4 * time.Second
	lossInterval = 100 * time.Millisecond
)

// rateSample is what the peer had received when a packet arrived there.
type rateSample struct {
	arrival uint32 // µs of the peer's clock
	bytes   uint32
	queued  bool   // a queue stood then
	sent    uint32 // µs of our clock, of the packet that was acknowledged
}

// minFilter keeps the smallest value of the last one to two windows.
type minFilter struct {
	cur, prev int32
	have      bool
	until     time.Duration
}

func (m *minFilter) add(now time.Duration, v int32) {
	switch {
	case !m.have:
		m.cur, m.prev, m.have, m.until = v, v, true, now+baseWindow
	case now >= m.until:
		m.prev, m.cur, m.until = m.cur, v, now+baseWindow
	case v < m.cur:
		m.cur = v
	}
}

func (m *minFilter) min() int32 { return min(m.cur, m.prev) }

// path is the state of one path at one end. All times are since the start of
// the endpoint.
type path struct {
	id       uint8
	name     string
	alias    string // how this machine calls it, if that differs
	conf     Path   // near only
	backup   bool
	weight   float64
	overhead int
	// sock is the business of the driver; the logic only compares.
	sock          any
	local, remote netip.AddrPort

	// Liveness.
	alive      bool
	heard      bool          // anything at all
	peerHears  bool          // the last packet had no flagSilent
	answered   bool          // the peer has acknowledged since we last were dead
	silence    time.Duration // as seen by our own clock's ticks
	lastRx     time.Duration
	lastPeerTS uint32
	peerRan    time.Duration // core.peerRan when the last packet came
	silent     bool          // we hear nothing: told to the peer
	lastTx     time.Duration
	nextProbe  time.Duration
	gone       error         // sending fails for a reason of this machine
	reopen     time.Duration // not before this

	// Receiving.
	window    replayWindow
	rxCount   uint32
	rxBytes   uint32
	rxLargest uint64
	rxEcho    uint32        // its ts
	rxArrival time.Duration // its arrival
	ackMin    uint32        // smallest arrival - ts since the last acknowledgement
	ackMinSet bool
	ackDue    time.Duration // 0 = none is due
	ackSent   time.Duration
	owd       minFilter // peer to us, clocks included
	owdRecent int32     // last one seen
	owdMax    int32     // peak over the base, decaying
	sizeSeen  int       // answer to flagSize, 0 = none

	// Sending.
	txSeq     uint64
	txBytes   uint64
	acked     uint32 // largest sequence acknowledged
	haveAck   bool
	srtt      time.Duration
	rttvar    time.Duration
	rtts      minFilter // µs
	base      minFilter // one-way delay to the peer, clocks included, µs
	queue     time.Duration
	samples   [32]rateSample
	nSamples  int
	rate      float64       // bytes/s at which we send
	deliv     float64       // bytes/s of late
	full      float64       // the same while the rate was made use of, 0 = unknown
	fullFrom  time.Duration // since when it is made use of, 0 = it is not
	grown     time.Duration // by which the queue became longer in that time
	grownIn   time.Duration
	calm      time.Duration // when the rate was last more than needed
	dipped    float64       // rate before a dip, 0 = there was none
	capacity  float64       // bytes/s measured while a queue stood
	best      float64       // largest capacity of late
	other     float64       // bytes/s of others on this path, as told
	next      time.Duration
	used      float64 // bytes/s sent of late
	usedAt    time.Duration
	usedB     uint64
	busy      bool // the rate has kept packets back since the last acknowledgement
	started   bool // a queue has been seen: the rate is known
	controlAt time.Duration
	vying     bool          // with a queue that others keep
	testAt    time.Duration // in which: when that was last put to the test, or is until
	testing   float64       // rate to go back to after the test, 0 = no test
	congSet   bool
	cong      time.Duration // since when a queue has stood
	cutAt     time.Duration // the rate was last cut
	lossAt    time.Duration
	lossSent  uint32
	lossRecv  uint32
	lossSet   bool
	loss      float64
	unacked   time.Duration // since when an acknowledgement is waited for, 0 = it is not
	elicit    uint32        // last sequence that asks for one
	lost      uint64

	// MTU of the path, in UDP payload.
	mtu       int // known to pass
	mtuGoal   int // what the interface says
	mtuHigh   int
	mtuTry    int // being probed
	mtuTries  int
	mtuFound  time.Duration // when the last search ended
	mtuNext   time.Duration
	mtuHeader int // IP and UDP headers

	txPackets, rxPackets, rxTotal, replayed uint64
}

// basePayload is what every path must carry: 1280 bytes of IPv6 less headers.
const basePayload = 1280 - 48

func newPath(id uint8) *path {
	return &path{
		id: id, weight: 1, overhead: overhead4, rate: initialRate, silent: true,
		mtu: basePayload, mtuHeader: 28,
	}
}

// reset forgets what belongs to the way that packets take, for a path whose
// addresses have changed. Sequences go on: they must never repeat.
func (p *path) reset() {
	n := newPath(p.id)
	n.name, n.conf, n.backup, n.weight, n.alive = p.name, p.conf, p.backup, p.weight, p.alive
	n.txSeq, n.window, n.rxCount, n.rxBytes = p.txSeq, p.window, p.rxCount, p.rxBytes
	n.rxLargest, n.rxEcho = p.rxLargest, p.rxEcho
	n.txBytes, n.txPackets, n.rxPackets, n.rxTotal, n.replayed, n.lost = p.txBytes, p.txPackets, p.rxPackets, p.rxTotal, p.replayed, p.lost
	*p = *n
}

// inherit takes over what another session has learnt of the same path.
func (p *path) inherit(o *path) {
	p.rate, p.capacity, p.best, p.started = o.rate, o.capacity, o.best, o.started
	p.mtu, p.mtuGoal = o.mtu, o.mtuGoal
}

// setAddrs tells the header sizes of the path's address family.
func (p *path) setAddrs(local, remote netip.AddrPort) {
	p.local, p.remote = local, remote
	p.overhead, p.mtuHeader = overhead4, 28
	if remote.Addr().Is6() && !remote.Addr().Is4In6() {
		p.overhead, p.mtuHeader = overhead6, 48
	}
}

// onAck takes an acknowledgement that arrived at now.
func (p *path) onAck(now time.Duration, a ack) {
	if p.haveAck && int32(a.seq-p.acked) < 0 {
		return // overtaken by a later one
	}
	fresh := !p.haveAck || a.seq != p.acked
	rtt := time.Duration(micros(now)-a.echo-a.hold) * time.Microsecond
	if fresh && rtt < longestRTT {
		if p.srtt == 0 {
			p.srtt, p.rttvar = rtt, rtt/2
		} else { // RFC 6298 section 2.3
			d := p.srtt - rtt
			if d < 0 {
				d = -d
			}
			p.rttvar += (d - p.rttvar) / 4
			p.srtt += (rtt - p.srtt) / 8
		}
		p.rtts.add(now, int32(rtt/time.Microsecond))
	}
	if !fresh {
		return
	}
	p.acked, p.haveAck, p.answered = a.seq, true, true
	if p.unacked != 0 {
		p.unacked = now
		if int32(p.elicit-a.seq) <= 0 {
			p.unacked = 0
		}
	}

	// One-way delay: only differences count, so the clocks need not agree.
	p.base.add(now, int32(a.minOWD))
	q := time.Duration(int32(a.minOWD)-p.base.min()) * time.Microsecond
	p.queue = q

	p.measure(a)
	p.countLoss(now, a)
	p.control(now)
}

// measure updates the delivery rate from the peer's counters.
func (p *path) measure(a ack) {
	bytes := a.bytes + a.count*uint32(p.overhead)
	s := rateSample{arrival: a.arrival, bytes: bytes}
	if p.nSamples > 0 && int32(s.arrival-p.samples[(p.nSamples-1)%len(p.samples)].arrival) <= 0 {
		return
	}
	// While a queue stands only that time counts: before, a token bucket may
	// have let more pass than the path can bear.
	s.queued = p.queue > targetQueue/2
	s.sent = a.echo
	p.full = 0
	for i := 1; i <= min(p.nSamples, len(p.samples)); i++ {
		from := &p.samples[(p.nSamples-i)%len(p.samples)]
		dt := time.Duration(s.arrival-from.arrival) * time.Microsecond
		begin := s.queued && !from.queued && dt >= rateWindow/4
		r := float64(s.bytes-from.bytes) / dt.Seconds()
		if dt >= rateWindow/2 || begin {
			p.deliv = r
		}
		if dt >= rateWindow/4 && p.fullFrom != 0 && int32(from.sent-micros(p.fullFrom)) >= 0 {
			p.full = r
			p.grown = dt - time.Duration(s.sent-from.sent)*time.Microsecond
			p.grownIn = dt
		}
		if dt >= rateWindow || begin {
			break
		}
	}
	p.samples[p.nSamples%len(p.samples)] = s
	p.nSamples++
}

// countLoss compares what was sent with what has arrived.
func (p *path) countLoss(now time.Duration, a ack) {
	if !p.lossSet {
		p.lossSet, p.lossAt, p.lossSent, p.lossRecv = true, now, a.seq, a.count
		return
	}
	sent := a.seq - p.lossSent
	if now-p.lossAt < lossInterval || sent < 8 {
		return
	}
	lost := max(0, int32(sent-(a.count-p.lossRecv)))
	p.lost += uint64(lost)
	share := float64(lost) / float64(sent)
	p.loss += (share - p.loss) / 4
	p.lossAt, p.lossSent, p.lossRecv = now, a.seq, a.count
	// More than others' TCP, which shares the queue, would suffer: the path has
	// become smaller, so what we thought was ours by right is too much.
	if p.vying && lost > 0 {
		p.rate *= 0.7
	}
	switch {
	case !p.started || sent < 20 || p.queue < targetQueue:
	case share > 0.1:
		p.best *= 0.8
	case share > 0.02:
		p.best *= 0.95
	}
}

// control sets the rate. Below the target the rate grows while it is what
// holds packets back, or nearly. Above, and growing, it becomes the measured
// delivery rate less what drains the queue within drainTime. A queue that stays
// although we do not add to it, and that does not go when we dip, is that of
// others: of TCP between the gateways if we are told of its rate, and then both
// get half; else we vie for our share.
func (p *path) control(now time.Duration) {
	p.meter(now)
	hungry := p.busy || p.used > 0.9*p.rate || !p.started && p.used > 0.7*p.rate
	dt := min(now-p.controlAt, 50*time.Millisecond)
	p.controlAt = now
	p.busy = false
	if p.queue <= targetQueue {
		if p.dipped > 0 {
			p.rate = max(p.rate, 0.98*p.capacity)
		}
		p.congSet, p.vying, p.dipped = false, false, 0
		step := dt.Seconds()
		switch {
		case !hungry:
			// What is not made use of is not trusted for long: a burst would
			// meet the queue of the path at a rate that nothing has confirmed.
			p.calm = now
			if top := 1.1 * p.capacity; p.started && p.rate > top {
				p.rate = max(top, p.rate*(1-step))
			}
		case !p.started:
			// As slow start: twice the rate in each round.
			round := max(p.srtt+2*ackDelay, 20*time.Millisecond).Seconds()
			p.rate = max(p.rate, min(p.rate*(1+min(1, step/round)), 2*p.used))
		case p.rate < 0.98*p.capacity:
			p.rate = 0.98 * p.capacity
		case p.rate < 1.1*p.capacity:
			p.rate *= 1 + step // 10 % more take 100 ms
		case now-p.calm > hungerTime:
			p.rate = max(p.rate, min(p.rate*(1+4*step), 1.5*p.used))
		}
		p.rate = min(p.rate, highestRate)
		return
	}

	if !p.congSet {
		p.congSet, p.cong = true, now
	}
	if now-p.cong < 2*ackDelay && p.queue < 3*targetQueue {
		return // may be a hiccup of a busy machine
	}
	floor := max(floorShare*max(p.best, p.full+p.other), lowestRate)
	told := p.other > p.full/10
	held := now-max(p.cong, p.cutAt) > yieldAfter+2*p.srtt // for so long ours must have drained
	switch {
	case p.vying && !told:
		p.vie(now, dt, hungry)
	case p.full == 0:
	case p.grown > max(500*time.Microsecond, p.grownIn/64) && p.dipped == 0:
		// We send more than passes: what passes is what the path has for us.
		p.started = true
		if p.capacity == 0 {
			p.capacity = p.full
		} else {
			p.capacity += (p.full - p.capacity) / 4
		}
		p.best = max(p.capacity, p.best)
		floor = max(floor, floorShare*p.best)
		excess := min(0.5, float64(p.queue-targetQueue/2)/float64(drainTime))
		rate := max(min(p.rate, p.full*(1-excess)), floor)
		if rate < 0.98*p.rate {
			p.cutAt = now
		}
		p.rate = rate
	case held && told:
		if p.rate > floor {
			p.rate = max(floor, p.rate*(1-0.3*dt.Seconds()))
		}
	case held && p.dipped == 0:
		p.dipped, p.cutAt = p.rate, now
		p.rate = max(min(p.rate, 0.8*p.full), lowestRate)
	case held:
		p.rate = max(p.rate, min(p.dipped, p.full*1.3))
		p.vying, p.testAt, p.dipped = true, now, 0
	}
	if p.fullFrom == 0 {
		// Not our doing, as far as we can tell. A rate far above what we send
		// would keep us from telling.
		p.rate = min(p.rate, max(1.5*p.used, floorShare*p.best, initialRate/2))
	}
}

// vie sets the rate beside others who keep a queue: as Reno would (RFC 5681),
// one packet more each round trip; countLoss sees to less. Now and then a dip
// tells whether the queue is not our own by now.
func (p *path) vie(now, dt time.Duration, hungry bool) {
	switch {
	case p.testing > 0 && now >= p.testAt:
		p.rate, p.testing = p.testing, 0
	case p.testing > 0:
	case now-p.testAt > testEvery:
		p.testing, p.testAt = p.rate, now+yieldAfter+2*p.srtt
		p.rate *= 0.6
	case hungry:
		rtt := max(p.srtt, 5*time.Millisecond).Seconds()
		p.rate += 1514 / rtt / rtt * dt.Seconds()
	}
}

// meter keeps the rate at which we have sent.
func (p *path) meter(now time.Duration) {
	dt := now - p.usedAt
	if dt < 5*time.Millisecond {
		return
	}
	r := float64(p.txBytes-p.usedB) / dt.Seconds()
	k := min(1, float64(dt)/float64(rateWindow))
	p.used += (r - p.used) * k
	p.usedAt, p.usedB = now, p.txBytes
	switch {
	case p.used < p.rate/3:
		p.fullFrom = 0
	case p.fullFrom == 0:
		p.fullFrom = now
	}
}

// ready tells when the path may take data: at or before now, if it may.
func (p *path) ready() time.Duration { return p.next }

// charge accounts for a packet of n bytes of UDP payload sent at now.
func (p *path) charge(now time.Duration, n int) {
	b := n + p.overhead
	burst := max(burstTime, time.Duration(float64(2*1514)/p.rate*float64(time.Second)))
	if p.next < now-burst {
		p.next = now - burst
	}
	p.next += time.Duration(float64(b) / p.rate * float64(time.Second))
	p.txBytes += uint64(b)
	p.txPackets++
	p.lastTx = now
}

// stalled tells that acknowledgements have not come for longer than round trip
// and queue explain: more data would likely be lost.
func (p *path) stalled(now time.Duration) bool {
	return p.unacked != 0 && now-p.unacked > p.srtt+4*p.rttvar+2*ackDelay+30*time.Millisecond
}

// patience is the silence after which the path is dead, given how often the
// peer sends and how much later than on the fastest path its packets come.
func (p *path) patience(interval, behind time.Duration) time.Duration {
	extra := max(silentExtra, time.Duration(p.owdMax)*time.Microsecond*3/2)
	return 2*interval + behind + extra
}
