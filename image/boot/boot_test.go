package boot

import (
	"bytes"
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
