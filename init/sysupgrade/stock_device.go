package sysupgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/slot"
)

// memoryReserve is what writing a stock image leaves of the memory.
const memoryReserve = 48 << 20

// inMemory brings an image into memory: the disk it may lie on is overwritten.
func inMemory(ctx context.Context, name string, p *Progress) (*File, error) {
	if !IsURL(name) {
		var st unix.Statfs_t
		if err := unix.Statfs(name, &st); err == nil && st.Type == unix.TMPFS_MAGIC {
			return OpenFile(name)
		}
	}
	src, err := Open(ctx, name, p)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if free := available(); free < src.Size()+memoryReserve {
		return nil, fmt.Errorf("a stock image must be in memory while the disk is overwritten: it has %d MiB, and %d MiB are free (%d more are needed): stop services, or write the disk from another system",
			src.Size()>>20, free>>20, (src.Size()+memoryReserve-free)>>20+1)
	}
	in := src.Stream(ctx)
	defer in.Close()
	const path = "/tmp/sysupgrade.img"
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(onlyWriter{out}, in, make([]byte, blockSize))
	if err := errors.Join(err, out.Close()); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("bring the image into memory: %w", err)
	}
	return OpenFile(path)
}

// available is the memory that could be had, in bytes.
func available() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var n int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &n); err == nil {
			return n << 10
		}
	}
	return 0
}

// stock replaces the running system by a stock image. When it returns nil the
// device must be restarted at once; the error says whether anything was written.
func stock(ctx context.Context, req *Request, dev *Device, disk *slot.Disk, config []byte, p *Progress) error {
	if req.NoReboot {
		return fmt.Errorf("%w: after a stock image the device must restart at once: leave out --no-reboot", ErrRefused)
	}
	src, err := inMemory(ctx, req.Path, p)
	if err != nil {
		return err
	}
	defer src.Close()
	r, err := Validate(ctx, src, dev, Keep{Config: config != nil, IgnoreMinor: req.IgnoreMinor})
	if err != nil {
		return fmt.Errorf("check the image: %w", err)
	}
	if err := r.Err(req.Force); err != nil {
		return err
	}
	t := &StockTarget{Table: disk.Boot.Table, SavePartitions: req.SavePartitions()}
	if config != nil && t.Whole(r.head) {
		if err := roomForSettings(r.head, t.Table); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	p.note("%s", EndOfSlots(r.head, t))
	// What is needed later must be in memory now: file system drivers, programs.
	for _, fstype := range []string{"vfat", "ext4"} {
		if err := known(fstype); err != nil {
			return err
		}
	}
	_, done, err := slot.MountBoot(ctx)
	if err != nil {
		return err
	}
	if err := done(); err != nil {
		return err
	}
	if err := pin(); err != nil {
		return fmt.Errorf("hold the running programs in memory: %w", err)
	}
	if err := freeze(ctx); err != nil {
		return err
	}
	node, err := os.OpenFile(disk.Boot.Disk.Path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the disk: %w", err)
	}
	defer node.Close()
	t.Disk = &Node{node}
	if err := WriteStock(context.WithoutCancel(ctx), src, r.head, t, p); err != nil {
		return fmt.Errorf("the disk is written in part only: %w: do not restart this device, run sysupgrade again", err)
	}
	if config == nil {
		return nil
	}
	p.step(StepSwitch)
	if err := handOver(node, disk, r.head, t.Whole(r.head), config); err != nil {
		return fmt.Errorf("%w: %w", ErrSettings, err)
	}
	return nil
}

// known makes sure that the kernel has a file system, loading its driver.
func known(fstype string) error {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == fstype {
			return nil
		}
	}
	// Mounting something that is not there loads the driver and fails.
	_ = unix.Mount("/dev/null", "/mnt", fstype, unix.MS_RDONLY, "")
	return nil
}

// pin holds this program, which is every program of the device, in memory: its
// pages cannot be read again from a disk that is being overwritten.
func pin() error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	if err := unix.Mlock(m); err != nil {
		return err
	}
	return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// freeze makes every file system read-only, whoever writes to it.
func freeze(ctx context.Context) error {
	unix.Sync()
	fail := func(err error) error { return fmt.Errorf("make the file systems read-only: %w", err) }
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0); err != nil {
		return fail(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		text, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return fail(err)
		}
		busy := writable(string(text))
		if len(busy) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fail(fmt.Errorf("%s stays writable: restart the device", strings.Join(busy, ", ")))
		}
		select {
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// writable lists what is mounted writable from a block device.
func writable(mounts string) []string {
	var out []string
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) >= 4 && strings.HasPrefix(f[0], "/dev/") && (f[3] == "rw" || strings.HasPrefix(f[3], "rw,")) {
			out = append(out, f[1])
		}
	}
	return out
}

// blkpg is the argument of BLKPG (linux/blkpg.h).
type blkpg struct {
	op, flags, length int32
	_                 int32
	data              unsafe.Pointer
}

type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [64 + 64]byte
}

func partition(disk *os.File, op, number int32, start, length int64) error {
	part := &blkpgPartition{start: start, length: length, number: number}
	arg := &blkpg{op: op, length: int32(unsafe.Sizeof(*part)), data: unsafe.Pointer(part)}
	const blkPG = 0x1269
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), blkPG, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}

// handOver puts the settings where stock looks for them: sysupgrade.tgz in the
// root of partition 1.
func handOver(disk *os.File, d *slot.Disk, h *Head, whole bool, config []byte) error {
	_ = (&Node{disk}).Forget()
	if whole {
		const add, del = 1, 2 // BLKPG_ADD_PARTITION, BLKPG_DEL_PARTITION
		p1, _ := h.Table.Partition(1)
		if err := partition(disk, del, 1, 0, 0); err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("tell the kernel of the new partition 1: %w", err)
		}
		if err := partition(disk, add, 1, int64(p1.Start)*sector, int64(p1.Sectors)*sector); err != nil {
			return fmt.Errorf("tell the kernel of the new partition 1: %w", err)
		}
	}
	path := d.P1.Path
	var dev *os.File
	var err error
	for range 100 { // devtmpfs makes the node again
		if dev, err = os.Open(path); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	_ = (&Node{dev}).Forget()
	fstype := "ext4"
	if overlay.IsFAT(dev) {
		fstype = "vfat"
	}
	dev.Close()
	const dir = "/tmp/run/sysupgrade/p1"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(path, dir, fstype, unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount the new partition 1 as %s: %w", fstype, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, overlay.Saved), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(config)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	err = errors.Join(err, syncDir(dir), unix.Unmount(dir, 0))
	return errors.Join(err, disk.Sync())
}
