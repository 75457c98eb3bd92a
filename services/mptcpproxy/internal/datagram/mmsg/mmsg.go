// Package mmsg receives and sends many datagrams with one system call
// (recvmmsg(2), sendmmsg(2)) and reads their control messages. Its values
// belong to one goroutine each; nothing here blocks if the sockets do not.
package mmsg

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers that package unix lacks: include/uapi/linux/udp.h and
// asm-generic/socket.h.
const (
	UDPSegment          = 103 // SOL_UDP: size of the pieces of a large send
	UDPGRO              = 104 // SOL_UDP: size of the pieces of a large receive
	SolUDP              = 17
	timestampNS64       = 64 // SO_TIMESTAMPNS_NEW
	oobSize             = 192
	sizeofSockaddrInet6 = unix.SizeofSockaddrInet6
)

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [(8 - (unsafe.Sizeof(unix.Msghdr{})+4)%8) % 8]byte
}

// Reader receives up to n datagrams at a time.
type Reader struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6
	oobs  [][oobSize]byte
	bufs  [][]byte
	flags int
}

// NewReader makes a reader for n datagrams of up to size bytes. Memory is only
// used as far as datagrams fill it.
func NewReader(n, size int) *Reader {
	r := &Reader{
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), names: make([]unix.RawSockaddrInet6, n),
		oobs: make([][oobSize]byte, n), bufs: make([][]byte, n),
	}
	all := make([]byte, n*size)
	for i := range n {
		r.bufs[i] = all[i*size : (i+1)*size : (i+1)*size]
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(size)
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.oobs[i][0]
	}
	return r
}

// Read receives what is there from socket fd, at least one datagram.
func (r *Reader) Read(fd int) (int, error) {
	for i := range r.hdrs {
		h := &r.hdrs[i]
		h.hdr.Namelen = sizeofSockaddrInet6
		h.hdr.SetControllen(oobSize)
		h.hdr.Flags = 0
	}
	for {
		n, _, errno := syscall.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.hdrs[0])),
			uintptr(len(r.hdrs)), uintptr(unix.MSG_DONTWAIT|r.flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Message is one datagram that was received, valid until the next Read.
type Message struct {
	Data      []byte
	From      netip.AddrPort
	Truncated bool
	Control
}

// Control is what the control messages of a datagram tell.
type Control struct {
	Segment  int            // size of each piece of Data but the last, 0 = Data is one datagram
	Stamp    time.Time      // of arrival in the kernel, by the wall clock
	Local    netip.Addr     // destination address (IP_PKTINFO)
	Index    int            // interface it came in on (IP_PKTINFO)
	Original netip.AddrPort // destination before TPROXY (IP_ORIGDSTADDR)
	TOS      int            // -1 = not told
	TTL      int            // -1 = not told
	Err      *Error         // from the error queue
}

// Error is an entry of a socket's error queue (struct sock_extended_err).
type Error struct {
	Errno        unix.Errno
	Origin       uint8 // 1 local, 2 ICMP, 3 ICMPv6
	Type, Code   uint8
	Info         uint32
	Offender     netip.Addr
	FromThisHost bool
}

// Message returns datagram i of the last Read.
func (r *Reader) Message(i int) Message {
	h := &r.hdrs[i]
	m := Message{Data: r.bufs[i][:h.len], Truncated: h.hdr.Flags&unix.MSG_TRUNC != 0}
	if h.hdr.Namelen > 0 {
		m.From = sockaddr(&r.names[i])
	}
	m.Control = ParseControl(r.oobs[i][:h.hdr.Controllen])
	return m
}

func sockaddr(a *unix.RawSockaddrInet6) netip.AddrPort {
	switch a.Family {
	case unix.AF_INET:
		b := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(b.Addr), swap(b.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), swap(a.Port))
	}
	return netip.AddrPort{}
}

// swap turns a port between network and host order.
func swap(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

// PutSockaddr writes the socket address of a to raw, mapped to IPv6 if v6 is
// true, and returns its length.
func PutSockaddr(raw *unix.RawSockaddrInet6, a netip.AddrPort, v6 bool) uint32 {
	if a.Addr().Unmap().Is4() && !v6 {
		b := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		*b = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap(a.Port()), Addr: a.Addr().Unmap().As4()}
		return unix.SizeofSockaddrInet4
	}
	*raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap(a.Port()), Addr: a.Addr().As16()}
	return unix.SizeofSockaddrInet6
}

// Sockaddr is a as package unix wants it, mapped to IPv6 if v6 is true.
func Sockaddr(a netip.AddrPort, v6 bool) unix.Sockaddr {
	if ip := a.Addr().Unmap(); ip.Is4() && !v6 {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// ParseControl reads a buffer of control messages; it skips what it does not
// know and stops at what is damaged.
func ParseControl(b []byte) Control {
	c := Control{TOS: -1, TTL: -1}
	const hl = unix.SizeofCmsghdr
	for len(b) >= hl {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < hl || n > len(b) {
			break
		}
		d := b[hl:n]
		switch {
		case h.Level == SolUDP && h.Type == UDPGRO && len(d) >= 2:
			c.Segment = int(binary.NativeEndian.Uint16(d))
		case h.Level == unix.SOL_SOCKET && h.Type == timestampNS64 && len(d) >= 16:
			c.Stamp = time.Unix(int64(binary.NativeEndian.Uint64(d)), int64(binary.NativeEndian.Uint64(d[8:])))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(d) >= 12:
			c.Index = int(int32(binary.NativeEndian.Uint32(d)))
			c.Local = netip.AddrFrom4([4]byte(d[8:12]))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(d) >= 20:
			if a := netip.AddrFrom16([16]byte(d[:16])).Unmap(); !c.Local.IsValid() || !a.IsUnspecified() {
				c.Local = a
			}
			c.Index = int(int32(binary.NativeEndian.Uint32(d[16:])))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(d) >= 8:
			c.Original = netip.AddrPortFrom(netip.AddrFrom4([4]byte(d[4:8])), binary.BigEndian.Uint16(d[2:]))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(d) >= 24:
			c.Original = netip.AddrPortFrom(netip.AddrFrom16([16]byte(d[8:24])).Unmap(), binary.BigEndian.Uint16(d[2:]))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS && len(d) >= 1:
			c.TOS = int(d[0])
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS && len(d) >= 4:
			c.TOS = int(binary.NativeEndian.Uint32(d))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TTL && len(d) >= 4,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_HOPLIMIT && len(d) >= 4:
			c.TTL = int(binary.NativeEndian.Uint32(d))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR && len(d) >= 16,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR && len(d) >= 16:
			e := &Error{
				Errno: unix.Errno(binary.NativeEndian.Uint32(d)), Origin: d[4], Type: d[5], Code: d[6],
				Info: binary.NativeEndian.Uint32(d[8:]), FromThisHost: d[4] == 1,
			}
			if a := d[16:]; len(a) >= 16 {
				switch binary.NativeEndian.Uint16(a) {
				case unix.AF_INET:
					e.Offender = netip.AddrFrom4([4]byte(a[4:8]))
				case unix.AF_INET6:
					if len(a) >= 24 {
						e.Offender = netip.AddrFrom16([16]byte(a[8:24])).Unmap()
					}
				}
			}
			c.Err = e
		}
		step := (n + unix.SizeofPtr - 1) &^ (unix.SizeofPtr - 1)
		if step >= len(b) {
			break
		}
		b = b[step:]
	}
	return c
}

// Writer sends up to n datagrams at a time.
type Writer struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6
	oobs  [][oobSize]byte
	count []int // pieces of each message
	n     int
	nIov  int
}

// NewWriter makes a writer for n messages made of up to pieces slices in all.
func NewWriter(n, pieces int) *Writer {
	return &Writer{
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, pieces), names: make([]unix.RawSockaddrInet6, n),
		oobs: make([][oobSize]byte, n), count: make([]int, n),
	}
}

// Full tells that nothing can be added before Send.
func (w *Writer) Full() bool { return w.n == len(w.hdrs) || w.nIov == len(w.iovs) }

// Len is the number of messages added.
func (w *Writer) Len() int { return w.n }

// Add adds a message; to is the zero value for a connected socket, v6 tells
// whether the socket is of IPv6.
func (w *Writer) Add(b []byte, to netip.AddrPort, v6 bool) {
	h := &w.hdrs[w.n].hdr
	*h = unix.Msghdr{Iov: &w.iovs[w.nIov]}
	h.SetIovlen(1)
	if to.IsValid() {
		h.Name = (*byte)(unsafe.Pointer(&w.names[w.n]))
		h.Namelen = PutSockaddr(&w.names[w.n], to, v6)
	}
	w.iovs[w.nIov] = unix.Iovec{}
	if len(b) > 0 {
		w.iovs[w.nIov].Base = &b[0]
	}
	w.iovs[w.nIov].SetLen(len(b))
	w.nIov++
	w.count[w.n] = 1
	w.n++
}

// Append adds a piece to the last message, which must then be given a segment
// size.
func (w *Writer) Append(b []byte) {
	w.iovs[w.nIov] = unix.Iovec{Base: &b[0]}
	w.iovs[w.nIov].SetLen(len(b))
	w.nIov++
	w.count[w.n-1]++
	w.hdrs[w.n-1].hdr.SetIovlen(w.count[w.n-1])
}

// SetSegment makes the kernel cut the last message into datagrams of size
// bytes (UDP_SEGMENT).
func (w *Writer) SetSegment(size int) {
	b := w.oob(SolUDP, UDPSegment, 2)
	binary.NativeEndian.PutUint16(b, uint16(size))
}

// SetInt adds a control message with a number to the last message.
func (w *Writer) SetInt(level, kind, value int) {
	b := w.oob(level, kind, 4)
	binary.NativeEndian.PutUint32(b, uint32(value))
}

// oob adds a control message of n bytes to the last message.
func (w *Writer) oob(level, kind, n int) []byte {
	i := w.n - 1
	h := &w.hdrs[i].hdr
	at := int(h.Controllen)
	o := w.oobs[i][at:]
	c := (*unix.Cmsghdr)(unsafe.Pointer(&o[0]))
	c.Level, c.Type = int32(level), int32(kind)
	c.SetLen(unix.CmsgLen(n))
	h.Control = &w.oobs[i][0]
	h.SetControllen(at + unix.CmsgSpace(n))
	return o[unix.SizeofCmsghdr : unix.SizeofCmsghdr+n]
}

// Send sends everything and empties the writer. failed, if not nil, is asked
// about each message that the kernel refused, by its index: true tries it
// again, false goes on with the next. It returns the number of messages sent.
func (w *Writer) Send(fd int, failed func(i int, err error) (again bool)) int {
	sent, at := 0, 0
	for at < w.n {
		n, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&w.hdrs[at])),
			uintptr(w.n-at), uintptr(unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), 0, 0)
		switch errno {
		case 0:
			sent += int(n)
			at += int(n)
		case unix.EINTR:
		default:
			if failed == nil || !failed(at, errno) {
				at++
			}
		}
	}
	w.n, w.nIov = 0, 0
	return sent
}

// Pieces is the number of slices of message i since the last Send.
func (w *Writer) Pieces(i int) int { return w.count[i] }
