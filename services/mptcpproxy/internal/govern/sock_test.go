package govern

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is an MPTCP connection over loopback.
func pair(t *testing.T) (a, b *net.TCPConn, fd int) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	a, b = c.(*net.TCPConn), s.(*net.TCPConn)
	rc, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(f uintptr) { fd = int(f) })
	return a, b, fd
}

func congestion(t *testing.T, fd int) string {
	t.Helper()
	s, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(s, "\x00")
}

func TestRegisterSetsCongestion(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("setting any congestion control needs root")
	}
	_, _, fd := pair(t)
	for _, want := range []string{"auto", "reno"} {
		g, err := New(Options{Congestion: want})
		if err != nil {
			t.Fatal(err)
		}
		g.Register(fd, "exit1")
		if want == "auto" {
			want = "cubic"
		}
		if got := congestion(t, fd); got != want {
			t.Errorf("congestion control %s, want %s", got, want)
		}
		g.Unregister(fd)
		g.Unregister(fd)
	}
	if _, err := New(Options{Congestion: "nonsense"}); err == nil || !strings.Contains(err.Error(), "cubic") {
		t.Errorf("unknown algorithm: %v, want an error that lists the known ones", err)
	}
}

// What a round sees of a real connection.
func TestRoundSamples(t *testing.T) {
	a, b, fd := pair(t)
	g, err := New(Options{NotSentLowat: 131072})
	if err != nil {
		t.Fatal(err)
	}
	g.Register(fd, "exit1")
	now := time.Now()
	buf := make([]byte, 64<<10)
	for range 3 {
		now = now.Add(bucket)
		g.round(now)
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(buf); {
			k, err := b.Read(buf[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	}
	// Bytes are acknowledged after they were read, so look until they are.
	for deadline := time.Now().Add(20 * time.Second); ; {
		now = now.Add(bucket)
		g.round(now)
		if s := g.PathStats(); len(s) == 1 && s[0].Rate > 0 && s[0].MinRTT > 0 && s[0].Subflows == 1 && s[0].Limit == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("stats %+v", s)
		}
		if _, err := a.Write(buf[:1000]); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	g.SetBusy(fd, false)
	g.SetBusy(fd, false)
	if g.busy != 1 {
		t.Errorf("%d busy: a young connection is to be looked at", g.busy)
	}
	now = time.Now().Add(youngFor + time.Minute)
	g.round(now)
	if g.busy != 0 {
		t.Errorf("%d busy, though no flow has used it", g.busy)
	}
	g.SetBusy(fd, true)
	g.SetBusy(fd, true)
	if g.busy != 1 {
		t.Errorf("%d busy, with a flow", g.busy)
	}
	g.SetBusy(fd, false)
	g.SetBusy(fd, false)
	if g.busy != 0 {
		t.Errorf("%d busy, after the flow", g.busy)
	}
	g.Unregister(fd)
	g.round(now.Add(bucket))
	if len(g.order) != 0 || len(g.socks) != 0 {
		t.Error("the connection is still known")
	}
}

func TestBoundIsSetAndTakenBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a send buffer beyond net.core.wmem_max needs root")
	}
	_, _, fd := pair(t)
	g, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	g.Register(fd, "exit1")
	s := g.socks[fd]
	size := func() int {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if size() != roomSlow {
		t.Errorf("buffer of %d bytes at first, want %d", size(), roomSlow)
	}
	gr := g.group("exit1")
	now := time.Now()
	g.paths[pathKey{peer: "exit1"}] = &path{seen: now}
	gr.active, gr.limit, gr.reviewed = true, 40000, now
	s.bulk = now
	g.decide(now)
	if size() != 40000 || !s.limited {
		t.Errorf("buffer of %d bytes, want 40000", size())
	}
	gr.release()
	g.decide(now)
	if size() != roomSlow || s.limited {
		t.Errorf("buffer of %d bytes after the bound went, want %d", size(), roomSlow)
	}
}
