// Package firewall is the firewall service: it makes nftables what
// /etc/config/firewall asks for, in the table `inet fw4` with the names that
// LEDE's fw4 has, and keeps it so while interfaces come and go.
//
// Build turns a configuration into a ruleset, without touching anything; package
// ruleset writes it as text or into the kernel, in one transaction. A faulty
// section is left out with a message; a ruleset that does not load leaves the
// one before in place. Nothing here touches connection tracking, so no flow ends
// by a change of the rules.
//
// The service loads its rules before there is a bus and before the network
// comes up, with the devices that the configuration names, then switches
// forwarding on. Later the bus tells which devices and addresses interfaces
// really have. When it ends the rules stay.
package firewall
