package mptcpnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Generic netlink names and numbers (include/uapi/linux/mptcp.h,
// Documentation/netlink/specs/mptcp_pm.yaml).
const (
	familyName  = "mptcp_pm"
	familyVer   = 1
	groupEvents = "mptcp_pm_events"

	cmdAddAddr        = 1
	cmdDelAddr        = 2
	cmdGetAddr        = 3
	cmdFlushAddrs     = 4
	cmdSetLimits      = 5
	cmdGetLimits      = 6
	cmdSetFlags       = 7
	cmdAnnounce       = 8
	cmdRemove         = 9
	cmdSubflowCreate  = 10
	cmdSubflowDestroy = 11

	attrAddr        = 1
	attrRcvAddAddrs = 2
	attrSubflows    = 3
	attrToken       = 4
	attrLocID       = 5
	attrAddrRemote  = 6

	addrFamily = 1
	addrID     = 2
	addrAddr4  = 3
	addrAddr6  = 4
	addrPort   = 5
	addrFlags  = 6
	addrIfIdx  = 7
)

// Flags of an endpoint or local address (MPTCP_PM_ADDR_FLAG_*).
const (
	FlagSignal   = 0x1  // announce it to the other end
	FlagSubflow  = 0x2  // open subflows from it
	FlagBackup   = 0x4  // subflows are used only when no other works
	FlagFullmesh = 0x8  // open subflows to every address of the other end
	FlagImplicit = 0x10 // made by the kernel, read only
	FlagLaminar  = 0x20 // use it for subflows to announced addresses (6.18)
)

// Addr is an endpoint of the in-kernel path manager, or a local or remote
// address in a command of the userspace one.
type Addr struct {
	Addr    netip.Addr
	Port    uint16 // 0 = any
	ID      uint8  // 0 = let the kernel choose
	Flags   uint32 // Flag*
	IfIndex int    // device to bind to, 0 = none
}

// Limits of the in-kernel path manager.
type Limits struct {
	AcceptAddAddr uint32 // announced addresses taken per connection
	Subflows      uint32 // extra subflows per connection
}

// Conn is a connection to the path manager of one network namespace. Its
// methods may be used from several goroutines.
type Conn struct {
	mu     sync.Mutex
	c      *genetlink.Conn
	diag   *netlink.Conn
	family genetlink.Family
}

// Dial opens a connection to the path manager of the calling thread's network
// namespace.
func Dial() (*Conn, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	// The kernel's own words about a refused command ("invalid local address")
	// are worth more than its error number. Old kernels may refuse.
	_ = c.SetOption(netlink.ExtendedAcknowledge, true)
	f, err := c.GetFamily(familyName)
	if err != nil {
		c.Close()
		if errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("%w: the kernel has no MPTCP (CONFIG_MPTCP)", err)
		}
		return nil, fmt.Errorf("find generic netlink family %s: %w", familyName, err)
	}
	d, err := dialDiag()
	if err != nil {
		c.Close()
		return nil, err
	}
	return &Conn{c: c, diag: d, family: f}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return errors.Join(c.c.Close(), c.diag.Close()) }

// appendAddr encodes one address inside of a nested attribute.
func encodeAddr(e *netlink.AttributeEncoder, a Addr) {
	if a.Addr.IsValid() {
		if a.Addr.Is4() {
			e.Uint16(addrFamily, unix.AF_INET)
			v := a.Addr.As4()
			e.Bytes(addrAddr4, v[:])
		} else {
			e.Uint16(addrFamily, unix.AF_INET6)
			v := a.Addr.As16()
			e.Bytes(addrAddr6, v[:])
		}
	}
	if a.ID != 0 {
		e.Uint8(addrID, a.ID)
	}
	if a.Port != 0 {
		e.Uint16(addrPort, a.Port)
	}
	if a.Flags != 0 {
		e.Uint32(addrFlags, a.Flags)
	}
	if a.IfIndex != 0 {
		e.Int32(addrIfIdx, int32(a.IfIndex))
	}
}

func nested(a Addr) func(*netlink.AttributeEncoder) error {
	return func(e *netlink.AttributeEncoder) error { encodeAddr(e, a); return nil }
}

// do sends one command and returns the answers.
func (c *Conn) do(cmd uint8, flags netlink.HeaderFlags, fill func(e *netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	if fill != nil {
		fill(e)
	}
	b, err := e.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode attributes: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: familyVer}, Data: b}
	return c.c.Execute(m, c.family.ID, netlink.Request|flags)
}

// AddAddr adds an endpoint to the in-kernel path manager.
func (c *Conn) AddAddr(a Addr) error {
	_, err := c.do(cmdAddAddr, netlink.Acknowledge, func(e *netlink.AttributeEncoder) { e.Nested(attrAddr, nested(a)) })
	return wrap(err, "add MPTCP endpoint %s", a.Addr)
}

// DelAddr removes an endpoint by its ID. ID 0 stands for the address of the
// first subflow and needs Addr; for all others the ID alone counts.
func (c *Conn) DelAddr(a Addr) error {
	_, err := c.do(cmdDelAddr, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Nested(attrAddr, func(n *netlink.AttributeEncoder) error {
			encodeAddr(n, Addr{Addr: a.Addr})
			n.Uint8(addrID, a.ID)
			return nil
		})
	})
	return wrap(err, "remove MPTCP endpoint %d %s", a.ID, a.Addr)
}

// Addrs lists the endpoints of the in-kernel path manager.
func (c *Conn) Addrs() ([]Addr, error) {
	ms, err := c.do(cmdGetAddr, netlink.Dump, nil)
	if err != nil {
		return nil, wrap(err, "list MPTCP endpoints")
	}
	var out []Addr
	for _, m := range ms {
		a, err := parseAddrMessage(m.Data)
		if err != nil {
			return out, wrap(err, "list MPTCP endpoints")
		}
		out = append(out, a)
	}
	return out, nil
}

// Addr reads one endpoint of the in-kernel path manager by its ID.
func (c *Conn) Addr(id uint8) (Addr, error) {
	ms, err := c.do(cmdGetAddr, 0, func(e *netlink.AttributeEncoder) { e.Nested(attrAddr, nested(Addr{ID: id})) })
	if err != nil {
		return Addr{}, wrap(err, "read MPTCP endpoint %d", id)
	}
	if len(ms) != 1 {
		return Addr{}, fmt.Errorf("read MPTCP endpoint %d: %d answers, expected one", id, len(ms))
	}
	a, err := parseAddrMessage(ms[0].Data)
	return a, wrap(err, "read MPTCP endpoint %d", id)
}

// TokenAddrs lists the local addresses that the userspace path manager uses in
// the connection named by token (since 6.10).
func (c *Conn) TokenAddrs(token uint32) ([]Addr, error) {
	ms, err := c.do(cmdGetAddr, netlink.Dump, func(e *netlink.AttributeEncoder) { e.Uint32(attrToken, token) })
	if err != nil {
		return nil, wrap(err, "list addresses of MPTCP connection %#x", token)
	}
	var out []Addr
	for _, m := range ms {
		a, err := parseAddrMessage(m.Data)
		if err != nil {
			return out, wrap(err, "list addresses of MPTCP connection %#x", token)
		}
		out = append(out, a)
	}
	return out, nil
}

// Flush removes all endpoints of the in-kernel path manager.
func (c *Conn) Flush() error {
	_, err := c.do(cmdFlushAddrs, netlink.Acknowledge, nil)
	return wrap(err, "remove all MPTCP endpoints")
}

// SetLimits sets the limits of the in-kernel path manager (at most 8 each).
func (c *Conn) SetLimits(l Limits) error {
	_, err := c.do(cmdSetLimits, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrRcvAddAddrs, l.AcceptAddAddr)
		e.Uint32(attrSubflows, l.Subflows)
	})
	return wrap(err, "set MPTCP limits")
}

// Limits reads the limits of the in-kernel path manager.
func (c *Conn) Limits() (Limits, error) {
	ms, err := c.do(cmdGetLimits, 0, nil)
	if err != nil {
		return Limits{}, wrap(err, "read MPTCP limits")
	}
	if len(ms) != 1 {
		return Limits{}, fmt.Errorf("read MPTCP limits: %d answers, expected one", len(ms))
	}
	l, err := parseLimits(ms[0].Data)
	return l, wrap(err, "read MPTCP limits")
}

// SetFlags changes the flags of an endpoint (backup, fullmesh) and of all
// subflows from it.
func (c *Conn) SetFlags(a Addr) error {
	_, err := c.do(cmdSetFlags, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Nested(attrAddr, func(n *netlink.AttributeEncoder) error {
			encodeAddr(n, Addr{Addr: a.Addr, ID: a.ID, Port: a.Port})
			n.Uint32(addrFlags, a.Flags)
			return nil
		})
	})
	return wrap(err, "set flags %#x of MPTCP endpoint %d %s", a.Flags, a.ID, a.Addr)
}

// SetSubflowFlags changes the flags (only backup has a meaning) of one subflow
// of a connection under the userspace path manager and tells the other end by
// MP_PRIO.
func (c *Conn) SetSubflowFlags(token uint32, local, remote netip.AddrPort, flags uint32) error {
	_, err := c.do(cmdSetFlags, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrToken, token)
		e.Nested(attrAddr, func(n *netlink.AttributeEncoder) error {
			encodeAddr(n, Addr{Addr: local.Addr(), Port: local.Port()})
			n.Uint32(addrFlags, flags)
			return nil
		})
		e.Nested(attrAddrRemote, nested(Addr{Addr: remote.Addr(), Port: remote.Port()}))
	})
	return wrap(err, "set flags %#x of MPTCP subflow %s to %s", flags, local, remote)
}

// Announce tells the other end of the connection about a local address
// (ADD_ADDR); a.ID must be set. Userspace path manager only.
func (c *Conn) Announce(token uint32, a Addr) error {
	a.Flags |= FlagSignal
	_, err := c.do(cmdAnnounce, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrToken, token)
		e.Nested(attrAddr, nested(a))
	})
	return wrap(err, "announce %s in MPTCP connection %#x", a.Addr, token)
}

// Remove tells the other end that a local address is gone (RM_ADDR): it closes
// all subflows to it. Our own subflows stay: see [Conn.SubflowDestroy]. The
// kernel sends nothing unless the address was announced or has a subflow.
// Userspace path manager only.
func (c *Conn) Remove(token uint32, id uint8) error {
	_, err := c.do(cmdRemove, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrToken, token)
		e.Uint8(attrLocID, id)
	})
	return wrap(err, "remove address %d from MPTCP connection %#x", id, token)
}

// SubflowCreate starts a subflow from local (ID, IfIndex and FlagBackup count;
// the port is chosen by the kernel when 0) to remote. It returns when the
// first packet is on its way: EventSubEstablished or EventSubClosed tells the
// outcome. ENOTCONN = the connection is not fully established yet.
// Userspace path manager only.
func (c *Conn) SubflowCreate(token uint32, local Addr, remote netip.AddrPort) error {
	_, err := c.do(cmdSubflowCreate, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrToken, token)
		e.Nested(attrAddr, nested(local))
		e.Nested(attrAddrRemote, nested(Addr{Addr: remote.Addr(), Port: remote.Port()}))
	})
	return wrap(err, "create MPTCP subflow from %s to %s", local.Addr, remote)
}

// SubflowDestroy closes one subflow at once (RST) and re-injects what it had
// not delivered on the others. The first subflow of a connection is only shut
// down and lives on until its queue is empty: see [Conn.Abort]. The addresses must have the family that the
// kernel reports for the subflow (see the package comment). ESRCH = there is no
// such subflow. Userspace path manager only.
func (c *Conn) SubflowDestroy(token uint32, local, remote netip.AddrPort) error {
	_, err := c.do(cmdSubflowDestroy, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrToken, token)
		e.Nested(attrAddr, nested(Addr{Addr: local.Addr(), Port: local.Port()}))
		e.Nested(attrAddrRemote, nested(Addr{Addr: remote.Addr(), Port: remote.Port()}))
	})
	return wrap(err, "destroy MPTCP subflow %s to %s", local, remote)
}

// Events reports what happens to the MPTCP connections of the namespace. The
// channel is closed when ctx ends or the socket breaks. When the reader is too
// slow and the kernel drops events, an event of kind [EventLost] is delivered:
// the reader must look at the state itself.
//
// While nobody listens, the userspace path manager refuses every join from
// outside (net/mptcp/pm_userspace.c): whoever accepts must listen.
func (c *Conn) Events(ctx context.Context) (<-chan Event, error) {
	var group uint32
	for _, g := range c.family.Groups {
		if g.Name == groupEvents {
			group = g.ID
		}
	}
	if group == 0 {
		return nil, fmt.Errorf("listen to MPTCP events: the kernel has no group %s", groupEvents)
	}
	g, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("listen to MPTCP events: %w", err)
	}
	// A burst of some thousand events must fit while we are busy; the kernel
	// caps it by net.core.rmem_max, which is not an error.
	_ = g.SetReadBuffer(4 << 20)
	if err := g.JoinGroup(group); err != nil {
		g.Close()
		return nil, fmt.Errorf("listen to MPTCP events: %w", err)
	}
	ch := make(chan Event, 1024)
	stop := context.AfterFunc(ctx, func() { g.Close() })
	go func() {
		defer close(ch)
		defer stop()
		defer g.Close()
		for {
			ms, _, err := g.Receive()
			if errors.Is(err, unix.ENOBUFS) {
				ms = []genetlink.Message{{Header: genetlink.Header{Command: uint8(EventLost)}}}
			} else if err != nil {
				return
			}
			for _, m := range ms {
				ev, err := parseEvent(m.Header.Command, m.Data)
				if err != nil {
					ev = Event{Kind: EventLost}
				}
				select {
				case ch <- ev:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return ch, nil
}

// wrap adds what was done to an error, nil stays nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// parseAddrMessage reads the ADDR attribute of an answer.
func parseAddrMessage(b []byte) (Addr, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return Addr{}, err
	}
	for d.Next() {
		if d.Type() == attrAddr {
			return parseAddr(d.Bytes())
		}
	}
	if err := d.Err(); err != nil {
		return Addr{}, err
	}
	return Addr{}, errors.New("no address in the answer")
}

func parseAddr(b []byte) (Addr, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return Addr{}, err
	}
	var a Addr
	for d.Next() {
		switch d.Type() {
		case addrID:
			a.ID = d.Uint8()
		case addrAddr4:
			a.Addr = addrFrom(d.Bytes(), a.Addr)
		case addrAddr6:
			a.Addr = addrFrom(d.Bytes(), a.Addr)
		case addrPort:
			a.Port = d.Uint16()
		case addrFlags:
			a.Flags = d.Uint32()
		case addrIfIdx:
			a.IfIndex = int(d.Int32())
		}
	}
	return a, d.Err()
}

// addrFrom is the address in b, or old when b has no address's length.
func addrFrom(b []byte, old netip.Addr) netip.Addr {
	if a, ok := netip.AddrFromSlice(b); ok {
		return a
	}
	return old
}

func parseLimits(b []byte) (Limits, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return Limits{}, err
	}
	var l Limits
	for d.Next() {
		switch d.Type() {
		case attrRcvAddAddrs:
			l.AcceptAddAddr = d.Uint32()
		case attrSubflows:
			l.Subflows = d.Uint32()
		}
	}
	return l, d.Err()
}

// be16 reads a big-endian port.
func be16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}
