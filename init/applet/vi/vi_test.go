package vi

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/init/applet/internal/ptytest"
	"weft/init/unit"
)

// TestMain lets the test binary be vi, so that a pseudo terminal can run it.
func TestMain(m *testing.M) {
	if os.Getenv("BE_VI") != "" {
		os.Exit(Vi(context.Background(), unit.OSCall()))
	}
	os.Exit(m.Run())
}

func typed(e *editor, keys string) {
	b := []byte(keys)
	for len(b) > 0 {
		k, n := decodeKey(b, false)
		b = b[n:]
		e.key(k)
	}
}

func TestCommands(t *testing.T) {
	const three = "one two\nthree four\nfive\n"
	for _, tc := range []struct {
		name, in, keys, want string
		row, col             int
	}{
		{"insert", "", "ihello\x1b", "hello\n", 0, 4},
		{"append at end", "ab\n", "Ac\x1b", "abc\n", 0, 2},
		{"insert at first word", "  ab\n", "Ix\x1b", "  xab\n", 0, 2},
		{"open below keeps indent", "\ta\n", "ob\x1b", "\ta\n\tb\n", 1, 1},
		{"open above", "a\n", "Ob\x1b", "b\na\n", 0, 0},
		{"split a line", "ab\n", "a\r\x1b", "a\nb\n", 1, 0},
		{"backspace joins", "a\nb\n", "ji\x7f\x1b", "ab\n", 0, 0},
		{"delete word", three, "dw", "two\nthree four\nfive\n", 0, 0},
		{"delete last word stays in line", three, "wdw", "one \nthree four\nfive\n", 0, 3},
		{"delete two words", "a b c\n", "2dw", "c\n", 0, 0},
		{"delete counts multiply", "a b c d e\n", "2d2w", "e\n", 0, 0},
		{"change word leaves blank", three, "cwuno\x1b", "uno two\nthree four\nfive\n", 0, 2},
		{"delete line", three, "jdd", "one two\nfive\n", 1, 0},
		{"delete last line", three, "Gdd", "one two\nthree four\n", 1, 0},
		{"delete every line", three, "dG", "", 0, 0},
		{"delete to top", three, "jdgg", "five\n", 0, 0},
		{"delete down", three, "dj", "five\n", 0, 0},
		{"delete to end", three, "wD", "one \nthree four\nfive\n", 0, 3},
		{"change line keeps indent", "  a b\nc\n", "ccx\x1b", "  x\nc\n", 0, 2},
		{"change the only line", "a b\n", "ccx\x1b", "x\n", 0, 0},
		{"x and counts", "abcdef\n", "l3x", "aef\n", 0, 1},
		{"x at the end", "ab\n", "$x", "a\n", 0, 0},
		{"yank and put line", "a\nb\n", "yyjp", "a\nb\na\n", 2, 0},
		{"put before", "a\nb\n", "jddP", "b\na\n", 0, 0},
		{"xp swaps", "ab\n", "xp", "ba\n", 0, 1},
		{"put a part twice", "ab\n", "yl2p", "aaab\n", 0, 2},
		{"join", "a\n  b\nc\n", "J", "a b\nc\n", 0, 1},
		{"toggle case", "aBc\n", "3~", "AbC\n", 0, 2},
		{"replace", "abc\n", "2rx", "xxc\n", 0, 1},
		{"replace mode", "abc\n", "Rxy\x1b", "xyc\n", 0, 1},
		{"find", "a=b=c\n", "f=x", "ab=c\n", 0, 1},
		{"find again", "a=b=c\n", "f=;x", "a=bc\n", 0, 3},
		{"till", "a=b=c\n", "dt=", "=b=c\n", 0, 0},
		{"bracket", "f(a(b)c)d\n", "ld%", "fd\n", 0, 1},
		{"undo", "ab\n", "xxu", "b\n", 0, 0},
		{"undo all, redo one", "ab\n", "xxuu\x12", "b\n", 0, 0},
		{"undo an insert in one step", "a\n", "ibcd\x1bu", "a\n", 0, 0},
		{"repeat delete", "abcd\n", "x..", "d\n", 0, 0},
		{"repeat insert", "a\nb\n", "A;\x1bj.", "a;\nb;\n", 1, 1},
		{"repeat change", "a b c\n", "cwx\x1bw.w.", "x x x\n", 0, 4},
		{"repeat with a new count", "abcdef\n", "x3.", "ef\n", 0, 0},
		{"motions do not become the change", "ab\ncd\n", "xj.", "b\nd\n", 1, 0},
		{"shift", "a\n", ">>", "\ta\n", 0, 1},
		{"unshift", "\ta\n", "<<", "a\n", 0, 0},
		{"search", three, "/fo\rx", "one two\nthree our\nfive\n", 1, 6},
		{"search wraps", three, "G/one\rx", "ne two\nthree four\nfive\n", 0, 0},
		{"search back", three, "G?t\rx", "one two\nhree four\nfive\n", 1, 0},
		{"next", "a b a b a\n", "/a\rnx", "a b a b \n", 0, 7},
		{"delete to a match", "ab cd ef\n", "d/ef\r", "ef\n", 0, 0},
		{"substitute", three, ":%s/o/0/g\r", "0ne tw0\nthree f0ur\nfive\n", 1, 0},
		{"substitute groups", "key=val\n", ":s/(.*)=(.*)/\\2=\\1 &/\r", "val=key key=val\n", 0, 0},
		{"substitute in a range", "a\na\na\n", ":2,3s/a/b/\r", "a\nb\nb\n", 2, 0},
		{"substitute with a slash", "/a\n", ":s|/|x|\r", "xa\n", 0, 0},
		{"substitute is one undo", "a\na\n", ":%s/a/b/\ru", "a\na\n", 0, 0},
		{"go to line", three, ":3\rx", "one two\nthree four\nive\n", 2, 0},
		{"delete a range", three, ":1,2d\r", "five\n", 0, 0},
		{"arrows in insert", "ab\n", "i\x1b[C\x1b[Cx\x1b", "abx\n", 0, 2},
		{"utf-8", "hé€\n", "lx", "h€\n", 0, 1},
		{"bad utf-8 survives", "a\xffb\n", "x", "\xffb\n", 0, 0},
		{"no line feed at the end stays", "ab", "x", "b", 0, 0},
		{"control keys are not typed", "a\n", "i\x01\x02\x1b", "a\n", 0, 0},
		{"escape drops a half command", "ab\n", "d\x1bx", "b\n", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEditor("f", decode([]byte(tc.in)), 24, 80)
			e.clamp()
			typed(e, tc.keys)
			if got := string(e.encode()); got != tc.want {
				t.Errorf("text %q, want %q (%s)", got, tc.want, e.message)
			}
			if e.cur != (position{tc.row, tc.col}) {
				t.Errorf("cursor %v, want %d,%d", e.cur, tc.row, tc.col)
			}
		})
	}
}

func TestScreen(t *testing.T) {
	e := newEditor("/etc/x", decode([]byte("a\tb\n\x01\xfe\n"+strings.Repeat("y", 30)+"\n")), 6, 20)
	e.clamp()
	typed(e, ":set nu\r")
	got, row, col := e.view()
	want := []string{"1 a       b", `2 ^A\xfe`, "3 " + strings.Repeat("y", 18), "~", "~", "/etc/x 1/3"}
	if d := cmp.Diff(want, got); d != "" || row != 0 || col != 2 {
		t.Errorf("screen (-want +got) cursor %d,%d:\n%s", row, col, d)
	}
	typed(e, "G$")
	got, _, col = e.view()
	if !strings.HasPrefix(got[2], "3 y") || col >= 20 {
		t.Errorf("the end of a long line is not on the screen: column %d, %q", col, got)
	}
	for range 40 {
		typed(e, "ox\x1b")
	}
	got, row, _ = e.view()
	if row != 4 || !strings.HasSuffix(got[4], "x") {
		t.Errorf("the cursor left the screen: row %d of %q", row, got)
	}
}

func TestQuitGuards(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	os.WriteFile(other, []byte("keep\n"), 0o600)
	e := newEditor(path, decode([]byte("x\n")), 24, 80)
	typed(e, "ihi\x1b:q\r")
	if e.quit || !strings.Contains(e.message, ":q!") {
		t.Errorf("quit with changes: %v %q", e.quit, e.message)
	}
	typed(e, ":w "+other+"\r")
	if b, _ := os.ReadFile(other); string(b) != "keep\n" {
		t.Errorf(":w overwrote another file with %q", b)
	}
	typed(e, ":w\r:q\r")
	if b, _ := os.ReadFile(path); string(b) != "hix\n" || !e.quit {
		t.Errorf("after :w :q: %q, quit %v (%s)", b, e.quit, e.message)
	}
}

func TestSaveKeepsModeAndLink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	os.WriteFile(real, []byte("old\n"), 0o640)
	os.Symlink("real", link)
	if err := save(link, []byte("new\n")); err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(real)
	b, _ := os.ReadFile(real)
	if l, err := os.Readlink(link); err != nil || l != "real" || st.Mode().Perm() != 0o640 || string(b) != "new\n" {
		t.Errorf("link %q (%v), mode %v, content %q", l, err, st.Mode(), b)
	}
	if err := save(filepath.Join(dir, "none", "x"), nil); err == nil {
		t.Error("wrote into a folder that is not there")
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".vi-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRefusesBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bin")
	os.WriteFile(path, []byte("ELF\x00\x01"), 0o600)
	if _, _, err := load(path); err == nil || !strings.Contains(err.Error(), "NUL") {
		t.Errorf("got %v", err)
	}
}

func TestTerminal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network")
	os.WriteFile(path, []byte("config interface 'lan'\n\toption proto 'static'\n"), 0o644)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, path)
	cmd.Env = append(os.Environ(), "BE_VI=1")
	s := ptytest.Start(t, 60, 8, cmd)
	s.WaitFor("config interface 'lan'")
	s.Send("/static\rcwdhcp'\x1b")
	s.WaitFor("option proto 'dhcp'")
	s.Send(":wq\r")
	if code := s.Exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := "config interface 'lan'\n\toption proto 'dhcp''\n"
	if b, _ := os.ReadFile(path); string(b) != want {
		t.Errorf("saved %q, want %q", b, want)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("a b\nc\n", "dwp.u\x12:%s/a/b/g\r")
	f.Add("", "\x1b[3~3dGP99J%R\xff\x1b:1,$d\r")
	f.Add("x", "2d/x\r?\r:9999999999,-s/(/)/\r")
	f.Fuzz(func(t *testing.T, in, keys string) {
		if len(keys) > 200 || len(in) > 2000 || strings.Contains(keys, "w") && strings.Contains(keys, ":") ||
			strings.ContainsAny(keys, ":") && strings.ContainsAny(keys, "xerZ") {
			return // no files are written here
		}
		e := newEditor("", decode([]byte(in)), 10, 40)
		e.clamp()
		typed(e, keys)
		screen, row, col := e.view()
		if len(screen) != 10 || row < 0 || row > 9 || col < 0 || col > 40 {
			t.Fatalf("screen of %d rows, cursor %d,%d", len(screen), row, col)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\nb"))
	f.Add([]byte("\xff\xfe\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if string(b) == "\n" {
			return // an empty line alone is an empty file
		}
		if got := decode(b).encode(); string(got) != string(b) {
			t.Errorf("%q became %q", b, got)
		}
	})
}
