package ledd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/uci"
	"weft/init/unit"
)

// fakeLED makes an LED as sysfs has it. Unlike there, a written trigger stands
// alone in the file: want and bracket see to it.
func fakeLED(t *testing.T, dir, name string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	for f, v := range files {
		if err := os.WriteFile(filepath.Join(dir, name, f), []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const triggers = "[none] timer heartbeat netdev default-on"

// bracket turns written triggers into what the kernel would show.
func bracket(t *testing.T, dir string) {
	t.Helper()
	files, _ := filepath.Glob(dir + "/*/trigger")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSpace(string(b)); !strings.Contains(s, "[") {
			list := strings.ReplaceAll("none timer heartbeat netdev default-on", s, "["+s+"]")
			if err := os.WriteFile(f, []byte(list+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func want(t *testing.T, dir, led, file, value string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, led, file))
	if got := strings.TrimSpace(string(b)); err != nil || got != value {
		t.Errorf("%s/%s: got %q (%v), want %q", led, file, got, err, value)
	}
}

func TestService(t *testing.T) {
	leds, conf, state := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "state")
	fakeLED(t, leds, "green:wan", map[string]string{"trigger": triggers, "brightness": "0", "device_name": "", "link": "0", "tx": "0", "rx": "1"})
	fakeLED(t, leds, "green:power", map[string]string{"trigger": triggers, "brightness": "0", "max_brightness": "127"})
	fakeLED(t, leds, "blue:blink", map[string]string{"trigger": "none [heartbeat] timer", "brightness": "1", "delay_on": "0", "delay_off": "0"})
	run := func(text string) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(conf, "system"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		code := unit.Main(Run)(t.Context(), &unit.Call{
			Args: []string{"ledd", "--config-dir", conf, "--state-dir", state, leds}, Stdout: &log, Stderr: &log, Dir: "/", Getenv: func(string) string { return "" },
		})
		if code != 0 {
			t.Errorf("exit code %d: %s", code, log.String())
		}
		bracket(t, leds)
		return log.String()
	}
	const wan = "config led 'led_wan'\n\toption name 'WAN'\n\toption sysfs 'green:wan'\n\toption trigger 'netdev'\n\toption mode 'link tx'\n\toption dev 'eth1'\n\n"
	const power = "config led\n\toption sysfs 'green:power'\n\toption default '1'\n\toption trigger 'none'\n\n"
	const blink = "config led\n\toption sysfs 'blue:blink'\n\toption trigger 'timer'\n\toption delayon '100'\n\toption delayoff '900'\n\n"

	if log := run(wan + power + blink); log != "" {
		t.Errorf("log: %s", log)
	}
	want(t, leds, "green:wan", "trigger", "none timer heartbeat [netdev] default-on")
	want(t, leds, "green:wan", "device_name", "eth1")
	want(t, leds, "green:wan", "link", "1")
	want(t, leds, "green:wan", "tx", "1")
	want(t, leds, "green:wan", "rx", "0")
	want(t, leds, "green:power", "brightness", "127")
	want(t, leds, "blue:blink", "delay_on", "100")
	want(t, leds, "blue:blink", "delay_off", "900")

	// One leaves: it gets back what it had. The others are not touched.
	run(wan + power)
	want(t, leds, "blue:blink", "trigger", "none timer [heartbeat] netdev default-on")
	want(t, leds, "green:power", "brightness", "127")

	log := run(wan + "config led\n\toption sysfs 'red:gone'\n\toption trigger 'none'\n\nconfig led\n\toption sysfs '../x'\n\nconfig led\n\toption sysfs 'green:power'\n\toption trigger 'disco'\n")
	for _, w := range []string{"red:gone", "'../x': expected the name of an LED", `has no trigger \"disco\"`} {
		if !strings.Contains(log, w) {
			t.Errorf("log has no %s: %s", w, log)
		}
	}
}

// TestUntouched counts what a second run writes.
func TestUntouched(t *testing.T) {
	leds := t.TempDir()
	fakeLED(t, leds, "a", map[string]string{"trigger": "none [timer]", "brightness": "1", "delay_on": "500", "delay_off": "500"})
	p, err := uci.Parse("system", strings.NewReader("config led\n\toption sysfs a\n\toption trigger timer\n"), true)
	if err != nil {
		t.Fatal(err)
	}
	s := &setter{dir: leds, warn: func(m string, a ...any) { t.Errorf("%s %v", m, a) }}
	known := s.apply(p, nil)
	if s.writes != 0 || known["a"].Trigger != "timer" {
		t.Errorf("%d writes to an LED that is as it should be; known %v", s.writes, known)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("config led\n\toption sysfs a\n\toption trigger netdev\n\toption dev eth0\n\toption mode 'link rx'\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := uci.Parse("system", strings.NewReader(text), false)
		if err != nil {
			return
		}
		for i, s := range p.SectionsOfType("led") {
			if l, err := parse(s, i); err == nil && (strings.Contains(l.name, "/") || l.name == "" || l.trigger == "") {
				t.Fatalf("section %+v", l)
			}
		}
	})
}
