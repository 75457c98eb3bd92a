package upgradecli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/slot"
	"weft/init/sysupgrade"
	"weft/init/unit"
)

func call(t *testing.T, root, stdin string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	c := &unit.Call{Args: append([]string{"/sbin/sysupgrade"}, args...), Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: root, Getenv: func(string) string { return "" }}
	code = sysupgradeAt(context.Background(), c, root)
	return code, o.String(), e.String()
}

// TestUsage: LEDE's exit codes, and what does not go together is said.
func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{nil, 1, "Usage: sysupgrade", ""},
		{[]string{"-h"}, 0, "Usage: sysupgrade", ""},
		{[]string{"--help"}, 0, "Usage: sysupgrade", ""},
		{[]string{"-Z"}, 1, "", "there is no option -Z"},
		{[]string{"-b"}, 1, "", "needs a value"},
		{[]string{"-b", "x", "-r", "y"}, 1, "", "at a time"},
		{[]string{"-b", "x", "image"}, 1, "", "cannot be given together"},
		{[]string{"-l", "image"}, 1, "", "cannot be given together"},
		{[]string{"a", "b"}, 1, "", "one image at a time"},
		{[]string{"-P", "image"}, 1, "", "provisioning"},
		{[]string{"-n", "-f", "x", "image"}, 1, "", "-n keeps no settings"},
	} {
		code, out, errs := call(t, t.TempDir(), "", tt.args...)
		if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
			t.Errorf("%v: exit %d, %q, %q", tt.args, code, out, errs)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestBackupAndRestore goes through a file and through standard input and output.
func TestBackupAndRestore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners are restored: needs root")
	}
	root := t.TempDir()
	write(t, filepath.Join(root, "etc/sysupgrade.conf"), "/etc/config/\n")
	write(t, filepath.Join(root, "etc/config/network"), "before")
	write(t, filepath.Join(root, "etc/config/secret"), "key")
	code, out, errs := call(t, root, "", "-x", "/etc/config/secret", "-l")
	if code != 0 || out != "/etc/config/network\n" {
		t.Errorf("list: %d %q %q", code, out, errs)
	}
	file := filepath.Join(root, "b.tgz")
	if code, _, errs := call(t, root, "", "--create-backup", file); code != 0 || !strings.Contains(errs, "saved to") {
		t.Fatalf("backup: %d %q", code, errs)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the archive holds secrets and has the mode %v, %v", st.Mode(), err)
	}
	code, stream, errs := call(t, root, "", "-b", "-")
	if code != 0 || !strings.HasPrefix(stream, "\x1f\x8b") {
		t.Fatalf("backup to standard output: %d %q", code, errs)
	}
	for name, args := range map[string][]string{"file": {"-r", file}, "stream": {"-r", "-"}} {
		write(t, filepath.Join(root, "etc/config/network"), "after")
		if code, _, errs := call(t, root, stream, args...); code != 0 {
			t.Errorf("%s: restore: %d %q", name, code, errs)
		}
		if text, _ := os.ReadFile(filepath.Join(root, "etc/config/network")); string(text) != "before" {
			t.Errorf("%s: restored %q", name, text)
		}
	}
	write(t, file, "no archive")
	if code, _, errs := call(t, root, "", "-r", file); code != 1 || !strings.Contains(errs, "bad config archive") {
		t.Errorf("a bad archive: %d %q", code, errs)
	}
}

// TestStatusText: which check failed is what a person reads, and JSON has it too.
func TestStatusText(t *testing.T) {
	at := time.Unix(1767225600, 0).UTC()
	s := slots{Running: slot.A, Preferred: slot.A, Confirmed: map[slot.ID]bool{slot.A: true}, Version: "Weft 1",
		Last:    &failure{Slot: slot.B, Check: "uplink", Detail: "wan has no lease", At: &at},
		Upgrade: &sysupgrade.Status{Step: sysupgrade.StepFailed, Error: "the disk is full"}}
	var b bytes.Buffer
	s.print(&b)
	for _, want := range []string{"running      slot a: Weft 1", "slot b, check uplink at 2026-01-01T00:00:00Z: wan has no lease", "none: slot b holds no system", "failed: the disk is full"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
	text, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(text), `"last_failure":{"slot":"b","check":"uplink"`) {
		t.Errorf("%s, %v", text, err)
	}
	s.Trial, s.TriesLeft = slot.A, 2
	s.Gate = &gate{State: "watching", Left: 33}
	b.Reset()
	s.print(&b)
	if !strings.Contains(b.String(), "the running system is on trial (2 more tries)") || !strings.Contains(b.String(), "watching, 33 s left") {
		t.Error(b.String())
	}
}

func TestAsk(t *testing.T) {
	for in, want := range map[string][2]bool{"y\n": {true, true}, "yes": {true, true}, "n\n": {false, false}, "\n": {true, false}, "": {true, false}} {
		for i, def := range []bool{true, false} {
			m := &command{c: &unit.Call{Stdin: strings.NewReader(in), Stderr: &bytes.Buffer{}}}
			if got := m.ask("?", def); got != want[i] {
				t.Errorf("%q with %v: %v", in, def, got)
			}
		}
	}
}

func TestOlder(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"Weft 0.1.0 r1", "Weft 0.2.0 r2", true}, {"Weft 0.10.0", "Weft 0.9.9", false}, {"Weft 1.0", "Weft 1.0", false}, {"Weft 1.0", "Weft 1.0.1", true},
		{"OpenWrt 23.05", "Weft 99.0", false}, {"Weft x.y", "Weft 1.0", false}, {"", "Weft 1", false},
	} {
		if got := older(tt.a, tt.b); got != tt.want {
			t.Errorf("%q older than %q: %v", tt.a, tt.b, got)
		}
	}
}
