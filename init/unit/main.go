package unit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Paths a service uses when no flag says otherwise.
const (
	DefaultConfigDir = "/etc/config"
	DefaultBusPath   = "/var/run/ubus/ubus.sock"
	DefaultRunDir    = "/var/run" // the state folder is DefaultRunDir/<name>
)

// Env is what a service gets from Main.
type Env struct {
	Name      string   // the name the service was called by, without folders
	ConfigDir string   // UCI files
	BusPath   string   // ubus socket
	StateDir  string   // the service's own folder for what need not survive a reboot; Main does not create it
	Args      []string // what followed the common flags
	Call      *Call
	Log       *slog.Logger

	ctx      context.Context
	notifyTo string
	watchdog time.Duration // 0: the supervisor asked for no health reports
	reload   chan struct{}
	work     sync.WaitGroup
	tidy     sync.Once
}

// Main makes an applet of a service. It parses --config-dir, --bus, --state-dir
// and --debug, hands the rest of the arguments over in Env.Args, and calls run
// with a context that ends on SIGTERM, on SIGINT and with the caller's context.
// An error from run is logged and makes the exit code 1, unless it is the
// context's own; wrong flags make it 2.
func Main(run func(ctx context.Context, env *Env) error) Func {
	return func(ctx context.Context, c *Call) int {
		env, code := newEnv(c)
		if env == nil {
			return code
		}
		ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
		defer cancel()
		env.ctx = ctx
		stopHup := env.watchHangup(ctx)

		err := run(ctx, env)

		stopping := ctx.Err()
		cancel()
		stopHup()
		env.work.Wait()
		if err != nil && !(stopping != nil && errors.Is(err, stopping)) {
			env.Log.Error("stopped by an error", "error", err)
			return 1
		}
		return 0
	}
}

// newEnv parses the common flags. A nil Env means: stop with the exit code.
func newEnv(c *Call) (*Env, int) {
	name := filepath.Base(c.Args[0])
	env := &Env{
		Name:     name,
		Call:     c,
		notifyTo: c.Getenv("NOTIFY_SOCKET"),
		reload:   make(chan struct{}, 1),
	}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&env.ConfigDir, "config-dir", DefaultConfigDir, "folder of the UCI `files`")
	fs.StringVar(&env.BusPath, "bus", DefaultBusPath, "ubus `socket`")
	fs.StringVar(&env.StateDir, "state-dir", filepath.Join(DefaultRunDir, name), "`folder` for state that a reboot may lose")
	debug := fs.Bool("debug", false, "log at debug level")
	if err := fs.Parse(c.Args[1:]); err != nil {
		usage := func(w io.Writer) {
			fmt.Fprintf(w, "Usage: %s [flags] [arguments]\n", name)
			fs.SetOutput(w)
			fs.PrintDefaults()
		}
		if errors.Is(err, flag.ErrHelp) {
			usage(c.Stdout)
			return nil, 0
		}
		fmt.Fprintf(c.Stderr, "%s: %v\n", name, err)
		usage(c.Stderr)
		return nil, 2
	}
	env.Args = fs.Args()
	env.ConfigDir = c.Path(env.ConfigDir)
	env.BusPath = c.Path(env.BusPath)
	env.StateDir = c.Path(env.StateDir)

	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	env.Log = NewLog(c.Stderr, env.notifyTo != "", level)

	if s := c.Getenv("WATCHDOG_USEC"); s != "" && env.notifyTo != "" {
		us, err := strconv.ParseInt(s, 10, 64)
		if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
			env.Log.Warn("WATCHDOG_USEC is not a number of microseconds up to a day: health is not reported", "value", s)
		} else {
			env.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return env, 0
}

// watchHangup feeds Reload from SIGHUP until the returned stop is called.
func (e *Env) watchHangup(ctx context.Context) (stop func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				select {
				case e.reload <- struct{}{}:
				default: // one is waiting already, and it will see the newest state
				}
			}
		}
	}()
	return func() {
		signal.Stop(hup)
		<-done
	}
}

// Ready tells the supervisor that the service does its work: what needs it may
// start. Called again after Reloading it ends the reload. What the start has
// used is given back to the system soon after.
func (e *Env) Ready() {
	e.notify("READY=1")
	if e.notifyTo != "" {
		e.tidy.Do(func() { time.AfterFunc(settled, debug.FreeOSMemory) })
	}
}

// settled is how long after its start a service has gathered what it keeps: by
// itself Go would look in two minutes, and on a small device many services wait.
const settled = 3 * time.Second

// Reloading tells the supervisor that the service is taking in a new
// configuration; Ready ends it.
func (e *Env) Reloading() { e.notify("RELOADING=1") }

// Status sets the one line that `service status` shows for the service.
func (e *Env) Status(text string) { e.notify("STATUS=" + oneLine(text)) }

// Reload delivers one value for each SIGHUP; several that arrive before the
// service looks become one.
func (e *Env) Reload() <-chan struct{} { return e.reload }

// Health calls check every half of the interval that the supervisor set
// (WATCHDOG_USEC), in a goroutine that ends with the service. A nil result
// tells the supervisor that the service is alive; an error becomes the status
// line and keeps the sign of life back, and when the whole interval passes
// without one the supervisor restarts the service. The context of each check
// ends after half an interval. Where nobody asked for health, check is never
// called.
func (e *Env) Health(check func(ctx context.Context) error) {
	if e.watchdog == 0 {
		return
	}
	half := e.watchdog / 2
	e.work.Go(func() {
		tick := time.NewTicker(half)
		defer tick.Stop()
		failed := false
		for {
			ctx, cancel := context.WithTimeout(e.ctx, half)
			err := check(ctx)
			cancel()
			switch {
			case e.ctx.Err() != nil:
				return
			case err != nil:
				failed = true
				e.Log.Warn("health check failed", "error", err)
				e.Status("unhealthy: " + err.Error())
			case failed:
				failed = false
				e.notify("STATUS=\nWATCHDOG=1")
			default:
				e.notify("WATCHDOG=1")
			}
			select {
			case <-e.ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

func (e *Env) notify(msg string) {
	if err := Notify(e.notifyTo, msg); err != nil {
		e.Log.Warn("supervisor does not hear this service", "error", err)
	}
}
