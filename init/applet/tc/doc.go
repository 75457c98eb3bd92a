// Package tc is the command tc: it shows and changes queueing disciplines, classes and filters, with the words of
// iproute2's tc, by florianl/go-tc.
//
// It knows the queueing disciplines tbf, netem, htb, fq_codel, cake, fq, pfifo, bfifo, ingress and clsact, htb's classes,
// and the filters matchall and u32 (addresses, ports, protocol, TOS) that classify, drop, pass, police or redirect. Output
// has iproute2's form, so that scripts written for it read it; other kinds are shown by name, without their options.
//
// Not supported: batch files, blocks and chains, netem's distributions and slots, rates above 34 Gbit/s, statistics of
// actions.
package tc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"weft/init/unit"
)

const usage = `Usage: tc [-s] qdisc [show [dev DEV] | add|replace|change|del dev DEV root|parent CLASS|ingress|clsact [handle H:] [KIND OPTIONS]]
       tc [-s] class show dev DEV | add|replace|change|del dev DEV parent CLASS classid CLASS htb OPTIONS
       tc [-s] filter show dev DEV [root|ingress|egress|parent H:]
               | add|replace|del dev DEV [parent H:|ingress|egress] [protocol P] [prio N] matchall|u32 MATCH... [flowid CLASS] [action A]
  tbf       rate R burst SIZE latency TIME|limit SIZE [peakrate R mtu SIZE]
  netem     [limit N] [delay TIME [JITTER [CORR]]] [loss PART [CORR]] [duplicate PART] [reorder PART] [corrupt PART] [gap N] [rate R] [ecn]
  htb       [default CLASS] [r2q N] [direct_qlen N]; class: rate R [ceil R] [burst SIZE] [cburst SIZE] [prio N] [quantum N]
  fq_codel  [limit N] [flows N] [quantum N] [target TIME] [interval TIME] [memory_limit SIZE] [ecn|noecn] [drop_batch N] [ce_threshold TIME]
  cake      [bandwidth R|unlimited] [besteffort|diffserv3|diffserv4|diffserv8|precedence] [flowblind|srchost|dsthost|hosts|flows|
            dual-srchost|dual-dsthost|triple-isolate] [nat|nonat] [wash|nowash] [ingress|egress] [ack-filter|ack-filter-aggressive|no-ack-filter]
            [split-gso|no-split-gso] [rtt TIME] [overhead N] [mpu N] [noatm|atm|ptm] [memlimit SIZE]
  fq        [limit N] [flow_limit N] [quantum N] [initial_quantum N] [maxrate R] [buckets N] [pacing|nopacing] [refill_delay TIME]
  pfifo, bfifo  [limit N]
Example: tc qdisc add dev eth1 root tbf rate 10mbit burst 16kb latency 50ms
`

// usageError is a command line that cannot be used.
type usageError string

func (e usageError) Error() string { return string(e) }

// TC is the applet; the exit codes are iproute2's: 0 done, 1 wrong words, 2 refused by the kernel.
func TC(_ context.Context, c *unit.Call) int {
	cmd := &command{words: c.Args[1:], out: c.Stdout}
	for len(cmd.words) > 0 && strings.HasPrefix(cmd.words[0], "-") {
		switch cmd.words[0] {
		case "-s", "-stats", "-statistics":
			cmd.stats = true
		case "-d", "-details", "-p", "-pretty", "-n":
		case "-h", "-help", "--help":
			fmt.Fprint(c.Stdout, usage)
			return 0
		default:
			fmt.Fprintf(c.Stderr, "tc: unknown option %s\n%s", cmd.words[0], usage)
			return 1
		}
		cmd.words = cmd.words[1:]
	}
	err := cmd.run()
	var wrong usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintf(c.Stderr, "tc: %v\ntc: hint: tc -help lists the words\n", err)
		return 1
	}
	fmt.Fprintf(c.Stderr, "tc: %v\n", err)
	return 2
}
