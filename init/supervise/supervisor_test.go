package supervise

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRunner starts everything at once and ends it on SIGTERM.
type fakeRunner struct {
	s    *Supervisor
	pids int
	runs map[string]int
	quit bool // processes end by themselves at once
}

func (r *fakeRunner) Do(a Action) bool {
	switch a := a.(type) {
	case Spawn:
		r.pids++
		r.runs[a.Spec.ID] = a.Run
		r.s.Started(a.Spec.ID, a.Run, r.pids)
		if r.quit {
			r.s.Exited(a.Spec.ID, a.Run, Exit{Code: 1})
		}
	case Signal:
		r.s.Exited(a.ID, r.runs[a.ID], Exit{Code: 128 + int(a.Sig), Signal: a.Sig})
	case Kill, Sweep:
	default:
		return false
	}
	return true
}

// house is a supervisor at work inside a synctest bubble.
type house struct {
	*Supervisor
	r       *fakeRunner
	mu      sync.Mutex
	notices []string
	down    chan Down
	log     bytes.Buffer
}

func newHouse(t *testing.T) (*house, func()) {
	h := &house{down: make(chan Down, 1)}
	start := time.Now()
	h.Supervisor = New(Options{
		Clock: func() time.Duration { return time.Since(start) },
		Notice: func(n Notice) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.notices = append(h.notices, n.ID+" "+string(n.Kind))
		},
		Down: func(d Down) { h.down <- d },
		Log:  slog.New(slog.NewTextHandler(&h.log, nil)),
	})
	h.r = &fakeRunner{s: h.Supervisor, runs: map[string]int{}}
	h.SetRunner(h.r)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	return h, func() { cancel(); <-ended }
}

func (h *house) define(t *testing.T, s Spec) {
	t.Helper()
	err := h.Do(t.Context(), func(m *Machine, now time.Duration) []Action {
		return append(m.Define(now, s, false), m.Start(now, s.ID)...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSupervisorTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stop := newHouse(t)
		defer stop()
		h.r.quit = true
		h.define(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec }))
		time.Sleep(4 * DefaultDelay) // the bubble's time: first start, then one each 5 s
		synctest.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		if n := strings.Count(strings.Join(h.notices, "\n"), "instance.start"); n != 5 {
			t.Errorf("%d starts in %v:\n%s", n, 4*DefaultDelay, strings.Join(h.notices, "\n"))
		}
	})
}

func TestSupervisorShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stop := newHouse(t)
		defer stop()
		h.define(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec }))
		h.Post(func(m *Machine, now time.Duration) []Action { return m.Shutdown(now) })
		if d := <-h.down; len(d.Stuck) != 0 {
			t.Errorf("stuck: %v", d.Stuck)
		}
	})
}

func TestSupervisorSurvivesPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stop := newHouse(t)
		defer stop()
		err := h.Do(t.Context(), func(*Machine, time.Duration) []Action { panic("boom") })
		if err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("err = %v", err)
		}
		h.Post(func(*Machine, time.Duration) []Action { panic("again") })
		h.define(t, daemon("a", func(s *Spec) { s.Ready = ReadyExec }))
		synctest.Wait()
		if !strings.Contains(h.log.String(), "boom") || !strings.Contains(h.log.String(), "again") {
			t.Errorf("panics not logged: %s", h.log.String())
		}
		var st Status
		h.Do(t.Context(), func(m *Machine, _ time.Duration) []Action { st, _ = m.Status("a"); return nil })
		if st.State != Running {
			t.Errorf("a is %s: the loop did not go on", st.State)
		}
	})
}

func TestSupervisorEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stop := newHouse(t)
		stop()
		if err := h.Do(t.Context(), func(*Machine, time.Duration) []Action { return nil }); !errors.Is(err, ErrEnded) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestDoHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stop := newHouse(t)
		defer stop()
		release := make(chan struct{})
		h.Post(func(*Machine, time.Duration) []Action { <-release; return nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := h.Do(ctx, func(*Machine, time.Duration) []Action { return nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a loop that hangs must show: %v", err)
		}
		close(release)
	})
}
