package network

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/init/uci"
)

// DHCPv6Options are the options of proto dhcpv6.
type DHCPv6Options struct {
	Address     string     // reqaddress: try, force or none
	Prefix      bool       // ask for a prefix
	PrefixHint  int        // length to ask for, 0: what the server likes
	ForcePrefix bool       // not up without one
	IfaceID     netip.Addr // last half of own addresses, zero: from the MAC address
	DUID        []byte
	ReqOpts     []uint16
	VendorClass string
	UserClass   string

	DefaultRoute bool
	PeerDNS      bool
	SourceFilter bool // routes are for the sources that the uplink gave
	Release      bool
	SLAACOnly    bool // noslaaconly 0: stateless addresses are enough to be up
}

// Assign is how an interface takes part of the prefixes that others have.
type Assign struct {
	Length  int // 0: not at all
	Hint    int // number of the part, -1: any
	Weight  int
	Classes []string // names of interfaces, or local for the ULA; empty: all
	IfaceID string   // eui64, random or the last half of an address; empty: ::1
}

// classLocal is the class of the ULA prefix.
const classLocal = "local"

// globals reads the section of that name.
func (c *Config) globals(s *uci.Section) {
	r := &reader{s: s}
	// The value auto is replaced by the boot, once; until then there is none.
	if v, ok := s.Get("ula_prefix"); ok && v != "auto" {
		p, err := netip.ParsePrefix(v)
		if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 64 || p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() {
			r.bad("ula_prefix", v, "an IPv6 prefix such as fd12:3456:789a::/48")
		} else {
			c.ULA = p.Masked()
		}
	}
	if v, ok := s.Get("dhcp_default_duid"); ok && v != "auto" {
		c.DUID = r.hex("dhcp_default_duid", v, 3, 130)
	}
	c.Problems = append(c.Problems, r.problems...)
}

// hex reads hexadecimal digits, with or without colons.
func (r *reader) hex(option, v string, low, high int) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(v, ":", ""))
	if err != nil || len(b) < low || len(b) > high {
		r.bad(option, v, "hexadecimal digits for "+strconv.Itoa(low)+" to "+strconv.Itoa(high)+" bytes")
		return nil
	}
	return b
}

func (i *Interface) dhcpv6(r *reader) {
	d := &i.DHCPv6
	d.DefaultRoute = r.bool("defaultroute", true)
	d.PeerDNS = r.bool("peerdns", true)
	d.SourceFilter = r.bool("sourcefilter", true)
	d.Release = !r.bool("norelease", false)
	d.ForcePrefix = r.bool("forceprefix", false)
	d.SLAACOnly = !r.bool("noslaaconly", false)
	d.VendorClass = r.s.String("vendorclass", "")
	d.UserClass = r.s.String("userclass", "")
	switch d.Address = r.s.String("reqaddress", "try"); d.Address {
	case "try", "force", "none":
	default:
		r.bad("reqaddress", d.Address, "one of try, force, none")
	}
	switch v := r.s.String("reqprefix", "auto"); v {
	case "auto":
		d.Prefix = true
	case "no", "0":
	default:
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 64 {
			r.bad("reqprefix", v, "auto, no, or the length of a prefix up to 64")
		}
		d.Prefix, d.PrefixHint = true, n
	}
	if v, ok := r.s.Get("clientid"); ok {
		d.DUID = r.hex("clientid", v, 3, 130)
	}
	if v, ok := r.s.Get("ifaceid"); ok {
		d.IfaceID = r.ifaceID("ifaceid", v)
	}
	for _, v := range strings.Fields(strings.Join(r.s.List("reqopts"), " ")) {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 65535 {
			r.bad("reqopts", v, "numbers of DHCPv6 options")
			continue
		}
		d.ReqOpts = append(d.ReqOpts, uint16(n))
	}
	i.prefixes(r)
}

// ifaceID reads the last half of an address, such as ::1.
func (r *reader) ifaceID(option, v string) netip.Addr {
	a, ok := r.addr(option, v, true)
	if !ok {
		return netip.Addr{}
	}
	b := a.As16()
	if [8]byte(b[:8]) != [8]byte{} || [8]byte(b[8:]) == [8]byte{} {
		r.bad(option, v, "the last half of an address, such as ::1")
		return netip.Addr{}
	}
	return a
}

// prefixes reads ip6prefix: what others may take their parts of.
func (i *Interface) prefixes(r *reader) {
	for _, v := range r.s.List("ip6prefix") {
		p, err := netip.ParsePrefix(v)
		if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 64 || p.Bits() == 0 || p.Addr().IsMulticast() {
			r.bad("ip6prefix", v, "an IPv6 prefix such as 2001:db8:1::/56")
			continue
		}
		if p = p.Masked(); !slices.Contains(i.Prefixes, p) {
			i.Prefixes = append(i.Prefixes, p)
		}
	}
}

// assign reads what the interface wants of the prefixes of others.
func (i *Interface) assign(r *reader) {
	a := &i.Assign
	if a.Length = r.number("ip6assign", 0, 0, 64); a.Length == 0 {
		return
	}
	a.Weight = r.number("ip6weight", 0, 0, 1<<31-1)
	a.Hint = -1
	if v, ok := r.s.Get("ip6hint"); ok {
		n, err := strconv.ParseUint(v, 16, 31)
		if err != nil {
			r.bad("ip6hint", v, "the hexadecimal number of the part")
		} else {
			a.Hint = int(n)
		}
	}
	for _, v := range r.s.List("ip6class") {
		a.Classes = append(a.Classes, strings.Fields(v)...)
	}
	switch a.IfaceID = r.s.String("ip6ifaceid", ""); a.IfaceID {
	case "", "eui64", "random":
	default:
		r.ifaceID("ip6ifaceid", a.IfaceID)
	}
}
