package tc

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	tc "github.com/florianl/go-tc"
)

// options reads the words behind the kind into o.
func (c *command) options(object string, o *tc.Object) error {
	read := map[string]map[string]func(*tc.Object) error{
		"qdisc": {
			"tbf": c.tbf, "netem": c.netem, "htb": c.htb, "fq_codel": c.fqCodel, "cake": c.cake, "fq": c.fq, "pfifo": c.fifo, "bfifo": c.fifo,
			"ingress": c.none, "clsact": c.none, "noqueue": c.none, "pfifo_fast": c.none,
		},
		"class":  {"htb": c.htbClass},
		"filter": {"matchall": c.matchall, "u32": c.u32},
	}[object][o.Kind]
	if read == nil {
		return usageError(fmt.Sprintf("%s kind %q is not known", object, o.Kind))
	}
	return read(o)
}

func (c *command) none(o *tc.Object) error { return c.unknown(o.Kind) }

// unknown complains about a word that is left.
func (c *command) unknown(kind string) error {
	if len(c.words) > 0 {
		return usageError(fmt.Sprintf("%s: unknown option %q", kind, c.words[0]))
	}
	return nil
}

// maxRate is what go-tc's 32-bit rates hold, in bytes/s.
const maxRate = math.MaxUint32

// rateSpec is a rate as the kernel takes it; cells are those of go-tc's rate table (MTU 2047).
func rateSpec(rate uint64) tc.RateSpec {
	return tc.RateSpec{CellLog: 3, Linklayer: 1, CellAlign: 0xffff, Rate: uint32(rate)}
}

func checkRate(kind string, rates ...uint64) error {
	for _, r := range rates {
		if r > maxRate {
			return usageError(fmt.Sprintf("%s: rates above 34 Gbit/s are not supported", kind))
		}
	}
	return nil
}

func (c *command) tbf(o *tc.Object) error {
	var rate, peak uint64
	var burst, limit, mtu uint32
	var latency time.Duration
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "rate":
			err = with(c, key, parseRate, &rate)
		case "peakrate":
			err = with(c, key, parseRate, &peak)
		case "burst", "buffer", "maxburst":
			err = with(c, key, parseSize, &burst)
		case "limit":
			err = with(c, key, parseSize, &limit)
		case "latency":
			err = with(c, key, parseTime, &latency)
		case "mtu", "minburst":
			err = with(c, key, parseSize, &mtu)
		default:
			err = usageError(fmt.Sprintf("tbf: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	switch {
	case rate == 0 || burst == 0:
		return usageError("tbf: rate and burst must be given")
	case (limit == 0) == (latency == 0):
		return usageError("tbf: give either latency or limit")
	case peak != 0 && mtu == 0:
		return usageError("tbf: mtu must be given with peakrate")
	}
	if err := checkRate("tbf", rate, peak); err != nil {
		return err
	}
	if limit == 0 {
		bytes := float64(rate)*latency.Seconds() + float64(burst)
		if peak != 0 {
			bytes = min(bytes, float64(peak)*latency.Seconds()+float64(mtu))
		}
		limit = uint32(min(bytes, math.MaxUint32))
	}
	o.Tbf = &tc.Tbf{Parms: &tc.TbfQopt{Rate: rateSpec(rate), Limit: limit, Buffer: sendTime(rate, burst)}, Burst: &burst}
	if peak != 0 {
		o.Tbf.Parms.PeakRate, o.Tbf.Parms.Mtu, o.Tbf.Pburst = rateSpec(peak), sendTime(peak, mtu), &mtu
	}
	return nil
}

// correlation reads an optional percentage.
func (c *command) correlation(dst *uint32) error {
	if len(c.words) == 0 || !strings.HasSuffix(c.words[0], "%") {
		return nil
	}
	return with(c, "correlation", parsePercent, dst)
}

func (c *command) netem(o *tc.Object) error {
	n := &tc.Netem{Qopt: tc.NetemQopt{Limit: 1000}}
	corr := &tc.NetemCorr{}
	part := func(key string, p, corr *uint32) error {
		if err := with(c, key, parsePercent, p); err != nil {
			return err
		}
		return c.correlation(corr)
	}
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "limit":
			err = with(c, key, parseNumber, &n.Qopt.Limit)
		case "delay", "latency":
			var d time.Duration
			if err = with(c, key, parseTime, &d); err != nil {
				break
			}
			delay := int64(d)
			n.Latency64 = &delay
			if len(c.words) > 0 && c.words[0] != "" && c.words[0][0] >= '0' && c.words[0][0] <= '9' && !strings.HasSuffix(c.words[0], "%") {
				if err = with(c, "jitter", parseTime, &d); err != nil {
					break
				}
				jitter := int64(d)
				n.Jitter64 = &jitter
				err = c.correlation(&corr.Delay)
			}
		case "loss", "drop":
			if len(c.words) > 0 && c.words[0] == "random" {
				c.next()
			}
			err = part(key, &n.Qopt.Loss, &corr.Loss)
		case "duplicate":
			err = part(key, &n.Qopt.Duplicate, &corr.Dup)
		case "reorder":
			n.Reorder = &tc.NetemReorder{}
			err = part(key, &n.Reorder.Probability, &n.Reorder.Correlation)
		case "corrupt":
			n.Corrupt = &tc.NetemCorrupt{}
			err = part(key, &n.Corrupt.Probability, &n.Corrupt.Correlation)
		case "gap":
			err = with(c, key, parseNumber, &n.Qopt.Gap)
		case "ecn":
			one := uint32(1)
			n.Ecn = &one
		case "rate":
			var rate uint64
			if err = with(c, key, parseRate, &rate); err == nil {
				err = checkRate("netem", rate)
			}
			n.Rate = &tc.NetemRate{Rate: uint32(rate)}
		default:
			err = usageError(fmt.Sprintf("netem: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	if n.Reorder != nil && n.Latency64 == nil {
		return usageError("netem: reorder needs a delay")
	}
	if n.Reorder != nil && n.Qopt.Gap == 0 {
		n.Qopt.Gap = 1
	}
	if *corr != (tc.NetemCorr{}) {
		n.Corr = corr
	}
	o.Netem = n
	return nil
}

func (c *command) htb(o *tc.Object) error {
	glob := &tc.HtbGlob{Version: 3, Rate2Quantum: 10}
	h := &tc.Htb{Init: glob}
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "default":
			err = with(c, key, func(s string) (uint32, error) {
				v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 16)
				if err != nil {
					return 0, fmt.Errorf("class %q: want the minor number in hexadecimal", s)
				}
				return uint32(v), nil
			}, &glob.Defcls)
		case "r2q":
			err = with(c, key, parseNumber, &glob.Rate2Quantum)
		case "direct_qlen":
			err = optional(c, key, parseNumber, &h.DirectQlen)
		default:
			err = usageError(fmt.Sprintf("htb: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	o.Htb = h
	return nil
}

func (c *command) htbClass(o *tc.Object) error {
	var rate, ceil uint64
	var burst, cburst uint32
	opt := &tc.HtbOpt{}
	mtu := uint32(1600) // for the smallest burst, as iproute2 has it
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "rate":
			err = with(c, key, parseRate, &rate)
		case "ceil":
			err = with(c, key, parseRate, &ceil)
		case "burst", "buffer", "maxburst":
			err = with(c, key, parseSize, &burst)
		case "cburst", "cbuffer", "cmaxburst":
			err = with(c, key, parseSize, &cburst)
		case "mtu":
			err = with(c, key, parseSize, &mtu)
		case "prio":
			err = with(c, key, parseNumber, &opt.Prio)
		case "quantum":
			err = with(c, key, parseSize, &opt.Quantum)
		default:
			err = usageError(fmt.Sprintf("htb: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	if rate == 0 {
		return usageError("htb: rate must be given")
	}
	if ceil == 0 {
		ceil = rate
	}
	if err := checkRate("htb", rate, ceil); err != nil {
		return err
	}
	// One tick's worth and a frame, so that the rate is reached: iproute2/tc/q_htb.c with a clock of 1 GHz.
	const hz = 1e9
	if burst == 0 {
		burst = uint32(float64(rate)/hz) + mtu
	}
	if cburst == 0 {
		cburst = uint32(float64(ceil)/hz) + mtu
	}
	opt.Rate, opt.Ceil = rateSpec(rate), rateSpec(ceil)
	opt.Buffer, opt.Cbuffer = sendTime(rate, burst), sendTime(ceil, cburst)
	o.Htb = &tc.Htb{Parms: opt}
	return nil
}

// micros reads a time as microseconds of 32 bits.
func micros(s string) (uint32, error) {
	d, err := parseTime(s)
	if err == nil && d.Microseconds() > math.MaxUint32 {
		err = fmt.Errorf("time %q is too long", s)
	}
	return uint32(d.Microseconds()), err
}

func flag(v uint32) *uint32 { return &v }

func (c *command) fqCodel(o *tc.Object) error {
	f := &tc.FqCodel{}
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "limit":
			err = optional(c, key, parseNumber, &f.Limit)
		case "flows":
			err = optional(c, key, parseNumber, &f.Flows)
		case "quantum":
			err = optional(c, key, parseNumber, &f.Quantum)
		case "target":
			err = optional(c, key, micros, &f.Target)
		case "interval":
			err = optional(c, key, micros, &f.Interval)
		case "ce_threshold":
			err = optional(c, key, micros, &f.CEThreshold)
		case "memory_limit":
			err = optional(c, key, parseSize, &f.MemoryLimit)
		case "drop_batch":
			err = optional(c, key, parseNumber, &f.DropBatchSize)
		case "ecn":
			f.ECN = flag(1)
		case "noecn":
			f.ECN = flag(0)
		default:
			err = usageError(fmt.Sprintf("fq_codel: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	if *f == (tc.FqCodel{}) {
		f.ECN = flag(1) // the kernel's default; go-tc does not send empty options
	}
	o.FqCodel = f
	return nil
}

func (c *command) fq(o *tc.Object) error {
	f := &tc.Fq{}
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); key {
		case "limit":
			err = optional(c, key, parseNumber, &f.PLimit)
		case "flow_limit":
			err = optional(c, key, parseNumber, &f.FlowPLimit)
		case "quantum":
			err = optional(c, key, parseSize, &f.Quantum)
		case "initial_quantum":
			err = optional(c, key, parseSize, &f.InitQuantum)
		case "refill_delay":
			err = optional(c, key, micros, &f.FlowRefillDelay)
		case "maxrate":
			var rate uint64
			if err = with(c, key, parseRate, &rate); err == nil {
				err = checkRate("fq", rate)
			}
			f.FlowMaxRate = flag(uint32(rate))
		case "buckets":
			var n uint32
			if err = with(c, key, parseNumber, &n); err == nil {
				if n == 0 || n&(n-1) != 0 {
					err = usageError("fq: buckets: want a power of two")
				}
				log := uint32(0)
				for n>>log > 1 {
					log++
				}
				f.BucketsLog = &log
			}
		case "pacing":
			f.RateEnable = flag(1)
		case "nopacing":
			f.RateEnable = flag(0)
		default:
			err = usageError(fmt.Sprintf("fq: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	if *f == (tc.Fq{}) {
		f.RateEnable = flag(1)
	}
	o.Fq = f
	return nil
}

func (c *command) fifo(o *tc.Object) error {
	var limit *uint32
	for len(c.words) > 0 {
		var err error
		switch key := c.next(); {
		case key == "limit" && o.Kind == "pfifo":
			err = optional(c, key, parseNumber, &limit)
		case key == "limit":
			err = optional(c, key, parseSize, &limit)
		default:
			err = usageError(fmt.Sprintf("%s: unknown option %q", o.Kind, key))
		}
		if err != nil {
			return err
		}
	}
	if limit == nil { // the kernel's default for a device of the usual queue length and MTU
		limit = flag(1000)
		if o.Kind == "bfifo" {
			limit = flag(1000 * 1514)
		}
	}
	if o.Kind == "pfifo" {
		o.Pfifo = &tc.FifoOpt{Limit: *limit}
	} else {
		o.Bfifo = &tc.FifoOpt{Limit: *limit}
	}
	return nil
}

// Words of cake in the order of the kernel's numbers (include/uapi/linux/pkt_sched.h).
var (
	cakeDiffserv = []string{"diffserv3", "diffserv4", "diffserv8", "besteffort", "precedence"}
	cakeFlows    = []string{"flowblind", "srchost", "dsthost", "hosts", "flows", "dual-srchost", "dual-dsthost", "triple-isolate"}
	cakeATM      = []string{"noatm", "atm", "ptm"}
	cakeAck      = []string{"no-ack-filter", "ack-filter", "ack-filter-aggressive"}
)

func (c *command) cake(o *tc.Object) error {
	k := &tc.Cake{}
	for len(c.words) > 0 {
		var err error
		key := c.next()
		set := func(dst **uint32, list []string) bool {
			i, ok := choice(key, list...)
			if ok {
				*dst = &i
			}
			return ok
		}
		switch {
		case key == "bandwidth":
			if len(c.words) > 0 && c.words[0] == "unlimited" {
				c.next()
				k.BaseRate = new(uint64)
				break
			}
			err = optional(c, key, parseRate, &k.BaseRate)
		case key == "unlimited":
			k.BaseRate = new(uint64)
		case set(&k.DiffServMode, cakeDiffserv), set(&k.FlowMode, cakeFlows), set(&k.Atm, cakeATM), set(&k.AckFilter, cakeAck):
		case set(&k.Nat, []string{"nonat", "nat"}), set(&k.Wash, []string{"nowash", "wash"}), set(&k.Ingress, []string{"egress", "ingress"}):
		case set(&k.SplitGso, []string{"no-split-gso", "split-gso"}):
		case key == "rtt":
			if err = optional(c, key, micros, &k.Rtt); err == nil {
				k.Target = flag(max(*k.Rtt/20, 5000))
				if *k.Rtt < 100_000 {
					k.Target = flag(max(*k.Rtt/20, 1))
				}
			}
		case key == "overhead":
			err = optional(c, key, parseNumber, &k.Overhead)
		case key == "mpu":
			err = optional(c, key, parseNumber, &k.Mpu)
		case key == "memlimit":
			err = optional(c, key, parseSize, &k.Memory)
		case key == "raw":
			k.Raw = flag(0)
		default:
			err = usageError(fmt.Sprintf("cake: unknown option %q", key))
		}
		if err != nil {
			return err
		}
	}
	if *k == (tc.Cake{}) {
		k.BaseRate = new(uint64) // unlimited, the kernel's default
	}
	o.Cake = k
	return nil
}

// verdicts of generic actions (include/uapi/linux/pkt_cls.h).
const (
	actPipe   = 3
	actStolen = 4
	actOK     = 0
	actShot   = 2
)

// actions reads "action drop|pass|mirred egress redirect|mirror dev DEV|police rate R burst SIZE [conform-exceed drop]",
// or nothing.
func (c *command) actions() (*[]*tc.Action, error) {
	var list []*tc.Action
	for len(c.words) > 0 && c.words[0] == "action" {
		c.next()
		switch kind := c.next(); kind {
		case "drop", "pass", "ok":
			verdict := uint32(actOK)
			if kind == "drop" {
				verdict = actShot
			}
			list = append(list, &tc.Action{Kind: "gact", Gact: &tc.Gact{Parms: &tc.GactParms{Action: verdict}}})
		case "mirred":
			way, what := c.next(), c.next()
			key, name := c.next(), c.next()
			number := map[string]uint32{"egress redirect": 1, "egress mirror": 2, "ingress redirect": 3, "ingress mirror": 4}[way+" "+what]
			if number == 0 || key != "dev" || name == "" {
				return nil, usageError("action mirred: want egress|ingress redirect|mirror dev DEV")
			}
			index, err := device(name)
			if err != nil {
				return nil, err
			}
			then := uint32(actStolen)
			if what == "mirror" {
				then = actPipe
			}
			list = append(list, &tc.Action{Kind: "mirred", Mirred: &tc.Mirred{Parms: &tc.MirredParam{Eaction: number, IfIndex: index, Action: then}}})
		case "police":
			var rate uint64
			var burst uint32
			for len(c.words) > 0 && c.words[0] != "action" && c.words[0] != "flowid" && c.words[0] != "classid" {
				var err error
				switch key := c.next(); key {
				case "rate":
					err = with(c, key, parseRate, &rate)
				case "burst":
					err = with(c, key, parseSize, &burst)
				case "drop":
				case "conform-exceed":
					if c.next() != "drop" {
						err = usageError("action police: only drop is supported for what exceeds the rate")
					}
				default:
					err = usageError(fmt.Sprintf("action police: unknown option %q", key))
				}
				if err != nil {
					return nil, err
				}
			}
			if rate == 0 || burst == 0 {
				return nil, usageError("action police: rate and burst must be given")
			}
			if err := checkRate("police", rate); err != nil {
				return nil, err
			}
			list = append(list, &tc.Action{Kind: "police", Police: &tc.Police{Tbf: &tc.Policy{Action: actShot, Burst: sendTime(rate, burst), Rate: rateSpec(rate)}}})
		default:
			return nil, usageError(fmt.Sprintf("action %q: want drop, pass, mirred or police", kind))
		}
	}
	if list == nil {
		return nil, nil
	}
	return &list, nil
}

// ending reads what may stand behind the matches of a filter.
func (c *command) ending(kind string, class **uint32, actions **[]*tc.Action) error {
	for len(c.words) > 0 {
		var err error
		switch key := c.words[0]; key {
		case "flowid", "classid":
			c.next()
			err = optional(c, key, parseHandle, class)
		case "action":
			*actions, err = c.actions()
		default:
			err = usageError(fmt.Sprintf("%s: unknown option %q", kind, key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *command) matchall(o *tc.Object) error {
	m := &tc.Matchall{}
	o.Matchall = m
	return c.ending("matchall", &m.ClassID, &m.Actions)
}

// u32 reads matches on the IP header: match ip|ip6 src|dst PREFIX, sport|dport PORT [MASK], protocol N [MASK], tos N MASK;
// and match u32 VALUE MASK at OFFSET.
func (c *command) u32(o *tc.Object) error {
	u := &tc.U32{Sel: &tc.U32Sel{Flags: 1}} // TC_U32_TERMINAL
	o.U32 = u
	for len(c.words) > 0 && c.words[0] == "match" {
		c.next()
		keys, err := c.match()
		if err != nil {
			return err
		}
		u.Sel.Keys = append(u.Sel.Keys, keys...)
	}
	u.Sel.NKeys = uint8(len(u.Sel.Keys))
	if len(u.Sel.Keys) == 0 {
		return usageError("u32: want at least one match, as match ip dport 80 0xffff")
	}
	if err := c.ending("u32", &u.ClassID, &u.Actions); err != nil {
		return err
	}
	if u.ClassID == nil && u.Actions == nil {
		return usageError("u32: what shall happen? give flowid CLASS or action A")
	}
	return nil
}

// key is a comparison of 32 bits of the packet, counted from the IP header.
func key(off int, value, mask uint32) tc.U32Key {
	var v, m [4]byte
	binary.BigEndian.PutUint32(v[:], value&mask)
	binary.BigEndian.PutUint32(m[:], mask)
	return tc.U32Key{Mask: binary.NativeEndian.Uint32(m[:]), Val: binary.NativeEndian.Uint32(v[:]), Off: uint32(off)}
}

func (c *command) match() ([]tc.U32Key, error) {
	family, field := c.next(), c.next()
	v6 := family == "ip6"
	header := 20
	if v6 {
		header = 40
	}
	mask := func(def uint32) (uint32, error) {
		if len(c.words) > 0 && strings.HasPrefix(c.words[0], "0x") {
			m := def
			err := with(c, field, parseNumber, &m)
			return m, err
		}
		return def, nil
	}
	number := func(def uint32) (v, m uint32, err error) {
		if err = with(c, field, parseNumber, &v); err == nil {
			m, err = mask(def)
		}
		return v, m, err
	}
	if family == "u32" {
		v, err := parseNumber(field)
		var m, off uint32
		if err == nil {
			err = with(c, "mask", parseNumber, &m)
		}
		if err == nil && c.next() != "at" {
			err = usageError("match u32: want VALUE MASK at OFFSET")
		}
		if err == nil {
			err = with(c, "at", parseNumber, &off)
		}
		return []tc.U32Key{key(int(off), v, m)}, err
	}
	if family != "ip" && !v6 {
		return nil, usageError(fmt.Sprintf("match %q: want ip, ip6 or u32", family))
	}
	switch field {
	case "src", "dst":
		text, err := c.value(field)
		if err != nil {
			return nil, err
		}
		if !strings.Contains(text, "/") {
			text += map[bool]string{true: "/128", false: "/32"}[v6]
		}
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4() == v6 {
			return nil, usageError(fmt.Sprintf("match %s %s %q: want a prefix of that family", family, field, text))
		}
		off := map[string]int{"ip src": 12, "ip dst": 16, "ip6 src": 8, "ip6 dst": 24}[family+" "+field]
		var keys []tc.U32Key
		addr := p.Masked().Addr().AsSlice()
		for i, bits := 0, p.Bits(); i < len(addr) && (bits > 0 || i == 0); i, bits = i+4, bits-32 {
			m := uint32(0)
			if bits > 0 {
				m = ^uint32(0) << (32 - min(bits, 32))
			}
			keys = append(keys, key(off+i, binary.BigEndian.Uint32(addr[i:]), m))
		}
		return keys, nil
	case "sport":
		v, m, err := number(0xffff)
		return []tc.U32Key{key(header, v<<16, m<<16)}, err
	case "dport":
		v, m, err := number(0xffff)
		return []tc.U32Key{key(header, v, m)}, err
	case "protocol":
		v, m, err := number(0xff)
		if v6 {
			return []tc.U32Key{key(4, v<<8, m<<8)}, err
		}
		return []tc.U32Key{key(8, v<<16, m<<16)}, err
	case "tos", "dsfield", "priority":
		v, m, err := number(0xff)
		if v6 {
			return []tc.U32Key{key(0, v<<20, m<<20)}, err
		}
		return []tc.U32Key{key(0, v<<16, m<<16)}, err
	}
	return nil, usageError(fmt.Sprintf("match %s %q: want src, dst, sport, dport, protocol or tos", family, field))
}
