package datagram

import "time"

// The exit puts the payloads of each lane in order again. A payload that comes
// before its predecessor waits until that has come, until every path has
// delivered something sent later (then the predecessor is lost: a path does
// not overtake itself), or until the bound is reached. One that comes after
// all that is delivered as it is, once.
const (
	heldBytes = 4 << 20 // of payloads that wait, in all lanes
	laneBits  = 256     // sequences of a lane that are remembered against duplicates
	maxGap    = 1 << 16 // a larger step is a new beginning
)

type laneState struct {
	next   uint32                // expected; both ends of a new session begin with 0
	bits   [laneBits / 64]uint64 // delivered, for sequences next-laneBits .. next-1
	head   *held                 // waiting, in order of sequence
	listed bool                  // in reorder.busy
}

type held struct {
	next     *held
	seq      uint32
	class    Class
	buf      []byte
	ts       uint32        // of the packet it came in
	deadline time.Duration // not later than that of the next
}

// delivery is a payload on its way to its user.
type delivery struct {
	class Class
	data  []byte
	buf   []byte // to be given back to the pool afterwards, or nil
}

// reorder is the exit of a session.
type reorder struct {
	window  time.Duration
	table   [lanes]laneState
	waiting int // payloads held
	bytes   int
	busy    []uint16 // lanes that may hold something
	out     []delivery

	duplicate, reordered, skipped, late uint64
}

func (l *laneState) seen(seq uint32) bool {
	return l.bits[seq%laneBits/64]&(1<<(seq%64)) != 0
}

// pass moves the lane past sequence next, which was delivered or not.
func (l *laneState) pass(delivered bool) {
	i, m := l.next%laneBits/64, uint64(1)<<(l.next%64)
	if delivered {
		l.bits[i] |= m
	} else {
		l.bits[i] &^= m
	}
	l.next++
}

// add takes a payload; data belongs to the caller, who may reuse it after the
// deliveries in r.out are done. deadline is the latest time to wait until.
func (r *reorder) add(now time.Duration, lane uint16, seq uint32, c Class, dup bool, data []byte, ts uint32, deadline time.Duration) {
	l := &r.table[lane]
	gap := int32(seq - l.next)
	if gap >= maxGap || gap <= -maxGap {
		for l.head != nil {
			r.deliverHead(l)
		}
		l.next, gap = seq, 0
		clear(l.bits[:])
	}
	switch {
	case gap < 0:
		if gap < -laneBits {
			if dup {
				r.duplicate++
				return
			}
		} else {
			if l.seen(seq) {
				r.duplicate++
				return
			}
			l.bits[seq%laneBits/64] |= 1 << (seq % 64)
		}
		r.late++
		r.out = append(r.out, delivery{class: c, data: data})
	case gap == 0:
		l.pass(true)
		r.out = append(r.out, delivery{class: c, data: data})
		r.advance(l)
	case r.window < 0 || deadline <= now || r.bytes+len(data) > heldBytes:
		// Nothing to wait for, or no room to: those missing are given up.
		r.reordered++
		r.releaseTo(l, seq)
		if seq == l.next {
			l.pass(true)
			r.out = append(r.out, delivery{class: c, data: data})
			r.advance(l)
		}
	default:
		at := &l.head
		for *at != nil && int32((*at).seq-seq) < 0 {
			at = &(*at).next
		}
		if *at != nil && (*at).seq == seq {
			r.duplicate++
			return
		}
		if !l.listed {
			l.listed = true
			r.busy = append(r.busy, lane)
		}
		h := &held{next: *at, seq: seq, class: c, buf: append(takeBuffer(), data...), ts: ts, deadline: deadline}
		if h.next != nil {
			h.deadline = min(h.deadline, h.next.deadline)
		}
		*at = h
		r.waiting++
		r.bytes += len(data)
		r.reordered++
	}
}

// advance delivers what is next in line.
func (r *reorder) advance(l *laneState) {
	for l.head != nil && l.head.seq == l.next {
		r.deliverHead(l)
	}
}

func (r *reorder) deliverHead(l *laneState) {
	h := l.head
	l.head = h.next
	r.waiting--
	r.bytes -= len(h.buf)
	for l.next != h.seq {
		r.skipped++
		l.pass(false)
	}
	l.pass(true)
	r.out = append(r.out, delivery{class: h.class, data: h.buf, buf: h.buf})
}

// releaseTo delivers everything held before seq and moves the lane to seq.
func (r *reorder) releaseTo(l *laneState, seq uint32) {
	for l.head != nil && int32(l.head.seq-seq) < 0 {
		r.deliverHead(l)
	}
	for int32(seq-l.next) > 0 {
		r.skipped++
		l.pass(false)
	}
}

// expire delivers what has waited long enough.
func (r *reorder) expire(now time.Duration) {
	if len(r.busy) == 0 {
		return
	}
	keep := r.busy[:0]
	for _, lane := range r.busy {
		l := &r.table[lane]
		for l.head != nil && l.head.deadline <= now {
			r.deliverHead(l)
			r.advance(l)
		}
		if l.head != nil {
			keep = append(keep, lane)
		} else {
			l.listed = false
		}
	}
	r.busy = keep
}

// pending tells the earliest deadline, 0 if nothing waits.
func (r *reorder) pending() time.Duration {
	if r.waiting == 0 {
		return 0
	}
	var first time.Duration
	for _, lane := range r.busy {
		if h := r.table[lane].head; h != nil && (first == 0 || h.deadline < first) {
			first = h.deadline
		}
	}
	return first
}

// passed tells the exit that every path has delivered something sent at ts or
// later: what is missing before payloads sent earlier is lost.
func (r *reorder) passed(ts uint32) {
	for _, lane := range r.busy {
		l := &r.table[lane]
		for l.head != nil && int32(ts-l.head.ts) > 0 {
			r.deliverHead(l)
			r.advance(l)
		}
	}
}

// whole is a payload that is being put together from pieces.
type whole struct {
	lane  uint16
	seq   uint32
	class Class
	buf   []byte
	got   int
	spans []span // what has come, only to tell pieces that come twice
	at    time.Duration
}

type span struct{ off, n int }

// reassembly keeps payloads of which pieces are missing.
type reassembly struct {
	table map[uint64]*whole
	bytes int
}

const (
	wholeBytes = 4 << 20
	wholeTime  = 500 * time.Millisecond
)

// add takes a piece and returns the payload if it is complete; the caller
// gives buf back to the pool.
func (a *reassembly) add(now time.Duration, f *frame) *whole {
	if a.table == nil {
		a.table = map[uint64]*whole{}
	}
	key := uint64(f.lane)<<32 | uint64(f.seq)
	w := a.table[key]
	if w != nil && (len(w.buf) != f.total || w.class != f.class) {
		a.drop(key, w)
		w = nil
	}
	if w == nil {
		if a.bytes+f.total > wholeBytes {
			a.expire(now)
			if a.bytes+f.total > wholeBytes {
				return nil
			}
		}
		w = &whole{lane: f.lane, seq: f.seq, class: f.class, at: now}
		if f.total <= bufferSize {
			w.buf = takeBuffer()[:f.total]
		} else {
			w.buf = make([]byte, f.total)
		}
		a.table[key] = w
		a.bytes += f.total
	}
	for _, s := range w.spans {
		if f.offset < s.off+s.n && s.off < f.offset+len(f.data) {
			return nil // once more, or overlapping, which nobody sends
		}
	}
	w.spans = append(w.spans, span{f.offset, len(f.data)})
	copy(w.buf[f.offset:], f.data)
	w.got += len(f.data)
	if w.got < len(w.buf) {
		return nil
	}
	delete(a.table, key)
	a.bytes -= len(w.buf)
	return w
}

func (a *reassembly) drop(key uint64, w *whole) {
	delete(a.table, key)
	a.bytes -= len(w.buf)
	giveBuffer(w.buf)
}

// expire forgets payloads whose other pieces will not come.
func (a *reassembly) expire(now time.Duration) {
	for k, w := range a.table {
		if now-w.at > wholeTime {
			a.drop(k, w)
		}
	}
}
