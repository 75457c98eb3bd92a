package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// tunnel is proto wireguard at work: it finds the addresses of the far ends.
type tunnel struct {
	hosts []string
	stop  context.CancelFunc
	done  chan struct{}
	// The loop of the manager owns the rest: the far ends found, and what was
	// set in the kernel. There it may change when the peer roams.
	found map[string]netip.Addr
	set   map[wgtypes.Key]netip.AddrPort
}

// Times between tries to find the address of a far end.
const (
	lookupFirst = time.Second
	lookupMax   = time.Minute
)

// startTunnel looks for the far ends that have names, until all are found.
func (m *manager) startTunnel(ctx context.Context, log *slog.Logger, hosts []string) *tunnel {
	ctx, stop := context.WithCancel(ctx)
	t := &tunnel{hosts: hosts, stop: stop, done: make(chan struct{}), found: map[string]netip.Addr{}, set: map[wgtypes.Key]netip.AddrPort{}}
	var unknown []string
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			t.found[h] = a.Unmap()
		} else {
			unknown = append(unknown, h)
		}
	}
	go func() {
		defer close(t.done)
		for wait := lookupFirst; len(unknown) > 0; wait = min(2*wait, lookupMax) {
			unknown = slices.DeleteFunc(unknown, func(h string) bool {
				as, err := net.DefaultResolver.LookupNetIP(ctx, "ip", h)
				if err != nil || len(as) == 0 {
					log.Debug("far end was not found, asking on", "host", h, "error", err)
					return false
				}
				return m.do(ctx, func() { t.found[h] = as[0].Unmap() }) == nil
			})
			if len(unknown) > 0 && !sleep(ctx, wait, nil) {
				return
			}
		}
	}()
	return t
}

func (t *tunnel) end() {
	if t != nil {
		t.stop()
		<-t.done
	}
}

// addrs are the far ends known, in a lasting order.
func (t *tunnel) addrs() []netip.Addr {
	var out []netip.Addr
	for _, h := range t.hosts {
		if a, ok := t.found[h]; ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// lookTunnel starts and stops the search for far ends as needed.
func (m *manager) lookTunnel(ctx context.Context, name string, s *state) {
	var hosts []string
	if s.cfg.WireGuard != nil && s.wanted() && s.available && ctx.Err() == nil {
		hosts = []string{}
		for _, p := range s.cfg.WireGuard.Peers {
			if p.Host != "" && !slices.Contains(hosts, p.Host) {
				hosts = append(hosts, p.Host)
			}
		}
	}
	if s.tunnel != nil && (hosts == nil || !slices.Equal(hosts, s.tunnel.hosts)) {
		s.tunnel.end()
		s.tunnel = nil
	}
	if hosts != nil && s.tunnel == nil {
		s.tunnel = m.startTunnel(ctx, m.log.With("interface", name), hosts)
	}
}

// tunnels makes the settings of WireGuard devices what is wanted.
func (m *manager) tunnels(ls links) error {
	var c *wgctrl.Client
	var errs []error
	for _, name := range m.order {
		s := m.states[name]
		if s.tunnel == nil || ls[s.device] == nil || ls[s.device].Type() != "wireguard" {
			continue
		}
		if c == nil {
			var err error
			if c, err = wgctrl.New(); err != nil {
				return fmt.Errorf("talk to the kernel about WireGuard: %w", err)
			}
			defer c.Close()
		}
		now, err := c.Device(s.device)
		if err != nil {
			errs = append(errs, fmt.Errorf("look at WireGuard device %s: %w", s.device, err))
			continue
		}
		change, differs := s.tunnel.change(now, s.cfg.WireGuard)
		if !differs {
			continue
		}
		if err := c.ConfigureDevice(s.device, change); err != nil {
			errs = append(errs, fmt.Errorf("set up WireGuard device %s: %w", s.device, err))
			continue
		}
		for _, p := range change.Peers {
			if p.Endpoint != nil {
				s.tunnel.set[p.PublicKey] = p.Endpoint.AddrPort()
			}
		}
	}
	return errors.Join(errs...)
}

// change is what has to be changed to make a device what is wanted. Sessions
// with peers that stay as they are go on.
func (t *tunnel) change(now *wgtypes.Device, want *WireGuard) (c wgtypes.Config, differs bool) {
	if now.PrivateKey != want.Key {
		c.PrivateKey, differs = &want.Key, true
	}
	if want.Port != 0 && now.ListenPort != want.Port {
		c.ListenPort, differs = &want.Port, true
	}
	if now.FirewallMark != want.Mark {
		c.FirewallMark, differs = &want.Mark, true
	}
	for _, p := range want.Peers {
		var old *wgtypes.Peer
		for i := range now.Peers {
			if now.Peers[i].PublicKey == p.Key {
				old = &now.Peers[i]
			}
		}
		n := wgtypes.PeerConfig{PublicKey: p.Key, ReplaceAllowedIPs: true}
		touch := old == nil
		var shared wgtypes.Key
		if p.Shared != nil {
			shared = *p.Shared
		}
		if old == nil && p.Shared != nil || old != nil && old.PresharedKey != shared {
			n.PresharedKey, touch = &shared, true
		}
		if old == nil && p.Keepalive != 0 || old != nil && old.PersistentKeepaliveInterval != p.Keepalive {
			n.PersistentKeepaliveInterval, touch = &p.Keepalive, true
		}
		if a, ok := t.found[p.Host]; ok {
			if end := netip.AddrPortFrom(a, p.Port); old == nil || old.Endpoint == nil || t.set[p.Key] != end {
				n.Endpoint, touch = net.UDPAddrFromAddrPort(end), true
			}
		}
		have := map[netip.Prefix]bool{}
		if old != nil {
			for _, ip := range old.AllowedIPs {
				if q, ok := toPrefix(&ip); ok {
					have[q] = true
				}
			}
		}
		for _, q := range p.Allowed {
			n.AllowedIPs = append(n.AllowedIPs, *toIPNet(q))
			touch = touch || !have[q]
		}
		if touch = touch || len(have) != len(p.Allowed); touch {
			c.Peers, differs = append(c.Peers, n), true
		}
	}
	for _, old := range now.Peers {
		if !slices.ContainsFunc(want.Peers, func(p Peer) bool { return p.Key == old.PublicKey }) {
			c.Peers, differs = append(c.Peers, wgtypes.PeerConfig{PublicKey: old.PublicKey, Remove: true}), true
		}
	}
	return c, differs
}
