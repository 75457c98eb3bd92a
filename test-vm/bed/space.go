package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/test-vm/lab"
	"weft/test-vm/netns"
	"weft/test-vm/topology"
)

// spaceNode is a node in a network namespace.
type spaceNode struct {
	bed   *Bed
	n     *topology.Node
	space *netns.Space
	dir   string
	logs  []*os.File
}

func newSpaceNode(b *Bed, n *topology.Node) (*spaceNode, error) {
	s := &spaceNode{bed: b, n: n, dir: filepath.Join(b.dir, n.Name)}
	for _, d := range []string{"config", "state"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	files, err := uciFiles(n)
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, "config", name), text, 0o600); err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	if s.space, err = netns.New(n.Name); err != nil {
		return nil, err
	}
	// Before there are devices, which take these over: no second is lost on looking for duplicate addresses.
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if err := s.space.Sysctl("net.ipv6.conf.default."+name, "0"); err != nil {
			return nil, errors.Join(err, s.space.Close())
		}
	}
	return s, nil
}

const congestion = "net.ipv4.tcp_congestion_control"

// boot sets addresses, routes and shaping, and starts the node's services and programs.
func (s *spaceNode) boot(ctx context.Context) error {
	for _, kv := range sysctls(s.n) {
		if err := s.space.Sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	if s.n.Kind == topology.Host && s.n.Sysctl[congestion] == nil {
		// What a guest's kernel has, whatever the machine's default is. A namespace may use what the machine allows.
		if err := s.space.Sysctl(congestion, "cubic"); err != nil {
			if err := s.space.Sysctl(congestion, "reno"); err != nil {
				return err
			}
		}
	}
	if err := s.space.Do(s.addresses); err != nil {
		return err
	}
	for _, p := range s.n.Ports {
		if err := s.run(ctx, shape(p, p.Link, false)); err != nil {
			return err
		}
	}
	for _, name := range s.n.Services {
		if err := s.service(ctx, name); err != nil {
			return err
		}
	}
	for i, script := range s.n.Programs {
		if _, err := s.start(fmt.Sprintf("program%d", i), nil, "/bin/sh", "-c", script); err != nil {
			return err
		}
	}
	return nil
}

func (s *spaceNode) run(ctx context.Context, commands []string) error {
	for _, cmd := range commands {
		r, err := s.exec(ctx, cmd)
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("exit status %d: %s", r.Code, strings.TrimSpace(r.Output))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", cmd, err)
		}
	}
	return nil
}

// addresses does what the service network does on a device.
func (s *spaceNode) addresses() error {
	for _, p := range s.n.Ports {
		dev, err := netlink.LinkByName(p.Device)
		if err != nil {
			return fmt.Errorf("device %s: %w", p.Device, err)
		}
		for _, a := range p.Addrs {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(dev, addr); err != nil {
				return fmt.Errorf("address %s on %s: %w", a, p.Device, err)
			}
		}
		if err := netlink.LinkSetMTU(dev, p.Link.MTU); err != nil {
			return fmt.Errorf("mtu of %s: %w", p.Device, err)
		}
		if err := netlink.LinkSetUp(dev); err != nil {
			return fmt.Errorf("set %s up: %w", p.Device, err)
		}
	}
	var routes []topology.Route
	routes = append(routes, s.n.Routes...)
	for _, g := range s.n.Gateway {
		routes = append(routes, topology.Route{Via: g})
	}
	for _, r := range routes {
		route := &netlink.Route{Gw: r.Via.AsSlice()}
		if r.Prefix.IsValid() {
			route.Dst = &net.IPNet{IP: r.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(r.Prefix.Bits(), r.Prefix.Addr().BitLen())}
		} else {
			n := r.Via.BitLen()
			route.Dst = &net.IPNet{IP: make(net.IP, n/8), Mask: net.CIDRMask(0, n)}
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s: %w", r, err)
		}
	}
	return nil
}

// environ is what the node's programs see: the applets of the device before the machine's programs.
func (s *spaceNode) environ() []string {
	return []string{
		"PATH=" + filepath.Dir(s.bed.probe) + ":" + s.bed.o.HostDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/", "LANG=C", "WEFT_NODE=" + s.n.Name, "WEFT_CONFIG=" + filepath.Join(s.dir, "config"), "WEFT_BUS=" + filepath.Join(s.dir, "bus"),
		"LAB_DIR=" + filepath.Join(s.dir, "state"),
		// For the applet mptcp, which finds the service by itself in a guest.
		"MPTCP_FLAGS=--state-dir " + filepath.Join(s.dir, "state", "mptcpproxy"),
	}
}

// command is a program of the node whose output goes to a log file.
func (s *spaceNode) start(name string, env []string, path string, args ...string) (*netns.Process, error) {
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	s.logs = append(s.logs, log)
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, append(s.environ(), env...), log, log
	return s.space.Start(cmd)
}

// serviceBound is how long a service may take until it says that it is ready.
const serviceBound = 15 * time.Second

// service starts a service of the image and waits until it is ready (sd_notify(3)).
func (s *spaceNode) service(ctx context.Context, name string) error {
	path := filepath.Join(s.bed.o.HostDir, name)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("service %s: %w: run make host first", name, err)
	}
	socket := filepath.Join(s.dir, name+".notify")
	os.Remove(socket) // of the start before
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("service %s: %w", name, err)
	}
	p, err := s.start(name, []string{"NOTIFY_SOCKET=" + socket}, path,
		"--config-dir", filepath.Join(s.dir, "config"), "--state-dir", filepath.Join(s.dir, "state", name), "--bus", filepath.Join(s.dir, "bus"))
	if err != nil {
		conn.Close()
		return err
	}
	ready := make(chan struct{})
	var drained sync.WaitGroup
	drained.Go(func() { // until the service ends: a full socket would hold it up
		buf, told := make([]byte, 4096), false
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if !told && bytes.Contains(buf[:n], []byte("READY=1")) {
				told = true
				close(ready)
			}
		}
	})
	go func() {
		<-p.Done()
		conn.Close()
	}()
	ctx, cancel := context.WithTimeout(ctx, lab.Timeout(serviceBound))
	defer cancel()
	select {
	case <-ready:
		return nil
	case <-p.Done():
		drained.Wait()
		return fmt.Errorf("service %s has ended; its last lines:\n%s", name, s.tail(name))
	case <-ctx.Done():
		return fmt.Errorf("service %s is not ready after %s; its last lines:\n%s", name, serviceBound, s.tail(name))
	}
}

func (s *spaceNode) tail(name string) string {
	data, err := os.ReadFile(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

func (s *spaceNode) exec(ctx context.Context, script string) (lab.Result, error) {
	cmd := exec.Command("/bin/sh", "-c", script)
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.environ(), &out, &out
	p, err := s.space.Start(cmd)
	if err != nil {
		return lab.Result{}, err
	}
	err = p.Wait(ctx)
	if ctx.Err() != nil {
		p.Kill()
		return lab.Result{Output: out.String()}, fmt.Errorf("node %s: %q: not done in time: %w", s.n.Name, script, context.Cause(ctx))
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return lab.Result{Code: exit.ExitCode(), Output: out.String()}, nil
	}
	if errors.Is(err, exec.ErrWaitDelay) { // it left something behind that holds its output
		err = nil
	}
	return lab.Result{Output: out.String()}, err
}

func (s *spaceNode) kill() {
	s.space.Kill()
	for _, p := range s.n.Ports { // a machine without power has no carrier either
		s.bed.links[p.Link].carrier(context.Background(), false)
	}
}

func (s *spaceNode) restart(ctx context.Context) error {
	for _, p := range s.n.Ports {
		if err := s.bed.links[p.Link].carrier(ctx, true); err != nil {
			return err
		}
	}
	return s.boot(ctx)
}

func (s *spaceNode) evidence(ctx context.Context, dir string) error {
	var errs []error
	logs, err := filepath.Glob(filepath.Join(s.dir, "*.log"))
	errs = append(errs, err)
	for _, path := range logs {
		errs = append(errs, copyFile(filepath.Join(dir, s.n.Name+"-"+filepath.Base(path)), path))
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := s.exec(ctx, "ip addr; ip route show table all; ip -6 route show table all; ip rule; tc -s qdisc; ss -tinM 2>/dev/null; nft list ruleset 2>/dev/null; true")
	errs = append(errs, err, os.WriteFile(filepath.Join(dir, s.n.Name+"-network.txt"), []byte(r.Output), 0o644))
	return errors.Join(errs...)
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (s *spaceNode) close() error {
	var errs []error
	if s.space != nil {
		errs = append(errs, s.space.Close())
	}
	for _, f := range s.logs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
