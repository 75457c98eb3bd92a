// Package proxyproto reads and writes the PROXY protocol: the header before
// the bytes of a proxied TCP connection that tells whose it is.
package proxyproto

import "net/netip"

// Header is what one header tells.
type Header struct {
	// Local marks a connection that the proxy made for itself (health check).
	Local    bool
	Src, Dst netip.AddrPort
}

// AppendV2 writes a version 2 header for a TCP connection behind b.
func AppendV2(b []byte, src, dst netip.AddrPort) []byte { return b }

// Parse reads a header of either version at the start of b.
func Parse(b []byte) (h Header, n int, err error) { return Header{}, 0, nil }
