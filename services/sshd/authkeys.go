package sshd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds a file of authorized keys, in bytes.
const maxKeyFile = 256 << 10

// errNotAuthorized is the answer to a key that no line allows.
var errNotAuthorized = errors.New("key not authorized")

// authorized looks for key in the text of an authorized_keys file and returns
// what its line allows to user. A line with an option that is not known, or does
// not hold for the client, allows nothing; another line may.
func authorized(text []byte, user string, key ssh.PublicKey, from netip.Addr, now time.Time) (*Permit, error) {
	blob := key.Marshal()
	why := errNotAuthorized
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		k, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil || !bytes.Equal(k.Marshal(), blob) {
			continue
		}
		p, err := permit(user, options, from, now)
		if err == nil {
			return p, nil
		}
		why = fmt.Errorf("%w: %w", errNotAuthorized, err)
	}
	return nil, why
}

// permit turns the options of a key into what it allows.
func permit(user string, options []string, from netip.Addr, now time.Time) (*Permit, error) {
	p := &Permit{User: user}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		value = unquote(value)
		switch strings.ToLower(name) {
		case "restrict":
			p.NoPTY, p.NoForward = true, true
		case "no-pty":
			p.NoPTY = true
		case "pty":
			p.NoPTY = false
		case "no-port-forwarding":
			p.NoForward = true
		case "port-forwarding":
			p.NoForward = false
		case "no-agent-forwarding", "agent-forwarding", "no-x11-forwarding", "x11-forwarding", "no-user-rc", "user-rc", "no-touch-required":
			// Not offered to anybody.
		case "command":
			if value == "" {
				return nil, errors.New("option command without a command")
			}
			p.Command = value
		case "permitopen":
			p.PermitOpen = append(p.PermitOpen, value)
		case "permitlisten":
			p.Permit = append(p.Permit, value)
		case "from":
			if !matchesFrom(value, from) {
				return nil, fmt.Errorf("not from %v (option from=%q)", from, value)
			}
		case "expiry-time":
			t, err := expiry(value)
			if err != nil {
				return nil, err
			}
			if !now.Before(t) {
				return nil, fmt.Errorf("expired at %v", t)
			}
		default:
			return nil, fmt.Errorf("option %q is not supported", name)
		}
	}
	return p, nil
}

// unquote takes the double quotes off; \" is a quote inside.
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	return strings.ReplaceAll(s[1:len(s)-1], `\"`, `"`)
}

// expiry reads YYYYMMDD[HHMM[SS]][Z], local time without Z (sshd(8)).
func expiry(s string) (time.Time, error) {
	loc := time.Local
	v, utc := strings.CutSuffix(s, "Z")
	if utc {
		loc = time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(v) == len(layout) {
			if t, err := time.ParseInLocation(layout, v, loc); err == nil {
				return t, nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("option expiry-time %q: YYYYMMDD[HHMM[SS]][Z] was expected", s)
}

// matchesFrom holds a client's address against a pattern list (ssh_config(5),
// PATTERNS): addresses with wildcards and CIDR prefixes, "!" takes out. Names
// match nothing: whoever answers for the reverse zone would decide.
func matchesFrom(list string, from netip.Addr) bool {
	from = from.Unmap()
	found := false
	for p := range strings.SplitSeq(list, ",") {
		p, not := strings.CutPrefix(strings.TrimSpace(p), "!")
		ok := false
		if prefix, err := netip.ParsePrefix(p); err == nil {
			ok = prefix.Contains(from)
		} else if a, err := netip.ParseAddr(p); err == nil {
			ok = a.Unmap() == from
		} else if m, err := path.Match(p, from.String()); err == nil {
			ok = m && from.IsValid()
		}
		if ok && not {
			return false
		}
		found = found || ok
	}
	return found
}

// readKeys reads a file of authorized keys if nobody but root and its user can
// have written it.
func readKeys(name string, uid uint32) ([]byte, error) {
	// The folders first: who can rename in them can replace the file.
	for _, dir := range []string{filepath.Dir(name), filepath.Dir(filepath.Dir(name))} {
		if err := safe(os.Stat, dir, uid); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := safe(func(string) (os.FileInfo, error) { return f.Stat() }, name, uid); err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s: a file of at most %d bytes was expected", name, maxKeyFile)
	}
	return io.ReadAll(io.LimitReader(f, maxKeyFile))
}

// safe checks that only root and uid can write what stat finds.
func safe(stat func(string) (os.FileInfo, error), name string, uid uint32) error {
	fi, err := stat(name)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && st.Uid != uid {
		return fmt.Errorf("%s: owned by user %d, root or user %d was expected: keys in it are not used", name, st.Uid, uid)
	}
	if fi.Mode().Perm()&0o022 != 0 && fi.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("%s: mode %04o lets others write: chmod go-w it, keys in it are not used", name, fi.Mode().Perm())
	}
	return nil
}
