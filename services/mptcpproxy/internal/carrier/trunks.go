package carrier

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/stream"
)

// lastID numbers trunks; one sequence for both sides, so that an ID is unique
// in the process.
var lastID atomic.Uint64

// trunk is one that the engine owns.
type trunk struct {
	conn  Conn
	since time.Time
	busy  bool
	freed time.Time // when it last became idle
}

// idleFor says that no flow has used the trunk for d. A shorter time would
// often hit trunks that are just being taken.
func (t *trunk) idleFor(d time.Duration, now time.Time) bool {
	return !t.busy && now.Sub(t.freed) >= d
}

// trunks is the register of what was handed to the engine. A descriptor in it
// is open: the engine calls closed before it closes one.
type trunks struct {
	mu   sync.Mutex
	byID map[uint64]*trunk
	raw  map[int]Conn
	told bool // setBusy is called: what is not busy, is idle
}

// add hands an authenticated connection over. It owns raw in any case.
func (r *trunks) add(e Engine, onConn, onClose func(Conn), c *tls.Conn, raw *net.TCPConn, conn Conn, sealed bool) (uint64, error) {
	t := stream.Trunk{Peer: conn.Peer, Near: conn.Near, ID: lastID.Add(1)}
	if sealed {
		if err := trunkKeys(&t, c.ConnectionState(), conn.Near); err != nil {
			reset(raw)
			return 0, err
		}
	}
	fd, err := takeFD(raw)
	if err != nil {
		return 0, err
	}
	t.FD, conn.FD, conn.Trunk = fd, fd, true
	r.mu.Lock()
	if r.byID == nil {
		r.byID = make(map[uint64]*trunk)
	}
	now := time.Now()
	r.byID[t.ID] = &trunk{conn: conn, since: now, freed: now}
	r.mu.Unlock()
	if onConn != nil {
		onConn(conn)
	}
	e.AddTrunk(t)
	return t.ID, nil
}

// closed takes a trunk out; false when it is not one of these.
func (r *trunks) closed(id uint64) (Conn, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.byID[id]
	if t == nil {
		return Conn{}, false
	}
	delete(r.byID, id)
	return t.conn, true
}

func (r *trunks) setBusy(id uint64, busy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = true
	if t := r.byID[id]; t != nil {
		t.busy = busy
		if !busy {
			t.freed = time.Now()
		}
	}
}

// count gives the trunks of a peer, and how many were added after since.
func (r *trunks) count(peer string, since time.Time) (n, fresh int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.byID {
		if t.conn.Peer != peer {
			continue
		}
		n++
		if !t.busy && t.since.After(since) {
			fresh++
		}
	}
	return n, fresh
}

// retire shuts the trunks down that which chooses; the engine then closes them
// and moves an OPEN that was under way to another one.
func (r *trunks) retire(which func(t *trunk) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.byID {
		if which(t) {
			_ = unix.Shutdown(t.conn.FD, unix.SHUT_RDWR)
		}
	}
}

// retireIdle does so with idle ones, as far as they are known.
func (r *trunks) retireIdle(which func(t *trunk) bool) {
	r.mu.Lock()
	told := r.told
	r.mu.Unlock()
	if told {
		now := time.Now()
		r.retire(func(t *trunk) bool { return t.idleFor(restBeforeEnd, now) && which(t) })
	}
}

func (r *trunks) addRaw(c Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.raw == nil {
		r.raw = make(map[int]Conn)
	}
	r.raw[c.FD] = c
}

func (r *trunks) closeRaw(fd int) (Conn, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.raw[fd]
	delete(r.raw, fd)
	return c, ok
}
