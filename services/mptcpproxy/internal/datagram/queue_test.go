package datagram

import (
	"testing"
	"time"
)

// codel runs a queue served at one item of 1000 bytes per ms.
func serve(q *queue, d time.Duration, arrive func(now time.Duration)) (sojourn []time.Duration) {
	for now := time.Duration(0); now < d; now += ms {
		arrive(now)
		if it := q.take(now); it != nil {
			sojourn = append(sojourn, now-it.at)
		}
	}
	return sojourn
}

func newQueue() *queue { return &queue{free: func(*item) {}} }

func TestQueueLetsBurstsPass(t *testing.T) {
	q := newQueue()
	// 60 items at once every 250 ms are 24 % of what is served.
	n := 0
	serve(q, 5*time.Second, func(now time.Duration) {
		if now%(250*ms) == 0 {
			for range 60 {
				q.add(&item{n: 1000, at: now})
				n++
			}
		}
	})
	if q.drops != 0 {
		t.Errorf("%d of %d dropped of bursts that fit", q.drops, n)
	}
}

func TestQueueBoundsTheWait(t *testing.T) {
	q := newQueue()
	waits := serve(q, 5*time.Second, func(now time.Duration) {
		for range 2 { // twice what is served, and never less
			q.add(&item{n: 1000, at: now})
		}
	})
	if q.drops < 2000 {
		t.Errorf("%d dropped of 10000 where half fits", q.drops)
	}
	for i, w := range waits[len(waits)/5:] {
		if w > longWait+2*ms {
			t.Fatalf("item %d waited %v", i, w)
		}
	}
	if len(waits) < 4990 {
		t.Errorf("%d served in 5000 ms", len(waits))
	}
}

// CoDel proper (RFC 8289): what stays just above the target loses one item
// after an interval, then more and more often.
func TestQueueDropsByTheLaw(t *testing.T) {
	q := newQueue()
	for range 20 {
		q.add(&item{n: 1000})
	}
	var at []time.Duration
	last := uint64(0)
	serve(q, time.Second, func(now time.Duration) {
		q.add(&item{n: 1000, at: now})
		if q.drops != last {
			last = q.drops
			at = append(at, now)
		}
	})
	if len(at) < 4 {
		t.Fatalf("dropped at %v", at)
	}
	if first := at[0]; first < codelInterval || first > codelInterval+15*ms {
		t.Errorf("first drop at %v, want an interval after the target was passed", first)
	}
	for i := 2; i < len(at); i++ {
		if a, b := at[i-1]-at[i-2], at[i]-at[i-1]; b > a+2*ms {
			t.Errorf("drops at %v: they do not come more often", at)
			break
		}
	}
}

func TestQueueIsFair(t *testing.T) {
	q := newQueue()
	served := map[uint16]int{}
	for now := time.Duration(0); now < 5*time.Second; now += ms {
		for lane, n := range []int{0, 1, 4, 1} { // of 1, 1 and 4 a ms, half of one fits each
			for range n {
				q.add(&item{n: 1000, at: now, lane: uint16(lane)})
			}
		}
		if now%(20*ms) == 0 {
			q.add(&item{n: 100, at: now, lane: 9})
		}
		if it := q.take(now); it != nil {
			served[it.lane]++
			if it.lane == 9 && now-it.at > 8*ms {
				t.Fatalf("the small flow waited %v", now-it.at)
			}
		}
	}
	if served[9] != 250 {
		t.Errorf("%d of 250 of the small flow", served[9])
	}
	for _, lane := range []uint16{1, 2, 3} {
		if n := served[lane]; n < 1450 || n > 1750 {
			t.Errorf("flow %d got %d of 4750 turns: %v", lane, n, served)
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue()
	q.add(&item{n: 1000, lane: 7})
	for range 10000 {
		q.add(&item{n: 1400, lane: 3})
	}
	if q.bytes > queueBytes || q.overflow == 0 {
		t.Errorf("%d bytes, %d dropped", q.bytes, q.overflow)
	}
	if n := q.table[7].bytes; n != 1000 {
		t.Errorf("the small flow has %d bytes left of 1000", n)
	}
	q.clear()
	if q.bytes != 0 {
		t.Errorf("%d bytes after clear", q.bytes)
	}
}
