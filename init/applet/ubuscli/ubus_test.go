package ubuscli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

// watchdog bounds waits for what must happen; it decides nothing but failure.
const watchdog = 20 * time.Second

type fixture struct {
	t      *testing.T
	dir    string
	client *bus.Client
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: t.TempDir()}
	broker, err := bus.Listen(f.path("u.sock"), bus.BrokerOptions{ACLDir: f.dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- broker.Serve(ctx) }()
	if f.client, err = bus.Dial(ctx, f.path("u.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.client.Close()
		cancel()
		<-done
	})
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) publish(o *bus.Object) *bus.Published {
	f.t.Helper()
	p, err := f.client.Publish(o)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// run runs a command to its end.
func (f *fixture) run(ctx context.Context, fn unit.Func, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = fn(ctx, &unit.Call{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Dir: f.dir, Getenv: func(string) string { return "" }})
	return out.String(), errs.String(), code
}

func testObject() *bus.Object {
	return &bus.Object{Name: "test.obj", Methods: []bus.Method{
		{Name: "echo", Args: []bus.Arg{{Name: "s", Type: bus.TypeString}, {Name: "n", Type: bus.TypeInt32}, {Name: "b", Type: bus.TypeBool},
			{Name: "a", Type: bus.TypeArray}, {Name: "t", Type: bus.TypeTable}, {Name: "l", Type: bus.TypeInt64}},
			Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(r.Args) }},
		{Name: "twice", Handle: func(_ context.Context, r *bus.Request) error {
			return errors.Join(r.Reply(bus.Table{{Name: "a", Value: 1}}), r.Reply(bus.Table{{Name: "a", Value: 2}}))
		}},
		{Name: "quiet", Handle: func(context.Context, *bus.Request) error { return nil }},
		{Name: "deny", Handle: func(context.Context, *bus.Request) error { return bus.StatusPermissionDenied }},
		{Name: "hang", Handle: func(ctx context.Context, _ *bus.Request) error { <-ctx.Done(); return nil }},
	}}
}

func TestUbus(t *testing.T) {
	f := newFixture(t)
	f.publish(testObject())
	f.publish(&bus.Object{Name: "other"})
	list, err := f.client.Lookup(t.Context(), "test.obj")
	if err != nil {
		t.Fatal(err)
	}
	verbose := fmt.Sprintf("'test.obj' @%08x\n", list[0].ID) +
		"\t\"echo\":{\"s\":\"String\",\"n\":\"Integer\",\"b\":\"Boolean\",\"a\":\"Array\",\"t\":\"Table\",\"l\":\"(unknown)\"}\n" +
		"\t\"twice\":{}\n\t\"quiet\":{}\n\t\"deny\":{}\n\t\"hang\":{}\n"
	usage := fmt.Sprintf(usageText, "ubus")
	for _, c := range []struct {
		args           string
		stdout, stderr string
		code           int
	}{
		{"list", "other\ntest.obj\n", "", 0},
		{"list test.*", "test.obj\n", "", 0},
		{"list -v test.obj", verbose, "", 0},
		{"-v list test.obj", verbose, "", 0},
		{"-S -v list test.obj", "test.obj\n", "", 0},
		{"list nope", "", "Command failed: Not found\n", 4},
		{"-S list nope", "", "", 4},
		{"list a b", "", usage, 254},
		{`call test.obj echo {"s":"x/y","n":-1,"e":{},"l":[]}`,
			"{\n\t\"s\": \"x\\/y\",\n\t\"n\": -1,\n\t\"e\": {\n\t\t\n\t},\n\t\"l\": [\n\t\t\n\t]\n}\n", "", 0},
		{`-S call test.obj echo {"s":"x","l":[1,2]}`, `{"s":"x","l":[1,2]}` + "\n", "", 0},
		{`call test.obj echo {'s':'x',}`, "{\n\t\"s\": \"x\"\n}\n", "", 0},
		{"call test.obj echo", "{\n\t\n}\n", "", 0},
		{"-S call test.obj twice", "{\"a\":1}\n{\"a\":2}\n", "", 0},
		{"call test.obj quiet", "", "", 0},
		{"call test.obj nope", "", "Command failed: ubus call test.obj nope (Method not found)\n", 253},
		{"call nope x", "", "Command failed: ubus call nope x (Not found)\n", 252},
		{"call test.obj deny", "", "Command failed: ubus call test.obj deny (Permission denied)\n", 250},
		{"-S call test.obj deny", "", "", 250},
		{"call test.obj echo {", "", "Command failed: ubus call test.obj echo { (Parsing message data failed)\n", 244},
		{"call test.obj echo []", "", "Command failed: ubus call test.obj echo [] (Parsing message data failed)\n", 244},
		{"call test.obj", "", usage, 254},
		{"send ev", "", "", 0},
		{"send ev {", "", "Command failed: Parsing message data failed\n", 12},
		{"send ubus.object.add", "", "Command failed: Permission denied\n", 6},
		{"send", "", usage, 254},
		{"wait_for other test.obj", "", "", 0},
		{"wait_for", "", usage, 254},
		{"subscribe", "", "You need to specify an object to subscribe to\n", 255},
		{"subscribe nope", "", "Error while registering for event 'nope': Not found\n", 255},
		{"nonsense", "", usage, 254},
		{"", "", usage, 1},
		{"-x list", "", "ubus: invalid option -- 'x'\n" + usage, 1},
		{"-s", "", "ubus: option requires an argument -- 's'\n" + usage, 1},
		{"-m nope monitor", "", usage, 1},
		{"-M x monitor", "", usage, 1},
	} {
		args := append([]string{"ubus", "-s", "u.sock"}, strings.Fields(c.args)...)
		if c.args == "-s" {
			args = []string{"ubus", "-s"}
		}
		stdout, stderr, code := f.run(t.Context(), Ubus, args...)
		if stdout != c.stdout || stderr != c.stderr || code != c.code {
			t.Errorf("ubus %s:\n got %q, %q, %d\nwant %q, %q, %d", c.args, stdout, stderr, code, c.stdout, c.stderr, c.code)
		}
	}
	if _, stderr, code := f.run(t.Context(), Ubus, "ubus", "-sno.sock", "list"); code != 255 || stderr != "Failed to connect to ubus\n" {
		t.Errorf("without a broker: %q, %d", stderr, code)
	}
	if _, stderr, code := f.run(t.Context(), Ubus, "ubus", "-su.sock", "-t1", "wait_for", "nope"); code != 7 || stderr != "Command failed: Request timed out\n" {
		t.Errorf("wait_for without success: %q, %d", stderr, code)
	}
	if _, stderr, code := f.run(t.Context(), Ubus, "ubus", "-St1", "-su.sock", "call", "test.obj", "hang"); code != 249 || stderr != "" {
		t.Errorf("call without an answer: %q, %d", stderr, code)
	}
}

// command is a command that runs until stopped.
type command struct {
	t    *testing.T
	out  chan string // lines
	stop func() int
}

func (f *fixture) start(args ...string) *command {
	r, w := io.Pipe()
	c := &command{t: f.t, out: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(f.t.Context())
	code := make(chan int, 1)
	go func() {
		code <- Ubus(ctx, &unit.Call{Args: append([]string{"ubus", "-s", "u.sock"}, args...), Stdout: w, Stderr: w, Dir: f.dir, Getenv: func(string) string { return "" }})
		w.Close()
	}()
	go func() {
		defer close(c.out)
		var line []byte
		b := make([]byte, 1)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			if b[0] == '\n' {
				c.out <- string(line)
				line = nil
			} else {
				line = append(line, b[0])
			}
		}
	}()
	c.stop = sync.OnceValue(func() int { cancel(); return <-code })
	f.t.Cleanup(func() { c.stop() })
	return c
}

func (c *command) line() string {
	c.t.Helper()
	select {
	case l := <-c.out:
		return l
	case <-time.After(watchdog):
		c.t.Fatal("no output")
		return ""
	}
}

func TestListenAndSubscribe(t *testing.T) {
	f := newFixture(t)
	active := make(chan int, 1)
	p := f.publish(&bus.Object{Name: "n", Subscribers: func(n int) { active <- n }})
	sub := f.start("subscribe", "n")
	if n := <-active; n != 1 {
		t.Fatal("not subscribed")
	}
	p.Notify(t.Context(), "hello", bus.Table{{Name: "a", Value: "b"}})
	if got := sub.line(); got != `{ "hello": {"a":"b"} }` {
		t.Errorf("subscribe: %s", got)
	}
	if code := sub.stop(); code != 0 {
		t.Errorf("subscribe: exit %d", code)
	}

	// The listeners are there when a marker event arrives at both.
	all, some := f.start("listen"), f.start("listen", "mark*", "ev.*", "ev.1")
	for _, c := range []*command{all, some} {
		deadline := time.Now().Add(watchdog)
		for seen := false; !seen; {
			if time.Now().After(deadline) {
				t.Fatal("the listener does not listen")
			}
			f.client.SendEvent(t.Context(), "marker", nil)
			select {
			case <-c.out:
				seen = true
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	for _, id := range []string{"ev.1", "x", "ev.2"} {
		f.client.SendEvent(t.Context(), id, bus.Table{{Name: "id", Value: id}})
	}
	expect := func(c *command, want ...string) {
		t.Helper()
		for _, w := range want {
			got := c.line()
			for strings.Contains(got, "marker") {
				got = c.line()
			}
			if got != w {
				t.Errorf("got %s, want %s", got, w)
			}
		}
	}
	expect(all, `{ "ev.1": {"id":"ev.1"} }`, `{ "x": {"id":"x"} }`, `{ "ev.2": {"id":"ev.2"} }`)
	expect(some, `{ "ev.1": {"id":"ev.1"} }`, `{ "ev.2": {"id":"ev.2"} }`)

	wait := f.start("wait_for", "late", "n")
	f.publish(&bus.Object{Name: "late"})
	select {
	case l, ok := <-wait.out:
		if ok {
			t.Errorf("wait_for: %s", l)
		}
	case <-time.After(watchdog):
		t.Fatal("wait_for does not end")
	}
	if code := wait.stop(); code != 0 {
		t.Errorf("wait_for: exit %d", code)
	}
}

func TestMonitorCommand(t *testing.T) {
	f := newFixture(t)
	if os.Getuid() != 0 {
		t.Skip("only root may monitor")
	}
	mon := f.start("-m", "send", "monitor") // no message type of that name
	if got := mon.line(); !strings.HasPrefix(got, "Usage:") {
		t.Errorf("got %s", got)
	}
	mon = f.start("-m", "add_object", "-M", "r", "monitor")
	deadline := time.Now().Add(watchdog)
	for {
		if time.Now().After(deadline) {
			t.Fatal("ADD_OBJECT was not seen")
		}
		p := f.publish(&bus.Object{Name: "seen"})
		p.Close()
		select {
		case l := <-mon.out:
			want := fmt.Sprintf(`<- %08x #00000000     add_object: {"objpath":"seen","signature":{}}`, f.client.ID())
			if l != want {
				t.Errorf("got %q, want %q", l, want)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestReloadConfig(t *testing.T) {
	f := newFixture(t)
	fail := false
	var events []string
	f.publish(&bus.Object{Name: "service", Methods: []bus.Method{{Name: "event", Handle: func(_ context.Context, r *bus.Request) error {
		if fail {
			return bus.StatusUnknownError
		}
		events = append(events, string(r.Args.AppendJSON(nil, false)))
		return nil
	}}}})
	write := func(name, text string) {
		t.Helper()
		os.MkdirAll(f.path("config"), 0o755)
		if err := os.WriteFile(f.path("config/"+name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(wantCode int, want ...string) {
		t.Helper()
		events = nil
		_, stderr, code := f.run(t.Context(), ReloadConfig, "reload_config", "-c", "config", "-s", "u.sock", "-f", "md5")
		if code != wantCode {
			t.Errorf("exit %d: %s", code, stderr)
		}
		var got []string
		for _, e := range events {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(e, `{"type":"config.change","data":{"package":"`), `"}}`))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("told of %v, want %v", got, want)
		}
	}
	write("a", "config x 'y'\n\toption o 'v'\n\tlist l '1'\n\tlist l '2'\n")
	write("b", "config anon\n\toption o '1'\n\nconfig anon\n\toption o '2'\n")
	run(0) // the first run only looks
	// Known in LEDE's form: md5sum of what `uci show` prints.
	want := "4579bc62c62337e68fe257964950d0a9"
	if b, err := os.ReadFile(f.path("md5")); err != nil || !strings.HasPrefix(string(b), want+"  /var/run/config.check/a\n") {
		t.Errorf("hashes: %s, %v", b, err)
	}
	run(0)
	write("a", "# a comment\nconfig x 'y'\n  option o v\n\tlist l '1'\n\tlist l '2'\n") // means the same
	run(0)
	write("a", "config x 'y'\n\toption o 'w'\n")
	write("c", "config new\n")
	run(0, "a", "c")
	run(0)
	os.Remove(f.path("config/c"))
	run(0, "c")
	// What could not be told is told the next time.
	fail = true
	write("b", "config anon\n\toption o '3'\n")
	run(1)
	fail = false
	run(0, "b")
	run(0)
	// A file with a bad line: reported, and what can be read counts.
	write("b", "config anon\n\tnonsense\n\toption o '4'\n")
	run(1, "b")
	if _, _, code := f.run(t.Context(), ReloadConfig, "reload_config", "extra"); code != 2 {
		t.Errorf("extra argument: exit %d", code)
	}
	if out, _, code := f.run(t.Context(), ReloadConfig, "reload_config", "-h"); code != 0 || !strings.HasPrefix(out, "Usage:") {
		t.Errorf("help: %q, exit %d", out, code)
	}
	if _, stderr, code := f.run(t.Context(), ReloadConfig, "reload_config", "-c", "none", "-f", "md5"); code != 1 || stderr == "" {
		t.Errorf("no folder: %q, exit %d", stderr, code)
	}
}
