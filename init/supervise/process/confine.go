package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/init/supervise"
	"weft/init/unit"
)

// ConfineName is what Confine is called by.
const ConfineName = "confine"

// confineGate is the descriptor that Confine waits at.
const confineGate = 3

// Confine is the applet in front of a unit with resource limits: it waits until
// descriptor 3 is closed on the other side, that is until its limits are set,
// and then executes its arguments. It is not for people.
func Confine(_ context.Context, c *unit.Call) int {
	if len(c.Args) < 3 {
		fmt.Fprintf(c.Stderr, "Usage: %s PATH ARGV0 [ARGUMENTS] (run by PID 1, with descriptor %d)\n", ConfineName, confineGate)
		return 2
	}
	gate := os.NewFile(confineGate, "gate")
	if _, err := io.Copy(io.Discard, gate); err != nil {
		fmt.Fprintf(c.Stderr, "%s: wait for the limits of %s: %v\n", ConfineName, c.Args[1], err)
		return 127
	}
	gate.Close()
	err := execRaw(c.Args[1], c.Args[2:], os.Environ())
	fmt.Fprintf(c.Stderr, "%s: execute %s: %v\n", ConfineName, c.Args[1], err)
	return 127
}

// execRaw is execve(2) without the care of syscall.Exec, which puts the number
// of open files back to what it was when this program started: the limit that
// was just set.
func execRaw(path string, argv, env []string) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	av, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	ev, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	_, _, errno := syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&av[0])), uintptr(unsafe.Pointer(&ev[0])))
	runtime.KeepAlive(av)
	runtime.KeepAlive(ev)
	return errno
}

// setLimits sets the limits of another process.
func setLimits(pid int, limits []supervise.Limit) error {
	for _, l := range limits {
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if err := unix.Prlimit(pid, l.Resource(), &lim, nil); err != nil {
			return fmt.Errorf("set limit %s of process %d: %w", l.Name, pid, err)
		}
	}
	return nil
}

// onOwnThread runs f on a thread that dies with it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// confineThread takes from the calling thread, and so from its children, what
// the process must not have. A thread that went through it must not be used for
// anything else.
func confineThread(p *supervise.Process) error {
	if p.Nice != 0 {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, p.Nice); err != nil {
			return fmt.Errorf("set nice to %d: %w", p.Nice, err)
		}
	}
	if p.Bounded {
		keep := map[uintptr]bool{}
		for _, name := range p.Capabilities {
			n, err := supervise.ParseCapability(name)
			if err != nil {
				return err
			}
			keep[n] = true
		}
		for n := uintptr(0); ; n++ {
			if keep[n] {
				continue
			}
			err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0)
			if err == unix.EINVAL {
				break // past the last capability this kernel knows
			}
			if err != nil {
				return fmt.Errorf("drop capability %d: %w", n, err)
			}
		}
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	return nil
}

// ambient are the capabilities to hand to a process that is not root's: root
// has all of the bounding set after exec(2) by itself.
func ambient(p *supervise.Process) ([]uintptr, error) {
	if !p.Bounded {
		return nil, nil
	}
	var caps []uintptr
	for _, name := range p.Capabilities {
		n, err := supervise.ParseCapability(name)
		if err != nil {
			return nil, err
		}
		caps = append(caps, n)
	}
	return caps, nil
}

// lookPath finds a command as a shell would in path, a list of folders.
func lookPath(command, path string) (string, error) {
	if strings.Contains(command, "/") {
		return command, nil
	}
	for dir := range strings.SplitSeq(path, ":") {
		p := dir + "/" + command
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found in %s", command, path)
}
