package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/test-vm/bed"
	"weft/test-vm/lab"
	"weft/test-vm/report"
	"weft/test-vm/run"
	"weft/test-vm/topology"
)

// runFlags are those of run.
type runFlags struct {
	backend, imageDir, hostDir, out string
	pcap, json, html, hold, quiet   bool
	all                             bool
	only                            []string
	timeout                         time.Duration
	seed                            uint64
}

func (p *program) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] FILE|NAME...",
		Short: "Run topologies: start the network, make its checks while its events happen, report",
		Long: `Run topologies: start the network, make its checks while its events happen, report.

A name without a slash is a file of test-vm/topologies. The back end netns needs root and make host; qemu needs no
root and make lab-images. Exit code 1 if a check does not hold.`,
		Example: `  go run ./test-vm run mptcp-two-paths
  go run ./test-vm run --backend netns --html --pcap path-lost
  go run ./test-vm run --backend netns --hold mptcp-two-paths     # then, elsewhere: go run ./test-vm shell gw1`,
		Args: func(_ *cobra.Command, args []string) error {
			if (len(args) == 0) != f.all {
				return usageError{errors.New("run needs a file, the name of a topology, or --all; see go run ./test-vm list")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return p.runAll(c.Context(), &f, args) },
	}
	fl := c.Flags()
	fl.BoolVar(&f.all, "all", false, "run all topologies that ship and run on the back end")
	fl.StringVar(&f.backend, "backend", "qemu", "qemu, netns or mixed")
	fl.BoolVar(&f.pcap, "pcap", false, "capture every link")
	fl.BoolVar(&f.json, "json", false, "print the report as JSON")
	fl.BoolVar(&f.html, "html", false, "write the report as an HTML page as well")
	fl.StringVar(&f.out, "out", "", "folder for page, captures and logs (default test-vm/out/<name>-<backend>)")
	fl.BoolVar(&f.hold, "hold", false, "keep the network after the checks, until Ctrl-C")
	fl.BoolVar(&f.quiet, "quiet", false, "no progress lines")
	fl.StringSliceVar(&f.only, "only", nil, "make these checks only; none = no checks at all")
	fl.DurationVar(&f.timeout, "timeout", 20*time.Minute, "give up a topology after this time")
	fl.StringVar(&f.imageDir, "image-dir", "", "folder with the images, one folder a role (default bin/lab)")
	fl.StringVar(&f.hostDir, "host-dir", "", "folder with the programs for namespaces (default bin/host)")
	fl.Uint64Var(&f.seed, "seed", 1, "of the chance on wires in user space")
	return c
}

func (p *program) runAll(ctx context.Context, f *runFlags, names []string) error {
	backend := topology.Backend(f.backend)
	if backend != topology.QEMU && backend != topology.Netns && backend != topology.Mixed {
		return usageError{fmt.Errorf("--backend %q: want qemu, netns or mixed", f.backend)}
	}
	if f.all {
		dir, err := topologyDir()
		if err != nil {
			return err
		}
		if names, err = filepath.Glob(filepath.Join(dir, "*.toml")); err != nil {
			return err
		}
	}
	var all []*topology.Topology
	var errs []error
	for _, name := range names {
		t, err := loadTopology(name)
		errs = append(errs, err)
		if err == nil && f.all && !t.On(backend) {
			continue
		}
		all = append(all, t)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	failed := 0
	for _, t := range all {
		rep, err := p.runOne(ctx, f, backend, t)
		if rep != nil {
			if err := p.print(f, rep); err != nil {
				return err
			}
		}
		switch {
		case err != nil && (len(all) == 1 || ctx.Err() != nil):
			return err
		case err != nil: // the next one may fare better
			fmt.Fprintf(p.stderr, "test-vm: %s: %v\n", t.Name, err)
			failed++
		case !rep.OK:
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d topologies: not all holds", failed, len(all))
	}
	return nil
}

func (p *program) print(f *runFlags, rep *report.Report) error {
	if f.json {
		return rep.JSON(p.stdout)
	}
	return rep.Text(p.stdout)
}

func (p *program) runOne(ctx context.Context, f *runFlags, backend topology.Backend, t *topology.Topology) (*report.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	out := f.out
	if out == "" {
		var err error
		if out, err = lab.OutDir(t.Name + "-" + string(backend)); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	start := time.Now()
	o := run.Options{
		Options:     bed.Options{Backend: backend, ImageDir: f.imageDir, HostDir: f.hostDir, Seed: f.seed},
		EvidenceDir: out, Only: f.only, NoChecks: len(f.only) == 1 && f.only[0] == "none",
	}
	if o.NoChecks {
		o.Only = nil
	}
	if f.pcap {
		o.PcapDir = out
	}
	if !f.quiet {
		o.Progress = func(format string, args ...any) {
			fmt.Fprintf(p.stderr, "%7.2f  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		}
		o.Progress("%s on %s: %s", t.Name, backend, t.Title)
	}
	if f.hold {
		o.Hold = func(ctx context.Context, b *bed.Bed) error { return p.hold(ctx, b) }
	}
	rep, err := run.Topology(ctx, t, o)
	if rep != nil && f.html {
		path := filepath.Join(out, "report.html")
		file, e := os.Create(path)
		if e == nil {
			e = errors.Join(rep.HTML(file), file.Close())
		}
		if e != nil {
			return rep, errors.Join(err, e)
		}
		fmt.Fprintf(p.stderr, "report: %s\n", path)
	}
	return rep, err
}

// topologyDir is where the topologies that ship are.
func topologyDir() (string, error) {
	root, err := lab.Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "test-vm", "topologies"), nil
}

// loadTopology reads a file, or the topology of that name that ships.
func loadTopology(name string) (*topology.Topology, error) {
	if !strings.ContainsRune(name, '/') && !strings.HasSuffix(name, ".toml") {
		dir, err := topologyDir()
		if err != nil {
			return nil, err
		}
		name = filepath.Join(dir, name+".toml")
	}
	return topology.Load(name)
}

func (p *program) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the topologies that ship",
		Example: "  go run ./test-vm list",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := topologyDir()
			if err != nil {
				return err
			}
			files, err := filepath.Glob(filepath.Join(dir, "*.toml"))
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(p.stdout, 0, 8, 2, ' ', 0)
			var errs []error
			for _, file := range files {
				t, err := topology.Load(file)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				on := "qemu, netns"
				if len(t.Backends) > 0 {
					words := []string{}
					for _, b := range t.Backends {
						words = append(words, string(b))
					}
					on = strings.Join(words, ", ")
				}
				fmt.Fprintf(w, "%s\t%d nodes\t%d checks\t%s\t%s\n", t.Name, len(t.Nodes), len(t.Checks), on, t.Title)
			}
			return errors.Join(append(errs, w.Flush())...)
		},
	}
}

func (p *program) graphCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "graph FILE|NAME",
		Short:   "Draw a topology as SVG",
		Example: "  go run ./test-vm graph mptcp-two-paths >two-paths.svg",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("graph needs one file or name")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			t, err := loadTopology(args[0])
			if err != nil {
				return err
			}
			_, err = io.WriteString(p.stdout, topology.SVG(t))
			return err
		},
	}
}
