package stream

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	headroom = 8 << 10   // before the bytes read: control frames and a header
	readMax  = 256 << 10 // one read; 64 KiB costs a third of the bulk rate
	tailroom = 64        // behind them: a FIN frame, a tag
	// readPressed is one read once all flows together hold back MemoryMax.
	readPressed = 4 << 10
	turns       = 4                      // reads of one socket before others get their turn
	tickBusy    = 250 * time.Millisecond // Engine.tickBusy, while a trunk is in use
	tickIdle    = time.Second            // Engine.tickIdle
	// Above batchRate (bytes per ns: 200 Mbit/s) a loop without work waits for
	// a whole read to gather, but not longer than batchMax: waking up for each
	// packet would take a fifth more processor time at 1 Gbit/s.
	batchRate  = 0.025
	batchMax   = 2 * time.Millisecond
	lingerTick = 4 * time.Millisecond
)

// owner is what a socket belongs to: a flow, a trunk, a listener.
type owner interface {
	// event is called when the socket's readiness has changed, or again when
	// work was left over for fairness.
	event(*end)
}

// end is a socket that a loop watches, edge-triggered: what epoll told is kept
// until a call returns EAGAIN.
type end struct {
	fd                 int
	gen                uint32
	readable, writable bool
	hup                bool // a FIN or an error waits behind the bytes
	failed             bool // an error: after a FIN no read tells it any more
	queued             bool
	owner              owner
}

// loop owns sockets and everything that hangs on them; only its goroutine
// touches them.
type loop struct {
	e      *Engine
	id     int
	ep     int
	wake   int
	tab    []*end
	gen    uint32
	buf    []byte // what is read, with headroom and tailroom
	seal   []byte // control frames on their way into a sealed trunk
	iov    []unix.Iovec
	now    int64 // ns, monotonic
	ready  []*end
	spare  []*end
	dirty  []*trunk
	busy   []*trunk // carry a flow, or wait for its end
	parks  flowList // parked, oldest first
	free   [bufferClasses][][]byte
	slow   []slowClose
	lis    []*listener
	rate   float64
	rateAt int64
	moved  uint64
	ticks  int64 // when the next one is due
	raws   map[*rawFlow]struct{}
	flows  map[*Flow]struct{}
	trunk  map[*trunk]struct{}

	mu      sync.Mutex
	posts   []func()
	spareP  []func()
	asleep  bool
	stopped bool
	dead    bool // stopping: nothing new, only the loop itself looks

	count counters
}

var epoch = time.Now()

func (l *loop) clock() { l.now = int64(time.Since(epoch)) }

// post runs f on the loop soon. It tells false after the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return false
	}
	l.posts = append(l.posts, f)
	wake := l.asleep
	l.asleep = false
	l.mu.Unlock()
	if wake {
		one := [8]byte{7: 1}
		unix.Write(l.wake, one[:])
	}
	return true
}

func (l *loop) runPosts() {
	for {
		l.mu.Lock()
		p := l.posts
		l.posts, l.spareP = l.spareP[:0], nil
		l.mu.Unlock()
		if len(p) == 0 {
			l.spareP = p
			return
		}
		for i, f := range p {
			f()
			p[i] = nil
		}
		l.spareP = p[:0]
	}
}

func (l *loop) open() error {
	var err error
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.ep)
		return fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)}
	if err = unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, l.wake, &ev); err != nil {
		unix.Close(l.ep)
		unix.Close(l.wake)
		return fmt.Errorf("epoll of an eventfd: %w", err)
	}
	l.buf = make([]byte, headroom+readMax+tailroom)
	return nil
}

// watch begins to watch a socket for everything.
func (l *loop) watch(en *end) error {
	l.gen++
	en.gen = l.gen
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(en.fd), Pad: int32(en.gen)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, en.fd, &ev); err != nil {
		return fmt.Errorf("watching descriptor %d: %w", en.fd, err)
	}
	for en.fd >= len(l.tab) {
		l.tab = append(l.tab, make([]*end, 64)...)
	}
	l.tab[en.fd] = en
	return nil
}

// forget ends watching; the socket stays open unless it is closed next.
func (l *loop) forget(en *end, closing bool) {
	if en.fd < 0 || en.fd >= len(l.tab) || l.tab[en.fd] != en {
		return
	}
	l.tab[en.fd] = nil
	if !closing { // closing the only descriptor of a socket does it itself
		unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, en.fd, nil)
	}
}

func (l *loop) requeue(en *end) {
	if !en.queued {
		en.queued = true
		l.ready = append(l.ready, en)
	}
}

func (l *loop) run() error {
	var events [256]unix.EpollEvent
	defer l.stop()
	l.clock()
	for {
		l.runPosts()
		l.flush()
		if l.e.quit.Load() {
			return nil
		}
		n, err := l.wait(events[:])
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		l.clock()
		for i := range events[:n] {
			ev := &events[i]
			fd := int(ev.Fd)
			if fd == l.wake {
				var b [8]byte
				unix.Read(l.wake, b[:])
				continue
			}
			if fd >= len(l.tab) {
				continue
			}
			en := l.tab[fd]
			if en == nil || en.gen != uint32(ev.Pad) {
				continue
			}
			if ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
				en.readable = true
				if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
					en.hup = true
					en.failed = en.failed || ev.Events&unix.EPOLLERR != 0
				}
			}
			if ev.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
				en.writable = true
			}
			en.owner.event(en)
		}
		if len(l.ready) > 0 {
			again := l.ready
			l.ready, l.spare = l.spare[:0], again
			for i, en := range again {
				again[i] = nil
				en.queued = false
				if en.fd >= 0 {
					en.owner.event(en)
				}
			}
		}
		if l.now >= l.ticks {
			l.tick()
		}
		if len(l.slow) > 0 {
			l.lingerOn()
		}
	}
}

// wait gathers events. It asks the scheduler only when it has to sleep.
func (l *loop) wait(events []unix.EpollEvent) (int, error) {
	n, errno := epollPoll(l.ep, events)
	if errno != 0 && errno != unix.EINTR {
		return 0, errno
	}
	if n > 0 || len(l.ready) > 0 {
		return n, nil
	}
	if d := l.pause(); d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
		runtime.Gosched()
		if n, errno = epollPoll(l.ep, events); n > 0 || errno != 0 && errno != unix.EINTR {
			return n, nil
		}
	}
	l.mu.Lock()
	if len(l.posts) > 0 {
		l.mu.Unlock()
		return 0, nil
	}
	l.asleep = true
	l.mu.Unlock()
	l.clock()
	timeout := int(max(0, (l.ticks-l.now)/int64(time.Millisecond)+1))
	if len(l.slow) > 0 {
		timeout = int(lingerTick / time.Millisecond)
	}
	n, err := unix.EpollWait(l.ep, events, timeout)
	l.mu.Lock()
	l.asleep = false
	l.mu.Unlock()
	if errors.Is(err, unix.EINTR) {
		return 0, nil
	}
	return n, err
}

// pause is how long to let bytes gather before they are looked at.
func (l *loop) pause() time.Duration {
	l.clock()
	if d := l.now - l.rateAt; d > int64(2*time.Millisecond) {
		m := l.count.toPeer.Load() + l.count.fromPeer.Load()
		l.rate = float64(m-l.moved) / float64(d) // bytes per ns
		l.moved, l.rateAt = m, l.now
	}
	if l.rate < batchRate {
		return 0
	}
	return time.Duration(min(readMax/l.rate, float64(batchMax)))
}

// flush writes the control frames that no data has taken along.
func (l *loop) flush() {
	for len(l.dirty) > 0 {
		d := l.dirty
		l.dirty = nil
		for i, t := range d {
			d[i] = nil
			t.dirty = false
			if t.l == l && len(t.ctl) > 0 {
				t.flushControl()
			}
		}
		if l.dirty == nil {
			l.dirty = d[:0]
		}
	}
}

// tick looks after everything that waits for a time.
func (l *loop) tick() {
	for i := 0; i < len(l.busy); {
		t := l.busy[i]
		t.tick()
		if i < len(l.busy) && l.busy[i] == t {
			i++
		}
	}
	for f := range l.raws {
		f.tick()
	}
	l.e.tick(l)
	l.ask()
	for _, li := range l.lis {
		if li.paused {
			li.paused = false
			l.requeue(&li.end)
		}
	}
	d := l.e.tickIdle
	if len(l.busy) > 0 || l.e.anyWaiting() {
		d = l.e.tickBusy
	}
	l.ticks = l.now + int64(d)
}

// askMost is how many flows may ask at once, so that those which fell asleep
// together do not take all trunks together.
const askMost = 16

// ask has the flows that have slept for long look whether the peer still knows
// them.
func (l *loop) ask() {
	after := int64(l.e.o.AskIdle)
	if after <= 0 {
		return
	}
	for range askMost {
		f := l.parks.head
		if f == nil || l.now-f.parkedAt < after || f.p.short() {
			return
		}
		f.wake = true
		f.wantTrunk()
	}
}

// stop resets what is left and closes every socket.
func (l *loop) stop() {
	l.dead = true
	err := ErrClosed
	for f := range l.flows {
		f.fail(err)
	}
	for f := range l.raws {
		f.abort(err)
	}
	for t := range l.trunk {
		t.kill(nil)
	}
	for _, li := range l.lis {
		l.forget(&li.end, true)
		closeFD(li.fd)
	}
	for _, s := range l.slow {
		resetFD(s.fd)
	}
	l.slow = nil
	l.mu.Lock()
	l.stopped = true
	left := l.posts
	l.posts = nil
	l.mu.Unlock()
	for _, f := range left {
		f() // each looks at loop.dead
	}
	unix.Close(l.ep)
	unix.Close(l.wake)
}

func epollPoll(ep int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// slowClose is a socket that is done with but whose kernel still holds bytes
// for its peer: a zero window may last for hours.
type slowClose struct {
	fd    int
	reset bool   // a reset follows the bytes, at the latest at the time due
	held  []byte // bytes that the kernel does not even have yet
	due   int64  // ns, monotonic: the end of a reset, else the next look
	// carrier: a reset as soon as both FINs are acknowledged.
	carrier bool
}

// carrierLinger is how long both FINs on a carrier may take to be acknowledged.
const carrierLinger = 5 * time.Second

// resetLinger is how long bytes sent before a reset may take to leave.
const resetLinger = time.Second

// closeHost closes a host's socket: gracefully, or by a reset that comes
// behind the bytes already accepted, as it would without us.
func (l *loop) closeHost(en *end, reset bool, held []byte) {
	if en.fd < 0 {
		return
	}
	l.forget(en, true)
	fd := en.fd
	en.fd = -1
	sc := slowClose{fd: fd, reset: reset}
	switch {
	case l.dead:
		resetFD(fd)
		return
	case reset && len(held) == 0 && outq(fd, true) == 0:
		resetFD(fd)
		return
	case reset:
		sc.held = append([]byte(nil), held...)
		sc.due = l.now + int64(resetLinger)
	case outq(fd, true) == 0:
		closeFD(fd)
		return
	}
	// Not reset: the kernel gives up an orphaned socket after some minutes of
	// zero window; one that is still open it does not.
	unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, fd, nil)
	l.slow = append(l.slow, sc)
}

// lingerOn looks again at the sockets that closeHost put off.
func (l *loop) lingerOn() {
	keep := l.slow[:0]
	for _, s := range l.slow {
		if s.reset {
			for len(s.held) > 0 {
				n, errno := send(s.fd, s.held)
				if errno == unix.EAGAIN {
					break
				}
				if errno != 0 {
					s.due = 0
					break
				}
				s.held = s.held[n:]
			}
			if l.now >= s.due || len(s.held) == 0 && outq(s.fd, true) == 0 {
				resetFD(s.fd)
				continue
			}
		} else if s.carrier {
			if l.now >= s.due || outq(s.fd, false) == 0 {
				resetFD(s.fd)
				continue
			}
		} else if l.now >= s.due {
			if outq(s.fd, true) == 0 || closed(s.fd) {
				closeFD(s.fd)
				continue
			}
			s.due = l.now + int64(50*time.Millisecond)
		}
		keep = append(keep, s)
	}
	l.slow = keep
}

// closeCarrier closes the carrier of a raw flow after both streams have ended.
// The side that has dialled must not be the one to keep the port in TIME_WAIT
// for a minute: it lets the other one close first and then resets, which no
// host sees any more.
func (l *loop) closeCarrier(en *end, dialled bool) {
	if en.fd < 0 {
		return
	}
	if !dialled {
		l.closeHost(en, false, nil)
		return
	}
	l.forget(en, false)
	shutdownWrite(en.fd)
	l.slow = append(l.slow, slowClose{fd: en.fd, carrier: true, due: l.now + int64(carrierLinger)})
	en.fd = -1
}

// listener is a listening socket.
type listener struct {
	end
	l        *loop
	paused   bool
	accepted func(fd int, src, dst netip.AddrPort)
}

func (li *listener) event(*end) {
	if !li.readable || li.l.e.draining.Load() {
		return
	}
	for range 64 {
		fd, src, errno := accept(li.fd)
		switch errno {
		case 0:
			li.accepted(fd, src, localAddr(fd))
		case unix.EAGAIN:
			li.readable = false
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			if !li.paused { // until the next tick
				li.paused = true
				li.l.e.o.Log.Warn("no new connections for a moment", "err", errno)
			}
			return
		default:
			li.readable = false
			li.l.e.o.Log.Error("accepting connections", "err", errno)
			return
		}
	}
	li.l.requeue(&li.end)
}

const bufferClasses = 4

var bufferSizes = [bufferClasses]int{4 << 10, 16 << 10, 64 << 10, 272 << 10}

// hold gives a buffer that holds b and has room for more if that is likely.
func (l *loop) hold(b []byte) []byte {
	for c, n := range bufferSizes {
		if len(b) <= n {
			var h []byte
			if k := len(l.free[c]); k > 0 {
				h = l.free[c][k-1]
				l.free[c] = l.free[c][:k-1]
			} else {
				h = make([]byte, 0, n)
			}
			l.e.buffered.Add(int64(n))
			return append(h[:0], b...)
		}
	}
	h := append(make([]byte, 0, len(b)), b...)
	l.e.buffered.Add(int64(cap(h)))
	return h
}

// more appends to a held buffer.
func (l *loop) more(h, b []byte) []byte {
	if h == nil {
		return l.hold(b)
	}
	if len(h)+len(b) <= cap(h) {
		return append(h, b...)
	}
	old := h
	h = append(make([]byte, 0, max(2*cap(h), len(h)+len(b))), h...)
	l.e.buffered.Add(int64(cap(h)))
	l.drop(old)
	return append(h, b...)
}

// drop gives a held buffer back.
func (l *loop) drop(h []byte) {
	if h == nil {
		return
	}
	l.e.buffered.Add(-int64(cap(h)))
	for c, n := range bufferSizes {
		if cap(h) == n && len(l.free[c]) < 16 {
			l.free[c] = append(l.free[c], h[:0])
			return
		}
	}
}

// room is how much may be read now.
func (l *loop) room() int {
	n := min(readMax, l.e.o.FlowBuffer)
	if l.e.buffered.Load() >= int64(l.e.o.MemoryMax) {
		n = min(n, readPressed)
		l.count.stalled.Add(1)
	}
	return n
}

// takeError tells, once, an error that came after the end of the stream.
func (en *end) takeError() unix.Errno {
	if !en.failed || en.fd < 0 {
		return 0
	}
	en.failed = false
	e, err := unix.GetsockoptInt(en.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return unix.EIO
	}
	return unix.Errno(e)
}
