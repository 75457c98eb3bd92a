package netns

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func space(t *testing.T, name string) *Space {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s, err := New(name)
	if errors.Is(err, ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func names(t *testing.T, s *Space) []string {
	t.Helper()
	var out []string
	if err := s.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			out = append(out, i.Name)
			if i.Name == "lo" && i.Flags&net.FlagUp == 0 {
				t.Error("the loopback device is down")
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestApart: each space has its own devices, settings and processes.
func TestApart(t *testing.T) {
	a, b := space(t, "a"), space(t, "b")
	out, err := exec.Command("readlink", a.Path()).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "net:[") {
		t.Errorf("path of the namespace: %q %v", out, err)
	}
	if got := names(t, a); len(got) != 1 || got[0] != "lo" {
		t.Errorf("devices of a new namespace: %v", got)
	}
	if err := a.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[*Space]string{a: "1\n", b: "0\n"} {
		var out bytes.Buffer
		cmd := exec.Command("cat", "/proc/sys/net/ipv4/ip_forward")
		cmd.Stdout = &out
		p, err := s.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(t.Context()); err != nil || out.String() != want {
			t.Errorf("ip_forward in %s: %q, %v; want %q", s.Name, out.String(), err, want)
		}
	}
	if err := a.Sysctl("net.ipv4.no_such_thing", "1"); err == nil || !strings.Contains(err.Error(), "no_such_thing") {
		t.Errorf("a setting that does not exist: %v", err)
	}
}

// TestKill: processes go with their children, also those that do not want to.
func TestKill(t *testing.T) {
	s := space(t, "k")
	start := func(script string) *Process {
		t.Helper()
		p, err := s.Start(exec.Command("sh", "-c", script))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p, stubborn := start("sleep 1000 & sleep 1000"), start("trap '' TERM; while :; do sleep 1000; done")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that ended: %v", err)
	}
	s.Kill()
	for _, p := range []*Process{p, stubborn} {
		select {
		case <-p.Done():
		default:
			t.Errorf("process %d lives", p.Pid())
		}
		if err := syscall.Kill(-p.Pid(), 0); !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.EPERM) {
			// The children are reaped by PID 1, in its own time: wait for them.
			deadline := time.Now().Add(10 * time.Second)
			for time.Now().Before(deadline) && syscall.Kill(-p.Pid(), 0) == nil {
				if !running(p.Pid()) {
					break
				}
			}
			if running(p.Pid()) {
				t.Errorf("children of %d live", p.Pid())
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Do(func() error { return nil }); err == nil {
		t.Error("a closed namespace does things")
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// running tells whether a process of the group is more than a zombie.
func running(group int) bool {
	out, err := exec.Command("ps", "-eo", "pgid=,stat=").Output()
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == strconv.Itoa(group) && !strings.HasPrefix(f[1], "Z") {
			return true
		}
	}
	return false
}
