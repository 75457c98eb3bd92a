package shell

import (
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// arithDepth bounds variables that name each other in $(( )).
const arithDepth = 64

// arith evaluates an arithmetic expression in 64 bits. Mistakes end the command.
func (s *shell) arith(x syntax.ArithmExpr) int64 { return s.arithAt(x, 0) }

func (s *shell) arithAt(x syntax.ArithmExpr, depth int) int64 {
	switch x := x.(type) {
	case nil:
		return 0
	case *syntax.ParenArithm:
		return s.arithAt(x.X, depth)
	case *syntax.Word:
		return s.arithText(s.arithWord(x), depth)
	case *syntax.UnaryArithm:
		switch x.Op {
		case syntax.Inc, syntax.Dec:
			name := s.arithName(x.X)
			old := s.arithText(name, depth)
			n := old + 1
			if x.Op == syntax.Dec {
				n = old - 1
			}
			s.set(name, strconv.FormatInt(n, 10))
			if x.Post {
				return old
			}
			return n
		case syntax.Not:
			return truth(s.arithAt(x.X, depth) == 0)
		case syntax.BitNegation:
			return ^s.arithAt(x.X, depth)
		case syntax.Minus:
			return -s.arithAt(x.X, depth)
		}
		return s.arithAt(x.X, depth)
	case *syntax.BinaryArithm:
		return s.arithBinary(x, depth)
	}
	panic(s.fail(2, "arithmetic of this form is not supported"))
}

// arithWord expands a word inside an expression to its text.
func (s *shell) arithWord(w *syntax.Word) string {
	if len(w.Parts) == 1 {
		if lit, ok := w.Parts[0].(*syntax.Lit); ok {
			return lit.Value
		}
	}
	return s.text(w)
}

// arithName is the variable that an assignment names.
func (s *shell) arithName(x syntax.ArithmExpr) string {
	if w, ok := x.(*syntax.Word); ok {
		if name := w.Lit(); syntax.ValidName(name) {
			return name
		}
	}
	panic(s.fail(2, "arithmetic: only a variable can be assigned to"))
}

// arithText is the value of a number, of a variable's name or, as other shells
// allow for a variable's value, of a whole expression.
func (s *shell) arithText(text string, depth int) int64 {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0
	}
	if depth > arithDepth {
		panic(s.fail(2, "arithmetic: %s: variables name each other without end", text))
	}
	if syntax.ValidName(text) {
		v, ok := s.get(text)
		if !ok && s.opt.nounset {
			panic(s.fail(2, "%s: parameter not set", text))
		}
		return s.arithText(v, depth+1)
	}
	if n, ok := parseInt(text); ok {
		return n
	}
	x, err := syntax.NewParser().Arithmetic(strings.NewReader(text))
	if err != nil || x == nil {
		panic(s.fail(2, "arithmetic: %q is not an expression", text))
	}
	if w, ok := x.(*syntax.Word); ok && w.Lit() == text {
		panic(s.fail(2, "arithmetic: %q is not a number", text))
	}
	return s.arithAt(x, depth+1)
}

// parseInt reads 10, 0x1f, 017 and base#digits (2 to 36).
func parseInt(text string) (int64, bool) {
	neg := false
	t := text
	if len(t) > 1 && (t[0] == '-' || t[0] == '+') {
		neg, t = t[0] == '-', t[1:]
	}
	base := 10
	switch {
	case strings.IndexByte(t, '#') > 0:
		b, d, _ := strings.Cut(t, "#")
		n, err := strconv.Atoi(b)
		if err != nil || n < 2 || n > 36 {
			return 0, false
		}
		base, t = n, d
	case len(t) > 2 && t[0] == '0' && (t[1] == 'x' || t[1] == 'X'):
		base, t = 16, t[2:]
	case len(t) > 1 && t[0] == '0':
		base, t = 8, t[1:]
	}
	if t == "" || t[0] == '-' || t[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(t, base, 64)
	if err != nil {
		return 0, false
	}
	if neg {
		return -int64(n), true
	}
	return int64(n), true
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (s *shell) arithBinary(x *syntax.BinaryArithm, depth int) int64 {
	switch x.Op {
	case syntax.AndArit:
		return truth(s.arithAt(x.X, depth) != 0 && s.arithAt(x.Y, depth) != 0)
	case syntax.OrArit:
		return truth(s.arithAt(x.X, depth) != 0 || s.arithAt(x.Y, depth) != 0)
	case syntax.TernQuest:
		y, ok := x.Y.(*syntax.BinaryArithm)
		if !ok {
			panic(s.fail(2, "arithmetic: ? without :"))
		}
		if s.arithAt(x.X, depth) != 0 {
			return s.arithAt(y.X, depth)
		}
		return s.arithAt(y.Y, depth)
	case syntax.Comma:
		s.arithAt(x.X, depth)
		return s.arithAt(x.Y, depth)
	}
	if op, ok := assignOp(x.Op); ok {
		name := s.arithName(x.X)
		n := s.arithAt(x.Y, depth)
		if op != 0 {
			n = s.arithOp(op, s.arithText(name, depth), n)
		}
		s.set(name, strconv.FormatInt(n, 10))
		return n
	}
	return s.arithOp(x.Op, s.arithAt(x.X, depth), s.arithAt(x.Y, depth))
}

// assignOp maps += and the like to their operator; 0 for plain =.
func assignOp(op syntax.BinAritOperator) (syntax.BinAritOperator, bool) {
	switch op {
	case syntax.Assgn:
		return 0, true
	case syntax.AddAssgn:
		return syntax.Add, true
	case syntax.SubAssgn:
		return syntax.Sub, true
	case syntax.MulAssgn:
		return syntax.Mul, true
	case syntax.QuoAssgn:
		return syntax.Quo, true
	case syntax.RemAssgn:
		return syntax.Rem, true
	case syntax.AndAssgn:
		return syntax.And, true
	case syntax.OrAssgn:
		return syntax.Or, true
	case syntax.XorAssgn:
		return syntax.Xor, true
	case syntax.ShlAssgn:
		return syntax.Shl, true
	case syntax.ShrAssgn:
		return syntax.Shr, true
	}
	return 0, false
}

func (s *shell) arithOp(op syntax.BinAritOperator, a, b int64) int64 {
	switch op {
	case syntax.Add:
		return a + b
	case syntax.Sub:
		return a - b
	case syntax.Mul:
		return a * b
	case syntax.Quo, syntax.Rem:
		if b == 0 {
			panic(s.fail(2, "arithmetic: division by zero"))
		}
		if b == -1 { // the most negative number divided by -1 would trap
			if op == syntax.Rem {
				return 0
			}
			return -a
		}
		if op == syntax.Quo {
			return a / b
		}
		return a % b
	case syntax.Pow:
		if b < 0 {
			panic(s.fail(2, "arithmetic: negative exponent"))
		}
		n := int64(1)
		for ; b > 0; b >>= 1 {
			if b&1 == 1 {
				n *= a
			}
			a *= a
		}
		return n
	case syntax.Eql:
		return truth(a == b)
	case syntax.Neq:
		return truth(a != b)
	case syntax.Lss:
		return truth(a < b)
	case syntax.Gtr:
		return truth(a > b)
	case syntax.Leq:
		return truth(a <= b)
	case syntax.Geq:
		return truth(a >= b)
	case syntax.And:
		return a & b
	case syntax.Or:
		return a | b
	case syntax.Xor:
		return a ^ b
	case syntax.Shl:
		return a << (uint64(b) & 63)
	case syntax.Shr:
		return a >> (uint64(b) & 63)
	}
	panic(s.fail(2, "arithmetic: operator %s is not supported", op))
}
