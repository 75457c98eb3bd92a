package ntpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beevik/ntp"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

// answer is a good answer of a server that finds our clock wrong by offset.
func answer(offset time.Duration) *ntp.Response {
	now := time.Now()
	return &ntp.Response{
		ClockOffset: offset, Time: now, ReferenceTime: now.Add(-time.Minute), Version: 4, Stratum: 2, RTT: 10 * time.Millisecond,
		RootDelay: 10 * time.Millisecond, RootDispersion: time.Millisecond, RootDistance: 11 * time.Millisecond,
	}
}

func TestChoose(t *testing.T) {
	s := func(name string, offset, distance time.Duration, stratum uint8) sample {
		r := answer(offset)
		r.RootDistance, r.Stratum = distance, stratum
		return sample{name, r}
	}
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		in   []sample
		want string
	}{
		{"none", nil, ""},
		{"one", []sample{s("a", time.Hour, ms, 2)}, "a"},
		{"two that agree", []sample{s("a", 0, 20*ms, 3), s("b", 10*ms, 20*ms, 2)}, "b a"},
		{"two that do not", []sample{s("a", 0, 10*ms, 2), s("b", time.Second, 10*ms, 2)}, ""},
		{"one liar of three", []sample{s("liar", -time.Hour, 10*ms, 1), s("a", 0, 30*ms, 2), s("b", 5*ms, 20*ms, 2)}, "b a"},
		{"two liars of four that disagree", []sample{s("x", time.Hour, ms, 1), s("y", -time.Hour, ms, 1), s("a", 0, ms, 2), s("b", ms, ms, 2)}, ""},
		{"two liars of five", []sample{s("x", time.Hour, ms, 1), s("y", -time.Hour, ms, 1), s("a", 0, ms, 2), s("b", ms, ms, 2), s("c", 2*ms, ms, 2)}, "a b c"},
		{"a liar with a wide interval", []sample{s("wide", time.Second, 2*time.Second, 15), s("a", 0, 10*ms, 2), s("b", 0, 10*ms, 2)}, "a b wide"},
		{"intervals that touch", []sample{s("a", 0, 10*ms, 2), s("b", 20*ms, 10*ms, 2)}, "a b"},
	} {
		var names []string
		for _, x := range choose(c.in) {
			names = append(names, x.server)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// fakeClock notes what was done to it.
type fakeClock struct {
	did []string
	err error
}

func (c *fakeClock) step(by time.Duration) error {
	c.did = append(c.did, fmt.Sprintf("step %v", by.Round(time.Millisecond)))
	return c.err
}

func (c *fakeClock) slew(by, _, _ time.Duration, _ uint8) (float64, error) {
	c.did = append(c.did, fmt.Sprintf("slew %v", by.Round(time.Millisecond)))
	return 0, c.err
}

// trial is a daemon whose servers say what the test wants.
type trial struct {
	*daemon
	clock   *fakeClock
	at      time.Time
	answers map[string]func() (*ntp.Response, error)
	asked   []string
	actions []string
}

func newTrial(t *testing.T) *trial {
	x := &trial{daemon: newDaemon(slog.New(slog.DiscardHandler)), clock: &fakeClock{}, at: time.Now(), answers: map[string]func() (*ntp.Response, error){}}
	x.daemon.clock, x.state = x.clock, filepath.Join(t.TempDir(), "ntpd")
	x.now = func() time.Time { return x.at }
	x.query = func(_ context.Context, s string) (*ntp.Response, error) { return x.answers[s]() }
	x.notify = func(a string, _ truth, _ time.Duration, _ float64, _ time.Duration) { x.actions = append(x.actions, a) }
	return x
}

func (x *trial) say(server string, offset time.Duration) {
	x.answers[server] = func() (*ntp.Response, error) { return answer(offset), nil }
}

func (x *trial) ask(t *testing.T, servers ...string) time.Duration {
	t.Helper()
	x.clock.did, x.actions = nil, nil
	wait := x.round(t.Context(), servers)
	x.at = x.at.Add(wait)
	return wait
}

func (x *trial) want(t *testing.T, did, actions string) {
	t.Helper()
	if got := strings.Join(x.clock.did, ", "); got != did {
		t.Errorf("the clock: got %q, want %q", got, did)
	}
	if got := strings.Join(x.actions, ", "); got != actions {
		t.Errorf("scripts: got %q, want %q", got, actions)
	}
}

func TestStepThenSlew(t *testing.T) {
	x := newTrial(t)
	x.say("a", time.Hour)
	x.say("b", time.Hour+time.Millisecond)
	x.say("liar", -24*time.Hour)
	x.ask(t, "a", "b", "liar")
	x.want(t, "step 1h0m0.001s", "step")
	if now := x.current(); !now.synced || now.stratum != 3 {
		t.Errorf("after the step: %+v", now)
	}
	if fi, err := os.Stat(filepath.Join(x.state, clockFile)); err != nil || fi.Size() == 0 {
		t.Errorf("the time was not saved: %v", err)
	}
	x.say("a", 20*time.Millisecond)
	x.say("b", 20*time.Millisecond)
	polls := []time.Duration{}
	for range 10 {
		polls = append(polls, x.ask(t, "a", "b", "liar"))
		x.want(t, "slew 20ms", "")
	}
	if !slices.IsSorted(polls) || polls[0] != minPoll || polls[9] <= minPoll {
		t.Errorf("poll intervals %v: want them to grow from %v", polls, minPoll)
	}
	// Far off while it runs by ours: asked again at once, then believed.
	x.say("a", 10*time.Second)
	x.say("b", 10*time.Second)
	if wait := x.ask(t, "a", "b"); wait != firstTry {
		t.Errorf("asked again after %v, want %v", wait, firstTry)
	}
	x.want(t, "", "")
	x.ask(t, "a", "b")
	x.want(t, "step 10s", "step")
	// Nobody answers, or no majority: the clock is left alone.
	x.say("b", -time.Second)
	x.ask(t, "a", "b")
	x.want(t, "", "")
	x.answers["a"] = func() (*ntp.Response, error) { return nil, errors.New("i/o timeout") }
	x.ask(t, "a")
	x.want(t, "", "")
}

func TestSmallOffsetIsSlewedAtOnce(t *testing.T) {
	x := newTrial(t)
	x.say("a", -50*time.Millisecond)
	x.ask(t, "a")
	x.want(t, "slew -50ms", "stratum")
}

func TestNoTimeYet(t *testing.T) {
	x := newTrial(t)
	x.answers["a"] = func() (*ntp.Response, error) { return nil, errors.New("no such host") }
	var polls []time.Duration
	for range 10 {
		polls = append(polls, x.ask(t, "a"))
	}
	if polls[0] > 10*time.Second || polls[9] != lastTry || !slices.IsSorted(polls) {
		t.Errorf("intervals %v: want them to grow to %v", polls, lastTry)
	}
	x.want(t, "", "")
}

func TestClockThatCannotBeSet(t *testing.T) {
	x := newTrial(t)
	x.clock.err = errors.New("operation not permitted")
	status := ""
	x.daemon.status = func(s string) { status = s }
	x.say("a", time.Hour)
	x.ask(t, "a")
	if x.current().synced || status != "operation not permitted" {
		t.Errorf("synced although the clock was not set; status %q", status)
	}
}

func TestKissOfDeath(t *testing.T) {
	x := newTrial(t)
	kiss := func(code string) func() (*ntp.Response, error) {
		return func() (*ntp.Response, error) {
			x.asked = append(x.asked, code)
			r := answer(time.Hour)
			r.Stratum, r.KissCode = 0, code
			return r, nil
		}
	}
	for _, code := range []string{"DENY", "RSTR", "RATE"} {
		x.answers[code] = kiss(code)
		x.asked = nil
		start := x.at
		for x.at.Sub(start) < time.Hour {
			x.ask(t, code)
			x.want(t, "", "")
		}
		if code != "RATE" && len(x.asked) != 1 {
			t.Errorf("%s: asked %d times, want once", code, len(x.asked))
		}
		if code == "RATE" && (len(x.asked) < 2 || len(x.asked) > 10) {
			t.Errorf("RATE: asked %d times in an hour, want it less and less often", len(x.asked))
		}
	}
}

func TestInvalidAnswers(t *testing.T) {
	for name, spoil := range map[string]func(*ntp.Response){
		"stratum 16":             func(r *ntp.Response) { r.Stratum = 16 },
		"not in sync":            func(r *ntp.Response) { r.Leap = ntp.LeapNotInSync },
		"old":                    func(r *ntp.Response) { r.ReferenceTime = r.Time.Add(-60 * time.Hour) },
		"far from any clock":     func(r *ntp.Response) { r.RootDispersion = 20 * time.Second },
		"set after it was asked": func(r *ntp.Response) { r.ReferenceTime = r.Time.Add(time.Second) },
	} {
		x := newTrial(t)
		r := answer(time.Hour)
		spoil(r)
		x.answers["a"] = func() (*ntp.Response, error) { return r, nil }
		x.ask(t, "a")
		if len(x.clock.did) > 0 {
			t.Errorf("%s: the clock was set: %v", name, x.clock.did)
		}
	}
}

// TestServer lets the client library judge what our server answers.
func TestServer(t *testing.T) {
	now := truth{synced: true, stratum: 3, reference: addressID("192.0.2.1"), rootDelay: 20 * time.Millisecond, dispersion: 3 * time.Millisecond, at: time.Now().Add(-time.Minute)}
	s, err := listen(t.Context(), "127.0.0.1:0", "", slog.New(slog.DiscardHandler), func() truth { return now })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	addr := s.conn.LocalAddr().String()
	r, err := ntp.QueryWithOptions(addr, ntp.QueryOptions{Version: 4, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Validate(); err != nil {
		t.Errorf("the client finds the answer invalid: %v", err)
	}
	if r.Stratum != 3 || r.ReferenceString() != "192.0.2.1" || r.RootDelay.Round(time.Millisecond) != 20*time.Millisecond || r.RootDispersion < 3*time.Millisecond {
		t.Errorf("answer %+v", r)
	}
	// The same clock on both ends: off by no more than the way takes.
	if r.ClockOffset.Abs() > r.RTT+time.Millisecond {
		t.Errorf("offset %v of the same clock at a round trip of %v", r.ClockOffset, r.RTT)
	}
}

func TestServerIgnores(t *testing.T) {
	now := time.Now()
	good := make([]byte, packetSize)
	good[0] = 4<<3 | 3
	synced := truth{synced: true, stratum: 2, at: now}
	if respond(good, synced, now, now) == nil {
		t.Fatal("no answer to a good request")
	}
	for name, c := range map[string]struct {
		first byte
		size  int
		truth truth
	}{
		"not synced": {4<<3 | 3, packetSize, truth{}}, "short": {4<<3 | 3, packetSize - 1, synced}, "version 0": {3, packetSize, synced},
		"version 5": {5<<3 | 3, packetSize, synced}, "a server": {4<<3 | 4, packetSize, synced}, "broadcast": {4<<3 | 5, packetSize, synced}, "control": {4<<3 | 6, packetSize, synced},
	} {
		b := make([]byte, c.size)
		b[0] = c.first
		if respond(b, c.truth, now, now) != nil {
			t.Errorf("%s: answered", name)
		}
	}
}

func FuzzRespond(f *testing.F) {
	f.Add(make([]byte, packetSize))
	f.Add(append([]byte{4<<3 | 3}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, req []byte) {
		now := time.Unix(1800000000, 0)
		b := respond(req, truth{synced: true, stratum: 2, at: now.Add(-time.Hour)}, now, now)
		if b != nil && (len(b) > len(req) || len(b) != packetSize || string(b[24:32]) != string(req[40:48])) {
			t.Fatalf("answer %x to %x", b, req)
		}
	})
}

func TestConfig(t *testing.T) {
	p, err := uci.Parse("system", strings.NewReader("config timeserver 'ntp'\n\toption enable_server '1'\n\tlist server 'a'\n\tlist server 'b'\n\tlist dhcp_interface 'wan'\n"), true)
	if err != nil {
		t.Fatal(err)
	}
	want := "{true true [a b] true [wan] []}"
	if got := fmt.Sprint(parse(p.Section("ntp"))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	reply := bus.Table{{Name: "values", Value: bus.Table{
		{Name: ".type", Value: "timeserver"}, {Name: ".name", Value: "ntp"}, {Name: "enable_server", Value: "1"},
		{Name: "server", Value: bus.Array{"a", "b"}}, {Name: "dhcp_interface", Value: bus.Array{"wan"}},
	}}}
	if got := fmt.Sprint(parse(sectionOf(reply))); got != want {
		t.Errorf("by rpcd: got %s, want %s", got, want)
	}
	if got := parse(nil); got.enabled || got.serve {
		t.Errorf("without a section: %+v", got)
	}
}

// TestServiceAsksItsServers runs the service against a server of this test that
// denies service, so that no clock is touched, and waits for the question.
func TestServiceAsksItsServers(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	dir := t.TempDir()
	text := "config timeserver 'ntp'\n\tlist server '" + c.LocalAddr().String() + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "system"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	go func() {
		ended <- unit.Main(Run)(ctx, &unit.Call{
			Args:   []string{"ntpd", "--config-dir", dir, "--bus", filepath.Join(dir, "no.sock"), "--state-dir", filepath.Join(dir, "state")},
			Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", Getenv: func(string) string { return "" },
		})
	}()
	buf := make([]byte, 512)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatal("the service asks nobody:", err)
	}
	reply := respond(buf[:n], truth{synced: true, stratum: 0, reference: 0x44454e59 /* DENY */, at: time.Now()}, time.Now(), time.Now())
	if reply == nil {
		t.Fatalf("not a client's question: %x", buf[:n])
	}
	if _, err := c.WriteTo(reply, from); err != nil {
		t.Fatal(err)
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}
