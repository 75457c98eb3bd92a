// Package ra sends IPv6 router advertisements (RFC 4861, 4191, 8106) on the
// devices of the LAN, and answers solicitations.
//
// Lifetimes go down with those of the prefixes. A prefix that is no longer
// there is announced with lifetimes of zero for a while (RFC 9096, 3.5), so that
// hosts stop to use it, and without a default route this host is announced as a
// router for nothing but the local prefixes.
//
// It does not do: relaying of advertisements, SEND.
package ra

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/netif"
)

// Settings are what is announced on a device.
type Settings struct {
	Pool     *config.Pool
	MAC      []byte
	MTU      int
	Source   netip.Addr // link-local address of this host
	Prefixes []netif.Prefix
	DNS      []netip.Addr
	Search   []string
	Default6 bool // there is a default route
}

// Equal tells whether the same is to be announced, but for the time that has
// passed.
func (s *Settings) Equal(o *Settings) bool {
	a := netif.State{Interfaces: []*netif.Interface{{Assigned: s.Prefixes}}}
	b := netif.State{Interfaces: []*netif.Interface{{Assigned: o.Prefixes}}}
	return a.Equal(&b) && slices.Equal(s.MAC, o.MAC) && s.MTU == o.MTU && s.Source == o.Source && slices.Equal(s.DNS, o.DNS) &&
		slices.Equal(s.Search, o.Search) && s.Default6 == o.Default6 && samePool(s.Pool, o.Pool)
}

func samePool(a, b *config.Pool) bool {
	return a.Managed == b.Managed && a.Other == b.Other && a.HomeAgent == b.HomeAgent && a.SLAAC == b.SLAAC && a.RADefault == b.RADefault &&
		a.RALifetime == b.RALifetime && a.RAMin == b.RAMin && a.RAMax == b.RAMax && a.RAMTU == b.RAMTU && a.RAHopLimit == b.RAHopLimit &&
		a.RAReachable == b.RAReachable && a.RARetrans == b.RARetrans && a.RAPreference == b.RAPreference && a.OffLink == b.OffLink &&
		a.MaxPreferred == b.MaxPreferred && a.MaxValid == b.MaxValid && a.RADNS == b.RADNS
}

// ICMPv6 types and option numbers.
const (
	typeRS = 133
	typeRA = 134

	optSource = 1
	optPrefix = 3
	optMTU    = 5
	optRoute  = 24
	optRDNSS  = 25
	optDNSSL  = 31
)

// ParseSolicit checks a router solicitation (RFC 4861, 6.1.1), without the hop
// limit and the checksum, which come from elsewhere. hw is the sender's hardware
// address, nil if it does not say.
func ParseSolicit(b []byte, from netip.Addr) (hw []byte, ok bool) {
	if len(b) < 8 || b[0] != typeRS || b[1] != 0 {
		return nil, false
	}
	for o := b[8:]; len(o) > 0; {
		if len(o) < 2 || o[1] == 0 || len(o) < 8*int(o[1]) {
			return nil, false
		}
		if o[0] == optSource {
			if from.IsUnspecified() {
				return nil, false
			}
			hw = o[2 : 8*int(o[1])]
		}
		o = o[8*int(o[1]):]
	}
	return hw, true
}

// seconds turns what is left of a life into its field, which is capped.
func seconds(until, now time.Time, most time.Duration) uint32 {
	n := uint64(most / time.Second)
	if most == 0 {
		n = 1<<32 - 1
	}
	if !until.IsZero() {
		left := until.Sub(now) / time.Second
		n = min(n, uint64(max(left, 0)))
	}
	return uint32(n)
}

// lifetime is how long this host is a default router, in seconds.
func (s *Settings) lifetime(now time.Time) int {
	p := s.Pool
	full := p.RALifetime
	if full < 0 {
		full = min(3*p.RAMax, 9000)
	}
	public := slices.ContainsFunc(s.Prefixes, func(q netif.Prefix) bool {
		return !q.Addr().IsPrivate() && (q.Preferred.IsZero() || q.Preferred.After(now))
	})
	switch {
	case p.RADefault == 2, p.RADefault == 1 && s.Default6, s.Default6 && public:
		return full
	}
	return 0
}

// Message is an advertisement. gone are prefixes to be given up; with final
// this host says that it is no longer a router.
func (s *Settings) Message(now time.Time, gone []netip.Prefix, final bool) []byte {
	p := s.Pool
	b := make([]byte, 16, 256)
	b[0], b[4] = typeRA, byte(p.RAHopLimit)
	if p.Managed {
		b[5] |= 0x80
	}
	if p.Other {
		b[5] |= 0x40
	}
	if p.HomeAgent {
		b[5] |= 0x20
	}
	b[5] |= byte(p.RAPreference&3) << 3
	life := s.lifetime(now)
	if final {
		life = 0
	}
	if life == 0 {
		b[5] &^= 0x18 // RFC 4191, 2.2: medium
	}
	binary.BigEndian.PutUint16(b[6:], uint16(life))
	binary.BigEndian.PutUint32(b[8:], uint32(p.RAReachable))
	binary.BigEndian.PutUint32(b[12:], uint32(p.RARetrans))
	if len(s.MAC) == 6 {
		b = append(append(b, optSource, 1), s.MAC...)
	}
	if mtu := cmpOr(p.RAMTU, s.MTU); mtu >= 1280 {
		b = append(b, optMTU, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(mtu))
	}
	prefix := func(q netip.Prefix, valid, preferred uint32) {
		flags := byte(0)
		if !p.OffLink {
			flags |= 0x80
		}
		if p.SLAAC && q.Bits() == 64 {
			flags |= 0x40
		}
		b = append(b, optPrefix, 4, byte(q.Bits()), flags)
		b = binary.BigEndian.AppendUint32(b, valid)
		b = binary.BigEndian.AppendUint32(b, preferred)
		b = append(b, 0, 0, 0, 0)
		b = append(b, q.Masked().Addr().AsSlice()...)
	}
	for _, q := range s.Prefixes[:min(len(s.Prefixes), maxPrefixes)] {
		valid := seconds(q.Valid, now, p.MaxValid)
		preferred := min(seconds(q.Preferred, now, p.MaxPreferred), valid)
		if final {
			preferred = 0
		}
		prefix(OnLink(q.Prefix), valid, preferred)
	}
	for _, q := range gone[:min(len(gone), maxPrefixes)] {
		prefix(q, 0, 0)
	}
	// What else is reached through this host, for hosts that have another
	// default router or none.
	for _, q := range s.Prefixes[:min(len(s.Prefixes), maxPrefixes)] {
		if q.Bits() >= 64 || final {
			continue
		}
		b = append(b, optRoute, 2, byte(q.Bits()), byte(p.RAPreference&3)<<3)
		b = binary.BigEndian.AppendUint32(b, min(seconds(q.Valid, now, p.MaxValid), uint32(3*p.RAMax)))
		b = append(b, q.Masked().Addr().AsSlice()[:8]...)
	}
	if p.RADNS && !p.NoDNS && len(s.DNS) > 0 {
		dnsLife := uint32(3 * p.RAMax) // RFC 8106, 5.1
		if final {
			dnsLife = 0
		}
		dns := s.DNS[:min(len(s.DNS), maxServers)]
		b = append(b, optRDNSS, byte(1+2*len(dns)), 0, 0)
		b = binary.BigEndian.AppendUint32(b, dnsLife)
		for _, a := range dns {
			b = append(b, a.AsSlice()...)
		}
		if names := dnssl(s.Search); len(names) > 0 {
			b = append(b, optDNSSL, byte(1+len(names)/8), 0, 0)
			b = binary.BigEndian.AppendUint32(b, dnsLife)
			b = append(b, names...)
		}
	}
	return b
}

const (
	// maxPrefixes and maxServers keep a message within one packet of 1280 bytes.
	maxPrefixes = 8
	maxServers  = 8
	maxSearch   = 240 // bytes of search names
)

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// OnLink is the network of a prefix that hosts of the link are in: its first
// /64, if it is larger.
func OnLink(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), max(p.Bits(), 64)).Masked()
}

// dnssl are the names in the wire form, padded to units of 8 bytes.
func dnssl(search []string) []byte {
	var b []byte
	for _, d := range search {
		if !config.ValidName(d) || len(b)+len(d)+2 > maxSearch {
			continue
		}
		for l := range strings.SplitSeq(d, ".") {
			b = append(append(b, byte(len(l))), l...)
		}
		b = append(b, 0)
	}
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}
