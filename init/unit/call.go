package unit

import (
	"context"
	"io"
	"os"
	"path/filepath"
)

// Call is one invocation of an applet.
type Call struct {
	// Args are the arguments; Args[0] is the name the applet was called by.
	Args []string

	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Dir is the folder that relative paths start from.
	Dir string

	// Getenv reads the caller's environment as os.Getenv does.
	Getenv func(string) string
}

// Func runs an applet and returns its exit code: 0 done, 1 failed, 2 used
// wrongly, unless the applet's LEDE original says otherwise. It returns soon
// after ctx ends.
type Func func(ctx context.Context, c *Call) int

// OSCall is the call this process was started with.
func OSCall() *Call {
	dir, err := os.Getwd()
	if err != nil {
		// The folder was removed under us: only absolute paths can work.
		dir = "/"
	}
	return &Call{
		Args:   os.Args,
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Dir:    dir,
		Getenv: os.Getenv,
	}
}

// Path returns p made absolute against Dir and cleaned. An absolute p only
// gets cleaned.
func (c *Call) Path(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(c.Dir, p)
}
