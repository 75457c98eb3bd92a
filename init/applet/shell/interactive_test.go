package shell

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/applet/internal/ptytest"
)

// prompt starts an interactive shell on a terminal.
func prompt(t *testing.T, termName string, args ...string) (*ptytest.Session, string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(self(t))
	cmd.Args = append([]string{"sh"}, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "PS1=$? > ", "TERM=" + termName, "GORACE=atexit_sleep_ms=0", "HISTFILE=" + filepath.Join(dir, "hist")}
	s := ptytest.Start(t, 60, 15, cmd)
	s.WaitFor("0 >")
	return s, dir
}

func TestInteractiveEditing(t *testing.T) {
	s, dir := prompt(t, "vt100")
	s.Send("echo helo\x02\x02l\x05 world\r") // back twice, insert, to the end
	s.WaitFor("hello world\n")
	s.Send("false\r")
	s.WaitFor("1 >")
	s.Send("\x1b[A\x1b[A\r") // up, up: echo again
	s.Until("the line from history twice", func(v string) bool { return strings.Count(v, "\nhello world") == 2 })
	s.Send("if true\rthen echo multi$((1+1))\rfi\r")
	s.WaitFor("multi2")
	s.Send("cat <<X\rbody\rX\r")
	s.WaitFor("> X\nbody")
	if err := os.WriteFile(filepath.Join(dir, "longfile one"), []byte("content here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Send("cat lon\t\r")
	s.WaitFor("content here\n0 >")
	s.Send("echo typo\x03")
	s.WaitFor("^C")
	s.WaitFor("130 >")
	s.Send("exit 5\r")
	if code := s.Exit(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	hist, err := os.ReadFile(filepath.Join(dir, "hist"))
	if err != nil || !strings.Contains(string(hist), "echo hello world\n") {
		t.Errorf("history file: %q, %v", hist, err)
	}
}

func TestInteractiveSignals(t *testing.T) {
	s, _ := prompt(t, "vt100")
	s.Send("sleep 100\r")
	s.WaitFor("sleep 100")
	s.Foreground("sleep")
	s.Send("\x03")
	s.WaitFor("130 >")
	s.Send("while :; do sleep 50; done; echo never\r")
	s.Foreground("sleep")
	s.Send("\x03")
	s.Until("the prompt after the loop", func(v string) bool { return strings.Count(v, "130 >") == 2 })
	s.Send("echo spin; while :; do :; done\r")
	s.WaitFor("\nspin")
	s.Send("\x03")
	s.Until("the prompt after the spin", func(v string) bool { return strings.Count(v, "130 >") == 3 })
	s.Send("sleep 77\r")
	s.Foreground("sleep")
	s.Send("\x1a")
	s.WaitFor("Stopped  sleep 77")
	s.Send("jobs\r")
	s.WaitFor("[1]+  Stopped  sleep 77")
	s.Send("bg\r")
	s.WaitFor("[1] sleep 77")
	s.Send("fg\r")
	s.Foreground("sleep")
	s.Send("\x03")
	s.Until("the prompt after fg", func(v string) bool { return strings.HasSuffix(strings.TrimRight(v, " "), "130 >") })
	s.Send("sleep 60 &\r")
	s.WaitFor("[1] ")
	s.Send("kill %1; wait %1; echo w$?\r")
	s.WaitFor("w143\n0 >")
	s.Send("\x04")
	s.Exit()
}

func TestInteractiveFullScreen(t *testing.T) {
	if _, err := exec.LookPath("less"); err != nil {
		t.Skip("less is not installed")
	}
	s, dir := prompt(t, "vt100")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(strings.Repeat("line\n", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Send("less f; echo back $((2*3))\r")
	s.Foreground("less")
	s.WaitFor("line\nline\nline\nline\nline\nline")
	s.Send("q")
	s.WaitFor("back 6")
	s.Send("exit\r")
	s.Exit()
}

func TestInteractiveDumb(t *testing.T) {
	s, _ := prompt(t, "dumb")
	s.Send("echo plain$((1+2))\n")
	s.WaitFor("plain3")
	s.Send("sleep 33\n")
	s.Foreground("sleep")
	s.Send("\x03")
	s.WaitFor("130 >")
	s.Send("exit 0\n")
	s.Exit()
	if strings.Contains(s.Raw(), "\x1b") {
		t.Errorf("escape codes on a dumb terminal: %q", s.Raw())
	}
}

func TestLoginReadsProfile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".profile"), []byte("X=fromprofile; PS1='login$X# '\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self(t))
	cmd.Args = []string{"-sh"}
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TERM=vt100"}
	s := ptytest.Start(t, 80, 24, cmd)
	s.WaitFor("loginfromprofile#")
	s.Send("exit\r")
	s.Exit()
}
