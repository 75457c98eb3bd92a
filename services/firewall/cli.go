package firewall

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"weft/init/bus"
	"weft/init/unit"
)

const usage = `Usage: fw4 [-q] [--config-dir DIR] [--bus SOCKET] COMMAND

The firewall of /etc/config/firewall.

  print             the rules that would be loaded, in nft's syntax
  check             what is wrong with the configuration
  reload, restart   load the rules; flows go on
  start             the same
  stop, flush       take all rules away: nothing is filtered
  network NAME      the zone of an interface of /etc/config/network
  device NAME       the zone of a device
  zone NAME         the devices of a zone

Examples:
  fw4 check && fw4 reload
  fw4 print | less
  fw4 -q network wan
`

// Exit codes of CLI.
const (
	exitFailed = 1
	exitUsage  = 2
)

// patience bounds what the command waits for.
const patience = time.Minute

type cli struct {
	*unit.Call
	dir, bus string
	quiet    bool
}

// CLI is the command fw4.
func CLI(ctx context.Context, c *unit.Call) int {
	m := &cli{Call: c}
	flags := flag.NewFlagSet("fw4", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&m.dir, "config-dir", unit.DefaultConfigDir, "")
	flags.StringVar(&m.bus, "bus", unit.DefaultBusPath, "")
	flags.BoolVar(&m.quiet, "q", false, "")
	err := flags.Parse(c.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(c.Stdout, usage)
		return 0
	}
	args := flags.Args()
	if err == nil && len(args) == 0 {
		err = errors.New("which command?")
	}
	if err != nil {
		return m.misused(err)
	}
	m.dir, m.bus = c.Path(m.dir), c.Path(m.bus)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	want := 1
	if slices.Contains([]string{"network", "device", "zone"}, args[0]) {
		want = 2
	}
	if len(args) != want {
		return m.misused(fmt.Errorf("%s: expected %d arguments", args[0], want-1))
	}
	switch args[0] {
	case "print":
		return m.print(ctx)
	case "check":
		return m.check(ctx)
	case "start", "reload", "restart", "reload-sets":
		return m.reload(ctx)
	case "stop", "flush":
		return m.stop(ctx)
	case "network", "device", "zone":
		return m.lookup(ctx, args[0], args[1])
	}
	return m.misused(fmt.Errorf("unknown command %q", args[0]))
}

func (m *cli) misused(err error) int {
	fmt.Fprintf(m.Stderr, "fw4: %v\n%s", err, usage)
	return exitUsage
}

func (m *cli) fail(err error) int {
	fmt.Fprintf(m.Stderr, "fw4: %v\n", err)
	return exitFailed
}

// dial connects to the bus if there is one.
func (m *cli) dial(ctx context.Context) (*bus.Client, func()) {
	if _, err := os.Stat(m.bus); err != nil {
		return nil, func() {}
	}
	c, err := bus.Dial(ctx, m.bus)
	if err != nil {
		return nil, func() {}
	}
	return c, func() { _ = c.Close() }
}

func (m *cli) build(ctx context.Context) (*Output, Input, error) {
	s := newSource(m.dir)
	var done func()
	s.bus, done = m.dial(ctx)
	defer done()
	in, err := s.input(ctx)
	if err != nil {
		return nil, in, err
	}
	return Build(in), in, nil
}

func (m *cli) tell(problems []Problem) {
	if m.quiet {
		return
	}
	for _, p := range problems {
		fmt.Fprintf(m.Stderr, "fw4: %v\n", p)
	}
}

func (m *cli) print(ctx context.Context) int {
	out, _, err := m.build(ctx)
	if err != nil {
		return m.fail(err)
	}
	m.tell(out.Problems)
	if _, err := io.WriteString(m.Stdout, out.Ruleset.Text()); err != nil {
		return m.fail(err)
	}
	return 0
}

func (m *cli) check(ctx context.Context) int {
	out, _, err := m.build(ctx)
	if err != nil {
		return m.fail(err)
	}
	m.tell(out.Problems)
	if slices.ContainsFunc(out.Problems, func(p Problem) bool { return p.Fatal }) {
		return exitFailed
	}
	return 0
}

// reload asks the service; without one it loads the rules itself.
func (m *cli) reload(ctx context.Context) int {
	if c, done := m.dial(ctx); c != nil {
		defer done()
		t, err := c.Call(ctx, "firewall", "reload", nil)
		if err == nil {
			return m.answer(t)
		}
		if !errors.Is(err, bus.StatusNotFound) {
			return m.fail(fmt.Errorf("ask the service firewall: %w", err))
		}
	}
	out, _, err := m.build(ctx)
	if err != nil {
		return m.fail(err)
	}
	err = newApplier(unit.NewLog(m.Stderr, false, slog.LevelInfo)).apply(ctx, out, true)
	m.tell(out.Problems)
	if err != nil {
		return m.fail(err)
	}
	return 0
}

func (m *cli) answer(t bus.Table) int {
	if list, _ := t.Get("problems").(bus.Array); !m.quiet {
		for _, p := range list {
			fmt.Fprintf(m.Stderr, "fw4: %v\n", p)
		}
	}
	if e := t.String("error"); e != "" {
		return m.fail(errors.New(e))
	}
	return 0
}

func (m *cli) stop(ctx context.Context) int {
	if c, done := m.dial(ctx); c != nil {
		defer done()
		t, err := c.Call(ctx, "firewall", "stop", nil)
		if err == nil {
			t = slices.DeleteFunc(t, func(a bus.Attr) bool { return a.Name == "problems" })
			return m.answer(t)
		}
		if !errors.Is(err, bus.StatusNotFound) {
			return m.fail(fmt.Errorf("ask the service firewall: %w", err))
		}
	}
	if err := newApplier(unit.NewLog(m.Stderr, false, slog.LevelInfo)).kernel.Remove(Table); err != nil {
		return m.fail(err)
	}
	return 0
}

func (m *cli) lookup(ctx context.Context, what, name string) int {
	s := newSource(m.dir)
	var done func()
	s.bus, done = m.dial(ctx)
	defer done()
	in, err := s.input(ctx)
	if err != nil {
		return m.fail(err)
	}
	for _, z := range zonesOf(in) {
		switch {
		case what == "zone" && z.name == name:
			for _, d := range append(slices.Clone(z.devices), z.wild...) {
				fmt.Fprintln(m.Stdout, d)
			}
			return 0
		case what == "network" && slices.Contains(z.networks, name), what == "device" && slices.Contains(z.devices, name):
			fmt.Fprintln(m.Stdout, z.name)
			return 0
		}
	}
	if !m.quiet {
		fmt.Fprintf(m.Stderr, "fw4: no zone has %s %s\n", what, name)
	}
	return exitFailed
}
