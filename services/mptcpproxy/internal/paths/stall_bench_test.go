package paths

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// flow is a bulk transfer on a trunk that keeps book of what arrives.
type flow struct {
	bytes atomic.Uint64
	last  atomic.Int64 // ns, of the last arrival
	worst atomic.Int64 // ns, longest time without any
	stop  atomic.Bool
	done  chan struct{}
}

// transfer fills the connection from one end until stopped.
func transfer(from, to int) *flow {
	f := &flow{done: make(chan struct{})}
	f.last.Store(time.Now().UnixNano())
	go func() {
		buf := make([]byte, 64<<10)
		for !f.stop.Load() {
			if _, err := unix.Write(from, buf); err != nil && err != unix.EINTR {
				return
			}
		}
		unix.Shutdown(from, unix.SHUT_WR)
	}()
	go func() {
		defer close(f.done)
		buf := make([]byte, 256<<10)
		for {
			n, err := unix.Read(to, buf)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			now := time.Now().UnixNano()
			f.worst.Store(max(f.worst.Load(), now-f.last.Swap(now)))
			f.bytes.Add(uint64(n))
		}
	}()
	return f
}

// rate is the goodput over d, in Mbit/s.
func (f *flow) rate(d time.Duration) float64 {
	a, t := f.bytes.Load(), time.Now()
	<-time.After(d)
	return float64(f.bytes.Load()-a) * 8 / 1e6 / time.Since(t).Seconds()
}

// shape gives every link 10 Mbit/s each way.
func (b *bed) shape() {
	for _, ns := range []int{int(b.near), int(b.far)} {
		for _, dev := range []string{"p1", "p2"} {
			b.run(netns.NsHandle(ns), "tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", "10mbit", "burst", "16kb", "latency", "50ms")
		}
	}
}

// fault breaks the second path in one of the ways that happen.
type fault struct {
	name        string
	broke, mend func(b *bed)
}

func faults() []fault {
	drop := func(b *bed, ns int, chain, dev string) {
		b.run(netns.NsHandle(ns), "nft", "add table inet fault; add chain inet fault "+chain+" { type filter hook prerouting priority raw; }; add rule inet fault "+chain+" iifname "+dev+" drop")
	}
	undrop := func(b *bed, ns int) { b.run(netns.NsHandle(ns), "nft", "delete table inet fault") }
	return []fault{
		{"cutA", func(b *bed) { b.up(b.near, "p2", false) }, func(b *bed) { b.up(b.near, "p2", true) }},
		{"cutB", func(b *bed) { b.up(b.far, "p2", false) }, func(b *bed) { b.up(b.far, "p2", true) }},
		{"black", func(b *bed) { drop(b, int(b.far), "c", "p2"); drop(b, int(b.near), "c", "p2") },
			func(b *bed) { undrop(b, int(b.far)); undrop(b, int(b.near)) }},
	}
}

// BenchmarkFault measures the longest stall that the receiver sees when a path
// breaks under a bulk transfer, and how soon its rate is back once it is mended.
func BenchmarkFault(bb *testing.B) {
	for _, ft := range faults() {
		for _, dir := range []string{"up", "down"} {
			bb.Run(ft.name+"/"+dir, func(bb *testing.B) {
				b := newBed(bb, 2)
				b.shape()
				near, far := b.manager(b.near, b.nearOptions()), b.manager(b.far, b.farOptions())
				l := b.listen()
				tr := b.dial(l, near)
				for _, fd := range []int{tr.near, tr.far} {
					b.ok(unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"))
				}
				near.Register(tr.near, "exit", true)
				far.Register(tr.far, "near", false)
				until(bb, "joined", func() bool { return has(bb, tr.near, "10.1.0.1", "10.2.0.1") })
				from, to := tr.near, tr.far
				if dir == "down" {
					from, to = to, from
				}
				// What the governor does with the service: no long queues.
				b.ok(unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_SNDBUF, 96<<10))
				f := transfer(from, to)
				f.rate(2 * time.Second)
				before := f.rate(time.Second)
				var stall, back float64
				for range bb.N {
					f.worst.Store(0)
					ft.broke(b)
					during := f.rate(2 * time.Second)
					stall = max(stall, float64(f.worst.Load())/1e6)
					_ = during
					ft.mend(b)
					t := time.Now()
					for f.rate(250*time.Millisecond) < 0.95*before && time.Since(t) < 10*time.Second {
					}
					back = max(back, float64(time.Since(t).Milliseconds()))
					f.rate(time.Second)
				}
				f.stop.Store(true)
				bb.ReportMetric(stall, "ms-stall")
				bb.ReportMetric(back, "ms-back")
				bb.ReportMetric(before, "Mbit/s")
				bb.ReportMetric(0, "ns/op")
				<-f.done
				near.Unregister(tr.near)
				far.Unregister(tr.far)
			})
		}
	}
}
