package stage1

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/rootdisk"
	"weft/init/slot"
	"weft/init/stage1/kmod"
)

// judgeSlots looks at the slot state once the boot partition was read: it says
// why the other slot was given up, notes that a trial has used up its tries, and
// has damaged copies of the state written anew.
func (b *boot) judgeSlots(part *bootPart, st slot.State, notes []string) {
	other := b.slot.Other()
	last := st.Last
	change := func(what string, f func(s *slot.Store) error) {
		err := part.change(func(dir string) error {
			s, err := slot.Open(dir)
			if err != nil {
				return err
			}
			return f(s)
		})
		if err != nil {
			b.say(slog.LevelWarn, "%s: %v", what, err)
		}
	}
	if len(notes) > 0 {
		for _, n := range notes {
			b.say(slog.LevelWarn, "slot state: %s", n)
		}
		change("write the slot state anew", func(*slot.Store) error { return nil })
	}
	if st.Trial == other && st.TriesLeft == 0 {
		last = slot.Result{Slot: other, Check: "boot", Detail: fmt.Sprintf("not confirmed in %d tries: it stopped, hung or lost power before its health was known", st.Given)}
		if t := time.Now(); t.Year() > 2020 {
			last.At = t
		}
		change("note that slot "+string(other)+" failed", func(s *slot.Store) error { return s.Fail(last) })
		st.Bad = map[slot.ID]bool{other: true}
	}
	if last.Slot == other && st.Bad[other] {
		b.say(slog.LevelWarn, "slot %s was given up, slot %s runs: %s: %s", other, b.slot, last.Check, last.Detail)
	}
}

// giveUp turns to the other slot when this one cannot make a root file system and
// the other one once came up: the state says so, and the machine reboots. It
// returns where there is nothing to turn to, or where the fault may lie in the
// disk that holds both.
func (b *boot) giveUp(why error) error {
	var dup *rootdisk.DuplicateError
	var gone *rootdisk.NotFoundError
	var asked *rescueError
	if b.disk == nil || b.disk.Table == nil || errors.As(why, &dup) || errors.As(why, &gone) || errors.As(why, &asked) {
		return nil
	}
	<-b.loaded
	part := b.bootPartition()
	if err := part.mount(unix.MS_RDONLY); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	st, _ := slot.Read(bootDir)
	other := b.slot.Other()
	_, missing := os.Stat(filepath.Join(bootDir, slot.Files(other)[0].Path))
	if err := part.unmount(); err != nil {
		return err
	}
	if !st.Confirmed[other] || st.Bad[other] || missing != nil {
		return nil
	}
	err := part.change(func(dir string) error {
		s, err := slot.Open(dir)
		if err != nil {
			return err
		}
		return s.Fail(slot.Result{Slot: b.slot, Check: "stage1", Detail: why.Error()})
	})
	if err != nil {
		return err
	}
	b.say(slog.LevelError, "slot %s cannot be started: %v", b.slot, why)
	b.con.print(fmt.Sprintf("weft: rebooting into slot %s", other))
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// watchdogTimeout is procd's, in seconds; process 1 goes on with it.
const watchdogTimeout = 30

// armWatchdog starts the hardware's watchdog, or the kernel's own where there is
// none, so that a slot on trial that hangs from here on is reset and the boot
// loader counts. Process 1 takes it over. Without any, a hang needs a person.
func (b *boot) armWatchdog() {
	if err := loadNetworkDrivers(romDir); err != nil { // all drivers of devices, those of watchdogs included
		b.say(slog.LevelWarn, "%v", err)
	}
	f, err := openWatchdog("/dev/watchdog")
	if errors.Is(err, fs.ErrNotExist) {
		set, openErr := kmod.Open(romDir)
		if openErr == nil && set.Has("softdog") {
			openErr = set.Load("softdog", "")
		}
		if openErr != nil {
			b.say(slog.LevelWarn, "load the software watchdog: %v", openErr)
		}
		f, err = openWatchdog("/dev/watchdog")
	}
	if err != nil {
		b.say(slog.LevelWarn, "slot %s is on trial without a watchdog: %v", b.slot, err)
		return
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, watchdogTimeout); err != nil {
		b.say(slog.LevelWarn, "set the watchdog's time-out to %d s: %v", watchdogTimeout, err)
	}
	b.watchdog = f
	b.mark("watchdog")
}

// openWatchdog opens a watchdog, which arms it; its node in devtmpfs is there when
// the driver has registered it.
func openWatchdog(path string) (*os.File, error) { return os.OpenFile(path, os.O_WRONLY, 0) }

// bootFile is where the boot partition, mounted at bootDir, has a file of a slot.
func bootFile(id slot.ID, image string) string {
	for _, f := range slot.Files(id) {
		if f.Image == image {
			return filepath.Join(bootDir, f.Path)
		}
	}
	return filepath.Join(bootDir, image)
}
