package pid1

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/supervise"
)

// power is a way to end.
type power int

const (
	reboot power = iota
	poweroff
	halt
)

func (p power) String() string {
	switch p {
	case reboot:
		return "reboot"
	case poweroff:
		return "power off"
	default:
		return "halt"
	}
}

func (p power) command() int {
	switch p {
	case reboot:
		return unix.LINUX_REBOOT_CMD_RESTART
	case poweroff:
		return unix.LINUX_REBOOT_CMD_POWER_OFF
	default:
		return unix.LINUX_REBOOT_CMD_HALT
	}
}

// powerSignals as procd has them (signal.c). The kernel turns ctrl-alt-del into
// SIGINT once it is told to.
var powerSignals = map[os.Signal]power{
	syscall.SIGTERM: reboot, syscall.SIGINT: reboot,
	syscall.SIGUSR1: halt,
	syscall.SIGUSR2: poweroff, syscall.SIGPWR: poweroff,
}

// powerRequest asks for the end.
type powerRequest struct {
	how power
	by  string
}

// Bounds of a shutdown's steps.
const (
	scriptLimit  = 15 * time.Second // one stop script, as procd
	serviceLimit = 60 * time.Second // all services together
	termLimit    = time.Second      // all other processes, as procd
	killLimit    = time.Second
)

// shutDown does everything up to the reboot(2), which finish does.
func (p *pid1) shutDown(r powerRequest) {
	start := bootTime()
	p.log.Warn("shutting down", "how", r.how.String(), "by", r.by)
	p.con.print("%s (%s)", r.how, r.by)
	p.guard("stop of the consoles", p.stopTerminals)
	p.guard("stop scripts", func() { p.stopScripts(context.Background()) })
	p.guard("stop of the services", func() {
		p.sup.Post(func(m *supervise.Machine, now time.Duration) []supervise.Action { return m.Shutdown(now) })
		select {
		case d := <-p.down:
			for _, id := range d.Stuck {
				p.con.print("%s did not stop: its process hangs in the kernel", id)
			}
		case <-time.After(serviceLimit):
			p.con.print("services did not stop within %v", serviceLimit)
		}
	})
	p.guard("end of all processes", func() {
		for _, name := range killAll(termLimit, killLimit) {
			p.con.print("%s did not stop", name)
		}
	})
	p.guard("unmount", func() {
		unix.Sync()
		if err := unmountAll(); err != nil {
			p.con.print("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		unix.Sync()
	})
	p.con.print("stopped in %.2f s: %s", (bootTime() - start).Seconds(), r.how)
}

// killAll ends every process but this one. It returns those that did not go.
func killAll(term, kill time.Duration) []string {
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGTERM, term}, {syscall.SIGKILL, kill}} {
		// -1 is everybody but this process, and in a PID namespace everybody
		// in it.
		if err := syscall.Kill(-1, step.sig); err == syscall.ESRCH {
			return nil
		}
		for end := time.Now().Add(step.wait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if syscall.Kill(-1, 0) == syscall.ESRCH || len(survivors()) == 0 {
				return nil
			}
		}
	}
	return survivors()
}

// survivors are the processes that are still there, kernel threads and zombies
// aside, as "name (pid)".
func survivors() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		if name, user := parseStat(string(text)); user {
			out = append(out, fmt.Sprintf("%s (%d)", name, pid))
		}
	}
	slices.Sort(out)
	return out
}

// parseStat reads name and kind from /proc/<pid>/stat (proc(5)): user is false
// for kernel threads (flag PF_KTHREAD) and for what has ended.
func parseStat(text string) (name string, user bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return "", false
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 7 {
		return "", false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	const kernelThread = 0x00200000
	return text[open+1 : end], err == nil && flags&kernelThread == 0 && f[0] != "Z" && f[0] != "X"
}

// finish is the end. It does not return unless the kernel refuses.
func finish(how power) error {
	return unix.Reboot(how.command())
}
