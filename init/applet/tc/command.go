package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	tc "github.com/florianl/go-tc"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// command is one call: the words that are left, and where to print.
type command struct {
	words []string
	stats bool
	out   io.Writer
}

func (c *command) next() string {
	if len(c.words) == 0 {
		return ""
	}
	w := c.words[0]
	c.words = c.words[1:]
	return w
}

// value is the word after a key.
func (c *command) value(key string) (string, error) {
	if len(c.words) == 0 {
		return "", usageError(fmt.Sprintf("%s: a value is missing behind it", key))
	}
	return c.next(), nil
}

// with parses the value of a key into dst.
func with[T any](c *command, key string, parse func(string) (T, error), dst *T) error {
	s, err := c.value(key)
	if err != nil {
		return err
	}
	v, err := parse(s)
	if err != nil {
		return usageError(fmt.Sprintf("%s: %v", key, err))
	}
	*dst = v
	return nil
}

// optional is with for a pointer that is nil until given.
func optional[T any](c *command, key string, parse func(string) (T, error), dst **T) error {
	*dst = new(T)
	return with(c, key, parse, *dst)
}

// prefixOf tells whether word abbreviates one of full, as iproute2 allows for objects and verbs.
func prefixOf(word string, full ...string) string {
	for _, f := range full {
		if word != "" && strings.HasPrefix(f, word) {
			return f
		}
	}
	return ""
}

func (c *command) run() error {
	switch object := prefixOf(c.next(), "qdisc", "class", "filter"); object {
	case "qdisc", "class", "filter":
		verb := c.next()
		if verb == "" {
			verb = "show"
		}
		full := prefixOf(verb, "add", "show", "list", "ls", "delete", "replace", "change")
		switch full {
		case "":
			return usageError(fmt.Sprintf("%s %s: want show, add, replace, change or del", object, verb))
		case "show", "list", "ls":
			return c.show(object)
		}
		return c.change(object, full)
	}
	return usageError("want qdisc, class or filter")
}

// device finds the index of a device.
func device(name string) (uint32, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("device %q: %w", name, err)
	}
	return uint32(ifi.Index), nil
}

// change is add, replace, change and del of all three objects.
func (c *command) change(object, verb string) error {
	o := &tc.Object{Msg: tc.Msg{Family: unix.AF_UNSPEC}}
	what := object + " " + verb
	var dev string
	protocol, prio := "all", uint32(0)
	var kindSeen bool
loop:
	for len(c.words) > 0 {
		key := c.next()
		var err error
		switch {
		case key == "dev":
			if dev, err = c.value(key); err == nil {
				o.Ifindex, err = device(dev)
				what += " dev " + dev
			}
		case key == "root" && object != "filter":
			o.Parent = tc.HandleRoot
		case key == "root":
			o.Parent = tc.HandleRoot
		case key == "parent":
			err = with(c, key, parseHandle, &o.Parent)
		case key == "handle":
			err = with(c, key, parseHandle, &o.Handle)
		case (key == "classid" || key == "flowid") && object == "class":
			err = with(c, key, parseHandle, &o.Handle)
		case key == "ingress" && object == "qdisc":
			o.Parent, o.Handle, o.Kind, kindSeen = tc.HandleIngress, 0xffff0000, key, true
		case key == "clsact" && object == "qdisc":
			o.Parent, o.Handle, o.Kind, kindSeen = tc.HandleIngress, 0xffff0000, key, true
		case key == "ingress" && object == "filter":
			o.Parent = 0xffff0000 | tc.HandleMinIngress
		case key == "egress" && object == "filter":
			o.Parent = 0xffff0000 | tc.HandleMinEgress
		case key == "protocol" && object == "filter":
			protocol, err = c.value(key)
		case (key == "prio" || key == "pref" || key == "preference") && object == "filter":
			err = with(c, key, parseNumber, &prio)
		default:
			o.Kind, kindSeen = key, true
			break loop
		}
		if err != nil {
			return err
		}
		if kindSeen {
			break
		}
	}
	if dev == "" {
		return usageError(object + " " + verb + ": no device: give dev DEV")
	}
	if kindSeen && verb == "delete" {
		what += " " + o.Kind
	} else if kindSeen {
		if err := c.options(object, o); err != nil {
			return err
		}
		what += " " + o.Kind
	} else if verb != "delete" {
		return usageError(fmt.Sprintf("%s %s: no kind (tbf, netem, htb, ...)", object, verb))
	}
	if object == "qdisc" && o.Parent == 0 && verb != "delete" && o.Handle == 0 {
		return usageError("qdisc " + verb + ": where? give root, parent CLASS, ingress or clsact")
	}
	if object == "filter" {
		p, err := etherType(protocol)
		if err != nil {
			return err
		}
		o.Info = prio<<16 | uint32(p)
	}
	if verb == "delete" {
		if err := remove(object, o); err != nil {
			return refused(what, err)
		}
		return nil
	}
	rtnl, err := tc.Open(&tc.Config{})
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer rtnl.Close()
	if err := apply(rtnl, object, verb, o); err != nil {
		return refused(what, err)
	}
	return nil
}

func apply(rtnl *tc.Tc, object, verb string, o *tc.Object) error {
	type actions struct{ add, replace, change func(*tc.Object) error }
	q, cl, f := rtnl.Qdisc(), rtnl.Class(), rtnl.Filter()
	a := map[string]actions{
		"qdisc":  {q.Add, q.Replace, q.Change},
		"class":  {cl.Add, cl.Replace, cl.Replace},
		"filter": {f.Add, f.Replace, f.Replace},
	}[object]
	switch verb {
	case "add":
		return a.add(o)
	case "replace":
		return a.replace(o)
	}
	return a.change(o)
}

// remove deletes what the handles name, as iproute2 does: go-tc wants to know the kind and its options.
func remove(object string, o *tc.Object) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer conn.Close()
	request := map[string]uint16{"qdisc": unix.RTM_DELQDISC, "class": unix.RTM_DELTCLASS, "filter": unix.RTM_DELTFILTER}[object]
	data := make([]byte, 20)
	for i, v := range []uint32{o.Ifindex, o.Handle, o.Parent, o.Info} {
		binary.NativeEndian.PutUint32(data[4+4*i:], v)
	}
	if o.Kind != "" {
		ae := netlink.NewAttributeEncoder()
		ae.String(attrKind, o.Kind)
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		data = append(data, attrs...)
	}
	_, err = conn.Execute(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(request), Flags: netlink.Request | netlink.Acknowledge}, Data: data})
	return err
}

// refused says what the kernel's answer usually means.
func refused(what string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, os.ErrNotExist):
		hint = ": no such queueing discipline, class or filter there, or the kernel lacks the module"
	case errors.Is(err, os.ErrExist):
		hint = ": there is one already: use replace"
	case errors.Is(err, unix.EOPNOTSUPP):
		hint = ": the kernel lacks the module"
	case errors.Is(err, os.ErrPermission):
		hint = ": it takes root"
	case errors.Is(err, unix.EINVAL):
		hint = ": the kernel does not take these values, or there is nothing to change"
	}
	return fmt.Errorf("%s: %w%s", what, err, hint)
}

// etherType is a protocol of filters in network byte order.
func etherType(name string) (uint16, error) {
	types := map[string]uint16{"all": unix.ETH_P_ALL, "ip": unix.ETH_P_IP, "ipv4": unix.ETH_P_IP, "ipv6": unix.ETH_P_IPV6, "arp": unix.ETH_P_ARP, "802.1q": unix.ETH_P_8021Q}
	t, ok := types[strings.ToLower(name)]
	if !ok {
		return 0, usageError(fmt.Sprintf("protocol %q: want all, ip, ipv6, arp or 802.1q", name))
	}
	return t<<8 | t>>8, nil
}

// choice is the place of word in a list of words.
func choice(word string, list ...string) (uint32, bool) {
	i := slices.Index(list, word)
	return uint32(max(i, 0)), i >= 0
}
