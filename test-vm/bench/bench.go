// Package bench measures the transparent MPTCP proxy beside HAProxy and plain routing, in network namespaces of one
// machine: what `make bench-mptcp` prints. Each case builds beds (package bed), runs the same load (package load) on every
// system, interleaved where they compete for the processor, and shows medians beside what must be reached. It prints and
// never asserts. `make soak` (package soak) lets random flows meet random faults instead.
package bench
