// Package bed puts a topology into operation: nodes in QEMU guests, in network namespaces, or some in each, joined by
// links that can be shaped, watched and broken. What it offers is the same for both back ends: run a command on a node,
// let an event happen, look at what a link carried.
//
// A guest runs the image of its role, configured by an archive of settings that the image restores at its first boot; it
// shapes what it sends itself, with tc. A namespace runs the programs of bin/host with the same settings. Two namespaces
// are joined by two veth pairs and a bridge in a namespace between them, or, where the link has more than a rate, by
// [wire.Wire]; two guests by [lab.Link]; a guest and a namespace by both.
package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"weft/test-vm/lab"
	"weft/test-vm/netns"
	"weft/test-vm/topology"
	"weft/test-vm/watch"
)

// Options say how a topology is put into operation.
type Options struct {
	Backend topology.Backend
	// ImageDir holds the images, one folder a role as the builder writes it; empty = bin/lab in the checkout. End hosts and
	// plain routers run the role router.
	ImageDir string
	// HostDir holds the programs that namespaces run; empty = bin/host in the checkout.
	HostDir string
	// PcapDir gets a capture of every link; empty = none.
	PcapDir string
	// Progress is told what is going on, a line at a time; may be nil.
	Progress func(format string, args ...any)
	Seed     uint64 // of chance on wires
}

// Bed is a topology in operation.
type Bed struct {
	Topology *topology.Topology
	Start    time.Time // of the watchers' bins

	o     Options
	dir   string
	probe string // the program that checks run on nodes
	nodes map[*topology.Node]node
	links map[*topology.Link]link
	watch map[*topology.Link]*watch.Link
	hub   *netns.Space // the namespace in the middle of links
}

// node is a machine in operation.
type node interface {
	boot(ctx context.Context) error
	exec(ctx context.Context, script string) (lab.Result, error)
	kill()
	restart(ctx context.Context) error
	shell() Shell
	evidence(ctx context.Context, dir string) error
	close() error
}

// link is a cable in operation.
type link interface {
	carrier(ctx context.Context, on bool) error
	black(on bool) error
	strip(on bool) error
	set(ctx context.Context, l *topology.Link) error
	close() error
}

// New puts a topology into operation and returns when every node is ready. Close must follow.
func New(ctx context.Context, t *topology.Topology, o Options) (_ *Bed, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	if !t.On(o.Backend) {
		return nil, fmt.Errorf("topology %s does not run on %s, only on %v", t.Name, o.Backend, t.Backends)
	}
	t = t.Air()
	root, err := lab.Root()
	if err != nil && (o.ImageDir == "" || o.HostDir == "") {
		return nil, err
	}
	if o.ImageDir == "" {
		o.ImageDir = filepath.Join(root, "bin", "lab")
	}
	if o.HostDir == "" {
		o.HostDir = filepath.Join(root, "bin", "host")
	}
	b := &Bed{
		Topology: t, Start: time.Now(), o: o,
		nodes: map[*topology.Node]node{}, links: map[*topology.Link]link{}, watch: map[*topology.Link]*watch.Link{},
	}
	if b.dir, err = os.MkdirTemp("", "weft-lab-"); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.probe, err = buildProbe(ctx, b.dir); err != nil {
		return nil, err
	}
	for _, l := range t.Links {
		w := watch.New(l.Name, b.Start)
		if o.PcapDir != "" {
			if err := w.Pcap(filepath.Join(o.PcapDir, l.Name+".pcap")); err != nil {
				return nil, err
			}
		}
		b.watch[l] = w
	}
	if err := b.plug(ctx); err != nil {
		return nil, err
	}
	if err := b.boot(ctx); err != nil {
		return nil, err
	}
	return b, b.ready(ctx)
}

// readyBound is how long nodes may take until they do their work, after all are up.
const readyBound = 90 * time.Second

// ready waits until the nodes that have a command for it say so.
func (b *Bed) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lab.Timeout(readyBound))
	defer cancel()
	for _, n := range b.Topology.Nodes {
		for n.Ready != "" {
			r, err := b.nodes[n].exec(ctx, n.Ready)
			if err != nil {
				return fmt.Errorf("node %s: wait until it is ready: %w", n.Name, err)
			}
			if r.Code == 0 {
				b.o.Progress("%s does its work", n.Name)
				break
			}
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("node %s: %q does not succeed within %s: exit status %d: %s", n.Name, n.Ready, readyBound, r.Code, r.Output)
			}
		}
	}
	return nil
}

// in is the back end of a node.
func (b *Bed) in(n *topology.Node) topology.Backend {
	if b.o.Backend == topology.Mixed {
		return n.Backend
	}
	return b.o.Backend
}

// plug makes nodes and links; the nodes are still off.
func (b *Bed) plug(ctx context.Context) error {
	cables := map[*topology.Link]*lab.Link{}
	for _, n := range b.Topology.Nodes {
		if b.in(n) == topology.Netns {
			s, err := newSpaceNode(b, n)
			if err != nil {
				return err
			}
			b.nodes[n] = s
		}
	}
	for _, l := range b.Topology.Links {
		a, z := b.in(l.Ends[0].Node), b.in(l.Ends[1].Node)
		if a == topology.QEMU || z == topology.QEMU {
			cables[l] = lab.NewLink(l.Name)
		}
		var made link
		var err error
		switch {
		case a == topology.QEMU && z == topology.QEMU:
			made = newGuestLink(b, l, cables[l])
		case a == topology.Netns && z == topology.Netns && !b.Topology.Impaired(l):
			made, err = newVethLink(b, l)
		default:
			made, err = newWireLink(b, l, cables[l])
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", l.Name, err)
		}
		b.links[l] = made
	}
	for _, n := range b.Topology.Nodes {
		if b.in(n) == topology.QEMU {
			g, err := newGuestNode(ctx, b, n, cables)
			if err != nil {
				return err
			}
			b.nodes[n] = g
		}
	}
	return nil
}

// boot switches all nodes on, as many guests at once as there are processors: emulation takes one each.
func (b *Bed) boot(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wait sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, max(processors(), 2))
	// Hosts and plain routers need nothing of the others; gateways dial each other, and do so again until they succeed.
	for _, n := range b.Topology.Nodes {
		wait.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			start := time.Now()
			if err := b.nodes[n].boot(ctx); err != nil {
				mu.Lock()
				if len(errs) == 0 { // what comes after it was cut short by it
					errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
				}
				mu.Unlock()
				cancel()
				return
			}
			b.o.Progress("%s is ready after %.1f s (%s)", n.Name, time.Since(start).Seconds(), b.in(n))
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// Exec runs a script with sh on a node; an exit status other than 0 is no error.
func (b *Bed) Exec(ctx context.Context, name, script string) (lab.Result, error) {
	n, err := b.node(name)
	if err != nil {
		return lab.Result{}, err
	}
	return n.exec(ctx, script)
}

func (b *Bed) node(name string) (node, error) {
	n := b.nodes[b.Topology.Node(name)]
	if n == nil {
		return nil, fmt.Errorf("topology %s has no node %q", b.Topology.Name, name)
	}
	return n, nil
}

// In is the back end that a node of that name runs in.
func (b *Bed) In(name string) topology.Backend { return b.in(b.Topology.Node(name)) }

// Watch is what is seen on the link of that name.
func (b *Bed) Watch(name string) *watch.Link { return b.watch[b.Topology.Link(name)] }

// Do lets an event happen. It returns when it has happened; a restarted node is ready then.
func (b *Bed) Do(ctx context.Context, e *topology.Event) error {
	fail := func(err error) error {
		if err != nil {
			return fmt.Errorf("event %s: %w", e.What(), err)
		}
		return nil
	}
	if e.Node != "" {
		n, err := b.node(e.Node)
		if err != nil {
			return fail(err)
		}
		if e.Do == topology.Kill {
			n.kill()
			return nil
		}
		return fail(n.restart(ctx))
	}
	l := b.Topology.Link(e.Link)
	in := b.links[l]
	switch e.Do {
	case topology.Down, topology.Up:
		return fail(in.carrier(ctx, e.Do == topology.Up))
	case topology.Black, topology.Pass:
		return fail(in.black(e.Do == topology.Black))
	case topology.Strip, topology.Unstrip:
		return fail(in.strip(e.Do == topology.Strip))
	case topology.Degrade:
		return fail(in.set(ctx, degraded(l, e)))
	case topology.Restore:
		return fail(in.set(ctx, l))
	}
	return fail(fmt.Errorf("unknown action %q", e.Do))
}

// Evidence writes what the nodes have to say (logs, consoles) to a folder: for the moment after a failure.
func (b *Bed) Evidence(ctx context.Context, dir string) error {
	var errs []error
	for _, n := range b.Topology.Nodes {
		if in := b.nodes[n]; in != nil {
			errs = append(errs, in.evidence(ctx, dir))
		}
	}
	return errors.Join(errs...)
}

// Close switches everything off and removes what was made.
func (b *Bed) Close() error {
	var mu sync.Mutex
	var errs []error
	note := func(err error) {
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
	}
	var wait sync.WaitGroup
	for _, n := range b.nodes {
		wait.Go(func() { note(n.close()) })
	}
	wait.Wait()
	for _, l := range b.links {
		note(l.close())
	}
	if b.hub != nil {
		note(b.hub.Close())
	}
	for _, w := range b.watch {
		note(w.Close())
	}
	note(os.RemoveAll(b.dir))
	return errors.Join(errs...)
}
