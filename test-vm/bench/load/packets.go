package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/bed"
)

// Train is a stream of packets each way between client and sink.
type Train struct {
	Protocol int     // 17 for UDP, else a raw IP protocol
	Port     uint16  // UDP port of the sink
	Size     int     // payload of a packet, bytes, at least 16
	Rate     float64 // Mbit/s of payload, each way
	During   time.Duration
}

// Arrived is what one end received of what the other sent.
type Arrived struct {
	Sent, Received, Duplicates, Late int64 // Late came after one that was sent later
	Delays                           []time.Duration
}

// Share is the part that was delivered.
func (a Arrived) Share() float64 {
	if a.Sent == 0 {
		return 0
	}
	return float64(a.Received) / float64(a.Sent)
}

// packetEnd is one end of a train.
type packetEnd struct {
	fd   int
	skip int // bytes before the payload
}

// Run sends and counts. For UDP the client speaks first, so that the sink learns its address; saw is the client's address
// as the sink saw it. Delays are from the sender's call to the kernel's receive stamp of the device.
func (t Train) Run(ctx context.Context, client, sink *bed.Node, clientAddr, sinkAddr netip.Addr) (up, down Arrived, saw netip.AddrPort, err error) {
	c, s := &packetEnd{fd: -1}, &packetEnd{fd: -1}
	defer func() {
		for _, e := range []*packetEnd{c, s} {
			if e.fd >= 0 {
				unix.Close(e.fd)
			}
		}
	}()
	port := t.Port
	kind := unix.SOCK_DGRAM
	if t.Protocol != unix.IPPROTO_UDP {
		port, kind = 0, unix.SOCK_RAW
		if sinkAddr.Is4() {
			c.skip, s.skip = 20, 20
		}
	}
	to := netip.AddrPortFrom(sinkAddr, port)
	open := func(e *packetEnd, n *bed.Node, bind, connect netip.AddrPort) error {
		return n.Do(func() error {
			var err error
			if e.fd, err = unix.Socket(family(to), kind|unix.SOCK_CLOEXEC, t.Protocol); err != nil {
				return fmt.Errorf("make a packet socket on %s: %w", n.Name, err)
			}
			setPatience(e.fd)
			unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
			unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			if bind.IsValid() {
				if err := unix.Bind(e.fd, sockaddr(bind)); err != nil {
					return fmt.Errorf("bind to %v on %s: %w", bind, n.Name, err)
				}
			}
			if connect.IsValid() {
				if err := unix.Connect(e.fd, sockaddr(connect)); err != nil {
					return fmt.Errorf("connect to %v on %s: %w", connect, n.Name, err)
				}
			}
			return nil
		})
	}
	if err = open(s, sink, to, netip.AddrPort{}); err != nil {
		return
	}
	if err = open(c, client, netip.AddrPort{}, to); err != nil {
		return
	}
	if saw, err = t.introduce(c, s, clientAddr); err != nil {
		return
	}
	if err = unix.Connect(s.fd, sockaddr(saw)); err != nil {
		err = fmt.Errorf("answer to %v: %w", saw, err)
		return
	}
	start := time.Now().Add(20 * time.Millisecond)
	var wg sync.WaitGroup
	// Receivers run on for a second, so that what is queued can arrive.
	stop := start.Add(t.During + time.Second)
	var errs [4]error
	wg.Go(func() { <-client.Thread(func() { up.Sent, errs[0] = t.send(ctx, c.fd, start) }) })
	wg.Go(func() { <-sink.Thread(func() { down.Sent, errs[1] = t.send(ctx, s.fd, start) }) })
	wg.Go(func() { <-sink.Thread(func() { errs[2] = t.receive(s, &up, stop) }) })
	wg.Go(func() { <-client.Thread(func() { errs[3] = t.receive(c, &down, stop) }) })
	wg.Wait()
	err = errors.Join(errs[:]...)
	return
}

// introduce sends packets until one has arrived at the sink, and returns its source.
func (t Train) introduce(c, s *packetEnd, client netip.Addr) (netip.AddrPort, error) {
	buf := make([]byte, 2048)
	hello := make([]byte, t.Size) // number 0 and no time: not counted
	for range 50 {
		if _, err := unix.Write(c.fd, hello); err != nil && err != unix.ECONNREFUSED {
			return netip.AddrPort{}, fmt.Errorf("send the first packet: %w", err)
		}
		p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 100); err != nil || n == 0 {
			continue
		}
		_, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			continue
		}
		return addrPort(from), nil
	}
	return netip.AddrPort{}, fmt.Errorf("no packet of %v has arrived at the sink within 5 s", client)
}

func (t Train) send(ctx context.Context, fd int, start time.Time) (int64, error) {
	buf := make([]byte, t.Size)
	interval := float64(t.Size) * 8 / t.Rate * 1e3 // ns
	for k := int64(0); ctx.Err() == nil; k++ {
		due := time.Duration(float64(k) * interval)
		if due >= t.During {
			return k, nil
		}
		sleepUntil(start.Add(due))
		binary.BigEndian.PutUint64(buf, uint64(k+1))
		binary.BigEndian.PutUint64(buf[8:], uint64(time.Now().UnixNano()))
		for {
			_, err := unix.Write(fd, buf)
			switch err {
			case nil, unix.ENOBUFS, unix.EAGAIN: // a full queue on the way is a loss like others
			case unix.EINTR:
				continue
			default:
				return k, fmt.Errorf("send packet %d: %w", k+1, err)
			}
			break
		}
	}
	return 0, ctx.Err()
}

func (t Train) receive(e *packetEnd, a *Arrived, stop time.Time) error {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	seen := map[uint64]bool{}
	highest := uint64(0)
	for {
		left := time.Until(stop)
		if left <= 0 {
			return nil
		}
		p := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, int(left.Milliseconds())+1); err == unix.EINTR || n == 0 {
			continue
		}
		n, oobn, _, _, err := unix.Recvmsg(e.fd, buf, oob, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR || err == unix.ECONNREFUSED {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive packets: %w", err)
		}
		if n < e.skip+16 {
			continue
		}
		number, sent := binary.BigEndian.Uint64(buf[e.skip:]), binary.BigEndian.Uint64(buf[e.skip+8:])
		if number == 0 {
			continue
		}
		if seen[number] {
			a.Duplicates++
			continue
		}
		seen[number] = true
		a.Received++
		if number < highest {
			a.Late++
		}
		highest = max(highest, number)
		a.Delays = append(a.Delays, time.Duration(stamp(oob[:oobn])-int64(sent)))
	}
}

// stamp is the kernel's receive time in the control messages, or now, in ns.
func stamp(oob []byte) int64 {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
				return (*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Nano()
			}
		}
	}
	return time.Now().UnixNano()
}
