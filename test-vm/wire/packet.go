package wire

import "encoding/binary"

// Segment is what the lab needs to know of a TCP segment in an Ethernet frame.
type Segment struct {
	Options []byte // the TCP options, part of the frame
	Payload int    // bytes of payload by the IP header, also where the frame was cut short
	SYN     bool
	tcp     int // offset of the TCP header
	whole   bool
}

// Protocol numbers and option kinds (IANA).
const (
	ProtoTCP    = 6
	optionEnd   = 0
	optionNOP   = 1
	optionMPTCP = 30
)

// IPProtocol finds the IP header of an Ethernet frame (802.1Q tags are skipped) and the protocol it carries; IPv6 extension
// headers are not followed. ok is false for anything that is no IP packet. payload is the length of what follows the
// header, by the header; offset is where it starts.
func IPProtocol(frame []byte) (proto int, offset, payload int, ok bool) {
	off := 12
	for len(frame) >= off+2 && (frame[off] == 0x81 && frame[off+1] == 0 || frame[off] == 0x88 && frame[off+1] == 0xa8) {
		off += 4
	}
	if len(frame) < off+2 {
		return 0, 0, 0, false
	}
	kind := binary.BigEndian.Uint16(frame[off:])
	p := frame[off+2:]
	switch {
	case kind == 0x0800 && len(p) >= 20 && p[0]>>4 == 4:
		head := int(p[0]&0xf) * 4
		if head < 20 || len(p) < head || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
			return 0, 0, 0, false // nonsense, or not the first fragment
		}
		return int(p[9]), off + 2 + head, max(int(binary.BigEndian.Uint16(p[2:]))-head, 0), true
	case kind == 0x86dd && len(p) >= 40 && p[0]>>4 == 6:
		return int(p[6]), off + 2 + 40, int(binary.BigEndian.Uint16(p[4:])), true
	}
	return 0, 0, 0, false
}

// ParseTCP finds the TCP segment in an Ethernet frame, which may be cut short behind the options.
func ParseTCP(frame []byte) (Segment, bool) {
	proto, off, length, ok := IPProtocol(frame)
	if !ok || proto != ProtoTCP || len(frame) < off+20 {
		return Segment{}, false
	}
	head := int(frame[off+12]>>4) * 4
	if head < 20 || len(frame) < off+head || length < head {
		return Segment{}, false
	}
	return Segment{
		Options: frame[off+20 : off+head],
		Payload: length - head,
		SYN:     frame[off+13]&2 != 0,
		tcp:     off,
		whole:   len(frame) >= off+length,
	}, true
}

// MPTCP tells whether a list of TCP options holds one of MPTCP's (kind 30, RFC 8684).
func MPTCP(options []byte) bool {
	found := false
	eachOption(options, func(kind byte, _ []byte) { found = found || kind == optionMPTCP })
	return found
}

// eachOption calls f with each option, header included, until the list ends or makes no sense.
func eachOption(options []byte, f func(kind byte, option []byte)) {
	for len(options) > 0 {
		switch kind := options[0]; {
		case kind == optionEnd:
			return
		case kind == optionNOP:
			options = options[1:]
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return
		default:
			f(kind, options[:options[1]])
			options = options[options[1]:]
		}
	}
}

// StripMPTCP overwrites MPTCP's options in a frame with no-operation, as middleboxes do (RFC 8684, 3.7), and corrects the
// TCP checksum by what changed (RFC 1624), so that one that was left to the hardware stays so. It tells whether there were any.
func StripMPTCP(frame []byte) bool {
	seg, ok := ParseTCP(frame)
	if !ok {
		return false
	}
	stripped := false
	sum := frame[seg.tcp+16 : seg.tcp+18]
	eachOption(seg.Options, func(kind byte, option []byte) {
		if kind != optionMPTCP {
			return
		}
		stripped = true
		for i := range option {
			at := seg.tcp + 20 + (cap(seg.Options) - cap(option)) + i
			old := word(frame, at)
			option[i] = optionNOP
			binary.BigEndian.PutUint16(sum, adjust(binary.BigEndian.Uint16(sum), old, word(frame, at)))
		}
	})
	return stripped
}

// word is the 16-bit word of the checksum in which the byte at i stands. Headers before it have an even length.
func word(frame []byte, i int) uint16 {
	i &^= 1
	if i+1 >= len(frame) {
		return uint16(frame[i]) << 8
	}
	return binary.BigEndian.Uint16(frame[i:])
}

// adjust is RFC 1624, equation 3.
func adjust(sum, old, new uint16) uint16 {
	s := uint32(^sum) + uint32(^old) + uint32(new)
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}
