package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
	"weft/services/firewall/ruleset"
)

// fallback is LEDE's policy, for a device whose configuration cannot be read and
// that has no rules yet.
const fallback = `
config defaults
	option input REJECT
	option output ACCEPT
	option forward REJECT
	option synflood_protect 1

config zone
	option name lan
	list network lan
	option input ACCEPT
	option output ACCEPT
	option forward ACCEPT

config zone
	option name wan
	list network wan
	list network wan6
	option input REJECT
	option output ACCEPT
	option forward DROP
	option masq 1
	option mtu_fix 1

config forwarding
	option src lan
	option dest wan

config rule
	option name Allow-DHCP-Renew
	option src wan
	option proto udp
	option dest_port 68
	option family ipv4
	option target ACCEPT

config rule
	option name Allow-DHCPv6
	option src wan
	option proto udp
	option dest_port 546
	option family ipv6
	option target ACCEPT

config rule
	option name Allow-ICMPv6
	option src wan
	option proto icmp
	option family ipv6
	option target ACCEPT
`

// ask bounds a question to the service network.
const ask = 5 * time.Second

// source reads the configuration.
type source struct {
	tree uci.Tree
	bus  *bus.Client // nil: interfaces as configured
}

func newSource(dir string) *source {
	return &source{tree: uci.Tree{ConfDir: dir, NonStrict: true}}
}

// input collects what a ruleset is made from. An error is about
// /etc/config/firewall itself; what else is missing is done without.
func (s *source) input(ctx context.Context) (Input, error) {
	in := Input{
		Local: time.Local, Now: time.Now(), Read: os.ReadFile,
		Devices: func(name string) bool {
			_, err := net.InterfaceByName(name) // /sys may be that of another namespace
			return err == nil
		},
		Files: func(pattern string) []string {
			files, err := filepath.Glob(pattern)
			if err != nil {
				return nil
			}
			return files
		},
	}
	// Errors of the others lead to an empty package: their owners name them.
	network, _ := s.tree.LoadCommitted("network")
	in.Networks = configured(network)
	in.Proxy, _ = s.tree.LoadCommitted("mptcpproxy")
	if s.bus != nil {
		ctx, cancel := context.WithTimeout(ctx, ask)
		defer cancel()
		if dump, err := s.bus.Call(ctx, "network.interface", "dump", nil); err == nil {
			in.Networks.merge(dump)
		}
	}
	var err error
	if in.Firewall, err = s.tree.LoadCommitted("firewall"); err != nil {
		return in, fmt.Errorf("read the firewall's configuration: %w", err)
	}
	return in, nil
}

// applier loads rulesets and remembers what it has loaded.
type applier struct {
	log    *slog.Logger
	kernel ruleset.Kernel
	text   string // of the last ruleset that was loaded whole
	told   map[string]bool
	proc   string // /proc
}

func newApplier(log *slog.Logger) *applier {
	return &applier{log: log, proc: "/proc", told: map[string]bool{}}
}

// tell logs problems, each once until it is gone.
func (a *applier) tell(problems []Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		s := p.Error()
		if now[s] = true; !a.told[s] {
			a.log.Warn(s)
		}
	}
	a.told = now
}

// apply makes the kernel hold the ruleset. Unless forced it does nothing when it
// has loaded the same before and the table is still there. Sections that the
// kernel does not take are left out and added to the problems of out. On an error
// the old rules stand.
func (a *applier) apply(ctx context.Context, out *Output, force bool) error {
	text := out.Ruleset.Text()
	if !force && text == a.text && len(out.Ruleset.Includes()) == 0 {
		if there, err := a.kernel.Exists(Table); err == nil && there {
			return nil
		}
	}
	a.text = ""
	if err := a.load(ctx, out); err != nil {
		return err
	}
	a.text = text
	a.sysctl(out.Sysctl)
	for _, s := range out.Scripts {
		a.script(ctx, s)
	}
	return nil
}

func (a *applier) load(ctx context.Context, out *Output) error {
	rs := out.Ruleset
	if files := rs.Includes(); len(files) > 0 {
		nft, err := exec.LookPath("nft")
		if err != nil {
			for _, f := range files {
				out.Problems = append(out.Problems, Problem{Section: f, Expected: "not loaded: text in nft's syntax needs the program nft, which is not in this image", Fatal: true})
			}
		} else if err := ruleset.LoadText(ctx, nft, rs.Text()); err != nil {
			out.Problems = append(out.Problems, Problem{Section: strings.Join(files, " "), Expected: "not loaded: " + err.Error(), Fatal: true})
		} else {
			a.kernel = ruleset.Kernel{}
			return nil
		}
	}
	err := a.kernel.Replace(rs)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (it takes root or CAP_NET_ADMIN)", err)
	}
	// Which section is it? Each alone, in a table that no packet meets.
	first := err
	if rs.Flowtable != nil {
		if err := a.kernel.Replace(withoutFlowtable(rs)); err == nil {
			out.Problems = append(out.Problems, Problem{Section: "defaults", Option: "flow_offloading", Value: "1", Expected: "the kernel refuses the flowtable: " + first.Error()})
			return nil
		}
		rs = withoutFlowtable(rs)
	}
	bad := 0
	for _, section := range sections(rs) {
		if err := a.kernel.Try(only(rs, section)); err != nil {
			out.Problems = append(out.Problems, Problem{Section: section, Expected: "the kernel refuses its rules: " + err.Error(), Fatal: true})
			rs = without(rs, section)
			bad++
		}
	}
	if bad == 0 {
		return first
	}
	if err := a.kernel.Replace(rs); err != nil {
		return err
	}
	return nil
}

// sections lists where the rules come from.
func sections(rs *ruleset.Ruleset) []string {
	var out []string
	for _, c := range rs.Chains {
		for _, r := range c.Rules {
			if r.Section != "" && !slices.Contains(out, r.Section) {
				out = append(out, r.Section)
			}
		}
	}
	for _, s := range rs.Sets {
		if s.Section != "" && !slices.Contains(out, s.Section) {
			out = append(out, s.Section)
		}
	}
	return out
}

// filtered is a copy with some rules alone.
func filtered(rs *ruleset.Ruleset, keep func(section string) bool) *ruleset.Ruleset {
	n := *rs
	n.Chains = nil
	for _, c := range rs.Chains {
		x := *c
		x.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r *ruleset.Rule) bool { return !keep(r.Section) })
		n.Chains = append(n.Chains, &x)
	}
	return &n
}

// only has the rules of one section, and the sets that they may use.
func only(rs *ruleset.Ruleset, section string) *ruleset.Ruleset {
	n := filtered(rs, func(s string) bool { return s == section })
	n.Flowtable = nil
	return n
}

func without(rs *ruleset.Ruleset, section string) *ruleset.Ruleset {
	return filtered(rs, func(s string) bool { return s != section })
}

func withoutFlowtable(rs *ruleset.Ruleset) *ruleset.Ruleset {
	n := *rs
	n.Flowtable, n.Chains = nil, nil
	for _, c := range rs.Chains {
		x := *c
		x.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r *ruleset.Rule) bool {
			return slices.ContainsFunc(r.Terms, func(t ruleset.Term) bool { _, ok := t.(ruleset.Offload); return ok })
		})
		n.Chains = append(n.Chains, &x)
	}
	return &n
}

// sysctl writes settings that differ. It does not touch the others.
func (a *applier) sysctl(values map[string]string) {
	for key, v := range values {
		path := a.proc + "/sys/" + key
		old, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(old)) == v {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(v), 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("kernel setting not written", "key", key, "value", v, "error", err)
		}
	}
}

// forward lets the kernel route: only once there are rules.
func (a *applier) forward() {
	a.sysctl(map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/default/forwarding": "1", "net/ipv6/conf/all/forwarding": "1",
	})
}

// scriptTime bounds an include of type script.
const scriptTime = 30 * time.Second

func (a *applier) script(ctx context.Context, path string) {
	ctx, cancel := context.WithTimeout(ctx, scriptTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", path)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		a.log.Warn("included script failed", "path", path, "error", err, "output", strings.TrimSpace(string(out)))
	}
}

// service is the running firewall. Its loop owns all state.
type service struct {
	env    *unit.Env
	source *source
	apply  *applier
	calls  chan func()
	poke   chan struct{}

	problems []Problem
	err      error
	stopped  bool // by `fw4 stop`
}

// settle is how long events of interfaces are collected.
const settle = 300 * time.Millisecond

// Run is the firewall service.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("argument %q: this service takes none but flags, see --help; the command is fw4", env.Args[0])
	}
	s := &service{
		env: env, source: newSource(env.ConfigDir), apply: newApplier(env.Log),
		calls: make(chan func()), poke: make(chan struct{}, 1),
	}
	s.load(ctx, true)
	s.apply.forward()
	env.Ready()

	client := bus.Connect(ctx, env.BusPath, env.Log)
	defer client.Close()
	s.source.bus = client
	env.Health(func(ctx context.Context) error { return s.do(ctx, func() {}) })
	if _, err := client.Publish(s.object()); err != nil {
		env.Log.Error("object was not published", "object", "firewall", "error", err)
	}
	if _, err := client.Subscribe("network.interface", func(method string, _ bus.Table) {
		if method == "interface.update" || method == "interface.down" {
			s.wake()
		}
	}); err != nil {
		env.Log.Error("interfaces are not followed", "error", err)
	}
	go func() {
		select {
		case <-client.Connected():
			s.wake()
		case <-ctx.Done():
		}
	}()
	var timer *time.Timer
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil // the rules stay: what is down must not be open
		case <-env.Reload():
			env.Reloading()
			s.load(ctx, true)
			env.Ready()
		case f := <-s.calls:
			f()
		case <-s.poke:
			if due == nil {
				timer = time.NewTimer(settle)
				due = timer.C
			}
		case <-due:
			due = nil
			s.load(ctx, false)
		}
	}
}

func (s *service) wake() {
	select {
	case s.poke <- struct{}{}:
	default: // one is waiting already
	}
}

// do runs f in the loop.
func (s *service) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case s.calls <- func() { defer close(done); f() }:
	case <-ctx.Done():
		return fmt.Errorf("the main loop does not answer: %w", ctx.Err())
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the main loop does not answer: %w", ctx.Err())
	}
}

// load reads the configuration and makes it so.
func (s *service) load(ctx context.Context, force bool) {
	if s.stopped && !force {
		return
	}
	s.stopped = false
	in, err := s.source.input(ctx)
	var out *Output
	if err == nil {
		out = Build(in)
		err = s.apply.apply(ctx, out, force)
		s.problems = out.Problems
		s.apply.tell(out.Problems)
	}
	if s.err = err; err == nil {
		s.env.Status("")
		return
	}
	s.env.Log.Error("rules not loaded, the old ones stay", "error", err)
	s.env.Status("rules not loaded: " + err.Error())
	there, xerr := s.apply.kernel.Exists(Table)
	if xerr != nil || there {
		return
	}
	// A router without any rules is no router.
	if in.Firewall, err = uci.Parse("firewall", strings.NewReader(fallback), true); err == nil {
		err = s.apply.apply(ctx, Build(in), true)
	}
	if err != nil {
		s.env.Log.Error("not even the built-in rules could be loaded", "error", err)
		return
	}
	s.env.Log.Warn("LEDE's default rules are loaded, since there were none")
}

func (s *service) object() *bus.Object {
	run := func(f func(ctx context.Context) bus.Table) func(context.Context, *bus.Request) error {
		return func(ctx context.Context, r *bus.Request) error {
			var t bus.Table
			if err := s.do(ctx, func() { t = f(ctx) }); err != nil {
				return err
			}
			return r.Reply(t)
		}
	}
	return &bus.Object{Name: "firewall", Methods: []bus.Method{
		{Name: "status", Handle: run(func(context.Context) bus.Table { return s.status() })},
		{Name: "reload", Handle: run(func(ctx context.Context) bus.Table { s.load(ctx, true); return s.status() })},
		{Name: "stop", Handle: run(func(context.Context) bus.Table {
			s.stopped, s.apply.text = true, ""
			s.err = s.apply.kernel.Remove(Table)
			return s.status()
		})},
	}}
}

func (s *service) status() bus.Table {
	list := bus.Array{}
	for _, p := range s.problems {
		list = append(list, p.Error())
	}
	t := bus.Table{{Name: "loaded", Value: s.err == nil && !s.stopped}, {Name: "problems", Value: list}}
	if s.err != nil {
		t = append(t, bus.Attr{Name: "error", Value: s.err.Error()})
	}
	return t
}
