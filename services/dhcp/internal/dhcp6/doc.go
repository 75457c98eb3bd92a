// Package dhcp6 is the DHCPv6 server (RFC 8415): addresses (IA_NA) and prefixes
// (IA_PD) out of what is assigned to the interface, and resolvers for everybody.
//
// A lease is the part of the address that is the host's, so that it outlives the
// prefixes, which come and go with the uplink: at each answer the client gets
// the addresses in the prefixes of now, and those of before with lifetimes of
// zero.
//
// It does not do: temporary addresses, reconfiguration, authentication, leases
// handed out by unicast.
package dhcp6
