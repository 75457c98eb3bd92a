// Guest is the smallest system that the lab can talk to: an init that prints, mounts what it needs, and runs a POSIX
// shell on each console with a few commands of its own. The lab's tests boot it with a bare kernel, and the boot bench
// measures it as the floor below which no init in Go can get.
//
// With "bench" on the kernel command line it prints one line and switches the machine off.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func main() {
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == "sh" {
		os.Exit(shell(os.Stdin, os.Stdout))
	}
	fmt.Println("weft: starting on Linux (guest)") // as the initramfs of an image does
	for _, m := range []struct{ fs, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		os.MkdirAll(m.dir, 0o755)
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil && err != unix.EBUSY {
			fmt.Printf("guest: mount %s: %v\n", m.dir, err)
		}
	}
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	fmt.Printf("weft: ready in %.2f s (guest)\n", time.Duration(now.Nano()).Seconds())
	cmdline, _ := os.ReadFile("/proc/cmdline")
	if strings.Contains(string(cmdline), "bench") {
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	modules, _ := os.ReadFile("/modules")
	for name := range strings.FieldsSeq(string(modules)) {
		f, err := os.Open(name)
		if err == nil {
			err = kmodule.FileInit(f, "", 0)
			f.Close()
		}
		if err != nil {
			fmt.Printf("guest: load %s: %v\n", name, err)
		}
	}
	var consoles sync.WaitGroup
	for _, name := range []string{"ttyS0", "hvc0"} {
		consoles.Go(func() { console(name) })
	}
	consoles.Wait()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// console asks for Enter and then runs a shell in a session of its own, again and again. A virtio console appears only
// after its driver has talked to the host.
func console(name string) {
	for tries := 0; ; tries++ {
		if _, err := os.Stat("/dev/" + name); err == nil {
			break
		}
		if tries == 100 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for {
		tty, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			fmt.Printf("guest: %v\n", err)
			return
		}
		fmt.Fprint(tty, "\nPlease press Enter to activate this console.\n")
		var b [1]byte
		for b[0] != '\n' {
			if _, err := tty.Read(b[:]); err != nil {
				return
			}
		}
		c := exec.Command("/proc/self/exe")
		c.Args = []string{"sh"}
		c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
		c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
		if err := c.Run(); err != nil {
			fmt.Fprintf(tty, "guest: shell: %v\n", err)
		}
		tty.Close()
	}
}

// shell reads commands until in ends and returns the last status.
func shell(in io.Reader, out io.Writer) int {
	builtin := func(ctx context.Context, args []string) error {
		hc := interp.HandlerCtx(ctx)
		switch args[0] {
		case "cat":
			for _, name := range args[1:] {
				f, err := os.Open(name)
				if err != nil {
					fmt.Fprintf(hc.Stderr, "cat: %v\n", err)
					return interp.ExitStatus(1)
				}
				_, err = io.Copy(hc.Stdout, f)
				f.Close()
				if err != nil {
					return interp.ExitStatus(1)
				}
			}
			return nil
		case "sh":
			if status := shell(in, out); status != 0 {
				return interp.ExitStatus(status)
			}
			return nil
		case "hang":
			time.Sleep(time.Hour)
			return nil
		case "kmsg":
			return os.WriteFile("/dev/kmsg", []byte(strings.Join(args[1:], " ")), 0)
		case "poweroff":
			return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		fmt.Fprintf(hc.Stderr, "%s: not found\n", args[0])
		return interp.ExitStatus(127)
	}
	r, err := interp.New(interp.StdIO(nil, out, out), interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return builtin }))
	if err != nil {
		fmt.Fprintln(out, err)
		return 2
	}
	var last int
	fmt.Fprint(out, "guest# ")
	p := syntax.NewParser()
	for stmts, err := range p.InteractiveSeq(in) {
		if err != nil {
			fmt.Fprintln(out, err)
			return 2
		}
		if p.Incomplete() {
			fmt.Fprint(out, "> ")
			continue
		}
		for _, s := range stmts {
			err := r.Run(context.Background(), s)
			var status interp.ExitStatus
			errors.As(err, &status)
			last = int(status)
			if r.Exited() {
				return last
			}
		}
		fmt.Fprint(out, "guest# ")
	}
	return last
}
