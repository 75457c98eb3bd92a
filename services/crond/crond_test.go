package crond

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/init/unit"
)

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestDue(t *testing.T) {
	for _, c := range []struct {
		line     string
		yes, not []string
	}{
		{"* * * * * x", []string{"2026-11-24 00:00", "2026-02-28 23:59"}, nil},
		{"30 4 * * * x", []string{"2026-11-24 04:30"}, []string{"2026-11-24 04:31", "2026-11-24 16:30"}},
		{"*/15 * * * * x", []string{"2026-11-24 04:00", "2026-11-24 04:45"}, []string{"2026-11-24 04:50"}},
		{"5-20/5 8-10,20 * * * x", []string{"2026-11-24 08:05", "2026-11-24 20:20"}, []string{"2026-11-24 08:00", "2026-11-24 11:05", "2026-11-24 08:25"}},
		{"5/20 * * * * x", []string{"2026-11-24 08:05", "2026-11-24 08:45"}, []string{"2026-11-24 08:00", "2026-11-24 08:06"}},
		{"0 22-2 * * * x", []string{"2026-11-24 22:00", "2026-11-24 00:00", "2026-11-24 02:00"}, []string{"2026-11-24 03:00", "2026-11-24 21:00"}},
		{"0 0 * * 0 x", []string{"2026-11-22 00:00"}, []string{"2026-11-23 00:00"}},
		{"0 0 * * 7 x", []string{"2026-11-22 00:00"}, []string{"2026-11-23 00:00"}},
		{"0 0 * * sun,Wed x", []string{"2026-11-22 00:00", "2026-11-25 00:00"}, []string{"2026-11-24 00:00"}},
		{"0 0 * * fri-mon x", []string{"2026-11-20 00:00", "2026-11-22 00:00", "2026-11-23 00:00"}, []string{"2026-11-24 00:00", "2026-11-19 00:00"}},
		{"0 0 * jan-mar,DEC * x", []string{"2026-02-03 00:00", "2026-12-03 00:00"}, []string{"2026-04-03 00:00"}},
		{"0 0 13 * 5 x", []string{"2026-11-13 00:00", "2026-10-13 00:00", "2026-11-20 00:00"}, []string{"2026-11-14 00:00"}}, // either day field
		{"0 0 */2 * 5 x", []string{"2026-11-13 00:00"}, []string{"2026-11-20 00:00", "2026-11-15 00:00"}},                    // * in one: both
		{"0 0 29 2 * x", []string{"2028-02-29 00:00"}, []string{"2026-02-28 00:00"}},
		{"@hourly x", []string{"2026-11-24 05:00"}, []string{"2026-11-24 05:01"}},
		{"@weekly x", []string{"2026-11-22 00:00"}, []string{"2026-11-24 00:00"}},
		{"@monthly x", []string{"2026-11-01 00:00"}, []string{"2026-11-24 00:00"}},
		{"@yearly x", []string{"2026-01-01 00:00"}, []string{"2026-11-01 00:00"}},
		{"@reboot x", nil, []string{"2026-01-01 00:00"}},
	} {
		j, err := parseJob(c.line)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		for _, s := range c.yes {
			if !j.due(at(s)) {
				t.Errorf("%s does not run at %s", c.line, s)
			}
		}
		for _, s := range c.not {
			if j.due(at(s)) {
				t.Errorf("%s runs at %s", c.line, s)
			}
		}
	}
}

func TestTable(t *testing.T) {
	tab, errs := parseTable("root", strings.Join([]string{
		"# a comment", "", "PATH = /opt/bin:/bin", "0 4 * * *\techo  two  blanks % # no comment", "MAILTO=\"\"", "  @reboot\techo up",
		"60 * * * * no", "* * * * *", "* * * * ", "@never x", "1-x * * * * no", "*/0 * * * * no", "* * 0 * * no", "* * * foo * no",
	}, "\n"))
	var got []string
	for _, j := range tab.jobs {
		got = append(got, fmt.Sprintf("%d %q %q", j.line, j.command, j.env))
	}
	want := []string{`4 "echo  two  blanks % # no comment" ["PATH=/opt/bin:/bin"]`, `6 "echo up" ["PATH=/opt/bin:/bin" "MAILTO="]`}
	if !slices.Equal(got, want) {
		t.Errorf("jobs: got %q, want %q", got, want)
	}
	if len(errs) != 8 || !strings.Contains(errs[0].Error(), `crontab of root, line 7: minute "60": expected numbers from 0 to 59`) {
		t.Errorf("%d errors: %v", len(errs), errs)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("*/5 1-3,5 * jan mon-fri cmd\n@daily x\nA=b\n")
	f.Add("0-59/300 * 31 12 7 x")
	f.Fuzz(func(t *testing.T, text string) {
		tab, _ := parseTable("u", text)
		for _, j := range tab.jobs {
			if j.command == "" || !j.reboot && (j.minute == 0 || j.hour == 0 || j.day == 0 || j.month == 0 || j.weekday == 0) {
				t.Fatalf("a job that can never run: %+v", j)
			}
			if j.minute>>60 != 0 || j.hour>>24 != 0 || j.day>>32 != 0 || j.day&1 != 0 || j.month>>13 != 0 || j.month&1 != 0 || j.weekday>>8 != 0 {
				t.Fatalf("bits out of range: %+v", j)
			}
		}
	})
}

func TestMinutes(t *testing.T) {
	now := at("2026-11-24 12:00")
	for _, c := range []struct {
		last time.Time
		want int
	}{
		{now.Add(-time.Minute), 1}, {now.Add(-3 * time.Minute), 3}, {now, 0},
		{now.Add(10 * time.Minute), 0},     // set back a little: none twice
		{now.Add(5 * time.Hour), 1},        // set back far: goes on from there
		{now.Add(-30 * 24 * time.Hour), 1}, // set forward far: no month of jobs
	} {
		if got := minutes(c.last, now.Add(20*time.Second)); len(got) != c.want {
			t.Errorf("after %v: %v, want %d", c.last, got, c.want)
		}
	}
}

// TestNoticesFiles loads crontabs that come, change, go and are not to be trusted.
func TestNoticesFiles(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(slog.New(slog.DiscardHandler), filepath.Join(dir, "crontabs"))
	d.load() // no folder yet
	jobs := func(want int) {
		t.Helper()
		if d.load(); d.jobs() != want {
			t.Errorf("%d jobs, want %d", d.jobs(), want)
		}
	}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		p := filepath.Join(d.dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	put("root", "* * * * * a\n", 0o600)
	jobs(1)
	put("root", "* * * * * a\n* * * * * b\n", 0o600)
	jobs(2)
	put("other", "* * * * * c\n", 0o666)
	put(".new-1", "* * * * * c\n", 0o600)
	jobs(2)
	if err := os.Remove(filepath.Join(d.dir, "root")); err != nil {
		t.Fatal(err)
	}
	jobs(0)
}

// TestNotTwiceAtATime starts a job that hangs a second time.
func TestNotTwiceAtATime(t *testing.T) {
	d := newDaemon(slog.New(slog.DiscardHandler), t.TempDir())
	tab, _ := parseTable("root", "* * * * * hang\n* * * * * quick\n")
	d.tables["root"] = &loaded{table: tab}
	release := make(chan struct{})
	var mu sync.Mutex
	ran := map[string]int{}
	quick := make(chan struct{}, 10)
	d.run = func(_ context.Context, _ string, j job) error {
		mu.Lock()
		ran[j.command]++
		mu.Unlock()
		if j.command == "hang" {
			<-release
		} else {
			quick <- struct{}{}
		}
		return nil
	}
	all := func(*job) bool { return true }
	d.start(t.Context(), all)
	<-quick
	d.start(t.Context(), func(j *job) bool { return j.command == "hang" })
	close(release)
	d.work.Wait()
	if ran["hang"] != 1 || ran["quick"] != 1 {
		t.Errorf("ran %v, want each once", ran)
	}
	d.start(t.Context(), all)
	d.work.Wait()
	if ran["hang"] != 2 || ran["quick"] != 2 {
		t.Errorf("ran %v, want each twice", ran)
	}
}

// TestService runs a job at the start, as a user, and sees what it does.
func TestService(t *testing.T) {
	dir := t.TempDir()
	user, err := ownName()
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(filepath.Join(dir, user), []byte("WHERE="+dir+"\n@reboot echo \"$USER $HOME\" >$WHERE/out.tmp; mv $WHERE/out.tmp $WHERE/.out\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	go func() {
		ended <- unit.Main(Run)(ctx, &unit.Call{Args: []string{"crond", "--config-dir", dir, "--bus", "/nonexistent", dir}, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", Getenv: func(string) string { return "" }})
	}()
	deadline := time.Now().Add(time.Minute)
	for {
		if text, err := os.ReadFile(filepath.Join(dir, ".out")); err == nil {
			if !strings.HasPrefix(string(text), user+" /") {
				t.Errorf("the job saw %q", text)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the job did not run")
		}
		select {
		case code := <-ended:
			t.Fatalf("the service ended with %d", code)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestCrontabCommand(t *testing.T) {
	dir := t.TempDir()
	call := func(in string, args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		code := Crontab(t.Context(), &unit.Call{
			Args: append([]string{"crontab", "-c", dir, "-u", "alice"}, args...), Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs, Dir: dir,
			Getenv: func(k string) string { return map[string]string{"EDITOR": "printf '0 1 * * * edited\\n' >"}[k] },
		})
		return out.String(), errs.String(), code
	}
	if _, errs, code := call("", "-l"); code != 1 || !strings.Contains(errs, "no crontab of alice") {
		t.Errorf("-l without one: %d, %q", code, errs)
	}
	if _, errs, code := call("* * * * * a", "-"); code != 0 {
		t.Errorf("-: %d, %q", code, errs)
	}
	if out, _, _ := call("", "-l"); out != "* * * * * a\n" {
		t.Errorf("-l: %q", out)
	}
	if _, errs, code := call("99 * * * * a\n", "-"); code != 1 || !strings.Contains(errs, "line 1") {
		t.Errorf("a faulty one: %d, %q", code, errs)
	}
	if out, _, _ := call("", "-l"); out != "* * * * * a\n" {
		t.Errorf("a faulty one was installed: %q", out)
	}
	if _, errs, code := call("", "-e"); code != 0 {
		t.Errorf("-e: %d, %q", code, errs)
	}
	if out, _, _ := call("", "-l"); out != "0 1 * * * edited\n" {
		t.Errorf("after -e: %q", out)
	}
	fi, err := os.Stat(filepath.Join(dir, "alice"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", fi, err)
	}
	if _, _, code := call("", "-r"); code != 0 {
		t.Errorf("-r: %d", code)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if _, _, code := call("", "-l", "-r"); code != 2 {
		t.Errorf("two actions: %d, want 2", code)
	}
	var errs bytes.Buffer
	if code := Crontab(t.Context(), &unit.Call{Args: []string{"crontab", "-u", "../x", "-l"}, Stdout: &errs, Stderr: &errs, Dir: dir}); code != 2 {
		t.Errorf("a user with a slash: %d, want 2", code)
	}
}
