package scriptcmd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"weft/init/unit"
)

func do(t *testing.T, dir string, args ...string) (string, string, int) {
	t.Helper()
	table := map[string]unit.Func{"echo": Echo, "printf": Printf, "test": Test, "[": Test, "kill": Kill, "true": True, "false": False}
	var o, e bytes.Buffer
	code := table[args[0]](t.Context(), &unit.Call{Args: args, Stdout: &o, Stderr: &e, Dir: dir, Getenv: os.Getenv})
	return o.String(), e.String(), code
}

// TestAgainstHost compares with the host's programs (GNU).
func TestAgainstHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"echo"}, {"echo", "a", "b"}, {"echo", "-n", "a"}, {"echo", "-e", `a\tb\n\x41\0101\\`}, {"echo", "-E", `a\tb`}, {"echo", "-ne", `x\cy`}, {"echo", "-q", "x"}, {"echo", "-"}, {"echo", "-e", `\q\`},
		{"printf", "%s\n", "a", "b"}, {"printf", "%5s|%-5s|%05d|%+d|% d\n", "a", "b", "42", "3", "4"}, {"printf", "%x %X %o %#x %u\n", "255", "255", "8", "255", "3"}, {"printf", "%c%c\n", "xyz", "é"},
		{"printf", `%b|%s\n`, `a\tb`, `a\tb`}, {"printf", "%.2s|%6.3s|\n", "abcdef", "abcdef"}, {"printf", "%d %d %d\n", "0x10", "010", "'A"}, {"printf", `\101\x42\0103\n`}, {"printf", "%s %d\n"}, {"printf", "%*d|%-*d|%.*f\n", "5", "42", "5", "42", "2", "3.14159"},
		{"printf", "%e %g %f %E\n", "1234.5", "0.0001", "1.5", "2"}, {"printf", "%%|\n"}, {"printf", "%d\n", "abc"}, {"printf", "%d\n", "12x"}, {"printf", "%d\n", "-5"}, {"printf", "%z\n"}, {"printf", "no newline"}, {"printf", "%s", ""}, {"printf"}, {"printf", "--", "%s\n", "x"}, {"printf", `a\cb%s`, "x"}, {"printf", "%d\n", "9223372036854775807"}, {"printf", "%u\n", "-1"}, {"printf", "%i\n", "7"},
		{"test"}, {"test", ""}, {"test", "a"}, {"test", "-n", ""}, {"test", "-z", ""}, {"test", "a", "=", "a"}, {"test", "a", "!=", "a"}, {"test", "1", "-lt", "2"}, {"test", "2", "-le", "1"}, {"test", "x", "-eq", "1"},
		{"test", "-f", "f"}, {"test", "-d", "f"}, {"test", "-e", "nosuch"}, {"test", "-s", "f"}, {"test", "-L", "l"}, {"test", "-h", "f"}, {"test", "-r", "f"}, {"test", "-x", "f"}, {"test", "-d", "/"}, {"test", "-f", "f/"}, {"test", "-c", "/dev/null"}, {"test", "-S", "f"}, {"test", "-O", "f"}, {"test", "-k", "/tmp"},
		{"test", "!", "a"}, {"test", "!", ""}, {"test", "(", "a", ")"}, {"test", "(", ")"}, {"test", "a", "-a", "b"}, {"test", "", "-o", "b"}, {"test", "a", "-a", "", "-o", "c"}, {"test", "!", "a", "=", "b"}, {"test", "-n", "=", "-n"}, {"test", "(", "=", "("}, {"test", "(", "a", "=", "a", ")", "-a", "x"}, {"test", "a", "b"}, {"test", "a", "=", "b", "c"}, {"test", "f", "-ef", "l"}, {"test", "f", "-nt", "nosuch"}, {"test", "f", "-ot", "nosuch"}, {"test", "a", "=", "a", "-a"}, {"test", "-t", "0"},
		{"[", "a", "]"}, {"[", "a"}, {"[", "]"}, {"[", "!", "-e", "nosuch", "]"}, {"true"}, {"false"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			host, err := exec.LookPath(args[0])
			if err != nil {
				t.Skipf("%s is not installed", args[0])
			}
			out, errOut, code := do(t, dir, args...)
			cmd := exec.Command(host, args[1:]...)
			cmd.Dir = dir
			cmd.Env = []string{"LC_ALL=C.UTF-8"}
			var o, e bytes.Buffer
			cmd.Stdout, cmd.Stderr = &o, &e
			cmd.Run() // the exit code is compared
			exit := cmd.ProcessState.ExitCode()
			if args[0] == "printf" && strings.Contains(strings.Join(args, " "), "%c%c") {
				out, o = "", bytes.Buffer{} // GNU's %c is a byte, ours a character
			}
			if out != o.String() {
				t.Errorf("stdout %q, want %q", out, o.String())
			}
			if (code == 0) != (exit == 0) || args[0] != "printf" && code != exit {
				t.Errorf("exit code %d (%s), the host's %d (%s)", code, errOut, exit, &e)
			}
		})
	}
}

func TestKill(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Skipf("nothing to kill: %v", err)
	}
	out, errOut, code := do(t, "/", "kill", "-s", "KILL", "--", pid(cmd))
	cmd.Wait() // killed: the state tells
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if code != 0 || out+errOut != "" || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("kill: %d %q %q, %v", code, out, errOut, ws)
	}
	if out, _, code := do(t, "/", "kill", "-l", "9"); out != "KILL\n" || code != 0 {
		t.Errorf("kill -l 9: %d %q", code, out)
	}
	if out, _, _ := do(t, "/", "kill", "-l", "sigterm"); out != "15\n" {
		t.Errorf("kill -l sigterm: %q", out)
	}
	for _, args := range [][]string{{"kill"}, {"kill", "-s"}, {"kill", "-NOSUCH", "1"}, {"kill", "-9"}, {"kill", "x"}} {
		if _, errOut, code := do(t, "/", args...); code != 2 || errOut == "" {
			t.Errorf("%v: %d %q", args, code, errOut)
		}
	}
}

func pid(cmd *exec.Cmd) string { return strconv.Itoa(cmd.Process.Pid) }

func FuzzFormat(f *testing.F) {
	f.Add("%5d|%-*s|%b\n", "12", "x")
	f.Add(`\x41\0101%c%%%q`, "a b", "")
	f.Fuzz(func(t *testing.T, format, a, b string) {
		if strings.Count(format, "%") > 50 {
			return
		}
		Format(format, []string{a, b})
	})
}

func FuzzEval(f *testing.F) {
	f.Add("( a = b -o ! -n x )")
	f.Fuzz(func(t *testing.T, words string) {
		Eval(strings.Fields(words), Files{Path: func(p string) string { return "/nonexistent/" + p }, FD: func(int) (int, bool) { return 0, false }})
	})
}
