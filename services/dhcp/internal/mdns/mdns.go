// Package mdns answers for <hostname>.local on the devices of the LAN
// (RFC 6762): addresses, and names of addresses.
//
// The name is probed before it is used; if somebody has it, -2 and so on is put
// behind it. It does not announce services (RFC 6763) and asks nothing for
// others.
package mdns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Constants of RFC 6762.
const (
	port        = 5353
	ttl         = 120 // of records with a host's name (10)
	legacyTTL   = 10  // for resolvers that know no multicast (6.7)
	flush       = 1 << 15
	unicastBit  = 1 << 15
	probeCount  = 3
	probeWait   = 250 * time.Millisecond
	announceGap = time.Second
	quiet       = time.Second // between two answers to all (6)
	maxMessage  = 9000
	maxRenames  = 1000
)

// Responder answers on one device.
type Responder struct {
	log    *slog.Logger
	device string
	conns  []*conn
	wg     sync.WaitGroup
	stop   context.CancelFunc

	mu       sync.Mutex
	base     string // the host's name
	number   int    // put behind it after a conflict
	addrs    []netip.Addr
	ready    bool // the name is ours
	last     time.Time
	restart  chan struct{}
	conflict bool
}

// conn is a socket of one family.
type conn struct {
	pc    *net.UDPConn
	group *net.UDPAddr
	six   bool
}

// Open starts to answer on a device, until Close.
func Open(log *slog.Logger, device string, index int, name string, addrs []netip.Addr) (*Responder, error) {
	r := &Responder{log: log, device: device, base: name, addrs: slices.Clone(addrs), restart: make(chan struct{}, 1)}
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			errs := []error{
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), // other responders may be about
				unix.BindToDevice(int(fd), device),
			}
			if network == "udp6" {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
			}
			serr = errors.Join(errs...)
		})
		return errors.Join(err, serr)
	}}
	ifi := &net.Interface{Index: index, Name: device}
	var first error
	for _, six := range []bool{false, true} {
		network, host, group := "udp4", "0.0.0.0:5353", net.IPv4(224, 0, 0, 251)
		if six {
			network, host, group = "udp6", "[::]:5353", net.IP{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb}
		}
		p, err := lc.ListenPacket(context.Background(), network, host)
		if err == nil {
			g := &net.UDPAddr{IP: group}
			if six {
				c := ipv6.NewPacketConn(p)
				err = errors.Join(c.JoinGroup(ifi, g), c.SetMulticastInterface(ifi), c.SetMulticastHopLimit(255), c.SetHopLimit(255), c.SetMulticastLoopback(false))
			} else {
				c := ipv4.NewPacketConn(p)
				err = errors.Join(c.JoinGroup(ifi, g), c.SetMulticastInterface(ifi), c.SetMulticastTTL(255), c.SetTTL(255), c.SetMulticastLoopback(false))
			}
			if err != nil {
				p.Close()
			}
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue // one family alone is worth having
		}
		to := &net.UDPAddr{IP: group, Port: port}
		if six {
			to.Zone = device
		}
		r.conns = append(r.conns, &conn{pc: p.(*net.UDPConn), group: to, six: six})
	}
	if len(r.conns) == 0 {
		return nil, fmt.Errorf("mDNS on %s: %w", device, first)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	for _, c := range r.conns {
		r.wg.Go(func() { r.receive(c) })
	}
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

// Set changes the name or the addresses; what differs is announced.
func (r *Responder) Set(name string, addrs []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.base == name && slices.Equal(r.addrs, addrs) {
		return
	}
	if r.base != name {
		r.goodbye()
		r.base, r.number, r.ready = name, 0, false
	}
	r.addrs = slices.Clone(addrs)
	r.kick()
}

func (r *Responder) kick() {
	select {
	case r.restart <- struct{}{}:
	default:
	}
}

// Name is the name that is answered for, without the domain; "" while it is
// probed.
func (r *Responder) Name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return ""
	}
	return r.label()
}

func (r *Responder) label() string {
	if r.number > 1 {
		return fmt.Sprintf("%s-%d", r.base, r.number)
	}
	return r.base
}

func (r *Responder) fqdn() string { return r.label() + ".local." }

// Close says that the name is free and ends the responder.
func (r *Responder) Close() {
	r.mu.Lock()
	r.goodbye()
	r.ready = false
	r.mu.Unlock()
	r.stop()
	for _, c := range r.conns {
		c.pc.Close()
	}
	r.wg.Wait()
}

// goodbye takes the records back, with r.mu held.
func (r *Responder) goodbye() {
	if r.ready {
		m := r.announcement(0)
		r.toAll(m)
	}
}

// run probes and announces the name, again whenever something changes.
func (r *Responder) run(ctx context.Context) {
	for {
		if r.claim(ctx) {
			for i := range 2 {
				r.mu.Lock()
				m := r.announcement(ttl)
				r.toAll(m)
				r.last = time.Now()
				r.mu.Unlock()
				if i == 0 && !wait(ctx, announceGap) {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-r.restart:
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// claim makes sure that nobody else has the name (RFC 6762, 8.1).
func (r *Responder) claim(ctx context.Context) bool {
	r.mu.Lock()
	ready := r.ready
	r.mu.Unlock()
	if ready {
		return true
	}
	for range maxRenames {
		r.mu.Lock()
		r.conflict = false
		q := new(dns.Msg)
		q.Question = []dns.Question{{Name: r.fqdn(), Qtype: dns.TypeANY, Qclass: dns.ClassINET | unicastBit}}
		q.Ns = r.addrRecords(r.fqdn(), dns.TypeANY, ttl, false)
		r.mu.Unlock()
		taken := false
		for range probeCount {
			r.mu.Lock()
			r.toAll(q)
			r.mu.Unlock()
			if !wait(ctx, probeWait) {
				return false
			}
			r.mu.Lock()
			taken = r.conflict
			r.mu.Unlock()
			if taken {
				break
			}
		}
		r.mu.Lock()
		if !taken {
			r.ready = true
			r.mu.Unlock()
			return true
		}
		r.log.Warn("another host has our name, a number is put behind it", "name", r.fqdn(), "device", r.device)
		r.number = max(r.number, 1) + 1
		r.mu.Unlock()
	}
	return false
}

func header(name string, t uint16, life uint32, unique bool) dns.RR_Header {
	h := dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: life}
	if unique {
		h.Class |= flush
	}
	return h
}

// addrRecords are the addresses of the type, or all.
func (r *Responder) addrRecords(name string, qtype uint16, life uint32, unique bool) []dns.RR {
	var out []dns.RR
	for _, a := range r.addrs {
		switch {
		case a.Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA, life, unique), A: a.AsSlice()})
		case a.Is6() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, life, unique), AAAA: a.AsSlice()})
		}
	}
	return out
}

func (r *Responder) ptrRecord(a netip.Addr, life uint32, unique bool) dns.RR {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		return nil
	}
	return &dns.PTR{Hdr: header(name, dns.TypePTR, life, unique), Ptr: r.fqdn()}
}

// announcement is all we have, as an unasked answer.
func (r *Responder) announcement(life uint32) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true}
	m.Answer = r.addrRecords(r.fqdn(), dns.TypeANY, life, true)
	for _, a := range r.addrs {
		if p := r.ptrRecord(a, life, true); p != nil {
			m.Answer = append(m.Answer, p)
		}
	}
	return m
}

func (r *Responder) toAll(m *dns.Msg) {
	b, err := m.Pack()
	if err != nil || len(m.Answer) == 0 && len(m.Question) == 0 {
		return
	}
	for _, c := range r.conns {
		if _, err := c.pc.WriteTo(b, c.group); err != nil {
			r.log.Debug("an mDNS message was not sent", "device", r.device, "error", err)
		}
	}
}

func (r *Responder) receive(c *conn) {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := c.pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		var m dns.Msg
		if m.Unpack(buf[:n]) != nil || m.Opcode != dns.OpcodeQuery {
			continue
		}
		if m.Response {
			if from.Port() == port {
				r.heard(&m)
			}
			continue
		}
		if a, direct := r.Answer(&m, from.Port() != port); a != nil {
			b, err := a.Pack()
			if err != nil {
				continue
			}
			if direct {
				_, err = c.pc.WriteToUDPAddrPort(b, from)
			} else {
				_, err = c.pc.WriteTo(b, c.group)
			}
			if err != nil {
				r.log.Debug("an mDNS answer was not sent", "device", r.device, "error", err)
			}
		}
	}
}

// heard looks for our name in the answers of others.
func (r *Responder) heard(m *dns.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rr := range m.Answer {
		h := rr.Header()
		if !strings.EqualFold(h.Name, r.fqdn()) || h.Ttl == 0 {
			continue
		}
		var a netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			a, _ = netip.AddrFromSlice(rr.A)
		case *dns.AAAA:
			a, _ = netip.AddrFromSlice(rr.AAAA)
		default:
			continue
		}
		if slices.Contains(r.addrs, a.Unmap()) {
			continue // ourselves, by another way
		}
		r.conflict = true
		if r.ready { // RFC 6762, 9: start over
			r.ready = false
			r.kick()
		}
		return
	}
}

// Answer is what to say to a question; nil for nothing. direct tells whether it
// goes to the asker alone. legacy askers are resolvers of unicast DNS.
func (r *Responder) Answer(q *dns.Msg, legacy bool) (m *dns.Msg, direct bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready || len(q.Question) == 0 || len(q.Question) > 64 {
		return nil, false
	}
	life, unique := uint32(ttl), true
	if legacy {
		life, unique = legacyTTL, false
	}
	m = &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true}
	direct = true
	for _, ask := range q.Question {
		if c := ask.Qclass &^ unicastBit; c != dns.ClassINET && c != dns.ClassANY {
			continue
		}
		var rrs []dns.RR
		switch {
		case strings.EqualFold(ask.Name, r.fqdn()):
			rrs = r.addrRecords(r.fqdn(), ask.Qtype, life, unique)
		case ask.Qtype == dns.TypePTR || ask.Qtype == dns.TypeANY:
			for _, a := range r.addrs {
				if p := r.ptrRecord(a, life, unique); p != nil && strings.EqualFold(p.Header().Name, ask.Name) {
					rrs = append(rrs, p)
				}
			}
		}
		if len(rrs) > 0 && ask.Qclass&unicastBit == 0 {
			direct = false
		}
		for _, rr := range rrs {
			if !known(q.Answer, rr) {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	if len(m.Answer) == 0 {
		return nil, false
	}
	if legacy {
		m.Id, m.Question, direct = q.Id, q.Question, true
	}
	if !direct {
		// Probes are answered at once, others once a second.
		if now := time.Now(); len(q.Ns) == 0 && now.Sub(r.last) < quiet {
			return nil, false
		} else {
			r.last = now
		}
	}
	return m, direct
}

// known tells whether the asker has the record already (RFC 6762, 7.1).
func known(have []dns.RR, rr dns.RR) bool {
	for _, h := range have {
		c := dns.Copy(h)
		c.Header().Class = rr.Header().Class
		if h.Header().Ttl >= rr.Header().Ttl/2 && dns.IsDuplicate(c, rr) {
			return true
		}
	}
	return false
}
