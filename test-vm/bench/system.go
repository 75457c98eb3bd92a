package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"weft/test-vm/bench/bed"
	"weft/test-vm/bench/load"
)

// The systems that a bed can carry.
const (
	Weft    = "weft"    // two Weft gateways
	HAProxy = "haproxy" // two HAProxys under mptcpize, PROXY protocol v2 between them
	Routed  = "routed"  // plain forwarding over the first path
)

// readyPort is an echo server at the sink that tells when a system has come up.
const readyPort = 4999

// gateways is a system that runs in a bed.
type gateways struct {
	name      string
	near, far atomic.Pointer[process] // nil when routed
	fresh     func(near bool) error   // starts one gateway (again); nil where that is not supported
}

// stop ends both gateways.
func (g *gateways) stop() error {
	var errs []error
	for _, p := range []*process{g.near.Load(), g.far.Load()} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}

// alive reports a gateway that has died by itself.
func (g *gateways) alive() error {
	var errs []error
	for _, p := range []*process{g.near.Load(), g.far.Load()} {
		if p != nil {
			errs = append(errs, p.running())
		}
	}
	return errors.Join(errs...)
}

// cpu is the processor time of both gateways.
func (g *gateways) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, p := range []*process{g.near.Load(), g.far.Load()} {
		if p != nil {
			d, err := p.cpu()
			if err != nil {
				return 0, err
			}
			sum += d
		}
	}
	return sum, nil
}

// missing says why a system cannot be started here, empty if it can.
func (o *Options) missing(system string) string {
	need := []string{}
	switch system {
	case Weft:
		if _, err := os.Stat(o.Weft); err != nil {
			return fmt.Sprintf("%s is missing: run make host", o.Weft)
		}
	case HAProxy:
		need = []string{"haproxy", "mptcpize", "nft"}
	}
	for _, p := range need {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is missing: run apt-get install haproxy mptcpize nftables"
		}
	}
	return ""
}

// start brings a system up in a bed and waits until it carries a connection over all paths. Files go to dir; config are
// further options of Weft, NAME=VALUE, or NAME+=VALUE for a list.
func (o *Options) start(ctx context.Context, system string, b *bed.Bed, dir string, config ...string) (*gateways, error) {
	g := &gateways{name: system}
	var err error
	switch system {
	case Routed:
		return g, nil
	case HAProxy:
		err = startHAProxy(ctx, b, dir, g)
	case Weft:
		err = o.startWeft(b, dir, g, config)
	default:
		return nil, fmt.Errorf("no system %q: there are %s, %s and %s", system, Weft, HAProxy, Routed)
	}
	if err == nil {
		err = ready(ctx, b, g, [2]int64{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", system, err), g.stop())
	}
	return g, nil
}

// joins are the MPTCP connections that the far gateway has accepted and the subflows that have joined them, ever.
func joins(b *bed.Bed) (v [2]int64, err error) {
	if v[0], err = b.Far.Counter("MPTcpExt", "MPCapableACKRX"); err == nil {
		v[1], err = b.Far.Counter("MPTcpExt", "MPJoinAckRx")
	}
	return v, err
}

// ready waits until a connection from client to sink goes through MPTCP and all paths have joined since before.
func ready(ctx context.Context, b *bed.Bed, g *gateways, before [2]int64) error {
	at := netip.AddrPortFrom(bed.Sink4, readyPort)
	echo, err := load.StartEcho(b.Sink, at)
	if err != nil {
		return err
	}
	defer echo.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	patience := 20 * time.Millisecond
	for _, p := range b.Paths {
		patience = max(patience, 20*time.Millisecond+6*p.Delay)
	}
	var last error
	for {
		if err := g.alive(); err != nil {
			return err
		}
		// Subflows join after the first data, a round trip or two later.
		_, last = load.PingPong(ctx, b.Client, at, patience, 5*time.Millisecond)
		if last == nil {
			now, err := joins(b)
			if err != nil {
				return err
			}
			if accepted, joined := now[0]-before[0], now[1]-before[1]; accepted <= 0 || joined <= 0 && len(b.Paths) > 1 {
				last = fmt.Errorf("connections go through, but not by MPTCP over all paths (at the far gateway: %d MPTCP connections accepted, %d subflows joined)", accepted, joined)
			} else {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after 15 s: %w; near: %s; far: %s", last, g.near.Load().tail(), g.far.Load().tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// HAProxy's files. The peer is Debian's HAProxy as it is, one thread a gateway as many as there are processors, splicing
// as it decides by itself; mptcpize makes all its sockets MPTCP, also those to the sink.
const (
	haproxyDefaults = `	log stderr format raw local0 err
defaults
	mode tcp
	option dontlog-normal
	timeout connect 10s
	timeout client 1h
	timeout server 1h
	timeout client-fin 1h
	timeout server-fin 1h
`
	haproxyNear = haproxyDefaults + `listen near
	bind 0.0.0.0:6001 transparent
	server far 10.1.0.2:6002 send-proxy-v2
`
	haproxyFar = haproxyDefaults + `listen far
	bind 0.0.0.0:6002 accept-proxy
	source 0.0.0.0 usesrc client
	server sink 0.0.0.0:0
`
	haproxyNearNFT = `table ip peer {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		fib daddr type local accept
		iifname "lan" meta l4proto tcp tproxy to :6001 meta mark set 1 accept
	}
}
`
	haproxyFarNFT = `table ip peer {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname "lan" meta l4proto tcp socket transparent 1 socket wildcard 0 meta mark set 1 accept
	}
}
`
	markToLocal = "rule add fwmark 1 lookup 100\nroute add local default dev lo table 100\n"
)

// haproxyMaxConn is the number of connections that HAProxy can be told to take: each has two sockets, and it reserves some
// descriptors for itself.
func haproxyMaxConn() int { return min(30000, (fileLimit()-500)/2) }

func startHAProxy(ctx context.Context, b *bed.Bed, dir string, g *gateways) error {
	for i, side := range []struct {
		node     *bed.Node
		at       *atomic.Pointer[process]
		conf, nf string
	}{{b.Far, &g.far, haproxyFar, haproxyFarNFT}, {b.Near, &g.near, haproxyNear, haproxyNearNFT}} {
		if err := side.node.Input(ctx, markToLocal, "ip", "-batch", "-"); err != nil {
			return err
		}
		if err := side.node.Input(ctx, side.nf, "nft", "-f", "-"); err != nil {
			return err
		}
		// The far side announces its further addresses, the near side joins them.
		mptcp := "limits set add_addr_accepted 8 subflows 8\n"
		if i == 0 {
			for p := 1; p < len(b.Paths); p++ {
				mptcp += fmt.Sprintf("endpoint add 10.%d.0.2 dev p%d signal\n", p+1, p+1)
			}
		}
		for line := range strings.Lines(mptcp) {
			if _, err := side.node.Output(ctx, "ip", append([]string{"mptcp"}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
		name := "haproxy-" + side.node.Name
		conf := filepath.Join(dir, name+".cfg")
		if err := os.WriteFile(conf, []byte(fmt.Sprintf("global\n\tmaxconn %d\n%s", haproxyMaxConn(), side.conf)), 0o644); err != nil {
			return err
		}
		p, err := startProcess(side.node, dir, name, "mptcpize", "run", "haproxy", "-db", "-f", conf)
		if err != nil {
			return err
		}
		side.at.Store(p)
	}
	return nil
}

// benchKey is the shared secret of the two gateways of a bed.
const benchKey = "bench bench bench bench bench 32"

// weftConfig is /etc/config/mptcpproxy of one gateway.
func weftConfig(b *bed.Bed, near bool, extra string) string {
	var w strings.Builder
	fmt.Fprintf(&w, "config mptcpproxy 'main'\n\toption enabled '1'\n\tlist lan 'lan'\n%s", extra)
	for i := range b.Paths {
		fmt.Fprintf(&w, "\nconfig path 'p%d'\n\toption device 'p%d'\n\toption multipath 'on'\n", i+1, i+1)
	}
	if near {
		w.WriteString("\nconfig peer 'far'\n")
		for i := range b.Paths {
			fmt.Fprintf(&w, "\tlist address '10.%d.0.2'\n", i+1)
		}
		fmt.Fprintf(&w, "\toption key '%s'\n\tlist destination '0.0.0.0/0'\n\tlist destination '::/0'\n", benchKey)
	} else {
		fmt.Fprintf(&w, "\nconfig accept 'near'\n\toption key '%s'\n\tlist allow_client '0.0.0.0/0'\n\tlist allow_client '::/0'\n\tlist allow_dest '0.0.0.0/0'\n\tlist allow_dest '::/0'\n", benchKey)
	}
	return w.String()
}

func (o *Options) startWeft(b *bed.Bed, dir string, g *gateways, config []string) error {
	extra := ""
	for _, s := range slices.Concat(config, o.Set) {
		name, value, _ := strings.Cut(s, "=")
		kind := "option"
		if n, ok := strings.CutSuffix(name, "+"); ok {
			kind, name = "list", n
		}
		extra += fmt.Sprintf("\t%s %s '%s'\n", kind, name, value)
	}
	g.fresh = func(near bool) error {
		node, at := b.Far, &g.far
		if near {
			node, at = b.Near, &g.near
		}
		name := "weft-" + node.Name
		conf := filepath.Join(dir, name)
		if err := os.MkdirAll(conf, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(conf, "mptcpproxy"), []byte(weftConfig(b, near, extra)), 0o600); err != nil {
			return err
		}
		p, err := startProcess(node, dir, name, o.Weft, "--config-dir", conf, "--state-dir", conf+".state")
		if err == nil {
			at.Store(p)
		}
		return err
	}
	return errors.Join(g.fresh(false), g.fresh(true))
}
