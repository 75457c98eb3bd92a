package uci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree makes configuration folders with the given package files.
func tree(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	dir := t.TempDir()
	tr := &Tree{
		ConfDir:     filepath.Join(dir, "config"),
		OverrideDir: filepath.Join(dir, "override"),
		SaveDir:     filepath.Join(dir, "save"),
	}
	for _, d := range []string{tr.ConfDir, tr.OverrideDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(t, filepath.Join(tr.ConfDir, name), text)
	}
	return tr
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (t *Tree) file(pkg string) string  { return filepath.Join(t.ConfDir, pkg) }
func (t *Tree) delta(pkg string) string { return filepath.Join(t.SaveDir, pkg) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const lan = "config interface 'lan'\n\toption proto 'static'\n\tlist dns '1.1.1.1'\n"

func TestStageWritesDeltaLines(t *testing.T) {
	tr := tree(t, map[string]string{"network": lan + "config device\n\toption name 'eth0'\n"})
	ops := []Change{
		{Set, "lan", "mtu", "1400"},
		{Set, "lan", "proto", "static"}, // no effect
		{Set, "wan", "", "interface"},
		{Set, "wan", "note", "it's\ntwo lines"},
		{AddSection, "", "", "device"},
		{Set, "@device[-1]", "name", "eth1"},
		{ListAdd, "lan", "dns", "9.9.9.9"},
		{ListDel, "lan", "dns", "1.1.1.1"},
		{ListDel, "lan", "absent", "x"}, // no effect
		{Delete, "lan", "dns", "0"},
		{Delete, "lan", "proto", ""},
		{Set, "lan", "mtu", ""},
		{Rename, "@device[0]", "", "first"},
		{Reorder, "wan", "", "0"},
	}
	check(t, tr.Stage("network", ops...))
	want := `network.lan.mtu='1400'
network.wan='interface'
network.wan.note='it'\''s
two lines'
+network.cfg040f15='device'
network.cfg040f15.name='eth1'
|network.lan.dns='9.9.9.9'
~network.lan.dns='1.1.1.1'
-network.lan.dns='0'
-network.lan.proto
-network.lan.mtu
@network.cfg020f15='first'
^network.wan='0'
`
	if d := cmp.Diff(want, read(t, tr.delta("network"))); d != "" {
		t.Errorf("delta file, -want +got\n%s", d)
	}
	if ops[4].Section != "cfg040f15" {
		t.Errorf("id of the added section: %q", ops[4].Section)
	}
	if got := read(t, tr.file("network")); !strings.HasPrefix(got, lan) {
		t.Errorf("staging touched the file: %q", got)
	}
	p, err := tr.Load("network")
	check(t, err)
	after := "wan=interface\n note=\"it's\\ntwo lines\"\nlan=interface\n dns=[]\nfirst=device\n name=\"eth0\"\n?cfg040f15=device\n name=\"eth1\"\n"
	if d := cmp.Diff(after, dump(p)); d != "" {
		t.Errorf("loaded, -want +got\n%s", d)
	}
	if p, err = tr.LoadCommitted("network"); err != nil || p.Section("wan") != nil {
		t.Errorf("committed state: %v, %v", p, err)
	}
	check(t, tr.Commit("network"))
	text := "\nconfig interface 'wan'\n\toption note 'it'\\''s\ntwo lines'\n\nconfig interface 'lan'\n\nconfig device 'first'\n\toption name 'eth0'\n\nconfig device\n\toption name 'eth1'\n\n"
	if d := cmp.Diff(text, read(t, tr.file("network"))); d != "" {
		t.Errorf("committed, -want +got\n%s", d)
	}
	if got := read(t, tr.delta("network")); got != "" {
		t.Errorf("delta file after the commit: %q", got)
	}
}

func TestUnnamedIDs(t *testing.T) {
	tr := tree(t, map[string]string{"t": "config a\nconfig b x\nconfig a\nconfig c y\n", "empty": ""})
	check(t, tr.Stage("t", Change{Op: Set, Section: "named", Value: "type1"}))
	add := []Change{{Op: AddSection, Value: "type1"}}
	check(t, tr.Stage("t", add...))
	if add[0].Section != "cfg065e18" {
		t.Errorf("sixth section: %s", add[0].Section)
	}
	add = []Change{{Op: AddSection, Value: "foo"}}
	check(t, tr.Stage("empty", add...))
	if add[0].Section != "cfg017389" {
		t.Errorf("first section: %s", add[0].Section)
	}
}

func TestRefusedChangesAreNotStaged(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n\toption k v\n"})
	for _, tt := range []struct {
		c    Change
		want error
	}{
		{Change{Set, "nope", "k", "v"}, ErrInvalid},
		{Change{Set, "@zzz[0]", "k", "v"}, ErrInvalid},
		{Change{Set, "@zzz[0]", "", "a"}, ErrInvalid},
		{Change{Set, "s", "", "bad type"}, ErrInvalid},
		{Change{Set, "s", "bad-name", "v"}, ErrInvalid},
		{Change{Set, "s", "k", "bell\a"}, ErrInvalid},
		{Change{Set, "", "", "a"}, ErrInvalid},
		{Change{AddSection, "", "", "bad type"}, ErrInvalid},
		{Change{Delete, "nope", "", ""}, ErrNotFound},
		{Change{Delete, "s", "nope", ""}, ErrNotFound},
		{Change{Delete, "", "", ""}, ErrInvalid},
		{Change{Rename, "nope", "", "x"}, ErrNotFound},
		{Change{Rename, "s", "", "bad-name"}, ErrInvalid},
		{Change{Rename, "s", "", ""}, ErrInvalid},
		{Change{Reorder, "nope", "", "0"}, ErrNotFound},
		{Change{ListAdd, "nope", "k", "v"}, ErrInvalid},
		{Change{ListDel, "nope", "k", "v"}, ErrInvalid},
		{Change{ListAdd, "s", "", "v"}, ErrInvalid},
		{Change{Delete, "@[", "", ""}, ErrInvalid},
		{Change{Op(9), "s", "k", "v"}, ErrInvalid},
	} {
		err := tr.Stage("p", Change{Set, "s", "other", "v"}, tt.c)
		if !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v, want %v", tt.c, err, tt.want)
		}
		if got := read(t, tr.delta("p")); got != "" {
			t.Fatalf("%+v staged %q", tt.c, got)
		}
	}
	if err := tr.Stage("absent", Change{Set, "s", "", "t"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent package: %v", err)
	}
	if _, err := os.Stat(tr.delta("absent")); err == nil {
		t.Error("a delta file was made for an absent package")
	}
}

func TestRenameOntoAnother(t *testing.T) {
	p := mustParse(t, "config a x\n\toption k v\n\toption l w\nconfig b y\n")
	for _, c := range []Change{{Rename, "x", "", "y"}, {Rename, "x", "k", "l"}} {
		if err := p.Apply(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v; the next load would merge the two", c, err)
		}
	}
	check(t, p.Apply(Change{Rename, "x", "", "x"}))
	check(t, p.Apply(Change{Rename, "x", "k", "m"}))
}

func TestReorder(t *testing.T) {
	for pos, want := range map[string]string{
		"0": "c a b d", "1": "a c b d", "2": "a b c d", "3": "a b d c", "9": "a b d c", "-1": "c a b d", "x": "c a b d",
	} {
		p := mustParse(t, "config t a\nconfig t b\nconfig t c\nconfig t d\n")
		check(t, p.Apply(Change{Reorder, "c", "", pos}))
		var names []string
		for _, s := range p.Sections {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("to %s: %s, want %s", pos, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	p := mustParse(t, "config a x\nconfig b y\nconfig a\n")
	for addr, want := range map[string]int{"x": 0, "@a[0]": 0, "@a[1]": 2, "@a[-1]": 2, "@a[-2]": 0, "@[1]": 1, "@[-1]": 2, "@b[]": 1} {
		s, err := p.Lookup(addr)
		if err != nil || s != p.Sections[want] {
			t.Errorf("%s: %v, %v", addr, s, err)
		}
	}
	for addr, want := range map[string]error{
		"z": ErrNotFound, "@a[2]": ErrNotFound, "@a[-3]": ErrNotFound, "@z[0]": ErrNotFound,
		"@a": ErrInvalid, "@a[0": ErrInvalid, "@a[x]": ErrInvalid, "@a[0]b": ErrInvalid, "a-b": ErrInvalid,
	} {
		if _, err := p.Lookup(addr); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", addr, err, want)
		}
		if p.Section(addr) != nil {
			t.Errorf("%s found", addr)
		}
	}
}

func TestBadDeltaLinesAreIgnored(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, os.Mkdir(tr.SaveDir, 0o700))
	write(t, tr.delta("p"), `p.s.a='1'
garbage
other.s.a='2'
p.s.b
@p.s='bad-name'
^p.s.a='1'
|p.s='x'
p.@a[0].c='3'
p.s.d='4' extra
p.nope.e='5'

p.s.f=plain
-p.nope
p.s.g='unterminated
`)
	p, err := tr.Load("p")
	check(t, err)
	if got, want := dump(p), "s=a\n a=\"1\"\n f=\"plain\"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestOverrideDir(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a conf\n", "q": "config a conf\n", "p.bak": "", "dot.ted": ""})
	write(t, filepath.Join(tr.OverrideDir, "p"), "config a over\n")
	write(t, filepath.Join(tr.OverrideDir, "r"), "config a over\n")
	check(t, os.Mkdir(filepath.Join(tr.ConfDir, "folder"), 0o755))
	names, err := tr.List()
	if err != nil || strings.Join(names, " ") != "p q r" {
		t.Errorf("list: %v, %v", names, err)
	}
	p, err := tr.Load("p")
	check(t, err)
	if p.Section("over") == nil {
		t.Errorf("loaded %s", dump(p))
	}
	check(t, tr.Stage("p", Change{Set, "over", "k", "v"}))
	check(t, tr.Commit("p"))
	if got := read(t, tr.file("p")); got != "config a conf\n" {
		t.Errorf("commit went to the overridden file: %q", got)
	}
	if got := read(t, filepath.Join(tr.OverrideDir, "p")); !strings.Contains(got, "option k 'v'") {
		t.Errorf("commit is not in the override: %q", got)
	}
	if _, err := (&Tree{ConfDir: filepath.Join(tr.ConfDir, "none")}).List(); !errors.Is(err, ErrNotFound) {
		t.Errorf("list of an absent folder: %v", err)
	}
}

func TestExtraDeltaDirs(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, tr.Stage("p", Change{Set, "s", "k", "staged"}, Change{Set, "s", "l", "staged"}))
	session := *tr
	session.DeltaDirs, session.SaveDir = []string{tr.SaveDir}, filepath.Join(t.TempDir(), "session")
	check(t, session.Stage("p", Change{Set, "s", "k", "session"}))
	p, err := session.Load("p")
	check(t, err)
	if got, want := dump(p), "s=a\n k=\"session\"\n l=\"staged\"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	changes, err := session.Changes("p")
	if err != nil || len(changes) != 3 || changes[2].Value != "session" {
		t.Errorf("changes: %v, %v", changes, err)
	}
	check(t, session.Commit("p"))
	if got := read(t, tr.delta("p")); !strings.Contains(got, "staged") {
		t.Errorf("commit emptied a further delta folder: %q", got)
	}
	if got := read(t, session.delta("p")); got != "" {
		t.Errorf("delta of the session: %q", got)
	}
	if got := read(t, tr.file("p")); !strings.Contains(got, "session") || !strings.Contains(got, "l 'staged'") {
		t.Errorf("committed: %q", got)
	}
}

func TestRevert(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\nconfig a\n"})
	stage := func() {
		check(t, tr.Revert("p", "", ""))
		check(t, tr.Stage("p", Change{Set, "s", "k", "it's"}, Change{Set, "s", "l", "a\nb"}, Change{Set, "@a[1]", "k", "v"}))
	}
	for _, tt := range []struct{ section, option, want string }{
		{"", "", ""},
		{"s", "", "p.cfg02b606.k='v'\n"},
		{"s", "k", "p.s.l='a\nb'\np.cfg02b606.k='v'\n"},
		{"@a[1]", "", "p.s.k='it'\\''s'\np.s.l='a\nb'\n"},
		{"s", "absent", "p.s.k='it'\\''s'\np.s.l='a\nb'\np.cfg02b606.k='v'\n"},
	} {
		stage()
		check(t, tr.Revert("p", tt.section, tt.option))
		if got := read(t, tr.delta("p")); got != tt.want {
			t.Errorf("revert %q %q leaves %q, want %q", tt.section, tt.option, got, tt.want)
		}
	}
	if err := tr.Revert("p", "@zzz[0]", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent section: %v", err)
	}
}

func TestCommitKeepsModeAndFollowsLinks(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, os.Chmod(tr.file("p"), 0o640))
	elsewhere := filepath.Join(t.TempDir(), "real")
	write(t, elsewhere, "config a s\n")
	check(t, os.Symlink(elsewhere, tr.file("linked")))
	for _, pkg := range []string{"p", "linked"} {
		check(t, tr.Stage(pkg, Change{Set, "s", "k", "v"}))
		check(t, tr.Commit(pkg))
	}
	if fi, err := os.Stat(tr.file("p")); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Lstat(tr.file("linked")); err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link became %v, %v", fi.Mode(), err)
	}
	if got := read(t, elsewhere); !strings.Contains(got, "option k 'v'") {
		t.Errorf("file behind the link: %q", got)
	}
	for _, dir := range []string{tr.ConfDir, filepath.Dir(elsewhere)} {
		entries, err := os.ReadDir(dir)
		check(t, err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				t.Errorf("left over: %s", e.Name())
			}
		}
	}
}

func TestCommitWithoutChanges(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config  a   s # as written\n"})
	check(t, tr.Commit("p"))
	check(t, tr.Stage("p", Change{Set, "s", "gone", ""}))
	check(t, tr.Commit("p"))
	if got := read(t, tr.file("p")); got != "config  a   s # as written\n" {
		t.Errorf("rewritten: %q", got)
	}
	if err := tr.Commit("absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent package: %v", err)
	}
}

// TestCommitKeepsWhatOthersWrote: the file is read again under the lock.
func TestCommitKeepsWhatOthersWrote(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, tr.Stage("p", Change{Set, "s", "k", "v"}))
	write(t, tr.file("p"), "config a s\n\toption other '1'\n")
	check(t, tr.Commit("p"))
	if got, want := read(t, tr.file("p")), "\nconfig a 's'\n\toption other '1'\n\toption k 'v'\n\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestFailedCommitChangesNothing: no file system may be half written; the
// staged changes stay for the next try.
func TestFailedCommitChangesNothing(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, tr.Stage("p", Change{Set, "s", "k", "v"}))
	staged := read(t, tr.delta("p"))
	write(t, tr.file("p"), "config a s\nbroken\n")
	if err := tr.Commit("p"); !errors.Is(err, ErrParse) || !strings.Contains(err.Error(), tr.file("p")+":2") {
		t.Errorf("commit of a broken file: %v", err)
	}
	if read(t, tr.file("p")) != "config a s\nbroken\n" || read(t, tr.delta("p")) != staged {
		t.Error("something was changed")
	}
	// A leftover of a commit that was cut off does no harm.
	write(t, tr.file("p"), "config a s\n")
	write(t, filepath.Join(tr.ConfDir, ".p.uci-123456"), "config a half")
	names, err := tr.List()
	if err != nil || strings.Join(names, " ") != "p" {
		t.Errorf("list: %v, %v", names, err)
	}
	check(t, tr.Commit("p"))
	if got := read(t, tr.file("p")); !strings.Contains(got, "option k 'v'") {
		t.Errorf("after the second try: %q", got)
	}
}

// TestPartialDeltaLine: what a full disk left of a line is closed off.
func TestPartialDeltaLine(t *testing.T) {
	tr := tree(t, map[string]string{"p": "config a s\n"})
	check(t, os.Mkdir(tr.SaveDir, 0o700))
	write(t, tr.delta("p"), "p.s.k='v'\np.s.pa")
	check(t, tr.Stage("p", Change{Set, "s", "l", "w"}))
	p, err := tr.Load("p")
	check(t, err)
	if got, want := dump(p), "s=a\n k=\"v\"\n l=\"w\"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestConcurrentUse: everyone's section arrives, under an id of its own.
func TestConcurrentUse(t *testing.T) {
	tr := tree(t, map[string]string{"p": ""})
	const workers, each = 8, 10
	var wg sync.WaitGroup
	errs := make(chan error, workers*each*2)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				add := []Change{{Op: AddSection, Value: fmt.Sprintf("t%d", w)}}
				errs <- tr.Stage("p", add...)
				if i%3 == 0 {
					errs <- tr.Commit("p")
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		check(t, err)
	}
	check(t, tr.Commit("p"))
	p, err := tr.Load("p")
	check(t, err)
	for w := range workers {
		if n := len(p.SectionsOfType(fmt.Sprintf("t%d", w))); n != each {
			t.Errorf("worker %d: %d sections of %d", w, n, each)
		}
	}
}

func TestAbsolutePath(t *testing.T) {
	tr := tree(t, nil)
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "config a s\n")
	check(t, tr.Stage(path, Change{Set, "s", "k", "v"}))
	if got, want := read(t, path), "\nconfig a 's'\n\toption k 'v'\n\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := os.Stat(tr.SaveDir); err == nil {
		t.Error("something was staged")
	}
	check(t, tr.Commit(path))
	if err := tr.Revert(path, "", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("revert: %v", err)
	}
}

func TestNames(t *testing.T) {
	tr := tree(t, nil)
	for _, pkg := range []string{"../secret", "a/b", ".hidden", "", "a b", "..", "/"} {
		if _, err := tr.Load(pkg); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotFound) {
			t.Errorf("load %q: %v", pkg, err)
		}
		if err := tr.Write(&Package{Name: pkg}); err == nil {
			t.Errorf("wrote package %q", pkg)
		}
	}
}

func TestImportAndMerge(t *testing.T) {
	tr := tree(t, map[string]string{"one": "config old x\n"})
	text := "package one\nconfig a b\n\toption k v\npackage two\nconfig c\n\tlist l 1\n"
	check(t, tr.Import("", strings.NewReader(text)))
	if got, want := read(t, tr.file("one")), "\nconfig a 'b'\n\toption k 'v'\n\n"; got != want {
		t.Errorf("one: %q, want %q", got, want)
	}
	if fi, err := os.Stat(tr.file("two")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("two: %v, %v", fi, err)
	}
	check(t, tr.Import("all", strings.NewReader(text)))
	if got, want := read(t, tr.file("all")), "\nconfig a 'b'\n\toption k 'v'\n\nconfig c\n\tlist l '1'\n\n"; got != want {
		t.Errorf("all: %q, want %q", got, want)
	}
	if err := tr.Import("one", strings.NewReader("config a b\nbroken\n")); !errors.Is(err, ErrParse) {
		t.Errorf("broken text: %v", err)
	}
	if got := read(t, tr.file("one")); !strings.Contains(got, "option k 'v'") {
		t.Errorf("a broken import replaced the file: %q", got)
	}
	check(t, tr.Merge("all", strings.NewReader("config a b\n\toption k w\n\toption m x\nconfig c\n\tlist l 2\nconfig n new\n")))
	want := "all.b='a'\nall.b.k='w'\nall.b.m='x'\n+all.cfg03b608='c'\n|all.cfg03b608.l='2'\nall.new='n'\n"
	if got := read(t, tr.delta("all")); got != want {
		t.Errorf("merge staged %q, want %q", got, want)
	}
	lenient := *tr
	lenient.NonStrict = true
	if err := lenient.Import("some", strings.NewReader("config a b\nbroken\n\toption k v\n")); !errors.Is(err, ErrParse) {
		t.Errorf("lenient import reports %v", err)
	}
	if got, want := read(t, tr.file("some")), "\nconfig a 'b'\n\toption k 'v'\n\n"; got != want {
		t.Errorf("lenient import wrote %q, want %q", got, want)
	}
}

func TestSectionValues(t *testing.T) {
	s := mustParse(t, "config a s\n\toption on enabled\n\toption off no\n\toption odd maybe\n\toption n -7\n\toption words 'a b\tc'\n\tlist l 'x y'\n\tlist l z\n").Section("s")
	if v, ok := s.Get("l"); v != "x y z" || !ok {
		t.Errorf("get: %q %v", v, ok)
	}
	if got := s.List("l"); !cmp.Equal(got, []string{"x y", "z"}) {
		t.Errorf("list: %q", got)
	}
	if got := s.List("words"); !cmp.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("words: %q", got)
	}
	if s.List("none") != nil || s.String("none", "d") != "d" || s.Int("none", 3) != 3 || s.Int("odd", 3) != 3 || s.Int("n", 0) != -7 {
		t.Error("defaults")
	}
	if !s.Bool("on", false) || s.Bool("off", true) || !s.Bool("odd", true) || s.Bool("none", false) {
		t.Error("bool")
	}
	check(t, s.Set("new", "v"))
	check(t, s.Set("odd", ""))
	check(t, s.SetList("n", "1", "2"))
	check(t, s.SetList("l"))
	if got := s.List("n"); s.String("new", "") != "v" || s.Option("odd") != nil || s.Option("l") != nil || !cmp.Equal(got, []string{"1", "2"}) {
		t.Errorf("after setting: %+v", s)
	}
	if err := s.Set("bad-name", "v"); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	if err := s.SetList("l", "nul\x00"); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad value: %v", err)
	}
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]Address{
		"p":             {Package: "p"},
		"p.s":           {Package: "p", Section: "s"},
		"p.@t[-1].o":    {Package: "p", Section: "@t[-1]", Option: "o"},
		"p.s.o=a=b.c":   {Package: "p", Section: "s", Option: "o", Value: "a=b.c", HasValue: true},
		"p.s=":          {Package: "p", Section: "s", HasValue: true},
		"/tmp/file.s.o": {Package: "/tmp/file", Section: "s", Option: "o"},
	} {
		if got, err := ParseAddress(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "=v", ".s", "p.", "p.s.", "p.s.bad-name=1", "p.s.o.x", "p.s.o=\a", "p q"} {
		if got, err := ParseAddress(in); !errors.Is(err, ErrParse) {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

func FuzzDelta(f *testing.F) {
	for _, s := range []string{
		"p.s.k='v'\n", "+p.cfg017389='foo'\np.cfg017389.a='it'\\''s\nx'\n", "-p.s\n-p.s.l='0'\n", "@p.s='n'\n^p.n='0'\n",
		"|p.s.l='1'\n~p.s.l='1'\n", "p.s.k='", "p.s.k=\"a\\\nb\" # c\n", "\x00\n;\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		changes := ParseDelta("p", []byte(in))
		var again strings.Builder
		for _, c := range changes {
			again.WriteString(deltaLine("p", c))
		}
		if d := cmp.Diff(changes, ParseDelta("p", []byte(again.String()))); d != "" {
			t.Fatalf("written lines read differently:\n%s\n%s", again.String(), d)
		}
		p := mustParse(t, "config a s # keep\n\tlist l 1\n# here\n")
		for _, c := range changes {
			before := string(p.text(form{comments: true}))
			if p.Apply(c) != nil && string(p.text(form{comments: true})) != before {
				t.Fatalf("refused change %+v had an effect", c)
			}
		}
		text := string(p.text(form{comments: true}))
		q, err := Parse("p", strings.NewReader(text), true)
		if err != nil {
			t.Fatalf("after %+v: %v\n%s", changes, err, text)
		}
		if got := string(q.text(form{comments: true})); got != text {
			t.Fatalf("second writing differs: %q, %q", text, got)
		}
	})
}
