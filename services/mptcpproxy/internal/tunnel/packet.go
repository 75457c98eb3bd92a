package tunnel

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ipPacket is what the tunnel looks at in a packet.
type ipPacket struct {
	src, dst netip.Addr
	proto    uint8  // IPv6: after extension headers, as far as they are known
	hash     uint32 // of the flow
}

var errPacket = errors.New("not a whole IPv4 or IPv6 packet")

// parsePacket reads the headers of an IP packet.
func parsePacket(b []byte) (p ipPacket, err error) {
	if len(b) < 20 {
		return p, errPacket
	}
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&0xf) * 4
		if n < 20 || len(b) < n || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return p, errPacket
		}
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.proto = b[9]
		p.hash = fnv(fnv(2166136261, b[9:10]), b[12:20])
		if binary.BigEndian.Uint16(b[6:])&0x3fff == 0 {
			p.hash = flowOf(p.hash, p.proto, b[n:])
		}
	case 6:
		if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
			return p, errPacket
		}
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		if p.src.Is4In6() || p.dst.Is4In6() {
			return p, errPacket
		}
		p.proto = b[6]
		rest := b[40:]
		fragment := false
	chain:
		for {
			n := 0
			switch p.proto {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
				if len(rest) < 8 {
					return p, errPacket
				}
				n = int(rest[1])*8 + 8
			case unix.IPPROTO_FRAGMENT:
				if len(rest) < 8 {
					return p, errPacket
				}
				n, fragment = 8, true
			default:
				break chain
			}
			if len(rest) < n {
				return p, errPacket
			}
			p.proto, rest = rest[0], rest[n:]
		}
		p.hash = fnv(fnv(2166136261, []byte{p.proto}), b[8:40])
		if !fragment {
			p.hash = flowOf(p.hash, p.proto, rest)
		}
	default:
		return p, errPacket
	}
	return p, nil
}

// flowOf refines hash h by what tells flows of a protocol apart: the ports of
// SCTP, UDP-Lite and DCCP, the SPI of ESP. What another protocol has at that
// place may differ within a flow.
func flowOf(h uint32, proto uint8, b []byte) uint32 {
	switch proto {
	case unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP, unix.IPPROTO_ESP:
		if len(b) >= 4 {
			return fnv(h, b[:4])
		}
	}
	return h
}

// fnv is FNV-1a.
func fnv(h uint32, b []byte) uint32 {
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}
