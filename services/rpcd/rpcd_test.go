package rpcd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

// fixture is a server without a bus.
type fixture struct {
	*server
	t       *testing.T
	dir     string
	log     bytes.Buffer
	logMu   sync.Mutex
	changes []string
	cancel  context.CancelFunc
}

func (f *fixture) Write(b []byte) (int, error) {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	return f.log.Write(b)
}

const network = `
config interface 'lan'
	option proto 'static'
	option device 'br-lan'
	list dns '1.1.1.1'
	list dns '9.9.9.9'

config device
	option name 'br-lan'
	option ports 'eth0 eth1'

config interface 'wan'
	option proto 'dhcp'
`

const acls = `{
	"unauthenticated": { "description": "login", "read": { "ubus": { "session": [ "access", "login" ] } } },
	"net": {
		"read":  { "uci": [ "network" ], "ubus": { "network.*": [ "status", "dump" ] } },
		"write": { "uci": [ "network" ], "file": { "/tmp/up/*": [ "write" ] } }
	},
	"all": { "read": { "uci": [ "*" ], "file": { "/*": [ "read", "list" ] } }, "write": { "uci": [ "*" ] } },
	"broken": [ 1, 2 ]
}`

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: t.TempDir()}
	f.write("config/network", network)
	f.write("config/system", "\nconfig system\n\toption hostname 'LEDE'\n")
	f.write("config/rpcd", `
config login
	option username 'root'
	option password '$p$root'
	list read '*'
	list write '*'

config login
	option username 'net'
	option password '$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/'
	list read 'net'

config login
	option username 'writer'
	option password '$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5'
	list write '*'
	list write '!all'

config login
	option username 'locked'
	option password '$p$locked'
	list read '*'

config login
	option username 'nobodyknows'
	option password '$p$missing'

config login
	option username 'open'
	option password '$p$open'
`)
	f.write("acl/base.json", acls)
	f.write("acl/bad.json", "{")
	f.write("shadow", "root:$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1:0:0:99999:7:::\nlocked:!:0::::::\nopen::0::::::\n")
	f.start()
	return f
}

// start makes a server on the folders, as a start of the process does.
func (f *fixture) start() {
	ctx, cancel := context.WithCancel(context.Background())
	epoch := time.Now()
	f.server = &server{
		log: slog.New(slog.NewTextHandler(f, nil)), configDir: filepath.Join(f.dir, "config"), stateDir: filepath.Join(f.dir, "state"), keepDir: filepath.Join(f.dir, "keep"),
		aclDir: filepath.Join(f.dir, "acl"), varState: filepath.Join(f.dir, "varstate"), passwd: []string{filepath.Join(f.dir, "shadow")},
		now: func() time.Duration { return time.Since(epoch) + time.Hour }, bootID: "this boot",
	}
	f.changed = func(_ context.Context, pkgs []string) { f.changes = append(f.changes, pkgs...) }
	f.cancel = cancel
	if err := f.server.start(ctx); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(f.kill)
}

// kill ends the server without any tidying of its folders.
func (f *fixture) kill() {
	f.server.stop()
	f.cancel()
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) write(name, text string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) read(name string) string {
	f.t.Helper()
	b, err := os.ReadFile(f.path(name))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// call runs a method; args is JSON. The replies come as one line of JSON each.
func (f *fixture) call(h handler, args string) (string, error) {
	f.t.Helper()
	a, err := bus.ParseJSON(args)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	err = h(f.t.Context(), a, func(v any) error {
		t, err := bus.Encode(v)
		out = append(out, strings.ReplaceAll(string(t.AppendJSON(nil, false)), `\/`, `/`))
		return err
	})
	return strings.Join(out, "\n"), err
}

// expect calls and compares; want is the reply, or a status.
func (f *fixture) expect(h handler, args string, want any) {
	f.t.Helper()
	got, err := f.call(h, args)
	switch w := want.(type) {
	case bus.Status:
		if !errors.Is(err, w) {
			f.t.Errorf("%s: got %s, %v, want the status %d", args, got, err, int(w))
		}
	case string:
		if err != nil || got != w {
			f.t.Errorf("%s:\n got %s, %v\nwant %s", args, got, err, w)
		}
	}
}

// login returns a session's id.
func (f *fixture) login(user, password string) string {
	f.t.Helper()
	got, err := f.call(f.sessionLogin, `{"username":"`+user+`","password":"`+password+`"}`)
	if err != nil {
		f.t.Fatalf("login %s: %v", user, err)
	}
	t, err := bus.ParseJSON(got)
	if err != nil {
		f.t.Fatal(err)
	}
	return t.String(sidArg)
}

func sid(id string) string { return `"ubus_rpc_session":"` + id + `"` }

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "b", false}, {"a", "ab", false}, {"*", "", true}, {"*", "a/b", true},
		{"network.*", "network.lan", true}, {"network.*", "network", false}, {"*.lan", "network.lan", true}, {"n*l*n", "network.lan", true},
		{"n?t", "net", true}, {"n?t", "nt", false}, {"[a-c]x", "bx", true}, {"[a-c]x", "dx", false}, {"[!a-c]x", "dx", true}, {"[!a-c]x", "ax", false},
		{"[]]", "]", true}, {"[a-]", "-", true}, {"[", "[", true}, {"[ab", "[ab", true}, {`a\*`, `a\b`, true}, {"/tmp/*/x", "/tmp/a/b/x", true},
		{"a*b*c*d*e*f*g*h*", strings.Repeat("abcdefg", 500), false}, {"**a**", "xax", true}, {"*?", "", false},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%q, %.20q) = %v", c.pattern, c.s, got)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a*[b-c]?", "abcd")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if !strings.ContainsAny(pattern, "*?[") && match(pattern, s) != (pattern == s) {
			t.Fatal("a text without wildcards matches itself alone")
		}
		if !match(pattern+"*", s) && match(pattern, s) {
			t.Fatal("a longer pattern matches less")
		}
	})
}

func TestLogin(t *testing.T) {
	synctest.Test(t, testLogin) // the clock stands still
}

func testLogin(t *testing.T) {
	f := newFixture(t)
	for _, bad := range []string{
		`{"username":"root","password":"wrong"}`, `{"username":"root","password":""}`, `{"username":"other","password":"x"}`,
		`{"username":"locked","password":""}`, `{"username":"locked","password":"!"}`, `{"username":"nobodyknows","password":""}`,
	} {
		f.expect(f.sessionLogin, bad, bus.StatusPermissionDenied)
	}
	f.expect(f.sessionLogin, `{"username":"root"}`, bus.StatusInvalidArgument)
	f.expect(f.sessionLogin, `{"username":1,"password":"x"}`, bus.StatusInvalidArgument)
	f.login("open", "whatever") // an empty hash takes any

	// What the groups of a login grant.
	got, err := f.call(f.sessionLogin, `{"username":"net","password":"password","timeout":60}`)
	if err != nil {
		t.Fatal(err)
	}
	id := got[len(`{"ubus_rpc_session":"`):][:32]
	want := `{"ubus_rpc_session":"` + id + `","timeout":60,"expires":60,"acls":{"access-group":{"net":["read"]},"ubus":{"network.*":["status","dump"]},"uci":{"network":["read"]}},"data":{"username":"net"}}`
	if d := cmp.Diff(want, got); d != "" || !validSID(id) {
		t.Errorf("login (-want +got):\n%s", d)
	}
	access := func(id, scope, object, function string, want bool) {
		t.Helper()
		out := `{"access":false}`
		if want {
			out = `{"access":true}`
		}
		f.expect(f.sessionAccess, `{`+sid(id)+`,"scope":"`+scope+`","object":"`+object+`","function":"`+function+`"}`, out)
	}
	access(id, "ubus", "network.lan", "status", true)
	access(id, "ubus", "network.lan", "up", false)
	access(id, "uci", "network", "read", true)
	access(id, "uci", "network", "write", false)
	access(id, "access-group", "net", "read", true)
	access(anonymous, "ubus", "session", "login", true)
	access(anonymous, "ubus", "session", "list", false)

	// Write includes read; "!" takes out.
	w := f.login("writer", "Hello world!")
	access(w, "uci", "network", "write", true)
	access(w, "uci", "network", "read", true)
	access(w, "uci", "system", "read", false)
	r := f.login("root", "Hello world!")
	access(r, "uci", "system", "write", true)

	// A file that comes later counts for the anonymous session after a reload.
	f.write("acl/more.json", `{"unauthenticated":{"read":{"ubus":{"system":["board"]}}}}`)
	access(anonymous, "ubus", "system", "board", false)
	f.reloadACL()
	access(anonymous, "ubus", "system", "board", true)
	access(anonymous, "ubus", "session", "login", true)
	if !strings.Contains(f.log.String(), "bad.json") {
		t.Error("the broken ACL file was not reported")
	}
}

func TestSessions(t *testing.T) {
	f := newFixture(t)
	got, err := f.call(f.sessionCreate, `{"timeout":0}`)
	if err != nil {
		t.Fatal(err)
	}
	id := got[len(`{"ubus_rpc_session":"`):][:32]
	if want := `{"ubus_rpc_session":"` + id + `","timeout":0,"expires":0,"acls":{},"data":{}}`; got != want {
		t.Errorf("create: got %s", got)
	}
	s := sid(id)
	f.expect(f.sessionCreate, `{"timeout":-1}`, bus.StatusInvalidArgument)
	f.expect(f.sessionGrant, `{`+s+`,"objects":[["net*","a"],["net*","a"],["x","b","c"],["short"],1]}`, "")
	f.expect(f.sessionGrant, `{`+s+`,"scope":"file","objects":[["/tmp","read"]]}`, "")
	f.expect(f.sessionAccess, `{`+s+`}`, `{"file":{"/tmp":["read"]},"ubus":{"net*":["a"],"x":["b"]}}`)
	f.expect(f.sessionAccess, `{`+s+`,"object":"network","function":"a"}`, `{"access":true}`)
	f.expect(f.sessionRevoke, `{`+s+`,"objects":[["net*","a"]]}`, "")
	f.expect(f.sessionRevoke, `{`+s+`,"scope":"file"}`, "")
	f.expect(f.sessionAccess, `{`+s+`}`, `{"ubus":{"x":["b"]}}`)
	f.expect(f.sessionSet, `{`+s+`,"values":{"b":1,"a":{"x":[1]},"":2}}`, "")
	f.expect(f.sessionGet, `{`+s+`}`, `{"values":{"a":{"x":[1]},"b":1}}`)
	f.expect(f.sessionGet, `{`+s+`,"keys":["b","nope"]}`, `{"values":{"b":1}}`)
	f.expect(f.sessionUnset, `{`+s+`,"keys":["b"]}`, "")
	f.expect(f.sessionGet, `{`+s+`}`, `{"values":{"a":{"x":[1]}}}`)
	f.expect(f.sessionSet, `{`+s+`}`, bus.StatusInvalidArgument)
	f.expect(f.sessionSet, `{`+s+`,"values":{"big":"`+strings.Repeat("x", maxData)+`"}}`, bus.StatusNoMemory)
	f.expect(f.sessionList, `{`+s+`}`, `{`+s+`,"timeout":0,"expires":0,"acls":{"ubus":{"x":["b"]}},"data":{"a":{"x":[1]}}}`)
	if all, _ := f.call(f.sessionList, `{}`); strings.Count(all, "\n") != 1 {
		t.Errorf("list: %s", all)
	}

	// Another process takes the session up, but not what is none.
	f.write("state/sessions/../sessions/nosid", "{}")
	f.write("state/sessions/"+strings.Repeat("f", 32), "garbage")
	f.kill()
	f.start()
	f.expect(f.sessionList, `{`+s+`}`, `{`+s+`,"timeout":0,"expires":0,"acls":{"ubus":{"x":["b"]}},"data":{"a":{"x":[1]}}}`)
	if all, _ := f.call(f.sessionList, `{}`); strings.Count(all, "\n") != 1 {
		t.Errorf("list after a restart: %s", all)
	}

	f.expect(f.sessionUnset, `{`+s+`}`, "")
	f.expect(f.sessionGet, `{`+s+`}`, `{"values":{}}`)
	f.expect(f.sessionDestroy, `{`+sid(anonymous)+`}`, bus.StatusPermissionDenied)
	f.expect(f.sessionDestroy, `{}`, bus.StatusInvalidArgument)
	f.expect(f.sessionDestroy, `{`+s+`}`, "")
	for _, h := range []handler{f.sessionDestroy, f.sessionGet, f.sessionUnset, f.sessionGrant, f.sessionRevoke, f.sessionAccess, f.sessionList, f.sessionSet} {
		f.expect(h, `{`+s+`}`, bus.StatusNotFound)
	}
	f.expect(f.uciGet, `{"config":"network",`+s+`}`, bus.StatusPermissionDenied)
}

func TestSessionExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		id := f.login("root", "Hello world!")
		f.expect(f.uciSet, `{"config":"system","section":"@system[0]","values":{"hostname":"x"},`+sid(id)+`}`, "")
		for range 3 { // each use gives it its whole time again
			time.Sleep(defaultTimeout*time.Second - time.Second)
			f.expect(f.sessionAccess, `{`+sid(id)+`,"object":"a","function":"b"}`, `{"access":false}`)
		}
		if _, err := os.Stat(f.path("state/uci-" + id)); err != nil {
			t.Error(err)
		}
		time.Sleep(defaultTimeout*time.Second + time.Second)
		synctest.Wait()
		f.expect(f.sessionAccess, `{`+sid(id)+`}`, bus.StatusNotFound)
		f.expect(f.sessionAccess, `{`+sid(anonymous)+`,"object":"session","function":"login"}`, `{"access":true}`)
		if _, err := os.Stat(f.path("state/uci-" + id)); !os.IsNotExist(err) {
			t.Errorf("staged changes outlive their session: %v", err)
		}
	})
}

func TestUCI(t *testing.T) {
	f := newFixture(t)
	root := f.login("root", "Hello world!")
	net := f.login("net", "password")
	s := sid(root)

	f.expect(f.uciConfigs, `{}`, `{"configs":["network","rpcd","system"]}`)
	lan := `{".anonymous":false,".type":"interface",".name":"lan"`
	lanOpts := `"proto":"static","device":"br-lan","dns":["1.1.1.1","9.9.9.9"]}`
	dev := `{".anonymous":true,".type":"device",".name":"cfg020f15",".index":1,"name":"br-lan","ports":"eth0 eth1"}`
	wan := `{".anonymous":false,".type":"interface",".name":"wan",".index":2,"proto":"dhcp"}`
	f.expect(f.uciGet, `{"config":"network",`+s+`}`, `{"values":{"lan":`+lan+`,".index":0,`+lanOpts+`,"cfg020f15":`+dev+`,"wan":`+wan+`}}`)
	f.expect(f.uciGet, `{"config":"network","section":"lan"}`, `{"values":`+lan+`,`+lanOpts+`}`)
	f.expect(f.uciGet, `{"config":"network","section":"@device[0]","option":"name"}`, `{"value":"br-lan"}`)
	f.expect(f.uciGet, `{"config":"network","section":"lan","option":"dns"}`, `{"value":["1.1.1.1","9.9.9.9"]}`)
	f.expect(f.uciGet, `{"config":"network","section":"lan","option":"nope"}`, ``)
	f.expect(f.uciGet, `{"config":"network","section":"nope"}`, ``)
	f.expect(f.uciGet, `{"config":"network","section":"@device[7]"}`, bus.StatusNotFound)
	f.expect(f.uciGet, `{"config":"network","section":"@de"}`, bus.StatusInvalidArgument)
	f.expect(f.uciGet, `{"config":"network","type":"device"}`, `{"values":{"cfg020f15":`+dev+`}}`)
	f.expect(f.uciGet, `{"config":"network","match":{"ports":"eth1"}}`, `{"values":{"cfg020f15":`+dev+`}}`)
	f.expect(f.uciGet, `{"config":"network","match":{"proto":"dhcp","nope":"x"}}`, `{"values":{"wan":`+wan+`}}`)
	f.expect(f.uciGet, `{"config":"network","match":{"dns":"9.9.9.9","proto":"none"}}`, `{"values":{}}`)
	f.expect(f.uciGet, `{"config":"nope"}`, bus.StatusNotFound)
	f.expect(f.uciGet, `{}`, bus.StatusInvalidArgument)
	f.expect(f.uciGet, `{"config":"`+f.path("shadow")+`",`+s+`}`, bus.StatusInvalidArgument)
	f.expect(f.uciGet, `{"config":"../shadow",`+s+`}`, bus.StatusInvalidArgument)
	f.expect(f.uciGet, `{"config":"network",`+sid(net)+`,"section":"wan","option":"proto"}`, `{"value":"dhcp"}`)
	f.expect(f.uciGet, `{"config":"system",`+sid(net)+`}`, bus.StatusPermissionDenied)
	f.expect(f.uciGet, `{"config":"network",`+sid(anonymous)+`}`, bus.StatusPermissionDenied)
	f.expect(f.uciGet, `{"config":"network","ubus_rpc_session":5}`, bus.StatusPermissionDenied)
	f.expect(f.uciSet, `{"config":"network","section":"lan","values":{"mtu":1},`+sid(net)+`}`, bus.StatusPermissionDenied)
	f.write("varstate/network", "network.wan.up='1'\n")
	f.expect(f.uciState, `{"config":"network","section":"wan","option":"up"}`, `{"value":"1"}`)

	// Numbers and booleans are stored as text, values that are there already
	// leave no trace.
	f.expect(f.uciSet, `{"config":"network","section":"lan","values":{"mtu":1400,"auto":true,"off":false,"big":5000000000,"neg":-1,"proto":"static","empty":""},`+s+`}`, "")
	f.expect(f.uciSet, `{"config":"network","section":"lan","values":{"dns":["8.8.8.8",5],"device":["a","b"]},`+s+`}`, "")
	f.expect(f.uciDelete, `{"config":"network","section":"wan","options":["proto","nope"],`+s+`}`, "")
	f.expect(f.uciAdd, `{"config":"network","type":"device","values":{"name":"x","ports":["p1","p2"]},`+s+`}`, `{"section":"cfg040f15"}`)
	f.expect(f.uciAdd, `{"config":"network","type":"interface","name":"lan6","values":{"proto":"dhcpv6"},`+s+`}`, `{"section":"lan6"}`)
	f.expect(f.uciRename, `{"config":"network","section":"wan","name":"uplink",`+s+`}`, "")
	f.expect(f.uciRename, `{"config":"network","section":"lan","option":"off","name":"on",`+s+`}`, "")
	f.expect(f.uciOrder, `{"config":"network","sections":["uplink","nope","lan"],`+s+`}`, "")
	wantChanges := `[["set","lan","mtu","1400"],["set","lan","auto","1"],["set","lan","off","0"],["set","lan","big","5000000000"],["set","lan","neg","-1"],` +
		`["remove","lan","dns"],["list-add","lan","dns","8.8.8.8"],["list-add","lan","dns","5"],` +
		`["remove","lan","device"],["list-add","lan","device","a"],["list-add","lan","device","b"],` +
		`["remove","wan","proto"],` +
		`["add","cfg040f15","device"],["set","cfg040f15","name","x"],["list-add","cfg040f15","ports","p1"],["list-add","cfg040f15","ports","p2"],` +
		`["set","lan6","interface"],["set","lan6","proto","dhcpv6"],` +
		`["rename","wan","uplink"],["rename","lan","off","on"],["order","uplink",0],["order","lan",1]]`
	f.expect(f.uciChanges, `{"config":"network",`+s+`}`, `{"changes":`+wantChanges+`}`)
	f.expect(f.uciChanges, `{`+s+`}`, `{"changes":{"network":`+wantChanges+`}}`)
	// Nobody else sees them.
	f.expect(f.uciChanges, `{`+sid(net)+`}`, `{"changes":{}}`)
	f.expect(f.uciChanges, `{"config":"network","ubus_rpc_session":"`+strings.Repeat("0", 31)+`"}`, bus.StatusPermissionDenied)
	f.expect(f.uciGet, `{"config":"network","section":"lan","option":"mtu",`+sid(net)+`}`, "")
	if got := f.read("config/network"); got != network {
		t.Errorf("the file has changed before the commit:\n%s", got)
	}
	// A call that is refused in part stages nothing.
	f.expect(f.uciSet, `{"config":"network","section":"lan","values":{"ok":"1","bad-name":"2"},`+s+`}`, bus.StatusInvalidArgument)
	f.expect(f.uciChanges, `{"config":"network",`+s+`}`, `{"changes":`+wantChanges+`}`)

	f.expect(f.uciCommit, `{"config":"network",`+s+`}`, "")
	if !slices.Equal(f.changes, []string{"network"}) {
		t.Errorf("told of %v", f.changes)
	}
	f.expect(f.uciChanges, `{"config":"network",`+s+`}`, `{"changes":[]}`)
	want := `
config interface 'uplink'

config interface 'lan'
	option proto 'static'
	option mtu '1400'
	option auto '1'
	option on '0'
	option big '5000000000'
	option neg '-1'
	list dns '8.8.8.8'
	list dns '5'
	list device 'a'
	list device 'b'

config device
	option name 'br-lan'
	option ports 'eth0 eth1'

config device
	option name 'x'
	list ports 'p1'
	list ports 'p2'

config interface 'lan6'
	option proto 'dhcpv6'

`
	if d := cmp.Diff(want, f.read("config/network")); d != "" {
		t.Errorf("committed (-want +got):\n%s", d)
	}

	// By type and match; a list that becomes an option.
	f.expect(f.uciSet, `{"config":"network","type":"device","match":{"name":"x"},"values":{"ports":"p3"},`+s+`}`, "")
	f.expect(f.uciGet, `{"config":"network","section":"@device[1]","option":"ports",`+s+`}`, `{"value":"p3"}`)
	f.expect(f.uciDelete, `{"config":"network","type":"device",`+s+`}`, "")
	f.expect(f.uciGet, `{"config":"network","type":"device",`+s+`}`, `{"values":{}}`)
	f.expect(f.uciRevert, `{"config":"network",`+s+`}`, "")
	f.expect(f.uciChanges, `{`+s+`}`, `{"changes":{}}`)
	f.expect(f.uciDelete, `{"config":"network","section":"lan6",`+s+`}`, "")
	f.expect(f.uciGet, `{"config":"network","section":"lan6",`+s+`}`, "")

	for args, h := range map[string]handler{
		`{"config":"network","section":"lan"}`:                          f.uciSet,
		`{"config":"network","values":{}}`:                              f.uciSet,
		`{"config":"network"}`:                                          f.uciDelete,
		`{"config":"network","section":"lan"} `:                         f.uciRename,
		`{"config":"network"} `:                                         f.uciOrder,
		`{"config":"network"}  `:                                        f.uciAdd,
		`{"config":"network","type":"a b"}`:                             f.uciAdd,
		`{"config":"network","type":"a","name":"b-c"}`:                  f.uciAdd,
		`{"config":"network","section":"lan","name":"not valid"}`:       f.uciRename,
		`{"config":"a/b","section":"lan","values":{"a":"b"}}`:           f.uciSet,
		`{"config":"network","section":"@@","values":{"a":"b"}}`:        f.uciSet,
		`{"config":"network","section":"lan","values":{"a":"b\u0001"}}`: f.uciSet,
	} {
		f.expect(h, args, bus.StatusInvalidArgument)
	}
	for args, h := range map[string]handler{
		`{"config":"nope","section":"lan","values":{}}`:          f.uciSet,
		`{"config":"network","section":"nope","values":{"a":1}}`: f.uciSet,
		`{"config":"network","section":"nope"}`:                  f.uciDelete,
		`{"config":"network","section":"nope","name":"x"}`:       f.uciRename,
		`{"config":"nope","type":"x"}`:                           f.uciAdd,
		`{"config":"nope"}`:                                      f.uciCommit,
	} {
		f.expect(h, args, bus.StatusNotFound)
	}
	f.write("config/broken", "nonsense here\n")
	f.expect(f.uciGet, `{"config":"broken"}`, nil)
	if _, err := f.call(f.uciGet, `{"config":"broken"}`); !errors.Is(err, uci.ErrParse) {
		t.Errorf("broken file: %v", err)
	}
}

// stage makes a change in a session.
func (f *fixture) stage(id, option, value string) {
	f.t.Helper()
	f.expect(f.uciSet, `{"config":"network","section":"wan","values":{"`+option+`":"`+value+`"},`+sid(id)+`}`, "")
}

func TestApplyConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		id, other := f.login("root", "Hello world!"), f.login("open", "")
		s := sid(id)
		f.expect(f.uciApply, `{"rollback":true}`, bus.StatusInvalidArgument)
		f.expect(f.uciApply, `{"rollback":true,`+s+`}`, bus.StatusNoData)
		f.expect(f.uciConfirm, `{`+s+`}`, bus.StatusNoData)
		f.expect(f.uciRollback, `{`+s+`}`, bus.StatusNoData)
		f.stage(id, "mtu", "1400")
		f.expect(f.uciSet, `{"config":"system","section":"@system[0]","values":{"hostname":"Weft"},`+s+`}`, "")
		f.expect(f.uciApply, `{"rollback":true,"timeout":90,`+s+`}`, "")
		if d := cmp.Diff([]string{"network", "system"}, f.changes); d != "" {
			t.Errorf("told of (-want +got):\n%s", d)
		}
		applied := f.read("config/network")
		if !strings.Contains(applied, "mtu '1400'") || !strings.Contains(f.read("config/system"), "Weft") {
			t.Errorf("not applied:\n%s", applied)
		}
		// Everything that would mix with it is refused while it waits.
		f.stage(id, "metric", "5")
		f.expect(f.uciApply, `{"rollback":true,`+s+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciApply, `{`+s+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciCommit, `{"config":"network",`+s+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciRevert, `{"config":"network",`+s+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciConfirm, `{`+sid(other)+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciRollback, `{`+sid(other)+`}`, bus.StatusPermissionDenied)
		f.expect(f.uciConfirm, `{}`, bus.StatusInvalidArgument)
		// The same user gets the session back.
		if again := f.login("root", "Hello world!"); again != id {
			t.Error("a new session instead of the pending one")
		}
		time.Sleep(89 * time.Second)
		f.expect(f.uciConfirm, `{`+s+`}`, "")
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.read("config/network"); got != applied {
			t.Errorf("after the confirmation:\n%s", got)
		}
		for _, name := range []string{"keep/apply.json", "keep/snapshot-files", "state/snapshot-delta"} {
			if _, err := os.Stat(f.path(name)); !os.IsNotExist(err) {
				t.Errorf("%s stays behind: %v", name, err)
			}
		}
	})
}

func TestApplyRollsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		id := f.login("root", "Hello world!")
		s := sid(id)
		if err := os.Chmod(f.path("config/network"), 0o640); err != nil {
			t.Fatal(err)
		}
		f.stage(id, "mtu", "1400")
		f.expect(f.uciApply, `{"rollback":true,"timeout":90,`+s+`}`, "")
		f.stage(id, "metric", "5")
		time.Sleep(89 * time.Second)
		synctest.Wait()
		if !strings.Contains(f.read("config/network"), "1400") {
			t.Error("rolled back before the time")
		}
		f.expect(f.sessionAccess, `{`+s+`,"object":"a","function":"b"}`, `{"access":false}`)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := f.read("config/network"); got != network {
			t.Errorf("not rolled back:\n%s", got)
		}
		if fi, err := os.Stat(f.path("config/network")); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("mode: %v, %v", fi.Mode(), err)
		}
		if d := cmp.Diff([]string{"network", "network"}, f.changes); d != "" {
			t.Errorf("told of (-want +got):\n%s", d)
		}
		// What was staged is staged again, and what came since behind it.
		f.expect(f.uciChanges, `{`+s+`}`, `{"changes":{"network":[["set","wan","mtu","1400"],["set","wan","metric","5"]]}}`)
		f.expect(f.uciConfirm, `{`+s+`}`, bus.StatusNoData)

		// By hand.
		f.expect(f.uciApply, `{"rollback":true,`+s+`}`, "")
		if !strings.Contains(f.read("config/network"), "metric") {
			t.Error("not applied")
		}
		f.expect(f.uciRollback, `{`+s+`}`, "")
		if got := f.read("config/network"); got != network {
			t.Errorf("not rolled back by hand:\n%s", got)
		}
		f.expect(f.uciChanges, `{`+s+`}`, `{"changes":{"network":[["set","wan","mtu","1400"],["set","wan","metric","5"]]}}`)

		// Without rollback it is final.
		f.expect(f.uciApply, `{`+s+`}`, "")
		time.Sleep(time.Hour)
		synctest.Wait()
		if !strings.Contains(f.read("config/network"), "metric") {
			t.Error("rolled back without being asked")
		}
	})
}

// TestApplySurvivesCrash kills the server at every stage of an apply.
func TestApplySurvivesCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		id := f.login("root", "Hello world!")
		s := sid(id)
		f.stage(id, "mtu", "1400")
		f.expect(f.uciApply, `{"rollback":true,"timeout":90,`+s+`}`, "")

		// The next process knows the session, and waits for the rest of the time.
		f.kill()
		f.start()
		f.expect(f.uciCommit, `{"config":"network",`+s+`}`, bus.StatusPermissionDenied)
		time.Sleep(89 * time.Second)
		synctest.Wait()
		if !strings.Contains(f.read("config/network"), "1400") {
			t.Error("rolled back before the time")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := f.read("config/network"); got != network {
			t.Errorf("not rolled back by the next process:\n%s", got)
		}
		f.expect(f.uciChanges, `{`+s+`}`, `{"changes":{"network":[["set","wan","mtu","1400"]]}}`)

		// It can confirm as well.
		f.expect(f.uciApply, `{"rollback":true,"timeout":90,`+s+`}`, "")
		f.kill()
		f.start()
		f.expect(f.uciConfirm, `{`+s+`}`, "")
		if !strings.Contains(f.read("config/network"), "1400") {
			t.Error("not confirmed")
		}

		// The device was started again meanwhile: nobody can reach it, roll back.
		confirmed := f.read("config/network")
		f.stage(id, "mtu", "9000")
		f.expect(f.uciApply, `{"rollback":true,"timeout":9000,`+s+`}`, "")
		record := f.read("keep/apply.json")
		f.kill()
		f.write("keep/apply.json", strings.Replace(record, "this boot", "an earlier boot", 1))
		f.start()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := f.read("config/network"); got != confirmed {
			t.Errorf("after a restart of the device:\n%s", got)
		}

		// Killed in the middle of a roll back: it is done again, nothing twice.
		f.expect(f.uciApply, `{"rollback":true,"timeout":90,`+s+`}`, "")
		record = f.read("keep/apply.json")
		snapFile, snapDelta := f.read("keep/snapshot-files/network"), f.read("state/snapshot-delta/network")
		f.expect(f.uciRollback, `{`+s+`}`, "")
		f.kill()
		f.write("keep/apply.json", record)
		f.write("keep/snapshot-files/network", snapFile)
		f.write("state/snapshot-delta/network", snapDelta)
		f.start()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := f.read("config/network"); got != confirmed {
			t.Errorf("after a second roll back:\n%s", got)
		}

		// Killed between the copies and the record: nothing had been changed.
		f.kill()
		f.write("keep/snapshot-files/network", "config nonsense\n")
		f.write("state/uci-"+strings.Repeat("a", 32)+"/network", "x")
		f.start()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.read("config/network"); got != confirmed {
			t.Errorf("copies without a record were used:\n%s", got)
		}
		for _, name := range []string{"keep/snapshot-files", "state/uci-" + strings.Repeat("a", 32)} {
			if _, err := os.Stat(f.path(name)); !os.IsNotExist(err) {
				t.Errorf("%s stays behind: %v", name, err)
			}
		}
		// An unreadable record counts as confirmed.
		f.kill()
		f.write("keep/apply.json", "{")
		f.start()
		f.expect(f.uciCommit, `{"config":"network"}`, "")
	})
}

// TestApplyFails rolls back at once if one package cannot be committed.
func TestApplyFails(t *testing.T) {
	f := newFixture(t)
	id := f.login("root", "Hello world!")
	f.stage(id, "mtu", "1400")
	f.expect(f.uciSet, `{"config":"system","section":"@system[0]","values":{"hostname":"Weft"},`+sid(id)+`}`, "")
	f.write("config/system", "this is no configuration\n")
	if _, err := f.call(f.uciApply, `{"rollback":true,`+sid(id)+`}`); err == nil {
		t.Error("no error")
	}
	if got := f.read("config/network"); got != network {
		t.Errorf("half of it stays:\n%s", got)
	}
	f.expect(f.uciConfirm, `{`+sid(id)+`}`, bus.StatusNoData)
}

func TestFiles(t *testing.T) {
	f := newFixture(t)
	p := func(name string) string { return `"path":"` + f.path(name) + `"` }
	f.write("d/a.txt", "hello\n")
	f.write("d/empty", "")
	f.write("d/nul", "a\x00b")
	f.write("d/big", strings.Repeat("x", maxFile))
	f.expect(f.fileRead, `{`+p("d/a.txt")+`}`, `{"data":"hello\n"}`)
	f.expect(f.fileRead, `{`+p("d//./x/../a.txt")+`,"base64":true}`, `{"data":"aGVsbG8K"}`)
	f.expect(f.fileRead, `{`+p("d/nul")+`}`, `{"data":"a"}`)
	f.expect(f.fileRead, `{`+p("d/nul")+`,"base64":true}`, `{"data":"YQBi"}`)
	f.expect(f.fileRead, `{`+p("d/empty")+`}`, bus.StatusNoData)
	f.expect(f.fileRead, `{`+p("d/none")+`}`, bus.StatusNotFound)
	f.expect(f.fileRead, `{`+p("d")+`}`, bus.StatusInvalidArgument)
	f.expect(f.fileRead, `{`+p("d/a.txt/x")+`}`, bus.StatusInvalidArgument)
	f.expect(f.fileRead, `{`+p("d/big")+`}`, bus.StatusNotSupported)
	f.expect(f.fileRead, `{"path":"a.txt"}`, bus.StatusInvalidArgument)
	f.expect(f.fileRead, `{}`, bus.StatusInvalidArgument)
	if got, err := f.call(f.fileRead, `{"path":"/proc/self/status"}`); err != nil || !strings.Contains(got, "Name:") {
		t.Errorf("a file without a size: %s, %v", got, err)
	}

	f.expect(f.fileWrite, `{`+p("d/new")+`,"data":"one\n","mode":384}`, "")
	f.expect(f.fileWrite, `{`+p("d/new")+`,"data":"two\n","append":true}`, "")
	f.expect(f.fileWrite, `{`+p("d/new")+`,"data":"dGhyZWUA","append":true,"base64":true}`, "")
	if got := f.read("d/new"); got != "one\ntwo\nthree\x00" {
		t.Errorf("written: %q", got)
	}
	if fi, err := os.Stat(f.path("d/new")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	f.expect(f.fileWrite, `{`+p("d/new")+`,"data":"x"}`, "")
	if got := f.read("d/new"); got != "x" {
		t.Errorf("written: %q", got)
	}
	f.expect(f.fileWrite, `{`+p("d/new")+`,"data":"%%","base64":true}`, bus.StatusInvalidArgument)
	if got := f.read("d/new"); got != "x" {
		t.Errorf("after bad data: %q", got)
	}
	f.expect(f.fileWrite, `{`+p("d/new")+`}`, bus.StatusInvalidArgument)
	f.expect(f.fileWrite, `{`+p("nodir/new")+`,"data":"x"}`, bus.StatusNotFound)

	f.expect(f.fileMD5, `{`+p("d/a.txt")+`}`, `{"md5":"b1946ac92492d2347c6235b4d2611184"}`)
	f.expect(f.fileMD5, `{`+p("d")+`}`, bus.StatusNotSupported)
	if err := os.Symlink("nowhere", f.path("d/link")); err != nil {
		t.Fatal(err)
	}
	got, err := f.call(f.fileStat, `{`+p("d/a.txt")+`}`)
	if err != nil || !strings.HasPrefix(got, `{`+p("d/a.txt")+`,"type":"file","size":6,"mode":33152,"atime":`) {
		t.Errorf("stat: %s, %v", got, err)
	}
	f.expect(f.fileStat, `{`+p("d/link")+`}`, bus.StatusNotFound)
	if got, err := f.call(f.fileLstat, `{`+p("d/link")+`}`); err != nil || !strings.Contains(got, `"type":"symlink"`) {
		t.Errorf("lstat: %s, %v", got, err)
	}
	list, err := f.call(f.fileList, `{`+p("d")+`}`)
	if err != nil {
		t.Fatal(err)
	}
	tab, _ := bus.ParseJSON(list)
	var names []string
	for _, e := range tab.Get("entries").(bus.Array) {
		names = append(names, e.(bus.Table).String("name")+":"+e.(bus.Table).String("type"))
	}
	if want := []string{"a.txt:file", "big:file", "empty:file", "link:symlink", "new:file", "nul:file"}; !slices.Equal(names, want) {
		t.Errorf("list: %v", names)
	}

	// Grants: on the cleaned path, for each entry of a folder.
	id := f.login("net", "password")
	s := sid(id)
	f.expect(f.fileRead, `{`+p("d/a.txt")+`,`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.sessionGrant, `{`+s+`,"scope":"file","objects":[["`+f.path("d/*.txt")+`","read"],["`+f.path("d")+`","write"],["`+f.path("d/[!n]*")+`","write"]]}`, "")
	f.expect(f.fileRead, `{`+p("d/a.txt")+`,`+s+`}`, `{"data":"hello\n"}`)
	f.expect(f.fileRead, `{`+p("d/x.txt/../../shadow")+`,`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.fileList, `{`+p("d")+`,`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.fileRemove, `{`+p("d")+`,`+s+`}`, bus.StatusPermissionDenied)
	f.read("d/new") // nothing is removed in part
	f.read("d/a.txt")
	f.expect(f.fileRemove, `{`+p("d/link")+`}`, "")
	f.expect(f.fileRemove, `{`+p("d")+`}`, "")
	if _, err := os.Stat(f.path("d")); !os.IsNotExist(err) {
		t.Errorf("not removed: %v", err)
	}
	f.expect(f.fileRemove, `{`+p("d")+`}`, bus.StatusNotFound)
	f.expect(f.fileRemove, `{"path":"//"}`, bus.StatusInvalidArgument)
}

func TestExec(t *testing.T) {
	f := newFixture(t)
	sh := func(script string) string { return `{"command":"/bin/sh","params":["-c","` + script + `"]}` }
	f.expect(f.fileExec, sh("echo hi"), `{"code":0,"stdout":"hi\n"}`)
	f.expect(f.fileExec, sh("echo no >&2; exit 3"), `{"code":3,"stderr":"no\n"}`)
	f.expect(f.fileExec, sh("echo out; echo err >&2"), `{"code":0,"stdout":"out\n","stderr":"err\n"}`)
	f.expect(f.fileExec, sh("kill -9 $$"), `{"code":137}`)
	f.expect(f.fileExec, `{"command":"sh","params":["-c","echo $A; cat"],"env":{"A":"b","bad":1}}`, `{"code":0,"stdout":"b\n"}`)
	f.expect(f.fileExec, `{"command":"no-such-command"}`, bus.StatusNotFound)
	f.expect(f.fileExec, `{}`, bus.StatusInvalidArgument)
	f.expect(f.fileExec, sh("yes"), bus.StatusNotSupported)
	f.write("config/rpcd", f.read("config/rpcd")+"\nconfig rpcd\n\toption timeout '1'\n")
	// The grandchild would hold the pipes open and outlive the shell.
	f.expect(f.fileExec, sh("sleep 1000 & wait"), bus.StatusTimeout)

	id := f.login("net", "password")
	s := sid(id)
	f.expect(f.fileExec, `{"command":"/bin/echo","params":["a"],`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.sessionGrant, `{`+s+`,"scope":"file","objects":[["/bin/echo a","exec"],["/usr/bin/echo a","exec"],["/bin/true","exec"],["/usr/bin/true","exec"]]}`, "")
	f.expect(f.fileExec, `{"command":"/bin/echo","params":["a"],`+s+`}`, `{"code":0,"stdout":"a\n"}`)
	f.expect(f.fileExec, `{"command":"/bin/echo","params":["a","b"],`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.fileExec, `{"command":"/bin/echo",`+s+`}`, bus.StatusPermissionDenied)
	f.expect(f.fileExec, `{"command":"/bin/true","params":["x"],`+s+`}`, `{"code":0}`)
}

// TestRun runs the service on a bus.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "u.sock")
	conf := filepath.Join(dir, "config")
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "network"), []byte(network), 0o600); err != nil {
		t.Fatal(err)
	}
	broker, err := bus.Listen(socket, bus.BrokerOptions{ACLDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { broker.Serve(ctx) })
	defer wg.Wait()
	defer cancel()

	client, err := bus.Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	events := make(chan string, 10)
	if _, err := client.Publish(&bus.Object{Name: "service", Methods: []bus.Method{{Name: "event", Handle: func(_ context.Context, r *bus.Request) error {
		events <- string(r.Args.AppendJSON(nil, false))
		return nil
	}}}}); err != nil {
		t.Fatal(err)
	}
	added := make(chan string, 10)
	if _, err := client.OnEvent("ubus.object.add", func(_ string, d bus.Table) { added <- d.String("path") }); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	code := make(chan int, 1)
	runCtx, stop := context.WithCancel(ctx)
	wg.Go(func() {
		code <- unit.Main(Run)(runCtx, &unit.Call{
			Args:   []string{"rpcd", "--config-dir", conf, "--bus", socket, "--state-dir", filepath.Join(dir, "state"), dir},
			Stdout: &stderr, Stderr: &stderr, Dir: "/", Getenv: func(string) string { return "" },
		})
	})
	for _, want := range []string{"session", "uci", "file"} {
		if got := <-added; got != want {
			t.Fatalf("published %s, want %s", got, want)
		}
	}
	if _, err := client.Call(ctx, "uci", "set", bus.Table{{Name: "config", Value: "nope"}, {Name: "section", Value: "x"}, {Name: "values", Value: bus.Table{}}}); err != bus.StatusNotFound {
		t.Errorf("set: %v", err)
	}
	r, err := client.Call(ctx, "uci", "get", bus.Table{{Name: "config", Value: "network"}, {Name: "section", Value: "wan"}, {Name: "option", Value: "proto"}})
	if err != nil || r.String("value") != "dhcp" {
		t.Errorf("get: %v, %v", r, err)
	}
	if _, err := client.Call(ctx, "uci", "get", bus.Table{{Name: "config", Value: "network"}, {Name: sidArg, Value: anonymous}}); err != bus.StatusPermissionDenied {
		t.Errorf("anonymous get: %v", err)
	}
	if _, err := client.Call(ctx, "uci", "commit", bus.Table{{Name: "config", Value: "network"}}); err != nil {
		t.Errorf("commit: %v", err)
	}
	if got, want := <-events, `{"type":"config.change","data":{"package":"network"}}`; got != want {
		t.Errorf("event: got %s, want %s", got, want)
	}
	stop()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d: %s", c, stderr.String())
	}
	if _, err := client.Lookup(ctx, "uci"); err != bus.StatusNotFound {
		t.Errorf("after the end: %v", err)
	}
}
