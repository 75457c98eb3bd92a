package dnsd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access says who may ask on a device.
type Access struct {
	Any  bool           // everybody
	Nets []netip.Prefix // else only these, and link-local neighbours
}

func (a *Access) allows(c netip.Addr) bool {
	if a.Any {
		return true
	}
	c = c.Unmap()
	return c.IsLinkLocalUnicast() || inAny(c.WithZone(""), a.Nets)
}

// Listener serves DNS on one device, by UDP and TCP, IPv4 and IPv6.
type Listener struct {
	r      *Resolver
	device string
	access atomic.Pointer[Access]
	udp    []*udpSocket
	tcp    []net.Listener
	wg     sync.WaitGroup
	closed atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]netip.Addr
}

const (
	// maxConns bounds TCP connections on a device, maxClientConns those of one
	// client, tcpIdle the time without a question.
	maxConns, maxClientConns = 64, 12
	tcpIdle                  = 10 * time.Second

	// batch is how many datagrams are taken from and given to the kernel at
	// once, maxQuery the largest question; one with all options in use today
	// has some 300 bytes.
	batch    = 32
	maxQuery = 1024
)

// Listen opens the sockets of a device.
func (r *Resolver) Listen(device string, port int, a Access) (*Listener, error) {
	l := &Listener{r: r, device: device, conns: map[net.Conn]netip.Addr{}}
	l.SetAccess(a)
	addr := func(host string) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	for _, v := range []struct{ udp, tcp, host string }{{"udp4", "tcp4", "0.0.0.0"}, {"udp6", "tcp6", "::"}} {
		lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
			var serr error
			err := c.Control(func(fd uintptr) { serr = l.prepare(int(fd), network) })
			return errors.Join(err, serr)
		}}
		// No TCP keep-alives: idle connections are closed by us.
		lc.KeepAlive = -1
		lc.SetMultipathTCP(false) // the LAN is one path
		conn, err := lc.ListenPacket(context.Background(), v.udp, addr(v.host))
		if err != nil {
			if v.udp == "udp6" && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				continue // IPv6 is off
			}
			l.Close()
			return nil, fmt.Errorf("DNS on %s: %w", device, err)
		}
		u := &udpSocket{l: l, conn: conn.(*net.UDPConn), six: v.udp == "udp6"}
		l.udp = append(l.udp, u)
		if u.raw, err = u.conn.SyscallConn(); err != nil {
			l.Close()
			return nil, fmt.Errorf("DNS on %s: %w", device, err)
		}
		t, err := lc.Listen(context.Background(), v.tcp, addr(v.host))
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("DNS on %s: %w", device, err)
		}
		l.tcp = append(l.tcp, t)
	}
	for _, u := range l.udp {
		l.wg.Go(u.run)
	}
	for _, t := range l.tcp {
		l.wg.Go(func() { l.accept(t) })
	}
	return l, nil
}

// prepare sets up a socket before it is bound.
func (l *Listener) prepare(fd int, network string) error {
	set := func(level, opt int) error { return unix.SetsockoptInt(fd, level, opt, 1) }
	errs := []error{set(unix.SOL_SOCKET, unix.SO_REUSEADDR), unix.BindToDevice(fd, l.device)}
	switch network {
	case "udp4":
		errs = append(errs, set(unix.IPPROTO_IP, unix.IP_PKTINFO))
	case "udp6":
		errs = append(errs, set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY), set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO))
	case "tcp6":
		errs = append(errs, set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY))
	}
	if network == "udp4" || network == "udp6" {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 512<<10) // bursts; the kernel's limit is fine too
	}
	return errors.Join(errs...)
}

// SetAccess changes who may ask.
func (l *Listener) SetAccess(a Access) {
	a.Nets = slices.Clone(a.Nets)
	l.access.Store(&a)
}

// Close ends the listener and its connections.
func (l *Listener) Close() {
	l.closed.Store(true)
	for _, u := range l.udp {
		u.conn.Close()
	}
	for _, t := range l.tcp {
		t.Close()
	}
	l.mu.Lock()
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *Listener) accept(t net.Listener) {
	for {
		c, err := t.Accept()
		if err != nil {
			if l.closed.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(50 * time.Millisecond) // out of descriptors
			continue
		}
		from := addrPort(c.RemoteAddr()).Addr()
		account := accountOf(from)
		l.mu.Lock()
		mine := 0
		for _, a := range l.conns {
			if a == account {
				mine++
			}
		}
		if l.closed.Load() || len(l.conns) >= maxConns || mine >= maxClientConns || !l.access.Load().allows(from) {
			l.mu.Unlock()
			c.Close()
			continue
		}
		l.conns[c] = account
		l.mu.Unlock()
		l.r.Counters.TCP.Add(1)
		l.wg.Go(func() {
			l.converse(c, from)
			l.mu.Lock()
			delete(l.conns, c)
			l.mu.Unlock()
			c.Close()
		})
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// converse answers the questions of a connection, one after the other.
func (l *Listener) converse(c net.Conn, from netip.Addr) {
	var n [2]byte
	var buf []byte
	for {
		c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(n[:]))
		if size < headerLen || size > 4096 {
			return
		}
		if cap(buf) < size {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		done := make(chan []byte, 1)
		l.r.Answer(buf, from, l.device, func(b []byte) { done <- b })
		b := <-done
		if b == nil {
			return
		}
		c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := c.Write(frame(b)); err != nil {
			return
		}
	}
}

// udpSocket is one socket and its goroutine. Datagrams are taken and given in
// batches (recvmmsg(2), sendmmsg(2)): at rates of a hundred thousand a second
// the system calls are what costs.
type udpSocket struct {
	l    *Listener
	conn *net.UDPConn
	raw  syscall.RawConn
	six  bool
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// peer is who sent a datagram and to which of our addresses, in the kernel's
// form: the answer is sent with the same.
type peer struct {
	name    unix.RawSockaddrInet6 // large enough for IPv4
	control [64]byte              // holds struct in6_pktinfo
	nameLen uint32
	ctlLen  int
}

func (p *peer) addr() netip.AddrPort {
	switch p.name.Family {
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name))
		port := (*[2]byte)(unsafe.Pointer(&a.Port))
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(port[0])<<8|uint16(port[1]))
	case unix.AF_INET6:
		port := (*[2]byte)(unsafe.Pointer(&p.name.Port))
		return netip.AddrPortFrom(netip.AddrFrom16(p.name.Addr), uint16(port[0])<<8|uint16(port[1]))
	}
	return netip.AddrPort{}
}

// io is the memory of a socket's goroutine.
type ioState struct {
	in, out       [batch]mmsghdr
	inVec, outVec [batch]unix.Iovec
	peers         [batch]peer
	data          [batch][maxQuery]byte
	replies       [batch][]byte
	key           [maxName + 3]byte
}

func (u *udpSocket) run() {
	io := new(ioState)
	for i := range batch {
		io.inVec[i].Base = &io.data[i][0]
		io.inVec[i].SetLen(maxQuery)
		h := &io.in[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&io.peers[i].name))
		h.Iov = &io.inVec[i]
		h.SetIovlen(1)
		h.Control = &io.peers[i].control[0]
		io.replies[i] = make([]byte, 0, 512)
		o := &io.out[i].hdr
		o.Iov = &io.outVec[i]
		o.SetIovlen(1)
	}
	for !u.l.closed.Load() {
		err := u.raw.Read(func(fd uintptr) bool { return u.drain(fd, io) })
		if err != nil {
			return // closed
		}
	}
}

// drain works on what has arrived. It returns false when there is nothing left,
// and true to start anew.
func (u *udpSocket) drain(fd uintptr, io *ioState) bool {
	for !u.l.closed.Load() {
		for i := range batch {
			io.in[i].hdr.Namelen = uint32(unsafe.Sizeof(io.peers[i].name))
			io.in[i].hdr.SetControllen(len(io.peers[i].control))
			io.in[i].hdr.Flags = 0
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&io.in)), batch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			// What an earlier answer met, such as a port that is closed.
			return true
		}
		out := u.work(io, int(n))
		for sent := 0; sent < out; {
			m, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&io.out[sent])), uintptr(out-sent), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				m = 1 // this one is lost, as datagrams may be
			}
			sent += int(m)
		}
		if n < batch {
			// Look whether there is more only when poll says so: most often
			// there is not, and a call is saved.
			return false
		}
	}
	return true
}

// work answers n datagrams and returns how many answers are ready to be sent.
func (u *udpSocket) work(io *ioState, n int) (out int) {
	r := u.l.r
	s := r.set.Load()
	if s == nil {
		return 0
	}
	access := u.l.access.Load()
	gen, now := r.generation(s), r.clock()
	var q query
	for i := range n {
		h := &io.in[i]
		p := &io.peers[i]
		from := p.addr()
		if h.hdr.Flags&unix.MSG_TRUNC != 0 || from.Port() == 0 || !access.allows(from.Addr()) {
			continue
		}
		msg := io.data[i][:h.len]
		if parseQuery(msg, &q) != nil {
			continue
		}
		limit := q.limit(s.EDNSMax)
		if q.rcode == 0 && q.class == 1 && !s.LogQueries {
			reply, ok := r.fast(s, &q, q.key(io.key[:0]), io.replies[out][:0], gen, now, limit)
			if ok {
				io.replies[out] = reply
				io.outVec[out].Base = &reply[0]
				io.outVec[out].SetLen(len(reply))
				o := &io.out[out].hdr
				o.Name, o.Namelen = h.hdr.Name, h.hdr.Namelen
				o.Control = h.hdr.Control
				o.Controllen = h.hdr.Controllen
				out++
				continue
			}
		}
		who := *p
		who.nameLen, who.ctlLen = h.hdr.Namelen, int(h.hdr.Controllen)
		r.serve(s, &q, msg, from.Addr(), u.l.device, limit, func(b []byte) { u.send(&who, b) })
	}
	return out
}

// send sends one answer.
func (u *udpSocket) send(p *peer, b []byte) {
	if len(b) == 0 {
		return
	}
	vec := unix.Iovec{Base: &b[0]}
	vec.SetLen(len(b))
	h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&p.name)), Namelen: p.nameLen, Iov: &vec, Control: &p.control[0]}
	h.SetIovlen(1)
	h.SetControllen(p.ctlLen)
	// Closed meanwhile: then nobody waits for it.
	_ = u.raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
}
