package posixre

import (
	"os/exec"
	"strings"
	"testing"
)

var cases = []struct {
	pattern  string
	extended bool
	text     string
	want     string // the match; "-" none
}{
	{"a.c", false, "xabcx", "abc"}, {"a*", false, "aaa", "aaa"}, {"*a", false, "x*a", "*a"}, {`\(ab\)*c`, false, "ababc", "ababc"},
	{"a+", false, "a+", "a+"}, {`a\+`, false, "aaa", "aaa"}, {`a\|b`, false, "b", "b"}, {"a|b", false, "a|b", "a|b"},
	{"a|bc", true, "bc", "bc"}, {"(a|ab)(c|bcd)", true, "abcd", "abcd"}, {"^a", false, "ba", "-"}, {"a^b", false, "a^b", "a^b"},
	{"a$b", false, "a$b", "a$b"}, {"a$", false, "ab", "-"}, {`\(^a\)`, false, "a", "a"}, {"x{2}", true, "xxx", "xx"}, {`x\{2,\}`, false, "xxx", "xxx"},
	{"[]a]*", false, "a]b", "a]"}, {"[^]a]", false, "]ab", "b"}, {"[a-c-]*", false, "b-d", "b-"}, {"[[:digit:]]+", true, "ab12", "12"},
	{`[\.]`, false, `\`, `\`}, {`\.`, false, "a.", "."}, {`\<w`, false, "xw w", "w"}, {"(", false, "(", "("}, {"{", true, "{", "{"}, {"a{,2}", true, "aaa", "aa"},
	{"é.", false, "éü!", "éü"}, {`\$`, true, "$", "$"}, {"()", true, "x", ""}, {`a\{1\}b`, false, "ab", "ab"}, {"a**b", false, "aab", "aab"}, {"x|^y", true, "y", "y"},
	{`[a\]b]`, false, `a]`, "-"}, {`[\n]`, false, "\n", "\n"}, {"a?b", true, "b", "b"}, {"+a", true, "+a", "+a"}, {"^*b", false, "*b", "*b"},
}

func TestMatches(t *testing.T) {
	for _, c := range cases {
		re, err := Compile(c.pattern, Options{Extended: c.extended})
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		got := "-"
		if loc := re.FindStringIndex(c.text); loc != nil {
			got = c.text[loc[0]:loc[1]]
		}
		if got != c.want {
			t.Errorf("%q in %q: %q, want %q", c.pattern, c.text, got, c.want)
		}
	}
}

// TestOracle asks grep -o the same.
func TestOracle(t *testing.T) {
	grep, err := exec.LookPath("grep")
	if err != nil {
		t.Skip("grep is not installed")
	}
	for _, c := range cases {
		if strings.Contains(c.text, "\n") || c.want == "" || c.pattern == "{" || c.pattern == "+a" {
			continue // no line, nothing printed, undefined by POSIX
		}
		mode := "-G"
		if c.extended {
			mode = "-E"
		}
		cmd := exec.Command(grep, mode, "-o", "-e", c.pattern)
		cmd.Stdin = strings.NewReader(c.text + "\n")
		cmd.Env = []string{"LC_ALL=C.UTF-8"}
		out, err := cmd.Output()
		got, _, _ := strings.Cut(string(out), "\n")
		if err != nil {
			got = "-"
		}
		if got != c.want {
			t.Errorf("grep %s -o %q in %q: %q, the table says %q", mode, c.pattern, c.text, got, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for pattern, has := range map[string]string{`\(a`: "not closed", `a\)`: "not opened", `\(a\)\1`: "back-reference", "[a": "not closed", `a\`: "backslash", `x\{a\}`: "numbers", "[[.a.]]": "not supported"} {
		if _, err := Compile(pattern, Options{}); err == nil || !strings.Contains(err.Error(), has) {
			t.Errorf("%q: %v, want an error with %q", pattern, err, has)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, c := range cases {
		f.Add(c.pattern, c.extended)
	}
	f.Fuzz(func(t *testing.T, pattern string, extended bool) {
		re, err := Compile(pattern, Options{Extended: extended})
		if err == nil {
			re.MatchString("some text")
		}
	})
}
