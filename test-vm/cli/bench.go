package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
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
	Runs     int    `json:"runs"`
	Firmware string `json:"firmware"`
	Accel    string `json:"accel"`
	QEMU     string `json:"qemu"`
	First    boots  `json:"first"` // of a fresh disk
	Later    boots  `json:"later"`
	Bare     boots  `json:"bare"`
}

// boots are times until ready: by the guest's clock from the kernel's start, by ours from power-on.
type boots struct {
	Guest []float64 `json:"guest"`
	Wall  []float64 `json:"wall"`
}

func (b *boots) add(r lab.Ready) {
	b.Guest, b.Wall = append(b.Guest, r.Guest.Seconds()), append(b.Wall, r.Wall.Seconds())
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
	floor.Kernel, floor.Initrd, floor.Cmdline = sys.Kernel, sys.Initrd, "console=tty1 console=ttyS0,115200n8 quiet bench" // as the image
	r := benchReport{Runs: runs, Firmware: cfg.Firmware.String()}
	for i := range runs {
		full, err := p.boots(ctx, cfg, 2, &r)
		if err != nil {
			return err
		}
		low, err := p.boots(ctx, floor, 1, &r)
		if err != nil {
			return err
		}
		r.First.add(full[0])
		r.Later.add(full[1])
		r.Bare.add(low[0])
		if !asJSON {
			fmt.Fprintf(p.stdout, "%d of %d: ready %.2f s after the kernel's start, %.2f s after power-on (first boot %.2f and %.2f s); bare init %.2f s\n",
				i+1, runs, full[1].Guest.Seconds(), full[1].Wall.Seconds(), full[0].Guest.Seconds(), full[0].Wall.Seconds(), low[0].Guest.Seconds())
		}
	}
	if asJSON {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(p.stdout, "\nmedians of %d (%s, %s, QEMU %s), seconds\n", runs, r.Firmware, r.Accel, r.QEMU)
	fmt.Fprintf(p.stdout, "                                 guest clock   from power-on\n")
	row := func(name string, b boots, note string) {
		fmt.Fprintf(p.stdout, "  %-30s %11.2f %15.2f   %s\n", name, median(b.Guest), median(b.Wall), note)
	}
	row("ready", r.Later, "limits 6 and 12")
	row("ready, first boot of a disk", r.First, "the data file system is made")
	row("bare Go init, same kernel", r.Bare, "no boot loader")
	fmt.Fprintf(p.stdout, "  %-30s %11.2f\n", "ready / bare init", median(r.Later.Guest)/median(r.Bare.Guest))
	return nil
}

// boots boots a machine n times with the same disk and returns when it was ready each time.
func (p *program) boots(ctx context.Context, cfg lab.Config, n int, r *benchReport) ([]lab.Ready, error) {
	m, err := lab.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	r.Accel, r.QEMU = m.Accel(), m.QEMU().Version
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(5*time.Minute))
	defer cancel()
	var out []lab.Ready
	for i := range n {
		if _, err := m.StartTo(bound, lab.StartLine); err != nil {
			return nil, err
		}
		ready, err := m.WaitReady(bound)
		if err == nil && i < n-1 {
			err = m.PowerOff(bound)
		}
		if err != nil {
			p.save(m)
			return nil, err
		}
		out = append(out, ready)
	}
	return out, nil
}

// median of a list that is not empty.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
