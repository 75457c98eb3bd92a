package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"weft/image/pins"
)

// pinsOptions opens the lock of the source tree, so that an edit counts at once.
func (a *app) pinsOptions() pins.Options {
	o := pins.Options{Progress: a.Err, Log: a.log()}
	if p := filepath.Join(a.source, filepath.FromSlash(pins.LockPath)); exists(p) {
		o.Lock = p
	}
	return o
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

func (a *app) pinsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "pins",
		Short: "the pinned Debian packages: list, update, verify, fetch, path, run, prune",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	open := func(run func(cmd *cobra.Command, s *pins.Store, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			s, err := pins.Open(a.pinsOptions())
			if err != nil {
				return err
			}
			return run(cmd, s, args)
		}
	}
	list := &cobra.Command{Use: "list", Short: "list what is locked", Args: noArgs,
		RunE: open(func(_ *cobra.Command, s *pins.Store, _ []string) error { return s.List(a.Out, a.json) })}

	var arch []string
	var dryRun bool
	update := &cobra.Command{Use: "update", Short: "move the lock to the release's newest versions", Args: noArgs,
		Example: `  go run ./image pins update
  go run ./image pins update --arch arm64 --dry-run`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := pins.UpdateOptions{Options: a.pinsOptions(), Arch: arch, DryRun: dryRun, Stdout: a.Out}
			changed, err := pins.Update(cmd.Context(), o)
			if err != nil {
				return err
			}
			if !changed {
				fmt.Fprintln(a.Out, "nothing newer: the lock stays as it is")
			}
			return nil
		}}
	update.Flags().StringSliceVar(&arch, "arch", nil, "Debian `architectures` to cover beside those that the lock covers")
	update.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would change, and change nothing")

	var repair bool
	verify := &cobra.Command{Use: "verify", Short: "check the cache against the lock", Args: noArgs,
		RunE: open(func(cmd *cobra.Command, s *pins.Store, _ []string) error {
			bad, err := s.Verify(cmd.Context(), a.Out, repair)
			if err == nil && bad > 0 {
				return exitCode(exitFailed)
			}
			return err
		})}
	verify.Flags().BoolVar(&repair, "repair", false, "remove what is wrong, so that it is fetched anew")

	fetch := &cobra.Command{Use: "fetch [NAME...]", Short: "download and unpack packages, all of them by default",
		RunE: open(func(cmd *cobra.Command, s *pins.Store, args []string) error {
			return s.FetchNamed(cmd.Context(), a.Out, args...)
		})}
	where := &cobra.Command{Use: "path NAME", Short: "print where a tool or a package's tree lies", Args: exactArgs(1, "one NAME"),
		RunE: open(func(cmd *cobra.Command, s *pins.Store, args []string) error {
			return s.Path(cmd.Context(), a.Out, args[0])
		})}
	run := &cobra.Command{Use: "run TOOL [ARG...]", Short: "run a pinned tool", DisableFlagParsing: true,
		Example: `  go run ./image pins run unsquashfs -lls root.squashfs`,
		RunE: open(func(cmd *cobra.Command, s *pins.Store, args []string) error {
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s: want the name of a tool", cmd.CommandPath())}
			}
			if args[0] == "--help" || args[0] == "-h" {
				return cmd.Help()
			}
			code, err := s.Run(cmd.Context(), a.In, a.Out, a.Err, args[0], args[1:]...)
			if err == nil && code != 0 {
				return exitCode(code)
			}
			return err
		})}
	prune := &cobra.Command{Use: "prune", Short: "remove from the cache what this lock does not use", Args: noArgs,
		RunE: open(func(_ *cobra.Command, s *pins.Store, _ []string) error { return s.Prune(a.Out) })}
	c.AddCommand(list, update, verify, fetch, where, run, prune)
	return c
}
