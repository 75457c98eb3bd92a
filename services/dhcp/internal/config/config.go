// Package config reads /etc/config/dhcp, with LEDE's section types, options and
// defaults, into one checked structure. Faults are collected, not returned one
// by one: the faulty section or value is left out and all else stays in force.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
)

// Config is the package dhcp.
type Config struct {
	DNS     DNS
	Pools   []*Pool // `dhcp` sections, in file order
	Hosts   []*Host // `host` sections
	Records Records
	Tags    []*Tag  // `tag` sections
	Matches []Match // `vendorclass`, `userclass`, `mac`, `match` sections
	Boots   []*Boot // `boot` sections
	// ServerDUID is the option dhcp_default_duid of network.globals; nil
	// lets each interface use one made from its MAC address.
	ServerDUID []byte

	Problems []Problem
}

// Problem is one fault of the configuration: where it is and what would do.
type Problem struct {
	Section  string // name or type of the section
	Option   string // empty if the section as a whole is meant
	Value    string
	Expected string
}

func (p Problem) Error() string {
	if p.Option == "" {
		return fmt.Sprintf("dhcp.%s: %s", p.Section, p.Expected)
	}
	return fmt.Sprintf("dhcp.%s: option %s '%s': expected %s", p.Section, p.Option, p.Value, p.Expected)
}

// DNS is the first `dnsmasq` section: the forwarder, and what all DHCP pools
// share.
type DNS struct {
	Port          int // 0: no DNS
	Domain        string
	Local         []string // domains that are never forwarded
	ExpandHosts   bool
	DomainNeeded  bool
	BogusPriv     bool
	RebindProtect bool
	RebindLocal   bool     // 127.0.0.0/8 in answers is fine
	RebindDomains []string // whose answers may be private
	Localise      bool
	LocalService  bool
	NonWildcard   bool
	Interfaces    []string // UCI interfaces or devices; empty: all that qualify
	NotInterfaces []string

	ResolvFile string
	NoResolv   bool
	Servers    []Server
	Addresses  []Address
	Strict     bool // servers in their order
	All        bool // ask all servers at once

	NoHosts       bool
	HostsFiles    []string // addnhosts, files or folders
	ReadEthers    bool
	LogQueries    bool
	FilterA       bool
	FilterAAAA    bool
	CacheSize     int // entries
	EDNSMax       int // bytes of an UDP answer
	ForwardMax    int // queries to servers at a time
	LocalTTL      uint32
	MinCacheTTL   uint32
	MaxCacheTTL   uint32
	NoNegCache    bool
	AddHostname   bool // the own name gets the addresses of the LAN
	QuietDHCP     bool
	LeaseFile     string
	LeaseMax      int
	Authoritative bool // NAK what is not ours
	SequentialIP  bool
	NoPing        bool
	TFTPServer    string // dhcp_boot's server part
	BootFile      string // dhcp_boot's file part
}

// Server is an upstream server, for all names or for some domains.
type Server struct {
	Domains []string // empty: all names; "." matches plain names
	// Addr is where to ask. An address that is not valid means: for these
	// domains nobody is asked (Default false) or the general servers are.
	Addr    netip.AddrPort
	Default bool
}

// Address is what a domain and all below it resolve to.
type Address struct {
	Domain string     // empty: every name
	Addr   netip.Addr // invalid: the name does not exist
	Null   bool       // 0.0.0.0 and ::
}

// Mode is what a protocol does on an interface.
type Mode int

// The modes. Hybrid means server unless there is an upstream interface marked
// as master; without relays it is the same as Server here.
const (
	Disabled Mode = iota
	ServerMode
	Relay
	Hybrid
)

func (m Mode) String() string {
	return [...]string{"disabled", "server", "relay", "hybrid"}[m]
}

// Serves tells whether the mode makes this host the server.
func (m Mode) Serves() bool { return m == ServerMode || m == Hybrid }

// Pool is a `dhcp` section: what an interface's clients get.
type Pool struct {
	Name      string // of the section
	Interface string // of UCI
	Ignore    bool
	Force     bool

	V4      Mode
	Start   uint32 // offset of the first address in the network, or the address itself
	Limit   uint32 // number of addresses
	Netmask netip.Addr
	Lease   time.Duration // 0: for ever
	Dynamic bool          // hand out addresses without a `host` section
	Options []Option      // dhcp_option and dhcp_option_force
	Tag     string        // networkid
	Domain  string
	DNS4    []netip.Addr

	V6        Mode
	DHCPv6NA  bool
	DHCPv6PD  bool
	DNS6      []netip.Addr
	Domains   []string // search list of RA and DHCPv6
	NoDNS     bool     // dns_service 0
	RA        Mode
	RADNS     bool
	Managed   bool
	Other     bool
	HomeAgent bool
	SLAAC     bool
	RADefault int // 0: with a default route and a public prefix, 1: with a default route, 2: always
	// RALifetime in seconds; -1: three times RAMax.
	RALifetime   int
	RAMin, RAMax int // seconds
	RAMTU        int // 0: that of the device
	RAHopLimit   int
	RAReachable  int // milliseconds
	RARetrans    int // milliseconds
	RAPreference int // 1 high, 0 medium, -1 low
	OffLink      bool
	MaxPreferred time.Duration
	MaxValid     time.Duration
}

// Option is a DHCPv4 option to send.
type Option struct {
	Code  uint8
	Value []byte
	Tags  []string // only to clients with all of these; "!tag" negates
	Force bool     // also if it was not asked for
	// None takes the option away from the answer.
	None bool
	// SelfAt are offsets in Value of addresses given as 0.0.0.0, which stand
	// for the server's own.
	SelfAt []int
}

// Host is a `host` section.
type Host struct {
	Name   string
	MACs   []MAC
	DUIDs  [][]byte
	IAIDs  []uint32 // 0: any; parallel to DUIDs
	ID     []byte   // client identifier of DHCPv4 ("id:…" among MACs)
	IP     netip.Addr
	Ignore bool          // ip 'ignore'
	Lease  time.Duration // with HasLease
	// HasLease tells that leasetime is set.
	HasLease bool
	HostID   uint64 // of DHCPv6
	Tags     []string
	MatchTag []string
	DNS      bool // name is resolvable although no lease is held
	Bcast    bool
}

// MAC is a hardware address, of which bytes may be wild.
type MAC struct {
	Addr [6]byte
	Wild [6]bool
}

// Matches tells whether hw is meant.
func (m MAC) Matches(hw net.HardwareAddr) bool {
	if len(hw) != 6 {
		return false
	}
	for i, b := range hw {
		if !m.Wild[i] && m.Addr[i] != b {
			return false
		}
	}
	return true
}

// IsWild tells whether it stands for more than one address.
func (m MAC) IsWild() bool { return m.Wild != [6]bool{} }

// Tag is a `tag` section.
type Tag struct {
	Name    string
	Options []Option
}

// Match sets a tag on clients that send something.
type Match struct {
	Tag  string
	Code uint8  // 60 vendor class, 77 user class, or the option of a match section; 0: MAC
	Text string // contained in the option; empty: the option is there
	MAC  MAC
}

// Boot is a `boot` section.
type Boot struct {
	Filename   string
	ServerName string
	Server     netip.Addr
	Tags       []string
	Options    []Option
}

// Records are names that the configuration gives addresses and other data.
type Records struct {
	Names  []Name // domain, hostrecord and hosts with dns
	CNAMEs []CNAME
	SRVs   []SRV
	MXs    []MX
}

// Name is an address of a name.
type Name struct {
	Name string
	Addr netip.Addr
}

// CNAME is an alias.
type CNAME struct{ Alias, Target string }

// SRV is a `srvhost` section.
type SRV struct {
	Name                   string
	Target                 string
	Port, Priority, Weight uint16
}

// MX is a `mxhost` section.
type MX struct {
	Domain, Relay string
	Pref          uint16
}

// The defaults of LEDE's init script and of dnsmasq and odhcpd behind it.
const (
	DefaultPort       = 53
	DefaultCacheSize  = 150
	DefaultEDNS       = 1232
	DefaultForwardMax = 150
	DefaultLeaseMax   = 1000
	DefaultLease      = 12 * time.Hour
	DefaultLeaseFile  = "/tmp/dhcp.leases"
	DefaultResolvFile = "/tmp/resolv.conf.d/resolv.conf.auto"
	DefaultHostsDir   = "/tmp/hosts"

	minLease      = 2 * time.Minute // dnsmasq's
	maxCacheSize  = 100000
	maxForwardMax = 10000
)

// reader reads one section.
type reader struct {
	c *Config
	s *uci.Section
}

func (r reader) fault(option, value, expected string) {
	name := r.s.Name
	if r.s.Anonymous {
		name = "@" + r.s.Type + "(" + r.s.Name + ")"
	}
	r.c.Problems = append(r.c.Problems, Problem{Section: name, Option: option, Value: value, Expected: expected})
}

func (r reader) int(option string, def, least, most int) int {
	v, ok := r.s.Get(option)
	if !ok || v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		r.fault(option, v, fmt.Sprintf("a number from %d to %d", least, most))
		return def
	}
	return n
}

func (r reader) bool(option string, def bool) bool { return r.s.Bool(option, def) }

func (r reader) addr(option string, want4 bool) netip.Addr {
	v, ok := r.s.Get(option)
	if !ok || v == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(v)
	if err != nil || want4 && !a.Is4() {
		r.fault(option, v, "an IP address")
		return netip.Addr{}
	}
	return a
}

// New reads the package; network may be nil. It never fails: see Problems.
func New(p, network *uci.Package) *Config {
	c := &Config{}
	seen := false
	for _, s := range p.Sections {
		r := reader{c, s}
		switch s.Type {
		case "dnsmasq":
			if seen {
				r.fault("", "", "one section of type dnsmasq; this one has no effect")
				continue
			}
			seen = true
			c.DNS = r.dns()
		case "dhcp":
			if pool := r.pool(); pool != nil {
				c.Pools = append(c.Pools, pool)
			}
		case "host":
			r.host()
		case "domain", "hostrecord", "cname", "mxhost", "srvhost":
			r.record()
		case "tag":
			c.Tags = append(c.Tags, r.tag())
		case "vendorclass", "userclass", "mac", "match":
			r.match()
		case "boot":
			if b := r.boot(); b != nil {
				c.Boots = append(c.Boots, b)
			}
		case "odhcpd", "ipset", "relay", "circuitid", "remoteid", "subscrid":
			// odhcpd's own section (maindhcp, leasefile, loglevel) has no
			// counterpart; the others are told below.
			if s.Type != "odhcpd" {
				r.fault("", "", "sections of type "+s.Type+" have no effect in this version")
			}
		default:
			r.fault("", "", "an unknown section type "+s.Type+" has no effect")
		}
	}
	if !seen {
		c.DNS = reader{c, &uci.Section{Type: "dnsmasq"}}.dns()
	}
	if network != nil {
		if g := network.Section("globals"); g != nil {
			if v := g.String("dhcp_default_duid", ""); v != "" && v != "auto" {
				if d, ok := hexBytes(v); ok && len(d) >= 3 && len(d) <= 130 {
					c.ServerDUID = d
				} else {
					c.Problems = append(c.Problems, Problem{Section: "network.globals", Option: "dhcp_default_duid", Value: v, Expected: "hexadecimal digits"})
				}
			}
		}
	}
	return c
}

func (r reader) dns() DNS {
	d := DNS{
		Port:          r.int("port", DefaultPort, 0, 65535),
		Domain:        strings.Trim(r.s.String("domain", ""), "."),
		ExpandHosts:   r.bool("expandhosts", true),
		DomainNeeded:  r.bool("domainneeded", false),
		BogusPriv:     r.bool("boguspriv", true),
		RebindProtect: r.bool("rebind_protection", true),
		RebindLocal:   r.bool("rebind_localhost", false),
		RebindDomains: domains(r.s.List("rebind_domain")),
		Localise:      r.bool("localise_queries", false),
		LocalService:  r.bool("localservice", true),
		NonWildcard:   r.bool("nonwildcard", true),
		Interfaces:    r.s.List("interface"),
		NotInterfaces: r.s.List("notinterface"),
		ResolvFile:    r.s.String("resolvfile", ""),
		NoResolv:      r.bool("noresolv", false),
		Strict:        r.bool("strictorder", false),
		All:           r.bool("allservers", false),
		NoHosts:       r.bool("nohosts", false),
		HostsFiles:    r.s.List("addnhosts"),
		ReadEthers:    r.bool("readethers", false),
		LogQueries:    r.bool("logqueries", false),
		FilterA:       r.bool("filter_a", false),
		FilterAAAA:    r.bool("filter_aaaa", false),
		CacheSize:     r.int("cachesize", DefaultCacheSize, 0, maxCacheSize),
		EDNSMax:       r.int("ednspacket_max", DefaultEDNS, 512, 4096),
		ForwardMax:    r.int("dnsforwardmax", DefaultForwardMax, 1, maxForwardMax),
		LocalTTL:      uint32(r.int("local_ttl", 0, 0, 1<<31-1)),
		MinCacheTTL:   uint32(r.int("min_cache_ttl", 0, 0, 3600)),
		MaxCacheTTL:   uint32(r.int("max_cache_ttl", 0, 0, 1<<31-1)),
		NoNegCache:    r.bool("nonegcache", false),
		AddHostname:   r.bool("add_local_hostname", true),
		QuietDHCP:     r.bool("quietdhcp", false),
		LeaseFile:     r.s.String("leasefile", DefaultLeaseFile),
		LeaseMax:      r.int("dhcpleasemax", DefaultLeaseMax, 1, 65535),
		Authoritative: r.bool("authoritative", false),
		SequentialIP:  r.bool("sequential_ip", false),
		NoPing:        r.bool("noping", false),
	}
	if d.ResolvFile == "" {
		d.ResolvFile = DefaultResolvFile
	}
	for _, l := range r.s.List("local") {
		d.Local = append(d.Local, domains(slashes(l))...)
	}
	for _, v := range r.s.List("server") {
		s, ok := parseServer(v)
		if !ok {
			r.fault("server", v, "address[#port] or /domain/[address[#port]]")
			continue
		}
		d.Servers = append(d.Servers, s...)
	}
	for _, v := range r.s.List("address") {
		a, ok := parseAddress(v)
		if !ok {
			r.fault("address", v, "/domain/[address]")
			continue
		}
		d.Addresses = append(d.Addresses, a...)
	}
	if v := r.s.String("dhcp_boot", ""); v != "" {
		parts := strings.Split(v, ",")
		d.BootFile = parts[0]
		if len(parts) > 2 {
			d.TFTPServer = parts[2]
		}
	}
	return d
}

// slashes splits "/a/b/" into its parts; "a" is one part.
func slashes(v string) []string {
	if !strings.Contains(v, "/") {
		return []string{v}
	}
	var out []string
	for p := range strings.SplitSeq(v, "/") {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

// domains brings names into the form that lookups use: small letters, no dots
// around.
func domains(in []string) []string {
	var out []string
	for _, v := range in {
		for _, d := range slashes(v) {
			if d = strings.ToLower(strings.Trim(d, ".")); d != "" {
				out = append(out, d)
			}
		}
	}
	return out
}

// parseServer reads dnsmasq's --server: [/domain/…/][address[#port][@source]].
func parseServer(v string) ([]Server, bool) {
	var s Server
	rest := v
	if strings.HasPrefix(v, "/") {
		i := strings.LastIndexByte(v, '/')
		if i == 0 {
			return nil, false
		}
		rest = v[i+1:]
		inner := v[1:i]
		if inner == "" {
			s.Domains = []string{"."} // "//" means names without a dot
		} else {
			s.Domains = domains([]string{v[:i+1]})
		}
		if len(s.Domains) == 0 {
			return nil, false
		}
		switch rest {
		case "":
			return []Server{s}, true
		case "#":
			s.Default = true
			return []Server{s}, true
		}
	}
	a, ok := parseAddrPort(rest)
	if !ok {
		return nil, false
	}
	s.Addr = a
	return []Server{s}, true
}

// parseAddrPort reads address[#port], ignoring a source behind "@".
func parseAddrPort(v string) (netip.AddrPort, bool) {
	v, _, _ = strings.Cut(v, "@")
	host, port, has := strings.Cut(v, "#")
	n := 53
	if has {
		var err error
		if n, err = strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return netip.AddrPort{}, false
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, uint16(n)), true
}

// parseAddress reads dnsmasq's --address: /domain/…/[address].
func parseAddress(v string) ([]Address, bool) {
	i := strings.LastIndexByte(v, '/')
	if !strings.HasPrefix(v, "/") || i == 0 {
		return nil, false
	}
	var a Address
	switch rest := v[i+1:]; rest {
	case "":
	case "#":
		a.Null = true
	default:
		addr, err := netip.ParseAddr(rest)
		if err != nil {
			return nil, false
		}
		a.Addr = addr
	}
	var out []Address
	for _, d := range slashes(v[:i+1]) {
		if d == "#" {
			a.Domain = ""
		} else if a.Domain = strings.ToLower(strings.Trim(d, ".")); a.Domain == "" {
			return nil, false
		}
		out = append(out, a)
	}
	return out, len(out) > 0
}

// ParseDuration reads a time as LEDE writes it: 12h, 30m, 7d, 2w, seconds, or
// infinite, which is 0.
func ParseDuration(v string) (time.Duration, bool) {
	if v == "infinite" || v == "-1" {
		return 0, true
	}
	if v == "" {
		return 0, false
	}
	unit := time.Second
	switch v[len(v)-1] {
	case 's', 'S':
	case 'm', 'M':
		unit = time.Minute
	case 'h', 'H':
		unit = time.Hour
	case 'd', 'D':
		unit = 24 * time.Hour
	case 'w', 'W':
		unit = 7 * 24 * time.Hour
	default:
		v += "s"
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil || n == 0 || n > uint64(1<<32-2)/uint64(unit/time.Second) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

func (r reader) lease(option string, def time.Duration) time.Duration {
	v := r.s.String(option, "")
	if v == "" {
		return def
	}
	d, ok := ParseDuration(v)
	if !ok {
		r.fault(option, v, "a time such as 12h, or infinite")
		return def
	}
	if d != 0 && d < minLease {
		return minLease // as dnsmasq
	}
	return d
}
