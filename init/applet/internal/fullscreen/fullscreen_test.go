package fullscreen

import (
	"slices"
	"testing"
)

func TestDecode(t *testing.T) {
	for in, want := range map[string][]Key{
		"aé":                    {'a', 'é'},
		"\x1b[A\x1bOB\x1b[5~":   {Up, Down, PageUp},
		"\x1b[1~\x1b[F\x1b[24~": {Home, End, Other},
		"\x1b":                  {Escape},
		"\x1bx":                 {Escape, 'x'},
		"\x1b[":                 {Escape, '['},
		"\xff\x03":              {Other, Ctrl('c')},
	} {
		var got []Key
		for b := []byte(in); len(b) > 0; {
			k, n := decode(b, false)
			got = append(got, k)
			b = b[n:]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	for _, in := range []string{"", "\x1b", "\x1b[", "\x1b[5", "\xc3"} {
		if k, n := decode([]byte(in), true); n != 0 {
			t.Errorf("%q is taken for %v", in, k)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x1b[1;5A\x1b\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			_, n := decode(b, false)
			if n < 1 || n > len(b) {
				t.Fatalf("%q: %d bytes taken", b, n)
			}
			b = b[n:]
		}
	})
}

func TestCut(t *testing.T) {
	if got := cut("äöü", 2); got != "äö" {
		t.Errorf("%q", got)
	}
	if got := cut("ab", 2); got != "ab" {
		t.Errorf("%q", got)
	}
}
