package datagram

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

const (
	receiveBatch = 16
	receiveSize  = 1 << 16 // what UDP_GRO may put together
	sendBatch    = 64
	sendPieces   = 256
	segmentMax   = 64    // pieces of one large send, UDP_MAX_SEGMENTS of older kernels
	segmentBytes = 65000 // of one large send
	socketBuffer = 4 << 20
)

// conn is one UDP socket: the listener, or that of one path of a session,
// which is connected so that the kernel finds it by its addresses.
type conn struct {
	file          *os.File
	raw           syscall.RawConn
	fd            int
	v6            bool
	local, remote netip.AddrPort
	s             *Session
	p             *path
	served        bool

	pending []packet // under the session's mu

	txMu  sync.Mutex
	batch []packet // under txMu
	w     *mmsg.Writer
	plain bool // the kernel or device cannot segment
	gone  bool // the last send failed
	nonce [12]byte
	first []int // index in batch of the first packet of each message
}

// open makes a socket: connected to remote if that is valid, else the
// listener.
func (e *Endpoint) open(local, remote netip.AddrPort, device string) (c *conn, err error) {
	v6 := remote.Addr().Is6() && !remote.Addr().Is4In6()
	domain := unix.AF_INET
	if v6 || !remote.IsValid() {
		domain = unix.AF_INET6
	}
	fd, err := e.o.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if errors.Is(err, unix.EAFNOSUPPORT) && !remote.IsValid() {
		domain = unix.AF_INET
		fd, err = e.o.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	}
	if err != nil {
		return nil, fmt.Errorf("make a UDP socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	c = &conn{fd: fd, v6: domain == unix.AF_INET6, remote: remote}
	set := func(level, opt, value int, name string) {
		if e := unix.SetsockoptInt(fd, level, opt, value); e != nil && err == nil {
			err = fmt.Errorf("set %s of a UDP socket: %w", name, e)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
	set(unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER")
	if c.v6 {
		set(unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER")
	}
	if !remote.IsValid() {
		set(unix.SOL_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO")
		if c.v6 {
			set(unix.SOL_IPV6, unix.IPV6_V6ONLY, 0, "IPV6_V6ONLY")
			set(unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO")
		}
	}
	if err != nil {
		return nil, err
	}
	// What follows makes things better, but nothing depends on it.
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, socketBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1)
	_ = unix.SetsockoptInt(fd, mmsg.SolUDP, mmsg.UDPGRO, 1)

	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return nil, fmt.Errorf("bind a UDP socket to device %s: %w", device, err)
		}
	}
	switch {
	case !remote.IsValid():
		any := netip.IPv4Unspecified()
		if c.v6 {
			any = netip.IPv6Unspecified()
		}
		err = unix.Bind(fd, mmsg.Sockaddr(netip.AddrPortFrom(any, e.o.Port), c.v6))
	case local.Addr().IsValid():
		err = unix.Bind(fd, mmsg.Sockaddr(local, c.v6))
	}
	if err != nil {
		return nil, fmt.Errorf("bind a UDP socket to %v: %w", local, err)
	}
	if remote.IsValid() {
		if err := unix.Connect(fd, mmsg.Sockaddr(remote, c.v6)); err != nil {
			return nil, fmt.Errorf("connect a UDP socket to %v: %w", remote, err)
		}
		c.w = mmsg.NewWriter(sendBatch, sendPieces)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("address of a UDP socket: %w", err)
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		c.local = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		c.local = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	c.file = os.NewFile(uintptr(fd), "udp")
	if c.raw, err = c.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("watch a UDP socket: %w", err)
	}
	return c, nil
}

// payloadMTU is the largest UDP payload that the route's device takes, 0 if
// unknown.
func (c *conn) payloadMTU() int {
	level, opt, header := unix.SOL_IP, unix.IP_MTU, 28
	if c.v6 {
		level, opt, header = unix.SOL_IPV6, unix.IPV6_MTU, 48
	}
	mtu := 0
	if c.raw.Control(func(fd uintptr) { mtu, _ = unix.GetsockoptInt(int(fd), level, opt) }) != nil || mtu <= header {
		return 0
	}
	// Beyond 9000 a packet of loopback would only be larger than the buffers.
	return min(mtu, 9000) - header
}

// read waits for datagrams.
func (c *conn) read(r *mmsg.Reader) (n int, err error) {
	for {
		var rerr error
		err := c.raw.Read(func(fd uintptr) bool {
			n, rerr = r.Read(int(fd))
			return rerr != unix.EAGAIN
		})
		switch {
		case err != nil:
			return 0, err
		case rerr == nil:
			return n, nil
		}
		// An ICMP error of something sent earlier: the path's liveness tells.
		switch {
		case errors.Is(rerr, unix.EBADF), errors.Is(rerr, unix.ENOTSOCK):
			return 0, rerr
		}
	}
}

func (c *conn) close() { c.file.Close() }

// send seals and sends c.batch, and gives its buffers back; c.txMu is held.
// The error is the last one that says something about the path.
func (c *conn) send(cr *crypt) error {
	if len(c.batch) == 0 {
		return nil
	}
	for i := range c.batch {
		k := &c.batch[i]
		k.hi = k.lo + len(cr.sealPacket(k.buf[k.lo:k.hi], &c.nonce))
	}
	var failure error
	err := c.raw.Control(func(fd uintptr) { failure = c.sendAll(int(fd)) })
	for i := range c.batch {
		giveBuffer(c.batch[i].buf)
	}
	clear(c.batch)
	c.batch = c.batch[:0]
	if err != nil {
		return nil // closed meanwhile
	}
	return failure
}

func (c *conn) sendAll(fd int) error {
	var failure error
	retried := false
	for i := 0; i < len(c.batch); {
		c.first = c.first[:0]
		for i < len(c.batch) && !c.w.Full() {
			k := &c.batch[i]
			size := k.hi - k.lo
			c.first = append(c.first, i)
			c.w.Add(k.buf[k.lo:k.hi:k.hi], netip.AddrPort{}, c.v6)
			i++
			if c.plain {
				continue
			}
			// Further ones of the same size, and a last shorter one, in one go.
			pieces, total := 1, size
			for i < len(c.batch) && !c.w.Full() && pieces < segmentMax {
				n := c.batch[i].hi - c.batch[i].lo
				if n > size || total+n > segmentBytes {
					break
				}
				c.w.Append(c.batch[i].buf[c.batch[i].lo:c.batch[i].hi])
				pieces, total = pieces+1, total+n
				i++
				if n < size {
					break
				}
			}
			if pieces > 1 {
				c.w.SetSegment(size)
			}
		}
		redo := -1
		c.w.Send(fd, func(m int, err error) bool {
			errno, _ := err.(unix.Errno)
			switch errno {
			case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH:
				// May be an earlier packet's: try this one once more.
				if !retried {
					retried = true
					return true
				}
				if errno != unix.ECONNREFUSED {
					failure = err
				}
			case unix.EIO, unix.EINVAL, unix.EOPNOTSUPP:
				if c.w.Pieces(m) > 1 && !c.plain {
					c.plain = true
					redo = c.first[m]
					return false
				}
				failure = err
			case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
				// Full: as if the path had dropped it.
			default:
				failure = err
			}
			return false
		})
		if redo >= 0 {
			i = redo
		}
	}
	return failure
}
