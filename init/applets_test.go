package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path"
	"strings"
	"testing"

	"weft/init/unit"
)

var update = flag.Bool("update", false, "rewrite applets.txt from the table")

const appletsHeader = `# Links of the device binary, for the builder and for make host; "device" marks
# those that change the machine they run on. Made by: go test ./init -update
`

func TestAppletsFile(t *testing.T) {
	var b strings.Builder
	b.WriteString(appletsHeader)
	for _, a := range applets {
		b.WriteString(a.path)
		if a.kind == device {
			b.WriteString(" device")
		}
		b.WriteByte('\n')
	}
	if *update {
		if err := os.WriteFile("applets.txt", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("applets.txt")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("applets.txt is not what the table says: go test ./init -update")
	}
}

func TestTable(t *testing.T) {
	seen := map[string]string{}
	for _, a := range applets {
		name := path.Base(a.path)
		if other := seen[name]; other != "" {
			t.Errorf("%s and %s have the same name", other, a.path)
		}
		seen[name] = a.path
		if !path.IsAbs(a.path) || path.Clean(a.path) != a.path {
			t.Errorf("%q is not a clean absolute path", a.path)
		}
		if a.run == nil {
			t.Errorf("%s has no function", a.path)
		}
	}
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"/bin/echo", "a"}, 0, "a\n", ""},
		{[]string{"weft", "echo", "a"}, 0, "a\n", ""},
		{[]string{"-sh", "-c", "exit 3"}, 3, "", ""},
		{[]string{"weft"}, 2, "", "usage: weft APPLET"},
		{[]string{"/bin/nonesuch"}, 127, "", "not an applet"},
	} {
		var out, errs bytes.Buffer
		c := &unit.Call{Args: tc.args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Dir: t.TempDir(), Getenv: os.Getenv}
		if code := run(context.Background(), c); code != tc.code || out.String() != tc.out || !strings.Contains(errs.String(), tc.err) {
			t.Errorf("%v: exit %d, %q, %q", tc.args, code, out.String(), errs.String())
		}
	}
}
