package ruleset

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Term is a match or a statement of a rule.
type Term interface {
	text() string
	exprs(*emitter)
}

// Device matches the name of the incoming or the outgoing device. A name that
// ends in * stands for all that start so. There is no set of names: the library
// marks the bytes of anonymous sets so that nft shows names in them as nothing.
type Device struct {
	Out  bool
	Name string
}

func (d Device) text() string {
	key := "iifname"
	if d.Out {
		key = "oifname"
	}
	return key + " " + quoteAll([]string{d.Name})
}

// Family matches packets of IPv4 or of IPv6.
type Family int

// IP versions.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) text() string {
	if f == IPv6 {
		return "meta nfproto ipv6"
	}
	return "meta nfproto ipv4"
}

// word is the name of the header.
func (f Family) word() string {
	if f == IPv6 {
		return "ip6"
	}
	return "ip"
}

func (f Family) number() byte {
	if f == IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// Protocols matches the protocol above IP.
type Protocols struct {
	Not  bool
	List []uint8
}

func (p Protocols) text() string {
	names := make([]string, len(p.List))
	for i, n := range p.List {
		names[i] = protoName(n)
	}
	return "meta l4proto " + neq(p.Not) + braces(names)
}

// PortRange is an inclusive range of ports.
type PortRange struct{ From, To uint16 }

func (p PortRange) String() string {
	if p.From == p.To {
		return strconv.Itoa(int(p.From))
	}
	return fmt.Sprintf("%d-%d", p.From, p.To)
}

// Ports matches the source or the destination port of one protocol.
type Ports struct {
	Proto uint8 // tcp, udp, sctp, dccp or udplite
	Dest  bool
	Not   bool
	List  []PortRange
}

func portsText(list []PortRange) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return out
}

func (p Ports) text() string {
	key := "sport"
	if p.Dest {
		key = "dport"
	}
	return protoName(p.Proto) + " " + key + " " + neq(p.Not) + braces(portsText(p.List))
}

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct{ From, To netip.Addr }

// RangeOf is the range of a prefix.
func RangeOf(p netip.Prefix) AddrRange {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return AddrRange{p.Addr(), last}
}

// prefix gives the prefix that is the range, if there is one.
func (r AddrRange) prefix() (netip.Prefix, bool) {
	for bits := r.From.BitLen(); bits >= 0; bits-- {
		p := netip.PrefixFrom(r.From, bits).Masked()
		if p.Addr() != r.From {
			break
		}
		if RangeOf(p) == r {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func (r AddrRange) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	if p, ok := r.prefix(); ok {
		return p.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// Addrs matches the source or the destination address.
type Addrs struct {
	Family Family
	Dest   bool
	Not    bool
	List   []AddrRange
}

func addrsText(list []AddrRange) []string {
	list = mergeAddrs(list)
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = r.String()
	}
	return out
}

func direction(dest bool) string {
	if dest {
		return "daddr"
	}
	return "saddr"
}

func (a Addrs) text() string {
	return a.Family.word() + " " + direction(a.Dest) + " " + neq(a.Not) + braces(addrsText(a.List))
}

// mergeAddrs sorts ranges and joins those that overlap, as nft does with
// intervals.
func mergeAddrs(list []AddrRange) []AddrRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b AddrRange) int {
		if c := a.From.Compare(b.From); c != 0 {
			return c
		}
		return a.To.Compare(b.To)
	})
	var out []AddrRange
	for _, r := range list {
		if n := len(out); n > 0 && r.From.Compare(out[n-1].To) <= 0 {
			if r.To.Compare(out[n-1].To) > 0 {
				out[n-1].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// mergePorts does the same with ports.
func mergePorts(list []PortRange) []PortRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b PortRange) int {
		if a.From != b.From {
			return int(a.From) - int(b.From)
		}
		return int(a.To) - int(b.To)
	})
	var out []PortRange
	for _, r := range list {
		if n := len(out); n > 0 && r.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

// MaskedAddr matches some bits of an address, as in ::1234/::ffff: the part
// that stays when a provider changes the prefix.
type MaskedAddr struct {
	Family     Family
	Dest       bool
	Not        bool
	Addr, Mask netip.Addr
}

func (m MaskedAddr) text() string {
	op := "=="
	if m.Not {
		op = "!="
	}
	return fmt.Sprintf("%s %s & %s %s %s", m.Family.word(), direction(m.Dest), m.Mask, op, m.Addr)
}

// MACs matches the Ethernet source address.
type MACs struct {
	Not  bool
	List []net.HardwareAddr
}

func (m MACs) text() string {
	s := make([]string, len(m.List))
	for i, a := range m.List {
		s[i] = a.String()
	}
	return "ether saddr " + neq(m.Not) + braces(s)
}

// ICMPType is one type of message; Code -1 stands for all codes.
type ICMPType struct {
	Type uint8
	Code int
}

// ICMP matches types of ICMP messages. Either all have a code or none.
type ICMP struct {
	Family Family
	Not    bool
	List   []ICMPType
}

func (i ICMP) word() string {
	if i.Family == IPv6 {
		return "icmpv6"
	}
	return "icmp"
}

func (i ICMP) text() string {
	s := make([]string, len(i.List))
	for n, t := range i.List {
		if t.Code < 0 {
			s[n] = strconv.Itoa(int(t.Type))
		} else {
			s[n] = fmt.Sprintf("%d . %d", t.Type, t.Code)
		}
	}
	if i.List[0].Code < 0 {
		return i.word() + " type " + neq(i.Not) + braces(s)
	}
	return fmt.Sprintf("%s type . %s code %s{ %s }", i.word(), i.word(), neq(i.Not), strings.Join(s, ", "))
}

// State matches states of connection tracking; a set of bits.
type State uint32

// States, as nf_conntrack_common.h has the bits.
const (
	Invalid     State = 1
	Established State = 2
	Related     State = 4
	New         State = 8
	Untracked   State = 64
)

func (s State) text() string {
	var names []string
	for _, n := range []struct {
		bit  State
		name string
	}{{Invalid, "invalid"}, {Established, "established"}, {Related, "related"}, {New, "new"}, {Untracked, "untracked"}} {
		if s&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return "ct state " + strings.Join(names, ",")
}

// Redirected matches flows whose destination was rewritten by DNAT.
type Redirected struct{}

func (Redirected) text() string { return "ct status dnat" }

// FirstSYN matches TCP packets that open a connection; with Clamp those that
// carry the maximum segment size, in either direction.
type FirstSYN struct{ Clamp bool }

func (f FirstSYN) text() string {
	if f.Clamp {
		return "tcp flags & (syn | rst) == syn"
	}
	return "tcp flags & (fin | syn | rst | ack) == syn"
}

// Mark matches bits of the packet's mark.
type Mark struct {
	Not         bool
	Value, Mask uint32
}

func (m Mark) text() string {
	if m.Mask == ^uint32(0) {
		return fmt.Sprintf("meta mark %s0x%x", neq(m.Not), m.Value)
	}
	op := "=="
	if m.Not {
		op = "!="
	}
	return fmt.Sprintf("meta mark & 0x%x %s 0x%x", m.Mask, op, m.Value)
}

// DSCP matches the differentiated services code point, 0 to 63.
type DSCP struct {
	Family Family
	Not    bool
	Value  uint8
}

func (d DSCP) text() string {
	return fmt.Sprintf("%s dscp %s0x%02x", d.Family.word(), neq(d.Not), d.Value)
}

// HelperIs matches flows that a conntrack helper attends to or has announced.
type HelperIs struct {
	Not  bool
	Name string
}

func (h HelperIs) text() string { return "ct helper " + neq(h.Not) + "\"" + h.Name + "\"" }

// Limit matches until a rate is exceeded.
type Limit struct {
	Rate  uint64
	Unit  time.Duration // second, minute, hour, day or week
	Burst uint32        // packets; 0: 5
}

func (l Limit) unit() string {
	switch l.Unit {
	case time.Minute:
		return "minute"
	case time.Hour:
		return "hour"
	case 24 * time.Hour:
		return "day"
	case 7 * 24 * time.Hour:
		return "week"
	}
	return "second"
}

func (l Limit) burst() uint32 {
	if l.Burst == 0 {
		return 5 // nft's default
	}
	return l.Burst
}

func (l Limit) text() string {
	return fmt.Sprintf("limit rate %d/%s burst %d packets", l.Rate, l.unit(), l.burst())
}

// Hours matches the time of day, in seconds after midnight UTC, both ends
// included. It may go over midnight.
type Hours struct {
	From, To int
	zone     time.Duration
}

const secondsADay = 24 * 60 * 60

func (h Hours) text() string {
	local := func(utc int) string {
		s := (utc + int(h.zone/time.Second)) % secondsADay
		if s < 0 {
			s += secondsADay
		}
		return fmt.Sprintf("\"%02d:%02d:%02d\"", s/3600, s/60%60, s%60)
	}
	if h.From == h.To {
		return "meta hour " + local(h.From)
	}
	return "meta hour " + local(h.From) + "-" + local(h.To)
}

// Days matches days of the week, by the kernel's clock.
type Days struct {
	Not  bool
	List []time.Weekday
}

func (d Days) text() string {
	s := make([]string, len(d.List))
	for i, day := range d.List {
		s[i] = "\"" + day.String() + "\""
	}
	return "meta day " + neq(d.Not) + braces(s)
}

// Time matches a range of dates; a zero time leaves that side open.
type Time struct{ From, To time.Time }

func (t Time) text() string {
	f := func(x time.Time) string { return "\"" + x.Format(time.DateTime) + "\"" }
	switch {
	case t.To.IsZero():
		return "meta time >= " + f(t.From)
	case t.From.IsZero():
		return "meta time <= " + f(t.To)
	}
	return "meta time " + f(t.From) + "-" + f(t.To)
}

// InSet looks fields of the packet up in a named set.
type InSet struct {
	Family Family
	Not    bool
	Name   string
	Fields []Field
	Proto  uint8 // of ports: tcp or udp; 0: whatever has ports
}

// Field is what a named set is about.
type Field string

// Fields of a packet.
const (
	SrcIP    Field = "saddr"
	DestIP   Field = "daddr"
	SrcPort  Field = "sport"
	DestPort Field = "dport"
	SrcMAC   Field = "mac"
)

func (s InSet) text() string {
	words := make([]string, len(s.Fields))
	for i, f := range s.Fields {
		switch f {
		case SrcPort, DestPort:
			p := "th"
			if s.Proto != 0 {
				p = protoName(s.Proto)
			}
			words[i] = p + " " + string(f)
		case SrcMAC:
			words[i] = "ether saddr"
		default:
			words[i] = s.Family.word() + " " + string(f)
		}
	}
	return strings.Join(words, " . ") + " " + neq(s.Not) + "@" + s.Name
}

// Counter counts packets and bytes.
type Counter struct{}

func (Counter) text() string { return "counter" }

// Log writes a line to the kernel's log.
type Log struct{ Prefix string }

func (l Log) text() string { return "log prefix \"" + comment(l.Prefix) + "\"" }

// Verdict ends the rule.
type Verdict string

// Verdicts.
const (
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
	Return Verdict = "return"
)

func (v Verdict) text() string { return string(v) }

// Jump goes on in another chain and comes back.
type Jump string

func (j Jump) text() string { return "jump " + string(j) }

// Reject answers with an error: a TCP reset, or an ICMP message of the code
// (NFT_REJECT_ICMPX_…).
type Reject struct {
	Reset bool
	Code  uint8
}

// ICMPCodes are the names of the codes of Reject.
var ICMPCodes = [...]string{"no-route", "port-unreachable", "host-unreachable", "admin-prohibited"}

func (r Reject) text() string {
	if r.Reset {
		return "reject with tcp reset"
	}
	if r.Code == unix.NFT_REJECT_ICMPX_PORT_UNREACH {
		return "reject" // nft's default
	}
	return "reject with icmpx " + ICMPCodes[r.Code]
}

// NAT rewrites an address, a port, or both.
type NAT struct {
	Source bool // else the destination
	Family Family
	Addr   AddrRange // zero: the port alone
	Port   PortRange // zero: leave
}

func (n NAT) text() string {
	word := "dnat"
	if n.Source {
		word = "snat"
	}
	to := ""
	if n.Addr.From.IsValid() {
		bracket := func(a netip.Addr) string {
			if n.Family == IPv6 && n.Port.From != 0 {
				return "[" + a.String() + "]"
			}
			return a.String()
		}
		to = bracket(n.Addr.From)
		if n.Addr.To != n.Addr.From {
			to += "-" + bracket(n.Addr.To)
		}
	}
	if n.Port.From != 0 {
		to += ":" + n.Port.String()
	}
	return word + " " + n.Family.word() + " to " + to
}

// Masquerade rewrites the source address to that of the outgoing device.
type Masquerade struct{ Port PortRange }

func (m Masquerade) text() string {
	if m.Port.From != 0 {
		return "masquerade to :" + m.Port.String()
	}
	return "masquerade"
}

// Redirect sends to this machine itself.
type Redirect struct{ Port PortRange }

func (r Redirect) text() string {
	if r.Port.From != 0 {
		return "redirect to :" + r.Port.String()
	}
	return "redirect"
}

// SetMark replaces the bits of Mask of the packet's mark by Value.
type SetMark struct{ Value, Mask uint32 }

func (m SetMark) text() string {
	if m.Mask == ^uint32(0) {
		return fmt.Sprintf("meta mark set 0x%x", m.Value)
	}
	return fmt.Sprintf("meta mark set meta mark & 0x%x ^ 0x%x", ^m.Mask, m.Value)
}

// SetDSCP writes the code point.
type SetDSCP struct {
	Family Family
	Value  uint8
}

func (d SetDSCP) text() string { return fmt.Sprintf("%s dscp set 0x%02x", d.Family.word(), d.Value) }

// NoTrack takes packets out of connection tracking.
type NoTrack struct{}

func (NoTrack) text() string { return "notrack" }

// SetHelper assigns a helper of Ruleset.Helpers.
type SetHelper string

func (h SetHelper) text() string { return "ct helper set \"" + string(h) + "\"" }

// Offload puts the flow into the flowtable.
type Offload string

func (o Offload) text() string { return "flow add @" + string(o) }

// ClampMSS lowers TCP's maximum segment size to what the route's MTU carries.
type ClampMSS struct{}

func (ClampMSS) text() string { return "tcp option maxseg size set rt mtu" }

// Set is a named set.
type Set struct {
	Name     string
	Comment  string
	Family   Family // of its addresses
	Fields   []Field
	Interval bool // holds ranges and prefixes
	Timeout  time.Duration
	Expires  bool   // elements may have a timeout of their own
	Size     uint32 // 0: no bound
	Counter  bool
	Elements []Element
	Section  string
}

// Element is one element: for each field a range, of which From is enough for
// single values.
type Element struct {
	From, To []string // values in nft's syntax; To[i] empty: single
	key, end []byte
}

// fieldType is nft's name for the type of a field.
func (s *Set) fieldType(f Field) string {
	switch f {
	case SrcPort, DestPort:
		return "inet_service"
	case SrcMAC:
		return "ether_addr"
	}
	if s.Family == IPv6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

// Parse reads one element: a value for each field, separated by dots or blanks
// as LEDE has it, each a single value or, in sets with intervals, a range or a
// prefix.
func (s *Set) Parse(text string) (Element, error) {
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
	if len(words) == 1 && len(s.Fields) > 1 && s.Family != IPv6 && strings.Contains(text, " . ") {
		words = strings.Split(text, " . ")
	}
	words = slices.DeleteFunc(words, func(w string) bool { return w == "." })
	var e Element
	if len(words) != len(s.Fields) {
		return e, fmt.Errorf("%q has %d values, the set has %d fields", text, len(words), len(s.Fields))
	}
	for i, f := range s.Fields {
		from, to, err := s.value(f, words[i])
		if err != nil {
			return e, err
		}
		single := string(from) == string(to)
		if !single && !s.Interval {
			return e, fmt.Errorf("%q is a range, and the set holds single values alone: match it as _net or with a range", words[i])
		}
		e.key, e.end = append(e.key, pad(from)...), append(e.end, pad(to)...)
		e.From = append(e.From, s.valueText(f, from, to))
		e.To = append(e.To, "")
	}
	return e, nil
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(slices.Clip(b), 0)
	}
	return b
}

func (s *Set) value(f Field, w string) (from, to []byte, err error) {
	switch f {
	case SrcPort, DestPort:
		p, err := ParsePort(w)
		return big16(p.From), big16(p.To), err
	case SrcMAC:
		m, err := net.ParseMAC(w)
		if err != nil || len(m) != 6 {
			return nil, nil, fmt.Errorf("%q is no MAC address", w)
		}
		return m, m, nil
	}
	r, err := ParseAddrs(w)
	if err != nil {
		return nil, nil, err
	}
	if r.From.Is4() != (s.Family == IPv4) {
		return nil, nil, fmt.Errorf("%q is an address of the other family", w)
	}
	return r.From.AsSlice(), r.To.AsSlice(), nil
}

func (s *Set) valueText(f Field, from, to []byte) string {
	switch f {
	case SrcPort, DestPort:
		return PortRange{uint16(from[0])<<8 | uint16(from[1]), uint16(to[0])<<8 | uint16(to[1])}.String()
	case SrcMAC:
		return net.HardwareAddr(from).String()
	}
	a, _ := netip.AddrFromSlice(from)
	b, _ := netip.AddrFromSlice(to)
	return AddrRange{a, b}.String()
}

func (e Element) text() string { return strings.Join(e.From, " . ") }

// spec is all that makes a set another one.
func (s *Set) spec() string {
	return fmt.Sprint(s.Family, s.Fields, s.Interval, s.Timeout, s.Expires, s.Size, s.Counter, s.Comment)
}

func (s *Set) text(w func(string, ...any)) {
	types := make([]string, len(s.Fields))
	for i, f := range s.Fields {
		types[i] = s.fieldType(f)
	}
	w("\tset %s {\n\t\ttype %s\n", s.Name, strings.Join(types, " . "))
	if s.Size > 0 {
		w("\t\tsize %d\n", s.Size)
	}
	var flags []string
	if s.Interval {
		flags = append(flags, "interval")
	}
	if s.Timeout > 0 || s.Expires {
		flags = append(flags, "timeout")
	}
	if len(flags) > 0 {
		w("\t\tflags %s\n", strings.Join(flags, ","))
	}
	if s.Counter {
		w("\t\tcounter\n")
	}
	if s.Timeout > 0 {
		w("\t\ttimeout %s\n", duration(s.Timeout))
	}
	if s.Interval {
		w("\t\tauto-merge\n")
	}
	if s.Comment != "" {
		w("\t\tcomment \"%s\"\n", comment(s.Comment))
	}
	if elems := s.merged(); len(elems) > 0 {
		t := make([]string, len(elems))
		for i, e := range elems {
			t[i] = e.text()
		}
		w("\t\telements = { %s }\n", strings.Join(t, ", "))
	}
	w("\t}\n\n")
}

// merged gives the elements without those that others hold already.
func (s *Set) merged() []Element {
	list := slices.Clone(s.Elements)
	slices.SortFunc(list, func(a, b Element) int {
		if c := slices.Compare(a.key, b.key); c != 0 {
			return c
		}
		return -slices.Compare(a.end, b.end)
	})
	var out []Element
	for _, e := range list {
		if n := len(out); n > 0 {
			last := out[n-1]
			if slices.Equal(e.key, last.key) && slices.Equal(e.end, last.end) {
				continue
			}
			if s.Interval && len(s.Fields) == 1 && slices.Compare(e.key, last.end) <= 0 {
				if slices.Compare(e.end, last.end) > 0 {
					out[n-1].end = e.end
					out[n-1].From = []string{s.valueText(s.Fields[0], last.key, e.end)}
				}
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func duration(d time.Duration) string {
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}

// ParsePort reads a port or a range: 80, 8000-8100 or 8000:8100.
func ParsePort(s string) (PortRange, error) {
	from, to, isRange := strings.Cut(strings.ReplaceAll(s, ":", "-"), "-")
	if !isRange {
		to = from
	}
	a, err1 := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || a > b {
		return PortRange{}, fmt.Errorf("%q is neither a port nor a range such as 8000-8100", s)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

// ParseAddrs reads an address, a prefix, an address with a netmask, or a range.
func ParseAddrs(s string) (AddrRange, error) {
	fail := fmt.Errorf("%q is no address, prefix or range of addresses", s)
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, err1 := netip.ParseAddr(from)
		b, err2 := netip.ParseAddr(to)
		if err1 != nil || err2 != nil || a.Zone() != "" || b.Zone() != "" || a.Is4() != b.Is4() || b.Compare(a) < 0 {
			return AddrRange{}, fail
		}
		return AddrRange{a, b}, nil
	}
	if addr, mask, ok := strings.Cut(s, "/"); ok {
		a, err := netip.ParseAddr(addr)
		if err != nil || a.Zone() != "" {
			return AddrRange{}, fail
		}
		bits, err := strconv.Atoi(mask)
		if err != nil {
			m, err := netip.ParseAddr(mask)
			if err != nil || m.Is4() != a.Is4() || m.Zone() != "" {
				return AddrRange{}, fail
			}
			bits = leadingOnes(m)
		}
		if bits < 0 || bits > a.BitLen() {
			return AddrRange{}, fail
		}
		return RangeOf(netip.PrefixFrom(a, bits)), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return AddrRange{}, fail
	}
	return AddrRange{a, a}, nil
}

// leadingOnes is the length of a netmask, -1 if its ones are not in one piece.
func leadingOnes(mask netip.Addr) int {
	n, ended := 0, false
	for _, b := range mask.AsSlice() {
		for bit := 7; bit >= 0; bit-- {
			if b>>bit&1 == 1 {
				if ended {
					return -1
				}
				n++
			} else {
				ended = true
			}
		}
	}
	return n
}
