package text

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"weft/init/applet/posixre"
	"weft/init/unit"
)

// Expr evaluates an expression: | & = != < <= > >= + - * / % : ( ), match, substr,
// index, length. Exit code 0 for a value, 1 for an empty one or 0, 2 for a mistake.
func Expr(_ context.Context, c *unit.Call) int {
	args := c.Args[1:]
	if len(args) == 1 && args[0] == "--help" {
		fmt.Fprintln(c.Stdout, "Usage: expr EXPRESSION\nExample: expr 1 + 2")
		return 0
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	p := exprParser{args: args}
	v, err := p.level(0)
	if err == nil && p.i < len(args) {
		err = fmt.Errorf("%q is not expected", args[p.i])
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "expr: %v\nUsage: expr EXPRESSION (example: expr 1 + 2)\n", err)
		return 2
	}
	fmt.Fprintln(c.Stdout, v)
	if null(v) {
		return 1
	}
	return 0
}

func null(v string) bool {
	n, err := strconv.ParseInt(v, 10, 64)
	return v == "" || err == nil && n == 0
}

type exprParser struct {
	args []string
	i    int
}

// exprLevels are the operators by precedence, the loosest first.
func exprLevel(op string) int {
	switch op {
	case "|":
		return 0
	case "&":
		return 1
	case "=", "==", "!=", "<", "<=", ">", ">=":
		return 2
	case "+", "-":
		return 3
	case "*", "/", "%":
		return 4
	case ":":
		return 5
	}
	return -1
}

func (p *exprParser) level(n int) (string, error) {
	if n == 6 {
		return p.primary()
	}
	v, err := p.level(n + 1)
	for err == nil && p.i < len(p.args) && exprLevel(p.args[p.i]) == n {
		op := p.args[p.i]
		p.i++
		var w string
		if w, err = p.level(n + 1); err == nil {
			v, err = exprApply(op, v, w)
		}
	}
	return v, err
}

func (p *exprParser) next() (string, error) {
	if p.i >= len(p.args) {
		return "", errors.New("something is missing at the end")
	}
	p.i++
	return p.args[p.i-1], nil
}

func (p *exprParser) primary() (string, error) {
	w, err := p.next()
	if err != nil {
		return "", err
	}
	operands := func(n int) ([]string, error) {
		out := make([]string, n)
		for i := range out {
			if out[i], err = p.primary(); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	more := p.i < len(p.args) && exprLevel(p.args[p.i]) < 0 && p.args[p.i] != ")"
	switch {
	case w == "(":
		v, err := p.level(0)
		if err != nil {
			return "", err
		}
		if e, err := p.next(); err != nil || e != ")" {
			return "", errors.New("( is not closed")
		}
		return v, nil
	case w == "+" && more:
		return p.next()
	case w == "length" && more:
		o, err := operands(1)
		if err != nil {
			return "", err
		}
		return strconv.Itoa(utf8.RuneCountInString(o[0])), nil
	case w == "match" && more:
		o, err := operands(2)
		if err != nil {
			return "", err
		}
		return exprApply(":", o[0], o[1])
	case w == "index" && more:
		o, err := operands(2)
		if err != nil {
			return "", err
		}
		i := strings.IndexAny(o[0], o[1])
		if i < 0 {
			return "0", nil
		}
		return strconv.Itoa(utf8.RuneCountInString(o[0][:i]) + 1), nil
	case w == "substr" && more:
		o, err := operands(3)
		if err != nil {
			return "", err
		}
		from, err1 := strconv.Atoi(o[1])
		n, err2 := strconv.Atoi(o[2])
		r := []rune(o[0])
		if err1 != nil || err2 != nil || from < 1 || n < 1 || from > len(r) {
			return "", nil
		}
		return string(r[from-1 : min(from-1+n, len(r))]), nil
	case w == ")":
		return "", errors.New(") is not expected")
	}
	return w, nil
}

func exprApply(op, v, w string) (string, error) {
	x, ex := strconv.ParseInt(v, 10, 64)
	y, ey := strconv.ParseInt(w, 10, 64)
	numbers := ex == nil && ey == nil
	truth := func(b bool) (string, error) {
		if b {
			return "1", nil
		}
		return "0", nil
	}
	switch op {
	case "|":
		if !null(v) {
			return v, nil
		}
		if null(w) {
			return "0", nil
		}
		return w, nil
	case "&":
		if null(v) || null(w) {
			return "0", nil
		}
		return v, nil
	case ":":
		re, err := posixre.Compile("^"+strings.TrimPrefix(w, "^"), posixre.Options{})
		if err != nil {
			return "", err
		}
		m := re.FindStringSubmatch(v)
		if re.NumSubexp() > 0 {
			if m == nil {
				return "", nil
			}
			return m[1], nil
		}
		if m == nil {
			return "0", nil
		}
		return strconv.Itoa(utf8.RuneCountInString(m[0])), nil
	case "=", "==", "!=", "<", "<=", ">", ">=":
		n := strings.Compare(v, w)
		if numbers {
			n = 0
			if x < y {
				n = -1
			} else if x > y {
				n = 1
			}
		}
		switch op {
		case "!=":
			return truth(n != 0)
		case "<":
			return truth(n < 0)
		case "<=":
			return truth(n <= 0)
		case ">":
			return truth(n > 0)
		case ">=":
			return truth(n >= 0)
		}
		return truth(n == 0)
	}
	if !numbers {
		return "", fmt.Errorf("%s %s %s: not numbers", v, op, w)
	}
	var n int64
	switch op {
	case "+":
		n = x + y
	case "-":
		n = x - y
	case "*":
		n = x * y
	default:
		if y == 0 {
			return "", errors.New("division by zero")
		}
		if y == -1 { // the least number divided by -1 would trap
			if n = -x; op == "%" {
				n = 0
			}
		} else if n = x / y; op == "%" {
			n = x % y
		}
	}
	return strconv.FormatInt(n, 10), nil
}
