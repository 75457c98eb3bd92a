package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// advert is a router advertisement (RFC 4861, 4.2).
type advert struct {
	router   netip.Addr
	hopLimit uint8
	managed  bool // addresses by DHCPv6
	other    bool // the rest by DHCPv6
	pref     int8 // 1 high, 0 medium, -1 low (RFC 4191)
	lifetime time.Duration
	mtu      uint32
	prefixes []advertPrefix
	routes   []advertRoute
	dns      []advertDNS
	search   []advertDNS
}

type advertPrefix struct {
	netip.Prefix
	onLink, auto     bool
	preferred, valid time.Duration
}

type advertRoute struct {
	netip.Prefix
	pref     int8
	lifetime time.Duration
}

type advertDNS struct {
	addr     netip.Addr
	name     string
	lifetime time.Duration
}

// Options of neighbour discovery (RFC 4861, 4191, 8106).
const (
	ndSourceLink = 1
	ndPrefix     = 3
	ndMTU        = 5
	ndRoute      = 24
	ndRDNSS      = 25
	ndDNSSL      = 31

	icmpRouterSolicit = 133
	icmpRouterAdvert  = 134
)

// maxOptions bounds what one advertisement can make us keep, by kind.
const maxOptions = 16

// forever is the lifetime that never ends, as both RA and DHCPv6 write it.
const forever = (1<<32 - 1) * time.Second

func seconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

// errAdvert means that a packet is no valid advertisement.
var errAdvert = errors.New("not a valid router advertisement")

// parseAdvert reads an advertisement from the ICMPv6 message b. Options that
// make no sense are left out; a message that RFC 4861, 6.1.2 does not allow is
// an error.
func parseAdvert(b []byte, from netip.Addr) (*advert, error) {
	if !from.IsLinkLocalUnicast() {
		return nil, fmt.Errorf("%w: from %s, which is not link-local", errAdvert, from)
	}
	if len(b) < 16 || b[0] != icmpRouterAdvert || b[1] != 0 {
		return nil, fmt.Errorf("%w: %d bytes", errAdvert, len(b))
	}
	a := &advert{
		router: from.WithZone(""), hopLimit: b[4], managed: b[5]&0x80 != 0, other: b[5]&0x40 != 0,
		pref: preference(b[5]), lifetime: time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second,
	}
	for b = b[16:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || len(b) < 8*int(b[1]) {
			return nil, fmt.Errorf("%w: an option of %d bytes where %d are left", errAdvert, 8*int(b[min(1, len(b)-1)]), len(b))
		}
		o := b[:8*int(b[1])]
		b = b[len(o):]
		switch o[0] {
		case ndPrefix:
			if len(o) == 32 && len(a.prefixes) < maxOptions {
				a.prefix(o)
			}
		case ndMTU:
			if len(o) == 8 {
				if n := binary.BigEndian.Uint32(o[4:]); n >= 1280 {
					a.mtu = n
				}
			}
		case ndRoute:
			if len(a.routes) < maxOptions {
				a.route(o)
			}
		case ndRDNSS:
			for at := 8; at+16 <= len(o) && len(a.dns) < maxOptions; at += 16 {
				if d := netip.AddrFrom16([16]byte(o[at : at+16])); usable6(d) {
					a.dns = append(a.dns, advertDNS{addr: d, lifetime: seconds(o[4:])})
				}
			}
		case ndDNSSL:
			for _, name := range domains(o[8:]) {
				if len(a.search) < maxOptions {
					a.search = append(a.search, advertDNS{name: name, lifetime: seconds(o[4:])})
				}
			}
		}
	}
	return a, nil
}

// preference reads the two bits of RFC 4191; the reserved value is medium.
func preference(flags byte) int8 {
	switch flags >> 3 & 3 {
	case 1:
		return 1
	case 3:
		return -1
	}
	return 0
}

func (a *advert) prefix(o []byte) {
	p := advertPrefix{onLink: o[3]&0x80 != 0, auto: o[3]&0x40 != 0, valid: seconds(o[4:]), preferred: seconds(o[8:])}
	addr := netip.AddrFrom16([16]byte(o[16:32]))
	if o[2] > 128 || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsLoopback() || addr.IsUnspecified() || addr.Is4In6() || p.preferred > p.valid {
		return
	}
	p.Prefix = netip.PrefixFrom(addr, int(o[2])).Masked()
	a.prefixes = append(a.prefixes, p)
}

func (a *advert) route(o []byte) {
	var b [16]byte
	copy(b[:], o[8:])
	addr := netip.AddrFrom16(b)
	if o[2] > 128 || int(o[2]) > 8*(len(o)-8) || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.Is4In6() || o[3]>>3&3 == 2 {
		return
	}
	a.routes = append(a.routes, advertRoute{netip.PrefixFrom(addr, int(o[2])).Masked(), preference(o[3]), seconds(o[4:])})
}

// usable6 accepts addresses that a server can have.
func usable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}

// domains reads names in the form of DNS, without compression; what is not a
// name ends the list.
func domains(b []byte) []string {
	var out []string
	var labels []string
	for len(b) > 0 {
		n := int(b[0])
		b = b[1:]
		if n == 0 {
			if len(labels) == 0 {
				return out // padding
			}
			if name := strings.Join(labels, "."); validDomain(name) {
				out = append(out, name)
			}
			labels = nil
			continue
		}
		if n > 63 || n > len(b) {
			return out
		}
		labels = append(labels, string(b[:n]))
		b = b[n:]
	}
	return out
}

// solicitation is a router solicitation from a link with that MAC address.
func solicitation(mac net.HardwareAddr) []byte {
	b := []byte{icmpRouterSolicit, 0, 0, 0, 0, 0, 0, 0} // the kernel fills in the checksum
	if len(mac) == 6 {
		b = append(append(b, ndSourceLink, 1), mac...)
	}
	return b
}

// routerView is what the routers of a link have said, with what has run out
// taken away.
type routerView struct {
	routers  map[netip.Addr]routerEntry
	prefixes map[netip.Prefix]prefixEntry
	routes   map[routeKey]routeEntry
	dns      map[netip.Addr]time.Time
	search   map[string]time.Time
	order    []netip.Addr // of dns
	names    []string     // of search
	mtu      int
	hopLimit int
	managed  bool
	other    bool
}

type routerEntry struct {
	pref  int8
	until time.Time
}

type prefixEntry struct {
	onLink, auto bool
	lifetime
}

type routeKey struct {
	dest netip.Prefix
	via  netip.Addr
}

type routeEntry struct {
	pref  int8
	until time.Time
}

// maxEntries bounds what all advertisements of a link can make us keep, by kind.
const maxEntries = 64

// until is the end of a lifetime that starts now; zero for one without end.
func until(now time.Time, d time.Duration) time.Time {
	if d >= forever {
		return time.Time{}
	}
	return now.Add(d)
}

// put keeps a value that has a lifetime, and forgets it when that is 0.
func put[K comparable, V any](m *map[K]V, key K, v V, alive bool) {
	if *m == nil {
		*m = map[K]V{}
	}
	if _, there := (*m)[key]; !alive {
		delete(*m, key)
	} else if there || len(*m) < maxEntries {
		(*m)[key] = v
	}
}

// add takes an advertisement in.
func (v *routerView) add(a *advert, now time.Time) {
	put(&v.routers, a.router, routerEntry{a.pref, now.Add(a.lifetime)}, a.lifetime > 0)
	v.managed, v.other = a.managed, a.other
	if a.mtu != 0 {
		v.mtu = int(a.mtu)
	}
	if a.hopLimit != 0 {
		v.hopLimit = int(a.hopLimit)
	}
	for _, p := range a.prefixes {
		valid := p.valid
		// Nobody may shorten the life of an address to less than two hours
		// at one blow (RFC 4862, 5.5.3 e).
		if old, ok := v.prefixes[p.Prefix]; ok && p.auto && valid < 2*time.Hour && !old.Valid.IsZero() {
			if left := old.Valid.Sub(now); left > 2*time.Hour {
				valid = 2 * time.Hour
			} else if valid < left {
				valid = left
			}
		}
		put(&v.prefixes, p.Prefix, prefixEntry{p.onLink, p.auto && p.Bits() == 64, lifetime{until(now, p.preferred), until(now, valid)}}, valid > 0)
	}
	for _, r := range a.routes {
		put(&v.routes, routeKey{r.Prefix, a.router}, routeEntry{r.pref, until(now, r.lifetime)}, r.lifetime > 0)
	}
	for _, d := range a.dns {
		put(&v.dns, d.addr, until(now, d.lifetime), d.lifetime > 0)
	}
	for _, d := range a.search {
		put(&v.search, d.name, until(now, d.lifetime), d.lifetime > 0)
	}
	v.order = keepOrder(v.order, v.dns, a.dns, func(d advertDNS) netip.Addr { return d.addr })
	v.names = keepOrder(v.names, v.search, a.search, func(d advertDNS) string { return d.name })
}

// keepOrder is the order in which the entries of m were first heard of.
func keepOrder[K comparable](before []K, m map[K]time.Time, now []advertDNS, key func(advertDNS) K) []K {
	var out []K
	seen := map[K]bool{}
	take := func(k K) {
		if _, ok := m[k]; ok && !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	for _, k := range before {
		take(k)
	}
	for _, d := range now {
		take(key(d))
	}
	return out
}

// expire forgets what has run out.
func (v *routerView) expire(now time.Time) {
	for k, e := range v.routers {
		if over(e.until, now) {
			delete(v.routers, k)
		}
	}
	for k, e := range v.prefixes {
		if over(e.Valid, now) {
			delete(v.prefixes, k)
		}
	}
	for k, e := range v.routes {
		if over(e.until, now) {
			delete(v.routes, k)
		}
	}
	for k, t := range v.dns {
		if over(t, now) {
			delete(v.dns, k)
		}
	}
	for k, t := range v.search {
		if over(t, now) {
			delete(v.search, k)
		}
	}
	v.order = keepOrder(v.order, v.dns, nil, func(d advertDNS) netip.Addr { return d.addr })
	v.names = keepOrder(v.names, v.search, nil, func(d advertDNS) string { return d.name })
}
