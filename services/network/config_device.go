package network

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"weft/init/uci"
	"weft/services/internal/rtnl"
)

// Device is a `device` section, a bridge that an interface asks for, or a VLAN
// that is named by its device and number (eth0.5).
type Device struct {
	Name  string
	Kind  string   // bridge, 8021q, 8021ad, macvlan; empty: a device that is there
	Ports []string // of a bridge
	MAC   net.HardwareAddr
	MTU   int // 0: leave
	// implicit devices have no section, their name says what they are.
	implicit bool

	Parent string // of a VLAN or macvlan
	VID    int    // number of a VLAN
	Mode   string // of a macvlan

	TxQueueLen int // 0: leave
	// Sysctls are settings below /proc/sys/net.
	Sysctls []sysctl
	// Flags that are as they are when nil.
	Promisc, Multicast *bool
	// Of a bridge.
	Settings map[rtnl.BridgeOption]uint64
	VLANs    []BridgeVLAN
	// Of a bridge port.
	Isolate, Learning, Flood *bool
}

// sysctl is a setting of one device: net/<proto>/<conf or neigh>/<device>/<key>.
type sysctl struct{ proto, group, key, value string }

// BridgeVLAN is a `bridge-vlan` section: a VLAN of a bridge with filtering.
type BridgeVLAN struct {
	VID   int
	Local bool // the bridge itself is a member, for <bridge>.<vid>
	Ports []VLANPort
}

// VLANPort is an entry such as lan1:u*.
type VLANPort struct {
	Name     string
	Untagged bool
	PVID     bool // what comes without a tag belongs to this VLAN
}

// deviceSysctls are options of a device section that are settings in /proc.
var deviceSysctls = []struct {
	option    string
	to        []sysctl
	low, high int
}{
	{"ipv6", []sysctl{{"ipv6", "conf", "disable_ipv6", "!"}}, 0, 1},
	{"mtu6", []sysctl{{"ipv6", "conf", "mtu", ""}}, 1280, 65535},
	{"rpfilter", []sysctl{{"ipv4", "conf", "rp_filter", ""}}, 0, 2},
	{"acceptlocal", []sysctl{{"ipv4", "conf", "accept_local", ""}}, 0, 1},
	{"sendredirects", []sysctl{{"ipv4", "conf", "send_redirects", ""}}, 0, 1},
	{"arp_accept", []sysctl{{"ipv4", "conf", "arp_accept", ""}}, 0, 2},
	{"igmpversion", []sysctl{{"ipv4", "conf", "force_igmp_version", ""}}, 1, 3},
	{"mldversion", []sysctl{{"ipv6", "conf", "force_mld_version", ""}}, 1, 2},
	{"dadtransmits", []sysctl{{"ipv6", "conf", "dad_transmits", ""}}, 0, 100},
	{"neighreachabletime", []sysctl{{"ipv4", "neigh", "base_reachable_time_ms", ""}, {"ipv6", "neigh", "base_reachable_time_ms", ""}}, 1, 1 << 30},
	{"neighgcstaletime", []sysctl{{"ipv4", "neigh", "gc_stale_time", ""}, {"ipv6", "neigh", "gc_stale_time", ""}}, 0, 1 << 30},
	{"neighlocktime", []sysctl{{"ipv4", "neigh", "locktime", ""}}, 0, 1 << 30},
	{"drop_v4_unicast_in_l2_multicast", []sysctl{{"ipv4", "conf", "drop_unicast_in_l2_multicast", ""}}, 0, 1},
	{"drop_v6_unicast_in_l2_multicast", []sysctl{{"ipv6", "conf", "drop_unicast_in_l2_multicast", ""}}, 0, 1},
	{"drop_gratuitous_arp", []sysctl{{"ipv4", "conf", "drop_gratuitous_arp", ""}}, 0, 1},
	{"drop_unsolicited_na", []sysctl{{"ipv6", "conf", "drop_unsolicited_na", ""}}, 0, 1},
}

// bridgeOptions are options of a bridge with the factor to the kernel's unit.
var bridgeOptions = []struct {
	option    string
	to        rtnl.BridgeOption
	factor    uint64
	low, high int
}{
	{"stp", rtnl.BridgeSTP, 1, 0, 1},
	{"forward_delay", rtnl.BridgeForwardDelay, 100, 0, 30},
	{"hello_time", rtnl.BridgeHelloTime, 100, 1, 10},
	{"max_age", rtnl.BridgeMaxAge, 100, 6, 40},
	{"ageing_time", rtnl.BridgeAgeingTime, 100, 0, 1000000},
	{"priority", rtnl.BridgePriority, 1, 0, 65535},
	{"igmp_snooping", rtnl.BridgeSnooping, 1, 0, 1},
	{"multicast_querier", rtnl.BridgeQuerier, 1, 0, 1},
	{"hash_max", rtnl.BridgeHashMax, 1, 1, 1 << 20},
	{"robustness", rtnl.BridgeLastMemberCount, 1, 1, 255},
	{"query_interval", rtnl.BridgeQueryInterval, 1, 100, 360000},
	{"query_response_interval", rtnl.BridgeResponseInterval, 1, 1, 360000},
	{"last_member_interval", rtnl.BridgeLastMemberInterval, 1, 1, 360000},
}

// kernelType is how the kernel calls a type of device.
func kernelType(kind string) string {
	if kind == "8021q" || kind == "8021ad" {
		return "vlan"
	}
	return kind
}

var macvlanModes = []string{"private", "vepa", "bridge", "passthru"}

// flag reads a boolean that may be absent.
func (r *reader) flag(option string) *bool {
	if r.s.Option(option) == nil {
		return nil
	}
	v := r.bool(option, false)
	return &v
}

func (c *Config) device(s *uci.Section) *Device {
	r := &reader{s: s}
	d := &Device{
		MAC:        r.mac("macaddr"),
		MTU:        r.number("mtu", 0, 68, 65535),
		TxQueueLen: r.number("txqueuelen", 0, 1, 1<<20),
		Promisc:    r.flag("promisc"),
		Multicast:  r.flag("multicast"),
		Isolate:    r.flag("isolate"),
		Learning:   r.flag("learning"),
		Flood:      r.flag("unicast_flood"),
	}
	if v, ok := s.Get("name"); ok {
		d.Name = r.name("name", v)
	}
	switch t := s.String("type", ""); t {
	case "", "bridge":
		d.Kind = t
	case "8021q", "8021ad", "macvlan":
		d.Kind = t
		option := "ifname"
		if s.Option(option) == nil {
			option = "device"
		}
		d.Parent = r.name(option, s.String(option, ""))
		if t == "macvlan" {
			if d.Mode = s.String("mode", "vepa"); !slices.Contains(macvlanModes, d.Mode) {
				r.bad("mode", d.Mode, "one of "+strings.Join(macvlanModes, ", "))
			}
			break
		}
		if d.VID = r.number("vid", 0, 1, 4094); d.VID == 0 && s.Option("vid") == nil {
			r.bad("vid", "", "the number of the VLAN, 1 to 4094")
		}
		if d.Name == "" && d.Parent != "" && d.VID != 0 {
			d.Name = r.name("name", d.Parent+"."+strconv.Itoa(d.VID))
		}
	default:
		r.later("type", t, "one of bridge, 8021q, 8021ad, macvlan")
	}
	if d.Name == "" && s.Option("name") == nil {
		r.bad("name", "", "the name of the device")
	}
	if d.Kind == "bridge" {
		option := "ports"
		if s.Option(option) == nil {
			option = "ifname" // until 19.07
		}
		d.Ports = r.ports(option)
		for _, o := range bridgeOptions {
			if s.Option(o.option) != nil {
				if d.Settings == nil {
					d.Settings = map[rtnl.BridgeOption]uint64{}
				}
				d.Settings[o.to] = uint64(r.number(o.option, 0, o.low, o.high)) * o.factor
			}
		}
		if r.bool("vlan_filtering", false) {
			if d.Settings == nil {
				d.Settings = map[rtnl.BridgeOption]uint64{}
			}
			d.Settings[rtnl.BridgeVLANFiltering] = 1
		}
	}
	for _, o := range deviceSysctls {
		if s.Option(o.option) == nil {
			continue
		}
		n := r.number(o.option, 0, o.low, o.high)
		for _, to := range o.to {
			if to.value == "!" {
				to.value = strconv.Itoa(1 - n)
			} else {
				to.value = strconv.Itoa(n)
			}
			d.Sysctls = append(d.Sysctls, to)
		}
	}
	for _, other := range c.Devices {
		if other.Name == d.Name && d.Name != "" {
			r.bad("name", d.Name, "a name that no other device section has")
		}
	}
	c.Problems = append(c.Problems, r.problems...)
	if len(r.problems) > 0 {
		return nil
	}
	return d
}

// deviceOf returns the device section of that name, nil without one.
func (c *Config) deviceOf(name string) *Device {
	for _, d := range c.Devices {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// implicit is what a device without a section is: a VLAN if its name says so
// (eth0.5, br-lan.10).
func implicit(name string) *Device {
	d := &Device{Name: name, implicit: true}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		if vid, err := strconv.Atoi(name[i+1:]); err == nil && vid >= 1 && vid <= 4094 && strconv.Itoa(vid) == name[i+1:] {
			d.Kind, d.Parent, d.VID = "8021q", name[:i], vid
		}
	}
	return d
}

// ports reads the names of bridge ports; a port named twice is one.
func (r *reader) ports(option string) []string {
	var ports []string
	for _, v := range r.s.List(option) {
		if n := r.name(option, v); n != "" && !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	return ports
}

// bridgeVLAN reads a `bridge-vlan` section into its bridge, and makes the ports
// that it names ports of it.
func (c *Config) bridgeVLAN(s *uci.Section) {
	r := &reader{s: s}
	v := BridgeVLAN{VID: r.number("vlan", 0, 1, 4094), Local: r.bool("local", true)}
	if v.VID == 0 && s.Option("vlan") == nil {
		r.bad("vlan", "", "the number of the VLAN, 1 to 4094")
	}
	name := s.String("device", "")
	d := c.deviceOf(name)
	if d == nil || d.Kind != "bridge" {
		r.bad("device", name, "the name of a bridge that a device section makes")
		d = nil
	}
	for _, p := range s.List("ports") {
		name, flags, has := strings.Cut(p, ":")
		// Without a mark it is a port for hosts that know nothing of VLANs.
		port := VLANPort{Name: r.name("ports", name), Untagged: true, PVID: !has}
		for _, f := range flags {
			switch f {
			case 't':
				port.Untagged = false
			case 'u':
				port.Untagged = true
			case '*':
				port.PVID = true
			default:
				r.bad("ports", p, "a port with :t (tagged), :u (untagged) or :u* (untagged, and what comes in untagged)")
			}
		}
		if port.Name != "" && !slices.ContainsFunc(v.Ports, func(q VLANPort) bool { return q.Name == port.Name }) {
			v.Ports = append(v.Ports, port)
		}
	}
	if d != nil && slices.ContainsFunc(d.VLANs, func(w BridgeVLAN) bool { return w.VID == v.VID }) {
		r.bad("vlan", strconv.Itoa(v.VID), fmt.Sprintf("a number that no other VLAN of %s has", name))
	}
	c.Problems = append(c.Problems, r.problems...)
	if len(r.problems) > 0 {
		return
	}
	d.VLANs = append(d.VLANs, v)
	for _, p := range v.Ports {
		if !slices.Contains(d.Ports, p.Name) {
			d.Ports = append(d.Ports, p.Name)
		}
	}
}

// vlanMembers are the VLANs of a port of the bridge, or of the bridge itself
// (port empty), by number. A port has one VLAN for what comes untagged.
func (d *Device) vlanMembers(port string) map[int]VLANPort {
	out := map[int]VLANPort{}
	pvid := 0
	for _, v := range d.VLANs {
		if port == "" {
			if v.Local {
				out[v.VID] = VLANPort{}
			}
			continue
		}
		for _, p := range v.Ports {
			if p.Name != port {
				continue
			}
			if p.PVID {
				if before, ok := out[pvid]; ok {
					before.PVID = false // the last one counts, as in the kernel
					out[pvid] = before
				}
				pvid = v.VID
			}
			out[v.VID] = p
		}
	}
	return out
}
