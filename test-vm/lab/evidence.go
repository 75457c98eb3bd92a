package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// evidenceCommands are asked of a guest that still answers.
var evidenceCommands = []struct{ file, command string }{
	{"logread.txt", "logread"},
	{"services.txt", "service status"},
	{"timeline.txt", "service timeline"},
	{"processes.txt", "ps"},
	{"memory.txt", "cat /proc/meminfo"},
}

// Save writes what there is to know about the machine to dir: consoles, QEMU's command line, messages and events,
// captures, the screen, and what a guest that still answers says of itself. It is for the moment after a failure, so
// it keeps going when parts cannot be had; the error then names them all.
func (m *Machine) Save(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("save evidence: %w", err)
	}
	var errs []error
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, m.cfg.Name+"-"+name), data, 0o644); err != nil {
			errs = append(errs, err)
		}
	}
	_, err := m.current()
	alive := err == nil
	if alive {
		short, cancel := context.WithTimeout(ctx, Timeout(10*time.Second))
		if err := m.Screenshot(short, filepath.Join(dir, m.cfg.Name+"-screen.png")); err != nil {
			errs = append(errs, err)
		}
		cancel()
		short, cancel = context.WithTimeout(ctx, Timeout(20*time.Second))
		for _, c := range evidenceCommands {
			res, err := m.Run(short, c.command)
			if err != nil {
				errs = append(errs, err)
				break // it answers no more
			}
			put(c.file, []byte(res.Output))
		}
		cancel()
	}
	for name, c := range m.consoles {
		put(name+".log", c.Raw())
	}
	m.mu.Lock()
	r := m.run
	said := strings.Join(m.said, "")
	m.mu.Unlock()
	if r != nil {
		put("qemu.txt", []byte(shellLine(r.cmd.Args)+"\n"+said+r.stderr.String()))
	}
	var events strings.Builder
	for _, e := range m.Events() {
		fmt.Fprintf(&events, "%s %s %s\n", e.At.Format("15:04:05.000"), e.Name, e.Data)
	}
	put("events.txt", []byte(events.String()))
	for i, n := range m.cfg.NICs {
		if !n.Capture {
			continue
		}
		data, err := os.ReadFile(pcapName(m.dir, i))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // never started
				errs = append(errs, err)
			}
			continue
		}
		put(fmt.Sprintf("nic%d.pcap", i), data)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("save evidence of machine %s: %w", m.cfg.Name, err)
	}
	return nil
}

// OutDir makes and returns test-vm/out/<name> in the checkout, where things are kept that outlive a machine.
func OutDir(name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "test-vm", "out", strings.ReplaceAll(name, "/", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder for evidence: %w", err)
	}
	return dir, nil
}
