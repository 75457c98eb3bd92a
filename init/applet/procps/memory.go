package procps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"weft/init/applet/options"
	"weft/init/unit"
)

// memory is what /proc/meminfo tells, in bytes.
type memory struct {
	total, free, available, shared, buffers, cached, swapTotal, swapFree uint64
}

// used is what programs and the kernel have: free(1) of procps and busybox leave
// out what can be had back at once.
func (m *memory) used() uint64 {
	if taken := m.free + m.buffers + m.cached; taken < m.total {
		return m.total - taken
	}
	return 0
}

func (r proc) memory() (memory, error) {
	b, err := os.ReadFile(filepath.Join(string(r), "meminfo"))
	if err != nil {
		return memory{}, err
	}
	m, err := parseMemory(string(b))
	if err != nil {
		return m, fmt.Errorf("%s/meminfo: %w", r, err)
	}
	return m, nil
}

// parseMemory reads meminfo (proc_meminfo(5)): "MemTotal:  245940 kB".
func parseMemory(text string) (memory, error) {
	var m memory
	found := false
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		to := map[string]*uint64{"MemTotal": &m.total, "MemFree": &m.free, "MemAvailable": &m.available, "Shmem": &m.shared,
			"Buffers": &m.buffers, "SwapTotal": &m.swapTotal, "SwapFree": &m.swapFree}[name]
		if to == nil && name != "Cached" && name != "SReclaimable" {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return m, fmt.Errorf("%s has no value", name)
		}
		n, err := strconv.ParseUint(f[0], 10, 54) // << 10 fits
		if err != nil {
			return m, fmt.Errorf("%s: %q is not a number", name, f[0])
		}
		if to == nil {
			// What the kernel can give back of its own counts as cache.
			m.cached += n << 10
			continue
		}
		*to = n << 10
		found = found || name == "MemTotal"
	}
	if !found {
		return m, errors.New("MemTotal is missing")
	}
	return m, nil
}

// Free shows the memory of the device.
func Free(ctx context.Context, c *unit.Call) int { return free(ctx, c, system) }

func free(_ context.Context, c *unit.Call, root proc) int {
	o, code := options.Parse(c, "bkmgh human=h bytes=b kibi=k mebi=m gibi=g", `[-b|-k|-m|-g|-h]
Show the memory of the device.
  -b -k -m -g  in bytes, KiB (as without an option), MiB, GiB     -h  in fitting units
"available" is what programs could get: free, and what the kernel gives back.
Example: free -m`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	m, err := root.memory()
	if err != nil {
		return fail(c, err)
	}
	shift, human := 10, false
	for _, opt := range o.Order {
		human = opt.Letter == 'h'
		shift = map[byte]int{'b': 0, 'k': 10, 'm': 20, 'g': 30}[opt.Letter]
	}
	show := func(n uint64) string {
		if !human {
			return strconv.FormatUint(n>>shift, 10)
		}
		return readable(n)
	}
	fmt.Fprintf(c.Stdout, "%-7s%12s%12s%12s%12s%12s%12s\n", "", "total", "used", "free", "shared", "buff/cache", "available")
	fmt.Fprintf(c.Stdout, "%-7s%12s%12s%12s%12s%12s%12s\n", "Mem:", show(m.total), show(m.used()), show(m.free), show(m.shared),
		show(m.buffers+m.cached), show(m.available))
	fmt.Fprintf(c.Stdout, "%-7s%12s%12s%12s\n", "Swap:", show(m.swapTotal), show(m.swapTotal-min(m.swapFree, m.swapTotal)), show(m.swapFree))
	return 0
}

// readable is a number of bytes with one digit after the point and a unit.
func readable(n uint64) string {
	v, unit := float64(n), ""
	for _, u := range []string{"K", "M", "G", "T", "P", "E"} {
		if v < 1000 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "" {
		return strconv.FormatUint(n, 10)
	}
	return fmt.Sprintf("%.1f%s", v, unit)
}

// uptime is the time since the kernel's start; idle that of all processors
// together without work.
func (r proc) uptime() (up, idle time.Duration, err error) {
	b, err := os.ReadFile(filepath.Join(string(r), "uptime"))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0, 0, fmt.Errorf("%s/uptime: %d fields, expected 2", r, len(f))
	}
	var d [2]time.Duration
	for i := range d {
		s, err := strconv.ParseFloat(f[i], 64)
		if err != nil || s < 0 || s > 1e10 {
			return 0, 0, fmt.Errorf("%s/uptime: %q is not a number of seconds", r, f[i])
		}
		d[i] = time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond)
	}
	return d[0], d[1], nil
}

// load is the text of /proc/loadavg: three loads, running/all threads, last PID.
func (r proc) load() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(string(r), "loadavg"))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b))
	if len(f) != 5 {
		return nil, fmt.Errorf("%s/loadavg: %d fields, expected 5", r, len(f))
	}
	return f, nil
}

// Uptime shows the time, how long the device has run and how much it has to do.
func Uptime(ctx context.Context, c *unit.Call) int { return uptime(ctx, c, system, time.Now()) }

func uptime(_ context.Context, c *unit.Call, root proc, now time.Time) int {
	o, code := options.Parse(c, "", "\nShow the time, the time since boot, and the load over 1, 5 and 15 minutes.")
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 0); code >= 0 {
		return code
	}
	up, _, err := root.uptime()
	if err != nil {
		return fail(c, err)
	}
	load, err := root.load()
	if err != nil {
		return fail(c, err)
	}
	minutes := int(up / time.Minute)
	since := ""
	if days := minutes / 1440; days == 1 {
		since = "1 day, "
	} else if days > 1 {
		since = fmt.Sprintf("%d days, ", days)
	}
	if h := minutes / 60 % 24; h > 0 {
		since += fmt.Sprintf("%2d:%02d", h, minutes%60)
	} else {
		since += fmt.Sprintf("%d min", minutes%60)
	}
	fmt.Fprintf(c.Stdout, " %s up %s,  load average: %s\n", now.Format("15:04:05"), since, strings.Join(load[:3], ", "))
	return 0
}
