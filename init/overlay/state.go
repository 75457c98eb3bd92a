package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// State is what the link .fs_state in the data file system says (fstools
// libfstools/common.c: the same numbers).
type State int

// States.
const (
	None    State = iota // no link, or one that says something else
	Pending              // the first boot or a reset is not finished: erase at the next mount
	Ready
)

func (s State) String() string {
	switch s {
	case None:
		return "none"
	case Pending:
		return "pending"
	case Ready:
		return "ready"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

const stateName = ".fs_state"

// Saved is the name of a config archive in the root of the data file system or
// of the boot partition.
const Saved = "sysupgrade.tgz"

// GetState reads the state of a mounted data file system.
func GetState(dir string) State {
	target, err := os.Readlink(filepath.Join(dir, stateName))
	switch {
	case err == nil && target == "1":
		return Pending
	case err == nil && target == "2":
		return Ready
	}
	return None
}

// SetState replaces the state durably: a power cut leaves the old one or the
// new one.
func SetState(dir string, s State) error {
	path := filepath.Join(dir, stateName)
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set state of %s: %w", dir, err)
	}
	if err := os.Symlink(fmt.Sprint(int(s)), tmp); err != nil {
		return fmt.Errorf("set state of %s: %w", dir, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("set state of %s: %w", dir, err)
	}
	return syncDir(dir)
}

// wipe erases a data file system that is not part of the running root, but for
// its state and, on request, a saved config. It goes on past what it cannot
// remove and returns the errors.
func wipe(dir string, keepSaved bool) error {
	return eraseBut(dir, func(name string) bool {
		return name == stateName || name == "lost+found" || keepSaved && (name == Saved || name == Before)
	})
}

// Reset makes the next mount start from an empty overlay and erases it now:
// state first, so that a power cut in between is completed at the next boot.
// The running root stays writable: the folder upper itself and all of work,
// where overlayfs keeps its place, are left to the next boot.
func Reset(dir string, keepSaved bool) error {
	if err := SetState(dir, Pending); err != nil {
		return err
	}
	err := eraseBut(dir, func(name string) bool {
		return name == stateName || name == "lost+found" || name == "upper" || name == "work" || keepSaved && name == Saved
	})
	upper := filepath.Join(dir, "upper")
	if _, statErr := os.Lstat(upper); statErr == nil {
		err = errors.Join(err, eraseBut(upper, func(string) bool { return false }))
	}
	return err
}

// eraseBut removes what is in dir, save for names that keep is true for, and
// brings that to the medium.
func eraseBut(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("erase %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if keep(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("erase %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, syncFS(dir))...)
}

// WriteMark makes the next boot format a volume that is not mounted.
func WriteMark(v Volume) error {
	f, err := os.OpenFile(v.Device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("mark %s as unformatted: %w", v, err)
	}
	_, err = f.WriteAt(Mark, v.Offset)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("mark %s as unformatted: %w", v, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("bring %s to the medium: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("bring %s to the medium: %w", dir, err)
	}
	return nil
}

// syncFS brings the whole file system that dir lies in to the medium.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("bring the file system of %s to the medium: %w", dir, err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("bring the file system of %s to the medium: %w", dir, err)
	}
	return nil
}

// SlotDir is the folder of the data file system, mounted at data, that holds the
// overlay of a slot ("a" or "b"): upper/, work/, the state and, until it is
// restored, a saved config.
func SlotDir(data, slot string) string { return filepath.Join(data, "slot-"+slot) }
