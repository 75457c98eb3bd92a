package govern

import (
	"net/netip"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// feed gives a path samples for a time: rate in bytes per second, one sample
// in 25 ms, as Run does.
type feed struct {
	rate     float64
	rtt, min time.Duration
	loss     float64 // share of segments, in every fourth sample
}

const step = 25 * time.Millisecond

func (f feed) run(p *path, from time.Time, d time.Duration) time.Time {
	lost := 0.0
	now := from
	for i := 0; now.Sub(from) < d; i++ {
		now = now.Add(step)
		p.begin(now)
		segs := f.rate * step.Seconds() / 1424
		lost += segs * f.loss
		s := sample{now: now, acked: uint64(f.rate * step.Seconds()), sent: uint32(segs), rtt: f.rtt, minRTT: f.min, flight: 10, mss: 1424}
		if n := uint32(lost); n > 0 && i%4 == 3 {
			s.retrans = n
			lost -= float64(n)
		}
		p.observe(s)
		p.end()
	}
	return now
}

const mbit10 = 1.17e6 // bytes per second of payload on 10 Mbit/s

func TestPathMeasures(t *testing.T) {
	var p path
	now := feed{rate: mbit10, rtt: 14 * time.Millisecond, min: 2 * time.Millisecond}.run(&p, start, 3*time.Second)
	if r := p.rate(); r < 0.95*mbit10 || r > 1.05*mbit10 {
		t.Errorf("rate %.0f, want about %.0f", r, mbit10)
	}
	if q, ok := p.queue(); !ok || q != 12*time.Millisecond {
		t.Errorf("queue %v %v", q, ok)
	}
	if p.inFlight != 10*1424 || p.subflows != 1 {
		t.Errorf("in flight %d, subflows %d", p.inFlight, p.subflows)
	}
	// One short answer shows that the queue does not stand.
	p.observe(sample{now: now, acked: 1, rtt: 3 * time.Millisecond, minRTT: 2 * time.Millisecond, flight: 1, mss: 1424})
	if q, _ := p.queue(); q != time.Millisecond {
		t.Errorf("queue %v after an answer without delay", q)
	}
	// The rate of what has stopped is forgotten.
	p.begin(now.Add(10 * time.Second))
	if r := p.rate(); r != 0 {
		t.Errorf("rate %.0f after ten idle seconds", r)
	}
	// So is a round trip that the path does not have any more.
	late := now.Add(10 * time.Second)
	for range 3 {
		late = late.Add(minWindow)
		p.begin(late)
		p.observe(sample{now: late, acked: 1, rtt: 60 * time.Millisecond, minRTT: 50 * time.Millisecond, flight: 1, mss: 1424})
	}
	if m := p.minRTT(); m != 50*time.Millisecond {
		t.Errorf("smallest round trip %v after the path became longer", m)
	}
}

func TestLossyPathGetsBBR(t *testing.T) {
	for _, c := range []struct {
		name string
		f    feed
		bbr  bool
	}{
		{"clean", feed{rate: mbit10, rtt: 30 * time.Millisecond, min: 25 * time.Millisecond}, false},
		{"one percent on a short path: cubic manages", feed{rate: mbit10, rtt: 4 * time.Millisecond, min: time.Millisecond, loss: 0.01}, false},
		{"one percent on a long path", feed{rate: mbit10, rtt: 62 * time.Millisecond, min: 60 * time.Millisecond, loss: 0.01}, true},
		{"losses of a full queue", feed{rate: mbit10, rtt: 110 * time.Millisecond, min: 60 * time.Millisecond, loss: 0.01}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p path
			now := c.f.run(&p, start, 3*time.Second)
			if p.bbr != c.bbr {
				t.Fatalf("bbr %v, want %v (loss %.4f)", p.bbr, c.bbr, p.loss)
			}
			if !c.bbr {
				return
			}
			if !p.bbrUntil.After(now) {
				t.Error("no time for bbr")
			}
			// Cubic is tried again, and for the same reason given up for longer.
			first := p.bbrFor
			p.begin(p.bbrUntil.Add(time.Second))
			if p.bbr {
				t.Fatal("cubic is never tried again")
			}
			c.f.run(&p, p.bbrUntil.Add(time.Second), 3*time.Second)
			if !p.bbr || p.bbrFor != 2*first {
				t.Errorf("bbr %v for %v, want for %v", p.bbr, p.bbrFor, 2*first)
			}
		})
	}
}

// drive feeds two paths and has a group review them.
func drive(g *group, a, b *path, fa, fb feed, from time.Time, d time.Duration) time.Time {
	now := from
	for now.Sub(from) < d {
		fa.run(a, now, step)
		now = fb.run(b, now, step)
		g.review(now, []*path{a, b})
	}
	return now
}

func TestGroupBounds(t *testing.T) {
	short := feed{rate: mbit10, rtt: 6 * time.Millisecond, min: 2 * time.Millisecond}
	long := feed{rate: mbit10, rtt: 42 * time.Millisecond, min: 2 * time.Millisecond}
	fast := feed{rate: 1e9, rtt: 42 * time.Millisecond, min: 2 * time.Millisecond}
	g := group{target: 10 * time.Millisecond, slack: 1}
	var a, b path
	now := drive(&g, &a, &b, short, short, start, 2*time.Second)
	if g.limit != 0 || g.share(1) != 0 {
		t.Errorf("a bound of %d without a queue", g.limit)
	}
	now = drive(&g, &a, &b, long, long, now, standsFor/2)
	if g.limit != 0 {
		t.Errorf("a bound of %d although the queue may go by itself", g.limit)
	}
	now = drive(&g, &a, &b, long, long, now, standsFor)
	// Twice the rate, times 2 ms of way and ten segments (12 ms) of queue; then
	// less, as the queue stays.
	if most := int(2 * mbit10 * 0.0145 * 1.1); g.limit <= most/3 || g.limit > most {
		t.Errorf("bound of %d bytes, want %d to %d", g.limit, most/3, most)
	}
	if s := g.share(2); s != max(g.limit/2, minShare) {
		t.Errorf("share of two: %d of %d", s, g.limit)
	}
	if s := g.share(1000); s != minShare {
		t.Errorf("share of a thousand: %d", s)
	}
	// A path comes or goes: no bound until TCP has found its way.
	g.disturb(now)
	now = drive(&g, &a, &b, long, long, now, grace-2*reviewPeriod)
	if g.limit != 0 {
		t.Errorf("bound of %d while paths change", g.limit)
	}
	now = drive(&g, &a, &b, long, long, now, 2*standsFor)
	if g.limit == 0 {
		t.Error("no bound after paths have changed")
	}
	drive(&g, &a, &b, fast, fast, now, time.Second)
	if g.limit != 0 {
		t.Errorf("bound of %d on fast paths", g.limit)
	}
}

// A bound that costs rate, since the path has become longer, gives way.
func TestGroupGivesWay(t *testing.T) {
	g := group{target: 10 * time.Millisecond, slack: 1}
	var a, b path
	f := feed{rate: mbit10, rtt: 42 * time.Millisecond, min: 2 * time.Millisecond}
	now := drive(&g, &a, &b, f, f, start, 3*time.Second)
	before := g.limit
	if before == 0 {
		t.Fatal("no bound")
	}
	f.rate /= 2
	drive(&g, &a, &b, f, f, now, 2*time.Second)
	if g.limit <= before/2 {
		t.Errorf("bound of %d bytes at half the rate, %d before: it follows the rate down", g.limit, before)
	}
}

// The bound is lifted from time to time, and never set where it would starve a
// long path or one that is only as busy as it must be.
func TestGroupLetsGo(t *testing.T) {
	g := group{target: 10 * time.Millisecond, slack: 1}
	var a, b path
	f := feed{rate: mbit10, rtt: 42 * time.Millisecond, min: 2 * time.Millisecond}
	now := drive(&g, &a, &b, f, f, start, 2*standsFor)
	free := 0
	for end := now.Add(2 * boundFor); now.Before(end); {
		now = drive(&g, &a, &b, f, f, now, reviewPeriod)
		if g.limit == 0 {
			free++
		}
	}
	if d := time.Duration(free) * reviewPeriod; d < freeFor || d > boundFor {
		t.Errorf("without a bound for %v of %v", d, 2*boundFor)
	}
	for name, c := range map[string][2]feed{
		"5 and 50 ms":   {{rate: mbit10, rtt: 50 * time.Millisecond, min: 10 * time.Millisecond}, {rate: mbit10, rtt: 110 * time.Millisecond, min: 100 * time.Millisecond}},
		"20 + 5 Mbit/s": {{rate: 2 * mbit10, rtt: 8 * time.Millisecond, min: time.Millisecond}, {rate: mbit10 / 2, rtt: 26 * time.Millisecond, min: time.Millisecond}},
	} {
		var a, b path
		g := group{target: 10 * time.Millisecond, slack: 1}
		drive(&g, &a, &b, c[0], c[1], start, 5*standsFor)
		if g.limit != 0 {
			t.Errorf("%s: bound of %d", name, g.limit)
		}
	}
}

func TestUnsentFollowsPaths(t *testing.T) {
	var a, b path
	g := group{target: 10 * time.Millisecond, slack: 1}
	fast := feed{rate: 2 * mbit10, rtt: 6 * time.Millisecond, min: 2 * time.Millisecond}
	slow := feed{rate: mbit10 / 2, rtt: 6 * time.Millisecond, min: 2 * time.Millisecond}
	g.review(start.Add(time.Second), nil)
	if g.unsent != unsentFirst {
		t.Errorf("at first %d", g.unsent)
	}
	now := drive(&g, &a, &b, fast, slow, start.Add(time.Second), 3*time.Second)
	if want := int(2.5 * mbit10 * notsentTime.Seconds()); g.unsent < want*9/10 || g.unsent > want*11/10 {
		t.Errorf("unequal paths: %d, want about %d", g.unsent, want)
	}
	drive(&g, &a, &b, fast, fast, now, 5*time.Second)
	if g.unsent != 0 {
		t.Errorf("equal paths: %d, want what the settings say", g.unsent)
	}
	if g.room() != roomSlow {
		t.Errorf("room %d", g.room())
	}
}

func TestPathStatsAreSorted(t *testing.T) {
	g, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.2.0.1", "10.1.0.1"} {
		k := pathKey{"exit1", netip.MustParseAddr(a), netip.MustParseAddr("10.1.0.2")}
		g.paths[k] = &path{key: k}
	}
	if s := g.PathStats(); len(s) != 2 || s[0].Local.String() != "10.1.0.1" || s[0].Congestion != "cubic" {
		t.Errorf("%+v", s)
	}
}
