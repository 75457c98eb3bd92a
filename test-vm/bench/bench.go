// Package bench measures the transparent MPTCP proxy beside HAProxy and plain routing, in network namespaces of one
// machine: what `make bench-mptcp` prints. Each case builds beds (package bed), runs the same load (package load) on every
// system, interleaved where they compete for the processor, and shows medians beside what must be reached. It prints and
// never asserts. `make soak` (package soak) lets random flows meet random faults instead.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/test-vm/bench/bed"
	"weft/test-vm/bench/load"
)

// Options of a run.
type Options struct {
	Weft       string    // the gateway's program, bin/host/mptcpproxy
	Set        []string  // NAME=VALUE or NAME+=VALUE (lists), further options of mptcpproxy.main on both gateways
	Cases      []string  // empty = all
	Systems    []string  // empty = all
	Quick      bool      // shorter, fewer repetitions
	Serial     bool      // systems always in turn: nothing of the bench competes, and it takes longer
	Congestion string    // of all namespaces; empty = as a fresh namespace has it
	Seed       uint64    // of losses
	Progress   io.Writer // nil = silent
	Dir        string    // where logs and configurations go, empty = a temporary folder that is removed
}

// row is one line of the table.
type row struct {
	key, title string
	unit       string
	op         string // ">=" or "<="
	bound      float64
	ratio      bool // what counts is ours divided by HAProxy's
}

// benchCase is one way of loading a bed.
type benchCase struct {
	name, about string
	rows        []row
	bed         bed.Config
	parallel    bool     // the paths are the bottleneck, so systems may run at once
	reps        int      // with --quick one
	systems     []string // which can do it; nil = all
	config      []string // further options of Weft
	// run is one repetition on one system; its results go to t.add.
	run func(ctx context.Context, t *trial) error
}

// trial is one system in its bed during one case.
type trial struct {
	*bed.Bed
	o      *Options
	g      *gateways
	system string
	rep    int

	mu     sync.Mutex
	values map[string]map[string][]float64 // row, part, repetitions
	order  map[string][]string             // row, its parts as they came first
	notes  []string
	err    error
}

// add records a value of a part (for example "up") of a row.
func (t *trial) add(row, part string, v float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.values[row] == nil {
		t.values[row] = map[string][]float64{}
	}
	if !slices.Contains(t.order[row], part) {
		t.order[row] = append(t.order[row], part)
	}
	t.values[row][part] = append(t.values[row][part], v)
}

// note records a remark for the reader.
func (t *trial) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := fmt.Sprintf(format, args...); !slices.Contains(t.notes, s) {
		t.notes = append(t.notes, s)
	}
}

// long is a duration in a full run, and its short form in a quick one.
func (t *trial) long(full, quick time.Duration) time.Duration {
	if t.o.Quick {
		return quick
	}
	return full
}

// Part is one direction or probe of a row on one system.
type Part struct {
	Name   string    `json:"name"`
	Median float64   `json:"median"`
	Runs   []float64 `json:"runs"`
}

// Measured is what a system showed in a row.
type Measured struct {
	Value float64 `json:"value"` // the worst part
	Parts []Part  `json:"parts"`
}

// Row is a line of the result.
type Row struct {
	Case     string              `json:"case"`
	Key      string              `json:"row"`
	Title    string              `json:"title"`
	Unit     string              `json:"unit,omitempty"`
	Op       string              `json:"op"`
	Bound    float64             `json:"bound"`
	Ratio    bool                `json:"ratio,omitempty"` // Value is Weft's divided by HAProxy's
	Value    *float64            `json:"value,omitempty"` // what is compared with Bound; absent when Weft did not run
	OK       *bool               `json:"ok,omitempty"`
	Measured map[string]Measured `json:"measured"`
}

// Result of a case.
type Result struct {
	Case   string            `json:"case"`
	About  string            `json:"about"`
	Rows   []Row             `json:"rows"`
	Errors map[string]string `json:"errors,omitempty"` // by system
	Notes  []string          `json:"notes,omitempty"`
	Took   float64           `json:"seconds"`
}

// Run measures and hands each case's result to report as soon as it is there.
func (o Options) Run(ctx context.Context, report func(Result)) error {
	if err := bed.Usable(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	chosen, err := choose(o.Cases)
	if err != nil {
		return err
	}
	systems := o.Systems
	if len(systems) == 0 {
		systems = []string{Weft, HAProxy, Routed}
	}
	for _, s := range systems {
		if !slices.Contains([]string{Weft, HAProxy, Routed}, s) {
			return fmt.Errorf("no system %q: there are %s, %s and %s", s, Weft, HAProxy, Routed)
		}
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	var present []string
	for _, s := range systems {
		if why := o.missing(s); why != "" {
			fmt.Fprintf(o.Progress, "bench: without %s: %s\n", s, why)
			continue
		}
		present = append(present, s)
	}
	if len(present) == 0 {
		return errors.New("bench: none of the systems can be started here")
	}
	dir := o.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "weft-bench-"); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	if err := raiseFileLimit(); err != nil {
		return fmt.Errorf("bench: raise the limit of open files: %w", err)
	}
	for _, c := range chosen {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		report(o.runCase(ctx, c, present, filepath.Join(dir, c.name)))
	}
	return ctx.Err()
}

func choose(names []string) ([]benchCase, error) {
	all := cases()
	if len(names) == 0 {
		return all, nil
	}
	var chosen []benchCase
	for _, n := range names {
		i := slices.IndexFunc(all, func(c benchCase) bool { return c.name == n })
		if i < 0 {
			var known []string
			for _, c := range all {
				known = append(known, c.name)
			}
			return nil, fmt.Errorf("no case %q: there are %s", n, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (o *Options) runCase(ctx context.Context, c benchCase, systems []string, dir string) Result {
	start := time.Now()
	var trials []*trial
	for _, s := range systems {
		if c.systems == nil || slices.Contains(c.systems, s) {
			trials = append(trials, &trial{o: o, system: s, values: map[string]map[string][]float64{}, order: map[string][]string{}})
		}
	}
	each := func(parallel bool, f func(t *trial) error) {
		var wg sync.WaitGroup
		for _, t := range trials {
			one := func() {
				if t.err == nil {
					t.err = f(t)
				}
			}
			if parallel {
				wg.Go(one)
			} else {
				one()
			}
		}
		wg.Wait()
	}
	each(true, func(t *trial) error {
		config := c.bed
		config.Congestion, config.Seed = o.Congestion, o.Seed
		var err error
		if t.Bed, err = bed.New(ctx, config); err != nil {
			return err
		}
		own := filepath.Join(dir, t.system)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		t.g, err = o.start(ctx, t.system, t.Bed, own, c.config...)
		return err
	})
	reps := max(c.reps, 1)
	if o.Quick {
		reps = 1
	}
	for rep := range reps {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(o.Progress, "bench: %s %d/%d\n", c.name, rep+1, reps)
		each(c.parallel && !o.Serial, func(t *trial) error {
			t.rep = rep
			err := c.run(ctx, t)
			if died := t.g.alive(); died != nil {
				err = errors.Join(err, died)
			}
			return err
		})
	}
	for _, t := range trials {
		var err error
		if t.g != nil {
			err = t.g.stop()
		}
		if t.Bed != nil {
			err = errors.Join(err, t.Bed.Close())
		}
		if err != nil {
			t.err = errors.Join(t.err, err)
		}
	}
	r := fold(c, trials)
	r.Took = time.Since(start).Seconds()
	return r
}

// fold makes medians and verdicts of what the trials have recorded.
func fold(c benchCase, trials []*trial) Result {
	r := Result{Case: c.name, About: c.about}
	for _, t := range trials {
		if t.err != nil {
			if r.Errors == nil {
				r.Errors = map[string]string{}
			}
			r.Errors[t.system] = strings.ReplaceAll(t.err.Error(), "\n", "; ")
		}
		for _, n := range t.notes {
			r.Notes = append(r.Notes, t.system+": "+n)
		}
	}
	for _, w := range c.rows {
		out := Row{Case: c.name, Key: w.key, Title: w.title, Unit: w.unit, Op: w.op, Bound: w.bound, Ratio: w.ratio, Measured: map[string]Measured{}}
		for _, t := range trials {
			var m Measured
			for _, name := range t.order[w.key] {
				runs := t.values[w.key][name]
				m.Parts = append(m.Parts, Part{name, load.Median(runs), runs})
			}
			if len(m.Parts) == 0 {
				continue
			}
			m.Value = m.Parts[0].Median
			for _, p := range m.Parts[1:] {
				m.Value = w.worse(m.Value, p.Median)
			}
			out.Measured[t.system] = m
		}
		out.Value = w.verdict(out.Measured)
		if out.Value != nil {
			ok := w.holds(*out.Value)
			out.OK = &ok
		}
		r.Rows = append(r.Rows, out)
	}
	return r
}

func (w row) worse(a, b float64) float64 {
	if w.op == "<=" {
		return max(a, b)
	}
	return min(a, b)
}

func (w row) holds(v float64) bool {
	if w.op == "<=" {
		return v <= w.bound
	}
	return v >= w.bound
}

// verdict is the value to be compared with the bound: Weft's, or the worst of the parts' ratios to HAProxy's.
func (w row) verdict(measured map[string]Measured) *float64 {
	ours, ok := measured[Weft]
	if !ok {
		return nil
	}
	if !w.ratio {
		return &ours.Value
	}
	var worst *float64
	for _, p := range ours.Parts {
		for _, q := range measured[HAProxy].Parts {
			if q.Name != p.Name || q.Median == 0 {
				continue
			}
			v := p.Median / q.Median
			if worst != nil {
				v = w.worse(*worst, v)
			}
			worst = &v
		}
	}
	return worst
}
