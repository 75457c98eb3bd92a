package dnsd

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"weft/services/dhcp/internal/config"
)

// Host is a name that comes and goes: a lease, or this host on an interface.
type Host struct {
	Name string
	Addr netip.Addr
}

// Sources are what the resolver reads beside its settings.
type Sources struct {
	// Dynamic lists the names of leases; Generation grows when it would list
	// something else.
	Dynamic    func() []Host
	Generation func() uint64
	// Own is this host's name, and its addresses on the LAN.
	OwnName  string
	OwnAddrs []netip.Addr
	HostsDir string // further hosts files
	EtcHosts string // "" for none
	// Nets are the networks of each device, for answers to be local to who asks.
	Nets map[string][]netip.Prefix
}

// Counters are what `ubus call dnsmasq metrics` shows.
type Counters struct {
	Forwarded, Local, CacheHits, Stale, Unanswered, Refused, TCP atomic.Uint64
}

// Resolver answers questions. Its methods may be called from several goroutines.
type Resolver struct {
	log   *slog.Logger
	start time.Time
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	cache *cache
	ups   upstreams
	file  resolvFile

	Counters Counters

	set atomic.Pointer[settings]
	// gen changes with anything that may make a name local or change its rule.
	gen atomic.Uint64

	nmu     sync.Mutex
	dynamic *names
	dynGen  uint64
	dynSet  *settings

	fmu     sync.Mutex
	flights map[string]*flight
	clients map[netip.Addr]int
	closed  bool
}

// settings are one configuration; never changed once in use.
type settings struct {
	config.DNS
	src     Sources
	fixed   *names
	rules   []rule
	servers []netip.AddrPort // general ones of the configuration
	rebind  []string
}

// New makes a resolver that answers nothing until Apply. Close ends it.
func New(log *slog.Logger) *Resolver {
	r := &Resolver{log: log, start: time.Now(), cache: newCache(0), flights: map[string]*flight{}, clients: map[netip.Addr]int{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends all questions that are under way.
func (r *Resolver) Close() {
	r.fmu.Lock()
	r.closed = true
	r.fmu.Unlock()
	r.stop()
	r.wg.Wait()
}

// clock is in seconds and does not jump when the time of day is set.
func (r *Resolver) clock() int64 { return int64(time.Since(r.start) / time.Second) }

// Apply sets what to answer by. What is in the cache stays, unless what decides
// about its content (filters, rebind protection, servers) has changed.
func (r *Resolver) Apply(d config.DNS, rec config.Records, src Sources) error {
	s := &settings{DNS: d, src: src, rules: rules(&d), rebind: d.RebindDomains}
	for _, v := range d.Servers {
		if len(v.Domains) == 0 && v.Addr.IsValid() {
			s.servers = append(s.servers, v.Addr)
		}
	}
	n := newNames()
	for _, v := range rec.Names {
		n.addHost(v.Name, d.Domain, v.Addr, d.ExpandHosts)
	}
	for _, v := range rec.CNAMEs {
		alias := strings.ToLower(v.Alias)
		n.cnames[alias] = strings.ToLower(v.Target)
		if d.ExpandHosts && d.Domain != "" && !strings.Contains(alias, ".") {
			n.cnames[alias+"."+strings.ToLower(d.Domain)] = strings.ToLower(v.Target)
		}
	}
	for _, v := range rec.MXs {
		k := strings.ToLower(v.Domain)
		n.mx[k] = append(n.mx[k], v)
		n.above(k)
	}
	for _, v := range rec.SRVs {
		k := strings.ToLower(v.Name)
		n.srv[k] = append(n.srv[k], v)
		n.above(k)
	}
	var bad error
	add := func(name string, a netip.Addr) { n.addHost(name, d.Domain, a, d.ExpandHosts) }
	var files []string
	if !d.NoHosts && src.EtcHosts != "" {
		files = append(files, src.EtcHosts)
	}
	if src.HostsDir != "" {
		files = append(files, src.HostsDir)
	}
	for _, f := range append(files, d.HostsFiles...) {
		if err := readHostsAt(f, add); err != nil && bad == nil {
			bad = err
		}
	}
	if d.AddHostname && config.ValidName(src.OwnName) {
		for _, a := range src.OwnAddrs {
			n.addHost(src.OwnName, d.Domain, a, true)
		}
	}
	s.fixed = n

	old := r.set.Load()
	path := d.ResolvFile
	if d.NoResolv {
		path = ""
	}
	r.file.set(path)
	r.cache.resize(d.CacheSize)
	if old != nil && !sameContent(old, s) {
		r.cache.flush()
	}
	r.set.Store(s)
	r.gen.Add(1)
	return bad
}

// sameContent tells whether answers got under a still hold under b.
func sameContent(a, b *settings) bool {
	return a.RebindProtect == b.RebindProtect && a.RebindLocal == b.RebindLocal && slices.Equal(a.rebind, b.rebind) &&
		a.FilterA == b.FilterA && a.FilterAAAA == b.FilterAAAA && a.NoNegCache == b.NoNegCache &&
		slices.EqualFunc(a.Servers, b.Servers, func(x, y config.Server) bool {
			return x.Addr == y.Addr && x.Default == y.Default && slices.Equal(x.Domains, y.Domains)
		}) &&
		a.MinCacheTTL == b.MinCacheTTL && a.MaxCacheTTL == b.MaxCacheTTL
}

// Flush empties the cache.
func (r *Resolver) Flush() { r.cache.flush() }

// CacheStats tells the entries and bytes of the cache, and how many were put in
// and pushed out before their time.
func (r *Resolver) CacheStats() (entries, bytes int, inserted, evicted uint64) {
	return r.cache.stats()
}

// leases are the names of leases, as of now.
func (r *Resolver) leases(s *settings) *names {
	if s.src.Dynamic == nil {
		return nil
	}
	gen := s.src.Generation()
	r.nmu.Lock()
	defer r.nmu.Unlock()
	if r.dynamic == nil || r.dynGen != gen || r.dynSet != s {
		n := newNames()
		for _, h := range s.src.Dynamic() {
			n.addHost(h.Name, s.Domain, h.Addr, true)
		}
		r.dynamic, r.dynGen, r.dynSet = n, gen, s
	}
	return r.dynamic
}

// generation is what a cache entry's must equal to be used without thinking.
func (r *Resolver) generation(s *settings) uint64 {
	if s.src.Generation != nil {
		return r.gen.Load()<<32 ^ s.src.Generation()
	}
	return r.gen.Load() << 32
}

// fast answers from the cache, if that is possible without thinking.
func (r *Resolver) fast(s *settings, q *query, key []byte, out []byte, gen uint64, now int64, limit int) ([]byte, bool) {
	c := r.cache
	c.mu.Lock()
	e := c.get(key)
	if e == nil || e.gen != gen || now >= e.expires {
		c.mu.Unlock()
		return out, false
	}
	e.hits++
	again := false
	if life := e.expires - e.stored; !e.refreshing && life >= 30 && e.hits > 2 && e.expires-now <= life/10 {
		e.refreshing, again = true, true
	}
	out = q.appendAnswer(out, e.wire, e.ttls, uint32(now-e.stored), 0, limit, s.EDNSMax)
	c.mu.Unlock()
	r.Counters.CacheHits.Add(1)
	if again {
		r.refresh(s, q, string(key))
	}
	return out, true
}

// verdict is what local knowledge says about a question.
type verdict struct {
	answered bool
	rcode    int
	answer   []dns.RR
	auth     bool // the names are ours
	servers  []netip.AddrPort
}

func header(name string, t uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: dns.Fqdn(name), Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

func addrRR(name string, a netip.Addr, ttl uint32) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()}
}

// judge decides about a question: answered from what is known here, or whom to
// ask.
func (r *Resolver) judge(s *settings, name string, qtype uint16, device string) verdict {
	dyn := r.leases(s)
	if v := r.localAnswer(s, dyn, name, qtype, device); v.answered {
		return v
	}
	known := s.fixed.has(name) || dyn != nil && dyn.has(name)
	nothing := func() verdict {
		v := verdict{answered: true, rcode: dns.RcodeNameError}
		if known {
			v.rcode = dns.RcodeSuccess
		}
		return v
	}
	m := match(s.rules, name, qtype)
	if m != nil && m.address != nil {
		v := verdict{answered: true, auth: true}
		a := m.address.Addr
		switch {
		case m.address.Null && qtype == dns.TypeA:
			a = netip.IPv4Unspecified()
		case m.address.Null && qtype == dns.TypeAAAA:
			a = netip.IPv6Unspecified()
		case m.address.Null:
		case !a.IsValid():
			v.rcode = dns.RcodeNameError
		}
		if a.IsValid() && (qtype == dns.TypeA && a.Is4() || qtype == dns.TypeAAAA && a.Is6()) {
			v.answer = []dns.RR{addrRR(name, a, s.LocalTTL)}
		}
		return v
	}
	if m != nil && !m.general {
		if len(m.servers) > 0 {
			return verdict{servers: m.servers}
		}
		return nothing()
	}
	if qtype == dns.TypePTR && s.BogusPriv {
		if p, ok := reverseAddr(name); ok && privateNet(p) {
			return nothing()
		}
	}
	if s.DomainNeeded && (qtype == dns.TypeA || qtype == dns.TypeAAAA) && !strings.Contains(name, ".") {
		return nothing()
	}
	if qtype == dns.TypeA && s.FilterA || qtype == dns.TypeAAAA && s.FilterAAAA {
		return verdict{answered: true}
	}
	return verdict{servers: r.general(s)}
}

// privateNet tells whether all of a reverse zone is private.
func privateNet(p netip.Prefix) bool {
	for _, q := range privateNets {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	for _, q := range sharedNets {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// privateNets are those of privateAddr.
var privateNets = [...]netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), 8), netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16}), 12), netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168}), 16),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16),
	netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd}), 8), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
	netip.PrefixFrom(netip.AddrFrom16([16]byte{}), 127),
}

// general are the servers for everything.
func (r *Resolver) general(s *settings) []netip.AddrPort {
	out := s.servers
	for _, a := range r.file.get() {
		// Asking ourselves goes round in circles.
		if a.Port() == uint16(s.Port) && (a.Addr().IsLoopback() || slices.Contains(s.src.OwnAddrs, a.Addr())) {
			continue
		}
		if !slices.Contains(out, a) {
			out = append(slices.Clip(out), a)
		}
	}
	return out
}

func (n *names) has(name string) bool {
	if _, ok := n.parents[name]; ok {
		return true
	}
	return len(n.addrs[name]) > 0 || n.cnames[name] != "" || len(n.mx[name]) > 0 || len(n.srv[name]) > 0
}

// localAnswer answers from hosts files, leases and records.
func (r *Resolver) localAnswer(s *settings, dyn *names, name string, qtype uint16, device string) verdict {
	v := verdict{auth: true}
	ttl := s.LocalTTL
	if qtype == dns.TypePTR {
		p, ok := reverseAddr(name)
		if !ok || p.Bits() != p.Addr().BitLen() {
			return verdict{}
		}
		host, ok := s.fixed.reverse[p.Addr()]
		if !ok && dyn != nil {
			host, ok = dyn.reverse[p.Addr()]
		}
		if !ok {
			return verdict{}
		}
		v.answered, v.answer = true, []dns.RR{&dns.PTR{Hdr: header(name, dns.TypePTR, ttl), Ptr: dns.Fqdn(host)}}
		return v
	}
	owner := name
	for range 10 { // aliases of aliases, but not for ever
		target, ok := s.fixed.cnames[owner]
		if !ok {
			break
		}
		v.answered = true
		v.answer = append(v.answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME, ttl), Target: dns.Fqdn(target)})
		owner = target
	}
	if qtype == dns.TypeCNAME {
		if len(v.answer) > 1 {
			v.answer = v.answer[:1]
		}
		return v
	}
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY:
		addrs := s.fixed.addrs[owner]
		if dyn != nil {
			addrs = append(slices.Clip(addrs), dyn.addrs[owner]...)
		}
		var fit []netip.Addr
		for _, a := range addrs {
			if (qtype != dns.TypeAAAA && a.Is4() || qtype != dns.TypeA && a.Is6()) && !slices.Contains(fit, a) {
				fit = append(fit, a)
			}
		}
		if nets := s.src.Nets[device]; s.Localise && len(fit) > 1 {
			near := slices.DeleteFunc(slices.Clone(fit), func(a netip.Addr) bool { return a.Is4() && !inAny(a, nets) })
			if slices.ContainsFunc(near, netip.Addr.Is4) {
				fit = near
			}
		}
		for _, a := range fit {
			v.answer = append(v.answer, addrRR(owner, a, ttl))
		}
	case dns.TypeMX:
		for _, m := range s.fixed.mx[owner] {
			v.answer = append(v.answer, &dns.MX{Hdr: header(owner, dns.TypeMX, ttl), Preference: m.Pref, Mx: dns.Fqdn(m.Relay)})
		}
	case dns.TypeSRV:
		for _, m := range s.fixed.srv[owner] {
			v.answer = append(v.answer, &dns.SRV{Hdr: header(owner, dns.TypeSRV, ttl), Priority: m.Priority, Weight: m.Weight, Port: m.Port, Target: dns.Fqdn(m.Target)})
		}
	}
	v.answered = v.answered || len(v.answer) > 0
	return v
}

// pack makes the wire form of an answer built here.
func (q *query) pack(v verdict) ([]byte, error) {
	name, _, err := dns.UnpackDomainName(q.name, 0)
	if err != nil {
		return nil, err
	}
	m := &dns.Msg{Compress: true, Question: []dns.Question{{Name: name, Qtype: q.qtype, Qclass: q.class}}, Answer: v.answer}
	m.Rcode, m.Authoritative = v.rcode, v.auth
	return m.Pack()
}

// EtcHostsDefault is where the hosts file is.
const EtcHostsDefault = "/etc/hosts"

// OwnName is the name of this host, without a domain.
func OwnName() string {
	h, _ := os.Hostname() // none: then there is no name to answer
	h, _, _ = strings.Cut(h, ".")
	return h
}
