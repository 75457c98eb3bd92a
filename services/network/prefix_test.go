package network

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func testPool(class, prefix string) pool {
	return pool{timedPrefix{Prefix: netip.MustParsePrefix(prefix)}, class}
}

func want(name string, length, hint int, classes ...string) consumer {
	return consumer{name: name, Assign: Assign{Length: length, Hint: hint, Classes: classes}}
}

func TestAssign(t *testing.T) {
	mac, _ := net.ParseMAC("02:00:5e:10:00:01")
	eui := want("lan", 64, -1)
	eui.IfaceID, eui.mac = "eui64", mac
	fixed := want("lan", 64, -1)
	fixed.IfaceID = "::abcd:1"
	heavy := want("zeta", 60, -1)
	heavy.Weight = 10
	for _, tt := range []struct {
		name      string
		pools     []pool
		consumers []consumer
		want      string
	}{
		{"the default configuration", []pool{testPool("local", "fd00:1:2::/48"), testPool("wan6", "2001:db8:0:ff00::/56")}, []consumer{want("lan", 60, -1)},
			"lan fd00:1:2::/60 fd00:1:2::1, lan 2001:db8:0:ff00::/60 2001:db8:0:ff00::1"},
		{"two networks", []pool{testPool("wan6", "2001:db8::/56")}, []consumer{want("guest", 64, -1), want("lan", 60, -1)},
			"guest 2001:db8:0:10::/64 2001:db8:0:10::1, lan 2001:db8::/60 2001:db8::1"},
		{"a hint comes first", []pool{testPool("wan6", "2001:db8::/56")}, []consumer{want("a", 64, -1), want("z", 64, 0)},
			"a 2001:db8:0:1::/64 2001:db8:0:1::1, z 2001:db8::/64 2001:db8::1"},
		{"a hint counts in /64 and is cut", []pool{testPool("wan6", "2001:db8::/56")}, []consumer{want("lan", 60, 0xa5)},
			"lan 2001:db8:0:a0::/60 2001:db8:0:a0::1"},
		{"a hint that is not there", []pool{testPool("wan6", "2001:db8::/60")}, []consumer{want("lan", 64, 0xff)},
			"lan 2001:db8::/64 2001:db8::1"},
		{"one /64 for a /60", []pool{testPool("wan6", "2001:db8::/64")}, []consumer{want("guest", 60, -1), want("lan", 60, -1)},
			"guest 2001:db8::/64 2001:db8::1"},
		{"smaller when it is tight", []pool{testPool("wan6", "2001:db8::/62")}, []consumer{want("a", 63, -1), want("b", 63, -1), want("c", 63, -1)},
			"a 2001:db8::/63 2001:db8::1, b 2001:db8:0:2::/63 2001:db8:0:2::1"},
		{"classes", []pool{testPool("local", "fd00::/48"), testPool("wan6", "2001:db8::/56"), testPool("wan7", "2001:db9::/56")},
			[]consumer{want("a", 64, -1, "local"), want("b", 64, -1, "wan6", "wan7")},
			"a fd00::/64 fd00::1, b 2001:db8::/64 2001:db8::1, b 2001:db9::/64 2001:db9::1"},
		{"not to the uplink itself", []pool{testPool("wan6", "2001:db8::/56")}, []consumer{want("wan6", 64, -1)}, ""},
		{"weight", []pool{testPool("wan6", "2001:db8::/60")}, []consumer{want("alpha", 60, -1), heavy}, "zeta 2001:db8::/60 2001:db8::1"},
		{"eui64", []pool{testPool("local", "fd00::/48")}, []consumer{eui}, "lan fd00::/64 fd00::5eff:fe10:1"},
		{"own last half", []pool{testPool("local", "fd00::/48")}, []consumer{fixed}, "lan fd00::/64 fd00::abcd:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var g assigner
			if got := parts(g.assign(tt.pools, tt.consumers)); got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
			if got := parts(g.assign(tt.pools, tt.consumers)); got != tt.want {
				t.Errorf("the second time: %s", got)
			}
		})
	}
}

func parts(m map[string][]assignment) string {
	var out []string
	for _, name := range sortedKeys(m) {
		for _, a := range m[name] {
			out = append(out, fmt.Sprintf("%s %s %s", name, a.Prefix, a.addr))
		}
	}
	return strings.Join(out, ", ")
}

// TestAssignStays: whoever comes or goes, the others keep what they have.
func TestAssignStays(t *testing.T) {
	var g assigner
	p := []pool{testPool("wan6", "2001:db8::/60")}
	lan, guest, all := want("lan", 64, -1), want("guest", 64, -1), want("all", 64, -1)
	g.assign(p, []consumer{lan})
	if got := parts(g.assign(p, []consumer{lan, guest, all})); !strings.Contains(got, "lan 2001:db8::/64") {
		t.Error(got)
	}
	before := parts(g.assign(p, []consumer{lan, guest}))
	if got := parts(g.assign(p, []consumer{lan, guest, all})); !strings.Contains(got, before[strings.Index(before, "guest"):]) {
		t.Errorf("%s, before %s", got, before)
	}
	// Another prefix is another matter; back again is anew.
	if got := parts(g.assign([]pool{testPool("wan6", "2001:db9::/60")}, []consumer{guest})); got != "guest 2001:db9::/64 2001:db9::1" {
		t.Error(got)
	}
}

// FuzzAssign: parts lie in their pool and do not overlap, and it always ends.
func FuzzAssign(f *testing.F) {
	f.Add(uint8(56), uint8(60), uint8(64), uint8(62), int32(-1), int32(3))
	f.Add(uint8(1), uint8(64), uint8(1), uint8(0), int32(1<<30), int32(-1))
	f.Fuzz(func(t *testing.T, bits, a, b, c uint8, h1, h2 int32) {
		p := netip.PrefixFrom(netip.MustParseAddr("2001:db8::"), int(bits%64)+1).Masked()
		var g assigner
		got := g.assign([]pool{{timedPrefix{Prefix: p}, "wan6"}}, []consumer{
			want("a", int(a%64)+1, max(int(h1), -1)), want("b", int(b%64)+1, max(int(h2), -1)), want("c", int(c%64)+1, -1),
		})
		var all []netip.Prefix
		for _, as := range got {
			for _, x := range as {
				if !p.Contains(x.Addr()) || x.Bits() < p.Bits() || x.Bits() > 64 || !x.Contains(x.addr) {
					t.Fatalf("%s of %s", x.Prefix, p)
				}
				for _, o := range all {
					if o.Overlaps(x.Prefix) {
						t.Fatalf("%s and %s", o, x.Prefix)
					}
				}
				all = append(all, x.Prefix)
			}
		}
		if len(all) == 0 {
			t.Fatalf("nothing of %s", p)
		}
	})
}
