package text

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"weft/init/applet/options"
	"weft/init/unit"
)

// oldCount turns head -5 and tail -5 into -n 5.
func oldCount(c *unit.Call) *unit.Call {
	call := *c
	call.Args = slices.Clone(c.Args)
	for i := 1; i < len(call.Args); i++ {
		a := call.Args[i]
		if len(a) < 2 || a[0] != '-' || a == "--" {
			break
		}
		if a[1] >= '0' && a[1] <= '9' {
			call.Args[i] = "-n" + a[1:]
		} else if a == "-n" || a == "-c" || a == "-s" {
			i++ // its value may look like one
		}
	}
	return &call
}

// count reads 10, -10, +10, 4k, 1M.
func count(s string) (sign byte, n int64, err error) {
	t := s
	if t != "" && (t[0] == '+' || t[0] == '-') {
		sign, t = t[0], t[1:]
	}
	mul := int64(1)
	for _, u := range []struct {
		suffix string
		by     int64
	}{{"k", 1 << 10}, {"K", 1 << 10}, {"M", 1 << 20}, {"m", 1 << 20}, {"b", 512}} {
		if v, ok := strings.CutSuffix(t, u.suffix); ok {
			t, mul = v, u.by
			break
		}
	}
	n, err = strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > 1<<62/mul {
		return 0, 0, fmt.Errorf("%q is not a number", s)
	}
	return sign, n * mul, nil
}

// Head prints the first lines or bytes of files.
func Head(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(oldCount(c), "n:c:qv lines=n bytes=c quiet=q verbose=v", `[-n LINES|-c BYTES] [-qv] [FILE]...
  -n -N  all but the last N lines   -q, -v  never, always the names of files
Example: head -n 5 /etc/passwd`)
	if code >= 0 {
		return code
	}
	spec, byBytes := o.Value('n', "10"), o.Has('c')
	if byBytes {
		spec = o.Value('c', "")
	}
	sign, n, err := count(spec)
	if err != nil {
		return o.Fail("%v", err)
	}
	out := newOutput(c)
	code = 0
	first := true
	for _, name := range orInput(o.Args) {
		in, err := open(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		title(out, name, &first, len(o.Args) > 1 && !o.Has('q') || o.Has('v'))
		switch {
		case byBytes && sign == '-':
			b, rerr := io.ReadAll(in)
			err = rerr
			out.Write(b[:max(int64(len(b))-n, 0)])
		case byBytes:
			_, err = io.CopyN(out, in, n)
		default:
			lr := newLineReader(ctx, in)
			var held []string
			for left := n; left > 0 || sign == '-'; left-- {
				line, complete, rerr := lr.next()
				if rerr != nil {
					err = rerr
					break
				}
				if complete {
					line += "\n"
				}
				if sign == '-' {
					held = append(held, line)
					if int64(len(held)) <= n {
						continue
					}
					line, held = held[0], held[1:]
				}
				if _, werr := out.WriteString(line); werr != nil {
					break
				}
			}
		}
		in.Close()
		if err != nil && err != io.EOF {
			code = fail(c, err)
		}
	}
	return out.close(code)
}

func title(out output, name string, first *bool, show bool) {
	if !show {
		return
	}
	if !*first {
		out.WriteByte('\n')
	}
	*first = false
	if name == "-" {
		name = "standard input"
	}
	fmt.Fprintf(out, "==> %s <==\n", name)
}

// Tail prints the last lines or bytes of files, and with -f what is added.
func Tail(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(oldCount(c), "n:c:fFqvs: lines=n bytes=c follow=f quiet=q verbose=v", `[-n LINES|-c BYTES] [-fFqv] [FILE]...
  -n +N  from line N on   -f  go on with what is added   -F  also when the file is replaced
Example: tail -f /tmp/log/messages`)
	if code >= 0 {
		return code
	}
	spec, byBytes := o.Value('n', "10"), o.Has('c')
	if byBytes {
		spec = o.Value('c', "")
	}
	sign, n, err := count(spec)
	if err != nil {
		return o.Fail("%v", err)
	}
	out := newOutput(c)
	code = 0
	var follow []*followed
	first := true
	for _, name := range orInput(o.Args) {
		in, err := open(c, name)
		if err != nil {
			code = fail(c, err)
			if o.Has('F') {
				follow = append(follow, &followed{name: name})
			}
			continue
		}
		title(out, name, &first, len(o.Args) > 1 && !o.Has('q') || o.Has('v'))
		if byBytes {
			err = tailBytes(out, in, sign, n)
		} else {
			err = tailLines(ctx, out, in, sign, n)
		}
		if err != nil {
			code = fail(c, err)
		}
		if f, ok := in.(*os.File); ok && (o.Has('f') || o.Has('F')) {
			follow = append(follow, &followed{name: name, f: f})
		} else {
			in.Close()
		}
	}
	if len(follow) == 0 {
		return out.close(code)
	}
	out.Flush()
	return followFiles(ctx, c, out, follow, o.Has('F'), code)
}

func tailLines(ctx context.Context, out output, in io.Reader, sign byte, n int64) error {
	if f, ok := in.(io.ReadSeeker); ok && sign != '+' {
		if err := seekLines(f, n); err == nil {
			_, err := io.Copy(out, in)
			return err
		}
	}
	lr := newLineReader(ctx, in)
	var held []string
	for at := int64(1); ; at++ {
		line, complete, err := lr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if complete {
			line += "\n"
		}
		if sign == '+' {
			if at >= n {
				if _, err := out.WriteString(line); err != nil {
					return nil
				}
			}
			continue
		}
		if held = append(held, line); int64(len(held)) > n {
			held[0] = ""
			held = held[1:]
		}
	}
	for _, l := range held {
		out.WriteString(l)
	}
	return nil
}

// seekLines moves to the start of the n last lines without reading what is before.
func seekLines(f io.ReadSeeker, n int64) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const chunk = 8192
	buf := make([]byte, chunk)
	pos := size
	seen := int64(0)
	for pos > 0 {
		from := max(pos-chunk, 0)
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
		b := buf[:pos-from]
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != '\n' || from+int64(i) == size-1 {
				continue
			}
			if seen++; seen == n {
				_, err := f.Seek(from+int64(i)+1, io.SeekStart)
				return err
			}
		}
		pos = from
	}
	if n == 0 {
		_, err = f.Seek(0, io.SeekEnd)
	} else {
		_, err = f.Seek(0, io.SeekStart)
	}
	return err
}

func tailBytes(out output, in io.Reader, sign byte, n int64) error {
	if sign == '+' {
		if _, err := io.CopyN(io.Discard, in, max(n-1, 0)); err != nil {
			return ignoreEOF(err)
		}
		_, err := io.Copy(out, in)
		return err
	}
	if f, ok := in.(io.Seeker); ok {
		if size, err := f.Seek(0, io.SeekEnd); err == nil {
			if _, err := f.Seek(max(size-n, 0), io.SeekStart); err == nil {
				_, err := io.Copy(out, in)
				return err
			}
		}
	}
	b, err := io.ReadAll(in)
	out.Write(b[max(int64(len(b))-n, 0):])
	return err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// followed is a file of tail -f; f is nil while it is not there.
type followed struct {
	name string
	f    *os.File
}

// followFiles prints what is added until the context ends.
func followFiles(ctx context.Context, c *unit.Call, out output, files []*followed, byName bool, code int) int {
	last := files[len(files)-1]
	buf := make([]byte, 32*1024)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, f := range files {
			if byName {
				f.reopen(c)
			}
			for f.f != nil {
				if st, err := f.f.Stat(); err == nil {
					if at, err := f.f.Seek(0, io.SeekCurrent); err == nil && st.Mode().IsRegular() && st.Size() < at {
						fmt.Fprintf(c.Stderr, "tail: %s: became shorter; going on from its start\n", f.name)
						f.f.Seek(0, io.SeekStart)
					}
				}
				n, err := f.f.Read(buf)
				if n > 0 {
					if f != last {
						title(out, f.name, new(bool), len(files) > 1)
						last = f
					}
					out.Write(buf[:n])
				}
				if n == 0 || err != nil {
					break
				}
			}
		}
		if out.Flush() != nil {
			return 1
		}
		select {
		case <-ctx.Done():
			return code
		case <-tick.C:
		}
	}
}

// reopen takes the file that has the name now.
func (f *followed) reopen(c *unit.Call) {
	st, err := os.Stat(c.Path(f.name))
	if err != nil {
		return
	}
	if f.f != nil {
		if own, err := f.f.Stat(); err == nil && os.SameFile(st, own) {
			return
		}
	}
	n, err := os.Open(c.Path(f.name))
	if err != nil {
		return
	}
	if f.f != nil {
		f.f.Close()
	}
	f.f = n
}

// Wc counts lines, words, characters and bytes.
func Wc(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "lwcmL lines=l words=w bytes=c chars=m max-line-length=L", `[-lwcmL] [FILE]...
  -l lines   -w words   -c bytes   -m characters   -L longest line
Example: wc -l < /etc/hosts`)
	if code >= 0 {
		return code
	}
	none := len(o.Order) == 0
	type sums [5]int64 // lines, words, characters, bytes, longest
	measure := func(r io.Reader) (s sums, err error) {
		br := bufio.NewReaderSize(r, 64*1024)
		inWord := false
		width := int64(0)
		for {
			if s[3]&0xffff == 0 && ctx.Err() != nil {
				return s, ctx.Err()
			}
			ch, n, err := br.ReadRune()
			if err != nil {
				s[4] = max(s[4], width)
				return s, ignoreEOF(err)
			}
			s[3] += int64(n)
			s[2]++
			switch {
			case ch == '\n':
				s[0]++
				s[4], width = max(s[4], width), 0
				inWord = false
			case unicode.IsSpace(ch):
				inWord = false
				if ch == '\t' {
					width = (width/8 + 1) * 8
				} else {
					width++
				}
			default:
				width++
				if !inWord {
					s[1]++
				}
				inWord = true
			}
		}
	}
	var rows []sums
	var names []string
	var total sums
	code = 0
	for _, name := range orInput(o.Args) {
		in, err := open(c, name)
		if err != nil {
			code = fail(c, err)
			continue
		}
		s, err := measure(in)
		in.Close()
		if err != nil {
			code = fail(c, err)
		}
		rows = append(rows, s)
		if len(o.Args) == 0 {
			name = ""
		}
		names = append(names, name)
		for i := range 4 {
			total[i] += s[i]
		}
		total[4] = max(total[4], s[4])
	}
	if len(o.Args) > 1 {
		rows, names = append(rows, total), append(names, "total")
	}
	show := []bool{o.Has('l') || none, o.Has('w') || none, o.Has('m'), o.Has('c') || none, o.Has('L')}
	columns := 0
	width := 1
	for _, s := range show {
		if s {
			columns++
		}
	}
	if columns > 1 || len(rows) > 1 {
		width = len(strconv.FormatInt(total[3], 10))
		if len(o.Args) == 0 {
			width = 7
		}
	}
	for i, r := range rows {
		var f []string
		for j, v := range r {
			if show[j] {
				f = append(f, fmt.Sprintf("%*d", width, v))
			}
		}
		if names[i] != "" {
			f = append(f, names[i])
		}
		fmt.Fprintln(c.Stdout, strings.Join(f, " "))
	}
	return code
}

// Tee copies its input to the output and to files.
func Tee(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "ai append=a", "[-a] [FILE]...\n  -a  add to the files\nExample: dmesg | tee /tmp/dmesg.txt | head")
	if code >= 0 {
		return code
	}
	code = 0
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if o.Has('a') {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	outs := []io.Writer{c.Stdout}
	for _, name := range o.Args {
		f, err := os.OpenFile(c.Path(name), mode, 0o666)
		if err != nil {
			code = fail(c, err)
			continue
		}
		defer f.Close()
		outs = append(outs, f)
	}
	buf := make([]byte, 32*1024)
	for ctx.Err() == nil {
		n, err := c.Stdin.Read(buf)
		for i, w := range outs {
			if w == nil || n == 0 {
				continue
			}
			if _, werr := w.Write(buf[:n]); werr != nil {
				code = fail(c, werr)
				outs[i] = nil // the others go on
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(c, err)
		}
	}
	return code
}

// Tac prints lines in reverse order.
func Tac(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "[FILE]...")
	if code >= 0 {
		return code
	}
	out := newOutput(c)
	code = 0
	for _, name := range orInput(o.Args) {
		var list []string
		code = max(code, eachLine(ctx, c, []string{name}, func(l string) bool { list = append(list, l); return true }))
		for _, l := range slices.Backward(list) {
			out.WriteString(l + "\n")
		}
	}
	return out.close(code)
}

// Rev prints lines with their characters in reverse order.
func Rev(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "", "[FILE]...")
	if code >= 0 {
		return code
	}
	out := newOutput(c)
	code = eachLine(ctx, c, o.Args, func(l string) bool {
		r := []rune(l)
		slices.Reverse(r)
		_, err := out.WriteString(string(r) + "\n")
		return err == nil
	})
	return out.close(code)
}

// Nl numbers lines.
func Nl(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "b:w:s: body-numbering=b number-width=w number-separator=s", "[-b a|t|n] [-w WIDTH] [-s TEXT] [FILE]...\n  -b  which lines: a all, t those that are not empty (default), n none")
	if code >= 0 {
		return code
	}
	width, code := o.Int('w', 6)
	if code >= 0 {
		return code
	}
	which := o.Value('b', "t")
	if which != "a" && which != "t" && which != "n" {
		return o.Fail("-b: %q is none of a, t, n", which)
	}
	out := newOutput(c)
	n := 0
	code = eachLine(ctx, c, o.Args, func(l string) bool {
		if which == "a" || which == "t" && l != "" {
			n++
			fmt.Fprintf(out, "%*d%s%s\n", width, n, o.Value('s', "\t"), l)
		} else {
			fmt.Fprintf(out, "%*s%s\n", width+len(o.Value('s', "\t")), "", l)
		}
		return !out.broken()
	})
	return out.close(code)
}

// Fold breaks long lines.
func Fold(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "w:sb width=w spaces=s", "[-s] [-w WIDTH] [FILE]...\n  -s  at blanks")
	if code >= 0 {
		return code
	}
	width, code := o.Int('w', 80)
	if code >= 0 {
		return code
	}
	if width < 1 {
		return o.Fail("-w: %d is too narrow", width)
	}
	out := newOutput(c)
	code = eachLine(ctx, c, o.Args, func(l string) bool {
		start, blank, col := 0, -1, 0
		for i := 0; i < len(l); {
			r, n := utf8.DecodeRuneInString(l[i:])
			next := col + 1
			if r == '\t' {
				next = (col/8 + 1) * 8
			}
			if next > width && i > start {
				cut := i
				if o.Has('s') && blank > start {
					cut = blank
				}
				out.WriteString(l[start:cut] + "\n")
				start, blank, col, i = cut, -1, 0, cut
				continue
			}
			col = next
			i += n
			if r == ' ' || r == '\t' {
				blank = i
			}
		}
		_, err := out.WriteString(l[start:] + "\n")
		return err == nil
	})
	return out.close(code)
}

// Uniq drops repeated lines that follow each other.
func Uniq(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "cduif:s:w: count=c repeated=d unique=u ignore-case=i skip-fields=f skip-chars=s check-chars=w", `[-cdui] [-f FIELDS] [-s CHARS] [-w CHARS] [INPUT [OUTPUT]]
  -c  count them   -d  only repeated ones   -u  only single ones   -i  ignore case
Example: sort /tmp/list | uniq -c | sort -rn`)
	if code >= 0 {
		return code
	}
	if code := o.Operands(0, 2); code >= 0 {
		return code
	}
	var num [3]int
	for i, l := range []byte("fsw") {
		def := 0
		if l == 'w' {
			def = -1
		}
		if num[i], code = o.Int(l, def); code >= 0 {
			return code
		}
	}
	key := func(l string) string {
		for range num[0] {
			l = strings.TrimLeft(l, " \t")
			if i := strings.IndexAny(l, " \t"); i >= 0 {
				l = l[i:]
			} else {
				l = ""
			}
		}
		r := []rune(l)
		r = r[min(num[1], len(r)):]
		if num[2] >= 0 {
			r = r[:min(num[2], len(r))]
		}
		if o.Has('i') {
			return strings.ToLower(string(r))
		}
		return string(r)
	}
	call := *c
	if len(o.Args) == 2 {
		f, err := os.Create(c.Path(o.Args[1]))
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		call.Stdout = f
	}
	out := newOutput(&call)
	var line, lineKey string
	n := 0
	flush := func() {
		if n == 0 || o.Has('d') && n == 1 || o.Has('u') && n > 1 {
			return
		}
		if o.Has('c') {
			fmt.Fprintf(out, "%7d ", n)
		}
		out.WriteString(line + "\n")
	}
	code = eachLine(ctx, c, o.Args[:min(len(o.Args), 1)], func(l string) bool {
		k := key(l)
		if n > 0 && k == lineKey {
			n++
			return true
		}
		flush()
		line, lineKey, n = l, k, 1
		return !out.broken()
	})
	flush()
	return out.close(code)
}

// Cut prints parts of lines.
func Cut(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "b:c:f:d:snO:C bytes=b characters=c fields=f delimiter=d only-delimited=s output-delimiter=O complement=C", `-f LIST [-d CHAR] [-s] [FILE]... | -c LIST [FILE]...
  -f fields   -c characters   -b bytes   -d  separator (default: tab)   -s  skip lines without it
LIST: 1,3-5,7-
Example: cut -d: -f1,3 /etc/passwd`)
	if code >= 0 {
		return code
	}
	modes := o.Count('b') + o.Count('c') + o.Count('f')
	if modes != 1 {
		return o.Fail("exactly one of -f, -c and -b is needed")
	}
	list := o.Value('f', o.Value('c', o.Value('b', "")))
	ranges, err := parseRanges(list)
	if err != nil {
		return o.Fail("%v", err)
	}
	sep := o.Value('d', "\t")
	if utf8.RuneCountInString(sep) != 1 {
		return o.Fail("-d: %q is not one character", sep)
	}
	join := o.Value('O', sep)
	out := newOutput(c)
	code = eachLine(ctx, c, o.Args, func(l string) bool {
		var parts []string
		switch {
		case o.Has('f'):
			if !strings.Contains(l, sep) {
				if !o.Has('s') {
					out.WriteString(l + "\n")
				}
				return !out.broken()
			}
			parts = strings.Split(l, sep)
		case o.Has('c'):
			parts = strings.Split(l, "")
		default:
			parts = make([]string, len(l))
			for i := range parts {
				parts[i] = l[i : i+1]
			}
		}
		var picked []string
		for i, p := range parts {
			if ranges.has(i+1) != o.Has('C') {
				picked = append(picked, p)
			}
		}
		with := join
		if !o.Has('f') {
			with = o.Value('O', "")
		}
		_, err := out.WriteString(strings.Join(picked, with) + "\n")
		return err == nil
	})
	return out.close(code)
}

type ranges [][2]int

func (r ranges) has(n int) bool {
	for _, p := range r {
		if n >= p[0] && n <= p[1] {
			return true
		}
	}
	return false
}

func parseRanges(list string) (ranges, error) {
	var out ranges
	for part := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		lo, hi, dash := strings.Cut(part, "-")
		a, b := 1, 1<<31-1
		var err1, err2 error
		if lo != "" {
			a, err1 = strconv.Atoi(lo)
		}
		if !dash {
			b = a
		} else if hi != "" {
			b, err2 = strconv.Atoi(hi)
		}
		if err1 != nil || err2 != nil || a < 1 || b < a || part == "-" {
			return nil, fmt.Errorf("%q is not a list of positions (example: 1,3-5,7-)", list)
		}
		out = append(out, [2]int{a, b})
	}
	if out == nil {
		return nil, fmt.Errorf("%q is not a list of positions (example: 1,3-5,7-)", list)
	}
	return out, nil
}

// Paste joins lines of files side by side.
func Paste(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "d:s delimiters=d serial=s", "[-s] [-d LIST] [FILE]...\n  -s  all lines of a file in one   -d  what to put between (default: tab)\nExample: paste -sd, list.txt")
	if code >= 0 {
		return code
	}
	seps := strings.Split(strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\\`, `\`).Replace(o.Value('d', "\t")), "")
	if len(seps) == 0 {
		seps = []string{""}
	}
	out := newOutput(c)
	code = 0
	if o.Has('s') {
		for _, name := range orInput(o.Args) {
			var b strings.Builder
			n := 0
			code = max(code, eachLine(ctx, c, []string{name}, func(l string) bool {
				if n > 0 {
					b.WriteString(seps[(n-1)%len(seps)])
				}
				n++
				b.WriteString(l)
				return true
			}))
			out.WriteString(b.String() + "\n")
		}
		return out.close(code)
	}
	var in []*lineReader
	shared := newLineReader(ctx, c.Stdin)
	for _, name := range orInput(o.Args) {
		if name == "-" {
			in = append(in, shared)
			continue
		}
		f, err := open(c, name)
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		in = append(in, newLineReader(ctx, f))
	}
	for {
		var b strings.Builder
		any := false
		for i, lr := range in {
			if i > 0 {
				b.WriteString(seps[(i-1)%len(seps)])
			}
			l, _, err := lr.next()
			if err != nil && err != io.EOF {
				return fail(c, err)
			}
			if err == nil {
				any = true
				b.WriteString(l)
			}
		}
		if !any {
			return out.close(code)
		}
		if _, err := out.WriteString(b.String() + "\n"); err != nil {
			return 1
		}
	}
}

// Sort sorts lines.
func Sort(ctx context.Context, c *unit.Call) int {
	o, code := options.Parse(c, "nrufbdihVk:t:o:cszmMgC numeric-sort=n reverse=r unique=u ignore-case=f key=k field-separator=t output=o check=c stable=s zero-terminated=z human-numeric-sort=h version-sort=V", `[-nruf bhVsz] [-t CHAR] [-k START[,END][OPTIONS]]... [-o FILE] [-c] [FILE]...
  -n  by number   -h  by number with unit   -V  by version   -r  reversed   -u  each once
  -f  ignore case   -b  ignore blanks   -k  by fields   -t  separator   -c  only check
Example: sort -t. -k1,1n -k2,2n addresses`)
	if code >= 0 {
		return code
	}
	for _, l := range []byte("dimMg") {
		if o.Has(l) {
			return o.Fail("-%c is not supported", l)
		}
	}
	s := sorter{unique: o.Has('u'), sep: o.Value('t', ""), stable: o.Has('s') || o.Has('u')}
	if o.Has('t') && utf8.RuneCountInString(s.sep) != 1 {
		return o.Fail("-t: %q is not one character", s.sep)
	}
	global := sortOptions{numeric: o.Has('n'), reverse: o.Has('r'), fold: o.Has('f'), blanks: o.Has('b'), human: o.Has('h'), version: o.Has('V')}
	s.reverse = global.reverse
	for _, k := range o.Values('k') {
		key, err := parseKey(k, global)
		if err != nil {
			return o.Fail("-k: %v", err)
		}
		s.keys = append(s.keys, key)
	}
	if s.keys == nil {
		s.keys = []sortKey{{sortOptions: global, whole: true}}
	}
	end := "\n"
	if o.Has('z') {
		end = "\x00"
	}
	var list []string
	code = 0
	for _, name := range orInput(o.Args) {
		in, err := open(c, name)
		if err != nil {
			return fail(c, err)
		}
		lr := newLineReader(ctx, in)
		lr.end = end[0]
		for {
			l, _, err := lr.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				in.Close()
				return fail(c, err)
			}
			list = append(list, l)
		}
		in.Close()
	}
	if o.Has('c') || o.Has('C') {
		for i := 1; i < len(list); i++ {
			if n := s.compare(list[i-1], list[i]); n > 0 || n == 0 && s.unique {
				if o.Has('c') {
					failf(c, "line %d is not in order: %s", i+1, list[i])
				}
				return 1
			}
		}
		return 0
	}
	slices.SortStableFunc(list, s.compare)
	if s.unique {
		list = slices.CompactFunc(list, func(a, b string) bool { return s.compare(a, b) == 0 })
	}
	call := *c
	if name := o.Value('o', ""); name != "" {
		f, err := os.Create(c.Path(name))
		if err != nil {
			return fail(c, err)
		}
		defer f.Close()
		call.Stdout = f
	}
	out := newOutput(&call)
	for _, l := range list {
		if _, err := out.WriteString(l + end); err != nil {
			return 1
		}
	}
	return out.close(code)
}

type sortOptions struct{ numeric, reverse, fold, blanks, human, version bool }

type sortKey struct {
	sortOptions
	whole                 bool
	startField, startChar int
	endField, endChar     int // 0: to the end of the line; char 0: of the field
}

// parseKey reads F[.C][OPTS][,F[.C][OPTS]].
func parseKey(spec string, global sortOptions) (sortKey, error) {
	k := sortKey{startChar: 1}
	own := false
	read := func(p string) (field, char int, err error) {
		i := strings.IndexFunc(p, func(r rune) bool { return unicode.IsLetter(r) })
		opts := ""
		if i >= 0 {
			p, opts = p[:i], p[i:]
		}
		for _, l := range opts {
			own = true
			switch l {
			case 'n':
				k.numeric = true
			case 'r':
				k.reverse = true
			case 'f':
				k.fold = true
			case 'b':
				k.blanks = true
			case 'h':
				k.human = true
			case 'V':
				k.version = true
			default:
				return 0, 0, fmt.Errorf("%q: option %c is not supported", spec, l)
			}
		}
		f, ch, dot := strings.Cut(p, ".")
		field, err = strconv.Atoi(f)
		if err == nil && dot {
			char, err = strconv.Atoi(ch)
		}
		if err != nil || field < 1 || char < 0 {
			return 0, 0, fmt.Errorf("%q is not a key (example: 2,2n)", spec)
		}
		return field, char, nil
	}
	start, end, two := strings.Cut(spec, ",")
	var err error
	if k.startField, k.startChar, err = read(start); err != nil {
		return k, err
	}
	k.startChar = max(k.startChar, 1)
	if two {
		if k.endField, k.endChar, err = read(end); err != nil {
			return k, err
		}
	}
	if !own {
		k.sortOptions = global
	}
	return k, nil
}

type sorter struct {
	keys                    []sortKey
	sep                     string
	reverse, unique, stable bool
}

func (s *sorter) compare(a, b string) int {
	for i := range s.keys {
		k := &s.keys[i]
		n := k.compare(s.extract(k, a), s.extract(k, b))
		if k.reverse {
			n = -n
		}
		if n != 0 {
			return n
		}
	}
	if s.stable {
		return 0
	}
	n := strings.Compare(a, b)
	if s.reverse {
		n = -n
	}
	return n
}

// extract cuts the key out of a line.
func (s *sorter) extract(k *sortKey, l string) string {
	if k.whole {
		if k.blanks {
			return strings.TrimLeft(l, " \t")
		}
		return l
	}
	from, to := s.position(l, k.startField, k.startChar, k.blanks), len(l)
	if k.endField > 0 {
		if k.endChar == 0 {
			to = s.fieldEnd(l, k.endField)
		} else {
			to = s.position(l, k.endField, k.endChar+1, k.blanks)
		}
	}
	if from >= to {
		return ""
	}
	return l[from:to]
}

// fieldStart is where field n (from 1) starts; without -t the blanks before a
// field belong to it.
func (s *sorter) fieldStart(l string, n int) int {
	at := 0
	for ; n > 1; n-- {
		if s.sep != "" {
			i := strings.Index(l[at:], s.sep)
			if i < 0 {
				return len(l)
			}
			at += i + len(s.sep)
			continue
		}
		for at < len(l) && (l[at] == ' ' || l[at] == '\t') {
			at++
		}
		for at < len(l) && l[at] != ' ' && l[at] != '\t' {
			at++
		}
	}
	return at
}

func (s *sorter) fieldEnd(l string, n int) int {
	at := s.fieldStart(l, n+1)
	if s.sep != "" && at < len(l) || s.sep != "" && at == len(l) && strings.HasSuffix(l, s.sep) && at > 0 && strings.Count(l, s.sep) >= n {
		at -= len(s.sep)
	}
	return at
}

func (s *sorter) position(l string, field, char int, skipBlanks bool) int {
	at := s.fieldStart(l, field)
	if skipBlanks {
		for at < len(l) && (l[at] == ' ' || l[at] == '\t') {
			at++
		}
	}
	for ; char > 1 && at < len(l); char-- {
		_, n := utf8.DecodeRuneInString(l[at:])
		at += n
	}
	return at
}

func (k *sortKey) compare(a, b string) int {
	switch {
	case k.numeric, k.human:
		return compareNumbers(a, b, k.human)
	case k.version:
		return compareVersions(a, b)
	case k.fold:
		return strings.Compare(strings.ToUpper(a), strings.ToUpper(b))
	}
	return strings.Compare(a, b)
}

// compareNumbers compares the numbers at the start, of any length; what is no
// number is 0. human: a unit letter counts first.
func compareNumbers(a, b string, human bool) int {
	na, ia, fa, ua := number(a)
	nb, ib, fb, ub := number(b)
	if na != nb {
		return cmp.Compare(nb, na) // the negative one is less
	}
	n := 0
	if human {
		n = cmp.Compare(ua, ub)
	}
	if n == 0 {
		n = cmp.Compare(len(ia), len(ib))
	}
	if n == 0 {
		n = strings.Compare(ia, ib)
	}
	if n == 0 {
		n = strings.Compare(fa, fb)
	}
	if na == 1 {
		n = -n
	}
	return n
}

// number takes a decimal apart: sign (1 negative), integer and fraction digits
// without needless zeros, unit.
func number(s string) (neg int, integer, fraction string, unit int) {
	s = strings.TrimLeft(s, " \t")
	if strings.HasPrefix(s, "-") {
		neg, s = 1, s[1:]
	}
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	integer = strings.TrimLeft(s[:i], "0")
	if i < len(s) && s[i] == '.' {
		j := i + 1
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		fraction = strings.TrimRight(s[i+1:j], "0")
		i = j
	}
	if integer == "" && fraction == "" {
		return 0, "", "", 0
	}
	if i < len(s) {
		unit = strings.IndexByte("KMGTPEZY", s[i]&^0x20) + 1
	}
	return neg, integer, fraction, unit
}

// compareVersions compares runs of digits by value and the rest by bytes.
func compareVersions(a, b string) int {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	for a != "" && b != "" {
		if digit(a[0]) && digit(b[0]) {
			i, j := 0, 0
			for i < len(a) && digit(a[i]) {
				i++
			}
			for j < len(b) && digit(b[j]) {
				j++
			}
			x, y := strings.TrimLeft(a[:i], "0"), strings.TrimLeft(b[:j], "0")
			if n := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); n != 0 {
				return n
			}
			a, b = a[i:], b[j:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// Seq prints numbers.
func Seq(ctx context.Context, c *unit.Call) int {
	args := c.Args[1:]
	sep, wide, format := "\n", false, ""
	use := func(m string) int {
		fmt.Fprintf(c.Stderr, "seq: %s\nUsage: seq [-w] [-s TEXT] [FIRST [STEP]] LAST\nExample: seq 1 5\n", m)
		return 2
	}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.IndexByte("0123456789.", args[0][1]) < 0 {
		switch {
		case args[0] == "--help":
			use("prints numbers")
			return 0
		case args[0] == "-w":
			wide = true
		case args[0] == "-s" && len(args) > 1:
			sep, args = args[1], args[1:]
		case strings.HasPrefix(args[0], "-s"):
			sep = args[0][2:]
		default:
			return use(args[0] + ": there is no such option")
		}
		args = args[1:]
	}
	if len(args) < 1 || len(args) > 3 {
		return use("one to three numbers are expected")
	}
	first, step, last := 1.0, 1.0, 0.0
	places := 0
	v := make([]float64, len(args))
	for i, a := range args {
		f, err := strconv.ParseFloat(a, 64)
		if err != nil || f != f || f > 1e15 || f < -1e15 {
			return use(strconv.Quote(a) + " is not a number")
		}
		v[i] = f
		if _, frac, ok := strings.Cut(a, "."); ok && i < max(len(args)-1, 1) {
			places = max(places, len(frac))
		}
	}
	switch len(v) {
	case 1:
		last = v[0]
		places = 0
	case 2:
		first, last = v[0], v[1]
	default:
		first, step, last = v[0], v[1], v[2]
	}
	if step == 0 {
		return use("a step of 0 never ends")
	}
	format = "%." + strconv.Itoa(places) + "f"
	if wide {
		w := max(len(fmt.Sprintf(format, first)), len(fmt.Sprintf(format, last)))
		format = "%0" + strconv.Itoa(w) + "." + strconv.Itoa(places) + "f"
	}
	out := newOutput(c)
	// Counted, not added up: a thousand steps of 0.1 must end at 100.
	const slack = 1e-9
	for i := 0; ; i++ {
		x := first + float64(i)*step
		if step > 0 && x > last+slack || step < 0 && x < last-slack || i&0xfff == 0 && ctx.Err() != nil {
			if i > 0 {
				out.WriteByte('\n')
			}
			return out.close(0)
		}
		if i > 0 {
			out.WriteString(sep)
		}
		if _, err := fmt.Fprintf(out, format, x); err != nil {
			return 1
		}
	}
}

// Yes prints a line until nobody reads it any more.
func Yes(ctx context.Context, c *unit.Call) int {
	line := "y"
	if len(c.Args) > 1 {
		line = strings.Join(c.Args[1:], " ")
	}
	block := bytes.Repeat([]byte(line+"\n"), 1+4096/(len(line)+1))
	for ctx.Err() == nil {
		if _, err := c.Stdout.Write(block); err != nil {
			return 1
		}
	}
	return 0
}
