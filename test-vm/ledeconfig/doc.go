// Package ledeconfig holds configurations as LEDE and OpenWrt devices of
// different ages have them, and what Weft has to make of each: one folder a
// device in testdata, with the files of /etc/config, the ports of the machine in
// about.txt, and in expect/ the interfaces, the devices and the firewall's rules
// that come of them (go test ./test-vm/ledeconfig -update writes them anew).
//
// Each runs in a network namespace of its own with the device binary: its bus,
// its network service, its firewall. Of those that say "needs:" in about.txt
// (VLANs, WireGuard: kernels of test machines may have none) only the firewall's
// rules are compared, made from the configuration alone.
package ledeconfig
