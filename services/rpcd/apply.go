package rpcd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"weft/init/bus"
	"weft/init/uci"
)

// defaultApply is how long an apply waits to be confirmed.
const defaultApply = 60 * time.Second

// pendingApply is an apply that will be rolled back unless it is confirmed. It
// is on disk, with copies of the files and of the staged changes, before the
// first file is changed: whatever happens to this process afterwards, the next
// one finds it.
type pendingApply struct {
	SID      string
	Configs  []string
	Deadline time.Duration // since boot
	Boot     string        // the boot it counts from

	timer *time.Timer
}

func (s *server) applyFile() string { return filepath.Join(s.stateDir, "apply.json") }
func (s *server) filesCopy(config string) string {
	return filepath.Join(s.stateDir, "snapshot-files", config)
}
func (s *server) changesCopy(config string) string {
	return filepath.Join(s.stateDir, "snapshot-delta", config)
}
func (s *server) staged(sid, config string) string { return filepath.Join(s.stagingDir(sid), config) }

// uciApply commits all that a session has staged. With rollback it is undone,
// files and staged changes, unless the same session confirms in time.
func (s *server) uciApply(ctx context.Context, args bus.Table, _ func(any) error) error {
	a := struct {
		Rollback bool `json:"rollback"`
		Timeout  int  `json:"timeout"`
	}{Timeout: int(defaultApply / time.Second)}
	if err := args.Decode(&a); err != nil {
		return err
	}
	if !args.Has(sidArg) || a.Timeout < 0 || a.Timeout > 24*3600 {
		return bus.StatusInvalidArgument
	}
	configs, err := s.apply(args, a.Rollback, time.Duration(a.Timeout)*time.Second)
	if len(configs) > 0 {
		s.changed(ctx, configs)
	}
	return err
}

// apply returns the packages whose files have changed.
func (s *server) apply(args bus.Table, rollback bool, wait time.Duration) (done []string, err error) {
	s.uciMu.Lock()
	defer s.uciMu.Unlock()
	if s.applying() {
		return nil, bus.StatusPermissionDenied
	}
	ses, configs, err := s.stagedConfigs(args)
	if err != nil {
		return nil, err
	}
	tree := s.tree(ses)
	if rollback {
		p := &pendingApply{SID: ses.id, Configs: configs, Deadline: s.now() + wait, Boot: s.bootID}
		if err := s.snapshot(p); err != nil {
			s.forgetApply()
			return nil, fmt.Errorf("apply: %w", err)
		}
		s.await(p)
	}
	for _, c := range configs {
		if err = tree.Commit(c); err != nil {
			break
		}
		done = append(done, c)
	}
	if err == nil {
		s.log.Info("configuration applied", "packages", configs, "rollback", rollback)
		return done, nil
	}
	err = statusOf(fmt.Errorf("apply: %w", err))
	if rollback {
		s.restore()
	}
	return done, err
}

// stagedConfigs returns the caller's session and the packages with staged
// changes, all of which it may write.
func (s *server) stagedConfigs(args bus.Table) (*session, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, err := s.caller(args)
	if err != nil {
		return nil, nil, err
	}
	entries, _ := os.ReadDir(s.stagingDir(ses.id))
	var configs []string
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 || !uci.ValidPackage(e.Name()) {
			continue
		}
		if !may(ses, "uci", e.Name(), "write") {
			return nil, nil, bus.StatusPermissionDenied
		}
		configs = append(configs, e.Name())
	}
	if len(configs) == 0 {
		return nil, nil, bus.StatusNoData
	}
	return ses, configs, nil
}

// snapshot puts copies of all that an apply will change, and then the record of
// the apply, on disk.
func (s *server) snapshot(p *pendingApply) error {
	for _, c := range p.Configs {
		for from, to := range map[string]string{s.configFile(c): s.filesCopy(c), s.staged(p.SID, c): s.changesCopy(c)} {
			b, err := os.ReadFile(from)
			if err != nil {
				return fmt.Errorf("copy: %w", err)
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				return fmt.Errorf("copy: %w", err)
			}
			if err := replaceFile(to, b, 0o600); err != nil {
				return fmt.Errorf("copy %s: %w", from, err)
			}
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := replaceFile(s.applyFile(), b, 0o600); err != nil {
		return fmt.Errorf("note that it is pending: %w", err)
	}
	return nil
}

// configFile is where the file of a package is, an override first.
func (s *server) configFile(config string) string {
	over := filepath.Join(uci.DefaultOverrideDir, config)
	if _, err := os.Stat(over); err == nil {
		return over
	}
	return filepath.Join(s.configDir, config)
}

// await makes p the pending apply and arms its timer.
func (s *server) await(p *pendingApply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = p
	p.timer = s.after(max(0, p.Deadline-s.now()), func() {
		s.uciMu.Lock()
		s.mu.Lock()
		mine := s.pending == p
		s.mu.Unlock()
		if mine {
			s.log.Warn("configuration not confirmed in time, rolling back", "packages", p.Configs)
			s.restore()
		}
		s.uciMu.Unlock()
		if mine {
			s.changed(s.ctx, p.Configs)
		}
	})
}

// resumeApply takes up an apply that an earlier run left pending.
func (s *server) resumeApply() error {
	b, err := os.ReadFile(s.applyFile())
	if errors.Is(err, fs.ErrNotExist) {
		s.forgetApply() // copies without the record: nothing had been changed yet
		return nil
	}
	p := &pendingApply{}
	if err == nil {
		err = json.Unmarshal(b, p)
	}
	if err != nil {
		// Better an unconfirmed configuration than none that starts.
		s.log.Error("record of a pending apply is unreadable: it counts as confirmed", "error", err)
		s.forgetApply()
		return nil
	}
	if p.Boot != s.bootID {
		p.Deadline = 0
	}
	p.Configs = slices.DeleteFunc(p.Configs, func(c string) bool { return !uci.ValidPackage(c) })
	s.log.Warn("an apply of an earlier run waits to be confirmed", "packages", p.Configs)
	s.await(p)
	return nil
}

// confirming checks that the caller may decide about the pending apply.
func (s *server) confirming(args bus.Table) (*pendingApply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == nil {
		return nil, bus.StatusNoData
	}
	sid, ok := str(args, sidArg)
	if !ok {
		return nil, bus.StatusInvalidArgument
	}
	ses := s.find(sid)
	if ses == nil || ses.id != s.pending.SID {
		return nil, bus.StatusPermissionDenied
	}
	for _, c := range s.pending.Configs {
		if !may(ses, "uci", c, "write") {
			return nil, bus.StatusPermissionDenied
		}
	}
	return s.pending, nil
}

func (s *server) uciConfirm(_ context.Context, args bus.Table, _ func(any) error) error {
	s.uciMu.Lock()
	defer s.uciMu.Unlock()
	p, err := s.confirming(args)
	if err != nil {
		return err
	}
	s.log.Info("configuration confirmed", "packages", p.Configs)
	s.forgetApply()
	return nil
}

func (s *server) uciRollback(ctx context.Context, args bus.Table, _ func(any) error) error {
	s.uciMu.Lock()
	p, err := s.confirming(args)
	if err == nil {
		s.log.Info("configuration rolled back", "packages", p.Configs)
		s.restore()
	}
	s.uciMu.Unlock()
	if err != nil {
		return err
	}
	s.changed(ctx, p.Configs)
	return nil
}

// restore puts the copies back: files, and staged changes in front of those
// staged since. uciMu is held.
func (s *server) restore() {
	p := s.pending
	for _, c := range p.Configs {
		b, err := os.ReadFile(s.filesCopy(c))
		if err == nil {
			err = restoreConfig(s.configFile(c), b)
		}
		if err != nil {
			s.log.Error("cannot roll back a package", "package", c, "error", err)
		}
		s.mu.Lock()
		alive := s.sessions[p.SID] != nil
		s.mu.Unlock()
		if !alive {
			continue // nobody could use its staged changes
		}
		before, err := os.ReadFile(s.changesCopy(c))
		if err == nil {
			since, rerr := os.ReadFile(s.staged(p.SID, c))
			if bytes.HasPrefix(since, before) {
				continue // an earlier attempt got this far
			}
			if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			} else if err = os.MkdirAll(s.stagingDir(p.SID), 0o700); err == nil {
				err = replaceFile(s.staged(p.SID, c), append(before, since...), 0o600)
			}
		}
		if err != nil {
			s.log.Error("cannot restore staged changes", "package", c, "error", err)
		}
	}
	s.forgetApply()
}

// forgetApply ends the pending apply. The record goes first: copies alone mean
// nothing.
func (s *server) forgetApply() {
	for _, p := range []string{s.applyFile(), filepath.Join(s.stateDir, "snapshot-files"), filepath.Join(s.stateDir, "snapshot-delta")} {
		if err := os.RemoveAll(p); err != nil {
			s.log.Error("cannot clean up after an apply", "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending != nil {
		s.pending.timer.Stop()
		s.pending = nil
	}
}

// purgeStaging removes the staging folders of sessions that are no more.
func (s *server) purgeStaging() {
	dirs, _ := filepath.Glob(s.stagingDir("*"))
	for _, d := range dirs {
		if id := filepath.Base(d)[len("uci-"):]; s.sessions[id] == nil {
			if err := os.RemoveAll(d); err != nil {
				s.log.Error("cannot clean up after a session", "error", err)
			}
		}
	}
}

// restoreConfig puts b into a configuration file under the lock that commits
// take, keeping its mode and owner.
func restoreConfig(path string, b []byte) error {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return replaceFile(path, b, 0o600)
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
	return replaceFile(real, b, 0o600)
}

// replaceFile writes b to path so that after a crash there is the old file or
// the new one: temporary file, fsync, rename, fsync of the folder. An existing
// file keeps its mode and owner.
func replaceFile(path string, b []byte, mode fs.FileMode) (err error) {
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
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
