package shell

import (
	"maps"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

type variable struct {
	value    string
	set      bool // false: unset here, whatever an outer scope says
	exported bool
	readonly bool
}

// scope holds the variables of one shell environment. A subshell starts with an
// empty scope over its parent's, which does not change while the subshell runs:
// so nothing has to be copied.
type scope struct {
	vars  map[string]variable
	outer *scope
}

func (sc *scope) lookup(name string) (variable, bool) {
	for ; sc != nil; sc = sc.outer {
		if v, ok := sc.vars[name]; ok {
			return v, true
		}
	}
	return variable{}, false
}

// all returns every variable, inner scopes first.
func (sc *scope) all() map[string]variable {
	if sc.outer == nil {
		return sc.vars
	}
	m := maps.Clone(sc.outer.all())
	maps.Copy(m, sc.vars)
	return m
}

// get returns a variable or special parameter.
func (s *shell) get(name string) (string, bool) {
	if name == "" {
		return "", false
	}
	switch c := name[0]; {
	case c >= '0' && c <= '9':
		n, err := strconv.Atoi(name)
		switch {
		case err != nil:
			return "", false
		case n == 0:
			return s.name0, true
		case n <= len(s.params):
			return s.params[n-1], true
		}
		return "", false
	case len(name) == 1:
		switch c {
		case '#':
			return strconv.Itoa(len(s.params)), true
		case '?':
			return strconv.Itoa(s.status), true
		case '$':
			return strconv.Itoa(s.proc.pid), true
		case '!':
			if s.lastBackground == 0 {
				return "", false
			}
			return strconv.Itoa(s.lastBackground), true
		case '-':
			return s.opt.flags(), true
		case '@', '*':
			return strings.Join(s.params, " "), len(s.params) > 0
		}
	}
	if v, ok := s.vars.lookup(name); ok && v.set {
		return v.value, true
	}
	switch name {
	case "LINENO":
		return strconv.Itoa(s.line), true
	case "RANDOM":
		return strconv.Itoa(s.proc.random()), true
	}
	return "", false
}

// getenv is get for code that expects os.Getenv: exported variables only.
func (s *shell) getenv(name string) string {
	if v, ok := s.vars.lookup(name); ok && v.set && v.exported {
		return v.value
	}
	return ""
}

// set assigns a variable; a read-only one ends the command.
func (s *shell) set(name, value string) {
	v, _ := s.vars.lookup(name)
	if v.readonly {
		panic(s.fail(2, "%s: is read only", name))
	}
	v.value, v.set = value, true
	v.exported = v.exported || s.opt.allexport
	s.vars.vars[name] = v
	if name == "OPTIND" {
		s.optAt = 0
	}
}

func (s *shell) unset(name string) bool {
	v, ok := s.vars.lookup(name)
	if v.readonly {
		s.errorf("unset: %s: is read only", name)
		return false
	}
	if ok {
		if s.vars.outer == nil {
			delete(s.vars.vars, name)
		} else {
			s.vars.vars[name] = variable{}
		}
	}
	return true
}

// mark changes a variable's attributes and leaves its value alone.
func (s *shell) mark(name string, change func(*variable)) {
	v, _ := s.vars.lookup(name)
	change(&v)
	s.vars.vars[name] = v
}

// saved is a variable as it was before local or a prefix assignment.
type saved struct {
	name string
	v    variable
	was  bool // in this scope's own map
}

func (s *shell) save(name string) saved {
	v, ok := s.vars.vars[name]
	return saved{name, v, ok}
}

func (s *shell) restore(list []saved) {
	for _, o := range slices.Backward(list) {
		if o.was {
			s.vars.vars[o.name] = o.v
		} else {
			delete(s.vars.vars, o.name)
		}
	}
}

// environ lists the exported variables as name=value, with extra ones on top.
func (s *shell) environ(extra []string) []string {
	over := make(map[string]bool, len(extra))
	for _, e := range extra {
		name, _, _ := strings.Cut(e, "=")
		over[name] = true
	}
	var env []string
	for name, v := range s.vars.all() {
		if v.set && v.exported && !over[name] {
			env = append(env, name+"="+v.value)
		}
	}
	sort.Strings(env)
	return append(env, extra...)
}

// importEnv takes over the process's environment. Names no shell can use are
// dropped, as dash does.
func (s *shell) importEnv(env []string) {
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || !syntax.ValidName(name) {
			continue
		}
		s.vars.vars[name] = variable{value: value, set: true, exported: true}
	}
	own := func(name, value string) { s.vars.vars[name] = variable{value: value, set: true} }
	own("IFS", " \t\n")
	own("OPTIND", "1")
	own("PPID", strconv.Itoa(os.Getppid()))
	own("PS4", "+ ")
	if _, ok := s.get("PATH"); !ok {
		own("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if pwd, ok := s.get("PWD"); ok && strings.HasPrefix(pwd, "/") && sameFile(pwd, s.dir) {
		s.dir = pwd // keeps the links the user came through
	}
	s.vars.vars["PWD"] = variable{value: s.dir, set: true, exported: true}
}

func sameFile(a, b string) bool {
	x, errx := os.Stat(a)
	y, erry := os.Stat(b)
	return errx == nil && erry == nil && os.SameFile(x, y)
}
