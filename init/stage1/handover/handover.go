// Package handover is what stage 1 tells PID 1 of the root file system: a small
// JSON file in memory, written before the switch of the root and read once.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Path is where the file lies; /tmp is the same memory file system before and
// after the switch.
const Path = "/tmp/run/weft/stage1.json"

// Values of Handover.Overlay.
const (
	Disk  = "disk"  // the data file system
	Tmpfs = "tmpfs" // memory: nothing survives a reboot
	None  = "none"  // the root is read-only (failsafe)
)

// Levels of Message.
const (
	Info  = "info"
	Warn  = "warn"
	Error = "error"
)

// Handover is the state that stage 1 left behind. Times are milliseconds since
// the start of the kernel (CLOCK_BOOTTIME).
type Handover struct {
	Failsafe       bool      `json:"failsafe"`
	FailsafeReason string    `json:"failsafe_reason"`
	Overlay        string    `json:"overlay"`
	Root           string    `json:"root"`            // device of the squashfs
	Data           string    `json:"data"`            // device of the data file system, "" if none is mounted
	Slot           string    `json:"slot,omitempty"`  // a or b
	Trial          bool      `json:"trial,omitempty"` // the slot is on trial: not confirmed yet
	Marks          []Mark    `json:"marks"`
	Messages       []Message `json:"messages"`
}

// Mark is a point in the boot timeline: the named step was done.
type Mark struct {
	Name string `json:"name"`
	MS   int64  `json:"ms"`
}

// Message is what stage 1 wrote on the consoles.
type Message struct {
	Level string `json:"level"`
	Text  string `json:"text"`
	MS    int64  `json:"ms"`
}

// Read reads the file. A missing one is an error that wraps fs.ErrNotExist.
func Read(path string) (*Handover, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what stage 1 left: %w", err)
	}
	var h Handover
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, fmt.Errorf("read what stage 1 left in %s: %w", path, err)
	}
	return &h, nil
}

// Write replaces the file; a reader sees the old one or the new one.
func (h *Handover) Write(path string) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
