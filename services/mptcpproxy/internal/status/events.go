package status

import (
	"sync"
	"time"
)

// Event is a change worth telling: path.up, path.down, path.stripped,
// path.clean, path.spent, peer.up, peer.down, reload, fault.
type Event struct {
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Kind   string    `json:"event"`
	Name   string    `json:"name"` // of the path or peer
	Device string    `json:"device,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// kept is how many events a late comer can still read.
const kept = 256

// Events keeps the last events and tells new ones to whoever listens.
type Events struct {
	mu    sync.Mutex
	seq   uint64
	ring  []Event
	wake  chan struct{}
	hooks []func(Event)
}

// Hook calls f for each event from now on; f must not block.
func (e *Events) Hook(f func(Event)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hooks = append(e.hooks, f)
}

// Add gives the event its number and time and tells it to all.
func (e *Events) Add(ev Event) {
	e.mu.Lock()
	e.seq++
	ev.Seq, ev.Time = e.seq, time.Now()
	if e.ring = append(e.ring, ev); len(e.ring) > kept {
		e.ring = append(e.ring[:0], e.ring[len(e.ring)-kept:]...)
	}
	if e.wake != nil {
		close(e.wake)
		e.wake = nil
	}
	hooks := e.hooks
	e.mu.Unlock()
	for _, f := range hooks {
		f(ev)
	}
}

// After returns the events behind number seq, and a channel that is closed when
// there is another.
func (e *Events) After(seq uint64) ([]Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Event
	for _, ev := range e.ring {
		if ev.Seq > seq {
			out = append(out, ev)
		}
	}
	if e.wake == nil {
		e.wake = make(chan struct{})
	}
	return out, e.wake
}
