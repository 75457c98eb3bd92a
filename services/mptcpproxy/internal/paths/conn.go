package paths

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/internal/mptcpnl"
)

// How often and how long. All are policy; the reasons stand beside them.
const (
	busyTick = 25 * time.Millisecond  // while connections are busy or joins under way
	idleTick = 250 * time.Millisecond // else
	// A join that was not answered: the SYN is lost or the path is black. The
	// kernel itself would send the next one after 1 s.
	joinPatience = 400 * time.Millisecond
	// Pause between failed joins of one connection on one path.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	// A path that is stripped or refused is tried that rarely.
	stripBackoff = 60 * time.Second
	// Joins at once on a path that has not shown to work.
	scouts = 2
	// Pause between scouts on a dead path.
	scoutPause = time.Second
	// No acknowledgement for data in flight: see overdue.
	ackPatience = 120 * time.Millisecond
	maxSlack    = time.Second
	// What TCP saw that recently outweighs a silent probe.
	tcpFresh = 60 * time.Millisecond
	// Joins that fail in a row on a path that works until it is called stripped.
	stripAfter = 4
	pollAll    = time.Second // figures of idle connections
	// A subflow without progress on a path that works is replaced, see stuck.
	stuckAfter = time.Second
	// A connection that cannot join on a path for its family of addresses is
	// looked at again that rarely: addresses may come.
	misfitPause = 5 * time.Second
)

// States of tcp_info (include/net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpClose       = 7
	tcpCloseWait   = 8
)

type subKey struct{ local, remote netip.AddrPort }

// sub is one subflow.
type sub struct {
	subKey
	loc, rem  uint8 // address identifiers
	idKnown   bool
	first     bool
	joined    bool // reported as established
	backup    bool
	path      *path // nil: from an address of no path
	state     uint8
	since     time.Time
	acked     uint64
	recvd     uint64
	sent      uint64
	retrans   uint64
	delivered uint32
	unacked   bool      // data is in flight
	progress  time.Time // last acknowledgement of new data, or nothing was in flight
	lastLife  time.Time // last proof that both directions work
	srtt      time.Duration
	rttvar    time.Duration
	seen      bool
}

func (s *sub) live() bool { return s.state == tcpEstablished || s.state == tcpCloseWait }

// stuck tells whether a subflow got nothing through for so long that TCP's own
// timer may be backed off far into the future: a new one is sooner at work.
func (s *sub) stuck(now time.Time) bool {
	return s.live() && s.unacked && now.Sub(s.progress) > stuckAfter+4*(s.srtt+4*s.rttvar)
}

// slot is what is remembered of one connection on one path.
type slot struct {
	tries   int
	next    time.Time // no join before
	backup  bool      // what the last join asked for
	pending time.Time // join under way since; zero = none
}

// conn is one MPTCP connection.
type conn struct {
	token       uint32
	fd          int // -1: not registered
	peer        string
	near        bool
	established bool
	four        bool // the socket is one of AF_INET
	subs        map[subKey]*sub
	slots       map[*path]*slot
	ids         map[netip.Addr]uint8 // identifiers of our addresses in use
	nextID      uint8
	busy        bool
	writeSeq    uint64
	polled      time.Time
	dirty       bool // to be reconciled
	due         time.Time
}

func (m *Manager) newConn(token uint32) *conn {
	c := &conn{token: token, fd: -1, subs: map[subKey]*sub{}, slots: map[*path]*slot{}, ids: map[netip.Addr]uint8{}}
	m.conns[token] = c
	return c
}

// Register hands a connection over to the manager: a trunk or the MPTCP
// socket of a raw carrier connection, dialled (near) or accepted. The manager
// only reads socket options of fd; it must be unregistered before it is closed.
// A dialled connection may be joined even before, from the moment that the
// kernel allows it, when it goes to an address of a peer. Plain TCP is not
// managed, but counted against the path it uses: MPTCP was stripped there.
func (m *Manager) Register(fd int, peer string, near bool) {
	info, err := mptcpnl.GetInfo(fd)
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, mptcpnl.ErrFallback) {
		m.fallback(fd)
		return
	}
	if err != nil {
		m.log.Warn("connection is not managed", "peer", peer, "error", err)
		return
	}
	c := m.conns[info.Token]
	if c == nil {
		c = m.newConn(info.Token)
	}
	c.fd, c.peer, c.near = fd, peer, near
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil {
		c.four = domain == unix.AF_INET
	}
	c.established = true // if not, the kernel says so when we try
	c.dirty = true
	m.fds[fd] = c
	m.refresh(c, time.Now())
	m.kick()
}

// Unregister forgets the connection.
func (m *Manager) Unregister(fd int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.fds[fd]; c != nil {
		m.refresh(c, time.Now()) // its last figures
		delete(m.fds, fd)
		delete(m.conns, c.token)
	}
}

// fallback notes a connection that should have been MPTCP.
func (m *Manager) fallback(fd int) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return
	}
	var a netip.Addr
	switch v := sa.(type) {
	case *unix.SockaddrInet4:
		a = netip.AddrFrom4(v.Addr)
	case *unix.SockaddrInet6:
		a = netip.AddrFrom16(v.Addr).Unmap()
	}
	if p := m.owner[a]; p != nil {
		m.strip(p)
		m.kick()
	}
}

// strip notes that MPTCP did not get through although packets do.
func (m *Manager) strip(p *path) {
	if p.strips++; p.strips >= 2 {
		p.stripped = true
	}
}

// SetAlive tells what datagram probes see: whether answers from peer come back
// over path, and their round-trip time. A path whose probes were never
// answered since it came up is not called dead for that: something may block
// UDP alone.
func (m *Manager) SetAlive(peer, pathName string, alive bool, rtt time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var p *path
	for _, q := range m.paths {
		if q.w.Name == pathName {
			p = q
		}
	}
	if p == nil {
		return
	}
	l := m.leg(peer, p)
	now := time.Now()
	l.told = alive
	if alive {
		l.rtt = rtt
		if rtt > 0 {
			p.rtt = rtt
		}
		l.doubt = false
		if !l.heard || l.dead {
			l.heard = true
			m.revive(l, now)
		}
		return
	}
	if l.heard && !l.dead && p.w.Probe {
		l.doubt = true
		m.kick()
	}
}

// revive takes a leg into use (again).
func (m *Manager) revive(l *leg, now time.Time) {
	if l.dead {
		m.log.Info("path answers again", "path", l.p.w.Name, "peer", l.peer, "after", now.Sub(l.died).Round(time.Millisecond))
	}
	l.dead, l.deadBy, l.doubt = false, "", false
	for _, c := range m.conns {
		if c.peer != l.peer {
			continue
		}
		if s := c.slots[l.p]; s != nil {
			s.next = now
			s.tries = min(s.tries, 1)
		}
		c.dirty = true
	}
	m.judge(l.p, now)
	m.kick()
}

// kill takes a leg out of use: its subflows are destroyed, so that what they
// had in flight is sent on the others.
func (m *Manager) kill(l *leg, why string, now time.Time) {
	l.dead, l.deadBy, l.proven, l.doubt, l.died = true, why, false, false, now
	l.scout = now.Add(scoutPause)
	m.log.Info("path is dead", "path", l.p.w.Name, "peer", l.peer, "reason", why)
	for _, c := range m.conns {
		if c.peer == l.peer {
			c.dirty = true
		}
	}
	m.judge(l.p, now)
}

// event takes one report of the kernel in. The lock is held.
func (m *Manager) event(ev mptcpnl.Event, now time.Time) {
	if ev.Kind == mptcpnl.EventLost {
		for _, c := range m.fds {
			m.refresh(c, now)
			for _, s := range c.subs {
				if s.live() && !s.joined {
					s.joined = true
					m.joined(c, s, now)
				}
			}
			c.dirty = true
		}
		return
	}
	c := m.conns[ev.Token]
	if c == nil {
		if ev.Kind != mptcpnl.EventCreated {
			return
		}
		c = m.newConn(ev.Token)
		c.near, c.four = !ev.ServerSide, ev.Local.Addr().Is4()
		if c.near {
			for _, peer := range m.o.Peers {
				for _, a := range peer.Addrs {
					if netip.AddrPortFrom(a.Unmap(), peer.Port) == unmap(ev.Remote) {
						c.peer = peer.Name
					}
				}
			}
		}
	}
	switch ev.Kind {
	case mptcpnl.EventCreated:
		s := m.addSub(c, subKey{ev.Local, ev.Remote}, now)
		s.first, s.idKnown, s.joined, s.state = true, true, true, tcpEstablished
		if s.path != nil {
			s.path.strips = 0
		}
	case mptcpnl.EventEstablished:
		c.established, c.dirty = true, true
		for _, s := range c.slots {
			s.next = now
		}
	case mptcpnl.EventClosed:
		if c.fd < 0 {
			delete(m.conns, c.token)
		}
	case mptcpnl.EventRemoved:
		// The other end gave an address up: it may know more than we do, so
		// the way is proven anew by few joins.
		for _, s := range c.subs {
			if s.rem == ev.RemID && s.idKnown && s.path != nil {
				if l := m.legs[legKey{c.peer, s.path.w.Name}]; l != nil {
					l.proven = false
				}
			}
		}
	case mptcpnl.EventSubEstablished:
		s := m.addSub(c, subKey{ev.Local, ev.Remote}, now)
		s.loc, s.rem, s.idKnown, s.state = ev.LocID, ev.RemID, true, tcpEstablished
		if sl := c.slots[s.path]; sl != nil && c.near && !s.joined {
			s.backup = sl.backup
		}
		if !s.joined {
			s.joined = true
			m.joined(c, s, now)
		}
		c.dirty = true
	case mptcpnl.EventSubClosed:
		if s := c.find(ev); s != nil {
			m.gone(c, s, now)
			if s.first {
				_ = m.pm.Abort(s.local, s.remote) // see destroy
			}
		} else if p := m.owner[ev.Local.Addr().Unmap()]; p != nil && c.slots[p] != nil && !c.slots[p].pending.IsZero() {
			m.joinFailed(c, p, now) // refused before we saw it
		}
		c.dirty = true
	}
}

// find is the subflow that an event is about. That of a refused join has no
// remote port any more.
func (c *conn) find(ev mptcpnl.Event) *sub {
	if s := c.subs[subKey{ev.Local, ev.Remote}]; s != nil || ev.Remote.Port() != 0 {
		return s
	}
	for k, s := range c.subs {
		if k.local == ev.Local && k.remote.Addr() == ev.Remote.Addr() {
			return s
		}
	}
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (m *Manager) addSub(c *conn, k subKey, now time.Time) *sub {
	s := c.subs[k]
	if s == nil {
		s = &sub{subKey: k, path: m.owner[k.local.Addr().Unmap()], since: now, progress: now, lastLife: now}
		c.subs[k] = s
	}
	return s
}

// joined notes a subflow that has come to be: both directions of the path work.
func (m *Manager) joined(c *conn, s *sub, now time.Time) {
	p := s.path
	if p == nil {
		return
	}
	p.joins++
	p.strips, p.stripped = 0, false
	if sl := c.slots[p]; sl != nil {
		sl.pending = time.Time{}
	}
	l := m.leg(c.peer, p)
	l.fails = 0
	if l.dead {
		// A false alarm, or a short one: be slower to cry next time.
		if now.Sub(l.died) < 2*time.Second && l.deadBy == byTCP {
			l.slack = min(maxSlack, 2*l.slack+50*time.Millisecond)
		}
		m.revive(l, now)
	}
	if !l.proven {
		l.proven = true
		for _, o := range m.conns {
			o.dirty = o.dirty || o.peer == c.peer
		}
	}
}

// gone notes a subflow that has ended, by whatever means.
func (m *Manager) gone(c *conn, s *sub, now time.Time) {
	delete(c.subs, s.subKey)
	p := s.path
	if p == nil {
		return
	}
	if !s.joined && !s.first {
		m.joinFailed(c, p, now)
		return
	}
	p.lost++
	sl := c.slot(p)
	sl.pending = time.Time{}
	// One that lived is replaced at once, one that did not after a pause.
	if now.Sub(s.since) > 2*time.Second {
		sl.tries = 0
		sl.next = now
	} else {
		sl.tries++
		sl.next = now.Add(backoff(sl.tries - 1))
	}
}

// joinFailed notes a join that was refused or not answered.
func (m *Manager) joinFailed(c *conn, p *path, now time.Time) {
	p.failed++
	sl := c.slot(p)
	sl.pending = time.Time{}
	sl.tries++
	pause := backoff(sl.tries)
	l := m.leg(c.peer, p)
	l.fails++
	// Packets get through, joins do not.
	if l.fails >= stripAfter && !l.proven && !l.dead && (l.heard || p.strips > 0) && !p.stripped {
		p.stripped = true
	}
	if p.stripped {
		pause = stripBackoff
	}
	if !l.proven && !l.heard && l.fails%3 == 0 && len(l.remotes) > 1 {
		for i, a := range l.remotes {
			if a == l.remote {
				l.remote, l.rotated = l.remotes[(i+1)%len(l.remotes)], true
				break
			}
		}
	}
	sl.next = now.Add(pause)
	if !l.proven {
		l.scout = now.Add(min(pause, scoutPause))
	}
}

func backoff(tries int) time.Duration {
	if tries <= 0 {
		return 0
	}
	return min(maxBackoff, minBackoff<<min(tries-1, 10))
}

func (c *conn) slot(p *path) *slot {
	s := c.slots[p]
	if s == nil {
		s = &slot{}
		c.slots[p] = s
	}
	return s
}

// refresh reads the connection's state from the kernel.
func (m *Manager) refresh(c *conn, now time.Time) {
	if c.fd < 0 {
		return
	}
	c.polled = now
	info, subs, err := mptcpnl.GetFullInfo(c.fd, m.scratch)
	m.scratch = subs
	if err != nil {
		return // its end is reported to whoever owns it
	}
	c.busy = info.Unacked() > 0 || info.WriteSeq != c.writeSeq
	c.writeSeq = info.WriteSeq
	for _, s := range c.subs {
		s.seen = false
	}
	for i := range subs {
		f := &subs[i]
		k := subKey{f.Local, f.Remote}
		s := c.subs[k]
		if s == nil {
			s = m.addSub(c, k, now)
			s.first = f.ID == 1
			s.idKnown = s.first
			s.joined = s.first // others: when the event comes
		}
		s.seen, s.state = true, f.TCP.State
		m.measure(c, s, &f.TCP, now)
	}
	for _, s := range c.subs {
		// What a fresh event reported is in the list too, so what is not there
		// has ended.
		if !s.seen {
			m.gone(c, s, now)
			c.dirty = true
		}
	}
}

// measure takes the figures of one subflow in.
func (m *Manager) measure(c *conn, s *sub, t *unix.TCPInfo, now time.Time) {
	s.srtt = time.Duration(t.Rtt) * time.Microsecond
	s.rttvar = time.Duration(t.Rttvar) * time.Microsecond
	// Delivered also counts what was acknowledged selectively: a hole that
	// waits for its timer is no sign of a dead path.
	moved := t.Bytes_acked != s.acked || t.Delivered != s.delivered
	s.unacked = t.Unacked != 0
	c.busy = c.busy || moved || t.Bytes_received != s.recvd
	// Data from the other end proves one direction only; when ours is in
	// flight, only its acknowledgement counts.
	if moved || !s.unacked && t.Bytes_received != s.recvd {
		s.lastLife = now
		if p := s.path; p != nil && s.progress.Before(now) {
			if l := m.legs[legKey{c.peer, p.w.Name}]; l != nil && l.dead && now.Sub(l.died) > tcpFresh && now.Sub(m.lastTick) <= 3*busyTick {
				m.revive(l, now)
			}
		}
	}
	if t.Unacked == 0 || moved || now.Sub(m.lastTick) > 3*busyTick {
		// The last: we have slept ourselves, for want of CPU; so may have all.
		s.progress = now
	}
	if p := s.path; p != nil {
		p.sent += grown(t.Bytes_sent, s.sent)
		p.received += grown(t.Bytes_received, s.recvd)
		p.retrans += grown(t.Bytes_retrans, s.retrans)
		if min := time.Duration(t.Min_rtt) * time.Microsecond; t.Min_rtt != 0 && t.Min_rtt != ^uint32(0) && (p.minRTT == 0 || min < p.minRTT) {
			p.minRTT = min
		}
		if l := m.legs[legKey{c.peer, p.w.Name}]; moved && s.srtt > 0 && (l == nil || !l.heard) {
			p.rtt = s.srtt
		}
	}
	s.delivered = t.Delivered
	s.acked, s.recvd, s.sent, s.retrans = t.Bytes_acked, t.Bytes_received, t.Bytes_sent, t.Bytes_retrans
}

func grown(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

const byTCP = "no acknowledgements"
const byProbe = "no answer to probes"

// overdue tells whether data in flight went without any acknowledgement for
// longer than the path's own round-trip times explain.
func (s *sub) overdue(l *leg, now time.Time) bool {
	if !s.live() {
		return false
	}
	patience := s.srtt + 4*s.rttvar + ackPatience + l.slack
	return s.unacked && now.Sub(s.progress) > patience
}

// round does all that is due and returns when to do it again. The lock is held.
func (m *Manager) round(now time.Time) time.Duration {
	if m.look {
		m.look = false
		if err := m.observe(now); err != nil {
			m.log.Warn("paths are not complete", "error", err)
		}
		for _, c := range m.conns {
			c.dirty = true
		}
	}
	hot := m.poll(now)
	for _, l := range m.legs {
		if l.doubt {
			hot = true
			if m.contradicted(l, now) {
				continue
			}
			m.kill(l, byProbe, now)
		}
	}
	for _, l := range m.legs {
		l.pending = 0
	}
	for _, c := range m.conns {
		for p, s := range c.slots {
			if !s.pending.IsZero() {
				m.leg(c.peer, p).pending++
				hot = true
				if now.Sub(s.pending) > m.patience(c, p) {
					m.abandon(c, p, now)
				}
			}
		}
	}
	next := now.Add(idleTick)
	if hot {
		next = now.Add(busyTick)
	}
	for _, c := range m.conns {
		if c.dirty || !c.due.IsZero() && !c.due.After(now) {
			c.dirty = false
			c.due = m.reconcile(c, now)
		}
		if !c.due.IsZero() && c.due.Before(next) {
			next = c.due
		}
	}
	m.lastTick = now
	m.keep(false, now)
	return max(time.Millisecond, next.Sub(now))
}

// alive tells whether any subflow on the leg showed life after t: then it is not
// the path that is silent.
func (m *Manager) alive(l *leg, t time.Time) bool {
	for _, c := range m.conns {
		if c.peer != l.peer {
			continue
		}
		for _, s := range c.subs {
			if s.path == l.p && s.live() && s.lastLife.After(t.Add(busyTick)) {
				return true
			}
		}
	}
	return false
}

// contradicted tells whether TCP saw life on the leg just now.
func (m *Manager) contradicted(l *leg, now time.Time) bool {
	return m.alive(l, now.Add(-tcpFresh-busyTick))
}

// poll reads the connections that are busy, and all of them now and then. It
// tells whether any is busy.
func (m *Manager) poll(now time.Time) bool {
	all := now.Sub(m.lastPoll) >= pollAll
	if all {
		m.lastPoll = now
		m.devices(now)
	}
	busy := false
	for _, c := range m.fds {
		if !all && now.Sub(c.polled) < busyTick-time.Millisecond {
			busy = busy || c.busy
			continue
		}
		if !all && !c.busy {
			// Has it become busy? That is far cheaper to ask.
			if now.Sub(c.polled) < idleTick-time.Millisecond {
				continue
			}
			info, err := mptcpnl.GetInfo(c.fd)
			c.polled = now
			if err != nil || info.WriteSeq == c.writeSeq && info.Unacked() == 0 {
				continue
			}
		}
		m.refresh(c, now)
		busy = busy || c.busy
		for _, s := range c.subs {
			if s.path == nil {
				continue
			}
			l := m.leg(c.peer, s.path)
			if !l.dead && !l.heard && s.path.w.Probe && s.overdue(l, now) && !m.alive(l, s.progress) {
				m.kill(l, byTCP, now)
			}
		}
	}
	return busy
}

// devices reads the counters of the paths' devices, and quotas.
func (m *Manager) devices(now time.Time) {
	for _, p := range m.paths {
		if p.ifindex == 0 {
			continue
		}
		l, err := m.nl.LinkByIndex(p.ifindex)
		if err != nil {
			continue
		}
		p.account(l.Attrs().Statistics)
		before := p.state
		m.judge(p, now)
		if p.state != before {
			for _, c := range m.conns {
				c.dirty = true
			}
		}
	}
}

// patience is how long a join may take.
func (m *Manager) patience(c *conn, p *path) time.Duration {
	l := m.leg(c.peer, p)
	return joinPatience + 4*max(l.rtt, p.rtt)
}

// abandon gives a join up that was not answered.
func (m *Manager) abandon(c *conn, p *path, now time.Time) {
	m.refresh(c, now)
	for _, s := range c.subs {
		if s.path == p && s.state == tcpSynSent {
			_ = m.pm.SubflowDestroy(c.token, s.local, s.remote)
			delete(c.subs, s.subKey)
		}
	}
	if s := c.slots[p]; s != nil && !s.pending.IsZero() {
		m.joinFailed(c, p, now)
	}
}

// wanted tells whether a connection should have a subflow on the path.
func (m *Manager) wanted(c *conn, p *path) bool {
	if !m.usable(c, p) {
		return false
	}
	if p.w.Mode != Handover {
		return true
	}
	for _, q := range m.paths {
		if q.w.Mode != Handover && m.usable(c, q) {
			if l := m.legs[legKey{c.peer, q.w.Name}]; !c.near || l != nil && l.remote.IsValid() {
				return false
			}
		}
	}
	return true
}

// reconcile makes the subflows of one connection what they should be and
// returns when to look again (zero: when something happens).
func (m *Manager) reconcile(c *conn, now time.Time) (due time.Time) {
	soon := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	good := 0 // live subflows that are to stay
	var bad []*sub
	have := map[*path]*sub{}
	for _, s := range c.subs {
		p := s.path
		if p == nil {
			if s.live() {
				good++
			}
			continue
		}
		a := s.local.Addr().Unmap()
		current := a == p.local4 || a == p.local6
		if !current || !m.wanted(c, p) || c.fd >= 0 && s.stuck(now) {
			bad = append(bad, s)
			continue
		}
		switch o := have[p]; {
		case !s.live():
			if o == nil {
				have[p] = s
			}
		case o == nil || !o.live():
			good++
			have[p] = s
		case c.near:
			// Two on one path: a scout has found the path alive while the old
			// one waits for its timer.
			if s.since.After(o.since) {
				have[p], s = s, o
			}
			bad = append(bad, s)
		}
	}
	// The last subflow is never destroyed: with nothing to re-inject into,
	// waiting for it is the best that can be done.
	if good > 0 {
		for _, s := range bad {
			m.destroy(c, s, now)
		}
	}
	for _, s := range c.subs {
		p := s.path
		if p == nil || !s.live() {
			continue
		}
		if want := p.w.Mode == Backup; want != s.backup && s.joined {
			var flags uint32
			if want {
				flags = mptcpnl.FlagBackup
			}
			if err := m.pm.SetSubflowFlags(c.token, s.local, s.remote, flags); err == nil {
				s.backup = want
			}
		}
	}
	if !c.near || !c.established {
		return due
	}
	for _, p := range m.paths {
		if have[p] != nil {
			continue
		}
		l := m.legs[legKey{c.peer, p.w.Name}]
		if l == nil || !l.remote.IsValid() || p.state == Down || p.state == Spent || p.w.Mode == Off {
			continue
		}
		sl := c.slot(p)
		if !sl.pending.IsZero() {
			continue
		}
		if sl.next.After(now) {
			soon(sl.next)
			continue
		}
		if !m.wanted(c, p) && !l.dead {
			continue // handover
		}
		if !l.proven && !(l.heard && !l.dead) {
			// Only a few find out whether the path works.
			if l.scout.After(now) {
				soon(l.scout)
				continue
			}
			if l.pending >= scouts {
				soon(now.Add(busyTick))
				continue
			}
			if l.dead {
				l.scout = now.Add(scoutPause)
			}
		}
		if t := m.join(c, p, l, now); !t.IsZero() {
			soon(t)
		}
	}
	return due
}

// join starts a subflow.
func (m *Manager) join(c *conn, p *path, l *leg, now time.Time) (again time.Time) {
	sl := c.slot(p)
	remote := c.fitting(p, l)
	if !remote.IsValid() {
		sl.next = now.Add(misfitPause)
		return sl.next
	}
	local := p.local(remote)
	a := mptcpnl.Addr{Addr: local, IfIndex: p.ifindex}
	if p.w.Mode == Backup {
		a.Flags = mptcpnl.FlagBackup
	}
	known := false
	if a.ID, known = c.ids[local]; !known {
		a.ID = c.newID()
	}
	err := m.pm.SubflowCreate(c.token, a, netip.AddrPortFrom(remote, l.port))
	if errors.Is(err, unix.EINVAL) && !ended(err) {
		// The kernel still has, or no longer has, this address by another identifier.
		a.ID = c.newID()
		err = m.pm.SubflowCreate(c.token, a, netip.AddrPortFrom(remote, l.port))
	}
	switch {
	case err == nil:
		c.ids[local] = a.ID
		sl.pending, sl.backup = now, a.Flags != 0
		l.pending++
		return again
	case errors.Is(err, unix.ENOTCONN):
		// Not fully established: the event will come; look again if it is lost.
		c.established = c.fd >= 0
		sl.next = now.Add(busyTick)
		return sl.next
	case errors.Is(err, unix.ESRCH), ended(err):
		return again // the connection has ended
	}
	m.log.Debug("join", "path", p.w.Name, "peer", c.peer, "error", err)
	m.joinFailed(c, p, now)
	return sl.next
}

// ended tells by the kernel's words that a connection has gone: the number of
// that error is EINVAL, as that of many others (net/mptcp/pm_userspace.c).
func ended(err error) bool { return err != nil && strings.Contains(err.Error(), "invalid token") }

// fitting is the peer's address on this leg that a connection can join. One of
// IPv4 takes no subflow of IPv6 (net/mptcp/pm_userspace.c: families mismatch).
func (c *conn) fitting(p *path, l *leg) netip.Addr {
	if !c.four || l.remote.Is4() {
		return l.remote
	}
	for _, a := range l.remotes {
		if a.Is4() && p.local4.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// newID chooses an identifier for an address: never 0, which is the first
// subflow's, and not one used of late, so that a late RM_ADDR hits nobody.
func (c *conn) newID() uint8 {
	for {
		c.nextID++
		// Accepted subflows get theirs from the kernel, from 1 upwards.
		if c.nextID == 0 || c.nextID == 255 {
			c.nextID = 1
		}
		used := false
		for _, id := range c.ids {
			used = used || id == c.nextID
		}
		if !used {
			return c.nextID
		}
	}
}

// destroy closes a subflow and tells the other end by the others, since the
// subflow itself may not get anything through any more.
func (m *Manager) destroy(c *conn, s *sub, now time.Time) {
	if s.live() {
		m.refreshSub(c, s, now)
		if _, still := c.subs[s.subKey]; !still {
			return
		}
		if s.idKnown {
			if m.pm.Remove(c.token, s.loc) == nil {
				delete(c.ids, s.local.Addr().Unmap())
			}
		}
	}
	err := m.pm.SubflowDestroy(c.token, s.local, s.remote)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		m.log.Debug("destroy subflow", "error", err)
	}
	if s.first {
		// Shut down, it would go on with its queue and, when the path is back,
		// fill it with old data. Kernels without the means let it.
		_ = m.pm.Abort(s.local, s.remote)
	}
	delete(c.subs, s.subKey)
	if s.path != nil {
		sl := c.slot(s.path)
		sl.pending = time.Time{}
		if s.joined {
			s.path.lost++
		}
	}
}

// refreshSub takes the last figures of a subflow that is about to end.
func (m *Manager) refreshSub(c *conn, _ *sub, now time.Time) {
	if now.Sub(c.polled) > busyTick {
		m.refresh(c, now)
	}
}
