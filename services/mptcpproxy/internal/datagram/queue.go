package datagram

import (
	"math"
	"time"
)

// The entrance of a session is FlowQueue-CoDel (RFC 8290): a queue a bucket of
// flows, served in turn by bytes, those that have just become busy first; in
// each the CoDel law (RFC 8289) drops what has waited too long. So a flow of
// few packets does not wait behind one that wants more than the paths carry.
const (
	codelTarget   = 5 * time.Millisecond   // RFC 8289 section 4.2
	codelInterval = 100 * time.Millisecond // RFC 8289 section 4.3
	buckets       = 256
	quantum       = 1514    // RFC 8290 section 5.2.3
	queueBytes    = 4 << 20 // in all
	// CoDel needs seconds to get hold of flows that do not slow down, which much
	// of UDP is. So where waits have been long for a while, what has waited for
	// longWait is dropped whatever the law says. A burst, such as comes when this
	// machine has stood still, has the while to be worked off.
	longWait = 50 * time.Millisecond
	longTime = 250 * time.Millisecond
	tooLong  = 500 * time.Millisecond // no payload is of use after that
)

// item is one payload on its way out. buf holds room bytes for headers, then
// the payload, then capacity for the tag.
type item struct {
	next   *item
	buf    []byte
	n      int // length of the payload
	off    int // what has been sent of it, in pieces
	lane   uint16
	seq    uint32
	seqSet bool
	class  Class
	dup    bool
	at     time.Duration // arrival here
}

// bucket is a first-in first-out queue under the CoDel law.
type bucket struct {
	head, tail *item
	bytes      int
	deficit    int
	next       *bucket // in the list of new or old ones
	listed     bool

	firstAbove time.Duration // 0 = not above the target
	dropNext   time.Duration
	count      int
	lastCount  int
	dropping   bool
	longSince  time.Duration // waits were last clearly shorter
}

// bucketList is a first-in first-out list of buckets.
type bucketList struct{ head, tail *bucket }

func (l *bucketList) push(b *bucket) {
	b.next = nil
	if l.tail == nil {
		l.head = b
	} else {
		l.tail.next = b
	}
	l.tail = b
}

func (l *bucketList) pop() *bucket {
	b := l.head
	l.head = b.next
	if l.head == nil {
		l.tail = nil
	}
	b.next = nil
	return b
}

// queue is the entrance. The zero value is ready; free must be set.
type queue struct {
	table      [buckets]bucket
	fresh, old bucketList
	bytes      int
	drops      uint64 // by CoDel
	overflow   uint64 // by want of room
	free       func(*item)
}

func (b *bucket) take() *item {
	it := b.head
	b.head = it.next
	if b.head == nil {
		b.tail = nil
	}
	it.next = nil
	b.bytes -= it.n
	return it
}

// add appends it, making room in the fullest bucket if need be (RFC 8290
// section 4.1.3).
func (q *queue) add(it *item) {
	b := &q.table[it.lane%buckets]
	if b.tail == nil {
		b.head = it
	} else {
		b.tail.next = it
	}
	b.tail = it
	b.bytes += it.n
	q.bytes += it.n
	if !b.listed {
		b.listed, b.deficit, b.longSince = true, quantum, it.at
		q.fresh.push(b)
	}
	for q.bytes > queueBytes {
		fat := &q.table[0]
		for i := range q.table {
			if q.table[i].bytes > fat.bytes {
				fat = &q.table[i]
			}
		}
		d := fat.take()
		q.bytes -= d.n
		q.overflow++
		q.free(d)
	}
}

// codelTake takes the head of b by the CoDel law, nil if b is empty.
func (q *queue) codelTake(b *bucket, now time.Duration) *item {
	it, drop := q.consider(b, now)
	if it == nil {
		b.dropping = false
		return nil
	}
	if b.dropping {
		if !drop {
			b.dropping = false
		}
		for b.dropping && now >= b.dropNext {
			q.discard(it)
			b.count++
			it, drop = q.consider(b, now)
			if it == nil || !drop {
				b.dropping = false
				break
			}
			b.dropNext += controlLaw(b.count)
		}
	} else if drop {
		q.discard(it)
		it, _ = q.consider(b, now)
		b.dropping = true
		if delta := b.count - b.lastCount; delta > 1 && now-b.dropNext < 16*codelInterval {
			b.count = delta
		} else {
			b.count = 1
		}
		b.lastCount = b.count
		b.dropNext = now + controlLaw(b.count)
	}
	return it
}

// consider takes the head and tells whether it has been above the target for
// an interval.
func (q *queue) consider(b *bucket, now time.Duration) (*item, bool) {
	if b.head == nil {
		b.firstAbove = 0
		return nil, false
	}
	it := b.take()
	q.bytes -= it.n
	if now-it.at <= longWait/2 {
		b.longSince = now
	}
	for b.head != nil && (now-it.at > tooLong || now-it.at > longWait && now-b.longSince > longTime) {
		q.discard(it)
		it = b.take()
		q.bytes -= it.n
	}
	if now-it.at < codelTarget || b.bytes <= quantum {
		b.firstAbove = 0
		return it, false
	}
	if b.firstAbove == 0 {
		b.firstAbove = now + codelInterval
		return it, false
	}
	return it, now >= b.firstAbove
}

func (q *queue) discard(it *item) {
	q.drops++
	q.free(it)
}

func controlLaw(count int) time.Duration {
	return time.Duration(float64(codelInterval) / math.Sqrt(float64(count)))
}

// take returns the next payload to send, nil if there is none.
func (q *queue) take(now time.Duration) *item {
	for {
		l := &q.fresh
		if l.head == nil {
			l = &q.old
		}
		b := l.head
		if b == nil {
			return nil
		}
		if b.deficit <= 0 {
			b.deficit += quantum
			q.old.push(l.pop())
			continue
		}
		it := q.codelTake(b, now)
		if it == nil {
			// An empty new bucket has to pass the old ones, so that it cannot
			// starve them by becoming new again and again.
			if l == &q.fresh && q.old.head != nil {
				q.old.push(l.pop())
			} else {
				l.pop().listed = false
			}
			continue
		}
		b.deficit -= it.n
		return it
	}
}

// clear drops everything.
func (q *queue) clear() {
	for i := range q.table {
		for q.table[i].head != nil {
			it := q.table[i].take()
			q.bytes -= it.n
			q.free(it)
		}
	}
}
