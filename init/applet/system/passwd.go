package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"weft/init/applet/options"
	"weft/init/crypt"
	"weft/init/unit"
)

// Passwd sets a user's password.
func Passwd(ctx context.Context, c *unit.Call) int {
	return passwd(ctx, c, "/etc", os.Getuid(), time.Now())
}

func passwd(ctx context.Context, c *unit.Call, etc accounts, uid int, now time.Time) int {
	o, code := options.Parse(c, "dlu delete=d lock=l unlock=u", `[-d|-l|-u] [USER]
Set the password of a user, your own if none is named.
  -d  none: anybody may log in     -l  lock: no password fits     -u  undo -l
Without a terminal the new password is read twice from the input.`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	if len(o.Order) > 1 {
		return o.Fail("-d, -l and -u exclude each other")
	}
	var u *account
	var err error
	if len(o.Args) == 1 {
		u, err = etc.named(o.Args[0])
	} else {
		u, err = etc.numbered(uid)
	}
	if err != nil {
		return fail(c, err)
	}
	if uid != 0 && (u.uid != uid || len(o.Order) > 0) {
		return fail(c, fmt.Errorf("only root may do that to %s", u.name))
	}
	day := now.Unix() / 86400
	set := func(change func(old string) string, said string) int {
		if err := etc.setHash(u, day, change); err != nil {
			return fail(c, err)
		}
		fmt.Fprintf(c.Stdout, "passwd: password for %s %s\n", u.name, said)
		return 0
	}
	switch {
	case o.Has('d'):
		return set(func(string) string { return "" }, "removed: anybody may log in")
	case o.Has('l'):
		return set(func(old string) string { return "!" + strings.TrimPrefix(old, "!") }, "locked")
	case o.Has('u'):
		return set(func(old string) string { return strings.TrimPrefix(old, "!") }, "unlocked")
	}
	if uid != 0 {
		old, err := etc.hash(u)
		if err != nil {
			return fail(c, err)
		}
		if old != "" {
			given, err := ask(ctx, c, "Old password: ", true)
			if err != nil {
				return fail(c, noAnswer(err))
			}
			if !fits(old, given) {
				return fail(c, errors.New("that is not the password: nothing was changed"))
			}
		}
	}
	fmt.Fprintf(c.Stdout, "Changing password for %s\n", u.name)
	first, err := ask(ctx, c, "New password: ", true)
	if err != nil {
		return fail(c, noAnswer(err))
	}
	if first == "" {
		return fail(c, errors.New("the password is empty: nothing was changed (-d sets none)"))
	}
	if n := utf8.RuneCountInString(first); n < 8 {
		fmt.Fprintf(c.Stderr, "passwd: warning: a password of %d characters is guessed quickly\n", n)
	}
	second, err := ask(ctx, c, "Retype password: ", true)
	if err != nil {
		return fail(c, noAnswer(err))
	}
	if first != second {
		return fail(c, errors.New("the two are not the same: nothing was changed"))
	}
	hash, err := crypt.Hash(first)
	if err != nil {
		return fail(c, err)
	}
	return set(func(string) string { return hash }, "changed by "+who(etc, uid))
}

func who(etc accounts, uid int) string {
	if u, err := etc.numbered(uid); err == nil {
		return u.name
	}
	return fmt.Sprintf("user %d", uid)
}

func noAnswer(err error) error {
	if err == io.EOF {
		return errors.New("no password was given: nothing was changed")
	}
	return fmt.Errorf("%w: nothing was changed", err)
}
