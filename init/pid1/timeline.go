package pid1

import (
	"slices"
	"sync"
	"time"

	"weft/init/stage1/handover"
	"weft/init/supervise"
)

// Timeline is what `service timeline` shows: when what happened on the way from
// the kernel's first line to ready. Times are milliseconds since the kernel
// started.
type Timeline struct {
	ReadyMS int64          `json:"ready_ms"` // 0: not yet
	Marks   []Mark         `json:"marks"`
	Units   []UnitTimeline `json:"units"`
}

// Mark is a point in time.
type Mark struct {
	Stage string `json:"stage"` // kernel, stage1, init
	Name  string `json:"name"`
	MS    int64  `json:"ms"`
}

// UnitTimeline is the first start of a unit.
type UnitTimeline struct {
	Name    string `json:"name"`
	StartMS int64  `json:"start_ms"`
	ReadyMS int64  `json:"ready_ms"` // 0: never
	OK      bool   `json:"ok"`
}

// timeline gathers a Timeline.
type timeline struct {
	mu    sync.Mutex
	marks []Mark
	units map[string]*UnitTimeline
	order []string
	ready time.Duration
}

func newTimeline() *timeline {
	return &timeline{
		marks: []Mark{{"kernel", "first line", 0}},
		units: map[string]*UnitTimeline{},
	}
}

func (t *timeline) stage1(marks []handover.Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range marks {
		t.marks = append(t.marks, Mark{"stage1", m.Name, m.MS})
	}
}

func (t *timeline) mark(name string, at time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = append(t.marks, Mark{"init", name, at.Milliseconds()})
}

// notice records the first start and readiness of each unit, until ready.
func (t *timeline) notice(n supervise.Notice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready != 0 {
		return
	}
	switch n.Kind {
	case supervise.InstanceStart:
		if t.units[n.ID] == nil {
			t.units[n.ID] = &UnitTimeline{Name: n.ID, StartMS: n.At.Milliseconds()}
			t.order = append(t.order, n.ID)
		}
	case supervise.InstanceReady:
		if u := t.units[n.ID]; u != nil && !u.OK {
			u.ReadyMS, u.OK = n.At.Milliseconds(), true
		}
	}
}

// setReady ends the timeline.
func (t *timeline) setReady(at time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ready = at
	t.marks = append(t.marks, Mark{"init", "ready", at.Milliseconds()})
}

// get is a copy, sorted by time.
func (t *timeline) get() Timeline {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := Timeline{ReadyMS: t.ready.Milliseconds(), Marks: slices.Clone(t.marks), Units: []UnitTimeline{}}
	for _, id := range t.order {
		out.Units = append(out.Units, *t.units[id])
	}
	slices.SortStableFunc(out.Marks, func(a, b Mark) int { return int(a.MS - b.MS) })
	return out
}
