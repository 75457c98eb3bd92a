// Package govern keeps the queues at the bottlenecks of the paths short while
// bulk flows use all of their rate, and chooses congestion control.
//
// It does three things:
//
//   - It switches off the growth of segment bursts on short paths
//     (net.ipv4.tcp_tso_rtt_log): with it, TCP keeps two bursts of 64 KiB in the
//     queue of a slow interface, which is 100 ms at 10 Mbit/s; without it, two
//     milliseconds' worth.
//   - It samples the subflows of busy connections (MPTCP_FULL_INFO) and knows
//     each path's smallest round trip, delivery rate and standing queue. Where a
//     queue stands beyond this machine, it bounds what all bulk connections
//     together keep in flight, by their send buffers. Paths that are fast, or
//     whose queue is short, are left alone, and so is every small flow.
//   - Every connection runs cubic, except where random losses hold cubic below
//     the rate of a long path: then bbr, for all connections to that peer, until
//     a later trial shows the loss gone.
//
// The machine's defaults are neither needed nor changed, except for the one
// sysctl, which Run sets back.
package govern

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/internal/mptcpnl"
)

// Options sets a Governor up. Zero values take the defaults named.
type Options struct {
	Interval     time.Duration // between samples of busy connections, 25 ms
	Congestion   string        // "auto", or an algorithm of the kernel that is set on every socket
	NotSentLowat int           // TCP_NOTSENT_LOWAT, bytes; 0: left alone
	Queue        time.Duration // queueing delay aimed at, 10 ms
	Log          *slog.Logger
}

// perRound bounds the connections looked at in one round; more take turns.
const perRound = 64

// youngFor is how long a new connection counts as busy in any case: while its
// subflows join, their first samples tell of paths that no flow has used yet.
const youngFor = 10 * time.Second

// Governor looks after registered connections.
type Governor struct {
	o    Options
	wake chan struct{}

	mu     sync.Mutex
	socks  map[int]*sock
	order  []*sock // for taking turns
	turn   int
	busy   int
	paths  map[pathKey]*path
	groups map[string]*group
	subs   []mptcpnl.SubflowInfo // scratch
	warned bool
}

// sock is one registered connection.
type sock struct {
	fd      int
	peer    string
	busy    bool
	since   time.Time // registered
	used    bool      // was busy with a flow
	rest    time.Time // counts as idle from then on, zero: not foreseen
	cc      string
	sndbuf  int // set by us, 0 = the kernel's own
	bulk    time.Time
	limited bool
	unsent  int // TCP_NOTSENT_LOWAT set by us, 0 = that of the settings
	subs    []sub
	gone    bool
}

// sub is one subflow as seen last.
type sub struct {
	local, remote netip.AddrPort
	acked         uint64
	sent, retrans uint32
	dsack         uint32
	seen          bool
}

// New makes a Governor; Run makes it work. An algorithm that the kernel does
// not have is an error.
func New(o Options) (*Governor, error) {
	if o.Interval <= 0 {
		o.Interval = 25 * time.Millisecond
	}
	if o.Queue <= 0 {
		o.Queue = 10 * time.Millisecond
	}
	if o.Congestion == "" {
		o.Congestion = "auto"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Congestion != "auto" {
		if err := tryCongestion(o.Congestion); err != nil {
			return nil, err
		}
	}
	return &Governor{o: o, wake: make(chan struct{}, 1), socks: make(map[int]*sock),
		paths: make(map[pathKey]*path), groups: make(map[string]*group)}, nil
}

// tryCongestion sets an algorithm on a socket of its own, which also loads its
// module.
func tryCongestion(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("try congestion control %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err != nil {
		have, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
		return fmt.Errorf("option congestion %q: the kernel does not take it (%w); expected auto or one of: %s", name, err, strings.TrimSpace(string(have)))
	}
	return nil
}

// Run samples and decides until ctx ends.
func (g *Governor) Run(ctx context.Context) error {
	restore := g.calmBursts()
	defer restore()
	t := time.NewTicker(g.o.Interval)
	defer t.Stop()
	for {
		g.mu.Lock()
		idle := g.busy == 0
		g.mu.Unlock()
		if idle {
			t.Stop()
			select {
			case <-ctx.Done():
				return nil
			case <-g.wake:
			}
			t.Reset(g.o.Interval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			g.round(time.Now())
		}
	}
}

// burstSysctl adds to each burst the more, the shorter the round trip is
// (Documentation/networking/ip-sysctl.rst); 0 switches that off.
const burstSysctl = "/proc/sys/net/ipv4/tcp_tso_rtt_log"

// calmBursts sets the sysctl and returns what sets it back.
func (g *Governor) calmBursts() (restore func()) {
	old, err := os.ReadFile(burstSysctl)
	if errors.Is(err, os.ErrNotExist) {
		return func() {} // before Linux 5.18 bursts did not grow
	}
	if err == nil && strings.TrimSpace(string(old)) == "0" {
		return func() {}
	}
	if err == nil {
		err = os.WriteFile(burstSysctl, []byte("0\n"), 0o644)
	}
	if err != nil {
		g.o.Log.Warn("cannot keep bursts short: queues of slow paths will be long", "sysctl", burstSysctl, "err", err)
		return func() {}
	}
	return func() {
		if err := os.WriteFile(burstSysctl, old, 0o644); err != nil {
			g.o.Log.Warn("cannot set a sysctl back", "sysctl", burstSysctl, "err", err)
		}
	}
}

// Register puts a connected MPTCP or TCP socket under the governor, which
// sets its congestion control and may change its buffer. The descriptor must
// stay valid until Unregister has returned.
func (g *Governor) Register(fd int, peer string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(fd)
	s := &sock{fd: fd, peer: peer, busy: true, since: time.Now()}
	g.socks[fd] = s
	g.order = append(g.order, s)
	g.busy++
	g.setCongestion(s, g.algorithm(peer))
	g.setBuffer(s, g.group(peer).room())
	if g.o.NotSentLowat > 0 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, g.o.NotSentLowat)
	}
	g.kick()
}

func (g *Governor) kick() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Unregister ends that; call it before the descriptor is closed.
func (g *Governor) Unregister(fd int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(fd)
}

func (g *Governor) forget(fd int) {
	s := g.socks[fd]
	if s == nil {
		return
	}
	if s.busy {
		g.busy--
	}
	s.gone = true
	delete(g.socks, fd)
}

// SetBusy tells whether a connection carries a flow (stream.Options.TrunkBusy).
// Only busy ones are sampled. A new one counts as busy for some seconds even
// if it is told not to be.
func (g *Governor) SetBusy(fd int, busy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.socks[fd]
	if s == nil {
		return
	}
	if s.used = s.used || busy; !s.used && time.Since(s.since) < youngFor {
		s.rest = s.since.Add(youngFor)
		return
	}
	s.rest = time.Time{}
	if s.busy == busy {
		return
	}
	s.busy = busy
	if !busy {
		g.busy--
		s.bulk = time.Time{}
		if s.limited {
			g.setBuffer(s, g.group(s.peer).room())
			s.limited = false
		}
		return
	}
	g.busy++
	for i := range s.subs {
		s.subs[i].seen = false // what happened meanwhile is no sample
	}
	g.kick()
}

// algorithm is the congestion control for connections to a peer.
func (g *Governor) algorithm(peer string) string {
	if g.o.Congestion != "auto" {
		return g.o.Congestion
	}
	for k, p := range g.paths {
		if k.peer == peer && p.bbr {
			return "bbr"
		}
	}
	return "cubic"
}

func (g *Governor) setCongestion(s *sock, name string) {
	if s.cc == name {
		return
	}
	s.cc = name // tried; a kernel without it keeps its default
	if err := unix.SetsockoptString(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err != nil && !g.warned {
		g.warned = true
		g.o.Log.Warn("cannot set congestion control, the kernel's default stays", "algorithm", name, "err", err)
	}
}

// round looks at the busy connections and decides.
func (g *Governor) round(now time.Time) {
	g.mu.Lock()
	for k, p := range g.paths {
		if p.begin(now); now.Sub(p.seen) > forgetAfter && !p.bbr {
			delete(g.paths, k)
		}
	}
	order := g.order[:0]
	for _, s := range g.order {
		if s.gone {
			continue
		}
		order = append(order, s)
		if s.busy && !s.rest.IsZero() && now.After(s.rest) {
			s.busy = false
			g.busy--
		}
	}
	clear(g.order[len(order):])
	g.order = order
	n := len(order)
	start := g.turn
	looked, i := 0, 0
	for ; i < n && looked < perRound; i++ {
		s := order[(start+i)%n]
		if !s.busy {
			continue
		}
		looked++
		g.look(s, now)
	}
	if n > 0 {
		g.turn = (start + i) % n
	}
	for _, p := range g.paths {
		p.end()
	}
	g.decide(now)
	g.mu.Unlock()
}

// look samples one connection.
func (g *Governor) look(s *sock, now time.Time) {
	info, subs, err := mptcpnl.GetFullInfo(s.fd, g.subs[:0])
	g.subs = subs
	unacked := info.Unacked()
	if errors.Is(err, mptcpnl.ErrFallback) {
		var ok bool
		if unacked, ok = g.lookTCP(s, now); !ok {
			return
		}
	} else if err != nil {
		return // it is ending
	} else {
		g.compare(s, subs, now)
	}
	limit := uint64(bulkUnacked)
	if s.limited {
		limit = uint64(s.sndbuf) / 3
	}
	if unacked > limit {
		s.bulk = now
	}
}

// lookTCP samples a connection of plain TCP.
func (g *Governor) lookTCP(s *sock, now time.Time) (unacked uint64, ok bool) {
	t, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	local, remote, err := names(s.fd)
	if err != nil {
		return 0, false
	}
	g.subs = append(g.subs[:0], mptcpnl.SubflowInfo{Local: local, Remote: remote, TCP: *t})
	g.compare(s, g.subs, now)
	return uint64(t.Unacked)*uint64(t.Snd_mss) + uint64(t.Notsent_bytes), true
}

func names(fd int) (local, remote netip.AddrPort, err error) {
	l, err := unix.Getsockname(fd)
	if err != nil {
		return local, remote, err
	}
	r, err := unix.Getpeername(fd)
	if err != nil {
		return local, remote, err
	}
	return addrPort(l), addrPort(r), nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// compare turns counters into samples.
func (g *Governor) compare(s *sock, infos []mptcpnl.SubflowInfo, now time.Time) {
	changed := false
	kept := 0
	for i := range infos {
		in := &infos[i]
		t := &in.TCP
		j := slices.IndexFunc(s.subs, func(x sub) bool { return x.local == in.Local && x.remote == in.Remote })
		if j < 0 {
			changed = changed || len(s.subs) > 0
			s.subs = append(s.subs, sub{local: in.Local, remote: in.Remote})
			j = len(s.subs) - 1
		}
		if j >= kept {
			s.subs[kept], s.subs[j] = s.subs[j], s.subs[kept]
			j, kept = kept, kept+1
		}
		x := &s.subs[j]
		key := pathKey{s.peer, in.Local.Addr().Unmap(), in.Remote.Addr().Unmap()}
		p := g.paths[key]
		if p == nil {
			p = &path{key: key, seen: now}
			p.begin(now)
			g.paths[key] = p
		}
		sm := sample{now: now, rtt: usec(t.Rtt), minRTT: usec(t.Min_rtt), flight: int(t.Unacked), mss: int(t.Snd_mss)}
		if t.Min_rtt == ^uint32(0) {
			sm.minRTT = 0 // none measured yet
		}
		if x.seen {
			sm.acked = t.Bytes_acked - x.acked
			sm.sent = t.Data_segs_out - x.sent
			lost, twice := t.Total_retrans-x.retrans, t.Dsack_dups-x.dsack
			if lost > twice {
				sm.retrans = lost - twice
			}
		}
		x.acked, x.sent, x.retrans, x.dsack, x.seen = t.Bytes_acked, t.Data_segs_out, t.Total_retrans, t.Dsack_dups, true
		p.observe(sm)
	}
	if kept < len(s.subs) {
		changed = true
		s.subs = s.subs[:kept]
	}
	if changed {
		g.group(s.peer).disturb(now)
	}
}

func usec(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }

func (g *Governor) group(peer string) *group {
	x := g.groups[peer]
	if x == nil {
		x = &group{target: g.o.Queue, slack: 1}
		g.groups[peer] = x
	}
	return x
}

// decide applies what the samples say.
func (g *Governor) decide(now time.Time) {
	peers := make(map[string][]*path)
	for k, p := range g.paths {
		peers[k.peer] = append(peers[k.peer], p)
	}
	for peer, list := range peers {
		gr := g.group(peer)
		gr.review(now, list)
		cc := g.algorithm(peer)
		if cc == "bbr" {
			gr.release() // it looks after the queue itself
		}
		n := 0
		for _, s := range g.order {
			if s.busy && s.peer == peer && now.Sub(s.bulk) < bulkFor {
				n++
			}
		}
		share := gr.share(n)
		for _, s := range g.order {
			if s.gone || s.peer != peer {
				continue
			}
			if s.cc != cc {
				if s.cc != "" && g.o.Congestion == "auto" {
					g.o.Log.Info("congestion control changed", "peer", peer, "algorithm", cc)
				}
				g.setCongestion(s, cc)
			}
			bulk := s.busy && now.Sub(s.bulk) < bulkFor
			if bulk {
				g.setUnsent(s, gr.unsent)
			}
			switch {
			case bulk && share > 0:
				g.setBuffer(s, share)
			case bulk || s.limited:
				g.setBuffer(s, gr.room())
			}
			s.limited = bulk && share > 0
		}
	}
}

// setBuffer sets the send buffer; the kernel doubles what it is given. Without
// the privilege there is neither bound nor room, and no harm.
func (g *Governor) setBuffer(s *sock, bytes int) {
	if bytes > s.sndbuf*15/16 && bytes < s.sndbuf*17/16 {
		return
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bytes/2) == nil {
		s.sndbuf = bytes
	}
}

// setUnsent bounds what waits unsent in a connection, never above the settings;
// 0 is what the settings say.
func (g *Governor) setUnsent(s *sock, bytes int) {
	if most := g.o.NotSentLowat; most > 0 && bytes > most {
		bytes = 0
	}
	if bytes == s.unsent || bytes != 0 && bytes > s.unsent*3/4 && bytes < s.unsent*4/3 {
		return
	}
	set := bytes
	if set == 0 {
		set = g.o.NotSentLowat
	}
	if unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, set) == nil {
		s.unsent = bytes
	}
}

// PathStat is what is known of one path, that is: of one pair of addresses.
type PathStat struct {
	Peer          string
	Local, Remote netip.Addr
	MinRTT, RTT   time.Duration
	Queue         time.Duration // that stands
	Rate          float64       // bytes per second delivered at most, of late
	Loss          float64       // share of segments, smoothed
	InFlight      int           // bytes
	Limit         int           // bytes in flight allowed to the peer in all; 0 = not bounded
	Congestion    string
	Subflows      int
}

// PathStats lists the paths, sorted by peer and address.
func (g *Governor) PathStats() []PathStat {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []PathStat
	for k, p := range g.paths {
		q, _ := p.queue()
		st := PathStat{Peer: k.peer, Local: k.local, Remote: k.remote, MinRTT: p.minRTT(), RTT: p.rtt, Queue: q,
			Rate: p.rate(), Loss: p.loss, InFlight: p.inFlight, Congestion: g.algorithm(k.peer), Subflows: p.subflows}
		if gr := g.groups[k.peer]; gr != nil {
			st.Limit = gr.limit
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b PathStat) int {
		if c := strings.Compare(a.Peer, b.Peer); c != 0 {
			return c
		}
		if c := a.Local.Compare(b.Local); c != 0 {
			return c
		}
		return a.Remote.Compare(b.Remote)
	})
	return out
}
