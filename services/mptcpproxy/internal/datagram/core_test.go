package datagram

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// The table's case and relatives of it: both directions at once.
func TestSimulatedPathsCarryTheSum(t *testing.T) {
	for _, tt := range []struct {
		name    string
		paths   []linkConf
		mbit    float64
		size    int
		share   float64       // delivered, at least
		p99     time.Duration // at most
		minimum time.Duration // of the fastest path
	}{
		{"two paths of 10, 72 %", []linkConf{mbit10(0), mbit10(0)}, 14.4, 1400, 0.999, 10 * ms, 0},
		{"the same, 1472 bytes, cut", []linkConf{mbit10(0), mbit10(0)}, 14.4, 1472, 0.995, 10 * ms, 0},
		{"the same, 600 bytes", []linkConf{mbit10(0), mbit10(0)}, 14.4, 600, 0.995, 10 * ms, 0},
		{"two paths of 10, 90 %", []linkConf{mbit10(0), mbit10(0)}, 17.5, 1400, 0.99, 15 * ms, 0},
		{"20 and 5", []linkConf{{rate: 20, burst: 16000, queue: 50 * ms}, {rate: 5, burst: 16000, queue: 50 * ms}}, 18, 1400, 0.99, 15 * ms, 0},
		{"5 and 20", []linkConf{{rate: 5, burst: 16000, queue: 50 * ms}, {rate: 20, burst: 16000, queue: 50 * ms}}, 18, 1400, 0.99, 15 * ms, 0},
		{"delays of 5 and 50 ms", []linkConf{mbit10(5 * ms), mbit10(50 * ms)}, 14.4, 1400, 0.99, 50*ms + 15*ms, 5 * ms},
		{"delays of 20 ms", []linkConf{mbit10(20 * ms), mbit10(20 * ms)}, 14.4, 1400, 0.99, 30 * ms, 20 * ms},
		{"2, 10 and 40 Mbit/s at 80, 30 and 10 ms", []linkConf{
			{rate: 2, burst: 16000, queue: 50 * ms, delay: 80 * ms},
			{rate: 10, burst: 16000, queue: 50 * ms, delay: 30 * ms},
			{rate: 40, burst: 16000, queue: 50 * ms, delay: 10 * ms}}, 42, 1400, 0.98, 110 * ms, 10 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, tt.paths...)
			s.run(time.Second)
			up := s.load(0, 1, tt.mbit, tt.size, 10*time.Second)
			down := s.load(1, 2, tt.mbit, tt.size, 10*time.Second)
			s.run(11 * time.Second)
			for side, sent := range []int{*down, *up} {
				j := s.ends[side].judge(uint32(2 - side))
				share := float64(j.got) / float64(sent)
				t.Logf("to %d: %.4f of %d, p50 %v p99 %v max %v, out of order %d", side, share, sent, j.p50, j.p99, j.max, j.disorder)
				if share < tt.share {
					t.Errorf("delivered %.4f of what was sent, want at least %.4f", share, tt.share)
				}
				if j.p99 > tt.p99 {
					t.Errorf("p99 delay %v, want at most %v", j.p99, tt.p99)
				}
				if j.twice > 0 {
					t.Errorf("%d payloads delivered twice", j.twice)
				}
				// Some are late while the rate of unequal paths is being learnt.
				if j.disorder > 20 && len(tt.paths) == 2 && tt.paths[0].delay == tt.paths[1].delay {
					t.Errorf("%d payloads out of order", j.disorder)
				}
			}
			if t.Failed() {
				for i, e := range s.ends {
					t.Logf("end %d: %+v", i, e.c.stats(e.clock()))
				}
			}
		})
	}
}
