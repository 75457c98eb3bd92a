package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Link is an Ethernet segment between the cards of machines: each frame goes to all other ports. It lives in this
// process, so that machines may come and go in any order and the segment can be cut.
//
// Wire format on each port: QEMU's stream netdev, a big-endian 32-bit length before each frame (QEMU net/stream.c).
type Link struct {
	Name string

	mu    sync.Mutex
	ports map[net.Conn]*sync.Mutex // with the lock that keeps frames whole
	cut   bool
	stats LinkStats
}

// LinkStats counts what a link carried.
type LinkStats struct {
	Frames, Bytes uint64 // received from any port
	Dropped       uint64 // because the link was cut, or a port had gone
}

// maxFrame is larger than any frame QEMU sends: NET_BUFSIZE, 4096 + 65536 (QEMU include/net/net.h).
const maxFrame = 4096 + 65536

// NewLink makes a segment without ports.
func NewLink(name string) *Link { return &Link{Name: name, ports: map[net.Conn]*sync.Mutex{}} }

// Cut makes the link drop every frame, as a pulled cable whose carrier stays; Restore ends that.
func (l *Link) Cut() { l.setCut(true) }

// Restore ends Cut.
func (l *Link) Restore() { l.setCut(false) }

func (l *Link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

// Stats is what the link carried so far.
func (l *Link) Stats() LinkStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// serve is one port: it forwards what conn sends until conn ends.
func (l *Link) serve(conn net.Conn) error {
	l.mu.Lock()
	l.ports[conn] = new(sync.Mutex)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.ports, conn)
		l.mu.Unlock()
	}()
	return readFrames(conn, func(frame []byte) { l.forward(conn, frame) })
}

// readFrames calls f with each frame of r, its length field in front. The slice is reused.
func readFrames(r io.Reader, f func(withLength []byte)) error {
	buf := make([]byte, 4, 4+2048)
	for {
		if _, err := io.ReadFull(r, buf[:4]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read frame length: %w", err)
		}
		n := binary.BigEndian.Uint32(buf)
		if n > maxFrame {
			return fmt.Errorf("frame of %d bytes is longer than QEMU sends (%d): the stream is out of step", n, maxFrame)
		}
		if cap(buf) < int(4+n) {
			buf = append(make([]byte, 0, 4+n), buf[:4]...)
		}
		frame := buf[:4+n]
		if _, err := io.ReadFull(r, frame[4:]); err != nil {
			return fmt.Errorf("read frame of %d bytes: %w", n, err)
		}
		f(frame)
	}
}

// forward sends a frame to every port but its own.
func (l *Link) forward(from net.Conn, frame []byte) {
	l.mu.Lock()
	l.stats.Frames++
	l.stats.Bytes += uint64(len(frame) - 4)
	if l.cut {
		l.stats.Dropped++
		l.mu.Unlock()
		return
	}
	type port struct {
		conn net.Conn
		mu   *sync.Mutex
	}
	others := make([]port, 0, len(l.ports))
	for conn, mu := range l.ports {
		if conn != from {
			others = append(others, port{conn, mu})
		}
	}
	l.mu.Unlock()
	for _, p := range others {
		p.mu.Lock()
		_, err := p.conn.Write(frame)
		p.mu.Unlock()
		if err != nil {
			l.mu.Lock()
			l.stats.Dropped++
			l.mu.Unlock()
		}
	}
}

// portCount is the number of machines' cards on the link now.
func (l *Link) portCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ports)
}
