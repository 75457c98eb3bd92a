package supervise

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
)

var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "ABRT": syscall.SIGABRT, "KILL": syscall.SIGKILL,
	"USR1": syscall.SIGUSR1, "SEGV": syscall.SIGSEGV, "USR2": syscall.SIGUSR2, "PIPE": syscall.SIGPIPE, "ALRM": syscall.SIGALRM,
	"TERM": syscall.SIGTERM, "CHLD": syscall.SIGCHLD, "CONT": syscall.SIGCONT, "STOP": syscall.SIGSTOP, "TSTP": syscall.SIGTSTP,
	"WINCH": syscall.SIGWINCH, "PWR": syscall.SIGPWR,
}

// ParseSignal reads a signal by name, with or without SIG, or by number.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	if sig, ok := signals[strings.TrimPrefix(strings.ToUpper(s), "SIG")]; ok {
		return sig, nil
	}
	return 0, fmt.Errorf("%q is not a signal such as \"HUP\"", s)
}

// capabilities in the order of their numbers, include/uapi/linux/capability.h.
var capabilities = [...]string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
	"checkpoint_restore",
}

// ParseCapability is the number of a capability, named with or without cap_.
func ParseCapability(s string) (uintptr, error) {
	name := strings.TrimPrefix(strings.ToLower(s), "cap_")
	for i, c := range capabilities {
		if c == name {
			return uintptr(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not a capability such as \"net_admin\"", s)
}

// facilities of syslog, RFC 5424 table 1, by LEDE's (syslog.h's) names.
var facilities = map[string]int{
	"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7, "uucp": 8, "cron": 9,
	"authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21,
	"local6": 22, "local7": 23,
}

// ParseFacility is the number of a syslog facility.
func ParseFacility(s string) (int, error) {
	if n, ok := facilities[s]; ok {
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a syslog facility such as \"daemon\"", s)
}

// limitNames maps procd's names to RLIMIT numbers, asm-generic/resource.h.
var limitNames = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9,
	"sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14,
}

// ParseLimit reads "soft hard", or one value for both, each a number or
// "unlimited".
func ParseLimit(name, s string) (Limit, error) {
	if _, ok := limitNames[name]; !ok {
		return Limit{}, fmt.Errorf("%q is not a limit such as \"nofile\"", name)
	}
	f := strings.Fields(s)
	if len(f) == 1 {
		f = append(f, f[0])
	}
	if len(f) != 2 {
		return Limit{}, fmt.Errorf("limit %s: %q is not \"soft hard\"", name, s)
	}
	var v [2]uint64
	for i, w := range f {
		if w == "unlimited" {
			v[i] = math.MaxUint64
			continue
		}
		n, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return Limit{}, fmt.Errorf("limit %s: %q is neither a number nor \"unlimited\"", name, w)
		}
		v[i] = n
	}
	if v[0] > v[1] {
		return Limit{}, fmt.Errorf("limit %s: soft %s is above hard %s", name, f[0], f[1])
	}
	return Limit{Name: name, Soft: v[0], Hard: v[1]}, nil
}

// Resource is the limit's RLIMIT number.
func (l Limit) Resource() int { return limitNames[l.Name] }
