// Package ubuscli holds the commands that talk to the bus: ubus, with the verbs,
// output and exit codes of upstream's, and reload_config.
package ubuscli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"weft/init/bus"
	"weft/init/unit"
)

const usageText = `Usage: %s [<options>] <command> [arguments...]
Options:
 -s <socket>:		Set the unix domain socket to connect to
 -t <timeout>:		Set the timeout (in seconds) for a command to complete
 -S:			Use simplified output (for scripts)
 -v:			More verbose output
 -m <type>:		(for monitor): include a specific message type
			(can be used more than once)
 -M <r|t>		(for monitor): only capture received or transmitted traffic
 -V:			Print the version

Commands:
 - list [<path>]			List objects
 - call <path> <method> [<message>]	Call an object method
 - subscribe <path> [<path>...]	Subscribe to object(s) notifications
 - listen [<path>...]			Listen for events
 - send <type> [<message>]		Send an event
 - wait_for <object> [<object>...]	Wait for multiple objects to appear on ubus
 - monitor				Monitor ubus traffic

Example: ubus call system board

`

// messageTypes are the names that monitor prints and -m takes, by number.
var messageTypes = []string{
	"hello", "status", "data", "ping", "lookup", "invoke", "add_object",
	"remove_object", "subscribe", "unsubscribe", "notify",
}

// Exit codes other than those of a status (upstream returns -1 and -2).
const (
	exitUsage   = 1
	exitFailed  = 255
	exitBadArgs = 254
)

// errBadArgs: the command was given wrong arguments.
var errBadArgs = errors.New("wrong arguments")

// ubus is one invocation.
type ubus struct {
	*unit.Call
	socket    string
	timeout   time.Duration // of a command
	listenFor time.Duration // of listen and subscribe, 0: for ever
	simple    bool
	verbose   int
	types     map[uint32]bool
	direction string
	client    *bus.Client

	mu sync.Mutex // for output
}

// Ubus is the ubus command (openwrt/ubus cli.c). It exits with 0; 1 after a
// usage message; 254 for wrong arguments; 255 without a broker; for a failed
// call with 256 less the status, for other failures with the status.
func Ubus(ctx context.Context, c *unit.Call) int {
	u := &ubus{Call: c, timeout: 30 * time.Second, types: map[uint32]bool{}}
	args, code, done := u.options(c.Args[1:])
	if done {
		return code
	}
	if len(args) == 0 {
		return u.usage()
	}
	dial, cancel := context.WithTimeout(ctx, u.timeout)
	var err error
	u.client, err = bus.Dial(dial, u.socket)
	cancel()
	if err != nil {
		if !u.simple {
			fmt.Fprintln(c.Stderr, "Failed to connect to ubus")
			if u.verbose > 0 {
				fmt.Fprintf(c.Stderr, "%v\n", err)
			}
		}
		return exitFailed
	}
	defer u.client.Close()
	return u.command(ctx, args[0], args[1:])
}

// options parses flags as getopt(3) does for "m:M:vs:t:SV": flags may be joined
// and stand between arguments of the command too.
func (u *ubus) options(in []string) (args []string, code int, done bool) {
	for i := 0; i < len(in); i++ {
		a := in[i]
		if a == "--" {
			return append(args, in[i+1:]...), 0, false
		}
		if len(a) < 2 || a[0] != '-' {
			args = append(args, a)
			continue
		}
		for j := 1; j < len(a); j++ {
			value := ""
			if strings.IndexByte("mMst", a[j]) >= 0 {
				if value = a[j+1:]; value == "" {
					if i++; i == len(in) {
						fmt.Fprintf(u.Stderr, "%s: option requires an argument -- '%c'\n", u.Args[0], a[j])
						return nil, u.usage(), true
					}
					value = in[i]
				}
			}
			switch a[j] {
			case 'v':
				u.verbose++
				continue
			case 'S':
				u.simple = true
				continue
			case 'V':
				fmt.Fprintln(u.Stdout, "ubus protocol 0 (weft)")
				return nil, 0, true
			case 's':
				u.socket = u.Path(value)
			case 't':
				n, _ := strconv.Atoi(value) // as atoi: what is no number is 0
				u.listenFor = time.Duration(n) * time.Second
				u.timeout = u.listenFor
				if n <= 0 {
					u.listenFor, u.timeout = 0, 24*365*time.Hour
				}
			case 'm':
				n := slices.Index(messageTypes, value)
				if n < 0 {
					return nil, u.usage(), true
				}
				u.types[uint32(n)] = true
			case 'M':
				if value[0] != 'r' && value[0] != 't' {
					return nil, u.usage(), true
				}
				u.direction = value[:1]
			default:
				fmt.Fprintf(u.Stderr, "%s: invalid option -- '%c'\n", u.Args[0], a[j])
				return nil, u.usage(), true
			}
			break
		}
	}
	return args, 0, false
}

func (u *ubus) usage() int {
	fmt.Fprintf(u.Stderr, usageText, u.Args[0])
	return exitUsage
}

func (u *ubus) command(ctx context.Context, name string, args []string) int {
	limit, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	var err error
	switch name {
	case "list":
		err = u.list(limit, args)
	case "call":
		if err = u.call(limit, args); err != nil && err != errBadArgs {
			return u.callFailed(args, err)
		}
	case "listen":
		return u.listen(ctx, args)
	case "subscribe":
		return u.subscribe(ctx, limit, args)
	case "send":
		err = u.send(limit, args)
	case "wait_for":
		err = u.waitFor(limit, args)
	case "monitor":
		err = u.monitor(ctx)
	default:
		err = errBadArgs
	}
	switch {
	case err == nil:
		return 0
	case err == errBadArgs:
		u.usage()
		return exitBadArgs
	}
	s := status(err)
	if !u.simple {
		fmt.Fprintf(u.Stderr, "Command failed: %v\n", s)
	}
	return int(s)
}

// status is the bus status of an error.
func status(err error) bus.Status {
	var s bus.Status
	if errors.As(err, &s) {
		return s
	}
	return bus.StatusUnknownError
}

// callFailed reports a failed call. Off a terminal the whole command is named,
// so that a log line tells what it was.
func (u *ubus) callFailed(args []string, err error) int {
	s := status(err)
	if !u.simple {
		if f, ok := u.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			fmt.Fprintf(u.Stderr, "Command failed: %v\n", s)
		} else {
			fmt.Fprintf(u.Stderr, "Command failed: ubus call %s (%v)\n", strings.Join(args, " "), s)
		}
	}
	return 256 - int(s)
}

func (u *ubus) list(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return errBadArgs
	}
	pattern := ""
	if len(args) == 1 {
		if pattern = args[0]; pattern == "" {
			return bus.StatusInvalidArgument
		}
	}
	objects, err := u.client.Lookup(ctx, pattern)
	for _, o := range objects {
		if u.simple || u.verbose == 0 {
			fmt.Fprintln(u.Stdout, o.Path)
			continue
		}
		fmt.Fprintf(u.Stdout, "'%s' @%08x\n", o.Path, o.ID)
		for _, m := range o.Methods {
			t := make(bus.Table, len(m.Args))
			for i, a := range m.Args {
				t[i] = bus.Attr{Name: a.Name, Value: a.Type.String()}
			}
			line := bus.Table{{Name: m.Name, Value: t}}.AppendJSON(nil, false)
			fmt.Fprintf(u.Stdout, "\t%s\n", line[1:len(line)-1]) // without the braces
		}
	}
	return err
}

func (u *ubus) message(args []string, i int) (bus.Table, error) {
	if len(args) <= i {
		return nil, nil
	}
	t, err := bus.ParseJSON(args[i])
	if err != nil {
		if u.verbose > 0 {
			fmt.Fprintf(u.Stderr, "%v\n", err)
		}
		return nil, bus.StatusParseError
	}
	return t, nil
}

func (u *ubus) call(ctx context.Context, args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errBadArgs
	}
	msg, err := u.message(args, 2)
	if err != nil {
		return err
	}
	return u.client.CallEach(ctx, args[0], args[1], msg, func(t bus.Table) {
		u.print(t.AppendJSON(nil, !u.simple))
	})
}

func (u *ubus) print(line []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Stdout.Write(append(line, '\n'))
}

// event prints an event or a notification.
func (u *ubus) event(id string, data bus.Table) {
	line := []byte(`{ "` + id + `": `)
	line = data.AppendJSON(line, false)
	u.print(append(line, ' ', '}'))
}

// stay waits for the end of the time, of the context or of the connection.
func (u *ubus) stay(ctx context.Context) int {
	if u.listenFor > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, u.listenFor)
		defer cancel()
	}
	select {
	case <-ctx.Done():
	case <-u.client.Done():
	}
	return 0
}

func (u *ubus) registerFailed(what string, err error) int {
	if !u.simple {
		fmt.Fprintf(u.Stderr, "Error while registering for event '%s': %v\n", what, status(err))
	}
	return exitFailed
}

func (u *ubus) listen(ctx context.Context, args []string) int {
	if len(args) == 0 {
		args = []string{"*"}
	}
	// Patterns may overlap; an event is printed once, for the first that fits.
	for i, pattern := range args {
		if _, err := u.client.OnEvent(pattern, func(id string, data bus.Table) {
			if !slices.ContainsFunc(args[:i], func(p string) bool { return matches(p, id) }) {
				u.event(id, data)
			}
		}); err != nil {
			return u.registerFailed(pattern, err)
		}
	}
	return u.stay(ctx)
}

func matches(pattern, id string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(id, p)
	}
	return pattern == id
}

func (u *ubus) subscribe(ctx, limit context.Context, args []string) int {
	if len(args) == 0 {
		if !u.simple {
			fmt.Fprintln(u.Stderr, "You need to specify an object to subscribe to")
		}
		return exitFailed
	}
	for _, path := range args {
		if _, err := u.client.Lookup(limit, path); err != nil {
			return u.registerFailed(args[0], err)
		}
		if _, err := u.client.Subscribe(path, u.event); err != nil {
			return u.registerFailed(args[0], err)
		}
	}
	return u.stay(ctx)
}

func (u *ubus) send(ctx context.Context, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errBadArgs
	}
	msg, err := u.message(args, 1)
	if err != nil {
		return err
	}
	return u.client.SendEvent(ctx, args[0], msg)
}

func (u *ubus) waitFor(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errBadArgs
	}
	added := make(chan string, 64)
	cancel, err := u.client.OnEvent("ubus.object.add", func(_ string, data bus.Table) {
		select {
		case added <- data.String("path"):
		case <-ctx.Done():
		}
	})
	if err != nil {
		return err
	}
	defer cancel()
	objects, err := u.client.Lookup(ctx, "")
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		return slices.ContainsFunc(objects, func(o bus.ObjectInfo) bool { return o.Path == a })
	})
	for len(missing) > 0 {
		select {
		case path := <-added:
			missing = slices.DeleteFunc(missing, func(a string) bool { return a == path })
		case <-ctx.Done():
			return bus.StatusTimeout
		case <-u.client.Done():
			return bus.StatusConnectionFailed
		}
	}
	return nil
}

func (u *ubus) monitor(ctx context.Context) error {
	err := u.client.Monitor(func(m bus.MonitorMessage) {
		if len(u.types) > 0 && m.Type < 32 && !u.types[m.Type] {
			return
		}
		arrow := "<-"
		if m.Sent {
			arrow = "->"
		}
		if u.direction == "r" && m.Sent || u.direction == "t" && !m.Sent {
			return
		}
		name := strconv.Itoa(int(m.Type))
		if int(m.Type) < len(messageTypes) {
			name = messageTypes[m.Type]
		}
		line := fmt.Appendf(nil, "%s %08x #%08x %14s: ", arrow, m.Client, m.Peer, name)
		u.print(m.Data.AppendJSON(line, false))
	})
	if err != nil {
		return err
	}
	u.stay(ctx)
	return nil
}
