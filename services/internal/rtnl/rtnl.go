// Package rtnl talks to the kernel about routes, policy rules and the settings
// of bridges (rtnetlink), as far as the network service needs it and the
// general library cannot: routes that depend on the source, dead ends, what a
// rule says about protocols and ports, and all options of a bridge.
//
// A Conn belongs to the network namespace that it was opened in, and may be
// used by one goroutine at a time.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Conn is a connection to the kernel.
type Conn struct{ c *netlink.Conn }

// Dial opens a connection in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel about routes: %w", err)
	}
	// Then dumps are filtered by the kernel (since 4.20); without it they are
	// longer, and what was not asked for is dropped here.
	_ = c.SetOption(netlink.GetStrictCheck, true)
	_ = c.SetOption(netlink.ExtendedAcknowledge, true) // errors say what is wrong
	return &Conn{c}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

// The families of addresses.
const (
	V4 = unix.AF_INET
	V6 = unix.AF_INET6
)

// familyOf is V4 or V6.
func familyOf(p netip.Prefix) uint8 {
	if p.Addr().Is4() {
		return V4
	}
	return V6
}

// maxDumps is how often a dump is repeated that changes made inconsistent. The
// last one is taken as it is: the change announces itself as well.
const maxDumps = 10

func (c *Conn) dump(kind uint16, body []byte) ([]netlink.Message, error) {
	for try := 1; ; try++ {
		ms, err := c.c.Execute(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Dump}, Data: body})
		if err != nil {
			return nil, err
		}
		torn := false
		for _, m := range ms {
			torn = torn || m.Header.Flags&netlink.DumpInterrupted != 0
		}
		if !torn || try == maxDumps {
			return ms, nil
		}
	}
}

func (c *Conn) change(kind uint16, flags netlink.HeaderFlags, body []byte) error {
	_, err := c.c.Execute(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge | flags}, Data: body})
	var op *netlink.OpError
	if errors.As(err, &op) && op.Message != "" {
		return fmt.Errorf("%w (%s)", op.Err, op.Message)
	}
	return err
}

// Route is an entry of a routing table (struct rtmsg and its attributes,
// linux/rtnetlink.h).
type Route struct {
	Dest netip.Prefix
	From netip.Prefix // IPv6 only: for packets from there; zero: from anywhere
	Via  netip.Addr   // zero: on the link
	Src  netip.Addr   // source address to prefer; zero: the kernel chooses
	Link int          // index; 0: none, for dead ends

	Table    uint32
	Metric   uint32
	MTU      uint32
	Type     uint8 // unix.RTN_UNICAST, …
	Protocol uint8 // unix.RTPROT_STATIC, …
	Scope    uint8 // of IPv4
	OnLink   bool  // Via is on the link whatever the addresses say; not read back
}

// Routes lists the routes of a family that a program with the given protocol
// made. link is the index of a link, or 0 for all.
func (c *Conn) Routes(family int, protocol uint8, link int) ([]Route, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[5] = uint8(family), protocol
	if link != 0 {
		ae := netlink.NewAttributeEncoder()
		ae.Uint32(unix.RTA_OIF, uint32(link))
		b, err := ae.Encode()
		if err != nil {
			return nil, err
		}
		body = append(body, b...)
	}
	ms, err := c.dump(unix.RTM_GETROUTE, body)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []Route
	for _, m := range ms {
		rs, err := parseRoute(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			if r.Protocol == protocol && (link == 0 || r.Link == link) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// errShort means that the kernel's message ends too early.
var errShort = errors.New("the kernel's message is too short")

// parseRoute reads one message; a route with several next hops is several
// routes. Routes that are no IP routes, and caches, are none.
func parseRoute(b []byte) ([]Route, error) {
	if len(b) < unix.SizeofRtMsg {
		return nil, errShort
	}
	family := b[0]
	flags := binary.NativeEndian.Uint32(b[8:])
	if family != V4 && family != V6 || flags&unix.RTM_F_CLONED != 0 {
		return nil, nil
	}
	r := Route{Table: uint32(b[4]), Protocol: b[5], Scope: b[6], Type: b[7]}
	zero := netip.IPv4Unspecified()
	if family == V6 {
		zero = netip.IPv6Unspecified()
	}
	dest, from := zero, zero
	var hops []byte
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return nil, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_DST:
			dest = addr(ad.Bytes(), zero)
		case unix.RTA_SRC:
			from = addr(ad.Bytes(), zero)
		case unix.RTA_GATEWAY:
			r.Via = addr(ad.Bytes(), netip.Addr{})
		case unix.RTA_PREFSRC:
			r.Src = addr(ad.Bytes(), netip.Addr{})
		case unix.RTA_OIF:
			r.Link = int(int32(ad.Uint32()))
		case unix.RTA_PRIORITY:
			r.Metric = ad.Uint32()
		case unix.RTA_TABLE:
			r.Table = ad.Uint32()
		case unix.RTA_METRICS:
			ad.Nested(func(nad *netlink.AttributeDecoder) error {
				for nad.Next() {
					if nad.Type() == unix.RTAX_MTU {
						r.MTU = nad.Uint32()
					}
				}
				return nil
			})
		case unix.RTA_MULTIPATH:
			hops = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return nil, err
	}
	if int(b[1]) > dest.BitLen() || int(b[2]) > from.BitLen() {
		return nil, errShort
	}
	r.Dest = netip.PrefixFrom(dest, int(b[1])).Masked()
	if b[2] > 0 {
		r.From = netip.PrefixFrom(from, int(b[2])).Masked()
	}
	if r.Via.IsUnspecified() {
		r.Via = netip.Addr{}
	}
	if len(hops) == 0 {
		return []Route{r}, nil
	}
	var out []Route
	for len(hops) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(hops))
		if n < unix.SizeofRtNexthop || n > len(hops) {
			return nil, errShort
		}
		h := r
		h.Link, h.Via = int(int32(binary.NativeEndian.Uint32(hops[4:]))), netip.Addr{}
		ad, err := netlink.NewAttributeDecoder(hops[unix.SizeofRtNexthop:n])
		if err != nil {
			return nil, err
		}
		for ad.Next() {
			if ad.Type() == unix.RTA_GATEWAY {
				h.Via = addr(ad.Bytes(), netip.Addr{})
			}
		}
		if err := ad.Err(); err != nil {
			return nil, err
		}
		out = append(out, h)
		hops = hops[min((n+3)&^3, len(hops)):]
	}
	return out, nil
}

func addr(b []byte, def netip.Addr) netip.Addr {
	if a, ok := netip.AddrFromSlice(b); ok {
		return a
	}
	return def
}

// AddRoute adds a route beside others to the same destination; one that is
// there already is no error.
func (c *Conn) AddRoute(r Route) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	flags := netlink.Create
	if r.Dest.Addr().Is4() {
		flags |= netlink.Append // else the kernel takes one for a metric
	}
	err = c.change(unix.RTM_NEWROUTE, flags, b)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if r.Dest.Addr().Is4() {
		return nil
	}
	// IPv6 tells routes apart by next hop alone; other properties may differ.
	bare := r
	bare.Src, bare.MTU = netip.Addr{}, 0
	if err := c.DeleteRoute(bare); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return c.change(unix.RTM_NEWROUTE, flags, b)
}

// DeleteRoute removes a route; one that is not there gives unix.ESRCH.
func (c *Conn) DeleteRoute(r Route) error {
	r.OnLink, r.MTU = false, 0
	b, err := r.encode()
	if err != nil {
		return err
	}
	return c.change(unix.RTM_DELROUTE, 0, b)
}

func (r Route) encode() ([]byte, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[1] = familyOf(r.Dest), uint8(r.Dest.Bits())
	body[5], body[6], body[7] = r.Protocol, r.Scope, r.Type
	if r.Table < 256 {
		body[4] = uint8(r.Table)
	}
	if r.OnLink && r.Via.IsValid() {
		binary.NativeEndian.PutUint32(body[8:], unix.RTNH_F_ONLINK)
	}
	ae := netlink.NewAttributeEncoder()
	if r.Dest.Bits() > 0 {
		ae.Bytes(unix.RTA_DST, r.Dest.Addr().AsSlice())
	}
	if r.From.IsValid() && r.From.Bits() > 0 {
		body[2] = uint8(r.From.Bits())
		ae.Bytes(unix.RTA_SRC, r.From.Addr().AsSlice())
	}
	if r.Via.IsValid() {
		ae.Bytes(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	if r.Src.IsValid() {
		ae.Bytes(unix.RTA_PREFSRC, r.Src.AsSlice())
	}
	if r.Link != 0 {
		ae.Uint32(unix.RTA_OIF, uint32(r.Link))
	}
	if r.Metric != 0 {
		ae.Uint32(unix.RTA_PRIORITY, r.Metric)
	}
	if r.MTU != 0 {
		ae.Nested(unix.RTA_METRICS, func(nae *netlink.AttributeEncoder) error {
			nae.Uint32(unix.RTAX_MTU, r.MTU)
			return nil
		})
	}
	ae.Uint32(unix.RTA_TABLE, r.Table)
	b, err := ae.Encode()
	return append(body, b...), err
}
