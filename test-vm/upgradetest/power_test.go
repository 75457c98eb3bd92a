package upgradetest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"weft/test-vm/power/proof"
)

// TestPower records an upgrade, its confirmation, a rollback, a factory reset and commits of the settings, and boots what
// power cuts leave of them: a sample, with a seed that is printed. `make test-power` does hundreds.
func TestPower(t *testing.T) {
	t.Parallel()
	b, err := makeBed()
	if err != nil {
		t.Fatal(err)
	}
	cuts, seed := 22, rand.Uint64()>>40
	if n, err := strconv.Atoi(os.Getenv("WEFT_POWER_CUTS")); err == nil && n > 0 {
		cuts = n
	}
	if n, err := strconv.ParseUint(os.Getenv("WEFT_POWER_SEED"), 10, 64); err == nil {
		seed = n
	}
	dir := filepath.Join(b.dir, "recording")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	slots <- struct{}{}
	r, err := proof.Record(t.Context(), proof.Options{Image: b.good, Dir: dir, Progress: t.Logf})
	<-slots
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	list := r.Choose(cuts, seed)
	t.Logf("%d cuts, seed %d: again by WEFT_POWER_CUTS=%d WEFT_POWER_SEED=%d", len(list), seed, cuts, seed)
	// Both places for guests: nobody else holds one and waits for another.
	for range 2 {
		slots <- struct{}{}
		defer func() { <-slots }()
	}
	var sum proof.Summary
	err = r.JudgeAll(t.Context(), list, 2, func(o proof.Outcome) {
		sum.Add(o)
		if len(o.Faults) > 0 {
			t.Errorf("%s", o)
		} else {
			t.Logf("%s", o)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", sum)
	if sum.Cuts < 20 && cuts >= 22 {
		t.Errorf("%d cuts, at least 20 are due", sum.Cuts)
	}
}
