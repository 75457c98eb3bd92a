// Package build turns a board, a role and the user's additions into firmware
// images: LEDE's ImageBuilder in one process.
//
// The work is a graph of steps (steps.go). Each step's output lies in the cache
// under the hash of all that went into it: files, settings, pinned packages,
// tools, the outputs of other steps, and the source of the builder's own
// packages. So a build does what must be done and no more, it can say why it
// does it, and two builds of the same inputs give the same bytes.
package build

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"weft/boards"
	"weft/image/boot"
	"weft/image/disk"
	"weft/image/pins"
	"weft/image/rootfs"
	"weft/image/rootfs/kmod"
	"weft/image/sbom"
	"weft/image/squash"
)

// What the images say they are.
const (
	Dist    = "Weft"
	Version = "0.1.0"
)

// Source is this package's own source: see step keys.
//
//go:embed *.go
var source embed.FS

// Places in the source tree.
const (
	overlayDir    = "buildroot-overlay/rootfs"
	rolesDir      = "buildroot-overlay/roles"
	program       = "./init"
	rescueProgram = "./init/rescue/program"
	appletList    = "init/applets.txt"
)

// Config says what to build. The names in parentheses are LEDE ImageBuilder's.
type Config struct {
	Source           string   // top of the source tree; the working folder if empty
	Board            string   // (PROFILE)
	Role             string   //
	Packages         []string // (PACKAGES) feature sets, -name removes
	Files            string   // (FILES) folder copied over the root file system
	BinDir           string   // (BIN_DIR) images go to targets/<target>/<subtarget> below it; bin if empty
	ExtraName        string   // (EXTRA_IMAGE_NAME)
	DisabledServices []string // (DISABLED_SERVICES)
	RootfsPartsize   int      // (ROOTFS_PARTSIZE) MiB; the board's if 0
	StrictPins       bool     // refuse newer packages where pinned ones are gone
	CacheDir         string   // the pins' default if empty
	DryRun           bool     // say what would be done
	// Program is a device program to use in place of the one built from
	// Source, for tests.
	Program string
	// Progress gets the pins' download bars; Step is called as each step ends.
	Progress io.Writer
	Step     func(StepReport)
	Log      *slog.Logger
}

// Builder builds one configuration.
type Builder struct {
	cfg      Config
	board    *boards.Board
	role     *rootfs.Role
	features []rootfs.Feature
	store    *pins.Store
	stat     *statCache
	scope    string
	epoch    int64
	revision string
	code     map[string]string // package -> hash of its source
	engine   *engine
	fetched  func(ctx context.Context) error
}

// New checks a configuration. All that can be said without building anything
// is said here: unknown boards, roles, packages, values out of range.
func New(cfg Config) (*Builder, error) {
	if cfg.Source == "" {
		cfg.Source = "."
	}
	var err error
	if cfg.Source, err = filepath.Abs(cfg.Source); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(cfg.Source, overlayDir)); err != nil {
		return nil, fmt.Errorf("%s is not Weft's source tree: run from its top, or name it with --source: %w", cfg.Source, err)
	}
	if cfg.BinDir == "" {
		cfg.BinDir = "bin"
	}
	if !filepath.IsAbs(cfg.BinDir) {
		cfg.BinDir = filepath.Join(cfg.Source, cfg.BinDir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	b := &Builder{cfg: cfg}
	if b.board, err = boards.Load(cfg.Board); err != nil {
		return nil, err
	}
	if cfg.RootfsPartsize != 0 {
		if cfg.RootfsPartsize < 16 || cfg.RootfsPartsize > 32<<10 {
			return nil, fmt.Errorf("ROOTFS_PARTSIZE=%d: want 16 to 32768 MiB", cfg.RootfsPartsize)
		}
		b.board.Partitions.Rootfs = cfg.RootfsPartsize
	}
	if b.role, err = rootfs.LoadRole(filepath.Join(cfg.Source, rolesDir), cfg.Role); err != nil {
		return nil, err
	}
	if b.store, err = pins.Open(pins.Options{CacheDir: cfg.CacheDir, Lock: lockFile(cfg.Source), Strict: cfg.StrictPins, Progress: cfg.Progress, Log: cfg.Log}); err != nil {
		return nil, err
	}
	arch := b.board.Arch.Debian
	if !slices.Contains(b.store.Architectures(), arch) {
		return nil, fmt.Errorf("board %s: image/pins/pins.toml does not cover architecture %s: run `go run ./image pins update --arch %s`", b.board.Name, arch, arch)
	}
	b.features, err = rootfs.Choose(b.store.ImageWants(arch), b.board.Packages.Default, b.role.Packages, cfg.Packages)
	if err != nil {
		return nil, err
	}
	if b.epoch, b.revision, err = SourceVersion(cfg.Source); err != nil {
		return nil, err
	}
	b.code = codeHashes()
	id := sha256.Sum256([]byte(strings.Join([]string{cfg.Source, b.board.Name, b.role.Name, cfg.Program}, "\x00")))
	b.scope = filepath.Join(b.store.Dir(), "scope", hex.EncodeToString(id[:8]))
	return b, nil
}

// lockFile names the lock in the source tree, so that an edit counts at once;
// the embedded one serves where there is none.
func lockFile(source string) string {
	p := filepath.Join(source, filepath.FromSlash(pins.LockPath))
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}

// codeHashes hashes the source of each package that makes something.
func codeHashes() map[string]string {
	out := map[string]string{}
	for name, src := range map[string]fs.FS{"build": source, "boot": boot.Source, "disk": disk.Source, "rootfs": rootfs.Source, "kmod": kmod.Source, "squash": squash.Source, "sbom": sbom.Source} {
		h := sha256.New()
		files, err := fs.Glob(src, "*.go")
		if err != nil {
			panic("BUG: embedded source: " + err.Error())
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := fs.ReadFile(src, f)
			if err != nil {
				panic("BUG: embedded source: " + err.Error())
			}
			fmt.Fprintf(h, "%s %d\n%s", f, len(text), text)
		}
		out[name] = hex.EncodeToString(h.Sum(nil)[:12])
	}
	// Libraries that shape the output: their version is their identity.
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/klauspost/compress", "github.com/u-root/u-root", "github.com/CycloneDX/cyclonedx-go":
				out["library "+m.Path] = m.Version + m.Sum
			}
		}
	}
	return out
}

// Result is what a build has made.
type Result struct {
	Board    string        `json:"board"`
	Role     string        `json:"role"`
	Dir      string        `json:"dir"` // where the outputs lie
	Pins     string        `json:"pins"`
	Epoch    int64         `json:"source_date_epoch"`
	Revision string        `json:"revision"`
	Steps    []StepReport  `json:"steps"`
	Outputs  []Output      `json:"outputs"`
	Time     time.Duration `json:"-"`
	MS       int64         `json:"ms"`
}

// Output is one file in the result's folder.
type Output struct {
	Name   string `json:"name"`
	Type   string `json:"type"` // combined, kernel, manifest …
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Path returns the path of the output of that type, "" if there is none.
func (r *Result) Path(typ string) string {
	for _, o := range r.Outputs {
		if o.Type == typ {
			return filepath.Join(r.Dir, o.Name)
		}
	}
	return ""
}

// Build runs every step that must run and puts the outputs into their folder.
func (b *Builder) Build(ctx context.Context) (*Result, error) {
	start := time.Now()
	res := &Result{Board: b.board.Name, Role: b.role.Name, Dir: b.targetDir(), Epoch: b.epoch, Revision: b.revision}
	err := b.locked(func() error {
		if err := b.runSteps(ctx, &res.Steps, nil); err != nil {
			return err
		}
		if b.cfg.DryRun {
			return nil
		}
		var err error
		res.Outputs, err = b.install()
		return err
	})
	if err != nil {
		return nil, err
	}
	res.Pins = b.pinState()
	res.Time = time.Since(start)
	res.MS = res.Time.Milliseconds()
	return res, nil
}

// locked runs f alone among builds of the same tree, board and role.
func (b *Builder) locked(f func() error) error {
	if err := os.MkdirAll(b.scope, 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	unlock, err := lock(filepath.Join(b.scope, "lock"), func() {
		b.cfg.Log.Info("waiting for another build of the same board and role")
	})
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.pruneScopes(); err != nil {
		return err
	}
	b.stat = openStatCache(filepath.Join(b.scope, "stat.json"))
	if err := f(); err != nil {
		return err
	}
	if b.cfg.DryRun {
		return nil
	}
	return b.stat.save()
}

// pruneScopes notes which source tree the scope is of, and removes what is
// known of trees that are no more.
func (b *Builder) pruneScopes() error {
	const name = "source"
	if err := writeFile(filepath.Join(b.scope, name), []byte(b.cfg.Source)); err != nil {
		return err
	}
	notes, err := filepath.Glob(filepath.Join(filepath.Dir(b.scope), "*", name))
	if err != nil {
		return err
	}
	for _, n := range notes {
		source, err := os.ReadFile(n)
		if err != nil {
			continue // another build was faster
		}
		if _, err := os.Stat(string(source)); errors.Is(err, fs.ErrNotExist) {
			if err := os.RemoveAll(filepath.Dir(n)); err != nil {
				return fmt.Errorf("tidy the cache: %w", err)
			}
		}
	}
	return nil
}

// runSteps runs the named steps and what they need, all of them if names is
// nil, and starts over when a pinned package had to be replaced under way.
func (b *Builder) runSteps(ctx context.Context, reports *[]StepReport, names []string) error {
	b.fetched = b.fetchOnce()
	for {
		if reports != nil {
			*reports = nil
		}
		b.engine = &engine{
			cache: filepath.Join(b.store.Dir(), "step"), scope: b.scope, dryRun: b.cfg.DryRun, before: b.fetched,
			report: func(r StepReport) {
				if reports != nil {
					*reports = append(*reports, r)
				}
				if b.cfg.Step != nil {
					b.cfg.Step(r)
				}
			},
		}
		err := b.engine.run(ctx, only(b.steps(), names))
		if !errors.Is(err, errChanged) {
			return err
		}
	}
}

// only returns the named steps and what they need.
func only(steps []*step, names []string) []*step {
	if names == nil {
		return steps
	}
	want := map[string]bool{}
	for _, n := range names {
		want[n] = true
	}
	for _, s := range slices.Backward(steps) {
		if want[s.name] {
			for _, n := range s.needs {
				want[n] = true
			}
		}
	}
	return slices.DeleteFunc(steps, func(s *step) bool { return !want[s.name] })
}

// fetchOnce returns the function that the engine calls before the first step
// that runs: it downloads all that any step may need, side by side.
func (b *Builder) fetchOnce() func(ctx context.Context) error {
	var once sem = make(chan struct{}, 1)
	done := false
	return func(ctx context.Context) error {
		if err := once.lock(ctx); err != nil {
			return err
		}
		defer once.unlock()
		if done {
			return nil
		}
		before := b.pinSum()
		ids, err := b.packages()
		if err != nil {
			return err
		}
		if err := b.store.Fetch(ctx, ids...); err != nil {
			return err
		}
		done = true
		if b.pinSum() != before {
			return errChanged
		}
		return nil
	}
}

// sem is a lock that a context can interrupt.
type sem chan struct{}

func (s sem) lock(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s sem) unlock() { <-s }

// pinSum changes when a package is replaced by a newer one.
func (b *Builder) pinSum() string {
	var sums []string
	for _, p := range b.store.Packages() {
		sums = append(sums, p.SHA256)
	}
	return strings.Join(sums, " ")
}

// pinState is "locked", or "drifted" if any package used is newer than its pin.
func (b *Builder) pinState() string {
	used, err := b.packages()
	if err != nil {
		return "locked"
	}
	for _, id := range used {
		if p, ok := b.store.Package(id); ok && p.Drifted {
			return "drifted"
		}
	}
	return "locked"
}

// targetDir is where the outputs go.
func (b *Builder) targetDir() string {
	return filepath.Join(b.cfg.BinDir, "targets", filepath.FromSlash(b.board.Target))
}

var nameJunk = regexp.MustCompile(`[^a-z0-9.]+`)

// sanitise makes a word of a file name as LEDE does: lower case, everything
// else than letters, digits and dots a dash.
func sanitise(s string) string {
	return strings.Trim(nameJunk.ReplaceAllString(strings.ToLower(s), "-"), "-")
}

// prefix is the images' common name: weft-0.1.0[-extra]-x86-64.
func (b *Builder) prefix() string {
	parts := []string{sanitise(Dist), Version}
	if extra := sanitise(b.cfg.ExtraName); extra != "" {
		parts = append(parts, extra)
	}
	return strings.Join(append(parts, sanitise(b.board.Target)), "-")
}

// imagePrefix is the prefix with the profile.
func (b *Builder) imagePrefix() string { return b.prefix() + "-" + sanitise(b.board.Profile) }

// goVersion is the toolchain that builds both the builder and the device
// program.
var goVersion = runtime.Version()
