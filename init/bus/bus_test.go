package bus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// watchdog bounds waits for what must happen; it decides nothing but failure.
const watchdog = 20 * time.Second

// logBuffer collects log lines and lets a test wait for one.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (l *logBuffer) await(t *testing.T, s string) {
	t.Helper()
	deadline := time.After(watchdog)
	for {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), s)
		text := l.text.String()
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("no log line with %q in:\n%s", s, text)
		}
	}
}

// testBroker is a broker that runs until the test ends.
type testBroker struct {
	*Broker
	path   string
	aclDir string
	log    *logBuffer
	cancel context.CancelFunc
	done   chan error
}

func startBroker(t testing.TB) *testBroker {
	dir := t.TempDir()
	// Somebody who is not root must get at the socket as well.
	os.Chmod(filepath.Dir(dir), 0o755)
	os.Chmod(dir, 0o755)
	b := &testBroker{path: filepath.Join(dir, "u.sock"), aclDir: filepath.Join(dir, "acl"), log: &logBuffer{more: make(chan struct{}, 1)}}
	if err := os.Mkdir(b.aclDir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	t.Cleanup(b.stop)
	return b
}

func (b *testBroker) start(t testing.TB) {
	var err error
	b.Broker, err = Listen(b.path, BrokerOptions{ACLDir: b.aclDir, Log: slog.New(slog.NewTextHandler(b.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.done = cancel, make(chan error, 1)
	done := b.done
	srv := b.Broker
	go func() { done <- srv.Serve(ctx) }()
}

func (b *testBroker) stop() {
	if b.cancel != nil {
		b.cancel()
		<-b.done
		b.cancel = nil
	}
}

func (b *testBroker) dial(t testing.TB) *Client {
	t.Helper()
	c, err := Dial(t.Context(), b.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// raw is a client that speaks bytes.
type raw struct {
	t    testing.TB
	conn *net.UnixConn
	id   uint32
}

func (b *testBroker) raw(t testing.TB) *raw {
	t.Helper()
	conn, err := net.Dial("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &raw{t: t, conn: conn.(*net.UnixConn)}
	hello := r.read()
	r.id = binary.BigEndian.Uint32(hello[4:])
	if want := fmt.Sprintf("00000000%08x00000004", r.id); fmt.Sprintf("%x", hello) != want || r.id < systemMax {
		t.Fatalf("HELLO: got %x", hello)
	}
	return r
}

func (r *raw) send(hex string) {
	r.t.Helper()
	if _, err := r.conn.Write(unhex(r.t, hex)); err != nil {
		r.t.Fatal(err)
	}
}

// read reads one message by its length.
func (r *raw) read() []byte {
	r.t.Helper()
	r.conn.SetReadDeadline(time.Now().Add(watchdog))
	head := make([]byte, 12)
	if _, err := io.ReadFull(r.conn, head); err != nil {
		r.t.Fatalf("read: %v", err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[8:])-4)
	if _, err := io.ReadFull(r.conn, body); err != nil {
		r.t.Fatalf("read: %v", err)
	}
	return append(head, body...)
}

func (r *raw) expect(what, hex string) {
	r.t.Helper()
	want := unhex(r.t, hex)
	if got := r.read(); !bytes.Equal(got, want) {
		r.t.Fatalf("%s:\n got %x\nwant %x", what, got, want)
	}
}

func (r *raw) expectEOF() {
	r.t.Helper()
	r.conn.SetReadDeadline(time.Now().Add(watchdog))
	if n, err := io.Copy(io.Discard, r.conn); err != nil || n != 0 {
		r.t.Fatalf("expected the end, got %d bytes and %v", n, err)
	}
}

// TestWire is a whole session as bytes, worked out by hand from the protocol:
// an owner that publishes `t.o` with method `m` {n: int32}, and a caller.
func TestWire(t *testing.T) {
	b := startBroker(t)
	if os.Getuid() != 0 {
		t.Skip("the expected bytes name root")
	}
	owner, caller := b.raw(t), b.raw(t)

	// PING is answered by its copy as DATA, and a STATUS.
	caller.send("00 03 0009 00000000 00000004")
	caller.expect("pong", "00 02 0009 00000000 00000004")
	caller.expect("status", "00 01 0009 00000000 0000000c 01000008 00000000")

	// ADD_OBJECT {OBJPATH "t.o", SIGNATURE {m: {n: 5}}}
	sig := "82000014 0001 6d00 8500000c 0001 6e00 00000005"
	owner.send("00 06 0001 00000000 00000024 02000008 742e6f00 06000018" + sig)
	add := owner.read()
	id := fmt.Sprintf("%x", add[16:20])
	typ := fmt.Sprintf("%x", add[24:28])
	if want := unhex(t, "00 02 0001 00000000 00000014 03000008"+id+"05000008"+typ); !bytes.Equal(add, want) {
		t.Fatalf("DATA of ADD_OBJECT: got %x want %x", add, want)
	}
	owner.expect("status", "00 01 0001 00000000 0000000c 01000008 00000000")

	// The path is taken.
	caller.send("00 06 0002 00000000 00000010 02000008 742e6f00 06000004")
	caller.expect("status", "00 01 0002 00000000 0000000c 01000008 00000002")

	// LOOKUP, exact, by prefix, of all and of nothing.
	object := "02000008 742e6f00 03000008" + id + "05000008" + typ + "06000018" + sig
	caller.send("00 04 0003 00000000 0000000c 02000008 742e6f00")
	caller.expect("lookup", "00 02 0003 00000000 00000034"+object)
	caller.expect("status", "00 01 0003 00000000 0000000c 01000008 00000000")
	caller.send("00 04 0004 00000000 0000000c 02000008 742e2a00")
	caller.expect("lookup t.*", "00 02 0004 00000000 00000034"+object)
	caller.expect("status", "00 01 0004 00000000 0000000c 01000008 00000000")
	caller.send("00 04 0005 00000000 00000004")
	caller.expect("lookup all", "00 02 0005 00000000 00000034"+object)
	caller.expect("status", "00 01 0005 00000000 0000000c 01000008 00000000")
	caller.send("00 04 0006 00000000 0000000c 02000007 782a00 00")
	caller.expect("status", "00 01 0006 00000000 0000000c 01000008 00000004")

	// INVOKE {OBJID, METHOD "m", DATA {n: 7}}: the owner sees the caller as peer,
	// with user and group.
	data := "07000010 8500000c 0001 6e00 00000007"
	caller.send("00 05 0007" + id + "00000024 03000008" + id + "04000006 6d00 0000" + data)
	cid := fmt.Sprintf("%08x", caller.id)
	owner.expect("invoke", "00 05 0007"+cid+"0000003c 03000008"+id+"04000006 6d00 0000 0c000009 726f6f7400 000000 0d000009 726f6f7400 000000"+data)
	// The answers come from the object's id.
	owner.send("00 02 0007" + cid + "0000001c 03000008" + id + data)
	caller.expect("data", "00 02 0007"+id+"0000001c 03000008"+id+data)
	owner.send("00 01 0007" + cid + "00000014 01000008 00000003 03000008" + id)
	caller.expect("status", "00 01 0007"+id+"00000014 01000008 00000003 03000008"+id)

	// INVOKE of nothing.
	caller.send("00 05 0008 00000400 00000014 03000008 00000400 04000006 6d00 0000")
	caller.expect("status", "00 01 0008 00000400 0000000c 01000008 00000004")

	// SUBSCRIBE: an object without a path, then the owner hears that it is active.
	caller.send("00 06 000a 00000000 00000004")
	sub := fmt.Sprintf("%x", caller.read()[16:20])
	caller.expect("status", "00 01 000a 00000000 0000000c 01000008 00000000")
	caller.send("00 08 000b 00000000 00000014 03000008" + sub + "08000008" + id)
	owner.expect("active", "00 0a 0001 00000000 00000014 03000008"+id+"09000005 01 000000")
	caller.expect("status", "00 01 000b 00000000 0000000c 01000008 00000000")

	// NOTIFY with an answer: the ids of the subscribers, then each is invoked.
	owner.send("00 0a 0010" + id + "00000014 03000008" + id + "04000006 6e00 0000")
	owner.expect("subscribers", "00 01 0010"+id+"00000020 03000008"+id+"0b00000c 00000008"+sub+"01000008 00000000")
	oid := fmt.Sprintf("%08x", owner.id)
	caller.expect("notification", "00 05 0010"+oid+"0000002c 03000008"+sub+"04000006 6e00 0000 0c000009 726f6f7400 000000 0d000009 726f6f7400 000000")
	caller.send("00 01 0010" + oid + "00000014 01000008 00000000 03000008" + sub)
	owner.expect("verdict", "00 01 0010"+sub+"00000014 01000008 00000000 03000008"+sub)
	// NOTIFY without: nothing comes back.
	owner.send("00 0a 0011" + id + "0000001c 03000008" + id + "04000006 6e00 0000 0a000005 01 000000")
	caller.expect("notification", "00 05 0011"+oid+"00000034 0a000005 01 000000 03000008"+sub+"04000006 6e00 0000 0c000009 726f6f7400 000000 0d000009 726f6f7400 000000")

	// UNSUBSCRIBE, again, and the owner hears that nobody is left.
	caller.send("00 09 000c 00000000 00000014 03000008" + sub + "08000008" + id)
	owner.expect("inactive", "00 0a 0002 00000000 00000014 03000008"+id+"09000005 00 000000")
	caller.expect("status", "00 01 000c 00000000 0000000c 01000008 00000000")
	caller.send("00 09 000d 00000000 00000014 03000008" + sub + "08000008" + id)
	caller.expect("status", "00 01 000d 00000000 0000000c 01000008 00000004")

	// Events: object 1, register {object, pattern "ubus.object.remove"}.
	pattern := "83000023 0007 7061747465726e00 0000 756275732e6f626a6563742e72656d6f766500 00"
	caller.send("00 05 000e 00000001 00000058 03000008 00000001 0400000d 726567697374657200 000000 0700003c 85000014 0006 6f626a65637400 000000" + sub + pattern)
	caller.expect("status", "00 01 000e 00000001 0000000c 01000008 00000000")

	// Subscribed again, the subscriber hears UNSUBSCRIBE and the event when the
	// object goes, the owner DATA and STATUS.
	caller.send("00 08 000f 00000000 00000014 03000008" + sub + "08000008" + id)
	owner.expect("active", "00 0a 0003 00000000 00000014 03000008"+id+"09000005 01 000000")
	caller.expect("status", "00 01 000f 00000000 0000000c 01000008 00000000")
	owner.send("00 07 0012 00000000 0000000c 03000008" + id)
	owner.expect("removed", "00 02 0012 00000000 00000014 03000008"+id+"05000008"+typ)
	owner.expect("status", "00 01 0012 00000000 0000000c 01000008 00000000")
	caller.expect("unsubscribed", "00 09 0001 00000000 00000014 03000008"+sub+"08000008"+id)
	ev := caller.read()
	want := "00 05 0001 00000000 00000048 03000008" + sub + "04000017 756275732e6f626a6563742e72656d6f766500 00" +
		"07000024 85000010 0002 696400 000000" + id + "83000010 0004 7061746800 00 742e6f00"
	if w := unhex(t, want); !bytes.Equal(ev, w) {
		t.Fatalf("event:\n got %x\nwant %x", ev, w)
	}

	// Unknown type, MONITOR from a client, a STATUS for nobody.
	caller.send("00 0c 0020 00000000 00000004")
	caller.expect("status", "00 01 0020 00000000 0000000c 01000008 00000001")
	caller.send("00 0b 0021 00000000 00000004")
	caller.expect("status", "00 01 0021 00000000 0000000c 01000008 00000001")
	caller.send("00 01 0022 00000000 00000004 00 03 0023 00000000 00000004")
	caller.expect("pong", "00 02 0023 00000000 00000004")
}

func TestWireRefusesOtherVersion(t *testing.T) {
	b := startBroker(t)
	r := b.raw(t)
	r.send("01 03 0001 00000000 00000004")
	r.expectEOF()
	r = b.raw(t)
	r.send("00 03 0001 00000000 00100004") // one byte more than fits
	r.expectEOF()
	r = b.raw(t)
	r.send("00 03 0001 00000000 00000003")
	r.expectEOF()
}

// echo publishes an object whose method returns its arguments.
func echo(t testing.TB, c *Client, name string) *Published {
	t.Helper()
	p, err := c.Publish(&Object{Name: name, Methods: []Method{{Name: "echo", Handle: func(_ context.Context, r *Request) error {
		return r.Reply(r.Args)
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCalls(t *testing.T) {
	b := startBroker(t)
	srv, cl := b.dial(t), b.dial(t)
	release := make(chan struct{})
	_, err := srv.Publish(&Object{Name: "test", Methods: []Method{
		{Name: "echo", Args: []Arg{{"a", TypeInt32}, {"s", TypeString}}, Handle: func(_ context.Context, r *Request) error { return r.Reply(r.Args) }},
		{Name: "who", Handle: func(_ context.Context, r *Request) error {
			return r.Reply(map[string]string{"object": r.Object, "method": r.Method, "user": r.User})
		}},
		{Name: "twice", Handle: func(_ context.Context, r *Request) error {
			return errors.Join(r.Reply(Table{{"a", 1}}), r.Reply(Table{{"b", 2}}))
		}},
		{Name: "none", Handle: func(context.Context, *Request) error { return nil }},
		{Name: "denied", Handle: func(context.Context, *Request) error {
			return fmt.Errorf("look into it: %w", StatusPermissionDenied)
		}},
		{Name: "broken", Handle: func(context.Context, *Request) error { return errors.New("boom") }},
		{Name: "panics", Handle: func(context.Context, *Request) error { panic("boom") }},
		{Name: "missing", Handle: func(context.Context, *Request) error { _, err := os.Open("/does/not/exist"); return err }},
		{Name: "decode", Handle: func(_ context.Context, r *Request) error {
			var a struct {
				N int `json:"n"`
			}
			return r.Decode(&a)
		}},
		{Name: "wait", Handle: func(ctx context.Context, r *Request) error {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return r.Reply(Table{{"released", true}})
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, c := range []struct {
		object, method string
		args           any
		want           Table
		err            error
	}{
		{"test", "echo", Table{{"b", "x"}, {"a", 1}}, Table{{"b", "x"}, {"a", int32(1)}}, nil},
		{"test", "echo", nil, nil, nil},
		{"test", "echo", map[string]any{"z": 1, "y": []string{"q"}}, Table{{"y", Array{"q"}}, {"z", int32(1)}}, nil},
		{"test", "who", nil, Table{{"method", "who"}, {"object", "test"}, {"user", srv.userName(t)}}, nil},
		{"test", "twice", nil, Table{{"a", int32(1)}, {"b", int32(2)}}, nil},
		{"test", "none", nil, nil, nil},
		{"test", "denied", nil, nil, StatusPermissionDenied},
		{"test", "broken", nil, nil, StatusUnknownError},
		{"test", "panics", nil, nil, StatusUnknownError},
		{"test", "missing", nil, nil, StatusNotFound},
		{"test", "decode", Table{{"n", "text"}}, nil, StatusInvalidArgument},
		{"test", "unknown", nil, nil, StatusMethodNotFound},
		{"nowhere", "echo", nil, nil, StatusNotFound},
		{"te*", "echo", nil, nil, StatusInvalidArgument},
		{"", "echo", nil, nil, StatusInvalidArgument},
		{"test", "echo", make(chan int), nil, StatusInvalidArgument},
	} {
		got, err := cl.Call(ctx, c.object, c.method, c.args)
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s.%s: error %v, want %v", c.object, c.method, err, c.err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s.%s (-want +got):\n%s", c.object, c.method, d)
		}
	}

	// A call that waits does not hold up others, from the same client.
	waiting := make(chan error, 1)
	go func() {
		r, err := cl.Call(ctx, "test", "wait", nil)
		if err == nil && r.Get("released") != true {
			err = fmt.Errorf("got %v", r)
		}
		waiting <- err
	}()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r, err := cl.Call(ctx, "test", "echo", Table{{"n", i}})
			if err != nil || r.Get("n") != int32(i) {
				t.Errorf("call %d: %v, %v", i, r, err)
			}
		})
	}
	wg.Wait()

	// Time-out and cancellation of one call leave the others alone.
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := cl.Call(short, "test", "wait", nil); err != StatusTimeout {
		t.Errorf("time-out: got %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := cl.Call(gone, "test", "wait", nil); err != context.Canceled {
		t.Errorf("cancelled: got %v", err)
	}
	close(release)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}

// userName is what the broker calls the user that runs the tests.
func (c *Client) userName(t *testing.T) string {
	cred, err := func() (cred credentials, err error) {
		rc, err := c.current().conn.SyscallConn()
		if err != nil {
			return cred, err
		}
		cerr := rc.Control(func(fd uintptr) { cred, err = peerCredentials(int(fd)) })
		return cred, errors.Join(err, cerr)
	}()
	if err != nil {
		t.Fatal(err)
	}
	return cred.user
}

func TestLargestMessage(t *testing.T) {
	b := startBroker(t)
	srv, cl := b.dial(t), b.dial(t)
	echo(t, srv, "big")
	for _, n := range []int{1 << 16, maxMessage - 200} {
		s := strings.Repeat("x", n)
		r, err := cl.Call(t.Context(), "big", "echo", Table{{"s", s}})
		if err != nil || r.String("s") != s {
			t.Fatalf("%d bytes: %d came back, %v", n, len(r.String("s")), err)
		}
	}
	if _, err := cl.Call(t.Context(), "big", "echo", Table{{"s", strings.Repeat("x", maxMessage)}}); !errors.Is(err, StatusInvalidArgument) {
		t.Errorf("too large: %v", err)
	}
	if _, err := cl.Call(t.Context(), "big", "echo", nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestLookup(t *testing.T) {
	b := startBroker(t)
	srv, cl := b.dial(t), b.dial(t)
	for _, n := range []string{"net.b", "net", "other", "net.a"} {
		echo(t, srv, n)
	}
	if _, err := srv.Publish(&Object{Name: "args", Methods: []Method{{Name: "m", Args: []Arg{{"s", TypeString}, {"n", TypeInt32}, {"t", TypeTable}}, Handle: func(context.Context, *Request) error { return nil }}, {Name: "o", Handle: func(context.Context, *Request) error { return nil }}}}); err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string][]string{
		"":      {"args", "net", "net.a", "net.b", "other"},
		"*":     {"args", "net", "net.a", "net.b", "other"},
		"net":   {"net"},
		"net*":  {"net", "net.a", "net.b"},
		"net.*": {"net.a", "net.b"},
	} {
		list, err := cl.Lookup(t.Context(), pattern)
		var got []string
		for _, o := range list {
			got = append(got, o.Path)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v, want %v", pattern, got, err, want)
		}
	}
	if _, err := cl.Lookup(t.Context(), "x*"); err != StatusNotFound {
		t.Errorf("x*: %v", err)
	}
	list, err := cl.Lookup(t.Context(), "args")
	if err != nil {
		t.Fatal(err)
	}
	want := []Method{{Name: "m", Args: []Arg{{"s", TypeString}, {"n", TypeInt32}, {"t", TypeTable}}}, {Name: "o"}}
	if d := cmp.Diff(want, list[0].Methods); d != "" {
		t.Errorf("methods (-want +got):\n%s", d)
	}
}

// TestLongLookup lists more than a queue holds to a client that reads slowly.
func TestLongLookup(t *testing.T) {
	b := startBroker(t)
	var methods []Method
	for i := range 600 {
		methods = append(methods, Method{Name: fmt.Sprintf("%0200d", i), Handle: func(context.Context, *Request) error { return nil }})
	}
	const objects = 8
	for i := range objects { // about 125 kB each, one a client
		if _, err := b.dial(t).Publish(&Object{Name: fmt.Sprint("o", i), Methods: methods}); err != nil {
			t.Fatal(err)
		}
	}
	r := b.raw(t)
	for range 3 {
		r.send("00 04 0005 00000000 00000004")
	}
	b.dial(t).Ping(t.Context()) // others go on
	n := 0
	for status := 0; status < 3; n++ {
		if m := r.read(); m[1] == msgStatus {
			status++
		}
	}
	if n != 3*(objects+1) {
		t.Errorf("got %d messages", n)
	}
}

func TestPublishRefuses(t *testing.T) {
	b := startBroker(t)
	c := b.dial(t)
	h := func(context.Context, *Request) error { return nil }
	p := echo(t, c, "taken")
	for name, o := range map[string]*Object{
		"no name":     {},
		"no handler":  {Name: "a", Methods: []Method{{Name: "m"}}},
		"twice":       {Name: "a", Methods: []Method{{Name: "m", Handle: h}, {Name: "m", Handle: h}}},
		"taken":       {Name: "taken"},
		"NUL in name": {Name: "a", Methods: []Method{{Name: "m\x00", Handle: h}}},
	} {
		if _, err := c.Publish(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	echo(t, c, "taken")
}

// collect gathers what callbacks deliver.
type collect struct {
	ch chan string
}

func newCollect() *collect { return &collect{make(chan string, 10000)} }

func (c *collect) add(id string, data Table) {
	c.ch <- id + string(data.AppendJSON(nil, false))
}

func (c *collect) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-c.ch:
			if got != w {
				t.Fatalf("got %s, want %s", got, w)
			}
		case <-time.After(watchdog):
			t.Fatalf("%s did not come", w)
		}
	}
}

func TestEvents(t *testing.T) {
	b := startBroker(t)
	a, c := b.dial(t), b.dial(t)
	exact, prefix, all := newCollect(), newCollect(), newCollect()
	cancelExact, err := a.OnEvent("net.up", exact.add)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.OnEvent("net.*", prefix.add); err != nil {
		t.Fatal(err)
	}
	if _, err := a.OnEvent("*", all.add); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	send := func(c *Client, id string, data any, want error) {
		t.Helper()
		if err := c.SendEvent(ctx, id, data); !errors.Is(err, want) {
			t.Fatalf("send %s: %v", id, err)
		}
	}
	send(c, "net.up", Table{{"n", 1}}, nil)
	send(c, "net.up.more", nil, nil)
	send(c, "netless", nil, nil)
	send(c, "ubus.object.add", nil, StatusPermissionDenied)
	send(a, "net.up", Table{{"own", true}}, nil) // not looped back
	send(c, "last", nil, nil)
	exact.expect(t, `net.up{"n":1}`)
	prefix.expect(t, `net.up{"n":1}`, `net.up.more{}`)
	all.expect(t, `net.up{"n":1}`, `net.up.more{}`, `netless{}`, `last{}`)
	cancelExact()
	cancelExact()
	send(c, "net.up", Table{{"n", 2}}, nil)
	prefix.expect(t, `net.up{"n":2}`)
	if len(exact.ch) != 0 {
		t.Errorf("event after cancel: %s", <-exact.ch)
	}
	// The broker's own.
	p := echo(t, c, "new.object")
	p.Close()
	for _, want := range []string{"net.up{", "ubus.object.add{", "ubus.object.remove{"} {
		select {
		case got := <-all.ch:
			if !strings.HasPrefix(got, want) {
				t.Fatalf("got %s, want %s", got, want)
			}
		case <-time.After(watchdog):
			t.Fatal("no event")
		}
	}
}

func TestNotifications(t *testing.T) {
	b := startBroker(t)
	srv := b.dial(t)
	active := make(chan int, 10)
	newObject := func() *Published {
		p, err := srv.Publish(&Object{Name: "n", Subscribers: func(n int) { active <- n }})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	expectActive := func(want int) {
		t.Helper()
		select {
		case got := <-active:
			if got != want {
				t.Fatalf("subscribers: got %d, want %d", got, want)
			}
		case <-time.After(watchdog):
			t.Fatal("the owner was not told")
		}
	}
	cl := b.dial(t)
	got := newCollect()
	// Before the object is there.
	cancel, err := cl.Subscribe("n", got.add)
	if err != nil {
		t.Fatal(err)
	}
	p := newObject()
	expectActive(1)
	ctx := t.Context()
	const many = 500
	for i := range many {
		if err := p.Notify(ctx, "tick", Table{{"i", i}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range many {
		got.expect(t, fmt.Sprintf(`tick{"i":%d}`, i))
	}
	// The object goes and comes back.
	p.Close()
	if err := p.Notify(ctx, "lost", nil); err != nil {
		t.Errorf("notify of a closed object: %v", err)
	}
	p = newObject()
	expectActive(1)
	p.Notify(ctx, "again", nil)
	got.expect(t, `again{}`)
	// A second subscriber changes nothing for the owner; the last one does.
	other := b.dial(t)
	got2 := newCollect()
	if _, err := other.Subscribe("n", got2.add); err != nil {
		t.Fatal(err)
	}
	p.Notify(ctx, "both", nil)
	got.expect(t, `both{}`)
	got2.expect(t, `both{}`)
	cancel()
	p.Notify(ctx, "one", nil)
	got2.expect(t, `one{}`)
	other.Close()
	expectActive(0)
	if len(got.ch) != 0 || len(active) != 0 {
		t.Errorf("something more came")
	}
	if _, err := srv.Subscribe("n", got.add); !errors.Is(err, StatusInvalidArgument) {
		t.Errorf("subscribe to an own object: %v", err)
	}
}

func TestOwnerGone(t *testing.T) {
	b := startBroker(t)
	srv, cl := b.dial(t), b.dial(t)
	entered := make(chan struct{}, 2)
	pub, err := srv.Publish(&Object{Name: "hang", Methods: []Method{{Name: "m", Handle: func(ctx context.Context, _ *Request) error {
		entered <- struct{}{}
		<-ctx.Done()
		return nil
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	call := func() {
		go func() { _, err := cl.Call(t.Context(), "hang", "m", nil); result <- err }()
		<-entered
	}
	// The object is removed under a call.
	call()
	pub.Close()
	if err := <-result; err != StatusConnectionFailed {
		t.Errorf("object removed: got %v", err)
	}
	// The owner crashes under a call.
	srv.mu.Lock()
	conn := srv.link.conn
	srv.mu.Unlock()
	if _, err := srv.Publish(pub.object); err != nil {
		t.Fatal(err)
	}
	call()
	conn.Close()
	if err := <-result; err != StatusConnectionFailed {
		t.Errorf("owner gone: got %v", err)
	}
	if _, err := cl.Lookup(t.Context(), "hang"); err != StatusNotFound {
		t.Errorf("stale object: %v", err)
	}
	// A new owner under the same path is found although the id is remembered.
	echo(t, b.dial(t), "hang")
	if _, err := cl.Call(t.Context(), "hang", "echo", nil); err != nil {
		t.Errorf("new owner: %v", err)
	}
}

func TestFileDescriptors(t *testing.T) {
	b := startBroker(t)
	srv, cl := b.dial(t), b.dial(t)
	if _, err := srv.Publish(&Object{Name: "log", Methods: []Method{{Name: "read", Handle: func(_ context.Context, r *Request) error {
		rd, wr, err := os.Pipe()
		if err != nil {
			return err
		}
		if err := r.ReplyFD(rd); err != nil {
			return err
		}
		second, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		if r.ReplyFD(second) == nil {
			t.Error("a second file was taken")
		}
		if _, err := wr.WriteString("through the pipe"); err != nil {
			return err
		}
		if err := wr.Close(); err != nil {
			return err
		}
		return r.Reply(Table{{"lines", 1}})
	}}}}); err != nil {
		t.Fatal(err)
	}
	r, f, err := cl.CallFD(t.Context(), "log", "read", nil)
	if err != nil || f == nil {
		t.Fatalf("got %v, %v, %v", r, f, err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil || string(text) != "through the pipe" || r.Get("lines") != int32(1) {
		t.Errorf("got %q, %v, %v", text, r, err)
	}
	// Who does not ask for a file must not keep it.
	if _, err := cl.Call(t.Context(), "log", "read", nil); err != nil {
		t.Error(err)
	}
}

func TestMonitor(t *testing.T) {
	b := startBroker(t)
	if os.Getuid() != 0 {
		t.Skip("only root may monitor")
	}
	mon, cl := b.dial(t), b.dial(t)
	seen := make(chan MonitorMessage, 1000)
	if err := mon.Monitor(func(m MonitorMessage) { seen <- m }); err != nil {
		t.Fatal(err)
	}
	if err := mon.Monitor(func(MonitorMessage) {}); !errors.Is(err, StatusInvalidArgument) {
		t.Errorf("a second monitor: %v", err)
	}
	echo(t, cl, "watched")
	deadline := time.After(watchdog)
	for {
		select {
		case m := <-seen:
			if m.Client == cl.ID() && m.Type == msgAddObject && !m.Sent {
				want := Table{{"objpath", "watched"}, {"signature", Table{{"echo", Table{}}}}}
				if d := cmp.Diff(want, m.Data); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
				return
			}
		case <-deadline:
			t.Fatal("ADD_OBJECT was not seen")
		}
	}
}

func TestReconnect(t *testing.T) {
	b := startBroker(t)
	b.stop()
	ctx := t.Context()
	logs := &logBuffer{more: make(chan struct{}, 1)}
	log := slog.New(slog.NewTextHandler(logs, nil))
	srv := Connect(ctx, b.path, log)
	defer srv.Close()
	cl := Connect(ctx, b.path, nil)
	defer cl.Close()

	// All of it before there is a broker.
	got, events := newCollect(), newCollect()
	active := make(chan int, 10)
	pub, err := srv.Publish(&Object{Name: "s", Subscribers: func(n int) { active <- n }, Methods: []Method{
		{Name: "hi", Handle: func(_ context.Context, r *Request) error { return r.Reply(Table{{"hi", true}}) }}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Subscribe("s", got.add); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.OnEvent("e", events.add); err != nil {
		t.Fatal(err)
	}
	if err := pub.Notify(ctx, "x", nil); err != nil {
		t.Errorf("notify without a broker: %v", err)
	}
	if err := srv.SendEvent(ctx, "e", nil); err != StatusConnectionFailed {
		t.Errorf("event without a broker: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	if _, err := cl.Call(short, "s", "hi", nil); err != StatusTimeout {
		t.Errorf("call without a broker: %v", err)
	}
	cancel()
	logs.await(t, "bus not reachable")

	for round := range 3 {
		b.start(t)
		var want []int
		if round > 0 {
			want = append(want, 0) // the subscribers went with the old broker
		}
		for _, w := range append(want, 1) {
			select {
			case n := <-active:
				if n != w {
					t.Fatalf("round %d: subscribers %d, want %d", round, n, w)
				}
			case <-time.After(watchdog):
				t.Fatalf("round %d: the owner was not told", round)
			}
		}
		// cl restores subscriptions last: its event handler is in place too.
		if _, err := cl.Call(ctx, "s", "hi", nil); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		pub.Notify(ctx, "n", Table{{"round", round}})
		got.expect(t, fmt.Sprintf(`n{"round":%d}`, round))
		if err := srv.SendEvent(ctx, "e", Table{{"round", round}}); err != nil {
			t.Fatal(err)
		}
		events.expect(t, fmt.Sprintf(`e{"round":%d}`, round))
		down := srv.Done()
		b.stop()
		<-down
	}
	logs.await(t, "bus connection lost")
}

func TestDialFails(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error without a socket")
	}
	b := startBroker(t)
	c := b.dial(t)
	b.stop()
	<-c.Done()
	if _, err := c.Call(t.Context(), "a", "b", nil); err != StatusConnectionFailed {
		t.Errorf("call on a dead connection: %v", err)
	}
	if _, err := c.Publish(&Object{Name: "x"}); !errors.Is(err, StatusConnectionFailed) {
		t.Errorf("publish on a dead connection: %v", err)
	}
}

func TestSocketInUse(t *testing.T) {
	b := startBroker(t)
	if _, err := Listen(b.path, BrokerOptions{}); err == nil || !strings.Contains(err.Error(), "another broker answers") {
		t.Errorf("second broker: %v", err)
	}
	// The first one must not have suffered.
	if err := b.dial(t).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	b.stop()
	if _, err := os.Stat(b.path); !os.IsNotExist(err) {
		t.Errorf("the socket stays behind: %v", err)
	}
	// A socket left by a crash.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	b.start(t)
	if err := b.dial(t).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	b.stop()
	// Something that is no socket is not touched.
	if err := os.WriteFile(b.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(b.path, BrokerOptions{}); err == nil {
		t.Error("a file was replaced")
	}
}

// TestSlowClient floods a client that does not read. It is dropped, with a log
// line; nobody else loses anything.
func TestSlowClient(t *testing.T) {
	b := startBroker(t)
	srv, slow, ok := b.dial(t), b.dial(t), b.dial(t)
	if _, err := srv.Publish(&Object{Name: "o", Methods: []Method{{Name: "m", Handle: func(_ context.Context, r *Request) error { return r.Reply(nil) }}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.OnEvent("flood", func(string, Table) {}); err != nil {
		t.Fatal(err)
	}
	got := make(chan int32, 1)
	if _, err := ok.OnEvent("flood", func(_ string, d Table) { got <- d.Get("n").(int32) }); err != nil {
		t.Fatal(err)
	}
	// CallEach's function runs in the reader: while it waits nothing is read.
	block, blocked := make(chan struct{}), make(chan struct{})
	defer close(block)
	go slow.CallEach(t.Context(), "o", "m", nil, func(Table) { close(blocked); <-block })
	<-blocked
	load := strings.Repeat("x", 100<<10)
	for n := range 60 {
		if err := srv.SendEvent(t.Context(), "flood", Table{{"n", n}, {"load", load}}); err != nil {
			t.Fatal(err)
		}
		if i := <-got; i != int32(n) {
			t.Fatalf("event %d came as %d", n, i)
		}
	}
	b.log.await(t, "it does not read")
}

func TestHeldMemoryIsBounded(t *testing.T) {
	b := startBroker(t)
	c := b.dial(t)
	n := 0
	for ; ; n++ {
		if _, err := c.OnEvent(fmt.Sprint("pattern.", n), func(string, Table) {}); err != nil {
			if !errors.Is(err, StatusNoMemory) {
				t.Fatal(err)
			}
			break
		}
	}
	if n < 500 || n > maxHeld/objectCost {
		t.Errorf("%d handlers", n)
	}
	other := b.dial(t)
	echo(t, other, "fine")
	b.stop() // waits until all clients are cleaned up
	if len(b.objects) != 3 || len(b.paths) != 0 || len(b.listeners) != 0 || len(b.types) != 0 {
		t.Errorf("left: %d objects, %d paths, %d listeners, %d types", len(b.objects), len(b.paths), len(b.listeners), len(b.types))
	}
}

// dialAs connects as another user: credentials belong to a thread.
func (b *testBroker) dialAs(t *testing.T, uid, gid int, groups ...uint32) *Client {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	type result struct {
		c   *Client
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread()               // never unlocked: the thread ends with the goroutine
		groups = append(groups, uint32(gid)) // so that there is one
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
			ch <- result{nil, e}
			return
		}
		for _, c := range [][4]uintptr{
			{unix.SYS_SETRESGID, ^uintptr(0), uintptr(gid), ^uintptr(0)},
			{unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)},
		} {
			if _, _, e := unix.RawSyscall(c[0], c[1], c[2], c[3]); e != 0 {
				ch <- result{nil, e}
				return
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: b.path})
		}
		if err != nil {
			ch <- result{nil, err}
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			ch <- result{nil, err}
			return
		}
		c := newClient(context.Background(), b.path, slog.New(slog.DiscardHandler))
		l, err := newLink(t.Context(), c, nc.(*net.UnixConn))
		if err == nil {
			c.once(l)
		}
		ch <- result{c, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Skipf("cannot act as user %d: %v", uid, r.err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r.c
}

func TestACL(t *testing.T) {
	b := startBroker(t)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(b.aclDir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		os.Chmod(filepath.Join(b.aclDir, name), mode)
	}
	write("nobody.json", `{
		"user": "nobody",
		"access": {
			"sys": { "methods": [ "info" ], "acl": { "level": 3 } },
			"free.*": { "methods": [ "*" ] }
		},
		"publish": [ "own.*" ], "subscribe": [ "sys" ],
		"listen": [ "news.*", "exact" ], "send": [ "news.local" ]
	}`, 0o644)
	write("group.json", `{ "group": "daemon", "access": { "sys": { "methods": [ "reboot" ] } } }`, 0o644)
	write("writable.json", `{ "user": "nobody", "access": { "secret": { "methods": [ "*" ] } } }`, 0o666)
	write("broken.json", `{ "user": `, 0o644)
	write("nouser.json", `{ "access": {} }`, 0o644)
	b.ReloadACL()
	for _, s := range []string{"writable.json", "broken.json", "nouser.json"} {
		b.log.await(t, s)
	}

	srv := b.dial(t)
	h := func(_ context.Context, r *Request) error {
		return r.Reply(Table{{"user", r.User}, {"group", r.Group}})
	}
	for _, n := range []string{"sys", "free.a", "secret"} {
		if _, err := srv.Publish(&Object{Name: n, Methods: []Method{{Name: "info", Handle: h}, {Name: "reboot", Handle: h}}}); err != nil {
			t.Fatal(err)
		}
	}
	const nobody, nogroup, daemon = 65534, 65534, 1
	n := b.dialAs(t, nobody, nogroup)
	ctx := t.Context()

	list, err := n.Lookup(ctx, "")
	var seen []string
	for _, o := range list {
		for _, m := range o.Methods {
			seen = append(seen, o.Path+"."+m.Name)
		}
	}
	if want := []string{"free.a.info", "free.a.reboot", "sys.info"}; err != nil || !slices.Equal(seen, want) {
		t.Errorf("lookup: got %v, %v, want %v", seen, err, want)
	}
	r, err := n.Call(ctx, "sys", "info", nil)
	if err != nil || r.String("user") != "nobody" || r.String("group") != "nogroup" {
		t.Errorf("sys.info: %v, %v", r, err)
	}
	if _, err := n.Call(ctx, "sys", "reboot", nil); err != StatusPermissionDenied {
		t.Errorf("sys.reboot: %v", err)
	}
	if _, err := n.Call(ctx, "secret", "info", nil); err != StatusNotFound {
		t.Errorf("secret.info: %v", err)
	}
	own := echo(t, n, "own.thing")
	own.Close()
	if _, err := n.Publish(&Object{Name: "sys.more"}); !errors.Is(err, StatusPermissionDenied) {
		t.Errorf("publish: %v", err)
	}
	if _, err := n.Subscribe("sys", func(string, Table) {}); err != nil {
		t.Errorf("subscribe: %v", err)
	}
	for pattern, ok := range map[string]bool{"news.x": true, "news.*": true, "exact": true, "exact*": false, "*": false, "news*": false, "other": false} {
		if _, err := n.OnEvent(pattern, func(string, Table) {}); (err == nil) != ok {
			t.Errorf("listen %s: %v", pattern, err)
		}
	}
	if err := n.SendEvent(ctx, "news.local", nil); err != nil {
		t.Errorf("send: %v", err)
	}
	if err := n.SendEvent(ctx, "news.other", nil); err != StatusPermissionDenied {
		t.Errorf("send: %v", err)
	}
	if err := n.Monitor(func(MonitorMessage) {}); !errors.Is(err, StatusPermissionDenied) {
		t.Errorf("monitor: %v", err)
	}
	// An object without a path: root's is closed to others, whatever they guess.
	if _, err := srv.OnEvent("x", func(string, Table) {}); err != nil {
		t.Fatal(err)
	}
	id := srv.events[0].id
	if _, err := n.current().invoke(ctx, id, "x", nil, nil); err != StatusPermissionDenied {
		t.Errorf("forged event: %v", err)
	}

	// By supplementary group.
	g := b.dialAs(t, 12345, 12345, daemon)
	if _, err := g.Call(ctx, "sys", "reboot", nil); err != nil {
		t.Errorf("by group: %v", err)
	}
	if _, err := g.Call(ctx, "sys", "info", nil); err != StatusPermissionDenied {
		t.Errorf("by group, other method: %v", err)
	}

	// What the files say about an owner's objects.
	var acl Table
	if _, err := srv.current().invoke(ctx, objACL, "query", nil, func(t Table) { acl = t }); err != nil {
		t.Fatal(err)
	}
	if got, want := string(acl.AppendJSON(nil, false)), `{"seq":2,"acl":[{"obj":"sys","user":"nobody","acl":{"level":3}}]}`; got != want {
		t.Errorf("query: got %s, want %s", got, want)
	}
	// A reload is announced and takes effect.
	seq := newCollect()
	if _, err := srv.OnEvent("ubus.acl.*", seq.add); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(b.aclDir, "nobody.json"))
	b.ReloadACL()
	seq.expect(t, `ubus.acl.sequence{"sequence":3}`)
	if _, err := n.Call(ctx, "free.a", "info", nil); err != StatusNotFound {
		t.Errorf("after the reload: %v", err)
	}
}

// FuzzBroker feeds a broker bytes; it must go on serving others and keep
// nothing once the client is gone.
func FuzzBroker(f *testing.F) {
	for _, s := range []string{
		"00 03 0009 00000000 00000004",
		"00 06 0001 00000000 00000024 02000008 742e6f00 06000018 82000014 0001 6d00 8500000c 0001 6e00 00000005",
		"00 06 000a 00000000 00000004 00 04 0005 00000000 00000004",
		"00 05 000e 00000001 00000040 03000008 00000001 04000009 73656e6400 000000 0700002c 8300000a 0002 696400 000000 6100 0000 8200000c 0004 6461746100 00",
		"00 05 000e 00000002 00000018 03000008 00000002 0400000a 717565727900 0000",
		"00 05 000e 00000003 00000014 03000008 00000003 04000008 61646400",
		"00 08 000b 00000000 00000014 03000008 00000001 08000008 00000002",
		"00 07 000b 00000000 0000000c 03000008 00000001",
		"00 0a 000b 00000000 0000001c 03000008 00000001 04000006 6e00 0000 0a000005 01 000000",
		"ffffffff ffffffff ffffffff",
		"00 03 0009 00000000 00fffff0 00",
	} {
		f.Add(unhex(f, s))
	}
	b := startBroker(f)
	healthy := b.dial(f)
	echo(f, healthy, "healthy")
	f.Fuzz(func(t *testing.T, data []byte) {
		nc, err := net.Dial("unix", b.path)
		if err != nil {
			t.Fatal(err)
		}
		conn := nc.(*net.UnixConn)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(watchdog))
		conn.Write(data) // may fail: the broker hangs up on garbage
		conn.CloseWrite()
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the broker keeps a finished client")
		}
		if _, err := healthy.Call(t.Context(), "healthy", "echo", Table{{"a", 1}}); err != nil {
			t.Fatalf("another client suffers: %v", err)
		}
		b.Broker.mu.Lock()
		defer b.Broker.mu.Unlock()
		if len(b.clients) != 1 || len(b.objects) != 4 || len(b.paths) != 1 || len(b.types) != 1 || len(b.listeners) != 0 || len(b.monitors) != 0 {
			t.Fatalf("left behind: %d clients, %d objects, %d paths, %d types, %d listeners, %d monitors",
				len(b.clients), len(b.objects), len(b.paths), len(b.types), len(b.listeners), len(b.monitors))
		}
	})
}

// FuzzClient feeds a client what a broken broker might send.
func FuzzClient(f *testing.F) {
	f.Add(unhex(f, "00 01 0001 00000000 0000000c 01000008 00000000"))
	f.Add(unhex(f, "00 05 0001 00000000 00000014 03000008 00000500 04000006 6d00 0000"))
	f.Add(unhex(f, "00 0a 0001 00000000 00000014 03000008 00000500 09000005 01 000000"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*net.UnixConn
		for i, fd := range fds {
			file := os.NewFile(uintptr(fd), "pair")
			nc, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			conns[i] = nc.(*net.UnixConn)
			defer conns[i].Close()
		}
		conns[0].Write(unhex(t, "00000000 00001000 00000004"))
		c := newClient(t.Context(), "fuzz", slog.New(slog.DiscardHandler))
		l, err := newLink(t.Context(), c, conns[1])
		if err != nil {
			t.Fatal(err)
		}
		l.own[0x500] = &Published{c: c, object: &Object{Name: "o", Subscribers: func(int) {}, Methods: []Method{{Name: "m", Handle: func(context.Context, *Request) error { return nil }}}}}
		l.own[0x501] = &listener{c: c, f: func(string, Table) {}}
		l.own[0x502] = &subscription{c: c, f: func(string, Table) {}}
		l.pending[1] = &request{onData: func(*attrs) {}, result: make(chan result, 1)}
		c.once(l)
		go io.Copy(io.Discard, conns[0])
		conns[0].Write(data)
		conns[0].CloseWrite()
		<-l.done
		c.Close()
	})
}

// TestEnd answers a call whose method takes the owner's connection down.
func TestEnd(t *testing.T) {
	b := startBroker(t)
	owner, caller := b.dial(t), b.dial(t)
	answered := make(chan struct{})
	if _, err := owner.Publish(&Object{Name: "power", Methods: []Method{{Name: "off", Handle: func(_ context.Context, r *Request) error {
		r.End()
		if err := r.Reply(map[string]any{"late": true}); err == nil {
			t.Error("a reply after End was taken")
		}
		<-answered
		return StatusUnknownError
	}}}}); err != nil {
		t.Fatal(err)
	}
	out, err := caller.Call(t.Context(), "power", "off", nil)
	close(answered)
	if err != nil || len(out) != 0 {
		t.Errorf("got %v, %v while the method still ran", out, err)
	}
	if _, err := caller.Call(t.Context(), "power", "off", nil); err != nil {
		t.Errorf("the next call: %v", err)
	}
}
