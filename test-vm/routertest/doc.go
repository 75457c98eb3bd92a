// Package routertest holds tests of the router as a whole: a provider, a router
// and a client in namespaces, each running the device's own programs, from the
// first address to the pulled cable; and, in a QEMU guest, the tests of
// services/network whose links (VLANs, bridges with VLAN filtering, WireGuard)
// the kernel of the build machine may lack.
package routertest
