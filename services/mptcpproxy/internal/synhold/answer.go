package synhold

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/transparent"
)

// ICMP types and codes, RFC 792, 1812, 4443.
const (
	icmpUnreachable, icmpNet, icmpHost, icmpProhibited       = 3, 0, 1, 13
	icmp6Unreachable, icmp6NoRoute, icmp6Prohibited, icmp6To = 1, 0, 1, 3
)

// kind is what a client is answered.
type kind int

const (
	silence kind = iota // nothing
	reset               // RST, as from the sink
	icmp                // an ICMP error
	trouble             // the far side could not even try
)

// verdict says how an outcome of the far side's connect looks to the client.
func verdict(e *transparent.ConnectError, v4 bool) (k kind, kindOf, code uint8) {
	if e.ICMP {
		switch {
		case v4 && (e.ICMPType == 3 && e.ICMPCode != 4 || e.ICMPType == 11 || e.ICMPType == 12),
			!v4 && (e.ICMPType == 1 || e.ICMPType == 3 || e.ICMPType == 4):
			return icmp, e.ICMPType, e.ICMPCode
		}
	}
	switch e.Errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return reset, 0, 0
	case unix.ETIMEDOUT:
		return silence, 0, 0
	case unix.ENETUNREACH:
		if v4 {
			return icmp, icmpUnreachable, icmpNet
		}
		return icmp, icmp6Unreachable, icmp6NoRoute
	case unix.EHOSTUNREACH:
		if v4 {
			return icmp, icmpUnreachable, icmpHost
		}
		return icmp, icmp6Unreachable, icmp6To
	case unix.EACCES, unix.EPERM:
		if v4 {
			return icmp, icmpUnreachable, icmpProhibited
		}
		return icmp, icmp6Unreachable, icmp6Prohibited
	}
	return trouble, 0, 0
}

// TTLs of answers. A sink starts at 64 as most hosts do, and two gateways are
// on the way; a router's message starts at 64 and passes one.
const (
	resetTTL = 62
	icmpTTL  = 63
)

// resetFor is the segment with which a host refuses syn: RFC 9293 section
// 3.10.7.1, "if the ACK bit is off".
func resetFor(syn segment) []byte {
	b := ipHeader(syn.dst.Addr(), syn.src.Addr(), unix.IPPROTO_TCP, 20, resetTTL, 0)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, syn.dst.Port())
	b = binary.BigEndian.AppendUint16(b, syn.src.Port())
	b = binary.BigEndian.AppendUint32(b, 0)
	length := syn.data
	for _, f := range []byte{flagSYN, flagFIN} {
		if syn.flags&f != 0 {
			length++
		}
	}
	b = binary.BigEndian.AppendUint32(b, syn.seq+length)
	b = append(b, 5<<4, flagRST|flagACK, 0, 0, 0, 0, 0, 0)
	checksum := ^fold(sum(pseudoSum(syn.dst.Addr(), syn.src.Addr(), unix.IPPROTO_TCP, 20), b[at:]))
	binary.BigEndian.PutUint16(b[at+16:], checksum)
	return b
}

// icmpFor is the ICMP error with which from, a router or the sink itself,
// answers syn.
func icmpFor(syn segment, from netip.Addr, kind, code uint8) []byte {
	quote := syn.raw
	to := syn.src.Addr()
	if to.Is4() {
		// RFC 1812 section 4.3.2.3: as much as fits into 576 bytes. The precedence is
		// that of section 4.3.2.5.
		quote = quote[:min(len(quote), 576-28)]
		b := ipHeader(from, to, unix.IPPROTO_ICMP, 8+len(quote), icmpTTL, syn.tos&0x1e|0xc0)
		at := len(b)
		b = append(b, kind, code, 0, 0, 0, 0, 0, 0)
		b = append(b, quote...)
		binary.BigEndian.PutUint16(b[at+2:], ^fold(sum(0, b[at:])))
		return b
	}
	// RFC 4443 section 2.4: as much as fits into the minimum MTU.
	quote = quote[:min(len(quote), 1280-48)]
	b := ipHeader(from, to, unix.IPPROTO_ICMPV6, 8+len(quote), icmpTTL, 0)
	at := len(b)
	b = append(b, kind, code, 0, 0, 0, 0, 0, 0)
	b = append(b, quote...)
	checksum := ^fold(sum(pseudoSum(from, to, unix.IPPROTO_ICMPV6, 8+len(quote)), b[at:]))
	binary.BigEndian.PutUint16(b[at+2:], checksum)
	return b
}

// ipHeader starts a packet with size bytes behind the header.
func ipHeader(src, dst netip.Addr, proto byte, size int, ttl, tos byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+size)
		b[0], b[1] = 0x45, tos
		binary.BigEndian.PutUint16(b[2:], uint16(20+size))
		if proto == unix.IPPROTO_TCP {
			b[6] = 0x40 // do not fragment: the ID may stay 0, RFC 6864
		}
		b[8], b[9] = ttl, proto
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b)))
		return b
	}
	b := make([]byte, 40, 40+size)
	b[0], b[1] = 0x60|tos>>4, tos<<4
	binary.BigEndian.PutUint16(b[4:], uint16(size))
	b[6], b[7] = proto, ttl
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return b
}
