// Package status is how the proxy tells what it does: the report that the bus
// object, the status socket and the metrics show alike, the list of events, and
// the socket itself.
//
// The socket (FILE in the state folder) speaks JSON: a client sends one line
// such as {"method":"status"} and reads one line, the answer, or {"error":…}.
// The method events answers with the events so far, one a line, and with
// follow goes on until the client leaves.
package status

import "net/netip"

// Socket is the name of the status socket in the state folder.
const Socket = "status.sock"

// Report is the state of the whole service.
type Report struct {
	State    string   `json:"state"`  // running, off, waiting, failed
	Reason   string   `json:"reason"` // what state stands for, in a sentence
	Uptime   int64    `json:"uptime"` // s
	Faults   []string `json:"faults"` // of a configuration that was not taken over
	Warnings []string `json:"warnings"`

	Fail      string   `json:"fail,omitempty"` // open or closed
	Syn       string   `json:"syn,omitempty"`
	LAN       []string `json:"lan"`
	Bypass    bool     `json:"bypass"` // no peer is up: Fail decides about new flows
	Fallbacks uint64   `json:"fallbacks"`

	Flows   Flows   `json:"flows"`
	Traffic Traffic `json:"traffic"`
	Trunks  Trunks  `json:"trunks"`
	Hold    Hold    `json:"hold"`
	UDP     UDP     `json:"udp"`
	Tunnel  Tunnel  `json:"tunnel"`
	Accept  Accept  `json:"accept"`
	Memory  Memory  `json:"memory"`

	Peers []Peer `json:"peers"`
	Paths []Path `json:"paths"`
}

// Flows counts TCP flows.
type Flows struct {
	Open    int    `json:"open"`   // now
	Parked  int    `json:"parked"` // of them without a trunk, being idle
	Opened  uint64 `json:"opened"`
	Failed  uint64 `json:"failed"` // refused by the sink, unreachable, or trouble on the way
	Reset   uint64 `json:"reset"`
	Ended   uint64 `json:"ended"`
	Refused uint64 `json:"refused"` // by rules or limits of ours
	Limited uint64 `json:"limited"` // by limits per client
}

// Traffic is the payload of TCP flows, host to peer and back.
type Traffic struct {
	ToPeer       uint64 `json:"to_peer"`        // bytes
	FromPeer     uint64 `json:"from_peer"`      // bytes
	ToPeerRate   uint64 `json:"to_peer_rate"`   // bit/s over the last second
	FromPeerRate uint64 `json:"from_peer_rate"` // bit/s
	Buffered     int    `json:"buffered"`       // bytes held back now
}

// Trunks counts the connections between gateways that flows use in turn.
type Trunks struct {
	Open   int    `json:"open"`
	Idle   int    `json:"idle"`
	Added  uint64 `json:"added"`
	Lost   uint64 `json:"lost"`
	Reused uint64 `json:"reused"` // flows on a trunk that had carried another
}

// Hold counts SYNs that were held until the sink answered.
type Hold struct {
	Now         int    `json:"now"`
	Opened      uint64 `json:"opened"`
	Refused     uint64 `json:"refused"`
	Unreachable uint64 `json:"unreachable"`
	Silent      uint64 `json:"silent"`
	Passed      uint64 `json:"passed"`  // routed: no room to hold them, or no peer
	Dropped     uint64 `json:"dropped"` // the same with fail closed
}

// UDP counts datagram flows and sessions.
type UDP struct {
	Flows      int    `json:"flows"`
	Up         uint64 `json:"up"`   // packets client to sink
	Down       uint64 `json:"down"` // packets sink to client
	UpBytes    uint64 `json:"up_bytes"`
	DownBytes  uint64 `json:"down_bytes"`
	Refused    uint64 `json:"refused"`
	Dropped    uint64 `json:"dropped"` // at the entrance, to keep the delay short
	Reordered  uint64 `json:"reordered"`
	Unroutable uint64 `json:"unroutable"`
}

// Tunnel counts packets of other protocols.
type Tunnel struct {
	Device   string `json:"device,omitempty"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	Refused  uint64 `json:"refused"`
}

// Accept counts connections from other gateways.
type Accept struct {
	Connections   uint64 `json:"connections"`
	Authenticated uint64 `json:"authenticated"`
	Refused       uint64 `json:"refused"`
	RateLimited   uint64 `json:"rate_limited"`
	Denied        uint64 `json:"denied"` // flows
}

// Memory is what the process uses.
type Memory struct {
	Heap  uint64 `json:"heap"`
	Limit int64  `json:"limit"`
}

// Peer is a gateway that we dial, or that dialled us.
type Peer struct {
	Name         string         `json:"name"`
	Near         bool           `json:"near"` // we dial it
	Carrier      string         `json:"carrier"`
	Up           bool           `json:"up"`
	Since        int64          `json:"since"` // s
	Node         string         `json:"node,omitempty"`
	Software     string         `json:"software,omitempty"`
	Addresses    []netip.Addr   `json:"addresses"`
	Destinations []netip.Prefix `json:"destinations"`
	RTT          float64        `json:"rtt_ms"`
	Trunks       int            `json:"trunks"`
	Idle         int            `json:"idle"`
	Dialled      uint64         `json:"dialled"`
	Failed       uint64         `json:"failed"`
	Fallbacks    uint64         `json:"fallbacks"` // connections that came up as plain TCP
	LastError    string         `json:"last_error,omitempty"`
	Datagrams    []Link         `json:"datagrams"` // the datagram session, path by path
}

// Link is one path of a datagram session.
type Link struct {
	Path  string  `json:"path"`
	Alive bool    `json:"alive"`
	RTT   float64 `json:"rtt_ms"`
	Queue float64 `json:"queue_ms"`
	Rate  uint64  `json:"rate"` // bit/s that it is paced at
	Loss  float64 `json:"loss"` // 0 to 1
	MTU   int     `json:"mtu"`
	Tx    uint64  `json:"tx_bytes"`
	Rx    uint64  `json:"rx_bytes"`
}

// Path is an uplink.
type Path struct {
	Name     string  `json:"name"`
	Device   string  `json:"device"`
	Mode     string  `json:"mode"`
	State    string  `json:"state"`
	Reason   string  `json:"reason,omitempty"`
	Stripped bool    `json:"stripped"`
	Local4   string  `json:"local4,omitempty"`
	Local6   string  `json:"local6,omitempty"`
	RTT      float64 `json:"rtt_ms"`
	MinRTT   float64 `json:"min_rtt_ms"`
	Subflows int     `json:"subflows"`
	Sent     uint64  `json:"sent_bytes"`
	Received uint64  `json:"received_bytes"`
	Retrans  uint64  `json:"retrans_bytes"`
	SentRate uint64  `json:"sent_rate"`     // bit/s over the last second
	RecvRate uint64  `json:"received_rate"` // bit/s
	Joins    uint64  `json:"joins"`
	Failed   uint64  `json:"failed"`
	Lost     uint64  `json:"lost"`
	Quota    uint64  `json:"quota"` // bytes, 0: none
	Used     uint64  `json:"used"`
	Rates    []Rate  `json:"bottlenecks"` // what the governor knows, one a peer's address
}

// Rate is what is known of a path's bottleneck towards one address.
type Rate struct {
	Peer       string  `json:"peer"`
	Remote     string  `json:"remote"`
	Rate       uint64  `json:"rate"` // bit/s
	Loss       float64 `json:"loss"`
	InFlight   int     `json:"in_flight"`
	Limit      int     `json:"limit"`
	Congestion string  `json:"congestion"`
}

// Flow is one TCP flow.
type Flow struct {
	ID       uint64 `json:"id"`
	Peer     string `json:"peer"`
	Near     bool   `json:"near"`
	Src      string `json:"src"`
	Dst      string `json:"dst"`
	State    string `json:"state"`
	Age      int64  `json:"age"` // s
	ToPeer   uint64 `json:"to_peer"`
	FromPeer uint64 `json:"from_peer"`
	Buffered int    `json:"buffered"`
	Trunk    uint64 `json:"trunk"`
}
