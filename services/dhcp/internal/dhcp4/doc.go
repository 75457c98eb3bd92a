// Package dhcp4 is the DHCPv4 server (RFC 2131, 2132, 3046, 3442, 4702): what
// to answer to whom (Server), and the sockets for it (Port).
//
// It behaves as dnsmasq does on LEDE: a client's address follows from its MAC
// address where nothing else is known, an address is probed before it is
// offered to somebody new, and an authoritative server says no to addresses
// that are not of its networks. Nothing is stored for a DISCOVER but a bounded
// note of what was offered, and no ACK is sent before its lease is in the file.
//
// It does not do: BOOTP, rapid commit, leasequery, lookup of names by DNS.
package dhcp4
