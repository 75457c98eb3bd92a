package logd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

func TestParseSyslog(t *testing.T) {
	for _, c := range []struct {
		in       string
		priority uint32
		text     string
	}{
		{"<30>Nov 24 13:00:00 tag[12]: hello\n", 30, "tag[12]: hello"},
		{"<30>tag: no time", 30, "tag: no time"},
		{"plain", 13, "plain"},
		{"<999>x", 13, "<999>x"},
		{"<>x", 13, "<>x"},
		{"<30>tag: a\x1b[2Jb\nc\x00", 30, `tag: a\x1b[2Jb\x0ac`},
		{"<30>grüß \xff gott\u0085", 30, `grüß \xff gott\xc2\x85`},
		{"<30>" + strings.Repeat("x", 3000), 30, strings.Repeat("x", 2048) + " [952 bytes cut]"},
		{"", 13, ""},
	} {
		p, text := parseSyslog([]byte(c.in))
		if p != c.priority || text != c.text {
			t.Errorf("%q: %d %q, want %d %q", c.in, p, text, c.priority, c.text)
		}
	}
}

func TestParseKmsg(t *testing.T) {
	p, stamp, text, ok := parseKmsg([]byte("6,339,5140900,-;NET: Registered \\x50ROTO\n SUBSYSTEM=net\n"))
	if p != 6 || stamp != 5140900 || text != "NET: Registered PROTO" || !ok {
		t.Errorf("got %d %d %q %v", p, stamp, text, ok)
	}
	for _, bad := range []string{"", "x", "6,1;x", "a,1,2,-;x", "6,1,b,-;x", "6,1,-4,-;x"} {
		if _, _, _, ok := parseKmsg([]byte(bad)); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestLine(t *testing.T) {
	e := entry{time: time.Date(2026, 11, 4, 13, 0, 0, 0, time.Local).UnixMilli(), priority: 30, source: fromSyslog, text: "tag[1]: text"}
	if got, want := e.line(), "Wed Nov  4 13:00:00 2026 daemon.info tag[1]: text"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	e.source, e.priority = fromKernel, 6
	if got, want := e.line(), "Wed Nov  4 13:00:00 2026 kern.info kernel: tag[1]: text"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for p, want := range map[uint32]string{0: "kern.emerg", 191: "local7.debug", 13 << 3: "facility13.emerg", 10<<3 | 3: "authpriv.err"} {
		if got := priorityName(p); got != want {
			t.Errorf("%d is %q, want %q", p, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("<30>Nov 24 13:00:00 tag[12]: hello\n"))
	f.Add([]byte("6,339,5140900,-;text\\x20\n KEY=v"))
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(text string) {
			if len(text) > 4*maxLine+64 {
				t.Errorf("%d bytes of text", len(text))
			}
			for _, r := range text {
				if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
					t.Errorf("control character %q in %q", r, text)
				}
			}
		}
		p, text := parseSyslog(b)
		if p > 191 {
			t.Errorf("priority %d", p)
		}
		check(text)
		if _, _, text, ok := parseKmsg(b); ok {
			check(text)
		}
	})
}

func TestRing(t *testing.T) {
	r := newRing(10 * (overhead + 1))
	for i := range 25 {
		r.add(entry{text: string(rune('a' + i))})
	}
	list, next, lost, _ := r.from(0, 100)
	if len(list) != 10 || lost != 15 || next != 25 || list[0].text != "p" || list[9].text != "y" || list[9].id != 24 {
		t.Errorf("%d entries, lost %d, next %d: %+v", len(list), lost, next, list)
	}
	if pos := r.newest(3); pos != 22 {
		t.Errorf("the newest three start at %d", pos)
	}
	r.resize(2 * (overhead + 1))
	if list, _, _, _ = r.from(r.newest(0), 100); len(list) != 2 {
		t.Errorf("%d entries after shrinking, want 2", len(list))
	}
	r.add(entry{text: strings.Repeat("x", 1000)})
	if list, _, _, _ = r.from(r.newest(0), 100); len(list) != 1 {
		t.Errorf("%d entries, want the one that is over the budget alone", len(list))
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	name := func() string { return "noisy[7]" }
	passed := 0
	for range 3 * burst {
		if l.allow("7", now, name) {
			passed++
		}
	}
	if passed != burst {
		t.Errorf("%d lines passed at once, want %d", passed, burst)
	}
	if !l.allow("8", now, name) {
		t.Error("another sender must not suffer")
	}
	if got := l.report(now); len(got) != 1 || !strings.Contains(got[0], "dropped 2000 lines of noisy[7]") {
		t.Errorf("report: %q", got)
	}
	if l.allow("7", now, name); len(l.report(now.Add(time.Second))) != 0 {
		t.Error("a second report after one second")
	}
	now = now.Add(10 * time.Second)
	if got := l.report(now); len(got) != 1 {
		t.Errorf("report after ten seconds: %q", got)
	}
	if !l.allow("7", now, name) {
		t.Error("still dropped after ten seconds of silence")
	}
	for i := range 2 * maxSenders {
		l.allow(fmt.Sprint(i), now, name)
	}
	if len(l.senders) > maxSenders {
		t.Errorf("%d senders kept", len(l.senders))
	}
}

// fixture is a running logd with its bus.
type fixture struct {
	t                   *testing.T
	dir, socket, config string
	client              *bus.Client
}

func start(t *testing.T, systemConfig string) *fixture {
	t.Helper()
	dir := t.TempDir()
	x := &fixture{t: t, dir: dir, socket: filepath.Join(dir, "log"), config: filepath.Join(dir, "config")}
	if err := os.Mkdir(x.config, 0o755); err != nil {
		t.Fatal(err)
	}
	x.configure(systemConfig)
	busPath := filepath.Join(dir, "bus")
	broker, err := bus.Listen(busPath, bus.BrokerOptions{ACLDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	brokerDone := make(chan error, 1)
	go func() { brokerDone <- broker.Serve(ctx) }()
	var stderr bytes.Buffer
	logdDone := make(chan int, 1)
	env := map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "notify")}
	go func() {
		logdDone <- unit.Main(Run)(ctx, &unit.Call{
			Args:   []string{"logd", "--config-dir", x.config, "--bus", busPath, "--state-dir", dir, "--", "--socket", x.socket, "--kmsg", ""},
			Stdout: &stderr, Stderr: &stderr, Dir: dir, Getenv: func(n string) string { return env[n] },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-logdDone; code != 0 {
			t.Errorf("logd ended with %d: %s", code, &stderr)
		}
		<-brokerDone
		notify.Close()
	})
	b := make([]byte, 100)
	n, err := notify.Read(b)
	if err != nil || !strings.Contains(string(b[:n]), "READY=1") {
		t.Fatalf("notification %q, %v", b[:n], err)
	}
	x.client = bus.Connect(ctx, busPath, slog.New(slog.DiscardHandler))
	// The object follows once logd is on the bus.
	for {
		if _, err := x.client.Lookup(ctx, "log"); err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return x
}

func (x *fixture) configure(system string) {
	x.t.Helper()
	if err := os.WriteFile(filepath.Join(x.config, "system"), []byte("config system\n"+system), 0o644); err != nil {
		x.t.Fatal(err)
	}
}

func (x *fixture) send(lines ...string) {
	x.t.Helper()
	c, err := net.Dial("unixgram", x.socket)
	if err != nil {
		x.t.Fatal(err)
	}
	defer c.Close()
	for _, l := range lines {
		if _, err := c.Write([]byte(l)); err != nil {
			x.t.Fatal(err)
		}
	}
}

// lines reads the log until it has n entries.
func (x *fixture) lines(n int) []string {
	x.t.Helper()
	for {
		reply, err := x.client.Call(x.t.Context(), "log", "read", map[string]any{"stream": false})
		if err != nil {
			x.t.Fatal(err)
		}
		var out struct {
			Log []struct {
				Msg      string `json:"msg"`
				ID       int    `json:"id"`
				Priority int    `json:"priority"`
				Source   int    `json:"source"`
				Time     int64  `json:"time"`
				Boot     int64  `json:"boot"`
			} `json:"log"`
		}
		if err := reply.Decode(&out); err != nil {
			x.t.Fatal(err)
		}
		if len(out.Log) >= n {
			var s []string
			for i, e := range out.Log {
				if e.Time < 1e12 || e.Boot <= 0 || i > 0 && e.ID != out.Log[i-1].ID+1 {
					x.t.Errorf("entry %+v", e)
				}
				s = append(s, fmt.Sprintf("%d %d %s", e.Priority, e.Source, e.Msg))
			}
			return s
		}
	}
}

func TestObject(t *testing.T) {
	x := start(t, "")
	x.send("<30>one[1]: first", "<11>two: second")
	if got := strings.Join(x.lines(2), "|"); got != "30 1 one[1]: first|11 1 two: second" {
		t.Errorf("log: %s", got)
	}
	if _, err := x.client.Call(t.Context(), "log", "write", map[string]any{"event": "from the\nbus"}); err != nil {
		t.Fatal(err)
	}
	if got := x.lines(3)[2]; got != `14 2 from the\x0abus` {
		t.Errorf("written: %s", got)
	}
	if _, err := x.client.Call(t.Context(), "log", "write", nil); err != bus.StatusInvalidArgument {
		t.Errorf("write without an event: %v", err)
	}
	_, f, err := x.client.CallFD(t.Context(), "log", "read", map[string]any{"stream": true, "lines": 1})
	if err != nil || f == nil {
		t.Fatalf("stream: %v", err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	read := func() string {
		t.Helper()
		head, err := r.Peek(4)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, int(head[1])<<16|int(head[2])<<8|int(head[3]))
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if b := read(); !strings.Contains(b, `from the\x0abus`+"\x00") {
		t.Errorf("blob %q", b)
	}
	x.send("<30>later: third")
	if b := read(); !strings.Contains(b, "later: third\x00") || !strings.Contains(b, "\x00\x08priority\x00") {
		t.Errorf("blob %q", b)
	}
}

func TestOneshotStreamEnds(t *testing.T) {
	x := start(t, "")
	x.send("<30>a: 1", "<30>a: 2")
	x.lines(2)
	_, f, err := x.client.CallFD(t.Context(), "log", "read", map[string]any{"oneshot": true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil || strings.Count(b.String(), "\x00\x03msg\x00") != 2 {
		t.Errorf("stream %q, %v", &b, err)
	}
}

func TestRemoteTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	x := start(t, fmt.Sprintf("\toption log_ip 127.0.0.1\n\toption log_port %d\n\toption log_proto tcp\n\toption log_prefix edge\n\toption log_hostname r1\n", port))
	x.send("<30>a: 1")
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "<30>") || !strings.HasSuffix(line, " r1 edge: a: 1\n") {
		t.Errorf("line %q, %v", line, err)
	}
	c.Close() // the server goes away: logd comes back and goes on
	go func() {
		for i := range 50 {
			x.send(fmt.Sprintf("<30>b: %d", i))
		}
	}()
	c, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sc := bufio.NewScanner(c)
	for sc.Scan() {
		if strings.HasSuffix(sc.Text(), "b: 49") {
			return
		}
	}
	t.Errorf("the last line never came: %v", sc.Err())
}

func TestRemoteUDPAndFile(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	file := filepath.Join(t.TempDir(), "sub", "messages")
	x := start(t, fmt.Sprintf("\toption log_ip 127.0.0.1\n\toption log_port %d\n\toption log_file %s\n\toption log_size 1\n", pc.LocalAddr().(*net.UDPAddr).Port, file))
	x.send("<30>a: 1")
	b := make([]byte, 2048)
	n, _, err := pc.ReadFrom(b)
	if err != nil || !strings.HasSuffix(string(b[:n]), " a: 1") {
		t.Errorf("packet %q, %v", b[:n], err)
	}
	for i := range 40 {
		x.send(fmt.Sprintf("<30>filler: %d %s", i, strings.Repeat("x", 60)))
	}
	for {
		old, err1 := os.ReadFile(file + ".0")
		now, err2 := os.ReadFile(file)
		if err1 == nil && strings.Contains(string(old)+string(now), "filler: 39 ") {
			if len(old) < 1024 || !strings.Contains(string(old), "daemon.info ") {
				t.Errorf("old file: %q", old)
			}
			break
		}
		if err2 != nil && !os.IsNotExist(err2) {
			t.Fatal(err2)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the file was not turned over")
		}
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "system"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := loadSettings(dir); err != nil || s.ringKiB != 128 {
		t.Errorf("without a file: %+v, %v", s, err)
	}
	write("config system\n\toption log_size 64\n\toption log_buffer_size 32\n\toption log_ip fd00::1\n\toption log_proto tcp\n\toption hostname r9\n\toption conloglevel 4\n")
	want := settings{ringKiB: 32, fileKiB: 64, remote: "[fd00::1]:514", tcp: true, hostname: "r9", consoleTo: 4}
	if s, err := loadSettings(dir); err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	write("config system\n\toption log_size big\n\toption log_proto sctp\n\toption log_ip 10.0.0.1\n\toption log_remote 0\n")
	s, err := loadSettings(dir)
	if err == nil || !strings.Contains(err.Error(), "log_size") || !strings.Contains(err.Error(), "log_proto") || s.ringKiB != 128 || s.remote != "" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestReloadKeepsTheRing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "messages")
	x := start(t, "")
	x.send("<30>a: before")
	x.lines(1)
	x.configure("\toption log_file " + file + "\n")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	x.send("<30>a: after")
	for {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), "a: after") {
			if strings.Count(string(b), "a: before") != 1 {
				t.Errorf("file: %q", b)
			}
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the new file is not written")
		}
	}
	if got := x.lines(2); len(got) != 2 || !strings.HasSuffix(got[0], "a: before") {
		t.Errorf("log after the reload: %q", got)
	}
}
