package carrier

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"weft/services/mptcpproxy/internal/stream"
)

// Accept is one rule of who may dial us and what it may reach.
type Accept struct {
	Name        string
	Kind        Kind
	Keys        Keys           // Convert: who it is
	From        []netip.Prefix // sources of connections; empty = all for Convert, none for others
	AllowClient []netip.Prefix // client addresses it may speak for; empty = none
	AllowDest   []netip.Prefix // destinations; empty = none
}

// ListenerOptions sets a Listener up. Zero numbers take the defaults named.
type ListenerOptions struct {
	Port   uint16 // on all local addresses, IPv4 and IPv6
	Accept []Accept
	Engine Engine
	Hello  func() Hello
	Log    *slog.Logger

	HandshakeTimeout time.Duration // 5 s
	MaxPending       int           // unauthenticated connections at once, 256
	SourceRate       float64       // new connections per second and source (IPv6: /64), 50
	SourceBurst      int           // 200

	OnPeer    func(peer string, up bool, hello Hello)
	OnSession func(peer string, near bool, id uint64, key [32]byte, hello Hello)
	OnConn    func(c Conn)
	OnClose   func(c Conn)
	// OnRaw gets each connection of kind Proxy2 after its header: the flow is
	// src to dst, early was read behind the header. The callee owns fd.
	OnRaw func(fd int, peer string, src, dst netip.AddrPort, early []byte)
}

// Listener accepts connections of peers.
type Listener struct{ o ListenerOptions }

// NewListener opens the listening sockets.
func NewListener(o ListenerOptions) (*Listener, error) { return &Listener{o: o}, nil }

// Run accepts until ctx ends.
func (l *Listener) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Update replaces the rules. Connections that no rule allows any more are closed.
func (l *Listener) Update(accept []Accept) {}

// Allow decides on one flow (stream.Options.Allow).
func (l *Listener) Allow(peer string, src, dst netip.AddrPort) error { return nil }

// TrunkClosed says that the engine closes a trunk (stream.Options.TrunkClosed).
func (l *Listener) TrunkClosed(t stream.Trunk, err error) {}

// Status describes all peers that dialled us, sorted by name.
func (l *Listener) Status() []PeerStatus { return nil }

// ListenerStats counts what came in.
type ListenerStats struct {
	Accepted      uint64 // connections, in all
	Authenticated uint64
	Refused       uint64 // wrong key or no rule
	Garbage       uint64 // did not speak the protocol
	TimedOut      uint64
	RateLimited   uint64
	Overflowed    uint64 // MaxPending reached
	Denied        uint64 // flows refused by Allow
	Pending       int    // now
}

// Stats gives the counters.
func (l *Listener) Stats() ListenerStats { return ListenerStats{} }
