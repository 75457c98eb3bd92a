package network

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// lifetime is until when something learned may be used. Zero times: for ever.
type lifetime struct{ Preferred, Valid time.Time }

// over tells whether a time has come.
func over(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

// timedPrefix is a prefix, or an address in one, with its lifetime.
type timedPrefix struct {
	netip.Prefix
	lifetime
}

// pool is a prefix that interfaces get their parts of.
type pool struct {
	timedPrefix
	class string // name of the interface that has it, or local
}

// consumer is an interface that wants a part of each pool.
type consumer struct {
	name string
	Assign
	mac net.HardwareAddr // for eui64
}

// assignment is a part of a pool.
type assignment struct {
	timedPrefix
	pool  netip.Prefix
	class string
	addr  netip.Addr // that of the interface itself
}

// local is the address of the interface in the part.
func (a assignment) local() netip.Prefix { return netip.PrefixFrom(a.addr, a.Bits()) }

// partKey names what was assigned before.
type partKey struct {
	name string
	pool netip.Prefix
}

// assigner hands out parts of pools. Parts stay where they are as long as pool
// and wish stay; that is what before remembers.
type assigner struct {
	before map[partKey]netip.Prefix
	random map[string]uint64 // last halves of addresses, by interface
}

// assign gives each consumer its part of each pool. Wishes for a certain part
// come first, then the larger parts, then the heavier, then by name. A part that
// does not fit is made smaller down to a /64, as netifd has it.
func (g *assigner) assign(pools []pool, consumers []consumer) map[string][]assignment {
	consumers = slices.Clone(consumers)
	slices.SortStableFunc(consumers, func(a, b consumer) int {
		hint := func(c consumer) int { return min(c.Hint, 0) } // -1 without
		return cmp.Or(cmp.Compare(hint(b), hint(a)), cmp.Compare(a.Length, b.Length), cmp.Compare(b.Weight, a.Weight), cmp.Compare(a.name, b.name))
	})
	out := map[string][]assignment{}
	parts := map[partKey]netip.Prefix{}
	for _, p := range pools {
		taken := map[string]netip.Prefix{}
		free := func(part netip.Prefix) bool {
			for _, t := range taken {
				if t.Overlaps(part) {
					return false
				}
			}
			return true
		}
		ask := slices.DeleteFunc(slices.Clone(consumers), func(c consumer) bool {
			return c.name == p.class || len(c.Classes) > 0 && !slices.Contains(c.Classes, p.class)
		})
		for _, c := range ask { // wishes
			if c.Hint >= 0 {
				if part, ok := subnet(p.Prefix, max(c.Length, p.Bits()), uint64(c.Hint)); ok && free(part) {
					taken[c.name] = part
				}
			}
		}
		for _, c := range ask { // what they had
			part, ok := g.before[partKey{c.name, p.Prefix}]
			if _, done := taken[c.name]; ok && !done && c.Hint < 0 && part.Bits() == max(c.Length, p.Bits()) && free(part) {
				taken[c.name] = part
			}
		}
		for _, c := range ask {
			if _, done := taken[c.name]; done {
				continue
			}
			for bits := max(c.Length, p.Bits()); bits <= 64; bits++ {
				if part, ok := firstFree(p.Prefix, bits, taken); ok {
					taken[c.name] = part
					break
				}
			}
		}
		for _, c := range ask {
			part, ok := taken[c.name]
			if !ok {
				continue
			}
			parts[partKey{c.name, p.Prefix}] = part
			out[c.name] = append(out[c.name], assignment{
				timedPrefix: timedPrefix{part, p.lifetime}, pool: p.Prefix, class: p.class, addr: g.address(part, c),
			})
		}
	}
	g.before = parts
	return out
}

// subnet is the part of p with that length in which the /64 number n lies.
func subnet(p netip.Prefix, bits int, n uint64) (netip.Prefix, bool) {
	if bits > 64 || p.Bits() > 64 || p.Bits() < 64 && p.Bits() > 0 && n>>(64-p.Bits()) != 0 || p.Bits() == 64 && n != 0 {
		return netip.Prefix{}, false
	}
	b := p.Masked().Addr().As16()
	binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])|n)
	return netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked(), true
}

// firstFree is the first part of that length beside those that are taken.
func firstFree(p netip.Prefix, bits int, taken map[string]netip.Prefix) (netip.Prefix, bool) {
	size := uint64(1) << (64 - bits)
	for n := uint64(0); ; {
		part, ok := subnet(p, bits, n)
		if !ok {
			return netip.Prefix{}, false
		}
		hit := false
		for _, t := range taken {
			if !t.Overlaps(part) {
				continue
			}
			// Go on behind it.
			hit = true
			b := t.Addr().As16()
			base := p.Masked().Addr().As16()
			end := binary.BigEndian.Uint64(b[:]) - binary.BigEndian.Uint64(base[:]) + uint64(1)<<(64-t.Bits())
			if next := (end + size - 1) / size * size; next > n {
				n = next
			} else {
				n += size
			}
			break
		}
		if !hit {
			return part, true
		}
	}
}

// address is the interface's own address in its part.
func (g *assigner) address(part netip.Prefix, c consumer) netip.Addr {
	b := part.Addr().As16()
	switch c.IfaceID {
	case "eui64":
		if id, ok := eui64(c.mac); ok {
			copy(b[8:], id[:])
			return netip.AddrFrom16(b)
		}
	case "random":
		if g.random == nil {
			g.random = map[string]uint64{}
		}
		if g.random[c.name] == 0 {
			g.random[c.name] = rand.Uint64() | 1
		}
		binary.BigEndian.PutUint64(b[8:], g.random[c.name])
		return netip.AddrFrom16(b)
	default:
		if id, err := netip.ParseAddr(c.IfaceID); err == nil && id.Is6() {
			d := id.As16()
			copy(b[8:], d[8:])
			return netip.AddrFrom16(b)
		}
	}
	b[15] = 1
	return netip.AddrFrom16(b)
}

// eui64 is the last half of an address made from a MAC address (RFC 4291,
// appendix A).
func eui64(mac net.HardwareAddr) (id [8]byte, ok bool) {
	if len(mac) != 6 {
		return id, false
	}
	copy(id[:3], mac[:3])
	id[3], id[4] = 0xff, 0xfe
	copy(id[5:], mac[3:])
	id[0] ^= 2
	return id, true
}

// unreachable keeps packets to parts of a prefix that nobody has from going
// back to where they came from (RFC 7084, L-3). The metric is netifd's.
func unreachable(p netip.Prefix) Route {
	return Route{Dest: p.Masked(), Type: unix.RTN_UNREACHABLE, Metric: math.MaxInt32}
}
