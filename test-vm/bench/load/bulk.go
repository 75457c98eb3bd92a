package load

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/bed"
)

// Sample is what a receiver had at a moment.
type Sample struct {
	At    time.Time
	Total int64 // bytes since the start
}

// Bulk is one connection from client to sink that is kept full in one direction.
type Bulk struct {
	mu      sync.Mutex
	samples []Sample
	total   int64
	err     error

	stopping     atomic.Bool
	client, sink int
	done         []<-chan struct{}
}

// StartBulk connects a client to a sink, both nodes of one bed, and sends as fast as the connection takes it, or at rate
// (Mbit/s of payload) if that is not 0. Port must be free at the sink.
func StartBulk(client, sink *bed.Node, at netip.AddrPort, d bed.Direction, rate float64) (*Bulk, error) {
	b := &Bulk{}
	var l int
	if err := sink.Do(func() (err error) { l, err = listen(at, 0); return err }); err != nil {
		return nil, err
	}
	setPatience(l)
	// The listener is closed once the one connection is there.
	type accepted struct {
		fd  int
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		for {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			got <- accepted{fd, err}
			return
		}
	}()
	err := client.Call(func() (err error) { b.client, err = dial(at); return err })
	if err != nil {
		unix.Shutdown(l, unix.SHUT_RDWR) // ends the accept
	}
	a := <-got
	unix.Close(l)
	switch {
	case err != nil:
		if a.err == nil {
			unix.Close(a.fd)
		}
		return nil, fmt.Errorf("start a bulk transfer: %w", err)
	case a.err != nil:
		unix.Close(b.client)
		return nil, fmt.Errorf("start a bulk transfer: the client has connected, the sink not: %w", a.err)
	}
	b.sink = a.fd
	setPatience(b.sink)
	from, to, fromFD, toFD := client, sink, b.client, b.sink
	if d == bed.Down {
		from, to, fromFD, toFD = sink, client, b.sink, b.client
	}
	b.done = []<-chan struct{}{
		to.Thread(func() { b.receive(toFD) }),
		from.Thread(func() { b.send(fromFD, rate) }),
	}
	return b, nil
}

// fail keeps the first error of a transfer that nobody has stopped.
func (b *Bulk) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && !b.stopping.Load() {
		b.err = err
	}
}

func (b *Bulk) send(fd int, rate float64) {
	buf := make([]byte, 128<<10)
	start, sent := time.Now(), int64(0)
	for !b.stopping.Load() {
		if rate > 0 {
			sleepUntil(start.Add(time.Duration(float64(sent) * 8 / rate * 1e3)))
		}
		n, err := write(fd, buf)
		sent += int64(n)
		if err != nil {
			b.fail(fmt.Errorf("send: %w", err))
			return
		}
	}
}

func (b *Bulk) receive(fd int) {
	buf := make([]byte, 256<<10)
	for {
		n, err := read(fd, buf)
		now := time.Now()
		if err != nil || n == 0 {
			if err == nil {
				err = errEarlyEnd
			}
			b.fail(fmt.Errorf("receive: %w", err))
			return
		}
		b.mu.Lock()
		b.total += int64(n)
		// One sample a millisecond is enough, but the first after a gap is always kept.
		if k := len(b.samples); k == 0 || now.Sub(b.samples[k-1].At) >= time.Millisecond {
			b.samples = append(b.samples, Sample{now, b.total})
		} else {
			b.samples[k-1].Total = b.total
		}
		b.mu.Unlock()
	}
}

// Err is why the transfer has ended by itself, nil while it runs.
func (b *Bulk) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Total is what has been received, in bytes.
func (b *Bulk) Total() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// Stop ends the transfer with a reset and waits for its threads.
func (b *Bulk) Stop() error {
	b.stopping.Store(true)
	unix.SetsockoptLinger(b.client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.SetsockoptLinger(b.sink, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Shutdown(b.client, unix.SHUT_RDWR)
	unix.Shutdown(b.sink, unix.SHUT_RDWR)
	for _, d := range b.done {
		<-d
	}
	return errors.Join(unix.Close(b.client), unix.Close(b.sink))
}

// Series returns what was received over time.
func (b *Bulk) Series() Series {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append(Series(nil), b.samples...)
}

// Series are the samples of a receiver in order of time.
type Series []Sample

// At is the number of bytes received until t.
func (s Series) At(t time.Time) int64 {
	var n int64
	for _, x := range s {
		if x.At.After(t) {
			break
		}
		n = x.Total
	}
	return n
}

// Goodput is Mbit/s between two moments.
func (s Series) Goodput(from, to time.Time) float64 {
	return float64(s.At(to)-s.At(from)) * 8 / 1e6 / to.Sub(from).Seconds()
}

// Stall is the longest time in [from, to] in which nothing arrived.
func (s Series) Stall(from, to time.Time) time.Duration {
	last, longest := from, time.Duration(0)
	for _, x := range s {
		if x.At.Before(from) {
			continue
		}
		if x.At.After(to) {
			break
		}
		longest = max(longest, x.At.Sub(last))
		last = x.At
	}
	return max(longest, to.Sub(last))
}

// Recovered is the time from a moment until the goodput is want (Mbit/s) again: the mean over the window that starts
// then. It reports false if that does not happen before end.
func (s Series) Recovered(from, end time.Time, want float64, window time.Duration) (time.Duration, bool) {
	const step = 20 * time.Millisecond
	for t := from; !t.Add(window).After(end); t = t.Add(step) {
		if s.Goodput(t, t.Add(window)) >= want {
			return t.Sub(from), true
		}
	}
	return end.Sub(from), false
}
