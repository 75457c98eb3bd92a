// Package proxyproto reads and writes the PROXY protocol (HAProxy,
// doc/proxy-protocol.txt): the header before the bytes of a proxied connection
// that tells whose it is. Version 2, binary, is read and written with its
// extra elements and checksum; version 1, a line of text, is read.
//
// Only TCP over IPv4 and IPv6 has addresses here; headers of other kinds
// (UNIX sockets, UDP, UNKNOWN) are understood and come without. The signature
// of TLS termination (PP2_TYPE_SSL) is an element like any other.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"sync"
)

// SignatureV2 begins each header of version 2. It is no text of any protocol.
const SignatureV2 = "\r\n\r\n\x00\r\nQUIT\n"

// Lengths in bytes.
const (
	headLen  = 16  // signature, version and command, family, length
	addrLen4 = 12  // two IPv4 addresses and ports
	addrLen6 = 36  // the same for IPv6
	maxV1    = 107 // a line of version 1, with its CR LF
)

// Type is the kind of an extra element.
type Type uint8

// Elements of version 2, section 2.2.
const (
	TypeALPN      Type = 0x01
	TypeAuthority Type = 0x02
	TypeCRC32C    Type = 0x03
	TypeNoop      Type = 0x04
	TypeUniqueID  Type = 0x05
	TypeSSL       Type = 0x20
	TypeNetNS     Type = 0x30
)

// TLV is one extra element of a version 2 header.
type TLV struct {
	Type  Type
	Value []byte
}

// Header is what one header tells.
type Header struct {
	Version int
	// Local marks a connection that the proxy made for itself (health check);
	// it carries no addresses.
	Local bool
	// Src and Dst are the ends of the proxied TCP connection, both invalid
	// when the header does not tell them.
	Src, Dst netip.AddrPort
	// TLVs is what follows the addresses, as it came: see Header.Each.
	TLVs []byte
}

// Errors of Parse. ErrShort asks for more bytes, the others are final.
var (
	// ErrShort: the bytes so far are the beginning of a header.
	ErrShort = errors.New("PROXY header not complete yet")
	// ErrNone: the bytes are no PROXY header.
	ErrNone = errors.New("no PROXY header")
	// ErrMalformed: it is one, and it is broken.
	ErrMalformed = errors.New("malformed PROXY header")
	// ErrChecksum: its CRC32C is wrong.
	ErrChecksum = errors.New("PROXY header with wrong checksum")
)

// castagnoli is made when it is first used: no other program of the device
// binary shall wait for it.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// AppendV2 writes a version 2 header for a TCP connection behind b: 28 bytes
// for IPv4, 52 for IPv6; where the families differ, IPv4 is mapped into IPv6.
func AppendV2(b []byte, src, dst netip.AddrPort) []byte {
	b, _ = AppendV2TLV(b, src, dst, nil, false)
	return b
}

// AppendV2TLV writes a version 2 header with extra elements, and with a CRC32C
// over all of it behind them if checksum is set. Invalid addresses give a
// header of the command LOCAL. The only error is a header beyond 64 KiB.
func AppendV2TLV(b []byte, src, dst netip.AddrPort, tlvs []TLV, checksum bool) ([]byte, error) {
	start := len(b)
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	b = append(b, SignatureV2...)
	switch {
	case !s.IsValid() || !d.IsValid():
		b = append(b, 0x20, 0x00, 0, 0)
	case s.Is4() && d.Is4():
		b = append(b, 0x21, 0x11, 0, 0)
		a, c := s.As4(), d.As4()
		b = append(append(b, a[:]...), c[:]...)
	default:
		b = append(b, 0x21, 0x21, 0, 0)
		a, c := s.As16(), d.As16()
		b = append(append(b, a[:]...), c[:]...)
	}
	if s.IsValid() && d.IsValid() {
		b = binary.BigEndian.AppendUint16(b, src.Port())
		b = binary.BigEndian.AppendUint16(b, dst.Port())
	}
	for _, t := range tlvs {
		if len(t.Value) > 0xffff {
			return b[:start], fmt.Errorf("PROXY header: element %#02x of %d bytes, at most 65535 fit", uint8(t.Type), len(t.Value))
		}
		b = append(b, byte(t.Type))
		b = binary.BigEndian.AppendUint16(b, uint16(len(t.Value)))
		b = append(b, t.Value...)
	}
	if checksum {
		b = append(b, byte(TypeCRC32C), 0, 4, 0, 0, 0, 0)
	}
	n := len(b) - start - headLen
	if n > 0xffff {
		return b[:start], fmt.Errorf("PROXY header of %d bytes, at most 65535 fit", n)
	}
	binary.BigEndian.PutUint16(b[start+14:], uint16(n))
	if checksum {
		binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[start:], castagnoli()))
	}
	return b, nil
}

// Parse reads a header of either version at the start of b and gives its
// length. It allocates nothing; h.TLVs points into b. A checksum in the header
// is checked.
func Parse(b []byte, h *Header) (n int, err error) {
	*h = Header{}
	k := min(len(b), len(SignatureV2))
	if string(b[:k]) == SignatureV2[:k] {
		return parseV2(b, h)
	}
	k = min(len(b), 6)
	if string(b[:k]) == "PROXY "[:k] {
		return parseV1(b, h)
	}
	return 0, ErrNone
}

func parseV2(b []byte, h *Header) (int, error) {
	if len(b) < headLen {
		return 0, ErrShort
	}
	if b[12]>>4 != 2 {
		return 0, fmt.Errorf("%w: version %d, expected 2", ErrMalformed, b[12]>>4)
	}
	h.Version = 2
	end := headLen + int(binary.BigEndian.Uint16(b[14:]))
	if len(b) < end {
		return 0, ErrShort
	}
	body := b[headLen:end:end]
	switch b[12] & 15 {
	case 0:
		h.Local = true
	case 1:
	default:
		return 0, fmt.Errorf("%w: command %d, expected 0 or 1", ErrMalformed, b[12]&15)
	}
	skip := 0
	switch b[13] >> 4 { // address family
	case 0:
	case 1:
		skip = addrLen4
	case 2:
		skip = addrLen6
	case 3:
		skip = 216 // two paths of UNIX sockets
	default:
		return 0, fmt.Errorf("%w: address family %d", ErrMalformed, b[13]>>4)
	}
	if b[13]&15 > 2 {
		return 0, fmt.Errorf("%w: transport protocol %d", ErrMalformed, b[13]&15)
	}
	if len(body) < skip {
		if !h.Local {
			return 0, fmt.Errorf("%w: %d bytes for addresses that take %d", ErrMalformed, len(body), skip)
		}
		skip = len(body) // the receiver must ignore what LOCAL carries
	}
	if !h.Local {
		switch b[13] {
		case 0x11:
			h.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:]))
			h.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:])), binary.BigEndian.Uint16(body[10:]))
		case 0x21:
			h.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:]))
			h.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[16:])).Unmap(), binary.BigEndian.Uint16(body[34:]))
		}
	}
	h.TLVs = body[skip:]
	if h.Local && b[13] != 0 && skip == len(body) {
		return end, nil
	}
	for rest, at := h.TLVs, headLen+skip; len(rest) > 0; {
		if len(rest) < 3 || len(rest) < 3+int(binary.BigEndian.Uint16(rest[1:])) {
			return 0, fmt.Errorf("%w: element cut off, %d bytes left", ErrMalformed, len(rest))
		}
		l := 3 + int(binary.BigEndian.Uint16(rest[1:]))
		if Type(rest[0]) == TypeCRC32C {
			if l != 7 {
				return 0, fmt.Errorf("%w: checksum of %d bytes, expected 4", ErrMalformed, l-3)
			}
			var zero [4]byte
			sum := crc32.Update(0, castagnoli(), b[:at+3])
			sum = crc32.Update(sum, castagnoli(), zero[:])
			sum = crc32.Update(sum, castagnoli(), b[at+7:end])
			if sum != binary.BigEndian.Uint32(rest[3:]) {
				return 0, ErrChecksum
			}
		}
		rest = rest[l:]
		at += l
	}
	return end, nil
}

// Each calls f for each extra element until it says false.
func (h *Header) Each(f func(TLV) bool) {
	for rest := h.TLVs; len(rest) >= 3; {
		l := 3 + int(binary.BigEndian.Uint16(rest[1:]))
		if l > len(rest) || !f(TLV{Type(rest[0]), rest[3:l:l]}) {
			return
		}
		rest = rest[l:]
	}
}

// parseV1 reads "PROXY TCP4 src dst sport dport CR LF".
func parseV1(b []byte, h *Header) (int, error) {
	h.Version = 1
	end := bytes.IndexByte(b[:min(len(b), maxV1)], '\n')
	if end < 0 {
		if len(b) >= maxV1 {
			return 0, fmt.Errorf("%w: no end of line within %d bytes", ErrMalformed, maxV1)
		}
		return 0, ErrShort
	}
	if b[end-1] != '\r' {
		return 0, fmt.Errorf("%w: line does not end in CR LF", ErrMalformed)
	}
	line := string(b[len("PROXY "):max(end-1, len("PROXY "))])
	if line == "UNKNOWN" || strings.HasPrefix(line, "UNKNOWN ") {
		return end + 1, nil
	}
	f := strings.Split(line, " ")
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return 0, fmt.Errorf("%w: %q, expected TCP4 or TCP6, two addresses and two ports", ErrMalformed, line)
	}
	src, err1 := v1Addr(f[1], f[3], f[0] == "TCP4")
	dst, err2 := v1Addr(f[2], f[4], f[0] == "TCP4")
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	h.Src, h.Dst = src, dst
	return end + 1, nil
}

func v1Addr(host, port string, four bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(host)
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("address %q", host)
	}
	if port == "" || len(port) > 5 || len(port) > 1 && port[0] == '0' {
		return netip.AddrPort{}, fmt.Errorf("port %q", port)
	}
	n := 0
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return netip.AddrPort{}, fmt.Errorf("port %q", port)
		}
		n = 10*n + int(c-'0')
	}
	if n > 0xffff {
		return netip.AddrPort{}, fmt.Errorf("port %q", port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
