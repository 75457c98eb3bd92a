package slot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/rootdisk"
)

// Disk is the disk that the system was booted from and its partitions.
type Disk struct {
	Boot  *rootdisk.Boot
	P1    rootdisk.Node // boot partition
	RootA rootdisk.Node
	RootB rootdisk.Node // zero where the disk has no second slot
	Data  overlay.Volume
}

// Root is the partition of a slot's root file system.
func (d *Disk) Root(id ID) rootdisk.Node {
	if id == B {
		return d.RootB
	}
	return d.RootA
}

// ErrOneSlot says that the disk has room for one system only.
var ErrOneSlot = errors.New("the boot disk has no second root partition")

// BootDevice finds the partitions of the boot disk. The error is a
// *rootdisk.DuplicateError when several disks carry its id: nothing must be
// written then. It wraps ErrOneSlot when there is no place for a second slot.
func BootDevice() (*Disk, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("find the boot disk: %w", err)
	}
	return BootDeviceOf(rootdisk.System{}, string(text))
}

// BootDeviceOf is BootDevice for given kernel arguments.
func BootDeviceOf(sys rootdisk.System, cmdline string) (*Disk, error) {
	root := ""
	for word := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(word, "root="); ok {
			root = v
		}
	}
	spec, err := rootdisk.ParseRoot(root)
	if err != nil {
		return nil, fmt.Errorf("find the boot disk: %w", err)
	}
	boot, err := sys.Find(spec)
	if err != nil {
		return nil, fmt.Errorf("find the boot disk: %w", err)
	}
	return DiskOf(sys, boot)
}

// DiskOf names the partitions of a boot disk that was found.
func DiskOf(sys rootdisk.System, boot *rootdisk.Boot) (*Disk, error) {
	d := &Disk{Boot: boot}
	if boot.Table == nil {
		return nil, fmt.Errorf("%s: %w: it has no partitions", boot.Disk.Path, ErrOneSlot)
	}
	var err error
	if d.P1, err = sys.Node(boot.Disk, 1); err != nil {
		return nil, fmt.Errorf("find the boot partition: %w", err)
	}
	if d.RootA, err = sys.Node(boot.Disk, A.RootPartition()); err != nil {
		return nil, fmt.Errorf("find the root of slot a: %w", err)
	}
	if d.Data, err = overlay.Locate(sys, boot); err != nil && !errors.Is(err, overlay.ErrNoVolume) {
		return nil, err
	}
	d.RootB, err = sys.Node(boot.Disk, B.RootPartition())
	if err != nil || d.RootB.Path == d.Data.Device {
		d.RootB = rootdisk.Node{}
		return d, fmt.Errorf("%s: %w", boot.Disk.Path, ErrOneSlot)
	}
	return d, nil
}

// MountBoot mounts the boot partition of the running system read-write at a
// folder of its own, for a short time: done brings everything to the medium and
// unmounts it. Whoever holds it keeps others waiting.
func MountBoot(ctx context.Context) (dir string, done func() error, err error) {
	d, err := BootDevice()
	if err != nil && !errors.Is(err, ErrOneSlot) {
		return "", nil, err
	}
	return MountBootOf(ctx, d)
}

// MountBootOf is MountBoot for a disk that was found before.
func MountBootOf(ctx context.Context, d *Disk) (dir string, done func() error, err error) {
	return mountBoot(ctx, d.P1.Path, "/tmp/run/weft/boot")
}

func mountBoot(ctx context.Context, device, dir string) (string, func() error, error) {
	fail := func(err error) (string, func() error, error) {
		return "", nil, fmt.Errorf("mount the boot partition %s: %w", device, err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fail(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := flock(ctx, lock); err != nil {
		lock.Close()
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		lock.Close()
		return fail(err)
	}
	unix.Unmount(dir, 0) // left by a program that was killed
	fstype := "ext4"
	if f, err := os.Open(device); err == nil {
		if overlay.IsFAT(f) {
			fstype = "vfat"
		}
		f.Close()
	}
	if err := unix.Mount(device, dir, fstype, unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		lock.Close()
		return fail(err)
	}
	return dir, func() error {
		defer lock.Close()
		err := syncfs(dir)
		if uerr := unix.Unmount(dir, 0); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount the boot partition %s: %w", device, uerr))
		}
		return err
	}, nil
}

// Prepare makes the overlay of a slot from nothing below data, where the data
// file system is mounted (/data on the running system), and puts a config archive
// (tar.gz, nil for none) there, which stage 1 restores at the slot's first boot.
// What the slot had is gone. When it returns, everything is on the medium; a
// power cut before leaves the slot without an overlay, which is an empty one.
func Prepare(data string, id ID, config io.Reader) error {
	fail := func(err error) error { return fmt.Errorf("prepare the overlay of slot %s: %w", id, err) }
	if !id.Valid() {
		return fail(fmt.Errorf("slot %q: want a or b", id))
	}
	dir := overlay.SlotDir(data, string(id))
	fresh, old := dir+".fresh", dir+".old"
	for _, d := range []string{fresh, old} {
		if err := os.RemoveAll(d); err != nil {
			return fail(err)
		}
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return fail(err)
	}
	if config != nil {
		f, err := os.OpenFile(filepath.Join(fresh, overlay.Saved), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fail(err)
		}
		_, err = io.Copy(f, config)
		if err == nil {
			err = f.Sync()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fail(err)
		}
	}
	if err := overlay.SetState(fresh, overlay.Pending); err != nil {
		return fail(err)
	}
	if err := syncfs(data); err != nil {
		return fail(err)
	}
	if err := os.Rename(dir, old); err != nil && !missing(err) {
		return fail(err)
	}
	if err := os.Rename(fresh, dir); err != nil {
		return fail(err)
	}
	if err := syncfs(data); err != nil {
		return fail(err)
	}
	if err := os.RemoveAll(old); err != nil {
		return fail(err)
	}
	return nil
}

func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("bring %s to the medium: %w", dir, err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("bring %s to the medium: %w", dir, err)
	}
	return nil
}
