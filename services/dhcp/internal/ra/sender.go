package ra

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
)

// Times of RFC 4861, 10.
const (
	initialInterval = 16 * time.Second
	initialCount    = 3
	minDelay        = 3 * time.Second // between two advertisements to all
	// goneFor is how long a prefix is said to be no more: hosts keep it for
	// up to two hours (RFC 4862, 5.5.3 e).
	goneFor = 2 * time.Hour
	// solicitsEvery and solicitsBurst bound answers to single hosts.
	solicitsEvery = 20 * time.Millisecond
	solicitsBurst = 50
)

// The groups ff02::1 and ff02::2.
var (
	allNodes   = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 1})
	allRouters = &net.IPAddr{IP: net.IP{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}}
)

// Sender speaks on all devices by one raw socket.
type Sender struct {
	log  *slog.Logger
	conn *ipv6.PacketConn
	raw  net.PacketConn
	wg   sync.WaitGroup

	mu     sync.Mutex
	links  map[int]*link
	closed bool
}

// link is a device at work, guarded by Sender.mu.
type link struct {
	device string
	index  int
	set    Settings
	gone   map[netip.Prefix]time.Time // until when it is said
	sent   int                        // since the last change
	last   time.Time                  // an advertisement to all
	timer  *time.Timer
	tokens int
	filled time.Time
}

// Open makes the socket. It wants CAP_NET_RAW.
func Open(log *slog.Logger) (*Sender, error) {
	raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("router advertisements: %w", err)
	}
	c := ipv6.NewPacketConn(raw)
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterSolicitation)
	for _, err := range []error{
		c.SetICMPFilter(&f),
		c.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		c.SetMulticastLoopback(false),
	} {
		if err != nil {
			raw.Close()
			return nil, fmt.Errorf("router advertisements: %w", err)
		}
	}
	s := &Sender{log: log, conn: c, raw: raw, links: map[int]*link{}}
	s.wg.Go(s.receive)
	return s, nil
}

// Apply announces exactly the given on the given devices: new ones start, old
// ones say farewell, changed ones are announced at once, others go on.
func (s *Sender) Apply(devices map[int]string, sets map[int]Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for index, l := range s.links {
		if _, ok := sets[index]; !ok {
			s.end(l)
		}
	}
	for index, set := range sets {
		l := s.links[index]
		if l == nil {
			if err := s.conn.JoinGroup(&net.Interface{Index: index}, allRouters); err != nil {
				s.log.Warn("solicitations will not be heard", "device", devices[index], "error", err)
			}
			l = &link{device: devices[index], index: index, set: set, gone: map[netip.Prefix]time.Time{}}
			s.links[index] = l
			s.schedule(l, 0)
			continue
		}
		if l.set.Equal(&set) {
			l.set = set // with the newest times
			continue
		}
		now := time.Now()
		for _, q := range l.set.Prefixes {
			p := OnLink(q.Prefix)
			if len(l.gone) < maxPrefixes {
				l.gone[p] = now.Add(goneFor)
			}
		}
		for _, q := range set.Prefixes {
			delete(l.gone, OnLink(q.Prefix))
		}
		l.set, l.sent = set, 0
		s.schedule(l, 0)
	}
}

// schedule lets the next advertisement to all go out after d, but not too soon
// after the last one.
func (s *Sender) schedule(l *link, d time.Duration) {
	if wait := time.Until(l.last.Add(minDelay)); !l.last.IsZero() && d < wait {
		d = wait
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed || s.links[l.index] != l {
			return
		}
		s.send(l, allNodes, false)
		l.last = time.Now()
		l.sent++
		least, most := time.Duration(l.set.Pool.RAMin)*time.Second, time.Duration(l.set.Pool.RAMax)*time.Second
		next := least + rand.N(most-least+1)
		if l.sent < initialCount {
			next = min(next, initialInterval)
		}
		s.schedule(l, next)
	})
}

// end says farewell on a device.
func (s *Sender) end(l *link) {
	l.timer.Stop()
	s.send(l, allNodes, true)
	delete(s.links, l.index)
	_ = s.conn.LeaveGroup(&net.Interface{Index: l.index}, allRouters) // the device may have gone
}

func (s *Sender) send(l *link, to netip.Addr, final bool) {
	now := time.Now()
	var gone []netip.Prefix
	for p, until := range l.gone {
		if until.After(now) {
			gone = append(gone, p)
		} else {
			delete(l.gone, p)
		}
	}
	slices.SortFunc(gone, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	cm := &ipv6.ControlMessage{HopLimit: 255, IfIndex: l.index, Src: l.set.Source.AsSlice()}
	dst := &net.IPAddr{IP: to.WithZone("").AsSlice(), Zone: l.device}
	if _, err := s.conn.WriteTo(l.set.Message(now, gone, final), cm, dst); err != nil {
		s.log.Debug("an advertisement was not sent", "device", l.device, "to", to, "error", err)
	}
}

// Close says farewell on all devices and ends the sender.
func (s *Sender) Close() {
	s.mu.Lock()
	for _, l := range s.links {
		s.end(l)
	}
	s.closed = true
	s.mu.Unlock()
	s.raw.Close()
	s.wg.Wait()
}

func (s *Sender) receive() {
	buf := make([]byte, 1500)
	for {
		n, cm, src, err := s.conn.ReadFrom(buf)
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if closed {
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		ip, ok := src.(*net.IPAddr)
		if cm == nil || cm.HopLimit != 255 || !ok {
			continue // from beyond the link (RFC 4861, 6.1.1)
		}
		from, _ := netip.AddrFromSlice(ip.IP)
		if _, ok := ParseSolicit(buf[:n], from); ok {
			s.solicited(cm.IfIndex, from)
		}
	}
}

// solicited answers a host: by itself if it has an address, else with the next
// advertisement to all.
func (s *Sender) solicited(index int, from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.links[index]
	if l == nil || s.closed {
		return
	}
	now := time.Now()
	if n := int(now.Sub(l.filled) / solicitsEvery); n > 0 {
		l.tokens, l.filled = min(l.tokens+n, solicitsBurst), now
	}
	if from.IsLinkLocalUnicast() && l.tokens > 0 {
		l.tokens--
		s.send(l, from, false)
		return
	}
	if l.sent > 0 {
		s.schedule(l, rand.N(500*time.Millisecond))
	}
}
