package mptcpproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/transparent"
)

// errNobody says that no gateway may dial us.
var errNobody = errors.New("no accept section lets anybody in")

// connectTimeout bounds a connection to a sink that nobody else bounds.
const connectTimeout = 2 * time.Minute

// connect starts the connection to the sink, with the client's address.
func (c *core) connect(src, dst netip.AddrPort, _ string) (int, error) {
	return transparent.Connect(src, dst, intercept.MarkConnect)
}

// allow decides whether a peer may open a flow. Whatever the rules say, nobody
// reaches what only this machine itself shall reach, or speaks in its name.
func (c *core) allow(peer string, src, dst netip.AddrPort) error {
	if c.listener == nil {
		return errNobody
	}
	for _, a := range []netip.Addr{src.Addr(), dst.Addr()} {
		if a = a.Unmap(); a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fmt.Errorf("peer %s asks for %s -> %s: loopback, multicast and broadcast addresses are never let through", peer, src, dst)
		}
	}
	return c.listener.Allow(peer, src, dst)
}

// acceptedRaw takes a flow of a carrier that uses a connection for each, fd,
// and connects it with its sink.
func (c *core) acceptedRaw(fd int, peer string, src, dst netip.AddrPort, early []byte) {
	c.spawn(func(ctx context.Context) {
		err := c.allow(peer, src, dst)
		sink := -1
		if err == nil {
			sink, err = connectWait(ctx, src, dst, early)
		}
		if err != nil {
			c.log.Debug("flow was not connected", "peer", peer, "src", src, "dst", dst, "error", err)
			c.discard(fd)
			return
		}
		c.engine.Raw(sink, fd, peer, nil)
	})
}

// connectWait connects to the sink, waits for the outcome and sends early.
func connectWait(ctx context.Context, src, dst netip.AddrPort, early []byte) (int, error) {
	fd, err := transparent.Connect(src, dst, intercept.MarkConnect)
	if err != nil {
		return -1, err
	}
	f := os.NewFile(uintptr(fd), "sink")
	defer f.Close()
	deadline, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	stop := context.AfterFunc(deadline, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("wait for the connection to %s: %w", dst, err)
	}
	var outcome error
	err = rc.Write(func(raw uintptr) bool {
		outcome = transparent.Finish(int(raw))
		return !errors.Is(outcome, unix.EINPROGRESS)
	})
	if err != nil {
		return -1, fmt.Errorf("wait for the connection to %s: %w", dst, err)
	}
	if outcome != nil {
		return -1, outcome
	}
	if _, err := f.Write(early); err != nil {
		return -1, fmt.Errorf("send the first bytes to %s: %w", dst, err)
	}
	out := -1
	err = rc.Control(func(raw uintptr) { out, outcome = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0) })
	return out, errors.Join(err, outcome)
}

// acceptedNone takes an MPTCP connection that a near gateway with the carrier
// none has dialled to the sink itself.
func (c *core) acceptedNone(fd int, src, dst netip.AddrPort) {
	if c.listener == nil {
		reset(fd)
		return
	}
	peer, err := c.listener.AllowNone(src, dst)
	if err != nil {
		c.log.Debug("flow was not allowed", "src", src, "dst", dst, "error", err)
		reset(fd)
		return
	}
	c.paths.Register(fd, peer, false)
	c.governor.Register(fd, peer)
	c.acceptedRaw(fd, peer, src, dst, nil)
}
