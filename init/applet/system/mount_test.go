package system

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	for in, want := range map[string]mountOptions{
		"":                          {},
		"defaults,rw":               {},
		"ro,nosuid,nodev,noexec":    {flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		"ro,noatime,rw":             {flags: unix.MS_NOATIME},
		"rbind,rslave":              {flags: unix.MS_BIND | unix.MS_REC, propagation: unix.MS_SLAVE | unix.MS_REC},
		"remount,size=10m,mode=755": {flags: unix.MS_REMOUNT, data: []string{"size=10m", "mode=755"}},
		"loop,ro,errors=continue":   {flags: unix.MS_RDONLY, loop: true, data: []string{"errors=continue"}},
	} {
		var got mountOptions
		got.add(in)
		if d := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
}

func TestTable(t *testing.T) {
	got := parseTable([]byte("# comment\n/dev/a\\040b /mnt\\011x ext4 rw,noatime 0 0\n\nshort line\ntmpfs /tmp tmpfs defaults\n"))
	want := []mounted{{"/dev/a b", "/mnt\tx", "ext4", "rw,noatime"}, {"tmpfs", "/tmp", "tmpfs", "defaults"}}
	if d := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); d != "" {
		t.Error(d)
	}
	for _, tc := range []struct {
		list, kind string
		want       bool
	}{{"", "ext4", true}, {"auto", "ext4", true}, {"ext4,vfat", "vfat", true}, {"ext4", "vfat", false}, {"noproc,sysfs", "sysfs", false}, {"noproc", "ext4", true}} {
		if got := ofKind(tc.list, tc.kind); got != tc.want {
			t.Errorf("%s in %q: %v", tc.kind, tc.list, got)
		}
	}
}

func TestMount(t *testing.T) {
	if !namespace(t) {
		return
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a b"), filepath.Join(dir, "b")
	for _, d := range []string{a, b} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ok(t, Mount, "mount", "-t", "tmpfs", "-o", "size=1m,nosuid,mode=0700", "mem", a)
	if got := ok(t, Mount, "mount", "-t", "tmpfs"); !strings.Contains(got, "mem on "+a+" type tmpfs (rw,nosuid,relatime,size=1024k,mode=700") {
		t.Errorf("list:\n%s", got)
	}
	if got := ok(t, Mount, "mount", "-t", "notmpfs"); strings.Contains(got, "mem on") {
		t.Errorf("list without tmpfs:\n%s", got)
	}
	write(t, a+"/file", "x")
	ok(t, Mount, "mount", "-o", "remount,ro", a)
	if err := os.WriteFile(a+"/file", nil, 0o600); err == nil {
		t.Error("remount,ro: still writable")
	}
	if got := ok(t, Mount, "mount"); !strings.Contains(got, a+" type tmpfs (ro,nosuid") {
		t.Errorf("remount lost nosuid:\n%s", got)
	}
	ok(t, Mount, "mount", "-o", "remount,rw", a)
	ok(t, Mount, "mount", "-o", "bind,ro", a, b)
	if err := os.WriteFile(b+"/file", nil, 0o600); err == nil {
		t.Error("bind,ro: writable")
	}
	write(t, a+"/file", "y")
	target := filepath.Join(dir, "file")
	write(t, target, "")
	ok(t, Mount, "mount", "-o", "bind", a+"/file", target)
	if got := read(t, target); got != "y" {
		t.Errorf("a bound file has %q", got)
	}
	c := filepath.Join(dir, "c")
	if err := os.Mkdir(c, 0o755); err != nil {
		t.Fatal(err)
	}
	ok(t, Umount, "umount", target, b)
	ok(t, Mount, "mount", "-o", "rprivate", a)
	ok(t, Mount, "mount", "-o", "move", a, c)
	if got := read(t, c+"/file"); got != "y" {
		t.Errorf("moved: %q", got)
	}
	ok(t, Umount, "umount", c)
}

func TestMountFaults(t *testing.T) {
	if !namespace(t) {
		return
	}
	dir := t.TempDir()
	fails(t, 1, "nothing is mounted there", Mount, "mount", "-o", "remount,ro", dir)
	fails(t, 1, "no line", Mount, "mount", filepath.Join(dir, "x"))
	fails(t, 1, "no such file", Mount, "mount", "-t", "tmpfs", "none", filepath.Join(dir, "absent"))
	fails(t, 1, "no file system nosuchfs", Mount, "mount", "-t", "nosuchfs", "none", dir)
	fails(t, 1, "LABEL=nosuchlabel", Mount, "mount", "LABEL=nosuchlabel", dir)
	fails(t, 1, "needs a file", Mount, "mount", "-o", "loop", filepath.Join(dir, "img"), dir)
	fails(t, 1, "not a mount", Umount, "umount", dir)
	write(t, filepath.Join(dir, "f"), "")
	fails(t, 1, "not a directory", Mount, "mount", "-t", "tmpfs", "none", filepath.Join(dir, "f"))
}

func TestUmount(t *testing.T) {
	if !namespace(t) {
		return
	}
	dir := t.TempDir()
	isMounted := func() bool {
		return strings.Contains(read(t, "/proc/self/mounts"), " "+dir+" ")
	}
	ok(t, Mount, "mount", "-t", "tmpfs", "none", dir)
	write(t, dir+"/f", "")
	f, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fails(t, 1, "a process has a file", Umount, "umount", dir)
	r := call(t, Umount, "", "umount", "-r", dir)
	if r.code != 1 || !strings.Contains(r.err, "busy") { // a file is open for writing
		t.Errorf("%+v", r)
	}
	f.Close()
	if f, err = os.Open(dir + "/f"); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := call(t, Umount, "", "umount", "-r", dir); r.code != 0 || !strings.Contains(r.err, "now read-only") {
		t.Errorf("%+v", r)
	}
	if err := os.WriteFile(dir+"/f", nil, 0o600); err == nil {
		t.Error("umount -r: still writable")
	}
	ok(t, Umount, "umount", "-l", dir)
	if isMounted() {
		t.Error("umount -l: still there")
	}
	ok(t, Mount, "mount", "-t", "tmpfs", "none", dir)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	ok(t, Umount, "umount", link)
	if isMounted() {
		t.Error("umount of a link: still there")
	}
}

// TestLoop mounts a real file system from a file, and reads it back with blkid.
func TestLoop(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("no mke2fs here")
	}
	if !namespace(t) {
		return
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	write(t, img, "")
	if err := os.Truncate(img, 4<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-L", "my data", "-U", "0d2e9f5c-8d1c-4a57-9a9b-1d6b5a3f1e11", img).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	want := img + `: LABEL="my data" UUID="0d2e9f5c-8d1c-4a57-9a9b-1d6b5a3f1e11" TYPE="ext4"` + "\n"
	if got := ok(t, Blkid, "blkid", img); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices here")
	}
	r := call(t, Mount, "", "mount", img, mnt)
	if r.code != 0 {
		t.Skipf("loop devices or ext4 do not work here: %s", r.err)
	}
	if !strings.Contains(ok(t, Mount, "mount"), " on "+mnt+" type ext4 (rw") {
		t.Error("not in the list")
	}
	ok(t, Umount, "umount", mnt)
}

func TestBlockInfo(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "img")
	write(t, img, string(image(map[int]string{0: "hsqs", 28: "\x04\x00\x00\x00"})))
	if got, want := ok(t, Block, "block", "info", img), img+`: VERSION="4.0" TYPE="squashfs"`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	write(t, img, "nothing known")
	if r := call(t, Blkid, "", "blkid", img); r.code != 2 || r.out != "" {
		t.Errorf("%+v", r)
	}
}

// image is a volume with these bytes at these places.
func image(parts map[int]string) []byte {
	b := make([]byte, 0x10000+4096)
	for at, s := range parts {
		copy(b[at:], s)
	}
	return b
}

func TestIdentify(t *testing.T) {
	id := "\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef"
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	for name, tc := range map[string]struct {
		parts map[int]string
		want  contents
	}{
		"ext2":  {map[int]string{1024 + 0x38: "\x53\xef", 1024 + 0x68: id, 1024 + 0x78: "a"}, contents{"ext2", "a", uuid, "1.0"}},
		"ext3":  {map[int]string{1024 + 0x38: "\x53\xef", 1024 + 0x5c: "\x04"}, contents{"ext3", "", "", "1.0"}},
		"ext4":  {map[int]string{1024 + 0x38: "\x53\xef", 1024 + 0x5c: "\x04", 1024 + 0x60: "\x40"}, contents{"ext4", "", "", "1.0"}},
		"xfs":   {map[int]string{0: "XFSB", 32: id, 108: "x"}, contents{"xfs", "x", uuid, ""}},
		"f2fs":  {map[int]string{1024: "\x10\x20\xf5\xf2\x01\x00\x0e\x00", 1024 + 0x6c: id, 1024 + 0x7c: "r\x00\xf6\x00\x00\xd8"}, contents{"f2fs", "rö?", uuid, "1.14"}},
		"vfat":  {map[int]string{510: "\x55\xaa", 82: "FAT32   ", 67: "\xcd\xab\x34\x12", 71: "KERNEL     "}, contents{"vfat", "KERNEL", "1234-ABCD", "FAT32"}},
		"fat":   {map[int]string{510: "\x55\xaa", 54: "FAT16   ", 39: "\xcd\xab\x34\x12", 43: "NO NAME    "}, contents{"vfat", "", "1234-ABCD", "FAT16"}},
		"swap":  {map[int]string{4086: "SWAPSPACE2", 1036: id, 1052: "s"}, contents{"swap", "s", uuid, "1"}},
		"btrfs": {map[int]string{0x10040: "_BHRfS_M", 0x10020: id, 0x1012b: "b"}, contents{"btrfs", "b", uuid, ""}},
		"luks":  {map[int]string{0: "LUKS\xba\xbe\x00\x02", 168: uuid}, contents{"crypto_LUKS", "", uuid, "2"}},
		"iso":   {map[int]string{0x8001: "CD001", 0x8028: "CDROM   "}, contents{kind: "iso9660", label: "CDROM"}},
		"ntfs":  {map[int]string{3: "NTFS    ", 72: "\x01"}, contents{kind: "ntfs", uuid: "0000000000000001"}},
		"exfat": {map[int]string{3: "EXFAT   ", 100: "\x01"}, contents{kind: "exfat", uuid: "0000-0001"}},
		"erofs": {map[int]string{1024: "\xe2\xe1\xf5\xe0", 1088: "e"}, contents{kind: "erofs", label: "e"}},
		"none":  {nil, contents{}},
	} {
		if got := identify(bytes.NewReader(image(tc.parts))); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
	if got := quoted("a\"$`\\\x1b\n"); got != "a\\\"\\$\\`\\\\??" {
		t.Errorf("%s", got)
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("hsqs"), uint32(0))
	f.Add([]byte("\x10\x20\xf5\xf2"), uint32(1024))
	f.Fuzz(func(t *testing.T, b []byte, at uint32) {
		v := image(map[int]string{int(at % 0x10000): string(b)})
		binary.LittleEndian.PutUint16(v[510:], 0xaa55)
		identify(bytes.NewReader(v))
		identify(bytes.NewReader(b))
	})
}

func FuzzTable(f *testing.F) {
	f.Add([]byte("/dev/a\\040b /mnt ext4 rw 0 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range parseTable(b) {
			if m.kind == "" {
				t.Errorf("%+v", m)
			}
			var o mountOptions
			o.add(m.options)
		}
	})
}
