package shell

import (
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"weft/init/applet/scriptcmd"
	"weft/init/unit"
)

// builtinCmd is a command that runs in the shell. A special one keeps the
// assignments before it, comes before functions, and its failure ends a script.
type builtinCmd struct {
	run     func(s *shell, args []string) int
	special bool
}

// builtin returns the builtin of the name; run is nil if there is none. It is a
// switch, not a map, so that nothing is built when the process starts.
func builtin(name string) builtinCmd {
	special := func(f func(*shell, []string) int) builtinCmd { return builtinCmd{f, true} }
	plain := func(f func(*shell, []string) int) builtinCmd { return builtinCmd{f, false} }
	switch name {
	case ":":
		return special(func(*shell, []string) int { return 0 })
	case ".", "source":
		return special((*shell).dot)
	case "break", "continue":
		return special((*shell).breakCmd)
	case "eval":
		return special((*shell).eval)
	case "exec":
		return special((*shell).exec)
	case "exit":
		return special((*shell).exit)
	case "return":
		return special((*shell).returnCmd)
	case "set":
		return special((*shell).setCmd)
	case "shift":
		return special((*shell).shift)
	case "times":
		return special((*shell).times)
	case "trap":
		return special((*shell).trap)
	case "unset":
		return special((*shell).unsetCmd)
	case "export", "readonly":
		return special((*shell).declCmd)
	case "local":
		return plain((*shell).declCmd)
	case "true":
		return plain(func(*shell, []string) int { return 0 })
	case "false":
		return plain(func(*shell, []string) int { return 1 })
	case "echo":
		return plain(func(s *shell, args []string) int { return s.small(scriptcmd.Echo, args) })
	case "printf":
		return plain(func(s *shell, args []string) int { return s.small(scriptcmd.Printf, args) })
	case "test", "[":
		return plain((*shell).test)
	case "[[": // reached only through a variable or an alias
		return builtinCmd{}
	case "alias":
		return plain((*shell).aliasCmd)
	case "unalias":
		return plain((*shell).unaliasCmd)
	case "bg":
		return plain((*shell).bg)
	case "fg":
		return plain((*shell).fg)
	case "jobs":
		return plain((*shell).jobsCmd)
	case "kill":
		return plain((*shell).kill)
	case "wait":
		return plain((*shell).waitCmd)
	case "cd", "chdir":
		return plain((*shell).cd)
	case "pwd":
		return plain((*shell).pwd)
	case "command":
		return plain((*shell).commandCmd)
	case "type":
		return plain((*shell).typeCmd)
	case "hash":
		return plain((*shell).hash)
	case "getopts":
		return plain((*shell).getopts)
	case "read":
		return plain((*shell).read)
	case "umask":
		return plain((*shell).umaskCmd)
	case "ulimit":
		return plain((*shell).ulimit)
	case "let":
		return plain((*shell).let)
	case "history":
		return plain((*shell).historyCmd)
	case "help":
		return plain((*shell).help)
	}
	return builtinCmd{}
}

// builtinNames lists the builtins for help and completion.
func builtinNames() []string {
	return strings.Fields(". : [ alias bg break cd chdir command continue echo eval exec exit export false fg getopts hash help history jobs kill let local printf pwd read readonly return set shift source test times trap true type ulimit umask unalias unset wait")
}

func (s *shell) complain(args []string, format string, a ...any) int {
	s.errorf("%s: %s", args[0], fmt.Sprintf(format, a...))
	return 2
}

// small runs a command that the shell shares with the applets.
func (s *shell) small(f unit.Func, args []string) int {
	return f(s.ctx, &unit.Call{Args: args, Stdin: s.in(), Stdout: s.out(), Stderr: s.err(), Dir: s.dir, Getenv: s.getenv})
}

func (s *shell) test(args []string) int {
	words := args[1:]
	if args[0] == "[" {
		if len(words) == 0 || words[len(words)-1] != "]" {
			return s.complain(args, "missing ]")
		}
		words = words[:len(words)-1]
	}
	ok, err := scriptcmd.Eval(words, s.testFiles())
	if err != nil {
		return s.complain(args, "%v", err)
	}
	return 1 - int(truth(ok))
}

func (s *shell) declCmd(args []string) int {
	list := make([]declArg, 0, len(args)-1)
	for _, a := range args[1:] {
		list = append(list, splitDecl(a))
	}
	return s.declareArgs(args[0], list)
}

func (s *shell) dot(args []string) int {
	if len(args) < 2 {
		return s.complain(args, "which file?")
	}
	name := args[1]
	path := abs(s.dir, name)
	if !strings.Contains(name, "/") {
		list, _ := s.get("PATH")
		for dir := range strings.SplitSeq(list, ":") {
			p := abs(s.dir, dir) + "/" + name
			if st, err := os.Stat(p); err == nil && !st.IsDir() {
				path = p
				break
			}
		}
	}
	f, err := s.openPath(path, os.O_RDONLY)
	if err != nil {
		panic(s.fail(2, "%s: cannot open %s: %s", args[0], name, cause(err)))
	}
	f.refs.Add(1)
	defer f.release()
	params, line := s.params, s.line
	if len(args) > 2 {
		s.params = args[2:]
		defer func() { s.params = params }()
	}
	if s.calls >= maxCalls {
		panic(s.fail(2, "%s: files read each other %d deep", name, maxCalls))
	}
	loops := s.loops
	s.calls++
	s.loops = 0
	defer func() { s.calls--; s.loops, s.line = loops, line }()
	if s.runReader(f.file) == 0 {
		s.status = 0
	}
	if s.jump == returnFrom {
		s.jump = noJump
	}
	return s.status
}

func (s *shell) eval(args []string) int {
	line := s.line
	defer func() { s.line = line }()
	if s.runReader(strings.NewReader(strings.Join(args[1:], " "))) == 0 {
		s.status = 0
	}
	return s.status
}

func (s *shell) breakCmd(args []string) int {
	n, ok := s.count(args, 1)
	if !ok || n < 1 {
		panic(s.fail(2, "%s: %s is not a number of loops", args[0], args[1]))
	}
	if s.loops == 0 {
		return 0
	}
	s.jump, s.jumps = breakLoop, min(n, s.loops)
	if args[0] == "continue" {
		s.jump = continueLoop
	}
	return 0
}

// count reads an optional number.
func (s *shell) count(args []string, def int) (int, bool) {
	if len(args) < 2 {
		return def, true
	}
	n, err := strconv.Atoi(args[1])
	return n, err == nil && n >= 0
}

func (s *shell) exit(args []string) int {
	n, ok := s.count(args, s.status)
	if !ok {
		panic(s.fail(2, "exit: %s is not an exit status", args[1]))
	}
	if s.proc.interactive && !s.sub && s.warnJobs() {
		return 1
	}
	panic(exitNow{n & 0xff})
}

func (s *shell) returnCmd(args []string) int {
	n, ok := s.count(args, s.status)
	if !ok {
		panic(s.fail(2, "return: %s is not an exit status", args[1]))
	}
	if s.calls == 0 {
		panic(exitNow{n & 0xff}) // dash and ash leave the script
	}
	s.jump = returnFrom
	return n & 0xff
}

// exec replaces the shell by a program. Its redirections were applied already.
func (s *shell) exec(args []string) int {
	words := args[1:]
	if words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		return 0
	}
	path, _, err := s.find(words[0])
	if err != nil {
		if f, _ := lookupApplet(words[0]); f == nil || strings.Contains(words[0], "/") {
			panic(exitNow{s.notFound(words[0], err)})
		}
		path = selfPath
	}
	if s.sub || s.ownsPipes() {
		// A subshell shares the process with its parent: run and leave.
		s.run(path, words, nil)
		panic(exitNow{s.status})
	}
	if s.proc.tty != nil {
		s.proc.tty.take(true)
	}
	err = s.become(path, words)
	panic(exitNow{s.notFound(words[0], err)})
}

// ownsPipes reports whether streams are bridged to code in this process, which
// exec would cut off.
func (s *shell) ownsPipes() bool {
	for n := 0; n < 3; n++ {
		if d := s.fds.m[n]; d != nil && !d.keep && d.file.Name() == "pipe" {
			return true
		}
	}
	return false
}

// become puts the descriptors in their places and execs; it returns only on failure.
func (s *shell) become(path string, args []string) error {
	if err := os.Chdir(s.dir); err != nil {
		return err
	}
	files := s.fds.forChild()
	// First out of the way of the low numbers, then into place.
	for n, fd := range files {
		if fd == ^uintptr(0) || int(fd) == n {
			continue
		}
		up, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, len(files))
		if err != nil {
			return err
		}
		files[n] = uintptr(up)
	}
	for n, fd := range files {
		var err error
		switch {
		case fd == ^uintptr(0):
			unix.Close(n)
		case int(fd) == n:
			_, err = unix.FcntlInt(fd, unix.F_SETFD, 0)
		default:
			err = unix.Dup3(int(fd), n, 0)
		}
		if err != nil {
			return err
		}
	}
	s.ignoreForExec()
	env := s.environ(nil)
	err := unix.Exec(path, args, env)
	if err == unix.ENOEXEC {
		err = unix.Exec(selfPath, append([]string{"sh", path}, args[1:]...), env)
	}
	return err
}

func (s *shell) setCmd(args []string) int {
	words := args[1:]
	if len(words) == 0 {
		all := s.vars.all()
		names := make([]string, 0, len(all))
		for name, v := range all {
			if v.set {
				names = append(names, name)
			}
		}
		sort.Strings(names)
		for _, name := range names {
			fmt.Fprintf(s.out(), "%s=%s\n", name, forceQuote(all[name].value))
		}
		return 0
	}
	for len(words) > 0 && len(words[0]) > 0 && (words[0][0] == '-' || words[0][0] == '+') {
		w := words[0]
		words = words[1:]
		on := w[0] == '-'
		switch {
		case w == "--":
			s.params = words
			return 0
		case w == "-" || w == "+":
			if on {
				s.opt.xtrace, s.opt.verbose = false, false
			}
			if len(words) > 0 {
				s.params = words
			}
			return 0
		}
		for _, l := range []byte(w[1:]) {
			if l != 'o' {
				f := s.optionByLetter(l)
				if f == nil {
					panic(s.fail(2, "set: -%c: there is no such option", l))
				}
				*f = on
				continue
			}
			if len(words) == 0 {
				s.printOptions(on)
				return 0
			}
			f := s.optionByName(words[0])
			if f == nil {
				panic(s.fail(2, "set: -o %s: there is no such option", words[0]))
			}
			*f = on
			words = words[1:]
		}
		if len(words) == 0 {
			return 0
		}
	}
	s.params = words
	return 0
}

func (s *shell) printOptions(human bool) {
	for _, o := range optionTable() {
		on := *o.field(&s.opt)
		switch {
		case human && on:
			fmt.Fprintf(s.out(), "%-15s on\n", o.name)
		case human:
			fmt.Fprintf(s.out(), "%-15s off\n", o.name)
		case on:
			fmt.Fprintf(s.out(), "set -o %s\n", o.name)
		default:
			fmt.Fprintf(s.out(), "set +o %s\n", o.name)
		}
	}
}

func (s *shell) shift(args []string) int {
	n, ok := s.count(args, 1)
	if !ok {
		panic(s.fail(2, "shift: %s is not a number", args[1]))
	}
	if n > len(s.params) {
		return 1 // as busybox; dash ends the script
	}
	s.params = s.params[n:]
	return 0
}

func (s *shell) times([]string) int {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			return s.complain([]string{"times"}, "%v", err)
		}
		f := func(t unix.Timeval) string {
			sec := float64(t.Sec) + float64(t.Usec)/1e6
			return fmt.Sprintf("%dm%.2fs", int(sec)/60, sec-float64(int(sec)/60*60))
		}
		fmt.Fprintf(s.out(), "%s %s\n", f(r.Utime), f(r.Stime))
	}
	return 0
}

func (s *shell) timeClause(c *syntax.TimeClause) {
	start := time.Now()
	var self0, kids0 unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &self0) // cannot fail with these arguments
	unix.Getrusage(unix.RUSAGE_CHILDREN, &kids0)
	if c.Stmt != nil {
		s.stmt(c.Stmt)
	}
	var self, kids unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &self)
	unix.Getrusage(unix.RUSAGE_CHILDREN, &kids)
	show := func(name string, d time.Duration) {
		if c.PosixFormat {
			fmt.Fprintf(s.err(), "%s %.2f\n", name, d.Seconds())
			return
		}
		fmt.Fprintf(s.err(), "%s\t%dm %.2fs\n", name, int(d.Minutes()), d.Seconds()-float64(int(d.Minutes())*60))
	}
	spent := func(a, b, a0, b0 unix.Timeval) time.Duration {
		return time.Duration(a.Nano() + b.Nano() - a0.Nano() - b0.Nano())
	}
	show("real", time.Since(start))
	show("user", spent(self.Utime, kids.Utime, self0.Utime, kids0.Utime))
	show("sys", spent(self.Stime, kids.Stime, self0.Stime, kids0.Stime))
}

func (s *shell) unsetCmd(args []string) int {
	status := 0
	words := args[1:]
	funcs := false
	for len(words) > 0 && (words[0] == "-f" || words[0] == "-v") {
		funcs = words[0] == "-f"
		words = words[1:]
	}
	for _, name := range words {
		switch {
		case funcs:
			s.forget(name)
		case !syntax.ValidName(name):
			return s.complain(args, "%s: not a variable's name", name)
		case !s.unset(name):
			status = 2
		}
	}
	return status
}

func (s *shell) forget(name string) {
	if s.shared {
		m := make(map[string]*syntax.Stmt, len(s.funcs))
		for k, v := range s.funcs {
			m[k] = v
		}
		s.funcs, s.shared = m, false
	}
	delete(s.funcs, name)
}

func (s *shell) aliasCmd(args []string) int {
	if len(args) == 1 {
		names := make([]string, 0, len(s.alias))
		for name := range s.alias {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			fmt.Fprintf(s.out(), "%s=%s\n", name, forceQuote(s.alias[name]))
		}
		return 0
	}
	status := 0
	for _, a := range args[1:] {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			v, found := s.alias[name]
			if !found {
				s.errorf("alias: %s: not found", name)
				status = 1
				continue
			}
			fmt.Fprintf(s.out(), "%s=%s\n", name, forceQuote(v))
			continue
		}
		m := make(map[string]string, len(s.alias)+1)
		for k, v := range s.alias {
			m[k] = v
		}
		m[name] = value
		s.alias = m
	}
	return status
}

func (s *shell) unaliasCmd(args []string) int {
	m := make(map[string]string, len(s.alias))
	for k, v := range s.alias {
		m[k] = v
	}
	status := 0
	for _, name := range args[1:] {
		if name == "-a" {
			clear(m)
			continue
		}
		if _, ok := m[name]; !ok {
			s.errorf("unalias: %s: not found", name)
			status = 1
		}
		delete(m, name)
	}
	s.alias = m
	return status
}

func (s *shell) cd(args []string) int {
	words := args[1:]
	physical := false
	for len(words) > 0 && (words[0] == "-L" || words[0] == "-P" || words[0] == "--") {
		physical = words[0] == "-P"
		end := words[0] == "--"
		words = words[1:]
		if end {
			break
		}
	}
	target, show := "", false
	switch {
	case len(words) == 0:
		home, ok := s.get("HOME")
		if !ok {
			return s.complain(args, "HOME is not set")
		}
		target = home
	case words[0] == "-":
		old, ok := s.get("OLDPWD")
		if !ok {
			return s.complain(args, "OLDPWD is not set")
		}
		target, show = old, true
	default:
		target = words[0]
	}
	if target == "" {
		return 0
	}
	dir := abs(s.dir, target)
	if cdpath, ok := s.get("CDPATH"); ok && !strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "./") && !strings.HasPrefix(target, "../") && target != "." && target != ".." {
		for base := range strings.SplitSeq(cdpath, ":") {
			try := abs(abs(s.dir, base), target)
			if st, err := os.Stat(try); err == nil && st.IsDir() {
				dir, show = try, base != "" && base != "."
				break
			}
		}
	}
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err == nil {
		err = unix.Faccessat(unix.AT_FDCWD, dir, unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		s.errorf("cd: %s: %s", target, cause(err))
		return 1
	}
	dir = logical(dir)
	if physical {
		if real, err := realPath(dir); err == nil {
			dir = real
		}
	}
	old := s.dir
	s.dir = dir
	s.set("OLDPWD", old)
	s.set("PWD", dir)
	if show {
		fmt.Fprintln(s.out(), dir)
	}
	return 0
}

func (s *shell) pwd(args []string) int {
	for _, a := range args[1:] {
		switch a {
		case "-P":
			if real, err := realPath(s.dir); err == nil {
				fmt.Fprintln(s.out(), real)
				return 0
			}
		case "-L":
		default:
			return s.complain(args, "%s: there is no such option", a)
		}
	}
	fmt.Fprintln(s.out(), s.dir)
	return 0
}

func (s *shell) commandCmd(args []string) int {
	words := args[1:]
	mode := byte(0)
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' {
		switch words[0] {
		case "-v", "-V":
			mode = words[0][1]
		case "-p": // the default PATH is the PATH here
		case "--":
		default:
			return s.complain(args, "%s: there is no such option", words[0])
		}
		words = words[1:]
	}
	if len(words) == 0 {
		return 0
	}
	if mode != 0 {
		status := 0
		for _, w := range words {
			if !s.describe(w, mode == 'V') {
				status = 127
			}
		}
		return status
	}
	if b := builtin(words[0]); b.run != nil {
		return b.run(s, words)
	}
	s.external(words, nil)
	return s.status
}

func (s *shell) typeCmd(args []string) int {
	status := 0
	for _, w := range args[1:] {
		if !s.describe(w, true) {
			status = 127
		}
	}
	return status
}

// describe says what a word would run; long as type does, else as command -v.
func (s *shell) describe(name string, long bool) bool {
	say := func(short, text string) bool {
		if long {
			fmt.Fprintf(s.out(), "%s is %s\n", name, text)
		} else {
			fmt.Fprintln(s.out(), short)
		}
		return true
	}
	if v, ok := s.alias[name]; ok {
		return say("alias "+name+"="+forceQuote(v), "an alias for "+v)
	}
	if isKeyword(name) {
		return say(name, "a shell keyword")
	}
	b := builtin(name)
	if b.special {
		return say(name, "a special shell builtin")
	}
	if _, ok := s.funcs[name]; ok {
		return say(name, "a function")
	}
	if b.run != nil {
		return say(name, "a shell builtin")
	}
	path, _, err := s.find(name)
	if err == nil {
		return say(path, path)
	}
	if f, _ := lookupApplet(name); f != nil && !strings.Contains(name, "/") {
		return say(name, "an applet of this binary")
	}
	if long {
		fmt.Fprintf(s.err(), "%s: not found\n", name)
	}
	return false
}

func isKeyword(w string) bool {
	switch w {
	case "!", "case", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in", "then", "until", "while", "{", "}", "[[", "]]", "time":
		return true
	}
	return false
}

func (s *shell) hash(args []string) int {
	if len(args) > 1 && args[1] == "-r" {
		s.proc.paths.Clear()
		return 0
	}
	status := 0
	for _, name := range args[1:] {
		if _, _, err := s.find(name); err != nil && builtin(name).run == nil {
			status = s.notFound(name, err)
		}
	}
	if len(args) == 1 {
		var list []string
		s.proc.paths.Range(func(_, v any) bool {
			list = append(list, v.(hashed).path)
			return true
		})
		sort.Strings(list)
		for _, p := range list {
			fmt.Fprintln(s.out(), p)
		}
	}
	return status
}

func (s *shell) let(args []string) int {
	var n int64
	for _, a := range args[1:] {
		n = s.arithText(a, 0)
	}
	return 1 - int(truth(n != 0))
}

// getopts follows POSIX: OPTIND counts words, optAt remembers the letter in one.
func (s *shell) getopts(args []string) int {
	if len(args) < 3 {
		return s.complain(args, "usage: getopts OPTIONS NAME [ARGUMENT]...")
	}
	spec, name := args[1], args[2]
	words := s.params
	if len(args) > 3 {
		words = args[3:]
	}
	ind := 1
	if v, ok := s.get("OPTIND"); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 {
			ind = n
		}
	}
	silent := strings.HasPrefix(spec, ":")
	spec = strings.TrimPrefix(spec, ":")
	at := s.optAt
	finish := func(opt string, arg *string, status int) int {
		s.set("OPTIND", strconv.Itoa(ind))
		s.optAt = at
		if arg != nil {
			s.set("OPTARG", *arg)
		} else {
			s.unset("OPTARG")
		}
		s.set(name, opt)
		return status
	}
	if at == 0 {
		if ind > len(words) || len(words[ind-1]) < 2 || words[ind-1][0] != '-' {
			return finish("?", nil, 1)
		}
		if words[ind-1] == "--" {
			ind++
			return finish("?", nil, 1)
		}
		at = 1
	}
	if ind > len(words) || at >= len(words[ind-1]) {
		at = 0
		return finish("?", nil, 1)
	}
	word := words[ind-1]
	opt := word[at : at+1]
	at++
	if at == len(word) {
		ind, at = ind+1, 0
	}
	i := strings.Index(spec, opt)
	if i < 0 || opt == ":" {
		if silent {
			return finish("?", &opt, 0)
		}
		fmt.Fprintf(s.err(), "%s: illegal option -%s\n", s.name0, opt)
		return finish("?", nil, 0)
	}
	if i+1 >= len(spec) || spec[i+1] != ':' {
		return finish(opt, nil, 0)
	}
	var value string
	switch {
	case at > 0:
		value = word[at:]
		ind, at = ind+1, 0
	case ind <= len(words):
		value = words[ind-1]
		ind++
	case silent:
		return finish(":", &opt, 0)
	default:
		fmt.Fprintf(s.err(), "%s: option requires an argument -%s\n", s.name0, opt)
		return finish("?", nil, 0)
	}
	return finish(opt, &value, 0)
}

func (s *shell) umaskCmd(args []string) int {
	words := args[1:]
	symbolic := false
	if len(words) > 0 && words[0] == "-S" {
		symbolic, words = true, words[1:]
	}
	mask := uint32(s.proc.umask.Load())
	if len(words) == 0 {
		if symbolic {
			part := func(shift uint) string {
				b := ^mask >> shift & 7
				t := ""
				for i, l := range "rwx" {
					if b&(4>>i) != 0 {
						t += string(l)
					}
				}
				return t
			}
			fmt.Fprintf(s.out(), "u=%s,g=%s,o=%s\n", part(6), part(3), part(0))
			return 0
		}
		fmt.Fprintf(s.out(), "%04o\n", mask)
		return 0
	}
	if n, err := strconv.ParseUint(words[0], 8, 32); err == nil && n <= 0o777 {
		s.setUmask(int(n))
		return 0
	}
	allowed, ok := symbolicMode(words[0], ^mask&0o777)
	if !ok {
		return s.complain(args, "%s: not a mask (example: 022 or u=rwx,g=rx,o=)", words[0])
	}
	s.setUmask(int(^allowed & 0o777))
	return 0
}

// symbolicMode applies u=rwx,g-w and the like to permission bits.
func symbolicMode(spec string, mode uint32) (uint32, bool) {
	for clause := range strings.SplitSeq(spec, ",") {
		i := strings.IndexAny(clause, "+-=")
		if i < 0 {
			return 0, false
		}
		var who uint32
		for _, l := range clause[:i] {
			switch l {
			case 'u':
				who |= 0o700
			case 'g':
				who |= 0o070
			case 'o':
				who |= 0o007
			case 'a':
				who |= 0o777
			default:
				return 0, false
			}
		}
		if i == 0 {
			who = 0o777
		}
		var bits uint32
		for _, l := range clause[i+1:] {
			switch l {
			case 'r':
				bits |= 0o444
			case 'w':
				bits |= 0o222
			case 'x':
				bits |= 0o111
			default:
				return 0, false
			}
		}
		switch clause[i] {
		case '+':
			mode |= bits & who
		case '-':
			mode &^= bits & who
		case '=':
			mode = mode&^who | bits&who
		}
	}
	return mode, true
}

func (s *shell) help([]string) int {
	fmt.Fprintf(s.out(), "Built into the shell: %s\n", strings.Join(builtinNames(), " "))
	return 0
}

// reader for read: a byte at a time, or more where the rest can be given back.
func (s *shell) readLine(fd int, delim byte, limit int, deadline time.Time, raw bool) (line []readByte, ok bool) {
	d := s.fds.lookup(fd)
	if d == nil {
		s.errorf("read: descriptor %d is not open", fd)
		return nil, false
	}
	h := int(d.file.Fd())
	var st unix.Stat_t
	seekable := unix.Fstat(h, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
	buf := make([]byte, 1)
	if seekable {
		buf = make([]byte, 512)
	}
	escaped := false
	for {
		if !s.readable(h, deadline) {
			return line, false
		}
		n, err := unix.Read(h, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			return line, false
		}
		for i, c := range buf[:n] {
			stop := false
			switch {
			case c == delim && !escaped:
				stop = true
			case c == 0:
			case escaped:
				escaped = false
				if c != '\n' {
					line = append(line, readByte{c, true})
				}
			case c == '\\' && !raw:
				escaped = true
			default:
				line = append(line, readByte{c, false})
			}
			if stop || limit > 0 && len(line) >= limit {
				if rest := n - i - 1; rest > 0 {
					if _, err := unix.Seek(h, int64(-rest), io.SeekCurrent); err != nil {
						s.errorf("read: give back what was read ahead: %v", err)
					}
				}
				return line, true
			}
		}
	}
}

type readByte struct {
	c       byte
	escaped bool
}

// readable waits for input; false at the deadline. Ctrl-C and the end of the
// context unwind.
func (s *shell) readable(fd int, deadline time.Time) bool {
	for {
		s.checkSignals()
		wait := 200 // ms; how long a signal may go unnoticed
		if !deadline.IsZero() {
			left := int(time.Until(deadline).Milliseconds())
			if left <= 0 {
				left = 0
			}
			wait = min(wait, left)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, wait)
		if n > 0 {
			return true
		}
		if err != nil && err != unix.EINTR {
			return true // let read say what is wrong
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return false
		}
	}
}

func (s *shell) read(args []string) int {
	raw, silent := false, false
	prompt, delim := "", byte('\n')
	limit, fd := 0, 0
	var deadline time.Time
	words := args[1:]
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' {
		w := words[0]
		words = words[1:]
		if w == "--" {
			break
		}
		for i := 1; i < len(w); i++ {
			l := w[i]
			if l == 'r' || l == 's' {
				raw, silent = raw || l == 'r', silent || l == 's'
				continue
			}
			value := w[i+1:]
			if value == "" {
				if len(words) == 0 {
					return s.complain(args, "-%c: a value must follow", l)
				}
				value, words = words[0], words[1:]
			}
			var err error
			switch l {
			case 'p':
				prompt = value
			case 'd':
				delim = 0
				if value != "" {
					delim = value[0]
				}
			case 'n':
				limit, err = strconv.Atoi(value)
			case 'u':
				fd, err = strconv.Atoi(value)
			case 't':
				var sec float64
				sec, err = strconv.ParseFloat(value, 64)
				deadline = time.Now().Add(time.Duration(sec * float64(time.Second)))
			default:
				return s.complain(args, "-%c: there is no such option", l)
			}
			if err != nil {
				return s.complain(args, "-%c: %s is not a number", l, value)
			}
			break
		}
	}
	for _, name := range words {
		if !syntax.ValidName(name) {
			return s.complain(args, "%s: not a variable's name", name)
		}
	}
	tty := s.isTerminal(fd)
	if prompt != "" && tty {
		io.WriteString(s.err(), prompt)
	}
	if tty && (silent || limit > 0) {
		if undo := s.quiet(fd, silent, limit > 0); undo != nil {
			defer undo()
		}
	}
	line, ok := s.readLine(fd, delim, limit, deadline, raw)
	s.setFromLine(words, line)
	return 1 - int(truth(ok))
}

// quiet switches echo or line mode of a terminal off and returns what undoes it.
func (s *shell) quiet(fd int, noEcho, byChar bool) func() {
	h := int(s.fds.lookup(fd).file.Fd())
	old, err := unix.IoctlGetTermios(h, unix.TCGETS)
	if err != nil {
		return nil
	}
	t := *old
	if noEcho {
		t.Lflag &^= unix.ECHO
	}
	if byChar {
		t.Lflag &^= unix.ICANON
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	}
	if err := unix.IoctlSetTermios(h, unix.TCSETS, &t); err != nil {
		return nil
	}
	return func() { unix.IoctlSetTermios(h, unix.TCSETS, old) }
}

// setFromLine splits a line at IFS for read: the last name gets the rest.
func (s *shell) setFromLine(names []string, line []readByte) {
	ifs, ok := s.get("IFS")
	if !ok {
		ifs = " \t\n"
	}
	text := func(part []readByte) string {
		b := make([]byte, len(part))
		for i, c := range part {
			b[i] = c.c
		}
		return string(b)
	}
	if len(names) == 0 {
		s.set("REPLY", text(line))
		return
	}
	isSep := func(c readByte) bool { return !c.escaped && strings.IndexByte(ifs, c.c) >= 0 }
	isBlank := func(c readByte) bool { return isSep(c) && (c.c == ' ' || c.c == '\t' || c.c == '\n') }
	i := 0
	skip := func() {
		for i < len(line) && isBlank(line[i]) {
			i++
		}
	}
	skip()
	for n, name := range names {
		start := i
		if n == len(names)-1 {
			end := len(line)
			for end > start && isBlank(line[end-1]) {
				end--
			}
			// One separator after the only field left belongs to it no more.
			if end > start && isSep(line[end-1]) && !isBlank(line[end-1]) {
				only := true
				for _, c := range line[start : end-1] {
					only = only && !isSep(c)
				}
				if only {
					end--
				}
			}
			s.set(name, text(line[start:end]))
			return
		}
		for i < len(line) && !isSep(line[i]) {
			i++
		}
		s.set(name, text(line[start:i]))
		skip()
		if i < len(line) && isSep(line[i]) && !isBlank(line[i]) {
			i++
			skip()
		}
	}
}

// logical removes . and .. from an absolute path by its text.
func logical(p string) string {
	var out []string
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, part)
		}
	}
	return "/" + strings.Join(out, "/")
}

// realPath resolves links by asking the kernel.
func realPath(p string) (string, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
