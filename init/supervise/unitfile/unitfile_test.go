package unitfile

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/init/supervise"
)

const full = `
description   = "the network"
command       = ["/usr/sbin/netd", "-v"]
needs         = ["ubusd"]
after         = ["boot", "modules"]
ready         = "exec"
ready_timeout = "10s"
watchdog      = "30s"
critical      = true
follows       = ["network"]
reload_signal = "HUP"
term_timeout  = "3s"
kill          = "main"
restart       = "on-failure"
start         = 20
stop          = 90
stop_last     = true
user          = "nobody"
group         = "nogroup"
capabilities  = ["net_admin"]
no_new_privs  = false
nice          = -5
dir           = "/tmp"
state_dir     = "/var/run/network"
memory_max    = "32M"
memory_high   = "24M"
pids_max      = 10
stdout        = false
facility      = "local0"

[respawn]
threshold = "60s"
timeout   = "2s"
retry     = 0
ceiling   = "10s"

[environment]
B = "2"
A = "1"

[limits]
nofile = "10 20"
`

func TestParse(t *testing.T) {
	u := Parse("network", "network.toml", full)
	want := &Unit{
		Name: "network", Description: "the network", File: "network.toml", Follows: []string{"network"}, Start: 20, Stop: 90,
		Spec: supervise.Spec{
			ID: "network", Service: "network", Instance: "instance1", Native: true,
			Needs: []string{"ubusd"}, After: []string{"boot", "modules"}, StopLast: true,
			ReadyTimeout: 10 * time.Second, Watchdog: 30 * time.Second,
			Respawn:     supervise.Respawn{On: supervise.RestartOnFailure, Threshold: time.Minute, Delay: 2 * time.Second, Ceiling: 10 * time.Second},
			TermTimeout: 3 * time.Second, ReloadSignal: syscall.SIGHUP, Critical: true, KeepChildren: true,
			Process: supervise.Process{
				Command: []string{"/usr/sbin/netd", "-v"}, Env: []string{"A=1", "B=2", "GOMEMLIMIT=25165824"}, Dir: "/tmp",
				User: "nobody", Group: "nogroup", Capabilities: []string{"net_admin"}, Bounded: true, Nice: -5,
				Limits:    []supervise.Limit{{Name: "nofile", Soft: 10, Hard: 20}},
				MemoryMax: 32 << 20, MemoryHigh: 24 << 20, PidsMax: 10, StateDir: "/var/run/network",
				Stderr: true, Facility: "local0", Tag: "network",
			},
		},
	}
	if d := cmp.Diff(want, u); d != "" {
		t.Error(d)
	}
}

func TestDefaults(t *testing.T) {
	u := Parse("a", "a.toml", `command = ["/bin/a"]`)
	if u.Err != nil {
		t.Fatal(u.Err)
	}
	s, p := u.Spec, u.Spec.Process
	if s.Type != supervise.Daemon || s.Ready != supervise.ReadyNotify || s.Respawn.On != supervise.RestartAlways || s.ReadyTimeout != time.Minute {
		t.Errorf("spec %+v", s)
	}
	if p.MemoryMax != 64<<20 || p.PidsMax != 128 || !p.NoNewPrivs || p.Bounded || !p.Stdout || !p.Stderr {
		t.Errorf("process %+v", p)
	}
	o := Parse("b", "b.toml", "type = \"oneshot\"\ncommand = [\"@modules\"]\ncapabilities = []\nmemory_max = \"0\"").Spec
	if o.Type != supervise.Oneshot || o.Ready != supervise.ReadyExit || o.Respawn.On != supervise.RestartNever || !o.Process.Bounded || len(o.Process.Env) != 0 {
		t.Errorf("oneshot %+v", o)
	}
}

func TestErrors(t *testing.T) {
	const ok = "command = [\"/bin/a\"]\n"
	for _, tc := range []struct{ name, text, want string }{
		{"syntax", ok + "type = \n", "a.toml:2: "},
		{"wrong type", ok + "\nneeds = \"ubusd\"\n", "a.toml:3: "},
		{"bad duration", ok + "watchdog = \"soon\"\n", "a.toml:2: "},
		{"unknown key", "# x\n" + ok + "memmory_max = \"1M\"\n", "a.toml:3: memmory_max: unknown key"},
		{"unknown key in table", ok + "[respawn]\nretries = 3\n", "a.toml:3: respawn.retries: unknown key"},
		{"unknown table", ok + "[Unit]\nretries = 3\n", "a.toml:2: Unit"},
		{"no command", "nice = 1\n", "a.toml:1: command: missing"},
		{"relative command", "\ncommand = [\"sh\"]\n", "a.toml:2: command: \"sh\" must be an absolute path"},
		{"type", ok + "type = \"forking\"\n", "a.toml:2: type:"},
		{"ready", ok + "ready = \"exit\"\n", "a.toml:2: ready:"},
		{"oneshot ready", ok + "type = \"oneshot\"\nready = \"notify\"\n", "a.toml:3: ready:"},
		{"restart", ok + "restart = \"yes\"\n", "a.toml:2: restart:"},
		{"oneshot restart", ok + "type = \"oneshot\"\nrestart = \"always\"\n", "a.toml:3: restart:"},
		{"oneshot watchdog", ok + "type = \"oneshot\"\nwatchdog = \"3s\"\n", "a.toml:3: watchdog:"},
		{"negative time", ok + "term_timeout = \"-3s\"\n", "a.toml:2: term_timeout:"},
		{"negative respawn", ok + "[respawn]\ntimeout = \"-3s\"\n", "a.toml:3: respawn.timeout:"},
		{"negative retry", ok + "[respawn]\nretry = -1\n", "a.toml:3: respawn.retry:"},
		{"kill", ok + "kill = \"all\"\n", "a.toml:2: kill:"},
		{"signal", ok + "reload_signal = \"HUPP\"\n", "a.toml:2: reload_signal:"},
		{"nice", ok + "nice = 20\n", "a.toml:2: nice:"},
		{"capability", ok + "capabilities = [\n \"net_admin\",\n \"rot\" ]\n", "a.toml:2: capabilities: \"rot\""},
		{"facility", ok + "facility = \"x\"\n", "a.toml:2: facility:"},
		{"size", ok + "memory_max = \"64MB\"\n", "a.toml:2: memory_max:"},
		{"high", ok + "memory_high = \"-1\"\n", "a.toml:2: memory_high:"},
		{"pids", ok + "pids_max = -1\n", "a.toml:2: pids_max:"},
		{"limit", ok + "[limits]\nnofile = \"2 1\"\n", "a.toml:3: limits.nofile:"},
		{"start", ok + "start = 100\n", "a.toml:2: start:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := Parse("a", "a.toml", tc.text)
			if u.Err == nil || !strings.HasPrefix(u.Err.Error(), tc.want) {
				t.Fatalf("error %v, want it to start with %q", u.Err, tc.want)
			}
			if u.Spec.ID != "a" || u.Spec.Invalid != u.Err.Error() {
				t.Errorf("spec %+v", u.Spec)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.toml": "command = [\"/bin/b\"]", "a.toml": "command = 3", "README": "", ".toml": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	units, err := Load(dir)
	if err != nil || len(units) != 2 {
		t.Fatalf("%d units, %v", len(units), err)
	}
	if units[0].Name != "a" || units[0].Err == nil || units[1].Name != "b" || units[1].Err != nil {
		t.Errorf("%+v, %+v", units[0], units[1])
	}
	if _, err := Load(filepath.Join(dir, "absent")); err == nil {
		t.Error("no error for a missing folder")
	}
}

// TestShipped reads the files that the firmware ships.
func TestShipped(t *testing.T) {
	units, err := Load("../../../buildroot-overlay/rootfs" + Dir)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, u := range units {
		names[u.Name] = true
	}
	for _, u := range units {
		if u.Err != nil {
			t.Errorf("%v", u.Err)
			continue
		}
		for _, n := range append(append([]string{}, u.Spec.Needs...), u.Spec.After...) {
			if !names[n] {
				t.Errorf("%s names %s, which does not exist", u.File, n)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add("command = [\"@x\"]\n[limits]\nnofile=\"1\"")
	f.Fuzz(func(t *testing.T, text string) {
		u := Parse("a", "a.toml", text)
		if u.Err != nil {
			if u.Spec.Invalid == "" || !strings.HasPrefix(u.Err.Error(), "a.toml") {
				t.Errorf("error without a place: %v", u.Err)
			}
			return
		}
		if len(u.Spec.Process.Command) == 0 || u.Spec.TermTimeout < 0 || u.Spec.Process.MemoryMax < 0 {
			t.Errorf("accepted %+v", u)
		}
	})
}
