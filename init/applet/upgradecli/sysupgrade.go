package upgradecli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/bus"
	"weft/init/rootdisk"
	"weft/init/slot"
	"weft/init/sysupgrade"
	"weft/init/unit"
)

const usage = `[OPTION...] IMAGE|URL|-
       sysupgrade [-c] [-o] [-u] [-k] [-x PATTERN] -b FILE | -l
       sysupgrade -r FILE | --status [--json] | --rollback | --confirm
Replace the system: a Weft image goes into the other slot and is tried at the next boot.

  -f FILE|URL  restore this archive of settings instead of today's
  -n           keep no settings
  -c           keep all changed files under /etc     -o  keep all changed files
  -u           leave out what is the same in /rom    -k  list the installed packages
  -x PATTERN   leave this out (also a line in /etc/sysupgrade.exclude)
  -p           do not keep the partition table       -s  stay on the running slot
  -T, --test   judge image and settings, write nothing
  -F, --force  go on where the judgement allows it
  --ignore-minor-compat-version
  -i  ask first   -q  less text   -v  more text   --no-reboot  restart later, by hand

  -b, --create-backup FILE   write an archive of the settings (- is standard output)
  -r, --restore-backup FILE  unpack one (- is standard input)
  -l, --list-backup          list what an archive would hold

  --status    which slot runs, what is on trial, why the last one failed (--json)
  --rollback  go back to the system and the settings in the other slot, and restart
  --confirm   keep the running system without waiting for the health gate

Exit code 0 done, 1 refused or failed.
Example: sysupgrade -T /tmp/image.img.gz && sysupgrade https://example.org/image.img.gz`

const spec = "hiqvcounkpsTFlb:r:f:x:PMSRCJN help=h test=T force=F create-backup=b restore-backup=r list-backup=l ignore-minor-compat-version=M status=S rollback=R confirm=C json=J no-reboot=N"

// savedConfig is where stock puts the settings for the upgrade.
const savedConfig = "/tmp/sysupgrade.tgz"

// Sysupgrade is the applet.
func Sysupgrade(ctx context.Context, c *unit.Call) int {
	if len(c.Args) == 2 && c.Args[1] == workArg {
		return work(ctx, c)
	}
	return sysupgradeAt(ctx, c, "/")
}

// sysupgradeAt works on the settings below root.
func sysupgradeAt(ctx context.Context, c *unit.Call, root string) int {
	o, code := options.Parse(c, spec, usage)
	switch {
	case code == 0:
		return 0
	case code > 0:
		return 1 // LEDE's code for a wrong command line
	case o.Has('h'):
		fmt.Fprintf(c.Stdout, "Usage: sysupgrade %s\n", usage)
		return 0
	}
	cmd := &command{c: c, o: o, root: root, verbose: 1 + o.Count('v') - o.Count('q')}
	if err := cmd.run(ctx); err != nil {
		if !errors.Is(err, errSaid) {
			fmt.Fprintf(c.Stderr, "sysupgrade: %v\n", err)
		}
		return 1
	}
	return 0
}

// errSaid is a failure that was told already.
var errSaid = errors.New("failed")

// command is one call.
type command struct {
	c       *unit.Call
	o       *options.Set
	root    string // of the settings
	verbose int
	answers *bufio.Reader // standard input, for questions
}

func (m *command) say(level int, format string, args ...any) {
	if m.verbose >= level {
		fmt.Fprintf(m.c.Stderr, format+"\n", args...)
	}
}

func (m *command) run(ctx context.Context) error {
	o := m.o
	modes := 0
	for _, l := range []byte("brlSRC") {
		if o.Has(l) {
			modes++
		}
	}
	switch {
	case modes > 1:
		return errors.New("one of -b, -r, -l, --status, --rollback and --confirm at a time")
	case modes == 1 && len(o.Args) > 0:
		return fmt.Errorf("an image (%s) cannot be given together with this option", o.Args[0])
	case modes == 0 && len(o.Args) == 0:
		fmt.Fprintf(m.c.Stdout, "Usage: sysupgrade %s\n", usage)
		return errSaid
	case len(o.Args) > 1:
		return fmt.Errorf("one image at a time: %q is too many", o.Args[1])
	case o.Has('i') && len(o.Args) == 1 && o.Args[0] == "-":
		return errors.New("-i asks on standard input, and the image comes from there: give it as a file")
	case o.Has('P'):
		return errors.New("-P: there is no provisioning volume here: settings for a new device go into the image (FILES=)")
	case o.Has('n') && (o.Has('f') || o.Has('c') || o.Has('o')):
		return errors.New("-n keeps no settings: it does not go with -f, -c or -o")
	}
	b := &sysupgrade.Backup{Root: m.root, ChangedEtc: o.Has('c'), ChangedAll: o.Has('o'), SkipSame: o.Has('u'), Packages: o.Has('k'), Exclude: o.Values('x')}
	switch {
	case o.Has('l'):
		return m.list(b)
	case o.Has('b'):
		return m.backup(b, o.Value('b', ""))
	case o.Has('r'):
		return m.restore(b, o.Value('r', ""))
	case o.Has('S'):
		return m.status(ctx)
	case o.Has('R'):
		return m.rollback(ctx)
	case o.Has('C'):
		return m.confirm(ctx)
	}
	return m.upgrade(ctx, b)
}

func (m *command) list(b *sysupgrade.Backup) error {
	names, err := b.List()
	if err != nil {
		return err
	}
	w := bufio.NewWriter(m.c.Stdout)
	for _, n := range names {
		fmt.Fprintf(w, "/%s\n", n)
	}
	return w.Flush()
}

// inMemory refuses where a backup would be of nothing that lasts.
func inMemory() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err == nil && st.Type == unix.TMPFS_MAGIC {
		return errors.New("the root file system is in memory: there are no settings to save (in failsafe mode run mount_root first)")
	}
	return nil
}

func (m *command) backup(b *sysupgrade.Backup, file string) error {
	if err := inMemory(); err != nil {
		return err
	}
	if file == "-" {
		_, err := b.Write(m.c.Stdout)
		return err
	}
	n, err := m.write(b, m.c.Path(file))
	if err != nil {
		return err
	}
	m.say(1, "%d files saved to %s", n, file)
	return nil
}

// write writes an archive so that its name holds a whole one or none.
func (m *command) write(b *sysupgrade.Backup, path string) (n int, err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("save the settings: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(path + ".new")
		}
	}()
	if n, err = b.Write(f); err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return n, fmt.Errorf("save the settings: %w", err)
	}
	return n, os.Rename(path+".new", path)
}

func (m *command) restore(b *sysupgrade.Backup, file string) error {
	path := m.c.Path(file)
	if file == "-" || sysupgrade.IsURL(file) {
		if err := m.fetch(context.Background(), file, savedConfig+".restore"); err != nil {
			return err
		}
		path = savedConfig + ".restore"
		defer os.Remove(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("restore the settings: %w", err)
	}
	defer f.Close()
	n, err := b.Restore(f)
	if err != nil {
		return err
	}
	m.say(1, "%d files restored from %s; services take them with the next restart", n, file)
	return nil
}

// maxConfig bounds an archive of settings that is fetched.
const maxConfig = 64 << 20

// fetch copies standard input or what a URL gives to a file.
func (m *command) fetch(ctx context.Context, from, to string) (err error) {
	in := m.c.Stdin
	if from != "-" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
		if err != nil {
			return err
		}
		resp, err := sysupgrade.Client().Do(req)
		if err != nil {
			return fmt.Errorf("fetch the settings: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("fetch the settings %s: the server answers %s", from, resp.Status)
		}
		in = resp.Body
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(in, maxConfig+1))
	if err == nil && n > maxConfig {
		err = fmt.Errorf("more than %d MiB", maxConfig>>20)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("fetch the settings: %w", err)
	}
	return nil
}

func (m *command) upgrade(ctx context.Context, b *sysupgrade.Backup) error {
	o, image := m.o, m.o.Args[0]
	// The session may go away: the upgrade must not go with it.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	unlock, err := sysupgrade.Lock(sysupgrade.RunDir)
	if err != nil {
		return err
	}
	defer func() { unlock() }()

	req := &sysupgrade.Request{Path: image, Force: o.Has('F'), IgnoreMinor: o.Has('M'), NoReboot: o.Has('N'),
		Prefix: "/tmp/root", Command: "/lib/upgrade/do_stage2", Options: map[string]any{}}
	if o.Has('p') {
		req.Options["save_partitions"] = 0
	} else {
		req.Options["save_partitions"] = 1
	}
	if o.Has('s') {
		req.Options["use_curr_part"] = 1
	}
	keep := sysupgrade.Keep{Config: !o.Has('n'), IgnoreMinor: o.Has('M')}
	if o.Has('i') && keep.Config && !m.ask("Keep the settings?", true) {
		keep.Config = false
	}
	p := &sysupgrade.Progress{Changed: m.show}
	var src sysupgrade.Source
	if image == "-" {
		dir := filepath.Join(sysupgrade.DataDir, sysupgrade.StageDir)
		f, err := sysupgrade.Spool(ctx, m.c.Stdin, dir, p)
		if err != nil {
			return err
		}
		src, req.Path, req.Delete = f, f.Name(), true
	} else {
		if !sysupgrade.IsURL(image) {
			req.Path = m.c.Path(image)
		}
		if src, err = sysupgrade.Open(ctx, req.Path, p); err != nil {
			return err
		}
	}
	passed := false
	defer func() {
		if !passed {
			src.Close() // what was spooled goes as well
		}
	}()
	m.say(1, "Judging %s", image)
	dev, _, err := sysupgrade.ThisDevice()
	var dup *rootdisk.DuplicateError
	if errors.As(err, &dup) {
		return fmt.Errorf("%w: unplug all but one before anything is written", err)
	}
	r, err := sysupgrade.Validate(ctx, src, dev, keep)
	if err != nil {
		return err
	}
	for _, n := range r.Notes {
		m.say(1, "Note: %s", n)
	}
	if err := r.Err(req.Force); err != nil {
		return err
	}
	for _, n := range r.Reasons {
		m.say(0, "Going on by force: %s", n)
	}
	if r.Version != "" {
		now := release()
		m.say(1, "The image is %s; this system is %s", r.Version, now)
		if keep.Config && older(r.Version, now) {
			m.say(1, "Note: the image is older than this system: settings that it does not know yet are kept and not used")
		}
	}
	if o.Has('f') {
		if err := m.config(ctx, o.Value('f', "")); err != nil {
			return err
		}
		req.Backup = savedConfig
	}
	if o.Has('T') {
		m.say(1, "The image could be written")
		return nil
	}
	if req.Backup == "" && keep.Config {
		if err := inMemory(); err != nil {
			return err
		}
		n, err := m.write(b, savedConfig)
		if err != nil {
			return err
		}
		m.say(1, "%d files of settings go along", n)
		req.Backup = savedConfig
	}
	if o.Has('i') && !m.ask("Write the image now?", false) {
		return errors.New("nothing was written")
	}
	unlock() // the worker takes it
	unlock = func() {}
	passed = true
	return m.hand(ctx, req, src)
}

// config brings the archive of -f to its place and checks it.
func (m *command) config(ctx context.Context, from string) error {
	if sysupgrade.IsURL(from) || from == "-" {
		if err := m.fetch(ctx, from, savedConfig); err != nil {
			return err
		}
	} else if path := m.c.Path(from); path != savedConfig {
		in, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("read the settings: %w", err)
		}
		defer in.Close()
		old := m.c.Stdin
		m.c.Stdin = in
		err = m.fetch(ctx, "-", savedConfig)
		m.c.Stdin = old
		if err != nil {
			return err
		}
	}
	f, err := os.Open(savedConfig)
	if err != nil {
		return fmt.Errorf("read the settings: %w", err)
	}
	defer f.Close()
	if err := sysupgrade.CheckBackup(f); err != nil {
		return fmt.Errorf("%s: %w: it must be a tar.gz as -b writes it", from, err)
	}
	return nil
}

// hand gives the request to the supervisor and tells how far it is.
func (m *command) hand(ctx context.Context, req *sysupgrade.Request, src sysupgrade.Source) error {
	client, err := bus.Dial(ctx, bus.DefaultSocket)
	if err != nil {
		m.say(1, "There is no bus (%v): upgrading from here, keep this session open", err)
		src.Close()
		if err := sysupgrade.Submit(sysupgrade.RunDir, req); err != nil {
			return err
		}
		return sysupgrade.Work(ctx, sysupgrade.RunDir, func(format string, args ...any) { m.say(1, format, args...) }, reboot)
	}
	defer client.Close()
	if !req.Delete {
		src.Close()
	}
	reply, err := client.Call(ctx, "system", "sysupgrade", req)
	if err != nil {
		return fmt.Errorf("hand over to the supervisor: %w", err)
	}
	var answer struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := reply.Decode(&answer); err == nil && answer.Error.Message != "" {
		return errors.New(answer.Error.Message)
	}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		s, ok := sysupgrade.ReadStatus(sysupgrade.RunDir)
		if ok {
			m.show(s)
			switch s.Step {
			case sysupgrade.StepDone:
				m.say(1, "Done: %s", s.Message)
				if s.Reboot {
					m.say(1, "Restarting")
				} else {
					m.say(1, "The new system starts with the next boot")
				}
				return nil
			case sysupgrade.StepFailed:
				return errors.New(s.Error)
			}
		}
		select {
		case <-ctx.Done():
			m.say(0, "The upgrade goes on; `sysupgrade --status` shows how far it is")
			return errSaid
		case <-tick.C:
		}
	}
}

// show prints a step once, and how far it is on a terminal.
func (m *command) show(s sysupgrade.Status) {
	f, ok := m.c.Stderr.(*os.File)
	if !ok || m.verbose < 1 {
		return
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return
	}
	text := fmt.Sprintf("%s: fetched %d MiB", s.Step, s.Fetched>>20)
	if s.Total > 0 {
		text = fmt.Sprintf("%s: fetched %d of %d MiB", s.Step, s.Fetched>>20, s.Total>>20)
	}
	fmt.Fprintf(f, "\r%-60s\r", fmt.Sprintf("%s, wrote %d MiB, %d MiB were there", text, s.Written>>20, s.Same>>20))
}

func (m *command) ask(question string, def bool) bool {
	hint := "(y/N)"
	if def {
		hint = "(Y/n)"
	}
	fmt.Fprintf(m.c.Stderr, "%s %s: ", question, hint)
	if m.answers == nil {
		m.answers = bufio.NewReader(m.c.Stdin)
	}
	line, _ := m.answers.ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	case "":
		return def
	}
	return false
}

// release is what this system calls itself.
func release() string {
	text, err := os.ReadFile("/etc/openwrt_release")
	if err != nil {
		return "unknown"
	}
	v := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if k, x, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			v[k] = strings.Trim(x, `'"`)
		}
	}
	return strings.TrimSpace(v["DISTRIB_ID"] + " " + v["DISTRIB_RELEASE"] + " " + v["DISTRIB_REVISION"])
}

// older says whether the release named a ("Weft 0.1.0 r12-abc") is older than b; of
// another distribution nothing can be said.
func older(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	if len(x) < 2 || len(y) < 2 || x[0] != y[0] {
		return false
	}
	p, q := strings.Split(x[1], "."), strings.Split(y[1], ".")
	for i := range min(len(p), len(q)) {
		n, err1 := strconv.Atoi(p[i])
		k, err2 := strconv.Atoi(q[i])
		if err1 != nil || err2 != nil {
			return false
		}
		if n != k {
			return n < k
		}
	}
	return len(p) < len(q)
}

func reboot(context.Context) error { return syscall.Kill(1, syscall.SIGTERM) }

// workArg is how the service calls the applet.
const workArg = "--work"

// work is the service sysupgrade.
func work(ctx context.Context, c *unit.Call) int {
	err := sysupgrade.Work(ctx, sysupgrade.RunDir, func(format string, args ...any) {
		fmt.Fprintf(c.Stdout, format+"\n", args...)
	}, reboot)
	if err != nil {
		fmt.Fprintf(c.Stderr, "%v\n", err)
		return 1
	}
	return 0
}

// slots is the answer of --status.
type slots struct {
	Running   slot.ID            `json:"running"`
	Preferred slot.ID            `json:"preferred"`
	Trial     slot.ID            `json:"trial,omitempty"`
	TriesLeft int                `json:"tries_left,omitempty"`
	Confirmed map[slot.ID]bool   `json:"confirmed"`
	Last      *failure           `json:"last_failure,omitempty"`
	Notes     []string           `json:"notes,omitempty"`
	Upgrade   *sysupgrade.Status `json:"upgrade,omitempty"`
	Version   string             `json:"version"`
	Gate      *gate              `json:"gate,omitempty"`
}

// gate is what the health gate says of the running trial.
type gate struct {
	State    string  `json:"state"`
	Left     float64 `json:"left"` // seconds
	Problems []struct {
		Check  string `json:"check"`
		Detail string `json:"detail"`
	} `json:"problems,omitempty"`
}

// callGate calls a method of the health gate, which is on the bus during a trial
// alone.
func callGate(ctx context.Context, method string) (bus.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := bus.Dial(ctx, bus.DefaultSocket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Call(ctx, "healthgate", method, nil)
}

type failure struct {
	Slot   slot.ID    `json:"slot"`
	Check  string     `json:"check"`
	Detail string     `json:"detail"`
	At     *time.Time `json:"at,omitempty"`
}

// boot runs f with the state of the slots.
func boot(ctx context.Context, f func(dir string) error) error {
	dir, done, err := slot.MountBoot(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(dir), done())
}

func (m *command) status(ctx context.Context) error {
	running, err := slot.Running()
	if err != nil {
		return err
	}
	s := slots{Running: running, Version: release()}
	if _, err := slot.BootDevice(); err != nil && !errors.Is(err, slot.ErrOneSlot) {
		return err
	}
	err = boot(ctx, func(dir string) error {
		st, notes := slot.Read(dir)
		s.Preferred, s.Trial, s.TriesLeft, s.Confirmed, s.Notes = st.Preferred, st.Trial, st.TriesLeft, st.Confirmed, notes
		if st.Last.Slot != "" {
			s.Last = &failure{Slot: st.Last.Slot, Check: st.Last.Check, Detail: st.Last.Detail}
			if !st.Last.At.IsZero() {
				at := st.Last.At.UTC()
				s.Last.At = &at
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if u, ok := sysupgrade.ReadStatus(sysupgrade.RunDir); ok {
		s.Upgrade = &u
	}
	if s.Trial == s.Running {
		if reply, err := callGate(ctx, "status"); err == nil {
			g := &gate{}
			if reply.Decode(g) == nil && g.State != "" {
				s.Gate = g
			}
		}
	}
	if m.o.Has('J') {
		text, err := json.Marshal(s)
		if err != nil {
			return err
		}
		fmt.Fprintf(m.c.Stdout, "%s\n", text)
		return nil
	}
	s.print(m.c.Stdout)
	return nil
}

func (s *slots) print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("running", "slot %s: %s", s.Running, s.Version)
	switch {
	case s.Trial == s.Running:
		line("on trial", "the running system is on trial (%d more tries): `sysupgrade --confirm` keeps it, the health gate does so by itself", s.TriesLeft)
	case s.Trial != "":
		line("on trial", "slot %s starts with the next boot, %d tries", s.Trial, s.TriesLeft)
	default:
		line("on trial", "nothing")
	}
	if g := s.Gate; g != nil {
		line("health gate", "%s, %.0f s left", g.State, g.Left)
		for _, p := range g.Problems {
			line("", "%s: %s", p.Check, p.Detail)
		}
	}
	line("preferred", "slot %s", s.Preferred)
	other := s.Running.Other()
	if s.Confirmed[other] {
		line("fallback", "slot %s: came up well before; `sysupgrade --rollback` goes there", other)
	} else {
		line("fallback", "none: slot %s holds no system that came up", other)
	}
	if s.Last != nil {
		at := ""
		if s.Last.At != nil {
			at = " at " + s.Last.At.Format(time.RFC3339)
		}
		line("last failure", "slot %s, check %s%s: %s", s.Last.Slot, s.Last.Check, at, s.Last.Detail)
	}
	if u := s.Upgrade; u != nil {
		text := string(u.Step)
		if u.Error != "" {
			text += ": " + u.Error
		} else if u.Message != "" {
			text += ": " + u.Message
		}
		line("upgrade", "%s (fetched %d KiB, wrote %d KiB, %d KiB were there)", text, u.Fetched>>10, u.Written>>10, u.Same>>10)
	}
	for _, n := range s.Notes {
		line("note", "%s", n)
	}
}

func (m *command) rollback(ctx context.Context) error {
	unlock, err := sysupgrade.Lock(sysupgrade.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	running, err := slot.Running()
	if err != nil {
		return err
	}
	err = boot(ctx, func(dir string) error {
		s, err := slot.Open(dir)
		if err != nil {
			return err
		}
		return s.Rollback("sysupgrade --rollback")
	})
	if err != nil {
		return fmt.Errorf("%w (running: slot %s)", err, running)
	}
	m.say(1, "Slot %s starts with the next boot, with its own settings", running.Other())
	if m.o.Has('N') {
		return nil
	}
	m.say(1, "Restarting")
	return reboot(ctx)
}

func (m *command) confirm(ctx context.Context) error {
	running, err := slot.Running()
	if err != nil {
		return err
	}
	if _, err := callGate(ctx, "confirm"); err != nil {
		// No gate watches: the state is ours to write.
		err = boot(ctx, func(dir string) error {
			s, err := slot.Open(dir)
			if err != nil {
				return err
			}
			return s.Confirm(running)
		})
		if err != nil {
			return err
		}
	}
	m.say(1, "Slot %s is confirmed", running)
	return nil
}

// ValidateFirmwareImage prints its judgement as JSON, as stock's does. Arguments:
// the image, and "-n" behind it if no settings are kept.
func ValidateFirmwareImage(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "nM ignore-minor-compat-version=M", "[-n] [--ignore-minor-compat-version] IMAGE\nSay as JSON whether this device could take a firmware image.\nExample: validate_firmware_image /tmp/image.img.gz")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 1); code >= 0 {
		return code
	}
	fail := func(err error) int {
		fmt.Fprintf(c.Stderr, "validate_firmware_image: %v\n", err)
		return 1
	}
	name := o.Args[0]
	if !sysupgrade.IsURL(name) {
		name = c.Path(name)
	}
	src, err := sysupgrade.Open(ctx, name, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if err != nil {
		return fail(err)
	}
	defer src.Close()
	dev, _, err := sysupgrade.ThisDevice()
	var dup *rootdisk.DuplicateError
	r, verr := sysupgrade.Validate(ctx, src, dev, sysupgrade.Keep{Config: !o.Has('n'), IgnoreMinor: o.Has('M')})
	if verr != nil {
		return fail(verr)
	}
	if errors.As(err, &dup) {
		r.Refuse(fmt.Errorf("%w: unplug all but one before anything is written", err))
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(c.Stdout, "%s\n", text)
	if !r.Valid {
		return 1
	}
	return 0
}
