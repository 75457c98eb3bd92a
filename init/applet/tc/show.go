package tc

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"strings"

	tc "github.com/florianl/go-tc"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// object is one answer of the kernel. The options are read here and not by go-tc, whose Get gives up on the whole list
// at the first attribute or kind that is newer than it.
type object struct {
	ifindex              int
	handle, parent, info uint32
	kind                 string
	options              []byte
	xstats               []byte
	stats                tc.GenStats
	offloaded            bool
}

// Attributes of struct tcmsg (include/uapi/linux/rtnetlink.h) and of statistics (gen_stats.h).
const (
	attrKind       = 1
	attrOptions    = 2
	attrXStats     = 4
	attrStats2     = 7
	attrHwOffload  = 12
	attrStatsBasic = 1
	attrStatsQueue = 3
	attrStatsApp   = 4
)

// parseObject reads a message of RTM_NEWQDISC and its kind.
func parseObject(data []byte) (*object, error) {
	if len(data) < 20 {
		return nil, fmt.Errorf("traffic control message of %d bytes is shorter than its header", len(data))
	}
	order := binary.NativeEndian
	o := &object{ifindex: int(int32(order.Uint32(data[4:]))), handle: order.Uint32(data[8:]), parent: order.Uint32(data[12:]), info: order.Uint32(data[16:])}
	ad, err := netlink.NewAttributeDecoder(data[20:])
	if err != nil {
		return nil, fmt.Errorf("traffic control message: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case attrKind:
			o.kind = ad.String()
		case attrOptions:
			o.options = ad.Bytes()
		case attrXStats:
			o.xstats = ad.Bytes()
		case attrHwOffload:
			o.offloaded = ad.Uint8() != 0
		case attrStats2:
			ad.Nested(func(n *netlink.AttributeDecoder) error {
				for n.Next() {
					b := n.Bytes()
					switch {
					case n.Type() == attrStatsBasic && len(b) >= 12:
						o.stats.Basic = &tc.GenBasic{Bytes: order.Uint64(b), Packets: order.Uint32(b[8:])}
					case n.Type() == attrStatsQueue && len(b) >= 20:
						o.stats.Queue = &tc.GenQueue{QueueLen: order.Uint32(b), Backlog: order.Uint32(b[4:]), Drops: order.Uint32(b[8:]), Requeues: order.Uint32(b[12:]), Overlimits: order.Uint32(b[16:])}
					case n.Type() == attrStatsApp:
						o.xstats = b
					}
				}
				return nil
			})
		}
	}
	return o, ad.Err()
}

// dump asks for all objects of a device; 0 = of all devices, for queueing disciplines only.
func dump(request uint16, ifindex, parent uint32) ([]*object, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer conn.Close()
	msg := make([]byte, 20)
	binary.NativeEndian.PutUint32(msg[4:], ifindex)
	binary.NativeEndian.PutUint32(msg[12:], parent)
	answers, err := conn.Execute(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(request), Flags: netlink.Request | netlink.Dump}, Data: msg})
	if err != nil {
		return nil, err
	}
	var out []*object
	for _, a := range answers {
		o, err := parseObject(a.Data)
		if err != nil {
			return nil, err
		}
		if ifindex == 0 || o.ifindex == int(ifindex) {
			out = append(out, o)
		}
	}
	return out, nil
}

func (c *command) show(what string) error {
	var ifindex, parent uint32
	var dev string
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "dev":
			if dev, err = c.value(key); err == nil {
				ifindex, err = device(dev)
			}
		case "parent":
			err = with(c, key, parseHandle, &parent)
		case "root":
			parent = tc.HandleRoot
		case "ingress":
			parent = 0xffff0000 | tc.HandleMinIngress
		case "egress":
			parent = 0xffff0000 | tc.HandleMinEgress
		default:
			err = usageError(fmt.Sprintf("%s show: unknown word %q", what, key))
		}
		if err != nil {
			return err
		}
	}
	request := map[string]uint16{"qdisc": unix.RTM_GETQDISC, "class": unix.RTM_GETTCLASS, "filter": unix.RTM_GETTFILTER}[what]
	if what != "qdisc" && dev == "" {
		return usageError(what + " show: give dev DEV")
	}
	list, err := dump(request, ifindex, parent)
	if err != nil {
		return refused(what+" show", err)
	}
	for _, o := range list {
		switch what {
		case "qdisc":
			if parent != 0 && o.parent != parent {
				continue
			}
			c.qdisc(o, dev != "")
		case "class":
			if parent != 0 && o.parent != parent {
				continue
			}
			c.class(o)
		case "filter":
			c.filter(o, parent)
		}
	}
	return nil
}

func (c *command) qdisc(o *object, one bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "qdisc %s %x: ", o.kind, o.handle>>16)
	if !one {
		name := fmt.Sprintf("if%d", o.ifindex)
		if ifi, err := net.InterfaceByIndex(o.ifindex); err == nil {
			name = ifi.Name
		}
		fmt.Fprintf(&b, "dev %s ", name)
	}
	switch {
	case o.parent == tc.HandleRoot:
		b.WriteString("root ")
	case o.parent != 0:
		fmt.Fprintf(&b, "parent %s ", formatHandle(o.parent))
	}
	if o.info != 1 {
		fmt.Fprintf(&b, "refcnt %d ", o.info)
	}
	if o.offloaded {
		b.WriteString("offloaded ")
	}
	b.WriteString(optionsText(o))
	fmt.Fprintln(c.out, b.String())
	if c.stats {
		c.statistics(o)
		if text := xstatsText(o); text != "" {
			fmt.Fprintln(c.out, text)
		}
	}
}

func (c *command) statistics(o *object) {
	basic, queue := o.stats.Basic, o.stats.Queue
	if basic == nil || queue == nil {
		return
	}
	fmt.Fprintf(c.out, " Sent %d bytes %d pkt (dropped %d, overlimits %d requeues %d) \n backlog %s %dp requeues %d\n",
		basic.Bytes, basic.Packets, queue.Drops, queue.Overlimits, queue.Requeues, formatSize(queue.Backlog), queue.QueueLen, queue.Requeues)
}

// attributes of a nest by number; what makes no sense is left out.
func attributes(data []byte) map[uint16][]byte {
	m := map[uint16][]byte{}
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return m
	}
	for ad.Next() {
		m[ad.Type()] = ad.Bytes()
	}
	return m
}

// u32at is the 32-bit number at off, 0 if there is none.
func u32at(b []byte, off int) uint32 {
	if len(b) < off+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b[off:])
}

func u64at(b []byte, off int) uint64 {
	if len(b) < off+8 {
		return uint64(u32at(b, off))
	}
	return binary.NativeEndian.Uint64(b[off:])
}

// optionsText is a queueing discipline's options as iproute2 prints them.
func optionsText(o *object) string {
	a := attributes(o.options)
	num := func(attr uint16) uint32 { return u32at(a[attr], 0) }
	var b strings.Builder
	add := func(attr uint16, format string, f func(uint32) any) {
		if _, ok := a[attr]; ok {
			fmt.Fprintf(&b, format, f(num(attr)))
		}
	}
	plain := func(v uint32) any { return v }
	size := func(v uint32) any { return formatSize(v) }
	micro := func(v uint32) any { return formatTime(float64(v)) }
	switch o.kind {
	case "tbf":
		parms := a[1]
		rate, peak := uint64(u32at(parms, 8)), uint64(u32at(parms, 20))
		if len(a[4]) > 0 {
			rate = u64at(a[4], 0)
		}
		limit, buffer := u32at(parms, 24), u32at(parms, 28)
		fmt.Fprintf(&b, "rate %s burst %s ", formatRate(rate), formatSize(sendSize(rate, buffer)))
		latency := 1e6*float64(limit)/float64(rate) - float64(buffer)/ticks()
		if peak != 0 {
			fmt.Fprintf(&b, "peakrate %s minburst %s ", formatRate(peak), formatSize(sendSize(peak, u32at(parms, 32))))
			latency = max(latency, 1e6*float64(limit)/float64(peak)-float64(u32at(parms, 32))/ticks())
		}
		if latency >= 0 {
			fmt.Fprintf(&b, "lat %s ", formatTime(latency))
		} else {
			fmt.Fprintf(&b, "limit %s ", formatSize(limit))
		}
	case "netem":
		b.WriteString(netemText(o.options))
	case "htb":
		glob := a[2]
		fmt.Fprintf(&b, "r2q %d default %#x direct_packets_stat %d", u32at(glob, 4), u32at(glob, 8), u32at(glob, 16))
		add(5, " direct_qlen %d", plain)
	case "fq_codel":
		add(2, "limit %dp ", plain)
		add(5, "flows %d ", plain)
		add(6, "quantum %d ", plain)
		add(1, "target %s ", micro)
		add(7, "ce_threshold %s ", micro)
		add(3, "interval %s ", micro)
		add(9, "memory_limit %s ", size)
		if num(4) != 0 {
			b.WriteString("ecn ")
		}
		add(8, "drop_batch %d ", plain)
	case "fq":
		add(1, "limit %dp ", plain)
		add(2, "flow_limit %dp ", plain)
		add(8, "buckets %d ", func(v uint32) any { return uint64(1) << (v & 31) })
		add(10, "orphan_mask %d ", plain)
		if v, ok := a[5]; ok && u32at(v, 0) == 0 {
			b.WriteString("nopacing ")
		}
		add(3, "quantum %s ", size)
		add(4, "initial_quantum %s ", size)
		if v := num(7); v != 0 && v != math.MaxUint32 {
			fmt.Fprintf(&b, "maxrate %s ", formatRate(uint64(v)))
		}
		if v := num(11); v != 0 {
			fmt.Fprintf(&b, "low_rate_threshold %s ", formatRate(uint64(v)))
		}
		add(9, "refill_delay %s ", micro)
		add(13, "timer_slack %s ", func(v uint32) any { return formatTime(float64(v) / 1e3) })
		add(14, "horizon %s ", micro)
		if v := a[15]; len(v) > 0 {
			b.WriteString(map[bool]string{true: "horizon_drop ", false: "horizon_cap "}[v[0] != 0])
		}
	case "cake":
		b.WriteString(cakeText(a))
	case "pfifo":
		fmt.Fprintf(&b, "limit %dp", u32at(o.options, 0))
	case "bfifo":
		fmt.Fprintf(&b, "limit %s", formatSize(u32at(o.options, 0)))
	case "pfifo_fast":
		if len(o.options) >= 20 {
			fmt.Fprintf(&b, "bands %d priomap ", u32at(o.options, 0))
			for _, p := range o.options[4:20] {
				fmt.Fprintf(&b, " %d", p)
			}
		}
	case "ingress":
		b.WriteString("---------------- ")
	}
	return b.String()
}

// netemText reads struct tc_netem_qopt and the attributes behind it.
func netemText(data []byte) string {
	if len(data) < 24 {
		return ""
	}
	a := attributes(data[24:])
	var b strings.Builder
	fmt.Fprintf(&b, "limit %d", u32at(data, 4))
	latency, jitter := float64(u32at(data, 0))/ticks(), float64(u32at(data, 20))/ticks()
	if v, ok := a[10]; ok {
		latency = float64(u64at(v, 0)) / 1e3
	}
	if v, ok := a[11]; ok {
		jitter = float64(u64at(v, 0)) / 1e3
	}
	percent := func(name string, p, corr uint32) {
		if p == 0 {
			return
		}
		fmt.Fprintf(&b, " %s %s", name, formatPercent(p))
		if corr != 0 {
			fmt.Fprintf(&b, " %s", formatPercent(corr))
		}
	}
	if latency != 0 {
		fmt.Fprintf(&b, " delay %s", formatTime(latency))
		if jitter != 0 {
			fmt.Fprintf(&b, "  %s", formatTime(jitter))
			if c := u32at(a[1], 0); c != 0 {
				fmt.Fprintf(&b, " %s", formatPercent(c))
			}
		}
	}
	percent("loss", u32at(data, 8), u32at(a[1], 4))
	percent("duplicate", u32at(data, 16), u32at(a[1], 8))
	percent("reorder", u32at(a[3], 0), u32at(a[3], 4))
	percent("corrupt", u32at(a[4], 0), u32at(a[4], 4))
	rate := uint64(u32at(a[6], 0))
	if v, ok := a[8]; ok {
		rate = u64at(v, 0)
	}
	if rate != 0 {
		fmt.Fprintf(&b, " rate %s", formatRate(rate))
	}
	if u32at(a[7], 0) != 0 {
		b.WriteString(" ecn")
	}
	if gap := u32at(data, 12); gap != 0 {
		fmt.Fprintf(&b, " gap %d", gap)
	}
	return b.String()
}

func cakeText(a map[uint16][]byte) string {
	var b strings.Builder
	num := func(attr uint16) uint32 { return u32at(a[attr], 0) }
	word := func(attr uint16, list []string) {
		if v, ok := a[attr]; ok && int(u32at(v, 0)) < len(list) {
			fmt.Fprintf(&b, "%s ", list[u32at(v, 0)])
		}
	}
	rate := u64at(a[2], 0)
	switch {
	case rate != 0:
		fmt.Fprintf(&b, "bandwidth %s ", formatRate(rate))
	default:
		b.WriteString("bandwidth unlimited ")
	}
	if num(9) == 1 {
		b.WriteString("autorate-ingress ")
	}
	word(3, cakeDiffserv)
	word(5, cakeFlows)
	word(11, []string{"nonat", "nat"})
	word(13, []string{"nowash", "wash"})
	if num(15) == 1 {
		b.WriteString("ingress ")
	}
	word(16, cakeAck)
	word(17, []string{"no-split-gso", "split-gso"})
	if v := num(7); v != 0 {
		fmt.Fprintf(&b, "rtt %s ", formatTime(float64(v)))
	}
	if _, raw := a[12]; raw {
		b.WriteString("raw ")
	}
	word(4, cakeATM)
	fmt.Fprintf(&b, "overhead %d ", int32(num(6)))
	if v := num(14); v != 0 {
		fmt.Fprintf(&b, "mpu %d ", v)
	}
	if v := num(10); v != 0 {
		fmt.Fprintf(&b, "memlimit %s ", formatSize(v))
	}
	return b.String()
}

// xstatsText are further statistics of a kind.
func xstatsText(o *object) string {
	x := o.xstats
	if o.kind == "fq_codel" && u32at(x, 0) == 0 && len(x) >= 28 {
		return fmt.Sprintf("  maxpacket %d drop_overlimit %d new_flow_count %d ecn_mark %d\n  new_flows_len %d old_flows_len %d",
			u32at(x, 4), u32at(x, 8), u32at(x, 16), u32at(x, 12), u32at(x, 20), u32at(x, 24))
	}
	return ""
}

func (c *command) class(o *object) {
	var b strings.Builder
	fmt.Fprintf(&b, "class %s %s ", o.kind, formatHandle(o.handle))
	switch {
	case o.parent == tc.HandleRoot:
		b.WriteString("root ")
	case o.parent != 0:
		fmt.Fprintf(&b, "parent %s ", formatHandle(o.parent))
	}
	if o.info != 0 {
		fmt.Fprintf(&b, "leaf %x: ", o.info>>16)
	}
	if o.kind == "htb" {
		a := attributes(o.options)
		p := a[1]
		rate, ceil := uint64(u32at(p, 8)), uint64(u32at(p, 20))
		if v, ok := a[6]; ok {
			rate = u64at(v, 0)
		}
		if v, ok := a[7]; ok {
			ceil = u64at(v, 0)
		}
		if u32at(p, 36) == 0 { // level 0: a leaf
			fmt.Fprintf(&b, "prio %d ", u32at(p, 40))
		}
		fmt.Fprintf(&b, "rate %s ceil %s burst %s cburst %s ", formatRate(rate), formatRate(ceil), formatSize(sendSize(rate, u32at(p, 24))), formatSize(sendSize(ceil, u32at(p, 28))))
	}
	fmt.Fprintln(c.out, b.String())
	if !c.stats {
		return
	}
	c.statistics(o)
	if o.kind == "htb" && len(o.xstats) >= 20 {
		x := o.xstats
		fmt.Fprintf(c.out, " lended: %d borrowed: %d giants: %d\n tokens: %d ctokens: %d\n",
			u32at(x, 0), u32at(x, 4), u32at(x, 8), int32(u32at(x, 12)), int32(u32at(x, 16)))
	}
	fmt.Fprintln(c.out)
}

// filter prints what a filter looks for and does, a line each.
func (c *command) filter(o *object, parent uint32) {
	var b strings.Builder
	b.WriteString("filter ")
	if parent == 0 || o.parent != parent {
		b.WriteString("parent " + formatHandle(o.parent) + " ")
	}
	protocol := uint16(o.info)
	protocol = protocol<<8 | protocol>>8
	name := map[uint16]string{unix.ETH_P_ALL: "all", unix.ETH_P_IP: "ip", unix.ETH_P_IPV6: "ipv6", unix.ETH_P_ARP: "arp", unix.ETH_P_8021Q: "802.1Q"}[protocol]
	if name == "" {
		name = fmt.Sprintf("[%d]", protocol)
	}
	fmt.Fprintf(&b, "protocol %s pref %d %s chain 0 ", name, o.info>>16, o.kind)
	a := attributes(o.options)
	switch o.kind {
	case "u32":
		switch h := o.handle; {
		case h == 0:
		case h&0xfffff == 0:
			fmt.Fprintf(&b, "fh %x: ht divisor %d ", h>>20, u32at(a[4], 0))
		default:
			fmt.Fprintf(&b, "fh %x:%s:%x order %d key ht %x bkt 0 ", h>>20, bucket(h), h&0xfff, h&0xfff, h>>20)
		}
		if id := u32at(a[1], 0); id != 0 {
			fmt.Fprintf(&b, "*flowid %s ", formatHandle(id))
		} else if o.handle&0xfff != 0 {
			b.WriteString("terminal flowid ??? ")
		}
		if u32at(a[11], 0)&8 != 0 {
			b.WriteString("not_in_hw ")
		}
		if sel := a[5]; len(sel) >= 16 {
			for i := range int(sel[2]) {
				k := 16 + 16*i
				if len(sel) < k+16 {
					break
				}
				fmt.Fprintf(&b, "\n  match %08x/%08x at %d", binary.BigEndian.Uint32(sel[k+4:]), binary.BigEndian.Uint32(sel[k:]), int32(u32at(sel, k+8)))
			}
		}
		actionsText(&b, a[7])
	case "matchall":
		if o.handle != 0 {
			fmt.Fprintf(&b, "handle %#x ", o.handle)
		}
		if id := u32at(a[1], 0); id != 0 {
			fmt.Fprintf(&b, "flowid %s ", formatHandle(id))
		}
		actionsText(&b, a[2])
	}
	fmt.Fprintln(c.out, b.String())
}

func bucket(h uint32) string {
	if v := h >> 12 & 0xff; v != 0 {
		return fmt.Sprintf("%x", v)
	}
	return ""
}

// actionsText names the actions of a filter and what they do.
func actionsText(b *strings.Builder, nest []byte) {
	list := attributes(nest)
	for i := uint16(1); list[i] != nil; i++ {
		a := attributes(list[i])
		kind := strings.TrimRight(string(a[1]), "\x00")
		opts := attributes(a[2])
		fmt.Fprintf(b, "\n\taction order %d: %s", i, kind)
		verdict := map[uint32]string{actOK: "pass", actShot: "drop", actPipe: "pipe", actStolen: "stolen"}
		switch kind {
		case "gact":
			fmt.Fprintf(b, " action %s", verdict[u32at(opts[2], 8)])
		case "mirred":
			p := opts[2]
			name := fmt.Sprintf("if%d", u32at(p, 24))
			if ifi, err := net.InterfaceByIndex(int(u32at(p, 24))); err == nil {
				name = ifi.Name
			}
			way := map[uint32]string{1: "Egress Redirect", 2: "Egress Mirror", 3: "Ingress Redirect", 4: "Ingress Mirror"}[u32at(p, 20)]
			fmt.Fprintf(b, " (%s to device %s) %s", way, name, verdict[u32at(p, 8)])
		case "police":
			// struct tc_police: index, action, limit, burst, mtu, rate (12 bytes, the rate in the last four)
			p := opts[1]
			rate := uint64(u32at(p, 28))
			fmt.Fprintf(b, " rate %s burst %s action %s", formatRate(rate), formatSize(sendSize(rate, u32at(p, 12))), verdict[u32at(p, 4)])
		}
	}
}
