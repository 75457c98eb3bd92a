package healthgate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/slot"
	"weft/init/unit"
)

// Run watches the slot on trial until it is confirmed or given up; on a boot that
// is no trial it ends at once. Arguments after -- say where things are on a host:
// --cmdline FILE (default /proc/cmdline), --data DIR (default /data), --boot DIR
// (default: the boot partition is mounted for each change), --console FILE
// (default /dev/console).
func Run(ctx context.Context, env *unit.Env) error {
	set := flag.NewFlagSet(env.Name, flag.ContinueOnError)
	set.SetOutput(env.Call.Stderr)
	cmdline := set.String("cmdline", "/proc/cmdline", "the kernel's arguments")
	data := set.String("data", "/data", "where the data file system is mounted")
	boot := set.String("boot", "", "boot partition, where it is mounted for good")
	console := set.String("console", "/dev/console", "where people are told")
	if err := set.Parse(env.Args); err != nil {
		return fmt.Errorf("healthgate: %w", err)
	}
	text, err := os.ReadFile(*cmdline)
	if err != nil {
		return fmt.Errorf("find out whether the slot is on trial: %w", err)
	}
	if !onTrial(string(text)) {
		return nil
	}
	running, err := slot.FromCmdline(string(text))
	if err != nil {
		return err
	}
	w := &watch{env: env, slot: running, console: *console, data: *data, mount: slot.MountBoot}
	if *boot != "" {
		w.mount = func(context.Context) (string, func() error, error) { return *boot, func() error { return nil }, nil }
	}
	return w.run(ctx)
}

// onTrial says whether the boot loader has started this boot as a trial.
func onTrial(cmdline string) bool {
	for word := range strings.FieldsSeq(cmdline) {
		if strings.HasPrefix(word, "weft.trial=") {
			return true
		}
	}
	return false
}

// watch is the gate in operation.
type watch struct {
	env     *unit.Env
	slot    slot.ID
	console string
	data    string
	mount   func(context.Context) (dir string, done func() error, err error)

	mu     sync.Mutex
	cfg    settings
	gate   *gate
	state  string // watching, holding, confirmed, failed, stopped
	byHand chan struct{}
}

// Bounds of what the gate does at its end.
const (
	writeLimit  = 30 * time.Second // slot state
	giveBack    = 8 * time.Second  // the same, while the system goes down
	rebootLimit = 90 * time.Second // an orderly reboot
)

func (w *watch) run(ctx context.Context) error {
	cfg, err := loadSettings(w.env.ConfigDir)
	if err != nil {
		w.env.Log.Warn("using defaults where the configuration is at fault", "error", err)
	}
	var before *slot.Before
	if cfg.enabled {
		b, err := slot.LoadBefore(w.data, w.slot)
		switch {
		case err == nil:
			before = &b
		case errors.Is(err, fs.ErrNotExist):
			w.env.Log.Info("the uplink is not compared: nothing was noted before the upgrade")
		default:
			w.env.Log.Warn("the uplink is not compared", "error", err)
		}
	}
	w.cfg, w.byHand = cfg, make(chan struct{}, 1)
	w.gate, w.state = newGate(time.Now(), cfg.hold, cfg.deadline), "watching"

	if !cfg.enabled {
		w.env.Ready()
		return w.confirm(ctx, "the health gate is switched off")
	}
	runCtx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	client := bus.Connect(runCtx, w.env.BusPath, w.env.Log)
	defer client.Close()
	if _, err := client.Publish(w.object()); err != nil {
		// The decision does not depend on who can see it.
		w.env.Log.Warn("publish the object healthgate", "error", err)
	}
	w.env.Ready()
	w.env.Log.Info("slot on trial", "slot", string(w.slot), "hold", cfg.hold, "deadline", cfg.deadline)

	o := newObserver(client, before, cfg.targets)
	for _, h := range o.hosts {
		work.Go(func() { h.ask(runCtx) })
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	told := ""
	for {
		now := time.Now()
		seen := o.look(ctx, now)
		if ctx.Err() != nil {
			return w.leave()
		}
		w.mu.Lock()
		v := w.gate.observe(now, seen)
		reason := w.gate.reason()
		if v == undecided {
			w.state = "watching"
			if reason.check == "" {
				w.state = "holding"
			}
		}
		w.mu.Unlock()
		switch v {
		case confirm:
			return w.confirm(ctx, "all has been well for "+cfg.hold.String())
		case giveUp:
			return w.giveUp(ctx, client, reason)
		}
		if text := reason.String(); text != told {
			told = text
			if reason.check == "" {
				w.env.Log.Info("all is well", "hold", cfg.hold)
				w.env.Status("all is well, holding")
			} else {
				w.env.Log.Warn("not well yet", "check", reason.check, "detail", reason.detail)
				w.env.Status("waiting for " + text)
			}
		}
		select {
		case <-ctx.Done():
			return w.leave()
		case <-w.byHand:
			return w.confirm(ctx, "confirmed by hand")
		case <-tick.C:
		}
	}
}

// change opens the slot state and has f change it, if the slot is still on trial.
func (w *watch) change(ctx context.Context, f func(*slot.Store) error) (decided bool, err error) {
	dir, done, err := w.mount(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, done()) }()
	s, err := slot.Open(dir)
	if err != nil {
		return false, err
	}
	for _, n := range s.Notes() {
		w.env.Log.Warn("slot state repaired", "note", n)
	}
	if s.State().Trial != w.slot {
		return true, nil // by hand, or by an upgrade that came after
	}
	return false, f(s)
}

func (w *watch) setState(s string) {
	w.mu.Lock()
	w.state = s
	w.mu.Unlock()
}

// confirm makes the slot the preferred one and ends the gate.
func (w *watch) confirm(ctx context.Context, why string) error {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	decided, err := w.change(ctx, func(s *slot.Store) error { return s.Confirm(w.slot) })
	if err != nil {
		// Started anew by the supervisor the gate tries again.
		return fmt.Errorf("confirm slot %s: %w", w.slot, err)
	}
	if decided {
		w.env.Log.Info("the slot is not on trial any more", "slot", string(w.slot))
		return nil
	}
	w.setState("confirmed")
	w.say("slot %s is confirmed: %s", w.slot, why)
	w.env.Log.Info("slot confirmed", "slot", string(w.slot), "why", why)
	return nil
}

// giveUp says which check failed, gives the slot up and reboots.
func (w *watch) giveUp(ctx context.Context, client *bus.Client, p problem) error {
	write, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	noFallback := false
	decided, err := w.change(write, func(s *slot.Store) error {
		if !s.State().Bootable(w.slot.Other()) {
			noFallback = true
			return nil
		}
		at := time.Now()
		if at.Year() < 2024 {
			at = time.Time{} // no clock, and nobody has set it
		}
		return s.Fail(slot.Result{Slot: w.slot, Check: p.check, Detail: p.detail, At: at})
	})
	switch {
	case decided:
		w.env.Log.Info("the slot is not on trial any more", "slot", string(w.slot))
		return nil
	case noFallback:
		w.setState("failed")
		w.say("slot %s is not well (%s), but slot %s holds no system to go back to", w.slot, p, w.slot.Other())
		w.env.Log.Error("not well, and no other slot to go back to", "slot", string(w.slot), "check", p.check, "detail", p.detail)
		return nil
	}
	w.setState("failed")
	if err != nil {
		// The boot loader counts: with its tries used up the slot is left all the same.
		w.env.Log.Error("the reason could not be kept", "error", err)
	}
	w.say("slot %s is given up, %s; rebooting into slot %s", w.slot, p, w.slot.Other())
	w.env.Log.Error("slot given up, rebooting", "slot", string(w.slot), "check", p.check, "detail", p.detail)
	w.env.Status("given up: " + p.String())
	return w.reboot(ctx, client)
}

// reboot reboots in order, or at once if that does not come to pass.
func (w *watch) reboot(ctx context.Context, client *bus.Client) error {
	call, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if _, err := client.Call(call, "system", "reboot", nil); err != nil {
		w.env.Log.Warn("reboot over the bus", "error", err)
		if err := unix.Kill(1, unix.SIGTERM); err != nil {
			w.env.Log.Warn("reboot by a signal", "error", err)
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(rebootLimit):
	}
	w.say("the system does not go down: rebooting at once")
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	return nil
}

// leave is for a gate that is stopped before it has decided: somebody reboots, and
// the try that this boot has used does not count.
func (w *watch) leave() error {
	w.setState("stopped")
	ctx, cancel := context.WithTimeout(context.Background(), giveBack)
	defer cancel()
	if _, err := w.change(ctx, func(s *slot.Store) error { return s.GiveBack() }); err != nil {
		return fmt.Errorf("give the try back that this boot has used: %w", err)
	}
	w.env.Log.Info("stopped before it was decided: this try does not count", "slot", string(w.slot))
	return nil
}

// say tells people at the console. One that hangs or is missing holds nothing up.
func (w *watch) say(format string, args ...any) {
	f, err := os.OpenFile(w.console, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		w.env.Log.Warn("nobody is told at the console", "error", err)
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "weft: health gate: "+format+"\r\n", args...) // an error here has nobody to be told to
}
