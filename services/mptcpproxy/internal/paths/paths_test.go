package paths

import (
	"testing"
)

func TestJoinAndReturn(t *testing.T) {
	b := newBed(t, 2)
	near, far := b.manager(b.near, b.nearOptions()), b.manager(b.far, b.farOptions())
	l := b.listen()
	tr := b.dial(l, near)
	near.Register(tr.near, "exit", true)
	far.Register(tr.far, "near", false)
	until(t, "joined on both paths", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && has(t, tr.far, "10.1.0.2", "10.2.0.2") })
	for i, p := range []string{"p1", "p2"} {
		rest := []string{"10.2.0.1", "10.1.0.1"}[i]
		b.up(b.near, p, false)
		until(t, p+" gone", func() bool { return has(t, tr.near, rest) && len(subflows(t, tr.far)) == 1 })
		tr.exchange(b)
		b.up(b.near, p, true)
		until(t, p+" back", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") && len(subflows(t, tr.far)) == 2 })
	}
	b.up(b.far, "p1", false)
	until(t, "p1 cut at the far side", func() bool { return has(t, tr.near, "10.2.0.1") && has(t, tr.far, "10.2.0.2") })
	b.up(b.far, "p1", true)
	until(t, "p1 back", func() bool { return has(t, tr.near, "10.1.0.1", "10.2.0.1") })
	tr.exchange(b)
}
