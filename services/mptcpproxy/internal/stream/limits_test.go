package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSleepingMemory holds 20,000 sleeping flows and counts their bytes.
func TestSleepingMemory(t *testing.T) {
	n := 20000
	if testing.Short() {
		n = 2000
	}
	// Four descriptors for each: Go has raised the limit as far as allowed.
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	if most := int(lim.Cur)/4 - 250; n > most {
		t.Logf("%d flows only: %d descriptors are allowed here", most, lim.Cur)
		n = most
	}
	o := Options{ParkIdle: time.Millisecond, Loops: 2}
	b := newBed(t, bedOptions{near: o, far: o, tick: 2 * time.Millisecond, pool: 8})
	ls, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(ls)
	must(t, unix.Bind(ls, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(ls, 4096))
	sa, err := unix.Getsockname(ls)
	must(t, err)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	b.sink.Store(&at)
	near := netip.MustParseAddrPort(b.addr)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	fds := make([]int, 0, 2*n)
	defer func() {
		for _, fd := range fds {
			resetFD(fd)
		}
		b.settled()
	}()
	for len(fds) < 2*n {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		fds = append(fds, c)
		must(t, unix.Connect(c, &unix.SockaddrInet4{Port: int(near.Port()), Addr: near.Addr().As4()}))
		s, _, err := unix.Accept4(ls, unix.SOCK_CLOEXEC)
		must(t, err)
		fds = append(fds, s)
	}
	waitFor(t, "all flows to sleep", func() bool { return b.near.Stats().Parked == n && b.far.Stats().Parked == n })
	after := heap()
	each := (int64(after) - int64(before)) / int64(2*n)
	t.Logf("%d flows, %d bytes for each on each gateway, %d trunks", n, each, b.near.Stats().Trunks)
	if each > 2<<10 {
		t.Errorf("a sleeping flow holds %d bytes, at most 2 KiB are planned", each)
	}
	if s := b.near.Stats(); s.Buffered != 0 {
		t.Errorf("sleeping flows hold %d bytes of buffers", s.Buffered)
	}
	// And they still work, from both sides.
	for i := 0; i < 2*n; i += 2 * max(n/5, 1) {
		for _, way := range [][2]int{{fds[i], fds[i+1]}, {fds[i+1], fds[i]}} {
			if _, err := unix.Write(way[0], []byte("hello")); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 9)
			if k, err := unix.Read(way[1], p); string(p[:max(k, 0)]) != "hello" || err != nil {
				t.Fatalf("read %q, %v", p[:max(k, 0)], err)
			}
		}
	}
}

// TestStalled: hosts that do not read hold up nobody else, hold back no more
// than allowed, and lose nothing.
func TestStalled(t *testing.T) {
	o := Options{FlowBuffer: 64 << 10, MemoryMax: 256 << 10, ParkIdle: time.Millisecond}
	// Small receive buffers: the kernel's own may grow to 32 MiB on each hop.
	far := o
	far.Connect = func(src, dst netip.AddrPort, peer string) (int, error) {
		fd, err := testConnect(src, dst, peer)
		setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 256<<10)
		return fd, err
	}
	b := newBed(t, bedOptions{near: o, far: far, tick: 2 * time.Millisecond, rcvbuf: 256 << 10})
	const n, size = 4, 16 << 20
	b.serve(func(c *net.TCPConn) {
		p := make([]byte, 1)
		if _, err := io.ReadFull(c, p); err == nil && p[0] == 's' {
			c.Write(pattern(size, 1))
		} else {
			c.Write(p)
		}
	})
	var stuck []*net.TCPConn
	for range n {
		c := b.client()
		c.SetReadBuffer(128 << 10)
		c.Write([]byte("s"))
		stuck = append(stuck, c)
	}
	waitFor(t, "all to stall", func() bool {
		k := 0
		for _, f := range b.near.Flows() {
			if f.Buffered > 0 {
				k++
			}
		}
		return k == n
	})
	if s := b.near.Stats(); s.Buffered > o.MemoryMax+n*(bufferSizes[2]+readPressed) {
		t.Errorf("%d bytes held back", s.Buffered)
	}
	c := b.client()
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("beside stalled flows: %v", err)
	}
	want := pattern(size, 1)
	for i, c := range stuck {
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("flow %d: %d bytes, %v", i, len(got), err)
		}
		c.Close()
	}
	c.Close()
	b.settled()
}

// TestStaleTrunk: an OPEN that nobody answers goes out again on another trunk
// and the client notices nothing, unless the peer may have passed on what the
// client sent behind it: then the client is reset, since a request must not be
// executed twice.
func TestStaleTrunk(t *testing.T) {
	for _, tc := range []struct {
		name    string
		full    bool // the trunk takes nothing any more
		early   string
		retried uint64
	}{
		{"nothing behind OPEN", false, "", 1},
		{"early data has arrived", false, "early data", 0},
		{"early data has not left", true, "early data", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, bedOptions{near: Options{NeedTrunk: func(string) {}, Loops: 1}, tick: 2 * time.Millisecond})
			waitFor(t, "the first trunks", func() bool { return b.near.Stats().Idle == 2 })
			served := make(chan struct{}, 10)
			b.serve(func(c *net.TCPConn) { served <- struct{}{}; io.Copy(c, c) })
			// The newest trunk is taken first: one with nobody behind it.
			a, dead, err := tcpPair()
			must(t, err)
			want := len(openMessage{src: netip.MustParseAddrPort("127.0.0.1:1"), dst: netip.MustParseAddrPort("127.0.0.1:2")}.append(nil))
			if tc.early != "" {
				want += headerLen + len(tc.early)
			}
			if tc.full {
				must(t, unix.SetNonblock(a, true))
				for err == nil {
					_, err = unix.Write(a, make([]byte, 1<<20))
				}
			}
			b.near.AddTrunk(Trunk{FD: a, Peer: "far", Near: true, ID: 99})
			waitFor(t, "the dead trunk", func() bool { return b.near.Stats().Idle == 3 })
			c := b.client()
			defer c.Close()
			c.Write([]byte(tc.early))
			if tc.full {
				waitFor(t, "the flow on the dead trunk", func() bool { f := b.near.Flows(); return len(f) == 1 && f[0].Trunk == 99 })
			} else {
				waitFor(t, "the OPEN and its data", func() bool {
					n, _, err := unix.Recvfrom(dead, make([]byte, 1000), unix.MSG_PEEK|unix.MSG_DONTWAIT)
					return err == nil && n >= want
				})
			}
			resetFD(dead) // it proves stale
			if tc.early == "" {
				c.Write([]byte("later data"))
			}
			p := make([]byte, 10)
			_, err = io.ReadFull(c, p)
			if tc.retried > 0 {
				if err != nil || string(p[6:]) != "data" {
					t.Errorf("%q %v", p, err)
				}
			} else if !isReset(err) || len(served) > 0 {
				t.Errorf("%v, %d connections at the sink, expected a reset and none", err, len(served))
			}
			c.Close()
			b.settled()
			if s := b.near.Stats(); s.Retried != tc.retried {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestPatient: a trunk that delivers slowly, or does not while others of the
// peer do, is not given up as soon as one where nothing moves at all; but it is
// some day.
func TestPatient(t *testing.T) {
	e, err := New(Options{Loops: 1})
	must(t, err)
	a, b, err := tcpPair()
	must(t, err)
	defer closeFD(a)
	defer closeFD(b)
	const began = int64(time.Hour)
	for _, c := range []struct {
		name   string
		waited time.Duration
		heard  time.Duration // how long ago on another trunk
		handed int           // bytes that the socket has taken; none is unacknowledged
		last   int           // bytes unacknowledged when looked at before
		want   bool
	}{
		{"first look, delivered", answerTime, time.Hour, 100, -1, true},
		{"first look, nothing sent", answerTime, time.Hour, 0, -1, false},
		{"progress", 20 * time.Second, time.Hour, 100, 50, true},
		{"no progress", 2 * answerTime, time.Hour, 100, 0, false},
		{"no progress, but the peer lives", 2 * answerTime, time.Second, 100, 0, true},
		{"no progress for long, but the peer lives", answerSlow, time.Second, 100, 0, false},
		{"progress for ever", answerMax, time.Second, 100, 50, false},
	} {
		l := e.loops[0]
		l.now = began + int64(c.waited)
		tr := &trunk{l: l, p: e.peer("far", true), beganAt: began, handed: c.handed, left0: c.last}
		tr.fd = a
		tr.p.heard.Store(l.now - int64(c.heard))
		if got := tr.patient(); got != c.want || got != (tr.deadline == l.now+int64(answerTime)) {
			t.Errorf("%s: %v, deadline %v", c.name, got, time.Duration(tr.deadline-l.now))
		}
	}
}

// TestPressed: flows are put to sleep sooner while there are descriptors left
// for as many flows again.
func TestPressed(t *testing.T) {
	e, err := New(Options{Loops: 1, ParkIdle: 10 * time.Second})
	must(t, err)
	p := e.peer("far", true)
	for _, c := range []struct {
		files, flows, trunks int
		want                 time.Duration
	}{
		{20000, 100, 100, 10 * time.Second},
		{20000, 18000, 300, 10 * time.Second},
		{20000, 18000, 700, tickBusy},
		{20000, 19000, 1000, tickBusy},
		{1024, 400, 300, tickBusy},
		{1024, 860, 10, 10 * time.Second}, // it would not help
	} {
		e.files, p.trunks = c.files, c.trunks
		e.flows.Store(int64(c.flows))
		if got := e.parkAfter(p); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestTrunkDies: flows on a trunk that dies are reset on both sides.
func TestTrunkDies(t *testing.T) {
	b := newBed(t, bedOptions{})
	ended := make(chan error, 1)
	b.serve(func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		ended <- err
	})
	c := b.client()
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	b.cut(b.near.Flows()[0].Trunk)
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("client: %v, expected a reset", err)
	}
	if err := <-ended; !isReset(err) {
		t.Errorf("sink: %v, expected a reset", err)
	}
	b.settled()
}

func TestOpenWithoutHost(t *testing.T) {
	b := newBed(t, bedOptions{tick: 2 * time.Millisecond})
	ended := make(chan string, 2)
	b.serve(func(c *net.TCPConn) {
		_, early := c.Write([]byte("banner")) // a reset that came first is told here
		s, err := readAll(c)
		if early != nil || isReset(err) {
			s = "reset"
		}
		ended <- s
	})
	result := make(chan error, 1)
	open := func() *Flow {
		f := b.near.Open("far", netip.MustParseAddrPort("10.0.0.1:1"), *b.sink.Load(), func(err error) { result <- err })
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	cl, here, err := tcpPair()
	must(t, err)
	f.Attach(here)
	p := make([]byte, 6)
	if k, err := unix.Read(cl, p); string(p[:max(k, 0)]) != "banner" || err != nil {
		t.Errorf("%q %v", p, err)
	}
	unix.Write(cl, []byte("bye"))
	unix.Close(cl)
	if s := <-ended; s != "bye" {
		t.Errorf("sink: %q", s)
	}
	f = open()
	f.Abort()
	if s := <-ended; s != "reset" {
		t.Errorf("sink: %q, expected a reset", s)
	}
	cl, here, err = tcpPair() // too late
	must(t, err)
	defer unix.Close(cl)
	f.Attach(here)
	if _, err := unix.Read(cl, p); err != unix.ECONNRESET {
		t.Errorf("host: %v, expected a reset", err)
	}
	b.settled()
}

func TestDrainAndLimit(t *testing.T) {
	b := newBed(t, bedOptions{near: Options{MaxFlows: 1}})
	b.serve(func(c *net.TCPConn) { io.Copy(c, c) })
	c := b.client()
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	if err := <-b.results; err != nil {
		t.Fatal(err)
	}
	b.near.Open("far", netip.AddrPort{}, *b.sink.Load(), func(err error) { b.results <- err })
	if err := <-b.results; !errors.Is(err, ErrLimit) {
		t.Errorf("a flow too many: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.near.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Drain with a flow left: %v", err)
	}
	b.near.Open("far", netip.AddrPort{}, *b.sink.Load(), func(err error) { b.results <- err })
	if err := <-b.results; !errors.Is(err, ErrLimit) {
		t.Errorf("a new flow: %v", err)
	}
	var drained atomic.Bool
	done := make(chan error)
	go func() { err := b.near.Drain(context.Background()); drained.Store(true); done <- err }()
	c.Write([]byte("y")) // the old one goes on
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil || drained.Load() {
		t.Errorf("%v, drained %v", err, drained.Load())
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNoTrunk: an Open that finds no trunk fails in time and tells so.
func TestNoTrunk(t *testing.T) {
	e, err := New(Options{OpenTimeout: 10 * time.Millisecond})
	must(t, err)
	e.tickBusy, e.tickIdle = time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	result := make(chan error, 2)
	e.Open("nobody", netip.AddrPort{}, netip.AddrPort{}, func(err error) { result <- err })
	if err := <-result; !errors.Is(err, ErrNoTrunk) || !errors.Is(err, unix.ETIMEDOUT) {
		t.Error(err)
	}
	cancel()
	must(t, <-done)
	e.Open("nobody", netip.AddrPort{}, netip.AddrPort{}, func(err error) { result <- err })
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestDropPeer: flows that sleep are reset when their peer has restarted.
func TestDropPeer(t *testing.T) {
	o := Options{ParkIdle: time.Millisecond, AskIdle: 100 * time.Millisecond}
	b := newBed(t, bedOptions{near: o, far: o, tick: 2 * time.Millisecond})
	ended := make(chan error, 1)
	b.serve(func(c *net.TCPConn) { _, err := io.Copy(c, c); ended <- err })
	c := parked(t, b, 1)[0]
	b.near.DropPeer("far")
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("client: %v, expected a reset", err)
	}
	if err := <-ended; !isReset(err) { // the far side has asked
		t.Errorf("sink: %v, expected a reset", err)
	}
	b.settled()
}

func BenchmarkShortFlow(bm *testing.B) {
	b := newBed(bm, bedOptions{pool: 4})
	b.serve(func(c *net.TCPConn) { io.Copy(c, c) })
	p := make([]byte, 1)
	for bm.Loop() {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			bm.Fatal(err)
		}
		c.Write(p)
		if _, err := io.ReadFull(c, p); err != nil {
			bm.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func BenchmarkBulk(bm *testing.B) {
	b := newBed(bm, bedOptions{})
	b.serve(func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		bm.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 1<<20)
	bm.SetBytes(int64(len(p)))
	for bm.Loop() {
		if _, err := c.Write(p); err != nil {
			bm.Fatal(err)
		}
	}
}
