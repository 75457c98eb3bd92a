package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type fake struct{ err error }

func (f *fake) Report() Report {
	return Report{State: "running", Peers: []Peer{{Name: "exit"}}, Paths: []Path{{Name: "wan"}}}
}
func (f *fake) Flows() []Flow { return []Flow{{ID: 7}} }
func (f *fake) Reload() error { return f.err }

// serve runs the socket and returns how to ask it.
func serve(t *testing.T, src Source, events *Events) (ask func(request string) *bufio.Scanner) {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); Serve(ctx, l, src, events, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() { cancel(); <-done })
	return func(request string) *bufio.Scanner {
		t.Helper()
		c, err := net.Dial("unix", filepath.Join(dir, Socket))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintln(c, request)
		return bufio.NewScanner(c)
	}
}

func TestSocket(t *testing.T) {
	src := &fake{}
	ask := serve(t, src, &Events{})
	for request, want := range map[string]string{
		`{"method":"status"}`: `"state":"running"`,
		`{"method":"paths"}`:  `{"paths":[{"name":"wan"`,
		`{"method":"peers"}`:  `{"peers":[{"name":"exit"`,
		`{"method":"flows"}`:  `{"flows":[{"id":7`,
		`{"method":"reload"}`: `{"ok":true}`,
		`{"method":"x"}`:      `{"error":"there is no method x`,
		`nonsense`:            `{"error":"the request is no JSON`,
	} {
		s := ask(request)
		if !s.Scan() || !strings.Contains(s.Text(), want) {
			t.Errorf("%s: %q, want %q in it", request, s.Text(), want)
		}
		if s.Scan() {
			t.Errorf("%s: a second line %q", request, s.Text())
		}
	}
	src.err = errors.New("two faults")
	if s := ask(`{"method":"reload"}`); !s.Scan() || s.Text() != `{"error":"two faults"}` {
		t.Errorf("failed reload: %q", s.Text())
	}
}

func TestEvents(t *testing.T) {
	var events Events
	for i := range kept + 5 {
		events.Add(Event{Kind: "path.up", Name: fmt.Sprint(i)})
	}
	ask := serve(t, &fake{}, &events)
	s := ask(`{"method":"events"}`)
	n := 0
	var last Event
	for s.Scan() {
		if err := json.Unmarshal(s.Bytes(), &last); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != kept || last.Seq != kept+5 {
		t.Errorf("%d events, the last is number %d; want %d and %d", n, last.Seq, kept, kept+5)
	}
	s = ask(fmt.Sprintf(`{"method":"events","follow":true,"after":%d}`, last.Seq-1))
	if !s.Scan() || !strings.Contains(s.Text(), fmt.Sprintf(`"seq":%d`, last.Seq)) {
		t.Fatalf("follow begins with %q", s.Text())
	}
	events.Add(Event{Kind: "peer.down", Name: "exit"})
	if !s.Scan() || !strings.Contains(s.Text(), `"event":"peer.down"`) {
		t.Errorf("follow goes on with %q", s.Text())
	}
}

func TestListenTwice(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("a second service in the same folder: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // killed: the file stays
	l, err = Listen(dir)
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	l.Close()
}
