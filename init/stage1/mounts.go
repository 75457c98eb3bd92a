package stage1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool
}

// early are the mounts of LEDE's init (compatibility facts, section 6).
var early = []mount{
	{"proc", "/proc", "proc", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", false},
	{"sysfs", "/sys", "sysfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOATIME | unix.MS_NOSUID, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID, "mode=1777", false},
}

// late are those that nothing in stage 1 needs.
var late = []mount{
	{"devpts", "/dev/pts", "devpts", unix.MS_NOATIME | unix.MS_NOEXEC | unix.MS_NOSUID, "mode=620,gid=5,ptmxmode=666", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_RELATIME, "nsdelegate", true},
	{"efivarfs", "/sys/firmware/efi/efivars", "efivarfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", true},
}

// mountAll mounts a table; one that is mounted already is no error.
func mountAll(table []mount) error {
	var errs []error
	for _, m := range table {
		if m.optional {
			if _, err := os.Stat(m.target); err != nil {
				continue
			}
		} else if err := os.MkdirAll(m.target, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional {
			errs = append(errs, fmt.Errorf("mount %s at %s: %w", m.fstype, m.target, err))
		}
	}
	return errors.Join(errs...)
}

// makeTmp makes what LEDE has in /tmp. /var and /run of the root file system
// are links into it.
func makeTmp() error {
	var errs []error
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{
		{"/tmp/run", 0o755}, {"/tmp/run/weft", 0o755}, {"/tmp/lock", 0o755}, {"/tmp/state", 0o755},
		{"/tmp/log", 0o755}, {"/tmp/lib", 0o755}, {"/tmp/shm", 0o777}, {"/tmp/sysinfo", 0o755},
	} {
		errs = append(errs, os.MkdirAll(d.path, d.mode))
	}
	errs = append(errs, os.Chmod("/tmp/shm", 0o777|fs.ModeSticky))
	if err := os.Symlink("/tmp/shm", "/dev/shm"); err != nil && !errors.Is(err, fs.ErrExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
