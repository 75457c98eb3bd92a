package datagram

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

// pair is two endpoints with one session, on loopback.
type pair struct {
	near, far   *Endpoint
	ns, fs      *Session
	nearPaths   []Path
	mu          sync.Mutex
	changed     *sync.Cond
	alive       map[string]bool // "near a", "far a"
	got         map[string][][]byte
	deadReports int
}

var testKey = [32]byte{1, 2, 3}

// freePort asks the kernel for a UDP port.
func freePort(t testing.TB) uint16 {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(sa.(*unix.SockaddrInet6).Port)
}

func newPair(t testing.TB, encrypt bool, addrs ...string) *pair {
	p := &pair{alive: map[string]bool{}, got: map[string][][]byte{}}
	p.changed = sync.NewCond(&p.mu)
	port := freePort(t)
	listen := func(side string, port uint16) *Endpoint {
		e, err := Listen(Options{Port: port, OnPath: func(peer, path string, alive bool, rtt time.Duration) {
			p.mu.Lock()
			p.alive[side+" "+path] = alive
			if !alive {
				p.deadReports++
			}
			p.changed.Broadcast()
			p.mu.Unlock()
		}})
		if err != nil {
			t.Fatal(err)
		}
		e.Handle(ClassUDP, func(s *Session, payloads [][]byte) {
			p.mu.Lock()
			for _, b := range payloads {
				p.got[side] = append(p.got[side], bytes.Clone(b))
			}
			p.changed.Broadcast()
			p.mu.Unlock()
		})
		return e
	}
	p.near, p.far = listen("near", 0), listen("far", port)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, e := range []*Endpoint{p.near, p.far} {
		wg.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	p.fs = p.far.AddSession("n", false, 42, testKey, encrypt)
	p.ns = p.near.AddSession("f", true, 42, testKey, encrypt)
	for i, a := range addrs {
		p.nearPaths = append(p.nearPaths, Path{ID: uint8(i), Name: string(rune('a' + i)), Remote: netip.AddrPortFrom(netip.MustParseAddr(a), port)})
	}
	p.ns.SetPaths(p.nearPaths)
	return p
}

// wait waits until ok holds, which is called with p.mu held.
func (p *pair) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { p.mu.Lock(); p.changed.Broadcast(); p.mu.Unlock() })
	defer timer.Stop()
	end := time.Now().Add(patience)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v; paths %v, near %+v, far %+v", what, patience, p.alive, p.ns.Stats(), p.fs.Stats())
		}
		p.changed.Wait()
	}
}

func (p *pair) waitAlive(t testing.TB, alive bool, path string) {
	t.Helper()
	p.wait(t, fmt.Sprintf("path %s alive %v", path, alive), func() bool {
		return p.alive["near "+path] == alive && p.alive["far "+path] == alive
	})
}

func TestPayloadsOfAnySizeCrossBothWays(t *testing.T) {
	for _, encrypt := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypt %v", encrypt), func(t *testing.T) {
			p := newPair(t, encrypt, "127.0.0.1", "::1")
			p.waitAlive(t, true, "a")
			p.waitAlive(t, true, "b")
			sizes := []int{0, 1, 8, 500, 1200, 1472, 1500, 3000, 9000, 40000, 65535}
			for _, side := range []string{"near", "far"} {
				s, to := p.ns, "far"
				if side == "far" {
					s, to = p.fs, "near"
				}
				for i, n := range sizes {
					b := make([]byte, n)
					for j := range b {
						b[j] = byte(i + j)
					}
					if err := s.Send(7, ClassUDP, b[:n/3], b[n/3:]); err != nil {
						t.Fatal(err)
					}
				}
				p.wait(t, "payloads from "+side, func() bool { return len(p.got[to]) >= len(sizes) })
				p.mu.Lock()
				got := slices.Clone(p.got[to])
				p.mu.Unlock()
				for i, n := range sizes {
					b := got[i]
					if len(b) != n {
						t.Fatalf("payload %d from %s has %d bytes, want %d", i, side, len(b), n)
					}
					for j := range b {
						if b[j] != byte(i+j) {
							t.Fatalf("payload %d from %s differs at byte %d", i, side, j)
						}
					}
				}
			}
			if err := p.ns.Send(1, ClassUDP, make([]byte, maxPayload+1)); err == nil {
				t.Error("a payload of 65536 bytes was taken")
			}
		})
	}
}

func TestForgedAndForeignPacketsAreCounted(t *testing.T) {
	p := newPair(t, false, "127.0.0.1")
	p.waitAlive(t, true, "a")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Port: int(p.nearPaths[0].Remote.Port()), Addr: [4]byte{127, 0, 0, 1}}
	h := header{path: 1, session: 42, seq: 1 << 40}
	b := make([]byte, headerLen+tagLen)
	h.put(b)
	forged := bytes.Clone(b)
	binary.BigEndian.PutUint64(b[4:], 43)
	for _, b := range [][]byte{forged, b, []byte("GET / HTTP/1.0\r\n\r\n and some more to be long enough")} {
		if err := unix.Sendto(fd, b, 0, to); err != nil {
			t.Fatal(err)
		}
	}
	// A payload that comes after them on the same path shows that they were seen.
	n := 0
	for end := time.Now().Add(patience); ; {
		if st := p.far.Stats(); st.Forged == 1 && st.Unknown == 1 && st.Malformed == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("counted %+v, want one of each", p.far.Stats())
		}
		if err := p.ns.Send(1, ClassUDP, []byte("x")); err != nil {
			t.Fatal(err)
		}
		n++
		p.wait(t, "a payload", func() bool { return len(p.got["far"]) >= n })
	}
	if n := len(p.fs.Stats().Paths); n != 1 {
		t.Errorf("the far end knows %d paths, want 1", n)
	}
}

func TestSendWithoutPath(t *testing.T) {
	p := newPair(t, false)
	if err := p.ns.Send(1, ClassUDP, []byte("x")); !errors.Is(err, ErrNoPath) {
		t.Errorf("Send without a path: %v, want %v", err, ErrNoPath)
	}
	p.ns.Close()
	if err := p.ns.Send(1, ClassUDP, []byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v, want %v", err, ErrClosed)
	}
	if s := p.near.Session("f", true); s != nil {
		t.Errorf("Session after Close: %v, want nil", s)
	}
}

func TestSessionIsReplacedWithoutLoss(t *testing.T) {
	p := newPair(t, true, "127.0.0.1")
	p.waitAlive(t, true, "a")
	const n = 200
	for i := range n {
		s := p.near.Session("f", true)
		if err := s.Send(9, ClassUDP, binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			t.Fatalf("payload %d: %v", i, err)
		}
		switch i {
		case 50: // the near end first: its packets are unknown to the far one for a while
			p.near.AddSession("f", true, 43, testKey, true)
		case 100:
			p.far.AddSession("n", false, 43, testKey, true)
		}
		p.wait(t, "payload", func() bool { return len(p.got["far"]) > i })
	}
	p.wait(t, "the new session", func() bool { return p.near.Session("f", true).core.id == 43 && p.near.Session("f", true).Alive() })
}
