package synhold

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/services/mptcpproxy/internal/intercept"
	"weft/services/mptcpproxy/internal/intercept/bed"
)

// BenchmarkConnect measures a client's connect, with the SYN accepted at once
// and with it held for a far side that answers without delay: the difference is
// what holding costs.
func BenchmarkConnect(b *testing.B) {
	for _, m := range []struct {
		name string
		mode intercept.Mode
	}{{"immediate", intercept.Immediate}, {"held", intercept.HoldAll}} {
		b.Run(m.name, func(b *testing.B) {
			n := bed.New(b)
			p, _ := start(b, n, intercept.Options{Syn: m.mode}, Options{})
			p.instead(func(src, dst netip.AddrPort, result func(error)) func() { result(nil); return nil })
			var took []time.Duration
			err := n.In("client", func() error {
				to := &unix.SockaddrInet4{Port: 80, Addr: netip.MustParseAddr(bed.Sink4).As4()}
				for b.Loop() {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					begin := time.Now()
					err = unix.Connect(fd, to)
					took = append(took, time.Since(begin))
					unix.Close(fd)
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "µs-p99")
		})
	}
}
