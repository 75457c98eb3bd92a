package procps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/init/applet/internal/fullscreen"
	"weft/init/applet/options"
	"weft/init/unit"
)

const topUsage = `[-b] [-n COUNT] [-d SECONDS]
Show what the processes do, again and again.
  -b  as plain text, for a file or a pipe     -n  COUNT times
  -d  seconds in between (default 5)
Keys: P M T N  sort by processor, memory, time, process id   R  turn it round
      blank    now                                           q  end
Example: top -b -n 1`

const (
	topInterval = 5 * time.Second // busybox's
	// firstInterval is between the two samples that the first screen needs.
	firstInterval = 300 * time.Millisecond
)

// cpuTimes are the ticks of all processors since boot, as the first line of
// /proc/stat has them: user nice system idle iowait irq softirq steal.
type cpuTimes [8]uint64

func parseCPU(text string) (cpuTimes, error) {
	var t cpuTimes
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 5 || f[0] != "cpu" {
		return t, fmt.Errorf("the first line is %q, expected cpu and its times", line)
	}
	for i, s := range f[1:min(len(f), len(t)+1)] {
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return t, fmt.Errorf("%q is not a number of ticks", s)
		}
		t[i] = n
	}
	return t, nil
}

func (t cpuTimes) total() (sum uint64) {
	for _, n := range t {
		sum += n
	}
	return sum
}

// entry is a process in top.
type entry struct {
	process
	command string
	used    uint64 // ticks since the sample before
}

// snapshot is what one screen shows.
type snapshot struct {
	memory  memory
	cpu     cpuTimes // since the sample before
	load    []string
	entries []entry
	names   *names
}

// sampler keeps what the next sample is compared with. Command lines are read
// once for each program, since reading them costs as much as all else.
type sampler struct {
	proc  proc
	names *names
	cpu   cpuTimes
	known map[identity]seen
}

// identity is a program: a process id can be used again, and exec changes the
// name.
type identity struct {
	pid   int
	start uint64
	comm  string
}

type seen struct {
	ticks   uint64
	command string
}

func (s *sampler) sample() (*snapshot, error) {
	b, err := os.ReadFile(filepath.Join(string(s.proc), "stat"))
	if err != nil {
		return nil, err
	}
	cpu, err := parseCPU(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s/stat: %w", s.proc, err)
	}
	snap := &snapshot{names: s.names}
	if snap.memory, err = s.proc.memory(); err != nil {
		return nil, err
	}
	if snap.load, err = s.proc.load(); err != nil {
		return nil, err
	}
	list, err := s.proc.processes()
	if err != nil {
		return nil, err
	}
	for i := range cpu {
		// The kernel's counts of idle time may go back a little (proc_stat(5)).
		snap.cpu[i] = cpu[i] - min(s.cpu[i], cpu[i])
	}
	first := s.known == nil
	known := make(map[identity]seen, len(list))
	snap.entries = make([]entry, len(list))
	for i := range list {
		p := &list[i]
		id := identity{p.pid, p.start, p.comm}
		before, ok := s.known[id]
		if !ok {
			before.command = s.proc.command(p)
			if first {
				before.ticks = p.ticks
			}
		}
		snap.entries[i] = entry{*p, before.command, p.ticks - min(before.ticks, p.ticks)}
		known[id] = seen{p.ticks, before.command}
	}
	s.cpu, s.known = cpu, known
	return snap, nil
}

// order is how the entries are sorted.
type order struct {
	by      byte // P, M, T or N
	reverse bool
}

func (s *snapshot) sort(o order) {
	slices.SortStableFunc(s.entries, func(a, b entry) int {
		n := 0
		switch o.by {
		case 'P':
			n = cmp.Or(cmp.Compare(b.used, a.used), cmp.Compare(b.rss, a.rss))
		case 'M':
			n = cmp.Compare(b.rss, a.rss)
		case 'T':
			n = cmp.Compare(b.ticks, a.ticks)
		}
		n = cmp.Or(n, cmp.Compare(a.pid, b.pid))
		if o.reverse {
			return -n
		}
		return n
	})
}

// percent is part of whole, rounded.
func percent(part, whole uint64) int {
	if whole == 0 {
		return 0
	}
	return int(math.Round(float64(part) * 100 / float64(whole)))
}

// titles is the row in which the columns' names stand.
const titles = 3

// rows are the lines of a screen, at most limit of them.
func (s *snapshot) rows(o order, limit int) []string {
	m, all := s.memory, s.cpu.total()
	p := func(i int) int { return percent(s.cpu[i], all) }
	rows := []string{
		fmt.Sprintf("Mem: %dK used, %dK free, %dK shrd, %dK buff, %dK cached, %dK available",
			m.used()>>10, m.free>>10, m.shared>>10, m.buffers>>10, m.cached>>10, m.available>>10),
		fmt.Sprintf("CPU: %3d%% usr %3d%% sys %3d%% nic %3d%% idle %3d%% io %3d%% irq %3d%% sirq", p(0), p(2), p(1), p(3), p(4), p(5), p(6)),
		"Load average: " + strings.Join(s.load, " "),
		"  PID  PPID USER     STAT   RSS %RSS %CPU COMMAND",
	}
	s.sort(o)
	for i := range s.entries {
		if len(rows) >= limit {
			break
		}
		e := &s.entries[i]
		rows = append(rows, fmt.Sprintf("%5d%6d %-8.8s %-4s%6s%4d%%%4d%% %s", e.pid, e.ppid, s.names.user(e.uid), e.stat(), size(e.rss),
			percent(e.rss, m.total), percent(e.used, all), e.command))
	}
	return rows
}

// Top shows the processes and what they use, anew every few seconds.
func Top(ctx context.Context, c *unit.Call) int { return top(ctx, c, system, wait) }

// wait returns after d, with ctx's error when that ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func top(ctx context.Context, c *unit.Call, root proc, wait func(context.Context, time.Duration) error) int {
	o, code := options.Parse(c, "bn:d:", topUsage)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	count, code := o.Int('n', 0)
	if code >= 0 {
		return code
	}
	if o.Has('n') && count < 1 {
		return o.Fail("-n: at least 1")
	}
	interval := topInterval
	if o.Has('d') {
		s, err := strconv.ParseFloat(o.Value('d', ""), 64)
		if err != nil || !(s >= 0.1 && s <= 86400) {
			return o.Fail("-d: %q is not a number of seconds from 0.1 to 86400", o.Value('d', ""))
		}
		interval = time.Duration(s * float64(time.Second))
	}
	s := &sampler{proc: root, names: newNames()}
	var err error
	if o.Has('b') {
		err = s.batch(ctx, c.Stdout, interval, count, wait)
	} else {
		in, _ := c.Stdin.(*os.File)
		out, _ := c.Stdout.(*os.File)
		if in == nil || out == nil {
			err = fullscreen.ErrNoTerminal
		} else {
			err = s.interactive(ctx, in, out, interval, count)
		}
		if errors.Is(err, fullscreen.ErrNoTerminal) {
			err = errors.New("not on a terminal: use -b")
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
		return fail(c, err)
	}
	return 0
}

// batch writes count screens, without end for 0.
func (s *sampler) batch(ctx context.Context, w io.Writer, interval time.Duration, count int, wait func(context.Context, time.Duration) error) error {
	if _, err := s.sample(); err != nil {
		return err
	}
	pause := min(interval, firstInterval)
	for n := 1; ; n++ {
		if err := wait(ctx, pause); err != nil {
			return err
		}
		snap, err := s.sample()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w, strings.Join(snap.rows(order{by: 'P'}, math.MaxInt), "\n")); err != nil {
			return fmt.Errorf("write the screen: %w", err)
		}
		if n == count {
			return nil
		}
		pause = interval
	}
}

// interactive paints until q or until count screens have been shown.
func (s *sampler) interactive(ctx context.Context, in, out *os.File, interval time.Duration, count int) (err error) {
	screen, ctx, err := fullscreen.Open(ctx, in, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, screen.Close()) }()
	snap, err := s.sample()
	if err != nil {
		return err
	}
	by := order{by: 'P'}
	next := time.Now().Add(min(interval, firstInterval))
	shown := 0
	for {
		if err := screen.Paint(snap.rows(by, screen.Rows), titles); err != nil {
			return err
		}
		k, err := screen.Key(ctx, time.Until(next))
		if err != nil {
			return err
		}
		switch k {
		case 'q', 'Q', fullscreen.Ctrl('c'):
			return nil
		case 'p', 'm', 't', 'n', 'P', 'M', 'T', 'N':
			by = order{by: byte(k) &^ 0x20}
		case 'r', 'R':
			by.reverse = !by.reverse
		case fullscreen.Ctrl('l'):
			screen.Redraw()
		case fullscreen.None, ' ', '\r':
			if shown++; count > 0 && shown > count {
				return nil
			}
			if snap, err = s.sample(); err != nil {
				return err
			}
			next = time.Now().Add(interval)
		}
	}
}
