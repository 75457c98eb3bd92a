package command

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/init/applet/options"
	"weft/init/applet/scriptcmd"
	"weft/init/unit"
)

// Env runs a command with another environment, or shows it.
func Env(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+iu:0C: ignore-environment=i unset=u null=0 chdir=C", `[-i0] [-u NAME]... [-C FOLDER] [NAME=VALUE]... [COMMAND [ARGUMENT]...]
  -i  an empty environment   -u  without NAME   -0  show with NUL instead of newline
Example: env -i PATH=/bin sh`)
	if code >= 0 {
		return code
	}
	env := os.Environ()
	args := o.Args
	if o.Has('i') || len(args) > 0 && args[0] == "-" {
		env = []string{}
		if len(args) > 0 && args[0] == "-" {
			args = args[1:]
		}
	}
	drop := func(name string) {
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	for _, n := range o.Values('u') {
		drop(n)
	}
	for len(args) > 0 {
		name, _, ok := strings.Cut(args[0], "=")
		if !ok || name == "" {
			break
		}
		drop(name)
		env = append(env, args[0])
		args = args[1:]
	}
	if len(args) == 0 {
		end := "\n"
		if o.Has('0') {
			end = "\x00"
		}
		for _, e := range env {
			fmt.Fprint(c.Stdout, e, end)
		}
		return 0
	}
	call := *c
	if dir := o.Value('C', ""); dir != "" {
		if err := os.Chdir(c.Path(dir)); err != nil {
			return failf(c, "-C: %v", err)
		}
		call.Dir = c.Path(dir)
	}
	// The command is looked for in the PATH it will have.
	call.Getenv = func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	return become(ctx, &call, args, env)
}

// Printenv shows variables of the environment.
func Printenv(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "0 null=0", "[-0] [NAME]...")
	if code >= 0 {
		return code
	}
	end := "\n"
	if o.Has('0') {
		end = "\x00"
	}
	if len(o.Args) == 0 {
		for _, e := range os.Environ() {
			fmt.Fprint(c.Stdout, e, end)
		}
		return 0
	}
	code = 0
	for _, n := range o.Args {
		v, ok := os.LookupEnv(n)
		if !ok {
			code = 1
			continue
		}
		fmt.Fprint(c.Stdout, v, end)
	}
	return code
}

// Time runs a command and tells how long it took.
func Time(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+pvf:o:", "[-p] COMMAND [ARGUMENT]...\n  -p  POSIX's form, seconds alone")
	if code >= 0 {
		return code
	}
	if o.Has('v') || o.Has('f') || o.Has('o') {
		return o.Fail("only -p is supported")
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	cmd, code := prepare(ctx, c, o.Args, nil)
	if code >= 0 {
		return code
	}
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	code = status(c, cmd, err)
	var user, sys time.Duration
	if cmd.ProcessState != nil {
		user, sys = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime()
	}
	for _, l := range []struct {
		name string
		d    time.Duration
	}{{"real", took}, {"user", user}, {"sys", sys}} {
		if o.Has('p') {
			fmt.Fprintf(c.Stderr, "%s %.2f\n", l.name, l.d.Seconds())
			continue
		}
		m := int(l.d.Minutes())
		fmt.Fprintf(c.Stderr, "%s\t%dm %.2fs\n", l.name, m, l.d.Seconds()-float64(60*m))
	}
	return code
}

// duration reads 5, 0.5, 3m, 2h, 1d.
func duration(s string) (time.Duration, error) {
	unitOf := time.Second
	n := s
	for suffix, u := range map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour} {
		if v, ok := strings.CutSuffix(s, suffix); ok {
			n, unitOf = v, u
		}
	}
	f, err := strconv.ParseFloat(n, 64)
	const most = 100 * 365 * 24 * time.Hour
	if err != nil || !(f >= 0) {
		return 0, fmt.Errorf("%q is not a time (examples: 5, 0.5, 3m, 2h)", s)
	}
	if f*float64(unitOf) > float64(most) {
		return most, nil
	}
	return time.Duration(f * float64(unitOf)), nil
}

// Sleep waits.
func Sleep(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "TIME...\n  TIME in seconds, or with s, m, h, d; several are added up\nExample: sleep 0.5")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	var total time.Duration
	for _, a := range o.Args {
		d, err := duration(a)
		if err != nil {
			return o.Fail("%v", err)
		}
		total += d
	}
	return wait(ctx, total)
}

// Usleep waits for microseconds.
func Usleep(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "MICROSECONDS")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, 1); code >= 0 {
		return code
	}
	n, err := strconv.ParseInt(o.Args[0], 10, 64)
	if err != nil || n < 0 {
		return o.Fail("%q is not a number of microseconds", o.Args[0])
	}
	return wait(ctx, time.Duration(n)*time.Microsecond)
}

func wait(ctx context.Context, d time.Duration) int {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return 0
	case <-ctx.Done():
		return 1
	}
}

// Timeout runs a command and ends it after a time. Exit code 124 if it did.
func Timeout(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+s:k:t: signal=s kill-after=k", `[-s SIGNAL] [-k TIME] TIME COMMAND [ARGUMENT]...
  -s  signal to send (TERM)   -k  kill it if it still runs TIME later
Example: timeout 10 ping 192.168.1.1`)
	if code >= 0 {
		return code
	}
	args := o.Args
	limit := o.Value('t', "") // busybox's old form
	if limit == "" {
		if len(args) == 0 {
			return o.Fail("an argument is missing")
		}
		limit, args = args[0], args[1:]
	}
	after, err := duration(limit)
	if err != nil {
		return o.Fail("%v", err)
	}
	if len(args) == 0 {
		return o.Fail("which command?")
	}
	sig, ok := scriptcmd.SignalNumber(o.Value('s', "TERM"))
	if !ok {
		return o.Fail("-s: %q is not a signal", o.Value('s', ""))
	}
	var kill time.Duration
	if o.Has('k') {
		if kill, err = duration(o.Value('k', "")); err != nil {
			return o.Fail("-k: %v", err)
		}
	}
	cmd, code := prepare(ctx, c, args, nil)
	if code >= 0 {
		return code
	}
	if err := cmd.Start(); err != nil {
		return cannot(c, args[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var over <-chan time.Time
	if after > 0 {
		t := time.NewTimer(after)
		defer t.Stop()
		over = t.C
	}
	ended := false
	for {
		select {
		case err := <-done:
			code := status(c, cmd, err)
			if ended && code != 128+int(unix.SIGKILL) {
				return 124
			}
			return code
		case <-over:
			if !ended {
				ended = true
				cmd.Process.Signal(sig) // gone meanwhile: Wait tells
				over = nil
				if kill > 0 {
					t := time.NewTimer(kill)
					defer t.Stop()
					over = t.C
				}
				continue
			}
			cmd.Process.Kill()
			over = nil
		}
	}
}

// Nohup runs a command that goes on when the terminal is closed.
func Nohup(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+", "COMMAND [ARGUMENT]...\nThe output goes to nohup.out if it would go to a terminal.")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	call := *c
	isTerm := func(v any) bool {
		f, ok := v.(*os.File)
		if !ok {
			return false
		}
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		return err == nil
	}
	if isTerm(c.Stdin) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return failf(c, "%v", err)
		}
		defer null.Close()
		call.Stdin = null
	}
	if isTerm(c.Stdout) {
		out, err := os.OpenFile(c.Path("nohup.out"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return failf(c, "%v", err)
		}
		defer out.Close()
		fmt.Fprintln(c.Stderr, "nohup: the output goes to nohup.out")
		if isTerm(c.Stderr) {
			call.Stderr = out
		}
		call.Stdout = out
	}
	signal.Ignore(syscall.SIGHUP)
	cmd, code := prepare(ctx, &call, o.Args, nil)
	if code >= 0 {
		return code
	}
	return status(c, cmd, cmd.Run())
}

// Nice runs a command with a lower (or for root higher) priority.
func Nice(ctx context.Context, c *unit.Call) int {
	call := *c
	call.Args = slices.Clone(c.Args)
	if len(call.Args) > 1 && len(call.Args[1]) > 1 && call.Args[1][0] == '-' && strings.Trim(call.Args[1][1:], "-0123456789") == "" {
		call.Args[1] = "-n" + call.Args[1][1:]
	}
	o, code := options.Parse(&call, "+n: adjustment=n", "[-n NUMBER] COMMAND [ARGUMENT]...\n  NUMBER  added to the niceness (10), -20 to 19")
	if code >= 0 {
		return code
	}
	n, code := o.Int('n', 10)
	if code >= 0 {
		return code
	}
	now, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return failf(c, "ask for the priority: %v", err)
	}
	now = 20 - now // the system call counts from 40 to 1
	if len(o.Args) == 0 {
		fmt.Fprintln(c.Stdout, now)
		return 0
	}
	// Linux keeps niceness by thread, and a child inherits that of the thread that
	// starts it: so this is done on a thread of its own, which ends with the goroutine.
	done := make(chan int)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, min(max(now+n, -20), 19)); err != nil {
			failf(c, "set the priority: %v", err)
		}
		done <- become(ctx, c, o.Args, nil)
	}()
	return <-done
}

// Setsid runs a command in a session of its own.
func Setsid(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+c ctty=c", "[-c] COMMAND [ARGUMENT]...\n  -c  the input becomes its terminal")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	cmd, code := prepare(ctx, c, o.Args, nil)
	if code >= 0 {
		return code
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: o.Has('c')}
	return status(c, cmd, cmd.Run())
}

// Chroot runs a command with another root folder.
func Chroot(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+", "FOLDER [COMMAND [ARGUMENT]...]\nWithout COMMAND a shell.\nExample: chroot /rom /bin/sh")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	args := o.Args[1:]
	if len(args) == 0 {
		args = []string{"/bin/sh", "-i"}
		if sh := c.Getenv("SHELL"); sh != "" {
			args[0] = sh
		}
	}
	if err := unix.Chroot(c.Path(o.Args[0])); err != nil {
		return failf(c, "%s: %v", o.Args[0], err)
	}
	if err := os.Chdir("/"); err != nil {
		return failf(c, "%v", err)
	}
	call := *c
	call.Dir = "/"
	return become(ctx, &call, args, nil)
}

// Flock holds a lock while a command runs, or on a descriptor of the caller.
func Flock(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+sxunw:c:oE: shared=s exclusive=x unlock=u nonblock=n timeout=w command=c close=o", `[-sxun] [-w TIME] FILE COMMAND [ARGUMENT]... | FILE -c COMMAND | [-sxun] [-w TIME] NUMBER
  -s  shared   -x  exclusive (default)   -u  unlock   -n  do not wait   -w  wait so long
Example: flock -n /tmp/lock/backup sh -c 'tar -czf /tmp/b.tgz /etc'`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	how := unix.LOCK_EX
	switch {
	case o.Has('u'):
		how = unix.LOCK_UN
	case o.Has('s'):
		how = unix.LOCK_SH
	}
	failed, code := o.Int('E', 1)
	if code >= 0 {
		return code
	}
	var deadline <-chan time.Time
	if o.Has('w') {
		d, err := duration(o.Value('w', ""))
		if err != nil {
			return o.Fail("-w: %v", err)
		}
		t := time.NewTimer(d)
		defer t.Stop()
		deadline = t.C
	}
	args := o.Args[1:]
	if len(args) > 1 && args[0] == "-c" {
		args = []string{"/bin/sh", "-c", args[1]}
	}
	fd := -1
	if len(args) == 0 {
		n, err := strconv.Atoi(o.Args[0])
		if err != nil {
			return o.Fail("%q is not a descriptor, and there is no command to run", o.Args[0])
		}
		fd = n
	} else {
		f, err := os.OpenFile(c.Path(o.Args[0]), os.O_RDONLY|os.O_CREATE, 0o666)
		if err != nil {
			if f, err = os.Open(c.Path(o.Args[0])); err != nil { // a folder
				return failf(c, "%v", err)
			}
		}
		defer f.Close()
		fd = int(f.Fd())
	}
	for {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return failf(c, "%s: %v", o.Args[0], err)
		}
		if o.Has('n') {
			return failed
		}
		select {
		case <-deadline:
			return failed
		case <-ctx.Done():
			return failed
		case <-time.After(20 * time.Millisecond):
		}
	}
	if len(args) == 0 {
		return 0
	}
	cmd, code := prepare(ctx, c, args, nil)
	if code >= 0 {
		return code
	}
	return status(c, cmd, cmd.Run())
}

// Xargs runs a command with arguments from its input.
func Xargs(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "+0rtn:L:I:s:E:P:xp null=0 no-run-if-empty=r verbose=t max-args=n replace=I max-lines=L max-procs=P", `[-0rt] [-n COUNT|-L LINES|-I TEXT] [COMMAND [ARGUMENT]...]
  -0  input separated by NUL   -r  not without input   -t  show commands   -n  so many at once
  -I  one command a line, TEXT stands for it   -L  lines at once
Example: find . -name '*.tmp' -print0 | xargs -0r rm`)
	if code >= 0 {
		return code
	}
	if o.Has('p') {
		return o.Fail("-p is not supported")
	}
	if p := o.Value('P', "1"); p != "1" {
		return o.Fail("-P %s: commands run one after the other", p)
	}
	most, code := o.Int('n', 0)
	if code >= 0 {
		return code
	}
	lines, code := o.Int('L', 0)
	if code >= 0 {
		return code
	}
	bytesMost, code := o.Int('s', 128*1024)
	if code >= 0 {
		return code
	}
	if most < 0 || lines < 0 || bytesMost < 1 {
		return o.Fail("a count must be positive")
	}
	command := o.Args
	if len(command) == 0 {
		command = []string{"echo"}
	}
	x := &xargs{ctx: ctx, c: c, o: o, command: command}
	r := bufio.NewReaderSize(c.Stdin, 32*1024)
	if replace := o.Value('I', ""); replace != "" {
		for {
			line, err := r.ReadString('\n')
			line = strings.TrimLeft(strings.TrimSuffix(line, "\n"), " \t")
			if line != "" {
				args := make([]string, len(command))
				for i, a := range command {
					args[i] = strings.ReplaceAll(a, replace, line)
				}
				if x.run(args) {
					return x.code
				}
			}
			if err != nil {
				return x.end(err)
			}
		}
	}
	size, lineCount := 0, 0
	var batch []string
	flush := func() bool {
		args := append(slices.Clone(command), batch...)
		batch, size, lineCount = nil, 0, 0
		return x.run(args)
	}
	ran := false
	for {
		item, endOfLine, ok, err := x.item(r)
		if ok {
			if len(batch) > 0 && size+len(item)+1 > bytesMost {
				ran = true
				if flush() {
					return x.code
				}
			}
			batch = append(batch, item)
			size += len(item) + 1
		}
		if endOfLine && len(batch) > 0 {
			lineCount++
		}
		if most > 0 && len(batch) >= most || lines > 0 && lineCount >= lines {
			ran = true
			if flush() {
				return x.code
			}
		}
		if err != nil {
			if err == io.EOF && (len(batch) > 0 || !ran && !o.Has('r')) {
				flush()
			}
			return x.end(err)
		}
	}
}

type xargs struct {
	ctx     context.Context
	c       *unit.Call
	o       *options.Set
	command []string
	code    int
}

func (x *xargs) end(err error) int {
	if err != io.EOF {
		return failf(x.c, "%v", err)
	}
	return x.code
}

// item reads one argument; in the plain form quotes and backslashes protect.
func (x *xargs) item(r *bufio.Reader) (item string, endOfLine, ok bool, err error) {
	if x.o.Has('0') {
		item, err = r.ReadString(0)
		item = strings.TrimSuffix(item, "\x00")
		return item, true, item != "" || err == nil, err
	}
	var b strings.Builder
	var quote byte
	started := false
	for {
		ch, err := r.ReadByte()
		if err != nil {
			if err == io.EOF && quote != 0 {
				err = fmt.Errorf("a %c is not closed", quote)
			}
			return b.String(), started, started, err
		}
		switch {
		case quote != 0:
			if ch == quote {
				quote = 0
			} else if ch == '\n' {
				return "", false, false, fmt.Errorf("a %c is not closed in its line (-0 takes names as they are)", quote)
			} else {
				b.WriteByte(ch)
			}
		case ch == '\'' || ch == '"':
			quote, started = ch, true
		case ch == '\\':
			if ch, err = r.ReadByte(); err == nil {
				b.WriteByte(ch)
				started = true
			}
		case ch == ' ' || ch == '\t' || ch == '\n':
			if started {
				return b.String(), ch == '\n', true, nil
			}
			if ch == '\n' {
				return "", true, false, nil
			}
		default:
			b.WriteByte(ch)
			started = true
		}
	}
}

// run runs one command and reports whether xargs must stop.
func (x *xargs) run(args []string) (stop bool) {
	if x.ctx.Err() != nil {
		x.code = 1
		return true
	}
	if x.o.Has('t') {
		fmt.Fprintln(x.c.Stderr, strings.Join(args, " "))
	}
	call := *x.c
	call.Stdin = nil // the command must not eat the list
	cmd, code := prepare(x.ctx, &call, args, nil)
	if code >= 0 {
		x.code = code // it cannot be run at all
		return true
	}
	code = status(x.c, cmd, cmd.Run())
	switch {
	case code == 255:
		x.code = 124
		failf(x.c, "%s: exited with 255", args[0])
		return true
	case code > 128 && cmd.ProcessState != nil && !cmd.ProcessState.Exited():
		x.code = 125
		return true
	case code != 0:
		x.code = 123
	}
	return false
}

// Which tells where commands are.
func Which(_ context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "a all=a", "[-a] NAME...\n  -a  all places")
	if code >= 0 {
		return code
	}
	if code := o.Operands(1, -1); code >= 0 {
		return code
	}
	code = 0
	for _, name := range o.Args {
		found := false
		if strings.Contains(name, "/") || !o.Has('a') {
			if p, err := lookPath(c, name); err == nil {
				fmt.Fprintln(c.Stdout, p)
				found = true
			}
		} else {
			for dir := range strings.SplitSeq(c.Getenv("PATH"), ":") {
				if p, err := lookPath(c, filepath.Join(c.Path(dir), name)); err == nil {
					fmt.Fprintln(c.Stdout, p)
					found = true
				}
			}
		}
		if !found {
			code = 1
		}
	}
	return code
}
