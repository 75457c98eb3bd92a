package nettools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/init/unit"
)

const ipUsage = `Usage: ip [-4|-6] [-j] [-br] OBJECT [COMMAND]
  ip link [show [DEV]] | set DEV [up|down] [mtu N] [address MAC] [name NEW] [master BRIDGE|nomaster]
          | add [link PARENT] NAME type bridge|dummy|vlan id N|veth peer name PEER | del DEV
  ip addr [show [DEV]] | add ADDRESS/LEN dev DEV | del ADDRESS/LEN dev DEV | flush dev DEV
  ip route [show [table T]] | add|replace|del PREFIX|default [via GATEWAY] [dev DEV] [src ADDRESS] [metric N] [table T] [onlink] | get ADDRESS
  ip rule [show] | add|del [from PREFIX] [to PREFIX] [iif DEV] [fwmark N] [priority N] table T
  ip neigh [show [dev DEV]] | del ADDRESS dev DEV
Example: ip addr add 192.168.2.1/24 dev br-lan
`

// ipCommand is one call of ip: the words that are left, and how to print.
type ipCommand struct {
	words       []string
	family      int
	json, brief bool
	call        *unit.Call
}

// usageError is a command line that cannot be used; the exit code is 2.
type usageError string

func (e usageError) Error() string { return string(e) }

// IP shows and changes links, addresses, routes, rules and neighbours, with the
// words and the output of iproute2's ip.
func IP(_ context.Context, c *unit.Call) int {
	cmd := &ipCommand{words: c.Args[1:], family: netlink.FAMILY_ALL, call: c}
	for len(cmd.words) > 0 && strings.HasPrefix(cmd.words[0], "-") {
		switch cmd.words[0] {
		case "-4":
			cmd.family = netlink.FAMILY_V4
		case "-6":
			cmd.family = netlink.FAMILY_V6
		case "-j", "-json":
			cmd.json = true
		case "-br", "-brief":
			cmd.brief = true
		case "-o", "-d", "-s", "-p": // more or less to print; the output here has one form
		case "-h", "-help", "--help":
			fmt.Fprint(c.Stdout, ipUsage)
			return 0
		default:
			fmt.Fprintf(c.Stderr, "ip: unknown option %s\n%s", cmd.words[0], ipUsage)
			return 2
		}
		cmd.words = cmd.words[1:]
	}
	err := cmd.run()
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(c.Stderr, "ip: %v\n%s", err, ipUsage)
		return 2
	}
	fmt.Fprintf(c.Stderr, "ip: %v\n", err)
	return 1
}

func (c *ipCommand) run() error {
	object := c.next()
	verb := c.next()
	// prefixes count, as in iproute2: ip a, ip r, ip link sh
	match := func(word string, full ...string) bool {
		return word != "" && slices.ContainsFunc(full, func(f string) bool { return strings.HasPrefix(f, word) })
	}
	show := verb == "" || match(verb, "show", "list", "ls")
	switch {
	case object == "":
		return usageError("no object")
	case match(object, "link"):
		switch {
		case show:
			return c.showLinks(false)
		case verb == "set":
			return c.setLink()
		case verb == "add":
			return c.addLink()
		case match(verb, "delete"):
			return c.withLink(netlink.LinkDel, "delete")
		}
	case match(object, "address", "addr"):
		switch {
		case show:
			return c.showLinks(true)
		case verb == "add":
			return c.address(netlink.AddrAdd, "add")
		case verb == "replace":
			return c.address(netlink.AddrReplace, "replace")
		case match(verb, "delete"):
			return c.address(netlink.AddrDel, "delete")
		case verb == "flush":
			return c.flushAddresses()
		}
	case match(object, "route"):
		switch {
		case show:
			return c.showRoutes()
		case verb == "get":
			return c.getRoute()
		case verb == "add":
			return c.route(netlink.RouteAdd, "add")
		case verb == "replace":
			return c.route(netlink.RouteReplace, "replace")
		case match(verb, "delete"):
			return c.route(netlink.RouteDel, "delete")
		}
	case match(object, "rule"):
		switch {
		case show:
			return c.showRules()
		case verb == "add":
			return c.rule(netlink.RuleAdd, "add")
		case match(verb, "delete"):
			return c.rule(netlink.RuleDel, "delete")
		}
	case match(object, "neighbour", "neighbor"):
		switch {
		case show:
			return c.showNeighbours()
		case match(verb, "delete"):
			return c.deleteNeighbour()
		}
	default:
		return usageError("unknown object " + object)
	}
	return usageError(fmt.Sprintf("unknown command %s of %s", verb, object))
}

func (c *ipCommand) next() string {
	if len(c.words) == 0 {
		return ""
	}
	w := c.words[0]
	c.words = c.words[1:]
	return w
}

// value is the word behind a keyword.
func (c *ipCommand) value(keyword string) (string, error) {
	if len(c.words) == 0 {
		return "", usageError("a value is missing behind " + keyword)
	}
	return c.next(), nil
}

func (c *ipCommand) number(keyword string) (int, error) {
	s, err := c.value(keyword)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 0, 31)
	if err != nil {
		return 0, usageError(fmt.Sprintf("%s: %q is not a number", keyword, s))
	}
	return int(n), nil
}

func linkByName(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("no device %s here (ip link lists them): %w", name, err)
	}
	return l, nil
}

func (c *ipCommand) withLink(f func(netlink.Link) error, what string) error {
	name := c.next()
	if name == "dev" {
		name = c.next()
	}
	if name == "" {
		return usageError("which device?")
	}
	l, err := linkByName(name)
	if err != nil {
		return err
	}
	if err := f(l); err != nil {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

func (c *ipCommand) setLink() error {
	name := c.next()
	if name == "dev" {
		name = c.next()
	}
	if name == "" {
		return usageError("which device?")
	}
	l, err := linkByName(name)
	if err != nil {
		return err
	}
	for len(c.words) > 0 {
		word := c.next()
		var err error
		switch word {
		case "up":
			err = netlink.LinkSetUp(l)
		case "down":
			err = netlink.LinkSetDown(l)
		case "nomaster":
			err = netlink.LinkSetNoMaster(l)
		case "mtu":
			var n int
			if n, err = c.number(word); err == nil {
				err = netlink.LinkSetMTU(l, n)
			}
		case "name":
			var s string
			if s, err = c.value(word); err == nil {
				err = netlink.LinkSetName(l, s)
			}
		case "address":
			var s string
			if s, err = c.value(word); err == nil {
				mac, perr := net.ParseMAC(s)
				if perr != nil {
					return usageError(fmt.Sprintf("address: %q is not a MAC address", s))
				}
				err = netlink.LinkSetHardwareAddr(l, mac)
			}
		case "master":
			var s string
			var m netlink.Link
			if s, err = c.value(word); err == nil {
				if m, err = linkByName(s); err == nil {
					err = netlink.LinkSetMaster(l, m)
				}
			}
		default:
			return usageError("unknown word " + word)
		}
		if err != nil {
			return fmt.Errorf("set %s %s: %w", name, word, err)
		}
	}
	return nil
}

func (c *ipCommand) addLink() error {
	attrs := netlink.NewLinkAttrs()
	kind, id, peer := "", 0, ""
	for len(c.words) > 0 {
		var err error
		switch word := c.next(); word {
		case "name", "dev":
			attrs.Name, err = c.value(word)
		case "link":
			var parent string
			if parent, err = c.value(word); err == nil {
				var l netlink.Link
				if l, err = linkByName(parent); err == nil {
					attrs.ParentIndex = l.Attrs().Index
				}
			}
		case "type":
			kind, err = c.value(word)
		case "id":
			id, err = c.number(word)
		case "peer":
			if peer, err = c.value(word); peer == "name" {
				peer, err = c.value(word)
			}
		default:
			if attrs.Name != "" {
				return usageError("unknown word " + word)
			}
			attrs.Name = word
		}
		if err != nil {
			return err
		}
	}
	if attrs.Name == "" || kind == "" {
		return usageError("a new link needs a name and a type")
	}
	var l netlink.Link
	switch kind {
	case "bridge":
		l = &netlink.Bridge{LinkAttrs: attrs}
	case "dummy":
		l = &netlink.Dummy{LinkAttrs: attrs}
	case "vlan":
		if id < 1 || id > 4094 || attrs.ParentIndex == 0 {
			return usageError("a vlan needs link PARENT and id 1 to 4094")
		}
		l = &netlink.Vlan{LinkAttrs: attrs, VlanId: id}
	case "veth":
		if peer == "" {
			return usageError("veth needs peer name PEER")
		}
		l = &netlink.Veth{LinkAttrs: attrs, PeerName: peer}
	default:
		return usageError(fmt.Sprintf("type %s is not known here", kind))
	}
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("add %s %s: %w", kind, attrs.Name, err)
	}
	return nil
}

// linkInfo has the names of iproute2's JSON.
type linkInfo struct {
	Index     int        `json:"ifindex"`
	Name      string     `json:"ifname"`
	Flags     []string   `json:"flags"`
	MTU       int        `json:"mtu"`
	Master    string     `json:"master,omitempty"`
	State     string     `json:"operstate"`
	Type      string     `json:"link_type"`
	Address   string     `json:"address,omitempty"`
	Addresses []addrInfo `json:"addr_info,omitempty"`
}

type addrInfo struct {
	Family    string `json:"family"`
	Local     string `json:"local"`
	Peer      string `json:"address,omitempty"`
	Prefix    int    `json:"prefixlen"`
	Broadcast string `json:"broadcast,omitempty"`
	Scope     string `json:"scope"`
	Label     string `json:"label,omitempty"`
	Valid     int    `json:"valid_life_time"`
	Preferred int    `json:"preferred_life_time"`
}

func (c *ipCommand) showLinks(addresses bool) error {
	want := c.next()
	if want == "dev" {
		want = c.next()
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var infos []linkInfo
	for _, l := range links {
		a := l.Attrs()
		if want != "" && a.Name != want {
			continue
		}
		info := linkInfo{Index: a.Index, Name: a.Name, Flags: linkFlags(a), MTU: a.MTU, Master: names[a.MasterIndex],
			State: strings.ToUpper(a.OperState.String()), Type: a.EncapType, Address: a.HardwareAddr.String()}
		if addresses {
			list, err := netlink.AddrList(l, c.family)
			if err != nil {
				return fmt.Errorf("list the addresses of %s: %w", a.Name, err)
			}
			for _, ad := range list {
				info.Addresses = append(info.Addresses, describeAddr(ad))
			}
		}
		infos = append(infos, info)
	}
	if want != "" && len(infos) == 0 {
		return fmt.Errorf("no device %s here (ip link lists them)", want)
	}
	if c.json {
		return c.printJSON(infos)
	}
	for _, i := range infos {
		c.printLink(i, addresses)
	}
	return nil
}

func linkFlags(a *netlink.LinkAttrs) []string {
	var out []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{
		{unix.IFF_LOOPBACK, "LOOPBACK"}, {unix.IFF_BROADCAST, "BROADCAST"}, {unix.IFF_POINTOPOINT, "POINTOPOINT"},
		{unix.IFF_MULTICAST, "MULTICAST"}, {unix.IFF_NOARP, "NOARP"}, {unix.IFF_PROMISC, "PROMISC"}, {unix.IFF_ALLMULTI, "ALLMULTI"},
		{unix.IFF_SLAVE, "SLAVE"}, {unix.IFF_UP, "UP"}, {1 << 16, "LOWER_UP"},
	} {
		if a.RawFlags&f.bit != 0 {
			out = append(out, f.name)
		}
	}
	if a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING == 0 {
		out = append([]string{"NO-CARRIER"}, out...)
	}
	return out
}

func describeAddr(a netlink.Addr) addrInfo {
	ones, _ := a.Mask.Size()
	info := addrInfo{Family: "inet", Local: a.IP.String(), Prefix: ones, Scope: scopeName(a.Scope), Label: a.Label, Valid: a.ValidLft, Preferred: a.PreferedLft}
	if a.IP.To4() == nil {
		info.Family = "inet6"
	}
	if a.Broadcast != nil {
		info.Broadcast = a.Broadcast.String()
	}
	if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
		info.Peer = a.Peer.IP.String()
	}
	return info
}

func scopeName(s int) string {
	switch netlink.Scope(s) {
	case netlink.SCOPE_UNIVERSE:
		return "global"
	case netlink.SCOPE_SITE:
		return "site"
	case netlink.SCOPE_LINK:
		return "link"
	case netlink.SCOPE_HOST:
		return "host"
	}
	return strconv.Itoa(s)
}

func (c *ipCommand) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if string(b) == "null" {
		b = []byte("[]")
	}
	_, err = fmt.Fprintf(c.call.Stdout, "%s\n", b)
	return err
}

func (c *ipCommand) printLink(i linkInfo, addresses bool) {
	out := c.call.Stdout
	if c.brief {
		var list []string
		for _, a := range i.Addresses {
			list = append(list, fmt.Sprintf("%s/%d", a.Local, a.Prefix))
		}
		last := i.Address + " <" + strings.Join(i.Flags, ",") + ">"
		if addresses {
			last = strings.Join(list, " ")
		}
		fmt.Fprintf(out, "%-16s %-14s %s\n", i.Name, i.State, last)
		return
	}
	master := ""
	if i.Master != "" {
		master = " master " + i.Master
	}
	fmt.Fprintf(out, "%d: %s: <%s> mtu %d%s state %s\n", i.Index, i.Name, strings.Join(i.Flags, ","), i.MTU, master, i.State)
	fmt.Fprintf(out, "    link/%s %s\n", i.Type, i.Address)
	for _, a := range i.Addresses {
		peer, broadcast, label := "", "", ""
		if a.Peer != "" {
			peer = " peer " + a.Peer
		}
		if a.Broadcast != "" {
			broadcast = " brd " + a.Broadcast
		}
		if a.Label != "" {
			label = " " + a.Label
		}
		fmt.Fprintf(out, "    %s %s%s/%d%s scope %s%s\n       valid_lft %s preferred_lft %s\n",
			a.Family, a.Local, peer, a.Prefix, broadcast, a.Scope, label, lifetime(a.Valid), lifetime(a.Preferred))
	}
}

func lifetime(s int) string {
	if s <= 0 || s == 1<<32-1 {
		return "forever"
	}
	return fmt.Sprintf("%dsec", s)
}

// address runs add, del or replace with "ADDRESS/LEN [peer P] [brd B] [label L] dev DEV".
func (c *ipCommand) address(f func(netlink.Link, *netlink.Addr) error, what string) error {
	var addr *netlink.Addr
	var link netlink.Link
	for len(c.words) > 0 {
		word := c.next()
		switch word {
		case "dev", "label", "broadcast", "brd", "peer":
			v, err := c.value(word)
			if err != nil {
				return err
			}
			switch {
			case word == "dev":
				if link, err = linkByName(v); err != nil {
					return err
				}
			case addr == nil:
				return usageError("the address comes before " + word)
			case word == "label":
				addr.Label = v
			case word == "peer":
				if addr.Peer, err = netlink.ParseIPNet(v); err != nil {
					return usageError(fmt.Sprintf("peer: %q is not an address with a length", v))
				}
			case v != "+":
				// the library sends the bytes as they are: four of them
				if addr.Broadcast = net.ParseIP(v).To4(); addr.Broadcast == nil {
					return usageError(fmt.Sprintf("%s: %q is not an address", word, v))
				}
			}
		default:
			if addr != nil {
				return usageError("unknown word " + word)
			}
			s := word
			if !strings.Contains(s, "/") {
				s += "/32"
				if strings.Contains(word, ":") {
					s = word + "/128"
				}
			}
			var err error
			if addr, err = netlink.ParseAddr(s); err != nil {
				return usageError(fmt.Sprintf("%q is not an address (example: 192.168.1.1/24)", word))
			}
		}
	}
	if addr == nil || link == nil {
		return usageError("expected ADDRESS/LEN dev DEV")
	}
	if err := f(link, addr); err != nil {
		return fmt.Errorf("%s %s on %s: %w", what, addr.IPNet, link.Attrs().Name, err)
	}
	return nil
}

func (c *ipCommand) flushAddresses() error {
	return c.withLink(func(l netlink.Link) error {
		list, err := netlink.AddrList(l, c.family)
		if err != nil {
			return err
		}
		for _, a := range list {
			if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("%s: %w", a.IPNet, err)
			}
		}
		return nil
	}, "flush")
}
