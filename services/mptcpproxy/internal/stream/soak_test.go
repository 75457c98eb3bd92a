package stream

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func openFDs(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	return len(d)
}

// The client of a soak flow says in 12 bytes what both sides do: how many bytes
// each sends, and how the flow ends.
const (
	soakClose     = iota // client half-closes, sink answers, both close
	soakSinkFirst        // sink half-closes first
	soakReset            // client resets in the midst of it
	soakSinkReset
	soakNap // both pause half-way, so that the flow sleeps
	soakKinds
)

const soakMax = 600000 // bytes, one way

// TestSoak runs short random flows from many clients, with trunks cut under
// them if cut is set. What arrives must be the beginning of what was sent; all
// of it, unless somebody reset or a trunk was lost.
func TestSoak(t *testing.T) {
	for _, c := range []struct {
		name   string
		sealed bool
		cut    bool
		loops  int
	}{
		{"plain", false, false, 1}, {"sealed, 3 loops", true, false, 3}, {"trunks cut, 2 loops", false, true, 2}, {"sealed, trunks cut", true, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0") // with it come the runtime's own descriptors
			must(t, err)
			ln.Close()
			fds := openFDs(t)
			t.Run("flows", func(t *testing.T) { soak(t, c.sealed, c.cut, c.loops) })
			waitFor(t, "descriptors to be closed", func() bool { return openFDs(t) <= fds })
		})
	}
}

func soak(t *testing.T, sealed, cut bool, loops int) {
	o := Options{ParkIdle: time.Millisecond, AskIdle: time.Second, Loops: loops, FlowBuffer: 64 << 10, MemoryMax: 1 << 20}
	far := o
	if os.Getenv("STREAM_LOG") != "" {
		o.Closed = func(s FlowStat) {
			if s.Err != nil {
				println("near", s.ID, s.Err.Error())
			}
		}
		far.Closed = func(s FlowStat) {
			if s.Err != nil {
				println("far", s.ID, s.Err.Error())
			}
		}
	}
	b := newBed(t, bedOptions{near: o, far: far, sealed: sealed, tick: 2 * time.Millisecond, pool: 3})
	var broken, whole atomic.Int64
	stream := pattern(256<<8+soakMax, 1) // every flow sends a part of it
	nap := func() { time.Sleep(10 * time.Millisecond) }
	side := func(c *net.TCPConn, head []byte, client bool) {
		kind := head[0]
		if kind >= soakKinds || binary.BigEndian.Uint32(head[4:]) >= soakMax || binary.BigEndian.Uint32(head[8:]) >= soakMax {
			t.Errorf("a stream begins with % x: that was never sent", head)
			return
		}
		seed := head[1]
		up, down := int(binary.BigEndian.Uint32(head[4:])), int(binary.BigEndian.Uint32(head[8:]))
		mine, theirs := stream[int(seed)<<8:][:down], stream[int(seed+1)<<8:][:up]
		if client {
			mine, theirs = theirs, mine
		}
		resets := kind == soakReset && client || kind == soakSinkReset && !client
		maybe := kind == soakReset || kind == soakSinkReset
		// Linux tells a reset once: to whichever of two calls comes first.
		var werr error
		var wg sync.WaitGroup
		wg.Go(func() {
			m := mine
			if kind == soakNap {
				if _, werr = c.Write(m[:len(m)/2]); werr != nil {
					return
				}
				nap()
				m = m[len(m)/2:]
			}
			if resets {
				c.Write(m[:len(m)/2])
				c.SetLinger(0)
				c.Close()
				return
			}
			if kind == soakSinkFirst && client {
				return
			}
			if _, werr = c.Write(m); werr == nil {
				c.CloseWrite()
			}
		})
		var got bytes.Buffer
		_, err := io.Copy(&got, c)
		if kind == soakSinkFirst && client && err == nil {
			if _, err := c.Write(mine); err == nil {
				c.CloseWrite()
			}
		}
		wg.Wait()
		if err == nil {
			err = werr
		}
		g := got.Bytes()
		switch {
		case len(g) > len(theirs) || crc32.ChecksumIEEE(g) != crc32.ChecksumIEEE(theirs[:len(g)]):
			t.Errorf("kind %d, client %v: %d bytes of %d are not what was sent", kind, client, len(g), len(theirs))
		case len(g) == len(theirs) && err == nil:
			whole.Add(1)
		case err == nil && !resets && len(g) < len(theirs):
			t.Errorf("kind %d, client %v: the stream ended after %d bytes of %d, as if that were all", kind, client, len(g), len(theirs))
		case !maybe && !cut:
			t.Errorf("kind %d, client %v: %v after %d bytes of %d", kind, client, err, len(g), len(theirs))
		default:
			broken.Add(1)
		}
	}
	b.serve(func(c *net.TCPConn) {
		head := make([]byte, 12)
		if _, err := io.ReadFull(c, head); err == nil {
			side(c, head, false)
		}
	})
	const clients = 24
	each := 30
	if testing.Short() {
		each = 15
	}
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	if cut {
		cutter.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					if n := b.dialed.Load(); n > 0 {
						b.cut(1 + rand.Uint64N(n))
					}
				}
			}
		})
	}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for range each {
				c, err := net.Dial("tcp", b.addr)
				if err != nil {
					continue // reset before Go had looked at it
				}
				c.SetDeadline(time.Now().Add(5 * time.Minute))
				head := make([]byte, 12)
				head[0], head[1] = byte(r.IntN(soakKinds)), byte(r.IntN(250))
				size := func() uint32 {
					switch r.IntN(4) {
					case 0:
						return 0
					case 1:
						return uint32(r.IntN(100))
					case 2:
						return uint32(r.IntN(20000))
					}
					return uint32(r.IntN(soakMax))
				}
				binary.BigEndian.PutUint32(head[4:], size())
				binary.BigEndian.PutUint32(head[8:], size())
				if _, err := c.Write(head); err == nil {
					side(c.(*net.TCPConn), head, true)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	close(stop)
	cutter.Wait()
	b.settled()
	t.Logf("%d sides whole, %d broken; near %+v", whole.Load(), broken.Load(), b.near.Stats())
	if whole.Load() == 0 || (broken.Load() == 0) {
		t.Error("the mix did not cover both flows that end well and flows that are reset")
	}
	if !cut && b.near.Stats().TrunksLost+b.far.Stats().TrunksLost > uint64(clients*each) {
		t.Error("more trunks lost than flows reset")
	}
	if n := b.near.Stats(); n.Parks == 0 || n.Resumes == 0 || n.TrunkReuses == 0 {
		t.Errorf("nothing slept: %+v", n)
	}
}
