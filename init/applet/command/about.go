package command

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Pwd prints the folder the command runs in.
func Pwd(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "LP", "[-LP]\n  -L  as the shell came here   -P  without links (default)")
	if code >= 0 {
		return code
	}
	dir := c.Dir
	pwd := c.Getenv("PWD")
	if o.Has('L') && filepath.IsAbs(pwd) {
		a, erra := os.Stat(pwd)
		b, errb := os.Stat(dir)
		if erra == nil && errb == nil && os.SameFile(a, b) {
			fmt.Fprintln(c.Stdout, pwd)
			return 0
		}
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	fmt.Fprintln(c.Stdout, dir)
	return 0
}

// Whoami prints the name of the user.
func Whoami(_ context.Context, c *unit.Call) int {
	if _, code := options.Parse(c, "", ""); code >= 0 {
		return code
	}
	id := strconv.Itoa(os.Geteuid())
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return failf(c, "%v", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == id {
			fmt.Fprintln(c.Stdout, f[0])
			return 0
		}
	}
	return failf(c, "user %s has no name", id)
}

// Nproc prints how many processors there are for this process.
func Nproc(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "a all=a", "[--all]")
	if code >= 0 {
		return code
	}
	n := runtime.NumCPU()
	if o.Has('a') {
		if entries, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*"); err == nil && len(entries) > 0 {
			n = len(entries)
		}
	}
	fmt.Fprintln(c.Stdout, n)
	return 0
}

// Tty prints the name of the terminal the input comes from.
func Tty(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "s silent=s quiet=s", "[-s]\n  -s  the exit code alone tells")
	if code >= 0 {
		return code
	}
	f, ok := c.Stdin.(*os.File)
	name := ""
	if ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			name, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd()))) // without /proc it stays unnamed
		}
	}
	if name == "" {
		if !o.Has('s') {
			fmt.Fprintln(c.Stdout, "not a tty")
		}
		return 1
	}
	if !o.Has('s') {
		fmt.Fprintln(c.Stdout, name)
	}
	return 0
}

// Date shows or sets the time.
func Date(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "us:d:r:RID:kn utc=u set=s date=d reference=r rfc-email=R iso-8601=I", `[-u] [-d TIME|-r FILE] [+FORMAT] | [-u] -s TIME
  -d  show TIME   -r  time of FILE   -s  set the clock   -u  UTC   -R, -I  standard forms
TIME: @SECONDS, 2026-11-24 13:00[:00], 2026-11-24, 13:00[:00], MMDDhhmm[[CC]YY][.ss]
Example: date -u '+%Y-%m-%d %H:%M:%S'`)
	if code >= 0 {
		return code
	}
	if o.Has('D') {
		return o.Fail("-D is not supported")
	}
	loc := time.Local
	if o.Has('u') {
		loc = time.UTC
	}
	now := time.Now().In(loc)
	format := ""
	set := o.Value('s', "")
	for _, a := range o.Args {
		switch {
		case strings.HasPrefix(a, "+") && format == "":
			format = a[1:]
		case set == "" && !o.Has('d'):
			set = a // the old form: date MMDDhhmm
		default:
			return o.Fail("%q is one argument too many", a)
		}
	}
	t := now
	var err error
	switch {
	case set != "":
		if t, err = parseTime(set, now); err != nil {
			return o.Fail("%v", err)
		}
		ts := unix.NsecToTimespec(t.UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return failf(c, "set the clock: %v", err)
		}
	case o.Has('d'):
		if t, err = parseTime(o.Value('d', ""), now); err != nil {
			return o.Fail("%v", err)
		}
	case o.Has('r'):
		st, err := os.Stat(c.Path(o.Value('r', "")))
		if err != nil {
			return failf(c, "%v", err)
		}
		t = st.ModTime().In(loc)
	}
	switch {
	case format != "":
	case o.Has('R'):
		format = "%a, %d %b %Y %H:%M:%S %z"
	case o.Has('I'):
		format = "%Y-%m-%d"
	default:
		format = "%a %b %e %H:%M:%S %Z %Y"
	}
	fmt.Fprintln(c.Stdout, Format(t, format))
	return 0
}

// parseTime reads the forms that Date's usage lists.
func parseTime(s string, now time.Time) (time.Time, error) {
	loc := now.Location()
	bad := fmt.Errorf("%q is not a time (examples: @1795525200, '2026-11-24 13:00', 13:00, 112413002026)", s)
	if n, ok := strings.CutPrefix(s, "@"); ok {
		f, err := strconv.ParseInt(n, 10, 64)
		if err != nil {
			return now, bad
		}
		return time.Unix(f, 0).In(loc), nil
	}
	if s == "now" || s == "" {
		return now, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", time.RFC3339, "2006-01-02", "2006.01.02-15:04:05", "2006.01.02-15:04", "Mon Jan _2 15:04:05 MST 2006", "Mon Jan _2 15:04:05 2006", time.RFC1123Z, time.RFC1123} {
		if t, err := time.ParseInLocation(layout, s, loc); err == nil {
			return t.In(loc), nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, s, loc); err == nil {
			return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, loc), nil
		}
	}
	digits, sec, hasSec := strings.Cut(s, ".")
	if strings.Trim(digits+sec, "0123456789") != "" || hasSec && len(sec) != 2 {
		return now, bad
	}
	layout := "01021504"
	switch len(digits) {
	case 8:
		digits, layout = digits+strconv.Itoa(now.Year()), layout+"2006"
	case 10:
		layout += "06"
	case 12:
		layout += "2006"
	default:
		return now, bad
	}
	if hasSec {
		digits, layout = digits+sec, layout+"05"
	}
	t, err := time.ParseInLocation(layout, digits, loc)
	if err != nil {
		return now, bad
	}
	return t, nil
}

// Format is strftime(3) in the C locale.
func Format(t time.Time, format string) string {
	var b strings.Builder
	week := func(firstDay time.Weekday) int { // weeks that start on the day, as %U and %W count
		return (t.YearDay() + 6 - int(t.Weekday()+7-firstDay)%7) / 7
	}
	hour12 := (t.Hour()+11)%12 + 1
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		pad := byte(0)
		for i+1 < len(format) && strings.IndexByte("-_0^E", format[i]) >= 0 {
			pad = format[i]
			i++
		}
		number := func(n, width int, fill byte) {
			switch pad {
			case '-':
				width = 0
			case '_':
				fill = ' '
			case '0':
				fill = '0'
			}
			s := strconv.Itoa(n)
			for len(s) < width {
				s = string(fill) + s
			}
			b.WriteString(s)
		}
		text := func(s string) {
			if pad == '^' {
				s = strings.ToUpper(s)
			}
			b.WriteString(s)
		}
		isoYear, isoWeek := t.ISOWeek()
		switch format[i] {
		case 'a':
			text(t.Format("Mon"))
		case 'A':
			text(t.Format("Monday"))
		case 'b', 'h':
			text(t.Format("Jan"))
		case 'B':
			text(t.Format("January"))
		case 'c':
			b.WriteString(t.Format("Mon Jan _2 15:04:05 2006"))
		case 'C':
			number(t.Year()/100, 2, '0')
		case 'd':
			number(t.Day(), 2, '0')
		case 'D', 'x':
			b.WriteString(t.Format("01/02/06"))
		case 'e':
			number(t.Day(), 2, ' ')
		case 'F':
			b.WriteString(t.Format("2006-01-02"))
		case 'g':
			number(isoYear%100, 2, '0')
		case 'G':
			number(isoYear, 4, '0')
		case 'H':
			number(t.Hour(), 2, '0')
		case 'I':
			number(hour12, 2, '0')
		case 'j':
			number(t.YearDay(), 3, '0')
		case 'k':
			number(t.Hour(), 2, ' ')
		case 'l':
			number(hour12, 2, ' ')
		case 'm':
			number(int(t.Month()), 2, '0')
		case 'M':
			number(t.Minute(), 2, '0')
		case 'n':
			b.WriteByte('\n')
		case 'N':
			number(t.Nanosecond(), 9, '0')
		case 'p':
			text(t.Format("PM"))
		case 'P':
			text(strings.ToLower(t.Format("PM")))
		case 'r':
			b.WriteString(t.Format("03:04:05 PM"))
		case 'R':
			b.WriteString(t.Format("15:04"))
		case 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		case 'S':
			number(t.Second(), 2, '0')
		case 't':
			b.WriteByte('\t')
		case 'T', 'X':
			b.WriteString(t.Format("15:04:05"))
		case 'u':
			number((int(t.Weekday())+6)%7+1, 1, '0')
		case 'U':
			number(week(time.Sunday), 2, '0')
		case 'V':
			number(isoWeek, 2, '0')
		case 'w':
			number(int(t.Weekday()), 1, '0')
		case 'W':
			number(week(time.Monday), 2, '0')
		case 'y':
			number(t.Year()%100, 2, '0')
		case 'Y':
			number(t.Year(), 4, '0')
		case 'z':
			b.WriteString(t.Format("-0700"))
		case 'Z':
			text(t.Format("MST"))
		case '%':
			b.WriteByte('%')
		default:
			b.WriteByte('%')
			b.WriteByte(format[i])
		}
	}
	return b.String()
}
