// Package paths is the path manager of the proxy: it keeps one subflow of
// every trunk on every usable path.
//
// # What it does
//
// A path is a network device with its addresses. The manager follows links,
// addresses and routes by netlink, gives each path routing tables of its own
// (network.go), and for every registered connection
//
//   - creates a subflow on each path that reaches the peer, as soon as the
//     connection is fully established (RFC 8684, 2.2), the path comes up, or a
//     subflow was lost on a path that still works; with a pause that grows
//     from 100 ms to 10 s for each connection and path that fails,
//   - destroys it at once when the path goes down, has no answers any more, is
//     switched off or has used up its quota, and withdraws the address from the
//     other end (RM_ADDR), whose kernel then closes its side: both ends are
//     senders and re-inject what the path had swallowed,
//   - never destroys the last one: with nothing to re-inject into, TCP's own
//     patience is the best there is. It goes when another one has joined.
//
// On a path that has not shown to work, or is dead, only two joins are under
// way at once, of whatever connection; the first success lets all others follow.
//
// # Is a path alive?
//
// Datagram probes decide (SetAlive), once they have been answered since the
// path came up; a path whose probes were never answered has UDP blocked, not
// more. Before a silent probe kills a path, TCP is asked: an acknowledgement of
// new data within the last 60 ms outweighs it until the next look, 25 ms later.
// Without probes, data in flight without any progress, selective
// acknowledgements included, for srtt + 4 rttvar + 120 ms on all subflows of
// the path is death; after a false alarm the patience grows. Ticks that came
// late, because the processor was busy, do not count. What is dead is tried
// each second, and any join or acknowledgement brings it back.
//
// # Why the userspace path manager
//
// Tried on Linux 6.18 and on Debian's 6.12, by the tests of this package and of
// mptcpnl; both behave alike:
//
//   - The kernel's manager never re-creates a subflow. Deleting and adding its
//     endpoint does, but for all connections of the namespace at once, also
//     those that still have a good subflow there; and it has eight endpoints, a
//     limit of subflows that joins count against, and one back-off for nobody.
//   - SUBFLOW_CREATE and SUBFLOW_DESTROY name one connection and one pair of
//     addresses, bind the subflow to the device, and take effect within the
//     call: 50 to 150 µs each. A connection can even lose all subflows and be
//     joined again within net.mptcp.close_timeout.
//   - The other side accepts joins without limit as long as somebody listens to
//     the events, which the manager does from New on.
//
// Traps found on the way: an address identifier of 0 in SUBFLOW_CREATE makes the
// join carry identifier 0, so that a later RM_ADDR 0 kills the first subflow as
// well: each address gets its own identifier, and another after each
// withdrawal. SUBFLOW_DESTROY only shuts the first subflow of a connection
// down, which goes on sending what it had queued, also when its path is back:
// it is ended by SOCK_DESTROY. The setting is the namespace's: MPTCP sockets of
// other programs there get no extra subflows while the proxy runs.
//
// # Modes, weight, quota
//
// See [Mode]. A master differs from the others only in that trunks begin there.
// [Wanted].Weight is the share of trunks that begin on a path, and what datagram
// sessions are told. It does not divide the bytes of one TCP flow: the kernel's
// scheduler fills every path as far as its congestion window allows, and the
// means that could hold one back (a locked cwnd on its routes, turning it into
// a backup for part of the time) waste capacity that nothing else uses. Quotas
// count all bytes of the device, as the operator does, and survive a restart.
//
// # Stripped
//
// A path is called stripped when two connections in a row that began there are
// plain TCP, or when four joins in a row fail although probes or plain
// connections get through. It is tried again each minute and when its link
// comes up; what works takes the mark away.
//
// # Left behind
//
// Nothing: rules of priority 6240 to 6242 and tables 62400 to 62527 are removed
// at the end and at the next start, sysctls are put back, also by a later run
// after a kill when there is a state folder.
//
// # What it does not do
//
// The accepting side never opens subflows: it may know only the outside of a
// NAT. Two devices with the same address cannot both be paths; the first wins
// and the other says so. What a subflow holds unsent goes before re-injected
// data; keeping that short is the business of package govern.
package paths
