// Package cli is the builder's command line: the subcommands, their flags and
// what they print. What was asked for goes to standard output, everything else
// to standard error; --json is for machines.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/boards"
	"weft/image/rootfs"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Streams are a command's standard files.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// usageError is a command used wrongly.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCode is an error that was reported already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs one command line and returns its exit code: 0 done, 1 failed, 2
// used wrongly.
func Main(ctx context.Context, args []string, s Streams) int {
	a := &app{Streams: s}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		fmt.Fprintln(s.Err, "image: interrupted")
		return exitFailed
	}
	fmt.Fprintf(s.Err, "image: %v\n", err)
	_, usage := errors.AsType[usageError](err)
	if usage || errors.Is(err, boards.ErrUnknown) || errors.Is(err, rootfs.ErrUnknown) || strings.HasPrefix(err.Error(), "unknown command") {
		if usage {
			fmt.Fprintln(s.Err, "hint: `go run ./image help` lists the commands and their flags")
		}
		return exitUsage
	}
	return exitFailed
}

// app is what the commands share.
type app struct {
	Streams
	json   bool
	source string
}

func (a *app) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
		if at.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return at
	}}))
}

// print writes v as JSON, or calls text.
func (a *app) print(v any, text func() error) error {
	if !a.json {
		return text()
	}
	enc := json.NewEncoder(a.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "image",
		Short: "Build LEDE-compatible firmware images",
		Long: `image turns a board, a role and your additions into firmware images.

Inputs are pinned (image/pins/pins.toml), outputs are the same bytes each time, and
each step says whether it ran and why.`,
		Example: `  go run ./image build --board x86-64 --role router
  go run ./image build --packages "iperf3 -netfilter" --files ./my-files
  go run ./image info --board x86-64
  go run ./image diff old.img.gz new.img.gz`,
		SilenceUsage: true, SilenceErrors: true,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the result as JSON")
	root.PersistentFlags().StringVar(&a.source, "source", ".", "top of Weft's source `folder`")
	root.AddCommand(a.buildCommand(), a.infoCommand(), a.manifestCommand(), a.pinsCommand(), a.reproCommand(), a.diffCommand(), a.benchCommand(), a.keysCommand(), a.signCommand(), a.verifyCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetHelpCommandGroupID("")
	walk(root, onlyOnce)
	return root
}

func walk(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walk(sub, f)
	}
}

// onlyOnce makes a flag that is given twice an error: the second would win
// silently otherwise.
func onlyOnce(c *cobra.Command) {
	wrap := func(f *pflag.Flag) {
		if _, done := f.Value.(*once); !done {
			f.Value = &once{Value: f.Value, name: f.Name}
		}
	}
	c.Flags().VisitAll(wrap)
	c.PersistentFlags().VisitAll(wrap)
}

type once struct {
	pflag.Value
	name string
	set  bool
}

// Set sets the value the first time.
func (o *once) Set(s string) error {
	if o.set {
		return errors.New("given twice")
	}
	o.set = true
	return o.Value.Set(s)
}

// noArgs and exactArgs are cobra's checks with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		if cmd.HasSubCommands() {
			return usageError{fmt.Errorf("unknown command %q of %s", args[0], cmd.CommandPath())}
		}
		return usageError{fmt.Errorf("%s takes flags only, not %q", cmd.CommandPath(), args[0])}
	}
	return nil
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s: want %s, got %d arguments", cmd.CommandPath(), what, len(args))}
		}
		return nil
	}
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 0:
		return "-" + size(-n)
	case n >= 10<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 10<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
