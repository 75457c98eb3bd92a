package network

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/init/uci"
)

// peerType is how the types of sections begin that describe WireGuard peers;
// the rest is the name of the interface.
const peerType = "wireguard_"

// WireGuard is proto wireguard.
type WireGuard struct {
	Key    wgtypes.Key
	Port   int // 0: any
	Mark   int
	NoHost bool // no routes to the ends of the tunnel
	Peers  []Peer
}

// Peer is the other end of a tunnel.
type Peer struct {
	Key       wgtypes.Key
	Shared    *wgtypes.Key
	Allowed   []netip.Prefix
	Host      string // empty: it comes to us
	Port      uint16
	Keepalive time.Duration
	Routes    bool // for what it is allowed
}

func (i *Interface) wireguard(r *reader) {
	w := &WireGuard{Port: r.number("listen_port", 0, 0, 65535), NoHost: r.bool("nohostroute", false)}
	i.WireGuard = w
	if v := r.s.String("private_key", "generate"); v == "generate" {
		r.bad("private_key", r.s.String("private_key", ""), "a key as `wg genkey` makes it")
	} else if k, err := wgtypes.ParseKey(v); err != nil {
		r.bad("private_key", "(hidden)", "a key as `wg genkey` makes it")
	} else {
		w.Key = k
	}
	if v, ok := r.s.Get("fwmark"); ok {
		n, err := strconv.ParseUint(v, 0, 31)
		if err != nil {
			r.bad("fwmark", v, "a number such as 0x10")
		}
		w.Mark = int(n)
	}
	if i.MTU == 0 {
		i.MTU = 1420 // fits into 1500 bytes over IPv6
	}
	for _, v := range r.s.List("addresses") {
		six, bits := strings.Contains(v, ":"), 32
		if six {
			bits = 128
		}
		if p, ok := r.prefix("addresses", v, six, bits); ok && !slices.Contains(i.Addrs, p) {
			i.Addrs = append(i.Addrs, p)
		}
	}
	i.prefixes(r)
}

// peer reads a `wireguard_<interface>` section into its interface. A faulty one
// is left out; the tunnel to others works.
func (c *Config) peer(s *uci.Section) {
	r := &reader{s: s}
	if r.bool("disabled", false) {
		return
	}
	i := c.find(strings.TrimPrefix(s.Type, peerType))
	if i == nil || i.WireGuard == nil {
		c.Problems = append(c.Problems, Problem{Section: s.Name, Expected: "sections of type " + s.Type + " belong to an interface of that name with proto wireguard"})
		return
	}
	p := Peer{
		Host: s.String("endpoint_host", ""), Port: uint16(r.number("endpoint_port", 51820, 1, 65535)),
		Keepalive: time.Duration(r.number("persistent_keepalive", 0, 0, 65535)) * time.Second,
		Routes:    r.bool("route_allowed_ips", false),
	}
	key := s.String("public_key", "")
	var err error
	if p.Key, err = wgtypes.ParseKey(key); err != nil {
		r.bad("public_key", key, "a key as `wg pubkey` makes it")
	}
	if v, ok := s.Get("preshared_key"); ok {
		k, err := wgtypes.ParseKey(v)
		if err != nil {
			r.bad("preshared_key", "(hidden)", "a key as `wg genpsk` makes it")
		}
		p.Shared = &k
	}
	if h := strings.Trim(p.Host, "[]"); h != "" {
		p.Host = h
		if net.ParseIP(h) == nil && !validDomain(h) {
			r.bad("endpoint_host", h, "an IP address or a host name")
		}
	}
	for _, v := range s.List("allowed_ips") {
		for _, v := range strings.Fields(v) {
			six := strings.Contains(v, ":")
			bits := 32
			if six {
				bits = 128
			}
			if n := r.target("allowed_ips", v, six, bits); n.IsValid() && !slices.Contains(p.Allowed, n) {
				p.Allowed = append(p.Allowed, n)
			}
		}
	}
	if slices.ContainsFunc(i.WireGuard.Peers, func(q Peer) bool { return q.Key == p.Key }) {
		r.bad("public_key", key, "a key that no other peer of the interface has")
	}
	c.Problems = append(c.Problems, r.problems...)
	if len(r.problems) == 0 {
		i.WireGuard.Peers = append(i.WireGuard.Peers, p)
	}
}
