package mdns

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// offline is a responder without sockets that has its name.
func offline() *Responder {
	return &Responder{
		log: slog.New(slog.DiscardHandler), base: "router", ready: true, restart: make(chan struct{}, 1),
		addrs: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fe80::1")},
	}
}

func query(name string, t uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, t)
	return m
}

func TestAnswer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		q      *dns.Msg
		legacy bool
		want   int // records
		direct bool
	}{
		{"address", query("router.local.", dns.TypeA), false, 1, false},
		{"in capitals", query("ROUTER.Local.", dns.TypeAAAA), false, 1, false},
		{"all", query("router.local.", dns.TypeANY), false, 2, false},
		{"reverse", query("1.1.168.192.in-addr.arpa.", dns.TypePTR), false, 1, false},
		{"somebody else", query("printer.local.", dns.TypeA), false, 0, false},
		{"other type", query("router.local.", dns.TypeMX), false, 0, false},
		{"by unicast DNS", query("router.local.", dns.TypeA), true, 1, true},
	} {
		m, direct := offline().Answer(tc.q, tc.legacy)
		n := 0
		if m != nil {
			n = len(m.Answer)
		}
		if n != tc.want || direct != tc.direct {
			t.Errorf("%s: %d records, direct %t: %v", tc.name, n, direct, m)
		}
	}
	// A question that wants its answer alone.
	q := query("router.local.", dns.TypeA)
	q.Question[0].Qclass |= unicastBit
	if m, direct := offline().Answer(q, false); m == nil || !direct {
		t.Errorf("unicast question: %v, %t", m, direct)
	}
	// Who knows it already is not told again.
	q = query("router.local.", dns.TypeA)
	q.Answer = []dns.RR{&dns.A{Hdr: header("router.local.", dns.TypeA, 100, false), A: []byte{192, 168, 1, 1}}}
	if m, _ := offline().Answer(q, false); m != nil {
		t.Errorf("known answer: %v", m)
	}
	q.Answer[0].Header().Ttl = 10
	if m, _ := offline().Answer(q, false); m == nil {
		t.Error("a record that is about to end was not renewed")
	}
	// Once a second to all.
	r := offline()
	if m, _ := r.Answer(query("router.local.", dns.TypeA), false); m == nil {
		t.Error("no answer")
	}
	if m, _ := r.Answer(query("router.local.", dns.TypeA), false); m != nil {
		t.Error("two answers to all within a moment")
	}
	r.ready = false
	if m, _ := r.Answer(query("router.local.", dns.TypeA), true); m != nil {
		t.Error("answered for a name that is not ours yet")
	}
}

func TestConflict(t *testing.T) {
	r := offline()
	ours := &dns.Msg{Answer: []dns.RR{&dns.A{Hdr: header("router.local.", dns.TypeA, 120, true), A: []byte{192, 168, 1, 1}}}}
	r.heard(ours)
	if !r.ready || r.conflict {
		t.Error("our own record is no conflict")
	}
	ours.Answer[0].(*dns.A).A[3] = 9
	r.heard(ours)
	if r.ready || !r.conflict {
		t.Error("somebody else's record is one")
	}
}

func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{query("router.local.", dns.TypeANY), query("1.1.168.192.in-addr.arpa.", dns.TypePTR)} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m dns.Msg
		if m.Unpack(b) != nil {
			return
		}
		r := offline()
		r.heard(&m)
		r.ready = true
		if a, _ := r.Answer(&m, len(b)%2 == 0); a != nil {
			if _, err := a.Pack(); err != nil {
				t.Errorf("the answer cannot be sent: %v", err)
			}
		}
	})
}
