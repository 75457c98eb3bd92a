// Package nstest runs a test in a network namespace of its own.
package nstest

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envInside holds the name of the test that runs inside.
const envInside = "WEFT_TEST_INSIDE"

// Inside runs the test that calls it once more, by this binary, as a child in a
// new network namespace and those that more names (CLONE_NEWUTS …), and reports
// whether this is the run inside; outside the test is over then. The child ends
// after timeout. Without root, or where no namespace can be made, the test is
// skipped.
func Inside(t *testing.T, timeout time.Duration, more uintptr) bool {
	t.Helper()
	if os.Getenv(envInside) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+timeout.String())
	cmd.Env = append(os.Environ(), envInside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | more, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && len(out) == 0:
		t.Skipf("a network namespace cannot be made here: %v", err)
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("skipped in the namespace:\n%s", out)
	case testing.Verbose():
		t.Logf("%s", out)
	}
	return false
}
