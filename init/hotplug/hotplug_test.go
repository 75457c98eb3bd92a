package hotplug

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	nicA  = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"
	nicB  = "pci:v000010ECd00008168sv0sd0bc02sc00i00"
	disk  = "pci:v00001AF4d00001001sv0sd0bc01sc00i00"
	usb   = "usb:v0424p7800"
	vport = "virtio:d00000003v00001AF4"
)

// fakeModules knows drivers by modalias, and brings up devices when loaded.
type fakeModules struct {
	drivers map[string]string
	brings  map[string]func()
	mu      sync.Mutex
	loaded  []string
	came    chan string
}

func (f *fakeModules) Load(name, params string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded = append(f.loaded, strings.TrimSpace(name+" "+params))
	if b := f.brings[name]; b != nil {
		b()
	}
	if f.came != nil {
		f.came <- name
	}
	if name == "broken" {
		return errors.New("no such device")
	}
	return nil
}

func (f *fakeModules) LoadAll(lines []string) error {
	var errs []error
	for _, l := range lines {
		name, params, _ := strings.Cut(l, " ")
		errs = append(errs, f.Load(name, params))
	}
	return errors.Join(errs...)
}

func (f *fakeModules) Needed(lines, devices []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l == "absent" })
}

func (f *fakeModules) Drivers(devices []string) []string {
	var out []string
	for _, d := range devices {
		if m := f.drivers[d]; m != "" && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

func addDevice(t *testing.T, root, bus, name, alias string) {
	t.Helper()
	dir := filepath.Join(root, "sys/bus", bus, "devices", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(alias+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestColdplug(t *testing.T) {
	root := t.TempDir()
	addDevice(t, root, "pci", "0000:00:01.0", nicB)
	addDevice(t, root, "pci", "0000:00:02.0", disk)
	addDevice(t, root, "pci", "0000:00:03.0", nicA)
	addDevice(t, root, "platform", "soc", "of:NsocT(null)Cvendor,mystery")
	for file, text := range map[string]string{"etc/modules-boot.d/1": "broken\n", "etc/modules.d/2": "r8169 debug=3\nabsent\nnf-tables\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755), os.WriteFile(filepath.Join(root, file), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	f := &fakeModules{drivers: map[string]string{nicA: "e1000", nicB: "r8169", disk: "virtio_pci", vport: "virtio_console", "of:NsocT(null)Cvendor,mystery": "mystery"}}
	f.brings = map[string]func(){"virtio_pci": func() { addDevice(t, root, "virtio", "virtio0", vport) }}
	var logged strings.Builder
	h := New(Options{Root: root, Open: func() (Modules, error) { return f, nil }, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	check := func(wantNICs, wantOthers string) {
		t.Helper()
		var nics, others []string
		for _, m := range f.loaded {
			if m == "e1000" || strings.HasPrefix(m, "r8169") {
				nics = append(nics, m)
			} else {
				others = append(others, m)
			}
		}
		f.loaded = nil
		if got := strings.Join(nics, ", "); got != wantNICs {
			t.Errorf("network drivers %q, want %q", got, wantNICs)
		}
		if got := strings.Join(others, ", "); got != wantOthers {
			t.Errorf("others %q, want %q", got, wantOthers)
		}
	}
	if err := h.Essential(t.Context()); err != nil {
		t.Fatal(err)
	}
	// In the order of the slots, with parameters; the rest at the same time.
	check("r8169 debug=3, e1000", "broken, nf_tables, mystery")
	if err := h.Coldplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("", "virtio_pci, virtio_console")
	if !strings.Contains(logged.String(), "no such device") {
		t.Errorf("a module that does not load is not logged: %s", logged.String())
	}
	if err := h.Coldplug(t.Context()); err != nil || len(f.loaded) != 0 {
		t.Errorf("a second time loads %q, %v", f.loaded, err)
	}
}

func TestCanWait(t *testing.T) {
	for alias, want := range map[string]bool{
		nicA: false, disk: true, usb: false, vport: true, "virtio:d00000001v00001AF4": false,
		"acpi:PNP0A08:": true, "of:NethT(null)Cx": false, "platform:x": false, "": false, "pci:": false, "pci:bc": false,
		"pci:v00008086d00002930sv00001AF4sd00001100bc0Csc05i00": true,  // SMBus
		"pci:v00008086d000031A8sv00001849sd000031A8bc0Csc03i30": false, // xHCI
		"pci:v00008086d000025ABsv00001AF4sd00001100bc08sc80i00": true,  // watchdog
		"pci:v00001B36d0000000Csv00000000sd00000000bc06sc04i00": false, // bridge
	} {
		if got := canWait(alias); got != want {
			t.Errorf("canWait(%q) = %v", alias, got)
		}
	}
}

func TestWithoutModules(t *testing.T) {
	for _, err := range []error{fs.ErrNotExist, errors.New("damaged")} {
		h := New(Options{Root: t.TempDir(), Open: func() (Modules, error) { return nil, err }, Log: quiet()})
		if err := errors.Join(h.Essential(t.Context()), h.Coldplug(t.Context())); err != nil {
			t.Errorf("a kernel without modules must boot: %v", err)
		}
	}
}

func event(t *testing.T, s string) Event {
	t.Helper()
	e, ok := Parse([]byte(strings.ReplaceAll(s, "|", "\x00")))
	if !ok {
		t.Fatalf("not parsed: %q", s)
	}
	return e
}

func TestEvents(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "etc/hotplug.d/net"), 0o755), os.MkdirAll(filepath.Join(root, "etc/hotplug.d/usb"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/hotplug.d/net/10-x"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	f := &fakeModules{drivers: map[string]string{usb: "lan78xx"}, came: make(chan string, 10)}
	type call struct{ argv, env string }
	calls := make(chan call, 10)
	h := New(Options{Root: root, Log: quiet(), Open: func() (Modules, error) { return f, nil },
		Call: func(_ context.Context, argv, env []string) int {
			calls <- call{strings.Join(argv, " "), strings.Join(env, " ")}
			return 0
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.callScripts(ctx) }()
	h.handle(event(t, "add@/devices/usb1/1-1|ACTION=add|DEVPATH=/devices/usb1/1-1|SUBSYSTEM=usb|MODALIAS="+usb))
	h.handle(event(t, "add@/devices/usb1/1-1|SUBSYSTEM=usb|MODALIAS="+usb))
	h.handle(event(t, "remove@/devices/usb1/1-2|SUBSYSTEM=usb|MODALIAS="+usb))
	h.handle(event(t, "add@/devices/net/eth1|ACTION=add|DEVPATH=/devices/net/eth1|SUBSYSTEM=net|INTERFACE=eth1|PATH=/evil|SEQNUM=7"))
	h.work.Wait()
	if len(f.loaded) != 1 || f.loaded[0] != "lan78xx" {
		t.Errorf("loaded %q", f.loaded)
	}
	select {
	case c := <-calls:
		if c.argv != "/sbin/hotplug-call net" || c.env != "ACTION=add DEVICENAME=eth1 DEVPATH=/devices/net/eth1 INTERFACE=eth1 SEQNUM=7 SUBSYSTEM=net" {
			t.Errorf("called %+v", c)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no script was called")
	}
	cancel()
	<-done
	if len(calls) != 0 {
		t.Error("scripts called for a subsystem without scripts")
	}
}

func TestReplay(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{"etc/hotplug.d/net/10-x", "sys/class/net/eth0/uevent", "sys/class/tty/ttyS0/uevent"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755), os.WriteFile(filepath.Join(root, f), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	New(Options{Root: root, Log: quiet()}).Replay()
	for f, want := range map[string]string{"net/eth0": "add", "tty/ttyS0": ""} {
		if b, _ := os.ReadFile(filepath.Join(root, "sys/class", f, "uevent")); string(b) != want {
			t.Errorf("%s: %q, want %q", f, b, want)
		}
	}
}

func TestParse(t *testing.T) {
	e := event(t, "change@/devices/x|ACTION=change|A=1=2|lower=x|=y|NOVALUE|")
	if e.Action != "change" || e.Devpath != "/devices/x" || e.Get("A") != "1=2" || e.Get("lower") != "" || len(e.vars) != 2 {
		t.Errorf("%+v", e)
	}
	for _, s := range []string{"", "add", "@/x", "add@x", "libudev\x00\xfe\xed"} {
		if e, ok := Parse([]byte(s)); ok {
			t.Errorf("%q: %+v", s, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("add@/devices/x\x00ACTION=add\x00MODALIAS=usb:v1\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := Parse(b)
		if !ok {
			return
		}
		for _, v := range e.environment() {
			if k, _, ok := strings.Cut(v, "="); !ok || !isName(k) || strings.Contains(v, "\x00") || k == "PATH" {
				t.Errorf("variable %q", v)
			}
		}
	})
}

// TestRun listens to this machine's kernel for as long as it takes to stop.
func TestRun(t *testing.T) {
	conn, err := Listen()
	if err != nil {
		t.Skipf("needs a uevent socket: %v", err)
	}
	h := New(Options{Root: t.TempDir(), Log: quiet(), Open: func() (Modules, error) { return nil, fs.ErrNotExist }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, conn) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
