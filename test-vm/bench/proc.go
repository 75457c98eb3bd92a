package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/test-vm/bench/bed"
)

// process is a program that runs in a node until it is stopped; what it prints goes to a file.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // once ended
}

func startProcess(n *bed.Node, dir, name, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	// Stopped by stop alone: the end of a context must not leave half a bed behind.
	p.cmd = n.Command(context.Background(), program, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := n.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// running is nil while the process runs, else why it has ended.
func (p *process) running() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended (%v): %s", p.name, p.cmd.ProcessState, p.tail())
	default:
		return nil
	}
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// stop ends the process: politely, and after five seconds by force.
func (p *process) stop() error {
	if p.running() != nil {
		return nil
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return nil
	case <-time.After(5 * time.Second):
		return errors.Join(fmt.Errorf("%s did not end within 5 s of SIGTERM and was killed", p.name), p.kill())
	}
}

// kill ends the process at once.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// family lists the process and its living descendants.
func (p *process) family() []int {
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			continue
		}
		for _, t := range tasks {
			b, err := os.ReadFile(t)
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// cpu is the processor time that the process and its children have used, user and kernel.
func (p *process) cpu() (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ
	total := time.Duration(0)
	for _, pid := range p.family() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name in parentheses may contain anything; utime and stime are fields 14 and 15.
		_, rest, ok := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if !ok || len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: unknown format", pid)
		}
		for _, s := range f[11:13] {
			v, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			total += time.Duration(v) * tick
		}
	}
	return total, nil
}

// memory is the resident set of the process and its children, bytes.
func (p *process) memory() (int64, error) {
	total := int64(0)
	for _, pid := range p.family() {
		v, err := procValue(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
		if err != nil {
			return 0, err
		}
		total += v << 10
	}
	return total, nil
}

// descriptors is the number of open files of the process.
func (p *process) descriptors() (int, error) {
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(e), err
}

// procValue reads a "Name:  number kB" line.
func procValue(file, name string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			f := strings.Fields(rest)
			if len(f) > 0 {
				return strconv.ParseInt(f[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%s has no line %s", file, name)
}

// kernelMemory is what the kernel holds for sockets of all namespaces: slab and TCP buffers, bytes. Only differences on
// a quiet machine say something.
func kernelMemory() (int64, error) {
	slab, err := procValue("/proc/meminfo", "Slab")
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	pages := int64(0)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "TCP:" && f[len(f)-2] == "mem" {
			if pages, err = strconv.ParseInt(f[len(f)-1], 10, 64); err != nil {
				return 0, err
			}
		}
	}
	return slab<<10 + pages*int64(os.Getpagesize()), nil
}

// systemBusy is the processor time of the whole machine that was not idle, waiting or stolen.
func systemBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 9 || f[0] != "cpu" {
		return 0, errors.New("/proc/stat: unknown format")
	}
	total := int64(0)
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return time.Duration(total) * time.Second / 100, nil
}
