package load

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/bed"
)

// Echo sends back what it receives, on any number of connections, from one thread with files of its own, without memory per
// connection. It ends its half of a connection when the other end has ended its own.
type Echo struct {
	open     atomic.Int64
	accepted atomic.Int64
	epoll    int
	stop     [2]int
	ended    <-chan struct{}
}

// StartEcho listens on a node.
func StartEcho(n *bed.Node, at ...netip.AddrPort) (*Echo, error) {
	e := &Echo{epoll: -1, stop: [2]int{-1, -1}}
	var listeners []int
	fail := func(err error) (*Echo, error) {
		for _, fd := range append(listeners, e.epoll, e.stop[0], e.stop[1]) {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		return nil, fmt.Errorf("start the echo server on %s: %w", n.Name, err)
	}
	var err error
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fail(err)
	}
	if err := unix.Pipe2(e.stop[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fail(err)
	}
	for _, a := range at {
		var fd int
		err := n.Do(func() (err error) { fd, err = listen(a, unix.SOCK_NONBLOCK); return err })
		if err != nil {
			return fail(err)
		}
		listeners = append(listeners, fd)
	}
	for _, fd := range append(listeners, e.stop[0]) {
		if err := e.watch(fd); err != nil {
			return fail(err)
		}
	}
	isListener := map[int]bool{}
	for _, fd := range listeners {
		isListener[fd] = true
	}
	done, own := make(chan struct{}), make(chan error)
	e.ended = done
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread and its files end with the server
		err := ownFiles(append([]int{0, 1, 2, e.epoll, e.stop[0]}, listeners...)...)
		own <- err
		if err == nil {
			e.run(isListener)
		}
	}()
	err = <-own
	for _, fd := range listeners {
		unix.Close(fd) // the thread has its own
	}
	listeners = nil
	if err != nil {
		return fail(err)
	}
	return e, nil
}

func (e *Echo) watch(fd int) error {
	return unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (e *Echo) run(isListener map[int]bool) {
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 64<<10)
	conns := map[int]bool{}
	defer func() {
		for fd := range conns {
			unix.Close(fd)
		}
	}()
	for {
		n, err := unix.EpollWait(e.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for i := range max(n, 0) {
			fd := int(events[i].Fd)
			switch {
			case fd == e.stop[0]:
				return
			case isListener[fd]:
				for {
					c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
					if err != nil {
						break
					}
					noDelay(c)
					if e.watch(c) != nil {
						unix.Close(c)
						continue
					}
					conns[c] = true
					e.accepted.Add(1)
					e.open.Add(1)
				}
			default:
				n, err := unix.Read(fd, buf)
				if err == unix.EAGAIN || err == unix.EINTR {
					continue
				}
				if err == nil && n > 0 {
					// Answers are small: a full socket buffer would be a client that does not read.
					_, err = unix.Write(fd, buf[:n])
				}
				if err != nil || n <= 0 {
					unix.Close(fd)
					delete(conns, fd)
					e.open.Add(-1)
				}
			}
		}
	}
}

// Open is the number of connections that are open now, Accepted of those that ever were.
func (e *Echo) Open() int64     { return e.open.Load() }
func (e *Echo) Accepted() int64 { return e.accepted.Load() }

// Close ends the server and its connections.
func (e *Echo) Close() error {
	_, err := unix.Write(e.stop[1], []byte{0})
	<-e.ended
	return errors.Join(err, unix.Close(e.epoll), unix.Close(e.stop[0]), unix.Close(e.stop[1]))
}
