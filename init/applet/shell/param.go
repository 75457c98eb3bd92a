package shell

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"
)

// expandParam expands $x, ${x...}.
func (s *shell) expandParam(out []piece, pe *syntax.ParamExp, inQuotes bool) []piece {
	kind := expanded
	if inQuotes {
		kind = quoted
	}
	if pe.Param == nil || pe.Index != nil || pe.Names != 0 {
		panic(s.fail(2, "%s: bad substitution: arrays are not supported", pe.Pos()))
	}
	name := pe.Param.Value
	if pe.Excl {
		name, _ = s.get(name)
		if name == "" {
			return out
		}
	}
	all := name == "@" || name == "*"
	value, set := "", false
	if all {
		set = len(s.params) > 0
		value = strings.Join(s.params, " ")
	} else {
		value, set = s.get(name)
	}

	if pe.Exp != nil {
		switch op := pe.Exp.Op; op {
		case syntax.AlternateUnset, syntax.AlternateUnsetOrNull:
			if !set || op == syntax.AlternateUnsetOrNull && value == "" {
				return s.nothing(out, inQuotes)
			}
			return s.expandInner(out, pe.Exp.Word, inQuotes)
		case syntax.DefaultUnset, syntax.DefaultUnsetOrNull:
			if set && !(op == syntax.DefaultUnsetOrNull && value == "") {
				break
			}
			return s.expandInner(out, pe.Exp.Word, inQuotes)
		case syntax.AssignUnset, syntax.AssignUnsetOrNull:
			if set && !(op == syntax.AssignUnsetOrNull && value == "") {
				break
			}
			if !syntax.ValidName(name) {
				panic(s.fail(2, "%s: cannot be assigned to in ${%s=...}", name, name))
			}
			v := joinPieces(s.expandInner(nil, pe.Exp.Word, inQuotes))
			s.set(name, v)
			return append(out, piece{v, kind})
		case syntax.ErrorUnset, syntax.ErrorUnsetOrNull:
			if set && !(op == syntax.ErrorUnsetOrNull && value == "") {
				break
			}
			msg := joinPieces(s.expandInner(nil, pe.Exp.Word, inQuotes))
			if msg == "" {
				msg = "parameter not set"
			}
			panic(s.fail(2, "%s: %s", name, msg))
		}
	}
	if !set && !all && s.opt.nounset {
		panic(s.fail(2, "%s: parameter not set", name))
	}

	if pe.Length {
		n := utf8.RuneCountInString(value)
		if all {
			n = len(s.params)
		}
		return append(out, piece{strconv.Itoa(n), kind})
	}
	list := []string{value}
	if all {
		list = s.params
		if pe.Slice != nil {
			list = s.sliceParams(pe.Slice)
		}
	}
	for i, v := range list {
		if i > 0 {
			if name == "*" && inQuotes {
				out = append(out, piece{s.ifsFirst(), quoted})
			} else {
				out = append(out, piece{"", fieldEnd})
			}
		}
		if pe.Slice != nil && !all {
			v = s.slice(v, pe.Slice)
		}
		if pe.Repl != nil {
			v = s.replace(v, pe.Repl)
		}
		if pe.Exp != nil {
			v = s.trim(v, pe.Exp)
		}
		out = append(out, piece{v, kind})
	}
	if all && len(list) == 0 && name == "*" && inQuotes {
		out = append(out, piece{"", quoted})
	}
	return out
}

// nothing is what ${x+word} leaves when x is unset: an empty string in quotes.
func (s *shell) nothing(out []piece, inQuotes bool) []piece {
	if inQuotes {
		return append(out, piece{"", quoted})
	}
	return out
}

// expandInner expands the word of ${x-word} in place, so that ${1+"$@"} keeps
// its fields.
func (s *shell) expandInner(out []piece, w *syntax.Word, inQuotes bool) []piece {
	if w == nil {
		return s.nothing(out, inQuotes)
	}
	before := len(out)
	for i, part := range w.Parts {
		if lit, ok := part.(*syntax.Lit); ok {
			if inQuotes {
				out = append(out, piece{unescape(lit.Value, "$`\"\\}\n"), quoted})
				continue
			}
			// Unquoted text here is the result of an expansion: it is split.
			n := len(out)
			out = s.expandLit(out, lit.Value, i == 0, i == len(w.Parts)-1, false)
			for j := n; j < len(out); j++ {
				if out[j].kind == literal {
					out[j].kind = expanded
				}
			}
			continue
		}
		if q, ok := part.(*syntax.SglQuoted); ok && inQuotes && !q.Dollar {
			// In "${x-'...'}" single quotes are ordinary characters.
			out = append(out, piece{"'", quoted})
			if w, err := syntax.NewParser().Document(strings.NewReader(q.Value)); err == nil {
				out = append(out, piece{s.document(w), quoted})
			}
			out = append(out, piece{"'", quoted})
			continue
		}
		out = s.expandPart(out, part, inQuotes)
	}
	if len(out) == before {
		return s.nothing(out, inQuotes)
	}
	return out
}

// ifsFirst is what "$*" joins with.
func (s *shell) ifsFirst() string {
	ifs, ok := s.get("IFS")
	if !ok {
		return " "
	}
	_, n := utf8.DecodeRuneInString(ifs)
	return ifs[:n]
}

// trim applies # ## % %%.
func (s *shell) trim(v string, e *syntax.Expansion) string {
	switch e.Op {
	case syntax.RemSmallPrefix, syntax.RemLargePrefix, syntax.RemSmallSuffix, syntax.RemLargeSuffix:
	case syntax.UpperAll, syntax.LowerAll, syntax.UpperFirst, syntax.LowerFirst, syntax.OtherParamOps, syntax.MatchEmpty:
		panic(s.fail(2, "bad substitution: ${x%s} is bash's, not ash's", e.Op))
	default:
		return v
	}
	pat := s.pattern(e.Word)
	switch e.Op {
	case syntax.RemSmallPrefix:
		for i := 0; i <= len(v); i++ {
			if boundary(v, i) && match(pat, v[:i]) {
				return v[i:]
			}
		}
	case syntax.RemLargePrefix:
		for i := len(v); i >= 0; i-- {
			if boundary(v, i) && match(pat, v[:i]) {
				return v[i:]
			}
		}
	case syntax.RemSmallSuffix:
		for i := len(v); i >= 0; i-- {
			if boundary(v, i) && match(pat, v[i:]) {
				return v[:i]
			}
		}
	case syntax.RemLargeSuffix:
		for i := 0; i <= len(v); i++ {
			if boundary(v, i) && match(pat, v[i:]) {
				return v[:i]
			}
		}
	}
	return v
}

// boundary reports whether no character of v straddles index i.
func boundary(v string, i int) bool { return i == len(v) || utf8.RuneStart(v[i]) }

// slice is ${x:offset:length} in characters.
func (s *shell) slice(v string, sl *syntax.Slice) string {
	r := []rune(v)
	from, to := s.sliceBounds(len(r), sl)
	return string(r[from:to])
}

func (s *shell) sliceBounds(n int, sl *syntax.Slice) (from, to int) {
	from = int(s.arith(sl.Offset))
	if from < 0 {
		from = max(n+from, 0)
	}
	from = min(from, n)
	to = n
	if sl.Length != nil {
		l := int(s.arith(sl.Length))
		if l < 0 {
			to = max(n+l, from)
		} else {
			to = min(from+l, n)
		}
	}
	return from, to
}

// sliceParams is ${@:offset:length}; offset 0 includes $0.
func (s *shell) sliceParams(sl *syntax.Slice) []string {
	all := append([]string{s.name0}, s.params...)
	from, to := s.sliceBounds(len(all), sl)
	return all[from:to]
}

// replace is ${x/pattern/text} and ${x//pattern/text}; a pattern that starts
// with # or % is bound to the start or the end.
func (s *shell) replace(v string, r *syntax.Replace) string {
	pat := s.pattern(r.Orig)
	with := s.text(r.With)
	if pat == "" {
		return v
	}
	// longest returns the end of the longest match that starts at i, or -1.
	longest := func(i int) int {
		for j := len(v); j >= i; j-- {
			if boundary(v, j) && match(pat, v[i:j]) {
				return j
			}
		}
		return -1
	}
	if !r.All {
		switch pat[0] {
		case '#':
			pat = pat[1:]
			if j := longest(0); j >= 0 {
				return with + v[j:]
			}
			return v
		case '%':
			pat = pat[1:]
			for i := 0; i <= len(v); i++ {
				if boundary(v, i) && match(pat, v[i:]) {
					return v[:i] + with
				}
			}
			return v
		}
	}
	var b strings.Builder
	for i := 0; i < len(v); {
		j := longest(i)
		if j <= i { // no match, or an empty one, which replaces nothing
			_, n := utf8.DecodeRuneInString(v[i:])
			b.WriteString(v[i : i+n])
			i += n
			continue
		}
		b.WriteString(with)
		i = j
		if !r.All {
			b.WriteString(v[i:])
			break
		}
	}
	return b.String()
}
