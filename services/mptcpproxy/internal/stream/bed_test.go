package stream

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bed is two engines joined by trunks over loopback, with a listener for
// clients on near; far connects to whatever the client's flow names.
type bed struct {
	t         testing.TB
	near, far *Engine
	addr      string // where clients connect
	sink      atomic.Pointer[netip.AddrPort]
	sealed    bool
	dialed    atomic.Uint64
	noTrunks  atomic.Bool
	dialing   sync.Mutex
	results   chan error // of every Open
	pool      int
	rcvbuf    int
}

type bedOptions struct {
	near, far Options
	sealed    bool
	pool      int
	rcvbuf    int
	tick      time.Duration
}

func newBed(t testing.TB, o bedOptions) *bed {
	t.Helper()
	b := &bed{t: t, sealed: o.sealed, pool: max(o.pool, 2), rcvbuf: o.rcvbuf, results: make(chan error, 100000)}
	if o.near.NeedTrunk == nil {
		o.near.NeedTrunk = func(string) { go b.dial() }
	}
	if o.far.Connect == nil {
		o.far.Connect = testConnect
	}
	o.far.Finish = testFinish
	if os.Getenv("STREAM_LOG") != "" {
		o.near.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("side", "near")
		o.far.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("side", "far")
	}
	var err error
	if b.near, err = New(o.near); err != nil {
		t.Fatal(err)
	}
	if b.far, err = New(o.far); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*Engine{b.near, b.far} {
		if o.tick > 0 {
			e.tickBusy, e.tickIdle = o.tick, o.tick
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, e := range []*Engine{b.near, b.far} {
		wg.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	b.near.Listen(takeFD(t, ln.(*net.TCPListener)), func(fd int, src, dst netip.AddrPort) {
		b.near.Open("far", src, *b.sink.Load(), func(err error) {
			select {
			case b.results <- err:
			default:
			}
		}).Attach(fd)
	})
	b.dial()
	t.Cleanup(func() {
		b.noTrunks.Store(true)
		cancel()
		wg.Wait()
		b.dialing.Lock() // the last dial has ended
		defer b.dialing.Unlock()
	})
	return b
}

// takeFD makes a descriptor of our own of a connection or listener.
func takeFD(t testing.TB, c interface{ File() (*os.File, error) }) int {
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.(io.Closer).Close()
	return fd
}

// tcpPair is two ends of a connection over loopback.
func tcpPair() (int, int, error) {
	ls, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(ls)
	if err := unix.Bind(ls, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(ls, 1); err != nil {
		return 0, 0, err
	}
	sa, err := unix.Getsockname(ls)
	if err != nil {
		return 0, 0, err
	}
	a, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(a, sa); err != nil {
		unix.Close(a)
		return 0, 0, err
	}
	c, _, err := unix.Accept4(ls, unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(a)
		return 0, 0, err
	}
	return a, c, nil
}

// dial adds trunks until the pool is full.
func (b *bed) dial() {
	b.dialing.Lock()
	defer b.dialing.Unlock()
	for b.near.Idle("far") < b.pool || b.waiting() {
		if b.noTrunks.Load() {
			return
		}
		n, f, err := tcpPair()
		if err != nil {
			b.t.Error(err)
			return
		}
		if b.rcvbuf > 0 {
			setInt(n, unix.SOL_SOCKET, unix.SO_RCVBUF, b.rcvbuf)
			setInt(f, unix.SOL_SOCKET, unix.SO_RCVBUF, b.rcvbuf)
		}
		id := b.dialed.Add(1)
		near := Trunk{FD: n, Peer: "far", Near: true, ID: id}
		far := Trunk{FD: f, Peer: "near", ID: id}
		if b.sealed {
			near.Seal, near.SaltSeal = testAEAD(1), [12]byte{1, byte(id)}
			far.Open, far.SaltOpen = testAEAD(1), [12]byte{1, byte(id)}
			near.Open, near.SaltOpen = testAEAD(2), [12]byte{2, byte(id)}
			far.Seal, far.SaltSeal = testAEAD(2), [12]byte{2, byte(id)}
		}
		b.far.AddTrunk(far)
		b.near.AddTrunk(near)
		want := b.near.Stats().TrunksAdded
		waitFor(b.t, "trunk taken", func() bool {
			return b.near.Stats().TrunksAdded > want || b.noTrunks.Load() || b.near.Stats().TrunksAdded >= id
		})
	}
}

func (b *bed) waiting() bool { return b.near.anyWaiting() || b.far.anyWaiting() }

// cut kills a trunk from outside, as a failing path would.
func (b *bed) cut(id uint64) {
	for _, l := range b.far.loops {
		l.post(func() {
			for t := range l.trunk {
				if t.ID == id {
					unix.Shutdown(t.fd, unix.SHUT_RDWR)
				}
			}
		})
	}
}

func testAEAD(k byte) cipher.AEAD {
	c, err := aes.NewCipher(bytes.Repeat([]byte{k}, 16))
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(c)
	if err != nil {
		panic(err)
	}
	return a
}

func testConnect(_, dst netip.AddrPort, _ string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()})
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func testFinish(fd int) error {
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if e != 0 {
		return unix.Errno(e)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return unix.EINPROGRESS
	}
	return nil
}

// serve starts a sink; each connection is given to handle in a goroutine.
func (b *bed) serve(handle func(*net.TCPConn)) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	a := ln.Addr().(*net.TCPAddr).AddrPort()
	b.sink.Store(&a)
	var wg sync.WaitGroup
	b.t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Minute))
				handle(c.(*net.TCPConn))
			})
		}
	})
}

func (b *bed) client() *net.TCPConn {
	b.t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	b.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// waitFor waits until ok holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("waited in vain for: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// settled waits until no flow is left and every trunk is idle on both sides.
func (b *bed) settled() {
	b.t.Helper()
	var n, f Stats
	defer func() {
		if b.t.Failed() {
			b.t.Logf("near %+v\nfar %+v\n%v\n%v", n, f, b.near.Flows(), b.far.Flows())
		}
	}()
	waitFor(b.t, "all flows to end", func() bool {
		n, f = b.near.Stats(), b.far.Stats()
		return n.Flows == 0 && f.Flows == 0 && n.Idle == n.Trunks && f.Idle == f.Trunks
	})
	if n.Buffered != 0 || f.Buffered != 0 {
		b.t.Errorf("buffers leak: near holds %d bytes, far %d", n.Buffered, f.Buffered)
	}
}

func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

func readAll(c net.Conn) (string, error) {
	p, err := io.ReadAll(c)
	return string(p), err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}
