package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/image/build"
	"weft/image/compare"
)

// ReproReport is the result of `image repro`.
type ReproReport struct {
	Same        bool     `json:"same"`
	Files       int      `json:"files"`
	Differences []string `json:"differences"` // the first difference of each file that differs
}

func (a *app) reproCommand() *cobra.Command {
	var f buildFlags
	var keep bool
	c := &cobra.Command{
		Use:   "repro",
		Short: "build twice under different conditions and compare every byte",
		Long: `repro copies the source to two folders and builds both: one with this user's caches,
one processor and an open umask, one with empty caches, all processors, a tight umask,
and another user name, home, time zone, language and file times. Every output must be
the same; where one is not, the first differing file and byte are named.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rep, err := a.repro(cmd.Context(), &f, keep)
			if err != nil {
				return err
			}
			err = a.print(rep, func() error {
				for _, d := range rep.Differences {
					fmt.Fprintln(a.Out, d)
				}
				if rep.Same {
					_, err := fmt.Fprintf(a.Out, "reproducible: %d files, the same bytes from both builds\n", rep.Files)
					return err
				}
				_, err := fmt.Fprintf(a.Out, "not reproducible: %d of %d files differ\n", len(rep.Differences), rep.Files)
				return err
			})
			if err == nil && !rep.Same {
				return exitCode(exitFailed)
			}
			return err
		},
	}
	f.add(c)
	c.Flags().BoolVar(&keep, "keep", false, "keep the two copies for a closer look")
	return c
}

func (a *app) repro(ctx context.Context, f *buildFlags, keep bool) (_ *ReproReport, err error) {
	tmp, err := os.MkdirTemp("", "weft-repro-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if keep {
			fmt.Fprintf(a.Err, "kept in %s\n", tmp)
		} else if rerr := removeAll(tmp); err == nil {
			err = rerr
		}
	}()
	source, err := filepath.Abs(a.source)
	if err != nil {
		return nil, err
	}
	modules, err := goEnv(ctx, "GOMODCACHE")
	if err != nil {
		return nil, err
	}
	compiled, err := goEnv(ctx, "GOCACHE")
	if err != nil {
		return nil, err
	}
	cache, err := filepath.Abs(filepath.Join(tmp, "cache"))
	if err != nil {
		return nil, err
	}
	// The first build fills the user's cache with downloads; the second gets
	// these and nothing else.
	one, err := newSandbox(source, filepath.Join(tmp, "one"), 0o000, time.Now())
	if err != nil {
		return nil, err
	}
	one.env = map[string]string{"GOMAXPROCS": "1", "GOMODCACHE": modules, "GOCACHE": compiled, "USER": "one", "TZ": "UTC", "LC_ALL": "C"}
	two, err := newSandbox(source, filepath.Join(tmp, "a longer", "way", "to two"), 0o077, time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC))
	if err != nil {
		return nil, err
	}
	home := filepath.Join(tmp, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, err
	}
	two.env = map[string]string{"GOMODCACHE": modules, "GOCACHE": filepath.Join(tmp, "gocache"), "WEFT_CACHE": cache, "HOME": home, "XDG_CACHE_HOME": filepath.Join(home, "c"),
		"USER": "two", "LOGNAME": "two", "TZ": "Pacific/Auckland", "LC_ALL": "C.UTF-8", "TMPDIR": home}
	fmt.Fprintf(a.Err, "building with this user's caches, one processor, umask 000 …\n")
	resOne, took, err := one.build(ctx, f)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.Err, "  %.1f s\nbuilding from nothing but the downloads, all processors, umask 077, another user, home, place and time …\n", took.Seconds())
	if err := a.seedCache(cache); err != nil {
		return nil, err
	}
	resTwo, took, err := two.build(ctx, f)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.Err, "  %.1f s\n", took.Seconds())
	return a.compareResults(ctx, resOne, resTwo)
}

// compareResults compares every output of two builds.
func (a *app) compareResults(ctx context.Context, one, two *build.Result) (*ReproReport, error) {
	rep := &ReproReport{Files: len(one.Outputs)}
	inTwo := map[string]build.Output{}
	for _, o := range two.Outputs {
		inTwo[o.Name] = o
	}
	for _, o := range one.Outputs {
		other, ok := inTwo[o.Name]
		delete(inTwo, o.Name)
		if !ok {
			rep.Differences = append(rep.Differences, o.Name+": only the first build made it")
			continue
		}
		// The files, not what the builds say of them.
		fileA, fileB := filepath.Join(one.Dir, o.Name), filepath.Join(two.Dir, other.Name)
		off, err := compare.Files(fileA, fileB)
		if err != nil {
			return nil, err
		}
		if off < 0 {
			continue
		}
		first := fmt.Sprintf("byte %d", off)
		if strings.HasSuffix(o.Name, ".img.gz") {
			tools, err := a.compareTools(ctx)
			if err != nil {
				return nil, err
			}
			im, err := compare.Images(ctx, tools, fileA, fileB)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("%s differs at byte %d", o.Name, off), err)
			}
			first = im.First()
		}
		rep.Differences = append(rep.Differences, o.Name+": "+first)
	}
	for name := range inTwo {
		rep.Differences = append(rep.Differences, name+": only the second build made it")
	}
	rep.Same = len(rep.Differences) == 0
	return rep, nil
}
