package intercept

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultStateDir keeps the state file: on a file system that a boot empties.
const DefaultStateDir = "/run/mptcpproxy"

const sysctlRoot = "/proc/sys/net"

// want is a sysctl below net/ and the value it needs; only those whose value is
// among from are changed (none: all).
type want struct {
	name, value string
	from        []string
}

// wantedSysctls lists what the options need.
func wantedSysctls(o Options) []want {
	var w []want
	// A router does not listen to router advertisements unless told so: what has
	// learned its address and default route that way has to keep it.
	if devs, err := os.ReadDir(filepath.Join(sysctlRoot, "ipv6/conf")); err == nil {
		for _, d := range devs {
			w = append(w, want{"ipv6/conf/" + d.Name() + "/accept_ra", "2", []string{"1"}})
		}
	}
	w = append(w,
		want{name: "ipv6/conf/all/forwarding", value: "1", from: []string{"0"}},
		want{name: "ipv4/ip_forward", value: "1"},
		// Errors that this machine's IP layer finds for a packet carry its mark, so
		// that rule 40 brings them to the socket with the foreign address.
		want{name: "ipv4/fwmark_reflect", value: "1"},
		want{name: "ipv6/fwmark_reflect", value: "1"},
		// A client may use its port again within the minute that our connection to
		// the sink stays in TIME_WAIT; timestamps make that safe (RFC 6191).
		want{name: "ipv4/tcp_tw_reuse", value: "1"},
		// Package govern needs short bursts; it is set here so that a kill leaves
		// no trace of it. Linux before 5.18 does not have it.
		want{name: "ipv4/tcp_tso_rtt_log", value: "0"},
	)
	if o.TunnelDevice != "" {
		// Loose: the route to those behind the tunnel is another device.
		w = append(w, want{"ipv4/conf/" + o.TunnelDevice + "/rp_filter", "2", nil})
	}
	return w
}

// sysctls remembers the values from before the change, also in a file: a
// successor in the same network namespace puts them back.
type sysctls struct {
	file    string
	changed map[string]change
}

type change struct {
	Was string `json:"was"`
	Set string `json:"set"`
}

func openSysctls(dir string) (*sysctls, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("identifying the network namespace: %w", err)
	}
	s := &sysctls{file: filepath.Join(dir, fmt.Sprintf("sysctl-%d.json", st.Ino)), changed: map[string]change{}}
	b, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what a predecessor has changed: %w", err)
	}
	if err := json.Unmarshal(b, &s.changed); err != nil {
		// A file cut short by a crash must not keep the service from starting.
		s.changed = map[string]change{}
	}
	return s, nil
}

func read(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlRoot, filepath.FromSlash(name)))
	return strings.TrimSpace(string(b)), err
}

func write(name, value string) error {
	return os.WriteFile(filepath.Join(sysctlRoot, filepath.FromSlash(name)), []byte(value), 0)
}

// set changes what differs. What is not there (no IPv6, no such device) is left
// out; what cannot be written is an error.
func (s *sysctls) set(wants []want, log *slog.Logger) error {
	var todo []want
	for _, w := range wants {
		was, err := read(w.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading sysctl net/%s: %w", w.name, err)
		}
		if was == w.value || len(w.from) > 0 && !slices.Contains(w.from, was) {
			continue
		}
		c, ours := s.changed[w.name]
		if !ours || c.Set != was {
			c.Was = was // the first change, or somebody else's since
		}
		c.Set = w.value
		s.changed[w.name] = c
		todo = append(todo, w)
	}
	if len(todo) == 0 {
		return nil
	}
	if err := s.save(); err != nil {
		return err
	}
	for _, w := range todo {
		if err := write(w.name, w.value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("setting sysctl net/%s to %s (is /proc/sys writable?): %w", w.name, w.value, err)
		}
		log.Debug("sysctl set", "name", "net/"+w.name, "value", w.value)
	}
	return nil
}

func (s *sysctls) save() error {
	b, err := json.MarshalIndent(s.changed, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o755); err != nil {
		return fmt.Errorf("making the folder of the state file: %w", err)
	}
	if err := os.WriteFile(s.file+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("noting what to put back: %w", err)
	}
	if err := os.Rename(s.file+".new", s.file); err != nil {
		return fmt.Errorf("noting what to put back: %w", err)
	}
	return nil
}

// restore puts back what still has our value, and forgets.
func (s *sysctls) restore() error {
	var errs error
	names := make([]string, 0, len(s.changed))
	for n := range s.changed {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		c := s.changed[n]
		if now, err := read(n); err != nil || now != c.Set {
			continue // the device is gone, or somebody else has changed it since
		}
		if err := write(n, c.Was); err != nil {
			errs = errors.Join(errs, fmt.Errorf("putting sysctl net/%s back to %s: %w", n, c.Was, err))
		}
	}
	s.changed = map[string]change{}
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = errors.Join(errs, fmt.Errorf("removing the state file: %w", err))
	}
	return errs
}
