package stage1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/rootdisk"
)

func TestCmdline(t *testing.T) {
	got := parseCmdline("failsafe=true root=PARTUUID=1a2b3c4d-02 rootwait console=tty1 console=ttyS0,115200n8 dyndbg=\"file x.c +p\" a=\tquiet\n")
	want := args{"failsafe": "true", "root": "PARTUUID=1a2b3c4d-02", "rootwait": "", "console": "ttyS0,115200n8", "dyndbg": "file x.c +p", "a": "", "quiet": ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for text, want := range map[string]bool{"failsafe": true, "failsafe=true": true, "failsafe=1": true, "failsafe=": true, "failsafe=0": false, "failsafe=false": false, "quiet": false, "": false, "nofailsafe": false} {
		if got := parseCmdline(text).failsafe(); got != want {
			t.Errorf("%q: failsafe %v, want %v", text, got, want)
		}
	}
	for text, want := range map[string]time.Duration{"w=2": 2 * time.Second, "w=0.25": 250 * time.Millisecond, "w=0": 0, "w": time.Second, "w=x": time.Second, "w=-1": time.Second, "w=1e9": time.Second, "w=NaN": time.Second, "": time.Second} {
		if got := parseCmdline(text).seconds("w", time.Second); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func FuzzCmdline(f *testing.F) {
	f.Add(`root=x "quoted = value" rootwait`)
	f.Fuzz(func(t *testing.T, text string) {
		a := parseCmdline(text)
		a.failsafe()
		if d := a.seconds("w", 0); d < 0 || d > time.Hour {
			t.Errorf("%q: %s", text, d)
		}
	})
}

func TestMachine(t *testing.T) {
	for _, tc := range []struct {
		name         string
		files        map[string]string
		board, model string
	}{
		{"QEMU", map[string]string{"sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_name": "Standard PC (i440FX + PIIX, 1996)\n"},
			"qemu-standard-pc-i440fx-piix-1996", "QEMU Standard PC (i440FX + PIIX, 1996)"},
		{"filler", map[string]string{
			"sys/class/dmi/id/sys_vendor": "To be filled by O.E.M.\n", "sys/class/dmi/id/board_vendor": "AAEON\n",
			"sys/class/dmi/id/product_name": "Default string\n", "sys/class/dmi/id/board_name": "UP-APL01_v2\n"},
			"aaeon-up-apl01_v2", "AAEON UP-APL01_v2"},
		{"no vendor", map[string]string{"sys/class/dmi/id/product_name": "apu4\n"}, "apu4", "apu4"},
		{"device tree", map[string]string{"proc/device-tree/model": "FriendlyElec NanoPi R4S\x00", "proc/device-tree/compatible": "friendlyarm,nanopi-r4s\x00rockchip,rk3399\x00"},
			"friendlyarm,nanopi-r4s", "FriendlyElec NanoPi R4S"},
		{"model alone", map[string]string{"proc/device-tree/model": "Some Board"}, "some-board", "Some Board"},
		{"nothing", nil, "generic", "Generic machine"},
		{"zeros", map[string]string{"sys/class/dmi/id/product_name": "00000000\n"}, "generic", "Generic machine"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tc.files {
				write(t, filepath.Join(dir, name), text)
			}
			board, model := machine(filepath.Join(dir, "sys"), filepath.Join(dir, "proc"))
			if board != tc.board || model != tc.model {
				t.Errorf("got %q, %q; want %q, %q", board, model, tc.board, tc.model)
			}
			info := filepath.Join(dir, "sysinfo")
			if err := writeSysinfo(info, board, model); err != nil {
				t.Fatal(err)
			}
			if got := readText(filepath.Join(info, "board_name")); got != tc.board {
				t.Errorf("board_name holds %q", got)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestNewest(t *testing.T) {
	dir := t.TempDir()
	when := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i, name := range []string{"a", "config/b", "config/c"} {
		write(t, filepath.Join(dir, name), "x")
		at := when.Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Join(dir, "config")} {
		old := when.AddDate(-1, 0, 0)
		if err := os.Chtimes(d, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if got := newest(dir); !got.Equal(when) {
		t.Errorf("got %s, want %s", got, when)
	}
	if got, err := fixClock(dir, when); err != nil || !got.IsZero() {
		t.Errorf("a right clock was set to %s, %v", got, err)
	}
}

// terminal is a pseudo terminal: the consoles over its slave, and the master.
func terminal(t *testing.T) (*consoles, *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a pseudo terminal: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	active := filepath.Join(t.TempDir(), "active")
	write(t, active, fmt.Sprintf("none pts/%d\n", n))
	c := openConsoles(active, "/dev")
	if len(c.all) != 1 {
		t.Fatalf("opened %d consoles, want the one that exists", len(c.all))
	}
	t.Cleanup(c.close)
	return c, master
}

func TestConsolePrint(t *testing.T) {
	c, master := terminal(t)
	c.print("weft: hello")
	line, err := bufio.NewReader(master).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "weft: hello" {
		t.Errorf("got %q, %v", line, err)
	}
	c.reopen(c.all[0].path)
	c.print("weft: again")
	if line, err = bufio.NewReader(master).ReadString('\n'); err != nil || strings.TrimSpace(line) != "weft: again" {
		t.Errorf("after reopening: got %q, %v", line, err)
	}
}

func TestFailsafeKey(t *testing.T) {
	for _, tc := range []struct {
		name, typed string
		want        bool
	}{
		{"f", "f\r", true},
		{"F", "F\n", true},
		{"after other keys", "x\n\nf\n", true},
		{"twice", "f\nf\n", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, master := terminal(t)
			l := c.listenForFailsafe(context.Background())
			if _, err := master.WriteString(tc.typed); err != nil {
				t.Fatal(err)
			}
			// The wait ends with the key, long before the hour.
			reason := l.decide(time.Hour)
			if !strings.HasPrefix(reason, "the f key on /dev/pts/") {
				t.Errorf("reason %q", reason)
			}
		})
	}
}

func TestFailsafeNoKey(t *testing.T) {
	c, master := terminal(t)
	l := c.listenForFailsafe(context.Background())
	if _, err := master.WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	if reason := l.decide(0); reason != "" {
		t.Errorf("reason %q", reason)
	}
	if l := (&consoles{}).listenForFailsafe(context.Background()); l.decide(0) != "" {
		t.Error("without a console somebody pressed a key")
	}
}

func TestWaitForHelp(t *testing.T) {
	one := func() chan struct{} { c := make(chan struct{}, 1); c <- struct{}{}; return c }
	pressed := make(chan key, 1)
	pressed <- key{&console{path: "/dev/ttyS0"}, ""}
	closed := make(chan key)
	close(closed)
	now := make(chan time.Time, 1)
	now <- time.Time{}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tc := range []struct {
		name    string
		ctx     context.Context
		keys    chan key
		changed chan struct{}
		reboot  chan time.Time
		want    string
	}{
		{"key", context.Background(), pressed, nil, nil, "/dev/ttyS0"},
		{"disk", context.Background(), nil, one(), nil, helpDisks},
		{"disk without consoles", context.Background(), closed, one(), nil, helpDisks},
		{"reboot", context.Background(), closed, nil, now, helpReboot},
		{"end", ended, nil, nil, nil, ""},
	} {
		if got := waitForHelp(tc.ctx, tc.keys, tc.changed, tc.reboot); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &blockEvents{changed: make(chan struct{}, 1), last: time.Now()}
		began := time.Now()
		go func() {
			for range 3 {
				time.Sleep(150 * time.Millisecond)
				e.note(true)
			}
		}()
		e.settle(t.Context(), 200*time.Millisecond, 2*time.Second)
		if got := time.Since(began); got != 650*time.Millisecond {
			t.Errorf("settled after %s, want 650ms: 200 ms after the last of three events", got)
		}
		began = time.Now()
		e.settle(t.Context(), 200*time.Millisecond, 2*time.Second)
		if got := time.Since(began); got != 0 {
			t.Errorf("waited %s although it was quiet", got)
		}
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					e.note(true)
				}
			}
		}()
		e.note(true)
		e.settle(t.Context(), 200*time.Millisecond, 2*time.Second)
		close(stop)
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("never quiet: waited %s, want the limit of 2 s", got)
		}
	})
}

func TestRemoveBelow(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	write(t, filepath.Join(outside, "stays"), "x")
	write(t, filepath.Join(dir, "init"), "x")
	write(t, filepath.Join(dir, "lib/modules/1/a.ko"), "x")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if err := removeBelow(int(d.Fd()), uint64(st.Dev)+1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "init")); err != nil {
		t.Error("something on another device was removed")
	}
	if err := removeBelow(int(d.Fd()), uint64(st.Dev)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "stays")); err != nil {
		t.Error("a link was followed")
	}
}

func TestFirstPort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board.json")
	for text, want := range map[string]string{
		`{"network":{"lan":{"ports":["lan1","lan2"]}}}`: "lan1",
		`{"network":{"lan":{"device":"eth3"}}}`:         "eth3",
		`{"network":{}}`:                                "eth0",
		`{`:                                             "eth0",
	} {
		write(t, path, text)
		if got := firstPort(path); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := firstPort(path + ".none"); got != "eth0" {
		t.Errorf("without a file: %s", got)
	}
}

func TestFailsafeNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // the thread, and its namespace, end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a network namespace of its own: %v", err)
	}
	if _, err := failsafeNetwork("eth0"); err == nil {
		t.Error("without a port: no error")
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}); err != nil {
		t.Skipf("needs veth: %v", err)
	}
	for range 2 {
		if port, err := failsafeNetwork("eth0"); err != nil || port != "eth0" {
			t.Fatalf("got %q, %v", port, err)
		}
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != failsafeAddress {
		t.Errorf("addresses %v, %v", addrs, err)
	}
}

func TestHint(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{&rootdisk.DuplicateError{}, "unplug all but one"},
		{fmt.Errorf("x: %w", &rootdisk.NotFoundError{}), "plug the disk in"},
		{errNoRoot, "add root="},
		{errors.New("other"), "other entry of the boot menu"},
	} {
		if got := hint(tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("%T: %q, want %q in it", tc.err, got, tc.want)
		}
	}
}

func TestGuard(t *testing.T) {
	b := &boot{con: &consoles{}}
	err := b.guard("a step", func() error { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "a step crashed") || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
}

func TestNotPID1(t *testing.T) {
	if err := Run(context.Background()); err == nil {
		t.Error("stage 1 ran in an ordinary process")
	}
}
