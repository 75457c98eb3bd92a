package dnsd

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/miekg/dns"
)

// Header bits (RFC 1035, 4.1.1; RFC 2535, 6.1).
const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4

	opcodeMask = 0xf << 11
	rcodeMask  = 0xf

	headerLen = 12
	optLen    = 11 // an OPT record without options
	maxName   = 255
)

// query is a question as it is on the wire. Its name lies in the message.
type query struct {
	id    uint16
	flags uint16
	name  []byte // wire form, as it was sent
	qtype uint16
	class uint16
	end   int // of the question section

	edns bool
	size int // of the answer the client can take by UDP
	do   bool

	rcode int // not 0: what is wrong with it
}

// errNoQuery is for bytes that do not even deserve an answer.
var errNoQuery = errors.New("not a DNS query")

// parseQuery reads a message from a client. With an error nothing is to be
// answered; otherwise rcode may tell that the answer is an error.
func parseQuery(b []byte, q *query) error {
	if len(b) < headerLen {
		return errNoQuery
	}
	*q = query{id: binary.BigEndian.Uint16(b), flags: binary.BigEndian.Uint16(b[2:]), size: 512}
	if q.flags&flagQR != 0 {
		return errNoQuery
	}
	if q.flags&opcodeMask != 0 {
		q.end, q.rcode = headerLen, dns.RcodeNotImplemented
		return nil
	}
	qd, an, ns, ar := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
	if qd != 1 || an != 0 || ns != 0 || ar > 2 {
		q.end, q.rcode = headerLen, dns.RcodeFormatError
		return nil
	}
	i := headerLen
	for {
		if i >= len(b) || i-headerLen >= maxName {
			q.end, q.rcode = headerLen, dns.RcodeFormatError
			return nil
		}
		n := int(b[i])
		i++
		if n == 0 {
			break
		}
		if n > 63 { // a pointer has nowhere to point to
			q.end, q.rcode = headerLen, dns.RcodeFormatError
			return nil
		}
		i += n
	}
	if i+4 > len(b) || i-headerLen > maxName {
		q.end, q.rcode = headerLen, dns.RcodeFormatError
		return nil
	}
	q.name = b[headerLen:i]
	q.qtype, q.class = binary.BigEndian.Uint16(b[i:]), binary.BigEndian.Uint16(b[i+2:])
	q.end = i + 4
	i = q.end
	for range ar {
		// Only an OPT record is of interest; its owner is the root.
		if i+optLen > len(b) || b[i] != 0 {
			q.rcode = dns.RcodeFormatError
			return nil
		}
		typ, size := binary.BigEndian.Uint16(b[i+1:]), int(binary.BigEndian.Uint16(b[i+3:]))
		version, flags := b[i+6], binary.BigEndian.Uint16(b[i+7:])
		n := int(binary.BigEndian.Uint16(b[i+9:]))
		i += optLen + n
		if i > len(b) {
			q.rcode = dns.RcodeFormatError
			return nil
		}
		if typ != dns.TypeOPT {
			continue // a signature of the transaction, which nobody here can check
		}
		if q.edns {
			q.rcode = dns.RcodeFormatError
			return nil
		}
		q.edns, q.size, q.do = true, max(size, 512), flags&0x8000 != 0
		if version != 0 {
			q.rcode = dns.RcodeBadVers
		}
	}
	return nil
}

// key appends what the answer depends on: the name in small letters, the type,
// and whether DNSSEC is wanted and checked by the client.
func (q *query) key(b []byte) []byte {
	for _, c := range q.name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	bits := byte(0)
	if q.do {
		bits |= 1
	}
	if q.flags&flagCD != 0 {
		bits |= 2
	}
	return append(b, byte(q.qtype>>8), byte(q.qtype), bits)
}

// text is the name in small letters, without the dot at the end; "" is the
// root. ok is false for names with bytes that nothing here deals in.
func (q *query) text() (string, bool) {
	var b strings.Builder
	n := q.name
	for len(n) > 0 && n[0] != 0 {
		l := int(n[0])
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		for _, c := range n[1 : 1+l] {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case c == '.' || c == '\\' || c <= ' ' || c > '~':
				return "", false
			}
			b.WriteByte(c)
		}
		n = n[1+l:]
	}
	return b.String(), true
}

// limit is how large an answer by UDP may be.
func (q *query) limit(most int) int {
	if !q.edns {
		return 512
	}
	return min(q.size, most)
}

// appendError appends an answer without records. b holds the query at the
// beginning of msg.
func (q *query) appendError(out, msg []byte, rcode int, most int) []byte {
	start := len(out)
	out = append(out, msg[:q.end]...)
	h := out[start:]
	binary.BigEndian.PutUint16(h[2:], flagQR|flagRA|q.flags&(opcodeMask|flagRD|flagCD)|uint16(rcode&rcodeMask))
	qd := uint16(1)
	if q.end == headerLen {
		qd = 0
	}
	binary.BigEndian.PutUint16(h[4:], qd)
	clear(h[6:headerLen])
	return q.appendOPT(out, start, rcode, most)
}

// appendOPT ends an answer that starts at start, if the client speaks EDNS.
func (q *query) appendOPT(out []byte, start, rcode, most int) []byte {
	if !q.edns {
		return out
	}
	do := byte(0)
	if q.do {
		do = 0x80
	}
	out = append(out, 0, 0, byte(dns.TypeOPT), byte(most>>8), byte(most), byte(rcode>>4), 0, do, 0, 0, 0)
	h := out[start:]
	binary.BigEndian.PutUint16(h[10:], binary.BigEndian.Uint16(h[10:])+1)
	return out
}

// appendAnswer appends the stored answer wire for q: with the client's id and
// spelling, times to live less by age seconds, and cut to nothing with the TC
// bit if it is longer than limit (0: no limit). ttls are the offsets of the times
// to live in wire; fixed is not 0 for what they shall be instead.
func (q *query) appendAnswer(out, wire []byte, ttls []uint16, age, fixed uint32, limit, most int) []byte {
	start := len(out)
	flags := flagQR | flagRA | q.flags&(flagRD|flagCD)
	stored := binary.BigEndian.Uint16(wire[2:])
	flags |= stored & (flagAA | flagTC | rcodeMask)
	if q.do || q.flags&flagAD != 0 {
		flags |= stored & flagAD // RFC 6840, 5.8
	}
	size := len(wire)
	if q.edns {
		size += optLen
	}
	cut := limit > 0 && size > limit
	if cut {
		out = append(out, wire[:q.end]...)
		flags |= flagTC
	} else {
		out = append(out, wire...)
	}
	h := out[start:]
	binary.BigEndian.PutUint16(h, q.id)
	binary.BigEndian.PutUint16(h[2:], flags)
	copy(h[headerLen:], q.name)
	if cut {
		clear(h[6:headerLen])
	} else {
		for _, at := range ttls {
			t := binary.BigEndian.Uint32(h[at:])
			switch {
			case fixed != 0:
				t = fixed
			case t > age:
				t -= age
			default:
				t = 0
			}
			binary.BigEndian.PutUint32(h[at:], t)
		}
	}
	return q.appendOPT(out, start, 0, most)
}

// skipName returns the offset behind the name at i, or -1.
func skipName(b []byte, i int) int {
	for i < len(b) {
		n := int(b[i])
		switch {
		case n == 0:
			return i + 1
		case n >= 0xc0:
			if i+2 > len(b) {
				return -1
			}
			return i + 2
		case n > 63:
			return -1
		}
		i += 1 + n
	}
	return -1
}

// ttlOffsets finds the times to live in a message with one question and no OPT
// record.
func ttlOffsets(b []byte) ([]uint16, error) {
	bad := errors.New("message is malformed")
	if len(b) < headerLen || len(b) > 65535 {
		return nil, bad
	}
	i := skipName(b, headerLen)
	if i < 0 || i+4 > len(b) {
		return nil, bad
	}
	i += 4
	n := int(binary.BigEndian.Uint16(b[6:])) + int(binary.BigEndian.Uint16(b[8:])) + int(binary.BigEndian.Uint16(b[10:]))
	out := make([]uint16, 0, min(n, 64))
	for range n {
		if i = skipName(b, i); i < 0 || i+10 > len(b) {
			return nil, bad
		}
		out = append(out, uint16(i+4))
		i += 10 + int(binary.BigEndian.Uint16(b[i+8:]))
	}
	if i != len(b) {
		return nil, bad
	}
	return out, nil
}
