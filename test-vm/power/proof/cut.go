package proof

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/test-vm/lab"
	"weft/test-vm/power"
)

// spans are the entries of each stage: those before entry[0] of the next.
type span struct {
	stage    int
	from, to int // numbers of entries; a cut after from..to belongs to the stage
}

func (r *Recording) spans() []span {
	var out []span
	ops := r.log.Ops()
	for i, o := range ops {
		if o.Kind != power.Mark {
			continue
		}
		if n := len(out); n > 0 {
			out[n-1].to = i
		}
		out = append(out, span{int(o.Off), i + 1, len(ops)})
	}
	return out
}

// stageOf is the stage that a cut falls into.
func (r *Recording) stageOf(cut power.Cut) (stage, error) {
	all := stages()
	for _, s := range r.spans() {
		if cut.After >= s.from && cut.After <= s.to && s.stage < len(all) {
			return all[s.stage], nil
		}
	}
	return stage{}, fmt.Errorf("cut %s is before the first mark of the recording", cut)
}

// Choose spreads n cuts over the stages: each gets its share by the square root of its writes, so that the hundreds of
// writes of a root file system do not leave one for the commit; within a stage they are every so many writes apart, with
// the first by chance, and the modes take turns.
func (r *Recording) Choose(n int, seed uint64) []power.Cut {
	rng := rand.New(rand.NewPCG(seed, 0))
	ops := r.log.Ops()
	type share struct {
		writes []int // cut after these entries
		weight float64
	}
	var shares []share
	total := 0.0
	for _, s := range r.spans() {
		sh := share{writes: []int{s.from}}
		for i := s.from; i < s.to; i++ {
			if k := ops[i].Kind; k == power.Write || k == power.Zero || k == power.Trim {
				sh.writes = append(sh.writes, i+1)
			}
		}
		sh.weight = root(len(sh.writes))
		total += sh.weight
		shares = append(shares, sh)
	}
	var cuts []power.Cut
	carry := 0.0
	for _, sh := range shares {
		exact := float64(n)*sh.weight/total + carry
		count := min(int(exact), 3*len(sh.writes))
		carry = exact - float64(count)
		step := float64(len(sh.writes)) / float64(max(count, 1))
		first := rng.Float64() * step
		for i := range count {
			at := min(int(first+float64(i)*step), len(sh.writes)-1)
			cuts = append(cuts, power.Cut{After: sh.writes[at], Mode: power.Mode((len(cuts) + 1) % 3), Seed: rng.Uint64() >> 32})
		}
	}
	return cuts
}

// root is the integer square root of n, at least 1.
func root(n int) float64 {
	r := 1
	for (r+1)*(r+1) <= n {
		r++
	}
	return float64(r)
}

// Outcome is what became of one cut.
type Outcome struct {
	Cut    power.Cut
	Stage  string
	Slot   string        // that runs
	Has    string        // settings
	Faults []string      // empty: all is well
	Starts int           // of a system, until one was ready
	Took   time.Duration // from power-on
	Log    string        // folder with what the guest said, if there are faults
}

func (o Outcome) String() string {
	text := fmt.Sprintf("cut %-24s %-24s slot %s, settings %s, %d starts, %.1f s", o.Cut, o.Stage, o.Slot, o.Has, o.Starts, o.Took.Seconds())
	if len(o.Faults) > 0 {
		text += "\n    FAULT: " + strings.Join(o.Faults, "\n    FAULT: ") + "\n    see " + o.Log
	}
	return text
}

// tries is how often the boot loader starts a slot on trial.
const tries = 3

// brickLine is what a system prints that will not come up by itself.
var brickLine = regexp.MustCompile(`^weft: rescue: |^weft: error: cannot boot|^grub rescue>|Entering rescue mode`)

// Judge boots the disk as a cut leaves it. An error is one of the judge, a fault of the system is in the outcome.
func (r *Recording) Judge(ctx context.Context, cut power.Cut) (_ Outcome, err error) {
	st, err := r.stageOf(cut)
	if err != nil {
		return Outcome{}, err
	}
	out := Outcome{Cut: cut, Stage: st.name}
	dir, err := os.MkdirTemp("", "weft-cut-")
	if err != nil {
		return out, err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "disk.img")
	disk, err := r.log.At(r.base, diskSize, cut)
	if err != nil {
		return out, err
	}
	if err := errors.Join(disk.Save(image), disk.Close()); err != nil {
		return out, err
	}
	name := "cut-" + strings.ReplaceAll(cut.String(), ":", "-")
	m, err := lab.New(ctx, machine(name, dir, lab.Disk{Image: image, InPlace: true}))
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	g := &guest{m, ctx}

	fault := func(format string, args ...any) { out.Faults = append(out.Faults, fmt.Sprintf(format, args...)) }
	began := time.Now()
	bound, cancel := g.bound(bootBound)
	defer cancel()
	if _, err := m.StartTo(bound, lab.StartLine); err != nil {
		if ctx.Err() != nil {
			return out, err
		}
		fault("the system does not start: %v", err)
	} else if line, which, err := m.Serial().WaitAny(bound, lab.ReadyLine, brickLine); err != nil {
		if ctx.Err() != nil {
			return out, err
		}
		fault("the system does not come up: %v", err)
	} else if which == 1 {
		fault("the system does not come up: %s", line.Text)
	}
	out.Took = time.Since(began)
	out.Starts = bytes.Count(m.Serial().Raw(), []byte("weft: starting on Linux "))
	if out.Starts > tries+1 {
		fault("started %d times, more than the %d tries and the system to fall back to", out.Starts, tries)
	}
	if len(out.Faults) == 0 {
		text, err := g.sh(question)
		if ctx.Err() != nil {
			return out, err
		}
		if err != nil {
			fault("%v", err)
		} else {
			a := understand(text)
			out.Slot, out.Has = a.slot, a.settings
			out.Faults = append(out.Faults, judge(st, a)...)
		}
	}
	if len(out.Faults) > 0 {
		if out.Log, err = lab.OutDir("power/" + name); err != nil {
			return out, err
		}
		m.Save(ctx, out.Log) // as much as can be had
	}
	return out, nil
}

// JudgeAll judges cuts, at most machines of them at a time, and hands each outcome to told as it comes. It goes on after
// faults; the error is the first one of the judge.
func (r *Recording) JudgeAll(ctx context.Context, cuts []power.Cut, machines int, told func(Outcome)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan power.Cut)
	var wait sync.WaitGroup
	var mu sync.Mutex
	for range machines {
		wait.Go(func() {
			for cut := range work {
				o, err := r.Judge(ctx, cut)
				if err != nil {
					cancel(fmt.Errorf("judge cut %s: %w", cut, err))
					return
				}
				mu.Lock()
				told(o)
				mu.Unlock()
			}
		})
	}
	for _, c := range cuts {
		select {
		case work <- c:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wait.Wait()
	return context.Cause(ctx)
}

// Summary counts outcomes.
type Summary struct {
	Cuts, Faults, Bricks, Lost int
	stages                     []string
	count                      map[string]int
	slots                      map[string]int
}

// Add counts one.
func (s *Summary) Add(o Outcome) {
	if s.count == nil {
		s.count, s.slots = map[string]int{}, map[string]int{}
	}
	s.Cuts++
	if s.count[o.Stage] == 0 {
		s.stages = append(s.stages, o.Stage)
	}
	s.count[o.Stage]++
	s.slots[o.Slot+" with "+o.Has]++
	switch {
	case len(o.Faults) == 0:
		return
	case o.Slot == "":
		s.Bricks++
	default:
		s.Lost++
	}
	s.Faults++
}

// String is the table of a run.
func (s Summary) String() string {
	var b strings.Builder
	for _, name := range s.stages {
		fmt.Fprintf(&b, "  %-26s %d\n", name, s.count[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.slots)) {
		fmt.Fprintf(&b, "  slot %-21s %d\n", name, s.slots[name])
	}
	fmt.Fprintf(&b, "%d cuts: %d did not come up, %d with lost settings or a wrong slot; ", s.Cuts, s.Bricks, s.Lost)
	return b.String()
}
