package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weft/image/rootfs/kmod"
)

// write makes files below a new folder; a text "-> x" is a link, a name that
// ends in ! is executable.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for p, text := range files {
		name, exec := strings.CutSuffix(p, "!")
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, f)
		} else if err = os.WriteFile(f, []byte(text), 0o600); err == nil && exec {
			err = os.Chmod(f, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func spec(t *testing.T) Spec {
	t.Helper()
	mods := write(t, map[string]string{"kernel/net/a.ko": "elf"})
	return Spec{
		Overlay: write(t, map[string]string{
			"etc/config/network": "config x\n", "etc/shadow": "root::\n", "etc/init.d/network": "#!/bin/sh\n", "etc/init.d/old": "#!/bin/sh /etc/rc.common\nSTART=95\nSTOP=10 # early\n",
			"etc/init.d/manual": "#!/bin/sh\n", "usr/lib/weft/services/network.toml": "start = 20\nstop = 90\ncommand = [\"x\"]\n", "etc/uci-defaults/10_x": "true\n",
			"lib/y": "plain\n", "tmp/rubbish": "x", "etc/.gitkeep": "", "etc/passwd~": "", "etc/motd": "-> banner",
		}),
		Init: filepath.Join(mods, "kernel/net/a.ko"), Applets: filepath.Join(write(t, map[string]string{"a": "/sbin/init\n# comment\n/bin/sh host\n/sbin/reboot\n"}), "a"),
		Modules: &kmod.Set{Release: "6.1", Modules: []kmod.Module{{Name: "a", Path: "kernel/net/a.ko"}}}, ModulesDir: mods,
		Features: []Feature{{Name: "x", Moves: map[string]string{"usr/sbin/tool": "sbin/tool"}, Links: map[string]string{"sbin/alias": "tool"}}},
		Foreign:  []Foreign{{Path: "usr/sbin/tool", Source: filepath.Join(mods, "kernel/net/a.ko"), Exec: true, Package: "x"}, {Path: "lib64/ld.so", Link: "../usr/lib/ld.so", Package: "libc6"}},
		Release:  Release{Dist: "Weft", Version: "0.1.0", Revision: "r7-abc", Target: "x86/64", Arch: "x86_64", Vendor: "Generic", Product: "x86/64", Epoch: 5},
		SBOM:     []byte("{}"),
	}
}

func list(t *Tree) string {
	var b strings.Builder
	for _, e := range t.List("") {
		fmt.Fprintf(&b, "%s %d:%d /%s", e.Mode, e.UID, e.GID, e.Path)
		if e.Link != "" {
			fmt.Fprintf(&b, " -> %s", e.Link)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

const wantTree = `drwxr-xr-x 0:0 /
drwxr-xr-x 0:0 /bin
Lrwxrwxrwx 0:0 /bin/sh -> ../sbin/init
drwxr-xr-x 0:0 /dev
Dcrw------- 0:0 /dev/console
drwxr-xr-x 0:0 /etc
drwxr-xr-x 0:0 /etc/config
-rw------- 0:0 /etc/config/network
-rw-r--r-- 0:0 /etc/device_info
drwxr-xr-x 0:0 /etc/init.d
-rwxr-xr-x 0:0 /etc/init.d/manual
-rwxr-xr-x 0:0 /etc/init.d/network
-rwxr-xr-x 0:0 /etc/init.d/old
Lrwxrwxrwx 0:0 /etc/motd -> banner
-rw-r--r-- 0:0 /etc/openwrt_release
-rw-r--r-- 0:0 /etc/openwrt_version
Lrwxrwxrwx 0:0 /etc/os-release -> ../usr/lib/os-release
drwxr-xr-x 0:0 /etc/rc.d
Lrwxrwxrwx 0:0 /etc/rc.d/K10old -> ../init.d/old
Lrwxrwxrwx 0:0 /etc/rc.d/K90network -> ../init.d/network
Lrwxrwxrwx 0:0 /etc/rc.d/S20network -> ../init.d/network
Lrwxrwxrwx 0:0 /etc/rc.d/S95old -> ../init.d/old
-rw------- 0:0 /etc/shadow
drwxr-xr-x 0:0 /etc/uci-defaults
-rwxr-xr-x 0:0 /etc/uci-defaults/10_x
drwxr-xr-x 0:0 /lib
drwxr-xr-x 0:0 /lib/modules
drwxr-xr-x 0:0 /lib/modules/6.1
drwxr-xr-x 0:0 /lib/modules/6.1/kernel
drwxr-xr-x 0:0 /lib/modules/6.1/kernel/net
-rw-r--r-- 0:0 /lib/modules/6.1/kernel/net/a.ko
-rw-r--r-- 0:0 /lib/modules/6.1/modules.alias
-rw-r--r-- 0:0 /lib/modules/6.1/modules.builtin
-rw-r--r-- 0:0 /lib/modules/6.1/modules.dep
-rw-r--r-- 0:0 /lib/modules/6.1/modules.softdep
-rw-r--r-- 0:0 /lib/y
drwxr-xr-x 0:0 /lib64
Lrwxrwxrwx 0:0 /lib64/ld.so -> ../usr/lib/ld.so
drwxr-xr-x 0:0 /mnt
drwxr-xr-x 0:0 /overlay
drwxr-xr-x 0:0 /proc
drwxr-xr-x 0:0 /rom
drwx------ 0:0 /root
Lrwxrwxrwx 0:0 /run -> tmp/run
drwxr-xr-x 0:0 /sbin
Lrwxrwxrwx 0:0 /sbin/alias -> tool
-rwxr-xr-x 0:0 /sbin/init
Lrwxrwxrwx 0:0 /sbin/reboot -> init
-rwxr-xr-x 0:0 /sbin/tool
drwxr-xr-x 0:0 /sys
dtrwxrwxrwx 0:0 /tmp
drwxr-xr-x 0:0 /usr
drwxr-xr-x 0:0 /usr/bin
drwxr-xr-x 0:0 /usr/lib
-rw-r--r-- 0:0 /usr/lib/os-release
drwxr-xr-x 0:0 /usr/lib/weft
-rw-r--r-- 0:0 /usr/lib/weft/sbom.cdx.json
drwxr-xr-x 0:0 /usr/lib/weft/services
-rw-r--r-- 0:0 /usr/lib/weft/services/network.toml
drwxr-xr-x 0:0 /usr/sbin
Lrwxrwxrwx 0:0 /var -> tmp
`

func TestBuild(t *testing.T) {
	tree, err := Build(spec(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := list(tree); got != wantTree {
		t.Errorf("got\n%s\nwant\n%s", got, wantTree)
	}
	release, err := tree.Read("etc/openwrt_release")
	if err != nil {
		t.Fatal(err)
	}
	const want = `DISTRIB_ID='Weft'
DISTRIB_RELEASE='0.1.0'
DISTRIB_REVISION='r7-abc'
DISTRIB_TARGET='x86/64'
DISTRIB_ARCH='x86_64'
DISTRIB_DESCRIPTION='Weft 0.1.0 r7-abc'
DISTRIB_TAINTS=''
`
	if string(release) != want {
		t.Errorf("openwrt_release:\n%s", release)
	}
}

// TestModesOfCheckout builds the same tree under another umask and with other
// modes: the archive must be the same.
func TestModesOfCheckout(t *testing.T) {
	archive := func(s Spec) []byte {
		tree, err := Build(s)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := tree.WriteTar(&b, 1700000000); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	s := spec(t)
	first := archive(s)
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	err := filepath.WalkDir(s.Overlay, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink == 0 {
			err = os.Chmod(p, 0o777)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, archive(s)) {
		t.Error("the checkout's modes or the umask show in the archive")
	}
	tr := tar.NewReader(bytes.NewReader(first))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 1700000000 || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: time %v, owner %d:%d", h.Name, h.ModTime, h.Uid, h.Gid)
		}
	}
}

func TestRoleAndFiles(t *testing.T) {
	s := spec(t)
	role := write(t, map[string]string{"rootfs/etc/banner": "role", "rootfs/etc/own": "role"})
	s.Role = &Role{Name: "r", Dir: role, ServicesDisabled: []string{"old"}}
	s.Files = write(t, map[string]string{"etc/own": "user", "usr/bin/mine!": "binary", "var/spool/x": "gone with /tmp", ".git/config": "x"})
	s.DisabledServices = []string{"network"}
	tree, err := Build(s)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := tree.Read("etc/own")
	banner, _ := tree.Read("etc/banner")
	if string(own) != "user" || string(banner) != "role" {
		t.Errorf("etc/own %q, etc/banner %q; want FILES over the role over the skeleton", own, banner)
	}
	if e, ok := tree.Lookup("usr/bin/mine"); !ok || e.Mode.Perm() != 0o755 || e.Origin != "files" {
		t.Errorf("an executable of FILES: %+v", e)
	}
	got := list(tree)
	for _, no := range []string{"/etc/rc.d/S20network", "/etc/rc.d/S95old", ".git", "/spool"} {
		if strings.Contains(got, no) {
			t.Errorf("%s is in the tree", no)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		is     error
		want   string
	}{
		{"unknown service", func(s *Spec) { s.DisabledServices = []string{"nope"} }, ErrUnknown, "manual, network, old"},
		{"unknown service of the role", func(s *Spec) { s.Role = &Role{Name: "r", ServicesDisabled: []string{"nope"}} }, ErrUnknown, "role r: services_disabled"},
		{"FILES is no folder", func(s *Spec) { s.Files = s.Init }, nil, "FILES="},
		{"folder over a file", func(s *Spec) { s.Files = write(t, map[string]string{"lib/y/z": "x"}) }, ErrConflict, "/lib/y is a file in overlay"},
		{"unit without script", func(s *Spec) { s.Files = write(t, map[string]string{"usr/lib/weft/services/lost.toml": ""}) }, nil, "has no script /etc/init.d/lost"},
		{"link in a circle", func(s *Spec) { s.Files = write(t, map[string]string{"a": "-> b", "b": "-> a", "etc/x": ""}) }, nil, ""},
		{"file below a circle", func(s *Spec) {
			s.Overlay = write(t, map[string]string{"a": "-> b", "b": "-> a"})
			s.Files = write(t, map[string]string{"a/x": ""})
		}, ErrConflict, "symbolic links"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := spec(t)
			tt.change(&s)
			_, err := Build(s)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestParseApplets(t *testing.T) {
	if _, err := ParseApplets([]byte("/bin/a\nbin/b\n")); err == nil || !strings.HasPrefix(err.Error(), ":2:") {
		t.Errorf("a relative path: %v", err)
	}
}

func TestChoose(t *testing.T) {
	got, err := Choose([]string{"iperf3"}, []string{"e2fsprogs", "netfilter"}, []string{"iperf3", "-netfilter"})
	if err != nil || len(got) != 2 || got[0].Name != "e2fsprogs" || got[1].Pins[0] != "iperf3" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Choose(nil, []string{"-nonesuch"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown package: %v", err)
	}
}

func TestRole(t *testing.T) {
	r, err := ParseRole("x", "roles/x/role.toml", []byte("description = \"d\"\npackages = [\"a\"]\n"))
	if err != nil || r.Dir != "roles/x" || r.Packages[0] != "a" {
		t.Errorf("got %+v, %v", r, err)
	}
	_, err = ParseRole("x", "role.toml", []byte("packges = []\n"))
	if err == nil || !strings.Contains(err.Error(), `unknown key "packges"`) || !strings.Contains(err.Error(), "description is missing") {
		t.Errorf("both faults at once: %v", err)
	}
	if _, err := LoadRole(t.TempDir(), "nope"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown role: %v", err)
	}
}

func FuzzParseApplets(f *testing.F) {
	f.Add([]byte("/bin/sh host\n# x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseApplets(text)
		for _, a := range list {
			if err == nil && (a == "" || strings.HasPrefix(a, "/")) {
				t.Errorf("applet %q", a)
			}
		}
	})
}
