// Package files has the applets that work on files and folders: ls, cp, mv, rm,
// find, tar, chmod, df and the like. cat, mktemp, touch and base64 are u-root's;
// the rest is here because LEDE's scripts use options that u-root's commands do
// not have (cp -a, mv -f, find -exec, tar -z -C, chmod -R), or rely on an exit
// code that they do not give (mkdir).
//
// Exit codes: 0 done, 1 something failed (the rest was done), 2 used wrongly.
package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/mktemp"
	"github.com/u-root/u-root/pkg/core/touch"

	"weft/init/unit"
)

// Base64 encodes, or with -d decodes, a file or the input.
func Base64(ctx context.Context, c *unit.Call) int { return uroot(ctx, c, base64.New()) }

// Cat copies files to the output.
func Cat(ctx context.Context, c *unit.Call) int { return uroot(ctx, c, cat.New()) }

// Mktemp makes a file, or with -d a folder, of a new name.
func Mktemp(ctx context.Context, c *unit.Call) int { return uroot(ctx, c, mktemp.New()) }

// Touch sets a file's times and makes it if it is not there (-c: does not).
func Touch(ctx context.Context, c *unit.Call) int { return uroot(ctx, c, touch.New()) }

// uroot runs one of u-root's commands as an applet.
func uroot(ctx context.Context, c *unit.Call, cmd core.Command) int {
	cmd.SetIO(c.Stdin, c.Stdout, c.Stderr)
	cmd.SetWorkingDir(c.Dir)
	cmd.SetLookupEnv(func(name string) (string, bool) {
		v := c.Getenv(name)
		return v, v != ""
	})
	err := cmd.RunContext(ctx, c.Args[1:]...)
	switch {
	case err == nil:
		return 0
	case strings.HasPrefix(err.Error(), "flag "), strings.HasPrefix(err.Error(), "invalid "):
		return 2 // the usage was printed
	case strings.HasPrefix(err.Error(), "usage"):
		fmt.Fprintln(c.Stderr, err)
		return 2
	}
	return fail(c, err)
}

// fail reports an error under the applet's name and returns exit code 1. Of a
// path error it leaves out the name of the system call.
func fail(c *unit.Call, err error) int {
	name := filepath.Base(c.Args[0])
	var pe *fs.PathError
	var le *os.LinkError
	text := err.Error()
	if errors.As(err, &pe) && err == error(pe) {
		text = pe.Path + ": " + pe.Err.Error()
	} else if errors.As(err, &le) && err == error(le) {
		text = le.Old + " to " + le.New + ": " + le.Err.Error()
	}
	text = strings.TrimPrefix(text, name+": ")
	fmt.Fprintf(c.Stderr, "%s: %s\n", name, text)
	return 1
}

// failf is fail with a format.
func failf(c *unit.Call, format string, args ...any) int { return fail(c, fmt.Errorf(format, args...)) }

// confirm asks a question on stderr and reads the answer.
func confirm(c *unit.Call, question string) bool {
	fmt.Fprintf(c.Stderr, "%s: %s? ", filepath.Base(c.Args[0]), question)
	var answer strings.Builder
	b := make([]byte, 1)
	for {
		n, err := c.Stdin.Read(b)
		if n > 0 && b[0] != '\n' {
			answer.WriteByte(b[0])
			continue
		}
		if n > 0 || err != nil {
			a := strings.TrimSpace(answer.String())
			return a != "" && (a[0] == 'y' || a[0] == 'Y')
		}
	}
}

// input opens a file, "-" being the applet's input.
func input(c *unit.Call, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.Stdin), nil
	}
	f, err := os.Open(c.Path(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}
