package firewall

import (
	"strconv"
	"strings"

	"weft/services/firewall/ruleset"
)

// icmpNames are LEDE's names of ICMP messages: type and code (-1: all) in IPv4
// (RFC 792, 1191, 1812) and IPv6 (RFC 4443, 4861). A type of -1 is one that the
// family does not have.
var icmpNames = [...]struct {
	name   string
	t4, c4 int
	t6, c6 int
}{
	{"any", -1, -1, -1, -1},
	{"echo-reply", 0, -1, 129, -1},
	{"pong", 0, -1, 129, -1},
	{"destination-unreachable", 3, -1, 1, -1},
	{"network-unreachable", 3, 0, -1, -1},
	{"host-unreachable", 3, 1, -1, -1},
	{"protocol-unreachable", 3, 2, -1, -1},
	{"port-unreachable", 3, 3, 1, 4},
	{"fragmentation-needed", 3, 4, -1, -1},
	{"source-route-failed", 3, 5, -1, -1},
	{"network-unknown", 3, 6, -1, -1},
	{"host-unknown", 3, 7, -1, -1},
	{"network-prohibited", 3, 9, -1, -1},
	{"host-prohibited", 3, 10, -1, -1},
	{"tos-network-unreachable", 3, 11, -1, -1},
	{"tos-host-unreachable", 3, 12, -1, -1},
	{"communication-prohibited", 3, 13, 1, 1},
	{"host-precedence-violation", 3, 14, -1, -1},
	{"precedence-cutoff", 3, 15, -1, -1},
	{"no-route", -1, -1, 1, 0},
	{"beyond-scope", -1, -1, 1, 2},
	{"address-unreachable", -1, -1, 1, 3},
	{"failed-policy", -1, -1, 1, 5},
	{"reject-route", -1, -1, 1, 6},
	{"source-quench", 4, -1, -1, -1},
	{"redirect", 5, -1, 137, -1},
	{"network-redirect", 5, 0, -1, -1},
	{"host-redirect", 5, 1, -1, -1},
	{"tos-network-redirect", 5, 2, -1, -1},
	{"tos-host-redirect", 5, 3, -1, -1},
	{"echo-request", 8, -1, 128, -1},
	{"ping", 8, -1, 128, -1},
	{"router-advertisement", 9, -1, 134, -1},
	{"router-solicitation", 10, -1, 133, -1},
	{"time-exceeded", 11, -1, 3, -1},
	{"ttl-exceeded", 11, -1, 3, -1},
	{"ttl-zero-during-transit", 11, 0, 3, 0},
	{"ttl-zero-during-reassembly", 11, 1, 3, 1},
	{"parameter-problem", 12, -1, 4, -1},
	{"ip-header-bad", 12, 0, -1, -1},
	{"required-option-missing", 12, 1, -1, -1},
	{"bad-header", -1, -1, 4, 0},
	{"unknown-header-type", -1, -1, 4, 1},
	{"unknown-option", -1, -1, 4, 2},
	{"timestamp-request", 13, -1, -1, -1},
	{"timestamp-reply", 14, -1, -1, -1},
	{"address-mask-request", 17, -1, -1, -1},
	{"address-mask-reply", 18, -1, -1, -1},
	{"packet-too-big", -1, -1, 2, -1},
	{"neighbour-solicitation", -1, -1, 135, -1},
	{"neighbor-solicitation", -1, -1, 135, -1},
	{"neighbour-advertisement", -1, -1, 136, -1},
	{"neighbor-advertisement", -1, -1, 136, -1},
}

// icmpTypes are the messages that a rule is about, by family.
type icmpTypes struct {
	set    bool // the option was there and is not "any"
	v4, v6 []ruleset.ICMPType
}

func (t icmpTypes) of(f ruleset.Family) []ruleset.ICMPType {
	if f == ruleset.IPv6 {
		return t.v6
	}
	return t.v4
}

func (r *reader) icmpTypes() icmpTypes {
	var out icmpTypes
	for _, v := range r.list("icmp_type") {
		name := strings.ToLower(v)
		found := false
		for _, n := range icmpNames {
			if n.name != name {
				continue
			}
			found = true
			if n.t4 >= 0 {
				out.v4 = append(out.v4, ruleset.ICMPType{Type: uint8(n.t4), Code: n.c4})
			}
			if n.t6 >= 0 {
				out.v6 = append(out.v6, ruleset.ICMPType{Type: uint8(n.t6), Code: n.c6})
			}
		}
		if name == "any" {
			return icmpTypes{}
		}
		if !found {
			typ, code, hasCode := strings.Cut(v, "/")
			t, err1 := strconv.ParseUint(typ, 10, 8)
			c, err2 := uint64(0), error(nil)
			if hasCode {
				c, err2 = strconv.ParseUint(code, 10, 8)
			}
			if err1 != nil || err2 != nil {
				r.fault("icmp_type", "expected types such as echo-request, 8 or 3/4, not "+strconv.Quote(v))
				continue
			}
			x := ruleset.ICMPType{Type: uint8(t), Code: -1}
			if hasCode {
				x.Code = int(c)
			}
			out.v4, out.v6 = append(out.v4, x), append(out.v6, x)
		}
		out.set = true
	}
	return out
}
