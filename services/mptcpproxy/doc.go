// Package mptcpproxy is the transparent MPTCP proxy: hosts that speak plain TCP
// and UDP get the sum of all paths between two gateways, and notice nothing else.
//
// A gateway may be near (the client's side), far (the sink's side), or both at
// once. What happens to a TCP connection of a host:
//
//	SYN -> intercept (nft: log and drop) -> synhold: OPEN to the far gateway
//	       through stream on a trunk of carrier -> far: transparent.Connect to
//	       the sink with the client's address -> answer -> synhold puts the SYN
//	       back -> TPROXY listener -> stream: bytes both ways
//
// Package paths keeps a subflow of every trunk on every path, govern keeps the
// queues of the paths short, datagram carries UDP (udpflow) and other protocols
// (tunnel) over the same paths, and tells paths which of them live.
//
// This package wires these together: core.go makes and reconciles the parts,
// near.go and far.go decide about flows, report.go, bus.go and metrics.go show
// what happens. Without a configuration, or with one that cannot be used, the
// service runs and says so; a reload with a broken one changes nothing.
package mptcpproxy
