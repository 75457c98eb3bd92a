package servicecli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"weft/init/bus"
	"weft/init/supervise/unitfile"
	"weft/init/unit"
)

const usage = `Usage: service [NAME [COMMAND]]
       service status [--json] [NAME]
       service timeline [--json]

Without arguments all services are listed. Commands:
  start stop restart reload     change a running system
  enable disable                start at boot or not
  enabled running status        ask; the exit code answers
  info                          what the bus knows, as JSON

Examples:
  service network restart
  service status
  service dnsmasq enabled && echo yes
`

// cli is one device, as far as the commands see it.
type cli struct {
	c       *unit.Call
	bus     string // socket
	initDir string // init scripts
	rcDir   string // start links
	unitDir string // native units
	// exec becomes another program; it returns only on failure.
	exec func(path string, argv, env []string) error
}

// Service is the applet service.
func Service(ctx context.Context, c *unit.Call) int {
	s := &cli{c: c, bus: unit.DefaultBusPath, initDir: "/etc/init.d", rcDir: "/etc/rc.d", unitDir: unitfile.Dir, exec: syscall.Exec}
	return s.service(ctx, c.Args[1:])
}

func (s *cli) fail(format string, args ...any) int {
	fmt.Fprintf(s.c.Stderr, "service: "+format+"\n", args...)
	return 1
}

func (s *cli) service(ctx context.Context, args []string) int {
	if len(args) == 0 {
		return s.list(ctx)
	}
	switch args[0] {
	case "-h", "--help", "help":
		io.WriteString(s.c.Stdout, usage)
		return 0
	case "status":
		return s.status(ctx, args[1:])
	case "timeline":
		return s.timeline(ctx, args[1:])
	}
	name, verbs := args[0], args[1:]
	if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." || strings.HasPrefix(name, "-") {
		fmt.Fprintf(s.c.Stderr, "service: %q is not a service\n%s", name, usage)
		return 2
	}
	if u := s.native(name); u != nil {
		return s.nativeVerb(ctx, u, verbs)
	}
	script := filepath.Join(s.initDir, name)
	if _, err := os.Stat(script); err != nil {
		fmt.Fprintf(s.c.Stderr, "service: there is no %q; the following services are available:\n", name)
		for _, n := range s.scripts() {
			fmt.Fprintf(s.c.Stderr, "%s\n", n)
		}
		return 1
	}
	err := s.exec(script, append([]string{script}, verbs...), os.Environ())
	return s.fail("execute %s: %v", script, err)
}

// native is the unit of a name, nil if there is none.
func (s *cli) native(name string) *unitfile.Unit {
	path := filepath.Join(s.unitDir, name+".toml")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return unitfile.Parse(name, path, string(text))
}

// scripts are the names in /etc/init.d, sorted.
func (s *cli) scripts() []string {
	entries, err := os.ReadDir(s.initDir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if st, err := os.Stat(filepath.Join(s.initDir, e.Name())); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			out = append(out, e.Name())
		}
	}
	return out
}

// instance is what `service list` says of one.
type instance struct {
	Running   bool   `json:"running"`
	PID       int    `json:"pid"`
	State     string `json:"state"`
	Type      string `json:"type"`
	SinceMS   int64  `json:"since_ms"`
	Restarts  int    `json:"restarts"`
	Health    string `json:"health"`
	Status    string `json:"status"`
	Reason    string `json:"reason"`
	LastExit  string `json:"last_exit"`
	NextTryMS int64  `json:"next_try_ms"`
	Memory    int64  `json:"memory"`
	MemoryMax int64  `json:"memory_max"`
	Critical  bool   `json:"critical"`
	ExitCode  *int   `json:"exit_code"`
}

// call asks the object service.
func (s *cli) call(ctx context.Context, method string, args any) (bus.Table, error) {
	client, err := bus.Dial(ctx, s.bus)
	if err != nil {
		return nil, fmt.Errorf("the bus does not answer: %w", err)
	}
	defer client.Close()
	out, err := client.Call(ctx, "service", method, args)
	if errors.Is(err, bus.StatusNotFound) && method != "list" {
		return out, err
	}
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", method, err)
	}
	return out, nil
}

// instances of one service, or of all, in order.
func instances(svc bus.Table) (names []string, list []instance, err error) {
	t, _ := svc.Get("instances").(bus.Table)
	for _, a := range t {
		tab, ok := a.Value.(bus.Table)
		if !ok {
			continue
		}
		var in instance
		if err := tab.Decode(&in); err != nil {
			return nil, nil, fmt.Errorf("instance %s: %w", a.Name, err)
		}
		names, list = append(names, a.Name), append(list, in)
	}
	return names, list, nil
}

// list is LEDE's: script, enabled, running.
func (s *cli) list(ctx context.Context) int {
	all, err := s.call(ctx, "list", nil)
	if err != nil {
		fmt.Fprintf(s.c.Stderr, "service: %v\n", err) // what can be known without is shown
	}
	for _, n := range s.scripts() {
		enabled, running := "disabled", "stopped"
		if s.enabled(n) {
			enabled = "enabled"
		}
		if svc, ok := all.Get(n).(bus.Table); ok {
			if _, list, err := instances(svc); err == nil && slices.ContainsFunc(list, func(i instance) bool { return i.Running }) {
				running = "running"
			}
		}
		fmt.Fprintf(s.c.Stdout, "%-30s\t%10s\t%10s\n", filepath.Join(s.initDir, n), enabled, running)
	}
	if err != nil {
		return 1
	}
	return 0
}

func (s *cli) links(name string, letters string) []string {
	links, err := filepath.Glob(filepath.Join(s.rcDir, "["+letters+"][0-9][0-9]"+name))
	if err != nil {
		return nil
	}
	return links
}

func (s *cli) enabled(name string) bool { return len(s.links(name, "S")) > 0 }

// nativeVerb is `service NAME VERB` of a native service.
func (s *cli) nativeVerb(ctx context.Context, u *unitfile.Unit, args []string) int {
	if len(args) == 0 {
		args = []string{"help"}
	}
	name := bus.Table{{Name: "name", Value: u.Name}}
	do := func(method string, more ...bus.Attr) int {
		if _, err := s.call(ctx, method, append(name, more...)); err != nil {
			if errors.Is(err, bus.StatusNotFound) {
				err = errors.New("the supervisor does not know it: it was added after the boot")
			}
			return s.fail("%s %s: %v", u.Name, args[0], err)
		}
		return 0
	}
	switch args[0] {
	case "start", "boot":
		if u.Err != nil {
			return s.fail("%s cannot be started: %v", u.Name, u.Err)
		}
		return do("state", bus.Attr{Name: "spawn", Value: true})
	case "stop", "shutdown":
		return do("state", bus.Attr{Name: "spawn", Value: false})
	case "restart":
		return do("restart")
	case "reload":
		return do("reload")
	case "enable":
		return s.enable(u)
	case "disable":
		for _, l := range s.links(u.Name, "SK") {
			if err := os.Remove(l); err != nil {
				return s.fail("disable %s: %v", u.Name, err)
			}
		}
		return 0
	case "enabled":
		if s.enabled(u.Name) {
			return 0
		}
		return 1
	case "running", "status":
		return s.nativeStatus(ctx, u, args)
	case "info":
		out, err := s.call(ctx, "list", append(name, bus.Attr{Name: "verbose", Value: true}))
		if err != nil {
			return s.fail("%s info: %v", u.Name, err)
		}
		fmt.Fprintf(s.c.Stdout, "%s\n", out.AppendJSON(nil, true))
		return 0
	}
	w := s.c.Stdout
	code := 0
	if args[0] != "help" {
		w, code = s.c.Stderr, 2
		fmt.Fprintf(w, "service: %s has no command %q\n", u.Name, args[0])
	}
	fmt.Fprintf(w, "%s: %s\nCommands: start stop restart reload enable disable enabled running status info\n", u.Name, u.Description)
	return code
}

func (s *cli) enable(u *unitfile.Unit) int {
	if err := os.MkdirAll(s.rcDir, 0o755); err != nil {
		return s.fail("enable %s: %v", u.Name, err)
	}
	for _, l := range s.links(u.Name, "SK") {
		if err := os.Remove(l); err != nil {
			return s.fail("enable %s: %v", u.Name, err)
		}
	}
	for letter, n := range map[string]int{"S": u.Start, "K": u.Stop} {
		if letter == "K" && n == 0 {
			continue
		}
		if err := os.Symlink("../init.d/"+u.Name, filepath.Join(s.rcDir, fmt.Sprintf("%s%02d%s", letter, n, u.Name))); err != nil {
			return s.fail("enable %s: %v", u.Name, err)
		}
	}
	return 0
}

// Exit codes of rc.common's status.
const (
	exitRunning    = 0
	exitInactive   = 3
	exitUnknown    = 4
	exitNotRunning = 5
)

func (s *cli) nativeStatus(ctx context.Context, u *unitfile.Unit, args []string) int {
	say := func(text string) {
		if args[0] == "status" {
			fmt.Fprintln(s.c.Stdout, text)
		}
	}
	out, err := s.call(ctx, "list", bus.Table{{Name: "name", Value: u.Name}})
	if err != nil {
		s.fail("%s %s: %v", u.Name, args[0], err)
		return exitUnknown
	}
	svc, ok := out.Get(u.Name).(bus.Table)
	if !ok {
		say("inactive")
		return exitInactive
	}
	names, list, err := instances(svc)
	if err != nil {
		return s.fail("%s %s: %v", u.Name, args[0], err)
	}
	if len(args) > 1 && args[1] != "*" && !slices.Contains(names, args[1]) {
		say("unknown instance " + args[1])
		return exitUnknown
	}
	for _, in := range list {
		switch {
		case in.Running:
			say("running")
			return exitRunning
		case in.State == "inactive" || in.State == "done":
			say(in.State)
			return exitInactive
		}
		say("not running (" + in.State + reason(in) + ")")
	}
	return exitNotRunning
}

func reason(in instance) string {
	if in.Reason == "" {
		return ""
	}
	return ": " + in.Reason
}

// status is the table of all services.
func (s *cli) status(ctx context.Context, args []string) int {
	asJSON, name := false, ""
	for _, a := range args {
		switch {
		case a == "--json":
			asJSON = true
		case strings.HasPrefix(a, "-") || name != "":
			fmt.Fprintf(s.c.Stderr, "service: status does not take %q\n%s", a, usage)
			return 2
		default:
			name = a
		}
	}
	req := bus.Table{}
	if name != "" {
		req = append(req, bus.Attr{Name: "name", Value: name})
	}
	all, err := s.call(ctx, "list", req)
	if err != nil {
		return s.fail("%v", err)
	}
	if name != "" && len(all) == 0 {
		return s.fail("there is no service %q", name)
	}
	if asJSON {
		js, err := all.MarshalJSON()
		if err != nil {
			return s.fail("%v", err)
		}
		fmt.Fprintf(s.c.Stdout, "%s\n", js)
		return 0
	}
	w := tabwriter.NewWriter(s.c.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tSTATE\tPID\tMEMORY\tRESTARTS\tHEALTH\tSINCE\tBOOT\tNOTE")
	var total int64
	for _, a := range all {
		svc, ok := a.Value.(bus.Table)
		if !ok {
			continue
		}
		native, _ := svc.Get("native").(bool)
		names, list, err := instances(svc)
		if err != nil {
			return s.fail("%s: %v", a.Name, err)
		}
		boot := "-"
		if s.enabled(a.Name) {
			boot = "yes"
		}
		for i, in := range list {
			title := a.Name
			if !native {
				title += "." + names[i]
			}
			total += in.Memory
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", title, in.State, orDash(in.PID > 0, strconv.Itoa(in.PID)),
				orDash(in.Memory > 0, size(in.Memory)), in.Restarts, orDash(in.Health != "", in.Health), age(in.SinceMS), boot, note(in))
		}
	}
	if err := w.Flush(); err != nil {
		return 1
	}
	if name == "" && total > 0 {
		fmt.Fprintf(s.c.Stdout, "memory of all services: %s (with their share of the page cache)\n", size(total))
	}
	return 0
}

func orDash(have bool, s string) string {
	if have {
		return s
	}
	return "-"
}

func note(in instance) string {
	var parts []string
	if in.Status != "" {
		parts = append(parts, in.Status)
	}
	if in.Reason != "" && in.Reason != in.Status {
		parts = append(parts, in.Reason)
	}
	if in.NextTryMS > 0 {
		parts = append(parts, "next start in "+(time.Duration(in.NextTryMS)*time.Millisecond).Round(100*time.Millisecond).String())
	}
	if in.State == "running" && in.Restarts > 0 && in.LastExit != "" {
		parts = append(parts, "last end: "+in.LastExit)
	}
	return strings.Join(parts, "; ")
}

func size(n int64) string {
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func age(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// timeline of the boot.
func (s *cli) timeline(ctx context.Context, args []string) int {
	asJSON := false
	for _, a := range args {
		if a != "--json" {
			fmt.Fprintf(s.c.Stderr, "service: timeline does not take %q\n%s", a, usage)
			return 2
		}
		asJSON = true
	}
	out, err := s.call(ctx, "timeline", nil)
	if err != nil {
		return s.fail("%v", err)
	}
	if asJSON {
		js, err := json.Marshal(out)
		if err != nil {
			return s.fail("%v", err)
		}
		fmt.Fprintf(s.c.Stdout, "%s\n", js)
		return 0
	}
	var t struct {
		ReadyMS int64 `json:"ready_ms"`
		Marks   []struct {
			Stage string `json:"stage"`
			Name  string `json:"name"`
			MS    int64  `json:"ms"`
		} `json:"marks"`
		Units []struct {
			Name    string `json:"name"`
			StartMS int64  `json:"start_ms"`
			ReadyMS int64  `json:"ready_ms"`
			OK      bool   `json:"ok"`
		} `json:"units"`
	}
	if err := out.Decode(&t); err != nil {
		return s.fail("timeline: %v", err)
	}
	type line struct {
		ms          int64
		stage, text string
	}
	var lines []line
	for _, m := range t.Marks {
		lines = append(lines, line{m.MS, m.Stage, m.Name})
	}
	for _, u := range t.Units {
		lines = append(lines, line{u.StartMS, "service", u.Name + " started"})
		if u.OK {
			lines = append(lines, line{u.ReadyMS, "service", fmt.Sprintf("%s ready, took %.2f s", u.Name, float64(u.ReadyMS-u.StartMS)/1000)})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return int(a.ms - b.ms) })
	var last int64
	for _, l := range lines {
		fmt.Fprintf(s.c.Stdout, "%8.3f s  %+8.3f  %-8s %s\n", float64(l.ms)/1000, float64(l.ms-last)/1000, l.stage, l.text)
		last = l.ms
	}
	if t.ReadyMS == 0 {
		fmt.Fprintln(s.c.Stdout, "not ready yet")
	}
	return 0
}
