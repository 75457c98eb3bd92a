package pid1

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/stage1/handover"
	"weft/init/supervise"
	"weft/init/supervise/process"
	"weft/init/unit"
)

// The tests in this file run the real thing as PID 1 of namespaces of its own,
// in a root folder that the test makes, with this test program as every applet.

func TestMain(m *testing.M) {
	if root := os.Getenv("WEFT_TEST_ROOT"); root != "" && os.Getpid() == 1 {
		if err := enterRoot(root); err != nil {
			fmt.Fprintln(os.Stderr, "enter root:", err)
			os.Exit(1)
		}
		os.Unsetenv("WEFT_TEST_ROOT")
		runAsPID1()
	}
	if f := applets[filepath.Base(os.Args[0])]; f != nil {
		os.Exit(f())
	}
	if code, ok := runShellApplet(strings.TrimPrefix(filepath.Base(os.Args[0]), "-")); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// runAsPID1 is Run, with a panic on the supervisor's loop and one in a
// goroutine's loop once it is ready.
func runAsPID1() {
	signals := make(chan os.Signal, 8)
	for s := range powerSignals {
		signal.Notify(signals, s)
	}
	p := newPID1()
	p.tl.mark("start", bootTime())
	p.guard("start", func() { p.boot(nil) })
	if _, err := os.Stat("/panic"); err == nil {
		p.sup.Post(func(*supervise.Machine, time.Duration) []supervise.Action { panic("made by the test") })
		runs := 0
		p.forever(context.Background(), "test", func(context.Context) {
			if runs++; runs == 2 {
				os.WriteFile("/second-run", nil, 0o644)
				select {}
			}
			panic("made by the test as well")
		})
	}
	p.loop(signals)
}

// applets is what this program is in the test's root.
var applets = map[string]func() int{
	"confine": func() int { return process.Confine(context.Background(), unit.OSCall()) },
	// ubusd is a broker.
	"ubusd": func() int {
		b, err := bus.Listen(bus.DefaultSocket, bus.BrokerOptions{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		notify("READY=1")
		b.Serve(ctx)
		return 0
	},
	// logd writes what it hears to /log.
	"logd": func() int {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/dev/log", Net: "unixgram"})
		if err != nil {
			return 1
		}
		f, err := os.OpenFile("/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return 1
		}
		notify("READY=1")
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return 1
			}
			f.Write(append(buf[:n:n], '\n'))
		}
	},
	"good": func() int {
		fmt.Println("good is up")
		notify("STATUS=serving\nREADY=1")
		select {}
	},
	"deaf": func() int {
		signal.Ignore(syscall.SIGTERM)
		notify("READY=1")
		select {}
	},
	"boot": func() int { return 0 },
	// orphans leaves children of children behind, and is ready once PID 1 has
	// reaped them all.
	"orphans": func() int {
		for range 20 {
			pid, err := syscall.ForkExec("/proc/self/exe", []string{"forker"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
			if err != nil {
				return 1
			}
			var ws syscall.WaitStatus
			syscall.Wait4(pid, &ws, 0, nil)
		}
		for zombies() > 0 {
			time.Sleep(time.Millisecond)
		}
		notify("READY=1")
		select {}
	},
	"forker": func() int {
		_, err := syscall.ForkExec("/proc/self/exe", []string{"short"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			return 1
		}
		return 0
	},
	"short": func() int { time.Sleep(5 * time.Millisecond); return 0 },
	// third is somebody's init script.
	"third": func() int { return note(strings.Join(os.Args, " ")) },
	"S50third": func() int {
		return note("third " + strings.Join(os.Args[1:], " "))
	},
	"K10third": func() int { return note("third " + strings.Join(os.Args[1:], " ")) },
	"login": func() int {
		fmt.Println("welcome", os.Getenv("TERM"), os.Getenv("FAILSAFE"))
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Println("you said", strings.TrimSpace(line))
		return 0
	},
	"sh": func() int {
		if os.Getenv("FAILSAFE") == "" {
			code, _ := runShellApplet("ash")
			return code
		}
		fmt.Println("root shell", os.Args[1], os.Getenv("FAILSAFE"))
		bufio.NewReader(os.Stdin).ReadString('\n')
		return 0
	},
}

func notify(msg string) {
	if err := unit.Notify(os.Getenv("NOTIFY_SOCKET"), msg); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func note(line string) int {
	f, err := os.OpenFile("/notes", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 1
	}
	defer f.Close()
	fmt.Fprintln(f, line)
	return 0
}

// zombies counts the children of PID 1 that have ended and were not reaped.
func zombies() int {
	n := 0
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(text), ") "); ok && strings.HasPrefix(rest, "Z 1 ") {
			n++
		}
	}
	return n
}

// enterRoot makes the test's folder the root of this mount namespace. What
// would be the machine's own (/dev, /sys) is a small imitation.
func enterRoot(root string) error {
	type m struct {
		source, target, fstype string
		flags                  uintptr
	}
	for _, m := range []m{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"tmpfs", root, "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	mk := func(dirs ...string) error {
		for _, d := range dirs {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
		return nil
	}
	if err := mk("dev", "sys", "proc", "tmp", "sbin", "bin", "etc/rc.d", "usr", "usr/lib/weft/services", "out", "root"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	binds := map[string]string{self: "program", os.Getenv("WEFT_TEST_OUT"): "out"}
	os.WriteFile(filepath.Join(root, "program"), nil, 0o755)
	for _, lib := range []string{"/lib", "/lib64", "/usr/lib"} { // the test program may be dynamic
		if _, err := os.Stat(lib); err == nil && lib != "/usr/lib" {
			binds[lib] = lib
			if err := mk(lib); err != nil {
				return err
			}
		}
	}
	for from, to := range binds {
		if err := unix.Mount(from, filepath.Join(root, to), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", from, err)
		}
	}
	for _, dir := range []string{"dev", "sys", "tmp"} {
		if err := unix.Mount("tmpfs", filepath.Join(root, dir), "tmpfs", 0, ""); err != nil {
			return err
		}
	}
	if err := unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	if tty := os.Getenv("WEFT_TEST_TTY"); tty != "" {
		target := filepath.Join(root, "dev/ttyT0")
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(tty, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind terminal: %w", err)
		}
	}
	if err := mk("sys/class/tty/console", "sys/fs/cgroup"); err != nil {
		return err
	}
	os.WriteFile(filepath.Join(root, "sys/class/tty/console/active"), []byte("ttyT0\n"), 0o644)
	if err := unix.Mount("cgroup2", filepath.Join(root, "sys/fs/cgroup"), "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	var files map[string]string
	if err := json.Unmarshal([]byte(os.Getenv("WEFT_TEST_FILES")), &files); err != nil {
		return err
	}
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, p); err != nil {
				return err
			}
		} else if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			return err
		}
	}
	for _, v := range []string{"WEFT_TEST_TTY", "WEFT_TEST_OUT", "WEFT_TEST_FILES"} {
		os.Unsetenv(v)
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	for _, l := range [][2]string{{"tmp", "/var"}, {"tmp/run", "/run"}} {
		if err := os.Symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	return os.Chdir("/")
}

// device is a PID 1 under test.
type device struct {
	t       *testing.T
	cmd     *exec.Cmd
	pty     *os.File
	mu      sync.Mutex
	console bytes.Buffer
	news    chan struct{}
	ended   chan error
}

func openPTY(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs a pseudo terminal: %v", err)
	}
	fd := int(f.Fd())
	unix.SetNonblock(fd, true)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Skipf("needs a pseudo terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Skipf("needs a pseudo terminal: %v", err)
	}
	return f, fmt.Sprintf("/dev/pts/%d", n)
}

func start(t *testing.T, files map[string]string) *device {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: PID 1 runs in namespaces of its own")
	}
	// A control group of its own, so that the machine's is not touched.
	mounts, _ := os.ReadFile("/proc/self/mounts")
	cg := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			cg = filepath.Join(f[1], fmt.Sprintf("weft-pid1-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
		}
	}
	if cg == "" {
		t.Skip("needs cgroup v2")
	}
	if err := os.Mkdir(cg, 0o755); err != nil {
		t.Skipf("needs a writable cgroup v2: %v", err)
	}
	dir, err := os.Open(cg)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	pty, tty := openPTY(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, pty: pty, news: make(chan struct{}, 1), ended: make(chan error, 1)}
	d.cmd = exec.Command(self)
	d.cmd.Env = append(os.Environ(), "WEFT_TEST_ROOT="+t.TempDir(), "WEFT_TEST_TTY="+tty, "WEFT_TEST_OUT="+t.TempDir(), "WEFT_TEST_FILES="+string(js))
	d.cmd.Stderr = os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()),
		Setsid: true,
	}
	// CLONE_NEWCGROUP takes the group that the process is in when it is made;
	// entering one at the same time leaves the root of the view outside. Going
	// there first does not.
	here, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cg, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		t.Skipf("needs a writable cgroup v2: %v", err)
	}
	d.cmd.SysProcAttr.UseCgroupFD = false
	err = d.cmd.Start()
	for line := range strings.Lines(string(here)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			os.WriteFile(filepath.Join(filepath.Dir(cg), p, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		}
	}
	if err != nil {
		os.Remove(cg)
		t.Skipf("needs namespaces: %v", err)
	}
	go d.read()
	go func() { d.ended <- d.cmd.Wait() }()
	t.Cleanup(func() {
		d.cmd.Process.Kill()
		pty.Close()
		removeGroups(cg)
		if t.Failed() {
			t.Logf("console:\n%s", d.text())
		}
	})
	return d
}

func removeGroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(filepath.Join(dir, e.Name()))
		}
	}
	for range 1000 {
		if err := syscall.Rmdir(dir); err != syscall.EBUSY {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (d *device) read() {
	buf := make([]byte, 4096)
	for {
		n, err := d.pty.Read(buf)
		if n > 0 {
			d.mu.Lock()
			d.console.Write(buf[:n])
			d.mu.Unlock()
			select {
			case d.news <- struct{}{}:
			default:
			}
		}
		if err != nil && !strings.Contains(err.Error(), "input/output error") {
			return // EIO: nobody has the terminal open at the moment
		}
		if err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

func (d *device) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.ReplaceAll(d.console.String(), "\r", "")
}

// patience bounds waits for what happens; only failures reach it.
const patience = 60 * time.Second

// expect waits until the console shows what matches.
func (d *device) expect(pattern string) {
	d.t.Helper()
	d.expectAfter(0, pattern)
}

// expectAfter is expect for what the console shows after its first offset bytes.
func (d *device) expectAfter(offset int, pattern string) {
	d.t.Helper()
	re := regexp.MustCompile(`(?m)` + pattern)
	timeout := time.After(patience)
	for !re.MatchString(d.text()[offset:]) {
		select {
		case <-d.news:
		case err := <-d.ended:
			d.ended <- err
			select { // its last words may still be on their way
			case <-d.news:
				continue
			case <-time.After(2 * time.Second):
			}
			if re.MatchString(d.text()[offset:]) {
				return
			}
			d.t.Fatalf("PID 1 ended (%v) before the console showed %q", err, pattern)
		case <-timeout:
			d.t.Fatalf("the console does not show %q", pattern)
		}
	}
}

// file reads a file of the device's root, waiting for it to hold want.
func (d *device) file(name, want string) string {
	d.t.Helper()
	path := fmt.Sprintf("/proc/%d/root/%s", d.cmd.Process.Pid, name)
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(path)
		if strings.Contains(string(text), want) {
			return string(text)
		}
		if time.Now().After(end) {
			d.t.Fatalf("%s has no %q:\n%s", name, want, text)
		}
	}
}

// ends waits for the end of PID 1. In a PID namespace reboot(2) ends it with a
// signal that tells what was asked for (pid_namespaces(7)).
func (d *device) ends(want syscall.Signal) {
	d.t.Helper()
	select {
	case err := <-d.ended:
		d.ended <- err
		ws := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ws.Signaled() || ws.Signal() != want {
			d.t.Errorf("PID 1 ended with %v, want signal %v", err, want)
		}
	case <-time.After(patience):
		d.t.Fatal("PID 1 does not end")
	}
}

// dial connects to the device's bus.
func (d *device) dial() *bus.Client {
	d.t.Helper()
	c, err := bus.Dial(d.t.Context(), fmt.Sprintf("/proc/%d/root/tmp/run/ubus/ubus.sock", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

func (d *device) call(c *bus.Client, object, method string, args any) bus.Table {
	d.t.Helper()
	// PID 1 connects a moment after the broker is ready.
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := c.Lookup(d.t.Context(), object); err == nil {
			break
		} else if time.Now().After(end) {
			d.t.Fatalf("object %s: %v", object, err)
		}
	}
	out, err := c.Call(d.t.Context(), object, method, args)
	if err != nil {
		d.t.Fatalf("%s %s: %v", object, method, err)
	}
	return out
}

const inittab = "::sysinit:/etc/init.d/rcS S boot\nttyT0::askfirst:/bin/login\nttyNone::askfirst:/bin/login\n"

func services() map[string]string {
	f := map[string]string{"etc/inittab": inittab, "bin/login": "-> /program", "bin/sh": "-> /program"}
	add := func(name string, number int, toml string) {
		f["usr/lib/weft/services/"+name+".toml"] = toml + "\nno_new_privs = false\n"
		f[fmt.Sprintf("etc/rc.d/S%02d%s", number, name)] = "-> ../init.d/" + name
		f["sbin/"+name] = "-> /program"
	}
	add("ubusd", 8, `command = ["/sbin/ubusd"]`+"\nstop_last = true")
	add("logd", 9, `command = ["/sbin/logd"]`+"\nstop_last = true")
	add("boot", 10, `command = ["/sbin/boot"]`+"\ntype = \"oneshot\"")
	add("good", 20, `command = ["/sbin/good"]`+"\nneeds = [\"ubusd\"]\nafter = [\"boot\"]\ncritical = true")
	return f
}

func TestBootAndShutdown(t *testing.T) {
	f := services()
	f["usr/lib/weft/services/deaf.toml"] = "command = [\"/sbin/deaf\"]\nneeds = [\"good\"]\nterm_timeout = \"300ms\""
	f["usr/lib/weft/services/orphans.toml"] = "command = [\"/sbin/orphans\"]"
	f["usr/lib/weft/services/rcS.toml"] = "command = [\"@rcS\"]\ntype = \"oneshot\"\nready_timeout = \"0s\""
	f["usr/lib/weft/services/broken.toml"] = "command = [\"/sbin/good\"]\nmemmory = 3\n"
	for i, n := range []string{"deaf", "orphans", "broken", "third"} {
		f["sbin/"+n] = "-> /program"
		f[fmt.Sprintf("etc/rc.d/S5%d%s", i, n)] = "-> ../init.d/" + n
	}
	delete(f, "etc/rc.d/S53third")
	f["etc/rc.d/S99rcS"] = "-> ../init.d/rcS"
	f["etc/rc.d/S50third"] = "-> /program"
	f["etc/rc.d/K10third"] = "-> /program"
	h, _ := json.Marshal(handover.Handover{Overlay: handover.Disk, Marks: []handover.Mark{{Name: "modules", MS: 900}},
		Messages: []handover.Message{{Level: handover.Warn, Text: "the partition is full", MS: 1234}}})
	f["tmp/run/weft/stage1.json"] = string(h)
	f["panic"] = ""
	d := start(t, f)

	d.expect(`^weft: error: service disabled: its unit file is wrong unit=broken error="/usr/lib/weft/services/broken.toml:2: memmory: unknown key"$`)
	d.expect(`^weft: ready in [0-9.]+ s$`)
	for line := range strings.Lines(d.text()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "weft: ") && line != prompt {
			t.Errorf("console line %q before ready", line)
		}
	}
	d.expect(regexp.QuoteMeta(prompt))
	d.pty.WriteString("\n")
	d.expect(`^welcome vt102 $`)
	d.pty.WriteString("hello\n")
	d.expect(`^you said hello$`)

	log := d.file("log", "service ready unit=good")
	for _, want := range []string{
		"<30>weft[1]: service ready unit=boot",
		"<28>stage1: [1.234] the partition is full", // kept until logd was up
		"good is up",
		"panic in PID 1; it goes on where=test",
		"panic in the supervisor's loop; it goes on panic=\"made by the test\"",
		"start script done script=/etc/rc.d/S50third",
	} {
		if !strings.Contains(log, want) {
			log = d.file("log", want)
		}
	}
	d.file("second-run", "") // the loop that panicked runs again
	if n := d.file("notes", "third boot"); n != "third boot\n" {
		t.Errorf("start scripts: %q", n)
	}

	c := d.dial()
	js, _ := d.call(c, "service", "list", bus.Table{{Name: "name", Value: "good"}}).MarshalJSON()
	for _, want := range []string{`"running":true`, `"state":"running"`, `"status":"serving"`, `"critical":true`} {
		if !strings.Contains(string(js), want) {
			t.Errorf("%s is missing in %s", want, js)
		}
	}
	js, _ = d.call(c, "service", "timeline", nil).MarshalJSON()
	for _, want := range []string{`{"stage":"kernel","name":"first line","ms":0}`, `{"stage":"stage1","name":"modules","ms":900}`, `{"name":"ubusd","start_ms":`, `"name":"ready"`} {
		if !strings.Contains(string(js), want) {
			t.Errorf("%s is missing in %s", want, js)
		}
	}
	js, _ = d.call(c, "system", "watchdog", nil).MarshalJSON()
	if string(js) != `{"status":"offline","timeout":30,"frequency":5,"magicclose":false}` {
		t.Errorf("watchdog: %s", js)
	}

	d.cmd.Process.Signal(syscall.SIGUSR2)
	d.expect(`^weft: power off \(signal SIGUSR2\)$`)
	d.expect(`^weft: deaf did not stop within 300ms, killed$`)
	d.expect(`^weft: stopped in [0-9.]+ s: power off$`)
	d.ends(syscall.SIGINT)
	if n := strings.Count(d.text(), "weft: ready in"); n != 1 {
		t.Errorf("%d ready lines", n)
	}
}

func TestCrashIsRestartedAndToldOnTheBus(t *testing.T) {
	d := start(t, services())
	d.expect(`^weft: ready in`)
	c := d.dial()
	seen := make(chan string, 100)
	if _, err := c.Subscribe("service", func(method string, data bus.Table) {
		js, _ := data.MarshalJSON()
		seen <- method + " " + string(js)
	}); err != nil {
		t.Fatal(err)
	}
	d.call(c, "service", "signal", bus.Table{{Name: "name", Value: "good"}, {Name: "signal", Value: int32(9)}})
	for _, want := range []string{`instance.respawn {"service":"good"`, `instance.start {"service":"good"`, `instance.ready {"service":"good"`} {
		timeout := time.After(patience)
		for found := false; !found; {
			select {
			case s := <-seen:
				found = strings.HasPrefix(s, want)
			case <-timeout:
				t.Fatalf("no notification %s", want)
			}
		}
	}
	d.file("log", "service ended, it will be started again unit=good")
	d.call(c, "system", "reboot", nil)
	d.expect(`^weft: reboot \(bus\)$`)
	d.ends(syscall.SIGHUP)
}

func TestThirdPartyService(t *testing.T) {
	d := start(t, services())
	d.expect(`^weft: ready in`)
	c := d.dial()
	d.call(c, "service", "set", bus.Table{{Name: "name", Value: "third"}, {Name: "instances", Value: bus.Table{{Name: "instance1", Value: bus.Table{
		{Name: "command", Value: bus.Array{"/sbin/good"}}, {Name: "stdout", Value: true}, {Name: "pidfile", Value: "/var/run/third.pid"},
		{Name: "limits", Value: bus.Table{{Name: "core", Value: "0"}}},
	}}}}})
	d.file("log", "]: good is up")
	pid := strings.TrimSpace(d.file("tmp/run/third.pid", "\n"))
	js, _ := d.call(c, "service", "list", bus.Table{{Name: "name", Value: "third"}}).MarshalJSON()
	if !strings.Contains(string(js), `"pid":`+pid+`,`) {
		t.Errorf("pid file %s, list %s", pid, js)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.ends(syscall.SIGHUP)
}

func TestFailsafe(t *testing.T) {
	f := services()
	h, _ := json.Marshal(handover.Handover{Failsafe: true, FailsafeReason: "the f key", Overlay: handover.None})
	f["tmp/run/weft/stage1.json"] = string(h)
	d := start(t, f)
	d.expect(`^weft: failsafe in [0-9.]+ s$`)
	d.expect(`^root shell --login true$`)
	if strings.Contains(d.text(), "weft: ready") {
		t.Error("ready line in failsafe mode")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/tmp/run/ubus/ubus.sock", d.cmd.Process.Pid)); err == nil {
		t.Error("services run in failsafe mode")
	}
	d.cmd.Process.Signal(syscall.SIGINT)
	d.ends(syscall.SIGHUP)
}

func TestNotPID1(t *testing.T) {
	if code := Run(nil); code != 1 {
		t.Errorf("exit %d", code)
	}
}
