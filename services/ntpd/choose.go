package ntpd

import (
	"math"
	"slices"
	"time"

	"github.com/beevik/ntp"
)

// sample is a valid answer of one server.
type sample struct {
	server string
	*ntp.Response
}

// low and high bound the offset that the answer allows.
func (s sample) low() time.Duration  { return s.ClockOffset - s.bound() }
func (s sample) high() time.Duration { return s.ClockOffset + s.bound() }

// leastBound keeps servers on the same wire from excluding each other by
// microseconds: RFC 5905 has a minimum of dispersion for it (MINDISP, 5 ms).
const leastBound = 5 * time.Millisecond

func (s sample) bound() time.Duration { return max(s.RootDistance, leastBound) }

// choose finds the largest group of servers whose intervals have a point in
// common, as RFC 5905 section 11.2.1 does, and returns it, the best first. It is
// empty unless the group is the majority of those that have answered.
func choose(all []sample) []sample {
	type edge struct {
		at   time.Duration
		step int // +1: an interval begins
	}
	var edges []edge
	for _, s := range all {
		edges = append(edges, edge{s.low(), 1}, edge{s.high(), -1})
	}
	slices.SortFunc(edges, func(a, b edge) int {
		switch {
		case a.at != b.at:
			return int(min(max(a.at-b.at, -1), 1))
		default:
			return b.step - a.step // begins before it ends
		}
	})
	depth, best := 0, 0
	var from, to time.Duration
	for i, e := range edges {
		depth += e.step
		if depth > best {
			best, from, to = depth, e.at, edges[i+1].at
		}
	}
	if 2*best <= len(all) {
		return nil
	}
	var out []sample
	for _, s := range all {
		if s.low() <= from && s.high() >= to {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b sample) int {
		if a.Stratum != b.Stratum {
			return int(a.Stratum) - int(b.Stratum)
		}
		return int(min(max(a.bound()-b.bound(), -1), 1))
	})
	return out
}

// combine weighs offsets by how sure each is (RFC 5905 section 11.2.3).
func combine(list []sample) time.Duration {
	sum, weights := 0.0, 0.0
	for _, s := range list {
		w := 1 / s.bound().Seconds()
		sum += w * s.ClockOffset.Seconds()
		weights += w
	}
	if weights == 0 || math.IsNaN(sum) {
		return 0
	}
	return time.Duration(sum / weights * float64(time.Second))
}
