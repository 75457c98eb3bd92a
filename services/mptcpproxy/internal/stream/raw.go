package stream

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// rawFlow relays between two sockets byte for byte.
type rawFlow struct {
	e     *Engine
	l     *loop
	peer  string
	dial  bool // we have dialled b
	a, b  rawEnd
	over  bool
	stats FlowStat
	last  int64
}

// rawEnd is one of the two and what is on its way to it.
type rawEnd struct {
	end
	f     *rawFlow
	host  bool
	held  []byte // not taken yet, from off on
	off   int
	count uint64 // bytes read here
	eof   bool   // it has ended its stream
	shut  bool   // it was told that the other has
	ka    bool
}

func (r *rawEnd) event(*end) { r.f.event() }

func (f *rawFlow) begin(fa, fb int, early []byte) {
	l := f.l
	f.a = rawEnd{f: f, host: true, end: end{fd: fa, writable: true}}
	f.b = rawEnd{f: f, end: end{fd: fb, writable: true}}
	f.a.owner, f.b.owner = &f.a, &f.b
	f.last = l.now
	l.raws[f] = struct{}{}
	err := f.e.admit()
	if l.dead {
		err = ErrClosed
	}
	for _, r := range [...]*rawEnd{&f.a, &f.b} {
		if err == nil {
			err = l.watch(&r.end)
		}
		setInt(r.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err != nil {
		f.abort(err)
		return
	}
	l.count.opened.Add(1)
	if len(early) > 0 {
		f.b.put(early)
	}
}

func (f *rawFlow) event() {
	for _, r := range [...]*rawEnd{&f.a, &f.b} {
		if r.writable && r.off < len(r.held) && !f.over {
			r.flush()
		}
		if r.eof && !f.over {
			if errno := r.takeError(); errno != 0 {
				f.abort(fmt.Errorf("connection to %s: %w", r.name(), errno))
			}
		}
	}
	f.pump(&f.a, &f.b)
	f.pump(&f.b, &f.a)
}

// pump moves what from has to to.
func (f *rawFlow) pump(from, to *rawEnd) {
	l := f.l
	for n := turns; from.readable && !from.eof && !f.over && to.off == len(to.held); n-- {
		if n == 0 {
			l.requeue(&from.end)
			return
		}
		b := l.buf[headroom : headroom+l.room()]
		got, errno := recv(from.fd, b)
		if errno == unix.EAGAIN {
			from.readable = false
			return
		}
		if errno != 0 {
			f.abort(fmt.Errorf("reading from %s: %w", from.name(), errno))
			return
		}
		f.last = l.now
		if got == 0 {
			from.eof = true
			to.flush()
			return
		}
		if got < len(b) && !from.hup {
			from.readable = false
		}
		from.count += uint64(got)
		if from.host {
			l.count.toPeer.Add(uint64(got))
		} else {
			l.count.fromPeer.Add(uint64(got))
		}
		to.put(b[:got])
	}
}

func (r *rawEnd) name() string {
	if r.host {
		return "the host " + peerAddr(r.fd).String()
	}
	return "the carrier " + peerAddr(r.fd).String()
}

func (r *rawEnd) other() *rawEnd {
	if r.host {
		return &r.f.b
	}
	return &r.f.a
}

// put writes b and keeps what is not taken.
func (r *rawEnd) put(b []byte) {
	n, errno := send(r.fd, b)
	if errno != 0 && errno != unix.EAGAIN {
		r.f.abort(fmt.Errorf("writing to %s: %w", r.name(), errno))
		return
	}
	if n < len(b) {
		r.writable = false
		r.held, r.off = r.f.l.hold(b[n:]), 0
		r.f.l.count.stalled.Add(1)
	}
}

// flush goes on with what put has kept, and then with the other's FIN.
func (r *rawEnd) flush() {
	f := r.f
	for r.off < len(r.held) {
		n, errno := send(r.fd, r.held[r.off:])
		if errno == unix.EAGAIN {
			r.writable = false
			return
		}
		if errno != 0 {
			f.abort(fmt.Errorf("writing to %s: %w", r.name(), errno))
			return
		}
		r.off += n
		f.last = f.l.now
	}
	f.l.drop(r.held)
	r.held, r.off = nil, 0
	if r.other().eof && !r.shut {
		r.shut = true
		if f.a.shut && f.b.shut { // closing sends the second FIN itself
			f.finish(nil)
			return
		}
		shutdownWrite(r.fd)
	}
}

// closing tells that the carrier's socket is about to be closed.
func (f *rawFlow) closing(fd int) {
	if f.e.o.RawClosed != nil {
		f.e.o.RawClosed(fd, f.peer)
	}
}

// finish closes both sockets in the ordinary way.
func (f *rawFlow) finish(err error) {
	f.closing(f.b.fd)
	f.l.closeHost(&f.a.end, false, nil)
	f.l.closeCarrier(&f.b.end, f.dial)
	f.gone(err)
}

// abort resets both, behind the bytes that are on their way.
func (f *rawFlow) abort(err error) {
	if f.over {
		return
	}
	f.closing(f.b.fd)
	f.l.closeHost(&f.a.end, true, f.a.held[f.a.off:])
	f.l.closeHost(&f.b.end, true, f.b.held[f.b.off:])
	f.l.count.reset.Add(1)
	f.gone(err)
}

func (f *rawFlow) gone(err error) {
	f.over = true
	l := f.l
	l.drop(f.a.held)
	l.drop(f.b.held)
	f.a.held, f.b.held, f.a.off, f.b.off = nil, nil, 0, 0
	delete(l.raws, f)
	l.count.ended.Add(1)
	s := f.stat()
	s.Err = err
	f.e.ended(s)
}

// tick watches for hosts that vanish, once the flow is no short one.
func (f *rawFlow) tick() {
	ka := f.e.o.KeepAlive
	if f.a.ka || ka <= 0 || f.l.now-f.last < int64(f.e.tickIdle) {
		return
	}
	f.a.ka = true
	setKeepAlive(f.a.fd, ka)
	setKeepAlive(f.b.fd, ka)
}

func (f *rawFlow) stat() FlowStat {
	s := f.stats
	s.ToPeer, s.FromPeer = f.a.count, f.b.count
	s.Buffered = len(f.a.held) - f.a.off + len(f.b.held) - f.b.off
	switch {
	case f.over:
		s.State, s.Ended = "closed", time.Now()
	case f.a.eof || f.b.eof:
		s.State = "half-closed"
	default:
		s.State = "open"
	}
	return s
}
