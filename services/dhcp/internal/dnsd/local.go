package dnsd

import (
	"bufio"
	"cmp"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"weft/services/dhcp/internal/config"
)

// names are what this host knows by itself.
type names struct {
	addrs   map[string][]netip.Addr // small letters, no dot at the end
	cnames  map[string]string
	mx      map[string][]config.MX
	srv     map[string][]config.SRV
	reverse map[netip.Addr]string
	parents map[string]struct{} // names that have names below them
}

func newNames() *names {
	return &names{parents: map[string]struct{}{}, addrs: map[string][]netip.Addr{}, cnames: map[string]string{}, mx: map[string][]config.MX{}, srv: map[string][]config.SRV{}, reverse: map[netip.Addr]string{}}
}

// maxNames bounds what is read from hosts files.
const maxNames = 200000

// add gives a name an address; the first name of an address is the one it is
// called back by.
func (n *names) add(name string, a netip.Addr) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(n.addrs) >= maxNames || name == "" {
		return
	}
	if !slices.Contains(n.addrs[name], a) {
		n.addrs[name] = append(n.addrs[name], a)
	}
	if _, ok := n.reverse[a]; !ok {
		n.reverse[a] = name
	}
	n.above(name)
}

// above notes that the names above exist as well (RFC 8020).
func (n *names) above(name string) {
	for {
		_, up, ok := strings.Cut(name, ".")
		if !ok {
			return
		}
		if _, there := n.parents[up]; there {
			return
		}
		n.parents[up] = struct{}{}
		name = up
	}
}

// addHost adds a name as hosts files and leases have it: a plain one is also
// known in the domain, and called back by that.
func (n *names) addHost(name, domain string, a netip.Addr, expand bool) {
	if expand && domain != "" && !strings.Contains(name, ".") {
		n.add(name+"."+domain, a)
	}
	n.add(name, a)
}

// ReadHosts reads a hosts file: an address and its names on each line.
// Lines that make no sense are left out.
func ReadHosts(r io.Reader, add func(name string, a netip.Addr)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 64<<10)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, name := range f[1:] {
			if config.ValidName(strings.TrimSuffix(name, ".")) {
				add(name, a.WithZone("").Unmap())
			}
		}
	}
	return sc.Err()
}

// readHostsAt reads a file, or all files of a folder. A missing one is empty.
func readHostsAt(path string, add func(string, netip.Addr)) error {
	entries, err := os.ReadDir(path)
	if err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") || e.IsDir() {
				continue
			}
			if err := readHostsAt(filepath.Join(path, e.Name()), add); err != nil {
				return err
			}
		}
		return nil
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	const most = 16 << 20
	return ReadHosts(io.LimitReader(f, most), add)
}

// privateAddr tells whether an address can only be of the house or of nobody
// (RFC 6303): what dnsmasq takes for private.
func privateAddr(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || inAny(a, sharedNets[:])
}

// sharedNets are further networks that names outside have no business with: of
// this network, of examples (RFC 5737, RFC 3849), and the broadcast address.
var sharedNets = [...]netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom4([4]byte{0, 0, 0, 0}), 8),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, 0}), 24),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, 0}), 24),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, 0}), 24),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 32),
	netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8}), 32),
}

func inAny(a netip.Addr, nets []netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// reverseAddr reads the address of a PTR question. A name above a single
// address gives the network it stands for.
func reverseAddr(name string) (netip.Prefix, bool) {
	if v, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(v, ".")
		if len(labels) > 4 {
			labels = labels[len(labels)-4:]
		}
		var b [4]byte
		for i, l := range labels {
			n := 0
			if l == "" || len(l) > 3 {
				return netip.Prefix{}, false
			}
			for _, c := range l {
				if c < '0' || c > '9' {
					return netip.Prefix{}, false
				}
				n = n*10 + int(c-'0')
			}
			if n > 255 {
				return netip.Prefix{}, false
			}
			b[len(labels)-1-i] = byte(n)
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*len(labels)), true
	}
	if v, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		labels := strings.Split(v, ".")
		if len(labels) > 32 {
			labels = labels[len(labels)-32:]
		}
		var b [16]byte
		for i, l := range labels {
			n := strings.IndexByte("0123456789abcdef", (l + "x")[0])
			if len(l) != 1 || n < 0 {
				return netip.Prefix{}, false
			}
			at := len(labels) - 1 - i
			b[at/2] |= byte(n) << (4 * (1 - at%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(labels)), true
	}
	return netip.Prefix{}, false
}

// under tells whether name is domain or below it.
func under(name, domain string) bool {
	if domain == "" || name == domain {
		return true
	}
	return len(name) > len(domain) && strings.HasSuffix(name, domain) && name[len(name)-len(domain)-1] == '.'
}

// specialDomains are not asked about outside (RFC 6761, RFC 6762, RFC 7686), as
// in LEDE's rfc6761.conf.
var specialDomains = [...]string{"bind", "invalid", "local", "localhost", "onion", "test"}

// rule says what happens to a domain: an address, or whom to ask.
type rule struct {
	domain  string
	address *config.Address
	servers []netip.AddrPort // nil: nobody, the names are local
	general bool             // the servers for everything else
}

// rules puts the longest domain first, so that the first match counts.
func rules(d *config.DNS) []rule {
	var out []rule
	at := func(domain string) *rule {
		for i := range out {
			if out[i].domain == domain && out[i].address == nil {
				return &out[i]
			}
		}
		out = append(out, rule{domain: domain})
		return &out[len(out)-1]
	}
	for i := range d.Addresses {
		out = append(out, rule{domain: d.Addresses[i].Domain, address: &d.Addresses[i]})
	}
	for _, s := range d.Servers {
		for _, domain := range s.Domains {
			r := at(domain)
			if s.Default {
				r.general = true
			}
			if s.Addr.IsValid() {
				r.servers = append(r.servers, s.Addr)
			}
		}
	}
	for _, l := range d.Local {
		at(l)
	}
	for _, s := range specialDomains {
		if !slices.ContainsFunc(out, func(r rule) bool { return r.domain == s }) {
			at(s)
		}
	}
	slices.SortStableFunc(out, func(a, b rule) int { return cmp.Compare(len(b.domain), len(a.domain)) })
	return out
}

// match finds the rule of a name. The domain "." is for names without dots.
func match(rs []rule, name string, qtype uint16) *rule {
	for i := range rs {
		r := &rs[i]
		if r.domain == "." {
			if !strings.Contains(name, ".") && name != "" {
				return r
			}
			continue
		}
		if !under(name, r.domain) {
			continue
		}
		// An address of one family leaves the other one alone, if there is a
		// second address for it; else the name has nothing there.
		if a := r.address; a != nil && a.Addr.IsValid() && (qtype == dns.TypeA && a.Addr.Is6() || qtype == dns.TypeAAAA && a.Addr.Is4()) {
			if j := slices.IndexFunc(rs[i+1:], func(o rule) bool {
				return o.domain == r.domain && o.address != nil && o.address.Addr.Is4() != a.Addr.Is4()
			}); j >= 0 {
				return &rs[i+1+j]
			}
		}
		return r
	}
	return nil
}
