package crond

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"log/slog"

	"weft/init/uci"
	"weft/init/unit"
)

// Dir is where crontabs lie, a file a user.
const Dir = "/etc/crontabs"

const (
	// lookEvery is how long a crontab that was edited without the command
	// crontab goes unnoticed at most.
	lookEvery = time.Minute
	maxFile   = 1 << 20
	// maxRunning bounds the jobs at work at a time: a job that hangs must not
	// fill the memory with its successors.
	maxRunning = 32
	// catchUp is up to which jump of the clock missed minutes are made up for.
	catchUp = time.Hour
)

// daemon is the running service.
type daemon struct {
	log   *slog.Logger
	dir   string
	quiet bool // do not log each start: cronloglevel above 7

	tables  map[string]*loaded
	running map[string]bool // user:line
	mu      sync.Mutex
	work    sync.WaitGroup
	run     func(ctx context.Context, user string, j job) error
}

// loaded is a crontab and what its file was like.
type loaded struct {
	table
	mtime time.Time
	size  int64
}

func newDaemon(log *slog.Logger, dir string) *daemon {
	d := &daemon{log: log, dir: dir, tables: map[string]*loaded{}, running: map[string]bool{}}
	d.run = d.execute
	return d
}

// load reads the crontabs that have changed.
func (d *daemon) load() {
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("crontabs not read", "error", err)
		return
	}
	there := map[string]bool{}
	for _, e := range entries {
		user := e.Name()
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || strings.HasPrefix(user, ".") || user == "cron.update" {
			continue
		}
		there[user] = true
		if l := d.tables[user]; l != nil && l.mtime.Equal(fi.ModTime()) && l.size == fi.Size() {
			continue
		}
		l := &loaded{mtime: fi.ModTime(), size: fi.Size()}
		d.tables[user] = l
		if fi.Size() > maxFile {
			d.log.Error("crontab is larger than 1 MiB: not used", "user", user)
			continue
		}
		// Like su, cron runs commands by a file: it has to be its owner's.
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
			d.log.Error("crontab is writable by others or belongs to them: not used", "user", user)
			continue
		}
		text, err := os.ReadFile(filepath.Join(d.dir, user))
		if err != nil {
			d.log.Warn("crontab not read", "user", user, "error", err)
			continue
		}
		var errs []error
		l.table, errs = parseTable(user, string(text))
		for _, err := range errs {
			d.log.Warn("line left out", "error", err)
		}
	}
	for user := range d.tables {
		if !there[user] {
			delete(d.tables, user)
		}
	}
}

// jobs tells how many there are.
func (d *daemon) jobs() int {
	n := 0
	for _, l := range d.tables {
		n += len(l.jobs)
	}
	return n
}

// start runs the jobs that want it, each unless its last run still goes on.
func (d *daemon) start(ctx context.Context, wanted func(*job) bool) {
	for user, l := range d.tables {
		for i := range l.jobs {
			j := l.jobs[i]
			if !wanted(&j) {
				continue
			}
			key := user + ":" + strconv.Itoa(j.line)
			d.mu.Lock()
			busy, many := d.running[key], len(d.running) >= maxRunning
			if !busy && !many {
				d.running[key] = true
			}
			d.mu.Unlock()
			if busy || many {
				d.log.Warn("job not started: its last run still goes on, or too many others do", "user", user, "line", j.line)
				continue
			}
			if !d.quiet {
				d.log.Info("USER " + user + " cmd " + j.command)
			}
			d.work.Go(func() {
				err := d.run(ctx, user, j)
				d.mu.Lock()
				delete(d.running, key)
				d.mu.Unlock()
				if err != nil && ctx.Err() == nil {
					d.log.Warn("job failed", "user", user, "line", j.line, "error", err)
				}
			})
		}
	}
}

// account is what /etc/passwd says of a user.
type account struct {
	uid, gid uint32
	home     string
	groups   []uint32
}

// findUser reads /etc/passwd and /etc/group below root.
func findUser(root, name string) (account, error) {
	a := account{}
	found := false
	text, err := os.ReadFile(root + "/etc/passwd")
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return a, fmt.Errorf("/etc/passwd: user %s: bad numbers", name)
		}
		a.uid, a.gid, a.home, found = uint32(uid), uint32(gid), f[5], true
	}
	if !found {
		return a, fmt.Errorf("there is no user %s in /etc/passwd", name)
	}
	if text, err = os.ReadFile(root + "/etc/group"); err == nil {
		for line := range strings.Lines(string(text)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) < 4 {
				continue
			}
			for _, m := range strings.Split(f[3], ",") {
				if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && m == name {
					a.groups = append(a.groups, uint32(gid))
				}
			}
		}
	}
	return a, nil
}

// maxOutput is how much of a job's output goes to the log.
const maxOutput = 2000

// execute runs a job by /bin/sh as its user. What it prints goes to the log.
func (d *daemon) execute(ctx context.Context, user string, j job) error {
	a, err := findUser("", user)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", j.command)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "USER=" + user, "LOGNAME=" + user, "HOME=" + a.home, "SHELL=/bin/sh"}, j.env...)
	cmd.Dir = a.home
	if fi, err := os.Stat(a.home); err != nil || !fi.IsDir() {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if int(a.uid) != os.Geteuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	out := &tail{max: maxOutput}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSpace(line); line != "" {
			d.log.Info(line, "user", user, "line", j.line)
		}
	}
	return err
}

// tail keeps the first bytes that are written to it.
type tail struct {
	max int
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), t.max-len(t.b))]...)
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }

// minutes lists the minutes to run at now, if last was the one before: also
// those that were missed, unless the clock has jumped. Of one that comes again
// it is none.
func minutes(last, now time.Time) []time.Time {
	now = now.Truncate(time.Minute)
	gap := now.Sub(last)
	if gap <= 0 && gap > -catchUp {
		return nil
	}
	if gap <= 0 || gap > catchUp {
		return []time.Time{now}
	}
	var out []time.Time
	for t := last.Add(time.Minute); !t.After(now); t = t.Add(time.Minute) {
		out = append(out, t)
	}
	return out
}

// Run is the service.
func Run(ctx context.Context, env *unit.Env) error {
	dir := Dir
	switch len(env.Args) {
	case 0:
	case 1:
		dir = env.Call.Path(env.Args[0])
	default:
		return fmt.Errorf("argument %q: expected the folder of the crontabs, or nothing", env.Args[1])
	}
	d := newDaemon(env.Log, dir)
	defer d.work.Wait()
	tree := uci.Tree{ConfDir: env.ConfigDir, NonStrict: true}
	settings := func() {
		if p, _ := tree.LoadCommitted("system"); p != nil {
			if s := p.Section("@system[0]"); s != nil {
				d.quiet = s.Int("cronloglevel", 7) > 7
			}
		}
	}
	tell := func() { env.Status(fmt.Sprintf("%d jobs of %d users", d.jobs(), len(d.tables))) }
	settings()
	d.load()
	tell()
	env.Ready()
	d.start(ctx, func(j *job) bool { return j.reboot })
	last := time.Now().Truncate(time.Minute)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		timer.Reset(now.Truncate(time.Minute).Add(lookEvery).Sub(now))
		select {
		case <-ctx.Done():
			return nil
		case <-env.Reload():
			env.Reloading()
			settings()
			d.load()
			tell()
			env.Ready()
		case <-timer.C:
			d.load()
			tell()
			for _, t := range minutes(last, time.Now()) {
				d.start(ctx, func(j *job) bool { return j.due(t) })
				last = t
			}
		}
	}
}
