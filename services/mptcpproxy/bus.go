package mptcpproxy

import (
	"context"
	"fmt"

	"weft/init/bus"
	"weft/services/mptcpproxy/internal/status"
)

// objectName is our object on the bus, and the id of our events.
const objectName = "mptcpproxy"

// maxFlowReply bounds the flows in one reply: a bus message holds at most 1 MiB.
const maxFlowReply = 2000

// publish offers the object and tells events to subscribers and listeners.
func (s *service) publish(ctx context.Context, client *bus.Client) error {
	reply := func(f func() any) func(context.Context, *bus.Request) error {
		return func(_ context.Context, r *bus.Request) error { return r.Reply(f()) }
	}
	p, err := client.Publish(&bus.Object{
		Name: objectName,
		Methods: []bus.Method{
			{Name: "status", Handle: reply(func() any { return s.Report() })},
			{Name: "paths", Handle: reply(func() any { return map[string]any{"paths": s.Report().Paths} })},
			{Name: "peers", Handle: reply(func() any { return map[string]any{"peers": s.Report().Peers} })},
			{Name: "flows", Args: []bus.Arg{{Name: "limit", Type: bus.TypeInt32}}, Handle: func(_ context.Context, r *bus.Request) error {
				in := struct {
					Limit int `json:"limit"`
				}{Limit: 100}
				if err := r.Decode(&in); err != nil {
					return err
				}
				if in.Limit < 1 || in.Limit > maxFlowReply {
					return fmt.Errorf("limit %d: 1 to %d is expected: %w", in.Limit, maxFlowReply, bus.StatusInvalidArgument)
				}
				list := s.Flows()
				return r.Reply(map[string]any{"total": len(list), "flows": list[:min(len(list), in.Limit)]})
			}},
			{Name: "events", Handle: reply(func() any {
				list, _ := s.events.After(0)
				return map[string]any{"events": list}
			})},
			{Name: "reload", Handle: func(_ context.Context, r *bus.Request) error {
				if err := s.Reload(); err != nil {
					return fmt.Errorf("%w: %w", err, bus.StatusInvalidArgument)
				}
				return nil
			}},
		},
	})
	if err != nil {
		return fmt.Errorf("publish the object %s: %w", objectName, err)
	}
	queue := make(chan status.Event, 64)
	s.events.Hook(func(ev status.Event) {
		select {
		case queue <- ev:
		default: // the bus hangs; the events can be asked for later
		}
	})
	s.helpers.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-queue:
				if err := p.Notify(ctx, ev.Kind, ev); err != nil {
					s.env.Log.Debug("subscribers were not told", "event", ev.Kind, "error", err)
				}
				_ = client.SendEvent(ctx, objectName, ev) // without a bus there is nobody to tell
			}
		}
	})
	return nil
}
