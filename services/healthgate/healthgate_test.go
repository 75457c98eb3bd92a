package healthgate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/slot"
	"weft/init/unit"
)

// device is a made-up device with slot b on trial: a bus with the supervisor's and
// the network's objects, a boot partition, a console.
type device struct {
	t        *testing.T
	dir      string
	bus      string
	rebooted chan struct{}
	services string // reply of service.list, JSON
	links    string // reply of network.interface.dump
	log      logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	servicesUp = `{"network": {"enabled": true, "instances": {"instance1": {"state": "running", "critical": true}}}}`
	linksDown  = `{"interface": [{"interface": "wan", "up": false, "proto": "dhcp"}]}`
	linksUp    = `{"interface": [{"interface": "wan", "up": true, "proto": "dhcp", "route": [{"target": "0.0.0.0", "mask": 0}]}]}`
)

func newDevice(t *testing.T) *device {
	t.Helper()
	d := &device{t: t, dir: t.TempDir(), rebooted: make(chan struct{}), services: servicesUp, links: linksUp}
	short, err := os.MkdirTemp("", "weft-gate-")
	if err != nil {
		t.Fatal(err)
	}
	d.bus = filepath.Join(short, "bus")
	b, err := bus.Listen(d.bus, bus.BrokerOptions{ACLDir: d.dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx) }()
	client := bus.Connect(ctx, d.bus, nil)
	t.Cleanup(func() {
		client.Close()
		cancel()
		<-served
		os.RemoveAll(short)
	})
	reply := func(text *string) func(context.Context, *bus.Request) error {
		return func(_ context.Context, r *bus.Request) error {
			table, err := bus.ParseJSON(*text)
			if err != nil {
				return err
			}
			return r.Reply(table)
		}
	}
	var once sync.Once
	for _, o := range []*bus.Object{
		{Name: "service", Methods: []bus.Method{{Name: "list", Handle: reply(&d.services)}}},
		{Name: "network.interface", Methods: []bus.Method{{Name: "dump", Handle: reply(&d.links)}}},
		{Name: "system", Methods: []bus.Method{{Name: "reboot", Handle: func(context.Context, *bus.Request) error {
			once.Do(func() { close(d.rebooted) })
			return nil
		}}}},
	} {
		if _, err := client.Publish(o); err != nil {
			t.Fatal(err)
		}
	}
	d.file("boot/boot/grub/.keep", "")
	d.file("data/slot-b/.keep", "")
	d.file("console", "")
	d.file("cmdline", "root=x weft.slot=b weft.trial=2 panic=10\n")
	s := d.open()
	if err := s.StartTrial(slot.B, 3); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *device) file(name, text string) {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) open() *slot.Store {
	d.t.Helper()
	s, err := slot.Open(filepath.Join(d.dir, "boot"))
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// settings writes the section healthgate.
func (d *device) settings(options string) {
	d.file("config/system", "config healthgate 'healthgate'\n"+options)
}

// start runs the service; the function returned stops it as a shutdown does and gives its exit code.
func (d *device) start() (ended <-chan int, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	d.t.Cleanup(cancel)
	done := make(chan int, 1)
	call := &unit.Call{
		Args: []string{"healthgate", "--config-dir", filepath.Join(d.dir, "config"), "--bus", d.bus, "--",
			"--cmdline", filepath.Join(d.dir, "cmdline"), "--data", filepath.Join(d.dir, "data"),
			"--boot", filepath.Join(d.dir, "boot"), "--console", filepath.Join(d.dir, "console")},
		Stdout: io.Discard, Stderr: &d.log, Getenv: func(string) string { return "" },
	}
	go func() { done <- unit.Main(Run)(ctx, call) }()
	return done, cancel
}

func (d *device) wait(ended <-chan int) {
	d.t.Helper()
	select {
	case code := <-ended:
		if code != 0 {
			d.t.Fatalf("exit code %d; log:\n%s", code, &d.log)
		}
	case <-time.After(time.Minute):
		d.t.Fatalf("it goes on; log:\n%s", &d.log)
	}
}

// status asks on the bus until the answer has want in it.
func (d *device) status(want string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := bus.Dial(ctx, d.bus)
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	last := ""
	for ctx.Err() == nil {
		reply, err := c.Call(ctx, "healthgate", "status", nil)
		last = fmt.Sprint(reply, err)
		if strings.Contains(last, want) {
			return
		}
	}
	d.t.Fatalf("status is %s, want %q in it; log:\n%s", last, want, &d.log)
}

func (d *device) console() string {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "console"))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	if err := slot.SaveBefore(filepath.Join(d.dir, "data"), slot.B, slot.Before{Interfaces: []string{"wan"}, DefaultRoute4: true}); err != nil {
		t.Fatal(err)
	}
	d.settings("\toption hold '0'\n")
	ended, _ := d.start()
	d.wait(ended)
	st := d.open().State()
	if st.Preferred != slot.B || st.Trial != "" || !st.Confirmed[slot.B] {
		t.Errorf("state %+v", st)
	}
	if text := d.console(); !strings.Contains(text, "slot b is confirmed") {
		t.Errorf("console: %q", text)
	}
	select {
	case <-d.rebooted:
		t.Error("it rebooted")
	default:
	}
}

// TestGiveUp: what is missing is told everywhere, the slot is given up and the device reboots.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.links = linksDown
	if err := slot.SaveBefore(filepath.Join(d.dir, "data"), slot.B, slot.Before{Interfaces: []string{"wan"}, DefaultRoute4: true}); err != nil {
		t.Fatal(err)
	}
	d.settings("\toption hold '0'\n\toption deadline '0'\n")
	ended, stop := d.start()
	select {
	case <-d.rebooted:
	case <-time.After(time.Minute):
		t.Fatalf("no reboot; log:\n%s", &d.log)
	}
	d.status(`no DHCP server has answered`)
	stop() // as the shutdown does
	d.wait(ended)
	st := d.open().State()
	if st.Preferred != slot.A || st.Trial != "" || !st.Bad[slot.B] || st.TriesLeft != 0 {
		t.Errorf("state %+v", st)
	}
	const want = "interface wan was up before the upgrade and is not now: no DHCP server has answered"
	if st.Last.Slot != slot.B || st.Last.Check != "uplink" || !strings.HasPrefix(st.Last.Detail, want) {
		t.Errorf("kept reason %+v", st.Last)
	}
	for where, text := range map[string]string{"console": d.console(), "log": d.log.String()} {
		if !strings.Contains(text, want) || !strings.Contains(text, "given up") {
			t.Errorf("%s: %q", where, text)
		}
	}
}

// TestStopped: a reboot by the user is no failure, and the try is given back.
func TestStopped(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	// What GRUB does before it starts the slot.
	used := d.open().State()
	used.TriesLeft = 2
	block, err := slot.Block(used)
	if err != nil {
		t.Fatal(err)
	}
	d.file("boot/boot/grub/grubenv", string(block))
	d.file("boot/boot/grub/grubenv2", string(block))
	if got := d.open().State().TriesLeft; got != 2 {
		t.Fatalf("%d tries left, want 2", got)
	}
	ended, stop := d.start()
	d.status("holding")
	stop()
	d.wait(ended)
	st := d.open().State()
	if st.Trial != slot.B || st.TriesLeft != 3 || st.Last.Slot != "" {
		t.Errorf("state %+v", st)
	}
}

func TestByHand(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	ended, _ := d.start()
	d.status("holding")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := bus.Dial(ctx, d.bus)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Call(ctx, "healthgate", "confirm", nil); err != nil {
		t.Fatal(err)
	}
	d.wait(ended)
	if st := d.open().State(); !st.Confirmed[slot.B] {
		t.Errorf("state %+v", st)
	}
}

// TestNoOneToGoBackTo: with no other system the device stays up, whatever is wrong with it.
func TestNoOneToGoBackTo(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	if err := d.open().Fail(slot.Result{Slot: slot.A, Check: "test"}); err != nil {
		t.Fatal(err)
	}
	d.services = `{}`
	d.settings("\toption deadline '0'\n")
	ended, _ := d.start()
	d.wait(ended)
	select {
	case <-d.rebooted:
		t.Error("it rebooted")
	default:
	}
	if text := d.console(); !strings.Contains(text, "no system to go back to") {
		t.Errorf("console: %q", text)
	}
}

// TestDecided: somebody else has confirmed the slot while the gate was watching.
func TestDecided(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	if err := d.open().Confirm(slot.B); err != nil {
		t.Fatal(err)
	}
	d.services = `{}`
	d.settings("\toption deadline '0'\n")
	before := d.open().State()
	ended, _ := d.start()
	d.wait(ended)
	if after := d.open().State(); after.Seq != before.Seq || !after.Confirmed[slot.B] {
		t.Errorf("state %+v, was %+v", after, before)
	}
}

func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.services = `{}`
	d.settings("\toption enabled '0'\n")
	ended, _ := d.start()
	d.wait(ended)
	if st := d.open().State(); !st.Confirmed[slot.B] {
		t.Errorf("state %+v", st)
	}
}

// TestNoTrial: an ordinary boot costs nothing but the start of a process.
func TestNoTrial(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.file("cmdline", "root=x weft.slot=b\n")
	before := d.open().State()
	ended, _ := d.start()
	d.wait(ended)
	if after := d.open().State(); after.Seq != before.Seq {
		t.Errorf("the state was changed: %+v", after)
	}
	if d.log.String() != "" {
		t.Errorf("log: %s", &d.log)
	}
}

func TestReach(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(ctx, target{host: "127.0.0.1", port: port}); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := reach(ctx, target{host: "127.0.0.1", port: port}); err == nil {
		t.Error("a port that nobody listens on: no error")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: no raw socket for an echo request")
	}
	if err := reach(ctx, target{host: "127.0.0.1"}); err != nil {
		t.Error(err)
	}
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		if err := reach(ctx, target{host: "::1"}); err != nil {
			t.Error(err)
		}
	}
	none, cancel := context.WithCancel(ctx)
	cancel()
	if err := echo(none, net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}); err == nil {
		t.Error("no time at all: no error")
	}
}

func TestEcho(t *testing.T) {
	token := [12]byte{1, 2, 3}
	m := echoMessage(echoRequest4, token)
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(m[i])<<8 | uint32(m[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("checksum of % x sums up to %#x", m, sum)
	}
	answer := append([]byte{echoReply4}, m[1:]...)
	if !isEcho(answer, echoReply4, token) || isEcho(answer, echoReply6, token) || isEcho(answer[:15], echoReply4, token) || isEcho(m, echoReply4, token) {
		t.Error("answers are not told from others")
	}
	answer[6]++
	if isEcho(answer, echoReply4, token) {
		t.Error("the answer to another is taken for ours")
	}
}
