package rootfs

import (
	"io/fs"
	"path"
)

// rule sets permissions of what matches. The last match wins.
type rule struct {
	pattern string // path.Match
	mode    fs.FileMode
	why     string
}

// rules is the whole table of exceptions. What is not here is 0755 if it is a
// folder or can be executed, 0644 otherwise; everything belongs to root.
var rules = []rule{
	{"etc/config/*", 0o600, "LEDE's INSTALL_CONF: settings hold keys and passwords"},
	{"etc/shadow", 0o600, "password hashes"},
	{"etc/shadow-", 0o600, "password hashes"},
	{"etc/dropbear", 0o700, "host keys"},
	{"etc/dropbear/*", 0o600, "host keys"},
	{"etc/uci-defaults/*", 0o755, "scripts without #! are sourced, as on LEDE"},
	{"etc/init.d/*", 0o755, "rc.common asks for it"},
	{"etc/rc.button/*", 0o755, "executed by the button handler"},
	{"root", 0o700, "the administrator's home"},
	{"tmp", 0o777 | fs.ModeSticky, "for everybody"},
}

// applyRules sets the owner and the permissions of an entry. Links keep theirs.
func applyRules(e *Entry) {
	e.UID, e.GID = 0, 0
	if e.Mode&(fs.ModeSymlink|fs.ModeDevice) != 0 {
		return
	}
	perm := fs.FileMode(0o644)
	if e.Mode.IsDir() || e.Mode&0o100 != 0 {
		perm = 0o755
	}
	for _, r := range rules {
		if ok, err := path.Match(r.pattern, e.Path); err == nil && ok {
			perm = r.mode
		}
	}
	e.Mode = e.Mode.Type() | perm
}
