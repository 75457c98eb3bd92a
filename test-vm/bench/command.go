package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// peerPackages are the Debian packages of what runs beside ours.
var peerPackages = []string{"haproxy", "mptcpize", "iperf3", "nftables", "iproute2"}

// Command is `test-vm bench-mptcp`.
func Command() *cobra.Command {
	var o Options
	var asJSON, install, list, noNotes bool
	c := &cobra.Command{
		Use:   "bench-mptcp",
		Short: "Measure the MPTCP gateways beside HAProxy and plain routing, in network namespaces",
		Long: `Build client - near - two paths - far - sink from network namespaces (as root), run every load on Weft, HAProxy and
plain routing in the same run, and print what was measured beside what must be reached. It prints and asserts nothing.
The figure of a row is the worst of its directions, each the median of its repetitions.`,
		Example: `  go run ./test-vm bench-mptcp
  go run ./test-vm bench-mptcp --case 2x10 --system weft --quick
  go run ./test-vm bench-mptcp --case cpu,unshaped --set congestion=cubic --json`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(c *cobra.Command, _ []string) error {
			out := c.OutOrStdout()
			if list {
				for _, k := range cases() {
					fmt.Fprintf(out, "%-11s %s\n", k.name, k.about)
				}
				return nil
			}
			o.Progress = c.ErrOrStderr()
			if install {
				if err := installPeers(c); err != nil {
					return err
				}
			}
			start := time.Now()
			var results []Result
			err := o.Run(c.Context(), func(r Result) {
				results = append(results, r)
				for _, x := range r.Rows {
					fmt.Fprintf(o.Progress, "bench: %s: weft %s, haproxy %s, routed %s (%.0f s)\n", x.Title, cell(x, Weft), cell(x, HAProxy), cell(x, Routed), r.Took)
				}
			})
			if err != nil && len(results) == 0 {
				return err
			}
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if eerr := e.Encode(results); eerr != nil {
					return eerr
				}
				return err
			}
			if terr := Table(out, results, !noNotes); terr != nil {
				return terr
			}
			fmt.Fprintf(out, "%d cases in %.0f s; a pair a / b is up / down\n", len(results), time.Since(start).Seconds())
			return err
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.Cases, "case", nil, "only these cases (see --list)")
	f.StringSliceVar(&o.Systems, "system", nil, "only these of weft, haproxy, routed")
	f.BoolVar(&o.Quick, "quick", false, "shorter runs, one repetition")
	f.BoolVar(&asJSON, "json", false, "print all values as JSON")
	f.BoolVar(&noNotes, "no-notes", false, "print the table alone")
	f.BoolVar(&list, "list", false, "list the cases")
	f.BoolVar(&install, "install", false, "install missing Debian packages: "+strings.Join(peerPackages, ", "))
	addOptions(c, &o)
	return c
}

// addOptions are the flags that the bench and the soak share.
func addOptions(c *cobra.Command, o *Options) {
	f := c.Flags()
	f.StringVar(&o.Weft, "weft", "bin/host/mptcpproxy", "program of the gateways, built by make host")
	f.StringArrayVar(&o.Set, "set", nil, "NAME=VALUE, further option of mptcpproxy.main on both gateways; may be repeated")
	f.StringVar(&o.Congestion, "congestion", "", "congestion control of all namespaces (default: as a fresh namespace has it)")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of packet losses")
	f.StringVar(&o.Dir, "dir", "", "keep logs and configurations of the gateways here")
}

// installPeers installs the Debian packages whose programs are missing.
func installPeers(c *cobra.Command) error {
	var missing []string
	for i, program := range []string{"haproxy", "mptcpize", "iperf3", "nft", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, peerPackages[i])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	apt := exec.CommandContext(c.Context(), "apt-get", append([]string{"install", "-y", "--no-install-recommends"}, missing...)...)
	apt.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	apt.Stdout, apt.Stderr = c.ErrOrStderr(), c.ErrOrStderr()
	if err := apt.Run(); err != nil {
		return fmt.Errorf("install %s: %w; without them leave out --system haproxy", strings.Join(missing, " "), err)
	}
	return nil
}
