package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What a rule does (linux/fib_rules.h).
const (
	ActTable       = 1 // look into Table
	ActGoto        = 2 // go on at Goto
	ActNop         = 3
	ActBlackhole   = 6
	ActUnreachable = 7
	ActProhibit    = 8
)

// Attributes of rules (linux/fib_rules.h); those that x/sys lacks.
const (
	fraDst               = 1
	fraSrc               = 2
	fraIifname           = 3
	fraGoto              = 4
	fraPriority          = 6
	fraFwmark            = 10
	fraSuppressPrefixlen = 14
	fraTable             = 15
	fraFwmask            = 16
	fraOifname           = 17
	fraUIDRange          = 20
	fraProtocol          = 21
	fraIPProto           = 22
	fraSportRange        = 23
	fraDportRange        = 24

	ruleInvert = 2 // FIB_RULE_INVERT
)

// Range is a range of ports or user ids, both ends included.
type Range struct{ First, Last uint32 }

// Rule is a policy rule. Zero values of what it looks at mean anything.
type Rule struct {
	Family   uint8 // V4 or V6
	Priority uint32
	Invert   bool // for what does not match
	From, To netip.Prefix
	In, Out  string // names of links
	Mark     uint32
	Mask     uint32 // of Mark; 0 with Mark 0: any mark
	TOS      uint8
	IPProto  uint8
	Sport    Range
	Dport    Range
	UID      Range
	HasUID   bool

	Action   uint8
	Table    uint32
	Goto     uint32
	Suppress int // drop routes not longer than this; -1: none
	Protocol uint8
}

// Rules lists the rules of a family that a program with the given protocol made.
func (c *Conn) Rules(family int, protocol uint8) ([]Rule, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = uint8(family)
	ms, err := c.dump(unix.RTM_GETRULE, body)
	if err != nil {
		return nil, fmt.Errorf("list policy rules: %w", err)
	}
	var out []Rule
	for _, m := range ms {
		r, err := parseRule(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list policy rules: %w", err)
		}
		if r.Family == uint8(family) && r.Protocol == protocol {
			out = append(out, r)
		}
	}
	return out, nil
}

func parseRule(b []byte) (Rule, error) {
	if len(b) < unix.SizeofRtMsg {
		return Rule{}, errShort
	}
	r := Rule{Family: b[0], TOS: b[3], Table: uint32(b[4]), Action: b[7], Suppress: -1}
	r.Invert = binary.NativeEndian.Uint32(b[8:])&ruleInvert != 0
	if r.Family != V4 && r.Family != V6 {
		return r, nil // of multicast routing
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return Rule{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case fraSrc:
			r.From = prefix(ad.Bytes(), b[2])
		case fraDst:
			r.To = prefix(ad.Bytes(), b[1])
		case fraIifname:
			r.In = ad.String()
		case fraOifname:
			r.Out = ad.String()
		case fraGoto:
			r.Goto = ad.Uint32()
		case fraPriority:
			r.Priority = ad.Uint32()
		case fraFwmark:
			r.Mark = ad.Uint32()
		case fraFwmask:
			r.Mask = ad.Uint32()
		case fraSuppressPrefixlen:
			r.Suppress = int(int32(ad.Uint32()))
		case fraTable:
			r.Table = ad.Uint32()
		case fraProtocol:
			r.Protocol = ad.Uint8()
		case fraIPProto:
			r.IPProto = ad.Uint8()
		case fraSportRange:
			r.Sport = ports(ad.Bytes())
		case fraDportRange:
			r.Dport = ports(ad.Bytes())
		case fraUIDRange:
			if v := ad.Bytes(); len(v) >= 8 {
				r.UID, r.HasUID = Range{binary.NativeEndian.Uint32(v), binary.NativeEndian.Uint32(v[4:])}, true
			}
		}
	}
	if err := ad.Err(); err != nil {
		return Rule{}, err
	}
	if r.Suppress < 0 {
		r.Suppress = -1
	}
	if r.Action != ActTable {
		r.Table = 0
	}
	return r, nil
}

func prefix(b []byte, bits uint8) netip.Prefix {
	a, ok := netip.AddrFromSlice(b)
	if !ok || int(bits) > a.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, int(bits))
}

func ports(b []byte) Range {
	if len(b) < 4 {
		return Range{}
	}
	return Range{uint32(binary.NativeEndian.Uint16(b)), uint32(binary.NativeEndian.Uint16(b[2:]))}
}

// AddRule adds a rule; one that is there already is no error.
func (c *Conn) AddRule(r Rule) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	if err := c.change(unix.RTM_NEWRULE, netlink.Create|netlink.Excl, b); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// DeleteRule removes a rule; one that is not there gives unix.ENOENT.
func (c *Conn) DeleteRule(r Rule) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return c.change(unix.RTM_DELRULE, 0, b)
}

func (r Rule) encode() ([]byte, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[3], body[7] = r.Family, r.TOS, r.Action
	if r.Invert {
		binary.NativeEndian.PutUint32(body[8:], ruleInvert)
	}
	ae := netlink.NewAttributeEncoder()
	if r.From.IsValid() {
		body[2] = uint8(r.From.Bits())
		ae.Bytes(fraSrc, r.From.Addr().AsSlice())
	}
	if r.To.IsValid() {
		body[1] = uint8(r.To.Bits())
		ae.Bytes(fraDst, r.To.Addr().AsSlice())
	}
	if r.In != "" {
		ae.String(fraIifname, r.In)
	}
	if r.Out != "" {
		ae.String(fraOifname, r.Out)
	}
	ae.Uint32(fraPriority, r.Priority)
	if r.Mark != 0 || r.Mask != 0 {
		ae.Uint32(fraFwmark, r.Mark)
		ae.Uint32(fraFwmask, r.Mask)
	}
	if r.IPProto != 0 {
		ae.Uint8(fraIPProto, r.IPProto)
	}
	for kind, p := range map[uint16]Range{fraSportRange: r.Sport, fraDportRange: r.Dport} {
		if p != (Range{}) {
			b := binary.NativeEndian.AppendUint16(nil, uint16(p.First))
			ae.Bytes(kind, binary.NativeEndian.AppendUint16(b, uint16(p.Last)))
		}
	}
	if r.HasUID {
		b := binary.NativeEndian.AppendUint32(nil, r.UID.First)
		ae.Bytes(fraUIDRange, binary.NativeEndian.AppendUint32(b, r.UID.Last))
	}
	switch r.Action {
	case ActTable:
		ae.Uint32(fraTable, r.Table)
		if r.Suppress >= 0 {
			ae.Uint32(fraSuppressPrefixlen, uint32(r.Suppress))
		}
	case ActGoto:
		ae.Uint32(fraGoto, r.Goto)
	}
	ae.Uint8(fraProtocol, r.Protocol)
	b, err := ae.Encode()
	return append(body, b...), err
}
