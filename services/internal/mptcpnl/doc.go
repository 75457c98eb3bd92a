// Package mptcpnl speaks to the kernel's Multipath TCP (RFC 8684): the
// generic netlink family mptcp_pm (endpoints, limits, the commands of the
// userspace path manager, events), the socket options at level SOL_MPTCP, the
// MPTcpExt counters and the net.mptcp sysctls.
//
// Everything is per network namespace: that of the calling thread when a [Conn]
// is made, and that of the calling thread when counters or sysctls are used.
//
// It works on kernels 6.1 to 6.18: structures that grew over time are read as
// far as the kernel filled them (fields it does not know are zero), and
// [GetFullInfo] falls back to the two older options on kernels before 6.5.
//
// Addresses come back exactly as the kernel holds them: a subflow of an
// AF_INET6 socket that talks IPv4 has IPv4-mapped IPv6 addresses
// (::ffff:a.b.c.d), and the commands want them in that form too
// ([Conn.SubflowDestroy] compares the family). Use Addr.Unmap to compare with
// addresses from elsewhere.
//
// It does not decide anything: which subflows should exist is the business of
// its users. It knows nothing of MPTCP version 0 or of kernels out of tree.
package mptcpnl
