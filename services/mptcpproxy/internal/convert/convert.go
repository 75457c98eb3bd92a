// Package convert reads and writes messages of the 0-RTT TCP Convert Protocol,
// version 1 (RFC 8803), and the two private elements that a pair of our own
// gateways adds to them.
//
// A message stands at the very beginning of a byte stream: a fixed header of
// four bytes (version, total length in 32-bit words, magic number), then
// elements of type, length (32-bit words, element header included) and value,
// each padded with zeros to a multiple of four bytes:
//
//	 1  Info                      client: which TCP options do you know?
//	10  Connect                   client: connect me to this address and port
//	20  Extended TCP Header       converter: TCP options the server sent
//	21  Supported TCP Extensions  converter: the answer to Info
//	22  Cookie                    converter gives one, client shows it again
//	30  Error                     converter: why not
//	192 Client Address (ours)     whose connection it is, address and port
//	193 Framed (ours)             what follows are frames of package stream
//
// The message of both directions has one form, [Message]. Appending and
// parsing allocate nothing; slices of a parsed message point into the bytes
// parsed. The package knows nothing of connections: what is sent when, is the
// business of packages stream and carrier.
package convert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Version is the protocol version of RFC 8803.
const Version = 1

// Magic is the number in each fixed header (RFC 8803, section 6.1).
const Magic = 0x2263

// HeaderLen is the length of the fixed header in bytes.
const HeaderLen = 4

// MaxLen is the longest message in bytes: 255 words.
const MaxLen = 255 * 4

// Type tells the elements of a message apart (RFC 8803, section 6.2).
type Type uint8

// The types of RFC 8803 and, from 192 on (private use), our own.
const (
	TypeInfo       Type = 1
	TypeConnect    Type = 10
	TypeExtHeader  Type = 20
	TypeExtensions Type = 21
	TypeCookie     Type = 22
	TypeError      Type = 30
	TypeClient     Type = 192
	TypeFramed     Type = 193
)

// String gives the name of the element.
func (t Type) String() string {
	switch t {
	case TypeInfo:
		return "Info"
	case TypeConnect:
		return "Connect"
	case TypeExtHeader:
		return "Extended TCP Header"
	case TypeExtensions:
		return "Supported TCP Extensions"
	case TypeCookie:
		return "Cookie"
	case TypeError:
		return "Error"
	case TypeClient:
		return "Client Address"
	case TypeFramed:
		return "Framed"
	}
	return fmt.Sprintf("element %d", uint8(t))
}

// Code is the reason in an Error element (RFC 8803, section 6.2.8). It is an
// error itself, so that it can be wrapped and found again with errors.As.
type Code uint8

// The codes of RFC 8803: 0 to 31 the message, 32 to 63 the client, 64 to 95 the
// converter, 96 to 127 the server.
const (
	CodeVersion       Code = 0  // the value lists the versions the converter knows
	CodeMalformed     Code = 1  // the value repeats the message
	CodeUnsupported   Code = 2  // the value repeats the message
	CodeCookie        Code = 3  // the value is the cookie to show next time
	CodeNotAuthorized Code = 32 //
	CodeOption        Code = 33 // the value lists the TCP option kinds
	CodeResources     Code = 64 //
	CodeNetwork       Code = 65 //
	CodeReset         Code = 96 // the server reset the connection
	CodeUnreachable   Code = 97 // the value is the code of the ICMP message
)

// String gives the name of the code.
func (c Code) String() string {
	switch c {
	case CodeVersion:
		return "unsupported version"
	case CodeMalformed:
		return "malformed message"
	case CodeUnsupported:
		return "unsupported message"
	case CodeCookie:
		return "missing cookie"
	case CodeNotAuthorized:
		return "not authorized"
	case CodeOption:
		return "unsupported TCP option"
	case CodeResources:
		return "resources exceeded"
	case CodeNetwork:
		return "network failure"
	case CodeReset:
		return "connection reset by the destination"
	case CodeUnreachable:
		return "destination unreachable"
	}
	return fmt.Sprintf("error %d", uint8(c))
}

// Error makes a Code an error: what the far gateway answered.
func (c Code) Error() string { return "converter: " + c.String() }

// Set says which elements a message has.
type Set uint16

// One bit for each element.
const (
	HasInfo Set = 1 << iota
	HasConnect
	HasExtHeader
	HasExtensions
	HasCookie
	HasError
	HasClient
	HasFramed
)

// Message is one Convert message. Has says which of the fields mean anything.
type Message struct {
	Has Set
	// Connect is the destination; IPv4 travels as ::ffff:a.b.c.d and comes
	// back as IPv4. ConnectOptions are TCP options (kind, length, value) for
	// the connection to it; parsed ones include padding (kind 0, end of list).
	Connect        netip.AddrPort
	ConnectOptions []byte
	// ExtHeader holds the TCP options that the destination sent, padded.
	ExtHeader []byte
	// Extensions are TCP option kinds; parsed ones are without padding.
	Extensions []byte
	// Cookie is opaque; its length is a multiple of four (RFC 8803, 6.2.7).
	Cookie []byte
	// Code and Value of an Error element; parsed values include padding.
	Code  Code
	Value []byte
	// Client is the address and port that the connection belongs to.
	Client netip.AddrPort
	// Framing is the version of the frames that follow; Flags belong to them.
	Framing, Flags uint8
}

// Errors of Parse. ErrShort asks for more bytes, the others are final.
var (
	// ErrShort: the bytes so far are the beginning of a message. Parse gives
	// how many are needed (or 4 as long as the length is unknown).
	ErrShort = errors.New("convert: message not complete yet")
	// ErrVersion: answer with CodeVersion.
	ErrVersion = errors.New("convert: unknown version")
	// ErrMalformed: answer with CodeMalformed, or with nothing when not even
	// the magic number is right.
	ErrMalformed = errors.New("convert: malformed message")
	// ErrUnsupported: an element of a type that is not known here; answer with
	// CodeUnsupported. The known elements have been parsed.
	ErrUnsupported = errors.New("convert: unsupported element")
	// ErrTooLong: what shall be appended exceeds MaxLen.
	ErrTooLong = errors.New("convert: message longer than 1020 bytes")
)

// Len is the number of bytes that Append will write.
func (m *Message) Len() int {
	n := HeaderLen
	if m.Has&HasInfo != 0 {
		n += 4
	}
	if m.Has&HasConnect != 0 {
		n += 20 + pad(len(m.ConnectOptions))
	}
	if m.Has&HasExtHeader != 0 {
		n += 4 + pad(len(m.ExtHeader))
	}
	if m.Has&HasExtensions != 0 {
		n += 4 + pad(len(m.Extensions))
	}
	if m.Has&HasCookie != 0 {
		n += 4 + pad(len(m.Cookie))
	}
	if m.Has&HasError != 0 {
		n += pad(3 + len(m.Value))
	}
	if m.Has&HasClient != 0 {
		n += 20
	}
	if m.Has&HasFramed != 0 {
		n += 4
	}
	return n
}

func pad(n int) int { return (n + 3) &^ 3 }

// Append writes the message behind b. Elements go in the order of their types.
// The only error is ErrTooLong; b is then returned as it came.
func (m *Message) Append(b []byte) ([]byte, error) {
	n := m.Len()
	if n > MaxLen {
		return b, fmt.Errorf("%w: %d bytes", ErrTooLong, n)
	}
	b = append(b, Version, byte(n/4))
	b = binary.BigEndian.AppendUint16(b, Magic)
	if m.Has&HasInfo != 0 {
		b = append(b, byte(TypeInfo), 1, 0, 0)
	}
	if m.Has&HasConnect != 0 {
		b = append(b, byte(TypeConnect), byte(5+pad(len(m.ConnectOptions))/4))
		b = appendAddrPort(b, m.Connect)
		b = appendPadded(b, m.ConnectOptions)
	}
	if m.Has&HasExtHeader != 0 {
		b = append(b, byte(TypeExtHeader), byte(1+pad(len(m.ExtHeader))/4), 0, 0)
		b = appendPadded(b, m.ExtHeader)
	}
	if m.Has&HasExtensions != 0 {
		b = append(b, byte(TypeExtensions), byte(1+pad(len(m.Extensions))/4), 0, 0)
		b = appendPadded(b, m.Extensions)
	}
	if m.Has&HasCookie != 0 {
		b = append(b, byte(TypeCookie), byte(1+pad(len(m.Cookie))/4), 0, 0)
		b = appendPadded(b, m.Cookie)
	}
	if m.Has&HasError != 0 {
		l := pad(3 + len(m.Value))
		b = append(b, byte(TypeError), byte(l/4), byte(m.Code))
		b = append(b, m.Value...)
		for i := 3 + len(m.Value); i < l; i++ {
			b = append(b, 0)
		}
	}
	if m.Has&HasClient != 0 {
		b = append(b, byte(TypeClient), 5)
		b = appendAddrPort(b, m.Client)
	}
	if m.Has&HasFramed != 0 {
		b = append(b, byte(TypeFramed), 1, m.Framing, m.Flags)
	}
	return b, nil
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	b = binary.BigEndian.AppendUint16(b, a.Port())
	x := a.Addr()
	if !x.IsValid() {
		x = netip.IPv6Unspecified()
	}
	ip := x.As16()
	return append(b, ip[:]...)
}

func appendPadded(b, value []byte) []byte {
	b = append(b, value...)
	for i := len(value); i&3 != 0; i++ {
		b = append(b, 0)
	}
	return b
}

// Peek says whether b can be the beginning of a message, and how long that is.
// n is 0 while too few bytes are there to know.
func Peek(b []byte) (n int, err error) {
	if len(b) >= 4 && binary.BigEndian.Uint16(b[2:]) != Magic {
		return 0, fmt.Errorf("%w: magic number %#04x, expected %#04x; the sender does not speak Convert (RFC 8803)", ErrMalformed, binary.BigEndian.Uint16(b[2:]), Magic)
	}
	if len(b) >= 1 && b[0] != Version {
		if len(b) < 4 {
			return 0, nil // only the magic number tells garbage from another version
		}
		return 0, fmt.Errorf("%w %d, expected %d", ErrVersion, b[0], Version)
	}
	if len(b) < 2 {
		return 0, nil
	}
	if b[1] == 0 {
		return 0, fmt.Errorf("%w: total length 0", ErrMalformed)
	}
	if len(b) < 4 {
		return 0, nil
	}
	return int(b[1]) * 4, nil
}

// Parse reads the message at the beginning of b into m and gives its length in
// bytes. With ErrShort, n is the number of bytes needed. Slices in m point into
// b. A message with an element twice, with a length that does not fit, or with
// bits set that shall be zero in an address, is ErrMalformed.
func Parse(b []byte, m *Message) (n int, err error) {
	*m = Message{}
	n, err = Peek(b)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return HeaderLen, ErrShort
	}
	if len(b) < n {
		return n, ErrShort
	}
	var unknown error
	for rest := b[HeaderLen:n]; len(rest) > 0; {
		l := int(rest[1]) * 4
		t := Type(rest[0])
		if l == 0 || l > len(rest) {
			return n, fmt.Errorf("%w: %v of %d bytes, %d are left", ErrMalformed, t, l, len(rest))
		}
		e := rest[:l:l]
		rest = rest[l:]
		var bit Set
		switch t {
		case TypeInfo:
			bit = HasInfo
			if l != 4 {
				return n, wrongLen(t, l, 4)
			}
		case TypeConnect:
			bit = HasConnect
			if l < 20 {
				return n, wrongLen(t, l, 20)
			}
			m.Connect = addrPort(e[2:20])
			m.ConnectOptions = e[20:]
		case TypeExtHeader:
			bit = HasExtHeader
			m.ExtHeader = e[4:]
		case TypeExtensions:
			bit = HasExtensions
			m.Extensions = e[4:]
			for i := len(m.Extensions); i > 0 && m.Extensions[i-1] == 0; i-- {
				m.Extensions = m.Extensions[:i-1]
			}
		case TypeCookie:
			bit = HasCookie
			m.Cookie = e[4:]
		case TypeError:
			bit = HasError
			m.Code = Code(e[2])
			m.Value = e[3:]
		case TypeClient:
			bit = HasClient
			if l != 20 {
				return n, wrongLen(t, l, 20)
			}
			m.Client = addrPort(e[2:20])
		case TypeFramed:
			bit = HasFramed
			if l != 4 {
				return n, wrongLen(t, l, 4)
			}
			m.Framing, m.Flags = e[2], e[3]
		default:
			if unknown == nil {
				unknown = fmt.Errorf("%w: type %d, %d bytes", ErrUnsupported, uint8(t), l)
			}
			continue
		}
		if m.Has&bit != 0 {
			return n, fmt.Errorf("%w: %v twice", ErrMalformed, t)
		}
		m.Has |= bit
	}
	return n, unknown
}

func wrongLen(t Type, got, want int) error {
	return fmt.Errorf("%w: %v of %d bytes, expected %d", ErrMalformed, t, got, want)
}

func addrPort(b []byte) netip.AddrPort {
	a := netip.AddrFrom16([16]byte(b[2:18]))
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b))
}

// ErrorFor gives the Code with which RFC 8803 wants an error of Parse answered,
// and false when nothing shall be answered (the sender does not speak Convert).
func ErrorFor(err error, head []byte) (Code, bool) {
	switch {
	case errors.Is(err, ErrVersion):
		return CodeVersion, true
	case errors.Is(err, ErrUnsupported):
		return CodeUnsupported, true
	case errors.Is(err, ErrMalformed):
		ok := len(head) >= 4 && binary.BigEndian.Uint16(head[2:]) == Magic
		return CodeMalformed, ok
	}
	return 0, false
}
