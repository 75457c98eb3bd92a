package rpcd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/bus"
)

// withPrograms gives the server programs that note how they were called.
func (f *fixture) withPrograms() {
	f.t.Helper()
	note := func(name, more string) string {
		f.write("bin/"+name, "#!/bin/sh\nline=\nfor a in \"$0\" \"$@\"; do line=\"$line${a##*/} \"; done\necho $line >> '"+f.path("calls")+"'\n"+more+"\n")
		if err := os.Chmod(f.path("bin/"+name), 0o755); err != nil {
			f.t.Fatal(err)
		}
		return f.path("bin/" + name)
	}
	f.write("calls", "")
	f.write("release", "DISTRIB_ID='Weft'\nDISTRIB_RELEASE='0.1.0'\nDISTRIB_REVISION='r7-0123456789'\n")
	f.prog = programs{
		passwd: note("passwd", `read a; read b; echo "$a $b" >> '`+f.path("calls")+`'; [ "$1" != nobody ] || { echo "no such user" >&2; exit 1; }`), sysupgrade: note("sysupgrade", "echo checked; exit 3"),
		factoryReset: note("factoryreset", ""), reboot: note("reboot", ""), firmware: f.path("firmware.bin"), release: f.path("release"),
		initDir: f.path("init.d"), rcDir: f.path("rc.d"), plugins: f.path("plugins"),
	}
	f.server.call = func(_ context.Context, object, method string, _ any) (bus.Table, error) {
		return bus.ParseJSON(`{"network":{"instances":{"instance1":{"running":true,"pid":7}}},"other":{"instances":{"instance1":{"running":false}}}}`)
	}
}

// awaitCalls waits for what a detached program notes.
func (f *fixture) awaitCalls(want string) {
	f.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for f.read("calls") != want {
		if time.Now().After(deadline) {
			f.t.Fatalf("called %q, want %q", f.read("calls"), want)
		}
		<-tick.C
	}
	f.write("calls", "")
}

func TestSys(t *testing.T) {
	f := newFixture(t)
	f.withPrograms()
	f.expect(f.sysPackagelist, `{}`, `{"packages":{"weft":"0.1.0-r7-0123456789"}}`)
	f.expect(f.sysPasswordSet, `{"user":"root","password":"new one"}`, "")
	f.awaitCalls("passwd root\nnew one new one\n")
	f.expect(f.sysPasswordSet, `{"user":"nobody","password":"x"}`, bus.StatusUnknownError)
	f.awaitCalls("passwd nobody\nx x\n")
	for _, args := range []string{`{}`, `{"user":"root"}`, `{"user":"-d","password":"x"}`, `{"user":"root","password":"a\nb"}`, `{"user":"a:b","password":"x"}`,
		`{"user":"root","password":"` + strings.Repeat("x", 600) + `"}`} {
		f.expect(f.sysPasswordSet, args, bus.StatusInvalidArgument)
	}
	f.expect(f.sysUpgradeTest, `{}`, `{"code":3,"stdout":"checked\n"}`)
	f.awaitCalls("sysupgrade --test firmware.bin\n")
	f.expect(f.sysUpgradeStart, `{}`, bus.StatusNotFound)
	f.write("firmware.bin", "image")
	f.expect(f.sysUpgradeStart, `{"keep":true}`, "")
	f.awaitCalls("sysupgrade firmware.bin\n")
	f.expect(f.sysUpgradeStart, `{"keep":false}`, "")
	f.awaitCalls("sysupgrade -n firmware.bin\n")
	f.expect(f.sysUpgradeClean, `{}`, "")
	f.expect(f.sysUpgradeClean, `{}`, "")
	if _, err := os.Stat(f.path("firmware.bin")); !os.IsNotExist(err) {
		t.Error("the image is still there")
	}
	f.expect(f.sysFactory, `{}`, "")
	f.awaitCalls("factoryreset -y -r\n")
	f.expect(f.sysReboot, `{}`, "")
	f.awaitCalls("reboot\n")
}

func TestRC(t *testing.T) {
	f := newFixture(t)
	f.withPrograms()
	f.script("init.d/network", "exit 0")
	f.script("init.d/other", "START=95\nSTOP='10'\n[ \"$1\" != stop ] || exit 4\necho \"$1\" >> '"+f.path("calls")+"'")
	f.write("init.d/README", "no script")
	if err := os.Mkdir(f.path("rc.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"S20network", "K90network", "S99gone", "Sxxother"} {
		if err := os.Symlink("../init.d/x", filepath.Join(f.path("rc.d"), l)); err != nil {
			t.Fatal(err)
		}
	}
	f.expect(f.rcList, `{}`, `{"network":{"start":20,"stop":90,"enabled":true,"running":true},"other":{"start":95,"stop":10,"enabled":false,"running":false}}`)
	f.expect(f.rcList, `{"name":"network"}`, `{"network":{"start":20,"stop":90,"enabled":true,"running":true}}`)
	f.expect(f.rcList, `{"name":"none"}`, bus.StatusNotFound)
	f.expect(f.rcInit, `{"name":"other","action":"restart"}`, "")
	f.awaitCalls("restart\n")
	f.expect(f.rcInit, `{"name":"other","action":"stop"}`, bus.StatusUnknownError)
	f.expect(f.rcInit, `{"name":"none","action":"start"}`, bus.StatusNotFound)
	for _, args := range []string{`{"name":"other"}`, `{"name":"other","action":"explode"}`, `{"name":"../init.d/other","action":"start"}`, `{"name":"","action":"start"}`} {
		f.expect(f.rcInit, args, bus.StatusInvalidArgument)
	}
}

func (f *fixture) script(name, text string) {
	f.t.Helper()
	f.write(name, "#!/bin/sh\n"+text+"\n")
	if err := os.Chmod(f.path(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

func TestPlugins(t *testing.T) {
	f := newFixture(t)
	f.withPrograms()
	f.write("config/rpcd", "config rpcd\n\toption timeout '1'\n")
	f.script("plugins/good", `case $1 in
list) echo '{"echo":{"text":"str","count":32,"deep":{},"flag":true},"none":{},"bad":{},"fail":{},"slow":{}}' ;;
call) case $2 in
	echo) read line; echo "{\"got\":$line}" ;;
	none) ;;
	bad) echo 'no json' ;;
	fail) exit 3 ;;
	slow) exec sleep 1000 ;;
	esac ;;
esac`)
	f.script("plugins/broken", "echo '[1]'")
	f.script("plugins/fails", "exit 1")
	f.script("plugins/hangs", "sleep 1000")
	f.write("plugins/README", "not executable")
	list := f.server.plugins(t.Context())
	if len(list) != 1 || list[0].Name != "good" {
		t.Fatalf("plugins %+v", list)
	}
	got := fmt.Sprintf("%s %v", list[0].Methods[0].Name, list[0].Methods[0].Args)
	if want := fmt.Sprintf("echo [{text %v} {count %v} {deep %v} {flag %v}]", bus.TypeString, bus.TypeInt32, bus.TypeTable, bus.TypeBool); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	path := f.path("plugins/good")
	for name, want := range map[string]any{
		"echo": `{"got":{"text":"a/b","n":[1,{}]}}`, "none": bus.StatusNoData, "bad": bus.StatusInvalidArgument,
		"fail": bus.StatusUnknownError, "slow": bus.StatusTimeout,
	} {
		f.expect(func(ctx context.Context, args bus.Table, reply func(any) error) error {
			return f.callPlugin(ctx, path, name, args, reply)
		}, `{"text":"a/b","n":[1,{}]}`, want)
	}
}

// TestGuard: a program that is not root's may do what its session may, no more.
func TestGuard(t *testing.T) {
	f := newFixture(t)
	f.self = "tester"
	net := f.login("net", "password")
	for _, c := range []struct {
		user, object, method, args string
		ok                         bool
	}{
		{"root", "uci", "get", `{}`, true},
		{"tester", "uci", "get", `{}`, true},
		{"uhttpd", "uci", "get", `{}`, false},
		{"uhttpd", "file", "exec", `{` + sid(net) + `}`, false},
		{"uhttpd", "file", "exec", `{` + sid(strings.Repeat("b", 32)) + `}`, false},
		{"uhttpd", "session", "access", `{}`, true},
		{"uhttpd", "session", "login", `{` + sid(anonymous) + `}`, true},
		{"uhttpd", "session", "grant", `{` + sid(net) + `}`, false},
		{"uhttpd", "session", "create", `{}`, false},
		{"uhttpd", "network.x", "status", `{` + sid(net) + `}`, true},
	} {
		args, err := bus.ParseJSON(c.args)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.mayCall(c.user, c.object, c.method, args); (err == nil) != c.ok {
			t.Errorf("%s: %s %s %s: %v, want it allowed: %v", c.user, c.object, c.method, c.args, err, c.ok)
		}
	}
}

// TestSessionsOfUser logs in 10,000 times: memory stays bounded, the newest
// sessions work, and others are not locked out.
func TestSessionsOfUser(t *testing.T) {
	f := newFixture(t)
	writer := f.login("open", "any")
	var last string
	n := 10_000
	if testing.Short() {
		n = 200
	}
	for range n {
		f.mu.Lock()
		f.makePlace("root")
		ses, err := f.createSession(defaultTimeout)
		if err == nil {
			ses.data["username"] = "root"
			last = ses.id
		}
		f.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sessions) > maxOfUser+3 {
		t.Errorf("%d sessions", len(f.sessions))
	}
	if f.sessions[last] == nil || f.sessions[writer] == nil {
		t.Error("the newest session, or another user's, was dropped")
	}
}

// TestBlankFromAfar: an account without a password is open to local networks alone.
func TestBlankFromAfar(t *testing.T) {
	f := newFixture(t)
	for from, ok := range map[string]bool{
		"192.168.1.7": true, "fd00::7": true, "fe80::1": true, "127.0.0.1": true, "::ffff:10.0.0.1": true,
		"203.0.113.7": false, "2001:db8::7": false, "100.64.0.1": false, "": false, "nonsense": false,
	} {
		_, err := f.call(f.sessionLogin, `{"username":"open","password":"","from":"`+from+`"}`)
		if (err == nil) != ok {
			t.Errorf("from %q: %v, want a login: %v", from, err, ok)
		}
		// Who has a password may come from anywhere.
		if _, err := f.call(f.sessionLogin, `{"username":"root","password":"Hello world!","from":"`+from+`"}`); err != nil {
			t.Errorf("with a password from %q: %v", from, err)
		}
	}
}

// A service without root reads what it follows, and nothing else.
func TestServiceReads(t *testing.T) {
	s := &server{}
	for _, c := range []struct {
		user, method, config string
		want                 bool
	}{
		{"dnsmasq", "get", "dhcp", true},
		{"dnsmasq", "get", "network", true},
		{"dnsmasq", "get", "rpcd", false},
		{"dnsmasq", "set", "dhcp", false},
		{"uhttpd", "get", "dhcp", false},
	} {
		err := s.mayCall(c.user, "uci", c.method, bus.Table{{Name: "config", Value: c.config}})
		if (err == nil) != c.want {
			t.Errorf("%s %s of %s: %v", c.user, c.method, c.config, err)
		}
	}
}
