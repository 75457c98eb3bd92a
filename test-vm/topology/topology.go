// Package topology reads the lab's networks: which nodes there are, how they are joined, what goes wrong when, and what
// has to hold. A file is strict TOML: an unknown key is an error, and all faults of a file are reported at once, each
// with its line. What the keys mean is said at the fields below; test-vm/README.md shows a file.
//
// The package knows nothing of back ends: network namespaces and QEMU guests are made from the same Topology.
package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Kind is what a node is.
type Kind string

// The kinds of nodes.
const (
	Image Kind = "image" // a gateway: the image of a role, with its services
	Host  Kind = "host"  // an end host without MPTCP: net.mptcp.enabled is 0 unless sysctl says otherwise
	Plain Kind = "plain" // a router that forwards and does nothing else
)

// Backend is what a node runs in.
type Backend string

// The back ends. A mixed run has nodes in both.
const (
	QEMU  Backend = "qemu"
	Netns Backend = "netns"
	Mixed Backend = "mixed"
)

// Topology is one file.
type Topology struct {
	File  string `toml:"-"`
	Name  string `toml:"-"` // of the file, without .toml
	Title string `toml:"title"`
	// Backends lists where it can run; empty = everywhere.
	Backends []Backend `toml:"backends"`
	Nodes    []*Node   `toml:"node"`
	Links    []*Link   `toml:"link"`
	Events   []*Event  `toml:"event"`
	Checks   []*Check  `toml:"check"`
}

// Node is a machine.
type Node struct {
	Name    string         `toml:"name"`
	Kind    Kind           `toml:"kind"`
	Board   string         `toml:"board"`   // image: default x86-64
	Role    string         `toml:"role"`    // image: gateway, exit, ...; default gateway
	Memory  int            `toml:"memory"`  // MiB of a guest; default 160
	CPUs    int            `toml:"cpus"`    // of a guest; default 1
	Backend Backend        `toml:"backend"` // in mixed runs; default qemu for images, netns for the others
	Gateway []netip.Addr   `toml:"gateway"` // default routes, one a family
	Routes  []Route        `toml:"route"`   // "PREFIX via ADDRESS"
	UCI     map[string]any `toml:"uci"`     // "package.section" = type, "package.section.option" = value or list, as uci set
	Sysctl  map[string]any `toml:"sysctl"`
	// Services are the services of the image that a namespace runs (a guest runs all that its role enables);
	// default mptcpproxy for the roles gateway and exit.
	Services []string `toml:"service"`
	Programs []string `toml:"program"` // shell commands that run all the time
	// Ready is a shell command that succeeds once the node does its work; checks begin after that.
	Ready string  `toml:"ready"`
	Ports []*Port `toml:"-"` // in the order of the links
	Line  int     `toml:"-"`
}

// Port is a network card of a node.
type Port struct {
	Node   *Node
	Link   *Link
	Name   string // in the file, and the name of the UCI interface
	Device string // eth0, eth1, ... in the order of the links
	Addrs  []netip.Prefix
}

// Link joins two ports. All figures hold for each direction on its own.
type Link struct {
	Name     string         `toml:"name"`
	A        string         `toml:"a"` // node:port
	AAddr    []netip.Prefix `toml:"a_addr"`
	B        string         `toml:"b"`
	BAddr    []netip.Prefix `toml:"b_addr"`
	Rate     Rate           `toml:"rate"`      // 0 = as fast as it goes; counted with 14 bytes of Ethernet header
	BackRate Rate           `toml:"back_rate"` // from b to a, where it differs
	Delay    time.Duration  `toml:"delay"`
	Jitter   time.Duration  `toml:"jitter"` // delay ± jitter, evenly spread; order is kept
	Loss     Percent        `toml:"loss"`
	Queue    time.Duration  `toml:"queue"` // what the queue in front of rate holds; default 50ms
	Burst    Size           `toml:"burst"` // of the token bucket; default 16kb
	MTU      int            `toml:"mtu"`   // default 1500
	Strip    bool           `toml:"strip"` // a middlebox on the way takes MPTCP's options out
	WiFi     bool           `toml:"wifi"`  // over the air between two bridges: guests only
	Ends     [2]*Port       `toml:"-"`
	Line     int            `toml:"-"`
}

// Route is a static route.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr
}

// UnmarshalText reads "PREFIX via ADDRESS".
func (r *Route) UnmarshalText(text []byte) error {
	prefix, via, ok := strings.Cut(string(text), " via ")
	p, err := netip.ParsePrefix(strings.TrimSpace(prefix))
	a, err2 := netip.ParseAddr(strings.TrimSpace(via))
	if !ok || err != nil || err2 != nil || p.Addr().Is4() != a.Is4() {
		return fmt.Errorf(`%q: want "PREFIX via ADDRESS" of one family, as "192.168.2.0/24 via 10.1.0.2"`, text)
	}
	*r = Route{p.Masked(), a}
	return nil
}

func (r Route) String() string { return r.Prefix.String() + " via " + r.Via.String() }

// Action is what an event does.
type Action string

// The actions of events.
const (
	Down    Action = "down"    // the cable is pulled: both ends see it
	Up      Action = "up"      // and plugged in again
	Black   Action = "black"   // frames vanish, nobody is told
	Pass    Action = "pass"    // end of black
	Degrade Action = "degrade" // the link gets the figures of the event
	Restore Action = "restore" // and its own ones back
	Strip   Action = "strip"   // MPTCP's options are taken out from now on
	Unstrip Action = "unstrip"
	Kill    Action = "kill"    // the node loses its power
	Restart Action = "restart" // and gets it back
)

// Event is a fault or its end, on the timeline of a check or of the run.
type Event struct {
	At     time.Duration `toml:"at"`     // after the traffic of During began
	During string        `toml:"during"` // name of a check; empty = the first one
	Do     Action        `toml:"do"`
	Link   string        `toml:"link"`
	Node   string        `toml:"node"`
	Rate   Rate          `toml:"rate"` // of degrade; what is not given stays as the link has it
	Delay  time.Duration `toml:"delay"`
	Jitter time.Duration `toml:"jitter"`
	Loss   Percent       `toml:"loss"`
	Line   int           `toml:"-"`
}

// What is what the event is about and does: "path1 down".
func (e *Event) What() string {
	s := e.Link + e.Node + " " + string(e.Do)
	for _, p := range []struct {
		name, value string
		given       bool
	}{{"rate", e.Rate.String(), e.Rate != 0}, {"delay", e.Delay.String(), e.Delay != 0}, {"jitter", e.Jitter.String(), e.Jitter != 0}, {"loss", e.Loss.String(), e.Loss != 0}} {
		if p.given {
			s += " " + p.name + " " + p.value
		}
	}
	return s
}

// CheckType is how a check is made.
type CheckType string

// The types of checks.
const (
	IPerf    CheckType = "iperf3"   // one or more TCP streams by the real iperf3, goodput against the limit of the paths
	Ping     CheckType = "ping"     // ICMP echo: loss and round-trip times
	TCP      CheckType = "tcp"      // what a client may rely on, case by case; see [TCPCases]
	UDP      CheckType = "udp"      // datagrams at a rate: delivered, delay added
	Proto    CheckType = "proto"    // packets of another IP protocol at a rate: delivered
	SCTP     CheckType = "sctp"     // an association of the kernel's SCTP, checksummed
	Flows    CheckType = "flows"    // Count TCP connections at once, each checksummed
	NoMPTCP  CheckType = "no-mptcp" // no frame at the nodes named carried an MPTCP option, over the whole run
	Captured CheckType = "captured" // frames seen on a link so far, selected by Protocol and MPTCP, number between Min and Max
	Run      CheckType = "run"      // a shell command on a node: its exit status and output
)

// TCPCases are the cases of a tcp check: one connection each, judged by what the client and the server saw.
var TCPCases = []string{
	"echo",         // bytes come back unchanged
	"address",      // the server sees the client's own address
	"port",         // and its own port
	"server-first", // a server that speaks first is heard
	"half-close",   // the client's FIN reaches the server, whose answer still arrives
	"server-close", // the server's FIN reaches the client, whose bytes still arrive
	"reset",        // the server's reset reaches the client
	"client-reset", // the client's reset reaches the server
	"refused",      // a closed port refuses at once
	"plain",        // both ends have plain TCP sockets
}

// Check is something that has to hold. Bounds that are zero are not checked.
type Check struct {
	Name     string        `toml:"name"`
	Type     CheckType     `toml:"type"`
	From     string        `toml:"from"` // node of the client
	To       string        `toml:"to"`   // node of the server
	During   string        `toml:"during"`
	At       time.Duration `toml:"at"`       // with During: starts so long after the traffic of that check
	Duration time.Duration `toml:"duration"` // of traffic; default 10s
	Family   int           `toml:"family"`   // 4 or 6; default 4, where there are only IPv6 addresses 6
	Reverse  bool          `toml:"reverse"`  // iperf3: from server to client
	Bidir    bool          `toml:"bidir"`    // iperf3: both ways at once
	Parallel int           `toml:"parallel"` // iperf3: streams
	Count    int           `toml:"count"`    // flows: connections; ping: packets
	Interval time.Duration `toml:"interval"` // ping
	Rate     Rate          `toml:"rate"`     // udp, proto: of the payload
	Size     int           `toml:"size"`     // bytes: udp, proto, ping: of a payload; flows, sctp: of a flow
	Protocol int           `toml:"protocol"` // proto, captured: IP protocol number
	Cases    []string      `toml:"cases"`    // tcp; empty = all
	Nodes    []string      `toml:"nodes"`    // no-mptcp
	Link     string        `toml:"link"`     // captured
	MPTCP    *bool         `toml:"mptcp"`    // captured: only frames with (without) an MPTCP option
	Node     string        `toml:"node"`     // run
	Command  string        `toml:"command"`  // run
	Expect   string        `toml:"expect"`   // run: regular expression that the output must match

	Over    []string `toml:"over"`    // links whose sum is the limit; with "limit" not given
	Carrier string   `toml:"carrier"` // mptcp or tcp: whose options the limit counts; default mptcp
	Limit   Rate     `toml:"limit"`

	MinRatio      float64       `toml:"min_ratio"`       // goodput / limit
	NetnsMinRatio float64       `toml:"netns_min_ratio"` // the same in namespaces, where it is another
	MinRate       Rate          `toml:"min_rate"`
	MaxStall      time.Duration `toml:"max_stall"` // longest time in which the receiver got nothing
	Recover       time.Duration `toml:"recover"`   // after the last up, pass, restore, unstrip or restart: goodput >= 0.95 of the limit again
	MinDelivered  float64       `toml:"min_delivered"`
	MaxLoss       Percent       `toml:"max_loss"`
	MaxP50        time.Duration `toml:"max_p50"` // ping: round trip; udp: added one-way delay
	MaxP99        time.Duration `toml:"max_p99"`
	Min           int           `toml:"min"` // captured
	Max           int           `toml:"max"`
	Backends      []Backend     `toml:"backends"` // where it is made; empty = everywhere
	Line          int           `toml:"-"`
}

// On tells whether the check is made on a back end.
func (c *Check) On(b Backend) bool { return len(c.Backends) == 0 || slices.Contains(c.Backends, b) }

// On tells whether the topology runs on a back end.
func (t *Topology) On(b Backend) bool { return len(t.Backends) == 0 || slices.Contains(t.Backends, b) }

// Node is the node of that name, nil if there is none.
func (t *Topology) Node(name string) *Node {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Link is the link of that name, nil if there is none.
func (t *Topology) Link(name string) *Link {
	for _, l := range t.Links {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// Check is the check of that name, nil if there is none.
func (t *Topology) Check(name string) *Check {
	for _, c := range t.Checks {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Addr is the node's first address of a family (4 or 6).
func (n *Node) Addr(family int) (netip.Addr, bool) {
	for _, p := range n.Ports {
		for _, a := range p.Addrs {
			if a.Addr().Is4() == (family == 4) {
				return a.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// Other is the port at the other end of the link.
func (p *Port) Other() *Port {
	if p.Link.Ends[0] == p {
		return p.Link.Ends[1]
	}
	return p.Link.Ends[0]
}

// RateFrom is the rate that end 0 (a) or 1 (b) may send with.
func (l *Link) RateFrom(end int) Rate {
	if end == 1 && l.BackRate != 0 {
		return l.BackRate
	}
	return l.Rate
}

// Impaired tells whether frames of the link must pass something beyond a token bucket, now or by a later event.
func (t *Topology) Impaired(l *Link) bool {
	if l.Delay != 0 || l.Jitter != 0 || l.Loss != 0 || l.Strip {
		return true
	}
	for _, e := range t.Events {
		if e.Link == l.Name && (e.Do == Strip || e.Do == Degrade && (e.Delay != 0 || e.Jitter != 0 || e.Loss != 0)) {
			return true
		}
	}
	return false
}

// Bytes between the rates of a limit; mptcp.md section 9 of the project's notes has the derivation.
const (
	frameHeader   = 14 // Ethernet, as Linux's shapers count it
	ipv4AndTCP    = 20 + 20
	ipv6AndTCP    = 40 + 20
	timestamps    = 12 // RFC 7323, padded
	dssOneWay     = 24 // DSS with a 4-byte ack and an 8-byte DSN, padded (RFC 8684, 3.3)
	dssBothWays   = 28 // the ack has 8 bytes as well
	CarrierMPTCP  = "mptcp"
	CarrierTCP    = "tcp"
	recoveredFrom = 0.95
)

// RecoveredRatio is the part of the limit at which a transfer counts as recovered.
const RecoveredRatio = recoveredFrom

// Goodput is the most that a TCP receiver can get over a path of a rate, in bit/s: rate * payload / frame.
func Goodput(rate Rate, mtu int, family int, carrier string, bothWays bool) float64 {
	header := ipv4AndTCP
	if family == 6 {
		header = ipv6AndTCP
	}
	options := timestamps
	if carrier == CarrierMPTCP {
		options += dssOneWay
		if bothWays {
			options += dssBothWays - dssOneWay
		}
	}
	return float64(rate) * float64(mtu-header-options) / float64(mtu+frameHeader)
}

// LimitOf is the limit of a check in bit/s, from the sender's end of the links it runs over; 0 = none can be told.
func (t *Topology) LimitOf(c *Check) float64 {
	if c.Limit != 0 {
		return float64(c.Limit)
	}
	carrier := c.Carrier
	if carrier == "" {
		carrier = CarrierMPTCP
	}
	sum := 0.0
	for _, name := range c.Over {
		l := t.Link(name)
		end := t.senderEnd(c, l)
		sum += Goodput(l.RateFrom(end), l.MTU, c.Family, carrier, c.Bidir)
	}
	return sum
}

// senderEnd is the end of the link that is nearer to the node that sends: by breadth-first search without the link.
func (t *Topology) senderEnd(c *Check, l *Link) int {
	sender := c.From
	if c.Reverse {
		sender = c.To
	}
	over := map[*Link]bool{}
	for _, name := range c.Over {
		over[t.Link(name)] = true
	}
	seen := map[*Node]bool{}
	queue := []*Node{t.Node(sender)}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if n == nil || seen[n] {
			continue
		}
		seen[n] = true
		for _, p := range n.Ports {
			if !over[p.Link] {
				queue = append(queue, p.Other().Node)
			}
		}
	}
	if seen[l.Ends[1].Node] && !seen[l.Ends[0].Node] {
		return 1
	}
	return 0
}
