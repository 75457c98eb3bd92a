package firewall

import (
	"strings"
	"testing"

	"weft/init/uci"
	"weft/services/firewall/ruleset"
)

// FuzzBuild feeds any configuration: it may be as wrong as it likes, but what
// comes out is a ruleset with LEDE's base chains, and braces that match.
func FuzzBuild(f *testing.F) {
	for _, a := range archives(&testing.T{}) {
		f.Add(a.file("firewall"), a.file("network"))
	}
	f.Add("config zone\n\toption name x\n\toption device '*'\n\tlist subnet '!::/0'\n", "")
	f.Add("config rule\n\toption src_ip '1.2.3.4/-33 ::1/ff::'\n\toption icmp_type '3/999'\n", "config interface a\n\toption device @a\n")
	f.Fuzz(func(t *testing.T, firewall, network string) {
		fw, err := uci.Parse("firewall", strings.NewReader(firewall), false)
		if err != nil {
			return
		}
		nw, err := uci.Parse("network", strings.NewReader(network), false)
		if err != nil {
			return
		}
		out := Build(Input{Firewall: fw, Networks: configured(nw)})
		for _, c := range []string{"input", "forward", "output", "dstnat", "srcnat", "mangle_forward"} {
			if out.Ruleset.Chain(c) == nil {
				t.Fatalf("no chain %s", c)
			}
		}
		for _, c := range out.Ruleset.Chains {
			for _, r := range c.Rules {
				for _, x := range r.Terms {
					if j, ok := x.(ruleset.Jump); ok && out.Ruleset.Chain(string(j)) == nil {
						t.Fatalf("chain %s jumps to %s, which is not there", c.Name, j)
					}
				}
			}
		}
		_ = out.Ruleset.Text()
		_ = problemsText(out.Problems)
	})
}

// FuzzElement reads elements of a set.
func FuzzElement(f *testing.F) {
	f.Add("10.0.0.0/8 80-90", true)
	f.Add("::1 . 80", false)
	f.Fuzz(func(t *testing.T, text string, v6 bool) {
		s := &ruleset.Set{Family: ruleset.IPv4, Fields: []ruleset.Field{ruleset.SrcIP, ruleset.DestPort}, Interval: true}
		if v6 {
			s.Family = ruleset.IPv6
		}
		if e, err := s.Parse(text); err == nil && len(e.From) != 2 {
			t.Fatalf("%q gave %v", text, e)
		}
	})
}
