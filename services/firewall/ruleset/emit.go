package ruleset

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Keys of linux/netfilter/nf_tables.h that the libraries lack.
const (
	metaTimeNS   = expr.MetaKey(30)
	metaTimeDay  = expr.MetaKey(31)
	metaTimeHour = expr.MetaKey(32)
)

// emitter writes one rule as nft's virtual machine has it. Register 1 is the
// working register; what a term may rely on (the IP version, the protocol, an
// Ethernet header) is checked once a rule, as nft does.
type emitter struct {
	c      *nftables.Conn
	t      *nftables.Table
	out    []expr.Any
	family Family
	proto  uint8
	ether  bool
	err    error
}

func (e *emitter) add(x ...expr.Any) { e.out = append(e.out, x...) }

func big16(v uint16) []byte    { return binary.BigEndian.AppendUint16(nil, v) }
func big32(v uint32) []byte    { return binary.BigEndian.AppendUint32(nil, v) }
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func (e *emitter) meta(key expr.MetaKey) { e.add(&expr.Meta{Key: key, Register: 1}) }

func (e *emitter) load(base expr.PayloadBase, offset, size uint32) {
	e.add(&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size})
}

func op(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

func (e *emitter) cmp(o expr.CmpOp, data []byte) {
	e.add(&expr.Cmp{Op: o, Register: 1, Data: data})
}

func (e *emitter) mask(mask, xor []byte) {
	e.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: xor})
}

// among compares with one value or looks several up in an anonymous set.
func (e *emitter) among(not bool, typ nftables.SetDatatype, values [][]byte) {
	if len(values) == 1 {
		e.cmp(op(not), values[0])
		return
	}
	values = slices.Clone(values)
	slices.SortFunc(values, bytes.Compare)
	values = slices.CompactFunc(values, bytes.Equal)
	var elems []nftables.SetElement
	for _, v := range values {
		elems = append(elems, nftables.SetElement{Key: v})
	}
	e.lookup(not, &nftables.Set{KeyType: typ, Concatenation: strings.Contains(typ.Name, " . ")}, elems)
}

func (e *emitter) lookup(not bool, s *nftables.Set, elems []nftables.SetElement) {
	s.Table, s.Anonymous, s.Constant = e.t, true, true
	if err := e.c.AddSet(s, elems); err != nil && e.err == nil {
		e.err = err
	}
	e.add(&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: not})
}

// ranges compares with one range or looks several up in an anonymous set.
func (e *emitter) ranges(not bool, typ nftables.SetDatatype, list [][2][]byte) {
	singles := true
	for _, r := range list {
		singles = singles && bytes.Equal(r[0], r[1])
	}
	if singles {
		var values [][]byte
		for _, r := range list {
			values = append(values, r[0])
		}
		e.among(not, typ, values)
		return
	}
	if len(list) == 1 {
		from, to := list[0][0], list[0][1]
		if not {
			e.add(&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: from, ToData: to})
		} else {
			e.cmp(expr.CmpOpGte, from)
			e.cmp(expr.CmpOpLte, to)
		}
		return
	}
	e.lookup(not, &nftables.Set{KeyType: typ, Interval: true}, intervals(list))
}

// intervals gives the elements of a set of disjoint sorted ranges: where each
// starts, and the first value behind it.
func intervals(list [][2][]byte) []nftables.SetElement {
	var elems []nftables.SetElement
	if len(list) > 0 && !allZero(list[0][0]) {
		elems = append(elems, nftables.SetElement{Key: make([]byte, len(list[0][0])), IntervalEnd: true})
	}
	for i, r := range list {
		elems = append(elems, nftables.SetElement{Key: r[0]})
		next := following(r[1])
		if next == nil || i+1 < len(list) && bytes.Equal(next, list[i+1][0]) {
			continue // up to the end, or the next one starts right behind
		}
		elems = append(elems, nftables.SetElement{Key: next, IntervalEnd: true})
	}
	return elems
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// following is the next value, nil behind the last.
func following(b []byte) []byte {
	b = bytes.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return b
		}
	}
	return nil
}

func (e *emitter) needFamily(f Family) {
	if e.family != f {
		e.meta(expr.MetaKeyNFPROTO)
		e.cmp(expr.CmpOpEq, []byte{f.number()})
		e.family = f
	}
}

func (e *emitter) needProto(p uint8) {
	if e.proto != p {
		e.meta(expr.MetaKeyL4PROTO)
		e.cmp(expr.CmpOpEq, []byte{p})
		e.proto = p
	}
}

func (e *emitter) needEther() {
	if !e.ether {
		e.meta(expr.MetaKeyIIFTYPE)
		e.cmp(expr.CmpOpEq, binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER))
		e.ether = true
	}
}

func (d Device) exprs(e *emitter) {
	key := expr.MetaKeyIIFNAME
	if d.Out {
		key = expr.MetaKeyOIFNAME
	}
	e.meta(key)
	if prefix, ok := strings.CutSuffix(d.Name, "*"); ok {
		e.cmp(expr.CmpOpEq, []byte(prefix))
		return
	}
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, d.Name)
	e.cmp(expr.CmpOpEq, b)
}

func (f Family) exprs(e *emitter) { e.needFamily(f) }

func (p Protocols) exprs(e *emitter) {
	if len(p.List) == 1 && !p.Not {
		e.needProto(p.List[0])
		return
	}
	e.meta(expr.MetaKeyL4PROTO)
	var values [][]byte
	for _, n := range p.List {
		values = append(values, []byte{n})
	}
	e.among(p.Not, nftables.TypeInetProto, values)
}

func (p Ports) exprs(e *emitter) {
	e.needProto(p.Proto)
	offset := uint32(0)
	if p.Dest {
		offset = 2
	}
	e.load(expr.PayloadBaseTransportHeader, offset, 2)
	e.ranges(p.Not, nftables.TypeInetService, portRanges(p.List))
}

func portRanges(list []PortRange) [][2][]byte {
	var out [][2][]byte
	for _, r := range mergePorts(list) {
		out = append(out, [2][]byte{big16(r.From), big16(r.To)})
	}
	return out
}

func (e *emitter) loadAddr(f Family, dest bool) {
	e.needFamily(f)
	switch {
	case f == IPv6 && dest:
		e.load(expr.PayloadBaseNetworkHeader, 24, 16)
	case f == IPv6:
		e.load(expr.PayloadBaseNetworkHeader, 8, 16)
	case dest:
		e.load(expr.PayloadBaseNetworkHeader, 16, 4)
	default:
		e.load(expr.PayloadBaseNetworkHeader, 12, 4)
	}
}

func (f Family) addrType() nftables.SetDatatype {
	if f == IPv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (a Addrs) exprs(e *emitter) {
	list := mergeAddrs(a.List)
	e.loadAddr(a.Family, a.Dest)
	if len(list) == 1 {
		if p, ok := list[0].prefix(); ok && p.Bits() < p.Addr().BitLen() {
			e.mask(netmask(p), make([]byte, p.Addr().BitLen()/8))
			e.cmp(op(a.Not), p.Addr().AsSlice())
			return
		}
	}
	var out [][2][]byte
	for _, r := range list {
		out = append(out, [2][]byte{r.From.AsSlice(), r.To.AsSlice()})
	}
	e.ranges(a.Not, a.Family.addrType(), out)
}

func netmask(p netip.Prefix) []byte {
	b := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

func (m MaskedAddr) exprs(e *emitter) {
	e.loadAddr(m.Family, m.Dest)
	mask := m.Mask.AsSlice()
	e.mask(mask, make([]byte, len(mask)))
	e.cmp(op(m.Not), m.Addr.AsSlice())
}

func (m MACs) exprs(e *emitter) {
	e.needEther()
	e.load(expr.PayloadBaseLLHeader, 6, 6)
	var values [][]byte
	for _, a := range m.List {
		values = append(values, a)
	}
	e.among(m.Not, nftables.TypeEtherAddr, values)
}

func (i ICMP) exprs(e *emitter) {
	typ, code := nftables.TypeICMPType, nftables.TypeICMPCode
	if i.Family == IPv6 {
		e.needProto(unix.IPPROTO_ICMPV6)
		typ, code = nftables.TypeICMP6Type, nftables.TypeICMPV6Code
	} else {
		e.needProto(unix.IPPROTO_ICMP)
	}
	e.load(expr.PayloadBaseTransportHeader, 0, 1)
	if i.List[0].Code < 0 {
		var values [][]byte
		for _, t := range i.List {
			values = append(values, []byte{t.Type})
		}
		e.among(i.Not, typ, values)
		return
	}
	e.add(&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseTransportHeader, Offset: 1, Len: 1})
	both, err := nftables.ConcatSetType(typ, code)
	if err != nil && e.err == nil {
		e.err = err
	}
	var elems []nftables.SetElement
	for _, t := range i.List {
		elems = append(elems, nftables.SetElement{Key: []byte{t.Type, 0, 0, 0, byte(t.Code), 0, 0, 0}})
	}
	e.lookup(i.Not, &nftables.Set{KeyType: both, Concatenation: true}, elems)
}

func (e *emitter) ctBits(key expr.CtKey, bits uint32) {
	e.add(&expr.Ct{Key: key, Register: 1})
	e.mask(native32(bits), native32(0))
	e.cmp(expr.CmpOpNeq, native32(0))
}

func (s State) exprs(e *emitter) { e.ctBits(expr.CtKeySTATE, uint32(s)) }

// ipsDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ipsDstNAT = 0x20

func (Redirected) exprs(e *emitter) { e.ctBits(expr.CtKeySTATUS, ipsDstNAT) }

func (f FirstSYN) exprs(e *emitter) {
	const fin, syn, rst, ack = 1, 2, 4, 16
	mask := byte(fin | syn | rst | ack)
	if f.Clamp {
		mask = syn | rst
	}
	e.needProto(unix.IPPROTO_TCP)
	e.load(expr.PayloadBaseTransportHeader, 13, 1)
	e.mask([]byte{mask}, []byte{0})
	e.cmp(expr.CmpOpEq, []byte{syn})
}

func (m Mark) exprs(e *emitter) {
	e.meta(expr.MetaKeyMARK)
	if m.Mask != ^uint32(0) {
		e.mask(native32(m.Mask), native32(0))
	}
	e.cmp(op(m.Not), native32(m.Value))
}

func (d DSCP) exprs(e *emitter) {
	e.needFamily(d.Family)
	if d.Family == IPv6 {
		e.load(expr.PayloadBaseNetworkHeader, 0, 2)
		e.mask([]byte{0x0f, 0xc0}, []byte{0, 0})
		e.cmp(op(d.Not), big16(uint16(d.Value)<<6))
		return
	}
	e.load(expr.PayloadBaseNetworkHeader, 1, 1)
	e.mask([]byte{0xfc}, []byte{0})
	e.cmp(op(d.Not), []byte{d.Value << 2})
}

func (h HelperIs) exprs(e *emitter) {
	e.add(&expr.Ct{Key: expr.CtKeyHELPER, Register: 1})
	b := make([]byte, 16) // NF_CT_HELPER_NAME_LEN
	copy(b, h.Name)
	e.cmp(op(h.Not), b)
}

func (l Limit) exprs(e *emitter) {
	unit := map[string]expr.LimitTime{"second": expr.LimitTimeSecond, "minute": expr.LimitTimeMinute, "hour": expr.LimitTimeHour, "day": expr.LimitTimeDay, "week": expr.LimitTimeWeek}[l.unit()]
	e.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: l.Rate, Unit: unit, Burst: l.burst()})
}

func (e *emitter) swap(size uint32) {
	e.add(&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: size, Size: size})
}

func (h Hours) exprs(e *emitter) {
	e.meta(metaTimeHour)
	switch from, to := big32(uint32(h.From)), big32(uint32(h.To)); {
	case h.From == h.To:
		e.cmp(expr.CmpOpEq, native32(uint32(h.From)))
	case h.From < h.To:
		e.swap(4)
		e.cmp(expr.CmpOpGte, from)
		e.cmp(expr.CmpOpLte, to)
	default:
		e.swap(4)
		e.add(&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: to, ToData: from})
	}
}

func (d Days) exprs(e *emitter) {
	e.meta(metaTimeDay)
	var values [][]byte
	for _, day := range d.List {
		values = append(values, []byte{byte(day)})
	}
	e.among(d.Not, nftables.TypeTimeDay, values)
}

func (t Time) exprs(e *emitter) {
	e.meta(metaTimeNS)
	e.swap(8)
	if !t.From.IsZero() {
		e.cmp(expr.CmpOpGte, binary.BigEndian.AppendUint64(nil, uint64(t.From.UnixNano())))
	}
	if !t.To.IsZero() {
		e.cmp(expr.CmpOpLte, binary.BigEndian.AppendUint64(nil, uint64(t.To.UnixNano())))
	}
}

func (s InSet) exprs(e *emitter) {
	at := uint32(0) // in words of four bytes
	for _, f := range s.Fields {
		reg := uint32(unix.NFT_REG_1)
		if at > 0 {
			reg = unix.NFT_REG32_00 + at
		}
		p := &expr.Payload{DestRegister: reg}
		switch f {
		case SrcPort, DestPort:
			if s.Proto != 0 {
				e.needProto(s.Proto)
			}
			p.Base, p.Len = expr.PayloadBaseTransportHeader, 2
			if f == DestPort {
				p.Offset = 2
			}
			at++
		case SrcMAC:
			e.needEther()
			p.Base, p.Offset, p.Len = expr.PayloadBaseLLHeader, 6, 6
			at += 2
		default:
			e.needFamily(s.Family)
			p.Base = expr.PayloadBaseNetworkHeader
			p.Offset, p.Len = 12, 4
			if s.Family == IPv6 {
				p.Offset, p.Len = 8, 16
			}
			if f == DestIP {
				p.Offset += p.Len
			}
			at += p.Len / 4
		}
		e.add(p)
	}
	e.add(&expr.Lookup{SourceRegister: 1, SetName: s.Name, Invert: s.Not})
}

func (Counter) exprs(e *emitter) { e.add(&expr.Counter{}) }

func (l Log) exprs(e *emitter) {
	e.add(&expr.Log{Key: 1 << unix.NFTA_LOG_PREFIX, Data: []byte(comment(l.Prefix))})
}

func (v Verdict) exprs(e *emitter) {
	kind := expr.VerdictAccept
	switch v {
	case Drop:
		kind = expr.VerdictDrop
	case Return:
		kind = expr.VerdictReturn
	}
	e.add(&expr.Verdict{Kind: kind})
}

func (j Jump) exprs(e *emitter) { e.add(&expr.Verdict{Kind: expr.VerdictJump, Chain: string(j)}) }

func (r Reject) exprs(e *emitter) {
	if r.Reset {
		e.needProto(unix.IPPROTO_TCP)
		e.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		return
	}
	e.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: r.Code})
}

func (e *emitter) immediate(reg uint32, data []byte) uint32 {
	e.add(&expr.Immediate{Register: reg, Data: data})
	return reg
}

// ports puts a range of ports into registers.
func (e *emitter) ports(first uint32, p PortRange) (from, to uint32) {
	if p.From == 0 {
		return 0, 0
	}
	from = e.immediate(first, big16(p.From))
	if p.To == p.From {
		return from, 0
	}
	return from, e.immediate(first+1, big16(p.To))
}

func (n NAT) exprs(e *emitter) {
	e.needFamily(n.Family)
	x := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(n.Family.number())}
	if n.Source {
		x.Type = expr.NATTypeSourceNAT
	}
	reg := uint32(1)
	if n.Addr.From.IsValid() {
		x.RegAddrMin = e.immediate(reg, n.Addr.From.AsSlice())
		if n.Addr.To != n.Addr.From {
			reg++
			x.RegAddrMax = e.immediate(reg, n.Addr.To.AsSlice())
		}
		reg++
	}
	x.RegProtoMin, x.RegProtoMax = e.ports(reg, n.Port)
	x.Specified = n.Port.From != 0
	e.add(x)
}

func (m Masquerade) exprs(e *emitter) {
	from, to := e.ports(1, m.Port)
	e.add(&expr.Masq{ToPorts: from != 0, RegProtoMin: from, RegProtoMax: to})
}

func (r Redirect) exprs(e *emitter) {
	from, to := e.ports(1, r.Port)
	flags := uint32(0)
	if from != 0 {
		flags = unix.NF_NAT_RANGE_PROTO_SPECIFIED
	}
	e.add(&expr.Redir{RegisterProtoMin: from, RegisterProtoMax: to, Flags: flags})
}

func (m SetMark) exprs(e *emitter) {
	if m.Mask == ^uint32(0) {
		e.immediate(1, native32(m.Value))
	} else {
		e.meta(expr.MetaKeyMARK)
		e.mask(native32(^m.Mask), native32(m.Value))
	}
	e.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})
}

func (d SetDSCP) exprs(e *emitter) {
	e.needFamily(d.Family)
	e.load(expr.PayloadBaseNetworkHeader, 0, 2)
	w := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Len: 2}
	if d.Family == IPv6 {
		e.mask([]byte{0xf0, 0x3f}, big16(uint16(d.Value)<<6))
	} else {
		e.mask([]byte{0xff, 0x03}, []byte{0, d.Value << 2})
		w.CsumType, w.CsumOffset = expr.CsumTypeInet, 10
	}
	e.add(w)
}

func (NoTrack) exprs(e *emitter) { e.add(&expr.Notrack{}) }

func (h SetHelper) exprs(e *emitter) {
	e.add(&expr.Objref{Type: unix.NFT_OBJECT_CT_HELPER, Name: string(h)})
}

func (o Offload) exprs(e *emitter) { e.add(&expr.FlowOffload{Name: string(o)}) }

func (ClampMSS) exprs(e *emitter) {
	e.add(
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		// The option's kind and length come first.
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	)
}
