package transparent

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Origins of an entry of the error queue, include/uapi/linux/errqueue.h.
const (
	originICMP  = 2
	originICMP6 = 3
)

// errorQueue switches IP_RECVERR or IPV6_RECVERR for a socket of local's family.
func errorQueue(fd int, local netip.Addr, on bool) error {
	v := 0
	if on {
		v = 1
	}
	if local.Is4() {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, v); err != nil {
			return fmt.Errorf("IP_RECVERR: %w", err)
		}
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, v); err != nil {
		return fmt.Errorf("IPV6_RECVERR: %w", err)
	}
	return nil
}

func setErrorQueue(fd int, peer unix.Sockaddr, on bool) error {
	err := errorQueue(fd, AddrPort(peer).Addr(), on)
	if err != nil && isMPTCP(fd) {
		return nil // never had one
	}
	return err
}

func isMPTCP(fd int) bool {
	p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && p == unix.IPPROTO_MPTCP
}

// readErrorQueue takes all entries and returns the last that an ICMP message has
// caused.
func readErrorQueue(fd int) (found *ConnectError, ok bool) {
	var oob [512]byte
	var data [64]byte
	for {
		_, oobn, _, _, err := unix.Recvmsg(fd, data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return found, ok
		}
		if e := parseErrorQueue(oob[:oobn]); e != nil {
			found, ok = e, true
		}
	}
}

// parseErrorQueue reads the control messages of one entry: struct
// sock_extended_err (errno u32, origin, type, code, pad u8, info u32, data u32),
// behind it the offender's socket address. Nil if no ICMP message caused it.
func parseErrorQueue(oob []byte) *ConnectError {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < 16 {
			continue
		}
		if origin := m.Data[4]; origin != originICMP && origin != originICMP6 {
			continue
		}
		return &ConnectError{
			Errno:    unix.Errno(binary.NativeEndian.Uint32(m.Data)),
			ICMPType: m.Data[5], ICMPCode: m.Data[6], ICMP: true,
			Offender: offender(m.Data[16:]),
		}
	}
	return nil
}

// offender reads a struct sockaddr_in or sockaddr_in6.
func offender(b []byte) netip.Addr {
	if len(b) < 8 {
		return netip.Addr{}
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case unix.AF_INET6:
		if len(b) >= 24 {
			return netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		}
	}
	return netip.Addr{}
}

func native32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func native64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
