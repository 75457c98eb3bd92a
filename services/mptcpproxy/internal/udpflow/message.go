package udpflow

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// A message is one payload of a datagram session, class UDP. Numbers are
// big-endian. The first byte says what it is:
//
//	1 up: flow u32, DSCP and ECN u8, hop limit u8, payload
//	2 up with addresses: flow u32, DSCP and ECN u8, hop limit u8, family u8 (4 or 6),
//	  client's port u16, sink's port u16, client's address, sink's address, payload
//	3 down: flow u32, DSCP and ECN u8, hop limit u8, payload
//	4 error down: flow u32, type u8, code u8, info u32 (MTU, ...), family u8,
//	  address of who sent the ICMP message
//	5 unknown: flow u32; the far side does not have this flow, send its addresses
//	6 end: flow u32; the near side has forgotten the flow
//
// Flow numbers are given by the near side. Addresses go along with the first
// packets of a flow and now and then later, since packets may be lost.
const (
	msgUp = 1 + iota
	msgUpAddrs
	msgDown
	msgError
	msgUnknown
	msgEnd
)

const (
	headUp    = 7
	headAddr4 = headUp + 5 + 8
	headAddr6 = headUp + 5 + 32
)

var errMessage = errors.New("not a message of a UDP flow")

type message struct {
	kind        byte
	flow        uint32
	tos, ttl    uint8
	client, dst netip.AddrPort // msgUpAddrs
	icmp        icmpError      // msgError
	data        []byte
}

// icmpError is what an ICMP message said, with the numbers of the flow's
// address family.
type icmpError struct {
	typ, code uint8
	info      uint32
	offender  netip.Addr
}

// appendHead appends the head of a message that carries m.data.
func (m *message) appendHead(b []byte) []byte {
	b = append(b, m.kind)
	b = binary.BigEndian.AppendUint32(b, m.flow)
	switch m.kind {
	case msgUp, msgDown:
		b = append(b, m.tos, m.ttl)
	case msgUpAddrs:
		b = append(b, m.tos, m.ttl, family(m.client.Addr()))
		b = binary.BigEndian.AppendUint16(b, m.client.Port())
		b = binary.BigEndian.AppendUint16(b, m.dst.Port())
		b = append(b, m.client.Addr().AsSlice()...)
		b = append(b, m.dst.Addr().AsSlice()...)
	case msgError:
		b = append(b, m.icmp.typ, m.icmp.code)
		b = binary.BigEndian.AppendUint32(b, m.icmp.info)
		b = append(b, family(m.icmp.offender))
		b = append(b, m.icmp.offender.AsSlice()...)
	}
	return b
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return 4
	}
	return 6
}

// addrSize is the length of an address of family f, 0 if there is no such.
func addrSize(f byte) int {
	switch f {
	case 4:
		return 4
	case 6:
		return 16
	}
	return 0
}

// parseMessage reads a message; data points into b.
func parseMessage(b []byte) (m message, err error) {
	if len(b) < 5 {
		return m, errMessage
	}
	m.kind, m.flow = b[0], binary.BigEndian.Uint32(b[1:])
	switch m.kind {
	case msgUp, msgDown:
		if len(b) < headUp {
			return m, errMessage
		}
		m.tos, m.ttl, m.data = b[5], b[6], b[headUp:]
	case msgUpAddrs:
		if len(b) < headUp+5 {
			return m, errMessage
		}
		m.tos, m.ttl = b[5], b[6]
		n := addrSize(b[7])
		if n == 0 || len(b) < headUp+5+2*n {
			return m, errMessage
		}
		a := b[headUp+5:]
		client, _ := netip.AddrFromSlice(a[:n])
		dst, _ := netip.AddrFromSlice(a[n : 2*n])
		if client.Is4In6() || dst.Is4In6() {
			return m, errMessage
		}
		m.client = netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[8:]))
		m.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[10:]))
		m.data = a[2*n:]
	case msgError:
		if len(b) < 12 {
			return m, errMessage
		}
		n := addrSize(b[11])
		if n == 0 || len(b) != 12+n {
			return m, errMessage
		}
		m.icmp = icmpError{typ: b[5], code: b[6], info: binary.BigEndian.Uint32(b[7:])}
		m.icmp.offender, _ = netip.AddrFromSlice(b[12:])
		if m.icmp.offender.Is4In6() {
			return m, errMessage
		}
	case msgUnknown, msgEnd:
		if len(b) != 5 {
			return m, errMessage
		}
	default:
		return m, errMessage
	}
	return m, nil
}
