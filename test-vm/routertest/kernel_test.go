package routertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/test-vm/lab"
)

// Bounds of waits: several times what emulation on two busy processors takes.
const (
	bootBound = 150 * time.Second
	testBound = 120 * time.Second
)

// inGuest are the tests of services/network that the guest runs.
var inGuest = []string{"TestVLANs", "TestDeviceOptions", "TestWireGuard"}

// bound is a context of at most d, times WEFT_TIMEOUT_FACTOR.
func bound(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Timeout(d))
	t.Cleanup(cancel)
	return ctx
}

// images are those of the router role: of WEFT_BIN_DIR, or of make lab-images.
func images(t *testing.T) *lab.Images {
	t.Helper()
	dir := os.Getenv("WEFT_BIN_DIR")
	if dir == "" {
		root, err := lab.Root()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(root, "bin", "lab", "router")
	}
	i, err := lab.FindImages(dir, "x86-64")
	if errors.Is(err, lab.ErrNoImage) {
		t.Skipf("%v: run make lab-images first", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// program builds the tests of services/network for the guest and returns a disk
// that holds them, and their size.
func program(t *testing.T, dir string) (disk string, size int64) {
	t.Helper()
	path := filepath.Join(dir, "network.test")
	cmd := exec.CommandContext(bound(t, 10*time.Minute), "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", path, "weft/services/network")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v: %s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	disk = filepath.Join(dir, "program.img")
	if err := lab.CopyDisk(t.Context(), disk, path, (info.Size()+511)/512*512); err != nil {
		t.Fatal(err)
	}
	return disk, info.Size()
}

// TestKernel runs tests of the network service on the kernel of the image.
func TestKernel(t *testing.T) {
	dir := t.TempDir()
	image, err := images(t).Path("combined")
	if err != nil {
		t.Fatal(err)
	}
	system := filepath.Join(dir, "system.img")
	if err := lab.CopyDisk(t.Context(), system, image, 0); err != nil {
		t.Fatal(err)
	}
	disk, size := program(t, dir)
	m, err := lab.New(bound(t, time.Minute), lab.Config{
		Name: "router", Memory: 384, OneThread: true, Consoles: []string{"hvc0"},
		Disks: []lab.Disk{{Image: system}, {Image: disk, Serial: "program", ReadOnly: true}},
		NICs:  []lab.NIC{{Net: "192.168.1.0/24", Isolated: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last lines of the console:\n%s", m.Serial().Tail(30))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := m.StartTo(bound(t, bootBound), lab.StartLine); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitReady(bound(t, bootBound)); err != nil {
		t.Fatal(err)
	}
	copied, err := m.Run(bound(t, testBound), fmt.Sprintf("head -c %d /dev/vdb >/tmp/network.test && chmod 755 /tmp/network.test", size))
	if err != nil || copied.Code != 0 {
		t.Fatalf("copy the tests into the guest: %v: %s", err, copied.Output)
	}
	for _, name := range inGuest {
		t.Run(name, func(t *testing.T) {
			r, err := m.Run(bound(t, testBound), "cd /tmp && ./network.test -test.v -test.run '^"+name+"$'")
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case r.Code != 0:
				t.Errorf("in the guest: exit %d\n%s", r.Code, r.Output)
			case strings.Contains(r.Output, "has no wireguard devices"):
				t.Skip("the image has no WireGuard: make lab-images with the package wireguard")
			case !strings.Contains(r.Output, "--- PASS: "+name):
				t.Errorf("in the guest it did not run:\n%s", r.Output)
			}
		})
	}
}
