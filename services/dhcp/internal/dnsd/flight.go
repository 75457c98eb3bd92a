package dnsd

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// flight is a question on its way to the servers. Who asks the same meanwhile
// waits with it.
type flight struct {
	waiters []waiter
	owner   netip.Addr // whose account it is on; invalid: ours
}

type waiter struct {
	client netip.Addr
	done   func(wire []byte, ttls []uint16, age, fixed uint32, rcode int)
}

const (
	// maxWaiters bounds those who wait for one answer.
	maxWaiters = 64
	// negativeMost is the longest time that a name is held not to exist, in s
	// (RFC 2308, 5, suggests up to 3 h).
	negativeMost = 3600
	// keepStale is how long an answer is kept beyond its time, for servers
	// that do not answer; staleTTL is what is then said (RFC 8767, 5), and
	// staleAfter is when we stop to wait for them.
	keepStale  = 24 * 3600
	staleTTL   = 30
	staleAfter = 1800 * time.Millisecond
	// failTTL is how long it is remembered that servers failed (RFC 9520).
	failTTL = 1
	// cacheMost is the longest time in the cache, in s.
	cacheMost = 7 * 24 * 3600
)

// accountOf is the client whose questions are counted together: an IPv6 host has
// a whole network of addresses.
func accountOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// share is how many of the questions under way one client may have.
func share(most int) int { return max(most*2/5, 1) }

// forward asks servers for the client, or lets it wait for one who asks
// already. It reports false if there is too much to do.
func (r *Resolver) forward(s *settings, q *query, key string, servers []netip.AddrPort, w waiter) bool {
	w.client = accountOf(w.client)
	r.fmu.Lock()
	defer r.fmu.Unlock()
	if r.closed {
		return false
	}
	if f := r.flights[key]; f != nil {
		if len(f.waiters) >= maxWaiters {
			return false
		}
		f.waiters = append(f.waiters, w)
		return true
	}
	if len(r.flights) >= s.ForwardMax || r.clients[w.client] >= share(s.ForwardMax) && !w.client.IsLoopback() {
		return false
	}
	r.clients[w.client]++
	r.launch(s, q, key, servers, &flight{waiters: []waiter{w}, owner: w.client})
	return true
}

// refresh fetches an answer anew for nobody in particular.
func (r *Resolver) refresh(s *settings, q *query, key string) {
	name, ok := q.text()
	if !ok {
		return
	}
	v := r.judge(s, name, q.qtype, "")
	r.fmu.Lock()
	defer r.fmu.Unlock()
	// Half of the room is for those who wait.
	if v.answered || r.closed || r.flights[key] != nil || len(r.flights) >= s.ForwardMax/2 {
		return
	}
	r.launch(s, q, key, v.servers, &flight{})
}

// launch starts a flight, with r.fmu held.
func (r *Resolver) launch(s *settings, q *query, key string, servers []netip.AddrPort, f *flight) {
	r.flights[key] = f
	msg := new(dns.Msg)
	name, _, err := dns.UnpackDomainName(q.name, 0)
	if err != nil {
		name = "."
	}
	msg.Question = []dns.Question{{Name: strings.ToLower(name), Qtype: q.qtype, Qclass: q.class}}
	msg.RecursionDesired = true
	msg.CheckingDisabled = q.flags&flagCD != 0
	msg.AuthenticatedData = true // we would like to know (RFC 6840, 5.7)
	msg.SetEdns0(uint16(s.EDNSMax), q.do)
	r.Counters.Forwarded.Add(1)
	gen := r.generation(s)
	r.wg.Go(func() {
		stale := time.AfterFunc(staleAfter, func() { r.giveStale(key) })
		m, err := r.ups.ask(r.ctx, servers, msg, s.Strict, s.All)
		stale.Stop()
		r.land(s, key, gen, m, err)
	})
}

// giveStale answers those who wait with what is too old.
func (r *Resolver) giveStale(key string) bool {
	r.cache.mu.Lock()
	e := r.cache.m[key]
	var wire []byte
	var ttls []uint16
	if now := r.clock(); e != nil && now < e.expires+keepStale && e.wire[3]&rcodeMask != dns.RcodeServerFailure {
		wire, ttls = e.wire, e.ttls
	}
	r.cache.mu.Unlock()
	if wire == nil {
		return false
	}
	r.fmu.Lock()
	f := r.flights[key]
	var waiters []waiter
	if f != nil {
		waiters, f.waiters = f.waiters, nil
	}
	r.fmu.Unlock()
	for _, w := range waiters {
		r.Counters.Stale.Add(1)
		w.done(wire, ttls, 0, staleTTL, 0)
	}
	return true
}

// land ends a flight.
func (r *Resolver) land(s *settings, key string, gen uint64, m *dns.Msg, err error) {
	var e *entry
	if err == nil {
		e, err = r.store(s, key, gen, m)
	}
	if (err != nil || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError) && r.giveStale(key) {
		e = nil
	}
	r.fmu.Lock()
	f := r.flights[key]
	delete(r.flights, key)
	if f.owner.IsValid() {
		if r.clients[f.owner]--; r.clients[f.owner] <= 0 {
			delete(r.clients, f.owner)
		}
	}
	waiters := f.waiters
	r.fmu.Unlock()
	for _, w := range waiters {
		if e == nil {
			r.Counters.Unanswered.Add(1)
			w.done(nil, nil, 0, 0, dns.RcodeServerFailure)
			continue
		}
		w.done(e.wire, e.ttls, 0, 0, 0)
	}
	if err != nil && e == nil && !errors.Is(err, r.ctx.Err()) {
		r.log.Debug("a question was not answered", "name", keyName(key), "error", err)
	}
}

// keyName is the readable name of a key.
func keyName(key string) string {
	name, _, err := dns.UnpackDomainName([]byte(key), 0)
	if err != nil {
		return "?"
	}
	return name
}

// store checks an answer, puts it into the cache and returns it in the form
// that is given to clients.
func (r *Resolver) store(s *settings, key string, gen uint64, m *dns.Msg) (*entry, error) {
	name := strings.ToLower(strings.TrimSuffix(m.Question[0].Name, "."))
	if s.RebindProtect && rebinds(s, name, m.Answer) {
		r.log.Warn("possible DNS-rebind attack detected", "name", name)
		m = &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Question: m.Question}
		// dnsmasq refuses by an answer without addresses as well.
	}
	drop := func(rrs []dns.RR) []dns.RR {
		return slices.DeleteFunc(rrs, func(rr dns.RR) bool {
			t := rr.Header().Rrtype
			return t == dns.TypeOPT || s.FilterA && t == dns.TypeA || s.FilterAAAA && t == dns.TypeAAAA
		})
	}
	cut := m.Truncated
	m.Answer, m.Ns, m.Extra = drop(m.Answer), drop(m.Ns), drop(m.Extra)
	m.Id, m.Authoritative, m.Compress = 0, false, true
	m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	rcode := m.Rcode
	m.Rcode &= rcodeMask // what is above went away with the OPT record
	if rcode != m.Rcode {
		m.Rcode = dns.RcodeServerFailure
	}
	ttl := s.clamp(m)
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	// Records without data come in and cannot be written well: nobody shall get
	// from us what cannot be read.
	if err := new(dns.Msg).Unpack(wire); err != nil {
		return nil, err
	}
	ttls, err := ttlOffsets(wire)
	if err != nil {
		return nil, err
	}
	now := r.clock()
	e := &entry{key: key, wire: slices.Clip(wire), ttls: ttls, stored: now, expires: now + int64(ttl), gen: gen}
	if ttl > 0 && !cut {
		if rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused {
			r.cache.mu.Lock()
			old := r.cache.m[key]
			useful := old != nil && old.wire[3]&rcodeMask != dns.RcodeServerFailure && now < old.expires+keepStale
			r.cache.mu.Unlock()
			if useful {
				return e, nil // what is known is better than that it failed
			}
		}
		r.cache.put(e)
	}
	return e, nil
}

// clamp brings the times to live into the configured bounds and returns how
// long the answer may be kept, in seconds; 0 means not at all.
func (s *settings) clamp(m *dns.Msg) uint32 {
	least := uint32(cacheMost)
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			h := rr.Header()
			if h.Ttl > 1<<31-1 {
				h.Ttl = 0 // RFC 2181, 8
			}
			h.Ttl = max(h.Ttl, s.MinCacheTTL)
			if s.MaxCacheTTL > 0 {
				h.Ttl = min(h.Ttl, s.MaxCacheTTL)
			}
			least = min(least, h.Ttl)
		}
	}
	switch {
	case m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused:
		return failTTL
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return 0
	case len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess && answers(m):
		return least
	}
	// RFC 2308: for as long as the zone says, and no SOA means not at all.
	if s.NoNegCache {
		return 0
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(least, soa.Minttl, negativeMost)
		}
	}
	return 0
}

// answers tells whether the question's type is among the answers, or anything
// but aliases is.
func answers(m *dns.Msg) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == m.Question[0].Qtype || t != dns.TypeCNAME && t != dns.TypeRRSIG && t != dns.TypeDNAME
	})
}

// rebinds tells whether an answer from outside leads into the house.
func rebinds(s *settings, name string, rrs []dns.RR) bool {
	if slices.ContainsFunc(s.rebind, func(d string) bool { return under(name, d) }) {
		return false
	}
	for _, rr := range rrs {
		var a netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			a, _ = netip.AddrFromSlice(rr.A)
		case *dns.AAAA:
			a, _ = netip.AddrFromSlice(rr.AAAA)
		default:
			continue
		}
		a = a.Unmap()
		if !a.IsValid() || a.IsLoopback() && s.RebindLocal {
			continue
		}
		if privateAddr(a) {
			return true
		}
	}
	return false
}
