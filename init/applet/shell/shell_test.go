package shell

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/unit"
)

// TestMain makes the test binary a shell when it is called by that name, as the
// device binary is: background subshells start it so.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "sh" || name == "-sh" || name == "ash" {
		SetApplets(testApplets)
		os.Exit(Sh(context.Background(), unit.OSCall()))
	}
	os.Exit(m.Run())
}

func testApplets(name string) (unit.Func, bool) {
	switch name {
	case "weft-upper":
		return upper, true
	case "weft-pid":
		return func(_ context.Context, c *unit.Call) int {
			c.Stdout.Write([]byte(c.Getenv("X") + " " + c.Dir + "\n"))
			return 7
		}, true
	}
	return nil, false
}

func upper(_ context.Context, c *unit.Call) int {
	var b bytes.Buffer
	if _, err := b.ReadFrom(c.Stdin); err != nil {
		return 1
	}
	if _, err := c.Stdout.Write(bytes.ToUpper(b.Bytes())); err != nil {
		return 1
	}
	return 0
}

type result struct {
	stdout, stderr string
	status         int
}

// run starts a shell process. argv[0] decides what the test binary is.
func run(t *testing.T, path string, args []string, stdin, dir string) result {
	t.Helper()
	cmd := exec.Command(path, args[1:]...)
	cmd.Args = args
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "GORACE=atexit_sleep_ms=0"}
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatalf("run %v: %v", args, err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestScripts runs each testdata/scripts/*.sh and compares it with its .out
// file; a line "#exit N" at the top names the status, "#oracle NAME" the shell
// (dash or busybox) that must agree where it is installed.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/scripts/*.sh")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".sh"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(file, ".sh") + ".out")
			if err != nil && !update() {
				t.Fatal(err)
			}
			path, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			status, oracles := 0, []string{"dash", "busybox"}
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				if len(f) == 0 || f[0][0] != '#' {
					break
				}
				switch f[0] {
				case "#exit":
					for _, c := range f[1] {
						status = status*10 + int(c-'0')
					}
				case "#oracle":
					oracles = f[1:]
				}
			}
			got := run(t, self(t), []string{"sh", path, "one", "two words", "three"}, "in 1\nin 2\nin 3\n", t.TempDir())
			if update() {
				if err := os.WriteFile(strings.TrimSuffix(file, ".sh")+".out", []byte(got.stdout), 0o644); err != nil {
					t.Fatal(err)
				}
				want = []byte(got.stdout)
			}
			if got.stdout != string(want) || got.status != status {
				t.Errorf("status %d, want %d; stdout:\n%s\nwant:\n%s\nstderr:\n%s", got.status, status, got.stdout, want, got.stderr)
			}
			for _, o := range oracles {
				oracle, err := exec.LookPath(o)
				if err != nil {
					t.Logf("%s is not installed: not compared with it", o)
					continue
				}
				args := []string{o}
				if o == "busybox" {
					args = append(args, "ash")
				}
				theirs := run(t, oracle, append(args, path, "one", "two words", "three"), "in 1\nin 2\nin 3\n", t.TempDir())
				if theirs.stdout != got.stdout || theirs.status != got.status {
					t.Errorf("%s disagrees: status %d, ours %d; its stdout:\n%s\nours:\n%s\nits stderr:\n%s", o, theirs.status, got.status, theirs.stdout, got.stdout, theirs.stderr)
				}
			}
		})
	}
}

func update() bool { return os.Getenv("UPDATE") != "" }
