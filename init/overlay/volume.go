package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/init/rootdisk"
)

// Volume is where the data file system lies: a partition of its own, or the
// rest of the root partition behind the squashfs (LEDE's "rootdisk").
type Volume struct {
	Device string
	Offset int64 // bytes; 0: the whole device
	Size   int64 // bytes
}

func (v Volume) String() string {
	if v.Offset == 0 {
		return v.Device
	}
	return fmt.Sprintf("%s from byte %d", v.Device, v.Offset)
}

// minSize is the smallest volume that is worth a file system with a journal.
const minSize = 8 << 20

// ErrNoVolume says that there is no place for data on the boot disk.
var ErrNoVolume = errors.New("no place for data")

// Locate finds the data volume of the boot disk: the data partition if there is
// one, else the space behind the squashfs, from the next multiple of 64 KiB.
// The error wraps ErrNoVolume when that space is too small.
func Locate(sys rootdisk.System, b *rootdisk.Boot) (Volume, error) {
	if b.Table != nil {
		if p, ok := b.Table.Data(); ok {
			n, err := sys.Node(b.Disk, p.Number)
			if err != nil {
				return Volume{}, fmt.Errorf("find the data partition: %w", err)
			}
			return Volume{Device: n.Path, Size: int64(n.Bytes)}, nil
		}
	}
	f, err := os.Open(b.Root.Path)
	if err != nil {
		return Volume{}, fmt.Errorf("find the data behind the root file system: %w", err)
	}
	defer f.Close()
	end, err := SquashfsEnd(f)
	if err != nil {
		return Volume{}, fmt.Errorf("find the data behind the root file system: %s: %w", b.Root.Path, err)
	}
	const align = 64 << 10
	off := (end + align - 1) / align * align
	v := Volume{Device: b.Root.Path, Offset: off, Size: int64(b.Root.Bytes) - off}
	if v.Size < minSize {
		return Volume{}, fmt.Errorf("%w: %s ends %d bytes behind the root file system, %d are needed", ErrNoVolume, b.Root.Path, max(v.Size, 0), int64(minSize))
	}
	return v, nil
}

// Attach returns a block device that begins with the volume: the partition
// itself, or a loop device, which stays until it is unmounted and detached.
func (v Volume) Attach() (path string, detach func() error, err error) {
	if v.Offset == 0 {
		return v.Device, func() error { return nil }, nil
	}
	return attachLoop(v)
}

// AttachFile binds a part of a file to a loop device, which stays until it is
// unmounted and detached.
func AttachFile(path string, offset, size int64) (device string, detach func() error, err error) {
	return attachLoop(Volume{Device: path, Offset: offset, Size: size})
}

// attachLoop binds a free loop device. Somebody else may take it between the
// question and the answer, hence the repetition (loop(4)).
func attachLoop(v Volume) (string, func() error, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("attach %s: %w (is the loop module loaded?)", v, err)
	}
	defer ctl.Close()
	back, err := os.OpenFile(v.Device, os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("attach %s: %w", v, err)
	}
	defer back.Close()
	for range 16 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("attach %s: find a free loop device: %w", v, err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return "", nil, fmt.Errorf("attach %s: %w", v, err)
		}
		cfg := unix.LoopConfig{
			Fd:   uint32(back.Fd()),
			Info: unix.LoopInfo64{Offset: uint64(v.Offset), Sizelimit: uint64(v.Size)},
		}
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], filepath.Base(v.Device))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.LOOP_CONFIGURE, uintptr(unsafe.Pointer(&cfg)))
		dev.Close()
		switch errno {
		case 0:
			return path, func() error { return detachLoop(path) }, nil
		case unix.EBUSY:
		default:
			return "", nil, fmt.Errorf("attach %s as %s: %w", v, path, errno)
		}
	}
	return "", nil, fmt.Errorf("attach %s: every loop device found was taken by somebody else", v)
}

func detachLoop(path string) error {
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	defer dev.Close()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}
