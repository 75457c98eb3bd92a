// Package transparent makes sockets that speak with other hosts' addresses:
// connections that carry a client's own address and, where it is free, port to
// the sink, and listeners that take what nft's tproxy hands them.
//
// Everything here is a plain file descriptor, non-blocking and closed on exec,
// because the engine that owns them works by number. All of it needs
// CAP_NET_ADMIN (IP_TRANSPARENT), and answers reach such a socket only when the
// packets for the foreign address are delivered locally: package intercept sets
// the rule `socket transparent` and the policy routes for that.
//
// Option numbers: include/uapi/linux/in.h, in6.h and errqueue.h.
package transparent

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ConnectError is why a connection could not be made, told apart as a host's
// own TCP would: refused by a reset (ECONNREFUSED, ICMP false), refused or
// unreachable by ICMP (ICMP true; type, code and offender as received), no
// route here (an errno without ICMP), or silence (ETIMEDOUT).
type ConnectError struct {
	Errno              unix.Errno // what connect(2) would say
	ICMPType, ICMPCode uint8      // as received, ICMPv6 numbers for an IPv6 destination
	ICMP               bool       // ICMPType and ICMPCode are set
	Offender           netip.Addr // who sent the ICMP message, or has no route; may be invalid
}

// Error says it in words.
func (e *ConnectError) Error() string {
	switch {
	case e.ICMP && e.Offender.IsValid():
		return fmt.Sprintf("%v (ICMP type %d code %d from %v)", e.Errno, e.ICMPType, e.ICMPCode, e.Offender)
	case e.ICMP:
		return fmt.Sprintf("%v (ICMP type %d code %d)", e.Errno, e.ICMPType, e.ICMPCode)
	}
	return e.Errno.Error()
}

// Unwrap gives the errno, so that errors.Is(err, unix.ECONNREFUSED) works.
func (e *ConnectError) Unwrap() error { return e.Errno }

// ErrLocal says that the destination is an address of this machine. Its own
// services answer a foreign address by the routes, not to a socket here, so such
// a connection cannot be made; the client has to come by the routes as well.
var ErrLocal = errors.New("the destination is an address of this gateway, which has to be reached without the proxy")

// Connect starts a TCP connection from src to dst, where src need not be an
// address of this machine, and returns before its outcome is known: when fd has
// become writable (or in error), Finish tells it. The socket is of ordinary
// TCP, not MPTCP.
//
// src's port is kept where it is free; else, or when it is 0, the kernel chooses
// one. mark is the packets' firewall mark (SO_MARK), 0 for none; give
// intercept.MarkConnect, so that errors which this machine's own IP layer finds
// (no neighbour answers) reach the socket. What is known at once, such as no
// route, comes back as *ConnectError; any other error is this machine's trouble
// (ErrLocal, no file descriptors, no privilege, all ports taken).
func Connect(src, dst netip.AddrPort, mark int) (fd int, err error) {
	return connect(src, dst, mark, 0)
}

// ConnectMPTCP is Connect with an MPTCP socket (IPPROTO_MPTCP), for the carrier
// without a header. Its errors carry no ICMP details: the kernel keeps no error
// queue on such sockets.
func ConnectMPTCP(src, dst netip.AddrPort, mark int) (fd int, err error) {
	return connect(src, dst, mark, unix.IPPROTO_MPTCP)
}

func connect(src, dst netip.AddrPort, mark, proto int) (int, error) {
	src, dst = plain(src), plain(dst)
	if !dst.IsValid() || !src.IsValid() || src.Addr().Is4() != dst.Addr().Is4() {
		return -1, fmt.Errorf("connecting from %v to %v: expected two addresses of the same family", src, dst)
	}
	if LocalAddr(dst.Addr()) == dst.Addr() {
		return -1, fmt.Errorf("connecting from %v to %v: %w", src, dst, ErrLocal)
	}
	fd, err := attempt(src, dst, mark, proto)
	if src.Port() != 0 && (errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		fd, err = attempt(netip.AddrPortFrom(src.Addr(), 0), dst, mark, proto)
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		// ip-route types unreachable, prohibit and blackhole (EINVAL), or no route at
		// all. A router would have said so from the address by which it reaches src.
		var errno unix.Errno
		errors.As(err, &errno)
		switch {
		case errno == unix.EINVAL:
			errno = unix.ETIMEDOUT // a blackhole route is silent for those behind it
		case errno == unix.EHOSTUNREACH && src.Addr().Is6():
			errno = unix.ENETUNREACH // IPv6 routers have one message for both
		}
		return -1, &ConnectError{Errno: errno, Offender: LocalAddr(src.Addr())}
	}
	return -1, fmt.Errorf("connecting from %v to %v: %w", src, dst, err)
}

// attempt makes one socket, binds and connects it.
func attempt(src, dst netip.AddrPort, mark, proto int) (int, error) {
	fd, err := unix.Socket(family(dst.Addr()), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, fmt.Errorf("making a TCP socket (protocol %d): %w", proto, err)
	}
	if err := prepare(fd, src, mark); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := errorQueue(fd, src.Addr(), true); err != nil && proto == 0 {
		unix.Close(fd)
		return -1, err
	}
	err = unix.Connect(fd, sockaddr(dst))
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// prepare makes fd transparent, marks it and binds it to src. The socket options
// are set before the address so that a foreign one is taken.
func prepare(fd int, src netip.AddrPort, mark int) error {
	if err := setTransparent(fd, src.Addr().Is6()); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return fmt.Errorf("SO_MARK %#x: %w", mark, err)
		}
	}
	if src.Port() == 0 {
		// With this the port is chosen by connect, for the pair of addresses, so
		// that one source address has more than one range of ports.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(src)); err != nil {
		return fmt.Errorf("bind to %v: %w", src, err)
	}
	return nil
}

// Finish tells the outcome of a Connect once fd is writable or in error: nil,
// or a *ConnectError. On success it also switches the error queue off: with it
// on, an ICMP message would end an established connection, which no host's TCP
// allows (RFC 5927). Finish does not close fd. A connection that is still under
// way gives EINPROGRESS.
func Finish(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("SO_ERROR of a connecting socket: %w", err)
	}
	if errno == 0 {
		peer, err := unix.Getpeername(fd)
		switch {
		case err == unix.ENOTCONN:
			// Neither failed nor connected; or failed and somebody has taken the error.
			if e, ok := readErrorQueue(fd); ok {
				return e
			}
			return unix.EINPROGRESS
		case err != nil:
			return fmt.Errorf("getpeername of a connecting socket: %w", err)
		}
		if err := setErrorQueue(fd, peer, false); err != nil {
			return err
		}
		return nil
	}
	if e, ok := readErrorQueue(fd); ok {
		e.Errno = unix.Errno(errno)
		if sa, err := unix.Getsockname(fd); err == nil {
			// A message of our own IP layer comes by the route that delivers everything
			// locally, from whatever address that has chosen. A router would have sent it
			// from the one by which it reaches the client.
			client := AddrPort(sa).Addr()
			if e.Offender == client || e.Offender.IsValid() && LocalAddr(e.Offender) == e.Offender {
				e.Offender = LocalAddr(client)
			}
		}
		return e
	}
	return &ConnectError{Errno: unix.Errno(errno)}
}

// LocalAddr is the address by which this machine speaks with to, invalid if it
// has no route there.
func LocalAddr(to netip.Addr) netip.Addr {
	fd, err := unix.Socket(family(to), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}
	}
	defer unix.Close(fd)
	if unix.Connect(fd, sockaddr(netip.AddrPortFrom(to, 9))) != nil {
		return netip.Addr{}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}
	}
	return AddrPort(sa).Addr()
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// AddrPort turns a socket address into netip's form, an IPv4-mapped address of a
// dual-stack socket into plain IPv4. Anything but IPv4 and IPv6 gives the zero
// value.
func AddrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// setTransparent allows fd to use addresses of others. A dual-stack socket needs
// only the IPv6 option; the kernel keeps one bit for both.
func setTransparent(fd int, v6 bool) error {
	level, opt, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
	if v6 {
		level, opt, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
	}
	if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		return fmt.Errorf("%s (needs CAP_NET_ADMIN): %w", name, err)
	}
	return nil
}
