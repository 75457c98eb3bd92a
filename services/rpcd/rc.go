package rpcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"weft/init/bus"
)

// maxScript bounds how far a start script is read, in bytes.
const maxScript = 64 << 10

// script is a start script in /etc/init.d.
type script struct {
	start, stop int // numbers of its links, -1: none
	enabled     bool
}

// scripts lists the start scripts. Their numbers are those of the links in
// /etc/rc.d, else those that the script names.
func (s *server) scripts() (map[string]*script, []string, error) {
	entries, err := os.ReadDir(s.prog.initDir)
	if err != nil {
		return nil, nil, fileStatus(err)
	}
	list := map[string]*script{}
	var names []string
	for _, e := range entries {
		fi, err := os.Stat(filepath.Join(s.prog.initDir, e.Name()))
		if err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
			continue
		}
		sc := &script{-1, -1, false}
		sc.readNumbers(filepath.Join(s.prog.initDir, e.Name()))
		list[e.Name()] = sc
		names = append(names, e.Name())
	}
	links, _ := os.ReadDir(s.prog.rcDir) // without it nothing is enabled
	for _, l := range links {
		n := l.Name()
		if len(n) < 4 || n[0] != 'S' && n[0] != 'K' || list[n[3:]] == nil {
			continue
		}
		number, err := strconv.Atoi(n[1:3])
		if err != nil {
			continue
		}
		if sc := list[n[3:]]; n[0] == 'S' {
			sc.start, sc.enabled = number, true
		} else {
			sc.stop = number
		}
	}
	return list, names, nil
}

// readNumbers takes START and STOP out of a script of rc.common.
func (sc *script) readNumbers(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	assignment := regexp.MustCompile(`^(START|STOP)=['"]?([0-9]{1,2})\b`)
	lines := bufio.NewScanner(f)
	for read := 0; lines.Scan() && read < maxScript; read += len(lines.Bytes()) + 1 {
		if m := assignment.FindStringSubmatch(lines.Text()); m != nil {
			n, _ := strconv.Atoi(m[2]) // two digits
			if m[1] == "START" {
				sc.start = n
			} else {
				sc.stop = n
			}
		}
	}
}

// rcList says of each start script, or the one named, whether it is enabled and
// running.
func (s *server) rcList(ctx context.Context, args bus.Table, reply func(any) error) error {
	only, named := str(args, "name")
	list, names, err := s.scripts()
	if err != nil {
		return err
	}
	if named && list[only] == nil {
		return bus.StatusNotFound
	}
	running, err := s.running(ctx)
	if err != nil {
		s.log.Warn("rc list: what runs is not known", "error", err)
	}
	out := bus.Table{}
	for _, n := range names {
		if named && n != only {
			continue
		}
		sc := list[n]
		t := bus.Table{}
		if sc.start >= 0 {
			t = append(t, bus.Attr{Name: "start", Value: sc.start})
		}
		if sc.stop >= 0 {
			t = append(t, bus.Attr{Name: "stop", Value: sc.stop})
		}
		t = append(t, bus.Attr{Name: "enabled", Value: sc.enabled})
		if err == nil {
			t = append(t, bus.Attr{Name: "running", Value: running[n]})
		}
		out = append(out, bus.Attr{Name: n, Value: t})
	}
	return reply(out)
}

// running asks the supervisor which services have an instance that runs.
func (s *server) running(ctx context.Context) (map[string]bool, error) {
	t, err := s.call(ctx, "service", "list", nil)
	if err != nil {
		return nil, err
	}
	up := map[string]bool{}
	for _, svc := range t {
		body, _ := svc.Value.(bus.Table)
		instances, _ := body.Get("instances").(bus.Table)
		for _, i := range instances {
			if v, _ := i.Value.(bus.Table); flag(v, "running") {
				up[svc.Name] = true
			}
		}
	}
	return up, nil
}

// rcInit runs a start script with an action.
func (s *server) rcInit(ctx context.Context, args bus.Table, _ func(any) error) error {
	name, ok1 := str(args, "name")
	action, ok2 := str(args, "action")
	if !ok1 || !ok2 || name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.' {
		return bus.StatusInvalidArgument
	}
	switch action {
	case "start", "stop", "restart", "reload", "enable", "disable":
	default:
		return fmt.Errorf("action %q: start, stop, restart, reload, enable or disable was expected: %w", action, bus.StatusInvalidArgument)
	}
	path := filepath.Join(s.prog.initDir, name)
	if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() {
		return bus.StatusNotFound
	}
	code, _, stderr, err := s.run(ctx, exec.Command(path, action))
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s %s: exit code %d: %s: %w", path, action, code, strings.TrimSpace(string(stderr)), bus.StatusUnknownError)
	}
	return nil
}
