package intercept

import (
	"net/netip"
	"slices"
)

// span is an inclusive range of addresses of one family.
type span struct{ from, to netip.Addr }

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return span{p.Addr(), last}
}

// plainPrefix turns a prefix of IPv4-mapped addresses into an IPv4 one.
func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// spans merges the prefixes of one family (IPv4 or IPv6) into disjoint ranges in
// order.
func spans(prefixes []netip.Prefix, v4 bool) []span {
	got, _ := split(prefixes, nil, v4)
	return got
}

// split gives the disjoint ranges that belong to a and those that belong to b,
// for addresses of one family: the longest prefix wins, a on a tie.
func split(a, b []netip.Prefix, v4 bool) (inA, inB []span) {
	type side struct {
		span
		bits int
		b    bool
	}
	var all []side
	for i, list := range [][]netip.Prefix{a, b} {
		for _, p := range list {
			p = plainPrefix(p)
			if p.IsValid() && p.Addr().Is4() == v4 {
				all = append(all, side{spanOf(p), p.Bits(), i == 1})
			}
		}
	}
	// Every range between two neighbouring edges belongs to one side as a whole.
	var edges []netip.Addr
	for _, s := range all {
		edges = append(edges, s.from)
		if next := s.to.Next(); next.IsValid() {
			edges = append(edges, next)
		}
	}
	slices.SortFunc(edges, netip.Addr.Compare)
	edges = slices.Compact(edges)
	last := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if !v4 {
		last = netip.AddrFrom16([16]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255})
	}
	for i, from := range edges {
		to := last
		if i+1 < len(edges) {
			to = edges[i+1].Prev()
		}
		best := side{bits: -1}
		for _, s := range all {
			if s.from.Compare(from) <= 0 && to.Compare(s.to) <= 0 && (s.bits > best.bits || s.bits == best.bits && best.b && !s.b) {
				best = s
			}
		}
		if best.bits < 0 {
			continue
		}
		list := &inA
		if best.b {
			list = &inB
		}
		if n := len(*list); n > 0 && (*list)[n-1].to.Next() == from {
			(*list)[n-1].to = to
		} else {
			*list = append(*list, span{from, to})
		}
	}
	return inA, inB
}

// ports merges port ranges.
func ports(in []PortRange) []PortRange {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b PortRange) int { return int(a.From) - int(b.From) })
	var out []PortRange
	for _, r := range in {
		if n := len(out); n > 0 && int(r.From) <= int(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
		} else {
			out = append(out, r)
		}
	}
	return out
}
