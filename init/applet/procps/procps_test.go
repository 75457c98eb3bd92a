package procps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/init/applet/internal/ptytest"
	"weft/init/unit"
)

// TestMain lets the test binary be an applet or something to be found.
func TestMain(m *testing.M) {
	// With -race each process that is started here would wait a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	switch os.Getenv("BE") {
	case "top":
		os.Exit(Top(context.Background(), unit.OSCall()))
	case "ps":
		os.Exit(Ps(context.Background(), unit.OSCall()))
	case "target":
		fmt.Println("here")
		select {}
	}
	os.Exit(m.Run())
}

func call(t *testing.T, f unit.Func, args ...string) (out, errOut string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = f(t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(""), Stdout: &o, Stderr: &e, Dir: "/", Getenv: func(string) string { return "" }})
	return o.String(), e.String(), code
}

// fakeProc makes a /proc; each process is a stat line and a command line.
func fakeProc(t *testing.T, files map[string]string, processes ...string) proc {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(name, text)
	}
	for _, p := range processes {
		stat, args, _ := strings.Cut(p, " | ")
		pid, _, _ := strings.Cut(stat, " ")
		write(pid+"/stat", stat+"\n")
		if args != "" {
			args = strings.ReplaceAll(args, " ", "\x00") + "\x00"
		}
		write(pid+"/cmdline", args)
	}
	return proc(dir)
}

// stat is a line of /proc/PID/stat.
func stat(pid int, comm, state string, ppid, ticks, nice, start, vszKiB, rssPages int) string {
	return fmt.Sprintf("%d (%s) %s %d %d %d 0 -1 4194560 1 2 3 4 %d 0 0 0 20 %d 3 0 %d %d %d 18446744073709551615 1 1 0",
		pid, comm, state, ppid, pid, pid, ticks, nice, start, vszKiB<<10, rssPages)
}

func pages(kib int) int { return kib << 10 / os.Getpagesize() }

const meminfo = `MemTotal:         245940 kB
MemFree:          120000 kB
MemAvailable:     180000 kB
Buffers:            4000 kB
Cached:            50000 kB
SwapCached:            7 kB
Shmem:               900 kB
SReclaimable:       6000 kB
SwapTotal:          1024 kB
SwapFree:           1000 kB
`

func small(t *testing.T) proc {
	return fakeProc(t, map[string]string{
		"meminfo": meminfo, "uptime": "93784.50 160000.00\n", "loadavg": "0.50 0.25 0.10 1/60 321\n",
		"stat": "cpu  100 10 50 800 20 10 10 0 0 0\ncpu0 1\n", "self/stat": "", "version": "x",
	},
		stat(1, "init", "S", 0, 6100, 0, 0, 1259000, pages(20480))+" | /sbin/init",
		stat(2, "kthreadd", "S", 0, 0, -5, 0, 0, 0),
		stat(30, "a) S (b", "R", 1, 12, 5, 9378400, 2000, pages(800))+" | -ash -c a\x1b[2J",
		stat(31, "gone", "Z", 1, 0, 0, 9378400, 0, 0),
	)
}

func TestPs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the owner of the files made here must be root")
	}
	root := small(t)
	run := func(args ...string) string {
		t.Helper()
		out, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int { return ps(ctx, c, root) }, append([]string{"ps"}, args...)...)
		if code != 0 || errOut != "" {
			t.Errorf("ps %v: %d %q", args, code, errOut)
		}
		return out
	}
	want := `  PID USER       VSZ STAT COMMAND
    1 root     1229m S    /sbin/init
    2 root         0 SW<  [kthreadd]
   30 root      2000 RN   -ash -c a?[2J
   31 root         0 Z    [gone]
`
	for _, args := range [][]string{nil, {"ww"}, {"-ww"}, {"aux"}, {"-ef"}} {
		if d := cmp.Diff(want, run(args...)); d != "" {
			t.Errorf("ps %v (-want +got):\n%s", args, d)
		}
	}
	if d := cmp.Diff(want[:strings.Index(want, "\n")+1]+"    1 root     1229m S    /sbin/init\n", strings.Join(strings.SplitAfter(run("w"), "\n")[:2], "")); d != "" {
		t.Error(d)
	}
	want = `  PID   WHO     RSS STAT  NI TIME       ELAPSED COMM
    1     0   20480 S      0 1:01    1-02:03:04 init
    2     0       0 SW<   -5 0:00    1-02:03:04 kthreadd
   30     0     800 RN     5 0:00         00:00 a) S (b
   31     0       0 Z      0 0:00         00:00 gone
`
	if d := cmp.Diff(want, run("-o", "pid,uid=  WHO,rss=    RSS", "-o", "stat,nice,time,etime,comm=COMM")); d != "" {
		t.Errorf("ps -o (-want +got):\n%s", d)
	}
	if got := run("-o", "pid="); got != "    1\n    2\n   30\n   31\n" {
		t.Errorf("without a header: %q", got)
	}
	if got := run("-o", "tty,group,pgid,sid,ppid,nlwp"); !strings.HasPrefix(got, "TT     GROUP     PGID   SID  PPID NLWP\n?      root         1     1     0    3\n") {
		t.Errorf("%q", got)
	}
}

func TestWrongCalls(t *testing.T) {
	for _, tc := range []struct {
		f    unit.Func
		line string
	}{
		{Ps, "ps -q"}, {Ps, "ps -o nope"}, {Ps, "ps -o ,"}, {Ps, "ps xyz"}, {Top, "top -x"}, {Top, "top -n 0"}, {Top, "top -d x"}, {Top, "top -d NaN"},
		{Free, "free -z"}, {Free, "free x"}, {Uptime, "uptime -s"}, {Pidof, "pidof"}, {Pidof, "pidof -o x y"}, {Killall, "killall"},
		{Killall, "killall -NOSUCH x"}, {Killall, "killall -s NOSUCH x"}, {Pgrep, "pgrep"}, {Pgrep, "pgrep ("}, {Pgrep, "pgrep -no x"}, {Pgrep, "pkill -a x"},
		{Pgrep, "pgrep -P x"}, {Pgrep, "pgrep a b"},
	} {
		args := strings.Fields(tc.line)
		out, errOut, code := call(t, tc.f, args...)
		if code != 2 || out != "" || !strings.Contains(errOut, "Usage: "+args[0]) {
			t.Errorf("%s: code %d, %q %q", tc.line, code, out, errOut)
		}
	}
}

func TestFree(t *testing.T) {
	root := small(t)
	f := func(ctx context.Context, c *unit.Call) int { return free(ctx, c, root) }
	want := `              total        used        free      shared  buff/cache   available
Mem:         245940       65940      120000         900       60000      180000
Swap:          1024          24        1000
`
	out, errOut, code := call(t, f, "free")
	if d := cmp.Diff(want, out); d != "" || errOut != "" || code != 0 {
		t.Errorf("%d %q\n%s", code, errOut, d)
	}
	if out, _, _ := call(t, f, "free", "-m"); !strings.Contains(out, "Mem:            240          64         117           0          58         175\n") {
		t.Error(out)
	}
	if out, _, _ := call(t, f, "free", "-h"); !strings.Contains(out, "Mem:         240.2M       64.4M      117.2M      900.0K       58.6M      175.8M\n") {
		t.Error(out)
	}
	if _, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int { return free(ctx, c, "/nonexistent") }, "free"); code != 1 || !strings.Contains(errOut, "/nonexistent/meminfo") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestUptime(t *testing.T) {
	now := time.Date(2026, 11, 24, 15, 4, 5, 0, time.Local)
	for text, want := range map[string]string{
		"59.99 1":     " 15:04:05 up 0 min,  load average: 0.50, 0.25, 0.10\n",
		"3599.0 1":    " 15:04:05 up 59 min,  load average: 0.50, 0.25, 0.10\n",
		"3660 1":      " 15:04:05 up  1:01,  load average: 0.50, 0.25, 0.10\n",
		"90000.00 1":  " 15:04:05 up 1 day,  1:00,  load average: 0.50, 0.25, 0.10\n",
		"172860.00 1": " 15:04:05 up 2 days, 1 min,  load average: 0.50, 0.25, 0.10\n",
	} {
		root := fakeProc(t, map[string]string{"uptime": text, "loadavg": "0.50 0.25 0.10 1/60 321\n"})
		out, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int { return uptime(ctx, c, root, now) }, "uptime")
		if out != want || code != 0 {
			t.Errorf("%q: %d %q %q, want %q", text, code, out, errOut, want)
		}
	}
	root := fakeProc(t, map[string]string{"uptime": "x y", "loadavg": "0 0 0 1/60 321\n"})
	if _, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int { return uptime(ctx, c, root, now) }, "uptime"); code != 1 || !strings.Contains(errOut, "not a number") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestTopBatch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the owner of the files made here must be root")
	}
	root := small(t)
	var waited []time.Duration
	change := func(_ context.Context, d time.Duration) error {
		waited = append(waited, d)
		if len(waited) > 1 {
			return nil
		}
		// 200 ticks later: 30 has used 100 of them, and 40 is new.
		for name, text := range map[string]string{
			"stat":       "cpu  190 10 60 880 30 10 20 0 0 0\n",
			"30/stat":    stat(30, "a) S (b", "R", 1, 112, 5, 9378400, 2000, pages(800)),
			"30/cmdline": "changed\x00",
			"40/stat":    stat(40, "new", "S", 1, 20, 0, 9378500, 2000, pages(24600)),
			"40/cmdline": "new\x00one\x00",
		} {
			path := filepath.Join(string(root), name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		return nil
	}
	out, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int { return top(ctx, c, root, change) }, "top", "-b", "-n2", "-d", "2.5")
	want := `Mem: 65940K used, 120000K free, 900K shrd, 4000K buff, 56000K cached, 180000K available
CPU:  45% usr   5% sys   0% nic  40% idle   5% io   0% irq   5% sirq
Load average: 0.50 0.25 0.10 1/60 321
  PID  PPID USER     STAT   RSS %RSS %CPU COMMAND
   30     1 root     RN     800   0%  50% -ash -c a?[2J
   40     1 root     S    24600  10%  10% new one
    1     0 root     S    20480   8%   0% /sbin/init
    2     0 root     SW<      0   0%   0% [kthreadd]
   31     1 root     Z        0   0%   0% [gone]
`
	if got, _, _ := strings.Cut(out, "Mem: 65940K used, 120000K free, 900K shrd, 4000K buff, 56000K cached, 180000K available\nCPU:   0%"); cmp.Diff(want, got) != "" || code != 0 {
		t.Errorf("%d %q (-want +got):\n%s", code, errOut, cmp.Diff(want, got))
	}
	if n := strings.Count(out, "Load average"); n != 2 {
		t.Errorf("%d screens, want 2", n)
	}
	if want := []time.Duration{firstInterval, 2500 * time.Millisecond}; !slices.Equal(waited, want) {
		t.Errorf("waited %v, want %v", waited, want)
	}
}

func TestTopOrder(t *testing.T) {
	snap := &snapshot{names: newNames(), load: []string{"0"}, entries: []entry{
		{process: process{pid: 1, rss: 3, ticks: 1}, used: 2}, {process: process{pid: 2, rss: 9, ticks: 7}}, {process: process{pid: 3, rss: 5, ticks: 8}, used: 1},
	}}
	for _, tc := range []struct {
		o    order
		want []int
	}{
		{order{by: 'P'}, []int{1, 3, 2}}, {order{by: 'M'}, []int{2, 3, 1}}, {order{by: 'T'}, []int{3, 2, 1}},
		{order{by: 'N'}, []int{1, 2, 3}}, {order{by: 'N', reverse: true}, []int{3, 2, 1}},
	} {
		snap.sort(tc.o)
		var got []int
		for _, e := range snap.entries {
			got = append(got, e.pid)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%c reverse %v: %v, want %v", tc.o.by, tc.o.reverse, got, tc.want)
		}
	}
	if got := len(snap.rows(order{by: 'P'}, 5)); got != 5 {
		t.Errorf("%d rows, the terminal has 5", got)
	}
}

func TestTopTerminal(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh here")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sh, "-c", `before=$(stty -g); "$0" -d 60; code=$?; [ "$before" = "$(stty -g)" ] && echo "ended with $code, restored"`, exe)
	cmd.Env = append(os.Environ(), "BE=top")
	s := ptytest.Start(t, 100, 40, cmd)
	s.WaitFor("Load average:")
	s.WaitFor("%RSS %CPU COMMAND")
	s.Send("N")
	s.Until("the lowest process ids first", func(screen string) bool {
		var pids []int
		for line := range strings.Lines(screen) {
			if f := strings.Fields(line); len(f) > 6 {
				if n, err := strconv.Atoi(f[0]); err == nil {
					pids = append(pids, n)
				}
			}
		}
		return len(pids) > 2 && slices.IsSorted(pids)
	})
	s.Resize(60, 6)
	s.Until("a smaller screen", func(screen string) bool { return strings.Count(screen, "\n") == 5 && strings.Contains(screen, "Mem:") })
	s.Resize(100, 40)
	s.Send("q")
	s.WaitFor("ended with 0, restored")
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTopEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	code := top(ctx, &unit.Call{Args: []string{"top", "-b"}, Stdout: &out, Stderr: &out}, small(t), func(ctx context.Context, _ time.Duration) error {
		cancel()
		return ctx.Err()
	})
	if code != 0 || out.Len() != 0 {
		t.Errorf("%d %q", code, &out)
	}
}

func TestNoTerminal(t *testing.T) {
	if _, errOut, code := call(t, Top, "top"); code != 1 || !strings.Contains(errOut, "use -b") {
		t.Errorf("%d %q", code, errOut)
	}
}

// target starts a process that shows up under a name of its own.
func target(t *testing.T, args ...string) (name string, cmd *exec.Cmd) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name = fmt.Sprintf("tgt%d", os.Getpid())
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(link, args...)
	cmd.Env = append(os.Environ(), "BE=target")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return name, cmd
}

func TestFindAndKill(t *testing.T) {
	name, a := target(t, "--first", "word")
	_, b := target(t, "--second")
	pidA, pidB := strconv.Itoa(a.Process.Pid), strconv.Itoa(b.Process.Pid)
	for _, tc := range []struct {
		f    unit.Func
		line string
		want string
		code int
	}{
		{Pidof, "pidof " + name, pidB + " " + pidA + "\n", 0},
		{Pidof, "pidof -s " + name, pidB + "\n", 0},
		{Pidof, "pidof -o " + pidA + " " + name, pidB + "\n", 0},
		{Pidof, "pidof " + a.Path, pidA + "\n", 0},
		{Pidof, "pidof " + name + "x", "", 1},
		{Pgrep, "pgrep " + name[:4], "", 0}, // others may fit too: below
		{Pgrep, "pgrep -x " + name, pidA + "\n" + pidB + "\n", 0},
		{Pgrep, "pgrep -x " + name[:4], "", 1},
		{Pgrep, "pgrep -n " + name, pidB + "\n", 0},
		{Pgrep, "pgrep -o " + name, pidA + "\n", 0},
		{Pgrep, "pgrep -c " + name, "2\n", 0},
		{Pgrep, "pgrep -lf " + name + ".*--first", pidA + " " + name + "\n", 0},
		{Pgrep, "pgrep -af " + name + ".*d$", pidA + " " + a.Path + " --first word\n" + pidB + " " + b.Path + " --second\n", 0},
		{Pgrep, "pgrep -P " + strconv.Itoa(os.Getpid()) + " -f first", pidA + "\n", 0},
		{Pgrep, "pgrep -P 1 " + name, "", 1},
	} {
		out, errOut, code := call(t, tc.f, strings.Fields(tc.line)...)
		if tc.line == "pgrep "+name[:4] {
			out = ""
		}
		if out != tc.want || errOut != "" || code != tc.code {
			t.Errorf("%s: %d %q %q, want %d %q", tc.line, code, out, errOut, tc.code, tc.want)
		}
	}
	if _, errOut, code := call(t, Killall, "killall", "-0", name, name+"x"); code != 1 || errOut != "killall: "+name+"x: no process killed\n" {
		t.Errorf("%d %q", code, errOut)
	}
	if _, errOut, code := call(t, Killall, "killall", "-q", name+"x"); code != 1 || errOut != "" {
		t.Errorf("%d %q", code, errOut)
	}
	if out, errOut, code := call(t, Pgrep, "pkill", "-e", "-INT", "-f", name+".*--second"); code != 0 || errOut != "" || out != name+" killed (pid "+pidB+")\n" {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	b.Wait()
	if _, errOut, code := call(t, Killall, "killall", "-KILL", name); code != 0 {
		t.Errorf("%d %q", code, errOut)
	}
	if got := b.ProcessState.String(); got != "signal: interrupt" {
		t.Errorf("the second ended by %s", got)
	}
	a.Wait()
	if got := a.ProcessState.String(); got != "signal: killed" {
		t.Errorf("the first ended by %s", got)
	}
	if out, _, code := call(t, Pgrep, "pgrep", "-x", name); code != 1 || out != "" {
		t.Errorf("still there: %q", out)
	}
}

func TestListSignals(t *testing.T) {
	out, _, code := call(t, Killall, "killall", "-l")
	if code != 0 || !strings.Contains(out, " 1) HUP\n") || !strings.Contains(out, "15) TERM\n") {
		t.Errorf("%d %q", code, out)
	}
}

func TestNames(t *testing.T) {
	root := fakeProc(t, nil,
		stat(5, "ash", "S", 1, 0, 0, 0, 1, 1)+" | -ash",
		stat(6, "a-very-long-scr", "S", 1, 0, 0, 0, 1, 1)+" | /bin/sh /usr/sbin/a-very-long-script -x",
		stat(7, "exe", "S", 1, 0, 0, 0, 1, 1)+" | /usr/sbin/logd -f")
	list, err := root.processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		i    int
		name string
		want bool
	}{{0, "ash", true}, {0, "sh", false}, {1, "a-very-long-script", true}, {1, "sh", true}, {1, "a-very-long-scrap", false}, {2, "logd", true}, {2, "exe", true}, {2, "/usr/sbin/logd", true}, {2, "/sbin/logd", false}} {
		if got := root.named(&list[tc.i], tc.name); got != tc.want {
			t.Errorf("%d goes by %q: %v", list[tc.i].pid, tc.name, got)
		}
	}
}

func TestTerminals(t *testing.T) {
	for dev, want := range map[uint32]string{0: "?", 4<<8 | 1: "tty1", 4<<8 | 64: "ttyS0", 136<<8 | 7: "pts/7", 5<<8 | 1: "console", 229<<8 | 2: "hvc2", 204<<8 | 64: "ttyAMA0", 9 << 8: "9:0"} {
		if got := terminal(dev); got != want {
			t.Errorf("%d: %s, want %s", dev, got, want)
		}
	}
}

// TestReal holds the parsers against this machine's kernel.
func TestReal(t *testing.T) {
	out, errOut, code := call(t, Ps, "ps", "-o", "pid,comm")
	if code != 0 || !strings.Contains(out, strconv.Itoa(os.Getpid())+" ") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	if _, errOut, code := call(t, func(ctx context.Context, c *unit.Call) int {
		return top(ctx, c, system, func(context.Context, time.Duration) error { return nil })
	}, "top", "-bn1"); code != 0 {
		t.Error(errOut)
	}
	for _, f := range []unit.Func{Free, Uptime} {
		if _, errOut, code := call(t, f, "x"); code != 0 {
			t.Error(errOut)
		}
	}
}

func TestPsTerminal(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-o", "args")
	cmd.Env = append(os.Environ(), "BE=ps", strings.Repeat("x", 3)+"=y")
	cmd.Args = append(cmd.Args, "-a")
	cmd.Args[0] = strings.Repeat("very-long-name-", 10)
	s := ptytest.Start(t, 40, 200, cmd)
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.Until("a cut line", func(screen string) bool {
		return slices.Contains(strings.Split(screen, "\n"), strings.Repeat("very-long-name-", 10)[:40])
	})
}

func FuzzStat(f *testing.F) {
	f.Add([]byte(stat(30, "a) (b", "R", 1, 12, 5, 93000, 2000, 7)))
	f.Add([]byte("1 () S"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseStat(b); err == nil && !bytes.Contains(b, []byte(p.comm)) {
			t.Errorf("%q has no %q", b, p.comm)
		}
	})
}

func FuzzMemory(f *testing.F) {
	f.Add(meminfo)
	f.Add("MemTotal: 18446744073709551615 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := parseMemory(text); err == nil && m.used() > m.total {
			t.Errorf("%+v", m)
		}
		parseCPU(text)
	})
}
