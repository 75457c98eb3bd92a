package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/init/applet/internal/ptytest"
	"weft/init/crypt"
	"weft/init/unit"
)

var testDay = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) // day 20781

const testPasswd = "root:x:0:0:root:/root:/bin/ash\ndaemon:*:1:1:daemon:/var:/bin/false\nann:x:1000:1000::/home/ann:/bin/sh\nbroken line\n"

func etc(t *testing.T, annHash string) accounts {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "passwd"), testPasswd)
	if err := os.Chmod(filepath.Join(dir, "passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "shadow"), "root:::0:99999:7:::\nann:"+annHash+":1:0:99999:7:::\n+:odd\n")
	write(t, filepath.Join(dir, "group"), "root:x:0:\nwheel:x:10:ann,bob\nann:x:1000:\nusers:x:100:bob\n")
	return accounts(dir)
}

func hash(t *testing.T, password string) string {
	t.Helper()
	h, err := crypt.Hash(password)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func runPasswd(t *testing.T, a accounts, uid int, stdin string, args ...string) result {
	t.Helper()
	return call(t, func(ctx context.Context, c *unit.Call) int { return passwd(ctx, c, a, uid, testDay) }, stdin, append([]string{"passwd"}, args...)...)
}

func TestPasswd(t *testing.T) {
	a := etc(t, "!")
	r := runPasswd(t, a, 0, "secret words\nsecret words\nnot for us\n", "root")
	if r.code != 0 || r.err != "" || !strings.HasSuffix(r.out, "passwd: password for root changed by root\n") || strings.Contains(r.out, "secret") {
		t.Fatalf("%+v", r)
	}
	lines := strings.Split(read(t, a.file("shadow")), "\n")
	f := strings.Split(lines[0], ":")
	if len(f) != 9 || f[0] != "root" || !crypt.Verify(f[1], "secret words") || !strings.HasPrefix(f[1], "$6$") || f[2] != "20781" || strings.Join(f[3:], ":") != "0:99999:7:::" {
		t.Errorf("shadow: %q", lines[0])
	}
	if lines[1] != "ann:!:1:0:99999:7:::" || lines[2] != "+:odd" {
		t.Errorf("other lines changed: %q", lines[1:])
	}
	if st, err := os.Stat(a.file("shadow")); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	left, err := filepath.Glob(string(a) + "/.*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	before := lines[0]

	// daemon has its own password in passwd: afterwards it is in shadow.
	if r := runPasswd(t, a, 0, "demon pass\ndemon pass\n", "daemon"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if got := read(t, a.file("passwd")); got != strings.Replace(testPasswd, "daemon:*", "daemon:x", 1) {
		t.Errorf("passwd: %q", got)
	}
	if st, err := os.Stat(a.file("passwd")); err != nil || st.Mode() != 0o644 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	u, err := a.named("daemon")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := a.hash(u); err != nil || !crypt.Verify(h, "demon pass") {
		t.Errorf("%q %v", h, err)
	}

	for _, step := range []struct{ args, want string }{
		{"-l root", strings.Replace(before, "root:", "root:!", 1)}, {"-l root", strings.Replace(before, "root:", "root:!", 1)}, {"-u", before}, {"-d root", "root::20781:0:99999:7:::"},
	} {
		if r := runPasswd(t, a, 0, "", strings.Fields(step.args)...); r.code != 0 {
			t.Errorf("passwd %s: %+v", step.args, r)
		}
		if got, _, _ := strings.Cut(read(t, a.file("shadow")), "\n"); got != step.want {
			t.Errorf("passwd %s: %q, want %q", step.args, got, step.want)
		}
	}
}

func TestPasswdWithoutShadow(t *testing.T) {
	a := etc(t, "")
	if err := os.Remove(a.file("shadow")); err != nil {
		t.Fatal(err)
	}
	if r := runPasswd(t, a, 0, "new secret\nnew secret\n"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	st, err := os.Stat(a.file("shadow"))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
}

func TestPasswdRefuses(t *testing.T) {
	a := etc(t, hash(t, "old"))
	before := read(t, a.file("shadow"))
	for _, tc := range []struct {
		uid               int
		stdin, args, says string
	}{
		{0, "one two three\nanother\n", "root", "not the same"},
		{0, "\n\n", "root", "empty"},
		{0, "", "root", "no password was given"},
		{0, "only once", "root", "no password was given"},
		{0, "", "nobody", `"nobody": no such user`},
		{0, strings.Repeat("x", 600) + "\n" + strings.Repeat("x", 600) + "\n", "root", "511 bytes"},
		{0, strings.Repeat("x", 2000) + "\n", "root", "more than 1024 bytes"},
		{1000, "x\n", "root", "only root"},
		{1000, "x\n", "-d ann", "only root"},
		{1000, "wrong\nnew words\nnew words\n", "ann", "not the password"},
		{4711, "", "", "user id 4711: no such user"},
	} {
		r := runPasswd(t, a, tc.uid, tc.stdin, strings.Fields(tc.args)...)
		if r.code != 1 || !strings.Contains(r.err, tc.says) {
			t.Errorf("%+v: %+v", tc, r)
		}
	}
	if got := read(t, a.file("shadow")); got != before {
		t.Errorf("shadow was changed: %q", got)
	}
	if r := runPasswd(t, a, 1000, "old\nnew words\nnew words\n"); r.code != 0 || !strings.Contains(r.out, "for ann changed by ann") {
		t.Errorf("%+v", r)
	}
	if r := runPasswd(t, a, 0, "short\nshort\n"); r.code != 0 || !strings.Contains(r.err, "warning") {
		t.Errorf("%+v", r)
	}
}

func TestPasswdTerminal(t *testing.T) {
	a := etc(t, "")
	cmd := be(t, "passwd", "root")
	cmd.Env = append(cmd.Env, "ETC="+string(a))
	s := ptytest.Start(t, 80, 10, cmd)
	s.WaitFor("New password:")
	s.Send("wrong\x15my secxx\x7f\x7fret\r")
	s.WaitFor("Retype password:")
	s.Send("my secret\n")
	s.WaitFor("changed by root")
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if raw := s.Raw(); strings.Contains(raw, "sec") {
		t.Errorf("the password was echoed: %q", raw)
	}
	u, _ := a.named("root")
	if h, err := a.hash(u); err != nil || !crypt.Verify(h, "my secret") {
		t.Errorf("%q %v", h, err)
	}
}

// fakeHost is a host whose sessions and delays are noted.
type fakeHost struct {
	host
	waited  []time.Duration
	logged  []string
	session *session
}

var errStarted = errors.New("started")

func newHost(t *testing.T, annHash string) *fakeHost {
	h := &fakeHost{}
	h.host = host{etc: etc(t, annHash), name: "gw", root: true,
		wait:  func(_ context.Context, d time.Duration) error { h.waited = append(h.waited, d); return nil },
		log:   func(text string) { h.logged = append(h.logged, text) },
		start: func(s *session) error { h.session = s; return errStarted }}
	return h
}

func TestLogin(t *testing.T) {
	annHash := hash(t, "word")
	for _, tc := range []struct {
		name, args, stdin string
		user              string // who gets in, "" for nobody
		failures          int
		says              string
	}{
		{"empty password", "", "root\n", "root", 0, ""},
		{"named, empty password", "root", "", "root", 0, ""},
		{"password", "", "ann\nword\n", "ann", 0, ""},
		{"named", "ann", "word\n", "ann", 0, ""},
		{"second try", "ann", "wrong\nann\nword\n", "ann", 1, ""},
		{"no name", "", "\n\n ann \nword\n", "ann", 0, ""},
		{"trusted", "-f ann", "", "ann", 0, ""},
		{"trusted, from far", "-h far -f ann", "", "ann", 0, ""},
		{"trusted, unknown", "-f bob", "", "", 0, "no such user"},
		{"three wrong", "", "ann\na\nann\nb\nbob\nword\nann\nword\n", "", 3, "too many failed logins"},
		{"locked", "daemon", "*\n", "", 1, ""},
		{"unknown and empty", "", "bob\n\n", "", 1, ""},
		{"the input ends", "", "", "", 0, ""},
		{"the input ends at the password", "ann", "", "", 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, annHash)
			r := call(t, h.login, tc.stdin, append([]string{"login"}, strings.Fields(tc.args)...)...)
			got := ""
			if h.session != nil {
				got = h.session.user.name
			}
			if got != tc.user || r.code != 1 || !strings.Contains(r.err, tc.says) {
				t.Errorf("%q got in: %+v", got, r)
			}
			if len(h.waited) != tc.failures || strings.Count(r.out, "Login incorrect") != tc.failures || slices.ContainsFunc(h.waited, func(d time.Duration) bool { return d != failDelay }) {
				t.Errorf("waited %v: %+v", h.waited, r)
			}
			if n := len(slices.DeleteFunc(slices.Clone(h.logged), func(s string) bool { return !strings.HasPrefix(s, "failed login of ") })); n != tc.failures {
				t.Errorf("logged %q", h.logged)
			}
		})
	}
}

func TestLoginSession(t *testing.T) {
	h := newHost(t, "")
	var o bytes.Buffer
	h.login(t.Context(), &unit.Call{Args: []string{"login", "ann"}, Stdin: strings.NewReader(""), Stdout: &o, Stderr: &o,
		Getenv: func(k string) string { return map[string]string{"TERM": "vt102", "SECRET": "x"}[k] }})
	s := h.session
	if s == nil {
		t.Fatal(o.String())
	}
	if got := fmt.Sprint(s.shell, s.argv, s.groups); got != "/bin/sh[-sh] [1000 10]" {
		t.Error(got)
	}
	if got := strings.Join(s.env, " "); got != "TERM=vt102 HOME=/home/ann SHELL=/bin/sh USER=ann LOGNAME=ann PATH=/usr/bin:/bin" {
		t.Error(got)
	}
	h.root = false
	fails(t, 1, "only root", h.login, "login", "ann")
}

func TestLoginTimeout(t *testing.T) {
	h := newHost(t, hash(t, "word"))
	h.wait = func(ctx context.Context, d time.Duration) error { return context.DeadlineExceeded }
	r := call(t, h.login, "x\n", "login", "ann")
	if r.code != 1 || !strings.Contains(r.out, "timed out after 60 seconds") || h.session != nil {
		t.Errorf("%+v", r)
	}
}

// TestLoginReal logs in on a terminal with other files in place of /etc's.
func TestLoginReal(t *testing.T) {
	if !namespace(t) {
		return
	}
	a := etc(t, hash(t, "word"))
	home := t.TempDir()
	write(t, a.file("passwd"), strings.Replace(testPasswd, "/home/ann", home, 1))
	for _, name := range []string{string(a), home, filepath.Dir(home), filepath.Dir(string(a))} { // not the system's /tmp above them
		if err := os.Chmod(name, 0o755); err != nil && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(a.file("passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "shadow", "group"} {
		ok(t, Mount, "mount", "-o", "bind", a.file(name), "/etc/"+name)
	}
	s := ptytest.Start(t, 100, 20, be(t, "login"))
	s.WaitFor(" login:")
	s.Send("ann\n")
	s.WaitFor("Password:")
	s.Send("word\r")
	s.WaitFor("$")
	s.Send("echo \"$(id -u) $(id -G) $0 $USER $PWD.\"; stat -c %u:%a \"$(tty)\"\n")
	s.WaitFor("1000 1000 10 -sh ann " + home + ".")
	s.WaitFor("1000:600")
	s.Send("exit 7\n")
	if code := s.Exit(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if strings.Contains(s.Raw(), "word\r") {
		t.Error("the password was echoed")
	}
}

func FuzzAccount(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/ash")
	f.Fuzz(func(t *testing.T, line string) {
		if u, ok := parseAccount(line); ok && (u.name == "" || u.uid < 0 || u.gid < 0) {
			t.Errorf("%q: %+v", line, u)
		}
	})
}
