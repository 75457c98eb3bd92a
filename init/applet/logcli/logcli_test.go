package logcli

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

// blob makes an entry as logd streams it.
func blob(e entry) []byte {
	b := []byte{0, 0, 0, 0}
	attr := func(kind byte, name string, data []byte) {
		at := len(b)
		b = append(b, 0, 0, 0, 0, 0, byte(len(name)))
		b = append(append(b, name...), 0)
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
		b = append(b, data...)
		binary.BigEndian.PutUint32(b[at:], 1<<31|uint32(kind)<<24|uint32(len(b)-at))
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
	}
	attr(3, "msg", append([]byte(e.msg), 0))
	attr(5, "id", []byte{0, 0, 0, 1})
	attr(5, "priority", binary.BigEndian.AppendUint32(nil, e.priority))
	attr(5, "source", binary.BigEndian.AppendUint32(nil, e.source))
	attr(4, "time", binary.BigEndian.AppendUint64(nil, uint64(e.time)))
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// fakeLog publishes an object log that streams the entries.
func fakeLog(t *testing.T, entries ...entry) (socket string, asked chan bus.Table) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "bus")
	broker, err := bus.Listen(socket, bus.BrokerOptions{ACLDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- broker.Serve(ctx) }()
	client, err := bus.Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	asked = make(chan bus.Table, 10)
	_, err = client.Publish(&bus.Object{Name: "log", Methods: []bus.Method{{Name: "read", Handle: func(_ context.Context, r *bus.Request) error {
		asked <- r.Args
		pr, pw, err := os.Pipe()
		if err != nil {
			return err
		}
		go func() {
			defer pw.Close()
			for _, e := range entries {
				pw.Write(blob(e))
			}
		}()
		return r.ReplyFD(pr)
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		cancel()
		<-done
	})
	return socket, asked
}

func call(t *testing.T, f unit.Func, stdin string, args ...string) (out, errOut string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = f(t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: t.TempDir(), Getenv: func(string) string { return "" }})
	return o.String(), e.String(), code
}

func TestLogread(t *testing.T) {
	when := time.Date(2026, 11, 24, 13, 0, 0, 42e6, time.Local)
	at := when.UnixMilli()
	entries := []entry{
		{msg: "[    0.000000] Linux", priority: 6, source: 0, time: at},
		{msg: "dnsmasq[1]: query", priority: 3<<3 | 6, source: 1, time: at},
		{msg: "dropbear[2]: login", priority: 10<<3 | 5, source: 1, time: at},
	}
	socket, asked := fakeLog(t, entries...)
	all := "Tue Nov 24 13:00:00 2026 kern.info kernel: [    0.000000] Linux\nTue Nov 24 13:00:00 2026 daemon.info dnsmasq[1]: query\nTue Nov 24 13:00:00 2026 authpriv.notice dropbear[2]: login\n"
	line := func(n int) string { return strings.SplitAfter(all, "\n")[n] }
	for _, c := range []struct {
		args, want, asks string
	}{
		{"", all, `{"oneshot":true,"stream":true}`},
		{"-l 2", all, `{"lines":2,"oneshot":true,"stream":true}`},
		{`-e dns\|login`, line(1) + line(2), ""},
		{"-z 3", line(1), ""},
		{"-Z 3 -Z 0", line(2), ""},
		{"-t -z 3", fmt.Sprintf("Tue Nov 24 13:00:00 2026 [%d.042] daemon.info dnsmasq[1]: query\n", when.Unix()), ""},
	} {
		out, errOut, code := call(t, Logread, "", append([]string{"logread", "-s", socket}, strings.Fields(c.args)...)...)
		if out != c.want || errOut != "" || code != 0 {
			t.Errorf("logread %s: code %d, stderr %q, stdout:\n%s\nwant:\n%s", c.args, code, errOut, out, c.want)
		}
		if got, _ := (<-asked).MarshalJSON(); c.asks != "" && string(got) != c.asks {
			t.Errorf("logread %s asks for %s, want %s", c.args, got, c.asks)
		}
	}

	file := filepath.Join(t.TempDir(), "f")
	if _, errOut, code := call(t, Logread, "", "logread", "-s", socket, "-F", file, "-S", "1", "-p", file+".pid"); code != 0 {
		t.Fatalf("-F: %d %s", code, errOut)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != all {
		t.Errorf("file %q, %v", b, err)
	}

	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	if _, errOut, code := call(t, Logread, "", "logread", "-s", socket, "-r", "127.0.0.1", port, "-u", "-h", "gw", "-P", "edge", "-z", "0"); code != 0 {
		t.Fatalf("-r: %d %s", code, errOut)
	}
	b := make([]byte, 500)
	n, _, err := pc.ReadFrom(b)
	if want := "<6>Nov 24 13:00:00 gw edge: kernel: [    0.000000] Linux"; err != nil || string(b[:n]) != want {
		t.Errorf("packet %q, %v; want %q", b[:n], err, want)
	}
}

func TestLogreadFaults(t *testing.T) {
	if _, errOut, code := call(t, Logread, "", "logread", "-s", "/nonexistent/bus"); code != 1 || !strings.Contains(errOut, "connect to the bus") {
		t.Errorf("no bus: %d %q", code, errOut)
	}
	for _, args := range []string{"-q", "-l x", "-e [", "-z 99", "-r host", "word"} {
		if _, errOut, code := call(t, Logread, "", append([]string{"logread"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(errOut, "Usage: logread") {
			t.Errorf("%s: %d %q", args, code, errOut)
		}
	}
}

func TestLogger(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	read := func() string {
		b := make([]byte, 500)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if _, errOut, code := call(t, Logger, "", "logger", "-u", socket, "-s", "-t", "me", "-p", "daemon.warn", "a", "b"); code != 0 || errOut != "me: a b\n" {
		t.Errorf("%d %q", code, errOut)
	}
	if got := read(); !strings.HasPrefix(got, "<28>") || !strings.HasSuffix(got, " me: a b") {
		t.Errorf("sent %q", got)
	}
	if _, errOut, code := call(t, Logger, "l1\n\nl2", "logger", "-u", socket); code != 0 {
		t.Errorf("%d %q", code, errOut)
	}
	if a, b := read(), read(); !strings.HasSuffix(a, " root: l1") || !strings.HasPrefix(b, "<13>") || !strings.HasSuffix(b, " root: l2") {
		t.Errorf("sent %q %q", a, b)
	}
	for _, p := range []string{"x.err", "daemon.x", "192", "daemon."} {
		if _, ok := parsePriority(p); ok {
			t.Errorf("priority %q was taken", p)
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add(blob(entry{msg: "tag: text", priority: 30, source: 1, time: 1e12}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			if _, err := readEntry(r); err != nil {
				return
			}
		}
	})
}

func TestEntryRefused(t *testing.T) {
	good := blob(entry{msg: "x", time: 5})
	if e, err := readEntry(bytes.NewReader(good)); err != nil || e.msg != "x" || e.time != 5 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := readEntry(bytes.NewReader(good[:len(good)-1])); err == nil || errors.Is(err, context.Canceled) {
		t.Error("a cut entry was taken")
	}
	if _, err := readEntry(bytes.NewReader([]byte{0, 0, 0, 2})); err == nil {
		t.Error("an entry shorter than its head was taken")
	}
}
