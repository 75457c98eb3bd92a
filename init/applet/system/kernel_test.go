package system

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/init/unit"
)

func TestRecord(t *testing.T) {
	for in, want := range map[string]string{
		"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n": "<6>[    5.140900] NET: Registered\n",
		"30,1,0,-;weft: ready\\x0aagain \\x41\\xzz\n":       "<30>[    0.000000] weft: ready\n<30>[    0.000000] again A\\xzz\n",
		"6,1;x\n": "", "x": "", "a,1,2,-;x": "",
	} {
		if got, _ := record([]byte(in), true); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got, _ := record([]byte("6,339,123456789012,c;a"), false); got != "[123456.789012] a\n" {
		t.Errorf("%q", got)
	}
	if got := string(withoutLevels([]byte("<6>[ 1.0] a\n<12>b\nno\n<x"))); got != "[ 1.0] a\nb\nno\n<x" {
		t.Errorf("%q", got)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET\\x0a: Registered\n SUBSYSTEM=net\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if line, ok := record(b, false); ok && !strings.HasSuffix(line, "\n") {
			t.Errorf("%q gives %q", b, line)
		}
		withoutLevels(b)
		parseModules(string(b))
	})
}

func TestDmesg(t *testing.T) {
	r := call(t, Dmesg, "", "dmesg")
	if r.code != 0 {
		if !strings.Contains(r.err, "only root may") {
			t.Fatalf("%+v", r)
		}
		t.Skip(r.err)
	}
	if strings.HasPrefix(r.out, "<") || r.out != "" && !strings.HasSuffix(r.out, "\n") {
		t.Errorf("%.200q", r.out)
	}
}

// TestFollow reads what was written to the log before, and stops with its context.
func TestFollow(t *testing.T) {
	if f, err := os.Open("/dev/kmsg"); err != nil {
		t.Skipf("no kernel log here: %v", err)
	} else {
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := writeFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	})
	if code := Dmesg(ctx, &unit.Call{Args: []string{"dmesg", "-w"}, Stdout: w, Stderr: w}); code != 0 {
		t.Errorf("exit code %d", code)
	}
	full := errors.New("disk full")
	if err := follow(t.Context(), writeFunc(func([]byte) (int, error) { return 0, full }), false); !errors.Is(err, full) {
		t.Errorf("a write that failed: %v", err)
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

func TestModules(t *testing.T) {
	got := parseModules("veth 36864 0 - Live 0x0\nbridge 311296 1 br_netfilter, Live 0x0\nshort\nllc 16384 2 bridge,stp, Live 0x0 (E)\n")
	if len(got) != 3 || got[0].users != nil || !slices.Equal(got[2].users, []string{"bridge", "stp"}) || got[1].count != "1" {
		t.Errorf("%+v", got)
	}
	if out := ok(t, Lsmod, "lsmod"); !strings.HasPrefix(out, "Module                  Size  Used by\n") {
		t.Errorf("%q", out)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.dep"), "kernel/net/nf-tables.ko: kernel/lib/x.ko\nkernel/lib/x.ko.xz:\n")
	for name, want := range map[string]string{"nf_tables": "kernel/net/nf-tables.ko", "x": "kernel/lib/x.ko.xz"} {
		if got, err := moduleFile(dir, name); err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if _, err := moduleFile(dir, "y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if os.Geteuid() == 0 {
		fails(t, 1, "unload nosuchmodule", Rmmod, "rmmod", "nosuchmodule.ko")
	}
	fails(t, 1, "nosuchmodule", Insmod, "insmod", "nosuchmodule")
	fails(t, 1, "no such file", Insmod, "insmod", dir+"/none.ko")
}

func TestUname(t *testing.T) {
	uname, err := exec.LookPath("uname")
	if err != nil {
		t.Skip("no uname here")
	}
	for _, opt := range []string{"", "-s", "-n", "-r", "-v", "-m", "-o", "-sr"} {
		args := []string{"uname"}
		if opt != "" {
			args = append(args, opt)
		}
		want, err := exec.Command(uname, args[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := ok(t, Uname, args...); got != string(want) {
			t.Errorf("uname %s: %q, want %q", opt, got, want)
		}
	}
	if a, m := ok(t, Arch, "arch"), ok(t, Uname, "uname", "-m"); a != m {
		t.Errorf("arch %q, uname -m %q", a, m)
	}
	all := ok(t, Uname, "uname", "-a")
	if !strings.HasPrefix(all, "Linux ") || !strings.HasSuffix(all, " GNU/Linux\n") || strings.Contains(all, "unknown") {
		t.Errorf("%q", all)
	}
}

func TestHostname(t *testing.T) {
	if !namespace(t) {
		return
	}
	ok(t, Hostname, "hostname", "gw.example.net")
	for opt, want := range map[string]string{"-s": "gw\n", "-d": "example.net\n", "-f": "gw.example.net\n"} {
		if got := ok(t, Hostname, "hostname", opt); got != want {
			t.Errorf("%s: %q", opt, got)
		}
	}
	name := filepath.Join(t.TempDir(), "name")
	write(t, name, "# the name\n\n  edge \n")
	ok(t, Hostname, "hostname", "-F", name)
	if got := ok(t, Hostname, "hostname"); got != "edge\n" {
		t.Errorf("%q", got)
	}
	write(t, name, "# nothing\n")
	fails(t, 1, "no name", Hostname, "hostname", "-F", name)
}

func TestSysctl(t *testing.T) {
	root := t.TempDir()
	for key, value := range map[string]string{"net/ipv4/ip_forward": "0\n", "net/ipv4/conf/eth0.1/rp_filter": "1\n", "kernel/two": "a 1\nb 2\n"} {
		write(t, filepath.Join(root, key), value)
	}
	run := func(args ...string) result {
		return call(t, func(ctx context.Context, c *unit.Call) int { return sysctl(ctx, c, root) }, "", append([]string{"sysctl"}, args...)...)
	}
	conf := filepath.Join(t.TempDir(), "conf")
	write(t, conf, "# comment\n; too\nnet.ipv4.ip_forward = 1\nno.such.key=1\n-no.such.other = 2\nnonsense\nkernel.two=c d\n")
	for _, tc := range []struct {
		args string
		want result
	}{
		{"net.ipv4.ip_forward", result{"net.ipv4.ip_forward = 0\n", "", 0}},
		{"-n net/ipv4/ip_forward", result{"0\n", "", 0}},
		{"-N net.ipv4.ip_forward", result{"net.ipv4.ip_forward\n", "", 0}},
		{"net.ipv4.conf.eth0/1.rp_filter", result{"net.ipv4.conf.eth0/1.rp_filter = 1\n", "", 0}},
		{"net/ipv4/conf/eth0.1/rp_filter", result{"net.ipv4.conf.eth0/1.rp_filter = 1\n", "", 0}},
		{"kernel.two", result{"kernel.two = a 1\nkernel.two = b 2\n", "", 0}},
		{"kernel", result{"kernel.two = a 1\nkernel.two = b 2\n", "", 0}},
		{"-a", result{"kernel.two = a 1\nkernel.two = b 2\nnet.ipv4.conf.eth0/1.rp_filter = 1\nnet.ipv4.ip_forward = 0\n", "", 0}},
		{"no.key", result{"", "sysctl: error: 'no.key' is an unknown key\n", 1}},
		{"-e no.key", result{"", "", 0}},
		{"-w no.key=1", result{"", "sysctl: error: 'no.key' is an unknown key\n", 1}},
		{"net/../../x", result{"", "sysctl: net/../../x: \"net/../../x\" is not a key\n", 1}},
		{"-w net.ipv4.ip_forward=7", result{"net.ipv4.ip_forward = 7\n", "", 0}},
		{"-qw net.ipv4.ip_forward=5", result{"", "", 0}},
		{"-e -p " + conf, result{"net.ipv4.ip_forward = 1\nkernel.two = c d\n", "sysctl: " + conf + ":6: expected KEY=VALUE\n", 1}},
		{"-n -p " + conf, result{"1\nc d\n", "sysctl: error: 'no.such.key' is an unknown key\nsysctl: " + conf + ":6: expected KEY=VALUE\n", 1}},
		{"-e -p /nonexistent", result{"", "", 0}},
		{"-p /nonexistent", result{"", "sysctl: /nonexistent: no such file or directory\n", 1}},
	} {
		if got := run(strings.Fields(tc.args)...); got != tc.want {
			t.Errorf("sysctl %s: %+v, want %+v", tc.args, got, tc.want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "no")); err == nil {
		t.Error("a key was made")
	}
	if got := read(t, filepath.Join(root, "kernel/two")); !strings.HasPrefix(got, "c d\n") {
		t.Errorf("kernel.two has %q", got)
	}
}

func TestID(t *testing.T) {
	id, err := exec.LookPath("id")
	if err != nil {
		t.Skip("no id here")
	}
	for _, line := range []string{"", "-u", "-g", "-G", "-un", "-gn", "-Gn", "-ru", "root", "-u nobody", "-gn nobody", "-G nobody"} {
		args := strings.Fields(line)
		want, err := exec.Command(id, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := ok(t, ID, append([]string{"id"}, args...)...); got != string(want) {
			t.Errorf("id %s: %q, want %q", line, got, want)
		}
	}
	fails(t, 1, "no user", ID, "id", "nosuchuser")
}
