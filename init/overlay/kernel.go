package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kernel is what this package asks of the system; tests put a fake in place.
type Kernel interface {
	Mount(source, target, fstype string, flags uintptr, data string) error
	Unmount(target string) error
	// Run runs a program of the root file system and returns its exit code and
	// what it printed. The error says that it could not be run at all.
	Run(ctx context.Context, path string, args ...string) (code int, output string, err error)
}

// System is the Kernel of the running system. Programs run inside Rom, a
// mounted root file system, with the /dev and /proc of the caller.
type System struct{ Rom string }

// Mount is mount(2).
func (System) Mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s as %s at %s: %w", source, fstype, target, err)
	}
	return nil
}

// Unmount is umount2(2) without flags.
func (System) Unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// Run changes the root folder to Rom for the program alone.
func (s System) Run(ctx context.Context, path string, args ...string) (int, string, error) {
	if s.Rom != "" && filepath.Clean(s.Rom) != "/" {
		for _, dir := range []string{"/dev", "/proc"} {
			at := filepath.Join(s.Rom, dir)
			if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
				return 0, "", fmt.Errorf("run %s: show it %s: %w", path, dir, err)
			}
			defer unix.Unmount(at, unix.MNT_DETACH)
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL=C"}
	if s.Rom != "" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.Rom}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String(), nil
	}
	if err != nil {
		return 0, out.String(), fmt.Errorf("run %s in %s: %w", path, s.Rom, err)
	}
	return 0, out.String(), nil
}
