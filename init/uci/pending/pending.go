// Package pending undoes a change of the configuration that nobody has confirmed.
//
// Whoever changes packages on trial (rpcd, uci apply) first puts copies of their
// files and then a Record into a folder; both are on the disk before the first
// file changes. Taking the record away confirms. If the device goes down before
// that, by a power cut or by the change itself, Restore puts the copies back at
// the next start, before any service has read the configuration.
package pending

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"weft/init/uci"
)

// Dir is the folder on the device. It lies on the same file system as
// /etc/config, so that both go back to the defaults together, and outside of
// what a backup takes.
const Dir = "/usr/lib/weft/rpcd"

// Record says what is on trial.
type Record struct {
	SID      string        // the session that may confirm
	Configs  []string      // packages
	Override []string      `json:",omitempty"` // of them those whose file is in uci.DefaultOverrideDir, which a restart empties
	Deadline time.Duration // since boot
	Boot     string        // the boot it counts from (random/boot_id)
}

func recordFile(dir string) string { return filepath.Join(dir, "apply.json") }

// Copy is where the copy of a package's file lies.
func Copy(dir, config string) string { return filepath.Join(dir, "snapshot-files", config) }

// Save puts the copy of a package's file on disk.
func Save(dir, config, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	to := Copy(dir, config)
	if err := mkdir(filepath.Dir(to)); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	if err := ReplaceFile(to, b, 0o600); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return nil
}

// mkdir makes a folder that outlives a power cut, with those above it.
func mkdir(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	if err := mkdir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return uci.SyncDir(filepath.Dir(dir))
}

// Begin puts the record on disk, after the copies.
func Begin(dir string, r *Record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = mkdir(dir)
	}
	if err == nil {
		err = ReplaceFile(recordFile(dir), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note that it is pending: %w", err)
	}
	return nil
}

// Read returns the record, nil if nothing is on trial.
func Read(dir string) (*Record, error) {
	b, err := os.ReadFile(recordFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &Record{}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("record of a pending apply: %w", err)
	}
	r.Configs = slices.DeleteFunc(r.Configs, func(c string) bool { return !uci.ValidPackage(c) })
	return r, nil
}

// End takes the record away, then the copies: copies alone mean nothing.
func End(dir string) error {
	err := os.Remove(recordFile(dir))
	if err == nil {
		err = uci.SyncDir(dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(dir, "snapshot-files")))
}

// PutBack restores the file of a package at path from its copy.
func PutBack(dir, config, path string) error {
	b, err := os.ReadFile(Copy(dir, config))
	if err != nil {
		return err
	}
	return restoreConfig(path, b)
}

// Restore rolls back what was on trial when the device went down. It is for the
// start of the device: what belongs to the running boot is left alone. Nothing
// pending costs one look at a file that is not there.
func Restore(log *slog.Logger, dir, configDir, boot string) {
	r, err := Read(dir)
	if err != nil {
		// Better an unconfirmed configuration than none that starts.
		log.Error("it counts as confirmed", "error", err)
	}
	if r == nil && err == nil || r != nil && r.Boot == boot {
		return
	}
	if r != nil {
		log.Warn("configuration was not confirmed before the device went down, rolling back", "packages", r.Configs)
		for _, c := range r.Configs {
			if slices.Contains(r.Override, c) {
				continue // gone by itself
			}
			if err := PutBack(dir, c, filepath.Join(configDir, c)); err != nil {
				log.Error("cannot roll back a package", "package", c, "error", err)
			}
		}
	}
	if err := End(dir); err != nil {
		log.Error("cannot clean up after an apply", "error", err)
	}
}

// restoreConfig puts b into a configuration file under the lock that commits
// take, keeping its mode and owner.
func restoreConfig(path string, b []byte) error {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ReplaceFile(path, b, 0o600)
	}
	if err != nil {
		return err
	}
	f, err := os.Open(real)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", real, err)
	}
	return ReplaceFile(real, b, 0o600)
}

// ReplaceFile writes b to path so that after a crash there is the old file or
// the new one: temporary file, fsync, rename, fsync of the folder. An existing
// file keeps its mode and owner.
func ReplaceFile(path string, b []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if fi, serr := os.Stat(path); serr == nil {
		mode = fi.Mode().Perm()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
			if err = tmp.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
	}
	if err = tmp.Chmod(mode); err != nil {
		return err
	}
	if _, err = tmp.Write(b); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return uci.SyncDir(dir)
}
