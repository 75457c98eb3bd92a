package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"weft/init/bus"
)

// silent is a bus that nobody listens to.
type silent struct{}

func (silent) interfaces([]string)                       {}
func (silent) changed(string, string, change, bus.Table) {}

// script is a server that follows a list: what it answers to each message.
type script struct {
	start time.Time
	log   []string // message and second
	reply []any    // *Lease, error, or nil for silence
}

func (s *script) next(ctx context.Context, what string, wait time.Duration) (*Lease, error) {
	s.log = append(s.log, what+" at "+time.Since(s.start).Round(time.Second).String())
	if len(s.reply) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r := s.reply[0]
	s.reply = s.reply[1:]
	switch r := r.(type) {
	case *Lease:
		l := *r
		l.At = time.Now()
		return &l, nil
	case error:
		return nil, r
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(wait):
		return nil, errors.New("no answer")
	}
}

func (s *script) acquire(ctx context.Context, wait time.Duration) (*Lease, error) {
	return s.next(ctx, "discover", wait)
}

func (s *script) renew(ctx context.Context, _ *Lease, wait time.Duration) (*Lease, error) {
	return s.next(ctx, "renew", wait)
}

func (s *script) rebind(ctx context.Context, _ *Lease, wait time.Duration) (*Lease, error) {
	return s.next(ctx, "rebind", wait)
}

func (s *script) release(*Lease) error { return nil }

var quiet = slog.New(slog.DiscardHandler)

func hour() *Lease {
	l := &Lease{Addr: netip.MustParsePrefix("10.0.0.2/24"), Duration: time.Hour}
	l.T1, l.T2 = l.Duration/2, l.Duration*7/8
	return l
}

// TestClientTimes runs the client against scripted servers in virtual time.
func TestClientTimes(t *testing.T) {
	down := errors.New("network is down")
	for _, tt := range []struct {
		name   string
		reply  []any
		kick   []time.Duration // when somebody asks for a renewal
		run    time.Duration
		log    []string
		leases string // + got or renewed, - lost
		held   bool   // a lease is there at the end
	}{
		{"renews at half time", []any{hour(), hour(), hour()}, nil, 80 * time.Minute,
			[]string{"discover at 0s", "renew at 30m0s", "renew at 1h0m0s"}, "+++", true},
		{"asks more and more often, then anybody, then gives up", append([]any{hour()}, make([]any, 20)...), nil, time.Hour + time.Second/2,
			[]string{"discover at 0s", "renew at 30m0s", "renew at 41m18s", "renew at 46m56s", "renew at 49m46s", "renew at 51m10s", "renew at 52m15s",
				"rebind at 52m30s", "rebind at 56m18s", "rebind at 58m11s", "rebind at 59m16s", "discover at 1h0m0s"}, "+-", false},
		{"any server may go on", []any{hour(), down, down, down, down, down, down, hour()}, nil, 70 * time.Minute,
			[]string{"discover at 0s", "renew at 30m0s", "renew at 41m15s", "renew at 46m53s", "renew at 49m41s", "renew at 51m6s", "renew at 52m6s", "rebind at 52m30s"}, "++", true},
		{"refused", []any{hour(), errNak, hour()}, nil, 40 * time.Minute,
			[]string{"discover at 0s", "renew at 30m0s", "discover at 30m0s"}, "+-+", true},
		{"asked to renew", []any{hour(), hour()}, []time.Duration{time.Minute}, 20 * time.Minute,
			[]string{"discover at 0s", "renew at 1m0s"}, "++", true},
		{"asked to renew while nobody answers", []any{hour(), nil, hour()}, []time.Duration{time.Minute}, 31 * time.Minute,
			[]string{"discover at 0s", "renew at 1m0s", "renew at 30m0s"}, "++", true},
		{"for ever", []any{&Lease{Addr: netip.MustParsePrefix("10.0.0.2/24")}}, nil, 10000 * time.Hour,
			[]string{"discover at 0s"}, "+", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.run)
				defer cancel()
				s := &script{start: time.Now(), reply: tt.reply}
				leases := ""
				c := &dhcpClient{ex: s, log: quiet, kick: make(chan struct{}, 1), lease: func(l *Lease) {
					if l == nil {
						leases += "-"
					} else {
						leases += "+"
					}
				}}
				for _, d := range tt.kick {
					time.AfterFunc(d, func() { c.kick <- struct{}{} })
				}
				held := c.run(ctx)
				if d := cmp.Diff(tt.log, s.log); d != "" {
					t.Errorf("messages, -want +got\n%s", d)
				}
				if leases != tt.leases || (held != nil) != tt.held {
					t.Errorf("leases %q, want %q; held %v", leases, tt.leases, held)
				}
			})
		})
	}
}

// TestClientKeepsAsking: without an answer it asks less and less often, never
// stops, and ends at once when it is told to.
func TestClientKeepsAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s := &script{start: time.Now(), reply: make([]any, 1000)}
		c := &dhcpClient{ex: s, log: quiet, lease: func(*Lease) { t.Error("a lease from nowhere") }}
		if l := c.run(ctx); l != nil {
			t.Errorf("lease %v", l)
		}
		if took := time.Since(s.start); took != time.Hour {
			t.Errorf("ended after %v", took)
		}
		// 1, 2, 4, 8, 16, 32, 60, 60 … seconds, each an eighth up or down.
		if n := len(s.log); n < 55 || n > 75 {
			t.Errorf("%d tries in an hour", n)
		}
	})
}

func ack(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	base := []dhcpv4.Modifier{
		dhcpv4.WithYourIP(net.IPv4(10, 1, 2, 3)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 1, 2, 1))), dhcpv4.WithLeaseTime(600),
	}
	m, err := dhcpv4.New(append(base, mods...)...)
	if err != nil {
		panic(err)
	}
	return m
}

func TestNewLease(t *testing.T) {
	at := time.Unix(1000, 0)
	ip := func(s string) net.IP { return net.ParseIP(s) }
	_, lan, _ := net.ParseCIDR("192.168.0.0/16")
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	option := func(code uint8, b ...byte) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), b)
	}
	base := func(f func(*Lease)) Lease {
		l := Lease{Addr: netip.MustParsePrefix("10.1.2.3/24"), Server: netip.MustParseAddr("10.1.2.1"), At: at,
			Duration: 600 * time.Second, T1: 300 * time.Second, T2: 525 * time.Second}
		if f != nil {
			f(&l)
		}
		return l
	}
	for _, tt := range []struct {
		name string
		mods []dhcpv4.Modifier
		want Lease
	}{
		{"plain", nil, base(nil)},
		{"all", []dhcpv4.Modifier{dhcpv4.WithRouter(ip("10.1.2.1")), dhcpv4.WithDNS(ip("1.1.1.1"), ip("9.9.9.9")), dhcpv4.WithOption(dhcpv4.OptDomainName("example.org")),
			dhcpv4.WithOption(dhcpv4.OptHostName("box")), dhcpv4.WithOption(dhcpv4.OptNTPServers(ip("10.1.2.9"))), option(58, 0, 0, 0, 100), option(59, 0, 0, 1, 0)},
			base(func(l *Lease) {
				l.Router, l.DNS, l.Domain, l.Hostname, l.NTP = netip.MustParseAddr("10.1.2.1"), addrs("1.1.1.1", "9.9.9.9"), "example.org", "box", addrs("10.1.2.9")
				l.T1, l.T2 = 100*time.Second, 256*time.Second
			})},
		{"classless routes", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: lan, Router: ip("10.1.2.7")}, &dhcpv4.Route{Dest: all, Router: ip("0.0.0.0")}))},
			base(func(l *Lease) {
				l.Routes = []Route{{Dest: netip.MustParsePrefix("192.168.0.0/16"), Via: netip.MustParseAddr("10.1.2.7")}, {Dest: netip.MustParsePrefix("0.0.0.0/0")}}
			})},
		{"times that make no sense", []dhcpv4.Modifier{option(58, 0, 0, 9, 0), option(59, 0, 0, 9, 0)}, base(nil)},
		{"too short", []dhcpv4.Modifier{dhcpv4.WithLeaseTime(1)}, base(func(l *Lease) { l.Duration, l.T1, l.T2 = 16*time.Second, 8*time.Second, 14*time.Second })},
		{"for ever", []dhcpv4.Modifier{dhcpv4.WithLeaseTime(1<<32 - 1)}, base(func(l *Lease) { l.Duration, l.T1, l.T2 = 0, 0, 0 })},
		{"no mask", []dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionSubnetMask)}, base(func(l *Lease) { l.Addr = netip.MustParsePrefix("10.1.2.3/8") })},
		{"mask with a gap", []dhcpv4.Modifier{option(1, 255, 0, 255, 0)}, base(func(l *Lease) { l.Addr = netip.MustParsePrefix("10.1.2.3/32") })},
		// A server must not write lines into the resolver file.
		{"hostile names", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptDomainName("a\nnameserver 6.6.6.6")), dhcpv4.WithOption(dhcpv4.OptHostName("$(reboot)"))}, base(nil)},
		{"hostile addresses", []dhcpv4.Modifier{dhcpv4.WithRouter(ip("224.0.0.1")), dhcpv4.WithDNS(ip("127.0.0.1"), ip("255.255.255.255"), ip("0.0.0.0"))}, base(nil)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := newLease(ack(tt.mods...), at)
			if err != nil {
				t.Fatal(err)
			}
			l.ack = nil
			opts := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.AllowUnexported(Lease{})}
			if d := cmp.Diff(tt.want, *l, opts); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
	for _, bad := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		if l, err := newLease(ack(dhcpv4.WithYourIP(ip(bad))), at); err == nil {
			t.Errorf("%s taken: %+v", bad, l)
		}
	}
}

func TestLeaseRoutes(t *testing.T) {
	l := &Lease{Addr: netip.MustParsePrefix("10.1.2.3/24"), Router: netip.MustParseAddr("10.1.2.1")}
	def := Route{Dest: netip.MustParsePrefix("0.0.0.0/0"), Via: l.Router, Src: l.Addr.Addr(), Metric: 7, OnLink: true}
	if got := l.routes(DHCPOptions{DefaultRoute: true}, 7); len(got) != 1 || got[0] != def {
		t.Errorf("%+v", got)
	}
	if got := l.routes(DHCPOptions{}, 7); len(got) != 0 {
		t.Errorf("without default route: %+v", got)
	}
	l.Routes = []Route{{Dest: netip.MustParsePrefix("192.168.0.0/16"), Via: netip.MustParseAddr("10.1.2.7")}}
	if got := l.routes(DHCPOptions{DefaultRoute: true}, 0); len(got) != 1 || got[0].Dest != l.Routes[0].Dest {
		t.Errorf("option 121 must replace the router: %+v", got)
	}
}

// FuzzLease feeds answers as they come from the wire.
func FuzzLease(f *testing.F) {
	f.Add(ack(dhcpv4.WithRouter(net.IPv4(10, 1, 2, 1)), dhcpv4.WithOption(dhcpv4.OptDomainName("x"))).ToBytes())
	f.Add(ack(dhcpv4.WithGeneric(dhcpv4.OptionClasslessStaticRoute, []byte{33, 1, 2, 3})).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := newLease(m, time.Unix(0, 0))
		if err != nil {
			return
		}
		if !l.Addr.IsValid() || l.Duration < 0 || l.Duration > 0 && !(0 < l.T1 && l.T1 <= l.T2 && l.T2 < l.Duration) || len(l.Routes) > maxRoutes {
			t.Fatalf("%+v", l)
		}
		for _, s := range []string{l.Domain, l.Hostname} {
			if strings.ContainsAny(s, "\n\r \x00#") {
				t.Fatalf("name %q", s)
			}
		}
		for _, r := range l.routes(DHCPOptions{DefaultRoute: true}, 0) {
			if !r.Dest.IsValid() || r.Dest != r.Dest.Masked() {
				t.Fatalf("route %+v", r)
			}
		}
	})
}
