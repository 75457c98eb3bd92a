package healthgate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"weft/init/uci"
)

// settings are the options of section healthgate in /etc/config/system.
type settings struct {
	enabled  bool
	hold     time.Duration
	deadline time.Duration
	targets  []target
}

// Defaults and bounds, seconds.
const (
	defaultHold     = 60
	defaultDeadline = 300
	maxSeconds      = 24 * 60 * 60
)

// target is a host that must answer.
type target struct {
	check string // checkHost or checkManage
	text  string // as the configuration has it
	host  string
	port  string // empty: an ICMP echo, else a TCP connection
}

// loadSettings reads the options. A faulty one is named in the error; a number
// keeps its default, a host that makes no sense is not asked: an upgrade must not be
// thrown away for a typo.
func loadSettings(dir string) (settings, error) {
	s := settings{enabled: true, hold: defaultHold * time.Second, deadline: defaultDeadline * time.Second}
	pkg, err := (&uci.Tree{ConfDir: dir}).Load("system")
	if errors.Is(err, uci.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the health gate's settings: %w", err)
	}
	sec := pkg.Section("healthgate")
	if sec == nil {
		return s, nil
	}
	var faults []error
	seconds := func(name string, def int) time.Duration {
		v, ok := sec.Get(name)
		if !ok || v == "" {
			return time.Duration(def) * time.Second
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > maxSeconds {
			faults = append(faults, fmt.Errorf("system.healthgate.%s is %q: seconds from 0 to %d are expected; using %d", name, v, maxSeconds, def))
			n = def
		}
		return time.Duration(n) * time.Second
	}
	s.enabled = sec.Bool("enabled", true)
	s.hold = seconds("hold", defaultHold)
	s.deadline = seconds("deadline", defaultDeadline)
	for _, v := range sec.List("host") {
		t, err := parseTarget(v)
		if err != nil {
			faults = append(faults, fmt.Errorf("system.healthgate.host: %w", err))
			continue
		}
		t.check = checkHost
		s.targets = append(s.targets, t)
	}
	if v := sec.String("management", ""); v != "" {
		t, err := parseTarget(v)
		if err == nil && t.port == "" {
			err = fmt.Errorf("%q has no port: a URL or host:port is expected", v)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("system.healthgate.management: %w", err))
		} else {
			t.check = checkManage
			s.targets = append(s.targets, t)
		}
	}
	return s, errors.Join(faults...)
}

// parseTarget reads a name or address (ICMP), host:port (TCP), or an http or https
// URL (TCP to its port).
func parseTarget(v string) (target, error) {
	bad := func() (target, error) {
		return target{}, fmt.Errorf("%q is neither a host, nor host:port, nor an http or https URL", v)
	}
	t := target{text: v, host: v}
	if strings.Contains(v, "://") {
		u, err := url.Parse(v)
		if err != nil || u.Hostname() == "" {
			return bad()
		}
		t.host, t.port = u.Hostname(), u.Port()
		switch {
		case t.port != "":
		case u.Scheme == "https":
			t.port = "443"
		case u.Scheme == "http":
			t.port = "80"
		default:
			return bad()
		}
	} else if _, err := netip.ParseAddr(v); err != nil && strings.Contains(v, ":") {
		if t.host, t.port, err = net.SplitHostPort(v); err != nil || t.port == "" {
			return bad()
		}
	}
	if t.port != "" {
		if n, err := strconv.Atoi(t.port); err != nil || n < 1 || n > 65535 {
			return bad()
		}
	}
	if t.host == "" || strings.ContainsAny(t.host, " /\t") {
		return bad()
	}
	return t, nil
}
