package stream

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/transparent"
)

func TestOpenMessage(t *testing.T) {
	for _, m := range []openMessage{
		{1, netip.MustParseAddrPort("192.168.1.2:40000"), netip.MustParseAddrPort("192.0.2.9:443")},
		{1 << 63, netip.MustParseAddrPort("[fd01::2]:1"), netip.MustParseAddrPort("[fd02::2]:65535")},
	} {
		b := m.append(nil)
		ft, n, err := parseHeader(b, false)
		if ft != frameOpen || n != len(b)-headerLen || err != nil {
			t.Fatalf("header %v %d %v", ft, n, err)
		}
		got, err := parseOpen(b[headerLen:])
		if err != nil || got != m {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
		b[headerLen] = Version + 1
		if _, err := parseOpen(b[headerLen:]); !errors.Is(err, ErrProtocol) {
			t.Errorf("another version: %v", err)
		}
	}
}

func TestFailedMessage(t *testing.T) {
	for _, ce := range []transparent.ConnectError{
		{Errno: unix.ECONNREFUSED},
		{Errno: unix.ETIMEDOUT},
		{Errno: unix.EHOSTUNREACH, ICMP: true, ICMPType: 3, ICMPCode: 1, Offender: netip.MustParseAddr("10.0.0.1")},
		{Errno: unix.ENETUNREACH, ICMP: true, ICMPType: 1, ICMPCode: 0, Offender: netip.MustParseAddr("fd00::1")},
	} {
		b := appendFailed(nil, &ce)
		got, err := parseFailed(b[headerLen:])
		if err != nil || *got != ce {
			t.Errorf("%+v came back as %+v, %v", ce, got, err)
		}
	}
	if got, err := parseFailed(appendFailed(nil, errors.New("strange"))[headerLen:]); err != nil || got.Errno != unix.EIO {
		t.Errorf("an error without a number: %v, %v", got, err)
	}
}

func TestHeader(t *testing.T) {
	for _, c := range []struct {
		b      []byte
		sealed bool
		ok     bool
	}{
		{[]byte{5, 0xff, 0xff, 0xff}, false, true},
		{[]byte{5, 0x01, 0x00, 0x11}, true, false}, // 64 KiB + 17
		{[]byte{5, 0x01, 0x00, 0x10}, true, true},
		{[]byte{6, 0, 0, 15}, true, false}, // no room for the tag
		{[]byte{1, 0, 0x10, 0x01}, false, false},
		{[]byte{0, 0, 0, 0}, false, false},
		{[]byte{16, 0, 0, 0}, false, false},
		{[]byte{0x16, 3, 1, 2}, false, false}, // TLS
	} {
		_, _, err := parseHeader(c.b, c.sealed)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("% x sealed %v: %v", c.b, c.sealed, err)
		}
	}
}

func TestSeal(t *testing.T) {
	salt := [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}
	s, o := newSeal(testAEAD(1), salt), newSeal(testAEAD(1), salt)
	plain := appendFrame(appendFrame(nil, frameData, []byte("hello")...), frameFin)
	b := s.appendSealed(nil, plain)
	if want := len(plain) + 2*tagLen; len(b) != want {
		t.Fatalf("%d bytes, expected %d", len(b), want)
	}
	n := headerLen + 5 + tagLen
	again := bytes.Clone(b[:n])
	if p, err := o.open(b[:n]); err != nil || string(p) != "hello" {
		t.Fatalf("%q %v", p, err)
	}
	if _, err := o.open(again); !errors.Is(err, ErrProtocol) {
		t.Errorf("a repeated frame: %v", err)
	}
	o = newSeal(testAEAD(1), salt)
	again[0] = byte(frameFin)
	if _, err := o.open(again); !errors.Is(err, ErrProtocol) {
		t.Errorf("a frame with another type: %v", err)
	}
}

// FuzzTrunk feeds a trunk with whatever a peer may send, in pieces: the engine
// may close the trunk, nothing else.
func FuzzTrunk(f *testing.F) {
	open := openMessage{7, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")}.append(nil)
	f.Add(open, uint8(0), true)
	f.Add(append(append(open, appendFrame(nil, frameData, []byte("x")...)...), appendFrame(nil, frameFin)...), uint8(3), false)
	f.Add(resume{flow: 7, turn: 1}.append(nil), uint8(1), true)
	f.Add(append(append(open, appendFrame(nil, framePark)...), resume{flow: 7, turn: 1}.append(nil)...), uint8(0), false)
	f.Add(append(appendFrame(nil, framePing, 1, 2, 3, 4, 5, 6, 7, 8), appendFrame(nil, frameYield)...), uint8(5), true)
	f.Add(appendFailed(nil, unix.ECONNREFUSED), uint8(2), true)
	f.Fuzz(func(t *testing.T, in []byte, cut uint8, near bool) {
		e, err := New(Options{Loops: 1,
			Connect: func(_, _ netip.AddrPort, _ string) (int, error) {
				return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			},
			Finish: func(int) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		l := e.loops[0]
		if err := l.open(); err != nil {
			t.Fatal(err)
		}
		defer l.stop()
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[1])
		e.AddTrunk(Trunk{FD: p[0], Peer: "p", Near: near, ID: 1})
		if near {
			e.Open("p", netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), nil)
		}
		l.runPosts()
		l.flush()
		in = in[:min(len(in), 1<<16)]
		for len(in) > 0 && len(l.trunk) > 0 {
			n := min(len(in), 1+int(cut))
			if cut > 100 {
				n = len(in)
			}
			unix.Sendto(p[1], in[:n], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
			in = in[n:]
			for tr := range l.trunk {
				tr.readable = true
				tr.event(nil)
			}
			l.runPosts()
			for fl := range l.flows {
				fl.host.readable, fl.host.writable = true, true
				fl.event(nil)
			}
			l.flush()
		}
		for tr := range l.trunk {
			tr.tick()
		}
		if e.buffered.Load() < 0 {
			t.Errorf("%d bytes held", e.buffered.Load())
		}
	})
}
