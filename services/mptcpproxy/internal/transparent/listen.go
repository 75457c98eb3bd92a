package transparent

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// backlog is the accept queue of each listener; the kernel caps it at
// net.core.somaxconn. Beyond it the kernel would fall back to SYN cookies, whose
// last ACK finds no socket and is routed on, so it is generous.
const backlog = 16384

// ListenTCP makes n sockets (SO_REUSEPORT: the kernel spreads connections over
// them) that accept what nft's tproxy sends to port, for any destination
// address, IPv4 and IPv6; they are non-blocking. The original destination of an
// accepted socket is its local address. mptcp must be false towards hosts: a
// host that speaks MPTCP itself would otherwise join further subflows to
// addresses that it takes for the server's. With port 0 the kernel chooses one,
// the same for all n; ask Port.
func ListenTCP(port int, n int, mptcp bool) (fds []int, err error) {
	proto := unix.IPPROTO_TCP
	if mptcp {
		proto = unix.IPPROTO_MPTCP
	}
	return listen(port, n, unix.SOCK_STREAM, proto, func(fd int, _ bool) error {
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		return nil
	})
}

// ListenUDP makes n sockets (SO_REUSEPORT: the kernel spreads flows over them)
// that receive what nft's tproxy sends to port, IPv4 and IPv6; they are
// non-blocking. Each datagram carries its original destination as a control
// message (IP_ORIGDSTADDR or IPV6_ORIGDSTADDR): OriginalDst reads it. With port
// 0 the kernel chooses one, the same for all n; ask Port.
func ListenUDP(port int, n int) (fds []int, err error) {
	return listen(port, n, unix.SOCK_DGRAM, unix.IPPROTO_UDP, func(fd int, v6 bool) error {
		if v6 {
			if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1); err != nil {
				return fmt.Errorf("IPV6_RECVORIGDSTADDR: %w", err)
			}
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
			return fmt.Errorf("IP_RECVORIGDSTADDR: %w", err)
		}
		return nil
	})
}

// listen makes dual-stack sockets, IPv4 ones where the kernel has no IPv6.
func listen(port, n, kind, proto int, ready func(fd int, v6 bool) error) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	if n < 1 {
		return nil, fmt.Errorf("listening on port %d: expected at least one socket, got %d", port, n)
	}
	for range n {
		v6 := true
		fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			v6 = false
			fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		}
		if err != nil {
			return fds, fmt.Errorf("making a listening socket (protocol %d): %w", proto, err)
		}
		fds = append(fds, fd)
		if err := bindAny(fd, port, v6); err != nil {
			return fds, fmt.Errorf("listening on port %d: %w", port, err)
		}
		if err := ready(fd, v6); err != nil {
			return fds, fmt.Errorf("listening on port %d: %w", port, err)
		}
		if port == 0 {
			if port, err = Port(fd); err != nil {
				return fds, err
			}
		}
	}
	return fds, nil
}

func bindAny(fd, port int, v6 bool) error {
	any := netip.IPv4Unspecified()
	if v6 {
		any = netip.IPv6Unspecified()
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("IPV6_V6ONLY 0: %w", err)
		}
	}
	if err := setTransparent(fd, v6); err != nil {
		return err
	}
	for name, opt := range map[string]int{"SO_REUSEADDR": unix.SO_REUSEADDR, "SO_REUSEPORT": unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 1); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, uint16(port)))); err != nil {
		return fmt.Errorf("bind (is another program on this port?): %w", err)
	}
	return nil
}

// Port is the local port of fd.
func Port(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	return int(AddrPort(sa).Port()), nil
}

// DialUDP makes a UDP socket that speaks from src, which need not be an address
// of this machine, with dst. If dst is the zero value the socket is not
// connected: it receives from everybody who writes to src. src's port is kept
// where it is free, else the kernel chooses one. mark as in Connect.
func DialUDP(src, dst netip.AddrPort, mark int) (fd int, err error) {
	src, dst = plain(src), plain(dst)
	fd, err = dialUDP(src, dst, mark)
	if src.Port() != 0 && (errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		fd, err = dialUDP(netip.AddrPortFrom(src.Addr(), 0), dst, mark)
	}
	if err != nil {
		return -1, fmt.Errorf("making a UDP socket from %v: %w", src, err)
	}
	return fd, nil
}

func dialUDP(src, dst netip.AddrPort, mark int) (int, error) {
	fd, err := unix.Socket(family(src.Addr()), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = prepare(fd, src, mark)
	if err == nil && dst.IsValid() {
		err = unix.Connect(fd, sockaddr(dst))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// OriginalDst finds the original destination of a datagram among the control
// messages that recvmsg gave with it.
func OriginalDst(oob []byte) (netip.AddrPort, bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		// By hand, because this runs for every datagram and the library's parser
		// allocates.
		h := cmsghdr(oob)
		if h.size < unix.SizeofCmsghdr || h.size > len(oob) {
			return netip.AddrPort{}, false
		}
		data := oob[unix.CmsgLen(0):h.size]
		switch {
		case h.level == unix.SOL_IP && h.kind == unix.IP_RECVORIGDSTADDR,
			h.level == unix.SOL_IPV6 && h.kind == unix.IPV6_RECVORIGDSTADDR:
			a := offender(data)
			if !a.IsValid() {
				return netip.AddrPort{}, false
			}
			return netip.AddrPortFrom(a, uint16(data[2])<<8|uint16(data[3])), true
		}
		step := unix.CmsgSpace(h.size - unix.CmsgLen(0))
		if step > len(oob) {
			break
		}
		oob = oob[step:]
	}
	return netip.AddrPort{}, false
}

type header struct{ size, level, kind int }

// cmsghdr reads a struct cmsghdr: the length is of the machine's word size.
func cmsghdr(b []byte) header {
	if unix.SizeofCmsghdr == 16 {
		return header{int(native64(b)), int(int32(native32(b[8:]))), int(int32(native32(b[12:])))}
	}
	return header{int(native32(b)), int(int32(native32(b[4:]))), int(int32(native32(b[8:])))}
}
