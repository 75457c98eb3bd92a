package cli

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"weft/image/build"
)

// TestCompareResults: the report names what differs, and where.
func TestCompareResults(t *testing.T) {
	result := func(files map[string]string) *build.Result {
		r := &build.Result{Dir: t.TempDir()}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(r.Dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r.Outputs = append(r.Outputs, build.Output{Name: name})
		}
		return r
	}
	a := &app{Streams: Streams{Out: io.Discard, Err: io.Discard}, source: "."}
	one := map[string]string{"manifest": "abc", "kernel": "k"}
	rep, err := a.compareResults(t.Context(), result(one), result(one))
	if err != nil || !rep.Same || rep.Files != 2 {
		t.Errorf("the same twice: %+v, %v", rep, err)
	}
	rep, err = a.compareResults(t.Context(), result(one), result(map[string]string{"manifest": "abd", "extra": ""}))
	if err != nil || rep.Same {
		t.Fatalf("got %+v, %v", rep, err)
	}
	for _, want := range []string{"manifest: byte 2", "kernel: only the first build made it", "extra: only the second build made it"} {
		if !slices.Contains(rep.Differences, want) {
			t.Errorf("%q is not among %q", want, rep.Differences)
		}
	}
}

// TestSandbox: the copy has the asked modes and times, and the source's version.
func TestSandbox(t *testing.T) {
	source, dir := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	for _, p := range []string{"a", "bin/out", "sub/b"} {
		f := filepath.Join(source, p)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "12345")
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if _, err := newSandbox(source, dir, 0o077, when); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "sub/b"))
	if err != nil || st.Mode().Perm() != 0o700 || !st.ModTime().Equal(when) {
		t.Errorf("the copy of sub/b: %v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bin")); err == nil {
		t.Error("outputs were copied")
	}
	if date, err := os.ReadFile(filepath.Join(dir, "version.date")); err != nil || string(date) != "12345\n" {
		t.Errorf("version.date %q, %v", date, err)
	}
}
