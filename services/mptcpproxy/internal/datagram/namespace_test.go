package datagram

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/services/mptcpproxy/internal/datagram/netbed"
)

// gateways is a session between the gateways of a bed.
type gateways struct {
	bed       *netbed.Bed
	near, far *Endpoint
	ns, fs    *Session
	mu        sync.Mutex
	changed   *sync.Cond
	alive     map[string]bool
	times     map[string]time.Time // of the last report
	down      int
}

func newGateways(t testing.TB, paths int, v6 bool) *gateways {
	g := &gateways{bed: netbed.New(t, paths), alive: map[string]bool{}, times: map[string]time.Time{}}
	g.changed = sync.NewCond(&g.mu)
	open := func(ns string, port uint16) *Endpoint {
		e, err := Listen(Options{Port: port, Socket: g.bed.Socket(ns), OnPath: func(peer, path string, alive bool, rtt time.Duration) {
			g.mu.Lock()
			g.alive[ns+" "+path] = alive
			g.times[ns+" "+path] = time.Now()
			if !alive {
				g.down++
			}
			g.changed.Broadcast()
			g.mu.Unlock()
		}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	g.near, g.far = open(netbed.Near, 0), open(netbed.Far, 6240)
	g.fs = g.far.AddSession("near", false, 42, testKey, false)
	g.ns = g.near.AddSession("far", true, 42, testKey, false)
	var conf []Path
	for i := 1; i <= paths; i++ {
		local, remote := netbed.Path(i, v6)
		dev := fmt.Sprintf("p%d", i)
		conf = append(conf, Path{ID: uint8(i), Name: dev, Device: dev, Local: local, Remote: netip.AddrPortFrom(remote, 6240)})
	}
	g.ns.SetPaths(conf)
	return g
}

// run starts both endpoints and waits for all paths.
func (g *gateways) run(t testing.TB, paths int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, e := range []*Endpoint{g.near, g.far} {
		wg.Go(func() { _ = e.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := 1; i <= paths; i++ {
		g.await(t, fmt.Sprintf("p%d", i), true)
	}
}

// await waits until both gateways call a path alive or dead.
func (g *gateways) await(t testing.TB, path string, alive bool) {
	t.Helper()
	end := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() { g.mu.Lock(); g.changed.Broadcast(); g.mu.Unlock() })
	defer timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ns := range []string{netbed.Near, netbed.Far} {
		for {
			if a, ok := g.alive[ns+" "+path]; (ok || !alive) && a == alive {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("path %s is not reported alive=%v at %s: %v", path, alive, ns, g.alive)
			}
			g.changed.Wait()
		}
	}
}

func TestPathsInNamespaces(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			g := newGateways(t, 2, v6)
			var got atomic.Int64
			arrived := make(chan int64, 100)
			g.far.Handle(ClassUDP, func(s *Session, payloads [][]byte) {
				n := got.Add(int64(len(payloads)))
				select {
				case arrived <- n:
				default:
				}
			})
			g.run(t, 2)
			g.ns.SetActive(true)
			send := func(n int) {
				for range n {
					if err := g.ns.Send(1, ClassUDP, make([]byte, 1200)); err != nil {
						t.Fatal(err)
					}
				}
				for end := time.After(patience); got.Load() < int64(n); {
					select {
					case <-arrived:
					case <-end:
						t.Fatalf("%d of %d payloads came; near %+v", got.Load(), n, g.ns.Stats())
					}
				}
				got.Store(0)
			}
			send(10)
			g.bed.Cut(1, true)
			g.await(t, "p1", false)
			send(10)
			g.bed.Cut(1, false)
			g.await(t, "p1", true)
			send(10)

			// A link without carrier is reported, and used again when it is back.
			g.bed.Run(netbed.Near, "ip", "link", "set", "p2", "down")
			g.await(t, "p2", false)
			send(10)
			g.bed.Run(netbed.Near, "ip", "link", "set", "p2", "up")
			if v6 {
				g.bed.Run(netbed.Near, "ip", "addr", "replace", "fd02:2::1/64", "dev", "p2", "nodad")
			}
			g.await(t, "p2", true)
			send(10)

			// Full packets pass once the paths are known to carry them.
			want := 1500
			for end := time.Now().Add(patience); ; {
				st := g.ns.Stats()
				if !slices.ContainsFunc(st.Paths, func(p PathStats) bool { return p.MTU != want }) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("MTU of the paths: %+v, want %d", st.Paths, want)
				}
				send(1)
			}
		})
	}
}

// measure sends mbit Mbit/s of payloads of size bytes each way for d and
// reports share delivered and delays.
func (g *gateways) measure(b testing.TB, mbit float64, size int, d time.Duration, during func()) {
	type side struct {
		sent   atomic.Int64
		mu     sync.Mutex
		delays []time.Duration
		gap    time.Duration
		last   time.Time
	}
	var up, down side
	epoch := time.Now()
	take := func(s *side) func(*Session, [][]byte) {
		return func(_ *Session, payloads [][]byte) {
			now := time.Since(epoch)
			s.mu.Lock()
			if t := time.Now(); !s.last.IsZero() {
				s.gap = max(s.gap, t.Sub(s.last))
				s.last = t
			} else {
				s.last = t
			}
			for _, p := range payloads {
				s.delays = append(s.delays, now-time.Duration(binary.BigEndian.Uint64(p)))
			}
			s.mu.Unlock()
		}
	}
	g.far.Handle(ClassUDP, take(&up))
	g.near.Handle(ClassUDP, take(&down))
	g.run(b, len(g.ns.Stats().Paths))
	load := func(s *side, ses *Session) {
		gap := time.Duration(float64(size*8) / mbit * 1e3)
		payload := make([]byte, size)
		for next := time.Now(); ; {
			now := time.Now()
			if now.Sub(epoch) > d {
				return
			}
			n := 0
			for ; now.Sub(next) >= 0; next = next.Add(gap) {
				binary.BigEndian.PutUint64(payload, uint64(time.Since(epoch)))
				_ = ses.Queue(1, ClassUDP, payload)
				n++
				s.sent.Add(1)
			}
			if n > 0 {
				ses.Flush()
			}
			time.Sleep(time.Until(next))
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { load(&up, g.ns) })
	wg.Go(func() { load(&down, g.fs) })
	if during != nil {
		during()
	}
	wg.Wait()
	time.Sleep(200 * time.Millisecond)
	for _, s := range []struct {
		name string
		*side
	}{{"up", &up}, {"down", &down}} {
		s.mu.Lock()
		slices.Sort(s.delays)
		n := len(s.delays)
		if n > 0 {
			b.Logf("%-4s delivered %.4f of %d, delay p50 %v p99 %v p99.9 %v max %v, longest gap %v", s.name, float64(n)/float64(s.sent.Load()), s.sent.Load(),
				s.delays[n/2], s.delays[n*99/100], s.delays[n*999/1000], s.delays[n-1], s.gap)
		} else {
			b.Logf("%s nothing delivered", s.name)
		}
		s.mu.Unlock()
	}
	b.Logf("near %+v", g.ns.Stats())
	b.Logf("far  %+v", g.fs.Stats())
}

func number(name string, value float64) float64 {
	if s := os.Getenv(name); s != "" {
		if v, err := strconv.ParseFloat(s, 64); err == nil {
			return v
		}
	}
	return value
}

// BenchmarkTwoPaths is the table's row: WEFT_RATE1 and WEFT_RATE2 are the
// paths' rates, WEFT_LOAD the load each way, all in Mbit/s.
func BenchmarkTwoPaths(b *testing.B) {
	g := newGateways(b, 2, false)
	g.bed.Shape(1, number("WEFT_RATE1", 10))
	g.bed.Shape(2, number("WEFT_RATE2", 10))
	g.measure(b, number("WEFT_LOAD", 14.4), int(number("WEFT_SIZE", 1400)), 10*time.Second, nil)
}

// BenchmarkCutPath cuts one of two paths in the middle of the load.
func BenchmarkCutPath(b *testing.B) {
	g := newGateways(b, 2, false)
	g.bed.Shape(1, 10)
	g.bed.Shape(2, 10)
	g.measure(b, number("WEFT_LOAD", 7), 1200, 6*time.Second, func() {
		time.Sleep(2 * time.Second)
		g.bed.Cut(1, true)
		at := time.Now()
		g.await(b, "p1", false)
		g.mu.Lock()
		b.Logf("dead at near after %v, at far after %v", g.times["near p1"].Sub(at), g.times["far p1"].Sub(at))
		g.mu.Unlock()
		time.Sleep(time.Second)
		g.bed.Cut(1, false)
		at = time.Now()
		g.await(b, "p1", true)
		b.Logf("alive again after %v", time.Since(at))
	})
}

// BenchmarkUnshaped is how many 1400-byte payloads one direction carries over
// one path or two (WEFT_PATHS) that nothing limits.
func BenchmarkUnshaped(b *testing.B) {
	n := int(number("WEFT_PATHS", 2))
	g := newGateways(b, n, false)
	if os.Getenv("WEFT_ENCRYPT") != "" {
		g.ns.crypt.encrypt, g.fs.crypt.encrypt = true, true
	}
	var got atomic.Int64
	g.far.Handle(ClassUDP, func(_ *Session, payloads [][]byte) { got.Add(int64(len(payloads))) })
	g.run(b, n)
	payload := make([]byte, 1400)
	sent := 0
	end := time.Now().Add(3 * time.Second)
	begin := time.Now()
	for time.Now().Before(end) {
		// As a reader of a batch does; with no more than the far end takes.
		for range 32 {
			_ = g.ns.Queue(uint32(sent>>8), ClassUDP, payload)
			sent++
		}
		g.ns.Flush()
		for int64(sent)-got.Load() > 2000 && time.Now().Before(end) {
			time.Sleep(50 * time.Microsecond)
		}
	}
	d := time.Since(begin)
	time.Sleep(100 * time.Millisecond)
	b.ReportMetric(float64(got.Load())*1400*8/d.Seconds()/1e9, "Gbit/s")
	b.ReportMetric(float64(got.Load())/float64(sent), "delivered")
	b.Logf("near %+v", g.ns.Stats())
	b.Logf("far  %+v", g.fs.Stats())
}
