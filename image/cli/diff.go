package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"weft/image/compare"
	"weft/image/pins"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A B",
		Short: "explain how two images differ: by partition, file, package and size",
		Long: `diff compares two disk images or root file systems (.img.gz or plain). Exit code 0:
the same, 1: different, 2: used wrongly.`,
		Example: `  go run ./image diff old/weft-0.1.0-x86-64-generic-squashfs-combined.img.gz bin/targets/x86/64/weft-0.1.0-x86-64-generic-squashfs-combined.img.gz`,
		Args:    exactArgs(2, "two images"),
		RunE: func(cmd *cobra.Command, args []string) error {
			tools, err := a.compareTools(cmd.Context())
			if err != nil {
				return err
			}
			rep, err := compare.Images(cmd.Context(), tools, args[0], args[1])
			if err != nil {
				return err
			}
			if err := a.print(rep, func() error { return rep.Write(a.Out) }); err != nil {
				return err
			}
			if !rep.Same {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
}

func (a *app) compareTools(ctx context.Context) (compare.Tools, error) {
	store, err := pins.Open(a.pinsOptions())
	if err != nil {
		return compare.Tools{}, err
	}
	unsquashfs, err := store.Tool(ctx, "unsquashfs")
	if err != nil {
		return compare.Tools{}, fmt.Errorf("look into images: %w", err)
	}
	mcopy, err := store.Tool(ctx, "mcopy")
	if err != nil {
		return compare.Tools{}, fmt.Errorf("look into images: %w", err)
	}
	return compare.Tools{Unsquashfs: unsquashfs, Mcopy: mcopy}, nil
}
