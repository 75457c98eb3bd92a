package dhcp

import (
	"strings"
	"testing"

	"weft/init/bus"
	"weft/services/dhcp/internal/config"
)

// TestPackageOf: a package that came over the bus is the one in the file.
func TestPackageOf(t *testing.T) {
	table, err := bus.ParseJSON(`{"values":{
 "lan":{".anonymous":false,".type":"dhcp",".name":"lan",".index":1,"interface":"lan","start":"100","ra_flags":["managed-config","other-config"]},
 "cfg01411c":{".anonymous":true,".type":"dnsmasq",".name":"cfg01411c",".index":0,"domain":"lan","server":["9.9.9.9"]}}}`)
	if err != nil {
		t.Fatal(err)
	}
	p, err := packageOf("dhcp", table)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Sections) != 2 || p.Sections[0].Type != "dnsmasq" || !p.Sections[0].Anonymous {
		t.Fatalf("sections %+v", p.Sections)
	}
	c := config.New(p, nil)
	if len(c.Problems) > 0 || c.DNS.Domain != "lan" || len(c.DNS.Servers) != 1 || !c.Pools[0].Managed || !c.Pools[0].Other || c.Pools[0].Start != 100 {
		t.Errorf("%+v %+v %v", c.DNS, c.Pools[0], c.Problems)
	}
	if _, err := packageOf("dhcp", bus.Table{}); err == nil {
		t.Error("a reply without values was taken for a package")
	}
}

func TestReadEthers(t *testing.T) {
	got := readEthers(strings.NewReader("00:11:22:33:44:55 192.168.1.5\n# x\n00-11-22-33-44-66 nas.lan # y\nnonsense\n00:11:22:33:44:77\n*:11:22:33:44:77 a\n00:11:22:33:44:88 ::1\n"))
	if len(got) != 2 || got[0].Addr.String() != "192.168.1.5" || got[1].Name != "nas" || got[1].MAC != [6]byte{0, 0x11, 0x22, 0x33, 0x44, 0x66} {
		t.Errorf("%+v", got)
	}
}

func FuzzReadEthers(f *testing.F) {
	f.Add("00:11:22:33:44:55 192.168.1.5\n0:1:2:3:4:5 x\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, e := range readEthers(strings.NewReader(s)) {
			if !e.Addr.IsValid() && !config.ValidName(e.Name) {
				t.Errorf("%q: %+v", s, e)
			}
		}
	})
}
