// Package wire is a cable between two network devices that is as bad as asked: rate, queue, delay, jitter, loss, black
// hole, each direction by itself. It moves frames between two packet sockets with one thread a direction, to about
// 0.1 ms; it is meant for up to some 100 Mbit/s and for frames of MTU size with valid checksums (offloads of the devices
// at the far ends of the veth pairs must be off). The kernel's netem does the same where a kernel has it.
package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Direction of frames.
type Direction int

// The directions: Up is from the first device of Open to the second.
const (
	Up Direction = iota
	Down
)

// Kind says what one direction of a wire does to frames.
type Kind struct {
	Rate   float64       // Mbit/s of frames, Ethernet header included; 0 = no bound
	Queue  time.Duration // what waits longer for the rate is dropped; 0 with a rate = 50 ms
	Delay  time.Duration
	Jitter time.Duration // added to Delay, evenly distributed; frames keep their order
	Loss   float64       // share of frames that vanish
	Black  bool          // all frames vanish
}

// Stats counts the frames of one direction.
type Stats struct {
	Frames, Bytes uint64 // arrived
	Lost          uint64 // by Loss and Black
	Dropped       uint64 // by Queue
	Refused       uint64 // by the device at the other end, for example because it is down
}

// Wire is a running wire.
type Wire struct {
	fds  [2]int
	dirs [2]*direction
	stop [2]int // pipe: reading end, writing end
	wg   sync.WaitGroup
}

// Open joins two devices of the network namespace of the calling thread. Losses and jitter follow from the seed.
func Open(a, b string, seed uint64) (*Wire, error) {
	w := &Wire{fds: [2]int{-1, -1}, stop: [2]int{-1, -1}}
	for i, name := range []string{a, b} {
		fd, err := packetSocket(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open device %s: %w", name, err), w.closeFDs())
		}
		w.fds[i] = fd
	}
	if err := unix.Pipe2(w.stop[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), w.closeFDs())
	}
	for i := range w.dirs {
		d := &direction{in: w.fds[i], out: w.fds[1-i], stop: w.stop[0], rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		w.dirs[i] = d
		w.wg.Go(d.run)
	}
	return w, nil
}

// packetSocket receives what arrives on a device and sends to it.
func packetSocket(name string) (int, error) {
	const all = 0x0003 // ETH_P_ALL
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	proto := uint16(all<<8 | all>>8) // network order
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error { return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: iface.Index}) },
	} {
		if err := set(); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}

// Set says what a direction shall be like from now on; frames on their way arrive as they would have.
func (w *Wire) Set(d Direction, k Kind) { w.Change(d, func(to *Kind) { *to = k }) }

// Change edits what a direction is like.
func (w *Wire) Change(d Direction, edit func(*Kind)) {
	dir := w.dirs[d]
	dir.mu.Lock()
	defer dir.mu.Unlock()
	edit(&dir.kind)
}

// Stats returns what a direction has done.
func (w *Wire) Stats(d Direction) Stats {
	dir := w.dirs[d]
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return dir.stats
}

// Close ends the wire; frames on their way are lost.
func (w *Wire) Close() error {
	if _, err := unix.Write(w.stop[1], []byte{0}); err != nil {
		return fmt.Errorf("stop a wire: %w", err)
	}
	w.wg.Wait()
	return w.closeFDs()
}

func (w *Wire) closeFDs() error {
	var errs []error
	for _, fd := range []int{w.fds[0], w.fds[1], w.stop[0], w.stop[1]} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

type frame struct {
	due  time.Time
	data []byte
}

type direction struct {
	in, out, stop int

	mu    sync.Mutex
	kind  Kind
	stats Stats

	// The rest belongs to run.
	rng     *rand.Rand
	waiting []frame // by due, which never falls
	free    [][]byte
	sent    time.Time // when the rate lets the last frame go
}

const maxFrame = 1 << 16

func (d *direction) run() {
	runtime.LockOSThread() // sleeps in ppoll, to be woken to the microsecond
	defer runtime.UnlockOSThread()
	buf := make([]byte, maxFrame)
	for {
		var timeout *unix.Timespec
		if len(d.waiting) > 0 {
			ts := unix.NsecToTimespec(max(0, time.Until(d.waiting[0].due).Nanoseconds()))
			timeout = &ts
		}
		polls := []unix.PollFd{{Fd: int32(d.in), Events: unix.POLLIN}, {Fd: int32(d.stop), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(polls, timeout, nil); err != nil && err != unix.EINTR {
			return
		}
		if polls[1].Revents != 0 {
			return
		}
		for range 64 { // and then look whether a frame is due
			// A device that is down reports it once as an error of the socket; frames come again when it is up.
			n, _, err := unix.Recvfrom(d.in, buf, 0)
			if err != nil {
				break
			}
			d.take(time.Now(), buf[:n])
		}
		d.send(time.Now())
	}
}

// take decides on the fate of a frame that has arrived.
func (d *direction) take(now time.Time, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.kind
	d.stats.Frames++
	d.stats.Bytes += uint64(len(data))
	if k.Black || k.Loss > 0 && d.rng.Float64() < k.Loss {
		d.stats.Lost++
		return
	}
	due := now
	if k.Rate > 0 {
		if k.Queue == 0 {
			k.Queue = 50 * time.Millisecond
		}
		if d.sent.After(due) {
			due = d.sent
		}
		if due.Sub(now) > k.Queue {
			d.stats.Dropped++
			return
		}
		due = due.Add(time.Duration(float64(len(data)) * 8 / k.Rate * 1e3))
		d.sent = due
	}
	due = due.Add(k.Delay)
	if k.Jitter > 0 {
		due = due.Add(time.Duration(d.rng.Int64N(int64(k.Jitter))))
	}
	if n := len(d.waiting); n > 0 && d.waiting[n-1].due.After(due) {
		due = d.waiting[n-1].due
	}
	var b []byte
	if n := len(d.free); n > 0 {
		b, d.free = d.free[n-1], d.free[:n-1]
	}
	d.waiting = append(d.waiting, frame{due, append(b[:0], data...)})
}

// send lets all frames go that are due.
func (d *direction) send(now time.Time) {
	n := 0
	for ; n < len(d.waiting) && !d.waiting[n].due.After(now); n++ {
		f := &d.waiting[n]
		if err := unix.Send(d.out, f.data, 0); err != nil {
			d.mu.Lock()
			d.stats.Refused++
			d.mu.Unlock()
		}
		d.free = append(d.free, f.data)
		f.data = nil
	}
	if n > 0 {
		d.waiting = append(d.waiting[:0], d.waiting[n:]...)
	}
}
