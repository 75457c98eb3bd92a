package topology

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"weft/init/uci"
)

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// portForm is a UCI section name, and short enough for a device.
var portForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,11}$`)

// check fills in defaults, ties the parts together and finds what does not fit.
func (p *parser) check(t *Topology) {
	if t.Title == "" {
		p.fault("title", "no title: say in one line what the topology shows")
	}
	p.backends("backends", t.Backends)
	if len(t.Nodes) == 0 {
		p.fault("", "no [[node]]")
	}
	names := map[string]string{}
	unique := func(key, what, name string) {
		if p.bad[key] {
			return
		}
		if !nameForm.MatchString(name) {
			p.fault(key, "%s name %q: want a small letter, then small letters, digits and -", what, name)
			return
		}
		if was, taken := names[name]; taken {
			p.fault(key, "%s %q: the name is taken by the %s in line %d", what, name, strings.TrimRight(was, "]0123456789["), p.line(was))
			return
		}
		names[name] = key[:strings.LastIndexByte(key, '.')]
	}
	for i, n := range t.Nodes {
		key := fmt.Sprintf("node[%d].", i)
		unique(key+"name", "node", n.Name)
		p.node(key, n)
	}
	for i, l := range t.Links {
		key := fmt.Sprintf("link[%d].", i)
		unique(key+"name", "link", l.Name)
		p.link(key, t, l)
	}
	p.addresses(t)
	for i, c := range t.Checks {
		key := fmt.Sprintf("check[%d].", i)
		unique(key+"name", "check", c.Name)
	}
	for i, c := range t.Checks {
		p.one(fmt.Sprintf("check[%d].", i), t, c)
	}
	for i, e := range t.Events {
		p.event(fmt.Sprintf("event[%d].", i), t, e)
	}
}

func (p *parser) backends(key string, list []Backend) {
	for i, b := range list {
		if b != QEMU && b != Netns && b != Mixed {
			p.fault(fmt.Sprintf("%s[%d]", key, i), "%s: %q: want qemu, netns or mixed", key, b)
		}
	}
}

func (p *parser) node(key string, n *Node) {
	switch n.Kind {
	case Image, Host, Plain:
	case "":
		p.fault(key+"kind", "node %s has no kind: want image, host or plain", n.Name)
	default:
		p.fault(key+"kind", "kind %q: want image, host or plain", n.Kind)
	}
	if n.Kind != Image {
		for k, v := range map[string]string{"board": n.Board, "role": n.Role} {
			if v != "" {
				p.fault(key+k, "%s is for nodes of the kind image", k)
			}
		}
	}
	if n.Board == "" {
		n.Board = "x86-64"
	}
	if n.Role == "" && n.Kind == Image {
		n.Role = "gateway"
	}
	if n.Services == nil && n.Kind == Image && (n.Role == "gateway" || n.Role == "exit") {
		n.Services = []string{"mptcpproxy"}
	}
	switch n.Backend {
	case QEMU, Netns:
	case "":
		n.Backend = Netns
		if n.Kind == Image {
			n.Backend = QEMU
		}
	default:
		p.fault(key+"backend", "backend %q: want qemu or netns", n.Backend)
	}
	if n.Memory == 0 {
		n.Memory = 160
	} else if n.Memory < 96 || n.Memory > 1<<14 {
		p.fault(key+"memory", "memory %d: want 96 to 16384 MiB", n.Memory)
	}
	if n.CPUs == 0 {
		n.CPUs = 1
	} else if n.CPUs > 8 {
		p.fault(key+"cpus", "cpus %d: want 1 to 8", n.CPUs)
	}
	if len(n.Gateway) > 2 || len(n.Gateway) == 2 && n.Gateway[0].Is4() == n.Gateway[1].Is4() {
		p.fault(key+"gateway", "gateway: want at most one address of each family")
	}
	for name, v := range n.Sysctl {
		k := key + "sysctl." + name
		switch v := v.(type) {
		case string, int64:
		default:
			p.fault(k, "sysctl %s = %v: want a string or a whole number", name, v)
		}
		if !regexp.MustCompile(`^[a-z0-9_]+([./][A-Za-z0-9_-]+)+$`).MatchString(name) {
			p.fault(k, "sysctl %q: want a name as net.ipv4.ip_forward", name)
		}
	}
	for name, v := range n.UCI {
		k := key + "uci." + name
		parts := strings.Split(name, ".")
		if len(parts) < 2 || len(parts) > 3 || !uci.ValidPackage(parts[0]) || !uci.ValidName(parts[1]) || len(parts) == 3 && !uci.ValidName(parts[2]) {
			p.fault(k, "uci %q: want package.section or package.section.option, names of letters, digits and _", name)
			continue
		}
		switch v := v.(type) {
		case string:
			if len(parts) == 2 && !uci.ValidType(v) {
				p.fault(k, "uci %s = %q: the value of a section is its type, a word", name, v)
			} else if !uci.ValidValue(v) {
				p.fault(k, "uci %s: the value holds control characters", name)
			}
		case []any:
			for _, item := range v {
				if s, ok := item.(string); !ok || len(parts) == 2 || !uci.ValidValue(s) {
					p.fault(k, "uci %s: want a list of strings, for an option", name)
					break
				}
			}
		default:
			p.fault(k, "uci %s = %v: want a string or a list of strings (UCI knows no other types)", name, v)
		}
	}
}

func (p *parser) link(key string, t *Topology, l *Link) {
	for i, end := range []struct {
		key, value string
		addrs      []netip.Prefix
	}{{"a", l.A, l.AAddr}, {"b", l.B, l.BAddr}} {
		node, port, ok := strings.Cut(end.value, ":")
		if !ok || !portForm.MatchString(port) {
			if !p.bad[key+end.key] {
				p.fault(key+end.key, "link %s: %s = %q: want node:port, the port of at most 12 small letters, digits and _", l.Name, end.key, end.value)
			}
			continue
		}
		n := t.Node(node)
		if n == nil {
			known := []string{}
			for _, n := range t.Nodes {
				known = append(known, n.Name)
			}
			p.fault(key+end.key, "link %s: no node %q%s", l.Name, node, hintOf(node, known))
			continue
		}
		for _, other := range n.Ports {
			if other.Name == port {
				p.fault(key+end.key, "link %s: port %s of %s has link %s already", l.Name, port, node, other.Link.Name)
			}
		}
		l.Ends[i] = &Port{Node: n, Link: l, Name: port, Device: fmt.Sprintf("eth%d", len(n.Ports)), Addrs: end.addrs}
		n.Ports = append(n.Ports, l.Ends[i])
	}
	if l.Ends[0] != nil && l.Ends[1] != nil && l.Ends[0].Node == l.Ends[1].Node {
		p.fault(key+"b", "link %s joins node %s with itself", l.Name, l.Ends[0].Node.Name)
	}
	if l.MTU == 0 {
		l.MTU = 1500
	} else if l.MTU < 576 || l.MTU > 9000 {
		p.fault(key+"mtu", "mtu %d: want 576 to 9000", l.MTU)
	}
	if l.Queue == 0 {
		l.Queue = 50 * time.Millisecond
	}
	if l.Burst == 0 {
		l.Burst = 16 << 10
	} else if int(l.Burst) < l.MTU+frameHeader {
		p.fault(key+"burst", "burst of %d bytes is less than one frame of %d: nothing would pass", l.Burst, l.MTU+frameHeader)
	}
	if l.BackRate != 0 && l.Rate == 0 {
		p.fault(key+"back_rate", "back_rate without rate")
	}
	if l.Jitter > l.Delay {
		p.fault(key+"jitter", "jitter %s is more than the delay %s", l.Jitter, l.Delay)
	}
	if l.WiFi && slices.ContainsFunc(t.Backends, func(b Backend) bool { return b == Netns }) || l.WiFi && len(t.Backends) == 0 {
		p.fault(key+"wifi", `wifi links run in guests only: write backends = ["qemu"] at the top`)
	}
}

func hintOf(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// addresses finds addresses given twice and links whose ends cannot talk.
func (p *parser) addresses(t *Topology) {
	owner := map[netip.Addr]string{}
	for i, l := range t.Links {
		for e, side := range []string{"a_addr", "b_addr"} {
			end := l.Ends[e]
			if end == nil {
				continue
			}
			for j, a := range end.Addrs {
				key := fmt.Sprintf("link[%d].%s[%d]", i, side, j)
				if was, ok := owner[a.Addr()]; ok {
					p.fault(fmt.Sprintf("link[%d].%s", i, side), "address %s of %s is %s's already", a.Addr(), end.Node.Name, was)
				}
				owner[a.Addr()] = end.Node.Name
				if a.Addr().IsMulticast() || a.Addr().IsUnspecified() || a.Addr().IsLoopback() || a.Addr() == a.Masked().Addr() && a.Bits() < a.Addr().BitLen()-1 {
					p.fault(strings.TrimSuffix(key, fmt.Sprintf("[%d]", j)), "address %s cannot be a node's", a)
				}
				if o := end.Other(); o != nil && e == 0 {
					if !slices.ContainsFunc(o.Addrs, func(b netip.Prefix) bool { return b.Masked() == a.Masked() }) && len(o.Addrs) > 0 &&
						slices.ContainsFunc(o.Addrs, func(b netip.Prefix) bool { return b.Addr().Is4() == a.Addr().Is4() }) {
						p.fault(fmt.Sprintf("link[%d].%s", i, side), "link %s: %s has no address in %s, the network of %s", l.Name, o.Node.Name, a.Masked(), a.Addr())
					}
				}
			}
		}
	}
	for i, n := range t.Nodes {
		reach := func(a netip.Addr) bool {
			return slices.ContainsFunc(n.Ports, func(port *Port) bool {
				return slices.ContainsFunc(port.Addrs, func(x netip.Prefix) bool { return x.Masked().Contains(a) })
			})
		}
		for _, g := range n.Gateway {
			if !reach(g) {
				p.fault(fmt.Sprintf("node[%d].gateway", i), "gateway %s is in no network of %s", g, n.Name)
			}
		}
		for _, r := range n.Routes {
			if !reach(r.Via) {
				p.fault(fmt.Sprintf("node[%d].route", i), "route %s: %s is in no network of %s", r, r.Via, n.Name)
			}
		}
	}
}

func (p *parser) event(key string, t *Topology, e *Event) {
	if (e.Link == "") == (e.Node == "") {
		p.fault(key+"link", "an event is about a link or a node: give one of them")
		return
	}
	ofLink := []Action{Down, Up, Black, Pass, Degrade, Restore, Strip, Unstrip}
	ofNode := []Action{Kill, Restart}
	allowed, what := ofLink, "link"
	if e.Node != "" {
		allowed, what = ofNode, "node"
		if t.Node(e.Node) == nil {
			p.fault(key+"node", "no node %q", e.Node)
		}
	} else if t.Link(e.Link) == nil {
		p.fault(key+"link", "no link %q", e.Link)
	}
	if !slices.Contains(allowed, e.Do) {
		words := []string{}
		for _, a := range allowed {
			words = append(words, string(a))
		}
		p.fault(key+"do", "do = %q: a %s can be %s", e.Do, what, strings.Join(words, ", "))
	}
	figures := e.Rate != 0 || e.Delay != 0 || e.Jitter != 0 || e.Loss != 0
	if (e.Do == Degrade) != figures && slices.Contains(allowed, e.Do) {
		p.fault(key+"do", "rate, delay, jitter and loss belong to degrade, which needs at least one of them")
	}
	if l := t.Link(e.Link); l != nil && e.Do == Degrade && e.Rate != 0 && l.Rate == 0 {
		p.fault(key+"rate", "link %s has no rate that could be degraded", l.Name)
	}
	if e.During == "" && len(t.Checks) > 0 {
		e.During = t.Checks[0].Name
	}
	c := t.Check(e.During)
	switch {
	case c == nil:
		p.fault(key+"during", "no check %q to happen during", e.During)
	case c.Duration != 0 && e.At >= c.Duration:
		p.fault(key+"at", "at %s is after the end of check %s, which lasts %s", e.At, c.Name, c.Duration)
	}
}

// needs lists what a type of check must be given, and what it may be given beyond name, type, during, at and backends.
var needs = map[CheckType]struct{ must, may string }{
	IPerf:    {"from to", "duration family reverse bidir parallel over carrier limit min_ratio netns_min_ratio min_rate max_stall recover"},
	Ping:     {"from to", "duration family count interval size max_loss max_p50 max_p99"},
	TCP:      {"from to", "family cases"},
	UDP:      {"from to rate", "duration family reverse bidir size min_delivered max_p50 max_p99 max_stall"},
	Proto:    {"from to rate protocol", "duration family reverse size min_delivered max_p50 max_p99"},
	SCTP:     {"from to", "family size"},
	Flows:    {"from to count", "duration family size reverse over carrier limit min_ratio netns_min_ratio min_rate max_stall"},
	NoMPTCP:  {"nodes", ""},
	Captured: {"link", "protocol mptcp min max"},
	Run:      {"node command", "expect"},
}

func (p *parser) one(key string, t *Topology, c *Check) {
	need, ok := needs[c.Type]
	if !ok {
		known := []string{}
		for k := range needs {
			known = append(known, string(k))
		}
		slices.Sort(known)
		p.fault(key+"type", "check %s: type %q: want one of %s", c.Name, c.Type, strings.Join(known, ", "))
		return
	}
	given := map[string]bool{}
	for k := range p.lines {
		if rest, ok := strings.CutPrefix(k, key); ok {
			given[rest] = true
		}
	}
	must := strings.Fields(need.must)
	for _, k := range must {
		if !given[k] {
			p.fault(key+"type", "check %s: a check of type %s needs %s", c.Name, c.Type, k)
		}
	}
	may := append(append(strings.Fields(need.may), must...), "name", "type", "during", "at", "backends")
	for k := range given {
		if !slices.Contains(may, k) && !p.bad[key+k] {
			p.fault(key+k, "check %s: %s means nothing to a check of type %s", c.Name, k, c.Type)
		}
	}
	p.backends(key+"backends", c.Backends)
	for _, n := range append([]string{c.From, c.To, c.Node}, c.Nodes...) {
		if n != "" && t.Node(n) == nil {
			p.fault(key+"from", "check %s: no node %q", c.Name, n)
		}
	}
	if c.From != "" && c.From == c.To {
		p.fault(key+"to", "check %s: from and to are the same node", c.Name)
	}
	for _, l := range append([]string{c.Link}, c.Over...) {
		if l == "" {
			continue
		}
		switch link := t.Link(l); {
		case link == nil:
			p.fault(key+"over", "check %s: no link %q", c.Name, l)
		case link.Rate == 0 && l != c.Link && c.Limit == 0:
			p.fault(key+"over", "check %s: link %s has no rate, so there is no limit to compare with", c.Name, l)
		}
	}
	if (c.MinRatio != 0 || c.Recover != 0 || c.NetnsMinRatio != 0) && len(c.Over) == 0 && c.Limit == 0 {
		p.fault(key+"min_ratio", "check %s: min_ratio and recover need over or limit", c.Name)
	}
	for k, v := range map[string]float64{"min_ratio": c.MinRatio, "netns_min_ratio": c.NetnsMinRatio, "min_delivered": c.MinDelivered} {
		if v < 0 || v > 1 {
			p.fault(key+k, "check %s: %s %g: want 0 to 1", c.Name, k, v)
		}
	}
	if c.Carrier != "" && c.Carrier != CarrierMPTCP && c.Carrier != CarrierTCP {
		p.fault(key+"carrier", "check %s: carrier %q: want mptcp or tcp", c.Name, c.Carrier)
	}
	for _, k := range c.Cases {
		if !slices.Contains(TCPCases, k) {
			p.fault(key+"cases", "check %s: no case %q%s; there are %s", c.Name, k, hintOf(k, slices.Clone(TCPCases)), strings.Join(TCPCases, ", "))
		}
	}
	if c.Expect != "" {
		if _, err := regexp.Compile(c.Expect); err != nil {
			p.fault(key+"expect", "check %s: %v", c.Name, err)
		}
	}
	if c.During != "" {
		if o := t.Check(c.During); o == nil || o == c || o.During != "" {
			p.fault(key+"during", "check %s: during %q: want the name of another check that is not itself during one", c.Name, c.During)
		}
	} else if c.At != 0 {
		p.fault(key+"at", "check %s: at without during", c.Name)
	}
	p.defaults(key, t, c)
}

func (p *parser) defaults(key string, t *Topology, c *Check) {
	if c.Duration == 0 && strings.Contains(needs[c.Type].may, "duration") {
		c.Duration = 10 * time.Second
	}
	if c.Parallel == 0 {
		c.Parallel = 1
	}
	if c.Interval == 0 {
		c.Interval = 200 * time.Millisecond
	}
	if c.Count == 0 {
		c.Count = int(c.Duration / max(c.Interval, time.Millisecond))
	}
	if c.Size == 0 {
		c.Size = map[CheckType]int{UDP: 1200, Proto: 1200, Ping: 56, Flows: 64 << 10, SCTP: 1 << 20}[c.Type]
	}
	if c.From == "" || c.To == "" || t.Node(c.From) == nil || t.Node(c.To) == nil {
		return
	}
	both := func(f int) bool {
		_, a := t.Node(c.From).Addr(f)
		_, b := t.Node(c.To).Addr(f)
		return a && b
	}
	switch {
	case c.Family == 0 && both(4):
		c.Family = 4
	case c.Family == 0 && both(6):
		c.Family = 6
	case c.Family == 0:
		p.fault(key+"from", "check %s: %s and %s have no address of one family", c.Name, c.From, c.To)
	case c.Family != 4 && c.Family != 6:
		p.fault(key+"family", "check %s: family %d: want 4 or 6", c.Name, c.Family)
	case !both(c.Family):
		p.fault(key+"family", "check %s: %s and %s do not both have an IPv%d address", c.Name, c.From, c.To, c.Family)
	}
}
