package system

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// TestMain lets the test binary be an applet, so that it can be run on a terminal
// or in namespaces.
func TestMain(m *testing.M) {
	// With -race each process that is started here would wait a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	if f := map[string]unit.Func{"less": Less, "more": Less, "stty": Stty, "reset": Reset, "login": Login,
		"passwd": func(ctx context.Context, c *unit.Call) int {
			return passwd(ctx, c, accounts(os.Getenv("ETC")), 0, testDay)
		}}[os.Getenv("BE")]; f != nil {
		c := unit.OSCall()
		c.Args[0] = os.Getenv("BE")
		os.Exit(f(context.Background(), c))
	}
	os.Exit(m.Run())
}

type result struct {
	out, err string
	code     int
}

func call(t *testing.T, f unit.Func, stdin string, args ...string) result {
	t.Helper()
	var o, e bytes.Buffer
	code := f(t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: "/", Getenv: func(string) string { return "" }})
	return result{o.String(), e.String(), code}
}

// ok runs an applet that must succeed and say nothing on stderr.
func ok(t *testing.T, f unit.Func, args ...string) string {
	t.Helper()
	r := call(t, f, "", args...)
	if r.code != 0 || r.err != "" {
		t.Fatalf("%s: exit %d, %q", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// fails runs an applet that must fail with the code and say this.
func fails(t *testing.T, code int, has string, f unit.Func, args ...string) {
	t.Helper()
	if r := call(t, f, "", args...); r.code != code || !strings.Contains(r.err, has) {
		t.Errorf("%s: exit %d, %q, want %d and %q", strings.Join(args, " "), r.code, r.err, code, has)
	}
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// be is a command that runs this binary as an applet.
func be(t *testing.T, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(self(t), args...)
	cmd.Env = append(os.Environ(), "BE="+name, "TERM=vt100")
	return cmd
}

// namespace runs the rest of the calling test in mount and host name namespaces
// of its own: false means it was done there.
func namespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("IN_NAMESPACE") == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	cmd := exec.Command(self(t), "-test.run=^"+t.Name()+"$", "-test.v")
	// Folders on which something stays mounted there can be removed here.
	cmd.Env = append(os.Environ(), "IN_NAMESPACE="+t.Name(), "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		if strings.Contains(err.Error(), "operation not permitted") {
			t.Skipf("no namespaces here: %v", err)
		}
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("in the namespace:\n%s", out)
	}
	return false
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWrongCalls(t *testing.T) {
	for _, tc := range []struct {
		f    unit.Func
		line string
	}{
		{Mount, "mount -Z"}, {Mount, "mount a b c"}, {Mount, "mount -a x"}, {Mount, "mount -o ro"}, {Umount, "umount"}, {Umount, "umount -x"}, {Umount, "umount -a x"},
		{Blkid, "blkid -x"}, {Block, "block"}, {Block, "block mount"}, {Swapon, "swapon"}, {Swapon, "swapon -p x y"}, {Swapon, "swapon -p 99999 y"}, {Swapoff, "swapoff"},
		{Dmesg, "dmesg x"}, {Dmesg, "dmesg -n 9"}, {Dmesg, "dmesg -n x"}, {Dmesg, "dmesg -q"}, {Lsmod, "lsmod x"}, {Insmod, "insmod"}, {Insmod, "insmod -f x"}, {Rmmod, "rmmod"},
		{Modprobe, "modprobe"}, {Modprobe, "modprobe -z x"}, {Uname, "uname -x"}, {Uname, "uname x"}, {Arch, "arch x"}, {Hostname, "hostname -x"}, {Hostname, "hostname a b"},
		{Sysctl, "sysctl"}, {Sysctl, "sysctl -z"}, {Sysctl, "sysctl -a x"}, {Sysctl, "sysctl -w key"}, {Login, "login a b"}, {Passwd, "passwd a b"}, {Passwd, "passwd -x"},
		{Passwd, "passwd -d -l"}, {ID, "id -x"}, {ID, "id -n"}, {ID, "id -u -g"}, {ID, "id a b"}, {Stty, "stty -a -g"}, {Stty, "stty -a raw"},
		{Clear, "clear -x"}, {Reset, "reset -x"}, {Less, "less -Z"},
	} {
		args := strings.Fields(tc.line)
		r := call(t, tc.f, "", args...)
		if r.code != 2 || r.out != "" || !strings.Contains(r.err, "Usage: "+args[0]) {
			t.Errorf("%s: %+v", tc.line, r)
		}
	}
}
