package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"
)

// Where routers and DHCPv6 servers listen.
var (
	allRouters = net.IP{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}
	allServers = net.IP{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2}
)

// How often it is looked for the link-local address of a link, which the kernel
// makes about a second after the link came up; after some tries less often: there
// may be no IPv6 at all.
const (
	linkLocalPause = 250 * time.Millisecond
	linkLocalTries = 40
	linkLocalRare  = 10 * time.Second
)

// linkLocal waits until a link has a link-local address that may be used.
func linkLocal(ctx context.Context, link string) (netip.Addr, error) {
	for n := 0; ; n++ {
		if ifi, err := net.InterfaceByName(link); err == nil {
			if as, err := ifi.Addrs(); err == nil {
				for _, a := range as {
					p, ok := a.(*net.IPNet)
					if !ok || !p.IP.IsLinkLocalUnicast() || p.IP.To4() != nil {
						continue
					}
					ip, _ := netip.AddrFromSlice(p.IP)
					// While others are still asked whether they have it, it
					// cannot be bound.
					c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: p.IP, Zone: link})
					if err == nil {
						c.Close()
						return ip, nil
					}
				}
			}
		}
		pause := linkLocalPause
		if n >= linkLocalTries {
			pause = linkLocalRare
		}
		if !sleep(ctx, pause, nil) {
			return netip.Addr{}, ctx.Err()
		}
	}
}

// udp6 is the transport6 on a real link. It is open only while an answer is
// awaited.
type udp6 struct {
	conn net.PacketConn
	to   *net.UDPAddr
	in   chan []byte
	done chan struct{}
}

// maxErrors in a row mean that the link is gone; the next exchange sees why.
const maxErrors = 16

// openUDP6 opens the client's port on the link-local address of a link.
func openUDP6(ctx context.Context, link string) (transport6, error) {
	ip, err := linkLocal(ctx, link)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); serr == nil {
				serr = unix.BindToDevice(int(fd), link)
			}
		})
		return errors.Join(err, serr)
	}}
	conn, err := lc.ListenPacket(ctx, "udp6", netip.AddrPortFrom(ip.WithZone(link), dhcpv6.DefaultClientPort).String())
	if err != nil {
		return nil, fmt.Errorf("DHCPv6 on %s: %w", link, err)
	}
	u := &udp6{conn: conn, to: &net.UDPAddr{IP: allServers, Port: dhcpv6.DefaultServerPort, Zone: link}, in: make(chan []byte, 16), done: make(chan struct{})}
	go func() {
		defer close(u.done)
		b := make([]byte, 4096)
		for errs := 0; errs < maxErrors; {
			n, _, err := conn.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // a port unreachable from somewhere
				errs++
				continue
			}
			errs = 0
			select {
			case u.in <- append([]byte(nil), b[:n]...):
			default: // nobody needs that many answers
			}
		}
	}()
	return u, nil
}

func (u *udp6) send(b []byte) error {
	_, err := u.conn.WriteTo(b, u.to)
	return err
}

func (u *udp6) packets() <-chan []byte { return u.in }

func (u *udp6) close() {
	u.conn.Close()
	<-u.done
}

// Times of router solicitations: RFC 7559 doubles up to an hour. The first
// pause is that of the first DHCP message, for the same reason.
const (
	rsFirst = time.Second
	rsMax   = time.Hour
)

// listenRouters asks the routers of a link and tells advert what they say, until
// ctx ends.
func listenRouters(ctx context.Context, link string, log *slog.Logger, heard func(*advert)) {
	for ctx.Err() == nil {
		if err := routers(ctx, link, heard); err != nil && ctx.Err() == nil {
			log.Debug("routers are not heard, trying again", "error", err)
			sleep(ctx, rsFirst, nil)
		}
	}
}

func routers(ctx context.Context, link string, heard func(*advert)) error {
	if _, err := linkLocal(ctx, link); err != nil {
		return err
	}
	conn, mac, err := icmp6(link)
	if err != nil {
		return err
	}
	adverts := make(chan *advert)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	read := make(chan struct{})
	defer func() {
		cancel()
		conn.Close()
		<-read
	}()
	go func() {
		defer close(read)
		b, oob := make([]byte, 2048), make([]byte, 128)
		for {
			n, on, flags, from, err := conn.ReadMsgIP(b, oob)
			if err != nil {
				failed <- err
				return
			}
			ip, ok := netip.AddrFromSlice(from.IP)
			if !ok || flags&unix.MSG_TRUNC != 0 || hopLimit(oob[:on]) != 255 {
				continue
			}
			if a, err := parseAdvert(b[:n], ip.Unmap()); err == nil {
				select {
				case adverts <- a:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	ask := time.NewTimer(0)
	defer ask.Stop()
	to := &net.IPAddr{IP: allRouters, Zone: link}
	wait := rsFirst
	known := map[netip.Addr]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case a := <-adverts:
			heard(a)
			if a.lifetime > 0 && len(known) < maxEntries {
				known[a.router] = time.Now().Add(a.lifetime)
			} else {
				delete(known, a.router)
			}
			var last time.Time
			for _, t := range known {
				if t.After(last) {
					last = t
				}
			}
			if wait = rsFirst; !last.IsZero() {
				ask.Reset(time.Until(last)) // not before all are gone
			}
		case <-ask.C:
			clear(known)
			if _, err := conn.WriteTo(solicitation(mac), to); err != nil {
				return fmt.Errorf("solicit routers on %s: %w", link, err)
			}
			ask.Reset(wait + time.Duration((rand.Float64()-0.5)*0.2*float64(wait)))
			wait = min(2*wait, rsMax)
		}
	}
}

// icmp6 opens a socket for router advertisements on a link.
func icmp6(link string) (*net.IPConn, net.HardwareAddr, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, nil, fmt.Errorf("routers on %s: %w", link, err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, nil, fmt.Errorf("routers on %s: open a socket: %w", link, err)
	}
	f := os.NewFile(uintptr(fd), "icmp6")
	defer f.Close()
	var filter unix.ICMPv6Filter
	for i := range filter.Data {
		filter.Data[i] = 1<<32 - 1 // a set bit keeps the type away
	}
	filter.Data[icmpRouterAdvert/32] &^= 1 << (icmpRouterAdvert % 32)
	for _, err := range []error{
		unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
		unix.BindToDevice(fd, link),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
	} {
		if err != nil {
			return nil, nil, fmt.Errorf("routers on %s: set up the socket: %w", link, err)
		}
	}
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, nil, fmt.Errorf("routers on %s: %w", link, err)
	}
	conn, ok := pc.(*net.IPConn)
	if !ok {
		pc.Close()
		return nil, nil, fmt.Errorf("routers on %s: a %T instead of an IP socket", link, pc)
	}
	return conn, ifi.HardwareAddr, nil
}

// hopLimit reads the hop limit that came with a packet, -1 if it did not.
func hopLimit(oob []byte) int {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, m := range ms {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return -1
}
