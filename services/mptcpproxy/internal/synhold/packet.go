package synhold

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCP flags.
const (
	flagFIN, flagSYN, flagRST, flagACK = 0x01, 0x02, 0x04, 0x10
)

// segment is an IP packet with a TCP segment in it.
type segment struct {
	raw      []byte // the whole packet
	src, dst netip.AddrPort
	tcp      int // offset of the TCP header
	seq      uint32
	flags    byte
	tos      byte   // or traffic class
	data     uint32 // bytes of payload
}

var (
	errShort    = errors.New("packet cut short")
	errNotTCP   = errors.New("not TCP, or a fragment")
	errChecksum = errors.New("wrong TCP checksum")
)

// parse reads a packet as it was in the IP stack at prerouting: with valid IP
// header checksum, and the length in the header. It accepts the TCP checksums
// that are met there: right ones, and the pseudo header's sum alone, which a
// sender leaves to the hardware to complete; that is then completed in place.
func parse(b []byte) (segment, error) {
	var s segment
	if len(b) < 1 {
		return s, errShort
	}
	var proto byte
	switch b[0] >> 4 {
	case 4:
		if len(b) < 20 {
			return s, errShort
		}
		size, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if size < 20 || total < size || total > len(b) {
			return s, errShort
		}
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // more fragments, or an offset
			return s, errNotTCP
		}
		b = b[:total]
		proto, s.tos, s.tcp = b[9], b[1], size
		s.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), 0)
		s.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), 0)
	case 6:
		if len(b) < 40 {
			return s, errShort
		}
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return s, errShort
		}
		b = b[:total]
		proto, s.tos, s.tcp = b[6], b[0]<<4|b[1]>>4, 40
		s.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), 0)
		s.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:])), 0)
		var err error
		if proto, s.tcp, err = skipExtensions(b, proto); err != nil {
			return s, err
		}
	default:
		return s, errNotTCP
	}
	if proto != unix.IPPROTO_TCP {
		return s, errNotTCP
	}
	h := b[s.tcp:]
	if len(h) < 20 || int(h[12]>>4)*4 < 20 || int(h[12]>>4)*4 > len(h) {
		return s, errShort
	}
	s.raw = b
	s.src = netip.AddrPortFrom(s.src.Addr(), binary.BigEndian.Uint16(h))
	s.dst = netip.AddrPortFrom(s.dst.Addr(), binary.BigEndian.Uint16(h[2:]))
	s.seq = binary.BigEndian.Uint32(h[4:])
	s.flags = h[13]
	s.data = uint32(len(h) - int(h[12]>>4)*4)

	pseudo := pseudoSum(s.src.Addr(), s.dst.Addr(), unix.IPPROTO_TCP, len(h))
	field := binary.BigEndian.Uint16(h[16:])
	binary.BigEndian.PutUint16(h[16:], 0)
	right := ^fold(sum(pseudo, h))
	if field != right && field != fold(pseudo) {
		binary.BigEndian.PutUint16(h[16:], field)
		return s, errChecksum
	}
	binary.BigEndian.PutUint16(h[16:], right)
	return s, nil
}

// skipExtensions walks the extension headers of an IPv6 packet, RFC 8200
// section 4, as far as a host does before TCP.
func skipExtensions(b []byte, next byte) (proto byte, at int, err error) {
	at = 40
	for range 16 {
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < at+8 {
				return 0, 0, errShort
			}
			size := 8 + 8*int(b[at+1])
			if len(b) < at+size {
				return 0, 0, errShort
			}
			next = b[at]
			at += size
		default: // TCP, another protocol, or a fragment
			return next, at, nil
		}
	}
	return 0, 0, errNotTCP
}

// pseudoSum is the sum of the pseudo header, RFC 9293 section 3.1 and RFC 8200
// section 8.1.
func pseudoSum(src, dst netip.Addr, proto byte, length int) uint32 {
	var s uint32
	if src.Is4() {
		a, b := src.As4(), dst.As4()
		s = sum(sum(0, a[:]), b[:])
	} else {
		a, b := src.As16(), dst.As16()
		s = sum(sum(0, a[:]), b[:])
	}
	return s + uint32(proto) + uint32(length)
}

// sum adds b to a ones' complement sum (RFC 1071). It does not overflow for
// packets: 64 KiB are 32768 words below 2^16.
func sum(s uint32, b []byte) uint32 {
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffffff {
		s = s&0xffff + s>>16
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
