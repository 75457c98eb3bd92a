package pid1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/overlay"
	"weft/init/supervise/procd"
	"weft/init/uci"
)

// sysctls sets what /etc/sysctl.d/*.conf and then /etc/sysctl.conf say, below
// root/proc/sys. A key that this kernel does not have (its module is not loaded)
// is passed over, as LEDE's sysctl -e does.
func sysctls(root string, missing func(key string)) error {
	files, err := filepath.Glob(root + "/etc/sysctl.d/*.conf")
	if err != nil {
		return err
	}
	slices.Sort(files)
	files = append(files, root+"/etc/sysctl.conf")
	var errs []error
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read kernel settings: %w", err))
			continue
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			key, value, err := parseSysctl(line)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: %w", strings.TrimPrefix(f, root), n, err))
				continue
			}
			if key == "" {
				continue
			}
			err = os.WriteFile(root+"/proc/sys/"+sysctlPath(key), []byte(value), 0)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				missing(key)
			case err != nil:
				errs = append(errs, fmt.Errorf("%s:%d: set %s to %q: %w", strings.TrimPrefix(f, root), n, key, value, err))
			}
		}
	}
	return errors.Join(errs...)
}

// parseSysctl reads one line, "key = value"; key is empty if it says nothing.
func parseSysctl(line string) (key, value string, err error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' || line[0] == ';' {
		return "", "", nil
	}
	k, v, ok := strings.Cut(line, "=")
	// A leading '-' asks to ignore failures (sysctl.conf(5)).
	k = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(k), "-"))
	if !ok || k == "" {
		return "", "", fmt.Errorf("%q is not \"key = value\"", line)
	}
	if slices.Contains(strings.Split(sysctlPath(k), "/"), "..") {
		return "", "", fmt.Errorf("%q is not a kernel setting", k)
	}
	return k, strings.TrimSpace(v), nil
}

// sysctlPath turns net.ipv4.conf.eth0/1.mtu into net/ipv4/conf/eth0.1/mtu: dots
// and slashes change places, unless the first separator is a slash already.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// systemSettings is what /etc/init.d/system of LEDE takes from UCI.
type systemSettings struct {
	hostname, timezone, zonename string
	conloglevel                  int // 0: leave
}

// LEDE's defaults.
const (
	defaultHostname = "OpenWrt"
	defaultTimezone = "UTC"
)

func readSystemSettings(tree *uci.Tree) (systemSettings, error) {
	s := systemSettings{hostname: defaultHostname, timezone: defaultTimezone}
	pkg, err := tree.Load("system")
	if err != nil {
		return s, fmt.Errorf("read the system's settings: %w", err)
	}
	sec := pkg.Section("@system[0]")
	if sec == nil {
		return s, nil
	}
	s.hostname = sec.String("hostname", s.hostname)
	s.timezone = sec.String("timezone", s.timezone)
	s.zonename = sec.String("zonename", "")
	s.conloglevel = sec.Int("conloglevel", 0)
	return s, nil
}

// applySystem sets hostname, time zone (/tmp/TZ and /tmp/localtime, where LEDE's
// /etc/TZ and /etc/localtime point) and the console's log level. It applies what
// it can.
func (p *pid1) applySystem(context.Context) error {
	s, err := readSystemSettings(&uci.Tree{})
	errs := []error{err}
	if err := unix.Sethostname([]byte(s.hostname)); err != nil {
		errs = append(errs, fmt.Errorf("set hostname %q: %w", s.hostname, err))
	}
	if err := writeFile("/tmp/TZ", s.timezone+"\n"); err != nil {
		errs = append(errs, fmt.Errorf("set time zone: %w", err))
	}
	zone := filepath.Join("/usr/share/zoneinfo", filepath.Clean("/"+strings.ReplaceAll(s.zonename, " ", "_")))
	os.Remove("/tmp/localtime")
	if st, err := os.Stat(zone); err == nil && st.Mode().IsRegular() {
		if err := os.Symlink(zone, "/tmp/localtime"); err != nil {
			errs = append(errs, fmt.Errorf("set time zone: %w", err))
		}
	}
	if s.conloglevel >= 1 && s.conloglevel <= 8 {
		if _, _, errno := unix.Syscall(unix.SYS_SYSLOG, unix.SYSLOG_ACTION_CONSOLE_LEVEL, 0, uintptr(s.conloglevel)); errno != 0 {
			errs = append(errs, fmt.Errorf("set the console's log level to %d: %w", s.conloglevel, errno))
		}
	}
	return errors.Join(errs...)
}

// writeFile replaces a file so that readers see the old text or the new.
func writeFile(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// overlayDir is where the data file system is mounted.
const overlayDir = "/overlay"

// markDone tells the next boot that this one came up: the overlay is good.
func markDone(context.Context) error {
	if !mounted(overlayDir) || overlay.GetState(overlayDir) == overlay.Ready {
		return nil
	}
	return overlay.SetState(overlayDir, overlay.Ready)
}

// respawnDefaults are procd's, unless system.@service[0] says otherwise.
func respawnDefaults(tree *uci.Tree) procd.RespawnDefaults {
	d := procd.RespawnDefaults{Threshold: 3600 * time.Second, Timeout: 5 * time.Second, Retry: 5}
	pkg, err := tree.Load("system")
	if err != nil {
		return d
	}
	sec := pkg.Section("@service[0]")
	if sec == nil {
		return d
	}
	d.Threshold = time.Duration(max(0, sec.Int("respawn_threshold", 3600))) * time.Second
	d.Timeout = time.Duration(max(0, sec.Int("respawn_timeout", 5))) * time.Second
	d.Retry = max(0, sec.Int("respawn_retry", 5))
	return d
}
