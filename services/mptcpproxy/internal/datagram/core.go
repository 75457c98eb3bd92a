package datagram

import (
	"encoding/binary"
	"slices"
	"time"
)

const (
	// room is kept free before the payload of an item, for headers.
	room = headerLen + ackLen + fragmentLen + 3

	maxPaths     = 16
	dataActive   = 2 * time.Second        // after the last payload a session probes fast
	tickActive   = 10 * time.Millisecond  // liveness is looked at
	tickIdle     = 100 * time.Millisecond //
	idlePatience = 2200 * time.Millisecond
	allSilent    = 1500 * time.Millisecond // the peer is gone, or does not run
	retireAfter  = 60 * time.Second        // far: a path silent for so long is forgotten
	maxWait      = 4 * time.Millisecond    // at the entrance, for a faster path
	smallBytes   = 32 << 10                // a flow of less per second is small: games, voice, DNS
	coalesceMax  = 512                     // payloads up to this size share a packet
	mtuRetry     = 100 * time.Millisecond  // between probes of one size
	mtuConfirm   = time.Second             // between looks whether the size still passes
	mtuAgain     = 60 * time.Second        // between searches for a larger one
	mtuStep      = 16                      // the search ends at this precision
)

// packet is one UDP payload to be sealed and sent: buf[lo:hi], with at least
// tagLen bytes of capacity behind.
type packet struct {
	buf    []byte
	lo, hi int
}

// sendLane is what the sender keeps for a lane.
type sendLane struct {
	seq   uint32
	path  uint8
	bytes uint32 // in this second
	prev  uint32 // in the one before
	at    time.Duration
}

// event is a change for OnPath.
type event struct {
	name  string
	alive bool
	rtt   time.Duration
}

// core is the logic of a session. It is not safe for concurrent use and knows
// time only as what it is given, in the time since the start of the endpoint.
type core struct {
	near      bool
	id        uint64
	window    time.Duration
	duplicate Duplicate
	emit      func(p *path, k packet) // hands over a packet, in order for each path

	paths   []*path
	retired map[uint8]*path // their sequences must not be used again

	q      queue
	head   *item // taken from q, not (wholly) sent
	lanes  [lanes]sendLane
	vtimes [256]float64 // of each path id: seconds of its capacity used
	vmax   float64

	in     reorder
	pieces reassembly
	events []event

	told       bool          // SetActive
	dataAt     time.Duration // last payload, either direction
	haveData   bool
	peerActive time.Duration // last packet with flagActive
	havePeer   bool
	fastAt     time.Duration // last packet with flagFast
	haveFast   bool
	lastTick   time.Duration
	sweepAt    time.Duration
	peerTS     uint32 // latest time of sending seen on any path
	peerTSSet  bool
	peerRan    time.Duration // how long the peer has been seen to run, by its clock
	txRef      uint32        // subtracted from one-way delays, so that they do not wrap
	rxRef      uint32
	txRefSet   bool
	rxRefSet   bool

	sent, delivered, unsent uint64
}

func newCore(near bool, id uint64, window time.Duration, d Duplicate, now time.Duration, emit func(*path, packet)) *core {
	c := &core{
		near: near, id: id, duplicate: d, emit: emit, lastTick: now, sweepAt: now,
		retired: map[uint8]*path{},
	}
	c.setWindow(window)
	c.q.free = func(it *item) { giveBuffer(it.buf) }
	return c
}

func (c *core) setWindow(w time.Duration) {
	if w == 0 {
		w = 20 * time.Millisecond
	}
	c.window, c.in.window = w, w
}

func (c *core) path(id uint8) *path {
	for _, p := range c.paths {
		if p.id == id {
			return p
		}
	}
	return nil
}

// addPath makes a path, with the sequences of a former one of the same id.
func (c *core) addPath(id uint8, now time.Duration) *path {
	p := c.retired[id]
	if p != nil {
		delete(c.retired, id)
		p.alive = false
		p.reset()
	} else {
		p = newPath(id)
	}
	p.nextProbe, p.lastRx, p.usedAt, p.usedB = now, now, now, p.txBytes
	c.paths = append(c.paths, p)
	slices.SortFunc(c.paths, func(a, b *path) int { return int(a.id) - int(b.id) })
	return p
}

func (c *core) removePath(p *path) {
	c.setAlive(p, false)
	c.paths = slices.DeleteFunc(c.paths, func(o *path) bool { return o == p })
	c.retired[p.id] = p
}

// setPaths replaces the paths of a near session and returns those that need a
// new socket and those that are gone.
func (c *core) setPaths(now time.Duration, conf []Path) (fresh, gone []*path) {
	for _, p := range slices.Clone(c.paths) {
		if !slices.ContainsFunc(conf, func(n Path) bool { return n.ID == p.id }) {
			c.removePath(p)
			gone = append(gone, p)
		}
	}
	for _, n := range conf {
		p := c.path(n.ID)
		switch {
		case p == nil:
			if len(c.paths) >= maxPaths {
				continue
			}
			p = c.addPath(n.ID, now)
			fresh = append(fresh, p)
		case p.conf.Device != n.Device || p.conf.Local != n.Local || p.conf.Remote != n.Remote:
			c.setAlive(p, false)
			p.reset()
			p.nextProbe, p.lastRx, p.usedAt, p.usedB = now, now, now, p.txBytes
			fresh = append(fresh, p)
		}
		p.conf, p.name, p.backup, p.weight = n, n.Name, n.Backup, float64(max(1, n.Weight))
	}
	return fresh, gone
}

// active tells whether liveness probes are to be fast.
func (c *core) active(now time.Duration) bool {
	return c.told || c.haveData && now-c.dataAt < dataActive ||
		c.havePeer && now-c.peerActive < 3*activeProbe
}

// announce is active without what the peer says, so that the two ends do not
// keep each other awake.
func (c *core) announce(now time.Duration) bool {
	return c.told || c.haveData && now-c.dataAt < dataActive
}

func (c *core) probeInterval(now time.Duration) time.Duration {
	switch {
	case c.haveData && now-c.dataAt < dataActive:
		return fastProbe
	case c.active(now):
		return activeProbe
	}
	return idleProbe
}

// anyAlive tells whether payloads can be sent.
func (c *core) anyAlive() bool {
	for _, p := range c.paths {
		if p.alive {
			return true
		}
	}
	return false
}

// enqueue takes one payload, given in pieces.
func (c *core) enqueue(now time.Duration, flow uint32, class Class, payload [][]byte) error {
	n := 0
	for _, b := range payload {
		n += len(b)
	}
	if n > maxPayload {
		return errTooLong
	}
	if !c.anyAlive() {
		c.unsent++
		return ErrNoPath
	}
	if !c.haveData || now-c.dataAt >= dataActive {
		for _, p := range c.paths {
			p.nextProbe = now // fast from now on
		}
	}
	c.dataAt, c.haveData = now, true
	it := &item{n: n, lane: uint16(flow % lanes), class: class, at: now}
	if room+n+tagLen <= bufferSize {
		it.buf = takeBuffer()[:room]
	} else {
		it.buf = make([]byte, room, room+n+tagLen)
	}
	for _, b := range payload {
		it.buf = append(it.buf, b...)
	}
	l := &c.lanes[it.lane]
	if s := now - l.at; s >= time.Second {
		l.prev = l.bytes
		if s >= 2*time.Second {
			l.prev = 0
		}
		l.at, l.bytes = now, 0
	}
	l.bytes += uint32(n)
	c.q.add(it)
	return nil
}

func (l *sendLane) small() bool { return max(l.bytes, l.prev) < smallBytes }

// pump sends what may go at now.
func (c *core) pump(now time.Duration) {
	for {
		if c.head == nil {
			if c.head = c.q.take(now); c.head == nil {
				return
			}
		}
		p := c.pick(now, c.head)
		if p == nil {
			return
		}
		c.sendHead(now, p)
	}
}

// arrival is when something sent on p now would arrive, compared to other
// paths only.
func (p *path) arrival() time.Duration {
	return time.Duration(p.base.min())*time.Microsecond + p.queue
}

// onlyBackup tells whether no path but backup ones is alive.
func (c *core) onlyBackup() bool {
	for _, p := range c.paths {
		if p.alive && !p.backup {
			return false
		}
	}
	return true
}

// pick chooses the path for it, nil if it has to wait.
func (c *core) pick(now time.Duration, it *item) *path {
	useBackup := c.onlyBackup()
	allStalled := true
	for _, p := range c.paths {
		if p.alive && p.backup == useBackup && !p.stalled(now) {
			allStalled = false
		}
	}
	var best, fastest *path
	for _, p := range c.paths {
		if !p.alive || p.backup != useBackup || p.stalled(now) && !allStalled {
			continue
		}
		if fastest == nil || p.arrival() < fastest.arrival() {
			fastest = p
		}
		if p.ready() > now {
			p.busy = true
			continue
		}
		if best == nil || c.better(p, best) {
			best = p
		}
	}
	if best == nil {
		return nil
	}
	if l := &c.lanes[it.lane]; l.small() && l.path != best.id {
		if p := c.path(l.path); p != nil && p.alive && p.backup == useBackup && p.ready() <= now &&
			!p.stalled(now) && p.arrival() <= best.arrival()+nearlyEqual {
			return p
		}
	}
	if fastest != best && fastest.ready() > now && best.arrival()-fastest.arrival() > nearlyEqual {
		// The fast path is worth a short wait.
		wait := fastest.ready() - now + time.Duration(float64(c.q.bytes)/fastest.rate*float64(time.Second))
		if wait < min(maxWait, best.arrival()-fastest.arrival()) {
			return nil
		}
	}
	return best
}

// better tells whether p is to be preferred to o, both being ready: the one
// that delivers sooner, or of nearly equal ones the one that has carried less
// of its share.
func (c *core) better(p, o *path) bool {
	d := p.arrival() - o.arrival()
	if d > nearlyEqual || d < -nearlyEqual {
		return d < 0
	}
	floor := c.vmax - burstTime.Seconds()
	vp, vo := max(floor, c.vtimes[p.id]), max(floor, c.vtimes[o.id])
	if vp != vo {
		return vp < vo
	}
	return d < 0
}

// share is the rate by which paths of equal delay share the load. As long as
// nothing has shown what they carry they share equally.
func (c *core) share(p *path) float64 {
	if p.started {
		return p.capacity * p.weight
	}
	r := p.rate
	for _, o := range c.paths {
		if o.alive && !o.started {
			r = max(r, o.rate)
		}
	}
	return r * p.weight
}

// account charges n bytes of UDP payload to p.
func (c *core) account(now time.Duration, p *path, n int) {
	p.charge(now, n)
	v := max(c.vtimes[p.id], c.vmax-burstTime.Seconds()) + float64(n+p.overhead)/c.share(p)
	c.vtimes[p.id] = v
	c.vmax = max(c.vmax, v)
}

// wantAck tells whether the next packet on p should carry an acknowledgement.
func (p *path) wantAck(now time.Duration) bool {
	return p.ackDue != 0 && (now >= p.ackDue || now-p.ackSent >= ackDelay*4/5)
}

// fill completes the header of the next packet on p.
func (c *core) fill(now time.Duration, p *path, h *header) {
	p.txSeq++
	h.path, h.session, h.seq, h.ts = p.id, c.id, p.txSeq, micros(now)
	if p.silent {
		h.flags |= flagSilent
	}
	if c.announce(now) {
		h.flags |= flagActive
	}
	if c.active(now) {
		h.flags |= flagFast
	}
	if h.flags&flagAck != 0 {
		h.ack = ack{
			seq: uint32(p.rxLargest), echo: p.rxEcho, hold: micros(now) - micros(p.rxArrival),
			arrival: micros(p.rxArrival), count: p.rxCount, bytes: p.rxBytes, minOWD: p.ackMin,
		}
		p.ackDue, p.ackSent, p.ackMinSet = 0, now, false
	}
}

// sendHead sends the head of the queue, or a piece of it, on p.
func (c *core) sendHead(now time.Duration, p *path) {
	it := c.head
	l := &c.lanes[it.lane]
	if !it.seqSet {
		it.seq, it.seqSet = l.seq, true
		l.seq++
		it.dup = c.duplicate == DuplicateAll || c.duplicate == DuplicateSmall && l.small()
		c.sent++
	}
	l.path = p.id
	var h header
	if p.wantAck(now) {
		h.flags |= flagAck
	}
	limit := p.mtu - headerLen - tagLen - frameLen
	if it.off == 0 && it.n > limit-ackLen {
		h.flags &^= flagAck // rather alone than in the way
	}
	var k packet
	if it.off == 0 && it.n <= limit {
		hs := h.size() + frameLen
		k = packet{buf: it.buf, lo: room - hs, hi: room + it.n}
		putFrame(k.buf[room-frameLen:], it.class, it.dup, it.lane, it.seq, it.n)
		c.head = nil
		k = c.coalesce(now, p, k)
	} else {
		k = c.cut(p, &h, it)
		if it.off == it.n {
			giveBuffer(it.buf)
			c.head = nil
		}
	}
	dup := it.dup
	var q *path
	if dup {
		q = c.second(now, p)
	}
	if q != nil && k.hi-k.lo-h.size()+headerLen+tagLen <= q.mtu {
		body := k.buf[k.lo+h.size() : k.hi]
		d := packet{buf: takeBuffer()[:bufferSize]}
		if cap(k.buf) > bufferSize {
			d.buf = make([]byte, cap(k.buf))
		}
		d.hi = headerLen + copy(d.buf[headerLen:], body)
		var hq header
		c.fill(now, q, &hq)
		hq.put(d.buf)
		c.finish(now, q, d)
	}
	c.fill(now, p, &h)
	h.put(k.buf[k.lo:])
	c.finish(now, p, k)
}

// finish charges and hands over a packet of payloads.
func (c *core) finish(now time.Duration, p *path, k packet) {
	p.elicited(now)
	c.account(now, p, k.hi-k.lo+tagLen)
	c.emit(p, k)
}

// elicited notes that the packet just filled asks for an acknowledgement.
func (p *path) elicited(now time.Duration) {
	p.elicit = uint32(p.txSeq)
	if p.unacked == 0 {
		p.unacked = now
	}
}

// second is the path for the copy of something sent on p.
func (c *core) second(now time.Duration, p *path) *path {
	var best *path
	for _, o := range c.paths {
		if o == p || !o.alive || o.stalled(now) || o.ready() > now+burstTime {
			continue
		}
		if best == nil || best.backup && !o.backup || best.backup == o.backup && o.arrival() < best.arrival() {
			best = o
		}
	}
	return best
}

// coalesce appends further small payloads that wait to packet k.
func (c *core) coalesce(now time.Duration, p *path, k packet) packet {
	for {
		if c.head = c.q.take(now); c.head == nil {
			return k
		}
		it := c.head
		used := k.hi - k.lo + tagLen
		if it.n > coalesceMax || used+frameLen+it.n > p.mtu || k.hi+frameLen+it.n+tagLen > cap(k.buf) {
			return k
		}
		l := &c.lanes[it.lane]
		if c.duplicate == DuplicateSmall && l.small() {
			return k
		}
		it.seq = l.seq
		l.seq++
		l.path = p.id
		c.sent++
		k.buf = k.buf[:cap(k.buf)]
		putFrame(k.buf[k.hi:], it.class, c.duplicate == DuplicateAll, it.lane, it.seq, it.n)
		copy(k.buf[k.hi+frameLen:], it.buf[room:room+it.n])
		k.hi += frameLen + it.n
		giveBuffer(it.buf)
		c.head = nil
	}
}

// cut makes a packet of the next piece of it, as large as the others to come.
func (c *core) cut(p *path, h *header, it *item) packet {
	limit := p.mtu - h.size() - tagLen - fragmentLen
	left := it.n - it.off
	pieces := (left + limit - 1) / limit
	n := (left + pieces - 1) / pieces
	hs := h.size() + fragmentLen
	k := packet{buf: takeBuffer()[:bufferSize], hi: hs + n}
	if k.hi+tagLen > bufferSize {
		k.buf = make([]byte, k.hi+tagLen)
	}
	putFragment(k.buf[h.size():], it.class, it.dup, it.lane, it.seq, n, it.off, it.n)
	copy(k.buf[hs:], it.buf[room+it.off:room+it.off+n])
	it.off += n
	return k
}

// probe sends a packet without payload on p: an acknowledgement, a sign of
// life, or a test of the packet size.
func (c *core) probe(now time.Duration, p *path, flags byte, size int) {
	h := header{flags: flags}
	if p.heard {
		h.flags |= flagAck
	}
	if !p.ackMinSet && p.heard {
		p.ackMin = uint32(p.owdRecent) + c.rxRef
	}
	k := packet{buf: takeBuffer()[:bufferSize]}
	if size+tagLen > bufferSize {
		k.buf = make([]byte, size+tagLen)
	}
	k.hi = h.size()
	if c.near && (!p.alive || flags&flagReply != 0) {
		name := p.name[:min(len(p.name), maxPathName)]
		b := append(k.buf[:k.hi], framePath<<4, byte(len(name)), 0, byte(min(255, p.weight)))
		if p.backup {
			b[k.hi+2] = 1
		}
		k.hi = len(append(b, name...))
	}
	if p.sizeSeen != 0 {
		b := append(k.buf[:k.hi], frameSize<<4)
		k.hi = len(binary.BigEndian.AppendUint16(b, uint16(p.sizeSeen)))
		p.sizeSeen = 0
	}
	if pad := size - tagLen; pad > k.hi {
		clear(k.buf[k.hi:pad])
		k.hi = pad
	}
	c.fill(now, p, &h)
	h.put(k.buf)
	p.nextProbe = now + c.probeInterval(now)
	if flags&(flagReply|flagSize) != 0 {
		p.elicited(now)
	}
	c.account(now, p, k.hi+tagLen)
	c.emit(p, k)
}

// receive takes an authentic packet of n bytes that arrived at the given time
// by this machine's clock. p is the path, made by learn where it is new. It
// reports whether the packet was new and the latest of its path.
func (c *core) receive(now, arrival time.Duration, p *path, h *header, body []byte, n int) (fresh, latest bool) {
	if !p.window.accept(h.seq) {
		p.replayed++
		return false, false
	}
	p.rxCount++
	p.rxBytes += uint32(n)
	p.rxTotal += uint64(n)
	p.rxPackets++
	latest = h.seq > p.rxLargest
	if !c.rxRefSet {
		c.rxRefSet, c.rxRef = true, micros(arrival)-h.ts
	}
	owd := micros(arrival) - h.ts
	rel := int32(owd - c.rxRef)
	if latest {
		p.rxLargest, p.rxEcho, p.rxArrival = h.seq, h.ts, arrival
		p.peerHears = h.flags&flagSilent == 0
		p.owdRecent = rel
	}
	if !p.heard || int32(h.ts-p.lastPeerTS) > 0 {
		p.lastPeerTS = h.ts
	}
	if !c.peerTSSet || int32(h.ts-c.peerTS) > 0 {
		if c.peerTSSet {
			// A larger step means that the peer stood still, or sent nothing.
			c.peerRan += min(time.Duration(h.ts-c.peerTS)*time.Microsecond, activeProbe+tickActive)
		}
		c.peerTS, c.peerTSSet = h.ts, true
	}
	p.peerRan = c.peerRan
	p.owd.add(now, rel)
	p.owdMax = max(rel-p.owd.min(), p.owdMax-p.owdMax/256)
	if !p.ackMinSet || int32(owd-p.ackMin) < 0 {
		p.ackMin, p.ackMinSet = owd, true
	}
	p.heard, p.silence, p.lastRx = true, 0, now
	p.silent = false
	if h.flags&flagActive != 0 {
		if !c.active(now) {
			for _, o := range c.paths {
				o.nextProbe = now
			}
		}
		c.peerActive, c.havePeer = now, true
	}
	if h.flags&flagFast != 0 {
		if !c.peerFast(now) {
			for _, o := range c.paths {
				o.silence = 0 // it has sent little so far
			}
		}
		c.fastAt, c.haveFast = now, true
	}
	if h.flags&flagAck != 0 {
		a := h.ack
		if !c.txRefSet {
			c.txRefSet, c.txRef = true, a.minOWD
		}
		a.minOWD -= c.txRef
		p.onAck(now, a)
	}
	if h.flags&flagSize != 0 {
		p.sizeSeen = n
	}
	c.frames(now, p, h, body)
	c.judge(now, p)
	if h.flags&flagReply != 0 || !p.alive && latest && h.flags&flagSilent != 0 {
		p.ackDue = now
	}
	return true, latest
}

// frames takes what a packet carries.
func (c *core) frames(now time.Duration, p *path, h *header, body []byte) {
	data := false
	for {
		f, rest, ok, err := nextFrame(body)
		if err != nil || !ok {
			break
		}
		body = rest
		switch f.kind {
		case framePayload:
			data = true
			c.in.add(now, f.lane, f.seq, f.class, f.dup, f.data, h.ts, c.deadline(now, p))
		case frameFragment:
			data = true
			if w := c.pieces.add(now, &f); w != nil {
				before := len(c.in.out)
				c.in.add(now, w.lane, w.seq, w.class, f.dup, w.buf, h.ts, c.deadline(now, p))
				// Either it is to be delivered as it is, or it was copied or dropped.
				mine := false
				for i := before; i < len(c.in.out); i++ {
					if d := &c.in.out[i]; len(d.data) > 0 && &d.data[0] == &w.buf[0] {
						d.buf, mine = w.buf, true
					}
				}
				if !mine {
					giveBuffer(w.buf)
				}
			}
		case framePath:
			if !c.near {
				p.name, p.backup, p.weight = string(f.data), f.backup, float64(max(1, f.weight))
			}
		case frameSize:
			c.sizePassed(now, p, f.size)
		}
	}
	if !data {
		return
	}
	c.dataAt, c.haveData = now, true
	if p.ackDue == 0 {
		p.ackDue = max(now, p.ackSent+ackDelay)
	}
	if c.in.waiting > 0 {
		c.in.passed(c.passedTS())
	}
}

// passedTS is the time of sending up to which every path has delivered.
func (c *core) passedTS() uint32 {
	ts := c.peerTS
	for _, p := range c.paths {
		if p.heard && !p.silent && int32(p.lastPeerTS-ts) < 0 {
			ts = p.lastPeerTS
		}
	}
	return ts
}

// deadline is how long a payload that came on p waits for earlier ones: until
// they would have come on the slowest path. Paths that are too slow for that
// are not waited for at all.
func (c *core) deadline(now time.Duration, p *path) time.Duration {
	var wait int32
	for _, o := range c.paths {
		if o != p && o.heard && !o.silent && o.owd.min()-p.owd.min() < int32(c.window/time.Microsecond) {
			wait = max(wait, o.owd.min()+o.owdMax-p.owdRecent)
		}
	}
	return now + min(c.window, time.Duration(wait)*time.Microsecond+3*time.Millisecond)
}

// judge derives whether p is alive.
func (c *core) judge(now time.Duration, p *path) {
	c.setAlive(p, p.heard && !p.silent && p.peerHears && p.answered && p.gone == nil)
}

func (c *core) setAlive(p *path, alive bool) {
	if p.alive == alive {
		return
	}
	p.alive = alive
	p.unacked = 0
	if !alive {
		p.answered = false
		p.mtuTry, p.mtuTries = 0, 0
	}
	name := p.name
	if p.alias != "" {
		name = p.alias
	}
	c.events = append(c.events, event{name: name, alive: alive, rtt: p.srtt})
}

// fail tells that sending on p fails on this machine; nil ends that.
func (c *core) fail(now time.Duration, p *path, err error) {
	p.gone = err
	c.judge(now, p)
}

// peerFast tells whether the peer sends probes fast.
func (c *core) peerFast(now time.Duration) bool { return c.haveFast && now-c.fastAt < time.Second }

// tick looks at liveness.
func (c *core) tick(now time.Duration) {
	interval := tickIdle
	if c.active(now) {
		interval = tickActive
	}
	dt := now - c.lastTick
	if dt < interval {
		return
	}
	c.lastTick = now
	// Time that passed while this machine did not run us is no silence.
	dt = min(dt, 2*interval)
	peerFast := c.peerFast(now)
	fastest := int32(0)
	first := true
	for _, p := range c.paths {
		if p.heard && !p.silent && (first || p.owd.min() < fastest) {
			fastest, first = p.owd.min(), false
		}
	}
	for _, p := range c.paths {
		p.silence += dt
		p.owdMax -= p.owdMax / 256
		if p.silent || !p.heard {
			continue
		}
		behind := time.Duration(p.owd.min()-fastest) * time.Microsecond
		limit := p.patience(min(activeProbe, c.probeInterval(now)), behind)
		if !peerFast {
			limit += idlePatience
		}
		if p.silence < limit {
			if peerFast && p.silence > limit/2 {
				// Doubtful: ask, so that some lost probes are not taken for more.
				c.probe(now, p, flagReply, 0)
			}
			continue
		}
		// If another path has brought what the peer sent since, the peer runs
		// and this path is to blame. If all are silent it may be the peer.
		since := c.peerRan - p.peerRan
		if !peerFast {
			since = time.Duration(c.peerTS-p.lastPeerTS) * time.Microsecond
		}
		if since >= limit-behind-2*tickActive || p.silence >= allSilent && p.silence >= 3*limit {
			p.silent = true
			c.judge(now, p)
			c.probe(now, p, flagReply, 0)
			// The peer has to know at once that we do not hear it.
			p.peerHears = false
		}
	}
	if now-c.sweepAt >= time.Second {
		c.sweepAt = now
		c.pieces.expire(now)
		for _, p := range slices.Clone(c.paths) {
			if !c.near && p.silent && now-p.lastRx > retireAfter {
				c.removePath(p)
			}
		}
	}
}

// run does all that is due at now and returns when it is to be called again.
func (c *core) run(now time.Duration) time.Duration {
	c.tick(now)
	c.in.expire(now)
	interval := c.probeInterval(now)
	for _, p := range c.paths {
		if p.mtuNext <= now && p.alive {
			c.probeSize(now, p)
		}
		if p.ackDue != 0 && now >= p.ackDue {
			c.probe(now, p, 0, 0)
		}
		if p.nextProbe > now+interval {
			p.nextProbe = now + interval
		}
		if now >= p.nextProbe {
			switch {
			case !p.alive:
				c.probe(now, p, flagReply, 0)
			case now-p.lastTx >= interval:
				c.probe(now, p, 0, 0)
			default:
				p.nextProbe = p.lastTx + interval
			}
		}
	}
	c.pump(now)
	return c.wake(now)
}

// wake is the time of the next call of run.
func (c *core) wake(now time.Duration) time.Duration {
	at := c.lastTick + tickIdle
	if c.active(now) {
		at = c.lastTick + tickActive
	}
	for _, p := range c.paths {
		at = min(at, p.nextProbe)
		if p.ackDue != 0 {
			at = min(at, p.ackDue)
		}
		if p.alive {
			at = min(at, p.mtuNext)
			if c.head != nil {
				at = min(at, max(now, p.ready()))
			}
		}
	}
	if d := c.in.pending(); d != 0 {
		at = min(at, d)
	}
	return at
}

// setGoal tells the largest UDP payload that the path's interface takes.
func (c *core) setGoal(p *path, size int) {
	p.mtuGoal = size
	p.mtu = min(p.mtu, max(size, basePayload))
	p.mtuHigh, p.mtuTry, p.mtuNext = 0, 0, 0
}

// probeSize goes on with the search for the largest packet that passes
// (RFC 8899): the interface's size first, then by halves; and from time to
// time it looks whether what was found still passes.
func (c *core) probeSize(now time.Duration, p *path) {
	if p.mtuGoal == 0 {
		p.mtuNext = now + mtuConfirm
		return
	}
	if p.mtuTry != 0 && p.mtuTries >= 3 {
		// This size does not pass.
		if p.mtuTry <= p.mtu {
			p.mtu, p.mtuHigh = min(p.mtu, basePayload), 0
		} else {
			p.mtuHigh = p.mtuTry
		}
		p.mtuTry = 0
	}
	if p.mtuTry == 0 {
		p.mtuTries = 0
		if p.mtuHigh != 0 && p.mtuHigh-p.mtu <= mtuStep {
			switch {
			case p.mtuFound == 0:
				p.mtuFound = now
			case now-p.mtuFound > mtuAgain && c.active(now):
				p.mtuFound, p.mtuHigh = 0, 0 // the path may have become better
			}
		}
		switch {
		case p.mtu >= p.mtuGoal || p.mtuHigh != 0 && p.mtuHigh-p.mtu <= mtuStep:
			if !c.active(now) || p.mtu <= basePayload {
				p.mtuNext = now + mtuConfirm
				return
			}
			p.mtuTry = p.mtu
		case p.mtuHigh == 0:
			p.mtuTry = p.mtuGoal
		default:
			p.mtuTry = (p.mtu + p.mtuHigh) / 2
		}
	}
	p.mtuTries++
	p.mtuNext = now + mtuRetry + p.srtt + 4*p.rttvar
	c.probe(now, p, flagReply|flagSize, p.mtuTry)
}

// sizePassed takes the answer to probeSize.
func (c *core) sizePassed(now time.Duration, p *path, size int) {
	if p.mtuTry == 0 || size < p.mtuTry {
		return
	}
	confirmed := p.mtuTry <= p.mtu
	p.mtu = max(p.mtu, p.mtuTry)
	p.mtuTry, p.mtuTries = 0, 0
	p.mtuNext = now
	if confirmed || p.mtu >= p.mtuGoal {
		p.mtuNext = now + mtuConfirm
	}
}

// tooLarge tells that the interface refused a packet.
func (c *core) tooLarge(p *path, goal int) {
	p.mtu, p.mtuHigh = min(p.mtu, max(basePayload, goal)), 0
	if goal > 0 {
		p.mtuGoal = min(p.mtuGoal, goal)
	}
}

// close drops what waits.
func (c *core) close() {
	c.q.clear()
	if c.head != nil {
		giveBuffer(c.head.buf)
		c.head = nil
	}
	for _, p := range slices.Clone(c.paths) {
		c.setAlive(p, false)
	}
}

// stats of the session; the caller adds what it knows.
func (c *core) stats(now time.Duration) SessionStats {
	s := SessionStats{
		Near: c.near, ID: c.id, Active: c.active(now), Queued: c.q.bytes,
		Sent: c.sent, Delivered: c.delivered, Dropped: c.q.drops, Overflow: c.q.overflow, Unsent: c.unsent,
		Duplicate: c.in.duplicate, Reordered: c.in.reordered, Skipped: c.in.skipped, Late: c.in.late,
	}
	for _, p := range c.paths {
		p.meter(now)
		s.Paths = append(s.Paths, PathStats{
			ID: p.id, Name: p.name, Local: p.local, Remote: p.remote, Alive: p.alive, Backup: p.backup,
			RTT: p.srtt, MinRTT: time.Duration(p.rtts.min()) * time.Microsecond, Queue: p.queue,
			Rate: p.rate, Delivered: p.deliv, Loss: p.loss, MTU: p.mtu + p.mtuHeader,
			TxPackets: p.txPackets, TxBytes: p.txBytes - p.txPackets*uint64(p.overhead),
			RxPackets: p.rxPackets, RxBytes: p.rxTotal, Lost: p.lost, Replayed: p.replayed,
		})
	}
	return s
}
