package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"weft/test-vm/lab"
	"weft/test-vm/lab/bare"
)

func (p *program) benchCommand() *cobra.Command {
	var o options
	var runs int
	var asJSON bool
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the boot, beside the same kernel with a bare Go init",
		Long: `Boot an image several times and print the medians: seconds from the kernel's start to ready by the guest's clock, and
from power-on through firmware and boot loader to ready by ours. In the same run, in turn, the same kernel boots a bare
Go init that prints and stops: the ratio of the two is what a change of this machine's speed leaves alone.`,
		Example: `  go run ./test-vm bench
  go run ./test-vm bench --runs 9 --uefi`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if runs < 1 {
				return usageError{fmt.Errorf("--runs %d: at least one", runs)}
			}
			return p.bench(c.Context(), &o, runs, asJSON)
		},
	}
	o.add(c)
	c.Flags().IntVar(&runs, "runs", 5, "boots of each kind")
	c.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

// benchReport is what bench found; times are seconds, the lists are in the order of the runs.
type benchReport struct {
	Runs      int       `json:"runs"`
	Firmware  string    `json:"firmware"`
	Accel     string    `json:"accel"`
	QEMU      string    `json:"qemu"`
	Guest     []float64 `json:"guest"`
	Wall      []float64 `json:"wall"`
	BareGuest []float64 `json:"bare_guest"`
	BareWall  []float64 `json:"bare_wall"`
}

func (p *program) bench(ctx context.Context, o *options, runs int, asJSON bool) error {
	cfg, err := o.config(ctx, "bench")
	if err != nil {
		return err
	}
	images, err := lab.FindImages(o.binDir, o.board)
	if err != nil {
		return err
	}
	kernel, err := images.Path("kernel")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer os.RemoveAll(dir)
	sys, err := bare.Build(ctx, dir, "amd64", kernel, "")
	if err != nil {
		return err
	}
	floor := cfg
	floor.Name, floor.Firmware, floor.Disks, floor.NICs, floor.Consoles = "bare", lab.BIOS, nil, nil, nil
	floor.Kernel, floor.Initrd, floor.Cmdline = sys.Kernel, sys.Initrd, "console=tty1 console=ttyS0,115200n8 bench"
	r := benchReport{Runs: runs, Firmware: cfg.Firmware.String()}
	for i := range runs {
		full, err := p.once(ctx, cfg, &r)
		if err != nil {
			return err
		}
		low, err := p.once(ctx, floor, &r)
		if err != nil {
			return err
		}
		r.Guest, r.Wall = append(r.Guest, full.Guest.Seconds()), append(r.Wall, full.Wall.Seconds())
		r.BareGuest, r.BareWall = append(r.BareGuest, low.Guest.Seconds()), append(r.BareWall, low.Wall.Seconds())
		if !asJSON {
			fmt.Fprintf(p.stdout, "%d of %d: ready %.2f s after the kernel's start, %.2f s after power-on; bare init %.2f s\n",
				i+1, runs, full.Guest.Seconds(), full.Wall.Seconds(), low.Guest.Seconds())
		}
	}
	if asJSON {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	g, w, b, bw := median(r.Guest), median(r.Wall), median(r.BareGuest), median(r.BareWall)
	fmt.Fprintf(p.stdout, "\nmedians of %d (%s, %s, QEMU %s)\n", runs, r.Firmware, r.Accel, r.QEMU)
	fmt.Fprintf(p.stdout, "  kernel start to ready          %6.2f s (guest)   limit 6\n", g)
	fmt.Fprintf(p.stdout, "  power-on to ready              %6.2f s (wall)    limit 12\n", w)
	fmt.Fprintf(p.stdout, "  kernel start to bare Go init   %6.2f s (guest)\n", b)
	fmt.Fprintf(p.stdout, "  power-on to bare Go init       %6.2f s (wall, without boot loader)\n", bw)
	fmt.Fprintf(p.stdout, "  ready / bare init              %6.2f   (guest)\n", g/b)
	return nil
}

// once boots a machine and returns when it was ready.
func (p *program) once(ctx context.Context, cfg lab.Config, r *benchReport) (lab.Ready, error) {
	m, err := lab.New(ctx, cfg)
	if err != nil {
		return lab.Ready{}, err
	}
	defer m.Close()
	r.Accel, r.QEMU = m.Accel(), m.QEMU().Version
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(3*time.Minute))
	defer cancel()
	first := lab.StartLine
	if cfg.Kernel != "" {
		first = regexp.MustCompile(`Run /init as init process`)
	}
	if _, err := m.StartTo(bound, first); err != nil {
		return lab.Ready{}, err
	}
	ready, err := m.WaitReady(bound)
	if err != nil {
		p.save(m)
		return lab.Ready{}, err
	}
	return ready, nil
}

// median of a list that is not empty.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
