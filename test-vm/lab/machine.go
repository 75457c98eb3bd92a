package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning is returned by what needs a running machine.
var ErrNotRunning = errors.New("the machine is not running")

// Machine is a virtual machine: its folder, its disks, and the QEMU of its present start, if any.
type Machine struct {
	cfg      Config
	qemu     *QEMU
	accel    []string
	dir      string
	disks    []string
	vars     string
	ports    [][]Forward
	consoles map[string]*Console
	shells   map[string]*Shell

	mu     sync.Mutex
	run    *run
	events []Event  // of earlier starts
	said   []string // QEMU's messages of earlier starts
	noHVC  bool     // no shell answers on hvc0 since the last start
}

// run is one start of QEMU.
type run struct {
	cmd     *exec.Cmd
	qmp     *qmpClient
	stderr  lockedBuffer
	exited  chan struct{} // closed when QEMU has been reaped
	done    chan struct{} // closed when all readers have ended as well
	exit    error         // valid after done
	killed  bool          // by us; guarded by Machine.mu
	powerOn time.Time
}

// New makes a machine: it checks cfg, finds QEMU and copies the disks. Close must follow.
func New(ctx context.Context, cfg Config) (*Machine, error) {
	c, err := cfg.defaults()
	if err != nil {
		return nil, err
	}
	q, err := FindQEMU(ctx, c.Arch)
	if err != nil {
		return nil, err
	}
	accel, err := q.Accelerator(ctx, c.Accel)
	if err != nil {
		return nil, err
	}
	if c.OneThread && accel[1] == tcg[1] {
		accel = tcgOne
	}
	return newMachine(ctx, q, accel, c)
}

func newMachine(ctx context.Context, q *QEMU, accel []string, cfg Config) (_ *Machine, err error) {
	cfg, err = cfg.defaults()
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Machine, error) { return nil, fmt.Errorf("machine %s: %w", cfg.Name, err) }
	m := &Machine{cfg: cfg, qemu: q, accel: accel, consoles: map[string]*Console{}, shells: map[string]*Shell{}}
	m.dir, err = os.MkdirTemp(cfg.Dir, "weft-"+cfg.Name+"-")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(m.dir)
		}
	}()
	for i, d := range cfg.Disks {
		path := filepath.Join(m.dir, fmt.Sprintf("disk%d.img", i))
		if d.InPlace {
			path = d.Image
		}
		if d.NBD != "" {
			path = d.NBD
		}
		m.disks = append(m.disks, path)
		if d.InPlace || d.NBD != "" {
			continue
		}
		if d.Image == "" {
			f, err := os.Create(path)
			if err != nil {
				return fail(err)
			}
			err = errors.Join(f.Truncate(d.Size), f.Close())
			if err != nil {
				return fail(err)
			}
			continue
		}
		if err := CopyDisk(ctx, path, d.Image, d.Size); err != nil {
			return fail(err)
		}
	}
	if cfg.Firmware == UEFI {
		if q.code == "" {
			return fail(fmt.Errorf("no OVMF firmware beside %s QEMU %s: install the package ovmf", q.Source, q.Path))
		}
		m.vars = filepath.Join(m.dir, "vars.fd")
		data, err := os.ReadFile(q.vars)
		if err != nil {
			return fail(err)
		}
		if err := os.WriteFile(m.vars, data, 0o600); err != nil {
			return fail(err)
		}
	}
	for _, n := range cfg.NICs {
		for i := range n.Forwards {
			if n.Forwards[i].Host == 0 {
				if n.Forwards[i].Host, err = freePort(); err != nil {
					return fail(err)
				}
			}
		}
		m.ports = append(m.ports, n.Forwards)
	}
	serial := arches[cfg.Arch].serial
	for _, name := range append([]string{serial}, cfg.Consoles...) {
		c := newConsole(name)
		m.consoles[name] = c
		m.shells[name] = &Shell{c: c, kernel: name == serial}
	}
	return m, nil
}

// freePort asks the kernel for a TCP port of the loopback that nobody uses now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Name is the machine's name.
func (m *Machine) Name() string { return m.cfg.Name }

// Dir is the machine's folder; it goes with Close.
func (m *Machine) Dir() string { return m.dir }

// Disk is the raw file of disk i, or the socket of its NBD server. The file may be written only while the machine is off.
func (m *Machine) Disk(i int) string { return m.disks[i] }

// Forwards are the forwards of all cards, with the host's ports filled in.
func (m *Machine) Forwards() []Forward {
	var out []Forward
	for _, fs := range m.ports {
		out = append(out, fs...)
	}
	return out
}

// Forwarded is the host's port of 127.0.0.1 that leads to a port of the guest, 0 if none does.
func (m *Machine) Forwarded(guest int) int {
	for _, fs := range m.ports {
		for _, f := range fs {
			if f.Guest == guest {
				return f.Host
			}
		}
	}
	return 0
}

// Serial is the first serial port: the kernel's console and the log of a boot.
func (m *Machine) Serial() *Console { return m.consoles[arches[m.cfg.Arch].serial] }

// Console is the console of that name, nil if the machine has none.
func (m *Machine) Console(name string) *Console { return m.consoles[name] }

// QEMU is the emulator in use.
func (m *Machine) QEMU() *QEMU { return m.qemu }

// Accel names the accelerator in use: tcg or kvm.
func (m *Machine) Accel() string {
	name, _, _ := strings.Cut(m.accel[1], ",")
	return name
}

// socketPair returns our end as a connection and QEMU's as a file.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "qemu")
	conn, err := net.FileConn(ours)
	ours.Close() // FileConn has duplicated it
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, theirs, nil
}

// Start switches the machine on. It returns when QEMU runs the guest; [Machine.WaitReady] waits for the system.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return fmt.Errorf("start machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

func (m *Machine) start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != nil {
		select {
		case <-m.run.done:
			m.retire()
		default:
			return errors.New("it is running already")
		}
	}
	l := launch{accel: m.accel, dataDir: m.qemu.dataDirs, code: m.qemu.code, vars: m.vars, disks: m.disks, ports: m.ports, fds: map[string]int{}}
	conns := map[string]net.Conn{}
	var theirs []*os.File
	pair := func(name string) error {
		conn, file, err := socketPair()
		if err != nil {
			return err
		}
		conns[name] = conn
		l.fds[name] = 3 + len(theirs) // os/exec: entry i of ExtraFiles becomes descriptor 3+i
		theirs = append(theirs, file)
		return nil
	}
	closeTheirs := func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	closeAll := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	names := []string{"qmp"}
	for name := range m.consoles {
		names = append(names, name)
	}
	for i, n := range m.cfg.NICs {
		l.pcaps = append(l.pcaps, "")
		if n.Capture {
			l.pcaps[i] = pcapName(m.dir, i)
		}
		if n.Link != nil {
			names = append(names, fmt.Sprintf("nic%d", i))
		}
	}
	for _, name := range names {
		if err := pair(name); err != nil {
			closeTheirs()
			closeAll()
			return err
		}
	}
	args := m.cfg.args(l)
	r := &run{exited: make(chan struct{}), done: make(chan struct{}), qmp: newQMP(conns["qmp"])}
	// The machine outlives the call that starts it; Kill and Close end it.
	r.cmd = m.qemu.command(context.WithoutCancel(ctx), args...)
	r.cmd.ExtraFiles = theirs
	r.cmd.Stdout, r.cmd.Stderr = &r.stderr, &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		defer close(r.exited)
		// PR_SET_PDEATHSIG is about the thread that forked, so this one must live as long as QEMU does (prctl(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := r.cmd.Start()
		started <- err
		if err == nil {
			r.exit = r.cmd.Wait()
		}
	}()
	err := <-started
	closeTheirs() // else a QEMU that dies early would not show as the end of its sockets
	if err != nil {
		closeAll()
		return fmt.Errorf("run %s: %w", m.qemu.Path, err)
	}
	var readers sync.WaitGroup
	for name, conn := range conns {
		switch {
		case name == "qmp":
			readers.Go(func() {
				r.qmp.serve(func(e Event) {
					if e.Name == "RESET" {
						for _, c := range m.consoles {
							c.reset()
						}
					}
				})
			})
		case m.consoles[name] != nil:
			c := m.consoles[name]
			c.connect(conn)
			readers.Go(func() { c.serve(conn) })
		default:
			var card int
			fmt.Sscanf(name, "nic%d", &card) // made above
			link := m.cfg.NICs[card].Link
			readers.Go(func() {
				if err := link.serve(m.cfg.Name, conn); err != nil {
					fmt.Fprintf(&r.stderr, "link %s: %v\n", link.Name, err)
				}
			})
		}
	}
	go func() {
		<-r.exited
		// What QEMU wrote before it ended is still in the sockets; their end comes after it.
		readers.Wait()
		closeAll()
		close(r.done)
	}()
	m.run, m.noHVC = r, false
	bound, cancel := context.WithTimeout(ctx, Timeout(30*time.Second))
	defer cancel()
	err = r.qmp.run(bound, "qmp_capabilities", nil, nil)
	if err == nil {
		r.powerOn = time.Now()
		err = r.qmp.run(bound, "cont", nil, nil)
	}
	if err != nil {
		m.kill(r)
		<-r.done
		return fmt.Errorf("QEMU did not come up: %w; it said: %s; command line: %s", err, strings.TrimSpace(r.stderr.String()), shellLine(r.cmd.Args))
	}
	return nil
}

// startTries is how often StartTo starts a machine whose QEMU crashes. With several emulated processors on threads of
// their own, QEMU (10.0.13 at least) now and then aborts while the guest's kernel lays out the PCI devices: failed
// assertions in iotlb_to_section and msix_table_mmio_write. Nothing has run by then that could have been lost.
const startTries = 4

// StartTo switches the machine on and waits for a line on the serial console, an early one. If QEMU itself crashes
// before it, the machine is started again; the crash stays on record in what [Machine.Save] keeps.
func (m *Machine) StartTo(ctx context.Context, re *regexp.Regexp) (Line, error) {
	for try := 1; ; try++ {
		if err := m.Start(ctx); err != nil {
			return Line{}, err
		}
		line, err := m.Serial().WaitLine(ctx, re)
		if err == nil {
			return line, nil
		}
		if errors.Is(err, ErrConsoleClosed) {
			if crash := m.crash(); crash != nil {
				err = crash
				if try < startTries {
					continue
				}
			}
		}
		return Line{}, fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
}

// crash is why QEMU ended, if it was not asked to. It is for the moment after a console has closed.
func (m *Machine) crash() error {
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.done:
	case <-time.After(Timeout(10 * time.Second)): // it closes its sockets before it ends
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.exit == nil || r.killed {
		return nil
	}
	return fmt.Errorf("QEMU ended: %w: %s", r.exit, strings.TrimSpace(r.stderr.String()))
}

// retire keeps the events of a run that has ended. The caller holds the lock.
func (m *Machine) retire() {
	m.events = append(m.events, m.run.qmp.seen()...)
	if said := m.run.stderr.String(); said != "" {
		m.said = append(m.said, said)
	}
	m.run = nil
}

// kill ends QEMU's process group. The caller holds the lock.
func (m *Machine) kill(r *run) {
	select {
	case <-r.exited:
		return // its number may belong to another by now
	default:
	}
	r.killed = true
	syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) // an error means that it has gone just now
}

// current is the running start.
func (m *Machine) current() (*run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return nil, fmt.Errorf("machine %s: %w", m.cfg.Name, ErrNotRunning)
	}
	select {
	case <-m.run.done:
		return nil, fmt.Errorf("machine %s: %w", m.cfg.Name, ErrNotRunning)
	default:
		return m.run, nil
	}
}

// Running tells whether QEMU runs.
func (m *Machine) Running() bool {
	_, err := m.current()
	return err == nil
}

// PoweredOn is when the last start let the processor run.
func (m *Machine) PoweredOn() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return time.Time{}
	}
	return m.run.powerOn
}

// Kill cuts the power: QEMU is gone at once, what the guest had not written is lost. It returns when QEMU is reaped.
func (m *Machine) Kill() {
	m.mu.Lock()
	r := m.run
	if r != nil {
		m.kill(r)
	}
	m.mu.Unlock()
	if r != nil {
		<-r.done
	}
}

// Close cuts the power and removes the machine's folder.
func (m *Machine) Close() error {
	m.Kill()
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

// Wait waits until the guest has switched the machine off, or something else ended QEMU.
func (m *Machine) Wait(ctx context.Context) error {
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return fmt.Errorf("machine %s has not switched itself off (%w); its last lines:\n%s", m.cfg.Name, context.Cause(ctx), m.Serial().Tail(20))
	}
	if err := m.crash(); err != nil {
		return fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

// QMP runs one command of QEMU's machine protocol and decodes its answer into out, unless that is nil.
func (m *Machine) QMP(ctx context.Context, command string, args, out any) error {
	r, err := m.current()
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	return r.qmp.run(ctx, command, args, out)
}

// Events are QEMU's events so far, over all starts.
func (m *Machine) Events() []Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return append([]Event(nil), m.events...)
	}
	return append(append([]Event(nil), m.events...), m.run.qmp.seen()...)
}

// WaitEvent waits for an event of the present start; events that came before the call count.
func (m *Machine) WaitEvent(ctx context.Context, name string) (Event, error) {
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return Event{}, fmt.Errorf("wait for event %s: machine %s: %w", name, m.cfg.Name, ErrNotRunning)
	}
	return r.qmp.wait(ctx, name, 0, nil)
}

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error { return m.QMP(ctx, "system_reset", nil, nil) }

// PowerDown presses the power button (ACPI); whether the guest acts on it is the guest's affair.
func (m *Machine) PowerDown(ctx context.Context) error {
	return m.QMP(ctx, "system_powerdown", nil, nil)
}

// Unplug removes a device by its id (disk0, nic0-dev, ...) and waits until the guest has let go of it.
func (m *Machine) Unplug(ctx context.Context, id string) error {
	r, err := m.current()
	if err != nil {
		return fmt.Errorf("unplug %s: %w", id, err)
	}
	from := len(r.qmp.seen())
	if err := r.qmp.run(ctx, "device_del", map[string]string{"id": id}, nil); err != nil {
		return fmt.Errorf("unplug: %w", err)
	}
	_, err = r.qmp.wait(ctx, "DEVICE_DELETED", from, func(e Event) bool {
		var d struct {
			Device string `json:"device"`
		}
		return json.Unmarshal(e.Data, &d) == nil && d.Device == id
	})
	if err != nil {
		return fmt.Errorf("unplug %s: %w", id, err)
	}
	return nil
}

// Screenshot writes what the VGA screen shows to a PNG file.
func (m *Machine) Screenshot(ctx context.Context, path string) error {
	ppm := filepath.Join(m.dir, "screen.ppm")
	if err := m.QMP(ctx, "screendump", map[string]string{"filename": ppm}, nil); err != nil {
		return fmt.Errorf("screenshot: %w", err)
	}
	data, err := os.ReadFile(ppm)
	if err != nil {
		return fmt.Errorf("screenshot: %w", err)
	}
	img, err := decodePPM(data)
	if err != nil {
		return fmt.Errorf("screenshot: %w", err)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return fmt.Errorf("screenshot: %w", err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("screenshot: %w", err)
	}
	return nil
}

// decodePPM reads the binary PPM (P6, 8 bits) that screendump writes.
func decodePPM(data []byte) (image.Image, error) {
	var w, h, top int
	r := bytes.NewReader(data)
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &w, &h, &top); err != nil {
		return nil, fmt.Errorf("decode screen: %w", err)
	}
	if w <= 0 || h <= 0 || w > 16384 || h > 16384 || top != 255 || r.Len() < 3*w*h {
		return nil, fmt.Errorf("decode screen: %d by %d, maximum %d, %d bytes of pixels", w, h, top, r.Len())
	}
	img, px := image.NewRGBA(image.Rect(0, 0, w, h)), data[len(data)-r.Len():]
	for i := range w * h {
		copy(img.Pix[4*i:], px[3*i:3*i+3])
		img.Pix[4*i+3] = 0xff
	}
	return img, nil
}

// ReadyLine is what PID 1 prints when all services of a boot are ready; the number is seconds since the kernel's start.
var ReadyLine = regexp.MustCompile(`^weft: ready in ([0-9.]+) s`)

// StartLine is the first line of the initramfs.
var StartLine = regexp.MustCompile(`^weft: starting on Linux `)

// FailsafeLine is what PID 1 prints instead in failsafe mode.
var FailsafeLine = regexp.MustCompile(`^weft: failsafe in ([0-9.]+) s`)

var panicLine = regexp.MustCompile(`Kernel panic - not syncing`)

// Ready is when a system was ready.
type Ready struct {
	Guest time.Duration // since the kernel's start, by the guest's clock
	Wall  time.Duration // since power-on, by ours; 0 after a reboot of the guest's own
	Line  string
}

// WaitReady waits for the line that says so, and fails at once when the kernel panics or the machine ends.
func (m *Machine) WaitReady(ctx context.Context) (Ready, error) { return m.waitUp(ctx, ReadyLine) }

// WaitFailsafe is WaitReady for failsafe mode.
func (m *Machine) WaitFailsafe(ctx context.Context) (Ready, error) {
	return m.waitUp(ctx, FailsafeLine)
}

func (m *Machine) waitUp(ctx context.Context, re *regexp.Regexp) (Ready, error) {
	line, which, err := m.Serial().WaitAny(ctx, re, panicLine)
	if err != nil {
		if errors.Is(err, ErrConsoleClosed) {
			err = errors.Join(m.crash(), err)
		}
		return Ready{}, fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	if which == 1 {
		return Ready{}, fmt.Errorf("machine %s: the kernel panicked; its last lines:\n%s", m.cfg.Name, m.Serial().Tail(20))
	}
	seconds, err := time.ParseDuration(re.FindStringSubmatch(line.Text)[1] + "s")
	if err != nil {
		return Ready{}, fmt.Errorf("machine %s: line %q: %w", m.cfg.Name, line.Text, err)
	}
	return Ready{Guest: seconds, Wall: line.At.Sub(m.PoweredOn()), Line: line.Text}, nil
}

// Shell is the shell on the best console: hvc0, which carries nothing else, unless the machine has none or no shell was
// found there since the last start ([Machine.Run] looks); else the first serial port.
func (m *Machine) Shell() *Shell {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.shells["hvc0"]; s != nil && !m.noHVC {
		return s
	}
	return m.shells[m.Serial().name]
}

// ShellOn is the shell on a console of that name, nil if the machine has none.
func (m *Machine) ShellOn(name string) *Shell { return m.shells[name] }

// Run runs a command in the guest; see [Shell.Run]. A system without a shell on hvc0 (it lacks the driver, or its
// configuration names other consoles) is talked to on the serial port.
func (m *Machine) Run(ctx context.Context, cmd string) (Result, error) {
	if err := m.chooseShell(ctx); err != nil {
		return Result{}, fmt.Errorf("machine %s: run %q: %w", m.cfg.Name, cmd, err)
	}
	r, err := m.Shell().Run(ctx, cmd)
	if err != nil {
		return r, fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	return r, nil
}

// hvcPatience is how long a shell on hvc0 is sought.
const hvcPatience = 12 * time.Second

func (m *Machine) chooseShell(ctx context.Context) error {
	s := m.shells["hvc0"]
	if s == nil || m.Shell() != s {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	short, cancel := context.WithTimeout(ctx, Timeout(hvcPatience))
	defer cancel()
	err := s.attach(short)
	if err != nil && ctx.Err() == nil && errors.Is(err, ErrNoShell) {
		m.mu.Lock()
		m.noHVC = true
		m.mu.Unlock()
		return nil
	}
	return err
}

// Reboot has the guest reboot itself and returns when the processor has been reset; cmd is the command, empty = reboot.
func (m *Machine) Reboot(ctx context.Context, cmd string) error {
	if cmd == "" {
		cmd = "reboot"
	}
	r, err := m.current()
	if err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	from := len(r.qmp.seen())
	if err := m.chooseShell(ctx); err != nil {
		return fmt.Errorf("machine %s: reboot: %w", m.cfg.Name, err)
	}
	if err := m.Shell().Send(ctx, cmd); err != nil {
		return fmt.Errorf("machine %s: reboot: %w", m.cfg.Name, err)
	}
	if _, err := r.qmp.wait(ctx, "RESET", from, nil); err != nil {
		return fmt.Errorf("machine %s: %s: %w; its last lines:\n%s", m.cfg.Name, cmd, err, m.Serial().Tail(20))
	}
	return nil
}

// PowerOff has the guest switch itself off and returns when QEMU has ended.
func (m *Machine) PowerOff(ctx context.Context) error {
	err := m.chooseShell(ctx)
	if err == nil {
		err = m.Shell().Send(ctx, "poweroff")
	}
	if err != nil {
		return fmt.Errorf("machine %s: power off: %w", m.cfg.Name, err)
	}
	return m.Wait(ctx)
}

// shellLine is args as one line that a shell would take.
func shellLine(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+.,:/@%", r)
		}) {
			a = quote(a)
		}
		b.WriteString(a)
	}
	return b.String()
}

// lockedBuffer is a bytes.Buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
