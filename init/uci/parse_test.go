package uci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dump shows a package in one line a value, so that tables stay readable.
func dump(p *Package) string {
	var b strings.Builder
	for _, s := range p.Sections {
		name := s.Name
		if s.Anonymous {
			name = "?" + name
		}
		fmt.Fprintf(&b, "%s=%s\n", name, s.Type)
		for _, o := range s.Options {
			if o.IsList {
				fmt.Fprintf(&b, " %s=%q\n", o.Name, o.Values)
			} else {
				fmt.Fprintf(&b, " %s=%q\n", o.Name, o.Values[0])
			}
		}
	}
	return b.String()
}

func mustParse(t *testing.T, text string) *Package {
	t.Helper()
	p, err := Parse("t", strings.NewReader(text), true)
	if err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return p
}

// TestGrammar holds the cases observed on upstream's binary.
func TestGrammar(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"plain", "config a b\n\toption k v\n", "b=a\n k=\"v\"\n"},
		{"one letter keywords", "p x\nc a b\no k v\nl m 1\nl m 2\n", "b=a\n k=\"v\"\n m=[\"1\" \"2\"]\n"},
		{"tabs after the keyword", "config\ta\tb\noption\tk\tv\n", "b=a\n k=\"v\"\n"},
		{"no line end at the end", "config a b\noption k v", "b=a\n k=\"v\"\n"},
		{"CRLF", "config a b\r\n\toption k v\r\n\r\n", "b=a\n k=\"v\"\n"},
		{"comment in a word", "config a b\noption k foo#bar\n", "b=a\n k=\"foo\"\n"},
		{"comment after a quoted word", "config a b\noption k 'foo'#bar\n", "b=a\n k=\"foo\"\n"},
		{"comment sign in quotes", "config a b\noption k 'foo#bar'\noption l \"a # b\"\n", "b=a\n k=\"foo#bar\"\n l=\"a # b\"\n"},
		{"double quotes with escapes", `config a b` + "\n" + `option b "dq \"in\" \\ end"`, "b=a\n b=\"dq \\\"in\\\" \\\\ end\"\n"},
		{"escaped blank in a bare word", "config a b\noption c unq\\ uoted\n", "b=a\n c=\"unq uoted\"\n"},
		{"quote written as shells do", `config a b` + "\n" + `option d 'it'\''s'`, "b=a\n d=\"it's\"\n"},
		{"parts of a word", `config a b` + "\n" + `option g "a"'b'c`, "b=a\n g=\"abc\"\n"},
		{"no decoding of escapes", `config a b` + "\n" + `option g "a\nb\tc"`, "b=a\n g=\"anbtc\"\n"},
		{"backslash joins lines in a bare word", "config a b\noption k one\\\ntwo\n", "b=a\n k=\"onetwo\"\n"},
		{"backslash joins lines in double quotes", "config a b\noption k \"one\\\ntwo\"\n", "b=a\n k=\"onetwo\"\n"},
		{"backslash joins lines with CRLF", "config a b\r\noption k \"one\\\r\ntwo\"\r\n", "b=a\n k=\"onetwo\"\n"},
		{"backslash is literal in single quotes", "config a b\noption k 'one\\\ntwo'\n", "b=a\n k=\"one\\\\\\ntwo\"\n"},
		{"quotes over lines", "config a b\noption k 'one\ntwo'\noption l \"x\ny\"\n", "b=a\n k=\"one\\ntwo\"\n l=\"x\\ny\"\n"},
		{"semicolon after a blank splits", "config a b\noption k v ; option z w\n", "b=a\n k=\"v\"\n z=\"w\"\n"},
		{"semicolon glued to a bare word drops the rest", "config a b\noption k v;option z w\n", "b=a\n k=\"v\"\n"},
		{"semicolon in a bare word", "config a b\noption k x;y\n", "b=a\n k=\"x\"\n"},
		{"semicolon glued to quotes splits", "config a b\noption k 'v';option z w\n", "b=a\n k=\"v\"\n z=\"w\"\n"},
		{"semicolon in quotes", "config a b\noption k 'v;w'\n", "b=a\n k=\"v;w\"\n"},
		{"empty option is absent", "config a b\noption k ''\noption l\t\n", "b=a\n"},
		{"empty option does not unset", "config a b\noption k v\noption k ''\n", "b=a\n k=\"v\"\n"},
		{"empty list item is kept", "config a b\nlist k ''\n", "b=a\n k=[\"\"]\n"},
		{"last option wins", "config a b\noption k v\noption k w\n", "b=a\n k=\"w\"\n"},
		{"list after option", "config a b\noption k v\nlist k w\n", "b=a\n k=[\"v\" \"w\"]\n"},
		{"option after list", "config a b\nlist k v\nlist k w\noption k x\n", "b=a\n k=\"x\"\n"},
		{"named section twice merges", "config a b\noption k v\nconfig c d\nconfig a b\noption l w\n", "b=a\n k=\"v\"\n l=\"w\"\nd=c\n"},
		{"unnamed ids", "config device\nconfig zone\nconfig rule\nconfig defaults\nconfig x y\nconfig device\n",
			"?cfg010f15=device\n?cfg02dc81=zone\n?cfg0392bd=rule\n?cfg04e63d=defaults\ny=x\n?cfg060f15=device\n"},
		{"type of any printable characters", "config a-b.c/d\n", "?cfg01ab53=a-b.c/d\n"},
		{"package line has no effect", "package other\nconfig a b\n", "b=a\n"},
		{"bytes beyond ASCII", "config a b\noption k 'žarnica \xff'\n", "b=a\n k=\"žarnica \\xff\"\n"},
		{"empty", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "type of any printable characters" {
				tt.want = fmt.Sprintf("?cfg01%04x=a-b.c/d\n", typeHash("a-b.c/d"))
			}
			if d := cmp.Diff(tt.want, dump(mustParse(t, tt.in))); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestTypeHash(t *testing.T) {
	for typ, want := range map[string]uint16{
		"device": 0x0f15, "zone": 0xdc81, "rule": 0x92bd, "defaults": 0xe63d, "type1": 0x5e18, "foo": 0x7389,
	} {
		if got := typeHash(typ); got != want {
			t.Errorf("hash of %s: %04x, want %04x", typ, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		in, msg    string
		line, byte int
		rest       string // what can be read without strictness
	}{
		{"config a b extra\n", "too many arguments", 1, 17, "b=a\n"},
		{"config a b\n\toption k v x\n", "too many arguments", 2, 14, "b=a\n k=\"v\"\n"},
		{"config a b\nfoo bar\n\toption k v\n", "invalid command", 2, 0, "b=a\n k=\"v\"\n"},
		{"config\n", "invalid command", 1, 0, ""},
		{"config", "config without name", 1, 0, ""},
		{"configs a\n", "invalid command", 1, 0, ""},
		{"config \n", "insufficient arguments", 1, 8, ""},
		{"config a b\n\toption \n\toption k v\n", "insufficient arguments", 2, 9, "b=a\n k=\"v\"\n"},
		{"config a b\n\toption k-k v\n", "invalid character in name field", 2, 12, "b=a\n"},
		{"config a b-c\n", "invalid character in name field", 1, 13, ""},
		{"config 'a b' c\n", "invalid character in type field", 1, 13, ""},
		{"\toption k v\nconfig a b\n", "option/list command found before the first section", 1, 1, "b=a\n"},
		{"list k v\n", "option/list command found before the first section", 1, 0, ""},
		{"config a b\nconfig c b\n", "section of different type overwrites prior section with same name", 2, 11, "b=c\n"},
		{"config a b\noption k 'v\n", "EOF with unterminated '", 2, 12, "b=a\n"},
		{"config a b\noption k \"v\n\n", "EOF with unterminated \"", 3, 13, "b=a\n"},
		{"config a b\noption k v\x00w\noption l w\n", "invalid character: NUL", 2, 0, "b=a\n l=\"w\"\n"},
		{"package a-b!\nconfig a b\n", "invalid character in name field", 1, 13, "b=a\n"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			p, err := Parse("net", strings.NewReader(tt.in), true)
			var pe *ParseError
			if !errors.As(err, &pe) || !errors.Is(err, ErrParse) || p != nil {
				t.Fatalf("strict: package %v, error %v", p, err)
			}
			if pe.Msg != tt.msg || pe.Line != tt.line || pe.Byte != tt.byte || pe.File != "net" {
				t.Errorf("strict: %+v, want %q at line %d, byte %d", *pe, tt.msg, tt.line, tt.byte)
			}
			p, err = Parse("net", strings.NewReader(tt.in), false)
			if p == nil {
				t.Fatalf("not strict: no package, %v", err)
			}
			if got := dump(p); got != tt.rest {
				t.Errorf("not strict: got\n%swant\n%s", got, tt.rest)
			}
			tolerated := tt.msg == "too many arguments" || strings.HasPrefix(tt.msg, "section of different")
			if (err == nil) != tolerated {
				t.Errorf("not strict: error %v", err)
			}
		})
	}
}

// TestReportsEveryBadLine: one bad line must not hide the rest
// (openwrt/openwrt#11753).
func TestReportsEveryBadLine(t *testing.T) {
	in := "config a b\n\topton k v\n\toption k v\nbroken\n\toption l 'w\n\toption m x\n"
	p, err := Parse("net", strings.NewReader(in), false)
	if got, want := dump(p), "b=a\n k=\"v\"\n m=\"x\"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want := "net:2: invalid command (byte 1)\n" +
		"net:4: invalid command (byte 0)\n" +
		"net:5: EOF with unterminated ' (at line 6, byte 25)"
	if err == nil || err.Error() != want {
		t.Errorf("errors:\n%v\nwant:\n%s", err, want)
	}
}

func TestImportBlocks(t *testing.T) {
	in := "package one\nconfig a b\n\npackage two\nconfig c\n"
	pkgs, err := ParseAll(strings.NewReader(in), true)
	if err != nil || len(pkgs) != 2 || pkgs[0].Name != "one" || pkgs[1].Name != "two" {
		t.Fatalf("%v, %v", pkgs, err)
	}
	if dump(pkgs[0]) != "b=a\n" || !strings.HasPrefix(dump(pkgs[1]), "?cfg01") {
		t.Errorf("one:\n%stwo:\n%s", dump(pkgs[0]), dump(pkgs[1]))
	}
	if _, err := ParseAll(strings.NewReader("package a\npackage b\npackage a\n"), true); !errors.Is(err, ErrDuplicate) {
		t.Errorf("package twice: %v", err)
	}
	_, err = ParseAll(strings.NewReader("config a b\n"), true)
	var pe *ParseError
	if !errors.As(err, &pe) || pe.Msg != "attempting to import a file without a package name" {
		t.Errorf("no package line: %v", err)
	}
}

func TestBounds(t *testing.T) {
	if _, err := Parse("big", strings.NewReader(strings.Repeat("#", MaxSize+1)), false); !errors.Is(err, ErrInvalid) {
		t.Errorf("large file: %v", err)
	}
	for name, in := range map[string]string{
		"sections": strings.Repeat("c a\n", MaxEntries+1),
		"options":  "c a b\n" + strings.Repeat("l k v\n", MaxEntries+1),
		"comments": strings.Repeat("#\n", MaxEntries+1),
		"faults":   strings.Repeat("x\n", MaxEntries+1),
	} {
		if p, err := Parse("many", strings.NewReader(in), false); !errors.Is(err, ErrInvalid) || p != nil {
			t.Errorf("many %s: package %v, error %.100v", name, p != nil, err)
		}
	}
	// Reading stays linear: these take hours if a name is looked up by walking.
	var b strings.Builder
	b.WriteString("c a first\n")
	for i := range 20000 {
		fmt.Fprintf(&b, "o k%d v\n", i)
	}
	for i := range 20000 {
		fmt.Fprintf(&b, "c a s%d\nc a first\no k%d w\n", i, i)
	}
	p := mustParse(t, b.String())
	if len(p.Sections) != 20001 || p.Sections[0].Options[19999].Values[0] != "w" {
		t.Error("large file read wrongly")
	}
}

func TestLongLine(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	p := mustParse(t, "config a b\n\toption k '"+long+"'\n")
	if v, _ := p.Section("b").Get("k"); v != long {
		t.Errorf("got %d bytes", len(v))
	}
}

// commented is written with comments at every place that keeps them.
const commented = `# licence of the file
# second line

# about lan
config interface 'lan' # the inner side
	# chosen by hand
	option proto 'static' # not dhcp
	# first server
	list dns '1.1.1.1'
	list dns '9.9.9.9' # second
	#option mtu '1400'

# a block of its own

# another one

config device
	option name 'eth0'

# the end
`

func TestCommentsStay(t *testing.T) {
	p := mustParse(t, commented)
	var b strings.Builder
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(commented+"\n", b.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestCommentsFollowTheirPlace(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes []Change
		gone    []string // lines that are no longer there
		added   map[string]string
	}{
		{"value changed", []Change{{Set, "lan", "proto", "dhcp"}}, nil,
			map[string]string{"\toption proto 'static' # not dhcp": "\toption proto 'dhcp' # not dhcp"}},
		{"option removed", []Change{{Delete, "lan", "proto", ""}},
			[]string{"\t# chosen by hand", "\toption proto 'static' # not dhcp"}, nil},
		{"list item removed", []Change{{ListDel, "lan", "dns", "1.1.1.1"}},
			[]string{"\t# first server", "\tlist dns '1.1.1.1'"}, nil},
		{"last section removed", []Change{{Delete, "@device[0]", "", ""}},
			[]string{"config device", "\toption name 'eth0'"}, nil},
		{"section renamed", []Change{{Rename, "lan", "", "inner"}}, nil,
			map[string]string{"config interface 'lan' # the inner side": "config interface 'inner' # the inner side"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustParse(t, commented)
			for _, c := range tt.changes {
				if err := p.Apply(c); err != nil {
					t.Fatal(err)
				}
			}
			var want []string
			for _, l := range strings.Split(commented, "\n") {
				keep := true
				for _, g := range tt.gone {
					keep = keep && l != g
				}
				if to, ok := tt.added[l]; ok {
					l = to
				}
				if keep && l != "" {
					want = append(want, l)
				}
			}
			var got []string
			for _, l := range strings.Split(string(p.text(form{comments: true})), "\n") {
				if l != "" {
					got = append(got, l)
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestWrittenForm(t *testing.T) {
	p := mustParse(t, "package t\n# note\nconfig a b\no k \"it's\"\nl l 1\nl l 'two three'\nconfig c\n")
	var b strings.Builder
	if err := p.Export(&b, false); err != nil {
		t.Fatal(err)
	}
	want := "package t\n\nconfig a 'b'\n\toption k 'it'\\''s'\n\tlist l '1'\n\tlist l 'two three'\n\nconfig c\n\n"
	if b.String() != want {
		t.Errorf("export: %q, want %q", b.String(), want)
	}
	b.Reset()
	if err := p.Export(&b, true); err != nil {
		t.Fatal(err)
	}
	if want := "\nconfig c 'cfg02" + fmt.Sprintf("%04x", typeHash("c")) + "'\n\n"; !strings.HasSuffix(b.String(), want) {
		t.Errorf("export with names: %q, want the end %q", b.String(), want)
	}
	empty := &Package{Name: "e"}
	if got := string(empty.text(form{comments: true})); got != "\n" {
		t.Errorf("empty package: %q", got)
	}
	odd := &Package{Name: "o"}
	if _, err := odd.Add(`a'b#c;d\"`, ""); err != nil {
		t.Fatal(err)
	}
	if got := mustParse(t, string(odd.text(form{}))).Sections[0].Type; got != `a'b#c;d\"` {
		t.Errorf("type with quotes reads back as %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		commented, "config a b extra\n", "c a\no k v;o z w\no k 'v';o z w\n", "config a b\noption k \"one\\\ntwo\"\n",
		"config a b\r\n\toption k 'x\ny'\n# c\n\n#d\nconfig a b\n", "package x\nconfig 'a\"b' c ; list k '' # e\n",
		"c a # x\n# y\n\n\no k # z\nl k a#b\no k c #d\nl k e #f\n# g", "config a \\", "\"", "c a '\\\x00'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		strict, serr := Parse("f", strings.NewReader(in), true)
		p, err := Parse("f", strings.NewReader(in), false)
		if p == nil {
			t.Fatalf("nothing could be read: %v", err)
		}
		if serr == nil && (err != nil || dump(strict) != dump(p)) {
			t.Fatalf("strict and lenient parse differ: %v", err)
		}
		if serr != nil && !errors.Is(serr, ErrParse) {
			t.Fatalf("error of another kind: %v", serr)
		}
		// Writing and reading again changes nothing, comments included.
		text := p.text(form{comments: true})
		again, err := Parse("f", strings.NewReader(string(text)), true)
		if err != nil {
			t.Fatalf("written form does not parse: %v\n%s", err, text)
		}
		if d := cmp.Diff(string(text), string(again.text(form{comments: true}))); d != "" {
			t.Fatalf("second writing differs:\n%s", d)
		}
		if !p.sameAs(again) {
			t.Fatalf("content differs:\n%s\n%s", dump(p), dump(again))
		}
		for _, l := range p.comments() {
			if !strings.Contains(in, l) {
				t.Fatalf("comment %q is not in the input", l)
			}
		}
		if a, b := p.comments(), again.comments(); len(a) != len(b) {
			t.Fatalf("%d comments became %d", len(a), len(b))
		}
	})
}

// sameAs compares all but the ids of unnamed sections: a section header that
// merged into an earlier one was counted too.
func (p *Package) sameAs(q *Package) bool {
	if len(p.Sections) != len(q.Sections) {
		return false
	}
	for i, s := range p.Sections {
		r := q.Sections[i]
		if s.Type != r.Type || s.Anonymous != r.Anonymous || !s.Anonymous && s.Name != r.Name || len(s.Options) != len(r.Options) {
			return false
		}
		for j, o := range s.Options {
			if !cmp.Equal(o.Values, r.Options[j].Values) || o.Name != r.Options[j].Name || o.IsList != r.Options[j].IsList {
				return false
			}
		}
	}
	return true
}

func (p *Package) comments() []string {
	var out []string
	add := func(ls ...string) {
		for _, l := range ls {
			if l != "" {
				out = append(out, l)
			}
		}
	}
	for _, s := range p.Sections {
		add(s.before...)
		add(s.lead...)
		add(s.trail)
		for _, o := range s.Options {
			for _, n := range o.notes {
				add(n.lead...)
				add(n.trail)
			}
		}
		add(s.tail...)
	}
	add(p.tail...)
	return out
}
