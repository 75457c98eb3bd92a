// Package load are the programs that load a bed: bulk transfers, round trips, connection churn, idle flows, packet trains
// and probes of faithfulness. They use blocking sockets on threads of their own in the namespaces of the bed's nodes,
// because what they measure must not wait for Go's scheduler. Both ends run in one process, so one-way delays need no
// synchronised clocks.
package load

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long one socket call may take before it counts as failed.
const Patience = 10 * time.Second

// Percentile returns the p-th percentile (0 to 100) of values, by nearest rank; of none it is 0.
func Percentile[T int64 | float64 | time.Duration](values []T, p float64) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(p/100*float64(len(s))+0.5) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// Median returns the middle value, of an even number the mean of the two middle ones.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func family(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// listen opens a plain TCP listener (never MPTCP) in the namespace of the calling thread.
func listen(at netip.AddrPort, flags int) (int, error) {
	fd, err := unix.Socket(family(at), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		if err = unix.Bind(fd, sockaddr(at)); err == nil {
			err = unix.Listen(fd, 4096)
		}
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("listen on %v: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

// dial connects from the namespace of the calling thread. The socket blocks, and its calls end with EAGAIN after Patience.
func dial(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(family(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	setPatience(fd)
	err = unix.Connect(fd, sockaddr(to))
	if err == unix.EINTR { // goes on in the background
		err = finishConnect(fd)
	}
	if err != nil {
		unix.Close(fd)
		if err == unix.EINPROGRESS {
			err = unix.ETIMEDOUT
		}
		return -1, fmt.Errorf("connect to %v: %w", to, err)
	}
	return fd, nil
}

func finishConnect(fd int) error {
	for end := time.Now().Add(Patience); ; {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, int(max(0, time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if n == 0 {
			return unix.ETIMEDOUT
		}
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && v != 0 {
			err = unix.Errno(v)
		}
		return err
	}
}

// setPatience bounds reads and writes; it cannot fail on a socket.
func setPatience(fd int) {
	tv := unix.NsecToTimeval(Patience.Nanoseconds())
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// read and write are the calls, again where a signal came between.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func write(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Write(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

var errEarlyEnd = errors.New("the connection ended early")

func readAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := read(fd, b)
		if err != nil {
			return err
		}
		if n == 0 {
			return errEarlyEnd
		}
		b = b[n:]
	}
	return nil
}

// abort closes a connection with a reset.
func abort(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

func noDelay(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// sleepUntil sleeps to within some 50 µs on the calling thread.
func sleepUntil(t time.Time) {
	for {
		d := time.Until(t)
		if d <= 0 {
			return
		}
		ts := unix.NsecToTimespec(d.Nanoseconds())
		unix.Nanosleep(&ts, nil)
	}
}

// ownFiles gives the calling thread a table of open files of its own with nothing but those named, so that it can have as
// many more as a process may. The goroutine must be locked to its thread for ever and use system calls alone for files.
// What Go's runtime polls with stays too: a garbage collection that starts on this thread polls.
func ownFiles(keep ...int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for the poller of the runtime: %w", err)
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if fd, cerr := strconv.Atoi(e.Name()); err == nil && cerr == nil && (to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]") {
			keep = append(keep, fd)
		}
	}
	first := 0
	for _, fd := range append(slices.Sorted(slices.Values(keep)), math.MaxInt32) {
		if fd > first {
			if err := unix.CloseRange(uint(first), uint(fd-1), unix.CLOSE_RANGE_UNSHARE); err != nil {
				return fmt.Errorf("give a thread files of its own: %w", err)
			}
		}
		first = fd + 1
	}
	return nil
}
