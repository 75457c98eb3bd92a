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
	f.BoolVar(&o.Serial, "serial", false, "run one system after another, also where the paths are the bottleneck: for busy or small machines")
	f.BoolVar(&asJSON, "json", false, "print all values as JSON")
	f.BoolVar(&noNotes, "no-notes", false, "print the table alone")
	f.BoolVar(&list, "list", false, "list the cases")
	f.BoolVar(&install, "install", false, "install missing Debian packages: "+strings.Join(peerPackages, ", "))
	addOptions(c, &o)
	return c
}

// SoakCommand is `test-vm soak`.
func SoakCommand() *cobra.Command {
	o := SoakOptions{}
	var asJSON, random bool
	c := &cobra.Command{
		Use:   "soak",
		Short: "Let random flows through the MPTCP gateways meet random faults, and compare every byte",
		Long: `Build the bed of bench-mptcp and let random flows (sizes, order of ends, resets, rests, refusals, UDP) meet random faults
(link down, black hole, loss and delay, new address, killed gateway). Ten minutes hold what two hours of a busy day would.
It fails if a byte was lost or changed on a flow that no killed gateway has touched, or if a gateway holds more afterwards.`,
		Example: `  go run ./test-vm soak
  go run ./test-vm soak --duration 30s --seed 7`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Progress = c.ErrOrStderr()
			if random {
				o.Seed = uint64(time.Now().UnixNano()) % 1e9
			}
			fmt.Fprintf(o.Progress, "soak: seed %d\n", o.Seed)
			r, err := Soak(c.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(r)
			} else {
				_, err = fmt.Fprint(c.OutOrStdout(), r.Text())
			}
			if err == nil && len(r.Failures) > 0 {
				err = fmt.Errorf("soak: %d failures; repeat with --seed %d --duration %v", len(r.Failures), o.Seed, o.During)
			}
			return err
		},
	}
	f := c.Flags()
	f.DurationVar(&o.During, "duration", 10*time.Minute, "how long new flows begin")
	f.StringVar(&o.System, "system", Weft, "weft, or haproxy to see what a peer makes of it")
	f.BoolVar(&o.Kills, "kills", true, "kill gateways too")
	f.BoolVar(&random, "random", false, "take another seed each time")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	addOptions(c, &o.Options)
	return c
}

// addOptions are the flags that the bench and the soak share.
func addOptions(c *cobra.Command, o *Options) {
	f := c.Flags()
	f.StringVar(&o.Weft, "weft", "bin/host/mptcpproxy", "program of the gateways, built by make host")
	f.StringArrayVar(&o.Set, "set", nil, "NAME=VALUE (NAME+=VALUE for a list), further option of mptcpproxy.main on both gateways; may be repeated")
	f.StringVar(&o.Congestion, "congestion", "", "congestion control of all namespaces (default: as a fresh namespace has it)")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of what is left to chance")
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
