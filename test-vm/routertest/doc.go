// Package routertest holds tests of the router as a whole: a provider, a router
// and a client in namespaces, each running the device's own programs, from the
// first address to the pulled cable.
package routertest
