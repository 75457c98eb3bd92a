package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Runner does the actions that concern processes; false for one that does not.
// process.Runner is the real one.
type Runner interface {
	Do(a Action) bool
}

// Options of a Supervisor. All but Down are required.
type Options struct {
	// Clock is the machine's time; on the device CLOCK_BOOTTIME, so that
	// times in the log and in `service timeline` mean the same.
	Clock func() time.Duration
	// Notice is told what happens, in order. It runs on the loop and must
	// not block; of the Supervisor it may call Post alone.
	Notice func(Notice)
	// Down is told when a shutdown has ended, like Notice.
	Down func(Down)
	Log  *slog.Logger
}

// Supervisor drives a Machine: it serialises what happens to it on one loop,
// fires its timers, and runs its actions.
//
// A panic on the loop is logged, and the loop goes on with the next event:
// PID 1 must not end.
type Supervisor struct {
	o      Options
	m      *Machine
	runner Runner

	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
	ended bool
}

// New returns a Supervisor with an empty Machine. Run makes it work.
func New(o Options) *Supervisor {
	return &Supervisor{o: o, m: NewMachine(), wake: make(chan struct{}, 1)}
}

// SetRunner must be called before Run; Supervisor and Runner need each other.
func (s *Supervisor) SetRunner(r Runner) { s.runner = r }

// ErrEnded is returned once the loop has ended.
var ErrEnded = errors.New("the supervisor has ended")

// Post queues f for the loop and returns at once. The actions f returns are
// run.
func (s *Supervisor) Post(f func(m *Machine, now time.Duration) []Action) {
	s.post(func() { s.run(f(s.m, s.o.Clock())) })
}

func (s *Supervisor) post(f func()) bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.queue = append(s.queue, f)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// Do runs f on the loop, and then its actions, and waits for both. f may read
// the machine freely. The error is ctx's, ErrEnded, or that f panicked.
func (s *Supervisor) Do(ctx context.Context, f func(m *Machine, now time.Duration) []Action) error {
	done := make(chan error, 1)
	ok := s.post(func() {
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Errorf("panic in the supervisor: %v", v)
				panic(v)
			}
		}()
		s.run(f(s.m, s.o.Clock()))
		done <- nil
	})
	if !ok {
		return ErrEnded
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Started and Exited are what the Runner reports.
func (s *Supervisor) Started(id string, run, pid int) {
	s.Post(func(m *Machine, now time.Duration) []Action { return m.Started(now, id, run, pid) })
}

// Exited is the end of what a Spawn started.
func (s *Supervisor) Exited(id string, run int, x Exit) {
	s.Post(func(m *Machine, now time.Duration) []Action { return m.Exited(now, id, run, x) })
}

// Run works until ctx ends. It may be called again after that.
func (s *Supervisor) Run(ctx context.Context) {
	s.mu.Lock()
	s.ended = false
	s.mu.Unlock()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer func() {
		s.mu.Lock()
		s.ended = true
		s.queue = nil
		s.mu.Unlock()
	}()
	for {
		wait := time.Hour
		s.guard(func() {
			if at, ok := s.m.Next(); ok {
				wait = max(0, at-s.o.Clock())
			}
		})
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
			s.guard(func() { s.run(s.m.Tick(s.o.Clock())) })
		}
		for {
			s.mu.Lock()
			work := s.queue
			s.queue = nil
			s.mu.Unlock()
			if len(work) == 0 {
				break
			}
			for _, f := range work {
				s.guard(f)
			}
		}
	}
}

func (s *Supervisor) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			s.o.Log.Error("panic in the supervisor's loop; it goes on", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	f()
}

func (s *Supervisor) run(actions []Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case Notice:
			s.o.Notice(a)
		case Down:
			if s.o.Down != nil {
				s.o.Down(a)
			}
		default:
			if !s.runner.Do(a) {
				s.o.Log.Error("BUG: action without effect", "action", fmt.Sprintf("%T", a))
			}
		}
	}
}
