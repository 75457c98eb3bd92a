package command

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/unit"
)

var table = map[string]unit.Func{
	"chroot": Chroot, "date": Date, "env": Env, "flock": Flock, "nice": Nice, "nohup": Nohup, "nproc": Nproc, "printenv": Printenv, "pwd": Pwd, "setsid": Setsid,
	"sleep": Sleep, "time": Time, "timeout": Timeout, "tty": Tty, "usleep": Usleep, "which": Which, "whoami": Whoami, "xargs": Xargs,
}

func do(t *testing.T, dir, stdin string, args ...string) (string, string, int) {
	t.Helper()
	var o, e bytes.Buffer
	code := table[args[0]](t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: dir, Getenv: os.Getenv})
	return o.String(), e.String(), code
}

// TestAgainstHost compares with the host's commands.
func TestAgainstHost(t *testing.T) {
	for _, c := range []struct{ line, stdin string }{
		{"date -u -d @1795525200", ""}, {"date -u -d @1795525200 +%Y-%m-%dT%H:%M:%S%z|%j|%U|%W|%V|%G|%u|%w|%p|%I|%e|%k|%s|%y|%C|%a|%A|%b|%B|%D|%F|%T|%R|%n|%t|%%|%-d|%_H|%Z|%h|%c|%x|%X|%r", ""},
		{"date -u -d @0 +%U%W%V%G%j", ""}, {"date -u -d @1704067199 +%U%W%V%G%j%e", ""}, {"date -u -d 2026-11-24 +%s", ""}, {"date -u -R -d @5", ""}, {"date -u -I -d @5", ""}, {"date -u -d nonsense", ""},
		{"xargs", "a b 'c d' \"e f\" g\\ h\n\ni\n"}, {"xargs -n 2 echo x", "1 2 3 4 5"}, {"xargs -n1", ""}, {"xargs -r echo", ""}, {"xargs echo", ""}, {"xargs -0 -n1 echo", "a b\x00c\x00"}, {"xargs -I {} echo <{}>", "one two\nthree\n"},
		{"xargs -L 1 echo", "a b\nc\n"}, {"xargs false", "x"}, {"xargs nosuchcommand", "x"}, {"xargs -t echo", "x"}, {"xargs sh -c exit_255", "x"}, {"xargs echo", "'open"},
		{"env -i A=1 B=2", ""}, {"env -i A=1 /bin/sh -c env", ""}, {"env nosuchcommand", ""}, {"env -u HOME A=b /usr/bin/printenv A", ""}, {"printenv NOSUCH", ""},
		{"timeout 5 true", ""}, {"timeout 5 false", ""}, {"timeout 0.05 sleep 9", ""}, {"timeout -s KILL 0.05 sleep 9", ""}, {"timeout 1 nosuchcommand", ""}, {"timeout x true", ""},
		{"which sh nosuch", ""}, {"which nosuch", ""}, {"nice -n 3 nice", ""}, {"nohup echo hi", ""}, {"sleep 0", ""}, {"sleep x", ""}, {"pwd", ""}, {"whoami", ""}, {"tty", ""}, {"flock f echo locked", ""}, {"flock f false", ""}, {"setsid true", ""}, {"nproc", ""},
	} {
		t.Run(c.line, func(t *testing.T) {
			args := strings.Fields(c.line)
			host, err := exec.LookPath(args[0])
			if err != nil {
				t.Skipf("%s is not installed", args[0])
			}
			dir := t.TempDir()
			out, errOut, code := do(t, dir, c.stdin, args...)
			cmd := exec.Command(host, args[1:]...)
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(c.stdin)
			cmd.Env = append(os.Environ(), "LC_ALL=C")
			var o, e bytes.Buffer
			cmd.Stdout, cmd.Stderr = &o, &e
			cmd.Run() // the exit code is compared
			want, exit := o.String(), cmd.ProcessState.ExitCode()
			if out != want {
				t.Errorf("stdout %q\n   want %q", out, want)
			}
			if exit == -1 {
				exit = 137 // the host's timeout kills itself too
			}
			if code != exit && (code == 0 || exit == 0 || args[0] == "xargs" && exit > 1 || args[0] == "timeout" && exit < 125) {
				t.Errorf("exit code %d (%s), the host's %d (%s)", code, errOut, exit, &e)
			}
		})
	}
}

func TestDateForms(t *testing.T) {
	now := time.Date(2026, 11, 24, 13, 5, 6, 0, time.UTC)
	for in, want := range map[string]string{
		"@86400": "1970-01-02 00:00:00", "2026-01-02 03:04": "2026-01-02 03:04:00", "2026-01-02 03:04:05": "2026-01-02 03:04:05", "2026-01-02": "2026-01-02 00:00:00",
		"07:08": "2026-11-24 07:08:00", "07:08:09": "2026-11-24 07:08:09", "01020304": "2026-01-02 03:04:00", "0102030425": "2025-01-02 03:04:00", "010203042024.05": "2024-01-02 03:04:05",
		"2026-01-02T03:04:05Z": "2026-01-02 03:04:05", "now": "2026-11-24 13:05:06",
	} {
		got, err := parseTime(in, now)
		if err != nil || got.Format("2006-01-02 15:04:05") != want {
			t.Errorf("%q: %v %v, want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"x", "@x", "99999999", "1", "2026-13-01", "010203.5"} {
		if _, err := parseTime(bad, now); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFlockExcludes(t *testing.T) {
	dir := t.TempDir()
	lock := filepath.Join(dir, "lock")
	out, _, code := do(t, dir, "", "flock", lock, "flock", "-n", lock, "echo", "no")
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("flock is not installed: nobody to try it with")
	}
	if code != 1 || out != "" {
		t.Errorf("the inner one got the lock too: %d %q", code, out)
	}
}

func TestWrongUse(t *testing.T) {
	for _, line := range []string{"date -d", "date -Q", "sleep", "timeout", "timeout 5", "xargs -n x", "xargs -P 4", "which", "env -Q", "time", "nice -n x true", "setsid", "chroot", "flock", "flock x", "usleep x", "tty -q"} {
		if _, errOut, code := do(t, t.TempDir(), "", strings.Fields(line)...); code != 2 || !strings.Contains(errOut, "Usage: ") {
			t.Errorf("%s: %d %q", line, code, errOut)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	f.Add("2026-11-24 13:00")
	f.Add("112413002026.05")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := parseTime(s, time.Unix(0, 0).UTC()); err == nil {
			Format(got, "%c"+s)
		}
	})
}
