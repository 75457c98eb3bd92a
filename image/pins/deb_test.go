package pins

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unpackDeb unpacks a package file into a new folder.
func unpackDeb(t testing.TB, data []byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "x.deb")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Store{}
	tree := filepath.Join(dir, "tree")
	return tree, s.unpackTo(t.Context(), name, tree, nil)
}

// listTree lists a tree: path, mode, and link or content.
func listTree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		line := rel + " " + st.Mode().String()
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			link, err := os.Readlink(name)
			if err != nil {
				return err
			}
			line = rel + " -> " + link
		case st.Mode().IsRegular():
			line += " " + readFile(t, name)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpack(t *testing.T) {
	old := syscall.Umask(0o077) // must not show
	defer syscall.Umask(old)
	for _, ext := range []string{".xz", ".zst", ".gz", ".plain"} {
		t.Run(ext, func(t *testing.T) {
			tree, err := unpackDeb(t, testDeb{name: "x", ext: ext, files: []file{
				{name: "usr/"},
				{name: "usr/bin/"},
				{name: "usr/bin/plain", data: "p"},
				{name: "usr/bin/program", data: "x", mode: 0o700},
				{name: "usr/bin/setuid", data: "s", mode: 0o4755},
				{name: "usr/bin/secret", data: "k", mode: 0o600},
				{name: "usr/bin/link", link: "program"},
				{name: "usr/bin/hard", link: "usr/bin/program", kind: tar.TypeLink},
				{name: "dev/null", kind: tar.TypeChar},
				{name: "dev/disk", kind: tar.TypeBlock},
				{name: "dev/pipe", kind: tar.TypeFifo},
				{name: "no/folders/named/file", data: "f"},
				{name: "lib", link: "usr/lib"},
				{name: "outside", link: "../../../../etc/passwd"},
			}}.data(t))
			if err != nil {
				t.Fatal(err)
			}
			want := []string{
				"lib -> usr/lib",
				"no drwxr-xr-x", "no/folders drwxr-xr-x", "no/folders/named drwxr-xr-x", "no/folders/named/file -r--r--r-- f",
				"outside -> ../../../../etc/passwd", // a link may lead anywhere; nobody follows it out
				"usr drwxr-xr-x", "usr/bin drwxr-xr-x",
				"usr/bin/hard -r-xr-xr-x x",
				"usr/bin/link -> program",
				"usr/bin/plain -r--r--r-- p",
				"usr/bin/program -r-xr-xr-x x",
				"usr/bin/secret -r--r--r-- k",
				"usr/bin/setuid -r-xr-xr-x s",
			}
			if d := cmp.Diff(want, listTree(t, tree)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// evilDebs are packages that try to write outside.
func evilDebs(outside string) map[string][]file {
	return map[string][]file{
		"parent":                {{name: "!../evil", data: "x"}},
		"parent below":          {{name: "!./usr/../../evil", data: "x"}},
		"absolute":              {{name: "!" + outside + "/evil", data: "x"}},
		"absolute link, below":  {{name: "l", link: outside}, {name: "l/evil", data: "x"}},
		"relative link, below":  {{name: "l", link: "../../outside"}, {name: "l/evil", data: "x"}},
		"link to link, below":   {{name: "a", link: ".."}, {name: "b", link: "a/.."}, {name: "b/evil", data: "x"}},
		"over a link":           {{name: "evil", link: outside + "/evil"}, {name: "evil", data: "x"}},
		"hard link out":         {{name: "h", link: "../evil", kind: tar.TypeLink}},
		"hard link through":     {{name: "l", link: outside}, {name: "h", link: "l/there", kind: tar.TypeLink}},
		"folder through a link": {{name: "l", link: outside}, {name: "l/evil/"}},
		"a file as a folder":    {{name: "f", data: "x"}, {name: "f/evil", data: "x"}},
		"twice":                 {{name: "f", data: "x"}, {name: "f", data: "y"}},
	}
}

func TestUnpackStaysInside(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "there"), "mine")
	for name, files := range evilDebs(outside) {
		t.Run(name, func(t *testing.T) {
			tree, err := unpackDeb(t, testDeb{name: "x", files: files}.data(t))
			if err == nil {
				t.Errorf("accepted: %q", listTree(t, tree))
			}
			if got := listTree(t, outside); !slices.Equal(got, []string{"there -rw-r--r-- mine"}) {
				t.Errorf("outside there is %q", got)
			}
			if exists(filepath.Join(tree, "..", "evil")) {
				t.Error("it got out")
			}
		})
	}
}

func TestUnpackLeavesNothingHalf(t *testing.T) {
	bad := testDeb{name: "hello", files: []file{{name: "good", data: "x"}, {name: "!../evil", data: "x"}}}
	a := newArchive(t).add(bad)
	o := a.options(t)
	// It cannot be locked, since that unpacks it: lock another, then put this in its place.
	a.suites["trixie"] = []testDeb{hello()}
	a.publish()
	o.Lock = a.lockFile(t, o, helloRequest)
	l, err := parseLock(o.Lock, []byte(readFile(t, o.Lock)))
	if err != nil {
		t.Fatal(err)
	}
	data := bad.data(t)
	p := &l.Lock.Packages[0]
	p.Size, p.SHA256 = int64(len(data)), sumOf(data)
	a.files["debian/"+p.Pool] = data
	writeFile(t, o.Lock, string(l.render()))
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unpack(t.Context(), "hello:amd64"); err == nil || !strings.Contains(err.Error(), "leads out of the package") {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "tree"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

func TestUnpackAfterKilledRun(t *testing.T) {
	a := newArchive(t).add(hello())
	s := a.locked(t, a.options(t), helloRequest)
	p, _ := s.Package("hello")
	if err := makeDir(s.treePath(p) + ".part/usr/share"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.treePath(p)+".part/usr/share/hello", "half")
	writeFile(t, s.treePath(p)+".lock", "") // nobody holds it
	dir, err := s.Unpack(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if readFile(t, filepath.Join(dir, "usr/share/hello")) != big(300_000) {
		t.Error("the tree is not whole")
	}
}

func TestNotAPackage(t *testing.T) {
	good := testDeb{name: "x", files: []file{{name: "f", data: big(1000)}}}.data(t)
	data := compressed(t, ".gz", nil)
	for name, in := range map[string][]byte{
		"empty":             nil,
		"text":              []byte("hello"),
		"no data":           arFile(member{"debian-binary", []byte("2.0\n")}),
		"other member":      arFile(member{"foo", nil}, member{"data.tar.gz", data}),
		"unknown packing":   arFile(member{"debian-binary", []byte("2.0\n")}, member{"data.tar.lzma", data}),
		"cut off":           good[:len(good)-100],
		"cut in the header": good[:len(good)/2/60*60+30],
		"negative size":     bytes.Replace(good, []byte("4         `"), []byte("-60       `"), 1),
		"damaged":           func() []byte { b := bytes.Clone(good); b[len(b)-400] ^= 0x55; return b }(),
	} {
		if _, err := unpackDeb(t, in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVerify(t *testing.T) {
	a := newArchive(t).add(hello(), testDeb{name: "other", files: []file{
		{name: "usr/bin/x", data: "x", mode: 0o755}, {name: "usr/bin/y", link: "x"}, {name: "usr/bin/z", link: "usr/bin/x", kind: tar.TypeLink}}})
	s := a.locked(t, a.options(t), helloRequest+"[data.other]\n")
	if err := s.Prefetch(t.Context(), "hello", "other"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if bad, err := s.Verify(t.Context(), &out, false); bad != 0 || err != nil || out.String() != "2 packages and 2 trees checked, 0 bad\n" {
		t.Fatalf("%d bad, %v: %s", bad, err, &out)
	}
	p, _ := s.Package("other")
	tree := s.treePath(p)
	restore := func() {
		t.Helper()
		if err := os.RemoveAll(tree); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Unpack(t.Context(), "other"); err != nil {
			t.Fatal(err)
		}
	}
	for name, do := range map[string]func() error{
		"content": func() error {
			return os.WriteFile(tree+"/usr/bin/x", []byte("y"), 0o755)
		},
		"size":    func() error { return os.Truncate(tree+"/usr/bin/x", 0) },
		"mode":    func() error { return os.Chmod(tree+"/usr/bin/x", 0o644) },
		"missing": func() error { return os.Remove(tree + "/usr/bin/x") },
		"link": func() error {
			return errSeq(os.Remove(tree+"/usr/bin/y"), os.Symlink("z", tree+"/usr/bin/y"))
		},
		"hard link": func() error {
			return errSeq(os.Remove(tree+"/usr/bin/z"), os.WriteFile(tree+"/usr/bin/z", []byte("x"), 0o555))
		},
		"more": func() error { return os.WriteFile(tree+"/usr/bin/more", nil, 0o644) },
	} {
		if err := errSeq(os.Chmod(tree+"/usr/bin/x", 0o755), do()); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if bad, err := s.Verify(t.Context(), &out, false); bad != 1 || err != nil {
			t.Errorf("%s: %d bad, %v: %s", name, bad, err, &out)
		}
		restore()
	}
	// A damaged package is removed with its tree, and comes anew.
	if err := errSeq(os.Chmod(s.debPath(p), 0o644), os.WriteFile(s.debPath(p), []byte(strings.Repeat("x", int(p.Size))), 0o644)); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if bad, err := s.Verify(t.Context(), &out, true); bad != 1 || err != nil || !strings.Contains(out.String(), "differs from its pinned sha256") {
		t.Errorf("%d bad, %v: %s", bad, err, &out)
	}
	if exists(s.debPath(p)) {
		t.Error("the damaged package is still there")
	}
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	restore()
	if bad, err := s.Verify(t.Context(), &out, true); bad != 0 || err != nil {
		t.Errorf("after all: %d bad, %v", bad, err)
	}
}

// errSeq gives the first error.
func errSeq(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestListPathPrune(t *testing.T) {
	a := world(t, "6.12.1", "1.0")
	o := a.options(t)
	s := a.locked(t, o, worldRequest)
	var out bytes.Buffer
	if err := s.FetchNamed(t.Context(), &out, "image.foo", "foo", "kernel"); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "5 packages, ") {
		t.Errorf("fetch: got %q", &out)
	}
	out.Reset()
	if err := s.List(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PACKAGE", "foo-data", "unpacked", "GPL-2+, MIT"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("list has no %q:\n%s", want, &out)
		}
	}
	for name, want := range map[string]string{"kernel:amd64": "/tree/", "libc6": "/tree/", "foo": "/root/usr/bin/foo", "bar": "/root/usr/bin/foo"} {
		out.Reset()
		if err := s.Path(t.Context(), &out, name); err != nil || !strings.Contains(out.String(), want) || !exists(strings.TrimSpace(out.String())) {
			t.Errorf("path %s: got %q %v", name, &out, err)
		}
	}
	if err := s.Path(t.Context(), &out, "nothing"); err == nil || !strings.Contains(err.Error(), "bar, foo") {
		t.Errorf("path nothing: got %v, want an error that lists the tools", err)
	}

	junk := []string{"deb/" + strings.Repeat("1", 64) + ".deb", "deb/" + strings.Repeat("1", 64) + ".deb.part", "tree/" + strings.Repeat("2", 64) + "/x", "tool/foo-0123456789abcdef/x", "drift/x.json"}
	for _, name := range junk {
		if err := makeDir(filepath.Dir(filepath.Join(s.dir, name))); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(s.dir, name), "x")
	}
	out.Reset()
	if err := s.Prune(&out); err != nil || !strings.HasPrefix(out.String(), fmt.Sprintf("removed %d things", len(junk))) {
		t.Errorf("prune: %q %v", &out, err)
	}
	a.server.Close()
	if _, err := s.Tool(t.Context(), "foo"); err != nil {
		t.Errorf("prune removed what is needed: %v", err)
	}
	for _, name := range junk {
		if exists(filepath.Join(s.dir, name)) {
			t.Errorf("prune left %s", name)
		}
	}
}
