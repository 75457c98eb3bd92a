package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/test-vm/lab"
	"weft/test-vm/power"
	"weft/test-vm/power/proof"
)

// powerFlags are those of test-power.
type powerFlags struct {
	board, binDir string
	cuts          int
	seed          uint64
	machines      int
	recording     string
	only          []string
}

func (p *program) powerCommand() *cobra.Command {
	var f powerFlags
	c := &cobra.Command{
		Use:   "test-power",
		Short: "Cut the power during upgrade, rollback, reset and commits, and boot what is left",
		Long: `Record every write of a guest that commits settings, upgrades, is confirmed, rolls back and is reset; then boot the
disk as it is after a cut at any of these writes: with all of them, with any part of those that were not flushed, with the
last one torn. Each boot must come up within three tries, with whole settings, the old ones or the new ones, and a slot
state that makes sense. Exit code 1 if one does not.

A cut is named N:clean, N:drop:SEED or N:torn:SEED; --recording and --cut boot it again.`,
		Example: `  go run ./test-vm test-power --cuts 300
  go run ./test-vm test-power --cuts 20 --seed 7 --recording /tmp/recording
  go run ./test-vm test-power --recording /tmp/recording --cut 812:torn:99`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.cuts < 1 || f.machines < 1 {
				return usageError{errors.New("--cuts and --machines: at least one")}
			}
			if !c.Flags().Changed("seed") {
				f.seed = rand.Uint64() >> 40
			}
			return p.power(c.Context(), &f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.board, "board", "x86-64", "board whose image to take")
	fl.StringVar(&f.binDir, "bin-dir", "", "folder that the builder wrote to (default: bin in the checkout)")
	fl.IntVar(&f.cuts, "cuts", 300, "how many cuts")
	fl.Uint64Var(&f.seed, "seed", 0, "chooses the cuts (default: by chance, and printed)")
	fl.IntVar(&f.machines, "machines", 2, "how many guests run at a time")
	fl.StringVar(&f.recording, "recording", "", "folder of the recording: taken if there is one, else made and kept")
	fl.StringArrayVar(&f.only, "cut", nil, "make this cut alone; may be repeated")
	return c
}

// parseCut reads N:mode or N:mode:seed.
func parseCut(s string) (power.Cut, error) {
	bad := usageError{fmt.Errorf("--cut %q: N:clean, N:drop:SEED or N:torn:SEED is expected", s)}
	part := strings.Split(s, ":")
	if len(part) < 2 || len(part) > 3 {
		return power.Cut{}, bad
	}
	after, err := strconv.Atoi(part[0])
	mode, merr := power.ParseMode(part[1])
	if err != nil || merr != nil || after < 0 || (mode == power.Clean) != (len(part) == 2) {
		return power.Cut{}, bad
	}
	c := power.Cut{After: after, Mode: mode}
	if len(part) == 3 {
		if c.Seed, err = strconv.ParseUint(part[2], 10, 64); err != nil {
			return power.Cut{}, bad
		}
	}
	return c, nil
}

func (p *program) power(ctx context.Context, f *powerFlags) error {
	var cuts []power.Cut
	for _, s := range f.only {
		c, err := parseCut(s)
		if err != nil {
			return err
		}
		cuts = append(cuts, c)
	}
	if f.recording == "" {
		dir, err := os.MkdirTemp("", "weft-power-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		f.recording = filepath.Join(dir, "recording")
	}
	r, err := p.recording(ctx, f)
	if err != nil {
		return err
	}
	defer r.Close()
	if len(cuts) == 0 {
		cuts = r.Choose(f.cuts, f.seed)
		fmt.Fprintf(p.stdout, "%d cuts, seed %d\n", len(cuts), f.seed)
	}
	began := time.Now()
	var sum proof.Summary
	err = r.JudgeAll(ctx, cuts, f.machines, func(o proof.Outcome) {
		sum.Add(o)
		fmt.Fprintf(p.stdout, "%4d of %d  %s\n", sum.Cuts, len(cuts), o)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "\n%s%.0f s\n", sum, time.Since(began).Seconds())
	if sum.Faults > 0 {
		return fmt.Errorf("%d of %d cuts left a fault; seed %d", sum.Faults, sum.Cuts, f.seed)
	}
	return nil
}

// recording opens the one that was asked for, or makes one.
func (p *program) recording(ctx context.Context, f *powerFlags) (*proof.Recording, error) {
	r, err := proof.Open(f.recording)
	if err == nil {
		return r, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(f.recording, 0o755); err != nil {
		return nil, err
	}
	images, err := lab.FindImages(f.binDir, f.board)
	if err != nil {
		return nil, err
	}
	image, err := images.Path("combined")
	if err != nil {
		return nil, err
	}
	began := time.Now()
	return proof.Record(ctx, proof.Options{Image: image, Dir: f.recording, Progress: func(format string, args ...any) {
		fmt.Fprintf(p.stderr, "%7.2f  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}})
}
