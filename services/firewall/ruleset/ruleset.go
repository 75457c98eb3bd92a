// Package ruleset is a packet filter in a form that can be written in two ways:
// as text in nft's syntax (Text) and into the kernel by netlink as one
// transaction (Kernel.Replace). Both come from the same terms, so that what is
// shown is what is loaded; the tests let nft itself compare the two.
//
// It knows the terms that LEDE's firewall uses, no more: a rule is a list of
// matches and statements in nft's order. It does not read nft's text.
package ruleset

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Ruleset is the content of one table of the family inet.
type Ruleset struct {
	Table     string
	Flowtable *Flowtable // nil: none
	Helpers   []Helper
	Sets      []*Set
	Chains    []*Chain

	// Zone is how far local time is ahead of UTC, for hours in the text.
	Zone time.Duration

	// Text of other people, which the kernel form does not have: before and
	// behind the table, and at its start and end.
	Before, After, Head, Tail []Include
}

// Include is text in nft's syntax out of a file.
type Include struct {
	Path string // of the file, for messages and for nft's own include
}

// Flowtable takes established flows past the chains.
type Flowtable struct {
	Name     string
	Devices  []string
	Hardware bool // let the network card do it
}

// Helper is a conntrack helper that rules may assign.
type Helper struct {
	Name  string // of the object, and of the kernel's helper
	Proto uint8  // IP protocol number
}

// Chain is a list of rules. With a hook it is a base chain.
type Chain struct {
	Name     string
	Type     string // filter, nat or route; empty: reached by jumps alone
	Hook     string // prerouting, input, forward, output or postrouting
	Priority string // raw, mangle, dstnat, filter or srcnat
	Policy   string // accept or drop
	Rules    []*Rule

	Head, Tail []Include // text of other people
}

// Rule is a list of terms. Section says where it comes from, such as
// "@rule[3]"; empty for what the firewall itself needs.
type Rule struct {
	Terms   []Term
	Comment string
	Section string
}

// Add appends a rule.
func (c *Chain) Add(section, comment string, terms ...Term) {
	c.Rules = append(c.Rules, &Rule{Terms: terms, Comment: comment, Section: section})
}

// Chain finds a chain by name, nil if there is none.
func (r *Ruleset) Chain(name string) *Chain {
	for _, c := range r.Chains {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Includes lists the files that only nft can load.
func (r *Ruleset) Includes() []string {
	var out []string
	add := func(lists ...[]Include) {
		for _, l := range lists {
			for _, i := range l {
				out = append(out, i.Path)
			}
		}
	}
	add(r.Before, r.Head)
	for _, c := range r.Chains {
		add(c.Head, c.Tail)
	}
	add(r.Tail, r.After)
	return out
}

// maxComment is how long nft lets a comment be.
const maxComment = 128

// comment cuts a comment to what nft takes and quotes no more than it can.
func comment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, s)
	for len(s) >= maxComment {
		_, size := lastRune(s)
		s = s[:len(s)-size]
	}
	return s
}

func lastRune(s string) (rune, int) {
	for i := len(s) - 1; i > 0; i-- {
		if s[i]&0xc0 != 0x80 {
			return rune(s[i]), len(s) - i
		}
	}
	return 0, 1
}

// Text writes the rules in nft's syntax: `nft -f` of it loads the same table,
// in place of one that is there.
func (r *Ruleset) Text() string {
	var b strings.Builder
	w := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	include := func(indent string, list []Include) {
		for _, i := range list {
			w("%sinclude \"%s\"\n", indent, i.Path)
		}
	}
	include("", r.Before)
	w("table inet %s\ndelete table inet %s\n\ntable inet %s {\n", r.Table, r.Table, r.Table)
	if f := r.Flowtable; f != nil {
		w("\tflowtable %s {\n\t\thook ingress priority filter\n\t\tdevices = { %s }\n", f.Name, quoteAll(f.Devices))
		if f.Hardware {
			w("\t\tflags offload\n")
		}
		w("\t}\n\n")
	}
	for _, h := range r.Helpers {
		w("\tct helper %s {\n\t\ttype \"%s\" protocol %s\n\t}\n\n", h.Name, h.Name, protoName(h.Proto))
	}
	for _, s := range r.Sets {
		s.text(w)
	}
	include("\t", r.Head)
	for i, c := range r.Chains {
		if i > 0 {
			w("\n")
		}
		w("\tchain %s {\n", c.Name)
		if c.Hook != "" {
			w("\t\ttype %s hook %s priority %s; policy %s;\n", c.Type, c.Hook, c.Priority, c.Policy)
		}
		include("\t\t", c.Head)
		for _, rule := range c.Rules {
			w("\t\t%s\n", rule.text(r.Zone))
		}
		include("\t\t", c.Tail)
		w("\t}\n")
	}
	include("\t", r.Tail)
	w("}\n")
	include("", r.After)
	return b.String()
}

func (r *Rule) text(zone time.Duration) string {
	var parts []string
	for _, t := range r.Terms {
		if h, ok := t.(Hours); ok {
			h.zone = zone
			t = h
		}
		parts = append(parts, t.text())
	}
	if r.Comment != "" {
		parts = append(parts, "comment \""+comment(r.Comment)+"\"")
	}
	return strings.Join(parts, " ")
}

func quoteAll(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = "\"" + n + "\""
	}
	return strings.Join(q, ", ")
}

// braces writes one value bare, several as a set.
func braces(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return "{ " + strings.Join(values, ", ") + " }"
}

func neq(not bool) string {
	if not {
		return "!= "
	}
	return ""
}

// protoNames are the names that nft knows without /etc/protocols.
var protoNames = [...]struct {
	n    uint8
	name string
}{{1, "icmp"}, {6, "tcp"}, {17, "udp"}, {33, "dccp"}, {50, "esp"}, {51, "ah"}, {58, "ipv6-icmp"}, {108, "comp"}, {132, "sctp"}, {136, "udplite"}}

func protoName(n uint8) string {
	for _, p := range protoNames {
		if p.n == n {
			return p.name
		}
	}
	return strconv.Itoa(int(n))
}
