package servicecli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/unit"
)

// device is a bus with an object `service`, and folders.
type device struct {
	t    *testing.T
	cli  cli
	out  bytes.Buffer
	errw bytes.Buffer
	mu   sync.Mutex
	got  []string
}

const listReply = `{
"network":{"instances":{"instance1":{"running":true,"pid":123,"state":"running","type":"daemon","since_ms":90061000,"restarts":2,"health":"ok",
	"status":"2 interfaces up","memory":5452595,"last_exit":"killed: out of memory"}},"native":true,"description":"interfaces","enabled":true},
"boot":{"instances":{"instance1":{"running":false,"state":"done","type":"oneshot","since_ms":5000,"restarts":0}},"native":true},
"rpcd":{"instances":{"instance1":{"running":false,"state":"backoff","type":"daemon","since_ms":1500,"restarts":9,"reason":"exit code 1","next_try_ms":4960}},"native":true},
"drop":{"instances":{"a":{"running":true,"pid":7,"state":"running","since_ms":1000},"b":{"running":false,"state":"inactive","since_ms":1000}}},
"empty":{}}`

func newDevice(t *testing.T) *device {
	t.Helper()
	dir := t.TempDir()
	d := &device{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	sock := filepath.Join(dir, "ubus.sock")
	broker, err := bus.Listen(sock, bus.BrokerOptions{ACLDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { broker.Serve(ctx) })
	client, err := bus.Dial(ctx, sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); cancel(); wg.Wait() })
	reply, err := bus.ParseJSON(listReply)
	if err != nil {
		t.Fatal(err)
	}
	note := func(method string) bus.Method {
		return bus.Method{Name: method, Handle: func(_ context.Context, r *bus.Request) error {
			js, _ := r.Args.MarshalJSON()
			d.mu.Lock()
			d.got = append(d.got, method+" "+string(js))
			d.mu.Unlock()
			if r.Args.String("name") == "ghost" {
				return bus.StatusNotFound
			}
			return nil
		}}
	}
	methods := []bus.Method{note("state"), note("restart"), note("reload"), note("set"), note("delete"),
		{Name: "list", Handle: func(_ context.Context, r *bus.Request) error {
			name := r.Args.String("name")
			var out bus.Table
			for _, a := range reply {
				if name == "" || a.Name == name {
					out = append(out, a)
				}
			}
			return r.Reply(out)
		}},
		{Name: "timeline", Handle: func(_ context.Context, r *bus.Request) error {
			t, err := bus.ParseJSON(`{"ready_ms":4210,"marks":[{"stage":"kernel","name":"first line","ms":0},{"stage":"stage1","name":"modules","ms":2310},
				{"stage":"init","name":"ready","ms":4210}],"units":[{"name":"ubusd","start_ms":3010,"ready_ms":3060,"ok":true},{"name":"rpcd","start_ms":3070,"ready_ms":0,"ok":false}]}`)
			if err != nil {
				return err
			}
			return r.Reply(t)
		}},
	}
	if _, err := client.Publish(&bus.Object{Name: "service", Methods: methods}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"units/network.toml": "description = \"interfaces\"\ncommand = [\"/bin/n\"]\nstart = 20\nstop = 90",
		"units/boot.toml":    "command = [\"/bin/b\"]\ntype = \"oneshot\"\nstart = 10",
		"units/rpcd.toml":    "command = [\"/bin/r\"]\nstart = 12",
		"units/ghost.toml":   "command = [\"/bin/g\"]",
		"units/broken.toml":  "comand = 3",
		"init.d/network":     "", "init.d/drop": "", "init.d/boot": "",
	} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	d.cli = cli{
		c:   &unit.Call{Stdout: &d.out, Stderr: &d.errw},
		bus: sock, initDir: filepath.Join(dir, "init.d"), rcDir: filepath.Join(dir, "rc.d"), unitDir: filepath.Join(dir, "units"),
		exec: func(path string, argv, _ []string) error {
			d.got = append(d.got, "exec "+filepath.Base(path)+" "+strings.Join(argv[1:], " "))
			return errors.New("not in a test")
		},
	}
	return d
}

// run runs `service args` and checks the exit code.
func (d *device) run(code int, args ...string) (stdout, stderr string) {
	d.t.Helper()
	d.out.Reset()
	d.errw.Reset()
	if got := d.cli.service(d.t.Context(), args); got != code {
		d.t.Errorf("service %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, d.out.String(), d.errw.String())
	}
	return d.out.String(), d.errw.String()
}

func (d *device) took(want string) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if got := strings.Join(d.got, "; "); got != want {
		d.t.Errorf("calls %q, want %q", got, want)
	}
	d.got = nil
}

func TestVerbs(t *testing.T) {
	d := newDevice(t)
	for verb, want := range map[string]string{
		"start": `state {"name":"network","spawn":true}`, "boot": `state {"name":"network","spawn":true}`,
		"stop": `state {"name":"network","spawn":false}`, "shutdown": `state {"name":"network","spawn":false}`,
		"restart": `restart {"name":"network"}`, "reload": `reload {"name":"network"}`,
	} {
		d.run(0, "network", verb)
		d.took(want)
	}
	if _, e := d.run(1, "ghost", "restart"); !strings.Contains(e, "added after the boot") {
		t.Errorf("stderr %q", e)
	}
	d.took(`restart {"name":"ghost"}`)
	if _, e := d.run(1, "broken", "start"); !strings.Contains(e, "broken.toml:1: comand: unknown key") {
		t.Errorf("stderr %q", e)
	}
	if _, e := d.run(2, "network", "dance"); !strings.Contains(e, `no command "dance"`) {
		t.Errorf("stderr %q", e)
	}
	if o, _ := d.run(0, "network"); !strings.Contains(o, "network: interfaces\n") {
		t.Errorf("stdout %q", o)
	}
	if o, _ := d.run(0, "network", "info"); !strings.Contains(o, "\t\t\"instances\": {") {
		t.Errorf("stdout %q", o)
	}
	d.took("")
	d.run(1, "drop", "restart", "x")
	d.took("exec drop restart x")
	if _, e := d.run(1, "nosuch", "start"); !strings.Contains(e, `there is no "nosuch"`) || !strings.Contains(e, "\ndrop\n") {
		t.Errorf("stderr %q", e)
	}
	for _, name := range []string{"../x", "-x", ".."} {
		d.run(2, name, "start")
	}
	if o, _ := d.run(0, "--help"); !strings.HasPrefix(o, "Usage: service") {
		t.Errorf("help on stdout: %q", o)
	}
}

func TestEnable(t *testing.T) {
	d := newDevice(t)
	d.run(1, "network", "enabled")
	d.run(0, "network", "enable")
	d.run(0, "network", "enabled")
	for _, l := range []string{"S20network", "K90network"} {
		if target, err := os.Readlink(filepath.Join(d.cli.rcDir, l)); err != nil || target != "../init.d/network" {
			t.Errorf("%s -> %q, %v", l, target, err)
		}
	}
	// A link with another number, as an older image may have left.
	os.Symlink("../init.d/network", filepath.Join(d.cli.rcDir, "S77network"))
	d.run(0, "network", "enable")
	if links := d.cli.links("network", "SK"); len(links) != 2 {
		t.Errorf("links %v", links)
	}
	d.run(0, "boot", "enable")
	if links := d.cli.links("boot", "SK"); len(links) != 1 {
		t.Errorf("links %v", links)
	}
	d.run(0, "network", "disable")
	d.run(1, "network", "enabled")
	d.run(0, "boot", "enabled")
}

func TestStatusOfOne(t *testing.T) {
	d := newDevice(t)
	for _, tc := range []struct {
		code      int
		args, out string
	}{
		{0, "network status", "running\n"},
		{0, "network running", ""},
		{0, "network status instance1", "running\n"},
		{4, "network status other", "unknown instance other\n"},
		{3, "boot status", "done\n"},
		{3, "ghost status", "inactive\n"},
		{5, "rpcd status", "not running (backoff: exit code 1)\n"},
		{5, "rpcd running", ""},
	} {
		if o, _ := d.run(tc.code, strings.Fields(tc.args)...); o != tc.out {
			t.Errorf("%s: %q, want %q", tc.args, o, tc.out)
		}
	}
}

func TestList(t *testing.T) {
	d := newDevice(t)
	d.run(0, "network", "enable")
	o, _ := d.run(0)
	want := fmt.Sprintf("%-30s\t%10s\t%10s\n%-30s\t%10s\t%10s\n%-30s\t%10s\t%10s\n",
		d.cli.initDir+"/boot", "disabled", "stopped", d.cli.initDir+"/drop", "disabled", "running", d.cli.initDir+"/network", "enabled", "running")
	if o != want {
		t.Errorf("got\n%swant\n%s", o, want)
	}
	d.cli.bus = "/nonexistent"
	if o, e := d.run(1); !strings.Contains(o, "/network") || !strings.Contains(e, "the bus does not answer") {
		t.Errorf("without a bus: %q, %q", o, e)
	}
}

func TestStatusTable(t *testing.T) {
	d := newDevice(t)
	d.run(0, "network", "enable")
	o, _ := d.run(0, "status")
	want := `SERVICE  STATE     PID  MEMORY   RESTARTS  HEALTH  SINCE    BOOT  NOTE
network  running   123  5.2 MiB  2         ok      25h1m1s  yes   2 interfaces up; last end: killed: out of memory
boot     done      -    -        0         -       5s       -     
rpcd     backoff   -    -        9         -       1.5s     -     exit code 1; next start in 5s
drop.a   running   7    -        0         -       1s       -     
drop.b   inactive  -    -        0         -       1s       -     
memory of all services: 5.2 MiB (with their share of the page cache)
`
	if o != want {
		t.Errorf("got\n%swant\n%s", o, want)
	}
	if o, _ := d.run(0, "status", "rpcd"); strings.Count(o, "\n") != 2 {
		t.Errorf("one service: %q", o)
	}
	if o, _ := d.run(0, "status", "--json", "empty"); o != "{\"empty\":{}}\n" {
		t.Errorf("json: %q", o)
	}
	d.run(1, "status", "nosuch")
	d.run(2, "status", "-x")
}

func TestTimeline(t *testing.T) {
	d := newDevice(t)
	o, _ := d.run(0, "timeline")
	want := `   0.000 s    +0.000  kernel   first line
   2.310 s    +2.310  stage1   modules
   3.010 s    +0.700  service  ubusd started
   3.060 s    +0.050  service  ubusd ready, took 0.05 s
   3.070 s    +0.010  service  rpcd started
   4.210 s    +1.140  init     ready
`
	if o != want {
		t.Errorf("got\n%swant\n%s", o, want)
	}
	if o, _ := d.run(0, "timeline", "--json"); !strings.HasPrefix(o, `{"ready_ms":4210,"marks":[{"stage":"kernel"`) {
		t.Errorf("json: %s", o)
	}
	d.run(2, "timeline", "x")
}

func TestPower(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"reboot", 0, "sync signal terminated"},
		{"/sbin/reboot -n", 0, "signal terminated"},
		{"reboot -f", 0, "sync now 19088743"},
		{"reboot -nfd0", 0, "now 19088743"},
		{"reboot -d 0", 0, "sync signal terminated"},
		{"reboot -d", 2, ""},
		{"reboot -d x", 2, ""},
		{"reboot now", 2, ""},
		{"reboot -x", 2, ""},
		{"reboot --help", 0, ""},
	} {
		var log []string
		p := power{
			signal: func(s syscall.Signal) error { log = append(log, "signal "+s.String()); return nil },
			now:    func(c int) error { log = append(log, fmt.Sprintf("now %d", c)); return nil },
			sync:   func() { log = append(log, "sync") },
		}
		c := &unit.Call{Args: strings.Fields(tc.args), Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}
		code := p.run(t.Context(), c, syscall.SIGTERM, unix.LINUX_REBOOT_CMD_RESTART)
		if got := strings.Join(log, " "); got != tc.want || code != tc.code {
			t.Errorf("%s: exit %d, did %q; want %d, %q", tc.args, code, got, tc.code, tc.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &unit.Call{Args: []string{"reboot", "-d", "9999"}, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}
	begin := time.Now()
	if code := (power{}).run(ctx, c, 0, 0); code != 1 || time.Since(begin) > time.Minute {
		t.Errorf("cancelled delay: exit %d", code)
	}
	refuse := power{signal: func(syscall.Signal) error { return syscall.EPERM }, now: func(int) error { return syscall.EPERM }, sync: func() {}}
	for _, args := range []string{"halt", "halt -f"} {
		var errw bytes.Buffer
		c := &unit.Call{Args: strings.Fields(args), Stdout: &bytes.Buffer{}, Stderr: &errw}
		if code := refuse.run(t.Context(), c, 0, 0); code != 1 || !strings.Contains(errw.String(), "not permitted") {
			t.Errorf("%s: exit %d, %q", args, code, errw.String())
		}
	}
}

const records = "S\tname\tx\nO\tinstances\t\nO\tinstance1\t\nA\tcommand\t\nS\t\t/bin/x\nS\t\ta\\tb\\nc\\\\d\na\t\t\nI\tnice\t-5\nB\tstdout\t1\nB\tstderr\t0\nI\tbig\t5000000000\nI\tnone\tx\nD\tf\t1.5\nN\tnull\t\no\t\t\nS\tname\ty\n"

func TestServiceCall(t *testing.T) {
	d := newDevice(t)
	call := func(code int, in string, args ...string) (string, string) {
		t.Helper()
		var out, errw bytes.Buffer
		c := &unit.Call{Args: append([]string{"service-call"}, args...), Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errw}
		if got := serviceCall(t.Context(), c, d.cli.bus); got != code {
			t.Errorf("%v: exit %d, want %d: %s", args, got, code, errw.String())
		}
		return out.String(), errw.String()
	}
	const js = `{"name":"x","instances":{"instance1":{"command":["\/bin\/x","a\tb\nc\\d"],"nice":-5,"stdout":true,"stderr":false,"big":5000000000,"none":0,"f":1.500000,"null":null},"name":"y"}}`
	if o, _ := call(0, records, "-p"); o != js+"\n" {
		t.Errorf("got  %swant %s", o, js)
	}
	call(0, records, "set")
	if !strings.HasPrefix(d.got[0], `set {"name":"x","instances":{"instance1":`) {
		t.Errorf("the bus saw %q", d.got)
	}
	d.got = nil
	call(1, "S\tname\tghost\n", "delete")
	for in, want := range map[string]string{
		"o\t\t\n": "record 1: nothing of that kind is open", "O\ta\t\na\t\t\n": "record 2:", "X\ta\n": "record 1: unknown kind",
		strings.Repeat("O\tx\t\n", 40): "nested deeper", "I\tx\t99999999999999999999\n": "too large",
	} {
		if _, e := call(1, in, "-p"); !strings.Contains(e, want) {
			t.Errorf("%q: %q, want %q", in, e, want)
		}
	}
	call(2, "")
	for args, want := range map[string]string{
		"drop": "running", "drop a": "running", "drop b": "not running", "drop c": "unknown", "empty": "active with no instances", "nosuch": "inactive", "boot *": "not running",
	} {
		if o, _ := call(0, "", append([]string{"--state"}, strings.Fields(args)...)...); o != want+"\n" {
			t.Errorf("--state %s: %q, want %q", args, o, want)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(records)
	f.Fuzz(func(t *testing.T, s string) {
		tab, err := parseRecords(strings.NewReader(s))
		if err != nil {
			return
		}
		if _, err := tab.MarshalJSON(); err != nil && !strings.Contains(err.Error(), "unsupported") {
			t.Errorf("%q: %v", s, err)
		}
	})
}
