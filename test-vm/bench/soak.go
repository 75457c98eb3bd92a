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
)

// SoakOptions of a soak.
type SoakOptions struct {
	Options
	System string        // Weft, HAProxy, or Routed, which meets no faults
	During time.Duration // of the flows' beginnings; those that have begun are waited for
	Kills  bool          // gateways are killed too
	// Grace is how long after the last flow the gateways have to give back what they hold; 0 = 15 s.
	Grace time.Duration
}

// SoakReport is what a soak has found. Failures makes it fail.
type SoakReport struct {
	Seed       uint64              `json:"seed"`
	Seconds    float64             `json:"seconds"`
	Flows      int                 `json:"flows"`
	Kinds      map[string]int      `json:"kinds"`
	Bytes      int64               `json:"bytes"` // of completed TCP flows, both directions, all compared
	Datagrams  int64               `json:"datagrams"`
	Echoed     int64               `json:"echoed"`  // datagrams that came back unchanged
	Excused    int                 `json:"excused"` // flows that ended early while a killed gateway was away
	Faults     map[string]int      `json:"faults"`
	Before     map[string]Holdings `json:"before"` // by gateway, after its last start
	After      map[string]Holdings `json:"after"`
	MostMemory map[string]int64    `json:"most_memory"` // bytes, sampled each second
	Failures   []string            `json:"failures,omitempty"`
}

// Holdings is what a gateway holds.
type Holdings struct {
	Memory      int64 `json:"memory"`      // resident, bytes
	Descriptors int   `json:"descriptors"` // open files
	Connections int   `json:"connections"` // MPTCP sockets in the gateway's namespace
	Subflows    int   `json:"subflows"`    // TCP sockets there, established or with one half closed by the peer
	Endpoints   int   `json:"endpoints"`   // of the MPTCP path manager
	Elements    int   `json:"elements"`    // in sets of nftables
}

func (h Holdings) String() string {
	return fmt.Sprintf("%.1f MB, %d descriptors, %d MPTCP connections, %d TCP sockets, %d endpoints, %d set elements",
		float64(h.Memory)/1e6, h.Descriptors, h.Connections, h.Subflows, h.Endpoints, h.Elements)
}

// holdings takes stock of a gateway.
func holdings(ctx context.Context, n *bed.Node, p *process) (h Holdings, err error) {
	if h.Memory, err = p.memory(); err != nil {
		return h, err
	}
	if h.Descriptors, err = p.descriptors(); err != nil {
		return h, err
	}
	for _, q := range []struct {
		to   *int
		args []string
	}{
		{&h.Connections, []string{"ss", "-HMna", "state", "connected"}},
		{&h.Subflows, []string{"ss", "-Htna", "state", "established", "state", "close-wait"}},
		{&h.Endpoints, []string{"ip", "mptcp", "endpoint", "show"}},
	} {
		out, err := n.Output(ctx, q.args[0], q.args[1:]...)
		if err != nil {
			return h, err
		}
		*q.to = strings.Count(out, "\n")
	}
	rules, err := n.Output(ctx, "nft", "list", "ruleset")
	if err != nil {
		return h, err
	}
	h.Elements = setElements(rules)
	return h, nil
}

// setElements counts the elements of all sets in what `nft list ruleset` prints.
func setElements(rules string) int {
	n := 0
	for {
		_, rest, ok := strings.Cut(rules, "elements = {")
		if !ok {
			return n
		}
		list, rest, _ := strings.Cut(rest, "}")
		if strings.TrimSpace(list) != "" {
			n += strings.Count(list, ",") + 1
		}
		rules = rest
	}
}

// soaker is a running soak.
type soaker struct {
	o    SoakOptions
	b    *bed.Bed
	g    *gateways
	dir  string
	sink *soakSink

	start time.Time
	out   sync.Mutex // of Progress
	mu    sync.Mutex // of the rest
	r     SoakReport
	away  [][2]time.Time // when a killed gateway was not there
}

// Soak lets random flows meet random faults and compares every byte; the same seed repeats flows and faults.
func Soak(ctx context.Context, o SoakOptions) (SoakReport, error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Grace == 0 {
		o.Grace = 15 * time.Second
	}
	s := &soaker{o: o}
	if why := o.missing(o.System); why != "" {
		return s.r, errors.New("soak: " + why)
	}
	if err := raiseFileLimit(); err != nil {
		return s.r, fmt.Errorf("soak: raise the limit of open files: %w", err)
	}
	s.dir = o.Dir
	if s.dir == "" {
		var err error
		if s.dir, err = os.MkdirTemp("", "weft-soak-"); err != nil {
			return s.r, fmt.Errorf("soak: %w", err)
		}
		defer func() {
			if len(s.r.Failures) == 0 {
				os.RemoveAll(s.dir)
			} else {
				s.log("logs of the gateways are in %s", s.dir)
			}
		}()
	} else if err := os.MkdirAll(filepath.Join(s.dir), 0o755); err != nil {
		return s.r, fmt.Errorf("soak: %w", err)
	}
	var err error
	if s.b, err = bed.New(ctx, bed.Config{Paths: tenTen, Faults: true, Congestion: o.Congestion, Seed: o.Seed}); err != nil {
		return s.r, fmt.Errorf("soak: %w", err)
	}
	// What UDP flows hold must be given back before the end, too.
	if s.g, err = o.start(ctx, o.System, s.b, s.dir, "udp_timeout=5"); err == nil {
		err = s.run(ctx)
		err = errors.Join(err, s.g.stop())
	}
	if err = errors.Join(err, s.b.Close()); err != nil {
		err = fmt.Errorf("soak: %w", err)
	}
	return s.r, err
}

func (s *soaker) log(format string, args ...any) {
	s.out.Lock()
	defer s.out.Unlock()
	fmt.Fprintf(s.o.Progress, "soak: "+format+"\n", args...)
}

func (s *soaker) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	s.r.Failures = append(s.r.Failures, text)
	s.log("FAILED at %.1f s: %s", time.Since(s.start).Seconds(), text)
}

func (s *soaker) run(ctx context.Context) error {
	weft := s.o.System == Weft
	flows, faults := soakPlan(s.o.Seed, s.o.During, weft, weft && s.o.Kills)
	s.r = SoakReport{Seed: s.o.Seed, Flows: len(flows), Kinds: map[string]int{}, Faults: map[string]int{}, Before: map[string]Holdings{},
		After: map[string]Holdings{}, MostMemory: map[string]int64{}}
	sinkCtx, stopSink := context.WithCancel(ctx)
	var err error
	if s.sink, err = startSoakSink(sinkCtx, s.b.Sink, flows); err != nil {
		stopSink()
		return err
	}
	defer s.sink.close()
	defer stopSink()
	s.start = time.Now()
	both := []bool{true, false}
	if s.g.near.Load() == nil { // routed: every fault of the first path would be one of the network
		both, faults = nil, nil
	}
	for _, near := range both {
		if err := s.takeBefore(ctx, near); err != nil {
			return err
		}
	}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	var sampler, faultier, clients sync.WaitGroup
	sampler.Go(func() { s.sample(loadCtx, both) })
	faultier.Go(func() {
		for _, f := range faults {
			if pause(loadCtx, time.Until(s.start.Add(f.at))) != nil {
				return
			}
			if err := s.fault(ctx, f); err != nil {
				s.fail("make the fault %v: %v", f, err)
			}
		}
	})
	for _, f := range flows {
		if err := pause(ctx, time.Until(s.start.Add(f.at))); err != nil {
			break
		}
		clients.Go(func() { s.flow(ctx, f) })
	}
	faultier.Wait()
	clients.Wait()
	stopLoad()
	sampler.Wait()
	for _, x := range s.sink.bad {
		if s.excused(x.at, x.at, x.err) {
			s.r.Excused++
			s.log("excused: %v", x.err)
		} else {
			s.fail("%v", x.err)
		}
	}
	if err := s.g.alive(); err != nil {
		s.fail("%v", err)
	} else if err := s.leaks(ctx, both); err != nil {
		return err
	}
	s.r.Seconds = time.Since(s.start).Seconds()
	return ctx.Err()
}

// flow runs one flow of the plan and judges it.
func (s *soaker) flow(ctx context.Context, f flowPlan) {
	start := time.Now()
	n, err := clientFlow(ctx, s.b.Client, s.sink, f)
	end := time.Now()
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	s.r.Kinds[f.kind.String()]++
	if f.kind == datagrams {
		s.r.Datagrams += f.up
		s.r.Echoed += n
	} else if err == nil {
		s.r.Bytes += n
	}
	excused := s.excused(start, end, err)
	if excused {
		s.r.Excused++
	}
	s.mu.Unlock()
	if excused {
		s.log("excused: %v, after %.1f s: %s", f, end.Sub(start).Seconds(), strings.ReplaceAll(err.Error(), "\n", "; "))
	} else if err != nil {
		s.fail("%v, after %.1f s: %v", f, end.Sub(start).Seconds(), err)
	}
}

// excused tells whether an error between two moments is that of a gateway which had been killed: bytes that were changed
// never are. The caller holds mu, if others still run.
func (s *soaker) excused(start, end time.Time, err error) bool {
	return err != nil && !errors.Is(err, errChanged) && slices.ContainsFunc(s.away, func(w [2]time.Time) bool {
		return start.Before(w[1]) && w[0].Before(end)
	})
}

// fault makes one fault and takes it back.
func (s *soaker) fault(ctx context.Context, f faultPlan) error {
	s.log("%v", f)
	s.mu.Lock()
	s.r.Faults[f.kind.String()]++
	s.mu.Unlock()
	var begin, end func() error
	switch f.kind {
	case cutPath:
		begin = func() error { return s.b.Cut(ctx, f.path, true) }
		end = func() error { return s.b.Cut(context.WithoutCancel(ctx), f.path, false) }
	case blackPath:
		begin = func() error { return s.b.Black(f.path, bed.Direction(f.direction), true) }
		end = func() error { return s.b.Black(f.path, bed.Both, false) }
	case degradePath:
		begin = func() error { return s.b.Quality(f.path, bed.Path{Loss: f.loss, Delay: f.delay}) }
		end = func() error { return s.b.Quality(f.path, s.b.Paths[f.path]) }
	case newAddress:
		begin = func() error { return s.readdress(ctx, "10.2.0.1", "10.2.0.11") }
		end = func() error { return s.readdress(context.WithoutCancel(ctx), "10.2.0.11", "10.2.0.1") }
	case killNear, killFar:
		return s.kill(ctx, f.kind == killNear)
	}
	if err := begin(); err != nil {
		return errors.Join(err, end())
	}
	return errors.Join(pause(ctx, f.during), end())
}

// readdress changes the near gateway's address on the second path, as a DHCP server may.
func (s *soaker) readdress(ctx context.Context, from, to string) error {
	return s.b.Near.Input(ctx, fmt.Sprintf("addr del %s/24 dev p2\naddr add %s/24 dev p2\n", from, to), "ip", "-batch", "-")
}

// kill kills a gateway without warning and starts it again.
func (s *soaker) kill(ctx context.Context, near bool) error {
	from := time.Now()
	s.mu.Lock()
	s.away = append(s.away, [2]time.Time{from, from.Add(time.Hour)})
	window := &s.away[len(s.away)-1]
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		window[1] = time.Now().Add(time.Second)
	}()
	before, err := joins(s.b)
	if err != nil {
		return err
	}
	_, p := s.gateway(near)
	if err := p.kill(); err != nil {
		return err
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	if err := s.g.fresh(near); err != nil {
		return err
	}
	if err := ready(ctx, s.b, s.g, before); err != nil {
		return err
	}
	return s.takeBefore(ctx, near)
}

// gateway returns the node and the process of a gateway.
func (s *soaker) gateway(near bool) (*bed.Node, *process) {
	if near {
		return s.b.Near, s.g.near.Load()
	}
	return s.b.Far, s.g.far.Load()
}

// takeBefore notes what a gateway that has just started holds.
func (s *soaker) takeBefore(ctx context.Context, near bool) error {
	n, p := s.gateway(near)
	h, err := holdings(ctx, n, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.Before[n.Name] = h
	return err
}

// sample notes the most memory that the gateways hold.
func (s *soaker) sample(ctx context.Context, both []bool) {
	for pause(ctx, time.Second) == nil {
		for _, near := range both {
			n, p := s.gateway(near)
			if m, err := p.memory(); err == nil { // it may have been killed a moment ago
				s.mu.Lock()
				s.r.MostMemory[n.Name] = max(s.r.MostMemory[n.Name], m)
				s.mu.Unlock()
			}
		}
	}
}

// Bounds of what may be left when all flows have ended: pools of connections and caches are no leak.
const (
	sparePools    = 80       // connections (the pool keeps up to 64), and twice as many descriptors and TCP sockets
	spareMemory   = 48 << 20 // bytes: buffers that the loops keep, the garbage collector's slack
	spareElements = 16       // destinations that are still remembered
)

// leaks compares what the gateways hold with what they held when they had started. It gives them time to let go.
func (s *soaker) leaks(ctx context.Context, both []bool) error {
	deadline := time.Now().Add(s.o.Grace)
	for {
		var bad []string
		for _, near := range both {
			n, p := s.gateway(near)
			h, err := holdings(ctx, n, p)
			if err != nil {
				return err
			}
			was := s.r.Before[n.Name]
			s.r.After[n.Name] = h
			for _, x := range []struct {
				what            string
				before, now, by int64
			}{
				{"bytes of memory", was.Memory, h.Memory, spareMemory},
				{"descriptors", int64(was.Descriptors), int64(h.Descriptors), 2 * sparePools},
				{"MPTCP connections", int64(was.Connections), int64(h.Connections), sparePools},
				{"TCP sockets", int64(was.Subflows), int64(h.Subflows), 2 * sparePools},
				{"endpoints", int64(was.Endpoints), int64(h.Endpoints), 0},
				{"elements of nft sets", int64(was.Elements), int64(h.Elements), spareElements},
			} {
				if x.now > x.before+x.by {
					bad = append(bad, fmt.Sprintf("%s has leaked: %d %s after the last flow, %d before the first", n.Name, x.now, x.what, x.before))
				}
			}
		}
		if len(bad) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			for _, b := range bad {
				s.fail("%s", b)
			}
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// Text is the report for people.
func (r SoakReport) Text() string {
	var w strings.Builder
	fmt.Fprintf(&w, "seed %d, %.0f s: %d flows (%s), %.1f MB compared, %d of %d datagrams echoed\n", r.Seed, r.Seconds, r.Flows, counts(r.Kinds),
		float64(r.Bytes)/1e6, r.Echoed, r.Datagrams)
	fmt.Fprintf(&w, "faults: %s; %d flows ended early because a gateway was killed\n", counts(r.Faults), r.Excused)
	for _, n := range []string{"near", "far"} {
		fmt.Fprintf(&w, "%s before: %v\n%s after:  %v; most %.1f MB\n", n, r.Before[n], n, r.After[n], float64(r.MostMemory[n])/1e6)
	}
	if len(r.Failures) == 0 {
		w.WriteString("ok: no byte lost or changed, no leak\n")
	} else {
		fmt.Fprintf(&w, "%d FAILURES, repeat with --seed %d:\n", len(r.Failures), r.Seed)
		for i, f := range r.Failures {
			if i == 20 {
				fmt.Fprintf(&w, "  and %d more\n", len(r.Failures)-i)
				break
			}
			fmt.Fprintf(&w, "  %s\n", f)
		}
	}
	return w.String()
}

func counts(m map[string]int) string {
	var parts []string
	for k, v := range m {
		parts = append(parts, fmt.Sprintf("%d %s", v, k))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
