package udpflow

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

// ICMP numbers, RFC 792 and RFC 4443.
const (
	icmpUnreachable4  = 3
	icmpTimeExceeded4 = 11
	icmpUnreachable6  = 1
	icmpTooBig6       = 2
	icmpTimeExceeded6 = 3

	codeNet4 = 0
	codeFrag = 4 // IPv4: fragmentation needed
	codeNet6 = 0 // no route
)

// appendICMP appends a whole IP packet that tells the client of tu about an
// error on its packet of size bytes of payload.
func appendICMP(b []byte, tu tuple, e icmpError, size int) []byte {
	if tu.client.Addr().Is4() {
		return appendICMP4(b, tu, e, size)
	}
	return appendICMP6(b, tu, e, size)
}

func appendICMP4(b []byte, tu tuple, e icmpError, size int) []byte {
	start := len(b)
	// The error's IP header, the ICMP header, the packet's IP header, its UDP header.
	b = append(b, make([]byte, 20+8+20+8)...)
	p := b[start:]
	header4(p, e.offender, tu.client.Addr(), unix.IPPROTO_ICMP, len(p))
	ic := p[20:]
	ic[0], ic[1] = e.typ, e.code
	if e.typ == icmpUnreachable4 && e.code == codeFrag {
		binary.BigEndian.PutUint16(ic[6:], uint16(min(e.info, 65535))) // RFC 1191: next-hop MTU
	}
	header4(ic[8:], tu.client.Addr(), tu.dst.Addr(), unix.IPPROTO_UDP, min(65535, 28+size))
	udp := ic[28:]
	binary.BigEndian.PutUint16(udp, tu.client.Port())
	binary.BigEndian.PutUint16(udp[2:], tu.dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(min(65535, 8+size)))
	binary.BigEndian.PutUint16(ic[2:], ^sum(0, ic))
	return b
}

func header4(p []byte, src, dst netip.Addr, proto byte, length int) {
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	p[6] = 0x40 // DF, as the packet had if it was too big
	p[8], p[9] = 64, proto
	s, d := src.As4(), dst.As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:20]))
}

func appendICMP6(b []byte, tu tuple, e icmpError, size int) []byte {
	start := len(b)
	b = append(b, make([]byte, 40+8+40+8)...)
	p := b[start:]
	header6(p, e.offender, tu.client.Addr(), unix.IPPROTO_ICMPV6, len(p)-40)
	ic := p[40:]
	ic[0], ic[1] = e.typ, e.code
	if e.typ == icmpTooBig6 {
		binary.BigEndian.PutUint32(ic[4:], e.info)
	}
	header6(ic[8:], tu.client.Addr(), tu.dst.Addr(), unix.IPPROTO_UDP, min(65535, 8+size))
	udp := ic[48:]
	binary.BigEndian.PutUint16(udp, tu.client.Port())
	binary.BigEndian.PutUint16(udp[2:], tu.dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(min(65535, 8+size)))
	// Pseudo header, RFC 8200 section 8.1.
	s := sum(uint32(len(ic))+unix.IPPROTO_ICMPV6, p[8:40])
	binary.BigEndian.PutUint16(ic[2:], ^sum(uint32(s), ic))
	return b
}

func header6(p []byte, src, dst netip.Addr, proto byte, length int) {
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(length))
	p[6], p[7] = proto, 64
	s, d := src.As16(), dst.As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
}

// sum is the Internet checksum (RFC 1071), not yet complemented.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// rawSockets send whole IP packets with any source address.
type rawSockets struct{ v4, v6 int }

func openRaw(socket func(domain, typ, proto int) (int, error)) (*rawSockets, error) {
	r := &rawSockets{v4: -1, v6: -1}
	var err error
	if r.v4, err = socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("make a raw socket for ICMP errors (needs CAP_NET_RAW): %w", err)
	}
	if r.v6, err = socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		r.v6 = -1 // a kernel without IPv6 has no IPv6 flows either
	}
	return r, nil
}

// send sends the IP packet b to its destination.
func (r *rawSockets) send(b []byte, to netip.Addr) error {
	fd := r.v4
	if to.Is6() {
		fd = r.v6
	}
	if fd < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.Sendto(fd, b, unix.MSG_DONTWAIT, mmsg.Sockaddr(netip.AddrPortFrom(to, 0), to.Is6()))
}

func (r *rawSockets) close() {
	unix.Close(r.v4)
	if r.v6 >= 0 {
		unix.Close(r.v6)
	}
}
