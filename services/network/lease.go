package network

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// Lease is what a DHCP server gave.
type Lease struct {
	Addr     netip.Prefix
	Router   netip.Addr // zero if none
	Routes   []Route    // option 121; it replaces Router (RFC 3442)
	DNS      []netip.Addr
	NTP      []netip.Addr
	Domain   string
	Hostname string
	Server   netip.Addr

	// At is when the lease was confirmed; it ends Duration later, and is
	// renewed from T1 and with any server from T2 on. Duration 0: for ever.
	At               time.Time
	Duration, T1, T2 time.Duration

	ack *dhcpv4.DHCPv4
}

// Route is a route of an interface.
type Route struct {
	Dest   netip.Prefix
	Via    netip.Addr   // zero: on the link
	Src    netip.Addr   // preferred source; zero: the kernel chooses
	From   netip.Prefix // IPv6: for packets from there only; zero: from anywhere
	Metric int
	Table  int   // 0: the main one
	Type   uint8 // unix.RTN_…; 0: unicast
	MTU    int   // 0: that of the link
	OnLink bool  // Via is on the link, whatever the addresses say
	// Valid is when the one who announced the route wants it gone; zero: never.
	Valid time.Time
}

// deadEnd tells whether packets end there.
func (r Route) deadEnd() bool {
	switch r.Type {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return true
	}
	return false
}

// optionMSRoutes is Microsoft's number for classless routes, in the form of
// option 121. Some servers send nothing else.
const optionMSRoutes = 249

const (
	// defaultLease is for servers that do not say how long, as LEDE's client
	// has it.
	defaultLease = time.Hour
	// minLease keeps a server from making the client spin; the value is that
	// of LEDE's client.
	minLease = 16 * time.Second
	// maxRoutes bounds what a server can put into the routing table; option
	// 121 fits 50 routes into one option of 255 bytes.
	maxRoutes = 64
)

// newLease checks and takes over what a server sent. Parts that make no sense
// are left out; without a usable address it is an error.
func newLease(ack *dhcpv4.DHCPv4, at time.Time) (*Lease, error) {
	l := &Lease{At: at, ack: ack}
	addr, ok := unicast(ack.YourIPAddr)
	if !ok {
		return nil, fmt.Errorf("server offers the address %v", ack.YourIPAddr)
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = net.IP(addr.AsSlice()).DefaultMask()
	}
	bits, size := mask.Size()
	if size != 32 || bits == 0 {
		bits = 32
	}
	l.Addr = netip.PrefixFrom(addr, bits)
	if s, ok := unicast(ack.ServerIdentifier()); ok {
		l.Server = s
	} else if s, ok := unicast(ack.ServerIPAddr); ok {
		l.Server = s
	}
	for _, r := range ack.Router() {
		if a, ok := unicast(r); ok {
			l.Router = a
			break
		}
	}
	l.DNS = unicasts(ack.DNS())
	l.NTP = unicasts(ack.NTPServers())
	if d := ack.DomainName(); validDomain(d) {
		l.Domain = d
	}
	if h := ack.HostName(); validDomain(h) {
		l.Hostname = h
	}
	routes := ack.ClasslessStaticRoute()
	if b := ack.Options.Get(dhcpv4.GenericOptionCode(optionMSRoutes)); routes == nil && b != nil {
		var rs dhcpv4.Routes
		if rs.FromBytes(b) == nil {
			routes = rs
		}
	}
	for _, r := range routes {
		ip, ok := netip.AddrFromSlice(r.Dest.IP.To4())
		ones, _ := r.Dest.Mask.Size()
		if !ok || len(l.Routes) == maxRoutes {
			continue
		}
		via, ok := unicast(r.Router)
		if !ok && !r.Router.IsUnspecified() {
			continue
		}
		l.Routes = append(l.Routes, Route{Dest: netip.PrefixFrom(ip, ones).Masked(), Via: via})
	}
	l.times(ack)
	return l, nil
}

// times reads when to do what (RFC 2131, 4.4.5).
func (l *Lease) times(ack *dhcpv4.DHCPv4) {
	const forever = (1<<32 - 1) * time.Second
	d := ack.IPAddressLeaseTime(defaultLease)
	if d == forever {
		return
	}
	l.Duration = max(d, minLease)
	l.T1 = ack.IPAddressRenewalTime(0)
	l.T2 = ack.IPAddressRebindingTime(0)
	if l.T2 <= 0 || l.T2 >= l.Duration {
		l.T2 = l.Duration * 7 / 8
	}
	if l.T1 <= 0 || l.T1 >= l.T2 {
		l.T1 = min(l.Duration/2, l.T2)
	}
}

// unicast accepts addresses that a host or a router can have.
func unicast(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, false
	}
	return a, true
}

func unicasts(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := unicast(ip); ok {
			out = append(out, a)
		}
	}
	return out
}

// routes are the routes that the lease asks for.
func (l *Lease) routes(o DHCPOptions, metric int) []Route {
	routes := l.Routes
	if len(routes) == 0 && l.Router.IsValid() {
		routes = []Route{{Dest: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Router}}
	}
	var out []Route
	for _, r := range routes {
		if r.Dest.Bits() == 0 && !o.DefaultRoute {
			continue
		}
		r.Src, r.Metric, r.OnLink = l.Addr.Addr(), metric, true
		out = append(out, r)
	}
	return out
}
