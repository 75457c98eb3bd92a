// Package govern keeps the queues at the bottlenecks of the paths short while
// bulk flows use all of their rate, and chooses congestion control.
//
// It samples the subflows of busy connections (MPTCP_FULL_INFO) and knows each
// path's smallest round trip, delivery rate and loss. On a path that has shown
// to have a bottleneck it bounds what all busy connections together keep in
// flight.
package govern

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Options sets a Governor up. Zero values take the defaults named.
type Options struct {
	Interval     time.Duration // between samples of busy connections, 25 ms
	Congestion   string        // "auto", or an algorithm of the kernel that is set on every socket
	NotSentLowat int           // TCP_NOTSENT_LOWAT, bytes; 0: left alone
	Queue        time.Duration // queueing delay aimed at, 4 ms
	Log          *slog.Logger
}

// Governor looks after registered connections.
type Governor struct{ o Options }

// New makes a Governor; Run makes it work.
func New(o Options) (*Governor, error) { return &Governor{o: o}, nil }

// Run samples and decides until ctx ends.
func (g *Governor) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Register puts a connected MPTCP or TCP socket under the governor, which
// sets its congestion control and may change its buffer. The descriptor must
// stay valid until Unregister has returned.
func (g *Governor) Register(fd int, peer string) {}

// Unregister ends that; call it before the descriptor is closed.
func (g *Governor) Unregister(fd int) {}

// SetBusy tells whether a connection carries a flow (stream.Options.TrunkBusy).
// Only busy ones are sampled. A new one counts as busy.
func (g *Governor) SetBusy(fd int, busy bool) {}

// PathStat is what is known of one path, that is: of one pair of addresses.
type PathStat struct {
	Peer          string
	Local, Remote netip.Addr
	MinRTT, RTT   time.Duration
	Rate          float64 // bytes per second delivered at most
	Loss          float64 // share of segments, smoothed
	InFlight      int     // bytes
	Limit         int     // bytes in flight allowed; 0 = not bounded
	Congestion    string
	Subflows      int
}

// PathStats lists the paths, sorted by peer and address.
func (g *Governor) PathStats() []PathStat { return nil }
