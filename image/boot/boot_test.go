package boot

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/boards"
	"weft/image/rootfs/kmod"
)

func TestConfig(t *testing.T) {
	m := Menu{Title: "Weft", PartUUID: "3f5ba621-02", Cmdline: "console=tty1 console=ttyS0,115200n8", GRUB: boards.GRUB{Timeout: 1, SerialSpeed: 115200}}
	cfg := string(m.Config())
	if header := "serial --unit=0 --speed=115200 --word=8 --parity=no --stop=1 --rtscts=off\nterminal_input console serial; terminal_output console serial\n\nset default=\"0\"\nset timeout=\"1\"\n"; !strings.HasPrefix(cfg, header) {
		t.Errorf("the header is not LEDE's:\n%s", cfg)
	}
	var titles []string
	for line := range strings.Lines(cfg) {
		if title, ok := strings.CutPrefix(line, "menuentry "); ok {
			titles = append(titles, strings.TrimSuffix(title, " {\n"))
		}
	}
	if want := []string{`"Weft"`, `"Weft (failsafe)"`, `"Weft (other slot)"`, `"Weft (rescue system)"`}; !slices.Equal(titles, want) {
		t.Errorf("entries %v, want %v", titles, want)
	}
	for _, line := range []string{
		"linux /boot/vmlinuz $weft_first root=PARTUUID=3f5ba621-02 rootwait console=tty1 console=ttyS0,115200n8 weft.slot=a $weft_last;",
		"linux /boot/b/vmlinuz $weft_first root=PARTUUID=3f5ba621-02/PARTNROFF=1 rootwait console=tty1 console=ttyS0,115200n8 weft.slot=b $weft_last;",
	} {
		if !strings.Contains(cfg, line) {
			t.Errorf("grub.cfg lacks %q", line)
		}
	}
	// What a stock upgrade does to every PARTUUID= (lede-compat 1.4) leaves slot b
	// at the partition behind slot a's.
	const guid = "8b5f7ad0-1c5e-4c4b-9d3a-000000000002"
	after := regexp.MustCompile(`(?i)(PARTUUID=)[a-f0-9-]+`).ReplaceAllString(cfg, "${1}"+guid)
	if strings.Contains(after, "3f5ba621") || !strings.Contains(after, "root=PARTUUID="+guid+"/PARTNROFF=1 rootwait") || !strings.Contains(after, "root=PARTUUID="+guid+" rootwait") {
		t.Errorf("after a stock upgrade:\n%s", after)
	}
}

// TestFreshEnv fixes the bytes that init/slot's TestBlockForm fixes as well: the
// builder must not depend on the device's packages.
func TestFreshEnv(t *testing.T) {
	const text = "# GRUB Environment Block\nweft_seq=1\nweft_slot=a\nweft_trial=-\nweft_given=0\nweft_boot=a\nweft_bad=b\nweft_check=1/a/-/0/a\nweft_last=-\nweft_crc=5839dffe\nweft_tries=1.0.1\n"
	if got, want := string(FreshEnv()), text+strings.Repeat("#", 1024-len(text)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestRescue: the archive begins with the squashfs, where stage 1 looks for it, and
// the tree has the program and the drivers.
func TestRescue(t *testing.T) {
	var b bytes.Buffer
	if err := WrapRescue(&b, []byte("hsqs and more")); err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(b.Bytes(), []byte("hsqs")); at != 128 || !bytes.Contains(b.Bytes()[:128], []byte("rescue.squashfs\x00")) {
		t.Errorf("the squashfs lies at byte %d of\n%q", at, b.Bytes())
	}
	dir := t.TempDir()
	for _, name := range []string{"program", "virtio_net.ko"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := Rescue{Program: filepath.Join(dir, "program"), Modules: &kmod.Set{Release: "6.1", Modules: []kmod.Module{{Name: "virtio_net", Path: "virtio_net.ko"}}}, Dir: dir}
	var one, two bytes.Buffer
	if err := errors.Join(r.WriteTar(&one), r.WriteTar(&two)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two runs give different bytes")
	}
	got := map[string]string{}
	for t2 := tar.NewReader(&one); ; {
		h, err := t2.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(t2)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(text)
		if h.Name == RescueProgram && h.Mode != 0o755 {
			t.Errorf("mode of the program: %o", h.Mode)
		}
	}
	if got["rescue"] != "program" || got["lib/modules/6.1/virtio_net.ko"] != "virtio_net.ko" {
		t.Errorf("%q", got)
	}
	r.Program = filepath.Join(dir, "missing")
	if err := r.WriteTar(io.Discard); err == nil {
		t.Error("a rescue system without its program was made")
	}
}

func TestIsNetwork(t *testing.T) {
	for path, want := range map[string]bool{"kernel/drivers/net/ethernet/intel/igb/igb.ko": true, "kernel/net/packet/af_packet.ko": true,
		"kernel/drivers/net/usb/qmi_wwan.ko": false, "kernel/fs/ext4/ext4.ko": false} {
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if got := IsNetwork(kmod.Module{Name: name, Path: path}); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	for p, text := range map[string]string{"weft": "program", "kernel/a.ko": "module a", "kernel/b.ko": "module b"} {
		f := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set := &kmod.Set{Release: "6.1", Modules: []kmod.Module{{Name: "a", Path: "kernel/a.ko", Depends: []string{"b"}}, {Name: "b", Path: "kernel/b.ko"}}}
	i := Initramfs{Init: filepath.Join(dir, "weft"), Modules: set, Dir: dir, Load: set.Order([]string{"a"})}
	var one, two bytes.Buffer
	if err := i.Write(&one); err != nil {
		t.Fatal(err)
	}
	if err := i.Write(&two); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two runs give different bytes")
	}
	entries, err := List(&one)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
		data, err := e.Data()
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == "init" && (string(data) != "program" || e.Mode != 0o100755) {
			t.Errorf("/init is %q, mode %o", data, e.Mode)
		}
		if e.Name == ModuleList && string(data) != "b\na\n" {
			t.Errorf("module list %q", data)
		}
	}
	want := []string{"dev", "dev/console", "etc", "etc/weft", "etc/weft/modules", "init", "lib", "lib/modules", "lib/modules/6.1", "lib/modules/6.1/kernel",
		"lib/modules/6.1/kernel/a.ko", "lib/modules/6.1/kernel/b.ko", "lib/modules/6.1/modules.alias", "lib/modules/6.1/modules.builtin", "lib/modules/6.1/modules.dep",
		"lib/modules/6.1/modules.softdep", "proc", "root", "sys", "tmp"}
	if !slices.Equal(names, want) {
		t.Errorf("entries\n%v\nwant\n%v", names, want)
	}
	i.Init = filepath.Join(dir, "missing")
	if err := i.Write(&two); err == nil {
		t.Error("an archive without its program was made")
	}
}

func FuzzList(f *testing.F) {
	var b bytes.Buffer
	i := Initramfs{Init: os.DevNull, Modules: &kmod.Set{Release: "x"}}
	if err := i.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := List(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, e := range entries {
			if d, err := e.Data(); err == nil && int64(len(d)) != e.Size {
				t.Errorf("%s: %d bytes, said %d", e.Name, len(d), e.Size)
			}
		}
	})
}
