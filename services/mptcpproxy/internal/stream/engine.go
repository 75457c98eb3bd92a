package stream

import (
	"context"
	"crypto/cipher"
	"log/slog"
	"net/netip"
	"time"
)

// Options sets an engine up. The zero value of a number takes the default
// named beside it.
type Options struct {
	// Loops is the number of epoll loops, each on a thread of its own
	// (default: the number of CPUs, at most 4).
	Loops int
	// FlowBuffer bounds what is held back for one direction of one flow, in
	// bytes (default 1 MiB). At the bound the source is not read any more.
	FlowBuffer int
	// MemoryMax bounds what all flows together hold back, in bytes
	// (default 64 MiB).
	MemoryMax int
	// ParkIdle is how long a flow has been idle both ways before it gives its
	// trunk back (default 10 s; negative: never).
	ParkIdle time.Duration
	// NotSentLowat is TCP_NOTSENT_LOWAT of trunks, in bytes (0: left alone).
	NotSentLowat int
	// KeepAlive is the idle time before TCP keepalive probes a host, so that
	// a vanished one is noticed (default 2 h, as RFC 1122 asks; negative: off).
	KeepAlive time.Duration
	// MaxFlows bounds the flows at once (default 50,000). Above it a new one
	// is refused.
	MaxFlows int
	Log      *slog.Logger

	// Connect (far side) starts a non-blocking connection to dst, from src
	// where that is possible, and returns its socket. An error is sent back
	// in OPEN-FAILED. It is called from a loop and must not block.
	Connect func(src, dst netip.AddrPort, peer string) (fd int, err error)
	// Finish (far side) tells how a connection ended, once its socket is
	// writable or failed: nil or an error, best a *transparent.ConnectError.
	Finish func(fd int) error
	// Allow (far side) may refuse a flow before anything is connected.
	Allow func(peer string, src, dst netip.AddrPort) error
	// Closed is called from a loop when a flow has ended. It must not block.
	Closed func(FlowStat)
	// NeedTrunk (near side) is called from any goroutine when a flow to peer
	// waits for a trunk or the last idle one was taken. It must not block.
	NeedTrunk func(peer string)
	// TrunkClosed is called just before the socket of a trunk is closed, with
	// the reason (nil: in the ordinary way). It must not block.
	TrunkClosed func(t Trunk, err error)
	// TrunkBusy is called when a trunk begins (true) or ends (false) to carry
	// a flow. It must not block.
	TrunkBusy func(t Trunk, busy bool)
}

// Trunk is one authenticated connection between two gateways, handed to the
// engine, which owns the socket from then on.
type Trunk struct {
	FD   int    // connected socket, TCP or MPTCP
	Peer string // name of the gateway at the other end
	Near bool   // we dialled it: we may open flows on it
	// Seal and Open protect every frame when both are set (AES-GCM or
	// ChaCha20-Poly1305, 12 byte nonces); nil: frames go in the clear. The
	// nonce is the salt, its last 8 bytes XORed with the frame's number.
	Seal, Open         cipher.AEAD
	SaltSeal, SaltOpen [12]byte
	ID                 uint64 // chosen by the caller, for logs and callbacks
}

// FlowStat describes one flow.
type FlowStat struct {
	ID       uint64
	Peer     string
	Near     bool // the client is on our side
	Raw      bool // relayed byte for byte, not framed
	Src, Dst netip.AddrPort
	State    string // connecting, open, half-closed, parked, closed
	Opened   time.Time
	Ended    time.Time // zero while it lives
	// ToPeer and FromPeer count payload bytes: host to trunk, trunk to host.
	ToPeer, FromPeer uint64
	Buffered         int    // bytes held back now, both directions
	Trunk            uint64 // Trunk.ID of the one in use
	Err              error  // why it ended; nil: both sides closed
}

// Stats counts what the engine did since it was made.
type Stats struct {
	Flows, Parked       int    // now
	Trunks, Idle        int    // now
	Buffered            int    // bytes held back now
	Opened, Failed      uint64 // flows: established, not established
	Reset, Ended        uint64 // flows: ended by a reset, ended in all
	Retried             uint64 // OPEN sent again on another trunk
	Parks, Resumes      uint64
	Collisions          uint64 // both sides took the same trunk
	TrunksAdded         uint64
	TrunksLost          uint64 // trunks that ended with an error
	TrunkReuses         uint64 // flows begun on a trunk used before
	ToPeer, FromPeer    uint64 // payload bytes
	Stalled             uint64 // times a source was not read for want of room
	AuthFailed, Refused uint64 // frames that did not verify; flows refused by Allow or a limit
}

// Engine carries flows between hosts and trunks. Make one with New, then
// call Run; the other methods may be called from any goroutine.
type Engine struct {
	o Options
}

// New checks the options and makes an engine. Nothing runs before Run.
func New(o Options) (*Engine, error) { return &Engine{o: o}, nil }

// Run serves until ctx ends, then resets the flows that are left, closes
// every socket and returns.
func (e *Engine) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// AddTrunk hands a trunk over, together with its socket.
func (e *Engine) AddTrunk(t Trunk) {}

// Idle tells how many trunks to peer wait for a flow that we may open.
func (e *Engine) Idle(peer string) int { return 0 }

// Flow is one TCP connection of a host, as its opener sees it.
type Flow struct{}

// Open asks the far side to connect to dst for src, on an idle trunk to peer
// or on the first one that comes. result is called once from a loop: nil when
// the far side has connected, otherwise the reason, a
// *transparent.ConnectError where the sink or the network refused. It must not
// block. The flow waits for Attach.
func (e *Engine) Open(peer string, src, dst netip.AddrPort, result func(err error)) *Flow {
	return &Flow{}
}

// Attach gives the flow its host's socket, at once or later. What the host
// has sent before the result is carried right behind OPEN. The engine owns the
// socket from then on; it is reset if the flow fails.
func (f *Flow) Attach(fd int) {}

// Abort ends the flow with a reset, at any time.
func (f *Flow) Abort() {}

// Raw relays byte for byte between two connected sockets, a the host's and b
// the carrier's, after early has been written to b. Half-close and reset are
// kept.
func (e *Engine) Raw(a, b int, peer string, early []byte) {}

// Listen takes a listening socket over and calls accepted from a loop for each
// connection, with its peer's and its own address (under TPROXY the original
// destination). accepted owns fd and must not block; it may call Open and Attach.
func (e *Engine) Listen(fd int, accepted func(fd int, src, dst netip.AddrPort)) {}

// Stats returns the counters.
func (e *Engine) Stats() Stats { return Stats{} }

// Flows lists the flows that live.
func (e *Engine) Flows() []FlowStat { return nil }

// Drain stops accepting and opening and returns when no flow is left or ctx
// ends.
func (e *Engine) Drain(ctx context.Context) error { return nil }
