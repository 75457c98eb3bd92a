package netif

import (
	"net/netip"
	"testing"
	"time"

	"weft/init/bus"
)

// dump is what netifd says of a router with IPv6.
const dump = `{"interface":[
 {"interface":"lan","up":true,"l3_device":"br-lan","proto":"static","ipv4-address":[{"address":"192.168.1.1","mask":24},{"address":"x","mask":24}],"ipv6-address":[{"address":"fd99::1","mask":64}],
  "ipv6-prefix-assignment":[{"address":"2001:db8:1::","mask":60,"preferred":1000,"valid":2000,"local-address":{"address":"2001:db8:1::1","mask":60}},{"address":"fd00::","mask":60,"local-address":{"address":"fd00::1","mask":60}}],"route":[]},
 {"interface":"wan","up":true,"l3_device":"eth1","proto":"dhcp","ipv4-address":[{"address":"198.51.100.2","mask":24}],"route":[{"target":"0.0.0.0","mask":0,"nexthop":"198.51.100.1"}]},
 {"interface":"wan6","up":true,"l3_device":"eth1","proto":"dhcpv6","route":[{"target":"::","mask":0,"nexthop":"fe80::1"}]},
 {"interface":"off","up":false,"proto":"static"},
 {"interface":"vpn","up":true,"l3_device":"wg0","proto":"wireguard","route":[{"target":"10.0.0.0","mask":8}]},
 7]}`

func TestFromDump(t *testing.T) {
	table, err := bus.ParseJSON(dump)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	s := FromDump(table, now)
	if len(s.Interfaces) != 4 || !s.Default6 || !s.Bus {
		t.Fatalf("state %+v", s)
	}
	lan := s.Get("lan")
	if lan.Device != "br-lan" || len(lan.V4) != 1 || lan.V4[0].String() != "192.168.1.1/24" || lan.Uplink {
		t.Errorf("lan %+v", lan)
	}
	if len(lan.Assigned) != 2 || lan.Assigned[0].Local.String() != "2001:db8:1::1" || !lan.Assigned[0].Preferred.Equal(now.Add(1000*time.Second)) || !lan.Assigned[1].Valid.IsZero() {
		t.Errorf("assigned %+v", lan.Assigned)
	}
	if n := len(lan.Prefixes()); n != 3 {
		t.Errorf("%d prefixes, want two assigned and one configured", n)
	}
	if !s.Get("wan").Uplink || !s.Get("wan6").Uplink || s.Get("vpn").Uplink {
		t.Error("uplinks are wrong")
	}
	if s.Get("br-lan") != lan || s.Get("nothing") != nil {
		t.Error("lookup by device")
	}
	for a, want := range map[string]bool{"192.168.1.77": true, "192.168.2.1": false, "::ffff:192.168.1.9": true, "2001:db8:1:f::1": true, "2001:db8:2::1": false, "fe80::7": true, "fd99::5": true} {
		if lan.OnLink(netip.MustParseAddr(a)) != want {
			t.Errorf("%s on the link: %t", a, !want)
		}
	}
	// The same a moment later, with the same ends.
	later := FromDump(table, now.Add(2*time.Second))
	if !s.Equal(later) {
		t.Error("two seconds are a change")
	}
	if s.Equal(FromDump(table, now.Add(time.Minute))) {
		t.Error("lives that were set anew are no change")
	}
}

func FuzzFromDump(f *testing.F) {
	f.Add(dump)
	f.Add(`{"interface":[{"interface":"a","up":true,"l3_device":"b","ipv6-prefix-assignment":[{"address":"::","mask":-1,"preferred":-5}]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		table, err := bus.ParseJSON(text)
		if err != nil {
			return
		}
		for _, i := range FromDump(table, time.Unix(1, 0)).Interfaces {
			for _, p := range i.Prefixes() {
				if !p.IsValid() {
					t.Errorf("prefix %v", p)
				}
			}
		}
	})
}
