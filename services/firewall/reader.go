package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
	"weft/services/firewall/ruleset"
)

// Problem is one fault of the configuration.
type Problem struct {
	Section  string // "@rule[2] (Allow-Ping)"
	Option   string // empty: the section as a whole
	Value    string
	Expected string
	// Fatal leaves the section out; else only the option has no effect.
	Fatal bool
}

func (p Problem) Error() string {
	what := "skipped"
	if !p.Fatal {
		what = "ignored"
	}
	if p.Option == "" {
		return fmt.Sprintf("firewall.%s: %s: section %s", p.Section, p.Expected, what)
	}
	if !p.Fatal {
		what = "option " + what
	} else {
		what = "section " + what
	}
	if p.Value == "" {
		return fmt.Sprintf("firewall.%s: option %s: %s: %s", p.Section, p.Option, p.Expected, what)
	}
	return fmt.Sprintf("firewall.%s: option %s '%s': %s: %s", p.Section, p.Option, p.Value, p.Expected, what)
}

// reader reads the options of one section. A fault is noted and makes bad true.
type reader struct {
	s    *uci.Section
	name string // as Problem.Section
	seen map[string]bool
	to   *[]Problem
	soft bool // a fault leaves out the option alone
	bad  bool
}

func newReader(s *uci.Section, index int, to *[]Problem) *reader {
	r := &reader{s: s, name: s.Name, seen: map[string]bool{}, to: to}
	if s.Anonymous {
		r.name = fmt.Sprintf("@%s[%d]", s.Type, index)
	}
	if n := r.str("name", s.String("_name", "")); n != "" && n != s.Name {
		r.name += " (" + n + ")"
	}
	r.seen["_name"] = true
	return r
}

func (r *reader) fault(option, expected string) {
	r.bad = true
	*r.to = append(*r.to, Problem{r.name, option, r.s.String(option, ""), expected, !r.soft})
}

func (r *reader) warn(option, expected string) {
	*r.to = append(*r.to, Problem{r.name, option, r.s.String(option, ""), expected, false})
}

// done warns about options that nobody has asked for.
func (r *reader) done() {
	for _, o := range r.s.Options {
		if !r.seen[o.Name] {
			r.warn(o.Name, "not an option that Weft's firewall knows in a section "+r.s.Type)
		}
	}
}

func (r *reader) has(option string) bool { return r.s.Option(option) != nil }

func (r *reader) str(option, def string) string {
	r.seen[option] = true
	return strings.TrimSpace(r.s.String(option, def))
}

func (r *reader) list(option string) []string {
	r.seen[option] = true
	var out []string
	for _, v := range r.s.List(option) {
		out = append(out, strings.Fields(v)...)
	}
	return out
}

func (r *reader) boolean(option string, def bool) bool {
	r.seen[option] = true
	v, ok := r.s.Get(option)
	if !ok {
		return def
	}
	if a, b := r.s.Bool(option, true), r.s.Bool(option, false); a == b {
		return a
	}
	r.warn(option, "expected 1 or 0, not "+strconv.Quote(v))
	return def
}

func (r *reader) number(option string, def, low, high int) int {
	r.seen[option] = true
	v, ok := r.s.Get(option)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		r.fault(option, fmt.Sprintf("expected a number from %d to %d", low, high))
		return def
	}
	return n
}

// one reads a value that has to be one of some, in any case of letters.
func (r *reader) one(option, def string, values ...string) string {
	v := strings.ToLower(r.str(option, def))
	if v != "" && !slices.Contains(values, v) {
		r.fault(option, "expected one of "+strings.Join(values, ", "))
		return def
	}
	return v
}

// family reads option family: 0 for both.
func (r *reader) family() ruleset.Family {
	switch v := strings.ToLower(r.str("family", "any")); v {
	case "ipv4", "inet", "4":
		return ruleset.IPv4
	case "ipv6", "inet6", "6":
		return ruleset.IPv6
	case "any", "*", "all":
	default:
		r.fault("family", "expected ipv4, ipv6 or any")
	}
	return 0
}

// negated splits values into plain ones and those with a leading "!".
func negated(list []string) (pos, neg []string) {
	for i := 0; i < len(list); i++ {
		v := list[i]
		if v == "!" && i+1 < len(list) {
			i++
			v = "!" + list[i]
		}
		if n, ok := strings.CutPrefix(v, "!"); ok {
			neg = append(neg, n)
		} else {
			pos = append(pos, v)
		}
	}
	return pos, neg
}

// addrs is what an address option asks for: any of pos and masked, none of neg.
type addrs struct {
	pos, neg   []ruleset.AddrRange
	mask, nmsk []masked
}

type masked struct{ addr, mask netip.Addr }

func (a addrs) empty() bool { return len(a.pos)+len(a.neg)+len(a.mask)+len(a.nmsk) == 0 }

func is4(f ruleset.Family, a netip.Addr) bool { return a.Is4() == (f == ruleset.IPv4) }

// of gives the part of one family, and whether rules of that family can match.
func (a addrs) of(f ruleset.Family) (addrs, bool) {
	keep := func(l []ruleset.AddrRange) []ruleset.AddrRange {
		return slices.DeleteFunc(slices.Clone(l), func(r ruleset.AddrRange) bool { return !is4(f, r.From) })
	}
	keepMask := func(l []masked) []masked {
		return slices.DeleteFunc(slices.Clone(l), func(m masked) bool { return !is4(f, m.addr) })
	}
	out := addrs{keep(a.pos), keep(a.neg), keepMask(a.mask), keepMask(a.nmsk)}
	return out, len(a.pos)+len(a.mask) == 0 && (len(a.neg)+len(a.nmsk) == 0 || len(out.neg)+len(out.nmsk) > 0) || len(out.pos)+len(out.mask) > 0
}

// addresses reads addresses, prefixes, ranges, addresses with a mask, and names
// of networks.
func (r *reader) addresses(option string, nets Networks) addrs {
	var out addrs
	pos, neg := negated(r.list(option))
	for i, list := range [][]string{pos, neg} {
		for _, v := range list {
			if n, ok := nets[v]; ok {
				if len(n.Addrs) == 0 {
					r.fault(option, "network "+v+" has no address now")
				}
				for _, p := range n.Addrs {
					if i == 0 {
						out.pos = append(out.pos, ruleset.RangeOf(p))
					} else {
						out.neg = append(out.neg, ruleset.RangeOf(p))
					}
				}
				continue
			}
			if m, ok := parseMasked(v); ok {
				if i == 0 {
					out.mask = append(out.mask, m)
				} else {
					out.nmsk = append(out.nmsk, m)
				}
				continue
			}
			a, err := ruleset.ParseAddrs(v)
			if err != nil {
				r.fault(option, "expected an address, a prefix such as 10.0.0.0/8, a range such as 10.0.0.1-10.0.0.9 or the name of a network, not "+strconv.Quote(v))
				continue
			}
			if i == 0 {
				out.pos = append(out.pos, a)
			} else {
				out.neg = append(out.neg, a)
			}
		}
	}
	return out
}

// parseMasked reads an address with a mask whose ones are not a prefix:
// ::1234/::ffff, or as LEDE has it ::1234/-64.
func parseMasked(s string) (masked, bool) {
	addr, mask, ok := strings.Cut(s, "/")
	if !ok {
		return masked{}, false
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return masked{}, false
	}
	var m netip.Addr
	if bits, err := strconv.Atoi(mask); err == nil {
		if bits >= 0 || -bits > a.BitLen() {
			return masked{}, false
		}
		b := make([]byte, a.BitLen()/8)
		for i := len(b)*8 + bits; i < len(b)*8; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		m, _ = netip.AddrFromSlice(b)
	} else if m, err = netip.ParseAddr(mask); err != nil || m.Is4() != a.Is4() || m.Zone() != "" {
		return masked{}, false
	}
	if _, err := ruleset.ParseAddrs(addr + "/" + m.String()); err == nil {
		return masked{}, false // an ordinary netmask
	}
	x, y := a.AsSlice(), m.AsSlice()
	for i := range x {
		x[i] &= y[i]
	}
	a, _ = netip.AddrFromSlice(x)
	return masked{a, m}, true
}

// address reads one address without a mask, or a range of them.
func (r *reader) address(option string) (a ruleset.AddrRange, ok bool) {
	v := r.str(option, "")
	if v == "" {
		return a, false
	}
	v = strings.TrimSuffix(strings.TrimSuffix(v, "/32"), "/128")
	a, err := ruleset.ParseAddrs(v)
	if err != nil || strings.Contains(v, "/") {
		r.fault(option, "expected an address or a range of addresses")
		return a, false
	}
	return a, true
}

type ports struct{ pos, neg []ruleset.PortRange }

func (p ports) empty() bool { return len(p.pos)+len(p.neg) == 0 }

func (r *reader) ports(option string) ports {
	var out ports
	pos, neg := negated(r.list(option))
	for i, list := range [][]string{pos, neg} {
		for _, v := range list {
			p, err := ruleset.ParsePort(v)
			if err != nil {
				r.fault(option, "expected ports such as 80 or 8000-8100, not "+strconv.Quote(v))
				continue
			}
			if i == 0 {
				out.pos = append(out.pos, p)
			} else {
				out.neg = append(out.neg, p)
			}
		}
	}
	return out
}

// port reads one port or range.
func (r *reader) port(option string) ruleset.PortRange {
	p := r.ports(option)
	if len(p.neg) > 0 || len(p.pos) > 1 {
		r.fault(option, "expected one port or one range")
		return ruleset.PortRange{}
	}
	if len(p.pos) == 1 {
		return p.pos[0]
	}
	return ruleset.PortRange{}
}

type macs struct{ pos, neg []net.HardwareAddr }

func (r *reader) macs(option string) macs {
	var out macs
	pos, neg := negated(r.list(option))
	for i, list := range [][]string{pos, neg} {
		for _, v := range list {
			m, err := net.ParseMAC(v)
			if err != nil || len(m) != 6 {
				r.fault(option, "expected a MAC address such as 02:00:00:00:00:01, not "+strconv.Quote(v))
				continue
			}
			if i == 0 {
				out.pos = append(out.pos, m)
			} else {
				out.neg = append(out.neg, m)
			}
		}
	}
	return out
}

// protoNumbers are the names that /etc/protocols of LEDE has.
func protoNumber(name string) (uint8, bool) {
	switch name {
	case "icmp":
		return 1, true
	case "igmp":
		return 2, true
	case "ipencap", "ipip":
		return 4, true
	case "tcp":
		return 6, true
	case "egp":
		return 8, true
	case "udp":
		return 17, true
	case "dccp":
		return 33, true
	case "ipv6":
		return 41, true
	case "rsvp":
		return 46, true
	case "gre":
		return 47, true
	case "esp":
		return 50, true
	case "ah":
		return 51, true
	case "icmpv6", "ipv6-icmp", "icmp6":
		return 58, true
	case "eigrp":
		return 88, true
	case "ospf":
		return 89, true
	case "pim":
		return 103, true
	case "ipcomp", "comp":
		return 108, true
	case "vrrp", "carp":
		return 112, true
	case "l2tp":
		return 115, true
	case "isis":
		return 124, true
	case "sctp":
		return 132, true
	case "udplite":
		return 136, true
	}
	n, err := strconv.ParseUint(name, 0, 8)
	return uint8(n), err == nil
}

// hasPorts tells whether a protocol's header starts with ports.
func hasPorts(p uint8) bool { return p == 6 || p == 17 || p == 33 || p == 132 || p == 136 }

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// protos is a list of protocols; any if both lists are empty.
type protos struct{ pos, neg []uint8 }

func (r *reader) protos(def string) protos {
	var out protos
	names := r.list("proto")
	if len(names) == 0 {
		names = strings.Fields(def)
	}
	pos, neg := negated(names)
	for i, list := range [][]string{pos, neg} {
		for _, v := range list {
			v = strings.ToLower(v)
			var nums []uint8
			switch v {
			case "any", "all", "*", "0":
				if i == 0 {
					return protos{}
				}
				r.fault("proto", "nothing is left without any protocol")
				continue
			case "tcpudp":
				nums = []uint8{protoTCP, protoUDP}
			default:
				n, ok := protoNumber(v)
				if !ok {
					r.fault("proto", "expected a protocol such as tcp, udp or icmp, or its number, not "+strconv.Quote(v))
					continue
				}
				nums = []uint8{n}
			}
			for _, n := range nums {
				if i == 0 && !slices.Contains(out.pos, n) {
					out.pos = append(out.pos, n)
				} else if i == 1 && !slices.Contains(out.neg, n) {
					out.neg = append(out.neg, n)
				}
			}
		}
	}
	return out
}

// mark reads VALUE[/MASK], with "!" for all others.
func (r *reader) mark(option string) (value, mask uint32, not, ok bool) {
	v := r.str(option, "")
	if v == "" {
		return 0, 0, false, false
	}
	v, not = strings.CutPrefix(strings.ReplaceAll(v, " ", ""), "!")
	val, m, hasMask := strings.Cut(v, "/")
	a, err := strconv.ParseUint(val, 0, 32)
	b := uint64(0xffffffff)
	var err2 error
	if hasMask {
		b, err2 = strconv.ParseUint(m, 0, 32)
	}
	if err != nil || err2 != nil {
		r.fault(option, "expected a mark such as 0x10 or 0x10/0xff")
		return 0, 0, false, false
	}
	return uint32(a), uint32(b), not, true
}

// dscpValue reads a code point by its name (RFC 2474, 2597, 3246, 8622) or number.
func dscpValue(v string) (uint8, bool) {
	v = strings.ToUpper(v)
	switch v {
	case "BE", "DF":
		return 0, true
	case "EF":
		return 46, true
	case "LE":
		return 1, true
	case "VA":
		return 44, true
	}
	if n, ok := strings.CutPrefix(v, "CS"); ok && len(n) == 1 && n[0] >= '0' && n[0] <= '7' {
		return (n[0] - '0') << 3, true
	}
	if n, ok := strings.CutPrefix(v, "AF"); ok && len(n) == 2 && n[0] >= '1' && n[0] <= '4' && n[1] >= '1' && n[1] <= '3' {
		return (n[0]-'0')<<3 | (n[1]-'0')<<1, true
	}
	n, err := strconv.ParseUint(v, 0, 8)
	return uint8(n), err == nil && n < 64
}

func (r *reader) dscp(option string) (value uint8, not, ok bool) {
	v := r.str(option, "")
	if v == "" {
		return 0, false, false
	}
	v, not = strings.CutPrefix(strings.ReplaceAll(v, " ", ""), "!")
	if value, ok = dscpValue(v); !ok {
		r.fault(option, "expected a code point such as CS1, AF21, EF or a number below 64")
	}
	return value, not, ok
}

// limit reads N/unit.
func (r *reader) limit(option, burst string) (l ruleset.Limit, ok bool) {
	v := r.str(option, "")
	b := uint32(r.number(burst, 0, 0, 1<<30))
	if v == "" {
		return l, false
	}
	l, err := parseLimit(v)
	if err != nil {
		r.fault(option, err.Error())
		return l, false
	}
	l.Burst = b
	return l, true
}

func parseLimit(v string) (ruleset.Limit, error) {
	n, unit, _ := strings.Cut(strings.ReplaceAll(v, " ", ""), "/")
	l := ruleset.Limit{Unit: time.Second}
	rate, err := strconv.ParseUint(n, 10, 32)
	l.Rate = rate
	switch {
	case err != nil || rate == 0:
	case unit == "" || unit != "" && strings.HasPrefix("second", unit) || unit == "sec":
		return l, nil
	case strings.HasPrefix("minute", unit) || unit == "min":
		l.Unit = time.Minute
		return l, nil
	case strings.HasPrefix("hour", unit):
		l.Unit = time.Hour
		return l, nil
	case strings.HasPrefix("day", unit):
		l.Unit = 24 * time.Hour
		return l, nil
	case strings.HasPrefix("week", unit):
		l.Unit = 7 * 24 * time.Hour
		return l, nil
	}
	return l, fmt.Errorf("expected a rate such as 10/second or 3/minute")
}

// times reads the options of time windows.
func (r *reader) times(zone *time.Location, offset time.Duration) []ruleset.Term {
	var out []ruleset.Term
	if r.boolean("utc_time", false) {
		zone, offset = time.UTC, 0
	}
	clock := func(option string, def int) int {
		v := r.str(option, "")
		if v == "" {
			return def
		}
		for _, f := range []string{"15:04:05", "15:04"} {
			if t, err := time.Parse(f, v); err == nil {
				return t.Hour()*3600 + t.Minute()*60 + t.Second()
			}
		}
		r.fault(option, "expected a time of day such as 08:30")
		return def
	}
	if r.has("start_time") || r.has("stop_time") {
		const day = 24 * 3600
		utc := func(s int) int { return ((s-int(offset/time.Second))%day + day) % day }
		out = append(out, ruleset.Hours{From: utc(clock("start_time", 0)), To: utc(clock("stop_time", day-1))})
	}
	date := func(option string, end bool) time.Time {
		v := r.str(option, "")
		if v == "" {
			return time.Time{}
		}
		for _, f := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
			if t, err := time.ParseInLocation(f, v, zone); err == nil {
				if end && len(v) == len("2006-01-02") {
					t = t.AddDate(0, 0, 1).Add(-time.Second)
				}
				return t
			}
		}
		r.fault(option, "expected a date such as 2026-11-24 or 2026-11-24T08:00")
		return time.Time{}
	}
	if from, to := date("start_date", false), date("stop_date", true); !from.IsZero() || !to.IsZero() {
		out = append(out, ruleset.Time{From: from, To: to})
	}
	if days := r.list("weekdays"); len(days) > 0 {
		// One ! in front is for the whole list.
		d := ruleset.Days{Not: strings.HasPrefix(days[0], "!")}
		days[0] = strings.TrimPrefix(days[0], "!")
		if days[0] == "" {
			days = days[1:]
		}
		if len(days) == 0 {
			r.fault("weekdays", "expected days such as 'Mon Tue' behind the !")
		}
		for _, v := range days {
			v = strings.TrimPrefix(v, "!")
			found := false
			for day := time.Sunday; day <= time.Saturday; day++ {
				if len(v) >= 2 && strings.HasPrefix(strings.ToLower(day.String()), strings.ToLower(v)) {
					d.List, found = append(d.List, day), true
				}
			}
			if !found {
				r.fault("weekdays", "expected days such as 'Mon Tue', not "+strconv.Quote(v))
			}
		}
		out = append(out, d)
	}
	if r.has("monthdays") {
		r.seen["monthdays"] = true
		r.fault("monthdays", "nftables cannot match days of the month: use weekdays, start_date and stop_date")
	}
	return out
}
