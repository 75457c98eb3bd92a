package settings

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/init/uci"
)

const networkText = `
config device
	option name 'br-lan'
	option type 'bridge'
	list ports 'eth0'
config interface 'loopback'
	option device 'lo'
config interface 'lan'
	option device 'br-lan'
	option proto 'static'
config interface 'lan6'
	option device '@lan'
config interface 'guest'
	option type 'bridge'
	option ifname 'eth5 eth6'
config interface 'wan1'
	option device 'eth1'
	option multipath 'master'
config interface 'wan2'
	option device 'eth2'
	option multipath 'on'
config interface 'lte'
	option device 'wwan0'
	option multipath 'backup'
config interface 'mgmt'
	option device 'eth9'
	option multipath 'off'
`

const secret = "0123456789abcdef0123456789abcdef"

// folder makes a configuration folder.
func folder(t testing.TB, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestLoadFull(t *testing.T) {
	seed, pub := make([]byte, 32), make([]byte, 32)
	seed[0], pub[0] = 1, 2
	dir := folder(t, map[string]string{"network": networkText, "exit.key": secret + "\n", "mptcpproxy": `
config mptcpproxy 'main'
	option enabled '1'
	list lan 'lan'
	list lan 'lan6'
	list lan 'guest'
	list lan 'veth7'
	option listen_port '7000'
	option fail 'closed'
	option syn 'hold'
	option congestion 'bbr'
	option notsent_lowat '65536'
	option flow_buffer '262144'
	option memory_max '8388608'
	option park_idle '3'
	option max_flows '100'
	option client_max_flows '10'
	option client_rate '5'
	option udp '0'
	option udp_timeout '30'
	option udp_reorder '15'
	option udp_duplicate 'small'
	list protocol 'sctp'
	list protocol '253'
	list protocol 'icmp'
	option metrics '127.0.0.1:9640'
config peer 'exit1'
	list address '10.1.0.2'
	list address 'fd01::2'
	option key_file 'exit.key'
	option encrypt '1'
	option pool '8'
config peer 'exit2'
	option enabled '0'
	list address '10.9.0.2'
	option key '` + secret + `'
config peer 'haproxy'
	list address '10.3.0.2'
	option port '8443'
	option carrier 'proxy2'
	list destination '192.168.7.9/24'
config accept 'near1'
	option private_key '` + base64.StdEncoding.EncodeToString(seed) + `'
	option peer_key '` + base64.StdEncoding.EncodeToString(pub) + `'
	list allow_client '192.168.1.0/24'
	list from '10.1.0.1'
config path 'lte'
	option weight '3'
	option quota '500'
	option quota_period 'week'
	option probe '0'
config path 'extra'
	option device 'eth8'
	option multipath 'handover'
config exclude
	list src '192.168.1.9'
	list dest '10.0.0.0/8'
	list dest_port '22'
	list dest_port '8000-8999'
	list proto 'tcp'
	option mark '0x10/0xff'
	option set 'bypass'
`})
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Configured: true, Enabled: true,
		LAN: []string{"br-lan", "br-guest", "veth7"}, ListenPort: 7000, FailClosed: true, Syn: Hold, Congestion: "bbr",
		NotsentLowat: 65536, FlowBuffer: 262144, MemoryMax: 8388608, ParkIdle: 3 * time.Second,
		MaxFlows: 100, ClientMaxFlows: 10, ClientRate: 5,
		UDPTimeout: 30 * time.Second, UDPReorder: 15 * time.Millisecond, UDPDuplicate: DuplicateSmall,
		Protocols: []uint8{1, 132, 253}, Metrics: "127.0.0.1:9640",
		Peers: []Peer{
			{Name: "exit1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")}, Port: 7000,
				Framed: true, Key: Key{Shared: secret}, Encrypt: true, Destinations: everything(), Pool: 8},
			{Name: "haproxy", Addresses: []netip.Addr{netip.MustParseAddr("10.3.0.2")}, Port: 8443, Carrier: Proxy2, Framed: true,
				Destinations: prefixes("192.168.7.0/24"), Pool: DefaultPool},
		},
		Accepts: []Accept{{Name: "near1", Key: Key{Private: seed, Peer: pub}, AllowClient: prefixes("192.168.1.0/24"),
			AllowDest: everything(), From: prefixes("10.1.0.1/32")}},
		Paths: []Path{
			{Name: "lte", Device: "wwan0", Mode: Backup, Weight: 3, Quota: 500e6, QuotaPeriod: Week},
			{Name: "extra", Device: "eth8", Mode: Handover, Weight: 1, Probe: true},
			{Name: "wan1", Device: "eth1", Mode: Master, Weight: 1, Probe: true},
			{Name: "wan2", Device: "eth2", Mode: On, Weight: 1, Probe: true},
		},
		Excludes: []Exclude{{Name: c.Excludes[0].Name, Src: prefixes("192.168.1.9/32"), Dest: prefixes("10.0.0.0/8"),
			DestPort: []PortRange{{22, 22}, {8000, 8999}}, Proto: []uint8{6}, Mark: 0x10, MarkMask: 0xff, Set: "bypass"}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestLoadMissing(t *testing.T) {
	c, err := Load(folder(t, nil))
	if err != nil || c.Configured || c.Enabled {
		t.Fatalf("got %+v, %v; want a configuration that says it is none", c, err)
	}
}

func TestDefaults(t *testing.T) {
	c, err := Load(folder(t, map[string]string{"mptcpproxy": "config mptcpproxy 'main'\n"}))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{Configured: true, ListenPort: 6240, Congestion: "auto", NotsentLowat: 131072, FlowBuffer: 1 << 20,
		MemoryMax: 64 << 20, ParkIdle: 10 * time.Second, MaxFlows: 50000, UDP: true, UDPTimeout: time.Minute, UDPReorder: 20 * time.Millisecond}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// TestFaults checks that each fault is found and named, one case a fault.
func TestFaults(t *testing.T) {
	const peer = "config peer 'p'\n\toption key '" + secret + "'\n\tlist address '10.0.0.1'\n"
	for name, tc := range map[string]struct{ text, want string }{
		"bool":               {"config mptcpproxy 'main'\n\toption enabled 'maybe'", "mptcpproxy.main: option enabled 'maybe': expected 0 or 1"},
		"number":             {"config mptcpproxy 'main'\n\toption listen_port '70000'", "mptcpproxy.main: option listen_port '70000': expected a number from 1 to 65535"},
		"two values":         {"config mptcpproxy 'main'\n\tlist fail 'open'\n\tlist fail 'closed'", "mptcpproxy.main: option fail 'open closed': expected one value"},
		"choice":             {"config mptcpproxy 'main'\n\toption syn 'adaptiv'", "mptcpproxy.main: option syn 'adaptiv': expected one of adaptive, hold, immediate; did you mean adaptive?"},
		"algorithm":          {"config mptcpproxy 'main'\n\toption congestion 'b b'", "mptcpproxy.main: option congestion 'b b': expected a name of letters, digits, _ and -, at most 15 characters"},
		"lan":                {"config mptcpproxy 'main'\n\tlist lan 'a/b'", "mptcpproxy.main: option lan 'a/b': expected an interface of /etc/config/network, or the name of a device"},
		"protocol":           {"config mptcpproxy 'main'\n\tlist protocol 'tcp'", "mptcpproxy.main: option protocol 'tcp': expected all, or an IP protocol other than tcp and udp"},
		"metrics":            {"config mptcpproxy 'main'\n\toption metrics ':9640'", "mptcpproxy.main: option metrics ':9640': expected an address and a port"},
		"nobody to talk to":  {"config mptcpproxy 'main'\n\toption enabled '1'", "mptcpproxy: a section of type peer (whom to dial) or accept (who may dial us) is needed"},
		"no lan":             {"config mptcpproxy 'main'\n\toption enabled '1'\n" + peer, "mptcpproxy.main: option lan: at least one interface whose hosts are to be served"},
		"no address":         {"config peer 'p'\n\toption key '" + secret + "'", "mptcpproxy.p: option address: expected at least one address of the far gateway"},
		"bad address":        {peer + "\tlist address '0.0.0.0'", "mptcpproxy.p: option address '0.0.0.0': expected the IPv4 or IPv6 address of a host"},
		"no key":             {"config peer 'p'\n\tlist address '10.0.0.1'", "mptcpproxy.p: option key: expected a key"},
		"short key":          {"config peer 'p'\n\tlist address '10.0.0.1'\n\toption key 'tiny'", "mptcpproxy.p: option key: expected at least 16 characters; mptcp genkey makes one"},
		"half a pair":        {"config peer 'p'\n\tlist address '10.0.0.1'\n\toption private_key 'x'", "mptcpproxy.p: option private_key: expected private_key (ours) together with peer_key"},
		"bad public key":     {"config peer 'p'\n\tlist address '10.0.0.1'\n\toption private_key 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='\n\toption peer_key 'y'", "mptcpproxy.p: option peer_key 'y': expected 32 bytes in base64"},
		"both keys":          {peer + "\toption peer_key 'x'", "mptcpproxy.p: option key: expected either a shared key, or private_key and peer_key"},
		"no key file":        {"config peer 'p'\n\tlist address '10.0.0.1'\n\toption key_file 'absent'", "mptcpproxy.p: option key_file 'absent': expected a file that can be read: no such file"},
		"encrypted proxy2":   {peer + "\toption carrier 'proxy2'\n\toption encrypt '1'", "mptcpproxy.p: option encrypt '1': expected carrier convert"},
		"bad destination":    {peer + "\tlist destination '10.0.0.0/33'", "mptcpproxy.p: option destination '10.0.0.0/33': expected an address or a prefix"},
		"open relay":         {"config accept 'a'\n\toption carrier 'proxy2'", "mptcpproxy.a: option from: expected the source addresses of the gateways"},
		"accept without key": {"config accept 'a'\n\tlist from '10.0.0.0/8'", "mptcpproxy.a: option key: expected a key"},
		"path of nothing":    {"config path 'x'", "mptcpproxy.x: option device: expected option interface or option device"},
		"no such interface":  {"config path 'x'\n\toption interface 'wan3'", "mptcpproxy.x: option interface 'wan3': expected an interface of /etc/config/network that has a device; did you mean wan1?"},
		"bad mode":           {"config path 'wan1'\n\toption multipath 'bakcup'", "mptcpproxy.wan1: option multipath 'bakcup': expected one of on, off, backup, master, handover; did you mean backup?"},
		"bad port":           {"config exclude 'e'\n\tlist dest_port '10-9'", "mptcpproxy.e: option dest_port '10-9': expected a port such as 22"},
		"bad protocol":       {"config exclude 'e'\n\tlist proto 'tcpp'", "mptcpproxy.e: option proto 'tcpp': expected a name or number of an IP protocol"},
		"bad mark":           {"config exclude 'e'\n\toption mark '1/0'", "mptcpproxy.e: option mark '1/0': expected a packet mark"},
		"empty exclude":      {"config exclude 'e'", "mptcpproxy.e: expected one of src, dest, dest_port, proto, mark, set"},
		"twice the same": {"config mptcpproxy 'main'\n\toption enabled '1'\n\tlist lan 'lan'\n" + peer + strings.Replace(peer, "'p'", "'q'", 1),
			"mptcpproxy.q: option destination '0.0.0.0/0': a prefix that peer p does not have too"},
		"one device, two paths": {"config mptcpproxy 'main'\n\toption enabled '1'\n\tlist lan 'lan'\n" + peer + "config path 'a'\n\toption device 'eth1'\nconfig path 'wan1'",
			"mptcpproxy.wan1: option device 'eth1': a device that path a does not have too"},
		"grammar": {"config mptcpproxy 'main'\n\toptoin enabled '1'", "mptcpproxy:2: "},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Load(folder(t, map[string]string{"network": networkText, "mptcpproxy": tc.text + "\n"}))
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got %+v, %v; want faults", c, err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q\nwant %q in it", err, tc.want)
			}
			if strings.Contains(err.Error(), "tiny") {
				t.Errorf("the error shows a key: %q", err)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := Load(folder(t, map[string]string{"mptcpproxy": "config mptcpproxy 'main'\n\toption enabled 'x'\n\toption fail 'y'\nnonsense\nconfig exclude 'e'\n\tlist src 'z'\n"}))
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != 4 {
		t.Fatalf("got %v; want four faults", err)
	}
}

func TestWarnings(t *testing.T) {
	c, err := Load(folder(t, map[string]string{"mptcpproxy": `
config mptcpproxy 'main'
	option listenport '1'
	option zebra '1'
config pear 'x'
config mptcpproxy 'second'
`}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range c.Warnings {
		got = append(got, w.Error())
	}
	want := []string{
		"mptcpproxy.main: option listenport: there is no such option in a section of type mptcpproxy; did you mean listen_port?",
		"mptcpproxy.main: option zebra: there is no such option in a section of type mptcpproxy",
		"mptcpproxy.x: a section of type pear has no effect; did you mean peer?",
		"mptcpproxy.second: a second section of type mptcpproxy has no effect",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// FuzzParse feeds whole files: nothing may panic, an error must be of type
// Faults, and what is accepted keeps the bounds that others rely on.
func FuzzParse(f *testing.F) {
	f.Add("config mptcpproxy 'main'\n\toption enabled '1'\n\tlist lan 'lan'\nconfig peer 'p'\n\tlist address '::1'\n\toption key '"+secret+"'\n", networkText)
	f.Add("config exclude\n\tlist dest_port '0-65536'\n\toption mark '0x/'\nconfig path\n\toption quota '99999999999'\n", "config interface 'a'\n\toption device '@a'\n")
	f.Fuzz(func(t *testing.T, text, networkText string) {
		read := func(name, text string) *uci.Package {
			p, _ := uci.Parse(name, strings.NewReader(text), false)
			if p == nil {
				t.Skip("beyond the bounds of UCI")
			}
			return p
		}
		c, err := Parse(read(Package, text), read("network", networkText), func(string) ([]byte, error) { return nil, os.ErrNotExist })
		var faults Faults
		if err != nil {
			if !errors.As(err, &faults) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		for _, p := range c.Paths {
			if !validDevice(p.Device) || p.Mode == Off || p.Weight < 1 {
				t.Fatalf("path %+v", p)
			}
		}
		for _, p := range c.Peers {
			if len(p.Destinations) == 0 || p.Port == 0 || p.Carrier != None && len(p.Addresses) == 0 {
				t.Fatalf("peer %+v", p)
			}
		}
		for _, a := range c.Accepts {
			if len(a.From) == 0 || a.Carrier == Convert && a.Key.None() {
				t.Fatalf("accept %+v", a)
			}
		}
	})
}
