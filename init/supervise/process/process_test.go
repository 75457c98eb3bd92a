package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/supervise"
	"weft/init/unit"
)

// patience bounds waits for things that happen; it is reached only by failures.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ConfineName {
		os.Exit(Confine(context.Background(), unit.OSCall()))
	}
	if mode := os.Getenv("WEFT_TEST_HELPER"); mode != "" {
		helper(mode)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper is what the processes under test do.
func helper(mode string) {
	mode, arg, _ := strings.Cut(mode, " ")
	switch mode {
	case "exit":
		n, _ := strconv.Atoi(arg)
		os.Exit(n)
	case "print":
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
		fmt.Println("<4>with priority")
		fmt.Print("no newline")
	case "sleep":
		fmt.Println("up")
		<-time.After(patience)
	case "status":
		text, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(text)) {
			for _, k := range []string{"CapBnd:", "CapAmb:", "CapEff:", "NoNewPrivs:", "Uid:", "Gid:"} {
				if strings.HasPrefix(line, k) {
					fmt.Println(strings.Join(strings.Fields(line), " "))
				}
			}
		}
		nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
		fmt.Println("nice", 20-nice)
		text, _ = os.ReadFile("/proc/self/limits")
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Max locked memory") || strings.HasPrefix(line, "Max core file size") {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
		dir, _ := os.Getwd()
		fmt.Println("dir", dir, "var", os.Getenv("WEFT_VAR"), "notify", os.Getenv("NOTIFY_SOCKET"), "usec", os.Getenv("WATCHDOG_USEC"))
		fmt.Println("argv0", os.Args[0])
	case "parent": // leaves a child behind and ends
		attr := &syscall.ProcAttr{Env: []string{"WEFT_TEST_HELPER=sleep"}, Files: []uintptr{0, 1, 2}}
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"child"}, attr)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("child", pid)
	case "eat":
		var keep [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			keep = append(keep, b)
			if len(keep) > 4096 {
				os.Exit(7)
			}
		}
	case "notify":
		if err := unit.Notify(os.Getenv("NOTIFY_SOCKET"), arg); err != nil {
			os.Exit(1)
		}
	}
}

// recorder is the Events of a test.
type recorder struct{ ch chan string }

func (r recorder) Started(id string, run, pid int) {
	r.ch <- fmt.Sprintf("%s %d started %d", id, run, pid)
}
func (r recorder) Exited(id string, run int, x supervise.Exit) {
	r.ch <- fmt.Sprintf("%s %d ended %v", id, run, x)
}

// bench is a Runner with all around it.
type bench struct {
	t *testing.T
	*Runner
	rec   recorder
	lines chan string
	self  string
}

func newBench(t *testing.T, mod ...func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, rec: recorder{make(chan string, 100)}, lines: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	addr := filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if b.self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			b.lines <- string(buf[:n])
		}
	})
	o := Options{Reaper: NewReaper(), Forward: NewForwarder(addr, 1<<16), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, f := range mod {
		f(&o)
	}
	wg.Go(func() { o.Reaper.Run(ctx) })
	wg.Go(func() { o.Forward.Run(ctx) })
	b.Runner, err = NewRunner(ctx, o, b.rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		conn.Close()
		b.Wait()
		wg.Wait()
	})
	return b
}

func (b *bench) spec(mode string, mod ...func(*supervise.Spec)) *supervise.Spec {
	s := &supervise.Spec{ID: "unit-" + strings.Fields(mode)[0], Process: supervise.Process{
		Command: []string{b.self}, Env: []string{"WEFT_TEST_HELPER=" + mode}, Stdout: true, Stderr: true, Tag: "tagged",
	}}
	for _, f := range mod {
		f(s)
	}
	return s
}

func (b *bench) event() string {
	b.t.Helper()
	select {
	case e := <-b.rec.ch:
		return e
	case <-time.After(patience):
		b.t.Fatal("no event")
		return ""
	}
}

func (b *bench) line() string {
	b.t.Helper()
	select {
	case l := <-b.lines:
		return l
	case <-time.After(patience):
		b.t.Fatal("no log line")
		return ""
	}
}

// start runs a spec and returns its pid.
func (b *bench) start(s *supervise.Spec) int {
	b.t.Helper()
	b.Do(supervise.Spawn{Spec: s, Run: 1})
	e := b.event()
	f := strings.Fields(e)
	if len(f) != 4 || f[2] != "started" {
		b.t.Fatalf("event %q", e)
	}
	pid, _ := strconv.Atoi(f[3])
	return pid
}

func (b *bench) ends(want string) {
	b.t.Helper()
	e := b.event()
	if _, got, _ := strings.Cut(e, " ended "); got != want {
		b.t.Fatalf("event %q, want ended %s", e, want)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: changes users, capabilities and limits")
	}
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	b.start(b.spec("exit 0"))
	b.ends("exit code 0")
	b.start(b.spec("exit 3"))
	b.ends("exit code 3")
	pid := b.start(b.spec("sleep"))
	b.Do(supervise.Signal{ID: "unit-sleep", PID: pid, Sig: syscall.SIGTERM})
	b.ends("killed by signal 15 (terminated)")
	pid = b.start(b.spec("sleep"))
	b.Do(supervise.Kill{ID: "unit-sleep", PID: pid})
	b.ends("killed by signal 9 (killed)")
	if err := b.o.Reaper.Signal(pid, syscall.SIGTERM); err != syscall.ESRCH {
		t.Errorf("signal to a process that is gone: %v", err)
	}
	if b.Do(supervise.Down{}) {
		t.Error("Down is not a runner's action")
	}
}

func TestNotStarted(t *testing.T) {
	b := newBench(t)
	for _, tc := range []struct {
		name, want string
		mod        func(*supervise.Spec)
	}{
		{"no program", "execute /no/such/program: no such file", func(s *supervise.Spec) { s.Process.Command = []string{"/no/such/program"} }},
		{"not in path", "nosuchprogram: not found in " + Path, func(s *supervise.Spec) { s.Process.Command = []string{"nosuchprogram"} }},
		{"no user", `user "nosuchuser" is not in /etc/passwd`, func(s *supervise.Spec) { s.Process.User = "nosuchuser" }},
		{"no group", `group "nosuchgroup" is not in /etc/group`, func(s *supervise.Spec) { s.Process.Group = "nosuchgroup" }},
		{"no function", `no function "nosuch"`, func(s *supervise.Spec) { s.Process.Command = []string{"@nosuch"} }},
		{"no folder", "no such file", func(s *supervise.Spec) { s.Process.Dir = "/no/such/folder" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.t = t
			b.Do(supervise.Spawn{Spec: b.spec("exit 0", tc.mod), Run: 4})
			if e := b.event(); !strings.HasPrefix(e, "unit-exit 4 ended not started: ") || !strings.Contains(e, tc.want) {
				t.Errorf("event %q, want %q in it", e, tc.want)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	b := newBench(t)
	pid := b.start(b.spec("print", func(s *supervise.Spec) { s.Process.Facility = "local0" }))
	b.ends("exit code 0")
	got := map[string]bool{}
	for range 4 {
		got[b.line()] = true
	}
	for _, want := range []string{"<134>tagged[%d]: to stdout", "<131>tagged[%d]: to stderr", "<132>tagged[%d]: with priority", "<134>tagged[%d]: no newline"} {
		if w := fmt.Sprintf(want, pid); !got[w] {
			t.Errorf("%q is missing in %v", w, got)
		}
	}
	b.start(b.spec("print", func(s *supervise.Spec) { s.Process.Stdout = false }))
	b.ends("exit code 0")
	if l := b.line(); !strings.HasSuffix(l, "to stderr") || !strings.HasPrefix(l, "<27>") {
		t.Errorf("line %q, want stderr alone with facility daemon", l)
	}
}

// forAll puts the test program where every user may execute it.
func (b *bench) forAll() {
	b.t.Helper()
	dir, err := os.MkdirTemp("", "weft-process-test-")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { os.RemoveAll(dir) })
	text, err := os.ReadFile(b.self)
	if err != nil {
		b.t.Fatal(err)
	}
	b.self = filepath.Join(dir, "helper")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(b.self, text, 0o755)); err != nil {
		b.t.Fatal(err)
	}
}

// statusOf runs the status helper and returns its lines.
func statusOf(b *bench, mod ...func(*supervise.Spec)) string {
	b.t.Helper()
	b.start(b.spec("status", mod...))
	b.ends("exit code 0")
	var lines []string
	for {
		_, l, _ := strings.Cut(b.line(), "]: ")
		lines = append(lines, l)
		if strings.HasPrefix(l, "argv0") {
			return "\n" + strings.Join(lines, "\n") + "\n"
		}
	}
}

func wantLines(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, "\n"+w+"\n") {
			t.Errorf("line %q is missing in:%s", w, got)
		}
	}
}

func TestConfinementOfRoot(t *testing.T) {
	needRoot(t)
	b := newBench(t)
	before, _ := os.ReadFile("/proc/thread-self/status")
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice: the tests may run under nice(1)
	if err != nil {
		t.Fatal(err)
	}
	got := statusOf(b, func(s *supervise.Spec) {
		p := &s.Process
		p.Bounded, p.Capabilities, p.NoNewPrivs, p.Nice = true, []string{"net_admin", "net_raw"}, true, 5
	})
	wantLines(t, got, "CapBnd: 0000000000003000", "CapEff: 0000000000003000", "NoNewPrivs: 1", "nice 5", "Uid: 0 0 0 0")
	wantLines(t, statusOf(b, func(s *supervise.Spec) { s.Process.Bounded = true }), "CapBnd: 0000000000000000", "CapEff: 0000000000000000")

	// This program keeps all that it had.
	after := statusOf(b)
	wantLines(t, after, "NoNewPrivs: 0", fmt.Sprint("nice ", 20-own))
	for line := range strings.Lines(string(before)) {
		if strings.HasPrefix(line, "CapBnd:") {
			wantLines(t, after, strings.Join(strings.Fields(line), " "))
		}
	}
}

func TestConfinementOfUser(t *testing.T) {
	needRoot(t)
	b := newBench(t)
	b.forAll()
	dir := filepath.Join(t.TempDir(), "state")
	got := statusOf(b, func(s *supervise.Spec) {
		p := &s.Process
		p.User, p.Group, p.Bounded, p.Capabilities = "nobody", "nogroup", true, []string{"net_bind_service"}
		p.StateDir = dir
	})
	wantLines(t, got, "Uid: 65534 65534 65534 65534", "CapEff: 0000000000000400", "CapAmb: 0000000000000400")
	st, err := os.Stat(dir)
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 65534 {
		t.Errorf("state folder: %v, %v", st, err)
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	b := newBench(t, func(o *Options) { o.Notify = "/n" })
	got := statusOf(b, func(s *supervise.Spec) {
		s.Native, s.Watchdog = true, 2*time.Second
		p := &s.Process
		p.Limits = []supervise.Limit{{Name: "memlock", Soft: 4096, Hard: 8192}, {Name: "core", Soft: 0, Hard: 4096}}
		p.Env = append(p.Env, "WEFT_VAR=x")
		p.Dir = "/tmp"
	})
	wantLines(t, got, "Max locked memory 4096 8192 bytes", "Max core file size 0 4096 bytes",
		"dir /tmp var x notify /n usec 2000000", "argv0 "+b.self)
}

func TestRun(t *testing.T) {
	b := newBench(t)
	env := func(mode string) []string { return []string{"WEFT_TEST_HELPER=" + mode} }
	if x := b.Run(t.Context(), []string{b.self}, env("exit 4"), "script"); x.Code != 4 {
		t.Errorf("exit %v", x)
	}
	if x := b.Run(t.Context(), []string{"/no/such/script"}, nil, "script"); x.Code != 127 || !strings.Contains(x.Err, "/no/such/script") {
		t.Errorf("exit %v", x)
	}
	b.Run(t.Context(), []string{b.self}, env("print"), "script")
	for range 4 {
		if l := b.line(); !strings.Contains(l, ">script[") {
			t.Errorf("line %q", l)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan supervise.Exit, 1)
	go func() { got <- b.Run(ctx, []string{b.self}, env("sleep"), "script") }()
	b.line() // it is up
	cancel()
	if x := <-got; x.Signal != syscall.SIGTERM {
		t.Errorf("exit %v", x)
	}
}

func TestPidfile(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(t.TempDir(), "run", "x.pid")
	pid := b.start(b.spec("sleep", func(s *supervise.Spec) { s.Process.Pidfile = file }))
	if text, err := os.ReadFile(file); err != nil || string(text) != fmt.Sprintln(pid) {
		t.Errorf("%q, %v", text, err)
	}
	b.Do(supervise.Kill{ID: "unit-sleep", PID: pid})
	b.ends("killed by signal 9 (killed)")
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestFunctions(t *testing.T) {
	b := newBench(t, func(o *Options) {
		o.Functions = map[string]func(context.Context) error{
			"ok":    func(context.Context) error { return nil },
			"bad":   func(context.Context) error { return errors.New("no") },
			"panic": func(context.Context) error { panic("boom") },
			"long":  func(ctx context.Context) error { <-ctx.Done(); return nil },
		}
	})
	for name, want := range map[string]string{"ok": "exit code 0", "bad": "exit code 1", "panic": "exit code 2"} {
		if pid := b.start(b.spec("f", func(s *supervise.Spec) { s.Process.Command = []string{"@" + name} })); pid != functionPID {
			t.Errorf("pid %d", pid)
		}
		b.ends(want)
	}
	b.start(b.spec("f", func(s *supervise.Spec) { s.Process.Command = []string{"@long"} }))
	b.Do(supervise.Signal{ID: "unit-f", PID: functionPID, Sig: syscall.SIGTERM})
	b.ends("exit code 0")
}

func TestReaperTakesOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	b := newBench(t)
	b.start(b.spec("parent"))
	b.ends("exit code 0")
	child := b.child()
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for b.o.Reaper.Orphans() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the orphan stays a zombie")
		}
		syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
	}
	if err := syscall.Kill(child, 0); err != syscall.ESRCH {
		t.Errorf("the orphan is there still: %v", err)
	}
}

// child is the number that the parent helper prints.
func (b *bench) child() int {
	b.t.Helper()
	for {
		if _, s, ok := strings.Cut(b.line(), ": child "); ok {
			n, err := strconv.Atoi(s)
			if err != nil {
				b.t.Fatal(err)
			}
			return n
		}
	}
}

// cgroups opens a private subtree of the machine's cgroup v2.
func cgroups(t *testing.T) *Cgroups {
	t.Helper()
	needRoot(t)
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for s := bufio.NewScanner(mounts); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		root := filepath.Join(f[1], fmt.Sprintf("weft-test-%d-%s", os.Getpid(), filepath.Base(t.TempDir())))
		// Controllers are handed down where the machine has them here.
		for _, ctl := range []string{"+memory", "+pids"} {
			os.WriteFile(filepath.Join(f[1], "cgroup.subtree_control"), []byte(ctl), 0)
		}
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Skipf("needs a writable cgroup v2: %v", err)
		}
		t.Cleanup(func() {
			os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
			deadline := time.Now().Add(patience)
			for {
				entries, _ := filepath.Glob(filepath.Join(root, "services", "*", "cgroup.procs"))
				for _, e := range entries {
					syscall.Rmdir(filepath.Dir(e))
				}
				syscall.Rmdir(filepath.Join(root, "services"))
				if err := syscall.Rmdir(root); err == nil || err == syscall.ENOENT {
					return
				} else if time.Now().After(deadline) {
					t.Errorf("control group left: %v", err)
					return
				}
				syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
			}
		})
		c, err := OpenCgroups(root)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Skip("needs cgroup v2, and none is mounted")
	return nil
}

func TestCgroupKillReachesChildren(t *testing.T) {
	c := cgroups(t)
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	b := newBench(t, func(o *Options) { o.Cgroups = c })
	gone := func(pid int) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for syscall.Kill(pid, 0) != syscall.ESRCH {
			if time.Now().After(deadline) {
				t.Fatalf("process %d lives", pid)
			}
			syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
		}
	}

	b.start(b.spec("parent", func(s *supervise.Spec) { s.KeepChildren = true }))
	b.ends("exit code 0")
	kept := b.child()
	b.Do(supervise.Sweep{ID: "unit-parent"})
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", kept)); err != nil || !strings.Contains(string(text), "/services/unit-parent") {
		t.Errorf("the child is not in the unit's group, or was killed: %q, %v", text, err)
	}

	b.start(b.spec("parent"))
	b.ends("exit code 0")
	child := b.child()
	b.Do(supervise.Sweep{ID: "unit-parent"})
	gone(child)
	gone(kept) // the same group, and now nobody asked to keep it
}

func TestOutOfMemory(t *testing.T) {
	c := cgroups(t)
	if !c.controllers["memory"] {
		t.Skip("needs the memory controller in cgroup v2; this machine has it elsewhere")
	}
	b := newBench(t, func(o *Options) { o.Cgroups = c })
	b.start(b.spec("eat", func(s *supervise.Spec) { s.Process.MemoryMax = 48 << 20 }))
	b.ends("killed: out of memory")
}

func TestNotify(t *testing.T) {
	l, err := ListenNotify(filepath.Join(t.TempDir(), "run", "notify"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	msgs, done := make(chan Message, 10), make(chan error, 1)
	go func() { done <- l.Run(ctx, func(m Message) { msgs <- m }) }()
	b := newBench(t, func(o *Options) { o.Notify = l.Path() })
	pid := b.start(b.spec("notify STATUS=fine\nREADY=1", func(s *supervise.Spec) { s.Native = true }))
	b.ends("exit code 0")
	select {
	case m := <-msgs:
		if m != (Message{PID: pid, Ready: true, HasStatus: true, Status: "fine"}) {
			t.Errorf("%+v from process %d", m, pid)
		}
	case <-time.After(patience):
		t.Fatal("no message")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestParseNotify(t *testing.T) {
	for in, want := range map[string]Message{
		"":                             {},
		"READY=1\nWATCHDOG=1\n":        {Ready: true, Watchdog: true},
		"RELOADING=1\nSTOPPING=1":      {Reloading: true, Stopping: true},
		"READY=0\nREADY=11\nMAINPID=1": {},
		"STATUS=a\x1b[2Jb\xff":         {HasStatus: true, Status: "a [2Jb?"},
	} {
		if got := ParseNotify(in); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}

func FuzzParseNotify(f *testing.F) {
	f.Add("READY=1\nSTATUS=x\xc3")
	f.Fuzz(func(t *testing.T, s string) {
		m := ParseNotify(s)
		if len(m.Status) > 256 || strings.ContainsAny(m.Status, "\n\x00\x1b") {
			t.Errorf("status %q", m.Status)
		}
	})
}

func TestLines(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"a\nb\r\n\nc", "a|b||c"},
		{"", ""},
		{"12345678\n", "12345678"},
		{"123456789abcdefghi\nj", "12345678|9abcdefg|hi|j"},
	} {
		for _, r := range []io.Reader{strings.NewReader(tc.in), &oneByte{strings.NewReader(tc.in)}} {
			var got []string
			Lines(r, 8, func(l string) { got = append(got, l) })
			if s := strings.Join(got, "|"); s != tc.want {
				t.Errorf("%q: %q, want %q", tc.in, s, tc.want)
			}
		}
	}
}

type oneByte struct{ r io.Reader }

func (o *oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

func FuzzLines(f *testing.F) {
	f.Add("a\r\nb\x00", 3)
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 1 || max > 5000 {
			return
		}
		var b strings.Builder
		Lines(strings.NewReader(s), max, func(l string) {
			if len(l) > max || strings.Contains(l, "\n") {
				t.Fatalf("line %q", l)
			}
			b.WriteString(l)
		})
		want := strings.NewReplacer("\n", "", "\r", "").Replace(s)
		if got := strings.ReplaceAll(b.String(), "\r", ""); got != want {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func TestForwarderBuffersUntilSomebodyListens(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "log")
	f := NewForwarder(addr, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for i := range 20 {
		f.Log(3, SevInfo, "t", 9, fmt.Sprintf("line %02d", i)) // 17 bytes each
	}
	if f.Dropped() != 15 {
		t.Errorf("dropped %d, want 15", f.Dropped())
	}
	listen := func() *net.UnixConn {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(patience))
		f.Retry()
		return conn
	}
	next := func(conn *net.UnixConn) string {
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	conn := listen()
	want := []string{"<28>weft: 15 log lines lost: the buffer was full and nobody took them"}
	for i := 15; i < 20; i++ {
		want = append(want, fmt.Sprintf("<30>t[9]: line %02d", i))
	}
	for _, w := range want {
		if got := next(conn); got != w {
			t.Errorf("got %q, want %q", got, w)
		}
	}
	// The log daemon restarts.
	conn.Close()
	os.Remove(addr)
	f.Log(3, SevErr, "t", 0, "while it is away")
	conn = listen()
	if got := next(conn); got != "<27>t: while it is away" {
		t.Errorf("got %q", got)
	}
	conn.Close()
	os.Remove(addr)
	conn = listen() // restarted without a line in between: the old connection is dead
	defer conn.Close()
	f.Log(3, SevInfo, "t", 0, "again")
	if got := next(conn); got != "<30>t: again" {
		t.Errorf("got %q", got)
	}
}

func TestEventCount(t *testing.T) {
	const text = "low 0\nhigh 3\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n"
	if n := eventCount(text, "oom_kill"); n != 2 {
		t.Errorf("oom_kill %d", n)
	}
	if n := eventCount("oom_kill x\n", "oom_kill"); n != 0 {
		t.Errorf("garbage counts %d", n)
	}
}
