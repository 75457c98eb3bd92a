// Package unitfile reads the definitions of native services,
// /usr/lib/weft/services/<name>.toml.
//
// A file holds (durations as "5s", sizes as "64M", all keys optional but command):
//
//	description   = "what it is for"
//	command       = ["/sbin/ubusd"]   # "@name" is a function of PID 1
//	type          = "daemon"          # or "oneshot": runs to its end
//	needs         = ["ubusd"]         # starts when these are ready, and starts them
//	after         = ["boot"]          # order alone: waits for their first result if they are enabled
//	ready         = "notify"          # "exec": ready once executed. Oneshots: always by exit code 0
//	ready_timeout = "60s"             # not ready by then: stopped, counts as a crash; "0s" none
//	watchdog      = "30s"             # health: WATCHDOG=1 must come this often; default none
//	critical      = true              # the hardware watchdog starves while this service is unwell
//	follows       = ["network"]       # UCI packages; a change reloads the service
//	reload_signal = "HUP"             # reload by signal; without: by restart
//	term_timeout  = "5s"              # from SIGTERM to SIGKILL
//	kill          = "group"           # a stop ends all processes; "main": only the first
//	restart       = "always"          # "on-failure", "never"; oneshots: "never"
//	start         = 20                # number of the link /etc/rc.d/S20<name>; 0: started by other services alone, no init script
//	stop          = 90                # number of the link /etc/rc.d/K90<name>; default none
//	stop_last     = true              # a shutdown stops it after all others
//	user, group   = "nobody", "nogroup"
//	capabilities  = ["net_admin"]     # all that it may ever have; missing: all, []: none
//	no_new_privs  = true              # the default
//	nice          = 0
//	dir           = "/"
//	state_dir     = "/var/run/network" # made before the start, owned by the user
//	memory_max    = "64M"             # the default; "0" none. Go programs get GOMEMLIMIT at 3/4 of it
//	memory_high   = "48M"             # default none
//	pids_max      = 128               # the default; 0 none
//	stdout        = true              # to the log as info; false: discarded
//	stderr        = true              # to the log as err
//	facility      = "daemon"
//
//	[respawn]                         # procd's respawn, then a growing delay
//	threshold = "3600s"
//	timeout   = "1s"
//	retry     = 5
//	ceiling   = "5m"
//
//	[environment]
//	GOGC = "50"
//
//	[limits]                          # "soft hard", or one for both; "unlimited"
//	nofile = "1024 4096"
//
// Keys are strict: an unknown one is an error, since a misspelt limit would
// otherwise be none. A file with an error yields a unit that cannot start and
// says why; its neighbours are not touched.
package unitfile

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"weft/init/supervise"
)

// Dir is where the native services' files lie.
const Dir = "/usr/lib/weft/services"

// Defaults of keys whose zero value would be unsafe.
const (
	DefaultReadyTimeout   = 60 * time.Second
	DefaultOneshotTimeout = 120 * time.Second
	DefaultRespawnDelay   = time.Second
	DefaultMemoryMax      = 64 << 20
	DefaultPidsMax        = 128
	DefaultStart          = 50 // as rc.common
)

// Unit is a native service.
type Unit struct {
	Name        string
	Description string
	File        string
	Follows     []string // UCI packages
	Start       int      // number of the S link
	Stop        int      // number of the K link, 0: none
	Spec        supervise.Spec
	Err         error // why the unit cannot be started
}

// file is the TOML form.
type file struct {
	Description  string            `toml:"description"`
	Command      []string          `toml:"command"`
	Type         string            `toml:"type"`
	Needs        []string          `toml:"needs"`
	After        []string          `toml:"after"`
	Ready        string            `toml:"ready"`
	ReadyTimeout *time.Duration    `toml:"ready_timeout"`
	Watchdog     time.Duration     `toml:"watchdog"`
	Critical     bool              `toml:"critical"`
	Follows      []string          `toml:"follows"`
	ReloadSignal string            `toml:"reload_signal"`
	TermTimeout  time.Duration     `toml:"term_timeout"`
	Kill         string            `toml:"kill"`
	Restart      string            `toml:"restart"`
	Start        *int              `toml:"start"`
	Stop         int               `toml:"stop"`
	StopLast     bool              `toml:"stop_last"`
	User         string            `toml:"user"`
	Group        string            `toml:"group"`
	Capabilities *[]string         `toml:"capabilities"`
	NoNewPrivs   *bool             `toml:"no_new_privs"`
	Nice         int               `toml:"nice"`
	Dir          string            `toml:"dir"`
	StateDir     string            `toml:"state_dir"`
	MemoryMax    *string           `toml:"memory_max"`
	MemoryHigh   string            `toml:"memory_high"`
	PidsMax      *int64            `toml:"pids_max"`
	Stdout       *bool             `toml:"stdout"`
	Stderr       *bool             `toml:"stderr"`
	Facility     string            `toml:"facility"`
	Respawn      *respawn          `toml:"respawn"`
	Environment  map[string]string `toml:"environment"`
	Limits       map[string]string `toml:"limits"`
}

type respawn struct {
	Threshold *time.Duration `toml:"threshold"`
	Timeout   *time.Duration `toml:"timeout"`
	Retry     *int           `toml:"retry"`
	Ceiling   *time.Duration `toml:"ceiling"`
}

// Load reads all *.toml files of dir, sorted by name. A file that cannot be
// read or is wrong is a Unit with Err set. The error is about the folder.
func Load(dir string) ([]*Unit, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read unit files: %w", err)
	}
	var units []*Unit
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok || e.IsDir() || name == "" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			units = append(units, broken(name, path, fmt.Errorf("read unit file: %w", err)))
			continue
		}
		units = append(units, Parse(name, path, string(text)))
	}
	return units, nil
}

func broken(name, path string, err error) *Unit {
	return &Unit{
		Name: name, File: path, Start: DefaultStart, Err: err,
		Spec: supervise.Spec{ID: name, Service: name, Instance: "instance1", Native: true, Invalid: err.Error()},
	}
}

// Parse reads one file. path is only named in errors.
func Parse(name, path, text string) *Unit {
	u, err := parse(name, path, text)
	if err != nil {
		return broken(name, path, err)
	}
	return u
}

// position writes errors about one file.
type position struct {
	path, text string
}

// at is an error about a key, with its line.
func (p position) at(key, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s: %s", p.path, p.line(key), key, fmt.Sprintf(format, args...))
}

// line finds the line that a dotted key is set on; 1 if it cannot be found.
func (p position) line(key string) int {
	table := ""
	for i, l := range strings.Split(p.text, "\n") {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "[") {
			table = strings.Trim(strings.TrimSpace(strings.SplitN(l, "#", 2)[0]), "[]")
			table = strings.TrimSpace(table)
			if table == key {
				return i + 1
			}
			continue
		}
		k, _, ok := strings.Cut(l, "=")
		if !ok || strings.HasPrefix(l, "#") {
			continue
		}
		k = strings.Trim(strings.TrimSpace(k), `"'`)
		if table != "" {
			k = table + "." + k
		}
		if k == key || strings.HasPrefix(key, k+".") {
			return i + 1
		}
	}
	return 1
}

// decodeError brings an error of the TOML package to the form path:line: what.
func (p position) decodeError(err error) error {
	var pe toml.ParseError
	if errors.As(err, &pe) && pe.Message != "" {
		return fmt.Errorf("%s:%d: %s", p.path, pe.Position.Line, pe.Message)
	}
	// Wrong types come as text alone: toml: line 3 (last key "needs"): ...
	msg := strings.TrimPrefix(err.Error(), "toml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if line, what, ok := strings.Cut(rest, " "); ok {
			if n, err := strconv.Atoi(line); err == nil {
				return fmt.Errorf("%s:%d: %s", p.path, n, what)
			}
		}
	}
	return fmt.Errorf("%s: %s", p.path, msg)
}

func parse(name, path, text string) (*Unit, error) {
	pos := position{path, text}
	var f file
	md, err := toml.Decode(text, &f)
	if err != nil {
		return nil, pos.decodeError(err)
	}
	if bad := md.Undecoded(); len(bad) > 0 {
		return nil, pos.at(bad[0].String(), "unknown key")
	}

	u := &Unit{
		Name: name, Description: f.Description, File: path, Follows: f.Follows,
		Start: DefaultStart, Stop: f.Stop,
		Spec: supervise.Spec{
			ID: name, Service: name, Instance: "instance1", Native: true,
			Needs: f.Needs, After: f.After, StopLast: f.StopLast,
			Watchdog: f.Watchdog, TermTimeout: f.TermTimeout, Critical: f.Critical,
			Process: supervise.Process{
				Command: f.Command, Dir: f.Dir, StateDir: f.StateDir,
				User: f.User, Group: f.Group, Nice: f.Nice,
				NoNewPrivs: f.NoNewPrivs == nil || *f.NoNewPrivs,
				Stdout:     f.Stdout == nil || *f.Stdout,
				Stderr:     f.Stderr == nil || *f.Stderr,
				Facility:   f.Facility, Tag: name,
			},
		},
	}
	s := &u.Spec
	if len(f.Command) == 0 || f.Command[0] == "" {
		return nil, pos.at("command", "missing: the unit must say what to execute")
	}
	if c := f.Command[0]; !strings.HasPrefix(c, "/") && !strings.HasPrefix(c, "@") {
		return nil, pos.at("command", "%q must be an absolute path", c)
	}
	if f.Start != nil {
		u.Start = *f.Start
	}
	for key, n := range map[string]int{"start": u.Start, "stop": u.Stop} {
		if n < 0 || n > 99 {
			return nil, pos.at(key, "%d is not a number from 0 to 99", n)
		}
	}

	switch f.Type {
	case "", "daemon":
		s.Type = supervise.Daemon
		s.ReadyTimeout = DefaultReadyTimeout
		s.Respawn.On = supervise.RestartAlways
	case "oneshot":
		s.Type = supervise.Oneshot
		s.ReadyTimeout = DefaultOneshotTimeout
		s.Ready = supervise.ReadyExit
	default:
		return nil, pos.at("type", "%q is neither \"daemon\" nor \"oneshot\"", f.Type)
	}
	switch {
	case f.Ready == "" && s.Type == supervise.Oneshot, f.Ready == "exit" && s.Type == supervise.Oneshot:
	case f.Ready == "exec" && s.Type == supervise.Daemon:
		s.Ready = supervise.ReadyExec
	case (f.Ready == "" || f.Ready == "notify") && s.Type == supervise.Daemon:
		s.Ready = supervise.ReadyNotify
	default:
		return nil, pos.at("ready", "%q does not fit: a daemon has \"notify\" or \"exec\", a oneshot \"exit\"", f.Ready)
	}
	if f.ReadyTimeout != nil {
		s.ReadyTimeout = *f.ReadyTimeout
	}
	switch f.Restart {
	case "":
	case "always":
		s.Respawn.On = supervise.RestartAlways
	case "on-failure":
		s.Respawn.On = supervise.RestartOnFailure
	case "never":
		s.Respawn.On = supervise.RestartNever
	default:
		return nil, pos.at("restart", "%q is none of \"always\", \"on-failure\", \"never\"", f.Restart)
	}
	if s.Type == supervise.Oneshot && s.Respawn.On == supervise.RestartAlways {
		return nil, pos.at("restart", "a oneshot that ends well is done: use \"on-failure\"")
	}
	if s.Type == supervise.Oneshot && f.Watchdog > 0 {
		return nil, pos.at("watchdog", "a oneshot has none: use ready_timeout")
	}
	if err := parseRespawn(pos, f.Respawn, &s.Respawn); err != nil {
		return nil, err
	}
	for key, d := range map[string]time.Duration{"ready_timeout": s.ReadyTimeout, "watchdog": s.Watchdog, "term_timeout": s.TermTimeout} {
		if d < 0 {
			return nil, pos.at(key, "%v is negative", d)
		}
	}
	switch f.Kill {
	case "", "group":
	case "main":
		s.KeepChildren = true
	default:
		return nil, pos.at("kill", "%q is neither \"group\" nor \"main\"", f.Kill)
	}
	if f.ReloadSignal != "" {
		if s.ReloadSignal, err = supervise.ParseSignal(f.ReloadSignal); err != nil {
			return nil, pos.at("reload_signal", "%v", err)
		}
	}
	if err := parseProcess(pos, &f, &s.Process); err != nil {
		return nil, err
	}
	return u, nil
}

func parseRespawn(pos position, f *respawn, r *supervise.Respawn) error {
	r.Threshold = supervise.DefaultThreshold
	r.Delay = DefaultRespawnDelay
	r.Retry = supervise.DefaultRetry
	r.Ceiling = supervise.DefaultCeiling
	if f == nil {
		return nil
	}
	for key, v := range map[string]struct {
		from *time.Duration
		to   *time.Duration
	}{"threshold": {f.Threshold, &r.Threshold}, "timeout": {f.Timeout, &r.Delay}, "ceiling": {f.Ceiling, &r.Ceiling}} {
		if v.from == nil {
			continue
		}
		if *v.from < 0 {
			return pos.at("respawn."+key, "%v is negative", *v.from)
		}
		*v.to = *v.from
	}
	if f.Retry != nil {
		if *f.Retry < 0 {
			return pos.at("respawn.retry", "%d is negative", *f.Retry)
		}
		r.Retry = *f.Retry
	}
	return nil
}

func parseProcess(pos position, f *file, p *supervise.Process) error {
	var err error
	if f.Nice < -20 || f.Nice > 19 {
		return pos.at("nice", "%d is not a number from -20 to 19", f.Nice)
	}
	if f.Capabilities != nil {
		p.Bounded, p.Capabilities = true, *f.Capabilities
		for _, c := range p.Capabilities {
			if _, err := supervise.ParseCapability(c); err != nil {
				return pos.at("capabilities", "%v", err)
			}
		}
	}
	if p.Facility != "" {
		if _, err := supervise.ParseFacility(p.Facility); err != nil {
			return pos.at("facility", "%v", err)
		}
	}
	p.MemoryMax = DefaultMemoryMax
	if f.MemoryMax != nil {
		if p.MemoryMax, err = ParseSize(*f.MemoryMax); err != nil {
			return pos.at("memory_max", "%v", err)
		}
	}
	if f.MemoryHigh != "" {
		if p.MemoryHigh, err = ParseSize(f.MemoryHigh); err != nil {
			return pos.at("memory_high", "%v", err)
		}
	}
	p.PidsMax = DefaultPidsMax
	if f.PidsMax != nil {
		if p.PidsMax = *f.PidsMax; p.PidsMax < 0 {
			return pos.at("pids_max", "%d is negative", p.PidsMax)
		}
	}
	for _, k := range sortedKeys(f.Environment) {
		p.Env = append(p.Env, k+"="+f.Environment[k])
	}
	if _, set := f.Environment["GOMEMLIMIT"]; !set && p.MemoryMax > 0 {
		p.Env = append(p.Env, "GOMEMLIMIT="+strconv.FormatInt(p.MemoryMax*3/4, 10))
	}
	for _, k := range sortedKeys(f.Limits) {
		l, err := supervise.ParseLimit(k, f.Limits[k])
		if err != nil {
			return pos.at("limits."+k, "%v", err)
		}
		p.Limits = append(p.Limits, l)
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// ParseSize reads bytes with an optional K, M or G (powers of 1024).
func ParseSize(s string) (int64, error) {
	digits, shift := s, 0
	if i := len(s) - 1; i >= 0 {
		switch s[i] {
		case 'K', 'k':
			digits, shift = s[:i], 10
		case 'M', 'm':
			digits, shift = s[:i], 20
		case 'G', 'g':
			digits, shift = s[:i], 30
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size such as \"64M\"", s)
	}
	return n << shift, nil
}
