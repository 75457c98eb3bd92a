package intercept

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// lookup names a set in rules.
type lookup struct {
	name string
	id   uint32
}

func (l lookup) expr(invert bool) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: l.name, SetID: l.id, Invert: invert}
}

// builder fills one batch with the content of one table.
type builder struct {
	c   *nftables.Conn
	t   *nftables.Table
	err error
}

func (b *builder) fail(err error) {
	if b.err == nil && err != nil {
		b.err = err
	}
}

// chain makes the chain, or empties it, and fills it.
func (b *builder) chain(name string, rules ...words) {
	c := &nftables.Chain{Name: name, Table: b.t}
	for _, r := range rules {
		if r != nil {
			b.c.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: r})
		}
	}
}

// declare makes chains, or empties them, before rules refer to each other.
func (b *builder) declare(names ...string) {
	for _, n := range names {
		c := &nftables.Chain{Name: n, Table: b.t}
		b.c.AddChain(c)
		b.c.FlushChain(c)
	}
}

// base makes the chain at the hook prerouting, or empties it.
func (b *builder) base(name string, priority nftables.ChainPriority) {
	policy := nftables.ChainPolicyAccept
	c := &nftables.Chain{
		Name: name, Table: b.t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: &priority, Policy: &policy,
	}
	b.c.AddChain(c)
	b.c.FlushChain(c)
}

// chunk is how many elements go into one message: its length field has 16 bits.
const chunk = 400

// set makes a named set if it is not there. With content not nil it then holds
// exactly that; with nil it keeps what it has.
func (b *builder) set(s *nftables.Set, content []nftables.SetElement) lookup {
	s.Table = b.t
	b.fail(b.c.AddSet(s, nil))
	if content != nil {
		b.c.FlushSet(s)
		for len(content) > 0 {
			n := min(chunk, len(content))
			b.fail(b.c.SetAddElements(s, content[:n]))
			content = content[n:]
		}
	}
	return lookup{s.Name, s.ID}
}

// literal makes a set for one rule.
func (b *builder) literal(key nftables.SetDatatype, interval bool, content []nftables.SetElement) lookup {
	s := &nftables.Set{Table: b.t, Anonymous: true, Constant: true, Interval: interval, KeyType: key}
	first := content[:min(chunk, len(content))]
	b.fail(b.c.AddSet(s, first))
	if len(first) < len(content) {
		b.fail(fmt.Errorf("a list of %d values in one exclude section: expected at most %d; use an nft set", len(content), chunk))
	}
	return lookup{s.Name, s.ID}
}

func keys(f family) nftables.SetDatatype {
	if f.proto == unix.NFPROTO_IPV4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

func spanElements(in []span) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, 2*len(in))
	for _, s := range in {
		out = append(out, nftables.SetElement{Key: s.from.AsSlice()})
		if next := s.to.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func portElements(in []PortRange) []nftables.SetElement {
	var out []nftables.SetElement
	for _, r := range ports(in) {
		out = append(out, nftables.SetElement{Key: big16(r.From)})
		if r.To < 65535 {
			out = append(out, nftables.SetElement{Key: big16(r.To + 1), IntervalEnd: true})
		}
	}
	return out
}

func protoElements(in []uint8) []nftables.SetElement {
	var out []nftables.SetElement
	seen := map[uint8]bool{}
	for _, p := range in {
		if !seen[p] {
			seen[p] = true
			out = append(out, nftables.SetElement{Key: []byte{p}})
		}
	}
	return out
}

func nameElements(in []string) []nftables.SetElement {
	out := []nftables.SetElement{}
	for _, n := range in {
		out = append(out, nftables.SetElement{Key: ifname(n)})
	}
	return out
}

// never is what the IP stack keeps to itself whatever the routes say, IPv4 and
// IPv6: this host, link-local, multicast.
func never(peers []netip.Addr) []netip.Prefix {
	list := []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{0}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 32),
		netip.PrefixFrom(netip.IPv6Unspecified(), 127),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8),
	}
	for _, p := range peers {
		p = p.Unmap().WithZone("")
		list = append(list, netip.PrefixFrom(p, p.BitLen()))
	}
	return list
}

// noDevice is a name that the kernel gives to no device (dev_valid_name).
const noDevice = "."

// fill writes the whole table, for the options as they are now. It is one batch
// for the kernel: packets see the table as it was or as it will be.
func (b *builder) fill(o Options, peersUp bool) {
	up, away := o.Destinations, o.Away
	if !peersUp {
		up, away = nil, append(append([]netip.Prefix{}, up...), away...)
	}
	lan := b.set(&nftables.Set{Name: "lan", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, nameElements(o.LAN))
	var known, dest, gone, own, clients, none [2]lookup
	for i, f := range []family{ip4, ip6} {
		n := []string{"4", "6"}[i]
		v4 := i == 0
		known[i] = b.set(&nftables.Set{
			Name: "known" + n, KeyType: nftables.MustConcatSetType(keys(f), nftables.TypeInetService),
			Concatenation: true, HasTimeout: true, Dynamic: true, Size: knownSize,
		}, nil)
		inUp, inAway := split(up, away, v4)
		dest[i] = b.set(&nftables.Set{Name: "dest" + n, KeyType: keys(f), Interval: true}, spanElements(inUp))
		gone[i] = b.set(&nftables.Set{Name: "away" + n, KeyType: keys(f), Interval: true}, spanElements(inAway))
		own[i] = b.set(&nftables.Set{Name: "never" + n, KeyType: keys(f), Interval: true}, spanElements(spans(never(o.PeerAddrs), v4)))
		clients[i] = b.set(&nftables.Set{
			Name: "tunnelled" + n, KeyType: keys(f), HasTimeout: true, Dynamic: true, Size: 65536,
		}, nil)
		none[i] = b.set(&nftables.Set{Name: "none" + n, KeyType: keys(f), Interval: true}, spanElements(spans(o.NoneFrom, v4)))
	}
	b.base("prerouting", *nftables.ChainPriorityMangle)
	b.declare("tcp", "syn", "ours", "udp", "other", "untouched", "catch_tcp", "take_tcp", "take_udp", "take_none", "tunnel")

	b.chain("prerouting",
		say(l4proto(unix.IPPROTO_TCP), follow("tcp")),
		say(l4proto(unix.IPPROTO_UDP), follow("udp")),
		say(follow("other")),
	)

	// What is not ours although it comes from a LAN device.
	untouched := []words{
		say(marked(MarkBypass, MarkBypass), mark(0), accept()),
		say(addrTypeIn(b.literal(nftables.TypeFIBAddr, false, []nftables.SetElement{
			{Key: native(unix.RTN_LOCAL)}, {Key: native(unix.RTN_BROADCAST)}, {Key: native(unix.RTN_ANYCAST)}, {Key: native(unix.RTN_MULTICAST)},
		})), accept()),
		say(ip4.dstIn(own[0]), accept()),
		say(ip6.dstIn(own[1]), accept()),
		say(routeOutIn(lan), accept()),
	}
	for _, e := range o.Exclude {
		if e.Set == "" {
			untouched = append(untouched, b.exclude(e, accept())...)
		}
	}
	b.chain("untouched", untouched...)

	hold := o.Syn != Immediate
	b.chain("tcp",
		say(tcpFlags(tcpFIN|tcpSYN|tcpRST|tcpACK, tcpSYN), follow("syn")),
		// Not socketTransparent: the handshake's last ACK finds a request, and what comes
		// late finds a TIME_WAIT, neither of which has a wildcard to ask for.
		say(words{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, cmp(expr.CmpOpEq, []byte{1})}, follow("ours")),
		when(hold && o.PortTCP != 0, say(tcpFlags(tcpSYN|tcpRST, tcpRST), iifIn(lan), log(o.LogGroup))),
	)
	b.chain("syn",
		say(iifIs(InjectDevice), follow("take_tcp")),
		say(iifIs(PassDevice), accept()),
		when(o.NonePort != 0, say(iifNotIn(lan), dportIsNot(o.ListenPort), mptcpSubtype(mptcpJoin), jump("take_none"))),
		when(o.NonePort != 0, say(iifNotIn(lan), mptcpSubtype(mptcpCapable), addrTypeIsNot(unix.RTN_LOCAL), ip4.srcIn(none[0]), jump("take_none"))),
		when(o.NonePort != 0, say(iifNotIn(lan), mptcpSubtype(mptcpCapable), addrTypeIsNot(unix.RTN_LOCAL), ip6.srcIn(none[1]), jump("take_none"))),
		when(o.PortTCP != 0, say(iifIn(lan), jump("untouched"))),
		when(o.PortTCP != 0, say(iifIn(lan), ip4.dstIn(dest[0]), follow("catch_tcp"))),
		when(o.PortTCP != 0, say(iifIn(lan), ip6.dstIn(dest[1]), follow("catch_tcp"))),
		when(o.PortTCP != 0 && o.Fail == FailClosed, say(iifIn(lan), ip4.dstIn(gone[0]), reject())),
		when(o.PortTCP != 0 && o.Fail == FailClosed, say(iifIn(lan), ip6.dstIn(gone[1]), reject())),
	)
	// A packet that found only a listener belongs to a connection that is none of
	// ours and happens to have the listener's port.
	ours := []words{}
	for _, port := range []int{o.PortTCP, o.NonePort} {
		if port != 0 {
			ours = append(ours, say(dportIs(port), words{
				&expr.Socket{Key: expr.SocketKeyWildcard, Register: 1}, cmp(expr.CmpOpEq, []byte{1})}, back()))
		}
	}
	b.chain("ours", append(ours, say(mark(MarkLocal), accept()))...)
	b.chain("catch_tcp",
		when(o.Syn == Adaptive, say(ip4.dstPortIn(known[0]), refresh(known[0], o.knownTimeout()), follow("take_tcp"))),
		when(o.Syn == Adaptive, say(ip6.dstPortIn(known[1]), refresh(known[1], o.knownTimeout()), follow("take_tcp"))),
		when(hold, say(log(o.LogGroup), drop())),
		when(!hold, follow("take_tcp")),
	)
	closed := when(o.Fail == FailClosed, reject())
	b.chain("take_tcp", b.take(o.PortTCP, closed)...)
	b.chain("take_none", b.take(o.NonePort, nil)...)
	b.chain("udp",
		say(socketTransparent(), socketMark(MarkConnect), mark(MarkLocal), accept()),
		// The kernel puts fragments together before these rules only where a tproxy
		// expression is loaded (nf_defrag): without it a far gateway that intercepts
		// nothing would see the first fragment of a large answer alone. No device has
		// the name of these rules.
		when(o.PortUDP == 0, say(iifIs(noDevice), ip4.is(), ip4.tproxy(1))),
		when(o.PortUDP == 0, say(iifIs(noDevice), ip6.is(), ip6.tproxy(1))),
		when(o.PortUDP != 0, say(iifNotIn(lan), back())),
		when(o.PortUDP != 0, jump("untouched")),
		when(o.PortUDP != 0, say(ip4.dstIn(dest[0]), follow("take_udp"))),
		when(o.PortUDP != 0, say(ip6.dstIn(dest[1]), follow("take_udp"))),
		when(o.PortUDP != 0 && o.Fail == FailClosed, say(ip4.dstIn(gone[0]), reject())),
		when(o.PortUDP != 0 && o.Fail == FailClosed, say(ip6.dstIn(gone[1]), reject())),
	)
	b.chain("take_udp", b.take(o.PortUDP, closed)...)

	other := []words{
		say(ip4.is(), l4proto(ip4.icmp), socketTransparent(), mark(MarkLocal), accept()),
		say(ip6.is(), l4proto(ip6.icmp), socketTransparent(), mark(MarkLocal), accept()),
	}
	if o.TunnelDevice != "" {
		// Whoever has sent through the tunnel is behind the other end: what is for
		// them goes back the same way, also where no LAN is served here. Addresses
		// instead of connection tracking, because that would have to follow every
		// TCP packet of the machine as well.
		for i, f := range []family{ip4, ip6} {
			other = append(other, say(iifIs(o.TunnelDevice), f.is(), words{f.load(f.src)}, refresh(clients[i], tunnelledTimeout), accept()))
		}
		if o.AllProtocols || len(o.Protocols) > 0 {
			mine := func() words { // each rule with a literal set of its own
				if o.AllProtocols {
					return iifIn(lan)
				}
				return say(iifIn(lan), l4protoIn(b.literal(nftables.TypeInetProto, false, protoElements(o.Protocols))))
			}
			other = append(other, say(mine(), jump("untouched")))
			for i, f := range []family{ip4, ip6} {
				other = append(other, say(mine(), f.dstIn(dest[i]), follow("tunnel")))
				if o.Fail == FailClosed {
					other = append(other, say(mine(), f.dstIn(gone[i]), reject()))
				}
			}
		}
		for i, f := range []family{ip4, ip6} {
			other = append(other,
				say(iifIn(lan), f.dstIn(dest[i]), back()),
				say(f.dstIn(clients[i]), follow("tunnel")))
		}
	}
	b.chain("other", other...)
	b.chain("tunnel", say(mark(MarkTunnel), accept()))
}

// knownSize is how many destinations the sets `known4` and `known6` hold.
const knownSize = 65536

// tunnelledTimeout is how long an address counts as behind the tunnel after its
// last packet from there.
const tunnelledTimeout = 10 * time.Minute

func when(yes bool, w words) words {
	if yes {
		return w
	}
	return nil
}

// take hands a packet to the listener on port. Without one tproxy does not
// match, and what follows is left: otherwise, or routing.
func (b *builder) take(port int, otherwise words) []words {
	if port == 0 {
		return nil
	}
	return []words{
		say(ip4.is(), ip4.tproxy(port), mark(MarkLocal), accept()),
		say(ip6.is(), ip6.tproxy(port), mark(MarkLocal), accept()),
		otherwise,
	}
}

// exclude gives the rules for one section, at most one for each family.
func (b *builder) exclude(e Exclude, verdict words) []words {
	// A literal set belongs to one rule, so each rule has its own.
	common := func() (w words) {
		if e.MarkMask != 0 {
			w = say(w, marked(e.MarkMask, e.Mark&e.MarkMask))
		}
		protos := e.Proto
		if len(protos) == 0 && len(e.DestPort) > 0 {
			protos = []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE}
		}
		if len(protos) > 0 {
			w = say(w, l4protoIn(b.literal(nftables.TypeInetProto, false, protoElements(protos))))
		}
		if len(e.DestPort) > 0 {
			w = say(w, dportIn(b.literal(nftables.TypeInetService, true, portElements(e.DestPort))))
		}
		return w
	}
	if len(e.Src) == 0 && len(e.Dest) == 0 && e.Set == "" {
		w := common()
		if w == nil {
			b.fail(fmt.Errorf("an exclude section that names nothing would exclude everything: give it an address, port, protocol, mark or set, or remove it"))
		}
		return []words{say(w, verdict)}
	}
	var rules []words
	for i, f := range []family{ip4, ip6} {
		v4 := i == 0
		var r words
		possible := true
		for _, side := range []struct {
			list []netip.Prefix
			in   func(lookup) words
		}{{e.Src, f.srcIn}, {e.Dest, f.dstIn}} {
			if len(side.list) == 0 {
				continue
			}
			list := spans(side.list, v4)
			if len(list) == 0 {
				possible = false // addresses of the other family only
				break
			}
			r = say(r, side.in(b.literal(keys(f), true, spanElements(list))))
		}
		if !possible {
			continue
		}
		if e.Set != "" {
			r = say(r, f.dstIn(b.userSet(e.Set, f)))
		}
		rules = append(rules, say(common(), r, verdict))
	}
	return rules
}

// userSet makes the user's set, if it is not there: NAME for IPv4, NAME6 for
// IPv6.
func (b *builder) userSet(name string, f family) lookup {
	if f.proto == unix.NFPROTO_IPV6 {
		name += "6"
	}
	return b.set(&nftables.Set{Name: name, KeyType: keys(f), Interval: true, HasTimeout: true, KeyByteOrder: binaryutil.BigEndian}, nil)
}

// fillSets writes the table of the user's sets: it marks what is excluded by
// them before the other table looks.
func (b *builder) fillSets(o Options) {
	b.base("prerouting", *nftables.ChainPriorityMangle-1)
	var rules []words
	for _, e := range o.Exclude {
		if e.Set != "" {
			rules = append(rules, b.exclude(e, mark(MarkBypass))...)
		}
	}
	b.chain("prerouting", rules...)
}
