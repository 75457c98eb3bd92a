package carrier

import (
	"fmt"
	"net/netip"
	"time"

	"weft/services/mptcpproxy/internal/stream"
)

// Kind is how the destination of a flow reaches the far side.
type Kind uint8

// The kinds, by their names in the settings.
const (
	Convert Kind = iota // framed trunks, or plain RFC 8803 to a foreign converter
	Proxy2              // one connection per flow, PROXY protocol version 2
	None                // one connection per flow to the destination itself; the far side intercepts
)

// String gives the name as the settings have it.
func (k Kind) String() string {
	switch k {
	case Convert:
		return "convert"
	case Proxy2:
		return "proxy2"
	case None:
		return "none"
	}
	return fmt.Sprintf("carrier %d", uint8(k))
}

// ParseKind reads a name of the settings; the empty one is Convert.
func ParseKind(s string) (Kind, error) {
	switch s {
	case "", "convert":
		return Convert, nil
	case "proxy2":
		return Proxy2, nil
	case "none":
		return None, nil
	}
	return 0, fmt.Errorf("carrier %q: expected convert, proxy2 or none", s)
}

// Picker chooses where a new connection starts and goes to (paths.Manager).
// A zero local address or empty device is left to the kernel.
type Picker interface {
	Pick(peer string) (local netip.Addr, device string, remote netip.AddrPort, err error)
}

// Engine takes trunks over (stream.Engine).
type Engine interface {
	AddTrunk(t stream.Trunk)
	Idle(peer string) int
	Probe(peer string)
}

// Peer is a gateway that is dialled.
type Peer struct {
	Name    string
	Addrs   []netip.Addr // used when no Picker is there or it knows nothing
	Port    uint16
	Kind    Kind
	Framed  bool // false: a foreign RFC 8803 converter, dialled flow by flow
	Keys    Keys // for framed trunks
	Encrypt bool // seal the frames
	Pool    int  // idle trunks kept ready; 0 = 4
}

// Hello is what one gateway tells the other on the control connection.
type Hello struct {
	Version  int          `json:"version"`
	Node     string       `json:"node"`     // host name, for logs and status
	Software string       `json:"software"` // version of the program
	Features []string     `json:"features,omitempty"`
	Paths    []netip.Addr `json:"paths,omitempty"` // own addresses of the paths
	Port     uint16       `json:"port,omitempty"`  // own listening port, TCP and UDP
	// Instance is chosen at random by each process. A peer whose Instance
	// changed has restarted: its flows are gone.
	Instance uint64 `json:"instance,omitempty"`
	// Encrypt asks for sealed datagrams; the dialling side decides.
	Encrypt bool `json:"encrypt,omitempty"`
}

// Conn describes an authenticated connection before it goes to the engine, or
// a raw one.
type Conn struct {
	FD            int
	Peer          string // name of the peer or accept section
	Near          bool   // dialled by us
	Control       bool   // control connection; stays with this package
	Trunk         bool   // for one flow after another; the engine tells when it is busy
	Fallback      bool   // plain TCP: MPTCP was stripped, or is not there
	Local, Remote netip.AddrPort
	Device        string // that Picker chose
}

// PeerStatus is the state of one peer, for status output and metrics.
type PeerStatus struct {
	Name      string
	Near      bool // we dial it
	Up        bool // the control connection stands
	Since     time.Time
	Hello     Hello         // what the other end told
	RTT       time.Duration // of the last heartbeat
	Trunks    int           // that stand
	Idle      int           // of them ready
	Target    int           // idle trunks wanted now
	Dialling  int
	Dialled   uint64 // connections made, since start
	Failed    uint64 // connections that failed
	Fallbacks uint64 // of those made, plain TCP
	LastError string // of the last failure, empty after a success
}
