package firstboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/ubuscli"
	"weft/init/uci"
	"weft/init/uci/pending"
	"weft/init/unit"
)

// Setup is one run.
type Setup struct {
	Root string // put in front of every path; tests use it
	Log  *slog.Logger

	// Sh runs a shell with the arguments, "sh" included, to its end and returns
	// its exit code. The paths in the arguments are those of the device.
	Sh func(ctx context.Context, argv []string) (int, error)

	// Hashes takes the hashes for reload_config.
	Hashes func(ctx context.Context) error

	ctx context.Context
}

// scriptsLimit bounds the scripts of one folder together: a hanging one must
// not keep the device from the network for ever.
const scriptsLimit = 2 * time.Minute

func (s *Setup) path(elem ...string) string {
	return filepath.Join(append([]string{s.Root, "/"}, elem...)...)
}

func (s *Setup) configDir() string { return s.path("etc/config") }

func (s *Setup) tree() *uci.Tree {
	return &uci.Tree{ConfDir: s.configDir(), SaveDir: s.path("tmp/.uci"), OverrideDir: s.path("var/run/uci"), NonStrict: true}
}

// Run does everything that is to be done. It goes on past what fails: a device
// with half a configuration can be helped, one that stops here can not.
func (s *Setup) Run(ctx context.Context) error {
	s.ctx = ctx
	var errs []error
	// What a manager had on trial when the device went down is undone before
	// anything reads it.
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	pending.Restore(s.Log, s.path(pending.Dir), s.configDir(), string(bootID))
	wrote, err := s.boardDetect()
	errs = append(errs, err)
	if wrote {
		s.Log.Info("wrote board.json")
	}
	made, err := s.configGenerate()
	errs = append(errs, err)
	for _, name := range made {
		s.Log.Info("made the default configuration", "package", name)
	}
	errs = append(errs, s.uciDefaults(), s.fillAuto())
	if s.Hashes != nil {
		errs = append(errs, s.Hashes(ctx))
	}
	return errors.Join(errs...)
}

// run is Sh with the time limit.
func (s *Setup) run(argv ...string) (int, error) {
	ctx, cancel := context.WithTimeout(s.ctx, scriptsLimit)
	defer cancel()
	return s.Sh(ctx, argv)
}

// sourceAll is what the shell runs: each script in a subshell of its own, with
// its exit code written down.
const sourceAll = `cd "$1" || exit 1; out=$2; shift 2; for f in "$@"; do ( . "./$f" ); echo "$? $f" >>"$out"; done`

// uciDefaults runs the scripts in /etc/uci-defaults.
func (s *Setup) uciDefaults() error {
	names, err := s.scripts(defaultsIn)
	if err != nil || len(names) == 0 {
		return err
	}
	const results = "/tmp/uci-defaults.result"
	if err := os.Remove(s.path(results)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	code, err := s.run(append([]string{"sh", "-c", sourceAll, "sh", "/" + defaultsIn, results}, names...)...)
	if err != nil {
		s.Log.Error("uci-defaults did not end well", "error", err)
	} else if code != 0 {
		s.Log.Error("uci-defaults did not end well", "exit", code)
	}
	text, err := os.ReadFile(s.path(results))
	if err != nil {
		return fmt.Errorf("run /%s: the shell left no results: %w", defaultsIn, err)
	}
	ended := map[string]string{}
	for line := range strings.Lines(string(text)) {
		code, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		ended[name] = code
	}
	// First what they changed, then the scripts.
	errs := []error{s.commitAll()}
	unix.Sync()
	if errs[0] != nil {
		return fmt.Errorf("run /%s: the scripts are kept, because their changes cannot be written: %w", defaultsIn, errs[0])
	}
	for _, name := range names {
		code, ok := ended[name]
		switch {
		case !ok:
			s.Log.Error("uci-defaults script did not end: it is tried again at the next boot", "script", name)
		case code != "0":
			s.Log.Warn("uci-defaults script failed: it is tried again at the next boot", "script", name, "exit", code)
		default:
			s.Log.Info("uci-defaults script applied", "script", name)
			errs = append(errs, os.Remove(s.path(defaultsIn, name)))
		}
	}
	return errors.Join(append(errs, syncDir(s.path(defaultsIn)), os.Remove(s.path(results)))...)
}

// commitAll is "uci commit" without a package.
func (s *Setup) commitAll() error {
	tree := s.tree()
	names, err := tree.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		changes, err := tree.Changes(name)
		if err == nil && len(changes) > 0 {
			err = tree.Commit(name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("commit %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// newSetup is a Setup of the running device.
func newSetup(c *unit.Call) *Setup {
	s := &Setup{
		Log: unit.NewLog(c.Stderr, c.Getenv("NOTIFY_SOCKET") != "", slog.LevelInfo),
	}
	s.Sh = func(ctx context.Context, argv []string) (int, error) {
		cmd := exec.CommandContext(ctx, "/bin/sh", argv[1:]...)
		cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
		// The whole group, or a script's children would go on.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return 0, fmt.Errorf("stopped after %s: %w", scriptsLimit, ctx.Err())
		case errors.As(err, &exit):
			return exit.ExitCode(), nil
		}
		return 0, err
	}
	s.Hashes = func(ctx context.Context) error {
		if code := ubuscli.ReloadConfig(ctx, &unit.Call{Args: []string{"reload_config"}, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, Dir: "/", Getenv: c.Getenv}); code != 0 {
			return errors.New("take the hashes of the configuration: see above")
		}
		return nil
	}
	return s
}

// Boot is the program of the unit boot.
func Boot(ctx context.Context, c *unit.Call) int {
	s := newSetup(c)
	if err := s.Run(ctx); err != nil {
		s.Log.Error("the configuration is not complete", "error", err)
		return 1
	}
	return 0
}

// BoardDetect is LEDE's board_detect: it writes /etc/board.json if that is
// missing.
func BoardDetect(ctx context.Context, c *unit.Call) int {
	s := newSetup(c)
	s.ctx = ctx
	return report(c, func() error { _, err := s.boardDetect(); return err }())
}

// ConfigGenerate is LEDE's config_generate: it writes /etc/config/network and
// /etc/config/system if they are missing or empty.
func ConfigGenerate(ctx context.Context, c *unit.Call) int {
	s := newSetup(c)
	s.ctx = ctx
	return report(c, func() error { _, err := s.configGenerate(); return err }())
}

func report(c *unit.Call, err error) int {
	if err != nil {
		fmt.Fprintf(c.Stderr, "%s: %v\n", filepath.Base(c.Args[0]), err)
		return 1
	}
	return 0
}
