package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// keepIdle is the keepalive of trunks: it keeps the state of NATs on the way
// alive and finds out about peers that vanished.
var keepIdle = net.KeepAliveConfig{Enable: true, Idle: 45 * time.Second, Interval: 10 * time.Second, Count: 4}

// dialTCP connects over MPTCP. Where the other end or the way to it does not
// do MPTCP the connection is plain TCP and fallback is true.
func dialTCP(ctx context.Context, local netip.Addr, remote netip.AddrPort) (c *net.TCPConn, fallback bool, err error) {
	d := net.Dialer{KeepAliveConfig: keepIdle}
	d.SetMultipathTCP(true)
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	nc, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, false, explainDial(err, local, remote)
	}
	c = nc.(*net.TCPConn)
	mp, err := c.MultipathTCP()
	if err != nil {
		c.Close()
		return nil, false, fmt.Errorf("ask whether the connection to %v is MPTCP: %w", remote, err)
	}
	return c, !mp, nil
}

// explainDial says what a failed connect means.
func explainDial(err error, local netip.Addr, remote netip.AddrPort) error {
	way := remote.String()
	if local.IsValid() {
		way += " from " + local.String()
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("connect to %s: nothing listens there; does mptcpproxy run on the far gateway, with an accept section and listen_port %d? %w", way, remote.Port(), err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("connect to %s: no way there; check the route and `list address` of the peer: %w", way, err)
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("connect to %s: the address is not ours any more, or all its ports are taken: %w", way, err)
	case errors.Is(err, context.Canceled):
		return err
	case isTimeout(err):
		return fmt.Errorf("connect to %s: no answer; is TCP port %d open in the firewalls on the way? %w", way, remote.Port(), err)
	}
	return fmt.Errorf("connect to %s: %w", way, err)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// takeFD makes the descriptor of c independent of package net and closes c.
// It stays non-blocking.
func takeFD(c *net.TCPConn) (int, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return -1, err
	}
	fd := -1
	var derr error
	err = rc.Control(func(f uintptr) { fd, derr = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = derr
	}
	c.Close()
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("duplicate socket: %w", err)
	}
	return fd, nil
}

// number gives the descriptor of c without taking it; it is good until c is closed.
func number(c *net.TCPConn) int {
	fd := -1
	if rc, err := c.SyscallConn(); err == nil {
		_ = rc.Control(func(f uintptr) { fd = int(f) })
	}
	return fd
}

func addrPortOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// reset closes c with a reset, so that no TIME_WAIT holds a port.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func resetFD(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
