// Package tunnel carries IP packets of protocols other than TCP and UDP
// through datagram sessions. On both gateways it owns a TUN device: what
// routing sends into it comes out of the peer's device, with source and
// destination kept, and is routed on there.
//
// The device takes full packets of 1500 bytes however small the MTU of the
// paths is, since the datagram sessions cut them; larger ones are answered by
// the kernel (fragmentation needed, packet too big).
package tunnel

import (
	"log/slog"
	"net/netip"

	"weft/services/mptcpproxy/internal/datagram"
)

// Options of New.
type Options struct {
	// Endpoint carries the packets. New registers itself there for
	// datagram.ClassIP.
	Endpoint *datagram.Endpoint
	// Device is the name of the TUN device, empty = mptcp0. MTU 0 = 1500.
	Device string
	MTU    int
	// Peer chooses the far gateway for a destination of which no packet has
	// come from a peer; false: the packet is dropped.
	Peer func(dst netip.Addr) (peer string, ok bool)
	// Allow decides whether a packet that came from a peer may go on. It is
	// asked once for each pair of addresses and peer. nil: nothing is allowed.
	Allow func(peer string, src, dst netip.Addr) error
	// Protocols that are carried; nil: all but TCP and UDP.
	Protocols []uint8
	// InNamespace runs a function in the network namespace of the device;
	// nil: the caller's.
	InNamespace func(func() error) error
	Log         *slog.Logger
}

// Stats counts packets since New.
type Stats struct {
	Sent, Received         uint64 // to and from peers
	SentBytes, RecvBytes   uint64
	Unroutable             uint64 // without peer or session
	Refused                uint64 // not allowed, or of a protocol that is not carried
	Malformed, WriteErrors uint64
}
