package mptcpnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// SOCK_DESTROY (include/uapi/linux/sock_diag.h) and the request that it takes,
// struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
const (
	sockDestroy = 21
	diagReqSize = 56
)

// Abort kills one TCP socket, that is: one subflow, as if its timer had run
// out: the other end gets an RST if it can be reached. It does what
// [Conn.SubflowDestroy] does not do for the first subflow of a connection: the
// kernel only shuts that one down, and it goes on sending what it had queued.
// The kernel needs CONFIG_INET_DIAG_DESTROY (else EOPNOTSUPP). ENOENT = there
// is no such socket.
func (c *Conn) Abort(local, remote netip.AddrPort) error {
	m := netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   diagRequest(local, remote),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.diag.Execute(m)
	return wrap(err, "abort TCP socket %s to %s", local, remote)
}

func diagRequest(local, remote netip.AddrPort) []byte {
	b := make([]byte, diagReqSize)
	b[0] = unix.AF_INET
	if local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	b[1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(b[8:], local.Port())
	binary.BigEndian.PutUint16(b[10:], remote.Port())
	copy(b[12:28], local.Addr().AsSlice())
	copy(b[28:44], remote.Addr().AsSlice())
	for i := 48; i < 56; i++ {
		b[i] = 0xff // INET_DIAG_NOCOOKIE
	}
	return b
}

// dialDiag opens the socket that Abort uses.
func dialDiag() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open socket diagnosis: %w", err)
	}
	return c, nil
}
