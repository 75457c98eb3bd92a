package rootdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TellKernel makes a grown partition known to the kernel without reading the
// table anew, which it would refuse while a partition is in use
// (BLKPG_RESIZE_PARTITION, Linux 3.6).
func (g *Growth) TellKernel(disk *os.File, sectorSize int) error {
	p := unix.BlkpgPartition{
		Start:  int64(g.Partition.Start) * int64(sectorSize),
		Length: int64(g.Partition.Sectors) * int64(sectorSize),
		Pno:    int32(g.Partition.Number),
	}
	arg := unix.BlkpgIoctlArg{
		Op:      unix.BLKPG_RESIZE_PARTITION,
		Datalen: int32(unsafe.Sizeof(p)),
		Data:    (*byte)(unsafe.Pointer(&p)),
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("tell the kernel about the new size of partition %d of %s: %w", g.Partition.Number, disk.Name(), errno)
	}
	return nil
}

// ReadAnew makes the kernel read the partition table again (BLKRRPART). It
// fails with EBUSY while a partition is in use.
func ReadAnew(disk *os.File) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKRRPART, 0); errno != 0 {
		return fmt.Errorf("read the partition table of %s anew: %w", disk.Name(), errno)
	}
	return nil
}

// Watch is a socket that hears the kernel announce devices (uevents).
type Watch struct{ f *os.File }

// NewWatch opens the socket. Events from before are not seen: open first, look
// then.
func NewWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("join the kernel's device events: %w", err)
	}
	return &Watch{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close frees the socket and ends a Next that waits.
func (w *Watch) Close() error { return w.f.Close() }

// Next waits until a block device comes, goes or changes (block is true), or
// until a device comes that may want a driver, such as the SCSI device of a USB
// stick, whose disk shows up only once sd_mod is there. It ends with the error
// of ctx.
func (w *Watch) Next(ctx context.Context) (block bool, err error) {
	if err := w.f.SetReadDeadline(time.Time{}); err != nil {
		return false, fmt.Errorf("wait for the kernel's device events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := w.f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			return true, nil // events were lost: look
		}
		if err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			return false, fmt.Errorf("read the kernel's device events: %w", err)
		}
		if block, driver := judgeEvent(buf[:n]); block || driver {
			return block, nil
		}
	}
}

// judgeEvent looks at the NUL-separated lines of an event: is it about a block
// device, and is it a new device that a driver may be loaded for?
func judgeEvent(msg []byte) (block, driver bool) {
	add, alias := false, false
	for line := range bytes.SplitSeq(msg, []byte{0}) {
		switch key, value, _ := strings.Cut(string(line), "="); key {
		case "SUBSYSTEM":
			block = value == "block"
		case "ACTION":
			add = value == "add"
		case "MODALIAS":
			alias = value != ""
		}
	}
	return block, add && alias
}
