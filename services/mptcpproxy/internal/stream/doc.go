// Package stream is the TCP data plane of the proxy: it carries the bytes of
// many TCP connections between their hosts and the trunks that join two
// gateways.
//
// A few epoll loops own every socket by number.
// An idle flow costs neither a goroutine nor a buffer: bytes go through one
// buffer of the loop and are kept only while the other side does not take them,
// within a bound for each flow and one for all; at the bound the source is not
// read, never is anything dropped.
package stream
