package bed

import (
	"strings"
	"testing"

	"weft/test-vm/topology"
)

const netText = `title = "t"
[[node]]
name = "gw"
kind = "image"
gateway = ["192.168.1.254"]
route = ["10.9.0.0/16 via 10.1.0.2", "fd09::/64 via fd10:1::2"]
[node.uci]
"network.wan1.multipath" = "on"
"mptcpproxy.main" = "mptcpproxy"
"mptcpproxy.main.lan" = ["lan", "guest"]
"mptcpproxy.far.key" = "it's"
"mptcpproxy.far" = "peer"
[node.sysctl]
"net.ipv4.ip_forward" = 0
[[node]]
name = "far"
kind = "host"
[[node]]
name = "h"
kind = "host"
[[link]]
name = "l"
a = "gw:lan"
a_addr = ["192.168.1.1/24"]
b = "h:lan"
b_addr = ["192.168.1.2/24"]
[[link]]
name = "p"
a = "gw:wan1"
a_addr = ["10.1.0.1/24", "fd10:1::1/64"]
b = "far:wan1"
b_addr = ["10.1.0.2/24", "fd10:1::2/64"]
rate = "10mbit"
back_rate = "1mbit"
delay = "40ms"
jitter = "2ms"
loss = "1%"
mtu = 1400
`

func parse(t *testing.T) *topology.Topology {
	t.Helper()
	top, err := topology.Parse("t.toml", []byte(netText))
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func TestUCIFiles(t *testing.T) {
	files, err := uciFiles(parse(t).Node("gw"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"firewall": "config defaults\n\toption input 'ACCEPT'\n\toption output 'ACCEPT'\n\toption forward 'ACCEPT'\n",
		"network": `
config interface 'loopback'
	option device 'lo'
	option proto 'static'
	option ipaddr '127.0.0.1/8'

config interface 'lan'
	option device 'eth0'
	option proto 'static'
	option gateway '192.168.1.254'
	list ipaddr '192.168.1.1/24'

config interface 'wan1'
	option device 'eth1'
	option proto 'static'
	option mtu '1400'
	list ipaddr '10.1.0.1/24'
	list ip6addr 'fd10:1::1/64'
	option multipath 'on'

config route 'route0'
	option interface 'wan1'
	option target '10.9.0.0/16'
	option gateway '10.1.0.2'

config route6 'route1'
	option interface 'wan1'
	option target 'fd09::/64'
	option gateway 'fd10:1::2'
`,
		"mptcpproxy": `
config peer 'far'
	option key 'it'\''s'

config mptcpproxy 'main'
	list lan 'lan'
	list lan 'guest'
`,
	} {
		if got := string(files[name]); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

func TestUCIWithoutType(t *testing.T) {
	n := &topology.Node{Name: "x", UCI: map[string]any{"a.b.c": "d"}}
	if _, err := uciFiles(n); err == nil || !strings.Contains(err.Error(), "give its type first") {
		t.Errorf("an option of a section that is not there: %v", err)
	}
}

func TestShape(t *testing.T) {
	top := parse(t)
	gw, far := top.Node("gw"), top.Node("far")
	p := top.Link("p")
	for _, tt := range []struct {
		port  *topology.Port
		guest bool
		want  string
	}{
		// 42+50 ms at 10 Mbit/s are 81 frames of 1414 bytes.
		{gw.Ports[1], true, "tc qdisc replace dev eth1 root netem delay 40000us 2000us loss 1% rate 10mbit limit 81"},
		{far.Ports[0], true, "tc qdisc replace dev eth0 root netem delay 40000us 2000us loss 1% rate 1mbit limit 8"},
		{gw.Ports[1], false, "tc qdisc replace dev eth1 root tbf rate 10mbit burst 16384b latency 50000us"},
		{gw.Ports[0], false, ""},
	} {
		if got := strings.Join(shape(tt.port, tt.port.Link, tt.guest), "; "); got != tt.want {
			t.Errorf("%s %s, guest %v: %s", tt.port.Node.Name, tt.port.Name, tt.guest, got)
		}
	}
	d := degraded(p, &topology.Event{Rate: 2e6, Loss: 5})
	if d.Rate != 2e6 || d.RateFrom(1) != 2e6 || d.Loss != 5 || d.Delay != p.Delay || p.Rate != 10e6 {
		t.Errorf("degraded: %+v, the link itself: %+v", d, p)
	}
}

func TestSysctls(t *testing.T) {
	top := parse(t)
	if got := sysctls(top.Node("h")); len(got) != 1 || got[0] != [2]string{"net.mptcp.enabled", "0"} {
		t.Errorf("end host: %v", got)
	}
	if got := sysctls(top.Node("gw")); len(got) != 2 || got[0] != [2]string{"net.ipv4.ip_forward", "0"} {
		t.Errorf("gateway with a setting of its own: %v", got)
	}
}
