package udpflow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/datagram/mmsg"
)

const (
	batchSize   = 32
	messageSize = 1 << 16
	sweepEvery  = time.Second
	answersMax  = 1024        // sockets that speak as a sink to clients
	nameFirst   = 3           // packets of a flow that carry its addresses
	nameAgain   = time.Second // and one in each such time
	farBuffer   = 1 << 20     // receive buffer of a socket that speaks to a sink
)

// Flows is the UDP of one gateway, near and far side.
type Flows struct {
	e       *datagram.Endpoint
	log     *slog.Logger
	socket  func(domain, typ, proto int) (int, error)
	mark    int
	epoch   time.Time
	policy  atomic.Pointer[policy]
	raw     *rawSockets
	readers []*socket
	epoll   *socket

	mu      sync.Mutex
	near    *table
	nextID  uint32
	answers map[netip.AddrPort]*answer
	recent  list // answers, newest first
	nearOut *mmsg.Writer
	closed  bool

	farMu  sync.Mutex
	far    *table
	byFD   map[int32]*flow
	farOut *mmsg.Writer
	own    map[netip.Addr]netip.Addr // our address towards a sink

	counts counts
}

// counts are the counters; those of a table are guarded by its lock.
type counts struct {
	near, far struct{ opened, expired, evicted, overLimit uint64 }

	refused, unroutable, up, down, upBytes, downBytes, icmp, errs atomic.Uint64
}

// policy is what Update changes at once.
type policy struct {
	peer  func(netip.Addr) (string, bool)
	allow func(string, netip.AddrPort, netip.AddrPort) error
}

// socket is a descriptor watched by the runtime.
type socket struct {
	file *os.File
	raw  syscall.RawConn
}

func watch(fd int, name string) (*socket, error) {
	s := &socket{file: os.NewFile(uintptr(fd), name)}
	var err error
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, fmt.Errorf("watch a %s socket: %w", name, err)
	}
	return s, nil
}

// answer is a socket bound to the address of a sink, for answers to clients.
type answer struct {
	addr netip.AddrPort
	fd   int
	v6   bool
	link link
}

// New makes the flow tables and takes over the listeners.
func New(o Options) (*Flows, error) {
	f := &Flows{
		e: o.Endpoint, log: o.Log, socket: o.Socket, mark: o.Mark, epoch: time.Now(),
		answers: map[netip.AddrPort]*answer{}, byFD: map[int32]*flow{}, own: map[netip.Addr]netip.Addr{},
		nearOut: mmsg.NewWriter(64, 64), farOut: mmsg.NewWriter(64, 64),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.socket == nil {
		f.socket = unix.Socket
	}
	// A number that an earlier process is unlikely to have used of late.
	f.nextID = uint32(time.Now().UnixNano())
	n, r := &f.counts.near, &f.counts.far
	f.near = newTable(limits{closed: f.nearClosed, opened: &n.opened, expired: &n.expired, evicted: &n.evicted, overLimit: &n.overLimit})
	f.far = newTable(limits{closed: f.farClosed, opened: &r.opened, expired: &r.expired, evicted: &r.evicted, overLimit: &r.overLimit})
	f.Update(o)

	var err error
	fail := func(err error) (*Flows, error) {
		f.closeAll()
		return nil, err
	}
	for i, fd := range o.Listeners {
		if err := prepareListener(fd); err != nil {
			for _, fd := range o.Listeners[i:] {
				unix.Close(fd)
			}
			return fail(err)
		}
		s, err := watch(fd, "UDP")
		if err != nil {
			return fail(err)
		}
		f.readers = append(f.readers, s)
	}
	if f.raw, err = openRaw(f.socket); err != nil {
		return fail(err)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(ep, true)
	}
	if err != nil {
		return fail(fmt.Errorf("make an epoll instance: %w", err))
	}
	if f.epoll, err = watch(ep, "epoll"); err != nil {
		return fail(err)
	}
	f.e.Handle(datagram.ClassUDP, f.receive)
	return f, nil
}

// prepareListener asks for what TPROXY's sockets do not tell by themselves.
func prepareListener(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("listener %d is no socket: %w", fd, err)
	}
	if err := wantControl(fd, domain == unix.AF_INET6); err != nil {
		return err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	_ = unix.SetsockoptInt(fd, mmsg.SolUDP, mmsg.UDPGRO, 1)
	return nil
}

// wantControl asks for DSCP and hop limit of what is received.
func wantControl(fd int, v6 bool) error {
	for _, o := range []struct {
		level, opt int
		name       string
		on         bool
	}{
		{unix.SOL_IP, unix.IP_RECVTOS, "IP_RECVTOS", true},
		{unix.SOL_IP, unix.IP_RECVTTL, "IP_RECVTTL", true},
		{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, "IPV6_RECVTCLASS", v6},
		{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT", v6},
	} {
		if !o.on {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.opt, 1); err != nil {
			return fmt.Errorf("set %s of a UDP socket: %w", o.name, err)
		}
	}
	return nil
}

// Update changes policy, time-out and limits. Endpoint, Listeners, Mark and
// Socket stay as they are.
func (f *Flows) Update(o Options) {
	p := &policy{peer: o.Peer, allow: o.Allow}
	if p.peer == nil {
		p.peer = func(netip.Addr) (string, bool) { return "", false }
	}
	if p.allow == nil {
		p.allow = func(string, netip.AddrPort, netip.AddrPort) error { return errNotAllowed }
	}
	f.policy.Store(p)
	l := limits{timeout: o.Timeout, max: o.MaxFlows, perClient: o.ClientFlows, ratePerClient: o.ClientRate}
	if l.timeout <= 0 {
		l.timeout = defaultTimeout
	}
	if l.max <= 0 {
		l.max = defaultMaxFlows
	}
	if l.perClient <= 0 {
		l.perClient = max(1, l.max/4)
	}
	for _, t := range []struct {
		mu *sync.Mutex
		t  *table
	}{{&f.mu, f.near}, {&f.farMu, f.far}} {
		t.mu.Lock()
		t.t.timeout, t.t.max, t.t.perClient, t.t.ratePerClient = l.timeout, l.max, l.perClient, l.ratePerClient
		t.mu.Unlock()
	}
}

var errNotAllowed = errors.New("no peer may use this gateway")

func (f *Flows) now() time.Duration { return time.Since(f.epoch) }

// Run serves until ctx ends, then closes every socket.
func (f *Flows) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range f.readers {
		wg.Go(func() { f.readClients(s) })
	}
	wg.Go(f.readSinks)
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case <-t.C:
			now := f.now()
			f.mu.Lock()
			f.near.expire(now)
			f.mu.Unlock()
			f.farMu.Lock()
			f.far.expire(now)
			clear(f.own)
			f.farMu.Unlock()
		}
	}
	for _, s := range f.readers {
		s.file.Close()
	}
	f.epoll.file.Close()
	wg.Wait()
	f.closeAll()
	return nil
}

// closeAll closes every descriptor.
func (f *Flows) closeAll() {
	for _, s := range f.readers {
		s.file.Close()
	}
	if f.epoll != nil {
		f.epoll.file.Close()
	}
	f.mu.Lock()
	f.closed = true
	f.near.clear()
	for _, a := range f.answers {
		unix.Close(a.fd)
	}
	f.answers = nil
	raw := f.raw
	f.mu.Unlock()
	f.farMu.Lock()
	f.far.clear()
	f.far.max = 0
	f.farMu.Unlock()
	if raw != nil {
		raw.close()
	}
}

// Stats returns the counters.
func (f *Flows) Stats() Stats {
	c := &f.counts
	s := Stats{
		Refused: c.refused.Load(), Unroutable: c.unroutable.Load(),
		Up: c.up.Load(), Down: c.down.Load(), UpBytes: c.upBytes.Load(), DownBytes: c.downBytes.Load(),
		ICMP: c.icmp.Load(), SocketErrors: c.errs.Load(),
	}
	f.mu.Lock()
	s.NearFlows = len(f.near.tuples)
	s.Opened, s.Expired, s.Evicted = c.near.opened, c.near.expired, c.near.evicted
	s.Refused += c.near.overLimit
	f.mu.Unlock()
	f.farMu.Lock()
	s.FarFlows = len(f.far.tuples)
	s.Opened += c.far.opened
	s.Expired += c.far.expired
	s.Evicted += c.far.evicted
	s.Refused += c.far.overLimit
	f.farMu.Unlock()
	return s
}

// receive takes messages from a peer.
func (f *Flows) receive(s *datagram.Session, payloads [][]byte) {
	if s.Near() {
		f.fromFar(s, payloads)
	} else {
		f.fromNear(s, payloads)
	}
}

// lane spreads flows over the lanes of a session.
func lane(id uint32) uint32 { return id * 2654435761 >> 16 }

// datagrams calls each for every datagram of a message, which the kernel may
// have put together from several of one size.
func datagrams(m *mmsg.Message, each func([]byte)) {
	if m.Segment <= 0 || m.Segment >= len(m.Data) {
		each(m.Data)
		return
	}
	for b := m.Data; len(b) > 0; {
		n := min(m.Segment, len(b))
		each(b[:n])
		b = b[n:]
	}
}
