package paths

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Mode says how a path is used.
type Mode int

// Modes, as `option multipath` names them.
const (
	// On carries traffic together with the others.
	On Mode = iota
	// Off is not used.
	Off
	// Backup has its subflows ready, but carries traffic only when no path
	// that is on works (MP_PRIO, RFC 8684 section 3.3.8).
	Backup
	// Master is On, and new trunks start there.
	Master
	// Handover has no subflow at all until no other path works.
	Handover
)

var modeNames = [...]string{"on", "off", "backup", "master", "handover"}

// String is the UCI name of the mode.
func (m Mode) String() string {
	if m < 0 || int(m) >= len(modeNames) {
		return fmt.Sprintf("mode-%d", int(m))
	}
	return modeNames[m]
}

// ParseMode reads the UCI name of a mode.
func ParseMode(s string) (Mode, error) {
	for i, n := range modeNames {
		if s == n {
			return Mode(i), nil
		}
	}
	return Off, fmt.Errorf("multipath %q: expected on, off, backup, master or handover", s)
}

// MarshalText writes the UCI name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// State of a path.
type State int

// States.
const (
	// Down has no link, no address or no device.
	Down State = iota
	// Up has all it needs and nothing speaks against using it.
	Up
	// Dead has a link, but nothing comes back from the peers over it.
	Dead
	// Spent has used up its quota: it is not used until the period ends.
	Spent
)

var stateNames = [...]string{"down", "up", "dead", "spent"}

// String is the state in one lower-case word.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state-%d", int(s))
	}
	return stateNames[s]
}

// MarshalText writes the word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Path is what is known of one path at one moment.
type Path struct {
	Name    string     `json:"name"`
	Device  string     `json:"device"`
	IfIndex int        `json:"ifindex"`         // 0 = no such device
	Local4  netip.Addr `json:"local4,omitzero"` // invalid = none
	Local6  netip.Addr `json:"local6,omitzero"`
	Mode    Mode       `json:"mode"`
	Weight  int        `json:"weight"`
	Quota   uint64     `json:"quota"`  // bytes a period, 0 = no quota
	Used    uint64     `json:"used"`   // bytes used of it, both directions
	State   State      `json:"state"`  //
	Reason  string     `json:"reason"` // why it is not up, or what is wrong with it
	Since   time.Time  `json:"since"`  // of the state
	// Stripped says that MPTCP does not get through although the path works:
	// something on the way takes the options out, or refuses joins.
	Stripped bool `json:"stripped"`

	RTT      time.Duration `json:"rtt"`      // smoothed, of probes or else of busy subflows
	MinRTT   time.Duration `json:"min_rtt"`  // lowest seen on subflows
	TxBytes  uint64        `json:"tx_bytes"` // of the device since it appeared, all traffic
	RxBytes  uint64        `json:"rx_bytes"`
	Subflows int           `json:"subflows"` // of registered connections, now
	// Sums over the subflows of registered connections, past and present.
	SentBytes     uint64 `json:"sent_bytes"`     // payload, retransmissions included
	ReceivedBytes uint64 `json:"received_bytes"` // payload
	RetransBytes  uint64 `json:"retrans_bytes"`  // retransmitted payload (by TCP, on this path)
	Joins         uint64 `json:"joins"`          // subflows that joined
	Failed        uint64 `json:"failed"`         // subflows that did not come to be
	Lost          uint64 `json:"lost"`           // subflows that ended before their connection
}

// Wanted is one path to use.
type Wanted struct {
	Name               string // the interface's name
	Device             string // the kernel's name of the device
	Mode               Mode
	Weight             int        // relative share, 1 = normal; see the package comment
	Quota              uint64     // bytes a period in both directions, 0 = no limit
	Period             string     // of the quota: "day", "week", "month" (default), or "" = month
	Probe              bool       // false: never declare it dead for lack of answers
	Gateway4, Gateway6 netip.Addr // next hops; invalid = found in the main routing table
}

// Peer is a far side that we dial.
type Peer struct {
	Name  string
	Addrs []netip.Addr // all that are known: configured ones first, then announced ones
	Port  uint16       // TCP port of its listener
}

// Options of a Manager.
type Options struct {
	Peers    []Peer
	Wanted   []Wanted
	Port     uint16 // our own listener's port; 0 = we accept nothing
	StateDir string // quota counters and what is to be undone after a kill; "" = nothing is kept
	Log      *slog.Logger
}

// Pair is one way to reach a peer: from a local address over a path's device
// to one of the peer's addresses.
type Pair struct {
	Path   string
	Device string
	Local  netip.Addr
	Remote netip.AddrPort
	Mode   Mode
	Weight int
	Backup bool // to be used only when no pair without it works
	State  State
}
