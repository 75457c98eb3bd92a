package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// scripted6 is a DHCPv6 server that follows a list.
type scripted6 struct {
	start time.Time
	log   []string // message and second
	// reply answers a message; nil is silence.
	reply func(n int, m *dhcpv6.Message) []*dhcpv6.Message
	count int
}

type fake6 struct {
	s  *scripted6
	in chan []byte
}

func (f *fake6) send(b []byte) error {
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		return err
	}
	s := f.s
	s.log = append(s.log, m.MessageType.String()+" at "+time.Since(s.start).Round(time.Second).String())
	s.count++
	for _, a := range s.reply(s.count, m) {
		f.in <- a.ToBytes()
	}
	return nil
}

func (f *fake6) packets() <-chan []byte { return f.in }
func (f *fake6) close()                 {}

var serverID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}

var testIAID = iaidOf("wan6")

// give answers with a prefix, and an address if it is named, for an hour.
func give(m *dhcpv6.Message, prefix, addr string, valid time.Duration, more ...dhcpv6.Option) *dhcpv6.Message {
	kind := dhcpv6.MessageTypeReply
	if m.MessageType == dhcpv6.MessageTypeSolicit {
		kind = dhcpv6.MessageTypeAdvertise
	}
	r := &dhcpv6.Message{MessageType: kind, TransactionID: m.TransactionID}
	if id := m.Options.ClientID(); id != nil {
		r.AddOption(dhcpv6.OptClientID(id))
	}
	r.AddOption(dhcpv6.OptServerID(serverID))
	if prefix != "" {
		ia := &dhcpv6.OptIAPD{IaId: testIAID}
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: toIPNet(netip.MustParsePrefix(prefix)), PreferredLifetime: valid, ValidLifetime: valid})
		r.AddOption(ia)
	}
	if addr != "" {
		ia := &dhcpv6.OptIANA{IaId: testIAID}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(addr), PreferredLifetime: valid, ValidLifetime: valid})
		r.AddOption(ia)
	}
	for _, o := range more {
		r.AddOption(o)
	}
	return r
}

func noBinding(m *dhcpv6.Message) *dhcpv6.Message {
	r := give(m, "", "", 0)
	ia := &dhcpv6.OptIAPD{IaId: testIAID}
	ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding})
	r.AddOption(ia)
	return r
}

// TestClient6Times runs the client against scripted servers in virtual time.
func TestClient6Times(t *testing.T) {
	one := func(m *dhcpv6.Message) []*dhcpv6.Message { return []*dhcpv6.Message{m} }
	const p = "2001:db8:1::/56"
	for _, tt := range []struct {
		name   string
		reply  func(n int, m *dhcpv6.Message) []*dhcpv6.Message
		opts   func(*DHCPv6Options)
		kick   time.Duration
		run    time.Duration
		log    string // types of messages, each run of one type once
		leases string // prefix of each lease, - lost
	}{
		{"renews at half time", func(n int, m *dhcpv6.Message) []*dhcpv6.Message { return one(give(m, p, "", time.Hour)) }, nil, 0, 65 * time.Minute,
			"SOLICIT REQUEST RENEW", p + " " + p + " " + p},
		{"asks again when asked to", func(n int, m *dhcpv6.Message) []*dhcpv6.Message { return one(give(m, p, "", time.Hour)) }, nil, time.Minute, 20 * time.Minute,
			"SOLICIT REQUEST RENEW", p + " " + p},
		{"any server may go on", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			if m.MessageType == dhcpv6.MessageTypeRenew {
				return nil
			}
			return one(give(m, p, "", time.Hour))
		}, nil, 0, 50 * time.Minute, "SOLICIT REQUEST RENEW REBIND", p + " " + p},
		{"all are silent, and it is over", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			if n > 2 {
				return nil
			}
			return one(give(m, p, "", 30*time.Second))
		}, nil, 0, 33 * time.Second, "SOLICIT REQUEST RENEW REBIND SOLICIT", p + " -"},
		{"a server that forgot gives it again", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			if m.MessageType == dhcpv6.MessageTypeRenew {
				return one(noBinding(m))
			}
			return one(give(m, p, "", time.Hour))
		}, nil, time.Minute, 5 * time.Minute, "SOLICIT REQUEST RENEW REQUEST", p + " " + p},
		{"another prefix at the renewal", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			if n < 3 {
				return one(give(m, p, "", time.Hour))
			}
			r := give(m, "2001:db8:2::/56", "", time.Hour)
			old := give(m, p, "", 0).Options.OneIAPD()
			r.AddOption(old)
			return one(r)
		}, nil, time.Minute, 5 * time.Minute, "SOLICIT REQUEST RENEW", p + " 2001:db8:2::/56"},
		{"the best of two servers", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			if m.MessageType != dhcpv6.MessageTypeSolicit {
				return one(give(m, m.Options.OneIAPD().Options.Prefixes()[0].Prefix.String(), "", time.Hour))
			}
			return []*dhcpv6.Message{give(m, "2001:db8:7::/56", "", time.Hour), give(m, "2001:db8:8::/56", "", time.Hour, dhcpv6.OptPreference(200)), give(m, "2001:db8:9::/56", "", time.Hour)}
		}, nil, 0, time.Minute, "SOLICIT REQUEST", "2001:db8:8::/56"},
		{"servers with nothing to give are asked for the rest", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			return one(give(m, "", "", 0, dhcpv6.OptDNS(net.ParseIP("2001:db8::53"))))
		}, nil, 0, 40 * time.Second, "SOLICIT INFORMATION-REQUEST", ""},
		{"nothing wanted but information", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			return one(give(m, "", "", 0, dhcpv6.OptDNS(net.ParseIP("2001:db8::53"))))
		}, func(o *DHCPv6Options) { o.Prefix, o.Address = false, "none" }, 0, 25 * time.Hour, "INFORMATION-REQUEST", " "},
		{"answers for others are no answers", func(n int, m *dhcpv6.Message) []*dhcpv6.Message {
			wrong := give(m, p, "", time.Hour)
			wrong.TransactionID[0]++
			other := give(m, p, "", time.Hour)
			other.UpdateOption(dhcpv6.OptClientID(serverID))
			return []*dhcpv6.Message{wrong, other}
		}, nil, 0, 4 * time.Second, "SOLICIT", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.run)
				defer cancel()
				s := &scripted6{start: time.Now(), reply: tt.reply}
				var leases []string
				c := &client6{
					open: func(context.Context) (transport6, error) { return &fake6{s, make(chan []byte, 16)}, nil },
					duid: (&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}).ToBytes(), iaid: testIAID,
					opts: DHCPv6Options{Address: "try", Prefix: true}, log: quiet, kick: make(chan struct{}, 1),
					lease: func(l *lease6) {
						if l == nil {
							leases = append(leases, "-")
							return
						}
						leases = append(leases, strings.Join(names(l.prefixes), "+"))
					},
				}
				if tt.opts != nil {
					tt.opts(&c.opts)
				}
				if tt.kick > 0 {
					time.AfterFunc(tt.kick, func() { poke(c.kick) })
				}
				c.run(ctx)
				var kinds []string
				for _, l := range s.log {
					kinds = append(kinds, strings.Fields(l)[0])
				}
				kinds = slices.Compact(kinds) // how often depends on chance
				if d := cmp.Diff(tt.log, strings.Join(kinds, " ")); d != "" {
					t.Errorf("messages %v, -want +got\n%s", s.log, d)
				}
				if got := strings.Join(leases, " "); got != tt.leases {
					t.Errorf("leases %q, want %q", got, tt.leases)
				}
			})
		})
	}
}

func TestNewLease6(t *testing.T) {
	now := time.Unix(1000000, 0)
	ask := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeRequest}
	show := func(m *dhcpv6.Message) string {
		l, err := newLease6(m, testIAID, now)
		if err != nil {
			return "error: " + err.Error()
		}
		at := func(t time.Time) string {
			if t.IsZero() {
				return "never"
			}
			return t.Sub(now).String()
		}
		return fmt.Sprintf("%v %v %v %v t1 %s t2 %s end %s", names(l.addrs), names(l.prefixes), l.dns, l.search, at(l.t1), at(l.t2), at(l.end))
	}
	pd := func(t1, t2 time.Duration, prefix string, preferred, valid time.Duration) dhcpv6.Option {
		ia := &dhcpv6.OptIAPD{IaId: testIAID, T1: t1, T2: t2}
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: toIPNet(netip.MustParsePrefix(prefix)), PreferredLifetime: preferred, ValidLifetime: valid})
		return ia
	}
	foreign := &dhcpv6.OptIAPD{IaId: [4]byte{9, 9, 9, 9}}
	foreign.Options.Add(&dhcpv6.OptIAPrefix{Prefix: toIPNet(netip.MustParsePrefix("2001:db8:9::/56")), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	for _, tt := range []struct {
		name string
		m    *dhcpv6.Message
		want string
	}{
		{"all", give(ask, "2001:db8:1::/56", "2001:db8::5", time.Hour, dhcpv6.OptDNS(net.ParseIP("2001:db8::53"), net.ParseIP("ff02::1"), net.ParseIP("::1"))),
			"[2001:db8::5/128] [2001:db8:1::/56] [2001:db8::53] [] t1 30m0s t2 48m0s end 1h0m0s"},
		{"times of the server", give(ask, "", "", 0, pd(10*time.Minute, 20*time.Minute, "2001:db8:1::/56", time.Hour, 2*time.Hour)), "[] [2001:db8:1::/56] [] [] t1 10m0s t2 20m0s end 2h0m0s"},
		{"too short times", give(ask, "", "", 0, pd(time.Second, 2*time.Second, "2001:db8:1::/56", time.Hour, time.Hour)), "[] [2001:db8:1::/56] [] [] t1 16s t2 16s end 1h0m0s"},
		{"for ever", give(ask, "", "", 0, pd(0, 0, "2001:db8:1::/56", forever, forever)), "[] [2001:db8:1::/56] [] [] t1 never t2 never end never"},
		{"wrong times", give(ask, "", "", 0, pd(30*time.Minute, 20*time.Minute, "2001:db8:1::/56", time.Hour, time.Hour)), "[] [] [] [] t1 never t2 never end 0s"},
		{"longer preferred than valid", give(ask, "", "", 0, pd(0, 0, "2001:db8:1::/56", 2*time.Hour, time.Hour)), "[] [] [] [] t1 never t2 never end 0s"},
		{"hostile prefixes", give(ask, "", "", 0, pd(0, 0, "ff00::/16", time.Hour, time.Hour), pd(0, 0, "fe80::/64", time.Hour, time.Hour), pd(0, 0, "2000::/3", time.Hour, time.Hour), pd(0, 0, "2001:db8::/96", time.Hour, time.Hour)),
			"[] [] [] [] t1 never t2 never end 0s"},
		{"of another client", give(ask, "", "", 0, foreign), "[] [] [] [] t1 never t2 never end 0s"},
		{"a status", give(ask, "", "", 0, &dhcpv6.OptStatusCode{StatusCode: iana.StatusUnspecFail}), "error: the server says UnspecFail"},
		{"no server", &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}, "error: the server does not say who it is"},
	} {
		if got := show(tt.m); got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// FuzzLease6 feeds answers as they come from the wire.
func FuzzLease6(f *testing.F) {
	ask := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeRequest}
	f.Add(give(ask, "2001:db8:1::/56", "2001:db8::5", time.Hour, dhcpv6.OptDNS(net.ParseIP("2001:db8::53"))).ToBytes())
	f.Add(noBinding(ask).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			return
		}
		now := time.Unix(1000, 0)
		l, err := newLease6(m, testIAID, now)
		if err != nil {
			return
		}
		if len(l.addrs) > maxGiven || len(l.prefixes) > maxGiven || len(l.dns) > maxGiven || len(l.search) > maxGiven {
			t.Fatalf("%d addresses, %d prefixes, %d servers", len(l.addrs), len(l.prefixes), len(l.dns))
		}
		for _, p := range l.all() {
			if p.Prefix != p.Masked() || p.Addr().IsMulticast() || p.Bits() < 16 {
				t.Fatalf("%s", p.Prefix)
			}
		}
		for _, n := range l.search {
			if !validDomain(n) {
				t.Fatalf("name %q", n)
			}
		}
		if !l.t1.IsZero() && l.t1.Sub(now) < minLease {
			t.Fatalf("renewal after %v", l.t1.Sub(now))
		}
	})
}
