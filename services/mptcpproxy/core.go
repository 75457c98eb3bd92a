package mptcpproxy

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/services/mptcpproxy/internal/carrier"
	"weft/services/mptcpproxy/internal/datagram"
	"weft/services/mptcpproxy/internal/govern"
	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/paths"
	"weft/services/mptcpproxy/internal/settings"
	"weft/services/mptcpproxy/internal/status"
	"weft/services/mptcpproxy/internal/stream"
	"weft/services/mptcpproxy/internal/synhold"
	"weft/services/mptcpproxy/internal/transparent"
	"weft/services/mptcpproxy/internal/tunnel"
	"weft/services/mptcpproxy/internal/udpflow"
)

// core is the proxy at work: everything that is there while the configuration
// says enabled. Its parts are made once; a changed configuration is handed to
// those that take it, and only what is in fixed needs a new core.
type core struct {
	log      *slog.Logger
	stateDir string
	node     string
	events   *status.Events
	fixed    fixed

	paths        *paths.Manager
	governor     *govern.Governor
	engine       *stream.Engine
	dialer       *carrier.Dialer
	listener     *carrier.Listener // nil: nobody may dial us
	dgram        *datagram.Endpoint
	udp          *udpflow.Flows // nil: off
	tunnel       *tunnel.Tunnel // nil: off
	hold         atomic.Pointer[synhold.Hold]
	interception atomic.Pointer[intercept.Intercept]
	port         int // of the TPROXY listener, TCP
	udpPort      int
	nonePort     int

	routes  routes
	near    *near
	serving atomic.Bool // some destination is intercepted and has a peer

	// Front parts take traffic in, back parts carry it: they stop in that order.
	front, back         context.Context
	stopFront, stopBack context.CancelFunc
	frontWork, backWork sync.WaitGroup
	// engineWork is the engine alone: it closes its sockets when the front is
	// gone, while those who registered them are still there.
	engineCtx  context.Context
	stopEngine context.CancelFunc
	engineWork sync.WaitGroup
	failed     chan error         // a part has ended with an error
	dirty      chan struct{}      // peers or paths changed
	settle     chan chan struct{} // closed once the control loop has followed all changes

	mu       sync.Mutex
	cfg      *settings.Config
	up       map[string]bool         // peers that we dial
	told     map[string][]netip.Addr // their path addresses, as Hello announced them
	instance map[string]uint64       // their processes
	pathIDs  map[string]uint8        // of datagram paths, by peer, path and addresses
	busy     map[string]int          // trunks that carry a flow, by peer
	pathSeen map[string]paths.Path   // as last told
	rates    rates                   // for status and for datagram sessions
}

// fixed is the part of the configuration that cannot change under way.
type fixed struct {
	port                         uint16
	near, far, udp, tunnel       bool
	none                         bool // connections of carrier none are accepted
	congestion                   string
	flowBuffer, memoryMax, lowat int
	maxFlows                     int
	parkIdle                     time.Duration
}

func fixedOf(c *settings.Config) fixed {
	return fixed{
		port: c.ListenPort, near: len(c.Peers) > 0, far: len(c.Accepts) > 0,
		udp: c.UDP, tunnel: c.AllProtocols || len(c.Protocols) > 0,
		none:       slices.ContainsFunc(c.Accepts, func(a settings.Accept) bool { return a.Carrier == settings.None }),
		congestion: c.Congestion, flowBuffer: c.FlowBuffer, memoryMax: c.MemoryMax, lowat: c.NotsentLowat,
		maxFlows: c.MaxFlows, parkIdle: c.ParkIdle,
	}
}

// tunnelDevice is the TUN device of other protocols.
const tunnelDevice = "mptcp0"

// newCore makes all parts for a configuration and starts them.
func newCore(ctx context.Context, log *slog.Logger, stateDir string, events *status.Events, cfg *settings.Config) (_ *core, err error) {
	c := &core{
		log: log, stateDir: stateDir, events: events, fixed: fixedOf(cfg), cfg: cfg,
		failed: make(chan error, 1), dirty: make(chan struct{}, 1), settle: make(chan chan struct{}),
		up: map[string]bool{}, told: map[string][]netip.Addr{}, instance: map[string]uint64{}, pathIDs: map[string]uint8{}, busy: map[string]int{},
		pathSeen: map[string]paths.Path{},
	}
	c.node, _ = os.Hostname() // a gateway without a name is told apart by its key
	c.near = &near{c: c, limits: newLimits(), held: map[flowKey]*heldFlow{}}
	// The parts end in the order of stop, not with ctx.
	ctx = context.WithoutCancel(ctx)
	c.front, c.stopFront = context.WithCancel(ctx)
	c.engineCtx, c.stopEngine = context.WithCancel(ctx)
	c.back, c.stopBack = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if err := intercept.Cleanup(stateDir); err != nil {
		return nil, err
	}
	c.setPeers(cfg)
	if err := c.makeBack(cfg); err != nil {
		return nil, err
	}
	if err := c.makeFront(cfg); err != nil {
		return nil, err
	}
	c.near.limits.set(cfg.ClientMaxFlows, cfg.ClientRate)
	icept, err := intercept.Setup(c.interceptOptions())
	if err != nil {
		return nil, err
	}
	c.interception.Store(icept)
	// It finds the sysctl for short bursts set: what interception sets is put
	// back even after a kill.
	c.run(&c.backWork, c.back, "governor", c.governor.Run)
	c.frontWork.Go(func() { c.control(c.front) })
	return c, nil
}

// makeBack makes and starts what carries traffic.
func (c *core) makeBack(cfg *settings.Config) (err error) {
	if c.paths, err = paths.New(c.pathOptions()); err != nil {
		return err
	}
	c.paths.OnChange(c.pathChanged)
	c.paths.OnPairs(c.changed)
	c.run(&c.backWork, c.back, "path manager", c.paths.Run)
	if c.governor, err = govern.New(govern.Options{Congestion: cfg.Congestion, NotSentLowat: cfg.NotsentLowat, Log: c.log}); err != nil {
		return err
	}
	if c.engine, err = stream.New(stream.Options{
		FlowBuffer: cfg.FlowBuffer, MemoryMax: cfg.MemoryMax, ParkIdle: cfg.ParkIdle, NotSentLowat: cfg.NotsentLowat,
		MaxFlows: cfg.MaxFlows, Log: c.log,
		Connect: c.connect, Finish: transparent.Finish, Allow: c.allow, Closed: c.closed,
		NeedTrunk: func(peer string) { c.dialer.Need(peer) }, TrunkClosed: c.trunkClosed, TrunkBusy: c.trunkBusy,
		RawClosed: c.rawClosed,
	}); err != nil {
		return err
	}
	port := uint16(0)
	if c.fixed.far {
		port = cfg.ListenPort
	}
	if c.dgram, err = datagram.Listen(datagram.Options{
		Port: port, Reorder: reorder(cfg), Duplicate: datagram.Duplicate(cfg.UDPDuplicate),
		OnPath: c.pathAlive, NamePath: c.namePath, Log: c.log,
	}); err != nil {
		return err
	}
	return nil
}

// reorder is the reorder window; datagram takes 0 for its default.
func reorder(cfg *settings.Config) time.Duration {
	if cfg.UDPReorder == 0 {
		return -1
	}
	return cfg.UDPReorder
}

// makeFront makes and starts what takes traffic in, and then the engine and the
// datagram endpoint, whose users are all there by then.
func (c *core) makeFront(cfg *settings.Config) (err error) {
	peers, err := carrierPeers(cfg)
	if err != nil {
		return err
	}
	if c.dialer, err = carrier.NewDialer(carrier.DialerOptions{
		Peers: peers, Paths: c.paths, Engine: c.engine, Hello: c.hello, Log: c.log,
		OnPeer: c.peerChanged, OnSession: c.session, OnConn: c.connMade, OnClose: c.connClosed,
	}); err != nil {
		return err
	}
	if c.fixed.far {
		accepts, err := carrierAccepts(cfg)
		if err != nil {
			return err
		}
		if c.listener, err = carrier.NewListener(carrier.ListenerOptions{
			Port: cfg.ListenPort, Accept: accepts, Engine: c.engine, Hello: c.hello, Log: c.log,
			OnPeer: c.acceptedPeer, OnSession: c.session, OnConn: c.connMade, OnClose: c.connClosed, OnRaw: c.acceptedRaw,
		}); err != nil {
			return err
		}
	}
	if c.fixed.udp {
		o := c.udpOptions(cfg)
		if c.fixed.near && len(cfg.LAN) > 0 {
			if o.Listeners, err = transparent.ListenUDP(0, min(2, runtime.NumCPU())); err != nil {
				return err
			}
			if c.udpPort, err = transparent.Port(o.Listeners[0]); err != nil {
				return err
			}
		}
		if c.udp, err = udpflow.New(o); err != nil {
			return err
		}
		c.run(&c.frontWork, c.front, "UDP flows", c.udp.Run)
	}
	if c.fixed.tunnel {
		if c.tunnel, err = tunnel.New(c.tunnelOptions(cfg)); err != nil {
			return err
		}
		c.run(&c.frontWork, c.front, "tunnel", c.tunnel.Run)
	}
	c.run(&c.engineWork, c.engineCtx, "data plane", c.engine.Run)
	if c.fixed.near && len(cfg.LAN) > 0 {
		if c.port, err = c.listen(false, c.near.accepted); err != nil {
			return err
		}
		hold, err := synhold.New(synhold.Options{Open: c.near.open, Known: c.known, FailClosed: cfg.FailClosed, Log: c.log})
		if err != nil {
			return err
		}
		c.hold.Store(hold)
		c.run(&c.frontWork, c.front, "SYN holding", hold.Run)
	}
	if c.fixed.none {
		if c.nonePort, err = c.listen(true, c.acceptedNone); err != nil {
			return err
		}
	}
	c.run(&c.backWork, c.back, "datagrams", c.dgram.Run)
	if c.listener != nil {
		c.run(&c.frontWork, c.front, "listener", c.listener.Run)
	}
	c.run(&c.frontWork, c.front, "dialer", c.dialer.Run)
	return nil
}

// listen opens TPROXY listeners on a port that the kernel chooses.
func (c *core) listen(mptcp bool, accepted func(fd int, src, dst netip.AddrPort)) (port int, err error) {
	fds, err := transparent.ListenTCP(0, min(4, runtime.NumCPU()), mptcp)
	if err != nil {
		return 0, err
	}
	port, err = transparent.Port(fds[0])
	for _, fd := range fds {
		c.engine.Listen(fd, accepted)
	}
	return port, err
}

// run starts a part; one that ends by itself ends the core.
func (c *core) run(wg *sync.WaitGroup, ctx context.Context, what string, f func(context.Context) error) {
	wg.Go(func() {
		err := f(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, ctx.Err()) {
				c.log.Warn("part did not end cleanly", "part", what, "error", err)
			}
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		select {
		case c.failed <- fmt.Errorf("%s: %w", what, err):
		default: // the first one is what matters
		}
	})
}

// spawn runs f in a goroutine that ends with the front parts.
func (c *core) spawn(f func(context.Context)) {
	if c.front.Err() != nil {
		f(c.front) // no new goroutine once they are waited for; it fails at once
		return
	}
	c.frontWork.Go(func() { f(c.front) })
}

// stop ends everything and takes away what was set up. It works on a core that
// is made in part, too.
func (c *core) stop() error {
	var errs []error
	c.stopFront()
	c.frontWork.Wait()
	if i := c.interception.Load(); i != nil { // new flows go their ordinary way from here on
		errs = append(errs, i.Close())
	}
	c.stopEngine()
	c.engineWork.Wait()
	c.stopBack()
	c.backWork.Wait()
	return errors.Join(errs...)
}

// apply hands a changed configuration to the parts. It must have the same fixed
// part.
func (c *core) apply(cfg *settings.Config) error {
	peers, err := carrierPeers(cfg)
	if err != nil {
		return err
	}
	accepts, err := carrierAccepts(cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.cfg = cfg
	c.mu.Unlock()
	c.setPeers(cfg)
	c.near.limits.set(cfg.ClientMaxFlows, cfg.ClientRate)
	c.dgram.Update(reorder(cfg), datagram.Duplicate(cfg.UDPDuplicate))
	if h := c.hold.Load(); h != nil {
		h.SetFailClosed(cfg.FailClosed)
	}
	if c.udp != nil {
		c.udp.Update(c.udpOptions(cfg))
	}
	if c.tunnel != nil {
		c.tunnel.Update(c.tunnelOptions(cfg))
	}
	if c.listener != nil {
		c.listener.Update(accepts)
	}
	c.paths.Update(c.pathOptions())
	err = c.dialer.Update(peers)
	done := make(chan struct{})
	select {
	case c.settle <- done:
		<-done
	case <-c.front.Done():
	}
	return err
}

// setPeers takes the peers of a configuration into the routes, and forgets what
// is known of others.
func (c *core) setPeers(cfg *settings.Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.up {
		if !slices.ContainsFunc(cfg.Peers, func(p settings.Peer) bool { return p.Name == name }) {
			delete(c.up, name)
			delete(c.told, name)
			delete(c.instance, name)
		}
	}
	for i := range cfg.Peers {
		p := &cfg.Peers[i]
		if _, known := c.up[p.Name]; !known {
			// Where no control connection tells, a peer is there until a
			// connection to it fails.
			c.up[p.Name] = !framed(p)
		}
	}
	c.setRoutes()
}

// setRoutes lets the peers that are up have their destinations. The caller
// holds mu.
func (c *core) setRoutes() {
	var up []settings.Peer
	for _, p := range c.cfg.Peers {
		if c.up[p.Name] {
			up = append(up, p)
		}
	}
	c.routes.set(up)
}

// changed asks the control loop to look at peers and paths; it does not block.
func (c *core) changed() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// control follows peers and paths until ctx ends.
func (c *core) control(ctx context.Context) {
	tick := time.NewTicker(rateInterval)
	defer tick.Stop()
	var pathsSet paths.Options
	var set intercept.Options
	i := c.interception.Load()
	var settled chan struct{}
	for {
		if o := c.pathOptions(); !reflect.DeepEqual(o, pathsSet) {
			pathsSet = o
			c.paths.Update(o)
		}
		if o := c.interceptOptions(); !reflect.DeepEqual(o, set) {
			err := i.Update(o)
			if err != nil {
				c.log.Error("interception is not as configured, trying again", "error", err)
			}
			i.SetPeersUp(len(o.Destinations) > 0)
			if err == nil { // told last: now it is so
				set = o
				c.serving.Store(len(o.Destinations) > 0)
			}
		}
		c.sessionPaths()
		if settled != nil {
			close(settled)
			settled = nil
		}
		select {
		case <-ctx.Done():
			return
		case settled = <-c.settle:
		case <-c.dirty:
		case <-tick.C:
			c.measure()
		}
	}
}

// interceptOptions is what to intercept, as things are.
func (c *core) interceptOptions() intercept.Options {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := c.cfg
	o := intercept.Options{
		PortTCP: c.port, PortUDP: c.udpPort, Syn: intercept.Mode(cfg.Syn),
		Protocols: cfg.Protocols, AllProtocols: cfg.AllProtocols, NonePort: c.nonePort,
		StateDir: c.stateDir, Log: c.log,
	}
	if c.fixed.near {
		o.LAN = cfg.LAN
	}
	if c.fixed.far {
		o.ListenPort = int(cfg.ListenPort)
	}
	if c.tunnel != nil {
		o.TunnelDevice, _ = c.tunnel.Device()
	}
	if cfg.FailClosed {
		o.Fail = intercept.FailClosed
	}
	for _, e := range cfg.Excludes {
		x := intercept.Exclude{Src: e.Src, Dest: e.Dest, Proto: e.Proto, Mark: e.Mark, MarkMask: e.MarkMask, Set: e.Set}
		for _, r := range e.DestPort {
			x.DestPort = append(x.DestPort, intercept.PortRange{From: r.First, To: r.Last})
		}
		o.Exclude = append(o.Exclude, x)
	}
	for _, a := range cfg.Accepts {
		if a.Carrier == settings.None {
			o.NoneFrom = append(o.NoneFrom, a.From...)
		}
	}
	for _, p := range cfg.Peers {
		if c.up[p.Name] {
			o.Destinations = append(o.Destinations, p.Destinations...)
		} else {
			o.Away = append(o.Away, p.Destinations...)
		}
		o.PeerAddrs = append(o.PeerAddrs, c.addrs(&p)...)
	}
	return o
}

// addrs are all addresses of a peer: configured ones, then announced ones. The
// caller holds mu.
func (c *core) addrs(p *settings.Peer) []netip.Addr {
	out := slices.Clone(p.Addresses)
	for _, a := range c.told[p.Name] {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// pathOptions is what the path manager is to keep.
func (c *core) pathOptions() paths.Options {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := paths.Options{StateDir: c.stateDir, Log: c.log}
	if c.fixed.far {
		o.Port = c.cfg.ListenPort
	}
	for _, p := range c.cfg.Peers {
		o.Peers = append(o.Peers, paths.Peer{Name: p.Name, Addrs: c.addrs(&p), Port: p.Port})
	}
	for _, p := range c.cfg.Paths {
		w := paths.Wanted{Name: p.Name, Device: p.Device, Weight: p.Weight, Quota: p.Quota, Period: p.QuotaPeriod.String(), Probe: p.Probe}
		switch p.Mode {
		case settings.Off:
			w.Mode = paths.Off
		case settings.Backup:
			w.Mode = paths.Backup
		case settings.Master:
			w.Mode = paths.Master
		case settings.Handover:
			w.Mode = paths.Handover
		default:
			w.Mode = paths.On
		}
		o.Wanted = append(o.Wanted, w)
	}
	return o
}

func (c *core) udpOptions(cfg *settings.Config) udpflow.Options {
	return udpflow.Options{
		Endpoint: c.dgram, Peer: c.datagramPeer, Allow: c.allow, Timeout: cfg.UDPTimeout,
		MaxFlows: cfg.MaxFlows, ClientFlows: cfg.ClientMaxFlows, ClientRate: cfg.ClientRate,
		Mark: intercept.MarkConnect, Log: c.log,
	}
}

func (c *core) tunnelOptions(cfg *settings.Config) tunnel.Options {
	o := tunnel.Options{
		Endpoint: c.dgram, Device: tunnelDevice, Peer: c.datagramPeer, Protocols: cfg.Protocols, Log: c.log,
		Allow: func(peer string, src, dst netip.Addr) error {
			return c.allow(peer, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0))
		},
	}
	if cfg.AllProtocols {
		o.Protocols = nil
	}
	return o
}

// datagramPeer chooses the peer for a packet.
func (c *core) datagramPeer(dst netip.Addr) (string, bool) {
	if p := c.routes.find(dst); p != nil {
		return p.Name, true
	}
	return "", false
}

// hello is what we tell other gateways.
func (c *core) hello() carrier.Hello {
	h := carrier.Hello{Version: 1, Node: c.node, Software: "weft"}
	for _, p := range c.paths.Paths() {
		for _, a := range []netip.Addr{p.Local4, p.Local6} {
			if a.IsValid() {
				h.Paths = append(h.Paths, a)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fixed.far {
		h.Port = c.cfg.ListenPort
	}
	if c.cfg.UDP {
		h.Features = append(h.Features, "udp")
	}
	if c.fixed.tunnel {
		h.Features = append(h.Features, "tunnel")
	}
	return h
}

// peerChanged hears of a peer that we dial.
func (c *core) peerChanged(peer string, up bool, hello carrier.Hello) {
	c.mu.Lock()
	was, known := c.up[peer]
	restarted := false
	if known {
		c.up[peer] = up
		if up {
			c.told[peer] = hello.Paths
			old := c.instance[peer]
			restarted = old != 0 && hello.Instance != 0 && hello.Instance != old
			c.instance[peer] = hello.Instance
		}
		c.setRoutes()
	}
	c.mu.Unlock()
	if !known {
		return
	}
	if restarted {
		c.log.Info("peer has restarted: its flows are gone", "peer", peer)
		c.engine.DropPeer(peer)
	}
	if was != up {
		c.peerEvent(peer, up, hello)
	}
	c.changed()
}

// acceptedPeer hears of a peer that dialled us.
func (c *core) acceptedPeer(peer string, up bool, hello carrier.Hello) { c.peerEvent(peer, up, hello) }

func (c *core) peerEvent(peer string, up bool, hello carrier.Hello) {
	if up {
		c.log.Info("peer is up", "peer", peer, "node", hello.Node)
		c.events.Add(status.Event{Kind: "peer.up", Name: peer, Reason: hello.Node})
	} else {
		c.log.Warn("peer is down", "peer", peer)
		c.events.Add(status.Event{Kind: "peer.down", Name: peer})
	}
}

// session hears of a fresh datagram session.
func (c *core) session(peer string, near bool, id uint64, key [32]byte, hello carrier.Hello) {
	encrypt := hello.Encrypt
	if near { // who dials decides
		c.mu.Lock()
		for _, p := range c.cfg.Peers {
			if p.Name == peer {
				encrypt = p.Encrypt
			}
		}
		c.mu.Unlock()
	}
	c.dgram.AddSession(peer, near, id, key, encrypt)
	c.changed()
}

// sessionPaths gives each datagram session that we began its paths.
func (c *core) sessionPaths() {
	c.mu.Lock()
	peers := c.cfg.Peers
	c.mu.Unlock()
	for _, p := range peers {
		s := c.dgram.Session(p.Name, true)
		if s == nil || !s.Near() {
			continue
		}
		var list []datagram.Path
		for _, pair := range c.paths.Pairs(p.Name) {
			list = append(list, datagram.Path{
				ID: c.pathID(p.Name, pair), Name: pair.Path, Device: pair.Device, Local: pair.Local, Remote: pair.Remote,
				Backup: pair.Backup, Weight: pair.Weight,
			})
		}
		s.SetPaths(list)
	}
}

// pathID numbers the ways to a peer, each once.
func (c *core) pathID(peer string, p paths.Pair) uint8 {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := func(peer string) string {
		return peer + "\x00" + p.Path + "\x00" + p.Local.String() + "\x00" + p.Remote.String()
	}
	if id, ok := c.pathIDs[key(peer)]; ok {
		return id
	}
	if len(c.pathIDs) > 200 { // addresses come and go: begin anew rather than run out
		clear(c.pathIDs)
	}
	id := uint8(1)
	for used := true; used; {
		used = false
		for _, other := range c.pathIDs {
			if other == id {
				used = true
				id++
				break
			}
		}
	}
	c.pathIDs[key(peer)] = id
	return id
}

// pathAlive hears from the datagram probes.
func (c *core) pathAlive(peer, path string, alive bool, rtt time.Duration) {
	c.paths.SetAlive(peer, path, alive, rtt)
}

// namePath names the path that has a local address.
func (c *core) namePath(_ string, local netip.Addr, _ netip.AddrPort) string {
	local = local.Unmap()
	for _, p := range c.paths.Paths() {
		if p.Local4 == local || p.Local6 == local {
			return p.Name
		}
	}
	return ""
}

// pathChanged hears of a path that changed, and tells the world.
func (c *core) pathChanged(p paths.Path) {
	c.mu.Lock()
	old, known := c.pathSeen[p.Name]
	c.pathSeen[p.Name] = p
	c.mu.Unlock()
	if !known || old.State != p.State {
		kind := "path.down"
		switch p.State {
		case paths.Up:
			kind = "path.up"
		case paths.Spent:
			kind = "path.spent"
		}
		c.log.Info("path changed", "path", p.Name, "device", p.Device, "state", p.State, "reason", p.Reason)
		c.events.Add(status.Event{Kind: kind, Name: p.Name, Device: p.Device, Reason: p.Reason})
	}
	if old.Stripped != p.Stripped {
		kind := "path.clean"
		if p.Stripped {
			kind = "path.stripped"
			c.log.Warn("something on the path takes MPTCP out: TCP does not use it", "path", p.Name, "device", p.Device)
		}
		c.events.Add(status.Event{Kind: kind, Name: p.Name, Device: p.Device, Reason: p.Reason})
	}
	if p.State == paths.Up {
		c.dialer.Kick("")
	} else {
		for _, a := range []netip.Addr{p.Local4, p.Local6} {
			if a.IsValid() {
				c.dialer.PathDown(a)
			}
		}
	}
	c.changed()
}

// connMade hears of each connection with another gateway before it is used.
func (c *core) connMade(conn carrier.Conn) {
	c.paths.Register(conn.FD, conn.Peer, conn.Near)
	if !conn.Control {
		c.governor.Register(conn.FD, conn.Peer)
	}
	if conn.Trunk {
		c.governor.SetBusy(conn.FD, false) // until a flow takes it
	}
}

func (c *core) connClosed(conn carrier.Conn) {
	if !conn.Control {
		c.governor.Unregister(conn.FD)
	}
	c.paths.Unregister(conn.FD)
}

// trunkClosed hears from the engine that a trunk ends.
func (c *core) trunkClosed(t stream.Trunk, err error) {
	if t.Near {
		c.dialer.TrunkClosed(t, err)
	} else if c.listener != nil {
		c.listener.TrunkClosed(t, err)
	}
}

// trunkBusy keeps the probes fast while TCP uses the paths.
func (c *core) trunkBusy(t stream.Trunk, busy bool) {
	c.governor.SetBusy(t.FD, busy)
	if t.Near {
		c.dialer.SetBusy(t, busy)
	} else if c.listener != nil {
		c.listener.SetBusy(t, busy)
	}
	c.mu.Lock()
	key := sideKey(t.Peer, t.Near)
	n := c.busy[key]
	if busy {
		c.busy[key] = n + 1
	} else if n > 0 {
		c.busy[key] = n - 1
	}
	first := busy && n == 0
	c.mu.Unlock()
	if !first {
		return // the control loop lets the probes slow down
	}
	if s := c.dgram.Session(t.Peer, t.Near); s != nil {
		s.SetActive(true)
	}
}

// sideKey tells a peer that we dial from one of the same name that dials us.
func sideKey(peer string, near bool) string {
	if near {
		return peer
	}
	return "<" + peer
}

// rawClosed hears that the connection of a flow with one of its own ends.
func (c *core) rawClosed(fd int, _ string) {
	c.governor.Unregister(fd)
	c.paths.Unregister(fd)
	c.dialer.CloseRaw(fd)
	if c.listener != nil {
		c.listener.CloseRaw(fd)
	}
}

// discard closes such a connection that never came to the engine.
func (c *core) discard(fd int) {
	c.rawClosed(fd, "")
	reset(fd)
}

// closed hears that a flow has ended.
func (c *core) closed(f stream.FlowStat) {
	if f.Near {
		c.near.limits.done(flowKey{f.Src, f.Dst})
	}
}

// known tells the interception which destinations answer.
func (c *core) known(dst netip.AddrPort, good bool) {
	if i := c.interception.Load(); i != nil {
		i.Known(dst, good)
	}
}

func carrierKeys(k settings.Key) (carrier.Keys, error) {
	switch {
	case k.None():
		return carrier.Keys{}, nil
	case k.Shared != "":
		return carrier.SharedKey(k.Shared)
	}
	return carrier.OwnKey(base64.StdEncoding.EncodeToString(k.Private), base64.StdEncoding.EncodeToString(k.Peer))
}

// carrierPeers are the peers in the form of the dialer.
func carrierPeers(cfg *settings.Config) ([]carrier.Peer, error) {
	var out []carrier.Peer
	for _, p := range cfg.Peers {
		keys, err := carrierKeys(p.Key)
		if err != nil {
			return nil, fmt.Errorf("mptcpproxy.%s: %w", p.Name, err)
		}
		out = append(out, carrier.Peer{
			Name: p.Name, Addrs: p.Addresses, Port: p.Port, Kind: carrier.Kind(p.Carrier), Framed: p.Framed,
			Keys: keys, Encrypt: p.Encrypt, Pool: p.Pool,
		})
	}
	return out, nil
}

// carrierAccepts are the rules in the form of the listener.
func carrierAccepts(cfg *settings.Config) ([]carrier.Accept, error) {
	var out []carrier.Accept
	for _, a := range cfg.Accepts {
		keys, err := carrierKeys(a.Key)
		if err != nil {
			return nil, fmt.Errorf("mptcpproxy.%s: %w", a.Name, err)
		}
		out = append(out, carrier.Accept{
			Name: a.Name, Kind: carrier.Kind(a.Carrier), Keys: keys, From: a.From, AllowClient: a.AllowClient, AllowDest: a.AllowDest,
		})
	}
	return out, nil
}
