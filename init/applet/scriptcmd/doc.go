// Package scriptcmd provides the small commands that scripts call so often that
// a shell has them built in: echo, printf, test and [, true, false, kill. The
// shell and the applets of the same names share this code, so both behave alike.
//
// Options and output follow busybox, which is what LEDE's scripts are written
// for: echo interprets backslashes only with -e, test evaluates the POSIX forms
// plus -a, -o, ( ), -nt, -ot, -ef.
package scriptcmd

import (
	"context"
	"fmt"

	"weft/init/unit"
)

// True succeeds.
func True(context.Context, *unit.Call) int { return 0 }

// False fails.
func False(context.Context, *unit.Call) int { return 1 }

// usage reports a wrong call the way every applet here does and returns exit code 2.
func usage(c *unit.Call, format string, args ...any) int {
	fmt.Fprintf(c.Stderr, "%s: %s\n", c.Args[0], fmt.Sprintf(format, args...))
	return 2
}
