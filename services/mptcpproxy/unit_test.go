package mptcpproxy

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"weft/services/mptcpproxy/internal/settings"
	"weft/services/mptcpproxy/internal/status"
)

func TestRoutes(t *testing.T) {
	peer := func(name string, dests ...string) settings.Peer {
		p := settings.Peer{Name: name}
		for _, d := range dests {
			p.Destinations = append(p.Destinations, netip.MustParsePrefix(d))
		}
		return p
	}
	var r routes
	if p := r.find(netip.MustParseAddr("1.2.3.4")); p != nil {
		t.Errorf("an empty table leads to %s", p.Name)
	}
	r.set([]settings.Peer{
		peer("all", "0.0.0.0/0", "::/0"),
		peer("net", "10.0.0.0/8", "fd00::/16"),
		peer("host", "10.1.2.3/32", "10.2.0.0/16"),
	})
	for addr, want := range map[string]string{
		"1.2.3.4": "all", "10.9.9.9": "net", "10.1.2.3": "host", "10.1.2.4": "net", "10.2.9.9": "host",
		"::ffff:10.1.2.3": "host", "2001:db8::1": "all", "fd00::1": "net", "fd01::1": "all",
	} {
		if p := r.find(netip.MustParseAddr(addr)); p == nil || p.Name != want {
			t.Errorf("%s: %+v, want %s", addr, p, want)
		}
	}
	r.set([]settings.Peer{peer("net", "10.0.0.0/8")})
	if p := r.find(netip.MustParseAddr("1.2.3.4")); p != nil {
		t.Errorf("no peer leads there any more, got %s", p.Name)
	}
}

func TestLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimits()
	l.now = func() time.Time { return now }
	key := func(client string, port uint16) flowKey {
		return flowKey{netip.AddrPortFrom(netip.MustParseAddr(client), port), netip.MustParseAddrPort("192.0.2.1:80")}
	}
	for i := range uint16(100) { // none set
		if !l.admit(key("10.0.0.1", i)) {
			t.Fatal("refused without a limit")
		}
	}
	l.set(3, 0)
	for i, want := range []bool{true, true, true, false} {
		if got := l.admit(key("10.0.0.1", uint16(i))); got != want {
			t.Errorf("flow %d: %t, want %t", i, got, want)
		}
	}
	if !l.admit(key("10.0.0.2", 1)) {
		t.Error("one client's flows count for another")
	}
	l.done(key("10.0.0.1", 0))
	l.done(key("10.0.0.1", 0)) // twice does no harm
	if !l.admit(key("10.0.0.1", 9)) || l.admit(key("10.0.0.1", 10)) {
		t.Error("an ended flow makes room for one")
	}
	if got := l.refusals(); got != 2 {
		t.Errorf("%d refusals counted, want 2", got)
	}
	l.set(0, 0)
	l.set(0, 5) // per second; a burst of ten
	n := 0
	for i := range uint16(50) {
		if l.admit(key("10.0.0.3", i)) {
			n++
		}
	}
	now = now.Add(time.Second)
	for i := range uint16(50) {
		if l.admit(key("10.0.0.3", 100+i)) {
			n++
		}
	}
	if n != 15 {
		t.Errorf("%d flows in a burst and a second, want 15", n)
	}
	for i := range 2 * sweepAt { // clients that are gone are forgotten
		now = now.Add(time.Millisecond)
		l.admit(key(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), 1))
		l.done(key(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), 1))
	}
	if len(l.clients) > sweepAt {
		t.Errorf("%d clients are remembered, want at most %d", len(l.clients), sweepAt)
	}
}

// TestMetrics scrapes a report in which every list has an entry, and wants each
// documented metric once.
func TestMetrics(t *testing.T) {
	server := httptest.NewServer(metricsHandler(func() status.Report {
		return status.Report{
			State: "running",
			Peers: []status.Peer{{Name: "exit", Near: true, Up: true, RTT: 12}, {Name: "exit"}},
			Paths: []status.Path{{Name: "w\\a\"n\n", Device: "eth1", State: "up", Sent: 7}},
			Flows: status.Flows{Open: 3},
		}
	}))
	defer server.Close()
	res, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation) // of Prometheus itself
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := families["mptcpproxy_path_up"].GetMetric()[0].GetLabel()[0].GetValue(); got != "w\\a\"n\n" {
		t.Errorf("label %q", got)
	}
	if n := len(families["mptcpproxy_peer_up"].GetMetric()); n != 2 {
		t.Errorf("%d peers, want 2", n)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	if len(got) != len(metricTable) {
		t.Errorf("%d metrics, want %d", len(got), len(metricTable))
	}
	for name, want := range map[string]float64{"mptcpproxy_up": 1, "mptcpproxy_flows": 3, "mptcpproxy_path_up": 1, "mptcpproxy_path_sent_bytes_total": 7} {
		if got[name] != want {
			t.Errorf("%s is %g, want %g", name, got[name], want)
		}
	}
}

func TestSummary(t *testing.T) {
	for want, got := range map[string]string{
		"1 of 2 peers up, 2 of 3 paths up": summaryText(1, 2, 2, 3, false),
		"accepting, 0 of 0 paths up":       summaryText(0, 0, 0, 0, true),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	if hasOption([]byte{1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0}, 30) || !hasOption([]byte{1, 30, 4, 0, 0}, 30) || hasOption([]byte{8, 200}, 30) {
		t.Error("options are not told apart")
	}
	if !strings.Contains(nearConfig, "'exit'") {
		t.Error("the configuration of the pair has no peer")
	}
}
