// Package udpflow carries the UDP of the LAN's hosts through datagram
// sessions. On the near gateway it takes the packets that TPROXY hands it and
// answers the client from the original destination; on the far gateway it
// speaks to the sink from the client's own address and port. ICMP errors, DSCP
// and hop limits are passed on, so that either host sees what it would see
// without the gateways.
//
// Flows are kept like those of a NAT: by client and destination, with
// time-outs, limits per client and in all. A client that opens too many loses
// its own oldest flows, nobody else's.
package udpflow

import (
	"log/slog"
	"net/netip"
	"time"

	"weft/services/mptcpproxy/internal/datagram"
)

// Options of New.
type Options struct {
	// Endpoint carries the packets. New registers itself there for
	// datagram.ClassUDP.
	Endpoint *datagram.Endpoint
	// Listeners are UDP sockets with IP(V6)_TRANSPARENT and
	// IP(V6)_RECVORIGDSTADDR at which TPROXY aims; Flows owns them from here
	// on. None: only the far side is served.
	Listeners []int
	// Peer chooses the far gateway for a destination; false: the packet is
	// dropped.
	Peer func(dst netip.Addr) (peer string, ok bool)
	// Allow decides on the far gateway whether a peer may send from src to
	// dst. nil: nothing is allowed.
	Allow func(peer string, src, dst netip.AddrPort) error
	// Timeout ends a flow without packets, 0 = 60 s; one that has seen both
	// directions lives three times as long, one to port 53 for 10 s.
	Timeout time.Duration
	// MaxFlows bounds the flows in all (0 = 16384), ClientFlows those of one
	// client address (0 = a quarter of MaxFlows), ClientRate the new flows of
	// one client address per second (0 = no limit). They hold for near and
	// far each.
	MaxFlows, ClientFlows, ClientRate int
	// Mark is set on the sockets that speak to the sink, 0 = none.
	Mark int
	// Socket replaces unix.Socket, for instance to open the sockets in
	// another network namespace.
	Socket func(domain, typ, proto int) (int, error)
	Log    *slog.Logger
}

// Stats counts what happened since New.
type Stats struct {
	NearFlows, FarFlows int    // now
	Opened              uint64 // flows, either side
	Expired             uint64 // flows that timed out
	Evicted             uint64 // flows that had to make room
	Refused             uint64 // packets of flows over ClientRate, or not allowed at the far side
	Unroutable          uint64 // packets without peer or session
	Up, Down            uint64 // packets client to sink, sink to client
	UpBytes, DownBytes  uint64 // UDP payload
	ICMP                uint64 // errors passed on to clients
	SocketErrors        uint64 // sockets of the sink's side that could not be opened, sends that failed
}
