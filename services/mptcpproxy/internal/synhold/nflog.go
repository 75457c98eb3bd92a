package synhold

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The part of nfnetlink_log that is needed, from
// include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0
	msgConfig = 1

	cfgCommand   = 1 // u8
	cfgMode      = 2 // be32 range, u8 mode, u8 0
	cfgThreshold = 5 // be32 packets that are collected

	commandBind = 1
	copyPacket  = 2

	attrPayload = 9
	genHeader   = 4 // struct nfgenmsg: family, version, be16 group
)

// snapLength is what the kernel copies of a SYN: more than any header chain
// that is parsed; the payload of a SYN with data (TCP Fast Open) counts too.
const snapLength = 2048

// nflog is a socket that receives what nft logs to a group.
type nflog struct{ c *netlink.Conn }

func openLog(group uint16) (*nflog, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening a netfilter socket: %w", err)
	}
	l := &nflog{c}
	mode := append(binary.BigEndian.AppendUint32(nil, snapLength), copyPacket, 0)
	for _, a := range []netlink.Attribute{
		{Type: cfgCommand, Data: []byte{commandBind}},
		{Type: cfgMode, Data: mode},
		{Type: cfgThreshold, Data: []byte{0, 0, 0, 1}},
	} {
		if err := l.config(group, a); err != nil {
			c.Close()
			return nil, fmt.Errorf("reading NFLOG group %d (is nfnetlink_log there, or another reader of this group?): %w", group, err)
		}
	}
	// Room for some thousand SYNs while we are not scheduled.
	if err := c.SetReadBuffer(4 << 20); err != nil {
		c.Close()
		return nil, fmt.Errorf("enlarging the receive buffer of the NFLOG socket: %w", err)
	}
	return l, nil
}

func (l *nflog) config(group uint16, a netlink.Attribute) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{a})
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, group)
	_, err = l.c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, attrs...),
	})
	return err
}

// payload finds the packet in a message of the kernel, nil if there is none.
func payload(m netlink.Message) []byte {
	if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|msgPacket || len(m.Data) < genHeader {
		return nil
	}
	b := m.Data[genHeader:]
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if kind == attrPayload {
			return b[unix.SizeofNlAttr:size]
		}
		size = (size + 3) &^ 3
		if size > len(b) {
			return nil
		}
		b = b[size:]
	}
	return nil
}
