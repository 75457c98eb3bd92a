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

// More than the paths carry: they stay full, their queues short, and a small
// flow beside does not notice.
func TestOverloadIsDroppedAtTheEntrance(t *testing.T) {
	s := newSim(t, mbit10(5*ms), mbit10(5*ms))
	s.run(time.Second)
	bulk := s.load(0, 1, 30, 1400, 11*time.Second)
	s.run(time.Second)
	s.ends[1].got = nil
	for _, l := range s.links[0] {
		l.drops = 0 // while the rates were being learnt
	}
	voice := s.load(0, 2, 0.08, 200, 10*time.Second)
	s.run(11 * time.Second)
	b, v := s.ends[1].judge(1), s.ends[1].judge(2)
	goodput := float64(b.got) * 1400 * 8 / 10e6 // Mbit/s in 10 s
	t.Logf("bulk %.2f of %.2f Mbit/s, p50 %v p99 %v; voice %d of %d, p50 %v p99 %v", goodput, float64(*bulk)*1400*8/10e6, b.p50, b.p99, v.got, *voice, v.p50, v.p99)
	if limit := 20 * 1400.0 / (1400 + headerLen + frameLen + tagLen + overhead4); goodput < 0.96*limit {
		t.Errorf("goodput %.2f Mbit/s, want 0.96 of the limit %.2f", goodput, limit)
	}
	if b.p99 > longWait+20*ms {
		t.Errorf("p99 of the large flow is %v", b.p99)
	}
	if v.got < *voice*99/100 || v.p99 > 5*ms+15*ms {
		t.Errorf("the small flow got %d of %d through, p99 %v", v.got, *voice, v.p99)
	}
	// What the network drops, CoDel has failed to.
	for i, l := range s.links[0] {
		if l.drops > 0 {
			t.Errorf("path %d dropped %d packets", i, l.drops)
		}
	}
}

func TestLossOfOnePathCostsOnlyWhatItLoses(t *testing.T) {
	lossy := mbit10(10 * ms)
	lossy.loss = 0.02
	s := newSim(t, mbit10(10*ms), lossy)
	s.run(time.Second)
	sent := s.load(0, 1, 14.4, 1200, 10*time.Second)
	s.run(11 * time.Second)
	j := s.ends[1].judge(1)
	if share := float64(j.got) / float64(*sent); share < 0.985 {
		t.Errorf("delivered %.4f with 1 %% lost on average", share)
	}
	if j.p99 > 30*ms {
		t.Errorf("p99 %v: gaps are waited for too long", j.p99)
	}
	p := s.ends[0].c.paths[1]
	if l := float64(p.lost) / float64(p.txPackets); l < 0.015 || l > 0.025 {
		t.Errorf("%.4f of path b counted as lost, want about 0.02", l)
	}
}

// Gateways that now and then do not run must not take that for queues.
func TestHiccupsOfBusyMachines(t *testing.T) {
	s := newSim(t, mbit10(0), mbit10(0))
	s.run(time.Second)
	for i := range 200 {
		for side := range 2 {
			s.after(time.Duration(i)*100*ms+time.Duration(s.rnd.Int64N(int64(60*ms))), func() {
				s.ends[side].pause(time.Duration(s.rnd.Int64N(int64(20 * ms))))
			})
		}
	}
	up := s.load(0, 1, 14.4, 1200, 20*time.Second)
	down := s.load(1, 2, 14.4, 1200, 20*time.Second)
	s.run(21 * time.Second)
	for side, sent := range []int{*down, *up} {
		j := s.ends[side].judge(uint32(2 - side))
		t.Logf("to %d: %d of %d, p50 %v p99 %v", side, j.got, sent, j.p50, j.p99)
		if j.got < sent*995/1000 {
			t.Errorf("%d of %d delivered", j.got, sent)
		}
		if j.p99 > 35*ms {
			t.Errorf("p99 %v with hiccups of up to 20 ms at either end", j.p99)
		}
	}
}

// died returns when an end has reported a path dead, after since.
func (e *simEnd) died(name string, since time.Duration) (time.Duration, bool) {
	for i, ev := range e.events {
		if ev.name == name && !ev.alive && e.eventAt[i] >= since {
			return e.eventAt[i] - since, true
		}
	}
	return 0, false
}

func (e *simEnd) revived(name string, since time.Duration) (time.Duration, bool) {
	for i, ev := range e.events {
		if ev.name == name && ev.alive && e.eventAt[i] >= since {
			return e.eventAt[i] - since, true
		}
	}
	return 0, false
}

func TestDeadPathIsReportedByBothEnds(t *testing.T) {
	for _, tt := range []struct {
		name     string
		prepare  func(s *sim) *int
		cut      func(s *sim, cut bool)
		within   time.Duration
		lost     int
		maxDelay time.Duration
	}{
		{name: "idle but active", prepare: func(s *sim) *int { s.ends[0].c.told = true; return new(int) }},
		{name: "under load", prepare: func(s *sim) *int { return s.load(0, 1, 7, 1200, 4*time.Second) }, lost: 80},
		{name: "near to far only", prepare: func(s *sim) *int { return s.load(0, 1, 7, 1200, 4*time.Second) }, lost: 80,
			cut: func(s *sim, cut bool) { s.links[0][0].cut = cut }, within: 165 * ms},
		{name: "far to near only", prepare: func(s *sim) *int { return s.load(0, 1, 7, 1200, 4*time.Second) }, lost: 80,
			cut: func(s *sim, cut bool) { s.links[1][0].cut = cut }, within: 165 * ms},
		{name: "with others' full queues on it", prepare: func(s *sim) *int {
			s.ends[0].c.told = true
			for side := range 2 {
				s.reno(side, 0, 4*time.Second)
			}
			return new(int)
		}, within: 220 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, mbit10(5*ms), mbit10(5*ms))
			s.run(time.Second)
			sent := tt.prepare(s)
			s.run(1500 * ms)
			cut := tt.cut
			if cut == nil {
				cut = func(s *sim, cut bool) { s.links[0][0].cut, s.links[1][0].cut = cut, cut }
			}
			for side, e := range s.ends {
				if d, ok := e.died("a", 0); ok {
					t.Errorf("end %d reported the path dead at %v, before it was", side, d)
				}
			}
			at := s.now
			cut(s, true)
			s.run(time.Second)
			within := tt.within
			if within == 0 {
				within = 155 * ms
			}
			for side, e := range s.ends {
				d, ok := e.died("a", at)
				t.Logf("end %d after %v", side, d)
				if !ok || d > within {
					t.Errorf("end %d: dead %v after %v, want within %v", side, ok, d, within)
				}
				if _, ok := e.died("b", 0); ok {
					t.Errorf("end %d calls the other path dead", side)
				}
			}
			at = s.now
			cut(s, false)
			s.run(time.Second)
			for side, e := range s.ends {
				if d, ok := e.revived("a", at); !ok || d > 2*fastProbe+40*ms {
					t.Errorf("end %d: alive again %v after %v", side, ok, d)
				}
			}
			s.run(time.Second)
			if j := s.ends[1].judge(1); *sent-j.got > tt.lost {
				t.Errorf("%d of %d payloads lost, want at most %d", *sent-j.got, *sent, tt.lost)
			}
		})
	}
}

// What looks like silence and is none.
func TestNoFalseAlarm(t *testing.T) {
	for _, tt := range []struct {
		name  string
		paths []linkConf
		what  func(s *sim)
	}{
		{"the peer does not run for a while", nil, func(s *sim) {
			for i := range 6 {
				s.after(time.Duration(2*i)*time.Second, func() { s.ends[1].pause(time.Duration(100+200*i) * ms) })
			}
		}},
		{"we do not run for a while", nil, func(s *sim) {
			for i := range 6 {
				s.after(time.Duration(2*i)*time.Second, func() { s.ends[0].pause(time.Duration(100+200*i) * ms) })
			}
		}},
		{"queues of others come and go", nil, func(s *sim) {
			for i := range 10 {
				s.after(time.Duration(i)*time.Second, func() {
					for side := range 2 {
						s.links[side][i%2].fill()
					}
				})
			}
		}},
		{"one packet in ten is lost", []linkConf{{loss: 0.1}, {loss: 0.1}}, func(s *sim) {}},
		{"100 ms apart", []linkConf{{delay: 5 * ms}, {delay: 105 * ms}}, func(s *sim) {}},
		{"a load that is too much", nil, func(s *sim) {
			s.load(0, 1, 40, 1200, 10*time.Second)
			s.load(1, 1, 40, 1200, 10*time.Second)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			paths := tt.paths
			if paths == nil {
				paths = []linkConf{mbit10(5 * ms), mbit10(5 * ms)}
			}
			s := newSim(t, paths...)
			s.ends[0].c.told = true
			s.run(2 * time.Second)
			tt.what(s)
			s.run(12 * time.Second)
			for side, e := range s.ends {
				for i, ev := range e.events {
					if !ev.alive {
						t.Errorf("end %d called path %s dead at %v", side, ev.name, e.eventAt[i])
					}
				}
			}
		})
	}
}

// An idle session costs little.
func TestIdleSessionIsQuiet(t *testing.T) {
	s := newSim(t, mbit10(ms), mbit10(ms))
	s.run(5 * time.Second)
	before := s.ends[0].c.paths[0].txPackets
	s.run(60 * time.Second)
	if n := s.ends[0].c.paths[0].txPackets - before; n > 70 {
		t.Errorf("%d packets on a path in an idle minute, want about 60", n)
	}
	for side, e := range s.ends {
		if _, ok := e.died("a", 0); ok {
			t.Errorf("end %d calls an idle path dead", side)
		}
	}
	// And a path that dies meanwhile is noticed all the same.
	at := s.now
	s.links[0][0].cut, s.links[1][0].cut = true, true
	s.run(4 * time.Second)
	for side, e := range s.ends {
		if d, ok := e.died("a", at); !ok || d > 3*time.Second {
			t.Errorf("end %d: an idle path that died: %v after %v", side, ok, d)
		}
	}
}

func TestBackupPathWaitsForItsTurn(t *testing.T) {
	s := newSim(t, mbit10(5*ms), mbit10(0))
	b := s.ends[0].c.paths[1]
	b.backup = true
	s.run(time.Second)
	sent := s.load(0, 1, 5, 1200, 4*time.Second)
	s.run(2 * time.Second)
	before := s.links[0][1].bytes
	if before > 40000 {
		t.Errorf("the backup path carried %d bytes although the other is alive", before)
	}
	s.links[0][0].cut, s.links[1][0].cut = true, true
	s.run(3 * time.Second)
	if n := s.links[0][1].bytes - before; n < 500000 {
		t.Errorf("the backup path carried %d bytes while it was the only one", n)
	}
	if j := s.ends[1].judge(1); *sent-j.got > *sent/20 {
		t.Errorf("%d of %d payloads lost", *sent-j.got, *sent)
	}
}

func TestWeightsShareTheLoad(t *testing.T) {
	s := newSim(t, linkConf{delay: 5 * ms}, linkConf{delay: 5 * ms})
	s.ends[0].c.paths[0].weight = 3
	s.run(time.Second)
	s.load(0, 1, 8, 1200, 5*time.Second)
	s.run(6 * time.Second)
	a, b := float64(s.links[0][0].bytes), float64(s.links[0][1].bytes)
	if r := a / b; r < 2.5 || r > 3.5 {
		t.Errorf("weights 3 and 1 gave %.2f to 1", r)
	}
}

func TestDuplicatesCoverLosses(t *testing.T) {
	lossy := mbit10(5 * ms)
	lossy.loss = 0.1
	for _, tt := range []struct {
		mode Duplicate
		mbit float64
		min  float64
	}{{DuplicateOff, 0.1, 0}, {DuplicateSmall, 0.1, 0.98}, {DuplicateAll, 2, 0.98}} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			s := newSim(t, lossy, lossy)
			s.ends[0].c.duplicate = tt.mode
			s.run(time.Second)
			sent := s.load(0, 1, tt.mbit, 150, 20*time.Second)
			s.run(21 * time.Second)
			j := s.ends[1].judge(1)
			share := float64(j.got) / float64(*sent)
			t.Logf("%.4f of %d, p99 %v", share, *sent, j.p99)
			if j.twice > 0 {
				t.Errorf("%d payloads delivered twice", j.twice)
			}
			if share < tt.min || tt.mode == DuplicateOff && share > 0.95 {
				t.Errorf("delivered %.4f at 10 %% loss in mode %v", share, tt.mode)
			}
		})
	}
}

// TCP and ours on the same path: neither starves the other.
func TestSharesAPathWithTCP(t *testing.T) {
	for _, tt := range []struct {
		name      string
		tcpFirst  bool
		load      float64
		window    float64 // of TCP in packets, 0 = as Reno likes
		told      bool    // SetOtherRate
		tcp, ours float64 // Mbit/s, at least
	}{
		{name: "tcp first", tcpFirst: true, load: 20, tcp: 2.5, ours: 2},
		{name: "ours first", load: 20, tcp: 2.5, ours: 2.5},
		{name: "tcp first, told", tcpFirst: true, load: 20, told: true, tcp: 3, ours: 3.5},
		{name: "ours first, told", load: 20, told: true, tcp: 3, ours: 3.5},
		{name: "a film of 4 Mbit/s, tcp first", tcpFirst: true, load: 4, tcp: 4, ours: 3.4},
		{name: "a film of 4 Mbit/s, ours first", load: 4, tcp: 4, ours: 3.4},
		{name: "tcp with little in flight first", tcpFirst: true, window: 25, load: 20, tcp: 2.5, ours: 2.5},
		{name: "tcp with little in flight, ours first", window: 25, load: 20, tcp: 2, ours: 2.5},
		{name: "tcp with little in flight, a film", tcpFirst: true, window: 25, load: 4, tcp: 4, ours: 3.8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, mbit10(10*ms))
			s.run(time.Second)
			var tcp *renoFlow
			begin := func() {
				tcp = s.reno(0, 0, 60*time.Second)
				tcp.limit = tt.window
				last := 0
				var tell func()
				tell = func() {
					if tt.told {
						s.ends[0].c.paths[0].other = float64(tcp.acked-last) * 1514 * 10
					}
					last = tcp.acked
					s.after(100*ms, tell)
				}
				tell()
			}
			if tt.tcpFirst {
				begin()
				s.run(5 * time.Second)
			}
			s.load(0, 1, tt.load, 1200, 45*time.Second)
			if !tt.tcpFirst {
				s.run(5 * time.Second)
				begin()
			}
			s.run(10 * time.Second)
			t0, g0 := tcp.acked, len(s.ends[1].got)
			s.run(20 * time.Second)
			theirs := float64(tcp.acked-t0) * 1514 * 8 / 20e6
			ours := float64(len(s.ends[1].got)-g0) * 1200 * 8 / 20e6
			t.Logf("TCP %.2f, ours %.2f Mbit/s", theirs, ours)
			if theirs < tt.tcp || ours < tt.ours {
				t.Errorf("TCP got %.2f, ours %.2f Mbit/s of 10, want at least %.1f and %.1f", theirs, ours, tt.tcp, tt.ours)
			}
		})
	}
}

func TestPacketSizeIsFound(t *testing.T) {
	for _, mtu := range []int{1500, 1492, 1400, 1301} {
		small := mbit10(20 * ms)
		small.mtu = mtu
		s := newSim(t, small, mbit10(20*ms))
		s.run(5 * time.Second)
		if got := s.ends[0].c.paths[0].mtu + 28; got > mtu || got <= mtu-mtuStep-1 {
			t.Errorf("a path of MTU %d is used with %d", mtu, got)
		}
		// The path becomes worse; full payloads still get through.
		for side := range 2 {
			s.links[side][0].mtu = 1290
		}
		s.ends[0].c.told = true
		sent := s.load(0, 1, 5, 1472, 8*time.Second)
		s.run(4 * time.Second)
		before := s.ends[1].judge(1).got
		s.run(5 * time.Second)
		if got := s.ends[0].c.paths[0].mtu + 28; got > 1290 {
			t.Errorf("a path whose MTU became 1290 is used with %d", got)
		}
		if lost := *sent/2 - (s.ends[1].judge(1).got - before); lost > 5 {
			t.Errorf("%d of %d payloads lost on a path whose MTU became 1290", lost, *sent/2)
		}
	}
}

// A rate that falls, and rises again, is followed.
func TestRateIsFollowed(t *testing.T) {
	s := newSim(t, mbit10(10*ms))
	s.run(time.Second)
	s.load(0, 1, 15, 1200, 30*time.Second)
	for _, mbit := range []float64{10, 2, 10, 20} {
		s.links[0][0].rate = mbit
		s.run(2 * time.Second)
		g, d := len(s.ends[1].got), s.links[0][0].drops
		s.run(2 * time.Second)
		got := float64(len(s.ends[1].got)-g) * 1291 * 8 / 2e6
		t.Logf("at %v Mbit/s: %.2f, %d dropped", mbit, got, s.links[0][0].drops-d)
		if want := min(mbit, 15); got < 0.9*want {
			t.Errorf("%.2f of %v Mbit/s used", got, mbit)
		}
	}
}
