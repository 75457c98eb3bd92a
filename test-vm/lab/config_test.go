package lab

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestArgs(t *testing.T) {
	link := NewLink("wan")
	for _, tt := range []struct {
		name string
		cfg  Config
		l    launch
	}{
		{"disk", Config{Name: "gw1", Disks: []Disk{{Image: "a.img"}}, Consoles: []string{"hvc0"}, Watchdog: true,
			NICs: []NIC{{Net: "192.168.1.0/24", Isolated: true, Forwards: []Forward{{Guest: 22, Address: "192.168.1.1"}}}, {Link: link, Capture: true}}},
			launch{disks: []string{"/d/a,b.img"}, pcaps: []string{"", "/d/nic1.pcap"}, ports: [][]Forward{{{Host: 4022, Guest: 22, Address: "192.168.1.1"}}, nil},
				fds: map[string]int{"qmp": 3, "ttyS0": 4, "hvc0": 5, "nic1": 6}}},
		{"uefi", Config{Firmware: UEFI, Memory: 512, CPUs: 1, Disks: []Disk{{Image: "a", Bus: SATA}, {Size: 1, Bus: SATA, Snapshot: true}, {Size: 1, Bus: USB}, {Size: 1, Bus: IDE, Serial: "x"}}},
			launch{code: "/f/CODE.fd", vars: "/d/vars.fd", disks: []string{"/d/0", "/d/1", "/d/2", "/d/3"}, fds: map[string]int{"qmp": 3, "ttyS0": 4}}},
		{"kernel", Config{Kernel: "vmlinuz", Initrd: "initrd", Cmdline: "console=ttyS0 quiet", Consoles: []string{"ttyS1"}, GDB: "/d/gdb", Args: []string{"-snapshot"}},
			launch{accel: []string{"-accel", "kvm"}, dataDir: []string{"/q/share"}, fds: map[string]int{"qmp": 3, "ttyS0": 5, "ttyS1": 4}}},
		{"nbd", Config{Disks: []Disk{{NBD: "/d/disk.sock"}}},
			launch{disks: []string{"/d/disk.sock"}, fds: map[string]int{"qmp": 3, "ttyS0": 4}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tt.cfg.defaults()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(shellLine(c.args(tt.l)), " -", "\n-") + "\n"
			golden := filepath.Join("testdata", "args-"+tt.name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfigNamesAllFaults(t *testing.T) {
	_, err := Config{Name: "x", Arch: "vax", Memory: 1, Accel: "warp", Cmdline: "a", Consoles: []string{"tty9", "ttyS1", "ttyS1"},
		Disks: []Disk{{Bus: "scsi"}, {NBD: "/s", Size: 1}}, NICs: []NIC{{Link: NewLink("l"), Isolated: true}}}.defaults()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"machine x:", `"vax"`, "1 MiB", `"warp"`, "needs Kernel", `"tty9"`, `"ttyS1" is named twice`, `"scsi"`, "neither an image nor a size", "belong to the user network"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing from:\n%v", want, err)
		}
	}
	if _, err := (Config{}).defaults(); err == nil || !strings.Contains(err.Error(), "neither a disk nor a kernel") {
		t.Errorf("nothing to boot: %v", err)
	}
}

func TestTimeout(t *testing.T) {
	for factor, want := range map[string]time.Duration{"": 10 * time.Second, "2.5": 25 * time.Second, "0": 10 * time.Second, "x": 10 * time.Second} {
		t.Setenv("WEFT_TIMEOUT_FACTOR", factor)
		if got := Timeout(10 * time.Second); got != want {
			t.Errorf("factor %q: %v, want %v", factor, got, want)
		}
	}
}

func TestImages(t *testing.T) {
	bin := t.TempDir()
	dir := filepath.Join(bin, "targets", "x86", "64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := FindImages(bin, "x86-64"); err == nil || !strings.Contains(err.Error(), "run make image first") {
		t.Errorf("nothing built: %v", err)
	}
	for name, text := range map[string]string{
		"a.img.gz": "image",
		"profiles.json": `{"version_number":"1","profiles":{"generic":{"images":[
			{"filesystem":"squashfs","name":"a.img.gz","type":"combined","sha256":""},
			{"filesystem":"squashfs","name":"b.img.gz","type":"combined-efi","sha256":""}]}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	im, err := FindImages(bin, "x86-64")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := im.Path("combined"); err != nil || got != filepath.Join(dir, "a.img.gz") {
		t.Errorf("%q, %v", got, err)
	}
	for _, typ := range []string{"combined-efi", "kernel"} { // listed but missing, not listed
		if _, err := im.Path(typ); err == nil || !strings.Contains(err.Error(), "run make image first") {
			t.Errorf("%s: %v", typ, err)
		}
	}
}
