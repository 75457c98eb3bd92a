package dhcp4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Port is the server's socket on one device. Answers to clients that have no
// address yet leave as frames, since the kernel could not find them by ARP.
type Port struct {
	Device string
	Index  int
	MAC    net.HardwareAddr

	log    *slog.Logger
	server *Server
	conn   *net.UDPConn
	raw    int // AF_PACKET, for sending alone

	mu     sync.Mutex
	probes map[netip.Addr]*probe
	arp    bool // the reader of ARP answers is at work
	wg     sync.WaitGroup
	closed bool
}

type probe struct {
	done  []func(bool)
	timer *time.Timer
}

// Open starts to serve on a device, until Close.
func Open(log *slog.Logger, s *Server, device string, index int, mac net.HardwareAddr) (*Port, error) {
	p := &Port{Device: device, Index: index, MAC: mac, log: log, server: s, probes: map[netip.Addr]*probe{}}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), device))
		})
		return errors.Join(err, serr)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:67")
	if err != nil {
		return nil, fmt.Errorf("DHCP server on %s: %w", device, err)
	}
	p.conn = conn.(*net.UDPConn)
	// Bursts come when the power is back and a whole street starts.
	_ = p.conn.SetReadBuffer(512 << 10) // the kernel's limit is fine too
	if p.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		conn.Close()
		return nil, fmt.Errorf("DHCP server on %s: open a packet socket: %w", device, err)
	}
	p.wg.Go(p.receive)
	return p, nil
}

// Close ends the port and waits for its goroutines.
func (p *Port) Close() {
	p.mu.Lock()
	p.closed = true
	waiting := p.probes
	p.probes = map[netip.Addr]*probe{}
	p.mu.Unlock()
	for _, pr := range waiting {
		pr.timer.Stop()
		for _, f := range pr.done {
			f(false)
		}
	}
	p.conn.Close()
	p.wg.Wait()
	p.mu.Lock() // a timer may be sending
	unix.Close(p.raw)
	p.raw = -1
	p.mu.Unlock()
}

func (p *Port) receive() {
	buf := make([]byte, 4096)
	for {
		n, _, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Such as the device being down for a moment.
			p.log.Debug("read DHCP messages", "device", p.Device, "error", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		msg, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			continue
		}
		p.server.Handle(p.Device, msg, p.send)
	}
}

func (p *Port) send(m *dhcpv4.DHCPv4, t Target) {
	b := m.ToBytes()
	var err error
	switch {
	case t.Broadcast:
		err = p.frame(unix.ETH_P_IP, [6]byte{255, 255, 255, 255, 255, 255}, udpPacket(t.Source, t.Addr, 67, t.Port, b))
	case t.HW != nil:
		err = p.frame(unix.ETH_P_IP, [6]byte(t.HW), udpPacket(t.Source, t.Addr, 67, t.Port, b))
	default:
		_, err = p.conn.WriteToUDPAddrPort(b, netip.AddrPortFrom(t.Addr, t.Port))
	}
	if err != nil {
		p.log.Debug("a DHCP answer was not sent", "device", p.Device, "to", t.Addr, "error", err)
	}
}

// frame sends a packet in a frame to a hardware address.
func (p *Port) frame(proto uint16, to [6]byte, b []byte) error {
	sa := &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: p.Index, Halen: 6}
	copy(sa.Addr[:], to[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raw < 0 {
		return net.ErrClosed
	}
	return unix.Sendto(p.raw, b, unix.MSG_NOSIGNAL, sa)
}

// udpPacket is an IPv4 packet with an UDP datagram.
func udpPacket(src, dst netip.Addr, sport, dport uint16, data []byte) []byte {
	b := make([]byte, 28, 28+len(data))
	b[0], b[1] = 0x45, 0xc0 // network control, as dnsmasq marks it
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(data)))
	b[8], b[9] = 64, unix.IPPROTO_UDP
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^sum(b[:20], 0))
	binary.BigEndian.PutUint16(b[20:], sport)
	binary.BigEndian.PutUint16(b[22:], dport)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	b = append(b, data...)
	c := ^sum(b[12:], uint32(unix.IPPROTO_UDP)+uint32(8+len(data)))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[26:], c)
	return b
}

// sum is the one's complement sum of RFC 1071.
func sum(b []byte, n uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		n += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		n += uint32(b[len(b)-1]) << 8
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}

// probeTime is how long an answer is waited for; the question is asked twice
// in it. dnsmasq waits 3 s for a ping; an ARP answer comes from the network
// card's driver, asleep or not, and a client that waits asks again.
const probeTime = 400 * time.Millisecond

// maxProbes bounds the addresses being probed on a device.
const maxProbes = 256

// Probe is a Prober for the link of this port, by ARP (RFC 5227).
func (p *Port) Probe(a netip.Addr, done func(used bool)) {
	p.mu.Lock()
	if pr := p.probes[a]; pr != nil {
		pr.done = append(pr.done, done)
		p.mu.Unlock()
		return
	}
	if p.closed || len(p.probes) >= maxProbes {
		p.mu.Unlock()
		done(false)
		return
	}
	pr := &probe{done: []func(bool){done}}
	p.probes[a] = pr
	if !p.arp {
		if err := p.listenARP(); err != nil {
			delete(p.probes, a)
			p.mu.Unlock()
			p.log.Warn("addresses are given out without a probe", "device", p.Device, "error", err)
			done(false)
			return
		}
	}
	pr.timer = time.AfterFunc(probeTime/2, func() {
		p.ask(a)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.probes[a] == pr {
			pr.timer = time.AfterFunc(probeTime/2, func() { p.answer(a, false) })
		}
	})
	p.mu.Unlock()
	p.ask(a)
}

func (p *Port) answer(a netip.Addr, used bool) {
	p.mu.Lock()
	pr := p.probes[a]
	delete(p.probes, a)
	p.mu.Unlock()
	if pr == nil {
		return
	}
	pr.timer.Stop()
	for _, f := range pr.done {
		f(used)
	}
}

// ask sends an ARP probe: a request from nobody.
func (p *Port) ask(a netip.Addr) {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(b, p.MAC...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, a.AsSlice()...)
	if err := p.frame(unix.ETH_P_ARP, [6]byte{255, 255, 255, 255, 255, 255}, b); err != nil {
		p.log.Debug("an ARP probe was not sent", "device", p.Device, "error", err)
	}
}

// listenARP starts to read ARP answers, for as long as there are probes; with
// p.mu held.
func (p *Port) listenARP() error {
	c, err := packet.Listen(&net.Interface{Index: p.Index, Name: p.Device, HardwareAddr: p.MAC}, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return fmt.Errorf("listen for ARP: %w", err)
	}
	p.arp = true
	p.wg.Go(func() {
		defer c.Close()
		buf := make([]byte, 128)
		for {
			p.mu.Lock()
			if p.closed || len(p.probes) == 0 {
				p.arp = false
				p.mu.Unlock()
				return
			}
			p.mu.Unlock()
			_ = c.SetReadDeadline(time.Now().Add(probeTime / 2))
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				continue
			}
			if a, ok := parseARP(buf[:n]); ok && from.String() != p.MAC.String() {
				p.answer(a, true)
			}
		}
	})
	return nil
}

// parseARP tells who is the sender of an ARP message over Ethernet and IPv4;
// probes have none.
func parseARP(b []byte) (netip.Addr, bool) {
	if len(b) < 28 || b[0] != 0 || b[1] != 1 || b[2] != 8 || b[3] != 0 || b[4] != 6 || b[5] != 4 {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(b[14:18]))
	return a, !a.IsUnspecified()
}
