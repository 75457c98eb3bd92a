// Package limit computes the goodput that a set of shaped paths can give at best, so that a measurement can be shown
// beside what physics allows. It knows headers, TCP options and framing; it knows nothing of congestion control, loss or
// acknowledgements of the other direction.
package limit

import "fmt"

// Framing is what the shaper counts for each packet beside the IP packet, in bytes.
const (
	FrameTBF  = 14 // Linux tbf and htb on an Ethernet device: the Ethernet header
	FrameWire = 38 // a real Ethernet wire: preamble 8, header 14, checksum 4, gap 12
)

// Transport is how data rides; each has other options in its data segments.
type Transport int

// The transports.
const (
	TCP       Transport = iota // timestamps, if on
	MPTCP                      // and the DSS option with a 4-byte acknowledgement: data flows one way
	MPTCPBoth                  // and the DSS option with an 8-byte acknowledgement: data flows both ways
)

func (t Transport) String() string {
	switch t {
	case TCP:
		return "TCP"
	case MPTCP:
		return "MPTCP one way"
	case MPTCPBoth:
		return "MPTCP both ways"
	}
	return fmt.Sprintf("transport %d", int(t))
}

// Link says what carries the data. The zero value is MPTCP-less TCP over IPv4, 1500 bytes, no framing, no timestamps.
type Link struct {
	Transport  Transport
	MTU        int  // bytes of an IP packet; 0 = 1500
	Framing    int  // bytes that the shaper counts beside the packet
	IPv6       bool // 40 bytes of header instead of 20
	Timestamps bool // TCP timestamps: 12 bytes of options
}

// Tunnel is the link between two gateways of the bench: MPTCP one way, timestamps, tbf.
var Tunnel = Link{Transport: MPTCP, Framing: FrameTBF, Timestamps: true}

// options is the number of option bytes in a data segment (RFC 7323, RFC 8684 section 3.3): DSS is 4 bytes, the
// acknowledgement 4 or 8, data sequence number 8, subflow sequence number 4, length 2, padded to a multiple of 4; the
// checksum fits into that padding when data flows one way, so it is not counted.
func (l Link) options() int {
	n := 0
	if l.Timestamps {
		n += 12
	}
	switch l.Transport {
	case MPTCP:
		n += 24
	case MPTCPBoth:
		n += 28
	}
	return n
}

// Share is the part of the shaped rate that can be payload.
func (l Link) Share() float64 {
	mtu := l.MTU
	if mtu == 0 {
		mtu = 1500
	}
	headers := 40
	if l.IPv6 {
		headers = 60
	}
	return float64(mtu-headers-l.options()) / float64(mtu+l.Framing)
}

// Goodput is the payload that paths of these rates carry together, in the unit of the rates.
func (l Link) Goodput(rates ...float64) float64 {
	sum := 0.0
	for _, r := range rates {
		sum += r
	}
	return sum * l.Share()
}
