package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/datagram"
)

const (
	defaultDevice = "mptcp0"
	defaultMTU    = 1500
	readBatch     = 32    // packets between two flushes
	knownMax      = 16384 // pairs of addresses whose verdict is remembered, and hosts whose peer is
	verdictTime   = 30 * time.Second
)

// Tunnel is the TUN device of one gateway.
type Tunnel struct {
	e     *datagram.Endpoint
	log   *slog.Logger
	file  *os.File
	raw   syscall.RawConn
	name  string
	index int
	in    func(func() error) error
	epoch time.Time

	policy atomic.Pointer[policy]

	mu       sync.Mutex
	behind   map[netip.Addr]host // who has sent through which peer
	verdicts map[verdictKey]verdict

	sent, received, sentBytes, recvBytes, unroutable, refused, malformed, writeErrors atomic.Uint64
}

type policy struct {
	peer      func(netip.Addr) (string, bool)
	allow     func(string, netip.Addr, netip.Addr) error
	protocols []uint8
}

// carries tells whether a protocol goes through the tunnel.
func (p *policy) carries(proto uint8) bool {
	if proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP {
		return false
	}
	return p.protocols == nil || slices.Contains(p.protocols, proto)
}

// host is where answers to an address go.
type host struct {
	peer string
	near bool // by the session that we began
}

type verdictKey struct {
	peer     string
	src, dst netip.Addr
}

type verdict struct {
	ok bool
	at time.Duration
}

// New makes the device and sets it up.
func New(o Options) (*Tunnel, error) {
	t := &Tunnel{
		e: o.Endpoint, log: o.Log, name: o.Device, in: o.InNamespace, epoch: time.Now(),
		behind: map[netip.Addr]host{}, verdicts: map[verdictKey]verdict{},
	}
	if t.name == "" {
		t.name = defaultDevice
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.in == nil {
		t.in = func(f func() error) error { return f() }
	}
	mtu := o.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	if mtu < 1280 || mtu > 65535-64 {
		return nil, fmt.Errorf("MTU %d of tunnel device %s: want 1280 to 65471", mtu, t.name)
	}
	t.Update(o)
	if err := t.in(func() error { return t.create(mtu) }); err != nil {
		if t.file != nil {
			t.file.Close()
		}
		return nil, err
	}
	t.e.Handle(datagram.ClassIP, t.receive)
	return t, nil
}

// create makes the device in the current namespace.
func (t *Tunnel) create(mtu int) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun (is the driver tun there?): %w", err)
	}
	ifr, err := unix.NewIfreq(t.name)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("name of tunnel device %q: %w", t.name, err)
	}
	// No offloads are set: what is read are packets as they go over a wire.
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return fmt.Errorf("make tunnel device %s (needs CAP_NET_ADMIN; does another process hold it?): %w", t.name, err)
	}
	t.file = os.NewFile(uintptr(fd), t.name)
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return fmt.Errorf("watch tunnel device %s: %w", t.name, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("ask the kernel about tunnel device %s: %w", t.name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(t.name)
	if err != nil {
		return fmt.Errorf("find tunnel device %s: %w", t.name, err)
	}
	t.index = link.Attrs().Index
	// Packets come out of it with addresses that are not routed into it. And the
	// kernel shall not speak for itself there.
	for _, set := range [][2]string{
		{"ipv4/conf/" + t.name + "/rp_filter", "0"},
		{"ipv4/conf/" + t.name + "/forwarding", "1"},
		{"ipv4/conf/" + t.name + "/send_redirects", "0"},
		{"ipv6/conf/" + t.name + "/addr_gen_mode", "1"},
		{"ipv6/conf/" + t.name + "/accept_ra", "0"},
		{"ipv6/conf/" + t.name + "/router_solicitations", "0"},
	} {
		err := os.WriteFile("/proc/sys/net/"+set[0], []byte(set[1]), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s of tunnel device %s to %s: %w", set[0], t.name, set[1], err)
		}
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set the MTU of tunnel device %s to %d: %w", t.name, mtu, err)
	}
	if err := h.LinkSetTxQLen(link, 1000); err != nil {
		return fmt.Errorf("set the queue of tunnel device %s: %w", t.name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set tunnel device %s up: %w", t.name, err)
	}
	return nil
}

// Run carries packets until ctx ends, then removes the device.
func (t *Tunnel) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { t.file.Close() })
	defer stop()
	buf := make([]byte, 65536)
	var used []*datagram.Session
	for {
		n, err := t.file.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			t.file.Close()
			return fmt.Errorf("read from tunnel device %s: %w", t.name, err)
		}
		used = t.send(buf[:n], used)
		// More that waits goes along before the sessions send.
		_ = t.raw.Read(func(fd uintptr) bool {
			for range readBatch {
				n, err := unix.Read(int(fd), buf)
				if err != nil || n <= 0 {
					break
				}
				used = t.send(buf[:n], used)
			}
			return true
		})
		for i, s := range used {
			s.Flush()
			used[i] = nil
		}
		used = used[:0]
	}
}

// send gives one packet from the device to a session; used collects those to
// flush.
func (t *Tunnel) send(b []byte, used []*datagram.Session) []*datagram.Session {
	h, err := parsePacket(b)
	if err != nil {
		t.malformed.Add(1)
		return used
	}
	p := t.policy.Load()
	if !p.carries(h.proto) {
		t.refused.Add(1)
		return used
	}
	t.mu.Lock()
	to, ok := t.behind[h.dst]
	t.mu.Unlock()
	if !ok {
		to.near = true
		if to.peer, ok = p.peer(h.dst); !ok {
			t.unroutable.Add(1)
			return used
		}
	}
	s := t.e.Session(to.peer, to.near)
	if s == nil {
		t.unroutable.Add(1)
		return used
	}
	if s.Queue(h.hash, datagram.ClassIP, b) != nil {
		t.unroutable.Add(1)
		return used
	}
	t.sent.Add(1)
	t.sentBytes.Add(uint64(len(b)))
	if slices.Contains(used, s) {
		return used
	}
	return append(used, s)
}

// receive writes packets of a peer to the device.
func (t *Tunnel) receive(s *datagram.Session, payloads [][]byte) {
	p := t.policy.Load()
	_ = t.raw.Control(func(fd uintptr) {
		for _, b := range payloads {
			h, err := parsePacket(b)
			if err != nil {
				t.malformed.Add(1)
				continue
			}
			if !p.carries(h.proto) || !t.allowed(p, s, &h) {
				t.refused.Add(1)
				continue
			}
			t.received.Add(1)
			t.recvBytes.Add(uint64(len(b)))
			if _, err := unix.Write(int(fd), b); err != nil {
				t.writeErrors.Add(1)
			}
		}
	})
}

// allowed decides on a packet of a peer and remembers by which peer its source
// is reached. What comes by a session that we began are answers of the far
// side, which policy there let in; here the source has to be one that we send
// to that peer ourselves, save for ICMP, whose errors come from any router.
func (t *Tunnel) allowed(p *policy, s *datagram.Session, h *ipPacket) bool {
	if s.Near() {
		if h.proto == unix.IPPROTO_ICMP || h.proto == unix.IPPROTO_ICMPV6 {
			return true
		}
		peer, ok := p.peer(h.src)
		return ok && peer == s.Peer()
	}
	src, dst := h.src, h.dst
	now := time.Since(t.epoch)
	k := verdictKey{s.Peer(), src, dst}
	t.mu.Lock()
	v, ok := t.verdicts[k]
	t.mu.Unlock()
	if !ok || now-v.at > verdictTime {
		v = verdict{ok: p.allow(s.Peer(), src, dst) == nil, at: now}
		t.mu.Lock()
		if len(t.verdicts) >= knownMax {
			clear(t.verdicts)
		}
		t.verdicts[k] = v
		if v.ok {
			if len(t.behind) >= knownMax {
				clear(t.behind)
			}
			t.behind[src] = host{peer: s.Peer()}
		}
		t.mu.Unlock()
	}
	return v.ok
}

var errNotAllowed = errors.New("no peer may use this gateway")

// Update changes policy and protocols. Endpoint, Device and MTU stay.
func (t *Tunnel) Update(o Options) {
	p := &policy{peer: o.Peer, allow: o.Allow, protocols: o.Protocols}
	if p.peer == nil {
		p.peer = func(netip.Addr) (string, bool) { return "", false }
	}
	if p.allow == nil {
		p.allow = func(string, netip.Addr, netip.Addr) error { return errNotAllowed }
	}
	t.policy.Store(p)
	t.mu.Lock()
	clear(t.verdicts)
	clear(t.behind)
	t.mu.Unlock()
}

// Device returns the name and index of the device.
func (t *Tunnel) Device() (name string, index int) { return t.name, t.index }

// Stats returns the counters.
func (t *Tunnel) Stats() Stats {
	return Stats{
		Sent: t.sent.Load(), Received: t.received.Load(), SentBytes: t.sentBytes.Load(), RecvBytes: t.recvBytes.Load(),
		Unroutable: t.unroutable.Load(), Refused: t.refused.Load(), Malformed: t.malformed.Load(), WriteErrors: t.writeErrors.Load(),
	}
}
