package rpcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/uci/pending"
)

// defaultApply is how long an apply waits to be confirmed.
const defaultApply = 60 * time.Second

// pendingApply is an apply that will be rolled back unless it is confirmed. It
// is on disk, with copies of the files and of the staged changes, before the
// first file is changed: whatever happens to this process afterwards, the next
// one finds it, and whatever happens to the device, its next start does.
type pendingApply struct {
	pending.Record
	timer *time.Timer
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
		p := &pendingApply{Record: pending.Record{SID: ses.id, Configs: configs, Deadline: s.now() + wait, Boot: s.bootID}}
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
		file, override := s.configFile(c)
		if override {
			p.Override = append(p.Override, c)
		}
		if err := pending.Save(s.keepDir, c, file); err != nil {
			return err
		}
		b, err := os.ReadFile(s.staged(p.SID, c))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(s.changesCopy(c)), 0o700)
		}
		if err == nil {
			err = pending.ReplaceFile(s.changesCopy(c), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("copy staged changes: %w", err)
		}
	}
	return pending.Begin(s.keepDir, &p.Record)
}

// configFile is where the file of a package is, an override first.
func (s *server) configFile(config string) (path string, override bool) {
	over := filepath.Join(uci.DefaultOverrideDir, config)
	if _, err := os.Stat(over); err == nil {
		return over, true
	}
	return filepath.Join(s.configDir, config), false
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
	r, err := pending.Read(s.keepDir)
	if err != nil {
		// Better an unconfirmed configuration than none that starts.
		s.log.Error("it counts as confirmed", "error", err)
	}
	if r == nil {
		s.forgetApply() // copies without the record: nothing had been changed yet
		return nil
	}
	p := &pendingApply{Record: *r}
	if p.Boot != s.bootID {
		p.Deadline = 0
	}
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
		file, _ := s.configFile(c)
		err := pending.PutBack(s.keepDir, c, file)
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
				err = pending.ReplaceFile(s.staged(p.SID, c), append(before, since...), 0o600)
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
	err := errors.Join(pending.End(s.keepDir), os.RemoveAll(filepath.Join(s.stateDir, "snapshot-delta")))
	if err != nil {
		s.log.Error("cannot clean up after an apply", "error", err)
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
