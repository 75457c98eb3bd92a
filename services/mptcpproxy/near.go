package mptcpproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/settings"
	"weft/services/mptcpproxy/internal/stream"
	"weft/services/mptcpproxy/internal/transparent"
)

// near decides about the TCP connections of our hosts.
type near struct {
	c      *core
	limits *limits

	mu   sync.Mutex
	held map[flowKey]*heldFlow // opened, their SYN not accepted yet
}

// heldFlow is a flow whose host has not been answered yet.
type heldFlow struct {
	mu    sync.Mutex
	flow  *stream.Flow // framed trunks
	fd    int          // a connection of its own; -1: none
	early []byte
	peer  string
	gone  bool // given up: what comes late is thrown away
}

// errNoPeer says that no peer leads to a destination now.
var errNoPeer = errors.New("no peer that is up leads there")

// dialTimeout bounds the making of a connection for one flow.
const dialTimeout = 30 * time.Second

// refused is how a flow over a limit ends: as if the sink had refused it.
func refused() error { return &transparent.ConnectError{Errno: unix.ECONNREFUSED} }

// framed tells whether flows to a peer share trunks.
func framed(p *settings.Peer) bool { return p.Carrier == settings.Convert && p.Framed }

// open is synhold's question whether the far side can connect.
func (n *near) open(src, dst netip.AddrPort, result func(error)) (cancel func()) {
	peer := n.c.routes.find(dst.Addr())
	if peer == nil {
		go result(errNoPeer)
		return nil
	}
	k := flowKey{src, dst}
	if !n.limits.admit(k) {
		go result(refused())
		return nil
	}
	h := &heldFlow{fd: -1, peer: peer.Name}
	n.mu.Lock()
	n.held[k] = h
	n.mu.Unlock()
	outcome := func(err error) {
		if err != nil {
			n.drop(k, h)
			n.limits.done(k)
		}
		result(err)
	}
	if framed(peer) {
		h.mu.Lock()
		h.flow = n.c.engine.Open(peer.Name, src, dst, outcome)
		h.mu.Unlock()
		return func() { n.cancel(k, h) }
	}
	n.c.spawn(func(ctx context.Context) {
		fd, early, err := n.dial(ctx, peer, src, dst)
		h.mu.Lock()
		if err == nil && h.gone {
			h.mu.Unlock()
			n.c.discard(fd)
			return
		}
		if err == nil {
			h.fd, h.early = fd, early
		}
		h.mu.Unlock()
		outcome(err)
	})
	return func() { n.cancel(k, h) }
}

// dial makes a connection for one flow.
func (n *near) dial(ctx context.Context, peer *settings.Peer, src, dst netip.AddrPort) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	fd, early, err := n.c.dialer.DialRaw(ctx, peer.Name, src, dst)
	if err != nil {
		return -1, nil, fmt.Errorf("connect to peer %s for %s: %w", peer.Name, dst, err)
	}
	if early == nil {
		early = []byte{} // tells the engine that we have dialled
	}
	return fd, early, nil
}

// drop takes a held flow out of the table, if it is still there.
func (n *near) drop(k flowKey, h *heldFlow) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held[k] != h {
		return false
	}
	delete(n.held, k)
	return true
}

// cancel gives a held flow up.
func (n *near) cancel(k flowKey, h *heldFlow) {
	if !n.drop(k, h) {
		return // accepted, or failed, meanwhile
	}
	n.limits.done(k)
	h.mu.Lock()
	flow, fd := h.flow, h.fd
	h.gone, h.fd = true, -1
	h.mu.Unlock()
	if flow != nil {
		flow.Abort()
	}
	if fd >= 0 {
		n.c.discard(fd)
	}
}

// accepted takes a connection from the TPROXY listener. It runs in a loop of
// the engine and does not block.
func (n *near) accepted(fd int, src, dst netip.AddrPort) {
	k := flowKey{src, dst}
	n.mu.Lock()
	h := n.held[k]
	delete(n.held, k)
	n.mu.Unlock()
	if hold := n.c.hold.Load(); hold != nil {
		hold.Accepted(src, dst)
	}
	if h != nil {
		h.mu.Lock()
		flow, raw := h.flow, h.fd
		h.fd = -1
		h.mu.Unlock()
		switch {
		case flow != nil:
			flow.Attach(fd)
			return
		case raw >= 0:
			n.c.engine.Raw(fd, raw, h.peer, h.early)
			return
		}
	}
	// The destination is known, or SYNs are always accepted at once.
	peer := n.c.routes.find(dst.Addr())
	if peer == nil || !n.limits.admit(k) {
		reset(fd)
		return
	}
	failed := func(err error) {
		n.limits.done(k)
		n.c.log.Debug("flow was not connected", "peer", peer.Name, "src", src, "dst", dst, "error", err)
		var ce *transparent.ConnectError
		if errors.As(err, &ce) {
			n.c.known(dst, false)
		}
	}
	if framed(peer) {
		flow := n.c.engine.Open(peer.Name, src, dst, func(err error) {
			if err != nil {
				failed(err)
			}
		})
		flow.Attach(fd)
		return
	}
	n.c.spawn(func(ctx context.Context) {
		raw, early, err := n.dial(ctx, peer, src, dst)
		if err != nil {
			failed(err)
			reset(fd)
			return
		}
		n.c.engine.Raw(fd, raw, peer.Name, early)
	})
}

// reset closes a socket with RST.
func reset(fd int) {
	// Without the option it is closed with FIN: the best that is left.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0})
	unix.Close(fd)
}
