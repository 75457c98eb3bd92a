package datagram

import (
	"context"
	"time"
)

// Endpoint owns the sockets and the sessions of one gateway.
type Endpoint struct{}

// Listen opens the listening socket of o.Port. Nothing is sent or received
// before Run.
func Listen(o Options) (*Endpoint, error) { return &Endpoint{}, nil }

// Run serves all sessions until ctx ends, then closes every socket.
func (e *Endpoint) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Handle sets the function that takes the payloads of one class, in order for
// each flow of a session. It is called by one goroutine a session at a time;
// the slices are valid until it returns. Set it before Run.
func (e *Endpoint) Handle(c Class, f func(s *Session, payloads [][]byte)) {}

// AddSession adds a session with the identity and key that both gateways
// agreed on; near is true on the gateway that knows the paths. A session of
// the same peer and side is replaced: the old one goes on until the new one
// has heard the peer, at most for 3 s, and its paths go over to the new one.
func (e *Endpoint) AddSession(peer string, near bool, id uint64, key [32]byte, encrypt bool) *Session {
	return &Session{}
}

// Session returns the session with a peer that packets should be sent on, or
// nil: the near one if there are both and near is true, the far one otherwise.
func (e *Endpoint) Session(peer string, near bool) *Session { return nil }

// Update changes reorder window and duplicate mode of all sessions.
func (e *Endpoint) Update(reorder time.Duration, d Duplicate) {}

// Stats returns what belongs to no session.
func (e *Endpoint) Stats() EndpointStats { return EndpointStats{} }

// Sessions returns the figures of all sessions.
func (e *Endpoint) Sessions() []SessionStats { return nil }

// Session is one carrier of datagrams to one peer. Its methods may be called
// from any goroutine.
type Session struct{}

// Peer returns the name of the peer.
func (s *Session) Peer() string { return "" }

// Near tells whether this end knows the paths.
func (s *Session) Near() bool { return false }

// SetPaths replaces the paths of a near session; a path that stays the same
// keeps its state.
func (s *Session) SetPaths(p []Path) {}

// Send queues one payload, given in pieces, and sends what may go now. flow is
// any hash of the flow that the payload belongs to: payloads of the same flow
// stay in order. The payload is copied.
func (s *Session) Send(flow uint32, c Class, payload ...[]byte) error { return nil }

// Queue is Send without sending: follow a batch of them by one Flush.
func (s *Session) Queue(flow uint32, c Class, payload ...[]byte) error { return nil }

// Flush sends what was queued and may go now.
func (s *Session) Flush() {}

// SetActive asks for fast liveness probes, for instance while TCP is busy on
// the same paths. A session that carries datagrams is active by itself.
func (s *Session) SetActive(active bool) {}

// SetOtherRate tells what other traffic between the two gateways (TCP)
// delivers on a path, in bytes/s, so that both get a fair share of it.
func (s *Session) SetOtherRate(path string, rate float64) {}

// Alive tells whether any path of the session is alive.
func (s *Session) Alive() bool { return false }

// Stats returns the figures of the session and of its paths.
func (s *Session) Stats() SessionStats { return SessionStats{} }

// Close ends the session.
func (s *Session) Close() {}
