package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"golang.org/x/sys/unix"
)

// serve6 is the IPv6 half of the test server: it delegates a prefix, and
// advertises itself as a router when it is asked to, and when set.
func serve6(link string, conf func() serverConfig, say func(string, ...any)) (stop func(), err error) {
	srv, err := server6.NewServer(link, nil, func(conn net.PacketConn, peer net.Addr, d dhcpv6.DHCPv6) {
		m, ok := d.(*dhcpv6.Message)
		c := conf()
		if !ok || c.Prefix == "" {
			return
		}
		held := ""
		if pd := m.Options.OneIAPD(); pd != nil && len(pd.Options.Prefixes()) > 0 && pd.Options.Prefixes()[0].Prefix != nil {
			held = pd.Options.Prefixes()[0].Prefix.String()
		}
		say("six %s holds %q", m.MessageType, held)
		if c.Mode == "silent" {
			return
		}
		r := give(m, "", "", 0, dhcpv6.OptDNS(net.ParseIP("2001:db8:53::53")))
		if m.MessageType != dhcpv6.MessageTypeRelease && m.Options.OneIAPD() != nil {
			ia := &dhcpv6.OptIAPD{IaId: m.Options.OneIAPD().IaId}
			life := time.Duration(c.Life) * time.Second
			ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: toIPNet(netip.MustParsePrefix(c.Prefix)), PreferredLifetime: life, ValidLifetime: life})
			r.AddOption(ia)
		}
		if _, err := conn.WriteTo(r.ToBytes(), peer); err != nil {
			say("error %v", err)
		}
	})
	if err != nil {
		return nil, err
	}
	go srv.Serve()
	asked, err := solicitations(link)
	if err != nil {
		srv.Close()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			if _, _, err := asked.ReadFrom(b); err != nil {
				return
			}
			if c := conf(); c.Advert != "" && c.Mode != "silent" {
				if err := sendAdvert(c); err != nil {
					say("error %v", err)
				}
			}
		}
	}()
	return func() { srv.Close(); asked.Close(); <-done }, nil
}

// icmpSocket is a raw ICMPv6 socket on a link.
func icmpSocket(link string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = errors.Join(unix.BindToDevice(int(fd), link), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		})
		return errors.Join(err, serr)
	}}
	return lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
}

// solicitations hears what comes to all routers of a link.
func solicitations(link string) (net.PacketConn, error) {
	conn, err := icmpSocket(link)
	if err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.IPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var filter unix.ICMPv6Filter
	for i := range filter.Data {
		filter.Data[i] = 1<<32 - 1
	}
	filter.Data[icmpRouterSolicit/32] &^= 1 << (icmpRouterSolicit % 32)
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = errors.Join(unix.SetsockoptICMPv6Filter(int(fd), unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
			unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: [16]byte(allRouters), Interface: uint32(ifi.Index)}))
	})
	return conn, errors.Join(err, serr)
}

// sendAdvert announces the prefix of c, and a server for names.
func sendAdvert(c serverConfig) error {
	conn, err := icmpSocket(c.Link)
	if err != nil {
		return err
	}
	defer conn.Close()
	b := advertisement(0, 1800, prefixOption(0xc0, c.Advert, c.Life, c.Life))
	_, err = conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: c.Link})
	if err != nil {
		return fmt.Errorf("advertise: %w", err)
	}
	return nil
}
