package pid1

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// inittabEntry is one line of /etc/inittab, id:runlevels:action:process, with
// procd's actions (openwrt/procd inittab.c).
type inittabEntry struct {
	tty     string // empty: the console
	action  string
	command []string
}

// asks tells whether Enter is waited for before the process starts.
func (e inittabEntry) asks() bool {
	return e.action == "askfirst" || e.action == "askconsole" || e.action == "askconsolelate"
}

// onTerminal tells whether the entry is a process on a terminal.
func (e inittabEntry) onTerminal() bool {
	return e.asks() || e.action == "respawn" || e.action == "respawnlate"
}

var actions = map[string]bool{
	"sysinit": true, "shutdown": true, "respawn": true, "respawnlate": true, "askfirst": true, "askconsole": true, "askconsolelate": true,
}

// parseInittab reads an inittab. Lines that are wrong are returned as errors
// beside those that are right.
func parseInittab(r io.Reader) (entries []inittabEntry, errs []error) {
	scan := bufio.NewScanner(r)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, ":", 4)
		if len(f) != 4 {
			errs = append(errs, fmt.Errorf("/etc/inittab:%d: want id:runlevels:action:process", n))
			continue
		}
		e := inittabEntry{tty: strings.TrimPrefix(f[0], "/dev/"), action: f[2], command: strings.Fields(f[3])}
		switch {
		case !actions[e.action]:
			errs = append(errs, fmt.Errorf("/etc/inittab:%d: unknown action %q", n, e.action))
		case len(e.command) == 0:
			errs = append(errs, fmt.Errorf("/etc/inittab:%d: no process", n))
		case strings.Contains(e.tty, "..") || strings.Contains(e.tty, "\x00"):
			errs = append(errs, fmt.Errorf("/etc/inittab:%d: %q is not a terminal", n, e.tty))
		default:
			entries = append(entries, e)
		}
	}
	if err := scan.Err(); err != nil {
		errs = append(errs, fmt.Errorf("read /etc/inittab: %w", err))
	}
	return entries, errs
}
