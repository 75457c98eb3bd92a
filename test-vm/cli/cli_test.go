package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/test-vm/lab"
)

// call runs a command line and returns its exit code and streams.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	none := t.TempDir()
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"boot", "--bin-dir", none}, 1, "run make image first"},
		{[]string{"bench", "--bin-dir", none}, 1, "run make image first"},
		{[]string{"boot", "extra"}, 2, `unexpected argument "extra"`},
		{[]string{"boot", "--nosuch"}, 2, "unknown flag: --nosuch"},
		{[]string{"nosuch"}, 2, `unknown command "nosuch"`},
		{[]string{"exec"}, 2, "exec needs a command"},
		{[]string{"bench", "--runs", "0"}, 2, "at least one"},
		{[]string{"boot", "--image", "a.img", "--disk-size", "much"}, 2, `--disk-size: size "much"`},
		{[]string{"boot", "--image", "a.img", "--forward", "80"}, 2, "expected HOST:GUEST"},
		{[]string{"boot", "--image", filepath.Join(none, "a.img")}, 1, "a.img"},
		{[]string{"boot", "--board", "x"}, 1, "target-subtarget"},
	} {
		code, out, errs := call(t, tt.args...)
		if code != tt.code || !strings.Contains(errs, tt.want) || out != "" {
			t.Errorf("%v: exit %d, %q, %q, want exit %d, %q", tt.args, code, out, errs, tt.code, tt.want)
		}
	}
	code, out, errs := call(t, "help", "boot")
	if code != 0 || !strings.Contains(out, "Ctrl-A X") || !strings.Contains(out, "--keep-disk") || errs != "" {
		t.Errorf("help: exit %d, %q, %q", code, out, errs)
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	image, kept := filepath.Join(dir, "a.img"), filepath.Join(dir, "kept.img")
	if err := os.WriteFile(image, []byte("image"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := options{image: image, diskSize: "1M", keepDisk: kept, memory: 128, cpus: 1, uefi: true, forwards: []string{"0:22", "8080:80"}}
	c, err := o.config(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(kept); err != nil || info.Size() != 1<<20 {
		t.Errorf("kept disk: %v, %v", info, err)
	}
	if d := c.Disks[0]; d.Image != kept || !d.InPlace || c.Firmware != lab.UEFI {
		t.Errorf("%+v", c)
	}
	want := []lab.Forward{{Host: 0, Guest: 22, Address: "192.168.1.1"}, {Host: 8080, Guest: 80, Address: "192.168.1.1"}}
	if got := c.NICs[0].Forwards; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("forwards %+v", got)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "512": 512, "4k": 4 << 10, "64M": 64 << 20, "1G": 1 << 30, "2T": 2 << 40} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "-1", "1X", "99999999T", "1.5G"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}

// TestReadKeys: what follows Ctrl-A is for us, all else for the guest.
func TestReadKeys(t *testing.T) {
	var console bytes.Buffer
	keys := make(chan byte, 9)
	readKeys(t.Context(), strings.NewReader("ls\r\x01\x01\x01ab\x01X\x01r"), &console, keys)
	close(keys)
	var got string
	for k := range keys {
		got += string(k)
	}
	if console.String() != "ls\r\x01\x01b" || got != "xr" {
		t.Errorf("to the guest %q, to us %q", console.String(), got)
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		list []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(tt.list); got != tt.want {
			t.Errorf("%v: %v", tt.list, got)
		}
	}
}

// TestBootPrints boots a boot sector that prints and powers off.
func TestBootPrints(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(image, lab.ProbeSector(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	var out, errs bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) {
		n, err := out.Write(p)
		if strings.Contains(out.String(), "weft probe") { // it may come in pieces
			cancel(fmt.Errorf("it has printed"))
		}
		return n, err
	})
	code := Main(ctx, []string{"boot", "--image", image, "--disk-size", "0"}, strings.NewReader(""), w, &errs)
	if code != 0 || !strings.HasPrefix(out.String(), "Leave with Ctrl-A X") || !strings.Contains(out.String(), "probe") {
		t.Errorf("exit %d, %q, %q", code, out.String(), errs.String())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
