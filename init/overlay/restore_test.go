package overlay

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type member struct {
	name, body, link string
	typ              byte
	mode             int64
}

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	w := tar.NewWriter(gz)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.typ, Mode: m.mode, Size: int64(len(m.body)), ModTime: day, Uid: os.Getuid(), Gid: os.Getgid()}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o600
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// trees returns an overlay root and a rom, the root filled from the rom.
func trees(t *testing.T) (root, rom string) {
	t.Helper()
	root, rom = t.TempDir(), t.TempDir()
	for _, dir := range []string{root, rom} {
		for _, err := range []error{
			os.MkdirAll(filepath.Join(dir, "etc/config"), 0o755),
			os.MkdirAll(filepath.Join(dir, "tmp"), 0o755),
			os.Symlink("tmp", filepath.Join(dir, "var")),
			os.Symlink("/tmp/resolv.conf", filepath.Join(dir, "etc/resolv.conf")),
			os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nubus:x:81:81:ubus:/var/run/ubus:/bin/false\n"), 0o644),
			os.WriteFile(filepath.Join(dir, "etc/shadow"), []byte("root:::0:99999:7:::\nubus:x:0:0:99999:7:::\n"), 0o600),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return root, rom
}

func TestRestore(t *testing.T) {
	root, rom := trees(t)
	tgz := archive(t,
		member{name: "etc/uci-defaults/10_disable_services", body: "exit 0\n", mode: 0o755},
		member{name: "./etc/config/", typ: tar.TypeDir, mode: 0o755},
		member{name: "etc/config/network", body: "config interface 'lan'\n"},
		member{name: "etc/passwd", body: "root:x:0:0:root:/root:/bin/ash\nann:x:1000:1000::/home/ann:/bin/ash", mode: 0o644},
		member{name: "etc/shadow", body: "root:$6$x:0:0:99999:7:::\n"},
		member{name: "etc/resolv.conf", body: "nameserver 1.1.1.1\n", mode: 0o644},
		member{name: "etc/localtime", typ: tar.TypeSymlink, link: "/tmp/localtime"},
		member{name: "etc/second", typ: tar.TypeLink, link: "etc/config/network"},
		member{name: "var/", typ: tar.TypeDir, mode: 0o755},
		member{name: "var/lib/state", body: "below a link"},
	)
	for i := range 2 { // a power cut repeats it
		n, err := Restore(bytes.NewReader(tgz), root, rom)
		if err != nil || n != 10 {
			t.Fatalf("run %d: %d members, %v", i+1, n, err)
		}
	}
	for name, want := range map[string]string{
		"etc/config/network": "config interface 'lan'\n",
		"etc/second":         "config interface 'lan'\n",
		"etc/resolv.conf":    "nameserver 1.1.1.1\n",
		"tmp/lib/state":      "below a link",
		"etc/passwd":         "root:x:0:0:root:/root:/bin/ash\nann:x:1000:1000::/home/ann:/bin/ash\nubus:x:81:81:ubus:/var/run/ubus:/bin/false\n",
		"etc/shadow":         "root:$6$x:0:0:99999:7:::\nubus:x:0:0:99999:7:::\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(root, "etc/uci-defaults/10_disable_services")); err != nil || fi.Mode().Perm() != 0o755 || !fi.ModTime().Equal(day) {
		t.Errorf("mode and time: %v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Join(root, "etc/shadow")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("shadow: %v, %v", fi, err)
	}
	if to, err := os.Readlink(filepath.Join(root, "var")); err != nil || to != "tmp" {
		t.Errorf("var became %q, %v", to, err)
	}
	if to, err := os.Readlink(filepath.Join(root, "etc/localtime")); err != nil || to != "/tmp/localtime" {
		t.Errorf("localtime became %q, %v", to, err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	good := member{name: "etc/config/network", body: "changed"}
	whole := archive(t, good, member{name: "etc/random", body: noise(4096)})
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-3] ^= 1 // in gzip's length field
	for _, tc := range []struct {
		name string
		tgz  []byte
		want string
	}{
		{"empty file", nil, "EOF"},
		{"no gzip", []byte("config interface"), "gzip"},
		{"cut short", whole[:len(whole)/2], "unexpected EOF"},
		{"checksum", flipped, "checksum"},
		{"no members", archive(t), "empty"},
		{"up", archive(t, good, member{name: "../etc/passwd", body: "x"}), "leaves the root folder"},
		{"up inside", archive(t, good, member{name: "etc/../../x", body: "x"}), "leaves the root folder"},
		{"absolute", archive(t, good, member{name: "/etc/passwd", body: "x"}), "absolute path"},
		{"hard link up", archive(t, good, member{name: "x", typ: tar.TypeLink, link: "../../etc/shadow"}), "leaves the root folder"},
		{"device", archive(t, good, member{name: "dev/sda", typ: tar.TypeBlock}), "neither file, folder nor link"},
		{"bomb", bomb(t), "unpacks to more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, rom := trees(t)
			_, err := Restore(bytes.NewReader(tc.tgz), root, rom)
			if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrArchive with %q", err, tc.want)
			}
			if _, err := os.Stat(filepath.Join(root, "etc/config/network")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("part of a bad archive was unpacked")
			}
		})
	}
}

// TestRestoreThroughLinks: a link that the archive brings itself must not lead
// out of the root.
func TestRestoreThroughLinks(t *testing.T) {
	outside := t.TempDir()
	for name, target := range map[string]string{"absolute": outside, "relative": "../../../../../../../.." + outside} {
		t.Run(name, func(t *testing.T) {
			root, rom := trees(t)
			tgz := archive(t,
				member{name: "etc/way", typ: tar.TypeSymlink, link: target},
				member{name: "etc/way/out", body: "x"})
			if _, err := Restore(bytes.NewReader(tgz), root, rom); err == nil {
				t.Error("no error")
			}
			if _, err := os.Lstat(filepath.Join(outside, "out")); err == nil {
				t.Error("a file was written outside")
			}
		})
	}
}

// bomb is a small archive with a file that is larger than allowed: one gzip
// stream of zeros, again and again.
func bomb(t *testing.T) []byte {
	t.Helper()
	compressed := func(f func(w io.Writer) error) []byte {
		var buf bytes.Buffer
		gz := gzip.NewWriter(&buf)
		if err := errors.Join(f(gz), gz.Close()); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	out := compressed(func(w io.Writer) error {
		return tar.NewWriter(w).WriteHeader(&tar.Header{Name: "etc/zeros", Typeflag: tar.TypeReg, Size: 2 * maxUnpack})
	})
	zeros := compressed(func(w io.Writer) error { _, err := w.Write(make([]byte, 1<<20)); return err })
	for range maxUnpack >> 20 {
		out = append(out, zeros...)
	}
	return out
}

func noise(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

func TestMergeLines(t *testing.T) {
	for _, tc := range []struct{ ours, theirs, want string }{
		{"", "a:1\n", "a:1\n"},
		{"a:2\n", "a:1\nb:1\n", "a:2\nb:1\n"},
		{"a:2", "b:1", "a:2\nb:1\n"},
		{"a:2", "a:1\n", "a:2"},
		{"a:2\n", "junk\n:x\n\n", "a:2\n"},
		{"", "b:1\nb:2\n", "b:1\n"},
	} {
		if got := mergeLines(tc.ours, tc.theirs); got != tc.want {
			t.Errorf("mergeLines(%q, %q) = %q, want %q", tc.ours, tc.theirs, got, tc.want)
		}
	}
}

func TestProbe(t *testing.T) {
	at := func(off int, s string) []byte {
		b := make([]byte, 300<<10)
		copy(b[off:], s)
		return b
	}
	two := func(off int, s string, off2 int, s2 string) []byte {
		b := at(off, s)
		copy(b[off2:], s2)
		return b
	}
	for _, tc := range []struct {
		name string
		data []byte
		want Content
	}{
		{"nothing", nil, Content{Kind: Blank, TarballAt: -1}},
		{"zeros", at(0, ""), Content{Kind: Blank, TarballAt: -1}},
		{"mark", at(0, "\xde\xad\xc0\xde"), Content{Kind: Unformatted, TarballAt: -1}},
		{"mark before ext4", two(0, "\xde\xad\xc0\xde", 0x438, "\x53\xef"), Content{Kind: Unformatted, TarballAt: -1}},
		{"mark and archive", two(0, "\xde\xad\xc0\xde", 1024, "\x1f\x8b\x08\x00"), Content{Kind: Unformatted, TarballAt: 1024}},
		{"archive off a sector", two(0, "\xde\xad\xc0\xde", 1000, "\x1f\x8b\x08\x00"), Content{Kind: Unformatted, TarballAt: -1}},
		{"archive", at(0, "\x1f\x8b\x08\x00"), Content{Kind: Tarball}},
		{"archive with a name", at(0, "\x1f\x8b\x08\x08"), Content{Kind: Tarball}},
		{"f2fs", at(0x400, "\x10\x20\xf5\xf2"), Content{Kind: F2FS, TarballAt: -1}},
		{"ext4", two(0x438, "\x53\xef", 0x478, "rootfs_data"), Content{Kind: Ext4, Label: "rootfs_data", TarballAt: -1}},
		{"ext4 with errors", at(0x438, "\x53\xef\x02"), Content{Kind: Ext4, Errors: true, TarballAt: -1}},
		{"LUKS", at(0, "LUKS\xba\xbe"), Content{Kind: Foreign, Name: "LUKS", TarballAt: -1}},
		{"FAT", at(82, "FAT32   "), Content{Kind: Foreign, Name: "FAT", TarballAt: -1}},
		{"btrfs", at(0x10040, "_BHRfS_M"), Content{Kind: Foreign, Name: "btrfs", TarballAt: -1}},
		{"garbage", at(77, "x"), Content{Kind: Unknown, TarballAt: -1}},
	} {
		got, err := Probe(bytes.NewReader(tc.data))
		if err != nil || got != tc.want {
			t.Errorf("%s: got %+v, %v; want %+v", tc.name, got, err, tc.want)
		}
	}
}

func TestSquashfsEnd(t *testing.T) {
	sb := make([]byte, 96)
	copy(sb, "hsqs")
	sb[40], sb[42] = 0x34, 0x12
	if n, err := SquashfsEnd(bytes.NewReader(sb)); err != nil || n != 0x120034 {
		t.Errorf("got %#x, %v", n, err)
	}
	sb[0] = 'x'
	if _, err := SquashfsEnd(bytes.NewReader(sb)); err == nil {
		t.Error("no squashfs was accepted")
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("\xde\xad\xc0\xde"))
	f.Add(append(make([]byte, 0x438), "\x53\xef\x02\x00"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Probe(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if c.TarballAt >= int64(len(b)) || c.Bytes < 0 {
			t.Fatalf("%+v from %d bytes", c, len(b))
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add(archive(f, member{name: "etc/x", body: "y"}, member{name: "etc/l", typ: tar.TypeSymlink, link: "/"}))
	f.Add(archive(f, member{name: "a", typ: tar.TypeSymlink, link: ".."}, member{name: "a/b", body: "y"}))
	f.Fuzz(func(t *testing.T, tgz []byte) {
		top := t.TempDir()
		root := filepath.Join(top, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		Restore(bytes.NewReader(tgz), root, filepath.Join(top, "rom"))
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Fatalf("something lies outside the root: %v, %v", entries, err)
		}
	})
}
