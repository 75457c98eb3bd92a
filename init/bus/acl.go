package bus

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultACLDir holds the files that grant rights on the bus to users other
// than root.
const DefaultACLDir = "/usr/share/acl.d"

// maxACLFile bounds one ACL file, in bytes.
const maxACLFile = 256 << 10

// right is what an ACL rule may grant.
type right int

const (
	rightPublish right = iota
	rightSubscribe
	rightAccess
	rightListen
	rightSend
)

// aclRule is one line of an ACL file: who may do what with which name.
type aclRule struct {
	name    string // path or event id
	prefix  bool   // the name ended in "*"
	uid     int64  // -1: not by user
	gid     int64  // -1: not by group
	right   right
	methods []string // of rightAccess
	extra   any      // of rightAccess: "acl", answered to the owner's query
	user    string
	group   string
}

// matches says whether the rule speaks of name.
func (r *aclRule) matches(name string) bool {
	if r.prefix {
		return strings.HasPrefix(name, r.name)
	}
	return name == r.name
}

// credentials are what the kernel says about a peer.
type credentials struct {
	pid         int32
	uid, gid    uint32
	groups      []uint32
	user, group string
}

func (c *credentials) root() bool { return c.uid == 0 }

func (r *aclRule) isFor(c *credentials) bool {
	if r.uid >= 0 && r.uid == int64(c.uid) {
		return true
	}
	return r.gid >= 0 && (r.gid == int64(c.gid) || slices.Contains(c.groups, uint32(r.gid)))
}

// allowed says whether the client may do what with name. Root may all. A name
// that ends in "*" (a pattern to listen for) needs a rule as wide as itself.
func allowed(rules []aclRule, c *credentials, what right, name, method string) bool {
	if c.root() {
		return true
	}
	for i := range rules {
		r := &rules[i]
		if r.right != what || !r.matches(name) || !r.isFor(c) {
			continue
		}
		if what != rightAccess || slices.Contains(r.methods, method) || slices.Contains(r.methods, "*") {
			return true
		}
	}
	return false
}

// loadACL reads all *.json files of dir. Faults of one file do not hide the
// others; they come back joined.
func loadACL(dir string) ([]aclRule, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("read ACL folder %s: %w", dir, err)
	}
	var rules []aclRule
	var faults []error
	for _, name := range names {
		r, err := loadACLFile(name)
		if err != nil {
			faults = append(faults, err)
		}
		rules = append(rules, r...)
	}
	return rules, errors.Join(faults...)
}

func loadACLFile(name string) ([]aclRule, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("ACL file: %w", err)
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("ACL file %s: not a regular file", name)
	case st != nil && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("ACL file %s: owned by user %d, must be root's: chown it", name, st.Uid)
	case fi.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("ACL file %s: mode %o lets others write: chmod go-w it", name, fi.Mode().Perm())
	case fi.Size() > maxACLFile:
		return nil, fmt.Errorf("ACL file %s: larger than %d bytes", name, maxACLFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("ACL file: %w", err)
	}
	t, err := ParseJSON(string(b))
	if err != nil {
		return nil, fmt.Errorf("ACL file %s: %w", name, err)
	}
	rules, err := parseACL(t)
	if err != nil {
		return nil, fmt.Errorf("ACL file %s: %w", name, err)
	}
	return rules, nil
}

// parseACL reads one file's content (ubusd_acl.c, ubusd_acl_file_add). A user
// or group that does not exist grants nothing.
func parseACL(t Table) ([]aclRule, error) {
	base := aclRule{uid: -1, gid: -1, user: t.String("user"), group: t.String("group")}
	switch {
	case base.user != "":
		base.group = ""
		if u, err := user.Lookup(base.user); err == nil {
			base.uid = number(u.Uid)
		}
	case base.group != "":
		if g, err := user.LookupGroup(base.group); err == nil {
			base.gid = number(g.Gid)
		}
	default:
		return nil, errors.New(`neither "user" nor "group" is named`)
	}
	var rules []aclRule
	add := func(name string, what right) *aclRule {
		r := base
		r.right = what
		r.name, r.prefix = strings.CutSuffix(name, "*")
		rules = append(rules, r)
		return &rules[len(rules)-1]
	}
	access, _ := t.Get("access").(Table)
	for _, a := range access {
		o, ok := a.Value.(Table)
		if !ok || a.Name == "" || !o.Has("methods") && !o.Has("tags") && !o.Has("acl") {
			continue
		}
		r := add(a.Name, rightAccess)
		methods, _ := o.Get("methods").(Array)
		for _, m := range methods {
			if s, ok := m.(string); ok {
				r.methods = append(r.methods, s)
			}
		}
		if extra, ok := o.Get("acl").(Table); ok {
			r.extra = extra
		}
	}
	for _, l := range [...]struct {
		key  string
		what right
	}{{"publish", rightPublish}, {"subscribe", rightSubscribe}, {"listen", rightListen}, {"send", rightSend}} {
		names, _ := t.Get(l.key).(Array)
		for _, v := range names {
			if s, ok := v.(string); ok && s != "" {
				add(s, l.what)
			}
		}
	}
	return rules, nil
}

func number(s string) int64 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return -1
	}
	return int64(n)
}

// peerCredentials asks the kernel who is at the other end (socket(7),
// SO_PEERCRED and SO_PEERGROUPS).
func peerCredentials(fd int) (c credentials, err error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return c, fmt.Errorf("peer credentials: %w", err)
	}
	c.pid, c.uid, c.gid = u.Pid, u.Uid, u.Gid
	c.user, c.group = strconv.Itoa(int(c.uid)), strconv.Itoa(int(c.gid))
	if p, err := user.LookupId(c.user); err == nil {
		c.user = p.Username
	}
	if g, err := user.LookupGroupId(c.group); err == nil {
		c.group = g.Name
	}
	if !c.root() {
		c.groups = peerGroups(fd)
	}
	return c, nil
}

// peerGroups returns the supplementary groups of the peer at the time it
// connected. Without them it has fewer rights, never more.
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 64)
	for {
		n := uint32(4 * len(groups))
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case e == 0:
			return slices.Clip(groups[:n/4])
		case e == unix.ERANGE && int(n/4) > len(groups) && n/4 <= 65536:
			groups = make([]uint32, n/4)
		default:
			return nil
		}
	}
}
