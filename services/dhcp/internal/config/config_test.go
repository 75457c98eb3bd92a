package config

import (
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/init/uci"
)

func parse(t *testing.T, text string) *Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dhcp"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := uci.Tree{ConfDir: dir, OverrideDir: dir + "/none", NonStrict: true}
	p, err := tree.LoadCommitted("dhcp")
	if p == nil {
		t.Fatal(err)
	}
	return New(p, nil)
}

// TestDefaultFile reads the file that images have.
func TestDefaultFile(t *testing.T) {
	text, err := os.ReadFile("../../../../buildroot-overlay/rootfs/etc/config/dhcp")
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, string(text))
	if len(c.Problems) > 0 {
		t.Errorf("problems: %v", c.Problems)
	}
	d := c.DNS
	if d.Domain != "lan" || !cmp.Equal(d.Local, []string{"lan"}) || !d.RebindProtect || !d.RebindLocal || !d.LocalService || !d.Authoritative ||
		d.CacheSize != 1000 || d.EDNSMax != 1232 || d.LeaseFile != "/tmp/dhcp.leases" || d.ResolvFile != "/tmp/resolv.conf.d/resolv.conf.auto" || d.Port != 53 {
		t.Errorf("dnsmasq section: %+v", d)
	}
	if len(c.Pools) != 2 {
		t.Fatalf("%d pools", len(c.Pools))
	}
	lan, wan := c.Pools[0], c.Pools[1]
	if lan.Start != 100 || lan.Limit != 150 || lan.Lease != 12*time.Hour || lan.V4 != ServerMode || lan.V6 != ServerMode || lan.RA != ServerMode ||
		!lan.Managed || !lan.Other || !lan.SLAAC || lan.Ignore {
		t.Errorf("lan: %+v", lan)
	}
	if !wan.Ignore {
		t.Errorf("wan: %+v", wan)
	}
}

// TestOldFile reads the way of 17.01.
func TestOldFile(t *testing.T) {
	c := parse(t, `
config dnsmasq
	option local '/lan/'
	list server '/corp.example/10.1.1.1#5353'
	list server '9.9.9.9'
	list server '/dark.example/'
	list server '/light.example/#'
	list address '/ads.example/0.0.0.0'
	list address '/none.example/'
config dhcp lan
	option interface lan
	option start 100
	option limit 150
	option leasetime 30m
	option ra_management 2
	option ra server
	list dhcp_option '6,192.168.1.1,9.9.9.9'
	list dhcp_option 'tag:phones,option:tftp-server,10.0.0.5'
	list dhcp_option_force '252,http://wpad.lan/wpad.dat'
	list dhcp_option '121,10.0.0.0/8,192.168.1.9'
config host
	option name printer
	option mac '00:11:22:33:44:55 66:77:88:99:aa:bb'
	option ip 192.168.1.5
config host
	list mac 'AA:BB:CC:*:*:*'
	option ip ignore
config host
	option duid '0003000100112233445566%1f'
	option hostid 'cafe'
	option leasetime infinite
`)
	if len(c.Problems) > 0 {
		t.Errorf("problems: %v", c.Problems)
	}
	want := []Server{
		{Domains: []string{"corp.example"}, Addr: netip.MustParseAddrPort("10.1.1.1:5353")},
		{Addr: netip.MustParseAddrPort("9.9.9.9:53")},
		{Domains: []string{"dark.example"}},
		{Domains: []string{"light.example"}, Default: true},
	}
	eq := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(want, c.DNS.Servers, eq); d != "" {
		t.Error(d)
	}
	if a := c.DNS.Addresses; len(a) != 2 || a[0].Addr != netip.IPv4Unspecified() || a[1].Addr.IsValid() || a[1].Domain != "none.example" {
		t.Errorf("addresses: %+v", a)
	}
	p := c.Pools[0]
	if !p.Managed || !p.Other || p.Lease != 30*time.Minute || p.V4 != ServerMode {
		t.Errorf("pool: %+v", p)
	}
	var opts []string
	for _, o := range p.Options {
		opts = append(opts, strings.Join(append(o.Tags, hex.EncodeToString([]byte{o.Code})+":"+hex.EncodeToString(o.Value)), ","))
	}
	if d := cmp.Diff([]string{"06:c0a8010109090909", "phones,42:" + hex.EncodeToString([]byte("10.0.0.5")), "79:080ac0a80109", "fc:" + hex.EncodeToString([]byte("http://wpad.lan/wpad.dat"))}, opts); d != "" {
		t.Error(d)
	}
	if !p.Options[3].Force || p.Options[0].Force {
		t.Error("only the last option was to be forced")
	}
	if len(c.Hosts) != 3 || len(c.Hosts[0].MACs) != 2 || !c.Hosts[1].Ignore || !c.Hosts[1].MACs[0].Matches([]byte{0xaa, 0xbb, 0xcc, 1, 2, 3}) || c.Hosts[1].MACs[0].Matches([]byte{0xaa, 0xbb, 0xcd, 1, 2, 3}) {
		t.Errorf("hosts: %+v", c.Hosts)
	}
	if h := c.Hosts[2]; h.HostID != 0xcafe || h.IAIDs[0] != 0x1f || !h.HasLease || h.Lease != 0 {
		t.Errorf("host by DUID: %+v", h)
	}
}

// TestFaults: each is named, and the rest of its section holds.
func TestFaults(t *testing.T) {
	c := parse(t, `
config dnsmasq
	option port 'ssh'
	option cachesize '99999999'
	list server 'nobody'
	list server '/x.example/1.2.3.4#99999'
	list address 'ads'
	option domain 'lan'
config dhcp 'lan'
	option interface 'lan'
	option leasetime 'soon'
	option ra 'maybe'
	option dhcpv6 'relay'
	list dhcp_option 'router,my.house'
	list dhcp_option '53,1'
	list dhcp_option '3'
	list dns 'here'
config dhcp
	option start 3
config host
	option ip '192.168.1.300'
	option mac '00:11:22:33:44'
config cname
	option cname 'a b'
	option target 'x'
config nonsense
`)
	var got []string
	for _, p := range c.Problems {
		got = append(got, p.Option)
	}
	want := []string{"port", "cachesize", "server", "server", "address", "leasetime", "dhcpv6", "ra", "dns", "dhcp_option", "dhcp_option", "", "mac", "ip", "", "cname", ""}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s\n%v", d, c.Problems)
	}
	if c.DNS.Domain != "lan" || c.DNS.Port != 53 || len(c.Pools) != 1 || c.Pools[0].Lease != DefaultLease || !c.Pools[0].Options[0].None {
		t.Errorf("what is right was not kept: %+v %+v", c.DNS, c.Pools)
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"12h": 12 * time.Hour, "30m": 30 * time.Minute, "7d": 168 * time.Hour, "2w": 336 * time.Hour, "90": 90 * time.Second, "infinite": 0} {
		if got, ok := ParseDuration(in); !ok || got != want {
			t.Errorf("%s: %v, %t", in, got, ok)
		}
	}
	for _, in := range []string{"", "h", "-5m", "0", "1x", "9999999999h", "1.5h"} {
		if got, ok := ParseDuration(in); ok {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func FuzzParseOption(f *testing.F) {
	for _, s := range []string{"3,192.168.1.1", "option:router,0.0.0.0", "tag:a,set:b,6,1.1.1.1", "121,0.0.0.0/0,1.2.3.4", "119,a.b,c", "43,01:02:03", "60,\"text\"", "252,x", "26,1500", "2,-3600", "option6:dns-server,[::]", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOption(s)
		if err != nil {
			return
		}
		if len(o.Value) > 1024 || o.Code == 255 {
			t.Errorf("%q: option %d with %d bytes", s, o.Code, len(o.Value))
		}
		for _, at := range o.SelfAt {
			if at+4 > len(o.Value) {
				t.Errorf("%q: address at %d of %d bytes", s, at, len(o.Value))
			}
		}
	})
}

func FuzzParseServer(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "::1#5353", "/a/b.c/1.2.3.4", "/a/", "/a/#", "//", "/", "/#/1.2.3.4", "1.2.3.4@eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := parseServer(s); ok && len(v) == 0 {
			t.Errorf("%q gives nothing", s)
		}
		if v, ok := parseAddress(s); ok && len(v) == 0 {
			t.Errorf("%q gives nothing", s)
		}
	})
}
