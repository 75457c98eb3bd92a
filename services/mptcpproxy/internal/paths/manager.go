package paths

import (
	"context"
	"net/netip"
	"time"
)

// Manager keeps the subflows of all registered connections as the wanted
// paths and their state demand.
type Manager struct{}

// New checks the options and takes over the path management of the calling
// thread's network namespace: net.mptcp sysctls, routing tables and rules.
func New(o Options) (*Manager, error) { return &Manager{}, nil }

// Run follows links and events until ctx ends, then takes away all that New
// and Run set up.
func (m *Manager) Run(ctx context.Context) error { return nil }

// Update changes the wanted paths, the peers and their addresses.
func (m *Manager) Update(o Options) {}

// Paths lists the wanted paths and their state, in the order wanted.
func (m *Manager) Paths() []Path { return nil }

// OnChange calls f whenever a path goes up or down, dies or comes back, is
// found stripped or clean, or its quota is spent or renewed. f must not block.
func (m *Manager) OnChange(f func(Path)) {}

// OnPairs calls f whenever Pairs gives another answer. f must not block.
func (m *Manager) OnPairs(f func()) {}

// Register hands a connection over to the manager: a trunk or the MPTCP
// socket of a raw carrier connection, dialled (near) or accepted. The manager
// only reads socket options of fd; it must be unregistered before it is closed.
// Plain TCP is ignored but counted against the path it uses.
func (m *Manager) Register(fd int, peer string, near bool) {}

// Unregister forgets the connection.
func (m *Manager) Unregister(fd int) {}

// SetAlive tells what datagram probes see: whether answers from peer come back
// over path, and their round-trip time.
func (m *Manager) SetAlive(peer, path string, alive bool, rtt time.Duration) {}

// Pick chooses the path for the first subflow of a new trunk: a master that is
// up, else spread over the paths that are on, lowest round-trip time first.
//
// Dial it as an AF_INET6 socket that is not V6ONLY (IPv4 as ::ffff:a.b.c.d),
// bound to local and to device: the kernel joins subflows of the other
// address family only to such a connection.
func (m *Manager) Pick(peer string) (local netip.Addr, device string, remote netip.AddrPort, err error) {
	return
}

// Pairs lists the ways to reach peer, one for each path that has one, paths
// that are down or spent left out: what datagram sessions use (also to find
// out whether a dead path works again).
func (m *Manager) Pairs(peer string) []Pair { return nil }
