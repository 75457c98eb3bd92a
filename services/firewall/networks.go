package firewall

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/init/bus"
	"weft/init/uci"
	"weft/services/firewall/ruleset"
)

// Network is what the firewall wants to know of an interface of
// /etc/config/network.
type Network struct {
	Device string         // that packets come and go by; empty: none
	Addrs  []netip.Prefix // its addresses, with the length of their networks
}

// Networks are the interfaces by name.
type Networks map[string]*Network

// configured reads what the configuration says, for interfaces that are not up
// or while the service network is not there.
func configured(p *uci.Package) Networks {
	nets := Networks{}
	if p == nil {
		return nets
	}
	for _, s := range p.SectionsOfType("interface") {
		if s.Bool("disabled", false) || !s.Bool("enabled", true) {
			continue
		}
		n := &Network{Device: l3Device(s)}
		masks := s.List("netmask")
		for i, a := range s.List("ipaddr") {
			mask := "32"
			if len(masks) > 0 {
				mask = masks[min(i, len(masks)-1)]
			}
			if addr, bits, ok := strings.Cut(a, "/"); ok {
				a, mask = addr, bits
			}
			if pfx, ok := prefixOf(a, mask); ok {
				n.Addrs = append(n.Addrs, pfx)
			}
		}
		for _, a := range s.List("ip6addr") {
			if !strings.Contains(a, "/") {
				a += "/128"
			}
			if pfx, err := netip.ParsePrefix(a); err == nil {
				n.Addrs = append(n.Addrs, pfx)
			}
		}
		nets[s.Name] = n
	}
	// An alias has the device of the interface that it names; two steps are
	// enough for what people write, a ring ends.
	for range 4 {
		for _, n := range nets {
			if base, ok := strings.CutPrefix(n.Device, "@"); ok && nets[base] != nil && base != "" {
				if d := nets[base].Device; d != n.Device {
					n.Device = d
				}
			}
		}
	}
	for _, n := range nets {
		if strings.HasPrefix(n.Device, "@") {
			n.Device = ""
		}
	}
	return nets
}

func prefixOf(addr, mask string) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}, false
	}
	if bits, err := strconv.Atoi(mask); err == nil {
		p, err := a.WithZone("").Prefix(bits)
		return netip.PrefixFrom(a, p.Bits()), err == nil
	}
	r, err := ruleset.ParseAddrs(addr + "/" + mask)
	if err != nil {
		return netip.Prefix{}, false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p := netip.PrefixFrom(a, bits); ruleset.RangeOf(p) == r {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// l3Device is the name that netifd gives the device of an interface, by its
// protocol.
func l3Device(s *uci.Section) string {
	switch proto := s.String("proto", "none"); proto {
	case "pppoe", "pppoa", "pptp", "ppp", "l2tp", "3g":
		return proto + "-" + s.Name
	case "6in4", "6rd", "6to4", "vti", "gre", "gretap", "grev6", "grev6tap", "vxlan", "vxlan6", "map", "464xlat", "ipip":
		switch proto {
		case "gre":
			return "gre4-" + s.Name
		case "gretap":
			return "gre4t-" + s.Name
		case "grev6":
			return "gre6-" + s.Name
		case "grev6tap":
			return "gre6t-" + s.Name
		case "vxlan", "vxlan6":
			return s.Name
		}
		return proto + "-" + s.Name
	case "dslite":
		return "ds-" + s.Name
	case "wireguard", "openvpn":
		return s.Name
	}
	if s.String("type", "") == "bridge" {
		return "br-" + s.Name
	}
	d := s.String("device", s.String("ifname", ""))
	if f := strings.Fields(d); len(f) > 0 {
		return f[0]
	}
	return ""
}

// merge puts what `network.interface dump` replied over the configured ones.
func (nets Networks) merge(dump bus.Table) {
	list, _ := dump.Get("interface").(bus.Array)
	for _, x := range list {
		t, _ := x.(bus.Table)
		name := t.String("interface")
		if name == "" {
			continue
		}
		n := nets[name]
		if n == nil {
			n = &Network{}
			nets[name] = n
		}
		if d := t.String("l3_device"); d != "" {
			n.Device = d
		} else if d := t.String("device"); d != "" && n.Device == "" {
			n.Device = d
		}
		var addrs []netip.Prefix
		add := func(a bus.Table, addr string) {
			ip, err := netip.ParseAddr(addr)
			bits, ok := integer(a.Get("mask"))
			if err == nil && ok && bits >= 0 && bits <= ip.BitLen() {
				addrs = append(addrs, netip.PrefixFrom(ip, bits))
			}
		}
		for _, key := range []string{"ipv4-address", "ipv6-address"} {
			l, _ := t.Get(key).(bus.Array)
			for _, x := range l {
				a, _ := x.(bus.Table)
				add(a, a.String("address"))
			}
		}
		l, _ := t.Get("ipv6-prefix-assignment").(bus.Array)
		for _, x := range l {
			a, _ := x.(bus.Table)
			local, _ := a.Get("local-address").(bus.Table)
			if local.String("address") != "" {
				add(a, local.String("address"))
			} else {
				add(a, a.String("address"))
			}
		}
		if len(addrs) > 0 {
			n.Addrs = addrs
		} else if up, _ := t.Get("up").(bool); up {
			n.Addrs = nil
		}
	}
}

func integer(v any) (int, bool) {
	switch v := v.(type) {
	case int16:
		return int(v), true
	case int32:
		return int(v), true
	case int64:
		return int(v), v == int64(int(v))
	}
	return 0, false
}

// of gives the addresses of one family.
func (n *Network) of(f ruleset.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.Addrs), func(p netip.Prefix) bool { return !is4(f, p.Addr()) || p.Addr().IsLinkLocalUnicast() })
}
