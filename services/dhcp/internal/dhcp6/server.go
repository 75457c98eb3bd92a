package dhcp6

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/lease"
	"weft/services/dhcp/internal/netif"
	"weft/services/dhcp/internal/ra"
)

// Link is a device that is served.
type Link struct {
	Device   string
	Index    int
	Pool     *config.Pool
	Prefixes []netif.Prefix
	DNS      []netip.Addr
	Search   []string
	DUID     []byte // of this server
}

// Settings are what the server works by. They are replaced as a whole.
type Settings struct {
	Links    []Link
	Hosts    []*config.Host
	LeaseMax int
}

// Server answers DHCPv6 messages.
type Server struct {
	Log   *slog.Logger
	Store *lease.Store
	// Changed is told when leases changed; nil for nobody.
	Changed func()
	// Route lets a delegated prefix lead to its router, or no longer (via
	// is not valid then).
	Route func(prefix netip.Prefix, via netip.Addr, device string)
	Now   func() time.Time // nil: time.Now

	mu  sync.Mutex
	set Settings

	allocated uint64
}

// Apply sets what to work by.
func (s *Server) Apply(set Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = set
}

// Allocated counts the leases given out anew.
func (s *Server) Allocated() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allocated
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// client is a request with what is known about who sent it.
type client struct {
	msg  *dhcpv6.Message
	link *Link
	duid []byte
	name string
	from netip.Addr // link-local address, where a delegated prefix leads to
	host func(iaid uint32) *config.Host
}

// Handle works on what came in on a device. The answer is sent by reply, once
// it is safe to do so, or never.
func (s *Server) Handle(device string, from netip.Addr, d dhcpv6.DHCPv6, reply func(dhcpv6.DHCPv6)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.set.Links, func(l Link) bool { return l.Device == device })
	relay, relayed := d.(*dhcpv6.RelayMessage)
	msg, _ := d.(*dhcpv6.Message)
	if relayed {
		if relay.MessageType != dhcpv6.MessageTypeRelayForward {
			return
		}
		inner, err := relay.GetInnerMessage()
		if err != nil || inner == nil {
			return
		}
		msg = inner
		if a, ok := netip.AddrFromSlice(relay.LinkAddr); ok && !a.IsUnspecified() {
			i = slices.IndexFunc(s.set.Links, func(l Link) bool {
				return slices.ContainsFunc(l.Prefixes, func(p netif.Prefix) bool { return p.Contains(a) })
			})
		}
		from = netip.Addr{}
	}
	if i < 0 || msg == nil {
		return
	}
	link := &s.set.Links[i]
	if !link.Pool.V6.Serves() {
		return
	}
	out, stored := s.answer(link, from, msg)
	if out == nil {
		return
	}
	var full dhcpv6.DHCPv6 = out
	if relayed {
		wrapped, err := dhcpv6.NewRelayReplFromRelayForw(relay, out)
		if err != nil {
			return
		}
		full = wrapped
	}
	if !stored {
		reply(full)
		return
	}
	log := s.Log
	s.Store.Commit(func(err error) {
		if err != nil {
			log.Error("the lease file was not written, a restart will not know the newest leases", "error", err)
		}
		reply(full)
		if s.Changed != nil {
			s.Changed()
		}
	})
}

// answer makes the reply. stored tells whether leases have changed.
func (s *Server) answer(link *Link, from netip.Addr, m *dhcpv6.Message) (out *dhcpv6.Message, stored bool) {
	c := &client{msg: m, link: link, from: from}
	if id := m.Options.GetOne(dhcpv6.OptionClientID); id != nil {
		c.duid = id.ToBytes()
	}
	if len(c.duid) > 130 { // RFC 8415, 11.1
		return nil, false
	}
	server := m.Options.GetOne(dhcpv6.OptionServerID)
	ours := server != nil && bytes.Equal(server.ToBytes(), link.DUID)
	switch m.MessageType { // RFC 8415, 16
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if server != nil || len(c.duid) == 0 {
			return nil, false
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		if !ours || len(c.duid) == 0 {
			return nil, false
		}
	case dhcpv6.MessageTypeInformationRequest:
		if server != nil && !ours || len(m.Options.IANA()) > 0 || len(m.Options.IAPD()) > 0 {
			return nil, false
		}
	default:
		return nil, false
	}
	c.identify(s.set.Hosts)
	out = &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	out.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: link.DUID})
	if len(c.duid) > 0 {
		out.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: c.duid})
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if m.Options.GetOne(dhcpv6.OptionRapidCommit) == nil {
			out.MessageType = dhcpv6.MessageTypeAdvertise
			s.assign(c, out, false)
			break
		}
		out.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		s.assign(c, out, true)
		stored = true
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		s.assign(c, out, true)
		stored = true
	case dhcpv6.MessageTypeConfirm:
		if !s.confirm(c, out) {
			return nil, false
		}
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		s.release(c, out)
		stored = true
	}
	if n := len(link.DNS); n > 0 && !link.Pool.NoDNS {
		ips := make([]net.IP, 0, n)
		for _, a := range link.DNS {
			ips = append(ips, a.AsSlice())
		}
		out.AddOption(dhcpv6.OptDNS(ips...))
	}
	if len(link.Search) > 0 && !link.Pool.NoDNS && m.IsOptionRequested(dhcpv6.OptionDomainSearchList) {
		out.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: link.Search}))
	}
	return out, stored
}

// identify takes over the name, and finds the `host` sections.
func (c *client) identify(hosts []*config.Host) {
	if f := c.msg.Options.FQDN(); f != nil && f.DomainName != nil && len(f.DomainName.Labels) > 0 {
		n, _, _ := strings.Cut(f.DomainName.Labels[0], ".")
		if config.ValidName(n) {
			c.name = n
		}
	}
	c.host = func(iaid uint32) *config.Host {
		for _, h := range hosts {
			for i, d := range h.DUIDs {
				if bytes.Equal(d, c.duid) && (h.IAIDs[i] == 0 || h.IAIDs[i] == iaid) {
					return h
				}
			}
		}
		return nil
	}
}

func status(code iana.StatusCode, text string) *dhcpv6.OptStatusCode {
	return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text}
}

// maxIAs bounds the identity associations of one message.
const maxIAs = 16

// assign answers the identity associations of a message; with commit they become
// leases.
func (s *Server) assign(c *client, out *dhcpv6.Message, commit bool) {
	nas, pds := c.msg.Options.IANA(), c.msg.Options.IAPD()
	for _, ia := range nas[:min(len(nas), maxIAs)] {
		out.AddOption(s.assignNA(c, ia, commit))
	}
	for _, ia := range pds[:min(len(pds), maxIAs)] {
		out.AddOption(s.assignPD(c, ia, commit))
	}
}

// usable are the prefixes to give addresses of.
func (c *client) usable(now time.Time) []netif.Prefix {
	return slices.DeleteFunc(slices.Clone(c.link.Prefixes), func(p netif.Prefix) bool {
		return !p.Valid.IsZero() && !p.Valid.After(now)
	})
}

// lives are the lifetimes of something in prefix p.
func (c *client) lives(p netif.Prefix, h *config.Host, now time.Time) (preferred, valid time.Duration) {
	most := c.link.Pool.Lease
	if h != nil && h.HasLease {
		most = h.Lease
	}
	if most == 0 {
		most = (1<<32 - 1) * time.Second
	}
	cut := func(t time.Time) time.Duration {
		if t.IsZero() {
			return most
		}
		return min(max(t.Sub(now), 0), most).Truncate(time.Second)
	}
	valid = cut(p.Valid)
	return min(cut(p.Preferred), valid), valid
}

const forever = (1<<32 - 1) * time.Second

// times are T1 and T2 for the shortest life, and when the lease ends.
type times struct {
	preferred, valid time.Duration
}

func (t *times) add(preferred, valid time.Duration) {
	if t.valid == 0 || preferred > 0 && preferred < t.preferred || t.preferred == 0 {
		t.preferred = preferred
	}
	t.valid = max(t.valid, valid)
}

func (t *times) t1() (t1, t2 time.Duration) {
	if t.preferred >= forever {
		return forever, forever
	}
	return (t.preferred / 2).Truncate(time.Second), (t.preferred * 4 / 5).Truncate(time.Second)
}

func (t *times) expires(now time.Time) time.Time {
	if t.valid >= forever {
		return time.Time{}
	}
	return now.Add(t.valid)
}

func (s *Server) lease(c *client, iaid uint32, pd bool) *lease.V6 {
	l := s.Store.Get6(c.duid, iaid, pd)
	if l != nil && !l.Expires.IsZero() && !l.Expires.After(s.now()) {
		return nil
	}
	return l
}

func (s *Server) assignNA(c *client, ia *dhcpv6.OptIANA, commit bool) dhcpv6.Option {
	out := &dhcpv6.OptIANA{IaId: ia.IaId}
	iaid := binary.BigEndian.Uint32(ia.IaId[:])
	now := s.now()
	h := c.host(iaid)
	old := s.lease(c, iaid, false)
	prefixes := c.usable(now)
	if len(prefixes) == 0 || !c.link.Pool.DHCPv6NA || h != nil && h.Ignore || old == nil && s.Store.Len6() >= s.set.LeaseMax {
		out.Options.Add(status(iana.StatusNoAddrsAvail, "no addresses available"))
		return out
	}
	part, ok := s.part(c, iaid, h, old)
	if !ok {
		out.Options.Add(status(iana.StatusNoAddrsAvail, "no addresses available"))
		return out
	}
	var t times
	var addrs []netip.Prefix
	add := func(a netip.Addr, preferred, valid time.Duration) {
		out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: preferred, ValidLifetime: valid})
	}
	for _, p := range prefixes[:min(len(prefixes), maxPrefixes)] {
		if p.Bits() > 64 {
			continue
		}
		b := ra.OnLink(p.Prefix).Addr().As16()
		binary.BigEndian.PutUint64(b[8:], part)
		preferred, valid := c.lives(p, h, now)
		a := netip.AddrFrom16(b)
		add(a, preferred, valid)
		t.add(preferred, valid)
		addrs = append(addrs, netip.PrefixFrom(a, 128))
	}
	if len(addrs) == 0 {
		out.Options.Add(status(iana.StatusNoAddrsAvail, "no addresses available"))
		return out
	}
	// What the client has and must not use any longer.
	for _, o := range ia.Options.Addresses()[:min(len(ia.Options.Addresses()), maxPrefixes)] {
		if a, ok := netip.AddrFromSlice(o.IPv6Addr); ok && !slices.Contains(addrs, netip.PrefixFrom(a, 128)) && c.msg.MessageType != dhcpv6.MessageTypeSolicit {
			add(a, 0, 0)
		}
	}
	out.T1, out.T2 = t.t1()
	if commit {
		s.store(c, &lease.V6{DUID: c.duid, IAID: iaid, Part: part, Addrs: addrs, Expires: t.expires(now)}, old, h)
	}
	return out
}

// maxPrefixes bounds the addresses of one association.
const maxPrefixes = 8

func (s *Server) store(c *client, l, old *lease.V6, h *config.Host) {
	l.DUID = slices.Clone(l.DUID)
	l.Name, l.Device = c.name, c.link.Device
	if h != nil && h.Name != "" {
		l.Name = h.Name
	}
	if l.Name == "" && old != nil {
		l.Name = old.Name
	}
	if old == nil {
		s.allocated++
		s.Log.Info("DHCPv6 lease", "device", l.Device, "addresses", l.Addrs, "name", l.Name)
	} else {
		for _, p := range old.Addrs {
			if !slices.Contains(l.Addrs, p) {
				s.route(p, netip.Addr{}, l)
			}
		}
	}
	s.Store.Put6(l)
	if c.from.IsValid() {
		for _, p := range l.Addrs {
			s.route(p, c.from, l)
		}
	}
}

func (s *Server) route(p netip.Prefix, via netip.Addr, l *lease.V6) {
	if l.PD && s.Route != nil && l.Device != "" {
		s.Route(p, via, l.Device)
	}
}

// part is the host's part of the addresses: configured, kept, or found by a hash
// of who asks, in the range that odhcpd uses.
func (s *Server) part(c *client, iaid uint32, h *config.Host, old *lease.V6) (uint64, bool) {
	if h != nil && h.HostID != 0 {
		return h.HostID, true
	}
	if old != nil && old.Part != 0 {
		return old.Part, true
	}
	const first, size = 0x100, 0xf00
	taken := map[uint64]bool{}
	for _, l := range s.Store.All6() {
		if !l.PD {
			taken[l.Part] = true
		}
	}
	for _, h := range s.set.Hosts {
		taken[h.HostID] = true
	}
	f := fnv.New64a()
	f.Write(c.duid)
	f.Write(binary.BigEndian.AppendUint32(nil, iaid))
	start := f.Sum64() % size
	for i := range uint64(size) {
		if n := first + (start+i)%size; !taken[n] {
			return n, true
		}
	}
	return 0, false
}

// defaultPD is the length of a prefix for those who do not say what they want:
// room for three networks behind the next router.
const defaultPD = 62

func (s *Server) assignPD(c *client, ia *dhcpv6.OptIAPD, commit bool) dhcpv6.Option {
	out := &dhcpv6.OptIAPD{IaId: ia.IaId}
	iaid := binary.BigEndian.Uint32(ia.IaId[:])
	now := s.now()
	none := func() dhcpv6.Option {
		out.Options.Add(status(iana.StatusNoPrefixAvail, "no prefix available"))
		return out
	}
	h := c.host(iaid)
	old := s.lease(c, iaid, true)
	if !c.link.Pool.DHCPv6PD || h != nil && h.Ignore || old == nil && s.Store.Len6() >= s.set.LeaseMax {
		return none()
	}
	length := defaultPD
	asked := ia.Options.Prefixes()
	for _, p := range asked {
		if p.Prefix != nil {
			if n, bits := p.Prefix.Mask.Size(); bits == 128 && n > 0 && n <= 64 {
				length = n
			}
		}
	}
	part := uint64(0)
	if old != nil {
		part, length = old.Part, old.Length
	}
	// The same part of every prefix: the longest of them says how much there is.
	prefixes := slices.DeleteFunc(c.usable(now), func(p netif.Prefix) bool { return p.Bits() >= 64 })
	if len(prefixes) == 0 {
		return none()
	}
	longest := 0
	for _, p := range prefixes {
		longest = max(longest, p.Bits())
	}
	room := uint64(1)<<(64-longest) - 1 // bits of the number of a /64
	part &= room
	if old == nil || part == 0 || length <= longest {
		var ok bool
		if part, length, ok = s.subnet(c, iaid, length, longest); !ok {
			return none()
		}
	}
	var t times
	var addrs []netip.Prefix
	add := func(p netip.Prefix, preferred, valid time.Duration) {
		out.Options.Add(&dhcpv6.OptIAPrefix{PreferredLifetime: preferred, ValidLifetime: valid, Prefix: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}})
	}
	for _, p := range prefixes[:min(len(prefixes), maxPrefixes)] {
		b := p.Masked().Addr().As16()
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])|part)
		q := netip.PrefixFrom(netip.AddrFrom16(b), length)
		preferred, valid := c.lives(p, h, now)
		add(q, preferred, valid)
		t.add(preferred, valid)
		addrs = append(addrs, q)
	}
	for _, o := range asked[:min(len(asked), maxPrefixes)] {
		if o.Prefix == nil || o.Prefix.IP.IsUnspecified() || c.msg.MessageType == dhcpv6.MessageTypeSolicit {
			continue
		}
		a, ok := netip.AddrFromSlice(o.Prefix.IP)
		n, _ := o.Prefix.Mask.Size()
		if p := netip.PrefixFrom(a, n); ok && !slices.Contains(addrs, p) {
			add(p, 0, 0)
		}
	}
	out.T1, out.T2 = t.t1()
	if commit {
		s.store(c, &lease.V6{DUID: c.duid, IAID: iaid, PD: true, Part: part, Length: length, Addrs: addrs, Expires: t.expires(now)}, old, h)
	}
	return out
}

// subnet finds a free part of the prefix of length bits: of the asked length,
// or else of less room. The first /64 is the link's own.
func (s *Server) subnet(c *client, iaid uint32, length, bits int) (part uint64, got int, ok bool) {
	f := fnv.New64a()
	f.Write(c.duid)
	f.Write(binary.BigEndian.AppendUint32(nil, iaid))
	hash := f.Sum64()
	type span struct{ from, to uint64 }
	taken := []span{{0, 0}}
	for _, l := range s.Store.All6() {
		if l.PD && l.Length > 0 && l.Length <= 64 && (l.Device == c.link.Device || l.Device == "") {
			from := l.Part & (1<<(64-bits) - 1)
			taken = append(taken, span{from, from + 1<<(64-l.Length) - 1})
		}
	}
	for n := max(length, bits+1); n <= 64; n++ {
		size := uint64(1) << (64 - n)
		count := uint64(1) << (n - bits)
		for i := range min(count, 1<<16) {
			from := (hash + i) % count * size
			if !slices.ContainsFunc(taken, func(t span) bool { return t.from < from+size && from <= t.to }) {
				return from, n, true
			}
		}
	}
	return 0, 0, false
}

// confirm tells whether a client that has moved is still where its addresses
// are; without any address there is no answer (RFC 8415, 18.3.3).
func (s *Server) confirm(c *client, out *dhcpv6.Message) bool {
	seen, good := false, true
	for _, ia := range c.msg.Options.IANA() {
		for _, o := range ia.Options.Addresses() {
			a, ok := netip.AddrFromSlice(o.IPv6Addr)
			seen = true
			good = good && ok && slices.ContainsFunc(c.link.Prefixes, func(p netif.Prefix) bool { return ra.OnLink(p.Prefix).Contains(a) })
		}
	}
	if good {
		out.AddOption(status(iana.StatusSuccess, "all addresses are on the link"))
	} else {
		out.AddOption(status(iana.StatusNotOnLink, "not on the link"))
	}
	return seen
}

func (s *Server) release(c *client, out *dhcpv6.Message) {
	nas, pds := c.msg.Options.IANA(), c.msg.Options.IAPD()
	for _, ia := range nas[:min(len(nas), maxIAs)] {
		if l := s.Store.Get6(c.duid, binary.BigEndian.Uint32(ia.IaId[:]), false); l != nil {
			s.Store.Drop6(l)
			continue
		}
		o := &dhcpv6.OptIANA{IaId: ia.IaId}
		o.Options.Add(status(iana.StatusNoBinding, "no such lease"))
		out.AddOption(o)
	}
	for _, ia := range pds[:min(len(pds), maxIAs)] {
		if l := s.Store.Get6(c.duid, binary.BigEndian.Uint32(ia.IaId[:]), true); l != nil {
			s.drop(l)
			continue
		}
		o := &dhcpv6.OptIAPD{IaId: ia.IaId}
		o.Options.Add(status(iana.StatusNoBinding, "no such lease"))
		out.AddOption(o)
	}
	out.AddOption(status(iana.StatusSuccess, "released"))
}

func (s *Server) drop(l *lease.V6) {
	s.Store.Drop6(l)
	for _, p := range l.Addrs {
		s.route(p, netip.Addr{}, l)
	}
}

// Expired takes the routes of leases away that ran out.
func (s *Server) Expired(gone []*lease.V6) {
	for _, l := range gone {
		for _, p := range l.Addrs {
			s.route(p, netip.Addr{}, l)
		}
	}
}
