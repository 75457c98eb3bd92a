package load

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/bed"
)

// Sniffer looks for MPTCP options in the TCP segments that a device receives.
type Sniffer struct {
	fd             int
	seen, segments atomic.Int64
	closing        atomic.Bool
	ended          <-chan struct{}
}

// Sniff starts to look.
func Sniff(n *bed.Node, device string) (*Sniffer, error) {
	s := &Sniffer{}
	err := n.Do(func() error {
		iface, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		tv := unix.Timeval{Usec: 50000}
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		const all = 0x0300 // ETH_P_ALL in network order
		if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index}); err != nil {
			unix.Close(s.fd)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", device, n.Name, err)
	}
	s.ended = n.Thread(s.run)
	return s, nil
}

func (s *Sniffer) run() {
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(s.fd, buf)
		if err != nil || n <= 0 {
			if err == unix.EAGAIN && s.closing.Load() || err != nil && err != unix.EAGAIN && err != unix.EINTR {
				return
			}
			continue
		}
		if tcp, has := mptcpOption(buf[:n]); tcp {
			s.segments.Add(1)
			if has {
				s.seen.Add(1)
			}
		}
	}
}

// Close stops looking and returns how many segments carried an option of kind 30 (RFC 8684), of how many.
func (s *Sniffer) Close() (seen, segments int64) {
	s.closing.Store(true)
	<-s.ended
	unix.Close(s.fd)
	return s.seen.Load(), s.segments.Load()
}

// mptcpOption looks into an IP packet: is it TCP, and does it carry an MPTCP option?
func mptcpOption(p []byte) (tcp, has bool) {
	const kind = 30
	var t []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		if p[9] != unix.IPPROTO_TCP || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
			return false, false
		}
		if h := int(p[0]&15) * 4; h <= len(p) {
			t = p[h:]
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		if p[6] != unix.IPPROTO_TCP {
			return false, false
		}
		t = p[40:]
	}
	if len(t) < 20 {
		return false, false
	}
	h := int(t[12]>>4) * 4
	if h > len(t) {
		return true, false
	}
	for o := t[20:max(h, 20)]; len(o) > 0; {
		switch {
		case o[0] == 0:
			return true, false
		case o[0] == 1:
			o = o[1:]
		case o[0] == kind:
			return true, true
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return true, false
		default:
			o = o[o[1]:]
		}
	}
	return true, false
}
