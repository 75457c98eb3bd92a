package nettools

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tables has the names of /etc/iproute2/rt_tables that are always there.
var tables = []struct {
	name string
	id   int
}{{"local", unix.RT_TABLE_LOCAL}, {"main", unix.RT_TABLE_MAIN}, {"default", unix.RT_TABLE_DEFAULT}}

func tableID(s string) (int, error) {
	for _, t := range tables {
		if t.name == s {
			return t.id, nil
		}
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return 0, usageError(fmt.Sprintf("table: %q is neither local, main, default nor a number", s))
	}
	return int(n), nil
}

func tableName(id int) string {
	for _, t := range tables {
		if t.id == id {
			return t.name
		}
	}
	return strconv.Itoa(id)
}

func (c *ipCommand) table() (int, error) {
	s, err := c.value("table")
	if err != nil {
		return 0, err
	}
	return tableID(s)
}

// prefix takes "default", an address or a prefix; nil is the default route.
func (c *ipCommand) prefix(s string) (*net.IPNet, error) {
	if s == "default" || s == "all" || s == "any" {
		return nil, nil
	}
	if !strings.Contains(s, "/") {
		ip := net.ParseIP(s)
		if ip == nil {
			return nil, usageError(fmt.Sprintf("%q is not a prefix (example: 10.0.0.0/8)", s))
		}
		return netlink.NewIPNet(ip), nil
	}
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		return nil, usageError(fmt.Sprintf("%q is not a prefix (example: 10.0.0.0/8)", s))
	}
	return n, nil
}

func (c *ipCommand) route(f func(*netlink.Route) error, what string) error {
	r := netlink.Route{Table: unix.RT_TABLE_MAIN}
	dst := c.next()
	for _, kind := range []struct {
		name string
		t    int
	}{{"unreachable", unix.RTN_UNREACHABLE}, {"blackhole", unix.RTN_BLACKHOLE}, {"prohibit", unix.RTN_PROHIBIT}} {
		if dst == kind.name {
			r.Type, dst = kind.t, c.next()
		}
	}
	if dst == "" {
		return usageError("which prefix?")
	}
	var err error
	if r.Dst, err = c.prefix(dst); err != nil {
		return err
	}
	for len(c.words) > 0 {
		word := c.next()
		switch word {
		case "via", "src", "dev", "proto", "scope":
			v, err := c.value(word)
			if err != nil {
				return err
			}
			switch word {
			case "via":
				r.Gw = net.ParseIP(v)
			case "src":
				r.Src = net.ParseIP(v)
			case "dev":
				l, err := linkByName(v)
				if err != nil {
					return err
				}
				r.LinkIndex = l.Attrs().Index
			case "proto":
				n, err := strconv.ParseUint(v, 0, 8)
				if v == "static" {
					n, err = unix.RTPROT_STATIC, nil
				}
				if err != nil {
					return usageError(fmt.Sprintf("proto: %q is neither static nor a number", v))
				}
				r.Protocol = netlink.RouteProtocol(n)
			case "scope":
				switch v {
				case "global":
					r.Scope = netlink.SCOPE_UNIVERSE
				case "link":
					r.Scope = netlink.SCOPE_LINK
				case "host":
					r.Scope = netlink.SCOPE_HOST
				default:
					return usageError(fmt.Sprintf("scope: %q is none of global, link, host", v))
				}
			}
			if word == "via" && r.Gw == nil || word == "src" && r.Src == nil {
				return usageError(fmt.Sprintf("%s: %q is not an address", word, v))
			}
		case "metric", "mtu":
			n, err := c.number(word)
			if err != nil {
				return err
			}
			if word == "metric" {
				r.Priority = n
			} else {
				r.MTU = n
			}
		case "table":
			if r.Table, err = c.table(); err != nil {
				return err
			}
		case "onlink":
			r.SetFlag(netlink.FLAG_ONLINK)
		default:
			return usageError("unknown word " + word)
		}
	}
	if r.Dst == nil {
		// the default route needs its family told
		_, r.Dst, _ = net.ParseCIDR("0.0.0.0/0")
		if c.family == netlink.FAMILY_V6 || r.Gw != nil && r.Gw.To4() == nil {
			_, r.Dst, _ = net.ParseCIDR("::/0")
		}
	}
	if r.Gw == nil && r.LinkIndex != 0 && r.Dst.IP.To4() != nil && r.Scope == 0 && r.Type == 0 {
		r.Scope = netlink.SCOPE_LINK
	}
	if what == "delete" {
		r.Scope = netlink.SCOPE_NOWHERE // any
	}
	if err := f(&r); err != nil {
		return fmt.Errorf("%s route %s: %w", what, dst, err)
	}
	return nil
}

// routeFamily is the family a listing of routes or rules shows: IPv4 without -6, as
// in iproute2.
func (c *ipCommand) routeFamily() int {
	if c.family == netlink.FAMILY_ALL {
		return netlink.FAMILY_V4
	}
	return c.family
}

func (c *ipCommand) showRoutes() error {
	filter := netlink.Route{Table: unix.RT_TABLE_MAIN}
	mask := uint64(netlink.RT_FILTER_TABLE)
	all := false
	for len(c.words) > 0 {
		switch word := c.next(); word {
		case "table":
			if len(c.words) > 0 && c.words[0] == "all" {
				c.next()
				all = true
				filter.Table = unix.RT_TABLE_UNSPEC
				continue
			}
			t, err := c.table()
			if err != nil {
				return err
			}
			filter.Table = t
		case "dev":
			name, err := c.value(word)
			if err != nil {
				return err
			}
			l, err := linkByName(name)
			if err != nil {
				return err
			}
			filter.LinkIndex, mask = l.Attrs().Index, mask|netlink.RT_FILTER_OIF
		default:
			return usageError("unknown word " + word)
		}
	}
	list, err := netlink.RouteListFiltered(c.routeFamily(), &filter, mask)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	return c.printRoutes(list, all)
}

type routeInfo struct {
	Type     string `json:"type,omitempty"`
	Dst      string `json:"dst"`
	Gateway  string `json:"gateway,omitempty"`
	Dev      string `json:"dev,omitempty"`
	Table    string `json:"table,omitempty"`
	Protocol string `json:"protocol"`
	Scope    string `json:"scope,omitempty"`
	Src      string `json:"prefsrc,omitempty"`
	Metric   int    `json:"metric,omitempty"`
}

func (c *ipCommand) printRoutes(list []netlink.Route, withTable bool) error {
	names := map[int]string{}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	infos := []routeInfo{}
	for _, r := range list {
		info := routeInfo{Dst: "default", Dev: names[r.LinkIndex], Protocol: r.Protocol.String(), Metric: r.Priority}
		if r.Dst != nil {
			if ones, bits := r.Dst.Mask.Size(); ones == bits {
				info.Dst = r.Dst.IP.String()
			} else if ones > 0 {
				info.Dst = r.Dst.String()
			}
		}
		switch r.Type {
		case unix.RTN_UNREACHABLE:
			info.Type = "unreachable"
		case unix.RTN_BLACKHOLE:
			info.Type = "blackhole"
		case unix.RTN_PROHIBIT:
			info.Type = "prohibit"
		case unix.RTN_LOCAL:
			info.Type = "local"
		case unix.RTN_BROADCAST:
			info.Type = "broadcast"
		case unix.RTN_MULTICAST:
			info.Type = "multicast"
		case unix.RTN_ANYCAST:
			info.Type = "anycast"
		}
		if r.Gw != nil {
			info.Gateway = r.Gw.String()
		}
		if r.Src != nil {
			info.Src = r.Src.String()
		}
		if r.Scope != netlink.SCOPE_UNIVERSE {
			info.Scope = scopeName(int(r.Scope))
		}
		if withTable && r.Table != unix.RT_TABLE_MAIN {
			info.Table = tableName(r.Table)
		}
		infos = append(infos, info)
	}
	if c.json {
		return c.printJSON(infos)
	}
	for _, i := range infos {
		var b strings.Builder
		if i.Type != "" {
			b.WriteString(i.Type + " ")
		}
		b.WriteString(i.Dst)
		for _, part := range []struct{ word, value string }{{"via", i.Gateway}, {"dev", i.Dev}, {"table", i.Table}, {"proto", i.Protocol}, {"scope", i.Scope}, {"src", i.Src}} {
			if part.value != "" {
				b.WriteString(" " + part.word + " " + part.value)
			}
		}
		if i.Metric > 0 {
			fmt.Fprintf(&b, " metric %d", i.Metric)
		}
		fmt.Fprintln(c.call.Stdout, b.String())
	}
	return nil
}

func (c *ipCommand) getRoute() error {
	s := c.next()
	ip := net.ParseIP(s)
	if ip == nil {
		return usageError(fmt.Sprintf("%q is not an address", s))
	}
	list, err := netlink.RouteGet(ip)
	if err != nil {
		return fmt.Errorf("route to %s: %w", ip, err)
	}
	return c.printRoutes(list, true)
}

func (c *ipCommand) rule(f func(*netlink.Rule) error, what string) error {
	r := netlink.NewRule()
	r.Family = c.routeFamily()
	for len(c.words) > 0 {
		var err error
		switch word := c.next(); word {
		case "from", "to":
			var s string
			if s, err = c.value(word); err != nil {
				return err
			}
			p, perr := c.prefix(s)
			if perr != nil {
				return perr
			}
			if p != nil && p.IP.To4() == nil {
				r.Family = netlink.FAMILY_V6
			}
			if word == "from" {
				r.Src = p
			} else {
				r.Dst = p
			}
		case "iif":
			r.IifName, err = c.value(word)
		case "oif":
			r.OifName, err = c.value(word)
		case "fwmark":
			var s string
			if s, err = c.value(word); err == nil {
				n, perr := strconv.ParseUint(s, 0, 32)
				if perr != nil {
					return usageError(fmt.Sprintf("fwmark: %q is not a number", s))
				}
				r.Mark = uint32(n)
			}
		case "priority", "pref":
			r.Priority, err = c.number(word)
		case "table", "lookup":
			r.Table, err = c.table()
		default:
			return usageError("unknown word " + word)
		}
		if err != nil {
			return err
		}
	}
	if what == "add" && r.Table <= 0 {
		return usageError("a rule needs a table")
	}
	if err := f(r); err != nil {
		return fmt.Errorf("%s rule: %w", what, err)
	}
	return nil
}

type ruleInfo struct {
	Priority int    `json:"priority"`
	Src      string `json:"src"`
	Dst      string `json:"dst,omitempty"`
	Mark     string `json:"fwmark,omitempty"`
	Iif      string `json:"iif,omitempty"`
	Oif      string `json:"oif,omitempty"`
	Table    string `json:"table"`
}

func (c *ipCommand) showRules() error {
	list, err := netlink.RuleList(c.routeFamily())
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	infos := []ruleInfo{}
	for _, r := range list {
		i := ruleInfo{Priority: max(r.Priority, 0), Src: "all", Iif: r.IifName, Oif: r.OifName, Table: tableName(r.Table)}
		if r.Src != nil {
			i.Src = r.Src.String()
		}
		if r.Dst != nil {
			i.Dst = r.Dst.String()
		}
		if r.Mark != 0 {
			i.Mark = fmt.Sprintf("%#x", r.Mark)
		}
		infos = append(infos, i)
	}
	if c.json {
		return c.printJSON(infos)
	}
	for _, i := range infos {
		line := fmt.Sprintf("%d:\tfrom %s", i.Priority, i.Src)
		for _, part := range []struct{ word, value string }{{"to", i.Dst}, {"fwmark", i.Mark}, {"iif", i.Iif}, {"oif", i.Oif}, {"lookup", i.Table}} {
			if part.value != "" {
				line += " " + part.word + " " + part.value
			}
		}
		fmt.Fprintln(c.call.Stdout, line)
	}
	return nil
}

type neighbourInfo struct {
	Dst   string   `json:"dst"`
	Dev   string   `json:"dev"`
	MAC   string   `json:"lladdr,omitempty"`
	State []string `json:"state"`
}

func (c *ipCommand) showNeighbours() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	if want := c.next(); want != "" {
		if want == "dev" {
			want = c.next()
		}
		l, err := linkByName(want)
		if err != nil {
			return err
		}
		links = []netlink.Link{l}
	}
	infos := []neighbourInfo{}
	for _, l := range links {
		list, err := netlink.NeighList(l.Attrs().Index, c.family)
		if err != nil {
			return fmt.Errorf("list the neighbours on %s: %w", l.Attrs().Name, err)
		}
		for _, n := range list {
			if n.State&unix.NUD_NOARP != 0 {
				continue
			}
			infos = append(infos, neighbourInfo{n.IP.String(), l.Attrs().Name, n.HardwareAddr.String(), []string{neighbourState(n.State)}})
		}
	}
	if c.json {
		return c.printJSON(infos)
	}
	for _, i := range infos {
		mac := ""
		if i.MAC != "" {
			mac = " lladdr " + i.MAC
		}
		fmt.Fprintf(c.call.Stdout, "%s dev %s%s %s\n", i.Dst, i.Dev, mac, i.State[0])
	}
	return nil
}

func neighbourState(s int) string {
	for _, n := range []struct {
		bit  int
		name string
	}{{unix.NUD_INCOMPLETE, "INCOMPLETE"}, {unix.NUD_REACHABLE, "REACHABLE"}, {unix.NUD_STALE, "STALE"}, {unix.NUD_DELAY, "DELAY"},
		{unix.NUD_PROBE, "PROBE"}, {unix.NUD_FAILED, "FAILED"}, {unix.NUD_PERMANENT, "PERMANENT"}} {
		if s&n.bit != 0 {
			return n.name
		}
	}
	return "NONE"
}

func (c *ipCommand) deleteNeighbour() error {
	s := c.next()
	ip := net.ParseIP(s)
	if ip == nil {
		return usageError(fmt.Sprintf("%q is not an address", s))
	}
	return c.withLink(func(l netlink.Link) error {
		return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: ip})
	}, "delete "+s+" on")
}
