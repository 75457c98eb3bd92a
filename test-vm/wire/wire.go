package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// End is where frames come from and go to: a TAP device, or a card of a guest. A read or write is one Ethernet frame.
type End interface {
	io.ReadWriteCloser
}

// maxFrame is the longest frame that a wire carries, MTU 9000 with header and VLAN tags.
const maxFrame = 9216

// Wire joins two ends. Frames that enter at end 0 have the direction 0.
type Wire struct {
	ends  [2]End
	sides [2]*side
	watch func(dir int, at time.Time, frame []byte)
}

// side is one direction.
type side struct {
	mu     sync.Mutex
	shaper *Shaper
	flight chan passage // in the order of arrival
}

type passage struct {
	at    time.Time
	frame []byte
}

// inFlight is how many frames may be under way in one direction: 100 Mbit/s with 100 ms and full-size frames.
const inFlight = 4096

// New joins a and b; figures[0] are those from a to b. watch, unless nil, sees every frame when it arrives; it is
// called by two goroutines, one a direction, and must not keep the frame.
func New(a, b End, figures [2]Figures, seed uint64, watch func(dir int, at time.Time, frame []byte)) *Wire {
	w := &Wire{ends: [2]End{a, b}, watch: watch}
	for i := range w.sides {
		w.sides[i] = &side{shaper: NewShaper(figures[i], 2*seed+uint64(i)), flight: make(chan passage, inFlight)}
	}
	return w
}

// Set changes the figures of a direction.
func (w *Wire) Set(dir int, f Figures) {
	s := w.sides[dir]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shaper.Set(f)
}

// Figures are the present ones of a direction.
func (w *Wire) Figures(dir int) Figures {
	s := w.sides[dir]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shaper.Figures()
}

// Counts are those of a direction.
func (w *Wire) Counts(dir int) Counts {
	s := w.sides[dir]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shaper.Counts()
}

// Run carries frames until ctx ends or an end is closed; it closes both.
func (w *Wire) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for dir := range w.sides {
		wait.Go(func() { cancel(w.enter(ctx, dir)) })
		wait.Go(func() { cancel(w.leave(ctx, dir)) })
	}
	<-ctx.Done()
	err := errors.Join(w.ends[0].Close(), w.ends[1].Close())
	wait.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, io.EOF) {
		err = cause
	}
	return err
}

// enter reads frames at the end where a direction starts.
func (w *Wire) enter(ctx context.Context, dir int) error {
	s := w.sides[dir]
	buf := make([]byte, maxFrame)
	for {
		n, err := w.ends[dir].Read(buf)
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return io.EOF
			}
			return fmt.Errorf("read from end %d of a wire: %w", dir, err)
		}
		now := time.Now()
		s.mu.Lock()
		at, verdict := s.shaper.Frame(now, n)
		strip := s.shaper.fig.Strip
		s.mu.Unlock()
		if verdict != Pass {
			continue
		}
		frame := append(make([]byte, 0, n), buf[:n]...)
		if strip && StripMPTCP(frame) {
			s.mu.Lock()
			s.shaper.counts.Stripped++
			s.mu.Unlock()
		}
		select {
		case s.flight <- passage{at, frame}:
		case <-ctx.Done():
			return io.EOF
		}
	}
}

// leave writes frames when they are due.
func (w *Wire) leave(ctx context.Context, dir int) error {
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	for {
		var p passage
		select {
		case p = <-w.sides[dir].flight:
		case <-ctx.Done():
			return io.EOF
		}
		if d := time.Until(p.at); d > 0 {
			timer.Reset(d)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return io.EOF
			}
		}
		if w.watch != nil {
			w.watch(dir, time.Now(), p.frame)
		}
		// A device that is down, or a guest that is off, loses what is sent to it.
		if _, err := w.ends[1-dir].Write(p.frame); errors.Is(err, os.ErrClosed) {
			return io.EOF
		}
	}
}
