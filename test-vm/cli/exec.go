package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/test-vm/lab"
)

func (p *program) execCommand() *cobra.Command {
	var o options
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "exec [flags] [--] COMMAND...",
		Short: "Boot an image, run a command in it, print its output, switch off",
		Long: `Boot an image, run a command in it, print its output and switch off.

The words of the command are joined with blanks and given to the guest's shell; the exit code is the command's.`,
		Example: `  go run ./test-vm exec uci show network
  go run ./test-vm exec --uefi -- 'logread | grep -c kernel'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("exec needs a command")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return p.exec(c.Context(), &o, timeout, strings.Join(args, " "))
		},
	}
	o.add(c)
	c.Flags().SetInterspersed(false) // the command has flags of its own
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up after this time")
	return c
}

func (p *program) exec(ctx context.Context, o *options, timeout time.Duration, command string) error {
	cfg, err := o.config(ctx, "exec")
	if err != nil {
		return err
	}
	m, err := lab.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer m.Close()
	bound, cancel := context.WithTimeout(ctx, lab.Timeout(timeout))
	defer cancel()
	res, err := func() (lab.Result, error) {
		if _, err := m.StartTo(bound, lab.StartLine); err != nil {
			return lab.Result{}, err
		}
		if _, err := m.WaitReady(bound); err != nil {
			return lab.Result{}, err
		}
		return m.Run(bound, command)
	}()
	if err != nil {
		p.save(m)
		return err
	}
	if _, err := io.WriteString(p.stdout, res.Output); err != nil {
		return err
	}
	if o.capture {
		p.save(m)
	}
	if err := m.PowerOff(bound); err != nil {
		p.save(m)
		return err
	}
	if res.Code != 0 {
		return exitStatus(res.Code)
	}
	return nil
}
