package system

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"weft/init/applet/options"
	"weft/init/unit"
)

// ID tells who somebody is.
func ID(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "ugGnr user=u group=g groups=G name=n real=r", `[-u|-g|-G [-nr]] [USER]
Show user and groups of USER, or of yourself.
  -u  the user id alone   -g  the group id   -G  all group ids   -n  names for numbers   -r  real ids
Example: id -u`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	which := byte(0)
	for _, opt := range o.Order {
		switch opt.Letter {
		case 'u', 'g', 'G':
			if which != 0 && which != opt.Letter {
				return o.Fail("-u, -g and -G exclude each other")
			}
			which = opt.Letter
		}
	}
	if which == 0 && len(o.Order) > 0 {
		return o.Fail("-n and -r need -u, -g or -G")
	}
	var uid, gid, euid, egid int
	var groups []int
	if len(o.Args) == 1 {
		u, err := user.Lookup(o.Args[0])
		if err != nil {
			return fail(c, fmt.Errorf("there is no user %q", o.Args[0]))
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		euid, egid = uid, gid
		ids, err := u.GroupIds()
		if err != nil {
			return fail(c, err)
		}
		for _, s := range ids {
			if n, err := strconv.Atoi(s); err == nil {
				groups = append(groups, n)
			}
		}
	} else {
		uid, gid, euid, egid = os.Getuid(), os.Getgid(), os.Geteuid(), os.Getegid()
		var err error
		if groups, err = os.Getgroups(); err != nil {
			return fail(c, err)
		}
		if o.Has('r') {
			euid, egid = uid, gid
		}
	}
	if !slices.Contains(groups, egid) {
		groups = slices.Insert(groups, 0, egid)
	}
	show := func(id int, name func(string) string) string {
		number := strconv.Itoa(id)
		if which == 0 {
			if n := name(number); n != "" {
				return number + "(" + n + ")"
			}
			return number
		}
		if o.Has('n') {
			if n := name(number); n != "" {
				return n
			}
		}
		return number
	}
	list := func(sep string) string {
		var out []string
		for _, g := range groups {
			out = append(out, show(g, groupName))
		}
		return strings.Join(out, sep)
	}
	switch which {
	case 'u':
		fmt.Fprintln(c.Stdout, show(euid, userName))
	case 'g':
		fmt.Fprintln(c.Stdout, show(egid, groupName))
	case 'G':
		fmt.Fprintln(c.Stdout, list(" "))
	default:
		text := fmt.Sprintf("uid=%s gid=%s", show(uid, userName), show(gid, groupName))
		if euid != uid {
			text += " euid=" + show(euid, userName)
		}
		if egid != gid {
			text += " egid=" + show(egid, groupName)
		}
		fmt.Fprintln(c.Stdout, text+" groups="+list(","))
	}
	return 0
}

func userName(id string) string {
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return ""
}

func groupName(id string) string {
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return ""
}
