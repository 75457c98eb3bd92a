package scriptcmd

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/unit"
)

// Kill sends a signal to processes: kill [-s SIGNAL|-SIGNAL|-n N] PID..., or
// lists the signals with -l. A negative PID names a process group.
func Kill(_ context.Context, c *unit.Call) int {
	sig, pids, code := ParseKill(c)
	if code >= 0 {
		return code
	}
	for _, p := range pids {
		pid, err := strconv.Atoi(p)
		if err != nil {
			code = usage(c, "%s: not a process id", p)
			continue
		}
		if err := unix.Kill(pid, sig); err != nil {
			fmt.Fprintf(c.Stderr, "kill: send %s to %d: %v\n", SignalName(sig), pid, err)
			code = 1
		}
	}
	return max(code, 0)
}

// ParseKill reads kill's arguments. code is -1 when there is something to kill;
// otherwise it is the exit code, and what had to be printed was.
func ParseKill(c *unit.Call) (sig syscall.Signal, pids []string, code int) {
	args := c.Args[1:]
	sig = unix.SIGTERM
	spec := ""
	switch {
	case len(args) == 0:
		return 0, nil, usage(c, "usage: kill [-s SIGNAL|-SIGNAL] PID... | kill -l [SIGNAL]")
	case args[0] == "-l":
		return 0, nil, listSignals(c, args[1:])
	case args[0] == "-s" || args[0] == "-n":
		if len(args) < 2 {
			return 0, nil, usage(c, "%s: a signal must follow", args[0])
		}
		spec, args = args[1], args[2:]
	case args[0] == "--":
		args = args[1:]
	case len(args[0]) > 1 && args[0][0] == '-':
		spec, args = args[0][1:], args[1:]
	}
	if spec != "" {
		n, ok := SignalNumber(spec)
		if !ok {
			return 0, nil, usage(c, "%s: no such signal (kill -l lists them)", spec)
		}
		sig = n
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return 0, nil, usage(c, "which process? usage: kill [-s SIGNAL|-SIGNAL] PID...")
	}
	return sig, args, -1
}

func listSignals(c *unit.Call, which []string) int {
	if len(which) == 0 {
		for n := syscall.Signal(1); n < 32; n++ {
			fmt.Fprintf(c.Stdout, "%2d) %s\n", int(n), SignalName(n))
		}
		return 0
	}
	for _, w := range which {
		if n, err := strconv.Atoi(w); err == nil {
			fmt.Fprintln(c.Stdout, SignalName(syscall.Signal(n&0x7f))) // 128+n is what $? shows
			continue
		}
		n, ok := SignalNumber(w)
		if !ok {
			return usage(c, "%s: no such signal", w)
		}
		fmt.Fprintln(c.Stdout, int(n))
	}
	return 0
}

// SignalNumber reads a signal's name (with or without SIG, in any case) or number.
// 0 and EXIT give 0.
func SignalNumber(s string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return syscall.Signal(n), n >= 0 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	switch name {
	case "EXIT":
		return 0, true
	case "CLD":
		name = "CHLD"
	}
	n := unix.SignalNum("SIG" + name)
	return n, n != 0
}

// SignalName is the name without SIG, or the number when it has none.
func SignalName(n syscall.Signal) string {
	if n == 0 {
		return "EXIT"
	}
	if s := unix.SignalName(n); s != "" {
		return strings.TrimPrefix(s, "SIG")
	}
	return strconv.Itoa(int(n))
}
