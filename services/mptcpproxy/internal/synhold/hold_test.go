package synhold

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/intercept/bed"

	"weft/services/mptcpproxy/internal/transparent"
)

// eventually waits for something that will be.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !yes(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 20 s: %s", what)
		}
	}
}

var sink = netip.MustParseAddrPort("192.168.2.2:80")

func begin(t *testing.T, b *bed.Bed, from string, dst netip.AddrPort) int {
	t.Helper()
	var fd int
	err := b.In("client", func() (err error) {
		fd, err = transparent.Connect(netip.MustParseAddrPort(from), dst, 0)
		return
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestTroubleFailOpen routes what the far side cannot be asked for.
func TestTroubleFailOpen(t *testing.T) {
	b := bed.New(t)
	l := listen(t, b, "sink", "[::]:80")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	p, _ := start(t, b, intercept.Options{Syn: intercept.HoldAll}, Options{})
	p.instead(func(src, dst netip.AddrPort, result func(error)) func() {
		b.In("gw", func() error { result(errors.New("no peer")); return nil })
		return nil
	})
	for _, dst := range []string{"192.168.2.2:80", "[fd02::2]:80"} {
		o, fd, err := try(b, netip.MustParseAddrPort(dst), 20*time.Second)
		if err != nil || fd < 0 {
			t.Errorf("%s: %+v, %v, expected a connection past the proxy", dst, o, err)
			continue
		}
		unix.Close(fd)
	}
	if s := p.hold.Stats(); s.Passed != 2 || s.Opened != 0 {
		t.Errorf("%+v", s)
	}
	// The same, closed.
	p.hold.SetFailClosed(true)
	o, _, err := try(b, sink, 20*time.Second)
	if want := (outcome{Err: unix.ENETUNREACH, ICMP: "type 3 code 0 from 192.168.1.1"}); err != nil || o != want {
		t.Errorf("fail-closed: %+v, %v, expected %+v", o, err, want)
	}
}

// TestClientGivesUp cancels by RST, by another attempt and by time.
func TestClientGivesUp(t *testing.T) {
	b := bed.New(t)
	p, _ := start(t, b, intercept.Options{Syn: intercept.HoldAll}, Options{AcceptWithin: time.Millisecond})
	var results []func(error)
	p.instead(func(src, dst netip.AddrPort, result func(error)) func() {
		p.mu.Lock()
		results = append(results, result)
		p.mu.Unlock()
		return func() {
			p.mu.Lock()
			p.cancels++
			p.mu.Unlock()
		}
	})
	count := func() (asked, cancelled int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(results), p.cancels
	}
	fd := begin(t, b, "192.168.1.2:41000", sink)
	eventually(t, "the far side is asked", func() bool { a, _ := count(); return a == 1 })
	unix.Close(fd)
	// A new attempt from the same port, with another sequence number.
	fd = begin(t, b, "192.168.1.2:41000", sink)
	defer unix.Close(fd)
	eventually(t, "the first attempt is cancelled, the second asked for", func() bool {
		a, c := count()
		return a == 2 && c == 1
	})
	// The first's result comes late and has no effect.
	p.mu.Lock()
	late, now := results[0], results[1]
	p.mu.Unlock()
	late(nil)
	late(&transparent.ConnectError{Errno: unix.ECONNREFUSED})
	if s := p.hold.Stats(); s.Opened != 0 || s.Refused != 0 || s.Held != 1 {
		t.Errorf("after a late result: %+v", s)
	}
	now(&transparent.ConnectError{Errno: unix.ECONNREFUSED})
	eventually(t, "the client is refused", func() bool {
		return errors.Is(transparent.Finish(fd), unix.ECONNREFUSED)
	})
	// RST of a client in the middle of it: one with a wrong sequence number, which
	// anybody could send, then the right one.
	inject(t, b, synFor("192.168.1.2:41001", sink.String(), flagSYN, ""))
	eventually(t, "the far side is asked", func() bool { a, _ := count(); return a == 3 })
	rst := synFor("192.168.1.2:41001", sink.String(), flagRST, "")
	inject(t, b, reseq(rst, 0x12345678+9))
	inject(t, b, reseq(rst, 0x12345678+1))
	eventually(t, "the RST cancels", func() bool { _, c := count(); return c == 2 })
	// An opened flow that is not accepted in time: the client does not know that it
	// has sent a SYN, so it resets.
	inject(t, b, synFor("192.168.1.2:41002", sink.String(), flagSYN, ""))
	eventually(t, "the far side is asked", func() bool { a, _ := count(); return a == 4 })
	p.mu.Lock()
	now = results[3]
	p.mu.Unlock()
	now(nil)
	eventually(t, "what is not accepted is cancelled", func() bool { _, c := count(); return c == 3 })
	if s := p.hold.Stats(); s.Held != 0 || s.Cancelled != 3 {
		t.Errorf("%+v", s)
	}
}

// inject sends a packet as the client does.
func inject(t *testing.T, b *bed.Bed, packet []byte) {
	t.Helper()
	err := b.In("client", func() error {
		r, err := openRaw()
		if err != nil {
			return err
		}
		defer r.close()
		return r.send(packet, sink.Addr())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reseq changes the sequence number of an IPv4 packet without IP options.
func reseq(packet []byte, seq uint32) []byte {
	p := append([]byte(nil), packet...)
	binary.BigEndian.PutUint32(p[24:], seq)
	binary.BigEndian.PutUint16(p[36:], 0)
	binary.BigEndian.PutUint16(p[36:], ^fold(sum(pseudoSum(netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), unix.IPPROTO_TCP, len(p)-20), p[20:])))
	return p
}

// TestFlood holds no more than it may, and the rest by the fail mode.
func TestFlood(t *testing.T) {
	b := bed.New(t)
	p, _ := start(t, b, intercept.Options{Syn: intercept.HoldAll}, Options{MaxHeld: 200, MaxPerClient: 50, FailClosed: true})
	p.instead(func(src, dst netip.AddrPort, result func(error)) func() { return nil })
	send := func(clients, ports int) {
		t.Helper()
		err := b.In("client", func() error {
			r, err := openRaw()
			if err != nil {
				return err
			}
			defer r.close()
			for c := range clients {
				for port := range ports {
					src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(2 + c)}), uint16(20000+port))
					for { // the socket does not block
						err := r.send(synFor(src.String(), sink.String(), flagSYN, ""), sink.Addr())
						if err == nil {
							break
						}
						if err != unix.EAGAIN && err != unix.ENOBUFS {
							return err
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	settled := func(syns uint64) Stats {
		t.Helper()
		eventually(t, "all SYNs are seen", func() bool { s := p.hold.Stats(); return s.SYNs+s.Lost >= syns })
		return p.hold.Stats()
	}
	send(1, 80)
	if s := settled(80); s.Held != 50 || s.Dropped != 30 {
		t.Errorf("one client: %+v, expected 50 held, 30 dropped", s)
	}
	send(10, 80) // the first 80 are retransmissions
	s := settled(880)
	if s.Held != 200 || s.Retransmitted != 50 {
		t.Errorf("ten clients: %+v, expected 200 held, 50 retransmitted", s)
	}
}

// TestRate lets only so many new flows in.
func TestRate(t *testing.T) {
	h := Hold{o: Options{Rate: 10}, tokens: 10}
	now := time.Unix(1000, 0)
	h.refill = now
	admitted := func(at time.Duration) (n int) {
		for range 100 {
			if h.admit(now.Add(at)) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		at   time.Duration
		want int
	}{{0, 10}, {500 * time.Millisecond, 5}, {550 * time.Millisecond, 0}, {600 * time.Millisecond, 1}, {time.Minute, 10}} {
		if got := admitted(c.at); got != c.want {
			t.Errorf("after %v: %d admitted, expected %d", c.at, got, c.want)
		}
	}
}

// TestEnd gives up what is held when Run ends, and leaves no device.
func TestEnd(t *testing.T) {
	b := bed.New(t)
	p, stop := start(t, b, intercept.Options{Syn: intercept.HoldAll}, Options{})
	asked := make(chan bool, 1)
	cancelled := make(chan bool, 1)
	p.instead(func(src, dst netip.AddrPort, result func(error)) func() {
		asked <- true
		return func() { cancelled <- true }
	})
	fd := begin(t, b, "192.168.1.2:41000", sink)
	defer unix.Close(fd)
	<-asked
	stop()
	<-cancelled
	if links := b.Run("gw", "ip", "link"); strings.Contains(links, intercept.InjectDevice) || strings.Contains(links, intercept.PassDevice) {
		t.Errorf("the TUN devices are still there:\n%s", links)
	}
}
