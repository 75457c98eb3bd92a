// Package intercept takes the traffic of a gateway's hosts out of the IP stack
// and into the proxy: the nftables table, the policy rules and routes and the
// sysctls that it needs, and their removal however the process ends.
//
// # What is installed
//
// The table `inet mptcpproxy` has one base chain, at the hook prerouting with
// priority mangle (-150): behind connection tracking (-200), before destination
// NAT (-100) and all filters. A SYN of a LAN device's host that is not excluded
// goes to the TPROXY listener, or to package synhold by NFLOG; everything else of
// a connection finds its socket by `socket transparent`. Nothing else of a
// firewall is read or written, and connection tracking is not used. A firewall
// that filters must let in what carries MarkLocal (it comes by the input hook
// although its destination is foreign), and what comes from PassDevice counts as
// from the LAN.
//
// If an exclude section names a set, there is a second table,
// `inet mptcpproxy_sets` (priority mangle - 1), with that set for IPv4 and the
// same name with a 6 for IPv6: it is for others to fill (`nft add element inet
// mptcpproxy_sets NAME { … }`, or dnsmasq's nftset), which the first table does
// not allow.
//
// Policy rules 40 to 43, in IPv4 and IPv6: packets with MarkLocal are looked up
// in table 6240, whose only route delivers everything locally; ICMP errors that
// this machine itself has for packets of the far side's sockets (MarkConnect,
// reflected by fwmark_reflect) go there as well; packets with MarkTunnel are
// looked up in table 6241, whose route is the tunnel device.
//
// # How it ends
//
// With fail-open the kernel owns the clean-up: the table is bound to this
// process's netlink socket (flag `owner`), so that it vanishes with the process,
// also after kill -9; others cannot change it meanwhile, and `nft flush ruleset`
// leaves it alone. What then stays is without effect: rules for marks that nobody
// sets, and sysctls, which the next start or Cleanup puts back from the state
// file. With fail-closed the table has to outlive the process and is an ordinary
// one: it rejects and drops until the next start or Cleanup. Close takes
// everything away in both cases.
package intercept

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
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

// Names in nftables.
const (
	Table     = "mptcpproxy"
	SetsTable = "mptcpproxy_sets" // sets of the user, see Exclude
	nextTable = "mptcpproxy_next" // while Table is replaced
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
	FailClosed                 // rejected, as by a router without a route
)

// PortRange is an inclusive range of TCP or UDP ports.
type PortRange struct{ From, To uint16 }

// Exclude is traffic that is left alone. All given kinds must match; within a
// kind one value is enough. With none at all it is an error.
type Exclude struct {
	Src, Dest      []netip.Prefix
	DestPort       []PortRange
	Proto          []uint8 // IP protocol numbers
	Mark, MarkMask uint32  // MarkMask 0: not looked at
	Set            string  // destinations in a set of SetsTable
}

// Options is what to intercept. Hosts, local addresses, multicast, broadcast,
// link-local and whatever is routed from one LAN device to another are never
// touched.
type Options struct {
	LAN          []string       // devices whose hosts are served; none: far side only
	PortTCP      int            // TPROXY listener; 0: no TCP
	PortUDP      int            // TPROXY listener; 0: no UDP
	Syn          Mode           // what happens to SYNs
	Fail         FailMode       // while the far side is away
	Exclude      []Exclude      // what is left alone
	Protocols    []uint8        // other IP protocols to route into TunnelDevice
	AllProtocols bool           // all but TCP and UDP
	TunnelDevice string         // TUN device of package tunnel, there already; empty: none
	Destinations []netip.Prefix // reached through peers that are there
	Away         []netip.Prefix // reached through peers that are away: Fail says what happens. The longest prefix of both lists wins
	PeerAddrs    []netip.Addr   // never intercepted
	NonePort     int            // far side of carrier none: MPTCP listener for what comes from other devices than LAN; 0: none
	NoneFrom     []netip.Prefix // source addresses for NonePort
	ListenPort   int            // trunks of this gateway, not taken for NonePort
	LogGroup     uint16         // 0: LogGroup
	KnownTimeout int            // s that a destination stays in `known` unused; 0: 60
	StateDir     string         // keeps what to put back after a kill; empty: /run/mptcpproxy
	Log          *slog.Logger   // nil: slog.Default
}

func (o Options) knownTimeout() time.Duration { return time.Duration(o.KnownTimeout) * time.Second }

func (o Options) withDefaults() Options {
	if o.LogGroup == 0 {
		o.LogGroup = LogGroup
	}
	if o.KnownTimeout <= 0 {
		o.KnownTimeout = 60
	}
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Intercept is a set-up interception. Its methods may be called from several
// goroutines.
type Intercept struct {
	mu     sync.Mutex
	o      Options
	up     bool
	closed bool
	nft    *firewall
	routes *routing
	sysctl *sysctls

	know    sync.Mutex
	pending map[netip.AddrPort]bool
	wake    chan struct{}
	done    chan struct{}
	ended   chan struct{}
}

// Setup installs everything in the current network namespace. The listeners on
// the ports, the tunnel device and the reader of the NFLOG group must be there
// already: without a listener the kernel routes, without a reader held SYNs are
// lost. What a killed predecessor has left is taken over. If another process
// intercepts in this namespace, it fails and changes nothing.
func Setup(o Options) (*Intercept, error) {
	o = o.withDefaults()
	nft, err := openFirewall()
	if err != nil {
		return nil, err
	}
	i := &Intercept{
		o: o, up: true, nft: nft,
		pending: map[netip.AddrPort]bool{}, wake: make(chan struct{}, 1), done: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := nft.free(); err != nil {
		nft.close()
		return nil, err
	}
	err = i.install()
	if err != nil {
		i.remove()
		return nil, fmt.Errorf("setting up interception: %w", err)
	}
	go i.knowing()
	return i, nil
}

func (i *Intercept) install() (err error) {
	if i.sysctl, err = openSysctls(i.o.StateDir); err != nil {
		return err
	}
	if err = i.sysctl.set(wantedSysctls(i.o), i.o.Log); err != nil {
		return err
	}
	if i.routes, err = openRouting(); err != nil {
		return err
	}
	if err = i.routes.set(i.o); err != nil {
		return err
	}
	return i.nft.set(i.o, i.up)
}

// Update changes what differs, in one transaction, without dropping flows. On an
// error the old rules stay.
func (i *Intercept) Update(o Options) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return fmt.Errorf("updating interception: %w", fs.ErrClosed)
	}
	o = o.withDefaults()
	o.StateDir = i.o.StateDir
	same := o
	same.Log = i.o.Log
	if reflect.DeepEqual(same, i.o) && o.TunnelDevice == "" {
		return nil
	}
	if err := i.sysctl.set(wantedSysctls(o), o.Log); err != nil {
		return fmt.Errorf("updating interception: %w", err)
	}
	if err := i.routes.set(o); err != nil {
		return fmt.Errorf("updating interception: %w", err)
	}
	if err := i.nft.set(o, i.up); err != nil {
		return fmt.Errorf("updating interception: %w", err)
	}
	i.o = o
	return nil
}

// SetPeersUp tells whether any peer is there; while none is, Fail decides about
// new flows to all destinations. For one peer of several use Update with Away.
// It starts with true.
func (i *Intercept) SetPeersUp(up bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || i.up == up {
		return
	}
	if err := i.nft.set(i.o, up); err != nil {
		i.o.Log.Error("cannot switch the interception rules; flows are handled as before", "peers_up", up, "err", err)
		return
	}
	i.up = up
}

// Known puts dst into the set `known` (good), where SYNs are accepted at once,
// or takes it out. It returns at once, the kernel follows a moment later.
func (i *Intercept) Known(dst netip.AddrPort, good bool) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	i.know.Lock()
	i.pending[dst] = good
	i.know.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// knowing writes what Known was told until Close.
func (i *Intercept) knowing() {
	defer close(i.ended)
	recent := map[netip.AddrPort]time.Time{} // written, and surely still there
	for {
		select {
		case <-i.done:
			return
		case <-i.wake:
		}
		i.know.Lock()
		work := i.pending
		i.pending = map[netip.AddrPort]bool{}
		i.know.Unlock()

		i.mu.Lock()
		if i.closed {
			i.mu.Unlock()
			return
		}
		now := time.Now()
		var add, del []netip.AddrPort
		for dst, good := range work {
			switch {
			case !good:
				delete(recent, dst)
				del = append(del, dst)
			case now.Sub(recent[dst]) > i.o.knownTimeout()/2:
				recent[dst] = now
				add = append(add, dst)
			}
		}
		if err := i.nft.known(add, del, i.o.knownTimeout()); err != nil {
			clear(recent)
			i.o.Log.Warn("cannot update the set of known destinations; their SYNs are held", "err", err)
		}
		i.mu.Unlock()
		if len(recent) > knownSize/2 {
			clear(recent)
		}
	}
}

// Close takes everything away and puts back what was changed.
func (i *Intercept) Close() error {
	i.mu.Lock()
	if i.closed {
		i.mu.Unlock()
		return nil
	}
	i.closed = true
	close(i.done)
	i.mu.Unlock()
	<-i.ended
	return i.remove()
}

func (i *Intercept) remove() error {
	err := i.nft.remove()
	i.nft.close()
	if i.routes != nil {
		err = errors.Join(err, i.routes.remove())
		i.routes.close()
	}
	if i.sysctl != nil {
		err = errors.Join(err, i.sysctl.restore())
	}
	if err != nil {
		return fmt.Errorf("taking the interception away: %w", err)
	}
	return nil
}

// Cleanup removes what a killed predecessor has left in this namespace: by fixed
// names, and the sysctls by the state file in stateDir (empty: DefaultStateDir).
// With nothing there it does nothing. It fails, and changes nothing, if a living
// process intercepts here.
func Cleanup(stateDir string) error {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	nft, err := openFirewall()
	if err != nil {
		return err
	}
	defer nft.close()
	if err := nft.free(); err != nil {
		return err
	}
	err = nft.remove()
	r, e := openRouting()
	if e == nil {
		e = r.remove()
		r.close()
	}
	err = errors.Join(err, e)
	s, e := openSysctls(stateDir)
	if e == nil {
		e = s.restore()
	}
	if err = errors.Join(err, e); err != nil {
		return fmt.Errorf("cleaning up after a predecessor: %w", err)
	}
	return nil
}

// usesSets tells whether an exclude section names a set.
func (o Options) usesSets() bool {
	return slices.ContainsFunc(o.Exclude, func(e Exclude) bool { return e.Set != "" })
}
