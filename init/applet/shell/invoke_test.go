package shell

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"

	"weft/init/unit"
)

// TestInvocation covers the command line: where commands come from, what the
// exit code is, what goes to stderr.
func TestInvocation(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := write("script", "echo \"$0|$1|$2|$#\"\n", 0o644)
	bare := write("bare", "echo bare $1\n", 0o755) // no #!
	noexec := write("noexec", "echo no\n", 0o644)
	sourced := write("sourced", "echo \"s $1\"\nreturn 3\necho never\n", 0o644)
	wrapper := write("wrapper", "initscript=$1; action=$2; shift 2; . \"$initscript\"; \"$action\" \"$@\"\n", 0o644)
	service := write("service", "start() { echo \"start $1 from ${initscript##*/}\"; }\n", 0o755)
	write("bin", "\x7fELF\x00\x00", 0o755)
	for _, c := range []struct {
		name   string
		args   []string
		stdin  string
		out    string
		errHas string
		status int
	}{
		{name: "command", args: []string{"-c", `echo "$0 $1 $#"`, "name", "a", "b"}, out: "name a 2\n"},
		{name: "command exit", args: []string{"-c", "exit 300"}, status: 44},
		{name: "script", args: []string{script, "x y", "z"}, out: script + "|x y|z|2\n"},
		{name: "stdin", stdin: "echo in; exit 4; echo no", out: "in\n", status: 4},
		{name: "stdin with args", args: []string{"-s", "a", "b"}, stdin: "echo $1 $#", out: "a 2\n"},
		{name: "stdin is shared", stdin: "read x\nhello\necho got $x\ncat\nrest\n", out: "got hello\nrest\n"},
		{name: "no script", args: []string{"/nonexistent"}, errHas: "cannot open", status: 127},
		{name: "errexit", args: []string{"-ec", "false; echo no"}, status: 1},
		{name: "nounset", args: []string{"-uc", "echo $nope"}, errHas: "nope: parameter not set", status: 2},
		{name: "xtrace", args: []string{"-xc", "x='a b'; echo $x"}, out: "a b\n", errHas: "+ x='a b'\n+ echo a b\n"},
		{name: "noexec", args: []string{"-nc", "echo no"}},
		{name: "noexec finds mistakes", args: []string{"-nc", "if true; then"}, errHas: "syntax error", status: 2},
		{name: "runs up to the mistake", args: []string{"-c", "echo a\nif ;\n"}, out: "a\n", errHas: "line 2: syntax error", status: 2},
		{name: "nothing after exit is read", args: []string{"-c", "echo a; exit 0\n)))((\n"}, out: "a\n"},
		{name: "unknown option", args: []string{"-Z"}, errHas: "there is no such option", status: 2},
		{name: "ENOEXEC", args: []string{"-c", bare + " q"}, out: "bare q\n"},
		{name: "not executable", args: []string{"-c", noexec}, errHas: "permission denied", status: 126},
		{name: "not found", args: []string{"-c", "nosuchcommand"}, errHas: "nosuchcommand: not found", status: 127},
		{name: "a folder", args: []string{"-c", dir}, errHas: "is a directory", status: 126},
		{name: "not a script", args: []string{filepath.Join(dir, "bin")}, errHas: "is a program", status: 126},
		{name: "source", args: []string{"-c", ". " + sourced + " arg; echo $?"}, out: "s arg\n3\n"},
		{name: "source missing", args: []string{"-c", ". ./nosuch; echo no"}, errHas: "cannot open", status: 2},
		{name: "rc.common", args: []string{wrapper, service, "start", "now"}, out: "start now from service\n"},
		{name: "killed", args: []string{"-c", "sh -c 'kill -9 $$'; echo $?"}, out: "137\n"},
		{name: "readonly", args: []string{"-c", "readonly x=1; x=2; echo no"}, errHas: "x: is read only", status: 2},
		{name: "error operand", args: []string{"-c", "echo ${x:?must be set}; echo no"}, errHas: "x: must be set", status: 2},
		{name: "special builtin redirect", args: []string{"-c", ": </nonexistent; echo no"}, errHas: "cannot open", status: 2},
		{name: "command tames", args: []string{"-c", "command : </nonexistent; echo on"}, out: "on\n", errHas: "cannot open"},
		{name: "arrays", args: []string{"-c", "x=(1 2)"}, errHas: "arrays are bash's", status: 2},
		{name: "prefix assignment", args: []string{"-c", "X=1 env | grep ^X=; echo ${X-unset}; f() { echo $X; }; X=2 f; X=3 :; echo $X"}, out: "X=1\nunset\n2\n3\n"},
		{name: "exec descriptor", args: []string{"-c", "exec 9>" + dir + "/nine; echo x >&9; sh -c 'echo child >&9'; cat " + dir + "/nine"}, out: "x\nchild\n"},
		{name: "inherited closed", args: []string{"-c", "echo x >&7"}, errHas: "bad file descriptor", status: 1},
		{name: "inline applet", args: []string{"-c", "cd /usr; X=5 weft-pid; echo $?; echo abc | weft-upper | cat; echo $(echo q | weft-upper)"}, out: "5 /usr\n7\nABC\nQ\n"},
		{name: "broken pipe", args: []string{"-c", "while echo y; do :; done | head -1; yes | head -2"}, out: "y\ny\ny\n"},
		{name: "big pipe", args: []string{"-c", "head -c 300000 /dev/zero | tr '\\0' x | wc -c | tr -d ' '; x=$(head -c 200000 /dev/zero | tr '\\0' y); echo ${#x}"}, out: "300000\n200000\n"},
		{name: "endless recursion", args: []string{"-c", "f() { f; }; f"}, errHas: "called itself", status: 2},
		{name: "background outlives", args: []string{"-c", "(sleep 0.1; echo late >" + dir + "/late) & exit 0"}},
		{name: "locals in background", args: []string{"-c", "f() { local v=loc; g; }; g() { { echo $v $1; } & wait; }; f"}, out: "loc\n"},
		{name: "wait for all", args: []string{"-c", "{ for i in 1 2 3; do (echo $i) & done; wait; echo 4; } | sort"}, out: "1\n2\n3\n4\n"},
		{name: "cd fails", args: []string{"-c", "cd /nonexistent || echo $?"}, out: "1\n", errHas: "cd: /nonexistent"},
		{name: "help", args: []string{"--help"}, out: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := run(t, self(t), append([]string{"sh"}, c.args...), c.stdin, dir)
			if c.name == "help" {
				if !strings.Contains(got.stdout, "Usage:") || got.status != 0 {
					t.Errorf("help: %+v", got)
				}
				return
			}
			if got.stdout != c.out || got.status != c.status || !strings.Contains(got.stderr, c.errHas) || c.errHas == "" && got.stderr != "" {
				t.Errorf("got stdout %q stderr %q status %d\nwant stdout %q stderr with %q status %d", got.stdout, got.stderr, got.status, c.out, c.errHas, c.status)
			}
		})
	}
}

// TestInProcess runs the applet with streams that are no files, as main's tests do.
func TestInProcess(t *testing.T) {
	var out, errOut bytes.Buffer
	code := Sh(t.Context(), &unit.Call{
		Args:   []string{"sh", "-c", "cat; echo err >&2; exit 3"},
		Stdin:  strings.NewReader("from a reader"),
		Stdout: &out,
		Stderr: &errOut,
		Dir:    "/",
		Getenv: os.Getenv,
	})
	if code != 3 || out.String() != "from a reader" || errOut.String() != "err\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, &out, &errOut)
	}
}

func TestContextEndsShell(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan int)
	go func() {
		done <- Sh(ctx, &unit.Call{Args: []string{"sh", "-c", "echo up; sleep 1000; echo no"}, Stdout: w, Stderr: w, Dir: "/", Getenv: os.Getenv})
		w.Close()
	}()
	b := make([]byte, 3)
	if _, err := r.Read(b); err != nil {
		t.Fatal(err)
	}
	cancel()
	if code := <-done; code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"?", "", false}, {"a*b*c", "aXXbYYc", true}, {"a*b*c", "aXXbYY", false},
		{"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[]]", "]", true}, {"[a", "[a", true}, {`\*`, "*", true}, {`\*`, "x", false},
		{"[[:alpha:]]*", "x1", true}, {"[[:alpha:]]*", "1x", false}, {"*.[ch]", "x.c", true}, {"é?", "éü", true}, {"[a-]", "-", true},
		{"**", "abc", true}, {"*a", "aaab", false}, {`[\]]`, "]", true}, {"x[", "x[", true},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// FuzzMatch holds the matcher against regular expressions for the patterns that
// have an obvious one, and against quoting for all.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("[a-z]*", "q")
	f.Add(`\[`, "[")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if !match(quotePattern(s), s) {
			t.Errorf("the quoted pattern %q does not match %q", quotePattern(s), s)
		}
		if unquotePattern(quotePattern(s)) != s {
			t.Errorf("quoting %q does not come back", s)
		}
		got := match(pattern, s)
		if strings.ContainsAny(pattern, `[\`) || !utf8.ValidString(pattern) || !utf8.ValidString(s) || len(pattern) > 20 || len(s) > 200 {
			return
		}
		var re strings.Builder
		for _, r := range pattern {
			switch r {
			case '*':
				re.WriteString("(?s:.*)")
			case '?':
				re.WriteString("(?s:.)")
			default:
				re.WriteString(regexp.QuoteMeta(string(r)))
			}
		}
		if want := regexp.MustCompile("^(?:" + re.String() + ")$").MatchString(s); got != want {
			t.Errorf("match(%q, %q) = %v, a regular expression says %v", pattern, s, got, want)
		}
	})
}

// FuzzExpand looks for crashes in expansion, arithmetic and patterns. Nothing is
// executed: words with a command substitution are left out.
func FuzzExpand(f *testing.F) {
	f.Add(`${x#?}$((1+2*(x=3)))${y:-a b}${x//a/b}${x:1:2}"$@"`)
	f.Add("~/x ${#x} ${x%%*} $'a\\tb' ${1+\"$@\"}")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 300 {
			return
		}
		var words []*syntax.Word
		for w, err := range syntax.NewParser().WordsSeq(strings.NewReader(text)) {
			if err != nil {
				return
			}
			for n := range syntax.Preorder(w) {
				switch n.(type) {
				case *syntax.CmdSubst, *syntax.ProcSubst:
					return
				}
			}
			words = append(words, w)
		}
		s, _, _ := newShell(t.Context(), &unit.Call{Args: []string{"sh"}, Dir: t.TempDir()})
		defer s.proc.close()
		s.params = []string{"one", "t w o", "*"}
		s.set("x", "a*b:c")
		s.set("IFS", " :")
		s.guard(func() { s.fields(words) })
		s.guard(func() {
			for _, w := range words {
				s.pattern(w)
				s.document(w)
			}
		})
	})
}
