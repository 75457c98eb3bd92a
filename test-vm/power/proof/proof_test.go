package proof

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"weft/test-vm/power"
)

const confirmedA = `{"running":"a","preferred":"a","confirmed":{"a":true,"b":false}}`

func answer(host, description, notes, kept, lan, overlay, status string) string {
	return "hostname=" + host + "\ndescription=" + description + "\nnotes=" + notes + "\nkept=" + kept + "\nlan=" + lan +
		"\nfailsafe=\noverlay=" + overlay + "\nstatus=" + status + "\n"
}

func TestUnderstand(t *testing.T) {
	for _, tt := range []struct {
		name, text, settings, slot, fault string
	}{
		{"whole", answer("s1", "s1", "s1", "kept", "kept", "1", confirmedA), "s1", "a", ""},
		{"factory", answer("Weft", "", "", "", "", "1", confirmedA), factory, "a", ""},
		{"half a commit", answer("s1", "s1", "s0", "kept", "kept", "1", confirmedA), "mixed", "a", ""},
		{"half a reset", answer("Weft", "", "", "kept", "", "1", confirmedA), "mixed", "a", ""},
		{"settings without the kept file", answer("s1", "s1", "s1", "", "kept", "1", confirmedA), "mixed", "a", ""},
		{"nothing", answer("", "", "", "", "", "1", confirmedA), "mixed", "a", ""},
		{"overlay in memory", answer("Weft", "", "", "", "", "0", confirmedA), factory, "a", "overlay"},
		{"on trial", answer("s1", "s1", "s1", "kept", "kept", "1", `{"running":"b","preferred":"a","trial":"b","tries_left":2,"confirmed":{"a":true}}`), "s1", "b", ""},
		{"trial without fallback", answer("s1", "s1", "s1", "kept", "kept", "1", `{"running":"b","preferred":"a","trial":"b","tries_left":2,"confirmed":{}}`), "s1", "b", "without a fallback"},
		{"neither", answer("s1", "s1", "s1", "kept", "kept", "1", `{"running":"b","preferred":"a","confirmed":{"a":true}}`), "s1", "b", "is preferred"},
		{"not confirmed", answer("s1", "s1", "s1", "kept", "kept", "1", `{"running":"a","preferred":"a","confirmed":{}}`), "s1", "a", "not confirmed"},
		{"no status", answer("s1", "s1", "s1", "kept", "kept", "1", "error"), "s1", "", "--status"},
		{"cut off", "hostname=s1\n", "mixed", "", "no answer about"},
	} {
		a := understand(tt.text)
		if !strings.HasPrefix(a.settings, tt.settings) || a.slot != tt.slot {
			t.Errorf("%s: slot %q, settings %q", tt.name, a.slot, a.settings)
		}
		if got := strings.Join(a.faults, "; "); (got != "") != (tt.fault != "") || !strings.Contains(got, tt.fault) {
			t.Errorf("%s: faults %q, want %q", tt.name, got, tt.fault)
		}
	}
}

func TestJudge(t *testing.T) {
	all := stages()
	for _, tt := range []struct {
		stage    int
		slot     string
		settings string
		ok       bool
	}{
		{commitBegins, "a", "s0", true}, {commitBegins, "a", "s1", true}, {commitBegins, "a", factory, false},
		{commitDone, "a", "s0", false}, {upgradeBegins, "b", "s1", true}, {upgradeBegins, "b", factory, false},
		{confirmed, "a", "s1", false}, {rollbackBegins, "a", "s2", false}, {rollbackBegins, "b", "s2", true},
		{resetBegins, "a", factory, true}, {resetDone, "a", "s1", false},
	} {
		faults := judge(all[tt.stage], answers{slot: tt.slot, settings: tt.settings})
		if (len(faults) == 0) != tt.ok {
			t.Errorf("%s, slot %s, %s: %v", all[tt.stage].name, tt.slot, tt.settings, faults)
		}
	}
}

// TestChoose: every stage gets cuts, writes are not hit twice before all others were, modes take turns, and the same seed
// gives the same cuts.
func TestChoose(t *testing.T) {
	dir := t.TempDir()
	l, err := power.CreateLog(logPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(basePath(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := power.NewDisk(bytes.NewReader(nil), 1<<20, l)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 512)
	write := func(n int) {
		t.Helper()
		for range n {
			if _, err := d.WriteAt(block, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(50) // the boot before: no cuts
	for stage, n := range []int{8, 0, 900, 3, 10, 0, 40, 2, 60, 5} {
		if err := l.Mark(stage); err != nil {
			t.Fatal(err)
		}
		write(n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a recording that was broken off: %v", err)
	}
	if err := os.WriteFile(donePath(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, n := range []int{20, 300} {
		cuts := r.Choose(n, 5)
		if len(cuts) < n*8/10 || len(cuts) > n {
			t.Errorf("%d cuts, want about %d", len(cuts), n)
		}
		if !slices.Equal(cuts, r.Choose(n, 5)) || slices.Equal(cuts, r.Choose(n, 6)) {
			t.Error("the seed does not choose the cuts")
		}
		byStage, modes := map[string]int{}, map[power.Mode]int{}
		for _, c := range cuts {
			st, err := r.stageOf(c)
			if err != nil {
				t.Fatal(err)
			}
			byStage[st.name]++
			modes[c.Mode]++
		}
		for _, name := range []string{"commit", "upgrade and trial", "rollback", "factory reset"} {
			if byStage[name] == 0 {
				t.Errorf("of %d cuts none is in %s: %v", n, name, byStage)
			}
		}
		for m := power.Clean; m <= power.Torn; m++ {
			if modes[m] < n/5 {
				t.Errorf("of %d cuts %d are %s", n, modes[m], m)
			}
		}
	}
	if _, err := r.stageOf(power.Cut{After: 3}); err == nil {
		t.Error("a cut before the first mark: no error")
	}
}
