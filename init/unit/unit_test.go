package unit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// call returns a call with the given environment and its standard error.
func call(env map[string]string, args ...string) (*Call, *bytes.Buffer) {
	var errw bytes.Buffer
	return &Call{
		Args:   args,
		Stdin:  strings.NewReader(""),
		Stdout: io.Discard,
		Stderr: &errw,
		Dir:    "/work/here",
		Getenv: func(k string) string { return env[k] },
	}, &errw
}

// supervisor listens as PID 1 does and returns the address and what arrives.
func supervisor(t *testing.T) (string, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func() string {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no notification: %v", err)
		}
		return string(buf[:n])
	}
}

func TestPath(t *testing.T) {
	c, _ := call(nil, "x")
	for in, want := range map[string]string{
		"a":          "/work/here/a",
		"../a/./b":   "/work/a/b",
		"/etc//conf": "/etc/conf",
		"":           "/work/here",
	} {
		if got := c.Path(in); got != want {
			t.Errorf("Path(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestMainFlags(t *testing.T) {
	c, errw := call(nil, "/usr/libexec/weft/mqttd", "--config-dir", "conf", "--bus=/b.sock", "rest", "-x")
	var got *Env
	code := Main(func(_ context.Context, env *Env) error { got = env; return nil })(t.Context(), c)
	if code != 0 {
		t.Fatalf("exit %d, stderr %q", code, errw)
	}
	if got.Name != "mqttd" || got.ConfigDir != "/work/here/conf" || got.BusPath != "/b.sock" || got.StateDir != "/var/run/mqttd" {
		t.Errorf("env = %+v", got)
	}
	if strings.Join(got.Args, " ") != "rest -x" {
		t.Errorf("Args = %q", got.Args)
	}
}

func TestMainWrongFlag(t *testing.T) {
	c, errw := call(nil, "mqttd", "--nonsense")
	code := Main(func(context.Context, *Env) error { t.Error("run was called"); return nil })(t.Context(), c)
	if code != 2 || !strings.Contains(errw.String(), "nonsense") || !strings.Contains(errw.String(), "--config-dir") && !strings.Contains(errw.String(), "-config-dir") {
		t.Errorf("exit %d, stderr %q; want 2, the flag's name and the usage", code, errw)
	}
}

func TestMainError(t *testing.T) {
	c, errw := call(nil, "mqttd")
	code := Main(func(context.Context, *Env) error { return errors.New("no such broker") })(t.Context(), c)
	if code != 1 || errw.String() != "ERROR stopped by an error error=\"no such broker\"\n" {
		t.Errorf("exit %d, stderr %q", code, errw)
	}
}

func TestMainCancelledIsNoError(t *testing.T) {
	c, errw := call(nil, "mqttd")
	ctx, cancel := context.WithCancel(t.Context())
	code := Main(func(ctx context.Context, _ *Env) error { cancel(); <-ctx.Done(); return ctx.Err() })(ctx, c)
	if code != 0 || errw.Len() != 0 {
		t.Errorf("exit %d, stderr %q", code, errw)
	}
}

func TestSignals(t *testing.T) {
	c, errw := call(nil, "mqttd")
	code := Main(func(ctx context.Context, env *Env) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			return err
		}
		<-env.Reload()
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})(t.Context(), c)
	if code != 0 {
		t.Errorf("exit %d, stderr %q", code, errw)
	}
}

func TestNotifications(t *testing.T) {
	addr, next := supervisor(t)
	c, errw := call(map[string]string{"NOTIFY_SOCKET": addr}, "mqttd")
	code := Main(func(_ context.Context, env *Env) error {
		env.Status("two\nlines")
		if got := next(); got != `STATUS=two\nlines` {
			t.Errorf("Status sent %q", got)
		}
		env.Reloading()
		if got := next(); got != "RELOADING=1" {
			t.Errorf("Reloading sent %q", got)
		}
		env.Ready()
		if got := next(); got != "READY=1" {
			t.Errorf("Ready sent %q", got)
		}
		env.Health(func(context.Context) error { t.Error("check called though nobody asked"); return nil })
		return nil
	})(t.Context(), c)
	if code != 0 {
		t.Errorf("exit %d, stderr %q", code, errw)
	}
}

func TestNotifyAbstract(t *testing.T) {
	name := "@weft-unit-test-" + filepath.Base(t.TempDir()) + "-" + time.Now().Format("150405.000000000")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := Notify(name, "READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
}

func TestNotifyNobodyListens(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "absent")
	err := Notify(addr, "READY=1")
	if !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), addr) {
		t.Errorf("err = %v, want ENOENT with the address", err)
	}
	if err := Notify("", "READY=1"); err != nil {
		t.Errorf("without a supervisor: %v", err)
	}
}

func TestHealth(t *testing.T) {
	addr, next := supervisor(t)
	c, errw := call(map[string]string{"NOTIFY_SOCKET": addr, "WATCHDOG_USEC": "2000"}, "mqttd")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := Main(func(ctx context.Context, env *Env) error {
		n := 0
		env.Health(func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("check has no deadline")
			}
			if n++; n == 2 {
				return errors.New("queue full")
			}
			return nil
		})
		for _, want := range []string{"WATCHDOG=1", "STATUS=unhealthy: queue full", "STATUS=\nWATCHDOG=1", "WATCHDOG=1"} {
			if got := next(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		cancel()
		return nil
	})(ctx, c)
	if code != 0 || !strings.Contains(errw.String(), `<4>health check failed error="queue full"`) {
		t.Errorf("exit %d, stderr %q", code, errw)
	}
}

func TestLog(t *testing.T) {
	for _, tc := range []struct {
		name   string
		prefix bool
		log    func(*slog.Logger)
		want   string
	}{
		{"info", true, func(l *slog.Logger) { l.Info("link up", "name", "eth0", "mtu", 1500) }, "<6>link up name=eth0 mtu=1500\n"},
		{"words", false, func(l *slog.Logger) { l.Warn("link down", "why", "no carrier") }, "WARN link down why=\"no carrier\"\n"},
		{"error", true, func(l *slog.Logger) { l.Error("x", "e", io.EOF) }, "<3>x e=EOF\n"},
		{"debug is off", true, func(l *slog.Logger) { l.Debug("x") }, ""},
		{"group", true, func(l *slog.Logger) { l.WithGroup("a").With("b", 1).Info("x", slog.Group("c", "d", "")) }, "<6>x a.b=1 a.c.d=\"\"\n"},
		{"no line breaks", true, func(l *slog.Logger) { l.Info("a\nb", "k", "c\nd") }, "<6>a\\nb k=\"c\\nd\"\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b bytes.Buffer
			tc.log(NewLog(&b, tc.prefix, slog.LevelInfo))
			if b.String() != tc.want {
				t.Errorf("got %q, want %q", b.String(), tc.want)
			}
		})
	}
}
