// Package ledd sets the LEDs of `config led` sections in /etc/config/system: it
// runs once at the start and again when the configuration changes, and is no
// process in between.
//
// An LED whose settings are what the kernel has is not touched, so that it does
// not blink at every reload. One that leaves the configuration gets back what it
// had before, which a file in the state folder remembers.
package ledd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"weft/init/uci"
	"weft/init/unit"
)

// sysfs is where the kernel has its LEDs.
const sysfs = "/sys/class/leds"

// led is one section.
type led struct {
	section    string
	name       string // below sysfs
	trigger    string
	brightness string // of trigger none and default-on: 0, or the most there is
	files      [][2]string
}

// parse reads a section. The error says what is wrong.
func parse(s *uci.Section, index int) (led, error) {
	l := led{section: s.Name, name: s.String("sysfs", "")}
	if s.Anonymous {
		l.section = fmt.Sprintf("@led[%d]", index)
	}
	fail := func(option, expected string) (led, error) {
		return l, fmt.Errorf("system.%s: option %s '%s': expected %s", l.section, option, s.String(option, ""), expected)
	}
	if l.name == "" || strings.ContainsAny(l.name, "/\x00") || strings.HasPrefix(l.name, ".") {
		return fail("sysfs", "the name of an LED in "+sysfs)
	}
	l.trigger = s.String("trigger", "none")
	if l.trigger == "" || strings.ContainsAny(l.trigger, " []\n/") {
		return fail("trigger", "the name of a trigger such as none, default-on, timer, heartbeat or netdev")
	}
	l.brightness = "0"
	if s.Bool("default", false) || l.trigger == "default-on" {
		l.brightness = "max"
	}
	number := func(option, file, def string) error {
		v := s.String(option, def)
		if v == "" {
			return nil
		}
		if n, err := strconv.ParseUint(v, 10, 31); err != nil || n > 1<<30 {
			_, err := fail(option, "a number of milliseconds")
			return err
		}
		l.files = append(l.files, [2]string{file, v})
		return nil
	}
	var err error
	switch l.trigger {
	case "timer", "oneshot":
		err = errors.Join(number("delayon", "delay_on", "500"), number("delayoff", "delay_off", "500"))
	case "netdev":
		dev := s.String("dev", "")
		if dev == "" || len(dev) > 15 || strings.ContainsAny(dev, "/ \n") {
			return fail("dev", "the name of a network device")
		}
		l.files = append(l.files, [2]string{"device_name", dev})
		modes := s.List("mode")
		for _, m := range modes {
			if !slices.Contains(netdevModes[:], m) {
				return fail("mode", "words of "+strings.Join(netdevModes[:], ", "))
			}
		}
		for _, m := range netdevModes {
			v := "0"
			if slices.Contains(modes, m) {
				v = "1"
			}
			l.files = append(l.files, [2]string{m, v})
		}
		err = number("interval", "interval", "")
	case "gpio":
		err = number("gpio", "gpio", "")
	}
	return l, err
}

// netdevModes are the files of the kernel's trigger netdev.
var netdevModes = [...]string{"link", "tx", "rx", "link_10", "link_100", "link_1000", "link_2500", "link_5000", "link_10000", "half_duplex", "full_duplex"}

// before is what an LED was like when it was first configured.
type before struct {
	Trigger    string `json:"trigger"`
	Brightness string `json:"brightness"`
}

// setter writes to the LEDs below a folder.
type setter struct {
	dir    string
	warn   func(msg string, args ...any)
	writes int // for tests: how often something was changed
}

func (s *setter) read(led, file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, led, file))
	return strings.TrimSpace(string(b)), err
}

func (s *setter) write(led, file, value string) error {
	s.writes++
	return os.WriteFile(filepath.Join(s.dir, led, file), []byte(value+"\n"), 0)
}

// current is the trigger that an LED has: the one in brackets.
func current(list string) string {
	_, rest, ok := strings.Cut(list, "[")
	name, _, end := strings.Cut(rest, "]")
	if !ok || !end {
		return ""
	}
	return name
}

// state reads what an LED is like now.
func (s *setter) state(led string) (before, error) {
	t, err := s.read(led, "trigger")
	if err != nil {
		return before{}, err
	}
	b, err := s.read(led, "brightness")
	return before{current(t), b}, err
}

// set makes an LED what its section says.
func (s *setter) set(l led) error {
	list, err := s.read(l.name, "trigger")
	if err != nil {
		return fmt.Errorf("system.%s: LED %s: %w", l.section, l.name, err)
	}
	if current(list) != l.trigger {
		if !slices.Contains(strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(list)), l.trigger) {
			return fmt.Errorf("system.%s: LED %s has no trigger %q, it has: %s", l.section, l.name, l.trigger, list)
		}
		if err := s.write(l.name, "trigger", l.trigger); err != nil {
			return fmt.Errorf("system.%s: set LED %s to %s: %w", l.section, l.name, l.trigger, err)
		}
	}
	if l.trigger == "none" || l.trigger == "default-on" {
		want := l.brightness
		if want == "max" {
			if want, err = s.read(l.name, "max_brightness"); err != nil {
				want = "255"
			}
		}
		if now, err := s.read(l.name, "brightness"); err == nil && now != want {
			if err := s.write(l.name, "brightness", want); err != nil {
				return fmt.Errorf("system.%s: LED %s: %w", l.section, l.name, err)
			}
		}
	}
	for _, f := range l.files {
		now, err := s.read(l.name, f[0])
		if errors.Is(err, fs.ErrNotExist) && f[1] == "0" {
			continue // a mode that this kernel does not have, and nobody wants
		}
		if err == nil && now == f[1] {
			continue
		}
		if err := s.write(l.name, f[0], f[1]); err != nil {
			return fmt.Errorf("system.%s: LED %s: %w", l.section, l.name, err)
		}
	}
	return nil
}

// restore gives an LED back what it had.
func (s *setter) restore(led string, b before) error {
	if t, err := s.read(led, "trigger"); err != nil {
		return err
	} else if b.Trigger != "" && current(t) != b.Trigger {
		if err := s.write(led, "trigger", b.Trigger); err != nil {
			return err
		}
	}
	if b.Trigger == "none" {
		return s.write(led, "brightness", b.Brightness)
	}
	return nil
}

// apply makes all LEDs what the package says, and returns what there is to
// remember. A faulty section is named and left out.
func (s *setter) apply(p *uci.Package, known map[string]before) map[string]before {
	now := map[string]before{}
	for i, sec := range p.SectionsOfType("led") {
		l, err := parse(sec, i)
		if err != nil {
			s.warn("LED not set", "error", err)
			continue
		}
		was, seen := known[l.name]
		if !seen {
			if was, err = s.state(l.name); err != nil {
				s.warn("LED not set", "error", fmt.Errorf("system.%s: LED %s: %w", l.section, l.name, err))
				continue
			}
		}
		now[l.name] = was
		if err := s.set(l); err != nil {
			s.warn("LED not set", "error", err)
		}
	}
	for name, b := range known {
		if _, still := now[name]; still {
			continue
		}
		if err := s.restore(name, b); err != nil {
			s.warn("LED not given back", "led", name, "error", err)
		}
	}
	return now
}

// stateFile is in the state folder.
const stateFile = "before.json"

// Run sets the LEDs and ends.
func Run(_ context.Context, env *unit.Env) error {
	dir := sysfs
	if len(env.Args) == 1 {
		dir = env.Call.Path(env.Args[0])
	} else if len(env.Args) > 1 {
		return fmt.Errorf("argument %q: expected the folder of the LEDs, or nothing", env.Args[1])
	}
	tree := uci.Tree{ConfDir: env.ConfigDir, NonStrict: true}
	p, err := tree.LoadCommitted("system")
	if p == nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	known := map[string]before{}
	path := filepath.Join(env.StateDir, stateFile)
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &known); err != nil {
			env.Log.Warn("what LEDs were before is not readable", "file", path, "error", err)
		}
	}
	s := &setter{dir: dir, warn: env.Log.Warn}
	now := s.apply(p, known)
	if len(now) == 0 && len(known) == 0 {
		return nil
	}
	text, err := json.Marshal(now)
	if err == nil {
		err = os.MkdirAll(env.StateDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		return fmt.Errorf("remember what LEDs were before: %w", err)
	}
	return nil
}
