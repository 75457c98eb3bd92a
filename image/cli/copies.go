package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"weft/image/build"
	"weft/image/pins"
)

// sandbox is a copy of the source tree that is built under conditions of its
// own.
type sandbox struct {
	dir   string // the copy
	env   map[string]string
	umask int
}

// skipped are folders at the top that no build reads.
var skipped = []string{"bin", ".git", "test-vm/out"}

// newSandbox copies the source tree to dir. File modes are masked with umask,
// and every time is when.
func newSandbox(source, dir string, umask int, when time.Time) (*sandbox, error) {
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		for _, s := range skipped {
			if rel == filepath.FromSlash(s) {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
		}
		to := filepath.Join(dir, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o777)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(link, to)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an editor's file that has gone meanwhile
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o666); err != nil {
			return err
		}
		if err := os.Chmod(to, 0o777&^os.FileMode(umask)); err != nil {
			return err
		}
		return os.Chtimes(to, when, when)
	})
	if err != nil {
		return nil, fmt.Errorf("copy the source to %s: %w", dir, err)
	}
	epoch, revision, err := build.SourceVersion(source)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"version": revision, "version.date": fmt.Sprint(epoch)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	return &sandbox{dir: dir, umask: umask, env: map[string]string{}}, nil
}

// goEnv asks the go command where modules and compiled packages are kept: a
// build with another HOME must still find the modules.
func goEnv(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", name).Output()
	if err != nil {
		return "", fmt.Errorf("go env %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// seedCache makes an empty cache folder that has the downloads of the user's
// cache and nothing else.
func (a *app) seedCache(dir string) error {
	store, err := pins.Open(a.pinsOptions())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "deb"), 0o755); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(store.Dir(), "deb", "*.deb"))
	if err != nil {
		return err
	}
	for _, d := range debs {
		to := filepath.Join(dir, "deb", filepath.Base(d))
		if os.Link(d, to) == nil {
			continue
		}
		if err := os.Symlink(d, to); err != nil { // another file system
			return err
		}
	}
	return nil
}

// run runs a command in the sandbox and returns its standard output.
func (s *sandbox) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.dir
	for _, v := range os.Environ() {
		k, _, _ := strings.Cut(v, "=")
		if _, ours := s.env[k]; !ours && k != "SOURCE_DATE_EPOCH" && k != "GOFLAGS" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	old := syscall.Umask(s.umask) // a child inherits it; nothing else runs here meanwhile
	err := cmd.Start()
	syscall.Umask(old)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s in %s: %w\n%s", name, strings.Join(args, " "), s.dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// build runs the copy's own builder.
func (s *sandbox) build(ctx context.Context, f *buildFlags) (*build.Result, time.Duration, error) {
	start := time.Now()
	args := []string{"run", "./image", "build", "--json", "--board", f.board, "--role", f.role, "--packages", f.packages, "--bin-dir", filepath.Join(s.dir, "bin")}
	out, err := s.run(ctx, "go", args...)
	if err != nil {
		return nil, 0, err
	}
	took := time.Since(start)
	var res build.Result
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, 0, fmt.Errorf("read the result of the build in %s: %w", s.dir, err)
	}
	return &res, took, nil
}

// removeAll removes a folder that may hold read-only folders.
func removeAll(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
