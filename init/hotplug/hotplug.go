// Package hotplug reacts to devices: at boot it loads the modules that are
// listed and those that the present devices ask for, and from then on it follows
// the kernel's uevents, loads by MODALIAS and runs the scripts of
// /etc/hotplug.d/<subsystem>.
//
// Device nodes are the kernel's (devtmpfs) and so is firmware loading
// (/lib/firmware); of procd's /etc/hotplug.json rules only modules and scripts
// are left to do. Buttons (/etc/rc.button) need LEDE's own kernel module, which
// a Debian kernel does not have: not supported.
package hotplug

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"weft/init/stage1/kmod"
)

// Modules loads modules; *kmod.Set is the real one.
type Modules interface {
	Load(name, params string) error
	LoadAll(lines []string) error
	Needed(lines, devices []string) []string
	Drivers(devices []string) []string
}

// Options of a Hotplug. Root is put in front of all paths; tests use it.
type Options struct {
	Root string
	// Call runs a command with variables added to the environment, to its end.
	Call func(ctx context.Context, argv, env []string) int
	Open func() (Modules, error) // nil: those of the running kernel
	Log  *slog.Logger
}

// Hotplug is the state between boot and uevents.
type Hotplug struct {
	o Options

	mu      sync.Mutex
	modules Modules
	opened  bool
	tried   map[string]bool
	work    sync.WaitGroup
	calls   chan Event
}

// queueLength bounds the events that wait for their scripts.
const queueLength = 512

// New returns a Hotplug.
func New(o Options) *Hotplug {
	if o.Open == nil {
		o.Open = func() (Modules, error) { return kmod.Open("/") }
	}
	return &Hotplug{o: o, tried: map[string]bool{}, calls: make(chan Event, queueLength)}
}

// goSafe runs f in a goroutine that Run waits for. A panic is logged: it would
// end the whole program, which is PID 1.
func (h *Hotplug) goSafe(what string, f func()) {
	h.work.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				h.o.Log.Error("panic in PID 1; it goes on", "where", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
		}()
		f()
	})
}

// Prepare reads the lists of the kernel's modules ahead of Essential, which is
// worth a tenth of a second on a slow machine with a processor to spare.
func (h *Hotplug) Prepare() { h.set() }

// set opens the modules once. It is nil where there are none.
func (h *Hotplug) set() Modules {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.opened {
		h.opened = true
		m, err := h.o.Open()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			h.o.Log.Info("no modules for this kernel", "error", err)
		case err != nil:
			h.o.Log.Error("modules cannot be loaded", "error", err)
		default:
			h.modules = m
		}
	}
	return h.modules
}

// rounds bounds how often loading a module may bring up further devices: a bus
// behind a bus behind a bus.
const rounds = 8

// Essential loads what the settings of the network wait for: what
// /etc/modules-boot.d and /etc/modules.d list, except for drivers whose device is
// not there, and the drivers of present devices but for those that certainly
// lead to no network interface, such as graphics or sensors. It returns when
// those are loaded and have brought up no further device.
//
// Drivers of network devices are loaded one after the other in the order of
// their devices, all else in parallel, so that eth0 is the same at every boot.
func (h *Hotplug) Essential(ctx context.Context) error {
	lines, err := kmod.List(h.o.Root+"/etc/modules-boot.d", h.o.Root+"/etc/modules.d")
	if err != nil {
		h.o.Log.Warn("list of modules not read", "error", err)
	}
	return h.load(ctx, lines, func(alias string) bool { return !canWait(alias) })
}

// Coldplug loads the drivers of all present devices that have none yet.
func (h *Hotplug) Coldplug(ctx context.Context) error {
	return h.load(ctx, nil, func(string) bool { return true })
}

// load loads lines of module lists and the drivers of devices.
func (h *Hotplug) load(ctx context.Context, lines []string, want func(alias string) bool) error {
	set := h.set()
	if set == nil {
		return nil
	}
	for range rounds {
		devices, err := kmod.Devices(h.o.Root + "/sys")
		if err != nil {
			return err
		}
		devices = slices.DeleteFunc(devices, func(a string) bool { return !want(a) })
		inOrder, parallel := h.plan(set, lines, devices)
		if len(inOrder)+len(parallel) == 0 {
			return nil
		}
		var rest sync.WaitGroup
		rest.Add(1)
		h.goSafe("modules", func() {
			defer rest.Done()
			h.report(set.LoadAll(parallel))
		})
		for _, m := range inOrder {
			name, params, _ := strings.Cut(m, " ")
			h.report(set.Load(name, strings.TrimSpace(params)))
		}
		rest.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
		lines = nil
	}
	return nil
}

// report logs what did not load: a driver that refuses its device must not hold
// the boot up.
func (h *Hotplug) report(err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			h.report(e)
		}
		return
	}
	h.o.Log.Warn("module not loaded", "error", err)
}

// plan divides what is not loaded yet into network drivers, in the order of
// their devices, and the rest.
func (h *Hotplug) plan(set Modules, lines, devices []string) (inOrder, parallel []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var netDevices []string
	for _, d := range devices {
		if isNetwork(d) {
			netDevices = append(netDevices, d)
		}
	}
	params := map[string]string{}
	var wanted []string
	for _, l := range set.Needed(lines, devices) {
		name, p, _ := strings.Cut(l, " ")
		name = strings.ReplaceAll(name, "-", "_")
		params[name] = p
		wanted = append(wanted, name)
	}
	line := func(name string) string {
		if p := params[name]; p != "" {
			return name + " " + p
		}
		return name
	}
	for _, m := range set.Drivers(netDevices) {
		if !h.tried[m] {
			h.tried[m] = true
			inOrder = append(inOrder, line(m))
		}
	}
	for _, m := range append(wanted, set.Drivers(devices)...) {
		if !h.tried[m] {
			h.tried[m] = true
			parallel = append(parallel, line(m))
		}
	}
	return inOrder, parallel
}

// isNetwork tells by its modalias whether a device makes network interfaces: a
// PCI device of base class 02, or virtio device number 1
// (include/uapi/linux/virtio_ids.h).
func isNetwork(alias string) bool {
	switch {
	case strings.HasPrefix(alias, "pci:"):
		return strings.Contains(alias, "bc02sc")
	case strings.HasPrefix(alias, "virtio:"):
		return strings.HasPrefix(alias, "virtio:d00000001")
	}
	return false
}

// canWait tells by its modalias that a device leads to no network interface, not
// even through a bus behind it. What is not known here cannot wait.
func canWait(alias string) bool {
	bus, rest, _ := strings.Cut(alias, ":")
	switch bus {
	case "acpi", "input", "serio", "hid", "i2c", "wmi", "cpu", "pnp":
		return true
	case "virtio":
		return !isNetwork(alias)
	case "pci":
		// Base classes of the PCI ID list: storage (the root disk is there by
		// now), display, multimedia, memory, communication ports, system
		// peripherals, input, signal processing, accelerators; and of the serial
		// buses SMBus alone, since USB has network adapters.
		i := strings.LastIndex(rest, "bc")
		if i < 0 || len(rest) < i+8 {
			return false
		}
		switch rest[i+2 : i+4] {
		case "01", "03", "04", "05", "07", "08", "09", "11", "12":
			return true
		case "0C":
			return rest[i+4:i+8] == "sc05"
		}
	}
	return false
}

// Run follows uevents from conn until ctx ends.
func (h *Hotplug) Run(ctx context.Context, conn *Conn) error {
	defer h.work.Wait()
	h.goSafe("hotplug scripts", func() { h.callScripts(ctx) })
	return conn.read(ctx, func(e Event) { h.handle(e) }, func(err error) {
		h.o.Log.Warn("uevents lost: devices that came or went meanwhile are not noticed", "error", err)
	})
}

func (h *Hotplug) handle(e Event) {
	if alias := e.Get("MODALIAS"); alias != "" && e.Action == "add" {
		if set := h.set(); set != nil {
			for _, m := range set.Drivers([]string{alias}) {
				h.mu.Lock()
				seen := h.tried[m]
				h.tried[m] = true
				h.mu.Unlock()
				if !seen {
					// Not here: the kernel waits for user space while some
					// drivers start, and tells so by uevents.
					h.goSafe("module "+m, func() { h.report(set.Load(m, "")) })
				}
			}
		}
	}
	if sub := e.Get("SUBSYSTEM"); h.hasScripts(sub) {
		select {
		case h.calls <- e:
		default:
			h.o.Log.Warn("hotplug scripts not run: too many events wait", "subsystem", sub, "devpath", e.Devpath)
		}
	}
}

// hasScripts tells whether somebody waits for events of a subsystem; starting a
// shell for each of the hundreds of events of a boot would be slow.
func (h *Hotplug) hasScripts(subsystem string) bool {
	if subsystem == "" || strings.ContainsAny(subsystem, "/.") {
		return false
	}
	entries, err := os.ReadDir(filepath.Join(h.o.Root, "/etc/hotplug.d", subsystem))
	return err == nil && len(entries) > 0
}

// callScripts runs scripts in the order of the events, one at a time.
func (h *Hotplug) callScripts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-h.calls:
			sub := e.Get("SUBSYSTEM")
			if code := h.o.Call(ctx, []string{"/sbin/hotplug-call", sub}, e.environment()); code != 0 && ctx.Err() == nil {
				h.o.Log.Warn("hotplug scripts failed", "subsystem", sub, "action", e.Action, "devpath", e.Devpath, "code", code)
			}
		}
	}
}

// Replay asks the kernel to announce the present devices of those subsystems
// that have scripts, since they came before anybody listened.
func (h *Hotplug) Replay() {
	subs, err := os.ReadDir(filepath.Join(h.o.Root, "/etc/hotplug.d"))
	if err != nil {
		return
	}
	for _, s := range subs {
		if !h.hasScripts(s.Name()) {
			continue
		}
		for _, pattern := range []string{"/sys/class/" + s.Name() + "/*/uevent", "/sys/bus/" + s.Name() + "/devices/*/uevent"} {
			files, err := filepath.Glob(h.o.Root + pattern)
			if err != nil {
				continue
			}
			slices.Sort(files)
			for _, f := range files {
				if err := os.WriteFile(f, []byte("add"), 0); err != nil {
					h.o.Log.Debug("device not announced again", "error", err)
				}
			}
		}
	}
}

// Conn is the kernel's uevent socket.
type Conn struct{ f *os.File }

// Listen opens the socket; from here on no event is missed.
func Listen() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open the uevent socket: %w", err)
	}
	// A boot brings hundreds of events at once; 1 MiB is what udev starts from
	// on small systems, and the kernel charges only what is queued.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20); err != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	}
	// Group 1 is the kernel's own; 2 would be udevd's.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind the uevent socket: %w", err)
	}
	return &Conn{f: os.NewFile(uintptr(fd), "uevent")}, nil
}

// read hands events over until ctx ends.
func (c *Conn) read(ctx context.Context, f func(Event), lost func(error)) error {
	defer c.f.Close()
	stop := context.AfterFunc(ctx, func() { c.f.Close() })
	defer stop()
	raw, err := c.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("read uevents: %w", err)
	}
	buf := make([]byte, 16<<10) // the kernel's limit is 2 KiB of variables (include/linux/kobject.h)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read uevents: %w", err)
		case rerr == unix.ENOBUFS:
			lost(rerr)
			continue
		case rerr == unix.EINTR:
			continue
		case rerr != nil:
			return fmt.Errorf("read uevents: %w", rerr)
		}
		// Only the kernel has port 0; any process with the right may send here.
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue
		}
		if e, ok := Parse(buf[:n]); ok {
			f(e)
		}
	}
}

// Event is one uevent.
type Event struct {
	Action, Devpath string
	vars            []string // KEY=VALUE
}

// Parse reads "action@devpath" and the variables behind it, each ended by a NUL
// (lib/kobject_uevent.c). Variables with names that no environment can carry are
// dropped.
func Parse(b []byte) (Event, bool) {
	parts := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	action, path, ok := strings.Cut(parts[0], "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return Event{}, false
	}
	e := Event{Action: action, Devpath: path}
	for _, v := range parts[1:] {
		if k, _, ok := strings.Cut(v, "="); ok && isName(k) {
			e.vars = append(e.vars, v)
		}
	}
	return e, true
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// Get returns a variable, "" if there is none of that name.
func (e Event) Get(name string) string {
	for _, v := range e.vars {
		if k, val, _ := strings.Cut(v, "="); k == name {
			return val
		}
	}
	return ""
}

// forbidden are variables that change how programs run, not what they are told.
var forbidden = map[string]bool{"PATH": true, "HOME": true, "IFS": true, "ENV": true}

// environment is what scripts get: the kernel's variables, and DEVICENAME as
// LEDE adds it.
func (e Event) environment() []string {
	var env []string
	has := map[string]bool{}
	for _, v := range e.vars {
		k, _, _ := strings.Cut(v, "=")
		if forbidden[k] || strings.HasPrefix(k, "LD_") || has[k] {
			continue
		}
		has[k] = true
		env = append(env, v)
	}
	for k, v := range map[string]string{"ACTION": e.Action, "DEVPATH": e.Devpath, "DEVICENAME": filepath.Base(e.Devpath)} {
		if !has[k] {
			env = append(env, k+"="+v)
		}
	}
	slices.Sort(env)
	return env
}
