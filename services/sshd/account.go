package sshd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// account is a user (passwd(5), shadow(5), group(5)).
type account struct {
	name        string
	uid, gid    uint32
	home, shell string
	hash        string // of the password; empty: none is needed
	groups      []uint32
}

var errNoUser = errors.New("no such user")

// maxAccounts bounds the files of accounts, in bytes.
const maxAccounts = 1 << 20

func readAccounts(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if fi.Size() > maxAccounts {
		return "", fmt.Errorf("%s: %d bytes, at most %d were expected", path, fi.Size(), maxAccounts)
	}
	b, err := os.ReadFile(path)
	return string(b), err
}

// lookup finds a user in the files of folder etc.
func lookup(etc, name string) (*account, error) {
	text, err := readAccounts(filepath.Join(etc, "passwd"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) != 7 || f[0] != name || name == "" {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		a := &account{name: name, uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6], hash: f[1]}
		if a.home == "" {
			a.home = "/"
		}
		if a.shell == "" {
			a.shell = "/bin/sh" // passwd(5)
		}
		if a.hash == "x" {
			if a.hash, err = shadowHash(etc, name); err != nil {
				return nil, err
			}
		}
		a.groups = groupsOf(etc, a)
		return a, nil
	}
	return nil, fmt.Errorf("%q: %w", name, errNoUser)
}

// shadowHash is a user's hash in shadow; without a line no password fits.
func shadowHash(etc, name string) (string, error) {
	text, err := readAccounts(filepath.Join(etc, "shadow"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) > 1 && f[0] == name {
			return f[1], nil
		}
	}
	return "*", nil
}

// groupsOf lists the groups of a user, its own first.
func groupsOf(etc string, a *account) []uint32 {
	groups := []uint32{a.gid}
	text, err := readAccounts(filepath.Join(etc, "group"))
	if err != nil {
		return groups
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) != 4 || !slices.Contains(strings.Split(f[3], ","), a.name) {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 31); err == nil && uint32(gid) != a.gid {
			groups = append(groups, uint32(gid))
		}
	}
	return groups
}

// validShell says whether users with that shell may log in (shells(5)); without
// the file the usual ones may.
func validShell(etc, shell string) bool {
	text, err := readAccounts(filepath.Join(etc, "shells"))
	if err != nil {
		return shell == "/bin/sh" || shell == "/bin/ash"
	}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == shell {
			return true
		}
	}
	return false
}
