package pins

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParagraphs(t *testing.T) {
	text := "\n# a comment\nPackage: foo\nDescription: short\n long\n .\n  more\nEmpty:\n\n\n\nPACKAGE:bar\r\nLast: 1"
	var got []paragraph
	for p, err := range paragraphs(strings.NewReader(text), nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p)
	}
	want := []paragraph{
		{"package": "foo", "description": "short\nlong\n.\nmore", "empty": ""},
		{"package": "bar", "last": "1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParagraphsKeep(t *testing.T) {
	text := "Package: foo\nSkip: a\n b\nSkip: twice is nothing to us\nSize: 1\n 2\n"
	for p, err := range paragraphs(strings.NewReader(text), func(f string) bool { return f != "skip" }) {
		if d := cmp.Diff(paragraph{"package": "foo", "size": "1\n2"}, p); err != nil || d != "" {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
}

func TestParagraphsErrors(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"continuation first": {" x\n", "line 1: a continuation"},
		"no colon":           {"Package: a\nfoo\n", `line 2: expected "Field: value"`},
		"blank in the name":  {"A b: c\n", "line 1: expected"},
		"twice":              {"A: 1\nB: 2\na: 3\n", `line 3: field "a" twice`},
		"long line":          {"A: " + strings.Repeat("x", maxControlLine), "line 1: "},
		"long paragraph":     {strings.Repeat("#"+strings.Repeat("z", 900_000)+"\n", 20), "a paragraph of more than"},
	} {
		var last error
		n := 0
		for _, err := range paragraphs(strings.NewReader(tt.text), nil) {
			last = err
			if n++; err != nil && n > 2 {
				t.Errorf("%s: it goes on after an error", name)
			}
		}
		if !strings.Contains(fmt.Sprint(last), tt.want) {
			t.Errorf("%s: got %.200v, want %q", name, last, tt.want)
		}
	}
}

func TestLicences(t *testing.T) {
	dep5 := "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: foo\n"
	for name, tt := range map[string]struct{ text, want string }{
		"machine-readable": {dep5 + "\nFiles: *\nCopyright: x\nLicense: MIT\n Text\n\nFiles: debian/*\nLicense: GPL-2+  or   Artistic\n\nFiles: a\nLicense: MIT\n\nLicense: BSD-3-clause\n of something else\n", "GPL-2+ or Artistic, MIT"},
		"in the header":    {dep5 + "License: Apache-2.0\n", "Apache-2.0"},
		"http":             {"Format: http://dep.debian.net/deps/dep5\n", ""},
		"free text":        {"This package was debianized by someone.\n\nIt is free.\n", ""},
		"other fields":     {"License: MIT\n", ""},
		"empty":            {"", ""},
	} {
		if got := licences(strings.NewReader(tt.text)); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}
