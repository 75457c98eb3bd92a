package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// flowOrder is who ends its half of a connection first.
type flowOrder int

const (
	upFirst   flowOrder = iota // question, end, answer, end
	downFirst                  // the sink sends and ends, then the client sends and ends
	together                   // both at once
	flowOrders
)

func (o flowOrder) String() string { return [...]string{"up first", "down first", "together"}[o] }

// flowKind is what a flow is about.
type flowKind int

const (
	transfer    flowKind = iota // everything arrives, both halves end
	clientReset                 // the client resets in the middle of what it sends
	sinkReset                   // the sink resets in the middle of what it sends
	refused                     // nobody listens
	datagrams                   // UDP, echoed
)

func (k flowKind) String() string {
	return [...]string{"transfer", "reset by client", "reset by sink", "refused", "datagrams"}[k]
}

// flowPlan is one flow of the soak.
type flowPlan struct {
	id       uint64
	at       time.Duration
	kind     flowKind
	order    flowOrder
	v6       bool
	up, down int64         // bytes; of datagrams: up packets of down bytes
	pause    time.Duration // the client's rest in the middle of what it sends
}

func (f flowPlan) String() string {
	return fmt.Sprintf("flow %d at %.1f s: %v, %v, %d up, %d down, pause %v, IPv6 %v", f.id, f.at.Seconds(), f.kind, f.order, f.up, f.down, f.pause, f.v6)
}

// faultKind is what happens to the network.
type faultKind int

const (
	cutPath faultKind = iota
	blackPath
	degradePath
	newAddress // of the near gateway on the second path
	killNear
	killFar
	faultKinds
)

func (k faultKind) String() string {
	return [...]string{"cut", "black", "degrade", "new address", "kill near", "kill far"}[k]
}

// faultPlan is one fault of the soak.
type faultPlan struct {
	at, during time.Duration
	kind       faultKind
	path       int
	direction  int           // of black: 0 both, 1 up, 2 down
	loss       float64       // of degrade
	delay      time.Duration // of degrade
}

func (f faultPlan) String() string {
	s := fmt.Sprintf("%.1f s: %v", f.at.Seconds(), f.kind)
	switch f.kind {
	case cutPath, blackPath, degradePath:
		s += fmt.Sprintf(" path %d for %.1f s", f.path+1, f.during.Seconds())
	case newAddress:
		s += fmt.Sprintf(" for %.1f s", f.during.Seconds())
	}
	return s
}

// What two hours hold - a fault each half minute, a flow each half second - happens in ten minutes.
const (
	flowsPerSecond = 24
	faultEvery     = 2500 * time.Millisecond
	longestFault   = 1800 * time.Millisecond
)

// soakPlan draws flows and faults for so long; the same seed gives the same plan.
func soakPlan(seed uint64, during time.Duration, v6, kills bool) ([]flowPlan, []faultPlan) {
	rng := rand.New(rand.NewPCG(seed, 0))
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(rng.Int64N(int64(b-a))) }
	// size is as often between 1 and 10 bytes as between 10 and 100 kB.
	size := func() int64 {
		if rng.IntN(100) == 0 {
			return 1<<20 + rng.Int64N(2<<20)
		}
		return int64(math.Exp(rng.Float64() * math.Log(128<<10)))
	}
	var flows []flowPlan
	for at := time.Duration(0); at < during; at += time.Duration(rng.ExpFloat64() * float64(time.Second) / flowsPerSecond) {
		f := flowPlan{id: uint64(len(flows) + 1), at: at, order: flowOrder(rng.IntN(int(flowOrders))), v6: v6 && rng.IntN(4) == 0, up: size(), down: size()}
		switch n := rng.IntN(100); {
		case n < 8:
			f.kind, f.order = clientReset, together
		case n < 16:
			f.kind, f.order = sinkReset, together
		case n < 18:
			f.kind = refused
		case n < 28:
			f.kind, f.up, f.down = datagrams, 1+rng.Int64N(50), 16+rng.Int64N(1180)
		}
		if f.kind == transfer && rng.IntN(20) == 0 {
			f.pause = min(between(time.Second, 14*time.Second), during/3)
		}
		flows = append(flows, f)
	}
	var faults []faultPlan
	for at := faultEvery; at+longestFault < during; at += faultEvery {
		f := faultPlan{at: at + between(0, faultEvery-longestFault), during: between(300*time.Millisecond, longestFault), path: rng.IntN(2),
			direction: rng.IntN(3), loss: 0.05 * rng.Float64(), delay: between(0, 60*time.Millisecond)}
		// Each kind early, then by chance; a gateway dies once in twenty.
		if n := len(faults); n < int(faultKinds) {
			f.kind = faultKind((n + int(seed)) % int(faultKinds))
		} else if rng.IntN(20) == 0 {
			f.kind = killNear + faultKind(rng.IntN(2))
		} else {
			f.kind = faultKind(rng.IntN(int(killNear)))
		}
		if !kills && f.kind >= newAddress {
			f.kind = blackPath
		}
		faults = append(faults, f)
	}
	return flows, faults
}
