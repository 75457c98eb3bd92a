package pending

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

type fixture struct {
	t         *testing.T
	dir, conf string
	log       bytes.Buffer
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: filepath.Join(t.TempDir(), "deep/er"), conf: t.TempDir()}
	f.write("network", "old network\n", 0o640)
	f.write("system", "old system\n", 0o600)
	return f
}

func (f *fixture) write(name, text string, mode os.FileMode) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.conf, name), []byte(text), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) read(name string) string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.conf, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// apply is what rpcd does, up to step.
func (f *fixture) apply(step int, override ...string) {
	f.t.Helper()
	for i, do := range []func() error{
		func() error { return Save(f.dir, "network", filepath.Join(f.conf, "network")) },
		func() error { return Save(f.dir, "system", filepath.Join(f.conf, "system")) },
		func() error {
			return Begin(f.dir, &Record{SID: "s", Configs: []string{"network", "system", "../x"}, Override: override, Deadline: 1, Boot: "boot 1"})
		},
		func() error { f.write("network", "new network\n", 0o640); return nil },
		func() error { f.write("system", "new system\n", 0o600); return nil },
		func() error { return End(f.dir) },
	} {
		if i >= step {
			return
		}
		if err := do(); err != nil {
			f.t.Fatalf("step %d: %v", i, err)
		}
	}
}

func (f *fixture) restore(boot string) {
	Restore(slog.New(slog.NewTextHandler(&f.log, nil)), f.dir, f.conf, boot)
}

// TestRestore cuts the power after each step.
func TestRestore(t *testing.T) {
	for step := range 7 {
		f := newFixture(t)
		f.apply(step)
		f.restore("boot 2")
		want := "old network\nold system\n"
		if step == 6 {
			want = "new network\nnew system\n" // confirmed
		}
		if got := f.read("network") + f.read("system"); got != want {
			t.Errorf("power cut after step %d: %q, want %q", step, got, want)
		}
		if r, err := Read(f.dir); r != nil || err != nil {
			t.Errorf("step %d: %v, %v stays behind", step, r, err)
		}
		if fi, err := os.Stat(filepath.Join(f.conf, "network")); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("step %d: mode %v, %v", step, fi.Mode(), err)
		}
		// Once is enough: what is changed later stays.
		f.write("network", "later\n", 0o640)
		f.restore("boot 3")
		if got := f.read("network"); got != "later\n" {
			t.Errorf("step %d: rolled back twice: %q", step, got)
		}
	}
}

func TestSameBoot(t *testing.T) {
	f := newFixture(t)
	f.apply(5)
	f.restore("boot 1")
	if got := f.read("network"); got != "new network\n" {
		t.Errorf("rolled back in the boot in which it waits to be confirmed: %q", got)
	}
}

func TestOverride(t *testing.T) {
	f := newFixture(t)
	f.apply(5, "system")
	f.restore("boot 2")
	if got := f.read("network") + f.read("system"); got != "old network\nnew system\n" {
		t.Errorf("%q: the copy of a file from the override folder was put into the configuration", got)
	}
}

func TestUnreadable(t *testing.T) {
	f := newFixture(t)
	f.apply(5)
	if err := os.WriteFile(recordFile(f.dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.restore("boot 2")
	if got := f.read("network"); got != "new network\n" || f.log.Len() == 0 {
		t.Errorf("%q, log %q", got, f.log.String())
	}
	if r, err := Read(f.dir); r != nil || err != nil {
		t.Errorf("%v, %v stays behind", r, err)
	}
}
