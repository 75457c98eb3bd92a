package intercept

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that rules are made of, each a list of nft expressions that go on
// only if it matches. Register 1 is the working register.

type words = []expr.Any

// say joins words to a rule.
func say(parts ...words) words {
	var all words
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func big16(v uint16) []byte  { return binary.BigEndian.AppendUint16(nil, v) }

func cmp(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iifIs(name string) words {
	return words{meta(expr.MetaKeyIIFNAME), cmp(expr.CmpOpEq, ifname(name))}
}

func iifIn(set lookup) words { return words{meta(expr.MetaKeyIIFNAME), set.expr(false)} }

func iifNotIn(set lookup) words { return words{meta(expr.MetaKeyIIFNAME), set.expr(true)} }

func l4proto(proto byte) words {
	return words{meta(expr.MetaKeyL4PROTO), cmp(expr.CmpOpEq, []byte{proto})}
}

func l4protoIn(set lookup) words { return words{meta(expr.MetaKeyL4PROTO), set.expr(false)} }

// family of addresses: what differs between IPv4 and IPv6.
type family struct {
	proto     byte   // NFPROTO_
	src, dst  uint32 // offsets in the header
	size      uint32 // of an address
	afterAddr uint32 // the register behind an address in register 1
	icmp      byte
}

var (
	ip4 = family{proto: unix.NFPROTO_IPV4, src: 12, dst: 16, size: 4, afterAddr: unix.NFT_REG32_01, icmp: unix.IPPROTO_ICMP}
	ip6 = family{proto: unix.NFPROTO_IPV6, src: 8, dst: 24, size: 16, afterAddr: unix.NFT_REG_2, icmp: unix.IPPROTO_ICMPV6}
)

func (f family) is() words {
	return words{meta(expr.MetaKeyNFPROTO), cmp(expr.CmpOpEq, []byte{f.proto})}
}

func (f family) load(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

func (f family) srcIn(set lookup) words {
	return append(f.is(), f.load(f.src), set.expr(false))
}

func (f family) dstIn(set lookup) words {
	return append(f.is(), f.load(f.dst), set.expr(false))
}

// dstPortIn looks destination address and port up in a set of both.
func (f family) dstPortIn(set lookup) words {
	return append(f.is(), f.load(f.dst),
		&expr.Payload{DestRegister: f.afterAddr, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		set.expr(false))
}

func dportIn(set lookup) words {
	return words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, set.expr(false)}
}

func dportIsNot(port int) words { return dport(expr.CmpOpNeq, port) }
func dportIs(port int) words    { return dport(expr.CmpOpEq, port) }

func dport(op expr.CmpOp, port int) words {
	return words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		cmp(op, big16(uint16(port)))}
}

const (
	tcpFIN, tcpSYN, tcpRST, tcpACK = 1, 2, 4, 16
)

// tcpFlags matches if the flags among mask are as in want.
func tcpFlags(mask, want byte) words {
	return words{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		cmp(expr.CmpOpEq, []byte{want}),
	}
}

// Subtypes of the TCP option of MPTCP, RFC 8684 section 8.
const (
	mptcpCapable = 0x0
	mptcpJoin    = 0x1
	optMPTCP     = 30
)

func mptcpSubtype(kind byte) words {
	return words{
		&expr.Exthdr{DestRegister: 1, Type: optMPTCP, Offset: 2, Len: 1, Op: expr.ExthdrOpTcpopt},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0xf0}, Xor: []byte{0}},
		cmp(expr.CmpOpEq, []byte{kind << 4}),
	}
}

// socketTransparent matches packets for a socket with a foreign address that is
// not a wildcard listener: established or connecting. ICMP errors match by the
// packet that they quote.
func socketTransparent() words {
	return words{
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, cmp(expr.CmpOpEq, []byte{1}),
		&expr.Socket{Key: expr.SocketKeyWildcard, Register: 1}, cmp(expr.CmpOpEq, []byte{0}),
	}
}

func socketMark(bit uint32) words {
	return words{
		&expr.Socket{Key: expr.SocketKeyMark, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bit), Xor: native(0)},
		cmp(expr.CmpOpEq, native(bit)),
	}
}

// marked matches if the packet's mark has value among mask.
func marked(mask, value uint32) words {
	return words{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(mask), Xor: native(0)},
		cmp(expr.CmpOpEq, native(value)),
	}
}

// mark replaces our bits of the packet's mark and leaves the others.
func mark(bits uint32) words {
	return words{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(^uint32(MarkMask)), Xor: native(bits)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// addrType is the kind of the destination: RTN_ numbers of linux/rtnetlink.h.
func addrTypeIn(set lookup) words {
	return words{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, set.expr(false)}
}

func addrTypeIsNot(kind uint32) words {
	return words{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, cmp(expr.CmpOpNeq, native(kind))}
}

// routeOutIn matches if the packet would be routed out of a device in set.
func routeOutIn(set lookup) words {
	return words{&expr.Fib{Register: 1, ResultOIFNAME: true, FlagDADDR: true}, set.expr(false)}
}

func (f family) tproxy(port int) words {
	return words{
		&expr.Immediate{Register: 1, Data: big16(uint16(port))},
		&expr.TProxy{Family: f.proto, TableFamily: unix.NFPROTO_INET, RegPort: 1},
	}
}

func accept() words { return words{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() words   { return words{&expr.Verdict{Kind: expr.VerdictDrop}} }
func back() words   { return words{&expr.Verdict{Kind: expr.VerdictReturn}} }

func jump(chain string) words { return words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func follow(chain string) words {
	return words{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// reject answers as a router without a route would.
func reject() words {
	return words{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}}
}

func log(group uint16) words {
	return words{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_QTHRESHOLD | 1<<unix.NFTA_LOG_SNAPLEN,
		Group: group, QThreshold: 1, Snaplen: 512,
	}}
}

// refresh adds the key in register 1 to a set, or renews its timeout.
func refresh(set lookup, timeout time.Duration) words {
	return words{&expr.Dynset{SrcRegKey: 1, Timeout: timeout, SetID: set.id, SetName: set.name, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}
