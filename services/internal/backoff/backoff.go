// Package backoff makes addresses wait that fail to log in again and again. Each
// has some free attempts; every further failure doubles the time for which it
// is refused, up to a ceiling. The table is bounded.
package backoff

import (
	"net/netip"
	"sync"
	"time"
)

// The policy: a person who mistypes does not notice it, a program that guesses
// gets a few hundred attempts a day.
const (
	free    = 5
	first   = 2 * time.Second
	ceiling = 5 * time.Minute
	// forget is how long after its last failure an address is unknown again.
	forget = 30 * time.Minute
	// maxEntries bounds the addresses that are remembered; the one that failed
	// longest ago makes place.
	maxEntries = 512
)

// Table remembers addresses. The zero value is empty. Its methods may be called
// from several goroutines.
type Table struct {
	mu      sync.Mutex
	entries map[netip.Prefix]*entry
}

type entry struct {
	failures int
	last     time.Time
	until    time.Time
}

// key is what counts as one client: an IPv4 address, an IPv6 /64, since hosts
// have all addresses of their network.
func key(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// Wait says for how long a is refused from now on, 0: not at all.
func (t *Table) Wait(a netip.Addr, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key(a)]
	if e == nil {
		return 0
	}
	if now.Sub(e.last) >= forget {
		delete(t.entries, key(a))
		return 0
	}
	return max(0, e.until.Sub(now))
}

// Fail counts a failure of a and returns how long it is refused now.
func (t *Table) Fail(a netip.Addr, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key(a)
	e := t.entries[k]
	if e == nil || now.Sub(e.last) >= forget {
		if e == nil && len(t.entries) >= maxEntries {
			t.makePlace()
		}
		if t.entries == nil {
			t.entries = map[netip.Prefix]*entry{}
		}
		e = &entry{}
		t.entries[k] = e
	}
	e.failures++
	e.last = now
	if e.failures <= free {
		return 0
	}
	wait := ceiling
	if n := e.failures - free - 1; n < 20 {
		wait = min(first<<n, ceiling)
	}
	e.until = now.Add(wait)
	return wait
}

// Good forgets the failures of a: it has logged in.
func (t *Table) Good(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.entries, key(a))
}

func (t *Table) makePlace() {
	var oldest netip.Prefix
	var when time.Time
	for k, e := range t.entries {
		if when.IsZero() || e.last.Before(when) {
			oldest, when = k, e.last
		}
	}
	delete(t.entries, oldest)
}
