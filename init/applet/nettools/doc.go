// Package nettools is the network part of the everyday commands: ip, ping, wget
// and nslookup.
//
// They speak to the kernel and the network themselves (vishvananda/netlink, ICMP
// sockets, net/http, miekg/dns); no other program is started.
package nettools
