package firewall

import (
	"fmt"
	"slices"

	"weft/services/firewall/ruleset"
)

// Table is the table of LEDE's firewall, of the family inet.
const Table = "fw4"

const flowtable = "ft"

// policy is what the base chain does with what nothing else has decided: reject
// is not a policy of nftables, so the chain ends with a jump.
func policy(v string) string {
	if v == "accept" {
		return "accept"
	}
	return "drop"
}

// assemble puts all rules into chains, in LEDE's order and by LEDE's names.
func (b *builder) assemble() {
	if b.offload {
		b.flowtable()
	}
	base := func(name, typ, hook, priority, policy string) *ruleset.Chain {
		c := &ruleset.Chain{Name: name, Type: typ, Hook: hook, Priority: priority, Policy: policy}
		b.rs.Chains = append(b.rs.Chains, c)
		return c
	}
	b.filter(base)
	b.natChains(base)
	b.rawChains(base)
	b.mangleChains(base)
	for _, c := range b.rs.Chains {
		c.Head, c.Tail = b.heads[c.Name], b.tails[c.Name]
		delete(b.heads, c.Name)
		delete(b.tails, c.Name)
	}
	for name, list := range b.heads {
		b.lostInclude(name, list)
	}
	for name, list := range b.tails {
		b.lostInclude(name, list)
	}
}

func (b *builder) lostInclude(chain string, list []ruleset.Include) {
	for _, i := range list {
		b.out.Problems = append(b.out.Problems, Problem{Section: i.Path, Expected: "there is no chain " + chain + " to include it in", Fatal: true})
	}
}

func (b *builder) flowtable() {
	f := &ruleset.Flowtable{Name: flowtable, Hardware: b.offloadHW}
	for _, z := range b.zones {
		for _, d := range z.devices {
			if d != "lo" && d != proxyPassDevice && b.in.Devices != nil && b.in.Devices(d) && !slices.Contains(f.Devices, d) {
				f.Devices = append(f.Devices, d)
			}
		}
	}
	if len(f.Devices) > 0 {
		slices.Sort(f.Devices)
		b.rs.Flowtable = f
	}
}

type baseFunc func(name, typ, hook, priority, policy string) *ruleset.Chain

// familyName is how comments name the family of a rule.
func familyName(f ruleset.Family) string {
	if f == 0 {
		return "IPv4/IPv6"
	}
	return fmt.Sprintf("IPv%d", f)
}

// jumps sends packets of each zone to its chain.
func (b *builder) jumps(c *ruleset.Chain, out bool, prefix, what string, want func(*zone) bool) {
	for _, z := range b.zones {
		if want != nil && !want(z) {
			continue
		}
		for _, m := range b.matchers(z) {
			c.Add("", fmt.Sprintf("!fw4: Handle %s %s %s traffic", z.name, familyName(m.family), what), append(m.terms(out), ruleset.Jump(prefix+z.name))...)
		}
	}
}

func (b *builder) filter(base baseFunc) {
	for _, hook := range []struct {
		name, flows, device string
		out                 bool
	}{{"input", "inbound", "Accept traffic from loopback", false}, {"forward", "forwarded", "", false}, {"output", "outbound", "Accept traffic towards loopback", true}} {
		c := base(hook.name, "filter", hook.name, "filter", policy(b.policy[hook.name]))
		if hook.device != "" {
			c.Add("", "!fw4: "+hook.device, ruleset.Device{Out: hook.out, Name: "lo"}, ruleset.Accept)
		}
		if hook.name == "forward" && b.rs.Flowtable != nil {
			c.Add("", "!fw4: Offload established flows", ruleset.Protocols{List: []uint8{protoTCP, protoUDP}}, ruleset.Offload(flowtable))
		}
		if b.noIPv6 {
			c.Add("", "!fw4: No IPv6", ruleset.IPv6, ruleset.Drop)
		}
		c.Add("", "!fw4: Allow "+hook.flows+" established and related flows", ruleset.Established|ruleset.Related, ruleset.Accept)
		if b.invalid {
			c.Add("", "!fw4: Drop flows with invalid conntrack state", ruleset.Invalid, ruleset.Drop)
		}
		if b.proxyOn() {
			switch hook.name {
			case "input":
				c.Add("", "!weft: Flows that the MPTCP proxy serves", ruleset.Mark{Value: proxyMarkLocal, Mask: proxyMarkMask}, ruleset.Accept)
			case "forward":
				c.Add("", "!weft: Into the MPTCP proxy's tunnel", ruleset.Device{Out: true, Name: proxyTunnelDevice}, ruleset.Mark{Value: proxyMarkTunnel, Mask: proxyMarkMask}, ruleset.Accept)
				c.Add("", "!weft: Out of the MPTCP proxy's tunnel", ruleset.Device{Name: proxyTunnelDevice}, ruleset.Accept)
			}
		}
		if hook.name == "input" && b.synRate.Rate > 0 {
			c.Add("", "!fw4: Rate limit TCP syn packets", ruleset.FirstSYN{}, ruleset.Jump("syn_flood"))
		}
		c.Rules = append(c.Rules, b.rules[hook.name]...)
		b.jumps(c, hook.out, hook.name+"_", hook.name, nil)
		if b.policy[hook.name] == "reject" {
			c.Add("", "", ruleset.Jump("handle_reject"))
		}
	}
	pre := base("prerouting", "filter", "prerouting", "filter", "accept")
	b.jumps(pre, false, "helper_", "helper", b.helpers)

	reject := base("handle_reject", "", "", "", "")
	reject.Add("", "!fw4: Reject TCP traffic", ruleset.Protocols{List: []uint8{protoTCP}}, b.rejectTCP)
	reject.Add("", "!fw4: Reject any other traffic", b.rejectAny)
	if b.synRate.Rate > 0 {
		c := base("syn_flood", "", "", "", "")
		c.Add("", "!fw4: Accept SYN packets below rate-limit", b.synRate, ruleset.Return)
		c.Add("", "!fw4: Drop excess packets", ruleset.Drop)
	}
	for _, z := range b.zones {
		b.zoneFilter(base, z)
	}
}

func (b *builder) helpers(z *zone) bool {
	return len(z.helpers) > 0 || len(b.rules["helper_"+z.name]) > 0
}

func (b *builder) zoneFilter(base baseFunc, z *zone) {
	in := base("input_"+z.name, "", "", "", "")
	in.Rules = append(in.Rules, b.rules[in.Name]...)
	if z.dnat {
		in.Add("", "!fw4: Accept port redirections", ruleset.Redirected{}, ruleset.Accept)
	}
	in.Add("", "", ruleset.Jump(z.input+"_from_"+z.name))

	out := base("output_"+z.name, "", "", "", "")
	out.Rules = append(out.Rules, b.rules[out.Name]...)
	out.Add("", "", b.toZone(z.output, z))

	fwd := base("forward_"+z.name, "", "", "", "")
	fwd.Rules = append(fwd.Rules, b.rules[fwd.Name]...)
	if z.dnat {
		fwd.Add("", "!fw4: Accept port forwards", ruleset.Redirected{}, ruleset.Accept)
	}
	fwd.Add("", "", b.toZone(z.forward, z))
	if p := b.policy["forward"]; p != "accept" && z.log&1 != 0 {
		fwd.Add("", "", b.log(z, p+" "+z.name+" forward: ")...)
	}
	if b.helpers(z) {
		h := base("helper_"+z.name, "", "", "", "")
		h.Rules = append(h.Rules, b.rules[h.Name]...)
		for _, x := range z.helpers {
			b.useHelper(x)
			if port := helperPort(x.Name); port != 0 {
				h.Add("", "!fw4: Helper "+x.Name, ruleset.Ports{Proto: x.Proto, Dest: true, List: []ruleset.PortRange{{From: port, To: port}}}, ruleset.SetHelper(x.Name))
			}
		}
	}
	from := base(z.input+"_from_"+z.name, "", "", "", "")
	b.verdicts(from, z, z.input, false)
	for _, v := range []string{"accept", "reject", "drop"} {
		if name := v + "_to_" + z.name; b.jumped[name] {
			b.verdicts(base(name, "", "", "", ""), z, v, true)
		}
	}
}

// helperPort is the port that the protocol of a helper is on (IANA).
func helperPort(name string) uint16 {
	switch name {
	case "amanda":
		return 10080
	case "ftp":
		return 21
	case "RAS":
		return 1719
	case "Q.931":
		return 1720
	case "irc":
		return 6667
	case "pptp":
		return 1723
	case "sip":
		return 5060
	case "snmp":
		return 161
	case "tftp":
		return 69
	}
	return 0
}

func (b *builder) log(z *zone, prefix string) []ruleset.Term {
	if z.logLimit.Rate > 0 {
		return []ruleset.Term{z.logLimit, ruleset.Log{Prefix: prefix}}
	}
	return []ruleset.Term{ruleset.Log{Prefix: prefix}}
}

// verdicts decides about packets from or to a zone.
func (b *builder) verdicts(c *ruleset.Chain, z *zone, v string, out bool) {
	dir := "in"
	if out {
		dir = "out"
	}
	for _, m := range b.matchers(z) {
		t := m.terms(out)
		if out && v == "accept" && (z.masq || z.masq6) && !z.masqInvalid {
			c.Add("", "!fw4: Prevent NAT leakage", slices.Concat(t, []ruleset.Term{ruleset.Invalid, ruleset.Counter{}, ruleset.Drop})...)
		}
		if v != "accept" && z.log&1 != 0 {
			c.Add("", "", slices.Concat(t, b.log(z, v+" "+z.name+" "+dir+": "))...)
		}
		c.Add("", fmt.Sprintf("!fw4: %s %s %s traffic", v, z.name, familyName(m.family)), slices.Concat(t, []ruleset.Term{ruleset.Counter{}, verdict(v)})...)
	}
}

func (b *builder) natChains(base baseFunc) {
	dst := base("dstnat", "nat", "prerouting", "dstnat", "accept")
	b.jumps(dst, false, "dstnat_", "dstnat", func(z *zone) bool { return z.dnat })
	src := base("srcnat", "nat", "postrouting", "srcnat", "accept")
	src.Rules = append(src.Rules, b.rules["srcnat"]...)
	b.jumps(src, true, "srcnat_", "srcnat", func(z *zone) bool { return z.snat })
	for _, z := range b.zones {
		if z.dnat {
			c := base("dstnat_"+z.name, "", "", "", "")
			c.Rules = append(c.Rules, b.rules[c.Name]...)
		}
		if !z.snat {
			continue
		}
		c := base("srcnat_"+z.name, "", "", "", "")
		c.Rules = append(c.Rules, b.rules[c.Name]...)
		for _, f := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
			if f == ruleset.IPv4 && !z.masq || f == ruleset.IPv6 && !z.masq6 || z.family != 0 && z.family != f {
				continue
			}
			// Bounds of the other family are none for this one, as on LEDE.
			s, _ := z.masqSrc.of(f)
			d, _ := z.masqDest.of(f)
			for _, x := range s.groups(f, false) {
				for _, y := range d.groups(f, true) {
					t := slices.Concat(x, y)
					if len(t) == 0 {
						t = append(t, f)
					}
					c.Add("", fmt.Sprintf("!fw4: Masquerade %s %s traffic", familyName(f), z.name), append(t, ruleset.Masquerade{})...)
				}
			}
		}
	}
}

func (b *builder) rawChains(base baseFunc) {
	notrack := func(z *zone) bool { return len(b.rules["notrack_"+z.name]) > 0 }
	pre := base("raw_prerouting", "filter", "prerouting", "raw", "accept")
	b.jumps(pre, false, "notrack_", "notrack", notrack)
	base("raw_output", "filter", "output", "raw", "accept")
	for _, z := range b.zones {
		if notrack(z) {
			c := base("notrack_"+z.name, "", "", "", "")
			c.Rules = append(c.Rules, b.rules[c.Name]...)
		}
	}
}

func (b *builder) mangleChains(base baseFunc) {
	for _, x := range []struct{ name, typ, hook string }{
		{"mangle_prerouting", "filter", "prerouting"}, {"mangle_postrouting", "filter", "postrouting"}, {"mangle_input", "filter", "input"},
		{"mangle_output", "route", "output"}, {"mangle_forward", "filter", "forward"},
	} {
		c := base(x.name, x.typ, x.hook, "mangle", "accept")
		c.Rules = append(c.Rules, b.rules[x.name]...)
		if x.hook != "forward" {
			continue
		}
		for _, z := range b.zones {
			if !z.mtuFix {
				continue
			}
			for _, m := range b.matchers(z) {
				for _, out := range []bool{false, true} {
					dir := "ingress"
					if out {
						dir = "egress"
					}
					t := m.terms(out)
					if z.log&2 != 0 {
						c.Add("", "", slices.Concat(t, []ruleset.Term{ruleset.FirstSYN{Clamp: true}}, b.log(z, "MSSFIX "+z.name+" out: "))...)
					}
					c.Add("", fmt.Sprintf("!fw4: Zone %s %s %s MTU fixing", z.name, familyName(m.family), dir), slices.Concat(t, []ruleset.Term{ruleset.FirstSYN{Clamp: true}, ruleset.ClampMSS{}})...)
				}
			}
		}
	}
}
