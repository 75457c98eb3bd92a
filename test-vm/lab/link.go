package lab

import (
	"bufio"
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

	mu     sync.Mutex
	ports  map[*Plug]struct{}
	filter func(from string, frame []byte) bool
	cut    bool
	stats  LinkStats
}

// Plug is one port of a link: a machine's card, or something in this process ([Link.Join]).
type Plug struct {
	link *Link
	name string

	mu   sync.Mutex // keeps frames whole
	send func(withLength []byte) error
}

// Join makes a port in this process. send gets every frame of the other ports; it must not keep it, and what it cannot
// take is dropped. name is what a filter is told.
func (l *Link) Join(name string, send func(frame []byte) error) *Plug {
	return l.join(name, func(withLength []byte) error { return send(withLength[4:]) })
}

func (l *Link) join(name string, send func(withLength []byte) error) *Plug {
	p := &Plug{link: l, name: name, send: send}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports[p] = struct{}{}
	return p
}

// Send hands a frame to the link.
func (p *Plug) Send(frame []byte) {
	withLength := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(frame)), uint32(len(frame)))
	p.link.forward(p, append(withLength, frame...))
}

// Leave takes the port away.
func (p *Plug) Leave() {
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	delete(p.link.ports, p)
}

// Filter has f look at every frame, which it may change, and drop it by returning false. from is the name of the port
// that sent it: for a machine's card, the machine's. f is called by several goroutines and must not keep the frame.
func (l *Link) Filter(f func(from string, frame []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.filter = f
}

// LinkStats counts what a link carried.
type LinkStats struct {
	Frames, Bytes uint64 // received from any port
	Dropped       uint64 // because the link was cut, or a port had gone
}

// maxFrame is larger than any frame QEMU sends: NET_BUFSIZE, 4096 + 65536 (QEMU include/net/net.h).
const maxFrame = 4096 + 65536

// NewLink makes a segment without ports.
func NewLink(name string) *Link { return &Link{Name: name, ports: map[*Plug]struct{}{}} }

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

// serve is the port of a machine: it forwards what conn sends until conn ends.
func (l *Link) serve(name string, conn net.Conn) error {
	p := l.join(name, func(withLength []byte) error {
		_, err := conn.Write(withLength)
		return err
	})
	defer p.Leave()
	// One read brings many frames when there are many.
	return readFrames(bufio.NewReaderSize(conn, 1<<16), func(frame []byte) { l.forward(p, frame) })
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
func (l *Link) forward(from *Plug, frame []byte) {
	l.mu.Lock()
	filter := l.filter
	l.mu.Unlock()
	pass := filter == nil || filter(from.name, frame[4:])
	l.mu.Lock()
	l.stats.Frames++
	l.stats.Bytes += uint64(len(frame) - 4)
	if l.cut || !pass {
		l.stats.Dropped++
		l.mu.Unlock()
		return
	}
	others := make([]*Plug, 0, len(l.ports))
	for p := range l.ports {
		if p != from {
			others = append(others, p)
		}
	}
	l.mu.Unlock()
	for _, p := range others {
		p.mu.Lock()
		err := p.send(frame)
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
