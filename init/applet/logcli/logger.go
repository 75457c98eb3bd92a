package logcli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/init/applet/options"
	"weft/init/unit"
)

// Logger writes its arguments, or each line of its input, to the log.
func Logger(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "st:p:u:i", `[-s] [-i] [-t TAG] [-p FACILITY.LEVEL] [-u SOCKET] [MESSAGE]...
Write MESSAGE, or each line of the input, to the log.
  -t TAG   name of the sender (default: the user)     -i  add the process id
  -p PRIO  such as daemon.err or 27 (default user.notice)     -s  to stderr too
Example: logger -t backup -p daemon.warn "disk is full"`)
	if code >= 0 {
		return code
	}
	priority := uint64(1<<3 | 5)
	if p := o.Value('p', ""); p != "" {
		var ok bool
		if priority, ok = parsePriority(p); !ok {
			return o.Fail("-p: %q is not a priority (example: daemon.err)", p)
		}
	}
	tag := o.Value('t', c.Getenv("USER"))
	if tag == "" {
		tag = "root"
	}
	if o.Has('i') {
		tag += "[" + strconv.Itoa(os.Getppid()) + "]"
	}
	socket := o.Value('u', "/dev/log")
	conn, err := net.Dial("unixgram", c.Path(socket))
	if err != nil {
		fmt.Fprintf(c.Stderr, "logger: reach the log at %s: %v (is logd running?)\n", socket, err)
		return 1
	}
	defer conn.Close()
	send := func(text string) bool {
		if o.Has('s') {
			fmt.Fprintf(c.Stderr, "%s: %s\n", tag, text)
		}
		if _, err := fmt.Fprintf(conn, "<%d>%s %s: %s", priority, time.Now().Format(time.Stamp), tag, text); err != nil {
			fmt.Fprintf(c.Stderr, "logger: write to %s: %v\n", socket, err)
			return false
		}
		return true
	}
	if len(o.Args) > 0 {
		if !send(strings.Join(o.Args, " ")) {
			return 1
		}
		return 0
	}
	r := bufio.NewReader(c.Stdin)
	for ctx.Err() == nil {
		line, err := r.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line != "" && !send(line) {
			return 1
		}
		if err == io.EOF {
			return 0
		}
		if err != nil {
			fmt.Fprintf(c.Stderr, "logger: read the input: %v\n", err)
			return 1
		}
	}
	return 1
}

var facilities = [...]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}

var levels = [...]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}

// parsePriority reads daemon.err, err or a number.
func parsePriority(s string) (uint64, bool) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return n, n <= 191
	}
	facility, level, both := strings.Cut(s, ".")
	f := uint64(1)
	if !both {
		level = facility
	} else {
		found := false
		for i, name := range facilities {
			if name == facility || name == "auth" && facility == "security" {
				f, found = uint64(i), true
			}
		}
		if n, ok := strings.CutPrefix(facility, "local"); ok && len(n) == 1 && n[0] >= '0' && n[0] <= '7' {
			f, found = 16+uint64(n[0]-'0'), true
		}
		if !found {
			return 0, false
		}
	}
	switch level {
	case "error":
		level = "err"
	case "warning":
		level = "warn"
	case "panic":
		level = "emerg"
	}
	for i, name := range levels {
		if name == level {
			return f<<3 | uint64(i), true
		}
	}
	return 0, false
}

// priorityName is facility.level as syslog.h names them.
func priorityName(p uint32) string {
	f := "facility" + strconv.Itoa(int(p>>3))
	switch n := int(p >> 3); {
	case n < len(facilities):
		f = facilities[n]
	case n >= 16 && n < 24:
		f = "local" + strconv.Itoa(n-16)
	}
	return f + "." + levels[p&7]
}
