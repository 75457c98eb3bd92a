// Package run puts a topology into operation, makes its checks while its events happen, and reports.
package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/test-vm/bed"
	"weft/test-vm/lab"
	"weft/test-vm/report"
	"weft/test-vm/topology"
	"weft/test-vm/watch"
)

// Options say how to run.
type Options struct {
	bed.Options
	// Only names the checks to make; empty = all. Checks during others come with those.
	Only []string
	// Hold, if not nil, is called when the network is up, before the checks if Only is empty and NoChecks is set, else after them.
	Hold     func(ctx context.Context, b *bed.Bed) error
	NoChecks bool
	// EvidenceDir gets what the nodes have to say when a check fails; empty = nothing.
	EvidenceDir string
}

// Topology runs t. The report is there even with an error, unless nothing could be made at all; a check that does not
// hold is no error.
func Topology(ctx context.Context, t *topology.Topology, o Options) (_ *report.Report, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	graph := topology.SVG(t)
	t = t.Air()
	r := &runner{t: t, o: o, rep: &report.Report{Topology: t.Name, Title: t.Title, Backend: string(o.Backend), Started: time.Now(), BinMS: int(watch.Bin / time.Millisecond), Graph: graph}}
	began := time.Now()
	defer func() {
		r.rep.Seconds = time.Since(began).Seconds()
		if err != nil {
			r.rep.Error = err.Error()
		}
		r.rep.OK = err == nil && !slices.ContainsFunc(r.rep.Checks, func(c report.Check) bool { return !c.OK && c.Skipped == "" })
	}()
	r.bed, err = bed.New(ctx, t, o.Options)
	if err != nil {
		return r.rep, err
	}
	r.rep.Started = r.bed.Start
	defer func() {
		r.series()
		err = errors.Join(err, r.bed.Close())
	}()
	if !o.NoChecks {
		r.checks(ctx)
		failed := slices.ContainsFunc(r.rep.Checks, func(c report.Check) bool { return !c.OK && c.Skipped == "" })
		if failed && o.EvidenceDir != "" && ctx.Err() == nil {
			if err := r.bed.Evidence(ctx, o.EvidenceDir); err != nil {
				o.Progress("evidence: %v", err)
			}
			o.Progress("logs are in %s", o.EvidenceDir)
		}
	}
	if o.Hold != nil && ctx.Err() == nil {
		if err := o.Hold(ctx, r.bed); err != nil {
			return r.rep, err
		}
	}
	if err := ctx.Err(); err != nil && o.Hold == nil {
		return r.rep, context.Cause(ctx)
	}
	return r.rep, nil
}

type runner struct {
	t   *topology.Topology
	o   Options
	bed *bed.Bed
	rep *report.Report

	mu sync.Mutex // guards rep
}

func (r *runner) since(t time.Time) float64 { return t.Sub(r.bed.Start).Seconds() }

// checks makes all checks in the order of the file; those during others beside these. What is judged over the whole run
// comes last.
func (r *runner) checks(ctx context.Context) {
	results := map[*topology.Check]*report.Check{}
	atEnd := func(c *topology.Check) bool { return c.Type == topology.NoMPTCP }
	for _, last := range []bool{false, true} {
		for _, c := range r.t.Checks {
			if c.During != "" || atEnd(c) != last || len(r.o.Only) > 0 && !slices.Contains(r.o.Only, c.Name) {
				continue
			}
			if ctx.Err() != nil {
				break
			}
			var wait sync.WaitGroup
			begun := make(chan struct{})
			var once sync.Once
			start := func() { once.Do(func() { close(begun) }) }
			sideCtx, cancel := context.WithCancel(ctx)
			for _, d := range r.t.Checks {
				if d.During == c.Name {
					results[d] = &report.Check{}
					wait.Go(func() {
						if !sleep(sideCtx, begun, d.At) {
							results[d] = &report.Check{Name: d.Name, Type: string(d.Type), Error: "check " + c.Name + " ended before it began"}
							return
						}
						*results[d] = r.check(ctx, d, func() {})
					})
				}
			}
			done := make(chan struct{}) // the last event has happened
			go func() { defer close(done); r.events(sideCtx, c, begun) }()
			res := r.check(ctx, c, start)
			results[c] = &res
			cancel()
			<-done
			wait.Wait()
		}
	}
	for _, c := range r.t.Checks {
		if results[c] != nil {
			r.rep.Checks = append(r.rep.Checks, *results[c])
		}
	}
}

// sleep waits until begun and then for d; false if ctx ended first.
func sleep(ctx context.Context, begun <-chan struct{}, d time.Duration) bool {
	select {
	case <-begun:
	case <-ctx.Done():
		return false
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// events lets the events of a check happen, counted from the moment its traffic began.
func (r *runner) events(ctx context.Context, c *topology.Check, begun <-chan struct{}) {
	var list []*topology.Event
	for _, e := range r.t.Events {
		if e.During == c.Name {
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list, func(a, b *topology.Event) int { return int(a.At - b.At) })
	var wait sync.WaitGroup
	var passed time.Duration
	start := begun
	for _, e := range list {
		if !sleep(ctx, start, e.At-passed) {
			break
		}
		passed = e.At
		at := time.Now()
		r.o.Progress("%s", e.What())
		r.mu.Lock()
		r.rep.Events = append(r.rep.Events, report.Event{At: r.since(at), What: e.What()})
		r.mu.Unlock()
		wait.Go(func() { // a node takes its time to come back; the timeline goes on
			if err := r.bed.Do(context.WithoutCancel(ctx), e); err != nil {
				r.o.Progress("%v", err)
				r.mu.Lock()
				r.rep.Events = append(r.rep.Events, report.Event{At: r.since(time.Now()), What: err.Error()})
				r.mu.Unlock()
			}
		})
	}
	wait.Wait()
}

// lastEnd is when the last event that ends a fault of a check happened, zero if there was none.
func (r *runner) lastEnd(c *topology.Check) time.Time {
	ends := map[string]bool{}
	for _, e := range r.t.Events {
		if e.During == c.Name && slices.Contains([]topology.Action{topology.Up, topology.Pass, topology.Restore, topology.Unstrip, topology.Restart}, e.Do) {
			ends[e.What()] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.rep.Events) - 1; i >= 0; i-- {
		if ends[r.rep.Events[i].What] {
			return r.bed.Start.Add(time.Duration(r.rep.Events[i].At * float64(time.Second)))
		}
	}
	return time.Time{}
}

// checkBound is how long a check may take beyond its traffic.
const checkBound = 2 * time.Minute

func (r *runner) check(ctx context.Context, c *topology.Check, begun func()) report.Check {
	res := &result{Check: report.Check{Name: c.Name, Type: string(c.Type), OK: true, Values: []report.Value{}}, r: r, c: c, begun: begun}
	defer begun() // whatever happens, what waits for it goes on
	if !c.On(r.o.Backend) {
		res.Skipped = "not on " + string(r.o.Backend)
		return res.Check
	}
	r.o.Progress("check %s (%s)", c.Name, c.Type)
	start := time.Now()
	res.Start = r.since(start)
	ctx, cancel := context.WithTimeout(ctx, c.Duration+lab.Timeout(checkBound))
	defer cancel()
	if err := res.make(ctx); err != nil {
		var skip skipped
		if errors.As(err, &skip) {
			res.Skipped = string(skip)
		} else {
			res.OK, res.Error = false, err.Error()
		}
	}
	if res.End == 0 {
		res.End = r.since(time.Now())
	}
	for _, v := range res.Values {
		res.OK = res.OK && v.OK
	}
	verdict := "ok"
	switch {
	case res.Skipped != "":
		verdict = "skipped: " + res.Skipped
	case !res.OK:
		verdict = "FAILED"
	}
	var values string
	for _, v := range res.Values {
		values += " " + v.String() + ";"
	}
	r.o.Progress("check %s: %s;%s %s", c.Name, verdict, values, res.Error)
	return res.Check
}

// skipped is why a check cannot be made here; that is no failure.
type skipped string

func (s skipped) Error() string { return string(s) }

func (r *runner) series() {
	for _, l := range r.t.Links {
		a, b := l.Ends[0], l.Ends[1]
		r.rep.Links = append(r.rep.Links, report.Link{
			Name: l.Name, A: a.Node.Name, B: b.Node.Name, Rate: float64(l.Rate), Bytes: r.bed.Watch(l.Name).Series(),
		})
	}
}

// errNode wraps what a command on a node said.
func errNode(node string, res lab.Result) error {
	return fmt.Errorf("%s: exit status %d: %s", node, res.Code, tail(res.Output))
}
