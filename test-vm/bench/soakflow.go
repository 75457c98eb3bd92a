package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"weft/test-vm/bench/bed"
)

// Ports of the soak at the sink.
const (
	soakPort    = 9000 // TCP and UDP
	closedPort  = 9001
	soakTimeout = 40 * time.Second // without a byte of progress; longer than any pause and any fault
)

var errChanged = errors.New("bytes were changed")

// content is the byte stream of one direction of a flow.
func content(id uint64, down bool) *rand.ChaCha8 {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], id)
	if down {
		seed[8] = 1
	}
	return rand.NewChaCha8(seed)
}

// sendContent writes n bytes of a stream, with a rest in the middle.
func sendContent(ctx context.Context, c *net.TCPConn, id uint64, down bool, n int64, rest time.Duration) error {
	src, buf := content(id, down), make([]byte, 32<<10)
	half := n / 2
	for done := int64(0); done < n; {
		k := min(int64(len(buf)), n-done)
		if done < half {
			k = min(k, half-done)
		} else if rest > 0 {
			if err := pause(ctx, rest); err != nil {
				return err
			}
			rest = 0
		}
		src.Read(buf[:k])
		c.SetWriteDeadline(time.Now().Add(soakTimeout))
		if _, err := c.Write(buf[:k]); err != nil {
			return fmt.Errorf("send after %d of %d bytes: %w", done, n, err)
		}
		done += k
	}
	return nil
}

// checkContent reads a stream to its end and compares it. It returns how many bytes came.
func checkContent(c *net.TCPConn, id uint64, down bool) (int64, error) {
	src, buf, want := content(id, down), make([]byte, 32<<10), make([]byte, 32<<10)
	total := int64(0)
	for {
		c.SetReadDeadline(time.Now().Add(soakTimeout))
		k, err := c.Read(buf)
		src.Read(want[:k])
		if !bytes.Equal(buf[:k], want[:k]) {
			return total, fmt.Errorf("%w between %d and %d", errChanged, total, total+int64(k))
		}
		total += int64(k)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("receive after %d bytes: %w", total, err)
		}
	}
}

// flowEnd does what one end of a flow does: own is what it sends, other what it must receive.
func flowEnd(ctx context.Context, c *net.TCPConn, f flowPlan, client bool) error {
	own, other, first := f.up, f.down, f.order == upFirst
	if !client {
		own, other, first = f.down, f.up, f.order == downFirst
	}
	rest := f.pause
	if !client {
		rest = 0
	}
	resets := f.kind == clientReset && client || f.kind == sinkReset && !client
	isReset := f.kind == clientReset && !client || f.kind == sinkReset && client
	send := func() error {
		if resets {
			if err := sendContent(ctx, c, f.id, !client, own/2, 0); err != nil {
				return err
			}
			c.SetLinger(0)
			return c.Close()
		}
		if err := sendContent(ctx, c, f.id, !client, own, rest); err != nil {
			return err
		}
		return c.CloseWrite()
	}
	receive := func() error {
		n, err := checkContent(c, f.id, client)
		if err == nil && n != other {
			return fmt.Errorf("the end came after %d of %d bytes", n, other)
		}
		return err
	}
	var err error
	switch {
	case f.order == together:
		var sent error
		var wg sync.WaitGroup
		wg.Go(func() { sent = send() })
		err = receive()
		wg.Wait()
		switch {
		case errors.Is(err, errChanged):
		case resets:
			err = sent // what it received before is of no interest
			if gone(sent) {
				err = nil
			}
		case isReset:
			// Its own sending may end in any way; the reset must be seen as one, not as an end.
			if errors.Is(err, syscall.ECONNRESET) || errors.Is(sent, syscall.ECONNRESET) || errors.Is(sent, syscall.EPIPE) {
				err = nil
			} else if err == nil {
				err = errors.New("instead of a reset came the end of all data")
			} else {
				err = fmt.Errorf("instead of a reset: %w", err)
			}
		default:
			err = errors.Join(err, sent)
		}
	case first:
		if err = send(); err == nil {
			err = receive()
		}
	default:
		if err = receive(); err == nil {
			err = send()
		}
	}
	return err
}

// gone tells errors of a connection that the other end had closed.
func gone(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// soakSink serves the flows of a plan.
type soakSink struct {
	flows map[uint64]flowPlan
	mu    sync.Mutex
	ends  map[uint64]chan error // of TCP flows: the sink's verdict
	bad   []strange             // what belongs to no flow
	tcp   []net.Listener
	udp   []*net.UDPConn
	wg    sync.WaitGroup
}

func startSoakSink(ctx context.Context, n *bed.Node, flows []flowPlan) (*soakSink, error) {
	s := &soakSink{flows: map[uint64]flowPlan{}, ends: map[uint64]chan error{}}
	for _, f := range flows {
		s.flows[f.id] = f
		s.ends[f.id] = make(chan error, 1)
	}
	for _, a := range []netip.Addr{bed.Sink4, bed.Sink6} {
		at := netip.AddrPortFrom(a, soakPort)
		err := n.Do(func() error {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(ctx, "tcp", at.String())
			if err != nil {
				return err
			}
			s.tcp = append(s.tcp, l)
			u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err == nil {
				s.udp = append(s.udp, u)
			}
			return err
		})
		if err != nil {
			s.close()
			return nil, fmt.Errorf("start the sink of the soak: %w", err)
		}
	}
	for _, l := range s.tcp {
		s.wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.wg.Go(func() { s.serve(ctx, c.(*net.TCPConn)) })
			}
		})
	}
	for _, u := range s.udp {
		s.wg.Go(func() { s.echo(u) })
	}
	return s, nil
}

func (s *soakSink) close() {
	for _, l := range s.tcp {
		l.Close()
	}
	for _, u := range s.udp {
		u.Close()
	}
	s.wg.Wait()
}

// strange is what a sink sees that no flow's end explains.
type strange struct {
	at  time.Time
	err error
}

func (s *soakSink) strange(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = append(s.bad, strange{time.Now(), err})
}

func (s *soakSink) serve(ctx context.Context, c *net.TCPConn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var head [8]byte
	c.SetReadDeadline(time.Now().Add(soakTimeout))
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return // the flow's other end will tell
	}
	f, ok := s.flows[binary.BigEndian.Uint64(head[:])]
	if !ok {
		s.strange(fmt.Errorf("the sink got a connection of flow %x, which nobody has opened: %w", head, errChanged))
		return
	}
	if f.kind == clientReset {
		// A reset may discard the header; this tells the client that it has been read.
		if _, err := c.Write([]byte{1}); err != nil {
			s.strange(fmt.Errorf("%v: tell the client that it may begin: %w", f, err))
			return
		}
	}
	select {
	case s.ends[f.id] <- flowEnd(ctx, c, f, false):
	default:
		s.strange(fmt.Errorf("flow %d has reached the sink twice", f.id))
	}
}

// packet is the content of a datagram.
func packet(id uint64, number, size int64) []byte {
	b := make([]byte, size)
	content(id<<16|uint64(number), false).Read(b)
	binary.BigEndian.PutUint64(b, id)
	binary.BigEndian.PutUint64(b[8:], uint64(number))
	return b
}

// intact checks a datagram against the plan.
func intact(b []byte, flows map[uint64]flowPlan) bool {
	if len(b) < 16 {
		return false
	}
	f, ok := flows[binary.BigEndian.Uint64(b)]
	n := int64(binary.BigEndian.Uint64(b[8:]))
	return ok && f.kind == datagrams && n >= 0 && n < f.up && bytes.Equal(b, packet(f.id, n, f.down))
}

func (s *soakSink) echo(u *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if !intact(buf[:n], s.flows) {
			s.strange(fmt.Errorf("a datagram from %v: %w", from, errChanged))
			continue
		}
		u.WriteToUDPAddrPort(buf[:n], from) // one more loss, if it fails
	}
}

// clientFlow runs the client's end and waits for the sink's verdict.
func clientFlow(ctx context.Context, n *bed.Node, s *soakSink, f flowPlan) (delivered int64, err error) {
	host := bed.Sink4
	if f.v6 {
		host = bed.Sink6
	}
	at := netip.AddrPortFrom(host, soakPort)
	if f.kind == datagrams {
		return clientDatagrams(ctx, n, s, f, at)
	}
	if f.kind == refused {
		at = netip.AddrPortFrom(host, closedPort)
	}
	var c *net.TCPConn
	err = n.Call(func() error {
		d := net.Dialer{Timeout: soakTimeout}
		d.SetMultipathTCP(false)
		conn, err := d.DialContext(ctx, "tcp", at.String())
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	if f.kind == refused {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return 0, nil
		}
		if err == nil {
			// Taken at once and refused afterwards is a reset; that is not the same, but no harm to bytes.
			c.Close()
			return 0, errors.New("a connection to a closed port was accepted")
		}
		return 0, err
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], f.id)
	c.SetWriteDeadline(time.Now().Add(soakTimeout))
	if _, err := c.Write(head[:]); err != nil {
		return 0, err
	}
	if f.kind == clientReset {
		c.SetReadDeadline(time.Now().Add(soakTimeout))
		if _, err := io.ReadFull(c, head[:1]); err != nil {
			return 0, err
		}
	}
	err = flowEnd(ctx, c, f, true)
	patience := soakTimeout
	if err != nil {
		patience = 2 * time.Second // the sink may never have heard of this flow
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var other error
	select {
	case other = <-s.ends[f.id]:
	case <-timer.C:
		other = errors.New("has not ended")
	case <-ctx.Done():
		other = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("client: %w", err)
	}
	if other != nil {
		other = fmt.Errorf("sink: %w", other)
	}
	return f.up + f.down, errors.Join(err, other)
}

// clientDatagrams sends datagrams and checks their echoes; delivered is how many came back.
func clientDatagrams(ctx context.Context, n *bed.Node, s *soakSink, f flowPlan, at netip.AddrPort) (delivered int64, err error) {
	var u *net.UDPConn
	err = n.Do(func() (err error) { u, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at)); return err })
	if err != nil {
		return 0, err
	}
	defer u.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range f.up {
			if pause(ctx, 5*time.Millisecond) != nil {
				return
			}
			u.Write(packet(f.id, i, f.down)) // one more loss, if it fails
		}
	})
	defer wg.Wait()
	buf := make([]byte, 2048)
	u.SetReadDeadline(time.Now().Add(time.Duration(f.up)*5*time.Millisecond + 2*time.Second))
	for seen := map[string]bool{}; ctx.Err() == nil && len(seen) < int(f.up); {
		k, err := u.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			continue // an ICMP error while a gateway is away: a loss
		}
		if !intact(buf[:k], s.flows) {
			return delivered, fmt.Errorf("an echoed datagram: %w", errChanged)
		}
		if key := string(buf[:16]); !seen[key] {
			seen[key] = true
			delivered++
		}
	}
	return delivered, ctx.Err()
}
