package crond

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// job is one line of a crontab.
type job struct {
	minute, hour, day, month, weekday uint64 // bits
	anyDay, anyWeekday                bool   // the field is *
	reboot                            bool   // once, at the start
	command                           string
	env                               []string // NAME=value lines above it
	line                              int
}

// table is one crontab.
type table struct {
	user string
	jobs []job
}

// maxLine bounds a line; busybox ends lines at 1024 bytes, which scripts of
// today exceed.
const maxLine = 8192

// parseTable reads a crontab. A faulty line is left out and named; the others
// count.
func parseTable(user, text string) (table, []error) {
	t := table{user: user}
	var errs []error
	var env []string
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fail := func(err error) { errs = append(errs, fmt.Errorf("crontab of %s, line %d: %w", user, n, err)) }
		if len(line) > maxLine || strings.IndexByte(line, 0) >= 0 {
			fail(fmt.Errorf("expected a line of up to %d characters", maxLine))
			continue
		}
		if name, value, ok := strings.Cut(line, "="); ok && isName(strings.TrimSpace(name)) {
			value = strings.TrimSpace(value)
			if len(value) > 1 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
				value = value[1 : len(value)-1]
			}
			// Not appended in place: jobs above share the array.
			env = append(env[:len(env):len(env)], strings.TrimSpace(name)+"="+value)
			continue
		}
		j, err := parseJob(line)
		if err != nil {
			fail(err)
			continue
		}
		j.env, j.line = env, n
		t.jobs = append(t.jobs, j)
	}
	return t, errs
}

func isName(s string) bool {
	for i, c := range s {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// special are the words instead of five fields.
func special(word string) (string, bool) {
	switch word {
	case "@yearly", "@annually":
		return "0 0 1 1 *", true
	case "@monthly":
		return "0 0 1 * *", true
	case "@weekly":
		return "0 0 * * 0", true
	case "@daily", "@midnight":
		return "0 0 * * *", true
	case "@hourly":
		return "0 * * * *", true
	}
	return "", false
}

var (
	months   = [...]string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}
	weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
)

// fields cuts the first n words off.
func fields(s string, n int) (words []string, rest string) {
	for range n {
		s = strings.TrimLeft(s, " \t")
		i := strings.IndexAny(s, " \t")
		if i < 0 {
			i = len(s)
		}
		if i == 0 {
			break
		}
		words, s = append(words, s[:i]), s[i:]
	}
	return words, strings.TrimSpace(s)
}

func parseJob(line string) (job, error) {
	var j job
	if line[0] == '@' {
		w, command := fields(line, 1)
		j.command = command
		if command == "" {
			return j, fmt.Errorf("expected a command behind %s", w[0])
		}
		if w[0] == "@reboot" {
			j.reboot = true
			return j, nil
		}
		five, ok := special(w[0])
		if !ok {
			return j, fmt.Errorf("%s: expected @reboot, @hourly, @daily, @weekly, @monthly or @yearly", w[0])
		}
		line = five + " " + command
	}
	w, command := fields(line, 5)
	if len(w) < 5 || command == "" {
		return j, fmt.Errorf("expected five fields (minute, hour, day, month, weekday) and a command")
	}
	j.command = command
	j.anyDay, j.anyWeekday = w[2][0] == '*', w[4][0] == '*'
	for i, f := range []struct {
		what      string
		low, high int
		names     []string
		first     int
		bits      *uint64
	}{
		{"minute", 0, 59, nil, 0, &j.minute}, {"hour", 0, 23, nil, 0, &j.hour}, {"day", 1, 31, nil, 0, &j.day},
		{"month", 1, 12, months[:], 1, &j.month}, {"weekday", 0, 7, weekdays[:], 0, &j.weekday},
	} {
		bits, err := parseField(w[i], f.low, f.high, f.names, f.first)
		if err != nil {
			return j, fmt.Errorf("%s %q: %w", f.what, w[i], err)
		}
		*f.bits = bits
	}
	if j.weekday&(1<<7) != 0 { // Sunday has two numbers
		j.weekday |= 1
	}
	return j, nil
}

// parseField reads a list of values, ranges and steps into bits.
func parseField(s string, low, high int, names []string, first int) (uint64, error) {
	value := func(w string) (int, error) {
		for i, n := range names {
			if len(w) >= 3 && strings.EqualFold(w[:3], n) {
				return i + first, nil
			}
		}
		v, err := strconv.ParseUint(w, 10, 8)
		if err != nil || int(v) < low || int(v) > high {
			return 0, fmt.Errorf("expected numbers from %d to %d", low, high)
		}
		return int(v), nil
	}
	var bits uint64
	for _, item := range strings.Split(s, ",") {
		span, stepText, stepped := strings.Cut(item, "/")
		from, to := low, high
		if names != nil && high == 7 {
			to = 6
		}
		if span != "*" {
			a, b, ranged := strings.Cut(span, "-")
			var err error
			if from, err = value(a); err != nil {
				return 0, err
			}
			switch {
			case ranged:
				if to, err = value(b); err != nil {
					return 0, err
				}
			case !stepped:
				to = from
			}
		}
		step := 1
		if stepped {
			n, err := strconv.ParseUint(stepText, 10, 8)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("expected a number above 0 behind the /")
			}
			step = int(n)
		}
		// busybox lets a range go over the end: fri-mon, 22-2.
		width := high - low + 1
		if names != nil && high == 7 {
			width = 7
		}
		length := to - from
		if length < 0 {
			length += width
		}
		for i := 0; i <= length; i += step {
			v := from + i
			if v > high {
				v -= width
			}
			bits |= 1 << v
		}
	}
	return bits, nil
}

// due tells whether the job is to run in the minute of t.
func (j *job) due(t time.Time) bool {
	if j.reboot || j.minute&(1<<t.Minute()) == 0 || j.hour&(1<<t.Hour()) == 0 || j.month&(1<<t.Month()) == 0 {
		return false
	}
	day, weekday := j.day&(1<<t.Day()) != 0, j.weekday&(1<<t.Weekday()) != 0
	if j.anyDay || j.anyWeekday {
		return day && weekday
	}
	return day || weekday
}
