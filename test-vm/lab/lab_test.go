package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/test-vm/lab/bare"
)

// bareSystem is built once for all tests of the package.
var bareSystem = sync.OnceValues(func() (bare.System, error) {
	ctx := context.Background()
	tree := os.Getenv("WEFT_TEST_KERNEL")
	if tree == "" {
		var err error
		if tree, err = PinnedKernel(ctx, "amd64"); err != nil {
			return bare.System{}, err
		}
	}
	kernel, modules, err := bare.FindKernel(tree)
	if err != nil {
		return bare.System{}, err
	}
	return bare.Build(ctx, tempDir, "amd64", kernel, modules)
})

var tempDir string // lives as long as the test program

func TestMain(m *testing.M) {
	var err error
	tempDir, err = os.MkdirTemp("", "weft-lab-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var code int
	if os.Getenv("LAB_TEST_ABANDON") == "" {
		code = m.Run()
	} else {
		code = abandon()
	}
	os.RemoveAll(tempDir)
	os.Exit(code)
}

// abandon starts a machine, tells QEMU's number, waits for its stdin to end and ends without closing the machine.
func abandon() int {
	ctx := context.Background()
	m, err := New(ctx, Config{Dir: tempDir, Disks: []Disk{{Size: 1 << 20}}})
	if err == nil {
		err = m.Start(ctx)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(m.run.cmd.Process.Pid)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// TestNothingSurvives: QEMU dies with the program that started it, however that ends.
func TestNothingSurvives(t *testing.T) {
	self := exec.Command(os.Args[0])
	self.Env = append(os.Environ(), "LAB_TEST_ABANDON=1")
	stdin, err := self.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := self.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("no number of QEMU but %q", line)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ready := func(ms int) bool { // the process has ended
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
			if !errors.Is(err, unix.EINTR) {
				return n == 1
			}
		}
	}
	if ready(0) {
		t.Fatal("QEMU does not run")
	}
	stdin.Close()
	if err := self.Wait(); err != nil {
		t.Fatal(err)
	}
	if !ready(30000) {
		t.Errorf("QEMU %d has outlived the program that started it", pid)
	}
}

// boot starts the bare system and waits until it has printed.
func boot(t *testing.T, cfg Config) *Machine {
	t.Helper()
	sys, err := bareSystem()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Kernel, cfg.Initrd, cfg.Cmdline = sys.Kernel, sys.Initrd, "console=ttyS0 panic=-1 quiet "+cfg.Cmdline
	m := start(t, cfg)
	if _, err := m.WaitReady(bound(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	return m
}

func start(t *testing.T, cfg Config) *Machine {
	t.Helper()
	cfg.Name = strings.ReplaceAll(t.Name(), "/", "-")
	m, err := New(bound(t, 60*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.Start(bound(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	return m
}

func bound(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout(d))
	t.Cleanup(cancel)
	return ctx
}

func TestShell(t *testing.T) {
	m := boot(t, Config{Consoles: []string{"hvc0"}})
	all := make([]byte, 1024)
	for i := range all {
		all[i] = byte(i)
	}
	for _, console := range []string{"hvc0", "ttyS0"} {
		t.Run(console, func(t *testing.T) {
			sh := m.ShellOn(console)
			ctx := bound(t, 120*time.Second)
			for _, tt := range []struct {
				cmd  string
				code int
				out  string
			}{
				{"echo hello", 0, "hello\n"},
				{"printf 'no newline'", 0, "no newline"},
				{"exit 7", 7, ""},
				{"nosuch", 127, "nosuch: not found\n"},
				{"echo one\necho 'two\nthree'", 0, "one\ntwo\nthree\n"},
				{`echo "it's"; echo err >&2`, 0, "it's\nerr\n"},
				{"(", 1, ""}, // a syntax error must not swallow the end marker
				{`printf '\r\n\t\033[1m\000\377'`, 0, "\r\n\t\x1b[1m\x00\xff"},
				{"x=1; echo $x", 0, "1\n"},
				{"echo [$x]", 0, "[]\n"}, // each command is on its own
				{"echo " + strings.Repeat("long ", 1500) + "end", 0, strings.Repeat("long ", 1500) + "end\n"},
			} {
				r, err := sh.Run(ctx, tt.cmd)
				if err != nil {
					t.Fatal(err)
				}
				if tt.cmd == "(" && r.Code != 0 {
					continue // its message is the shell's affair
				}
				if r.Code != tt.code || r.Output != tt.out {
					t.Errorf("%.60q: exit %d, %.80q, want exit %d, %.80q", tt.cmd, r.Code, r.Output, tt.code, tt.out)
				}
			}
			if err := sh.Push(ctx, "/tmp/it's data", all); err != nil {
				t.Fatal(err)
			}
			got, err := sh.Pull(ctx, "/tmp/it's data")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, all) {
				t.Errorf("pushed %d bytes, pulled %d other ones", len(all), len(got))
			}
			if _, err := sh.Pull(ctx, "/nosuch"); err == nil || !strings.Contains(err.Error(), "/nosuch") {
				t.Errorf("pull of a missing file: %v", err)
			}
			if _, err := sh.Run(ctx, "echo \x03"); err == nil {
				t.Error("a control character was typed")
			}
		})
	}

	t.Run("time-out", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		r, err := m.Run(ctx, "echo before; hang")
		if !errors.Is(err, context.DeadlineExceeded) || r.Output != "before\n" {
			t.Fatalf("hanging command: %q, %v", r.Output, err)
		}
		if r, err := m.Run(bound(t, 60*time.Second), "echo again"); err != nil || r.Output != "again\n" {
			t.Fatalf("command after a hanging one: %q, %v", r.Output, err)
		}
	})

	t.Run("torn line", func(t *testing.T) {
		m.Serial().Skip()
		ctx := bound(t, 30*time.Second)
		if r, err := m.Run(ctx, "kmsg weft: from the kernel log"); err != nil || r.Code != 0 {
			t.Fatal(r, err)
		}
		// "quiet" keeps messages of this level away from the console: only a dump of what was waited for tells.
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, err := m.Serial().WaitLine(short, regexp.MustCompile("never printed"))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "last lines") {
			t.Errorf("wait for a line that never comes: %v", err)
		}
	})

	t.Run("evidence", func(t *testing.T) {
		dir := t.TempDir()
		// The bare system has none of the commands, which is a result, not an error.
		if err := m.Save(bound(t, 60*time.Second), dir); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ttyS0.log", "hvc0.log", "screen.png", "qemu.txt", "events.txt", "logread.txt"} {
			info, err := os.Stat(filepath.Join(dir, m.Name()+"-"+name))
			if err != nil || info.Size() == 0 {
				t.Errorf("evidence %s: %v, %v", name, info, err)
			}
		}
	})
}

func TestLife(t *testing.T) {
	m := boot(t, Config{})
	ctx := bound(t, 180*time.Second)
	pid := m.run.cmd.Process.Pid
	if pgid, err := unix.Getpgid(pid); err != nil || pgid != pid {
		t.Errorf("process group of QEMU %d: %d, %v", pid, pgid, err)
	}
	if err := m.Start(ctx); err == nil {
		t.Error("started twice")
	}

	// The reset button, then the guest's own reboot: same QEMU, a further ready line each.
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Reboot(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}

	// Off by the guest: QEMU ends by itself, and the event says who did it.
	if err := m.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if m.Running() {
		t.Error("running after power-off")
	}
	var shutdown bool
	for _, e := range m.Events() {
		shutdown = shutdown || e.Name == "SHUTDOWN" && strings.Contains(string(e.Data), "guest-shutdown")
	}
	if !shutdown {
		t.Errorf("no SHUTDOWN event by the guest in %v", m.Events())
	}
	if _, err := m.Run(ctx, "true"); err == nil {
		t.Error("a machine that is off ran a command")
	}

	// On again, and cut.
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	pid = m.run.cmd.Process.Pid
	m.Kill()
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("QEMU %d after Kill: %v", pid, err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Errorf("wait after our own kill: %v", err)
	}
	dir := m.Dir()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder of a closed machine: %v", err)
	}
}

func TestDisksBySector(t *testing.T) {
	image := filepath.Join(t.TempDir(), "probe.img")
	if err := os.WriteFile(image, ProbeSector(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, bus := range []Bus{Virtio, IDE, SATA, USB} {
		t.Run(string(bus), func(t *testing.T) {
			m := start(t, Config{Memory: 64, CPUs: 1, Disks: []Disk{{Image: image, Bus: bus, Size: 4 << 20}, {Size: 1 << 20, Bus: bus}}})
			if _, err := m.Serial().WaitLine(bound(t, 60*time.Second), regexp.MustCompile("^weft probe$")); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(m.Disk(0)); err != nil || info.Size() != 4<<20 {
				t.Errorf("grown disk: %v, %v", info, err)
			}
		})
	}
	if data, err := os.ReadFile(image); err != nil || !bytes.Equal(data, ProbeSector()) {
		t.Error("the image has been touched")
	}
}

func TestStartFailure(t *testing.T) {
	m, err := New(bound(t, 30*time.Second), Config{Disks: []Disk{{Size: 1 << 20}}, Args: []string{"-nosuchoption"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	err = m.Start(bound(t, 30*time.Second))
	if err == nil || !strings.Contains(err.Error(), "nosuchoption") {
		t.Errorf("QEMU's own message is missing from %v", err)
	}
}

func TestAcceleratorProbe(t *testing.T) {
	t.Setenv("WEFT_CACHE", t.TempDir())
	q, err := FindQEMU(bound(t, 60*time.Second), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := q.probeBoot(bound(t, 60*time.Second), tcg); err != nil {
		t.Errorf("the probe does not print under emulation: %v", err)
	}
	got, err := q.Accelerator(bound(t, 60*time.Second), "auto")
	if err != nil {
		t.Fatal(err)
	}
	again, err := q.Accelerator(bound(t, 60*time.Second), "auto")
	if err != nil || strings.Join(again, " ") != strings.Join(got, " ") {
		t.Errorf("probed %q, then %q from the cache, %v", got, again, err)
	}
	if _, err := q.Accelerator(bound(t, 60*time.Second), "kvm"); (err == nil) != (got[1] == "kvm") {
		t.Errorf("auto chose %q, kvm says %v", got, err)
	}
}

func TestLink(t *testing.T) {
	l := NewLink("test")
	var ends []net.Conn
	var done sync.WaitGroup
	for range 3 {
		a, file, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		b, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, a)
		done.Go(func() {
			if err := l.serve("guest", b); err != nil {
				t.Error(err)
			}
			b.Close()
		})
	}
	frame := []byte("\x00\x00\x00\x05hello")
	recv := func(c net.Conn) string {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, len(frame))
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		return string(buf)
	}
	for l.portCount() < 3 { // each port's goroutine has to get there
		runtime.Gosched()
	}
	if _, err := ends[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	for _, c := range ends[1:] {
		if got := recv(c); got != string(frame) {
			t.Errorf("port got %q", got)
		}
	}
	l.Cut()
	if _, err := ends[1].Write(frame); err != nil {
		t.Fatal(err)
	}
	l2 := l.Stats()
	for l2.Frames < 2 {
		runtime.Gosched()
		l2 = l.Stats()
	}
	if l2.Dropped != 1 || l2.Bytes != 10 {
		t.Errorf("stats of a cut link: %+v", l2)
	}
	l.Restore()
	for _, c := range ends {
		c.Close()
	}
	done.Wait()
}
