package datagram

import (
	"fmt"
	"os"
	"time"
)

func (g *gateways) trace(done chan struct{}) {
	if os.Getenv("WEFT_TRACE") == "" {
		return
	}
	f, _ := os.Create(os.Getenv("WEFT_TRACE"))
	defer f.Close()
	t0 := time.Now()
	for {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
		}
		for _, s := range []*Session{g.ns, g.fs} {
			s.mu.Lock()
			fmt.Fprintf(f, "%6.3f near=%v q=%d", time.Since(t0).Seconds(), s.core.near, s.core.q.bytes)
			for _, p := range s.core.paths {
				fmt.Fprintf(f, " | %d rate %.2f used %.2f full %.2f cap %.2f best %.2f q %v base %d start %v vy %v dip %.1f", p.id, p.rate*8e-6, p.used*8e-6, p.full*8e-6, p.capacity*8e-6, p.best*8e-6, p.queue, p.base.min(), p.started, p.vying, p.dipped)
			}
			fmt.Fprintln(f)
			s.mu.Unlock()
		}
	}
}
