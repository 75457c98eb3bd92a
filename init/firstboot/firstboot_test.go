package firstboot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// device is a root folder with the shell of the machine.
type device struct {
	*Setup
	t      *testing.T
	log    strings.Builder
	shells int
}

func newDevice(t *testing.T, files map[string]string) *device {
	t.Helper()
	d := &device{t: t}
	root := t.TempDir()
	d.Setup = &Setup{
		Root: root,
		Log:  slog.New(slog.NewTextHandler(&d.log, nil)),
		Sh: func(ctx context.Context, argv []string) (int, error) {
			d.shells++
			for i, a := range argv {
				if strings.HasPrefix(a, "/") {
					argv[i] = filepath.Join(root, a)
				}
			}
			cmd := exec.CommandContext(ctx, "/bin/sh", argv[1:]...)
			cmd.Env = append(os.Environ(), "ROOT="+root)
			out, err := cmd.CombinedOutput()
			t.Logf("shell: %s", out)
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return exit.ExitCode(), nil
			}
			return 0, err
		},
	}
	for _, dir := range []string{"tmp", "etc/config", "sys/class/net/eth0"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func (d *device) boot() {
	d.t.Helper()
	if err := d.Run(context.Background()); err != nil {
		d.t.Fatalf("%v\n%s", err, d.log.String())
	}
}

func (d *device) read(name string) string {
	d.t.Helper()
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

const wantNetwork = `
config interface 'loopback'
	option device 'lo'
	option proto 'static'
	list ipaddr '127.0.0.1/8'

config globals 'globals'
	option dhcp_default_duid 'DUID'
	option ula_prefix 'ULA'

config device
	option name 'br-lan'
	option type 'bridge'
	list ports 'eth0'

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	list ipaddr '192.168.1.1/24'
	option ip6assign '60'

config interface 'wan'
	option device 'eth1'
	option proto 'dhcp'

config interface 'wan6'
	option device 'eth1'
	option proto 'dhcpv6'

`

const wantSystem = `
config system
	option hostname 'Weft'
	option timezone 'GMT0'
	option zonename 'UTC'
	option ttylogin '0'
	option log_size '128'
	option urandom_seed '0'
	option compat_version '1.0'

config timeserver 'ntp'
	option enabled '1'
	option enable_server '0'
	list server '0.openwrt.pool.ntp.org'
	list server '1.openwrt.pool.ntp.org'
	list server '2.openwrt.pool.ntp.org'
	list server '3.openwrt.pool.ntp.org'

`

func TestFreshDevice(t *testing.T) {
	d := newDevice(t, map[string]string{
		"sys/class/net/eth1/mtu": "1500\n",
		"tmp/sysinfo/board_name": "pc-engines-apu4\n",
		"tmp/sysinfo/model":      "PC Engines apu4\n",
	})
	d.boot()
	network := d.read("etc/config/network")
	ula := regexp.MustCompile(`'fd[0-9a-f]{2}:[0-9a-f]{4}:[0-9a-f]{4}::/48'`)
	duid := regexp.MustCompile(`'0004[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}'`)
	network = duid.ReplaceAllString(ula.ReplaceAllString(network, "'ULA'"), "'DUID'")
	if network != wantNetwork {
		t.Errorf("network:\n%s\nwant\n%s", network, wantNetwork)
	}
	if got := d.read("etc/config/system"); got != wantSystem {
		t.Errorf("system:\n%s\nwant\n%s", got, wantSystem)
	}
	for _, want := range []string{`"id": "pc-engines-apu4"`, `"name": "PC Engines apu4"`, `"device": "eth1"`} {
		if !strings.Contains(d.read("etc/board.json"), want) {
			t.Errorf("board.json has no %s:\n%s", want, d.read("etc/board.json"))
		}
	}
	for _, name := range []string{"network", "system"} {
		if fi, err := os.Stat(d.path("etc/config", name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	if d.shells != 0 {
		t.Errorf("%d shells were started, nothing needs one", d.shells)
	}

	// The second boot changes nothing.
	before := d.read("etc/config/network")
	d.log.Reset()
	d.boot()
	if d.read("etc/config/network") != before || d.shells != 0 || d.log.Len() != 0 {
		t.Errorf("the second boot did something: %s", d.log.String())
	}
}

func TestOneEthernetPort(t *testing.T) {
	d := newDevice(t, nil)
	d.boot()
	if got := d.read("etc/config/network"); strings.Contains(got, "wan") || !strings.Contains(got, "list ports 'eth0'") {
		t.Errorf("network:\n%s", got)
	}
}

func TestExistingConfigStays(t *testing.T) {
	mine := "config interface 'lan'\n\toption proto 'dhcp'\n"
	d := newDevice(t, map[string]string{"etc/config/network": mine, "etc/config/system": ""})
	d.boot()
	if got := d.read("etc/config/network"); got != mine {
		t.Errorf("network was changed to:\n%s", got)
	}
	if got := d.read("etc/config/system"); got != wantSystem {
		t.Errorf("an empty system file was not filled:\n%s", got)
	}
}

func TestBoardOfTheImage(t *testing.T) {
	d := newDevice(t, map[string]string{
		"usr/lib/weft/board.json": `{"network": {"lan": {"ports": ["eth1", "eth2"], "macaddr": "02:00:00:00:00:01"}, "wan": {"device": "eth0", "protocol": "dhcp"}, "guest": {"device": "eth3", "protocol": "static"}}, "system": {"hostname": "gate", "ntpserver": ["ntp.example.org"]}, "network_device": {"eth0": {"macaddr": "02:00:00:00:00:02"}}, "own": {"key": 1}}`,
		"etc/board.d/10-more":     `sed -i 's/gate/gateway/' "$ROOT/etc/board.json"` + "\n",
		"etc/board.d/20-fails":    "exit 3\n",
	})
	d.boot()
	board := d.read("etc/board.json")
	if !strings.Contains(board, `"own"`) || strings.Contains(board, `"device": "eth1"`) {
		t.Errorf("board.json:\n%s", board)
	}
	network := d.read("etc/config/network")
	for _, want := range []string{
		"\toption name 'br-lan'\n\toption type 'bridge'\n\tlist ports 'eth1'\n\tlist ports 'eth2'\n\toption macaddr '02:00:00:00:00:01'\n",
		"config interface 'guest'\n\toption device 'eth3'\n\toption proto 'static'\n\tlist ipaddr '192.168.2.1/24'\n",
		"config device\n\toption name 'eth0'\n\toption macaddr '02:00:00:00:00:02'\n",
	} {
		if !strings.Contains(network, want) {
			t.Errorf("network has no\n%s\nin\n%s", want, network)
		}
	}
	if strings.Index(network, "'lan'") > strings.Index(network, "'wan'") || strings.Index(network, "'wan'") > strings.Index(network, "'guest'") {
		t.Errorf("order of networks:\n%s", network)
	}
	if sys := d.read("etc/config/system"); !strings.Contains(sys, "hostname 'gateway'") || !strings.Contains(sys, "list server 'ntp.example.org'") {
		t.Errorf("system:\n%s", sys)
	}
	if !strings.Contains(d.log.String(), "script=20-fails exit=3") {
		t.Errorf("a failing board script is not reported: %s", d.log.String())
	}
}

func TestBoardScriptBreaksJSON(t *testing.T) {
	d := newDevice(t, map[string]string{"etc/board.d/10-bad": `echo '{"network":' >"$ROOT/etc/board.json"` + "\n"})
	d.boot()
	if !strings.Contains(d.read("etc/board.json"), `"eth0"`) || !strings.Contains(d.log.String(), "no JSON") {
		t.Errorf("board.json:\n%s\nlog: %s", d.read("etc/board.json"), d.log.String())
	}
}

func TestBadBoardValues(t *testing.T) {
	for _, text := range []string{
		`{"network": {"lan": {"device": "eth0", "protocol": "static", "ipaddr": "not an address"}}}`,
		`{"network": {"lan": {"device": "eth0", "protocol": "static", "netmask": "255.0.255.0"}}}`,
		`{"network": {"lan": {"device": "eth0\u0001", "protocol": "dhcp"}}}`,
		`{"network": []}`,
	} {
		d := newDevice(t, map[string]string{"etc/board.json": text})
		if err := d.Run(context.Background()); err == nil {
			t.Errorf("%s: no error", text)
		}
		if _, err := os.Stat(d.path("etc/config/network")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a network file was written", text)
		}
	}
}

func TestUCIDefaults(t *testing.T) {
	d := newDevice(t, map[string]string{
		"etc/config/network":           "config globals 'globals'\n\toption ula_prefix 'fd00::/48'\n",
		"etc/config/system":            "config system\n\toption hostname 'old'\n",
		"etc/uci-defaults/20-second":   "echo second $X >>\"$ROOT/order\"\nexit 0\n",
		"etc/uci-defaults/10-first":    "X=leaks\necho first >>\"$ROOT/order\"\nmkdir -p \"$ROOT/tmp/.uci\"\necho \"system.cfg01e48a.hostname='new'\" >>\"$ROOT/tmp/.uci/system\"\n",
		"etc/uci-defaults/30-fails":    "echo third >>\"$ROOT/order\"\nexit 7\n",
		"etc/uci-defaults/40-false":    "false\n",
		"etc/uci-defaults/.hidden":     "exit 0\n",
		"etc/uci-defaults/50-dir/file": "exit 0\n",
	})
	d.boot()
	if got := d.read("order"); got != "first\nsecond\nthird\n" {
		t.Errorf("order and isolation:\n%s", got)
	}
	for name, kept := range map[string]bool{"10-first": false, "20-second": false, "30-fails": true, "40-false": true, ".hidden": true} {
		if _, err := os.Lstat(d.path("etc/uci-defaults", name)); (err == nil) != kept {
			t.Errorf("%s kept: %v, want %v", name, err == nil, kept)
		}
	}
	if got := d.read("etc/config/system"); !strings.Contains(got, "hostname 'new'") {
		t.Errorf("staged changes were not committed:\n%s", got)
	}
	if d.shells != 1 {
		t.Errorf("%d shells for all scripts, want 1", d.shells)
	}
	if !strings.Contains(d.log.String(), "script=30-fails exit=7") {
		t.Errorf("log: %s", d.log.String())
	}
}

// TestUCIDefaultsCut: the shell dies in the second script; the first is done,
// the others come again.
func TestUCIDefaultsCut(t *testing.T) {
	d := newDevice(t, map[string]string{
		"etc/uci-defaults/1": "exit 0\n",
		"etc/uci-defaults/2": "kill -9 $$\n",
		"etc/uci-defaults/3": "exit 0\n",
	})
	d.boot()
	for name, kept := range map[string]bool{"1": false, "2": true, "3": true} {
		if _, err := os.Stat(d.path("etc/uci-defaults", name)); (err == nil) != kept {
			t.Errorf("script %s kept: %v, want %v", name, err == nil, kept)
		}
	}
}

// TestUCIDefaultsHang: the limit ends a script that never does.
func TestUCIDefaultsHang(t *testing.T) {
	d := newDevice(t, map[string]string{"etc/uci-defaults/1": "exit 0\n"})
	d.Sh = func(ctx context.Context, argv []string) (int, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the scripts have no time limit")
		}
		return 0, context.DeadlineExceeded
	}
	if err := d.Run(context.Background()); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(d.path("etc/uci-defaults/1")); err != nil {
		t.Errorf("the script is gone: %v", err)
	}
}

func TestHashesEveryBoot(t *testing.T) {
	d := newDevice(t, nil)
	n := 0
	d.Hashes = func(context.Context) error { n++; return nil }
	d.boot()
	d.boot()
	if n != 2 {
		t.Errorf("hashes were taken %d times in two boots", n)
	}
}
