package uci

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWords(t *testing.T) {
	in := "set a.b.c='x y'\n\n  # comment\nadd a \"b\\\"c\"  # rest\nget a ; get b\nset x='two\nlines'\nset y='open\n"
	r := bufio.NewReader(strings.NewReader(in))
	w := NewWords(r)
	for _, want := range [][]string{
		{"set", "a.b.c=x y"}, nil, nil, {"add", "a", `b"c`}, {"get", "a"}, {"set", "x=two\nlines"},
	} {
		got, err := w.Next()
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	var pe *ParseError
	if _, err := w.Next(); !errors.As(err, &pe) || pe.Msg != "EOF with unterminated '" {
		t.Errorf("open quote: %v", err)
	}
	if _, err := w.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestWordsLeavesTheRest: `import` inside a batch reads on where the command
// ended.
func TestWordsLeavesTheRest(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("import x\nconfig a b\n"))
	if words, err := NewWords(r).Next(); err != nil || len(words) != 2 {
		t.Fatalf("%q, %v", words, err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "config a b\n" {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestWordsBound(t *testing.T) {
	endless := io.MultiReader(strings.NewReader("set x='"), strings.NewReader(strings.Repeat("y\n", MaxSize)))
	if _, err := NewWords(bufio.NewReader(endless)).Next(); !errors.Is(err, ErrInvalid) {
		t.Errorf("endless value: %v", err)
	}
}

func FuzzWords(f *testing.F) {
	for _, s := range []string{"set a='b\nc' # d\n", "a\\\nb;c ; d", "\"\\", "'\x00'\nx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		w := NewWords(bufio.NewReader(strings.NewReader(in)))
		for range strings.Count(in, "\n") + 1 {
			words, err := w.Next()
			var pe *ParseError
			if err != nil && !errors.As(err, &pe) && err != io.EOF {
				t.Fatal(err)
			}
			for _, word := range words {
				if word == "" {
					t.Fatalf("empty word in %q", words)
				}
			}
		}
		if _, err := w.Next(); err != io.EOF {
			t.Fatalf("more lines than the input has: %v", err)
		}
	})
}
