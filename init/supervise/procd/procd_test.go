package procd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/init/bus"
	"weft/init/supervise"
	"weft/init/supervise/unitfile"
)

// fakeRunner starts processes at once and ends them on a signal that ends.
type fakeRunner struct {
	s    *supervise.Supervisor
	mu   sync.Mutex
	pid  int
	runs map[string]int
	log  []string
}

func (r *fakeRunner) Do(a supervise.Action) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch a := a.(type) {
	case supervise.Spawn:
		r.pid++
		r.runs[a.Spec.ID] = a.Run
		r.log = append(r.log, fmt.Sprintf("spawn %s %s", a.Spec.ID, strings.Join(a.Spec.Process.Command, " ")))
		r.s.Started(a.Spec.ID, a.Run, r.pid)
	case supervise.Signal:
		r.log = append(r.log, fmt.Sprintf("signal %s %d", a.ID, a.Sig))
		if a.Sig != 1 && a.Sig != 10 {
			r.s.Exited(a.ID, r.runs[a.ID], supervise.Exit{Code: 128 + int(a.Sig), Signal: a.Sig})
		}
	case supervise.Kill, supervise.Sweep:
	default:
		return false
	}
	return true
}

func (r *fakeRunner) took() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.log, "; ")
	r.log = nil
	return s
}

type fixture struct {
	*Manager
	sup  *supervise.Supervisor
	r    *fakeRunner
	exec chan string
	stop func()
}

func newFixture(t *testing.T, units ...*unitfile.Unit) *fixture {
	t.Helper()
	f := &fixture{exec: make(chan string, 100)}
	start := time.Now()
	clock := func() time.Duration { return time.Since(start) }
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	f.sup = supervise.New(supervise.Options{
		Clock: clock, Log: log,
		Notice: func(n supervise.Notice) { f.Manager.Notice(n) },
	})
	f.r = &fakeRunner{s: f.sup, runs: map[string]int{}}
	f.sup.SetRunner(f.r)
	f.Manager = NewManager(Options{
		Supervisor: f.sup, Clock: clock, Log: log, RCDir: t.TempDir(),
		Exec:    func(_ context.Context, argv []string) int { f.exec <- strings.Join(argv, " "); return 0 },
		Respawn: func() RespawnDefaults { return RespawnDefaults{time.Hour, 5 * time.Second, 5} },
		Memory:  func(string) int64 { return 4096 }, MemoryPeak: func(string) int64 { return 0 },
		Timeline: func() any { return bus.Table{{Name: "ready", Value: true}} },
	}, units)
	ctx, cancel := context.WithCancel(context.Background())
	f.Manager.ctx = ctx
	ended := make(chan struct{})
	go func() { defer close(ended); f.sup.Run(ctx) }()
	f.stop = func() { cancel(); <-ended; f.Manager.work.Wait() }
	for _, u := range units {
		f.sup.Post(func(m *supervise.Machine, now time.Duration) []supervise.Action {
			return append(m.Define(now, u.Spec, false), m.Start(now, u.Spec.ID)...)
		})
	}
	return f
}

func parse(t *testing.T, json string) bus.Table {
	t.Helper()
	tab, err := bus.ParseJSON(json)
	if err != nil {
		t.Fatalf("%s: %v", json, err)
	}
	return tab
}

func (f *fixture) mustSet(t *testing.T, keep bool, json string) {
	t.Helper()
	if err := f.set(t.Context(), parse(t, json), keep); err != nil {
		t.Fatalf("set %s: %v", json, err)
	}
}

// settle waits until the supervisor has worked off what was posted.
func (f *fixture) settle(t *testing.T) {
	t.Helper()
	for range 5 {
		if err := f.sup.Do(t.Context(), func(*supervise.Machine, time.Duration) []supervise.Action { return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

func (f *fixture) took(t *testing.T, want string) {
	t.Helper()
	f.settle(t)
	if got := f.r.took(); got != want {
		t.Errorf("actions %q, want %q", got, want)
	}
}

// TestSetCompares follows the comparison of procd's set and add.
func TestSetCompares(t *testing.T) {
	file := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	defer f.stop()
	one := `"one":{"command":["/bin/a","-x"],"env":{"B":"2"},"respawn":[]}`
	two := `"two":{"command":["/bin/b"],"file":["` + file + `"],"reload_signal":1}`
	f.mustSet(t, false, `{"name":"svc","script":"/etc/init.d/svc","instances":{`+one+`,`+two+`}}`)
	f.took(t, "spawn svc.one /bin/a -x; spawn svc.two /bin/b")

	f.mustSet(t, false, `{"name":"svc","instances":{`+one+`,`+two+`}}`)
	f.took(t, "") // nothing changed, nothing touched

	os.WriteFile(file, []byte("2"), 0o644)
	f.mustSet(t, false, `{"name":"svc","instances":{`+one+`,`+two+`}}`)
	f.took(t, "signal svc.two 1") // the file it named changed: its reload signal

	f.mustSet(t, false, `{"name":"svc","instances":{`+strings.Replace(one, "2", "3", 1)+`,`+two+`}}`)
	f.took(t, "signal svc.one 15; spawn svc.one /bin/a -x")

	f.mustSet(t, true, `{"name":"svc","instances":{"three":{"command":["/bin/c"]}}}`)
	f.took(t, "spawn svc.three /bin/c") // add keeps the others

	f.mustSet(t, false, `{"name":"svc","instances":{`+two+`}}`)
	f.settle(t)
	if got := f.r.took(); got != "signal svc.one 15; signal svc.three 15" && got != "signal svc.three 15; signal svc.one 15" {
		t.Errorf("set did not stop what it does not name: %q", got)
	}

	// An unchanged instance that has ended is started again.
	f.r.s.Exited("svc.two", f.r.runs["svc.two"], supervise.Exit{})
	f.mustSet(t, false, `{"name":"svc","instances":{`+two+`}}`)
	f.took(t, "spawn svc.two /bin/b")

	if err := f.remove(t.Context(), "svc", ""); err != nil {
		t.Fatal(err)
	}
	f.took(t, "signal svc.two 15")
	if err := f.remove(t.Context(), "svc", ""); !errors.Is(err, bus.StatusNotFound) {
		t.Errorf("second delete: %v", err)
	}
}

func TestParseInstance(t *testing.T) {
	def := RespawnDefaults{time.Hour, 5 * time.Second, 5}
	in, err := parseInstance("s", "i", parse(t, `{"command":["/bin/x","a b"],"env":{"A":"1","B":2},"limits":{"nofile":"10 20","core":"unlimited"},
		"respawn":["60","0","3"],"nice":"5","user":"nobody","group":"nogroup","pidfile":"/var/run/x.pid","stdout":"1","stderr":true,
		"facility":"local3","no_new_privs":true,"reload_signal":10,"term_timeout":20,"watchdog":["2","15"],"data":{"k":{"v":1}},"netdev":["lo"],"seccomp":"/x"}`), def)
	if err != nil {
		t.Fatal(err)
	}
	s, p := in.spec, in.spec.Process
	if s.ID != "s.i" || s.ReloadSignal != 10 || s.TermTimeout != 20*time.Second || s.Watchdog != 15*time.Second || !s.KeepChildren {
		t.Errorf("spec %+v", s)
	}
	if s.Respawn != (supervise.Respawn{On: supervise.RestartAlways, Threshold: time.Minute, Retry: 3, Ceiling: supervise.DefaultCeiling}) {
		t.Errorf("respawn %+v", s.Respawn)
	}
	if fmt.Sprintln(p.Command, p.Env, p.Limits, p.Nice, p.User, p.Group, p.Pidfile, p.Stdout, p.Stderr, p.Facility, p.NoNewPrivs) !=
		"[/bin/x a b] [A=1 B=2] [{core 18446744073709551615 18446744073709551615} {nofile 10 20}] 5 nobody nogroup /var/run/x.pid true true local3 true\n" {
		t.Errorf("process %+v", p)
	}
	if fmt.Sprint(in.ignored) != "[seccomp]" {
		t.Errorf("ignored %v", in.ignored)
	}

	none, err := parseInstance("s", "i", parse(t, `{"command":["/bin/x"]}`), def)
	if err != nil || none.spec.Respawn.On != supervise.RestartNever || none.spec.Process.Stdout {
		t.Errorf("without parameters: %+v, %v", none, err)
	}
	dflt, _ := parseInstance("s", "i", parse(t, `{"command":["/bin/x"],"respawn":[]}`), def)
	if r := dflt.spec.Respawn; r.Threshold != time.Hour || r.Delay != 5*time.Second || r.Retry != 5 {
		t.Errorf("respawn without numbers: %+v", r)
	}
	for name, tc := range map[string][2]string{
		"no command":    {`{}`, "no command"},
		"function":      {`{"command":["@modules"]}`, "not a program"},
		"error":         {`{"command":["/x"],"error":["no key"]}`, "no key"},
		"required jail": {`{"command":["/x"],"jail":{"name":"j","requirejail":true}}`, "requires a jail"},
	} {
		in, err := parseInstance("s", "i", parse(t, tc[0]), def)
		if err != nil || !strings.Contains(in.spec.Invalid, tc[1]) {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
	}
	for name, json := range map[string]string{
		"command": `{"command":[["x"]]}`, "nice": `{"nice":99}`, "respawn": `{"respawn":["x"]}`, "limit": `{"limits":{"nofile":"x"}}`,
		"env": `{"env":["A=1"]}`, "facility": `{"facility":"x"}`, "bool": `{"stdout":"maybe"}`, "watchdog": `{"watchdog":["x"]}`,
		"jail": `{"jail":1}`, "signal": `{"reload_signal":99}`,
	} {
		if _, err := parseInstance("s", "i", parse(t, json), def); !errors.Is(err, bus.StatusInvalidArgument) || !strings.Contains(err.Error(), "s.i") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSetRefuses(t *testing.T) {
	f := newFixture(t, unitfile.Parse("network", "n.toml", `command = ["/bin/n"]`))
	defer f.stop()
	for json, want := range map[string]bus.Status{
		`{}`:                               bus.StatusInvalidArgument,
		`{"name":"a/b"}`:                   bus.StatusInvalidArgument,
		`{"name":"a","instances":{"i":3}}`: bus.StatusInvalidArgument,
		`{"name":"a","triggers":[["x"]]}`:  bus.StatusInvalidArgument,
		`{"name":"a","triggers":[["x",[],"soon"]]}`:  bus.StatusInvalidArgument,
		`{"name":"a","autostart":"maybe"}`:           bus.StatusInvalidArgument,
		`{"name":"network","instances":{"i":{}}}`:    bus.StatusPermissionDenied,
		`{"name":"a","instances":{"i":{"nice":99}}}`: bus.StatusInvalidArgument,
	} {
		if err := f.set(t.Context(), parse(t, json), false); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", json, err, want)
		}
	}
	if err := f.remove(t.Context(), "network", ""); !errors.Is(err, bus.StatusPermissionDenied) {
		t.Errorf("delete of a native service: %v", err)
	}
}

func TestAutostartOff(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	f.mustSet(t, false, `{"name":"a","autostart":false,"instances":{"i":{"command":["/x"]}}}`)
	f.took(t, "")
	if err := f.spawn(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	f.took(t, "spawn a.i /x")
	if err := f.spawn(t.Context(), "a", false); err != nil {
		t.Fatal(err)
	}
	f.took(t, "signal a.i 15")
}

func TestScript(t *testing.T) {
	reload := `["run_script","/etc/init.d/x","reload"]`
	for _, tc := range []struct{ name, code, data, want string }{
		{"match", `["if",["eq","package","network"],` + reload + `]`, `{"package":"network"}`, "/etc/init.d/x reload"},
		{"no match", `["if",["eq","package","network"],` + reload + `]`, `{"package":"dhcp"}`, ""},
		{"nothing to match", `["if",["eq","package","network"],` + reload + `]`, `{}`, ""},
		{"else", `["if",["eq","a","1"],[],["run_script","y"]]`, `{"a":2}`, "y"},
		{"number", `["if",["eq","a",["1","2"]],["run_script","y"]]`, `{"a":2}`, "y"},
		{"and or not", `["if",["and",["not",["eq","a","1"]],["or",["has","x"],["has","a"]]],["run_script","y"]]`, `{"a":"2"}`, "y"},
		{"list and return", `[["run_script","1"],["return"],["run_script","2"]]`, `{}`, "1"},
		{"case", `["case","a",{"1":["run_script","one"],"2":["run_script","two"]}]`, `{"a":"2"}`, "two"},
		{"isdir", `["if",["isdir","/"],["run_script","y"]]`, `{}`, "y"},
		{"empty", `[]`, `{}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmds, err := script(parse(t, `{"c":`+tc.code+`}`).Get("c"), parse(t, tc.data))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range cmds {
				got = append(got, strings.Join(c, " "))
			}
			if s := strings.Join(got, "; "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
	deep := `["run_script","x"]`
	for range 20 {
		deep = `["if",["has","a"],` + deep + `]`
	}
	for _, code := range []string{`"x"`, `["if"]`, `["if",["eq","a"],[]]`, `["reboot"]`, `["run_script"]`, `["if",["regex","a","b"],[]]`, `["if",[],[]]`, deep} {
		if _, err := script(parse(t, `{"c":`+code+`}`).Get("c"), parse(t, `{"a":"1"}`)); err == nil {
			t.Errorf("%s: no error", code)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add(`["if",["and",["eq","package","network"]],["run_script","/x"]]`, `{"package":"network"}`)
	f.Fuzz(func(t *testing.T, code, data string) {
		c, err := bus.ParseJSON(`{"c":` + code + `}`)
		if err != nil {
			return
		}
		d, err := bus.ParseJSON(data)
		if err != nil {
			return
		}
		cmds, err := script(c.Get("c"), d)
		for _, cmd := range cmds {
			if err == nil && len(cmd) == 0 {
				t.Error("empty command")
			}
		}
	})
}

func FuzzParseInstance(f *testing.F) {
	f.Add(`{"command":["/bin/x"],"respawn":["60"],"limits":{"core":"1"},"watchdog":["1","2"]}`)
	f.Fuzz(func(t *testing.T, json string) {
		tab, err := bus.ParseJSON(json)
		if err != nil {
			return
		}
		in, err := parseInstance("s", "i", tab, RespawnDefaults{})
		if err != nil {
			return
		}
		if in.spec.Invalid == "" && len(in.spec.Process.Command) == 0 {
			t.Errorf("nothing to run: %+v", in)
		}
		if !in.same(in) || in.spec.TermTimeout <= 0 {
			t.Errorf("%+v", in)
		}
	})
}

// TestTriggers checks the delay, that events inside it become one run, and that
// an event during a run makes exactly one more.
func TestTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		defer f.stop()
		release := make(chan struct{})
		var ran atomic.Int32
		f.o.Exec = func(_ context.Context, argv []string) int { ran.Add(1); <-release; return 0 }
		f.mustSet(t, false, `{"name":"x","triggers":[["config.change",["if",["eq","package","net"],["run_script","/etc/init.d/x","reload"]],1000]]}`)
		for range 5 {
			f.Event("config.change", parse(t, `{"package":"net"}`))
			f.Event("config.change", parse(t, `{"package":"other"}`))
		}
		time.Sleep(ScriptReloadDelay - 1)
		synctest.Wait()
		if ran.Load() != 0 {
			t.Fatal("ran before its delay")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if ran.Load() != 1 {
			t.Fatalf("ran %d times", ran.Load())
		}
		f.Event("config.change", parse(t, `{"package":"net"}`))
		f.Event("config.change", parse(t, `{"package":"net"}`))
		time.Sleep(time.Minute)
		synctest.Wait()
		if ran.Load() != 1 {
			t.Fatal("ran at the same time as itself")
		}
		release <- struct{}{}
		time.Sleep(ScriptReloadDelay)
		synctest.Wait()
		if ran.Load() != 2 {
			t.Fatalf("ran %d times after an event during the run", ran.Load())
		}
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		if ran.Load() != 2 || len(f.jobs) != 0 {
			t.Fatalf("ran %d times, jobs left %d", ran.Load(), len(f.jobs))
		}
	})
}

func TestTriggerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		defer f.stop()
		var ran atomic.Int32
		f.o.Exec = func(context.Context, []string) int { ran.Add(1); panic("boom") }
		f.mustSet(t, false, `{"name":"x","triggers":[["y",["run_script","/x"],1000]]}`)
		for want := int32(1); want <= 2; want++ {
			f.Event("y", nil)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if ran.Load() != want {
				t.Fatalf("ran %d times, want %d", ran.Load(), want)
			}
		}
	})
}

func TestNativeFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t,
			unitfile.Parse("network", "n.toml", "command = [\"/bin/n\"]\nready = \"exec\"\nfollows = [\"network\", \"wireless\"]\nreload_signal = \"HUP\""),
			unitfile.Parse("other", "o.toml", "command = [\"/bin/o\"]\nready = \"exec\"\nfollows = [\"dhcp\"]"))
		defer f.stop()
		synctest.Wait()
		f.r.took()
		for _, p := range []string{"network", "wireless", "system", ""} {
			f.Event("config.change", parse(t, `{"package":"`+p+`"}`))
		}
		time.Sleep(NativeReloadDelay)
		synctest.Wait()
		f.took(t, "signal network 1")
		f.Event("config.change", parse(t, `{"package":"dhcp"}`))
		time.Sleep(NativeReloadDelay)
		synctest.Wait()
		f.took(t, "signal other 15; spawn other /bin/o")
	})
}

// TestOnTheBus goes through a real broker.
func TestOnTheBus(t *testing.T) {
	f := newFixture(t, unitfile.Parse("network", "n.toml", "command = [\"/bin/n\"]\nready = \"exec\"\nwatchdog = \"30s\"\ncritical = true"))
	defer f.stop()
	os.Symlink("../init.d/network", filepath.Join(f.o.RCDir, "S20network"))
	path := filepath.Join(t.TempDir(), "ubus.sock")
	broker, err := bus.Listen(path, bus.BrokerOptions{ACLDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { broker.Serve(ctx) })
	server, err := bus.Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	wg.Go(func() { f.Run(ctx, server) })
	client, err := bus.Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	seen := make(chan string, 100)
	if _, err := client.Subscribe("service", func(method string, data bus.Table) {
		b, _ := data.MarshalJSON()
		seen <- method + " " + string(b)
	}); err != nil {
		t.Fatal(err)
	}
	for { // the object appears a moment after the connection
		if _, err := client.Lookup(ctx, "service"); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	call := func(method, args string, want bus.Status) bus.Table {
		t.Helper()
		out, err := client.Call(ctx, "service", method, parse(t, args))
		if want == bus.StatusOK && err != nil || want != bus.StatusOK && !errors.Is(err, want) {
			t.Fatalf("%s %s: %v, want %v", method, args, err, want)
		}
		return out
	}
	find := func(part string) {
		t.Helper()
		timeout := time.After(30 * time.Second)
		for {
			select {
			case s := <-seen:
				if strings.Contains(s, part) {
					return
				}
			case <-timeout:
				t.Fatalf("no notification %q", part)
			}
		}
	}

	call("set", `{"name":"drop","script":"/etc/init.d/drop","data":{"d":{"x":1}},"instances":{"instance1":{"command":["/bin/d","-p","22"],"env":{"A":"1"},
		"limits":{"core":"0"},"respawn":["60","5","3"],"data":{"d":"i"},"pidfile":"/p","user":"nobody","reload_signal":10,"file":["/f"]}}}`, bus.StatusOK)
	list := call("list", `{"name":"drop"}`, bus.StatusOK)
	js, _ := list.MarshalJSON()
	wantPrefix := `{"drop":{"instances":{"instance1":{"running":true,"pid":`
	wantRest := `,"command":["\/bin\/d","-p","22"],"term_timeout":5,"data":{"d":"i"},"env":{"A":"1"},"file":["\/f"],"limits":{"core":"0"},"reload_signal":10,` +
		`"respawn":{"threshold":60,"timeout":5,"retry":3},"user":"nobody","pidfile":"\/p","state":"running","type":"daemon","since_ms":`
	if s := string(js); !strings.HasPrefix(s, wantPrefix) || !strings.Contains(s, wantRest) {
		t.Errorf("list:\n%s\nwant\n%s…%s", s, wantPrefix, wantRest)
	}
	call("signal", `{"name":"drop","signal":10}`, bus.StatusOK)
	f.settle(t)
	if got := f.r.took(); !strings.Contains(got, "signal drop.instance1 10") {
		t.Errorf("actions %q", got)
	}
	call("signal", `{"name":"drop","signal":15}`, bus.StatusOK)
	find(`instance.respawn {"service":"drop","instance":"instance1","pid":`)
	f.settle(t)
	js, _ = call("list", `{"name":"drop"}`, bus.StatusOK).MarshalJSON()
	if s := string(js); !strings.Contains(s, `"running":false`) || !strings.Contains(s, `"exit_code":143`) || !strings.Contains(s, `"state":"backoff"`) {
		t.Errorf("list after a crash: %s", s)
	}

	js, _ = call("list", `{"name":"network","verbose":true}`, bus.StatusOK).MarshalJSON()
	for _, want := range []string{`"native":true`, `"enabled":true`, `"critical":true`, `"memory":4096`, `"health":"unknown"`, `"restarts":0`, `"watchdog":{"mode":1,"timeout":30}`} {
		if !strings.Contains(string(js), want) {
			t.Errorf("%s is missing in %s", want, js)
		}
	}
	js, _ = call("get_data", `{"type":"d"}`, bus.StatusOK).MarshalJSON()
	if string(js) != `{"drop":{"d":{"x":1},"instance1":{"d":"i"}}}` {
		t.Errorf("get_data: %s", js)
	}
	call("set_data", `{"name":"drop","instance":"instance1","data":{"d":"new"}}`, bus.StatusOK)
	find(`service.data.update {"name":"drop"}`)
	js, _ = call("get_data", `{"name":"drop","instance":"instance1"}`, bus.StatusOK).MarshalJSON()
	if !strings.Contains(string(js), `"instance1":{"d":"new"}`) {
		t.Errorf("get_data after set_data: %s", js)
	}

	call("state", `{"name":"drop","spawn":true}`, bus.StatusOK)
	find("service.start")
	js, _ = call("watchdog", `{"name":"drop","mode":1,"timeout":7}`, bus.StatusOK).MarshalJSON()
	if string(js) != `{"name":"drop","mode":1,"timeout":7}` {
		t.Errorf("watchdog: %s", js)
	}
	call("watchdog", `{"name":"network"}`, bus.StatusNotSupported)
	call("watchdog", `{"name":"drop","mode":9}`, bus.StatusInvalidArgument)
	f.r.took()
	call("reload", `{"name":"drop"}`, bus.StatusOK)
	call("restart", `{"name":"network"}`, bus.StatusOK)
	f.took(t, "signal drop.instance1 10; signal network 15; spawn network /bin/n")
	call("event", `{"type":"config.change","data":{"package":"x"}}`, bus.StatusOK)
	find(`config.change {"package":"x"}`)
	js, _ = call("timeline", `{}`, bus.StatusOK).MarshalJSON()
	if string(js) != `{"ready":true}` {
		t.Errorf("timeline: %s", js)
	}
	call("delete", `{"name":"drop","instance":"instance1"}`, bus.StatusOK)
	find(`service.stop {"service":"drop"}`)
	for _, c := range [][2]string{{"delete", `{"name":"drop"}`}, {"signal", `{"name":"drop"}`}, {"state", `{"name":"drop","spawn":true}`}, {"restart", `{"name":"drop"}`}, {"set_data", `{"name":"drop"}`}, {"watchdog", `{"name":"drop"}`}} {
		call(c[0], c[1], bus.StatusNotFound)
	}
	for _, c := range [][2]string{{"delete", `{}`}, {"state", `{"name":"network"}`}, {"event", `{}`}, {"signal", `{"name":"network","signal":99}`}} {
		call(c[0], c[1], bus.StatusInvalidArgument)
	}
}
