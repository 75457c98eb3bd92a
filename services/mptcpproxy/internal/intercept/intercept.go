// Package intercept takes the traffic of a gateway's hosts out of the IP stack
// and into the proxy: the nftables table, the policy rules and routes and the
// sysctls that it needs, and their removal however the process ends.
package intercept

import (
	"log/slog"
	"net/netip"
)

// Firewall mark bits. Only these of a packet's 32 are read and written, so that
// other users of marks keep theirs.
const (
	MarkMask    = 0x0f000000 // all of ours
	MarkLocal   = 0x01000000 // deliver to a socket of this machine, whatever the address
	MarkConnect = 0x02000000 // on the far side's sockets with foreign source addresses (SO_MARK)
	MarkTunnel  = 0x04000000 // route into the tunnel device
	MarkBypass  = 0x08000000 // excluded by a set of the user
)

// LogGroup is the NFLOG group that held SYNs go to, unless Options says other.
const LogGroup = 6240

// Devices that package synhold makes: what comes from InjectDevice is accepted
// by the proxy, what comes from PassDevice is routed as if there were none.
const (
	InjectDevice = "mptcpsyn"
	PassDevice   = "mptcppass"
)

// Mode is what happens to a SYN of a host.
type Mode int

const (
	Adaptive  Mode = iota // held, unless the destination is in the set `known`
	HoldAll               // always held until the far side has connected
	Immediate             // always accepted at once
)

// FailMode is what happens to new flows while the far side is away.
type FailMode int

const (
	FailOpen   FailMode = iota // routed as if there were no proxy
	FailClosed                 // rejected
)

// PortRange is an inclusive range of TCP or UDP ports.
type PortRange struct{ From, To uint16 }

// Exclude is traffic that is left alone. All given kinds must match; within a
// kind one value is enough.
type Exclude struct {
	Src, Dest      []netip.Prefix
	DestPort       []PortRange
	Proto          []uint8 // IP protocol numbers
	Mark, MarkMask uint32  // MarkMask 0: not looked at
	Set            string  // destinations in a set of the user, see SetsTable
}

// Options is what to intercept.
type Options struct {
	LAN          []string       // devices whose hosts are served; none: far side only
	PortTCP      int            // TPROXY listener; 0: no TCP
	PortUDP      int            // TPROXY listener; 0: no UDP
	Syn          Mode           //
	Fail         FailMode       //
	Exclude      []Exclude      //
	Protocols    []uint8        // other IP protocols to route into TunnelDevice
	AllProtocols bool           // all but TCP and UDP
	TunnelDevice string         // TUN device of package tunnel; empty: none
	Destinations []netip.Prefix // reached through peers that are there
	Away         []netip.Prefix // reached through peers that are away: Fail says what happens. The longest prefix of both lists wins
	PeerAddrs    []netip.Addr   // never intercepted
	NonePort     int            // far side of carrier none: MPTCP listener for connections from other devices than LAN; 0: none
	ListenPort   int            // trunks and datagrams of this gateway, not taken for NonePort
	LogGroup     uint16         // 0: LogGroup
	KnownTimeout int            // s that a destination stays in `known` unused; 0: 60
	StateDir     string         // keeps what to put back after a kill; empty: /run/mptcpproxy
	Log          *slog.Logger   //
}

// Intercept is a set-up interception.
type Intercept struct{ o Options }

// Setup installs everything in the current network namespace; listeners on the
// ports must be there already, because without one the kernel routes.
func Setup(o Options) (*Intercept, error) { return &Intercept{o: o}, nil }

// Update changes what differs, without dropping flows.
func (i *Intercept) Update(o Options) error { i.o = o; return nil }

// SetPeersUp tells whether any peer is there; while none is, Fail decides.
func (i *Intercept) SetPeersUp(up bool) {}

// Known puts dst into the set `known` (good) or takes it out.
func (i *Intercept) Known(dst netip.AddrPort, good bool) {}

// Close takes everything away and puts back what was changed.
func (i *Intercept) Close() error { return nil }

// Cleanup removes what a killed predecessor has left in this namespace, from
// the state file in stateDir (empty: /run/mptcpproxy) and by fixed names.
func Cleanup(stateDir string) error { return nil }
