package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/test-vm/lab"
)

// bed is what all tests share, made by the first one.
type bed struct {
	images *lab.Images
	dir    string // goes when the test program ends
	disk   string // the BIOS image, unpacked once
	probe  string // a raw disk whose first bytes are the probe program
	size   int    // of the program
}

var tempDir string

func TestMain(m *testing.M) {
	var err error
	tempDir, err = os.MkdirTemp("", "weft-boot-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(tempDir)
	report.print()
	os.Exit(code)
}

var makeBed = sync.OnceValues(func() (*bed, error) {
	ctx := context.Background()
	board := os.Getenv("WEFT_BOARD")
	if board == "" {
		board = "x86-64"
	}
	images, err := lab.FindImages(os.Getenv("WEFT_BIN_DIR"), board)
	if err != nil {
		return nil, err
	}
	b := &bed{images: images, dir: tempDir, disk: filepath.Join(tempDir, "combined.img"), probe: filepath.Join(tempDir, "probe.img")}
	image, err := images.Path("combined")
	if err != nil {
		return nil, err
	}
	if err := lab.CopyDisk(ctx, b.disk, image, 0); err != nil {
		return nil, err
	}
	program := filepath.Join(tempDir, "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "weft/test-vm/boot/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		return nil, err
	}
	b.size = int(info.Size())
	return b, lab.CopyDisk(ctx, b.probe, program, (info.Size()+511)/512*512)
})

// slots bounds how many machines run at once: emulation takes a processor each.
var slots = make(chan struct{}, 2)

// vm is a machine of a test; its methods end the test when something fails.
type vm struct {
	*lab.Machine
	t   *testing.T
	bed *bed
}

// newVM makes a machine with the BIOS image as its only image, which change may alter. It is off.
func newVM(t *testing.T, change func(*bed, *lab.Config)) *vm {
	t.Helper()
	b, err := makeBed()
	if err != nil {
		t.Fatal(err)
	}
	cfg := lab.Config{
		Name:     strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()),
		Disks:    []lab.Disk{{Image: b.disk}},
		NICs:     []lab.NIC{{Net: "192.168.1.0/24", Isolated: true, Forwards: []lab.Forward{{Guest: 7000, Address: "192.168.1.1"}}, Capture: true}, {Net: "10.0.3.0/24", Forwards: []lab.Forward{{Guest: 7001}}, Capture: true}},
		Consoles: []string{"hvc0"},
		// Two machines at a time have a core each, and tests reboot.
		OneThread: true,
	}
	if change != nil {
		change(b, &cfg)
	}
	slots <- struct{}{}
	m, err := lab.New(bound(t, time.Minute), cfg)
	if err != nil {
		<-slots
		t.Fatal(err)
	}
	v := &vm{m, t, b}
	t.Cleanup(func() {
		if t.Failed() {
			v.keep()
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		<-slots
	})
	return v
}

// keep saves what the machine had to say, and shows the end of its log.
func (v *vm) keep() {
	v.t.Logf("the last lines of %s:\n%s", v.Serial().Name(), v.Serial().Tail(30))
	dir, err := lab.OutDir(v.t.Name())
	if err == nil {
		err = v.Save(context.Background(), dir)
	}
	if err != nil {
		v.t.Logf("%v", err)
	}
	v.t.Logf("consoles, logs and captures are in %s", dir)
}

// bound is a context of at most d, times WEFT_TIMEOUT_FACTOR.
func bound(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Timeout(d))
	t.Cleanup(cancel)
	return ctx
}

// Bounds of waits: several times what emulation on two busy processors takes.
const (
	bootBound    = 150 * time.Second
	commandBound = 60 * time.Second
)

// start switches on and returns when the initramfs has begun.
func (v *vm) start() {
	v.t.Helper()
	if _, err := v.StartTo(bound(v.t, bootBound), lab.StartLine); err != nil {
		v.t.Fatal(err)
	}
}

// ready waits for the ready line.
func (v *vm) ready() lab.Ready {
	v.t.Helper()
	r, err := v.WaitReady(bound(v.t, bootBound))
	if err != nil {
		v.t.Fatal(err)
	}
	return r
}

// boot is start and ready.
func (v *vm) boot() lab.Ready {
	v.t.Helper()
	v.start()
	return v.ready()
}

// wait waits for a line on the serial console.
func (v *vm) wait(expr string) string {
	v.t.Helper()
	l, err := v.Serial().WaitLine(bound(v.t, bootBound), regexp.MustCompile(expr))
	if err != nil {
		v.t.Fatal(err)
	}
	return l.Text
}

// try runs a command whatever its exit code.
func (v *vm) try(cmd string) lab.Result {
	v.t.Helper()
	r, err := v.Machine.Run(bound(v.t, commandBound), cmd)
	if err != nil {
		v.t.Fatal(err)
	}
	return r
}

// run runs a command that must succeed and returns its output without the last newline.
func (v *vm) run(cmd string) string {
	v.t.Helper()
	r := v.try(cmd)
	if r.Code != 0 {
		v.t.Fatalf("%s: exit %d: %s", cmd, r.Code, r.Output)
	}
	return strings.TrimSuffix(r.Output, "\n")
}

// expect runs a command that must succeed and print what matches.
func (v *vm) expect(cmd, expr string) string {
	v.t.Helper()
	out := v.run(cmd)
	if !regexp.MustCompile(expr).MatchString(out) {
		v.t.Errorf("%s: printed %q, want a match of %q", cmd, out, expr)
	}
	return out
}

// until runs a command again and again until ok accepts what it printed; each turn is a round trip to the guest.
func (v *vm) until(within time.Duration, cmd string, ok func(lab.Result) bool) lab.Result {
	v.t.Helper()
	ctx := bound(v.t, within)
	var last lab.Result
	for ctx.Err() == nil {
		r, err := v.Machine.Run(ctx, cmd)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			v.t.Fatal(err)
		}
		if ok(r) {
			return r
		}
		last = r
	}
	v.t.Fatalf("%s: not as expected within %v; the last time: exit %d: %s", cmd, lab.Timeout(within), last.Code, last.Output)
	return last
}

func matches(expr string) func(lab.Result) bool {
	re := regexp.MustCompile(expr)
	return func(r lab.Result) bool { return re.MatchString(r.Output) }
}

// reboot has the guest reboot itself by cmd (empty = reboot) and waits until it is ready.
func (v *vm) reboot(cmd string) {
	v.t.Helper()
	if err := v.Machine.Reboot(bound(v.t, commandBound), cmd); err != nil {
		v.t.Fatal(err)
	}
	v.ready()
}

func (v *vm) powerOff() {
	v.t.Helper()
	if err := v.Machine.PowerOff(bound(v.t, commandBound)); err != nil {
		v.t.Fatal(err)
	}
}

// partition is a partition of disk 0.
func (v *vm) partition(number int) lab.Partition {
	v.t.Helper()
	parts, err := lab.Partitions(v.Disk(0))
	if err != nil {
		v.t.Fatal(err)
	}
	for _, p := range parts {
		if p.Number == number {
			return p
		}
	}
	v.t.Fatalf("the image has no partition %d: %+v", number, parts)
	return lab.Partition{}
}

// withProbe adds the probe's disk; getProbe copies the program into the running guest.
func withProbe(b *bed, c *lab.Config) {
	c.Disks = append(c.Disks, lab.Disk{Image: b.probe, Serial: "probe", ReadOnly: true})
}

func (v *vm) getProbe() {
	v.t.Helper()
	v.run(fmt.Sprintf("head -c %d /dev/vdb >/tmp/probe && chmod 755 /tmp/probe", v.bed.size))
}

// direct boots the image's own kernel and initramfs without boot loader, with more kernel arguments.
func direct(t *testing.T, args string) func(*bed, *lab.Config) {
	t.Helper()
	return func(b *bed, c *lab.Config) {
		parts, err := lab.Partitions(b.disk)
		if err != nil || len(parts) < 2 {
			t.Fatalf("partitions of the image: %v, %v", parts, err)
		}
		if c.Kernel, err = b.images.Path("kernel"); err != nil {
			t.Fatal(err)
		}
		if c.Initrd, err = b.images.Path("initramfs"); err != nil {
			t.Fatal(err)
		}
		c.Cmdline = strings.TrimSpace(args + " root=PARTUUID=" + parts[1].UUID + " rootwait console=tty1 console=ttyS0,115200n8 quiet")
	}
}

// all makes one change of several.
func all(changes ...func(*bed, *lab.Config)) func(*bed, *lab.Config) {
	return func(b *bed, c *lab.Config) {
		for _, f := range changes {
			f(b, c)
		}
	}
}

// mtool runs a pinned program of mtools on partition 1 of disk 0 and returns its output; the machine is off.
func (v *vm) mtool(name string, args ...string) (string, error) {
	v.t.Helper()
	tool, err := lab.PinnedTool(bound(v.t, time.Minute), name)
	if err != nil {
		v.t.Fatal(err)
	}
	args = append([]string{"-i", fmt.Sprintf("%s@@%d", v.Disk(0), v.partition(1).Start)}, args...)
	cmd := tool.Command(bound(v.t, time.Minute), args...)
	cmd.Env = append(cmd.Env, "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// service is what the bus says of one service.
type service struct {
	Instances map[string]struct {
		Running bool
		PID     int `json:"pid"`
	}
}

// pid of a service's first instance, 0 if it does not run.
func (v *vm) pid(name string) int {
	v.t.Helper()
	out := v.run(fmt.Sprintf(`ubus call service list '{"name":"%s"}'`, name))
	var list map[string]service
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		v.t.Fatalf("service list: %v in %s", err, out)
	}
	for _, i := range list[name].Instances {
		if i.Running {
			return i.PID
		}
	}
	return 0
}

// newPID waits until a service runs as another process than old.
func (v *vm) newPID(name string, old int, within time.Duration) int {
	v.t.Helper()
	deadline := bound(v.t, within)
	for deadline.Err() == nil {
		if pid := v.pid(name); pid != 0 && pid != old {
			return pid
		}
	}
	v.t.Fatalf("service %s: no new process within %v (it was %d)", name, lab.Timeout(within), old)
	return 0
}

// greeting connects to a forwarded port until the probe's listener greets.
func (v *vm) greeting(guestPort int) string {
	v.t.Helper()
	ctx := bound(v.t, commandBound)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(v.Forwarded(guestPort)))
	for ctx.Err() == nil {
		// QEMU accepts before the guest has; an early end means that the guest refused.
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			v.t.Fatal(err)
		}
		deadline, _ := ctx.Deadline()
		c.SetReadDeadline(deadline)
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		c.Close()
		if n > 0 {
			return string(buf[:n])
		}
	}
	v.t.Fatalf("nobody greets on port %d of the guest", guestPort)
	return ""
}

// figures collects what is measured and not asserted.
type figures struct {
	mu    sync.Mutex
	lines []string
}

var report figures

func (f *figures) add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, fmt.Sprintf(format, args...))
}

// print writes the figures to the standard output and to test-vm/out/report.txt.
func (f *figures) print() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) == 0 {
		return
	}
	text := strings.Join(f.lines, "\n") + "\n"
	fmt.Printf("\nMeasured, not asserted:\n%s", text)
	root, err := lab.Root()
	if err != nil {
		return
	}
	dir := filepath.Join(root, "test-vm", "out")
	err = os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "report.txt"), []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
