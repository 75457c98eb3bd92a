package datagram

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

func TestHeaderKeepsItsFields(t *testing.T) {
	for _, h := range []header{
		{flags: flagSilent, path: 3, session: 1 << 63, seq: 1<<40 + 5, ts: 77},
		{flags: flagAck | flagReply, path: 255, session: 5, seq: 1, ts: 1 << 31, ack: ack{1, 2, 3, 4, 5, 6, 7}},
	} {
		b := make([]byte, h.size()+tagLen)
		h.put(b)
		got, err := parseHeader(b)
		if err != nil || got != h {
			t.Errorf("%+v became %+v, %v", h, got, err)
		}
		for n := range len(b) {
			if _, err := parseHeader(b[:n]); err == nil && n < h.size()+tagLen {
				t.Errorf("%d of %d bytes are taken for a packet", n, len(b))
			}
		}
	}
}

// The bytes of a packet are a promise to other versions.
func TestPacketBytes(t *testing.T) {
	h := header{flags: flagActive, path: 2, session: 0x0102030405060708, seq: 0x1112131415161718, ts: 0x21222324}
	b := make([]byte, headerLen, headerLen+frameLen+2)
	h.put(b)
	b = b[:headerLen+frameLen]
	putFrame(b[headerLen:], ClassIP, true, 0x0203, 0x31323334, 2)
	b = append(b, "hi"...)
	want := []byte{0x11, 8, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
		0x19, 2, 3, 0x31, 0x32, 0x33, 0x34, 0, 2, 'h', 'i'}
	if !bytes.Equal(b, want) {
		t.Errorf("got  %x\nwant %x", b, want)
	}
}

func TestSealedPacketsOpenOnlyUnchanged(t *testing.T) {
	for _, encrypt := range []bool{false, true} {
		near, err := newCrypt(testKey, 9, true, encrypt)
		if err != nil {
			t.Fatal(err)
		}
		far, err := newCrypt(testKey, 9, false, encrypt)
		if err != nil {
			t.Fatal(err)
		}
		other, err := newCrypt(testKey, 10, false, encrypt)
		if err != nil {
			t.Fatal(err)
		}
		var n [12]byte
		seal := func() []byte {
			h := header{flags: flagAck, path: 1, session: 9, seq: 4, ack: ack{seq: 7}}
			b := make([]byte, h.size(), 200)
			h.put(b)
			return near.sealPacket(append(b, "secret payload"...), &n)
		}
		b := seal()
		if got := bytes.Contains(b, []byte("secret")); got == encrypt {
			t.Errorf("encrypt %v: payload readable %v", encrypt, got)
		}
		open := func(c *crypt, b []byte) error {
			h, err := parseHeader(b)
			if err != nil {
				return err
			}
			body, err := c.openPacket(&h, b, &n)
			if err == nil && string(body) != "secret payload" {
				t.Errorf("opened as %q", body)
			}
			return err
		}
		if err := open(far, bytes.Clone(b)); err != nil {
			t.Errorf("encrypt %v: %v", encrypt, err)
		}
		if open(other, bytes.Clone(b)) == nil || open(near, bytes.Clone(b)) == nil {
			t.Errorf("encrypt %v: opened with the key of another session or direction", encrypt)
		}
		for i := range len(b) * 8 {
			c := bytes.Clone(b)
			c[i/8] ^= 1 << (i % 8)
			if open(far, c) == nil {
				t.Errorf("encrypt %v: opened with bit %d changed", encrypt, i)
			}
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x10, 0, 1, 0, 0, 0, 2, 0, 3, 'a', 'b', 'c', 0x20, 0, 1, 0, 0, 0, 2, 0, 1, 0, 0, 0, 5, 'x', 0})
	f.Add([]byte{0x30, 1, 1, 2, 'p', 0x40, 5, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		// Whatever an authentic peer sends, the core survives it.
		c := newCore(false, 1, 0, DuplicateOff, 0, func(*path, packet) {})
		p := c.addPath(1, 0)
		for seq := uint64(1); seq < 4; seq++ {
			h := header{path: 1, session: 1, seq: seq, flags: byte(len(b)) &^ flagAck}
			c.receive(time.Duration(seq), time.Duration(seq), p, &h, bytes.Clone(b), len(b)+headerLen)
			c.run(time.Duration(seq))
			for _, d := range c.in.out {
				if len(d.data) > maxPayload {
					t.Errorf("payload of %d bytes", len(d.data))
				}
			}
		}
		if c.pieces.bytes > wholeBytes+maxPayload || c.in.bytes > heldBytes {
			t.Errorf("%d bytes of pieces and %d of waiting payloads", c.pieces.bytes, c.in.bytes)
		}
		for rest := b; ; {
			fr, next, ok, err := nextFrame(rest)
			if err != nil || !ok {
				break
			}
			if len(next) >= len(rest) {
				t.Fatal("no progress")
			}
			if fr.offset+len(fr.data) > max(fr.total, len(fr.data)) {
				t.Errorf("piece %d+%d of %d", fr.offset, len(fr.data), fr.total)
			}
			rest = next
		}
	})
}

func FuzzHeader(f *testing.F) {
	b := make([]byte, headerLen+ackLen+tagLen)
	h := header{flags: flagAck, session: 1, seq: 1}
	h.put(b)
	f.Add(b)
	f.Add(b[:headerLen])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		out := make([]byte, h.size())
		h.put(out)
		if !bytes.Equal(out, b[:len(out)]) {
			t.Errorf("%x read and written is %x", b[:len(out)], out)
		}
	})
}

func TestReplayWindow(t *testing.T) {
	var w replayWindow
	seen := map[uint64]bool{}
	r := rand.New(rand.NewPCG(3, 4))
	top := uint64(0)
	for range 200000 {
		seq := top + uint64(r.IntN(40))
		if r.IntN(3) == 0 && top > 100 {
			seq = top - uint64(r.IntN(100))
		}
		if r.IntN(5000) == 0 {
			seq = top + uint64(r.IntN(3*replayBits))
		}
		want := seq != 0 && !seen[seq] && (seq > top || top-seq < replayBits)
		if got := w.accept(seq); got != want {
			t.Fatalf("sequence %d after %d: accepted %v, want %v", seq, top, got, want)
		}
		if want {
			seen[seq] = true
		}
		top = max(top, seq)
	}
}
