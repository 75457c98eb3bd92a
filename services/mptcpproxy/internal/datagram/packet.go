package datagram

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A packet is one UDP payload; all numbers are big-endian:
//
//	 0      version (1) << 4 | kind (1 = packet)
//	 1      flags, see below
//	 2      path id, chosen by the near gateway
//	 3      0
//	 4..11  session id
//	12..19  sequence of this path and direction, from 1, never repeated
//	20..23  time of sending in microseconds of the sender's clock
//	[24..51 acknowledgement, with flagAck:
//	 24..27 largest sequence received on this path (low 32 bits)
//	 28..31 its time of sending, echoed
//	 32..35 microseconds between its arrival and this packet
//	 36..39 its time of arrival in microseconds of this sender's clock
//	 40..43 packets received on this path so far (low 32 bits)
//	 44..47 bytes of UDP payload received on this path so far (low 32 bits)
//	 48..51 smallest (arrival - sending) since the last acknowledgement]
//	frames, encrypted if the session is
//	16 bytes of AES-128-GCM tag over everything before
//
// The nonce is the path id, three zero bytes and the sequence. Each direction
// has a key of its own, derived by HKDF-SHA256 from the session's key with the
// session id as salt.
//
// Frames follow one another; the first byte is kind << 4 | class:
//
//	0 padding up to the end of the packet
//	1 payload: lane u16, sequence in the lane u32, length u16, bytes
//	2 piece of a payload: lane u16, sequence u32, length u16, offset u16,
//	  length of the whole less 1 u16, bytes
//	3 path: length u8 of the name, backup u8, weight u8, name
//	4 answer to flagSize: size of the UDP payload that arrived, u16
//
// In frames 1 and 2 the bit 8 of the class says that the payload is sent on
// more than one path. A lane is a flow hash modulo the number of lanes; order
// and duplicates are kept per lane.
const (
	version1   = 1
	kindPacket = 1

	headerLen   = 24
	ackLen      = 28
	tagLen      = 16
	frameLen    = 9
	fragmentLen = 13

	lanes       = 1024
	maxPayload  = 65535
	maxPathName = 63
)

// Flags of the header.
const (
	flagAck    = 1 << iota // the acknowledgement follows
	flagReply              // answer at once
	flagSilent             // nothing of yours has reached me on this path of late
	flagActive             // please send probes fast
	flagFast               // I send probes fast
	flagSize               // answer with a frame that tells the size of this packet
)

const (
	framePad = iota
	framePayload
	frameFragment
	framePath
	frameSize
)

const dupBit = 8

var (
	errShort   = errors.New("packet too short")
	errVersion = errors.New("not a packet of this protocol")
	errFrame   = errors.New("frame does not fit its packet")
)

// header is the part of a packet that is never encrypted.
type header struct {
	flags   byte
	path    uint8
	session uint64
	seq     uint64
	ts      uint32
	ack     ack // with flagAck
}

type ack struct {
	seq, echo, hold, arrival, count, bytes, minOWD uint32
}

// size of the header in bytes.
func (h *header) size() int {
	if h.flags&flagAck != 0 {
		return headerLen + ackLen
	}
	return headerLen
}

// put writes the header to the start of b, which has room for h.size().
func (h *header) put(b []byte) {
	b[0], b[1], b[2], b[3] = version1<<4|kindPacket, h.flags, h.path, 0
	binary.BigEndian.PutUint64(b[4:], h.session)
	binary.BigEndian.PutUint64(b[12:], h.seq)
	binary.BigEndian.PutUint32(b[20:], h.ts)
	if h.flags&flagAck != 0 {
		a := b[headerLen : headerLen+ackLen]
		binary.BigEndian.PutUint32(a[0:], h.ack.seq)
		binary.BigEndian.PutUint32(a[4:], h.ack.echo)
		binary.BigEndian.PutUint32(a[8:], h.ack.hold)
		binary.BigEndian.PutUint32(a[12:], h.ack.arrival)
		binary.BigEndian.PutUint32(a[16:], h.ack.count)
		binary.BigEndian.PutUint32(a[20:], h.ack.bytes)
		binary.BigEndian.PutUint32(a[24:], h.ack.minOWD)
	}
}

// parseHeader reads the header of packet b, which includes the tag.
func parseHeader(b []byte) (h header, err error) {
	if len(b) < headerLen+tagLen {
		return h, errShort
	}
	if b[0] != version1<<4|kindPacket || b[3] != 0 {
		return h, errVersion
	}
	h.flags, h.path = b[1], b[2]
	h.session = binary.BigEndian.Uint64(b[4:])
	h.seq = binary.BigEndian.Uint64(b[12:])
	h.ts = binary.BigEndian.Uint32(b[20:])
	if h.flags&flagAck != 0 {
		if len(b) < headerLen+ackLen+tagLen {
			return h, errShort
		}
		a := b[headerLen : headerLen+ackLen]
		h.ack = ack{
			seq:     binary.BigEndian.Uint32(a[0:]),
			echo:    binary.BigEndian.Uint32(a[4:]),
			hold:    binary.BigEndian.Uint32(a[8:]),
			arrival: binary.BigEndian.Uint32(a[12:]),
			count:   binary.BigEndian.Uint32(a[16:]),
			bytes:   binary.BigEndian.Uint32(a[20:]),
			minOWD:  binary.BigEndian.Uint32(a[24:]),
		}
	}
	return h, nil
}

// frame is one of the frames of a packet; which fields are set depends on the
// kind.
type frame struct {
	kind   byte
	class  Class
	dup    bool
	lane   uint16
	seq    uint32
	offset int
	total  int
	data   []byte // payload or name
	backup bool
	weight uint8
	size   int
}

// nextFrame takes the first frame off b. ok is false at the end.
func nextFrame(b []byte) (f frame, rest []byte, ok bool, err error) {
	if len(b) == 0 || b[0]>>4 == framePad {
		return f, nil, false, nil
	}
	f.kind = b[0] >> 4
	switch f.kind {
	case framePayload, frameFragment:
		n := frameLen
		if f.kind == frameFragment {
			n = fragmentLen
		}
		if len(b) < n {
			return f, nil, false, errFrame
		}
		f.class, f.dup = Class(b[0]&7), b[0]&dupBit != 0
		f.lane = binary.BigEndian.Uint16(b[1:])
		f.seq = binary.BigEndian.Uint32(b[3:])
		length := int(binary.BigEndian.Uint16(b[7:]))
		f.total = length
		if f.kind == frameFragment {
			f.offset = int(binary.BigEndian.Uint16(b[9:]))
			f.total = int(binary.BigEndian.Uint16(b[11:])) + 1
		}
		if int(f.lane) >= lanes || len(b) < n+length || f.offset+length > f.total || f.total > maxPayload ||
			f.kind == frameFragment && length == 0 {
			return f, nil, false, errFrame
		}
		f.data, rest = b[n:n+length:n+length], b[n+length:]
	case framePath:
		if len(b) < 4 || len(b) < 4+int(b[1]) || b[1] > maxPathName {
			return f, nil, false, errFrame
		}
		n := 4 + int(b[1])
		f.backup, f.weight, f.data, rest = b[2] != 0, b[3], b[4:n:n], b[n:]
	case frameSize:
		if len(b) < 3 {
			return f, nil, false, errFrame
		}
		f.size, rest = int(binary.BigEndian.Uint16(b[1:])), b[3:]
	default:
		return f, nil, false, errFrame
	}
	return f, rest, true, nil
}

// putFrame writes the header of a payload frame to b.
func putFrame(b []byte, c Class, dup bool, lane uint16, seq uint32, length int) {
	b[0] = framePayload<<4 | byte(c)
	if dup {
		b[0] |= dupBit
	}
	binary.BigEndian.PutUint16(b[1:], lane)
	binary.BigEndian.PutUint32(b[3:], seq)
	binary.BigEndian.PutUint16(b[7:], uint16(length))
}

// putFragment writes the header of a piece to b.
func putFragment(b []byte, c Class, dup bool, lane uint16, seq uint32, length, offset, total int) {
	putFrame(b, c, dup, lane, seq, length)
	b[0] = frameFragment<<4 | b[0]&0xf
	binary.BigEndian.PutUint16(b[9:], uint16(offset))
	binary.BigEndian.PutUint16(b[11:], uint16(total-1))
}

// crypt seals the packets of one direction and opens those of the other.
type crypt struct {
	seal, open cipher.AEAD
	encrypt    bool
}

// newCrypt derives the keys of both directions.
func newCrypt(key [32]byte, session uint64, near, encrypt bool) (*crypt, error) {
	salt := binary.BigEndian.AppendUint64(nil, session)
	var a [2]cipher.AEAD
	for i, dir := range []string{"near to far", "far to near"} {
		k, err := hkdf.Key(sha256.New, key[:], salt, "weft datagram 1 "+dir, 16)
		if err != nil {
			return nil, fmt.Errorf("derive the key %s: %w", dir, err)
		}
		block, err := aes.NewCipher(k)
		if err != nil {
			return nil, fmt.Errorf("AES key %s: %w", dir, err)
		}
		if a[i], err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("AES-GCM %s: %w", dir, err)
		}
	}
	if near {
		return &crypt{seal: a[0], open: a[1], encrypt: encrypt}, nil
	}
	return &crypt{seal: a[1], open: a[0], encrypt: encrypt}, nil
}

func nonce(n *[12]byte, path uint8, seq uint64) {
	n[0], n[1], n[2], n[3] = path, 0, 0, 0
	binary.BigEndian.PutUint64(n[4:], seq)
}

// sealPacket turns b, a header followed by frames, into a packet in place; b
// has tagLen bytes of spare capacity.
func (c *crypt) sealPacket(b []byte, n *[12]byte) []byte {
	nonce(n, b[2], binary.BigEndian.Uint64(b[12:]))
	if !c.encrypt {
		return c.seal.Seal(b, n[:], nil, b)
	}
	hl := headerLen
	if b[1]&flagAck != 0 {
		hl += ackLen
	}
	return c.seal.Seal(b[:hl], n[:], b[hl:], b[:hl])
}

// openPacket authenticates b, decrypts it in place and returns the frames.
func (c *crypt) openPacket(h *header, b []byte, n *[12]byte) ([]byte, error) {
	nonce(n, h.path, h.seq)
	hl := h.size()
	if !c.encrypt {
		body := len(b) - tagLen
		if _, err := c.open.Open(nil, n[:], b[body:], b[:body]); err != nil {
			return nil, err
		}
		return b[hl:body], nil
	}
	return c.open.Open(b[hl:hl], n[:], b[hl:], b[:hl])
}

// micros is a point in time as it travels in packets.
func micros(t time.Duration) uint32 { return uint32(t / time.Microsecond) }

// replayWindow remembers which of the last sequences of a path have come.
type replayWindow struct {
	top  uint64 // largest so far
	bits [replayBits / 64]uint64
}

// replayBits covers 20 ms at 100,000 packets per second, a power of two.
const replayBits = 4096

// accept reports whether seq is new, and remembers it.
func (w *replayWindow) accept(seq uint64) bool {
	if seq == 0 {
		return false
	}
	if seq > w.top {
		if seq-w.top >= replayBits {
			clear(w.bits[:])
		} else {
			for s := w.top + 1; s < seq; s++ {
				w.bits[s%replayBits/64] &^= 1 << (s % 64)
			}
		}
		w.top = seq
	} else {
		if w.top-seq >= replayBits {
			return false
		}
		if w.bits[seq%replayBits/64]&(1<<(seq%64)) != 0 {
			return false
		}
	}
	w.bits[seq%replayBits/64] |= 1 << (seq % 64)
	return true
}
