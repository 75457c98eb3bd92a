// Package zone gives the process the device's time zone. LEDE keeps it as a POSIX
// rule ("CET-1CEST,M3.5.0,M10.5.0/3") in /etc/TZ, or in the variable TZ, and ships
// no zone files; Go knows only zone files.
package zone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"
)

// Set makes the zone of $TZ, else of /etc/TZ, the one of time.Local. A name such
// as Europe/Berlin in $TZ, and /etc/localtime, are Go's own business and left to
// it. Call it before anything asks for the time; it costs one look at a file.
func Set() {
	rule, ok := os.LookupEnv("TZ")
	if !ok {
		b, err := os.ReadFile("/etc/TZ")
		if err != nil {
			return
		}
		rule = strings.TrimSpace(string(b))
	}
	if loc, err := Parse(rule); err == nil {
		time.Local = loc
	}
}

// Parse makes a location of a POSIX rule (POSIX.1-2017, 8.3, TZ).
func Parse(rule string) (*time.Location, error) {
	name, offset, rest, ok := head(rule)
	if !ok {
		return nil, fmt.Errorf("time zone %q: not of the form CET-1CEST,M3.5.0,M10.5.0/3", rule)
	}
	if rest == "" {
		return time.FixedZone(name, offset), nil
	}
	if !strings.Contains(rest, ",") {
		rule += ",M3.2.0,M11.1.0" // what POSIX systems assume
	}
	// Go reads such rules at the end of a zone file (RFC 8536, 3.3), so it gets a
	// file with nothing else in it: one transition long ago, then the rule.
	loc, err := time.LoadLocationFromTZData("Local", file(name, offset, rule))
	if err != nil {
		return nil, fmt.Errorf("time zone %q: %w", rule, err)
	}
	// Go takes a rule that it cannot read for none: compare midwinter with midsummer.
	_, winter := time.Date(2026, 1, 15, 12, 0, 0, 0, loc).Zone()
	_, summer := time.Date(2026, 7, 15, 12, 0, 0, 0, loc).Zone()
	if winter == summer {
		return nil, fmt.Errorf("time zone %q: the rule for summer time cannot be read", rule)
	}
	return loc, nil
}

// head reads the name and the offset (seconds east) at the start of a rule.
func head(rule string) (name string, offset int, rest string, ok bool) {
	i := 0
	if strings.HasPrefix(rule, "<") {
		if i = strings.IndexByte(rule, '>'); i < 0 {
			return "", 0, "", false
		}
		name = rule[1:i]
		i++
	} else {
		for i < len(rule) && (rule[i]|0x20 >= 'a' && rule[i]|0x20 <= 'z') {
			i++
		}
		name = rule[:i]
	}
	if len(name) < 3 {
		return "", 0, "", false
	}
	rest = rule[i:]
	sign := -1 // POSIX counts west
	if strings.HasPrefix(rest, "-") {
		sign, rest = 1, rest[1:]
	} else {
		rest = strings.TrimPrefix(rest, "+")
	}
	n := 0
	for part, unit := range []int{3600, 60, 1} {
		if part > 0 {
			if !strings.HasPrefix(rest, ":") {
				break
			}
			rest = rest[1:]
		}
		j, v := 0, 0
		for j < len(rest) && j < 2 && rest[j] >= '0' && rest[j] <= '9' {
			v = v*10 + int(rest[j]-'0')
			j++
		}
		if j == 0 || part == 0 && v > 24 || part > 0 && v > 59 {
			return "", 0, "", false
		}
		n += v * unit
		rest = rest[j:]
	}
	return name, sign * n, rest, true
}

// file is a version 2 zone file with one transition and the rule as its footer.
func file(name string, offset int, rule string) []byte {
	var b bytes.Buffer
	header := func(counts [6]uint32) {
		b.WriteString("TZif2" + strings.Repeat("\x00", 15))
		for _, n := range counts {
			b.Write(binary.BigEndian.AppendUint32(nil, n))
		}
	}
	// Counts: UT indicators, standard indicators, leap seconds, transitions, types,
	// bytes of names. The version 1 block is empty but for the type it must have.
	header([6]uint32{0, 0, 0, 0, 1, 1})
	b.Write(make([]byte, 6+1))
	header([6]uint32{0, 0, 0, 1, 1, uint32(len(name) + 1)})
	const longAgo = -1 << 59
	when := int64(longAgo)
	b.Write(binary.BigEndian.AppendUint64(nil, uint64(when)))
	b.WriteByte(0)
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(int32(offset))))
	b.WriteString("\x00\x00" + name + "\x00\n" + rule + "\n")
	return b.Bytes()
}
