package stage1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/rootdisk"
)

var errNoRoot = errors.New("the kernel's arguments do not say where the root file system is")

// hint says what a person can do about err.
func hint(err error) string {
	var dup *rootdisk.DuplicateError
	var missing *rootdisk.NotFoundError
	switch {
	case errors.As(err, &dup):
		return "unplug all but one of these disks, or give one a new id (sfdisk --disk-id) and set root= in its boot loader to match; images of one build share their id"
	case errors.As(err, &missing):
		return "plug the disk in, or correct root= in the boot menu (key e); is the driver of the disk in the image?"
	case errors.As(err, new(*rescueError)):
		return "write an image by the page of this device, or restart and choose another entry of the boot menu"
	case errors.Is(err, errNoRoot):
		return "add root=PARTUUID=<id of partition 2> in the boot menu (key e)"
	}
	return "start the other entry of the boot menu, or write the image again"
}

// rescue shows why the boot stands still and returns when it is worth trying
// again: somebody left the shell that a key opens, or a disk came or went. With
// panic=<seconds> the device reboots if nothing happens in that time.
func (b *boot) rescue(ctx context.Context, err error) {
	<-b.loaded // their disks would count as new ones
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.say(slog.LevelError, "cannot boot: %v", err)
	b.con.print("weft: hint: " + hint(err))
	limit := b.args.seconds("panic", 0)
	if limit == 0 {
		defer b.startRescue(ctx, err)() // its loop device would count as a new disk below
	}
	var changed <-chan struct{} // nil, and for ever silent, without events
	if events, err := watchBlock(ctx); err != nil {
		b.say(slog.LevelWarn, "%v", err)
	} else {
		defer events.close()
		changed = events.changed
	}
	var asked *rescueError
	if errors.As(err, &asked) {
		changed = nil // another try would come to the same
	}
	text := "weft: rescue: press [enter] for a shell; trying again when a disk comes or goes"
	if changed == nil {
		text = "weft: rescue: press [enter] for a shell"
	}
	var reboot <-chan time.Time
	if limit > 0 {
		text += fmt.Sprintf("; reboot in %.0f s", limit.Seconds())
		timer := time.NewTimer(limit)
		defer timer.Stop()
		reboot = timer.C
	}
	b.con.print(text)

	if b.listen != nil && !b.decided {
		// One reader per console: the f key is answered here from now on.
		b.listen.cancel()
		b.reason, b.decided = keyReason(<-b.listen.result), true
	}
	keys := b.con.listen(ctx)
	console := waitForHelp(ctx, keys, changed, reboot)
	cancel()
	for range keys {
	}
	switch console {
	case "":
	case helpDisks:
		b.con.print("weft: rescue: the disks have changed: trying again")
	case helpReboot:
		b.con.print("weft: rescue: nobody came: rebooting")
		unix.Sync()
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			b.say(slog.LevelError, "reboot: %v", err)
		}
	default:
		b.shell(console)
	}
}

// What waitForHelp returns besides the path of a console.
const (
	helpDisks  = "disks"
	helpReboot = "reboot"
)

// waitForHelp waits for the first of a key, a disk and the time to reboot. It
// returns the console's path, helpDisks, helpReboot, or "" when ctx ends.
func waitForHelp(ctx context.Context, keys <-chan key, changed <-chan struct{}, reboot <-chan time.Time) string {
	for {
		select {
		case k, ok := <-keys:
			if ok {
				return k.console.path
			}
			keys = nil // no console to listen on
		case <-changed:
			if _, err := os.Stat(rescueBusy); err == nil {
				continue // an image is being written
			}
			return helpDisks
		case <-reboot:
			return helpReboot
		case <-ctx.Done():
			return ""
		}
	}
}

// shell runs the sh applet, which is this program, on a console until it ends.
func (b *boot) shell(path string) {
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		b.say(slog.LevelError, "open %s for a shell: %v", path, err)
		return
	}
	defer tty.Close()
	fmt.Fprintln(tty, "weft: rescue: \"exit\" tries to boot again")
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{"sh"},
		Dir:         "/",
		Env:         []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "HOME=/", "TERM=linux", "PS1=rescue# "},
		Stdin:       tty,
		Stdout:      tty,
		Stderr:      tty,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	}
	err = cmd.Run()
	b.con.reopen(path) // the kernel hangs a terminal up when its session ends
	if err != nil {
		b.say(slog.LevelWarn, "the rescue shell ended: %v", err)
	}
}

// rescueError says that the boot loader asks for the rescue system.
type rescueError struct{}

func (e *rescueError) Error() string {
	return "no slot can be started, or the rescue system was chosen in the boot menu"
}
