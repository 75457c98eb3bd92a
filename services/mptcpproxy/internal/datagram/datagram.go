// Package datagram carries datagrams between two gateways over several paths
// at once. A session has one UDP socket a path; each packet goes by the path
// on which it is expected to arrive first, at a pace that keeps the queue of
// that path short. What does not fit is dropped at the entrance by CoDel with
// a queue a flow (RFC 8289, RFC 8290), never in the middle; the far end puts
// the packets of one flow in order again and waits a bounded time for gaps.
//
// It promises: authentic packets only (AES-GCM, packets that are not
// encrypted are authenticated), no packet twice, payloads up to 65535 bytes
// whatever the MTU of the paths, and a report within a few probe intervals
// when a path falls silent or comes back, to both ends. It does not retransmit:
// what a path loses stays lost, save for flows that are sent twice.
//
// The format of the packets is in packet.go. The logic (core.go and what it
// uses) knows neither clock nor socket and is tested against simulated paths;
// endpoint.go joins it to the kernel.
package datagram

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Path is one way to the peer as the near gateway sees it. The far gateway
// needs none: it learns the address of each path from authenticated packets.
type Path struct {
	ID     uint8          // same for the same path while the session lives
	Name   string         // for reports
	Device string         // the socket is bound to it; may be empty
	Local  netip.Addr     // the socket is bound to it; may be the zero Addr
	Remote netip.AddrPort // of the far gateway
	Backup bool           // only used while no other path is alive
	Weight int            // relative share among paths of equal delay; 0 = 1
}

// Class tells what a payload is, so that several users share a session.
type Class uint8

// The classes in use; 0 to 15 are possible.
const (
	ClassUDP Class = 0 // package udpflow
	ClassIP  Class = 1 // package tunnel
)

// Duplicate says which flows are sent on two paths at once.
type Duplicate uint8

// What is sent twice: nothing, flows of few bytes such as games and voice, or
// everything.
const (
	DuplicateOff Duplicate = iota
	DuplicateSmall
	DuplicateAll
)

// ParseDuplicate reads the words off, small and all.
func ParseDuplicate(s string) (Duplicate, error) {
	switch s {
	case "", "off":
		return DuplicateOff, nil
	case "small":
		return DuplicateSmall, nil
	case "all":
		return DuplicateAll, nil
	}
	return DuplicateOff, errors.New("duplicate mode \"" + s + "\": want off, small or all")
}

func (d Duplicate) String() string {
	switch d {
	case DuplicateSmall:
		return "small"
	case DuplicateAll:
		return "all"
	}
	return "off"
}

// Options of an endpoint.
type Options struct {
	// Port is the UDP port listened on, on all local addresses. 0: no
	// listener, the endpoint only has near sessions.
	Port uint16
	// Reorder bounds the wait for a packet that is missing in the order of
	// its flow. 0 = 20 ms, negative = deliver as it comes.
	Reorder   time.Duration
	Duplicate Duplicate
	// OnPath is told that a path is alive or not, on either end, from a
	// goroutine of the endpoint; it must not block.
	OnPath func(peer, path string, alive bool, rtt time.Duration)
	// NamePath names a path that a far session has learnt. nil or an empty
	// answer: the name that the near gateway uses.
	NamePath func(peer string, local netip.Addr, remote netip.AddrPort) string
	// Socket replaces unix.Socket, for instance to open the sockets in
	// another network namespace.
	Socket func(domain, typ, proto int) (int, error)
	Log    *slog.Logger
}

// ErrNoPath is the answer of Send while no path of the session is alive.
var ErrNoPath = errors.New("no path to the peer is alive")

// ErrClosed is the answer of Send after Close.
var ErrClosed = errors.New("the datagram session is closed")

var errTooLong = errors.New("payload longer than 65535 bytes")

// PathStats are the figures of one path of a session, as this end sees them.
type PathStats struct {
	ID            uint8
	Name          string
	Local, Remote netip.AddrPort
	Alive         bool
	Backup        bool
	RTT, MinRTT   time.Duration // smoothed, smallest of late
	Queue         time.Duration // one-way queueing delay, from here to the peer
	Rate          float64       // bytes/s that the path is paced at
	Delivered     float64       // bytes/s that the peer has confirmed of late
	Loss          float64       // share of the packets sent that the peer missed of late, 0 to 1
	MTU           int           // largest IP packet known to pass
	TxPackets     uint64
	TxBytes       uint64 // UDP payload
	RxPackets     uint64
	RxBytes       uint64
	Lost          uint64 // packets sent that the peer has missed
	Replayed      uint64 // packets received twice or too old, dropped
}

// SessionStats are the figures of a session.
type SessionStats struct {
	Peer      string
	Near      bool
	ID        uint64
	Active    bool
	Paths     []PathStats
	Queued    int    // bytes waiting at the entrance
	Sent      uint64 // payloads
	Delivered uint64 // payloads
	Dropped   uint64 // payloads dropped by CoDel at the entrance
	Overflow  uint64 // payloads dropped at the entrance because its memory was used up
	Unsent    uint64 // payloads refused because no path was alive
	Duplicate uint64 // payloads received once more, dropped
	Reordered uint64 // payloads that had to wait for an earlier one
	Skipped   uint64 // payloads waited for in vain
	Late      uint64 // payloads that came after the wait was over, delivered
}

// EndpointStats are the figures that belong to no session.
type EndpointStats struct {
	Unknown   uint64 // packets of no known session
	Forged    uint64 // packets that failed authentication
	Malformed uint64 // packets that are none of ours
}
