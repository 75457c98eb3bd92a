package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/init/applet/options"
	"weft/init/crypt"
	"weft/init/unit"
)

const (
	// failDelay is how long a wrong password costs, and maxFailures how often it
	// may be wrong before the line is dropped; both as in busybox.
	failDelay   = 3 * time.Second
	maxFailures = 3
	// loginTimeout is the time for everything, $LOGIN_TIMEOUT in seconds.
	loginTimeout = 60 * time.Second
)

// session is what login starts.
type session struct {
	user      *account
	groups    []int
	shell     string
	argv, env []string
}

// host is the machine as login sees it.
type host struct {
	etc   accounts
	name  string
	root  bool // we may become another user
	wait  func(ctx context.Context, d time.Duration) error
	log   func(text string)
	start func(s *session) error // returns only where it failed
}

// Login asks for a user and the password and becomes that user's shell.
func Login(ctx context.Context, c *unit.Call) int {
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	h := &host{etc: "/etc", name: name, root: os.Geteuid() == 0, wait: wait, log: authLog, start: func(s *session) error { return become(c, s) }}
	return h.login(ctx, c)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// authLog sends a line to the log; a log that is not there must not keep anybody
// out.
func authLog(text string) {
	conn, err := net.Dial("unixgram", "/dev/log")
	if err != nil {
		return
	}
	defer conn.Close()
	const authpriv, notice = 10, 5
	fmt.Fprintf(conn, "<%d>%s login[%d]: %s", authpriv<<3|notice, time.Now().Format(time.Stamp), os.Getpid(), text)
}

func (h *host) login(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "pf:h:", `[-p] [-h HOST] [[-f] USER]
Begin a session: ask for user and password and start the user's shell.
  -f USER  without a password     -p  keep the environment     -h HOST  where the user comes from
$LOGIN_TIMEOUT: seconds for all of it (60; 0: no end).`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 1); code >= 0 {
		return code
	}
	if !h.root {
		return fail(c, errors.New("only root can change to another user"))
	}
	limit := loginTimeout
	if s := c.Getenv("LOGIN_TIMEOUT"); s != "" {
		n, err := strconv.ParseUint(s, 10, 20)
		if err != nil {
			return o.Fail("LOGIN_TIMEOUT: %q is not a number of seconds", s)
		}
		limit = time.Duration(n) * time.Second
	}
	asking, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		asking, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	user := o.Value('f', "")
	if len(o.Args) == 1 {
		if user != "" {
			return o.Fail("two users: %q and %q", user, o.Args[0])
		}
		user = o.Args[0]
	}
	from := ""
	if at := o.Value('h', ""); at != "" {
		from = " from " + strconv.Quote(at)
	}
	u, err := h.authenticate(asking, c, user, o.Has('f'), from)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		fmt.Fprintf(c.Stdout, "\nLogin timed out after %d seconds\n", int(limit/time.Second))
		return 1
	case errors.Is(err, io.EOF), errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return 1
	case err != nil:
		return fail(c, err)
	}
	s, err := h.session(c, u, o.Has('p'))
	if err != nil {
		return fail(c, err)
	}
	h.log(fmt.Sprintf("session of %s begins%s", u.name, from))
	return fail(c, h.start(s))
}

var errRefused = errors.New("too many failed logins")

// authenticate returns the user that has proved to be one.
func (h *host) authenticate(ctx context.Context, c *unit.Call, user string, trusted bool, from string) (*account, error) {
	if trusted {
		return h.etc.named(user)
	}
	for n := 1; ; n++ {
		for user == "" {
			answer, err := ask(ctx, c, h.name+" login: ", false)
			if err != nil {
				return nil, err
			}
			user = strings.TrimSpace(answer)
		}
		// A user that is not there costs as much time as one that is.
		hash, _ := crypt.Hash("")
		u, err := h.etc.named(user)
		if err == nil {
			hash, err = h.etc.hash(u)
		}
		if err != nil && !errors.Is(err, errNoUser) {
			return nil, err
		}
		if err == nil && hash == "" {
			return u, nil
		}
		password, aerr := ask(ctx, c, "Password: ", true)
		if aerr != nil {
			return nil, aerr
		}
		if fits(hash, password) && err == nil {
			return u, nil
		}
		h.log(fmt.Sprintf("failed login of %q%s", user, from))
		if err := h.wait(ctx, failDelay); err != nil {
			return nil, err
		}
		fmt.Fprintln(c.Stdout, "Login incorrect")
		if n == maxFailures {
			return nil, errRefused
		}
		user = ""
	}
}

// session is what the user gets.
func (h *host) session(c *unit.Call, u *account, keep bool) (*session, error) {
	groups, err := h.etc.groups(u)
	if err != nil {
		return nil, err
	}
	s := &session{user: u, groups: groups, shell: u.shell}
	if s.shell == "" {
		s.shell = "/bin/sh"
	}
	s.argv = []string{"-" + filepath.Base(s.shell)} // a login shell
	if keep {
		s.env = os.Environ()
	}
	set := func(name, value string) {
		for i, e := range s.env {
			if strings.HasPrefix(e, name+"=") {
				s.env[i] = name + "=" + value
				return
			}
		}
		s.env = append(s.env, name+"="+value)
	}
	for _, name := range []string{"TERM", "TZ", "LANG"} {
		if v := c.Getenv(name); v != "" {
			set(name, v)
		}
	}
	path := "/usr/bin:/bin"
	if u.uid == 0 {
		path = "/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for _, kv := range [][2]string{{"HOME", u.home}, {"SHELL", s.shell}, {"USER", u.name}, {"LOGNAME", u.name}, {"PATH", path}} {
		set(kv[0], kv[1])
	}
	return s, nil
}

// become turns this process into the session's shell.
func become(c *unit.Call, s *session) error {
	if in := file(c.Stdin); in != nil && term.IsTerminal(int(in.Fd())) {
		// The terminal is the user's now; on a read-only or foreign one that
		// fails, and the session works all the same.
		_ = in.Chown(s.user.uid, s.user.gid)
		_ = in.Chmod(0o600)
	}
	if err := os.Chdir(s.user.home); err != nil {
		fmt.Fprintf(c.Stderr, "login: %v: starting in /\n", err)
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	// syscall's, not unix's: they change all threads.
	if err := syscall.Setgroups(s.groups); err != nil {
		return fmt.Errorf("set the groups of %s: %w", s.user.name, err)
	}
	if err := syscall.Setgid(s.user.gid); err != nil {
		return fmt.Errorf("become group %d: %w", s.user.gid, err)
	}
	if err := syscall.Setuid(s.user.uid); err != nil {
		return fmt.Errorf("become %s: %w", s.user.name, err)
	}
	return fmt.Errorf("start the shell of %s, %s: %w", s.user.name, s.shell, unix.Exec(s.shell, s.argv, s.env))
}
