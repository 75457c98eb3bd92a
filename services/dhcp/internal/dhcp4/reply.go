package dhcp4

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"weft/services/dhcp/internal/config"
)

// answer is a message back to the client without any offer in it.
func (s *Server) answer(c *client, t dhcpv4.MessageType, a netip.Addr) *dhcpv4.DHCPv4 {
	m := c.msg
	r := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero,
		GatewayIPAddr: m.GatewayIPAddr, ClientHWAddr: m.ClientHWAddr, Options: dhcpv4.Options{},
	}
	if a.IsValid() {
		r.YourIPAddr = a.AsSlice()
	}
	if t == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	r.Options.Update(dhcpv4.OptMessageType(t))
	r.Options.Update(dhcpv4.OptServerIdentifier(c.pool.Server.AsSlice()))
	if v := m.Options.Get(dhcpv4.OptionRelayAgentInformation); v != nil {
		r.Options[dhcpv4.OptionRelayAgentInformation.Code()] = v // RFC 3046, 2.2
	}
	// RFC 6842: back as it came.
	if c.id != nil {
		r.Options[dhcpv4.OptionClientIdentifier.Code()] = c.id
	}
	return r
}

// reply is an offer or an ACK with all that the client gets to know.
func (s *Server) reply(c *client, t dhcpv4.MessageType, a netip.Addr) *dhcpv4.DHCPv4 {
	r := s.answer(c, t, a)
	p := c.pool
	put := func(code uint8, v []byte) { r.Options[code] = v }
	asked := c.msg.Options.Get(dhcpv4.OptionParameterRequestList)
	wanted := func(code uint8) bool { return len(asked) == 0 || slices.Contains(asked, code) }

	lease := s.leaseTime(c)
	seconds := uint32(1<<32 - 1)
	if lease > 0 {
		seconds = uint32(lease / time.Second)
	}
	put(51, be32(seconds))
	if lease > 0 {
		put(58, be32(seconds/2))
		put(59, be32(uint32(uint64(seconds)*7/8)))
	}
	if wanted(1) {
		put(1, net.CIDRMask(p.Net.Bits(), 32))
	}
	if wanted(28) {
		put(28, p.broadcast().AsSlice())
	}
	if wanted(3) {
		put(3, p.Server.AsSlice())
	}
	if wanted(6) {
		var dns []byte
		for _, d := range p.DNS4 {
			dns = append(dns, d.AsSlice()...)
		}
		if dns == nil && !p.NoSelf {
			dns = p.Server.AsSlice()
		}
		if dns != nil {
			put(6, dns)
		}
	}
	if p.Domain != "" && wanted(15) {
		put(15, []byte(p.Domain))
	}
	if c.name != "" && wanted(12) {
		put(12, []byte(c.name))
	}
	if c.fqdn != nil {
		r.Options[dhcpv4.OptionFQDN.Code()] = c.fqdnReply()
	}
	s.bootInfo(c, r, wanted)
	// The general first, the special over it.
	apply := func(opts []config.Option) {
		for _, o := range opts {
			if !c.has(o.Tags) {
				continue
			}
			if o.None {
				delete(r.Options, o.Code)
				continue
			}
			if !o.Force && !wanted(o.Code) && o.Code != 51 {
				continue
			}
			v := slices.Clone(o.Value)
			for _, at := range o.SelfAt {
				copy(v[at:], p.Server.AsSlice())
			}
			put(o.Code, v)
		}
	}
	apply(p.Options)
	for _, t := range s.set.Tags {
		if c.tags[t.Name] {
			apply(t.Options)
		}
	}
	for _, b := range s.set.Boots {
		if c.has(b.Tags) {
			apply(b.Options)
		}
	}
	fit(r, c.msg)
	return r
}

// bootInfo tells where the client finds its boot loader.
func (s *Server) bootInfo(c *client, r *dhcpv4.DHCPv4, wanted func(uint8) bool) {
	file, name, server := s.set.BootFile, "", s.set.BootServer
	special := -1
	for _, b := range s.set.Boots {
		if c.has(b.Tags) && len(b.Tags) > special {
			special = len(b.Tags)
			file, name, server = b.Filename, b.ServerName, ""
			if b.Server.IsValid() {
				server = b.Server.String()
			}
		}
	}
	if file == "" {
		return
	}
	r.BootFileName, r.ServerHostName = file, name
	r.ServerIPAddr = c.pool.Server.AsSlice()
	if a, err := netip.ParseAddr(server); err == nil && a.Is4() {
		r.ServerIPAddr = a.AsSlice()
	}
	asked := c.msg.Options.Get(dhcpv4.OptionParameterRequestList)
	if slices.Contains(asked, 67) {
		r.Options[67] = []byte(file)
	}
	if slices.Contains(asked, 66) {
		if name == "" {
			name = net.IP(r.ServerIPAddr).String()
		}
		r.Options[66] = []byte(name)
	}
}

// fqdnReply is option 81 back (RFC 4702, 4): the server keeps the name.
func (c *client) fqdnReply() []byte {
	flags := c.fqdn[0]&0x04 | 0x01
	if c.fqdn[0]&0x01 == 0 {
		flags |= 0x02 // although the client wanted to do it
	}
	name := c.name
	if c.pool.Domain != "" {
		name += "." + c.pool.Domain
	}
	out := []byte{flags, 255, 255}
	if flags&0x04 == 0 {
		return append(out, name...)
	}
	for l := range strings.SplitSeq(name, ".") {
		out = append(append(out, byte(len(l))), l...)
	}
	return append(out, 0)
}

// essential options stay when an answer is too large for the client.
var essential = [...]uint8{1, 3, 6, 51, 53, 54, 56, 58, 59, 61, 82}

// fit takes options away until the answer is no larger than the client, or
// every client (RFC 2131, 2), can take.
func fit(r, m *dhcpv4.DHCPv4) {
	limit := 576
	if n, err := m.MaxMessageSize(); err == nil && n > 576 {
		limit = min(int(n), 1500)
	}
	limit -= 28 // IP and UDP
	size := func() int {
		n := 240 + 1
		for _, v := range r.Options {
			n += len(v) + 2*(len(v)/255+1)
		}
		return n
	}
	for code := 254; code > 0 && size() > limit; code-- {
		if !slices.Contains(essential[:], uint8(code)) {
			delete(r.Options, uint8(code))
		}
	}
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// target tells where an answer goes (RFC 2131, 4.1).
func (c *client) target(r *dhcpv4.DHCPv4) Target {
	m := c.msg
	t := Target{Port: 68, Source: c.pool.Server}
	relay, ciaddr := addrOf(m.GatewayIPAddr), addrOf(m.ClientIPAddr)
	switch nak := r.MessageType() == dhcpv4.MessageTypeNak; {
	case relay.IsValid() && !relay.IsUnspecified():
		t.Addr, t.Port = relay, 67
		if nak {
			r.SetBroadcast() // the client may not have an address to hear it at
		}
	case nak:
		t.Broadcast = true
	case ciaddr.IsValid() && !ciaddr.IsUnspecified():
		t.Addr = ciaddr
	case m.IsBroadcast() || c.host != nil && c.host.Bcast:
		t.Broadcast = true
	default:
		t.Addr, t.HW = addrOf(r.YourIPAddr), m.ClientHWAddr
	}
	if t.Broadcast {
		t.Addr = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return t
}
