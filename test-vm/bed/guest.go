package bed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"weft/test-vm/lab"
	"weft/test-vm/topology"
	"weft/test-vm/watch"
	"weft/test-vm/wire"
)

// hostRole is the role of end hosts and plain routers: it forwards nothing by itself and intercepts nothing.
const hostRole = "router"

func processors() int { return runtime.NumCPU() }

// buildProbe makes the program that checks run on nodes, for namespaces and guests alike.
func buildProbe(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "bin", "lab-probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "weft/test-vm/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the lab's probe: %w: %s", err, out)
	}
	return path, nil
}

// guestNode is a node in QEMU.
type guestNode struct {
	bed *Bed
	n   *topology.Node
	m   *lab.Machine
}

// bootBound is how long a guest may take to be ready: several boot at once on few processors.
const bootBound = 4 * time.Minute

func newGuestNode(ctx context.Context, b *Bed, n *topology.Node, cables map[*topology.Link]*lab.Link) (_ *guestNode, err error) {
	fail := func(err error) (*guestNode, error) { return nil, fmt.Errorf("node %s: %w", n.Name, err) }
	role := n.Role
	if n.Kind != topology.Image {
		role = hostRole
	}
	images, err := lab.FindImages(filepath.Join(b.o.ImageDir, role), n.Board)
	if err != nil {
		return fail(fmt.Errorf("image of role %s: %w (make lab-images)", role, err))
	}
	image, err := images.Path("combined")
	if err != nil {
		return fail(err)
	}
	cfg := lab.Config{
		Name: n.Name, Memory: n.Memory, CPUs: n.CPUs, OneThread: n.CPUs == 1, Consoles: []string{"hvc0"},
		Disks: []lab.Disk{{Image: image}}, Dir: b.dir,
	}
	for _, p := range n.Ports {
		cfg.NICs = append(cfg.NICs, lab.NIC{Link: cables[p.Link]})
	}
	m, err := lab.New(ctx, cfg)
	if err != nil {
		return fail(err)
	}
	g := &guestNode{bed: b, n: n, m: m}
	if err := g.configure(ctx); err != nil {
		m.Close()
		return fail(err)
	}
	return g, nil
}

// configure leaves the node's settings on partition 1, where the image looks for a saved configuration.
func (g *guestNode) configure(ctx context.Context) error {
	files, err := uciFiles(g.n)
	if err != nil {
		return err
	}
	type file struct {
		mode int64
		data []byte
	}
	tree := map[string]file{}
	for name, text := range files {
		tree["etc/config/"+name] = file{0o600, text}
	}
	var settings strings.Builder
	for _, kv := range sysctls(g.n) {
		fmt.Fprintf(&settings, "%s=%s\n", kv[0], kv[1])
	}
	tree["etc/sysctl.d/90-lab.conf"] = file{0o644, []byte(settings.String())}
	probe, err := os.ReadFile(g.bed.probe)
	if err != nil {
		return err
	}
	tree["usr/sbin/lab-probe"] = file{0o755, probe}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		f := tree[name]
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return err
	}
	archive := filepath.Join(g.m.Dir(), "sysupgrade.tgz")
	if err := os.WriteFile(archive, b.Bytes(), 0o600); err != nil {
		return err
	}
	parts, err := lab.Partitions(g.m.Disk(0))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(parts, func(p lab.Partition) bool { return p.Number == 1 })
	if i < 0 {
		return fmt.Errorf("the image has no partition 1 to leave the settings on")
	}
	mcopy, err := lab.PinnedTool(ctx, "mcopy")
	if err != nil {
		return err
	}
	cmd := mcopy.Command(ctx, "-i", fmt.Sprintf("%s@@%d", g.m.Disk(0), parts[i].Start), archive, "::/sysupgrade.tgz")
	cmd.Env = append(cmd.Env, "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("leave the settings on partition 1: %w: %s", err, out)
	}
	return nil
}

func (g *guestNode) boot(ctx context.Context) error {
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(bootBound))
	defer cancel()
	if _, err := g.m.StartTo(bound, lab.StartLine); err != nil {
		return err
	}
	if _, err := g.m.WaitReady(bound); err != nil {
		return err
	}
	commands := []string{"sysctl -p /etc/sysctl.d/90-lab.conf"}
	for _, r := range g.n.Routes { // what the image's network service does not know yet
		commands = append(commands, fmt.Sprintf("ip route replace %s via %s", r.Prefix, r.Via))
	}
	for _, p := range g.n.Ports {
		commands = append(commands, shape(p, p.Link, true)...)
	}
	if err := g.run(bound, commands); err != nil {
		return err
	}
	for _, script := range g.n.Programs {
		if err := g.run(bound, []string{"lab-probe start " + quote(script)}); err != nil {
			return err
		}
	}
	return nil
}

func (g *guestNode) run(ctx context.Context, commands []string) error {
	r, err := g.exec(ctx, strings.Join(commands, " && "))
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: exit status %d: %s", strings.Join(commands, "; "), r.Code, strings.TrimSpace(r.Output))
	}
	return err
}

func (g *guestNode) exec(ctx context.Context, script string) (lab.Result, error) {
	return g.m.Run(ctx, script)
}

func (g *guestNode) kill() { g.m.Kill() }

func (g *guestNode) restart(ctx context.Context) error { return g.boot(ctx) }

// carrier plugs the cable of a port in or out; the guest sees it.
func (g *guestNode) carrier(ctx context.Context, p *topology.Port, on bool) error {
	if !g.m.Running() {
		return nil
	}
	return g.m.QMP(ctx, "set_link", map[string]any{"name": fmt.Sprintf("nic%d", slices.Index(g.n.Ports, p)), "up": on}, nil)
}

func (g *guestNode) evidence(ctx context.Context, dir string) error {
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(time.Minute))
	defer cancel()
	err := g.m.Save(bound, dir)
	if !g.m.Running() {
		return err
	}
	r, e := g.exec(bound, "ip addr; ip route show table all; ip -6 route show table all; ip rule; tc -s qdisc; mptcp status 2>/dev/null; mptcp paths 2>/dev/null; tail -n 50 /tmp/lab-jobs/*/output; true")
	return errors.Join(err, e, os.WriteFile(filepath.Join(dir, g.n.Name+"-network.txt"), []byte(r.Output), 0o644))
}

func (g *guestNode) close() error { return g.m.Close() }

// shape has the node at a port send as the link says.
func (b *Bed) shape(ctx context.Context, p *topology.Port, l *topology.Link) error {
	switch n := b.nodes[p.Node].(type) {
	case *guestNode:
		if !n.m.Running() {
			return nil
		}
		return n.run(ctx, shape(p, l, true))
	case *spaceNode:
		return n.run(ctx, shape(p, l, false))
	}
	return nil
}

// guestLink joins two guests.
type guestLink struct {
	bed   *Bed
	l     *topology.Link
	cable *lab.Link
	faults
}

func newGuestLink(b *Bed, l *topology.Link, cable *lab.Link) *guestLink {
	g := &guestLink{bed: b, l: l, cable: cable}
	g.stripping.Store(l.Strip)
	w := b.watch[l]
	length := watch.Head
	if b.o.PcapDir != "" {
		length = 1 << 17
	}
	cable.Filter(func(from string, frame []byte) bool {
		if g.silent.Load() {
			return false
		}
		if g.stripping.Load() {
			wire.StripMPTCP(frame)
		}
		dir := 0
		if from == l.Ends[1].Node.Name {
			dir = 1
		}
		w.Frame(dir, time.Now(), len(frame), frame[:min(len(frame), length)])
		return true
	})
	return g
}

func (g *guestLink) carrier(ctx context.Context, on bool) error {
	for _, p := range g.l.Ends {
		if err := g.bed.nodes[p.Node].(*guestNode).carrier(ctx, p, on); err != nil {
			return err
		}
	}
	return nil
}

func (g *guestLink) black(on bool) error { g.silent.Store(on); return nil }
func (g *guestLink) strip(on bool) error { g.stripping.Store(on); return nil }

func (g *guestLink) set(ctx context.Context, l *topology.Link) error {
	for _, p := range g.l.Ends {
		if err := g.bed.shape(ctx, p, l); err != nil {
			return err
		}
	}
	return nil
}

func (g *guestLink) close() error { return nil }
