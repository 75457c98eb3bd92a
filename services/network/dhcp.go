package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// errNak means that the server took the address back.
var errNak = errors.New("server refused the address")

// exchanger is one conversation with DHCP servers. Each call sends once and
// waits for the answer at most as long as told.
type exchanger interface {
	acquire(ctx context.Context, wait time.Duration) (*Lease, error)
	// renew asks the server that gave the lease.
	renew(ctx context.Context, l *Lease, wait time.Duration) (*Lease, error)
	// rebind asks any server.
	rebind(ctx context.Context, l *Lease, wait time.Duration) (*Lease, error)
	release(l *Lease) error
}

// dhcpClient keeps one lease (RFC 2131, 4.4). It tries for ever, less often
// after a while, and its whole life is in run.
type dhcpClient struct {
	ex  exchanger
	log *slog.Logger
	// lease is called with each lease that is got or renewed, and with nil
	// when it is lost.
	lease func(*Lease)
	// kick asks for a renewal now.
	kick chan struct{}
}

const (
	// firstWait is the time for an answer to the first DISCOVER. RFC 2131
	// advises 4 s, of 1997's networks; the first packet after a link came up
	// is often lost, and then that is how much later the device is online.
	firstWait = time.Second
	// maxWait is the ceiling of the doubling after that.
	maxWait = 60 * time.Second
	// minRetry is the shortest time between two tries to renew (RFC 2131,
	// 4.4.5).
	minRetry = 60 * time.Second
	// answerWait is how long a try to renew waits for the answer.
	answerWait = 5 * time.Second
)

// run ends with ctx and returns the lease it held then.
func (c *dhcpClient) run(ctx context.Context) *Lease {
	for {
		l := c.acquire(ctx)
		if l == nil {
			return nil
		}
		if l = c.hold(ctx, l); l != nil {
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		c.lease(nil)
	}
}

// acquire asks until it has a lease; nil when ctx ends.
func (c *dhcpClient) acquire(ctx context.Context) *Lease {
	reported := false
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		// RFC 2131 asks for a random part, so that the clients of a street
		// do not speak at once when the power is back.
		jittered := wait + time.Duration((rand.Float64()-0.5)*float64(wait)/4)
		start := time.Now()
		l, err := c.ex.acquire(ctx, jittered)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return l
		case !reported:
			c.log.Warn("no lease yet, asking on", "error", err)
			reported = true
		default:
			c.log.Debug("no lease yet", "error", err)
		}
		if !sleep(ctx, jittered-time.Since(start), nil) {
			return nil
		}
	}
}

// hold keeps the lease up. It returns the current lease when ctx ends and nil
// when the lease is lost.
func (c *dhcpClient) hold(ctx context.Context, l *Lease) *Lease {
	for {
		c.lease(l)
		next, lost := c.await(ctx, l)
		switch {
		case lost:
			return nil
		case next == nil:
			return l
		}
		l = next
	}
}

// await waits until it is time to renew, and renews.
func (c *dhcpClient) await(ctx context.Context, l *Lease) (next *Lease, lost bool) {
	var t1, t2, end time.Time
	if l.Duration > 0 {
		t1, t2, end = l.At.Add(l.T1), l.At.Add(l.T2), l.At.Add(l.Duration)
	}
	when := t1
	for {
		wait := time.Until(when)
		if l.Duration == 0 {
			wait = 1<<63 - 1
		}
		if !sleep(ctx, wait, c.kick) {
			return nil, false
		}
		now := time.Now()
		if l.Duration > 0 && !now.Before(end) {
			c.log.Warn("lease ran out", "address", l.Addr, "server", l.Server)
			return nil, true
		}
		ask, until := c.ex.renew, t2
		if l.Duration > 0 && !now.Before(t2) {
			ask, until = c.ex.rebind, end
		}
		limit := answerWait
		if l.Duration > 0 {
			limit = min(limit, end.Sub(now))
		}
		next, err := ask(ctx, l, limit)
		switch {
		case ctx.Err() != nil:
			return nil, false
		case err == nil:
			return next, false
		case errors.Is(err, errNak):
			c.log.Warn("lease was refused", "address", l.Addr, "error", err)
			return nil, true
		}
		c.log.Info("lease was not renewed yet", "address", l.Addr, "error", err)
		if l.Duration == 0 {
			continue
		}
		// Half of what is left before the next stage, not too often.
		now = time.Now()
		when = now.Add(max(until.Sub(now)/2, minRetry))
		if when.After(until) {
			when = until
		}
		if now.Before(t1) {
			when = t1 // a try before its time failed: nothing is lost
		}
	}
}

// sleep waits; it returns early and true on a kick, false when ctx ends.
func sleep(ctx context.Context, d time.Duration, kick <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-kick:
	case <-t.C:
	}
	return ctx.Err() == nil
}

// wire is the exchanger on a real link. Sockets are open only while an answer
// is awaited, so that a busy uplink costs nothing.
type wire struct {
	link string
	mac  net.HardwareAddr
	opts DHCPOptions
	last netip.Addr // what was held before; zero: nothing
}

// modifiers are the options that every message carries.
func (w *wire) modifiers() []dhcpv4.Modifier {
	codes := []dhcpv4.OptionCode{
		dhcpv4.OptionBroadcastAddress, dhcpv4.OptionHostName, dhcpv4.OptionNTPServers,
		dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionIPAddressLeaseTime,
		dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
		dhcpv4.GenericOptionCode(optionMSRoutes),
	}
	for _, n := range w.opts.ReqOpts {
		codes = append(codes, dhcpv4.GenericOptionCode(n))
	}
	mods := []dhcpv4.Modifier{
		dhcpv4.WithRequestedOptions(codes...),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
		dhcpv4.WithBroadcast(w.opts.Broadcast),
	}
	return append(mods, w.identity()...)
}

// identity are the options that tell who asks.
func (w *wire) identity() []dhcpv4.Modifier {
	id := w.opts.ClientID
	if id == nil {
		id = append([]byte{1}, w.mac...) // type Ethernet, as LEDE's client sends it
	}
	mods := []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptClientIdentifier(id))}
	if w.opts.Hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(w.opts.Hostname)))
	}
	if w.opts.VendorID != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(w.opts.VendorID)))
	}
	return mods
}

// toClient keeps everything but DHCP answers out of the raw socket: it starts
// at the IP header and wants UDP, no fragment, to port 68.
var toClient = sync.OnceValues(func() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nclient4.ClientPort, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
})

// broadcast is a client that needs no address.
func (w *wire) broadcast(wait time.Duration) (*nclient4.Client, error) {
	filter, err := toClient()
	if err != nil {
		return nil, fmt.Errorf("filter for DHCP answers: %w", err)
	}
	ifi, err := net.InterfaceByName(w.link)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", w.link, err)
	}
	raw, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: open a packet socket: %w", w.link, err)
	}
	return w.client(nclient4.NewBroadcastUDPConn(raw, &net.UDPAddr{Port: nclient4.ClientPort}), wait)
}

// unicast is a client that speaks from the address of the lease.
func (w *wire) unicast(l *Lease, wait time.Duration) (*nclient4.Client, error) {
	if !l.Server.IsValid() {
		return nil, errors.New("the server did not say who it is")
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); serr == nil {
				serr = unix.BindToDevice(int(fd), w.link)
			}
		})
		return errors.Join(err, serr)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(l.Addr.Addr(), nclient4.ClientPort).String())
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", w.link, err)
	}
	return w.client(conn, wait)
}

func (w *wire) client(conn net.PacketConn, wait time.Duration) (*nclient4.Client, error) {
	c, err := nclient4.NewWithConn(conn, w.mac, nclient4.WithTimeout(wait), nclient4.WithRetry(1))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (w *wire) acquire(ctx context.Context, wait time.Duration) (*Lease, error) {
	c, err := w.broadcast(wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	mods := w.modifiers()
	if w.last.IsValid() { // after a pulled cable the same again, if it is free
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(w.last.AsSlice())))
	}
	offer, err := c.DiscoverOffer(ctx, mods...)
	if err != nil {
		return nil, err
	}
	ack, err := c.RequestFromOffer(ctx, offer, w.modifiers()...)
	var nak *nclient4.ErrNak
	if errors.As(err, &nak) {
		w.last = netip.Addr{}
		return nil, fmt.Errorf("%w: %w", errNak, err)
	}
	if err != nil {
		return nil, err
	}
	l, err := newLease(ack.ACK, time.Now())
	if err == nil {
		w.last = l.Addr.Addr()
	}
	return l, err
}

func (w *wire) renew(ctx context.Context, l *Lease, wait time.Duration) (*Lease, error) {
	c, err := w.unicast(l, wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return w.extend(ctx, c, &net.UDPAddr{IP: l.Server.AsSlice(), Port: nclient4.ServerPort}, l)
}

func (w *wire) rebind(ctx context.Context, l *Lease, wait time.Duration) (*Lease, error) {
	c, err := w.broadcast(wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return w.extend(ctx, c, c.RemoteAddr(), l)
}

func (w *wire) extend(ctx context.Context, c *nclient4.Client, to *net.UDPAddr, l *Lease) (*Lease, error) {
	req, err := dhcpv4.NewRenewFromAck(l.ack, w.modifiers()...)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	ack, err := c.SendAndRead(ctx, to, req, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
	if err != nil {
		return nil, err
	}
	if ack.MessageType() == dhcpv4.MessageTypeNak {
		return nil, fmt.Errorf("%w: %s", errNak, ack.Message())
	}
	next, err := newLease(ack, start)
	if err == nil && !next.Server.IsValid() {
		next.Server = l.Server
	}
	return next, err
}

func (w *wire) release(l *Lease) error {
	c, err := w.unicast(l, answerWait)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Release(&nclient4.Lease{ACK: l.ack}, w.identity()...)
}
