package datagram

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// step is one arrival at the exit, at a time in ms.
type step struct {
	at   int
	seq  uint32
	dup  bool
	wait int // ms
}

func TestReorder(t *testing.T) {
	for _, tt := range []struct {
		name                           string
		steps                          []step
		end                            int
		want                           string // sequences as delivered, with times
		duplicate, late, skipped, held uint64
	}{
		{"in order", []step{{0, 0, false, 20}, {1, 1, false, 20}, {2, 2, false, 20}}, 3, "0@0 1@1 2@2", 0, 0, 0, 0},
		{"swapped", []step{{0, 1, false, 20}, {1, 0, false, 20}}, 30, "0@1 1@1", 0, 0, 0, 1},
		{"lost", []step{{0, 0, false, 20}, {1, 2, false, 20}, {2, 3, false, 20}}, 30, "0@0 2@21 3@21", 0, 0, 1, 2},
		{"late", []step{{0, 1, false, 20}, {25, 0, false, 20}, {26, 2, false, 20}}, 30, "1@20 0@25 2@26", 0, 1, 1, 1},
		{"late twice", []step{{0, 1, true, 20}, {25, 0, true, 20}, {26, 0, true, 20}}, 30, "1@20 0@25", 1, 1, 1, 1},
		{"twice at once", []step{{0, 0, true, 20}, {0, 0, true, 20}, {1, 2, true, 20}, {1, 2, true, 20}, {2, 1, true, 20}}, 30, "0@0 1@2 2@2", 2, 0, 0, 1},
		{"a later one must not wait longer for an earlier one that came after it", []step{{0, 2, false, 20}, {15, 1, false, 20}}, 40, "1@20 2@20", 0, 0, 1, 2},
		{"two gaps", []step{{0, 1, false, 20}, {5, 3, false, 20}, {10, 2, false, 20}}, 40, "1@20 2@20 3@20", 0, 0, 1, 3},
		{"not worth waiting", []step{{0, 0, false, 0}, {0, 2, false, 0}, {0, 1, false, 0}}, 1, "0@0 2@0 1@0", 0, 1, 1, 1},
		{"far ahead is a new beginning", []step{{0, 0, false, 20}, {1, 1 << 20, false, 20}, {2, 1<<20 + 1, false, 20}}, 3, "0@0 1048576@1 1048577@2", 0, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := reorder{window: 20 * ms}
			var got string
			take := func(at int) {
				for _, d := range r.out {
					got += fmt.Sprintf(" %s@%d", d.data, at)
				}
				r.out = r.out[:0]
			}
			next := 0
			for at := 0; at <= tt.end; at++ {
				now := time.Duration(at) * ms
				r.expire(now)
				take(at)
				for ; next < len(tt.steps) && tt.steps[next].at == at; next++ {
					s := tt.steps[next]
					r.add(now, 5, s.seq, ClassUDP, s.dup, fmt.Appendf(nil, "%d", s.seq), uint32(at), now+time.Duration(s.wait)*ms)
					take(at)
				}
			}
			if got != " "+tt.want {
				t.Errorf("delivered%s, want %s", got, tt.want)
			}
			if r.duplicate != tt.duplicate || r.late != tt.late || r.skipped != tt.skipped || r.reordered != tt.held {
				t.Errorf("counted %d duplicate, %d late, %d skipped, %d waiting, want %d %d %d %d",
					r.duplicate, r.late, r.skipped, r.reordered, tt.duplicate, tt.late, tt.skipped, tt.held)
			}
			if r.waiting != 0 || r.bytes != 0 || r.pending() != 0 {
				t.Errorf("still waiting: %d, %d bytes", r.waiting, r.bytes)
			}
		})
	}
}

// When every path has delivered something sent later, what is missing is lost.
func TestReorderDoesNotWaitForTheLost(t *testing.T) {
	r := reorder{window: 20 * ms}
	r.add(0, 1, 1, ClassUDP, false, []byte("b"), 100, 20*ms)
	r.passed(100)
	if len(r.out) != 0 {
		t.Fatal("a payload sent in the same microsecond may still come")
	}
	r.passed(101)
	if len(r.out) != 1 {
		t.Fatal("waited on although the missing payload is lost")
	}
}

func TestPiecesInAnyOrder(t *testing.T) {
	payload := make([]byte, 5000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	pieces := []span{{0, 1000}, {1000, 1500}, {2500, 1}, {2501, 2499}}
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 2, 0, 3, 0, 1}} {
		var a reassembly
		var w *whole
		for i, p := range order {
			if w != nil {
				t.Fatalf("order %v: whole after %d pieces", order, i)
			}
			s := pieces[p]
			w = a.add(0, &frame{lane: 1, seq: 2, offset: s.off, total: len(payload), data: payload[s.off : s.off+s.n]})
		}
		if w == nil || !slices.Equal(w.buf, payload) || a.bytes != 0 || len(a.table) != 0 {
			t.Errorf("order %v: %v bytes left, whole %v", order, a.bytes, w != nil)
		}
	}
	var a reassembly
	for i := range 1000 {
		a.add(0, &frame{lane: 1, seq: uint32(i), offset: 0, total: 60000, data: payload})
	}
	if a.bytes > wholeBytes {
		t.Errorf("pieces hold %d bytes, want at most %d", a.bytes, wholeBytes)
	}
	a.expire(wholeTime + 1)
	if a.bytes != 0 || len(a.table) != 0 {
		t.Errorf("%d bytes are left after the time is over", a.bytes)
	}
}
