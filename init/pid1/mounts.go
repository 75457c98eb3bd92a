package pid1

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool
}

// mounts are those of LEDE's init (compatibility facts, section 6). Stage 1 has
// made them already, unless the kernel started us without an initramfs.
var mounts = []mount{
	{"proc", "/proc", "proc", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", false},
	{"sysfs", "/sys", "sysfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOATIME | unix.MS_NOSUID, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID, "mode=1777", false},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOATIME | unix.MS_NOEXEC | unix.MS_NOSUID, "mode=620,gid=5,ptmxmode=666", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_RELATIME, "nsdelegate", true},
	{"efivarfs", "/sys/firmware/efi/efivars", "efivarfs", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID, "", true},
}

// tmpDirs is what LEDE has in /tmp; /var and /run are links into it.
var tmpDirs = []struct {
	path string
	mode os.FileMode
}{
	{"/tmp/run", 0o755}, {"/tmp/run/weft", 0o755}, {"/tmp/lock", 0o755}, {"/tmp/state", 0o755},
	{"/tmp/log", 0o755}, {"/tmp/lib", 0o755}, {"/tmp/shm", 0o777 | os.ModeSticky}, {"/tmp/sysinfo", 0o755},
}

// mountAll makes the mounts that are not there; what is there stays as it is.
func mountAll() error {
	var errs []error
	for _, m := range mounts {
		if mounted(m.target) {
			continue
		}
		if _, err := os.Stat(m.target); err != nil {
			if m.optional {
				continue
			}
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional {
			errs = append(errs, fmt.Errorf("mount %s at %s: %w", m.fstype, m.target, err))
		}
	}
	for _, d := range tmpDirs {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			errs = append(errs, err)
		} else if d.mode&os.ModeSticky != 0 {
			errs = append(errs, os.Chmod(d.path, d.mode))
		}
	}
	if err := os.Symlink("/tmp/shm", "/dev/shm"); err != nil && !errors.Is(err, os.ErrExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mounted tells by the device number whether something is mounted at path.
func mounted(path string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(path, &here) != nil || unix.Lstat(path+"/..", &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// mountPoint is one line of /proc/self/mountinfo.
type mountPoint struct {
	path, fstype, source string
}

// parseMounts reads mountinfo (proc(5)), in the order of mounting.
func parseMounts(text string) []mountPoint {
	var out []mountPoint
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		out = append(out, mountPoint{unescape(l[4]), r[0], unescape(r[1])})
	}
	return out
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			n := 0
			ok := true
			for _, c := range []byte(s[i+1 : i+4]) {
				if c < '0' || c > '7' {
					ok = false
					break
				}
				n = n*8 + int(c-'0')
			}
			if ok && n < 256 {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// virtual file systems hold nothing that an unmount would save.
var virtual = map[string]bool{
	"proc": true, "sysfs": true, "devtmpfs": true, "devpts": true, "cgroup2": true, "efivarfs": true, "securityfs": true,
	"debugfs": true, "tracefs": true, "bpf": true, "pstore": true, "ramfs": true, "mqueue": true, "nsfs": true, "rootfs": true,
}

// unmountAll leaves every file system clean: unmounted if nothing uses it, else
// read-only. Failures are returned; there is nothing more to do about them.
func unmountAll() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	list := parseMounts(string(text))
	var errs []error
	// Newest first: nothing then lies below what is unmounted.
	for i := len(list) - 1; i >= 0; i-- {
		m := list[i]
		if virtual[m.fstype] || m.fstype == "tmpfs" || m.path == "/" {
			continue
		}
		if unix.Unmount(m.path, unix.UMOUNT_NOFOLLOW) == nil {
			continue
		}
		// The data file system is busy as long as the overlay on / is there,
		// and that is until the end.
		if err := unix.Mount("", m.path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil && m.fstype != "squashfs" {
			errs = append(errs, fmt.Errorf("make %s (%s on %s) read-only: %w", m.path, m.fstype, m.source, err))
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		errs = append(errs, fmt.Errorf("make / read-only: %w", err))
	}
	return errors.Join(errs...)
}
