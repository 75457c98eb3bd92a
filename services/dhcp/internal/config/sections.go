package config

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

func (r reader) mode(option string) Mode {
	switch v := r.s.String(option, ""); v {
	case "", "disabled", "0":
		return Disabled
	case "server", "1":
		return ServerMode
	case "hybrid":
		return Hybrid
	case "relay":
		r.fault(option, v, "server or disabled: relaying has no effect in this version")
		return Relay
	default:
		r.fault(option, v, "server, relay, hybrid or disabled")
		return Disabled
	}
}

// pool reads a `dhcp` section; nil if it names no interface.
func (r reader) pool() *Pool {
	p := &Pool{
		Name:      r.s.Name,
		Interface: r.s.String("interface", ""),
		Ignore:    r.bool("ignore", false),
		Force:     r.bool("force", false),
		Dynamic:   r.bool("dynamicdhcp", true),
		Tag:       r.s.String("networkid", ""),
		Domain:    strings.Trim(r.s.String("dhcp_domain", ""), "."),
		Netmask:   r.addr("netmask", true),
		Lease:     r.lease("leasetime", DefaultLease),

		V6: r.mode("dhcpv6"), RA: r.mode("ra"),
		DHCPv6NA: r.bool("dhcpv6_na", true), DHCPv6PD: r.bool("dhcpv6_pd", true),
		RADNS: r.bool("ra_dns", true), NoDNS: !r.bool("dns_service", true),
		SLAAC: r.bool("ra_slaac", true), OffLink: r.bool("ra_offlink", false),
		RADefault:   r.int("ra_default", 0, 0, 2),
		RALifetime:  r.int("ra_lifetime", -1, 0, 9000),
		RAMax:       r.int("ra_maxinterval", 600, 4, 1800),
		RAMTU:       r.int("ra_mtu", 0, 1280, 65535),
		RAHopLimit:  r.int("ra_hoplimit", 0, 0, 255),
		RAReachable: r.int("ra_reachabletime", 0, 0, 3600000),
		RARetrans:   r.int("ra_retranstime", 0, 0, 60000),

		MaxPreferred: r.lease("max_preferred_lifetime", 45*time.Minute),
		MaxValid:     r.lease("max_valid_lifetime", 90*time.Minute),
	}
	if p.Interface == "" {
		p.Interface = r.s.Name // LEDE: a section may be named like its interface
		if r.s.Anonymous {
			r.fault("", "", "option interface is missing")
			return nil
		}
	}
	p.RAMin = r.int("ra_mininterval", max(p.RAMax/3, 3), 3, 1350)
	p.RAMin = min(p.RAMin, max(p.RAMax*3/4, 3))

	// Without the option dhcpv4 dnsmasq serves, as it did before there was one.
	p.V4 = ServerMode
	if _, set := r.s.Get("dhcpv4"); set {
		p.V4 = r.mode("dhcpv4")
	}
	p.Start = r.start()
	p.Limit = uint32(r.int("limit", 150, 0, 1<<24))

	switch v := r.s.String("ra_preference", "medium"); v {
	case "high":
		p.RAPreference = 1
	case "low":
		p.RAPreference = -1
	case "medium":
	default:
		r.fault("ra_preference", v, "high, medium or low")
	}
	r.raFlags(p)
	for _, v := range r.s.List("dns") {
		a, err := netip.ParseAddr(v)
		switch {
		case err != nil:
			r.fault("dns", v, "an IP address")
		case a.Is4():
			p.DNS4 = append(p.DNS4, a)
		default:
			p.DNS6 = append(p.DNS6, a)
		}
	}
	for _, v := range r.s.List("domain") {
		if d := strings.Trim(v, "."); validName(d) {
			p.Domains = append(p.Domains, d)
		} else {
			r.fault("domain", v, "a domain name")
		}
	}
	p.Options = r.options("dhcp_option", nil)
	return p
}

// start is the offset in the network, or an address, whose host part counts.
func (r reader) start() uint32 {
	v := r.s.String("start", "")
	if v == "" {
		return 100
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		r.fault("start", v, "an offset in the network, such as 100")
		return 100
	}
	return uint32(n)
}

// raFlags reads ra_flags, or ra_management of releases before 19.07.
func (r reader) raFlags(p *Pool) {
	if _, set := r.s.Get("ra_flags"); !set {
		switch n := r.int("ra_management", 1, 0, 3); n {
		case 0:
			p.Other = false
		case 1:
			p.Other = true
		case 2:
			p.Managed, p.Other = true, true
		case 3:
			p.Managed, p.Other, p.SLAAC = true, true, false
		}
		if _, set := r.s.Get("ra_management"); !set {
			p.Managed, p.Other = false, true // odhcpd's default
		}
		return
	}
	for _, v := range r.s.List("ra_flags") {
		switch v {
		case "managed-config":
			p.Managed = true
		case "other-config":
			p.Other = true
		case "home-agent":
			p.HomeAgent = true
		case "none":
		default:
			r.fault("ra_flags", v, "managed-config, other-config, home-agent or none")
		}
	}
}

// validName accepts host and domain names as DHCP clients and people write
// them; underscores are common.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// ValidName tells whether s can be a host or domain name.
func ValidName(s string) bool { return validName(s) }

// ParseMAC reads aa:bb:cc:dd:ee:ff with "*" for any byte.
func ParseMAC(v string) (MAC, bool) {
	var m MAC
	parts := strings.FieldsFunc(v, func(c rune) bool { return c == ':' || c == '-' })
	if len(parts) != 6 {
		return m, false
	}
	for i, p := range parts {
		if p == "*" {
			m.Wild[i] = true
			continue
		}
		n, err := strconv.ParseUint(p, 16, 8)
		if err != nil {
			return m, false
		}
		m.Addr[i] = byte(n)
	}
	return m, true
}

func hexBytes(v string) ([]byte, bool) {
	v = strings.NewReplacer(":", "", " ", "").Replace(v)
	b, err := hex.DecodeString(v)
	return b, err == nil
}

func (r reader) host() {
	h := &Host{
		Name:     r.s.String("name", ""),
		Tags:     r.s.List("tag"),
		MatchTag: r.s.List("match_tag"),
		DNS:      r.bool("dns", false),
		Bcast:    r.bool("broadcast", false),
	}
	if h.Name != "" && !validName(h.Name) {
		r.fault("name", h.Name, "a host name")
		h.Name = ""
	}
	for _, v := range r.s.List("mac") {
		if id, ok := strings.CutPrefix(v, "id:"); ok {
			if b, ok := hexBytes(id); ok && strings.Contains(id, ":") {
				h.ID = b
			} else {
				h.ID = []byte(id)
			}
			continue
		}
		m, ok := ParseMAC(v)
		if !ok {
			r.fault("mac", v, "a MAC address")
			continue
		}
		h.MACs = append(h.MACs, m)
	}
	for _, v := range r.s.List("duid") {
		text, iaid, has := strings.Cut(v, "%")
		d, ok := hexBytes(text)
		var id uint64
		if has {
			var err error
			id, err = strconv.ParseUint(iaid, 16, 32)
			ok = ok && err == nil
		}
		if !ok || len(d) == 0 || len(d) > 130 {
			r.fault("duid", v, "hexadecimal digits")
			continue
		}
		h.DUIDs, h.IAIDs = append(h.DUIDs, d), append(h.IAIDs, uint32(id))
	}
	switch v := r.s.String("ip", ""); v {
	case "":
	case "ignore":
		h.Ignore = true
	default:
		a, err := netip.ParseAddr(v)
		if err != nil || !a.Is4() {
			r.fault("ip", v, "an IPv4 address or ignore")
			break
		}
		h.IP = a
	}
	if v := r.s.String("leasetime", ""); v != "" {
		h.Lease, h.HasLease = r.lease("leasetime", 0), true
	}
	if v := r.s.String("hostid", ""); v != "" {
		// Hexadecimal, with or without the colons of an address' half.
		n, err := strconv.ParseUint(strings.ReplaceAll(v, ":", ""), 16, 64)
		if err != nil {
			r.fault("hostid", v, "hexadecimal digits")
		}
		h.HostID = n
	}
	if len(h.MACs) == 0 && len(h.DUIDs) == 0 && h.ID == nil && h.Name == "" {
		r.fault("", "", "option mac, duid or name is missing")
		return
	}
	r.c.Hosts = append(r.c.Hosts, h)
	if h.DNS && h.Name != "" && h.IP.IsValid() {
		r.c.Records.Names = append(r.c.Records.Names, Name{h.Name, h.IP})
	}
}

func (r reader) name(option string) (string, bool) {
	v := strings.TrimSuffix(r.s.String(option, ""), ".")
	if !validName(v) {
		r.fault(option, v, "a name")
		return "", false
	}
	return v, true
}

func (r reader) record() {
	c := &r.c.Records
	switch r.s.Type {
	case "domain", "hostrecord":
		var names []string
		for _, n := range r.s.List("name") {
			if n = strings.TrimSuffix(n, "."); validName(n) {
				names = append(names, n)
			} else {
				r.fault("name", n, "a name")
			}
		}
		if len(names) == 0 {
			r.fault("", "", "option name is missing")
		}
		for _, v := range r.s.List("ip") {
			a, err := netip.ParseAddr(v)
			if err != nil {
				r.fault("ip", v, "an IP address")
				continue
			}
			for _, n := range names {
				c.Names = append(c.Names, Name{n, a.WithZone("")})
			}
		}
	case "cname":
		alias, ok := r.name("cname")
		target, ok2 := r.name("target")
		if ok && ok2 {
			c.CNAMEs = append(c.CNAMEs, CNAME{alias, target})
		}
	case "mxhost":
		domain, ok := r.name("domain")
		relay, ok2 := r.name("relay")
		if ok && ok2 {
			c.MXs = append(c.MXs, MX{domain, relay, uint16(r.int("pref", 1, 0, 65535))})
		}
	case "srvhost":
		name, ok := r.name("srv")
		target, ok2 := r.name("target")
		if ok && ok2 {
			c.SRVs = append(c.SRVs, SRV{
				Name: name, Target: target,
				Port:     uint16(r.int("port", 1, 1, 65535)),
				Priority: uint16(r.int("class", 0, 0, 65535)),
				Weight:   uint16(r.int("weight", 0, 0, 65535)),
			})
		}
	}
}

func (r reader) tag() *Tag {
	t := &Tag{Name: r.s.Name}
	t.Options = r.options("dhcp_option", nil)
	if r.bool("force", false) {
		for i := range t.Options {
			t.Options[i].Force = true
		}
	}
	return t
}

func (r reader) match() {
	m := Match{Tag: r.s.String("networkid", "")}
	if m.Tag == "" {
		r.fault("networkid", "", "the tag to set")
		return
	}
	switch r.s.Type {
	case "vendorclass":
		m.Code, m.Text = 60, r.s.String("vendorclass", "")
	case "userclass":
		m.Code, m.Text = 77, r.s.String("userclass", "")
	case "mac":
		v := r.s.String("mac", "")
		var ok bool
		if m.MAC, ok = ParseMAC(v); !ok {
			r.fault("mac", v, "a MAC address")
			return
		}
	case "match":
		v := r.s.String("match", "")
		code, text, _ := strings.Cut(v, ",")
		n, ok := optionCode(strings.TrimPrefix(code, "option:"))
		if !ok {
			r.fault("match", v, "number[,text]")
			return
		}
		m.Code, m.Text = n, text
	}
	r.c.Matches = append(r.c.Matches, m)
}

func (r reader) boot() *Boot {
	b := &Boot{
		Filename:   r.s.String("filename", ""),
		ServerName: r.s.String("servername", ""),
		Server:     r.addr("serveraddress", true),
	}
	if t := r.s.String("networkid", ""); t != "" {
		b.Tags = []string{t}
	}
	if b.Filename == "" || len(b.Filename) > 127 {
		r.fault("filename", b.Filename, "the name of a file, up to 127 characters")
		return nil
	}
	if len(b.ServerName) > 63 {
		r.fault("servername", b.ServerName, "a name of up to 63 characters")
		return nil
	}
	b.Options = r.options("dhcp_option", nil)
	return b
}

// options reads dhcp_option and dhcp_option_force.
func (r reader) options(name string, tags []string) []Option {
	var out []Option
	for _, force := range []bool{false, true} {
		opt := name
		if force {
			opt += "_force"
		}
		for _, v := range r.list(opt) {
			o, err := ParseOption(v)
			if err != nil {
				r.fault(opt, v, err.Error())
				continue
			}
			if o.Code == 0 {
				continue // option6: DHCPv6
			}
			o.Force, o.Tags = force, append(o.Tags, tags...)
			out = append(out, o)
		}
	}
	return out
}

// list is List without splitting a plain option inside a value: dhcp_option may
// be a single option with blanks in its text.
func (r reader) list(option string) []string {
	o := r.s.Option(option)
	switch {
	case o == nil:
		return nil
	case o.IsList:
		return o.Values
	default:
		return r.s.List(option)
	}
}

// kind is how the value of a DHCPv4 option is written.
type kind int

const (
	kindAuto kind = iota
	kindAddrs
	kindText
	kindByte
	kindShort
	kindLong
	kindDomains
	kindRoutes
)

// optionKinds are the names and kinds of options (RFC 2132 and others), with
// dnsmasq's names.
var optionKinds = [...]struct {
	code uint8
	name string
	kind kind
}{
	{1, "netmask", kindAddrs}, {2, "time-offset", kindLong}, {3, "router", kindAddrs}, {4, "time-server", kindAddrs},
	{6, "dns-server", kindAddrs}, {7, "log-server", kindAddrs}, {9, "lpr-server", kindAddrs}, {12, "hostname", kindText},
	{13, "boot-file-size", kindShort}, {15, "domain-name", kindText}, {16, "swap-server", kindAddrs}, {17, "root-path", kindText},
	{18, "extension-path", kindText}, {19, "ip-forward-enable", kindByte}, {23, "default-ttl", kindByte}, {26, "mtu", kindShort},
	{27, "all-subnets-local", kindByte}, {28, "broadcast", kindAddrs}, {31, "router-discovery", kindByte}, {32, "router-solicitation", kindAddrs},
	{33, "static-route", kindAddrs}, {34, "trailer-encapsulation", kindByte}, {35, "arp-timeout", kindLong}, {37, "tcp-ttl", kindByte},
	{38, "tcp-keepalive", kindLong}, {40, "nis-domain", kindText}, {41, "nis-server", kindAddrs}, {42, "ntp-server", kindAddrs},
	{43, "vendor-encap", kindAuto}, {44, "netbios-ns", kindAddrs}, {45, "netbios-dd", kindAddrs}, {46, "netbios-nodetype", kindByte},
	{47, "netbios-scope", kindText}, {48, "x-windows-fs", kindAddrs}, {49, "x-windows-dm", kindAddrs}, {51, "lease-time", kindLong},
	{58, "T1", kindLong}, {59, "T2", kindLong}, {60, "vendor-class", kindText}, {64, "nis+-domain", kindText}, {65, "nis+-server", kindAddrs},
	{66, "tftp-server", kindText}, {67, "bootfile-name", kindText}, {68, "mobile-ip-home", kindAddrs}, {69, "smtp-server", kindAddrs},
	{70, "pop3-server", kindAddrs}, {71, "nntp-server", kindAddrs}, {74, "irc-server", kindAddrs}, {77, "user-class", kindText},
	{80, "rapid-commit", kindAuto}, {93, "client-arch", kindShort}, {97, "client-machine-id", kindAuto}, {114, "captive-portal", kindText},
	{119, "domain-search", kindDomains}, {120, "sip-server", kindAuto}, {121, "classless-static-route", kindRoutes},
	{125, "vendor-id-encap", kindAuto}, {150, "tftp-server-address", kindAddrs}, {252, "", kindText}, {255, "server-ip-address", kindAuto},
}

func optionCode(v string) (uint8, bool) {
	if n, err := strconv.ParseUint(v, 10, 8); err == nil && n > 0 && n < 255 {
		return uint8(n), true
	}
	for _, k := range optionKinds {
		if k.name != "" && strings.EqualFold(k.name, v) && k.code < 255 {
			return k.code, true
		}
	}
	return 0, false
}

func optionKind(code uint8) kind {
	for _, k := range optionKinds {
		if k.code == code {
			return k.kind
		}
	}
	return kindAuto
}

// ParseOption reads dnsmasq's --dhcp-option: [tag:x,][option:]code[,value…].
// option6 gives code 0, as this is about DHCPv4 alone.
func ParseOption(v string) (Option, error) {
	var o Option
	fields := strings.Split(v, ",")
	for len(fields) > 0 {
		f := strings.TrimSpace(fields[0])
		if t, ok := strings.CutPrefix(f, "tag:"); ok {
			o.Tags = append(o.Tags, t)
		} else if t, ok := strings.CutPrefix(f, "set:"); ok {
			o.Tags = append(o.Tags, t)
		} else {
			break
		}
		fields = fields[1:]
	}
	if len(fields) == 0 {
		return o, fmt.Errorf("number,value")
	}
	name := strings.TrimSpace(fields[0])
	fields = fields[1:]
	if strings.HasPrefix(name, "option6:") {
		return Option{}, nil
	}
	code, ok := optionCode(strings.TrimPrefix(name, "option:"))
	if !ok {
		return o, fmt.Errorf("number,value; %q is no option", name)
	}
	switch code {
	case 50, 51, 52, 53, 54, 55, 57, 61, 82:
		if code != 51 {
			return o, fmt.Errorf("an option that is not part of the protocol itself")
		}
	}
	o.Code = code
	if len(fields) == 0 {
		o.None = true
		return o, nil
	}
	text := strings.Join(fields, ",")
	k := optionKind(code)
	if k == kindAuto {
		k = guess(fields)
	}
	fail := func(what string) (Option, error) { return o, fmt.Errorf("%s for option %d", what, code) }
	switch k {
	case kindAddrs:
		for _, f := range fields {
			f = strings.TrimSpace(f)
			a, err := netip.ParseAddr(f)
			if err != nil || !a.Is4() {
				return fail("IPv4 addresses")
			}
			if a.IsUnspecified() {
				o.SelfAt = append(o.SelfAt, len(o.Value))
			}
			o.Value = append(o.Value, a.AsSlice()...)
		}
	case kindByte, kindShort, kindLong:
		for _, f := range fields {
			n, err := parseNumber(strings.TrimSpace(f))
			bits := map[kind]int{kindByte: 8, kindShort: 16, kindLong: 32}[k]
			if err != nil || n>>bits != 0 {
				return fail(fmt.Sprintf("numbers of %d bits", bits))
			}
			switch k {
			case kindByte:
				o.Value = append(o.Value, byte(n))
			case kindShort:
				o.Value = binary.BigEndian.AppendUint16(o.Value, uint16(n))
			default:
				o.Value = binary.BigEndian.AppendUint32(o.Value, uint32(n))
			}
		}
	case kindDomains:
		for _, f := range fields {
			f = strings.Trim(strings.TrimSpace(f), ".")
			if !validName(f) {
				return fail("domain names")
			}
			for l := range strings.SplitSeq(f, ".") {
				o.Value = append(append(o.Value, byte(len(l))), l...)
			}
			o.Value = append(o.Value, 0)
		}
	case kindRoutes:
		if len(fields)%2 != 0 {
			return fail("pairs of network and router")
		}
		for i := 0; i < len(fields); i += 2 {
			n := strings.TrimSpace(fields[i])
			if !strings.Contains(n, "/") {
				n += "/32"
			}
			p, err := netip.ParsePrefix(n)
			via, err2 := netip.ParseAddr(strings.TrimSpace(fields[i+1]))
			if err != nil || err2 != nil || !p.Addr().Is4() || !via.Is4() {
				return fail("pairs of network and router")
			}
			b := p.Masked().Addr().As4()
			o.Value = append(o.Value, byte(p.Bits()))
			o.Value = append(o.Value, b[:(p.Bits()+7)/8]...)
			if via.IsUnspecified() {
				o.SelfAt = append(o.SelfAt, len(o.Value))
			}
			o.Value = append(o.Value, via.AsSlice()...)
		}
	default:
		if b, ok := hexBytes(text); ok && strings.Contains(text, ":") {
			o.Value = b
		} else {
			o.Value = []byte(strings.Trim(text, `"`))
		}
	}
	if len(o.Value) > 1024 {
		return fail("at most 1024 bytes")
	}
	return o, nil
}

func parseNumber(f string) (uint64, error) {
	if n, err := strconv.ParseInt(f, 0, 64); err == nil && n < 0 && n >= -1<<31 {
		return uint64(uint32(n)), nil
	}
	return strconv.ParseUint(f, 0, 32)
}

// guess finds out what the value of an option without a known kind is:
// addresses, a number of one byte, or else text.
func guess(fields []string) kind {
	addrs := true
	for _, f := range fields {
		a, err := netip.ParseAddr(strings.TrimSpace(f))
		addrs = addrs && err == nil && a.Is4()
	}
	if addrs {
		return kindAddrs
	}
	if len(fields) == 1 {
		if n, err := strconv.ParseUint(fields[0], 10, 32); err == nil {
			switch {
			case n < 1<<8:
				return kindByte
			case n < 1<<16:
				return kindShort
			}
			return kindLong
		}
	}
	return kindText
}
