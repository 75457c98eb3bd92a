// Package bed builds client - near gateway - paths - far gateway - sink from network namespaces and veth pairs, with all
// sysctls as a fresh namespace has them, except that gateways forward. Paths are shaped by tbf on the gateways; where a
// path needs delay, loss or faults, a wire (package wire) in a namespace of its own stands between the gateways.
//
// Addresses: client 192.168.1.2 and fd01::2, sink 192.168.2.2 and fd02::2, gateways .1 and ::1 there; path N has
// 10.N.0.1 and fd10:N::1 at near, .2 and ::2 at far. Devices: lan and p1, p2, … on gateways, eth0 on hosts. Plain routes
// between client and sink lead over path 1. Namespaces are named after this process, so several beds may stand at once;
// those of a process that was killed are removed by the next New. It needs root and iproute2.
package bed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/wire"
)

// Addresses of the end hosts and the first path.
var (
	Client4 = netip.MustParseAddr("192.168.1.2")
	Sink4   = netip.MustParseAddr("192.168.2.2")
	Client6 = netip.MustParseAddr("fd01::2")
	Sink6   = netip.MustParseAddr("fd02::2")
)

// Shaping of the reference sheet, section 10.
const (
	burst = "16kb"
	queue = "50ms"
)

// Path is what one path between the gateways is like.
type Path struct {
	Rate   float64       // Mbit/s, each direction, 0 = not shaped
	Delay  time.Duration // one way
	Jitter time.Duration // added to Delay, even distribution, order is kept
	Loss   float64       // share of packets, each direction, 0.01 = 1 %
}

// Config says what to build.
type Config struct {
	Paths      []Path
	Faults     bool   // Cut and Black will be used: put a wire into every path
	Congestion string // net.ipv4.tcp_congestion_control of all namespaces, empty = as a fresh namespace has it
	Seed       uint64 // of losses and jitter
}

// Bed is a running bed.
type Bed struct {
	Client, Near, Far, Sink *Node
	Paths                   []Path

	mid   *Node
	wires []*wire.Wire // one a path, nil without mid
}

var count atomic.Int64

const prefix = "wb" // of namespaces: wb<pid>x<number of the bed>-<node>

// Usable reports why no bed can be built here, nil if it can.
func Usable() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for _, p := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is missing: install iproute2", p)
		}
	}
	return nil
}

// New builds a bed. Close removes it.
func New(ctx context.Context, c Config) (b *Bed, err error) {
	if err := Usable(); err != nil {
		return nil, err
	}
	if err := removeStale(); err != nil {
		return nil, err
	}
	b = &Bed{Paths: c.Paths}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
			b = nil
		}
	}()
	number := count.Add(1)
	nodes := []struct {
		at   **Node
		name string
	}{{&b.Client, "client"}, {&b.Near, "near"}, {&b.Far, "far"}, {&b.Sink, "sink"}}
	if c.needsWire() {
		nodes = append(nodes, struct {
			at   **Node
			name string
		}{&b.mid, "mid"})
	}
	for _, n := range nodes {
		if *n.at, err = newNode(n.name, fmt.Sprintf("%s%dx%d-%s", prefix, os.Getpid(), number, n.name)); err != nil {
			return b, err
		}
	}
	if b.mid != nil {
		// Nothing but the wire may speak on its devices.
		if err = b.mid.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
			return b, err
		}
	}
	if c.Congestion != "" {
		for _, n := range []*Node{b.Client, b.Near, b.Far, b.Sink} {
			if err = n.Sysctl("net.ipv4.tcp_congestion_control", c.Congestion); err != nil {
				return b, err
			}
		}
	}
	for _, n := range []*Node{b.Near, b.Far} {
		for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			if err = n.Sysctl(s, "1"); err != nil {
				return b, err
			}
		}
	}
	for _, step := range b.script() {
		if err = step.node.Input(ctx, step.text, "ip", "-batch", "-"); err != nil {
			return b, err
		}
	}
	for i, p := range c.Paths {
		dev := device(i)
		for _, n := range []*Node{b.Near, b.Far} {
			if b.mid != nil {
				// The wire carries packets as a cable does: of MTU size and with their checksums.
				if err = n.Do(func() error { return noOffload(dev) }); err != nil {
					return b, fmt.Errorf("switch off offloads of %s on %s: %w", dev, n.Name, err)
				}
			}
			if err = b.shape(ctx, n, dev, p.Rate); err != nil {
				return b, err
			}
		}
		if b.mid != nil {
			if err = b.addWire(i, c.Seed); err != nil {
				return b, err
			}
		}
	}
	return b, nil
}

func (c Config) needsWire() bool {
	for _, p := range c.Paths {
		if p.Delay > 0 || p.Jitter > 0 || p.Loss > 0 {
			return true
		}
	}
	return c.Faults
}

func device(path int) string { return "p" + strconv.Itoa(path+1) }

type step struct {
	node *Node
	text string
}

// script are the batches of ip(8) that make devices, addresses and routes.
func (b *Bed) script() []step {
	var links [2]strings.Builder // on near, on mid
	near, far := &strings.Builder{}, &strings.Builder{}
	fmt.Fprintf(&links[0], "link add lan type veth peer name eth0 netns %s\n", b.Client.NS)
	for i := range b.Paths {
		d, n := device(i), i+1
		if b.mid == nil {
			fmt.Fprintf(&links[0], "link add %s type veth peer name %s netns %s\n", d, d, b.Far.NS)
		} else {
			fmt.Fprintf(&links[1], "link add near%d type veth peer name %s netns %s\n", n, d, b.Near.NS)
			fmt.Fprintf(&links[1], "link add far%d type veth peer name %s netns %s\n", n, d, b.Far.NS)
			fmt.Fprintf(&links[1], "link set near%d up\nlink set far%d up\n", n, n)
		}
		for end, w := range []*strings.Builder{near, far} {
			fmt.Fprintf(w, "addr add 10.%d.0.%d/24 dev %s\naddr add fd10:%d::%d/64 dev %s nodad\nlink set %s up\n", n, end+1, d, n, end+1, d, d)
		}
	}
	gateway := func(w *strings.Builder, own, other, peer int) string {
		return fmt.Sprintf("link set lo up\n%saddr add 192.168.%d.1/24 dev lan\naddr add fd0%d::1/64 dev lan nodad\nlink set lan up\n"+
			"route add 192.168.%d.0/24 via 10.1.0.%d\nroute add fd0%d::/64 via fd10:1::%d\n", w, own, own, other, peer, other, peer)
	}
	host := func(net int) string {
		return fmt.Sprintf("link set lo up\naddr add 192.168.%d.2/24 dev eth0\naddr add fd0%d::2/64 dev eth0 nodad\nlink set eth0 up\n"+
			"route add default via 192.168.%d.1\nroute add default via fd0%d::1\n", net, net, net, net)
	}
	steps := []step{
		{b.Near, links[0].String()},
		{b.Far, fmt.Sprintf("link add lan type veth peer name eth0 netns %s\n", b.Sink.NS)},
	}
	if b.mid != nil {
		steps = append(steps, step{b.mid, links[1].String()})
	}
	return append(steps,
		step{b.Client, host(1)}, step{b.Sink, host(2)},
		step{b.Near, gateway(near, 1, 2, 2)}, step{b.Far, gateway(far, 2, 1, 1)})
}

func (b *Bed) shape(ctx context.Context, n *Node, dev string, rate float64) error {
	if rate == 0 {
		return nil
	}
	_, err := n.Output(ctx, "tc", "qdisc", "replace", "dev", dev, "root", "tbf",
		"rate", fmt.Sprintf("%dbit", int64(rate*1e6)), "burst", burst, "latency", queue)
	return err
}

// Shape changes the rate of a path (counted from 0), Mbit/s each way, while traffic runs.
func (b *Bed) Shape(ctx context.Context, path int, rate float64) error {
	b.Paths[path].Rate = rate
	return errors.Join(b.shape(ctx, b.Near, device(path), rate), b.shape(ctx, b.Far, device(path), rate))
}

func (b *Bed) addWire(path int, seed uint64) error {
	p := b.Paths[path]
	var w *wire.Wire
	err := b.mid.Do(func() error {
		var err error
		w, err = wire.Open(fmt.Sprintf("near%d", path+1), fmt.Sprintf("far%d", path+1), seed+uint64(path))
		return err
	})
	if err != nil {
		return fmt.Errorf("put a wire into path %d: %w", path+1, err)
	}
	k := wire.Kind{Delay: p.Delay, Jitter: p.Jitter, Loss: p.Loss}
	w.Set(wire.Up, k)
	w.Set(wire.Down, k)
	b.wires = append(b.wires, w)
	return nil
}

// Direction of traffic on a path.
type Direction int

// The directions: Up is from near to far.
const (
	Both Direction = iota
	Up
	Down
)

func (d Direction) String() string { return [...]string{"both", "up", "down"}[d] }

// Cut pulls the plug of a path (counted from 0), so that both gateways lose the carrier, or puts it back.
func (b *Bed) Cut(ctx context.Context, path int, cut bool) error {
	if b.mid == nil {
		return errors.New("this bed has no wires: set Faults in its Config")
	}
	state := "up"
	if cut {
		state = "down"
	}
	return b.mid.Input(ctx, fmt.Sprintf("link set near%d %s\nlink set far%d %s\n", path+1, state, path+1, state), "ip", "-batch", "-")
}

// Black lets all packets of a path (counted from 0) vanish while the link stays up, or pass again.
func (b *Bed) Black(path int, d Direction, black bool) error {
	if b.mid == nil {
		return errors.New("this bed has no wires: set Faults in its Config")
	}
	for dir, wd := range map[Direction]wire.Direction{Up: wire.Up, Down: wire.Down} {
		if d == Both || d == dir {
			b.wires[path].Change(wd, func(k *wire.Kind) { k.Black = black })
		}
	}
	return nil
}

// Quality changes delay, jitter and loss of a path (counted from 0), both ways, while traffic runs.
func (b *Bed) Quality(path int, p Path) error {
	if b.mid == nil {
		return errors.New("this bed has no wires: set Faults in its Config")
	}
	for _, d := range []wire.Direction{wire.Up, wire.Down} {
		b.wires[path].Change(d, func(k *wire.Kind) { k.Delay, k.Jitter, k.Loss = p.Delay, p.Jitter, p.Loss })
	}
	return nil
}

// Rates are the rates of all paths, Mbit/s.
func (b *Bed) Rates() []float64 {
	var r []float64
	for _, p := range b.Paths {
		r = append(r, p.Rate)
	}
	return r
}

// Close removes the bed. Programs in it must have ended.
func (b *Bed) Close() error {
	var errs []error
	for _, w := range b.wires {
		errs = append(errs, w.Close())
	}
	for _, n := range []*Node{b.Client, b.Near, b.Far, b.Sink, b.mid} {
		if n != nil {
			errs = append(errs, n.close())
		}
	}
	return errors.Join(errs...)
}

// removeStale removes the namespaces of processes of ours that are no more.
func removeStale() error {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("look for old network namespaces: %w", err)
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		digits, _, hasX := strings.Cut(rest, "x")
		pid, perr := strconv.Atoi(digits)
		if !ok || !hasX || perr != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			continue
		}
		// Another process may be removing it at this moment: then it is gone all the same.
		if err := deleteNS(e.Name()); err != nil {
			if _, serr := os.Stat("/run/netns/" + e.Name()); serr == nil {
				return err
			}
		}
	}
	return nil
}

// noOffload switches off transmit checksums of a device, and with them segmentation offloads (linux/ethtool.h).
func noOffload(dev string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}
