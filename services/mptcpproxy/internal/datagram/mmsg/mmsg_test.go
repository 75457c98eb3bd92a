package mmsg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// sockets makes two UDP sockets on loopback and returns the second's address.
func sockets(t *testing.T) (a, b int, to netip.AddrPort) {
	t.Helper()
	open := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	a, b = open(), open()
	sa, err := unix.Getsockname(b)
	if err != nil {
		t.Fatal(err)
	}
	return a, b, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

func TestBatchesArriveAsSent(t *testing.T) {
	a, b, to := sockets(t)
	for _, opt := range [][2]int{{unix.SOL_IP, unix.IP_RECVTTL}, {unix.SOL_IP, unix.IP_RECVTOS}, {unix.SOL_IP, unix.IP_PKTINFO}, {unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW}} {
		if err := unix.SetsockoptInt(b, opt[0], opt[1], 1); err != nil {
			t.Fatal(err)
		}
	}
	w := NewWriter(4, 8)
	var sent [][]byte
	for i := range 4 {
		d := bytes.Repeat([]byte{byte(i)}, i*10)
		w.Add(d, to, false)
		w.SetInt(unix.SOL_IP, unix.IP_TTL, 10+i)
		w.SetInt(unix.SOL_IP, unix.IP_TOS, 4*i)
		sent = append(sent, d)
	}
	if !w.Full() || w.Len() != 4 {
		t.Errorf("full %v with %d messages, want 4", w.Full(), w.Len())
	}
	if n := w.Send(a, nil); n != 4 || w.Len() != 0 {
		t.Fatalf("sent %d, %d left", n, w.Len())
	}
	r := NewReader(8, 2000)
	n, err := r.Read(b)
	if err != nil || n != 4 {
		t.Fatalf("received %d, %v", n, err)
	}
	for i := range n {
		m := r.Message(i)
		if !bytes.Equal(m.Data, sent[i]) || m.TTL != 10+i || m.TOS != 4*i || m.Local != to.Addr() || m.Stamp.IsZero() || m.From.Addr() != to.Addr() {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	if _, err := r.Read(b); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read of an empty socket: %v, want EAGAIN", err)
	}
}

func TestSegmentsAreCutAndPutTogether(t *testing.T) {
	a, b, to := sockets(t)
	w := NewWriter(2, 8)
	w.Add(bytes.Repeat([]byte{1}, 100), to, false)
	w.Append(bytes.Repeat([]byte{2}, 100))
	w.Append(bytes.Repeat([]byte{3}, 30))
	w.SetSegment(100)
	if w.Pieces(0) != 3 {
		t.Errorf("%d pieces, want 3", w.Pieces(0))
	}
	if n := w.Send(a, func(_ int, err error) bool { t.Log(err); return false }); n != 1 {
		t.Skip("this kernel does not segment UDP")
	}
	r := NewReader(8, 2000)
	n, err := r.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for i := range n {
		sizes = append(sizes, len(r.Message(i).Data))
	}
	if !slices.Equal(sizes, []int{100, 100, 30}) {
		t.Errorf("datagrams of %v bytes, want 100, 100, 30", sizes)
	}
}

func TestRefusedMessagesAreAskedAbout(t *testing.T) {
	a, _, to := sockets(t)
	w := NewWriter(3, 3)
	for i := range 3 {
		n := 10
		if i == 1 {
			n = 70000 // more than UDP takes
		}
		w.Add(make([]byte, n), to, false)
	}
	var asked []int
	n := w.Send(a, func(i int, err error) bool {
		asked = append(asked, i)
		if !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("message %d: %v", i, err)
		}
		return false
	})
	if n != 2 || !slices.Equal(asked, []int{1}) {
		t.Errorf("sent %d, asked about %v, want 2 and [1]", n, asked)
	}
}

func FuzzParseControl(f *testing.F) {
	b := make([]byte, unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(4)))
	f.Add(b)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := ParseControl(b)
		if c.Err != nil && c.Err.Offender.Is4In6() {
			t.Errorf("mapped address %v", c.Err.Offender)
		}
	})
}

func TestSockaddr(t *testing.T) {
	for _, s := range []string{"1.2.3.4:5678", "[fd01::2]:80"} {
		a := netip.MustParseAddrPort(s)
		for _, v6 := range []bool{true, false} {
			if !v6 && a.Addr().Is6() {
				continue
			}
			var raw unix.RawSockaddrInet6
			PutSockaddr(&raw, a, v6)
			if got := sockaddr(&raw); got != a {
				t.Errorf("%v through IPv6 %v became %v", a, v6, got)
			}
		}
	}
}
