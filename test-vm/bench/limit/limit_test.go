package limit

import (
	"math"
	"testing"
)

// The table of the reference sheet, section 9, all for paths of 10 Mbit/s and packets of 1500 bytes.
func TestGoodput(t *testing.T) {
	for _, c := range []struct {
		name      string
		link      Link
		paths     int
		tbf, wire float64
	}{
		{"TCP, one path", Link{Transport: TCP, Timestamps: true}, 1, 9.564, 9.415},
		{"MPTCP, one path", Link{Transport: MPTCP, Timestamps: true}, 1, 9.406, 9.259},
		{"MPTCP, two paths", Link{Transport: MPTCP, Timestamps: true}, 2, 18.811, 18.518},
		{"MPTCP, two paths, both ways", Link{Transport: MPTCPBoth, Timestamps: true}, 2, 18.758, 18.466},
		{"MPTCP, two paths, IPv6", Link{Transport: MPTCP, Timestamps: true, IPv6: true}, 2, 18.547, 18.257},
		{"MPTCP, two paths, no timestamps", Link{Transport: MPTCP}, 2, 18.970, 18.674},
	} {
		rates := []float64{10, 10}[:c.paths]
		for framing, want := range map[int]float64{FrameTBF: c.tbf, FrameWire: c.wire} {
			l := c.link
			l.Framing = framing
			// The sheet rounds or cuts the third digit.
			if got := l.Goodput(rates...); math.Abs(got-want) > 0.001 {
				t.Errorf("%s, framing %d: %.4f, want %.3f", c.name, framing, got, want)
			}
		}
	}
}

func TestTunnel(t *testing.T) {
	if got := Tunnel.Goodput(20, 5); math.Abs(got-25*1424.0/1514) > 1e-9 {
		t.Errorf("20+5 Mbit/s: %.4f", got)
	}
	if got := (Link{MTU: 1280, Framing: FrameTBF, IPv6: true}).Share(); math.Abs(got-1220.0/1294) > 1e-9 {
		t.Errorf("MTU 1280 over IPv6: %.4f", got)
	}
}
