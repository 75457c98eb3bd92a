package logd

import (
	"fmt"
	"time"
)

// A sender may write burst lines at once and rate lines a second in the long run.
const (
	burst      = 1000
	rate       = 200
	maxSenders = 256 // buckets kept
	tellEvery  = 5 * time.Second
)

// limiter keeps one sender from filling the log. Senders are told apart by their
// process; lines that the supervisor passes on for services, by their tag.
type limiter struct {
	senders map[string]*bucket
	dropped bool // some bucket has drops to tell about
}

type bucket struct {
	tokens  float64
	last    time.Time
	dropped int
	name    string // while some are dropped
	told    time.Time
}

// allow says whether a line of the sender may pass. name tells who that is, for
// the report; it is asked for at the first line dropped.
func (l *limiter) allow(sender string, now time.Time, name func() string) bool {
	b := l.senders[sender]
	if b == nil {
		if len(l.senders) >= maxSenders {
			l.forget(now)
		}
		if l.senders == nil {
			l.senders = make(map[string]*bucket)
		}
		b = &bucket{tokens: burst, last: now}
		l.senders[sender] = b
	}
	b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*rate)
	b.last = now
	if b.tokens < 1 {
		if b.dropped == 0 {
			b.name = name()
		}
		b.dropped++
		l.dropped = true
		return false
	}
	b.tokens--
	return true
}

// forget makes room: senders that have been quiet long enough to have a full
// bucket go first, then the one that was quiet longest.
func (l *limiter) forget(now time.Time) {
	var oldest string
	for name, b := range l.senders {
		if b.dropped == 0 && now.Sub(b.last).Seconds()*rate+b.tokens >= burst {
			delete(l.senders, name)
			continue
		}
		if oldest == "" || b.last.Before(l.senders[oldest].last) {
			oldest = name
		}
	}
	if len(l.senders) >= maxSenders {
		delete(l.senders, oldest)
	}
}

// report returns a line for each sender whose lines were dropped, at most every
// tellEvery.
func (l *limiter) report(now time.Time) []string {
	if !l.dropped {
		return nil
	}
	var out []string
	l.dropped = false
	for _, b := range l.senders {
		if b.dropped == 0 {
			continue
		}
		if now.Sub(b.told) < tellEvery {
			l.dropped = true
			continue
		}
		out = append(out, fmt.Sprintf("logd: dropped %d lines of %s, which writes more than %d a second", b.dropped, b.name, rate))
		b.dropped, b.told = 0, now
	}
	return out
}
