package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Port is the server's socket on one device.
type Port struct {
	device string
	log    *slog.Logger
	server *Server
	conn   *net.UDPConn
	wg     sync.WaitGroup
}

// Open starts to serve on a device, until Close.
func Open(log *slog.Logger, s *Server, device string, index int) (*Port, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
				unix.BindToDevice(int(fd), device))
		})
		return errors.Join(err, serr)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp6", "[::]:547")
	if err != nil {
		return nil, fmt.Errorf("DHCPv6 server on %s: %w", device, err)
	}
	pc := ipv6.NewPacketConn(conn)
	ifi := &net.Interface{Index: index, Name: device}
	// All_DHCP_Relay_Agents_and_Servers, and All_DHCP_Servers for relays.
	for _, g := range []net.IP{
		{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2},
		{0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3},
	} {
		if err := pc.JoinGroup(ifi, &net.UDPAddr{IP: g}); err != nil {
			conn.Close()
			return nil, fmt.Errorf("DHCPv6 server on %s: join %v: %w", device, g, err)
		}
	}
	p := &Port{device: device, log: log, server: s, conn: conn.(*net.UDPConn)}
	p.wg.Go(p.receive)
	return p, nil
}

// Close ends the port and waits for its goroutine.
func (p *Port) Close() {
	p.conn.Close()
	p.wg.Wait()
}

func (p *Port) receive() {
	buf := make([]byte, 4096)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Debug("read DHCPv6 messages", "device", p.device, "error", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		msg, err := dhcpv6.FromBytes(buf[:n])
		if err != nil {
			continue
		}
		via := netip.Addr{}
		if from.Addr().IsLinkLocalUnicast() {
			via = from.Addr().WithZone("")
		}
		p.server.Handle(p.device, via, msg, func(d dhcpv6.DHCPv6) {
			if _, err := p.conn.WriteToUDPAddrPort(d.ToBytes(), from); err != nil {
				p.log.Debug("a DHCPv6 answer was not sent", "device", p.device, "to", from, "error", err)
			}
		})
	}
}
