package settings

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
)

// Load reads the committed configuration in folder dir. A missing file of the
// proxy is no error: Config.Configured is then false. The error is of type
// Faults unless a file could not be read at all.
func Load(dir string) (*Config, error) {
	tree := uci.Tree{ConfDir: dir, NonStrict: true}
	var faults Faults
	load := func(name string) (*uci.Package, error) {
		p, err := tree.LoadCommitted(name)
		if p == nil {
			if errors.Is(err, uci.ErrNotFound) {
				return &uci.Package{Name: name}, err
			}
			return nil, fmt.Errorf("read the configuration %s in %s: %w", name, dir, err)
		}
		if err != nil {
			faults = append(faults, parseFaults(name, err)...)
		}
		return p, nil
	}
	main, err := load(Package)
	if main == nil {
		return nil, err
	}
	if err != nil {
		c := &Config{}
		c.defaults()
		return c, nil
	}
	own := faults
	faults = nil
	network, err := load("network")
	if network == nil {
		return nil, err
	}
	// A bad line of the network's file is the network's affair, as long as the
	// interfaces that are named here can be found.
	faults = own
	c, err := Parse(main, network, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return os.ReadFile(name)
	})
	var more Faults
	if err != nil && !errors.As(err, &more) {
		return nil, err
	}
	if faults = append(faults, more...); len(faults) > 0 {
		return nil, faults
	}
	return c, nil
}

func parseFaults(name string, err error) Faults {
	var out Faults
	errs := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		errs = j.Unwrap()
	}
	for _, e := range errs {
		var p *uci.ParseError
		if errors.As(e, &p) {
			out = append(out, Fault{File: name, Line: p.Line, Expected: p.Msg})
		} else {
			out = append(out, Fault{File: name, Expected: e.Error()})
		}
	}
	return out
}

func (c *Config) defaults() {
	*c = Config{
		ListenPort: DefaultPort, Congestion: "auto", NotsentLowat: DefaultNotsentLowat, FlowBuffer: DefaultFlowBuffer,
		MemoryMax: DefaultMemoryMax, ParkIdle: DefaultParkIdle, MaxFlows: DefaultMaxFlows,
		UDP: true, UDPTimeout: DefaultUDPTimeout, UDPReorder: DefaultUDPReorder,
	}
}

// Parse reads the two packages; network may be empty. readFile reads the files
// that options name. The error is of type Faults.
func Parse(main, network *uci.Package, readFile func(string) ([]byte, error)) (*Config, error) {
	p := &parser{c: &Config{}, readFile: readFile, net: readNetwork(network)}
	p.c.defaults()
	p.c.Configured = true
	types := []string{"mptcpproxy", "peer", "accept", "path", "exclude"}
	seenMain := false
	for _, s := range main.Sections {
		r := &reader{p: p, s: s}
		switch s.Type {
		case "mptcpproxy":
			if seenMain {
				p.warn(s.Name, "", "a second section of type mptcpproxy has no effect")
				continue
			}
			seenMain = true
			p.main(r)
		case "peer":
			p.peer(r)
		case "accept":
			p.accept(r)
		case "path":
			p.path(r)
		case "exclude":
			p.exclude(r)
		default:
			p.warn(s.Name, "", "a section of type "+s.Type+" has no effect"+suggest(s.Type, types))
			continue
		}
		r.rest()
	}
	p.defaultPaths()
	p.whole()
	if len(p.faults) > 0 {
		return nil, p.faults
	}
	return p.c, nil
}

type parser struct {
	c        *Config
	net      *network
	readFile func(string) ([]byte, error)
	faults   Faults
	explicit []string // interfaces and devices that a path section names
}

func (p *parser) warn(section, option, what string) {
	p.c.Warnings = append(p.c.Warnings, Fault{File: Package, Section: section, Option: option, Expected: what})
}

// whole checks what no section alone can be blamed for.
func (p *parser) whole() {
	c := p.c
	if !c.Enabled {
		return
	}
	if len(c.Peers) == 0 && len(c.Accepts) == 0 {
		p.faults = append(p.faults, Fault{File: Package, Expected: "a section of type peer (whom to dial) or accept (who may dial us) is needed"})
	}
	if len(c.Peers) > 0 && len(c.LAN) == 0 {
		p.faults = append(p.faults, Fault{File: Package, Section: "main", Option: "lan", Expected: "at least one interface whose hosts are to be served"})
	}
	seen := map[netip.Prefix]string{}
	for _, peer := range c.Peers {
		for _, d := range peer.Destinations {
			if other, ok := seen[d]; ok {
				p.faults = append(p.faults, Fault{File: Package, Section: peer.Name, Option: "destination", Value: d.String(), Expected: "a prefix that peer " + other + " does not have too"})
			}
			seen[d] = peer.Name
		}
	}
	devices := map[string]string{}
	for _, path := range c.Paths {
		if other, ok := devices[path.Device]; ok {
			p.faults = append(p.faults, Fault{File: Package, Section: path.Name, Option: "device", Value: path.Device, Expected: "a device that path " + other + " does not have too"})
		}
		devices[path.Device] = path.Name
	}
}

func (p *parser) main(r *reader) {
	c := p.c
	c.Enabled = r.bool("enabled", false)
	for _, name := range r.list("lan") {
		if dev := p.net.device(name); dev != "" {
			if !slices.Contains(c.LAN, dev) {
				c.LAN = append(c.LAN, dev)
			}
		} else if validDevice(name) {
			if !slices.Contains(c.LAN, name) {
				c.LAN = append(c.LAN, name)
			}
		} else {
			r.bad("lan", name, "an interface of /etc/config/network, or the name of a device")
		}
	}
	c.ListenPort = uint16(r.number("listen_port", DefaultPort, 1, 65535))
	c.FailClosed = r.choice("fail", 0, "open", "closed") == 1
	c.Syn = Syn(r.choice("syn", 0, "adaptive", "hold", "immediate"))
	c.Congestion = r.word("congestion", "auto", 15) // TCP_CA_NAME_MAX less the NUL
	c.NotsentLowat = r.number("notsent_lowat", DefaultNotsentLowat, 4096, 1<<30)
	c.FlowBuffer = r.number("flow_buffer", DefaultFlowBuffer, 64<<10, 1<<30)
	c.MemoryMax = r.number("memory_max", DefaultMemoryMax, 4<<20, math.MaxInt32)
	c.ParkIdle = r.span("park_idle", DefaultParkIdle, time.Second, 1, 86400)
	c.MaxFlows = r.number("max_flows", DefaultMaxFlows, 1, 1000000)
	c.ClientMaxFlows = r.number("client_max_flows", 0, 0, 1000000)
	c.ClientRate = r.number("client_rate", 0, 0, 1000000)
	c.UDP = r.bool("udp", true)
	c.UDPTimeout = r.span("udp_timeout", DefaultUDPTimeout, time.Second, 1, 86400)
	c.UDPReorder = r.span("udp_reorder", DefaultUDPReorder, time.Millisecond, 0, 1000)
	c.UDPDuplicate = Duplicate(r.choice("udp_duplicate", 0, "off", "small", "all"))
	for _, v := range r.list("protocol") {
		if v == "all" {
			c.AllProtocols = true
			continue
		}
		n, ok := protocol(v)
		if !ok || n == 6 || n == 17 {
			r.bad("protocol", v, "all, or an IP protocol other than tcp and udp: "+strings.Join(protocolNames(), ", ")+", or a number")
			continue
		}
		if !slices.Contains(c.Protocols, n) {
			c.Protocols = append(c.Protocols, n)
		}
	}
	slices.Sort(c.Protocols)
	if v, ok := r.get("metrics"); ok {
		if a, err := netip.ParseAddrPort(v); err == nil && a.Port() != 0 {
			c.Metrics = a.String()
		} else {
			r.bad("metrics", v, "an address and a port, such as 127.0.0.1:9640")
		}
	}
}

func (p *parser) peer(r *reader) {
	x := Peer{Name: r.s.Name}
	enabled := r.bool("enabled", true)
	for _, v := range r.list("address") {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			r.bad("address", v, "the IPv4 or IPv6 address of a host")
			continue
		}
		if a = a.Unmap(); !slices.Contains(x.Addresses, a) {
			x.Addresses = append(x.Addresses, a)
		}
	}
	x.Port = uint16(r.number("port", int(p.c.ListenPort), 1, 65535))
	x.Carrier = Carrier(r.choice("carrier", 0, "convert", "proxy2", "none"))
	x.Framed = r.bool("framed", true)
	x.Key = r.key(x.Carrier == Convert && x.Framed)
	x.Encrypt = r.bool("encrypt", false)
	x.Destinations = r.prefixes("destination")
	if len(x.Destinations) == 0 {
		x.Destinations = everything()
	}
	x.Pool = r.number("pool", DefaultPool, 0, 1024)
	if len(x.Addresses) == 0 && x.Carrier != None {
		r.bad("address", "", "at least one address of the far gateway")
	}
	if x.Encrypt && (x.Carrier != Convert || !x.Framed) {
		r.bad("encrypt", "1", "carrier convert with option framed 1: others have no encryption")
	}
	if enabled {
		p.c.Peers = append(p.c.Peers, x)
	}
}

func (p *parser) accept(r *reader) {
	x := Accept{Name: r.s.Name}
	enabled := r.bool("enabled", true)
	x.Carrier = Carrier(r.choice("carrier", 0, "convert", "proxy2", "none"))
	x.Key = r.key(x.Carrier == Convert)
	x.AllowClient = r.prefixes("allow_client")
	x.AllowDest = r.prefixes("allow_dest")
	x.From = r.prefixes("from")
	if x.Carrier == Proxy2 && r.s.Option("from") == nil {
		r.bad("from", "", "the source addresses of the gateways that may connect: carrier proxy2 knows no keys, and without it this would be an open relay")
	}
	for _, l := range []*[]netip.Prefix{&x.AllowClient, &x.AllowDest, &x.From} {
		if len(*l) == 0 {
			*l = everything()
		}
	}
	if enabled {
		p.c.Accepts = append(p.c.Accepts, x)
	}
}

func (p *parser) path(r *reader) {
	x := Path{Name: r.s.Name}
	enabled := r.bool("enabled", true)
	name, byName := r.get("interface")
	dev, byDevice := r.get("device")
	def := On
	switch {
	case byDevice && !validDevice(dev):
		r.bad("device", dev, "the name of a network device")
	case byDevice:
		x.Device = dev
	case byName && p.net.device(name) == "":
		r.bad("interface", name, "an interface of /etc/config/network that has a device"+suggest(name, p.net.names()))
	case byName:
		x.Device = p.net.device(name)
		if m, ok := p.net.modes[name]; ok {
			def = m
		}
	case p.net.device(x.Name) != "":
		x.Device = p.net.device(x.Name)
		if m, ok := p.net.modes[x.Name]; ok {
			def = m
		}
	default:
		r.bad("device", "", "option interface or option device")
	}
	x.Mode = Mode(r.choice("multipath", int(def), modeNames...))
	x.Weight = r.number("weight", 1, 1, 255)
	x.Quota = uint64(r.number("quota", 0, 0, 1<<30)) * 1e6
	x.QuotaPeriod = Period(r.choice("quota_period", 0, "month", "week", "day"))
	x.Probe = r.bool("probe", true)
	p.explicit = append(p.explicit, x.Device)
	if enabled && x.Mode != Off {
		p.c.Paths = append(p.c.Paths, x)
	}
}

var modeNames = []string{"on", "off", "backup", "master", "handover"}

// defaultPaths adds a path for each interface of the network whose option
// multipath asks for one and that no section names.
func (p *parser) defaultPaths() {
	for _, name := range p.net.order {
		mode, ok := p.net.modes[name]
		dev := p.net.device(name)
		if !ok || mode == Off || dev == "" || slices.Contains(p.explicit, dev) {
			continue
		}
		p.explicit = append(p.explicit, dev)
		p.c.Paths = append(p.c.Paths, Path{Name: name, Device: dev, Mode: mode, Weight: 1, Probe: true})
	}
}

func (p *parser) exclude(r *reader) {
	x := Exclude{Name: r.s.Name}
	enabled := r.bool("enabled", true)
	x.Src = r.prefixes("src")
	x.Dest = r.prefixes("dest")
	for _, v := range r.list("dest_port") {
		first, last, isRange := strings.Cut(v, "-")
		a, aerr := strconv.ParseUint(first, 10, 16)
		b, berr := a, error(nil)
		if isRange {
			b, berr = strconv.ParseUint(last, 10, 16)
		}
		if aerr != nil || berr != nil || a == 0 || b < a {
			r.bad("dest_port", v, "a port such as 22, or a range such as 8000-8999")
			continue
		}
		x.DestPort = append(x.DestPort, PortRange{uint16(a), uint16(b)})
	}
	for _, v := range r.list("proto") {
		n, ok := protocol(v)
		if !ok {
			r.bad("proto", v, "a name or number of an IP protocol, such as tcp, udp, sctp or 132")
			continue
		}
		x.Proto = append(x.Proto, n)
	}
	if v, ok := r.get("mark"); ok {
		value, mask, has := strings.Cut(v, "/")
		n, err := strconv.ParseUint(value, 0, 32)
		m, merr := uint64(math.MaxUint32), error(nil)
		if has {
			m, merr = strconv.ParseUint(mask, 0, 32)
		}
		if err != nil || merr != nil || m == 0 {
			r.bad("mark", v, "a packet mark such as 0x10, or mark/mask")
		}
		x.Mark, x.MarkMask = uint32(n), uint32(m)
	}
	x.Set = r.word("set", "", 255)
	parts := []string{"src", "dest", "dest_port", "proto", "mark", "set"}
	if !slices.ContainsFunc(parts, func(o string) bool { return r.s.Option(o) != nil }) {
		r.bad("", "", "one of src, dest, dest_port, proto, mark, set: an empty exclude would exclude all traffic")
	}
	if enabled {
		p.c.Excludes = append(p.c.Excludes, x)
	}
}

func everything() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// reader reads the options of one section.
type reader struct {
	p     *parser
	s     *uci.Section
	known []string
}

func (r *reader) bad(option, value, expected string) {
	r.p.faults = append(r.p.faults, Fault{File: Package, Section: r.s.Name, Option: option, Value: value, Expected: "expected " + expected})
}

// get returns the value of an option that is no list.
func (r *reader) get(option string) (string, bool) {
	r.known = append(r.known, option)
	o := r.s.Option(option)
	if o == nil || len(o.Values) == 0 {
		return "", false
	}
	if o.IsList && len(o.Values) > 1 {
		r.bad(option, strings.Join(o.Values, " "), "one value")
		return "", false
	}
	return o.Values[0], true
}

func (r *reader) list(option string) []string {
	r.known = append(r.known, option)
	return r.s.List(option)
}

// rest warns of the options that nothing has asked for.
func (r *reader) rest() {
	for _, o := range r.s.Options {
		if !slices.Contains(r.known, o.Name) {
			r.p.warn(r.s.Name, o.Name, "there is no such option in a section of type "+r.s.Type+suggest(o.Name, r.known))
		}
	}
}

func (r *reader) bool(option string, def bool) bool {
	v, ok := r.get(option)
	if !ok {
		return def
	}
	switch v {
	case "1", "on", "true", "yes", "enabled":
		return true
	case "0", "off", "false", "no", "disabled":
		return false
	}
	r.bad(option, v, "0 or 1")
	return def
}

func (r *reader) number(option string, def, low, high int) int {
	v, ok := r.get(option)
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

// span reads a whole number of units.
func (r *reader) span(option string, def, unit time.Duration, low, high int) time.Duration {
	return time.Duration(r.number(option, int(def/unit), low, high)) * unit
}

func (r *reader) choice(option string, def int, of ...string) int {
	v, ok := r.get(option)
	if !ok {
		return def
	}
	i := slices.Index(of, v)
	if i < 0 {
		r.bad(option, v, "one of "+strings.Join(of, ", ")+suggest(v, of))
		return def
	}
	return i
}

// word reads a name of letters, digits, _ and -.
func (r *reader) word(option, def string, most int) string {
	v, ok := r.get(option)
	if !ok {
		return def
	}
	if v == "" || len(v) > most || strings.ContainsFunc(v, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-')
	}) {
		r.bad(option, v, fmt.Sprintf("a name of letters, digits, _ and -, at most %d characters", most))
		return def
	}
	return v
}

func (r *reader) prefixes(option string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range r.list(option) {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(v); err == nil && a.Zone() == "" {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if err != nil || !p.IsValid() || p.Addr().Is4In6() {
			r.bad(option, v, "an address or a prefix such as 192.168.1.0/24 or fd00::/8")
			continue
		}
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// minSecret is the least length of a shared key in characters: what genkey
// makes has 44. Shorter ones can be guessed offline by whoever sees a handshake.
const minSecret = 16

// key reads the options by which a peer is known.
func (r *reader) key(needed bool) Key {
	var k Key
	shared, hasShared := r.secret("key", "key_file")
	private, hasPrivate := r.secret("private_key", "private_key_file")
	peer, hasPeer := r.get("peer_key")
	switch {
	case hasShared && (hasPrivate || hasPeer):
		r.bad("key", "", "either a shared key, or private_key and peer_key, not both")
	case hasShared:
		if len(shared) < minSecret {
			r.bad("key", "", fmt.Sprintf("at least %d characters; mptcp genkey makes one", minSecret))
		}
		k.Shared = shared
	case hasPrivate != hasPeer:
		r.bad("private_key", "", "private_key (ours) together with peer_key (the other side's public key)")
	case hasPrivate:
		k.Private = r.bytes32("private_key", private, true)
		k.Peer = r.bytes32("peer_key", peer, false)
	case needed:
		r.bad("key", "", "a key (option key or key_file, or private_key and peer_key): whoever holds none is not let in; mptcp genkey makes one")
	}
	return k
}

// secret reads a value that stands in the option or in the file that another
// option names.
func (r *reader) secret(option, fileOption string) (string, bool) {
	v, here := r.get(option)
	name, there := r.get(fileOption)
	switch {
	case here && there:
		r.bad(fileOption, name, "either "+option+" or "+fileOption+", not both")
		return v, true
	case there:
		text, err := r.p.readFile(name)
		if err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			r.bad(fileOption, name, "a file that can be read: "+err.Error())
			return strings.Repeat(" ", minSecret), true // one fault is enough
		}
		return strings.TrimSpace(string(text)), true
	}
	return v, here
}

func (r *reader) bytes32(option, v string, secret bool) []byte {
	b, err := base64.StdEncoding.DecodeString(v)
	if err != nil || len(b) != 32 {
		if secret {
			v = ""
		}
		r.bad(option, v, "32 bytes in base64, as mptcp genkey prints them")
		return nil
	}
	return b
}

// protocols are the names of IP protocols (IANA protocol-numbers) that people
// write; others go by number.
var protocols = map[string]uint8{
	"icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51,
	"icmpv6": 58, "ospf": 89, "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}

func protocolNames() []string {
	var names []string
	for n := range protocols {
		if n != "tcp" && n != "udp" {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func protocol(v string) (uint8, bool) {
	if n, ok := protocols[strings.ToLower(v)]; ok {
		return n, true
	}
	n, err := strconv.ParseUint(v, 10, 8)
	return uint8(n), err == nil
}

// validDevice accepts what the kernel takes as a name (dev_valid_name).
func validDevice(v string) bool {
	return v != "" && v != "." && v != ".." && len(v) <= 15 && !strings.ContainsAny(v, "/: \t\n\v\f\r\x00")
}

// suggest names the known word that is nearest, if one is near enough.
func suggest(word string, known []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, k := range slices.SortedFunc(slices.Values(known), cmp.Compare) {
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the number of single-character edits between two words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// network is what the proxy takes from /etc/config/network.
type network struct {
	devices map[string]string // by interface; "@other" is an alias
	modes   map[string]Mode   // of those interfaces with a valid option multipath
	order   []string
}

func readNetwork(p *uci.Package) *network {
	n := &network{devices: map[string]string{}, modes: map[string]Mode{}}
	if p == nil {
		return n
	}
	for _, s := range p.SectionsOfType("interface") {
		n.order = append(n.order, s.Name)
		dev := s.String("device", s.String("ifname", ""))
		if s.String("type", "") == "bridge" {
			dev = "br-" + s.Name // made by the interface until 19.07
		}
		n.devices[s.Name] = dev
		if i := slices.Index(modeNames, s.String("multipath", "")); i >= 0 && !s.Bool("disabled", false) {
			n.modes[s.Name] = Mode(i)
		}
	}
	return n
}

func (n *network) names() []string { return n.order }

// device is the device of an interface, "" if there is no such interface or it
// has none that is a name.
func (n *network) device(name string) string {
	for range len(n.order) + 1 {
		dev := n.devices[name]
		alias, isAlias := strings.CutPrefix(dev, "@")
		if !isAlias {
			if !validDevice(dev) {
				return ""
			}
			return dev
		}
		name = alias
	}
	return ""
}
