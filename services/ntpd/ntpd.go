package ntpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/beevik/ntp"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
)

// Poll intervals: RFC 5905's minimum and maximum, and while there is no time yet.
const (
	minPoll  = 64 * time.Second
	maxPoll  = 1024 * time.Second
	firstTry = 2 * time.Second
	lastTry  = minPoll
	// steady is how many good rounds make the interval twice as long.
	steady = 4
	// queryTime bounds one question to one server, name look-up included.
	queryTime = 5 * time.Second
	// stepAt is the offset that is no matter of slewing any more: the first
	// time, and once the clock runs by ours (then twice in a row).
	stepFirst = 128 * time.Millisecond
	stepLater = time.Second
	// saveEvery is how often the time is written down for the next start.
	saveEvery = 24 * time.Hour
	maxName   = 253
)

// peer is what is remembered about a server.
type peer struct {
	silenced bool          // it has denied us service: not asked again
	every    time.Duration // it has asked for less: at least so long between questions
	last     time.Time
	failing  bool
}

// daemon is the running service; its loop owns all state but truth.
type daemon struct {
	log    *slog.Logger
	clock  clock
	now    func() time.Time // for intervals
	query  func(ctx context.Context, server string) (*ntp.Response, error)
	notify func(action string, t truth, offset time.Duration, ppm float64, poll time.Duration)
	status func(string)
	state  string // folder

	peers map[string]*peer
	poll  time.Duration
	good  int // rounds in a row
	far   int // rounds in a row that would have to step
	saved time.Time
	mu    sync.Mutex
	truth truth
}

func newDaemon(log *slog.Logger) *daemon {
	return &daemon{
		log: log, clock: kernelClock{}, now: time.Now, query: query,
		notify: func(string, truth, time.Duration, float64, time.Duration) {}, status: func(string) {},
		peers: map[string]*peer{}, poll: firstTry,
	}
}

func query(ctx context.Context, server string) (*ntp.Response, error) {
	return ntp.QueryWithOptions(server, ntp.QueryOptions{
		Version: 4, Timeout: queryTime,
		Dialer: func(_, remote string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, queryTime)
			defer cancel()
			return (&net.Dialer{}).DialContext(ctx, "udp", remote)
		},
	})
}

func (d *daemon) current() truth {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.truth
}

// round asks all servers that it may ask and sets the clock by what they say.
// It returns when to do so again.
func (d *daemon) round(ctx context.Context, servers []string) time.Duration {
	type result struct {
		server string
		r      *ntp.Response
		err    error
	}
	results := make(chan result)
	asked := 0
	for _, s := range servers {
		p := d.peers[s]
		if p == nil {
			p = &peer{}
			d.peers[s] = p
		}
		if p.silenced || p.every > 0 && d.now().Sub(p.last) < p.every {
			continue
		}
		p.last = d.now()
		asked++
		go func() {
			r, err := d.query(ctx, s)
			results <- result{s, r, err}
		}()
	}
	var valid []sample
	for range asked {
		x := <-results
		if err := d.judge(x.server, x.r, x.err); err == nil {
			valid = append(valid, sample{x.server, x.r})
		} else if p := d.peers[x.server]; !p.failing {
			p.failing = true
			d.log.Info("server gives no time", "server", x.server, "error", err)
		}
	}
	if ctx.Err() != nil {
		return d.poll
	}
	group := choose(valid)
	for _, s := range valid {
		out := !slices.ContainsFunc(group, func(g sample) bool { return g.server == s.server })
		if p := d.peers[s.server]; out && !p.failing {
			d.log.Warn("server disagrees with the majority", "server", s.server, "offset", s.ClockOffset)
			p.failing = true
		} else if !out {
			p.failing = false
		}
	}
	if len(group) == 0 {
		d.good = 0
		if d.current().synced {
			d.poll = max(minPoll, d.poll/2)
		} else {
			d.poll = min(2*d.poll, lastTry)
		}
		return d.poll
	}
	return d.adjust(group)
}

// judge checks an answer.
func (d *daemon) judge(server string, r *ntp.Response, err error) error {
	if err != nil {
		return err
	}
	if r.IsKissOfDeath() || r.Stratum == 0 {
		p := d.peers[server]
		switch r.KissCode {
		case "DENY", "RSTR":
			p.silenced = true
			return fmt.Errorf("it denies service (%s): not asked again", r.KissCode)
		case "RATE":
			p.every = min(max(2*p.every, 2*d.poll, minPoll), 24*time.Hour)
			return fmt.Errorf("it asks for fewer questions: every %v from now on", p.every)
		}
		return fmt.Errorf("kiss of death %q", r.KissCode)
	}
	if err := r.Validate(); err != nil {
		return fmt.Errorf("invalid answer: %w", err)
	}
	return nil
}

func (d *daemon) adjust(group []sample) time.Duration {
	offset, best := combine(group), group[0]
	was := d.current()
	t := truth{
		synced: true, leap: uint8(best.Leap), stratum: best.Stratum + 1, reference: addressID(best.server),
		rootDelay: best.RootDelay + best.RTT, dispersion: best.RootDispersion + offset.Abs(), at: time.Now(),
	}
	limit := stepLater
	if !was.synced {
		limit = stepFirst
	}
	action := ""
	var ppm float64
	var err error
	switch {
	case offset.Abs() < limit:
		d.far = 0
		d.poll = max(d.poll, minPoll)
		if d.good++; d.good >= steady && d.poll < maxPoll {
			d.good, d.poll = 0, min(2*d.poll, maxPoll)
		}
		ppm, err = d.clock.slew(offset, d.poll, best.bound(), t.leap)
		if !was.synced || was.stratum != t.stratum {
			action = "stratum"
		}
	case was.synced && d.far == 0:
		// A jump of the network's, or of somebody's hand: ask again before.
		d.far++
		d.good = 0
		return firstTry
	default:
		d.far, d.good, d.poll = 0, 0, minPoll
		err = d.clock.step(offset)
		t.at = time.Now()
		t.dispersion = best.RootDispersion + best.bound()
		if err == nil {
			d.log.Info("clock stepped", "by", offset, "servers", len(group))
		}
		action = "step"
	}
	if err != nil {
		d.log.Error("clock not set", "error", err)
		d.status(err.Error())
		return d.poll
	}
	d.mu.Lock()
	d.truth = t
	d.mu.Unlock()
	if !was.synced {
		d.log.Info("clock is right", "offset", offset, "stratum", t.stratum, "server", best.server)
	}
	d.status(fmt.Sprintf("stratum %d, offset %.1f ms by %d servers", t.stratum, offset.Seconds()*1000, len(group)))
	if d.saved.IsZero() || d.now().Sub(d.saved) >= saveEvery || action == "step" {
		d.save()
	}
	if action != "" {
		d.notify(action, t, offset, ppm, d.poll)
	}
	return d.poll
}

// addressID is the reference id of a server: its IPv4 address. Of others it only
// has to differ (RFC 5905 section 7.3).
func addressID(server string) uint32 {
	h := uint32(2166136261)
	if ip := net.ParseIP(server).To4(); ip != nil {
		return uint32(ip[0])<<24 | uint32(ip[1])<<16 | uint32(ip[2])<<8 | uint32(ip[3])
	}
	for _, c := range []byte(server) {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// clockFile's time of change tells the next boot how late it is at least.
const clockFile = "clock"

func (d *daemon) save() {
	if d.state == "" {
		return
	}
	d.saved = d.now()
	err := os.MkdirAll(d.state, 0o755)
	if err == nil {
		path := filepath.Join(d.state, clockFile)
		err = os.WriteFile(path, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o644)
	}
	if err != nil {
		d.log.Warn("time not saved for the next start", "error", err)
	}
}

// Run is the service.
func Run(ctx context.Context, env *unit.Env) error {
	if len(env.Args) > 0 {
		return fmt.Errorf("argument %q: this service takes none but flags, see --help", env.Args[0])
	}
	client := bus.Connect(ctx, env.BusPath, env.Log)
	defer client.Close()
	d := newDaemon(env.Log)
	d.status, d.state = env.Status, env.StateDir
	var work sync.WaitGroup
	defer work.Wait()
	d.notify = func(action string, t truth, offset time.Duration, ppm float64, poll time.Duration) {
		work.Go(func() { hotplug(ctx, client, env.Log, action, t, offset, ppm, poll) })
	}
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	if _, err := client.Subscribe("network.interface", func(method string, _ bus.Table) {
		if method == "interface.update" || method == "interface.down" {
			tell()
		}
	}); err != nil {
		env.Log.Warn("interfaces are not followed", "error", err)
	}
	select {
	case <-client.Connected():
	case <-ctx.Done():
		return nil
	case <-time.After(settle): // without a bus: the servers of the configuration alone
		work.Go(func() {
			select {
			case <-client.Connected():
				tell()
			case <-ctx.Done():
			}
		})
	}
	return d.run(ctx, env, client, changed)
}

// settle is how long events of interfaces are collected.
const settle = 2 * time.Second

func (d *daemon) run(ctx context.Context, env *unit.Env, client *bus.Client, changed <-chan struct{}) error {
	tree := uci.Tree{ConfDir: env.ConfigDir, NonStrict: true}
	var c config
	var n network
	unread := false
	servers := map[string]*server{} // by device
	defer func() {
		for _, s := range servers {
			s.close()
		}
		if d.current().synced {
			d.save()
		}
	}()
	read := func() {
		got, err := load(ctx, tree, client)
		if unread = err != nil; unread {
			env.Log.Error("configuration not read, the last one stays", "error", err)
		} else {
			c = got
		}
		n = look(ctx, client, c)
		d.serve(ctx, servers, c, n)
	}
	ready := func() {
		if !c.enabled {
			env.Status("not enabled")
		}
		env.Ready()
	}
	read()
	ready()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-env.Reload():
			env.Reloading()
			clear(d.peers)
			read()
			ready()
			timer.Reset(0)
		case <-changed:
			n = look(ctx, client, c)
			d.serve(ctx, servers, c, n)
			if !d.current().synced {
				d.poll = firstTry
				timer.Reset(settle)
			}
		case <-timer.C:
			if unread {
				read()
			}
			all := slices.Compact(append(slices.Clone(c.servers), n.servers...))
			all = slices.DeleteFunc(all, func(s string) bool { return s == "" || len(s) > maxName || strings.ContainsAny(s, " /@") })
			if unread {
				timer.Reset(lastTry) // rpcd may come yet
				continue
			}
			if !c.enabled || len(all) == 0 {
				timer.Reset(maxPoll)
				continue
			}
			timer.Reset(d.round(ctx, all))
		}
	}
}

const ntpPort = 123

// serve makes the sockets what the configuration asks for.
func (d *daemon) serve(ctx context.Context, servers map[string]*server, c config, n network) {
	want := map[string]bool{}
	if c.enabled && c.serve {
		for _, i := range c.interfaces {
			for _, dev := range n.devices[i] {
				want[dev] = true
			}
		}
		if len(c.interfaces) == 0 {
			want[""] = true
		}
	}
	for dev, s := range servers {
		if !want[dev] {
			s.close()
			delete(servers, dev)
		}
	}
	for dev := range want {
		if servers[dev] != nil {
			continue
		}
		s, err := listen(ctx, ":"+strconv.Itoa(ntpPort), dev, d.log, d.current)
		if err != nil {
			d.log.Error("no NTP server", "error", err)
			continue
		}
		servers[dev] = s
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

// hotplug lets the scripts in /etc/hotplug.d/ntp run, with the variables that
// they get on LEDE. They run as root: so the supervisor's object starts them.
func hotplug(ctx context.Context, client *bus.Client, log *slog.Logger, action string, t truth, offset time.Duration, ppm float64, poll time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, ask)
	defer cancel()
	vars := bus.Array{
		"ACTION=" + action, fmt.Sprintf("stratum=%d", t.stratum), fmt.Sprintf("offset=%.6f", offset.Seconds()),
		fmt.Sprintf("freq_drift_ppm=%.0f", ppm), fmt.Sprintf("poll_interval=%d", poll/time.Second),
	}
	if _, err := client.Call(ctx, "hotplug.ntp", "call", bus.Table{{Name: "env", Value: vars}}); err != nil && !errors.Is(err, bus.StatusNotFound) {
		log.Debug("hotplug scripts not run", "error", err)
	}
}
