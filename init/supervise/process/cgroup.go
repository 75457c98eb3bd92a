package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Cgroups is the subtree of control groups that services live in.
type Cgroups struct {
	dir         string
	controllers map[string]bool

	mu sync.Mutex // between making a group and a process entering it, none is removed
}

// OpenCgroups makes the folder "services" below root, where cgroup v2 is
// mounted, and turns on the memory and pids controllers for it. Where the kernel
// lacks one, its limits are not applied: Missing names them.
func OpenCgroups(root string) (*Cgroups, error) {
	c := &Cgroups{dir: filepath.Join(root, "services"), controllers: map[string]bool{}}
	if err := os.Mkdir(c.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "cgroup.procs")); err != nil {
		return nil, fmt.Errorf("%s is not in a cgroup v2 file system: %w", c.dir, err)
	}
	for _, dir := range []string{root, c.dir} {
		for _, ctl := range []string{"memory", "pids"} {
			// One at a time: a kernel without one refuses the whole line.
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+ctl), 0)
			c.controllers[ctl] = err == nil
		}
	}
	return c, nil
}

// Missing are the controllers that are not there.
func (c *Cgroups) Missing() []string {
	var out []string
	for _, ctl := range []string{"memory", "pids"} {
		if !c.controllers[ctl] {
			out = append(out, ctl)
		}
	}
	return out
}

// path of a unit's group.
func (c *Cgroups) path(id string) string {
	return filepath.Join(c.dir, strings.NewReplacer("/", "_", "\x00", "_", "\n", "_").Replace(id))
}

// Limits of a group; 0 is none.
type Limits struct{ MemoryMax, MemoryHigh, PidsMax int64 }

// enter makes the unit's group with its limits and calls f with a descriptor of
// it, while nobody can remove it.
func (c *Cgroups) enter(id string, l Limits, f func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir := c.path(id)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make control group: %w", err)
	}
	if c.controllers["memory"] {
		for file, n := range map[string]int64{"memory.max": l.MemoryMax, "memory.high": l.MemoryHigh} {
			if err := writeLimit(dir, file, n); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "memory.oom.group"), []byte("1"), 0); err != nil {
			return fmt.Errorf("set up control group: %w", err)
		}
	}
	if c.controllers["pids"] {
		if err := writeLimit(dir, "pids.max", l.PidsMax); err != nil {
			return err
		}
	}
	d, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open control group %s: %w", dir, err)
	}
	defer syscall.Close(d)
	return f(d)
}

func writeLimit(dir, file string, n int64) error {
	v := "max"
	if n > 0 {
		v = strconv.FormatInt(n, 10)
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(v), 0); err != nil {
		return fmt.Errorf("limit control group: %w", err)
	}
	return nil
}

// Kill sends SIGKILL to all processes of a unit. A group that is not there has
// none.
func (c *Cgroups) Kill(id string) error {
	err := os.WriteFile(filepath.Join(c.path(id), "cgroup.kill"), []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("kill control group: %w", err)
	}
	return nil
}

// RemoveSoon removes a unit's group once it is empty. Killed processes need a
// moment to leave; one that does not leave, or a new process of the unit, keeps
// the group.
func (c *Cgroups) RemoveSoon(ctx context.Context, id string) {
	for wait := 5 * time.Millisecond; wait < time.Second; wait *= 2 {
		c.mu.Lock()
		err := syscall.Rmdir(c.path(id))
		c.mu.Unlock()
		if err != syscall.EBUSY {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Memory is what a unit uses now, in bytes, page cache included; 0 if unknown.
func (c *Cgroups) Memory(id string) int64 {
	n, _ := readNumber(filepath.Join(c.path(id), "memory.current"))
	return n
}

// MemoryPeak is the most a unit has used, in bytes; 0 if unknown.
func (c *Cgroups) MemoryPeak(id string) int64 {
	n, _ := readNumber(filepath.Join(c.path(id), "memory.peak"))
	return n
}

// oomKills counts how often the kernel's memory killer took a process of the
// unit.
func (c *Cgroups) oomKills(id string) int64 {
	text, err := os.ReadFile(filepath.Join(c.path(id), "memory.events"))
	if err != nil {
		return 0
	}
	return eventCount(string(text), "oom_kill")
}

// eventCount reads one "name number" line of a cgroup events file.
func eventCount(text, name string) int64 {
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && k == name {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
