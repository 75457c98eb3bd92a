package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// lease6 is what a DHCPv6 server gave.
type lease6 struct {
	addrs    []timedPrefix // all /128
	prefixes []timedPrefix
	dns      []netip.Addr
	search   []string
	ntp      []netip.Addr
	server   []byte // its DUID

	// When to ask this server, when any, and when all is over; zero: never.
	t1, t2, end time.Time
	noBinding   bool // the server knows nothing of it
	refresh     time.Duration
}

// Limits to what one server can make us keep.
const (
	maxGiven = 8
	// minRefresh and defRefresh: RFC 8415, 7.6.
	minRefresh = 10 * time.Minute
	defRefresh = 24 * time.Hour
)

// newLease6 checks and takes over what a server sent in a Reply or Advertise.
// Parts that make no sense are left out.
func newLease6(m *dhcpv6.Message, iaid [4]byte, now time.Time) (*lease6, error) {
	l := &lease6{}
	if m.Options.ServerID() == nil {
		return nil, errors.New("the server does not say who it is")
	}
	l.server = m.Options.ServerID().ToBytes()
	if s := m.Options.Status(); s != nil && s.StatusCode != iana.StatusSuccess {
		return nil, fmt.Errorf("the server says %s", s.StatusCode)
	}
	t1, t2 := time.Duration(1<<63-1), time.Duration(1<<63-1)
	times := func(a, b time.Duration, s *dhcpv6.OptStatusCode) bool {
		if s != nil && s.StatusCode != iana.StatusSuccess {
			l.noBinding = l.noBinding || s.StatusCode == iana.StatusNoBinding
			return false
		}
		if a > 0 && b > 0 && a > b {
			return false // RFC 8415, 21.4: to be ignored as a whole
		}
		if a > 0 {
			t1 = min(t1, a)
		}
		if b > 0 {
			t2 = min(t2, b)
		}
		return true
	}
	for _, ia := range m.Options.IANA() {
		if ia.IaId != iaid || !times(ia.T1, ia.T2, ia.Options.Status()) {
			continue
		}
		for _, a := range ia.Options.Addresses() {
			ip, ok := netip.AddrFromSlice(a.IPv6Addr.To16())
			if !ok || !usable6(ip) || ip.IsLinkLocalUnicast() || a.PreferredLifetime > a.ValidLifetime || failed(a.Options.Status()) || len(l.addrs) == maxGiven {
				continue
			}
			l.addrs = append(l.addrs, timedPrefix{netip.PrefixFrom(ip, 128), given(now, a.PreferredLifetime, a.ValidLifetime)})
		}
	}
	for _, ia := range m.Options.IAPD() {
		if ia.IaId != iaid || !times(ia.T1, ia.T2, ia.Options.Status()) {
			continue
		}
		for _, p := range ia.Options.Prefixes() {
			n, ok := toPrefix(p.Prefix)
			if !ok || !usable6(n.Addr()) || n.Addr().IsLinkLocalUnicast() || n.Bits() < 16 || n.Bits() > 64 || p.PreferredLifetime > p.ValidLifetime ||
				failed(p.Options.Status()) || len(l.prefixes) == maxGiven {
				continue
			}
			l.prefixes = append(l.prefixes, timedPrefix{n.Masked(), given(now, p.PreferredLifetime, p.ValidLifetime)})
		}
	}
	for _, ip := range m.Options.DNS() {
		if a, ok := netip.AddrFromSlice(ip.To16()); ok && usable6(a) && len(l.dns) < maxGiven {
			l.dns = append(l.dns, a)
		}
	}
	for _, ip := range append(m.Options.NTPServers(), m.Options.SNTP()...) {
		if a, ok := netip.AddrFromSlice(ip.To16()); ok && usable6(a) && len(l.ntp) < maxGiven && !slices.Contains(l.ntp, a) {
			l.ntp = append(l.ntp, a)
		}
	}
	if s := m.Options.DomainSearchList(); s != nil {
		for _, name := range s.Labels {
			if validDomain(name) && len(l.search) < maxGiven {
				l.search = append(l.search, name)
			}
		}
	}
	l.refresh = max(m.Options.InformationRefreshTime(defRefresh), minRefresh)
	l.times(now, t1, t2)
	return l, nil
}

func failed(s *dhcpv6.OptStatusCode) bool {
	return s != nil && s.StatusCode != iana.StatusSuccess
}

func given(now time.Time, preferred, valid time.Duration) lifetime {
	return lifetime{until(now, preferred), until(now, valid)}
}

// times works out when to do what (RFC 8415, 18.2.4 and 21.4): where the server
// leaves it to us half and four fifths of the shortest preferred lifetime.
func (l *lease6) times(now time.Time, t1, t2 time.Duration) {
	shortest, longest := time.Duration(1<<63-1), time.Duration(0)
	for _, p := range l.all() {
		if over(p.Valid, now) {
			continue // taken back
		}
		if !p.Preferred.IsZero() {
			shortest = min(shortest, p.Preferred.Sub(now))
		}
		if p.Valid.IsZero() {
			longest = 1<<63 - 1
		} else {
			longest = max(longest, p.Valid.Sub(now))
		}
	}
	if longest < 1<<63-1 {
		l.end = now.Add(longest)
	}
	if t2 >= forever && shortest < 1<<63-1 {
		t2 = shortest / 5 * 4
	}
	if t1 >= forever && shortest < 1<<63-1 {
		t1 = shortest / 2
	}
	t1 = min(t1, t2)
	if t1 < forever {
		l.t1 = now.Add(max(t1, minLease)) // a server must not make us spin
	}
	if t2 < forever {
		l.t2 = now.Add(max(t2, minLease))
	}
}

func (l *lease6) all() []timedPrefix { return slices.Concat(l.addrs, l.prefixes) }

// empty tells whether the server gave nothing that is alive.
func (l *lease6) empty(now time.Time) bool {
	return !slices.ContainsFunc(l.all(), func(p timedPrefix) bool { return !over(p.Valid, now) })
}

// after is what is held after a renewal: what the server did not mention stays
// for the rest of its life (RFC 8415, 18.2.10.1).
func (l *lease6) after(next *lease6, now time.Time) *lease6 {
	keep := func(old, new []timedPrefix) []timedPrefix {
		for _, p := range old {
			if !slices.ContainsFunc(new, func(q timedPrefix) bool { return q.Prefix == p.Prefix }) && !over(p.Valid, now) {
				new = append(new, p)
			}
		}
		return slices.DeleteFunc(new, func(p timedPrefix) bool { return over(p.Valid, now) })
	}
	next.addrs, next.prefixes = keep(l.addrs, next.addrs), keep(l.prefixes, next.prefixes)
	if len(next.addrs)+len(next.prefixes) > 0 && next.t1.IsZero() && !l.t1.IsZero() {
		next.times(now, 1<<63-1, 1<<63-1)
	}
	return next
}

// transport6 carries messages between a client and the servers of its link.
type transport6 interface {
	send(b []byte) error
	packets() <-chan []byte
	close()
}

// client6 keeps what DHCPv6 servers give (RFC 8415, 18.2). Its whole life is in
// run.
type client6 struct {
	open func(context.Context) (transport6, error)
	mac  net.HardwareAddr
	duid []byte
	iaid [4]byte
	opts DHCPv6Options
	log  *slog.Logger
	// lease is called with what was got or renewed, and with nil when it is
	// lost.
	lease func(*lease6)
	// kick asks for a renewal now.
	kick chan struct{}
}

// iaidOf names an interface towards servers: the same after each start.
func iaidOf(name string) (id [4]byte) {
	h := fnv.New32a()
	h.Write([]byte(name))
	h.Sum(id[:0])
	return id
}

// The times of RFC 8415, 7.6. Solicits never wait longer than 120 s, as LEDE's
// client has it: the RFC's hour is long for somebody who waits for his uplink.
const (
	solDelay           = time.Second
	solCount           = 5 // then servers are asked for what they tell everybody
	solTimeout, solMax = time.Second, 120 * time.Second
	reqTimeout, reqMax = time.Second, 30 * time.Second
	reqCount           = 10
	renTimeout, renMax = 10 * time.Second, 600 * time.Second
	infTimeout, infMax = time.Second, 120 * time.Second
	releaseWait        = time.Second
	emptyWait          = 60 * time.Second // until servers that had nothing are asked again
)

// errServer means that the exchange must begin anew.
var errServer = errors.New("the server does not go on")

// retrans is how often a message is repeated (RFC 8415, 15).
type retrans struct {
	first, max time.Duration
	count      int
	until      time.Time // zero: no end
}

// exchange sends what build makes until accept takes an answer. It returns an
// error when the time or the count is over, or ctx ends.
func (c *client6) exchange(ctx context.Context, kind dhcpv6.MessageType, r retrans, options []dhcpv6.Option, accept func(m *dhcpv6.Message, first bool) bool, round func() bool) error {
	t, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	m := &dhcpv6.Message{MessageType: kind}
	for i := range m.TransactionID {
		m.TransactionID[i] = byte(rand.Uint32())
	}
	duid, err := dhcpv6.DUIDFromBytes(c.duid)
	if err != nil {
		return fmt.Errorf("DUID %x: %w", c.duid, err)
	}
	m.AddOption(dhcpv6.OptClientID(duid))
	for _, o := range options {
		m.AddOption(o)
	}
	start := time.Now()
	var wait time.Duration
	for n := 1; ; n++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A tenth up or down; the first Solicit only up.
		jitter := rand.Float64()*0.2 - 0.1
		if n == 1 && kind == dhcpv6.MessageTypeSolicit {
			jitter = rand.Float64() * 0.1
		}
		switch {
		case wait == 0:
			wait = r.first + time.Duration(jitter*float64(r.first))
		case 2*wait > r.max:
			wait = r.max + time.Duration(jitter*float64(r.max))
		default:
			wait = 2*wait + time.Duration(jitter*float64(wait))
		}
		if !r.until.IsZero() {
			left := time.Until(r.until)
			if left <= 0 {
				return fmt.Errorf("no answer to %s", kind)
			}
			wait = min(wait, left)
		}
		m.UpdateOption(dhcpv6.OptElapsedTime(min(time.Since(start), 655350*time.Millisecond)))
		if err := t.send(m.ToBytes()); err != nil {
			c.log.Debug("DHCPv6 message was not sent", "type", kind, "error", err)
		}
		timer := time.NewTimer(wait)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case <-timer.C:
				waiting = false
			case b := <-t.packets():
				if a := c.mine(b, m); a != nil && accept(a, n == 1) {
					timer.Stop()
					return nil
				}
			}
		}
		if round != nil && round() {
			return nil
		}
		if n == r.count {
			return fmt.Errorf("no answer to %d messages %s", n, kind)
		}
	}
}

// mine reads an answer to m; nil if it is none.
func (c *client6) mine(b []byte, m *dhcpv6.Message) *dhcpv6.Message {
	a, err := dhcpv6.MessageFromBytes(b)
	if err != nil || a.TransactionID != m.TransactionID || a.Options.ClientID() == nil || !bytes.Equal(a.Options.ClientID().ToBytes(), c.duid) {
		return nil
	}
	if a.MessageType != dhcpv6.MessageTypeReply && !(a.MessageType == dhcpv6.MessageTypeAdvertise && m.MessageType == dhcpv6.MessageTypeSolicit) {
		return nil
	}
	return a
}

// options are those that every message but a release carries. hold is what is
// asked to be given again, nil for anything.
func (c *client6) options(hold *lease6) []dhcpv6.Option {
	codes := []dhcpv6.OptionCode{dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionNTPServer, dhcpv6.OptionSNTPServerList, dhcpv6.OptionSolMaxRT}
	for _, o := range c.opts.ReqOpts {
		if !slices.Contains(codes, dhcpv6.OptionCode(o)) {
			codes = append(codes, dhcpv6.OptionCode(o))
		}
	}
	out := []dhcpv6.Option{dhcpv6.OptRequestedOption(codes...)}
	if v := c.opts.VendorClass; v != "" {
		out = append(out, &dhcpv6.OptVendorClass{Data: [][]byte{[]byte(v)}})
	}
	if v := c.opts.UserClass; v != "" {
		out = append(out, &dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte(v)}})
	}
	return append(out, c.identities(hold)...)
}

func (c *client6) identities(hold *lease6) []dhcpv6.Option {
	var out []dhcpv6.Option
	if c.opts.Address != "none" {
		ia := &dhcpv6.OptIANA{IaId: c.iaid}
		if hold != nil {
			for _, a := range hold.addrs {
				ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.Addr().AsSlice()})
			}
		}
		out = append(out, ia)
	}
	if c.opts.Prefix {
		ia := &dhcpv6.OptIAPD{IaId: c.iaid}
		switch {
		case hold != nil && len(hold.prefixes) > 0:
			for _, p := range hold.prefixes {
				ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: toIPNet(p.Prefix)})
			}
		case c.opts.PrefixHint > 0:
			ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(c.opts.PrefixHint, 128)}})
		}
		out = append(out, ia)
	}
	return out
}

// stateful tells whether anything is wanted that a server has to remember.
func (c *client6) stateful() bool { return c.opts.Address != "none" || c.opts.Prefix }

// run ends with ctx and returns what it held then.
func (c *client6) run(ctx context.Context) *lease6 {
	// All devices of a street ask after a power cut; RFC 8415, 18.2.1.
	if !sleep(ctx, time.Duration(rand.Int64N(int64(solDelay))), nil) {
		return nil
	}
	if !c.stateful() {
		c.inform(ctx)
		return nil
	}
	for ctx.Err() == nil {
		l, err := c.solicit(ctx)
		if err != nil {
			c.log.Debug("no DHCPv6 lease yet", "error", err)
			// Servers that have no addresses may have the rest.
			c.informOnce(ctx, retrans{first: infTimeout, max: infMax, count: 3})
			sleep(ctx, emptyWait, c.kick)
			continue
		}
		if l = c.hold(ctx, l); l != nil {
			return l
		}
		if ctx.Err() == nil {
			c.lease(nil)
		}
	}
	return nil
}

// solicit finds a server and has it give something. It fails when nobody
// answers for a while, or servers answer but have nothing.
func (c *client6) solicit(ctx context.Context) (*lease6, error) {
	var best *lease6
	var bestRank int
	accept := func(m *dhcpv6.Message, first bool) bool {
		if m.MessageType != dhcpv6.MessageTypeAdvertise {
			return false
		}
		l, err := newLease6(m, c.iaid, time.Now())
		if err != nil || l.empty(time.Now()) {
			return false
		}
		pref := int(m.Options.Preference())
		rank := pref*4 + 2*min(1, len(l.prefixes)) + min(1, len(l.addrs))
		if best == nil || rank > bestRank {
			best, bestRank = l, rank
		}
		return !first || pref == 255 // else all of the first round are heard
	}
	silent := 0
	round := func() bool {
		silent++
		return best != nil || silent == solCount
	}
	if err := c.exchange(ctx, dhcpv6.MessageTypeSolicit, retrans{first: solTimeout, max: solMax}, c.options(nil), accept, round); err != nil {
		return nil, err
	}
	if best == nil {
		return nil, errors.New("no server gives addresses or prefixes")
	}
	return c.request(ctx, best)
}

// request takes what a server has offered.
func (c *client6) request(ctx context.Context, offer *lease6) (*lease6, error) {
	server, err := dhcpv6.DUIDFromBytes(offer.server)
	if err != nil {
		return nil, fmt.Errorf("server's DUID: %w", err)
	}
	return c.ask(ctx, dhcpv6.MessageTypeRequest, retrans{first: reqTimeout, max: reqMax, count: reqCount},
		append(c.options(offer), dhcpv6.OptServerID(server)), offer)
}

// ask has one exchange in which something is given or renewed.
func (c *client6) ask(ctx context.Context, kind dhcpv6.MessageType, r retrans, options []dhcpv6.Option, hold *lease6) (*lease6, error) {
	var got *lease6
	var refused error
	err := c.exchange(ctx, kind, r, options, func(m *dhcpv6.Message, _ bool) bool {
		now := time.Now()
		l, err := newLease6(m, c.iaid, now)
		if err != nil {
			c.log.Debug("DHCPv6 answer is of no use", "type", kind, "error", err)
			if s := m.Options.Status(); s != nil && s.StatusCode != iana.StatusUnspecFail {
				refused = fmt.Errorf("%w: %w", errServer, err)
			}
			return refused != nil
		}
		switch {
		case l.noBinding:
			refused = fmt.Errorf("%w: it knows nothing of us", errServer)
		case kind == dhcpv6.MessageTypeRequest && l.empty(now):
			refused = fmt.Errorf("%w: it gives nothing", errServer)
		default:
			got = l
		}
		return true
	}, nil)
	if err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	if kind != dhcpv6.MessageTypeRequest {
		got = hold.after(got, time.Now())
	}
	return got, nil
}

// hold keeps the lease up. It returns the current one when ctx ends and nil
// when it is lost.
func (c *client6) hold(ctx context.Context, l *lease6) *lease6 {
	for {
		c.lease(l)
		next, err := c.await(ctx, l)
		switch {
		case ctx.Err() != nil:
			return l
		case errors.Is(err, errServer):
			// A server that lost its memory may give the same again.
			if next, err = c.request(ctx, l); err != nil {
				if ctx.Err() != nil {
					return l
				}
				c.log.Warn("DHCPv6 lease was refused", "error", err)
				return nil
			}
		case err != nil:
			c.log.Warn("DHCPv6 lease ran out", "error", err)
			return nil
		case next.empty(time.Now()):
			c.log.Warn("the DHCPv6 server took everything back")
			return nil
		}
		l = next
	}
}

// await waits until it is time to renew, and renews.
func (c *client6) await(ctx context.Context, l *lease6) (*lease6, error) {
	wait := time.Duration(1<<63 - 1)
	if !l.t1.IsZero() {
		wait = time.Until(l.t1)
	}
	if !sleep(ctx, wait, c.kick) {
		return nil, ctx.Err()
	}
	server, err := dhcpv6.DUIDFromBytes(l.server)
	if err != nil {
		return nil, fmt.Errorf("server's DUID: %w", err)
	}
	t2 := l.t2
	if t2.IsZero() || !l.end.IsZero() && t2.After(l.end) {
		t2 = l.end
	}
	if t2.IsZero() || time.Now().Before(t2) {
		next, err := c.ask(ctx, dhcpv6.MessageTypeRenew, retrans{first: renTimeout, max: renMax, until: t2}, append(c.options(l), dhcpv6.OptServerID(server)), l)
		if err == nil || ctx.Err() != nil || errors.Is(err, errServer) {
			return next, err
		}
		c.log.Info("DHCPv6 server does not renew, asking all", "error", err)
	}
	return c.ask(ctx, dhcpv6.MessageTypeRebind, retrans{first: renTimeout, max: renMax, until: l.end}, c.options(l), l)
}

// inform keeps what servers tell without remembering us.
func (c *client6) inform(ctx context.Context) {
	for ctx.Err() == nil {
		l := c.informOnce(ctx, retrans{first: infTimeout, max: infMax})
		wait := minRefresh
		if l != nil {
			wait = l.refresh
		}
		sleep(ctx, wait, c.kick)
	}
}

func (c *client6) informOnce(ctx context.Context, r retrans) *lease6 {
	var got *lease6
	err := c.exchange(ctx, dhcpv6.MessageTypeInformationRequest, r, c.options(nil)[:1], func(m *dhcpv6.Message, _ bool) bool {
		l, err := newLease6(m, c.iaid, time.Now())
		if err != nil {
			return false
		}
		l.addrs, l.prefixes = nil, nil
		got = l
		return true
	}, nil)
	if err != nil {
		c.log.Debug("no DHCPv6 information", "error", err)
		return nil
	}
	c.lease(got)
	return got
}

// release gives back what is held, and waits a little for the answer.
func (c *client6) release(l *lease6) error {
	server, err := dhcpv6.DUIDFromBytes(l.server)
	if err != nil {
		return fmt.Errorf("server's DUID: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseWait)
	defer cancel()
	return c.exchange(ctx, dhcpv6.MessageTypeRelease, retrans{first: releaseWait, max: releaseWait, count: 1},
		append(c.identities(l), dhcpv6.OptServerID(server)), func(*dhcpv6.Message, bool) bool { return true }, nil)
}
