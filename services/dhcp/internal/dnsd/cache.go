package dnsd

import (
	"sync"
)

// cache keeps answers as bytes. The least recently used one goes first.
type cache struct {
	mu       sync.Mutex
	m        map[string]*entry
	head     entry // ring: head.next is the most recently used one
	bytes    int
	maxCount int
	maxBytes int

	inserted, evicted uint64
}

// entry is an answer. Its wire is never changed.
type entry struct {
	key        string
	wire       []byte
	ttls       []uint16
	stored     int64 // seconds of the resolver's clock
	expires    int64
	gen        uint64 // of the local names for which it was found to be nobody's
	hits       uint32
	refreshing bool
	prev, next *entry
}

// entryCost is what an entry takes beside its bytes: structures, map, key.
const entryCost = 200

func (e *entry) size() int { return len(e.wire) + 2*len(e.ttls) + 2*len(e.key) + entryCost }

// bytesPerEntry turns the configured number of entries into a bound in bytes.
const bytesPerEntry = 1024

func newCache(entries int) *cache {
	c := &cache{m: map[string]*entry{}}
	c.head.prev, c.head.next = &c.head, &c.head
	c.resize(entries)
	return c
}

// resize sets the bounds; what is in stays as far as it fits.
func (c *cache) resize(entries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.maxCount, c.maxBytes = entries, entries*bytesPerEntry
	c.shrink()
}

func (c *cache) unlink(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (c *cache) front(e *entry) {
	e.prev, e.next = &c.head, c.head.next
	e.next.prev = e
	c.head.next = e
}

// get finds an entry, with c.mu held.
func (c *cache) get(key []byte) *entry {
	e := c.m[string(key)]
	if e != nil && c.head.next != e {
		c.unlink(e)
		c.front(e)
	}
	return e
}

func (c *cache) remove(e *entry) {
	c.unlink(e)
	delete(c.m, e.key)
	c.bytes -= e.size()
}

// put stores an entry in the place of an older one.
func (c *cache) put(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.m[e.key]; old != nil {
		c.remove(old)
	}
	if e.size() > c.maxBytes/4 {
		return
	}
	c.m[e.key] = e
	c.front(e)
	c.bytes += e.size()
	c.inserted++
	c.shrink()
}

func (c *cache) shrink() {
	for len(c.m) > c.maxCount || c.bytes > c.maxBytes {
		c.remove(c.head.prev)
		c.evicted++
	}
}

// flush empties the cache.
func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.head.next != &c.head {
		c.remove(c.head.next)
	}
}

func (c *cache) stats() (entries, bytes int, inserted, evicted uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.m), c.bytes, c.inserted, c.evicted
}
