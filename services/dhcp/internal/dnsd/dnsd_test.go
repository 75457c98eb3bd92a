package dnsd

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weft/services/dhcp/internal/config"
)

// patience bounds every wait; it is no measurement.
const patience = 60 * time.Second

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return r
}

func question(name string, t uint16) []byte {
	m := new(dns.Msg)
	m.SetQuestion(name, t)
	m.SetEdns0(1232, false)
	b, err := m.Pack()
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return b
}

// bed is a resolver without sockets, and servers for it.
type bed struct {
	testing.TB
	*Resolver
	d   config.DNS
	rec config.Records
	src Sources
}

func newBed(t testing.TB, servers ...netip.AddrPort) *bed {
	b := &bed{TB: t, Resolver: New(slog.New(slog.DiscardHandler))}
	b.d = config.DNS{Port: 53, CacheSize: 100, EDNSMax: 1232, ForwardMax: 20, NoResolv: true, NoHosts: true, Domain: "lan", Local: []string{"lan"}, ExpandHosts: true, DomainNeeded: true, BogusPriv: true, RebindProtect: true}
	for _, s := range servers {
		b.d.Servers = append(b.d.Servers, config.Server{Addr: s})
	}
	t.Cleanup(b.Close)
	b.apply()
	return b
}

func (b *bed) apply() {
	b.Helper()
	if err := b.Apply(b.d, b.rec, b.src); err != nil {
		b.Fatal(err)
	}
}

var client = netip.MustParseAddr("192.168.1.10")

// ask asks as one of the clients and waits for the answer.
func (b *bed) ask(name string, t uint16, from ...netip.Addr) *dns.Msg {
	b.Helper()
	c := client
	if len(from) > 0 {
		c = from[0]
	}
	done := make(chan []byte, 1)
	b.Answer(question(name, t), c, "br-lan", func(r []byte) { done <- r })
	select {
	case r := <-done:
		m := new(dns.Msg)
		if err := m.Unpack(r); err != nil {
			b.Fatalf("answer to %s: %v", name, err)
		}
		return m
	case <-time.After(patience):
		b.Fatalf("no answer to %s", name)
		return nil
	}
}

// fakeServer answers by a function; nil is no answer.
type fakeServer struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func newServer(t testing.TB, answer func(q *dns.Msg) *dns.Msg) *fakeServer {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			f.asked.Add(1)
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			if m := answer(q); m != nil {
				b, err := m.Pack()
				if err != nil {
					t.Error(err)
					continue
				}
				_, _ = pc.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return f
}

// reply makes an answer of records.
func reply(q *dns.Msg, records ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	for _, r := range records {
		m.Answer = append(m.Answer, rr(r))
	}
	return m
}

func TestCache(t *testing.T) {
	s := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 300 IN A 9.1.1.1") })
	b := newBed(t, s.addr)
	for range 3 {
		m := b.ask("WWW.Example.net.", dns.TypeA)
		if len(m.Answer) != 1 || m.Question[0].Name != "WWW.Example.net." || !m.RecursionAvailable || m.Rcode != 0 {
			t.Fatalf("answer %v", m)
		}
	}
	b.ask("www.example.NET.", dns.TypeA)
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times for one name", n)
	}
	b.ask("www.example.net.", dns.TypeAAAA)
	if n := s.asked.Load(); n != 2 {
		t.Errorf("asked %d times for two types", n)
	}
	// Time goes by.
	b.start = b.start.Add(-100 * time.Second)
	if m := b.ask("www.example.net.", dns.TypeA); m.Answer[0].Header().Ttl > 200 {
		t.Errorf("TTL %d after 100 s of 300", m.Answer[0].Header().Ttl)
	}
	b.start = b.start.Add(-201 * time.Second)
	b.ask("www.example.net.", dns.TypeA)
	if n := s.asked.Load(); n != 3 {
		t.Errorf("asked %d times; the answer has run out once", n)
	}
	// New local names do not cost the cache, unless they are the same.
	b.rec.Names = []config.Name{{Name: "tv", Addr: netip.MustParseAddr("192.168.1.30")}}
	b.apply()
	b.ask("www.example.net.", dns.TypeA)
	if n := s.asked.Load(); n != 3 {
		t.Errorf("asked %d times; a new name has emptied the cache", n)
	}
	b.rec.Names = append(b.rec.Names, config.Name{Name: "www.example.net", Addr: netip.MustParseAddr("192.168.1.31")})
	b.apply()
	if m := b.ask("www.example.net.", dns.TypeA); len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "192.168.1.31") {
		t.Errorf("a name that became ours: %v", m)
	}
}

// TestCacheBounds fills the cache by far too much.
func TestCacheBounds(t *testing.T) {
	c := newCache(50)
	for i := range 1000 {
		c.put(&entry{key: fmt.Sprintf("name-%d", i), wire: make([]byte, 100+i)})
	}
	n, bytes, _, evicted := c.stats()
	if n > 50 || bytes > 50*bytesPerEntry || evicted < 900 {
		t.Errorf("%d entries, %d bytes, %d pushed out", n, bytes, evicted)
	}
	total := 0
	count := 0
	for e := c.head.next; e != &c.head; e = e.next {
		total += e.size()
		count++
		if c.m[e.key] != e {
			t.Errorf("%s is in the ring, not in the map", e.key)
		}
	}
	if total != bytes || count != n || count != len(c.m) {
		t.Errorf("%d entries of %d bytes, counted as %d of %d", count, total, n, bytes)
	}
	// The one that is used stays.
	c.mu.Lock()
	keep := c.head.prev.key
	c.get([]byte(keep))
	c.mu.Unlock()
	c.put(&entry{key: "new", wire: make([]byte, 100)})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.get([]byte(keep)) == nil {
		t.Error("what was just used was pushed out")
	}
	// What is larger than it makes sense is not kept.
	c.mu.Unlock()
	c.put(&entry{key: "huge", wire: make([]byte, 60000)})
	c.mu.Lock()
	if c.get([]byte("huge")) != nil {
		t.Error("an entry takes more than the cache")
	}
}

func TestNegative(t *testing.T) {
	s := newServer(t, func(q *dns.Msg) *dns.Msg {
		m := reply(q)
		m.Rcode = dns.RcodeNameError
		if !strings.HasPrefix(q.Question[0].Name, "nosoa") {
			m.Ns = []dns.RR{rr("example.net. 3600 IN SOA ns. root. 1 2 3 4 60")}
		}
		return m
	})
	b := newBed(t, s.addr)
	for range 2 {
		if m := b.ask("gone.example.net.", dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Errorf("answer %v", m)
		}
		b.ask("nosoa.example.net.", dns.TypeA)
	}
	if n := s.asked.Load(); n != 3 {
		t.Errorf("asked %d times; only the answer with an SOA may be kept", n)
	}
	b.start = b.start.Add(-61 * time.Second)
	b.ask("gone.example.net.", dns.TypeA)
	if n := s.asked.Load(); n != 4 {
		t.Errorf("asked %d times; the zone said 60 s", n)
	}
}

// TestServers: one does not answer, another refuses; the third one is asked.
func TestServers(t *testing.T) {
	silent := newServer(t, func(*dns.Msg) *dns.Msg { return nil })
	refuses := newServer(t, func(q *dns.Msg) *dns.Msg { m := reply(q); m.Rcode = dns.RcodeRefused; return m })
	forger := newServer(t, func(q *dns.Msg) *dns.Msg {
		m := reply(q, "www.example.net. 300 IN A 6.6.6.6")
		m.Id++
		return m
	})
	good := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 300 IN A 9.1.1.1") })
	b := newBed(t, silent.addr, refuses.addr, forger.addr, good.addr)
	for i := range 5 {
		m := b.ask(fmt.Sprintf("w%d.example.net.", i), dns.TypeA)
		if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "9.1.1.1") {
			t.Fatalf("answer %v", m)
		}
	}
	// Who fails comes last from then on.
	order := b.ups.order([]netip.AddrPort{silent.addr, good.addr}, true)
	if order[0] != silent.addr {
		t.Error("strictorder does not keep the order")
	}
	first := 0
	for range 200 {
		if b.ups.order([]netip.AddrPort{silent.addr, good.addr}, false)[0] == good.addr {
			first++
		}
	}
	if first < 150 {
		t.Errorf("the good server came first %d times of 200", first)
	}
	// All refuse: that is the answer.
	b = newBed(t, refuses.addr)
	if m := b.ask("www.example.net.", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("rcode %v", m.Rcode)
	}
	// Nobody to ask.
	b = newBed(t)
	if m := b.ask("www.example.net.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %v", m.Rcode)
	}
}

// TestDeadServer: a server that is dead is waited for once, not every time.
func TestDeadServer(t *testing.T) {
	dead := newServer(t, func(*dns.Msg) *dns.Msg { return nil })
	good := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 300 IN A 9.1.1.1") })
	b := newBed(t, dead.addr, good.addr)
	const count = 100
	for i := range count {
		if m := b.ask(fmt.Sprintf("w%d.example.net.", i), dns.TypeA); len(m.Answer) != 1 {
			t.Fatalf("answer %v", m)
		}
	}
	// It is tried first now and then, in case it is back.
	if n := dead.asked.Load(); n == 0 || n > count/3 {
		t.Errorf("the dead server was asked %d times for %d names", n, count)
	}
}

// TestStale: when no server answers, what was known is better than nothing.
func TestStale(t *testing.T) {
	var down atomic.Bool
	s := newServer(t, func(q *dns.Msg) *dns.Msg {
		if down.Load() {
			m := reply(q)
			m.Rcode = dns.RcodeServerFailure
			return m
		}
		return reply(q, q.Question[0].Name+" 60 IN A 9.1.1.1")
	})
	b := newBed(t, s.addr)
	b.ask("www.example.net.", dns.TypeA)
	down.Store(true)
	b.start = b.start.Add(-time.Hour)
	for range 2 {
		m := b.ask("www.example.net.", dns.TypeA)
		if m.Rcode != 0 || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("answer %v", m)
		}
	}
	if m := b.ask("other.example.net.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v", m)
	}
	b.start = b.start.Add(-25 * time.Hour)
	if m := b.ask("www.example.net.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("after a day: %v", m)
	}
	down.Store(false)
	b.start = b.start.Add(-10 * time.Second)
	if m := b.ask("www.example.net.", dns.TypeA); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 60 {
		t.Errorf("when the server is back: %v", m)
	}
}

// TestRefresh: what is asked for often is fetched before it ends.
func TestRefresh(t *testing.T) {
	s := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 100 IN A 9.1.1.1") })
	b := newBed(t, s.addr)
	for range 5 {
		b.ask("www.example.net.", dns.TypeA)
	}
	b.start = b.start.Add(-95 * time.Second)
	b.ask("www.example.net.", dns.TypeA)
	end := time.Now().Add(patience)
	for s.asked.Load() != 2 {
		if time.Now().After(end) {
			t.Fatal("it was not fetched anew")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestBounds: one client cannot have all the room, and who asks the same waits
// for the same answer.
func TestBounds(t *testing.T) {
	slow := newServer(t, func(q *dns.Msg) *dns.Msg { return nil })
	good := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 300 IN A 9.1.1.1") })
	b := newBed(t, slow.addr)
	b.d.Servers = append(b.d.Servers, config.Server{Domains: []string{"good.example"}, Addr: good.addr})
	b.apply()
	var refused, waiting atomic.Int64
	for i := range 1000 {
		b.Answer(question(fmt.Sprintf("n%d.example.net.", i), dns.TypeA), client, "br-lan", func(r []byte) {
			if r[3]&15 == dns.RcodeRefused {
				refused.Add(1)
			} else {
				waiting.Add(1)
			}
		})
	}
	// On a machine so slow that the first are given up meanwhile, others get in.
	if n := refused.Load(); n < 1000-5*int64(share(b.d.ForwardMax)) {
		t.Errorf("%d of 1000 questions refused, want all but %d", n, share(b.d.ForwardMax))
	}
	if m := b.ask("www.good.example.", dns.TypeA, netip.MustParseAddr("192.168.1.11")); len(m.Answer) != 1 {
		t.Errorf("another client got %v", m)
	}
	// An IPv6 host has many addresses and one account.
	for i := range 100 {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
		b.Answer(question(fmt.Sprintf("m%d.example.net.", i), dns.TypeA), a, "br-lan", func([]byte) {})
	}
	b.fmu.Lock()
	if n := b.clients[netip.MustParseAddr("2001:db8::")]; len(b.clients) > 3 || n > share(b.d.ForwardMax) || n == 0 {
		t.Errorf("accounts %v", b.clients)
	}
	b.fmu.Unlock()
}

func TestCoalesce(t *testing.T) {
	hold := make(chan struct{})
	s := newServer(t, func(q *dns.Msg) *dns.Msg {
		<-hold
		return reply(q, q.Question[0].Name+" 300 IN A 9.1.1.1")
	})
	b := newBed(t, s.addr)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Add(1)
		q := question("www.example.net.", dns.TypeA)
		binary.BigEndian.PutUint16(q, uint16(i))
		b.Answer(q, client, "br-lan", func(r []byte) {
			defer wg.Done()
			if binary.BigEndian.Uint16(r) != uint16(i) || r[7] != 1 {
				t.Errorf("answer % x to question %d", r[:12], i)
			}
		})
	}
	b.fmu.Lock()
	if len(b.flights) != 1 {
		t.Errorf("%d questions under way for one name", len(b.flights))
	}
	b.fmu.Unlock()
	close(hold)
	wg.Wait()
}

func TestRebind(t *testing.T) {
	answers := map[string]string{
		"private.example.": "192.168.7.7", "loop.example.": "127.0.0.1", "mapped.example.": "10.0.0.1", "ok.trusted.example.": "192.168.7.7", "public.example.": "9.9.9.9",
	}
	s := newServer(t, func(q *dns.Msg) *dns.Msg {
		n := q.Question[0].Name
		if n == "mapped.example." {
			return reply(q, n+" 60 IN AAAA ::ffff:10.0.0.1")
		}
		return reply(q, n+" 60 IN A "+answers[n])
	})
	b := newBed(t, s.addr)
	b.d.RebindDomains = []string{"trusted.example"}
	b.apply()
	for name, want := range map[string]int{"private.example.": 0, "loop.example.": 0, "ok.trusted.example.": 1, "public.example.": 1} {
		if m := b.ask(name, dns.TypeA); len(m.Answer) != want {
			t.Errorf("%s: %d answers, want %d", name, len(m.Answer), want)
		}
	}
	if m := b.ask("mapped.example.", dns.TypeAAAA); len(m.Answer) != 0 {
		t.Errorf("mapped: %v", m)
	}
	b.d.RebindLocal = true
	b.apply()
	if m := b.ask("loop.example.", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("loopback is allowed, got %v", m)
	}
	if m := b.ask("private.example.", dns.TypeA); len(m.Answer) != 0 {
		t.Errorf("private: %v", m)
	}
}

// TestNeverForwarded: names and addresses of the house stay in it.
func TestNeverForwarded(t *testing.T) {
	s := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q) })
	b := newBed(t, s.addr)
	var gen uint64
	var hosts []Host
	b.src.Generation = func() uint64 { return gen }
	b.src.Dynamic = func() []Host { return hosts }
	b.src.OwnName, b.src.OwnAddrs = "router", []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("10.0.0.1")}
	b.src.Nets = map[string][]netip.Prefix{"br-lan": {netip.MustParsePrefix("192.168.1.1/24")}}
	b.d.AddHostname, b.d.Localise = true, true
	b.apply()
	for _, q := range []struct {
		name string
		t    uint16
	}{
		{"laptop.", dns.TypeA}, {"laptop.lan.", dns.TypeA}, {"laptop.lan.", dns.TypeMX}, {"x.local.", dns.TypeA}, {"a.test.", dns.TypeAAAA}, {"b.onion.", dns.TypeA},
		{"7.1.168.192.in-addr.arpa.", dns.TypePTR}, {"1.0.0.127.in-addr.arpa.", dns.TypePTR}, {"1.0.16.172.in-addr.arpa.", dns.TypePTR}, {"254.169.in-addr.arpa.", dns.TypePTR},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR},
	} {
		if m := b.ask(q.name, q.t); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %s", q.name, dns.RcodeToString[m.Rcode])
		}
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("%d questions left the house", n)
	}
	for _, name := range []string{"1.0.32.172.in-addr.arpa.", "8.8.8.8.in-addr.arpa.", "11.in-addr.arpa."} {
		b.ask(name, dns.TypePTR)
	}
	if n := s.asked.Load(); n != 3 {
		t.Errorf("%d of 3 public reverse names were asked for", n)
	}
	// A lease comes: its name is there at once, both ways.
	gen++
	hosts = []Host{{"Laptop", netip.MustParseAddr("192.168.1.7")}, {"laptop", netip.MustParseAddr("fd00::7")}}
	for _, name := range []string{"laptop.", "LAPTOP.lan."} {
		if m := b.ask(name, dns.TypeA); len(m.Answer) != 1 || !m.Authoritative {
			t.Errorf("%s: %v", name, m)
		}
		if m := b.ask(name, dns.TypeAAAA); len(m.Answer) != 1 {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m := b.ask("7.1.168.192.in-addr.arpa.", dns.TypePTR); len(m.Answer) != 1 || m.Answer[0].(*dns.PTR).Ptr != "laptop.lan." {
		t.Errorf("reverse: %v", m)
	}
	// The host's own name leads to the address on the asker's side.
	if m := b.ask("router.lan.", dns.TypeA); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.168.1.1" {
		t.Errorf("router: %v", m)
	}
}

func TestFilterAndAddress(t *testing.T) {
	s := newServer(t, func(q *dns.Msg) *dns.Msg { return reply(q, q.Question[0].Name+" 60 IN A 9.9.9.9") })
	b := newBed(t, s.addr)
	b.d.FilterAAAA = true
	b.d.Addresses = []config.Address{{Domain: "ads.example", Null: true}, {Domain: "two.example", Addr: netip.MustParseAddr("1.2.3.4")}, {Domain: "two.example", Addr: netip.MustParseAddr("2a00::1")}, {Domain: "gone.example"}}
	b.apply()
	for _, tc := range []struct {
		name string
		t    uint16
		want string
	}{
		{"www.example.net.", dns.TypeAAAA, "NOERROR"}, {"x.ads.example.", dns.TypeA, "NOERROR 0.0.0.0"}, {"ads.example.", dns.TypeAAAA, "NOERROR ::"}, {"ads.example.", dns.TypeMX, "NOERROR"},
		{"two.example.", dns.TypeA, "NOERROR 1.2.3.4"}, {"www.two.example.", dns.TypeAAAA, "NOERROR 2a00::1"}, {"gone.example.", dns.TypeA, "NXDOMAIN"}, {"notgone.example.", dns.TypeA, "NOERROR 9.9.9.9"},
	} {
		m := b.ask(tc.name, tc.t)
		got := dns.RcodeToString[m.Rcode]
		for _, r := range m.Answer {
			f := strings.Fields(r.String())
			got += " " + f[len(f)-1]
		}
		if got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.name, dns.TypeToString[tc.t], got, tc.want)
		}
	}
}

// TestDNSSECBits: what the client wants to know about DNSSEC goes there and
// back.
func TestDNSSECBits(t *testing.T) {
	var do, cd atomic.Bool
	s := newServer(t, func(q *dns.Msg) *dns.Msg {
		do.Store(q.IsEdns0() != nil && q.IsEdns0().Do())
		cd.Store(q.CheckingDisabled)
		m := reply(q, q.Question[0].Name+" 60 IN A 9.9.9.9")
		m.AuthenticatedData = true
		if do.Load() {
			m.Answer = append(m.Answer, rr(q.Question[0].Name+" 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example.net. AAAA"))
		}
		return m
	})
	b := newBed(t, s.addr)
	for i, want := range []struct{ do, cd, ad bool }{{}, {do: true}, {do: true, cd: true}, {ad: true}} {
		m := new(dns.Msg)
		m.SetQuestion("signed.example.net.", dns.TypeA)
		if want.do {
			m.SetEdns0(1232, true)
		}
		m.CheckingDisabled, m.AuthenticatedData = want.cd, want.ad
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // from the server, from the cache
			done := make(chan []byte, 1)
			b.Answer(q, client, "br-lan", func(r []byte) { done <- r })
			var r dns.Msg
			if err := r.Unpack(<-done); err != nil {
				t.Fatal(err)
			}
			if r.AuthenticatedData != (want.do || want.ad) || r.CheckingDisabled != want.cd || (r.IsEdns0() != nil) != want.do || len(r.Answer) != map[bool]int{false: 1, true: 2}[want.do] {
				t.Errorf("case %d: %v", i, &r)
			}
		}
		if do.Load() != want.do && i < 3 || cd.Load() != want.cd && i < 3 {
			t.Errorf("case %d: the server saw DO %t, CD %t", i, do.Load(), cd.Load())
		}
	}
}

func TestErrors(t *testing.T) {
	b := newBed(t)
	for _, tc := range []struct {
		name string
		edit func(m *dns.Msg)
		want int // -1: no answer
	}{
		{"an answer", func(m *dns.Msg) { m.Response = true }, -1},
		{"update", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		{"chaos", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"zone transfer", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeNotImplemented},
		{"EDNS of the future", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		m := new(dns.Msg)
		m.SetQuestion("www.example.net.", dns.TypeA)
		tc.edit(m)
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		got := -1
		b.Answer(q, client, "br-lan", func(r []byte) {
			if r == nil {
				return
			}
			var a dns.Msg
			if err := a.Unpack(r); err != nil || a.Id != m.Id || !a.Response {
				t.Errorf("%s: %v, %v", tc.name, &a, err)
			}
			got = a.Rcode
		})
		if got != tc.want {
			t.Errorf("%s: rcode %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestReadHosts(t *testing.T) {
	got := map[string]string{}
	err := ReadHosts(strings.NewReader("127.0.0.1\tlocalhost\n# comment\n192.168.1.5 nas nas.lan # x\nnonsense name\n10.0.0.1\nfe80::1%eth0 link\n1.2.3.4 bad_name ba!d\n"), func(n string, a netip.Addr) { got[n] = a.String() })
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"localhost": "127.0.0.1", "nas": "192.168.1.5", "nas.lan": "192.168.1.5", "link": "fe80::1", "bad_name": "1.2.3.4"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReadResolv(t *testing.T) {
	got := ReadResolv(strings.NewReader("# Interface wan\nnameserver 9.9.9.9\nsearch example\nnameserver 2620:fe::fe\nnameserver 9.9.9.9\nnameserver x\nnameserver 0.0.0.0\nnameserver\n"))
	want := []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("[2620:fe::fe]:53")}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// FuzzQuery: whatever comes in, an answer is well formed and says what was
// asked; what we take for a question, miekg/dns does as well.
func FuzzQuery(f *testing.F) {
	f.Add(question("www.example.net.", dns.TypeA))
	f.Add(question("laptop.lan.", dns.TypeA))
	f.Add(question("7.1.168.192.in-addr.arpa.", dns.TypePTR))
	f.Add(question("files.lan.", dns.TypeANY))
	f.Add(question(".", dns.TypeNS))
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	b := newBed(f)
	b.d.ForwardMax = 1 << 20
	b.rec.Names = []config.Name{{Name: "laptop", Addr: netip.MustParseAddr("192.168.1.7")}}
	b.rec.CNAMEs = []config.CNAME{{Alias: "files.lan", Target: "laptop.lan"}, {Alias: "loop.lan", Target: "loop.lan"}}
	b.apply()
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q query
		if err := parseQuery(msg, &q); err != nil {
			return
		}
		var m dns.Msg
		merr := m.Unpack(msg)
		if q.rcode == 0 && merr == nil && (len(m.Question) != 1 || m.Question[0].Qtype != q.qtype) {
			t.Errorf("read type %d, miekg/dns %v", q.qtype, m.Question)
		}
		done := make(chan []byte, 1)
		b.Answer(msg, client, "br-lan", func(r []byte) { done <- r })
		r := <-done
		var a dns.Msg
		if err := a.Unpack(r); err != nil {
			t.Fatalf("% x: the answer % x is malformed: %v", msg, r, err)
		}
		if a.Id != q.id || !a.Response {
			t.Errorf("answer %v", &a)
		}
	})
}

// FuzzUpstream: whatever a server sends, it is taken for no answer or becomes
// one that is well formed.
func FuzzUpstream(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("www.example.net.", dns.TypeA)
	q.Id = 1
	for _, m := range []*dns.Msg{reply(q, "www.example.net. 300 IN A 9.1.1.1"), reply(q, "www.example.net. 300 IN CNAME x.example.net.", "x.example.net. 5 IN A 10.0.0.1"), reply(q, "www.example.net. 1 IN TXT \"x\"")} {
		m.Ns = []dns.RR{rr("example.net. 3600 IN SOA ns. root. 1 2 3 4 60")}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b := newBed(f)
	s := b.set.Load()
	raw := question("WWW.example.net.", dns.TypeA)
	var ask query
	if err := parseQuery(raw, &ask); err != nil {
		f.Fatal(err)
	}
	key := string(ask.key(nil))
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := acceptable(wire, q)
		if m == nil {
			return
		}
		e, err := b.store(s, key, 0, m)
		if err != nil {
			return
		}
		for _, limit := range []int{0, 512} {
			out := ask.appendAnswer(nil, e.wire, e.ttls, 7, 0, limit, 1232)
			if limit > 0 && len(out) > limit {
				t.Errorf("%d bytes, %d are allowed", len(out), limit)
			}
			var a dns.Msg
			if err := a.Unpack(out); err != nil {
				t.Fatalf("% x became % x: %v", wire, out, err)
			}
			if a.Question[0].Name != "WWW.example.net." {
				t.Errorf("question %v", a.Question)
			}
			for _, r := range a.Answer {
				var ip net.IP // nil for a record without data
				switch r := r.(type) {
				case *dns.A:
					ip = r.A
				case *dns.AAAA:
					ip = r.AAAA
				}
				if a, ok := netip.AddrFromSlice(ip); ok && privateAddr(a) {
					t.Errorf("a private address went through: %v", r)
				}
			}
		}
	})
}

func FuzzReverseAddr(f *testing.F) {
	f.Add("1.0.168.192.in-addr.arpa")
	f.Add("1.0.0.0.d.f.ip6.arpa")
	f.Add("x.ip6.arpa")
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := reverseAddr(s); ok && !p.IsValid() {
			t.Errorf("%q: %v", s, p)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add("192.168.1.1 a b.c # d\n::1 localhost\nnameserver 1.2.3.4\n")
	f.Fuzz(func(t *testing.T, s string) {
		n := newNames()
		_ = ReadHosts(strings.NewReader(s), func(name string, a netip.Addr) { n.addHost(name, "lan", a, true) }) // too long a line is an error
		for _, a := range ReadResolv(strings.NewReader(s)) {
			if !a.IsValid() {
				t.Errorf("%q: server %v", s, a)
			}
		}
	})
}

// BenchmarkCached is an answer from the cache without the sockets.
func BenchmarkCached(b *testing.B) {
	bed := newBed(b)
	s := bed.set.Load()
	keys := make([][]byte, 100)
	for i := range keys {
		raw := question(fmt.Sprintf("host-%d.example.net.", i), dns.TypeA)
		var q query
		if err := parseQuery(raw, &q); err != nil {
			b.Fatal(err)
		}
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("host-%d.example.net.", i), dns.TypeA)
		if _, err := bed.store(s, string(q.key(nil)), bed.generation(s), reply(m, fmt.Sprintf("host-%d.example.net. 300 IN A 9.1.1.1", i))); err != nil {
			b.Fatal(err)
		}
		keys[i] = raw
	}
	out, key := make([]byte, 0, 512), make([]byte, 0, 300)
	gen := bed.generation(s)
	b.ReportAllocs()
	for b.Loop() {
		var q query
		raw := keys[rand.IntN(len(keys))]
		if parseQuery(raw, &q) != nil {
			b.Fatal("no query")
		}
		if _, ok := bed.fast(s, &q, q.key(key[:0]), out[:0], gen, bed.clock(), 1232); !ok {
			b.Fatal("not in the cache")
		}
	}
}
