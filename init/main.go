// Command init is the device binary: the first program of the initramfs, PID 1,
// and, by the name it is called by, every applet and service of the device.
//
// The table in applets.go is the one list of what it can be; the program of the
// initramfs (build tag initramfs) has the short one in applets_initramfs.go.
// Called as "weft", it takes the name from its first argument.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"weft/init/applet/shell"
	"weft/init/applet/zone"
	"weft/init/stage1"
	"weft/init/unit"
)

func main() {
	if os.Getpid() == 1 {
		boot()
	}
	zone.Set()
	shell.SetApplets(lookup)
	os.Exit(run(context.Background(), unit.OSCall()))
}

// boot is what PID 1 does; it does not return where it succeeds. The kernel
// starts /init from an initramfs and /sbin/init from a root file system; any
// other name as PID 1 is an applet that is the only program of a container.
func boot() {
	switch os.Args[0] {
	case "/init":
		if err := stage1.Run(context.Background()); err != nil {
			fmt.Fprintf(os.Stderr, "weft: stage 1: %v\n", err)
			os.Exit(1)
		}
	case "/sbin/init", "init":
		os.Exit(root())
	}
}

// run executes the applet that the call names and returns its exit code.
func run(ctx context.Context, c *unit.Call) int {
	if name(c.Args[0]) == "weft" {
		if len(c.Args) < 2 {
			fmt.Fprintf(c.Stderr, "usage: weft APPLET [ARGUMENT ...]\napplets: %s\n", strings.Join(names(), " "))
			return 2
		}
		c.Args = c.Args[1:]
	}
	f, _ := lookup(name(c.Args[0]))
	if f == nil {
		fmt.Fprintf(c.Stderr, "%s: not an applet of this binary; `weft` lists them\n", c.Args[0])
		return 127
	}
	return f(ctx, c)
}

// name is the applet that argv[0] asks for; login puts a dash before a shell.
func name(argv0 string) string { return strings.TrimPrefix(filepath.Base(argv0), "-") }
