package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
	"weft/services/firewall/ruleset"
)

// Input is all that a ruleset is made from.
type Input struct {
	Firewall *uci.Package
	Networks Networks
	Proxy    *uci.Package          // mptcpproxy; nil: none
	Devices  func(string) bool     // whether a device is there now; nil: none is
	Local    *time.Location        // time zone of time windows; nil: UTC
	Now      time.Time             // for the offset of that zone
	Files    func(string) []string // lists the files of a pattern; nil: none
	Read     func(string) ([]byte, error)
}

// Output is a ruleset, what is wrong with its configuration, and what else there
// is to do.
type Output struct {
	Ruleset  *ruleset.Ruleset
	Problems []Problem
	Sysctl   map[string]string // below /proc/sys
	Scripts  []string          // to run after the rules are loaded
}

// zone is a section `zone`.
type zone struct {
	name                   string
	section                string
	family                 ruleset.Family
	devices                []string // exact names
	wild                   []string // names that end in *
	subnets                addrs
	networks               []string
	input, output, forward string
	masq, masq6            bool
	masqInvalid            bool
	masqSrc, masqDest      addrs
	mtuFix                 bool
	log                    int
	logLimit               ruleset.Limit
	helpers                []ruleset.Helper

	dnat, snat bool // has a chain of that kind
}

// builder makes a ruleset of an Input.
type builder struct {
	in    Input
	out   *Output
	rs    *ruleset.Ruleset
	zones []*zone

	policy     map[string]string // of the chains input, output, forward
	invalid    bool              // drop what connection tracking finds invalid
	synRate    ruleset.Limit
	rejectTCP  ruleset.Reject
	rejectAny  ruleset.Reject
	autoHelper bool
	noIPv6     bool
	autoInc    bool
	offload    bool
	offloadHW  bool
	zoneOffset time.Duration

	rules  map[string][]*ruleset.Rule // by chain
	heads  map[string][]ruleset.Include
	tails  map[string][]ruleset.Include
	jumped map[string]bool // verdict chains that are needed
}

// Build makes the ruleset. A faulty section is left out and named in
// Output.Problems; its neighbours are not touched.
func Build(in Input) *Output {
	return newBuilder(in).build()
}

func newBuilder(in Input) *builder {
	if in.Local == nil {
		in.Local = time.UTC
	}
	if in.Now.IsZero() {
		in.Now = time.Now()
	}
	_, offset := in.Now.In(in.Local).Zone()
	b := &builder{
		in: in, out: &Output{Sysctl: map[string]string{}}, rs: &ruleset.Ruleset{Table: Table},
		rules: map[string][]*ruleset.Rule{}, heads: map[string][]ruleset.Include{}, tails: map[string][]ruleset.Include{},
		jumped: map[string]bool{}, zoneOffset: time.Duration(offset) * time.Second,
	}
	b.rs.Zone = b.zoneOffset
	b.out.Ruleset = b.rs
	return b
}

func (b *builder) build() *Output {
	b.defaults()
	b.each("zone", b.zone)
	b.proxyZone()
	b.each("ipset", b.ipset)
	b.each("forwarding", b.forwarding)
	b.each("rule", b.rule)
	b.each("redirect", b.redirect)
	b.each("nat", b.nat)
	b.includes()
	for _, s := range b.in.Firewall.Sections {
		if !slices.Contains([]string{"defaults", "zone", "ipset", "forwarding", "rule", "redirect", "nat", "include"}, s.Type) {
			b.out.Problems = append(b.out.Problems, Problem{Section: s.Name, Expected: "sections of type " + s.Type + " have no meaning here", Fatal: true})
		}
	}
	b.assemble()
	return b.out
}

// zonesOf reads the zones alone.
func zonesOf(in Input) []*zone {
	b := newBuilder(in)
	b.defaults()
	b.each("zone", b.zone)
	return b.zones
}

// each hands all enabled sections of a type over.
func (b *builder) each(typ string, f func(*reader)) {
	for i, s := range b.in.Firewall.SectionsOfType(typ) {
		r := newReader(s, i, &b.out.Problems)
		if !r.boolean("enabled", true) || r.boolean("disabled", false) {
			continue
		}
		f(r)
		if !r.bad {
			r.done()
		}
	}
}

func (b *builder) defaults() {
	s := &uci.Section{Name: "defaults", Type: "defaults", Anonymous: true}
	if all := b.in.Firewall.SectionsOfType("defaults"); len(all) > 0 {
		s = all[0]
	}
	r := newReader(s, 0, &b.out.Problems)
	r.soft = true
	verdict := func(option string) string { return r.one(option, "drop", "accept", "reject", "drop") }
	b.policy = map[string]string{"input": verdict("input"), "output": verdict("output"), "forward": verdict("forward")}
	b.invalid = r.boolean("drop_invalid", false)
	syn := r.boolean("synflood_protect", r.boolean("syn_flood", false))
	b.synRate = ruleset.Limit{Rate: 25, Unit: time.Second, Burst: 50}
	if l, ok := r.limit("synflood_rate", "synflood_burst"); ok {
		if !r.has("synflood_burst") {
			l.Burst = 50
		}
		b.synRate = l
	} else if n := r.number("synflood_burst", 50, 0, 1<<30); n > 0 {
		b.synRate.Burst = uint32(n)
	}
	if !syn {
		b.synRate.Rate = 0
	}
	code := func(option, def string) ruleset.Reject {
		v := strings.TrimPrefix(strings.TrimPrefix(r.str(option, def), "icmp-"), "icmpx-")
		switch {
		case v == "tcp-reset" && option == "tcp_reject_code":
			return ruleset.Reject{Reset: true}
		case v == "adm-prohibited":
			v = "admin-prohibited"
		}
		if i := slices.Index(ruleset.ICMPCodes[:], v); i >= 0 {
			return ruleset.Reject{Code: uint8(i)}
		}
		r.warn(option, "expected tcp-reset (of TCP alone) or one of "+strings.Join(ruleset.ICMPCodes[:], ", "))
		return ruleset.Reject{Reset: def == "tcp-reset", Code: 1}
	}
	b.rejectTCP, b.rejectAny = code("tcp_reject_code", "tcp-reset"), code("any_reject_code", "port-unreachable")
	for option, key := range map[string]string{
		"tcp_syncookies": "net/ipv4/tcp_syncookies", "tcp_ecn": "net/ipv4/tcp_ecn", "tcp_window_scaling": "net/ipv4/tcp_window_scaling",
	} {
		r.seen[option] = true
		if r.has(option) || option != "tcp_ecn" {
			v := "1"
			if option == "tcp_ecn" {
				v = strconv.Itoa(r.number(option, 0, 0, 2))
			} else if !r.boolean(option, true) {
				v = "0"
			}
			b.out.Sysctl[key] = v
		}
	}
	for option, keys := range map[string][]string{
		"accept_redirects":    {"net/ipv4/conf/all/accept_redirects", "net/ipv6/conf/all/accept_redirects", "net/ipv4/conf/default/accept_redirects", "net/ipv6/conf/default/accept_redirects"},
		"accept_source_route": {"net/ipv4/conf/all/accept_source_route", "net/ipv6/conf/all/accept_source_route", "net/ipv4/conf/default/accept_source_route", "net/ipv6/conf/default/accept_source_route"},
	} {
		v := "0"
		if r.boolean(option, false) {
			v = "1"
		}
		for _, k := range keys {
			b.out.Sysctl[k] = v
		}
	}
	b.autoHelper = r.boolean("auto_helper", true)
	r.boolean("custom_chains", true)
	b.noIPv6 = r.boolean("disable_ipv6", false)
	b.offload, b.offloadHW = r.boolean("flow_offloading", false), r.boolean("flow_offloading_hw", false)
	b.autoInc = r.boolean("auto_includes", true)
	r.done()
}

// chainName says whether a name can be part of a chain's name.
func chainName(s string) bool {
	return s != "" && len(s) <= 32 && strings.IndexFunc(s, func(c rune) bool {
		return c != '_' && c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) < 0
}

// kernelHelpers are the conntrack helpers by the names of the kernel.
var kernelHelpers = [...]ruleset.Helper{
	{Name: "amanda", Proto: protoUDP}, {Name: "ftp", Proto: protoTCP}, {Name: "RAS", Proto: protoUDP}, {Name: "Q.931", Proto: protoTCP},
	{Name: "irc", Proto: protoTCP}, {Name: "pptp", Proto: protoTCP}, {Name: "sip", Proto: protoUDP}, {Name: "snmp", Proto: protoUDP}, {Name: "tftp", Proto: protoUDP},
}

func helperOf(name string) (ruleset.Helper, bool) {
	for _, h := range kernelHelpers {
		if h.Name == name {
			return h, true
		}
	}
	return ruleset.Helper{}, false
}

func (b *builder) zone(r *reader) {
	z := &zone{name: r.str("name", ""), section: r.name}
	if !chainName(z.name) {
		r.fault("name", "expected a name of up to 32 letters, digits and _")
	}
	if b.findZone(z.name) != nil {
		r.fault("name", "there is a zone of that name already")
	}
	z.family = r.family()
	verdict := func(option string) string {
		return r.one(option, b.policy[option], "accept", "reject", "drop")
	}
	z.input, z.output, z.forward = verdict("input"), verdict("output"), verdict("forward")
	z.networks = r.list("network")
	devs := r.list("device")
	for _, n := range z.networks {
		if net := b.in.Networks[n]; net != nil && net.Device != "" {
			devs = append(devs, net.Device)
		}
	}
	for _, d := range devs {
		if strings.HasPrefix(d, "!") || strings.HasPrefix(d, "@") {
			r.fault("device", "expected names of devices, with * or + at the end for all that begin so, not "+strconv.Quote(d))
			continue
		}
		if w, ok := strings.CutSuffix(d, "+"); ok {
			d = w + "*"
		}
		if !validDevice(d) {
			r.fault("device", "expected names of devices of up to 15 characters, not "+strconv.Quote(d))
			continue
		}
		if strings.HasSuffix(d, "*") {
			if !slices.Contains(z.wild, d) {
				z.wild = append(z.wild, d)
			}
		} else if !slices.Contains(z.devices, d) {
			z.devices = append(z.devices, d)
		}
	}
	z.subnets = r.addresses("subnet", b.in.Networks)
	z.masq, z.masq6 = r.boolean("masq", false), r.boolean("masq6", false)
	z.masqInvalid = r.boolean("masq_allow_invalid", false)
	z.masqSrc, z.masqDest = r.addresses("masq_src", b.in.Networks), r.addresses("masq_dest", b.in.Networks)
	z.mtuFix = r.boolean("mtu_fix", false)
	r.boolean("custom_chains", true)
	z.log = r.number("log", 0, 0, 3)
	if l, ok := r.limit("log_limit", "log_limit_burst"); ok {
		z.logLimit = l
	}
	auto := r.boolean("auto_helper", b.autoHelper)
	names := r.list("helper")
	for _, n := range names {
		h, ok := helperOf(n)
		if !ok {
			r.warn("helper", "the kernel has no conntrack helper "+strconv.Quote(n))
			continue
		}
		z.helpers = append(z.helpers, h)
	}
	// LEDE assigns all helpers whose modules are there to zones without
	// masquerading; of those the image has ftp alone.
	if auto && len(names) == 0 && !z.masq && !z.masq6 && b.hasHelper("ftp") {
		h, _ := helperOf("ftp")
		z.helpers = append(z.helpers, h)
	}
	if r.bad {
		return
	}
	z.snat = z.masq || z.masq6
	b.zones = append(b.zones, z)
}

// hasHelper tells whether the module of a helper is loaded.
func (b *builder) hasHelper(name string) bool {
	return b.in.Files != nil && len(b.in.Files("/sys/module/nf_conntrack_"+name)) > 0
}

func validDevice(d string) bool {
	return d != "" && len(d) <= 15 && strings.IndexFunc(d, func(c rune) bool { return c <= ' ' || c == '/' || c == '"' || c == '\\' || c > '~' || c == ':' }) < 0 && !strings.Contains(strings.TrimSuffix(d, "*"), "*")
}

func (b *builder) findZone(name string) *zone {
	for _, z := range b.zones {
		if z.name == name {
			return z
		}
	}
	return nil
}

// Devices of the MPTCP proxy and bits of marks that it sets: see
// services/mptcpproxy/internal/intercept.
const (
	proxyPassDevice   = "mptcppass"
	proxyTunnelDevice = "mptcp0"
	proxyMarkMask     = 0x0f000000
	proxyMarkLocal    = 0x01000000
	proxyMarkTunnel   = 0x04000000
)

// proxyOn tells whether the MPTCP proxy is configured to run.
func (b *builder) proxyOn() bool {
	if b.in.Proxy == nil {
		return false
	}
	main := b.in.Proxy.Section("main")
	return main != nil && main.Bool("enabled", false)
}

// proxyZone makes what the proxy passes on count as from the LAN that it
// serves.
func (b *builder) proxyZone() {
	if !b.proxyOn() {
		return
	}
	for _, lan := range b.in.Proxy.Section("main").List("lan") {
		for _, z := range b.zones {
			if slices.Contains(z.networks, lan) {
				if len(z.devices)+len(z.wild) > 0 {
					z.devices = append(z.devices, proxyPassDevice)
				}
				return
			}
		}
	}
}

// matcher is one way to be part of a zone: all given kinds match.
type matcher struct {
	family  ruleset.Family // 0: both
	device  string         // empty: any
	subnets []ruleset.Term // made for the source; flipped for the destination
}

func (m matcher) terms(out bool) []ruleset.Term {
	var t []ruleset.Term
	if m.family != 0 && len(m.subnets) == 0 {
		t = append(t, m.family)
	}
	if m.device != "" {
		t = append(t, ruleset.Device{Out: out, Name: m.device})
	}
	for _, s := range m.subnets {
		switch s := s.(type) {
		case ruleset.Addrs:
			s.Dest = out
			t = append(t, s)
		case ruleset.MaskedAddr:
			s.Dest = out
			t = append(t, s)
		}
	}
	return t
}

// families lists what a family option stands for.
func families(f ruleset.Family) []ruleset.Family {
	if f != 0 {
		return []ruleset.Family{f}
	}
	return []ruleset.Family{ruleset.IPv4, ruleset.IPv6}
}

// groups turns addresses of one family into lists of terms of which any may
// match: each masked one needs a rule of its own.
func (a addrs) groups(f ruleset.Family, dest bool) [][]ruleset.Term {
	var neg []ruleset.Term
	if len(a.neg) > 0 {
		neg = append(neg, ruleset.Addrs{Family: f, Dest: dest, Not: true, List: a.neg})
	}
	for _, m := range a.nmsk {
		neg = append(neg, ruleset.MaskedAddr{Family: f, Dest: dest, Not: true, Addr: m.addr, Mask: m.mask})
	}
	var out [][]ruleset.Term
	if len(a.pos) > 0 {
		out = append(out, append([]ruleset.Term{ruleset.Addrs{Family: f, Dest: dest, List: a.pos}}, neg...))
	}
	for _, m := range a.mask {
		out = append(out, append([]ruleset.Term{ruleset.MaskedAddr{Family: f, Dest: dest, Addr: m.addr, Mask: m.mask}}, neg...))
	}
	if len(out) == 0 {
		out = append(out, neg)
	}
	return out
}

// matchers lists the ways to be part of the zone; none for a zone without a
// device or network.
func (b *builder) matchers(z *zone) []matcher {
	devs := slices.Clone(z.devices)
	for _, w := range z.wild {
		if w == "*" {
			w = "" // any
		}
		devs = append(devs, w)
	}
	if z.subnets.empty() {
		var out []matcher
		for _, d := range devs {
			out = append(out, matcher{family: z.family, device: d})
		}
		return out
	}
	if len(devs) == 0 {
		devs = []string{""}
	}
	var out []matcher
	for _, f := range families(z.family) {
		a, ok := z.subnets.of(f)
		if !ok {
			continue
		}
		for _, g := range a.groups(f, false) {
			for _, d := range devs {
				out = append(out, matcher{family: f, device: d, subnets: g})
			}
		}
	}
	return out
}

// add appends a rule to a chain of the ruleset to come.
func (b *builder) add(chain, section, comment string, terms ...ruleset.Term) {
	b.rules[chain] = append(b.rules[chain], &ruleset.Rule{Terms: terms, Comment: "!fw4: " + comment, Section: section})
}

// zoneName checks option src or dest: a zone, "*" for any, or nothing.
func (b *builder) zoneName(r *reader, option string) (z *zone, any, ok bool) {
	switch v := r.str(option, ""); v {
	case "":
		return nil, false, true
	case "*":
		return nil, true, true
	default:
		if z = b.findZone(v); z == nil {
			r.fault(option, "expected the name of a zone or *")
			return nil, false, false
		}
		return z, false, true
	}
}

// toZone is the verdict for what goes out to a zone.
func (b *builder) toZone(verdict string, z *zone) ruleset.Term {
	name := verdict + "_to_" + z.name
	b.jumped[name] = true
	return ruleset.Jump(name)
}

// verdict is a verdict without a zone.
func verdict(v string) ruleset.Term {
	switch v {
	case "accept":
		return ruleset.Accept
	case "drop":
		return ruleset.Drop
	}
	return ruleset.Jump("handle_reject")
}

func (b *builder) forwarding(r *reader) {
	src, srcAny, ok1 := b.zoneName(r, "src")
	dest, destAny, ok2 := b.zoneName(r, "dest")
	family := r.family()
	if !ok1 || !ok2 || r.bad {
		return
	}
	if src == nil && !srcAny {
		r.fault("src", "expected the zone that traffic comes from")
	}
	if dest == nil && !destAny {
		r.fault("dest", "expected the zone that traffic goes to")
	}
	if r.bad {
		return
	}
	chain, from := "forward", "any"
	if src != nil {
		chain, from = "forward_"+src.name, src.name
		if family == 0 {
			family = src.family
		}
	}
	var terms []ruleset.Term
	to := "any"
	if dest != nil {
		to = dest.name
		if family == 0 {
			family = dest.family
		}
	}
	if family != 0 {
		terms = append(terms, family)
	}
	if dest != nil {
		terms = append(terms, b.toZone("accept", dest))
	} else {
		terms = append(terms, ruleset.Accept)
	}
	what := "IPv4/IPv6"
	if family != 0 {
		what = fmt.Sprintf("IPv%d", family)
	}
	b.add(chain, r.name, fmt.Sprintf("Accept %s to %s %s forwarding", from, to, what), terms...)
}

// match are the options that sections rule, redirect and nat share.
type match struct {
	family   ruleset.Family
	protos   protos
	src, dst addrs
	sport    ports
	dport    ports
	macs     macs
	icmp     icmpTypes
	helper   []ruleset.Term
	set      *ruleset.Set
	inSet    ruleset.InSet
	rest     []ruleset.Term // times, mark, limit, log
	counter  bool
}

// matchOptions reads them. The options of addresses and ports have other names
// in other sections.
func (b *builder) matchOptions(r *reader, proto, srcIP, srcPort, destIP, destPort string) match {
	m := match{family: r.family(), protos: r.protos(proto), icmp: r.icmpTypes(), macs: r.macs("src_mac")}
	if srcIP != "" {
		m.src = r.addresses(srcIP, b.in.Networks)
	}
	if destIP != "" {
		m.dst = r.addresses(destIP, b.in.Networks)
	}
	if srcPort != "" {
		m.sport = r.ports(srcPort)
	}
	if destPort != "" {
		m.dport = r.ports(destPort)
	}
	if !m.sport.empty() || !m.dport.empty() {
		if len(m.protos.pos) == 0 || slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return !hasPorts(p) }) {
			r.fault("proto", "there are ports: expected tcp, udp, sctp, dccp or udplite alone")
		}
	}
	if m.icmp.set && slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return p != protoICMP && p != protoICMPv6 }) {
		m.icmp = icmpTypes{} // of a rule that is about other protocols as well, as on LEDE
		r.warn("icmp_type", "the rule is not about icmp alone")
	}
	if v := r.str("ipset", ""); v != "" {
		b.useSet(r, v, &m)
	}
	if v := r.str("helper", ""); v != "" {
		name, not := strings.CutPrefix(strings.TrimSpace(v), "!")
		if _, ok := helperOf(strings.TrimSpace(name)); !ok {
			r.fault("helper", "the kernel has no conntrack helper of that name")
		}
		m.helper = append(m.helper, ruleset.HelperIs{Not: not, Name: strings.TrimSpace(name)})
	}
	m.rest = append(m.rest, r.times(b.in.Local, b.zoneOffset)...)
	if v, mask, not, ok := r.mark("mark"); ok {
		m.rest = append(m.rest, ruleset.Mark{Not: not, Value: v & mask, Mask: mask})
	}
	m.counter = r.boolean("counter", true)
	return m
}

// limits reads limit and log, which come behind all matches.
func (b *builder) limits(r *reader, m *match, name string) {
	if l, ok := r.limit("limit", "limit_burst"); ok {
		m.rest = append(m.rest, l)
	}
	logLimit, limited := r.limit("log_limit", "log_limit_burst")
	if limited {
		r.warn("log_limit", "has no effect in a rule: use option limit in a rule of its own")
		_ = logLimit
	}
	switch v := r.str("log", ""); v {
	case "", "0", "no", "off", "false":
	case "1", "yes", "on", "true", "2", "3":
		m.rest = append(m.rest, ruleset.Log{Prefix: name + ": "})
	default:
		m.rest = append(m.rest, ruleset.Log{Prefix: v})
	}
}

// useSet reads option ipset: NAME, with "!" for all else, and with directions
// that override those of the set.
func (b *builder) useSet(r *reader, v string, m *match) {
	v = strings.TrimSpace(v)
	v, not := strings.CutPrefix(v, "!")
	words := strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == '\t' || c == ',' })
	if len(words) == 0 {
		r.fault("ipset", "expected the name of a set")
		return
	}
	i := slices.IndexFunc(b.rs.Sets, func(s *ruleset.Set) bool { return s.Name == words[0] })
	if i < 0 {
		r.fault("ipset", "there is no (enabled) section ipset of that name")
		return
	}
	m.set = b.rs.Sets[i]
	m.inSet = ruleset.InSet{Family: m.set.Family, Not: not, Name: m.set.Name, Fields: slices.Clone(m.set.Fields)}
	for n, w := range words[1:] {
		if n >= len(m.inSet.Fields) {
			r.fault("ipset", fmt.Sprintf("the set has %d fields", len(m.inSet.Fields)))
			return
		}
		f := &m.inSet.Fields[n]
		switch {
		case strings.HasPrefix(w, "dest") || w == "dst":
			if *f == ruleset.SrcIP {
				*f = ruleset.DestIP
			} else if *f == ruleset.SrcPort {
				*f = ruleset.DestPort
			}
		case strings.HasPrefix(w, "src"):
			if *f == ruleset.DestIP {
				*f = ruleset.SrcIP
			} else if *f == ruleset.DestPort {
				*f = ruleset.SrcPort
			}
		default:
			r.fault("ipset", "expected src or dest behind the name of the set")
		}
	}
	ports := slices.ContainsFunc(m.inSet.Fields, func(f ruleset.Field) bool { return f == ruleset.SrcPort || f == ruleset.DestPort })
	if ports && (len(m.protos.pos) == 0 || slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return !hasPorts(p) })) {
		r.fault("ipset", "the set has ports: expected proto tcp or udp")
	}
	addr := slices.ContainsFunc(m.inSet.Fields, func(f ruleset.Field) bool { return f == ruleset.SrcIP || f == ruleset.DestIP })
	if addr {
		if m.family != 0 && m.family != m.set.Family {
			r.fault("family", "the set is of the other family")
		}
		m.family = m.set.Family
	}
}

// variant is one rule of those that a section needs: nftables matches one
// family of addresses and one protocol with ports at a time.
type variant struct {
	family ruleset.Family // 0: both
	proto  uint8          // 0: not one alone
	terms  []ruleset.Term // what stands in front of devices: family and protocol
	rest   []ruleset.Term // addresses, ports and all else
}

// variants lists the rules that a section needs. split asks for one rule a
// family even if the matches do not.
func (b *builder) variants(r *reader, m match, split bool) []variant {
	v4, ok4 := m.src.of(ruleset.IPv4)
	d4, okd4 := m.dst.of(ruleset.IPv4)
	v6, ok6 := m.src.of(ruleset.IPv6)
	d6, okd6 := m.dst.of(ruleset.IPv6)
	use4, use6 := ok4 && okd4 && m.family != ruleset.IPv6, ok6 && okd6 && m.family != ruleset.IPv4
	icmpOnly := len(m.protos.pos) > 0 && !slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return p != protoICMP && p != protoICMPv6 })
	if m.icmp.set {
		use4, use6 = use4 && len(m.icmp.v4) > 0, use6 && len(m.icmp.v6) > 0
	}
	if !use4 && !use6 {
		r.fault("family", "no packet can match: addresses, icmp_type and family exclude each other")
		return nil
	}
	type part struct {
		family   ruleset.Family
		src, dst addrs
	}
	var parts []part
	addressed := !m.src.empty() || !m.dst.empty()
	switch {
	case addressed || m.icmp.set || split || icmpOnly && m.family == 0 && !(use4 && use6):
		if use4 {
			parts = append(parts, part{ruleset.IPv4, v4, d4})
		}
		if use6 {
			parts = append(parts, part{ruleset.IPv6, v6, d6})
		}
	default:
		parts = append(parts, part{family: m.family})
	}
	var out []variant
	for _, p := range parts {
		for _, pr := range b.protoParts(m, p.family) {
			for _, s := range p.src.groups(p.family, false) {
				for _, d := range p.dst.groups(p.family, true) {
					v := variant{family: p.family, proto: pr.one, terms: pr.terms}
					if p.family != 0 && len(s)+len(d) == 0 {
						v.terms = append([]ruleset.Term{p.family}, v.terms...)
					}
					v.rest = append(v.rest, s...)
					v.rest = append(v.rest, d...)
					v.rest = append(v.rest, pr.match...)
					if len(m.macs.pos) > 0 {
						v.rest = append(v.rest, ruleset.MACs{List: m.macs.pos})
					}
					if len(m.macs.neg) > 0 {
						v.rest = append(v.rest, ruleset.MACs{Not: true, List: m.macs.neg})
					}
					v.rest = append(v.rest, m.helper...)
					if m.set != nil {
						x := m.inSet
						x.Proto = pr.one
						v.rest = append(v.rest, x)
					}
					v.rest = append(v.rest, m.rest...)
					out = append(out, v)
				}
			}
		}
	}
	return out
}

type protoPart struct {
	one   uint8
	terms []ruleset.Term // the protocol, if nothing behind says it
	match []ruleset.Term // ports or types
}

func (b *builder) protoParts(m match, f ruleset.Family) []protoPart {
	var out []protoPart
	if len(m.protos.neg) > 0 && len(m.protos.pos) == 0 {
		return []protoPart{{terms: []ruleset.Term{ruleset.Protocols{Not: true, List: m.protos.neg}}}}
	}
	if m.icmp.set {
		var plain, coded []ruleset.ICMPType
		for _, t := range m.icmp.of(f) {
			if t.Code < 0 {
				plain = append(plain, t)
			} else {
				coded = append(coded, t)
			}
		}
		for _, l := range [][]ruleset.ICMPType{plain, coded} {
			if len(l) > 0 {
				out = append(out, protoPart{one: protoICMP, match: []ruleset.Term{ruleset.ICMP{Family: f, List: l}}})
			}
		}
		return out
	}
	list := slices.Clone(m.protos.pos)
	// ICMP is another protocol in IPv6.
	for i, p := range list {
		if p == protoICMP && f == ruleset.IPv6 {
			list[i] = protoICMPv6
		} else if p == protoICMPv6 && f == ruleset.IPv4 {
			list[i] = protoICMP
		}
	}
	if f == 0 && slices.Contains(list, protoICMP) && !slices.Contains(list, protoICMPv6) {
		list = append(list, protoICMPv6)
	}
	slices.Sort(list)
	list = slices.Compact(list)
	setPorts := m.set != nil && slices.ContainsFunc(m.inSet.Fields, func(f ruleset.Field) bool { return f == ruleset.SrcPort || f == ruleset.DestPort })
	if m.sport.empty() && m.dport.empty() && !setPorts {
		p := protoPart{}
		if len(list) > 0 {
			p.terms = append(p.terms, ruleset.Protocols{List: list})
		}
		if len(list) == 1 {
			p.one = list[0]
		}
		return []protoPart{p}
	}
	for _, n := range list {
		p := protoPart{one: n}
		if setPorts && m.sport.empty() && m.dport.empty() {
			p.terms = append(p.terms, ruleset.Protocols{List: []uint8{n}})
		}
		for _, x := range []struct {
			ports
			dest bool
		}{{m.sport, false}, {m.dport, true}} {
			if len(x.pos) > 0 {
				p.match = append(p.match, ruleset.Ports{Proto: n, Dest: x.dest, List: x.pos})
			}
			if len(x.neg) > 0 {
				p.match = append(p.match, ruleset.Ports{Proto: n, Dest: x.dest, Not: true, List: x.neg})
			}
		}
		out = append(out, p)
	}
	return out
}

// label is the comment of a section's rules.
func label(r *reader) string {
	if n := r.s.String("name", r.s.String("_name", "")); n != "" {
		return n
	}
	return r.name
}

// deviceOption reads device and direction of a rule.
func (b *builder) deviceOption(r *reader) (in, out string) {
	d := r.str("device", "")
	dir := r.one("direction", "in", "in", "ingress", "out", "egress")
	if d == "" {
		return "", ""
	}
	if w, ok := strings.CutSuffix(d, "+"); ok {
		d = w + "*"
	}
	if !validDevice(d) {
		r.fault("device", "expected the name of a device")
		return "", ""
	}
	if dir == "out" || dir == "egress" {
		return "", d
	}
	return d, ""
}

func (b *builder) rule(r *reader) {
	src, srcAny, ok1 := b.zoneName(r, "src")
	dest, destAny, ok2 := b.zoneName(r, "dest")
	m := b.matchOptions(r, "tcp udp", "src_ip", "src_port", "dest_ip", "dest_port")
	target := r.one("target", "drop", "accept", "reject", "drop", "notrack", "mark", "dscp", "helper")
	in, out := b.deviceOption(r)
	setMark, maskOf, _, hasMark := r.mark("set_mark")
	xmark, xmask, _, hasX := r.mark("set_xmark")
	setDSCP, _, hasDSCP := r.dscp("set_dscp")
	dscp, dscpNot, matchDSCP := r.dscp("dscp")
	setHelper := r.str("set_helper", "")
	if !ok1 || !ok2 {
		return
	}
	name := label(r)
	b.limits(r, &m, name)
	for _, z := range []*zone{src, dest} {
		if z != nil && z.family != 0 {
			if m.family != 0 && m.family != z.family {
				r.fault("family", "zone "+z.name+" is of the other family")
			}
			m.family = z.family
		}
	}
	var action []ruleset.Term
	chain := ""
	var iif, oif *zone // zones whose devices the rule itself has to match
	split := matchDSCP
	switch target {
	case "accept", "reject", "drop":
		switch {
		case src != nil && (dest != nil || destAny):
			chain = "forward_" + src.name
		case srcAny && (dest != nil || destAny):
			chain = "forward"
		case src != nil:
			chain = "input_" + src.name
		case srcAny:
			chain = "input"
		case dest != nil:
			chain = "output_" + dest.name
		default:
			chain = "output"
		}
		action = []ruleset.Term{verdict(target)}
		if dest != nil && (src != nil || srcAny) && out == "" {
			action = []ruleset.Term{b.toZone(target, dest)}
		}
	case "mark", "dscp":
		switch {
		case srcAny && destAny || src != nil && dest != nil:
			chain, iif, oif = "mangle_forward", src, dest
		case srcAny && dest != nil:
			chain, oif = "mangle_postrouting", dest
		case src != nil && destAny:
			chain, iif = "mangle_prerouting", src
		case src != nil || srcAny:
			chain, iif = "mangle_input", src
		default:
			chain, oif = "mangle_output", dest
		}
		switch {
		case target == "dscp" && !hasDSCP:
			r.fault("set_dscp", "missing: expected a code point")
		case target == "mark" && !hasMark && !hasX:
			r.fault("set_mark", "missing: expected a mark, set_mark or set_xmark")
		case target == "dscp":
			split = true
		case hasX:
			action = []ruleset.Term{ruleset.SetMark{Value: xmark, Mask: xmask}}
		default:
			action = []ruleset.Term{ruleset.SetMark{Value: setMark, Mask: maskOf | setMark}}
		}
	case "notrack":
		if src == nil {
			r.fault("src", "target NOTRACK needs a zone as src")
		} else {
			chain, action = "notrack_"+src.name, []ruleset.Term{ruleset.NoTrack{}}
		}
	case "helper":
		h, ok := helperOf(setHelper)
		switch {
		case src == nil:
			r.fault("src", "target HELPER needs a zone as src")
		case !ok:
			r.fault("set_helper", "expected a conntrack helper of the kernel such as ftp")
		default:
			chain, action = "helper_"+src.name, []ruleset.Term{ruleset.SetHelper(h.Name)}
			b.useHelper(h)
			m.protos = protos{pos: []uint8{h.Proto}}
		}
	}
	if r.bad {
		return
	}
	for _, v := range b.variants(r, m, split) {
		act := action
		if target == "dscp" {
			act = []ruleset.Term{ruleset.SetDSCP{Family: v.family, Value: setDSCP}}
		}
		front := [][]ruleset.Term{nil}
		if in != "" {
			front = [][]ruleset.Term{{ruleset.Device{Name: in}}}
		} else if iif != nil {
			front = b.zoneTerms(iif, false, v.family)
		}
		back := [][]ruleset.Term{nil}
		if out != "" {
			back = [][]ruleset.Term{{ruleset.Device{Out: true, Name: out}}}
		} else if oif != nil {
			back = b.zoneTerms(oif, true, v.family)
		}
		for _, f := range front {
			for _, o := range back {
				t := slices.Concat(v.terms, f, o, v.rest)
				if matchDSCP {
					t = append(t, ruleset.DSCP{Family: v.family, Not: dscpNot, Value: dscp})
				}
				if m.counter {
					t = append(t, ruleset.Counter{})
				}
				b.add(chain, r.name, name, append(t, act...)...)
			}
		}
	}
}

// zoneTerms matches packets from or to a zone.
func (b *builder) zoneTerms(z *zone, out bool, f ruleset.Family) [][]ruleset.Term {
	var all [][]ruleset.Term
	for _, m := range b.matchers(z) {
		if f != 0 && m.family != 0 && m.family != f {
			continue
		}
		if f != 0 {
			m.family = 0 // said already
		}
		all = append(all, m.terms(out))
	}
	return all
}

func (b *builder) useHelper(h ruleset.Helper) {
	if !slices.Contains(b.rs.Helpers, h) {
		b.rs.Helpers = append(b.rs.Helpers, h)
	}
}

func (b *builder) redirect(r *reader) {
	def := "dnat"
	if r.str("src", "") == "" && r.str("dest", "") != "" && r.has("src_dip") {
		def = "snat"
	}
	if r.one("target", def, "dnat", "snat") == "snat" {
		b.snatRedirect(r)
	} else {
		b.portForward(r)
	}
}

// redirectFamily settles the family of a redirect: LEDE takes one that says
// nothing and has no address for IPv4.
func redirectFamily(r *reader, m *match, to ruleset.AddrRange, extra ...addrs) bool {
	has4, has6 := false, false
	see := func(a netip.Addr) {
		if a.Is4() {
			has4 = true
		} else {
			has6 = true
		}
	}
	if to.From.IsValid() {
		see(to.From)
	}
	for _, a := range append(extra, m.src, m.dst) {
		for _, x := range a.pos {
			see(x.From)
		}
		for _, x := range a.mask {
			see(x.addr)
		}
	}
	switch {
	case m.family == 0 && to.From.IsValid() && to.From.Is4(), m.family == 0 && !has6 && (has4 || !r.has("family")):
		m.family = ruleset.IPv4
	case m.family == 0 && to.From.IsValid():
		m.family = ruleset.IPv6
	}
	if to.From.IsValid() && !is4(m.family, to.From) {
		r.fault("family", "the address to rewrite to is of the other family")
		return false
	}
	return true
}

// portForward is a section redirect with target DNAT.
func (b *builder) portForward(r *reader) {
	src, _, ok1 := b.zoneName(r, "src")
	dest, _, ok2 := b.zoneName(r, "dest")
	m := b.matchOptions(r, "tcp udp", "src_ip", "src_port", "src_dip", "src_dport")
	to, hasTo := r.address("dest_ip")
	toPort := r.port("dest_port")
	reflect := r.boolean("reflection", true)
	reflectSrc := r.one("reflection_src", "internal", "internal", "external")
	reflectZones := r.list("reflection_zone")
	if !ok1 || !ok2 {
		return
	}
	if src == nil {
		r.fault("src", "target DNAT needs a zone as src")
	}
	name := label(r)
	b.limits(r, &m, name)
	if toPort.From != 0 && slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return !hasPorts(p) }) || toPort.From != 0 && len(m.protos.pos) == 0 {
		r.fault("dest_port", "expected proto tcp or udp with a port")
	}
	if r.bad || !redirectFamily(r, &m, to) {
		return
	}
	if toPort.From == 0 && len(m.dport.pos) == 1 && len(m.dport.neg) == 0 && m.dport.pos[0].From == m.dport.pos[0].To {
		toPort = m.dport.pos[0]
	}
	if dest == nil && hasTo {
		dest = b.zoneOf(to.From)
	}
	action := func(f ruleset.Family) []ruleset.Term {
		if !hasTo {
			return []ruleset.Term{ruleset.Redirect{Port: toPort}}
		}
		return []ruleset.Term{ruleset.NAT{Family: f, Addr: to, Port: toPort}}
	}
	src.dnat = true
	for _, v := range b.variants(r, m, false) {
		t := slices.Concat(v.terms, v.rest)
		if m.counter {
			t = append(t, ruleset.Counter{})
		}
		b.add("dstnat_"+src.name, r.name, name, append(t, action(v.family)...)...)
	}
	if !reflect || !hasTo || dest == nil || to.From != to.To {
		return
	}
	if len(reflectZones) == 0 {
		reflectZones = []string{dest.name}
	}
	for _, n := range reflectZones {
		z := b.findZone(n)
		if z == nil {
			r.warn("reflection_zone", "there is no zone "+strconv.Quote(n))
			continue
		}
		b.reflection(r, m, src, dest, z, to, toPort, reflectSrc == "external", name+" (reflection)")
	}
}

// zoneOf finds the zone whose network has an address.
func (b *builder) zoneOf(a netip.Addr) *zone {
	for _, z := range b.zones {
		for _, n := range z.networks {
			if net := b.in.Networks[n]; net != nil && slices.ContainsFunc(net.Addrs, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
				return z
			}
		}
	}
	return nil
}

// addresses are those of a zone's networks in one family.
func (b *builder) addresses(z *zone, f ruleset.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range z.networks {
		if net := b.in.Networks[n]; net != nil {
			out = append(out, net.of(f)...)
		}
	}
	return out
}

// reflection makes a port forward work for hosts inside of it that use the outer
// address: LEDE's NAT loopback.
func (b *builder) reflection(r *reader, m match, src, dest, zone *zone, to ruleset.AddrRange, port ruleset.PortRange, external bool, name string) {
	f := ruleset.IPv6
	if to.From.Is4() {
		f = ruleset.IPv4
	}
	outer := m.dst
	if outer.empty() {
		for _, p := range b.addresses(src, f) {
			outer.pos = append(outer.pos, ruleset.AddrRange{From: p.Addr(), To: p.Addr()})
		}
	}
	if len(outer.pos) == 0 {
		return // no outer address yet: comes with the interface
	}
	var inner addrs
	var snat netip.Addr
	for _, p := range b.addresses(zone, f) {
		inner.pos = append(inner.pos, ruleset.RangeOf(p))
		if p.Masked().Contains(to.From) || !snat.IsValid() {
			snat = p.Addr()
		}
	}
	if len(inner.pos) == 0 {
		return
	}
	if external {
		snat = outer.pos[0].From
	} else {
		for _, p := range b.addresses(dest, f) {
			if p.Masked().Contains(to.From) {
				snat = p.Addr()
			}
		}
	}
	// Of the matches those stay that say what is wanted, not by whom.
	d := match{family: f, protos: m.protos, src: inner, dst: outer, dport: m.dport}
	zone.dnat = true
	for _, v := range b.variants(r, d, false) {
		b.add("dstnat_"+zone.name, r.name, name, slices.Concat(v.terms, v.rest, []ruleset.Term{ruleset.NAT{Family: f, Addr: to, Port: port}})...)
	}
	s := match{family: f, protos: m.protos, src: inner, dst: addrs{pos: []ruleset.AddrRange{to}}}
	if port.From != 0 {
		s.dport.pos = []ruleset.PortRange{port}
	} else {
		s.dport = m.dport
	}
	dest.snat = true
	for _, v := range b.variants(r, s, false) {
		b.add("srcnat_"+dest.name, r.name, name, slices.Concat(v.terms, v.rest, []ruleset.Term{ruleset.NAT{Source: true, Family: f, Addr: ruleset.AddrRange{From: snat, To: snat}}})...)
	}
}

// snatRedirect is a section redirect with target SNAT.
func (b *builder) snatRedirect(r *reader) {
	dest, destAny, ok := b.zoneName(r, "dest")
	r.str("src", "")
	m := b.matchOptions(r, "tcp udp", "src_ip", "src_port", "dest_ip", "dest_port")
	to, hasTo := r.address("src_dip")
	port := r.port("src_dport")
	if !ok {
		return
	}
	if dest == nil && !destAny {
		r.fault("dest", "target SNAT needs a zone as dest")
	}
	if !hasTo {
		r.fault("src_dip", "missing: expected the source address to rewrite to")
	}
	b.limits(r, &m, label(r))
	if r.bad || !redirectFamily(r, &m, to) {
		return
	}
	b.sourceNAT(r, m, dest, ruleset.NAT{Source: true, Family: m.family, Addr: to, Port: port})
}

func (b *builder) sourceNAT(r *reader, m match, dest *zone, action ruleset.Term, front ...ruleset.Term) {
	chain := "srcnat"
	if dest != nil {
		chain, dest.snat = "srcnat_"+dest.name, true
	}
	for _, v := range b.variants(r, m, false) {
		t := slices.Concat(v.terms, front, v.rest)
		if m.counter {
			t = append(t, ruleset.Counter{})
		}
		b.add(chain, r.name, label(r), append(t, action)...)
	}
}

// nat is a section nat: source NAT by the zone that traffic leaves by.
func (b *builder) nat(r *reader) {
	out, _, ok := b.zoneName(r, "src")
	m := b.matchOptions(r, "any", "src_ip", "src_port", "dest_ip", "dest_port")
	to, hasTo := r.address("snat_ip")
	port := r.port("snat_port")
	target := r.one("target", "masquerade", "masquerade", "snat", "accept")
	dev := r.str("device", "")
	if !ok {
		return
	}
	b.limits(r, &m, label(r))
	if port.From != 0 && (len(m.protos.pos) == 0 || slices.ContainsFunc(m.protos.pos, func(p uint8) bool { return !hasPorts(p) })) {
		r.fault("snat_port", "expected proto tcp or udp with a port")
	}
	if target == "snat" && !hasTo && port.From == 0 {
		r.fault("snat_ip", "missing: expected the source address to rewrite to")
	}
	var front []ruleset.Term
	if dev != "" {
		if !validDevice(dev) {
			r.fault("device", "expected the name of a device")
		}
		front = append(front, ruleset.Device{Out: true, Name: dev})
	}
	if r.bad || !redirectFamily(r, &m, to) {
		return
	}
	var action ruleset.Term
	switch target {
	case "accept":
		action = ruleset.Accept
	case "masquerade":
		action = ruleset.Masquerade{Port: port}
	default:
		if m.family == 0 {
			m.family = ruleset.IPv4
		}
		action = ruleset.NAT{Source: true, Family: m.family, Addr: to, Port: port}
	}
	b.sourceNAT(r, m, out, action, front...)
}

func (b *builder) ipset(r *reader) {
	s := &ruleset.Set{Name: r.str("name", ""), Section: r.name, Comment: r.str("comment", "")}
	if s.Name == "" && !r.s.Anonymous {
		s.Name = r.s.Name
	}
	if !chainName(s.Name) || s.Name[0] >= '0' && s.Name[0] <= '9' {
		r.fault("name", "expected a name of letters, digits and _ that starts with a letter")
	}
	if slices.ContainsFunc(b.rs.Sets, func(x *ruleset.Set) bool { return x.Name == s.Name }) {
		r.fault("name", "there is a set of that name already")
	}
	s.Family = r.family()
	if s.Family == 0 {
		s.Family = ruleset.IPv4
	}
	s.Counter = r.boolean("counters", false)
	s.Size = uint32(r.number("maxelem", 0, 0, 1<<30))
	if r.has("timeout") {
		s.Expires = true
		s.Timeout = time.Duration(r.number("timeout", 0, 0, 1<<30)) * time.Second
	}
	for _, o := range []string{"storage", "hashsize", "netmask", "portrange", "iprange", "reload_set", "external"} {
		r.seen[o] = true // of the kernel's older ipsets, or of no matter here
	}
	matches := r.list("match")
	if len(matches) == 0 {
		matches = []string{"src_ip"}
	}
	for _, w := range matches {
		dir, kind, ok := strings.Cut(w, "_")
		if !ok {
			dir, kind = "src", w
		}
		dest := dir == "dest" || dir == "dst"
		if !dest && dir != "src" {
			r.fault("match", "expected words such as src_ip, dest_net, src_mac or dest_port, not "+strconv.Quote(w))
			continue
		}
		switch kind {
		case "ip", "net":
			f := ruleset.SrcIP
			if dest {
				f = ruleset.DestIP
			}
			s.Fields = append(s.Fields, f)
			s.Interval = s.Interval || kind == "net"
		case "port":
			f := ruleset.SrcPort
			if dest {
				f = ruleset.DestPort
			}
			s.Fields = append(s.Fields, f)
		case "mac":
			s.Fields = append(s.Fields, ruleset.SrcMAC)
		default:
			r.fault("match", "expected words such as src_ip, dest_net, src_mac or dest_port, not "+strconv.Quote(w))
		}
	}
	if len(s.Fields) > 5 {
		r.fault("match", "expected five fields at most")
	}
	r.seen["entry"] = true
	entries := []string{}
	if o := r.s.Option("entry"); o != nil {
		entries = append(entries, o.Values...)
	}
	if path := r.str("loadfile", ""); path != "" && b.in.Read != nil {
		text, err := b.in.Read(path)
		if err != nil {
			r.warn("loadfile", err.Error())
		}
		for line := range strings.Lines(string(text)) {
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line != "" {
				entries = append(entries, line)
			}
		}
	}
	// A range in the entries makes it a set of ranges, as on LEDE.
	if !s.Interval && slices.ContainsFunc(entries, func(e string) bool { return strings.ContainsAny(e, "/-") }) {
		s.Interval = true
	}
	if r.bad {
		return
	}
	for _, e := range entries {
		x, err := s.Parse(e)
		if err != nil {
			r.warn("entry", "entry left out: "+err.Error())
			continue
		}
		s.Elements = append(s.Elements, x)
	}
	b.rs.Sets = append(b.rs.Sets, s)
}

// Folders of files that are included without being configured.
const (
	userIncludes = "/etc/nftables.d/*.nft"
	autoIncludes = "/usr/share/nftables.d/"
)

func (b *builder) includes() {
	if b.in.Files != nil {
		for _, f := range b.in.Files(userIncludes) {
			b.rs.Head = append(b.rs.Head, ruleset.Include{Path: f})
		}
		if b.autoInc {
			for _, d := range []struct{ dir, position string }{
				{"ruleset-pre", "ruleset-prepend"}, {"ruleset-post", "ruleset-append"}, {"table-pre", "table-prepend"}, {"table-post", "table-append"},
				{"chain-pre/*", "chain-prepend"}, {"chain-post/*", "chain-append"},
			} {
				for _, f := range b.in.Files(autoIncludes + d.dir + "/*.nft") {
					parts := strings.Split(f, "/")
					b.include(f, d.position, parts[len(parts)-2])
				}
			}
		}
	}
	b.each("include", func(r *reader) {
		path := r.str("path", "")
		typ := r.one("type", "script", "script", "nftables", "restore")
		position := strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(r.str("position", "table-append")), "-pre", "-prepend"), "-prependpend", "-prepend")
		position = strings.ReplaceAll(position, "-post", "-append")
		chain := r.str("chain", "")
		compatible := r.boolean("fw4_compatible", typ == "nftables")
		r.boolean("reload", false)
		r.str("family", "")
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\"\\\n") {
			r.fault("path", "expected the absolute path of a file")
		}
		if typ == "restore" {
			r.fault("type", "iptables-restore files cannot be loaded: expected nftables or script")
		}
		if r.bad {
			return
		}
		if typ == "script" {
			if !compatible {
				r.warn("", "a script made for iptables is not run: set fw4_compatible to 1 if it works with nftables")
				return
			}
			b.out.Scripts = append(b.out.Scripts, path)
			return
		}
		if !b.include(path, position, chain) {
			r.fault("position", "expected ruleset-, table- or chain-, and -prepend or -append; chains with option chain")
		}
	})
}

// include places text of other people.
func (b *builder) include(path, position, chain string) bool {
	i := ruleset.Include{Path: path}
	switch position {
	case "ruleset-prepend":
		b.rs.Before = append(b.rs.Before, i)
	case "ruleset-append":
		b.rs.After = append(b.rs.After, i)
	case "table-prepend":
		b.rs.Head = append(b.rs.Head, i)
	case "table-append":
		b.rs.Tail = append(b.rs.Tail, i)
	case "chain-prepend":
		b.heads[chain] = append(b.heads[chain], i)
		return chain != ""
	case "chain-append":
		b.tails[chain] = append(b.tails[chain], i)
		return chain != ""
	default:
		return false
	}
	return true
}
