// Package network is the network service: it makes links, addresses, routes,
// rules and resolvers what /etc/config/network asks for, and keeps them so.
//
// One goroutine owns all state. Whatever happens (a reload, a call on the bus,
// a link that comes or goes, a lease, an advertisement, the end of a lifetime)
// ends in one function, reconcile, which compares what the configuration wants
// with what the kernel has and changes only what differs. So an address, route
// or bridge port that stays in the configuration is never taken away for a
// moment, and a service that was killed takes over where it left off.
//
// It does: the protocols static, dhcp, dhcpv6 (with prefix delegation and
// stateless addresses), wireguard and none; device sections of the types bridge,
// 8021q, 8021ad and macvlan, VLANs by name (eth0.5), bridge VLAN filtering; all
// ways of writing addresses and bridges since 17.01; route, route6, rule and rule6
// sections; a routing table for each of several uplinks; the resolver file; the
// bus objects of netifd. It does not do: switch sections (swconfig), pppoe and
// other tunnels, netifd's protocol scripts; sections that ask for them are named
// in the log and in the interface's status.
//
// Routers and DHCPv6 servers are heard in the service, not by the kernel: only so
// can routes depend on the source, and lifetimes be shown on the bus. The kernel's
// addresses have no lifetimes of their own for that reason.
package network
