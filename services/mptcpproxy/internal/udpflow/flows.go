package udpflow

import "context"

// Flows is the UDP of one gateway, near and far side.
type Flows struct{}

// New makes the flow tables and takes over the listeners.
func New(o Options) (*Flows, error) { return &Flows{}, nil }

// Run serves until ctx ends, then closes every socket.
func (f *Flows) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Update changes policy, time-out and limits. Endpoint, Listeners, Mark and
// Socket stay as they are.
func (f *Flows) Update(o Options) {}

// Stats returns the counters.
func (f *Flows) Stats() Stats { return Stats{} }
