// Package tc is the command tc: it shows and changes queueing disciplines, classes and filters, with the words of
// iproute2's tc, by florianl/go-tc.
//
// It knows the queueing disciplines tbf, netem, htb, fq_codel, cake, fq, pfifo, bfifo, ingress and clsact, htb's classes, and
// the filters matchall and u32 (match on addresses, ports and protocol) with the actions that a router needs: mirred,
// police, drop, pass. Output has iproute2's form, so that scripts written for it read it.
//
// Not supported: batch files, blocks and chains, statistical tables of netem's distributions (normal, pareto), slots.
package tc

import (
	"context"
	"fmt"

	"weft/init/unit"
)

// TC is the applet; the exit codes are iproute2's: 0 done, 1 wrong words, 2 refused by the kernel.
func TC(_ context.Context, c *unit.Call) int {
	fmt.Fprintln(c.Stderr, "tc: not yet")
	return 1
}
