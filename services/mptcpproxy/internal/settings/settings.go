// Package settings reads /etc/config/mptcpproxy, and from /etc/config/network
// what the proxy takes from there: which device an interface is on and what its
// `option multipath` asks for.
//
// Load returns a Config in which every value is checked and every default
// filled in, or an error that lists all faults at once, each with file, section,
// option, value and what was expected. What has no effect (an unknown option,
// a section of an unknown type) is no fault but a Warning with the nearest name
// that is known.
//
// A shared or private key is read here too (`key_file`), so that nothing else
// reads files; keys never appear in a Fault.
package settings

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Package is the name of the UCI package.
const Package = "mptcpproxy"

// Defaults of section main.
const (
	DefaultPort         = 6240
	DefaultNotsentLowat = 128 << 10
	DefaultFlowBuffer   = 1 << 20
	DefaultMemoryMax    = 64 << 20
	DefaultParkIdle     = 10 * time.Second
	DefaultMaxFlows     = 50000
	DefaultUDPTimeout   = 60 * time.Second
	DefaultUDPReorder   = 20 * time.Millisecond
	DefaultPool         = 4
)

// Config is the whole of what the service is asked to do.
type Config struct {
	// Configured is false if there is no such file: the service then waits.
	Configured bool
	Enabled    bool

	LAN        []string // names of devices whose hosts are served
	ListenPort uint16   // TCP and UDP
	FailClosed bool     // reject rather than route while no peer is up
	Syn        Syn
	Congestion string // an algorithm of the kernel, or "auto"

	NotsentLowat   int // bytes
	FlowBuffer     int // bytes, one direction of one flow
	MemoryMax      int // bytes, the buffers of all flows
	ParkIdle       time.Duration
	MaxFlows       int
	ClientMaxFlows int // per client address; 0: no limit
	ClientRate     int // new flows per second and client address; 0: no limit

	UDP          bool
	UDPTimeout   time.Duration
	UDPReorder   time.Duration
	UDPDuplicate Duplicate
	Protocols    []uint8 // IP protocols other than TCP and UDP to carry, sorted
	AllProtocols bool    // all others than TCP and UDP

	Metrics string // host:port of the Prometheus listener, "" for none

	Peers    []Peer
	Accepts  []Accept
	Paths    []Path
	Excludes []Exclude

	// Warnings are what had no effect.
	Warnings []Fault
}

// Syn says when a client's SYN is answered.
type Syn uint8

const (
	Adaptive  Syn = iota // held, unless the destination answered lately
	Hold                 // only after the sink has answered
	Immediate            // at once
)

func (s Syn) String() string { return [...]string{"adaptive", "hold", "immediate"}[s] }

// Duplicate says which datagrams travel on two paths at once.
type Duplicate uint8

const (
	DuplicateOff   Duplicate = iota
	DuplicateSmall           // those of flows of a low rate
	DuplicateAll
)

func (d Duplicate) String() string { return [...]string{"off", "small", "all"}[d] }

// Carrier says how the original destination travels to the far gateway.
type Carrier uint8

const (
	Convert Carrier = iota // RFC 8803
	Proxy2                 // PROXY protocol, version 2
	None                   // not at all: the far gateway intercepts too
)

func (c Carrier) String() string { return [...]string{"convert", "proxy2", "none"}[c] }

// Mode is what a path is for. The zero value is On.
type Mode uint8

const (
	On Mode = iota
	Off
	Backup   // used when no other path is up
	Master   // first subflow of each connection
	Handover // joined only when another path fails
)

func (m Mode) String() string { return [...]string{"on", "off", "backup", "master", "handover"}[m] }

// Key authenticates one gateway to another: a shared secret, or a key pair of
// this side and the public key of the other.
type Key struct {
	Shared  string // secret text; "" if the pair is used
	Private []byte // Ed25519 seed, 32 bytes
	Peer    []byte // Ed25519 public key, 32 bytes
}

// None tells that there is no key.
func (k Key) None() bool { return k.Shared == "" && k.Private == nil && k.Peer == nil }

// Peer is a far gateway that this one dials.
type Peer struct {
	Name         string
	Addresses    []netip.Addr
	Port         uint16
	Carrier      Carrier
	Framed       bool
	Key          Key
	Encrypt      bool
	Destinations []netip.Prefix
	Pool         int // idle trunks kept ready
}

// Accept is a near gateway that may dial this one.
type Accept struct {
	Name        string
	Carrier     Carrier
	Key         Key
	AllowClient []netip.Prefix
	AllowDest   []netip.Prefix
	From        []netip.Prefix // source addresses of its trunks
}

// Path is an uplink to use.
type Path struct {
	Name        string
	Device      string
	Mode        Mode
	Weight      int
	Quota       uint64 // bytes in a period; 0: none
	QuotaPeriod Period
	Probe       bool
}

// Period is how long a quota lasts.
type Period uint8

const (
	Month Period = iota
	Week
	Day
)

func (p Period) String() string { return [...]string{"month", "week", "day"}[p] }

// Exclude names traffic that is left alone: it matches when all its parts do,
// and a part matches when one of its values does. An empty part matches all.
type Exclude struct {
	Name      string
	Src, Dest []netip.Prefix
	DestPort  []PortRange
	Proto     []uint8
	Mark      uint32
	MarkMask  uint32 // 0: the mark does not matter
	Set       string // name of a set in our nft table
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Fault is one thing wrong with the configuration, or without effect.
type Fault struct {
	File     string // name of the package
	Line     int    // 0 if the parser of the file did not say
	Section  string
	Option   string // empty: the section as a whole
	Value    string // empty for secrets
	Expected string
}

func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Section != "" {
		b.WriteString("." + f.Section)
	}
	if f.Option != "" {
		fmt.Fprintf(&b, ": option %s", f.Option)
		if f.Value != "" {
			fmt.Fprintf(&b, " '%s'", f.Value)
		}
	}
	b.WriteString(": " + f.Expected)
	return b.String()
}

// Faults is the error of a configuration that cannot be used.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}
