package mptcpnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProtoMPTCP is the protocol number that socket(2) wants for an MPTCP socket
// (IPPROTO_MPTCP, include/uapi/linux/in.h).
const ProtoMPTCP = 262

// Socket options at level SOL_MPTCP (include/uapi/linux/mptcp.h).
const (
	solMPTCP         = 284
	optInfo          = 1
	optTCPInfo       = 2
	optSubflowAddrs  = 3
	optFullInfo      = 4
	tcpIsMPTCP       = 43
	infoFlagFallback = 1
	infoFlagKey      = 2
)

// ErrFallback says that a connection is plain TCP: it never was MPTCP, or the
// other end or a box on the way did not speak it and it fell back.
var ErrFallback = errors.New("connection is plain TCP, not MPTCP")

// Info is MPTCP_INFO (struct mptcp_info, include/uapi/linux/mptcp.h). Fields
// that the running kernel does not know are zero.
type Info struct {
	Subflows           uint8  // extra subflows, the first one not counted
	AddAddrSignal      uint8  // addresses announced by us
	AddAddrAccepted    uint8  // announced addresses accepted by us
	SubflowsMax        uint8  // limits of the in-kernel path manager
	AddAddrSignalMax   uint8  //
	AddAddrAcceptedMax uint8  //
	LocalAddrUsed      uint8  // local endpoints in use
	LocalAddrMax       uint8  //
	Flags              uint32 // 1 fallback, 2 remote key received
	Token              uint32 // names the connection to the path manager
	WriteSeq           uint64 // next data sequence number written
	SndUna             uint64 // oldest data sequence number not acknowledged
	RcvNxt             uint64 // next data sequence number expected
	Checksum           bool   // DSS checksum in use
	Retransmits        uint32 // MPTCP-level retransmissions so far, segments (6.5)
	BytesRetrans       uint64 // bytes re-injected on MPTCP level (6.5)
	BytesSent          uint64 // (6.5)
	BytesReceived      uint64 // (6.5)
	BytesAcked         uint64 // (6.5)
	Total              uint8  // subflows with the first one, if alive (6.5)
	// Ages (6.10).
	LastDataSent, LastDataRecv, LastAckRecv time.Duration
}

// Fallback tells whether the connection runs as plain TCP.
func (i *Info) Fallback() bool { return i.Flags&infoFlagFallback != 0 }

// Unacked is the number of bytes that were handed to the connection and not
// acknowledged on MPTCP level. With 32-bit sequence numbers reported by some
// states it is never negative.
func (i *Info) Unacked() uint64 {
	if i.WriteSeq < i.SndUna {
		return 0
	}
	return i.WriteSeq - i.SndUna
}

// SubflowInfo is one subflow of a connection. TCP is filled as far as the
// kernel gave it.
type SubflowInfo struct {
	ID            uint32 // unique in the connection, 0 on kernels before 6.5
	Local, Remote netip.AddrPort
	TCP           unix.TCPInfo
}

const (
	infoSize    = 96
	fullSize    = 40 + infoSize
	addrsSize   = 256 // struct mptcp_subflow_addrs: two sockaddr_storage
	sfinfoSize  = 8 + addrsSize
	tcpinfoSize = int(unsafe.Sizeof(unix.TCPInfo{}))
	// The kernel's own path manager stops at 8 extra subflows, the userspace
	// one at 255; nobody has that many paths.
	maxSubflows = 16
	sfdataSize  = 16
	tcpClose    = 7 // include/net/tcp_states.h
)

// scratch is what the kernel writes into. It lives on the heap, because the
// addresses of its arrays are handed over inside of full.
type scratch struct {
	full  [fullSize]byte
	addrs [sfdataSize + maxSubflows*sfinfoSize]byte
	tcp   [maxSubflows * tcpinfoSize]byte
	old   [sfdataSize + maxSubflows*tcpinfoSize]byte
	n     uint32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// getsockopt reads an option into len bytes at p and returns how many the
// kernel wrote.
func getsockopt(fd, level, opt int, p unsafe.Pointer, n uint32, lenp *uint32) (int, error) {
	*lenp = n
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(p), uintptr(unsafe.Pointer(lenp)), 0)
	if e != 0 {
		return 0, e
	}
	return int(*lenp), nil
}

// fallback turns the errors by which the kernel says "this is not MPTCP" into
// ErrFallback: EOPNOTSUPP (IPv4), ENOPROTOOPT (IPv6).
func fallback(fd int, what string, err error) error {
	if err == unix.EOPNOTSUPP || err == unix.ENOPROTOOPT {
		return ErrFallback
	}
	return fmt.Errorf("read %s of socket %d: %w", what, fd, err)
}

// GetInfo reads MPTCP_INFO. It returns [ErrFallback] for plain TCP.
func GetInfo(fd int) (Info, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	return s.info(fd)
}

func (s *scratch) info(fd int) (Info, error) {
	n, err := getsockopt(fd, solMPTCP, optInfo, unsafe.Pointer(&s.full[0]), infoSize, &s.n)
	if err != nil {
		return Info{}, fallback(fd, "MPTCP_INFO", err)
	}
	i := parseInfo(s.full[:n])
	if i.Fallback() {
		return i, ErrFallback
	}
	return i, nil
}

// GetFullInfo reads the connection and all its subflows in one system call.
// The subflows are appended to into[:0], so that a caller who keeps the slice
// causes no allocation. A first subflow that has ended stays in the kernel's
// list as closed; it is left out here.
// On kernels before 6.5 it takes three calls and the subflows' IDs are 0.
// It returns [ErrFallback] for plain TCP.
func GetFullInfo(fd int, into []SubflowInfo) (Info, []SubflowInfo, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	into = into[:0]
	clear(s.full[:])
	ne := binary.NativeEndian
	ne.PutUint32(s.full[4:], uint32(tcpinfoSize))
	ne.PutUint32(s.full[12:], sfinfoSize)
	ne.PutUint32(s.full[20:], maxSubflows)
	ne.PutUint64(s.full[24:], uint64(uintptr(unsafe.Pointer(&s.addrs[0]))))
	ne.PutUint64(s.full[32:], uint64(uintptr(unsafe.Pointer(&s.tcp[0]))))
	n, err := getsockopt(fd, solMPTCP, optFullInfo, unsafe.Pointer(&s.full[0]), fullSize, &s.n)
	runtime.KeepAlive(s)
	if err != nil {
		if err == unix.EOPNOTSUPP || err == unix.ENOPROTOOPT {
			return s.olderInfo(fd, into)
		}
		return Info{}, into, fallback(fd, "MPTCP_FULL_INFO", err)
	}
	if n < 40 {
		return Info{}, into, fmt.Errorf("read MPTCP_FULL_INFO of socket %d: %d bytes returned, expected at least 40", fd, n)
	}
	i := parseInfo(s.full[40:n])
	if i.Fallback() {
		return i, into, ErrFallback
	}
	// The kernel writes elements of the smaller of its size and ours, one
	// behind the other, and says so in the user sizes.
	tcpn, sfn := min(int(ne.Uint32(s.full[4:])), tcpinfoSize), min(int(ne.Uint32(s.full[12:])), sfinfoSize)
	count := min(int(ne.Uint32(s.full[16:])), maxSubflows)
	for k := range count {
		t := s.tcp[k*tcpn:][:tcpn]
		if tcpn == 0 || t[0] == tcpClose {
			continue
		}
		f := s.addrs[k*sfn:][:sfn]
		if sfn < sfinfoSize {
			return i, into, fmt.Errorf("read MPTCP_FULL_INFO of socket %d: addresses of %d bytes, expected %d", fd, sfn, sfinfoSize)
		}
		into = append(into, SubflowInfo{ID: ne.Uint32(f), Local: parseSockaddr(f[8:136]), Remote: parseSockaddr(f[136:264])})
		fill(&into[len(into)-1].TCP, t)
	}
	return i, into, nil
}

// fill copies as much of a struct tcp_info as the kernel wrote.
func fill(t *unix.TCPInfo, b []byte) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(t)), tcpinfoSize), b)
}

// olderInfo is GetFullInfo by MPTCP_INFO, MPTCP_TCPINFO and
// MPTCP_SUBFLOW_ADDRS. Subflows that come or go between the calls may be
// missing; both lists have the kernel's order.
func (s *scratch) olderInfo(fd int, into []SubflowInfo) (Info, []SubflowInfo, error) {
	i, err := s.info(fd)
	if err != nil {
		return i, into, err
	}
	na, sza, err := s.list(fd, optSubflowAddrs, s.addrs[:], addrsSize)
	if err != nil {
		return i, into, fmt.Errorf("read MPTCP_SUBFLOW_ADDRS of socket %d: %w", fd, err)
	}
	nt, szt, err := s.list(fd, optTCPInfo, s.old[:], tcpinfoSize)
	if err != nil {
		return i, into, fmt.Errorf("read MPTCP_TCPINFO of socket %d: %w", fd, err)
	}
	for k := range min(na, nt) {
		if s.old[sfdataSize+k*szt] == tcpClose {
			continue
		}
		a := s.addrs[sfdataSize+k*sza:]
		f := SubflowInfo{Local: parseSockaddr(a[:128]), Remote: parseSockaddr(a[128:256])}
		fill(&f.TCP, s.old[sfdataSize+k*szt:][:szt])
		into = append(into, f)
	}
	return i, into, nil
}

// list reads one of the options that begin with struct mptcp_subflow_data and
// returns the number of elements and their size.
func (s *scratch) list(fd, opt int, b []byte, size int) (int, int, error) {
	ne := binary.NativeEndian
	clear(b)
	ne.PutUint32(b[0:], sfdataSize)
	ne.PutUint32(b[12:], uint32(size))
	n, err := getsockopt(fd, solMPTCP, opt, unsafe.Pointer(&b[0]), uint32(sfdataSize+maxSubflows*size), &s.n)
	if err != nil {
		return 0, 0, err
	}
	if n < sfdataSize {
		return 0, 0, fmt.Errorf("%d bytes returned, expected at least %d", n, sfdataSize)
	}
	// The smaller of the kernel's size and ours is what it wrote.
	size = min(int(ne.Uint32(b[12:])), size)
	if size == 0 {
		return 0, 0, nil
	}
	return min(int(ne.Uint32(b[4:])), (n-sfdataSize)/size, maxSubflows), size, nil
}

// TCPInfos reads MPTCP_TCPINFO and appends to into[:0]: one element a subflow
// in the kernel's order. [GetFullInfo] is cheaper when addresses are wanted too.
func TCPInfos(fd int, into []unix.TCPInfo) ([]unix.TCPInfo, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	into = into[:0]
	n, size, err := s.list(fd, optTCPInfo, s.old[:], tcpinfoSize)
	if err != nil {
		return into, fallback(fd, "MPTCP_TCPINFO", err)
	}
	for k := range n {
		var t unix.TCPInfo
		fill(&t, s.old[sfdataSize+k*size:][:size])
		into = append(into, t)
	}
	return into, nil
}

// SubflowAddrs reads MPTCP_SUBFLOW_ADDRS (since 5.16) and appends to into[:0];
// only the addresses of the elements are set.
func SubflowAddrs(fd int, into []SubflowInfo) ([]SubflowInfo, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	into = into[:0]
	n, size, err := s.list(fd, optSubflowAddrs, s.addrs[:], addrsSize)
	if err != nil {
		return into, fallback(fd, "MPTCP_SUBFLOW_ADDRS", err)
	}
	for k := range n {
		a := s.addrs[sfdataSize+k*size:]
		into = append(into, SubflowInfo{Local: parseSockaddr(a[:128]), Remote: parseSockaddr(a[128:256])})
	}
	return into, nil
}

// IsMPTCP tells whether the connection of fd runs MPTCP: by TCP_IS_MPTCP where
// the kernel has it (6.10), else by MPTCP_INFO.
func IsMPTCP(fd int) (bool, error) {
	v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, tcpIsMPTCP)
	if err == nil {
		return v != 0, nil
	}
	if err != unix.ENOPROTOOPT && err != unix.EOPNOTSUPP {
		return false, fmt.Errorf("read TCP_IS_MPTCP of socket %d: %w", fd, err)
	}
	_, err = GetInfo(fd)
	if errors.Is(err, ErrFallback) {
		return false, nil
	}
	return err == nil, err
}

// parseInfo reads struct mptcp_info as far as b goes.
func parseInfo(b []byte) Info {
	var full [infoSize]byte
	copy(full[:], b)
	ne := binary.NativeEndian
	ms := func(off int) time.Duration { return time.Duration(ne.Uint32(full[off:])) * time.Millisecond }
	return Info{
		Subflows: full[0], AddAddrSignal: full[1], AddAddrAccepted: full[2],
		SubflowsMax: full[3], AddAddrSignalMax: full[4], AddAddrAcceptedMax: full[5],
		Flags: ne.Uint32(full[8:]), Token: ne.Uint32(full[12:]),
		WriteSeq: ne.Uint64(full[16:]), SndUna: ne.Uint64(full[24:]), RcvNxt: ne.Uint64(full[32:]),
		LocalAddrUsed: full[40], LocalAddrMax: full[41], Checksum: full[42] != 0,
		Retransmits: ne.Uint32(full[44:]), BytesRetrans: ne.Uint64(full[48:]),
		BytesSent: ne.Uint64(full[56:]), BytesReceived: ne.Uint64(full[64:]), BytesAcked: ne.Uint64(full[72:]),
		Total: full[80], LastDataSent: ms(84), LastDataRecv: ms(88), LastAckRecv: ms(92),
	}
}

// parseSockaddr reads a struct sockaddr_storage holding IPv4 or IPv6; anything
// else is the zero value.
func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 28 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
	}
	return netip.AddrPort{}
}
