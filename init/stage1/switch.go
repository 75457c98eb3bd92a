package stage1

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/stage1/handover"
)

// enter leaves the initramfs for the root file system at dir and becomes its
// /sbin/init. It returns only when that fails.
func (b *boot) enter(dir string) error {
	if t, err := fixClock(filepath.Join(dir, "etc"), time.Now()); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	} else if !t.IsZero() {
		b.mark("clock set")
	}
	board, model := machine("/sys", "/proc")
	if err := writeSysinfo("/tmp/sysinfo", board, model); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sbin/init")); err != nil {
		return fmt.Errorf("the root file system on %s has no /sbin/init: %w", b.hand.Root, err)
	}
	b.mark("switch root")
	if err := b.hand.Write(handover.Path); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	}
	b.con.close()
	old, err := os.Open("/")
	if err != nil {
		return err
	}
	defer old.Close()
	if err := moveMounts(dir); err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make %s the root: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("make %s the root: %w", dir, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// The initramfs is memory; everything in it is needless from here on. What
	// cannot be removed only costs memory.
	emptyInitramfs(int(old.Fd()))
	env := []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "HOME=/", "TERM=linux"}
	if b.hand.Failsafe {
		env = append(env, "FAILSAFE=true")
	}
	if b.watchdog != nil {
		fd, err := unix.FcntlInt(b.watchdog.Fd(), unix.F_DUPFD, 3) // stays open over exec
		if err != nil {
			return fmt.Errorf("hand the watchdog over: %w", err)
		}
		env = append(env, fmt.Sprintf("WDTFD=%d", fd))
	}
	return fmt.Errorf("start /sbin/init: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, env))
}

// moveMounts takes the mounts along. On LEDE the squashfs is at /rom and the
// data file system at /overlay; in failsafe mode the squashfs is the root.
func moveMounts(dir string) error {
	for _, m := range []string{romDir, overlayDir, dataDir, "/dev", "/proc", "/sys", "/tmp"} {
		if m == dir || !isMount(m) {
			continue
		}
		to := filepath.Join(dir, m)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fmt.Errorf("make a place for %s in the root file system: %w", m, err)
		}
		if err := unix.Mount(m, to, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to %s: %w", m, to, err)
		}
	}
	return nil
}

// isMount tells by the device number whether something is mounted at path.
func isMount(path string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(path, &here) != nil || unix.Lstat(filepath.Dir(path), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// Magic numbers of the file systems that an initramfs can be (statfs(2)).
const (
	ramfsMagic = 0x858458f6
	tmpfsMagic = 0x01021994
)

// emptyInitramfs removes everything from the old root, after making sure that
// it is memory, and without crossing into other file systems.
func emptyInitramfs(root int) error {
	var s unix.Statfs_t
	if err := unix.Fstatfs(root, &s); err != nil {
		return err
	}
	if uint32(s.Type) != ramfsMagic && uint32(s.Type) != tmpfsMagic {
		return errors.New("the old root is no memory file system: left as it is")
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	return removeBelow(root, uint64(st.Dev))
}

func removeBelow(dir int, dev uint64) error {
	// A descriptor of its own: closing the file must not close the caller's.
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || uint64(st.Dev) != dev {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.Unlinkat(fd, name, 0)
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		removeBelow(sub, dev)
		unix.Close(sub)
		unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	}
	return nil
}
