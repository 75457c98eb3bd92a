package healthgate

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/slot"
)

// moment is an observation of a made-up story and what must come of it.
type moment struct {
	at   int // seconds
	obs  observation
	want verdict
}

func TestGate(t *testing.T) {
	up := func(restarts int) observation {
		return observation{services: []service{{name: "network", state: "running", healthy: true, restarts: restarts}, {name: "ubusd", state: "done", healthy: true}}}
	}
	with := func(o observation, ps ...problem) observation { o.others = ps; return o }
	state := func(s, why string) observation {
		return observation{services: []service{{name: "network", state: s, healthy: true, why: why}, {name: "ubusd", state: "running", healthy: true}}}
	}
	noDHCP := problem{checkUplink, "no DHCP"}
	for _, tt := range []struct {
		name   string
		story  []moment
		reason string
	}{
		{"well from the start", []moment{{0, up(0), undecided}, {59, up(0), undecided}, {60, up(0), confirm}}, ""},
		{"services take their time", []moment{{0, state("starting", ""), undecided}, {30, up(0), undecided}, {89, up(0), undecided}, {90, up(0), confirm}}, ""},
		{"a service that is restarted breaks the hold", []moment{{0, up(0), undecided}, {50, up(1), undecided}, {52, up(1), undecided}, {111, up(1), undecided}, {112, up(1), confirm}}, ""},
		{"crash loop", []moment{{0, state("backoff", "exit code 1"), undecided}, {299, up(0), undecided}, {300, state("backoff", "exit code 1"), giveUp}}, "services: network is crashing (exit code 1)"},
		{"a service that is restarted all the time", []moment{{0, up(1), undecided}, {150, up(2), undecided}, {300, up(3), giveUp}}, "services: network was started anew"},
		{"unhealthy", []moment{{400, observation{services: []service{{name: "network", state: "running", why: "stuck"}}}, giveUp}}, "services: network is unhealthy (stuck)"},
		{"failed for good", []moment{{300, state("failed", ""), giveUp}}, "services: network is failed"},
		{"never up", []moment{{300, state("waiting", ""), giveUp}}, "services: network is not up yet"},
		{"stopped", []moment{{300, state("inactive", ""), giveUp}}, "services: network is not running: inactive"},
		{"no bus", []moment{{0, observation{servicesErr: errors.New("no bus")}, undecided}, {300, observation{servicesErr: errors.New("no bus")}, giveUp}}, "services: nothing is known of the services: no bus"},
		{"no service at all", []moment{{300, observation{}, giveUp}}, "services: no critical service is there"},
		{"a service disappears", []moment{{0, up(0), undecided}, {300, observation{services: up(0).services[:1]}, giveUp}}, "services: ubusd is gone"},
		{"uplink", []moment{{0, with(up(0), noDHCP), undecided}, {300, with(up(0), noDHCP, problem{checkHost, "x"}), giveUp}}, "uplink: no DHCP; host: x"},
		{"services come before the uplink", []moment{{300, with(state("backoff", ""), noDHCP), giveUp}}, "services: network is crashing; uplink: no DHCP"},
		{"many problems", []moment{{300, with(observation{services: []service{{name: "a", state: "backoff", healthy: true}, {name: "b", state: "failed", healthy: true}}}, noDHCP, noDHCP), giveUp}},
			"services: a is crashing; b is failed; uplink: no DHCP; and 1 more"},
		{"a hold that began in time may end late", []moment{{290, up(0), undecided}, {349, up(0), undecided}, {350, up(0), confirm}}, ""},
		{"a hold that breaks late is the end", []moment{{290, up(0), undecided}, {349, with(up(0), noDHCP), giveUp}}, "uplink: no DHCP"},
		{"flapping", []moment{{0, up(0), undecided}, {50, with(up(0), noDHCP), undecided}, {60, up(0), undecided}, {110, with(up(0), noDHCP), undecided}, {301, with(up(0), noDHCP), giveUp}}, "uplink: no DHCP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1e9, 0)
			g := newGate(start, time.Minute, 5*time.Minute)
			for _, m := range tt.story {
				if got := g.observe(start.Add(time.Duration(m.at)*time.Second), m.obs); got != m.want {
					t.Fatalf("after %d s: verdict %d, want %d (%v)", m.at, got, m.want, g.problems)
				}
			}
			if tt.reason != "" && g.reason().String() != tt.reason {
				t.Errorf("reason %q, want %q", g.reason(), tt.reason)
			}
		})
	}
}

func TestLeft(t *testing.T) {
	start := time.Unix(1e9, 0)
	g := newGate(start, time.Minute, 5*time.Minute)
	bad := observation{servicesErr: errors.New("x")}
	g.observe(start, bad)
	if got := g.left(start.Add(10 * time.Second)); got != 290*time.Second {
		t.Errorf("left until the deadline: %v", got)
	}
	g.observe(start.Add(100*time.Second), observation{services: []service{{name: "a", state: "running", healthy: true}}})
	if got := g.left(start.Add(110 * time.Second)); got != 50*time.Second {
		t.Errorf("left of the hold: %v", got)
	}
	if got := g.left(start.Add(time.Hour)); got != 0 {
		t.Errorf("left after the end: %v", got)
	}
}

func TestCritical(t *testing.T) {
	var list map[string]serviceEntry
	err := json.Unmarshal([]byte(`{
		"ubusd": {"enabled": true, "instances": {"instance1": {"state": "running", "critical": true, "restarts": 2, "last_exit": "exit code 1", "health": "ok"}}},
		"network": {"enabled": false, "instances": {"instance1": {"state": "running", "critical": true, "health": "failed", "status": "unhealthy: no answer"}}},
		"off": {"enabled": false, "instances": {"instance1": {"state": "inactive", "critical": true}}},
		"gone": {"enabled": true, "instances": {"instance1": {"state": "inactive", "critical": true, "reason": "stopped"}}},
		"rpcd": {"enabled": true, "instances": {"instance1": {"state": "failed"}}},
		"other": {}}`), &list)
	if err != nil {
		t.Fatal(err)
	}
	want := []service{
		{"gone", "inactive", true, 0, "stopped"}, {"network", "running", false, 0, "unhealthy: no answer"}, {"ubusd", "running", true, 2, "exit code 1"},
	}
	got := critical(list)
	if len(got) != len(want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
}

func TestCompare(t *testing.T) {
	const all = `{"interface": [
		{"interface": "lan", "up": true, "proto": "static", "route": []},
		{"interface": "wan", "up": true, "proto": "dhcp", "route": [{"target": "0.0.0.0", "mask": 0}, {"target": "10.0.0.0", "mask": 8}]},
		{"interface": "wan6", "up": true, "proto": "dhcpv6", "route": [{"target": "::", "mask": 0}]},
		{"interface": "vpn", "up": false, "proto": "wireguard", "errors": [{"code": "NO_DEVICE"}]},
		{"interface": "dsl", "up": false, "proto": "static", "route": [{"target": "::", "mask": 0}]},
		{"interface": "lte", "up": false, "proto": "dhcp"}]}`
	for _, tt := range []struct {
		before slot.Before
		want   string // parts of the problems, in order; empty: none
	}{
		{slot.Before{}, ""},
		{slot.Before{Interfaces: []string{"wan", "wan6"}, DefaultRoute4: true, DefaultRoute6: true}, ""},
		{slot.Before{Interfaces: []string{"lte"}}, "interface lte was up before the upgrade and is not now: no DHCP server has answered"},
		{slot.Before{Interfaces: []string{"vpn"}}, "is not now: no_device"},
		{slot.Before{Interfaces: []string{"dsl"}}, "is not now: it is there but down"},
		{slot.Before{Interfaces: []string{"umts"}}, "does not exist now"},
	} {
		var dump interfaceDump
		if err := json.Unmarshal([]byte(all), &dump); err != nil {
			t.Fatal(err)
		}
		ps := compare(tt.before, dump)
		if tt.want == "" && len(ps) > 0 || tt.want != "" && (len(ps) != 1 || !strings.Contains(ps[0].detail, tt.want)) {
			t.Errorf("%+v: %v, want %q", tt.before, ps, tt.want)
		}
	}
	// Routes of interfaces that are down do not count.
	var dump interfaceDump
	if err := json.Unmarshal([]byte(strings.ReplaceAll(all, `"up": true`, `"up": false`)), &dump); err != nil {
		t.Fatal(err)
	}
	if ps := compare(slot.Before{DefaultRoute4: true, DefaultRoute6: true}, dump); len(ps) != 2 || ps[0].check != checkUplink {
		t.Errorf("without routes: %v", ps)
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		text, want, fault string
	}{
		{"", "true 1m0s 5m0s []", ""},
		{"config system\n\toption hostname 'x'\n", "true 1m0s 5m0s []", ""},
		{"config healthgate 'healthgate'\n\toption enabled '0'\n\toption hold '5'\n\toption deadline '40'\n\tlist host 'fd00::1'\n\tlist host 'a.example:80'\n\toption management 'https://m.example/api'\n",
			"false 5s 40s [host fd00::1  host a.example 80 management m.example 443]", ""},
		{"config healthgate 'healthgate'\n\toption hold 'long'\n\toption deadline '-1'\n\tlist host 'a:b:c'\n\tlist host '10.0.0.1'\n\toption management 'm.example'\n",
			"true 1m0s 5m0s [host 10.0.0.1 ]", "hold deadline host management"},
		{"config oops", "true 1m0s 5m0s []", "settings"},
		{"config healthgate 'healthgate\n", "true 1m0s 5m0s []", "read the health gate's settings"},
	} {
		dir := t.TempDir()
		if tt.text != "" {
			if err := os.WriteFile(filepath.Join(dir, "system"), []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s, err := loadSettings(dir)
		got := strings.TrimSpace(strings.Join([]string{boolText(s.enabled), s.hold.String(), s.deadline.String()}, " ")) + " ["
		for i, g := range s.targets {
			if i > 0 {
				got += " "
			}
			got += g.check + " " + g.host + " " + g.port
		}
		got += "]"
		if got != tt.want {
			t.Errorf("%q: %s, want %s", tt.text, got, tt.want)
		}
		if err == nil && tt.fault != "" && tt.text != "config oops" || err != nil && tt.fault == "" {
			t.Errorf("%q: error %v, want one about %q", tt.text, err, tt.fault)
		}
		for _, word := range strings.Fields(tt.fault) {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%q: %q is missing from %v", tt.text, word, err)
			}
		}
	}
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

func TestTargets(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "10.0.0.1|", "fd00::1": "fd00::1|", "[fd00::1]:443": "fd00::1|443", "name:80": "name|80", "gw.example": "gw.example|",
		"http://x": "x|80", "https://[fd00::1]:8443/path": "fd00::1|8443",
	} {
		got, err := parseTarget(text)
		if err != nil || got.host+"|"+got.port != want {
			t.Errorf("%s: %s|%s, %v; want %s", text, got.host, got.port, err, want)
		}
	}
	for _, text := range []string{"", "a b", "x:", "x:0", "x:70000", "ftp://x", "http://", "http://x:port", "x/y", ":80", "a:b:c"} {
		if got, err := parseTarget(text); err == nil {
			t.Errorf("%q: accepted as %+v", text, got)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "[::1]:80", "https://x/y", "a b", "%zz://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTarget(text)
		if err == nil && got.host == "" {
			t.Fatalf("%q has no host", text)
		}
	})
}

func TestHostState(t *testing.T) {
	start := time.Unix(1e9, 0)
	h := &hostState{target: target{check: checkHost, text: "gw"}, why: notAskedOf}
	if p, bad := h.problem(start); !bad || p.detail != "gw: has not answered yet" {
		t.Errorf("before the first answer: %v %v", p, bad)
	}
	h.note(start, nil)
	h.note(start.Add(5*time.Second), errors.New("lost"))
	if p, bad := h.problem(start.Add(6 * time.Second)); bad {
		t.Errorf("one lost packet: %v", p)
	}
	if p, bad := h.problem(start.Add(20 * time.Second)); !bad || p.String() != "host: gw: lost" {
		t.Errorf("20 s without an answer: %v %v", p, bad)
	}
}
