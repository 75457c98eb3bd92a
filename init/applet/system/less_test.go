package system

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/init/applet/internal/fullscreen"
	"weft/init/applet/internal/ptytest"
)

// numbered are n lines "line 1" …
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d\n", i+1)
	}
	return b.String()
}

// newPager shows the text on a screen of rows by cols; it is read in pieces.
func newPager(t *testing.T, text string, rows, cols, piece int) *pager {
	t.Helper()
	p := &pager{rows: rows, cols: cols, names: []string{"f"}}
	p.open = func(string) (*input, error) {
		r := strings.NewReader(text)
		return &input{fd: -1, read: func(b []byte) (int, error) { return r.Read(b[:min(piece, len(b))]) }, close: func() {}}, nil
	}
	if err := p.load(0); err != nil {
		t.Fatal(err)
	}
	p.message = ""
	settle(p)
	return p
}

// settle reads what is needed now, as run does.
func settle(p *pager) {
	buf := make([]byte, 64<<10)
	for p.needs() {
		n, err := p.in.read(buf)
		p.fill(buf[:n], err)
		p.proceed()
	}
}

func press(p *pager, keys string) {
	for _, k := range keys {
		p.key(fullscreen.Key(k))
		settle(p)
	}
}

func TestPagerMoves(t *testing.T) {
	for _, tc := range []struct{ keys, top, status string }{
		{"", "line 1", ":"},
		{" ", "line 10", ":"},
		{"  ", "line 19", ":"},
		{"jj", "line 3", ":"},
		{" k", "line 9", ":"},
		{" b", "line 1", ":"},
		{"d", "line 5", ":"},
		{"dju", "line 2", ":"},
		{"G", "line 92", "(END)"},
		{"Gj ", "line 92", "(END)"},
		{"Gk", "line 91", ":"},
		{"Gg", "line 1", ":"},
		{strings.Repeat(" ", 30), "line 92", "(END)"},
		{"/line 5\r", "line 5", ":"},
		{"/line 5\rn", "line 50", ":"},
		{"/line 5\rnn", "line 51", ":"},
		{"/line 5\rnnN", "line 50", ":"},
		{"/line 5$\rn", "line 5", "not found"},
		{"G?line 5\r", "line 59", ":"},
		{"G?line 5\rn", "line 58", ":"},
		{"G?line 5\r/\r", "line 59", "not found"},
		{"/(\r", "line 1", ""},
		{"n", "line 1", "nothing was looked for yet"},
		{"/x\x7f\x7f\x7f", "line 1", ":"},
		{"/abc\x1b", "line 1", ":"},
		{"/ab", "line 1", "/ab"},
		{":x\r", "line 1", "there is no command :x"},
		{":n", "line 1", "there is no further file"},
	} {
		for _, piece := range []int{7, 64 << 10} {
			p := newPager(t, numbered(100), 10, 40, piece)
			press(p, tc.keys)
			s := p.screen()
			if len(s) != 10 || s[0] != tc.top || tc.status != "" && s[9] != tc.status {
				t.Errorf("%q in pieces of %d: %q … %q", tc.keys, piece, s[0], s[len(s)-1])
			}
		}
	}
	for _, keys := range []string{"q", "Q", "\x03", ":q"} {
		p := newPager(t, "x\n", 10, 40, 1)
		if press(p, keys); !p.done {
			t.Errorf("%q does not end it", keys)
		}
	}
}

func TestPagerText(t *testing.T) {
	p := newPager(t, "a\tb\r\n\x1b[31mred\x1b[0m\x01\xff\u0085\x7f\n"+strings.Repeat("ä", 25)+"\nlast", 8, 10, 100)
	want := []string{"a       b", "^[[31mred^", "[[0m^A<FF>", "<85>^?", strings.Repeat("ä", 10), strings.Repeat("ä", 10), "äääää", ":"}
	if got := p.screen(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q", got)
	}
	press(p, "jjG")
	if got := p.screen(); got[0] != "^[[31mred^" || got[6] != "last" || got[7] != "(END)" {
		t.Errorf("%q", got)
	}
	p = newPager(t, "\x1b[1;31mred\x1b[0m \x1b[2J\n"+strings.Repeat("x", 30)+"\n", 4, 20, 100)
	p.plain, p.chop, p.numbers = true, true, true
	if got := p.screen(); got[0] != "      1 red ^[[2J" || got[1] != "      2 "+strings.Repeat("x", 12) || got[2] != "~" {
		t.Errorf("%q", got)
	}
	p = newPager(t, "", 3, 20, 100)
	if got := p.screen(); strings.Join(got, "|") != "~|~|(END)" {
		t.Errorf("empty: %q", got)
	}
	press(p, " Gkjgb/x\r?\rn")
}

func TestPagerLimit(t *testing.T) {
	line := bytes.Repeat([]byte("0123456789abcdef"), 64)
	line[len(line)-1] = '\n'
	p := &pager{rows: 5, cols: 2000, names: []string{"-"}}
	p.open = func(string) (*input, error) {
		return &input{fd: -1, read: func(b []byte) (int, error) { return copy(b, line), nil }, close: func() {}}, nil
	}
	if err := p.load(0); err != nil {
		t.Fatal(err)
	}
	press(p, "G")
	if got := p.screen()[4]; p.size > maxText+len(line) || !strings.Contains(got, "only 16 MiB") {
		t.Errorf("%d bytes: %q", p.size, got)
	}
}

func TestPagerFault(t *testing.T) {
	p := newPager(t, "x\n", 4, 60, 100)
	p.in.ended = false
	p.fill(nil, errors.New("input/output error"))
	if got := p.screen()[3]; got != "read: input/output error" {
		t.Errorf("%q", got)
	}
}

// TestLessPipe is less where nobody can press a key.
func TestLessPipe(t *testing.T) {
	text := "a\x1b\tb\nno end"
	if r := call(t, Less, text, "less"); r.out != text || r.code != 0 {
		t.Errorf("%+v", r)
	}
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "file\n")
	if r := call(t, Less, "in\n", "more", path, "-", "/nonexistent", "/"); r.out != "file\nin\n" || r.code != 1 || r.err != "more: /nonexistent: no such file or directory\nmore: /: is a directory\n" {
		t.Errorf("%+v", r)
	}
}

func TestLessTerminal(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	write(t, one, numbered(60))
	write(t, two, "second file\n")
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh here")
	}
	cmd := exec.Command(sh, "-c", `before=$(stty -g); "$0" "$1" "$2"; code=$?; [ "$before" = "$(stty -g)" ] && echo "ended with $code, restored"`, self(t), one, two)
	cmd.Env = append(os.Environ(), "BE=less")
	s := ptytest.Start(t, 40, 10, cmd)
	s.WaitFor(one)
	s.Send(" ")
	s.WaitFor("line 18")
	s.Send("\x1b[B")
	s.Until("one line further", func(screen string) bool { return strings.HasPrefix(screen, "line 11\n") })
	s.Resize(40, 5)
	s.Until("a smaller screen", func(screen string) bool {
		return strings.HasPrefix(screen, "line 11\n") && strings.HasSuffix(screen, "line 14\n:")
	})
	s.Send("/e 5.*\r")
	s.Until("what was looked for", func(screen string) bool { return strings.HasPrefix(screen, "line 50\n") })
	s.Send(":n")
	s.WaitFor("second file")
	s.Send("q")
	s.WaitFor("ended with 0, restored")
	s.Exit()
}

// TestLessSlowPipe shows what has come while more is to come, and takes keys from
// the terminal.
func TestLessSlowPipe(t *testing.T) {
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh here")
	}
	cmd := exec.Command(sh, "-c", `BE=less "$0" <&3; echo "ended with $?"`, self(t))
	cmd.ExtraFiles = []*os.File{pr}
	s := ptytest.Start(t, 40, 6, cmd)
	pr.Close()
	io.WriteString(pw, "first\nsec")
	s.WaitFor("first")
	s.WaitFor("sec")
	io.WriteString(pw, "ond\n"+numbered(20))
	s.WaitFor("line 3")
	s.Send("G")
	s.WaitFor("reading...")
	s.Send("\x03")
	s.WaitFor("stopped")
	s.Send("G")
	s.WaitFor("reading...")
	pw.Close()
	s.WaitFor("line 20")
	s.WaitFor("(END)")
	s.Send("q")
	s.WaitFor("ended with 0")
	s.Exit()
}

func TestMore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, numbered(12))
	s := ptytest.Start(t, 40, 8, be(t, "more", path))
	s.WaitFor("line 7")
	s.Send(" ")
	s.WaitFor("(END)")
	s.Send(" ")
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	write(t, path, numbered(3))
	s = ptytest.Start(t, 40, 8, be(t, "more", path))
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.WaitFor("line 3")
}

func FuzzPager(f *testing.F) {
	f.Add([]byte("a\tb\n\x1b[1mx\xff\n"), " Gk?a\r")
	f.Fuzz(func(t *testing.T, text []byte, keys string) {
		if len(text) > 2000 || len(keys) > 100 {
			return
		}
		p := newPager(t, string(text), 6, 12, 50)
		press(p, keys)
		if s := p.screen(); len(s) != 6 {
			t.Fatalf("%d rows", len(s))
		}
	})
}
