package mptcpproxy

import (
	"cmp"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"weft/services/mptcpproxy/internal/carrier"
	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/paths"
	"weft/services/mptcpproxy/internal/status"
)

// rateInterval is how often rates are measured and probes told to slow down.
const rateInterval = 500 * time.Millisecond

// rates are what the control loop measures from one tick to the next.
type rates struct {
	at               time.Time
	toPeer, fromPeer uint64 // counters
	up, down         uint64 // bit/s
	paths            map[string]pathRate
}

type pathRate struct {
	sent, received     uint64 // counters
	sentRate, recvRate uint64 // bit/s
}

// measure works out rates, tells the datagram sessions what TCP uses, and lets
// the probes of idle peers slow down.
func (c *core) measure() {
	now := time.Now()
	st := c.engine.Stats()
	list := c.paths.Paths()

	c.mu.Lock()
	old := c.rates
	r := rates{at: now, toPeer: st.ToPeer, fromPeer: st.FromPeer, paths: map[string]pathRate{}}
	span := now.Sub(old.at).Seconds()
	rate := func(now, before uint64) uint64 {
		if now < before || span <= 0 || old.at.IsZero() {
			return 0
		}
		return uint64(float64(now-before) * 8 / span)
	}
	r.up, r.down = rate(st.ToPeer, old.toPeer), rate(st.FromPeer, old.fromPeer)
	for _, p := range list {
		o := old.paths[p.Name]
		r.paths[p.Name] = pathRate{
			sent: p.SentBytes, received: p.ReceivedBytes,
			sentRate: rate(p.SentBytes, o.sent), recvRate: rate(p.ReceivedBytes, o.received),
		}
	}
	c.rates = r
	busy := make(map[string]int, len(c.busy))
	for k, n := range c.busy {
		busy[k] = n
	}
	c.mu.Unlock()

	for _, s := range c.dgram.Sessions() {
		session := c.dgram.Session(s.Peer, s.Near)
		if session == nil {
			continue
		}
		session.SetActive(busy[sideKey(s.Peer, s.Near)] > 0)
		for _, p := range s.Paths {
			session.SetOtherRate(p.Name, float64(r.paths[p.Name].sentRate)/8)
		}
	}
}

// ms is a duration in milliseconds, for people.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// since is the time from t to now in seconds, 0 for none.
func since(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return int64(time.Since(t).Seconds())
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// report describes the core.
func (c *core) report() status.Report {
	c.mu.Lock()
	cfg, r := c.cfg, c.rates
	c.mu.Unlock()
	rep := status.Report{
		Fail: "open", Syn: cfg.Syn.String(), LAN: cfg.LAN, Bypass: c.fixed.near && !c.serving.Load(),
		Memory: memory(),
	}
	if cfg.FailClosed {
		rep.Fail = "closed"
	}
	st := c.engine.Stats()
	rep.Flows = status.Flows{
		Open: st.Flows, Parked: st.Parked, Opened: st.Opened, Failed: st.Failed, Reset: st.Reset, Ended: st.Ended,
		Refused: st.Refused, Limited: c.near.limits.refusals(),
	}
	rep.Traffic = status.Traffic{ToPeer: st.ToPeer, FromPeer: st.FromPeer, ToPeerRate: r.up, FromPeerRate: r.down, Buffered: st.Buffered}
	rep.Trunks = status.Trunks{Open: st.Trunks, Idle: st.Idle, Added: st.TrunksAdded, Lost: st.TrunksLost, Reused: st.TrunkReuses}
	if h := c.hold.Load(); h != nil {
		s := h.Stats()
		rep.Hold = status.Hold{Now: s.Held, Opened: s.Opened, Refused: s.Refused, Unreachable: s.Unreachable, Silent: s.Silent, Passed: s.Passed, Dropped: s.Dropped}
	}
	sessions := c.dgram.Sessions()
	if c.udp != nil {
		s := c.udp.Stats()
		rep.UDP = status.UDP{Flows: s.NearFlows + s.FarFlows, Up: s.Up, Down: s.Down, UpBytes: s.UpBytes, DownBytes: s.DownBytes, Refused: s.Refused, Unroutable: s.Unroutable}
	}
	for _, s := range sessions {
		rep.UDP.Dropped += s.Dropped + s.Overflow
		rep.UDP.Reordered += s.Reordered
	}
	if c.tunnel != nil {
		s := c.tunnel.Stats()
		rep.Tunnel = status.Tunnel{Sent: s.Sent, Received: s.Received, Refused: s.Refused}
		rep.Tunnel.Device, _ = c.tunnel.Device()
	}
	if c.listener != nil {
		s := c.listener.Stats()
		rep.Accept = status.Accept{Connections: s.Accepted, Authenticated: s.Authenticated, Refused: s.Refused, RateLimited: s.RateLimited, Denied: s.Denied}
	}
	rep.Peers = c.peerReports(sessions)
	for _, p := range rep.Peers {
		rep.Fallbacks += p.Fallbacks
	}
	rep.Paths = c.pathReports(r)
	return rep
}

func (c *core) peerReports(sessions []datagram.SessionStats) []status.Peer {
	out := []status.Peer{}
	list := c.dialer.Status()
	if c.listener != nil {
		list = append(list, c.listener.Status()...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range list {
		x := status.Peer{
			Name: p.Name, Near: p.Near, Carrier: carrier.Convert.String(), Up: p.Up, Since: since(p.Since), Node: p.Hello.Node, Software: p.Hello.Software,
			Addresses: p.Hello.Paths, RTT: ms(p.RTT), Trunks: p.Trunks, Idle: p.Idle, Dialled: p.Dialled, Failed: p.Failed,
			Fallbacks: p.Fallbacks, LastError: p.LastError, Datagrams: []status.Link{},
		}
		if p.Near {
			for _, cp := range c.cfg.Peers {
				if cp.Name == p.Name {
					x.Carrier, x.Destinations, x.Addresses = cp.Carrier.String(), cp.Destinations, c.addrs(&cp)
				}
			}
			x.Up = c.up[p.Name]
		} else {
			for _, a := range c.cfg.Accepts {
				if a.Name == p.Name {
					x.Carrier, x.Destinations = a.Carrier.String(), a.AllowDest
				}
			}
		}
		for _, s := range sessions {
			if s.Peer != p.Name || s.Near != p.Near {
				continue
			}
			for _, l := range s.Paths {
				x.Datagrams = append(x.Datagrams, status.Link{
					Path: l.Name, Alive: l.Alive, RTT: ms(l.RTT), Queue: ms(l.Queue), Rate: uint64(l.Rate * 8), Loss: l.Loss,
					MTU: l.MTU, Tx: l.TxBytes, Rx: l.RxBytes,
				})
			}
		}
		out = append(out, x)
	}
	return out
}

func (c *core) pathReports(r rates) []status.Path {
	out := []status.Path{}
	bottlenecks := c.governor.PathStats()
	for _, p := range c.paths.Paths() {
		x := status.Path{
			Name: p.Name, Device: p.Device, Mode: p.Mode.String(), State: p.State.String(), Reason: p.Reason, Stripped: p.Stripped,
			Local4: addr(p.Local4), Local6: addr(p.Local6), RTT: ms(p.RTT), MinRTT: ms(p.MinRTT), Subflows: p.Subflows,
			Sent: p.SentBytes, Received: p.ReceivedBytes, Retrans: p.RetransBytes, Joins: p.Joins, Failed: p.Failed, Lost: p.Lost,
			Quota: p.Quota, Used: p.Used, SentRate: r.paths[p.Name].sentRate, RecvRate: r.paths[p.Name].recvRate, Rates: []status.Rate{},
		}
		for _, b := range bottlenecks {
			if l := b.Local.Unmap(); l.IsValid() && (l == p.Local4 || l == p.Local6) {
				x.Rates = append(x.Rates, status.Rate{
					Peer: b.Peer, Remote: addr(b.Remote.Unmap()), Rate: uint64(b.Rate * 8), Loss: b.Loss, InFlight: b.InFlight, Limit: b.Limit, Congestion: b.Congestion,
				})
			}
		}
		out = append(out, x)
	}
	return out
}

// flows lists the TCP flows, the busiest first.
func (c *core) flows() []status.Flow {
	out := []status.Flow{}
	for _, f := range c.engine.Flows() {
		out = append(out, status.Flow{
			ID: f.ID, Peer: f.Peer, Near: f.Near, Src: f.Src.String(), Dst: f.Dst.String(), State: f.State, Age: since(f.Opened),
			ToPeer: f.ToPeer, FromPeer: f.FromPeer, Buffered: f.Buffered, Trunk: f.Trunk,
		})
	}
	slices.SortStableFunc(out, func(a, b status.Flow) int { return cmp.Compare(b.ToPeer+b.FromPeer, a.ToPeer+a.FromPeer) })
	return out
}

// memory is what the Go heap holds, and its limit. (Package runtime/metrics has
// it without stopping the world for a moment, and makes every start of every
// program of the device binary slower.)
func memory() status.Memory {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return status.Memory{Limit: debug.SetMemoryLimit(-1), Heap: m.HeapAlloc}
}

// summary is the line for the supervisor.
func (c *core) summary() string {
	up, down := 0, 0
	c.mu.Lock()
	for _, u := range c.up {
		if u {
			up++
		} else {
			down++
		}
	}
	c.mu.Unlock()
	good, all := 0, 0
	for _, p := range c.paths.Paths() {
		all++
		if p.State == paths.Up {
			good++
		}
	}
	return summaryText(up, up+down, good, all, c.fixed.far)
}
