package shell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"
)

// A Go program cannot fork, so { ...; } & starts this binary again and hands the
// shell's state over in a memory file. That gives $! a real process id, lets
// kill and wait work, and lets the job outlive the shell, as scripts expect.

// resumeFlag introduces the descriptor of the state on the command line.
const resumeFlag = "--background-subshell="

// state is what a background subshell inherits, as a list of strings: each
// section starts with its number of entries.
type state struct {
	b    strings.Builder // while it is written
	rest string          // while it is read
	bad  bool
}

// put appends strings, each with its length before it: values may hold any byte.
func (st *state) put(list ...string) {
	for _, v := range list {
		st.b.WriteString(strconv.Itoa(len(v)))
		st.b.WriteByte(':')
		st.b.WriteString(v)
	}
}

func (st *state) putInts(list ...int) {
	for _, n := range list {
		st.put(strconv.Itoa(n))
	}
}

func (st *state) next() string {
	head, tail, ok := strings.Cut(st.rest, ":")
	n, err := strconv.Atoi(head)
	if !ok || err != nil || n < 0 || n > len(tail) {
		st.bad, st.rest = true, ""
		return ""
	}
	st.rest = tail[n:]
	return tail[:n]
}

func (st *state) int() int {
	n, err := strconv.Atoi(st.next())
	if err != nil {
		st.bad = true
	}
	return n
}

// startCopy runs a statement in a copy of this shell and returns its pid.
func (s *shell) startCopy(st *syntax.Stmt, j *job) int {
	pr := syntax.NewPrinter()
	text := func(n syntax.Node) string {
		var b strings.Builder
		if err := pr.Print(&b, n); err != nil {
			panic(s.fail(2, "hand a command to the background: %v", err))
		}
		return b.String()
	}
	var out state
	out.put(s.name0, s.opt.flags(), text(st))
	out.putInts(s.proc.pid, s.status, s.lastBackground, s.calls, int(truth(s.opt.pipefail)))
	all := s.vars.all()
	out.putInts(len(all))
	for name, v := range all {
		out.put(name, v.value)
		out.putInts(int(truth(v.set)), int(truth(v.exported)), int(truth(v.readonly)))
	}
	out.putInts(len(s.funcs))
	for name, body := range s.funcs {
		out.put(name, text(body))
	}
	out.putInts(len(s.alias))
	for name, value := range s.alias {
		out.put(name, value)
	}
	out.putInts(len(s.params))
	out.put(s.params...)
	out.putInts(len(s.traps))
	for sig, action := range s.traps {
		// What is trapped here is back at its default there; ignored stays ignored.
		out.putInts(int(sig), int(truth(action == "")))
	}
	d, err := memoryFile(out.b.String())
	if err != nil {
		panic(s.fail(2, "%v", err))
	}
	// A number out of the way of what scripts use.
	fd := 10
	for s.fds.m[fd] != nil {
		fd++
	}
	s.fds.put(fd, d)
	defer s.fds.drop(fd)
	pid, err := s.start(selfPath, []string{"sh", fmt.Sprintf("%s%d", resumeFlag, fd)}, s.environ(nil), j, true)
	if err != nil {
		s.status = s.notFound("start a background subshell", err)
		return 0
	}
	return pid
}

// resume is the other end of startCopy.
func (s *shell) resume(fd int) int {
	f := os.NewFile(uintptr(fd), "state")
	text, err := io.ReadAll(f)
	f.Close()
	in := state{rest: string(text)}
	name0, flags, command := in.next(), in.next(), in.next()
	s.name0 = name0
	s.proc.pid, s.status, s.lastBackground, s.calls, s.opt.pipefail = in.int(), in.int(), in.int(), in.int(), in.int() == 1
	for n := in.int(); n > 0 && !in.bad; n-- {
		name, value := in.next(), in.next()
		s.vars.vars[name] = variable{value, in.int() == 1, in.int() == 1, in.int() == 1}
	}
	funcs := make(map[string]string)
	for n := in.int(); n > 0 && !in.bad; n-- {
		name := in.next()
		funcs[name] = in.next()
	}
	for n := in.int(); n > 0 && !in.bad; n-- {
		if s.alias == nil {
			s.alias = make(map[string]string)
		}
		name := in.next()
		s.alias[name] = in.next()
	}
	for n := in.int(); n > 0 && !in.bad; n-- {
		s.params = append(s.params, in.next())
	}
	for n := in.int(); n > 0 && !in.bad; n-- {
		if sig := in.int(); in.int() == 1 {
			s.traps[unix.Signal(sig)] = ""
		}
	}
	if err == nil && in.bad {
		err = errors.New("it is cut short")
	}
	if err != nil {
		s.errorf("read the state of the shell that started this one: %v", err)
		return 2
	}
	for i := 0; i < len(flags); i++ {
		if o := s.optionByLetter(flags[i]); o != nil && flags[i] != 'm' {
			*o = true
		}
	}
	// Locals of a function that the statement ran in are plain variables here.
	var locals []saved
	if s.calls > 0 {
		s.locals = &locals
	}
	s.proc.watch(s)
	s.guard(func() {
		for name, text := range funcs {
			for st, err := range syntax.NewParser().StmtsSeq(strings.NewReader(text)) {
				if err != nil {
					panic(s.fail(2, "function %s: %v", name, err))
				}
				s.funcs[name] = st
			}
		}
		s.runReader(strings.NewReader(command))
	})
	s.guard(s.checkSignals)
	s.exitTrap()
	return s.status & 0xff
}
