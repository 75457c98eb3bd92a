package network

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/init/uci"
	"weft/services/internal/rtnl"
)

// wellKnownTable is the number of a routing table that has a name everywhere.
func wellKnownTable(name string) int {
	switch name {
	case "local":
		return unix.RT_TABLE_LOCAL
	case "main":
		return unix.RT_TABLE_MAIN
	case "default":
		return unix.RT_TABLE_DEFAULT
	case "prelocal":
		return 128
	}
	return 0
}

// readTables reads the names of routing tables from a file of iproute2, such
// as /etc/iproute2/rt_tables: a number and a name a line. Without a file there
// are none.
func readTables(path string) map[string]int {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	out := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if w := strings.Fields(line); len(w) == 2 {
			if n, err := strconv.ParseUint(w[0], 0, 31); err == nil && n > 0 {
				out[w[1]] = int(n)
			}
		}
	}
	return out
}

// table reads the name or number of a routing table; 0 is the main one, or
// what the option says nothing about.
func (c *Config) table(r *reader, option string) int {
	v, ok := r.s.Get(option)
	if !ok {
		return 0
	}
	n := wellKnownTable(v)
	if n == 0 {
		n = c.Tables[v]
	}
	if n == 0 {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			n = 0
		}
	}
	if n < 1 || n > 1<<31-1 || n == unix.RT_TABLE_LOCAL {
		r.bad(option, v, "main, default, the number of a routing table, or a name from /etc/iproute2/rt_tables")
		return 0
	}
	if n == unix.RT_TABLE_MAIN {
		return 0
	}
	return n
}

// routeTypes are the types of routes by the names that `ip route` has.
var routeTypes = []struct {
	name string
	kind uint8
}{
	{"local", unix.RTN_LOCAL}, {"blackhole", unix.RTN_BLACKHOLE}, {"unreachable", unix.RTN_UNREACHABLE},
	{"prohibit", unix.RTN_PROHIBIT}, {"throw", unix.RTN_THROW},
}

// typeName is the name of a type of route, empty for the usual one.
func (r Route) typeName() string {
	for _, t := range routeTypes {
		if t.kind == r.Type {
			return t.name
		}
	}
	return ""
}

// route reads a `route` or `route6` section into its interface; one that leads
// nowhere needs none.
func (c *Config) route(s *uci.Section) {
	six := s.Type == "route6"
	r := &reader{s: s}
	if r.bool("disabled", false) {
		return
	}
	route := Route{
		Metric: r.number("metric", 0, 0, 1<<31-1), OnLink: r.bool("onlink", false), MTU: r.number("mtu", 0, 68, 65535),
		Table: c.table(r, "table"),
	}
	if v := s.String("type", "unicast"); v != "unicast" {
		for _, t := range routeTypes {
			if t.name == v {
				route.Type = t.kind
			}
		}
		if route.Type == 0 {
			r.bad("type", v, "one of unicast, local, blackhole, unreachable, prohibit, throw")
		}
	}
	name := s.String("interface", "")
	i := c.find(name)
	if i == nil && (name != "" || !route.deadEnd()) {
		r.bad("interface", name, "the name of an interface section")
	}
	bits := 32
	if six {
		bits = 128
	}
	if v, ok := s.Get("netmask"); ok && !six {
		if bits = maskBits(v); bits < 0 {
			r.bad("netmask", v, "a netmask such as 255.255.255.0")
			bits = 32
		}
	}
	if v, ok := s.Get("target"); ok {
		route.Dest = r.target("target", v, six, bits)
	} else {
		r.bad("target", "", "the network or host that the route leads to, such as 10.0.0.0/8")
	}
	if v, ok := s.Get("gateway"); ok && v != "0.0.0.0" && v != "::" {
		route.Via, _ = r.addr("gateway", v, six)
	}
	if v, ok := s.Get("source"); ok && six {
		route.From = r.target("source", v, true, 128)
	} else if ok {
		route.Src, _ = r.addr("source", strings.TrimSuffix(v, "/32"), false)
	}
	for _, o := range []string{"valid", "proto"} {
		if v, ok := s.Get(o); ok && v != "static" {
			r.later(o, v, "no such option")
		}
	}
	c.Problems = append(c.Problems, r.problems...)
	switch {
	case len(r.problems) > 0:
	case i == nil:
		c.DeadEnds = append(c.DeadEnds, route)
	default:
		i.Routes = append(i.Routes, route)
	}
}

// target reads a network; without a length it has bits.
func (r *reader) target(option, v string, six bool, bits int) netip.Prefix {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(v); err == nil {
			p = netip.PrefixFrom(a, min(bits, a.BitLen()))
		}
	}
	if err != nil || p.Addr().Is6() != six || p.Addr().Zone() != "" || p.Addr().Is4In6() || p.Addr().IsMulticast() {
		r.bad(option, v, "an "+family(six)+" network or host")
		return netip.Prefix{}
	}
	return p.Masked()
}

// Rule is a `rule` or `rule6` section.
type Rule struct {
	rtnl.Rule
	// In and Out of the configuration are names of interfaces; their links are
	// known while they are up.
	in, out string
}

// maxRulePort is the last port that the kernel takes in a rule
// (fib_rule_port_range_valid).
const maxRulePort = 65534

// ipProtocol is the number of a protocol that a rule names; 0 if it is none.
func ipProtocol(name string) uint8 {
	for _, p := range []struct {
		name   string
		number uint8
	}{{"icmp", 1}, {"igmp", 2}, {"tcp", 6}, {"udp", 17}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"icmpv6", 58}, {"sctp", 132}} {
		if p.name == name {
			return p.number
		}
	}
	n, err := strconv.ParseUint(name, 10, 8)
	if err != nil {
		return 0
	}
	return uint8(n)
}

// rule reads a policy rule. Without a priority rules count from 1 in the order
// of the file, as netifd has it.
func (c *Config) rule(s *uci.Section) {
	six := s.Type == "rule6"
	r := &reader{s: s}
	if r.bool("disabled", false) {
		return
	}
	n := 1
	rule := Rule{Rule: rtnl.Rule{Family: rtnl.V4, Suppress: -1, Action: rtnl.ActTable, Protocol: protocolStatic}}
	if six {
		rule.Family = rtnl.V6
	}
	for _, other := range c.Rules {
		if other.Family == rule.Family {
			n++
		}
	}
	rule.Priority = uint32(r.number("priority", n, 0, 1<<31-1))
	rule.Invert = r.bool("invert", false)
	bits := 32
	if six {
		bits = 128
	}
	if v, ok := s.Get("src"); ok {
		rule.From = r.target("src", v, six, bits)
	}
	if v, ok := s.Get("dest"); ok {
		rule.To = r.target("dest", v, six, bits)
	}
	for _, o := range []struct {
		option string
		to     *string
	}{{"in", &rule.in}, {"out", &rule.out}} {
		if v, ok := s.Get(o.option); ok {
			if *o.to = v; c.find(v) == nil {
				r.bad(o.option, v, "the name of an interface section")
			}
		}
	}
	if v, ok := s.Get("mark"); ok {
		value, mask, has := strings.Cut(v, "/")
		a, err := strconv.ParseUint(value, 0, 32)
		b := uint64(1<<32 - 1)
		if has && err == nil {
			b, err = strconv.ParseUint(mask, 0, 32)
		}
		if err != nil {
			r.bad("mark", v, "a number, with or without a mask, such as 0x1/0xff")
		}
		rule.Mark, rule.Mask = uint32(a), uint32(b)
	}
	rule.TOS = uint8(r.number("tos", 0, 0, 255))
	if v, ok := s.Get("ipproto"); ok {
		if rule.IPProto = ipProtocol(v); rule.IPProto == 0 {
			r.bad("ipproto", v, "the number of a protocol, or one of tcp, udp, icmp, icmpv6, sctp, esp, gre")
		}
	}
	rule.Sport, rule.Dport = r.span("sport", maxRulePort), r.span("dport", maxRulePort)
	if s.Option("uidrange") != nil {
		rule.UID, rule.HasUID = r.span("uidrange", 1<<32-2), true
	}
	if v := r.number("suppress_prefixlength", -1, 0, 128); v >= 0 {
		rule.Suppress = v
	}
	switch lookup, action, jump := s.Option("lookup") != nil, s.String("action", ""), s.Option("goto") != nil; {
	case lookup:
		if rule.Table = uint32(c.table(r, "lookup")); rule.Table == 0 {
			rule.Table = unix.RT_TABLE_MAIN
		}
	case jump:
		rule.Action, rule.Goto = rtnl.ActGoto, uint32(r.number("goto", 0, 0, 1<<31-1))
	case action != "":
		switch action {
		case "prohibit":
			rule.Action = rtnl.ActProhibit
		case "unreachable":
			rule.Action = rtnl.ActUnreachable
		case "blackhole":
			rule.Action = rtnl.ActBlackhole
		default:
			r.bad("action", action, "one of prohibit, unreachable, blackhole")
		}
	default:
		r.bad("lookup", "", "one of the options lookup, goto or action")
	}
	if rule.Action != rtnl.ActTable && rule.Suppress >= 0 {
		r.bad("suppress_prefixlength", strconv.Itoa(rule.Suppress), "option lookup beside it")
	}
	c.Problems = append(c.Problems, r.problems...)
	if len(r.problems) == 0 {
		c.Rules = append(c.Rules, rule)
	}
}

// span reads a number or two with a dash between them.
func (r *reader) span(option string, high uint64) rtnl.Range {
	v, ok := r.s.Get(option)
	if !ok {
		return rtnl.Range{}
	}
	first, last, has := strings.Cut(v, "-")
	a, err := strconv.ParseUint(first, 10, 32)
	b := a
	if has && err == nil {
		b, err = strconv.ParseUint(last, 10, 32)
	}
	if err != nil || a > b || b > high || (a == 0 && high < 1<<17) {
		r.bad(option, v, fmt.Sprintf("a number or a range such as 1000-2000, at most %d", high))
		return rtnl.Range{}
	}
	return rtnl.Range{First: uint32(a), Last: uint32(b)}
}
