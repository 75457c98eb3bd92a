package stream

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Flow is one TCP connection of a host, as its opener sees it. Its methods may
// be called from any goroutine.
type Flow struct {
	e        *Engine
	l        *loop
	p        *peer
	id       uint64
	src, dst netip.AddrPort
	near     bool
	result   func(error) // near: told once
	host     end         // fd -1: not attached
	t        *trunk      // nil: parked, or waiting for a trunk
	heir     *trunk      // wants to resume the flow as soon as it is parked

	connecting bool // far: the sink has not answered
	begun      bool // the peer knows the flow: RESUME instead of OPEN
	isOpen     bool // the sink has accepted
	told       bool
	waiting    bool // queued for a trunk, or one is on its way
	wake       bool // parked for long: look whether the peer still knows
	noDelay    bool
	keepAlive  bool
	over       bool // nothing to do with the host any more
	done       bool // forgotten

	finSent bool // the host has ended its stream, FIN is queued
	finRcvd bool // the peer's host has
	shut    bool // our host has been told
	final   frameType
	err     error
	tries   int
	// Numbers of RESUME, the first is 1: the last of ours, the last of ours
	// that the peer has followed, the last of the peer's that we have.
	turn, followed, seen uint32

	down     []byte // for the host, from off on
	off      int
	retain   []byte // sent and not confirmed: once more on another trunk
	skip     uint64 // bytes to come that came before
	sent     uint64 // payload bytes to the peer
	recvd    uint64 // payload bytes from the peer
	last     int64
	start    int64
	parkedAt int64

	prev, next *Flow
	inParks    bool
}

// flowList is a queue of flows with removal from the middle.
type flowList struct {
	head, tail *Flow
	n          *atomic.Int64
}

func (q *flowList) push(f *Flow) {
	f.prev, f.next, f.inParks = q.tail, nil, true
	if q.tail != nil {
		q.tail.next = f
	} else {
		q.head = f
	}
	q.tail = f
	q.n.Add(1)
}

func (q *flowList) remove(f *Flow) {
	if !f.inParks {
		return
	}
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		q.head = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	} else {
		q.tail = f.prev
	}
	f.prev, f.next, f.inParks = nil, nil, false
	q.n.Add(-1)
}

// Attach gives the flow its host's socket, at once or later. What the host
// has sent before the result is carried right behind OPEN. The engine owns the
// socket from then on; it is reset if the flow fails or has failed.
func (f *Flow) Attach(fd int) {
	if !f.l.post(func() { f.attach(fd) }) {
		resetFD(fd)
	}
}

// Abort ends the flow with a reset, at any time.
func (f *Flow) Abort() { f.l.post(func() { f.fail(ErrAborted) }) }

func (f *Flow) attach(fd int) {
	if f.over || f.host.fd >= 0 || f.l.dead {
		resetFD(fd)
		return
	}
	f.host.fd = fd
	f.host.writable = true
	if err := f.l.watch(&f.host); err != nil {
		f.fail(err)
		return
	}
	f.flushDown()
	if t := f.t; t != nil && t.readable {
		f.l.requeue(&t.end)
	}
}

// begin is Open on the flow's loop.
func (f *Flow) begin() {
	l := f.l
	l.flows[f] = struct{}{}
	f.start, f.last = l.now, l.now
	err := f.e.admit()
	if l.dead {
		err = ErrClosed
	}
	if err != nil {
		f.fail(err)
		return
	}
	f.wantTrunk()
}

// attached tells whether bytes can go to the host.
func (f *Flow) attached() bool { return f.host.fd >= 0 && !f.connecting }

// stalled tells whether the trunk must not be read. Bytes that come before
// there is a host to take them are kept, so that a reset behind them is seen.
func (f *Flow) stalled() bool {
	n := len(f.down) - f.off
	if f.attached() {
		return n > 0
	}
	return n >= retainMax
}

func (f *Flow) event(*end) {
	if f.connecting {
		f.finishConnect()
		return
	}
	if f.over {
		return
	}
	if f.finSent {
		f.host.readable = false
		if errno := f.host.takeError(); errno != 0 {
			f.fail(fmt.Errorf("connection to %v: %w", f.hostAddr(), errno))
			return
		}
	}
	if f.off < len(f.down) && f.host.writable {
		f.flushDown()
	}
	f.pump()
	if t := f.t; t != nil && t.readable && !f.stalled() {
		t.pump()
	}
}

// finishConnect is the outcome of Options.Connect.
func (f *Flow) finishConnect() {
	err := f.e.o.Finish(f.host.fd)
	if errors.Is(err, unix.EINPROGRESS) {
		return
	}
	f.connecting = false
	if err != nil {
		f.refuse(err)
		return
	}
	f.host.writable = true
	f.isOpen = true
	f.l.count.opened.Add(1)
	if t := f.t; t != nil {
		t.deadline = 0
		t.control(frameOpened)
	}
	f.flushDown()
	f.l.requeue(&f.host)
	if t := f.t; t != nil && t.readable {
		f.l.requeue(&t.end)
	}
}

// refuse sends OPEN-FAILED.
func (f *Flow) refuse(err error) {
	t := f.t
	f.over = true
	f.connecting = false
	if f.host.fd >= 0 {
		f.l.forget(&f.host, true)
		closeFD(f.host.fd)
		f.host.fd = -1
	}
	f.dropDown()
	if t != nil {
		f.t = nil
		t.ctl = appendFailed(t.ctl, err)
		t.mark()
		t.finish(false)
	}
	f.gone(err)
}

// opened is OPENED on near.
func (f *Flow) opened() {
	if f.isOpen {
		return
	}
	f.isOpen = true
	f.l.count.opened.Add(1)
	f.tell(nil)
}

func (f *Flow) tell(err error) {
	if f.told {
		return
	}
	f.told = true
	if f.result != nil {
		f.result(err)
	}
}

// pump reads from the host for as long as the trunk takes it.
func (f *Flow) pump() {
	l := f.l
	for n := turns; f.host.readable && !f.over && !f.connecting && !f.finSent; n-- {
		t := f.t
		if t == nil {
			f.wantTrunk()
			return
		}
		if t.parking || t.blocked() || t.sentEnd {
			return
		}
		if n == 0 {
			l.requeue(&f.host)
			return
		}
		room := l.room()
		if t.sealer != nil {
			room = min(room, maxSealed)
		}
		if !t.confirmed {
			if room = min(room, retainMax-len(f.retain)); room == 0 {
				return
			}
		}
		b := l.buf[headroom : headroom+room]
		got, errno := recv(f.host.fd, b)
		fin, broken := false, unix.Errno(0)
		switch {
		case errno == unix.EAGAIN:
			f.host.readable = false
			return
		case errno != 0:
			f.fail(fmt.Errorf("reading from %v: %w", f.hostAddr(), errno))
			return
		case got == 0:
			fin = true
		case got < room && f.host.hup:
			// The end waits right behind: let it go in the same write.
			more, errno := recv(f.host.fd, b[got:])
			if fin = more == 0 && errno == 0; errno != unix.EAGAIN {
				broken = errno // told once only
			}
			got += more
		case got < room:
			f.host.readable = false
		}
		f.last = l.now
		f.sent += uint64(got)
		l.count.toPeer.Add(uint64(got))
		if !t.confirmed && got > 0 {
			f.retain = l.more(f.retain, b[:got])
		}
		if fin {
			f.finSent = true
			f.host.readable = false
		}
		t.sendData(got, fin)
		if fin {
			f.maybeDone()
		}
		if broken != 0 {
			f.fail(fmt.Errorf("reading from %v: %w", f.hostAddr(), broken))
		}
	}
}

// put delivers bytes from the trunk. What the host does not take is kept.
func (f *Flow) put(iov []unix.Iovec) {
	l := f.l
	f.last = l.now
	total := 0
	for f.skip > 0 && len(iov) > 0 {
		n := min(f.skip, uint64(iov[0].Len))
		f.skip -= n
		if b := bytesOf(iov[0])[n:]; len(b) > 0 {
			iov[0] = iovec(b)
			break
		}
		iov = iov[1:]
	}
	for i := range iov {
		total += int(iov[i].Len)
	}
	if total == 0 {
		return
	}
	f.recvd += uint64(total)
	l.count.fromPeer.Add(uint64(total))
	if f.over {
		return
	}
	if f.attached() && f.off == len(f.down) {
		var n int
		var errno unix.Errno
		if len(iov) == 1 {
			n, errno = send(f.host.fd, bytesOf(iov[0]))
		} else {
			n, errno = sendv(f.host.fd, iov[:min(len(iov), 1024)])
		}
		if errno != 0 && errno != unix.EAGAIN {
			f.fail(fmt.Errorf("writing to %v: %w", f.hostAddr(), errno))
			return
		}
		if !f.noDelay { // the first write never waits for anything
			f.noDelay = true
			setInt(f.host.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if n == total {
			return
		}
		f.host.writable = false
		l.count.stalled.Add(1)
		for n > 0 {
			k := int(iov[0].Len)
			if n < k {
				iov[0] = iovec(bytesOf(iov[0])[n:])
				break
			}
			n -= k
			iov = iov[1:]
		}
	}
	for _, v := range iov {
		f.down = l.more(f.down, bytesOf(v))
	}
}

func (f *Flow) dropDown() {
	f.l.drop(f.down)
	f.down, f.off = nil, 0
}

// flushDown goes on with what put has kept, then with a FIN behind it.
func (f *Flow) flushDown() {
	if !f.attached() || f.over {
		return
	}
	for f.off < len(f.down) {
		n, errno := send(f.host.fd, f.down[f.off:])
		if errno == unix.EAGAIN {
			f.host.writable = false
			return
		}
		if errno != 0 {
			f.fail(fmt.Errorf("writing to %v: %w", f.hostAddr(), errno))
			return
		}
		f.off += n
		f.last = f.l.now
	}
	f.dropDown()
	if f.finRcvd && !f.shut {
		f.shut = true
		shutdownWrite(f.host.fd)
		f.maybeDone()
	}
}

func (f *Flow) gotFin() {
	if f.finRcvd {
		return
	}
	f.finRcvd = true
	f.last = f.l.now
	f.flushDown()
}

// maybeDone ends the flow once both streams have.
func (f *Flow) maybeDone() {
	if f.finSent && f.shut {
		f.end(frameEnd, nil)
	}
}

// fail ends the flow with a reset of both hosts.
func (f *Flow) fail(err error) { f.end(frameReset, err) }

// end is done with our host and tells the peer by a final frame.
func (f *Flow) end(final frameType, err error) {
	if f.over {
		return
	}
	l, t := f.l, f.t
	f.over = true
	f.connecting = false
	f.final, f.err = final, err
	l.parks.remove(f)
	l.closeHost(&f.host, final == frameReset, nil)
	f.dropDown()
	switch {
	case l.dead:
		if t != nil {
			f.t, t.f = nil, nil
		}
		f.gone(err)
	case t == nil && !f.begun: // not even sent
		f.gone(err)
	case t == nil:
		f.wantTrunk()
	case t.parking && !t.gotEnd: // the frame has to wait for PARKED
		t.deadline = l.now + int64(resetTime)
	case final == frameReset && (t.blocked() || t.carried > resetQueue && outq(t.fd, false) > resetQueue):
		if t.mine && !t.confirmed && !t.fresh {
			t.kill(nil) // the peer sleeps: it has to learn of the end elsewhere
			return
		}
		f.t, t.f = nil, nil
		t.kill(nil)
		f.gone(err)
	default:
		t.control(final)
		if t.mine && !t.confirmed && !t.fresh {
			t.sentEnd = true // a RESUME that may have to be sent again
			return
		}
		f.t = nil
		t.finish(final == frameReset)
		f.gone(err)
	}
}

// lost is the peer's final frame before our own.
func (f *Flow) lost(err error) {
	t := f.t
	if !t.sentEnd {
		t.control(frameEnd)
	}
	f.t = nil
	t.finish(false)
	f.drop(err)
}

// drop resets our host, if that has not happened, and forgets the flow.
func (f *Flow) drop(err error) {
	if !f.over {
		f.over = true
		f.err = err
		f.l.closeHost(&f.host, true, f.down[f.off:])
	}
	f.dropDown()
	f.gone(f.err)
}

// trunkLost is the death of the flow's trunk; arrived tells whether some of
// what went out for the flow may have reached the peer.
func (f *Flow) trunkLost(t *trunk, err error, arrived bool) {
	switch {
	case f.l.dead:
		f.drop(err)
	case t.parking: // the peer may sleep or be gone: ask
		f.wake = true
		f.sleep()
	case t.mine && !t.confirmed && t.fresh && arrived && f.sent > 0:
		// The sink may have got the client's bytes: a request that is executed
		// twice is worse than a reset.
		if err == nil {
			err = ErrStale
		}
		f.drop(fmt.Errorf("lost with what the client sent on it: %w", err))
	case t.mine && !t.confirmed:
		f.tries++
		most := resumeTries
		if !f.begun {
			most = openTries
			if f.over { // nobody waits for it
				most = 0
			}
		}
		if f.tries >= most {
			if err == nil {
				err = ErrStale
			}
			f.drop(fmt.Errorf("%d trunks tried: %w: %w", f.tries, err, unix.ETIMEDOUT))
			return
		}
		f.l.count.retried.Add(1)
		if !f.begun {
			f.rename()
		}
		f.wantTrunk()
	default:
		if err == nil {
			err = ErrReset
		}
		f.drop(err)
	}
}

// rename gives a flow whose OPEN was lost another number for the next one: the
// peer may have got that OPEN after all, and what it then knows by the old
// number is not this flow.
func (f *Flow) rename() {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if f.p.flows[f.id] == f {
		delete(f.p.flows, f.id)
	}
	f.id = f.e.nextID.Add(1)
	f.p.flows[f.id] = f
}

// park gives the trunk back.
func (f *Flow) park() {
	t := f.t
	f.t = nil
	t.release()
	f.l.count.parks.Add(1)
	f.sleep()
}

func (f *Flow) sleep() {
	l := f.l
	if f.done {
		return
	}
	f.parkedAt = l.now
	f.setKeepAlive()
	if f.heir != nil {
		f.succeed()
		return
	}
	if f.over || f.wake || f.host.readable || f.finSent && f.shut {
		f.wantTrunk()
		return
	}
	l.parks.push(f)
}

// mayPark tells whether nothing is under way on the flow.
func (f *Flow) mayPark() bool {
	return f.attached() && f.isOpen && !f.over && !(f.finSent && f.finRcvd) && f.off == len(f.down) && !f.host.readable
}

// setKeepAlive is for flows that live: short ones save the calls.
func (f *Flow) setKeepAlive() {
	ka := f.e.o.KeepAlive
	if f.keepAlive || ka <= 0 || !f.attached() {
		return
	}
	f.keepAlive = true
	setKeepAlive(f.host.fd, ka)
}

func setKeepAlive(fd int, d time.Duration) {
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, max(1, int(d/time.Second)))
	setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

// wantTrunk binds the flow to an idle trunk, or queues it for one.
func (f *Flow) wantTrunk() {
	l, p := f.l, f.p
	if f.t != nil || f.waiting || f.done || l.dead {
		return
	}
	l.parks.remove(f)
	p.mu.Lock()
	t := p.take(l)
	if t != nil && t.l == l {
		p.mu.Unlock()
		f.bind(t)
		p.need()
		return
	}
	f.waiting = true
	f.parkedAt = l.now
	if t == nil {
		p.wait[l.id] = append(p.wait[l.id], f)
		p.mu.Unlock()
		p.need()
		return
	}
	p.mu.Unlock()
	give := func() {
		if t.dead {
			l.post(func() { f.granted(nil) })
			return
		}
		t.move(l, f)
	}
	if !t.l.post(give) {
		f.waiting = false
	}
	p.need()
}

// granted is the end of waiting, with a trunk of this loop or none.
func (f *Flow) granted(t *trunk) {
	f.waiting = false
	switch {
	case f.done || f.t != nil || f.l.dead || f.over && !f.begun:
		if t != nil {
			t.release()
		}
	case t == nil:
		f.wantTrunk()
	default:
		f.bind(t)
	}
}

// bind begins or resumes the flow on an idle trunk.
func (f *Flow) bind(t *trunk) {
	l := f.l
	t.begin(true)
	f.t, t.f = t, f
	f.skip = 0 // the peer begins where we ask it to
	f.last = l.now
	if f.wake { // back to sleep as soon as the peer has answered
		f.wake = false
		f.last -= int64(max(f.e.o.ParkIdle, 0))
	}
	if f.final == frameReset { // which does not wait for what was sent before
		f.sent -= uint64(len(f.retain))
		l.drop(f.retain)
		f.retain = nil
	}
	t.deadline = l.now + int64(min(answerTime<<f.tries, answerMax))
	if f.begun {
		f.turn++
		t.ctl = resume{f.id, f.sent - uint64(len(f.retain)), f.recvd, f.turn, f.seen}.append(t.ctl)
		l.count.resumes.Add(1)
	} else {
		t.fresh = true
		t.ctl = openMessage{f.id, f.src, f.dst}.append(t.ctl)
	}
	t.mark()
	if len(f.retain) > 0 {
		t.ctl = appendFrame(t.ctl, frameData, f.retain...)
		t.carried = uint64(len(f.retain))
	}
	f.bound()
}

// bound sends what the state of the flow asks for on a trunk just taken.
func (f *Flow) bound() {
	t, l := f.t, f.l
	if f.finSent {
		t.control(frameFin) // perhaps again: it does no harm
	}
	if f.final != 0 {
		f.over = false
		final := f.final
		f.end(final, f.err)
		return
	}
	if f.finSent && f.shut {
		f.maybeDone()
		return
	}
	if f.host.readable {
		l.requeue(&f.host)
	}
}

// gone forgets the flow.
func (f *Flow) gone(err error) {
	if f.done {
		return
	}
	f.done = true
	l := f.l
	if f.heir != nil {
		f.succeed()
	}
	l.parks.remove(f)
	l.drop(f.retain)
	f.retain = nil
	delete(l.flows, f)
	f.p.mu.Lock()
	if f.p.flows[f.id] == f {
		delete(f.p.flows, f.id)
	}
	f.p.mu.Unlock()
	if !f.isOpen {
		l.count.failed.Add(1)
	} else if err != nil {
		l.count.reset.Add(1)
	}
	l.count.ended.Add(1)
	if err == nil && !f.isOpen {
		err = ErrAborted
	}
	f.err = err
	f.tell(err)
	f.e.ended(f.stat())
}

func (f *Flow) hostAddr() netip.AddrPort {
	if f.near {
		return f.src
	}
	return f.dst
}

func (f *Flow) stat() FlowStat {
	s := FlowStat{ID: f.id, Peer: f.p.name, Near: f.near, Src: f.src, Dst: f.dst, Opened: epoch.Add(time.Duration(f.start)),
		ToPeer: f.sent, FromPeer: f.recvd, Buffered: len(f.down) - f.off + len(f.retain), Err: f.err}
	switch {
	case f.done:
		s.State, s.Ended = "closed", time.Now()
	case f.inParks:
		s.State = "parked"
	case !f.isOpen:
		s.State = "connecting"
	case f.finSent || f.finRcvd:
		s.State = "half-closed"
	default:
		s.State = "open"
	}
	if t := f.t; t != nil {
		s.Trunk = t.ID
		s.Buffered += len(t.out) - t.off
	}
	return s
}

// succeed lets the trunk go on that has waited for the flow to be parked.
func (f *Flow) succeed() {
	t := f.heir
	f.heir = nil
	f.l.post(func() {
		if !t.dead && !t.l.dead {
			t.catchUp()
		}
		if !f.done && f.t == nil && !f.inParks && !f.waiting {
			f.sleep() // nothing came of it
		}
	})
}
