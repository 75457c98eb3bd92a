package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// QEMU is an emulator with its firmware.
type QEMU struct {
	Source  string // "pinned" or "machine"
	Path    string // of the program, for messages
	Version string // "7.2.22"

	command  func(ctx context.Context, args ...string) *exec.Cmd
	dataDirs []string // for -L; empty = those built in
	code     string   // OVMF, empty = not found
	vars     string
}

// FindQEMU finds the emulator for an architecture (GOARCH name): the one WEFT_QEMU names, else the pinned one, else the
// machine's. The answer is kept for the life of the program.
func FindQEMU(ctx context.Context, goarch string) (*QEMU, error) {
	found.Lock()
	defer found.Unlock()
	if q := found.m[goarch]; q != nil {
		return q, nil
	}
	a, ok := arches[goarch]
	if !ok {
		return nil, fmt.Errorf("no emulator is known for architecture %q", goarch)
	}
	q, err := findQEMU(ctx, a)
	if err != nil {
		return nil, err
	}
	found.m[goarch] = q
	return q, nil
}

var found = struct {
	sync.Mutex
	m map[string]*QEMU
}{m: map[string]*QEMU{}}

func findQEMU(ctx context.Context, a arch) (*QEMU, error) {
	if path := os.Getenv("WEFT_QEMU"); path != "" {
		q := onMachine(path)
		if err := q.probeVersion(ctx); err != nil {
			return nil, fmt.Errorf("WEFT_QEMU: %w", err)
		}
		return q, nil
	}
	q, err := pinnedQEMU(ctx, a)
	if err == nil {
		if err = q.probeVersion(ctx); err == nil {
			return q, nil
		}
	}
	pinnedErr := fmt.Errorf("pinned %s: %w", a.program, err)
	path, err := exec.LookPath(a.program)
	if err != nil {
		return nil, fmt.Errorf("find QEMU: %w; none on this machine either (%w): connect to a Debian mirror once, or install %s", pinnedErr, err, a.program)
	}
	q = onMachine(path)
	if err := q.probeVersion(ctx); err != nil {
		return nil, fmt.Errorf("find QEMU: %w; %w", pinnedErr, err)
	}
	return q, nil
}

// onMachine is the QEMU at path with the firmware where distributions put it.
func onMachine(path string) *QEMU {
	q := &QEMU{Source: "machine", Path: path, command: func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, path, args...)
	}}
	q.findOVMF("/")
	return q
}

// ovmfFiles are the places of OVMF's code and variable store below a root.
var ovmfFiles = [][2]string{
	{"usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"},                   // Debian
	{"usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"},                         // older Debian
	{"usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"},               // Fedora
	{"usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"},           // Arch
	{"usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"},         // openSUSE
	{"usr/local/share/qemu/edk2-x86_64-code.fd", "usr/local/share/qemu/edk2-i386-vars.fd"}, // QEMU's own copy
	{"opt/homebrew/share/qemu/edk2-x86_64-code.fd", "opt/homebrew/share/qemu/edk2-i386-vars.fd"},
}

func (q *QEMU) findOVMF(root string) {
	for _, f := range ovmfFiles {
		code, vars := filepath.Join(root, f[0]), filepath.Join(root, f[1])
		if readable(code) && readable(vars) {
			q.code, q.vars = code, vars
			return
		}
	}
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

var versionLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`version ([0-9]+)\.([0-9]+)[0-9.]*`) })

// probeVersion runs QEMU once: it must start, and know the stream netdev (7.2).
func (q *QEMU) probeVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout(30*time.Second))
	defer cancel()
	out, err := q.command(ctx, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s -version: %w: %s", q.Path, err, strings.TrimSpace(string(out)))
	}
	m := versionLine().FindStringSubmatch(string(out))
	if m == nil {
		return fmt.Errorf("run %s -version: no version in %q", q.Path, out)
	}
	q.Version = strings.TrimPrefix(m[0], "version ")
	var major, minor int
	fmt.Sscan(m[1], &major) // digits by the expression
	fmt.Sscan(m[2], &minor)
	if major < 7 || major == 7 && minor < 2 {
		return fmt.Errorf("%s is version %s; 7.2 or newer is needed (stream netdev)", q.Path, q.Version)
	}
	return nil
}

// tcg is emulation: works everywhere, is the same everywhere. tcgOne is tcg on one thread.
var (
	tcg    = []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
	tcgOne = []string{"-accel", "tcg,thread=single", "-cpu", "max"}
)

// Accelerator returns the arguments that choose accelerator and processor. want is tcg, kvm (an error if the probe
// fails) or auto (KVM if the probe prints, else emulation). The probe boots a boot sector that prints on the serial
// port; its answer is kept in the user's cache until the host or QEMU changes.
func (q *QEMU) Accelerator(ctx context.Context, want string) ([]string, error) {
	if want == "tcg" {
		return tcg, nil
	}
	err := q.probeKVM(ctx)
	if err == nil {
		return []string{"-accel", "kvm", "-cpu", "host"}, nil
	}
	if want == "kvm" {
		return nil, fmt.Errorf("KVM does not work here: %w; use WEFT_ACCEL=tcg", err)
	}
	return tcg, nil
}

// ProbeSector is the smallest disk that boots: it prints "weft probe" on the first serial port and halts. It is a boot
// sector in 16-bit code, padded to 1 MiB.
func ProbeSector() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x15, 0x7c, // mov si, 0x7c15 (the text)
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xac,       // again: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz halt
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp again
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	s := make([]byte, 1<<20) // as large as a disk needs to be for every BIOS
	copy(s, append(code, "weft probe\r\n"...))
	s[510], s[511] = 0x55, 0xaa
	return s
}

// probeBound is ten times what the probe takes under emulation on a slow machine.
const probeBound = 20 * time.Second

func (q *QEMU) probeKVM(ctx context.Context) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	f.Close()
	type answer struct {
		Key    string `json:"key"`
		Reason string `json:"reason"` // empty = it printed
	}
	key, cache := q.probeKey(), probeCache()
	if data, err := os.ReadFile(cache); err == nil {
		var a answer
		if json.Unmarshal(data, &a) == nil && a.Key == key {
			if a.Reason != "" {
				return errors.New(a.Reason)
			}
			return nil
		}
	}
	err = q.probeBoot(ctx, []string{"-accel", "kvm", "-cpu", "host"})
	if ctx.Err() != nil {
		return err // says nothing about KVM
	}
	a := answer{Key: key}
	if err != nil {
		a.Reason = err.Error()
	}
	if data, jerr := json.Marshal(a); jerr == nil && cache != "" {
		// A cache that cannot be written costs the next start another probe, no more.
		if os.MkdirAll(filepath.Dir(cache), 0o755) == nil {
			os.WriteFile(cache, data, 0o644)
		}
	}
	return err
}

// probeKey changes with everything that the answer depends on.
func (q *QEMU) probeKey() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // missing = one key for all boots
	return strings.Join([]string{strings.TrimSpace(string(boot)), q.Path, q.Version}, " ")
}

func probeCache() string {
	dir := os.Getenv("WEFT_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(base, "weft")
	}
	return filepath.Join(dir, "kvm-probe.json")
}

// probeBoot starts a machine with the given accelerator and waits for its boot sector to print.
func (q *QEMU) probeBoot(ctx context.Context, accel []string) error {
	dir, err := os.MkdirTemp("", "weft-probe-")
	if err != nil {
		return fmt.Errorf("probe boot: %w", err)
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "probe.img")
	if err := os.WriteFile(disk, ProbeSector(), 0o600); err != nil {
		return fmt.Errorf("probe boot: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout(probeBound))
	defer cancel()
	m, err := newMachine(ctx, q, accel, Config{Name: "probe", Disks: []Disk{{Image: disk}}, Dir: dir, CPUs: 1, Memory: 64})
	if err != nil {
		return fmt.Errorf("probe boot: %w", err)
	}
	defer m.Close()
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("probe boot: %w", err)
	}
	if _, err := m.Serial().WaitLine(ctx, regexp.MustCompile(`^weft probe$`)); err != nil {
		return fmt.Errorf("probe boot: %w", err)
	}
	return nil
}
