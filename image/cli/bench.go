package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/boards"
)

// BenchReport is the result of `image bench`; times in seconds.
type BenchReport struct {
	Plain   float64 `json:"plain"`   // go build of the device program after the same one-line change
	Cold    float64 `json:"cold"`    // empty caches, downloads there
	Nothing float64 `json:"nothing"` // nothing changed
	OneLine float64 `json:"one_line"`
	Image   int64   `json:"image"` // bytes of the first disk image, compressed
	Limits  struct {
		Cold    float64 `json:"cold"`
		Nothing float64 `json:"nothing"`
		OneLine float64 `json:"one_line"`
		Image   int64   `json:"image"`
	} `json:"targets"`
}

func (a *app) benchCommand() *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:   "bench",
		Short: "measure builds: cold, nothing changed, one line changed",
		Long: `bench builds a copy of the source with empty caches (downloads are taken over), again
with nothing changed, and again after one line of a service has changed. Beside them
stands what plain 'go build' takes for the same change in the same run, since seconds
of different machines do not compare.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rep, err := a.bench(cmd.Context(), &f)
			if err != nil {
				return err
			}
			return a.print(rep, func() error {
				row := func(name string, s, target float64) {
					fmt.Fprintf(a.Out, "%-22s %7.2f s  target %5.0f s  %6.2f x plain go build\n", name, s, target, s/rep.Plain)
				}
				row("everything cold", rep.Cold, rep.Limits.Cold)
				row("nothing changed", rep.Nothing, rep.Limits.Nothing)
				row("one line changed", rep.OneLine, rep.Limits.OneLine)
				_, err := fmt.Fprintf(a.Out, "%-22s %7.2f s\n%-22s %9s  target %s\n", "plain go build", rep.Plain, "image", size(rep.Image), size(rep.Limits.Image))
				return err
			})
		},
	}
	f.add(c)
	return c
}

func (a *app) bench(ctx context.Context, f *buildFlags) (_ *BenchReport, err error) {
	board, err := boards.Load(f.board)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr := removeAll(tmp); err == nil {
			err = rerr
		}
	}()
	source, err := filepath.Abs(a.source)
	if err != nil {
		return nil, err
	}
	s, err := newSandbox(source, filepath.Join(tmp, "source"), 0o022, time.Now())
	if err != nil {
		return nil, err
	}
	modules, err := goEnv(ctx, "GOMODCACHE")
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(tmp, "cache")
	s.env = map[string]string{"GOMODCACHE": modules, "GOCACHE": filepath.Join(tmp, "gocache"), "WEFT_CACHE": cache}
	// Downloads are not measured: fetch into the user's cache, then take over.
	if _, err := s.run(ctx, "go", "version"); err != nil {
		return nil, err
	}
	user := &sandbox{dir: s.dir, umask: 0o022, env: map[string]string{}}
	if _, err := user.run(ctx, "go", "run", "./image", "pins", "fetch"); err != nil {
		return nil, err
	}
	if err := a.seedCache(cache); err != nil {
		return nil, err
	}
	rep := &BenchReport{}
	rep.Limits.Cold, rep.Limits.Nothing, rep.Limits.OneLine, rep.Limits.Image = 150, 1, 10, 40<<20
	measure := func(what string) (float64, error) {
		fmt.Fprintf(a.Err, "%s …\n", what)
		res, took, err := s.build(ctx, f)
		if err != nil {
			return 0, err
		}
		st, err := os.Stat(res.Path(board.Images[0].Type))
		if err != nil {
			return 0, err
		}
		rep.Image = st.Size()
		return took.Seconds(), nil
	}
	if rep.Cold, err = measure("everything cold"); err != nil {
		return nil, err
	}
	if rep.Nothing, err = measure("nothing changed"); err != nil {
		return nil, err
	}
	if err := changeLine(s.dir, "first"); err != nil {
		return nil, err
	}
	fmt.Fprintf(a.Err, "plain go build …\n")
	start := time.Now()
	plain := *s
	plain.env = map[string]string{"CGO_ENABLED": "0"}
	for k, v := range s.env {
		plain.env[k] = v
	}
	for k, v := range board.Arch.Go {
		plain.env[k] = v
	}
	if _, err := plain.run(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", filepath.Join(tmp, "plain"), "./init"); err != nil {
		return nil, err
	}
	rep.Plain = time.Since(start).Seconds()
	if err := changeLine(s.dir, "second"); err != nil {
		return nil, err
	}
	rep.OneLine, err = measure("one line of a service changed")
	return rep, err
}

// changeLine adds a line to the first service's source: it moves every line
// number behind it, which the program's tables hold.
func changeLine(dir, text string) error {
	files, err := filepath.Glob(filepath.Join(dir, "services", "*", "*.go"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") || filepath.Base(f) == "doc.go" {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		i := bytes.Index(data, []byte("\nimport "))
		if i < 0 {
			continue
		}
		data = append(append(append([]byte(nil), data[:i]...), "\n// Bench: "+text+".\n"...), data[i:]...)
		return os.WriteFile(f, data, 0o644)
	}
	return errors.New("measure a changed line: no Go file with imports below services/")
}
