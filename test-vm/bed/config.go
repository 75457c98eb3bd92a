package bed

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"weft/init/uci"
	"weft/test-vm/topology"
)

// uciFiles are the UCI packages that a node's configuration folder holds, by name: network as the links of the topology
// have it, and what the node's own settings make. A package that the settings name is written from scratch, but for network.
// A topology measures its paths, so that the firewall lets everything through and nobody serves DHCP; the role router keeps
// what its image has, as do nodes whose settings name these packages.
func uciFiles(n *topology.Node) (map[string][]byte, error) {
	network, err := uci.Parse("network", strings.NewReader(""), true)
	if err != nil {
		return nil, err
	}
	packages := map[string]*uci.Package{"network": network}
	lo, err := network.Add("interface", "loopback")
	if err != nil {
		return nil, err
	}
	set := func(s *uci.Section, name, value string) {
		if err == nil {
			err = s.Set(name, value)
		}
	}
	set(lo, "device", "lo")
	set(lo, "proto", "static")
	set(lo, "ipaddr", "127.0.0.1/8")
	for _, p := range n.Ports {
		s, e := network.Add("interface", p.Name)
		if e != nil {
			return nil, e
		}
		set(s, "device", p.Device)
		set(s, "proto", "static")
		if p.Link.MTU != 1500 {
			set(s, "mtu", strconv.Itoa(p.Link.MTU))
		}
		var v4, v6 []string
		for _, a := range p.Addrs {
			if a.Addr().Is4() {
				v4 = append(v4, a.String())
			} else {
				v6 = append(v6, a.String())
			}
			for _, g := range n.Gateway {
				if a.Masked().Contains(g) {
					set(s, map[bool]string{true: "gateway", false: "ip6gw"}[g.Is4()], g.String())
				}
			}
		}
		for _, l := range []struct {
			name   string
			values []string
		}{{"ipaddr", v4}, {"ip6addr", v6}} {
			if len(l.values) > 0 && err == nil {
				err = s.SetList(l.name, l.values...)
			}
		}
	}
	for i, r := range n.Routes {
		s, e := network.Add(map[bool]string{true: "route", false: "route6"}[r.Via.Is4()], fmt.Sprintf("route%d", i))
		if e != nil {
			return nil, e
		}
		for _, p := range n.Ports {
			for _, a := range p.Addrs {
				if a.Masked().Contains(r.Via) {
					set(s, "interface", p.Name)
				}
			}
		}
		set(s, "target", r.Prefix.String())
		set(s, "gateway", r.Via.String())
	}
	if err != nil {
		return nil, fmt.Errorf("node %s: network configuration: %w", n.Name, err)
	}
	for _, key := range slices.Sorted(maps.Keys(n.UCI)) { // a section stands before its options
		parts := strings.Split(key, ".")
		p := packages[parts[0]]
		if p == nil {
			if p, err = uci.Parse(parts[0], strings.NewReader(""), true); err != nil {
				return nil, err
			}
			packages[parts[0]] = p
		}
		switch v := n.UCI[key].(type) {
		case string:
			if len(parts) == 2 {
				if p.Section(parts[1]) == nil {
					_, err = p.Add(v, parts[1])
				}
				break
			}
			if s := p.Section(parts[1]); s != nil {
				err = s.Set(parts[2], v)
			} else {
				err = fmt.Errorf("no section %s.%s: give its type first, as %q", parts[0], parts[1], parts[0]+"."+parts[1]+`" = "TYPE`)
			}
		case []any:
			values := make([]string, len(v))
			for i := range v {
				values[i] = fmt.Sprint(v[i])
			}
			if s := p.Section(parts[1]); s != nil {
				err = s.SetList(parts[2], values...)
			} else {
				err = fmt.Errorf("no section %s.%s: give its type first", parts[0], parts[1])
			}
		}
		if err != nil {
			return nil, fmt.Errorf("node %s: uci %s: %w", n.Name, key, err)
		}
	}
	files := map[string][]byte{}
	if n.Role != "router" {
		for name, text := range transparent {
			if packages[name] == nil {
				files[name] = []byte(text)
			}
		}
	}
	for name, p := range packages {
		var b bytes.Buffer
		if _, err := p.WriteTo(&b); err != nil {
			return nil, fmt.Errorf("node %s: write %s: %w", n.Name, name, err)
		}
		files[name] = b.Bytes()
	}
	return files, nil
}

// transparent are packages of a node that passes everything on and gives no addresses away.
var transparent = map[string]string{
	"dhcp":     "config dhcp 'lan'\n\toption interface 'lan'\n\toption ignore '1'\n",
	"firewall": "config defaults\n\toption input 'ACCEPT'\n\toption output 'ACCEPT'\n\toption forward 'ACCEPT'\n",
}

// sysctls are the kernel settings of a node: what its kind asks for, then its own.
func sysctls(n *topology.Node) [][2]string {
	set := map[string]string{}
	if n.Kind == topology.Host {
		set["net.mptcp.enabled"] = "0"
	} else {
		set["net.ipv4.ip_forward"] = "1"
		set["net.ipv6.conf.all.forwarding"] = "1"
	}
	for k, v := range n.Sysctl {
		set[k] = fmt.Sprint(v)
	}
	var out [][2]string
	for _, k := range slices.Sorted(maps.Keys(set)) {
		out = append(out, [2]string{k, set[k]})
	}
	return out
}

// shape are the commands that make a port send as its link says. In a guest a link with more than a rate is one netem,
// whose limit counts packets: as many full frames as are under way and may wait. Elsewhere the wire does what a rate does not.
func shape(p *topology.Port, l *topology.Link, guest bool) []string {
	end := 0
	if l.Ends[1] == p {
		end = 1
	}
	rate := l.RateFrom(end)
	impaired := l.Delay != 0 || l.Jitter != 0 || l.Loss != 0
	switch {
	case guest && impaired:
		limit := 10000
		cmd := fmt.Sprintf("tc qdisc replace dev %s root netem", p.Device)
		if l.Delay != 0 {
			cmd += fmt.Sprintf(" delay %dus", l.Delay.Microseconds())
			if l.Jitter != 0 {
				cmd += fmt.Sprintf(" %dus", l.Jitter.Microseconds())
			}
		}
		if l.Loss != 0 {
			cmd += " loss " + l.Loss.String()
		}
		if rate != 0 {
			limit = max(int(float64(rate)/8*(l.Delay+l.Jitter+l.Queue).Seconds())/(l.MTU+14), 4)
			cmd += " rate " + rate.String()
		}
		return []string{cmd + fmt.Sprintf(" limit %d", limit)}
	case rate != 0:
		return []string{fmt.Sprintf("tc qdisc replace dev %s root tbf rate %s burst %db latency %dus", p.Device, rate, l.Burst, l.Queue.Microseconds())}
	case guest:
		return []string{fmt.Sprintf("tc qdisc del dev %s root 2>/dev/null; true", p.Device)}
	}
	return nil
}

// degraded is a link with the figures that an event gives.
func degraded(l *topology.Link, e *topology.Event) *topology.Link {
	d := *l
	if e.Rate != 0 {
		d.Rate, d.BackRate = e.Rate, 0
	}
	if e.Delay != 0 {
		d.Delay = e.Delay
	}
	if e.Jitter != 0 {
		d.Jitter = e.Jitter
	}
	if e.Loss != 0 {
		d.Loss = e.Loss
	}
	return &d
}

// quote is s as one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }
