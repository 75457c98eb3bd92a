package servicecli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// power is how the three commands reach the kernel and PID 1.
type power struct {
	signal func(sig syscall.Signal) error
	now    func(command int) error
	sync   func()
}

func thisPower() power {
	return power{
		signal: func(sig syscall.Signal) error { return syscall.Kill(1, sig) },
		now:    unix.Reboot,
		sync:   unix.Sync,
	}
}

// Reboot, Poweroff and Halt are the applets of those names, with busybox's
// options: -d SECONDS waits first, -n does not sync, -f does not ask PID 1 for
// an orderly shutdown.
func Reboot(ctx context.Context, c *unit.Call) int {
	return thisPower().run(ctx, c, syscall.SIGTERM, unix.LINUX_REBOOT_CMD_RESTART)
}

// Poweroff turns the device off.
func Poweroff(ctx context.Context, c *unit.Call) int {
	return thisPower().run(ctx, c, syscall.SIGUSR2, unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Halt stops the device and leaves the power on.
func Halt(ctx context.Context, c *unit.Call) int {
	return thisPower().run(ctx, c, syscall.SIGUSR1, unix.LINUX_REBOOT_CMD_HALT)
}

func (p power) run(ctx context.Context, c *unit.Call, sig syscall.Signal, command int) int {
	name := filepath.Base(c.Args[0])
	help := "Usage: " + name + " [-d SECONDS] [-n] [-f]\n\n  -d SECONDS  wait first\n  -n          do not sync\n  -f          at once, without stopping services\n"
	wrong := func(format string, args ...any) int {
		fmt.Fprintf(c.Stderr, "%s: %s\n%s", name, fmt.Sprintf(format, args...), help)
		return 2
	}
	var delay time.Duration
	force, noSync := false, false
	for args := c.Args[1:]; len(args) > 0; args = args[1:] {
		a := args[0]
		if a == "--help" || a == "-h" {
			io.WriteString(c.Stdout, help)
			return 0
		}
		if len(a) < 2 || a[0] != '-' {
			return wrong("%q is not an option", a)
		}
		for i := 1; i < len(a); i++ {
			switch a[i] {
			case 'f':
				force = true
			case 'n':
				noSync = true
			case 'd':
				v := a[i+1:]
				if v == "" && len(args) > 1 {
					args = args[1:]
					v = args[0]
				}
				s, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31)
				if err != nil {
					return wrong("-d wants seconds, not %q", v)
				}
				delay = time.Duration(s) * time.Second
				i = len(a)
			default:
				return wrong("unknown option -%c", a[i])
			}
		}
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return 1
		}
	}
	if !noSync {
		p.sync()
	}
	if !force {
		if err := p.signal(sig); err != nil {
			fmt.Fprintf(c.Stderr, "%s: PID 1 does not take the signal: %v; -f does it without\n", name, err)
			return 1
		}
		return 0
	}
	if err := p.now(command); err != nil {
		fmt.Fprintf(c.Stderr, "%s: the kernel refuses: %v\n", name, err)
		return 1
	}
	return 0
}
