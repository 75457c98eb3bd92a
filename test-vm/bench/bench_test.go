package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"weft/test-vm/bench/bed"
)

// measured makes a trial with values: row, part, runs.
func measured(system string, values map[string]map[string][]float64, order map[string][]string) *trial {
	return &trial{system: system, values: values, order: order}
}

func TestFold(t *testing.T) {
	c := benchCase{name: "case", rows: []row{
		{"goodput", "goodput / limit", "", ">=", 0.99, false},
		{"stall", "stall", "ms", "<=", 200, false},
		{"rate", "rate / HAProxy", "Gbit/s", ">=", 2.5, true},
	}}
	order := map[string][]string{"goodput": {"up", "down"}, "stall": {"p1", "p2"}, "rate": {"up", "down"}}
	ours := measured(Weft, map[string]map[string][]float64{
		"goodput": {"up": {0.90, 0.995, 0.996}, "down": {0.991}}, "stall": {"p1": {150}, "p2": {300}}, "rate": {"up": {10}, "down": {8}},
	}, order)
	peer := measured(HAProxy, map[string]map[string][]float64{"rate": {"up": {4}, "down": {2}}}, order)
	peer.err = errors.New("died\nat last")
	r := fold(c, []*trial{ours, peer})
	for i, want := range []struct {
		value float64
		ok    bool
	}{{0.991, true}, {300, false}, {2.5, true}} {
		if got := r.Rows[i]; got.Value == nil || *got.Value != want.value || *got.OK != want.ok {
			t.Errorf("%s: %+v; want %v, %v", got.Key, got, want.value, want.ok)
		}
	}
	if r.Errors[HAProxy] != "died; at last" {
		t.Errorf("errors: %q", r.Errors)
	}
	var out bytes.Buffer
	if err := Table(&out, []Result{r}, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.995 / 0.991", "NOT", "2.50 × (10 / 8 Gbit/s)", "4 / 2 Gbit/s", "case: haproxy: died; at last"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
	// Without Weft there is no verdict.
	for _, x := range fold(c, []*trial{peer}).Rows {
		if x.Value != nil || x.OK != nil {
			t.Errorf("without weft: %+v", x)
		}
	}
}

// Every row of the requirement has a case, and names are given once.
func TestCases(t *testing.T) {
	seen, rows := map[string]bool{}, 0
	for _, c := range cases() {
		if seen[c.name] || c.about == "" || c.run == nil || len(c.rows) == 0 {
			t.Errorf("case %q: named twice, without a run, a row or a description", c.name)
		}
		seen[c.name] = true
		rows += len(c.rows)
		for _, w := range c.rows {
			if w.op != "<=" && w.op != ">=" {
				t.Errorf("%s: operator %q", w.title, w.op)
			}
		}
	}
	if rows < 18 {
		t.Errorf("%d rows; the requirement has more", rows)
	}
	if _, err := choose([]string{"2x10", "nothing"}); err == nil || !strings.Contains(err.Error(), "unshaped") {
		t.Errorf("an unknown case: %v; want the names of those there are", err)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0.98765: "0.988", 1.0049: "1.005", 12.345: "12.3", 482.7: "483", 3: "3", 0.01: "0.010"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestSoakPlan(t *testing.T) {
	flows, faults := soakPlan(7, 2*time.Minute, true, true)
	again, faultsAgain := soakPlan(7, 2*time.Minute, true, true)
	if !reflect.DeepEqual(flows, again) || !reflect.DeepEqual(faults, faultsAgain) {
		t.Error("the same seed gives another plan")
	}
	if other, _ := soakPlan(8, 2*time.Minute, true, true); reflect.DeepEqual(flows, other) {
		t.Error("another seed gives the same plan")
	}
	kinds := map[flowKind]bool{}
	for i, f := range flows {
		kinds[f.kind] = true
		if f.id != uint64(i+1) || f.up < 1 || f.down < 1 || f.kind == datagrams && (f.down < 16 || f.down > 1200) {
			t.Fatalf("impossible flow: %v", f)
		}
	}
	happened := map[faultKind]bool{}
	end := time.Duration(0)
	for _, f := range faults {
		happened[f.kind] = true
		if f.at < end || f.during > longestFault {
			t.Fatalf("%v begins before the one before it has ended, or lasts too long", f)
		}
		end = f.at + f.during
	}
	if len(kinds) != 5 || len(happened) != int(faultKinds) {
		t.Errorf("kinds of flows %v, of faults %v: some are missing", kinds, happened)
	}
	if _, faults := soakPlan(7, 2*time.Minute, true, false); len(faults) == 0 {
		t.Error("no faults without kills")
	} else {
		for _, f := range faults {
			if f.kind >= newAddress {
				t.Errorf("kills are off: %v", f)
			}
		}
	}
}

func TestSetElements(t *testing.T) {
	const rules = `table inet x {
	set known { type ipv4_addr . inet_service; flags timeout
		elements = { 192.168.2.2 . 5000 timeout 1m expires 50s,
			     192.168.2.2 . 5001 timeout 1m expires 50s } }
	set empty { type ipv4_addr; }
	set one { type mark; elements = { 1 } }
}`
	if got := setElements(rules); got != 3 {
		t.Errorf("%d elements, want 3", got)
	}
}

func TestIntact(t *testing.T) {
	flows := map[uint64]flowPlan{5: {id: 5, kind: datagrams, up: 3, down: 100}}
	p := packet(5, 2, 100)
	if !intact(p, flows) {
		t.Error("a packet of the plan is not recognised")
	}
	for name, bad := range map[string][]byte{"short": p[:99], "empty": nil, "number": packet(5, 3, 100), "flow": packet(6, 0, 100)} {
		if intact(bad, flows) {
			t.Errorf("%s: taken for intact", name)
		}
	}
	p[50] ^= 1
	if intact(p, flows) {
		t.Error("a changed bit is not seen")
	}
}

// The soak's own sum must be right: over a network without gateways and faults nothing may be found.
func TestSoakRouted(t *testing.T) {
	if err := bed.Usable(); err != nil {
		t.Skip(err)
	}
	r, err := Soak(context.Background(), SoakOptions{System: Routed, During: 3 * time.Second, Options: Options{Seed: 3}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) > 0 || r.Bytes == 0 || r.Echoed == 0 {
		t.Error(r.Text())
	}
}

// A sample of `make soak`: real gateways, every kind of flow and fault.
func TestSoak(t *testing.T) {
	if err := bed.Usable(); err != nil {
		t.Skip(err)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("the soak counts elements of sets with nft, which is missing: install nftables")
	}
	program := build(t)
	var progress bytes.Buffer
	r, err := Soak(context.Background(), SoakOptions{System: Weft, During: 18 * time.Second, Kills: true,
		Options: Options{Weft: program, Seed: 1, Progress: &progress, Dir: t.TempDir()}})
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	t.Log(r.Text())
	if len(r.Failures) > 0 {
		t.Errorf("%d failures\n%s", len(r.Failures), progress.String())
	}
}

// build makes the gateways' program as `make host` does.
func build(t *testing.T) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	out := filepath.Join(t.TempDir(), "mptcpproxy")
	c := exec.Command("go", "build", "-o", out, "./init")
	c.Dir, c.Env = filepath.Join(filepath.Dir(here), "..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the gateways: %v\n%s", err, text)
	}
	return out
}
