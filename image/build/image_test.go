package build

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"weft/boards"
	"weft/image/boot"
	"weft/image/disk"
	"weft/image/firmware"
	"weft/image/pins"
	"weft/image/squash"
)

// fixture writes a small source tree.
func fixture(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for p, text := range map[string]string{
		"buildroot-overlay/rootfs/etc/config/network":                 "config interface 'lan'\n",
		"buildroot-overlay/rootfs/etc/init.d/network":                 "#!/bin/sh\nservice network \"$@\"\n",
		"buildroot-overlay/rootfs/usr/lib/weft/services/network.toml": "start = 20\n",
		"buildroot-overlay/roles/router/role.toml":                    "description = \"test\"\npackages = [\"bridge\"]\n",
		"init/applets.txt": "/sbin/init\n/bin/sh host\n",
		"version":          "r7-0123456789\n",
		"version.date":     "1700000000\n",
	} {
		f := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tinyProgram is a Go program with symbols, built once.
var tinyProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weft-tiny-")
	if err != nil {
		return "", err
	}
	tinyDir = dir
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() { println(\"weft\") }\n"), 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "weft"), src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tiny program: %w: %s", err, out)
	}
	return filepath.Join(dir, "weft"), nil
})

var tinyDir, cacheDir string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, d := range []string{tinyDir, cacheDir} {
		if d != "" {
			_ = os.RemoveAll(d)
		}
	}
	os.Exit(code)
}

// ownCache is a cache of these tests alone, but for what is pinned: that is the
// user's, so that it is fetched and unpacked but once.
var ownCache = sync.OnceValues(func() (string, error) {
	store, err := pins.Open(pins.Options{})
	if err != nil {
		return "", err
	}
	if cacheDir, err = os.MkdirTemp("", "weft-cache-"); err != nil {
		return "", err
	}
	for _, d := range []string{"deb", "tree", "tool"} {
		if err := os.MkdirAll(filepath.Join(store.Dir(), d), 0o755); err != nil {
			return "", err
		}
		if err := os.Symlink(filepath.Join(store.Dir(), d), filepath.Join(cacheDir, d)); err != nil {
			return "", err
		}
	}
	return cacheDir, nil
})

// config builds the fixture with a small device program. Downloads come from
// the user's cache.
func config(t *testing.T) Config {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "")
	exe, err := tinyProgram()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := ownCache()
	if err != nil {
		t.Fatal(err)
	}
	return Config{Source: fixture(t), Board: "x86-64", Role: "router", Program: exe, CacheDir: cache, Log: slog.New(slog.DiscardHandler)}
}

// must builds, or skips where the pinned packages are out of reach.
func must(t *testing.T, cfg Config) (*Builder, *Result) {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.Build(t.Context())
	if errors.Is(err, pins.ErrUnreachable) {
		t.Skipf("the pinned packages are not in the cache and no mirror answers: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, res
}

// raw returns the image inside an .img.gz, as a file, and its trailers.
func raw(t *testing.T, file string) (string, *firmware.File) {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var packed bytes.Buffer
	trailers, err := firmware.Split(&packed, in)
	if err != nil {
		t.Fatal(err)
	}
	if h := packed.Bytes()[:10]; h[3] != 0 || binary.LittleEndian.Uint32(h[4:]) != 0 {
		t.Errorf("the gzip header has flags %x and time %x, want neither name nor time", h[3], h[4:8])
	}
	z, err := gzip.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	out, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, z); err != nil {
		t.Fatal(err)
	}
	if packed.Len() != 0 {
		t.Errorf("%d bytes behind the first gzip member", packed.Len())
	}
	return out.Name(), trailers
}

// judge runs a pinned tool and returns what it says.
func (b *Builder) judge(t *testing.T, name string, args ...string) string {
	t.Helper()
	tool, err := b.store.Tool(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := tool.Command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func cut(t *testing.T, file string, p disk.Partition) string {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out := filepath.Join(t.TempDir(), fmt.Sprint("p", p.Number))
	err = writeTo(out, func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(in, p.Start*disk.SectorSize, p.Size()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestImages builds everything and lets foreign programs judge it.
func TestImages(t *testing.T) {
	cfg := config(t)
	b, res := must(t, cfg)
	var names []string
	for _, o := range res.Outputs {
		names = append(names, o.Name)
	}
	want := []string{"profiles.json", "weft-0.1.0-x86-64-generic-initramfs.cpio.zst", "weft-0.1.0-x86-64-generic-kernel.bin",
		"weft-0.1.0-x86-64-generic-squashfs-combined-efi.img.gz", "weft-0.1.0-x86-64-generic-squashfs-combined.img.gz",
		"weft-0.1.0-x86-64-generic-squashfs-rootfs.img.gz", "weft-0.1.0-x86-64-generic.bom.cdx.json", "weft-0.1.0-x86-64-generic.manifest", "sha256sums"}
	if !slices.Equal(names, want) {
		t.Errorf("outputs\n%v\nwant\n%v", names, want)
	}
	if dir := filepath.Join(cfg.Source, "bin/targets/x86/64"); res.Dir != dir {
		t.Errorf("outputs are in %s, want %s", res.Dir, dir)
	}
	for _, im := range b.board.Images {
		t.Run(im.Type, func(t *testing.T) { testImage(t, b, res, im) })
	}
	t.Run("rootfs", func(t *testing.T) {
		file, trailers := raw(t, res.Path("rootfs"))
		if len(trailers.Chunks) != 1 {
			t.Errorf("%d trailers, want the metadata", len(trailers.Chunks))
		}
		testRootfs(t, b, file)
	})
	t.Run("initramfs", func(t *testing.T) { testInitramfs(t, b, res.Path("initramfs")) })
	t.Run("lists", func(t *testing.T) { testLists(t, b, res) })
	t.Run("nothing changed", func(t *testing.T) {
		_, again := must(t, cfg)
		for _, s := range again.Steps {
			if !s.Cached {
				t.Errorf("step %s ran again: %s", s.Name, s.Why)
			}
		}
		if !slices.Equal(again.Outputs, res.Outputs) {
			t.Error("the outputs differ")
		}
	})
	t.Run("sizes add up", func(t *testing.T) {
		rep, err := b.ExplainSize(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, r := range rep.Rows {
			sum += r.Size
			if r.Size < 0 {
				t.Errorf("%s %s has %d bytes", r.Part, r.Owner, r.Size)
			}
		}
		if sum != rep.Total {
			t.Errorf("rows add up to %d of %d bytes", sum, rep.Total)
		}
	})
}

// testImage restates what a stock system checks before it flashes (lede-compat
// 1.1, 1.4 and 4), then asks the foreign tools.
func testImage(t *testing.T, b *Builder, res *Result, im boards.Image) {
	file, trailers := raw(t, res.Path(im.Type))
	info, err := trailers.Info()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(info.SupportedDevices, "qemu-standard-pc-i440fx-piix-1996") || info.Version.Board != "generic" || info.Version.Target != "x86/64" {
		t.Errorf("metadata %+v", info)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 64*disk.SectorSize)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	if magic := hex.EncodeToString(head[:2]); magic != "eb63" && magic != "eb48" {
		t.Errorf("magic %s: stock says Invalid image type", magic)
	}
	layout, err := disk.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(layout.Partitions) != 4 || layout.Partitions[0].Start != 512 || layout.Partitions[0].Size() != 64<<20 || layout.Partitions[1].Size() != 104<<20 {
		t.Errorf("partitions %v", layout.Partitions)
	}
	ids := disk.DeriveIDs(1700000000, b.vermagic())
	if got := binary.LittleEndian.Uint32(head[440:]); got != ids.Signature {
		t.Errorf("signature %08x, want %08x", got, ids.Signature)
	}
	switch im.Table {
	case boards.MBR:
		if out := b.judge(t, "sfdisk", "-d", file); strings.Count(out, "type=83") != 4 || !strings.Contains(out, "bootable") {
			t.Errorf("sfdisk reads\n%s", out)
		}
	case boards.GPT:
		if out := b.judge(t, "sgdisk", "-v", file); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk says\n%s", out)
		}
		if out := b.judge(t, "sfdisk", "-d", file); !strings.Contains(strings.ToLower(out), "uuid="+ids.PartUUID(im.Table, 2)) {
			t.Errorf("sfdisk reads\n%s", out)
		}
	}
	fat := cut(t, file, layout.Partitions[0])
	b.judge(t, "fsck.fat", "-n", fat)
	cfg := b.judge(t, "mtype", "-i", fat, "::"+boot.ConfigFile)
	root, rest := "root=PARTUUID="+ids.PartUUID(im.Table, 2), " rootwait console=tty1 console=ttyS0,115200n8 quiet weft.slot="
	for _, line := range []string{"linux /boot/vmlinuz $weft_first " + root + rest + "a", "linux /boot/b/vmlinuz $weft_first " + root + "/PARTNROFF=1" + rest + "b", `menuentry "Weft (failsafe)"`} {
		if !strings.Contains(cfg, line+" ") {
			t.Errorf("grub.cfg lacks %q:\n%s", line, cfg)
		}
	}
	cfgFile := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(cfgFile, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	b.judge(t, "grub-script-check", cfgFile)
	for _, name := range []string{boot.EnvFile, boot.EnvCopyFile} {
		env := filepath.Join(t.TempDir(), "grubenv")
		b.judge(t, "mcopy", "-i", fat, "::"+name, env)
		if list := b.judge(t, "grub-editenv", env, "list"); !strings.Contains(list, "weft_slot=a\n") {
			t.Errorf("%s: GRUB reads\n%s", name, list)
		}
		b.judge(t, "grub-editenv", env, "set", "weft_tries=1.2.1")
		if st, err := os.Stat(env); err != nil || st.Size() != 1024 {
			t.Errorf("%s after a change: %v, %v", name, st, err)
		}
	}
	out := b.judge(t, "mdir", "-/", "-b", "-i", fat, "::")
	files := []string{boot.KernelFile, boot.InitramfsFile, boot.RescueFile, boot.EnvCopyFile, boot.SlotBFolder}
	for _, l := range im.Loaders {
		if ld, _ := b.board.Loader(l); ld.Kind == boards.GRUBPC {
			files = append(files, boot.BootImgFile, boot.CoreImgFile)
		} else {
			files = append(files, boot.LoaderFile(ld))
		}
	}
	for _, name := range files {
		if !strings.Contains(strings.ToLower(out), "::/"+name) {
			t.Errorf("the boot partition lacks %s:\n%s", name, out)
		}
	}
	testRootfs(t, b, cut(t, file, layout.Partitions[1]))
}

func testRootfs(t *testing.T, b *Builder, file string) {
	tool, err := b.store.Tool(t.Context(), "unsquashfs")
	if err != nil {
		t.Fatal(err)
	}
	list, err := squash.List(t.Context(), tool, file)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]squash.Entry{}
	for _, e := range list {
		have[e.Path] = e
		if e.Owner != "0/0" {
			t.Errorf("/%s belongs to %s", e.Path, e.Owner)
		}
	}
	for p, want := range map[string]string{"": "drwxr-xr-x", "dev/console": "crw-------", "sbin/init": "-rwxr-xr-x", "sbin/mke2fs": "-rwxr-xr-x", "etc/config/network": "-rw-------",
		"etc/rc.d/S20network": "lrwxrwxrwx", "bin/sh": "lrwxrwxrwx", "usr/lib/weft/sbom.cdx.json": "-rw-r--r--", "etc/openwrt_release": "-rw-r--r--"} {
		if e, ok := have[p]; !ok || e.Mode != want {
			t.Errorf("/%s: %+v, want %s", p, e, want)
		}
	}
	if e := have["dev/console"]; e.Dev != "5,1" {
		t.Errorf("/dev/console is device %s", e.Dev)
	}
	for _, e := range list {
		if strings.HasSuffix(e.Path, ".ko.xz") {
			t.Errorf("%s is compressed", e.Path)
		}
	}
	if out := b.judge(t, "unsquashfs", "-s", file); !strings.Contains(out, "Compression zstd") || !strings.Contains(out, "Block size 262144") {
		t.Errorf("unsquashfs -s:\n%s", out)
	}
}

func testInitramfs(t *testing.T, b *Builder, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := boot.List(f)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]boot.Entry{}
	for _, e := range entries {
		names[e.Name] = e
	}
	text, err := names[boot.ModuleList].Data()
	if err != nil {
		t.Fatal(err)
	}
	order := strings.Fields(string(text))
	if before, after := slices.Index(order, "jbd2"), slices.Index(order, "ext4"); before < 0 || after < before {
		t.Errorf("ext4 comes before jbd2, which it needs: %v", order)
	}
	// The reference program reads the same.
	plain := filepath.Join(t.TempDir(), "cpio")
	b.judge(t, "zstd", "-q", "-d", "-o", plain, file)
	in, err := os.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cpio, err := b.store.Tool(t.Context(), "cpio")
	if err != nil {
		t.Fatal(err)
	}
	cmd := cpio.Command(t.Context(), "-t", "--quiet")
	cmd.Stdin = in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cpio -t: %v", err)
	}
	if got := strings.Fields(string(out)); len(got) != len(entries) || !slices.Contains(got, "init") {
		t.Errorf("cpio lists %d entries, we %d", len(got), len(entries))
	}
}

func testLists(t *testing.T, b *Builder, res *Result) {
	read := func(typ string) string {
		text, err := os.ReadFile(res.Path(typ))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for line := range strings.Lines(read("sha256sums")) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), " *")
		if got, err := hashFile(filepath.Join(res.Dir, name)); err != nil || got != sum {
			t.Errorf("%s: %s, sha256sums says %s (%v)", name, got, sum, err)
		}
	}
	lines := strings.Split(strings.TrimSpace(read("manifest")), "\n")
	if !slices.IsSorted(lines) || !slices.Contains(lines, "weft - 0.1.0-r7-0123456789") || !regexp.MustCompile(`(?m)^libc6 - 2\.`).MatchString(read("manifest")) {
		t.Errorf("manifest\n%s", read("manifest"))
	}
	var p struct {
		Target, Pins string
		Epoch        int64                                       `json:"source_date_epoch"`
		Kernel       struct{ Version, Release, Vermagic string } `json:"linux_kernel"`
		Profiles     map[string]struct {
			Prefix string `json:"image_prefix"`
			Images []struct{ Type, Name, Filesystem, SHA256 string }
			Titles []map[string]string
		}
	}
	if err := json.Unmarshal([]byte(read("profiles")), &p); err != nil {
		t.Fatal(err)
	}
	g := p.Profiles["generic"]
	if p.Target != "x86/64" || p.Epoch != 1700000000 || g.Prefix != "weft-0.1.0-x86-64-generic" || g.Titles[0]["vendor"] != "Generic" || !strings.HasPrefix(p.Kernel.Version, "6.12.") {
		t.Errorf("profiles.json: %+v", p)
	}
	if i := slices.IndexFunc(g.Images, func(i struct{ Type, Name, Filesystem, SHA256 string }) bool { return i.Type == "combined-efi" }); i < 0 || g.Images[i].Filesystem != "squashfs" {
		t.Errorf("images: %+v", g.Images)
	}
	if !strings.Contains(read("sbom"), `"pkg:deb/debian/linux-image-`) {
		t.Error("the SBOM lacks the kernel")
	}
	if b.pinState() != p.Pins {
		t.Errorf("pins are %s, profiles.json says %s", b.pinState(), p.Pins)
	}
}

// TestVariables checks LEDE ImageBuilder's variables in one build.
func TestVariables(t *testing.T) {
	cfg := config(t)
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "mine"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.Files, cfg.ExtraName, cfg.DisabledServices, cfg.RootfsPartsize = files, "My Test_1", []string{"network"}, 40
	cfg.Packages, cfg.BinDir = []string{"-bridge"}, t.TempDir()
	b, res := must(t, cfg)
	name := "weft-0.1.0-my-test-1-x86-64-generic-squashfs-combined.img.gz"
	if filepath.Base(res.Path("combined")) != name || filepath.Dir(res.Path("combined")) != filepath.Join(cfg.BinDir, "targets/x86/64") {
		t.Errorf("image %s, want %s", res.Path("combined"), name)
	}
	file, _ := raw(t, res.Path("combined"))
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := disk.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if l.Partitions[1].Size() != 40<<20 || l.Partitions[2].Size() != 40<<20 {
		t.Errorf("ROOTFS_PARTSIZE=40 gives %v", l.Partitions)
	}
	tool, err := b.store.Tool(t.Context(), "unsquashfs")
	if err != nil {
		t.Fatal(err)
	}
	list, err := squash.List(t.Context(), tool, cut(t, file, l.Partitions[1]))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range list {
		paths = append(paths, e.Path)
	}
	text := strings.Join(paths, "\n")
	if !strings.Contains(text, "\nmine\n") || strings.Contains(text, "S20network") || strings.Contains(text, "/bridge.ko") {
		t.Error("FILES, DISABLED_SERVICES or -bridge is not in effect")
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"board", func(c *Config) { c.Board = "wrt54gl" }, "make info"},
		{"role", func(c *Config) { c.Role = "nope" }, `unknown role "nope": there are router`},
		{"package", func(c *Config) { c.Packages = []string{"nope"} }, "unknown packages nope"},
		{"size", func(c *Config) { c.RootfsPartsize = 3 }, "ROOTFS_PARTSIZE=3"},
		{"source", func(c *Config) { c.Source = t.TempDir() }, "not Weft's source tree"},
	} {
		cfg := config(t)
		tt.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	cfg := config(t)
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("a bad SOURCE_DATE_EPOCH: %v", err)
	}
}

// TestRootTooLarge: the root file system must fit its partition.
func TestRootTooLarge(t *testing.T) {
	cfg := config(t)
	cfg.Files = t.TempDir()
	big := make([]byte, 17<<20)
	for i, x := 0, uint32(1); i < len(big); i++ { // does not compress
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		big[i] = byte(x)
	}
	if err := os.WriteFile(filepath.Join(cfg.Files, "big"), big, 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.RootfsPartsize = 16
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Build(context.WithoutCancel(t.Context()))
	if errors.Is(err, pins.ErrUnreachable) {
		t.Skipf("the pinned packages are out of reach: %v", err)
	}
	if !errors.Is(err, disk.ErrTooLarge) || !strings.Contains(err.Error(), "ROOTFS_PARTSIZE") {
		t.Errorf("got %v", err)
	}
}
