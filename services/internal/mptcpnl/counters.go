package mptcpnl

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// procNetstat belongs to the calling thread's network namespace.
const procNetstat = "/proc/thread-self/net/netstat"

// Counters reads the MPTcpExt counters of the calling thread's network
// namespace, by their kernel names (net/mptcp/mib.c).
func Counters() (map[string]uint64, error) {
	b, err := os.ReadFile(procNetstat)
	if err != nil {
		return nil, fmt.Errorf("read MPTCP counters: %w", err)
	}
	c, err := parseCounters(string(b))
	if err != nil {
		return nil, fmt.Errorf("read MPTCP counters from %s: %w", procNetstat, err)
	}
	return c, nil
}

// parseCounters finds the two lines "MPTcpExt: names" and "MPTcpExt: values".
func parseCounters(s string) (map[string]uint64, error) {
	var names []string
	for line := range strings.Lines(s) {
		rest, ok := strings.CutPrefix(line, "MPTcpExt:")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if names == nil {
			names = f
			continue
		}
		if len(f) != len(names) {
			return nil, fmt.Errorf("%d names but %d values", len(names), len(f))
		}
		out := make(map[string]uint64, len(names))
		for i, n := range names {
			v, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("counter %s: %w", n, err)
			}
			out[n] = v
		}
		return out, nil
	}
	return nil, fmt.Errorf("no line MPTcpExt: the kernel has no MPTCP, or it was not used in this namespace yet")
}
