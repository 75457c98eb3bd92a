package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// graph is a <- b <- c, and d alone; each step writes its inputs' values.
type graph struct {
	mu     sync.Mutex
	inputs map[string]map[string]string
	output map[string]string // what the step writes; its inputs if absent
	ran    []string
	fail   string
}

func (g *graph) steps() []*step {
	one := func(name string, needs ...string) *step {
		return &step{name: name, needs: needs,
			inputs: func() (map[string]string, error) {
				in := map[string]string{}
				for k, v := range g.inputs[name] {
					in[k] = v
				}
				return in, nil
			},
			run: func(_ context.Context, out string) error {
				g.mu.Lock()
				defer g.mu.Unlock()
				g.ran = append(g.ran, name)
				if g.fail == name {
					return errors.New("broken")
				}
				text, ok := g.output[name]
				if !ok {
					text = fmt.Sprint(g.inputs[name])
				}
				return os.WriteFile(filepath.Join(out, "f"), []byte(text), 0o644)
			}}
	}
	return []*step{one("a"), one("b", "a"), one("c", "b"), one("d")}
}

func (g *graph) run(t *testing.T, e *engine) map[string]StepReport {
	t.Helper()
	g.ran = nil
	got := map[string]StepReport{}
	e.report = func(r StepReport) { got[r.Name] = r }
	if err := e.run(t.Context(), g.steps()); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEngine(t *testing.T) {
	dir := t.TempDir()
	e := &engine{cache: filepath.Join(dir, "cache"), scope: filepath.Join(dir, "scope")}
	g := &graph{inputs: map[string]map[string]string{"a": {"file": "1"}}, output: map[string]string{}}

	got := g.run(t, e)
	if len(g.ran) != 4 || got["a"].Why != "first build" {
		t.Errorf("first build ran %v, a because %q", g.ran, got["a"].Why)
	}
	if got = g.run(t, e); len(g.ran) != 0 || !got["c"].Cached {
		t.Errorf("nothing changed, ran %v", g.ran)
	}
	g.inputs["a"]["file"] = "2"
	got = g.run(t, e)
	if len(g.ran) != 2 || got["a"].Why != "file changed" || got["b"].Why != "step a changed" || !got["d"].Cached {
		t.Errorf("a changed, ran %v: %+v", g.ran, got)
	}
	// An input changes but the output does not: what follows stays.
	g.output["b"] = "constant"
	g.inputs["b"] = map[string]string{"x": "1"}
	g.run(t, e)
	g.inputs["b"]["x"] = "2"
	if got = g.run(t, e); len(g.ran) != 1 || got["b"].Why != "x changed" || !got["c"].Cached {
		t.Errorf("b changed its input alone, ran %v: %+v", g.ran, got)
	}
	// Going back finds the old output.
	g.inputs["b"]["x"] = "1"
	if g.run(t, e); len(g.ran) != 0 {
		t.Errorf("back to an earlier state, ran %v", g.ran)
	}
	delete(g.inputs["a"], "file")
	g.inputs["a"]["other"] = "1"
	if got = g.run(t, e); got["a"].Why != "file is gone, other is new" {
		t.Errorf("why %q", got["a"].Why)
	}
	if err := os.RemoveAll(filepath.Join(dir, "cache", "d")); err != nil {
		t.Fatal(err)
	}
	if got = g.run(t, e); got["d"].Why != "its output left the cache" {
		t.Errorf("why %q", got["d"].Why)
	}
}

func TestEngineDryRun(t *testing.T) {
	dir := t.TempDir()
	e := &engine{cache: filepath.Join(dir, "cache"), scope: filepath.Join(dir, "scope"), dryRun: true}
	g := &graph{inputs: map[string]map[string]string{}}
	got := g.run(t, e)
	if len(g.ran) != 0 || got["c"].Why != "b would run" {
		t.Errorf("a dry run ran %v, c because %q", g.ran, got["c"].Why)
	}
	if _, err := os.Stat(dir + "/cache"); err == nil {
		t.Error("a dry run wrote to the cache")
	}
}

// TestEngineFailure: the failing step is named, nothing of it stays, what needs
// it does not run.
func TestEngineFailure(t *testing.T) {
	dir := t.TempDir()
	e := &engine{cache: filepath.Join(dir, "cache"), scope: filepath.Join(dir, "scope")}
	g := &graph{inputs: map[string]map[string]string{}, fail: "b"}
	err := e.run(t.Context(), g.steps())
	if err == nil || err.Error() != "b: broken" {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "cache", "b"))
	if err != nil || len(left) != 0 {
		t.Errorf("the failed step left %v, %v", left, err)
	}
	if strings.Contains(fmt.Sprint(g.ran), "c") {
		t.Errorf("ran %v", g.ran)
	}
	g.fail = ""
	if got := g.run(t, e); got["b"].Cached {
		t.Error("the failed step counts as made")
	}
}

// TestBefore: errChanged comes out as it is, so that the build starts over.
func TestBefore(t *testing.T) {
	dir := t.TempDir()
	var calls atomic.Int32
	e := &engine{cache: filepath.Join(dir, "cache"), scope: filepath.Join(dir, "scope"), before: func(context.Context) error {
		calls.Add(1)
		return errChanged
	}}
	g := &graph{inputs: map[string]map[string]string{}}
	if err := e.run(t.Context(), g.steps()); !errors.Is(err, errChanged) || len(g.ran) != 0 || calls.Load() == 0 {
		t.Errorf("got %v after %d calls, ran %v", err, calls.Load(), g.ran)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	e := &engine{cache: dir, scope: filepath.Join(dir, "scope")}
	old := filepath.Join(dir, "a", ".new-aborted")
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	for i := range keepOutputs + 3 {
		g := &graph{inputs: map[string]map[string]string{"a": {"n": fmt.Sprint(i)}}}
		g.run(t, e)
		// Make the order of use plain where the clock is coarse.
		key := keyOf("a", map[string]string{"n": fmt.Sprint(i)})
		when := long.Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(filepath.Join(dir, "a", key), when, when); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "a"))
	if err != nil || len(left) != keepOutputs {
		t.Errorf("%d outputs stay, want %d (%v)", len(left), keepOutputs, err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the aborted build's folder stays")
	}
}

func TestStatCache(t *testing.T) {
	dir := t.TempDir()
	file, db := filepath.Join(dir, "f"), filepath.Join(dir, "db")
	write := func(text string, age time.Duration) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	hash := func(c *statCache) string {
		h, err := c.hash(file)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	write("one", time.Hour)
	c := openStatCache(db)
	first := hash(c)
	// Its last change of status is now: it must not be remembered yet.
	if len(c.used) != 0 {
		t.Error("a file that has just changed is remembered")
	}
	// Pretend that it was remembered; a change of the content with the same
	// size and time still shows in the change time.
	c.used[file] = statEntry{Hash: "remembered"}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	c = openStatCache(db)
	write("two", time.Hour)
	if second := hash(c); second == first || second == "remembered" {
		t.Errorf("hash of changed file is %s", second)
	}
	if _, err := c.hash(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestDistribute(t *testing.T) {
	for _, tt := range []struct {
		n int64
		w []int64
	}{{100, []int64{1, 1, 1}}, {7, []int64{0, 5, 0, 9}}, {0, []int64{3}}, {-5, []int64{2, 3}}, {10, []int64{0, 0}}} {
		sum := int64(0)
		for _, x := range distribute(tt.n, tt.w) {
			sum += x
		}
		if sum != tt.n {
			t.Errorf("distribute(%d, %v) adds up to %d", tt.n, tt.w, sum)
		}
	}
}

func TestGoOwner(t *testing.T) {
	mods := []string{"github.com/u-root/u-root", "github.com/u-root/u-root/pkg/x"}
	for symbol, want := range map[string]string{
		"weft/services/network.(*daemon).run":              "service network",
		"weft/services/network/lease.Parse":                "service network",
		"weft/init/bus.(*Client).Call.func1":               "program init/bus",
		"main.main":                                        "program main",
		"github.com/u-root/u-root/pkg/x/y.F":               "library github.com/u-root/u-root/pkg/x",
		"github.com/u-root/u-root/pkg/cpio.(*w).Write":     "library github.com/u-root/u-root",
		"crypto/internal/fips140/sha256.block":             "Go crypto",
		"slices.SortFunc[go.shape.[]weft/init/bus.Attr,x]": "Go slices",
		"type:*weft/init/bus.Attr":                         "Go tables",
		"go:itab.*os.File,io.Reader":                       "Go tables",
		"runtime.mallocgc":                                 "Go runtime",
	} {
		if got := goOwner(symbol, mods); got != want {
			t.Errorf("%s belongs to %q, want %q", symbol, got, want)
		}
	}
}
