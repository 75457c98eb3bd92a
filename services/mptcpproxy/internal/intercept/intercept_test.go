package intercept_test

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/intercept/bed"
)

func everywhere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

func TestDump(t *testing.T) {
	b := bed.New(t)
	var i *intercept.Intercept
	o := intercept.Options{
		LAN: []string{bed.LANDevice}, PortTCP: 4000, PortUDP: 4001, Destinations: everywhere(), StateDir: t.TempDir(),
		Away:      []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		PeerAddrs: []netip.Addr{netip.MustParseAddr("10.1.0.2")},
		Protocols: []uint8{132, 253}, NonePort: 4002, NoneFrom: everywhere(), ListenPort: 6240,
		Exclude: []intercept.Exclude{
			{Src: []netip.Prefix{netip.MustParsePrefix("192.168.1.77/32")}},
			{Dest: []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24"), netip.MustParsePrefix("fd05::/16")}, DestPort: []intercept.PortRange{{From: 22, To: 22}, {From: 8000, To: 8999}}},
			{Proto: []uint8{unix.IPPROTO_UDP}, Mark: 0x10, MarkMask: 0xff},
			{Set: "stream", DestPort: []intercept.PortRange{{From: 443, To: 443}}},
		},
	}
	if err := b.In("gw", func() (err error) { i, err = intercept.Setup(o); return }); err != nil {
		t.Fatal(err)
	}
	t.Log(b.Run("gw", "nft", "list", "ruleset"))
	t.Log(b.Run("gw", "ip", "rule"))
	t.Log(b.Run("gw", "ip", "-6", "rule"))
	t.Log(b.Run("gw", "ip", "route", "show", "table", "6240"))
	o.Fail = intercept.FailClosed
	if err := b.In("gw", func() (err error) { return i.Update(o) }); err != nil {
		t.Fatal(err)
	}
	o.Syn = intercept.Immediate
	if err := b.In("gw", func() (err error) { return i.Update(o) }); err != nil {
		t.Fatal(err)
	}
	t.Log(b.Run("gw", "nft", "list", "ruleset"))
	if err := b.In("gw", i.Close); err != nil {
		t.Fatal(err)
	}
	t.Log(b.Run("gw", "nft", "list", "ruleset"), b.Run("gw", "ip", "rule"))
}
