package unit

import (
	"fmt"
	"syscall"
)

// sendTimeout bounds one notification. A supervisor that does not read for this
// long is itself broken, and a service must not hang with it.
var sendTimeout = syscall.Timeval{Sec: 2}

// Notify sends one sd_notify(3) message, such as "READY=1" or
// "STATUS=loading\nREADY=1", to the socket at addr: a path, or a name in the
// abstract namespace written with a leading '@'. An empty addr (no supervisor)
// is not an error.
func Notify(addr, msg string) error {
	if addr == "" {
		return nil
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify supervisor: %w", err)
	}
	defer syscall.Close(fd)
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &sendTimeout); err != nil {
		return fmt.Errorf("notify supervisor: %w", err)
	}
	for {
		// The syscall package turns a leading '@' into the NUL of an
		// abstract name.
		err := syscall.Sendto(fd, []byte(msg), syscall.MSG_NOSIGNAL, &syscall.SockaddrUnix{Name: addr})
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("notify supervisor at %s: %w", addr, err)
		}
		return nil
	}
}
