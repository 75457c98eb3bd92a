package ubusd

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

// watchdog bounds waits for what must happen; it decides nothing but failure.
const watchdog = 20 * time.Second

// service is a running ubusd whose supervisor is the test.
type service struct {
	socket string
	notify *net.UnixConn
	stop   context.CancelFunc
	code   chan int
	mu     sync.Mutex
	stderr bytes.Buffer
}

func (s *service) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.Write(b)
}

func (s *service) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.String()
}

func start(t *testing.T, dir string, env map[string]string, args ...string) *service {
	t.Helper()
	s := &service{socket: filepath.Join(dir, "bus/u.sock"), code: make(chan int, 1)}
	var err error
	notify := filepath.Join(t.TempDir(), "notify")
	if s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.notify.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		s.code <- unit.Main(Run)(ctx, &unit.Call{
			Args: append([]string{"ubusd", "--bus", s.socket}, args...), Stdout: s, Stderr: s, Dir: dir,
			Getenv: func(k string) string {
				if k == "NOTIFY_SOCKET" {
					return notify
				}
				return env[k]
			},
		})
	}()
	t.Cleanup(cancel)
	return s
}

// await reads notifications until one holds want.
func (s *service) await(t *testing.T, want string) {
	t.Helper()
	b := make([]byte, 4096)
	s.notify.SetReadDeadline(time.Now().Add(watchdog))
	for {
		n, err := s.notify.Read(b)
		if err != nil {
			t.Fatalf("waiting for %s: %v\n%s", want, err, s.log())
		}
		if strings.Contains(string(b[:n]), want) {
			return
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, map[string]string{"WATCHDOG_USEC": "100000"}, ".")
	s.await(t, "READY=1")
	// Ready means that it can be used.
	c, err := bus.Dial(t.Context(), s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.await(t, "WATCHDOG=1")
	seq := make(chan bus.Table, 10)
	if _, err := c.OnEvent("ubus.acl.sequence", func(_ string, d bus.Table) { seq <- d }); err != nil {
		t.Fatal(err)
	}
	// SIGHUP reads the ACL again and says so.
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.await(t, "RELOADING=1")
	select {
	case d := <-seq:
		if d.Get("sequence") != int32(2) {
			t.Errorf("sequence: %v", d)
		}
	case <-time.After(watchdog):
		t.Error("no event after SIGHUP")
	}
	// A second broker does not take the socket away.
	second := start(t, dir, nil)
	if code := <-second.code; code != 1 || !strings.Contains(second.log(), "another broker answers") {
		t.Errorf("second broker: exit %d: %s", code, second.log())
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("the first one suffers: %v", err)
	}
	s.stop()
	if code := <-s.code; code != 0 {
		t.Errorf("exit %d: %s", code, s.log())
	}
	if _, err := os.Stat(s.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays behind: %v", err)
	}
	wrong := start(t, dir, nil, "a", "b")
	if code := <-wrong.code; code != 1 {
		t.Errorf("too many arguments: exit %d", code)
	}
}
