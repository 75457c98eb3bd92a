package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/test-vm/bed"
	"weft/test-vm/lab"
	"weft/test-vm/report"
	"weft/test-vm/topology"
	"weft/test-vm/watch"
	"weft/test-vm/wire"
)

// result is a check while it is made.
type result struct {
	report.Check
	r     *runner
	c     *topology.Check
	begun func()
}

func (res *result) make(ctx context.Context) error {
	switch res.c.Type {
	case topology.IPerf:
		return res.iperf(ctx)
	case topology.Ping:
		return res.ping(ctx)
	case topology.TCP:
		return res.tcp(ctx)
	case topology.UDP, topology.Proto:
		return res.packets(ctx)
	case topology.SCTP:
		return res.sctp(ctx)
	case topology.Flows:
		return res.flows(ctx)
	case topology.NoMPTCP:
		return res.noMPTCP()
	case topology.Captured:
		return res.captured()
	case topology.Run:
		return res.command(ctx)
	}
	return fmt.Errorf("no such check: %q", res.c.Type)
}

// value notes a figure. bound is "" or a comparison with limit, ">=" or "<=".
func (res *result) value(name string, v float64, unit, bound string, limit float64) {
	val := report.Value{Name: name, Value: v, Unit: unit, OK: true}
	switch {
	case limit == 0 && bound != "<= ":
	case bound == ">=":
		val.OK, val.Bound = v >= limit, ">= "+strconv.FormatFloat(limit, 'g', 6, 64)
	case bound == "<=":
		val.OK, val.Bound = v <= limit, "<= "+strconv.FormatFloat(limit, 'g', 6, 64)
	case bound == "<= ": // also 0 is a limit
		val.OK, val.Bound = v <= limit, "<= "+strconv.FormatFloat(limit, 'g', 6, 64)
	}
	res.Values = append(res.Values, val)
}

func (res *result) note(format string, args ...any) {
	res.Notes = append(res.Notes, fmt.Sprintf(format, args...))
}

func (res *result) addr(node string) string {
	a, _ := res.r.t.Node(node).Addr(res.c.Family)
	return a.String()
}

// accessLink is the link that the traffic of a check takes at a node, and the direction towards the node.
func (r *runner) accessLink(node string, family int) (*watch.Link, int, error) {
	n := r.t.Node(node)
	for _, p := range n.Ports {
		if slices.ContainsFunc(p.Addrs, func(a netip.Prefix) bool { return a.Addr().Is4() == (family == 4) }) {
			dir := 0
			if p.Link.Ends[0] == p {
				dir = 1
			}
			return r.bed.Watch(p.Link.Name), dir, nil
		}
	}
	return nil, 0, fmt.Errorf("node %s has no address of family IPv%d", node, family)
}

// portCounter hands out a port to each check, so that none meets what another one left.
var portCounter atomic.Int32

func nextPort() int { return 20000 + 20*int(portCounter.Add(1)%500) }

// serverBound is how long a server may take until it listens.
const serverBound = 20 * time.Second

// serve starts a server on the check's node To and waits until something listens on the port there.
func (res *result) serve(ctx context.Context, script string, port int) (bed.Process, error) {
	c := res.c
	p, err := res.r.bed.Spawn(ctx, c.To, script)
	if err != nil {
		return nil, err
	}
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(serverBound))
	defer cancel()
	for {
		r, err := res.r.bed.Exec(bound, c.To, fmt.Sprintf("grep -q ':%04X 0*:0000 0A' /proc/net/tcp /proc/net/tcp6", port))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("wait for %q to listen on port %d: %w", script, port, err), p.Stop(ctx))
		}
		if r.Code == 0 {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-bound.Done():
			return nil, errors.Join(fmt.Errorf("%s: %q does not listen on port %d", c.To, script, port), p.Stop(ctx))
		}
	}
	return p, nil
}

// ended stops a server and adds what it said to an error.
func ended(ctx context.Context, p bed.Process, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	*err = errors.Join(*err, p.Stop(ctx))
}

// ---- iperf3

// iperfReport is what is needed of iperf3 -J.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		SumReceived   iperfSum `json:"sum_received"`
		SumSent       iperfSum `json:"sum_sent"`
		ReceivedBidir iperfSum `json:"sum_received_bidir_reverse"`
		Streams       []struct {
			Receiver iperfSum `json:"receiver"`
		} `json:"streams"`
	} `json:"end"`
}

type iperfSum struct {
	Rate  float64 `json:"bits_per_second"`
	Bytes float64 `json:"bytes"`
}

// maxIperfStreams is iperf3's own (MAX_STREAMS in iperf.h).
const maxIperfStreams = 128

func (res *result) iperf(ctx context.Context) (err error) {
	c, r := res.c, res.r
	if c.Parallel > maxIperfStreams {
		return fmt.Errorf("iperf3 has at most %d streams: use a check of type flows", maxIperfStreams)
	}
	port := nextPort()
	server, err := res.serve(ctx, fmt.Sprintf("exec iperf3 -s -1 -p %d", port), port)
	if err != nil {
		return err
	}
	defer ended(ctx, server, &err)
	receivers := []string{c.To}
	if c.Reverse {
		receivers = []string{c.From}
	}
	if c.Bidir {
		receivers = []string{c.To, c.From}
	}
	var recordings []*watch.Recording
	for _, node := range receivers {
		l, dir, err := r.accessLink(node, c.Family)
		if err != nil {
			return err
		}
		rec := l.Record(dir, time.Now())
		defer rec.Stop()
		recordings = append(recordings, rec)
	}
	args := fmt.Sprintf("-c %s -p %d -t %d -P %d -J", res.addr(c.To), port, max(int(c.Duration.Seconds()+0.5), 1), c.Parallel)
	if c.Reverse {
		args += " -R"
	}
	if c.Bidir {
		args += " --bidir"
	}
	client, err := r.bed.Spawn(ctx, c.From, "exec iperf3 "+args)
	if err != nil {
		return err
	}
	defer ended(ctx, client, &err)
	// The control connection has a few bytes of payload first: the transfer begins when there is a stream of it.
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-recordings[0].First():
			res.Start = r.since(time.Now())
			res.begun()
		case <-stop:
		}
	})
	out, err := client.Wait(ctx)
	close(stop)
	wait.Wait()
	if err != nil {
		return err
	}
	var rep iperfReport
	e := json.NewDecoder(strings.NewReader(out.Output[max(strings.IndexByte(out.Output, '{'), 0):])).Decode(&rep) // warnings stand around it
	switch {
	case rep.Error != "":
		return fmt.Errorf("iperf3 on %s: %s", c.From, rep.Error)
	case e != nil:
		return fmt.Errorf("%w (%w)", errNode("iperf3 on "+c.From, out), e)
	case out.Code != 0:
		return errNode("iperf3 on "+c.From, out)
	}
	limit := r.t.LimitOf(c)
	minRatio := c.MinRatio
	if r.o.Backend == topology.Netns && c.NetnsMinRatio != 0 {
		minRatio = c.NetnsMinRatio
	}
	for i, sum := range []iperfSum{rep.End.SumReceived, rep.End.ReceivedBidir}[:len(receivers)] {
		suffix := ""
		if len(receivers) > 1 {
			suffix = " to " + receivers[i]
		}
		res.value("goodput"+suffix, sum.Rate/1e6, "Mbit/s", ">=", float64(c.MinRate)/1e6)
		if limit > 0 {
			res.value(fmt.Sprintf("of %.3f%s", limit/1e6, suffix), sum.Rate/limit, "", ">=", minRatio)
		}
	}
	rec := recordings[0]
	end := rec.Began().Add(c.Duration)
	if stall, at := rec.Stall(end); c.MaxStall != 0 || stall > time.Second {
		// Beyond the transfer's time iperf3 is silent until the results are exchanged: that is no stall.
		res.value("longest stall", ms(stall), "ms", "<=", ms(c.MaxStall))
		if stall > 100*time.Millisecond {
			res.note("the longest stall began %.2f s after the transfer", at.Sub(rec.Began()).Seconds())
		}
	}
	if c.Recover != 0 {
		at := r.lastEnd(c)
		if at.IsZero() {
			return errors.New("recover: no event ended a fault during the transfer")
		}
		d, ok := rec.Reached(at, limit*topology.RecoveredRatio)
		if !ok {
			d = end.Sub(at)
			res.note("goodput did not reach %.2f of the limit again", topology.RecoveredRatio)
		}
		res.value("recovered after", d.Seconds(), "s", "<=", c.Recover.Seconds())
	}
	res.End = res.Start + c.Duration.Seconds()
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// ---- ping

var pingLine = regexp.MustCompile(`(?m)^\d+ bytes from .*seq=(\d+).* time=([0-9.]+) ?ms`)

func (res *result) ping(ctx context.Context) error {
	c := res.c
	program := "ping"
	if c.Family == 6 {
		program = "ping -6"
	}
	res.begun()
	seconds := float64(c.Count)*c.Interval.Seconds() + 5
	out, err := res.r.bed.Exec(ctx, c.From, fmt.Sprintf("%s -c %d -i %.2f -W 2 -s %d -w %d %s", program, c.Count, c.Interval.Seconds(), c.Size, int(seconds+1), res.addr(c.To)))
	if err != nil {
		return err
	}
	times := pingTimes(out.Output)
	if len(times) == 0 {
		res.value("lost", 100, "%", "<= ", float64(c.MaxLoss))
		res.note("%s", tail(out.Output))
		return nil
	}
	res.value("lost", 100*float64(c.Count-len(times))/float64(c.Count), "%", "<= ", float64(c.MaxLoss))
	res.value("p50", quantile(times, 0.5), "ms", "<=", ms(c.MaxP50))
	res.value("p99", quantile(times, 0.99), "ms", "<=", ms(c.MaxP99))
	return nil
}

// pingTimes are the round trips (ms) of the answers, duplicates left out.
func pingTimes(output string) []float64 {
	seen := map[string]bool{}
	var times []float64
	for _, m := range pingLine.FindAllStringSubmatch(output, -1) {
		if seen[m[1]] {
			continue
		}
		seen[m[1]] = true
		if v, err := strconv.ParseFloat(m[2], 64); err == nil {
			times = append(times, v)
		}
	}
	slices.Sort(times)
	return times
}

func quantile(sorted []float64, q float64) float64 { return sorted[int(q*float64(len(sorted)-1)+0.5)] }

// ---- tcp

func (res *result) tcp(ctx context.Context) (err error) {
	c := res.c
	port := nextPort()
	server, err := res.serve(ctx, fmt.Sprintf("exec lab-probe tcp-server %s %d", res.addr(c.To), port), port+7)
	if err != nil {
		return err
	}
	defer ended(ctx, server, &err)
	res.begun()
	cases := c.Cases
	if len(cases) == 0 {
		cases = topology.TCPCases
	}
	out, err := res.r.bed.Exec(ctx, c.From, fmt.Sprintf("lab-probe tcp-client %s %d %s %s", res.addr(c.To), port, res.addr(c.From), strings.Join(cases, " ")))
	if err != nil {
		return err
	}
	var outcomes []struct {
		Case, Got string
		OK        bool
		MS        float64
	}
	if e := json.Unmarshal([]byte(out.Output), &outcomes); e != nil || out.Code != 0 {
		return errNode("the client on "+c.From, out)
	}
	held := 0
	for _, o := range outcomes {
		if o.OK {
			held++
		} else {
			res.note("%s: %s", o.Case, o.Got)
		}
	}
	res.value("cases that hold", float64(held), "", ">=", float64(len(cases)))
	return nil
}

// ---- datagrams and packets

type stream struct {
	Sent, Received, Duplicate, Reordered int
	P50                                  float64 `json:"p50_ms"`
	P99                                  float64 `json:"p99_ms"`
	Gap                                  float64 `json:"gap_ms"`
}

func (res *result) packets(ctx context.Context) (err error) {
	c := res.c
	network := fmt.Sprintf("udp:%d", nextPort())
	if c.Type == topology.Proto {
		network = fmt.Sprintf("ip:%d", c.Protocol)
	}
	server, err := res.r.bed.Spawn(ctx, c.To, fmt.Sprintf("exec lab-probe packet-server %s %s", network, res.addr(c.To)))
	if err != nil {
		return err
	}
	defer ended(ctx, server, &err)
	// A datagram to a server that is not there yet is lost: wait for its socket.
	number := network[strings.IndexByte(network, ':')+1:]
	n, _ := strconv.Atoi(number) // made above
	table := map[bool]string{true: "/proc/net/udp /proc/net/udp6", false: "/proc/net/raw /proc/net/raw6"}[c.Type == topology.UDP]
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(serverBound))
	defer cancel()
	for {
		r, err := res.r.bed.Exec(bound, c.To, fmt.Sprintf("grep -q ':%04X 0*:0' %s", n, table))
		if err != nil {
			return fmt.Errorf("wait for the server on %s: %w", c.To, err)
		}
		if r.Code == 0 {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-bound.Done():
			return fmt.Errorf("the server on %s does not listen on %s", c.To, network)
		}
	}
	way := "up"
	if c.Reverse {
		way = "down"
	}
	if c.Bidir {
		way = "both"
	}
	client, err := res.r.bed.Spawn(ctx, c.From, fmt.Sprintf("exec lab-probe packet-client %s %s %.0f %d %s %s", network, res.addr(c.To), float64(c.Rate), c.Size, c.Duration, way))
	if err != nil {
		return err
	}
	defer ended(ctx, client, &err)
	res.begun()
	out, err := client.Wait(ctx)
	if err != nil {
		return err
	}
	var got struct{ Up, Down *stream }
	if e := json.Unmarshal([]byte(out.Output), &got); e != nil || out.Code != 0 {
		return errNode("the client on "+c.From, out)
	}
	for _, s := range []struct {
		name string
		*stream
	}{{"up", got.Up}, {"down", got.Down}} {
		if s.stream == nil {
			continue
		}
		suffix := ""
		if c.Bidir {
			suffix = " " + s.name
		}
		if s.Sent == 0 {
			return fmt.Errorf("nothing was sent %s", s.name)
		}
		res.value("delivered"+suffix, float64(s.Received)/float64(s.Sent), "", ">=", c.MinDelivered)
		res.value("p50 added"+suffix, s.P50, "ms", "<=", ms(c.MaxP50))
		res.value("p99 added"+suffix, s.P99, "ms", "<=", ms(c.MaxP99))
		if c.MaxStall != 0 {
			res.value("longest gap"+suffix, s.Gap, "ms", "<=", ms(c.MaxStall))
		}
		if s.Duplicate+s.Reordered > 0 {
			res.note("%s: %d of %d out of order, %d twice", s.name, s.Reordered, s.Sent, s.Duplicate)
		}
	}
	return nil
}

func (res *result) sctp(ctx context.Context) (err error) {
	c := res.c
	r, err := res.r.bed.Exec(ctx, c.To, "modprobe sctp 2>/dev/null; test -e /proc/sys/net/sctp")
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return skipped("the kernel of " + c.To + " has no SCTP")
	}
	if _, err := res.r.bed.Exec(ctx, c.From, "modprobe sctp 2>/dev/null; true"); err != nil {
		return err
	}
	port := nextPort()
	server, err := res.r.bed.Spawn(ctx, c.To, fmt.Sprintf("exec lab-probe sctp-server %s %d", res.addr(c.To), port))
	if err != nil {
		return err
	}
	defer ended(ctx, server, &err)
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(serverBound))
	defer cancel()
	for {
		r, err := res.r.bed.Exec(bound, c.To, fmt.Sprintf("grep -q ' %d ' /proc/net/sctp/eps", port))
		if err != nil {
			return err
		}
		if r.Code == 0 {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-bound.Done():
			return fmt.Errorf("the SCTP server on %s does not listen", c.To)
		}
	}
	res.begun()
	out, err := res.r.bed.Exec(ctx, c.From, fmt.Sprintf("lab-probe sctp-client %s %d %d", res.addr(c.To), port, c.Size))
	if err != nil {
		return err
	}
	var got struct {
		Bytes   int
		Seconds float64
	}
	if e := json.Unmarshal([]byte(out.Output), &got); e != nil || out.Code != 0 {
		return errNode("the SCTP client on "+c.From, out)
	}
	res.value("bytes there and back", float64(got.Bytes), "", ">=", float64(c.Size))
	res.value("rate", float64(got.Bytes)*8/got.Seconds/1e6, "Mbit/s", "", 0)
	return nil
}

// ---- flows

func (res *result) flows(ctx context.Context) (err error) {
	c, r := res.c, res.r
	port := nextPort()
	server, err := res.serve(ctx, fmt.Sprintf("exec lab-probe flow-server %s %d", res.addr(c.To), port), port)
	if err != nil {
		return err
	}
	defer ended(ctx, server, &err)
	way := "up"
	receiver := c.To
	if c.Reverse {
		way, receiver = "down", c.From
	}
	l, dir, err := r.accessLink(receiver, c.Family)
	if err != nil {
		return err
	}
	rec := l.Record(dir, time.Now())
	defer rec.Stop()
	client, err := r.bed.Spawn(ctx, c.From, fmt.Sprintf("exec lab-probe flow-client %s %d %d %d %s", res.addr(c.To), port, c.Count, c.Size, way))
	if err != nil {
		return err
	}
	defer ended(ctx, client, &err)
	res.begun()
	out, err := client.Wait(ctx)
	if err != nil {
		return err
	}
	var got struct {
		OK, Failed int
		Seconds    float64
		Bytes      float64
		Errors     []string
	}
	if e := json.Unmarshal([]byte(out.Output), &got); e != nil || out.Code != 0 {
		return errNode("the client on "+c.From, out)
	}
	for _, e := range got.Errors {
		res.note("%s", e)
	}
	res.value("flows complete", float64(got.OK), "", ">=", float64(c.Count))
	rate := got.Bytes * 8 / got.Seconds
	res.value("goodput", rate/1e6, "Mbit/s", ">=", float64(c.MinRate)/1e6)
	minRatio := c.MinRatio
	if r.o.Backend == topology.Netns && c.NetnsMinRatio != 0 {
		minRatio = c.NetnsMinRatio
	}
	if limit := r.t.LimitOf(c); limit > 0 {
		res.value(fmt.Sprintf("of %.3f", limit/1e6), rate/limit, "", ">=", minRatio)
	}
	if c.MaxStall != 0 {
		stall, _ := rec.Stall(rec.Began().Add(time.Duration(got.Seconds * float64(time.Second))))
		res.value("longest stall", ms(stall), "ms", "<=", ms(c.MaxStall))
	}
	return nil
}

// ---- what was seen on links

func (res *result) noMPTCP() error {
	yes := true
	frames := uint64(0)
	for _, node := range res.c.Nodes {
		for _, p := range res.r.t.Node(node).Ports {
			w := res.r.bed.Watch(p.Link.Name)
			frames += w.Count(wire.ProtoTCP, nil)
			res.value("frames with MPTCP at "+node, float64(w.Count(wire.ProtoTCP, &yes)), "", "<= ", 0)
		}
	}
	if frames == 0 {
		return errors.New("no TCP was seen at these nodes at all: nothing was shown")
	}
	res.note("%d TCP frames were looked at", frames)
	return nil
}

func (res *result) captured() error {
	c := res.c
	n := float64(res.r.bed.Watch(c.Link).Count(c.Protocol, c.MPTCP))
	if c.Min > 0 || c.Max == 0 {
		res.value("frames", n, "", ">=", float64(c.Min))
	}
	if c.Max > 0 || c.Min == 0 {
		res.value("frames", n, "", "<= ", float64(c.Max))
	}
	return nil
}

func (res *result) command(ctx context.Context) error {
	c := res.c
	res.begun()
	out, err := res.r.bed.Exec(ctx, c.Node, c.Command)
	if err != nil {
		return err
	}
	res.value("exit status", float64(out.Code), "", "<= ", 0)
	if c.Expect == "" {
		return nil
	}
	re, err := regexp.Compile(c.Expect)
	if err != nil {
		return err
	}
	if !re.MatchString(out.Output) {
		res.OK = false
		res.note("the output does not match %q: %s", c.Expect, tail(out.Output))
	}
	return nil
}

// tail is the end of an output, on one line if it is short.
func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 600 {
		s = "… " + s[len(s)-600:]
	}
	return s
}
