package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/services/internal/rtnl"
)

// ownAlias marks the links that this service made (the link's alias, as in
// `ip link`), so that they are still known after a crash.
const ownAlias = "weft network"

// plan is what one link shall be.
type plan struct {
	dev    *Device          // nil: a device that is there
	master string           // the bridge this link is a port of
	mac    net.HardwareAddr // nil: leave
	mtu    int              // 0: leave
	addrs  []netip.Prefix
	// deprecated are those of addrs that are for old connections only.
	deprecated map[netip.Prefix]bool
	routes     []Route
	// Settings in /proc that the interface needs.
	sysctls []sysctl
}

// kind is the type of device that a section or a name asks for.
func (p *plan) kind() string {
	if p == nil || p.dev == nil {
		return ""
	}
	return p.dev.Kind
}

// made tells whether the service makes the device.
func (p *plan) made() bool { return p.kind() != "" }

// parent is the device below a VLAN, empty if there is none.
func (p *plan) parent() string {
	if p == nil || p.dev == nil {
		return ""
	}
	return p.dev.Parent
}

// fits tells whether a link is what the plan makes.
func (p *plan) fits(ls links, l netlink.Link) bool {
	if l.Type() != kernelType(p.dev.Kind) {
		return false
	}
	if p.dev.Parent != "" {
		parent, ok := ls[p.dev.Parent]
		if !ok || parent.Attrs().Index != l.Attrs().ParentIndex {
			return false
		}
	}
	switch v := l.(type) {
	case *netlink.Vlan:
		return v.VlanId == p.dev.VID && v.VlanProtocol == vlanProtocol(p.dev.Kind)
	case *netlink.Macvlan:
		return v.Mode == macvlanMode(p.dev.Mode)
	}
	return true
}

func vlanProtocol(kind string) netlink.VlanProtocol {
	if kind == "8021ad" {
		return netlink.VLAN_PROTOCOL_8021AD
	}
	return netlink.VLAN_PROTOCOL_8021Q
}

func macvlanMode(mode string) netlink.MacvlanMode {
	switch mode {
	case "private":
		return netlink.MACVLAN_MODE_PRIVATE
	case "bridge":
		return netlink.MACVLAN_MODE_BRIDGE
	case "passthru":
		return netlink.MACVLAN_MODE_PASSTHRU
	}
	return netlink.MACVLAN_MODE_VEPA
}

// make makes a device. done is false while what it stands on is not there.
func (k *kernel) make(ls links, name string, p *plan) (done bool, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if p.dev.Parent != "" {
		parent, ok := ls[p.dev.Parent]
		if !ok {
			return false, nil
		}
		attrs.ParentIndex = parent.Attrs().Index
	}
	var l netlink.Link
	switch p.dev.Kind {
	case "bridge":
		l = &netlink.Bridge{LinkAttrs: attrs}
	case "8021q", "8021ad":
		l = &netlink.Vlan{LinkAttrs: attrs, VlanId: p.dev.VID, VlanProtocol: vlanProtocol(p.dev.Kind)}
	case "macvlan":
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanMode(p.dev.Mode)}
	case "wireguard":
		l = &netlink.Wireguard{LinkAttrs: attrs}
	}
	if err := k.h.LinkAdd(l); err != nil {
		return true, err
	}
	if l, err = k.h.LinkByName(name); err != nil {
		return true, err
	}
	return true, k.h.LinkSetAlias(l, ownAlias)
}

// byDepth orders the links so that what others stand on comes first.
func byDepth(plans map[string]*plan) []string {
	depth := func(name string) int {
		n := 0
		for ; n < len(plans) && plans[name].parent() != ""; n++ {
			name = plans[name].parent()
		}
		return n
	}
	return slices.SortedFunc(slices.Values(sortedKeys(plans)), func(a, b string) int {
		return cmp.Or(cmp.Compare(depth(a), depth(b)), cmp.Compare(a, b))
	})
}

// shape makes the links themselves as planned: bridges, VLANs, ports, MAC, MTU,
// up. Links that are no longer planned are let go. changed tells that links have
// to be listed again. errs has the failures by link.
func (k *kernel) shape(ls links, plans map[string]*plan) (changed bool, errs map[string]error) {
	errs = map[string]error{}
	try := func(name, what string, err error) bool {
		changed = true
		if err != nil {
			errs[name] = errors.Join(errs[name], fmt.Errorf("%s %s: %w", what, name, err))
		}
		return err == nil
	}
	for name, c := range k.claimed {
		l, there := ls[name]
		if there && l.Attrs().Index == c.index {
			p, wanted := plans[name]
			if own := l.Attrs().Alias == ownAlias; wanted && (own && p.made() && p.fits(ls, l) || !own && (!p.made() || p.dev.implicit || l.Type() == kernelType(p.kind()))) {
				continue
			} else if !own {
				k.release(l)
			}
		}
		delete(k.claimed, name)
		delete(k.ours, c.index)
		delete(k.asked, c.index)
	}
	for _, name := range sortedKeys(ls) {
		l := ls[name]
		if p := plans[name]; l.Attrs().Alias == ownAlias && (!p.made() || !p.fits(ls, l)) {
			if err := k.h.LinkDel(l); !errors.Is(err, unix.ENODEV) { // it goes with what it stands on
				try(name, "remove", err)
			}
			delete(ls, name)
		}
	}
	var vlans map[int32][]*nl.BridgeVlanInfo
	for _, name := range byDepth(plans) {
		p := plans[name]
		l, there := ls[name]
		switch {
		case p.made() && !there:
			if done, err := k.make(ls, name, p); done {
				try(name, "make", err)
			}
			continue // the next round has it
		case p.made() && l.Type() != kernelType(p.kind()):
			if p.dev.implicit {
				break // a device of that name is there: it is meant
			}
			try(name, "make", fmt.Errorf("there is a device of type %s with that name; rename one of them", l.Type()))
			continue
		case !there:
			continue
		}
		a := l.Attrs()
		if now := (claim{a.Index, p.master != ""}); k.claimed[name] != now {
			k.prepare(name, k.claimed[name], now)
			k.claimed[name] = now
		}
		if p.mac != nil && !slices.Equal(a.HardwareAddr, p.mac) {
			try(name, "set MAC address of", k.setMAC(l, p.mac))
		}
		if p.mtu != 0 && a.MTU != p.mtu {
			try(name, fmt.Sprintf("set MTU %d of", p.mtu), k.h.LinkSetMTU(l, p.mtu))
		}
		k.settings(l, p, try)
		if p.kind() == "bridge" {
			k.bridge(l, p.dev, try)
		}
		if p.master != "" {
			if m, ok := ls[p.master]; ok && a.MasterIndex != m.Attrs().Index {
				try(name, "add to bridge "+p.master+" port", k.h.LinkSetMasterByIndex(l, m.Attrs().Index))
			} else if ok {
				k.port(l, p.dev, try)
			}
		} else if a.MasterIndex != 0 && k.isOwnBridge(ls, a.MasterIndex) {
			try(name, "take out of its bridge", k.h.LinkSetNoMaster(l))
		}
		if a.RawFlags&unix.IFF_UP == 0 {
			try(name, "bring up", k.h.LinkSetUp(l))
		}
		bridge, port := p, ""
		if p.master != "" {
			bridge, port = plans[p.master], name
		}
		if bridge.kind() == "bridge" && len(bridge.dev.VLANs) > 0 && (port == "" || a.MasterIndex != 0) {
			if vlans == nil {
				var err error
				if vlans, err = again(k.h.BridgeVlanList); err != nil {
					try(name, "list the VLANs of", err)
					continue
				}
			}
			k.vlans(l, bridge.dev.vlanMembers(port), port == "", vlans[int32(a.Index)], try)
		}
	}
	// Ports that the configuration no longer has, and that are in no plan.
	for name, l := range ls {
		if plans[name] == nil && l.Attrs().MasterIndex != 0 && k.isOwnBridge(ls, l.Attrs().MasterIndex) {
			try(name, "take out of its bridge", k.h.LinkSetNoMaster(l))
		}
	}
	return changed, errs
}

// settings makes what device sections say about any device.
func (k *kernel) settings(l netlink.Link, p *plan, try func(name, what string, err error) bool) {
	a := l.Attrs()
	for _, s := range p.sysctls {
		k.sysctl(s.proto, s.group, a.Name, s.key, s.value)
	}
	d := p.dev
	if d == nil {
		return
	}
	for _, s := range d.Sysctls {
		if p.master != "" && s.key == "disable_ipv6" {
			continue // a port is a wire
		}
		k.sysctl(s.proto, s.group, a.Name, s.key, s.value)
	}
	if d.TxQueueLen > 0 && a.TxQLen != d.TxQueueLen {
		try(a.Name, "set the queue length of", k.h.LinkSetTxQLen(l, d.TxQueueLen))
	}
	for _, f := range []struct {
		want    *bool
		bit     uint32
		what    string
		on, off func(netlink.Link) error
	}{
		{d.Promisc, unix.IFF_PROMISC, "set promiscuous mode of", k.h.SetPromiscOn, k.h.SetPromiscOff},
		{d.Multicast, unix.IFF_MULTICAST, "set multicast of", k.h.LinkSetMulticastOn, k.h.LinkSetMulticastOff},
	} {
		if f.want == nil || *f.want == (a.RawFlags&f.bit != 0) {
			continue
		}
		set := f.off
		if *f.want {
			set = f.on
		}
		try(a.Name, f.what, set(l))
	}
}

// bridgeDefaults are what a bridge has without options, as netifd has them.
var bridgeDefaults = []struct {
	option rtnl.BridgeOption
	value  uint64
}{
	{rtnl.BridgeSTP, 0}, {rtnl.BridgePriority, 0x7fff}, {rtnl.BridgeSnooping, 0}, {rtnl.BridgeQuerier, 0}, {rtnl.BridgeVLANFiltering, 0},
}

// bridge makes the settings of a bridge.
func (k *kernel) bridge(l netlink.Link, d *Device, try func(name, what string, err error) bool) {
	have, err := k.rt.BridgeOptions(l.Attrs().Index)
	if err != nil {
		try(l.Attrs().Name, "look at", err)
		return
	}
	set := func(o rtnl.BridgeOption, v uint64, must bool) {
		if now, ok := have[o]; ok && now == v || !ok && !must {
			return // a kernel that lacks it has not got it on either
		}
		asked := k.asked[l.Attrs().Index]
		if asked == nil {
			asked = map[rtnl.BridgeOption]uint64{}
			k.asked[l.Attrs().Index] = asked
		}
		if was, ok := asked[o]; ok && was == v {
			return // the kernel has rounded it
		}
		if try(l.Attrs().Name, fmt.Sprintf("make setting %d of bridge", o), k.rt.SetBridge(l.Attrs().Index, o, v)) {
			asked[o] = v
		}
	}
	filtering := len(d.VLANs) > 0
	if filtering {
		set(rtnl.BridgeDefaultPVID, 0, true) // before there are ports: they are in no VLAN by themselves
	} else if have[rtnl.BridgeVLANFiltering] == 1 {
		set(rtnl.BridgeDefaultPVID, 1, false)
	}
	done := map[rtnl.BridgeOption]bool{}
	for _, o := range bridgeDefaults {
		v, must := o.value, false
		if w, ok := d.Settings[o.option]; ok {
			v, must = w, true
		}
		if o.option == rtnl.BridgeVLANFiltering && filtering {
			v, must = 1, true
		}
		done[o.option] = true
		set(o.option, v, must)
	}
	for _, o := range sortedKeys(d.Settings) {
		if !done[o] {
			set(o, d.Settings[o], true)
		}
	}
}

// port makes the settings of a bridge port that its device section names.
func (k *kernel) port(l netlink.Link, d *Device, try func(name, what string, err error) bool) {
	if d == nil || d.Isolate == nil && d.Learning == nil && d.Flood == nil {
		return
	}
	now, err := k.h.LinkGetProtinfo(l)
	if err != nil {
		try(l.Attrs().Name, "look at bridge port", err)
		return
	}
	for _, f := range []struct {
		want *bool
		have bool
		set  func(netlink.Link, bool) error
		what string
	}{
		{d.Isolate, now.Isolated, k.h.LinkSetIsolated, "isolate"},
		{d.Learning, now.Learning, k.h.LinkSetLearning, "learning"},
		{d.Flood, now.Flood, k.h.LinkSetFlood, "unicast_flood"},
	} {
		if f.want != nil && *f.want != f.have {
			try(l.Attrs().Name, "set "+f.what+" of", f.set(l, *f.want))
		}
	}
}

// vlans makes a link, a port or the bridge itself, member of the VLANs in want.
func (k *kernel) vlans(l netlink.Link, want map[int]VLANPort, self bool, have []*nl.BridgeVlanInfo, try func(name, what string, err error) bool) {
	name := l.Attrs().Name
	there := map[int]VLANPort{}
	for _, v := range have {
		there[int(v.Vid)] = VLANPort{Untagged: v.EngressUntag(), PVID: v.PortVID()}
	}
	for _, vid := range sortedKeys(there) {
		if _, ok := want[vid]; !ok {
			try(name, fmt.Sprintf("take out of VLAN %d", vid), k.h.BridgeVlanDel(l, uint16(vid), false, false, self, !self))
		}
	}
	for _, vid := range sortedKeys(want) {
		w := want[vid]
		w.Name = ""
		if now, ok := there[vid]; ok && now == w {
			continue
		}
		try(name, fmt.Sprintf("put into VLAN %d", vid), k.h.BridgeVlanAdd(l, uint16(vid), w.PVID, w.Untagged, self, !self))
	}
}
