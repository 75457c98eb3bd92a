// Package carrier makes the connections between two gateways: it dials and
// accepts them over Multipath TCP, authenticates both ends, and hands them to
// the data plane (package stream) as trunks.
//
// # Authentication
//
// Both ends hold an Ed25519 key. With a shared secret both derive the same
// one; with keys of their own each knows the other's public key. They
// authenticate each other by TLS 1.3 with self-made certificates of which only
// the key counts: no names, no authorities, no clock. After the handshake both
// leave TLS between two records, and the bare socket goes to the engine; with
// encryption its frames are sealed by keys exported from the handshake.
// Whoever does not authenticate gets no byte of service: see [Listener].
//
// # Connections
//
// For each peer a [Dialer] keeps a pool of trunks ready, so that a new flow
// costs no handshake, and one control connection, which stays in TLS: it
// carries a [Hello] each way, the keys of the datagram session, and a
// heartbeat by which the death of the peer is noticed.
//
// The carriers "proxy2" and "none" have neither trunks nor authentication: one
// connection per flow, see [Dialer.DialRaw] and [Listener].
//
// Not done here: subflows beyond the first (package paths), bytes of flows
// (package stream), congestion control (package govern).
package carrier
