package text

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"weft/init/applet/options"
	"weft/init/applet/posixre"
	"weft/init/unit"
)

// Grep finds lines that match. Exit code 0 found, 1 not found, 2 trouble.
func Grep(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "EFGie:f:vqcnolLrRsHhwxA:B:C:m:aIyz extended-regexp=E fixed-strings=F ignore-case=i regexp=e file=f invert-match=v quiet=q silent=q count=c line-number=n only-matching=o files-with-matches=l files-without-match=L recursive=r no-messages=s with-filename=H no-filename=h word-regexp=w line-regexp=x after-context=A before-context=B context=C max-count=m text=a color=y", `[-EFivqcnolLrsHhwx] [-A|-B|-C LINES] [-m COUNT] [-e PATTERN]... [-f LIST] [PATTERN] [FILE]...
  -E extended, -F no regular expressions   -i  ignore case   -v  those that do not match
  -q  say nothing   -c  count   -n  line numbers   -o  what matched   -l, -L  names of files
  -r  all below   -w words   -x whole lines   -A, -B, -C  lines around   -s  no word about files
Example: grep -rn 'option ip' /etc/config`)
	if code >= 0 {
		return code
	}
	g := &grep{ctx: ctx, c: c, o: o, quiet: o.Has('q')}
	patterns := o.Values('e')
	for _, f := range o.Values('f') {
		in, err := open(c, f)
		if err != nil {
			fail(c, err)
			return 2
		}
		b, err := io.ReadAll(in)
		in.Close()
		if err != nil {
			fail(c, err)
			return 2
		}
		for l := range strings.Lines(string(b)) {
			patterns = append(patterns, strings.TrimSuffix(l, "\n"))
		}
	}
	files := o.Args
	if !o.Has('e') && !o.Has('f') {
		if len(files) == 0 {
			return o.Fail("which pattern?")
		}
		patterns, files = files[:1], files[1:]
	}
	ext, lit := o.Has('E'), o.Has('F')
	switch filepath.Base(c.Args[0]) {
	case "egrep":
		ext = true
	case "fgrep":
		lit = true
	}
	for _, p := range patterns {
		for one := range strings.SplitSeq(p, "\n") { // a newline separates patterns
			re, err := posixre.Compile(one, posixre.Options{Extended: ext, Literal: lit, IgnoreCase: o.Has('i'), WholeLine: o.Has('x'), WholeWord: o.Has('w')})
			if err != nil {
				return o.Fail("%v", err)
			}
			g.res = append(g.res, re)
			// Without metacharacters a plain search is many times faster.
			if prefix, whole := re.LiteralPrefix(); whole && !o.Has('i') {
				g.plain = append(g.plain, prefix)
			}
		}
	}
	if len(g.plain) != len(g.res) || o.Has('o') {
		g.plain = nil
	}
	var n [4]int
	for i, l := range []byte("ABCm") {
		def := 0
		if l == 'm' {
			def = -1
		}
		if n[i], code = o.Int(l, def); code >= 0 {
			return code
		}
	}
	g.after, g.before, g.most = max(n[0], n[2]), max(n[1], n[2]), n[3]
	recursive := o.Has('r') || o.Has('R')
	if len(files) == 0 {
		files = []string{"-"}
		if recursive {
			files = []string{"."}
		}
	}
	g.names = (len(files) > 1 || recursive || o.Has('H')) && !o.Has('h')
	g.out = newOutput(c)
	for _, f := range files {
		if recursive && f != "-" {
			g.below(f)
		} else {
			g.file(f)
		}
		if g.done() {
			break
		}
	}
	code = 1
	if g.found {
		code = 0
	}
	if g.trouble && !(g.found && g.quiet) {
		code = 2
	}
	if g.out.Flush() != nil {
		return 2
	}
	return code
}

type grep struct {
	ctx                  context.Context
	c                    *unit.Call
	o                    *options.Set
	res                  []*regexp.Regexp
	plain                []string
	out                  output
	names, quiet         bool
	after, before, most  int
	found, trouble, sent bool
}

func (g *grep) done() bool { return g.ctx.Err() != nil || g.found && g.quiet || g.out.broken() }

func (g *grep) report(err error) {
	g.trouble = true
	if !g.o.Has('s') {
		fail(g.c, err)
	}
}

func (g *grep) below(root string) {
	base := g.c.Path(root)
	err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			g.report(err)
			return nil
		}
		if g.done() {
			return filepath.SkipAll
		}
		if p != base && !d.Type().IsRegular() || d.IsDir() {
			if p == base && d.Type()&fs.ModeSymlink != 0 {
				g.file(root)
			}
			return nil
		}
		name := root + strings.TrimPrefix(p, base)
		if root == "/" {
			name = p
		}
		g.file(name)
		return nil
	})
	if err != nil {
		g.report(err)
	}
}

func (g *grep) match(line string) bool {
	if g.plain != nil {
		for _, p := range g.plain {
			if strings.Contains(line, p) {
				return true
			}
		}
		return false
	}
	for _, re := range g.res {
		if re.MatchString(line) {
			return true
		}
	}
	return false
}

func (g *grep) file(name string) {
	in, err := open(g.c, name)
	if err != nil {
		g.report(err)
		return
	}
	defer in.Close()
	shown := name
	if name == "-" {
		shown = "(standard input)"
	}
	_, interactive := in.(*os.File)
	lr := newLineReader(g.ctx, in)
	count := 0
	var held []string // lines before a match
	left := 0         // lines after it still to print
	last := 0         // number of the last line printed
	binary := false
	if b, _ := lr.r.Peek(1024); strings.IndexByte(string(b), 0) >= 0 && !g.o.Has('a') {
		binary = true
	}
	say := func(n int, sep, text string) {
		if g.names {
			g.out.WriteString(shown + sep)
		}
		if g.o.Has('n') {
			fmt.Fprintf(g.out, "%d%s", n, sep)
		}
		g.out.WriteString(text + "\n")
		last = n
	}
	silent := g.quiet || g.o.Has('c') || g.o.Has('l') || g.o.Has('L')
	for n := 1; g.most < 0 || count < g.most || left > 0; n++ {
		line, _, err := lr.next()
		if err != nil {
			if err != io.EOF {
				g.report(fmt.Errorf("%s: %w", name, err))
			}
			break
		}
		hit := g.match(line) != g.o.Has('v') && (g.most < 0 || count < g.most)
		switch {
		case hit:
			count++
			if g.o.Has('l') || g.quiet {
				g.found = g.found || !g.o.Has('L')
			}
			if g.o.Has('L') || g.o.Has('l') || g.quiet {
				break
			}
			if silent {
				continue
			}
			if binary {
				fmt.Fprintf(g.c.Stderr, "grep: %s: binary file matches (-a shows it)\n", shown)
				g.found = true
				return
			}
			if g.o.Has('o') {
				if !g.o.Has('v') {
					g.only(n, line, say)
				}
				continue
			}
			if (g.before > 0 || g.after > 0) && g.sent && (last == 0 || n-len(held) > last+1) {
				g.out.WriteString("--\n")
			}
			for i, l := range held {
				say(n-len(held)+i, "-", l)
			}
			held = held[:0]
			say(n, ":", line)
			g.sent = true
			left = g.after
		case left > 0 && !silent:
			left--
			say(n, "-", line)
		case g.before > 0:
			if held = append(held, line); len(held) > g.before {
				held = held[1:]
			}
		}
		if hit && (g.o.Has('L') || g.o.Has('l') || g.quiet) {
			break
		}
		if !interactive && lr.r.Buffered() == 0 {
			if g.out.Flush() != nil {
				return
			}
		}
	}
	switch {
	case g.o.Has('L'):
		if count == 0 {
			g.found = true
			if !g.quiet {
				fmt.Fprintln(g.out, shown)
			}
		}
		return
	case g.quiet:
	case g.o.Has('l'):
		if count > 0 {
			fmt.Fprintln(g.out, shown)
		}
	case g.o.Has('c'):
		if g.names {
			g.out.WriteString(shown + ":")
		}
		fmt.Fprintln(g.out, count)
	}
	g.found = g.found || count > 0
}

// only prints the parts of a line that match, from left to right.
func (g *grep) only(n int, line string, say func(int, string, string)) {
	for at := 0; at <= len(line); {
		from, to := -1, -1
		for _, re := range g.res {
			if loc := re.FindStringIndex(line[at:]); loc != nil && (from < 0 || at+loc[0] < from || at+loc[0] == from && at+loc[1] > to) {
				// An anchor must not match in the middle.
				if at > 0 && strings.Contains(re.String(), "^") {
					all := re.FindAllStringIndex(line, -1)
					ok := false
					for _, l := range all {
						ok = ok || l[0] == at+loc[0]
					}
					if !ok {
						continue
					}
				}
				from, to = at+loc[0], at+loc[1]
			}
		}
		if from < 0 {
			return
		}
		if to > from {
			say(n, ":", line[from:to])
			at = to
		} else {
			at = from + 1
		}
	}
}
