package stage1

import (
	"context"
	"sync"
	"time"

	"weft/init/rootdisk"
)

// blockEvents hears block devices come and go, and remembers when the last one
// did.
type blockEvents struct {
	changed chan struct{} // one value for any number of events, of drivers as well

	watch  *rootdisk.Watch
	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex
	last   time.Time // of an event of a block device
}

// watchBlock listens from now on, until close.
func watchBlock(ctx context.Context) (*blockEvents, error) {
	watch, err := rootdisk.NewWatch()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	e := &blockEvents{changed: make(chan struct{}, 1), watch: watch, cancel: cancel, done: make(chan struct{}), last: time.Now()}
	go func() {
		defer close(e.done)
		for {
			block, err := watch.Next(ctx)
			if err != nil {
				return
			}
			e.note(block)
		}
	}()
	return e, nil
}

func (e *blockEvents) note(block bool) {
	if block {
		e.mu.Lock()
		e.last = time.Now()
		e.mu.Unlock()
	}
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *blockEvents) close() {
	e.cancel()
	<-e.done
	e.watch.Close()
}

// settle waits until nothing has come or gone for quiet, at most for limit.
func (e *blockEvents) settle(ctx context.Context, quiet, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		e.mu.Lock()
		left := quiet - time.Since(e.last)
		e.mu.Unlock()
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
