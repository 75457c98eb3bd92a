// Package wire is a cable in user space with the faults that real ones have: rate, delay, jitter, loss, a queue of bounded
// length, silence, and a middlebox that takes MPTCP's options out. The lab uses it where the kernel has no netem, between
// a namespace and a guest, and for what no qdisc does.
//
// What happens to a frame is decided by [Shaper], a function of the time, the frame's length and a seeded random source,
// so that the same input gives the same output. [Wire] moves real frames by those decisions, with the timers of the Go
// runtime (about 0.1 ms).
package wire

import (
	"math/rand/v2"
	"time"
)

// Figures are what a direction of a wire does to frames. The zero value passes everything at once.
type Figures struct {
	Rate   float64       // bit/s, counted with the 14 bytes of the Ethernet header; 0 = as fast as they come
	Queue  time.Duration // a frame that would wait longer than this for its turn is dropped; 0 = 50 ms
	Delay  time.Duration // of every frame
	Jitter time.Duration // the delay of a frame is Delay ± Jitter, evenly spread; frames keep their order
	Loss   float64       // part of the frames that get lost at random, 0 to 1
	Black  bool          // nothing passes
	Strip  bool          // MPTCP's options are overwritten, see [StripMPTCP]
}

// DefaultQueue is the queue where Figures do not give one.
const DefaultQueue = 50 * time.Millisecond

// Verdict is what happens to a frame.
type Verdict int

// The verdicts.
const (
	Pass    Verdict = iota
	Lost            // by chance
	Full            // no room in the queue
	Silence         // the wire is black
)

// Counts are the frames of a direction by verdict, and the bytes that passed.
type Counts struct {
	Passed, Lost, Full, Silenced, Stripped, Bytes uint64
}

// Shaper decides for each frame whether and when it arrives. It is not safe for concurrent use.
type Shaper struct {
	fig    Figures
	random *rand.Rand
	free   time.Time // when the last frame that was let in has been sent
	last   time.Time // when the last frame arrives
	counts Counts
}

// NewShaper makes a shaper whose chance comes from seed.
func NewShaper(f Figures, seed uint64) *Shaper {
	return &Shaper{fig: f, random: rand.New(rand.NewPCG(seed, 0x77656674))}
}

// Set changes the figures for the frames that follow; those under way arrive as it was decided for them.
func (s *Shaper) Set(f Figures) { s.fig = f }

// Figures are the present ones.
func (s *Shaper) Figures() Figures { return s.fig }

// Counts are those so far.
func (s *Shaper) Counts() Counts { return s.counts }

// Frame decides about a frame of n bytes that is handed over at now: when it arrives, unless it does not.
func (s *Shaper) Frame(now time.Time, n int) (arrival time.Time, v Verdict) {
	f := &s.fig
	if f.Black {
		s.counts.Silenced++
		return time.Time{}, Silence
	}
	start := now
	if f.Rate > 0 {
		if s.free.After(now) {
			start = s.free
		}
		queue := f.Queue
		if queue == 0 {
			queue = DefaultQueue
		}
		if start.Sub(now) > queue {
			s.counts.Full++
			return time.Time{}, Full
		}
		start = start.Add(time.Duration(float64(n) * 8 / f.Rate * float64(time.Second)))
		s.free = start
	}
	// A frame that gets lost on the way has taken its time at the sender all the same.
	if f.Loss > 0 && s.random.Float64() < f.Loss {
		s.counts.Lost++
		return time.Time{}, Lost
	}
	arrival = start.Add(f.Delay)
	if f.Jitter > 0 {
		arrival = arrival.Add(time.Duration((2*s.random.Float64() - 1) * float64(f.Jitter)))
	}
	if arrival.Before(s.last) {
		arrival = s.last
	}
	s.last = arrival
	s.counts.Passed++
	s.counts.Bytes += uint64(n)
	return arrival, Pass
}
