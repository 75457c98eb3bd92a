package dhcp4

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/lease"
)

// Pool is a `dhcp` section with the network that it is for.
type Pool struct {
	*config.Pool
	Device string
	Net    netip.Prefix // masked
	Server netip.Addr   // this host in the network
	First  netip.Addr
	Last   netip.Addr // before First: no addresses without a `host` section
	Domain string     // for option 15
	NoSelf bool       // there is no DNS server on this host
}

// NewPool works out the addresses: start counts from the network's address, as
// LEDE's ipcalc has it, and stays inside of it. ok is false if nothing of the
// range lies in the network.
func NewPool(c *config.Pool, device string, addr netip.Prefix) (Pool, bool) {
	if c.Netmask.IsValid() {
		m := c.Netmask.As4()
		if ones, bits := net.IPMask(m[:]).Size(); bits == 32 && ones > 0 {
			addr = netip.PrefixFrom(addr.Addr(), ones)
		}
	}
	p := Pool{Pool: c, Device: device, Net: addr.Masked(), Server: addr.Addr()}
	if addr.Bits() > 30 {
		return p, false
	}
	base, host := toUint(p.Net.Addr()), uint32(1)<<(32-addr.Bits())-1
	start := c.Start & host
	if start == 0 {
		start = 1
	}
	end := uint64(start) + uint64(c.Limit) - 1
	if c.Limit == 0 {
		end = uint64(start)
	}
	p.First = fromUint(base + start)
	p.Last = fromUint(base + uint32(min(end, uint64(host)-1)))
	if c.Limit == 0 || !c.Dynamic {
		p.Last = netip.AddrFrom4([4]byte{})
	}
	return p, true
}

func toUint(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }
func fromUint(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

func (p *Pool) inRange(a netip.Addr) bool { return !a.Less(p.First) && !p.Last.Less(a) }

// broadcast is the last address of the network.
func (p *Pool) broadcast() netip.Addr {
	return fromUint(toUint(p.Net.Addr()) | (1<<(32-p.Net.Bits()) - 1))
}

// Settings are what the server works by. They are replaced as a whole.
type Settings struct {
	Pools         []Pool
	Hosts         []*config.Host
	Ethers        []Ether
	Tags          []*config.Tag
	Matches       []config.Match
	Boots         []*config.Boot
	Authoritative bool
	Sequential    bool
	NoProbe       bool
	LeaseMax      int
	Quiet         bool
	BootFile      string // for all
	BootServer    string
}

// Ether is a line of /etc/ethers: an address or a name for a MAC address.
type Ether struct {
	MAC  [6]byte
	Addr netip.Addr
	Name string
}

// Action is what happened to a lease.
type Action string

// The actions, as hotplug scripts know them.
const (
	Added   Action = "add"
	Updated Action = "update"
	Removed Action = "remove"
)

// Counters are what `ubus call dnsmasq metrics` shows.
type Counters struct {
	Ack, Decline, Discover, Inform, Nak, Offer, Release, Request, NoAnswer, Allocated uint64
}

// Target is where an answer goes.
type Target struct {
	Addr      netip.Addr       // IP address of the receiver
	Port      uint16           // 67 for relays, else 68
	HW        net.HardwareAddr // the frame's address when the client has no address yet; nil: let the kernel find it
	Broadcast bool             // to everybody on the link
	Source    netip.Addr
}

// Prober finds out whether somebody uses an address of a device's link, and
// calls back, at once or later. It may say no without having looked when there
// is too much to do.
type Prober func(device string, a netip.Addr, done func(used bool))

// Server answers DHCP messages. Its methods may be called from several
// goroutines.
type Server struct {
	Log   *slog.Logger
	Store *lease.Store
	// Changed is told of every lease that comes, is renewed or goes.
	Changed func(Action, *lease.V4)
	Probe   Prober           // nil: by ARP on the device's port
	Now     func() time.Time // nil: time.Now

	mu       sync.Mutex
	set      *Settings
	offers   map[netip.Addr]offer
	taken    map[netip.Addr]time.Time // declined, or found in use by probing; until when
	clear    map[netip.Addr]time.Time // found free by probing; until when
	probing  map[string]*pending      // clients for which an address is being probed
	ports    map[string]*Port
	counters Counters
	lines    int
	lineTime time.Time
}

type offer struct {
	client string
	until  time.Time
}

type pending struct {
	device string
	msg    *dhcpv4.DHCPv4
	send   func(*dhcpv4.DHCPv4, Target)
	tries  int
}

// Bounds, and times that are dnsmasq's.
const (
	maxNotes    = 4096             // offers, taken and clear addresses each
	maxProbing  = 512              // clients waiting for a probe
	offerTime   = 60 * time.Second // an offered address is kept for the client
	declineTime = 10 * time.Minute // a declined one is not offered
	clearTime   = 30 * time.Second // a probe's result holds
	maxTries    = 8                // addresses in use before we give up on one DISCOVER
)

// Apply sets what to work by.
func (s *Server) Apply(set *Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = set
	if s.offers == nil {
		s.offers, s.taken, s.clear = map[netip.Addr]offer{}, map[netip.Addr]time.Time{}, map[netip.Addr]time.Time{}
		s.probing = map[string]*pending{}
	}
}

// SetPort says by which port the addresses of a device are probed; nil: by none.
func (s *Server) SetPort(device string, p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports == nil {
		s.ports = map[string]*Port{}
	}
	if p == nil {
		delete(s.ports, device)
		return
	}
	s.ports[device] = p
}

// prober is how addresses of a pool are probed, nil if they are not.
func (s *Server) prober(p *Pool) Prober {
	if s.set.NoProbe {
		return nil
	}
	if s.Probe != nil {
		return s.Probe
	}
	if port := s.ports[p.Device]; port != nil {
		return func(_ string, a netip.Addr, done func(bool)) { port.Probe(a, done) }
	}
	return nil
}

// Counters tells what was done so far.
func (s *Server) Counters() Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// client is a request with all that is known about who sent it.
type client struct {
	msg  *dhcpv4.DHCPv4
	id   []byte
	key  string
	name string // as it calls itself, without the domain
	fqdn []byte // option 81
	host *config.Host
	addr netip.Addr // configured
	pool *Pool
	tags map[string]bool
}

// Handle works on a message that came in on device. send is called for the
// answer, if there is one, perhaps later and from another goroutine.
func (s *Server) Handle(device string, msg *dhcpv4.DHCPv4, send func(*dhcpv4.DHCPv4, Target)) {
	if msg.OpCode != dhcpv4.OpcodeBootRequest || len(msg.ClientHWAddr) != 6 || msg.HWType != 1 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		return
	}
	s.handle(device, msg, send, 0)
}

func (s *Server) handle(device string, msg *dhcpv4.DHCPv4, send func(*dhcpv4.DHCPv4, Target), tries int) {
	c := s.identify(device, msg)
	if c == nil {
		s.counters.NoAnswer++
		return
	}
	switch msg.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		s.counters.Discover++
		s.discover(c, device, send, tries)
	case dhcpv4.MessageTypeRequest:
		s.counters.Request++
		s.request(c, device, send)
	case dhcpv4.MessageTypeDecline:
		s.counters.Decline++
		s.decline(c)
	case dhcpv4.MessageTypeRelease:
		s.counters.Release++
		s.release(c)
	case dhcpv4.MessageTypeInform:
		s.counters.Inform++
		s.inform(c, send)
	}
}

// identify finds the pool and the configuration of a client; nil if it is not
// served.
func (s *Server) identify(device string, msg *dhcpv4.DHCPv4) *client {
	c := &client{msg: msg, tags: map[string]bool{}}
	if id := msg.Options.Get(dhcpv4.OptionClientIdentifier); len(id) > 1 {
		c.id = id
	}
	c.key = "m" + string(msg.ClientHWAddr)
	if c.id != nil {
		c.key = "i" + string(c.id)
	}
	c.names()
	c.findHost(s.set)
	if c.host != nil && c.host.Ignore {
		return nil
	}
	relay, relayed := netip.AddrFromSlice(msg.GatewayIPAddr.To4())
	relayed = relayed && !relay.IsUnspecified()
	for i := range s.set.Pools {
		p := &s.set.Pools[i]
		if relayed && !p.Net.Contains(relay) || !relayed && p.Device != device {
			continue
		}
		// Several networks on one link: that of the configured address, or
		// of the client's lease, is preferred.
		if c.pool == nil || c.addr.IsValid() && p.Net.Contains(c.addr) && !c.pool.Net.Contains(c.addr) {
			c.pool = p
		}
	}
	if c.pool == nil || !c.pool.V4.Serves() {
		return nil
	}
	if c.addr.IsValid() && !c.pool.Net.Contains(c.addr) {
		c.addr = netip.Addr{}
	}
	c.setTags(s.set)
	if c.host == nil && !c.pool.Dynamic {
		return nil // LEDE: dynamicdhcp 0
	}
	return c
}

// names takes over what the client calls itself (options 12 and 81).
func (c *client) names() {
	name := string(bytes.TrimRight(c.msg.Options.Get(dhcpv4.OptionHostName), "\x00"))
	if f := c.msg.Options.Get(dhcpv4.OptionFQDN); len(f) > 3 {
		c.fqdn = f
		if n := parseFQDN(f); n != "" {
			name = n
		}
	}
	name, _, _ = strings.Cut(name, ".")
	if config.ValidName(name) {
		c.name = name
	}
}

// parseFQDN reads the name of option 81 (RFC 4702), in DNS form or as text.
func parseFQDN(f []byte) string {
	flags, b := f[0], f[3:]
	if flags&0x04 == 0 {
		return string(bytes.TrimRight(b, "\x00"))
	}
	var labels []string
	for len(b) > 0 && b[0] != 0 {
		n := int(b[0])
		if n > 63 || n >= len(b)+1 || 1+n > len(b) {
			return ""
		}
		labels = append(labels, string(b[1:1+n]))
		b = b[1+n:]
	}
	return strings.Join(labels, ".")
}

// findHost looks for the `host` section: by client id, by MAC address, by MAC
// address with wild bytes, by name. /etc/ethers comes last.
func (c *client) findHost(set *Settings) {
	hw := c.msg.ClientHWAddr
	find := func(match func(h *config.Host) bool) bool {
		if c.host != nil {
			return true
		}
		for _, h := range set.Hosts {
			if match(h) {
				c.host = h
				return true
			}
		}
		return false
	}
	_ = c.id != nil && find(func(h *config.Host) bool {
		// Of type 0 or as it stands: people write both.
		return h.ID != nil && (bytes.Equal(h.ID, c.id) || c.id[0] == 0 && bytes.Equal(h.ID, c.id[1:]))
	}) || find(func(h *config.Host) bool {
		return slices.ContainsFunc(h.MACs, func(m config.MAC) bool { return !m.IsWild() && m.Matches(hw) })
	}) || find(func(h *config.Host) bool {
		return slices.ContainsFunc(h.MACs, func(m config.MAC) bool { return m.IsWild() && m.Matches(hw) })
	}) || c.name != "" && find(func(h *config.Host) bool {
		return len(h.MACs) == 0 && h.ID == nil && len(h.DUIDs) == 0 && strings.EqualFold(h.Name, c.name)
	})
	if c.host != nil {
		c.addr = c.host.IP
		if c.host.Name != "" {
			c.name = c.host.Name
		}
		return
	}
	for _, e := range set.Ethers {
		if bytes.Equal(e.MAC[:], hw) {
			c.host = &config.Host{Name: e.Name, IP: e.Addr}
			c.addr = e.Addr
			if e.Name != "" {
				c.name = e.Name
			}
			return
		}
	}
}

func (c *client) setTags(set *Settings) {
	if c.pool.Tag != "" {
		c.tags[c.pool.Tag] = true
	}
	c.tags[c.pool.Interface], c.tags[c.pool.Device] = true, true
	if c.host != nil {
		c.tags["known"] = true
		for _, t := range c.host.Tags {
			c.tags[t] = true
		}
	}
	for _, m := range set.Matches {
		var ok bool
		if m.Code == 0 {
			ok = m.MAC.Matches(c.msg.ClientHWAddr)
		} else if v := c.msg.Options.Get(dhcpv4.GenericOptionCode(m.Code)); v != nil {
			ok = m.Text == "" || bytes.Contains(v, []byte(m.Text))
		}
		if ok {
			c.tags[m.Tag] = true
		}
	}
}

// has tells whether the client has all tags; "!" negates.
func (c *client) has(tags []string) bool {
	for _, t := range tags {
		if n, not := strings.CutPrefix(t, "!"); c.tags[n] == not {
			return false
		}
	}
	return true
}

// discover offers an address.
func (s *Server) discover(c *client, device string, send func(*dhcpv4.DHCPv4, Target), tries int) {
	if p := s.probing[c.key]; p != nil {
		p.msg, p.send = c.msg, send // asked again while we look: the newest gets the answer
		return
	}
	a, probe := s.choose(c)
	if !a.IsValid() {
		s.counters.NoAnswer++
		s.say(slog.LevelWarn, "no address is left for a client", "mac", c.msg.ClientHWAddr, "device", device, "section", c.pool.Name)
		return
	}
	s.note(a, c.key)
	ask := s.prober(c.pool)
	relayed := len(c.msg.GatewayIPAddr) > 0 && !c.msg.GatewayIPAddr.IsUnspecified() // ARP does not reach there
	if !probe || ask == nil || relayed || len(s.probing) >= maxProbing || s.clear[a].After(s.now()) {
		s.offer(c, a, send)
		return
	}
	s.probing[c.key] = &pending{device: device, msg: c.msg, send: send, tries: tries}
	key := c.key
	done := func(used bool) { s.probed(key, a, used) }
	s.mu.Unlock()
	ask(device, a, done)
	s.mu.Lock()
}

// probed goes on after a probe.
func (s *Server) probed(key string, a netip.Addr, used bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.probing[key]
	delete(s.probing, key)
	if p == nil || s.set == nil {
		return
	}
	if used {
		s.say(slog.LevelWarn, "an address is in use by somebody who did not ask for it", "address", a, "device", p.device)
		s.mark(s.taken, a, declineTime)
		delete(s.offers, a)
		if p.tries >= maxTries {
			return
		}
	} else {
		s.mark(s.clear, a, clearTime)
	}
	s.counters.Discover-- // the same one again
	s.handle(p.device, p.msg, p.send, p.tries+1)
}

// mark notes something about an address for a time, within bounds.
func (s *Server) mark(m map[netip.Addr]time.Time, a netip.Addr, d time.Duration) {
	now := s.now()
	if len(m) >= maxNotes {
		for k, t := range m {
			if !t.After(now) || len(m) >= maxNotes {
				delete(m, k)
			}
		}
	}
	m[a] = now.Add(d)
}

// note keeps an offered address for its client.
func (s *Server) note(a netip.Addr, key string) {
	now := s.now()
	if len(s.offers) >= maxNotes {
		for k, o := range s.offers {
			if !o.until.After(now) || len(s.offers) >= maxNotes {
				delete(s.offers, k)
			}
		}
	}
	s.offers[a] = offer{key, now.Add(offerTime)}
}

// choose picks the address to offer. probe tells whether somebody else may sit
// on it.
func (s *Server) choose(c *client) (a netip.Addr, probe bool) {
	if c.addr.IsValid() && s.mayUse(c, c.addr) {
		return c.addr, false
	}
	now := s.now()
	if l := s.Store.Client4(c.id, c.msg.ClientHWAddr); l != nil && c.pool.Net.Contains(l.Addr) && (c.pool.inRange(l.Addr)) && s.mayUse(c, l.Addr) {
		return l.Addr, false
	}
	if s.Store.Len4() >= s.set.LeaseMax {
		return netip.Addr{}, false
	}
	if r, ok := netip.AddrFromSlice(c.msg.RequestedIPAddress().To4()); ok && c.pool.inRange(r) && s.free(c, r, now) {
		return r, true
	}
	first, size := toUint(c.pool.First), uint64(0)
	if !c.pool.Last.Less(c.pool.First) {
		size = uint64(toUint(c.pool.Last)) - uint64(first) + 1
	}
	if size == 0 {
		return netip.Addr{}, false
	}
	start := uint64(0)
	if !s.set.Sequential {
		start = uint64(hash(c.msg.ClientHWAddr)) % size
	}
	// What was offered to others is used last: a flood of requests that lead
	// to nothing must not lock out those who mean it.
	var second netip.Addr
	var until time.Time
	for i := range min(size, maxScan) {
		a := fromUint(first + uint32((start+i)%size))
		if !s.free(c, a, now) {
			continue
		}
		o, offered := s.offers[a]
		if !offered || o.client == c.key || !o.until.After(now) {
			return a, true
		}
		if !second.IsValid() || o.until.Before(until) {
			second, until = a, o.until
		}
	}
	return second, true
}

// maxScan bounds the search for a free address.
const maxScan = 1 << 16

// hash is sdbm over the MAC address, as dnsmasq has it, so that a device that
// was LEDE gives its clients the addresses they had.
func hash(hw []byte) uint32 {
	var h uint32
	for _, b := range hw {
		h = uint32(b) + h<<6 + h<<16 - h
	}
	return max(h, 1)
}

// mayUse tells whether the client may have an address that is meant for it.
func (s *Server) mayUse(c *client, a netip.Addr) bool {
	if s.taken[a].After(s.now()) {
		return false
	}
	l := s.Store.Addr4(a)
	if l == nil || c.owns(l) || s.expired(l) {
		return true
	}
	// Another network card of the same host.
	return c.host != nil && c.host.IP == a && slices.ContainsFunc(c.host.MACs, func(m config.MAC) bool { return m.Matches(l.MAC) })
}

func (s *Server) expired(l *lease.V4) bool { return !l.Expires.IsZero() && !l.Expires.After(s.now()) }

func (c *client) owns(l *lease.V4) bool {
	if c.id != nil && l.ClientID != nil {
		return bytes.Equal(c.id, l.ClientID)
	}
	return bytes.Equal(c.msg.ClientHWAddr, l.MAC)
}

// free tells whether an address of the range can be given to somebody new.
func (s *Server) free(c *client, a netip.Addr, now time.Time) bool {
	if l := s.Store.Addr4(a); l != nil && !c.owns(l) && !s.expired(l) {
		return false
	}
	if s.taken[a].After(now) || a == c.pool.Net.Addr() || a == c.pool.broadcast() {
		return false
	}
	// Old systems do not like .0 and .255 in the middle of a network.
	if b := a.As4(); (b[3] == 0 || b[3] == 255) && a.As4()[0] >= 192 {
		return false
	}
	for i := range s.set.Pools {
		if s.set.Pools[i].Server == a {
			return false
		}
	}
	for _, h := range s.set.Hosts {
		if h.IP == a && h != c.host {
			return false
		}
	}
	return !slices.ContainsFunc(s.set.Ethers, func(e Ether) bool { return e.Addr == a && !bytes.Equal(e.MAC[:], c.msg.ClientHWAddr) })
}

func (s *Server) leaseTime(c *client) time.Duration {
	d := c.pool.Lease
	if c.host != nil && c.host.HasLease {
		d = c.host.Lease
	}
	if want := c.msg.IPAddressLeaseTime(0); want > 0 && (d == 0 || want < d) {
		d = max(want, 2*time.Minute)
		if c.pool.Lease != 0 {
			d = min(d, max(c.pool.Lease, 2*time.Minute))
		}
	}
	return d
}

func (s *Server) offer(c *client, a netip.Addr, send func(*dhcpv4.DHCPv4, Target)) {
	s.counters.Offer++
	r := s.reply(c, dhcpv4.MessageTypeOffer, a)
	send(r, c.target(r))
}

// request grants, prolongs or refuses an address.
func (s *Server) request(c *client, device string, send func(*dhcpv4.DHCPv4, Target)) {
	m := c.msg
	want, _ := netip.AddrFromSlice(m.RequestedIPAddress().To4())
	ciaddr, _ := netip.AddrFromSlice(m.ClientIPAddr.To4())
	server, selecting := netip.AddrFromSlice(m.ServerIdentifier().To4())
	held := s.Store.Client4(c.id, m.ClientHWAddr)
	if !want.IsValid() || want.IsUnspecified() {
		want = ciaddr
	}
	if !want.IsValid() || want.IsUnspecified() {
		return
	}
	if selecting && !s.own(server) {
		// Another server's offer was taken. What the client has here is free.
		for a, o := range s.offers {
			if o.client == c.key {
				delete(s.offers, a)
			}
		}
		if held != nil && held.Addr != want && s.set.Authoritative {
			s.drop(held)
		}
		return
	}
	why := ""
	switch {
	case !c.pool.Net.Contains(want):
		why = "wrong network"
		if !selecting && !s.set.Authoritative {
			return
		}
	case want == c.pool.Server || want == c.pool.Net.Addr() || want == c.pool.broadcast():
		why = "address not available"
	case c.addr.IsValid() && c.addr != want && s.mayUse(c, c.addr):
		why = "static lease available"
	case c.addr == want && s.mayUse(c, want):
		// Its own.
	case held != nil && held.Addr == want && s.mayUse(c, want):
		if !c.pool.inRange(want) {
			why = "address no longer available"
		}
	case !c.pool.inRange(want):
		why = "address not available"
	case !s.free(c, want, s.now()):
		why = "address in use"
	case s.Store.Len4() >= s.set.LeaseMax && held == nil:
		why = "no leases left"
	case held == nil && !selecting && !s.set.Authoritative:
		return // perhaps another server knows this client
	}
	if why != "" {
		s.counters.Nak++
		s.say(slog.LevelInfo, "DHCPNAK", "device", device, "address", want, "mac", m.ClientHWAddr, "why", why)
		r := s.answer(c, dhcpv4.MessageTypeNak, netip.Addr{})
		r.Options.Update(dhcpv4.OptMessage(why))
		send(r, c.target(r))
		return
	}
	s.grant(c, device, want, held, send)
}

// grant stores the lease and sends the ACK once it is in the file.
func (s *Server) grant(c *client, device string, a netip.Addr, held *lease.V4, send func(*dhcpv4.DHCPv4, Target)) {
	l := &lease.V4{Addr: a, MAC: slices.Clone(c.msg.ClientHWAddr), ClientID: slices.Clone(c.id), Name: c.name, Device: c.pool.Device}
	if d := s.leaseTime(c); d > 0 {
		l.Expires = s.now().Add(d)
	}
	action := Added
	if held != nil {
		if l.Name == "" {
			l.Name = held.Name
		}
		if held.Addr == a {
			action = Updated
		} else {
			s.drop(held)
		}
	}
	// A name belongs to the client that asked last, as with dnsmasq.
	if l.Name != "" {
		for _, o := range s.Store.All4() {
			if strings.EqualFold(o.Name, l.Name) && o.Addr != a {
				renamed := *o
				renamed.Name = ""
				s.Store.Put4(&renamed)
				s.tell(Updated, &renamed)
			}
		}
	}
	if old := s.Store.Addr4(a); old != nil && !c.owns(old) {
		s.drop(old)
	}
	s.Store.Put4(l)
	delete(s.offers, a)
	if action == Added {
		s.counters.Allocated++
	}
	s.counters.Ack++
	r := s.reply(c, dhcpv4.MessageTypeAck, a)
	to := c.target(r)
	if !s.set.Quiet {
		s.say(slog.LevelInfo, "DHCPACK", "device", device, "address", a, "mac", l.MAC, "name", l.Name)
	}
	log := s.Log
	s.Store.Commit(func(err error) {
		if err != nil {
			// The lease holds as long as this process runs.
			log.Error("the lease file was not written, a restart will not know the newest leases", "error", err)
		}
		send(r, to)
		s.tell(action, l)
	})
}

func (s *Server) tell(a Action, l *lease.V4) {
	if s.Changed != nil {
		s.Changed(a, l)
	}
}

func (s *Server) drop(l *lease.V4) {
	s.Store.Drop4(l)
	s.tell(Removed, l)
}

func (s *Server) own(a netip.Addr) bool {
	return slices.ContainsFunc(s.set.Pools, func(p Pool) bool { return p.Server == a })
}

func (s *Server) decline(c *client) {
	a, ok := netip.AddrFromSlice(c.msg.RequestedIPAddress().To4())
	if !ok || !c.pool.Net.Contains(a) || !s.own(addrOf(c.msg.ServerIdentifier())) {
		return
	}
	l := s.Store.Addr4(a)
	if l == nil || !c.owns(l) {
		return // only the holder can: else anybody could empty the pool
	}
	s.say(slog.LevelWarn, "DHCPDECLINE: the client says that its address is in use by another", "address", a, "mac", c.msg.ClientHWAddr)
	s.mark(s.taken, a, declineTime)
	s.drop(l)
	s.Store.Commit(nil)
}

func (s *Server) release(c *client) {
	a, ok := netip.AddrFromSlice(c.msg.ClientIPAddr.To4())
	if !ok || !s.own(addrOf(c.msg.ServerIdentifier())) {
		return
	}
	if l := s.Store.Addr4(a); l != nil && c.owns(l) && bytes.Equal(l.MAC, c.msg.ClientHWAddr) {
		s.say(slog.LevelInfo, "DHCPRELEASE", "address", a, "mac", l.MAC)
		s.drop(l)
		s.Store.Commit(nil)
	}
}

func addrOf(ip net.IP) netip.Addr { a, _ := netip.AddrFromSlice(ip.To4()); return a }

func (s *Server) inform(c *client, send func(*dhcpv4.DHCPv4, Target)) {
	a := addrOf(c.msg.ClientIPAddr)
	if !a.IsValid() || a.IsUnspecified() || !c.pool.Net.Contains(a) {
		return
	}
	r := s.reply(c, dhcpv4.MessageTypeAck, netip.Addr{})
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue} {
		delete(r.Options, o.Code())
	}
	send(r, c.target(r))
}

// say logs, a few lines a second at most: a flood must not become one of the
// log.
func (s *Server) say(level slog.Level, msg string, args ...any) {
	const most = 20
	now := s.now()
	if now.Sub(s.lineTime) >= time.Second || now.Before(s.lineTime) {
		s.lineTime, s.lines = now, 0
	}
	if s.lines++; s.lines <= most {
		s.Log.Log(context.Background(), level, msg, args...)
	}
}
