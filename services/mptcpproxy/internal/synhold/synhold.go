// Package synhold holds a host's SYN until the far side has connected to the
// sink, so that a host sees what it would see without a proxy: the kernel logs
// the SYN to an NFLOG group and drops it; after success that very SYN is put
// back through a TUN device, where TPROXY accepts it; a refusal, an ICMP error
// or silence is passed on as such. The rules for that are package intercept's.
//
// A flow that cannot be held, because too many are or because no far side is
// there, is routed as if there were no proxy: its SYN goes back through a second
// TUN device. With FailClosed it is dropped, or answered like a router that has
// no route.
package synhold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/transparent"
)

// Options is how to hold.
type Options struct {
	Group uint16 // NFLOG group; 0: intercept.LogGroup
	// Open asks the far side to connect. result is called once, from any
	// goroutine: nil when the far side has connected, *transparent.ConnectError for
	// what it met; any other error is trouble between the gateways, and FailClosed
	// decides. cancel (may be nil) gives up: it is called at most once, when the
	// client has given up before the result, or has not taken an opened connection
	// in time.
	Open func(src, dst netip.AddrPort, result func(error)) (cancel func())
	// Known is told of destinations that connected (good is true: what is held is
	// not in the set, so that there is nothing to take out of it); may be nil.
	Known func(dst netip.AddrPort, good bool)
	// FailClosed: what cannot be held (table full, no peer) is dropped or rejected;
	// else it is routed.
	FailClosed   bool
	MaxHeld      int           // at once in all; 0: 16384
	MaxPerClient int           // at once per client address; 0: 1024
	Rate         int           // new per second in all, bursts of as many; 0: no limit
	MaxAge       time.Duration // a SYN is held at most; 0: 130 s, longer than Linux tries
	AcceptWithin time.Duration // an opened flow is accepted within, else cancelled; 0: 10 s
	Log          *slog.Logger  // nil: slog.Default
}

// Stats counts since start; Held is now.
type Stats struct {
	SYNs          uint64 // received from the kernel
	Retransmitted uint64 // of flows that were held already
	Opened        uint64 // the far side connected, the client was let in
	Refused       uint64 // answered by RST
	Unreachable   uint64 // answered by ICMP
	Silent        uint64 // left without an answer, as the sink did
	Passed        uint64 // routed: no room or no far side
	Dropped       uint64 // the same with FailClosed
	Cancelled     uint64 // the client gave up, or did not take the connection
	Malformed     uint64 // not a TCP segment, or wrong checksum
	Lost          uint64 // times that the kernel had no room to log
	Held          int
}

type key struct{ src, dst netip.AddrPort }

// phase of a held flow.
type phase int

const (
	opening phase = iota // the far side is asked
	entered              // the SYN was put back, the listener has not accepted yet
	passed               // the SYN was routed, and so will be its retransmissions
	quiet                // the sink does not answer
)

// flow is a client's attempt to connect.
type flow struct {
	key
	syn      segment
	phase    phase
	cancel   func() // set when Open has returned
	asked    bool   // Open has returned
	gone     bool   // not in the table any more
	late     bool   // given up before Open has returned
	first    time.Time
	last     time.Time     // latest SYN
	gap      time.Duration // between the latest two
	deadline time.Time     // not before it the flow is forgotten, unless more SYNs come
}

// Hold holds SYNs.
type Hold struct {
	o      Options
	log    *nflog
	inject *tun
	pass   *tun
	raw    *raw
	closed atomic.Bool // FailClosed, may change

	mu      sync.Mutex
	flows   map[key]*flow
	clients map[netip.Addr]int
	tokens  float64
	refill  time.Time
	ended   bool

	syns, again, opened, refused, unreachable, silent, passed, dropped, cancelled, malformed, lost atomic.Uint64
}

// New opens the NFLOG group and makes the TUN devices, in the current network
// namespace. They are there until Run ends.
func New(o Options) (*Hold, error) {
	if o.Group == 0 {
		o.Group = intercept.LogGroup
	}
	if o.MaxHeld <= 0 {
		o.MaxHeld = 16384
	}
	if o.MaxPerClient <= 0 {
		o.MaxPerClient = 1024
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 130 * time.Second
	}
	if o.AcceptWithin <= 0 {
		o.AcceptWithin = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Hold{o: o, flows: map[key]*flow{}, clients: map[netip.Addr]int{}, tokens: float64(o.Rate), refill: time.Now()}
	h.closed.Store(o.FailClosed)
	var err error
	if h.inject, err = openTUN(intercept.InjectDevice); err == nil {
		if h.pass, err = openTUN(intercept.PassDevice); err == nil {
			if h.raw, err = openRaw(); err == nil {
				h.log, err = openLog(o.Group)
			}
		}
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("preparing to hold SYNs: %w", err)
	}
	return h, nil
}

func (h *Hold) close() {
	if h.log != nil {
		h.log.c.Close()
	}
	for _, t := range []*tun{h.inject, h.pass} {
		if t != nil {
			t.close()
		}
	}
	if h.raw != nil {
		h.raw.close()
	}
}

// SetFailClosed changes what happens to what cannot be held.
func (h *Hold) SetFailClosed(closed bool) { h.closed.Store(closed) }

// sweepEvery is how often the table is searched for what has had its time.
const sweepEvery = 250 * time.Millisecond

// Run delivers SYNs until ctx ends; then what is held is given up. It must be
// called once; afterwards Hold is of no use.
func (h *Hold) Run(ctx context.Context) error {
	swept := make(chan struct{})
	sweeping, stop := context.WithCancel(ctx)
	go func() {
		defer close(swept)
		t := time.NewTicker(sweepEvery)
		defer t.Stop()
		for {
			select {
			case <-sweeping.Done():
				return
			case now := <-t.C:
				h.sweep(now)
			}
		}
	}()
	unblock := context.AfterFunc(ctx, func() { h.log.c.SetReadDeadline(time.Unix(1, 0)) })
	err := h.receive(ctx)
	unblock()
	stop()
	<-swept
	h.end()
	return err
}

func (h *Hold) receive(ctx context.Context) error {
	for {
		msgs, err := h.log.c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			h.lost.Add(1) // clients will send their SYNs again
			continue
		case err != nil:
			return fmt.Errorf("receiving SYNs from the kernel: %w", err)
		}
		for _, m := range msgs {
			if p := payload(m); p != nil {
				h.packet(p, time.Now())
			}
		}
	}
}

// end gives up what is held.
func (h *Hold) end() {
	h.mu.Lock()
	h.ended = true
	var cancels []func()
	for _, f := range h.flows {
		cancels = append(cancels, h.abandon(f))
	}
	h.close()
	h.mu.Unlock()
	for _, c := range cancels {
		if c != nil {
			c()
		}
	}
}

// forget takes f out of the table. The caller holds the lock.
func (h *Hold) forget(f *flow) {
	f.gone = true
	delete(h.flows, f.key)
	if n := h.clients[f.src.Addr()] - 1; n > 0 {
		h.clients[f.src.Addr()] = n
	} else {
		delete(h.clients, f.src.Addr())
	}
}

// abandon forgets f and returns what has to be called without the lock, or nil.
// The caller holds the lock.
func (h *Hold) abandon(f *flow) (cancel func()) {
	h.forget(f)
	if f.phase == passed || f.phase == quiet {
		return nil
	}
	h.cancelled.Add(1)
	f.late = !f.asked
	return f.cancel
}

// packet takes what the kernel has logged: a SYN, or a RST of a client.
func (h *Hold) packet(b []byte, now time.Time) {
	s, err := parse(b)
	if err != nil {
		h.malformed.Add(1)
		return
	}
	switch {
	case s.flags&flagRST != 0:
		h.giveUp(s)
	case s.flags&(flagSYN|flagACK|flagFIN) == flagSYN:
		h.syns.Add(1)
		h.syn(s, now)
	}
}

// giveUp ends a flow whose client has sent a RST, if its sequence number is one
// that the client may use.
func (h *Hold) giveUp(s segment) {
	h.mu.Lock()
	f := h.flows[key{s.src, s.dst}]
	if f == nil || f.phase != opening || s.seq-f.syn.seq > 1+f.syn.data {
		h.mu.Unlock()
		return
	}
	cancel := h.abandon(f)
	h.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// patience is how long after its latest SYN a client that sends them ever less
// often may still be waiting.
func (f *flow) patience() time.Duration { return max(7*time.Second, 3*f.gap) }

func (h *Hold) syn(s segment, now time.Time) {
	h.mu.Lock()
	if h.ended {
		h.mu.Unlock()
		return
	}
	k := key{s.src, s.dst}
	f := h.flows[k]
	if f != nil && f.syn.seq == s.seq {
		h.again.Add(1)
		f.gap, f.last = now.Sub(f.last), now
		f.deadline = now.Add(f.patience())
		switch f.phase {
		case entered:
			f.deadline = now.Add(h.o.AcceptWithin)
			h.put(h.inject, f.syn)
		case passed:
			h.put(h.pass, f.syn)
		}
		h.mu.Unlock()
		return
	}
	var cancel func()
	if f != nil { // the same ports for another attempt
		cancel = h.abandon(f)
	}
	room := len(h.flows) < h.o.MaxHeld && h.clients[s.src.Addr()] < h.o.MaxPerClient && h.admit(now)
	if room {
		s.raw = append([]byte(nil), s.raw...)
		f = &flow{key: k, syn: s, first: now, last: now, deadline: now.Add(7 * time.Second)}
		h.flows[k] = f
		h.clients[s.src.Addr()]++
	}
	h.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if !room {
		h.without(s, false)
		return
	}
	cancel = h.o.Open(k.src, k.dst, func(err error) { h.result(f, err) })
	h.mu.Lock()
	f.asked, f.cancel = true, cancel
	late := f.late
	h.mu.Unlock()
	if late && cancel != nil {
		cancel()
	}
}

// admit takes a token for a new flow. The caller holds the lock.
func (h *Hold) admit(now time.Time) bool {
	if h.o.Rate <= 0 {
		return true
	}
	h.tokens = min(float64(h.o.Rate), h.tokens+now.Sub(h.refill).Seconds()*float64(h.o.Rate))
	h.refill = now
	if h.tokens < 1 {
		return false
	}
	h.tokens--
	return true
}

// result takes what the far side says about f.
func (h *Hold) result(f *flow, err error) {
	now := time.Now()
	h.mu.Lock()
	if f.gone || f.phase != opening {
		h.mu.Unlock()
		return
	}
	if err == nil {
		f.phase = entered
		f.deadline = now.Add(h.o.AcceptWithin)
		h.opened.Add(1)
		h.put(h.inject, f.syn)
		h.mu.Unlock()
		if h.o.Known != nil {
			h.o.Known(f.dst, true)
		}
		return
	}
	var ce *transparent.ConnectError
	k, icmpType, code := trouble, uint8(0), uint8(0)
	if errors.As(err, &ce) {
		k, icmpType, code = verdict(ce, f.dst.Addr().Is4())
	}
	if k == trouble && !h.closed.Load() {
		// Its retransmissions are routed as well, so that it is one attempt.
		f.phase = passed
		f.deadline = now.Add(f.patience())
		h.passed.Add(1)
		h.put(h.pass, f.syn)
		h.mu.Unlock()
		return
	}
	if k == silence {
		f.phase = quiet // not asked again as long as this attempt lasts
		f.deadline = now.Add(f.patience())
	} else {
		h.forget(f)
	}
	h.mu.Unlock()
	switch k {
	case silence:
		h.silent.Add(1)
	case reset:
		h.refused.Add(1)
		h.send(resetFor(f.syn), f.src.Addr())
	case icmp:
		h.unreachable.Add(1)
		h.sendICMP(f.syn, ce.Offender, icmpType, code)
	case trouble:
		h.o.Log.Debug("flow rejected: the far side cannot be asked", "src", f.src, "dst", f.dst, "err", err)
		h.without(f.syn, true)
	}
}

// without handles a SYN that cannot be held, by the fail mode.
func (h *Hold) without(s segment, answer bool) {
	if !h.closed.Load() {
		h.passed.Add(1)
		h.mu.Lock()
		if !h.ended {
			h.put(h.pass, s)
		}
		h.mu.Unlock()
		return
	}
	h.dropped.Add(1)
	if answer {
		if s.dst.Addr().Is4() {
			h.sendICMP(s, netip.Addr{}, icmpUnreachable, icmpNet)
		} else {
			h.sendICMP(s, netip.Addr{}, icmp6Unreachable, icmp6NoRoute)
		}
	}
}

// put writes a SYN into a device. The caller holds the lock, so that the device
// is there.
func (h *Hold) put(t *tun, s segment) {
	if err := t.write(s.raw); err != nil {
		h.o.Log.Warn("cannot put a SYN back; its client will send another", "src", s.src, "dst", s.dst, "err", err)
	}
}

// sendICMP answers from the offender, or from this gateway where it is unknown
// or an address that means nothing elsewhere.
func (h *Hold) sendICMP(s segment, from netip.Addr, kind, code uint8) {
	from = from.Unmap().WithZone("")
	if !from.IsValid() || from.Is4() != s.src.Addr().Is4() || from.IsLinkLocalUnicast() || from.IsLoopback() || from.IsUnspecified() {
		if from = own(s.src.Addr()); !from.IsValid() {
			return
		}
	}
	h.send(icmpFor(s, from, kind, code), s.src.Addr())
}

func (h *Hold) send(packet []byte, to netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return
	}
	if err := h.raw.send(packet, to); err != nil {
		h.o.Log.Warn("cannot answer a client; it will try again", "client", to, "err", err)
	}
}

// Accepted tells that the TPROXY listener has accepted the connection from src
// to dst. It reports whether that flow was held, that is, whether Open has been
// called for it and succeeded; its cancel is not called any more then.
func (h *Hold) Accepted(src, dst netip.AddrPort) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.flows[key{src, dst}]
	if f == nil || f.phase != entered {
		return false
	}
	h.forget(f)
	return true
}

// sweep forgets what has had its time.
func (h *Hold) sweep(now time.Time) {
	h.mu.Lock()
	var cancels []func()
	for _, f := range h.flows {
		if now.Before(f.deadline) && now.Sub(f.first) < h.o.MaxAge {
			continue
		}
		if c := h.abandon(f); c != nil {
			cancels = append(cancels, c)
		}
	}
	h.mu.Unlock()
	for _, c := range cancels {
		c()
	}
}

// Stats counts since start.
func (h *Hold) Stats() Stats {
	h.mu.Lock()
	held := len(h.flows)
	h.mu.Unlock()
	return Stats{
		SYNs: h.syns.Load(), Retransmitted: h.again.Load(), Opened: h.opened.Load(), Refused: h.refused.Load(),
		Unreachable: h.unreachable.Load(), Silent: h.silent.Load(), Passed: h.passed.Load(), Dropped: h.dropped.Load(),
		Cancelled: h.cancelled.Load(), Malformed: h.malformed.Load(), Lost: h.lost.Load(), Held: held,
	}
}
