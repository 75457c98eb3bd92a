package topology

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `title = "t"
[[node]]
name = "h1"
kind = "host"
gateway = ["192.168.1.1"]
[[node]]
name = "gw"
kind = "image"
role = "exit"
route = ["10.9.0.0/16 via 192.168.1.2"]
[node.uci]
"network.wan.multipath" = "on"
"mptcpproxy.main" = "mptcpproxy"
"mptcpproxy.main.lan" = ["lan", "guest"]
[node.sysctl]
"net.ipv4.tcp_sack" = 0
[[link]]
name = "lan1"
a = "h1:lan"
a_addr = ["192.168.1.2/24", "fd01::2/64"]
b = "gw:lan"
b_addr = ["192.168.1.1/24", "fd01::1/64"]
rate = "10mbit"
back_rate = "2mbit"
delay = "20ms"
jitter = "5ms"
loss = "0.5%"
[[check]]
name = "up"
type = "iperf3"
from = "h1"
to = "gw"
over = ["lan1"]
min_ratio = 0.9
[[event]]
at = "2s"
do = "degrade"
link = "lan1"
loss = "5%"
`

func TestParse(t *testing.T) {
	top, err := Parse("dir/some-net.toml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	gw, l, c := top.Node("gw"), top.Link("lan1"), top.Check("up")
	if top.Name != "some-net" || gw.Memory != 160 || gw.CPUs != 1 || gw.Backend != QEMU || gw.Services[0] != "mptcpproxy" || top.Node("h1").Backend != Netns {
		t.Errorf("defaults of nodes: %+v", gw)
	}
	if l.Rate != 10e6 || l.RateFrom(1) != 2e6 || l.Delay != 20*time.Millisecond || l.Loss != 0.5 || l.Queue != 50*time.Millisecond || l.Burst != 16<<10 || l.MTU != 1500 {
		t.Errorf("link: %+v", l)
	}
	if p := gw.Ports[0]; p.Name != "lan" || p.Device != "eth0" || p.Other().Node.Name != "h1" {
		t.Errorf("port: %+v", p)
	}
	if c.Family != 4 || c.Duration != 10*time.Second || top.Events[0].During != "up" || top.Events[0].What() != "lan1 degrade loss 5%" {
		t.Errorf("check %+v, event %+v", c, top.Events[0])
	}
	if !top.Impaired(l) {
		t.Error("a link with delay needs more than a token bucket")
	}
}

// TestFaults: everything that is wrong is reported at once, in the order of the lines, each with its own.
func TestFaults(t *testing.T) {
	text := `titel = "t"
[[node]]
name = "h1"
kind = "hots"
memory = 3
[[node]]
name = "h1"
kind = "host"
gateway = ["192.168.7.1"]
[[node]]
name = "g"
kind = "image"
[node.uci]
"network" = "x"
"network.wan.multipath" = 5
[[link]]
name = "l"
a = "h1:lan"
b = "h2:lan"
rate = "10 mbit"
mtu = 40
color = "red"
[[link]]
name = "m"
a = "h1:lan"
a_addr = ["10.0.0.1"]
b = "g:x"
[[check]]
name = "c"
type = "ping"
from = "h1"
to = "nobody"
max_stall = "1s"
[[event]]
at = "soon"
do = "down"
link = "nolink"
during = "c"
`
	_, err := Parse("f.toml", []byte(text))
	if err == nil {
		t.Fatal("no error")
	}
	got := err.Error()
	last := 0
	for _, want := range []string{
		"f.toml:1: unknown key \"titel\"; did you mean \"title\"?",
		"f.toml:4: kind \"hots\": want image, host or plain",
		"f.toml:5: memory 3: want 96 to 16384 MiB",
		"f.toml:7: node \"h1\": the name is taken by the node in line 2",
		"f.toml:9: gateway 192.168.7.1 is in no network of h1",
		"f.toml:14: uci \"network\": want package.section",
		"f.toml:15: uci network.wan.multipath = 5: want a string or a list",
		"f.toml:19: link l: no node \"h2\"; did you mean \"h1\"?",
		"f.toml:20: link[0].rate: \"10 mbit\": want a number above 0 with bit",
		"f.toml:21: mtu 40: want 576 to 9000",
		"f.toml:22: unknown key \"color\"",
		"f.toml:25: link m: port lan of h1 has link l already",
		"f.toml:26: link[1].a_addr[0]: \"10.0.0.1\": want an address with its length",
		"f.toml:31: check c: no node \"nobody\"",
		"f.toml:33: check c: max_stall means nothing to a check of type ping",
		"f.toml:35: event[0].at: want a time",
		"f.toml:37: no link \"nolink\"",
	} {
		i := strings.Index(got, want)
		if i < 0 {
			t.Errorf("not reported: %s", want)
			continue
		}
		if i < last {
			t.Errorf("out of the order of lines: %s", want)
		}
		last = i
	}
	if t.Failed() {
		t.Logf("reported:\n%s", got)
	}
	if _, err := Parse("f.toml", []byte("title = \"t\"\nnode = [\n")); err == nil || !strings.HasPrefix(err.Error(), "f.toml:") {
		t.Errorf("a text that is no TOML: %v", err)
	}
}

// TestShipped: the topologies that ship are right, and say which links their figures are compared with.
func TestShipped(t *testing.T) {
	files, err := filepath.Glob("../topologies/*.toml")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d topologies: %v", len(files), err)
	}
	for _, f := range files {
		top, err := Load(f)
		if err != nil {
			t.Error(err)
			continue
		}
		if svg := SVG(top); !strings.HasPrefix(svg, "<svg") || strings.Count(svg, "<path") != len(top.Links) {
			t.Errorf("%s: %d lines are drawn for %d links", f, strings.Count(svg, "<path"), len(top.Links))
		}
	}
}

// TestLimit: the figures of the table that the formula comes from.
func TestLimit(t *testing.T) {
	for _, tt := range []struct {
		family  int
		carrier string
		both    bool
		want    float64
	}{{4, "tcp", false, 9.564}, {4, "mptcp", false, 9.406}, {6, "mptcp", false, 18.547 / 2}, {4, "mptcp", true, 18.758 / 2}} {
		if got := Goodput(10e6, 1500, tt.family, tt.carrier, tt.both) / 1e6; math.Abs(got-tt.want) > 0.001 {
			t.Errorf("%+v: %.4f Mbit/s", tt, got)
		}
	}
	top, err := Parse("x.toml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	c := top.Check("up")
	up := top.LimitOf(c)
	c.Reverse = true
	if down := top.LimitOf(c); math.Abs(up/down-5) > 1e-9 {
		t.Errorf("limit %.0f up, %.0f down, with rates of 10 and 2 Mbit/s", up, down)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	files, _ := filepath.Glob("../topologies/*.toml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("[[node]]\n[[link]]\na=\"x:y\"\nb=\"x:y\"\n[[check]]\ntype=\"iperf3\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		top, err := Parse("f.toml", text)
		if err != nil {
			return
		}
		SVG(top)
		for _, c := range top.Checks {
			top.LimitOf(c)
		}
	})
}
