package load

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/test-vm/bench/bed"
)

// PingPong sends 64 bytes to an echo server and waits for them, again and again over one connection, and returns the
// round trips. It pauses gap between them.
func PingPong(ctx context.Context, client *bed.Node, to netip.AddrPort, during, gap time.Duration) ([]time.Duration, error) {
	var trips []time.Duration
	err := client.Call(func() error {
		fd, err := dial(to)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		noDelay(fd)
		buf := make([]byte, 64)
		for end := time.Now().Add(during); time.Now().Before(end) && ctx.Err() == nil; {
			start := time.Now()
			if err := writeAll(fd, buf); err != nil {
				return fmt.Errorf("send a ping: %w", err)
			}
			if err := readAll(fd, buf); err != nil {
				return fmt.Errorf("wait for a pong: %w", err)
			}
			trips = append(trips, time.Since(start))
			sleepUntil(time.Now().Add(gap))
		}
		return ctx.Err()
	})
	return trips, err
}

// FirstAnswers opens flows one after another and returns for each the time from connect to the first byte of the answer
// to a request of one byte.
func FirstAnswers(ctx context.Context, client *bed.Node, to netip.AddrPort, flows int, gap time.Duration) ([]time.Duration, error) {
	var times []time.Duration
	err := client.Call(func() error {
		for range flows {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			start := time.Now()
			fd, err := dial(to)
			if err != nil {
				return err
			}
			b := []byte{1}
			if err = writeAll(fd, b); err == nil {
				err = readAll(fd, b)
			}
			times = append(times, time.Since(start))
			abort(fd)
			if err != nil {
				return fmt.Errorf("first answer of a new flow: %w", err)
			}
			sleepUntil(time.Now().Add(gap))
		}
		return nil
	})
	return times, err
}

// Churned is what Churn has found.
type Churned struct {
	Done, Failed int64
	Took         time.Duration
	Errors       map[string]int // message: how often
}

// Rate is connections per second.
func (c Churned) Rate() float64 { return float64(c.Done) / c.Took.Seconds() }

// Why lists the errors, the most frequent first.
func (c Churned) Why() string {
	keys := slices.SortedFunc(maps.Keys(c.Errors), func(a, b string) int { return c.Errors[b] - c.Errors[a] })
	var parts []string
	for _, k := range keys[:min(3, len(keys))] {
		parts = append(parts, fmt.Sprintf("%d × %s", c.Errors[k], k))
	}
	return strings.Join(parts, "; ")
}

// Churn connects, sends a byte, reads the echo and closes, with as many workers at once, until the time is over. Closing
// is a reset, or a normal close by the client. The servers are taken in turn.
func Churn(ctx context.Context, client *bed.Node, to []netip.AddrPort, workers int, during time.Duration, reset bool) Churned {
	c := Churned{Errors: map[string]int{}}
	var mu sync.Mutex
	var done, failed, turn atomic.Int64
	start := time.Now()
	end := start.Add(during)
	var threads []<-chan struct{}
	for range workers {
		threads = append(threads, client.Thread(func() {
			b := []byte{1}
			for time.Now().Before(end) && ctx.Err() == nil {
				what, err := churnOne(to[int(turn.Add(1))%len(to)], b, reset)
				if err == nil {
					done.Add(1)
					continue
				}
				failed.Add(1)
				for e := err; e != nil; { // the innermost error: addresses would make each message another
					err = e
					u, ok := e.(interface{ Unwrap() error })
					if !ok {
						break
					}
					e = u.Unwrap()
				}
				mu.Lock()
				c.Errors[what+": "+err.Error()]++
				mu.Unlock()
			}
		}))
	}
	for _, t := range threads {
		<-t
	}
	c.Done, c.Failed, c.Took = done.Load(), failed.Load(), time.Since(start)
	return c
}

func churnOne(to netip.AddrPort, b []byte, reset bool) (what string, err error) {
	fd, err := dial(to)
	if err != nil {
		return "connect", err
	}
	if err = writeAll(fd, b); err != nil {
		what = "send"
	} else if err = readAll(fd, b); err != nil {
		what = "answer"
	}
	if reset {
		abort(fd)
	} else {
		unix.Close(fd)
	}
	return what, err
}

// Idle are flows that have done one round trip and then rest.
type Idle struct {
	workers []*idleWorker
	Failed  int64
	Why     string // of the first failure
}

// idleWorker is a thread with open files of its own, so that all together can have more than a process may.
type idleWorker struct {
	fds   []int
	calls chan func()
	ended <-chan struct{}
}

// OpenIdle opens flows to echo servers, the servers in turn, one byte each way on every flow, from so many threads. Close
// must be called.
func OpenIdle(ctx context.Context, client *bed.Node, to []netip.AddrPort, flows, workers int) *Idle {
	i := &Idle{}
	var mu sync.Mutex
	var next atomic.Int64
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if i.Failed++; i.Why == "" {
			i.Why = err.Error()
		}
	}
	var opening sync.WaitGroup
	for range workers {
		w := &idleWorker{calls: make(chan func())}
		i.workers = append(i.workers, w)
		opening.Add(1)
		w.ended = client.Thread(func() {
			b := []byte{1}
			err := ownFiles(0, 1, 2)
			for ctx.Err() == nil && err == nil {
				k := int(next.Add(1)) - 1
				if k >= flows {
					break
				}
				fd, err := dial(to[k%len(to)])
				if err == nil {
					if err = writeAll(fd, b); err == nil {
						err = readAll(fd, b)
					}
					if err != nil {
						unix.Close(fd)
					}
				}
				if err != nil {
					fail(err)
					continue
				}
				w.fds = append(w.fds, fd)
			}
			if err != nil {
				fail(err)
			}
			opening.Done()
			for f := range w.calls {
				f()
			}
			for _, fd := range w.fds {
				abort(fd)
			}
		})
	}
	opening.Wait()
	return i
}

// Open is how many flows were opened.
func (i *Idle) Open() int {
	n := 0
	for _, w := range i.workers {
		n += len(w.fds)
	}
	return n
}

// Check does a round trip on every step-th flow and returns how many of them still live.
func (i *Idle) Check(step int) (alive, checked int) {
	b := []byte{2}
	for _, w := range i.workers {
		done := make(chan struct{})
		w.calls <- func() {
			defer close(done)
			for k := 0; k < len(w.fds); k += step {
				checked++
				if writeAll(w.fds[k], b) == nil && readAll(w.fds[k], b) == nil && b[0] == 2 {
					alive++
				}
			}
		}
		<-done
	}
	return alive, checked
}

// Close resets all flows.
func (i *Idle) Close() {
	for _, w := range i.workers {
		close(w.calls)
		<-w.ended
	}
}
