package dnsd

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// serve answers a question that the cache could not settle at once. reply is
// called exactly once, perhaps later and from another goroutine; it may keep
// the bytes. limit is the size of the answer by UDP, 0 for TCP. It keeps neither
// msg nor q.
func (r *Resolver) serve(s *settings, q *query, msg []byte, client netip.Addr, device string, limit int, reply func([]byte)) {
	fail := func(rcode int) { reply(q.appendError(nil, msg, rcode, s.EDNSMax)) }
	switch {
	case q.rcode != 0:
		fail(q.rcode)
		return
	case q.class != dns.ClassINET:
		fail(dns.RcodeRefused)
		return
	case q.qtype == dns.TypeAXFR || q.qtype == dns.TypeIXFR || q.qtype == dns.TypeOPT || q.qtype == dns.TypeNone:
		fail(dns.RcodeNotImplemented)
		return
	}
	name, plain := q.text()
	var v verdict
	if plain {
		v = r.judge(s, name, q.qtype, device)
	} else {
		v.servers = r.general(s)
	}
	if s.LogQueries {
		r.log.Info("query", "name", name, "type", dns.TypeToString[q.qtype], "from", client, "local", v.answered)
	}
	if v.answered {
		r.Counters.Local.Add(1)
		wire, err := q.pack(v)
		if err != nil {
			fail(dns.RcodeServerFailure)
			return
		}
		reply(q.appendAnswer(nil, wire, nil, 0, 0, limit, s.EDNSMax))
		return
	}
	key := q.key(make([]byte, 0, maxName+3))
	// Names came or went here since this was stored: it still is not one of
	// ours, so it stays true.
	gen, now := r.generation(s), r.clock()
	r.cache.mu.Lock()
	if e := r.cache.get(key); e != nil && now < e.expires {
		e.gen = gen
		e.hits++
		out := q.appendAnswer(nil, e.wire, e.ttls, uint32(now-e.stored), 0, limit, s.EDNSMax)
		r.cache.mu.Unlock()
		r.Counters.CacheHits.Add(1)
		reply(out)
		return
	}
	r.cache.mu.Unlock()

	own := *q
	own.name = append([]byte(nil), q.name...)
	head := append([]byte(nil), msg[:q.end]...)
	w := waiter{client: client, done: func(wire []byte, ttls []uint16, age, fixed uint32, rcode int) {
		if wire == nil {
			reply(own.appendError(nil, head, rcode, s.EDNSMax))
			return
		}
		reply(own.appendAnswer(nil, wire, ttls, age, fixed, limit, s.EDNSMax))
	}}
	if !r.forward(s, &own, string(key), v.servers, w) {
		r.Counters.Refused.Add(1)
		fail(dns.RcodeRefused)
	}
}

// Answer answers one message as a client of device would get it by TCP; nil if
// it deserves none. It is the way in for everything but the UDP sockets.
func (r *Resolver) Answer(msg []byte, client netip.Addr, device string, reply func([]byte)) {
	s := r.set.Load()
	var q query
	if s == nil || parseQuery(msg, &q) != nil {
		reply(nil)
		return
	}
	if q.rcode == 0 && q.class == dns.ClassINET && !s.LogQueries {
		key := q.key(make([]byte, 0, maxName+3))
		if out, ok := r.fast(s, &q, key, nil, r.generation(s), r.clock(), 0); ok {
			reply(out)
			return
		}
	}
	r.serve(s, &q, msg, client, device, 0, reply)
}

// frame puts the length in front, as TCP wants it.
func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, len(b)+2), uint16(len(b))), b...)
}
