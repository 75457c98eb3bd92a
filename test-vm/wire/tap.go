package wire

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TAP is an Ethernet device of the kernel whose cable is in this program.
type TAP struct {
	*os.File
	name string
}

// OpenTAP makes a TAP device in the network namespace of the calling thread; it goes with Close. Source: kernel
// Documentation/networking/tuntap.rst.
func OpenTAP(name string) (*TAP, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make TAP device %s: open /dev/net/tun: %w (is the module tun loaded?)", name, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TAP device %s: %w", name, err)
	}
	return &TAP{os.NewFile(uintptr(fd), name), name}, nil
}

// Carrier tells the device whether a cable is plugged in; at first it is.
func (t *TAP) Carrier(on bool) error {
	value := 0
	if on {
		value = 1
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return fmt.Errorf("carrier of %s: %w", t.name, err)
	}
	var ioctl error
	if err := raw.Control(func(fd uintptr) { ioctl = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, value) }); err != nil {
		return fmt.Errorf("carrier of %s: %w", t.name, err)
	}
	if ioctl != nil {
		return fmt.Errorf("set the carrier of %s: %w", t.name, ioctl)
	}
	return nil
}
