package shell

import (
	"fmt"
	"sort"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// declArg is one word of export, readonly or local: an option, a name, or a
// name with its value.
type declArg struct {
	name, value string
	has         bool
}

// declare runs the assignments-as-arguments builtins, whose values are not split.
func (s *shell) declare(c *syntax.DeclClause) {
	s.substStatus = -1
	var args []declArg
	for _, as := range c.Args {
		switch {
		case as.Name == nil: // options and names that come from expansions
			for _, f := range s.fields([]*syntax.Word{as.Value}) {
				args = append(args, splitDecl(f))
			}
		case as.Naked:
			args = append(args, declArg{name: as.Name.Value})
		default:
			args = append(args, declArg{as.Name.Value, s.assignValue(as), true})
		}
	}
	if s.opt.xtrace {
		words := []string{c.Variant.Value}
		for _, a := range args {
			if a.has {
				words = append(words, a.name+"="+a.value)
			} else {
				words = append(words, a.name)
			}
		}
		s.trace(words)
	}
	s.status = s.declareArgs(c.Variant.Value, args)
}

func splitDecl(f string) declArg {
	name, value, has := strings.Cut(f, "=")
	return declArg{name, value, has}
}

func (s *shell) declareArgs(variant string, args []declArg) int {
	remove, print := false, false
	for len(args) > 0 && len(args[0].name) > 1 && args[0].name[0] == '-' {
		if args[0].name == "--" {
			args = args[1:]
			break
		}
		for _, o := range args[0].name[1:] {
			switch {
			case o == 'n' && variant == "export":
				remove = true
			case o == 'p' && variant != "local":
				print = true
			default:
				s.errorf("%s: -%c: there is no such option", variant, o)
				return 2
			}
		}
		args = args[1:]
	}
	if len(args) == 0 && variant != "local" || print {
		s.printDecls(variant)
		return 0
	}
	status := 0
	for _, a := range args {
		if !syntax.ValidName(a.name) {
			s.errorf("%s: %s: not a variable's name", variant, a.name)
			status = 1
			continue
		}
		switch variant {
		case "export":
			if a.has {
				s.set(a.name, a.value)
			}
			s.mark(a.name, func(v *variable) { v.exported = !remove })
		case "readonly":
			if a.has {
				s.set(a.name, a.value)
			}
			s.mark(a.name, func(v *variable) { v.readonly = true })
		case "local", "typeset":
			if s.locals == nil {
				panic(s.fail(2, "local: only works in a function"))
			}
			seen := false
			for _, o := range *s.locals {
				seen = seen || o.name == a.name
			}
			if !seen {
				*s.locals = append(*s.locals, s.save(a.name))
			}
			switch {
			case a.has:
				s.set(a.name, a.value)
			case !seen: // busybox: a new local without a value is unset
				v, _ := s.vars.lookup(a.name)
				s.vars.vars[a.name] = variable{exported: v.exported, readonly: v.readonly}
			}
		default:
			panic(s.fail(2, "%s is bash's, not ash's; use local, export or readonly", variant))
		}
	}
	if status == 0 && s.substStatus > 0 && variant == "local" {
		return 0 // local x=$(false) succeeds, as in every ash
	}
	return status
}

func (s *shell) printDecls(variant string) {
	all := s.vars.all()
	names := make([]string, 0, len(all))
	for name, v := range all {
		if variant == "export" && v.exported || variant == "readonly" && v.readonly {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		if v := all[name]; v.set {
			fmt.Fprintf(s.out(), "%s %s=%s\n", variant, name, forceQuote(v.value))
		} else {
			fmt.Fprintf(s.out(), "%s %s\n", variant, name)
		}
	}
}

// forceQuote quotes as set and export -p do: always.
func forceQuote(v string) string {
	return "'" + strings.ReplaceAll(v, "'", `'"'"'`) + "'"
}
