// Package watch sees every frame on a link of the lab, whatever the link is made of, and keeps what checks and reports
// ask for: bytes over time, payload of TCP, MPTCP's options, the longest gap, and the frames themselves as a pcap file.
package watch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"weft/test-vm/wire"
)

// Bin is the time that one value of a series stands for.
const Bin = 50 * time.Millisecond

// Head is how much of a frame a watcher needs: Ethernet with two tags, IPv6, TCP with all its options.
const Head = 14 + 8 + 40 + 60

// Link is what was seen on one link. Direction 0 is from its end a to b. A nil *Link sees nothing.
type Link struct {
	Name string

	mu         sync.Mutex
	start      time.Time
	dirs       [2]direction
	recordings []*Recording
	pcap       *pcap
}

type direction struct {
	wire    []uint64 // bytes of frames by bin
	payload []uint64 // bytes of TCP payload by bin
	kinds   map[kind]uint64
}

// kind is what frames are counted by.
type kind struct {
	proto int // IP protocol number, -1 for what is no IP packet
	mptcp bool
}

// New starts to watch; bins count from start.
func New(name string, start time.Time) *Link {
	l := &Link{Name: name, start: start}
	for i := range l.dirs {
		l.dirs[i].kinds = map[kind]uint64{}
	}
	return l
}

// Frame tells of a frame that passed: its direction, when, its length on the wire, and at least its first [Head] bytes.
func (l *Link) Frame(dir int, at time.Time, length int, frame []byte) {
	if l == nil {
		return
	}
	k, payload := kind{proto: -1}, 0
	if proto, _, n, ok := wire.IPProtocol(frame); ok {
		k.proto = proto
		if seg, ok := wire.ParseTCP(frame); ok {
			payload = seg.Payload
			k.mptcp = wire.MPTCP(seg.Options)
		} else if proto != wire.ProtoTCP {
			payload = n
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.dirs[dir]
	d.kinds[k]++
	bin := int(at.Sub(l.start) / Bin)
	if bin >= 0 {
		d.wire = add(d.wire, bin, uint64(length))
		if k.proto == wire.ProtoTCP {
			d.payload = add(d.payload, bin, uint64(payload))
		}
	}
	for _, r := range l.recordings {
		if r.dir == dir && payload >= bulk {
			r.frame(at, payload)
		}
	}
	if l.pcap != nil {
		l.pcap.frame(at, length, frame)
	}
}

func add(series []uint64, bin int, n uint64) []uint64 {
	for len(series) <= bin {
		series = append(series, 0)
	}
	series[bin] += n
	return series
}

// Series are the bytes on the wire so far by [Bin], for each direction.
func (l *Link) Series() [2][]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return [2][]uint64{slices.Clone(l.dirs[0].wire), slices.Clone(l.dirs[1].wire)}
}

// Count is the number of frames so far in both directions, of an IP protocol (0 = any) and with or without an option of
// MPTCP (nil = either).
func (l *Link) Count(proto int, mptcp *bool) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := uint64(0)
	for _, d := range l.dirs {
		for k, c := range d.kinds {
			if (proto == 0 || k.proto == proto) && (mptcp == nil || k.mptcp == *mptcp) {
				n += c
			}
		}
	}
	return n
}

// Recording is what one direction carried over some time: the payload of a bulk transfer, TCP's without its header. Packets
// with less than 256 bytes of payload do not count.
type Recording struct {
	link  *Link
	dir   int
	from  time.Time
	first chan struct{} // closed with the first payload

	mu     sync.Mutex
	began  time.Time // of the first payload
	last   time.Time
	gap    time.Duration
	gapAt  time.Time
	bins   []uint64 // by fineBin since began
	closed bool
}

// bulk is the smallest payload that belongs to a transfer: what is less are words of a control connection.
const bulk = 256

// fineBin is the resolution of a recording.
const fineBin = 10 * time.Millisecond

// Record starts a recording of a direction.
func (l *Link) Record(dir int, from time.Time) *Recording {
	r := &Recording{link: l, dir: dir, from: from, first: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recordings = append(l.recordings, r)
	return r
}

func (r *Recording) frame(at time.Time, payload int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || at.Before(r.from) {
		return
	}
	if r.began.IsZero() {
		r.began, r.last = at, at
		close(r.first)
	}
	if gap := at.Sub(r.last); gap > r.gap {
		r.gap, r.gapAt = gap, r.last
	}
	r.last = at
	r.bins = add(r.bins, int(at.Sub(r.began)/fineBin), uint64(payload))
}

// First is closed when the first payload has passed.
func (r *Recording) First() <-chan struct{} { return r.first }

// Stop ends the recording.
func (r *Recording) Stop() {
	r.link.mu.Lock()
	r.link.recordings = slices.DeleteFunc(r.link.recordings, func(o *Recording) bool { return o == r })
	r.link.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// Began is when the first payload passed, the zero time if none did.
func (r *Recording) Began() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began
}

// Stall is the longest time between two payloads, and when it began. A time without payload from the last one until end
// counts as well.
func (r *Recording) Stall(end time.Time) (time.Duration, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		return end.Sub(r.from), r.from
	}
	if gap := end.Sub(r.last); gap > r.gap {
		return gap, r.last
	}
	return r.gap, r.gapAt
}

// Window is the time over which [Recording.Reached] averages.
const Window = 300 * time.Millisecond

// Reached is how long after at the payload first ran at a rate (bit/s) for a [Window]; ok is false if it never did.
func (r *Recording) Reached(at time.Time, rate float64) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const n = int(Window / fineBin)
	want := rate / 8 * Window.Seconds()
	first := max(int((at.Sub(r.began)+fineBin-1)/fineBin), 0)
	for i := first; i+n <= len(r.bins); i++ {
		sum := 0.0
		for _, b := range r.bins[i : i+n] {
			sum += float64(b)
		}
		if sum >= want {
			return max(r.began.Add(time.Duration(i)*fineBin).Sub(at), 0), true
		}
	}
	return 0, false
}

// Rate is the mean rate of the payload (bit/s) between two times.
func (r *Recording) Rate(from, to time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := 0.0
	for i, b := range r.bins {
		if at := r.began.Add(time.Duration(i) * fineBin); !at.Before(from) && at.Before(to) {
			sum += float64(b)
		}
	}
	if !to.After(from) {
		return 0
	}
	return sum * 8 / to.Sub(from).Seconds()
}

// pcap is a file of whole frames.
type pcap struct {
	file *os.File
	w    *bufio.Writer
	err  error
}

// Pcap writes all frames from now on to a file, in libpcap's format (pcap-savefile(5)) with times in nanoseconds.
func (l *Link) Pcap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("capture of link %s: %w", l.Name, err)
	}
	p := &pcap{file: f, w: bufio.NewWriterSize(f, 1<<16)}
	var head [24]byte
	binary.LittleEndian.PutUint32(head[0:], 0xa1b23c4d) // nanoseconds
	binary.LittleEndian.PutUint16(head[4:], 2)
	binary.LittleEndian.PutUint16(head[6:], 4)
	binary.LittleEndian.PutUint32(head[16:], 1<<18)
	binary.LittleEndian.PutUint32(head[20:], 1) // LINKTYPE_ETHERNET
	_, p.err = p.w.Write(head[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pcap = p
	return nil
}

func (p *pcap) frame(at time.Time, length int, frame []byte) {
	if p.err != nil {
		return
	}
	var head [16]byte
	binary.LittleEndian.PutUint32(head[0:], uint32(at.Unix()))
	binary.LittleEndian.PutUint32(head[4:], uint32(at.Nanosecond()))
	binary.LittleEndian.PutUint32(head[8:], uint32(len(frame)))
	binary.LittleEndian.PutUint32(head[12:], uint32(length))
	p.w.Write(head[:])
	_, p.err = p.w.Write(frame) // a bufio.Writer keeps its first error
}

// Close ends the pcap file, if there is one.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pcap == nil {
		return nil
	}
	p := l.pcap
	l.pcap = nil
	if err := errors.Join(p.err, p.w.Flush(), p.file.Close()); err != nil {
		return fmt.Errorf("capture of link %s: %w", l.Name, err)
	}
	return nil
}
