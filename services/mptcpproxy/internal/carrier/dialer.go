package carrier

import (
	"context"
	"log/slog"
	"net/netip"

	"weft/services/mptcpproxy/internal/stream"
)

// DialerOptions sets a Dialer up.
type DialerOptions struct {
	Peers  []Peer
	Paths  Picker // nil: Peer.Addrs in turn
	Engine Engine
	Hello  func() Hello // what we tell of ourselves, asked at each connect
	Log    *slog.Logger

	// OnPeer tells when the control connection of a peer stands or is lost.
	OnPeer func(peer string, up bool, hello Hello)
	// OnSession gives a fresh datagram session when the control connection
	// stands; both ends get the same id and key.
	OnSession func(peer string, near bool, id uint64, key [32]byte, hello Hello)
	// OnConn is told each connection before it is used, OnClose when it ends:
	// to register its descriptor with the path manager and the governor.
	OnConn  func(c Conn)
	OnClose func(c Conn)
}

// Dialer keeps the connections to all peers that we dial.
type Dialer struct{ o DialerOptions }

// NewDialer checks the options. Nothing is dialled before Run.
func NewDialer(o DialerOptions) (*Dialer, error) { return &Dialer{o: o}, nil }

// Run keeps the pools and control connections until ctx ends.
func (d *Dialer) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Update replaces the peers; connections of those that stayed the same live on.
func (d *Dialer) Update(peers []Peer) error { return nil }

// Need says that a flow waits for a trunk (stream.Options.NeedTrunk).
func (d *Dialer) Need(peer string) {}

// TrunkClosed says that the engine closes a trunk (stream.Options.TrunkClosed).
func (d *Dialer) TrunkClosed(t stream.Trunk, err error) {}

// Kick ends back-off: a path has come up, a dial may succeed now. The empty
// name means all peers.
func (d *Dialer) Kick(peer string) {}

// DialRaw connects for one flow of a peer of kind Proxy2, None or unframed
// Convert. early is to be sent before anything else. The caller owns fd, which
// is non-blocking, and calls CloseRaw just before it is closed.
func (d *Dialer) DialRaw(ctx context.Context, peer string, src, dst netip.AddrPort) (fd int, early []byte, err error) {
	return -1, nil, nil
}

// Status describes all peers, sorted by name.
func (d *Dialer) Status() []PeerStatus { return nil }
