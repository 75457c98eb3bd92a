package logd

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A source says where a line came from; the numbers are ubox's (log/syslog.h).
type source int32

const (
	fromKernel source = 0
	fromSyslog source = 1
	fromLogd   source = 2
)

// entry is one line of the log.
type entry struct {
	id       uint32 // counts up; wraps
	time     int64  // ms since 1970
	boot     int64  // ms since the kernel started, suspended time included
	priority uint32 // facility<<3 | level
	source   source
	text     string // "tag[pid]: message", printable
}

// overhead is what an entry takes in memory beside its text.
const overhead = 64

func (e *entry) size() int { return len(e.text) + overhead }

// maxLine is the most bytes of a line that are kept. Longer ones are cut, and
// say so.
const maxLine = 2048

// defaultPriority is user.notice, for lines without a priority (RFC 3164, 4.3.3).
const defaultPriority = 1<<3 | 5

// parseSyslog takes a datagram of /dev/log apart: "<30>Nov 24 13:00:00 tag[1]: text".
// The time in it is dropped, since the sender's clock is ours; so is a trailing
// newline or NUL. Whatever has no priority is taken whole.
func parseSyslog(b []byte) (priority uint32, text string) {
	s := strings.TrimRight(string(b), "\n\x00")
	priority = defaultPriority
	if rest, ok := strings.CutPrefix(s, "<"); ok {
		if num, after, ok := strings.Cut(rest, ">"); ok && len(num) <= 3 {
			if n, err := strconv.ParseUint(num, 10, 32); err == nil && n <= 191 {
				priority, s = uint32(n), after
			}
		}
	}
	if len(s) >= 16 && s[3] == ' ' && s[6] == ' ' && s[9] == ':' && s[12] == ':' && s[15] == ' ' {
		s = s[16:]
	}
	return priority, printable(s)
}

// parseKmsg takes a record of /dev/kmsg apart (Documentation/ABI/testing/dev-kmsg):
// "6,339,5140900,-;text\n KEY=value\n". stamp is µs since the kernel started.
func parseKmsg(b []byte) (priority uint32, stamp int64, text string, ok bool) {
	head, body, found := strings.Cut(string(b), ";")
	f := strings.SplitN(head, ",", 4)
	if !found || len(f) < 3 {
		return 0, 0, "", false
	}
	n, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil || n > 1<<11 {
		return 0, 0, "", false
	}
	stamp, err = strconv.ParseInt(f[2], 10, 64)
	if err != nil || stamp < 0 {
		return 0, 0, "", false
	}
	text, _, _ = strings.Cut(body, "\n") // the lines after it are device properties
	return uint32(n), stamp, printable(unescapeKmsg(text)), true
}

// unescapeKmsg turns the kernel's \x20 and \\ back into the bytes they stand for.
func unescapeKmsg(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// printable makes one line of s that cannot move a terminal's cursor or pretend
// to be another line: control characters and broken UTF-8 become \x1b and the
// like, tabs blanks. Too much of it is cut.
func printable(s string) string {
	cut := 0
	if len(s) > maxLine {
		cut = len(s) - maxLine
		s = s[:maxLine]
	}
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= ' ' && s[i] < 0x7f
	}
	if !clean {
		var b strings.Builder
		for i := 0; i < len(s); {
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == '\t':
				b.WriteByte(' ')
			case r == utf8.RuneError && n == 1, r < ' ', r >= 0x7f && r < 0xa0, r == 0x2028, r == 0x2029:
				for _, c := range []byte(s[i : i+n]) {
					const hex = "0123456789abcdef"
					b.WriteString(`\x`)
					b.WriteByte(hex[c>>4])
					b.WriteByte(hex[c&15])
				}
			default:
				b.WriteString(s[i : i+n])
			}
			i += n
		}
		s = b.String()
	}
	if cut > 0 {
		s += " [" + strconv.Itoa(cut) + " bytes cut]"
	}
	return s
}

// line is the form that logread prints: "Tue Nov 24 13:00:00 2026 daemon.info tag[1]: text".
func (e *entry) line() string {
	kernel := ""
	if e.source == fromKernel {
		kernel = " kernel:"
	}
	return time.UnixMilli(e.time).Format("Mon Jan _2 15:04:05 2006") + " " + priorityName(e.priority) + kernel + " " + e.text
}

// priorityName is facility.level as syslog.h names them.
func priorityName(p uint32) string {
	facilities := [...]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}
	levels := [...]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
	f := "facility" + strconv.Itoa(int(p>>3))
	switch n := int(p >> 3); {
	case n < len(facilities):
		f = facilities[n]
	case n >= 16 && n < 24:
		f = "local" + strconv.Itoa(n-16)
	}
	return f + "." + levels[p&7]
}
