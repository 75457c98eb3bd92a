package logd

import "sync"

// ring keeps the newest entries within a budget of bytes. Readers hold a position,
// not a queue: one that is too slow misses lines and learns how many, and nobody
// waits for it.
type ring struct {
	mu      sync.Mutex
	entries []entry // entries[head:] in use
	head    int
	bytes   int
	budget  int
	next    uint64        // number of the next entry, from 0; its low 32 bits are the id
	changed chan struct{} // closed and replaced when an entry comes
}

func newRing(budget int) *ring {
	return &ring{budget: budget, changed: make(chan struct{})}
}

// add appends an entry, numbering it.
func (r *ring) add(e entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.id = uint32(r.next)
	r.next++
	r.entries = append(r.entries, e)
	r.bytes += e.size()
	r.trim()
	close(r.changed)
	r.changed = make(chan struct{})
}

// trim drops the oldest entries over the budget; one entry always stays.
func (r *ring) trim() {
	for r.bytes > r.budget && len(r.entries)-r.head > 1 {
		r.bytes -= r.entries[r.head].size()
		r.entries[r.head] = entry{}
		r.head++
	}
	if r.head > len(r.entries)/2 {
		r.entries = append(r.entries[:0], r.entries[r.head:]...)
		clear(r.entries[len(r.entries):cap(r.entries)])
		r.head = 0
	}
}

// resize changes the budget; what fits stays.
func (r *ring) resize(budget int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.budget = budget
	r.trim()
}

// newest returns the position of the n newest entries, or of all if n <= 0.
func (r *ring) newest(n int) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := len(r.entries) - r.head
	if n <= 0 || n > have {
		n = have
	}
	return r.next - uint64(n)
}

// end is the position after the newest entry.
func (r *ring) end() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// from copies at most limit entries that start at the position. lost is how many
// were dropped before they could be read; changed is closed when there are more.
func (r *ring) from(pos uint64, limit int) (list []entry, next uint64, lost int, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := r.next - uint64(len(r.entries)-r.head)
	if pos < oldest {
		lost = int(oldest - pos)
		pos = oldest
	}
	i := r.head + int(pos-oldest)
	n := min(len(r.entries)-i, limit)
	list = append(list, r.entries[i:i+n]...)
	return list, pos + uint64(n), lost, r.changed
}
