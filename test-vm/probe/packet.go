package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// packet is the head of each one: what the flow is, then number and time of sending. The server learns from it what it
// is to send itself.
//
//	0 magic u32 | 4 way u8 (0 up, 1 down, 2 both, 3 end, 4 report) | 8 rate u64 | 16 duration u64 (ns) | 24 number u64 | 32 time i64 (ns)
const (
	packetHead  = 40
	packetMagic = 0x77656674
)

const (
	wayUp = iota
	wayDown
	wayBoth
	wayEnd
)

func head(way byte, rate int, d time.Duration, number int, at time.Time) []byte {
	b := make([]byte, packetHead)
	binary.BigEndian.PutUint32(b, packetMagic)
	b[4] = way
	binary.BigEndian.PutUint64(b[8:], uint64(rate))
	binary.BigEndian.PutUint64(b[16:], uint64(d))
	binary.BigEndian.PutUint64(b[24:], uint64(number))
	binary.BigEndian.PutUint64(b[32:], uint64(at.UnixNano()))
	return b
}

// stream is what a receiver counted. The clocks of two guests differ: delays are those added to the shortest one.
type stream struct {
	Sent      int     `json:"sent"`
	Received  int     `json:"received"` // without duplicates
	Duplicate int     `json:"duplicate"`
	Reordered int     `json:"reordered"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	Gap       float64 `json:"gap_ms"` // longest time without a packet
}

type counter struct {
	mu       sync.Mutex
	seen     map[uint64]bool
	delays   []int64
	highest  uint64
	dup, ooo int
	last     time.Time
	gap      time.Duration
}

func (c *counter) packet(b []byte, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = map[uint64]bool{}
	}
	n := binary.BigEndian.Uint64(b[24:])
	if c.seen[n] {
		c.dup++
		return
	}
	c.seen[n] = true
	if n < c.highest {
		c.ooo++
	}
	c.highest = max(c.highest, n)
	c.delays = append(c.delays, now.UnixNano()-int64(binary.BigEndian.Uint64(b[32:])))
	if !c.last.IsZero() {
		c.gap = max(c.gap, now.Sub(c.last))
	}
	c.last = now
}

func (c *counter) result(sent int) stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := stream{Sent: sent, Received: len(c.delays), Duplicate: c.dup, Reordered: c.ooo, Gap: c.gap.Seconds() * 1e3}
	if len(c.delays) > 0 {
		d := slices.Clone(c.delays)
		slices.Sort(d)
		at := func(q float64) float64 { return float64(d[int(q*float64(len(d)-1))]-d[0]) / 1e6 }
		s.P50, s.P99 = at(0.5), at(0.99)
	}
	return s
}

// pace sends packets of size bytes at a rate (bit/s of payload) and returns how many went out.
func pace(write func([]byte) error, way byte, rate, size int, d time.Duration) int {
	size = max(size, packetHead)
	b := make([]byte, size)
	each := time.Duration(float64(size) * 8 / float64(rate) * float64(time.Second))
	start := time.Now()
	n := 0
	for {
		due := start.Add(time.Duration(n) * each)
		if due.Sub(start) >= d {
			return n
		}
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		copy(b, head(way, rate, d, n, time.Now()))
		if err := write(b); err == nil || !errors.Is(err, unix.ENOBUFS) {
			n++ // counted as sent also when the network said no: it was to be delivered
		}
	}
}

// endpoint opens "udp:PORT" or "ip:PROTOCOL" on addr.
func endpoint(network, addr string, listen bool) (net.PacketConn, net.Addr, error) {
	kind, number, ok := strings.Cut(network, ":")
	n, err := strconv.Atoi(number)
	a, err2 := netip.ParseAddr(addr)
	if !ok || err != nil || err2 != nil || kind != "udp" && kind != "ip" {
		return nil, nil, fmt.Errorf("%s %s: want udp:PORT or ip:PROTOCOL and an address", network, addr)
	}
	v := "4"
	local := "0.0.0.0"
	if a.Is6() {
		v, local = "6", "::"
	}
	if kind == "udp" {
		var remote net.Addr = &net.UDPAddr{IP: a.AsSlice(), Port: n}
		la := &net.UDPAddr{IP: net.ParseIP(local)}
		if listen {
			la = &net.UDPAddr{IP: a.AsSlice(), Port: n}
		}
		c, err := net.ListenUDP("udp"+v, la)
		if err == nil {
			c.SetReadBuffer(4 << 20)
		}
		return c, remote, err
	}
	if listen {
		local = addr
	}
	c, err := net.ListenIP("ip"+v+":"+number, &net.IPAddr{IP: net.ParseIP(local)})
	if err == nil {
		c.SetReadBuffer(4 << 20)
	}
	return c, &net.IPAddr{IP: a.AsSlice()}, err
}

// report is what the server answers at the end.
func report(b []byte, s stream) []byte {
	binary.BigEndian.PutUint64(b[8:], uint64(s.Sent))
	out := append([]byte(nil), b[:packetHead]...)
	out[4] = 4
	return fmt.Appendf(out, "%d %d %d %d %f %f %f", s.Sent, s.Received, s.Duplicate, s.Reordered, s.P50, s.P99, s.Gap)
}

func packetServer(network, addr string) error {
	c, _, err := endpoint(network, addr, true)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	type client struct {
		counter
		started bool
		sent    int
	}
	clients := map[string]*client{}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		now := time.Now()
		if err != nil {
			return err
		}
		b := buf[:n]
		if n < packetHead || binary.BigEndian.Uint32(b) != packetMagic {
			continue
		}
		key := from.String()
		cl := clients[key]
		if cl == nil {
			cl = &client{}
			clients[key] = cl
		}
		switch way := b[4]; way {
		case wayEnd:
			cl.mu.Lock()
			sent := cl.sent
			cl.mu.Unlock()
			c.WriteTo(report(b, cl.result(sent)), from)
		case wayDown, wayBoth:
			if !cl.started {
				cl.started = true
				rate, d, size := int(binary.BigEndian.Uint64(b[8:])), time.Duration(binary.BigEndian.Uint64(b[16:])), n
				go func() {
					sent := pace(func(p []byte) error { _, err := c.WriteTo(p, from); return err }, way, rate, size, d)
					cl.mu.Lock()
					cl.sent = sent
					cl.mu.Unlock()
				}()
			}
			if way == wayDown {
				continue
			}
			fallthrough
		case wayUp:
			cl.packet(b, now)
		}
	}
}

// packets is the result of a packet check.
type packets struct {
	Up   *stream `json:"up,omitempty"`
	Down *stream `json:"down,omitempty"`
}

func packetClient(network, addr string, rate, size int, d time.Duration, way string) error {
	c, remote, err := endpoint(network, addr, false)
	if err != nil {
		return err
	}
	defer c.Close()
	number, ok := map[string]byte{"up": wayUp, "down": wayDown, "both": wayBoth}[way]
	if !ok || rate <= 0 {
		return fmt.Errorf("%s at %d bit/s: want up, down or both, and a rate", way, rate)
	}
	var down counter
	reports := make(chan []byte, 1)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			now := time.Now()
			if err != nil {
				return
			}
			if n < packetHead || binary.BigEndian.Uint32(buf) != packetMagic || !sameHost(from, remote) {
				continue
			}
			if buf[4] == 4 {
				select {
				case reports <- append([]byte(nil), buf[packetHead:n]...):
				default:
				}
				continue
			}
			down.packet(buf[:n], now)
		}
	}()
	write := func(p []byte) error { _, err := c.WriteTo(p, remote); return err }
	sent := 0
	if number == wayDown {
		// The request, until the answer begins.
		deadline := time.Now().Add(patience)
		b := make([]byte, max(size, packetHead))
		for time.Now().Before(deadline) {
			copy(b, head(wayDown, rate, d, 0, time.Now()))
			write(b)
			time.Sleep(100 * time.Millisecond)
			down.mu.Lock()
			begun := len(down.delays) > 0
			down.mu.Unlock()
			if begun {
				break
			}
		}
		time.Sleep(d)
	} else {
		sent = pace(write, number, rate, size, d)
	}
	time.Sleep(500 * time.Millisecond) // what is still under way
	var text []byte
	for try := 0; try < 40 && text == nil; try++ {
		write(head(wayEnd, rate, d, 0, time.Now()))
		select {
		case text = <-reports:
		case <-time.After(250 * time.Millisecond):
		}
	}
	if text == nil {
		return errors.New("the server does not answer: nothing was delivered, or nothing comes back")
	}
	var s stream
	if _, err := fmt.Sscanf(string(text), "%d %d %d %d %f %f %f", &s.Sent, &s.Received, &s.Duplicate, &s.Reordered, &s.P50, &s.P99, &s.Gap); err != nil {
		return fmt.Errorf("the server's report %q: %w", text, err)
	}
	var out packets
	if number != wayDown {
		up := s
		up.Sent = sent
		out.Up = &up
	}
	if number != wayUp {
		r := down.result(s.Sent)
		out.Down = &r
	}
	return print(out)
}

func sameHost(a, b net.Addr) bool {
	host := func(x net.Addr) string {
		switch x := x.(type) {
		case *net.UDPAddr:
			return x.IP.String()
		case *net.IPAddr:
			return x.IP.String()
		}
		return ""
	}
	return host(a) == host(b)
}

// sctpSocket is a one-to-one SCTP socket (RFC 6458, section 4).
func sctpSocket(addr string, port int) (int, unix.Sockaddr, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return 0, nil, err
	}
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: [4]byte(a.AsSlice()[:4])}
	if a.Is6() {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return 0, nil, fmt.Errorf("SCTP socket: %w (the kernel or the image lacks the module sctp)", err)
	}
	return fd, sa, nil
}

// sctpServer gives back what it gets, one association after another.
func sctpServer(addr string, port int) error {
	fd, sa, err := sctpSocket(addr, port)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(conn), "sctp")
		io.Copy(f, f)
		f.Close()
	}
}

func sctpClient(addr string, port, size int) error {
	fd, sa, err := sctpSocket(addr, port)
	if err != nil {
		return err
	}
	tv := unix.NsecToTimeval(int64(patience))
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)); err != nil {
		return err
	}
	start := time.Now()
	if err := unix.Connect(fd, sa); err != nil {
		return fmt.Errorf("SCTP to %s:%d: %w", addr, port, err)
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close()
	sent := random(size)
	failed := make(chan error, 1)
	go func() {
		for b := sent; len(b) > 0; {
			n, err := f.Write(b[:min(len(b), 1<<15)]) // a message has to fit the send buffer
			if err != nil {
				failed <- err
				return
			}
			b = b[n:]
		}
		failed <- nil
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(f, got); err != nil {
		return fmt.Errorf("read back over SCTP: %w", err)
	}
	if err := <-failed; err != nil {
		return fmt.Errorf("write over SCTP: %w", err)
	}
	if !slices.Equal(got, sent) {
		return errors.New("what came back over SCTP differs")
	}
	return print(map[string]any{"bytes": size, "seconds": time.Since(start).Seconds()})
}
