package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reasons for which a trunk is closed.
var (
	// ErrStale: nothing came back on the trunk for too long.
	ErrStale = errors.New("trunk does not answer")
	// ErrSuperseded: the peer goes on with the flow on another trunk.
	ErrSuperseded = errors.New("trunk given up by the peer")
	// ErrClosed: the engine has ended.
	ErrClosed = errors.New("engine closed")
	// ErrNoTrunk: no trunk to the peer came in time.
	ErrNoTrunk = errors.New("no trunk to the peer")
	// ErrLimit: Options.MaxFlows is reached, or Drain was called.
	ErrLimit = errors.New("no more flows are taken")
	// ErrReset: the other host has reset the connection.
	ErrReset = errors.New("reset by the other host")
	// ErrAborted: Abort was called, or the engine's owner dropped the peer.
	ErrAborted = errors.New("aborted")
)

const (
	// answerTime is how long an OPEN or RESUME waits for any answer before the
	// trunk counts as stale and another is taken; it doubles each time. A trunk
	// that still delivers what was sent, if slowly, gets as long again and
	// again, up to answerMax; one that does not, next to others that do, has
	// perhaps lost a segment several times over and gets answerSlow.
	answerTime = 2 * time.Second
	answerSlow = 15 * time.Second
	answerMax  = time.Minute
	// openTries and resumeTries bound that: an OPEN gives up after 14 s, a
	// sleeping flow outlives outages of a quarter of an hour, as TCP does.
	openTries   = 3
	resumeTries = 20
	// pendingTime is how long far waits for the sink before it tells near that
	// the OPEN has arrived.
	pendingTime = 400 * time.Millisecond
	// resetTime is how long a trunk may take to become free after a reset: its
	// peer may be held up by a host that does not read. Then it is closed.
	resetTime = 2 * time.Second
	// resetQueue is how many bytes a reset may have before it on a trunk; with
	// more it overtakes them by closing the trunk.
	resetQueue = 64 << 10
	// retainMax bounds what is sent, and kept for a second try, before the
	// first answer.
	retainMax = 64 << 10
	pingIdle  = 15 * time.Second
	pingTime  = 5 * time.Second
)

// trunk is a Trunk at work. It carries one flow at a time. Both sides end the
// flow by a last frame (END, RST or OPEN-FAILED); once a side has sent and got
// one, the trunk is idle for it.
type trunk struct {
	end
	Trunk
	l *loop
	p *peer
	f *Flow

	idle      bool // no flow; in the peer's list unless taken by another loop
	mine      bool // we began with OPEN or RESUME
	fresh     bool // begun with OPEN
	confirmed bool // and the other side has answered; true if it began
	sentEnd   bool
	gotEnd    bool
	parking   bool // PARK sent
	skip      bool // everything up to YIELD is void
	stash     bool // another loop has taken the trunk: leave the bytes alone
	dead      bool
	dirty     bool
	used      bool
	surplus   bool // one idle trunk too many
	reserved  bool // off the list, but ours

	in        []byte // beginning of a frame
	left      int    // bytes of a DATA frame still to come
	out       []byte // not taken by the socket yet, from off on
	off       int
	ctl       []byte // frames to go out with the next data, at the latest by flush
	sealer    *seal
	opener    *seal
	parsing   bool
	leaveTo   *loop // move once parse is done
	leaveFor  *Flow
	replay    []byte // contents of a RESUME that came on the wrong loop
	carried   uint64 // payload bytes sent for the flow
	handed    int    // bytes that the socket has taken since the flow began
	beganAt   int64  // when the flow was bound to it
	left0     int    // bytes not acknowledged when patient looked last; -1: never
	deadline  int64
	last      int64 // when something came
	pinged    int64 // PING sent, 0: not waiting
	idleSince int64
	busyAt    int // index in loop.busy, -1: not there

	// Guarded by peer.mu.
	listed     bool
	prev, next *trunk
}

func (t *trunk) blocked() bool { return t.off < len(t.out) }

// control queues a frame.
func (t *trunk) control(ft frameType, payload ...byte) {
	t.ctl = appendFrame(t.ctl, ft, payload...)
	t.mark()
}

func (t *trunk) mark() {
	if !t.dirty && !t.dead {
		t.dirty = true
		t.l.dirty = append(t.l.dirty, t)
	}
}

// takeControl returns the queued frames as they go on the wire; the slice is
// good until the next call.
func (t *trunk) takeControl() []byte {
	b := t.ctl
	if t.sealer != nil {
		t.l.seal = t.sealer.appendSealed(t.l.seal[:0], b)
		b = t.l.seal
	}
	if cap(t.ctl) > 1<<10 {
		t.ctl = nil
	} else {
		t.ctl = t.ctl[:0]
	}
	return b
}

func (t *trunk) flushControl() {
	if t.dead {
		return
	}
	t.push(t.takeControl())
}

// push writes b and keeps what the socket does not take.
func (t *trunk) push(b []byte) {
	if t.blocked() {
		t.out = t.l.more(t.out, b)
		return
	}
	n, errno := send(t.fd, b)
	if errno != 0 && errno != unix.EAGAIN {
		t.kill(fmt.Errorf("writing to trunk %d of %s: %w", t.ID, t.Peer, errno))
		return
	}
	t.handed += n
	if n < len(b) {
		t.writable = false
		t.out, t.off = t.l.hold(b[n:]), 0
	}
}

// flushOut goes on with what push has kept.
func (t *trunk) flushOut() {
	for t.blocked() {
		n, errno := send(t.fd, t.out[t.off:])
		if errno == unix.EAGAIN {
			t.writable = false
			return
		}
		if errno != 0 {
			t.kill(fmt.Errorf("writing to trunk %d of %s: %w", t.ID, t.Peer, errno))
			return
		}
		t.off += n
		t.handed += n
	}
	t.l.drop(t.out)
	t.out, t.off = nil, 0
}

// sendData sends n bytes that were read to loop.buf[headroom:], behind the
// queued control frames and followed by FIN if fin is set.
func (t *trunk) sendData(n int, fin bool) {
	l := t.l
	if len(t.ctl) > headroom/4 {
		t.flushControl()
		if t.dead {
			return
		}
	}
	from, to := headroom, headroom
	ctl := t.takeControl()
	if n > 0 {
		from -= headerLen
		putHeader(l.buf[from:], frameData, n)
		to += n
		if t.sealer != nil {
			to = from + len(t.sealer.seal(l.buf[from:to]))
		}
	}
	if fin {
		at := to
		to += len(appendFrame(l.buf[at:at], frameFin))
		if t.sealer != nil {
			to = at + len(t.sealer.seal(l.buf[at:to]))
		}
	}
	from -= len(ctl)
	copy(l.buf[from:], ctl)
	t.carried += uint64(n)
	t.push(l.buf[from:to])
}

func (t *trunk) event(*end) {
	if t.dead {
		return
	}
	if t.blocked() && t.writable {
		t.flushOut()
	}
	t.pump()
	if f := t.f; f != nil && !t.dead && !t.blocked() {
		f.pump()
	}
}

// pump reads frames for as long as they can be delivered.
func (t *trunk) pump() {
	l := t.l
	for n := turns; t.readable && !t.dead && !t.stash; n-- {
		if f := t.f; f != nil && f.stalled() {
			return
		}
		if n == 0 {
			l.requeue(&t.end)
			return
		}
		b := l.buf[headroom:]
		k := copy(b, t.in)
		room := min(l.room(), readMax-k)
		got, errno := recv(t.fd, b[k:k+room])
		switch {
		case errno == unix.EAGAIN:
			t.readable = false
			return
		case errno != 0:
			t.kill(fmt.Errorf("reading from trunk %d of %s: %w", t.ID, t.Peer, errno))
			return
		case got == 0:
			t.kill(fmt.Errorf("reading from trunk %d of %s: %w", t.ID, t.Peer, io.EOF))
			return
		}
		if got < room && !t.hup {
			t.readable = false
		}
		t.last = l.now
		t.pinged = 0
		t.p.hear(l.now)
		l.drop(t.in)
		t.in = nil
		t.parse(b[:k+got])
	}
}

// parse takes frames from b, which lies in loop.buf: nothing that it calls may
// read into that.
func (t *trunk) parse(b []byte) {
	l := t.l
	l.iov = l.iov[:0]
	t.parsing = true
	b = t.frames(b)
	t.parsing = false
	if len(b) > 0 && !t.dead {
		t.in = l.hold(b)
	}
	if t.leaveTo != nil {
		t.depart()
	}
}

// frames is parse until a frame is incomplete or the trunk is for others; it
// returns what is left.
func (t *trunk) frames(b []byte) []byte {
	l := t.l
	for len(b) > 0 {
		if t.left > 0 {
			n := min(len(b), t.left)
			l.iov = append(l.iov, iovec(b[:n]))
			t.left -= n
			b = b[n:]
			continue
		}
		if len(b) < headerLen {
			break
		}
		ft, n, err := parseHeader(b, t.opener != nil)
		if err != nil {
			t.kill(err)
			return nil
		}
		if ft == frameData && t.opener == nil {
			t.left = n
			b = b[headerLen:]
			continue
		}
		if len(b) < headerLen+n {
			break
		}
		if (ft == frameOpen || ft == frameResume) && !t.claim() {
			t.stash = true
			break
		}
		frame := b[:headerLen+n]
		b = b[headerLen+n:]
		p := frame[headerLen:]
		if t.opener != nil {
			if p, err = t.opener.open(frame); err != nil {
				l.count.authFailed.Add(1)
				t.kill(err)
				return nil
			}
		}
		if ft == frameData {
			if len(p) > 0 {
				l.iov = append(l.iov, iovec(p))
			}
			continue
		}
		t.data()
		if t.dead {
			return nil
		}
		t.handle(ft, p)
		if t.dead {
			return nil
		}
		if t.leaveTo != nil || t.stash {
			return b
		}
	}
	t.data()
	return b
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}

func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

// data hands the bytes gathered in loop.iov to the flow.
func (t *trunk) data() {
	iov := t.l.iov
	if len(iov) == 0 {
		return
	}
	t.l.iov = iov[:0]
	switch {
	case t.skip || t.f == nil && t.sentEnd: // void, or for a host that is gone
	case t.f == nil || t.gotEnd:
		t.kill(fmt.Errorf("%w: DATA on a trunk without a flow", ErrProtocol))
	case t.sentEnd:
	default:
		t.confirm()
		t.f.put(iov)
	}
}

// claim takes an idle trunk out of its peer's list, unless another loop has
// done so and will have it moved. It is true for a trunk that is not idle.
func (t *trunk) claim() bool {
	if !t.idle || t.reserved {
		return true
	}
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if !t.listed {
		return false
	}
	t.p.unlist(t)
	t.reserved = true
	return true
}

// confirm notes that the other side has answered.
func (t *trunk) confirm() {
	if t.confirmed {
		return
	}
	t.confirmed = true
	t.deadline = 0
	if f := t.f; f != nil {
		if !t.fresh {
			f.followed = f.turn
		}
		f.begun = true
		f.tries = 0
		t.l.drop(f.retain)
		f.retain = nil
		if f.host.readable {
			t.l.requeue(&f.host)
		}
	}
}

// handle acts on any frame but DATA.
func (t *trunk) handle(ft frameType, p []byte) {
	switch ft {
	case framePing:
		if len(p) == 8 {
			t.control(framePong, p...)
		}
		return
	case framePong:
		return
	case frameYield:
		// It takes back a RESUME of which we knew the end already: the far side
		// had ended the flow, and so had we.
		if !t.skip && (t.idle || t.mine && !t.confirmed) {
			return
		}
	}
	if t.skip {
		if ft == frameYield {
			t.skip = false
			if t.f == nil && !t.sentEnd {
				t.gotEnd = true
				t.control(frameEnd)
				t.finish(false)
			}
		}
		return
	}
	switch ft {
	case frameOpen:
		if t.Near {
			t.kill(fmt.Errorf("%w: OPEN on a trunk that we dialled", ErrProtocol))
			return
		}
		if !t.idle && !t.lost() {
			t.kill(fmt.Errorf("%w: OPEN on a trunk in use", ErrProtocol))
			return
		}
		m, err := parseOpen(p)
		if err != nil {
			t.kill(err)
			return
		}
		t.begin(false)
		t.accept(m)
		return
	case frameResume:
		if !t.idle {
			if t.Near && t.mine && !t.confirmed { // both took it: near wins
				t.skip = true
				t.l.count.collisions.Add(1)
				return
			}
			if !t.lost() {
				t.kill(fmt.Errorf("%w: RESUME on a trunk in use", ErrProtocol))
				return
			}
		}
		t.resume(p)
		return
	}
	f := t.f
	if f == nil {
		switch {
		case !t.sentEnd || t.gotEnd:
			t.kill(fmt.Errorf("%w: %v on a trunk without a flow", ErrProtocol, ft))
		case ft == frameEnd || ft == frameReset || ft == frameFailed || ft == frameYield:
			t.gotEnd = true
			t.release()
		}
		return
	}
	t.confirm()
	switch ft {
	case frameOpened:
		f.opened()
	case framePending, frameResumed:
	case frameFin:
		f.gotFin()
	case frameFailed:
		t.gotEnd = true
		var err error
		ce, perr := parseFailed(p)
		if err = perr; err == nil {
			err = ce
		}
		f.lost(err)
	case frameReset:
		t.gotEnd = true
		f.lost(ErrReset)
	case frameEnd:
		t.gotEnd = true
		if f.over || !f.finRcvd || !f.finSent { // a final frame of ours crossed it, or there should have been a FIN
			f.lost(ErrReset)
		}
	case framePark:
		if t.sentEnd {
			return
		}
		if !t.parking { // else PARK and PARK crossed and stand for PARKED
			t.control(frameParked)
		}
		f.park()
	case frameParked:
		if !t.parking {
			t.kill(fmt.Errorf("%w: PARKED without PARK", ErrProtocol))
			return
		}
		f.park()
	default:
		t.kill(fmt.Errorf("%w: %v out of turn", ErrProtocol, ft))
	}
}

// lost gives an unanswered RESUME of ours up in favour of the peer's frame, if
// that is what the trunk carries.
func (t *trunk) lost() bool {
	f := t.f
	if t.Near || !t.mine || t.confirmed {
		return false
	}
	if f == nil { // given up already, and YIELD sent
		return t.sentEnd
	}
	t.l.count.collisions.Add(1)
	t.control(frameYield)
	f.t, t.f = nil, nil
	t.unbusy()
	t.l.post(f.wantTrunk) // not now: the frame may be about this very flow
	return true
}

// begin makes the trunk busy.
func (t *trunk) begin(mine bool) {
	t.idle, t.reserved, t.mine, t.fresh, t.confirmed = false, false, mine, false, !mine
	t.sentEnd, t.gotEnd, t.parking = false, false, false
	t.carried, t.handed, t.deadline, t.pinged = 0, 0, 0, 0
	t.beganAt, t.left0 = t.l.now, -1
	if t.busyAt < 0 {
		t.busyAt = len(t.l.busy)
		t.l.busy = append(t.l.busy, t)
		if due := t.l.now + int64(t.l.e.tickBusy); t.l.ticks > due {
			t.l.ticks = due
		}
		if t.used {
			t.l.count.reuses.Add(1)
		}
		t.used = true
		if cb := t.l.e.o.TrunkBusy; cb != nil {
			cb(t.Trunk, true)
		}
	}
}

func (t *trunk) unbusy() {
	if t.busyAt < 0 {
		return
	}
	b := t.l.busy
	k := len(b) - 1
	b[t.busyAt] = b[k]
	b[t.busyAt].busyAt = t.busyAt
	b[k] = nil
	t.l.busy = b[:k]
	t.busyAt = -1
	if cb := t.l.e.o.TrunkBusy; cb != nil {
		cb(t.Trunk, false)
	}
}

// release makes the trunk idle and gives it to a flow that waits.
func (t *trunk) release() {
	if t.dead {
		return
	}
	t.unbusy()
	t.f = nil
	t.idle = true
	t.sentEnd, t.gotEnd, t.parking, t.mine = false, false, false, false
	t.deadline = 0
	t.idleSince = t.l.now
	t.p.offer(t)
}

// finish is called when the flow's final frame was queued and the flow is off.
func (t *trunk) finish(reset bool) {
	t.f = nil
	t.sentEnd = true
	t.parking = false
	t.deadline = 0
	if t.gotEnd {
		t.release()
	} else if reset {
		t.deadline = t.l.now + int64(resetTime)
	}
}

// accept is OPEN on the far side.
func (t *trunk) accept(m openMessage) {
	l, e := t.l, t.l.e
	f := &Flow{e: e, l: l, p: t.p, id: m.flow, src: m.src, dst: m.dst, t: t, begun: true, last: l.now, start: l.now}
	f.host.fd, f.host.owner = -1, f
	t.p.mu.Lock()
	old := t.p.flows[m.flow]
	if old == nil {
		t.p.flows[m.flow] = f
	}
	t.p.mu.Unlock()
	if old != nil {
		t.kill(fmt.Errorf("%w: OPEN of flow %d, which there is already", ErrProtocol, m.flow))
		return
	}
	t.f = f
	l.flows[f] = struct{}{}
	err := e.admit()
	if err == nil && e.o.Allow != nil {
		if err = e.o.Allow(t.Peer, m.src, m.dst); err != nil {
			l.count.refused.Add(1)
			err = fmt.Errorf("%w: %w", err, unix.EACCES)
		}
	}
	fd := -1
	if err == nil {
		fd, err = e.o.Connect(m.src, m.dst, t.Peer)
	}
	if err == nil {
		f.host.fd = fd
		if err = l.watch(&f.host); err != nil {
			closeFD(fd)
			f.host.fd = -1
		}
	}
	if err != nil {
		f.refuse(err)
		return
	}
	f.connecting = true
	t.deadline = l.now + int64(pendingTime)
}

// resume is RESUME on either side; the trunk is off its list, or has just lost
// a RESUME of ours.
func (t *trunk) resume(p []byte) {
	l := t.l
	r, err := parseResume(p)
	if err != nil {
		t.kill(err)
		return
	}
	t.p.mu.Lock()
	f := t.p.flows[r.flow]
	t.p.mu.Unlock()
	if f != nil && f.l != l {
		t.replay = append([]byte(nil), p...)
		t.move(f.l, nil)
		return
	}
	if f != nil && t.Near {
		// What the far side sent before it had seen our own RESUME has lost
		// against that: YIELD will follow here.
		o := f.t
		if older(r.seen, f.followed) || o != nil && o.mine && !o.confirmed && !o.fresh && older(r.seen, f.turn) {
			t.begin(false)
			t.skip = true
			l.count.collisions.Add(1)
			return
		}
	}
	if f != nil && !older(f.seen, r.turn) {
		t.kill(ErrSuperseded) // it was given up for one that was faster
		return
	}
	if f != nil && f.heir != nil && f.heir != t {
		h := f.heir
		f.heir = nil
		h.kill(ErrSuperseded)
	}
	if f != nil && f.t != nil && f.t.parking && f.t != t {
		// The peer has parked the flow there, but that and what it sent before
		// is still on its way: wait for it.
		t.replay = append([]byte(nil), p...)
		t.stash = true
		f.heir = t
		return
	}
	t.begin(false)
	if f != nil && t.Near { // the answer to an OPEN may have died with its trunk: this is as good
		f.begun = true
		f.opened()
	}
	if f != nil && f.t != nil {
		switch o := f.t; {
		case !t.Near && o.mine && !o.confirmed:
			l.count.collisions.Add(1)
			o.control(frameYield)
			f.t, o.f = nil, nil
			o.finish(false)
		default:
			f.t, o.f = nil, nil
			o.kill(ErrSuperseded)
		}
	}
	if f == nil {
		t.control(frameReset)
		t.finish(true)
		return
	}
	l.parks.remove(f)
	f.waiting, f.wake = false, false
	f.t, t.f = t, f
	f.last = l.now
	f.tries = 0
	f.seen = r.turn
	if older(f.followed, r.seen) {
		f.followed = r.seen
	}
	l.count.resumes.Add(1)
	skip, again := int64(f.recvd-r.sent), int64(f.sent-r.received)
	if skip < 0 || again < 0 || again > int64(len(f.retain)) {
		f.fail(fmt.Errorf("%w: bytes were lost with a trunk", ErrStale))
		return
	}
	f.skip = uint64(skip)
	t.control(frameResumed)
	if again > 0 {
		t.ctl = appendFrame(t.ctl, frameData, f.retain[len(f.retain)-int(again):]...)
		t.carried = uint64(again)
	}
	l.drop(f.retain)
	f.retain = nil
	f.bound()
}

// kill closes the trunk. A flow on it is reset on both sides, or tried again
// elsewhere if the peer never answered.
func (t *trunk) kill(err error) {
	if t.dead {
		return
	}
	t.dead = true
	l := t.l
	t.p.mu.Lock()
	if t.listed {
		t.p.unlist(t)
	}
	t.p.trunks--
	t.p.mu.Unlock()
	t.unbusy()
	delete(l.trunk, t)
	l.forget(&t.end, true)
	l.e.trunkClosed(t, err)
	// What the peer has not acknowledged it cannot have acted upon.
	arrived := t.handed > 0 && outq(t.fd, false) < t.handed
	resetFD(t.fd)
	t.fd = -1
	l.drop(t.in)
	l.drop(t.out)
	t.in, t.out, t.ctl, t.off = nil, nil, nil, 0
	if f := t.f; f != nil {
		t.f, f.t = nil, nil
		f.trunkLost(t, err, arrived)
	}
}

// tick looks at the deadlines of a busy trunk and parks its flow.
func (t *trunk) tick() {
	l, f := t.l, t.f
	if t.deadline != 0 && l.now >= t.deadline {
		t.deadline = 0
		if f != nil && f.connecting && !t.mine {
			t.control(framePending)
			return
		}
		if f != nil && t.mine && !t.confirmed && t.patient() {
			return
		}
		t.kill(ErrStale)
		return
	}
	if f != nil && l.now-f.start > int64(30*time.Second) {
		f.setKeepAlive()
	}
	if f == nil || !t.confirmed || t.sentEnd || t.gotEnd || t.parking || t.skip || t.blocked() || len(t.ctl) > 0 || !f.mayPark() {
		return
	}
	if idle := l.e.parkAfter(t.p); idle >= 0 && l.now-f.last >= int64(idle) {
		t.parking = true
		t.control(framePark)
	}
}

// patient gives an OPEN or RESUME without an answer more time, if there are
// signs of life.
func (t *trunk) patient() bool {
	now := t.l.now
	waited := now - t.beganAt
	left := outq(t.fd, false) + len(t.out) - t.off
	if t.left0 < 0 {
		t.left0 = t.handed + len(t.out) - t.off
	}
	moves := left < t.left0
	t.left0 = left
	switch {
	case waited >= int64(answerMax):
		return false
	case moves:
	case waited < int64(answerSlow) && now-t.p.heard.Load() < int64(answerTime):
	default:
		return false
	}
	t.deadline = now + int64(answerTime)
	return true
}

// ping asks an idle trunk whether it lives.
func (t *trunk) ping() {
	t.pinged = t.l.now
	var p [8]byte
	binary.BigEndian.PutUint64(p[:], uint64(t.l.now))
	t.control(framePing, p[:]...)
}

// move gives an idle trunk to another loop, for flow f or for whatever its
// bytes say. The trunk is off its peer's list. While frames are parsed it is
// put off until the rest of them is stored.
func (t *trunk) move(to *loop, f *Flow) {
	t.leaveTo, t.leaveFor = to, f
	if !t.parsing {
		t.depart()
	}
}

// depart is move at last. The new loop gets a copy, so that what this loop
// still remembers of the trunk is dead.
func (t *trunk) depart() {
	l, to, f := t.l, t.leaveTo, t.leaveFor
	t.leaveTo, t.leaveFor = nil, nil
	if !t.dead && len(t.ctl) > 0 {
		t.flushControl()
	}
	if t.dead {
		if f != nil {
			to.post(func() { f.granted(nil) })
		}
		return
	}
	t.unbusy()
	l.forget(&t.end, false)
	delete(l.trunk, t)
	n := new(trunk)
	*n = *t
	n.l, n.owner, n.queued, n.dirty, n.stash = to, n, false, false, false
	t.dead, t.fd, t.in, t.out, t.ctl, t.off = true, -1, nil, nil, nil, 0
	if !to.post(func() { n.arrive(f) }) {
		l.e.trunkClosed(n, ErrClosed)
		resetFD(n.fd)
	}
}

// arrive is move on the receiving loop: what the peer has sent meanwhile comes
// first.
func (t *trunk) arrive(f *Flow) {
	l := t.l
	l.trunk[t] = struct{}{}
	err := ErrClosed
	if !l.dead {
		err = l.watch(&t.end)
	}
	if err != nil {
		t.kill(err)
	} else {
		t.idle, t.reserved = true, true
		t.readable, t.writable = true, true
		t.catchUp()
	}
	free := !t.dead && t.reserved && !t.stash
	if free {
		t.reserved = false
	}
	switch {
	case f != nil && free:
		f.granted(t)
	case f != nil:
		f.granted(nil)
	case free:
		t.release()
	}
	if !t.dead {
		l.requeue(&t.end)
	}
}

// catchUp goes on with bytes that were put aside.
func (t *trunk) catchUp() {
	l := t.l
	t.stash = false
	if p := t.replay; p != nil {
		t.replay = nil
		t.resume(p)
	}
	if in := t.in; in != nil && !t.dead && !t.stash {
		t.in = nil
		k := copy(l.buf[headroom:], in)
		l.drop(in)
		t.parse(l.buf[headroom : headroom+k])
	}
	if !t.dead {
		l.requeue(&t.end)
	}
}
