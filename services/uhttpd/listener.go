package uhttpd

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// minPerAddress is how many connections each address may have at least.
const minPerAddress = 8

// gate counts the connections of an instance: so many together, a third of them
// from one address, so that one host cannot take all.
type gate struct {
	max int

	mu    sync.Mutex
	all   int
	from  map[netip.Addr]int
	stall time.Duration // a write that makes no progress for longer ends the connection
}

func newGate(i *instance) *gate {
	return &gate{max: i.maxConns, from: map[netip.Addr]int{}, stall: i.network}
}

func (g *gate) enter(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= g.max || g.from[a] >= max(minPerAddress, g.max/3) {
		return false
	}
	g.all++
	g.from[a]++
	return true
}

func (g *gate) leave(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.from[a]--; g.from[a] == 0 {
		delete(g.from, a)
	}
}

// gated is a listener behind a gate. A connection that does not get in is closed
// at once.
type gated struct {
	net.Listener
	g *gate
}

func (l *gated) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		a := clientOf(c.RemoteAddr())
		if !l.g.enter(a) {
			c.Close()
			continue
		}
		return &conn{Conn: c, stall: l.g.stall, leave: sync.OnceFunc(func() { l.g.leave(a) })}, nil
	}
}

// conn gives its place back when it is closed, and ends when the client does not
// take what is written.
type conn struct {
	net.Conn
	stall time.Duration
	leave func()
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// clientOf is the address of a peer.
func clientOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
