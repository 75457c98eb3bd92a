package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"github.com/miekg/dns"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// The helpers below run in the clients' namespace.

// wire is a packet socket on the clients' end of the cable.
func wire() (*packet.Conn, *net.Interface, error) {
	ifi, err := net.InterfaceByName("cli0")
	if err != nil {
		return nil, nil, err
	}
	c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_IP, nil)
	if err != nil {
		return nil, nil, err
	}
	// Answers come as frames to addresses that the card does not have.
	if err := c.SetPromiscuous(true); err != nil {
		return nil, nil, err
	}
	return c, ifi, nil
}

var everybody = &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}

// datagram is an IPv4 packet from nobody to everybody, as clients without an
// address send it.
func datagram(data []byte) []byte {
	b := make([]byte, 28, 28+len(data))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(data)))
	b[8], b[9] = 64, 17
	copy(b[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], 68)
	binary.BigEndian.PutUint16(b[22:], 67)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	return append(b, data...)
}

// serverMessage is the DHCP message of a packet from a server, nil for others.
func serverMessage(b []byte) *dhcpv4.DHCPv4 {
	if len(b) < 28 || b[9] != 17 {
		return nil
	}
	n := int(b[0]&15) * 4
	if len(b) < n+8 || binary.BigEndian.Uint16(b[n+2:]) != 68 {
		return nil
	}
	m, err := dhcpv4.FromBytes(b[n+8:])
	if err != nil {
		return nil
	}
	return m
}

// crowd is a number of clients that all want a lease at the same moment. It
// prints the MAC and IP address of each. Arguments: how many, and the byte that
// tells this crowd from others.
func crowd(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	group, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, _, err := wire()
	if err != nil {
		return err
	}
	defer c.Close()
	type one struct {
		hw    net.HardwareAddr
		offer *dhcpv4.DHCPv4
		got   net.IP
	}
	all := make([]*one, count)
	for i := range all {
		all[i] = &one{hw: net.HardwareAddr{2, byte(group), 0, 0, byte(i >> 8), byte(i)}}
	}
	send := func(o *one) error {
		var m *dhcpv4.DHCPv4
		var err error
		if o.offer == nil {
			m, err = dhcpv4.NewDiscovery(o.hw, dhcpv4.WithOption(dhcpv4.OptHostName(fmt.Sprintf("crowd-%d-%x", group, o.hw[4:]))))
		} else {
			m, err = dhcpv4.NewRequestFromOffer(o.offer, dhcpv4.WithOption(dhcpv4.OptHostName(fmt.Sprintf("crowd-%d-%x", group, o.hw[4:]))))
		}
		if err != nil {
			return err
		}
		m.TransactionID = dhcpv4.TransactionID{byte(group), 7, o.hw[4], o.hw[5]}
		if o.hw[5]%2 == 0 {
			m.SetBroadcast()
		} else {
			m.SetUnicast()
		}
		_, err = c.WriteTo(datagram(m.ToBytes()), everybody)
		return err
	}
	open := count
	buf := make([]byte, 2048)
	end := time.Now().Add(80 * time.Second)
	for open > 0 {
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d clients have no lease", open, count)
		}
		for _, o := range all {
			if o.got == nil {
				if err := send(o); err != nil {
					return err
				}
			}
		}
		again := time.Now().Add(3 * time.Second) // as clients do
		for open > 0 && time.Now().Before(again) {
			_ = c.SetReadDeadline(again)
			n, _, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			m := serverMessage(buf[:n])
			if m == nil {
				continue
			}
			i := slices.IndexFunc(all, func(o *one) bool { return slices.Equal(o.hw, m.ClientHWAddr) })
			if i < 0 || all[i].got != nil {
				continue
			}
			switch m.MessageType() {
			case dhcpv4.MessageTypeOffer:
				if all[i].offer == nil {
					all[i].offer = m
					if err := send(all[i]); err != nil {
						return err
					}
				}
			case dhcpv4.MessageTypeAck:
				all[i].got = m.YourIPAddr
				open--
			case dhcpv4.MessageTypeNak:
				all[i].offer = nil
			}
		}
	}
	for _, o := range all {
		fmt.Println(o.hw, o.got)
	}
	return nil
}

// flood sends DISCOVERs from random MAC addresses. Argument: how many.
func flood(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	c, _, err := wire()
	if err != nil {
		return err
	}
	defer c.Close()
	for range count {
		hw := make(net.HardwareAddr, 6)
		binary.BigEndian.PutUint32(hw[2:], rand.Uint32())
		hw[0], hw[1] = 6, 6
		m, err := dhcpv4.NewDiscovery(hw)
		if err != nil {
			return err
		}
		// A full queue loses some; that is part of a flood.
		if _, err := c.WriteTo(datagram(m.ToBytes()), everybody); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// dnsFlood asks for random names. Arguments: how many, the server.
func dnsFlood(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", net.JoinHostPort(args[1], "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	for range count {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("%x.example.net.", rand.Uint64()), dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			return err
		}
		_, _ = c.Write(b) // a full queue loses some
	}
	return nil
}

// solicit asks for a router and prints the advertisement in hexadecimal digits.
func solicit([]string) error {
	ifi, err := net.InterfaceByName("cli0")
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	defer pc.Close()
	c := ipv6.NewPacketConn(pc)
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := c.SetICMPFilter(&f); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for range 40 {
		_, err := c.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, &ipv6.ControlMessage{HopLimit: 255, IfIndex: ifi.Index}, &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: "cli0"})
		if err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, _, _, err := c.ReadFrom(buf)
		if err == nil {
			fmt.Printf("%x\n", buf[:n])
			return nil
		}
	}
	return errors.New("no router has answered")
}
