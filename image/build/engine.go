package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// step is one thing that the build makes: a folder of files in the cache,
// found again by the hash of all that went into it.
type step struct {
	name string
	// needs are the steps whose output this one reads; their outputs' hashes
	// are part of its key.
	needs []string
	// inputs names everything else that decides the output, as name -> value
	// or hash. It runs after the needs are there.
	inputs func() (map[string]string, error)
	// run makes the files in the empty folder out.
	run func(ctx context.Context, out string) error
}

// StepReport tells what became of a step.
type StepReport struct {
	Name   string        `json:"name"`
	Cached bool          `json:"cached"`
	Why    string        `json:"why,omitempty"` // why it ran
	Time   time.Duration `json:"-"`
	MS     int64         `json:"ms"`
}

// result is a step's output.
type result struct {
	dir    string
	hash   string // of all files in dir
	unmade bool   // dry run: it would have to be made
}

// engine runs steps in parallel where they do not wait for each other.
type engine struct {
	cache  string // folder of step outputs
	scope  string // folder of what is known of this source tree, board and role
	dryRun bool
	report func(StepReport) // called in the order in which steps end, not at once
	// before is called before the first step runs. It may return errChanged.
	before func(ctx context.Context) error

	mu      sync.Mutex
	results map[string]result
	last    map[string]map[string]string // inputs of the build before, by step
	now     map[string]map[string]string
}

// errChanged: what steps are made from has changed under way (a pinned package
// had to be replaced), so that the keys computed so far are void.
var errChanged = errors.New("inputs changed during the build")

// keepOutputs is how many outputs of a step stay in the cache.
const keepOutputs = 6

// run runs all steps. The steps must be sorted so that each stands after its
// needs.
func (e *engine) run(ctx context.Context, steps []*step) error {
	e.results, e.now = map[string]result{}, map[string]map[string]string{}
	e.last = map[string]map[string]string{}
	if err := readJSON(filepath.Join(e.scope, "inputs.json"), &e.last); err != nil {
		e.last = map[string]map[string]string{} // a damaged record costs an explanation only
	}
	done := map[string]chan struct{}{}
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range steps {
		ended := make(chan struct{})
		done[s.name] = ended
		var wait []chan struct{}
		for _, n := range s.needs {
			c, ok := done[n]
			if !ok {
				panic("BUG: step " + s.name + " stands before " + n + ", which it needs")
			}
			wait = append(wait, c)
		}
		g.Go(func() error {
			for _, c := range wait {
				select {
				case <-c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := e.one(ctx, s); err != nil {
				return err
			}
			close(ended)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if e.dryRun {
		return nil
	}
	return writeJSON(filepath.Join(e.scope, "inputs.json"), e.now)
}

// one makes one step, or finds it made.
func (e *engine) one(ctx context.Context, s *step) error {
	start := time.Now()
	inputs, err := s.inputs()
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	unmade := ""
	e.mu.Lock()
	for _, n := range s.needs {
		r := e.results[n]
		inputs["step "+n] = r.hash
		if r.unmade {
			unmade = n
		}
	}
	e.now[s.name] = inputs
	e.mu.Unlock()
	key := keyOf(s.name, inputs)
	dir := filepath.Join(e.cache, s.name, key)
	r := result{dir: filepath.Join(dir, "out")}
	if hash, err := os.ReadFile(filepath.Join(dir, "hash")); err == nil && unmade == "" {
		r.hash = string(hash)
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // for the pruning only
		e.end(s, r, StepReport{Name: s.name, Cached: true, Time: time.Since(start)})
		return nil
	}
	why := e.why(s.name, inputs)
	if unmade != "" {
		why = unmade + " would run"
	}
	if e.dryRun {
		r.unmade = true
		e.end(s, r, StepReport{Name: s.name, Why: why})
		return nil
	}
	if e.before != nil {
		if err := e.before(ctx); err != nil {
			return err
		}
	}
	start = time.Now() // downloads are not the step's
	if r.hash, err = e.make(ctx, s, dir); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	e.end(s, r, StepReport{Name: s.name, Why: why, Time: time.Since(start)})
	return nil
}

func (e *engine) end(s *step, r result, rep StepReport) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.results[s.name] = r
	rep.MS = rep.Time.Milliseconds()
	if e.report != nil {
		e.report(rep)
	}
}

// out returns the folder of a step's output. Steps call it for their needs.
func (e *engine) out(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := e.results[name]
	if !ok {
		panic("BUG: the output of step " + name + " is read by one that does not need it")
	}
	return r.dir
}

// make runs the step in a temporary folder and moves that into its place.
func (e *engine) make(ctx context.Context, s *step, dir string) (hash string, err error) {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return "", err
	}
	defer func() {
		if rerr := os.RemoveAll(tmp); err == nil {
			err = rerr
		}
	}()
	out := filepath.Join(tmp, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	if err := s.run(ctx, out); err != nil {
		return "", err
	}
	if hash, err = hashTree(out); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tmp, "hash"), []byte(hash), 0o644); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		// Another build has made the same meanwhile: the same key is the same output.
		if other, rerr := os.ReadFile(filepath.Join(dir, "hash")); rerr == nil {
			hash = string(other)
		} else {
			return "", err
		}
	}
	return hash, e.prune(parent)
}

// prune removes the outputs of a step that were not used for longest, and what
// aborted builds left.
func (e *engine) prune(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	type old struct {
		name string
		used time.Time
	}
	var list []old
	for _, d := range entries {
		st, err := d.Info()
		if err != nil {
			continue // removed by another build
		}
		if strings.HasPrefix(d.Name(), ".new-") {
			if time.Since(st.ModTime()) > 24*time.Hour {
				if err := os.RemoveAll(filepath.Join(parent, d.Name())); err != nil {
					return err
				}
			}
			continue
		}
		list = append(list, old{d.Name(), st.ModTime()})
	}
	slices.SortFunc(list, func(a, b old) int { return b.used.Compare(a.used) })
	for _, o := range list[min(len(list), keepOutputs):] {
		if err := os.RemoveAll(filepath.Join(parent, o.name)); err != nil {
			return err
		}
	}
	return nil
}

// why says what differs from the build before.
func (e *engine) why(name string, inputs map[string]string) string {
	last, ok := e.last[name]
	if !ok {
		return "first build"
	}
	var changed []string
	for k, v := range inputs {
		if old, ok := last[k]; !ok {
			changed = append(changed, k+" is new")
		} else if old != v {
			changed = append(changed, k+" changed")
		}
	}
	for k := range last {
		if _, ok := inputs[k]; !ok {
			changed = append(changed, k+" is gone")
		}
	}
	slices.Sort(changed)
	switch n := len(changed); {
	case n == 0:
		return "its output left the cache"
	case n > 3:
		return fmt.Sprintf("%s and %d more", strings.Join(changed[:2], ", "), n-2)
	}
	return strings.Join(changed, ", ")
}

func keyOf(name string, inputs map[string]string) string {
	h := sha256.New()
	put := func(s string) { fmt.Fprintf(h, "%d:%s", len(s), s) }
	put(name)
	for _, k := range sortedKeys(inputs) {
		put(k)
		put(inputs[k])
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// hashTree hashes names and contents of all files below a folder. Modes and
// times are not content: what reads them sets its own.
func hashTree(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		sum, err := hashFile(p)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%d:%s%s", len(rel), rel, sum)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("hash the output: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hashFile(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", p, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hashBytes(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// lock keeps a second build of the same scope out until unlock is called.
func lock(file string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		waiting()
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { _ = f.Close() }, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func readJSON(file string, v any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// writeJSON replaces a file whole.
func writeJSON(file string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return writeFile(file, text)
}

func writeFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(tmp.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
