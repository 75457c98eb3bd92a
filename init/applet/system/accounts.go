package system

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/init/crypt"
)

// accounts are the users in passwd, shadow and group of a folder, /etc.
type accounts string

// account is a user (passwd(5)).
type account struct {
	name, password string // password: a hash, or "x": it is in shadow
	uid, gid       int
	home, shell    string
}

var errNoUser = errors.New("no such user")

func (a accounts) file(name string) string { return filepath.Join(string(a), name) }

// account finds the user for whom fits is true; who names it in an error.
func (a accounts) account(who string, fits func(u *account) bool) (*account, error) {
	b, err := os.ReadFile(a.file("passwd"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if u, ok := parseAccount(strings.TrimSuffix(line, "\n")); ok && fits(&u) {
			return &u, nil
		}
	}
	return nil, fmt.Errorf("%s: %w in %s", who, errNoUser, a.file("passwd"))
}

func parseAccount(line string) (account, bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" {
		return account{}, false
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 31)
	gid, err2 := strconv.ParseUint(f[3], 10, 31)
	return account{f[0], f[1], int(uid), int(gid), f[5], f[6]}, err1 == nil && err2 == nil
}

func (a accounts) named(name string) (*account, error) {
	return a.account(fmt.Sprintf("%q", name), func(u *account) bool { return u.name == name })
}

func (a accounts) numbered(uid int) (*account, error) {
	return a.account(fmt.Sprintf("user id %d", uid), func(u *account) bool { return u.uid == uid })
}

// hash is the hash of a user's password; empty: none is needed.
func (a accounts) hash(u *account) (string, error) {
	if u.password != "x" {
		return u.password, nil
	}
	b, err := os.ReadFile(a.file("shadow"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) > 1 && f[0] == u.name {
			return f[1], nil
		}
	}
	return "*", nil // no line: no password fits
}

// groups are the ids of the groups that list the user, and its own.
func (a accounts) groups(u *account) ([]int, error) {
	list := []int{u.gid}
	b, err := os.ReadFile(a.file("group"))
	if errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) != 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil || int(gid) == u.gid {
			continue
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if m == u.name {
				list = append(list, int(gid))
				break
			}
		}
	}
	return list, nil
}

// fits says whether the password is the one of the hash. An empty hash lets
// anybody in, as on LEDE before a password is set.
func fits(hash, password string) bool { return hash == "" || crypt.Verify(hash, password) }

// setHash changes a user's password hash. It ends up in shadow: where passwd has
// one of its own, passwd is changed to say so.
func (a accounts) setHash(u *account, day int64, change func(old string) string) error {
	lock, err := os.Open(string(a))
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", a, err)
	}
	now, err := a.named(u.name) // somebody may have been faster
	if err != nil {
		return err
	}
	old, err := a.hash(now)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	hash := change(old)
	err = rewrite(a.file("shadow"), u.name, func(f []string) []string {
		for len(f) < 9 {
			f = append(f, "")
		}
		f[1], f[2] = hash, strconv.FormatInt(day, 10)
		return f
	}, []string{u.name, hash, strconv.FormatInt(day, 10), "0", "99999", "7", "", "", ""})
	if err != nil || now.password == "x" {
		return err
	}
	return rewrite(a.file("passwd"), u.name, func(f []string) []string {
		f[1] = "x"
		return f
	}, nil)
}

// rewrite changes the line of a user in a file of lines, or adds one; it replaces
// the file so that a power cut leaves the old one or the new one, with the old
// one's mode and owner. What is not the user's line stays byte for byte.
func rewrite(path, name string, change func(fields []string) []string, absent []string) (err error) {
	old, err := os.ReadFile(path)
	mode, uid, gid := fs.FileMode(0o600), -1, -1
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		mode = st.Mode().Perm()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(sys.Uid), int(sys.Gid)
		}
	}
	var out bytes.Buffer
	done := false
	for line := range strings.Lines(string(old)) {
		text := strings.TrimSuffix(line, "\n")
		if f := strings.Split(text, ":"); !done && len(f) > 1 && f[0] == name {
			line = strings.Join(change(f), ":") + "\n"
			done = true
		}
		out.WriteString(line)
	}
	if !done && absent != nil {
		if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
			out.WriteByte('\n')
		}
		out.WriteString(strings.Join(absent, ":") + "\n")
	}
	dir := filepath.Dir(path)
	// CreateTemp gives mode 0600: nobody else reads it on the way.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("replace %s: %w", path, err)
		}
	}()
	_, err = f.Write(out.Bytes())
	if uid >= 0 {
		err = errors.Join(err, f.Chown(uid, gid))
	}
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
