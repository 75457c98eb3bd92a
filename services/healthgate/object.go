package healthgate

import (
	"context"
	"time"

	"weft/init/bus"
)

// object is the bus object healthgate. It is there while the slot is on trial.
func (w *watch) object() *bus.Object {
	return &bus.Object{
		Name: "healthgate",
		Methods: []bus.Method{
			{Name: "status", Handle: func(_ context.Context, r *bus.Request) error { return r.Reply(w.status(time.Now())) }},
			{Name: "confirm", Handle: func(context.Context, *bus.Request) error {
				select {
				case w.byHand <- struct{}{}:
				default: // it is under way
				}
				return nil
			}},
		},
	}
}

func (w *watch) status(now time.Time) bus.Table {
	w.mu.Lock()
	defer w.mu.Unlock()
	problems := bus.Array{}
	for _, p := range w.gate.problems {
		problems = append(problems, bus.Table{{Name: "check", Value: p.check}, {Name: "detail", Value: p.detail}})
	}
	return bus.Table{
		{Name: "slot", Value: string(w.slot)},
		{Name: "state", Value: w.state},
		{Name: "hold", Value: int32(w.cfg.hold / time.Second)},
		{Name: "deadline", Value: int32(w.cfg.deadline / time.Second)},
		{Name: "left", Value: int32(w.gate.left(now) / time.Second)},
		{Name: "problems", Value: problems},
	}
}
