package wire

import (
	"math/rand/v2"
	"testing"
	"time"
)

func newDirection(k Kind) *direction { return &direction{kind: k, rng: rand.New(rand.NewPCG(1, 2))} }

func TestDelayAndRate(t *testing.T) {
	start := time.Now()
	d := newDirection(Kind{Rate: 8, Queue: 3 * time.Millisecond, Delay: 10 * time.Millisecond})
	for range 10 {
		d.take(start, make([]byte, 1000)) // 1 ms each at 8 Mbit/s
	}
	if len(d.waiting) != 4 || d.stats.Dropped != 6 {
		t.Fatalf("%d frames wait, %d dropped; want 4 (one on the wire, three queued) and 6", len(d.waiting), d.stats.Dropped)
	}
	for i, f := range d.waiting {
		if want := time.Duration(11+i) * time.Millisecond; f.due.Sub(start) != want {
			t.Errorf("frame %d is due after %v, want %v", i, f.due.Sub(start), want)
		}
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	start := time.Now()
	d := newDirection(Kind{Delay: time.Millisecond, Jitter: 20 * time.Millisecond})
	for i := range 100 {
		d.take(start.Add(time.Duration(i)*time.Millisecond), []byte{byte(i)})
	}
	for i := 1; i < len(d.waiting); i++ {
		if d.waiting[i].due.Before(d.waiting[i-1].due) {
			t.Fatalf("frame %d is due before frame %d", i, i-1)
		}
	}
	if early := d.waiting[50].due.Sub(start); early < 51*time.Millisecond {
		t.Errorf("frame 50 is due after %v, before its delay has passed", early)
	}
}

func TestLoss(t *testing.T) {
	d := newDirection(Kind{Loss: 0.01})
	for range 100000 {
		d.take(time.Time{}, nil)
	}
	if d.stats.Lost < 800 || d.stats.Lost > 1200 {
		t.Errorf("1 %% loss: %d of 100000 frames lost", d.stats.Lost)
	}
	d.kind = Kind{Black: true}
	before := len(d.waiting)
	d.take(time.Time{}, nil)
	if len(d.waiting) != before {
		t.Error("a black wire let a frame pass")
	}
}
