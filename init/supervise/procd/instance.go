package procd

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"weft/init/bus"
	"weft/init/supervise"
)

// Respawn defaults for `respawn` without numbers; UCI can change them.
type RespawnDefaults struct {
	Threshold, Timeout time.Duration
	Retry              int
}

// instance is one instance as it was set.
type instance struct {
	spec     supervise.Spec
	data     bus.Table
	env      bus.Table
	netdev   []string
	files    []string
	limits   bus.Table
	errors   []string
	respawn  bool
	watchdog int    // mode: 0 off, 1 passive, 2 active
	content  string // fingerprint of the files and of the interfaces' numbers
	ignored  []string
}

// same tells whether two instances would run alike.
func (i *instance) same(o *instance) bool {
	return fmt.Sprintf("%#v|%#v|%#v|%s|%v", i.spec, i.data, i.env, i.content, i.watchdog) ==
		fmt.Sprintf("%#v|%#v|%#v|%s|%v", o.spec, o.data, o.env, o.content, o.watchdog)
}

// badArgument is an error that a caller of the bus sees as "invalid argument".
func badArgument(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, bus.StatusInvalidArgument)...)
}

// parseInstance reads the table that procd_close_instance sends.
func parseInstance(service, name string, t bus.Table, def RespawnDefaults) (*instance, error) {
	where := service + "." + name
	in := &instance{spec: supervise.Spec{
		ID: where, Service: service, Instance: name,
		Type: supervise.Daemon, Ready: supervise.ReadyExec, KeepChildren: true,
		TermTimeout: supervise.DefaultTermTimeout,
	}}
	s, p := &in.spec, &in.spec.Process
	requireJail := false
	var jail bool
	for _, a := range t {
		var err error
		switch a.Name {
		case "command":
			p.Command, err = stringList(a.Value)
		case "env":
			in.env, err = stringTable(a.Value)
			for _, e := range in.env {
				p.Env = append(p.Env, e.Name+"="+e.Value.(string))
			}
		case "data":
			in.data, err = table(a.Value)
		case "netdev":
			in.netdev, err = stringList(a.Value)
		case "file":
			in.files, err = stringList(a.Value)
		case "limits":
			if in.limits, err = stringTable(a.Value); err == nil {
				p.Limits, err = limits(in.limits)
			}
		case "respawn":
			in.respawn = true
			err = respawn(a.Value, def, &s.Respawn)
		case "nice":
			p.Nice, err = number(a.Value)
			if err == nil && (p.Nice < -20 || p.Nice > 19) {
				err = fmt.Errorf("%d is not between -20 and 19", p.Nice)
			}
		case "user":
			p.User, err = text(a.Value)
		case "group":
			p.Group, err = text(a.Value)
		case "pidfile":
			p.Pidfile, err = text(a.Value)
		case "stdout":
			p.Stdout, err = boolean(a.Value)
		case "stderr":
			p.Stderr, err = boolean(a.Value)
		case "facility":
			if p.Facility, err = text(a.Value); err == nil {
				_, err = supervise.ParseFacility(p.Facility)
			}
		case "no_new_privs":
			p.NoNewPrivs, err = boolean(a.Value)
		case "reload_signal":
			var n int
			n, err = number(a.Value)
			if err == nil && n != 0 {
				s.ReloadSignal, err = supervise.ParseSignal(strconv.Itoa(n))
			}
		case "term_timeout":
			var n int
			n, err = number(a.Value)
			if err == nil && n > 0 && n < 3600 {
				s.TermTimeout = time.Duration(n) * time.Second
			}
		case "watchdog":
			err = in.setWatchdog(a.Value)
		case "error":
			in.errors, err = stringList(a.Value)
		case "jail":
			jail = true
			var j bus.Table
			if j, err = table(a.Value); err == nil && j.Has("requirejail") {
				requireJail, err = boolean(j.Get("requirejail"))
			}
		default:
			in.ignored = append(in.ignored, a.Name)
		}
		if err != nil {
			return nil, badArgument("instance %s: %s: %v", where, a.Name, err)
		}
	}
	if jail {
		in.ignored = append(in.ignored, "jail")
	}
	switch {
	case requireJail:
		s.Invalid = "it requires a jail, which this system does not have"
	case len(in.errors) > 0:
		s.Invalid = strings.Join(in.errors, "; ")
	case len(p.Command) == 0 || p.Command[0] == "":
		s.Invalid = "it has no command"
	case strings.HasPrefix(p.Command[0], "@"):
		s.Invalid = "its command is not a program"
	}
	in.fingerprint()
	return in, nil
}

// fingerprint takes in what the instance depends on beside its own words.
func (i *instance) fingerprint() {
	h := sha256.New()
	for _, f := range i.files {
		content, err := os.ReadFile(f)
		fmt.Fprintf(h, "file %q %d %v\n", f, len(content), err == nil)
		h.Write(content)
	}
	for _, d := range i.netdev {
		n := 0
		if ifi, err := net.InterfaceByName(d); err == nil {
			n = ifi.Index
		}
		fmt.Fprintf(h, "netdev %q %d\n", d, n)
	}
	i.content = string(h.Sum(nil))
}

func (i *instance) setWatchdog(v any) error {
	w, err := stringList(v)
	if err != nil {
		return err
	}
	n := []int{0, 30} // mode, seconds
	for k, s := range w {
		if k == len(n) {
			break
		}
		if n[k], err = strconv.Atoi(s); err != nil || n[k] < 0 {
			return fmt.Errorf("%q is not a number", s)
		}
	}
	i.watchdog = n[0]
	if n[0] > 0 {
		i.spec.Watchdog = time.Duration(n[1]) * time.Second
	}
	return nil
}

func respawn(v any, def RespawnDefaults, r *supervise.Respawn) error {
	words, err := stringList(v)
	if err != nil {
		return err
	}
	n := []int{int(def.Threshold / time.Second), int(def.Timeout / time.Second), def.Retry}
	for i, w := range words {
		if i == len(n) || w == "" {
			continue
		}
		if n[i], err = strconv.Atoi(w); err != nil || n[i] < 0 {
			return fmt.Errorf("%q is not a number", w)
		}
	}
	*r = supervise.Respawn{
		On: supervise.RestartAlways, Threshold: time.Duration(n[0]) * time.Second, Delay: time.Duration(n[1]) * time.Second,
		Retry: n[2], Ceiling: supervise.DefaultCeiling,
	}
	return nil
}

func limits(t bus.Table) ([]supervise.Limit, error) {
	var out []supervise.Limit
	for _, a := range t {
		l, err := supervise.ParseLimit(a.Name, a.Value.(string))
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Values arrive as the shell wrote them: numbers and booleans may be strings.

func text(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int16, int32, int64:
		return fmt.Sprint(v), nil
	case bool:
		if v {
			return "1", nil
		}
		return "0", nil
	}
	return "", fmt.Errorf("want a string, got %T", v)
}

func number(v any) (int, error) {
	s, err := text(v)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func boolean(v any) (bool, error) {
	s, err := text(v)
	if err != nil {
		return false, err
	}
	switch s {
	case "1", "true", "yes", "on", "enabled":
		return true, nil
	case "0", "false", "no", "off", "disabled", "":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither 1 nor 0", s)
}

func table(v any) (bus.Table, error) {
	switch v := v.(type) {
	case bus.Table:
		return v, nil
	case nil:
		return nil, nil
	}
	return nil, fmt.Errorf("want a table, got %T", v)
}

func stringTable(v any) (bus.Table, error) {
	t, err := table(v)
	if err != nil {
		return nil, err
	}
	out := make(bus.Table, 0, len(t))
	for _, a := range t {
		s, err := text(a.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.Name, err)
		}
		out = append(out, bus.Attr{Name: a.Name, Value: s})
	}
	return out, nil
}

func stringList(v any) ([]string, error) {
	a, ok := v.(bus.Array)
	if !ok {
		if s, err := text(v); err == nil {
			return []string{s}, nil
		}
		return nil, fmt.Errorf("want an array, got %T", v)
	}
	out := make([]string, 0, len(a))
	for _, e := range a {
		s, err := text(e)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
