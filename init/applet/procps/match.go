package procps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/applet/posixre"
	"weft/init/applet/scriptcmd"
	"weft/init/unit"
)

// Pidof prints the process ids of programs by name. Exit code 1: there is none.
func Pidof(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "so:", `[-s] [-o PID]... NAME...
Print the ids of the processes of these names.
  -s  only one     -o PID  not that one ("%PPID": not the caller)
Example: pidof dnsmasq`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	omit := map[int]bool{}
	for _, list := range o.Values('o') {
		for s := range strings.SplitSeq(list, ",") {
			n, err := strconv.Atoi(s)
			if s == "%PPID" {
				n, err = os.Getppid(), nil
			}
			if err != nil {
				return o.Fail("-o: %q is not a process id", s)
			}
			omit[n] = true
		}
	}
	list, err := system.processes()
	if err != nil {
		return fail(c, err)
	}
	var found []string
	for i := range slices.Backward(list) { // the newest first, as everywhere
		p := &list[i]
		if !omit[p.pid] && slices.ContainsFunc(o.Args, func(name string) bool { return system.named(p, name) }) {
			found = append(found, strconv.Itoa(p.pid))
		}
	}
	if len(found) == 0 {
		return 1
	}
	if o.Has('s') {
		found = found[:1]
	}
	fmt.Fprintln(c.Stdout, strings.Join(found, " "))
	return 0
}

// signalOption takes -SIGNAL out of the arguments, as in -HUP, -9 and -SIGUSR1.
// Letters that are options stay.
func signalOption(args []string) (rest []string, sig syscall.Signal, given bool) {
	sig = unix.SIGTERM
	for i, a := range args {
		if a == "--" {
			break
		}
		if len(a) < 2 || a[0] != '-' {
			continue
		}
		// -l, -x … are options; no signal has a name of one letter.
		if n, ok := scriptcmd.SignalNumber(a[1:]); ok && (len(a) > 2 || a[1] >= '0' && a[1] <= '9') {
			return slices.Concat(args[:i], args[i+1:]), n, true
		}
	}
	return args, sig, false
}

// Killall sends a signal to all processes of a name. Exit code 1: a name had
// none, or a signal could not be sent.
func Killall(_ context.Context, c *unit.Call) int {
	call := *c
	rest, sig, _ := signalOption(c.Args[1:])
	call.Args = append([]string{c.Args[0]}, rest...)
	o, code := options.Parse(&call, "lqs:", `[-l] [-q] [-SIGNAL|-s SIGNAL] NAME...
Send a signal (TERM) to all processes of these names.
  -l  list the signals     -q  do not complain when there are none
Example: killall -HUP dnsmasq`)
	if code >= 0 {
		return code
	}
	if o.Has('l') {
		return listSignals(c)
	}
	if name := o.Value('s', ""); o.Has('s') {
		var ok bool
		if sig, ok = scriptcmd.SignalNumber(name); !ok {
			return o.Fail("-s: there is no signal %q", name)
		}
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	list, err := system.processes()
	if err != nil {
		return fail(c, err)
	}
	code = 0
	for _, name := range o.Args {
		found := false
		for i := range list {
			p := &list[i]
			if p.pid == os.Getpid() || !system.named(p, name) {
				continue
			}
			found = true
			if err := send(p, sig); err != nil {
				code = fail(c, err)
			}
		}
		if !found {
			code = 1
			if !o.Has('q') {
				fmt.Fprintf(c.Stderr, "killall: %s: no process killed\n", name)
			}
		}
	}
	return code
}

func listSignals(c *unit.Call) int {
	for n := syscall.Signal(1); n < 32; n++ {
		fmt.Fprintf(c.Stdout, "%2d) %s\n", int(n), scriptcmd.SignalName(n))
	}
	return 0
}

// send signals a process; that it has ended meanwhile is no error.
func send(p *process, sig syscall.Signal) error {
	if err := unix.Kill(p.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to %d (%s): %w", scriptcmd.SignalName(sig), p.pid, plain(p.comm), err)
	}
	return nil
}

const pgrepUsage = `[-flanovxc] [-u USER] [-s SESSION|-P PARENT] [PATTERN]
Print the ids of processes whose name fits the extended regular expression.
  -f  look at the whole command line     -x  it must fit as a whole
  -l  print names too     -a  print command lines too     -c  print the number
  -n  the newest alone    -o  the oldest alone            -v  those that do not fit
Exit code 1: there is none.
Example: pgrep -fl hostapd`

const pkillUsage = `[-SIGNAL|-s SIGNAL] [-fxnovle] [-u USER] [-P PARENT] [PATTERN]
Send a signal (TERM) to the processes whose name fits the extended regular expression.
  -f  look at the whole command line     -x  it must fit as a whole
  -n  the newest alone    -o  the oldest alone            -v  those that do not fit
  -l  list the signals    -e  tell what is killed
Exit code 1: there is none.
Example: pkill -f 'udhcpc.*eth1'`

// Pgrep is pgrep and, under that name, pkill.
func Pgrep(_ context.Context, c *unit.Call) int {
	kill := filepath.Base(c.Args[0]) == "pkill"
	sig := unix.SIGTERM
	var o *options.Set
	var code int
	if kill {
		call := *c
		var rest []string
		rest, sig, _ = signalOption(c.Args[1:])
		call.Args = append([]string{c.Args[0]}, rest...)
		o, code = options.Parse(&call, "fxnovles:u:P: signal=s full=f exact=x newest=n oldest=o", pkillUsage)
	} else {
		o, code = options.Parse(c, "flanovxcu:s:P: full=f exact=x newest=n oldest=o count=c list-full=a", pgrepUsage)
	}
	if code >= 0 {
		return code
	}
	if kill && o.Has('l') {
		return listSignals(c)
	}
	if kill && o.Has('s') {
		var ok bool
		if sig, ok = scriptcmd.SignalNumber(o.Value('s', "")); !ok {
			return o.Fail("-s: there is no signal %q", o.Value('s', ""))
		}
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	narrowed := o.Has('P') || o.Has('u') || !kill && o.Has('s')
	if len(o.Args) == 0 && !narrowed {
		return o.Fail("a pattern is missing")
	}
	if o.Has('n') && o.Has('o') {
		return o.Fail("-n and -o exclude each other")
	}
	parent, code := o.Int('P', -1)
	if code >= 0 {
		return code
	}
	session := -1
	if !kill {
		if session, code = o.Int('s', -1); code >= 0 {
			return code
		}
	}
	pattern := ""
	if len(o.Args) == 1 {
		pattern = o.Args[0]
	}
	re, err := posixre.Compile(pattern, posixre.Options{Extended: true, WholeLine: o.Has('x')})
	if err != nil {
		return o.Fail("%v", err)
	}
	list, err := system.processes()
	if err != nil {
		return fail(c, err)
	}
	users := newNames()
	var found []*process
	for i := range list {
		p := &list[i]
		if p.pid == os.Getpid() || p.state == 'Z' {
			continue
		}
		text := p.comm
		if o.Has('f') {
			if args := system.args(p.pid); len(args) > 0 {
				text = strings.Join(args, " ")
			}
		}
		fits := len(o.Args) == 0 || re.MatchString(text)
		if parent >= 0 {
			fits = fits && p.ppid == parent
		}
		if session >= 0 {
			fits = fits && p.sid == session
		}
		if u := o.Value('u', ""); u != "" {
			fits = fits && (users.user(p.uid) == u || strconv.FormatUint(uint64(p.uid), 10) == u)
		}
		if fits != o.Has('v') {
			found = append(found, p)
		}
	}
	if len(found) > 0 && (o.Has('n') || o.Has('o')) {
		slices.SortStableFunc(found, func(a, b *process) int {
			if a.start != b.start {
				if a.start < b.start {
					return -1
				}
				return 1
			}
			return a.pid - b.pid
		})
		if o.Has('o') {
			found = found[:1]
		} else {
			found = found[len(found)-1:]
		}
	}
	code = 0
	if len(found) == 0 {
		code = 1
	}
	if !kill && o.Has('c') {
		fmt.Fprintln(c.Stdout, len(found))
		return code
	}
	for _, p := range found {
		switch {
		case kill:
			if err := send(p, sig); err != nil {
				code = fail(c, err)
			} else if o.Has('e') {
				fmt.Fprintf(c.Stdout, "%s killed (pid %d)\n", plain(p.comm), p.pid)
			}
		case o.Has('a'):
			fmt.Fprintf(c.Stdout, "%d %s\n", p.pid, system.command(p))
		case o.Has('l'):
			fmt.Fprintf(c.Stdout, "%d %s\n", p.pid, plain(p.comm))
		default:
			fmt.Fprintln(c.Stdout, p.pid)
		}
	}
	return code
}
