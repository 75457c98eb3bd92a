package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/test-vm/lab"
	"weft/test-vm/netns"
	"weft/test-vm/topology"
	"weft/test-vm/watch"
	"weft/test-vm/wire"
)

// vethLink joins two namespaces at the kernel's speed: a veth pair from each to a bridge in the namespace between.
type vethLink struct {
	bed    *Bed
	l      *topology.Link
	bridge string
	ports  [2]string
	socket *os.File // sees every frame at port 0
	done   chan struct{}
}

// hubSpace is the namespace between the nodes, made when first needed.
func (b *Bed) hubSpace() (*netns.Space, error) {
	if b.hub == nil {
		s, err := netns.New("hub")
		if err != nil {
			return nil, err
		}
		b.hub = s
		return s, s.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")
	}
	return b.hub, nil
}

func newVethLink(b *Bed, l *topology.Link) (*vethLink, error) {
	hub, err := b.hubSpace()
	if err != nil {
		return nil, err
	}
	i := len(b.links)
	v := &vethLink{bed: b, l: l, bridge: fmt.Sprintf("br%d", i), ports: [2]string{fmt.Sprintf("l%da", i), fmt.Sprintf("l%db", i)}, done: make(chan struct{})}
	err = hub.Do(func() error {
		noSnoop := false
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: v.bridge, MTU: l.MTU}, MulticastSnooping: &noSnoop}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge %s: %w", v.bridge, err)
		}
		for e, end := range l.Ends {
			space := b.nodes[end.Node].(*spaceNode).space
			pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: v.ports[e], MTU: l.MTU}, PeerName: end.Device, PeerNamespace: netlink.NsFd(space.Fd())}
			if err := netlink.LinkAdd(pair); err != nil {
				return fmt.Errorf("make veth pair %s: %w", v.ports[e], err)
			}
			if err := netlink.LinkSetMaster(pair, bridge); err != nil {
				return fmt.Errorf("join %s to %s: %w", v.ports[e], v.bridge, err)
			}
			if err := netlink.LinkSetUp(pair); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		return nil, err
	}
	return v, hub.Do(v.listen)
}

// allProtocols is ETH_P_ALL in network byte order.
const allProtocols = unix.ETH_P_ALL << 8

// listen opens the packet socket; the calling thread is in the hub.
func (v *vethLink) listen() error {
	dev, err := netlink.LinkByName(v.ports[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: dev.Attrs().Index})
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("packet socket on %s: %w", v.ports[0], err)
	}
	v.socket = os.NewFile(uintptr(fd), "packet")
	go v.observe()
	return nil
}

// observe hands every frame to the watcher until the socket is closed.
func (v *vethLink) observe() {
	defer close(v.done)
	raw, err := v.socket.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, watch.Head)
	if v.bed.o.PcapDir != "" {
		buf = make([]byte, 1<<17)
	}
	w := v.bed.watch[v.l]
	raw.Read(func(fd uintptr) bool { // ends when the socket is closed
		for {
			n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN):
				continue
			case err != nil:
				return true
			}
			dir := 0
			if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
				dir = 1
			}
			w.Frame(dir, time.Now(), n, buf[:min(n, len(buf))])
		}
	})
}

func (v *vethLink) carrier(_ context.Context, on bool) error {
	return v.bed.hub.Do(func() error {
		for _, name := range v.ports {
			dev, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			set := netlink.LinkSetDown
			if on {
				set = netlink.LinkSetUp
			}
			if err := set(dev); err != nil {
				return fmt.Errorf("carrier of %s: %w", name, err)
			}
		}
		return nil
	})
}

// black takes a port off the bridge: the carrier stays, the frames go nowhere.
func (v *vethLink) black(on bool) error {
	return v.bed.hub.Do(func() error {
		dev, err := netlink.LinkByName(v.ports[1])
		if err != nil {
			return err
		}
		if on {
			return netlink.LinkSetNoMaster(dev)
		}
		bridge, err := netlink.LinkByName(v.bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(dev, bridge)
	})
}

func (v *vethLink) strip(bool) error {
	return errors.New("a veth link cannot strip options") // Topology.Impaired makes a wire of such links
}

func (v *vethLink) set(ctx context.Context, l *topology.Link) error {
	for _, p := range v.l.Ends {
		if err := v.bed.nodes[p.Node].(*spaceNode).run(ctx, shape(p, l, false)); err != nil {
			return err
		}
	}
	return nil
}

func (v *vethLink) close() error {
	if v.socket == nil {
		return nil
	}
	err := v.socket.Close()
	<-v.done
	return err
}

// wireLink joins two namespaces, or a namespace and a guest, by a wire in this process. A namespace shapes the rate
// itself, by tc as elsewhere: so its TCP sees the queue in front of it. What else a link does, the wire does.
type wireLink struct {
	bed    *Bed
	l      *topology.Link
	wire   *wire.Wire
	taps   [2]*wire.TAP // nil at a guest's end
	cable  *lab.Link    // to the guest, nil if there is none
	cancel context.CancelFunc
	done   chan error
}

func newWireLink(b *Bed, l *topology.Link, cable *lab.Link) (*wireLink, error) {
	w := &wireLink{bed: b, l: l, cable: cable, done: make(chan error, 1)}
	var ends [2]wire.End
	for e, p := range l.Ends {
		space, ok := b.nodes[p.Node].(*spaceNode)
		if !ok {
			ends[e] = newCableEnd(cable)
			continue
		}
		if err := space.space.Do(func() (err error) {
			w.taps[e], err = wire.OpenTAP(p.Device)
			return err
		}); err != nil {
			return nil, err
		}
		ends[e] = w.taps[e]
	}
	watcher := b.watch[l]
	w.wire = wire.New(ends[0], ends[1], w.figures(l), b.o.Seed+uint64(len(b.links)), func(dir int, at time.Time, frame []byte) {
		watcher.Frame(dir, at, len(frame), frame)
	})
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() { w.done <- w.wire.Run(ctx) }()
	return w, nil
}

// figures are what the wire does: in a guest's direction all but what the guest's tc does.
func (w *wireLink) figures(l *topology.Link) [2]wire.Figures {
	var f [2]wire.Figures
	for e, p := range w.l.Ends {
		f[e].Strip = l.Strip
		if w.bed.in(p.Node) == topology.Netns {
			f[e].Delay, f[e].Jitter, f[e].Loss = l.Delay, l.Jitter, float64(l.Loss)/100
		}
	}
	return f
}

func (w *wireLink) change(f func(*wire.Figures)) {
	for dir := range 2 {
		fig := w.wire.Figures(dir)
		f(&fig)
		w.wire.Set(dir, fig)
	}
}

func (w *wireLink) carrier(ctx context.Context, on bool) error {
	w.change(func(f *wire.Figures) { f.Black = !on })
	for e, p := range w.l.Ends {
		var err error
		if w.taps[e] != nil {
			err = w.taps[e].Carrier(on)
		} else if g, ok := w.bed.nodes[p.Node].(*guestNode); ok {
			err = g.carrier(ctx, p, on)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *wireLink) black(on bool) error {
	w.change(func(f *wire.Figures) { f.Black = on })
	return nil
}

func (w *wireLink) strip(on bool) error {
	w.change(func(f *wire.Figures) { f.Strip = on })
	return nil
}

func (w *wireLink) set(ctx context.Context, l *topology.Link) error {
	want := w.figures(l)
	for dir := range 2 {
		fig := w.wire.Figures(dir)
		fig.Delay, fig.Jitter, fig.Loss = want[dir].Delay, want[dir].Jitter, want[dir].Loss
		w.wire.Set(dir, fig)
	}
	for _, p := range w.l.Ends {
		if err := w.bed.shape(ctx, p, l); err != nil {
			return err
		}
	}
	return nil
}

func (w *wireLink) close() error {
	w.cancel()
	if err := <-w.done; err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("link %s: %w", w.l.Name, err)
	}
	return nil
}

// cableEnd is the guest's end of a wire: a port of its [lab.Link].
type cableEnd struct {
	plug   *lab.Plug
	frames chan []byte
	closed chan struct{}
}

// cableQueue is how many frames may wait between a guest and a wire.
const cableQueue = 1024

func newCableEnd(cable *lab.Link) *cableEnd {
	c := &cableEnd{frames: make(chan []byte, cableQueue), closed: make(chan struct{})}
	c.plug = cable.Join("wire", func(frame []byte) error {
		select {
		case c.frames <- append([]byte(nil), frame...):
			return nil
		default:
			return errors.New("the wire is behind")
		}
	})
	return c
}

func (c *cableEnd) Read(p []byte) (int, error) {
	select {
	case f := <-c.frames:
		return copy(p, f), nil
	case <-c.closed:
		return 0, os.ErrClosed
	}
}

func (c *cableEnd) Write(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, os.ErrClosed
	default:
		c.plug.Send(p)
		return len(p), nil
	}
}

func (c *cableEnd) Close() error {
	c.plug.Leave()
	close(c.closed)
	return nil
}
