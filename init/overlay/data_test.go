package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// lab is a data volume in a file behind a loop device, in a mount namespace of
// this goroutine's own.
type lab struct {
	t     *testing.T
	dir   string
	image string
	data  *Data
	notes []string
}

const labSize = 64 << 20

// newLab skips where mounting is not allowed. The goroutine stays on its
// thread, which ends with it and takes its mounts along.
func newLab(t *testing.T, size int64) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, tool := range []string{"/sbin/mke2fs", "/sbin/e2fsck"} {
		if _, err := os.Stat(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("a mount namespace of its own: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("a mount namespace of its own: %v", err)
	}
	dir := t.TempDir()
	l := &lab{t: t, image: filepath.Join(dir, "disk.img")}
	f, err := os.Create(l.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	dev, detach, err := attachLoop(Volume{Device: l.image, Size: size})
	if err != nil {
		t.Skipf("needs a loop device: %v", err)
	}
	l.data = &Data{
		Device:  dev,
		Size:    size,
		Dir:     filepath.Join(dir, "overlay"),
		Kernel:  System{},
		Scratch: dir,
		Say: func(level slog.Level, text string) {
			l.notes = append(l.notes, level.String()+" "+text)
		},
	}
	l.dir = dir
	t.Cleanup(func() {
		mounts, err := os.ReadFile("/proc/thread-self/mounts")
		if err != nil {
			t.Error(err)
		}
		lines := strings.Split(string(mounts), "\n")
		for i := range lines {
			if f := strings.Fields(lines[len(lines)-1-i]); len(f) > 1 && strings.HasPrefix(f[1], dir) {
				if err := l.data.Kernel.Unmount(f[1]); err != nil {
					t.Error(err)
				}
			}
		}
		if err := detach(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// folder makes a folder whose mounts are undone with the lab.
func (l *lab) folder(name string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func (l *lab) open() {
	l.t.Helper()
	if err := l.data.Open(context.Background()); err != nil {
		l.t.Fatalf("%v\n%s", err, strings.Join(l.notes, "\n"))
	}
}

func (l *lab) close() {
	l.t.Helper()
	if err := l.data.Kernel.Unmount(l.data.Dir); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.data.Dir}, elem...)...)
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	if err := os.MkdirAll(filepath.Dir(l.path(name)), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.path(name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) read(name string) string {
	l.t.Helper()
	b, err := os.ReadFile(l.path(name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (l *lab) noted(want string) {
	l.t.Helper()
	for _, n := range l.notes {
		if strings.Contains(n, want) {
			return
		}
	}
	l.t.Errorf("nothing said with %q:\n%s", want, strings.Join(l.notes, "\n"))
}

// scribble overwrites bytes of the volume that is not mounted.
func (l *lab) scribble(off int64, n int, b byte) {
	l.t.Helper()
	f, err := os.OpenFile(l.data.Device, os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{b}, n), off)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		l.t.Fatal(err)
	}
}

func TestFirstBootAndSecond(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	if s := GetState(l.data.Dir); s != Pending {
		t.Errorf("state after formatting is %v, want pending", s)
	}
	l.write("upper/etc/x", "kept?")
	l.close()

	// The first boot was cut: everything starts again.
	l.open()
	if _, err := os.Stat(l.path("upper/etc")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished first boot left upper/etc: %v", err)
	}
	l.noted("starting again from an empty overlay")
	l.write("upper/etc/x", "kept")
	if err := SetState(l.data.Dir, Ready); err != nil {
		t.Fatal(err)
	}
	l.close()

	l.notes = nil
	l.open()
	if got := l.read("upper/etc/x"); got != "kept" {
		t.Errorf("after a reboot: %q", got)
	}
	if len(l.notes) != 0 {
		t.Errorf("a clean boot says something: %q", l.notes)
	}
	l.close()
	out, err := exec.Command("/sbin/e2fsck", "-fn", l.data.Device).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck -fn: %v\n%s", err, out)
	}
}

func TestOverlayMount(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	lower, target := l.folder("lower"), l.folder("target")
	if err := os.WriteFile(filepath.Join(lower, "motd"), []byte("rom"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := MountRoot(System{}, lower, l.data.Dir, target); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "motd"), []byte("ours"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := l.read("upper/motd"); got != "ours" {
		t.Errorf("upper/motd is %q", got)
	}
	mounts, err := os.ReadFile("/proc/thread-self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if want := "overlayfs:" + l.data.Dir + " " + target + " overlay rw,noatime,lowerdir=" + lower + ",upperdir=" + l.data.Dir + "/upper,workdir=" + l.data.Dir + "/work"; !strings.Contains(string(mounts), want) {
		t.Errorf("no mount %q in\n%s", want, mounts)
	}
}

func TestMark(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	l.write("upper/etc/x", "old")
	if err := SetState(l.data.Dir, Ready); err != nil {
		t.Fatal(err)
	}
	l.close()
	if err := WriteMark(Volume{Device: l.data.Device}); err != nil {
		t.Fatal(err)
	}
	l.open()
	if _, err := os.Stat(l.path("upper/etc")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the marked file system was not made anew")
	}
	l.close()
	l.notes = nil
	l.open()
	for _, n := range l.notes {
		if strings.Contains(n, "making") {
			t.Error("the mark is still there after formatting")
		}
	}
	l.close()
}

func TestReset(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep=%v", keep), func(t *testing.T) {
			l := newLab(t, labSize)
			l.open()
			l.write("upper/etc/config/network", "x")
			l.write(Saved, "tgz")
			if err := SetState(l.data.Dir, Ready); err != nil {
				t.Fatal(err)
			}
			if err := Reset(l.data.Dir, keep); err != nil {
				t.Fatal(err)
			}
			if s := GetState(l.data.Dir); s != Pending {
				t.Errorf("state %v, want pending", s)
			}
			if hasEntries(l.path("upper")) {
				t.Error("upper is not empty")
			}
			if got := l.read(Saved) == "tgz"; got != keep {
				t.Errorf("saved config kept: %v, want %v", got, keep)
			}
			l.close()
			l.open()
			if got := l.read(Saved) == "tgz"; got != keep {
				t.Errorf("saved config kept over a reboot: %v, want %v", got, keep)
			}
			l.close()
		})
	}
}

func TestForeignIsLeftAlone(t *testing.T) {
	l := newLab(t, labSize)
	f, err := os.OpenFile(l.data.Device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("LUKS\xba\xbe"), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	err = l.data.Open(context.Background())
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "factoryreset") {
		t.Errorf("got %v, want ErrForeign with the way out", err)
	}
	head := make([]byte, 6)
	f, _ = os.Open(l.data.Device)
	defer f.Close()
	if _, err := f.ReadAt(head, 0); err != nil || string(head) != "LUKS\xba\xbe" {
		t.Errorf("the volume begins with %q, %v", head, err)
	}
}

func TestStateLost(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	l.write("upper/etc/x", "mine")
	if err := os.Remove(l.path(stateName)); err != nil {
		t.Fatal(err)
	}
	l.close()
	l.open()
	if got := l.read("upper/etc/x"); got != "mine" || GetState(l.data.Dir) != Ready {
		t.Errorf("x is %q, state %v", got, GetState(l.data.Dir))
	}
	l.close()
}

func TestUpperIsAFile(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	if err := errors.Join(SetState(l.data.Dir, Ready), os.Remove(l.path("upper")), os.Remove(l.path("work"))); err != nil {
		t.Fatal(err)
	}
	l.write("upper", "not a folder")
	if err := os.Symlink("/nowhere", l.path("work")); err != nil {
		t.Fatal(err)
	}
	l.close()
	l.open()
	l.noted("upper is no folder: moved to")
	if err := MountRoot(System{}, l.folder("lower"), l.data.Dir, l.folder("target")); err != nil {
		t.Error(err)
	}
}

// TestFull fills every block and boots again.
func TestFull(t *testing.T) {
	l := newLab(t, 16<<20)
	l.open()
	if err := SetState(l.data.Dir, Ready); err != nil {
		t.Fatal(err)
	}
	l.write("upper/etc/config/network", "mine")
	lower, target := l.folder("lower"), l.folder("target")
	if err := MountRoot(System{}, lower, l.data.Dir, target); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(target, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1 << 20, 4096, 512} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("filling: %v", err)
		}
	}
	f.Close()
	if err := (System{}).Unmount(target); err != nil {
		t.Fatal(err)
	}
	l.close()

	l.open()
	l.noted("the data partition is full")
	if err := MountRoot(System{}, lower, l.data.Dir, target); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "etc/config/network")); err != nil || string(b) != "mine" {
		t.Errorf("config: %q, %v", b, err)
	}
	if err := os.Remove(filepath.Join(target, "filler")); err != nil {
		t.Errorf("a full overlay cannot be cleared: %v", err)
	}
	if err := os.WriteFile(filepath.Join(target, "after"), []byte("room"), 0o600); err != nil {
		t.Errorf("after clearing: %v", err)
	}
}

// TestRepair removes the journal: the kernel refuses to mount, e2fsck makes a
// new one, the rest survives.
func TestRepair(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	if err := SetState(l.data.Dir, Ready); err != nil {
		t.Fatal(err)
	}
	l.write("upper/etc/config/network", "mine")
	l.close()
	if out, err := exec.Command("/sbin/debugfs", "-w", "-R", "clri <8>", l.data.Device).CombinedOutput(); err != nil {
		t.Skipf("debugfs: %v: %s", err, out)
	}
	l.open()
	l.noted("repairing it")
	l.noted("is repaired")
	if got := l.read("upper/etc/config/network"); got != "mine" {
		t.Errorf("network is %q", got)
	}
	l.close()
}

// blind is a kernel that cannot mount the file system for writing, whatever
// e2fsck does, until it is made anew.
type blind struct {
	System
	formatted bool
}

func (b *blind) Mount(source, target, fstype string, flags uintptr, data string) error {
	if flags&unix.MS_RDONLY == 0 && !b.formatted {
		return fmt.Errorf("mount %s: %w", source, unix.EUCLEAN)
	}
	return b.System.Mount(source, target, fstype, flags, data)
}

func (b *blind) Run(ctx context.Context, path string, args ...string) (int, string, error) {
	if filepath.Base(path) == "mke2fs" {
		b.formatted = true
	}
	return b.System.Run(ctx, path, args...)
}

func TestSalvage(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	if err := SetState(l.data.Dir, Ready); err != nil {
		t.Fatal(err)
	}
	l.write("upper/etc/config/network", "mine")
	if err := os.Chown(l.path("upper/etc/config/network"), 7, 8); err != nil {
		t.Fatal(err)
	}
	l.write("upper/root/large", "lost")
	if err := os.Symlink("../x", l.path("upper/etc/link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(l.path("upper/etc/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	l.close()
	l.data.Kernel = &blind{}
	l.open()
	l.noted("ERROR " + l.data.Device + " cannot be repaired: formatting it, what was in the overlay is lost, but 1 files of its /etc could be read and are kept")
	if got := l.read("upper/etc/config/network"); got != "mine" {
		t.Errorf("network is %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(l.path("upper/etc/config/network"), &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o777 != 0o600 {
		t.Errorf("owner %d:%d mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	if to, err := os.Readlink(l.path("upper/etc/link")); err != nil || to != "../x" {
		t.Errorf("link: %q, %v", to, err)
	}
	if err := unix.Lstat(l.path("upper/etc/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the deletion of etc/gone was lost: %v", err)
	}
	if _, err := os.Stat(l.path("upper/root")); err == nil {
		t.Error("more than /etc came back from a file system that was made anew")
	}
	if s := GetState(l.data.Dir); s != Ready {
		t.Errorf("state %v: the saved configuration would be erased at the next boot", s)
	}
	l.close()
}

// TestSuperblockGone: the start is overwritten; a large volume is repaired
// from the copy of its superblock, a small one is made anew.
func TestSuperblockGone(t *testing.T) {
	for _, tc := range []struct {
		size int64
		want string
	}{
		{labSize, "holds no known file system: formatting it"},
		{256 << 20, "repairing from the copy of its superblock"},
	} {
		t.Run(fmt.Sprint(tc.size>>20, " MiB"), func(t *testing.T) {
			l := newLab(t, tc.size)
			l.open()
			if err := SetState(l.data.Dir, Ready); err != nil {
				t.Fatal(err)
			}
			l.write("upper/etc/config/network", "mine")
			l.close()
			l.scribble(0, 8192, 0x5a)
			l.open()
			l.noted(tc.want)
			if tc.size > labSize {
				if got := l.read("upper/etc/config/network"); got != "mine" {
					t.Errorf("network is %q", got)
				}
			}
			l.close()
		})
	}
}

// TestNoTool: without e2fsck nothing is formatted.
type toolless struct{ blind }

func (toolless) Run(context.Context, string, ...string) (int, string, error) {
	return 0, "", unix.ENOENT
}

func TestNoTool(t *testing.T) {
	l := newLab(t, labSize)
	l.open()
	l.close()
	l.data.Kernel = &toolless{}
	if err := l.data.Open(context.Background()); !errors.Is(err, ErrUnreadable) {
		t.Errorf("got %v, want ErrUnreadable", err)
	}
	l.data.Kernel = System{}
	l.notes = nil
	l.open()
	for _, n := range l.notes {
		if strings.Contains(n, "formatting") {
			t.Error("the volume was formatted after all")
		}
	}
	l.close()
}

func maySetResources(t *testing.T) bool {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		t.Fatal(err)
	}
	return caps[0].Effective>>unix.CAP_SYS_RESOURCE&1 == 1
}

func TestFileSystemGrows(t *testing.T) {
	l := newLab(t, 256<<20)
	if !maySetResources(t) {
		t.Skip("resizing a mounted ext4 needs CAP_SYS_RESOURCE")
	}
	if out, err := exec.Command("/sbin/mke2fs", append(append([]string{}, mke2fsArgs(labSize, randomUUID(), randomUUID())...), l.data.Device, "64M")...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.open()
	l.noted("grew from 64.0 MiB to 256.0 MiB")
	var s unix.Statfs_t
	if err := unix.Statfs(l.data.Dir, &s); err != nil || int64(s.Blocks)*s.Bsize < 230<<20 {
		t.Errorf("the file system has %d bytes, %v", int64(s.Blocks)*s.Bsize, err)
	}
	l.close()
}

// TestAppendedArchive: sysupgrade on LEDE left the config where the data file
// system comes to lie.
func TestAppendedArchive(t *testing.T) {
	for _, at := range []int64{0, 5 * 512} {
		t.Run(fmt.Sprint("at byte ", at), func(t *testing.T) {
			l := newLab(t, labSize)
			tgz := archive(t, member{name: "etc/config/network", body: "mine"})
			f, err := os.OpenFile(l.data.Device, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if at > 0 {
				_, err = f.WriteAt(Mark, 0)
			}
			if err == nil {
				_, err = f.WriteAt(append(bytes.Clone(tgz), 0xff, 0xff, 0x12), at)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			l.data.BeforeFormat = func(archive string) error {
				b, err := os.ReadFile(archive)
				if err != nil || !bytes.Equal(b, tgz) {
					t.Errorf("BeforeFormat was given %d bytes (%v), want %d", len(b), err, len(tgz))
				}
				return errors.New("no room elsewhere")
			}
			l.open()
			if got := l.read(Saved); got != string(tgz) {
				t.Errorf("the archive was kept as %d bytes, want %d", len(got), len(tgz))
			}
			l.noted("in memory alone while")
			l.close()
		})
	}
}

func TestVolumeBehindSquashfs(t *testing.T) {
	l := newLab(t, labSize)
	back := filepath.Join(t.TempDir(), "root.img")
	if err := os.WriteFile(back, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	v := Volume{Device: back, Offset: 4 << 20, Size: 28 << 20}
	dev, detach, err := v.Attach()
	if err != nil {
		t.Fatal(err)
	}
	l.data.Device, l.data.Size = dev, v.Size
	l.open()
	l.close()
	if err := detach(); err != nil {
		t.Error(err)
	}
	f, err := os.Open(back)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 4<<20)
	if _, err := f.ReadAt(head, 0); err != nil || len(bytes.Trim(head, "\x00")) != 0 {
		t.Errorf("bytes before the volume were touched (%v)", err)
	}
	sb := make([]byte, 2)
	if _, err := f.ReadAt(sb, 4<<20+0x438); err != nil || sb[0] != 0x53 {
		t.Errorf("no ext4 superblock at the volume: % x, %v", sb, err)
	}
}
