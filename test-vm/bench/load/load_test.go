package load

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	v := []int64{5, 1, 4, 2, 3}
	for p, want := range map[float64]int64{0: 1, 50: 3, 99: 5, 100: 5} {
		if got := Percentile(v, p); got != want {
			t.Errorf("percentile %v: %d, want %d", p, got, want)
		}
	}
	if got := Percentile([]float64(nil), 50); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	if got := Median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median of four: %v, want 2.5", got)
	}
}

// series receives a megabit every 100 ms, except in the steps named.
func series(start time.Time, steps int, without func(i int) bool) Series {
	var s Series
	total := int64(0)
	for i := range steps {
		if !without(i) {
			total += 125000
			s = append(s, Sample{start.Add(time.Duration(i) * 100 * time.Millisecond), total})
		}
	}
	return s
}

func TestSeries(t *testing.T) {
	start := time.Now()
	at := func(i int) time.Time { return start.Add(time.Duration(i) * 100 * time.Millisecond) }
	s := series(start, 60, func(i int) bool { return i > 20 && i < 30 })
	if got := s.Stall(at(10), at(50)); got != time.Second {
		t.Errorf("stall: %v, want 1 s", got)
	}
	if got := s.Stall(at(0), at(15)); got != 100*time.Millisecond {
		t.Errorf("no stall: %v, want 100 ms", got)
	}
	if got := s.Stall(at(50), at(80)); got != 2100*time.Millisecond {
		t.Errorf("stall at the end: %v, want 2.1 s", got)
	}
	if got := s.Goodput(at(0), at(10)); got != 10 {
		t.Errorf("goodput: %v, want 10", got)
	}
	if got, ok := s.Recovered(at(25), at(55), 9.9, time.Second); !ok || got < 400*time.Millisecond || got > 500*time.Millisecond {
		t.Errorf("recovered after %v, %v; want 400 to 500 ms", got, ok)
	}
	if got, ok := s.Recovered(at(25), at(55), 10.5, time.Second); ok {
		t.Errorf("recovered to more than ever came after %v", got)
	}
}

// syn is an IPv4 TCP segment with these options.
func syn(options ...byte) []byte {
	p := make([]byte, 40)
	p[0], p[9] = 0x45, 6
	p[32] = byte(20+len(options)) / 4 << 4
	return append(p, options...)
}

func TestMPTCPOption(t *testing.T) {
	v6 := append(make([]byte, 40), syn(30, 4, 0, 0)[20:]...)
	v6[0], v6[6] = 0x60, 6
	fragment := syn(30, 4, 0, 0)
	fragment[7] = 1
	for _, c := range []struct {
		name     string
		packet   []byte
		tcp, has bool
	}{
		{"plain", syn(), true, false},
		{"MSS and MP_CAPABLE", syn(2, 4, 5, 180, 1, 1, 30, 12, 0, 0, 0, 0, 0, 0, 0, 0), true, true},
		{"after the end", syn(0, 30, 4, 0), true, false},
		{"timestamps", syn(1, 1, 8, 10, 30, 30, 30, 30, 30, 30, 30, 30), true, false},
		{"broken length", syn(2, 0, 30, 4), true, false},
		{"IPv6", v6, true, true},
		{"later fragment", fragment, false, false},
		{"UDP", append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 0, 17}, make([]byte, 40)...), false, false},
		{"nothing", nil, false, false},
	} {
		if tcp, has := mptcpOption(c.packet); tcp != c.tcp || has != c.has {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, tcp, has, c.tcp, c.has)
		}
	}
}

func FuzzMPTCPOption(f *testing.F) {
	f.Add(syn(2, 4, 5, 180, 30, 4, 0, 0))
	f.Add(syn(2, 0))
	f.Add([]byte{0x60})
	f.Fuzz(func(t *testing.T, p []byte) {
		if tcp, has := mptcpOption(p); has && !tcp {
			t.Error("an MPTCP option in what is not TCP")
		}
	})
}
