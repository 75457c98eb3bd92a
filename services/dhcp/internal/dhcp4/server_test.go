package dhcp4

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"weft/services/dhcp/internal/config"
	"weft/services/dhcp/internal/lease"
)

// bed is a server without sockets whose clock stands still.
type bed struct {
	*testing.T
	*Server
	now    time.Time
	set    Settings
	events []string
}

func mac(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func newBed(t testing.TB, pools ...*config.Pool) *bed {
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
	b.Server.Changed = func(a Action, l *lease.V4) { b.events = append(b.events, string(a)+" "+l.Addr.String()+" "+l.Name) }
	if len(pools) == 0 {
		pools = []*config.Pool{{Name: "lan", Interface: "lan", V4: config.ServerMode, Start: 100, Limit: 10, Lease: time.Hour, Dynamic: true}}
	}
	for i, c := range pools {
		p, ok := NewPool(c, "br-lan", netip.MustParsePrefix(fmt.Sprintf("192.168.%d.1/24", i+1)))
		if !ok {
			t.Fatal("no pool")
		}
		p.Domain = "lan"
		b.set.Pools = append(b.set.Pools, p)
	}
	b.set.LeaseMax, b.set.Authoritative = 1000, true
	b.Apply(&b.set)
	return b
}

// say sends a message and returns the answer, nil if there is none.
func (b *bed) say(m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, Target) {
	b.Helper()
	type result struct {
		m *dhcpv4.DHCPv4
		t Target
	}
	c := make(chan result, 1)
	// As it comes off the wire, and as it goes there.
	in, err := dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		b.Fatal(err)
	}
	b.Handle("br-lan", in, func(m *dhcpv4.DHCPv4, t Target) { c <- result{m, t} })
	flushed := make(chan struct{})
	b.Store.Commit(func(error) { close(flushed) })
	<-flushed
	select {
	case r := <-c:
		out, err := dhcpv4.FromBytes(r.m.ToBytes())
		if err != nil {
			b.Fatal(err)
		}
		return out, r.t
	default:
		return nil, Target{}
	}
}

func discover(hw net.HardwareAddr, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.NewDiscovery(hw, mods...)
	if err != nil {
		panic(err)
	}
	return m
}

// request is a REQUEST of the kind that the modifiers make it.
func request(hw net.HardwareAddr, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)}, mods...)...)
	if err != nil {
		panic(err)
	}
	m.OpCode = dhcpv4.OpcodeBootRequest
	return m
}

func wants(a string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(a)))
}

func server(a string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(a)))
}

// lease gets a lease as clients do and returns its address.
func (b *bed) lease(hw net.HardwareAddr, mods ...dhcpv4.Modifier) string {
	b.Helper()
	offer, _ := b.say(discover(hw, mods...))
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer {
		b.Fatalf("%v got no offer: %v", hw, offer)
	}
	ack, _ := b.say(request(hw, append(mods, wants(offer.YourIPAddr.String()), server("192.168.1.1"))...))
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(offer.YourIPAddr) {
		b.Fatalf("%v got no ACK of %v: %v", hw, offer.YourIPAddr, ack)
	}
	return ack.YourIPAddr.String()
}

func TestLease(t *testing.T) {
	b := newBed(t)
	hw := mac(1)
	first := b.lease(hw, dhcpv4.WithOption(dhcpv4.OptHostName("laptop.example")))
	if !strings.HasPrefix(first, "192.168.1.10") {
		t.Errorf("address %s", first)
	}
	// The same one again, also after the lease has run out and been forgotten:
	// it follows from the MAC address.
	if again := b.lease(hw); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	b.now = b.now.Add(2 * time.Hour)
	b.Store.Prune(b.now)
	if again := b.lease(hw); again != first {
		t.Errorf("%s, after the lease had run out %s", first, again)
	}
	if l := b.Store.Client4(nil, hw); l == nil || !l.Expires.Equal(b.now.Add(time.Hour)) || l.Device != "br-lan" {
		t.Errorf("lease %+v", l)
	}
	if want := []string{"add " + first + " laptop", "update " + first + " laptop", "add " + first + " "}; strings.Join(b.events, ",") != strings.Join(want, ",") {
		t.Errorf("events %q, want %q", b.events, want)
	}
}

// TestAnswer looks at the options and at where answers go.
func TestAnswer(t *testing.T) {
	b := newBed(t)
	offer, to := b.say(discover(mac(1), dhcpv4.WithOption(dhcpv4.OptHostName("Laptop"))))
	for code, want := range map[uint8]string{1: "ffffff00", 3: "c0a80101", 6: "c0a80101", 15: "6c616e", 51: "00000e10", 54: "c0a80101", 58: "00000708", 59: "00000c4e"} {
		if got := fmt.Sprintf("%x", offer.Options.Get(dhcpv4.GenericOptionCode(code))); got != want {
			t.Errorf("option %d is %s, want %s", code, got, want)
		}
	}
	if to.HW.String() != mac(1).String() || to.Broadcast || to.Addr.String() != offer.YourIPAddr.String() || to.Port != 68 || to.Source.String() != "192.168.1.1" {
		t.Errorf("target %+v: want a frame to the client", to)
	}
	d := discover(mac(1))
	d.SetBroadcast()
	if _, to := b.say(d); !to.Broadcast {
		t.Errorf("target %+v: want a broadcast", to)
	}
	// A relay gets the answer, and its option back.
	d = discover(mac(2), dhcpv4.WithOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(1), []byte("port7")))))
	d.GatewayIPAddr = net.IPv4(192, 168, 1, 250)
	r, to := b.say(d)
	if to.Addr.String() != "192.168.1.250" || to.Port != 67 || to.HW != nil || r.RelayAgentInfo() == nil {
		t.Errorf("target %+v, answer %v: want the relay", to, r)
	}
	d.GatewayIPAddr = net.IPv4(10, 0, 0, 1)
	if r, _ := b.say(d); r != nil {
		t.Errorf("a network that is not ours was served: %v", r)
	}
	// INFORM: options and no lease.
	m := request(mac(3))
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeInform))
	m.ClientIPAddr = net.IPv4(192, 168, 1, 55)
	r, to = b.say(m)
	if r == nil || r.MessageType() != dhcpv4.MessageTypeAck || !r.YourIPAddr.IsUnspecified() || r.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || len(r.DNS()) != 1 || to.Addr.String() != "192.168.1.55" {
		t.Errorf("INFORM: %v to %+v", r, to)
	}
	if b.Store.Len4() != 0 {
		t.Errorf("%d leases although nobody asked for one", b.Store.Len4())
	}
}

// TestRefusals are requests for what the client cannot have.
func TestRefusals(t *testing.T) {
	b := newBed(t)
	taken := b.lease(mac(1))
	for _, tc := range []struct {
		name string
		msg  *dhcpv4.DHCPv4
		want string // "" no answer, else type and message
	}{
		{"other network at boot", request(mac(2), wants("10.0.0.5")), "NAK wrong network"},
		{"somebody else's", request(mac(2), wants(taken)), "NAK address in use"},
		{"outside of the pool", request(mac(2), wants("192.168.1.50")), "NAK address not available"},
		{"the router's", request(mac(2), wants("192.168.1.1")), "NAK address not available"},
		{"of another server", request(mac(2), wants("192.168.1.105"), server("192.168.1.2")), ""},
		{"unknown client at boot, free address", request(mac(2), wants("192.168.1.105")), "ACK "},
	} {
		r, to := b.say(tc.msg)
		got := ""
		if r != nil {
			got = r.MessageType().String() + " " + r.Message()
			if r.MessageType() == dhcpv4.MessageTypeNak && !to.Broadcast {
				t.Errorf("%s: a NAK must go to all, went to %+v", tc.name, to)
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	// Without authority there may be another server that knows better.
	b.set.Authoritative = false
	for _, a := range []string{"10.0.0.5", "192.168.1.106"} {
		if r, _ := b.say(request(mac(3), wants(a))); r != nil {
			t.Errorf("not authoritative, request for %s: %v", a, r)
		}
	}
}

func TestRenew(t *testing.T) {
	b := newBed(t)
	a := b.lease(mac(1))
	b.now = b.now.Add(30 * time.Minute)
	m := request(mac(1))
	m.ClientIPAddr = net.ParseIP(a)
	r, to := b.say(m)
	if r == nil || r.MessageType() != dhcpv4.MessageTypeAck || to.Addr.String() != a || to.HW != nil || to.Broadcast {
		t.Fatalf("renewal: %v to %+v", r, to)
	}
	if l := b.Store.Addr4(netip.MustParseAddr(a)); !l.Expires.Equal(b.now.Add(time.Hour)) {
		t.Errorf("lease ends %v", l.Expires)
	}
	// RELEASE frees it; only its holder can.
	rel := func(hw net.HardwareAddr) {
		m := request(hw, server("192.168.1.1"))
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRelease))
		m.ClientIPAddr = net.ParseIP(a)
		b.say(m)
	}
	rel(mac(9))
	if b.Store.Len4() != 1 {
		t.Error("somebody else's release took the lease")
	}
	rel(mac(1))
	if b.Store.Len4() != 0 {
		t.Error("the lease is still held after its release")
	}
}

func TestDecline(t *testing.T) {
	b := newBed(t)
	a := b.lease(mac(1))
	dec := func(hw net.HardwareAddr) {
		m := request(hw, wants(a), server("192.168.1.1"))
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDecline))
		b.say(m)
	}
	dec(mac(9))
	if b.Store.Len4() != 1 {
		t.Error("somebody else's DECLINE took the lease")
	}
	dec(mac(1))
	if again := b.lease(mac(1)); again == a {
		t.Errorf("%s was given again at once", a)
	}
	b.now = b.now.Add(declineTime + 3*time.Hour)
	b.Store.Prune(b.now)
	if again := b.lease(mac(1)); again != a {
		t.Errorf("%s is not given after its time, but %s", a, again)
	}
}

func TestHosts(t *testing.T) {
	b := newBed(t)
	m1, _ := config.ParseMAC("02:00:00:00:00:01")
	m2, _ := config.ParseMAC("02:00:00:00:00:02")
	wild, _ := config.ParseMAC("02:00:00:00:01:*")
	b.set.Hosts = []*config.Host{
		{Name: "two-cards", MACs: []config.MAC{m1, m2}, IP: netip.MustParseAddr("192.168.1.5"), Lease: 5 * time.Minute, HasLease: true},
		{MACs: []config.MAC{wild}, Ignore: true},
		{Name: "byname", IP: netip.MustParseAddr("192.168.1.6")},
		{ID: []byte("my-id"), IP: netip.MustParseAddr("192.168.1.104")},
		{MACs: []config.MAC{{Addr: [6]byte{4}}}, IP: netip.MustParseAddr("192.168.1.105")},
	}
	b.set.Ethers = []Ether{{MAC: [6]byte(mac(3)), Addr: netip.MustParseAddr("192.168.1.8"), Name: "ether"}}
	if a := b.lease(mac(1)); a != "192.168.1.5" {
		t.Errorf("static lease is %s", a)
	}
	// The other card of the same host takes it over.
	if a := b.lease(mac(2)); a != "192.168.1.5" || b.Store.Len4() != 1 {
		t.Errorf("for the other card it is %s, %d leases", a, b.Store.Len4())
	}
	if l := b.Store.Addr4(netip.MustParseAddr("192.168.1.5")); l.Name != "two-cards" || !l.Expires.Equal(b.now.Add(5*time.Minute)) {
		t.Errorf("lease %+v", l)
	}
	if r, _ := b.say(discover(mac(0x105))); r != nil {
		t.Errorf("an ignored host got %v", r)
	}
	if a := b.lease(mac(7), dhcpv4.WithOption(dhcpv4.OptHostName("ByName"))); a != "192.168.1.6" {
		t.Errorf("by name: %s", a)
	}
	if a := b.lease(mac(8), dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte("my-id")))); a != "192.168.1.104" {
		t.Errorf("by client id: %s", a)
	}
	if a := b.lease(mac(3)); a != "192.168.1.8" {
		t.Errorf("by /etc/ethers: %s", a)
	}
	// A configured address is for its host alone.
	for i := range 8 {
		if a := b.lease(mac(20 + i)); a == "192.168.1.105" {
			t.Errorf("the address of another host was given to %v", mac(20+i))
		}
	}
	if r, _ := b.say(discover(mac(40))); r != nil {
		t.Errorf("the pool of 10 with 2 reserved addresses gave %v to a ninth client", r.YourIPAddr)
	}
	// A client that holds another address is told to come for its own.
	if r, _ := b.say(request(mac(1), wants("192.168.1.109"))); r == nil || r.Message() != "static lease available" {
		t.Errorf("answer %v", r)
	}
}

func TestOptions(t *testing.T) {
	b := newBed(t)
	opt := func(s string) config.Option {
		o, err := config.ParseOption(s)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	p := b.set.Pools[0].Pool
	p.Options = []config.Option{opt("6,0.0.0.0,9.9.9.9"), opt("3"), opt("tag:phone,66,10.0.0.9"), opt("42,192.168.1.9")}
	forced := opt("252,wpad")
	forced.Force = true
	p.Options = append(p.Options, forced)
	b.set.Matches = []config.Match{{Tag: "phone", Code: 60, Text: "SIP"}}
	b.set.Boots = []*config.Boot{{Filename: "pxe.0", ServerName: "boot", Server: netip.MustParseAddr("192.168.1.3")}, {Filename: "phone.img", Tags: []string{"phone"}}}
	get := func(code uint8, mods ...dhcpv4.Modifier) (string, *dhcpv4.DHCPv4) {
		r, _ := b.say(discover(mac(1), mods...))
		return fmt.Sprintf("%x", r.Options.Get(dhcpv4.GenericOptionCode(code))), r
	}
	ask := dhcpv4.WithRequestedOptions(dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName)
	if v, _ := get(6); v != "c0a8010109090909" {
		t.Errorf("DNS servers %s", v)
	}
	if v, _ := get(3); v != "" {
		t.Errorf("router %s although it was taken away", v)
	}
	if v, _ := get(252); v != "77706164" {
		t.Errorf("forced option %q", v)
	}
	if v, _ := get(42); v != "" {
		t.Errorf("NTP server %s although it was not asked for", v)
	}
	if _, r := get(66, ask); r.BootFileName != "pxe.0" || r.ServerHostName != "boot" || r.ServerIPAddr.String() != "192.168.1.3" {
		t.Errorf("boot file %v", r)
	}
	if v, r := get(66, ask, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("a SIP phone"))); v != "31302e302e302e39" || r.BootFileName != "phone.img" {
		t.Errorf("phone: option 66 %s, %v", v, r)
	}
	// What does not fit is left out, what the protocol needs is not.
	for i := range 100 {
		p.Options = append(p.Options, config.Option{Code: uint8(100 + i), Value: make([]byte, 100), Force: true})
	}
	r, _ := b.say(discover(mac(1)))
	if n := len(r.ToBytes()); n > 548 || r.MessageType() != dhcpv4.MessageTypeOffer || r.ServerIdentifier() == nil {
		t.Errorf("answer of %d bytes: %v", n, r)
	}
}

// TestProbe: an address that somebody sits on is not offered.
func TestProbe(t *testing.T) {
	b := newBed(t)
	var asked []netip.Addr
	b.Probe = func(_ string, a netip.Addr, done func(bool)) {
		asked = append(asked, a)
		done(len(asked) == 1)
	}
	a := b.lease(mac(1))
	if len(asked) != 2 || asked[0] == asked[1] || asked[1].String() != a {
		t.Errorf("probed %v, gave %s", asked, a)
	}
	// Its holder is not probed for.
	b.lease(mac(1))
	if len(asked) != 2 {
		t.Errorf("probed %v", asked)
	}
	// Everything is in use: no offer, and no endless search.
	b.Probe = func(_ string, _ netip.Addr, done func(bool)) { done(true) }
	if r, _ := b.say(discover(mac(2))); r != nil {
		t.Errorf("offer %v", r)
	}
}

// TestManyOffers: requests that lead to nothing do not lock others out, and
// leave little behind.
func TestManyOffers(t *testing.T) {
	b := newBed(t)
	for i := range 2000 {
		if r, _ := b.say(discover(mac(1000 + i))); r == nil {
			t.Fatalf("no offer after %d", i)
		}
	}
	if len(b.offers) > 10 || b.Store.Len4() != 0 {
		t.Errorf("%d notes, %d leases", len(b.offers), b.Store.Len4())
	}
	seen := map[string]bool{}
	for i := range 10 {
		seen[b.lease(mac(i))] = true
	}
	if len(seen) != 10 {
		t.Errorf("%d addresses for 10 clients", len(seen))
	}
	if r, _ := b.say(discover(mac(100))); r != nil {
		t.Errorf("an eleventh address of ten: %v", r)
	}
}

func TestLeaseMax(t *testing.T) {
	b := newBed(t)
	b.set.LeaseMax = 3
	for i := range 3 {
		b.lease(mac(i))
	}
	if r, _ := b.say(discover(mac(9))); r != nil {
		t.Errorf("a fourth lease of three: %v", r)
	}
	b.lease(mac(1)) // who has one keeps it
}

// TestNames: a name belongs to one lease.
func TestNames(t *testing.T) {
	b := newBed(t)
	name := dhcpv4.WithOption(dhcpv4.OptHostName("tv"))
	first := b.lease(mac(1), name)
	second := b.lease(mac(2), name)
	if b.Store.Addr4(netip.MustParseAddr(first)).Name != "" || b.Store.Addr4(netip.MustParseAddr(second)).Name != "tv" {
		t.Error("the name did not go to the newest")
	}
	// In DNS form (RFC 4702), and answered in the same.
	r, _ := b.say(discover(mac(3), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionFQDN, append([]byte{5, 0, 0}, "\x04desk\x07example\x00"...)))))
	if got := r.Options.Get(dhcpv4.OptionFQDN); string(got) != "\x05\xff\xff\x04desk\x03lan\x00" {
		t.Errorf("option 81 back: %q", got)
	}
	for _, bad := range []string{"a b", "-x", "x..y", strings.Repeat("a", 64), "\xff"} {
		b.lease(mac(4), dhcpv4.WithOption(dhcpv4.OptHostName(bad)))
		if l := b.Store.Client4(nil, mac(4)); l.Name != "" && l.Name != "x" {
			t.Errorf("name %q became %q", bad, l.Name)
		}
	}
}

func TestPools(t *testing.T) {
	for _, tc := range []struct {
		net          string
		start, limit uint32
		first, last  string
	}{
		{"192.168.1.1/24", 100, 150, "192.168.1.100", "192.168.1.249"},
		{"10.0.0.1/16", 100, 150, "10.0.0.100", "10.0.0.249"},
		{"192.168.1.1/24", 200, 150, "192.168.1.200", "192.168.1.254"},
		{"192.168.1.129/25", 100, 10, "192.168.1.228", "192.168.1.237"},
		{"192.168.1.1/24", 0xc0a80196, 10, "192.168.1.150", "192.168.1.159"},
	} {
		c := &config.Pool{Start: tc.start, Limit: tc.limit, Dynamic: true}
		p, ok := NewPool(c, "x", netip.MustParsePrefix(tc.net))
		if !ok || p.First.String() != tc.first || p.Last.String() != tc.last {
			t.Errorf("%s from %d, %d addresses: %v to %v, want %s to %s", tc.net, tc.start, tc.limit, p.First, p.Last, tc.first, tc.last)
		}
	}
	if _, ok := NewPool(&config.Pool{Limit: 1, Dynamic: true}, "x", netip.MustParsePrefix("10.0.0.1/31")); ok {
		t.Error("a pool in a network of two")
	}
}

func TestUDPPacket(t *testing.T) {
	// Checksums over everything are zero when they are right.
	for _, data := range []string{"", "x", "hello world"} {
		b := udpPacket(netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.100"), 67, 68, []byte(data))
		if s := sum(b[:20], 0); s != 0xffff {
			t.Errorf("IP checksum is off: %#x", s)
		}
		if s := sum(b[12:], 17+uint32(len(b)-20)); s != 0xffff {
			t.Errorf("UDP checksum is off: %#x", s)
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, m := range []*dhcpv4.DHCPv4{
		discover(mac(1), dhcpv4.WithOption(dhcpv4.OptHostName("x"))), request(mac(1), wants("192.168.1.105"), server("192.168.1.1")), request(mac(2), wants("10.0.0.1")),
		discover(mac(3), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionFQDN, []byte{4, 0, 0, 1, 'a', 0}))),
	} {
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		bed := newBed(t)
		bed.set.Matches = []config.Match{{Tag: "x", Code: 77, Text: "a"}}
		for range 2 {
			bed.Handle("br-lan", m, func(r *dhcpv4.DHCPv4, to Target) {
				out := r.ToBytes()
				if len(out) > 1500 || !to.Addr.IsValid() {
					t.Errorf("answer of %d bytes to %+v", len(out), to)
				}
				if r.MessageType() != dhcpv4.MessageTypeNak && !r.YourIPAddr.IsUnspecified() && !bed.set.Pools[0].Net.Contains(addrOf(r.YourIPAddr)) {
					t.Errorf("gave %v", r.YourIPAddr)
				}
			})
		}
	})
}

func FuzzParseARP(f *testing.F) {
	f.Add([]byte{0, 1, 8, 0, 6, 4, 0, 2, 1, 2, 3, 4, 5, 6, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseARP(b); ok && (!a.Is4() || a.IsUnspecified()) {
			t.Errorf("% x: sender %v", b, a)
		}
	})
}
