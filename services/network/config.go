package network

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"weft/init/uci"
)

// Config is /etc/config/network as this service understands it.
type Config struct {
	Devices    []*Device
	Interfaces []*Interface
	Rules      []Rule
	// DeadEnds are routes that lead nowhere and belong to no interface.
	DeadEnds []Route
	// ULA is the prefix for local addresses, zero for none.
	ULA netip.Prefix
	// DUID is what DHCPv6 clients call themselves, nil: made from a MAC address.
	DUID []byte
	// Tables are the names of routing tables beside the usual ones.
	Tables map[string]int
	// Problems are faults of sections other than interfaces, which carry
	// their own.
	Problems []Problem
}

// Interface is an `interface` section.
type Interface struct {
	Name   string
	Proto  string
	Device string // "@name" stands for the device of another interface
	Auto   bool   // bring up without being asked to

	Addrs     []netip.Prefix
	Gateways  []netip.Addr
	Metric    int
	DNS       []netip.Addr
	DNSSearch []string
	DNSMetric int
	MAC       net.HardwareAddr
	MTU       int
	// ForceLink brings the interface up without a carrier.
	ForceLink  bool
	Delegation bool
	DHCP       DHCPOptions
	DHCPv6     DHCPv6Options
	Assign     Assign
	WireGuard  *WireGuard
	// Prefixes are what the interface has to give to others besides what
	// DHCPv6 delegates (option ip6prefix).
	Prefixes []netip.Prefix
	// Table4 and Table6 take the routes instead of the main table; 0: main.
	Table4, Table6 int
	// Multipath is what the MPTCP proxy shall use the interface for: on, off,
	// backup, master or handover; empty if nothing is said.
	Multipath string
	// Routes are the `route` and `route6` sections that name this interface.
	Routes []Route

	// Problems keep the interface down; the others come up.
	Problems []Problem
}

// DHCPOptions are the options of proto dhcp.
type DHCPOptions struct {
	Hostname     string // empty: send none
	VendorID     string
	ClientID     []byte // nil: made from the MAC address
	ReqOpts      []uint8
	Broadcast    bool // ask the server to answer by broadcast
	DefaultRoute bool
	PeerDNS      bool
	Release      bool // give the address back on stop
}

// Problem is one fault of the configuration: where it is and what would do.
type Problem struct {
	Section  string // name or type of the section
	Option   string // empty if the section as a whole is meant
	Value    string
	Expected string
	// Later means that this is no mistake, but more than this version can do.
	Later bool
}

func (p Problem) Error() string {
	if p.Option == "" {
		return fmt.Sprintf("network.%s: %s", p.Section, p.Expected)
	}
	return fmt.Sprintf("network.%s: option %s '%s': expected %s", p.Section, p.Option, p.Value, p.Expected)
}

// protocols are those that this service can run.
var protocols = []string{"none", "static", "dhcp", "dhcpv6", "wireguard"}

// parseConfig reads the sections of the package network. hostname is what
// DHCP sends for lack of a configured one, tables the names of routing tables.
func parseConfig(p *uci.Package, hostname string, tables map[string]int) *Config {
	c := &Config{Tables: tables}
	var routes, vlans, peers []*uci.Section
	for _, s := range p.Sections {
		switch s.Type {
		case "device":
			if d := c.device(s); d != nil {
				c.Devices = append(c.Devices, d)
			}
		case "interface":
			c.Interfaces = append(c.Interfaces, c.iface(s, hostname))
		case "globals":
			c.globals(s)
		case "route", "route6", "rule", "rule6":
			routes = append(routes, s) // their interfaces may come later
		case "bridge-vlan":
			vlans = append(vlans, s)
		default:
			if strings.HasPrefix(s.Type, peerType) {
				peers = append(peers, s)
				continue
			}
			c.Problems = append(c.Problems, Problem{Section: s.Name, Expected: "sections of type " + s.Type + " have no effect in this version", Later: true})
		}
	}
	for _, s := range vlans {
		c.bridgeVLAN(s)
	}
	for _, s := range routes {
		if s.Type == "route" || s.Type == "route6" {
			c.route(s)
		} else {
			c.rule(s)
		}
	}
	for _, s := range peers {
		c.peer(s)
	}
	return c
}

// reader reads the options of a section and notes what is wrong.
type reader struct {
	s        *uci.Section
	problems []Problem
}

func (r *reader) bad(option, value, expected string) {
	r.problems = append(r.problems, Problem{Section: r.s.Name, Option: option, Value: value, Expected: expected})
}

// later notes what is not available yet.
func (r *reader) later(option, value, expected string) {
	r.problems = append(r.problems, Problem{r.s.Name, option, value, expected + "; others are not available in this version", true})
}

func (r *reader) number(option string, def, low, high int) int {
	v, ok := r.s.Get(option)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		r.bad(option, v, fmt.Sprintf("a number from %d to %d", low, high))
		return def
	}
	return n
}

func (r *reader) bool(option string, def bool) bool {
	v, ok := r.s.Get(option)
	if !ok {
		return def
	}
	if r.s.Bool(option, false) != r.s.Bool(option, true) {
		r.bad(option, v, "0 or 1")
	}
	return r.s.Bool(option, def)
}

func (r *reader) mac(option string) net.HardwareAddr {
	v, ok := r.s.Get(option)
	if !ok {
		return nil
	}
	mac, err := net.ParseMAC(v)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		r.bad(option, v, "a MAC address of one device, such as 02:00:00:00:00:01")
		return nil
	}
	return mac
}

// maxIfName is IFNAMSIZ without the terminating NUL (linux/if.h).
const maxIfName = 15

// name checks the name of a network device as the kernel does
// (dev_valid_name).
func (r *reader) name(option, v string) string {
	if v == "" || v == "." || v == ".." || len(v) > maxIfName || strings.ContainsAny(v, "/: \t\n\v\f\r\x00") {
		r.bad(option, v, fmt.Sprintf("the name of a network device, at most %d characters", maxIfName))
		return ""
	}
	return v
}

func (r *reader) addr(option, v string, six bool) (netip.Addr, bool) {
	a, err := netip.ParseAddr(v)
	if err != nil || a.Is6() != six || a.Zone() != "" || a.Is4In6() {
		r.bad(option, v, "an "+family(six)+" address")
		return netip.Addr{}, false
	}
	return a, true
}

func family(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// prefix reads an address of the interface; without a length it has that of
// mask, or all bits.
func (r *reader) prefix(option, v string, six bool, mask int) (netip.Prefix, bool) {
	addr, bits, has := strings.Cut(v, "/")
	n := mask
	if has {
		var err error
		if n, err = strconv.Atoi(bits); err != nil {
			n = -1
			if !six {
				n = maskBits(bits)
			}
		}
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is6() != six || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || n < 0 || n > a.BitLen() {
		example := "192.168.1.1/24"
		if six {
			example = "fd00::1/64"
		}
		r.bad(option, v, "an "+family(six)+" address, with or without a length, such as "+example)
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, n), true
}

// maskBits is the length of a netmask such as 255.255.255.0, -1 if it is none.
func maskBits(s string) int {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return -1
	}
	ones, bits := net.IPMask(a.AsSlice()).Size()
	if bits == 0 {
		return -1
	}
	return ones
}

func (c *Config) iface(s *uci.Section, hostname string) *Interface {
	r := &reader{s: s}
	i := &Interface{
		Name:       s.Name,
		Proto:      s.String("proto", "none"),
		Auto:       r.bool("auto", true) && !r.bool("disabled", false),
		Metric:     r.number("metric", 0, 0, 1<<31-1),
		DNSMetric:  r.number("dns_metric", 0, 0, 1<<31-1),
		MAC:        r.mac("macaddr"),
		MTU:        r.number("mtu", 0, 68, 65535),
		Delegation: r.bool("delegate", true),
		Table4:     c.table(r, "ip4table"),
		Table6:     c.table(r, "ip6table"),
	}
	// Protocols differ in whether they can do something without a carrier.
	i.ForceLink = r.bool("force_link", i.Proto == "static" || i.Proto == "wireguard")
	if !slices.Contains(protocols, i.Proto) {
		r.later("proto", i.Proto, "one of "+strings.Join(protocols, ", "))
	}
	for _, v := range s.List("dns") {
		if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
			i.DNS = append(i.DNS, a)
		} else {
			r.bad("dns", v, "an IP address")
		}
	}
	for _, v := range s.List("dns_search") {
		if validDomain(v) {
			i.DNSSearch = append(i.DNSSearch, v)
		} else {
			r.bad("dns_search", v, "a domain name")
		}
	}
	c.multipath(i, s)
	c.link(i, r)
	i.assign(r)
	switch i.Proto {
	case "static":
		i.static(r)
	case "dhcp":
		i.dhcp(r, hostname)
	case "dhcpv6":
		i.dhcpv6(r)
	case "wireguard":
		i.wireguard(r)
	}
	i.Problems = r.problems
	return i
}

// multipathModes are the values of option multipath, as the MPTCP proxy has them.
var multipathModes = []string{"on", "off", "backup", "master", "handover"}

// multipath reads the option for the MPTCP proxy. A fault in it is told, but
// does not keep the interface down.
func (c *Config) multipath(i *Interface, s *uci.Section) {
	v, ok := s.Get("multipath")
	switch {
	case !ok:
	case slices.Contains(multipathModes, v):
		i.Multipath = v
	default:
		c.Problems = append(c.Problems, Problem{Section: s.Name, Option: "multipath", Value: v, Expected: "one of " + strings.Join(multipathModes, ", "), Later: true})
	}
}

// link finds out which device an interface uses.
func (c *Config) link(i *Interface, r *reader) {
	option := "device"
	if r.s.Option(option) == nil && r.s.Option("ifname") != nil {
		option = "ifname" // until 19.07
	}
	if i.Proto == "wireguard" { // it is its own device
		i.Device = r.name("name", i.Name)
		return
	}
	names := r.s.List(option)
	if t := r.s.String("type", ""); t == "bridge" {
		// Until 19.07 a bridge was made by the interface that uses it.
		i.Device = r.name("type", "br-"+i.Name)
		if i.Device == "" || slices.ContainsFunc(c.Devices, func(d *Device) bool { return d.Name == i.Device }) {
			return
		}
		c.Devices = append(c.Devices, &Device{Name: i.Device, Kind: "bridge", Ports: r.ports(option), MAC: i.MAC, MTU: i.MTU})
		return
	} else if t != "" {
		r.bad("type", t, "bridge, or no such option")
	}
	switch {
	case len(names) == 1 && strings.HasPrefix(names[0], "@"):
		i.Device = names[0]
	case len(names) == 1:
		i.Device = r.name(option, names[0])
	case len(names) > 1:
		r.bad(option, strings.Join(names, " "), "one device; for several make a device section of type bridge")
	case i.Proto == "static" || i.Proto == "dhcp" || i.Proto == "dhcpv6":
		r.bad(option, "", "the device of the interface")
	}
}

func (i *Interface) static(r *reader) {
	mask := 32
	if v, ok := r.s.Get("netmask"); ok {
		if mask = maskBits(v); mask < 0 {
			r.bad("netmask", v, "a netmask such as 255.255.255.0")
			mask = 32
		}
	}
	add := func(option string, six bool, bits int) {
		for _, v := range r.s.List(option) {
			if p, ok := r.prefix(option, v, six, bits); ok && !slices.Contains(i.Addrs, p) {
				i.Addrs = append(i.Addrs, p)
			}
		}
	}
	add("ipaddr", false, mask)
	add("ip6addr", true, 128)
	i.prefixes(r)
	for option, six := range map[string]bool{"gateway": false, "ip6gw": true} {
		v, ok := r.s.Get(option)
		if !ok {
			continue
		}
		if a, ok := r.addr(option, v, six); ok {
			i.Gateways = append(i.Gateways, a)
		}
	}
	slices.SortFunc(i.Gateways, netip.Addr.Compare)
}

func (i *Interface) dhcp(r *reader, hostname string) {
	d := &i.DHCP
	d.DefaultRoute = r.bool("defaultroute", true)
	d.PeerDNS = r.bool("peerdns", true)
	d.Broadcast = r.bool("broadcast", false)
	d.Release = !r.bool("norelease", false)
	d.VendorID = r.s.String("vendorid", "")
	if len(d.VendorID) > 255 {
		r.bad("vendorid", d.VendorID, "at most 255 characters")
	}
	d.Hostname = r.s.String("hostname", hostname)
	if d.Hostname == "*" { // LEDE's way to send none
		d.Hostname = ""
	}
	if d.Hostname != "" && !validDomain(d.Hostname) {
		if r.s.Option("hostname") != nil {
			r.bad("hostname", d.Hostname, "a host name, or * to send none")
		}
		d.Hostname = ""
	}
	if v, ok := r.s.Get("clientid"); ok {
		id, err := hex.DecodeString(strings.ReplaceAll(v, ":", ""))
		if err != nil || len(id) < 2 || len(id) > 255 {
			r.bad("clientid", v, "hexadecimal digits, the first two the type (RFC 2132, 9.14)")
		}
		d.ClientID = id
	}
	for _, v := range r.s.List("reqopts") {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 254 {
			r.bad("reqopts", v, "numbers of DHCP options, 1 to 254")
			continue
		}
		d.ReqOpts = append(d.ReqOpts, uint8(n))
	}
}

// validDomain accepts what is safe to write into the resolver file: labels of
// letters, digits, - and _, joined by dots (RFC 1035 with the usual _).
func validDomain(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// sameClient tells whether a DHCP client of a can go on for b.
func sameClient(a, b *Interface) bool {
	x, y := a.DHCP, b.DHCP
	// How the lease is used can change without asking for a new one.
	x.DefaultRoute, x.PeerDNS, x.Release = y.DefaultRoute, y.PeerDNS, y.Release
	u, v := a.DHCPv6, b.DHCPv6
	u.DefaultRoute, u.PeerDNS, u.Release, u.SourceFilter, u.IfaceID = v.DefaultRoute, v.PeerDNS, v.Release, v.SourceFilter, v.IfaceID
	return reflect.DeepEqual(u, v) && a.Proto == b.Proto && a.Device == b.Device && reflect.DeepEqual(x, y) && slices.Equal(a.MAC, b.MAC)
}

// find returns the interface of that name.
func (c *Config) find(name string) *Interface {
	for _, i := range c.Interfaces {
		if i.Name == name {
			return i
		}
	}
	return nil
}

// resolve follows `@name` to the device; empty if it leads nowhere.
func (c *Config) resolve(i *Interface) string {
	for range c.Interfaces {
		name, alias := strings.CutPrefix(i.Device, "@")
		if !alias {
			return i.Device
		}
		if i = c.find(name); i == nil {
			return ""
		}
	}
	return ""
}
