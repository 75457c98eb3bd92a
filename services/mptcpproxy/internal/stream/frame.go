package stream

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the trunk protocol. It is the first byte of every
// OPEN; a gateway refuses the versions it does not know.
const Version = 2

// A frame on a trunk is one byte of type, three bytes of length (big endian)
// and that many bytes. A sealed trunk carries the same frames: the length then
// counts the 16 bytes of the tag, and the header is what is authenticated
// beside the contents.
const (
	headerLen = 4
	tagLen    = 16
	// maxSealed is the largest contents of a sealed frame: it must be there in
	// full before a byte of it may be used.
	maxSealed = 64 << 10
	// maxControl is the largest contents of any frame other than DATA.
	maxControl = 4 << 10
	maxData    = 1<<24 - 1
)

type frameType uint8

const (
	frameOpen     frameType = 1  // near: version, flags, flow, RFC 8803 message
	frameOpened   frameType = 2  // far: the sink has accepted
	frameFailed   frameType = 3  // far: it has not, and why; ends the flow
	framePending  frameType = 4  // far: still trying
	frameData     frameType = 5  // bytes of the stream
	frameFin      frameType = 6  // no more bytes this way
	frameReset    frameType = 7  // the host has reset; ends the flow on the sender's side
	frameEnd      frameType = 8  // the flow has ended on the sender's side, all was delivered
	framePark     frameType = 9  // the flow sleeps, the trunk is given back
	frameParked   frameType = 10 // so be it
	frameResume   frameType = 11 // the flow wakes on this trunk: flow, sent, received
	frameResumed  frameType = 12 // so be it
	frameYield    frameType = 13 // far: my RESUME lost against yours, what I sent since is void
	framePing     frameType = 14 // 8 bytes to be sent back
	framePong     frameType = 15
	frameTypesEnd frameType = 16
)

var frameNames = [...]string{"", "OPEN", "OPENED", "OPEN-FAILED", "PENDING", "DATA", "FIN", "RST", "END", "PARK", "PARKED", "RESUME", "RESUMED", "YIELD", "PING", "PONG"}

func (t frameType) String() string {
	if t == 0 || int(t) >= len(frameNames) {
		return fmt.Sprintf("frame type %d", uint8(t))
	}
	return frameNames[t]
}

// ErrProtocol is wrapped by every error about bytes of a trunk that make no
// sense: the peer runs another version or the stream is damaged.
var ErrProtocol = errors.New("trunk protocol violated")

func putHeader(b []byte, t frameType, n int) {
	binary.BigEndian.PutUint32(b, uint32(t)<<24|uint32(n))
}

func appendFrame(b []byte, t frameType, payload ...byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(t)<<24|uint32(len(payload)))
	return append(b, payload...)
}

// parseHeader reads and checks the four bytes before a frame's contents.
func parseHeader(b []byte, sealed bool) (t frameType, n int, err error) {
	v := binary.BigEndian.Uint32(b)
	t, n = frameType(v>>24), int(v&maxData)
	if t == 0 || t >= frameTypesEnd {
		return 0, 0, fmt.Errorf("%w: unknown %v with %d bytes: does the other gateway run a newer version?", ErrProtocol, t, n)
	}
	limit := maxControl
	if t == frameData {
		limit = maxData
		if sealed {
			limit = maxSealed
		}
	}
	if sealed {
		limit += tagLen
		if n < tagLen {
			return 0, 0, fmt.Errorf("%w: sealed %v of %d bytes has no room for its tag", ErrProtocol, t, n)
		}
	}
	if n > limit {
		return 0, 0, fmt.Errorf("%w: %v of %d bytes, at most %d are allowed", ErrProtocol, t, n, limit)
	}
	return t, n, nil
}

// seal protects the frames of one direction of a trunk.
type seal struct {
	aead  cipher.AEAD
	nonce [12]byte
	salt  uint64
	count uint64
}

func newSeal(a cipher.AEAD, salt [12]byte) *seal {
	if a == nil {
		return nil
	}
	return &seal{aead: a, nonce: salt, salt: binary.BigEndian.Uint64(salt[4:])}
}

func (s *seal) next() []byte {
	binary.BigEndian.PutUint64(s.nonce[4:], s.salt^s.count)
	s.count++
	return s.nonce[:]
}

// seal encrypts the frame b (header and contents) in place; b has tagLen bytes
// of capacity to spare, and is returned longer by them.
func (s *seal) seal(b []byte) []byte {
	t, n := frameType(b[0]), len(b)-headerLen
	putHeader(b, t, n+tagLen)
	return s.aead.Seal(b[:headerLen], s.next(), b[headerLen:], b[:headerLen])
}

// open decrypts the frame b in place and returns its contents.
func (s *seal) open(b []byte) ([]byte, error) {
	p, err := s.aead.Open(b[headerLen:headerLen], s.next(), b[headerLen:], b[:headerLen])
	if err != nil {
		return nil, fmt.Errorf("%w: frame %d does not verify: the stream was changed or the keys differ", ErrProtocol, s.count-1)
	}
	return p, nil
}

// appendSealed appends the plain frames in src to dst, sealed one by one.
func (s *seal) appendSealed(dst, src []byte) []byte {
	for len(src) >= headerLen {
		n := headerLen + int(binary.BigEndian.Uint32(src)&maxData)
		at := len(dst)
		dst = append(dst, src[:n]...)
		dst = append(dst, make([]byte, tagLen)...)
		s.seal(dst[at : at+n])
		src = src[n:]
	}
	return dst
}

// resume is the contents of RESUME: which flow, and how many bytes the sender
// has sent before and received, so that bytes lost or sent twice with a dead
// trunk are noticed. Each RESUME of a flow has a number of its own, and names
// the last one of the other side that its sender has followed: so one that was
// given up, for another one or because both sides resumed at once, is known
// however late it comes.
type resume struct {
	flow, sent, received uint64
	turn, seen           uint32
}

const resumeLen = 32

func (r resume) append(b []byte) []byte {
	b = append(b, byte(frameResume), 0, 0, resumeLen)
	b = binary.BigEndian.AppendUint64(b, r.flow)
	b = binary.BigEndian.AppendUint64(b, r.sent)
	b = binary.BigEndian.AppendUint64(b, r.received)
	b = binary.BigEndian.AppendUint32(b, r.turn)
	return binary.BigEndian.AppendUint32(b, r.seen)
}

func parseResume(p []byte) (resume, error) {
	if len(p) != resumeLen {
		return resume{}, fmt.Errorf("%w: RESUME of %d bytes, expected %d", ErrProtocol, len(p), resumeLen)
	}
	return resume{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:]),
		binary.BigEndian.Uint32(p[24:]), binary.BigEndian.Uint32(p[28:])}, nil
}

// older compares numbers of RESUME, which begin again at 0 some day.
func older(a, b uint32) bool { return int32(a-b) < 0 }
