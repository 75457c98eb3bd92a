package dhcp6

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/lease"
	"weft/services/dhcp/internal/netif"
)

type bed struct {
	*testing.T
	*Server
	now    time.Time
	routes []string
}

var serverID = []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 1}

func prefix(s string, preferred, valid time.Time) netif.Prefix {
	return netif.Prefix{Prefix: netip.MustParsePrefix(s), Preferred: preferred, Valid: valid}
}

func newBed(t testing.TB) *bed {
	b := &bed{now: time.Unix(1_800_000_000, 0)}
	b.T, _ = t.(*testing.T)
	store, err := lease.Open(filepath.Join(t.TempDir(), "leases"), b.now)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { store.Run(stop); close(done) }()
	t.Cleanup(func() { close(stop); <-done })
	b.Server = &Server{Log: slog.New(slog.DiscardHandler), Store: store, Now: func() time.Time { return b.now }}
	b.Route = func(p netip.Prefix, via netip.Addr, dev string) {
		b.routes = append(b.routes, p.String()+" "+via.String()+" "+dev)
	}
	b.use(prefix("fd00::/60", time.Time{}, time.Time{}), prefix("2001:db8::/56", b.now.Add(1000*time.Second), b.now.Add(2000*time.Second)))
	return b
}

func (b *bed) use(p ...netif.Prefix) {
	pool := &config.Pool{V6: config.ServerMode, DHCPv6NA: true, DHCPv6PD: true, Lease: time.Hour}
	b.Apply(Settings{LeaseMax: 100, Links: []Link{{Device: "br-lan", Index: 7, Pool: pool, Prefixes: p, DUID: serverID, DNS: []netip.Addr{netip.MustParseAddr("fd00::1")}, Search: []string{"lan"}}}})
}

func (b *bed) say(d dhcpv6.DHCPv6) dhcpv6.DHCPv6 {
	b.Helper()
	in, err := dhcpv6.FromBytes(d.ToBytes())
	if err != nil {
		b.Fatal(err)
	}
	c := make(chan dhcpv6.DHCPv6, 1)
	b.Handle("br-lan", netip.MustParseAddr("fe80::99"), in, func(d dhcpv6.DHCPv6) { c <- d })
	flushed := make(chan struct{})
	b.Store.Commit(func(error) { close(flushed) })
	<-flushed
	select {
	case d := <-c:
		out, err := dhcpv6.FromBytes(d.ToBytes())
		if err != nil {
			b.Fatal(err)
		}
		return out
	default:
		return nil
	}
}

func (b *bed) ask(m *dhcpv6.Message) *dhcpv6.Message {
	b.Helper()
	out, _ := b.say(m).(*dhcpv6.Message)
	return out
}

// message has the client's id, associations for an address and a prefix, and
// the server's id where the type wants it.
func message(t dhcpv6.MessageType, client byte, opts ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: t, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, client}})
	switch t {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: serverID})
	}
	for _, o := range opts {
		m.AddOption(o)
	}
	return m
}

func na() *dhcpv6.OptIANA { return &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, 1}} }
func pd() *dhcpv6.OptIAPD { return &dhcpv6.OptIAPD{IaId: [4]byte{0, 0, 0, 2}} }

func TestLease(t *testing.T) {
	b := newBed(t)
	adv := b.ask(message(dhcpv6.MessageTypeSolicit, 1, na(), pd()))
	if adv == nil || adv.MessageType != dhcpv6.MessageTypeAdvertise || b.Store.Len6() != 0 {
		t.Fatalf("%v, %d leases", adv, b.Store.Len6())
	}
	rep := b.ask(message(dhcpv6.MessageTypeRequest, 1, na(), pd(), dhcpv6.OptRequestedOption(dhcpv6.OptionDomainSearchList)))
	if rep == nil || rep.MessageType != dhcpv6.MessageTypeReply || b.Store.Len6() != 2 {
		t.Fatalf("%v, %d leases", rep, b.Store.Len6())
	}
	addrs := rep.Options.OneIANA().Options.Addresses()
	if len(addrs) != 2 || addrs[0].ValidLifetime != time.Hour || addrs[1].ValidLifetime != 2000*time.Second || addrs[1].PreferredLifetime != 1000*time.Second {
		t.Errorf("addresses %v", addrs)
	}
	if !slices.EqualFunc(addrs, adv.Options.OneIANA().Options.Addresses(), func(x, y *dhcpv6.OptIAAddress) bool { return x.IPv6Addr.Equal(y.IPv6Addr) }) {
		t.Error("advertised something else than was given")
	}
	if ia := rep.Options.OneIANA(); ia.T1 != 500*time.Second || ia.T2 != 800*time.Second {
		t.Errorf("T1 %v, T2 %v", ia.T1, ia.T2)
	}
	prefixes := rep.Options.OneIAPD().Options.Prefixes()
	if len(prefixes) != 2 {
		t.Fatalf("prefixes %v", prefixes)
	}
	for _, p := range prefixes {
		if n, _ := p.Prefix.Mask.Size(); n != 62 || p.Prefix.Contains(net.ParseIP("fd00::1")) || p.Prefix.Contains(net.ParseIP("2001:db8::1")) {
			t.Errorf("prefix %v: want a /62 beside the link's own network", p.Prefix)
		}
	}
	if len(b.routes) != 2 || b.routes[0] != prefixes[0].Prefix.String()+" fe80::99 br-lan" {
		t.Errorf("routes %q", b.routes)
	}
	if len(rep.Options.DNS()) != 1 || rep.Options.DomainSearchList().Labels[0] != "lan" {
		t.Errorf("resolvers %v", rep)
	}
	// Another client gets something else.
	other := b.ask(message(dhcpv6.MessageTypeRequest, 2, na(), pd()))
	if other.Options.OneIANA().Options.OneAddress().IPv6Addr.Equal(addrs[0].IPv6Addr) {
		t.Error("two clients have one address")
	}
	if o := other.Options.OneIAPD().Options.Prefixes()[0].Prefix; o.Contains(prefixes[0].Prefix.IP) || prefixes[0].Prefix.Contains(o.IP) {
		t.Errorf("prefixes %v and %v overlap", o, prefixes[0].Prefix)
	}
}

// TestRenumber: the uplink's prefix changes, the host's part stays.
func TestRenumber(t *testing.T) {
	b := newBed(t)
	first := b.ask(message(dhcpv6.MessageTypeRequest, 1, na(), pd()))
	held := first.Options.OneIANA()
	old := held.Options.Addresses()[1].IPv6Addr
	b.routes = nil
	b.use(prefix("2001:db8:77::/56", b.now.Add(time.Hour), b.now.Add(time.Hour)))
	rep := b.ask(message(dhcpv6.MessageTypeRenew, 1, held, first.Options.OneIAPD()))
	var alive, dead []net.IP
	for _, a := range rep.Options.OneIANA().Options.Addresses() {
		if a.ValidLifetime == 0 {
			dead = append(dead, a.IPv6Addr)
		} else {
			alive = append(alive, a.IPv6Addr)
		}
	}
	if len(alive) != 1 || len(dead) != 2 || !dead[1].Equal(old) || string(alive[0][8:]) != string(old[8:]) || alive[0][5] != 0x77 {
		t.Errorf("alive %v, dead %v", alive, dead)
	}
	// The routes of the prefixes that were lead nowhere any more.
	gone, come := 0, 0
	for _, r := range b.routes {
		if p := r[:5]; p == "fd00:" || r[:10] != "2001:db8:7" {
			gone++
		} else {
			come++
		}
	}
	if gone != 2 || come != 1 {
		t.Errorf("routes %q", b.routes)
	}
	// REBIND comes without the server's id.
	if rep := b.ask(message(dhcpv6.MessageTypeRebind, 1, held)); rep == nil || rep.Options.OneIANA().Options.OneAddress() == nil {
		t.Errorf("rebind: %v", rep)
	}
}

func TestStatus(t *testing.T) {
	b := newBed(t)
	with := func(a string) *dhcpv6.OptIANA {
		ia := na()
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
		return ia
	}
	if r := b.ask(message(dhcpv6.MessageTypeConfirm, 1, with("fd00::123"))); r.Options.Status().StatusCode != iana.StatusSuccess {
		t.Errorf("confirm: %v", r)
	}
	if r := b.ask(message(dhcpv6.MessageTypeConfirm, 1, with("2001:db9::123"))); r.Options.Status().StatusCode != iana.StatusNotOnLink {
		t.Errorf("confirm elsewhere: %v", r)
	}
	if r := b.ask(message(dhcpv6.MessageTypeConfirm, 1, na())); r != nil {
		t.Errorf("confirm of nothing: %v", r)
	}
	if r := b.ask(message(dhcpv6.MessageTypeRelease, 1, na())); r.Options.OneIANA().Options.Status().StatusCode != iana.StatusNoBinding {
		t.Errorf("release of nothing: %v", r)
	}
	b.ask(message(dhcpv6.MessageTypeRequest, 1, na(), pd()))
	b.routes = nil
	b.ask(message(dhcpv6.MessageTypeRelease, 1, na(), pd()))
	if b.Store.Len6() != 0 || len(b.routes) != 2 {
		t.Errorf("%d leases after the release, routes %q", b.Store.Len6(), b.routes)
	}
	// Rapid commit.
	r := b.ask(message(dhcpv6.MessageTypeSolicit, 1, na(), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}))
	if r.MessageType != dhcpv6.MessageTypeReply || r.GetOneOption(dhcpv6.OptionRapidCommit) == nil || b.Store.Len6() != 1 {
		t.Errorf("rapid commit: %v", r)
	}
	// Stateless.
	if r := b.ask(message(dhcpv6.MessageTypeInformationRequest, 1)); r == nil || len(r.Options.DNS()) != 1 {
		t.Errorf("information: %v", r)
	}
	// Not for us, or not allowed (RFC 8415, 16).
	wrong := message(dhcpv6.MessageTypeRebind, 1, na())
	wrong.MessageType = dhcpv6.MessageTypeRequest
	withServer := message(dhcpv6.MessageTypeRequest, 1, na())
	withServer.MessageType = dhcpv6.MessageTypeSolicit
	for _, m := range []*dhcpv6.Message{wrong, withServer, message(dhcpv6.MessageTypeReply, 1), {MessageType: dhcpv6.MessageTypeSolicit}} {
		if r := b.ask(m); r != nil {
			t.Errorf("%v was answered with %v", m, r)
		}
	}
	// No prefix: no address.
	b.use()
	if r := b.ask(message(dhcpv6.MessageTypeSolicit, 5, na(), pd())); r.Options.OneIANA().Options.Status().StatusCode != iana.StatusNoAddrsAvail || r.Options.OneIAPD().Options.Status().StatusCode != iana.StatusNoPrefixAvail {
		t.Errorf("without a prefix: %v", r)
	}
}

func TestStaticAndFull(t *testing.T) {
	b := newBed(t)
	duid := []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 9}
	b.set.Hosts = []*config.Host{{Name: "nas", DUIDs: [][]byte{duid}, IAIDs: []uint32{0}, HostID: 0xcafe}}
	b.set.LeaseMax = 20
	r := b.ask(message(dhcpv6.MessageTypeRequest, 9, na()))
	if a := r.Options.OneIANA().Options.OneAddress(); !a.IPv6Addr.Equal(net.ParseIP("fd00::cafe")) {
		t.Errorf("static address %v", a)
	}
	if l := b.Store.Get6(duid, 1, false); l == nil || l.Name != "nas" {
		t.Errorf("lease %+v", l)
	}
	// A /60 has room for three /62 beside the link's own; of what is left one
	// gets a /63 and one a /64.
	b.use(prefix("fd00::/60", time.Time{}, time.Time{}))
	b.set.LeaseMax = 30
	seen := map[string]bool{}
	for i := range byte(20) {
		r := b.ask(message(dhcpv6.MessageTypeRequest, 20+i, pd()))
		if ps := r.Options.OneIAPD().Options.Prefixes(); len(ps) == 1 {
			seen[ps[0].Prefix.String()] = true
		} else if r.Options.OneIAPD().Options.Status().StatusCode != iana.StatusNoPrefixAvail {
			t.Errorf("answer %v", r)
		}
	}
	var all []*net.IPNet
	for s := range seen {
		_, n, _ := net.ParseCIDR(s)
		for _, o := range all {
			if o.Contains(n.IP) || n.Contains(o.IP) {
				t.Errorf("%v and %v overlap", o, n)
			}
		}
		all = append(all, n)
	}
	if len(all) != 5 {
		t.Errorf("%d prefixes out of a /60, want three of length 62, one of 63 and one of 64: %v", len(all), all)
	}
}

func TestRelay(t *testing.T) {
	b := newBed(t)
	inner := message(dhcpv6.MessageTypeSolicit, 1, na())
	relay, err := dhcpv6.EncapsulateRelay(inner, dhcpv6.MessageTypeRelayForward, net.ParseIP("fd00::2"), net.ParseIP("fe80::5"))
	if err != nil {
		t.Fatal(err)
	}
	relay.AddOption(dhcpv6.OptInterfaceID([]byte("port3")))
	r, ok := b.say(relay).(*dhcpv6.RelayMessage)
	if !ok || r.MessageType != dhcpv6.MessageTypeRelayReply || !r.PeerAddr.Equal(net.ParseIP("fe80::5")) || string(r.Options.InterfaceID()) != "port3" {
		t.Fatalf("relayed: %v", r)
	}
	if m, err := r.GetInnerMessage(); err != nil || m.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Errorf("inner: %v, %v", m, err)
	}
	relay.LinkAddr = net.ParseIP("2001:db9::1")
	if r := b.say(relay); r != nil {
		t.Errorf("a link that is not ours was served: %v", r)
	}
}

func FuzzHandle(f *testing.F) {
	f.Add(message(dhcpv6.MessageTypeSolicit, 1, na(), pd()).ToBytes())
	f.Add(message(dhcpv6.MessageTypeRequest, 1, na(), pd()).ToBytes())
	relay, err := dhcpv6.EncapsulateRelay(message(dhcpv6.MessageTypeRequest, 1, na()), dhcpv6.MessageTypeRelayForward, net.ParseIP("fd00::2"), net.ParseIP("fe80::5"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(relay.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := dhcpv6.FromBytes(b)
		if err != nil {
			return
		}
		bed := newBed(t)
		for range 2 {
			bed.Handle("br-lan", netip.MustParseAddr("fe80::1"), d, func(d dhcpv6.DHCPv6) {
				if n := len(d.ToBytes()); n > len(b)+16<<10 {
					t.Errorf("%d bytes became %d", len(b), n)
				}
			})
		}
		if n := bed.Store.Len6(); n > 2*maxIAs {
			t.Errorf("%d leases for one message", n)
		}
	})
}
