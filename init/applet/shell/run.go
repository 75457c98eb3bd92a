package shell

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"weft/init/applet/scriptcmd"
)

func (s *shell) stmts(list []*syntax.Stmt) {
	for _, st := range list {
		s.stmt(st)
		if s.jump != noJump {
			return
		}
	}
}

// tested runs commands whose failure is being asked for: set -e must not act.
func (s *shell) tested(f func()) {
	s.noErr++
	defer func() { s.noErr-- }()
	f()
}

// stmt runs one statement and sets s.status.
func (s *shell) stmt(st *syntax.Stmt) {
	s.checkSignals()
	if st.Background || st.Disown || st.Coprocess {
		s.background(st)
		return
	}
	if p := st.Pos(); p.IsValid() {
		s.line = int(p.Line())
	}
	if st.Negated {
		s.tested(func() { s.command(st) })
		if s.jump == noJump {
			if s.status == 0 {
				s.status = 1
			} else {
				s.status = 0
			}
		}
		return
	}
	s.command(st)
	if s.opt.errexit && s.status != 0 && s.noErr == 0 && s.jump == noJump && checksErrors(st.Cmd) {
		panic(exitNow{s.status})
	}
}

// checksErrors tells which commands set -e looks at by themselves: the lists and
// blocks around them already had their parts looked at.
func checksErrors(c syntax.Command) bool {
	switch c := c.(type) {
	case nil, *syntax.CallExpr, *syntax.Subshell, *syntax.TestClause, *syntax.ArithmCmd, *syntax.DeclClause, *syntax.LetClause:
		return true
	case *syntax.BinaryCmd:
		return c.Op == syntax.Pipe || c.Op == syntax.PipeAll
	}
	return false
}

// command runs the command of a statement with its redirections.
func (s *shell) command(st *syntax.Stmt) {
	switch c := st.Cmd.(type) {
	case *syntax.CallExpr:
		s.simple(c, st.Redirs)
		return
	case *syntax.FuncDecl:
		s.define(c, st)
		return
	}
	if len(st.Redirs) > 0 {
		undo, ok := s.redirect(st.Redirs)
		if !ok {
			s.status = 1
			return
		}
		defer s.unredirect(undo)
	}
	switch c := st.Cmd.(type) {
	case nil:
		s.status = 0
	case *syntax.Block:
		s.stmts(c.Stmts)
	case *syntax.Subshell:
		sub := s.clone()
		s.status = sub.runSubshell(func() { sub.stmts(c.Stmts) })
		s.checkInterrupt()
	case *syntax.BinaryCmd:
		s.binary(c)
	case *syntax.IfClause:
		s.ifClause(c)
	case *syntax.WhileClause:
		s.while(c)
	case *syntax.ForClause:
		s.forClause(c)
	case *syntax.CaseClause:
		s.caseClause(c)
	case *syntax.DeclClause:
		s.declare(c)
	case *syntax.ArithmCmd:
		s.status = 1 - int(truth(s.arith(c.X) != 0))
	case *syntax.LetClause:
		var n int64
		for _, x := range c.Exprs {
			n = s.arith(x)
		}
		s.status = 1 - int(truth(n != 0))
	case *syntax.TestClause:
		s.status = 1 - int(truth(s.bracketTest(c.X)))
	case *syntax.TimeClause:
		s.timeClause(c)
	default:
		panic(s.fail(2, "%s: this construct is not supported", c.Pos()))
	}
}

func (s *shell) define(c *syntax.FuncDecl, st *syntax.Stmt) {
	if c.Name == nil {
		panic(s.fail(2, "a function needs a name"))
	}
	if s.shared {
		s.funcs, s.shared = maps.Clone(s.funcs), false
	}
	body := c.Body
	if len(st.Redirs) > 0 { // f() { ...; } >file: they belong to each call
		b := *body
		b.Redirs = append(append([]*syntax.Redirect(nil), b.Redirs...), st.Redirs...)
		body = &b
	}
	s.funcs[c.Name.Value] = body
	s.status = 0
}

func (s *shell) binary(c *syntax.BinaryCmd) {
	switch c.Op {
	case syntax.AndStmt, syntax.OrStmt:
		s.tested(func() { s.stmt(c.X) })
		if s.jump == noJump && (s.status == 0) == (c.Op == syntax.AndStmt) {
			s.stmt(c.Y)
		}
	default:
		s.pipeline(c)
	}
}

// pipeline runs all commands of a pipeline at once, each in a subshell.
func (s *shell) pipeline(c *syntax.BinaryCmd) {
	var parts []*syntax.Stmt
	var both []bool // |&: stderr too
	var walk func(st *syntax.Stmt)
	walk = func(st *syntax.Stmt) {
		if b, ok := st.Cmd.(*syntax.BinaryCmd); ok && (b.Op == syntax.Pipe || b.Op == syntax.PipeAll) && len(st.Redirs) == 0 && !st.Negated {
			walk(b.X)
			both = append(both, b.Op == syntax.PipeAll)
			walk(b.Y)
			return
		}
		parts = append(parts, st)
	}
	walk(&syntax.Stmt{Cmd: c})

	j := s.job
	if s.opt.monitor && !s.sub && j == nil {
		j = newJob(c)
	}
	subs := make([]*shell, len(parts))
	var in *os.File
	for i := range parts {
		sub := s.clone()
		sub.job = j
		if in != nil {
			sub.fds.put(0, &desc{file: in})
			in = nil
		}
		if i < len(parts)-1 {
			r, w := s.pipe()
			d := &desc{file: w}
			sub.fds.put(1, d)
			if both[i] {
				sub.fds.put(2, d)
			}
			in = r
		}
		subs[i] = sub
	}
	var wg sync.WaitGroup
	run := func(i int) {
		sub := subs[i]
		sub.status = sub.runSubshell(func() { sub.stmt(parts[i]) })
	}
	for i := range parts[:len(parts)-1] {
		wg.Go(func() { run(i) })
	}
	run(len(parts) - 1)
	wg.Wait()
	s.status = subs[len(subs)-1].status
	if s.opt.pipefail {
		for _, sub := range subs {
			if sub.status != 0 {
				s.status = sub.status
			}
		}
	}
	if j != nil && j != s.job {
		s.finishForeground(j)
	}
	s.checkInterrupt()
}

func (s *shell) ifClause(c *syntax.IfClause) {
	for ; c != nil; c = c.Else {
		if len(c.Cond) == 0 { // else
			s.stmts(c.Then)
			return
		}
		s.tested(func() { s.stmts(c.Cond) })
		if s.jump != noJump {
			return
		}
		if s.status == 0 {
			s.stmts(c.Then)
			return
		}
	}
	s.status = 0
}

// loop runs the body of a loop and reports whether the loop ends.
func (s *shell) loop(body []*syntax.Stmt) (end bool) {
	s.stmts(body)
	switch s.jump {
	case breakLoop, continueLoop:
		s.jumps--
		if s.jumps > 0 {
			return true // an outer loop is meant
		}
		end = s.jump == breakLoop
		s.jump = noJump
		return end
	case returnFrom:
		return true
	}
	return false
}

func (s *shell) while(c *syntax.WhileClause) {
	s.loops++
	defer func() { s.loops-- }()
	status := 0
	for {
		s.tested(func() { s.stmts(c.Cond) })
		if s.jump != noJump {
			if s.loop(nil) {
				break
			}
			continue
		}
		if (s.status == 0) == c.Until {
			s.status = status
			break
		}
		end := s.loop(c.Do)
		status = s.status
		if end {
			break
		}
		s.checkSignals()
	}
}

func (s *shell) forClause(c *syntax.ForClause) {
	s.loops++
	defer func() { s.loops-- }()
	switch l := c.Loop.(type) {
	case *syntax.WordIter:
		if c.Select {
			panic(s.fail(2, "select is bash's, not ash's; use read"))
		}
		items := s.params
		if l.InPos.IsValid() {
			items = s.fields(l.Items)
		}
		if len(items) == 0 {
			s.status = 0
		}
		for _, item := range items {
			s.set(l.Name.Value, item)
			if s.loop(c.Do) {
				return
			}
			s.checkSignals()
		}
	case *syntax.CStyleLoop:
		s.status = 0
		for s.arith(l.Init); l.Cond == nil || s.arith(l.Cond) != 0; s.arith(l.Post) {
			if s.loop(c.Do) {
				return
			}
			s.checkSignals()
		}
	}
}

func (s *shell) caseClause(c *syntax.CaseClause) {
	word := s.text(c.Word)
	through := false
	for _, item := range c.Items {
		hit := through
		for _, p := range item.Patterns {
			if hit {
				break
			}
			hit = match(s.pattern(p), word)
		}
		if !hit {
			continue
		}
		if len(item.Stmts) == 0 {
			s.status = 0
		}
		s.stmts(item.Stmts)
		if item.Op != syntax.Fallthrough || s.jump != noJump {
			return
		}
		through = true
	}
	if !through {
		s.status = 0
	}
}

// bracketTest is [[ ]].
func (s *shell) bracketTest(x syntax.TestExpr) bool {
	switch x := x.(type) {
	case *syntax.ParenTest:
		return s.bracketTest(x.X)
	case *syntax.Word:
		return s.text(x) != ""
	case *syntax.UnaryTest:
		if x.Op == syntax.TsNot {
			return !s.bracketTest(x.X)
		}
		w, _ := x.X.(*syntax.Word)
		return s.evalTest(x.Op.String(), s.text(w))
	case *syntax.BinaryTest:
		switch x.Op {
		case syntax.AndTest:
			return s.bracketTest(x.X) && s.bracketTest(x.Y)
		case syntax.OrTest:
			return s.bracketTest(x.X) || s.bracketTest(x.Y)
		}
		a, _ := x.X.(*syntax.Word)
		b, _ := x.Y.(*syntax.Word)
		switch x.Op {
		case syntax.TsMatch, syntax.TsMatchShort:
			return match(s.pattern(b), s.text(a))
		case syntax.TsNoMatch:
			return !match(s.pattern(b), s.text(a))
		case syntax.TsReMatch:
			panic(s.fail(2, "[[ =~ ]] is bash's, not ash's; use grep -E or expr"))
		case syntax.TsEql, syntax.TsNeq, syntax.TsLss, syntax.TsLeq, syntax.TsGtr, syntax.TsGeq:
			return s.evalTest(s.arithString(a), x.Op.String(), s.arithString(b))
		}
		return s.evalTest(s.text(a), x.Op.String(), s.text(b))
	}
	panic(s.fail(2, "[[ ]]: unsupported expression"))
}

func (s *shell) arithString(w *syntax.Word) string {
	return fmt.Sprint(s.arithText(s.text(w), 0))
}

func (s *shell) evalTest(args ...string) bool {
	ok, err := scriptcmd.Eval(args, s.testFiles())
	if err != nil {
		panic(s.fail(2, "[[: %v", err))
	}
	return ok
}

func (s *shell) testFiles() scriptcmd.Files {
	return scriptcmd.Files{
		Path: func(p string) string { return abs(s.dir, p) },
		FD: func(fd int) (int, bool) {
			d := s.fds.lookup(fd)
			if d == nil {
				return 0, false
			}
			return int(d.file.Fd()), true
		},
	}
}

// trace prints a command for set -x.
func (s *shell) trace(words []string) {
	if !s.opt.xtrace {
		return
	}
	ps4, ok := s.get("PS4")
	if !ok {
		ps4 = "+ "
	}
	q := make([]string, len(words))
	for i, w := range words {
		if i < len(words) && strings.Contains(w, "=") && syntax.ValidName(w[:strings.IndexByte(w, '=')]) {
			n := strings.IndexByte(w, '=') + 1
			if w[n:] == "" {
				q[i] = w
			} else {
				q[i] = w[:n] + scriptcmd.Quote(w[n:])
			}
			continue
		}
		q[i] = scriptcmd.Quote(w)
	}
	fmt.Fprintln(s.err(), ps4+strings.Join(q, " "))
}

// simple runs assignments, a function, a builtin or a program.
func (s *shell) simple(c *syntax.CallExpr, redirs []*syntax.Redirect) {
	if len(c.Args) > 0 && len(s.alias) > 0 {
		if text, ok := s.expandAlias(c, redirs); ok {
			s.runAlias(text, c.Args[0].Lit())
			return
		}
	}
	s.substStatus = -1
	args := s.fields(c.Args)
	if len(args) == 0 {
		s.assignOnly(c, redirs)
		return
	}
	name := args[0]
	body, isFunc := s.funcs[name]
	b := builtin(name)
	if b.special {
		isFunc = false
	}
	if name == "command" && len(c.Assigns) == 0 && len(args) > 1 && args[1] != "" && args[1][0] != '-' {
		// command NAME: functions are skipped and a special builtin is tame.
		args = args[1:]
		name = args[0]
		isFunc = false
		b = builtin(name)
		b.special = false
	}

	undo, ok := s.redirect(redirs)
	if !ok {
		s.status = 1
		if b.special {
			panic(failure{2})
		}
		return
	}
	keep := false
	if len(redirs) > 0 {
		defer func() {
			if keep {
				s.commit(undo)
			} else {
				s.unredirect(undo)
			}
		}()
	}

	switch {
	case isFunc, b.run != nil && !b.special:
		if len(c.Assigns) > 0 {
			var before []saved
			for _, as := range c.Assigns {
				before = append(before, s.save(as.Name.Value))
			}
			defer func() { s.restore(before) }()
			s.assign(c.Assigns, true)
		}
	case b.special:
		s.assign(c.Assigns, false)
	}
	switch {
	case isFunc:
		s.trace(args)
		s.call(body, args)
	case b.run != nil:
		if name == "exec" && len(args) == 1 {
			keep = true
			s.status = 0
			s.trace(args)
			return
		}
		s.trace(args)
		s.status = b.run(s, args)
	default:
		s.external(args, s.prefixEnv(c.Assigns))
	}
	s.checkInterrupt()
}

// assignOnly runs x=y without a command.
func (s *shell) assignOnly(c *syntax.CallExpr, redirs []*syntax.Redirect) {
	undo, ok := s.redirect(redirs)
	if !ok {
		s.status = 1
		return
	}
	defer s.unredirect(undo)
	s.assign(c.Assigns, false)
	s.status = max(s.substStatus, 0)
}

// assign evaluates assignments in order.
func (s *shell) assign(list []*syntax.Assign, export bool) {
	for _, as := range list {
		name := as.Name.Value
		v := s.assignValue(as)
		s.trace([]string{name + "=" + v})
		s.set(name, v)
		if export {
			s.mark(name, func(v *variable) { v.exported = true })
		}
	}
}

func (s *shell) assignValue(as *syntax.Assign) string {
	if as.Array != nil || as.Index != nil {
		panic(s.fail(2, "%s: arrays are bash's, not ash's", as.Name.Value))
	}
	v := s.assignText(as.Value)
	if as.Append {
		old, _ := s.get(as.Name.Value)
		v = old + v
	}
	return v
}

// prefixEnv is the environment that assignments before a program add.
func (s *shell) prefixEnv(list []*syntax.Assign) []string {
	if len(list) == 0 {
		return nil
	}
	env := make([]string, 0, len(list))
	for _, as := range list {
		env = append(env, as.Name.Value+"="+s.assignValue(as))
	}
	s.trace(env)
	return env
}

// maxCalls bounds recursion, so that a script that calls itself without end is
// told so instead of filling the memory.
const maxCalls = 1000

// call runs a function.
func (s *shell) call(body *syntax.Stmt, args []string) {
	if s.calls >= maxCalls {
		panic(s.fail(2, "%s: called itself %d deep", args[0], maxCalls))
	}
	params, loops, locals, optAt := s.params, s.loops, s.locals, s.optAt
	var mine []saved
	s.params, s.loops, s.locals = args[1:], 0, &mine
	s.calls++
	defer func() {
		s.calls--
		s.restore(mine)
		s.params, s.loops, s.locals, s.optAt = params, loops, locals, optAt
	}()
	s.stmt(body)
	if s.jump == returnFrom {
		s.jump = noJump
	}
}

// expandAlias returns the text of a simple command with its first word replaced,
// if that is an alias.
func (s *shell) expandAlias(c *syntax.CallExpr, redirs []*syntax.Redirect) (string, bool) {
	name := c.Args[0].Lit()
	value, ok := s.alias[name]
	if !ok {
		return "", false
	}
	var b strings.Builder
	st := &syntax.Stmt{Cmd: c, Redirs: redirs, Position: c.Pos()}
	if err := syntax.NewPrinter().Print(&b, st); err != nil {
		return "", false
	}
	text := b.String()
	i := strings.Index(text, name)
	if i < 0 {
		return "", false
	}
	return text[:i] + value + text[i+len(name):], true
}

// runAlias runs expanded text; the alias itself is not expanded again in it.
func (s *shell) runAlias(text, name string) {
	value := s.alias[name]
	delete(s.alias, name)
	defer func() {
		if _, redefined := s.alias[name]; !redefined {
			s.alias[name] = value
		}
	}()
	s.runReader(strings.NewReader(text))
}

// checkInterrupt acts on a program that Ctrl-C ended: an interactive shell drops
// the rest of the line, a script ends the way its program did.
func (s *shell) checkInterrupt() {
	if s.status == 128+int(unix.SIGINT) && s.proc.childInterrupted.Swap(false) {
		if s.proc.interactive {
			panic(interrupted{})
		}
		if s.proc.interruptSeen.Load() {
			s.proc.dieOf(unix.SIGINT)
		}
	}
}
