package text

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/applet/options"
	"weft/init/unit"
)

var table = map[string]unit.Func{
	"cut": Cut, "diff": Diff, "expr": Expr, "fold": Fold, "grep": Grep, "egrep": Grep, "fgrep": Grep, "head": Head, "hexdump": Hexdump, "nl": Nl, "paste": Paste,
	"rev": Rev, "sed": Sed, "seq": Seq, "sort": Sort, "strings": Strings, "tac": Tac, "tail": Tail, "tee": Tee, "tr": Tr, "uniq": Uniq, "wc": Wc, "xxd": Xxd, "yes": Yes,
}

const sample = `root:x:0:0:root:/root:/bin/ash
daemon:*:1:1:daemon:/var:/bin/false

# a comment line
option ip 192.168.1.1
	option mask	255.255.255.0
Mixed CASE and ünïcode
10 ten
9 nine
9 nine
100 hundred
-3 minus
1.5 half
a.b*c [x] $y ^z
`

// words splits a command line as a shell does, quotes only.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			if n := len(out) - 1; n >= 0 && strings.HasSuffix(out[n], "\x01") {
				out[n] = strings.TrimSuffix(out[n], "\x01") + part
			} else {
				out = append(out, part)
			}
			continue
		}
		f := strings.Fields(part)
		if part != "" && !strings.HasSuffix(part, " ") && len(f) > 0 {
			f[len(f)-1] += "\x01" // goes on with the quoted part
		}
		out = append(out, f...)
	}
	for i := range out {
		out[i] = strings.TrimSuffix(out[i], "\x01")
	}
	return out
}

func do(t *testing.T, dir, stdin string, args []string) (string, string, int) {
	t.Helper()
	f := table[args[0]]
	if f == nil {
		t.Fatalf("no applet %s", args[0])
	}
	var o, e bytes.Buffer
	code := f(t.Context(), &unit.Call{Args: args, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &e, Dir: dir, Getenv: func(string) string { return "" }})
	return o.String(), e.String(), code
}

func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"f": sample, "g": "one\ntwo\nthree\nfour\n", "h": "one\n2\nthree\nfour\nfive", "empty": "", "nonl": "last", "bin": "a\x00b\x01\xff\n0123456789abcdefXYZ", "d/x": "in folder\n", "pat": "root\nten\n", "tabs": "a\tb\tcc dd ee\nshort\n", "dup": strings.Repeat("0123456789abcdef", 4) + "end"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestAgainstHost runs each line with ours and with the host's command (GNU):
// output and exit code must agree.
func TestAgainstHost(t *testing.T) {
	for line := range strings.Lines(`
head f
head -n 2 f
head -3 f g
head -c 5 f
head -n -3 g
head -q -n1 f g
head nonexistent
head -n 1 nonl
tail f
tail -n 2 f
tail -n +12 f
tail -c 4 f
tail -c +5 g
tail -n 0 f
tail -n 100 g
tail -n 1 nonl
tail nonexistent g
wc f
wc -l f
wc -l f g
wc -w f
wc -c f g empty
wc -m f
wc -L f
wc -lw nonexistent g
sort f
sort -n f
sort -rn f
sort -u f
sort -t: -k3,3n f
sort -k2 f
sort -k2,2 -k1,1n f
sort -f f
sort -c f
sort -c g
sort -n -u f
sort -h f
sort -b -k2,2r f
sort -r g
sort -t: -k1.2,1.3 f
sort -o g g
uniq f
uniq -c f
uniq -d f
uniq -u f
uniq -i f
uniq -f1 f
uniq -w2 f
cut -d: -f1 f
cut -d: -f1,3-4 f
cut -d: -f5- -s f
cut -c1-3 g
cut -b2 g
cut -d: -f2- --output-delimiter=+ f
cut -f1 f
cut --complement -d: -f1 f
tr a-z A-Z <f
tr -d 0-9 <f
tr -s ' ' <f
tr -cd 'a-z\n' <f
tr '[:lower:]' '[:upper:]' <f
tr -s '[:space:]' '\n' <f
tr abc x <f
tr -c 'a-z\n' . <g
tr 'a-c' '[x*]' <f
tr '\012' , <g
tr -ds a e <f
tr -t <f
grep root f
grep -i mixed f
grep -v o f
grep -c o f
grep -n ten f
grep -l root f g
grep -L root f g
grep -q root f
grep -q nothere f
grep nothere f
grep -o '[0-9][0-9]*' f
grep -E '(ten|nine)$' f
grep -E '^[0-9]+ ' f
grep 'nine\|ten' f
grep -F 'a.b*c [x]' f
grep -x 'one' g h
grep -w option f
grep -e root -e ten f
grep -f pat f
grep -A1 root f
grep -B1 ten f
grep -C1 comment f
grep -n -A1 -B1 nine f
grep -m1 nine f
grep -h one g h
grep -H one g
grep one g h nonexistent
grep -s one nonexistent
grep -r folder d
grep -r one .
grep '' f
grep -c '' empty
grep -v '' f
grep '\.' f
grep '^$' f
grep '[]x]' f
grep '[^a-z]$' f
grep -E 'a|' g
grep -oi 'O' g
grep -on e g
grep -E 'o{2}' f
grep '\$y' f
grep 'c \[' f
grep -c nine f g
grep -io 'case\|MIXED' f
grep -e -3 f
grep b bin
grep -a b bin
grep -E '(' f
grep -vn e g
grep -ow 'nin[a-z]*' f
grep -x -F one g
egrep 'one|two' g
fgrep '[x]' f
sed -n 2p g
sed 2d g
sed '$d' g
sed -n '$p' f
sed 's/o/0/' g
sed 's/o/0/g' g
sed 's/o/0/2' f
sed -n 's/one/1/p' g
sed 's/\(o\)\(n\)/\2\1/' g
sed -E 's/(o)(n)/\2\1/' g
sed 's|/|_|g' f
sed 's/[0-9]\{1,\}/<&>/g' f
sed -E 's/[0-9]+/<&>/g' f
sed '/two/,/four/d' g
sed '/two/,+1d' g
sed '2,3!d' g
sed '1~2d' g
sed '2q' g
sed '2q5' g
sed '/three/Q' g
sed -n '/one/,/two/{s/o/0/;p}' g
sed '2a\~added' g
sed '2i\~a\~b' g
sed '/two/c\~new' g
sed '2{~s/t/T/~p~}' g
sed 's/one/a\~b/' g
sed '2a added' g
sed '2i before' g
sed '2c changed' g
sed '2,3c changed' g
sed '$a end' g
sed 'y/abc/xyz/' f
sed = g
sed -n '$=' g
sed 'N;s/\n/+/' g
sed ':a;N;$!ba;s/\n/,/g' g
sed -n 'H;${x;s/\n/,/g;p}' g
sed '1!G;h;$!d' g
sed -e 1d -e 's/t/T/' g
sed 's/x*/-/g' g
sed 's/o*$/!/' g
sed 's/^/> /' g
sed 's/a\|o/_/g' f
sed 's/one/a\nb/' g
sed 's/one/a\tb/' g
sed 's/\//x/g' f
sed 's,a\,b,x,' f
sed '/^$/d;/^#/d' f
sed -n '/ip/s/.* \(.*\)/\1/p' f
sed 's/.*/\U&/' g
sed 's/\b./\u&/g' g
sed 's/o/0/I' f
sed '0,/nine/s/nine/NINE/' f
sed '/nine/{n;d}' f
sed -n '/two/{n;p}' g
sed 's/e$/E/;t;s/$/ no/' g
sed -n l bin
sed '3r h' g
sed 's/ON/x/i' g
sed '' nonl
sed 's/last/x/' nonl g
sed -n '2{p;q}' g
sed 'P;D' g
sed '$!N;P;D' g
sed 's/[/]/X/g' f
sed '2{h;d};4G' g
sed -s -n '$p' g h
sed --expression=1d g
sed 's/a/b' g
sed 'k' g
sed '/x' g
sed 'b nolabel' g
sed '{p' g
sed 's/\(a/b/' g
sed p nonexistent
sed -i.bak s/one/ONE/ g
sed -i s/one/ONE/ g h
sed -n -i p g
sed -n '1!G;h;$p' g
sed '/one/!s/$/./' g
sed 's/\./,/2' f
sed "s/[[:space:]]/_/g" f
sed '1,/two/d' g
sed '2,1p' g
sed 's/&/and/;s/n/\&/' g
tac g
rev g
nl f
nl -ba g
fold -w 5 g
fold -s -w 8 tabs
paste g h
paste -d, g h
paste -s g
paste -sd, g h
seq 5
seq 2 4
seq 1 2 7
seq 5 -2 1
seq -w 8 11
seq -s, 3
seq 0.5 0.5 2
seq 3 1
seq 1 0 2
hexdump bin
hexdump -C bin
hexdump -C dup
hexdump -v -n 6 -s 1 -e '5/1 "%02x:" 1/1 "%02x"' bin
hexdump -n 4 -e '1/4 "%08x\n"' g
hexdump -e '1/1 "%_p"' g
hexdump -x g
hexdump -b g
xxd bin
xxd -p bin
xxd -l 4 -s 1 bin
strings bin
strings -n 3 -t d bin
diff -q g h
diff g g
diff -u empty g
expr 1 + 2
expr 2 '*' 3 - 1
expr abc : 'a\(.\)c'
expr abc : 'ab'
expr 5 '>' 10
expr a '<' b
expr length hello
expr substr hello 2 3
expr index hello l
expr 0 '|' x
expr '(' 1 + 2 ')' '*' 3
expr 1 +
expr 1 / 0
expr x = x
expr -1 + 1
`) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		t.Run(line, func(t *testing.T) { againstHost(t, line) })
	}
}

func againstHost(t *testing.T, line string) {
	if strings.HasPrefix(line, "sed ") && !strings.Contains(line, "1~2") {
		line = strings.ReplaceAll(line, "~", "\n") // ~ stands for a newline in the table
	}
	cmdline, from, _ := strings.Cut(line, " <")
	args := words(cmdline)
	host, err := exec.LookPath(args[0])
	if err != nil {
		t.Skipf("%s is not installed", args[0])
	}
	ours, theirs := folder(t), folder(t)
	stdin := ""
	if from != "" {
		b, err := os.ReadFile(filepath.Join(ours, from))
		if err != nil {
			t.Fatal(err)
		}
		stdin = string(b)
	}
	out, errOut, code := do(t, ours, stdin, args)
	cmd := exec.Command(host, args[1:]...)
	cmd.Dir = theirs
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"}
	if args[0] == "sort" || args[0] == "tr" {
		cmd.Env[0] = "LC_ALL=C"
	}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	cmd.Run() // the exit code is compared below
	want := o.String()
	if args[0] == "grep" && strings.Contains(line, "-r") {
		out, want = sortLines(out), sortLines(want)
	}
	if args[0] == "diff" {
		out, want = noTimes(out), noTimes(want)
	}
	if out != want {
		t.Errorf("stdout %q\n   want %q", out, want)
	}
	if exit := cmd.ProcessState.ExitCode(); (code == 0) != (exit == 0) || args[0] == "grep" && code != exit || strings.HasPrefix(line, "sed '2q5") && code != exit || args[0] == "expr" && exit < 2 && code != exit {
		t.Errorf("exit code %d (%s), the host's %d (%s)", code, errOut, exit, &e)
	}
	for _, f := range []string{"g", "h", "g.bak"} {
		a, aerr := os.ReadFile(filepath.Join(ours, f))
		b, berr := os.ReadFile(filepath.Join(theirs, f))
		if string(a) != string(b) || (aerr == nil) != (berr == nil) {
			t.Errorf("file %s is %q, want %q", f, a, b)
		}
	}
}

func sortLines(s string) string {
	l := strings.SplitAfter(s, "\n")
	for i := range l {
		for j := i + 1; j < len(l); j++ {
			if l[j] < l[i] {
				l[i], l[j] = l[j], l[i]
			}
		}
	}
	return strings.Join(l, "")
}

func noTimes(s string) string {
	var b strings.Builder
	for l := range strings.Lines(s) {
		if strings.HasPrefix(l, "--- ") || strings.HasPrefix(l, "+++ ") {
			l, _, _ = strings.Cut(l, "\t")
			l = strings.TrimSuffix(l, "\n") + "\n"
		}
		b.WriteString(l)
	}
	return b.String()
}

func TestDiffApplies(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		t.Skip("patch is not installed: nothing to check the output with")
	}
	variants := []string{"", "a\n", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n", "a\nB\nc\nd\ne\nf\ng\nh\nI\nj\nk\n", "j\ni\nh\n", "b\nc\nd\ne\nf\ng\nh\ni\nj", sample, strings.ToUpper(sample)}
	for _, a := range variants {
		for _, b := range variants {
			dir := t.TempDir()
			for name, text := range map[string]string{"a": a, "b": b} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out, errOut, code := do(t, dir, "", []string{"diff", "a", "b"})
			if (code == 0) != (a == b) {
				t.Fatalf("code %d for %q and %q: %s", code, a, b, errOut)
			}
			if code == 0 {
				continue
			}
			cmd := exec.Command(patch, "-s", "-E", filepath.Join(dir, "a"))
			cmd.Stdin = strings.NewReader(out)
			if msg, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("patch: %v %s; diff:\n%s", err, msg, out)
			}
			got, _ := os.ReadFile(filepath.Join(dir, "a")) // -E removes an empty one
			if string(got) != b {
				t.Errorf("patched %q, want %q; diff:\n%s", got, b, out)
			}
		}
	}
}

func TestTeeAndTailFollow(t *testing.T) {
	dir := folder(t)
	out, _, code := do(t, dir, "text\n", []string{"tee", "-a", "g", "new"})
	g, _ := os.ReadFile(filepath.Join(dir, "g"))
	if code != 0 || out != "text\n" || !strings.HasSuffix(string(g), "four\ntext\n") {
		t.Errorf("tee: %d %q %q", code, out, g)
	}
	if _, errOut, code := do(t, dir, "text\n", []string{"tee", "nodir/x"}); code != 1 || errOut == "" {
		t.Errorf("tee to nowhere: %d %q", code, errOut)
	}
}

func TestWrongUse(t *testing.T) {
	for _, line := range []string{"head -n x", "tail -Q", "wc -z", "sort -k x", "sort -M", "cut f", "cut -f 0", "cut -f a-", "tr", "tr a", "tr b-a x", "grep", "grep -A x y", "sed", "seq x", "uniq -q", "hexdump -e x", "diff a", "paste -q"} {
		if _, errOut, code := do(t, t.TempDir(), "", strings.Fields(line)); code != 2 || !strings.Contains(errOut, "Usage: ") {
			t.Errorf("%s: %d %q", line, code, errOut)
		}
	}
}

func FuzzSed(f *testing.F) {
	for _, s := range []string{"s/a/b/g", ":a;N;$!ba;s/\\n/,/g", "/x/,/y/{p;d}", "y/abc/xyz/", "1~2!d;$a\\\ntext", "0,/x/I{=;l;q3}", "2,+1c\\\nnew"} {
		f.Add(s, "one\ntwo\nabc\n")
	}
	f.Fuzz(func(t *testing.T, script, text string) {
		prog, err := parseSed(script, false)
		if err != nil {
			return
		}
		for _, c := range prog.cmds {
			if strings.IndexByte("wWrRbtTD", c.name) >= 0 || c.name == 's' && c.text != "" {
				return // files, and loops that may be endless
			}
		}
		var out bytes.Buffer
		s := newStream(t.Context(), &unit.Call{Args: []string{"sed"}, Stdin: strings.NewReader(text), Stdout: &out, Stderr: &out}, prog, false, &out)
		s.finish(s.run([]string{"-"}, false))
	})
}

func FuzzDiff(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nc\nd\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		la, lb := splitLines(a), splitLines(b)
		if len(la)+len(lb) > 2000 {
			return
		}
		d := &differ{ctx: t.Context(), o: noOptions(t)}
		var got []string
		at := 0
		for _, e := range d.edits(la, lb) {
			got = append(got, la[at:e.a0]...)
			got = append(got, lb[e.b0:e.b1]...)
			at = e.a1
		}
		got = append(got, la[at:]...)
		if strings.Join(got, "") != strings.Join(lb, "") {
			t.Errorf("the edits of %q give %q, want %q", a, got, lb)
		}
	})
}

func noOptions(t *testing.T) *options.Set {
	o, code := options.Parse(&unit.Call{Args: []string{"diff"}}, "wbi", "")
	if code >= 0 {
		t.Fatal("an empty command line was refused")
	}
	return o
}

func TestSortVersionsAndUnits(t *testing.T) {
	for _, c := range []struct{ args, in, want string }{
		{"-V", "1.10\n1.9\n1.9-rc1\n01.2\n", "01.2\n1.9\n1.9-rc1\n1.10\n"},
		{"-h", "1G\n2K\n900\n3M\n", "900\n2K\n3M\n1G\n"},
		{"-n", "-2\n10\n9.5\nx\n-1.5\n", "-2\n-1.5\nx\n9.5\n10\n"},
	} {
		if out, _, code := do(t, t.TempDir(), c.in, []string{"sort", c.args}); out != c.want || code != 0 {
			t.Errorf("sort %s: %d %q, want %q", c.args, code, out, c.want)
		}
	}
}
