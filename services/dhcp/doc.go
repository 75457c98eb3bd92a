// Package dhcp is the service for addresses and names of the LAN, one process
// for what LEDE has dnsmasq and odhcpd for: DHCPv4, DHCPv6, router
// advertisements, the DNS forwarder with its cache, and mDNS, by
// /etc/config/dhcp.
//
// One goroutine, the manager's loop, owns what is open where. Whatever happens
// (a reload, an interface that comes or goes, a prefix that changes) ends in
// apply, which opens, closes and tells only what differs: leases, the cache and
// the sockets of what stays are never touched.
//
// The parts are in internal/: config (the UCI package), netif (interfaces as the
// bus and the kernel tell them), lease (the file), dhcp4, dhcp6, ra, dnsd, mdns,
// and the command bench.
package dhcp
