package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/test-vm/bench/bed"
	"weft/test-vm/bench/limit"
	"weft/test-vm/bench/load"
)

// Ports of the loads at the sink; those of probes are 4100 and up.
const (
	bulkPort  = 5000 // and up, another for each transfer
	echoPort  = 6000
	iperfPort = 5201
	udpPort   = 7000
)

var bothWays = []bed.Direction{bed.Up, bed.Down}

// tenTen is the seed's topology: two paths of 10 Mbit/s.
var tenTen = []bed.Path{{Rate: 10}, {Rate: 10}}

func sinkAt(port uint16) netip.AddrPort { return netip.AddrPortFrom(bed.Sink4, port) }

func cases() []benchCase {
	share := func(what string, bound float64) []row {
		return []row{{"goodput", what + ": goodput / limit", "", ">=", bound, false}}
	}
	return []benchCase{
		{name: "2x10", about: "two paths of 10 Mbit/s, iperf3, each direction", rows: share("2 x 10 Mbit/s", 0.99),
			bed: bed.Config{Paths: tenTen}, parallel: true, run: goodput},
		{name: "delay", about: "10+10 Mbit/s with 5 and 50 ms one way", rows: share("10+10, 5 and 50 ms", 0.95),
			bed: bed.Config{Paths: []bed.Path{{Rate: 10, Delay: 5 * time.Millisecond}, {Rate: 10, Delay: 50 * time.Millisecond}}}, parallel: true, run: goodput},
		{name: "loss", about: "10+10 Mbit/s, 1 % of the packets of the second path lost each way", rows: share("10+10, 1 % loss on one", 0.95),
			bed: bed.Config{Paths: []bed.Path{{Rate: 10}, {Rate: 10, Loss: 0.01}}}, parallel: true, run: goodput},
		{name: "unequal", about: "20+5 Mbit/s", rows: share("20+5 Mbit/s", 0.95),
			bed: bed.Config{Paths: []bed.Path{{Rate: 20}, {Rate: 5}}}, parallel: true, run: goodput},
		{name: "cut", about: "the link of a path goes down under a bulk transfer for 3 s, and comes back", rows: []row{
			{"stall", "path cut: longest stall", "ms", "<=", 200, false},
			{"back", "path back: until 0.95 of the limit", "s", "<=", 2, false}},
			bed: bed.Config{Paths: tenTen, Faults: true}, parallel: true, run: func(ctx context.Context, t *trial) error { return faults(ctx, t, true) }},
		{name: "black", about: "a path swallows all packets under a bulk transfer for 3 s, and comes back", rows: []row{
			{"stall", "path black: longest stall", "ms", "<=", 300, false},
			{"back", "path back: until 0.95 of the limit", "s", "<=", 2, false}},
			bed: bed.Config{Paths: tenTen, Faults: true}, parallel: true, run: func(ctx context.Context, t *trial) error { return faults(ctx, t, false) }},
		{name: "pingpong", about: "64 bytes there and back while a bulk transfer fills both paths of 10 Mbit/s", rows: []row{
			{"p50", "ping-pong beside bulk: p50", "ms", "<=", 15, false}},
			bed: bed.Config{Paths: tenTen}, parallel: true, run: pingPong},
		{name: "first-idle", about: "first answer of a new flow, idle, 40 ms round trip", rows: []row{
			{"rtt", "first answer, idle, 40 ms: / RTT", "RTT", "<=", 1.15, false}},
			bed:      bed.Config{Paths: []bed.Path{{Rate: 100, Delay: 20 * time.Millisecond}, {Rate: 100, Delay: 20 * time.Millisecond}}},
			parallel: true, run: firstIdle},
		{name: "first-load", about: "first answer of a new flow while a bulk transfer fills both paths of 10 Mbit/s", rows: []row{
			{"load", "first answer under full load", "ms", "<=", 40, false}},
			bed: bed.Config{Paths: tenTen}, parallel: true, run: firstLoad},
		{name: "unshaped", about: "one flow over unshaped veth, iperf3, each direction", rows: []row{
			{"rate", "unshaped, one flow: / HAProxy", "Gbit/s", ">=", 2.5, true}},
			bed: bed.Config{Paths: make([]bed.Path, 2)}, reps: 3, run: unshaped},
		{name: "cpu", about: "processor time of both gateways for one flow paced at 1 Gbit/s", rows: []row{
			{"cpu", "CPU per Gbit at 1 Gbit/s: / HAProxy", "ms", "<=", 1, true}},
			bed: bed.Config{Paths: make([]bed.Path, 2)}, reps: 3, systems: []string{Weft, HAProxy}, run: cpuPerGbit},
		{name: "churn", about: "connect, one byte each way, reset; 32 at once", rows: []row{
			{"rate", "connect, answer, reset: / HAProxy", "1/s", ">=", 1, true}},
			bed: bed.Config{Paths: make([]bed.Path, 2)}, reps: 3, run: churn},
		{name: "closes", about: "connect, one byte each way, normal close; 32 at once for 60 s (10 s with --quick)", rows: []row{
			{"failed", "the same, normal closes: failures", "", "<=", 0, false}},
			bed: bed.Config{Paths: make([]bed.Path, 2)}, run: closes},
		{name: "faithful", about: "what hosts could notice of the gateways", rows: []row{
			{"all", "faithful: all probes true", "", ">=", 1, false}},
			bed: bed.Config{Paths: tenTen}, parallel: true, run: runProbes},
		{name: "udp", about: "UDP, 14.4 Mbit/s each way in packets of 1200 bytes over two paths of 10 Mbit/s", rows: []row{
			{"delivered", "UDP 14.4 each way: delivered", "", ">=", 0.99, false},
			{"p99", "UDP 14.4 each way: p99 added delay", "ms", "<=", 10, false}},
			bed: bed.Config{Paths: tenTen}, parallel: true, systems: []string{Weft, Routed}, run: udp},
		{name: "raw", about: "IP protocol 253, 14.4 Mbit/s each way in packets of 1200 bytes over two paths of 10 Mbit/s", rows: []row{
			{"delivered", "protocol 253, 14.4: delivered", "", ">=", 0.95, false}},
			bed: bed.Config{Paths: tenTen}, parallel: true, systems: []string{Weft, Routed}, config: []string{"protocol+=253"}, run: raw},
		{name: "idle", about: "20,000 flows that rest after one round trip", rows: []row{
			{"memory", "20,000 idle flows: one gateway", "MB", "<=", 160, false},
			{"lost", "20,000 idle flows: refused or dead", "", "<=", 0, false}},
			bed: bed.Config{Paths: make([]bed.Path, 2)}, systems: []string{Weft, HAProxy}, run: idle},
	}
}

// iperf runs iperf3 from client to sink and returns Mbit/s of payload as the receiver counted.
func iperf(ctx context.Context, t *trial, d bed.Direction, during time.Duration, extra ...string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, during+20*time.Second)
	defer cancel()
	server := t.Sink.Command(ctx, "iperf3", "-s", "-1", "-p", strconv.Itoa(iperfPort))
	if err := t.Sink.Start(server); err != nil {
		return 0, fmt.Errorf("start iperf3: %w", err)
	}
	wait := func() error {
		if server.Process != nil {
			server.Process.Kill()
		}
		return server.Wait()
	}
	if err := listening(ctx, t.Sink, iperfPort); err != nil {
		return 0, errors.Join(err, wait())
	}
	args := []string{"-c", bed.Sink4.String(), "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(int(during.Seconds())), "-J"}
	if d == bed.Down {
		args = append(args, "-R")
	}
	out, err := t.Client.Output(ctx, "iperf3", append(args, extra...)...)
	wait() // it has served its one test; an error would only be that of being killed
	var r struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if jerr := json.Unmarshal([]byte(out), &r); jerr == nil && r.Error != "" {
		return 0, fmt.Errorf("iperf3 %v: %s", d, r.Error)
	} else if err == nil && jerr != nil {
		err = fmt.Errorf("read the report of iperf3: %w", jerr)
	}
	return r.End.Received.Rate / 1e6, err
}

// listening waits until a TCP port of a node has a listener.
func listening(ctx context.Context, n *bed.Node, port int) error {
	want := fmt.Sprintf(":%04X ", port)
	for {
		for _, f := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			text, err := n.ReadFile(f)
			if err != nil {
				return err
			}
			for line := range strings.Lines(text) {
				if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1]+" ", want) && f[3] == "0A" {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody listens on port %d of %s: %w", port, n.Name, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// raiseFileLimit allows this process and its children as many open files as the machine lets them have.
func raiseFileLimit() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

// fileLimit is how many files a process may have open.
func fileLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// goodput is a whole iperf3 run from its first byte; with --quick a short one without the first second.
func goodput(ctx context.Context, t *trial) error {
	best := limit.Tunnel.Goodput(t.Rates()...)
	for _, d := range bothWays {
		var extra []string
		during := 15 * time.Second
		if t.o.Quick {
			during, extra = 6*time.Second, []string{"-O", "1"}
		}
		rate, err := iperf(ctx, t, d, during, extra...)
		if err != nil {
			return err
		}
		t.add("goodput", d.String(), rate/best)
	}
	return nil
}

// faults lets one path fail for three seconds: the stall is seen by the receiver, and after the path has returned the
// time until the goodput is there again on the same connection.
func faults(ctx context.Context, t *trial, cut bool) error {
	kinds := []struct {
		path int
		dir  bed.Direction
	}{{0, bed.Up}, {1, bed.Down}, {1, bed.Up}, {0, bed.Down}}
	if t.o.Quick {
		kinds = kinds[:2]
	}
	want := 0.95 * limit.Tunnel.Goodput(t.Rates()...)
	for i, k := range kinds {
		port := uint16(bulkPort + 10*t.rep + i)
		if err := fault(ctx, t, cut, k.path, k.dir, port, want); err != nil {
			return err
		}
	}
	return nil
}

func fault(ctx context.Context, t *trial, cut bool, path int, d bed.Direction, port uint16, want float64) error {
	set := func(bad bool) error {
		if cut {
			return t.Cut(ctx, path, bad)
		}
		return t.Black(path, bed.Both, bad)
	}
	b, err := load.StartBulk(t.Client, t.Sink, sinkAt(port), d, 0)
	if err != nil {
		return err
	}
	defer b.Stop()
	if err := pause(ctx, 2500*time.Millisecond); err != nil {
		return err
	}
	start := time.Now()
	if err := set(true); err != nil {
		return err
	}
	failed := time.Now()
	if err := pause(ctx, 3*time.Second); err != nil {
		return errors.Join(err, set(false))
	}
	back := time.Now()
	if err := set(false); err != nil {
		return err
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	part := fmt.Sprintf("p%d %s", path+1, d)
	s := b.Series()
	stall := s.Stall(start, back)
	if err := b.Err(); err != nil {
		t.note("%s: the connection ended: %v", part, err)
		stall = 3 * time.Second
	}
	t.add("stall", part, ms(stall))
	recovered, ok := s.Recovered(back, time.Now(), want, time.Second)
	if !ok {
		t.note("%s: not back within %.1f s of the path's return; before %.2f, while it was away %.2f, at last %.2f Mbit/s", part, recovered.Seconds(),
			s.Goodput(start.Add(-time.Second), start), s.Goodput(failed, back), s.Goodput(back.Add(4*time.Second), back.Add(5*time.Second)))
	}
	t.add("back", part, recovered.Seconds())
	return nil
}

// underLoad runs f while a bulk transfer fills the paths, for each direction of it.
func underLoad(ctx context.Context, t *trial, f func(d bed.Direction, echo netip.AddrPort) error) error {
	echo, err := load.StartEcho(t.Sink, sinkAt(echoPort))
	if err != nil {
		return err
	}
	defer echo.Close()
	for i, d := range bothWays {
		b, err := load.StartBulk(t.Client, t.Sink, sinkAt(uint16(bulkPort+10*t.rep+i)), d, 0)
		if err != nil {
			return err
		}
		started := time.Now()
		if err = pause(ctx, 2500*time.Millisecond); err == nil {
			err = f(d, sinkAt(echoPort))
		}
		if err == nil {
			err = b.Err()
		}
		s := b.Series()
		t.note("bulk %s beside it: %.2f of the limit", d, s.Goodput(started.Add(2500*time.Millisecond), time.Now())/limit.Tunnel.Goodput(t.Rates()...))
		if err = errors.Join(err, b.Stop()); err != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil { // let the queues run empty
			return err
		}
	}
	return nil
}

func pingPong(ctx context.Context, t *trial) error {
	return underLoad(ctx, t, func(d bed.Direction, echo netip.AddrPort) error {
		trips, err := load.PingPong(ctx, t.Client, echo, t.long(6*time.Second, 3*time.Second), 10*time.Millisecond)
		if err != nil {
			return err
		}
		t.add("p50", "bulk "+d.String(), ms(load.Percentile(trips, 50)))
		t.note("bulk %s: p99 %.1f ms", d, ms(load.Percentile(trips, 99)))
		return nil
	})
}

func firstLoad(ctx context.Context, t *trial) error {
	return underLoad(ctx, t, func(d bed.Direction, echo netip.AddrPort) error {
		flows := 40
		if t.o.Quick {
			flows = 20
		}
		times, err := load.FirstAnswers(ctx, t.Client, echo, flows, 20*time.Millisecond)
		if err != nil {
			return err
		}
		t.add("load", "bulk "+d.String(), ms(load.Percentile(times, 50)))
		t.note("bulk %s: first %.1f, p90 %.1f ms", d, ms(times[0]), ms(load.Percentile(times, 90)))
		return nil
	})
}

func firstIdle(ctx context.Context, t *trial) error {
	echo, err := load.StartEcho(t.Sink, sinkAt(echoPort))
	if err != nil {
		return err
	}
	defer echo.Close()
	times, err := load.FirstAnswers(ctx, t.Client, sinkAt(echoPort), 30, 50*time.Millisecond)
	if err != nil {
		return err
	}
	rtt := 2 * t.Paths[0].Delay
	t.add("rtt", "median", float64(load.Percentile(times, 50))/float64(rtt))
	t.note("very first %.1f, median %.1f, p90 %.1f ms", ms(times[0]), ms(load.Percentile(times, 50)), ms(load.Percentile(times, 90)))
	return nil
}

// passedBy tells a gateway that has done nothing: then the traffic was routed past it.
func passedBy(t *trial, what string, used time.Duration) {
	if t.g.near.Load() != nil && used < 20*time.Millisecond {
		t.note("%s: the gateways used %v of processor time: was the traffic routed past them?", what, used)
	}
}

// cpuWhile is the processor time that both gateways use while f runs.
func cpuWhile(t *trial, f func() error) (time.Duration, error) {
	before, err := t.g.cpu()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := t.g.cpu()
	return after - before, err
}

func unshaped(ctx context.Context, t *trial) error {
	for _, d := range bothWays {
		used, err := cpuWhile(t, func() error {
			rate, err := iperf(ctx, t, d, t.long(3*time.Second, 2*time.Second))
			if err == nil {
				t.add("rate", d.String(), rate/1e3)
			}
			return err
		})
		if err != nil {
			return err
		}
		passedBy(t, d.String(), used)
	}
	return nil
}

func cpuPerGbit(ctx context.Context, t *trial) error {
	const rate = 1000 // Mbit/s
	for i, d := range bothWays {
		b, err := load.StartBulk(t.Client, t.Sink, sinkAt(uint16(bulkPort+10*t.rep+i)), d, rate)
		if err != nil {
			return err
		}
		err = pause(ctx, 300*time.Millisecond)
		var got int64
		var busy time.Duration
		used, cerr := cpuWhile(t, func() error {
			first, berr := systemBusy()
			start, began := b.Total(), time.Now()
			perr := pause(ctx, t.long(4*time.Second, 3*time.Second))
			got = b.Total() - start
			if r := float64(got) * 8 / 1e6 / time.Since(began).Seconds(); r < 0.97*rate {
				t.note("%s: only %.0f Mbit/s reached", d, r)
			}
			last, lerr := systemBusy()
			busy = last - first
			return errors.Join(berr, lerr, perr)
		})
		if err = errors.Join(err, cerr, b.Err(), b.Stop()); err != nil {
			return err
		}
		passedBy(t, d.String(), used)
		gbit := float64(got) * 8 / 1e9
		t.add("cpu", d.String(), ms(used)/gbit)
		t.add("machine", d.String(), ms(busy)/gbit)
	}
	return nil
}

func churn(ctx context.Context, t *trial) error {
	echo, err := load.StartEcho(t.Sink, sinkAt(echoPort))
	if err != nil {
		return err
	}
	defer echo.Close()
	var c load.Churned
	used, err := cpuWhile(t, func() error {
		c = load.Churn(ctx, t.Client, []netip.AddrPort{sinkAt(echoPort)}, 32, t.long(3*time.Second, 2*time.Second), true)
		return nil
	})
	if err != nil {
		return err
	}
	passedBy(t, "churn", used)
	t.add("rate", "32 at once", c.Rate())
	if c.Failed > 0 {
		t.note("%d of %d failed: %s", c.Failed, c.Failed+c.Done, c.Why())
	}
	return nil
}

// closes uses many ports at the sink, because the client's own ports would run out otherwise.
func closes(ctx context.Context, t *trial) error {
	var at []netip.AddrPort
	for i := range uint16(32) {
		at = append(at, sinkAt(echoPort+i))
	}
	echo, err := load.StartEcho(t.Sink, at...)
	if err != nil {
		return err
	}
	defer echo.Close()
	during := t.long(60*time.Second, 10*time.Second)
	if t.system != Weft {
		during = min(during, 20*time.Second)
	}
	c := load.Churn(ctx, t.Client, at, 32, during, false)
	t.add("failed", fmt.Sprintf("%.0f s", during.Seconds()), float64(c.Failed))
	t.note("%.0f connections/s for %.0f s", c.Rate(), c.Took.Seconds())
	if c.Failed > 0 {
		t.note("%d of %d failed: %s", c.Failed, c.Failed+c.Done, c.Why())
	}
	return nil
}

func udp(ctx context.Context, t *trial) error {
	// What a quiet network takes is not added by anybody.
	calm := load.Train{Protocol: syscall.IPPROTO_UDP, Port: udpPort, Size: 1200, Rate: 0.5, During: time.Second}
	up0, down0, _, err := calm.Run(ctx, t.Client, t.Sink, bed.Client4, bed.Sink4)
	if err != nil {
		return err
	}
	full := load.Train{Protocol: syscall.IPPROTO_UDP, Port: udpPort + 1, Size: 1200, Rate: 14.4, During: t.long(10*time.Second, 5*time.Second)}
	up, down, saw, err := full.Run(ctx, t.Client, t.Sink, bed.Client4, bed.Sink4)
	if err != nil {
		return err
	}
	if saw.Addr() != bed.Client4 {
		t.note("the sink saw %v instead of the client's address", saw.Addr())
	}
	for _, w := range []struct {
		part       string
		got, quiet load.Arrived
	}{{"up", up, up0}, {"down", down, down0}} {
		base := load.Percentile(w.quiet.Delays, 50)
		t.add("delivered", w.part, w.got.Share())
		t.add("p99", w.part, ms(load.Percentile(w.got.Delays, 99)-base))
		t.note("%s: unloaded %.1f ms; p50 %.1f, p90 %.1f, most %.1f ms; %.2f %% late, %d duplicates", w.part, ms(base),
			ms(load.Percentile(w.got.Delays, 50)), ms(load.Percentile(w.got.Delays, 90)), ms(load.Percentile(w.got.Delays, 100)),
			100*float64(w.got.Late)/max(1, float64(w.got.Received)), w.got.Duplicates)
	}
	return nil
}

func raw(ctx context.Context, t *trial) error {
	train := load.Train{Protocol: 253, Size: 1200, Rate: 14.4, During: t.long(10*time.Second, 5*time.Second)}
	up, down, saw, err := train.Run(ctx, t.Client, t.Sink, bed.Client4, bed.Sink4)
	if err != nil {
		return err
	}
	if saw.Addr() != bed.Client4 {
		t.note("the sink saw %v instead of the client's address", saw.Addr())
	}
	for part, got := range map[string]load.Arrived{"up": up, "down": down} {
		t.add("delivered", part, got.Share())
		t.note("%s: p99 %.1f ms, %.2f %% late, %d duplicates", part, ms(load.Percentile(got.Delays, 99)), 100*float64(got.Late)/max(1, float64(got.Received)), got.Duplicates)
	}
	return nil
}

func idle(ctx context.Context, t *trial) error {
	// A gateway needs one descriptor a flow, HAProxy two; where the machine does not give so many, fewer flows are opened
	// and the memory is told as if it were all of them.
	const wanted = 20000
	flows := min(wanted, fileLimit()-1500)
	if t.system == HAProxy {
		flows = min(wanted, haproxyMaxConn()-200)
	}
	if flows < wanted {
		t.note("only %d flows, because a process may have %d files open here; memory is scaled to %d", flows, fileLimit(), wanted)
	}
	echo, err := load.StartEcho(t.Sink, sinkAt(echoPort))
	if err != nil {
		return err
	}
	defer echo.Close()
	kernel, err := kernelMemory()
	if err != nil {
		return err
	}
	start := time.Now()
	held := load.OpenIdle(ctx, t.Client, []netip.AddrPort{sinkAt(echoPort)}, flows, 32)
	defer held.Close()
	opened := time.Since(start)
	if err := pause(ctx, 12*time.Second); err != nil { // longer than park_idle
		return err
	}
	kernelNow, err := kernelMemory()
	if err != nil {
		return err
	}
	var sizes []string
	for _, g := range []struct {
		name string
		p    *process
	}{{"near", t.g.near.Load()}, {"far", t.g.far.Load()}} {
		size, err := g.p.memory()
		if err != nil {
			return err
		}
		t.add("memory", g.name, float64(size)/1e6*wanted/float64(flows))
		fds, err := g.p.descriptors()
		if err != nil {
			return err
		}
		sizes = append(sizes, fmt.Sprintf("%s %d descriptors", g.name, fds))
	}
	alive, checked := held.Check(20)
	t.add("lost", "refused", float64(held.Failed))
	t.add("lost", "dead of 1 in 20", float64(checked-alive))
	t.note("%d opened in %.1f s; kernel memory of the whole bed +%.0f MB; %s", held.Open(), opened.Seconds(), float64(kernelNow-kernel)/1e6, strings.Join(sizes, ", "))
	if held.Failed > 0 {
		t.note("%d flows not opened: %s", held.Failed, held.Why)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// pause waits, or fails with the context.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
