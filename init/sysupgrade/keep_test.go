package sysupgrade

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/init/overlay"
)

// rootFS makes a root file system with the lists of section 5.
func rootFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	sum := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }
	files := map[string]string{
		"etc/sysupgrade.conf":                 "# a comment\n\n/etc/notes/\n/etc/gone\n/root/*.txt\n",
		"lib/upgrade/keep.d/base":             "/etc/config/\n/etc/passwd\n",
		"etc/config/network":                  "config interface 'lan'\n",
		"etc/config/system":                   "config system\n",
		"etc/passwd":                          "root:x:0:0::/root:/bin/ash\n",
		"etc/notes/deep/a":                    "a",
		"root/x.txt":                          "x",
		"root/y.bin":                          "y",
		"etc/changed.conf":                    "mine",
		"etc/same.conf":                       "default",
		"usr/lib/opkg/status":                 "Package: p\nConffiles:\n /etc/changed.conf " + sum("theirs") + "\n /etc/same.conf " + sum("default") + "\n\nPackage: q\nStatus: ok\n",
		"lib/apk/packages/r.conffiles_static": "/etc/apkchanged " + sum("theirs") + "\n",
		"etc/apkchanged":                      "mine",
		"usr/lib/opkg/info/p.list":            "/etc/ofpackage\n",
		"usr/lib/opkg/info/p.control":         "Package: p\n",
		"rom/usr/lib/opkg/info/p.control":     "Package: p\n",
		"rom/etc/config/system":               "config system\n",
		"rom/etc/passwd":                      "root:x:0:0::/root:/bin/ash\n",
		"etc/init.d/on":                       "#!/bin/sh /etc/rc.common\nSTART=10\n",
		"etc/init.d/off":                      "#!/bin/sh /etc/rc.common\nSTART=10\n",
		"etc/rc.d/S10on":                      "",
	}
	// The overlay holds what differs from /rom; here as copies.
	for name, text := range map[string]string{"etc/config/network": "config interface 'lan'\n", "etc/own": "own", "etc/board.json": "{}", "etc/ofpackage": "p", "usr/bin/tool": "tool", "etc/a-opkg": "old", "etc/opkg/distfeeds.conf": ""} {
		files["overlay/upper/"+name] = text
		files[name] = text
	}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	for _, s := range []string{"on", "off"} {
		if err := os.Chmod(filepath.Join(dir, "etc/init.d", s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/tmp/x", filepath.Join(dir, "etc/notes/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

var kept = []string{"etc/apkchanged", "etc/changed.conf", "etc/config/network", "etc/config/system", "etc/notes/deep/a", "etc/notes/link", "etc/passwd", "root/x.txt"}

func TestKeepList(t *testing.T) {
	for _, tt := range []struct {
		name    string
		b       Backup
		add     []string
		without []string
		exclude string
	}{
		{name: "plain"},
		{name: "-c", b: Backup{ChangedEtc: true}, add: []string{"etc/own"}},
		{name: "-o", b: Backup{ChangedAll: true}, add: []string{"etc/own", "usr/bin/tool"}},
		{name: "-u", b: Backup{SkipSame: true}, without: []string{"etc/config/system", "etc/passwd"}},
		{name: "-x file", b: Backup{Exclude: []string{"/etc/passwd"}}, without: []string{"etc/passwd"}},
		{name: "-x folder", b: Backup{Exclude: []string{"/etc/config/"}}, without: []string{"etc/config/network", "etc/config/system"}},
		{name: "-x pattern", b: Backup{Exclude: []string{"/etc/config/n*", "**/deep"}}, without: []string{"etc/config/network", "etc/notes/deep/a"}},
		{name: "exclude file", exclude: "# no keys\n/root\n", without: []string{"root/x.txt"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.b.Root = rootFS(t)
			if tt.exclude != "" {
				write(t, filepath.Join(tt.b.Root, excludeConf), tt.exclude)
			}
			got, err := tt.b.List()
			if err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(slices.Concat(kept, tt.add), func(s string) bool { return slices.Contains(tt.without, s) })
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestBackup: GNU tar reads it, the disabling script comes first, and it can be
// restored into an empty system.
func TestBackup(t *testing.T) {
	b := Backup{Root: rootFS(t), Packages: true}
	var out bytes.Buffer
	n, err := b.Write(&out)
	if err != nil || n != len(kept)+2 {
		t.Fatalf("%d files, %v", n, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(z)
	h, err := tr.Next()
	if err != nil || h.Name != disableFile {
		t.Fatalf("first member %v, %v", h, err)
	}
	if text, _ := io.ReadAll(tr); string(text) != "[ -x /etc/init.d/off ] && /etc/init.d/off disable\nexit 0\n" {
		t.Errorf("the script is %q", text)
	}
	if h, _ = tr.Next(); h.Name != packageList {
		t.Errorf("second member %s", h.Name)
	}
	if text, _ := io.ReadAll(tr); string(text) != "p\trom\nr\tunknown\n" && string(text) != "p\trom\n" {
		t.Errorf("packages %q", text)
	}
	if err := CheckBackup(bytes.NewReader(out.Bytes())); err != nil {
		t.Error(err)
	}
	fresh := t.TempDir()
	if os.Geteuid() == 0 { // owners are restored
		to := Backup{Root: fresh}
		if n, err := to.Restore(bytes.NewReader(out.Bytes())); err != nil || n != len(kept)+2 {
			t.Errorf("restored %d files, %v", n, err)
		}
		if text, err := os.ReadFile(filepath.Join(fresh, "etc/notes/deep/a")); err != nil || string(text) != "a" {
			t.Errorf("%q, %v", text, err)
		}
	}
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("GNU tar is not installed")
	}
	cmd := exec.Command(tool, "-tzf", "-")
	cmd.Stdin = &out
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, list)
	}
	if want := strings.Join(slices.Concat([]string{disableFile, packageList}, kept), "\n") + "\n"; string(list) != want {
		t.Errorf("GNU tar lists\n%s\nwant\n%s", list, want)
	}
}

func TestCheckBackupRefuses(t *testing.T) {
	pack := func(headers ...tar.Header) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		tw := tar.NewWriter(z)
		for _, h := range headers {
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		tw.Flush()
		z.Close()
		return out.Bytes()
	}
	for name, archive := range map[string][]byte{
		"empty":    {},
		"text":     []byte("not gzip"),
		"dots":     pack(tar.Header{Typeflag: tar.TypeReg, Name: "../etc/passwd"}),
		"absolute": pack(tar.Header{Typeflag: tar.TypeReg, Name: "/etc/passwd"}),
		"device":   pack(tar.Header{Typeflag: tar.TypeBlock, Name: "etc/sda"}),
		"link out": pack(tar.Header{Typeflag: tar.TypeLink, Name: "etc/a", Linkname: "../../x"}),
		"1 GB":     pack(tar.Header{Typeflag: tar.TypeReg, Name: "etc/x", Size: 1 << 30}),
	} {
		if err := CheckBackup(bytes.NewReader(archive)); !errors.Is(err, overlay.ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
