package procps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"weft/init/applet/options"
	"weft/init/unit"
)

const psUsage = `[-w|w] [-o COLUMN[=HEADER],...] [-ef]
Show the processes.
  -o LIST  these columns: pid ppid pgid sid user group uid comm args stat nice
           nlwp tty time etime vsz rss (sizes in KiB); "=" alone: no header
  w        132 columns; ww: lines of any length (so it is in a pipe)
Example: ps -o pid,rss,args`

// column is one that -o knows.
type column struct {
	name, header string
	width        int
	left         bool
	value        func(l *listing, p *process) string
}

// listing is what a column may need beside the process.
type listing struct {
	proc
	names  *names
	uptime time.Duration
}

func columns() []column {
	number := func(f func(p *process) int) func(*listing, *process) string {
		return func(_ *listing, p *process) string { return strconv.Itoa(f(p)) }
	}
	return []column{
		{"pid", "PID", 5, false, number(func(p *process) int { return p.pid })},
		{"ppid", "PPID", 5, false, number(func(p *process) int { return p.ppid })},
		{"pgid", "PGID", 5, false, number(func(p *process) int { return p.pgid })},
		{"sid", "SID", 5, false, number(func(p *process) int { return p.sid })},
		{"uid", "UID", 5, false, number(func(p *process) int { return int(p.uid) })},
		{"user", "USER", 8, true, func(l *listing, p *process) string { return l.names.user(p.uid) }},
		{"group", "GROUP", 8, true, func(l *listing, p *process) string { return l.names.group(p.gid) }},
		{"comm", "COMMAND", 16, true, func(_ *listing, p *process) string { return plain(p.comm) }},
		{"args", "COMMAND", 27, true, func(l *listing, p *process) string { return l.command(p) }},
		{"stat", "STAT", 4, true, func(_ *listing, p *process) string { return p.stat() }},
		{"nice", "NI", 3, false, number(func(p *process) int { return p.nice })},
		{"nlwp", "NLWP", 4, false, number(func(p *process) int { return p.threads })},
		{"tty", "TT", 6, true, func(_ *listing, p *process) string { return terminal(p.tty) }},
		{"time", "TIME", 6, true, func(_ *listing, p *process) string {
			s := p.ticks / hz
			return fmt.Sprintf("%d:%02d", s/60, s%60)
		}},
		{"etime", "ELAPSED", 11, false, func(l *listing, p *process) string {
			return elapsed(l.uptime - time.Duration(p.start)*time.Second/hz)
		}},
		{"vsz", "VSZ", 5, false, func(_ *listing, p *process) string { return size(p.vsz) }},
		{"rss", "RSS", 5, false, func(_ *listing, p *process) string { return size(p.rss) }},
	}
}

// elapsed is a time as [[DD-]hh:]mm:ss.
func elapsed(d time.Duration) string {
	s := max(int64(d/time.Second), 0)
	text := fmt.Sprintf("%02d:%02d", s/60%60, s%60)
	if h := s / 3600 % 24; h > 0 || s >= 86400 {
		text = fmt.Sprintf("%02d:%s", h, text)
	}
	if s >= 86400 {
		text = fmt.Sprintf("%d-%s", s/86400, text)
	}
	return text
}

// Ps lists the processes.
func Ps(ctx context.Context, c *unit.Call) int { return ps(ctx, c, system) }

func ps(_ context.Context, c *unit.Call, root proc) int {
	// -e, -f, -A, -a and -l ask for what is shown anyway, and so does "ps aux".
	o, code := options.Parse(c, "o:efAalw", psUsage)
	if code >= 0 {
		return code
	}
	wide := o.Count('w')
	for _, a := range o.Args {
		if strings.Trim(a, "auxwef") != "" {
			return o.Fail("%q is neither an option nor w", a)
		}
		wide += strings.Count(a, "w")
	}
	known := columns()
	var cols []column
	for _, list := range o.Values('o') {
		// What follows "=" is a header to the end, commas and all, in the last
		// column only (POSIX); busybox takes the same.
		for len(list) > 0 {
			name, rest, _ := strings.Cut(list, ",")
			name, header, renamed := strings.Cut(name, "=")
			i := slices.IndexFunc(known, func(k column) bool { return k.name == name })
			if i < 0 {
				return o.Fail("-o: there is no column %q", name)
			}
			col := known[i]
			if renamed {
				col.header = header
			}
			cols = append(cols, col)
			list = rest
		}
	}
	if o.Has('o') && len(cols) == 0 {
		return o.Fail("-o: no column is named")
	}
	list, err := root.processes()
	if err != nil {
		return fail(c, err)
	}
	l := &listing{proc: root, names: newNames()}
	limit := width(c, wide)
	print := func(line string) {
		fmt.Fprintln(c.Stdout, shorten(strings.TrimRight(line, " "), limit))
	}
	if len(cols) == 0 {
		print("  PID USER       VSZ STAT COMMAND")
		for i := range list {
			p := &list[i]
			print(fmt.Sprintf("%5d %-8.8s%6s %-4s %s", p.pid, l.names.user(p.uid), size(p.vsz), p.stat(), l.command(p)))
		}
		return 0
	}
	if l.uptime, _, err = root.uptime(); err != nil {
		return fail(c, err)
	}
	cell := func(b *strings.Builder, i int, text string) {
		if i > 0 {
			b.WriteByte(' ')
		}
		col := cols[i]
		w := max(col.width, utf8.RuneCountInString(col.header))
		switch {
		case !col.left:
			fmt.Fprintf(b, "%*s", w, text)
		case i == len(cols)-1:
			b.WriteString(text)
		default:
			fmt.Fprintf(b, "%-*.*s", w, w, text)
		}
	}
	if slices.ContainsFunc(cols, func(c column) bool { return c.header != "" }) {
		var b strings.Builder
		for i := range cols {
			cell(&b, i, cols[i].header)
		}
		print(b.String())
	}
	for i := range list {
		var b strings.Builder
		for j := range cols {
			cell(&b, j, cols[j].value(l, &list[i]))
		}
		print(b.String())
	}
	return 0
}

// width is the length at which lines are cut, 0 for none.
func width(c *unit.Call, wide int) int {
	switch {
	case wide > 1:
		return 0
	case wide == 1:
		return 132
	}
	f, ok := c.Stdout.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	cols, _, err := term.GetSize(int(f.Fd()))
	if err != nil || cols < 10 {
		return 80 // a serial line tells no size
	}
	return cols
}

// shorten cuts a line after limit characters.
func shorten(s string, limit int) string {
	if limit == 0 {
		return s
	}
	n := 0
	for i := range s {
		if n == limit {
			return s[:i]
		}
		n++
	}
	return s
}

// fail reports an error under the applet's name and returns exit code 1.
func fail(c *unit.Call, err error) int {
	fmt.Fprintf(c.Stderr, "%s: %v\n", filepath.Base(c.Args[0]), err)
	return 1
}
