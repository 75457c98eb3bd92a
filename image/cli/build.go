package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"weft/boards"
	"weft/image/build"
	"weft/image/rootfs"
)

// buildFlags are the flags of commands that look at a whole configuration.
type buildFlags struct {
	board, role, packages, files, binDir, extra, disabled string
	partsize                                              int
	strict                                                bool
}

func (f *buildFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.board, "board", "x86-64", "board `name` or profile (PROFILE); `image info` lists them")
	fl.StringVar(&f.role, "role", "router", "role `name`: a folder of buildroot-overlay/roles")
	fl.StringVar(&f.packages, "packages", "", "`names` to add, -name removes (PACKAGES)")
	fl.StringVar(&f.files, "files", "", "`folder` copied over the root file system (FILES)")
	fl.StringVar(&f.binDir, "bin-dir", "bin", "`folder` for targets/<target>/<subtarget> (BIN_DIR)")
	fl.StringVar(&f.extra, "extra-image-name", "", "`word` in the images' names (EXTRA_IMAGE_NAME)")
	fl.StringVar(&f.disabled, "disabled-services", "", "`names` of services that do not start (DISABLED_SERVICES)")
	fl.IntVar(&f.partsize, "rootfs-partsize", 0, "size of each root partition in `MiB` (ROOTFS_PARTSIZE)")
	fl.BoolVar(&f.strict, "strict-pins", false, "fail where a pinned package has left the mirrors (PINS=strict)")
	_ = c.RegisterFlagCompletionFunc("board", cobra.FixedCompletions(boards.List(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("role", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		roles, err := rootfs.Roles("buildroot-overlay/roles")
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return roles, cobra.ShellCompDirectiveNoFileComp
	})
}

func (f *buildFlags) config(a *app) (build.Config, error) {
	cfg := build.Config{
		Source: a.source, Board: f.board, Role: f.role, Packages: strings.Fields(f.packages), BinDir: f.binDir, ExtraName: f.extra,
		DisabledServices: strings.Fields(f.disabled), RootfsPartsize: f.partsize, StrictPins: f.strict, Progress: a.Err, Log: a.log(),
	}
	var err error
	if f.files != "" {
		cfg.Files, err = filepath.Abs(f.files)
	}
	return cfg, err
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	var dryRun, explain bool
	c := &cobra.Command{
		Use:   "build",
		Short: "build the images of a board and a role",
		Example: `  go run ./image build
  go run ./image build --packages iperf3 --rootfs-partsize 256
  go run ./image build --dry-run      # what would run, and why
  go run ./image build --explain-size # where each byte comes from`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config(a)
			if err != nil {
				return err
			}
			cfg.DryRun = dryRun
			cfg.Step = a.step(dryRun)
			b, err := build.New(cfg)
			if err != nil {
				return err
			}
			if explain {
				rep, err := b.ExplainSize(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(rep, func() error { return rep.Write(a.Out) })
			}
			res, err := b.Build(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(res, func() error { return a.built(res, dryRun) })
		},
	}
	f.add(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would run and why, and do nothing")
	c.Flags().BoolVar(&explain, "explain-size", false, "build, then attribute every byte of the image")
	return c
}

// step prints one line as each step ends.
func (a *app) step(dryRun bool) func(build.StepReport) {
	return func(r build.StepReport) {
		switch {
		case r.Cached:
			fmt.Fprintf(a.Err, "  %-20s %9s  cached\n", r.Name, "")
		case dryRun:
			fmt.Fprintf(a.Err, "  %-20s %9s  would run: %s\n", r.Name, "", r.Why)
		default:
			fmt.Fprintf(a.Err, "  %-20s %7.2f s  ran: %s\n", r.Name, r.Time.Seconds(), r.Why)
		}
	}
}

func (a *app) built(res *build.Result, dryRun bool) error {
	if dryRun {
		ran := 0
		for _, s := range res.Steps {
			if !s.Cached {
				ran++
			}
		}
		_, err := fmt.Fprintf(a.Out, "%d of %d steps would run; outputs would go to %s\n", ran, len(res.Steps), res.Dir)
		return err
	}
	dir := res.Dir
	if rel, err := filepath.Rel(".", dir); err == nil && !strings.HasPrefix(rel, "..") {
		dir = rel
	}
	for _, o := range res.Outputs {
		fmt.Fprintf(a.Out, "%10s  %s\n", size(o.Size), filepath.Join(dir, o.Name))
	}
	if res.Pins != "locked" {
		fmt.Fprintf(a.Out, "pins: %s: some inputs are newer than their pins; `go run ./image pins update` refreshes the lock\n", res.Pins)
	}
	_, err := fmt.Fprintf(a.Out, "%s, role %s, built in %.2f s. Boot it: make run\n", res.Board, res.Role, res.Time.Round(10*time.Millisecond).Seconds())
	return err
}

func (a *app) manifestCommand() *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:     "manifest",
		Short:   "list what an image would contain, as name - version",
		Example: `  go run ./image manifest --packages iperf3`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config(a)
			if err != nil {
				return err
			}
			b, err := build.New(cfg)
			if err != nil {
				return err
			}
			lines, err := b.Manifest(cmd.Context())
			if err != nil {
				return err
			}
			entries := map[string]string{}
			for _, l := range lines {
				name, version, _ := strings.Cut(l, " - ")
				entries[name] = version
			}
			return a.print(entries, func() error {
				_, err := fmt.Fprintln(a.Out, strings.Join(lines, "\n"))
				return err
			})
		},
	}
	f.add(c)
	return c
}

func (a *app) infoCommand() *cobra.Command {
	var board string
	c := &cobra.Command{
		Use:   "info",
		Short: "list the boards, or print one board's effective settings",
		Example: `  go run ./image info
  go run ./image info --board x86-64 --json`,
		Args: noArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			if board != "" {
				b, err := boards.Load(board)
				if err != nil {
					return err
				}
				return a.print(b, func() error {
					fmt.Fprintf(a.Out, "# board %s\n", b.Name)
					enc := toml.NewEncoder(a.Out)
					enc.Indent = ""
					return enc.Encode(b)
				})
			}
			list, err := build.Overview(a.source)
			if err != nil {
				return err
			}
			return a.print(list, func() error { return list.Write(a.Out) })
		},
	}
	c.Flags().StringVar(&board, "board", "", "board `name`")
	_ = c.RegisterFlagCompletionFunc("board", cobra.FixedCompletions(boards.List(), cobra.ShellCompDirectiveNoFileComp))
	return c
}
