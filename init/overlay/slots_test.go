package overlay

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// oldLayout is a data file system from before there were slots.
func oldLayout(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"upper/etc/config/network", "work/work/x", "lost+found/y", Saved} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := SetState(dir, Ready); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestMigrate moves the old layout into the folder of slot a, from whatever a power
// cut has left of an earlier attempt: any number of the moves done.
func TestMigrate(t *testing.T) {
	moves := []string{stateName, Saved, "upper", "work"}
	for done := range len(moves) + 2 {
		dir := t.TempDir()
		oldLayout(t, dir)
		moving := SlotDir(dir, "a") + ".moving"
		if done > 0 {
			if err := os.Mkdir(moving, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, m := range moves[:done-1] {
				if err := os.Rename(filepath.Join(dir, m), filepath.Join(moving, m)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 { // the second boot changes nothing
			d := &Data{Dir: dir, Slot: "a"}
			if err := d.slots(); err != nil {
				t.Fatalf("after %d steps: %v", done, err)
			}
			if got := names(t, dir); !slices.Equal(got, []string{"lost+found", "slot-a"}) {
				t.Errorf("after %d steps: %v", done, got)
			}
			if got := names(t, d.Root()); !slices.Equal(got, moves) {
				t.Errorf("after %d steps: slot a has %v", done, got)
			}
			if s := GetState(d.Root()); s != Ready {
				t.Errorf("after %d steps: state %v", done, s)
			}
			if b, err := os.ReadFile(filepath.Join(d.Root(), "upper/etc/config/network")); err != nil || len(b) == 0 {
				t.Errorf("after %d steps: %v", done, err)
			}
		}
	}
}

// TestSlotsApart: a new slot begins empty beside the other one, whose overlay and
// reset are its own, and the data file system is root's alone.
func TestSlotsApart(t *testing.T) {
	dir := t.TempDir()
	a, b := &Data{Dir: dir, Slot: "a"}, &Data{Dir: dir, Slot: "b"}
	for _, d := range []*Data{a, b} {
		if err := d.settleSlot(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.Root(), "upper/file"), []byte(d.Slot), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := SetState(d.Root(), Ready); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode of the data file system: %v, %v", fi.Mode(), err)
	}
	if err := Reset(a.Root(), false); err != nil {
		t.Fatal(err)
	}
	if err := a.settleSlot(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(a.Root(), "upper")); len(got) != 0 {
		t.Errorf("slot a after its reset: %v", got)
	}
	if got, err := os.ReadFile(filepath.Join(b.Root(), "upper/file")); err != nil || string(got) != "b" {
		t.Errorf("slot b after the reset of a: %q, %v", got, err)
	}
}

// settleSlot is what Open does once the file system is mounted.
func (d *Data) settleSlot() error { return d.settle("") }

// TestPrepared: what an upgrade has put into a slot's folder outlives the clearing
// of an unfinished first boot, so that the next one restores it again.
func TestPrepared(t *testing.T) {
	dir := t.TempDir()
	d := &Data{Dir: dir, Slot: "b"}
	root := d.Root()
	if err := os.MkdirAll(filepath.Join(root, "upper/etc/half"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{Saved, Before} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := SetState(root, Pending); err != nil {
		t.Fatal(err)
	}
	if err := d.settleSlot(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, root); !slices.Equal(got, []string{stateName, Before, Saved, "upper", "work"}) {
		t.Errorf("%v", got)
	}
	if got := names(t, filepath.Join(root, "upper")); len(got) != 0 {
		t.Errorf("half a first boot is left: %v", got)
	}
	if GetState(root) != Pending {
		t.Error("the first boot counts as finished")
	}
}
