package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/services/internal/nstest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace runs the test that calls it in a network namespace of its own
// and reports whether this is the run inside.
func inNamespace(t *testing.T) bool {
	t.Helper()
	return nstest.Inside(t, 2*time.Minute, 0)
}

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// upLoopback brings the loopback up; it is the one link that there always is.
func upLoopback(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

var pfx = netip.MustParsePrefix

// TestRoutes: what is added is read back as it was, and goes again.
func TestRoutes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	upLoopback(t)
	c := dial(t)
	plain := Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Link: 1}
	for name, change := range map[string]func(*Route){
		"IPv4":                 func(r *Route) { r.Dest, r.Scope = pfx("10.0.0.0/8"), unix.RT_SCOPE_LINK },
		"IPv4, metric and MTU": func(r *Route) { r.Dest, r.Scope, r.Metric, r.MTU = pfx("10.0.0.0/8"), unix.RT_SCOPE_LINK, 7, 1400 },
		"IPv4, gateway": func(r *Route) {
			r.Dest, r.Via, r.OnLink, r.Table = pfx("0.0.0.0/0"), netip.MustParseAddr("10.0.0.1"), true, 63000
		},
		"IPv6":                 func(r *Route) { r.Dest, r.Metric = pfx("2001:db8::/32"), 1024 },
		"IPv6, from somewhere": func(r *Route) { r.Dest, r.From, r.Metric, r.MTU = pfx("::/0"), pfx("2001:db8::/56"), 512, 1280 },
		"IPv6, another table":  func(r *Route) { r.Dest, r.Metric, r.Table = pfx("::/0"), 5, 1000000 },
		"IPv4, unreachable":    func(r *Route) { r.Dest, r.Type, r.Link = pfx("10.1.0.0/16"), unix.RTN_UNREACHABLE, 0 },
		"IPv6, the last metric": func(r *Route) {
			r.Dest, r.Type, r.Metric, r.Link = pfx("2001:db8:1::/48"), unix.RTN_UNREACHABLE, 1<<31-1, 0
		},
		"IPv6, blackhole": func(r *Route) { r.Dest, r.Type, r.Metric, r.Link = pfx("2001:db8:2::/48"), unix.RTN_BLACKHOLE, 1, 0 },
	} {
		r := plain
		change(&r)
		for range 2 { // again is no error
			if err := c.AddRoute(r); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		want := r
		want.OnLink = false
		family := int(familyOf(r.Dest))
		if family == V6 && r.Link == 0 {
			want.Link = 1 // the kernel has dead ends of IPv6 on the loopback
		}
		have, err := c.Routes(family, unix.RTPROT_STATIC, 0)
		if err != nil || len(have) != 1 || have[0] != want {
			t.Errorf("%s: %+v, %v\nwant %+v", name, have, err, want)
		}
		if by, err := c.Routes(family, unix.RTPROT_STATIC, 1); err != nil || len(by) != want.Link {
			t.Errorf("%s: by link %+v, %v", name, by, err)
		}
		if err := c.DeleteRoute(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if have, err = c.Routes(family, unix.RTPROT_STATIC, 0); err != nil || len(have) != 0 {
			t.Errorf("%s: left %+v, %v", name, have, err)
		}
	}
	none := plain
	none.Dest = pfx("10.3.0.0/16")
	if err := c.DeleteRoute(none); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a route that is not there: %v", err)
	}
}

// TestSeveral: routes to one place over several next hops are all kept.
func TestSeveral(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	upLoopback(t) // without it there is no table of local addresses
	c := dial(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b"}); err != nil {
		t.Skipf("veth links are not available: %v", err)
	}
	link, err := netlink.LinkByName("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	index := link.Attrs().Index
	for _, tt := range []struct {
		net  string
		hops []string
	}{{"10.0.0.0/8", []string{"192.0.2.1", "192.0.2.2"}}, {"2001:db8::/32", []string{"fe80::1", "fe80::2", "fe80::3"}}} {
		var want []Route
		for _, h := range tt.hops {
			r := Route{Dest: pfx(tt.net), Via: netip.MustParseAddr(h), Table: unix.RT_TABLE_MAIN, Metric: 9, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Link: index, OnLink: true}
			if err := c.AddRoute(r); err != nil {
				t.Fatalf("%s via %s: %v", tt.net, h, err)
			}
			r.OnLink = false
			want = append(want, r)
		}
		check := func() {
			t.Helper()
			have, err := c.Routes(int(familyOf(pfx(tt.net))), unix.RTPROT_STATIC, index)
			if err != nil || len(have) != len(want) {
				t.Fatalf("%+v, %v\nwant %+v", have, err, want)
			}
			for _, w := range want {
				if !slices.Contains(have, w) {
					t.Errorf("%+v is not in %+v", w, have)
				}
			}
		}
		check()
		if err := c.DeleteRoute(want[0]); err != nil {
			t.Fatal(err)
		}
		want = want[1:]
		check()
	}
}

func TestRules(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := dial(t)
	plain := Rule{Priority: 5, Action: ActTable, Table: 100, Suppress: -1, Protocol: unix.RTPROT_STATIC}
	for _, family := range []uint8{V4, V6} {
		from, to := pfx("192.168.1.0/24"), pfx("10.0.0.0/8")
		if family == V6 {
			from, to = pfx("fd00::/64"), pfx("2001:db8::/32")
		}
		for name, change := range map[string]func(*Rule){
			"plain":     func(r *Rule) {},
			"addresses": func(r *Rule) { r.From, r.To = from, to },
			"links":     func(r *Rule) { r.In, r.Out = "eth0", "eth1" },
			"inverted":  func(r *Rule) { r.Invert, r.From = true, from },
			"mark":      func(r *Rule) { r.Mark, r.Mask = 0x10, 0xf0 },
			"no mark":   func(r *Rule) { r.Mask = 0xff },
			"protocol":  func(r *Rule) { r.IPProto, r.Dport, r.Sport = 17, Range{53, 53}, Range{1024, 65534} },
			"users":     func(r *Rule) { r.UID, r.HasUID = Range{0, 10}, true },
			"suppress":  func(r *Rule) { r.Table, r.Suppress = unix.RT_TABLE_MAIN, 0 },
			"big table": func(r *Rule) { r.Table = 1 << 30 },
			"goto":      func(r *Rule) { r.Action, r.Table, r.Goto = ActGoto, 0, 4000 },
			"prohibit":  func(r *Rule) { r.Action, r.Table, r.To = ActProhibit, 0, to },
		} {
			r := plain
			r.Family = family
			change(&r)
			for range 2 {
				if err := c.AddRule(r); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			have, err := c.Rules(int(family), unix.RTPROT_STATIC)
			if err != nil || len(have) != 1 || have[0] != r {
				t.Errorf("%s: %+v, %v\nwant %+v", name, have, err, r)
			}
			if err := c.DeleteRule(r); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if have, err = c.Rules(int(family), unix.RTPROT_STATIC); err != nil || len(have) != 0 {
				t.Errorf("%s: left %+v, %v", name, have, err)
			}
			if err := c.DeleteRule(r); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: a rule that is not there: %v", name, err)
			}
		}
	}
}

// FuzzParse: whatever the kernel's messages hold, nothing but an error comes of
// what makes no sense; and what was read can be written.
func FuzzParse(f *testing.F) {
	for _, r := range []Route{
		{Dest: pfx("10.0.0.0/8"), Via: netip.MustParseAddr("10.0.0.1"), Table: 1000, Type: 1, MTU: 1400, Link: 3},
		{Dest: pfx("::/0"), From: pfx("2001:db8::/56"), Via: netip.MustParseAddr("fe80::1"), Table: 254, Type: 1, Metric: 9, Link: 3},
	} {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := Rule{Family: V4, From: pfx("10.0.0.0/8"), In: "eth0", Priority: 4, Mark: 1, Mask: 3, IPProto: 6, Dport: Range{1, 2}, HasUID: true, Action: ActTable, Table: 9, Suppress: 0, Protocol: 4}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	hops := []byte{V6, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 12, 0, unix.RTA_MULTIPATH, 0, 8, 0, 0, 0, 2, 0, 0, 0}
	f.Add(hops)
	f.Fuzz(func(t *testing.T, b []byte) {
		if rs, err := parseRoute(b); err == nil {
			for _, r := range rs {
				if !r.Dest.IsValid() || r.Dest != r.Dest.Masked() {
					t.Fatalf("%+v", r)
				}
				if _, err := r.encode(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if r, err := parseRule(b); err == nil {
			// A name with a NUL in it cannot be written; the kernel has none.
			if _, err := r.encode(); err != nil {
				t.Fatal(err)
			}
		}
		out := map[BridgeOption]uint64{}
		_ = parseBridge(b, out)
		if len(out) > 1<<14 {
			t.Fatal(fmt.Sprint(len(out), " options"))
		}
	})
}

func TestBridgeParse(t *testing.T) {
	// ifinfomsg, then IFLA_LINKINFO { KIND, DATA { STP 1 (u32), snooping 0 (u8), an odd one } }.
	b := make([]byte, unix.SizeofIfInfomsg)
	data := []byte{8, 0, 5, 0, 1, 0, 0, 0, 5, 0, 23, 0, 0, 0, 0, 0, 5, 0, 6, 0, 9, 0, 0, 0}
	info := append([]byte{byte(4 + len(data)), 0, unix.IFLA_INFO_DATA, 0}, data...)
	b = append(append(b, byte(4+len(info)), 0, unix.IFLA_LINKINFO, 0), info...)
	out := map[BridgeOption]uint64{}
	if err := parseBridge(b, out); err != nil || len(out) != 2 || out[BridgeSTP] != 1 || out[BridgeSnooping] != 0 {
		t.Errorf("%v, %v", out, err)
	}
	if err := parseBridge(b[:9], out); err == nil {
		t.Error("a cut message was taken")
	}
}
