package stream

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lone is a near engine whose far side is played by the test, frame by frame,
// so that what else takes a rare crossing on the wire happens each time.
type lone struct {
	t *testing.T
	e *Engine
}

func newLone(t *testing.T, o Options) *lone {
	o.Loops = 1
	e, err := New(o)
	must(t, err)
	e.tickBusy, e.tickIdle = time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return &lone{t, e}
}

// wire is the far end of a trunk.
type wire struct {
	t *testing.T
	net.Conn
}

// trunk adds a trunk; it is the first to be taken until others are used.
func (b *lone) trunk(id uint64) *wire {
	b.t.Helper()
	n, f, err := tcpPair()
	must(b.t, err)
	want := b.e.Idle("far") + 1
	b.e.AddTrunk(Trunk{FD: n, Peer: "far", Near: true, ID: id})
	waitFor(b.t, "the trunk", func() bool { return b.e.Idle("far") == want })
	return &wire{b.t, fdConn(b.t, f)}
}

// flow opens a flow and returns the client's end of it.
func (b *lone) flow() (net.Conn, *Flow) {
	b.t.Helper()
	c, here, err := tcpPair()
	must(b.t, err)
	f := b.e.Open("far", netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), nil)
	f.Attach(here)
	return fdConn(b.t, c), f
}

func fdConn(t *testing.T, fd int) net.Conn {
	t.Helper()
	must(t, unix.SetNonblock(fd, true))
	f := os.NewFile(uintptr(fd), "socket")
	c, err := net.FileConn(f)
	f.Close()
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	t.Cleanup(func() { c.Close() })
	return c
}

// want reads a frame, which must be of that type.
func (w *wire) want(ft frameType) []byte {
	w.t.Helper()
	var h [headerLen]byte
	if _, err := io.ReadFull(w, h[:]); err != nil {
		w.t.Fatalf("instead of %v: %v", ft, err)
	}
	got, n, err := parseHeader(h[:], false)
	must(w.t, err)
	p := make([]byte, n)
	if _, err := io.ReadFull(w, p); err != nil {
		w.t.Fatalf("contents of %v: %v", got, err)
	}
	if got != ft {
		w.t.Fatalf("%v with %d bytes, % x..., expected %v", got, n, p[:min(n, 32)], ft)
	}
	return p
}

// data reads DATA frames until they make up want.
func (w *wire) data(want string) {
	w.t.Helper()
	var got []byte
	for len(got) < len(want) {
		got = append(got, w.want(frameData)...)
	}
	if !bytes.Equal(got, []byte(want)) {
		w.t.Fatalf("DATA %q, expected %q", got, want)
	}
}

func (w *wire) open() (flow uint64) {
	w.t.Helper()
	m, err := parseOpen(w.want(frameOpen))
	must(w.t, err)
	return m.flow
}

func (w *wire) resume(want resume) {
	w.t.Helper()
	if got, err := parseResume(w.want(frameResume)); err != nil || got != want {
		w.t.Fatalf("RESUME %+v %v, expected %+v", got, err, want)
	}
}

func (w *wire) say(frames ...[]byte) {
	w.t.Helper()
	if _, err := w.Write(bytes.Join(frames, nil)); err != nil {
		w.t.Fatal(err)
	}
}

func frame(ft frameType, payload string) []byte { return appendFrame(nil, ft, []byte(payload)...) }

func (b *lone) hears(c net.Conn, want string) {
	b.t.Helper()
	p := make([]byte, len(want))
	if _, err := io.ReadFull(c, p); err != nil || string(p) != want {
		b.t.Fatalf("client read %q, %v, expected %q", p, err, want)
	}
}

// TestResumeBeforeAnswer: the far side's answer to an OPEN is lost with the
// trunk, its RESUME on another one arrives before that is noticed here. The
// flow is open then, and whatever comes next goes on where it was: no second
// OPEN, which would begin a second connection with bytes from the middle of
// the stream, and no end that the far side does not hear of.
func TestResumeBeforeAnswer(t *testing.T) {
	for _, end := range []string{"data", "close", "reset"} {
		t.Run(end, func(t *testing.T) {
			b := newLone(t, Options{ParkIdle: -1})
			second := b.trunk(2)
			first := b.trunk(1)
			c, _ := b.flow()
			c.Write([]byte("question"))
			id := first.open()
			first.data("question")
			second.say(resume{flow: id, sent: 0, received: 8, turn: 1}.append(nil), frame(frameData, "answer"))
			second.want(frameResumed)
			b.hears(c, "answer")
			if s := b.e.Stats(); s.Opened != 1 {
				t.Errorf("the flow does not count as open: %+v", s)
			}
			second.say(frame(framePark, ""))
			second.want(frameParked)
			switch end {
			case "data":
				c.Write([]byte("more"))
				second.resume(resume{flow: id, sent: 8, received: 6, turn: 1, seen: 1})
				second.data("more")
			case "close":
				c.Close()
				second.resume(resume{flow: id, sent: 8, received: 6, turn: 1, seen: 1})
				second.want(frameFin)
			case "reset":
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
				second.resume(resume{flow: id, sent: 8, received: 6, turn: 1, seen: 1})
				second.want(frameReset)
			}
		})
	}
}

// TestOpenAgain: the OPEN that follows one that was lost is another flow to the
// far side, so that nothing it still does for the first one is taken for the
// second.
func TestOpenAgain(t *testing.T) {
	b := newLone(t, Options{ParkIdle: -1})
	third := b.trunk(3)
	second := b.trunk(2)
	first := b.trunk(1)
	c, _ := b.flow()
	lost := first.open()
	first.Close()
	id := second.open()
	if id == lost {
		t.Fatalf("both OPEN are for flow %d", id)
	}
	third.say(resume{flow: lost, turn: 1}.append(nil), frame(frameData, "stale"))
	third.want(frameReset)
	second.say(frame(frameOpened, ""), frame(frameData, "fresh"))
	b.hears(c, "fresh")
}

// TestResumeAgain: bytes that the peer had announced a second time and that
// were lost with the trunk once more are not taken off what comes later.
func TestResumeAgain(t *testing.T) {
	b := newLone(t, Options{ParkIdle: time.Millisecond})
	first := b.trunk(1)
	c, _ := b.flow()
	id := first.open()
	first.say(frame(frameOpened, ""), frame(frameData, "0123456789"))
	b.hears(c, "0123456789")
	first.want(framePark)
	first.say(frame(frameParked, ""))
	// 5 bytes that are known here already will follow, but the trunk dies.
	first.say(resume{flow: id, sent: 5, received: 0, turn: 1}.append(nil))
	first.want(frameResumed)
	first.want(framePark)
	second := b.trunk(2)
	first.Close()
	second.resume(resume{flow: id, sent: 0, received: 10, turn: 1, seen: 1})
	second.say(frame(frameResumed, ""), frame(frameData, "abcdefghij"))
	b.hears(c, "abcdefghij")
}

// TestResumeLate: a RESUME that its sender has given up, but that was on its way
// for longer than the next one, does not take the flow away from that.
func TestResumeLate(t *testing.T) {
	b := newLone(t, Options{ParkIdle: -1})
	third := b.trunk(3)
	second := b.trunk(2)
	first := b.trunk(1)
	c, _ := b.flow()
	id := first.open()
	first.say(frame(frameOpened, ""), frame(framePark, ""))
	first.want(frameParked)
	second.say(resume{flow: id, turn: 2}.append(nil), frame(frameData, "hello"))
	second.want(frameResumed)
	b.hears(c, "hello")
	third.say(resume{flow: id, turn: 1}.append(nil), frame(frameData, "hel"))
	if _, err := third.Read(make([]byte, 1)); err != io.EOF && !isReset(err) {
		t.Errorf("the late RESUME: %v, expected its trunk to be closed", err)
	}
	second.say(frame(frameData, " again"))
	b.hears(c, " again")
	// Nor does one that has lost against ours: YIELD follows it.
	second.say(frame(framePark, ""))
	second.want(frameParked)
	c.Write([]byte("mine"))
	taken, other := second, first
	taken.resume(resume{flow: id, sent: 0, received: 11, turn: 1, seen: 2})
	taken.data("mine")
	taken.say(frame(frameResumed, ""), frame(frameData, "!"))
	b.hears(c, "!")
	other.say(resume{flow: id, sent: 11, received: 0, turn: 3}.append(nil), frame(frameData, "?"), frame(frameYield, ""))
	other.want(frameEnd)
	taken.say(frame(frameData, "!"))
	b.hears(c, "!")
}

// TestYieldTooLate: the far side takes a RESUME back, behind the end of a flow
// that has ended here as well. That says nothing about what the trunk carries
// by then.
func TestYieldTooLate(t *testing.T) {
	for _, busy := range []bool{false, true} {
		b := newLone(t, Options{ParkIdle: -1})
		w := b.trunk(1)
		w.say(resume{flow: 99, turn: 1}.append(nil), frame(frameFin, ""), frame(frameEnd, ""))
		w.want(frameReset)
		if !busy {
			w.say(frame(frameYield, ""))
		}
		waitFor(t, "the trunk to be idle", func() bool { return b.e.Idle("far") == 1 })
		c, _ := b.flow()
		w.open()
		if busy {
			w.say(frame(frameYield, ""))
		}
		w.say(frame(frameOpened, ""), frame(frameData, "hello"))
		b.hears(c, "hello")
	}
}

// TestEndOnFullTrunk: a flow ends by a reset while the trunk on which it is
// about to wake takes no more bytes. The peer, where the flow still sleeps,
// hears of it on another trunk.
func TestEndOnFullTrunk(t *testing.T) {
	b := newLone(t, Options{ParkIdle: -1})
	second := b.trunk(2)
	n, f, err := tcpPair()
	must(t, err)
	setInt(n, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10)
	setInt(f, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
	b.e.AddTrunk(Trunk{FD: n, Peer: "far", Near: true, ID: 1})
	waitFor(t, "the trunk", func() bool { return b.e.Idle("far") == 2 })
	first := &wire{t, fdConn(t, f)}
	c, fl := b.flow()
	id := first.open()
	first.say(frame(frameOpened, ""), frame(framePark, ""))
	first.want(frameParked)
	c.Write(pattern(retainMax/2, 1))
	waitFor(t, "the trunk to be full", func() bool {
		fl := b.e.Flows()
		return len(fl) == 1 && fl[0].Trunk == 1 && fl[0].ToPeer == retainMax/2 && fl[0].Buffered > retainMax/2
	})
	fl.Abort()
	second.resume(resume{flow: id, turn: 2})
	second.want(frameReset)
}

// TestAskIdle: a sleeping flow that its peer does not know any more is reset.
func TestAskIdle(t *testing.T) {
	b := newLone(t, Options{ParkIdle: time.Hour, AskIdle: 10 * time.Millisecond})
	w := b.trunk(1)
	c, _ := b.flow()
	id := w.open()
	w.say(frame(frameOpened, ""), frame(framePark, ""))
	w.want(frameParked)
	w.resume(resume{flow: id, turn: 1})
	w.say(frame(frameResumed, ""))
	w.want(framePark) // at once: nothing but the question has woken it
	w.say(frame(frameParked, ""))
	w.resume(resume{flow: id, turn: 2})
	w.say(frame(frameReset, ""))
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("client: %v, expected a reset", err)
	}
	w.want(frameEnd)
}

// TestOpenTwice: an OPEN of a flow that there is already is a fault of the peer.
func TestOpenTwice(t *testing.T) {
	b := newBed(t, bedOptions{})
	b.serve(func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	m := openMessage{flow: 7, src: netip.MustParseAddrPort("127.0.0.1:1"), dst: *b.sink.Load()}.append(nil)
	var ws [2]*wire
	for i := range ws {
		n, f, err := tcpPair()
		must(t, err)
		b.far.AddTrunk(Trunk{FD: f, Peer: "near", ID: 1000 + uint64(i)})
		ws[i] = &wire{t, fdConn(t, n)}
	}
	ws[0].say(m)
	ws[0].want(frameOpened)
	ws[1].say(m)
	if _, err := io.ReadFull(ws[1], make([]byte, 1)); !isReset(err) && err != io.EOF {
		t.Errorf("second OPEN: %v, expected the trunk to be closed", err)
	}
	ws[0].say(frame(frameReset, ""))
	ws[0].want(frameEnd)
}
