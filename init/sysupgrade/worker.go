package sysupgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/bus"
	"weft/init/slot"
)

// Request is what an upgrade is asked to do: the arguments of `system sysupgrade`.
// The first four are stock's; prefix and command are taken and not used, since no
// foreign program takes over here.
type Request struct {
	Path    string         `json:"path"` // file or URL
	Force   bool           `json:"force,omitempty"`
	Backup  string         `json:"backup,omitempty"` // archive of settings; "" keeps none
	Options map[string]any `json:"options,omitempty"`
	Prefix  string         `json:"prefix,omitempty"`
	Command string         `json:"command,omitempty"`

	IgnoreMinor bool `json:"ignore_minor,omitempty"`
	NoReboot    bool `json:"no_reboot,omitempty"` // leave the restart to the caller
	Delete      bool `json:"delete,omitempty"`    // the image file is ours: remove it afterwards
}

// option is a number among the options; bool counts as 0 or 1.
func (r *Request) option(name string, def int) int {
	switch v := r.Options[name].(type) {
	case float64:
		return int(v)
	case int32:
		return int(v)
	case int64:
		return int(v)
	case bool:
		if v {
			return 1
		}
		return 0
	}
	return def
}

// SavePartitions is false with sysupgrade -p.
func (r *Request) SavePartitions() bool { return r.option("save_partitions", 1) != 0 }

// CurrentSlot is true with sysupgrade -s.
func (r *Request) CurrentSlot() bool { return r.option("use_curr_part", 0) != 0 }

// Submit leaves a request for Work.
func Submit(dir string, r *Request) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("ask for the upgrade: %w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("ask for the upgrade: %w", err)
	}
	// What an earlier one came to must not be taken for this one's.
	if err := os.Remove(filepath.Join(dir, statusFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ask for the upgrade: %w", err)
	}
	if err := replace(filepath.Join(dir, requestFile), text); err != nil {
		return fmt.Errorf("ask for the upgrade: %w", err)
	}
	return nil
}

func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ReadStatus is how far the upgrade is; false if there was none since the boot.
func ReadStatus(dir string) (Status, bool) {
	var s Status
	text, err := os.ReadFile(filepath.Join(dir, statusFile))
	if err != nil || json.Unmarshal(text, &s) != nil {
		return Status{}, false
	}
	return s, true
}

// Work carries out the request that Submit left, keeps the status file up to date
// and, when it succeeds, restarts the device. It is what the supervisor runs, so
// that an upgrade outlives the session that asked for it.
func Work(ctx context.Context, dir string, say func(format string, args ...any), reboot func(context.Context) error) error {
	unlock, err := lockWithin(ctx, dir, time.Minute) // whoever judges another image now lets go soon
	if err != nil {
		return err
	}
	defer unlock()
	text, err := os.ReadFile(filepath.Join(dir, requestFile))
	if err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, requestFile)); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	var req Request
	if err := json.Unmarshal(text, &req); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	p := &Progress{}
	last := Status{}
	p.Changed = func(s Status) {
		if s.Step != last.Step || s.Message != last.Message {
			say("%s %s", s.Step, s.Message)
		}
		last = s
		if text, err := json.Marshal(s); err == nil {
			_ = replace(filepath.Join(dir, statusFile), text)
		}
	}
	replaced, err := Do(ctx, &req, p)
	p.Finish(err, err == nil && !req.NoReboot || replaced)
	if replaced {
		// What runs is no longer on the disk: nothing must be read from it or
		// written to it any more, so there is no orderly way down.
		say("the disk holds another system now: restarting at once")
		time.Sleep(2 * time.Second) // whoever watches sees it
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	if err != nil {
		return err
	}
	if req.NoReboot {
		return nil
	}
	return reboot(ctx)
}

func lockWithin(ctx context.Context, dir string, wait time.Duration) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		unlock, err := Lock(dir)
		if !errors.Is(err, ErrBusy) {
			return unlock, err
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-t.C:
		}
	}
}

// Do carries out a request on the running system, but for the restart. replaced
// says that a stock image took the place of the running system: whatever the
// error, the device must be restarted at once, without an orderly shutdown.
func Do(ctx context.Context, req *Request, p *Progress) (replaced bool, err error) {
	disk, err := unique()
	oneSlot := errors.Is(err, slot.ErrOneSlot)
	if err != nil && !oneSlot {
		return false, err
	}
	dev, _, err := ThisDevice()
	if err != nil && !errors.Is(err, slot.ErrOneSlot) {
		return false, err
	}
	running, err := slot.Running()
	if err != nil {
		return false, err
	}
	keep := Keep{Config: req.Backup != "", IgnoreMinor: req.IgnoreMinor}
	o := Options{Force: req.Force, Keep: keep}
	if req.Backup != "" {
		f, err := os.Open(req.Backup)
		if err != nil {
			return false, fmt.Errorf("read the settings: %w", err)
		}
		defer f.Close()
		if err := CheckBackup(f); err != nil {
			return false, fmt.Errorf("read the settings: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return false, fmt.Errorf("read the settings: %w", err)
		}
		o.Config = f
	}
	p.step(StepCheck)
	src, err := Open(ctx, req.Path, p)
	if err != nil {
		return false, err
	}
	defer src.Close()
	if f, ok := src.(*File); ok && req.Delete {
		f.temp = true
	}
	head, err := ReadHead(ctx, src)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if head.Kind == KindStock && !req.CurrentSlot() {
		var config []byte
		if o.Config != nil {
			if config, err = io.ReadAll(o.Config); err != nil {
				return false, fmt.Errorf("read the settings: %w", err)
			}
		}
		err := stock(ctx, req, dev, disk, config, p)
		return err == nil || errors.Is(err, ErrSettings), err
	}
	if oneSlot || req.CurrentSlot() || !req.SavePartitions() {
		return false, fmt.Errorf("%w: %s", ErrRefused, notHere(oneSlot, req))
	}
	to := running.Other()
	node := disk.Root(to)
	root, err := OpenNode(node.Path)
	if err != nil {
		return false, fmt.Errorf("open the root partition of slot %s: %w", to, err)
	}
	defer root.Close()
	o.Before = before(ctx, p)
	t := &Target{Slot: to, Root: root, RootSize: int64(node.Bytes), Data: DataDir, Boot: slot.MountBoot}
	if err := mounted(DataDir); err != nil {
		return false, err
	}
	r, err := Upgrade(ctx, src, dev, t, o, p)
	if err == nil && r.Version != "" {
		p.note("%s is in slot %s and starts with the next boot", r.Version, to)
	}
	return false, err
}

// notHere says why an image cannot be written while this system runs from two
// slots.
func notHere(oneSlot bool, req *Request) string {
	switch {
	case oneSlot:
		return "this disk has room for one system only: write the image to the disk from another system, the settings come back from a backup"
	case req.CurrentSlot():
		return "-s: the running slot cannot be overwritten while it runs; without -s the other slot is written"
	}
	return "-p: a new partition table would take the data partition and the other slot with it; without -p they stay"
}

// before asks what the network is like; without an answer the new system is not
// compared with anything.
func before(ctx context.Context, p *Progress) *slot.Before {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := bus.Dial(ctx, bus.DefaultSocket)
	if err == nil {
		defer c.Close()
		b, err := Snapshot(ctx, c)
		if err == nil {
			return b
		}
		p.note("%v: the new system's uplinks are not compared", err)
		return nil
	}
	p.note("the bus does not answer (%v): the new system's uplinks are not compared", err)
	return nil
}

// mounted makes sure that a folder is a file system of its own on a disk.
func mounted(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the data partition is not mounted: %w", err)
	}
	parent, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return err
	}
	if device(st) == device(parent) {
		return fmt.Errorf("the data partition is not mounted at %s: settings and boot files have no place (in failsafe mode run mount_root first)", dir)
	}
	return nil
}
