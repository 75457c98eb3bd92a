// Package nstest makes network namespaces for tests and runs commands and
// functions in them. What the networks look like is up to the beds that stand
// on it.
package nstest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Set is some namespaces, each with a short name.
type Set struct {
	t      testing.TB
	prefix string
}

var count atomic.Int32

// New makes the namespaces, with lo up and IPv6 addresses usable at once; they
// are taken away when the test ends. Without root, or without one of the tools
// beside ip, the test is skipped.
func New(t testing.TB, names []string, tools ...string) *Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	for _, tool := range append([]string{"ip"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the tool %s for network namespaces", tool)
		}
	}
	s := &Set{t: t, prefix: fmt.Sprintf("weft%d-%d-", os.Getpid(), count.Add(1))}
	t.Cleanup(func() {
		for _, n := range names {
			_ = exec.Command("ip", "netns", "del", s.prefix+n).Run()
		}
	})
	for _, n := range names {
		if out, err := exec.Command("ip", "netns", "add", s.prefix+n).CombinedOutput(); err != nil {
			t.Skipf("network namespaces cannot be made here: %v: %s", err, out)
		}
		s.Sysctl(n, "net/ipv6/conf/default/accept_dad", "0")
		s.Sysctl(n, "net/ipv6/conf/all/accept_dad", "0")
		s.Run(n, "ip", "link", "set", "lo", "up")
	}
	return s
}

// Link joins two namespaces by a pair of veth devices.
func (s *Set) Link(ns1, dev1, ns2, dev2 string) {
	s.t.Helper()
	args := []string{"link", "add", dev1, "netns", s.prefix + ns1, "type", "veth", "peer", "name", dev2, "netns", s.prefix + ns2}
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Command prepares a command in a namespace.
func (s *Set) Command(ns string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", s.prefix + ns}, args...)...)
}

// Run runs a command in a namespace and returns what it prints; the test ends if
// it fails.
func (s *Set) Run(ns string, args ...string) string {
	s.t.Helper()
	cmd := s.Command(ns, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%s: %s: %v\n%s%s", ns, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String()
}

// Try runs a command in a namespace and forgets how it ends.
func (s *Set) Try(ns string, args ...string) { _ = s.Command(ns, args...).Run() }

// Sysctl writes a setting below /proc/sys.
func (s *Set) Sysctl(ns, name, value string) {
	s.t.Helper()
	if err := s.In(ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }); err != nil {
		s.t.Fatalf("%s: set %s to %s: %v", ns, name, value, err)
	}
}

// In calls f on a thread that is in a namespace. Sockets that f opens stay there.
func (s *Set) In(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := s.Enter(ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Enter moves the calling thread, which the caller has locked, into a namespace.
func (s *Set) Enter(ns string) error {
	file, err := os.Open("/run/netns/" + s.prefix + ns)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering %s: %w", ns, err)
	}
	return nil
}
