package tc

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/florianl/go-tc/core"
)

// suffixed splits a number from its unit, in small letters.
func suffixed(s string) (float64, string, error) {
	i := strings.LastIndexAny(s, "0123456789.") + 1
	v, err := strconv.ParseFloat(s[:i], 64)
	if err != nil || v < 0 || math.IsInf(v, 0) {
		return 0, "", errors.New("not a number")
	}
	return v, strings.ToLower(s[i:]), nil
}

// parseRate reads a rate in bit/s with a unit as iproute2 takes it ("10mbit", "1.5gibit", "100kbps" for bytes); the
// result is in bytes/s.
func parseRate(s string) (uint64, error) {
	v, unit, err := suffixed(s)
	if err != nil {
		return 0, fmt.Errorf("rate %q: want a number with bit, kbit, mbit, gbit (or bps, kbps, mbps, gbps for bytes)", s)
	}
	factor := 1.0 / 8
	bare, isBytes := strings.CutSuffix(unit, "bps")
	if isBytes {
		factor = 1
	} else {
		bare = strings.TrimSuffix(unit, "bit")
	}
	scale, ok := map[string]float64{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}[bare]
	if !ok {
		return 0, fmt.Errorf("rate %q: unknown unit %q", s, unit)
	}
	r := v * factor * scale
	if r > 1e15 {
		return 0, fmt.Errorf("rate %q is too high", s)
	}
	return uint64(r), nil
}

// parseSize reads a size in bytes: "16kb", "1m", "1500", "100kbit".
func parseSize(s string) (uint32, error) {
	v, unit, err := suffixed(s)
	scale, ok := map[string]float64{"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30,
		"kbit": 1024.0 / 8, "mbit": 1024 * 1024 / 8, "gbit": 1 << 27}[unit]
	if err != nil || !ok || v*scale > math.MaxUint32 {
		return 0, fmt.Errorf("size %q: want a number of bytes, with k or m behind it for kilobytes or megabytes", s)
	}
	return uint32(v * scale), nil
}

// parseTime reads a time: "50ms", "1.5s", "100us"; a bare number is in microseconds.
func parseTime(s string) (time.Duration, error) {
	v, unit, err := suffixed(s)
	scale, ok := map[string]float64{"": 1e3, "s": 1e9, "sec": 1e9, "secs": 1e9, "ms": 1e6, "msec": 1e6, "msecs": 1e6, "us": 1e3, "usec": 1e3, "usecs": 1e3, "ns": 1}[unit]
	if err != nil || !ok || v*scale > math.MaxInt64/2 {
		return 0, fmt.Errorf("time %q: want a number with s, ms or us", s)
	}
	return time.Duration(math.Round(v * scale)), nil
}

// parsePercent reads "1%" as a probability of 32 bits, as netem takes it.
func parsePercent(s string) (uint32, error) {
	number, _ := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v >= 0 && v <= 100) {
		return 0, fmt.Errorf("part %q: want 0%% to 100%%", s)
	}
	return uint32(math.Round(v / 100 * math.MaxUint32)), nil
}

// parseNumber reads a count, decimal or with 0x.
func parseNumber(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("number %q: want a whole number", s)
	}
	return uint32(v), nil
}

// parseHandle reads "1:", "1:10", "root", "ingress" and the like; numbers are hexadecimal.
func parseHandle(s string) (uint32, error) {
	major, minor, ok := strings.Cut(s, ":")
	bad := fmt.Errorf("handle %q: want MAJOR: or MAJOR:MINOR in hexadecimal", s)
	if !ok {
		return 0, bad
	}
	var h uint64
	for i, part := range []string{major, minor} {
		if part == "" {
			continue
		}
		v, err := strconv.ParseUint(part, 16, 16)
		if err != nil {
			return 0, bad
		}
		h |= v << (16 * (1 - i))
	}
	return uint32(h), nil
}

// formatHandle is iproute2's print_tc_classid.
func formatHandle(h uint32) string {
	switch {
	case h == 0xffffffff:
		return "root"
	case h == 0:
		return "none"
	case h>>16 == 0:
		return fmt.Sprintf(":%x", h&0xffff)
	case h&0xffff == 0:
		return fmt.Sprintf("%x:", h>>16)
	}
	return fmt.Sprintf("%x:%x", h>>16, h&0xffff)
}

// formatRate writes bytes/s as iproute2 does: "10Mbit".
func formatRate(bytes uint64) string {
	rate, unit := bytes*8, 0
	units := []string{"", "K", "M", "G", "T"}
	for unit < len(units)-1 && rate >= 1000 && (rate%1000 == 0 || rate >= 1000*1000) {
		rate /= 1000
		unit++
	}
	return fmt.Sprintf("%d%sbit", rate, units[unit])
}

// formatSize writes bytes as iproute2 does: "16Kb".
func formatSize(n uint32) string {
	v := float64(n)
	switch {
	case n >= 1<<20 && math.Abs((1<<20)*math.RoundToEven(v/(1<<20))-v) < 1024:
		return fmt.Sprintf("%gMb", math.RoundToEven(v/(1<<20)))
	case n >= 1<<10 && math.Abs(1024*math.RoundToEven(v/1024)-v) < 16:
		return fmt.Sprintf("%gKb", math.RoundToEven(v/1024))
	}
	return fmt.Sprintf("%db", n)
}

// formatTime writes microseconds as iproute2 does: "50ms".
func formatTime(us float64) string {
	switch {
	case us >= 1e6:
		return fmt.Sprintf("%.3gs", us/1e6)
	case us >= 1e3:
		return fmt.Sprintf("%.3gms", us/1e3)
	}
	return fmt.Sprintf("%dus", uint32(us))
}

func formatPercent(p uint32) string {
	return fmt.Sprintf("%g%%", 100*float64(float32(float64(p)/math.MaxUint32)))
}

// ticks are the scheduler's clock per microsecond (/proc/net/psched).
func ticks() float64 { return float64(core.Time2Tick(1e6)) / 1e6 }

// sendTime is how long n bytes take at a rate (bytes/s), in ticks.
func sendTime(rate uint64, n uint32) uint32 {
	return uint32(1e6 * float64(n) / float64(rate) * ticks())
}

// sendSize is how many bytes go out at a rate in so many ticks.
func sendSize(rate uint64, t uint32) uint32 {
	return uint32(float64(rate) * (float64(t) / ticks()) / 1e6)
}
