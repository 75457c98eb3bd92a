package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/convert"
	"weft/services/mptcpproxy/internal/transparent"
)

// openMessage is the contents of OPEN: version, a byte of flags (none yet), the
// flow's number, chosen by near, and a Convert message with the destination,
// the client's address and the Framed element.
type openMessage struct {
	flow     uint64
	src, dst netip.AddrPort
}

func (m openMessage) append(b []byte) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, Version, 0)
	b = binary.BigEndian.AppendUint64(b, m.flow)
	c := convert.Message{Has: convert.HasConnect | convert.HasClient | convert.HasFramed, Connect: m.dst, Client: m.src, Framing: Version}
	b, _ = c.Append(b) // too long is impossible: three elements of fixed size
	putHeader(b[at:], frameOpen, len(b)-at-headerLen)
	return b
}

func parseOpen(p []byte) (openMessage, error) {
	if len(p) < 10 {
		return openMessage{}, fmt.Errorf("%w: OPEN of %d bytes, expected at least 10", ErrProtocol, len(p))
	}
	if p[0] != Version {
		return openMessage{}, fmt.Errorf("%w: OPEN of version %d, this gateway speaks %d: update the older one", ErrProtocol, p[0], Version)
	}
	m := openMessage{flow: binary.BigEndian.Uint64(p[2:])}
	var c convert.Message
	if _, err := convert.Parse(p[10:], &c); err != nil {
		return openMessage{}, fmt.Errorf("%w: OPEN: %w", ErrProtocol, err)
	}
	if want := convert.HasConnect | convert.HasClient | convert.HasFramed; c.Has&want != want {
		return openMessage{}, fmt.Errorf("%w: OPEN lacks the destination, the client or the framing", ErrProtocol)
	}
	if c.Framing != Version {
		return openMessage{}, fmt.Errorf("%w: OPEN asks for framing %d, this gateway speaks %d: update the older one", ErrProtocol, c.Framing, Version)
	}
	m.src, m.dst = c.Client, c.Connect
	return m, nil
}

// Errors have numbers of their own on the wire: those of errno differ between
// processor architectures.
var failures = [...]unix.Errno{
	0:  unix.EIO, // anything else
	1:  unix.ECONNREFUSED,
	2:  unix.ECONNRESET,
	3:  unix.ETIMEDOUT,
	4:  unix.EHOSTUNREACH,
	5:  unix.ENETUNREACH,
	6:  unix.ENOPROTOOPT,
	7:  unix.EMSGSIZE,
	8:  unix.EOPNOTSUPP,
	9:  unix.EHOSTDOWN,
	10: unix.ENONET,
	11: unix.EACCES, // refused by the far side's rules
	12: unix.EADDRNOTAVAIL,
	13: unix.EMFILE, // out of resources
	14: unix.ECONNABORTED,
	15: unix.EPROTO,
	16: unix.EADDRINUSE,
	17: unix.EPERM,
}

// appendFailed appends an OPEN-FAILED frame: kind, flag (1: ICMP), ICMP type
// and code, then 0, 4 or 16 bytes of the offender's address.
func appendFailed(b []byte, err error) []byte {
	var ce transparent.ConnectError
	var errno unix.Errno
	if p := (*transparent.ConnectError)(nil); errors.As(err, &p) {
		ce = *p
	} else if errors.As(err, &errno) {
		ce.Errno = errno
	}
	p := [20]byte{0, 0, ce.ICMPType, ce.ICMPCode}
	for i, e := range failures {
		if e == ce.Errno {
			p[0] = byte(i)
		}
	}
	n := 4
	if ce.ICMP {
		p[1] = 1
	}
	if ce.Offender.IsValid() {
		n += copy(p[4:], ce.Offender.Unmap().AsSlice())
	}
	return appendFrame(b, frameFailed, p[:n]...)
}

func parseFailed(p []byte) (*transparent.ConnectError, error) {
	if len(p) != 4 && len(p) != 8 && len(p) != 20 {
		return nil, fmt.Errorf("%w: OPEN-FAILED of %d bytes, expected 4, 8 or 20", ErrProtocol, len(p))
	}
	ce := &transparent.ConnectError{Errno: unix.EIO, ICMP: p[1]&1 != 0, ICMPType: p[2], ICMPCode: p[3]}
	if int(p[0]) < len(failures) {
		ce.Errno = failures[p[0]]
	}
	ce.Offender, _ = netip.AddrFromSlice(p[4:])
	return ce, nil
}
