package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Before is the name of the file in a slot's folder that says what the network
// was like before an upgrade. Like a saved config it is put there before the
// first boot of the slot and outlives the clearing of an unfinished one.
const Before = "before.json"

// slots makes the folder of the slot. A data file system from before there were
// slots, or one that LEDE made, becomes the overlay of slot a.
func (d *Data) slots() error {
	if err := os.Chmod(d.Dir, 0o700); err != nil {
		return fmt.Errorf("prepare the slots: %w", err)
	}
	if err := d.migrate(); err != nil {
		return fmt.Errorf("move the overlay into the folder of slot a: %w", err)
	}
	root := d.Root()
	if err := d.makeFolder(root); err != nil {
		return err
	}
	return syncDir(d.Dir)
}

// migrate moves everything that lies in the root of the data file system into a
// new folder and then gives that its name: a power cut leaves a part of the moves,
// which the next boot completes, and no state in which an overlay is found in two
// places or in none.
func (d *Data) migrate() error {
	final := SlotDir(d.Dir, "a")
	moving := final + ".moving"
	_, started := os.Lstat(moving)
	if started != nil && !errors.Is(started, fs.ErrNotExist) {
		return started
	}
	if _, err := os.Lstat(final); err == nil {
		return nil // what lies beside the slots is somebody's own
	}
	if started != nil {
		if _, err := os.Lstat(filepath.Join(d.Dir, "upper")); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := os.Mkdir(moving, 0o755); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == "lost+found" || strings.HasPrefix(name, "slot-") {
			continue
		}
		if err := os.Rename(filepath.Join(d.Dir, name), filepath.Join(moving, name)); err != nil {
			return err
		}
	}
	if err := syncFS(d.Dir); err != nil {
		return err
	}
	if err := os.Rename(moving, final); err != nil {
		return err
	}
	d.say(slog.LevelInfo, "the overlay is that of slot a from now on")
	return syncFS(d.Dir)
}
