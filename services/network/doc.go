// Package network is the network service: it makes links, addresses, routes
// and resolvers what /etc/config/network asks for, and keeps them so.
//
// One goroutine owns all state. Whatever happens (a reload, a call on the bus,
// a link that comes or goes, a DHCP lease) ends in one function, reconcile,
// which compares what the configuration wants with what the kernel has and
// changes only what differs. So an address, route or bridge port that stays in
// the configuration is never taken away for a moment, and a service that was
// killed takes over where it left off.
//
// It does: the protocols static, dhcp (IPv4) and none; `device` sections of
// type bridge, and MAC address and MTU of any device; both ways of writing
// addresses (ipaddr and netmask up to 24.10, CIDR since 25.12) and the bridges
// inside interface sections of 19.07; `route` and `route6` sections; the resolver file;
// the bus objects of netifd. It does not do yet: `rule` and `switch` sections, VLANs,
// DHCPv6, prefix delegation and netifd's protocol scripts; sections that ask
// for them are named in the log and in the interface's status.
package network
