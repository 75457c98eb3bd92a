// Package command has the applets that run other commands (env, xargs, time,
// timeout, nohup, nice, setsid, chroot, flock), wait (sleep), or tell about the
// circumstances they run in (date, pwd, which, whoami, tty, nproc).
//
// An applet that runs a command passes its exit code on; 126 means that the
// command could not be executed, 127 that it was not found.
package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"weft/init/unit"
)

func failf(c *unit.Call, format string, args ...any) int {
	fmt.Fprintf(c.Stderr, "%s: %s\n", filepath.Base(c.Args[0]), fmt.Sprintf(format, args...))
	return 1
}

// lookPath finds a program in the PATH of the call.
func lookPath(c *unit.Call, name string) (string, error) {
	check := func(p string) error {
		st, err := os.Stat(p)
		switch {
		case err != nil:
			return err
		case st.IsDir():
			return syscall.EISDIR
		case st.Mode()&0o111 == 0:
			return fs.ErrPermission
		}
		return nil
	}
	if strings.Contains(name, "/") {
		p := c.Path(name)
		return p, check(p)
	}
	path := c.Getenv("PATH")
	if path == "" {
		path = "/usr/sbin:/usr/bin:/sbin:/bin"
	}
	err := fs.ErrNotExist
	for dir := range strings.SplitSeq(path, ":") {
		p := filepath.Join(c.Path(dir), name)
		switch e := check(p); {
		case e == nil:
			return p, nil
		case errors.Is(e, fs.ErrPermission):
			err = e
		}
	}
	return "", err
}

// prepare makes the command of a call; env nil means the process's own.
func prepare(ctx context.Context, c *unit.Call, args, env []string) (*exec.Cmd, int) {
	path, err := lookPath(c, args[0])
	if err != nil {
		return nil, cannot(c, args[0], err)
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Env, cmd.Dir = args, env, c.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd, -1
}

func cannot(c *unit.Call, name string, err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		failf(c, "%s: not found", name)
		return 127
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	failf(c, "%s: %v", name, err)
	return 126
}

// status is the exit code of a command that was run.
func status(c *unit.Call, cmd *exec.Cmd, err error) int {
	var ee *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return ee.ExitCode()
	}
	return cannot(c, cmd.Args[0], err)
}

// become replaces the process by a command; it returns only on failure. Streams
// that are not the process's own cannot be handed on: then it runs as a child.
func become(ctx context.Context, c *unit.Call, args, env []string) int {
	own := c.Stdin == os.Stdin && c.Stdout == os.Stdout && c.Stderr == os.Stderr
	if !own {
		cmd, code := prepare(ctx, c, args, env)
		if code >= 0 {
			return code
		}
		return status(c, cmd, cmd.Run())
	}
	path, err := lookPath(c, args[0])
	if err == nil {
		if env == nil {
			env = os.Environ()
		}
		err = syscall.Exec(path, args, env)
	}
	return cannot(c, args[0], err)
}
